"""Channels come up and carry what they must; four of them, and eight in a migration."""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterable
from typing import Any, Final

from router.errors import LabError
from router.lab.capture import cleartext_frames, protected_frames
from router.lab.farend import PeerSession
from router.lab.lab import Lab
from router.lab.network import write_private
from router.lab.poll import reached
from router.lab.report import Report
from router.lab.traffic import Ping, Prober, path_mtu_ping, spread, tcp_through

UP_TIMEOUT_S: Final = 90.0
ROUTE_TIMEOUT_S: Final = 10.0
POLL_S: Final = 0.2
FLOWS: Final = 256
FAIR_SHARE: Final = 0.25
"""A next hop must carry at least this part of its even share: 256 flows over 4 miss it by 1 in 10^12."""
TCP_OCTETS: Final = 16 << 20
PING_TRIES: Final = 5
COUNTERS_S: Final = 5.0


def start_and_wait(lab: Lab, report: Report, names: Iterable[str] | None = None) -> float:
    """Start the router and wait for its channels. Returns seconds. Raises LabError where they stay down."""
    report.progress("starting the router")
    start = time.monotonic()
    lab.router.start()
    wait_for_channels(lab, report, names or [edge.channel for edge in lab.topology.edges], UP_TIMEOUT_S)
    return time.monotonic() - start


def wait_for_channels(lab: Lab, report: Report, names: Iterable[str], timeout_s: float) -> None:
    """Wait until these channels are up. Raises LabError that says which are not and why."""
    wanted = list(names)
    seen: dict[str, dict[str, Any]] = {}

    def all_up() -> bool:
        nonlocal seen
        before, seen = seen, lab.router.channels()
        for name in wanted:
            if _verdict(seen, name) != _verdict(before, name):
                report.progress(f"channel {name}: {_verdict(seen, name)}")
        return all(seen.get(name, {}).get("verdict") == "up" for name in wanted)

    if reached(all_up, timeout_s, POLL_S) is None:
        missing = ", ".join(
            f"{n}: {_verdict(seen, n)}" for n in wanted if seen.get(n, {}).get("verdict") != "up"
        )
        raise LabError(f"not up after {timeout_s:.0f} s: {missing}")


def _verdict(channels: dict[str, dict[str, Any]], name: str) -> str:
    channel = channels.get(name)
    if channel is None:
        return "no status yet"
    return str(channel["verdict"]) + (f" ({channel['reason']})" if channel.get("reason") else "")


def four_channels(lab: Lab, report: Report) -> None:
    """The router's main job, end to end, with figures."""
    report.figure("edges", lab.edges_kind)
    report.figure("edges_keys", ", ".join(sorted({e.kind for e in lab.mka_ends.values()})) or "static")
    report.figure("start_to_channels_up", round(start_and_wait(lab, report), 1), "s")
    check_secy(lab, report)
    check_channels(lab, report)
    check_far_ends(lab, report)
    check_ecmp(lab, report)
    before = lab.macsec_counters()
    check_spread(lab, report)
    check_mtu(lab, report)
    check_tcp(lab, report)
    check_macsec(lab, report, before)
    check_cleartext(lab, report)


def check_secy(lab: Lab, report: Report) -> None:
    """Every channel has the SecY that was asked for, and says why."""
    seen = {
        f"{channel['macsec']['secy']}: {channel['macsec']['secy_reason']}"
        for channel in lab.router.channels().values()
    }
    kinds = {text.partition(":")[0] for text in seen}
    report.check("every channel says who does MACsec, and why", len(seen) == 1, "; ".join(seen))
    if lab.secy != "auto":
        report.check(f"the SecY is the {lab.secy}'s", kinds == {lab.secy}, ", ".join(kinds))
    report.figure("secy", ", ".join(kinds))


def eight_channels(lab: Lab, report: Report) -> None:
    """Make before break: four channels, eight, the other four; probes run all the way."""
    old = [edge for edge in lab.topology.edges if edge.site in {"site-a", "site-b"}]
    new = [edge for edge in lab.topology.edges if edge not in old]
    both = lab.network.config.read_text()
    write_private(lab.network.config, only_channels(both, {edge.channel for edge in old}))
    lab.answer_over([edge.node for edge in old])
    report.figure(
        "start_to_channels_up", round(start_and_wait(lab, report, [e.channel for e in old]), 1), "s"
    )
    _check_hops(lab, report, len(old))
    prober = Prober(lab.network.branch, lab.network.cloud, lab.topology.cloud.address4)
    prober.start()
    try:
        _reload(lab, report, both, "four channels are added")
        start = time.monotonic()
        wait_for_channels(lab, report, [edge.channel for edge in lab.topology.edges], UP_TIMEOUT_S)
        report.figure("added_channels_up", round(time.monotonic() - start, 1), "s")
        _check_hops(lab, report, len(lab.topology.edges))
        # The provider moves its side before the old channels go.
        lab.answer_over([edge.node for edge in new])
        _reload(lab, report, only_channels(both, {edge.channel for edge in new}), "the old four are removed")
        _check_hops(lab, report, len(new))
        wait_for_channels(lab, report, [edge.channel for edge in new], UP_TIMEOUT_S)
    finally:
        outage = prober.stop()
    names = sorted(lab.router.channels())
    report.check("the new four are left", names == sorted(edge.channel for edge in new), ", ".join(names))
    seen = {edge.node: lab.far_ends[edge.node].sessions() for edge in new}
    drops = sum(session.drops for sessions in seen.values() for session in sessions)
    report.check("no BGP event at the new edges", drops == 0, f"{drops} drops")
    report.figure("probes_sent", outage.sent)
    report.figure("probes_lost", outage.lost)
    report.check(
        "no probe is lost",
        outage.lost == 0,
        f"{outage.lost} of {outage.sent}, longest {outage.longest_ms} ms",
    )


def only_channels(config: str, names: set[str]) -> str:
    """The configuration with these channels and their features only."""
    from io import StringIO

    from ruamel.yaml import YAML

    yaml = YAML()
    data = yaml.load(config)
    for interconnect in data["interconnects"]:
        interconnect["channels"] = [c for c in interconnect["channels"] if c["name"] in names]
    for connection in data["connections"]:
        connection["features"] = [f for f in connection["features"] if f["channel"] in names]
    text = StringIO()
    yaml.dump(data, text)
    return text.getvalue()


def _reload(lab: Lab, report: Report, config: str, what: str) -> None:
    write_private(lab.network.config, config)
    code, answer = lab.router.request("POST", "/v1/reload", {})
    report.check(
        f"reload: {what}", code == http.client.OK, "taken" if code == http.client.OK else str(answer)[:300]
    )


def _check_hops(lab: Lab, report: Report, count: int) -> None:
    for prefix in lab.topology.announce:
        seconds = reached(lambda p=prefix: len(lab.nexthops(p)) == count, UP_TIMEOUT_S)  # type: ignore[misc]
        detail = ", ".join(hop["dev"] for hop in lab.nexthops(prefix))
        report.check(f"{prefix} has {count} next hops", seconds is not None, detail)


def check_channels(lab: Lab, report: Report) -> None:
    """The router's own verdict, and both address families of each channel."""
    channels = lab.router.channels()
    up = [name for name, channel in channels.items() if channel["verdict"] == "up"]
    total = len(lab.topology.edges)
    report.check(f"{len(up)} of {total} channels up", len(up) == len(channels) == total, ", ".join(up))
    report.figure("channels_up", len(up))
    for afi in ("ipv4", "ipv6"):
        states = [
            (session["name"], session["state"], session["prefixes_accepted"])
            for channel in channels.values()
            for connection in channel["connections"]
            for session in connection["sessions"]
            if session["afi"] == afi
        ]
        good = [s for s in states if s[1].lower() == "established" and s[2] > 0]
        detail = ", ".join(f"{name} {state} {prefixes}" for name, state, prefixes in states)
        report.check(f"{afi} sessions established with routes", len(good) == len(states) == total, detail)


def check_far_ends(lab: Lab, report: Report) -> None:
    """The same from the other side: the witness that is not ours. A family's first routes follow its Open."""
    for afi in ("ipv4", "ipv6"):
        ok = reached(lambda a=afi: all(_served(s) for s in _seen(lab, a).values()), ROUTE_TIMEOUT_S, POLL_S)  # type: ignore[misc]
        detail = ", ".join(
            f"{n} {s.state} received {s.prefixes_received}" for n, s in _seen(lab, afi).items()
        )
        report.check(f"edges see {afi} established and one prefix of ours", ok is not None, detail)


def _seen(lab: Lab, afi: str) -> dict[str, PeerSession]:
    return {node: s for node, far_end in lab.far_ends.items() for s in far_end.sessions() if s.afi == afi}


def _served(session: PeerSession) -> bool:
    return session.established and session.prefixes_received == 1


def check_ecmp(lab: Lab, report: Report) -> None:
    """One route per family in the kernel, over as many next hops as there are channels."""
    for prefix in lab.topology.announce:
        hops: list[dict[str, Any]] = []

        def complete(prefix: str = prefix) -> bool:
            nonlocal hops
            hops = lab.nexthops(prefix)
            return len({hop["dev"] for hop in hops}) == len(lab.topology.edges)

        ok = reached(complete, ROUTE_TIMEOUT_S) is not None
        detail = ", ".join(f"{hop.get('gateway', '?')} dev {hop['dev']}" for hop in hops) or "no route"
        report.check(f"{prefix} is one route over {len(lab.topology.edges)} next hops", ok, detail)
    # An edge may have our prefix from BGP before its kernel has it: its answers get lost until then.
    for address in (lab.topology.cloud.address4, lab.topology.cloud.address6):
        reached(lambda to=address: _all_answered(lab, to), ROUTE_TIMEOUT_S)  # type: ignore[misc]


def check_spread(lab: Lab, report: Report) -> None:
    """Flows from the branch use every channel, counted where they come out in the cloud."""
    report.progress(f"sending {FLOWS} flows")
    wires = {edge.node: edge.channel for edge in lab.topology.edges}
    cloud = lab.topology.cloud
    for afi, address in (("ipv4", cloud.address4), ("ipv6", cloud.address6)):
        before = lab.network.cloud.packets()
        arrived = spread(lab.network.branch, lab.network.cloud, address, FLOWS)
        after = lab.network.cloud.packets()
        share = {channel: after[node][0] - before[node][0] for node, channel in wires.items()}
        detail = (
            ", ".join(f"{channel} {count}" for channel, count in share.items())
            + f"; {arrived} of {FLOWS} came back"
        )
        fair = FAIR_SHARE * FLOWS / len(wires)
        report.check(
            f"{afi} traffic on all {len(wires)} channels",
            arrived == FLOWS and min(share.values()) >= fair,
            detail,
        )


def _all_answered(lab: Lab, address: str) -> bool:
    """Tell whether answers come back over every channel."""
    return spread(lab.network.branch, lab.network.cloud, address, FLOWS, 1.0) == FLOWS


def check_mtu(lab: Lab, report: Report) -> None:
    """Exactly the connection's MTU passes with DF; one octet more is answered with that MTU."""
    mtu = lab.topology.edges[0].mtu
    cloud = lab.topology.cloud
    for afi, address in (("ipv4", cloud.address4), ("ipv6", cloud.address6)):
        passed = _ping(lab, address, mtu)
        report.check(f"{afi} packet of {mtu} octets with DF passes", passed.outcome == "ok", str(passed))
        refused = _ping(lab, address, mtu + 1)
        told = refused.outcome == "too big" and refused.mtu == mtu
        report.check(f"{afi} packet of {mtu + 1} octets is answered with too big {mtu}", told, str(refused))


def _ping(lab: Lab, address: str, size: int) -> Ping:
    """Ping until there is an answer: kernels limit how many ICMP errors they send in a second."""
    ping = Ping("lost")
    for _ in range(PING_TRIES):
        ping = path_mtu_ping(lab.network.branch, address, size)
        if ping.outcome != "lost":
            break
    return ping


def check_tcp(lab: Lab, report: Report) -> None:
    """A TCP stream arrives whole."""
    report.progress(f"sending {TCP_OCTETS >> 20} MB over TCP")
    cloud = lab.topology.cloud
    for afi, address in (("ipv4", cloud.address4), ("ipv6", cloud.address6)):
        stream = tcp_through(lab.network.branch, lab.network.cloud, address, TCP_OCTETS)
        detail = f"{stream.octets} of {TCP_OCTETS} octets in {stream.seconds:.1f} s"
        report.check(f"{afi} TCP stream arrives whole", stream.octets == TCP_OCTETS, detail)
        report.figure(f"tcp_{afi}", round(stream.mbps), "Mbit/s")


def check_macsec(lab: Lab, report: Report, before: dict[str, tuple[str, int, int]]) -> None:
    """Every secured port counts protected frames in both directions under the suite that was asked for."""

    def moved() -> bool:
        now = lab.macsec_counters()
        return before.keys() <= now.keys() and all(
            now[device][1] > was[1] and now[device][2] > was[2] for device, was in before.items()
        )

    reached(moved, COUNTERS_S)  # the status may show what was true two seconds ago
    after = lab.macsec_counters()
    wanted = lab.topology.edges[0].suite
    for device, (suite, received, sent) in after.items():
        _, received_before, sent_before = before.get(device, ("", 0, 0))
        more_in, more_out = received - received_before, sent - sent_before
        report.check(
            f"{device}: {wanted} counters move",
            suite == wanted and more_in > 0 and more_out > 0,
            f"in {more_in}, out {more_out}",
        )
    report.check(
        "every channel has its secured port",
        len(after) == len(lab.topology.edges),
        ", ".join(after) or "none",
    )


def check_cleartext(lab: Lab, report: Report) -> None:
    """No frame on any wire but MACsec, since before the router's first."""
    report.progress("reading the captures")
    total = 0
    for channel, path in lab.stop_captures().items():
        clear, protected = cleartext_frames(path), protected_frames(path)
        total += protected
        detail = f"{protected} MACsec frames, {len(clear)} in clear" + (
            f", first: {clear[0]}" if clear else ""
        )
        report.check(f"wire {channel}: nothing in clear", protected > 0 and not clear, detail)
    report.figure("macsec_frames_captured", total)

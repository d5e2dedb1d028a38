"""What must not hurt: drift, dead processes, wrong secrets, broken configuration, many routes."""

from __future__ import annotations

import http.client
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from router.errors import LabError
from router.lab import topology
from router.lab.lab import Lab
from router.lab.network import write_private
from router.lab.poll import reached, until
from router.lab.report import Report
from router.lab.scenarios.channels import (
    check_channels,
    check_ecmp,
    check_far_ends,
    start_and_wait,
    wait_for_channels,
)
from router.lab.traffic import Outage, Prober

REPAIR_LIMIT_S: Final = 1.0
REPAIR_TIMEOUT_S: Final = 10.0
TRIES: Final = 3
KILLS: Final = 10
BACK_TIMEOUT_S: Final = 60.0
CAUSE_TIMEOUT_S: Final = 60.0
MANY: Final = 10_000
MANY_TIMEOUT_S: Final = 120.0
EXPECT: Final = re.compile(r"# expect: (?:(\d+): )?(.*)")


def drift(lab: Lab, report: Report) -> None:
    """What a hand deletes on the router is back within a second, and no peer notices."""
    start_and_wait(lab, report)
    check_ecmp(lab, report)
    router, edge = lab.network.router, lab.topology.edges[0]
    prefix4, prefix6 = lab.topology.announce
    device = _device(lab, edge.channel)
    full = len(lab.topology.edges)

    def hops(prefix: str) -> bool:
        return len(lab.nexthops(prefix)) == full

    def addressed() -> bool:
        shown = router.ip("address", "show", "dev", device)
        own = {a["local"] for a in shown[0]["addr_info"]} if shown else set()
        return {edge.ipv4.router, edge.ipv6.router} <= own

    def linked() -> bool:
        return device in router.packets() and addressed()

    def raised() -> bool:
        return "UP" in router.ip("link", "show", "dev", edge.router_port)[0]["flags"]

    def all_hops() -> bool:
        return hops(prefix4) and hops(prefix6)

    def delete_groups() -> list[str]:
        return [f"nexthop del id {o['id']}" for o in router.ip("nexthop", "show") if "group" in o]

    faults: list[tuple[str, list[str] | Callable[[], list[str]], Callable[[], bool]]] = [
        ("IPv4 route deleted", [f"-4 route del {prefix4}"], lambda: hops(prefix4)),
        ("IPv6 route deleted", [f"-6 route del {prefix6}"], lambda: hops(prefix6)),
        ("nexthop groups deleted", delete_groups, all_hops),
        ("all nexthops deleted", ["nexthop flush"], all_hops),
        (
            "IPv4 address deleted",
            [f"address del {edge.ipv4.router}/{edge.ipv4.length} dev {device}"],
            addressed,
        ),
        (
            "IPv6 address deleted",
            [f"address del {edge.ipv6.router}/{edge.ipv6.length} dev {device}"],
            addressed,
        ),
        ("VLAN link deleted", [f"link del {device}"], linked),
        # Last, because the edge sees its carrier go and ends the session: what comes before must not.
        ("port set down", [f"link set {edge.router_port} down"], raised),
    ]
    worst = 0.0
    for name, commands, repaired in faults:
        if name == "port set down":
            check_no_bgp_event(lab, report)
        tries: list[float] = []
        # A machine that is busy with something else may be late once: then the median of three counts.
        while not tries or (tries[0] > REPAIR_LIMIT_S and len(tries) < TRIES):
            for command in commands() if callable(commands) else commands:
                router.run("ip", *command.split())
            seconds = reached(repaired, REPAIR_TIMEOUT_S, 0.01)
            tries.append(REPAIR_TIMEOUT_S if seconds is None else seconds)
            if reached(all_hops, BACK_TIMEOUT_S) is None:
                raise LabError(f"{name}: not all next hops are back after {BACK_TIMEOUT_S:.0f} s")
        typical = sorted(tries)[len(tries) // 2]
        detail = "back after " + ", ".join(f"{seconds * 1000:.0f} ms" for seconds in tries)
        report.check(f"{name} by hand: back within 1 s", typical <= REPAIR_LIMIT_S, detail)
        worst = max(worst, typical)
    report.figure("slowest_repair", round(worst, 2), "s")
    wait_for_channels(lab, report, [e.channel for e in lab.topology.edges], BACK_TIMEOUT_S)
    check_ecmp(lab, report)


def _device(lab: Lab, channel: str) -> str:
    """The VLAN device of a channel's first connection."""
    return str(lab.router.channels()[channel]["connections"][0]["device"])


def check_no_bgp_event(lab: Lab, report: Report, nodes: tuple[str, ...] = ()) -> None:
    """No session at these edges (or any) went down since it first came up."""
    seen = {
        f"{node} {s.afi}": (s.established, s.drops)
        for node, far_end in lab.far_ends.items()
        if not nodes or node in nodes
        for s in far_end.sessions()
    }
    bad = [
        f"{name}: {'up' if up else 'down'}, {drops} drops"
        for name, (up, drops) in seen.items()
        if drops or not up
    ]
    where = f" at {', '.join(nodes)}" if nodes else " at the peers"
    report.check(
        f"no BGP event{where}", bool(seen) and not bad, "; ".join(bad) or f"{len(seen)} sessions, 0 drops"
    )


def _process(lab: Lab, part: str) -> int:
    """Process id of the router's process whose name has `part` in it, once it runs. Raises LabError."""

    def running() -> int:
        status = lab.router.status() or {}
        return next((int(p["pid"]) for p in status.get("processes", []) if part in p["name"] and p["pid"]), 0)

    return until(running, BACK_TIMEOUT_S, lambda: f"the router shows no process {part!r}", 0.2)


def _probe(lab: Lab) -> Prober:
    prober = Prober(lab.network.branch, lab.network.cloud, lab.topology.cloud.address4)
    prober.start()
    return prober


def _check_loss(report: Report, outage: Outage, name: str) -> None:
    report.figure("probes_sent", outage.sent)
    report.figure("probes_lost", outage.lost)
    detail = f"{outage.lost} of {outage.sent} lost, longest {outage.longest_ms} ms"
    report.check(name, outage.sent > 0 and outage.lost == 0, detail)


def restart(lab: Lab, report: Report) -> None:
    """Routerd dies ten times under 1 ms probes: nothing is lost and no peer notices."""
    start_and_wait(lab, report)
    check_ecmp(lab, report)
    names = [edge.channel for edge in lab.topology.edges]
    quiet = _probe(lab)
    time.sleep(1.0)  # the length of a measurement, not a hope
    _check_loss(report, quiet.stop(), "no probe is lost while nothing happens")
    prober = _probe(lab)
    slowest = 0.0
    try:
        for kill in range(1, KILLS + 1):
            process = _process(lab, "routerd")
            os.kill(process, signal.SIGKILL)
            died = time.monotonic()
            report.progress(f"routerd killed, {kill} of {KILLS}")
            until(
                lambda p=process: _process(lab, "routerd") != p,  # type: ignore[misc]
                BACK_TIMEOUT_S,
                lambda: "routerd did not come back",
            )
            wait_for_channels(lab, report, names, BACK_TIMEOUT_S)
            slowest = max(slowest, time.monotonic() - died)
    finally:
        outage = prober.stop()
    report.figure("slowest_recovery", round(slowest, 1), "s")
    _check_loss(report, outage, f"no probe is lost over {KILLS} kills of routerd")
    check_no_bgp_event(lab, report)
    check_ecmp(lab, report)


def bad_config(lab: Lab, report: Report) -> None:
    """Every broken file is refused with file, line and reason, and nothing changes."""
    corpus = sorted((topology.config_directory().parent / "tests/unit/config/bad").glob("*.yaml"))
    if not corpus:
        raise LabError("the corpus of broken files (tests/unit/config/bad) is not in this checkout")
    start_and_wait(lab, report)
    check_ecmp(lab, report)
    before = _unchanging(lab)
    accepted, unclear = [], []
    slowest = 0.0
    for path in corpus:
        start = time.monotonic()
        code, answer = lab.router.request("POST", "/v1/reload", {"path": str(path)})
        slowest = max(slowest, time.monotonic() - start)
        errors = [f for f in answer.get("findings", []) if f["severity"] == "error"]
        if code == http.client.OK or answer.get("ok"):
            accepted.append(path.name)
        elif not _named(path, errors):
            said = f"{errors[0]['line']}: {errors[0]['message']}" if errors else f"no error ({code})"
            unclear.append(f"{path.name} says {said}")
    report.figure("files", len(corpus))
    report.figure("slowest_answer", round(slowest, 2), "s")
    report.check(
        f"all of {len(corpus)} broken files are refused", not accepted, ", ".join(accepted) or "none accepted"
    )
    report.check(
        "each with file, line and the expected reason",
        not unclear,
        ", ".join(unclear) or f"{len(corpus)} of {len(corpus)}",
    )
    report.check("the corpus has at least 60 files", len(corpus) >= 60, str(len(corpus)))
    after = _unchanging(lab)
    changed = [key for key in before if before[key] != after[key]]
    report.check(
        "the running router is unchanged",
        not changed,
        ", ".join(changed) or "configuration, routes, sessions",
    )
    check_no_bgp_event(lab, report)


def _named(path: Path, errors: list[dict[str, Any]]) -> bool:
    """Whether one of the errors is the one that the file's first line expects."""
    expected = EXPECT.match(path.read_bytes().split(b"\n", 1)[0].decode(errors="replace"))
    line, text = (expected.group(1), expected.group(2).strip()) if expected else (None, "")
    return any(
        Path(e["file"]).name == path.name
        and e["message"]
        and (int(e["line"]) == int(line) if line else int(e["line"]) >= 1)
        and text.lower() in f"{e['path']}: {e['message']}".lower()
        for e in errors
    )


def _unchanging(lab: Lab) -> dict[str, Any]:
    """What a refused configuration must leave as it is."""
    status = lab.router.status()
    assert status is not None
    router = lab.network.router
    return {
        "configuration": lab.router.request("GET", "/v1/config")[1],
        "processes": sorted((p["name"], p["pid"]) for p in status["processes"]),
        "sessions": [
            (s["name"], s["state"], s["since"])
            for c in status["channels"]
            for f in c["connections"]
            for s in f["sessions"]
        ],
        "routes": [router.ip("-4", "route", "show"), router.ip("-6", "route", "show", "proto", "205")],
        "links": sorted((x["ifname"], x["mtu"], x["ifindex"]) for x in router.ip("link", "show")),
    }


def exabgp_crash(lab: Lab, report: Report) -> None:
    """One site's ExaBGP dies: the other site carries everything, and the first comes back by itself."""
    start_and_wait(lab, report)
    check_ecmp(lab, report)
    edges = lab.topology.edges
    site = edges[0].site
    others = tuple(edge.node for edge in edges if edge.site != site)
    # The dead site's edges lose their route to the branch, as they should: the cloud answers over the others.
    lab.answer_over(others)
    prober = _probe(lab)
    try:
        os.kill(_process(lab, site), signal.SIGKILL)
        report.progress(f"ExaBGP of {site} killed")
        noticed = reached(lambda: _sessions_down(lab, site), BACK_TIMEOUT_S)
        report.check(f"sessions of {site} go down", noticed is not None, "seen by the edges")
        start = time.monotonic()
        wait_for_channels(lab, report, [edge.channel for edge in edges], BACK_TIMEOUT_S)
        report.figure("recovery", round(time.monotonic() - start, 1), "s")
    finally:
        outage = prober.stop()
    _check_loss(report, outage, "no probe is lost")
    check_no_bgp_event(lab, report, others)
    check_channels(lab, report)
    check_ecmp(lab, report)


def _sessions_down(lab: Lab, site: str) -> bool:
    return any(
        session.drops or not session.established
        for edge in lab.topology.edges
        if edge.site == site
        for session in lab.far_ends[edge.node].sessions()
    )


def wrong_md5(lab: Lab, report: Report) -> None:
    """A password that differs is named as the cause, harms no other channel, and can be put right."""
    edge, *rest = lab.topology.edges
    secret = lab.network.config_directory / edge.md5_file
    right = secret.read_text()
    write_private(secret, "not-what-the-provider-has")
    report.progress(f"the router gets a wrong password for {edge.channel}")
    lab.router.start()
    wait_for_channels(lab, report, [e.channel for e in rest], BACK_TIMEOUT_S)
    report.check("the other channels are up", True, ", ".join(e.channel for e in rest))

    def cause() -> str:
        channel = lab.router.channels().get(edge.channel, {})
        reasons = [channel.get("reason", "")]
        reasons += [s["reason"] for f in channel.get("connections", []) for s in f["sessions"]]
        return next((reason for reason in reasons if "md5" in reason.lower()), "")

    seconds = reached(cause, CAUSE_TIMEOUT_S, 0.2)
    channel = lab.router.channels()[edge.channel]
    report.check("status names MD5 as the cause", seconds is not None, cause() or str(channel["reason"]))
    report.check(f"{edge.channel} is not up", channel["verdict"] != "up", channel["verdict"])
    if seconds is not None:
        report.figure("cause_named_after", round(seconds, 1), "s")
    write_private(secret, right.strip())
    code, answer = lab.router.request("POST", "/v1/reload", {})
    report.check("a reload takes the right password", code == http.client.OK, str(answer)[:200])
    wait_for_channels(lab, report, [edge.channel], BACK_TIMEOUT_S)
    check_channels(lab, report)
    check_far_ends(lab, report)
    check_no_bgp_event(lab, report, tuple(e.node for e in rest))


def many_prefixes(lab: Lab, report: Report) -> None:
    """Ten thousand prefixes from each edge are one ECMP route each, and leave again."""
    start_and_wait(lab, report)
    check_ecmp(lab, report)
    prefixes = [f"10.{64 + n // 256}.{n % 256}.0/24" for n in range(MANY)]

    def installed() -> int:
        """Routes of ours to the many, counted where the kernel keeps them."""
        with lab.network.router.inside():
            lines = Path("/proc/thread-self/net/route").read_bytes().splitlines()[1:]
        # Destination is little-endian hex: 10.64.0.0 is 0000400A.
        return sum(
            1 for line in lines if line.split()[1][6:] == b"0A" and 64 <= int(line.split()[1][4:6], 16) < 128
        )

    report.progress(f"announcing {MANY} prefixes from {len(lab.far_ends)} edges")
    start = time.monotonic()
    for far_end in lab.far_ends.values():
        far_end.announce(prefixes)
    report.figure("announced_after", round(time.monotonic() - start, 1), "s")
    seconds = reached(lambda: installed() == MANY, MANY_TIMEOUT_S, 0.2)
    report.check(f"{MANY} routes in the kernel", seconds is not None, f"{installed()} installed")
    report.figure("first_announcement_to_kernel", round(time.monotonic() - start, 1), "s")
    hops = lab.nexthops(prefixes[-1])
    report.check(
        "each over all next hops",
        reached(lambda: len(lab.nexthops(prefixes[-1])) == len(lab.topology.edges), BACK_TIMEOUT_S)
        is not None,
        ", ".join(hop["dev"] for hop in hops),
    )
    check_no_bgp_event(lab, report)
    report.progress("withdrawing them")
    start = time.monotonic()
    for far_end in lab.far_ends.values():
        far_end.withdraw(prefixes)
    gone = reached(lambda: installed() == 0, MANY_TIMEOUT_S, 0.2)
    report.check("withdrawn again, none is left", gone is not None, f"{installed()} left")
    report.figure("withdrawn_after", round(time.monotonic() - start, 1), "s")
    check_channels_up_only(lab, report)


def check_channels_up_only(lab: Lab, report: Report) -> None:
    """Every channel is up at the end."""
    verdicts = {name: channel["verdict"] for name, channel in lab.router.channels().items()}
    detail = ", ".join(f"{name} {verdict}" for name, verdict in verdicts.items())
    report.check("all channels are up at the end", set(verdicts.values()) == {"up"}, detail)

"""The key daemon itself: its deaths, which cost nothing; operators' keys; another cipher suite.

As in `mka`, probes go once per millisecond over the channel itself, and every scenario ends with
the capture of the wire: nothing may ever have been on it in clear.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import time
from pathlib import Path
from typing import Any, Final

from router.accepted import accept
from router.config.load import load
from router.errors import LabError
from router.lab.capture import ETHERTYPE_MACSEC, frames
from router.lab.farend.mka import KeydEnd
from router.lab.lab import Lab
from router.lab.network import secured_port, write_private
from router.lab.poll import reached, until
from router.lab.report import Report
from router.lab.scenarios.channels import check_cleartext, start_and_wait, wait_for_channels
from router.lab.scenarios.mka import Channel, router_settled
from router.lab.topology import Edge
from router.lab.traffic import Prober
from router.standby import KEYD_LOCK, Role, roles

SPARE_TIMEOUT_S: Final = 60.0
"""A guest on a busy machine takes ten seconds to load a Python program, and loads two at once."""
BACK_TIMEOUT_S: Final = 30.0
LIVE_TIMEOUT_S: Final = 15.0
SAMPLE_S: Final = 5.0
FROZEN_S: Final = 4.0
"""Less than an MKA Life Time."""


class KeyDaemons:
    """The router's two key daemons."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._lock = channel.lab.router.run_directory / KEYD_LOCK

    def pid(self, role: Role) -> int:
        """Process id of the one with this role, 0 where there is none."""
        return next((pid for pid, has in roles(self._lock).items() if has == role), 0)

    def wait_spare(self) -> int:
        """Wait until the spare has loaded. Returns its process id. Raises LabError."""
        return until(lambda: self.pid("spare"), SPARE_TIMEOUT_S, lambda: "no spare key daemon waits")

    def answers(self) -> bool:
        """Whether the active one says that the channel is secured."""
        return self._channel.state().get("port") == "secured"


def restart(lab: Lab, report: Report) -> None:
    """The active key daemon is killed, ended, frozen, and killed together with its spare."""
    channel = Channel(lab, report)
    channel.start()
    channel.wait_secured("secured")
    daemons = KeyDaemons(channel)
    spare = daemons.wait_spare()
    report.figure("spare_rss", round(_memory(spare, "Rss") / 1000, 1), "MB")
    report.figure("spare_pss", round(_memory(spare, "Pss") / 1000, 1), "MB")
    keys = _Keys(channel)
    for how, number in (
        ("killed", signal.SIGKILL),
        ("ended", signal.SIGTERM),
        ("killed again", signal.SIGKILL),
    ):
        spare, active = daemons.wait_spare(), daemons.pid("active")
        with channel.probes(f"keyd is {how}"):
            os.kill(active, number)
            took = reached(lambda s=spare: daemons.pid("active") == s, BACK_TIMEOUT_S, 0.005)  # type: ignore[misc]
            back = reached(daemons.answers, BACK_TIMEOUT_S, 0.02)
            keys.look(f"keyd is {how}")
            # The successor is a whole member: it takes part in the next rotation.
            channel.far_keyd.ask(verb="rekey", channel="edge")
            fresh = reached(
                lambda: channel.current() not in {"", *keys.used} and router_settled(channel), 20.0, 0.05
            )
        detail = f"has the lock after {took or -1:.3f} s, says secured {back or -1:.2f} s later"
        report.check(f"keyd is {how}: its spare goes on", took is not None and back is not None, detail)
        report.check(f"keyd is {how}: the next rotation ends", fresh is not None, channel.current())
        report.figure(f"taken_over_after_{how.replace(' ', '_')}", round((took or 0) + (back or 0), 2), "s")
        keys.look(f"after keyd was {how}")
    daemons.wait_spare()
    with channel.probes(f"keyd is frozen for {FROZEN_S:.0f} s"):
        active = daemons.pid("active")
        os.kill(active, signal.SIGSTOP)
        time.sleep(FROZEN_S)
        os.kill(active, signal.SIGCONT)
        reached(daemons.answers, BACK_TIMEOUT_S)
    _both(channel, daemons, keys)
    transmit, receive, scs = channel.sas(lab.network.router, channel.device)
    report.check("no stale SA", len(transmit) == len(receive) == scs == 1, f"tx {transmit}, rx {receive}")
    channel.nothing_in_clear()
    for name, path in ((name, capture.path) for name, capture in lab.captures.items()):
        problem, count = numbers_rise(path, bytes.fromhex(channel.edge.router_sci_mac.replace(":", "")))
        detail = problem or f"{count} frames of the router"
        report.check(
            f"wire {name}: no packet number comes twice under a key", not problem and count > 0, detail
        )


def _both(channel: Channel, daemons: KeyDaemons, keys: _Keys) -> None:
    """Both die at once: what is lost is stated; the channel comes back by itself."""
    report = channel.report
    daemons.wait_spare()
    prober = channel.prober()
    prober.start()
    dead = set(roles(channel.lab.router.run_directory / KEYD_LOCK))
    for pid in dead:
        os.kill(pid, signal.SIGKILL)
    up = reached(lambda: daemons.pid("active") not in {0, *dead}, SPARE_TIMEOUT_S, 0.05)
    back = reached(lambda: daemons.answers() and channel.passes(), SPARE_TIMEOUT_S, 0.1)
    reached(lambda: router_settled(channel), 10.0)
    outage = prober.stop()
    detail = f"a new one after {up or -1:.1f} s, secured {back or -1:.1f} s later"
    report.check("both are killed at once: it comes back", up is not None and back is not None, detail)
    report.figure("both_killed_lost", f"{outage.lost} of {outage.sent}", "probes")
    report.figure("both_killed_longest_outage", outage.longest_ms, "ms")
    keys.look("both killed")


class _Keys:
    """The router's keys so far, and the highest packet number seen under the one in use."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.used: list[str] = [channel.current()]
        """KIs, the one in use last."""
        self._pn = 0

    def _current(self) -> tuple[str, int]:
        current = self._channel.state().get("current") or {}
        return str(current.get("ki", "")), int(current.get("next_pn", 0))

    def look(self, when: str) -> None:
        """Check that the key in use goes on or has never been in use before."""
        # A daemon that has just adopted a key samples its packet number within a second.
        reached(lambda: self._current()[0] != self.used[-1] or self._current()[1] >= self._pn, SAMPLE_S)
        ki, pn = self._current()
        same = ki == self.used[-1]
        good = bool(ki) and (pn >= self._pn if same else ki not in self.used)
        how = f"goes on from PN {self._pn} to {pn}" if same else "is a fresh one"
        self._channel.report.check(f"{when}: the key goes on, or is fresh", good, f"{ki} {how}")
        self._pn = pn
        if not same:
            self.used.append(ki)


# ------------------------------------------------------------------------- an operator rotates keys

FAR_CONFIG: Final = """\
router: {{name: edge, asn: 64512, router_id: 10.255.1.1}}
interconnects:
  - name: lab
    profile: generic
    channels:
      - name: edge
        site: lab
        port: {port}
        macsec: {{key_chain: {{directory: {keys}}}}}
"""
"""Of the far end, for `lastmile keys` there: its key daemon has a specification of its own."""


class _Operator:
    """Types `lastmile keys` at either end."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.printed = ""
        """All that was ever printed."""
        far = channel.far_keyd
        file = far.directory / "edge.yaml"
        text = FAR_CONFIG.format(port=far.edge.port, keys=far.keys)
        file.write_text(text)
        accept(far.directory, file, text, load(file).effective)

    def here(self, *arguments: str) -> dict[str, Any]:
        """At the router."""
        router = self._channel.lab.router
        return self._keys(router.run_directory, router.state_directory, arguments, "")

    def there(self, *arguments: str, stdin: str = "") -> dict[str, Any]:
        """At the far end."""
        directory = self._channel.far.directory
        return self._keys(directory, directory, arguments, stdin)

    def _keys(self, run: Path, state: Path, arguments: tuple[str, ...], stdin: str) -> dict[str, Any]:
        lab = self._channel.lab
        options = ("--json", "--run-dir", str(run), "--state-dir", str(state))
        # An operator's shell does not keep key daemons from the lab's one processor.
        argv = ["nice", "-n", "10", *lab.router.command("keys", *arguments, *options)]
        text = lab.network.router.run(*argv, stdin=stdin, check=False)
        self.printed += text
        answer: dict[str, Any] = json.loads(text or "{}")
        return answer

    def refused(self, what: str, rule: str, *arguments: str) -> None:
        """Check that the router's side says no, by this rule."""
        answer = self.here(*arguments)
        good = answer.get("ok") is False and answer.get("rule") == rule
        self._channel.report.check(f"{what}: refused by rule {rule}", good, str(answer.get("reason", answer)))


def rotate_keys(lab: Lab, report: Report) -> None:
    """A CAK is added, gone over to and removed by command at both ends, while probes go."""
    channel = Channel(lab, report)
    channel.start()
    channel.wait_secured("secured")
    others = [edge.channel for edge in lab.topology.edges[1:]]
    operator, mine, second = _Operator(channel), channel.edge.channel, others[0]
    old = channel.ckn()
    listed = operator.here("list").get("keys", [])
    used = sorted(key["channel"] for key in listed if key["in_use"])
    report.check(
        "the list shows a key in use on each channel", used == sorted([mine, *others]), ", ".join(used)
    )
    with channel.probes("add, rotate and remove"):
        added = operator.here("add", mine)
        new, cak = added["ckn"], json.loads(Path(added["file"]).read_text())["cak"]
        report.check("a key is added, on standby", added["ok"] and added["standby"], added["fingerprint"])
        operator.refused("rotate before the other side has the key", "new_not_live", "rotate", mine)
        operator.refused("a second channel while one holds a waiting key", "other_channel", "add", second)
        there = operator.there("add", "edge", "--ckn", new, "--cak-file", "-", stdin=cak)
        same = there.get("fingerprint") == added["fingerprint"]
        report.check("the far end takes it, with the same fingerprint", same, str(there.get("fingerprint")))
        seconds = reached(lambda: _key(channel, new).get("peers_live"), LIVE_TIMEOUT_S)
        report.check("the far end is live under it", seconds is not None, f"after {seconds or 0:.1f} s")
        report.check("the old key is still in use", channel.ckn() == old, channel.ckn()[:16])
        ki = channel.current()
        rotated = operator.here("rotate", mine)
        seconds = reached(lambda: channel.ckn() == new and router_settled(channel), LIVE_TIMEOUT_S)
        detail = f"{seconds or -1:.1f} s after the command, {ki} -> {channel.current()}"
        report.check("rotate: the channel goes over to it", rotated.get("ok") and seconds is not None, detail)
        operator.refused("remove the key in use", "key_active", "remove", mine, new)
        for where, answer in (
            ("here", operator.here("remove", mine, old)),
            ("there", operator.there("remove", "edge", old)),
        ):
            report.check(f"the old key is removed {where}", answer.get("ok"), str(answer))
        seconds = reached(lambda: not _key(channel, old) and channel.secured(), LIVE_TIMEOUT_S)
        report.check(
            "secured under the new key alone", seconds is not None, f"{len(channel.state()['chain'])} key"
        )
        operator.refused("a second channel within the bake time", "bake", "add", second)
        daemons = KeyDaemons(channel)
        spare = daemons.wait_spare()
        os.kill(daemons.pid("active"), signal.SIGKILL)
        until(
            lambda: daemons.pid("active") == spare and daemons.answers(),
            BACK_TIMEOUT_S,
            lambda: "no successor",
        )
        operator.refused("the bake time after the key daemon's death", "bake", "add", second)
    told = operator.printed + lab.router.log_tail(lines=10_000)
    report.check("a CAK is never printed or logged", cak not in told and added["fingerprint"] in told)
    channel.nothing_in_clear()


def _key(channel: Channel, ckn: str) -> dict[str, Any]:
    """What the router says of one key of the chain; empty where it has none such."""
    return next((key for key in channel.state().get("chain", ()) if key["ckn"] == ckn), {})


# ------------------------------------------------------------------------- another cipher suite

OTHER_SUITE: Final = "gcm-aes-256"
CHANGE_TIMEOUT_S: Final = 200.0
"""The edge may hold on to a session that came up just before the path went, for its hold time of 90 s."""


def change_suite(lab: Lab, report: Report) -> None:
    """Another suite for four channels: announced, one channel at a time, and the site carries on."""
    edges = lab.topology.edges
    report.figure("start_to_channels_up", round(start_and_wait(lab, report), 1), "s")
    was = edges[0].suite
    text = lab.network.config.read_text().replace(f"suite: {was}", f"suite: {OTHER_SUITE}")
    changed = lab.network.config.with_name("changed.yaml")
    write_private(changed, text)
    _announced(lab, report, changed, was)
    # The cloud's routes are static here: it sends over the last channel, and over the first when that is done.
    lab.answer_over([edges[-1].node])
    probers = {
        edge.channel: Prober(
            lab.network.router, lab.network.nodes[edge.node], edge.ipv4.own, flows=1, interval_s=0.01
        )
        for edge in edges
    }
    site = Prober(lab.network.branch, lab.network.cloud, lab.topology.cloud.address4)
    write_private(lab.network.config, text)
    site.start()
    for prober in probers.values():
        prober.start()
    code, answer = lab.router.request("POST", "/v1/reload", {})
    report.check("the reload is taken", code == http.client.OK, str(answer)[:300])
    most = 0
    for edge in edges:
        start = time.monotonic()
        until(
            lambda e=edge: _suite(lab, e) == OTHER_SUITE,  # type: ignore[misc]
            CHANGE_TIMEOUT_S,
            lambda e=edge: f"channel {e.channel} keeps {_suite(lab, e)}: {_notice(lab)}",  # type: ignore[misc]
            0.2,
        )
        waiting = [other.channel for other in edges if _suite(lab, other) == was]
        after = edges[edges.index(edge) + 1 :]
        report.check(
            f"{edge.channel} changes, those after it wait",
            waiting == [e.channel for e in after],
            ", ".join(waiting),
        )
        _at_far_end(lab, edge)
        while not _carries(lab, edge):
            most = max(most, sum(not _carries(lab, other) for other in edges))
            if time.monotonic() > start + CHANGE_TIMEOUT_S:
                raise LabError(f"channel {edge.channel} is not up with {OTHER_SUITE}: {_notice(lab)}")
            time.sleep(0.2)
        report.progress(f"channel {edge.channel} is up with {OTHER_SUITE}")
        back = reached(lambda e=edge: _way_back(lab, e), CHANGE_TIMEOUT_S / 2, 0.2)  # type: ignore[misc]
        detail = f"after {back:.1f} s" if back is not None else _routes_there(lab, edge)
        report.check(f"{edge.channel}: the provider's edge has the way back", back is not None, detail)
        if edge is edges[0]:
            lab.answer_over([edge.node])
    report.check("never were two channels down at once", most <= 1, f"{most} at most")
    outage = site.stop()
    detail = f"{outage.lost} of {outage.sent} probes, longest {outage.longest_ms} ms, first after {outage.first_lost_s:.1f} s"
    report.figure("lost_between_branch_and_cloud", detail)
    for name, prober in probers.items():
        lost = prober.stop()
        report.figure(f"{name}_interrupted", round(lost.longest_ms / 1000, 2), "s")
    wait_for_channels(lab, report, [edge.channel for edge in edges], CHANGE_TIMEOUT_S)
    report.check("nothing waits any more", not _notice(lab), _notice(lab) or "no notice")
    check_cleartext(lab, report)


def _announced(lab: Lab, report: Report, changed: Path, was: str) -> None:
    """`lastmile plan` says what will be interrupted, why, and that it goes one by one."""
    run = lab.router.run_directory
    plan = json.loads(
        lab.network.router.run(
            *lab.router.command("plan", str(changed), "--json", "--run-dir", str(run)), check=False
        )
    )
    said = {entry["object"]: entry for entry in plan["impact"] if entry["object"].startswith("channel ")}
    good = set(said) == {f"channel {edge.channel}" for edge in lab.topology.edges} and all(
        entry["effect"] == "interrupt"
        and f"{was} -> {OTHER_SUITE}" in entry["reason"]
        and "one channel at a time" in entry["reason"]
        for entry in said.values()
    )
    first: dict[str, Any] = next(iter(said.values()), {})
    report.check("the plan announces the interruption of each channel", good, str(first.get("reason", plan)))


def _at_far_end(lab: Lab, edge: Edge) -> None:
    """Do the same at the provider's edge: its kernel's device is made anew, and its daemon follows."""
    far = lab.mka_ends[edge.node]
    assert isinstance(far, KeydEnd)
    far.write(suites=[OTHER_SUITE])
    lab.network.nodes[edge.node].batch(
        [
            "link del macsec0",
            f"link add link {edge.port} macsec0 type macsec port 1 cipher {OTHER_SUITE} encrypt on send_sci on validate strict replay on window 0",
            *secured_port(edge),
        ]
    )


def _way_back(lab: Lab, edge: Edge) -> bool:
    """Whether the edge's kernel sends to the branch over this channel."""
    found = lab.network.nodes[edge.node].run("ip", "route", "get", lab.topology.branch.address4, check=False)
    return f" dev vlan{edge.vlan} " in found


def _routes_there(lab: Lab, edge: Edge) -> str:
    kernel = lab.network.nodes[edge.node].run("ip", "route", check=False)
    sessions = [f"{s.afi} {s.state} {s.prefixes_received}" for s in lab.far_ends[edge.node].sessions()]
    return f"{'; '.join(kernel.splitlines())} | {', '.join(sessions)}"


def _suite(lab: Lab, edge: Edge) -> str:
    channel = lab.router.channels().get(edge.channel)
    return str(channel["macsec"]["suite"]) if channel else ""


def _carries(lab: Lab, edge: Edge) -> bool:
    channel = lab.router.channels().get(edge.channel)
    return channel is not None and channel["verdict"] in {"up", "degraded"}


def _notice(lab: Lab) -> str:
    return str((lab.router.status() or {}).get("router", {}).get("notice", ""))


# ------------------------------------------------------------------------- pieces


def numbers_rise(path: Path, source: bytes) -> tuple[str, int]:
    """Follow the packet numbers (their low 32 bits) that a station sends: each AN's only rise.

    A key that is taken into use under another AN begins at 1. Returns what is wrong, empty where
    nothing is, and the number of frames.
    """
    last: dict[int, int] = {}
    now, count = -1, 0
    for frame in frames(path):
        if frame.ethertype != ETHERTYPE_MACSEC or frame.octets[6:12] != source:
            continue
        count += 1
        an, pn = frame.octets[14] & 3, int.from_bytes(frame.octets[16:20])
        if pn <= last.get(an, 0) and (an == now or pn != 1):
            return f"{frame}: AN {an} PN {pn} after {last[an]}", count
        last[an], now = pn, an
    return "", count


def _memory(pid: int, what: str) -> int:
    """Kilobytes of a process: `Rss`, or `Pss` with shared pages divided among their users."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1])
    return 0

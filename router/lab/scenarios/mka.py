"""Key agreement: against wpa_supplicant, among three stations, with wrong keys; rotations; faults.

Probes go once per millisecond over the channel itself, from the router's address on the VLAN to the
edge's, so that routing plays no part: what is lost was lost by MACsec. Every scenario ends with the
capture of the wire: nothing may ever have been on it in clear.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from router.api.keyd import ask
from router.errors import ControlError, LabError
from router.lab.capture import cleartext_frames, protected_frames
from router.lab.farend.mka import KeydEnd
from router.lab.lab import Lab
from router.lab.network import write_chain_key
from router.lab.node import Node
from router.lab.poll import reached, until
from router.lab.report import Report
from router.lab.traffic import Outage, Prober, tcp_through

START_TIMEOUT_S: Final = 60.0
SECURE_TIMEOUT_S: Final = 30.0
NEVER_S: Final = 8.0
"""Longer than an MKA Life Time and a SAK's retirement: what has not come by then does not come."""
MKA_LIFE_TIME_S: Final = 6.0


class Channel:
    """One channel's two ends."""

    def __init__(self, lab: Lab, report: Report) -> None:
        self.lab = lab
        self.report = report
        self.edge = lab.topology.edges[0]
        self.far = lab.mka_ends[self.edge.node]
        self.device = f"ms-{self.edge.channel}"
        self.keys = lab.network.config_directory / self.edge.key_directory

    @property
    def far_keyd(self) -> KeydEnd:
        """The far end, where it is our own daemon."""
        assert isinstance(self.far, KeydEnd)
        return self.far

    # Looking

    def state(self) -> dict[str, Any]:
        """What the router's key daemon says; empty where it does not answer."""
        try:
            channels: dict[str, dict[str, Any]] = ask(self.lab.router.run_directory, verb="status")[
                "channels"
            ]
        except ControlError:
            return {}
        return channels.get(self.edge.channel, {})

    def far_state(self) -> dict[str, Any]:
        """The same of the far end's."""
        try:
            return self.far_keyd.state()
        except (LabError, OSError, ValueError):
            return {}

    def current(self) -> str:
        """KI of the SAK in use at the router; empty where there is none."""
        key = self.state().get("current")
        return str(key["ki"]) if key else ""

    def ckn(self) -> str:
        """CKN that the router's SAK comes from."""
        key = self.state().get("current")
        return str(key["ckn"]) if key else ""

    def secured(self) -> bool:
        """Both the daemon and a packet say so."""
        return self.state().get("port") == "secured" and self.passes()

    def passes(self) -> bool:
        """One echo over the channel."""
        answer = self.lab.network.router.run(
            "ping", "-q", "-c1", "-W1", "-I", self.edge.ipv4.router, self.edge.ipv4.own, check=False
        )
        return " 1 received" in answer

    def sas(self, node: Node, device: str) -> tuple[list[int], list[int], int]:
        """ANs of transmit SAs and of receive SAs, and the number of receive SCs."""
        for shown in node.ip("macsec", "show"):
            if shown["ifname"] == device:
                transmit = [int(sa["an"]) for sa in shown["sa_list"]]
                receive = [int(sa["an"]) for sc in shown["rx_sc"] for sa in sc["sa_list"]]
                return transmit, receive, len(shown["rx_sc"])
        return [], [], 0

    # Doing

    def start(self) -> None:
        """Start the router and wait until the channel is secured. Raises LabError."""
        self.report.figure("far_end", self.far.kind)
        self.report.progress("starting the router")
        self.lab.router.start()
        until(lambda: bool(self.state()), START_TIMEOUT_S, lambda: "the router's key daemon does not answer")

    def wait_secured(self, what: str, timeout_s: float = SECURE_TIMEOUT_S) -> bool:
        """Check that it becomes secured."""
        seconds = reached(self.secured, timeout_s, 0.1)
        state = self.state()
        detail = (
            f"after {seconds:.1f} s" if seconds is not None else f"{state.get('port')}: {state.get('reason')}"
        )
        return self.report.check(what, seconds is not None, detail)

    def never_secured(self, what: str) -> None:
        """Check that it does not become secured."""
        seconds = reached(self.secured, NEVER_S, 0.5)
        self.report.check(
            what, seconds is None, f"not within {NEVER_S:.0f} s" if seconds is None else "it was"
        )

    def write_key(self, directory: Path, ckn: str, cak: str, **more: object) -> None:
        """Put a key into a directory."""
        write_chain_key(directory, ckn, cak, **more)

    def only_key(self, directory: Path, ckn: str, cak: str) -> None:
        """Put one key into a directory and take the others out."""
        for file in directory.glob("*.json"):
            file.unlink()
        self.write_key(directory, ckn, cak)

    def reload(self) -> None:
        """Have the router's key daemon read its keys."""
        ask(self.lab.router.run_directory, verb="reload")

    def set_pn(self, node: Node, device: str, pn: int, *, xpn: bool) -> None:
        """Move the packet number of what a node sends ahead, as weeks of traffic would."""
        for shown in node.ip("macsec", "show"):
            if shown["ifname"] == device:
                word, an = "xpn" if xpn else "pn", str(shown["encoding_sa"])
                node.run("ip", "macsec", "set", device, "tx", "sa", an, word, str(pn))

    @contextlib.contextmanager
    def probes(self, what: str, allowed: int = 0) -> Iterator[None]:
        """Probe for the length of a block; more losses than `allowed` fail."""
        prober = self.prober()
        prober.start()
        try:
            yield
        finally:
            outage = prober.stop()
            self.lost(what, outage, allowed)

    def prober(self) -> Prober:
        """1 ms probes from the router to the edge over the channel's VLAN."""
        network = self.lab.network
        return Prober(network.router, network.nodes[self.edge.node], self.edge.ipv4.own)

    def lost(self, what: str, outage: Outage, allowed: int = 0) -> None:
        """Check what probes saw."""
        detail = f"{outage.lost} of {outage.sent} lost, longest {outage.longest_ms} ms"
        self.report.check(f"{what}: at most {allowed} lost" if allowed else f"{what}: none lost",
                          outage.sent > 0 and outage.lost <= allowed, detail)  # fmt: skip

    def nothing_in_clear(self, *, some: bool = True) -> None:
        """The capture of the wire, to the end of the scenario."""
        for channel, path in self.lab.stop_captures().items():
            clear, protected = cleartext_frames(path), protected_frames(path)
            detail = f"{protected} MACsec frames, {len(clear)} in clear" + (f", {clear[0]}" if clear else "")
            self.report.check(
                f"wire {channel}: nothing in clear", not clear and (protected > 0) is some, detail
            )

    def keyd_pid(self) -> int:
        """Process id of the router's key daemon. Raises LabError."""
        for pid, command in self.lab.router.daemons():
            if "router.keyd" in command:
                return pid
        raise LabError("the router has no key daemon")


def sak_rotation(lab: Lab, report: Report) -> None:
    """Rotation after rotation under probes and TCP: no frame is lost, and no SA stays behind."""
    rotations = int(os.environ.get("LASTMILE_ROTATIONS", "12"))
    channel = Channel(lab, report)
    channel.start()
    channel.wait_secured("secured before the first rotation")
    until(lambda: "gcm" in str(channel.far_state().get("suite")), SECURE_TIMEOUT_S, lambda: "no far end")
    kis, ans = [channel.current()], []
    start = time.monotonic()
    with channel.probes(f"{rotations} rotations"):
        for number in range(rotations):
            _rekey(channel)
            before = kis[-1]
            if reached(lambda b=before: channel.current() not in {"", b}, 20.0, 0.02) is None:  # type: ignore[misc]
                report.check("every rotation ends", False, f"number {number} did not")
                break
            state = channel.state()["current"]
            kis.append(state["ki"])
            ans.append(int(state["an"]))
            until(lambda: _settled(channel), 20.0, lambda: "the old SA is not retired", 0.02)
            if number == rotations // 2:
                nodes = lab.network.nodes
                stream = tcp_through(
                    lab.network.router, nodes[channel.edge.node], channel.edge.ipv4.own, 8 << 20
                )
                report.check("TCP goes on meanwhile", stream.octets == 8 << 20, f"{stream.mbps:.0f} Mbit/s")
    report.figure("rotations", len(ans))
    report.figure("per_rotation", round((time.monotonic() - start) / max(1, len(ans)), 2), "s")
    report.check(
        "every rotation made another key", len(set(kis)) == len(kis) == rotations + 1, f"{len(set(kis))}"
    )
    wrapped = all(b == (a + 1) % 4 for a, b in pairwise(ans))
    report.check("association numbers follow each other and wrap", wrapped, " ".join(map(str, ans[:16])))
    for name, node, device in (
        ("router", lab.network.router, channel.device),
        ("edge", lab.network.nodes[channel.edge.node], "macsec0"),
    ):
        transmit, receive, scs = channel.sas(node, device)
        report.check(
            f"{name}: no stale SA", len(transmit) == len(receive) == scs == 1, f"tx {transmit}, rx {receive}"
        )
    channel.nothing_in_clear()


def _rekey(channel: Channel) -> None:
    """Ask whichever end is the key server."""
    try:
        ask(channel.lab.router.run_directory, verb="rekey", channel=channel.edge.channel)
    except ControlError:
        channel.far_keyd.ask(verb="rekey", channel="edge")


def _settled(channel: Channel) -> bool:
    """Neither end holds more than one key."""
    return all(
        state.get("next") is None and state.get("cp_state") == "RETIRE"
        for state in (channel.state(), channel.far_state())
    )


def xpn_wrap(lab: Lab, report: Report) -> None:
    """Packet numbers cross 2^32 in both directions under load, and nobody notices."""
    channel = Channel(lab, report)
    channel.start()
    channel.wait_secured("secured")
    near = (1 << 32) - 2500  # of the senders only: receivers follow by what they hear
    ends = ((lab.network.router, channel.device), (lab.network.nodes[channel.edge.node], "macsec0"))
    key = channel.current()
    with channel.probes("crossing 2^32"):
        for node, device in ends:
            channel.set_pn(node, device, near, xpn=True)
        crossed = reached(lambda: (channel.state().get("current") or {}).get("next_pn", 0) > 1 << 32, 15.0)
        far = reached(lambda: (channel.far_state().get("current") or {}).get("next_pn", 0) > 1 << 32, 15.0)
        stream = tcp_through(
            lab.network.router, lab.network.nodes[channel.edge.node], channel.edge.ipv4.own, 8 << 20
        )
    report.check(
        "the router's packet numbers crossed", crossed is not None, str(channel.state().get("current"))
    )
    report.check(
        "the edge's packet numbers crossed", far is not None, str(channel.far_state().get("current"))
    )
    report.check("TCP across it", stream.octets == 8 << 20, f"{stream.mbps:.0f} Mbit/s")
    report.check("no other key was needed for it", channel.current() == key, channel.current())
    channel.nothing_in_clear()


def keychain(lab: Lab, report: Report) -> None:
    """Five keys roll as in OpenConfig PF-1.17: none lost until the last one expires, then all is blocked."""
    life = 8.0
    channel = Channel(lab, report)
    first = time.time() + 25.0  # the router's start included
    chain = [(secrets.token_hex(32), secrets.token_hex(32)) for _ in range(5)]
    for number, (ckn, cak) in enumerate(chain):
        begin, end = first + number * life, first + (number + 1) * life
        times = {"start": _iso(begin if number else begin - 600), "end": _iso(end)}
        for directory in (channel.keys, channel.far.keys):
            channel.write_key(directory, ckn, cak, **times)
    for directory in (channel.keys, channel.far.keys):
        for file in directory.glob("*.json"):
            if file.stem not in {ckn for ckn, _ in chain}:
                file.unlink()
    channel.far_keyd.write(mka={"priority": channel.edge.priority, "clock_skew_s": 1})
    channel.start()
    channel.wait_secured("secured under the first key", timeout_s=max(5.0, first - time.time()) + life / 2)
    seen: list[str] = []
    prober = channel.prober()
    prober.start()
    while time.time() < first + 5 * life - 1.0:
        ckn = channel.ckn()
        if ckn and (not seen or seen[-1] != ckn):
            seen.append(ckn)
            report.progress(f"key {[c for c, _ in chain].index(ckn) + 1} is in use")
        time.sleep(0.1)
    channel.lost("keys one to five", prober.stop())
    report.check(
        "each key had its turn", seen == [ckn for ckn, _ in chain], ", ".join(ckn[:8] for ckn in seen)
    )
    end = first + 5 * life
    until(lambda: time.time() > end + 3.0, 20.0, lambda: "time stands still")
    gone = reached(lambda: channel.state().get("port") == "closed", 10.0)
    report.check("closed after the last key", gone is not None, str(channel.state().get("reason")))
    prober = channel.prober()
    prober.start()
    time.sleep(2.0)
    outage = prober.stop()
    report.check(
        "then everything is blocked",
        outage.sent > 0 and outage.lost == outage.sent,
        f"{outage.lost} of {outage.sent}",
    )
    channel.nothing_in_clear()


def _iso(when: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(when)) + f".{int(when % 1 * 1000):03d}+00:00"


def keyd_restart(lab: Lab, report: Report) -> None:
    """The router's key daemon is killed, ended and frozen: not one frame is lost, no key comes twice."""
    channel = Channel(lab, report)
    channel.start()
    channel.wait_secured("secured")
    kis = [channel.current()]
    for how, number in (
        ("killed", signal.SIGKILL),
        ("ended", signal.SIGTERM),
        ("killed again", signal.SIGKILL),
    ):
        pid = channel.keyd_pid()
        with channel.probes(f"keyd is {how}"):
            os.kill(pid, number)
            back = reached(lambda p=pid: _is_back(channel, p), 30.0, 0.1)  # type: ignore[misc]
            fresh = reached(
                lambda: channel.current() not in {"", *kis} and _router_settled(channel), 20.0, 0.1
            )
        report.check(f"keyd is {how}: back and secured", back is not None, f"after {back or -1:.1f} s")
        report.check(f"keyd is {how}: under a key never used before", fresh is not None, channel.current())
        kis.append(channel.current())
    with channel.probes("keyd is frozen for 4 s"):
        pid = channel.keyd_pid()
        os.kill(pid, signal.SIGSTOP)
        time.sleep(4.0)
        os.kill(pid, signal.SIGCONT)
        time.sleep(1.0)
    report.check("no key came twice", len(set(kis)) == len(kis), f"{len(set(kis))} keys")
    transmit, receive, scs = channel.sas(lab.network.router, channel.device)
    report.check("no stale SA", len(transmit) == len(receive) == scs == 1, f"tx {transmit}, rx {receive}")
    channel.nothing_in_clear()


def _router_settled(channel: Channel) -> bool:
    state = channel.state()
    return state.get("next") is None and state.get("cp_state") == "RETIRE"


def _is_back(channel: Channel, pid: int) -> bool:
    """Another process than `pid` says that the channel is secured."""
    try:
        return channel.keyd_pid() != pid and channel.state().get("port") == "secured"
    except LabError:
        return False

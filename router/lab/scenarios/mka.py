"""Key agreement: against wpa_supplicant, among three stations, with wrong keys; rotations.

Probes go once per millisecond over the channel itself, from the router's address on the VLAN to the
edge's, so that routing plays no part: what is lost was lost by MACsec. Every scenario ends with the
capture of the wire: nothing may ever have been on it in clear.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import secrets
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from router.api.keyd import ask
from router.errors import ControlError, LabError
from router.lab.capture import ETHERTYPE_MACSEC, cleartext_frames, frames, protected_frames
from router.lab.farend.mka import KeydEnd, WpaSupplicant, start_mka
from router.lab.lab import Lab
from router.lab.network import secured_port, write_chain_key, write_private
from router.lab.node import Node
from router.lab.poll import reached, until
from router.lab.report import Report
from router.lab.scenarios.fastpath import ask_dataplane
from router.lab.topology import Pair
from router.lab.traffic import Outage, Prober, TcpLoad, tcp_through

START_TIMEOUT_S: Final = 60.0
SECURE_TIMEOUT_S: Final = 30.0
ROTATIONS: Final = 100
RETIRE_MS: Final = 100
"""How long old SAs are kept where rotations are to follow each other quickly: a lab's wire delays nothing.
The router's is in the scenarios' edits, FAST_RETIREMENT."""
FASTPATH_RETIRE_MS: Final = 1000
"""The same where a process in the guest is the data plane: it reads frames when it has its turn."""
ROTATION_TIMEOUT_S: Final = 20.0
NEVER_S: Final = 8.0
"""Longer than an MKA Life Time and a SAK's retirement: what has not come by then does not come."""
MKA_LIFE_TIME_S: Final = 6.0
NEAR_EXHAUSTION: Final = 0xC000_0001
"""A packet number of a suite without XPN from which the key server makes another SAK."""
EXPLAINED_MAX: Final = 2
EXPLAIN_LOG_LINES: Final = 300


READABLE: Final = b"lastmile"
"""Payload to look for on the wire."""
TCI_E_C: Final = 0x0C
"""Bits of a SecTAG's first octet: encrypted, changed text."""


class Channel:
    """One channel's two ends."""

    def __init__(self, lab: Lab, report: Report) -> None:
        self.lab = lab
        self.report = report
        self.edge = lab.topology.edges[0]
        self.far = lab.mka_ends[self.edge.node]
        self.device = f"ms-{self.edge.channel}"
        self._explained = 0
        report.when_failed = self.explain
        self.keys = lab.network.config_directory / self.edge.key_directory

    @property
    def edge_node(self) -> Node:
        """The edge's namespace."""
        return self.lab.network.nodes[self.edge.node]

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
        if node is self.lab.network.router and self.lab.secy == "fastpath":
            state = ask_dataplane(self.lab, secy=device, do="observe")["state"]
            transmit = [int(sa["an"]) for sa in state["transmit"]]
            receive = [int(sa["an"]) for sc in state["receive"] for sa in sc["sas"]]
            return transmit, receive, len(state["receive"])
        for shown in node.ip("macsec", "show"):
            if shown["ifname"] == device:
                transmit = [int(sa["an"]) for sa in shown["sa_list"]]
                receive = [int(sa["an"]) for sc in shown["rx_sc"] for sa in sc["sa_list"]]
                return transmit, receive, len(shown["rx_sc"])
        return [], [], 0

    def explain(self) -> None:
        """Note what every end says of its keys, for the first failures: the others follow from those."""
        self._explained += 1
        if self._explained > EXPLAINED_MAX:
            return
        lines = self.lab.router.log_tail(EXPLAIN_LOG_LINES).splitlines()
        told = "\n".join(line for line in lines if '"keyd"' in line)
        self.report.note(f"the router's keys: {json.dumps(self.state())}\n{told}")
        for name, end in self.lab.mka_ends.items():
            self.report.note(f"{name}'s keys ({end.kind}): {end.explain()}")

    # Doing

    def start(self) -> None:
        """Start the router and wait until the channel is secured. Raises LabError."""
        self.report.figure("far_end", self.far.kind)
        self.report.progress("starting the router")
        self.lab.router.start()
        until(lambda: bool(self.state()), START_TIMEOUT_S, lambda: "the router's key daemon does not answer")
        # What is measured is not the start of a whole router on one slow processor.
        until(lambda: bool(self.lab.router.status()), START_TIMEOUT_S, lambda: "routerd does not answer")

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

    def prober(self, linger_s: float = 1.0) -> Prober:
        """1 ms probes from the router to the edge over the channel's VLAN."""
        network = self.lab.network
        edge = network.nodes[self.edge.node]
        return Prober(network.router, edge, self.edge.ipv4.own, linger_s=linger_s)

    def lost(self, what: str, outage: Outage, allowed: int = 0) -> None:
        """Check what probes saw."""
        detail = f"{outage.lost} of {outage.sent} lost, longest {outage.longest_ms} ms"
        self.report.check(f"{what}: at most {allowed} lost" if allowed else f"{what}: none lost",
                          outage.sent > 0 and outage.lost <= allowed, detail)  # fmt: skip

    def nothing_in_clear(self, *, stations_only: bool = False) -> None:
        """The capture of the wire, to the end of the scenario; a switch may say something of its own."""
        ends = [end for wire in self.lab.topology.wires for end in (wire.a, wire.b)]
        stations = {bytes.fromhex(end.mac.replace(":", "")) for end in ends if end.mac}
        for channel, path in self.lab.stop_captures().items():
            clear, protected = cleartext_frames(path), protected_frames(path)
            if stations_only:
                clear = [frame for frame in clear if frame.octets[6:12] in stations]
            detail = f"{protected} MACsec frames, {len(clear)} in clear" + (f", {clear[0]}" if clear else "")
            self.report.check(f"wire {channel}: nothing in clear", not clear and protected > 0, detail)


def sak_rotation(lab: Lab, report: Report) -> None:
    """Rotation after rotation under probes and TCP: no frame is lost, and no SA stays behind."""
    _rotate(lab, report, ROTATIONS)


def sak_rotation_1000(lab: Lab, report: Report) -> None:
    """The same a thousand times."""
    _rotate(lab, report, 1000)


def _rotate(lab: Lab, report: Report, rotations: int) -> None:
    channel = Channel(lab, report)
    far, retire_ms = channel.far_keyd, RETIRE_MS
    if lab.secy == "fastpath":
        rotations, retire_ms = rotations // 4, FASTPATH_RETIRE_MS
        text = lab.network.config.read_text()
        write_private(lab.network.config, text.replace(f": {RETIRE_MS}}}", f": {retire_ms}}}"))
    far.write(mka={"priority": channel.edge.priority, "sak_retire_time_ms": retire_ms})
    channel.start()
    channel.wait_secured("secured before the first rotation")
    until(lambda: settled(channel), SECURE_TIMEOUT_S, lambda: "the first key does not settle")
    kis, ans = [channel.current()], []
    start = time.monotonic()
    dropped = _dropped_before_the_data_plane(channel)
    load = TcpLoad(lab.network.router, channel.edge_node, channel.edge.ipv4.own)
    load.start()
    prober = channel.prober()
    prober.start()
    for number in range(1, rotations + 1):
        rekey(channel)
        rotated = _rotated(channel, kis[-1])
        if rotated is None:
            report.check("both ends end every rotation", False, f"not number {number}")
            break
        kis.append(rotated[0])
        ans.append(rotated[1])
        if number % 100 == 0:
            report.progress(f"{number} rotations")
    took = time.monotonic() - start
    stream, whole = load.stop()
    outage = prober.stop()
    dropped = _dropped_before_the_data_plane(channel) - dropped
    if lab.secy == "fastpath":
        report.figure("dropped_before_the_data_plane", dropped)
    channel.lost(f"{rotations} rotations", outage, allowed=dropped)
    report.check("TCP goes on all along", whole, f"{stream.octets} octets, {stream.mbps:.1f} Mbit/s")
    report.figure("rotations", len(ans))
    report.figure("probes", outage.sent)
    report.figure("lost_per_rotation", round(outage.lost / max(1, len(ans)), 4))
    report.figure("per_rotation", round(took / max(1, len(ans)), 3), "s")
    report.check(
        "every rotation made another key", len(set(kis)) == len(kis) == rotations + 1, f"{len(set(kis))}"
    )
    wrapped = all(b == (a + 1) % 4 for a, b in pairwise(ans))
    report.check("association numbers follow each other and wrap", wrapped, " ".join(map(str, ans[:16])))
    no_stale_sa(channel)
    channel.nothing_in_clear()


def _dropped_before_the_data_plane(channel: Channel) -> int:
    """Packets that the router's kernel could not hand over: the TAP's queue was full.

    In a guest of one processor the data plane is a process that waits for its turn, and what
    overflows meanwhile says nothing of rotations. 0 with the kernel's MACsec, which is no process.
    """
    if channel.lab.secy != "fastpath":
        return 0
    links = channel.lab.network.router.ip("-s", "link", "show")
    taps = [link for link in links if link["ifname"].startswith(f"{channel.edge.channel}.")]
    return sum(int(link["stats64"]["tx"]["dropped"]) for link in taps)


def no_stale_sa(channel: Channel) -> None:
    """Check that each end's SecY holds one SA each way."""
    for name, node, device in (
        ("router", channel.lab.network.router, channel.device),
        ("edge", channel.edge_node, "macsec0"),
    ):
        transmit, receive, scs = channel.sas(node, device)
        channel.report.check(
            f"{name}: no stale SA", len(transmit) == len(receive) == scs == 1, f"tx {transmit}, rx {receive}"
        )


def rekey(channel: Channel) -> None:
    """Ask whichever end is the key server."""
    try:
        channel.far_keyd.ask(verb="rekey", channel="edge")
    except LabError:
        ask(channel.lab.router.run_directory, verb="rekey", channel=channel.edge.channel)


def _rotated(channel: Channel, before: str) -> tuple[str, int] | None:
    """KI and AN once both ends use one key, another than `before`, and have retired that; None if never."""
    deadline = time.monotonic() + ROTATION_TIMEOUT_S
    while time.monotonic() < deadline:
        keys = []
        for ask_one in (channel.far_state, channel.state):
            state = ask_one()
            key = state.get("current")
            if not key or key["ki"] == before or not at_rest(state):
                break
            keys.append((str(key["ki"]), int(key["an"])))
        else:
            if keys[0] == keys[1]:
                return keys[0]
        time.sleep(0.01)
    return None


def at_rest(state: dict[str, Any]) -> bool:
    """Whether an end holds no more than one key."""
    return state.get("next") is None and state.get("cp_state") == "RETIRE"


def settled(channel: Channel) -> bool:
    """Neither end holds more than one key."""
    return all(map(at_rest, (channel.state(), channel.far_state())))


def xpn_wrap(lab: Lab, report: Report) -> None:
    """Packet numbers cross 2^32 in both directions under load, and nobody notices.

    Where the router's data plane does MACsec, the edge's alone: no packet number of its can be moved
    from outside, and `fastpath-interop` starts them close to 2^32.
    """
    channel = Channel(lab, report)
    channel.start()
    channel.wait_secured("secured")
    near = (1 << 32) - 2500  # of the senders only: receivers follow by what they hear
    ends = [(lab.network.nodes[channel.edge.node], "macsec0")]
    kernel = lab.secy != "fastpath"
    if kernel:
        ends.append((lab.network.router, channel.device))
    key = channel.current()
    with channel.probes("crossing 2^32"):
        for node, device in ends:
            channel.set_pn(node, device, near, xpn=True)
        crossed = reached(lambda: _next_pn(channel.state()) > 1 << 32, 15.0) if kernel else None
        far = reached(lambda: _next_pn(channel.far_state()) > 1 << 32, 15.0)
        stream = tcp_through(
            lab.network.router, lab.network.nodes[channel.edge.node], channel.edge.ipv4.own, 8 << 20
        )
    if kernel:
        report.check(
            "the router's packet numbers crossed", crossed is not None, str(channel.state().get("current"))
        )
    report.check(
        "the edge's packet numbers crossed", far is not None, str(channel.far_state().get("current"))
    )
    report.check("TCP across it", stream.octets == 8 << 20, f"{stream.mbps:.0f} Mbit/s")
    report.check("no other key was needed for it", channel.current() == key, channel.current())
    channel.nothing_in_clear()


def _next_pn(state: dict[str, Any]) -> int:
    return int((state.get("current") or {}).get("next_pn", 0))


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


def router_settled(channel: Channel) -> bool:
    """The router holds one key only."""
    state = channel.state()
    return state.get("next") is None and state.get("cp_state") == "RETIRE"


# ------------------------------------------------------------------------- wpa_supplicant


class _Case:
    """One way to configure the other side."""

    def __init__(
        self,
        name: str,
        *,
        cak: int = 32,
        ckn: int = 32,
        settings: dict[str, object],
        server: str,
        rekeys: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.cak = secrets.token_hex(cak)
        self.ckn = secrets.token_hex(ckn)
        self.settings = settings
        self.server = server
        """`us` or `them`."""
        self.rekeys = rekeys
        """What is to cause another SAK, of REKEYS."""


def wpa_supplicant(lab: Lab, report: Report) -> None:
    """Debian's wpa_supplicant, as key server and as the other side, with keys and names of all sizes."""
    channel = Channel(lab, report)
    channel.start()
    channel.wait_secured("secured with stock wpa_supplicant")
    report.figure("wpa_supplicant", _version(channel))
    for case in (
        # The edge's address is the lower one, so it wins a tie.
        _Case("CAK 256, CKN of 32 octets, equal priorities", settings={}, server="them"),
        _Case(
            "CAK 128, CKN of 4 octets, ours better",
            cak=16,
            ckn=4,
            settings={"mka_priority": 100},
            server="us",
        ),
        _Case(
            "CAK 128, CKN of 3 octets, theirs better",
            cak=16,
            ckn=3,
            settings={"mka_priority": 1},
            server="them",
            rekeys=("their packet numbers", "our packet numbers"),
        ),
        _Case(
            "CAK 256, SCI port 7, ours better",
            settings={"mka_priority": 200, "macsec_port": 7},
            server="us",
            rekeys=("command", "our packet numbers", "their packet numbers"),
        ),
    ):
        _with_case(channel, case)
        _rekeys(channel, case)
    _kill_and_restart(channel)
    channel.nothing_in_clear()
    _integrity_only(channel)


def _integrity_only(channel: Channel) -> None:
    """Frames that are authentic and readable: refused by default, agreed upon where both ends want it."""
    lab, report, far = channel.lab, channel.report, channel.far
    assert isinstance(far, WpaSupplicant)
    until(lambda: bool(lab.router.status()), START_TIMEOUT_S, lambda: "routerd does not answer")
    theirs, ours = {"mka_priority": 1, "macsec_integ_only": 1}, {"mka_priority": 200, "macsec_integ_only": 1}
    far.stop()
    far.start(**theirs)
    far.ready()
    channel.never_secured("integrity only from the key server, our policy offset-0: refused")
    reason = str(channel.state().get("reason"))
    report.check("and the refusal is explained", "orders integrity-only" in reason, reason)
    text = lab.network.config.read_text()
    policy = "policy: must-secure"
    write_private(
        lab.network.config, text.replace(policy, f"{policy}\n      confidentiality: integrity-only")
    )
    code, answer = lab.router.request("POST", "/v1/reload", {})
    report.check("a reload with integrity-only is taken", code == http.client.OK, str(answer)[:200])
    for who, settings in (("them", theirs), ("us", ours)):
        name = f"integrity only, key server {who}"
        far.stop()
        far.start(**settings)
        far.ready()
        if not channel.wait_secured(name):
            continue
        state = channel.state()
        server = next((p["key_server"] for p in state["participants"] if p["principal"]), None)
        report.check(f"{name}: it is", (server == state["sci"]) == (who == "us"), str(server))
        shown = (state.get("current") or {}).get("confidentiality")
        report.check(f"{name}: said so", shown == "integrity-only", str(shown))
        lab.start_captures()
        with channel.probes(name):
            pattern = ("-p", READABLE.hex())
            lab.network.router.run("ping", "-q", "-c3", "-i0.2", *pattern, channel.edge.ipv4.own, check=False)
        _readable(channel, name)


def _readable(channel: Channel, name: str) -> None:
    """Check on the wire: MACsec frames with E = C = 0 and a payload that anybody can read, nothing else."""
    path = channel.lab.stop_captures()[channel.edge.channel]
    seen = [frame for frame in frames(path) if frame.ethertype == ETHERTYPE_MACSEC]
    encrypted = [frame for frame in seen if frame.octets[14] & TCI_E_C]
    readers = {frame.octets[6:12].hex(":") for frame in seen if READABLE in frame.octets}
    detail = (
        f"{len(seen)} frames, {len(encrypted)} with E or C, readable ones of {', '.join(sorted(readers))}"
    )
    channel.report.check(
        f"{name}: E = C = 0 and readable, of both stations", len(readers) == 2 and not encrypted, detail
    )
    clear = cleartext_frames(path)
    channel.report.check(f"{name}: nothing without MACsec", not clear, f"{len(clear)} in clear")


def _version(channel: Channel) -> str:
    return channel.edge_node.run("wpa_supplicant", "-v").splitlines()[0]


def _with_case(channel: Channel, case: _Case) -> None:
    report, far = channel.report, channel.far
    assert isinstance(far, WpaSupplicant)
    report.progress(case.name)
    far.stop()
    channel.only_key(channel.keys, case.ckn, case.cak)
    channel.only_key(far.keys, case.ckn, case.cak)
    channel.reload()
    far.start(**case.settings)
    far.ready()
    if not channel.wait_secured(case.name):
        return
    state = channel.state()
    principal = next((p for p in state["participants"] if p["principal"]), None)
    server = str(principal["key_server"]) if principal else ""
    who = "us" if server == state["sci"] else "them"
    report.check(f"{case.name}: key server", who == case.server, f"{who} ({server})")
    transmit, receive, _ = channel.sas(channel.edge_node, "macsec0")
    report.check(f"{case.name}: both have SAs", transmit and receive, f"edge tx {transmit} rx {receive}")
    with channel.probes(case.name):
        stream = tcp_through(channel.lab.network.router, channel.edge_node, channel.edge.ipv4.own, 4 << 20)
    report.check(f"{case.name}: TCP", stream.octets == 4 << 20, f"{stream.mbps:.0f} Mbit/s")


def _rekeys(channel: Channel, case: _Case) -> None:
    """Have the key server, whoever it is, replace the SAK for each of the case's reasons."""
    lab, report = channel.lab, channel.report
    causes: dict[str, Callable[[], object]] = {
        "command": lambda: ask(lab.router.run_directory, verb="rekey", channel=channel.edge.channel),
        "our packet numbers": lambda: channel.set_pn(
            lab.network.router, channel.device, NEAR_EXHAUSTION, xpn=False
        ),
        "their packet numbers": lambda: channel.set_pn(
            channel.edge_node, "macsec0", NEAR_EXHAUSTION, xpn=False
        ),
    }
    for why in case.rekeys:
        name = f"{case.name}: rekey by {why}"
        report.progress(name)
        until(lambda: router_settled(channel), 20.0, lambda: "the last rotation does not end")
        before = channel.current()
        with channel.probes(name):
            causes[why]()
            seconds = reached(lambda b=before: channel.current() not in {"", b}, 20.0, 0.05)  # type: ignore[misc]
            reached(lambda: router_settled(channel), 10.0)
        report.check(f"{name}: another key is in use", seconds is not None, f"after {seconds or -1:.1f} s")


def _kill_and_restart(channel: Channel) -> None:
    """The peer dies without a word and comes back with another member identifier."""
    far, report = channel.far, channel.report
    assert isinstance(far, WpaSupplicant)
    prober = channel.prober()
    prober.start()
    time.sleep(0.5)
    start = time.monotonic()
    far.kill()
    closed = reached(lambda: channel.state().get("port") == "closed", 15.0)
    report.check(
        "peer killed: closed within its life time and a little",
        closed is not None,
        f"after {closed or -1:.1f} s",
    )
    report.figure("peer_killed_closed_after", round(closed or -1, 1), "s")
    channel.edge_node.run("ip", "link", "delete", "macsec0", check=False)
    far.start()
    far.ready()
    channel.wait_secured("peer restarted: secured again")
    away_ms = (time.monotonic() - start) * 1000
    time.sleep(0.5)
    outage = prober.stop()
    report.check(
        "peer killed and restarted: nothing is lost before and after",
        0 < outage.longest_ms <= away_ms + 100 and outage.sent > outage.lost,
        f"{outage.lost} of {outage.sent} lost, longest {outage.longest_ms} ms, away for {away_ms:.0f} ms",
    )


def wrong_keys(lab: Lab, report: Report) -> None:
    """A wrong CAK, then a wrong CKN: never secured, the cause named; put right, secured at once."""
    channel = Channel(lab, report)
    far = channel.far
    assert isinstance(far, WpaSupplicant)
    good = far.keys_on_disk()[0]
    ckn, cak = str(good["ckn"]), str(good["cak"])
    wrong = secrets.token_hex(len(cak) // 2)
    channel.only_key(channel.keys, ckn, wrong)
    channel.start()
    channel.never_secured("wrong CAK: never secured")
    named = reached(lambda: "CAKs differ" in str(channel.state().get("reason")), 10.0)
    report.check("wrong CAK: named as the cause", named is not None, str(channel.state().get("reason")))
    said = lab.network.router.run(
        *lab.router.command(
            "keys", "explain", channel.edge.channel, "--run-dir", str(lab.router.run_directory)
        ),
        check=False,
    )
    report.check("`keys explain` says it first", "CAKs differ" in said.splitlines()[0], said.splitlines()[0])
    channel.only_key(channel.keys, secrets.token_hex(32), cak)
    channel.reload()
    channel.never_secured("wrong CKN: never secured")
    named = reached(lambda: ckn in str(channel.state().get("reason")), 10.0)
    report.check("wrong CKN: the peer's is named", named is not None, str(channel.state().get("reason")))
    for name, path in lab.stop_captures().items():
        clear, protected = cleartext_frames(path), protected_frames(path)
        report.check(f"wire {name}: not one data frame so far", not clear and not protected,
                     f"{len(clear)} in clear, {protected} protected")  # fmt: skip
    lab.start_captures()
    channel.only_key(channel.keys, ckn, cak)
    channel.reload()
    channel.wait_secured("the right key: secured without a restart")
    channel.nothing_in_clear()


# ------------------------------------------------------------------------- a shared segment


def three_stations(lab: Lab, report: Report) -> None:
    """Three members on a bridge: each talks to each, a station leaves and comes back."""
    network, edge = lab.network, lab.topology.edges[0]
    xpn = "xpn" in edge.suite
    switch = network.nodes["sw"]
    # Before the ports are joined, or a multicast report of the bare port's IPv6 is the first frame on the wire.
    network.nodes["pe2"].sysctl(**{f"ipv6__conf__{edge.port}__disable_ipv6": 1})
    # 01-80-C2-00-00-03 is bit 3: bridges keep it from being forwarded unless told otherwise.
    switch.batch(
        [
            "link add bridge type bridge mcast_snooping 0 group_fwd_mask 8",
            *(f"link set {port} master bridge" for port in ("pe1", "pe2", "r")),
            "link set bridge mtu 9100 up",
        ]
    )
    channel = Channel(lab, report)
    second = dataclasses.replace(
        edge,
        node="pe2",
        ipv4=Pair("169.254.11.5", "169.254.11.1", 30),
        ipv6=Pair("fd00:11::5", "fd00:11::1", 126),
    )
    if xpn:
        network.nodes["pe2"].batch(
            [
                f"link add link {edge.port} macsec0 type macsec port 1 cipher {edge.suite} encrypt on send_sci on validate strict replay on window 0",
                *secured_port(second),
            ]
        )
    other = lab.mka_ends["pe2"] = start_mka(network, [second])["pe2"]
    channel.start()
    channel.wait_secured("the router and the first station")
    # A subnet of all three: what the router's reconciler does not own it leaves alone.
    stations = {
        "r": ("192.0.2.1", "a1.1101"),
        "pe1": ("192.0.2.2", "vlan1101"),
        "pe2": ("192.0.2.3", "vlan1101"),
    }
    for node, (address, device) in stations.items():
        network.nodes[node].batch([f"address add {address}/24 dev {device}"])

    def all_talk() -> bool:
        return all(
            " 1 received" in network.nodes[one].run("ping", "-q", "-c1", "-W1", stations[to][0], check=False)
            for one, to in (("r", "pe1"), ("r", "pe2"), ("pe1", "pe2"))
        )

    seconds = reached(all_talk, SECURE_TIMEOUT_S, 0.2)
    report.check("each talks to each", seconds is not None, f"after {seconds or -1:.1f} s")
    live = sum(peer["live"] for p in channel.state()["participants"] for peer in p["peers"])
    report.check("two live peers", live == 2, f"{live}")
    transmit, receive, scs = channel.sas(network.router, channel.device)
    report.check("two receive SCs", scs == 2, f"tx {transmit}, rx {receive}")
    other.kill()
    gone = reached(lambda: channel.sas(network.router, channel.device)[2] == 1, 20.0, 0.2)
    report.check("a station dies: its SC goes", gone is not None, f"after {gone or -1:.1f} s")
    report.check("the other two go on", channel.passes(), "")
    if isinstance(other, WpaSupplicant):
        network.nodes["pe2"].run("ip", "link", "delete", "macsec0", check=False)
    other.start()
    if isinstance(other, WpaSupplicant):
        other.ready()
        network.nodes["pe2"].batch([f"address add {stations['pe2'][0]}/24 dev vlan1101"])
    back = reached(all_talk, SECURE_TIMEOUT_S, 0.2)
    report.check("it comes back: each talks to each", back is not None, f"after {back or -1:.1f} s")
    other.stop()
    channel.nothing_in_clear(stations_only=True)

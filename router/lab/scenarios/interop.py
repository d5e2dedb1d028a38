"""The data plane and the Linux MACsec driver on one wire, without the rest of the router.

All four suites, with and without the SCI in the SecTAG, from PN 1 and with XPN across 2^32, a VLAN
inside, sizes from the shortest to the largest; the driver's frames that are authenticated and not
encrypted. Then frames that the readable twin of the data plane makes under the same keys and puts
on the wire for both: late ones inside the replay window and behind it, frames that come twice, and
short ones with padding behind the ICV. In the end a capture of both ends' frames is decrypted by
`lastmile frames` and read by tshark.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import secrets
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from router.dataplane.frame import Policy, ReferenceSecy
from router.dataplane.pcap import PcapWriter
from router.lab.capture import ETHERTYPE_MACSEC, cleartext_frames, protected_frames
from router.lab.lab import Lab
from router.lab.network import write_private
from router.lab.poll import reached, until
from router.lab.report import Report
from router.lab.scenarios.fastpath import ETH_P_ALL, ask_dataplane, dataplane_status
from router.lab.topology import Edge
from router.model import CipherSuite, Sci, Secret
from router.secy import SaKey

SUITES: Final = ("gcm-aes-128", "gcm-aes-256", "gcm-aes-xpn-128", "gcm-aes-xpn-256")
SIZES: Final = (0, 1, 18, 64, 1000, 1472, 8472)
"""Octets of ICMP payload; the last is a packet of 8500."""
PINGS: Final = 5
NEAR_WRAP: Final = (1 << 32) - 20
WINDOW: Final = 64
START_TIMEOUT_S: Final = 30.0
COUNT_TIMEOUT_S: Final = 5.0
NAME: Final = "ms-a1"
SALT: Final = "9a3f5c7e11d2b4860f1e2d3c"
OUR_AN, EDGE_AN = 2, 1
OUR_SSCI, EDGE_SSCI = 1, 2
AHEAD: Final = 10_000
"""Packet numbers of frames that are made here begin so far beyond those of the two ends."""
ETHERTYPE_NOBODY: Final = b"\x88\xb5"
"""IEEE 802 local experimental: no kernel answers it."""
SHORT_OCTETS: Final = 4
MINIMUM_FRAME: Final = 60
"""Octets that a network card pads a frame to, without the FCS."""


@dataclass(frozen=True, slots=True)
class Case:
    """One way to speak MACsec."""

    suite: str
    sci: bool
    first_pn: int
    encrypt: bool = True
    """Of the driver; ours always does."""

    @property
    def xpn(self) -> bool:
        """Whether packet numbers have 64 bits."""
        return "xpn" in self.suite

    def __str__(self) -> str:
        sci = "with SCI" if self.sci else "without SCI"
        how = "" if self.encrypt else " integrity only"
        return f"{self.suite} {sci}{how}" + (" across 2^32" if self.first_pn > 1 else "")


def cases() -> list[Case]:
    """All of them."""
    plain = [Case(suite, sci, 1) for suite, sci in itertools.product(SUITES, (True, False))]
    across = [Case(suite, True, NEAR_WRAP) for suite in SUITES if "xpn" in suite]
    clear = [Case(suite, True, 1, encrypt=False) for suite in ("gcm-aes-128", "gcm-aes-xpn-256")]
    return plain + across + clear


class Pair:
    """The two ends of one wire."""

    def __init__(self, lab: Lab, report: Report) -> None:
        self.lab = lab
        self.report = report
        self.edge: Edge = lab.topology.edges[0]
        self.device = f"a1.{self.edge.vlan}"
        self.saks = ("", "")
        """Hex, of the last `key`: of what we send, of what the edge sends."""

    def start(self) -> None:
        """Start the data plane alone, on a port that is up and says nothing of its own."""
        router = self.lab.network.router
        router.sysctl(**{f"ipv6__conf__{self.edge.router_port}__disable_ipv6": 1})
        router.batch([f"link set {self.edge.router_port} up"])
        directory = str(self.lab.router.run_directory)
        argv = [
            sys.executable,
            "-m",
            "router.dataplane.process",
            "--run-dir",
            directory,
            "--state-dir",
            directory,
        ]
        router.start(argv, self.lab.router.log)
        socket_path = self.lab.router.run_directory / "dataplane.sock"
        until(socket_path.exists, START_TIMEOUT_S, lambda: f"no data plane: {self.lab.router.log_tail(3)}")

    def key(self, case: Case, driver_window: int = 0, *, silent: bool = False) -> None:
        """Give both ends the same fresh keys. Raises LabError.

        Where they are to be `silent`, they get no keys to send under: only a `twin` is heard.
        """
        octets = 32 if case.suite.endswith("256") else 16
        ours, theirs = secrets.token_hex(octets), secrets.token_hex(octets)
        self.saks = (ours, theirs)
        ask_dataplane(
            self.lab,
            want=[
                {
                    "name": NAME,
                    "device": self.edge.router_port,
                    "suite": case.suite,
                    "replay_window": WINDOW,
                    "include_sci": case.sci,
                    "sci_port": 1,
                    "port_mtu": 9100,
                    "features": [{"device": self.device, "vlan": self.edge.vlan, "mtu": self.edge.mtu}],
                }
            ],
        )
        sci = f"{self.edge_mac}/1"

        def secy(do: str, **arguments: object) -> None:
            ask_dataplane(self.lab, secy=NAME, do=do, **arguments)

        def material(sak: str, ssci: int) -> dict[str, object]:
            return {
                "sak": sak,
                "key_id": secrets.token_hex(16),
                "ssci": ssci if case.xpn else 0,
                "salt": SALT if case.xpn else "",
            }

        state = ask_dataplane(self.lab, secy=NAME, do="observe")["state"]
        for sa in state["transmit"]:
            secy("delete_transmit_sa", an=sa["an"])
        for sc in state["receive"]:
            secy("delete_receive_sc", sci=sc["sci"])
        # The edge when we are silent: what came under the old key would be not valid under the new one.
        self._key_edge(case, driver_window, silent=silent)
        secy("create_receive_sc", sci=sci)
        edge_key, our_key = material(theirs, EDGE_SSCI), material(ours, OUR_SSCI)
        secy("create_receive_sa", sci=sci, an=EDGE_AN, key=edge_key, lowest_pn=case.first_pn)
        secy("enable_receive_sa", sci=sci, an=EDGE_AN)
        if not silent:
            secy("create_transmit_sa", an=OUR_AN, key=our_key, next_pn=case.first_pn)
            secy("enable_transmit_sa", an=OUR_AN)
        pair = self.edge.ipv4
        self.lab.network.router.batch(
            [f"address replace {pair.router}/{pair.length} dev {self.device}", f"link set {self.device} up"]
        )

    def twin(self, case: Case, *, of_edge: bool, next_pn: int) -> ReferenceSecy:
        """A sender like one of the two ends, under its key, from another packet number on."""
        sci = Sci.parse(f"{self.edge_mac if of_edge else self.edge.router_sci_mac}/1")
        sak = Secret(bytes.fromhex(self.saks[of_edge]))
        ssci, salt = (EDGE_SSCI if of_edge else OUR_SSCI, bytes.fromhex(SALT)) if case.xpn else (0, b"")
        an = EDGE_AN if of_edge else OUR_AN
        suite = CipherSuite.parse(case.suite)
        twin = ReferenceSecy(Policy(suite, sci, include_sci=case.sci, end_station=not case.sci))
        twin.install_transmit(an, SaKey(sak, bytes(16), ssci, salt), next_pn)
        twin.enable_transmit(an)
        return twin

    @property
    def edge_mac(self) -> str:
        """MAC address of the edge's port."""
        return next(
            end.mac
            for wire in self.lab.topology.wires
            for end in (wire.a, wire.b)
            if (end.node, end.device) == (self.edge.node, self.edge.port)
        )

    def _key_edge(self, case: Case, window: int, *, silent: bool) -> None:
        edge, pair = self.edge, self.edge.ipv4
        ours, theirs = self.saks

        def sa(ssci: int, number: str, key: str) -> str:
            pn = f"xpn {case.first_pn} ssci {ssci} salt {SALT}" if case.xpn else f"pn {case.first_pn}"
            return f"{pn} on key {number} {key}"

        sci = "send_sci on" if case.sci else "send_sci off end_station on"
        encrypt = "encrypt on" if case.encrypt else "encrypt off"
        peer = f"port 1 address {edge.router_sci_mac}"
        policy = f"port 1 cipher {case.suite} {encrypt} {sci} validate strict replay on window {window}"
        lines = [
            "link delete macsec0",
            f"link add link {edge.port} macsec0 type macsec {policy}",
            *([] if silent else [f"macsec add macsec0 tx sa {EDGE_AN} {sa(EDGE_SSCI, '01', theirs)}"]),
            f"link set macsec0 type macsec encodingsa {EDGE_AN}",
            f"macsec add macsec0 rx {peer} on",
            f"macsec add macsec0 rx {peer} sa {OUR_AN} {sa(OUR_SSCI, '02', ours)}",
            "link set macsec0 addrgenmode none",
            f"link add link macsec0 name vlan{edge.vlan} mtu {edge.mtu} type vlan id {edge.vlan}",
            "link set macsec0 up",
            f"link set vlan{edge.vlan} up",
            f"address add {pair.own}/{pair.length} dev vlan{edge.vlan}",
        ]
        self.lab.at_edge(edge.node, "ip", "-batch", "-", stdin="\n".join(lines) + "\n")

    def ping(self, size: int) -> int:
        """How many of `PINGS` echoes of that payload come back."""
        # -w: without it, ping waits for two round trips only, once it has had an answer.
        out = self.lab.network.router.run(
            "ping", "-q", "-c", str(PINGS), "-i", "0.01", "-w", "5", "-M", "do", "-s", str(size),
            self.edge.ipv4.own, check=False,
        )  # fmt: skip
        found = re.search(r"(\d+) received", out)
        return int(found.group(1)) if found else 0

    def ours(self) -> dict[str, int]:
        """Our counters."""
        counters: dict[str, int] = dataplane_status(self.lab)["channels"][NAME]["secy_counters"]
        return counters

    def theirs(self) -> dict[str, int]:
        """The driver's, of its one device, under the names that `ip` gives them."""
        shown: list[dict[str, Any]] = json.loads(
            self.lab.at_edge(self.edge.node, "ip", "-s", "-j", "macsec", "show")
        )
        device = shown[0]
        return {
            name: int(value)
            for part in (device, *device["rx_sc"])
            for name, value in part.items()
            if name.startswith("InPkts")
        }


def interop(lab: Lab, report: Report) -> None:
    """Our engine and the Linux driver, case by case."""
    pair = Pair(lab, report)
    pair.start()
    frames = 0
    for case in cases():
        report.progress(str(case))
        pair.key(case)
        before = pair.ours()
        back = {size: pair.ping(size) for size in SIZES}
        good = all(count >= PINGS for count in back.values())
        missing = ", ".join(f"{size}: {count}" for size, count in back.items() if count < PINGS)
        report.check(f"{case}: all sizes both ways", good, missing or f"{PINGS} of each of {SIZES}")
        ours, theirs = pair.ours(), pair.theirs()
        ok = ours["in_pkts_ok"] - before["in_pkts_ok"]
        frames += ok
        bad = {
            name: ours[name] - before[name]
            for name in ours
            if name.startswith("in_pkts") and name != "in_pkts_ok" and ours[name] != before[name]
        }
        wrong = ("InPktsNotValid", "InPktsLate", "InPktsBadTag", "InPktsNotUsingSA", "InPktsNoSCI")
        bad |= {name: theirs[name] for name in wrong if theirs.get(name)}
        total = PINGS * len(SIZES)
        report.check(
            f"{case}: every frame is ok at both ends",
            not bad and ok >= total and theirs.get("InPktsOK", 0) >= total,
            str(bad or f"ours {ok}, the driver's {theirs.get('InPktsOK', 0)}"),
        )
        if case.first_pn > 1:
            state = ask_dataplane(lab, secy=NAME, do="observe")["state"]
            pn = state["transmit"][0]["next_pn"]
            low = state["receive"][0]["sas"][0]["next_pn"] + WINDOW
            report.check(f"{case}: both directions crossed", min(pn, low) > 1 << 32, f"{pn:#x}, {low:#x}")
    _replay(pair)
    for case in (Case("gcm-aes-256", True, 1), Case("gcm-aes-xpn-256", False, 1)):
        _made_frames(pair, case)
    _window_across_the_wrap(pair)
    _capture(pair)
    report.figure("cases", len(cases()))
    report.figure("frames_validated", frames)
    path = lab.stop_captures()[pair.edge.channel]
    clear, protected = cleartext_frames(path), protected_frames(path)
    report.check(
        "nothing in clear", protected > 0 and not clear, f"{protected} MACsec frames, {len(clear)} in clear"
    )


def _replay(pair: Pair) -> None:
    """A frame that comes twice is late at both ends: just now (inside our window), and long after."""
    lab, edge = pair.lab, pair.edge
    pair.key(Case("gcm-aes-xpn-256", True, 1))
    node, device = lab.network.tapped(edge)
    with (
        node.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as wire,
        lab.network.router.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as port,
    ):
        port.bind((edge.router_port, 0))
        wire.bind((device, 3))
        wire.settimeout(1.0)
        pair.ping(64)
        to_us, to_them = _record(wire, edge)
        for what, pings in (("at once", 0), ("after more frames than the window has", WINDOW // PINGS + 1)):
            for _ in range(pings):
                pair.ping(64)
            ours, theirs = pair.ours()["in_pkts_late"], pair.theirs().get("InPktsLate", 0)
            wire.send(to_us)
            port.send(to_them)
            seen = reached(lambda n=ours: pair.ours()["in_pkts_late"] == n + 1, COUNT_TIMEOUT_S)  # type: ignore[misc]
            pair.report.check(f"a frame again {what}: late at ours", seen is not None, "in_pkts_late")
            seen = reached(
                lambda n=theirs: pair.theirs().get("InPktsLate", 0) == n + 1,  # type: ignore[misc]
                COUNT_TIMEOUT_S,
            )
            pair.report.check(f"a frame again {what}: late at the driver's", seen is not None, "InPktsLate")


@dataclass(frozen=True, slots=True)
class _Way:
    """Into one of the ends: who is there, how to put a frame before it, what it counts."""

    name: str
    to_edge: bool
    put: Callable[[bytes], object]
    counters: Callable[[], dict[str, int]]
    names: Mapping[str, str]
    """Its words for `ok`, `late`, and for what must not happen besides."""

    def takes(self, frame: bytes) -> str:
        """What it counts the frame as: `ok`, `late`, another counter's name, or nothing at all."""
        before = self.counters()
        self.put(frame)
        words = {counter: word for word, counter in self.names.items()}
        seen = ""

        def counted() -> bool:
            nonlocal seen
            after = self.counters()
            grown = [
                n
                for n in after
                if after[n] > before.get(n, 0) and n.lower().startswith(("inpkts", "in_pkts"))
            ]
            seen = ", ".join(words.get(n, n) for n in grown)
            return bool(grown)

        reached(counted, COUNT_TIMEOUT_S)
        return seen


OUR_WORDS: Final = MappingProxyType({"ok": "in_pkts_ok", "late": "in_pkts_late"})
DRIVER_WORDS: Final = MappingProxyType({"ok": "InPktsOK", "late": "InPktsLate", "bad tag": "InPktsBadTag"})


@contextlib.contextmanager
def _ways(pair: Pair) -> Iterator[tuple[_Way, _Way]]:
    """Into ours, and into the driver."""
    lab, edge = pair.lab, pair.edge
    node, device = lab.network.tapped(edge)
    with (
        node.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as wire,
        lab.network.router.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as port,
    ):
        port.bind((edge.router_port, 0))
        wire.bind((device, 0))
        yield (
            _Way("ours", False, wire.send, pair.ours, OUR_WORDS),
            _Way("the driver's", True, port.send, pair.theirs, DRIVER_WORDS),
        )


def _plain(pair: Pair, way: _Way, size: int) -> bytes:
    """A frame for that end that nobody answers."""
    router = bytes.fromhex(pair.edge.router_sci_mac.replace(":", ""))
    other = bytes.fromhex(pair.edge_mac.replace(":", ""))
    addresses = other + router if way.to_edge else router + other
    return addresses + ETHERTYPE_NOBODY + bytes(size)


def _made_frames(pair: Pair, case: Case) -> None:
    """Late inside the window and behind it, twice, and short with padding: at both ends."""
    pair.key(case, driver_window=WINDOW, silent=True)
    with _ways(pair) as ways:
        for way in ways:
            twin = pair.twin(case, of_edge=not way.to_edge, next_pn=AHEAD)
            plain = _plain(pair, way, 200)
            frames = [bytes(r.frame) for r in twin.protect([plain] * (2 * WINDOW), pair.edge.vlan)]
            # The last of them first: lowest acceptable is then its number + 1 - WINDOW (10.6.1).
            for what, number, wanted in (
                ("a frame far ahead", 2 * WINDOW - 1, "ok"),
                ("a late frame inside the window", 2 * WINDOW - 10, "ok"),
                ("the last frame inside the window", WINDOW, "ok"),
                ("the first frame behind the window", WINDOW - 1, "late"),
                ("a frame far behind the window", 0, "late"),
            ):
                seen = way.takes(frames[number])
                pair.report.check(f"{case}: {what}: {wanted} at {way.name}", seen == wanted, seen)
            short = bytes(twin.protect([_plain(pair, way, SHORT_OCTETS)], pair.edge.vlan)[0].frame)
            seen = way.takes(short)
            pair.report.check(
                f"{case}: a short frame: ok at {way.name}", seen == "ok", f"{seen}, {len(short)}"
            )
            padded = bytes(twin.protect([_plain(pair, way, SHORT_OCTETS)], pair.edge.vlan)[0].frame)
            seen = way.takes(padded.ljust(MINIMUM_FRAME + 4, b"\0"))
            if way.to_edge:
                # The driver wants a short frame's length to be exactly SL's (macsec_validate_skb).
                pair.report.figure("padded_short_frame_at_the_driver", seen)
            else:
                pair.report.check(f"{case}: a short frame with padding: ok at ours", seen == "ok", seen)
                # 10.6.5 lets a receiver take a frame again inside the window, and the driver does; we do not.
                seen = way.takes(frames[WINDOW])
                pair.report.check(
                    f"{case}: a frame again inside the window: late at ours", seen == "late", seen
                )


def _window_across_the_wrap(pair: Pair) -> None:
    """Late frames of before 2^32 are taken after it, and refused when they come twice or too late.

    At ours: the driver guesses the high half from the next PN, and finds such frames not valid.
    """
    case = Case("gcm-aes-xpn-256", True, (1 << 32) - AHEAD)
    pair.key(case, silent=True)
    with _ways(pair) as (way, _):
        twin = pair.twin(case, of_edge=True, next_pn=(1 << 32) - WINDOW)
        plain = _plain(pair, way, 200)
        frames = [bytes(r.frame) for r in twin.protect([plain] * (WINDOW + 20), pair.edge.vlan)]
        for what, number, wanted in (
            ("a frame beyond", WINDOW + 19, "ok"),
            ("a late one of before", WINDOW - 1, "ok"),
            ("the same again", WINDOW - 1, "late"),
            ("the last one inside the window", 20, "ok"),
            ("the first one behind it", 19, "late"),
        ):
            seen = way.takes(frames[number])
            pair.report.check(f"window across 2^32: {what}: {wanted} at ours", seen == wanted, seen)


def _capture(pair: Pair) -> None:
    """What a network engineer does with a capture and the keys: decrypt it, and look with his own tools."""
    lab, edge = pair.lab, pair.edge
    case = Case("gcm-aes-xpn-256", True, 1)
    pair.key(case)
    directory = lab.router.run_directory
    wire, keys, plain = (directory / name for name in ("wire.pcap", "keys.yaml", "plain.pcap"))
    node, device = lab.network.tapped(edge)
    with node.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as tap, wire.open("wb") as file:
        tap.bind((device, ETH_P_ALL))
        pair.ping(1000)
        tap.setblocking(False)
        writer = PcapWriter(file)
        with contextlib.suppress(BlockingIOError):
            while True:
                writer.write(time.time_ns(), tap.recv(1 << 16))
    association = "  - {{sci: {}, an: {}, ssci: {}, salt: {}, sak: {}}}\n"
    write_private(
        keys,
        f"suite: {case.suite}\nassociations:\n"
        + association.format(f"{edge.router_sci_mac}/1", OUR_AN, OUR_SSCI, SALT, pair.saks[0])
        + association.format(f"{pair.edge_mac}/1", EDGE_AN, EDGE_SSCI, SALT, pair.saks[1]),
    )
    verb = ["frames", "validate", str(wire), "--keys", str(keys), "--out", str(plain), "--json"]
    said = json.loads(lab.network.router.run(*lab.router.command(*verb)))
    pair.report.check(
        "lastmile frames decrypts a capture of both ends",
        said["ok"] and said["frames_out"] >= 2 * PINGS,
        f"{said['frames_out']} of {said['frames_in']} frames, dropped {said['dropped']}",
    )
    fields = ["-T", "fields", "-e", "vlan.id", "-e", "icmp.type"]
    shown = lab.network.router.run("tshark", "-r", str(plain), "-Y", "icmp", *fields).splitlines()
    wanted = {f"{edge.vlan}\t8": PINGS, f"{edge.vlan}\t0": PINGS}
    seen = dict(Counter(shown))
    pair.report.check("tshark reads it: echoes and replies in their VLAN", seen == wanted, str(seen))


def _record(wire: socket.socket, edge: Edge) -> tuple[bytes, bytes]:
    """The last MACsec frame of each direction: to the router, to the edge."""
    router = bytes.fromhex(edge.router_sci_mac.replace(":", ""))
    to_us = to_them = b""
    wire.setblocking(False)
    while True:
        try:
            frame = wire.recv(1 << 16)
        except BlockingIOError:
            break
        if int.from_bytes(frame[12:14]) == ETHERTYPE_MACSEC:
            if frame[6:12] == router:
                to_them = frame
            elif frame[:6] == router:
                to_us = frame
    assert to_us, "nothing was recorded from the edge"
    assert to_them, "nothing was recorded from the router"
    return to_us, to_them

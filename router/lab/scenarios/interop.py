"""The data plane and the Linux MACsec driver on one wire, without the rest of the router.

All four suites, with and without the SCI in the SecTAG, from PN 1 and with XPN across 2^32, a VLAN
inside, sizes from a padded frame to the largest; and frames that come twice, at both ends.
"""

from __future__ import annotations

import itertools
import json
import re
import secrets
import socket
import sys
from dataclasses import dataclass
from typing import Any, Final

from router.lab.capture import ETHERTYPE_MACSEC, cleartext_frames, protected_frames
from router.lab.lab import Lab
from router.lab.poll import reached, until
from router.lab.report import Report
from router.lab.scenarios.fastpath import ask_dataplane, dataplane_status
from router.lab.topology import Edge

SUITES: Final = ("gcm-aes-128", "gcm-aes-256", "gcm-aes-xpn-128", "gcm-aes-xpn-256")
SIZES: Final = (0, 1, 18, 64, 1000, 1472, 8472)
"""Octets of ICMP payload; the last is a packet of 8500."""
PINGS: Final = 10
NEAR_WRAP: Final = (1 << 32) - 20
WINDOW: Final = 64
START_TIMEOUT_S: Final = 30.0
COUNT_TIMEOUT_S: Final = 5.0
NAME: Final = "ms-a1"
SALT: Final = "9a3f5c7e11d2b4860f1e2d3c"


@dataclass(frozen=True, slots=True)
class Case:
    """One way to speak MACsec."""

    suite: str
    sci: bool
    first_pn: int

    @property
    def xpn(self) -> bool:
        """Whether packet numbers have 64 bits."""
        return "xpn" in self.suite

    def __str__(self) -> str:
        sci = "with SCI" if self.sci else "without SCI"
        return f"{self.suite} {sci}" + (" across 2^32" if self.first_pn > 1 else "")


def cases() -> list[Case]:
    """All of them."""
    plain = [Case(suite, sci, 1) for suite, sci in itertools.product(SUITES, (True, False))]
    return plain + [Case(suite, True, NEAR_WRAP) for suite in SUITES if "xpn" in suite]


class Pair:
    """The two ends of one wire."""

    def __init__(self, lab: Lab, report: Report) -> None:
        self.lab = lab
        self.report = report
        self.edge: Edge = lab.topology.edges[0]
        self.device = f"a1.{self.edge.vlan}"

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

    def key(self, case: Case) -> None:
        """Give both ends the same fresh keys. Raises LabError."""
        octets = 32 if case.suite.endswith("256") else 16
        ours, theirs = secrets.token_hex(octets), secrets.token_hex(octets)
        self._key_edge(case, ours, theirs)
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
        sci = self._edge_sci()
        salt = SALT if case.xpn else ""

        def secy(do: str, **arguments: object) -> None:
            ask_dataplane(self.lab, secy=NAME, do=do, **arguments)

        def material(sak: str, ssci: int) -> dict[str, object]:
            return {
                "sak": sak,
                "key_id": secrets.token_hex(16),
                "ssci": ssci if case.xpn else 0,
                "salt": salt,
            }

        state = ask_dataplane(self.lab, secy=NAME, do="observe")["state"]
        for sa in state["transmit"]:
            secy("delete_transmit_sa", an=sa["an"])
        for sc in state["receive"]:
            secy("delete_receive_sc", sci=sc["sci"])
        secy("create_receive_sc", sci=sci)
        secy("create_receive_sa", sci=sci, an=1, key=material(theirs, 2), lowest_pn=case.first_pn)
        secy("enable_receive_sa", sci=sci, an=1)
        secy("create_transmit_sa", an=2, key=material(ours, 1), next_pn=case.first_pn)
        secy("enable_transmit_sa", an=2)
        pair = self.edge.ipv4
        self.lab.network.router.batch(
            [f"address replace {pair.router}/{pair.length} dev {self.device}", f"link set {self.device} up"]
        )

    def _edge_sci(self) -> str:
        mac = next(
            end.mac
            for wire in self.lab.topology.wires
            for end in (wire.a, wire.b)
            if (end.node, end.device) == (self.edge.node, self.edge.port)
        )
        return f"{mac}/1"

    def _key_edge(self, case: Case, ours: str, theirs: str) -> None:
        edge, pair = self.edge, self.edge.ipv4

        def sa(ssci: int, number: str, key: str) -> str:
            pn = f"xpn {case.first_pn} ssci {ssci} salt {SALT}" if case.xpn else f"pn {case.first_pn}"
            return f"{pn} on key {number} {key}"

        sci = "send_sci on" if case.sci else "send_sci off end_station on"
        peer = f"port 1 address {edge.router_sci_mac}"
        policy = f"port 1 cipher {case.suite} encrypt on {sci} validate strict replay on window 0"
        lines = [
            "link delete macsec0",
            f"link add link {edge.port} macsec0 type macsec {policy}",
            f"macsec add macsec0 tx sa 1 {sa(2, '01', theirs)}",
            "link set macsec0 type macsec encodingsa 1",
            f"macsec add macsec0 rx {peer} on",
            f"macsec add macsec0 rx {peer} sa 2 {sa(1, '02', ours)}",
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

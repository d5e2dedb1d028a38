"""From link up to secured: two of our key daemons, and two stock wpa_supplicants, on the same wire.

Two stations, their ports on a switch. Each pair agrees on keys, then loses its carrier for longer
than an MKA Life Time, and gets it back: what is measured is the time from the carrier at both ends
to the first frame that has passed through MACsec each way. The pairs take the same wire in turn, in
the same kernel, with the same CAK; wpa_supplicant can do GCM-AES-128 only, ours is measured with it
and with GCM-AES-XPN-256.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import shutil
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Final

from router.errors import LabError
from router.lab.capture import cleartext_frames, protected_frames
from router.lab.farend.mka import KeydEnd, MkaEnd, WpaSupplicant, start_keyds
from router.lab.lab import Lab
from router.lab.machine import WORK
from router.lab.network import secured_port
from router.lab.node import Node
from router.lab.poll import until
from router.lab.report import Report
from router.lab.topology import Edge, Pair

ROUNDS: Final = 3
TARGET_S: Final = 1.0
"""Of ours; wpa_supplicant takes about three."""
SECURE_TIMEOUT_S: Final = 60.0
"""The first time: both processes are loaded meanwhile."""
EXPIRY_TIMEOUT_S: Final = 30.0
LINK_TIMEOUT_S: Final = 15.0
POLL_S: Final = 0.001
SEND_INTERVAL_S: Final = 0.002
PORT: Final = 7010

SIOCGIFFLAGS: Final = 0x8913
IFF_RUNNING: Final = 0x40


@dataclass(frozen=True, slots=True)
class Candidate:
    """A program and a suite."""

    name: str
    suite: str
    end: type[MkaEnd]


CANDIDATES: Final = (
    Candidate("wpa_supplicant", "gcm-aes-128", WpaSupplicant),
    Candidate("ours", "gcm-aes-128", KeydEnd),
    Candidate("ours_xpn_256", "gcm-aes-xpn-256", KeydEnd),
)


class Wire:
    """Two stations and the switch between them."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.switch = lab.network.nodes["sw"]
        first = lab.topology.edges[0]
        pair = first.ipv4
        second = dataclasses.replace(first, node="pe2", ipv4=Pair(pair.router, pair.own, pair.length))
        self.edges = (first, second)
        macs = {(end.node, end.device): end.mac for wire in lab.topology.wires for end in (wire.a, wire.b)}
        self.macs = tuple(macs[edge.node, edge.port] for edge in self.edges)

    def build(self) -> None:
        """Join the stations' ports. Nothing may speak on the bare ones. Raises LabError."""
        for edge in self.edges:
            self.node(edge).sysctl(**{f"ipv6__conf__{edge.port}__disable_ipv6": 1})
        self.switch.batch(
            [
                "link add bridge type bridge mcast_snooping 0 group_fwd_mask 8",
                *(f"link set {edge.node} master bridge" for edge in self.edges),
                "link set bridge mtu 9100 up",
            ]
        )

    def node(self, edge: Edge) -> Node:
        """A station's namespace."""
        return self.lab.network.nodes[edge.node]

    def set(self, *, up: bool) -> None:
        """Give both stations' ports their carrier, or take it. Raises LabError."""
        self.switch.batch([f"link set {edge.node} {'up' if up else 'down'}" for edge in self.edges])

    def addresses(self) -> None:
        """Give each station the other's MAC address, so that no answer to a question is waited for."""
        for edge, mac in zip(self.edges, reversed(self.macs), strict=True):
            self.node(edge).batch(
                [f"neigh replace {edge.ipv4.router} lladdr {mac} dev vlan{edge.vlan} nud permanent"]
            )

    def secured(self) -> bool:
        """Whether both SecYs hold a transmit SA."""
        return all(self._transmit_sas(edge) > 0 for edge in self.edges)

    def closed(self) -> bool:
        """Whether neither does."""
        return all(self._transmit_sas(edge) == 0 for edge in self.edges)

    def _transmit_sas(self, edge: Edge) -> int:
        shown = self.node(edge).ip("macsec", "show")
        return sum(len(device["sa_list"]) for device in shown)

    def ends(self, candidate: Candidate) -> list[MkaEnd]:
        """Start both stations' key agreement. Raises LabError."""
        found: list[MkaEnd] = []
        for edge in self.edges:
            own = dataclasses.replace(edge, suite=candidate.suite)
            directory = WORK / "link" / candidate.name / edge.node
            end = candidate.end(self.node(edge), own, directory)
            shutil.copytree(self.lab.network.config_directory / edge.key_directory, end.keys)
            found.append(end)
            if not isinstance(end, WpaSupplicant):
                device = f"link add link {edge.port} macsec0 type macsec port 1 cipher {candidate.suite}"
                policy = "encrypt on send_sci on validate strict replay on window 0"
                self.node(edge).batch([f"{device} {policy}", *secured_port(edge)])
        start_keyds([end for end in found if isinstance(end, KeydEnd)])
        for end in found:
            if isinstance(end, WpaSupplicant):
                end.start()
        for end in found:
            if isinstance(end, WpaSupplicant):
                end.ready()
        self.addresses()
        return found


def _running(probe: socket.socket, device: str) -> bool:
    request = struct.pack("16sH14x", device.encode(), 0)
    flags = struct.unpack_from("H", fcntl.ioctl(probe, SIOCGIFFLAGS, request), 16)[0]
    return bool(flags & IFF_RUNNING)


def _link_up_to_secured(wire: Wire) -> float:
    """Give the stations their carrier; seconds from it to a frame each way. Raises LabError."""
    with contextlib.ExitStack() as stack:
        sockets = []
        for edge in wire.edges:
            each = stack.enter_context(wire.node(edge).socket(socket.AF_INET, socket.SOCK_DGRAM))
            each.bind((edge.ipv4.own, PORT))
            each.setblocking(False)
            sockets.append(each)
        wire.set(up=True)

        def carrier() -> bool:
            return all(_running(s, e.port) for s, e in zip(sockets, wire.edges, strict=True))

        until(carrier, LINK_TIMEOUT_S, lambda: "no carrier", POLL_S)
        start = time.monotonic()
        came = [False, False]
        sent_at = 0.0
        while not all(came):
            now = time.monotonic()
            if now > start + LINK_TIMEOUT_S:
                raise LabError(f"no frame within {LINK_TIMEOUT_S:.0f} s of the carrier")
            if now >= sent_at + SEND_INTERVAL_S:
                sent_at = now
                for each, edge in zip(sockets, wire.edges, strict=True):
                    with contextlib.suppress(OSError):  # the devices above the port come up one by one
                        each.sendto(b"x", (edge.ipv4.router, PORT))
            for number, each in enumerate(sockets):
                with contextlib.suppress(BlockingIOError):
                    each.recv(16)
                    came[number] = True
            time.sleep(POLL_S)
        return time.monotonic() - start


def link_up(lab: Lab, report: Report) -> None:
    """Measure each candidate, and hold ours against its target and against the others."""
    for end in lab.mka_ends.values():
        end.stop()
    wire = Wire(lab)
    wire.lab.network.nodes[wire.edges[0].node].run("ip", "link", "delete", "macsec0", check=False)
    wire.build()
    measured: dict[str, list[float]] = {}
    for candidate in CANDIDATES:
        report.progress(f"{candidate.name}: starting two of them")
        wire.set(up=True)
        ends = wire.ends(candidate)
        lab.mka_ends = {end.edge.node: end for end in ends}
        report.when_failed = _explainer(lab, report)
        until(wire.secured, SECURE_TIMEOUT_S, lambda c=candidate: f"{c.name}: never secured", 0.2)  # type: ignore[misc]
        times = measured[candidate.name] = []
        for number in range(ROUNDS):
            wire.set(up=False)
            until(wire.closed, EXPIRY_TIMEOUT_S, lambda c=candidate: f"{c.name}: its SAs stay", 0.2)  # type: ignore[misc]
            times.append(_link_up_to_secured(wire))
            report.progress(f"{candidate.name}: round {number + 1}: {times[-1]:.3f} s")
            until(wire.secured, SECURE_TIMEOUT_S, lambda c=candidate: f"{c.name}: not secured", 0.2)  # type: ignore[misc]
        for end in ends:
            end.stop()
            wire.node(end.edge).run("ip", "link", "delete", "macsec0", check=False)
        report.figure(f"{candidate.name}_link_up_to_secured", round(1000 * median(times)), "ms")
        report.figure(f"{candidate.name}_worst", round(1000 * max(times)), "ms")
    theirs = median(measured.pop("wpa_supplicant"))
    for name, times in measured.items():
        detail = (
            ", ".join(f"{seconds:.3f}" for seconds in times) + f" s; wpa_supplicant's median {theirs:.3f} s"
        )
        report.check(
            f"{name}: link up to secured in less than {TARGET_S:.0f} s", max(times) < TARGET_S, detail
        )
        report.check(f"{name}: sooner than wpa_supplicant", median(times) < theirs, detail)
    for channel, path in lab.stop_captures().items():
        clear, protected = cleartext_frames(path), protected_frames(path)
        own = [frame for frame in clear if frame.octets[6:12].hex(":") in wire.macs]
        report.check(f"wire {channel}: nothing in clear", not own and protected > 0,
                     f"{protected} MACsec frames, {len(own)} in clear")  # fmt: skip


def _explainer(lab: Lab, report: Report) -> Callable[[], None]:
    def explain() -> None:
        for name, end in lab.mka_ends.items():
            report.note(f"{name} ({end.kind}): {end.explain()}")

    return explain

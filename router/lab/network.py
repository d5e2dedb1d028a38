"""Builds a topology in this machine: namespaces, wires, addresses, and MACsec on the edges.

The edges' MACsec is the kernel's through `ip macsec`, by none of our code, and their ports speak
nothing in clear: no IPv6 on the bare port, no address, `validate strict`.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from router.lab.machine import WORK, GuestWire
from router.lab.node import Node, run
from router.lab.topology import Edge, End, Topology, Wire

WPA_SUPPLICANT_SUITE = "gcm-aes-128"
"""The one suite that wpa_supplicant 2.10 agrees on keys for."""

SYSCTLS = {
    "ipv4__ip_forward": 1,
    "ipv6__conf__all__forwarding": 1,
    "ipv6__conf__default__accept_dad": 0,
    "ipv6__conf__all__accept_dad": 0,
    "ipv4__fib_multipath_hash_policy": 1,
    "ipv6__fib_multipath_hash_policy": 1,
}
"""On every node but the router's, whose kernel settings are the router's business."""


WIRES: Final = "wires"
"""The namespace between the two kernels, where there are two: one bridge per wire that crosses."""

SWITCH: Final = "sw"
"""A node of this name is a switch: it forwards, and says nothing of its own."""
EAPOL_FORWARDED: Final = 1 << 3
"""Of a bridge's group_fwd_mask: 01:80:c2:00:00:03, the address of MKPDUs, which bridges keep else."""

Side = Literal["whole", "host", "guest"]


@dataclass(frozen=True, slots=True)
class Crossing:
    """A wire with one end on the host and the other, a provider's edge, in the guest."""

    number: int
    wire: Wire
    host: End
    guest: End

    @property
    def tap(self) -> str:
        """The TAP that is the guest's device `vecN`."""
        return f"t{self.number}"

    @property
    def port(self) -> str:
        """The other end of the host node's veth, beside the TAP on the bridge: every frame passes it."""
        return f"v{self.number}"


def crossings(topology: Topology) -> list[Crossing]:
    """The wires that cross where the edges are in a guest."""
    edges = {edge.node for edge in topology.edges}
    found: list[Crossing] = []
    for wire in topology.wires:
        if (wire.a.node in edges) != (wire.b.node in edges):
            ends = (wire.b, wire.a) if wire.a.node in edges else (wire.a, wire.b)
            found.append(Crossing(len(found), wire, *ends))
    return found


def guest_wires(topology: Topology) -> list[GuestWire]:
    """What the guest is started with."""
    return [GuestWire(crossing.tap, crossing.wire.mtu) for crossing in crossings(topology)]


class Network:
    """A topology that is up. Its nodes stay until the machine ends or `close()`."""

    def __init__(self, topology: Topology, side: Side = "whole") -> None:
        self.topology = topology
        self.side = side
        """Which part of it is in this kernel: all, all but the edges, or the edges."""
        edges = {edge.node for edge in topology.edges}
        here = [name for name in topology.nodes if side == "whole" or (name in edges) == (side == "guest")]
        self.nodes = {name: Node(name) for name in here}
        self.config_directory = WORK / "config"
        self.config = self.config_directory / topology.config_name

    @property
    def router(self) -> Node:
        """The namespace that the router runs in."""
        return self.nodes[self.topology.router]

    @property
    def branch(self) -> Node:
        """The host behind the router."""
        return self.nodes[self.topology.branch.node]

    @property
    def cloud(self) -> Node:
        """The host behind the edges."""
        return self.nodes[self.topology.cloud.node]

    def secret(self, file: str) -> str:
        """Read a secret of the lab by its name in the configuration."""
        return (self.config_directory / file).read_text().strip()

    def tapped(self, edge: Edge) -> tuple[Node, str]:
        """Where the wire of an edge's port can be captured: namespace and device."""
        if self.side == "host":
            for crossing in crossings(self.topology):
                if (crossing.guest.node, crossing.guest.device) == (edge.node, edge.port):
                    return Node(WIRES), crossing.port
        return self.nodes[edge.node], edge.port

    def secrets(self) -> dict[str, str]:
        """The lab's secrets by file, for the other side's `build`."""
        names = []
        for file, kind, _ in self.topology.secrets:
            if kind == "chain":
                names += [f"{file}/{path.name}" for path in sorted((self.config_directory / file).iterdir())]
            else:
                names.append(file)
        return {name: self.secret(name) for name in names}

    def build(self, secrets: Mapping[str, str] | None = None) -> None:
        """Make everything but the router and the edges' routing daemons. Raises LabError.

        `secrets` are those of the other side; without any, they are made up.
        """
        if secrets is None:
            self.write_config()
        for file, text in (secrets or {}).items():
            path = self.config_directory / file
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(path, text)
        run(["ip", "-batch", "-"], stdin="\n".join(self._namespaces_and_wires()) + "\n")
        if self.side == "host":
            self._bridges()
        for name, node in self.nodes.items():
            if name == SWITCH:
                node.sysctl(ipv6__conf__all__disable_ipv6=1, ipv6__conf__default__disable_ipv6=1)
            elif name != self.topology.router:
                node.sysctl(**SYSCTLS)
        for edge in self.topology.edges if self.side != "host" else ():
            node = self.nodes[edge.node]
            node.sysctl(**{f"ipv6__conf__{edge.port}__disable_ipv6": 1})
        for name, node in self.nodes.items():
            node.batch(self.commands(name))

    def write_config(self) -> None:
        """Write the router's configuration, and secrets nobody has seen before."""
        self.config_directory.mkdir(mode=0o700, parents=True)
        write_private(self.config, self.topology.config)
        for file, kind, octets in self.topology.secrets:
            path = self.config_directory / file
            path.parent.mkdir(mode=0o700, exist_ok=True)
            if kind == "chain":
                path.mkdir(mode=0o700)
                write_chain_key(path, secrets.token_hex(32), secrets.token_hex(octets))
                continue
            write_private(path, secrets.token_hex(octets) if kind == "hex" else secrets.token_urlsafe(octets))

    def commands(self, name: str) -> list[str]:
        """Commands for `ip` in one node, keys among them."""
        topology = self.topology
        lines = ["link set lo up"]
        for wire in topology.wires:
            # The router's ports stay down: it brings them up itself, once nothing can leave in clear.
            lines += [
                f"link set {end.device} up"
                for end in (wire.a, wire.b)
                if end.node == name and name != topology.router
            ]
        for node, device, address in topology.addresses:
            if node == name:
                lines.append(f"address add {address} dev {device}" + (" nodad" if ":" in address else ""))
        for edge in topology.edges:
            if edge.node == name:
                lines += self._macsec(edge)
        for node, prefix, gateways in topology.routes:
            if node == name:
                hops = [f"via {gateway}" for gateway in gateways]
                several = len(hops) > 1
                lines.append(
                    f"route add {prefix} " + " ".join(f"nexthop {h}" if several else h for h in hops)
                )
        return lines

    def _macsec(self, edge: Edge) -> list[str]:
        xpn = "xpn" in edge.suite

        def key(key_number: str, ssci: int, file: str) -> str:
            parameters = f"xpn 1 ssci {ssci} salt {edge.salt}" if xpn else "pn 1"
            return f"{parameters} on key {key_number} {self.secret(file)}"

        scheme = f"port 1 cipher {edge.suite} encrypt on send_sci on validate strict replay on window 0"
        peer = f"port 1 address {edge.router_sci_mac}"
        if edge.key_directory:
            if edge.suite == WPA_SUPPLICANT_SUITE:
                return []  # wpa_supplicant makes its own device
            keys = []
        else:
            keys = [
                f"macsec add macsec0 tx sa {edge.transmit.an} "
                + key("01", edge.transmit.ssci, edge.transmit.sak_file),
                f"macsec add macsec0 rx {peer} on",
                f"macsec add macsec0 rx {peer} sa {edge.receive.an} "
                + key("02", edge.receive.ssci, edge.receive.sak_file),
            ]
        return [
            f"link add link {edge.port} macsec0 type macsec {scheme}",
            *keys,
            *secured_port(edge),
        ]

    def close(self) -> None:
        """Remove the namespaces and all that was written; programs must have been stopped before."""
        run(
            ["ip", "-force", "-batch", "-"],
            stdin="".join(f"netns delete {n}\n" for n in (*self.nodes, *self._between())),
            check=False,
        )

    def _between(self) -> tuple[str, ...]:
        return (WIRES,) if self.side == "host" else ()

    def _namespaces_and_wires(self) -> list[str]:
        lines = [f"netns add {name}" for name in (*self.nodes, *self._between())]
        across = {crossing.wire: crossing for crossing in crossings(self.topology)}
        for wire in self.topology.wires:
            crossing = across.get(wire) if self.side != "whole" else None
            if crossing is None:
                if wire.a.node in self.nodes:
                    lines.append(f"link add {_end(wire.a, wire.mtu)} type veth peer {_end(wire.b, wire.mtu)}")
            elif self.side == "host":
                peer = End(WIRES, crossing.port, "")
                lines.append(
                    f"link add {_end(crossing.host, wire.mtu)} type veth peer {_end(peer, wire.mtu)}"
                )
            else:
                end, vector = crossing.guest, f"vec{crossing.number}"
                if end.mac:
                    lines.append(f"link set {vector} address {end.mac}")
                lines.append(f"link set {vector} name {end.device} netns {end.node}")
        return lines

    def _bridges(self) -> None:
        """Join each crossing wire's veth and TAP. Nothing in that namespace says a word of its own."""
        wires = Node(WIRES)
        wires.sysctl(ipv6__conf__all__disable_ipv6=1, ipv6__conf__default__disable_ipv6=1)
        lines = []
        for crossing in crossings(self.topology):
            bridge, mtu = f"b{crossing.number}", crossing.wire.mtu
            lines += [
                f"link add {bridge} mtu {mtu} type bridge mcast_snooping 0 group_fwd_mask {EAPOL_FORWARDED}",
                f"tuntap add dev {crossing.tap} mode tap",
                f"link set {crossing.tap} mtu {mtu} master {bridge} up",
                f"link set {crossing.port} master {bridge} up",
                f"link set {bridge} up",
            ]
        wires.batch(lines)


def secured_port(edge: Edge) -> list[str]:
    """Commands for `ip` that put the edge's VLAN and addresses on its macsec device."""
    return [
        # Nothing of its own on the secured port either: all traffic is the VLAN's.
        "link set macsec0 addrgenmode none",
        f"link add link macsec0 name vlan{edge.vlan} mtu {edge.mtu} type vlan id {edge.vlan}",
        "link set macsec0 up",
        f"link set vlan{edge.vlan} up",
        *(
            f"address add {pair.own}/{pair.length} dev vlan{edge.vlan}"
            + (" nodad" if ":" in pair.own else "")
            for pair in (edge.ipv4, edge.ipv6)
        ),
    ]


def write_chain_key(directory: Path, ckn: str, cak: str, **more: object) -> None:
    """Write a key into a key directory as an operator would, not by the router's code."""
    write_private(directory / f"{ckn}.json", json.dumps({"ckn": ckn, "cak": cak, **more}))


def _end(end: End, mtu: int) -> str:
    address = f" address {end.mac}" if end.mac else ""
    return f"name {end.device} mtu {mtu} netns {end.node}{address}"


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can ever read; a reader sees the old text or the new."""
    new = path.with_name(path.name + ".new")
    new.touch(mode=0o600)
    new.write_text(text if text.endswith("\n") else text + "\n")
    new.replace(path)

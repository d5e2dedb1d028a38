"""Builds a topology in this machine: namespaces, wires, addresses, and MACsec on the edges.

The edges' MACsec is the kernel's through `ip macsec`, by none of our code, and their ports speak
nothing in clear: no IPv6 on the bare port, no address, `validate strict`.
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path

from router.lab.machine import WORK
from router.lab.node import Node, run
from router.lab.topology import Edge, Topology

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


class Network:
    """A topology that is up. Its nodes stay until the machine ends or `close()`."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.nodes = {name: Node(name) for name in topology.nodes}
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

    def build(self) -> None:
        """Make everything but the router and the edges' routing daemons. Raises LabError."""
        self.write_config()
        run(["ip", "-batch", "-"], stdin="\n".join(_namespaces_and_wires(self.topology)) + "\n")
        for name, node in self.nodes.items():
            if name != self.topology.router:
                node.sysctl(**SYSCTLS)
        for edge in self.topology.edges:
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
            stdin="".join(f"netns delete {n}\n" for n in self.nodes),
            check=False,
        )


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


def _namespaces_and_wires(topology: Topology) -> list[str]:
    lines = [f"netns add {name}" for name in topology.nodes]
    for wire in topology.wires:
        ends = [
            f"name {end.device} mtu {wire.mtu} netns {end.node}" + (f" address {end.mac}" if end.mac else "")
            for end in (wire.a, wire.b)
        ]
        lines.append(f"link add {ends[0]} type veth peer {ends[1]}")
    return lines


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can ever read; a reader sees the old text or the new."""
    new = path.with_name(path.name + ".new")
    new.touch(mode=0o600)
    new.write_text(text if text.endswith("\n") else text + "\n")
    new.replace(path)

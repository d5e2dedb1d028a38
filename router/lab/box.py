"""A box of `vagrant/`: its part of a topology, on real network devices that are found by MAC.

The same files as the lab on one machine, spread over several: the router's box names its devices
as its configuration calls them; the others put each node of theirs into a namespace.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Final

from router.errors import LabError
from router.lab import farend
from router.lab.network import SYSCTLS, Network, write_private
from router.lab.node import Node, run
from router.lab.topology import End, Topology, load

STATE: Final = Path("/run/lastmile-box")
ETC: Final = Path("/etc/lastmile")


def nodes_of(topology: Topology, role: str) -> list[str]:
    """The nodes that live in a box: `router`, `branch`, `cloud`, or a site's name. Raises LabError."""
    single = {"router": topology.router, "branch": topology.branch.node, "cloud": topology.cloud.node}
    found = [single[role]] if role in single else [e.node for e in topology.edges if e.site == role]
    if not found:
        raise LabError(f"there is no box {role!r}: router, branch, cloud or a site of {topology.name}")
    return found


def devices_of(topology: Topology, nodes: list[str]) -> list[tuple[End, int]]:
    """The wires' ends in these nodes, each with its MTU."""
    return [(end, wire.mtu) for wire in topology.wires for end in (wire.a, wire.b) if end.node in nodes]


def take_devices(topology: Topology, nodes: list[str]) -> None:
    """Give each device its name, and its node's namespace where it has one. Raises LabError."""
    by_mac = {link["address"]: link["ifname"] for link in json.loads(run(["ip", "-j", "link", "show"]))}
    for end, mtu in devices_of(topology, nodes):
        there = by_mac.get(end.mac)
        if there is None:
            raise LabError(
                f"no device has the MAC address {end.mac} that {end.node}:{end.device} has on its wire"
            )
        lines = [f"link set {there} down", f"link set {there} name {end.device} mtu {mtu}"]
        if end.node != topology.router:
            lines.append(f"link set {end.device} netns {end.node}")
        run(["ip", "-batch", "-"], stdin="\n".join(lines) + "\n")


def main() -> int:
    """`python -m router.lab.box ROLE SECRETS`: take the devices, configure, start the edges."""
    role, secrets = sys.argv[1], Path(sys.argv[2])
    topology = load("four-channels")
    nodes = nodes_of(topology, role)
    if role == "router":
        take_devices(topology, nodes)
        ETC.mkdir(mode=0o700, exist_ok=True)
        write_private(ETC / topology.config_name, topology.config)
        for file, _, _ in topology.secrets:
            (ETC / file).parent.mkdir(mode=0o700, exist_ok=True)
            write_private(ETC / file, (secrets / Path(file).name).read_text())
        return 0
    shutil.rmtree(STATE, ignore_errors=True)
    for name in nodes:
        run(["ip", "netns", "add", name])
    take_devices(topology, nodes)
    network = Network(topology)
    network.config_directory = secrets.parent
    for name in nodes:
        node = Node(name)
        node.sysctl(**SYSCTLS)
        edges = [edge for edge in topology.edges if edge.node == name]
        for edge in edges:
            node.sysctl(**{f"ipv6__conf__{edge.port}__disable_ipv6": 1})
        node.batch(network.commands(name))
        for edge in edges:
            password = network.secret(edge.md5_file) if edge.md5_file else ""
            speaker = farend.make(
                "frr", node, edge, STATE / name, password=password, announced=topology.announce
            )
            speaker.start()
            speaker.ready()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as error:
        sys.exit(f"box: {error}")

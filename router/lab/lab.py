"""A whole lab inside the machine: the network, far ends, captures and the router under test."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from router.lab import farend
from router.lab.capture import Capture
from router.lab.daemon import RouterUnderTest
from router.lab.farend.mka import MkaEnd, start_mka
from router.lab.machine import RESULTS, WORK
from router.lab.network import Network, Side
from router.lab.topology import Topology

if TYPE_CHECKING:
    from router.lab.guest_edges import GuestEdges

EDGES_SOCKET: Final = WORK / "edges.sock"
"""Where commands for the edges' guest are taken, by a `Switchboard`."""


class Lab:
    """A topology with its programs. Build it, use it, `close` it."""

    def __init__(
        self,
        topology: Topology,
        edges: str = "frr",
        *,
        secy: str = "auto",
        side: Side = "whole",
        keep_captures: bool = False,
    ) -> None:
        self.topology = topology
        self.secy = secy
        """As asked for: `auto`, `kernel` or `fastpath`."""
        self.edges_kind = edges
        self.network = Network(topology, side)
        self._guest: GuestEdges | None = None
        """Where the edges are in a guest."""
        self.router = RouterUnderTest(self.network, WORK / "router")
        self.far_ends: dict[str, farend.FarEnd] = {}
        self.mka_ends: dict[str, MkaEnd] = {}
        """The edges' side of key agreement, by node."""
        self.captures: dict[str, Capture] = {}
        """By channel."""
        self._keep_captures = keep_captures

    def build(self, secrets: Mapping[str, str] | None = None) -> None:
        """Make the network. Raises LabError."""
        self.network.build(secrets)

    def start_edges(self, nodes: tuple[str, ...] = ()) -> None:
        """Start key agreement on all edges, and the routing daemons of these edges or of all."""
        if self.network.side == "host":
            from router.lab.guest_edges import GuestEdges

            self._guest = GuestEdges(self.network, self.edges_kind, nodes)
            self.far_ends, self.mka_ends = self._guest.far_ends(), self._guest.mka_ends()
            return
        self.mka_ends = start_mka(
            self.network,
            [edge for edge in self.topology.edges if edge.key_directory],
        )
        started: list[farend.FarEnd] = []
        for edge in self.topology.edges:
            if nodes and edge.node not in nodes:
                continue
            password = self.network.secret(edge.md5_file) if edge.md5_file else ""
            self.far_ends[edge.node] = farend.make(
                self.edges_kind,
                self.network.nodes[edge.node],
                edge,
                WORK / edge.node,
                password=password,
                announced=self.topology.announce,
            )
            started.append(self.far_ends[edge.node])
            started[-1].start()
        for far_end in started:
            far_end.ready()

    def start_captures(self) -> None:
        """Capture on every wire between the router and an edge, from before the router's first frame."""
        directory = RESULTS if self._keep_captures else WORK
        for edge in self.topology.edges:
            path = directory / f"{edge.channel}.pcapng"
            node, device = self.network.tapped(edge)
            self.captures[edge.channel] = Capture(node, device, path, whole=self._keep_captures)
            self.captures[edge.channel].start()
        for capture in self.captures.values():
            capture.ready()

    def stop_captures(self) -> dict[str, Path]:
        """End the captures; their files by channel."""
        for capture in self.captures.values():
            capture.stop()
        return {channel: capture.path for channel, capture in self.captures.items()}

    def at_edge(self, node: str, *argv: str, stdin: str = "") -> str:
        """Run a program at an edge, in whichever kernel it is. Raises LabError where it fails."""
        if self._guest is not None:
            return str(self._guest.ask("run", node, argv=list(argv), stdin=stdin)["out"])
        return self.network.nodes[node].run(*argv, stdin=stdin)

    def serve_edges(self, ready: Callable[[], None]) -> None:
        """Let commands reach the edges at `EDGES_SOCKET` where they are in a guest. Ends with the process."""
        if self._guest is None:
            ready()
            signal.pause()
        else:
            self._guest.serve(EDGES_SOCKET, ready)

    def nexthops(self, prefix: str) -> list[dict[str, Any]]:
        """The next hops of the router's route to `prefix`: device and gateway, as its kernel has them."""
        family = "-6" if ":" in prefix else "-4"
        routes = self.network.router.ip(family, "-d", "route", "show", prefix)
        if not routes:
            return []
        route = routes[0]
        group = route.get("nhid")
        if group is None:
            return list(route.get("nexthops") or [route])
        objects = {o["id"]: o for o in self.network.router.ip("nexthop", "show")}
        if group not in objects:  # replaced between the two questions
            return []
        members = [member["id"] for member in objects[group].get("group", [{"id": group}])]
        return [objects[member] for member in members if member in objects]

    def answer_over(self, nodes: Sequence[str]) -> None:
        """Have the cloud send to the branch over these edges only.

        The cloud's side of the edges is static here, where a provider has a routing protocol: an
        edge without a session would still be sent to.
        """
        cloud = self.topology.cloud.node
        gateways = {
            address.partition("/")[0]
            for node, device, address in self.topology.addresses
            if node in nodes and device != "lo"
        }
        lines = []
        for node, prefix, several in self.topology.routes:
            if node == cloud:
                hops = " ".join(f"nexthop via {gateway}" for gateway in several if gateway in gateways)
                lines.append(f"route replace {prefix} {hops}")
        self.network.cloud.batch(lines)

    def macsec_counters(self) -> dict[str, tuple[str, int, int]]:
        """Suite and frames (received ok, sent encrypted) of every SecY of the router, by device.

        The kernel's are read from the kernel; our data plane's from the router's status.
        """
        found = {}
        for channel in self.router.channels().values():
            macsec = channel["macsec"]
            if macsec["secy"] == "fastpath":
                counts = int(macsec["in_pkts_ok"]), int(macsec["out_pkts_encrypted"])
                found[str(macsec["device"])] = (str(macsec["suite"]), *counts)
        if found:
            return found
        for device in self.network.router.ip("-s", "macsec", "show"):
            received = sum(int(sc["InPktsOK"]) for sc in device["rx_sc"])
            suite = str(device.get("cipher_suite", "?")).lower()
            found[device["ifname"]] = (suite, received, int(device["OutPktsEncrypted"]))
        return found

    def close(self) -> None:
        """Stop all programs and remove the namespaces."""
        with contextlib.suppress(OSError):
            if self.router.process is not None:
                self.router.stop()
        if self._guest is not None:
            self._guest.close()
            self.far_ends, self.mka_ends = {}, {}
        for far_end in self.far_ends.values():
            far_end.stop()
        for mka_end in self.mka_ends.values():
            mka_end.stop()
        self.stop_captures()
        self.network.close()

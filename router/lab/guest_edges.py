"""The provider's edges in a guest kernel, on the same wires as the rest of the lab on the host.

For the router's own data plane on a kernel without MACsec: at the other end of each wire is the
kernel's MACsec, an implementation that is not ours. The scenario runs on the host; a process in
the guest builds the edges with the same code, and answers one JSON object a line:

    {"do": "start", "topology": ..., "edges": KIND, "nodes": [...], "secrets": {FILE: TEXT}}
    {"do": "sessions" | "stop" | "kill" | "start_again", "node": NODE}
    {"do": "announce" | "withdraw", "node": NODE, "prefixes": [...]}
    {"do": "run", "node": NODE, "argv": [...], "stdin": TEXT}
    {"do": "mka_start" | "mka_stop" | "mka_kill", "node": NODE}
"""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from typing_extensions import override

from router.errors import LabError
from router.lab import machine
from router.lab.farend import FarEnd, PeerSession
from router.lab.farend.mka import MkaEnd
from router.lab.lab import Lab
from router.lab.link import PIECE, Link
from router.lab.machine import WORK
from router.lab.network import Network, guest_wires
from router.lab.node import Node
from router.lab.switchboard import Switchboard, listen
from router.lab.topology import Topology

START_TIMEOUT_S: Final = 90.0
ANSWER_TIMEOUT_S: Final = 60.0
JOB: Final = 1


class Conversation:
    """A process in a machine that is asked line by line."""

    def __init__(self, link: Link, argv: Sequence[str]) -> None:
        self._link = link
        self._out = b""
        self._err = b""
        link.send(
            op="spawn", id=JOB, argv=list(argv), env={"PYTHONPATH": str(Path(machine.__file__).parents[2])}
        )

    def ask(self, timeout_s: float, request: dict[str, Any]) -> dict[str, Any]:
        """Send one request and return its answer. Raises LabError."""
        deadline = time.monotonic() + timeout_s
        data = json.dumps(request).encode() + b"\n"
        for start in range(0, len(data), PIECE):
            piece = base64.b64encode(data[start : start + PIECE]).decode()
            self._link.send(op="stdin", id=JOB, data=piece)
            while self._receive(deadline) != "taken":
                pass
        while b"\n" not in self._out:
            self._receive(deadline)
        line, _, self._out = self._out.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise LabError(str(answer["error"]))
        return answer

    def _receive(self, deadline: float) -> str:
        message = self._link.receive(max(0.0, deadline - time.monotonic()))
        if message is None:
            raise LabError("the edges' guest does not answer")
        if message["op"] == "exit":
            said = self._err.decode(errors="replace").strip().splitlines()[-3:]
            raise LabError(f"the edges' process ended with {message['code']}: {'; '.join(said)}")
        if message["op"] == "out":
            octets = base64.b64decode(message["data"])
            if message["fd"] == 1:
                self._out += octets
            else:
                self._err += octets
        return str(message["op"])


class GuestEdges:
    """All edges of a topology, in a guest that is started for them."""

    def __init__(self, network: Network, kind: str, nodes: Sequence[str] = ()) -> None:
        """Boot the guest and start the edges. Raises LabError."""
        self._topology = network.topology
        self._machine = machine.start("guest", None, guest_wires(network.topology))
        self._talk = Conversation(self._machine.link, [sys.executable, "-m", "router.lab.guest_edges"])
        answer = self._talk.ask(
            START_TIMEOUT_S,
            {
                "do": "start",
                "topology": network.topology.to_json(),
                "edges": kind,
                "nodes": list(nodes),
                "secrets": network.secrets(),
            },
        )
        self._bgp: list[str] = answer["bgp"]
        self._mka: dict[str, str] = answer["mka"]

    def ask(self, do: str, node: str, **arguments: object) -> dict[str, Any]:
        """Have something done at an edge. Raises LabError."""
        return self._talk.ask(ANSWER_TIMEOUT_S, {"do": do, "node": node, **arguments})

    def far_ends(self) -> dict[str, FarEnd]:
        """The routing daemons, by node."""
        return {node: GuestFarEnd(self, self._topology, node) for node in self._bgp}

    def mka_ends(self) -> dict[str, MkaEnd]:
        """The edges' key agreement, by node."""
        return {node: GuestMkaEnd(self, self._topology, node, kind) for node, kind in self._mka.items()}

    def serve(self, path: Path, ready: Callable[[], None]) -> None:
        """Take commands for the guest at a unix socket, as `Switchboard` does. Raises LabError."""
        with listen(path) as server:
            ready()
            Switchboard(self._machine.link, server).serve()

    def close(self) -> None:
        """End the guest and everything in it."""
        self._machine.kill()


class GuestFarEnd(FarEnd):
    """A BGP speaker in the guest."""

    def __init__(self, guest: GuestEdges, topology: Topology, node: str) -> None:
        super().__init__(
            Node(node), topology.edge(node), WORK / node, password="", announced=topology.announce
        )
        self._ask = guest.ask

    @override
    def start(self) -> None:
        self._ask("start_again", self.node.name)

    @override
    def ready(self) -> None:
        pass  # `start` has waited

    @override
    def stop(self) -> None:
        self._ask("stop", self.node.name)

    @override
    def kill(self) -> None:
        self._ask("kill", self.node.name)

    @override
    def sessions(self) -> list[PeerSession]:
        return [PeerSession(**session) for session in self._ask("sessions", self.node.name)["sessions"]]

    @override
    def announce(self, prefixes: Sequence[str]) -> None:
        self._ask("announce", self.node.name, prefixes=list(prefixes))

    @override
    def withdraw(self, prefixes: Sequence[str]) -> None:
        self._ask("withdraw", self.node.name, prefixes=list(prefixes))


class GuestMkaEnd(MkaEnd):
    """An edge's KaY in the guest."""

    def __init__(self, guest: GuestEdges, topology: Topology, node: str, kind: str) -> None:
        super().__init__(Node(node), topology.edge(node), WORK / "mka" / node)
        self.kind = kind
        self._ask = guest.ask

    @override
    def start(self) -> None:
        self._ask("mka_start", self.node.name)

    @override
    def stop(self) -> None:
        self._ask("mka_stop", self.node.name)

    @override
    def kill(self) -> None:
        self._ask("mka_kill", self.node.name)


# In the guest


def _do(lab: Lab, request: dict[str, Any]) -> dict[str, Any]:
    node = request["node"]
    match request["do"]:
        case "sessions":
            return {"sessions": [asdict(session) for session in lab.far_ends[node].sessions()]}
        case "stop":
            lab.far_ends[node].stop()
        case "kill":
            lab.far_ends[node].kill()
        case "start_again":
            lab.far_ends[node].start()
            lab.far_ends[node].ready()
        case "announce":
            lab.far_ends[node].announce(request["prefixes"])
        case "withdraw":
            lab.far_ends[node].withdraw(request["prefixes"])
        case "run":
            out = lab.network.nodes[node].run(*request["argv"], stdin=request["stdin"])
            return {"out": out}
        case "mka_start":
            lab.mka_ends[node].start()
        case "mka_stop":
            lab.mka_ends[node].stop()
        case "mka_kill":
            lab.mka_ends[node].kill()
        case other:
            raise LabError(f"edges cannot {other!r}")
    return {}


def _start(request: dict[str, Any]) -> tuple[Lab, dict[str, Any]]:
    lab = Lab(Topology.from_json(request["topology"]), request["edges"], side="guest")
    lab.build(request["secrets"])
    lab.start_edges(tuple(request["nodes"]))
    return lab, {"bgp": list(lab.far_ends), "mka": {node: end.kind for node, end in lab.mka_ends.items()}}


def main() -> None:
    """Answer requests on standard input until it ends; the first one is `start`."""
    lab: Lab | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if lab is None:
                lab, answer = _start(request)
            else:
                answer = _do(lab, request)
        except (LabError, OSError) as error:
            answer = {"error": str(error)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

"""Inside the machine: builds a lab for `lab up`, starts the router and stays with them."""

from __future__ import annotations

import signal
import sys
from typing import Any, NoReturn

from router.errors import LabError
from router.lab.lab import Lab
from router.lab.machine import WORK
from router.lab.report import Report, to_line
from router.lab.scenarios.channels import start_and_wait
from router.lab.topology import Topology


def main() -> int:
    """`python -m router.lab.keep EDGES SECY KIND`; the topology is in the machine's work directory."""
    edges, secy, kind = sys.argv[1:4]

    def emit(event: dict[str, Any]) -> None:
        sys.stdout.write(to_line(event) + "\n")
        sys.stdout.flush()

    def say(event: str, text: str = "") -> None:
        emit({"event": event, "text": text})

    topology = Topology.from_json((WORK / "topology.json").read_text())
    lab = Lab(topology, edges, secy=secy, side="host" if kind == "bridged" else "whole")
    try:
        say("progress", f"building {lab.topology.name}: {len(lab.topology.nodes)} nodes")
        lab.build()
        say("progress", f"starting {lab.edges_kind} on {', '.join(e.node for e in lab.topology.edges)}")
        lab.start_edges()
    except LabError as error:
        say("error", str(error))
        return 2
    try:
        start_and_wait(lab, Report("up", emit))
    except LabError as error:  # the lab is there to look why
        say("progress", str(error))
    # The far ends and the router are our children; the machine's end is ours.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _ended)
    try:
        lab.serve_edges(ready=lambda: say("built"))
    finally:
        lab.close()
    return 0


def _ended(*_: object) -> NoReturn:
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main())

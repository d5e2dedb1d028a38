"""Inside the machine: builds a lab for `lab up`, starts the router and stays with them."""

from __future__ import annotations

import signal
import sys
from typing import Any

from router.errors import LabError
from router.lab.lab import Lab
from router.lab.machine import WORK
from router.lab.report import Report, to_line
from router.lab.scenarios.channels import start_and_wait
from router.lab.topology import Topology


def main() -> int:
    """`python -m router.lab.keep EDGES`; the topology is in the machine's work directory."""

    def emit(event: dict[str, Any]) -> None:
        sys.stdout.write(to_line(event) + "\n")
        sys.stdout.flush()

    def say(event: str, text: str = "") -> None:
        emit({"event": event, "text": text})

    lab = Lab(Topology.from_json((WORK / "topology.json").read_text()), sys.argv[1])
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
    say("built")
    # The far ends and the router are our children; the machine's end is ours.
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    lab.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())

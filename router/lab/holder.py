"""`lab up`: a process in the background that holds a machine and lets others reach into it.

It owns the machine, so its end, however it comes, is the lab's. Commands reach the agent through
its unix socket, a `Switchboard`; `{"op": "down"}` ends the lab.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from router.errors import LabError
from router.lab import machine, topology
from router.lab.link import Link, Sink
from router.lab.switchboard import Switchboard, listen

UP_TIMEOUT_S: Final = 180.0
DOWN_TIMEOUT_S: Final = 30.0
KEEP_JOB: Final = 1000
"""The lab itself, among the jobs of the machine's agent."""


def directory() -> Path:
    """Where the lab that is up has its socket: one lab at a time for each user."""
    if os.geteuid() == 0:
        return Path("/run/lastmile-lab-up")
    return (
        Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()) / f"lastmile-lab-up-{os.geteuid()}"
    )


@dataclass(frozen=True, slots=True)
class Up:
    """A lab that is up, as its holder wrote it down."""

    topology: str
    edges: str
    machine: str
    secy: str
    """As asked for: `auto`, `kernel` or `fastpath`."""
    nodes: tuple[str, ...]
    in_guest: tuple[str, ...]
    """Nodes that are in a guest kernel of their own."""
    router: str
    pid: int
    since: float


def current() -> Up | None:
    """Return the lab that is up; what a dead holder left is removed."""
    try:
        raw = json.loads((directory() / "lab.json").read_text())
        up = Up(**{**raw, "nodes": tuple(raw["nodes"]), "in_guest": tuple(raw["in_guest"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    try:
        connect().close()
    except LabError:
        shutil.rmtree(directory(), ignore_errors=True)
        return None
    return up


def connect() -> socket.socket:
    """Reach the holder. Raises LabError where no lab is up."""
    line = socket.socket(socket.AF_UNIX)
    try:
        line.connect(str(directory() / "agent.sock"))
    except OSError as error:
        line.close()
        raise LabError("no lab is up; `lastmile lab up` starts one") from error
    return line


def run(argv: Sequence[str], sink: Sink, stdin: bytes = b"") -> int:
    """Run a command in the lab that is up and return its exit status. Raises LabError."""
    with contextlib.closing(connect()) as line:
        return Link(line).run(argv, sink, stdin=stdin)


def up(
    name: str, edges: str, kind: str, progress: Callable[[dict[str, Any]], None], *, secy: str = "auto"
) -> None:
    """Start a holder and wait until its lab is up. Raises LabError."""
    if (there := current()) is not None:
        raise LabError(f"{there.topology} is up already (pid {there.pid}); `lastmile lab down` ends it")
    topology.load(name)  # a wrong name is said before anything is started
    process = subprocess.Popen(
        [sys.executable, "-m", "router.lab.holder", name, edges, secy, kind],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    error = "it ended without a word"
    try:
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "ready":
                return
            if event["event"] == "error":
                error = event["text"]
            progress(event)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    process.wait()
    raise LabError(error)


def down() -> None:
    """End the lab that is up. Raises LabError where there is none."""
    there = current()
    if there is None:
        raise LabError("no lab is up")
    with contextlib.closing(connect()) as line:
        link = Link(line)
        link.send(op="down")
        with contextlib.suppress(LabError):  # the line closes when it is done
            link.receive(DOWN_TIMEOUT_S)
    deadline = time.monotonic() + DOWN_TIMEOUT_S
    while directory().exists():
        if time.monotonic() > deadline:
            raise LabError(f"the lab did not end within {DOWN_TIMEOUT_S:.0f} s; its process is {there.pid}")
        time.sleep(0.05)


def _keep(place: machine.Machine, plan: topology.Topology, edges: str, secy: str, kind: str) -> None:
    """Build the lab in the machine and leave it there. Raises LabError where it cannot be built."""
    argv = [sys.executable, "-m", "router.lab.keep", edges, secy, kind]
    environment = {"PYTHONPATH": str(Path(machine.__file__).parents[2])}
    plan_file = machine.WORK / "topology.json"
    store = ["sh", "-c", f"cat > {plan_file}"]
    place.link.run(store, lambda *_: None, stdin=plan.to_json().encode(), timeout_s=UP_TIMEOUT_S)
    lines = b""
    errors = b""
    place.link.send(op="spawn", id=KEEP_JOB, argv=argv, env=environment)
    deadline = time.monotonic() + UP_TIMEOUT_S
    while True:
        message = place.link.receive(max(0.0, deadline - time.monotonic()))
        if message is None:
            raise LabError(f"the lab was not up within {UP_TIMEOUT_S:.0f} s")
        if message["op"] == "exit":
            raise LabError(errors.decode(errors="replace").strip().splitlines()[-1] if errors else "it ended")
        if message["op"] != "out":
            continue
        data = base64.b64decode(message["data"])
        if message["fd"] == 2:
            errors += data
            continue
        *whole, lines = (lines + data).split(b"\n")
        for line in whole:
            sys.stdout.write(line.decode() + "\n")
            sys.stdout.flush()
            event = json.loads(line)
            if event["event"] == "built":
                return
            if event["event"] == "error":
                raise LabError(event["text"])


def main() -> int:
    """`python -m router.lab.holder TOPOLOGY EDGES SECY KIND`; events on standard output until it is up."""
    name, edges, secy, kind = sys.argv[1:5]

    def ended(*_: object) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, ended)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    place = directory()
    try:
        plan = topology.load(name).with_secy(secy)
        in_guest = tuple(edge.node for edge in plan.edges) if kind == "bridged" else ()
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        with machine.started("host" if kind == "bridged" else kind) as running:
            _keep(running, plan, edges, secy, kind)
            server = listen(place / "agent.sock")
            facts = Up(name, edges, kind, secy, plan.nodes, in_guest, plan.router, os.getpid(), time.time())
            (place / "lab.json").write_text(json.dumps(dataclasses.asdict(facts)))
            # Whoever started us has heard `ready` and is gone: nothing more is said.
            quiet = os.open(os.devnull, os.O_WRONLY)
            sys.stdout.write(json.dumps({"event": "ready"}) + "\n")
            sys.stdout.flush()
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            with server:
                Switchboard(running.link, server).serve()
    except LabError as error:
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.write(json.dumps({"event": "error", "text": str(error)}) + "\n")
            sys.stdout.flush()
        return 2
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

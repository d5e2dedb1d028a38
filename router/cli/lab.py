"""`lastmile lab`: the router with its branch, its provider's edges and a cloud, on this machine."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from router.errors import LabError

if TYPE_CHECKING:
    from rich.console import Console

SECYS = ("auto", "kernel", "fastpath")

app = typer.Typer(no_args_is_help=True, help="Bring up a whole lab, look into it, run scenarios.")

Edges = Annotated[str, typer.Option(help="The provider's edges: frr, bird or gobgp.")]
Json = Annotated[bool, typer.Option("--json", help="Print data instead of a table.")]
MachineKind = Annotated[
    str,
    typer.Option(
        "--machine",
        help="auto, host (namespaces of this kernel), guest (user-mode Linux) or bridged (edges in a guest).",
    ),
]


SecyKind = Annotated[
    str,
    typer.Option("--secy", help="Who does the router's MACsec: auto, kernel, or fastpath (its data plane)."),
]


def _console() -> Console:
    """Progress goes to standard error, so that standard output is the result and nothing else."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


@contextlib.contextmanager
def _environment(interrupted_is: str = "everything is removed") -> Iterator[None]:
    """A lab that cannot be built is a sentence and exit status 2; SIGTERM unwinds like Ctrl-C."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupted)
    try:
        yield
    except LabError as error:
        typer.echo(f"lastmile lab: {error}", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt:
        typer.echo(f"lastmile lab: interrupted; {interrupted_is}", err=True)
        raise typer.Exit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_secy(secy: str) -> None:
    if secy not in SECYS:
        raise LabError(f"--secy is {', '.join(SECYS)}, not {secy!r}")


def _print_json(data: Any) -> None:
    sys.stdout.write(json.dumps(data, indent=2) + "\n")


@app.command("list")
def list_(as_json: Json = False) -> None:
    """Show the scenarios and topologies there are."""
    from router.lab import topology
    from router.lab.scenario import all_scenarios

    with _environment():
        topologies = [(name, topology.load(name).about) for name in topology.names()]
    scenarios = all_scenarios()
    if as_json:
        _print_json(
            {
                "scenarios": [
                    {"name": s.name, "about": s.about, "topology": s.topology, "edges": list(s.edges)}
                    for s in scenarios
                ],
                "topologies": [{"name": name, "about": about} for name, about in topologies],
            }
        )
        return
    width = max(len(name) for name in [*(s.name for s in scenarios), *(n for n, _ in topologies)])
    typer.echo("Scenarios (lastmile lab run NAME...):")
    for scenario in scenarios:
        typer.echo(f"  {scenario.name:{width}}  {scenario.about} [{', '.join(scenario.edges)}]")
    typer.echo("Topologies (lastmile lab up NAME):")
    for name, about in topologies:
        typer.echo(f"  {name:{width}}  {about}")


@app.command()
def run(  # noqa: PLR0917 - options, by name
    scenarios: Annotated[list[str], typer.Argument(help="Names from `lab list`, or `all`.")],
    edges: Edges = "",
    machine: MachineKind = "auto",
    secy: SecyKind = "auto",
    capture: Annotated[
        Path | None, typer.Option(help="Keep whole captures, a pcapng per wire, in this directory.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run scenarios: live progress, then a table (or data) of what was seen.

    Exit status 0: every check holds; 1: one does not; 2: the lab could not be built.
    """
    from rich.console import Console

    from router.lab import detect, runner
    from router.lab.scenario import all_scenarios, find

    console = _console()
    with _environment():
        chosen = list(all_scenarios()) if scenarios == ["all"] else [find(name) for name in scenarios]
        for scenario in chosen:
            if edges and edges not in scenario.edges:
                raise LabError(
                    f"{scenario.name} runs with {' or '.join(scenario.edges)} edges, not with {edges!r}"
                )
        _check_secy(secy)
        outcomes = []
        for scenario in chosen:
            who = scenario.secy if secy == "auto" else secy
            together = scenario.looks_at_both_ends
            kind, reason = detect.choose(
                "bridged" if scenario.bridged else machine, "auto" if together else who
            )
            console.print(reason)
            kept = capture / scenario.name if capture and len(chosen) > 1 else capture
            outcome = runner.run(scenario, edges or scenario.edges[0], kind, console, kept, secy=who)
            outcomes.append(outcome)
            if not as_json:
                runner.show(outcome, Console(highlight=False))
        if as_json:
            data = [outcome.report.to_data() for outcome in outcomes]
            _print_json(data[0] if len(data) == 1 else data)
    raise typer.Exit(max(outcome.code for outcome in outcomes))


@app.command()
def up(
    topology: Annotated[str, typer.Argument(help="A name from `lab list`.")] = "four-channels",
    edges: Edges = "frr",
    machine: MachineKind = "auto",
    secy: SecyKind = "auto",
) -> None:
    """Bring a lab up and leave it running; `lab exec` reaches into it, `lab down` ends it."""
    from router.lab import detect, holder, runner
    from router.lab.farend import KINDS

    console = _console()
    with _environment():
        if edges not in KINDS:
            raise LabError(f"there are no edges {edges!r}; there are {', '.join(KINDS)}")
        _check_secy(secy)
        kind, reason = detect.choose(machine, secy)
        console.print(reason)
        holder.up(topology, edges, kind, runner.Progress(console), secy=secy)
        console.print(
            f"{topology} is up. Look: lastmile lab status; lastmile lab exec r -- ip route; lastmile lab down"
        )


@app.command()
def down() -> None:
    """End the lab that is up; nothing of it stays."""
    from router.lab import holder

    with _environment():
        holder.down()


@app.command()
def status(as_json: Json = False) -> None:
    """Show the lab that is up, and its router's channels. Exit status 1 where none is up."""
    from router.lab import holder
    from router.lab.machine import WORK

    with _environment():
        there = holder.current()
        if there is None:
            if as_json:
                _print_json({"up": False})
            else:
                typer.echo("no lab is up")
            raise typer.Exit(1)
        argv = [sys.executable, "-m", "router.cli.main", "status", "--run-dir", str(WORK / _ROUTER_RUN)]
        out: list[bytes] = []
        code = holder.run(
            [*argv, *(["--json"] if as_json else [])], lambda fd, data: out.append(data) if fd == 1 else None
        )
        text = b"".join(out).decode(errors="replace")
        facts = {
            "topology": there.topology,
            "edges": there.edges,
            "machine": there.machine,
            "secy": there.secy,
            "nodes": list(there.nodes),
        }
        if as_json:
            try:
                router = json.loads(text)
            except ValueError:
                router = None
            _print_json({"up": True, **facts, "since": there.since, "router": router})
        else:
            typer.echo(
                f"{there.topology} with {there.edges} edges ({there.machine}, secy {there.secy}),"
                f" nodes {', '.join(there.nodes)}"
            )
            typer.echo(text.rstrip() or "the router does not answer yet")
    raise typer.Exit(code)


_ROUTER_RUN: Final = Path("router/run")
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@app.command("exec")
def exec_(
    node: Annotated[str, typer.Argument(help="A node of the lab, as `lab status` lists them.")],
    command: Annotated[list[str], typer.Argument(help="The command, after `--`.")],
) -> None:
    """Run a command in a node of the lab that is up; its exit status is ours."""
    from router.lab import holder
    from router.lab.lab import EDGES_SOCKET
    from router.lab.machine import WORK

    def sink(descriptor: int, data: bytes) -> None:
        stream = sys.stdout if descriptor == 1 else sys.stderr
        stream.buffer.write(data)
        stream.flush()

    with _environment("the lab is still up"):
        there = holder.current()
        if there is None:
            raise LabError("no lab is up; `lastmile lab up` starts one")
        if node not in there.nodes:
            raise LabError(f"there is no node {node!r}; there are {', '.join(there.nodes)}")
        stdin = b"" if sys.stdin.isatty() else sys.stdin.buffer.read()
        # `lastmile` is found, and finds the router, as on a box where it is installed.
        environment = [
            f"PATH={Path(sys.executable).parent}:{_PATH}",
            f"LASTMILE_RUN_DIR={WORK / _ROUTER_RUN}",
        ]
        argv = ["env", *environment, "ip", "netns", "exec", node, *command]
        if node in there.in_guest:
            argv = [sys.executable, "-m", "router.lab.switchboard", str(EDGES_SOCKET), *argv]
        code = holder.run(argv, sink, stdin)
    raise typer.Exit(code)

"""The host's side of `lab run`: choose a machine, run the scenario in it, show what it reports."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from router.errors import LabError
from router.lab import machine, topology
from router.lab.report import Report, name_with_unit
from router.lab.scenario import Scenario

if TYPE_CHECKING:
    from rich.console import Console

GRACE_S: Final = 60.0
"""Beyond a scenario's own time: build, far ends' start, reading captures."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A scenario's report and the exit status of the command that ran it: 0 ok, 1 not ok."""

    report: Report
    seconds: float

    @property
    def code(self) -> int:
        """Exit status."""
        return 0 if self.report.ok else 1


class Progress:
    """Lines on standard error while a scenario runs."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __call__(self, event: dict[str, Any]) -> None:
        """Show one event."""
        from rich.markup import escape

        at = f"[dim]{event.get('at', 0.0):6.1f}s[/]"
        match event["event"]:
            case "progress":
                self._console.print(f"{at}    {escape(event['text'])}", soft_wrap=True)
            case "check":
                mark = "[green]ok[/]" if event["ok"] else "[red]FAIL[/]"
                detail = f"  [dim]{escape(event['detail'])}[/]" if event["detail"] else ""
                self._console.print(f"{at} {mark} {escape(event['name'])}{detail}", soft_wrap=True)
            case "figure":
                self._console.print(
                    f"{at}    {escape(event['name'])} = {event['value']} {event['unit']}", soft_wrap=True
                )
            case "note":
                self._console.print("\n" + escape(event["text"]), highlight=False, soft_wrap=True)
            case _:
                pass


def run(
    scenario: Scenario,
    edges: str,
    kind: str,
    console: Console,
    capture: Path | None = None,
    *,
    secy: str = "auto",
) -> Outcome:
    """Run one scenario. Raises LabError where the lab cannot be built; never for a failed check."""
    start = time.monotonic()
    plan = scenario.edit(topology.load(scenario.topology), secy)
    progress = Progress(console)
    report = Report(scenario.name, progress)
    keep = "drop"
    if capture is not None:
        capture.mkdir(parents=True, exist_ok=True)
        keep = "keep"
    console.print(f"[bold]{scenario.name}[/] with {edges} edges: {scenario.about}")
    rest = b""
    stderr = b""
    errors: list[str] = []

    def sink(descriptor: int, data: bytes) -> None:
        nonlocal rest, stderr
        if descriptor == 2:
            stderr += data
            return
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            event = json.loads(line)
            if event["event"] == "error":
                errors.append(event["text"])
            elif event["event"] == "progress":
                report.progress(event["text"])
            else:
                report.take(event)

    with machine.started(
        "host" if kind == "bridged" else kind, capture.resolve() if capture else None
    ) as place:
        report.progress("the lab's machine is up" if kind == "guest" else "namespaces are ready")
        argv = [sys.executable, "-m", "router.lab.scenario", scenario.name, edges, keep, secy, kind]
        try:
            code = place.link.run(
                argv,
                sink,
                stdin=plan.to_json().encode(),
                env={"PYTHONPATH": str(Path(machine.__file__).parents[2])},
                timeout_s=scenario.timeout_s + GRACE_S,
            )
        except LabError as error:
            report.check("the scenario ran to its end", False, str(error))
            code = 1
    if code == 2:
        raise LabError(
            errors[0] if errors else stderr.decode(errors="replace").strip() or "the lab could not be built"
        )
    if not report.finished and not any(not check.ok for check in report.checks):
        report.check("the scenario ran to its end", False, stderr.decode(errors="replace").strip()[-2000:])
    return Outcome(report, time.monotonic() - start)


def show(outcome: Outcome, console: Console) -> None:
    """Print the final table."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    report = outcome.report
    table = Table(
        title=f"{report.scenario}: {'ok' if report.ok else 'FAILED'}",
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    table.add_column("check")
    table.add_column("")
    table.add_column("seen", overflow="fold")
    for check in report.checks:
        table.add_row(
            escape(check.name), "[green]ok[/]" if check.ok else "[red]FAIL[/]", escape(check.detail)
        )
    console.print(table)
    figures = Table(box=None, show_header=False, pad_edge=False)
    for figure in report.figures.values():
        figures.add_row(escape(name_with_unit(figure)), f"{figure.value} {figure.unit}")
    console.print(figures)
    good = sum(check.ok for check in report.checks)
    console.print(f"{good} of {len(report.checks)} checks hold; {outcome.seconds:.0f} s in all")

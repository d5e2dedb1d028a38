"""What a scenario found: checks and figures, as they come and at the end.

A scenario runs inside the machine and reports in events, one JSON object per line, so that what
was seen is known on the host even when the scenario or the machine dies in the middle.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Emit = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must be true, and what was seen."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Figure:
    """One thing that was measured."""

    name: str
    value: float | str
    unit: str


@dataclass
class Report:
    """A scenario's findings. `ok` needs every check to hold, at least one check, and an end."""

    scenario: str
    emit: Emit = lambda _: None
    checks: list[Check] = field(default_factory=list)
    figures: dict[str, Figure] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What helps to understand a failure: log tails, status."""
    when_failed: Callable[[], None] | None = None
    """Called after a check that does not hold, while its cause can still be seen; it may add notes."""
    finished: bool = False
    started: float = field(default_factory=time.monotonic)

    def check(self, name: str, ok: object, detail: str = "") -> bool:
        """Record that `name` holds or does not; `detail` says what was seen."""
        self.checks.append(Check(name, bool(ok), detail))
        self.emit({"event": "check", "name": name, "ok": bool(ok), "detail": detail, "at": self._at()})
        if not ok and self.when_failed is not None:
            self.when_failed()
        return bool(ok)

    def figure(self, name: str, value: float | str, unit: str = "") -> None:
        """Record a measured value; `unit` is part of how it is shown, and of the name in JSON."""
        self.figures[name] = Figure(name, value, unit)
        self.emit({"event": "figure", "name": name, "value": value, "unit": unit, "at": self._at()})

    def progress(self, text: str) -> None:
        """Say what happens now."""
        self.emit({"event": "progress", "text": text, "at": self._at()})

    def note(self, text: str) -> None:
        """Keep something that helps to understand a failure."""
        self.notes.append(text)
        self.emit({"event": "note", "text": text, "at": self._at()})

    def finish(self) -> None:
        """Say that the scenario ran to its end."""
        self.finished = True
        self.emit({"event": "finish", "at": self._at()})

    def take(self, event: dict[str, Any]) -> None:
        """Add an event that a report on the other side emitted."""
        if event["event"] == "check":
            self.check(event["name"], event["ok"], event["detail"])
        elif event["event"] == "figure":
            self.figure(event["name"], event["value"], event["unit"])
        elif event["event"] == "note":
            self.note(event["text"])
        elif event["event"] == "finish":
            self.finish()

    @property
    def ok(self) -> bool:
        """The verdict."""
        return self.finished and bool(self.checks) and all(check.ok for check in self.checks)

    def to_data(self) -> dict[str, Any]:
        """The documented JSON shape."""
        return {
            "scenario": self.scenario,
            "ok": self.ok,
            "checks": [{"name": c.name, "ok": c.ok, "detail": c.detail} for c in self.checks],
            "figures": {name_with_unit(f): f.value for f in self.figures.values()},
        }

    def _at(self) -> float:
        return round(time.monotonic() - self.started, 2)


def name_with_unit(figure: Figure) -> str:
    """A figure's key in JSON: its name, and its unit where it has one (`start_to_up_s`)."""
    units = {"ms": "ms", "s": "s", "Mbit/s": "mbps", "MB": "mb", "": ""}
    suffix = units.get(figure.unit, figure.unit)
    return f"{figure.name}_{suffix}" if suffix else figure.name


def to_line(event: dict[str, Any]) -> str:
    """One event as it crosses from the machine to the host."""
    return json.dumps(event)

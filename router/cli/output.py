"""What every verb shares: options, exit codes, tables, and errors as sentences.

Exit codes: 0 as asked; 1 the answer is no (a refused configuration, a channel that is not up, a
scenario that failed); 2 the question could not be put (usage, no such file, no router, no root).
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer

EXIT_NO: Final = 1
EXIT_USAGE: Final = 2
LINE_MAX: Final = 400
"""Characters. Tables are as wide as they are: an ellipsis in a name or a key helps nobody."""

Json = Annotated[bool, typer.Option("--json", "-j", help="Print data instead of a table.")]
RunDir = Annotated[
    Path,
    typer.Option("--run-dir", envvar="LASTMILE_RUN_DIR", help="Where the router keeps its sockets."),
]
StateDir = Annotated[
    Path,
    typer.Option("--state-dir", envvar="LASTMILE_STATE_DIR", help="What survives a reboot."),
]
ConfigFile = Annotated[Path, typer.Argument(metavar="FILE", help="The configuration file.")]
DEFAULT_RUN_DIR: Final = Path("/run/lastmile")
DEFAULT_STATE_DIR: Final = Path("/var/lib/lastmile")


def print_json(data: Any) -> None:
    """Print one JSON document."""
    typer.echo(json.dumps(data, indent=2))


def fail(message: str, code: int = EXIT_USAGE) -> NoReturn:
    """End with one sentence on standard error."""
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(code)


def need_root(what: str) -> None:
    """End with a sentence where we are not root."""
    if os.geteuid() != 0:
        fail(f"{what} needs root: it changes links, routes and keys")


def ago(since: float | None, now: float | None = None) -> str:
    """Print how long ago `since` (seconds since the epoch) was, as `3d04h`, `2h05m`, `5m12s` or `8s`."""
    if since is None or since <= 0:
        return "-"
    seconds = max(0, int((time.time() if now is None else now) - since))
    minutes, s = divmod(seconds, 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days}d{h:02}h"
    if hours:
        return f"{h}h{m:02}m"
    return f"{m}m{s:02}s" if minutes else f"{s}s"

"""The accepted configuration: what the router's processes run on, whatever the file says by now.

An operator may save a broken file and a process may die a minute later; it must come back on
what was last accepted. So acceptance is a copy in the run directory: `accepted.yaml`, the text
as it was, and `accepted.path`, the file that it came from (references in it are relative to that
file's directory).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from router.config.load import Loaded


def _replace(path: Path, text: str) -> None:
    """Write whole or not at all."""
    fresh = path.with_name(path.name + ".new")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)


def accept(run_dir: Path, path: Path, text: str) -> None:
    """Remember `text`, loaded from `path` and found good. Raises OSError."""
    _replace(run_dir / "accepted.path", str(path))
    _replace(run_dir / "accepted.yaml", text)


def accepted_path(run_dir: Path) -> Path:
    """Return the file that the accepted configuration came from. Raises OSError."""
    return Path((run_dir / "accepted.path").read_text())


def load_accepted(run_dir: Path) -> Loaded:
    """Load the accepted configuration. Raises OSError, ConfigErrors."""
    from router.config.load import load_text

    path = accepted_path(run_dir)
    return load_text((run_dir / "accepted.yaml").read_text(), str(path), base_dir=path.parent)

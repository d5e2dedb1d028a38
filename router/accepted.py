"""The accepted configuration: what the router's processes run on, whatever the file says by now.

An operator may save a broken file and a process may die a minute later; it must come back on
what was last accepted. So acceptance is a copy in the run directory, three files, mode 0600:

    accepted.path    the file it came from (references in it are relative to that file's directory)
    accepted.yaml    its text, as it was
    accepted.bin     the effective configuration, pickled, headed by a digest of the two above

The last one spares the daemons the parser, the schema and the checks: a second of start-up and
25 MB each. Where it is missing, or of another version, or of another text, the text is loaded.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path
from typing import Final

from router import __version__
from router.config.effective import EffectiveConfig

_DIGEST_SIZE: Final = 32


def _replace(path: Path, octets: bytes) -> None:
    """Write whole or not at all."""
    fresh = path.with_name(path.name + ".new")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(octets)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)


def _digest(path: Path, text: str) -> bytes:
    return hashlib.sha256(f"{__version__}\0{path}\0{text}".encode()).digest()


def accept(run_dir: Path, path: Path, text: str, config: EffectiveConfig) -> None:
    """Remember `text`, loaded from `path` and found to mean `config`. Raises OSError."""
    _replace(run_dir / "accepted.path", str(path).encode())
    _replace(run_dir / "accepted.bin", _digest(path, text) + pickle.dumps(config))
    _replace(run_dir / "accepted.yaml", text.encode())


def accepted_path(run_dir: Path) -> Path:
    """Return the file that the accepted configuration came from. Raises OSError."""
    return Path((run_dir / "accepted.path").read_text())


def load_accepted(run_dir: Path) -> EffectiveConfig:
    """Load the accepted configuration. Raises OSError, ConfigErrors."""
    path = accepted_path(run_dir)
    text = (run_dir / "accepted.yaml").read_text()
    try:
        cached = (run_dir / "accepted.bin").read_bytes()
    except OSError:
        cached = b""
    if cached[:_DIGEST_SIZE] == _digest(path, text):
        config = pickle.loads(cached[_DIGEST_SIZE:])  # noqa: S301 - written by us, for root only
        assert isinstance(config, EffectiveConfig)
        return config
    from router.config.load import load_text

    return load_text(text, str(path), base_dir=path.parent).effective

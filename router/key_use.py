"""Since when each channel uses the key that it uses, in a file of the state directory.

The key daemon writes it, `lastmile keys` reads it: a key that comes into use by its start time, or
because another one failed, is a rotation too, and the bake time counts from it. It is on disk, so that
a restart forgets none.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Use:
    """The key of one channel."""

    ckn: str
    """In hex: the CAK that the SAK in use comes from."""
    since: float | None
    """Wall-clock time at which it took over from another key; None for a channel's first key."""


class KeyUse:
    """The keys in use by channel."""

    FILE: ClassVar = "keys-in-use.json"

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._uses: dict[str, Use] = {}

    def load(self) -> None:
        """Read the file, if there is one. Raises OSError, and ValueError where it is damaged."""
        if self._path is None:
            return
        try:
            data = json.loads(self._path.read_text())
            self._uses = {
                str(name): Use(str(use["ckn"]), None if use["since"] is None else float(use["since"]))
                for name, use in data.items()
            }
        except FileNotFoundError:
            return
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no list of keys in use ({error})") from error

    def note(self, channel: str, ckn: bytes, wall: float) -> bool:
        """Remember which key a channel uses now; tell whether it is another one. Raises OSError."""
        before = self._uses.get(channel)
        if before is not None and before.ckn == ckn.hex():
            return False
        self._uses[channel] = Use(ckn.hex(), None if before is None else wall)
        self._save()
        return before is not None

    def rotated_at(self, channel: str) -> float:
        """When a channel last went over from one key to another; minus infinity for never."""
        use = self._uses.get(channel)
        return float("-inf") if use is None or use.since is None else use.since

    def _save(self) -> None:
        if self._path is None:
            return
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = self._path.with_name(self._path.name + ".new")
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w") as file:
            json.dump({name: asdict(use) for name, use in self._uses.items()}, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(self._path)

"""Two equal processes, one of which works: a lock decides, and the kernel passes it on.

    keyd-a   holds RUN_DIR/keyd.lock, works ---X
    keyd-b   waits in flock(2) ----------------> works       keyd-a, started again, waits

What waits has loaded its program and nothing else: it has read no key, listens nowhere and costs no
processor time. The lock is the kernel's, so it is free the moment its holder is gone, however it
went, and nobody has to find out that it is dead. Standard library only.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final, Literal

KEYD_LOCK: Final = "keyd.lock"

Role = Literal["active", "spare"]


def wait_for_turn(path: Path) -> int:
    """Block until this process is the one that works; return the lock's descriptor. Raises OSError.

    Closing it, or ending in any way, lets the other one go on.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def roles(path: Path) -> dict[int, Role]:
    """Say by process id who holds the lock and who waits for it; a process that still loads does neither."""
    try:
        inode = path.stat().st_ino
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return {}
    found: dict[int, Role] = {}
    for line in lines:
        # 2: FLOCK  ADVISORY  WRITE 4711 00:18:1234 0 EOF, and a "->" before the kind of what waits.
        words = line.split()
        waits = words[1] == "->"
        kind, _, _, pid, place = words[1 + waits : 6 + waits]
        if kind == "FLOCK" and place.rpartition(":")[2] == str(inode):
            found[int(pid)] = "spare" if waits else "active"
    return found

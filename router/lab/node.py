"""A node: a network namespace to run programs in and to open sockets in.

One thread can hold sockets of many namespaces: a socket keeps the one it was opened in. That is
how one Python process probes from the branch, answers in the cloud and reads counters on the
router, where starting a process costs the guest a tenth of a second and an interpreter half a one.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from router.errors import LabError

CLONE_NEWNET: Final = 0x40000000
STOP_TIMEOUT_S: Final = 10.0


@contextlib.contextmanager
def _namespace(path: Path) -> Iterator[None]:
    """Put this thread into the namespace at `path` for the length of a block."""
    setns = ctypes.CDLL(None, use_errno=True).setns
    with Path("/proc/thread-self/ns/net").open("rb") as home, path.open("rb") as there:
        if setns(there.fileno(), CLONE_NEWNET):
            raise LabError(f"cannot enter {path}: {os.strerror(ctypes.get_errno())}")
        try:
            yield
        finally:
            if setns(home.fileno(), CLONE_NEWNET):
                os._exit(70)  # a thread lost in a namespace would probe the wrong network


class Node:
    """One namespace, by its name in /run/netns."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._path = Path("/run/netns") / name

    def inside(self) -> contextlib.AbstractContextManager[None]:
        """This thread inside the namespace: open sockets, read /proc/thread-self/net."""
        return _namespace(self._path)

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """Open a socket there."""
        with self.inside():
            return socket.socket(family, kind, protocol)

    def command(self, argv: Sequence[str]) -> list[str]:
        """`argv` as it is run there."""
        return ["ip", "netns", "exec", self.name, *argv]

    def run(self, *argv: str, stdin: str = "", check: bool = True, timeout_s: float = 30.0) -> str:
        """Run a program there to its end and return what it printed. Raises LabError where it fails."""
        return run(self.command(argv), stdin=stdin, check=check, timeout_s=timeout_s)

    def ip(self, *arguments: str) -> Any:
        """Return what `ip -j ARGUMENTS` says there."""
        text = run(["ip", "-n", self.name, "-j", *arguments])
        return json.loads(text) if text.strip() else []

    def batch(self, lines: Sequence[str], *, force: bool = False) -> None:
        """Run `ip` commands there, from its input: keys among them stay out of every argument list."""
        options = ["-force"] if force else []
        run(["ip", "-n", self.name, *options, "-batch", "-"], stdin="\n".join(lines) + "\n", check=not force)

    def sysctl(self, **values: int | str) -> None:
        """Set network sysctls: `ipv4__ip_forward=1`, two underscores for a slash."""
        with self.inside():
            for key, value in values.items():
                Path("/proc/sys/net", key.replace("__", "/")).write_text(str(value))

    def packets(self) -> dict[str, tuple[int, int]]:
        """Packets received and sent by each device."""
        with self.inside():
            lines = Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]
        fields = (line.replace(":", " ").split() for line in lines)
        return {f[0]: (int(f[2]), int(f[10])) for f in fields}

    def start(
        self, argv: Sequence[str], log: Path, env: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a program there that keeps running; its output goes to `log`."""
        with log.open("ab") as out:
            return subprocess.Popen(
                self.command(argv),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                env={**os.environ, **(env or {})},
            )


def run(argv: Sequence[str], *, stdin: str = "", check: bool = True, timeout_s: float = 30.0) -> str:
    """Run a program to its end and return its standard output. Raises LabError."""
    try:
        done = subprocess.run(
            argv,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            errors="replace",
        )
    except FileNotFoundError as error:
        raise LabError(f"{argv[0]} is not installed; `make setup` installs it") from error
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{' '.join(argv)} did not end within {timeout_s:.0f} s") from error
    if check and done.returncode:
        raise LabError(f"{' '.join(argv)}: {done.stderr.strip() or f'exit {done.returncode}'}")
    return done.stdout


def stop(process: subprocess.Popen[bytes], timeout_s: float = STOP_TIMEOUT_S) -> int:
    """End a started program: SIGTERM, and SIGKILL after `timeout_s`. Returns its exit status."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()

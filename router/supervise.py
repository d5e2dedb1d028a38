"""The supervisor: starts the router's processes, restarts what dies, and knows nothing else.

Standard library only, so that it costs 12 MB and has nothing to crash on. `lastmile run` turns
into it; on a box with systemd, units do the same. Two kinds of children:

* fixed: `keyd-a` and `keyd-b` (one works, the other is its spare: `router.standby`) and `routerd`,
  for as long as the router runs;
* dynamic: what routerd asks for (ExaBGP, a process a site; the data plane where one is used). routerd sends the whole wanted set;
  the supervisor compares it with what runs. So a routerd that dies and comes back asks for what
  is there, and nothing happens to it.

A child that dies is restarted at once, then with a delay that doubles up to `RESTART_MAX_S` and
is forgiven after `STABLE_S`. Children die with the supervisor (PR_SET_PDEATHSIG): two routers
on one set of ports are worse than none, and the kernel goes on forwarding meanwhile.

A child with a `user` runs without capabilities and cannot gain any. Where that user could not
reach the program (a checkout under a home directory of mode 0700), the child gets a mount
namespace in which an empty, readable directory covers the closed one and only the program's own
directories are bound back into it, read-only: what systemd calls ProtectHome=tmpfs.

Protocol on RUN_DIR/supervisor.sock: one JSON object a line, one answer a line.
    {"children": [{"name", "argv", "env", "user"}, ...]}    the wanted dynamic set
    {"signal": ["name", "SIGUSR1"]}                         to one child
    {"list": true}                                          name -> pid, restarts, since, last exit
Every answer is {"ok": true, ...} or {"ok": false, "error": "..."}.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import fcntl
import json
import os
import pwd
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

RESTART_MIN_S: Final = 0.1
RESTART_MAX_S: Final = 5.0
STABLE_S: Final = 10.0
STOP_GRACE_S: Final = 5.0
SHUTDOWN_GRACE_S: Final = 10.0
KEYD_CHILDREN: Final = ("keyd-a", "keyd-b")
"""Two equal key daemons: which of them works changes with every death."""
DATAPLANE: Final = "dataplane"
"""The dynamic child that BGP's last words still need."""

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38
_CLONE_NEWNS: Final = 0x00020000
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """A process to keep running. Two equal specs are the same process: nothing is restarted."""

    name: str
    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    """Added to the supervisor's own environment. Never a secret."""
    user: str | None = None
    """Unprivileged user to run as; None keeps the supervisor's."""

    def to_json(self) -> dict[str, Any]:
        """The form it has on the supervisor's socket."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ChildSpec:
        """The inverse of `to_json`. Raises TypeError, ValueError."""
        argv = tuple(data["argv"])
        if not argv or not all(isinstance(word, str) for word in argv):
            raise ValueError("argv must be a list of strings")
        return cls(str(data["name"]), argv, dict(data.get("env") or {}), data.get("user"))


def _libc_call(libc: ctypes.CDLL, name: str, *args: object) -> None:
    if getattr(libc, name)(*args) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def closed_ancestor(path: str, uid: int, gids: set[int]) -> str | None:
    """Return the first directory above `path` that the user may not pass, or None."""
    for parent in [*reversed(Path(path).resolve().parents), Path(path).resolve()]:
        info = parent.stat()
        if not stat.S_ISDIR(info.st_mode):
            continue
        if info.st_uid == uid:
            bit = stat.S_IXUSR
        elif info.st_gid in gids:
            bit = stat.S_IXGRP
        else:
            bit = stat.S_IXOTH
        if not info.st_mode & bit:
            return str(parent)
    return None


def _open_way(libc: ctypes.CDLL, needed: Sequence[str], uid: int, gids: set[int]) -> None:
    """In a new mount namespace, make `needed` directories reachable for the user, read-only."""
    closed: dict[str, list[str]] = {}
    for path in needed:
        if ancestor := closed_ancestor(path, uid, gids):
            closed.setdefault(ancestor, []).append(str(Path(path).resolve()))
    if not closed:
        return
    _libc_call(libc, "unshare", _CLONE_NEWNS)
    _libc_call(libc, "mount", b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
    for ancestor, reals in closed.items():
        # Held open in this namespace: a bind across mount namespaces is refused.
        paths = [(real, os.open(real, os.O_PATH)) for real in reals]
        _libc_call(libc, "mount", b"tmpfs", ancestor.encode(), b"tmpfs", 0, b"mode=755,size=64k")
        for real, fd in paths:
            Path(real).mkdir(parents=True, exist_ok=True)
            target = real.encode()
            source = f"/proc/self/fd/{fd}".encode()
            _libc_call(libc, "mount", source, target, None, _MS_BIND | _MS_REC, None)
            with suppress(OSError):  # a file system that cannot be remounted stays as it is
                _libc_call(libc, "mount", b"none", target, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY, None)
            os.close(fd)


def _program_directories(argv: Sequence[str]) -> list[str]:
    """List the directories that a child needs to read to run our interpreter and packages."""
    ours = str(Path(__file__).resolve().parent)
    found = {sys.prefix, sys.base_prefix, ours}
    found.update(str(Path(word).parent) for word in argv[:1] if "/" in word)
    return sorted(found)


def _before_exec(spec: ChildSpec) -> Callable[[], None]:
    """Prepare what runs in the child between fork and exec."""
    libc = ctypes.CDLL(None, use_errno=True)
    account = pwd.getpwnam(spec.user) if spec.user else None
    needed = _program_directories(spec.argv)

    def prepare() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if account is None or os.geteuid() != 0:
            return
        try:
            _open_way(libc, needed, account.pw_uid, {account.pw_gid})
        except OSError as error:  # Popen would only say that something went wrong in here
            os.write(2, f"{spec.name}: {error}\n".encode())
            raise
        os.setgroups([])
        os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
        os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)  # setresuid cleared it

    return prepare


class Child:
    """One running process and its restarts. `run()` ends when the child is stopped for good."""

    def __init__(self, spec: ChildSpec, report: Callable[[str], None]) -> None:
        self.spec = spec
        self.restarts = 0
        self.since = 0.0
        self.last_exit = ""
        self._report = report
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def run(self) -> None:
        """Start, wait, restart; until `stop()`."""
        delay = 0.0
        while not self._stopping.is_set():
            if delay:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), delay)
                if self._stopping.is_set():
                    return
            started = time.monotonic()
            try:
                self._start()
            except (OSError, subprocess.SubprocessError) as error:
                self.last_exit = f"not started: {error}"
            else:
                await self._ended()
            if self._stopping.is_set():
                return
            ran_s = time.monotonic() - started
            delay = RESTART_MIN_S if ran_s > STABLE_S else min(max(delay * 2, RESTART_MIN_S), RESTART_MAX_S)
            self.restarts += 1
            self._report(f"{self.spec.name}: {self.last_exit} after {ran_s:.1f} s, again in {delay:.1f} s")

    def _start(self) -> None:
        self._process = subprocess.Popen(
            self.spec.argv,
            env={**os.environ, **self.spec.env},
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for us; we tell the children in order
            preexec_fn=_before_exec(self.spec),  # noqa: PLW1509 - one thread here
            close_fds=True,
        )
        self.since = time.time()

    async def _ended(self) -> None:
        process = self._process
        assert process is not None
        pidfd = os.pidfd_open(process.pid)
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(pidfd, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)
        code = process.wait()
        self.last_exit = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"

    def signal(self, number: signal.Signals) -> None:
        """Send a signal if it runs."""
        if self.pid is not None:
            os.kill(self.pid, number)

    def stop(self) -> None:
        """Do not restart any more, and ask it to end."""
        self._stopping.set()
        self.signal(signal.SIGTERM)


class Supervisor:
    """Keeps fixed and dynamic children; serves RUN_DIR/supervisor.sock."""

    def __init__(self, run_dir: Path, fixed: Sequence[ChildSpec]) -> None:
        self._run_dir = run_dir
        self._fixed = {spec.name for spec in fixed}
        self._initial = fixed
        self._children: dict[str, Child] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stop = asyncio.Event()
        self.release = False

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT; then end the children in order."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._signal("routerd", signal.SIGHUP))
        path = self._run_dir / "supervisor.sock"
        path.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(self._serve, path)
        path.chmod(0o600)
        for spec in self._initial:
            self._add(spec)
        async with server:
            await self._stop.wait()
        await self._shut_down()
        path.unlink(missing_ok=True)

    def _add(self, spec: ChildSpec) -> None:
        child = Child(spec, self._say)
        self._children[spec.name] = child
        self._tasks[spec.name] = asyncio.create_task(child.run(), name=spec.name)

    async def _end(self, name: str) -> None:
        child, task = self._children.pop(name), self._tasks.pop(name)
        child.stop()
        done, _ = await asyncio.wait([task], timeout=STOP_GRACE_S)
        if not done:
            child.signal(signal.SIGKILL)
            await task

    async def _shut_down(self) -> None:
        """Tell the peers first (routerd withdraws), then end BGP, then the keys and the data plane."""
        routerd = self._children.get("routerd")
        if routerd is not None and routerd.pid is not None:
            with suppress(OSError, TimeoutError):
                await asyncio.wait_for(self._ask_routerd(), SHUTDOWN_GRACE_S)
        order = [name for name in self._children if name not in {*self._fixed, DATAPLANE}]
        first = [name for name in ("routerd",) if name in self._children]
        rest = [name for name in self._children if name not in {*first, *order}]
        for names in (first, order, rest):
            await asyncio.gather(*(self._end(name) for name in names))

    async def _ask_routerd(self) -> None:
        reader, writer = await asyncio.open_unix_connection(self._run_dir / "control.sock")
        body = json.dumps({"release": self.release}).encode()
        writer.write(
            b"POST /v1/shutdown HTTP/1.1\r\nHost: lastmile\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        await writer.drain()
        await reader.read()
        writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while line := await reader.readline():
                try:
                    answer = {"ok": True, **await self._do(json.loads(line))}
                except (ValueError, KeyError, TypeError) as error:
                    answer = {"ok": False, "error": f"{type(error).__name__}: {error}"}
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        writer.close()

    async def _do(self, request: dict[str, Any]) -> dict[str, Any]:
        if "children" in request:
            wanted = {spec.name: spec for spec in map(ChildSpec.from_json, request["children"])}
            if self._fixed & wanted.keys():
                raise ValueError(f"{sorted(self._fixed & wanted.keys())} are the supervisor's own")
            for name, child in list(self._children.items()):
                if name not in self._fixed and wanted.get(name) != child.spec:
                    await self._end(name)
            for name, spec in wanted.items():
                if name not in self._children:
                    self._add(spec)
            return {}
        if "signal" in request:
            name, number = request["signal"]
            self._signal(name, signal.Signals[number])
            return {}
        if "list" in request:
            return {
                "children": {
                    name: {
                        "pid": child.pid,
                        "restarts": child.restarts,
                        "since": child.since,
                        "last_exit": child.last_exit,
                    }
                    for name, child in self._children.items()
                }
            }
        if "stop" in request:
            self.release = bool(request.get("release"))
            self._stop.set()
            return {}
        raise ValueError("unknown request")

    def _signal(self, name: str, number: signal.Signals) -> None:
        if name not in self._children:
            raise KeyError(f"no child {name}")
        self._children[name].signal(number)

    @staticmethod
    def _say(text: str) -> None:
        print(json.dumps({"event": "supervisor.restart", "detail": text}), file=sys.stderr, flush=True)  # noqa: T201


async def ask(run_dir: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Send one request to the supervisor of `run_dir`. Raises OSError, and ValueError if refused."""
    reader, writer = await asyncio.open_unix_connection(run_dir / "supervisor.sock")
    try:
        writer.write(json.dumps(request).encode() + b"\n")
        await writer.drain()
        answer: dict[str, Any] = json.loads(await reader.readline())
    finally:
        writer.close()
    if not answer.pop("ok"):
        raise ValueError(answer["error"])
    return answer


def lock(run_dir: Path) -> int:
    """Take the one lock on `run_dir`. Raises BlockingIOError where a router runs there already."""
    fd = os.open(run_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return fd


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m router.supervise --config FILE --run-dir DIR --state-dir DIR`."""
    parser = argparse.ArgumentParser(prog="lastmile-supervise")
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("--run-dir", required=True, type=Path)
    parser.add_argument("--state-dir", required=True, type=Path)
    parser.add_argument("--release", action="store_true", help="remove what we made when stopping")
    options = parser.parse_args(argv)
    try:
        lock(options.run_dir)
    except BlockingIOError:
        print(f"error: a router runs in {options.run_dir} already", file=sys.stderr)  # noqa: T201
        return 1
    common = (
        f"--config={options.config}",
        f"--run-dir={options.run_dir}",
        f"--state-dir={options.state_dir}",
    )
    fixed = [
        *(ChildSpec(name, (sys.executable, "-m", "router.keyd", *common)) for name in KEYD_CHILDREN),
        ChildSpec("routerd", (sys.executable, "-m", "router.routerd", *common)),
    ]
    supervisor = Supervisor(options.run_dir, fixed)
    supervisor.release = options.release
    asyncio.run(supervisor.run())
    return 0


if __name__ == "__main__":
    sys.exit(main())

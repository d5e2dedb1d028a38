"""Where a lab runs: in namespaces of this kernel, or in a user-mode-Linux guest on the same files.

Both give a `Link` to an agent that is process 1 of its own world, so that ending that one process
ends everything the lab started: no namespace, device, daemon or mount is left, however the end
comes. What a killed command can leave is its private directory; `reap()` removes those of owners
that are gone.

The guest is Debian's `user-mode-linux`: Linux as an ordinary process, booted straight on the
host's file system (read only) in about two seconds, so that the same virtual environment, FRR and
BIRD are there. It brings its own MACsec, VLAN and VRF where the host's kernel has none.
"""

from __future__ import annotations

import compileall
import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import router
from router.errors import LabError
from router.lab import agent
from router.lab.link import Link

WORK: Final = Path("/run/lastmile-lab")
"""The lab's own tmpfs inside the machine: configuration, secrets, run directories, captures."""

RESULTS: Final = WORK / "results"
"""Where the host's results directory is mounted in the machine."""

BOOT_TIMEOUT_S: Final = 60.0
BYE_TIMEOUT_S: Final = 10.0
KILL_TIMEOUT_S: Final = 5.0

GUEST_MODULES: Final = (
    "gcm ctr ghash-generic cmac md5 veth 8021q macsec vrf bonding bridge ipv6 nf_tables nft_ct nft_reject_inet "
    "sch_netem sch_htb sch_tbf sch_fq_codel sch_ingress cls_matchall act_gact tun dummy"
)
GUEST_KERNEL: Final = "linux.uml"
GUEST_MEMORY: Final = 1 << 30
"""Upper bound in octets; the host pays for the pages that are used."""

PREFIX: Final = "lastmile-lab-"
PR_SET_PDEATHSIG: Final = 1


@dataclass(frozen=True, slots=True)
class GuestWire:
    """A TAP of the namespace `wires` that a guest has as its device `vecN`, N being its place."""

    tap: str
    mtu: int


@dataclass(frozen=True, slots=True)
class Machine:
    """A running world with an agent in it."""

    kind: str
    """`guest` or `host`."""
    link: Link
    process: subprocess.Popen[bytes]
    directory: Path
    """Private directory on the host: the console's log."""

    def close(self) -> None:
        """End it and everything in it; writes files out first unless it is already gone."""
        with contextlib.suppress(LabError):
            self.link.bye(BYE_TIMEOUT_S)
        self.kill()

    def kill(self) -> None:
        """End it at once, from its first process, so that `unshare` collects it and ends by itself."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        with contextlib.suppress(OSError):
            for child in children.read_text().split():
                os.kill(int(child), signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(KILL_TIMEOUT_S)
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


@contextlib.contextmanager
def started(kind: str, results: Path | None = None) -> Iterator[Machine]:
    """A machine of that kind (`guest` or `host`) for the length of a block."""
    machine = start(kind, results)
    try:
        yield machine
    except BaseException:
        machine.kill()
        raise
    machine.close()


def start(kind: str, results: Path | None = None, wires: Sequence[GuestWire] = ()) -> Machine:
    """Start a machine. `results` is a directory of the host that it may write to. Raises LabError.

    A guest can have `wires` to the namespace of that name of the kernel it runs on.
    """
    reap()
    directory = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=_scratch()))
    ours, theirs = socket.socketpair()
    link = Link(ours)
    try:
        with theirs, (directory / "console").open("wb") as console:
            command = (
                _guest(directory, theirs.fileno(), results, wires)
                if kind == "guest"
                else _host(theirs.fileno(), results)
            )
            process = _spawn(command, theirs.fileno(), console.fileno(), directory)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    machine = Machine(kind, link, process, directory)
    try:
        hello = link.receive(BOOT_TIMEOUT_S)
    except LabError:
        hello = None
    except BaseException:
        machine.kill()
        raise
    if hello is None or hello["op"] != "hello":
        log = (directory / "console").read_text(errors="replace").strip().splitlines()
        machine.kill()
        raise LabError("the lab's machine did not start: " + ("; ".join(log[-3:]) or "it said nothing"))
    return machine


def _spawn(command: list[str], line: int, console: int, directory: Path) -> subprocess.Popen[bytes]:
    """Start a machine's process; it dies with us, by the kernel's hand."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def die_with_parent() -> None:
        os.setsid()  # a terminal's Ctrl-C is ours to handle, in order
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            pass_fds=[line],
            env={**os.environ, "TMPDIR": str(_memory_directory()), "HOME": str(directory)},
            preexec_fn=die_with_parent,  # noqa: PLW1509 - only system calls, and there is no other thread
        )
    except FileNotFoundError as error:
        raise LabError(f"{command[0]} is not installed; `make setup` installs it") from error


def _contained(command: list[str], *extra: str) -> list[str]:
    """Run `command` in a process namespace where root can have one: its end is then everyone's end."""
    if os.geteuid():
        return command
    return ["unshare", *extra, "--pid", "--fork", "--kill-child", *command]


def _agent_command(line: str) -> list[str]:
    return [sys.executable, "-I", "-S", str(Path(agent.__file__).resolve()), line]


def _host(line: int, results: Path | None) -> list[str]:
    if os.geteuid():
        raise LabError("a lab in this kernel's namespaces needs root; use sudo, or --machine guest")
    # A private /run, so that not even an empty directory stays behind.
    mounts = [
        "mount -t tmpfs -o mode=0755 lab /run",
        "mount -t tmpfs -o mode=1777 lab /var/tmp",
        f"mkdir -p /run/netns {WORK}",
    ]
    if results is not None:
        mounts[:0] = [f"exec 9<{_quote(results)}"]
        mounts += [f"mkdir {RESULTS}", f"mount --bind /proc/self/fd/9 {RESULTS}", "exec 9<&-"]
    script = " && ".join([*mounts, 'exec "$@"'])
    inner = ["/bin/sh", "-c", script, "lab", *_agent_command(str(line))]
    return _contained(inner, "--mount", "--mount-proc", "--net")


def _guest(directory: Path, line: int, results: Path | None, wires: Sequence[GuestWire]) -> list[str]:
    kernel = shutil.which(GUEST_KERNEL)
    if kernel is None:
        raise LabError(
            f"{GUEST_KERNEL} is not installed (Debian package user-mode-linux); `make setup` installs it"
        )
    # The guest cannot write to the host's files, so it would compile every module anew.
    compileall.compile_dir(Path(router.__file__).parent, quiet=2)
    init = directory / "init"
    init.write_text(_init_script(results))
    init.chmod(0o700)
    # con0 is the kernel's own chatter, to a file; ssl0 is the agent's line.
    boot = f"mem={GUEST_MEMORY} root=/dev/root rootfstype=hostfs rootflags=/ ro init={init}".split()
    consoles = (
        f"con=null con0=null,fd:1 ssl=null ssl0=fd:{line} quiet uml_dir={directory}/ umid=guest".split()
    )
    vectors = [
        f"vec{number}:transport=tap,ifname={wire.tap},depth=64,mtu={wire.mtu}"
        for number, wire in enumerate(wires)
    ]
    where = ["ip", "netns", "exec", "wires"] if wires else []
    return _contained([*where, kernel, *boot, *vectors, *consoles])


def _init_script(results: Path | None) -> str:
    """What the guest's first process does before it becomes the agent."""
    hidden = {str(path) for path in _needed_directories() if path.parts[1:2] in {("tmp",), ("run",)}}
    again = [
        f"mkdir -p {_quote(p)} && mount -t hostfs -o {_quote(p)} none {_quote(p)}" for p in sorted(hidden)
    ]
    share = (
        [f"mkdir {RESULTS} && mount -t hostfs -o {_quote(results)} none {RESULTS}"]
        if results is not None
        else []
    )
    return "\n".join(
        [
            "#!/bin/sh",
            "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp",
            "mount -t proc proc /proc; mount -t sysfs sys /sys",
            "mkdir -p /dev/shm /dev/pts; mount -t tmpfs shm /dev/shm; mount -t devpts pts /dev/pts",
            "mount -t tmpfs -o mode=0755 run /run; mount -t tmpfs -o mode=1777 tmp /tmp; mount -t tmpfs -o mode=1777 tmp /var/tmp",
            *again,
            f"mkdir -p /run/netns /run/lock {WORK}; mount -t tmpfs -o mode=0755 lab {WORK}",
            *share,
            "modules=/usr/lib/uml/modules/$(uname -r); mkdir -p /run/modules/lib/modules",
            "ln -s $modules /run/modules/lib/modules/$(uname -r)",
            f"modprobe -a -q -d /run/modules {GUEST_MODULES}",
            "ip link set lo up",
            "exec " + " ".join(_quote(word) for word in _agent_command("/dev/ttyS0")),
            "",
        ]
    )


def _needed_directories() -> set[Path]:
    """Where our code, the interpreter and its packages are."""
    return {Path(p).resolve() for p in (sys.prefix, sys.base_prefix, Path(router.__file__).parent.parent)}


def _quote(path: str | Path) -> str:
    return "'" + str(path).replace("'", "'\\''") + "'"


def _scratch() -> str:
    return "/run" if os.geteuid() == 0 and os.access("/run", os.W_OK) else tempfile.gettempdir()


def _memory_directory() -> str:
    """Where the guest's memory file goes: memory where there is enough, and it must be executable.

    /dev/shm of a container is often 64 MB; the guest would die of SIGBUS in the middle of a run.
    """
    for candidate in ("/dev/shm", "/tmp"):  # noqa: S108 - the file is unlinked at once
        with contextlib.suppress(OSError):
            info = os.statvfs(candidate)
            if info.f_bavail * info.f_frsize >= GUEST_MEMORY and not info.f_flag & os.ST_NOEXEC:
                return candidate
    return tempfile.gettempdir()


def reap() -> None:
    """Remove private directories whose owner is gone (it was killed before it could)."""
    for path in Path(_scratch()).glob(f"{PREFIX}[0-9]*-*"):
        owner = path.name.removeprefix(PREFIX).partition("-")[0]
        if owner.isdigit() and not Path("/proc", owner).exists():
            shutil.rmtree(path, ignore_errors=True)

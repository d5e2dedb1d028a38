"""Our own key daemon at a far end: one channel, made of a few values instead of a configuration.

    python -m router.lab.farend.keyd SPECIFICATION.json...

One interpreter is started for several edges: it loads everything once, then becomes one process per
specification, each in its network namespace, with its pid, log and control socket in its directory.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, cast

from router.config.effective import (
    Channel,
    EffectiveConfig,
    Interconnect,
    Macsec,
    MacsecMode,
    Mka,
    Router,
)
from router.errors import KernelError, LastmileError
from router.keyd import give_up_privileges, serve
from router.model import ChannelId, CipherSuite
from router.secy import SecY

CLONE_NEWNET: Final = 0x40000000
EDGE: Final = ChannelId("edge")
DIED: Final = 137
"""Exit status of a process that died where it was told to."""


def configuration(specification: dict[str, Any]) -> EffectiveConfig:
    """Turn a specification into a configuration of one channel. Raises KeyError, ValueError."""
    suites = tuple(CipherSuite.parse(text) for text in specification["suites"])
    values: dict[str, Any] = {
        "priority": 16,
        "rekey_interval_s": 0,
        "sak_retire_time_ms": 3000,
        "delay_protection": False,
        "icv_indicator": False,
        "announce": True,
        "ssci_order": "standard",
        "clock_skew_s": 600,
        **specification.get("mka", {}),
    }
    mka = Mka(**{field.name: values[field.name] for field in fields(Mka)})
    macsec = Macsec(
        mode=MacsecMode.MUST_SECURE,
        suite=suites[0],
        suites=suites,
        replay_window=0,
        include_sci=True,
        sci_port=1,
        static=None,
        mka=mka,
        keys=(),
        key_directory=specification["key_directory"],
        keys_managed_by="us",
        bake_time_s=0,
    )
    channel = Channel(
        id=EDGE,
        interconnect="lab",
        site="lab",
        port=specification["port"],
        port_mtu=9100,
        lag=None,
        enabled=True,
        macsec=macsec,
        macsec_device=specification["device"],
    )
    return EffectiveConfig(
        router=Router(name="edge", asn=64512, router_id="10.255.0.2", lan=()),
        interconnects=(Interconnect("lab", "generic", (EDGE,)),),
        channels=(channel,),
        vrfs=(),
        connections=(),
    )


class DyingSecy:
    """A SecY with one fault, which a file names by an operation (a method of `SecY`).

    `before OPERATION`, `after OPERATION`: the process dies there, once; nothing is cleaned up, as with
    a power cut. `dirty before ...`: and what it remembered of used keys is gone as well. `refuse
    OPERATION`: the SecY refuses it for as long as the file is there.
    """

    def __init__(self, secy: SecY, order: Path) -> None:
        self._secy = secy
        self._order = order

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._secy, name)

        async def call(*arguments: Any, **named: Any) -> Any:
            self._die_if(f"before {name}")
            if self._ordered() == f"refuse {name}":
                raise KernelError(f"{name} is refused, as ordered", errno.EIO)
            result = await method(*arguments, **named)
            self._die_if(f"after {name}")
            return result

        return call

    def _ordered(self) -> str:
        try:
            return self._order.read_text().strip()
        except FileNotFoundError:
            return ""

    def _die_if(self, moment: str) -> None:
        ordered = self._ordered()
        if ordered.removeprefix("dirty ") == moment:
            self._order.unlink()
            if ordered.startswith("dirty "):
                for memory in (self._order.parent / "keyd").iterdir():
                    memory.unlink()
            os._exit(DIED)


def run(path: Path) -> None:
    """Be the key daemon of one specification until SIGTERM. Raises LastmileError, OSError."""
    first = json.loads(path.read_text())
    directory = Path(first["run_dir"])
    log = os.open(directory / "keyd.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    libc = ctypes.CDLL(None, use_errno=True)
    with Path(first["netns"]).open("rb") as namespace:
        if libc.setns(namespace.fileno(), CLONE_NEWNET):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), first["netns"])
    fresh = directory / "pid.new"
    fresh.write_text(str(os.getpid()))
    fresh.rename(directory / "pid")
    give_up_privileges()
    asyncio.run(
        serve(
            lambda: configuration(json.loads(path.read_text())),
            _changes_of(path),
            directory,
            directory,
            wrap=lambda secy: cast("SecY", DyingSecy(secy, directory / "die")),
        )
    )


def _changes_of(path: Path) -> Callable[[], bool]:
    seen = 0

    def changed() -> bool:
        nonlocal seen
        stamp = path.stat().st_mtime_ns
        before, seen = seen, stamp
        return before != stamp

    return changed


def main() -> None:
    """Become one process per specification; one that died at its fault point has a successor at once.

    The successor is a fork of this warm interpreter: what is tested is what a successor does, not how
    long an interpreter takes to start on a busy machine.
    """
    children = {_start(Path(text)): Path(text) for text in sys.argv[1:]}

    def pass_on(number: int, _frame: object) -> None:
        for child in children:
            os.kill(child, number)

    signal.signal(signal.SIGTERM, pass_on)
    while children:
        child, status = os.wait()
        path = children.pop(child)
        if os.waitstatus_to_exitcode(status) == DIED:
            children[_start(path)] = path


def _start(path: Path) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        run(path)
        code = 0
    except (LastmileError, OSError) as error:
        sys.stderr.write(f"{path}: {error}\n")
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()

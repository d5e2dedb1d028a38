"""Capabilities and memory of a process that holds keys: it keeps what it works with and no more.

Capabilities belong to a thread, and a new thread has those of the one that made it. So give them up
before there are others.
"""

from __future__ import annotations

import ctypes
import os
import resource
from enum import IntEnum
from typing import Final


class Capability(IntEnum):
    """Those that our processes use (capabilities(7))."""

    NET_ADMIN = 12
    """Devices: MTU, addresses, TAPs, an XDP program; buffers beyond the limits."""
    NET_RAW = 13
    """Packet sockets, AF_XDP."""
    IPC_LOCK = 14
    """Memory that AF_XDP shares with the kernel, beyond the limit of locked memory."""
    BPF = 39
    """BPF programs and maps."""


_CAPABILITY_VERSION_3: Final = 0x20080522
_WORD: Final = 32
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38


class _Word(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def harden() -> None:
    """No core dump, no tracer, no new privileges by a set-user-ID program."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def keep_only(*capabilities: Capability) -> None:
    """Give up all capabilities of this thread but these, as far as it has them. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    words = (_Word * 2)()
    if libc.capget(ctypes.byref(header), ctypes.byref(words)):
        raise _error()
    wanted = sum(1 << capability for capability in capabilities)
    for index, word in enumerate(words):
        word.permitted &= wanted >> index * _WORD & 0xFFFFFFFF
        word.effective = word.permitted
        word.inheritable = 0
    if libc.capset(ctypes.byref(header), ctypes.byref(words)):
        raise _error()


def _error() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))

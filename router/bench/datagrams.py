"""Both ends of a stream of UDP datagrams at a given rate, each a process in a namespace of its own.

    python -m router.bench.datagrams send ADDRESS SIZE      a line `RATE SECONDS` in, a JSON line out
    python -m router.bench.datagrams receive ADDRESS        an octet in, a JSON line out

The sender sends `SIZE` octets of payload `RATE` times a second (0: as fast as it can) and tells how
many it sent, in how many seconds. It sends bursts of at most `BURST` and sleeps between them: a
sender that spins would take the core that the gateways need. The receiver tells how many datagrams
have come so far.

Standard library alone, but sendmmsg and recvmmsg, which it lacks: one datagram a call is too slow.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import select
import socket
import sys
import time
from typing import Any, Final

PORT: Final = 9003
BURST: Final = 32
"""Datagrams that leave in one go; less than any queue on the way."""
SIZE_MAX: Final = 9216
_SO_RCVBUFFORCE: Final = 33
_SO_SNDBUFFORCE: Final = 32
_BUFFER: Final = 8 << 20
_MSG_DONTWAIT: Final = 0x40


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("len", ctypes.c_size_t))


class _Header(ctypes.Structure):
    """struct msghdr."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint32),
        ("iov", ctypes.POINTER(_Iovec)),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Message(ctypes.Structure):
    """struct mmsghdr."""

    _fields_ = (("header", _Header), ("len", ctypes.c_uint32))


def _burst(buffer: Any) -> Any:
    """BURST messages that share one buffer, which must outlive them."""
    vector = _Iovec(ctypes.addressof(buffer), len(buffer))
    messages = (_Message * BURST)()
    for message in messages:
        message.header.iov, message.header.iovlen = ctypes.pointer(vector), 1
    return messages


def _say(**what: float) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def send(address: str, size: int) -> None:
    """Send as the lines of standard input ask, until it ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(size)
    messages = _burst(buffer)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BUFFER)
        out.connect((address, PORT))
        _say()
        for line in sys.stdin:
            rate, seconds = map(float, line.split())
            sent, start = 0, time.monotonic()
            while (now := time.monotonic() - start) < seconds:
                due = min(int(now * rate) - sent if rate else BURST, BURST)
                if due <= 0:
                    time.sleep(min(BURST / rate / 4, 0.0005))
                    continue
                left = libc.sendmmsg(out.fileno(), messages, due, 0)
                if left < 0:
                    code = ctypes.get_errno()
                    raise OSError(code, os.strerror(code))
                sent += left
            _say(sent=sent, seconds=now)


def receive(address: str) -> None:
    """Count what arrives; tell on request, until standard input ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(SIZE_MAX)
    messages = _burst(buffer)
    count = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:
        sink.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        sink.bind((address, PORT))
        _say()
        while True:
            came = libc.recvmmsg(sink.fileno(), messages, BURST, _MSG_DONTWAIT, None)
            if came > 0:
                count += came
                continue
            if came < 0 and (code := ctypes.get_errno()) != errno.EAGAIN:
                raise OSError(code, os.strerror(code))
            ready, _, _ = select.select([sink, sys.stdin], [], [])
            if sink not in ready:
                if not os.read(0, 1):
                    return
                _say(received=count)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["send", where, size]:
            send(where, int(size))
        case ["receive", where]:
            receive(where)
        case _:
            sys.exit("usage: send ADDRESS SIZE | receive ADDRESS")

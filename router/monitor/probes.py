"""Drives MTU proofs: raw ICMP and ICMPv6 echo sockets, one task for all paths.

Probes carry DF and ignore the path MTU cache (IP_PMTUDISC_PROBE), and leave by the feature's
own device, so that each channel is proved by itself whatever the routes say.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from router.model import Afi
from router.monitor.mtu import MtuProof, Probe

_IP_MTU_DISCOVER: Final = 10
_IPV6_MTU_DISCOVER: Final = 23
_PMTUDISC_PROBE: Final = 3
_ICMP_FILTER: Final = 1
_SOL_RAW: Final = 255
_ICMPV6_FILTER: Final = 1
_ECHO_REQUEST: Final = {Afi.IPV4: 8, Afi.IPV6: 128}
_ECHO_REPLY: Final = {Afi.IPV4: 0, Afi.IPV6: 129}
_IP_HEADER: Final = {Afi.IPV4: 20, Afi.IPV6: 40}
_ECHO_HEADER: Final = struct.Struct("!BBHHH")
_IDLE_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Path:
    """One thing to prove: `mtu` octets from our address to the neighbour's over `device`."""

    device: str
    local: str
    peer: str
    afi: Afi
    mtu: int


@dataclass(frozen=True, slots=True)
class MtuResult:
    """What is known of a path."""

    state: str
    since: float
    """Seconds since the epoch."""
    configured: int
    passes: int | None


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def echo_request(afi: Afi, identifier: int, probe: Probe) -> bytes:
    """Build the echo request; the kernel fills in the ICMPv6 checksum (RFC 3542 3.1)."""
    payload = bytes(max(0, probe.size - _IP_HEADER[afi] - _ECHO_HEADER.size))
    header = _ECHO_HEADER.pack(_ECHO_REQUEST[afi], 0, 0, identifier, probe.sequence)
    if afi is Afi.IPV4:
        # The payload is zeros: only the header counts.
        header = _ECHO_HEADER.pack(_ECHO_REQUEST[afi], 0, _checksum(header), identifier, probe.sequence)
    return header + payload


class _Runner:
    """One path's socket and core."""

    def __init__(self, path: Path, identifier: int, now: float) -> None:
        self.path = path
        self.proof = MtuProof(mtu=path.mtu, version=path.afi.value, now=now)
        self._identifier = identifier
        self._socket: socket.socket | None = None

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Open the socket; devices come and go, so this is tried again by each round."""
        if self._socket is not None:
            return
        v4 = self.path.afi is Afi.IPV4
        sock = socket.socket(
            socket.AF_INET if v4 else socket.AF_INET6,
            socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
            socket.IPPROTO_ICMP if v4 else socket.IPPROTO_ICMPV6,
        )
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self.path.device.encode())
            if v4:
                sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
                sock.setsockopt(
                    _SOL_RAW, _ICMP_FILTER, struct.pack("I", ~(1 << _ECHO_REPLY[Afi.IPV4]) & 0xFFFFFFFF)
                )
            else:
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
                block = bytearray(b"\xff" * 32)
                reply = _ECHO_REPLY[Afi.IPV6]
                words = list(struct.unpack("8I", block))
                words[reply >> 5] &= ~(1 << (reply & 31)) & 0xFFFFFFFF
                sock.setsockopt(socket.IPPROTO_ICMPV6, _ICMPV6_FILTER, struct.pack("8I", *words))
            sock.bind((self.path.local, 0))
        except OSError:
            sock.close()
            raise
        self._socket = sock
        loop.add_reader(sock.fileno(), self._readable)

    def close(self) -> None:
        """Close the socket and forget it."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _readable(self) -> None:
        assert self._socket is not None
        while True:
            try:
                data, source = self._socket.recvfrom(65535)
            except BlockingIOError:
                return
            except OSError:
                self.close()
                return
            if source[0].partition("%")[0] != self.path.peer:
                continue
            offset = (data[0] & 15) * 4 if self.path.afi is Afi.IPV4 else 0
            if len(data) < offset + _ECHO_HEADER.size:
                continue
            kind, _, _, identifier, sequence = _ECHO_HEADER.unpack_from(data, offset)
            if kind == _ECHO_REPLY[self.path.afi] and identifier == self._identifier:
                size = len(data) + (0 if offset else _IP_HEADER[Afi.IPV6])
                self.proof.receive(sequence, size, time.monotonic())

    def step(self, loop: asyncio.AbstractEventLoop) -> None:
        """Do what is due; a device or address that is missing is a probe that gets lost."""
        self.proof.handle_timer(time.monotonic())
        for probe in self.proof.take_outputs():
            try:
                self.open(loop)
                assert self._socket is not None
                self._socket.sendto(echo_request(self.path.afi, self._identifier, probe), (self.path.peer, 0))
            except BlockingIOError:
                continue
            except OSError:
                self.close()


class MtuProber:
    """Proves all paths, for as long as `run` runs."""

    def __init__(self) -> None:
        self._runners: dict[Path, _Runner] = {}
        self._wake = asyncio.Event()
        self._next_identifier = os.getpid() & 0xFFFF

    def set_paths(self, paths: Iterable[Path]) -> None:
        """Replace the set of paths; those that stay keep their state."""
        wanted = set(paths)
        for path in self._runners.keys() - wanted:
            self._runners.pop(path).close()
        for path in sorted(wanted - self._runners.keys(), key=repr):
            self._next_identifier = (self._next_identifier + 1) & 0xFFFF
            self._runners[path] = _Runner(path, self._next_identifier, time.monotonic())
        self._wake.set()

    def results(self) -> Mapping[Path, MtuResult]:
        """What is known now."""
        offset = time.time() - time.monotonic()
        return {
            path: MtuResult(
                runner.proof.state.value, runner.proof.since + offset, runner.path.mtu, runner.proof.passes
            )
            for path, runner in self._runners.items()
        }

    async def run(self) -> None:
        """Probe until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                for runner in list(self._runners.values()):
                    runner.step(loop)
                now = time.monotonic()
                due = min((r.proof.next_timer() for r in self._runners.values()), default=now + _IDLE_S)
                self._wake.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), max(0.01, min(due - now, _IDLE_S)))
        finally:
            for runner in self._runners.values():
                runner.close()

"""Why a session with a TCP-MD5 password (RFC 2385) does not come up.

The kernel drops a segment with a wrong signature without a word. On the side that connects not
even its counters move, since what is wrong is the segment that the *peer* drops. Two things give
it away, and this module reads both:

* the peer's own attempts to connect to us: their SYNs are signed with its password, so that a
  raw socket and our password tell whether the two are the same;
* our attempts that get no answer at all, not even a refusal (/proc/net/tcp).

The kernel's counters (TcpExtTCPMD5Failure and its sisters in /proc/net/netstat) add what happens
to connections that exist.
"""

from __future__ import annotations

import ctypes
import hashlib
import hmac
import socket
import struct
import sys
from dataclasses import dataclass
from enum import Enum
from typing import Final

from router.model import Secret

BGP_PORT: Final = 179

# The specification's.
TCPOPT_EOL: Final = 0
TCPOPT_NOP: Final = 1
TCPOPT_MD5SIG: Final = 19
TCP_SYN_SENT: Final = 2
SO_ATTACH_FILTER: Final = 26


class Signature(Enum):
    """What a SYN's signature says."""

    ABSENT = "absent"
    GOOD = "good"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Counters:
    """What this network namespace's TCP refused for its signature, since boot."""

    failure: int = 0
    """Signed with another password."""
    not_found: int = 0
    """Not signed, though a password is set here."""
    unexpected: int = 0
    """Signed, though no password is set here."""

    def __sub__(self, other: Counters) -> Counters:
        return Counters(
            self.failure - other.failure, self.not_found - other.not_found, self.unexpected - other.unexpected
        )


def read_counters(netstat: str) -> Counters:
    """Pick the counters out of /proc/net/netstat: pairs of lines, names and values."""
    lines = netstat.splitlines()
    for names, values in zip(lines[::2], lines[1::2], strict=False):
        if names.startswith("TcpExt:"):
            table = dict(zip(names.split()[1:], map(int, values.split()[1:]), strict=False))
            return Counters(
                table.get("TCPMD5Failure", 0),
                table.get("TCPMD5NotFound", 0),
                table.get("TCPMD5Unexpected", 0),
            )
    return Counters()


def unanswered(tcp: str, peer: bytes) -> bool:
    """Tell from /proc/net/tcp or tcp6 whether our SYN to the peer's BGP port was repeated in vain."""
    words = [peer[i : i + 4] for i in range(0, len(peer), 4)]
    if sys.byteorder == "little":
        words = [word[::-1] for word in words]
    remote = f"{b''.join(words).hex().upper()}:{BGP_PORT:04X}"
    for line in tcp.splitlines()[1:]:
        fields = line.split()
        if fields[2] == remote and int(fields[3], 16) == TCP_SYN_SENT and int(fields[6], 16) >= 2:
            return True
    return False


def check(source: bytes, destination: bytes, segment: bytes, password: Secret) -> Signature:
    """Verify a TCP segment. Raises ValueError if it is not one."""
    if len(segment) < 20 or not 20 <= (header := (segment[12] >> 4) * 4) <= len(segment):
        raise ValueError("not a TCP segment")
    found = find_signature(segment[20:header])
    if found is None:
        return Signature.ABSENT
    if len(source) == 4:
        pseudo = source + destination + struct.pack("!BBH", 0, socket.IPPROTO_TCP, len(segment))
    else:
        pseudo = source + destination + struct.pack("!II", len(segment), socket.IPPROTO_TCP)
    bare = segment[:16] + b"\0\0" + segment[18:20]
    digest = hashlib.md5(pseudo + bare + segment[header:] + password.reveal()).digest()  # noqa: S324 - RFC 2385
    return Signature.GOOD if hmac.compare_digest(digest, found) else Signature.BAD


def find_signature(options: bytes) -> bytes | None:
    """Return the 16 octets of the MD5 signature option, or None."""
    at = 0
    while at < len(options) and options[at] != TCPOPT_EOL:
        if options[at] == TCPOPT_NOP:
            at += 1
            continue
        length = options[at + 1] if at + 1 < len(options) else 0
        if length < 2 or at + length > len(options):
            return None
        if options[at] == TCPOPT_MD5SIG and length == 18:
            return options[at + 2 : at + 18]
        at += length
    return None


def open_ears() -> list[socket.socket]:
    """Open raw sockets that hear nothing but SYNs to our BGP port. Needs CAP_NET_RAW; raises OSError."""
    ears = []
    for family, filter_ in ((socket.AF_INET, _filter(ipv4=True)), (socket.AF_INET6, _filter(ipv4=False))):
        ear = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_TCP)
        buffer = ctypes.create_string_buffer(filter_)
        program = struct.pack("HxxxxxxP", len(filter_) // 8, ctypes.addressof(buffer))
        ear.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
        ears.append(ear)
    return ears


def hear(ear: socket.socket) -> tuple[bytes, bytes | None, bytes]:
    """Read one SYN: source, destination (None where the socket does not tell), TCP segment.

    Raises BlockingIOError when there is none, ValueError for what is none.
    """
    data, address = ear.recvfrom(2048)
    if ear.family == socket.AF_INET6:
        return socket.inet_pton(socket.AF_INET6, address[0].partition("%")[0]), None, data
    if len(data) < 20:
        raise ValueError("not an IPv4 packet")
    return data[12:16], data[16:20], data[(data[0] & 0xF) * 4 :]


def _filter(*, ipv4: bool) -> bytes:
    """Classic BPF: TCP destination port 179 and the SYN flag without ACK.

    An IPv4 raw socket's filter sees the IP header, whose length goes to X; IPv6's does not.
    """
    load_half, load_byte = (0x48, 0x50) if ipv4 else (0x28, 0x30)
    program = [
        (0xB1, 0, 0, 0) if ipv4 else (0x01, 0, 0, 0),  # ldxb 4*([0]&0xf), or ldx #0
        (load_half, 0, 0, 2),
        (0x15, 0, 4, BGP_PORT),
        (load_byte, 0, 0, 13),
        (0x54, 0, 0, 0x12),
        (0x15, 0, 1, 0x02),
        (0x06, 0, 0, 2048),
        (0x06, 0, 0, 0),
    ]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)

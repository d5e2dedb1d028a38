"""Routes and nexthop objects: rtnetlink messages packed into one buffer, no acknowledgements.

The kernel handles a whole buffer before `send` returns and answers only what it refuses, so
after each send the errors that are there are all there will be. Each message's sequence number
is its place in the list, which attributes an error to its operation. pyroute2 takes 0.5 ms for
one route; this takes about 3 us, and the kernel the rest.

Every route has its own metric, so that a replace never touches a route of somebody else.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Final

from router.errors import KernelError
from router.fib_ops import FibOp, GroupReplace, NexthopDelete, NexthopReplace, RouteDelete, RouteReplace
from router.model import ROUTE_PROTOCOL, Nexthop, Prefix
from router.reconcile.kernel import FibFailure, ObservedFib

# The specification's (linux/netlink.h, linux/rtnetlink.h, linux/nexthop.h).
NETLINK_ROUTE: Final = 0
SOL_NETLINK: Final = 270
NETLINK_CAP_ACK: Final = 10
NETLINK_EXT_ACK: Final = 11
NETLINK_GET_STRICT_CHK: Final = 12
NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3
NLM_F_REQUEST: Final = 0x001
NLM_F_DUMP_INTR: Final = 0x010
NLM_F_CAPPED: Final = 0x100
NLM_F_ACK_TLVS: Final = 0x200
NLM_F_DUMP: Final = 0x300
NLM_F_REPLACE: Final = 0x100
NLM_F_CREATE: Final = 0x400
RTM_NEWROUTE: Final = 24
RTM_DELROUTE: Final = 25
RTM_GETROUTE: Final = 26
RTM_NEWNEXTHOP: Final = 104
RTM_DELNEXTHOP: Final = 105
RTM_GETNEXTHOP: Final = 106
RTA_DST: Final = 1
RTA_PRIORITY: Final = 6
RTA_TABLE: Final = 15
RTA_NH_ID: Final = 30
NHA_ID: Final = 1
NHA_GROUP: Final = 2
NHA_OIF: Final = 5
NHA_GATEWAY: Final = 6
NLMSGERR_ATTR_MSG: Final = 1
RT_SCOPE_UNIVERSE: Final = 0
RTN_UNICAST: Final = 1
NLA_TYPE_MASK: Final = 0x3FFF

# Ours.
ROUTE_METRIC: Final = 20
"""Priority of our routes, below (better than) what routing daemons and DHCP clients use by default."""
BATCH: Final = 200
"""Messages per send: 10 to 20 kB, about 1 ms of kernel time."""
RECEIVE_BUFFER: Final = 4 << 20
DUMP_ATTEMPTS: Final = 8

_HEADER: Final = struct.Struct("=IHHII")
_RTMSG: Final = struct.Struct("=BBBBBBBBI")
_NHMSG: Final = struct.Struct("=BBBBI")
_ATTRIBUTE: Final = struct.Struct("=HH")
_U32: Final = struct.Struct("=HHI")
_GROUP_ENTRY: Final = struct.Struct("=IBBH")
_REPLACE: Final = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_REPLACE


class FibSocket:
    """A plain netlink socket for routes. Not shared between tasks."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_ROUTE)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        self._socket.setblocking(False)
        self._socket.bind((0, 0))

    @property
    def port_id(self) -> int:
        """Our netlink port: notifications that we caused carry it."""
        port: int = self._socket.getsockname()[0]
        return port

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    async def apply(self, ops: Sequence[FibOp]) -> list[FibFailure]:
        """Apply `ops` in order and return those that were refused. Yields between batches."""
        failures: list[FibFailure] = []
        encoder = _Encoder()
        for start in range(0, len(ops), BATCH):
            batch = ops[start : start + BATCH]
            parts: list[bytes] = []
            for sequence, op in enumerate(batch):
                try:
                    encoder.add(op, sequence, parts)
                except OSError as error:
                    failures.append(FibFailure(op, errno.ENODEV, f"no such device: {error}"))
            if parts:
                failures += self._send(b"".join(parts), batch)
            await asyncio.sleep(0)
        return failures

    def _send(self, data: bytes, batch: Sequence[FibOp]) -> list[FibFailure]:
        self._socket.send(data)
        failures = []
        while True:
            try:
                reply = self._socket.recv(1 << 16)
            except BlockingIOError:
                break
            for kind, flags, sequence, body in _messages(reply):
                if kind != NLMSG_ERROR:
                    continue
                code = -int.from_bytes(body[:4], "little" if _IS_LITTLE else "big", signed=True)
                op = batch[sequence]
                if code and not _is_gone(op, code):
                    failures.append(FibFailure(op, code, _reason(code, flags, body)))
        return failures

    async def observe(self) -> ObservedFib:
        """Read nexthop objects and routes of our protocol number. Raises KernelError."""
        names = dict(socket.if_nameindex())
        for _ in range(DUMP_ATTEMPTS):
            nexthops: dict[int, Nexthop] = {}
            groups: dict[int, tuple[int, ...]] = {}
            routes: dict[tuple[int, Prefix], int] = {}
            whole = True
            request = _NHMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
            for body in self._dump(RTM_GETNEXTHOP, request):
                if body is None:
                    whole = False
                else:
                    _read_nexthop(body, names, nexthops, groups)
            for family in (socket.AF_INET, socket.AF_INET6):
                await asyncio.sleep(0)
                request = _RTMSG.pack(family, 0, 0, 0, 0, ROUTE_PROTOCOL, 0, 0, 0)
                for body in self._dump(RTM_GETROUTE, request):
                    if body is None:
                        whole = False
                    else:
                        _read_route(body, routes)
            if whole:
                return ObservedFib(nexthops, groups, routes)
        raise KernelError("the routing table changes faster than it can be read", errno.EINTR)

    def dump(self, kind: int, body: bytes) -> list[memoryview]:
        """Return the bodies of a dump, read again while the kernel says that it changed meanwhile."""
        for _ in range(DUMP_ATTEMPTS):
            bodies = list(self._dump(kind, body))
            if None not in bodies:
                return [b for b in bodies if b is not None]
        raise KernelError("the interface table changes faster than it can be read", errno.EINTR)

    def _dump(self, kind: int, body: bytes) -> Iterator[memoryview | None]:
        """Yield the bodies of a dump; None where the kernel says that it was interrupted."""
        size = _HEADER.size + len(body)
        self._socket.setblocking(True)
        try:
            self._socket.send(_HEADER.pack(size, kind, NLM_F_REQUEST | NLM_F_DUMP, 0, 0) + body)
            while True:
                for got, flags, _, content in _messages(self._socket.recv(1 << 17)):
                    if flags & NLM_F_DUMP_INTR:
                        yield None
                    if got == NLMSG_DONE:
                        return
                    if got == NLMSG_ERROR:
                        code = -int.from_bytes(content[:4], "little" if _IS_LITTLE else "big", signed=True)
                        raise KernelError(f"dump of {kind}: {os.strerror(code)}", code)
                    yield content
        finally:
            self._socket.setblocking(False)


_IS_LITTLE: Final = socket.htons(1) != 1


def _is_gone(op: FibOp, code: int) -> bool:
    """Tell whether a deletion failed because there was nothing left to delete."""
    return isinstance(op, NexthopDelete | RouteDelete) and code in {errno.ENOENT, errno.ESRCH}


class _Encoder:
    """Builds messages as parts of one buffer. What routes have in common is packed once."""

    def __init__(self) -> None:
        self._indexes: dict[str, int] = {}
        self._templates: dict[tuple[int, int, int, int | None], tuple[bytes, bytes, bytes]] = {}

    def add(self, op: FibOp, sequence: int, parts: list[bytes]) -> None:
        """Append one message. Raises OSError where a nexthop's device does not exist."""
        match op:
            case RouteReplace(table, prefix, nexthop_id):
                self._route(sequence, table, prefix, nexthop_id, parts)
            case RouteDelete(table, prefix):
                self._route(sequence, table, prefix, None, parts)
            case NexthopReplace(identifier, nexthop):
                if nexthop.device not in self._indexes:
                    self._indexes[nexthop.device] = socket.if_nametoindex(nexthop.device)
                family = socket.AF_INET if len(nexthop.address) == 4 else socket.AF_INET6
                gateway = _ATTRIBUTE.pack(4 + len(nexthop.address), NHA_GATEWAY) + nexthop.address
                oif = _U32.pack(8, NHA_OIF, self._indexes[nexthop.device])
                parts.append(_nexthop(sequence, identifier, oif + gateway, family))
            case GroupReplace(identifier, _, members):
                assert members, "a nexthop group has at least one member"
                entries = b"".join(_GROUP_ENTRY.pack(member, 0, 0, 0) for member in members)
                group = _ATTRIBUTE.pack(4 + len(entries), NHA_GROUP) + entries
                parts.append(_nexthop(sequence, identifier, group))
            case NexthopDelete(identifier):
                parts.append(_nexthop(sequence, identifier, b""))

    def _route(
        self, sequence: int, table: int, prefix: Prefix, nexthop_id: int | None, parts: list[bytes]
    ) -> None:
        """Append a route's replacement, or its deletion where there is no nexthop."""
        address, length = prefix
        key = (table, length, len(address), nexthop_id)
        template = self._templates.get(key)
        if template is None:
            template = self._templates[key] = _route_template(*key)
        parts += (template[0], _SEQUENCES[sequence], template[1], address, template[2])


_SEQUENCES: Final = tuple(struct.pack("=I", sequence) for sequence in range(BATCH))


def _route_template(table: int, length: int, size: int, nexthop_id: int | None) -> tuple[bytes, bytes, bytes]:
    """Return what stands before the sequence number, between it and the address, and after."""
    kind, flags = (RTM_DELROUTE, NLM_F_REQUEST) if nexthop_id is None else (RTM_NEWROUTE, _REPLACE)
    family = socket.AF_INET if size == 4 else socket.AF_INET6
    rtmsg = _RTMSG.pack(
        family, length, 0, 0, table if table < 256 else 0, ROUTE_PROTOCOL, RT_SCOPE_UNIVERSE, RTN_UNICAST, 0
    )
    middle = struct.pack("=I", 0) + rtmsg + _ATTRIBUTE.pack(4 + size, RTA_DST)
    tail = _U32.pack(8, RTA_TABLE, table) + _U32.pack(8, RTA_PRIORITY, ROUTE_METRIC)
    if nexthop_id is not None:
        tail += _U32.pack(8, RTA_NH_ID, nexthop_id)
    total = 8 + 4 + len(middle) + size + len(tail)
    return struct.pack("=IHH", total, kind, flags), middle, tail


def _nexthop(sequence: int, identifier: int, attributes: bytes, family: int = socket.AF_UNSPEC) -> bytes:
    """Build a nexthop's replacement, or its deletion where there are no attributes."""
    kind, flags = (RTM_NEWNEXTHOP, _REPLACE) if attributes else (RTM_DELNEXTHOP, NLM_F_REQUEST)
    # The kernel checks deletions strictly: only the id may be given.
    protocol = ROUTE_PROTOCOL if attributes else 0
    body = _NHMSG.pack(family, 0, protocol, 0, 0) + _U32.pack(8, NHA_ID, identifier) + attributes
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body


def _messages(data: bytes) -> Iterator[tuple[int, int, int, memoryview]]:
    """Split a datagram into (type, flags, sequence, body)."""
    view = memoryview(data)
    at = 0
    while at + _HEADER.size <= len(view):
        size, kind, flags, sequence, _ = _HEADER.unpack_from(view, at)
        yield kind, flags, sequence, view[at + _HEADER.size : at + size]
        at += (size + 3) & ~3


def attributes(view: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Split a run of netlink attributes into (type, value)."""
    at = 0
    while at + 4 <= len(view):
        size, kind = _ATTRIBUTE.unpack_from(view, at)
        yield kind & NLA_TYPE_MASK, view[at + 4 : at + size]
        at += (size + 3) & ~3


def _u32(view: memoryview) -> int:
    return int.from_bytes(view, "little" if _IS_LITTLE else "big")


def _read_nexthop(
    body: memoryview, names: dict[int, str], nexthops: dict[int, Nexthop], groups: dict[int, tuple[int, ...]]
) -> None:
    if body[2] != ROUTE_PROTOCOL:
        return
    values = dict(attributes(body[_NHMSG.size :]))
    identifier = _u32(values[NHA_ID])
    if NHA_GROUP in values:
        group = values[NHA_GROUP]
        members = (_u32(group[at : at + 4]) for at in range(0, len(group), _GROUP_ENTRY.size))
        groups[identifier] = tuple(sorted(members))
    elif NHA_OIF in values and NHA_GATEWAY in values:
        index = _u32(values[NHA_OIF])
        nexthops[identifier] = Nexthop(names.get(index, f"if{index}"), bytes(values[NHA_GATEWAY]))


def _read_route(body: memoryview, routes: dict[tuple[int, Prefix], int]) -> None:
    if body[5] != ROUTE_PROTOCOL:
        return
    size = 4 if body[0] == socket.AF_INET else 16
    address, table, nexthop_id = bytes(size), body[4], 0
    for kind, value in attributes(body[_RTMSG.size :]):
        if kind == RTA_DST:
            address = bytes(value)
        elif kind == RTA_TABLE:
            table = _u32(value)
        elif kind == RTA_NH_ID:
            nexthop_id = _u32(value)
    routes[table, Prefix(address, body[1])] = nexthop_id


def _reason(code: int, flags: int, body: memoryview) -> str:
    """Return the errno's text with the kernel's own explanation, where it gave one."""
    text = os.strerror(code)
    if flags & NLM_F_ACK_TLVS:
        # nlmsgerr is the code and the request's header; the request itself only if not capped.
        echoed = _HEADER.size if flags & NLM_F_CAPPED else _u32(body[4:8])
        for kind, value in attributes(body[4 + ((echoed + 3) & ~3) :]):
            if kind == NLMSGERR_ATTR_MSG:
                return f"{text}: {bytes(value).rstrip(bytes(1)).decode(errors='replace')}"
    return text

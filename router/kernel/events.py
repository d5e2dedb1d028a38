"""Netlink notifications, read from plain sockets: headers and a few attributes, nothing more.

A filter in the kernel (classic BPF on the socket) keeps our own route changes and everybody
else's routes away, so that installing 100,000 routes does not come back as 100,000 messages.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import socket
import struct
import time
from typing import Final

from router.kernel.fib import (
    NETLINK_ROUTE,
    RTM_DELNEXTHOP,
    RTM_DELROUTE,
    RTM_NEWNEXTHOP,
    RTM_NEWROUTE,
    SOL_NETLINK,
    attributes,
)
from router.model import ROUTE_PROTOCOL
from router.reconcile.kernel import AddressEvent, Event, EventsLost, FibEvent, LinkEvent, RulesEvent

# The specification's.
NETLINK_NETFILTER: Final = 12
NETLINK_ADD_MEMBERSHIP: Final = 1
RTNLGRP_LINK: Final = 1
RTNLGRP_IPV4_IFADDR: Final = 5
RTNLGRP_IPV4_ROUTE: Final = 7
RTNLGRP_IPV6_IFADDR: Final = 9
RTNLGRP_IPV6_ROUTE: Final = 11
RTNLGRP_NEXTHOP: Final = 32
NFNLGRP_NFTABLES: Final = 7
RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
RTM_NEWADDR: Final = 20
RTM_DELADDR: Final = 21
IFLA_IFNAME: Final = 3
IFF_UP: Final = 0x1
IFF_RUNNING: Final = 0x40
SO_ATTACH_FILTER: Final = 26
AF_BRIDGE: Final = 7

# Ours.
ALL_GROUPS: Final = (
    RTNLGRP_LINK,
    RTNLGRP_IPV4_IFADDR,
    RTNLGRP_IPV6_IFADDR,
    RTNLGRP_IPV4_ROUTE,
    RTNLGRP_IPV6_ROUTE,
    RTNLGRP_NEXTHOP,
)
RECEIVE_BUFFER: Final = 4 << 20

_HEADER: Final = struct.Struct("=IHHII")
_IFINFOMSG: Final = struct.Struct("=BBHiII")


class EventSockets:
    """The subscriptions. `next_events` returns what has come since the last call."""

    def __init__(self, own_port: int, groups: tuple[int, ...] = ALL_GROUPS) -> None:
        self._events: list[Event] = []
        self._arrived = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._route = _subscribe(NETLINK_ROUTE, groups)
        _attach_filter(self._route, own_port)
        self._loop.add_reader(self._route, self._read_route)
        self._rules: socket.socket | None = None
        if groups != ALL_GROUPS:
            return
        try:
            self._rules = _subscribe(NETLINK_NETFILTER, (NFNLGRP_NFTABLES,))
        except OSError:
            pass  # nf_tables is not there (yet); the reconciler's timer reads the rules anyway
        else:
            self._loop.add_reader(self._rules, self._read_rules)

    @classmethod
    def links_only(cls) -> EventSockets:
        """Subscribe to devices only."""
        return cls(0, (RTNLGRP_LINK,))

    def close(self) -> None:
        """Unsubscribe."""
        for sock in (self._route, self._rules):
            if sock is not None:
                self._loop.remove_reader(sock)
                sock.close()

    async def next_events(self) -> list[Event]:
        """Wait until there is at least one event, and return all, oldest first."""
        await self._arrived.wait()
        self._arrived.clear()
        events, self._events = self._events, []
        return events

    def _add(self, event: Event) -> None:
        if event not in self._events[-4:]:
            self._events.append(event)
        self._arrived.set()

    def _read_route(self) -> None:
        for datagram in _drain(self._route):
            event = parse_event(datagram, time.monotonic()) if datagram is not None else EventsLost()
            if event is not None:
                self._add(event)

    def _read_rules(self) -> None:
        assert self._rules is not None
        for datagram in _drain(self._rules):
            self._add(EventsLost() if datagram is None else RulesEvent())


def parse_event(datagram: bytes, now: float) -> Event | None:
    """Turn one rtnetlink notification into an event; None for what does not matter."""
    if len(datagram) < _HEADER.size:
        return None
    _, kind, _, _, _ = _HEADER.unpack_from(datagram)
    body = memoryview(datagram)[_HEADER.size :]
    match kind:
        case 16 | 17:  # RTM_NEWLINK, RTM_DELLINK
            family, _, _, _, flags, _ = _IFINFOMSG.unpack_from(body)
            if family == AF_BRIDGE:
                return None
            for attribute, value in attributes(body[_IFINFOMSG.size :]):
                if attribute == IFLA_IFNAME:
                    up = kind == RTM_NEWLINK and flags & (IFF_UP | IFF_RUNNING) == IFF_UP | IFF_RUNNING
                    return LinkEvent(bytes(value).rstrip(bytes(1)).decode(), up, now)
            return None
        case 20 | 21:  # RTM_NEWADDR, RTM_DELADDR
            return AddressEvent(int(struct.unpack_from("=i", body, 4)[0]))
        case 24 | 25:  # RTM_NEWROUTE, RTM_DELROUTE
            return FibEvent("route")
        case 104 | 105:  # RTM_NEWNEXTHOP, RTM_DELNEXTHOP
            return FibEvent("nexthop")
        case _:
            return None


def _subscribe(protocol: int, groups: tuple[int, ...]) -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    sock.bind((0, 0))
    for group in groups:
        sock.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
    return sock


def _drain(sock: socket.socket) -> list[bytes | None]:
    """Read all datagrams that are there; None stands for a loss (ENOBUFS)."""
    datagrams: list[bytes | None] = []
    while True:
        try:
            datagrams.append(sock.recv(1 << 16))
        except BlockingIOError:
            return datagrams
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            datagrams.append(None)


def _attach_filter(sock: socket.socket, own_port: int) -> None:
    """Pass a route or nexthop only if it has our protocol number and was not changed by `own_port`.

    Classic BPF loads in network order what netlink writes in host order, hence the swaps.
    """
    program = b"".join(_instruction(*i) for i in filter_program(own_port))
    buffer = ctypes.create_string_buffer(program)
    fprog = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, fprog)


def filter_program(own_port: int) -> tuple[tuple[int, int, int, int], ...]:
    """Return the filter as (code, jump if true, jump if false, operand)."""
    load_half, load_word, load_byte, jump_equal, give = 0x28, 0x20, 0x30, 0x15, 0x06
    route, nexthop = (RTM_NEWROUTE, RTM_DELROUTE), (RTM_NEWNEXTHOP, RTM_DELNEXTHOP)
    return (
        (load_half, 0, 0, 4),  # nlmsg_type
        (jump_equal, 5, 0, socket.htons(route[0])),
        (jump_equal, 4, 0, socket.htons(route[1])),
        (jump_equal, 1, 0, socket.htons(nexthop[0])),
        (jump_equal, 0, 6, socket.htons(nexthop[1])),
        (load_byte, 0, 0, 16 + 2),  # nh_protocol
        (jump_equal, 2, 5, ROUTE_PROTOCOL),
        (load_byte, 0, 0, 16 + 5),  # rtm_protocol
        (jump_equal, 0, 3, ROUTE_PROTOCOL),
        (load_word, 0, 0, 12),  # nlmsg_pid: who caused it
        (jump_equal, 1, 0, socket.htonl(own_port)),
        (give, 0, 0, 0xFFFFFFFF),
        (give, 0, 0, 0),
    )


def _instruction(code: int, if_true: int, if_false: int, operand: int) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, operand)

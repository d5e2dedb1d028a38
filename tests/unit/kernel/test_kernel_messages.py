"""Netlink messages by their octets, and the filter that keeps our own routes from coming back."""

import socket
import struct

from router.fib_ops import GroupReplace, NexthopDelete, RouteDelete, RouteReplace
from router.kernel.events import filter_program, parse_event
from router.kernel.fib import BATCH, ROUTE_METRIC, _Encoder, _messages, _read_route, attributes
from router.model import ROUTE_PROTOCOL, Afi, Prefix
from router.reconcile.kernel import AddressEvent, FibEvent, LinkEvent


def encode(*ops):
    encoder, parts = _Encoder(), []
    for sequence, op in enumerate(ops):
        encoder.add(op, sequence, parts)
    return list(_messages(b"".join(parts)))


def test_a_route_reads_back_as_it_was_written():
    """Both families, any table, the longest and the shortest prefix."""
    ops = [
        RouteReplace(254, Prefix.parse("10.20.0.0/16"), 7),
        RouteReplace(100_000, Prefix.parse("0.0.0.0/0"), 8),
        RouteReplace(254, Prefix.parse("2001:db8::1/128"), 9),
        RouteReplace(254, Prefix.parse("10.20.0.1/32"), 7),
    ]
    routes = {}
    for sequence, (kind, _, got, body) in enumerate(encode(*ops)):
        assert (kind, got) == (24, sequence)
        _read_route(body, routes)
    assert routes == {(op.table, op.prefix): op.nexthop_id for op in ops}


def test_a_deletion_names_no_nexthop_but_our_protocol_and_metric():
    """So that it can only ever hit our own route."""
    ((kind, _, _, body),) = encode(RouteDelete(254, Prefix.parse("10.20.0.0/16")))
    assert kind == 25
    assert body[5] == ROUTE_PROTOCOL
    values = {k: bytes(v) for k, v in attributes(body[12:])}
    assert values[6] == struct.pack("=I", ROUTE_METRIC)
    assert 30 not in values


def test_a_group_lists_its_members_with_weight_one():
    """struct nexthop_grp: id, weight minus one, reserved."""
    (_, (_, _, _, body)) = encode(NexthopDelete(1), GroupReplace(5, Afi.IPV4, (1, 2)))
    values = dict(attributes(body[8:]))
    assert bytes(values[2]) == struct.pack("=IBBHIBBH", 1, 0, 0, 0, 2, 0, 0, 0)


def test_a_batch_fits_one_datagram():
    """The kernel takes a whole batch of the longest messages at once (SO_SNDBUF is 208 KiB)."""
    parts = []
    encoder = _Encoder()
    for sequence in range(BATCH):
        encoder.add(RouteReplace(100_000, Prefix(bytes(16), 128), 1), sequence, parts)
    assert len(b"".join(parts)) < 65536


def notification(kind, body, pid=0):
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, pid) + body


def passes(datagram, own_port=4242):
    """Run the classic BPF program, as the kernel does."""
    program, at, accumulator = filter_program(own_port), 0, 0
    while True:
        code, if_true, if_false, operand = program[at]
        at += 1
        if code == 0x06:
            return operand != 0
        if code == 0x15:
            at += if_true if accumulator == operand else if_false
        else:
            size = {0x20: 4, 0x28: 2, 0x30: 1}[code]
            accumulator = int.from_bytes(datagram[operand : operand + size], "big")


def route(kind, protocol, pid):
    return notification(kind, struct.pack("=BBBBBBBBI", 2, 24, 0, 0, 254, protocol, 0, 1, 0), pid)


def nexthop(kind, protocol, pid):
    return notification(kind, struct.pack("=BBBBI", 2, 0, protocol, 0, 0), pid)


def test_the_filter_passes_what_matters():
    """Routes and nexthops of our protocol changed by others; everything that is neither."""
    for kind in (24, 25):
        assert passes(route(kind, ROUTE_PROTOCOL, 1))
        assert not passes(route(kind, ROUTE_PROTOCOL, 4242))
        assert not passes(route(kind, 4, 1))
    for kind in (104, 105):
        assert passes(nexthop(kind, ROUTE_PROTOCOL, 1))
        assert not passes(nexthop(kind, ROUTE_PROTOCOL, 4242))
        assert not passes(nexthop(kind, 3, 1))
    for kind in (16, 17, 20, 21):
        assert passes(notification(kind, bytes(64)))


def link(kind, flags, family=0):
    name = b"port1\0"
    attribute = struct.pack("=HH", 4 + len(name), 3) + name + bytes(2)
    return notification(kind, struct.pack("=BBHiII", family, 0, 1, 7, flags, 0) + attribute)


def test_link_notifications():
    """Up is administratively up and running; a deleted device is down; bridge ports are ignored."""
    assert parse_event(link(16, 0x41), 1.0) == LinkEvent("port1", up=True, at=1.0)
    assert parse_event(link(16, 0x01), 1.0) == LinkEvent("port1", up=False, at=1.0)
    assert parse_event(link(17, 0x41), 1.0) == LinkEvent("port1", up=False, at=1.0)
    assert parse_event(link(16, 0x41, socket.AF_BRIDGE if hasattr(socket, "AF_BRIDGE") else 7), 1.0) is None


def test_other_notifications():
    """Addresses by ifindex, routes and nexthops by kind, anything else not at all."""
    address = notification(20, struct.pack("=BBBBi", 2, 24, 0, 0, 7))
    assert parse_event(address, 0.0) == AddressEvent(7)
    assert parse_event(route(25, ROUTE_PROTOCOL, 0), 0.0) == FibEvent("route")
    assert parse_event(nexthop(105, ROUTE_PROTOCOL, 0), 0.0) == FibEvent("nexthop")
    assert parse_event(notification(28, bytes(32)), 0.0) is None
    assert parse_event(b"", 0.0) is None

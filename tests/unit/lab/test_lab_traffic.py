"""Counting losses: probes are spread over flows, and an outage is a run on one of them."""

import struct

import pytest

from router.lab import traffic


def test_nothing_lost():
    """All came back."""
    outage = traffic.count(b"\x01" * 100, 4, 0.001)
    assert (outage.sent, outage.lost, outage.longest_ms, outage.first_lost_s) == (100, 0, 0, -1.0)


def test_a_run_on_one_flow_is_its_outage():
    """Flow 1 of 4 loses three probes in a row: 12 ms of silence for it, 3 probes lost."""
    returned = bytearray(b"\x01" * 40)
    for number in (9, 13, 17):
        returned[number] = 0
    outage = traffic.count(returned, 4, 0.001)
    assert (outage.lost, outage.longest_ms, outage.first_lost_s) == (3, 12, pytest.approx(0.009))


def test_losses_of_different_flows_are_no_run():
    """Four neighbours in time on four flows are four outages of 4 ms."""
    returned = bytearray(b"\x01" * 40)
    returned[8:12] = bytes(4)
    outage = traffic.count(returned, 4, 0.001)
    assert (outage.lost, outage.longest_ms) == (4, 4)


def test_too_big_is_read_from_icmp():
    """The MTU that is told, and only for our own request."""
    quoted = bytes([0x45]) + bytes(19) + struct.pack("!BBHHH", 8, 0, 0, 7, 9)
    packet = bytes([0x45]) + bytes(19) + struct.pack("!BBHHH", 3, 4, 0, 0, 8500) + quoted
    assert traffic._read4(packet, 7, 9) == ("too big", 8500)
    assert traffic._read4(packet, 7, 8) is None


def test_too_big_is_read_from_icmpv6():
    """The same in IPv6, where the MTU has 32 bits."""
    quoted = bytes(40) + struct.pack("!BBHHH", 128, 0, 0, 7, 9)
    packet = struct.pack("!BBHI", 2, 0, 0, 8500) + quoted
    assert traffic._read6(packet, 7, 9) == ("too big", 8500)
    assert traffic._read6(packet, 8, 9) is None


def test_checksum_is_the_internet_checksum():
    """RFC 1071: the sum over data and checksum is zero; odd lengths are padded."""
    data = struct.pack("!BBHHH", 8, 0, 0, 1, 2) + b"abc"
    filled = data[:2] + traffic._checksum(data).to_bytes(2, "big") + data[4:]
    assert traffic._checksum(filled) == 0

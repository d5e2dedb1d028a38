"""Reading the signs of an MD5 mismatch."""

import hashlib
import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.bgp.md5 import Counters, Signature, check, find_signature, read_counters, unanswered
from router.model import Secret, pack_address

NETSTAT = """TcpExt: SyncookiesSent TCPMD5NotFound TCPMD5Unexpected TCPMD5Failure TCPSackShifted
TcpExt: 0 1 2 12 7
IpExt: InNoRoutes InTruncatedPkts
IpExt: 0 0
"""
TCP = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0101FEA9:C350 0201FEA9:00B3 02 00000001:00000000 01:00000064 00000003     0        0 1 1 0 1 0
   1: 0101FEA9:C351 0202FEA9:00B3 01 00000000:00000000 00:00000000 00000000     0        0 2 1 0 1 0
   2: 0101FEA9:C352 0203FEA9:00B3 02 00000001:00000000 01:00000064 00000001     0        0 3 1 0 1 0
"""


def syn(source, destination, key, options=b""):
    """A signed SYN, as RFC 2385 section 2 says."""
    size = 20 + 20 + len(options)
    header = struct.pack("!HHIIBBHHH", 40000, 179, 1, 0, (size // 4) << 4, 2, 65535, 0, 0)
    pseudo = (
        source
        + destination
        + (struct.pack("!BBH", 0, 6, size) if len(source) == 4 else struct.pack("!II", size, 6))
    )
    digest = hashlib.md5(pseudo + header + key).digest()
    corrupt_checksum = header[:16] + b"\xab\xcd" + header[18:]
    return corrupt_checksum + options + b"\x13\x12" + digest + b"\x01\x01"


@pytest.mark.parametrize("pair", [("169.254.1.2", "169.254.1.1"), ("fd00::2", "fd00::1")])
def test_a_signature_is_good_only_with_the_same_password(pair):
    """And with the same addresses."""
    source, destination = map(pack_address, pair)
    segment = syn(source, destination, b"one", b"\x02\x04\x05\xb4")
    assert check(source, destination, segment, Secret(b"one")) is Signature.GOOD
    assert check(source, destination, segment, Secret(b"two")) is Signature.BAD
    assert check(source, source, segment, Secret(b"one")) is Signature.BAD
    bare = segment[:12] + bytes([5 << 4]) + segment[13:20]
    assert check(source, destination, bare, Secret(b"one")) is Signature.ABSENT


@given(st.binary(max_size=60))
def test_any_options_are_read_without_harm(options):
    """Lengths that lie, options cut short."""
    found = find_signature(options)
    assert found is None or len(found) == 16


@given(st.binary(max_size=80))
def test_any_segment_is_a_verdict_or_an_error(segment):
    """Never another exception."""
    with suppress(ValueError):
        assert check(b"\x01\x02\x03\x04", b"\x05\x06\x07\x08", segment, Secret(b"x")) in Signature


def test_counters_and_their_difference():
    """By name, wherever the column is; zeros where the kernel has none."""
    assert read_counters(NETSTAT) == Counters(failure=12, not_found=1, unexpected=2)
    assert read_counters("") == Counters()
    assert Counters(12, 1, 2) - Counters(10, 1, 0) == Counters(2, 0, 2)


def test_unanswered_is_a_syn_repeated_in_vain():
    """Not an established one, and not the first try."""
    assert unanswered(TCP, pack_address("169.254.1.2"))
    assert not unanswered(TCP, pack_address("169.254.2.2"))
    assert not unanswered(TCP, pack_address("169.254.3.2"))
    assert not unanswered(TCP, pack_address("169.254.9.2"))

"""The proof that nothing was in clear finds what is in clear, and believes no empty capture."""

import struct

import pytest

from router.errors import LabError
from router.lab import capture
from router.lab.scenarios.keyd import numbers_rise

ADDRESSES = bytes.fromhex("020000000102020000000101")


def block(order, kind, body):
    body += bytes(-len(body) % 4)
    length = len(body) + 12
    return struct.pack(f"{order}II", kind, length) + body + struct.pack(f"{order}I", length)


def pcapng(frames, order="<"):
    data = block(order, capture.SECTION_HEADER, struct.pack(f"{order}IHHq", capture.BYTE_ORDER, 1, 0, -1))
    data += block(order, 1, struct.pack(f"{order}HHI", 1, 0, 96))
    for frame in frames:
        head = struct.pack(f"{order}IIIII", 0, 0, 0, len(frame), len(frame) + 1000)
        data += block(order, capture.ENHANCED_PACKET, head + frame)
    return data


def frame(ethertype, payload=b"x" * 7):
    return ADDRESSES + ethertype.to_bytes(2, "big") + payload


@pytest.fixture
def wire(tmp_path):
    def write(frames, **options):
        path = tmp_path / "wire.pcapng"
        path.write_bytes(pcapng(frames, **options))
        return path

    return write


def test_macsec_and_eapol_are_not_clear(wire):
    """The two EtherTypes that may be on a must-secure wire."""
    path = wire([frame(0x88E5), frame(0x888E)])
    assert capture.cleartext_frames(path) == []
    assert capture.protected_frames(path) == 1


@pytest.mark.parametrize("ethertype", [0x0800, 0x0806, 0x86DD, 0x8100, 0x8809, 0x88CC, 0x0026])
def test_everything_else_is_clear(wire, ethertype):
    """IP, ARP, a bare VLAN tag, LACP, LLDP, 802.3 frames: found, with their number."""
    found = capture.cleartext_frames(wire([frame(0x88E5), frame(ethertype), frame(0x88E5)]))
    assert [(f.number, f.ethertype) for f in found] == [(2, ethertype)]
    assert str(found[0]) == f"frame 2: 02:00:00:00:01:01 > 02:00:00:00:01:02 type {ethertype:04x}"


def test_lacp_is_allowed_on_a_lag_only(wire):
    """LACP runs below MACsec on the members of a LAG."""
    assert capture.cleartext_frames(wire([frame(0x8809)]), lag=True) == []


def test_a_frame_too_short_to_have_a_type_is_clear(wire):
    """What cannot be judged is not believed."""
    assert len(capture.cleartext_frames(wire([ADDRESSES]))) == 1


def test_both_byte_orders_and_padding(wire):
    """The file says its byte order itself; odd lengths are padded."""
    frames = [frame(0x88E5, b"y" * n) for n in range(5)]
    assert [f.octets for f in capture.frames(wire(frames, order=">"))] == frames


def test_a_capture_that_was_cut_off_gives_what_is_whole(tmp_path):
    """The last block of a killed capture may be half there."""
    path = tmp_path / "cut.pcapng"
    path.write_bytes(pcapng([frame(0x88E5), frame(0x0800)])[:-9])
    assert [f.ethertype for f in capture.frames(path)] == [0x88E5]


def test_what_is_not_a_capture_is_refused(tmp_path):
    """An empty or foreign file is an error, not a clean wire."""
    path = tmp_path / "x"
    for data in (b"", b"\xd4\xc3\xb2\xa1" + bytes(40)):
        path.write_bytes(data)
        with pytest.raises(LabError, match="not a pcapng file"):
            list(capture.frames(path))


def test_scapy_reads_the_same(wire):
    """An independent reader sees the same frames."""
    from scapy.utils import RawPcapNgReader

    frames = [frame(0x88E5, b"z" * n) for n in (1, 2, 50)]
    with RawPcapNgReader(str(wire(frames))) as reader:
        assert [data for data, _ in reader] == frames


ROUTER, EDGE = bytes(5) + b"\1", bytes(5) + b"\2"


@pytest.mark.parametrize(
    ("sent", "good"),
    [
        ([(0, 1), (0, 2), (0, 9)], True),
        ([(0, 1), (0, 1)], False),
        ([(0, 5), (0, 4)], False),
        # Another key under another AN begins at 1; the former one may go on for a moment.
        ([(0, 5), (1, 1), (0, 6), (1, 2)], True),
        # The AN comes round again with a fresh key, or with the old key again.
        ([(0, 5), (1, 1), (0, 1), (0, 2)], True),
        ([(0, 5), (1, 1), (0, 5)], False),
    ],
)
def test_a_packet_number_that_comes_twice_is_found(wire, sent, good):
    """Of one station, by AN; another station's numbers are its own."""
    frames = [
        bytes(6) + source + b"\x88\xe5" + bytes([0x2C | an, 0]) + pn.to_bytes(4) + bytes(24)
        for an, pn in sent
        for source in (ROUTER, EDGE)
    ]
    problem, count = numbers_rise(wire(frames), ROUTER)
    assert (not problem) is good
    assert not good or count == len(sent)

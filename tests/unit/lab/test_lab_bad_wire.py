"""What the bad wire does to a frame, held against the readable twin of the data plane."""

import random
from types import SimpleNamespace

import pytest

from router.lab.network import crossings
from router.lab.scenarios.fastpath import DATA, ICV_OCTETS, PN, SCI, TCI_AN, TCI_V, BadWire, packet_numbers
from router.lab.topology import load

FRAME = (
    bytes(6) + bytes.fromhex("020000000101") + bytes.fromhex("88e5") + bytes([0x2D, 0]) + bytes(range(4, 200))
)
SHORT = FRAME[: TCI_AN + 1] + bytes([20]) + FRAME[TCI_AN + 2 : DATA + 20 + ICV_OCTETS + 9]


@pytest.fixture
def wire():
    """The part that spoils frames, without sockets."""
    return SimpleNamespace(_random=random.Random(7))


def test_a_corrupted_frame_differs_in_one_bit_behind_the_sectag(wire):
    """Never in the SecTAG (another counter), never in the padding of a short frame (no counter)."""
    for frame, end in ((FRAME, len(FRAME)), (SHORT, DATA + 20 + ICV_OCTETS)):
        for _ in range(500):
            bad, name = BadWire._corrupt(wire, bytearray(frame))
            different = [i for i, (a, b) in enumerate(zip(bad, frame, strict=True)) if a != b]
            assert name == "in_pkts_not_valid"
            assert len(different) == 1
            assert DATA <= different[0] < end
            assert (bad[different[0]] ^ frame[different[0]]).bit_count() == 1


def test_each_other_fault_is_one_thing(wire):
    """Version, length, SCI, AN; the packet number stays that of the good frame."""
    bad, name = BadWire._tag(wire, bytearray(FRAME))
    assert (name, bad[TCI_AN]) == ("in_pkts_bad_tag", FRAME[TCI_AN] | TCI_V)
    bad, name = BadWire._cut(wire, bytearray(FRAME))
    assert (name, len(bad)) == ("in_pkts_bad_tag", DATA + ICV_OCTETS - 1)
    bad, name = BadWire._sci(wire, bytearray(FRAME))
    assert (name, bad[SCI : SCI + 8] != FRAME[SCI : SCI + 8]) == ("in_pkts_no_sci", True)
    bad, name = BadWire._an(wire, bytearray(FRAME))
    assert (name, (bad[TCI_AN] ^ FRAME[TCI_AN]) & 3) == ("in_pkts_not_using_sa", 2)
    for spoil in (BadWire._tag, BadWire._sci, BadWire._an):
        assert spoil(wire, bytearray(FRAME))[0][PN : PN + 4] == FRAME[PN : PN + 4]


def test_the_wires_that_cross_are_those_of_the_edges():
    """Four ports and four uplinks; the guest's end is the edge's, the router's stays here."""
    found = crossings(load("four-channels"))
    assert [c.number for c in found] == list(range(8))
    assert {c.guest.node for c in found} == {"pe1", "pe2", "pe3", "pe4"}
    assert {c.host.node for c in found} == {"r", "cloud"}


@pytest.mark.parametrize(
    ("sent", "keys", "again"),
    [
        ([(0, 1), (0, 2), (0, 3)], 1, []),
        ([(0, 1), (0, 2), (0, 2)], 1, [(1, 2)]),
        ([(3, 1), (0, 1), (3, 2), (0, 2)], 2, []),
        ([(3, 1), (0, 1), (3, 1)], 2, [(1, 1)]),
        ([(0, 1), (2, 1), (3, 1), (1, 1), (2, 1)], 5, []),
        ([(0, 1), (1, 1), (2, 1), (3, 1), (0, 1), (0, 1)], 5, [(5, 1)]),
    ],
)
def test_packet_numbers_are_counted_by_key(sent, keys, again):
    """An AN that comes round again is another key; the key before may end late; the same number is seen."""
    numbers = packet_numbers(sent)
    assert len({key for key, _ in numbers}) == keys
    assert [number for number, count in numbers.items() if count > 1] == again

"""What a key daemon leaves its successor: written before it is said, ahead of what is said, rarely."""

import stat
from dataclasses import replace

import pytest

from router.mka.driver import MN_AHEAD, HandoverFile
from router.mka.kay import Handover
from router.mka.participant import Identity
from router.model import Sci

SCI = Sci.parse("02:00:00:00:00:01/1")
NOW = Handover(
    b"\1" * 16, b"\2" * 4, (Identity(b"\2" * 4, b"\3" * 12, 7, 1), Identity(b"\4", b"\5" * 12, 9, 0))
)


@pytest.fixture
def path(tmp_path):
    """Where it is kept."""
    return tmp_path / "a1.handover"


def ahead(handover):
    """What is stored of it."""
    return replace(handover, identities=tuple(replace(i, mn=i.mn + MN_AHEAD) for i in handover.identities))


def test_a_successor_reads_the_same_members_further_on(path):
    """Message numbers are above all that were sent; the file is nobody else's to read."""
    HandoverFile(path).keep(SCI, NOW)
    assert HandoverFile(path).load(SCI) == ahead(NOW)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_it_is_written_again_only_when_it_must_be(path):
    """Not with each hello: when the numbers are used up, or anything else changes."""
    file = HandoverFile(path)
    file.keep(SCI, NOW)
    first, second = NOW.identities
    for mn, written in ((7 + MN_AHEAD, False), (8 + MN_AHEAD, True)):
        path.unlink()
        file.keep(SCI, replace(NOW, identities=(replace(first, mn=mn), second)))
        assert path.exists() is written
        path.touch()
    for other in (
        replace(NOW, key_id=b"\6" * 16),
        replace(NOW, key_ckn=b""),
        replace(NOW, identities=(first,)),
        replace(NOW, identities=(replace(first, kn=2), second)),
        replace(NOW, identities=(replace(first, mi=b"\7" * 12), second)),
    ):
        file.keep(SCI, other)
        assert HandoverFile(path).load(SCI) == ahead(other)


def test_another_station_is_not_gone_on_as(path):
    """A port whose address changed is another member."""
    HandoverFile(path).keep(SCI, NOW)
    assert HandoverFile(path).load(Sci.parse("02:00:00:00:00:02/1")) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"sci": "02:00:00:00:00:01/1"}', '{"sci": 1}'])
def test_a_damaged_file_is_as_good_as_none(path, text):
    """A new member is always possible."""
    path.write_text(text)
    assert HandoverFile(path).load(SCI) is None
    assert HandoverFile(None).load(SCI) is None

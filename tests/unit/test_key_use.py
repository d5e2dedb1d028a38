"""Since when a channel uses its key: what counts as a rotation, and that a restart forgets none."""

import stat

import pytest

from router.key_use import KeyUse

NEVER = float("-inf")


@pytest.fixture
def path(tmp_path):
    """Where it is kept."""
    return tmp_path / "state" / KeyUse.FILE


def test_the_first_key_of_a_channel_is_no_rotation(path):
    """A new router may add keys at once."""
    use = KeyUse(path)
    assert not use.note("a1", b"\1", 5.0)
    assert use.rotated_at("a1") == use.rotated_at("a2") == NEVER


def test_another_key_is_a_rotation_and_the_same_one_is_not(path):
    """However it came about; the time is that of the change."""
    use = KeyUse(path)
    use.note("a1", b"\1", 5.0)
    assert use.note("a1", b"\2", 7.0)
    assert not use.note("a1", b"\2", 9.0)
    assert use.rotated_at("a1") == 7.0


def test_a_restart_forgets_nothing(path):
    """The next process reads it, and nobody else can."""
    use = KeyUse(path)
    use.note("a1", b"\1", 5.0)
    use.note("a1", b"\2", 7.0)
    after = KeyUse(path)
    after.load()
    assert after.rotated_at("a1") == 7.0
    assert not after.note("a1", b"\2", 9.0)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("text", ["", "[]", '{"a1": {}}', '{"a1": {"ckn": "01", "since": "x"}}'])
def test_a_damaged_file_is_said(path, text):
    """The bake time must not be forgotten in silence."""
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(ValueError, match=r"."):
        KeyUse(path).load()

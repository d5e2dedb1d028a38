"""What was accepted survives what is saved later, and the cache never lies."""

from pathlib import Path

import pytest

from router.accepted import accept, accepted_path, load_accepted
from router.config.findings import ConfigErrors
from router.config.load import load

EXAMPLE = Path(__file__).parents[2] / "config" / "four-channels.yaml"


@pytest.fixture
def run_dir(tmp_path):
    accept(tmp_path, EXAMPLE, EXAMPLE.read_text(), load(EXAMPLE).effective)
    return tmp_path


def test_the_accepted_configuration_comes_back_equal(run_dir):
    """By the cache, and by the text where there is no cache."""
    config = load(EXAMPLE).effective
    assert load_accepted(run_dir) == config
    (run_dir / "accepted.bin").unlink()
    assert load_accepted(run_dir) == config
    assert accepted_path(run_dir) == EXAMPLE


def test_a_cache_of_another_text_is_not_believed(run_dir):
    """The text is what was accepted; the cache must match it."""
    text = EXAMPLE.read_text().replace("name: branch-1", "name: branch-2")
    (run_dir / "accepted.yaml").write_text(text)
    assert load_accepted(run_dir).router.name == "branch-2"


def test_a_damaged_copy_is_refused_like_any_file(run_dir):
    """Not a crash: the findings of the loader."""
    (run_dir / "accepted.yaml").write_text("router: 7\n")
    with pytest.raises(ConfigErrors):
        load_accepted(run_dir)


def test_the_copies_are_for_their_owner_only(run_dir):
    """The configuration names secrets' places; nobody else needs it."""
    assert {path.stat().st_mode & 0o777 for path in run_dir.iterdir()} == {0o600}

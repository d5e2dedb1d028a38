"""Small printing helpers."""

import pytest

from router.cli.output import ago


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (59, "59s"),
        (60, "1m00s"),
        (3599, "59m59s"),
        (3600, "1h00m"),
        (86399, "23h59m"),
        (86400, "1d00h"),
    ],
)
def test_ages_use_the_two_largest_units(seconds, text):
    """Two units are enough to read, and never a wrong carry."""
    assert ago(1000.0, now=1000.0 + seconds) == text


def test_an_unknown_time_is_a_dash():
    """Nothing is invented for a time that is not known."""
    assert ago(None) == "-"

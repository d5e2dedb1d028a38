"""A change of cipher suite: one channel at a time, and never the last one that works."""

import pytest

from router.model import ChannelId, CipherSuite
from router.suite_roll import DOWN_S, Standing, SuiteRoll

OLD = CipherSuite.GCM_AES_XPN_256
A1, A2, B1 = map(ChannelId, ("a1", "a2", "b1"))
UP, DOWN = Standing(True, 0.0), Standing(False, 0.0)


@pytest.fixture
def roll():
    """Three channels that wait."""
    roll = SuiteRoll()
    for channel in (A1, A2, B1):
        roll.hold(channel, OLD)
    return roll


def test_one_goes_and_the_others_wait_until_it_is_back(roll):
    """In the order of the configuration."""
    up = {A1: UP, A2: UP, B1: UP}
    seen = []
    while (turn := roll.next(up, 100.0)) is not None:
        roll.let_go(turn)
        assert roll.next(up, 100.0) is None
        assert turn in roll.notice or not roll.held
        roll.arrived(turn)
        seen.append(turn)
    assert seen == [A1, A2, B1]
    assert roll.notice == ""


def test_the_rest_stay_as_they_are_where_the_far_end_is_not_ready(roll):
    """However long it takes: one channel is down, not the site."""
    roll.let_go(A1)
    assert roll.next({A1: DOWN, A2: UP, B1: UP}, 1e6) is None
    assert dict(roll.held) == {A2: OLD, B1: OLD}
    assert "until a1 is up again" in roll.notice


def test_a_channel_that_is_down_has_nothing_to_lose(roll):
    """The far end went first with it; but a verdict that is only just formed is not believed."""
    roll.let_go(A1)
    standings = {A1: DOWN, A2: UP, B1: Standing(False, 100.0)}
    assert roll.next(standings, 100.0 + DOWN_S - 0.1) is None
    assert roll.next(standings, 100.0 + DOWN_S) is B1


def test_a_channel_that_was_not_judged_yet_is_waited_for(roll):
    """A daemon that has just started knows nothing."""
    assert roll.next({}, 1e6) is None


def test_another_configuration_begins_anew(roll):
    """Nobody waits for what is no longer asked for."""
    roll.let_go(A1)
    roll.forget()
    assert roll.next({A1: DOWN, A2: UP}, 1e6) is None
    assert not roll.held

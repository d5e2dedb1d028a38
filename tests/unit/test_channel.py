"""The verdict: the lowest failing layer names the cause; since survives a changing reason."""

from dataclasses import replace

import pytest

from router.channel import ChannelFacts, FeatureFacts, MacsecFacts, SessionFacts, Verdict, Verdicts, judge
from router.model import ChannelId

SESSION = SessionFacts("c/a/ipv4", "ipv4", "established", "", 10, 10, 80)
FEATURE = FeatureFacts("c", "v1", True, True, "", (SESSION, replace(SESSION, afi="ipv6")))
GOOD = ChannelFacts(True, "port1", True, True, (), MacsecFacts(True, True, True, 100, 0), (FEATURE,))


def with_session(**changes):
    return replace(
        GOOD, features=(replace(FEATURE, sessions=(replace(SESSION, **changes), FEATURE.sessions[1])),)
    )


def test_all_layers_good_is_up():
    """No reason is given where nothing is wrong."""
    assert judge(GOOD) == (Verdict.UP, "")


@pytest.mark.parametrize(
    ("facts", "verdict", "reason"),
    [
        (replace(GOOD, enabled=False, carrier=False), Verdict.DISABLED, "disabled"),
        (replace(GOOD, port_present=False, carrier=False), Verdict.DOWN, "port1 does not exist"),
        (replace(GOOD, errors=("macsec m1: EINVAL",)), Verdict.DOWN, "EINVAL"),
        (replace(GOOD, carrier=False), Verdict.DOWN, "no carrier"),
        (replace(GOOD, macsec=replace(GOOD.macsec, present=False)), Verdict.DOWN, "device is missing"),
        (replace(GOOD, macsec=replace(GOOD.macsec, operational=False)), Verdict.DOWN, "transmit SA"),
        (replace(GOOD, macsec=replace(GOOD.macsec, receiving=False)), Verdict.DOWN, "receive SA"),
        (replace(GOOD, macsec=replace(GOOD.macsec, in_not_valid=3)), Verdict.DOWN, "SSCI order"),
        (replace(GOOD, features=(replace(FEATURE, present=False),)), Verdict.DOWN, "v1 is missing"),
        (replace(GOOD, features=(replace(FEATURE, up=False),)), Verdict.DOWN, "v1 is down"),
        (
            replace(GOOD, features=(replace(FEATURE, mtu_problem="mtu 8500, 1500 passes"),)),
            Verdict.DEGRADED,
            "1500",
        ),
        (with_session(state="idle", reason="wrong AS"), Verdict.DEGRADED, "ipv4 idle: wrong AS"),
        (with_session(prefixes_accepted=0), Verdict.DEGRADED, "10 refused by policy"),
        (with_session(prefixes_received=80), Verdict.DEGRADED, "warn level 80"),
    ],
)
def test_each_layer_names_its_cause(facts, verdict, reason):
    """One fault, one verdict, one reason that names it."""
    assert judge(facts)[0] is verdict
    assert reason in judge(facts)[1]


def test_lowest_layer_wins():
    """Without carrier nobody wants to read about BGP."""
    facts = replace(with_session(state="idle"), carrier=False)
    assert judge(facts) == (Verdict.DOWN, "no carrier on port1")


def test_no_session_left_is_down():
    """With all sessions gone nothing is forwarded."""
    sessions = tuple(replace(s, state="connecting") for s in FEATURE.sessions)
    assert judge(replace(GOOD, features=(replace(FEATURE, sessions=sessions),)))[0] is Verdict.DOWN


def test_since_is_the_time_of_the_verdict_not_of_its_reason():
    """A reason may change while a channel stays down; since does not."""
    verdicts, channel = Verdicts(), ChannelId("a")
    verdicts.update(channel, replace(GOOD, carrier=False), 1.0)
    assert verdicts.update(channel, replace(GOOD, carrier=False), 2.0) is None
    standing = verdicts.update(channel, replace(GOOD, port_present=False), 3.0)
    assert standing.since == 1.0
    assert verdicts.update(channel, GOOD, 4.0).since == 4.0
    verdicts.forget([])
    assert verdicts.get(channel) is None


def test_frames_in_clear_are_never_up_and_said_first():
    """Without any SA the channel forwards, so it is not down; but whoever looks is told, with the cause."""
    macsec = replace(
        GOOD.macsec,
        operational=False,
        receiving=False,
        unprotected=True,
        keys_reason="no MKPDU has been received",
    )
    verdict, reason = judge(replace(GOOD, macsec=macsec))
    assert verdict is Verdict.DEGRADED
    assert reason.startswith("UNPROTECTED: FRAMES PASS IN CLEAR")
    assert "no MKPDU has been received" in reason

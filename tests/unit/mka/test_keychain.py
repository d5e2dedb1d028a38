"""Key chains: which keys live when, what a provider allows, and which rule refuses a rotation."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import ConfigError
from router.mka.keychain import (
    BAKE_S,
    LIMITS,
    ChainKey,
    ChainLimits,
    ChannelKeys,
    Phase,
    Rotation,
    Rule,
    chain_limits,
    check,
    expiry_warning,
    live,
    make_key,
    next_change,
    phase,
    refuse_add,
    refuse_remove,
    refuse_replace,
    refuse_rotate,
)
from router.model import ChannelId, Secret

HOUR = 3600.0


def key(number, start, end=float("inf"), ckn_size=32, cak_size=32):
    return ChainKey(bytes([number]) * ckn_size, Secret(bytes([number ^ 0xFF]) * cak_size), start, end)


@pytest.mark.parametrize(
    ("wall", "expected"),
    [
        (899.9, Phase.FUTURE),
        (900.0, Phase.STANDBY),
        (999.9, Phase.STANDBY),
        (1000.0, Phase.ACTIVE),
        (1999.9, Phase.ACTIVE),
        (2000.0, Phase.EXPIRING),
        (2099.9, Phase.EXPIRING),
        (2100.0, Phase.EXPIRED),
    ],
)
def test_phases_have_sharp_edges(wall, expected):
    """A key participates from skew before its start to skew after its end, eligible only in between."""
    assert phase(key(1, 1000, 2000), wall, 100) is expected


def test_newest_key_comes_first_and_only_active_ones_are_eligible():
    """The order is the KaY's order of preference; standby and expiring keys are run but not chosen."""
    chain = [key(1, 0, 1000), key(2, 1000, 2000), key(3, 2000)]
    assert [(k.ckn[0], k.eligible) for k in live(chain, 950, 100)] == [(2, False), (1, True)]
    assert [(k.ckn[0], k.eligible) for k in live(chain, 1050, 100)] == [(2, True), (1, False)]
    assert [(k.ckn[0], k.eligible) for k in live(chain, 9999, 100)] == [(3, True)]


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50)), max_size=5),
    st.integers(0, 120),
    st.sampled_from([0.0, 3.0]),
)
def test_nothing_changes_before_next_change(spans, wall, skew):
    """The driver that calls again exactly at `next_change` misses nothing."""
    chain = [key(n, start, start + length) for n, (start, length) in enumerate(spans)]
    then = next_change(chain, wall, skew)
    before = live(chain, wall, skew)
    for step in range(1, 60):
        if then is not None and wall + step / 2 >= then:
            break
        assert live(chain, wall + step / 2, skew) == before


@given(st.integers(-600, 600), st.integers(0, 4000))
def test_clocks_ten_minutes_apart_always_have_a_key_in_common(offset, wall):
    """Two ends whose clocks differ by up to the skew share a participating key at every moment."""
    chain = [key(1, -99999, 1000), key(2, 1000, 2000), key(3, 2000, 99999)]
    ours = {k.ckn for k in live(chain, wall)}
    theirs = {k.ckn for k in live(chain, wall + offset)}
    assert ours & theirs


def test_expiry_is_warned_of_long_before():
    """30 days, and names a gap as such; silence while there is time; loud when nothing is active."""
    day = 86400.0
    assert expiry_warning([key(1, 0, 40 * day)], 0) == ""
    assert expiry_warning([key(1, 0, 40 * day)], 11 * day) == "the last key of the chain ends in 29.0 d"
    assert (
        expiry_warning([key(1, 0, day), key(2, 2 * day)], day - 1800)
        == "a gap in the key chain begins in 30.0 min"
    )
    assert expiry_warning([key(1, 0, day), key(2, day)], day - 5) == ""
    assert expiry_warning([key(1, 0, 10)], 4) == "the last key of the chain ends in 6 s"
    assert expiry_warning([key(1, 0, 10)], 10) == "no key of the chain is active now"


def chain_of(count, spacing=7 * HOUR, **sizes):
    return [key(n, n * spacing, **sizes) for n in range(count)]


@pytest.mark.parametrize(
    ("profile", "rules", "most"),
    [
        ("aws-dx", "provider", 3),
        ("gcp", "provider", 5),
        ("azure-er", "provider", 1),
        ("generic", "provider", 32),
        ("aws-dx", "open-spec", 2),
        ("gcp", "open-spec", 2),
        ("azure-er", "open-spec", 1),
    ],
)
def test_each_profile_bounds_its_chain(profile, rules, most):
    """n keys pass, n+1 are refused with the limit in the message."""
    limits = chain_limits(profile, rules)
    check(chain_of(most), limits, "a1")
    with pytest.raises(ConfigError, match=f"a1: {most + 1} keys, at most {most} allowed"):
        check(chain_of(most + 1), limits, "a1")


def test_the_open_specification_keeps_the_provider_s_sizes():
    """It counts keys; how long a name may be is the provider's to say."""
    assert chain_limits("aws-dx", "open-spec").ckn_sizes == LIMITS["aws-dx"].ckn_sizes
    assert chain_limits("gcp", "open-spec").spacing_s == LIMITS["gcp"].spacing_s


@pytest.mark.parametrize(
    ("keys", "limits", "message"),
    [
        (chain_of(2, spacing=6 * HOUR - 1), LIMITS["gcp"], "21599 s apart, at least 21600 s"),
        (chain_of(1, ckn_size=31), LIMITS["aws-dx"], "CKN has 31 octets, 32 allowed"),
        (chain_of(1, cak_size=16), LIMITS["aws-dx"], "CAK has 16 octets, 32 allowed"),
        (chain_of(1, ckn_size=33), LIMITS["generic"], "CKN has 33 octets, 1 to 32 allowed"),
        (chain_of(1, cak_size=24), LIMITS["generic"], "CAK has 24 octets, 16 or 32 allowed"),
        ([key(1, 0), key(1, 9)], LIMITS["generic"], "appears twice"),
        ([key(1, 5, 5)], LIMITS["generic"], "ends before it starts"),
    ],
)
def test_a_bad_chain_is_refused_with_the_reason(keys, limits, message):
    """Spacing, sizes, duplicates and turned-round lifetimes each have their sentence, without a secret."""
    with pytest.raises(ConfigError, match=message) as caught:
        check(keys, limits, "a1")
    assert not any(k.cak.reveal().hex() in str(caught.value) for k in keys)


def test_spacing_of_exactly_six_hours_is_enough():
    """The limit itself passes."""
    check(chain_of(5, spacing=6 * HOUR), LIMITS["gcp"], "a1")
    check([], ChainLimits(1), "a1")


A, B = ChannelId("a"), ChannelId("b")
IDLE = Rotation({A: ChannelKeys((b"1",), b"1"), B: ChannelKeys((b"2",), b"2")}, manager=True)
MID = replace(
    IDLE, channels={A: ChannelKeys((b"1", b"3"), b"1", frozenset({b"1", b"3"})), B: IDLE.channels[B]}
)


ROTATED = replace(IDLE, channels={**IDLE.channels, A: ChannelKeys((b"1",), b"1", rotated_at=0)})
TIMED = replace(
    IDLE,
    rules="provider",
    channels={**IDLE.channels, A: ChannelKeys((b"1", b"3"), b"1", starts=(float("-inf"), 9000))},
)
READY = ChannelKeys((b"2", b"4"), b"2", frozenset({b"2", b"4"}), frozenset({b"4"}))
LAID_READY = replace(
    IDLE, rules="provider", keys_max=3, channels={**IDLE.channels, A: ChannelKeys((b"1", b"3"), b"1")}
)
WAITING = replace(
    LAID_READY, channels={**IDLE.channels, A: ChannelKeys((b"1", b"3"), b"1", standby=frozenset({b"3"}))}
)


def test_a_whole_rotation_passes_every_rule():
    """Add, see live, switch, remove the old one: no rule stands in the way."""
    assert refuse_add(IDLE, A, b"3", 0) is None
    assert refuse_rotate(MID, A, b"3", 0) is None
    done = replace(MID, channels={A: ChannelKeys((b"1", b"3"), b"3", rotated_at=0), B: IDLE.channels[B]})
    assert refuse_remove(done, A, b"1") is None


@pytest.mark.parametrize(
    ("verdict", "rule"),
    [
        (lambda: refuse_add(replace(IDLE, manager=False), A, b"3", 0), Rule.NOT_MANAGER),
        (lambda: refuse_rotate(replace(MID, manager=False), A, b"3", 0), Rule.NOT_MANAGER),
        (lambda: refuse_remove(replace(MID, manager=False), A, b"1"), Rule.NOT_MANAGER),
        (lambda: refuse_add(IDLE, A, b"2", 0), Rule.CKN_TAKEN),
        (lambda: refuse_add(MID, B, b"4", 0), Rule.OTHER_CHANNEL),
        (lambda: refuse_rotate(MID, B, b"2", 0), Rule.OTHER_CHANNEL),
        (lambda: refuse_add(MID, A, b"4", 0), Rule.CHAIN_FULL),
        (lambda: refuse_add(replace(MID, keys_max=3), A, b"4", 0), Rule.INTERCONNECT_FULL),
        (lambda: refuse_add(ROTATED, B, b"4", BAKE_S - 1), Rule.BAKE),
        (lambda: refuse_add(ROTATED, B, b"4", BAKE_S), None),
        (lambda: refuse_add(replace(ROTATED, bake_s=5), B, b"4", 5), None),
        (lambda: refuse_add(ROTATED, A, b"4", 1), None),
        (lambda: refuse_add(ROTATED, B, b"4", 1, BAKE_S - 1), Rule.BAKE),
        (lambda: refuse_add(ROTATED, B, b"4", 1, BAKE_S), None),
        # Times of other channels' keys count as well, those to come.
        (lambda: refuse_add(TIMED, B, b"4", 0, 9000 - BAKE_S), None),
        (lambda: refuse_add(TIMED, B, b"4", 0, 9001 - BAKE_S), Rule.BAKE),
        (lambda: refuse_add(TIMED, B, b"4", 0, 8999 + BAKE_S), Rule.BAKE),
        (lambda: refuse_add(TIMED, B, b"4", 9001), None),
        (
            lambda: refuse_rotate(replace(TIMED, channels={**TIMED.channels, B: READY}), B, b"4", 8000),
            Rule.BAKE,
        ),
        # The provider's rules: several keys lie ready, and only one that waits for `rotate` is a rotation.
        (lambda: refuse_add(LAID_READY, B, b"4", 0), None),
        (lambda: refuse_add(replace(LAID_READY, rules="open-spec"), B, b"4", 0), Rule.OTHER_CHANNEL),
        (lambda: refuse_add(WAITING, B, b"4", 0), Rule.OTHER_CHANNEL),
        (lambda: refuse_add(WAITING, A, b"4", 0), None),
        (
            lambda: refuse_rotate(replace(WAITING, channels={**WAITING.channels, B: READY}), B, b"4", 0),
            Rule.OTHER_CHANNEL,
        ),
        # One key a channel: it can only be exchanged.
        (lambda: refuse_add(replace(IDLE, keys_max=1), A, b"3", 0), Rule.SINGLE_KEY),
        (lambda: refuse_replace(replace(IDLE, keys_max=1), A, b"3", 0), None),
        (lambda: refuse_replace(replace(IDLE, keys_max=1), A, b"2", 0), Rule.CKN_TAKEN),
        (lambda: refuse_replace(replace(IDLE, keys_max=1, manager=False), A, b"3", 0), Rule.NOT_MANAGER),
        (lambda: refuse_replace(replace(ROTATED, keys_max=1), B, b"3", 5), Rule.BAKE),
        (lambda: refuse_replace(IDLE, A, b"3", 0), Rule.NOT_SINGLE),
        (
            lambda: refuse_remove(replace(IDLE, channels={A: ChannelKeys((b"1", b"3"), b"")}), A, b"1"),
            Rule.IN_USE_UNKNOWN,
        ),
        (lambda: refuse_rotate(IDLE, A, b"9", 0), Rule.KEY_UNKNOWN),
        (lambda: refuse_remove(IDLE, A, b"9"), Rule.KEY_UNKNOWN),
        (lambda: refuse_remove(MID, A, b"1"), Rule.KEY_ACTIVE),
        (lambda: refuse_remove(MID, A, b"3"), None),
        (
            lambda: refuse_remove(replace(IDLE, channels={A: ChannelKeys((b"1",), None)}), A, b"1"),
            Rule.LAST_KEY,
        ),
        (
            lambda: refuse_rotate(
                replace(
                    MID, channels={A: ChannelKeys((b"1", b"3"), b"1", frozenset({b"1"})), B: IDLE.channels[B]}
                ),
                A,
                b"3",
                0,
            ),
            Rule.NEW_NOT_LIVE,
        ),
    ],
)
def test_the_rule_that_refuses_is_named(verdict, rule):
    """One channel at a time, two hours of bake, the manager only, never the active or the last key."""
    assert verdict() is rule


def test_a_made_key_shows_only_its_fingerprint():
    """16 hex digits that change with CKN and CAK; the key itself is in no text form."""
    one, two = make_key(b"n" * 32, b"k" * 32, 0), make_key(b"n" * 32, b"K" * 32, 0)
    assert one.fingerprint != two.fingerprint
    assert len(one.fingerprint) == 16
    assert "k" * 8 not in repr(one)
    assert (b"k" * 8).hex() not in repr(one)

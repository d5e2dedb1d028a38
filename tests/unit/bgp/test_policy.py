"""Deny by default, with a named reason for each refusal."""

from dataclasses import replace

import pytest
from bgp_builders import LOCAL_ASN, PEER_ASN, POLICY, make_config

from router.bgp.messages import Attributes, Segment
from router.bgp.policy import (
    Accepted,
    ConnectionImport,
    Export,
    ExportAttributes,
    Reason,
    SessionImport,
    explain,
    export_of,
    warn_level_reached,
)
from router.errors import ConfigError
from router.model import Prefix, pack_address

CONFIG = make_config(2)
V4, V6 = CONFIG.connections[0].features[0].sessions
GOOD = Attributes(as_path=(Segment(is_set=False, asns=(PEER_ASN, 65001)),))


def judge(prefix, **changes):
    config = make_config(2, **changes)
    return ConnectionImport(config, config.connections[0]).judge_prefix(Prefix.parse(prefix))


def path_of(*asns, is_set=False):
    return replace(GOOD, as_path=(Segment(is_set, asns),))


@pytest.mark.parametrize("prefix", ["10.20.0.0/16", "10.20.255.255/32", "2001:db8:20::/48", "172.31.0.0/24"])
def test_what_accept_names_is_taken(prefix):
    """And nothing else is needed."""
    assert judge(prefix) is None


@pytest.mark.parametrize(
    ("prefix", "reason"),
    [
        ("192.0.2.0/24", Reason.NOT_ACCEPTED),
        ("10.20.0.0/15", Reason.NOT_ACCEPTED),
        ("2001:db8:20::/65", Reason.NOT_ACCEPTED),
        ("0.0.0.0/0", Reason.DEFAULT_ROUTE),
        ("::/0", Reason.DEFAULT_ROUTE),
        ("127.0.0.0/8", Reason.MARTIAN),
        ("224.0.0.0/8", Reason.MARTIAN),
        ("169.254.7.0/24", Reason.MARTIAN),
        ("fe80::/64", Reason.MARTIAN),
        ("10.10.0.0/24", Reason.OWN_PREFIX),
        ("10.10.0.128/25", Reason.OWN_PREFIX),
        ("2001:db8:10::/64", Reason.OWN_PREFIX),
    ],
)
def test_what_is_refused_says_why(prefix, reason):
    """With an accept list that would take everything, where the reason is not the list itself."""
    everything = {"accept": ("0.0.0.0/0 ge 1 le 32", "::/0 ge 1 le 128")}
    assert judge(prefix, **({} if reason is Reason.NOT_ACCEPTED else everything)) is reason


def test_an_empty_accept_list_takes_nothing():
    """RFC 8212: no policy, no routes."""
    assert judge("10.20.0.0/16", accept=()) is Reason.NOT_ACCEPTED


def test_a_default_route_is_taken_only_where_it_is_named():
    """`0.0.0.0/0 ge 1 le 32` means everything but the default route; `0.0.0.0/0` means it."""
    assert judge("0.0.0.0/0", accept=("0.0.0.0/0 ge 1 le 32",)) is Reason.DEFAULT_ROUTE
    assert judge("0.0.0.0/0", accept=("0.0.0.0/0 ge 0 le 0",)) is None


def test_a_local_network_is_not_diverted():
    """The LAN itself and its more specifics; a summary over it is harmless."""
    changes = {"advertise": (), "accept": ("10.0.0.0/8 ge 8 le 32",)}
    assert judge("10.10.0.0/25", **changes) is Reason.LOCAL_OVERLAP
    assert judge("10.10.0.0/24", **changes) is Reason.LOCAL_OVERLAP
    assert judge("10.0.0.0/8", **changes) is None


def test_bogons_are_the_profiles():
    """RFC 1918 is normal on a private VIF and refused on a public one."""
    public = replace(POLICY, bogons=(Prefix.parse("10.0.0.0/8"),))
    assert judge("10.20.0.0/16") is None
    assert judge("10.20.0.0/16", policy=public) is Reason.BOGON


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        (Attributes(), Reason.EMPTY_PATH),
        (path_of(65001, PEER_ASN), Reason.FIRST_AS),
        (path_of(PEER_ASN, is_set=True), Reason.FIRST_AS),
        (path_of(PEER_ASN, LOCAL_ASN), Reason.OWN_AS),
        (path_of(PEER_ASN, 0), Reason.RESERVED_AS),
        (path_of(PEER_ASN, 23456), Reason.RESERVED_AS),
        (path_of(PEER_ASN, 65535), Reason.RESERVED_AS),
        (path_of(PEER_ASN, 4294967295), Reason.RESERVED_AS),
        (replace(GOOD, error="treat-as-withdraw due to origin"), Reason.TREAT_AS_WITHDRAW),
    ],
)
def test_a_bad_path_is_refused(attributes, reason):
    """Whatever the prefix."""
    assert SessionImport(V4).judge_path(attributes, ["169.254.1.2"]) is reason


def test_our_as_within_a_set_is_a_loop_too():
    """An aggregator may have put us there."""
    attributes = replace(GOOD, as_path=(*GOOD.as_path, Segment(is_set=True, asns=(LOCAL_ASN,))))
    assert SessionImport(V4).judge_path(attributes, ["169.254.1.2"]) is Reason.OWN_AS


def test_an_attribute_that_was_discarded_leaves_the_route():
    """RFC 7606 attribute discard is not a withdrawal."""
    verdict = SessionImport(V4).judge_path(replace(GOOD, error="discard due to aggregator"), ["169.254.1.2"])
    assert verdict == Accepted(pack_address("169.254.1.2"))


@pytest.mark.parametrize(
    ("session", "nexthops", "chosen"),
    [
        (V4, ["169.254.1.2"], "169.254.1.2"),
        (V4, ["169.254.1.1"], None),  # ourselves
        (V4, ["169.254.2.2"], None),  # another channel's link
        (V4, ["192.0.2.1"], None),
        (V4, ["fd00:1::2"], None),
        (V4, ["junk"], None),
        (V4, [], None),
        (V6, ["fd00:1::2", "fe80::1"], "fd00:1::2"),
        (V6, ["fe80::1", "fd00:1::2"], "fd00:1::2"),
        (V6, ["fe80::1"], "fe80::1"),
        (V6, ["2001:db8::1", "fe80::1"], None),
        (V6, ["::"], None),
    ],
)
def test_the_next_hop_is_on_the_link(session, nexthops, chosen):
    """The peer, another neighbour on the link, or a lone link-local address."""
    expected = Reason.NEXT_HOP if chosen is None else Accepted(pack_address(chosen))
    assert SessionImport(session).judge_path(GOOD, nexthops) == expected


def test_exactly_the_own_prefixes_are_exported():
    """By family, sorted, nothing learned."""
    connection = CONFIG.connections[0]
    assert export_of(V4, connection) == Export((Prefix.parse("10.10.0.0/24"),))
    assert export_of(V6, connection).prefixes == (Prefix.parse("2001:db8:10::/64"),)
    drained = ExportAttributes(communities=((65535, 0),), prepend=3)
    assert export_of(V4, connection, drained).attributes == drained


@pytest.mark.parametrize("count", [99, 100, 101])
def test_the_hundred_and_first_prefix_is_held_back_before_sending(count):
    """AWS would take the session to Idle."""
    config = make_config(1, advertise=tuple(f"10.30.{n}.0/24" for n in range(count)))
    if count <= 100:
        assert len(export_of(V4, config.connections[0]).prefixes) == count
    else:
        with pytest.raises(ConfigError, match="101 ipv4 prefixes to advertise exceed the profile's 100"):
            export_of(V4, config.connections[0])


def test_every_reason_can_be_explained():
    """No reason without its sentence."""
    for reason in Reason:
        assert explain(Prefix.parse("10.0.0.0/8"), reason).startswith("10.0.0.0/8 ")


def test_the_warn_level():
    """At the level, not one before."""
    policy = replace(POLICY, prefix_warn=10)
    assert [warn_level_reached(policy, n) for n in (9, 10, 11)] == [False, True, True]

"""ExaBGP's lines, captured from 5.0.15, as events; and whatever else may come as errors."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.bgp.messages import (
    Announcement,
    Eor,
    Fsm,
    GracefulRestart,
    Hello,
    Ignored,
    Negotiated,
    Notification,
    Open,
    Origin,
    Refresh,
    RefreshKind,
    Reply,
    Segment,
    SessionState,
    Shutdown,
    State,
    Update,
    parse,
)
from router.errors import ProtocolError
from router.model import Prefix

CAPTURED = Path(__file__).with_name("exabgp-5.0.15.txt").read_text().splitlines()
SAMPLES = dict(zip((line[2:] for line in CAPTURED[::2]), CAPTURED[1::2], strict=True))
GOOD = {title: line for title, line in SAMPLES.items() if "4.2.25" not in title}


def sample(start):
    (line,) = [line for title, line in SAMPLES.items() if title.startswith(start)]
    return line


def update(**changes):
    data = json.loads(sample("update announce v4"))
    data["neighbor"]["message"]["update"].update(changes)
    return json.dumps(data)


@pytest.mark.parametrize("title", GOOD)
def test_every_captured_message_is_understood(title):
    """One event of its own kind, never `Ignored`."""
    assert not isinstance(parse(GOOD[title]), Ignored)


def test_the_format_of_exabgp_4_is_refused_by_name():
    """Its AS path is flat and would read as empty: better no router than a wrong one."""
    with pytest.raises(ProtocolError, match=r"ExaBGP 4\.0\.1; the router needs ExaBGP 5\.0\.15"):
        parse(sample("the same from ExaBGP 4.2.25"))
    flat = json.loads(sample("the same from ExaBGP 4.2.25"))
    flat["exabgp"] = "5.0.0"
    with pytest.raises(ProtocolError, match="as-path is a list"):
        parse(json.dumps(flat))


def test_an_ipv6_prefix_under_two_next_hops_is_one_announcement():
    """Global and link-local next hop of one path: never ECMP."""
    event = parse(sample("update announce v6"))
    assert event.announce == (
        Announcement(
            ("fd00:10::2", "fe80::c87b:7bff:feff:fa63"),
            (Prefix.parse("::/0"), Prefix.parse("2001:db8:20::/48")),
        ),
    )


def test_prefixes_with_different_next_hops_stay_apart():
    """Only what is the same prefix is joined."""
    event = parse(
        update(
            announce={"ipv6 unicast": {"fd00::2": ["2001:db8::/48"], "fe80::1": ["2001:db8::/48", "::/0"]}}
        )
    )
    assert {a.nexthops: len(a.prefixes) for a in event.announce} == {
        ("fd00::2", "fe80::1"): 1,
        ("fe80::1",): 1,
    }


def test_nlri_may_be_objects_or_plain_strings():
    """`exabgp_api_compact` makes them strings."""
    long, short = (
        parse(update()),
        parse(update(announce={"ipv4 unicast": {"169.254.10.2": ["198.51.100.0/24"]}})),
    )
    assert long.announce == short.announce


def test_the_graceful_restart_labels_are_put_right():
    """R stands as "forwarding" in restart-flags, F as "restart" under the family."""
    assert parse(sample("open sent")).graceful_restart == GracefulRestart(
        120, restarting=True, forwarding=("ipv6/unicast",), families=("ipv6/unicast",)
    )
    received = parse(sample("open received"))
    assert received.graceful_restart == GracefulRestart(
        120, restarting=False, forwarding=(), families=("ipv6/unicast",)
    )


def test_the_as_of_an_open_is_the_four_octet_one():
    """23456 in the fixed field stands for the one in capability 65."""
    event = parse(sample("open received"))
    assert isinstance(event, Open)
    assert event.asn == 4200000020
    assert not event.sent
    assert "unknown" in event.capabilities


def test_a_path_of_segments_is_read_in_order():
    """Sequences and sets, numbered as strings; ten comes after nine."""
    path = {str(n): {"element": "as-sequence", "value": [n]} for n in range(11)}
    path["11"] = {"element": "as-set", "value": [65001, 65002]}
    event = parse(update(attribute={"origin": "egp", "as-path": path}))
    assert event.attributes.as_path[10] == Segment(is_set=False, asns=(10,))
    assert event.attributes.length == 12
    assert event.attributes.origin is Origin.EGP
    assert event.attributes.show_path().endswith("10 {65001,65002}")
    assert event.attributes.first_as == 0


def test_a_path_that_begins_with_a_set_has_no_first_as():
    """An aggregate's set says nothing about who sent it."""
    event = parse(update(attribute={"as-path": {"0": {"element": "as-set", "value": [65001]}}}))
    assert event.attributes.first_as is None


def test_unknown_attributes_are_kept_by_name():
    """`attribute-0x63-0xC0` and whatever a later minor version prints."""
    event = parse(update(attribute={"origin": "igp", "attribute-0x63-0xC0": "0xdead", "aigp": "0x0a"}))
    assert event.attributes.others == ("attribute-0x63-0xC0", "aigp")


def test_treat_as_withdraw_is_visible():
    """RFC 7606: ExaBGP turns it into a withdrawal with an "error"."""
    event = parse(
        update(
            attribute={"error": "treat-as-withdraw due to origin"},
            announce={},
            withdraw={"ipv4 unicast": ["10.0.0.0/8"]},
        )
    )
    assert event.withdraw == (Prefix.parse("10.0.0.0/8"),)
    assert event.attributes.error == "treat-as-withdraw due to origin"


def test_families_that_we_do_not_use_are_passed_over():
    """A peer that sends multicast or VPN routes costs nothing."""
    event = parse(update(announce={"ipv4 multicast": {"10.0.0.1": ["10.0.0.0/8"]}}))
    assert event.announce == ()


def test_kinds():
    """Each captured line is the event that it should be."""
    assert parse(sample("state up")).state is State.UP
    assert parse(sample("state connected")).state is State.CONNECTED
    down = parse(sample("state down, hold timer"))
    assert isinstance(down, SessionState)
    assert down.reason == "notification sent (4,0)"
    assert parse(sample("EOR v6")).family == "ipv6 unicast"
    assert isinstance(parse(sample("EOR v4")), Eor)
    assert isinstance(parse(sample("fsm")), Fsm)
    kinds = [parse(sample(f"route refresh {word}")).kind for word in ("begin", "end", "asked")]
    assert kinds == [RefreshKind.BEGIN, RefreshKind.END, RefreshKind.QUERY]
    assert isinstance(parse(sample("route refresh begin")), Refresh)
    assert parse(sample("shutdown")) == Shutdown(29737)
    negotiated = parse(sample("negotiated"))
    assert isinstance(negotiated, Negotiated)
    assert (negotiated.hold_time_s, negotiated.enhanced_refresh) == (30, True)
    assert isinstance(parse(sample("update withdraw")), Update)


def test_notifications_read_as_sentences():
    """Code, subcode and the shutdown communication; binary data is not printed."""
    text = str(parse(sample("notification received: Cease/Administrative Reset")))
    assert text == 'received Cease/Administrative Reset (6/4): Shutdown Communication: "maintenance TKT-42"'
    limit = parse(sample("notification received: Cease/Maximum Prefixes"))
    assert isinstance(limit, Notification)
    assert (limit.text, limit.data) == ("", bytes.fromhex("00010100000003"))
    assert str(parse(sample("notification sent"))) == "sent Hold Timer Expired (4/0)"


def test_the_shims_lines():
    """What the shim says for itself."""
    assert parse('{"shim":"hello","pid":1,"shim_pid":2,"age_s":0.5}') == Hello(1, 2, 0.5)
    assert parse('{"shim":"reply","id":3,"ok":true,"lines":["a"]}') == Reply(3, ok=True, lines=("a",))


@pytest.mark.parametrize(
    "line",
    ["", "done", "error", "[]", "{}", "null", "{", '{"exabgp":"5.0.0"}', '{"shim":"other"}', "[" * 100_000],
)
def test_other_lines_are_errors_and_nothing_worse(line):
    """They are counted; the next line is read as usual."""
    with pytest.raises(ProtocolError):
        parse(line)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_error_and_nothing_worse(line):
    """Never another exception."""
    with pytest.raises(ProtocolError):
        parse(line)


def leaves(data, path=()):
    if isinstance(data, dict):
        for key, value in data.items():
            yield from leaves(value, (*path, key))
    yield path


@pytest.mark.parametrize("title", GOOD)
def test_a_line_with_any_member_missing_or_mistyped_is_at_worst_an_error(title):
    """Every member of every captured line in turn: removed, null, a list, a string, an object."""
    for path in leaves(json.loads(GOOD[title])):
        if not path:
            continue
        for junk in (None, [], "junk", {"a": 1}, -1, "removed"):
            data = json.loads(GOOD[title])
            *above, last = path
            parent = data
            for key in above:
                parent = parent[key]
            if junk == "removed":
                del parent[last]
            else:
                parent[last] = junk
            with suppress(ProtocolError):
                parse(json.dumps(data))

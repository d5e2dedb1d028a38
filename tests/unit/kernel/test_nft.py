"""Rules and guards: rendered, read back, and any change by hand noticed."""

import copy

import pytest

from router.kernel.nft import normalise, parse_guards, parse_rules, render_guard, render_rules
from router.reconcile.objects import ControlPlaneRules, EgressGuard, PeerRule

RULES = ControlPlaneRules((PeerRule("a1.1101", "169.254.11.2"), PeerRule("a1.1101", "fd00:11::2")))
GUARD = EgressGuard("port1", (0x888E, 0x88E5))


def as_listed(objects):
    """Add what `nft -j list` adds, and count some packets."""
    listed = [{"metainfo": {"version": "1.0.6"}}]
    for handle, item in enumerate(copy.deepcopy(objects)):
        kind, body = next(iter(item.items()))
        body["handle"] = handle
        for expression in body.get("expr", []):
            if "counter" in expression:
                expression["counter"] = {"packets": 7, "bytes": 420}
        listed.append({kind: body})
    return listed


@pytest.mark.parametrize("rules", [RULES, ControlPlaneRules(()), ControlPlaneRules(RULES.peers[:1])])
def test_rules_read_back_as_they_were_rendered(rules):
    """Handles and counters are not differences."""
    assert parse_rules(as_listed(render_rules(rules))) == rules


@pytest.mark.parametrize("place", range(len(render_rules(RULES))))
def test_anything_taken_out_of_the_table_is_noticed(place):
    """Each table, set, chain and rule is missed when it is gone."""
    listed = as_listed(render_rules(RULES))
    del listed[place + 1]
    assert parse_rules(listed) != RULES


def test_rules_in_another_order_are_noticed():
    """A drop before its accept is not the same."""
    listed = as_listed(render_rules(RULES))
    listed[-1], listed[-2] = listed[-2], listed[-1]
    assert not parse_rules(listed).intact


def test_guards_read_back_as_they_were_rendered():
    """A guard is there with both directions, and only if nobody changed it."""
    listed = as_listed(render_guard(GUARD))
    assert parse_guards(listed) == {"port1": GUARD}
    for place in range(1, len(listed)):
        assert "port1" not in parse_guards(listed[:place] + listed[place + 1 :])


def test_a_guard_that_accepts_by_default_is_no_guard():
    """The policy is part of it."""
    listed = as_listed(render_guard(GUARD))
    listed[1]["chain"]["policy"] = "accept"
    assert parse_guards(listed) == {}


def test_normalising_keeps_the_order_of_rules():
    """Sets have no order, rules have."""
    objects = render_rules(RULES)
    assert normalise(objects) != normalise(list(reversed(objects)))


def test_a_guard_of_should_secure_reads_back_under_the_names_that_nft_gives():
    """nft lists EtherType 0x8100 as 8021q, and a guard that is whole is not taken for a changed one."""
    guard = EgressGuard("port1", (0x8100, 0x888E, 0x88E5))
    listed = as_listed(render_guard(guard))
    for item in listed:
        for expression in item.get("rule", {}).get("expr", []):
            if "match" in expression:
                types = expression["match"]["right"]["set"]
                expression["match"]["right"]["set"] = ["8021q" if t == 0x8100 else t for t in types]
    assert parse_guards(listed) == {"port1": guard}


def test_a_guard_of_must_secure_is_what_it_was():
    """Two EtherTypes, drop for the rest, both directions: nothing of should-secure touches it."""
    rules = [o["rule"] for o in render_guard(GUARD) if "rule" in o]
    chains = [o["chain"] for o in render_guard(GUARD) if "chain" in o]
    assert [rule["expr"][0]["match"]["right"] for rule in rules] == [{"set": [0x888E, 0x88E5]}] * 2
    assert [(chain["hook"], chain["policy"]) for chain in chains] == [("egress", "drop"), ("ingress", "drop")]

"""The decision process: each step in turn, and that the order of arrival means nothing."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from router.bgp.decision import Path, decide
from router.bgp.messages import Attributes, Origin, Segment
from router.model import Nexthop, pack_address


def path(
    session="s1",
    *,
    local_preference=100,
    asns=(64512,),
    origin=Origin.IGP,
    med=None,
    router_id=1,
    peer="169.254.1.2",
):
    attributes = Attributes(origin=origin, as_path=(Segment(is_set=False, asns=asns),), med=med)
    number = int(session[1:])
    return Path(
        session,
        attributes,
        local_preference,
        asns[0],
        router_id,
        pack_address(peer),
        Nexthop(f"ch{number}", pack_address(f"169.254.{number}.2")),
    )


def best(*paths, relax=False, most=16):
    return decide(paths, multipath_relax=relax, max_paths=most)


def sessions(decision):
    return [p.session for p in decision.multipath]


def test_without_paths_there_is_no_decision():
    """An empty set is a withdrawal."""
    assert best() is None


def test_each_step_beats_all_later_ones():
    """LOCAL_PREF over length over ORIGIN over MED over router id over address."""
    long = path("s1", asns=(64512, 1, 2), router_id=1)
    assert best(long, path("s2", local_preference=99)).best is long
    assert best(path("s1", asns=(64512, 1)), path("s2", origin=Origin.INCOMPLETE)).best.session == "s2"
    assert best(path("s1", origin=Origin.EGP), path("s2", med=100, router_id=9)).best.session == "s2"
    assert best(path("s1", med=10, router_id=1), path("s2", med=5, router_id=9)).best.session == "s2"
    assert best(path("s1", router_id=9), path("s2", router_id=1, peer="169.254.9.2")).best.session == "s2"
    assert best(path("s1", peer="169.254.9.2"), path("s2", peer="169.254.8.2")).best.session == "s2"


def test_a_missing_med_is_zero():
    """RFC 4271 9.1.2.2 c leaves no other reading that is deterministic."""
    assert best(path("s1", med=1), path("s2")).best.session == "s2"


def test_med_is_compared_within_one_neighbouring_as_only():
    """Another AS's metric means nothing."""
    decision = best(path("s1", asns=(64512,), med=100), path("s2", asns=(64513,), med=1), relax=True)
    assert sessions(decision) == ["s1", "s2"]


def test_a_set_counts_one_in_the_length():
    """An aggregate of many is as long as one hop."""
    aggregate = path("s1")
    as_set = Segment(is_set=True, asns=tuple(range(1, 9)))
    aggregate = replace(
        aggregate, attributes=replace(aggregate.attributes, as_path=(*aggregate.attributes.as_path, as_set))
    )
    assert best(aggregate, path("s2", asns=(64512, 1, 2))).best is aggregate


def test_equal_paths_share_the_traffic():
    """All that is equal before the router id."""
    four = [path(f"s{n}", router_id=n, peer=f"169.254.{n}.2") for n in range(1, 5)]
    assert sessions(best(*four)) == ["s1", "s2", "s3", "s4"]
    assert best(*four).best is four[0]


def test_multipath_needs_the_same_path_unless_relaxed():
    """As-path contents, not only their length."""
    paths = [path("s1", asns=(64512, 1)), path("s2", asns=(64512, 2), router_id=2)]
    assert sessions(best(*paths)) == ["s1"]
    assert sessions(best(*paths, relax=True)) == ["s1", "s2"]


def test_max_paths_keeps_the_best():
    """One less than there are, by the tie-breakers."""
    four = [path(f"s{n}", router_id=10 - n) for n in range(1, 5)]
    assert sessions(best(*four, most=3)) == ["s2", "s3", "s4"]
    assert sessions(best(*four, most=1)) == ["s4"]


def test_two_sessions_to_one_next_hop_are_one_path():
    """A nexthop group has no duplicates."""
    twin = replace(path("s2"), nexthop=path("s1").nexthop)
    assert len(best(path("s1"), twin).multipath) == 1


PATHS = st.builds(
    path,
    session=st.integers(1, 6).map("s{}".format),
    local_preference=st.sampled_from((100, 200)),
    asns=st.sampled_from(((64512,), (64513,), (64512, 1), (64513, 2), (64512, 2))),
    origin=st.sampled_from(Origin),
    med=st.sampled_from((None, 0, 1, 5)),
    router_id=st.integers(1, 3),
    peer=st.sampled_from(("169.254.1.2", "169.254.2.2")),
)


@given(
    st.lists(PATHS, max_size=6, unique_by=lambda p: p.session).flatmap(
        lambda paths: st.tuples(st.just(paths), st.permutations(paths))
    ),
    st.booleans(),
    st.integers(1, 4),
)
def test_the_order_of_arrival_means_nothing(orders, relax, most):
    """Any permutation: the same best path and the same set."""
    first, second = (best(*order, relax=relax, most=most) for order in orders)
    assert first == second


@given(st.lists(PATHS, min_size=2, max_size=6, unique_by=lambda p: p.session), st.booleans())
def test_a_path_that_lost_changes_nothing_by_leaving(paths, relax):
    """Withdrawing what was not chosen leaves the best path as it is, MED included."""
    decision = best(*paths, relax=relax)
    for loser in paths:
        if loser not in decision.multipath and loser.local_preference < decision.best.local_preference:
            rest = [p for p in paths if p is not loser]
            assert best(*rest, relax=relax) == decision


@given(st.lists(PATHS, min_size=1, max_size=6, unique_by=lambda p: p.session), st.integers(1, 4))
def test_the_best_path_is_in_its_set(paths, most):
    """And the set is never larger than asked."""
    decision = best(*paths, relax=True, most=most)
    assert decision.best.nexthop in {p.nexthop for p in decision.multipath}
    assert len(decision.multipath) <= most

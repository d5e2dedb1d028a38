"""The MTU proof against imaginary paths: what it concludes, and how soon."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.monitor.mtu import ATTEMPTS, MtuProof, MtuState


def run(proof: MtuProof, passes: int, until: float, *, lose: set[int] | None = None) -> float:
    """Let the path carry packets up to `passes` octets; drop the probes whose number is in `lose`."""
    now, sent = proof.since, 0
    while (now := max(now, proof.next_timer())) < until:
        proof.handle_timer(now)
        for probe in proof.take_outputs():
            sent += 1
            if probe.size <= passes and sent not in (lose or set()):
                proof.receive(probe.sequence, probe.size, now)
    return now


def test_path_that_carries_the_mtu_is_proven_at_once():
    """One probe of exactly the MTU is proof."""
    proof = MtuProof(mtu=8500, version=4, now=0.0)
    run(proof, 8500, 0.5)
    assert (proof.state, proof.passes) == (MtuState.PROVEN, 8500)


def test_one_lost_probe_is_not_a_small_mtu():
    """A size is retried before it counts as too large."""
    proof = MtuProof(mtu=8500, version=4, now=0.0)
    run(proof, 8500, 5.0, lose={1, 2})
    assert proof.state is MtuState.PROVEN


def test_a_pause_of_the_path_is_not_a_small_mtu():
    """A whole round of probes is lost, the smaller ones that follow pass: the MTU is tried again."""
    proof = MtuProof(mtu=8500, version=4, now=0.0)
    run(proof, 8500, 60.0, lose={1, 2, 3})
    assert (proof.state, proof.passes) == (MtuState.PROVEN, 8500)


def test_silent_neighbour_is_not_blamed_for_its_mtu():
    """Where not even the floor is answered, nothing is known."""
    proof = MtuProof(mtu=8500, version=6, now=0.0)
    run(proof, 0, 10.0)
    assert (proof.state, proof.passes) == (MtuState.SILENT, None)


@given(st.integers(576, 9000), st.integers(0, 9999))
def test_the_largest_passing_size_is_found(passes, mtu_above):
    """For every path MTU below ours, the alarm names it exactly."""
    mtu = passes + 1 + mtu_above % 9000
    proof = MtuProof(mtu=mtu, version=4, now=0.0)
    run(proof, passes, 100.0)
    assert (proof.state, proof.passes) == (MtuState.TOO_SMALL, passes)


def test_a_path_that_shrinks_and_heals_is_followed():
    """PROVEN is proved again and again."""
    proof = MtuProof(mtu=8500, version=4, now=0.0)
    now = run(proof, 8500, 30.0)
    now = run(proof, 1500, now + 100.0)
    assert (proof.state, proof.passes) == (MtuState.TOO_SMALL, 1500)
    run(proof, 8500, now + 30.0)
    assert proof.state is MtuState.PROVEN


def test_replies_that_nobody_asked_for_are_ignored():
    """Neither an unknown sequence number nor a reply of another size proves anything."""
    proof = MtuProof(mtu=8500, version=4, now=0.0)
    proof.handle_timer(0.0)
    (probe,) = proof.take_outputs()
    proof.receive(probe.sequence + 1, 8500, 0.1)
    proof.receive(probe.sequence, 8499, 0.1)
    assert proof.state is MtuState.UNKNOWN


@pytest.mark.parametrize("mtu", [1280, 576, 100])
def test_an_mtu_at_or_below_the_floor_works(mtu):
    """The floor never exceeds the MTU."""
    proof = MtuProof(mtu=mtu, version=6, now=0.0)
    run(proof, mtu, 1.0)
    assert proof.state is MtuState.PROVEN
    silent = MtuProof(mtu=mtu, version=6, now=0.0)
    run(silent, 0, ATTEMPTS + 2.0)
    assert silent.state is MtuState.SILENT

"""The CP table by itself, its deadlines at their edges, and answers that come from nowhere."""

import pytest
from mka_world import sci_of

from router.mka.cp import TABLE, Connect, Cp, CpState
from router.mka.events import (
    CreateReceiveSa,
    CreateTransmitSa,
    DeleteTransmitSa,
    EnableReceive,
    EnableTransmit,
    PortState,
    SetControlledPort,
)
from router.mka.keys import Sak
from router.mka.mkpdu import Confidentiality, KeyIdentifier
from router.model import CipherSuite, Secret

OURS, THEIRS = sci_of(10), sci_of(11)


def sak(kn, an, suite=CipherSuite.GCM_AES_128):
    return Sak(
        KeyIdentifier(b"s" * 12, kn),
        an,
        suite,
        Confidentiality.OFFSET_0,
        Secret(bytes([kn]) * 16),
        {OURS: 0, THEIRS: 0},
        frozenset({b"a", b"b"}),
        b"ckn",
        0.0,
    )


class Bench:
    """A CP with a SecY that answers when told."""

    def __init__(self, **config):
        self.outputs = []
        self.cp = Cp(sci=OURS, mixed_suites=False, outputs=self.outputs, **config)

    def run(self, now):
        self.cp.run(now)
        return self.cp.state

    def drain(self):
        operations = [output for output in self.outputs if hasattr(output, "id")]
        self.outputs.clear()
        return operations

    def answer(self, now, refuse=()):
        """Answer all operations, again and again, until there is none."""
        kinds = []
        while operations := self.drain():
            for operation in operations:
                kinds.append(type(operation))
                if isinstance(operation, tuple(refuse)):
                    self.cp.failed(operation.id, "EIO", now)
                else:
                    self.cp.succeeded(operation.id)
                self.cp.run(now)
        return kinds

    def secured(self, now, *, elected_self):
        self.cp.run(now)
        self.cp.connect, self.cp.elected_self = Connect.SECURE, elected_self
        self.cp.new_sak = sak(1, 0)
        self.cp.run(now)
        self.answer(now)
        self.cp.run(now)
        assert self.cp.state is CpState.RETIRE
        assert self.cp.port is PortState.SECURED


def test_every_state_has_a_row_an_exit_and_an_entry_action():
    """No state of the figure is forgotten, none is a trap, each is reachable."""
    assert set(TABLE) == set(CpState)
    for state, rows in TABLE.items():
        assert rows, state
        assert state is CpState.INIT or hasattr(Cp, f"_enter_{state.name.lower()}")
    reached, edge = set(), {CpState.INIT}
    while edge:
        reached |= edge
        edge = {target for state in edge for _, target in TABLE[state]} - reached
    assert reached == set(CpState)


def test_losing_connectivity_leads_to_change_from_every_state():
    """From wherever it is, the machine gets to CHANGE, where all SAs are gone and the port is closed."""
    for state, rows in TABLE.items():
        if state in {CpState.INIT, CpState.CHANGE}:
            continue
        assert rows[0][0].__name__ == "_changed_connect", state
        assert rows[0][1] in {CpState.CHANGE, CpState.ABANDON, CpState.RETIRE}


def test_receive_waits_for_every_answer():
    """Nothing is claimed while one operation is open; creation comes before any enabling."""
    bench = Bench()
    bench.run(0)
    bench.cp.connect = Connect.SECURE
    bench.cp.new_sak = sak(1, 0)
    assert bench.run(0) is CpState.RECEIVE
    first = bench.drain()
    assert not any(isinstance(operation, EnableReceive) for operation in first)
    for operation in first[:-1]:
        bench.cp.succeeded(operation.id)
        assert bench.run(0) is CpState.RECEIVE
    bench.cp.succeeded(first[-1].id)
    assert bench.run(0) is CpState.RECEIVE
    (enable,) = bench.drain()
    assert isinstance(enable, EnableReceive)
    bench.cp.succeeded(enable.id)
    assert bench.run(0) is not CpState.RECEIVE
    assert bench.cp.latest.rx


def test_a_key_is_known_before_a_frame_can_pass_under_it():
    """Whoever stores `sak.known` is never late, wherever the process dies."""
    bench = Bench()
    bench.run(0)
    bench.cp.connect = Connect.SECURE
    bench.cp.new_sak = sak(1, 0)
    bench.run(0)
    order = []
    while bench.outputs:
        output = bench.outputs.pop(0)
        order.append(getattr(output, "name", type(output).__name__))
        if hasattr(output, "id"):
            bench.cp.succeeded(output.id)
            bench.cp.run(0)
    assert order.index("CreateTransmitSa") < order.index("sak.known") < order.index("EnableReceive")
    assert order.index("EnableReceive") < order.index("EnableTransmit")


@pytest.mark.parametrize(("seconds", "expected"), [(5.999, CpState.RECEIVING), (6.0, CpState.TRANSMIT)])
def test_the_server_waits_six_seconds_for_all_to_receive(seconds, expected):
    """transmitWhen is the MKA Life Time, to the moment."""
    bench = Bench()
    bench.secured(0, elected_self=True)
    bench.cp.new_sak = sak(2, 1)
    bench.run(10)
    bench.answer(10)
    assert bench.run(10 + seconds) is expected


@pytest.mark.parametrize(("seconds", "expected"), [(2.999, CpState.TRANSMITTING), (3.0, CpState.RETIRE)])
def test_the_old_sa_lives_three_seconds_more(seconds, expected):
    """retireWhen is the SAK Retire Time, and only then is the old SA deleted."""
    bench = Bench()
    bench.secured(0, elected_self=True)
    bench.cp.new_sak, bench.cp.all_receiving = sak(2, 1), True
    bench.run(10)
    assert DeleteTransmitSa not in bench.answer(10)
    assert bench.run(10 + seconds) is expected
    assert (DeleteTransmitSa in [type(o) for o in bench.drain()]) is (expected is CpState.RETIRE)


@pytest.mark.parametrize(
    ("all_transmitting", "seconds", "expected"),
    [
        (True, 0.249, CpState.TRANSMITTING),
        (True, 0.25, CpState.RETIRE),
        (False, 2.999, CpState.TRANSMITTING),
        (False, 3.0, CpState.RETIRE),
    ],
)
def test_a_shorter_retire_time_counts_once_all_transmit(all_transmitting, seconds, expected):
    """Where the wire is known to delay less the old SA goes earlier, but not from under who still uses it."""
    bench = Bench(sak_retire_time_s=0.25)
    bench.secured(0, elected_self=True)
    bench.cp.new_sak, bench.cp.all_receiving, bench.cp.all_transmitting = sak(2, 1), True, all_transmitting
    bench.run(10)
    bench.answer(10)
    assert bench.run(10 + seconds) is expected


def test_a_longer_retire_time_is_kept():
    """Ten seconds are ten seconds."""
    bench = Bench(sak_retire_time_s=10.0)
    bench.secured(0, elected_self=True)
    bench.cp.new_sak, bench.cp.all_receiving, bench.cp.all_transmitting = sak(2, 1), True, True
    bench.run(10)
    bench.answer(10)
    assert bench.run(19.999) is CpState.TRANSMITTING
    assert bench.run(20) is CpState.RETIRE


@pytest.mark.parametrize(("seconds", "expected"), [(11.999, CpState.READY), (12.0, CpState.ABANDON)])
def test_a_key_the_server_never_transmits_under_is_abandoned(seconds, expected):
    """Twice the life time in READY, then the old key alone is left."""
    bench = Bench()
    bench.secured(0, elected_self=False)
    bench.cp.new_sak = sak(2, 1)
    bench.run(10)
    bench.answer(10)
    assert bench.run(10 + seconds) is expected
    assert bench.cp.in_use.key.ki.kn == 1


def test_a_refused_creation_goes_to_abandon_with_the_old_key_in_use():
    """What was created is deleted again, the refusal is reported, and the key may be tried once more."""
    bench = Bench()
    bench.secured(0, elected_self=True)
    bench.cp.new_sak = sak(2, 1)
    bench.run(10)
    kinds = bench.answer(10, refuse=[CreateTransmitSa])
    assert bench.cp.state is CpState.ABANDON
    assert EnableReceive not in kinds
    slot, reason = bench.cp.refusal
    assert (slot.key.ki.kn, slot.exposed, reason) == (2, False, "EIO")
    assert bench.cp.in_use.key.ki.kn == 1
    bench.cp.new_sak = sak(2, 1)
    bench.run(12)
    bench.answer(12)
    assert bench.cp.latest.rx


def test_enable_transmit_is_tried_for_as_long_as_the_old_key_is_taken():
    """Six times, half a second apart; then the old SA is made the encoding one again, the key given up."""
    bench = Bench()
    bench.secured(0, elected_self=True)
    bench.cp.new_sak, bench.cp.all_receiving = sak(2, 1), True
    bench.run(10)
    bench.answer(10, refuse=[EnableTransmit])
    assert bench.run(10.4) is CpState.TRANSMIT
    for again in (10.5, 11.0, 11.5, 12.0):
        assert bench.run(again) is CpState.TRANSMIT
        bench.answer(again, refuse=[EnableTransmit])
    assert bench.run(12.5) is CpState.TRANSMIT
    (last,) = [operation for operation in bench.drain() if isinstance(operation, EnableTransmit)]
    bench.cp.failed(last.id, "EIO", 12.5)
    assert bench.run(12.5) is CpState.ABANDON
    again = [operation for operation in bench.drain() if isinstance(operation, EnableTransmit)]
    assert [operation.an for operation in again] == [0]
    assert bench.cp.keys_lost


def test_answers_to_unknown_or_stale_operations_change_nothing():
    """A late answer of an abandoned installation is not taken for one of the present."""
    bench = Bench()
    bench.secured(0, elected_self=True)
    before = (bench.cp.state, bench.cp.latest, bench.cp.old)
    for operation in (0, -1, 10**9, 1, 2, 3):
        bench.cp.succeeded(operation)
        bench.cp.failed(operation, "EIO", 1.0)
        bench.cp.run(1.0)
    assert (bench.cp.state, bench.cp.latest, bench.cp.old) == before
    assert bench.drain() == []


def test_the_same_an_again_replaces_the_old_sa_first():
    """The AN is the server's choice: where it meets the key in use, that is deleted before."""
    bench = Bench()
    bench.secured(0, elected_self=False)
    bench.cp.new_sak = sak(2, 0)
    bench.run(10)
    kinds = [type(operation) for operation in bench.drain()]
    assert kinds.index(DeleteTransmitSa) < kinds.index(CreateReceiveSa)
    assert bench.cp.old is None


def test_the_port_is_told_closed_at_start_and_again_until_it_is():
    """A former process may have left it open; a refusal is not the last word."""
    bench = Bench()
    bench.run(0)
    (told,) = bench.drain()
    assert isinstance(told, SetControlledPort)
    assert told.state is PortState.CLOSED
    bench.cp.failed(told.id, "EIO", 0)
    assert bench.cp.timers() == [1.0]
    bench.run(1.0)
    (again,) = bench.drain()
    assert again.state is PortState.CLOSED
    assert again.id != told.id

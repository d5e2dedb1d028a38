"""The Controlled Port state machine, CP (IEEE 802.1X-2020 12.4, figure 12-2), as a table.

`TABLE[state]` is a tuple of `(guard, next state)`; the first guard that holds is taken, then the
entry action of the new state runs, and so on to a fixed point. Guards read variables that the KaY
sets (`connect`, `elected_self`, `all_receiving`, ...) and answers of the SecY.

    SECURED -> RECEIVE    receive SAs created and enabled everywhere, transmit SA created
            -> RECEIVING  claimed to the peers; the key server waits for all, at most 6 s
            -> READY      the others wait for the key server to transmit
            -> TRANSMIT   switch transmission to the new SA, open the port
            -> TRANSMITTING -> RETIRE  a retire time later the old SA goes; the key in use is now "old"

Two keys exist at most, `latest` and `old`. After RETIRE the key in use is `old` and there is no
latest; that is how it appears in SAK Use.

Beyond the figure, because a SecY may refuse:
* RECEIVE waits for answers and goes to ABANDON on a refusal, with the old key still in use.
* TRANSMIT repeats a refused EnableTransmit, which never resets a PN, for 2.5 s: the others, who may
  send under the new key already, take our old one for longer. Then it gives up into ABANDON, and the
  old SA is made the encoding one again.
* READY ends in ABANDON after 12 s. A key server that is alive and has not transmitted under the key by
  then has abandoned it; without this, a delayed Distributed SAK leaves a second key forever.
* Deletions and the port's state are repeated until the SecY accepts them.

And because 3 s are long: with a shorter SAK Retire Time TRANSMITTING ends that long after our switch
only if all members have said that they transmit under the new key, else after the standard's time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final

from router.mka.events import (
    ConfigureSecy,
    CreateReceiveSa,
    CreateReceiveSc,
    CreateTransmitSa,
    DeleteReceiveSa,
    DeleteReceiveSc,
    DeleteTransmitSa,
    EnableReceive,
    EnableTransmit,
    Output,
    PortState,
    SecyOperation,
    SetControlledPort,
    fact,
)
from router.mka.keys import Sak
from router.model import CipherSuite, Confidentiality, Sci

# Of the standard (table 9-3, 12.3).
MKA_LIFE_TIME_S: Final = 6.0
SAK_RETIRE_TIME_S: Final = 3.0
"""MKA SAK Retire Time: how long an old SA still receives. The default; see `KayConfig`."""
# Of ours.
READY_TIME_S: Final = 12.0
"""Longest wait for the key server to transmit: it waits for us 6 s at most, then says so every 2 s."""
ENABLE_RETRY_S: Final = 0.5
ENABLE_TRIES_MAX: Final = 6
TRANSITIONS_MAX: Final = 64
"""Steps that are remembered for explain."""
REPEAT_S: Final = 1.0
"""After which a refused deletion is tried again."""


class CpState(Enum):
    """States of figure 12-2."""

    INIT = "INIT"
    CHANGE = "CHANGE"
    ALLOWED = "ALLOWED"
    AUTHENTICATED = "AUTHENTICATED"
    SECURED = "SECURED"
    RECEIVE = "RECEIVE"
    RECEIVING = "RECEIVING"
    READY = "READY"
    TRANSMIT = "TRANSMIT"
    TRANSMITTING = "TRANSMITTING"
    ABANDON = "ABANDON"
    RETIRE = "RETIRE"


class Connect(Enum):
    """What connectivity the KaY allows (12.4.1)."""

    PENDING = "pending"
    """None: the port is closed."""
    UNAUTHENTICATED = "unauthenticated"
    """Plain frames: no peer proved that it holds a CAK (should-secure only)."""
    AUTHENTICATED = "authenticated"
    """Plain frames with a proven peer: the key server chose so (should-secure only)."""
    SECURE = "secure"
    """MACsec."""


@dataclass(frozen=True, slots=True)
class Transition:
    """One step of the CP machine."""

    at: float
    was: CpState
    now: CpState
    why: str
    """Name of the guard that held."""


@dataclass(slots=True)
class Slot:
    """A key's SAs in our SecY, as SAK Use reports them."""

    key: Sak
    rx: bool = False
    tx: bool = False
    awaiting: set[int] = field(default_factory=set)
    """Operations of its installation that the SecY has not answered."""
    exposed: bool = False
    """Frames may have been let in under it: installing it again would let the same ones in again."""
    refused: str = ""
    """Why the SecY refused one of them."""
    transmit_tried: bool = False


Guard = Callable[["Cp", float], bool]


def _always(_cp: Cp, _now: float) -> bool:
    return True


def _unauthenticated(cp: Cp, _now: float) -> bool:
    return cp.connect is Connect.UNAUTHENTICATED


def _authenticated(cp: Cp, _now: float) -> bool:
    return cp.connect is Connect.AUTHENTICATED


def _secure(cp: Cp, _now: float) -> bool:
    return cp.connect is Connect.SECURE


def _changed_connect(cp: Cp, _now: float) -> bool:
    return cp.connect is not cp.connect_acted


def _new_sak(cp: Cp, _now: float) -> bool:
    return cp.new_sak is not None


def _not_elected_self(cp: Cp, _now: float) -> bool:
    return not cp.elected_self


def _all_receiving(cp: Cp, _now: float) -> bool:
    return cp.all_receiving


def _server_transmitting(cp: Cp, _now: float) -> bool:
    return cp.server_transmitting


def _port_not_open(cp: Cp, _now: float) -> bool:
    return cp.port is not PortState.SECURED


def _transmit_when_over(cp: Cp, now: float) -> bool:
    return cp.transmit_when is not None and now >= cp.transmit_when


def _ready_when_over(cp: Cp, now: float) -> bool:
    return cp.ready_when is not None and now >= cp.ready_when


def _retire_when_over(cp: Cp, now: float) -> bool:
    return cp.retire_latest is not None and now >= cp.retire_latest


def _all_transmitting(cp: Cp, now: float) -> bool:
    return cp.all_transmitting and cp.retire_when is not None and now >= cp.retire_when


def _using_receive_sas(cp: Cp, _now: float) -> bool:
    return cp.latest is not None and cp.latest.exposed and not cp.latest.awaiting and not cp.latest.refused


def _secy_refused(cp: Cp, _now: float) -> bool:
    return cp.latest is not None and bool(cp.latest.refused)


def _using_transmit_sa(cp: Cp, _now: float) -> bool:
    return cp.using_transmit_sa


def _enable_given_up(cp: Cp, _now: float) -> bool:
    return cp.enable_refusals >= ENABLE_TRIES_MAX


def _enable_again(cp: Cp, now: float) -> bool:
    return cp.enable_retry_at is not None and now >= cp.enable_retry_at


_S = CpState
TABLE: Final[dict[CpState, tuple[tuple[Guard, CpState], ...]]] = {
    _S.INIT: ((_always, _S.CHANGE),),
    _S.CHANGE: (
        (_unauthenticated, _S.ALLOWED),
        (_authenticated, _S.AUTHENTICATED),
        (_secure, _S.SECURED),
    ),
    _S.ALLOWED: ((_changed_connect, _S.CHANGE),),
    _S.AUTHENTICATED: ((_changed_connect, _S.CHANGE),),
    _S.SECURED: ((_changed_connect, _S.CHANGE), (_new_sak, _S.RECEIVE)),
    _S.RECEIVE: (
        (_changed_connect, _S.ABANDON),
        (_secy_refused, _S.ABANDON),
        (_using_receive_sas, _S.RECEIVING),
    ),
    _S.RECEIVING: (
        (_changed_connect, _S.ABANDON),
        (_new_sak, _S.ABANDON),
        (_not_elected_self, _S.READY),
        (_all_receiving, _S.TRANSMIT),
        (_port_not_open, _S.TRANSMIT),
        (_transmit_when_over, _S.TRANSMIT),
    ),
    _S.READY: (
        (_changed_connect, _S.ABANDON),
        (_new_sak, _S.ABANDON),
        (_server_transmitting, _S.TRANSMIT),
        (_port_not_open, _S.TRANSMIT),
        (_ready_when_over, _S.ABANDON),
    ),
    _S.TRANSMIT: (
        (_changed_connect, _S.RETIRE),
        (_using_transmit_sa, _S.TRANSMITTING),
        (_enable_given_up, _S.ABANDON),
        (_enable_again, _S.TRANSMIT),
    ),
    _S.TRANSMITTING: (
        (_changed_connect, _S.RETIRE),
        (_retire_when_over, _S.RETIRE),
        (_all_transmitting, _S.RETIRE),
    ),
    _S.ABANDON: ((_changed_connect, _S.RETIRE), (_new_sak, _S.RECEIVE)),
    _S.RETIRE: ((_changed_connect, _S.CHANGE), (_new_sak, _S.RECEIVE)),
}

TAKES_KEY: Final = frozenset({_S.CHANGE, _S.SECURED, _S.RECEIVING, _S.READY, _S.ABANDON, _S.RETIRE})
"""Where a new SAK is taken at once. The key server makes none elsewhere: it would only wait."""


class Cp:
    """The machine of one port. Driven by `run(now)` after its variables were set, and by answers."""

    def __init__(
        self,
        *,
        sci: Sci,
        mixed_suites: bool,
        outputs: list[Output],
        sak_retire_time_s: float = SAK_RETIRE_TIME_S,
    ) -> None:
        self._sci = sci
        self._mixed_suites = mixed_suites
        self._sak_retire_time_s = sak_retire_time_s
        self._outputs = outputs
        self._id = 0
        self.state = CpState.INIT
        # Set by the KaY.
        self.connect = Connect.PENDING
        self.elected_self = False
        self.all_receiving = False
        self.all_transmitting = False
        self.server_transmitting = False
        self.new_sak: Sak | None = None
        # Our own.
        self.connect_acted = Connect.PENDING
        self.latest: Slot | None = None
        self.old: Slot | None = None
        self.port = PortState.CLOSED
        self._port_told = False
        self.using_transmit_sa = False
        self.enable_refusals = 0
        self.transmit_when: float | None = None
        self.ready_when: float | None = None
        self.retire_when: float | None = None
        self.retire_latest: float | None = None
        self.enable_retry_at: float | None = None
        self._enabling: int | None = None
        self._configured: tuple[CipherSuite, Confidentiality] | None = None
        self._receive_scs: set[Sci] = set()
        self._strays: list[tuple[Sci, int]] = []
        """Receive SAs that we found and nobody may miss yet: they go with the next key."""
        self._persistent: dict[int, SecyOperation] = {}
        """Issued operations that must succeed in the end: deletions and the port's state."""
        self._repeat: list[SecyOperation] = []
        self._repeat_at: float | None = None
        self.transitions: deque[Transition] = deque(maxlen=TRANSITIONS_MAX)
        # For the KaY to collect.
        self.new_info = False
        """SAK Use has changed: tell the peers now."""
        self.refusal: tuple[Slot, str] | None = None
        """A key that the SecY would not take, and why."""
        self.keys_lost = False
        """SAs were deleted other than by a rollover: their key must never be installed again."""

    # ----------------------------------------------------------------- driving

    def run(self, now: float) -> bool:
        """Fire transitions to a fixed point; tell whether there were any."""
        moved = False
        while (step := self._step(now)) is not None:
            guard, state = step
            why = guard.__name__.removeprefix("_")
            self.transitions.append(Transition(now, self.state, state, why))
            self._outputs.append(fact("cp.state", was=self.state.value, now=state.value, why=why))
            self.state = state
            getattr(self, f"_enter_{state.name.lower()}")(now)
            moved = True
        if self._repeat_at is not None and now >= self._repeat_at:
            self._repeat_at = None
            again, self._repeat = self._repeat, []
            for operation in again:
                if self._superseded(operation):
                    continue
                self._persist(replace(operation, id=self.next_id()))
        return moved

    def _step(self, now: float) -> tuple[Guard, CpState] | None:
        return next((row for row in TABLE[self.state] if row[0](self, now)), None)

    def timers(self) -> list[float]:
        """All of the machine's deadlines, past ones that wait for something else among them."""
        times = (
            self.transmit_when, self.ready_when, self.retire_when, self.retire_latest, self.enable_retry_at,
            self._repeat_at,
        )  # fmt: skip
        return [time for time in times if time is not None]

    def succeeded(self, operation: int) -> None:
        """The SecY did it."""
        if (slot := self.latest) is not None:
            slot.awaiting.discard(operation)
            if not slot.awaiting and not slot.refused and not slot.exposed:
                self._enable_receive(slot)
        if operation == self._enabling:
            self._enabling = None
            self.using_transmit_sa = True
        self._persistent.pop(operation, None)

    def failed(self, operation: int, reason: str, now: float) -> None:
        """The SecY refused. Answers to operations of an abandoned key are of no interest."""
        if self.latest is not None and operation in self.latest.awaiting:
            self.latest.refused = self.latest.refused or reason
        elif operation == self._enabling:
            self._enabling = None
            self.enable_refusals += 1
            self.enable_retry_at = now + ENABLE_RETRY_S
        else:
            again = self._persistent.pop(operation, None)
            if again is not None and not self._superseded(again):
                self._repeat.append(again)
                self._repeat_at = self._repeat_at or now + REPEAT_S

    def _superseded(self, operation: SecyOperation) -> bool:
        """Whether something later has made the operation wrong."""
        if isinstance(operation, SetControlledPort):
            return operation.state is not self.port
        if isinstance(operation, EnableTransmit):
            trying = self.latest is not None and self.latest.transmit_tried
            return trying or self.old is None or self.old.key.an != operation.an
        return False

    @property
    def idle(self) -> bool:
        """Whether the SecY has answered everything that matters to the key in use."""
        return self._enabling is None and not self._persistent and not self._repeat

    @property
    def in_use(self) -> Slot | None:
        """The key that we transmit under."""
        if self.latest is not None and self.latest.tx:
            return self.latest
        return self.old

    def adopt(self, key: Sak) -> None:
        """Start with SAs that a former incarnation left in the SecY: in use, and to be replaced."""
        assert self.state is CpState.INIT
        self.state = CpState.RETIRE
        self.connect = self.connect_acted = Connect.SECURE
        self._set_port(PortState.SECURED)
        self.old = Slot(key, rx=True, tx=True)
        self._receive_scs = set(key.members) - {self._sci}
        self._configured = (key.suite, key.confidentiality)

    # ------------------------------------------------------------ entry actions

    def _enter_change(self, _now: float) -> None:
        self.keys_lost = self.keys_lost or self.latest is not None or self.old is not None
        for slot in (self.latest, self.old):
            if slot is not None:
                self._delete(slot)
        self.latest = self.old = self.new_sak = None
        self._drop_strays()
        self._drop_receive_scs()
        self._set_port(PortState.CLOSED)
        self.new_info = True

    def _enter_allowed(self, _now: float) -> None:
        self.connect_acted = self.connect
        self._set_port(PortState.UNPROTECTED)

    def _enter_authenticated(self, _now: float) -> None:
        self.connect_acted = self.connect
        self._set_port(PortState.UNPROTECTED)

    def _enter_secured(self, _now: float) -> None:
        self.connect_acted = self.connect

    def _enter_receive(self, _now: float) -> None:
        key = self.new_sak
        assert key is not None
        self.new_sak = None
        slot = self.latest = Slot(key)
        reconfigure = (key.suite, key.confidentiality) != self._configured
        anew = reconfigure and self._configured is not None and self._configured[0] is not key.suite
        if self.old is not None and (self.old.key.an == key.an or (anew and not self._mixed_suites)):
            # The SecY cannot hold both: the AN is the server's choice, one suite the kernel's limit.
            self._outputs.append(fact("sak.interrupted", an=self.old.key.an, suite=str(key.suite)))
            self._delete(self.old)
            self.old = None
        self._drop_strays(range(4) if self.old is None else {key.an})
        self._clear_leftovers(key)
        if reconfigure:
            if anew and not self._mixed_suites:
                self._receive_scs.clear()
            self._configured = (key.suite, key.confidentiality)
            self._install(slot, ConfigureSecy(self.next_id(), key.suite, key.confidentiality))
        others = [sci for sci in key.members if sci != self._sci]
        for sci in others:
            if sci not in self._receive_scs:
                self._receive_scs.add(sci)
                self._install(slot, CreateReceiveSc(self.next_id(), sci))
            self._install(slot, CreateReceiveSa(self.next_id(), sci, key.an, key.key_of(sci), 1))
        self._install(slot, CreateTransmitSa(self.next_id(), key.an, key.key_of(self._sci), 1))

    def _enable_receive(self, slot: Slot) -> None:
        """All SAs are created. Only now is any enabled, so that a refusal until here can be repeated."""
        slot.exposed = True
        # Before the first frame can pass under it, so that whoever stores this fact is never late.
        self._outputs.append(fact("sak.known", key_id=slot.key.ki.pack().hex()))
        for sci in slot.key.members:
            if sci != self._sci:
                self._install(slot, EnableReceive(self.next_id(), sci, slot.key.an))

    def _enter_receiving(self, now: float) -> None:
        assert self.latest is not None
        self.latest.rx = True
        self.transmit_when = now + MKA_LIFE_TIME_S
        self.new_info = True

    def _enter_ready(self, now: float) -> None:
        self.transmit_when = None
        self.ready_when = now + READY_TIME_S
        self.new_info = True

    def _enter_transmit(self, _now: float) -> None:
        assert self.latest is not None
        if not self.latest.transmit_tried:
            self.enable_refusals = 0
        self.transmit_when = self.ready_when = self.enable_retry_at = None
        self.using_transmit_sa = False
        self.latest.transmit_tried = True
        self._enabling = self.next_id()
        self._outputs.append(EnableTransmit(self._enabling, self.latest.key.an))

    def _enter_transmitting(self, now: float) -> None:
        assert self.latest is not None
        self.latest.tx = True
        self._set_port(PortState.SECURED)
        overlaps = self.old is not None and self.old.rx
        self.retire_when = now + (self._sak_retire_time_s if overlaps else 0.0)
        self.retire_latest = now + (max(self._sak_retire_time_s, SAK_RETIRE_TIME_S) if overlaps else 0.0)
        if self.old is not None:
            self.old.tx = False
        self.new_info = True
        self._outputs.append(
            fact(
                "sak.in_use",
                ki=str(self.latest.key.ki),
                an=self.latest.key.an,
                suite=str(self.latest.key.suite),
            )
        )

    def _enter_retire(self, _now: float) -> None:
        self.retire_when = self.retire_latest = self.enable_retry_at = None
        self._enabling = None
        if self.old is not None:
            self._delete(self.old)
        self.old, self.latest = self.latest, None
        self._drop_strays()
        self._drop_receive_scs()

    def _enter_abandon(self, _now: float) -> None:
        slot = self.latest
        assert slot is not None
        self.transmit_when = self.ready_when = self.enable_retry_at = None
        self._enabling = None
        reason = slot.refused
        if slot.transmit_tried:
            reason = f"EnableTransmit refused {self.enable_refusals} times"
            self.keys_lost = True
            slot.transmit_tried = False
            if self.old is not None:
                self._persist(EnableTransmit(self.next_id(), self.old.key.an))
                self.old.tx = True
        if reason:
            self.refusal = (slot, reason)
            self._outputs.append(fact("sak.refused", ki=str(slot.key.ki), reason=reason))
            # What the SecY holds now is unknown, so it is told everything again next time.
            self._configured = None if self.old is None else self._configured
        self._delete(slot)
        self.latest = None
        self._drop_receive_scs()
        self.new_info = True

    # ------------------------------------------------------------------- pieces

    def next_id(self) -> int:
        """Number an operation."""
        self._id += 1
        return self._id

    def _install(self, slot: Slot, operation: SecyOperation) -> None:
        slot.awaiting.add(operation.id)
        self._outputs.append(operation)

    def _persist(self, operation: SecyOperation) -> None:
        self._persistent[operation.id] = operation
        self._outputs.append(operation)

    def _delete(self, slot: Slot) -> None:
        an = slot.key.an
        self._persist(DeleteTransmitSa(self.next_id(), an))
        for sci in slot.key.members:
            if sci != self._sci:
                self._persist(DeleteReceiveSa(self.next_id(), sci, an))
        if not slot.awaiting:  # else an operation that still needs it may be on its way
            slot.key.sak.wipe()

    def stray_transmit(self, an: int) -> None:
        """Remove a transmit SA found in the SecY that no key of ours explains."""
        self._persist(DeleteTransmitSa(self.next_id(), an))

    def stray_receive(self, sci: Sci, an: int, *, keep: bool) -> None:
        """Remove such a receive SA; with `keep` when the next key is in use: its peer may send under it."""
        self._strays.append((sci, an))
        if not keep:
            self._drop_strays()

    @property
    def stray_ans(self) -> set[int]:
        """Association numbers that are taken by no key of ours."""
        return {an for _, an in self._strays}

    def _drop_strays(self, ans: Container[int] = range(4)) -> None:
        for sci, an in self._strays:
            if an in ans:
                self._persist(DeleteReceiveSa(self.next_id(), sci, an))
        self._strays = [(sci, an) for sci, an in self._strays if an not in ans]

    def _drop_receive_scs(self) -> None:
        used = {sci for slot in (self.latest, self.old) if slot is not None for sci in slot.key.members}
        for sci in sorted(self._receive_scs - used):
            self._persist(DeleteReceiveSc(self.next_id(), sci))
        self._receive_scs &= used

    def _clear_leftovers(self, key: Sak) -> None:
        """Delete leftovers in the new key's way now, so that no late repetition meets its SAs."""

        def in_the_way(operation: SecyOperation) -> bool:
            if isinstance(operation, DeleteTransmitSa | DeleteReceiveSa):
                return operation.an == key.an
            return isinstance(operation, DeleteReceiveSc) and operation.sci in key.members

        for operation in filter(in_the_way, self._repeat):
            self._outputs.append(replace(operation, id=self.next_id()))
        self._repeat = [operation for operation in self._repeat if not in_the_way(operation)]
        self._persistent = {
            i: operation for i, operation in self._persistent.items() if not in_the_way(operation)
        }
        if not self._repeat:
            self._repeat_at = None

    def _set_port(self, state: PortState) -> None:
        if state is self.port and self._port_told:
            return
        self.port, self._port_told = state, True
        self._repeat = [
            operation for operation in self._repeat if not isinstance(operation, SetControlledPort)
        ]
        self._persist(SetControlledPort(self.next_id(), state))

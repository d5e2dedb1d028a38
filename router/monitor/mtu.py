"""Proof of MTU: a packet of exactly the configured size reaches the neighbour, unfragmented.

A pure core for one path (one feature, one address family). It asks for echo requests of a size
(`Probe`), is told of answers, and concludes:

* PROVEN      an echo of exactly the MTU came back (DF set both ways, so neither side split it);
* TOO_SMALL   the neighbour answers, but not at that size: `passes` is the largest size that did,
              found by bisection, so that the alarm can name both figures;
* SILENT      the neighbour answers no echo at all: nothing is known;
* UNKNOWN     no verdict yet.

A size counts as lost after `ATTEMPTS` requests without an answer, so that one lost packet is
not taken for a small MTU; and before TOO_SMALL is said the MTU itself is tried once more, so that
a pause of the path is not either. Sizes are of the whole IP packet, in octets.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

ATTEMPTS: Final = 3
ANSWER_S: Final = 1.0
PROVEN_INTERVAL_S: Final = 10.0
RETRY_INTERVAL_S: Final = 5.0
FLOOR: Final = {4: 576, 6: 1280}


class MtuState(Enum):
    """What is known of a path's MTU."""

    UNKNOWN = "unknown"
    PROVEN = "proven"
    TOO_SMALL = "too small"
    SILENT = "silent"


@dataclass(frozen=True, slots=True)
class Probe:
    """Send one echo request."""

    sequence: int
    """16 bits, in the echo header."""
    size: int
    """Octets of the IP packet."""


class MtuProof:
    """Driven by `receive` (an echo reply) and `handle_timer`; drained by `take_outputs`."""

    def __init__(self, *, mtu: int, version: int, now: float) -> None:
        self.mtu = mtu
        self.state = MtuState.UNKNOWN
        self.since = now
        self.passes: int | None = None
        """Largest size known to pass, where the MTU does not."""
        self._floor = min(FLOOR[version], mtu)
        self._low: int | None = None
        self._high = mtu
        self._size = mtu
        self._attempt = 0
        self._confirming = False
        self._sequence = 0
        self._open: dict[int, int] = {}
        self._timer = now
        self._outputs: list[Probe] = []

    def next_timer(self) -> float:
        """Time at which it wants to be called."""
        return self._timer

    def take_outputs(self) -> list[Probe]:
        """Probes to send now, in order."""
        outputs, self._outputs = self._outputs, []
        return outputs

    def handle_timer(self, now: float) -> None:
        """Send the next probe, or conclude that the current size does not pass."""
        if now < self._timer:
            return
        if self._attempt >= ATTEMPTS:
            self._lost(now)
        if self._timer <= now:
            self._send(now)

    def receive(self, sequence: int, size: int, now: float) -> None:
        """Take an echo reply; unknown sequence numbers and short replies are ignored."""
        if self._open.get(sequence) != size or size != self._size:
            return
        self._open.clear()
        self._attempt = 0
        if size == self.mtu:
            self._conclude(MtuState.PROVEN, now)
            self._start(self.mtu, now + PROVEN_INTERVAL_S)
            return
        self._low = size
        self._bisect(now)

    def _send(self, now: float) -> None:
        self._sequence = (self._sequence + 1) & 0xFFFF
        self._attempt += 1
        self._open[self._sequence] = self._size
        self._outputs.append(Probe(self._sequence, self._size))
        self._timer = now + ANSWER_S

    def _lost(self, now: float) -> None:
        self._attempt = 0
        self._open.clear()
        if self._confirming:
            self.passes = self._low
            self._conclude(MtuState.TOO_SMALL, now)
            self._start(self.mtu, now + RETRY_INTERVAL_S)
            return
        if self._size == self._floor:
            self.passes = None
            self._conclude(MtuState.SILENT, now)
            self._start(self.mtu, now + RETRY_INTERVAL_S)
            return
        self._high = self._size
        if self._low is None:
            self._size = self._floor
        else:
            self._bisect(now)

    def _bisect(self, now: float) -> None:
        """Narrow down the largest size that passes, between a passing and a failing one."""
        assert self._low is not None
        if self._high - self._low <= 1:
            self._confirming, self._size, self._timer = True, self.mtu, now
            return
        self._size = (self._low + self._high) // 2
        self._timer = now

    def _start(self, size: int, when: float) -> None:
        self._low, self._high, self._size, self._timer = None, self.mtu, size, when
        self._confirming = False

    def _conclude(self, state: MtuState, now: float) -> None:
        if state is MtuState.PROVEN:
            self.passes = self.mtu
        if state is not self.state:
            self.state, self.since = state, now

"""From one cipher suite to another without losing the site: one channel after the other. Pure.

A SecY cannot change its suite while it runs; for another one it is made anew, and its channel carries
nothing until the far end has done the same. So a channel whose suite is configured anew is *held*
on the suite that it has, and let go when all that went before it carry traffic again. Where the far end
is not ready, one channel is down and the others stay as they are. A channel that is down anyway has
nothing to lose and goes at once.

    hold a1 a2 b1 b2 --> a1 goes ... is up again --> a2 goes ... --> b1 --> b2
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from router.model import ChannelId, CipherSuite

DOWN_S: Final = 10.0
"""A channel that has been down so long is down, and not about to be judged up."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What a channel does at the moment."""

    carries: bool
    since: float
    """Wall-clock seconds."""


class SuiteRoll:
    """Which channels wait for another suite, and whose turn it is."""

    def __init__(self) -> None:
        self._held: dict[ChannelId, CipherSuite] = {}
        self._gone: set[ChannelId] = set()
        """Let go, and not seen to carry since."""

    @property
    def held(self) -> Mapping[ChannelId, CipherSuite]:
        """The suites that channels keep until their turn."""
        return self._held

    def hold(self, channel: ChannelId, suite: CipherSuite) -> None:
        """Have a channel keep the suite that it has."""
        self._held[channel] = suite
        self._gone.discard(channel)

    def let_go(self, channel: ChannelId) -> None:
        """Its turn has come, or there is nothing to wait for any more."""
        if self._held.pop(channel, None) is not None:
            self._gone.add(channel)

    def forget(self) -> None:
        """Wait for nobody: another configuration is accepted."""
        self._held.clear()
        self._gone.clear()

    def arrived(self, channel: ChannelId) -> None:
        """It carries traffic with the suite that is configured."""
        self._gone.discard(channel)

    def next(self, standings: Mapping[ChannelId, Standing], now: float) -> ChannelId | None:
        """Return whose turn it is; None where nobody waits, or somebody must be waited for."""
        for channel in self._held:
            standing = standings.get(channel)
            if standing is not None and not standing.carries and now >= standing.since + DOWN_S:
                return channel
        if self._gone:
            return None
        return next((c for c in self._held if c in standings and standings[c].carries), None)

    @property
    def notice(self) -> str:
        """Say what is under way, in one sentence; empty where nothing is."""
        if not self._held:
            return ""
        waiting = ", ".join(f"{channel} keeps {suite}" for channel, suite in self._held.items())
        gone = ", ".join(sorted(self._gone))
        return f"cipher suites change one channel at a time: {waiting}" + (
            f", until {gone} is up again" if gone else ""
        )

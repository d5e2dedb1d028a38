"""One verdict per channel, from all layers, bottom up: the lowest layer that fails is the cause.

Pure. The daemon collects `ChannelFacts` from the kernel, the SecY, BGP and the probes; `judge`
says up, degraded or down and why; `Verdicts` remembers since when.

    admin  carrier  port  macsec  vlan  bgp  prefixes  mtu
    `----- one of these fails: down -----------'  `-- degraded: forwarding, but not as ordered
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from router.model import ChannelId

NOT_VALID_SUSPECT: Final = 3
"""Frames that failed validation, with none that passed since, before the keys are suspected."""


class Verdict(Enum):
    """What a channel can be relied on for."""

    UP = "up"
    DEGRADED = "degraded"
    DOWN = "down"
    DISABLED = "disabled"


@dataclass(frozen=True, slots=True)
class SessionFacts:
    """One BGP session."""

    name: str
    afi: str
    state: str
    """`idle`, `connecting`, `open` or `established`."""
    reason: str
    """Why it is not established, or why it last went down; empty where unknown."""
    prefixes_received: int
    prefixes_accepted: int
    prefix_warn: int


@dataclass(frozen=True, slots=True)
class FeatureFacts:
    """One VLAN with its addresses, sessions and MTU proofs."""

    connection: str
    device: str
    present: bool
    up: bool
    mtu_problem: str
    """Empty, or what the proof of MTU found, with both figures."""
    sessions: tuple[SessionFacts, ...]


@dataclass(frozen=True, slots=True)
class MacsecFacts:
    """The channel's SecY."""

    present: bool
    operational: bool
    """There is an active transmit SA."""
    receiving: bool
    """There is an active receive SA."""
    in_ok: int
    in_not_valid: int
    """Frames that failed validation since one last passed."""
    keys_reason: str = ""
    """What key agreement says about why there is no key; empty where it says nothing."""
    unprotected: bool = False
    """should-secure, and frames pass in clear now."""


@dataclass(frozen=True, slots=True)
class ChannelFacts:
    """All that is known of a channel at one moment."""

    enabled: bool
    port: str
    port_present: bool
    carrier: bool
    errors: tuple[str, ...]
    """Objects of this channel that the kernel refused, each with its reason."""
    macsec: MacsecFacts
    features: tuple[FeatureFacts, ...]


def judge(facts: ChannelFacts) -> tuple[Verdict, str]:
    """Return the verdict and its reason: every failing layer of the lowest one that fails."""
    if not facts.enabled:
        return Verdict.DISABLED, "disabled by configuration"
    for problem in _down(facts):
        return Verdict.DOWN, problem
    problems = [*_insecure(facts.macsec), *_degraded(facts.features)]
    if not problems:
        return Verdict.UP, ""
    sessions = [session for feature in facts.features for session in feature.sessions]
    alive = any(session.state == "established" for session in sessions)
    return (Verdict.DEGRADED if alive or not sessions else Verdict.DOWN), "; ".join(problems)


def _down(facts: ChannelFacts) -> Iterator[str]:
    if not facts.port_present:
        yield f"port {facts.port} does not exist"
    if facts.errors:
        yield facts.errors[0]
    if not facts.carrier:
        yield f"no carrier on {facts.port}"
    macsec = facts.macsec
    if not macsec.present:
        yield "the MACsec device is missing"
    if not macsec.operational and not macsec.unprotected:
        yield f"MACsec: no active transmit SA ({macsec.keys_reason or 'no key installed'})"
    if not macsec.receiving and not macsec.unprotected:
        yield f"MACsec: no active receive SA ({macsec.keys_reason or 'no key installed'})"
    if macsec.in_not_valid >= NOT_VALID_SUSPECT:
        yield (
            f"MACsec: {macsec.in_not_valid} frames failed validation and none passed: "
            "wrong SAK, SSCI order or cipher suite"
        )
    for feature in facts.features:
        if not feature.present:
            yield f"VLAN device {feature.device} is missing"
        if not feature.up:
            yield f"VLAN device {feature.device} is down"


def _insecure(macsec: MacsecFacts) -> Iterator[str]:
    if macsec.unprotected:
        why = macsec.keys_reason or "no peer proves a key"
        yield f"UNPROTECTED: FRAMES PASS IN CLEAR (should-secure, {why})"


def _degraded(features: Sequence[FeatureFacts]) -> Iterator[str]:
    for feature in features:
        for session in feature.sessions:
            if session.state != "established":
                why = f": {session.reason}" if session.reason else ""
                yield f"BGP {session.afi} {session.state}{why}"
            elif session.prefixes_accepted == 0:
                refused = (
                    f", {session.prefixes_received} refused by policy" if session.prefixes_received else ""
                )
                yield f"BGP {session.afi} established, but no prefix accepted{refused}"
            elif session.prefixes_received >= session.prefix_warn:
                yield f"BGP {session.afi}: {session.prefixes_received} prefixes, warn level {session.prefix_warn}"
        if feature.mtu_problem:
            yield feature.mtu_problem


@dataclass(frozen=True, slots=True)
class Standing:
    """A verdict with its reason and the time, in seconds since the epoch, since when it holds."""

    verdict: Verdict
    reason: str
    since: float


class Verdicts:
    """Remembers each channel's verdict, and tells what changed."""

    def __init__(self) -> None:
        self._standing: dict[ChannelId, Standing] = {}

    def update(self, channel: ChannelId, facts: ChannelFacts, now: float) -> Standing | None:
        """Judge again. Returns the new standing where verdict or reason changed, else None."""
        verdict, reason = judge(facts)
        old = self._standing.get(channel)
        if old is not None and old.verdict is verdict:
            if old.reason == reason:
                return None
            new = Standing(verdict, reason, old.since)
        else:
            new = Standing(verdict, reason, now)
        self._standing[channel] = new
        return new

    def forget(self, keep: Sequence[ChannelId]) -> None:
        """Drop channels that are not configured any more."""
        self._standing = {channel: s for channel, s in self._standing.items() if channel in keep}

    def get(self, channel: ChannelId) -> Standing | None:
        """The channel's standing, None before its first update."""
        return self._standing.get(channel)

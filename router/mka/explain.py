"""What `lastmile keys explain` shows of one port: plain values, never a secret."""

from __future__ import annotations

from dataclasses import dataclass

from router.mka.cp import Connect, CpState, Transition
from router.mka.events import PortState
from router.mka.mkpdu import KeyIdentifier
from router.model import CipherSuite, Confidentiality, MacAddress, Sci


@dataclass(frozen=True, slots=True)
class UnknownCkn:
    """A CKN that is not ours, as a frame (not authenticated) claimed it."""

    ckn: bytes
    source: MacAddress
    last_seen: float
    count: int


@dataclass(frozen=True, slots=True)
class PeerSnapshot:
    """Another member of a CA."""

    sci: Sci
    mi: bytes
    mn: int
    live: bool
    last_seen: float
    since: float
    priority: int
    version: int
    offers: tuple[CipherSuite, ...] | None
    """Announced suites; None if it announces none."""


@dataclass(frozen=True, slots=True)
class ParticipantSnapshot:
    """The actor of one CKN."""

    ckn: bytes
    mi: bytes
    mn: int
    eligible: bool
    principal: bool
    server: Sci | None
    """The elected key server, our own SCI where it is us."""
    server_reason: str
    heard_at: float | None
    """When the last authentic MKPDU came: None means that no peer has shown to hold this CAK."""
    icv_failures: int
    icv_failed_at: float | None
    peers: tuple[PeerSnapshot, ...]


@dataclass(frozen=True, slots=True)
class KeySnapshot:
    """A SAK in the SecY."""

    ki: KeyIdentifier
    ckn: bytes
    an: int
    suite: CipherSuite
    confidentiality: Confidentiality
    rx: bool
    tx: bool
    age_s: float
    next_pn: int
    exhaustion_s: float | None
    """Seconds until the packet numbers run out at the current rate; None while idle."""
    ssci: int
    reason: str
    """Why it was made."""


@dataclass(frozen=True, slots=True)
class KaySnapshot:
    """One port's key agreement."""

    port: PortState
    state: CpState
    connect: Connect
    principal: bytes | None
    """CKN that the key in use comes from."""
    participants: tuple[ParticipantSnapshot, ...]
    current: KeySnapshot | None
    next: KeySnapshot | None
    refusal: str
    """Why the last SAK was not made or not taken; empty where it was."""
    suspicion: str
    """The most likely cause of trouble; empty where there is none."""
    drops: tuple[tuple[str, int], ...]
    unknown_ckns: tuple[UnknownCkn, ...]
    transitions: tuple[Transition, ...]

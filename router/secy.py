"""The SecY: what a MACsec entity can be asked to do, whoever does it.

Two implementations: `router.kernel.secy` (macsec generic netlink) and `router.dataplane.secy`
(our C engine). Order matters to the caller, not here: install the receive SA before the frame
that claims it. Names follow IEEE 802.1AE-2018 clause 10.7.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Protocol

from router.model import CipherSuite, Confidentiality, Sci, Secret


@dataclass(frozen=True, slots=True)
class SaKey:
    """Keying of one SA. For XPN suites `ssci` is non-zero and `salt` has 12 octets."""

    sak: Secret
    key_id: bytes
    """16 octets that name the key without telling it: MI and KN, or a hash of the SAK."""
    ssci: int = 0
    salt: bytes = b""


@dataclass(frozen=True, slots=True)
class SaState:
    """An SA as it is installed: never its key."""

    an: int
    active: bool
    next_pn: int
    """Transmit: the PN of the next frame. Receive: lowest PN that is not older than all seen."""
    key_id: bytes
    ssci: int = 0


@dataclass(frozen=True, slots=True)
class ReceiveScState:
    """One receive SC and its SAs."""

    sci: Sci
    active: bool
    sas: tuple[SaState, ...]


@dataclass(frozen=True, slots=True)
class SecyCounters:
    """802.1AE counters of one SecY, summed over its SCs; names as in IEEE8021-SECY-MIB."""

    out_pkts_protected: int = 0
    out_pkts_encrypted: int = 0
    out_octets_protected: int = 0
    out_octets_encrypted: int = 0
    out_pkts_untagged: int = 0
    out_pkts_too_long: int = 0
    in_pkts_untagged: int = 0
    in_pkts_no_tag: int = 0
    in_pkts_bad_tag: int = 0
    in_pkts_unknown_sci: int = 0
    in_pkts_no_sci: int = 0
    in_pkts_overrun: int = 0
    in_octets_validated: int = 0
    in_octets_decrypted: int = 0
    in_pkts_unchecked: int = 0
    in_pkts_delayed: int = 0
    in_pkts_late: int = 0
    in_pkts_ok: int = 0
    in_pkts_invalid: int = 0
    in_pkts_not_valid: int = 0
    in_pkts_not_using_sa: int = 0
    in_pkts_unused_sa: int = 0

    def __sub__(self, other: SecyCounters) -> SecyCounters:
        return SecyCounters(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True, slots=True)
class SecyState:
    """One SecY as observed."""

    device: str
    sci: Sci
    suite: CipherSuite
    operational: bool
    """Frames can be sent: the encoding SA exists and is active."""
    encoding_an: int
    transmit: tuple[SaState, ...]
    receive: tuple[ReceiveScState, ...]
    counters: SecyCounters
    confidentiality: Confidentiality = Confidentiality.OFFSET_0
    """What is encrypted of the frames that it protects."""
    unprotected: bool = False
    """Frames pass in clear, in either direction: protectFrames is off, or validateFrames not Strict."""


class SecY(Protocol):
    """One controlled port. Every call raises KernelError; repeating one that succeeded succeeds."""

    async def observe(self) -> SecyState:
        """Read state and counters."""

    async def create_receive_sc(self, sci: Sci) -> None:
        """Create an enabled receive SC."""

    async def delete_receive_sc(self, sci: Sci) -> None:
        """Delete a receive SC with all its SAs."""

    async def create_receive_sa(self, sci: Sci, an: int, key: SaKey, lowest_pn: int) -> None:
        """Install a receive SA, not yet active."""

    async def enable_receive_sa(self, sci: Sci, an: int, *, active: bool = True) -> None:
        """Let frames of this SA in, or stop doing so."""

    async def update_receive_pn(self, sci: Sci, an: int, lowest_pn: int) -> None:
        """Raise the lowest acceptable PN (delay protection)."""

    async def delete_receive_sa(self, sci: Sci, an: int) -> None:
        """Remove a receive SA."""

    async def create_transmit_sa(self, an: int, key: SaKey, next_pn: int) -> None:
        """Install a transmit SA, not yet active."""

    async def enable_transmit_sa(self, an: int) -> None:
        """Send under this AN from the next frame on (activate it, then make it the encoding SA)."""

    async def delete_transmit_sa(self, an: int) -> None:
        """Remove a transmit SA (deactivating it first)."""

    async def set_controlled_port(self, *, unprotected: bool) -> None:
        """Let all frames pass in clear, or none: protectFrames and validateFrames (10.7.8, 10.7.17).

        A SecY is made protecting. Opening one is for should-secure channels alone.
        """

    async def set_confidentiality(self, confidentiality: Confidentiality) -> None:
        """Encrypt so much of each frame from the next one on. Raises Unsupported where it cannot."""

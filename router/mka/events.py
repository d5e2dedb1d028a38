"""What the KaY tells its driver to do, in order. The driver drains `Kay.take_outputs()`.

Operations on the SecY carry an `id`; the driver answers each with `Kay.succeeded(id, now)` or
`Kay.failed(id, reason, now)`. Nothing is claimed to a peer before its operation was answered: a
receive SA that the SecY refused is never reported as receiving. Each maps to one call of
`router.secy.SecY`, except `ConfigureSecy`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from router.model import CipherSuite, Confidentiality, Sci
from router.secy import SaKey


class PortState(Enum):
    """The controlled port (802.1AE-2018 10.7.2) as its users see it."""

    CLOSED = "closed"
    """No data frame passes."""
    SECURED = "secured"
    """Data frames pass protected, and only so."""
    UNPROTECTED = "unprotected"
    """Data frames pass in clear: should-secure, by explicit choice."""


@dataclass(frozen=True, slots=True)
class SendMkpdu:
    """Put this whole Ethernet frame on the port, below MACsec."""

    frame: bytes


@dataclass(frozen=True, slots=True)
class ConfigureSecy:
    """Make the SecY use this suite from now on.

    If it must be made anew for that, its SAs were deleted before and its receive SCs are created after.
    """

    id: int
    suite: CipherSuite
    confidentiality: Confidentiality


@dataclass(frozen=True, slots=True)
class CreateReceiveSc:
    """Create an enabled receive SC."""

    id: int
    sci: Sci


@dataclass(frozen=True, slots=True)
class DeleteReceiveSc:
    """Delete a receive SC with all its SAs; it may be gone already."""

    id: int
    sci: Sci


@dataclass(frozen=True, slots=True)
class CreateReceiveSa:
    """Install a receive SA, not yet enabled."""

    id: int
    sci: Sci
    an: int
    key: SaKey
    lowest_pn: int


@dataclass(frozen=True, slots=True)
class EnableReceive:
    """Let frames of this SA in."""

    id: int
    sci: Sci
    an: int


@dataclass(frozen=True, slots=True)
class UpdateReceivePn:
    """Raise the lowest acceptable PN of a receive SA (delay protection, 9.10)."""

    id: int
    sci: Sci
    an: int
    lowest_pn: int


@dataclass(frozen=True, slots=True)
class DeleteReceiveSa:
    """Remove a receive SA; it may be gone already."""

    id: int
    sci: Sci
    an: int


@dataclass(frozen=True, slots=True)
class CreateTransmitSa:
    """Install a transmit SA, not yet used."""

    id: int
    an: int
    key: SaKey
    next_pn: int


@dataclass(frozen=True, slots=True)
class EnableTransmit:
    """Send under this AN from the next frame on."""

    id: int
    an: int


@dataclass(frozen=True, slots=True)
class DeleteTransmitSa:
    """Remove a transmit SA; it may be gone already."""

    id: int
    an: int


@dataclass(frozen=True, slots=True)
class SetControlledPort:
    """Open or close the controlled port."""

    id: int
    state: PortState


@dataclass(frozen=True, slots=True)
class Fact:
    """Something worth a log line; never holds a secret."""

    name: str
    """Dotted and stable: `peer.live`, `sak.installed`, `mkpdu.dropped`."""
    fields: tuple[tuple[str, str | int | float], ...] = ()


SecyOperation = (
    ConfigureSecy
    | CreateReceiveSc
    | DeleteReceiveSc
    | CreateReceiveSa
    | EnableReceive
    | UpdateReceivePn
    | DeleteReceiveSa
    | CreateTransmitSa
    | EnableTransmit
    | DeleteTransmitSa
    | SetControlledPort
)
Output = SendMkpdu | SecyOperation | Fact


def fact(name: str, **fields: str | float) -> Fact:
    """Make a `Fact`."""
    return Fact(name, tuple(fields.items()))

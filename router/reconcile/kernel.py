"""What the reconciler and the daemon ask of a kernel. Two implementations: the real one and the fake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from router.fib_ops import FibOp
from router.model import Nexthop, Prefix
from router.reconcile.diff import Action
from router.reconcile.objects import DesiredState, LinkFacts, ObservedState
from router.secy import SecY


@dataclass(frozen=True, slots=True)
class LinkEvent:
    """A device appeared, changed or went away."""

    device: str
    up: bool
    """Frames can pass: administratively up and with carrier. False too when it is gone."""
    at: float
    """Monotonic time in seconds at which we read it."""


@dataclass(frozen=True, slots=True)
class AddressEvent:
    """An address appeared or went away."""

    index: int
    """ifindex of its device."""


@dataclass(frozen=True, slots=True)
class FibEvent:
    """A route or nexthop object with our mark was changed by somebody else, or the kernel."""

    what: str


@dataclass(frozen=True, slots=True)
class RulesEvent:
    """nftables were changed, perhaps by us."""


@dataclass(frozen=True, slots=True)
class EventsLost:
    """ENOBUFS: notifications are missing. Everything must be read again."""


Event = LinkEvent | AddressEvent | FibEvent | RulesEvent | EventsLost


@dataclass(frozen=True, slots=True)
class FibFailure:
    """One operation that the kernel refused."""

    op: FibOp
    errno: int
    reason: str


@dataclass(frozen=True, slots=True)
class ObservedFib:
    """Nexthop objects, groups and routes that carry our protocol number."""

    nexthops: Mapping[int, Nexthop]
    groups: Mapping[int, tuple[int, ...]]
    """Group id to member ids, sorted."""
    routes: Mapping[tuple[int, Prefix], int]
    """(table, prefix) to nexthop id."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An entry of the kernel's neighbour table."""

    address: str
    mac: str | None
    state: str
    """`reachable`, `stale`, `failed`, ... as `ip neighbour` spells it."""


class Kernel(Protocol):
    """A kernel to reconcile. Every call may raise KernelError."""

    async def observe(self, desired: DesiredState) -> ObservedState:
        """Read what carries our mark, every link's facts, and the sysctls that `desired` names."""

    async def apply(self, action: Action) -> None:
        """Do one action. Repeating one that succeeded succeeds."""

    async def apply_fib(self, ops: Sequence[FibOp]) -> list[FibFailure]:
        """Apply routes and nexthops in order, packed; return those that were refused."""

    async def observe_fib(self) -> ObservedFib:
        """Read nexthop objects and routes of our protocol number."""

    async def next_events(self) -> list[Event]:
        """Wait for notifications and return all that are there, oldest first."""

    async def link_facts(self) -> Mapping[str, LinkFacts]:
        """Read every device, with counters."""

    async def neighbours(self, device: str) -> Sequence[Neighbour]:
        """Read the neighbour table of a device, IPv4 and IPv6."""

    def secy(self, device: str) -> SecY:
        """Return the SecY behind a macsec device, which need not exist yet."""

    async def close(self) -> None:
        """Close the sockets; nothing in the kernel changes."""

"""What the FIB core asks of the kernel: one small type per operation, applied in the order given.

Nexthop ids live in our own range, so that a person's `ip nexthop add id 1` never meets ours.
Every operation is idempotent: adding what is there, or deleting what is gone, succeeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from router.model import Afi, Nexthop, Prefix

NEXTHOP_ID_FIRST: Final = 0x4C4D0000
NEXTHOP_ID_LAST: Final = 0x4C4DFFFF
MAIN_TABLE: Final = 254


@dataclass(frozen=True, slots=True)
class NexthopReplace:
    """Create or replace a single nexthop object (RTM_NEWNEXTHOP, NHA_GATEWAY and NHA_OIF)."""

    id: int
    nexthop: Nexthop


@dataclass(frozen=True, slots=True)
class GroupReplace:
    """Create or replace an ECMP group of single nexthops (NHA_GROUP), all with weight 1."""

    id: int
    afi: Afi
    members: tuple[int, ...]
    """Ids of single nexthops, sorted, without duplicates, at least one."""


@dataclass(frozen=True, slots=True)
class NexthopDelete:
    """Delete a nexthop object or group; the kernel deletes routes that still use it."""

    id: int


@dataclass(frozen=True, slots=True)
class RouteReplace:
    """Create or replace a route that points at a nexthop object or group (RTA_NH_ID)."""

    table: int
    prefix: Prefix
    nexthop_id: int


@dataclass(frozen=True, slots=True)
class RouteDelete:
    """Delete our route (protocol ROUTE_PROTOCOL) to `prefix`."""

    table: int
    prefix: Prefix


FibOp = NexthopReplace | GroupReplace | NexthopDelete | RouteReplace | RouteDelete

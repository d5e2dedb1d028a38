"""The FIB: Loc-RIB and liveness in, an ordered list of kernel operations out. Pure.

Every route points at a *group* of next hops, also where it has only one, and all routes with the
same next hops share the group. So when a channel dies, one `GroupReplace` moves all of its
prefixes, however many there are; and when BGP then withdraws the channel's paths prefix by
prefix, the group is found to be what all of them want already, and the kernel is told nothing.

Three layers, each with what is wanted and what the kernel has:

    route (table, prefix)  ->  group: the set of next hops BGP chose, live or not
    group                  ->  members: those of them that are alive
    member                 ->  nexthop object: one per (device, gateway)

`take_outputs()` compares the two sides and emits the difference, make before break: nexthop
objects, groups, routes; then routes that go, groups that go, nexthop objects that go.

The kernel deletes nexthop objects when their device loses its carrier, takes them out of groups,
deletes empty groups and every route on those, and never restores anything. `set_device` models
that; what the kernel did beyond it is told by `kernel_lost` or found by `resync`.

After a restart, `adopt` takes over what a previous life installed. Until `sweep()`, adopted
routes stay as they are, whatever BGP has relearned so far; only liveness moves them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from router.fib_ops import (
    NEXTHOP_ID_FIRST,
    NEXTHOP_ID_LAST,
    FibOp,
    GroupReplace,
    NexthopDelete,
    NexthopReplace,
    RouteDelete,
    RouteReplace,
)
from router.model import Afi, Nexthop, Prefix


class RouteKey(NamedTuple):
    """A route's place: kernel table and prefix."""

    table: int
    prefix: Prefix


NexthopSet = frozenset[Nexthop]


class _Group:
    """One set of next hops, shared by all routes that want it."""

    __slots__ = ("afi", "id", "installed", "nexthops", "routes")

    def __init__(self, number: int, afi: Afi, nexthops: NexthopSet) -> None:
        self.id = number
        self.afi = afi
        self.nexthops = nexthops
        self.routes: set[RouteKey] = set()
        self.installed: tuple[int, ...] = ()
        """Members in the kernel; empty: the kernel has no such group."""


class Fib:
    """See the module."""

    def __init__(self) -> None:
        self._ids = _Ids()
        self._groups: dict[int, _Group] = {}
        self._group_of: dict[NexthopSet, _Group] = {}
        """The group that new routes with these next hops join. A restart may leave a second one."""
        self._of_route: dict[RouteKey, _Group] = {}
        self._route_installed: dict[tuple[int, Prefix], int] = {}
        """Routes that the kernel has, with the group id they point at."""
        self._nexthop_ids: dict[Nexthop, int] = {}
        """Numbers given to next hops, whether or not the kernel has them."""
        self._nexthop_installed: set[Nexthop] = set()
        self._down_devices: set[str] = set()
        self._dead: set[Nexthop] = set()
        self._wanted: dict[RouteKey, NexthopSet] = {}
        """Changes since the last `take_outputs`; an empty set is a withdrawal."""
        self._stale: set[RouteKey] = set()
        self._touched: set[_Group] = set()
        self._condemned: list[FibOp] = []
        """Operations against leftovers that no group of ours describes."""

    # What is wanted

    def set_route(self, table: int, prefix: Prefix, nexthops: Iterable[Nexthop]) -> None:
        """Want `prefix` over these next hops; none withdraws it."""
        self._wanted[RouteKey(table, prefix)] = frozenset(nexthops)

    def set_device(self, device: str, up: bool) -> None:
        """Take a device's carrier and admin state. Devices are taken to be up until told otherwise."""
        if up == (device not in self._down_devices):
            return
        # The kernel deletes the nexthop objects of a device that goes down; so do we, to be sure.
        (self._down_devices.discard if up else self._down_devices.add)(device)
        self._touched.update(
            group for group in self._groups.values() if any(hop.device == device for hop in group.nexthops)
        )

    def set_nexthop(self, nexthop: Nexthop, alive: bool) -> None:
        """Take a neighbour's liveness (BFD, drain). Neighbours live until told otherwise."""
        if alive == (nexthop not in self._dead):
            return
        (self._dead.discard if alive else self._dead.add)(nexthop)
        self._touched.update(group for group in self._groups.values() if nexthop in group.nexthops)

    def alive(self, nexthop: Nexthop) -> bool:
        """Tell whether a next hop may carry packets."""
        return nexthop.device not in self._down_devices and nexthop not in self._dead

    # What the kernel has

    def adopt(
        self,
        nexthops: Mapping[int, Nexthop],
        groups: Mapping[int, tuple[int, ...]],
        routes: Mapping[tuple[int, Prefix], int],
    ) -> None:
        """Take over what a previous life left in the kernel; all routes are stale until `sweep`.

        Call it once, before anything else but `set_device` and `set_nexthop`. What does not fit our
        way of building routes (a route without a group) is replaced or deleted.
        """
        assert not self._groups, "adopt() comes first"
        self._observe(nexthops, groups, routes)
        self._stale = set(self._of_route)

    def sweep(self) -> int:
        """Everything has been relearned, or had its time: routes nobody told us of go. Returns how many."""
        swept = [key for key in self._stale if key not in self._wanted]
        for key in swept:
            self._wanted[key] = frozenset()
        self._stale.clear()
        return len(swept)

    @property
    def stale(self) -> int:
        """Number of adopted routes that wait for `sweep`."""
        return len(self._stale)

    def kernel_lost(self, ids: Iterable[int] = (), routes: Iterable[tuple[int, Prefix]] = ()) -> None:
        """The kernel deleted these nexthop ids or routes, or refused to make them.

        The repair comes with the next `take_outputs`, for what is alive.
        """
        gone = set(ids)
        lost_nexthops = {nexthop for nexthop, number in self._nexthop_ids.items() if number in gone}
        self._nexthop_installed -= lost_nexthops
        for group in self._groups.values():
            if group.id in gone:
                self._group_is_gone(group)
            elif group.nexthops & lost_nexthops:
                # The kernel took it out of the group, and deletes a group that is empty.
                group.installed = tuple(number for number in group.installed if number not in gone)
                if not group.installed:
                    self._group_is_gone(group)
                self._touched.add(group)
        for key in routes:
            route = RouteKey(*key)
            if self._route_installed.pop(route, None) is not None and route in self._of_route:
                self._touched.add(self._of_route[route])

    def resync(
        self,
        nexthops: Mapping[int, Nexthop],
        groups: Mapping[int, tuple[int, ...]],
        routes: Mapping[tuple[int, Prefix], int],
    ) -> None:
        """Compare with a full observation; the next `take_outputs` repairs what differs."""
        wanted = {key: group.nexthops for key, group in self._of_route.items()}
        pending = self._wanted
        stale = self._stale
        self._ids = _Ids()
        self._groups, self._group_of, self._of_route, self._route_installed = {}, {}, {}, {}
        self._nexthop_ids, self._nexthop_installed = {}, set()
        self._touched = set()
        self._wanted = {}
        self._observe(nexthops, groups, routes)
        self._stale = stale & self._of_route.keys()
        self._wanted |= dict.fromkeys(self._of_route.keys() - self._stale, frozenset())
        # An adopted route that vanished is made again only if BGP has relearned it.
        self._wanted |= {key: nexthops for key, nexthops in wanted.items() if key not in stale}
        self._wanted |= pending

    def _observe(
        self,
        nexthops: Mapping[int, Nexthop],
        groups: Mapping[int, tuple[int, ...]],
        routes: Mapping[tuple[int, Prefix], int],
    ) -> None:
        for number, nexthop in nexthops.items():
            if nexthop in self._nexthop_ids or not _is_ours(number):
                self._condemn(number)
                continue
            self._ids.take(number)
            self._nexthop_ids[nexthop] = number
            self._nexthop_installed.add(nexthop)
        for number, members in groups.items():
            known = [
                nexthops[m] for m in members if m in nexthops and self._nexthop_ids.get(nexthops[m]) == m
            ]
            key = frozenset(known)
            afis = {Afi.IPV4 if len(nexthop.address) == 4 else Afi.IPV6 for nexthop in known}
            if len(afis) != 1 or len(known) != len(members) or not _is_ours(number):
                self._condemn(number)
                continue
            self._ids.take(number)
            group = _Group(number, afis.pop(), key)
            group.installed = tuple(sorted(members))
            self._groups[number] = group
            self._group_of.setdefault(key, group)
            self._touched.add(group)
        for (table, prefix), number in routes.items():
            route = RouteKey(table, prefix)
            self._route_installed[route] = number
            member_of = self._groups.get(number)
            if member_of is not None:
                member_of.routes.add(route)
                self._of_route[route] = member_of
            else:
                # It points at something that is not a group of ours: wanted anew, or deleted.
                self._wanted.setdefault(route, frozenset())

    def _condemn(self, number: int) -> None:
        if _is_ours(number):
            self._ids.take(number)
            self._condemned.append(NexthopDelete(number))

    def _group_is_gone(self, group: _Group) -> None:
        group.installed = ()
        for route in group.routes:
            if self._route_installed.get(route) == group.id:
                del self._route_installed[route]
        self._touched.add(group)

    # The difference

    def take_outputs(self) -> list[FibOp]:
        """Return the operations that bring the kernel to what is wanted, in the order to apply them."""
        ops: list[FibOp] = []
        rerouted, removed = self._regroup()
        touched = self._touched
        self._touched = set()
        touched |= {self._of_route[route] for route in rerouted}

        # 1. Make: nexthop objects, groups, routes.
        for group in sorted(touched, key=lambda group: group.id):
            ops += self._make_group(group)
        for group in touched:
            if group.installed:
                missing = {route for route in group.routes if self._route_installed.get(route) != group.id}
                for route in sorted(missing):
                    ops.append(RouteReplace(route.table, route.prefix, group.id))
                    self._route_installed[route] = group.id

        # 2. Break: routes, groups, nexthop objects. A route whose next hops are all dead goes too.
        removed |= {route for route in rerouted if not self._of_route[route].installed}
        for route in sorted(removed):
            if self._route_installed.pop(route, None) is not None:
                ops.append(RouteDelete(route.table, route.prefix))
        for group in sorted(touched, key=lambda group: group.id):
            ops += self._break_group(group)
        ops += self._condemned
        for op in self._condemned:
            assert isinstance(op, NexthopDelete)
            self._ids.give(op.id)
        self._condemned = []
        ops += self._break_nexthops()
        return ops

    def _regroup(self) -> tuple[set[RouteKey], set[RouteKey]]:
        """Move routes to the groups they want; return those that moved and those that go."""
        moves: dict[tuple[_Group | None, NexthopSet], list[RouteKey]] = {}
        removed: set[RouteKey] = set()
        kept: dict[RouteKey, NexthopSet] = {}
        for route, nexthops in self._wanted.items():
            if route in self._stale:
                kept[route] = nexthops  # until `sweep`
                continue
            group = self._of_route.get(route)
            if group is not None and group.nexthops == nexthops and nexthops:
                continue
            if not nexthops:
                removed.add(route)
                if group is not None:
                    self._leave(route, group)
                continue
            moves.setdefault((group, nexthops), []).append(route)
        self._wanted = kept
        rerouted: set[RouteKey] = set()
        for (group, nexthops), routes in moves.items():
            target = self._group_of.get(nexthops)
            if target is None and group is not None and len(routes) == len(group.routes):
                # All of them, and nobody else wants it yet: the group itself changes.
                self._forget(group)
                group.nexthops = nexthops
                self._group_of[nexthops] = group
                self._touched.add(group)
                continue
            if target is None:
                target = _Group(self._ids.next(), routes[0].prefix.afi, nexthops)
                self._groups[target.id] = self._group_of[nexthops] = target
            for route in routes:
                if group is not None:
                    self._leave(route, group)
                target.routes.add(route)
                self._of_route[route] = target
            rerouted.update(routes)
        return rerouted, removed

    def _leave(self, route: RouteKey, group: _Group) -> None:
        group.routes.discard(route)
        self._of_route.pop(route, None)
        self._touched.add(group)

    def _make_group(self, group: _Group) -> list[FibOp]:
        """Bring a group that has routes and live members up to date."""
        ops: list[FibOp] = []
        if not group.routes:
            return ops
        members = []
        for nexthop in sorted(group.nexthops):
            if not self.alive(nexthop):
                continue
            number = self._nexthop_ids.get(nexthop)
            if number is None:
                number = self._nexthop_ids[nexthop] = self._ids.next()
            if nexthop not in self._nexthop_installed:
                self._nexthop_installed.add(nexthop)
                ops.append(NexthopReplace(number, nexthop))
            members.append(number)
        wanted = tuple(sorted(members))
        if wanted and wanted != group.installed:
            group.installed = wanted
            ops.append(GroupReplace(group.id, group.afi, wanted))
        return ops

    def _break_group(self, group: _Group) -> list[FibOp]:
        """Delete a group without routes, or whose members are all dead: its routes go with it."""
        if group.routes and any(self.alive(nexthop) for nexthop in group.nexthops):
            return []
        ops: list[FibOp] = [NexthopDelete(group.id)] if group.installed else []
        self._group_is_gone(group)
        self._touched.discard(group)
        if not group.routes:
            self._forget(group)
            del self._groups[group.id]
            self._ids.give(group.id)
        return ops

    def _forget(self, group: _Group) -> None:
        if self._group_of.get(group.nexthops) is group:
            del self._group_of[group.nexthops]

    def _break_nexthops(self) -> list[FibOp]:
        """Delete nexthop objects that are in no group of the kernel."""
        used = {number for group in self._groups.values() for number in group.installed}
        wanted = {nexthop for group in self._groups.values() for nexthop in group.nexthops}
        ops: list[FibOp] = []
        for nexthop, number in sorted(self._nexthop_ids.items(), key=lambda item: item[1]):
            if number not in used and nexthop in self._nexthop_installed:
                self._nexthop_installed.discard(nexthop)
                ops.append(NexthopDelete(number))
            if nexthop not in wanted:
                del self._nexthop_ids[nexthop]
                self._ids.give(number)
        return ops

    # Reports

    def routes(self) -> dict[RouteKey, tuple[Nexthop, ...]]:
        """Every wanted route with its live next hops, for status."""
        return {
            key: tuple(sorted(nexthop for nexthop in group.nexthops if self.alive(nexthop)))
            for key, group in self._of_route.items()
        }

    def installed(self) -> Mapping[tuple[int, Prefix], int]:
        """Routes that the kernel has, with the nexthop id that each points at."""
        return self._route_installed


def _is_ours(number: int) -> bool:
    return NEXTHOP_ID_FIRST <= number <= NEXTHOP_ID_LAST


class _Ids:
    """Nexthop ids of our range; the longest unused is given first."""

    def __init__(self) -> None:
        self._taken: set[int] = set()
        self._next: Final = iter(range(NEXTHOP_ID_FIRST, NEXTHOP_ID_LAST + 1))
        self._free: dict[int, None] = {}

    def take(self, number: int) -> None:
        """Reserve a number that the kernel has."""
        self._taken.add(number)

    def give(self, number: int) -> None:
        """Return a number. Not given again before all fresh ones were."""
        self._taken.discard(number)
        self._free[number] = None

    def next(self) -> int:
        """Return an unused number."""
        for number in self._next:
            if number not in self._taken:
                self._taken.add(number)
                return number
        number = next(iter(self._free))
        del self._free[number]
        self._taken.add(number)
        return number

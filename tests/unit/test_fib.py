"""The FIB core against a model of the kernel's nexthop objects, groups and routes."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from router.fib import Fib
from router.fib_ops import (
    NEXTHOP_ID_FIRST,
    NEXTHOP_ID_LAST,
    GroupReplace,
    NexthopDelete,
    NexthopReplace,
    RouteDelete,
    RouteReplace,
)
from router.model import Nexthop, Prefix, pack_address


class Kernel:
    """What Linux does with nexthop objects, as far as it matters here."""

    def __init__(self):
        self.nexthops: dict[int, Nexthop] = {}
        self.groups: dict[int, tuple[int, ...]] = {}
        self.routes: dict[tuple[int, Prefix], int] = {}
        self.down: set[str] = set()

    def apply(self, ops):
        for op in ops:
            match op:
                case NexthopReplace(number, nexthop):
                    assert NEXTHOP_ID_FIRST <= number <= NEXTHOP_ID_LAST
                    assert nexthop.device not in self.down, "ENETDOWN"
                    assert number not in self.groups, "EINVAL: is a group"
                    self.nexthops[number] = nexthop
                case GroupReplace(number, _, members):
                    assert members == tuple(sorted(set(members))) != ()
                    assert number not in self.nexthops, "EINVAL: is not a group"
                    for member in members:
                        assert member in self.nexthops, "EINVAL: no such nexthop"
                    self.groups[number] = members
                case NexthopDelete(number):
                    self.delete(number)
                case RouteReplace(table, prefix, number):
                    assert number in self.groups, "EINVAL: no such group"
                    self.routes[table, prefix] = number
                case RouteDelete(table, prefix):
                    self.routes.pop((table, prefix), None)

    def delete(self, number):
        if self.nexthops.pop(number, None) is not None:
            for group, members in list(self.groups.items()):
                left = tuple(member for member in members if member != number)
                if left:
                    self.groups[group] = left
                else:
                    self.delete(group)
        elif self.groups.pop(number, None) is not None:
            for key in [key for key, used in self.routes.items() if used == number]:
                del self.routes[key]

    def carrier(self, device, up):
        if up:
            self.down.discard(device)
        else:
            self.down.add(device)
            for number, nexthop in list(self.nexthops.items()):
                if nexthop.device == device:
                    self.delete(number)

    def state(self):
        return {
            key: frozenset(self.nexthops[member] for member in self.groups[number])
            for key, number in self.routes.items()
        }


def hop(number, version=4):
    text = f"169.254.{number}.2" if version == 4 else f"fd00:{number}::2"
    return Nexthop(f"ch{number}", pack_address(text))


HOPS = {version: [hop(n, version) for n in range(1, 5)] for version in (4, 6)}
PREFIXES = {
    4: [Prefix.parse(f"10.20.{n}.0/24") for n in range(6)],
    6: [Prefix.parse(f"2001:db8:{n}::/48") for n in range(6)],
}
TABLES = (254, 1001)


class FibMachine(RuleBasedStateMachine):
    """Whatever happens, in whatever order, the kernel ends up as wanted."""

    def __init__(self):
        super().__init__()
        self.fib = Fib()
        self.kernel = Kernel()
        self.wanted: dict[tuple[int, Prefix], frozenset[Nexthop]] = {}
        self.dead: set[Nexthop] = set()
        self.synced = True

    @initialize(leftover=st.booleans())
    def begin(self, leftover):
        self.leftover = leftover

    def flush(self):
        self.kernel.apply(self.fib.take_outputs())
        self.synced = True

    @rule(
        table=st.sampled_from(TABLES),
        version=st.sampled_from((4, 6)),
        index=st.integers(0, 5),
        mask=st.integers(0, 15),
        flush=st.booleans(),
    )
    def route(self, table, version, index, mask, flush):
        hops = frozenset(h for bit, h in enumerate(HOPS[version]) if mask >> bit & 1)
        prefix = PREFIXES[version][index]
        self.fib.set_route(table, prefix, hops)
        if hops:
            self.wanted[table, prefix] = hops
        else:
            self.wanted.pop((table, prefix), None)
        self.synced = False
        if flush:
            self.flush()

    @rule(version=st.sampled_from((4, 6)), mask=st.integers(0, 15))
    def all_routes(self, version, mask):
        hops = frozenset(h for bit, h in enumerate(HOPS[version]) if mask >> bit & 1)
        for prefix in PREFIXES[version]:
            self.fib.set_route(254, prefix, hops)
            if hops:
                self.wanted[254, prefix] = hops
            else:
                self.wanted.pop((254, prefix), None)
        self.flush()

    @rule(number=st.integers(1, 4), up=st.booleans(), kernel_first=st.booleans())
    def device(self, number, up, kernel_first):
        """Carrier: the kernel knows first, or (admin down by us) we do."""
        if up or kernel_first:
            self.kernel.carrier(f"ch{number}", up)
        self.fib.set_device(f"ch{number}", up)
        self.flush()
        self.kernel.carrier(f"ch{number}", up)

    @rule(number=st.integers(1, 4), version=st.sampled_from((4, 6)), alive=st.booleans())
    def liveness(self, number, version, alive):
        (self.dead.discard if alive else self.dead.add)(hop(number, version))
        self.fib.set_nexthop(hop(number, version), alive)
        self.flush()

    @rule(data=st.data())
    def someone_deletes_an_object(self, data):
        """`ip nexthop del` by hand: the kernel takes groups and routes with it, and tells us."""
        if not self.synced:
            self.flush()
        numbers = sorted({*self.kernel.nexthops, *self.kernel.groups})
        if numbers:
            number = data.draw(st.sampled_from(numbers))
            self.kernel.delete(number)
            self.fib.kernel_lost(ids=[number])
            self.flush()

    @rule(data=st.data())
    def someone_deletes_a_route(self, data):
        if not self.synced:
            self.flush()
        if self.kernel.routes:
            key = data.draw(st.sampled_from(sorted(self.kernel.routes)))
            del self.kernel.routes[key]
            self.fib.kernel_lost(routes=[key])
            self.flush()

    @rule(data=st.data())
    def resync(self, data):
        """Notifications were lost: anything may be gone, or there, and a look repairs it."""
        for number in sorted({*self.kernel.nexthops, *self.kernel.groups}):
            if data.draw(st.booleans()):
                self.kernel.delete(number)
        if self.leftover:
            stray = NEXTHOP_ID_FIRST + 0x8000
            self.kernel.nexthops.setdefault(stray, hop(9))
            self.kernel.groups[stray + 1] = (stray,)
            self.kernel.routes[254, Prefix.parse("198.18.0.0/15")] = stray + 1
        self.fib.resync(dict(self.kernel.nexthops), dict(self.kernel.groups), dict(self.kernel.routes))
        self.flush()

    @rule(relearned=st.booleans())
    def restart(self, relearned):
        """routerd dies and returns: nothing moves until the sweep, then only what must."""
        if not self.synced:
            self.flush()
        before = self.kernel.state()
        self.fib = Fib()
        for device in self.kernel.down:
            self.fib.set_device(device, up=False)
        for nexthop in self.dead:
            self.fib.set_nexthop(nexthop, alive=False)
        self.fib.adopt(dict(self.kernel.nexthops), dict(self.kernel.groups), dict(self.kernel.routes))
        self.flush()
        assert self.kernel.state() == before
        for key, hops in self.wanted.items():
            self.fib.set_route(*key, list(hops)[:1])  # the first session is relearned
        self.flush()
        assert self.kernel.state().items() >= before.items()
        if relearned:
            for key, hops in self.wanted.items():
                self.fib.set_route(*key, hops)
        else:
            for key in self.wanted:
                self.fib.set_route(*key, ())
            self.wanted.clear()
        self.fib.sweep()
        self.flush()
        assert self.fib.stale == 0

    @invariant()
    def kernel_is_as_wanted(self):
        if not self.synced:
            return
        alive = {
            key: frozenset(h for h in hops if h not in self.dead and h.device not in self.kernel.down)
            for key, hops in self.wanted.items()
        }
        assert self.kernel.state() == {key: hops for key, hops in alive.items() if hops}
        used = {member for members in self.kernel.groups.values() for member in members}
        assert set(self.kernel.nexthops) == used, "unused nexthop objects"
        assert set(self.kernel.groups) == set(self.kernel.routes.values()), "unused groups"
        sets = [frozenset(members) for members in self.kernel.groups.values()]
        assert len(self.fib.routes()) == len(self.wanted)
        assert len(sets) >= len(set(sets))


TestFib = FibMachine.TestCase
TestFib.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def full(count=1000, hops=HOPS[4]):
    """A FIB and a kernel with `count` routes over four channels."""
    fib, kernel = Fib(), Kernel()
    prefixes = [Prefix(((10 << 24) + (n << 8)).to_bytes(4), 24) for n in range(count)]
    for prefix in prefixes:
        fib.set_route(254, prefix, hops)
    kernel.apply(fib.take_outputs())
    return fib, kernel, prefixes


def test_a_dead_channel_costs_one_group_replace_however_many_prefixes():
    """BFD down: the group first, then its nexthop object; no route is named."""
    fib, kernel, _ = full()
    fib.set_nexthop(hop(2), alive=False)
    ops = fib.take_outputs()
    assert [type(op) for op in ops] == [GroupReplace, NexthopDelete]
    kernel.apply(ops)
    assert set(map(len, kernel.state().values())) == {3}


def test_withdrawals_after_a_dead_channel_cost_nothing():
    """BGP then withdraws the dead path of every prefix: the kernel already has that."""
    fib, _, prefixes = full()
    fib.set_device("ch2", up=False)
    fib.take_outputs()
    for prefix in prefixes:
        fib.set_route(254, prefix, [h for h in HOPS[4] if h != hop(2)])
    assert fib.take_outputs() == []


def test_a_further_channel_for_all_prefixes_costs_one_group_replace():
    """The fourth session comes up and announces what the others do."""
    fib, kernel, prefixes = full(hops=HOPS[4][:3])
    for prefix in prefixes:
        fib.set_route(254, prefix, HOPS[4])
    ops = fib.take_outputs()
    assert [type(op) for op in ops] == [NexthopReplace, GroupReplace]
    kernel.apply(ops)
    assert set(kernel.state().values()) == {frozenset(HOPS[4])}


def test_all_channels_down_and_up_again_brings_every_route_back():
    """The kernel deletes everything on carrier loss; nothing but the carrier is needed to return."""
    fib, kernel, _ = full(100)
    before = kernel.state()
    for n in range(1, 5):
        kernel.carrier(f"ch{n}", up=False)
        fib.set_device(f"ch{n}", up=False)
        kernel.apply(fib.take_outputs())
    assert kernel.state() == {}
    for n in range(1, 5):
        kernel.carrier(f"ch{n}", up=True)
        fib.set_device(f"ch{n}", up=True)
        kernel.apply(fib.take_outputs())
    assert kernel.state() == before


def test_a_restart_with_nothing_new_sends_no_operation():
    """Adopt, relearn session by session, sweep: the kernel is not touched."""
    _, kernel, prefixes = full()
    fib = Fib()
    fib.adopt(kernel.nexthops, kernel.groups, kernel.routes)
    assert fib.take_outputs() == []
    assert fib.stale == 1000
    for known in range(1, 5):
        for prefix in prefixes:
            fib.set_route(254, prefix, HOPS[4][:known])
        assert fib.take_outputs() == []
    assert fib.sweep() == 0
    assert fib.take_outputs() == []


def test_a_sweep_removes_what_was_not_relearned():
    """A prefix that vanished while routerd was away goes with the sweep, not before."""
    _, kernel, prefixes = full(3)
    fib = Fib()
    fib.adopt(kernel.nexthops, kernel.groups, kernel.routes)
    for prefix in prefixes[1:]:
        fib.set_route(254, prefix, HOPS[4])
    assert fib.take_outputs() == []
    assert fib.sweep() == 1
    assert fib.take_outputs() == [RouteDelete(254, prefixes[0])]


def test_liveness_moves_adopted_routes_before_the_sweep():
    """A channel that dies while BGP relearns is pulled at once."""
    _, kernel, _ = full(3)
    fib = Fib()
    fib.adopt(kernel.nexthops, kernel.groups, kernel.routes)
    fib.set_device("ch1", up=False)
    kernel.carrier("ch1", up=False)
    kernel.apply(fib.take_outputs())
    assert set(kernel.state().values()) == {frozenset(HOPS[4][1:])}


def test_a_group_is_made_before_its_route_and_deleted_after_it():
    """Make before break, in one list."""
    fib, _, (prefix,) = full(1)
    fib.set_route(254, prefix, [hop(1)])
    other = Prefix.parse("10.99.0.0/16")
    fib.set_route(254, other, [hop(2)])
    fib.set_route(254, Prefix.parse("10.98.0.0/16"), [hop(2)])
    kinds = [type(op) for op in fib.take_outputs()]
    assert kinds.index(GroupReplace) < kinds.index(RouteReplace)
    fib.set_route(254, other, ())
    fib.set_route(254, Prefix.parse("10.98.0.0/16"), ())
    ops = fib.take_outputs()
    assert [type(op) for op in ops] == [RouteDelete, RouteDelete, NexthopDelete, NexthopDelete]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 15)), max_size=20))
def test_the_end_does_not_depend_on_how_changes_were_batched(changes):
    """One flush for each change or one for all: the same kernel."""
    results = []
    for batched in (False, True):
        fib, kernel = Fib(), Kernel()
        for index, mask in changes:
            fib.set_route(254, PREFIXES[4][index], [h for bit, h in enumerate(HOPS[4]) if mask >> bit & 1])
            if not batched:
                kernel.apply(fib.take_outputs())
        kernel.apply(fib.take_outputs())
        results.append(kernel.state())
    assert results[0] == results[1]


def test_ids_outside_our_range_are_never_touched():
    """A person's nexthop objects, seen by accident, are not adopted and not deleted."""
    fib = Fib()
    fib.adopt({1: hop(1)}, {2: (1,)}, {})
    assert fib.take_outputs() == []


def test_every_number_of_the_range_can_be_used_and_used_again():
    """Numbers return when their object is deleted; a churning FIB never runs out."""
    fib = Fib()
    prefix = Prefix.parse("10.0.0.0/8")
    for n in range(NEXTHOP_ID_LAST - NEXTHOP_ID_FIRST + 10):
        fib.set_route(254, prefix, [Nexthop("ch1", (n + 1).to_bytes(4))])
        fib.take_outputs()
    fib.set_route(254, prefix, ())
    fib.take_outputs()
    assert fib.routes() == {}

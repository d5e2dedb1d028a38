"""The reconciler on a kernel that fails: errors with a reason, retries, and failing closed."""

import asyncio
import errno

import pytest
from test_diff import ADDRESS, GUARD, MACSEC, PORT, STACK, VLAN

from router.errors import KernelError
from router.fib_ops import GroupReplace, NexthopReplace, RouteReplace
from router.kernel.fake import FakeKernel
from router.model import Afi, Nexthop, Prefix, pack_address
from router.reconcile.loop import REPEATS_MAX, Reconciler
from router.reconcile.objects import DesiredState, PortLink


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def kernel():
    return FakeKernel(("p1", "p2"))


@pytest.fixture
def reconciler(kernel, clock):
    made = Reconciler(kernel, clock=clock, wall=lambda: clock.now + 1e9)
    made.set_desired(STACK)
    return made


async def test_it_settles(kernel, reconciler):
    """One cycle builds, the next one finds nothing to do."""
    assert await reconciler.cycle()
    assert not reconciler.settled.is_set()
    assert not await reconciler.cycle()
    assert reconciler.settled.is_set()
    assert kernel.links["ms1.1101"].up


async def test_an_object_in_error_stops_only_what_stands_on_it(kernel, reconciler, clock):
    """macsec is refused: the port is up, VLAN and address wait and say for what, another port goes on."""
    other = PortLink("p2", 1500, up=True, guarded=False)
    reconciler.set_desired(DesiredState((*STACK.objects, other)))
    kernel.fail("macsec", errno.ENOMEM, times=2)
    await reconciler.cycle()
    assert kernel.links["p1"].up
    assert kernel.links["p2"].up
    assert reconciler.errors[MACSEC.key].reason == "macsec: Cannot allocate memory"
    assert reconciler.errors[VLAN.key].reason.startswith("waits for macsec ms1: ")
    since = reconciler.errors[MACSEC.key].since
    await reconciler.cycle()
    assert reconciler.errors[MACSEC.key].attempts == 1  # too early
    clock.now += 0.6
    await reconciler.cycle()
    assert reconciler.errors[MACSEC.key].attempts == 2
    assert reconciler.errors[MACSEC.key].since == since
    clock.now += 1.1
    await reconciler.cycle()
    assert not reconciler.errors
    assert ADDRESS.key in kernel.addresses


async def test_a_port_that_cannot_be_guarded_goes_down(kernel, reconciler):
    """The guard was lost and is refused: the port is shut, and not brought up again without one."""
    await reconciler.cycle()
    del kernel.ours[GUARD.key]
    kernel.fail("guard", errno.EOPNOTSUPP, times=1)
    await reconciler.cycle()
    assert not kernel.links["p1"].up
    await reconciler.cycle()
    assert not kernel.links["p1"].up
    assert "waits for guard p1" in reconciler.errors[PORT.key].reason


async def test_a_change_of_its_device_retries_at_once(kernel, reconciler, clock):
    """A port that was missing is set up as soon as it is plugged in, whatever the pause was."""
    kernel.remove_link("p1")
    await reconciler.cycle()
    assert "no such device" in reconciler.errors[GUARD.key].reason
    kernel.add_port("p1")
    for event in await kernel.next_events():
        reconciler._take(event)
    reconciler._errors = {k: e for k, e in reconciler._errors.items() if e.retry_at <= clock.now}
    await reconciler.cycle()
    assert kernel.links["ms1.1101"].up


async def test_it_does_not_fight_for_ever(kernel, reconciler, clock):
    """Where another program undoes our change every time, that is said, and we slow down."""
    await reconciler.cycle()
    for _ in range(REPEATS_MAX + 1):
        kernel.remove_link("ms1.1101")
        await reconciler.cycle()
    assert "another program" in reconciler.errors[VLAN.key].reason


async def test_changes_of_a_link_are_reported_once(kernel, reconciler):
    """The daemon hears of each change of a device, not of each notification."""
    await reconciler.cycle()
    for event in await kernel.next_events():
        reconciler._take(event)
    while not reconciler.link_events.empty():
        reconciler.link_events.get_nowait()
    kernel.set_carrier("p1", carrier=False)
    kernel.set_carrier("p1", carrier=False)
    for event in await kernel.next_events():
        reconciler._take(event)
    heard = [reconciler.link_events.get_nowait() for _ in range(reconciler.link_events.qsize())]
    assert {(e.device, e.up) for e in heard} == {("p1", False), ("ms1", False), ("ms1.1101", False)}
    assert len(heard) == 3


async def test_routes_are_asked_for_again_when_a_link_returns(kernel, reconciler):
    """The kernel deletes nexthops with the carrier and does not tell: the daemon must look."""
    await reconciler.cycle()
    nexthop = Nexthop("ms1.1101", pack_address("169.254.1.2"))
    prefix = Prefix.parse("10.20.0.0/16")
    ops = [NexthopReplace(1, nexthop), GroupReplace(2, Afi.IPV4, (1,)), RouteReplace(254, prefix, 2)]
    assert await kernel.apply_fib(ops) == []
    reconciler.fib_resync.clear()
    kernel.set_carrier("p1", carrier=False)
    kernel.set_carrier("p1", carrier=True)
    assert (await kernel.observe_fib()).routes == {}
    for event in await kernel.next_events():
        reconciler._take(event)
    assert reconciler.fib_resync.is_set()


async def test_lost_notifications_mean_a_full_look(kernel, reconciler):
    """ENOBUFS: the running reconciler looks at everything again, and the daemon at its routes."""
    task = asyncio.create_task(reconciler.run())
    try:
        async with asyncio.timeout(5):
            await reconciler.settled.wait()
            reconciler.fib_resync.clear()
            kernel.lose_events = True
            kernel.remove_link("ms1")
            kernel.lose_events = False
            kernel.lose()
            await reconciler.fib_resync.wait()
            while "ms1.1101" not in kernel.links or not kernel.links["ms1.1101"].up:  # noqa: ASYNC110 - polls the fake
                await asyncio.sleep(0.001)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_release_removes_everything_of_ours(kernel, reconciler):
    """Routes, devices, addresses and guards go; the port is left, and down."""
    await reconciler.cycle()
    nexthop = Nexthop("ms1.1101", pack_address("169.254.1.2"))
    await kernel.apply_fib([NexthopReplace(1, nexthop), RouteReplace(254, Prefix.parse("10.20.0.0/16"), 1)])
    await reconciler.release()
    assert set(kernel.links) == {"p1", "p2"}
    assert not kernel.links["p1"].up
    assert not kernel.ours
    assert not kernel.addresses
    assert not kernel.routes
    assert not kernel.nexthops


async def test_release_goes_on_after_an_error(kernel, reconciler):
    """What can be removed is, and the error names what could not."""
    await reconciler.cycle()
    kernel.fail("vlan", errno.EBUSY, times=1)
    with pytest.raises(KernelError, match="1 objects could not be removed"):
        await reconciler.release()
    assert set(kernel.links) == {"p1", "p2"}

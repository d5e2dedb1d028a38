"""The data plane's TAPs: made by it, and everything else about them done here."""

import pytest

from router.kernel.fake import FakeKernel
from router.reconcile.diff import Verb, plan
from router.reconcile.loop import Reconciler
from router.reconcile.objects import Address, DesiredState, LinkFacts, ObservedState, TapLink, VlanLink

TAP = TapLink("a1.1101", 8500, None, up=True)
ADDRESS = Address("a1.1101", "169.254.11.1", 30, TAP.key)
STACK = DesiredState((TAP, ADDRESS))


@pytest.fixture
def kernel():
    return FakeKernel(("p1",))


@pytest.fixture
def reconciler(kernel):
    made = Reconciler(kernel)
    made.set_desired(STACK)
    return made


async def test_a_tap_that_is_not_there_yet_is_waited_for(kernel, reconciler):
    """It is not made here, and what stands on it waits and says for what."""
    await reconciler.cycle()
    assert "a1.1101" not in kernel.links
    assert "waits for the data plane" in reconciler.errors[TAP.key].reason
    assert reconciler.errors[ADDRESS.key].reason.startswith("waits for tap a1.1101")


async def test_a_tap_that_appears_is_finished_at_once(kernel, reconciler):
    """The notification ends the pause: mark, MTU, state and addresses."""
    await reconciler.cycle()
    kernel.add_port("a1.1101", kind="tun")
    for event in await kernel.next_events():
        reconciler._take(event)
    await reconciler.cycle()
    facts = kernel.links["a1.1101"]
    assert (facts.ours, facts.mtu, facts.up) == (True, 8500, True)
    assert ADDRESS.key in kernel.addresses
    assert not reconciler.errors
    assert not await reconciler.cycle()


async def test_a_device_of_another_kind_is_not_taken(kernel, reconciler):
    """Somebody else's device of the same name is an error, and stays as it is."""
    kernel.add_port("a1.1101", mtu=1500)
    await reconciler.cycle()
    assert "not ours" in reconciler.errors[TAP.key].reason
    assert (kernel.links["a1.1101"].mtu, kernel.links["a1.1101"].alias) == (1500, "")


async def test_a_tap_that_is_not_wanted_any_more_goes(kernel, reconciler):
    """It outlives the data plane, so nobody else would remove it."""
    kernel.add_port("a1.1101", kind="tun")
    await reconciler.cycle()
    reconciler.set_desired(DesiredState())
    await reconciler.cycle()
    assert "a1.1101" not in kernel.links


def test_from_the_kernel_to_the_data_plane_the_vlan_device_makes_room():
    """The names are the same: the old device goes first, and the interruption is told."""
    vlan = VlanLink("a1.1101", "ms-a1", 1101, 8500, None, up=True)
    links = {
        "a1.1101": LinkFacts(
            "a1.1101", 7, "vlan", "lastmile:vlan", "", 8500, up=True, carrier=True, operstate="up"
        )
    }
    actions = plan(STACK, ObservedState(links, {vlan.key: vlan})).actions
    assert [(action.verb, action.key.kind) for action in actions] == [
        (Verb.DELETE, "vlan"),
        (Verb.CREATE, "tap"),
        (Verb.CREATE, "address"),
    ]

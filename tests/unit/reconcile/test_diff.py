"""The plan: what it does, in which order, and that doing it is enough."""

import asyncio
from dataclasses import replace

from hypothesis import given, settings
from strategies import PORTS, desired_states

from router.kernel.fake import FakeKernel
from router.kernel.netlink import _not_ours
from router.model import CipherSuite, Confidentiality
from router.reconcile.diff import Verb, plan
from router.reconcile.objects import (
    Address,
    DesiredState,
    EgressGuard,
    Key,
    MacsecLink,
    PortLink,
    VlanLink,
)

GUARD = EgressGuard("p1", (0x888E, 0x88E5))
PORT = PortLink("p1", 9100, up=True, guarded=True)
MACSEC = MacsecLink("ms1", "p1", 9068, 1, CipherSuite.GCM_AES_XPN_256, 64, send_sci=True, up=True)
VLAN = VlanLink("ms1.1101", "ms1", 1101, 8500, None, up=True)
ADDRESS = Address("ms1.1101", "169.254.1.1", 30, VLAN.key)
STACK = DesiredState((GUARD, PORT, MACSEC, VLAN, ADDRESS))


async def reach(kernel, desired):
    """Plan and apply until there is nothing to do; a kernel's side effects may take a second look."""
    for _ in range(3):
        steps = plan(desired, await kernel.observe(desired))
        if not steps:
            return
        for action in steps.actions:
            await kernel.apply(action)
    assert not plan(desired, await kernel.observe(desired)).describe()


def planned(desired, before=None, change=None):
    """Plan for `desired` on a fake kernel that has `before`, after `change` was done to it by hand."""

    async def work():
        kernel = FakeKernel(PORTS)
        if before is not None:
            await reach(kernel, before)
        if change is not None:
            change(kernel)
        return plan(desired, await kernel.observe(desired))

    return asyncio.run(work())


@settings(max_examples=100, deadline=None)
@given(desired_states(), desired_states())
def test_applying_the_plan_is_enough(a, b):
    """From any state to any other: plan, apply, and nothing is left to do; then release leaves nothing."""

    async def work():
        kernel = FakeKernel(PORTS)
        await reach(kernel, a)
        await reach(kernel, b)
        await reach(kernel, DesiredState())
        assert set(kernel.links) == set(PORTS)
        assert not kernel.ours
        assert not kernel.addresses

    asyncio.run(work())


@settings(max_examples=100, deadline=None)
@given(desired_states(), desired_states())
def test_one_pass_is_enough(a, b):
    """The plan that was shown is the whole plan: after one pass there is nothing more to do."""

    async def work():
        kernel = FakeKernel(PORTS)
        await reach(kernel, a)
        for action in plan(b, await kernel.observe(b)).actions:
            await kernel.apply(action)
        assert not plan(b, await kernel.observe(b)).describe()

    asyncio.run(work())


def test_the_guard_stands_before_the_port_comes_up():
    """First the guard, then the port, then what is stacked on it."""
    kinds = [a.key.kind for a in planned(STACK).actions]
    assert kinds == ["guard", "port", "macsec", "vlan", "address"]


def test_the_guard_is_removed_last_and_the_port_is_left_down():
    """Release goes from the top; the port is shut while its guard still stands."""
    steps = planned(DesiredState(), before=STACK)
    assert [(a.verb, a.key.kind) for a in steps.actions] == [
        (Verb.DELETE, "vlan"),
        (Verb.DELETE, "macsec"),
        (Verb.SHUT, "port"),
        (Verb.DELETE, "guard"),
    ]


def test_another_suite_means_another_device():
    """A live macsec device cannot change its suite: it is rebuilt with all on it, and the plan says so."""
    other = replace(MACSEC, suite=CipherSuite.GCM_AES_256)
    steps = planned(replace(STACK, objects=(GUARD, PORT, other, VLAN, ADDRESS)), before=STACK)
    assert [(a.verb.value, a.key.kind) for a in steps.actions] == [
        ("delete", "vlan"),
        ("delete", "macsec"),
        ("create", "macsec"),
        ("create", "vlan"),
        ("create", "address"),
    ]
    assert steps.interrupted_devices == ("ms1.1101", "ms1")
    assert "suite gcm-aes-xpn-256 -> gcm-aes-256" in steps.describe()


def test_an_mtu_change_interrupts_nothing():
    """MTU, window and SCI change on the live device."""
    other = replace(MACSEC, mtu=9000, replay_window=0, send_sci=False)
    steps = planned(replace(STACK, objects=(GUARD, PORT, other, VLAN, ADDRESS)), before=STACK)
    assert [a.verb for a in steps.actions] == [Verb.CHANGE]
    assert steps.interrupted_devices == ()


def test_the_same_state_needs_nothing():
    """A reload of an equal configuration is an empty plan."""
    assert not planned(STACK, before=STACK)


def test_what_others_own_is_left_alone():
    """An address without our mark is not deleted, and is good enough where it is wanted."""

    def add_by_hand(kernel):
        foreign = Address("ms1.1101", "10.99.0.1", 24, VLAN.key)
        kernel.addresses[foreign.key] = foreign
        kernel.unmarked.update({foreign.key, ADDRESS.key})

    assert not planned(STACK, before=STACK, change=add_by_hand)


def test_a_lan_address_of_ours_is_removed_when_it_is_not_wanted():
    """An address with our mark goes, on a port that is not ours."""
    port = PortLink("p2", 1500, up=True, guarded=False)
    lan = DesiredState((port, Address("p2", "10.10.0.1", 24, port.key)))
    steps = planned(DesiredState((port,)), before=lan)
    assert steps.describe() == "delete address 10.10.0.1/24 dev p2"


def test_a_missing_port_is_in_the_plan():
    """A port that is not there is asked for; applying it is what fails, with the fix."""
    steps = planned(DesiredState((PortLink("p9", 1500, up=True, guarded=False),)))
    assert steps.describe() == "change port p9 mtu 1500 up (was: missing)"


def test_the_plan_as_data():
    """`plan --json` has one object per action."""
    assert planned(STACK).to_json()[0] == {
        "action": "create",
        "kind": "guard",
        "name": "p1",
        "object": "guard on p1 passes only 0x888e, 0x88e5",
        "was": None,
        "interrupts": None,
    }
    assert Key("guard", "p1") == planned(STACK).actions[0].key


OPENABLE = replace(MACSEC, may_open=True)


def with_macsec(link, guard=GUARD):
    return DesiredState((guard, PORT, link, VLAN, ADDRESS))


def opened(kernel):
    """The key daemon opens the port (should-secure), or somebody's hand does."""
    asyncio.run(kernel.secy("ms1").set_controlled_port(unprotected=True))


def test_an_open_port_is_left_alone_where_the_policy_allows_it():
    """The key daemon decides on a should-secure port; the reconciler does not fight it."""
    desired = with_macsec(OPENABLE)
    kernel = FakeKernel(PORTS)
    asyncio.run(reach(kernel, desired))
    opened(kernel)
    observed = asyncio.run(kernel.observe(desired))
    assert observed.objects[MACSEC.key].may_open
    assert not plan(desired, observed)


def test_an_open_port_is_closed_where_the_policy_is_must_secure():
    """By the reload that makes it so, and whenever it is found open after that."""
    kernel = FakeKernel(PORTS)
    asyncio.run(reach(kernel, with_macsec(OPENABLE)))
    opened(kernel)
    steps = plan(STACK, asyncio.run(kernel.observe(STACK)))
    assert [(a.verb, a.key) for a in steps.actions] == [(Verb.CHANGE, MACSEC.key)]
    assert "IN CLEAR" in steps.describe()
    asyncio.run(reach(kernel, STACK))
    assert not asyncio.run(kernel.secy("ms1").observe()).unprotected
    opened(kernel)
    assert plan(STACK, asyncio.run(kernel.observe(STACK))).actions


def test_a_change_of_another_setting_leaves_the_port_as_it_is():
    """A new replay window on an open should-secure port closes nothing."""
    kernel = FakeKernel(PORTS)
    asyncio.run(reach(kernel, with_macsec(OPENABLE)))
    opened(kernel)
    asyncio.run(reach(kernel, with_macsec(replace(OPENABLE, replay_window=128))))
    assert asyncio.run(kernel.secy("ms1").observe()).unprotected


def test_frames_are_encrypted_unless_the_policy_is_integrity_only():
    """Where it is, either is right: the key server may order more."""
    bare = with_macsec(replace(MACSEC, may_bare=True))
    kernel = FakeKernel(PORTS)
    asyncio.run(reach(kernel, bare))
    state = asyncio.run(kernel.secy("ms1").observe())
    assert state.confidentiality is Confidentiality.INTEGRITY_ONLY
    asyncio.run(kernel.secy("ms1").set_confidentiality(Confidentiality.OFFSET_0))
    assert not plan(bare, asyncio.run(kernel.observe(bare)))
    asyncio.run(kernel.secy("ms1").set_confidentiality(Confidentiality.INTEGRITY_ONLY))
    asyncio.run(reach(kernel, STACK))
    state = asyncio.run(kernel.secy("ms1").observe())
    assert state.confidentiality is Confidentiality.OFFSET_0


def test_a_live_devices_settings_of_the_key_daemon_are_not_sent():
    """What the policy leaves open is not part of a change; of a must-secure device everything is."""
    theirs = {"macsec_protect", "macsec_validation", "macsec_encrypt"}
    assert not theirs & _not_ours(MACSEC)
    assert _not_ours(replace(OPENABLE, may_bare=True)) >= theirs

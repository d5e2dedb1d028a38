"""From the shipped configuration to the desired state."""

from dataclasses import replace
from pathlib import Path

import pytest

from router.config.effective import Lag, MacsecMode
from router.config.load import load
from router.model import CipherSuite, Confidentiality
from router.reconcile.desired import desired_state
from router.reconcile.objects import (
    Address,
    ControlPlaneRules,
    EgressGuard,
    MacsecLink,
    PeerRule,
    PortLink,
    Sysctl,
    VlanLink,
)

FILE = Path(__file__).parents[3] / "config" / "four-channels.yaml"


@pytest.fixture(scope="module")
def state():
    return desired_state(load(FILE).effective)


def of(state, kind):
    return [o for o in state.objects if isinstance(o, kind)]


def test_a_channel_is_a_stack(state):
    """Port at its own MTU, macsec 32 octets below, the VLAN at the connection's MTU."""
    port = next(o for o in of(state, PortLink) if o.name == "port1")
    assert (port.mtu, port.up, port.guarded) == (9100, True, True)
    macsec = next(o for o in of(state, MacsecLink) if o.parent == "port1")
    assert (macsec.mtu, macsec.suite, macsec.up) == (9068, CipherSuite.GCM_AES_XPN_256, True)
    vlan = next(o for o in of(state, VlanLink) if o.parent == macsec.name)
    assert (vlan.vid, vlan.mtu, vlan.vrf) == (1101, 8500, None)
    addresses = [a.address for a in of(state, Address) if a.device == vlan.name]
    assert addresses == ["169.254.11.1", "fd00:11::1"]


def test_every_channel_is_there(state):
    """Four of each, nothing counts to four in the code."""
    assert [len(of(state, kind)) for kind in (EgressGuard, MacsecLink, VlanLink)] == [4, 4, 4]


def test_everything_stands_after_what_it_needs(state):
    """The order of the state is an order in which it can be built."""
    seen = set()
    keys = {o.key for o in state.objects}
    for item in state.objects:
        assert not {need for need in item.needs if need in keys} - seen, item
        seen.add(item.key)
    assert len(keys) == len(state.objects)


def test_no_ip_below_the_vlan(state):
    """Ports and macsec devices have no address, and IPv6 is off on them."""
    off = {o.device for o in of(state, Sysctl) if o.path[-1] == "disable_ipv6" and o.value == "1"}
    bare = {o.name for o in of(state, MacsecLink)} | {o.parent for o in of(state, MacsecLink)}
    assert off == bare
    assert not bare & {a.device for a in of(state, Address)}


def test_only_neighbours_talk_to_the_control_plane(state):
    """Each configured neighbour, on its own device."""
    (rules,) = of(state, ControlPlaneRules)
    device = next(o.name for o in of(state, VlanLink) if o.vid == 1101)
    assert PeerRule(device, "169.254.11.2") in rules.peers
    assert PeerRule(device, "fd00:11::2") in rules.peers
    assert len(rules.peers) == 8


def test_the_same_configuration_is_the_same_state(state):
    """Equal configurations ask for nothing."""
    assert desired_state(load(FILE).effective) == state


def with_policy(effective, **policy):
    """The same configuration with another policy on its first channel."""
    first, *others = effective.channels
    return replace(effective, channels=(replace(first, macsec=replace(first.macsec, **policy)), *others))


def test_must_secure_is_what_it_always_was(state):
    """Every guard passes EAPOL and MACsec alone, no device may open or leave frames readable."""
    assert {g.ethertypes for g in of(state, EgressGuard)} == {(0x888E, 0x88E5)}
    assert not any(link.may_open or link.may_bare for link in of(state, MacsecLink))


def test_should_secure_lets_one_channel_open_and_no_other(state):
    """Its guard passes VLAN frames too, its device may open; everything else is untouched."""
    config = with_policy(load(FILE).effective, mode=MacsecMode.SHOULD_SECURE)
    different = set(desired_state(config).objects) - set(state.objects)
    assert {type(o) for o in different} == {EgressGuard, MacsecLink}
    guard = next(o for o in different if isinstance(o, EgressGuard))
    assert (guard.device, guard.ethertypes) == ("port1", (0x8100, 0x888E, 0x88E5))
    link = next(o for o in different if isinstance(o, MacsecLink))
    assert (link.parent, link.may_open, link.may_bare) == ("port1", True, False)


def test_integrity_only_changes_nothing_but_the_device(state):
    """The guard stays: what leaves is MACsec all the same."""
    config = with_policy(load(FILE).effective, confidentiality=Confidentiality.INTEGRITY_ONLY)
    (link,) = set(desired_state(config).objects) - set(state.objects)
    assert link.may_bare
    assert not link.may_open


def test_members_of_a_lag_pass_what_the_lag_may_send():
    """With should-secure: LACP, VLAN frames, EAPOL and MACsec, sorted as guards must be."""
    config = with_policy(load(FILE).effective, mode=MacsecMode.SHOULD_SECURE)
    first, *others = config.channels
    config = replace(
        config, channels=(replace(first, lag=Lag(("e0", "e1"), lacp_fast=True, min_links=1)), *others)
    )
    guards = {g.device: g.ethertypes for g in of(desired_state(config), EgressGuard)}
    assert guards["e0"] == guards["e1"] == (0x8100, 0x8809, 0x888E, 0x88E5)

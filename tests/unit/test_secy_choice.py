"""Who does MACsec on a channel, and that it is said why."""

from dataclasses import replace

import pytest

from router.config.impact import impact
from router.config.load import load
from router.lab.topology import config_directory
from router.reconcile.desired import desired_state
from router.reconcile.objects import Address, EgressGuard, MacsecLink, PortLink, Sysctl, TapLink, VlanLink
from router.secy_choice import choose, settle


@pytest.fixture(scope="module")
def config():
    """Four channels, all `auto`."""
    return load(config_directory() / "four-channels.yaml").effective


def test_auto_takes_the_kernel_where_it_has_both(config):
    """Nothing is lacking."""
    choice = choose(config.channels[0], ())
    assert choice.secy == "kernel"
    assert choice.reason.startswith("auto: ")


@pytest.mark.parametrize("lacking", [("macsec",), ("vlan",), ("macsec", "vlan")])
def test_auto_takes_the_data_plane_where_anything_lacks_and_names_it(config, lacking):
    """The reason names each of what is missing."""
    choice = choose(config.channels[0], lacking)
    assert choice.secy == "fastpath"
    assert all(
        kind in choice.reason.lower() for kind in {"vlan": "vlan", "macsec": "macsec"} if kind in lacking
    )


@pytest.mark.parametrize("secy", ["kernel", "fastpath"])
@pytest.mark.parametrize("lacking", [(), ("macsec",)])
def test_what_is_configured_is_not_second_guessed(config, secy, lacking):
    """Whatever the kernel has."""
    choice = choose(replace(config.channels[0], secy=secy), lacking)
    assert (choice.secy, choice.reason) == (secy, "configured")


def test_settling_leaves_no_auto_and_touches_nothing_else(config):
    """The same configuration but for the one field."""
    settled, choices = settle(config, ("macsec",))
    assert {channel.secy for channel in settled.channels} == {"fastpath"}
    assert set(choices) == {channel.id for channel in config.channels}
    assert replace(settled, channels=config.channels) == config


def test_with_the_data_plane_everything_above_the_channel_is_the_same(config):
    """Same device names, MTU, addresses and sysctls; guards and ports too; no macsec, no VLAN."""
    kernel = desired_state(settle(config, ())[0]).objects
    fastpath = desired_state(settle(config, ("macsec",))[0]).objects
    assert not any(isinstance(o, MacsecLink | VlanLink) for o in fastpath)
    taps = {(o.name, o.mtu, o.vrf, o.up) for o in fastpath if isinstance(o, TapLink)}
    assert taps == {(o.name, o.mtu, o.vrf, o.up) for o in kernel if isinstance(o, VlanLink)}
    macsec = {o.name for o in kernel if isinstance(o, MacsecLink)}
    for kind in (EgressGuard, PortLink):
        assert [o for o in fastpath if isinstance(o, kind)] == [o for o in kernel if isinstance(o, kind)]
    assert {o.key for o in fastpath if isinstance(o, Address)} == {
        o.key for o in kernel if isinstance(o, Address)
    }
    assert [o for o in fastpath if isinstance(o, Sysctl)] == [
        o for o in kernel if isinstance(o, Sysctl) and o.device not in macsec
    ]


def test_another_secy_resets_the_sessions_on_it(config):
    """The feature's device becomes another one, and the plan says so."""
    channels = tuple(replace(c, secy="fastpath") if c.id == "a1" else c for c in config.channels)
    told = impact(config, replace(config, channels=channels))
    assert {i.object for i in told if i.effect == "reset"} == {"session prod/a1/ipv4", "session prod/a1/ipv6"}
    assert next(i for i in told if i.object == "channel a1").reason == "SecY auto -> fastpath"

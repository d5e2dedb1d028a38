"""Profiles: the providers' published values, and that each profile is consistent in itself."""

import pytest

from router.config.profiles import PROFILES
from router.config.resolve import WIRE_OVERHEAD
from router.model import CipherSuite, Prefix

EACH = pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda profile: profile.name)


def test_the_published_values():
    """Timers, TTL, MD5, AS numbers and limits as the providers' documents have them."""
    aws, gcp, azure, generic = (PROFILES[name] for name in ("aws-dx", "gcp", "azure-er", "generic"))
    assert [(p.timers.hold_s, p.timers.keepalive_s) for p in (aws, gcp, azure)] == [
        (90, 30),
        (60, 20),
        (180, 60),
    ]
    assert (aws.gtsm, aws.gtsm_possible, aws.md5_required, aws.graceful_restart_s) == (False, False, True, 0)
    assert (aws.advertise_max, aws.advertise_ceiling) == (100, 1000)
    assert aws.vlan_min == 1025
    assert aws.mtus == (1500, 8500, 9001)
    assert azure.peer_asn == 12076
    assert azure.mtus == (1500,)
    assert generic.gtsm
    assert generic.graceful_restart_s > 0
    assert gcp.replay_window == 64


@EACH
def test_a_profile_is_consistent(profile):
    """Its defaults are within its own limits."""
    assert PROFILES[profile.name] is profile
    assert profile.suite in profile.suites
    assert 1 <= profile.vlan_min < profile.vlan_max <= 4094
    assert 3 <= profile.timers.keepalive_s * 3 <= profile.timers.hold_s
    assert profile.advertise_max <= profile.advertise_ceiling
    assert profile.gtsm_possible or not profile.gtsm
    assert profile.mtus is None or max(profile.mtus) + WIRE_OVERHEAD <= 9216


@EACH
def test_only_256_bit_where_the_provider_says_so(profile):
    """Azure and the rest take 128 bit as well."""
    short = {CipherSuite.GCM_AES_128, CipherSuite.GCM_AES_XPN_128}
    assert bool(short & profile.suites) == (profile.name in {"azure-er", "generic"})


@EACH
@pytest.mark.parametrize(
    "prefix",
    ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "0.0.0.0/0", "::/0", "64:ff9b::/96"],
)
def test_private_addresses_and_the_default_are_no_bogons(profile, prefix):
    """They are what a private interconnect is for."""
    assert not any(bogon.contains(Prefix.parse(prefix)) for bogon in profile.bogons)


@EACH
@pytest.mark.parametrize(
    "prefix", ["127.0.0.0/8", "169.254.169.254/32", "224.0.0.0/8", "::1/128", "fe80::/64", "ff02::/16"]
)
def test_martians_are_bogons_everywhere(profile, prefix):
    """No peer can mean them."""
    assert any(bogon.contains(Prefix.parse(prefix)) for bogon in profile.bogons)

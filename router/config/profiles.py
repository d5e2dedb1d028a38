"""What a provider prescribes, as data: the values that a configuration need not repeat.

Sources are the providers' documents where they publish a value. Where they do not, the value
is ours and the comment says so. A profile's limits are checked; its defaults can be overridden
by the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from router.config.effective import BgpTimers
from router.model import CipherSuite, Prefix

REPLAY_WINDOW: Final = 64
"""Frames. Google's value, and openconfig PF-1.17's."""

MKA_PRIORITY: Final = 16
"""Key Server Priority of an infrastructure port (802.1X-2020 table 9-2), and OpenConfig's default."""

REKEY_INTERVAL_S: Final = 28_800
"""Google's value, and openconfig PF-1.17's."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Defaults and limits of one provider."""

    name: str
    title: str
    suite: CipherSuite
    """Default cipher suite."""
    suites: frozenset[CipherSuite]
    """Suites the provider takes."""
    xpn_at_100g: bool
    """On ports of 100G and more the provider takes XPN suites only."""
    sci_required: bool
    """The provider expects the SCI in every SecTAG."""
    replay_window: int
    mka_priority: int
    rekey_interval_s: int
    icv_indicator: bool
    vlan_min: int
    """Lowest VLAN ID that may be used; below it the provider's specification reserves them."""
    vlan_max: int
    mtus: tuple[int, ...] | None
    """IP MTUs the provider offers; None is any."""
    timers: BgpTimers
    gtsm: bool
    gtsm_possible: bool
    """False where the provider is known to send another TTL than 255."""
    graceful_restart_s: int
    md5_required: bool
    peer_asn: int | None
    advertise_max: int
    """Default number of prefixes per session and family towards the provider."""
    advertise_ceiling: int
    """How far `advertise_max` can be raised."""
    prefix_max: int
    """Received prefixes per session and family; warned about from 80 % on."""
    bogons: tuple[Prefix, ...]


_ALL_SUITES: Final = frozenset(CipherSuite)
_SUITES_256: Final = frozenset({CipherSuite.GCM_AES_256, CipherSuite.GCM_AES_XPN_256})

# Addresses that no peer can mean (RFC 6890): this host, loopback, link-local, multicast, reserved.
# RFC 1918 and ULA are what a private interconnect is for.
MARTIANS: Final = tuple(
    map(
        Prefix.parse,
        (
            "0.0.0.0/8",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "224.0.0.0/4",
            "240.0.0.0/4",
            "::/16",
            "fe80::/10",
            "ff00::/8",
        ),
    )
)
# Documentation and benchmarking ranges (RFC 5737, 2544, 3849) carry no traffic anywhere, but labs
# use them on purpose; only the profile without a provider behind it refuses them.
_DOCUMENTATION: Final = tuple(
    map(
        Prefix.parse,
        ("192.0.2.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32"),
    )
)

_AWS_DX: Final = Profile(
    name="aws-dx",
    title="AWS Direct Connect and Interconnect last mile",
    suite=CipherSuite.GCM_AES_XPN_256,
    suites=_SUITES_256,
    xpn_at_100g=True,
    sci_required=True,
    replay_window=REPLAY_WINDOW,
    mka_priority=MKA_PRIORITY,  # ours
    rekey_interval_s=REKEY_INTERVAL_S,  # ours
    icv_indicator=False,
    vlan_min=1025,  # open interconnect specification, vlanId
    vlan_max=4094,
    mtus=(1500, 8500, 9001),  # private, transit and last-mile VIFs
    timers=BgpTimers(hold_s=90, keepalive_s=30),
    gtsm=False,
    gtsm_possible=False,  # AWS sends TTL 1
    graceful_restart_s=0,  # not together with BFD
    md5_required=True,
    peer_asn=None,  # the customer chooses the gateway's
    advertise_max=100,
    advertise_ceiling=1000,
    prefix_max=5000,  # WAN core; a transit gateway sends up to 200
    bogons=MARTIANS,
)

_GCP: Final = Profile(
    name="gcp",
    title="Google Cloud Interconnect",
    suite=CipherSuite.GCM_AES_XPN_256,
    suites=_SUITES_256,
    xpn_at_100g=False,
    sci_required=True,
    replay_window=REPLAY_WINDOW,
    mka_priority=15,
    rekey_interval_s=REKEY_INTERVAL_S,
    icv_indicator=True,
    vlan_min=2,
    vlan_max=4093,  # VLAN attachments
    mtus=(1440, 1460, 1500, 8896),  # VLAN attachments
    timers=BgpTimers(hold_s=60, keepalive_s=20),
    gtsm=False,
    gtsm_possible=True,
    graceful_restart_s=0,  # BFD 1000 ms x 5 is the provider's way
    md5_required=False,
    peer_asn=None,
    advertise_max=100,  # ours: careful
    advertise_ceiling=1000,  # ours: careful
    prefix_max=5000,  # ours
    bogons=MARTIANS,
)

_AZURE_ER: Final = Profile(
    name="azure-er",
    title="Azure ExpressRoute Direct",
    suite=CipherSuite.GCM_AES_XPN_256,
    suites=_ALL_SUITES,
    xpn_at_100g=False,
    sci_required=False,
    replay_window=REPLAY_WINDOW,
    mka_priority=MKA_PRIORITY,  # ours
    rekey_interval_s=REKEY_INTERVAL_S,  # ours
    icv_indicator=False,
    vlan_min=1,
    vlan_max=4094,
    mtus=(1500,),
    timers=BgpTimers(hold_s=180, keepalive_s=60),
    gtsm=False,
    gtsm_possible=True,
    graceful_restart_s=0,
    md5_required=False,
    peer_asn=12076,
    advertise_max=1000,  # ours; private peering takes 4000
    advertise_ceiling=4000,
    prefix_max=5000,  # ours
    bogons=MARTIANS,
)

_GENERIC: Final = Profile(
    name="generic",
    title="any other provider, or our own router at the far end",
    suite=CipherSuite.GCM_AES_XPN_256,
    suites=_ALL_SUITES,
    xpn_at_100g=False,
    sci_required=False,
    replay_window=REPLAY_WINDOW,
    mka_priority=MKA_PRIORITY,  # ours
    rekey_interval_s=REKEY_INTERVAL_S,  # ours
    icv_indicator=False,
    vlan_min=1,
    vlan_max=4094,
    mtus=None,
    timers=BgpTimers(hold_s=90, keepalive_s=30),
    gtsm=True,
    gtsm_possible=True,
    graceful_restart_s=120,
    md5_required=False,
    peer_asn=None,
    advertise_max=1000,  # ours
    advertise_ceiling=10_000,  # ours
    prefix_max=10_000,  # ours
    bogons=MARTIANS + _DOCUMENTATION,
)

PROFILES: Final = MappingProxyType({p.name: p for p in (_AWS_DX, _GCP, _AZURE_ER, _GENERIC)})

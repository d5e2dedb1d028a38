"""From the configuration to what the kernel must look like. Pure.

A channel is a stack: port (MTU as configured) -> macsec (32 octets less) -> one VLAN device per
feature (the connection's IP MTU) -> addresses. Bare ports and macsec devices carry no IP at all.
With our data plane the two in the middle are its business: the feature's device is a TAP of the
same name, and port, addresses and all that is above are the same. `auto` has been settled before.
"""

from __future__ import annotations

from collections.abc import Iterator

from router.config.effective import (
    Channel,
    Connection,
    EffectiveConfig,
    Feature,
    LanPort,
    MacsecMode,
    Vrf,
)
from router.model import MACSEC_OVERHEAD, Confidentiality
from router.reconcile.objects import (
    Address,
    BondLink,
    ControlPlaneRules,
    DesiredState,
    EgressGuard,
    MacsecLink,
    Object,
    PeerRule,
    PortLink,
    Sysctl,
    TapLink,
    VlanLink,
    VrfLink,
)

ETHERTYPE_VLAN = 0x8100
"""802.1Q: what a feature's frames are where no MACsec is around them."""
ETHERTYPE_MACSEC = 0x88E5
ETHERTYPE_EAPOL = 0x888E
ETHERTYPE_SLOW = 0x8809
"""IEEE 802.3 slow protocols: LACP on the members of a LAG."""

GLOBAL_SYSCTLS = (
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    # Group replace in microseconds at any table size: no notification per route (REQUIREMENTS: 0.07 ms
    # instead of 10 ms under 10,000 routes).
    ("net/ipv4/nexthop_compat_mode", "0"),
    # Layer 4 hash, so that one pair of hosts uses all channels.
    ("net/ipv4/fib_multipath_hash_policy", "1"),
    ("net/ipv6/fib_multipath_hash_policy", "1"),
    # A dead channel must not attract packets while its routes are being rewritten.
    ("net/ipv4/conf/all/ignore_routes_with_linkdown", "1"),
    ("net/ipv6/conf/all/ignore_routes_with_linkdown", "1"),
)
"""Sysctls of the whole router. They are set, and left as they are on release."""

VRF_SYSCTLS = (
    # One BGP process serves sessions in every VRF by binding to their devices.
    ("net/ipv4/tcp_l3mdev_accept", "1"),
    ("net/ipv4/udp_l3mdev_accept", "1"),
)


def desired_state(config: EffectiveConfig) -> DesiredState:
    """Return everything that must be true of the kernel for `config`, in building order."""
    objects: list[Object] = [Sysctl(tuple(path.split("/")), value) for path, value in GLOBAL_SYSCTLS]
    if config.vrfs:
        objects += [Sysctl(tuple(path.split("/")), value) for path, value in VRF_SYSCTLS]
    objects.append(control_plane_rules(config))
    for vrf in config.vrfs:
        objects += _vrf(vrf)
    for lan in config.router.lan:
        objects += _lan(lan)
    for channel in config.channels:
        objects += _channel(channel)
    for connection in config.connections:
        for feature in connection.features:
            objects += _feature(config.channel(feature.channel), connection, feature)
    return DesiredState(tuple(objects))


def control_plane_rules(config: EffectiveConfig) -> ControlPlaneRules:
    """Return who may talk BGP and BFD to us: each configured neighbour on its own device."""
    peers = {PeerRule(s.device, s.addresses.peer) for s in config.sessions}
    return ControlPlaneRules(tuple(sorted(peers)))


def _vrf(vrf: Vrf) -> Iterator[Object]:
    yield VrfLink(vrf.name, vrf.table)


def _no_ip(device: str) -> Iterator[Sysctl]:
    """Keep IPv6 (link-local address, MLD, router solicitations) off a device; IPv4 has no address there."""
    yield Sysctl(("net", "ipv6", "conf", device, "disable_ipv6"), "1", device)


def guarded_types(channel: Channel) -> tuple[int, ...]:
    """Return what the guard of a channel's port passes, sorted.

    should-secure: the frames of an open port too. When they pass is the SecY's decision then.
    """
    if channel.macsec.mode is MacsecMode.SHOULD_SECURE:
        return (ETHERTYPE_VLAN, ETHERTYPE_EAPOL, ETHERTYPE_MACSEC)
    return (ETHERTYPE_EAPOL, ETHERTYPE_MACSEC)


def _channel(channel: Channel) -> Iterator[Object]:
    secured = guarded_types(channel)
    if channel.lag:
        yield BondLink(channel.port, channel.lag.lacp_fast, channel.lag.min_links)
        for member in channel.lag.members:
            yield from _no_ip(member)
            yield EgressGuard(member, tuple(sorted((ETHERTYPE_SLOW, *secured))))
            yield PortLink(member, channel.port_mtu, channel.enabled, guarded=True, bond=channel.port)
    yield from _no_ip(channel.port)
    yield EgressGuard(channel.port, secured)
    yield PortLink(channel.port, channel.port_mtu, channel.enabled, guarded=True)
    if channel.secy == "fastpath":
        return
    yield MacsecLink(
        channel.macsec_device,
        parent=channel.port,
        mtu=channel.port_mtu - MACSEC_OVERHEAD,
        sci_port=channel.macsec.sci_port,
        suite=channel.macsec.suite,
        replay_window=channel.macsec.replay_window,
        send_sci=channel.macsec.include_sci,
        up=channel.enabled,
        may_open=channel.macsec.mode is MacsecMode.SHOULD_SECURE,
        may_bare=channel.macsec.confidentiality is Confidentiality.INTEGRITY_ONLY,
    )
    yield from _no_ip(channel.macsec_device)


def _feature(channel: Channel, connection: Connection, feature: Feature) -> Iterator[Object]:
    device = feature.device
    link: VlanLink | TapLink
    if channel.secy == "fastpath":
        link = TapLink(device, connection.mtu, connection.vrf, up=channel.enabled)
    else:
        link = VlanLink(
            device,
            parent=channel.macsec_device,
            vid=feature.vlan,
            mtu=connection.mtu,
            vrf=connection.vrf,
            up=channel.enabled,
        )
    yield link
    for path, value in (
        # Return traffic may come in over any of the channels: accept what is routable at all.
        (("net", "ipv4", "conf", device, "rp_filter"), "2"),
        # Both ends tell a new neighbour table at once when the device comes up.
        (("net", "ipv4", "conf", device, "arp_notify"), "1"),
        # An address of another channel is nobody's business on this one.
        (("net", "ipv4", "conf", device, "arp_ignore"), "1"),
        (("net", "ipv4", "conf", device, "arp_announce"), "2"),
        (("net", "ipv4", "conf", device, "accept_redirects"), "0"),
        (("net", "ipv4", "conf", device, "send_redirects"), "0"),
        (("net", "ipv6", "conf", device, "accept_ra"), "0"),
        (("net", "ipv6", "conf", device, "accept_redirects"), "0"),
        # A point-to-point link: no duplicate to detect, and the session starts a second sooner.
        (("net", "ipv6", "conf", device, "accept_dad"), "0"),
        (("net", "ipv6", "conf", device, "keep_addr_on_down"), "1"),
    ):
        yield Sysctl(path, value, device)
    for pair in feature.addresses:
        yield Address(device, pair.local, pair.prefix_length, below=link.key)


def _lan(lan: LanPort) -> Iterator[Object]:
    link = PortLink(lan.port, lan.mtu, up=True, guarded=False, vrf=lan.vrf)
    yield link
    yield Sysctl(("net", "ipv6", "conf", lan.port, "accept_ra"), "0", lan.port)
    yield Sysctl(("net", "ipv6", "conf", lan.port, "keep_addr_on_down"), "1", lan.port)
    yield Sysctl(("net", "ipv4", "conf", lan.port, "rp_filter"), "2", lan.port)
    for text in lan.addresses:
        address, _, length = text.partition("/")
        yield Address(lan.port, address, int(length), below=link.key)

"""Small configurations for the BGP tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from router.config.effective import (
    AddressPair,
    BgpPolicy,
    BgpTimers,
    Channel,
    Connection,
    EffectiveConfig,
    Feature,
    Interconnect,
    LanPort,
    PrefixFilter,
    Router,
    SecretRef,
    Session,
)
from router.model import ChannelId, Prefix

LOCAL_ASN = 4200000010
PEER_ASN = 4200000020

POLICY = BgpPolicy(
    timers=BgpTimers(hold_s=30, keepalive_s=10),
    gtsm=False,
    ttl=1,
    graceful_restart_s=0,
    md5_required=False,
    bogons=(),
    multipath_relax=False,
    max_paths=16,
    prefix_warn=20_000,
    prefix_max=50_000,
    advertise_max=100,
    local_preference=100,
)


def prefix_filter(text: str) -> PrefixFilter:
    """`10.0.0.0/8 le 24`, `0.0.0.0/0 le 32`."""
    prefix, *words = text.split()
    parsed = Prefix.parse(prefix)
    bounds = dict(zip(words[::2], map(int, words[1::2]), strict=True))
    ge = bounds.get("ge", parsed.length)
    return PrefixFilter(parsed, ge, bounds.get("le", ge if "ge" not in bounds else parsed.afi.size * 8))


def make_config(
    channels: int = 1,
    *,
    sites: tuple[str, ...] = ("site-a", "site-b"),
    policy: BgpPolicy = POLICY,
    advertise: tuple[str, ...] = ("10.10.0.0/24", "2001:db8:10::/64"),
    accept: tuple[str, ...] = ("10.20.0.0/16 le 32", "172.16.0.0/12 le 32", "2001:db8:20::/48 le 64"),
    lan: tuple[str, ...] = ("10.10.0.1/24", "2001:db8:10::1/64"),
    password: SecretRef | None = None,
    families: tuple[str, ...] = ("ipv4", "ipv6"),
    device: str = "ch{}",
    peer_asn: int = PEER_ASN,
) -> EffectiveConfig:
    """Channel n: device chN, 169.254.N.1/30 and fd00:N::1/126, the peer has .2, site by turns."""
    macsec: Any = None  # BGP does not look at it
    made, features = [], []
    for number in range(1, channels + 1):
        site = sites[(number - 1) % len(sites)]
        name = ChannelId(f"c{number}")
        port = device.format(number)
        made.append(Channel(name, "metro", site, port, 9100, None, True, macsec, port))
        pairs = {
            "ipv4": AddressPair(f"169.254.{number}.1", f"169.254.{number}.2", 30),
            "ipv6": AddressPair(f"fd00:{number:x}::1", f"fd00:{number:x}::2", 126),
        }
        sessions = tuple(
            Session(
                name=f"prod/{name}/{family}",
                connection="prod",
                channel=name,
                site=site,
                addresses=pairs[family],
                local_asn=LOCAL_ASN,
                peer_asn=peer_asn,
                router_id="10.255.0.1",
                password=password,
                device=port,
            )
            for family in families
        )
        features.append(
            Feature("prod", name, 1100 + number, port, tuple(pairs[f] for f in families), sessions)
        )
    connection = Connection(
        name="prod",
        interconnect="metro",
        bandwidth_mbps=10_000,
        mtu=8500,
        vrf=None,
        table=254,
        advertise=tuple(map(Prefix.parse, advertise)),
        accept=tuple(map(prefix_filter, accept)),
        bgp=policy,
        features=tuple(features),
    )
    return EffectiveConfig(
        router=Router("branch-1", LOCAL_ASN, "10.255.0.1", (LanPort("lan0", 9000, lan, None),)),
        interconnects=(Interconnect("metro", "generic", tuple(c.id for c in made)),),
        channels=tuple(made),
        vrfs=(),
        connections=(connection,),
    )


def with_connection(config: EffectiveConfig, **changes: object) -> EffectiveConfig:
    """The same configuration with its one connection changed."""
    return replace(config, connections=(replace(config.connections[0], **changes),))

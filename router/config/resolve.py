"""Document -> effective objects: names looked up, profile and defaults filled in, origins noted.

Never fails. What cannot be resolved (an unknown interconnect, a channel that is not there) is
left out here and reported by `checks`, so that one mistake does not hide the others.
"""

from __future__ import annotations

import os.path
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from router.config.effective import (
    AddressPair,
    BgpPolicy,
    BgpTimers,
    Channel,
    Connection,
    EffectiveConfig,
    Feature,
    Interconnect,
    Lag,
    LanPort,
    Macsec,
    MacsecMode,
    Mka,
    MkaKey,
    Router,
    SecretRef,
    SecyKind,
    Session,
    StaticKeys,
    StaticSa,
    Vrf,
)
from router.config.findings import Origin
from router.config.leaves import dotted, leaves
from router.config.profiles import PROFILES, Profile
from router.config.schema import (
    ChannelSpec,
    ConnectionBgpSpec,
    ConnectionSpec,
    Document,
    FeatureBgpSpec,
    FeatureSpec,
    InterconnectSpec,
    KeyChainSpec,
    KeySpec,
    LagSpec,
    MacsecDefaults,
    MacsecSpec,
    MkaSpec,
    PortSpec,
    SecretSpec,
    StaticSaSpec,
    StaticSpec,
    TimersSpec,
)
from router.config.source import Path, Source
from router.fib_ops import MAIN_TABLE
from router.model import (
    MACSEC_OVERHEAD,
    VLAN_OVERHEAD,
    Afi,
    ChannelId,
    Confidentiality,
    show_address,
)

SECY_DEFAULT: Final[SecyKind] = "auto"

T = TypeVar("T")

WIRE_OVERHEAD: Final = VLAN_OVERHEAD + MACSEC_OVERHEAD
"""Octets that the bare port carries on top of the IP MTU."""

MTU_DEFAULT: Final = 1500
"""IP MTU of a LAN port, and what an unused channel's port is sized for."""

MAX_PATHS_DEFAULT: Final = 16
"""Next hops of one route: as many as an interconnect has channels at most."""

LOCAL_PREFERENCE_DEFAULT: Final = 100

CLOCK_SKEW_S: Final = 600
"""Ten minutes between the clocks of both ends, across the start of a key."""

SAK_RETIRE_TIME_MS: Final = 3000
"""MKA SAK Retire Time of IEEE 802.1X-2020, table 9-3."""

BAKE_TIME_S: Final = 7200
"""Two hours, by the open interconnect specification."""

DEFAULT: Final = Origin("default")
DERIVED: Final = Origin("derived")


@dataclass(frozen=True, slots=True)
class Placed(Generic[T]):
    """An effective object and the place in the file that it comes from."""

    value: T
    path: Path


@dataclass(frozen=True, slots=True)
class PlacedFeature:
    """A feature with everything that the checks relate it to."""

    value: Feature
    path: Path
    connection: Connection
    channel: Channel
    profile: Profile


@dataclass(frozen=True, slots=True)
class Draft:
    """The effective configuration before it is checked, with the way back to the file."""

    source: Source
    document: Document
    effective: EffectiveConfig
    origins: dict[str, Origin]
    channels: tuple[Placed[Channel], ...]
    connections: tuple[Placed[Connection], ...]
    features: tuple[PlacedFeature, ...]

    def profile_of(self, channel: Channel) -> Profile:
        """Return the profile of a channel's interconnect."""
        for interconnect in self.effective.interconnects:
            if interconnect.name == channel.interconnect:
                return PROFILES[interconnect.profile]
        raise KeyError(channel.interconnect)


def resolve(document: Document, source: Source, directory: str) -> Draft:
    """Fill in everything. `directory` is what secret files are relative to."""
    return _Resolver(document, source, directory).draft()


class _Resolver:
    def __init__(self, document: Document, source: Source, directory: str) -> None:
        self._document = document
        self._source = source
        self._directory = directory
        self._origins: dict[str, Origin] = {}

    def draft(self) -> Draft:
        router = self._router()
        interconnects: list[Interconnect] = []
        channels: list[Placed[Channel]] = []
        for index, spec in enumerate(self._document.interconnects):
            path: Path = ("interconnects", index)
            placed = [
                Placed(
                    self._channel(spec, path, channel, (*path, "channels", position)),
                    (*path, "channels", position),
                )
                for position, channel in enumerate(spec.channels)
            ]
            channels += placed
            key = f"interconnects.{spec.name}"
            interconnects.append(
                Interconnect(
                    name=self._said(f"{key}.name", spec.name, (*path, "name")),
                    profile=self._said(f"{key}.profile", spec.profile, (*path, "profile")),
                    channels=self._said(
                        f"{key}.channels", tuple(p.value.id for p in placed), (*path, "channels")
                    ),
                )
            )
        vrfs = tuple(
            Vrf(
                name=self._said(f"vrfs.{vrf.name}.name", vrf.name, ("vrfs", index, "name")),
                table=self._said(f"vrfs.{vrf.name}.table", vrf.table, ("vrfs", index, "table")),
            )
            for index, vrf in enumerate(self._document.vrfs)
        )
        tables = {vrf.name: vrf.table for vrf in vrfs}
        connections: list[Placed[Connection]] = []
        features: list[PlacedFeature] = []
        by_name = {c.value.id: c.value for c in reversed(channels)}
        for index, connection in enumerate(self._document.connections):
            self._connection(("connections", index), connection, by_name, tables, connections, features)
        effective = EffectiveConfig(
            router=router,
            interconnects=tuple(interconnects),
            channels=tuple(p.value for p in channels),
            vrfs=vrfs,
            connections=tuple(p.value for p in connections),
        )
        keys = [dotted(path) for path, _ in leaves(effective)]
        origins = {key: self._origins.get(key, DERIVED) for key in keys}
        return Draft(
            source=self._source,
            document=self._document,
            effective=effective,
            origins=origins,
            channels=tuple(channels),
            connections=tuple(connections),
            features=tuple(features),
        )

    # Origins: each of these returns the value and notes where it came from.

    def _said(self, key: str, value: T, path: Path) -> T:
        """Take a value that the file gives, or its default where the file does not."""
        node = self._source.get(path)
        self._note(key, DEFAULT if node is None else Origin("file", self._source.file, node.line))
        return value

    def _choose(self, key: str, candidates: Sequence[tuple[Any, Path]], otherwise: T, origin: Origin) -> T:
        """Take the first value that the file gives, else `otherwise`."""
        for value, path in candidates:
            if value is not None:
                chosen: T = self._said(key, value, path)
                return chosen
        self._note(key, origin)
        return otherwise

    def _note(self, key: str, origin: Origin) -> None:
        self._origins.setdefault(key, origin)

    def _same(self, key: str, other: str) -> None:
        """Note that a value is a copy of another one, which has its origin already."""
        self._note(key, self._origins[other])

    # The objects, from the outside in.

    def _router(self) -> Router:
        spec = self._document.router
        lan = []
        for index, port in enumerate(spec.lan):
            path: Path = ("router", "lan", index)
            key = f"router.lan.{port.port}"
            lan.append(
                LanPort(
                    port=self._said(f"{key}.port", port.port, (*path, "port")),
                    mtu=self._choose(f"{key}.mtu", [(port.mtu, (*path, "mtu"))], MTU_DEFAULT, DEFAULT),
                    addresses=self._said(
                        f"{key}.addresses", tuple(map(str, port.addresses)), (*path, "addresses")
                    ),
                    vrf=self._said(f"{key}.vrf", port.vrf, (*path, "vrf")),
                )
            )
        return Router(
            name=self._said("router.name", spec.name, ("router", "name")),
            asn=self._said("router.asn", spec.asn, ("router", "asn")),
            router_id=self._said("router.router_id", spec.router_id, ("router", "router_id")),
            lan=tuple(lan) if lan else self._said("router.lan", (), ("router", "lan")),
        )

    def _channel(self, interconnect: InterconnectSpec, outer: Path, spec: ChannelSpec, path: Path) -> Channel:
        key = f"channels.{spec.name}"
        lag = self._lag(f"{key}.lag", spec.lag, (*path, "lag"))
        if spec.lag is not None:
            port, mtu, where = spec.lag.name, spec.lag.mtu, (*path, "lag")
        elif isinstance(spec.port, PortSpec):
            port, mtu, where = spec.port.name, spec.port.mtu, (*path, "port")
        else:
            port, mtu, where = str(spec.port), None, (*path, "port")
        named = (*where, "name") if self._source.get((*where, "name")) else where
        return Channel(
            id=ChannelId(self._said(f"{key}.id", spec.name, (*path, "name"))),
            interconnect=self._said(f"{key}.interconnect", interconnect.name, (*outer, "name")),
            site=self._said(f"{key}.site", spec.site, (*path, "site")),
            port=self._said(f"{key}.port", port, named),
            port_mtu=self._choose(
                f"{key}.port_mtu", [(mtu, (*where, "mtu"))], self._port_mtu(spec.name), DERIVED
            ),
            lag=lag,
            enabled=self._said(f"{key}.enabled", spec.enabled, (*path, "enabled")),
            macsec=self._macsec(key, interconnect, outer, spec, path),
            macsec_device=f"ms-{spec.name}",
            secy=self._choose(f"{key}.secy", [(interconnect.secy, (*outer, "secy"))], SECY_DEFAULT, DEFAULT),
            cores=self._choose(f"{key}.cores", [(interconnect.cores, (*outer, "cores"))], 1, DEFAULT),
        )

    def _port_mtu(self, channel: str) -> int:
        """Return what the port must carry for the connections that use the channel."""
        mtus = [
            connection.mtu
            for connection in self._document.connections
            if any(feature.channel == channel for feature in connection.features)
        ]
        return max(mtus, default=MTU_DEFAULT) + WIRE_OVERHEAD

    def _lag(self, key: str, spec: LagSpec | None, path: Path) -> Lag | None:
        if spec is None:
            self._note(key, DEFAULT)
            return None
        fast = None if spec.lacp is None else spec.lacp == "fast"
        return Lag(
            members=self._said(f"{key}.members", spec.members, (*path, "members")),
            lacp_fast=self._choose(f"{key}.lacp_fast", [(fast, (*path, "lacp"))], True, DEFAULT),
            min_links=self._choose(f"{key}.min_links", [(spec.min_links, (*path, "min_links"))], 1, DEFAULT),
        )

    def _macsec(
        self, channel: str, interconnect: InterconnectSpec, outer: Path, spec: ChannelSpec, inner: Path
    ) -> Macsec:
        key = f"{channel}.macsec"
        profile = PROFILES[interconnect.profile]
        origin = Origin("profile", profile.name)
        own = spec.macsec or MacsecSpec()
        common = interconnect.macsec or MacsecDefaults()

        def choose(name: str, otherwise: T, origin: Origin) -> T:
            candidates = [
                (getattr(own, name), (*inner, "macsec", name)),
                (getattr(common, name), (*outer, "macsec", name)),
            ]
            return self._choose(f"{key}.{name}", candidates, otherwise, origin)

        policy = choose("policy", MacsecMode.MUST_SECURE.value, DEFAULT)
        self._same(f"{key}.mode", f"{key}.policy")
        confidentiality = choose("confidentiality", Confidentiality.OFFSET_0.label, DEFAULT)
        suites = choose("suite", (profile.suite,), origin)
        self._same(f"{key}.suites", f"{key}.suite")
        return Macsec(
            mode=MacsecMode(policy),
            suite=suites[0],
            suites=suites,
            replay_window=choose("replay_window", profile.replay_window, origin),
            include_sci=choose("include_sci", True, DEFAULT),
            sci_port=choose("sci_port", 1, DEFAULT),
            static=self._static(f"{key}.static", own.static, (*inner, "macsec", "static")),
            mka=self._mka(
                f"{key}.mka", profile, [(own.mka, (*inner, "macsec")), (common.mka, (*outer, "macsec"))]
            ),
            keys=self._keys(f"{key}.keys", own.keys or (), (*inner, "macsec", "keys")),
            key_directory=self._key_directory(f"{key}.key_directory", own.key_chain, (*inner, "macsec")),
            keys_managed_by=choose("keys_managed_by", "us", DEFAULT),
            bake_time_s=choose("bake_time_s", BAKE_TIME_S, DEFAULT),
            key_rules=choose("key_rules", "provider", DEFAULT),
            confidentiality=Confidentiality.parse(confidentiality),
        )

    def _mka(self, key: str, profile: Profile, specs: Sequence[tuple[MkaSpec | None, Path]]) -> Mka:
        origin = Origin("profile", profile.name)

        def choose(name: str, otherwise: T, origin: Origin) -> T:
            candidates = [
                (getattr(spec, name), (*path, "mka", name)) for spec, path in specs if spec is not None
            ]
            return self._choose(f"{key}.{name}", candidates, otherwise, origin)

        return Mka(
            priority=choose("priority", profile.mka_priority, origin),
            rekey_interval_s=choose("rekey_interval_s", profile.rekey_interval_s, origin),
            sak_retire_time_ms=choose("sak_retire_time_ms", SAK_RETIRE_TIME_MS, DEFAULT),
            delay_protection=choose("delay_protection", False, DEFAULT),
            icv_indicator=choose("icv_indicator", profile.icv_indicator, origin),
            announce=choose("announce", True, DEFAULT),
            ssci_order=choose("ssci_order", "standard", DEFAULT),
            clock_skew_s=choose("clock_skew_s", CLOCK_SKEW_S, DEFAULT),
        )

    def _keys(self, key: str, specs: Sequence[KeySpec], path: Path) -> tuple[MkaKey, ...]:
        keys = []
        for index, spec in enumerate(specs):
            name, where = f"{key}.{spec.ckn.hex()}", (*path, index)
            keys.append(
                MkaKey(
                    ckn=self._said(f"{name}.ckn", spec.ckn, (*where, "ckn")),
                    cak=self._said(f"{name}.cak", self._secret(spec.cak), (*where, "cak")),
                    start=self._said(f"{name}.start", spec.start, (*where, "start")),
                    end=self._said(f"{name}.end", spec.end, (*where, "end")),
                )
            )
        if not keys:
            self._note(key, DEFAULT)
        return tuple(keys)

    def _key_directory(self, key: str, spec: KeyChainSpec | None, path: Path) -> str | None:
        if spec is None:
            self._note(key, DEFAULT)
            return None
        directory = os.path.normpath(os.path.join(self._directory, spec.directory))  # noqa: PTH118 - text only
        return self._said(key, directory, (*path, "key_chain", "directory"))

    def _static(self, key: str, spec: StaticSpec | None, path: Path) -> StaticKeys | None:
        if spec is None:
            self._note(key, DEFAULT)
            return None
        return StaticKeys(
            peer_sci=self._said(f"{key}.peer_sci", spec.peer_sci, (*path, "peer_sci")),
            transmit=self._static_sa(f"{key}.transmit", spec.transmit, (*path, "transmit")),
            receive=self._static_sa(f"{key}.receive", spec.receive, (*path, "receive")),
            salt=self._said(f"{key}.salt", spec.salt or b"", (*path, "salt")),
        )

    def _static_sa(self, key: str, spec: StaticSaSpec, path: Path) -> StaticSa:
        return StaticSa(
            an=self._said(f"{key}.an", spec.an, (*path, "an")),
            sak=self._said(f"{key}.sak", self._secret(spec.sak), (*path, "sak")),
            ssci=self._said(f"{key}.ssci", spec.ssci or 0, (*path, "ssci")),
        )

    def _secret(self, spec: SecretSpec) -> SecretRef:
        if spec.file is not None:
            return SecretRef("file", os.path.normpath(os.path.join(self._directory, spec.file)))  # noqa: PTH118 - text only
        if spec.command is not None:
            return SecretRef("command", shlex.join(spec.command), spec.command)
        assert spec.credential is not None
        return SecretRef("credential", spec.credential)

    def _connection(  # noqa: PLR0917 - all of different types or named alike by the caller
        self,
        path: Path,
        spec: ConnectionSpec,
        channels: dict[ChannelId, Channel],
        tables: dict[str, int],
        connections: list[Placed[Connection]],
        features: list[PlacedFeature],
    ) -> None:
        profiles = {i.name: PROFILES[i.profile] for i in reversed(self._document.interconnects)}
        profile = profiles.get(spec.interconnect)
        if profile is None:
            return
        key = f"connections.{spec.name}"
        placed = [
            (self._feature(key, spec, path, feature, (*path, "features", index), channels, profile), index)
            for index, feature in enumerate(spec.features)
            if ChannelId(feature.channel) in channels
        ]
        connection = Connection(
            name=self._said(f"{key}.name", spec.name, (*path, "name")),
            interconnect=self._said(f"{key}.interconnect", spec.interconnect, (*path, "interconnect")),
            bandwidth_mbps=self._said(f"{key}.bandwidth_mbps", spec.bandwidth, (*path, "bandwidth")),
            mtu=self._said(f"{key}.mtu", spec.mtu, (*path, "mtu")),
            vrf=self._said(f"{key}.vrf", spec.vrf, (*path, "vrf")),
            table=MAIN_TABLE if spec.vrf is None else tables.get(spec.vrf, MAIN_TABLE),
            advertise=self._said(f"{key}.advertise", spec.advertise, (*path, "advertise")),
            accept=self._said(f"{key}.accept", spec.accept, (*path, "accept")),
            bgp=self._bgp(f"{key}.bgp", spec.bgp or ConnectionBgpSpec(), (*path, "bgp"), profile),
            features=tuple(feature for feature, _ in placed),
        )
        connections.append(Placed(connection, path))
        features += [
            PlacedFeature(
                value=feature,
                path=(*path, "features", index),
                connection=connection,
                channel=channels[feature.channel],
                profile=profile,
            )
            for feature, index in placed
        ]

    def _bgp(self, key: str, spec: ConnectionBgpSpec, path: Path, profile: Profile) -> BgpPolicy:
        origin = Origin("profile", profile.name)

        def choose(name: str, otherwise: T, origin: Origin = origin) -> T:
            return self._choose(f"{key}.{name}", [(getattr(spec, name), (*path, name))], otherwise, origin)

        timers = spec.timers or TimersSpec()
        at = (*path, "timers")
        hold_s = self._choose(
            f"{key}.timers.hold_s", [(timers.hold_s, (*at, "hold_s"))], profile.timers.hold_s, origin
        )
        third = profile.timers.keepalive_s if timers.hold_s is None else max(1, hold_s // 3)
        keepalive_s = self._choose(
            f"{key}.timers.keepalive_s",
            [(timers.keepalive_s, (*at, "keepalive_s"))],
            third,
            origin if timers.hold_s is None else DERIVED,
        )
        gtsm = choose("gtsm", profile.gtsm)
        self._same(f"{key}.ttl", f"{key}.gtsm")
        prefix_max = choose("prefix_max", profile.prefix_max)
        return BgpPolicy(
            timers=BgpTimers(hold_s=hold_s, keepalive_s=keepalive_s),
            gtsm=gtsm,
            ttl=255 if gtsm else 1,
            graceful_restart_s=choose("graceful_restart_s", profile.graceful_restart_s),
            md5_required=choose("md5_required", profile.md5_required),
            bogons=choose("bogons", profile.bogons),
            multipath_relax=choose("multipath_relax", False, DEFAULT),
            max_paths=choose("max_paths", MAX_PATHS_DEFAULT, DEFAULT),
            prefix_warn=choose(
                "prefix_warn",
                max(1, prefix_max * 8 // 10),
                origin if spec.prefix_max is None else DERIVED,
            ),
            prefix_max=prefix_max,
            advertise_max=choose("advertise_max", profile.advertise_max),
            local_preference=choose("local_preference", LOCAL_PREFERENCE_DEFAULT, DEFAULT),
        )

    def _feature(  # noqa: PLR0917 - all of different types or named alike by the caller
        self,
        connection: str,
        outer: ConnectionSpec,
        outer_path: Path,
        spec: FeatureSpec,
        path: Path,
        channels: dict[ChannelId, Channel],
        profile: Profile,
    ) -> Feature:
        key = f"{connection}.features.{spec.channel}"
        channel = channels[ChannelId(spec.channel)]
        device = f"{channel.id}.{spec.vlan}"
        addresses, sessions = [], []
        for afi, pair in ((Afi.IPV4, spec.ipv4), (Afi.IPV6, spec.ipv6)):
            if pair is None:
                continue
            at = (*path, str(afi))
            where = f"{key}.addresses.{afi}"
            # Families that are mixed up are reported; here the address decides.
            addresses.append(
                AddressPair(
                    local=self._said(f"{where}.local", show_address(pair.local.address), (*at, "local")),
                    peer=self._said(f"{where}.peer", show_address(pair.peer), (*at, "peer")),
                    prefix_length=self._said(f"{where}.prefix_length", pair.local.length, (*at, "local")),
                )
            )
            for name in ("local", "peer", "prefix_length"):
                self._same(f"{key}.sessions.{afi}.addresses.{name}", f"{where}.{name}")
            where = f"{key}.sessions.{afi}"
            self._same(f"{where}.local_asn", "router.asn")
            self._same(f"{where}.router_id", "router.router_id")
            self._same(f"{where}.site", f"channels.{channel.id}.site")
            sessions.append(
                Session(
                    name=f"{outer.name}/{channel.id}/{afi}",
                    connection=outer.name,
                    channel=channel.id,
                    site=channel.site,
                    addresses=addresses[-1],
                    local_asn=self._document.router.asn,
                    peer_asn=self._peer_asn(where, spec, path, outer, outer_path, profile),
                    router_id=self._document.router.router_id,
                    password=self._password(where, spec, path, outer, outer_path),
                    device=device,
                )
            )
        if not addresses:
            self._note(f"{key}.addresses", DEFAULT)
        return Feature(
            connection=outer.name,
            channel=ChannelId(self._said(f"{key}.channel", spec.channel, (*path, "channel"))),
            vlan=self._said(f"{key}.vlan", spec.vlan, (*path, "vlan")),
            device=device,
            addresses=tuple(addresses),
            sessions=tuple(sessions),
        )

    def _peer_asn(  # noqa: PLR0917 - all of different types or named alike by the caller
        self,
        key: str,
        spec: FeatureSpec,
        path: Path,
        outer: ConnectionSpec,
        outer_path: Path,
        profile: Profile,
    ) -> int:
        own, common = spec.bgp or FeatureBgpSpec(), outer.bgp or ConnectionBgpSpec()
        candidates = [
            (own.peer_asn, (*path, "bgp", "peer_asn")),
            (common.peer_asn, (*outer_path, "bgp", "peer_asn")),
        ]
        # 0 where nobody says it: the checks refuse that.
        return self._choose(
            f"{key}.peer_asn", candidates, profile.peer_asn or 0, Origin("profile", profile.name)
        )

    def _password(
        self, key: str, spec: FeatureSpec, path: Path, outer: ConnectionSpec, outer_path: Path
    ) -> SecretRef | None:
        own, common = spec.bgp or FeatureBgpSpec(), outer.bgp or ConnectionBgpSpec()
        candidates = [
            (own.password, (*path, "bgp", "password")),
            (common.password, (*outer_path, "bgp", "password")),
        ]
        chosen = self._choose(f"{key}.password", candidates, None, DEFAULT)
        return None if chosen is None else self._secret(chosen)

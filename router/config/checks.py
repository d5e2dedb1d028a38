"""What does not fit together: one small function per rule, each pure and independent of the others.

A rule reads the draft and yields findings; the order of the rules does not matter, because the
loader sorts what they find by line. A rule that cannot apply (a name that is not there) yields
nothing: the rule that is about names has said so.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import combinations, islice, pairwise
from typing import Final

from router.config.effective import Connection, MacsecMode, PrefixFilter
from router.config.findings import Finding, Severity
from router.config.profiles import MARTIANS, PROFILES
from router.config.resolve import WIRE_OVERHEAD, Draft, PlacedFeature
from router.config.schema import FeatureAddresses, FeatureSpec, Interface
from router.config.source import Path
from router.mka.keychain import chain_limits
from router.model import (
    MACSEC_OVERHEAD,
    VLAN_OVERHEAD,
    Afi,
    Confidentiality,
    Prefix,
    Sci,
    pack_address,
    show_address,
)

DEVICE_NAME_MAX: Final = 15
"""Octets of a Linux device name (IFNAMSIZ without the NUL)."""

RESERVED_DEVICES: Final = frozenset({"lo", "all", "default"})
"""The loopback, and names that net.ipv4.conf uses for something else."""

RESERVED_TABLES: Final = {253: "default", 254: "main", 255: "local"}

RESERVED_ASNS: Final = {
    0: "RFC 7607",
    23456: "AS_TRANS, RFC 6793",
    65535: "RFC 7300",
    2**32 - 1: "RFC 7300",
}

XPN_REPLAY_WINDOW_MAX: Final = 2**30 - 1

CORE_BATCH: Final = 64
"""Frames for which a core takes packet numbers at once (PORT_BATCH in csrc/port.h)."""
"""Frames (802.1AE-2018 10.7.8: window of an XPN suite)."""

XPN_BANDWIDTH_MBPS: Final = 100_000
"""Tier from which on 32-bit packet numbers do not last."""

HOLD_MIN_S: Final = 3
"""Seconds (RFC 4271 4.2: zero or at least three); zero, no keepalives at all, is refused here."""

REDUNDANT_CHANNELS: Final = 4
"""Channels below which no provider gives its highest service level."""

REDUNDANT_SITES: Final = 2

_LINK_LOCAL_6: Final = Prefix.parse("fe80::/10")
_UNUSABLE: Final = tuple(
    (Prefix.parse(text), what)
    for text, what in (
        ("0.0.0.0/8", "no host"),
        ("127.0.0.0/8", "loopback"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
        ("::/127", "loopback or nothing"),
        ("::ffff:0:0/96", "an IPv4 address mapped into IPv6"),
        ("fe80::/10", "link-local"),
        ("ff00::/8", "multicast"),
    )
)
_BROADCAST_END_BITS: Final = 2
"""Host bits from which on an IPv4 subnet has a network and a broadcast address."""

Findings = Iterator[Finding]
Rule = Callable[[Draft], Findings]


def check(draft: Draft, rules: Iterable[Rule] | None = None) -> tuple[Finding, ...]:
    """Apply every rule, or those given."""
    return tuple(finding for rule in (RULES if rules is None else rules) for finding in rule(draft))


def _error(draft: Draft, path: Path, message: str) -> Finding:
    return draft.source.finding(path, message)


def _warning(draft: Draft, path: Path, message: str) -> Finding:
    return replace(draft.source.finding(path, message), severity=Severity.WARNING)


def _twice(
    draft: Draft, uses: Iterator[tuple[object, Path]], message: Callable[[object, str], str]
) -> Findings:
    """Report each use of a value after its first; `message` gets the value and the first place."""
    first: dict[object, Path] = {}
    for value, path in uses:
        if value in first:
            earlier = draft.source
            where = f"{earlier.show(first[value])}, line {earlier.find(first[value]).line}"
            yield _error(draft, path, message(value, where))
        else:
            first[value] = path


def _spec(draft: Draft, feature: PlacedFeature) -> FeatureSpec:
    _, connection, _, index = feature.path
    assert isinstance(connection, int)
    assert isinstance(index, int)
    return draft.document.connections[connection].features[index]


def _links(draft: Draft) -> Iterator[tuple[PlacedFeature, FeatureAddresses, Path, Afi]]:
    """List the address pairs of all features: feature, addresses, path, the family it should have."""
    for feature in draft.features:
        spec = _spec(draft, feature)
        for afi, pair in ((Afi.IPV4, spec.ipv4), (Afi.IPV6, spec.ipv6)):
            if pair is not None:
                yield feature, pair, (*feature.path, str(afi)), afi


def _sound_links(draft: Draft) -> Iterator[tuple[PlacedFeature, FeatureAddresses, Path]]:
    """List the pairs whose addresses are of the family that they are written under."""
    for feature, pair, path, afi in _links(draft):
        if len(pair.local.address) == len(pair.peer) == afi.size:
            yield feature, pair, path


def _lan(draft: Draft) -> Iterator[tuple[Interface, str | None, Path]]:
    """List the LAN's interface addresses: address, VRF, path."""
    for index, port in enumerate(draft.document.router.lan):
        for position, address in enumerate(port.addresses):
            yield address, port.vrf, ("router", "lan", index, "addresses", position)


# ------------------------------------------------------------------------------------------ names


def names_are_unique(draft: Draft) -> Findings:
    """Interconnects, channels (in the whole file), connections and VRFs each have their own name."""
    document = draft.document
    lists: tuple[tuple[str, Iterator[tuple[object, Path]]], ...] = (
        (
            "interconnect",
            ((i.name, ("interconnects", n, "name")) for n, i in enumerate(document.interconnects)),
        ),
        ("channel", ((c.value.id, (*c.path, "name")) for c in draft.channels)),
        ("connection", ((c.name, ("connections", n, "name")) for n, c in enumerate(document.connections))),
        ("VRF", ((v.name, ("vrfs", n, "name")) for n, v in enumerate(document.vrfs))),
    )
    for kind, uses in lists:
        yield from _twice(draft, uses, partial("{0} {1} exists already ({2}) - rename one".format, kind))


def _devices(draft: Draft) -> Iterator[tuple[str, Path]]:
    """List the devices that the file names."""
    for index, vrf in enumerate(draft.document.vrfs):
        yield vrf.name, ("vrfs", index, "name")
    for index, lan in enumerate(draft.document.router.lan):
        yield lan.port, ("router", "lan", index, "port")
    for channel in draft.channels:
        if channel.value.lag is None:
            yield channel.value.port, (*channel.path, "port")
            continue
        yield channel.value.port, (*channel.path, "lag", "name")
        for index, member in enumerate(channel.value.lag.members):
            yield member, (*channel.path, "lag", "members", index)


def devices_are_used_once(draft: Draft) -> Findings:
    """A port, LAG, LAG member or VRF device has one job, and no name that we make is taken."""
    yield from _twice(
        draft,
        _devices(draft),
        lambda name, first: f"device {name} is in use already ({first}) - take another",
    )
    made: dict[str, str] = {c.value.macsec_device: f"channel {c.value.id}" for c in draft.channels}
    made |= {f.value.device: f"feature {f.connection.name}/{f.channel.id}" for f in draft.features}
    for name, path in _devices(draft):
        if name in made:
            yield _error(draft, path, f"device {name} is the one made for {made[name]} - rename one")


def device_names_are_possible(draft: Draft) -> Findings:
    """Linux takes 15 octets, and some names mean something else."""
    for name, path in _devices(draft):
        if len(name) > DEVICE_NAME_MAX:
            yield _error(
                draft, path, f"device name {name} has {len(name)} characters - Linux takes {DEVICE_NAME_MAX}"
            )
        if name in RESERVED_DEVICES:
            yield _error(draft, path, f"device name {name} is the kernel's own - name the port")
    for channel in draft.channels:
        device = channel.value.macsec_device
        if len(device) > DEVICE_NAME_MAX:
            yield _error(
                draft,
                (*channel.path, "name"),
                f"its MACsec device {device} would have {len(device)} characters,"
                f" Linux takes {DEVICE_NAME_MAX} - shorten the channel's name",
            )
    for feature in draft.features:
        device = feature.value.device
        if len(device) > DEVICE_NAME_MAX and len(feature.channel.macsec_device) <= DEVICE_NAME_MAX:
            yield _error(
                draft,
                (*feature.path, "vlan"),
                f"its VLAN device {device} would have {len(device)} characters,"
                f" Linux takes {DEVICE_NAME_MAX} - shorten the channel's name",
            )


def names_refer_to_something(draft: Draft) -> Findings:
    """Interconnects, channels and VRFs that are referred to exist."""
    document = draft.document
    interconnects = [i.name for i in document.interconnects]
    channels = {c.value.id: c.value for c in reversed(draft.channels)}
    vrfs = [vrf.name for vrf in document.vrfs]
    for index, connection in enumerate(document.connections):
        path: Path = ("connections", index)
        if connection.interconnect not in interconnects:
            message = f"no interconnect {connection.interconnect} - there are {', '.join(interconnects)}"
            yield _error(draft, (*path, "interconnect"), message)
        if connection.vrf is not None and connection.vrf not in vrfs:
            yield _error(draft, (*path, "vrf"), _no_vrf(connection.vrf, vrfs))
        for position, feature in enumerate(connection.features):
            at = (*path, "features", position, "channel")
            own = [c.id for c in channels.values() if c.interconnect == connection.interconnect]
            channel = channels.get(feature.channel)  # type: ignore[call-overload]
            if channel is None:
                there = f" - there are {', '.join(sorted(own))}" if own else ""
                yield _error(draft, at, f"no channel {feature.channel}{there}")
            elif channel.interconnect != connection.interconnect and connection.interconnect in interconnects:
                yield _error(
                    draft,
                    at,
                    f"channel {channel.id} belongs to interconnect {channel.interconnect}, the connection to"
                    f" {connection.interconnect} - use one of {', '.join(sorted(own))}",
                )
    for index, lan in enumerate(document.router.lan):
        if lan.vrf is not None and lan.vrf not in vrfs:
            yield _error(draft, ("router", "lan", index, "vrf"), _no_vrf(lan.vrf, vrfs))


def _no_vrf(name: str, vrfs: list[str]) -> str:
    known = f"there are {', '.join(vrfs)}" if vrfs else "define it"
    return f"no VRF {name} - {known} under `vrfs:`"


def vrf_tables_are_free(draft: Draft) -> Findings:
    """A VRF has a routing table that is neither the kernel's nor another VRF's."""
    for index, vrf in enumerate(draft.document.vrfs):
        if vrf.table in RESERVED_TABLES:
            message = (
                f"{vrf.table} is the kernel's table {RESERVED_TABLES[vrf.table]} - take another, such as 1001"
            )
            yield _error(draft, ("vrfs", index, "table"), message)
    yield from _twice(
        draft,
        ((vrf.table, ("vrfs", index, "table")) for index, vrf in enumerate(draft.document.vrfs)),
        lambda table, first: f"table {table} is another VRF's ({first}) - one table for each",
    )


# -------------------------------------------------------------------------- channels and features


def interconnects_are_redundant(draft: Draft) -> Findings:
    """Warn where fewer channels or sites stand than the service level asks for."""
    for index, interconnect in enumerate(draft.document.interconnects):
        enabled = [channel for channel in interconnect.channels if channel.enabled]
        path: Path = ("interconnects", index, "channels")
        sites = {channel.site for channel in enabled}
        if len(sites) < REDUNDANT_SITES:
            message = f"{len(sites)} site - a site's failure takes all down: use at least {REDUNDANT_SITES}"
            yield _warning(draft, path, message)
        if len(enabled) < REDUNDANT_CHANNELS:
            message = (
                f"{len(enabled)} enabled channels - an interconnect has at least {REDUNDANT_CHANNELS}"
                " for its service level"
            )
            yield _warning(draft, path, message)


def connections_use_their_channels(draft: Draft) -> Findings:
    """A connection has a feature on a channel at most once; warn about channels left out."""
    for index, connection in enumerate(draft.document.connections):
        path: Path = ("connections", index, "features")
        if not connection.features:
            yield _error(draft, path, "no feature - a connection needs one on each channel that carries it")
            continue
        yield from _twice(
            draft,
            ((f.channel, (*path, position, "channel")) for position, f in enumerate(connection.features)),
            lambda channel, first: f"channel {channel} has a feature already ({first}) - one per channel",
        )
        used = {feature.channel for feature in connection.features}
        missing = [
            channel.name
            for interconnect in draft.document.interconnects
            if interconnect.name == connection.interconnect
            for channel in interconnect.channels
            if channel.enabled and channel.name not in used
        ]
        if missing:
            yield _warning(draft, path, f"none on {', '.join(missing)} - the connection is less redundant")


def lags_can_come_up(draft: Draft) -> Findings:
    """A LAG does not wait for more links than it has."""
    for channel in draft.channels:
        lag = channel.value.lag
        if lag is not None and lag.min_links > len(lag.members):
            message = f"{lag.min_links} of {len(lag.members)} members - the group would never come up"
            yield _error(draft, (*channel.path, "lag", "min_links"), message)


def vlans_are_unique_on_a_port(draft: Draft) -> Findings:
    """Two connections on one channel have different VLANs."""
    yield from _twice(
        draft,
        (((f.channel.id, f.value.vlan), (*f.path, "vlan")) for f in draft.features),
        lambda use, first: f"VLAN {use[1]} on {use[0]} is taken ({first}) - use another",  # type: ignore[index]
    )


def vlans_are_in_range(draft: Draft) -> Findings:
    """The profile's specification may reserve VLANs."""
    for feature in draft.features:
        profile = feature.profile
        if not profile.vlan_min <= feature.value.vlan <= profile.vlan_max:
            message = (
                f"{feature.value.vlan} is reserved by profile {profile.name}"
                f" - use {profile.vlan_min} to {profile.vlan_max}"
            )
            yield _error(draft, (*feature.path, "vlan"), message)


# --------------------------------------------------------------------------------------- addresses


def features_have_addresses(draft: Draft) -> Findings:
    """A feature speaks at least one address family, and one for each prefix to be advertised."""
    for feature in draft.features:
        spec = _spec(draft, feature)
        if spec.ipv4 is None and spec.ipv6 is None:
            yield _error(draft, feature.path, "neither ipv4 nor ipv6 - a feature needs addresses")
    for connection in draft.connections:
        families = {pair.afi for feature in connection.value.features for pair in feature.addresses}
        for index, prefix in enumerate(connection.value.advertise):
            if families and prefix.afi not in families:
                message = f"{prefix} goes nowhere: no feature has {prefix.afi} - add {prefix.afi} addresses"
                yield _warning(draft, (*connection.path, "advertise", index), message)


def families_are_not_mixed(draft: Draft) -> Findings:
    """Under ipv4 stand IPv4 addresses, under ipv6 IPv6 ones."""
    for _, pair, path, afi in _links(draft):
        for name, address in (("local", pair.local.address), ("peer", pair.peer)):
            if len(address) != afi.size:
                other = Afi.IPV6 if afi is Afi.IPV4 else Afi.IPV4
                message = f"{show_address(address)} is {other} - under {path[-1]} stand {afi} addresses"
                yield _error(draft, (*path, name), message)


def links_fit_their_subnet(draft: Draft) -> Findings:
    """Both ends of a link are different hosts of one subnet."""
    for _, pair, path in _sound_links(draft):
        network = pair.local.network
        peer = Interface(pair.peer, pair.local.length)
        if pair.peer == pair.local.address:
            yield _error(
                draft, (*path, "peer"), f"{show_address(pair.peer)} is our own address - give the peer's"
            )
        elif peer.network != network:
            message = f"{show_address(pair.peer)} is not in {network}, the subnet of local {pair.local}"
            yield _error(draft, (*path, "peer"), message)
        for name, address in (("local", pair.local), ("peer", peer)):
            if address.network == network and (what := _not_a_host(address)):
                yield _error(
                    draft, (*path, name), f"{show_address(address.address)} is {what} - use a host's"
                )


def _not_a_host(interface: Interface) -> str:
    """Say why an address cannot be a host's in its subnet; empty if it can."""
    host_bits = len(interface.address) * 8 - interface.length
    host = int.from_bytes(interface.address) & ((1 << host_bits) - 1)
    if host_bits < _BROADCAST_END_BITS:
        return ""
    if host == 0:
        kind = "network" if len(interface.address) == Afi.IPV4.size else "router anycast"
        return f"the {kind} address of {interface.network}"
    if len(interface.address) == Afi.IPV4.size and host == (1 << host_bits) - 1:
        return f"the broadcast address of {interface.network}"
    return ""


def addresses_are_unicast(draft: Draft) -> Findings:
    """No multicast, loopback, reserved or (IPv6) link-local address on an interface or as peer."""
    for _, pair, path in _sound_links(draft):
        for name, address in (("local", pair.local.address), ("peer", pair.peer)):
            if what := _unusable(address):
                yield _error(
                    draft, (*path, name), f"{show_address(address)} is {what} - use a unicast address"
                )
    for interface, _, path in _lan(draft):
        what = _unusable(interface.address) or _not_a_host(interface)
        if what:
            yield _error(draft, path, f"{interface} is {what} - use a host's address")
    router_id = draft.document.router.router_id
    if what := _unusable(pack_address(router_id)):
        yield _error(draft, ("router", "router_id"), f"{router_id} is {what} - use an address of the router")


def _unusable(address: bytes) -> str:
    host = Prefix(address, len(address) * 8)
    return next((what for prefix, what in _UNUSABLE if prefix.contains(host)), "")


def addresses_are_unique(draft: Draft) -> Findings:
    """In one VRF an address is on one device, and no neighbour has one of ours or another's."""
    links = list(_sound_links(draft))
    ours: list[tuple[object, Path]] = [((vrf, i.address), path) for i, vrf, path in _lan(draft)]
    ours += [((f.connection.vrf, pair.local.address), (*path, "local")) for f, pair, path in links]
    theirs: list[tuple[object, Path]] = [
        ((f.connection.vrf, pair.peer), (*path, "peer")) for f, pair, path in links
    ]

    def taken(use: object, first: str) -> str:
        assert isinstance(use, tuple)
        return f"{show_address(use[1])} is in use already ({first}) - use another"

    yield from _twice(draft, iter(ours), taken)
    yield from _twice(draft, iter(theirs), taken)
    local = {use for use, _ in ours}
    for feature, pair, path in links:
        # Equal ends of one link are links_fit_their_subnet's to report.
        if (feature.connection.vrf, pair.peer) in local and pair.peer != pair.local.address:
            message = f"{show_address(pair.peer)} is one of our own addresses - give the peer's"
            yield _error(draft, (*path, "peer"), message)


def session_pairs_are_unique(draft: Draft) -> Findings:
    """The same (local, peer) pair stands for one session in the whole file, whatever the VRF.

    BGP sessions are told apart by their addresses, also where VRFs would keep them apart.
    """
    seen: dict[tuple[bytes, bytes], tuple[str | None, Path]] = {}
    for feature, pair, path in _sound_links(draft):
        key = (pair.local.address, pair.peer)
        vrf = feature.connection.vrf
        if key not in seen:
            seen[key] = (vrf, path)
        elif seen[key][0] != vrf:  # in one VRF, addresses_are_unique has said it
            where = draft.source.find(seen[key][1]).line
            message = (
                f"{show_address(key[0])} to {show_address(key[1])} is a session already (line {where})"
                " - use other addresses, also in another VRF"
            )
            yield _error(draft, path, message)


# ---------------------------------------------------------------------------------------- prefixes


def subnets_do_not_overlap(draft: Draft) -> Findings:
    """In one VRF, no two of the LAN's and the links' subnets overlap."""
    nets = [(i.network, vrf, path, i.address) for i, vrf, path in _lan(draft)]
    nets += [
        (pair.local.network, feature.connection.vrf, (*path, "local"), pair.local.address)
        for feature, pair, path in _sound_links(draft)
    ]
    for (net, vrf, first, address), (other, other_vrf, path, other_address) in combinations(nets, 2):
        same_lan_port = first[:3] == path[:3] and first[0] == "router"
        if vrf == other_vrf and net.overlaps(other) and address != other_address and not same_lan_port:
            where = f"{draft.source.show(first)}, line {draft.source.find(first).line}"
            yield _error(draft, path, f"{other} overlaps {net} ({where}) - give each link its own subnet")


def _own_prefixes(draft: Draft, vrf: str | None) -> Iterator[tuple[Prefix, str]]:
    """List what is ours in a VRF: what we advertise and what our LAN and links are."""
    for interface, lan_vrf, path in _lan(draft):
        if lan_vrf == vrf:
            yield interface.network, f"our LAN (line {draft.source.find(path).line})"
    for feature, pair, path in _sound_links(draft):
        if feature.connection.vrf == vrf:
            yield pair.local.network, f"a link of ours (line {draft.source.find(path).line})"
    for connection in draft.connections:
        if connection.value.vrf == vrf:
            for index, prefix in enumerate(connection.value.advertise):
                line = draft.source.find((*connection.path, "advertise", index)).line
                yield prefix, f"advertised by {connection.value.name} (line {line})"


def accepted_prefixes_are_not_ours(draft: Draft) -> Findings:
    """Nothing is accepted from a peer that lies inside what is ours.

    A wider filter (a default's, say) may contain our own prefixes: the RIB refuses those one by
    one, and a warning says so.
    """
    for connection in draft.connections:
        # Both lists may be long: what is ours is looked up by prefix, and by its place in order.
        own = dict(reversed(list(_own_prefixes(draft, connection.value.vrf))))
        ordered = sorted(own, key=_start)
        for index, entry in enumerate(connection.value.accept):
            path = (*connection.path, "accept", index)
            around = next((p for p in _covering(entry.prefix) if p in own), None)
            if around is not None:
                message = f"{entry} lies inside {around}, {own[around]} - accept only what is the peer's"
                yield _error(draft, path, message)
                continue
            for prefix in islice(ordered, bisect_left(ordered, _start(entry.prefix), key=_start), None):
                if not entry.prefix.contains(prefix):
                    break
                if prefix.length <= entry.le:
                    message = f"{entry} takes in {prefix}, {own[prefix]} - routes inside that will be refused"
                    yield _warning(draft, path, message)
                    break


def _start(prefix: Prefix) -> tuple[int, bytes]:
    """Sort prefixes so that all inside another one stand together, beginning where it does."""
    return len(prefix.address), prefix.address


def _covering(prefix: Prefix) -> Iterator[Prefix]:
    """List a prefix and all less specific ones."""
    for length in range(prefix.length, -1, -1):
        yield Interface(prefix.address, length).network


def connections_of_a_vrf_do_not_compete(draft: Draft) -> Findings:
    """Where two connections of a VRF accept the same prefixes they share load: then MTUs are equal."""
    for first, second in combinations(draft.connections, 2):
        if first.value.vrf != second.value.vrf:
            continue
        for index, entry in enumerate(second.value.accept):
            rival = next((e for e in first.value.accept if _compete(e, entry)), None)
            if rival is None:
                continue
            path = (*second.path, "accept", index)
            if first.value.mtu != second.value.mtu:
                yield _error(
                    draft,
                    path,
                    f"{entry} overlaps {rival} of connection {first.value.name}, whose mtu {first.value.mtu} is"
                    f" not {second.value.mtu} - members of one ECMP group have one MTU",
                )
            else:
                message = f"{entry} overlaps {rival} of connection {first.value.name} - both will carry it"
                yield _warning(draft, path, message)


def _compete(one: PrefixFilter, other: PrefixFilter) -> bool:
    """Tell whether some prefix is accepted by both."""
    return one.prefix.overlaps(other.prefix) and max(
        one.ge, other.ge, one.prefix.length, other.prefix.length
    ) <= min(one.le, other.le)


def prefixes_are_listed_once(draft: Draft) -> Findings:
    """Neither list has an entry twice."""
    for connection in draft.connections:
        for name in ("advertise", "accept"):
            entries: tuple[Prefix | PrefixFilter, ...] = getattr(connection.value, name)
            yield from _twice(
                draft,
                ((entry, (*connection.path, name, index)) for index, entry in enumerate(entries)),
                lambda entry, first: f"{entry} is listed already ({first}) - remove one",
            )


def prefixes_can_be_routed(draft: Draft) -> Findings:
    """What is advertised is unicast; what is accepted is not refused as a bogon right away."""
    for connection in draft.connections:
        for index, prefix in enumerate(connection.value.advertise):
            martian = next((m for m in MARTIANS if m.contains(prefix)), None)
            if martian is not None:
                message = f"{prefix} is in {martian}, which nobody routes - advertise unicast prefixes"
                yield _error(draft, (*connection.path, "advertise", index), message)
        for index, entry in enumerate(connection.value.accept):
            bogon = next((b for b in connection.value.bgp.bogons if b.contains(entry.prefix)), None)
            if bogon is not None:
                message = f"{entry} is in the bogon {bogon} and never taken - remove it, or set bgp.bogons"
                yield _error(draft, (*connection.path, "accept", index), message)


def advertised_prefixes_fit_the_provider(draft: Draft) -> Findings:
    """The provider closes the session at one prefix too many: never get there."""
    for connection in draft.connections:
        profile = PROFILES[_profile_name(draft, connection.value)]
        limit = connection.value.bgp.advertise_max
        at: Path = (*connection.path, "bgp", "advertise_max")
        if limit > profile.advertise_ceiling:
            message = (
                f"{limit} is more than the {profile.advertise_ceiling} that {profile.name} can be raised to"
            )
            yield _error(draft, at, message)
        for afi in Afi:
            count = sum(prefix.afi is afi for prefix in connection.value.advertise)
            if count > limit:
                way = (
                    f"aggregate, or have the quota raised and set bgp.advertise_max (at most {profile.advertise_ceiling})"
                    if limit < profile.advertise_ceiling
                    else "aggregate"
                )
                message = (
                    f"{count} {afi} prefixes are more than the {limit} that {profile.name} takes - {way}"
                )
                yield _error(draft, (*connection.path, "advertise"), message)


def _profile_name(draft: Draft, connection: Connection) -> str:
    return next(i.profile for i in draft.effective.interconnects if i.name == connection.interconnect)


def connections_exchange_something(draft: Draft) -> Findings:
    """Deny is the default: warn where nothing would come in or go out."""
    for connection in draft.connections:
        if not connection.value.accept:
            yield _warning(
                draft, (*connection.path, "accept"), "nothing - no route of the peer will be taken"
            )
        if not connection.value.advertise:
            yield _warning(draft, (*connection.path, "advertise"), "nothing - the peer will have no way back")


# --------------------------------------------------------------------------------------------- MTU


def mtus_are_offered(draft: Draft) -> Findings:
    """The provider offers some MTUs and no others."""
    for connection in draft.connections:
        profile = PROFILES[_profile_name(draft, connection.value)]
        if profile.mtus is not None and connection.value.mtu not in profile.mtus:
            offered = ", ".join(map(str, profile.mtus))
            message = f"{connection.value.mtu} is not offered by {profile.name} - one of {offered}"
            yield _error(draft, (*connection.path, "mtu"), message)


def ports_carry_the_mtu(draft: Draft) -> Findings:
    """The bare port carries the largest IP MTU on it, the VLAN tag and MACsec."""
    for channel in draft.channels:
        mtus = [f.connection.mtu for f in draft.features if f.channel.id == channel.value.id]
        need = max(mtus, default=0) + WIRE_OVERHEAD
        if mtus and channel.value.port_mtu < need:
            kind = "port" if channel.value.lag is None else "lag"
            yield _error(
                draft,
                (*channel.path, kind, "mtu"),
                f"{channel.value.port_mtu} is below the {need} that mtu {max(mtus)} needs"
                f" (+{VLAN_OVERHEAD} VLAN, +{MACSEC_OVERHEAD} MACsec)",
            )


def ecmp_members_have_one_mtu(draft: Draft) -> Findings:
    """All features of a connection carry its MTU: a packet may take any of them."""
    for feature in draft.features:
        mtu = _spec(draft, feature).mtu
        if mtu is not None and mtu != feature.connection.mtu:
            message = (
                f"{mtu} differs from the {feature.connection.mtu} of connection {feature.connection.name}"
                " - members of one ECMP group have one MTU"
            )
            yield _error(draft, (*feature.path, "mtu"), message)


# --------------------------------------------------------------------------------------------- BGP


def asns_are_usable(draft: Draft) -> Findings:
    """No reserved AS number, no peer without one, no peer in our own AS."""
    own = draft.document.router.asn
    if own in RESERVED_ASNS:
        yield _error(draft, ("router", "asn"), f"{own} is reserved ({RESERVED_ASNS[own]}) - use your own")
    reported: set[Path] = set()
    for feature in draft.features:
        for session in feature.value.sessions[:1]:
            path = _bgp_path(draft, feature, "peer_asn")
            if path in reported:
                continue
            reported.add(path)
            if draft.source.get(path) is None and feature.profile.peer_asn is None:
                message = f"is missing - profile {feature.profile.name} does not prescribe the neighbour's AS"
                yield _error(draft, path, message)
            elif session.peer_asn in RESERVED_ASNS:
                message = (
                    f"{session.peer_asn} is reserved ({RESERVED_ASNS[session.peer_asn]}) - ask the provider"
                )
                yield _error(draft, path, message)
            elif session.peer_asn == own:
                message = f"{own} is our own AS - a provider's edge is in another one (no iBGP)"
                yield _error(draft, path, message)
            elif feature.profile.peer_asn not in {None, session.peer_asn}:
                message = (
                    f"{session.peer_asn} is not the {feature.profile.peer_asn} of {feature.profile.name}"
                )
                yield _warning(draft, path, f"{message} - leave it out, unless this is a lab")


def _bgp_path(draft: Draft, feature: PlacedFeature, name: str) -> Path:
    """Return where a session's setting stands: in the feature, or else in its connection."""
    own = (*feature.path, "bgp", name)
    common = (*feature.path[:2], "bgp", name)
    return common if draft.source.get(own) is None and draft.source.get(common) is not None else own


def timers_are_sound(draft: Draft) -> Findings:
    """The hold time is at least three seconds, and three keepalives fit into it."""
    for connection in draft.connections:
        timers = connection.value.bgp.timers
        path = (*connection.path, "bgp", "timers")
        if timers.hold_s == 0:
            message = "0 turns the detection of a dead peer off - at least 3, the profile's if left out"
            yield _error(draft, (*path, "hold_s"), message)
        elif timers.hold_s < HOLD_MIN_S:
            yield _error(
                draft, (*path, "hold_s"), f"{timers.hold_s} is too short - at least {HOLD_MIN_S} (RFC 4271)"
            )
        elif timers.keepalive_s >= timers.hold_s:
            message = f"{timers.keepalive_s} is not below hold_s {timers.hold_s} - a third of it is usual"
            yield _error(draft, (*path, "keepalive_s"), message)
        elif timers.keepalive_s * 3 > timers.hold_s:
            message = f"{timers.keepalive_s} is more than a third of hold_s {timers.hold_s}"
            yield _warning(
                draft, (*path, "keepalive_s"), f"{message} - one lost keepalive may end the session"
            )


def sessions_are_authenticated(draft: Draft) -> Findings:
    """Where MD5 is required each session has a password, and the requirement stays."""
    for connection in draft.connections:
        profile = PROFILES[_profile_name(draft, connection.value)]
        if profile.md5_required and not connection.value.bgp.md5_required:
            message = f"{profile.name} takes no session without MD5 - remove this line"
            yield _error(draft, (*connection.path, "bgp", "md5_required"), message)
    for feature in draft.features:
        if feature.connection.bgp.md5_required and any(s.password is None for s in feature.value.sessions):
            message = "is missing - MD5 is required here: {file: PATH} or {credential: NAME}"
            yield _error(draft, (*feature.path, "bgp", "password"), message)


def gtsm_is_possible(draft: Draft) -> Findings:
    """A provider that sends TTL 1 cannot pass a check for 255."""
    for connection in draft.connections:
        profile = PROFILES[_profile_name(draft, connection.value)]
        if connection.value.bgp.gtsm and not profile.gtsm_possible:
            message = f"true, but {profile.name} sends TTL 1 and no session would come up - remove this line"
            yield _error(draft, (*connection.path, "bgp", "gtsm"), message)


def prefix_limits_are_ordered(draft: Draft) -> Findings:
    """The warning comes before the ceiling."""
    for connection in draft.connections:
        bgp = connection.value.bgp
        if bgp.prefix_warn > bgp.prefix_max:
            message = f"{bgp.prefix_warn} is above prefix_max {bgp.prefix_max} - the warning would never come"
            yield _error(draft, (*connection.path, "bgp", "prefix_warn"), message)


def multipath_covers_the_channels(draft: Draft) -> Findings:
    """Warn where a route could not use all channels."""
    for connection in draft.connections:
        count, limit = len(connection.value.features), connection.value.bgp.max_paths
        if limit < count:
            message = f"{limit} of {count} channels - the others carry nothing while these are up"
            yield _warning(draft, (*connection.path, "bgp", "max_paths"), message)


# ------------------------------------------------------------------------------------------ MACsec


def suites_are_accepted(draft: Draft) -> Findings:
    """The provider takes the suite and the SecTAG's form."""
    for channel in draft.channels:
        profile = draft.profile_of(channel.value)
        macsec = channel.value.macsec
        for suite in macsec.suites:
            if suite in profile.suites:
                continue
            taken = ", ".join(sorted(map(str, profile.suites)))
            message = f"{suite} is not taken by {profile.name} - one of {taken}"
            yield _error(draft, _macsec_path(draft, channel.path, "suite"), message)
        if profile.sci_required and not macsec.include_sci:
            message = f"false, but {profile.name} expects the SCI in every SecTAG - remove this line"
            yield _error(draft, _macsec_path(draft, channel.path, "include_sci"), message)


def _macsec_path(draft: Draft, channel: Path, name: str) -> Path:
    """Return where a channel's setting stands: in the channel, or else in its interconnect."""
    own = (*channel, "macsec", name)
    common = (*channel[:2], "macsec", name)
    return common if draft.source.get(own) is None and draft.source.get(common) is not None else own


def packet_numbers_last(draft: Draft) -> Findings:
    """Without XPN a 100G port uses up its 2^32 packet numbers in 41 s of smallest frames."""
    paths = {channel.value.id: channel.path for channel in draft.channels}
    for feature in draft.features:
        suite, mbps = feature.channel.macsec.suite, feature.connection.bandwidth_mbps
        if suite.is_xpn or mbps < XPN_BANDWIDTH_MBPS:
            continue
        path = _macsec_path(draft, paths[feature.channel.id], "suite")
        message = f"{suite} runs out of packet numbers in 41 s at 100G ({feature.connection.name})"
        if feature.profile.xpn_at_100g:
            yield _error(
                draft, path, f"{message}, and {feature.profile.name} takes XPN only - use an XPN suite"
            )
        else:
            yield _warning(draft, path, f"{message} - use an XPN suite")


def replay_windows_are_possible(draft: Draft) -> Findings:
    """XPN limits the window to 2^30-1."""
    for channel in draft.channels:
        macsec = channel.value.macsec
        xpn = next((suite for suite in macsec.suites if suite.is_xpn), None)
        if xpn is not None and macsec.replay_window > XPN_REPLAY_WINDOW_MAX:
            message = f"{macsec.replay_window} is above the {XPN_REPLAY_WINDOW_MAX} of {xpn}"
            yield _error(draft, _macsec_path(draft, channel.path, "replay_window"), message)


def cores_fit_the_replay_window(draft: Draft) -> Findings:
    """Cores that send at once overtake each other by what each of them has in hand, a batch at least."""
    for channel in draft.channels:
        cores, window = channel.value.cores, channel.value.macsec.replay_window
        if cores == 1 or window >= cores * CORE_BATCH:
            continue
        message = (
            f"{window} is below the {cores * CORE_BATCH} frames that {cores} cores can put out of order - "
            "some thousands, here and at the far end; or cores: 1"
        )
        yield _warning(draft, _macsec_path(draft, channel.path, "replay_window"), message)


def channels_have_keys(draft: Draft) -> Findings:
    """A channel without keys would never carry a frame."""
    for channel in draft.channels:
        if channel.value.enabled and not channel.value.macsec.has_keys:
            message = (
                "no keys: the channel would never carry a frame - add `keys` or `key_chain`,"
                " or `enabled: false`"
            )
            yield _error(draft, (*channel.path, "macsec"), message)


def keys_are_of_one_kind(draft: Draft) -> Findings:
    """A channel agrees on keys or has static ones; static ones fit one suite."""
    for channel in draft.channels:
        macsec = channel.value.macsec
        if macsec.static is None:
            continue
        if macsec.keys or macsec.key_directory:
            message = "static keys beside a key chain - remove one of them (static is for the lab)"
            yield _error(draft, (*channel.path, "macsec", "static"), message)
        if len(macsec.suites) > 1:
            message = "several suites, but static keys fit one - name the one"
            yield _error(draft, _macsec_path(draft, channel.path, "suite"), message)


def key_chains_fit_the_provider(draft: Draft) -> Findings:
    """Number of keys, sizes of their names, distance of their start times; the rest is in the files."""
    for channel in draft.channels:
        keys, path = channel.value.macsec.keys, (*channel.path, "macsec", "keys")
        profile, rules = draft.profile_of(channel.value).name, channel.value.macsec.key_rules
        limits = chain_limits(profile, rules)
        if len(keys) > limits.keys_max:
            whose = profile if rules == "provider" else "the open specification"
            message = f"{len(keys)} keys, {whose} takes {limits.keys_max} at most - remove the oldest"
            yield _error(draft, path, message)
        for index, key in enumerate(keys):
            if len(key.ckn) not in limits.ckn_sizes:
                octets = f"{min(limits.ckn_sizes)} octets" if len(limits.ckn_sizes) == 1 else "another size"
                message = f"a CKN of {len(key.ckn)} octets, {profile} wants {octets} - generate another"
                yield _error(draft, (*path, index, "ckn"), message)
            if key.start is not None and key.end is not None and key.end <= key.start:
                yield _error(draft, (*path, index, "end"), "the key ends before it starts - swap the times")
        timed = sorted((key.start, index) for index, key in enumerate(keys) if key.start is not None)
        for (earlier, _), (later, index) in pairwise(timed):
            if later - earlier < limits.spacing_s:
                message = (
                    f"starts {later - earlier:.0f} s after another key, {profile} wants"
                    f" {limits.spacing_s / 3600:.0f} h between them - start it later"
                )
                yield _error(draft, (*path, index, "start"), message)


def key_names_are_used_once(draft: Draft) -> Findings:
    """A CKN names one CAK, on one channel."""

    def uses() -> Iterator[tuple[object, Path]]:
        for channel in draft.channels:
            for index, key in enumerate(channel.value.macsec.keys):
                yield key.ckn, (*channel.path, "macsec", "keys", index, "ckn")

    yield from _twice(
        draft, uses(), lambda _, first: f"this CKN is used already ({first}) - one name, one key"
    )


def key_references_are_used_once(draft: Draft) -> Findings:
    """No two keys, and no two channels, share a CAK or a directory."""

    def uses() -> Iterator[tuple[object, Path]]:
        for channel in draft.channels:
            macsec, path = channel.value.macsec, (*channel.path, "macsec")
            for index, key in enumerate(macsec.keys):
                yield key.cak, (*path, "keys", index, "cak")
            if macsec.key_directory:
                yield macsec.key_directory, (*path, "key_chain", "directory")

    yield from _twice(draft, uses(), lambda _, first: f"is used already ({first}) - each has its own")


def fail_open_is_a_choice(draft: Draft) -> Findings:
    """Who lets frames pass in clear is told so at each load; static keys leave nothing to decide."""
    for channel in draft.channels:
        macsec, path = channel.value.macsec, _macsec_path(draft, channel.path, "policy")
        if macsec.mode is not MacsecMode.SHOULD_SECURE:
            continue
        if macsec.static is not None:
            message = (
                "should-secure opens a port while no peer proves a key, and with static keys none ever does"
                " - agree on keys (keys or key_chain), or use must-secure"
            )
            yield _error(draft, path, message)
        else:
            message = (
                f"SHOULD-SECURE: FRAMES OF {channel.value.id} PASS IN CLEAR while the far end proves no key of"
                " ours - must-secure never lets any out"
            )
            yield _warning(draft, path, message)


def confidentiality_is_possible(draft: Draft) -> Findings:
    """Offsets need a suite and a SecY that have them; who leaves frames readable is told so."""
    for channel in draft.channels:
        macsec, path = channel.value.macsec, _macsec_path(draft, channel.path, "confidentiality")
        choice = macsec.confidentiality
        if choice is Confidentiality.INTEGRITY_ONLY:
            message = (
                f"integrity-only: nobody can change frames of {channel.value.id}, and ANYBODY ON THE WIRE CAN"
                " READ THEM - offset-0 encrypts"
            )
            yield _warning(draft, path, message)
        xpn = next((suite for suite in macsec.suites if suite.is_xpn), None)
        if choice.offset and xpn is not None:
            message = (
                f"{choice.label} is not defined for {xpn} (802.1AE-2018 14.7, 14.8) - offset-0, or suites"
                " without xpn only"
            )
            yield _error(draft, path, message)
        if choice.offset and channel.value.secy != "fastpath":
            message = (
                f"{choice.label} needs the router's own data plane, Linux' MACsec has no offsets"
                " - add `secy: fastpath` to the interconnect, or use offset-0"
            )
            yield _error(draft, path, message)


def static_keys_are_for_the_lab(draft: Draft) -> Findings:
    """Warn, loudly: nobody rotates them."""
    for index, interconnect in enumerate(draft.document.interconnects):
        static = [
            (position, channel.name)
            for position, channel in enumerate(interconnect.channels)
            if channel.macsec is not None and channel.macsec.static is not None
        ]
        if static:
            path: Path = ("interconnects", index, "channels", static[0][0], "macsec", "static")
            names = ", ".join(name for _, name in static)
            message = (
                f"STATIC KEYS on {names}: never rotated, FOR THE LAB ONLY - do not carry traffic over them"
            )
            yield _warning(draft, path, message)


def static_keys_fit_the_suite(draft: Draft) -> Findings:
    """XPN needs salt and SSCIs, different ones for both directions; other suites have neither."""
    for channel in draft.channels:
        static, suite = channel.value.macsec.static, channel.value.macsec.suite
        if static is None:
            continue
        path = (*channel.path, "macsec", "static")
        sas = (("transmit", static.transmit), ("receive", static.receive))
        if suite.is_xpn:
            if not static.salt:
                yield _error(
                    draft, (*path, "salt"), f"is missing - {suite} needs 24 hex digits, equal at both ends"
                )
            for name, sa in sas:
                if not sa.ssci:
                    yield _error(
                        draft, (*path, name, "ssci"), f"is missing - {suite} needs the sender's short SCI"
                    )
            if static.transmit.ssci and static.transmit.ssci == static.receive.ssci:
                message = (
                    f"{static.receive.ssci} is the transmit SSCI too - both ends differ (highest SCI is 1)"
                )
                yield _error(draft, (*path, "receive", "ssci"), message)
        else:
            if static.salt:
                yield _error(draft, (*path, "salt"), f"{suite} has no salt - remove it, or use an XPN suite")
            for name, sa in sas:
                if sa.ssci:
                    message = f"{suite} has no SSCI - remove it, or use an XPN suite"
                    yield _error(draft, (*path, name, "ssci"), message)


def static_keys_are_used_once(draft: Draft) -> Findings:
    """No two SAs share a key: one packet number under one key twice breaks GCM."""

    def uses() -> Iterator[tuple[object, Path]]:
        for channel in draft.channels:
            static = channel.value.macsec.static
            if static is not None:
                path = (*channel.path, "macsec", "static")
                yield static.transmit.sak, (*path, "transmit", "sak")
                yield static.receive.sak, (*path, "receive", "sak")

    yield from _twice(
        draft, uses(), lambda _, first: f"the same key is used already ({first}) - one key for each direction"
    )


def peer_scis_are_sound(draft: Draft) -> Findings:
    """Each channel has another secure channel at the far end, with a unicast MAC address."""

    def uses() -> Iterator[tuple[object, Path]]:
        for channel in draft.channels:
            static = channel.value.macsec.static
            if static is not None:
                yield static.peer_sci, (*channel.path, "macsec", "static", "peer_sci")

    for sci, path in uses():
        assert isinstance(sci, Sci)
        if sci.mac.octets[0] & 1 or not any(sci.mac.octets):
            yield _error(draft, path, f"{sci} is no station's - the first octet of a unicast address is even")
    yield from _twice(
        draft, uses(), lambda sci, first: f"{sci} is another channel's peer ({first}) - each has its own"
    )


RULES: Final[tuple[Rule, ...]] = (
    names_are_unique,
    devices_are_used_once,
    device_names_are_possible,
    names_refer_to_something,
    vrf_tables_are_free,
    interconnects_are_redundant,
    connections_use_their_channels,
    lags_can_come_up,
    vlans_are_unique_on_a_port,
    vlans_are_in_range,
    features_have_addresses,
    families_are_not_mixed,
    links_fit_their_subnet,
    addresses_are_unicast,
    addresses_are_unique,
    session_pairs_are_unique,
    subnets_do_not_overlap,
    accepted_prefixes_are_not_ours,
    connections_of_a_vrf_do_not_compete,
    prefixes_are_listed_once,
    prefixes_can_be_routed,
    advertised_prefixes_fit_the_provider,
    connections_exchange_something,
    mtus_are_offered,
    ports_carry_the_mtu,
    ecmp_members_have_one_mtu,
    asns_are_usable,
    timers_are_sound,
    sessions_are_authenticated,
    gtsm_is_possible,
    prefix_limits_are_ordered,
    multipath_covers_the_channels,
    suites_are_accepted,
    packet_numbers_last,
    replay_windows_are_possible,
    cores_fit_the_replay_window,
    channels_have_keys,
    keys_are_of_one_kind,
    key_chains_fit_the_provider,
    key_names_are_used_once,
    key_references_are_used_once,
    fail_open_is_a_choice,
    confidentiality_is_possible,
    static_keys_are_for_the_lab,
    static_keys_fit_the_suite,
    static_keys_are_used_once,
    peer_scis_are_sound,
)

RULES_ON_PARTS: Final[tuple[Rule, ...]] = (
    names_are_unique,
    devices_are_used_once,
    device_names_are_possible,
    vrf_tables_are_free,
    vlans_are_unique_on_a_port,
    vlans_are_in_range,
    families_are_not_mixed,
    links_fit_their_subnet,
    addresses_are_unicast,
    addresses_are_unique,
    session_pairs_are_unique,
    subnets_do_not_overlap,
    prefixes_are_listed_once,
    mtus_are_offered,
    ports_carry_the_mtu,
    ecmp_members_have_one_mtu,
    key_names_are_used_once,
    key_references_are_used_once,
    static_keys_are_used_once,
    peer_scis_are_sound,
)
"""Rules that find nothing new when something is left out of a file."""

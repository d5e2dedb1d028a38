"""What a new configuration does to what runs: which sessions it resets, and which it does not touch.

Pure comparison of two effective configurations. Every field of theirs is in one of the tables
below; a test goes through the fields, so that a new one cannot be forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from typing import Any, Final, Literal, TypeVar

from router.config.effective import (
    AddressPair,
    Channel,
    Connection,
    EffectiveConfig,
    Lag,
    MacsecMode,
    Mka,
    MkaKey,
    Session,
    StaticKeys,
)
from router.config.show import plain

T = TypeVar("T")
Name = TypeVar("Name", bound=str)

Effect = Literal["add", "remove", "reset", "interrupt", "live"]


@dataclass(frozen=True, slots=True)
class Impact:
    """What happens to one object."""

    object: str
    """Kind and name: `session prod/a1/ipv4`, `channel a1`, `connection prod`, `lan lan0`, `vrf red`."""
    effect: Effect
    """`reset`: the session goes down and comes back. `interrupt`: the channel carries nothing for a
    moment (or, with new static keys, until the far end has them too). `live`: nobody notices."""
    reason: str


SESSION_RESETS: Final = {
    "site": "site",
    "addresses": "addresses",
    "local_asn": "local AS",
    "peer_asn": "peer AS",
    "router_id": "router id",
    "password": "password reference",
    "device": "VLAN device",
}
"""Of Session: what makes the session another one (`site`: it moves to another BGP process)."""

SESSION_IDENTITY: Final = ("name", "connection", "channel")
"""Of Session: what it is recognised by."""

POLICY_RESETS: Final = {
    "timers.hold_s": "hold time",
    "timers.keepalive_s": "keepalive interval",
    "gtsm": "GTSM",
    "ttl": "TTL",
    "graceful_restart_s": "graceful restart",
}
"""Of BgpPolicy: what the OPEN or the socket carries."""

POLICY_LIVE: Final = {
    "md5_required": "MD5 requirement",
    "bogons": "bogons",
    "multipath_relax": "multipath relax",
    "max_paths": "max paths",
    "prefix_warn": "prefix warning",
    "prefix_max": "prefix ceiling",
    "advertise_max": "advertise limit",
    "local_preference": "local preference",
}
"""Of BgpPolicy: what our own RIB decides."""

CONNECTION_RESETS: Final = {"vrf": "VRF", "table": "routing table"}
"""Of Connection: moving a VLAN device between VRFs takes its addresses away."""

CONNECTION_LIVE: Final = {
    "interconnect": "interconnect",
    "bandwidth_mbps": "bandwidth",
    "mtu": "MTU",
    "advertise": "advertised prefixes",
    "accept": "accepted prefixes",
}
"""Of Connection. (Another interconnect means other channels: those features say so.)"""

CHANNEL_RESETS: Final = {
    "port": "port",
    "enabled": "admin state",
    "macsec.suite": "cipher suite",
    "macsec.sci_port": "SCI port",
    "macsec_device": "MACsec device",
    "secy": "SecY",
}
"""Of Channel: what makes the MACsec device another one, and with it the VLANs and sessions on it."""

SUITE_CHANGE: Final = (
    "a SecY cannot change its suite while it runs, so it is made anew: one channel at a time, after its"
    " traffic has gone over to the others; it is back when the far end has done the same"
)
"""What is added to `cipher suite A -> B` of a channel with key agreement."""

CHANNEL_INTERRUPTS: Final = {
    "macsec.static": "static keys",
    "macsec.mode": "MACsec policy",
    "macsec.confidentiality": "confidentiality",
    "macsec.include_sci": "SCI in the SecTAG",
    "lag": "LAG",
    "cores": "cores that send",
}
"""Of Channel: what stops frames for a moment; sessions live through it if it is short."""

POLICY_CHANGES: Final = {
    MacsecMode.MUST_SECURE: "nothing passes in clear from now on, and nothing at all without a key",
    MacsecMode.SHOULD_SECURE: "FRAMES PASS IN CLEAR while the far end proves no key",
}
"""Of a channel that gets this policy: what that means."""

CHANNEL_LIVE: Final = {
    "interconnect": "interconnect",
    "site": "site",
    "port_mtu": "port MTU",
    "macsec.replay_window": "replay window",
    "macsec.suites": "acceptable suites",
    "macsec.mka": "key agreement",
    "macsec.keys": "key chain",
    "macsec.key_directory": "key directory",
    "macsec.keys_managed_by": "manager of the keys",
    "macsec.bake_time_s": "bake time",
    "macsec.key_rules": "rules of the keys",
}
"""Of Channel. (`site` is the sessions' business.)"""


VRF_INTERRUPTS: Final = {"table": "routing table"}
ROUTER_LIVE: Final = {"name": "name"}
"""Of Router. (AS number and router id are the sessions' business.)"""

LAN_LIVE: Final = {"mtu": "MTU", "addresses": "addresses"}
LAN_INTERRUPTS: Final = {"vrf": "VRF"}

LISTED_MAX: Final = 6
"""Elements of a changed list that a reason names."""


def impact(old: EffectiveConfig | None, new: EffectiveConfig) -> tuple[Impact, ...]:
    """Compare. `old` is None where nothing runs yet. Channels first, then sessions, then the rest."""
    before = old if old is not None else _nothing(new)
    return (
        *_channels(before, new),
        *_sessions(before, new),
        *_connections(before, new),
        *_vrfs(before, new),
        *_router(before, new),
    )


def remade_anyway(was: Channel, will: Channel) -> bool:
    """Tell whether a channel's MACsec device is made anew for another reason than its suite."""
    others = [field for field in CHANNEL_RESETS if field != "macsec.suite"]
    return any(attrgetter(field)(was) != attrgetter(field)(will) for field in others)


def _changes_suite(was: Channel, will: Channel) -> bool:
    """Tell whether a channel goes over to another suite in its turn."""
    return (
        was.macsec.suite is not will.macsec.suite
        and will.macsec.static is None
        and not remade_anyway(was, will)
    )


def _nothing(new: EffectiveConfig) -> EffectiveConfig:
    return EffectiveConfig(
        router=replace(new.router, lan=()), interconnects=(), channels=(), vrfs=(), connections=()
    )


def _channels(old: EffectiveConfig, new: EffectiveConfig) -> Iterator[Impact]:
    before = {channel.id: channel for channel in old.channels}
    after = {channel.id: channel for channel in new.channels}
    yield from _come_and_go("channel", before, after)
    for name, was, will in _in_both(before, after):
        for change in _changes(f"channel {name}", "interrupt", CHANNEL_RESETS, was, will):
            if _changes_suite(was, will):
                change = replace(change, reason=f"{change.reason} ({SUITE_CHANGE})")  # noqa: PLW2901
            yield change
        yield from _changes(f"channel {name}", "interrupt", CHANNEL_INTERRUPTS, was, will)
        live = dict(CHANNEL_LIVE)
        if len(was.macsec.suites) == len(will.macsec.suites) == 1:
            del live["macsec.suites"]  # it is the suite, and said above
        yield from _changes(f"channel {name}", "live", live, was, will)


def _sessions(old: EffectiveConfig, new: EffectiveConfig) -> Iterator[Impact]:
    before = {session.name: session for session in old.sessions}
    after = {session.name: session for session in new.sessions}
    yield from _come_and_go("session", before, after)
    for name, was, will in _in_both(before, after):
        reasons = _reset_reasons(old, new, was, will)
        if reasons:
            yield Impact(f"session {name}", "reset", "; ".join(reasons))


def _reset_reasons(old: EffectiveConfig, new: EffectiveConfig, one: Session, other: Session) -> list[str]:
    """Say everything that resets a session, nothing if it stays."""
    was, will = _connection(old, one.connection), _connection(new, other.connection)
    channel_was, channel_will = old.channel(one.channel), new.channel(other.channel)
    reasons = [
        *_differences(SESSION_RESETS, one, other),
        *_differences(POLICY_RESETS, was.bgp, will.bgp),
        *_differences(CONNECTION_RESETS, was, will),
    ]
    moved = _differences(CHANNEL_RESETS, channel_was, channel_will)
    return [*reasons, *(f"channel {other.channel}: {reason}" for reason in moved)]


def _connections(old: EffectiveConfig, new: EffectiveConfig) -> Iterator[Impact]:
    before = {connection.name: connection for connection in old.connections}
    after = {connection.name: connection for connection in new.connections}
    yield from _come_and_go("connection", before, after)
    for name, was, will in _in_both(before, after):
        yield from _changes(f"connection {name}", "live", CONNECTION_LIVE, was, will)
        yield from _changes(f"connection {name}", "live", POLICY_LIVE, was.bgp, will.bgp)


def _vrfs(old: EffectiveConfig, new: EffectiveConfig) -> Iterator[Impact]:
    before = {vrf.name: vrf for vrf in old.vrfs}
    after = {vrf.name: vrf for vrf in new.vrfs}
    yield from _come_and_go("vrf", before, after)
    for name, was, will in _in_both(before, after):
        # The kernel does not renumber a VRF device: it is made anew, and its members move.
        yield from _changes(f"vrf {name}", "interrupt", VRF_INTERRUPTS, was, will)


def _router(old: EffectiveConfig, new: EffectiveConfig) -> Iterator[Impact]:
    yield from _changes("router", "live", ROUTER_LIVE, old.router, new.router)
    before = {lan.port: lan for lan in old.router.lan}
    after = {lan.port: lan for lan in new.router.lan}
    yield from _come_and_go("lan", before, after)
    for name, was, will in _in_both(before, after):
        yield from _changes(f"lan {name}", "live", LAN_LIVE, was, will)
        yield from _changes(f"lan {name}", "interrupt", LAN_INTERRUPTS, was, will)


def _connection(config: EffectiveConfig, name: str) -> Connection:
    return next(connection for connection in config.connections if connection.name == name)


def _in_both(before: Mapping[Name, T], after: Mapping[Name, T]) -> Iterator[tuple[Name, T, T]]:
    for name, was in before.items():
        if name in after:
            yield name, was, after[name]


def _come_and_go(kind: str, before: Mapping[Any, object], after: Mapping[Any, object]) -> Iterator[Impact]:
    for name in before:
        if name not in after:
            yield Impact(f"{kind} {name}", "remove", "no longer configured")
    for name in after:
        if name not in before:
            yield Impact(f"{kind} {name}", "add", "new")


def _changes(
    name: str, effect: Effect, titles: Mapping[str, str], one: object, other: object
) -> Iterator[Impact]:
    reasons = _differences(titles, one, other)
    if reasons:
        yield Impact(name, effect, "; ".join(reasons))


def _differences(titles: Mapping[str, str], one: object, other: object) -> list[str]:
    """Say which of the fields differ, with both values where they are short and tell something."""
    reasons = []
    for field, title in titles.items():
        get = attrgetter(field)
        if (was := get(one)) != (will := get(other)):
            reasons.append(f"{title} {_change(was, will)}")
    return reasons


def _change(was: object, will: object) -> str:
    if isinstance(was, tuple) and isinstance(will, tuple):
        gone = [_element(element) for element in was if element not in will]
        come = [_element(element) for element in will if element not in was]
        listed = [f"-{element}" for element in gone] + [f"+{element}" for element in come]
        more = f" and {len(listed) - LISTED_MAX} more" if len(listed) > LISTED_MAX else ""
        return (" ".join(listed[:LISTED_MAX]) + more) if listed else "in another order"
    if isinstance(was, AddressPair) and isinstance(will, AddressPair):
        return f"{_pair(was)} -> {_pair(will)}"
    if isinstance(was, Mka) and isinstance(will, Mka):
        pairs = ((field.name, getattr(was, field.name), getattr(will, field.name)) for field in fields(Mka))
        return ", ".join(
            f"{name} {_word(one)} -> {_word(other)}" for name, one, other in pairs if one != other
        )
    if isinstance(will, MacsecMode):
        return f"{_word(was)} -> {_word(will)} ({POLICY_CHANGES[will]})"
    if isinstance(was, (StaticKeys, Lag)) or isinstance(will, (StaticKeys, Lag)):
        return "added" if was is None else "removed" if will is None else "changed"
    return f"{_word(was)} -> {_word(will)}"


def _element(element: object) -> str:
    return element.ckn.hex() if isinstance(element, MkaKey) else str(element)


def _pair(pair: AddressPair) -> str:
    return f"{pair.local}/{pair.prefix_length} to {pair.peer}"


def _word(value: object) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(plain(value))

"""ExaBGP 5.0.15's JSON lines and our shim's, as typed events. Pure.

`parse()` takes one line and returns one event, or raises ProtocolError, which the caller counts;
no line can do more harm than that. The traps of this dialect, each of which has a test:

* an IPv6 NLRI comes twice, under the global and under the link-local next hop: one path;
* the labels of the graceful-restart flags are swapped: the R bit is printed as "forwarding" in
  `restart-flags`, a family's F bit as "restart";
* the AS_PATH is an object of numbered segments, and confederation segments are printed as
  ordinary sequences, so that a confederation cannot be told from a path;
* the OPEN of a peer with a 4-octet AS shows 23456; the real one is in capability 65;
* `down` may come without `up`, `up` without an EOR;
* withdrawn and treated-as-withdrawn (RFC 7606) differ only in an attribute called "error";
* unknown capabilities and attributes have made-up names;
* ExaBGP 4 writes almost the same, with a flat `as-path`: refused by name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Any, Final, NamedTuple

from router.errors import ProtocolError
from router.model import Prefix

EXABGP_JSON: Final = "5."
"""What the "exabgp" member starts with in the dialect that we understand."""

AS_TRANS: Final = 23456
"""Stands for a 4-octet AS number in a 2-octet field (RFC 6793)."""


class NeighborKey(NamedTuple):
    """A session as ExaBGP names it: both ends' addresses, canonical text."""

    local: str
    peer: str


class Origin(IntEnum):
    """ORIGIN (RFC 4271 5.1.1); lower is preferred."""

    IGP = 0
    EGP = 1
    INCOMPLETE = 2


class Segment(NamedTuple):
    """One AS_PATH segment: a sequence, or a set whose order means nothing."""

    is_set: bool
    asns: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Attributes:
    """Path attributes, without the next hop. Equal attributes mean equal treatment."""

    origin: Origin = Origin.INCOMPLETE
    as_path: tuple[Segment, ...] = ()
    med: int | None = None
    local_preference: int | None = None
    communities: tuple[tuple[int, int], ...] = ()
    large_communities: tuple[tuple[int, int, int], ...] = ()
    others: tuple[str, ...] = ()
    """Names of attributes that we do not use, in the order received."""
    error: str | None = None
    """ExaBGP's verdict by RFC 7606: `treat-as-withdraw...` or `discard...`."""

    @property
    def length(self) -> int:
        """AS_PATH length: a set counts one (RFC 4271 9.1.2.2 a)."""
        return sum(1 if segment.is_set else len(segment.asns) for segment in self.as_path)

    @property
    def first_as(self) -> int | None:
        """The AS that sent the path: the first of a leading sequence."""
        if self.as_path and not self.as_path[0].is_set and self.as_path[0].asns:
            return self.as_path[0].asns[0]
        return None

    def asns(self) -> set[int]:
        """Every AS in the path."""
        return {asn for segment in self.as_path for asn in segment.asns}

    def show_path(self) -> str:
        """The path as routers print it: `64512 {65001,65002}`."""
        return " ".join(
            "{" + ",".join(map(str, s.asns)) + "}" if s.is_set else " ".join(map(str, s.asns))
            for s in self.as_path
        )


@dataclass(frozen=True, slots=True)
class Announcement:
    """NLRI that share next hops: for IPv6 the global one and perhaps the link-local one."""

    nexthops: tuple[str, ...]
    prefixes: tuple[Prefix, ...]


class State(Enum):
    """What ExaBGP says about a session."""

    CONNECTED = "connected"
    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Event:
    """Something about one neighbour."""

    pid: int
    """Of ExaBGP. A new one knows nothing of what was announced or received before."""
    counter: int
    """Rises by one with each line about this neighbour. A jump is a gap."""
    neighbor: NeighborKey
    at: float
    """When, by ExaBGP's clock: seconds since 1970."""


@dataclass(frozen=True, slots=True)
class SessionState(Event):
    """The session was connected, came up or went down."""

    state: State
    reason: str


@dataclass(frozen=True, slots=True)
class Fsm(Event):
    """ExaBGP's state machine moved: IDLE, ACTIVE, CONNECT, OPENSENT, OPENCONFIRM, ESTABLISHED."""

    state: str


@dataclass(frozen=True, slots=True)
class GracefulRestart:
    """RFC 4724 capability, with the labels put right."""

    time_s: int
    restarting: bool
    """R bit: the sender has restarted."""
    forwarding: tuple[str, ...]
    """Families whose F bit is set: their forwarding state was kept."""
    families: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Open(Event):
    """An OPEN was sent or received."""

    sent: bool
    asn: int
    """The 4-octet AS number where the capability names one."""
    hold_time_s: int
    router_id: str
    families: tuple[str, ...]
    graceful_restart: GracefulRestart | None
    capabilities: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Negotiated(Event):
    """What both OPENs came to."""

    hold_time_s: int
    families: tuple[str, ...]
    enhanced_refresh: bool
    """BoRR and EoRR (RFC 7313) will frame a refresh, so that a sweep is possible."""


@dataclass(frozen=True, slots=True)
class Update(Event):
    """An UPDATE."""

    announce: tuple[Announcement, ...]
    withdraw: tuple[Prefix, ...]
    attributes: Attributes


@dataclass(frozen=True, slots=True)
class Eor(Event):
    """End-of-RIB (RFC 4724): the peer has sent all it has."""

    family: str


class RefreshKind(Enum):
    """ROUTE-REFRESH message subtypes (RFC 7313)."""

    QUERY = "query"
    BEGIN = "begin"
    END = "end"


@dataclass(frozen=True, slots=True)
class Refresh(Event):
    """The peer asks for our routes, or frames its own."""

    kind: RefreshKind
    family: str


@dataclass(frozen=True, slots=True)
class Notification(Event):
    """A NOTIFICATION was sent or received; the session ends."""

    sent: bool
    code: int
    subcode: int
    data: bytes
    text: str
    """Shutdown communication (RFC 9003) or what else is readable; may be empty."""

    def __str__(self) -> str:
        who = "sent" if self.sent else "received"
        name = notification_name(self.code, self.subcode)
        return f"{who} {name} ({self.code}/{self.subcode})" + (f": {self.text}" if self.text else "")


@dataclass(frozen=True, slots=True)
class Shutdown:
    """ExaBGP ends."""

    pid: int


@dataclass(frozen=True, slots=True)
class Ignored(Event):
    """A line about a neighbour that only moves its counter (keepalive, signal, operational)."""

    kind: str


@dataclass(frozen=True, slots=True)
class Hello:
    """The shim's first line on a new connection; a snapshot follows."""

    pid: int
    """Of ExaBGP."""
    shim_pid: int
    age_s: float
    """How long the shim has been watching."""


@dataclass(frozen=True, slots=True)
class SnapshotBegin:
    """What the shim knows follows: states, OPENs, the tables. Forget counters."""

    pid: int
    reason: str


@dataclass(frozen=True, slots=True)
class SnapshotNeighbor:
    """How far the shim's knowledge of a neighbour goes; its lines follow."""

    neighbor: NeighborKey
    pid: int
    counters: tuple[int, ...]
    """Last numbers of its lines; after a reload ExaBGP counts in more than one sequence."""
    complete: bool
    """False: the shim began in the middle, or gave the table up. Ask the peer for a refresh."""


@dataclass(frozen=True, slots=True)
class SnapshotEnd:
    """Live lines follow. What was not in the snapshot is gone."""

    pid: int


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to one of our commands."""

    id: int
    ok: bool
    lines: tuple[str, ...] = field(default=())


Line = Event | Shutdown | Hello | SnapshotBegin | SnapshotNeighbor | SnapshotEnd | Reply


def parse(line: str | bytes) -> Line:
    """Turn one line into an event. Raises ProtocolError for anything that does not fit."""
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"ExaBGP line is not JSON: {_excerpt(line)}") from error
    if not isinstance(data, dict):
        raise ProtocolError(f"ExaBGP line is not an object: {_excerpt(line)}")
    try:
        if "shim" in data:
            return _parse_shim(data)
        return _parse_exabgp(data)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ProtocolError(
            f"ExaBGP line of type {data.get('type')!r} does not fit ({type(error).__name__}: {error}): "
            f"{_excerpt(line)}"
        ) from error


def _excerpt(line: str | bytes) -> str:
    text = line if isinstance(line, str) else line.decode("utf-8", "replace")
    return repr(text[:200])


def _parse_shim(data: dict[str, Any]) -> Line:
    match data["shim"]:
        case "hello":
            return Hello(int(data["pid"]), int(data["shim_pid"]), float(data["age_s"]))
        case "snapshot-begin":
            return SnapshotBegin(int(data["pid"]), str(data["reason"]))
        case "neighbor":
            key = NeighborKey(str(data["local"]), str(data["peer"]))
            counters = tuple(int(counter) for counter in data["counters"])
            return SnapshotNeighbor(key, int(data["pid"]), counters, bool(data["complete"]))
        case "snapshot-end":
            return SnapshotEnd(int(data["pid"]))
        case "reply":
            return Reply(int(data["id"]), bool(data["ok"]), tuple(map(str, data["lines"])))
    raise ValueError(f"unknown shim line {data['shim']!r}")


_About = tuple[int, int, NeighborKey, float]


def _parse_exabgp(data: dict[str, Any]) -> Line:
    version = data["exabgp"]
    if not str(version).startswith(EXABGP_JSON):
        raise ProtocolError(
            f"this is the JSON of ExaBGP {version}; the router needs ExaBGP 5.0.15 (pip install exabgp==5.0.15)"
        )
    kind: str = data["type"]
    pid: int = data["pid"]
    if "neighbor" not in data:
        if data.get("notification") == "shutdown":
            return Shutdown(pid)
        raise ValueError("no neighbor")
    neighbor: dict[str, Any] = data["neighbor"]
    address = neighbor["address"]
    key = NeighborKey(address["local"], address["peer"])
    about = (pid, data["counter"], key, data["time"])
    match kind:
        case "update":
            return _parse_update(about, neighbor["message"])
        case "state":
            return SessionState(*about, State(neighbor["state"]), str(neighbor.get("reason", "")))
        case "fsm":
            return Fsm(*about, str(neighbor["state"]))
        case "open":
            return _parse_open(about, neighbor["direction"] == "send", neighbor["open"])
        case "negotiated":
            facts = neighbor["negotiated"]
            return Negotiated(
                *about,
                int(facts["hold_time"]),
                tuple(facts["families"]),
                facts["refresh"] == "enhanced",
            )
        case "notification":
            return _parse_notification(about, neighbor)
        case "refresh":
            facts = neighbor["route-refresh"]
            family = f"{facts['afi']} {facts['safi']}"
            return Refresh(*about, RefreshKind(facts["subtype"]), family)
    return Ignored(*about, str(kind))


def _parse_update(about: _About, message: dict[str, Any]) -> Line:
    if "eor" in message:
        eor = message["eor"]
        return Eor(*about, f"{eor['afi']} {eor['safi']}")
    update = message["update"]
    announce: list[Announcement] = []
    for family, by_nexthop in update.get("announce", {}).items():
        if family in {"ipv4 unicast", "ipv6 unicast"}:
            announce += _announcements(by_nexthop)
    withdraw = tuple(
        prefix
        for family, nlris in update.get("withdraw", {}).items()
        if family in {"ipv4 unicast", "ipv6 unicast"}
        for prefix in _prefixes(nlris)
    )
    return Update(*about, tuple(announce), withdraw, _attributes(update.get("attribute", {})))


def _announcements(by_nexthop: dict[str, Any]) -> list[Announcement]:
    """Join what is announced under several next hops: one path each, whatever the number."""
    if len(by_nexthop) == 1:
        ((nexthop, nlris),) = by_nexthop.items()
        return [Announcement((nexthop,), _prefixes(nlris))]
    nexthops: dict[Prefix, list[str]] = {}
    for nexthop, nlris in by_nexthop.items():
        for prefix in _prefixes(nlris):
            nexthops.setdefault(prefix, []).append(nexthop)
    groups: dict[tuple[str, ...], list[Prefix]] = {}
    for prefix, addresses in nexthops.items():
        groups.setdefault(tuple(addresses), []).append(prefix)
    return [Announcement(addresses, tuple(prefixes)) for addresses, prefixes in groups.items()]


def _prefixes(nlris: list[Any]) -> tuple[Prefix, ...]:
    return tuple([Prefix.parse(nlri if nlri.__class__ is str else nlri["nlri"]) for nlri in nlris])


_KNOWN_ATTRIBUTES: Final = frozenset(
    {"origin", "as-path", "med", "local-preference", "community", "large-community", "error"}
)


def _attributes(data: dict[str, Any]) -> Attributes:
    path = data.get("as-path", {})
    if not isinstance(path, dict):
        raise ProtocolError("as-path is a list: this is ExaBGP 4's JSON; the router needs ExaBGP 5.0.15")
    segments = tuple(
        Segment(
            path[position]["element"].endswith("-set"),
            tuple(int(asn) for asn in path[position]["value"]),
        )
        for position in sorted(path, key=int)
    )
    return Attributes(
        origin=Origin[data["origin"].upper()] if "origin" in data else Origin.INCOMPLETE,
        as_path=segments,
        med=int(data["med"]) if "med" in data else None,
        local_preference=int(data["local-preference"]) if "local-preference" in data else None,
        communities=tuple((int(high), int(low)) for high, low in data.get("community", ())),
        large_communities=tuple((int(a), int(b), int(c)) for a, b, c in data.get("large-community", ())),
        others=tuple(name for name in data if name not in _KNOWN_ATTRIBUTES),
        error=str(data["error"]) if "error" in data else None,
    )


def _parse_open(about: _About, sent: bool, data: dict[str, Any]) -> Open:
    # Our own OPEN names its capabilities, the received one numbers them.
    capabilities: dict[str, dict[str, Any]] = {
        str(capability.get("name", code)): capability for code, capability in data["capabilities"].items()
    }
    asn = int(capabilities["asn4"]["asn4"]) if "asn4" in capabilities else int(data["asn"])
    restart = None
    if "graceful restart" in capabilities:
        facts = capabilities["graceful restart"]
        flags: dict[str, list[str]] = facts["address-family-flags"]
        restart = GracefulRestart(
            time_s=int(facts["time"]),
            restarting="forwarding" in facts["restart-flags"],
            forwarding=tuple(family for family, labels in flags.items() if "restart" in labels),
            families=tuple(flags),
        )
    return Open(
        *about,
        sent,
        asn,
        int(data["hold_time"]),
        str(data["router_id"]),
        tuple(capabilities.get("multiprotocol", {}).get("families", ())),
        restart,
        tuple(capabilities),
    )


def _parse_notification(about: _About, neighbor: dict[str, Any]) -> Notification:
    facts = neighbor["notification"]
    data = bytes.fromhex(str(facts["data"]).removeprefix("0x"))
    text = str(facts["message"])
    return Notification(
        *about,
        neighbor["direction"] == "send",
        int(facts["code"]),
        int(facts["subcode"]),
        data,
        text if text.isprintable() else "",
    )


_NOTIFICATIONS: Final = {
    (1, 0): "Message Header Error",
    (2, 0): "OPEN Message Error",
    (2, 1): "OPEN Message Error/Unsupported Version Number",
    (2, 2): "OPEN Message Error/Bad Peer AS",
    (2, 3): "OPEN Message Error/Bad BGP Identifier",
    (2, 4): "OPEN Message Error/Unsupported Optional Parameter",
    (2, 6): "OPEN Message Error/Unacceptable Hold Time",
    (2, 7): "OPEN Message Error/Unsupported Capability",
    (3, 0): "UPDATE Message Error",
    (4, 0): "Hold Timer Expired",
    (5, 0): "Finite State Machine Error",
    (6, 0): "Cease",
    (6, 1): "Cease/Maximum Number of Prefixes Reached",
    (6, 2): "Cease/Administrative Shutdown",
    (6, 3): "Cease/Peer De-configured",
    (6, 4): "Cease/Administrative Reset",
    (6, 5): "Cease/Connection Rejected",
    (6, 6): "Cease/Other Configuration Change",
    (6, 7): "Cease/Connection Collision Resolution",
    (6, 8): "Cease/Out of Resources",
    (6, 9): "Cease/Hard Reset",
    (6, 10): "Cease/BFD Down",
    (7, 0): "ROUTE-REFRESH Message Error",
}
"""Names of RFC 4271 6 and its registries (RFC 4486, 8538, 9384)."""


def notification_name(code: int, subcode: int) -> str:
    """The name of an error code, with its subcode where we know it."""
    return _NOTIFICATIONS.get((code, subcode)) or _NOTIFICATIONS.get((code, 0)) or "Unknown Error"

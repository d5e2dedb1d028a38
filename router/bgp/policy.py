"""What we take from a peer and what we tell it. Pure; deny by default (RFC 8212).

Import is judged in two halves, because the first is the same for all prefixes of an UPDATE and
the second for all sessions of a connection, so that both are cheap on a full table:
`judge_path()` looks at attributes and next hop, `judge_prefix()` at the prefix. Every refusal
has a `Reason`; its text is what an operator reads.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from router.bgp.messages import AS_TRANS, Attributes
from router.config.effective import BgpPolicy, Connection, EffectiveConfig, Session
from router.errors import ConfigError
from router.model import Afi, Prefix, pack_address, show_address

RESERVED_ASNS: Final = frozenset({0, AS_TRANS, 65535, 4294967295})
"""Must not be in a path (RFC 7607, 6793, 7300)."""

_LINK_LOCAL: Final = Prefix(pack_address("fe80::"), 10)

_MARTIANS: Final = tuple(
    Prefix.parse(text)
    for text in ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4")
) + tuple(Prefix.parse(text) for text in ("::/8", "fe80::/10", "ff00::/8"))
"""Never a destination beyond a link (RFC 6890), whatever the profile. The default route is not
meant: it has a rule of its own."""


class Reason(Enum):
    """Why a received route is not used."""

    NOT_ACCEPTED = "not-accepted"
    DEFAULT_ROUTE = "default-route"
    MARTIAN = "martian"
    BOGON = "bogon"
    OWN_PREFIX = "own-prefix"
    LOCAL_OVERLAP = "local-overlap"
    OWN_AS = "own-as"
    FIRST_AS = "first-as"
    RESERVED_AS = "reserved-as"
    EMPTY_PATH = "empty-path"
    NEXT_HOP = "next-hop"
    WRONG_FAMILY = "wrong-family"
    PREFIX_LIMIT = "prefix-limit"
    TREAT_AS_WITHDRAW = "treat-as-withdraw"

    @property
    def explanation(self) -> str:
        """One clause for a person, with what to do where something can be done."""
        return _EXPLANATIONS[self]


_EXPLANATIONS: Final = {
    Reason.NOT_ACCEPTED: "matches no entry of the connection's `accept`",
    Reason.DEFAULT_ROUTE: "a default route is taken only where `accept` names it",
    Reason.MARTIAN: "is never routed between networks (RFC 6890)",
    Reason.BOGON: "is in the profile's bogon list",
    Reason.OWN_PREFIX: "is, or is within, a prefix that this router advertises",
    Reason.LOCAL_OVERLAP: "overlaps a local network; taking it would divert local traffic",
    Reason.OWN_AS: "our own AS is in the path: a loop",
    Reason.FIRST_AS: "the path does not begin with the peer's AS",
    Reason.RESERVED_AS: "a reserved AS (0, 23456, 65535, 4294967295) is in the path",
    Reason.EMPTY_PATH: "the path is empty, which another AS cannot send",
    Reason.NEXT_HOP: "the next hop is not a neighbour on the session's link",
    Reason.WRONG_FAMILY: "is not of the session's address family",
    Reason.PREFIX_LIMIT: "held back: the session is at its `prefix_max`",
    Reason.TREAT_AS_WITHDRAW: "malformed attributes; treated as withdrawn (RFC 7606)",
}


@dataclass(frozen=True, slots=True)
class Accepted:
    """The next hop to use, in network order."""

    nexthop: bytes


class SessionImport:
    """The import policy of one session: verdicts on attributes and next hop."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._peer = pack_address(session.addresses.peer)
        self._own = pack_address(session.addresses.local)
        bits = session.addresses.prefix_length
        shift = session.afi.size * 8 - bits
        network = (int.from_bytes(self._own) >> shift) << shift
        self._link = Prefix(network.to_bytes(session.afi.size), bits)

    def judge_path(self, attributes: Attributes, nexthops: Iterable[str]) -> Accepted | Reason:
        """Judge what all prefixes of an UPDATE have in common."""
        session = self._session
        if attributes.error is not None and attributes.error.startswith("treat-as-withdraw"):
            return Reason.TREAT_AS_WITHDRAW
        if not attributes.as_path:
            return Reason.EMPTY_PATH
        if attributes.first_as != session.peer_asn:
            return Reason.FIRST_AS
        asns = attributes.asns()
        if session.local_asn in asns:
            return Reason.OWN_AS
        if asns & RESERVED_ASNS:
            return Reason.RESERVED_AS
        nexthop = self._nexthop(nexthops)
        return Reason.NEXT_HOP if nexthop is None else Accepted(nexthop)

    def _nexthop(self, nexthops: Iterable[str]) -> bytes | None:
        """Choose among the next hops of one path: the global one on the link, else the link-local."""
        link_local = None
        for text in nexthops:
            try:
                address = pack_address(text)
            except ValueError:
                continue
            if address == self._peer:
                return address
            if len(address) != len(self._own) or address == self._own:
                continue
            host = Prefix(address, len(address) * 8)
            if self._link.contains(host):
                return address
            if _LINK_LOCAL.contains(host):
                link_local = address
        # A link-local next hop alone is good (RFC 2545 3) only if no global one contradicts it.
        return link_local if link_local is not None and len(tuple(nexthops)) == 1 else None


class _Cover:
    """A set of prefixes that answers quickly whether one of them contains a given one."""

    def __init__(self, prefixes: Iterable[Prefix]) -> None:
        # Octets of an address -> length -> network bits, for one set look-up a length in use.
        self._networks: dict[int, dict[int, set[int]]] = {4: {}, 16: {}}
        for prefix in prefixes:
            size = len(prefix.address)
            network = int.from_bytes(prefix.address) >> (size * 8 - prefix.length)
            self._networks[size].setdefault(prefix.length, set()).add(network)

    def contains(self, prefix: Prefix) -> bool:
        size = len(prefix.address)
        bits = size * 8
        value = int.from_bytes(prefix.address)
        return any(
            length <= prefix.length and (value >> (bits - length)) in networks
            for length, networks in self._networks[size].items()
        )


class ConnectionImport:
    """The import policy of one connection: verdicts on prefixes, remembered."""

    def __init__(self, config: EffectiveConfig, connection: Connection) -> None:
        self._connection = connection
        self._martians = _Cover(_MARTIANS)
        self._own = _Cover(connection.advertise)
        self._local = _Cover(local_prefixes(config, connection))
        self._bogons = _Cover(connection.bgp.bogons)
        self._verdicts: dict[Prefix, Reason | None] = {}

    def judge_prefix(self, prefix: Prefix) -> Reason | None:
        """Return why `prefix` is refused, or None."""
        try:
            return self._verdicts[prefix]
        except KeyError:
            if len(self._verdicts) > 1_000_000:  # a flapping peer must not eat the memory
                self._verdicts.clear()
            verdict = self._verdicts[prefix] = self._judge(prefix)
            return verdict

    def _judge(self, prefix: Prefix) -> Reason | None:
        connection = self._connection
        if prefix.length == 0:
            named = any(f.prefix.length == 0 and f.ge == 0 and f.matches(prefix) for f in connection.accept)
            return None if named else Reason.DEFAULT_ROUTE
        if self._martians.contains(prefix):
            return Reason.MARTIAN
        if self._own.contains(prefix):
            return Reason.OWN_PREFIX
        # Only more specific routes: a less specific one than a local network diverts nothing,
        # and clouds announce summaries such as 10.0.0.0/8.
        if self._local.contains(prefix):
            return Reason.LOCAL_OVERLAP
        if self._bogons.contains(prefix):
            return Reason.BOGON
        if not any(entry.matches(prefix) for entry in connection.accept):
            return Reason.NOT_ACCEPTED
        return None


def local_prefixes(config: EffectiveConfig, connection: Connection) -> tuple[Prefix, ...]:
    """List the networks on our own ports and channel links in the connection's table."""
    found = []
    for lan in config.router.lan:
        if lan.vrf == connection.vrf:
            found += [_network(text) for text in lan.addresses]
    for other in config.connections:
        if other.table == connection.table:
            for feature in other.features:
                found += [_network(f"{a.local}/{a.prefix_length}") for a in feature.addresses]
    return tuple(sorted(set(found)))


def _network(interface: str) -> Prefix:
    """The network of `192.0.2.1/24`."""
    text, _, length = interface.partition("/")
    address = pack_address(text)
    shift = len(address) * 8 - int(length)
    return Prefix(((int.from_bytes(address) >> shift) << shift).to_bytes(len(address)), int(length))


@dataclass(frozen=True, slots=True)
class ExportAttributes:
    """What is added to our announcements: nothing, or what de-preferences a channel."""

    communities: tuple[tuple[int, int], ...] = ()
    prepend: int = 0
    """Further copies of our own AS."""
    med: int | None = None


@dataclass(frozen=True, slots=True)
class Export:
    """All that one session announces. Equal exports need no message."""

    prefixes: tuple[Prefix, ...]
    attributes: ExportAttributes = ExportAttributes()


def export_of(
    session: Session, connection: Connection, attributes: ExportAttributes = ExportAttributes()
) -> Export:
    """Return exactly the connection's own prefixes of the session's family.

    Raises ConfigError above `advertise_max`: the peer would end the session at the next one.
    """
    prefixes = tuple(sorted(p for p in connection.advertise if p.afi is session.afi))
    limit = connection.bgp.advertise_max
    if len(prefixes) > limit:
        raise ConfigError(
            f"connection {connection.name}: {len(prefixes)} {session.afi} prefixes to advertise exceed "
            f"the profile's {limit}; the peer would end the session. Aggregate them or raise advertise_max"
        )
    return Export(prefixes, attributes)


def warn_level_reached(policy: BgpPolicy, received: int) -> bool:
    """Tell whether a session received enough prefixes for status to warn."""
    return received >= policy.prefix_warn


def explain(prefix: Prefix, reason: Reason) -> str:
    """One sentence for status: what is refused and why."""
    return f"{prefix} {reason.explanation}"


def afi_of_family(family: str) -> Afi | None:
    """Translate ExaBGP's `ipv4 unicast` (also with a slash). None for what we do not use."""
    return {"ipv4 unicast": Afi.IPV4, "ipv6 unicast": Afi.IPV6}.get(family.replace("/", " "))


def show_nexthop(address: bytes) -> str:
    """Print a next hop."""
    return show_address(address)

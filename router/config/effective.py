"""The configuration as the router uses it: every default filled in, every name resolved.

`load()` makes it from the file, the profiles and the defaults, and keeps beside it where each
value came from (`Origin`). It holds references to secrets, never secrets. All of it is frozen
and comparable, so that "what changes" is a comparison of two of these.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

from router.model import Afi, ChannelId, CipherSuite, Confidentiality, Prefix, Sci

SecyKind = Literal["auto", "kernel", "fastpath"]
"""Who does MACsec: the kernel's macsec devices, or our data plane. `auto` is settled at run time."""


class MacsecMode(Enum):
    """What a channel does about frames that MACsec does not protect."""

    MUST_SECURE = "must-secure"
    """Drop them, in both directions, whatever happens."""
    SHOULD_SECURE = "should-secure"
    """Pass them while no peer holds a key of ours. An explicit choice, shown loudly.

    Once a peer has proved to hold a CAK no frame passes in clear, until all peers are lost or the key
    server orders plain text.
    """


@dataclass(frozen=True, slots=True)
class SecretRef:
    """Where a secret is: a file, a systemd credential by name, or a command that prints it."""

    kind: Literal["file", "credential", "command"]
    value: str
    """Of a command: how it reads; what is run is `argv`."""
    argv: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind}:{self.value}"


@dataclass(frozen=True, slots=True)
class StaticSa:
    """One direction of a static secure association (lab only)."""

    an: int
    sak: SecretRef
    """File of 32 or 64 hex digits, by the suite's key size."""
    ssci: int
    """Short SCI of the sender (XPN suites), 1 to 2^32-1; 0 for other suites."""


@dataclass(frozen=True, slots=True)
class StaticKeys:
    """Keys by hand: no agreement, no rotation. Lab only, and warned about as such."""

    peer_sci: Sci
    transmit: StaticSa
    receive: StaticSa
    salt: bytes
    """12 octets for XPN suites, empty otherwise. Not secret."""


@dataclass(frozen=True, slots=True)
class Mka:
    """How keys are agreed upon (IEEE 802.1X-2020 clause 9)."""

    priority: int
    """Key Server Priority: 0 best, 255 never."""
    rekey_interval_s: int
    """Age at which the key server replaces a SAK; 0 is by packet numbers only."""
    sak_retire_time_ms: int
    """How long the old SAK's frames are still taken after a rollover; 3000 is the standard's."""
    delay_protection: bool
    icv_indicator: bool
    announce: bool
    """Tell the peers which suites we take."""
    ssci_order: Literal["standard", "reversed"]
    """XPN: whether the greatest SCI is number 1 (standard) or the least."""
    clock_skew_s: int
    """Difference of clocks that the key chain tolerates."""


@dataclass(frozen=True, slots=True)
class MkaKey:
    """One CAK of a chain, by reference."""

    ckn: bytes
    """1 to 32 octets. Not secret."""
    cak: SecretRef
    """32 or 64 hex digits."""
    start: float | None
    """Unix time from which it may be used; None is always."""
    end: float | None
    """Unix time until which it may be used; None is for ever."""


@dataclass(frozen=True, slots=True)
class Macsec:
    """A channel's MACsec policy."""

    mode: MacsecMode
    suite: CipherSuite
    """The preferred one."""
    suites: tuple[CipherSuite, ...]
    """All that are acceptable, best first."""
    replay_window: int
    """Frames; 0 is strict order. At most 2^30-1 with XPN."""
    include_sci: bool
    sci_port: int
    static: StaticKeys | None
    """Instead of MKA: lab only."""
    mka: Mka
    keys: tuple[MkaKey, ...]
    """The key chain as far as it stands in the configuration."""
    key_directory: str | None
    """Directory with the rest of it: one file per key, kept by `lastmile keys`."""
    keys_managed_by: Literal["us", "provider"]
    """Who may add and rotate keys (macsecManagerProvider of the open specification)."""
    bake_time_s: int
    """Least time between rotations of two channels of one interconnect."""
    key_rules: Literal["provider", "open-spec"] = "provider"
    """Whose rules say how many keys there may be: see `router.mka.keychain`."""
    confidentiality: Confidentiality = Confidentiality.OFFSET_0
    """What is encrypted of each frame; a key server may order more of it, never less."""

    @property
    def has_keys(self) -> bool:
        """Whether the channel can ever carry a protected frame."""
        return bool(self.static or self.keys or self.key_directory)


@dataclass(frozen=True, slots=True)
class Lag:
    """A link aggregation group that we make of ports (IEEE 802.1AX)."""

    members: tuple[str, ...]
    lacp_fast: bool
    min_links: int


@dataclass(frozen=True, slots=True)
class Channel:
    """One port or LAG to one remote router."""

    id: ChannelId
    interconnect: str
    site: str
    port: str
    """Device that MACsec sits on: the port itself, or the name of the LAG."""
    port_mtu: int
    """Octets of payload that the port must carry, FCS and Ethernet header not counted."""
    lag: Lag | None
    enabled: bool
    macsec: Macsec
    macsec_device: str
    secy: SecyKind = "auto"
    cores: int = 1
    """Cores of the data plane that send at once under the channel's SC; with more than one, out of order."""


@dataclass(frozen=True, slots=True)
class Interconnect:
    """A redundancy group of channels."""

    name: str
    profile: str
    channels: tuple[ChannelId, ...]


@dataclass(frozen=True, slots=True)
class BgpTimers:
    """Timers offered in the OPEN, in seconds."""

    hold_s: int
    keepalive_s: int


@dataclass(frozen=True, slots=True)
class BgpPolicy:
    """What one connection's sessions do, after profile and defaults."""

    timers: BgpTimers
    gtsm: bool
    """TTL 255 sent and required (RFC 5082). False: TTL 1 both ways where ttl is 1."""
    ttl: int
    """TTL of sent packets: 255 with GTSM, else 1."""
    graceful_restart_s: int
    """Restart time offered (RFC 4724); 0 is off."""
    md5_required: bool
    bogons: tuple[Prefix, ...]
    """Prefixes, with all their more specifics, that are refused from the peer."""
    multipath_relax: bool
    """Paths of equal AS_PATH length but different content are equal for multipath."""
    max_paths: int
    prefix_warn: int
    """Received prefixes per session and family at which status warns."""
    prefix_max: int
    """Received prefixes per session and family at which further ones are refused."""
    advertise_max: int
    """Prefixes per session and family that may be advertised; more is a configuration error."""
    local_preference: int


@dataclass(frozen=True, slots=True)
class PrefixFilter:
    """A prefix-list entry: `prefix` itself, or with ge/le its more specifics of those lengths."""

    prefix: Prefix
    ge: int
    le: int

    def matches(self, other: Prefix) -> bool:
        """Tell whether `other` is accepted by this entry."""
        return self.ge <= other.length <= self.le and self.prefix.contains(other)

    def __str__(self) -> str:
        if self.ge == self.le == self.prefix.length:
            return str(self.prefix)
        return f"{self.prefix} ge {self.ge} le {self.le}"


@dataclass(frozen=True, slots=True)
class AddressPair:
    """Our interface address and the neighbour's, in one subnet."""

    local: str
    """Without prefix length, canonical text."""
    peer: str
    prefix_length: int

    @property
    def afi(self) -> Afi:
        """Address family of both."""
        return Afi.IPV6 if ":" in self.local else Afi.IPV4


@dataclass(frozen=True, slots=True)
class Session:
    """One BGP session: one feature, one address family."""

    name: str
    """`CONNECTION/CHANNEL/ipv4`: unique, and how it is called in status and logs."""
    connection: str
    channel: ChannelId
    site: str
    addresses: AddressPair
    local_asn: int
    peer_asn: int
    router_id: str
    password: SecretRef | None
    device: str
    """The VLAN device the session runs on."""

    @property
    def afi(self) -> Afi:
        """The one address family that the session carries."""
        return self.addresses.afi


@dataclass(frozen=True, slots=True)
class Feature:
    """A connection's presence on one channel: the open specification's L3 feature."""

    connection: str
    channel: ChannelId
    vlan: int
    device: str
    """Name of the VLAN device, at most 15 characters."""
    addresses: tuple[AddressPair, ...]
    sessions: tuple[Session, ...]


@dataclass(frozen=True, slots=True)
class Vrf:
    """A routing table of its own ("segment"). The default one has no device."""

    name: str
    table: int


@dataclass(frozen=True, slots=True)
class Connection:
    """What a customer orders: bandwidth and MTU between a VRF and a cloud, over all channels."""

    name: str
    interconnect: str
    bandwidth_mbps: int
    mtu: int
    """IP MTU in octets."""
    vrf: str | None
    table: int
    """Kernel routing table: MAIN_TABLE, or the VRF's."""
    advertise: tuple[Prefix, ...]
    accept: tuple[PrefixFilter, ...]
    bgp: BgpPolicy
    features: tuple[Feature, ...]


@dataclass(frozen=True, slots=True)
class LanPort:
    """A port towards the branch."""

    port: str
    mtu: int
    addresses: tuple[str, ...]
    """Interface addresses with prefix length."""
    vrf: str | None


@dataclass(frozen=True, slots=True)
class Router:
    """The box itself."""

    name: str
    asn: int
    router_id: str
    lan: tuple[LanPort, ...]


@dataclass(frozen=True, slots=True)
class EffectiveConfig:
    """All of it. Two equal ones ask the same of the kernel and of the peers."""

    router: Router
    interconnects: tuple[Interconnect, ...]
    channels: tuple[Channel, ...]
    vrfs: tuple[Vrf, ...]
    connections: tuple[Connection, ...]

    def channel(self, channel: ChannelId) -> Channel:
        """Look a channel up. Raises KeyError."""
        for candidate in self.channels:
            if candidate.id == channel:
                return candidate
        raise KeyError(channel)

    @property
    def sites(self) -> tuple[str, ...]:
        """All sites, sorted."""
        return tuple(sorted({channel.site for channel in self.channels}))

    @property
    def sessions(self) -> tuple[Session, ...]:
        """All BGP sessions in the order of the file."""
        return tuple(s for c in self.connections for f in c.features for s in f.sessions)

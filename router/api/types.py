"""What the control socket and every `--json` print: the documented, stable shapes.

Additive changes only within /v1. `lastmile schema status|routes|plan|check` prints the JSON
Schema of each. Times are seconds since the epoch; sizes octets; names as in the configuration.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MtuStatus:
    """Proof of MTU of one address family."""

    afi: str
    configured: int
    state: str
    """`unknown`, `proven`, `too small` or `silent`."""
    passes: int | None
    """Largest IP packet known to pass, octets."""
    since: float


@dataclass(frozen=True, slots=True)
class SessionStatus:
    """One BGP session."""

    name: str
    afi: str
    peer: str
    peer_asn: int
    state: str
    """`idle`, `connecting`, `open` or `established`."""
    since: float | None
    reason: str
    hold_time_s: int | None
    prefixes_received: int
    prefixes_accepted: int
    prefixes_advertised: int
    rejected: dict[str, int]
    """Prefixes refused by the import policy, by reason."""
    flaps: int
    """Times the session went down since routerd started."""


@dataclass(frozen=True, slots=True)
class NeighbourStatus:
    """An entry of the kernel's neighbour table."""

    address: str
    state: str
    """`reachable`, `stale`, `delay`, `probe`, `failed`, `incomplete`, `permanent`, `noarp` or `none`."""
    mac: str | None


@dataclass(frozen=True, slots=True)
class FeatureStatus:
    """A connection's presence on the channel."""

    connection: str
    vlan: int
    device: str
    up: bool
    neighbours: list[NeighbourStatus]
    sessions: list[SessionStatus]
    mtu: list[MtuStatus]


@dataclass(frozen=True, slots=True)
class KeyInUse:
    """A SAK in the SecY."""

    ki: str
    """Key identifier: the key server's member identifier and the key number."""
    ckn: str
    an: int
    suite: str
    confidentiality: str
    rx: bool
    tx: bool
    age_s: float
    next_pn: int
    exhaustion_s: int | None
    """Seconds until the packet numbers run out at the current rate; null while idle."""
    ssci: int
    reason: str
    """Why it was made."""


@dataclass(frozen=True, slots=True)
class KeyOnChain:
    """A CAK of the channel's key chain."""

    ckn: str
    fingerprint: str
    """64 bits of a hash over CKN and CAK: equal at both ends, and tells nothing."""
    bits: int
    start: float | None
    end: float | None
    phase: str
    """`future`, `standby`, `active`, `expiring` or `expired`."""
    in_use: bool
    peers_live: int
    managed: bool
    """`lastmile keys` can rotate and remove it; false for keys in the configuration file."""


@dataclass(frozen=True, slots=True)
class MkaPeer:
    """Another member of a connectivity association."""

    sci: str
    mi: str
    mn: int
    live: bool
    last_seen: float
    since: float
    priority: int
    version: int
    offers: list[str] | None
    """Announced suites; null where it announces none."""


@dataclass(frozen=True, slots=True)
class MkaParticipant:
    """Our actor under one CKN."""

    ckn: str
    mi: str
    mn: int
    principal: bool
    eligible: bool
    key_server: str | None
    key_server_reason: str
    heard_at: float | None
    """When the last authentic MKPDU came; null: no peer has shown to hold this key."""
    icv_failures: int
    icv_failed_at: float | None
    peers: list[MkaPeer]


@dataclass(frozen=True, slots=True)
class UnknownCkn:
    """A CKN that a frame claimed and that is not ours."""

    ckn: str
    source: str
    last_seen: float
    count: int


@dataclass(frozen=True, slots=True)
class ChannelKeys:
    """`lastmile keys explain`: one channel's key agreement."""

    kind: str
    """`mka`."""
    port: str
    """`closed`, `secured` or `unprotected` (should-secure: frames pass in clear)."""
    reason: str
    """The most likely cause of trouble; empty where there is none."""
    policy: str
    fail_open: bool
    cp_state: str
    suite: str | None
    """Of the SecY."""
    wanted_suite: str | None
    """Agreed upon, where the SecY has another and is made anew for it."""
    suites: list[str]
    """Acceptable, best first."""
    sci: str | None
    principal: str | None
    """CKN under which keys are agreed upon now."""
    current: KeyInUse | None
    next: KeyInUse | None
    chain: list[KeyOnChain]
    expiry: str
    """Warning that the chain runs out; empty where it does not soon."""
    problems: list[str]
    participants: list[MkaParticipant]
    unknown_ckns: list[UnknownCkn]
    drops: dict[str, int]
    """Refused MKPDUs by reason."""
    transitions: list[str]
    counters: dict[str, int]


@dataclass(frozen=True, slots=True)
class KeysSummary:
    """The state of a channel's key agreement in short; `lastmile keys explain` has all of it."""

    port: str
    """`closed`, `secured` or `unprotected` (should-secure: frames pass in clear)."""
    reason: str
    fail_open: bool
    key_server: str | None
    ckn: str | None
    """Of the key that the SAK in use comes from."""
    peers_live: int
    age_s: float | None
    """Of the SAK in use."""
    exhaustion_s: int | None
    expiry: str
    """Warning that the key chain runs out; empty where it does not soon."""
    problems: list[str]


@dataclass(frozen=True, slots=True)
class MacsecStatus:
    """The channel's SecY."""

    device: str
    secy: str
    """Who does MACsec: `kernel` or `fastpath`."""
    secy_reason: str
    """Why: `configured`, or what `auto` found."""
    mode: str
    suite: str
    keys: str
    """`static` (lab only) or `mka`."""
    operational: bool
    receiving: bool
    sci: str | None
    transmit_an: int | None
    transmit_pn: int | None
    receive_an: int | None
    receive_pn: int | None
    key_id: str | None
    out_pkts_encrypted: int
    in_pkts_ok: int
    in_pkts_not_valid: int
    in_pkts_late: int
    in_pkts_no_tag: int
    agreement: KeysSummary | None = None
    """Null with static keys, or while the key daemon does not answer."""
    unprotected: bool = False
    """Frames pass in clear now (should-secure): as the SecY itself shows it."""
    confidentiality: str = "offset-0"
    """What is encrypted of the frames it sends: `offset-0` (all), `integrity-only`, `offset-30` or `-50`."""
    out_pkts_protected: int = 0
    """Frames sent authentic but readable (integrity only)."""
    out_pkts_untagged: int = 0
    """Frames sent in clear."""
    in_pkts_untagged: int = 0
    """Frames taken in clear."""


@dataclass(frozen=True, slots=True)
class ChannelStatus:
    """One channel, with its verdict."""

    name: str
    interconnect: str
    site: str
    verdict: str
    """`up`, `degraded`, `down` or `disabled`."""
    reason: str
    since: float
    port: str
    carrier: bool
    guarded: bool
    """Nothing but EAPOL and MACsec can leave the port."""
    macsec: MacsecStatus
    connections: list[FeatureStatus]


@dataclass(frozen=True, slots=True)
class ObjectError:
    """Something that the kernel refused; it is retried."""

    object: str
    reason: str
    since: float


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """One of the router's processes."""

    name: str
    pid: int | None
    restarts: int
    since: float
    last_exit: str
    rss_bytes: int | None
    role: str = ""
    """Of the two key daemons: `active`, `spare`, or empty while it loads."""


@dataclass(frozen=True, slots=True)
class RouterStatus:
    """The router itself."""

    name: str
    asn: int
    router_id: str
    version: str
    config: str
    """Path of the configuration file."""
    config_since: float
    since: float
    """When routerd started."""
    notice: str
    """Something an operator must know: a refused configuration, the last one still running."""


@dataclass(frozen=True, slots=True)
class Status:
    """`lastmile status --json`, GET /v1/status."""

    router: RouterStatus
    channels: list[ChannelStatus]
    errors: list[ObjectError]
    processes: list[ProcessStatus]


@dataclass(frozen=True, slots=True)
class PathStatus:
    """One path of a route, as the peer announced it."""

    session: str
    nexthop: str
    device: str
    as_path: str
    selected: bool
    reason: str
    """Why it is not selected: the rule of the decision process, or the import policy's reason."""


@dataclass(frozen=True, slots=True)
class RouteStatus:
    """One prefix of the Loc-RIB."""

    table: int
    prefix: str
    group: int | None
    """Kernel nexthop id that the route points at."""
    nexthops: list[str]
    paths: list[PathStatus]


@dataclass(frozen=True, slots=True)
class Routes:
    """`lastmile routes --json`, GET /v1/routes."""

    total: int
    routes: list[RouteStatus]


@dataclass(frozen=True, slots=True)
class FindingStatus:
    """Something wrong or remarkable in a configuration file."""

    file: str
    line: int
    column: int
    path: str
    message: str
    severity: str
    """`error` or `warning`."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """`lastmile check --json`, and the answer of a reload."""

    ok: bool
    file: str
    findings: list[FindingStatus]


@dataclass(frozen=True, slots=True)
class ImpactStatus:
    """What a change does to something that runs."""

    object: str
    effect: str
    reason: str


@dataclass(frozen=True, slots=True)
class PlanResult:
    """`lastmile plan --json`."""

    file: str
    actions: list[str]
    """In the order in which they are applied."""
    impact: list[ImpactStatus]
    secys: list[str]
    """Who does MACsec on each channel, and why."""

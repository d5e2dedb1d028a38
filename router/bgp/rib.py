"""Adj-RIB-In, decision and Loc-RIB of all sessions. Pure.

What can drive a `Rib`: a line from ExaBGP or its shim (`receive`), the loss of a shim's
connection (`link_lost`), a new configuration (`configure`), and time (`handle_timer`, promised by
`next_timer`). What comes out, in order, from `take_outputs()`: changed routes, sessions that
changed, and requests for a route refresh.

Prefixes that lines touched are only marked; `take_outputs()` decides them, so a burst of updates
costs one decision a prefix.

**Stale.** Whenever the table of a session is about to be told again (a snapshot of the shim, a
route refresh framed by BoRR and EoRR, a graceful restart) its routes are marked stale and stay in
use; what is not told again is swept at the end. Nothing that forwards is removed on suspicion.

**Gaps.** ExaBGP numbers the lines of each neighbour. A number that is not the next one means that
lines were lost, and the peer is asked for a refresh.

`now` is seconds since 1970 everywhere, the clock of ExaBGP's lines; a step of that clock can
stretch a wait and do nothing worse.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from router.bgp.decision import Decision, Path, decide
from router.bgp.messages import (
    Eor,
    Event,
    Fsm,
    Hello,
    Line,
    Negotiated,
    NeighborKey,
    Notification,
    Open,
    Refresh,
    RefreshKind,
    SessionState,
    Shutdown,
    SnapshotBegin,
    SnapshotEnd,
    SnapshotNeighbor,
    State,
    Update,
)
from router.bgp.policy import ConnectionImport, Reason, SessionImport, warn_level_reached
from router.config.effective import Connection, EffectiveConfig, Session
from router.model import Nexthop, Prefix, pack_address

LINK_LOST_S: Final = 3.0
"""A shim that dies is back within a second; after this its ExaBGP is taken for dead."""
REFRESH_QUIET_S: Final = 10.0
"""A refresh without BoRR and EoRR is over when this long nothing came."""
EOR_WAIT_S: Final = 5.0
"""A peer that sends no EOR is taken to have sent all when this long nothing came."""
GRACEFUL_LIMIT_S: Final = 360.0
"""Stale routes of a restarted peer wait at most this long for its EOR (RFC 4724 4.2)."""
SETTLED_S: Final = 15.0
"""A session that is down this long after its ExaBGP began has nothing to wait for."""
REJECTED_MAX: Final = 20_000
"""Refused routes of a session that are listed one by one; further ones are only counted."""


class Phase(Enum):
    """A session's state, as an operator thinks of it."""

    IDLE = "idle"
    CONNECTING = "connecting"
    OPEN = "open"
    ESTABLISHED = "established"


@dataclass(frozen=True, slots=True)
class RouteChange:
    """A prefix's next hops in the Loc-RIB changed; none means it is gone."""

    table: int
    prefix: Prefix
    nexthops: tuple[Nexthop, ...]
    """Sorted, without duplicates."""


@dataclass(frozen=True, slots=True)
class SessionChange:
    """A session moved between phases."""

    session: str
    phase: Phase
    reason: str
    since: float
    """Seconds since 1970."""


@dataclass(frozen=True, slots=True)
class AskRefresh:
    """Our view of a session's table may be wrong: send it a ROUTE-REFRESH."""

    session: str
    reason: str


Output = RouteChange | SessionChange | AskRefresh


@dataclass(frozen=True, slots=True)
class SessionStatus:
    """Everything status shows of a session. Counts are of now, not totals, unless named so."""

    name: str
    connection: str
    channel: str
    family: str
    device: str
    local_address: str
    peer_address: str
    peer_asn: int
    phase: Phase
    since: float
    reason: str
    """Why it is in this phase, or why it last went down."""
    seen_asn: int | None
    seen_router_id: str | None
    hold_time_s: int | None
    """Negotiated."""
    accepted: int
    rejected: Mapping[Reason, int]
    """Listed and unlisted ones."""
    stale: int
    prefix_warn: bool
    synced: bool
    gaps_total: int
    updates_total: int
    flaps_total: int

    @property
    def received(self) -> int:
        """Prefixes that the peer has announced."""
        return self.accepted + sum(self.rejected.values())


class _Session:
    """Adj-RIB-In of one session and what we know of its peer."""

    def __init__(self, config: Session, connection: Connection, process: str, now: float) -> None:
        self.config = config
        self.connection = connection
        self.process = process
        self.policy = SessionImport(config)
        self.key = NeighborKey(config.addresses.local, config.addresses.peer)
        self.phase = Phase.IDLE
        self.since = now
        self.reason = "not started"
        self.pid = 0
        self.counters: set[int] = {0}
        """Last numbers of its lines. A reload of ExaBGP begins a sequence beside the old one."""
        self.accepted: dict[Prefix, Path] = {}
        self.rejected: dict[Prefix, Reason] = {}
        self.held: dict[Prefix, Path] = {}
        """Accepted but for the ceiling."""
        self.unlisted: Counter[Reason] = Counter()
        self.stale: set[Prefix] = set()
        self.sweep_at: float | None = None
        self.refreshing = False
        self.eor = False
        self.quiet_at: float | None = None
        """When a peer that sends no EOR counts as synced."""
        self.told = False
        """Whether a complete snapshot has said how the session stands."""
        self.settled = False
        self.peer_open: Open | None = None
        self.negotiated: Negotiated | None = None
        self.notification: Notification | None = None
        self.paths: dict[tuple[object, bytes], Path] = {}
        self.gaps = 0
        self.updates = 0
        self.flaps = 0

    @property
    def synced(self) -> bool:
        """Whether its table is as complete as it will get without news from the peer."""
        return self.eor if self.phase is Phase.ESTABLISHED else self.settled


class Rib:
    """See the module."""

    def __init__(
        self, config: EffectiveConfig, processes: Mapping[str, Iterable[Session]], now: float
    ) -> None:
        self._sessions: dict[str, _Session] = {}
        self._by_neighbor: dict[tuple[str, NeighborKey], _Session] = {}
        self._imports: dict[str, ConnectionImport] = {}
        self._tables: dict[int, list[_Session]] = {}
        self._multipath: dict[int, tuple[bool, int]] = {}
        self._locrib: dict[int, dict[Prefix, Decision]] = {}
        self._dirty: dict[int, set[Prefix]] = {}
        self._outputs: list[Output] = []
        self._in_snapshot: dict[str, set[str]] = {}
        self._lost_at: dict[str, float] = {}
        self._age: dict[str, float] = {}
        self._config = config
        self.configure(config, processes, now)

    # Configuration

    def configure(
        self, config: EffectiveConfig, processes: Mapping[str, Iterable[Session]], now: float
    ) -> None:
        """Take a new configuration; sessions that did not change keep their tables."""
        self._config = config
        connections = {connection.name: connection for connection in config.connections}
        self._imports = {name: ConnectionImport(config, c) for name, c in connections.items()}
        wanted = {
            session.name: (session, process)
            for process, sessions in processes.items()
            for session in sessions
        }
        for name, known in list(self._sessions.items()):
            session, process = wanted.get(name, (None, ""))
            if session is None or not _same_session(known.config, session) or known.process != process:
                self._drop_all(known)
                del self._sessions[name]
        for name, (session, process) in wanted.items():
            connection = connections[session.connection]
            if name not in self._sessions:
                self._sessions[name] = _Session(session, connection, process, now)
            else:
                self._update_policy(self._sessions[name], session, connection)
        self._by_neighbor = {(s.process, s.key): s for s in self._sessions.values()}
        self._index_tables(connections.values())

    def _index_tables(self, connections: Iterable[Connection]) -> None:
        self._tables = {}
        for session in self._sessions.values():
            self._tables.setdefault(session.connection.table, []).append(session)
        # One answer per table, whatever connection a path came by.
        self._multipath = {}
        for connection in connections:
            relax, most = self._multipath.get(connection.table, (False, 1))
            bgp = connection.bgp
            self._multipath[connection.table] = (relax or bgp.multipath_relax, max(most, bgp.max_paths))
        for table, routes in self._locrib.items():
            self._dirty.setdefault(table, set()).update(routes)

    def _update_policy(self, known: _Session, session: Session, connection: Connection) -> None:
        moved = known.connection.table != connection.table
        changed = known.connection != connection
        if moved:
            for prefix in known.accepted:
                self._touch(known, prefix)
        known.config, known.connection = session, connection
        if not changed:
            return
        known.policy = SessionImport(session)
        # What was refused is not kept with its attributes: what is refused now goes at once, and
        # what may be accepted now is asked for.
        policy = self._imports[connection.name]
        for prefix in list(known.accepted):
            reason = policy.judge_prefix(prefix)
            if reason is not None:
                self._reject(known, prefix, reason)
            else:
                self._touch(known, prefix)
        if known.phase is Phase.ESTABLISHED:
            self._ask_refresh(known, "import policy changed")

    # Lines

    def receive(self, process: str, line: Line, now: float) -> None:
        """Take one line of the named ExaBGP process."""
        match line:
            case Event():
                session = self._by_neighbor.get((process, line.neighbor))
                if session is not None:
                    self._receive_event(session, line, now)
            case Hello():
                self._lost_at.pop(process, None)
                self._age[process] = now - line.age_s
                for session in self._of(process):
                    if session.pid not in (0, line.pid):
                        self._down(session, "ExaBGP was restarted", now, graceful=True)
                        session.pid = 0
            case SnapshotBegin():
                self._in_snapshot[process] = set()
                for session in self._of(process):
                    self._mark_stale(session)
            case SnapshotNeighbor():
                session = self._by_neighbor.get((process, line.neighbor))
                if session is not None:
                    session.pid, session.counters = line.pid, set(line.counters)
                    session.told = line.complete
                    self._in_snapshot.setdefault(process, set()).add(session.config.name)
            case SnapshotEnd():
                self._end_snapshot(process, now)
            case Shutdown():
                for session in self._of(process):
                    self._down(session, "ExaBGP was stopped", now, graceful=True)

    def link_lost(self, process: str, now: float) -> None:
        """The shim's connection ended. It comes back, or its ExaBGP is dead."""
        self._lost_at.setdefault(process, now + LINK_LOST_S)

    def learn_state(self, name: str, *, established: bool, now: float) -> None:
        """Take what ExaBGP itself says about a session that the shim knows nothing of."""
        session = self._sessions.get(name)
        if session is None:
            return
        if established and session.phase is not Phase.ESTABLISHED:
            self._enter(session, Phase.ESTABLISHED, "", now)
        elif not established and session.phase is Phase.ESTABLISHED:
            self._down(session, "went down unseen", now, graceful=False)
        if established:
            self._ask_refresh(session, "the table is not known")

    def _of(self, process: str) -> list[_Session]:
        return [session for session in self._sessions.values() if session.process == process]

    def _receive_event(self, session: _Session, event: Event, now: float) -> None:
        if session.process not in self._in_snapshot:
            self._check_counter(session, event)
        match event:
            case Update():
                self._receive_update(session, event, now)
            case Eor():
                session.eor = True
                session.quiet_at = None
                if session.stale and not session.refreshing and session.process not in self._in_snapshot:
                    self._sweep(session)
            case SessionState():
                self._receive_state(session, event, now)
            case Fsm():
                self._receive_fsm(session, event)
            case Open(sent=False):
                session.peer_open = event
            case Negotiated():
                session.negotiated = event
            case Notification():
                session.notification = event
            case Refresh(kind=RefreshKind.BEGIN):
                session.refreshing = True
                session.sweep_at = None
                self._mark_stale(session)
            case Refresh(kind=RefreshKind.END):
                if session.refreshing:
                    session.refreshing = False
                    self._sweep(session)
                    session.eor = True

    def _check_counter(self, session: _Session, event: Event) -> None:
        known, session.pid = session.pid, event.pid
        if event.counter - 1 in session.counters:
            session.counters.remove(event.counter - 1)
            session.counters.add(event.counter)
            return
        if known == event.pid and event.counter == 1:
            session.counters.add(1)  # ExaBGP has reloaded the neighbour
            return
        expected = sorted(counter + 1 for counter in session.counters)
        session.counters = {event.counter}
        if known != event.pid:
            return
        session.gaps += 1
        if session.phase is Phase.ESTABLISHED:
            self._ask_refresh(session, f"line {event.counter} came where {expected} was next")

    def _ask_refresh(self, session: _Session, reason: str) -> None:
        self._outputs.append(AskRefresh(session.config.name, reason))

    def refresh_sent(self, name: str, now: float) -> None:
        """The refresh that we asked for is on its way."""
        session = self._sessions.get(name)
        if session is None or session.phase is not Phase.ESTABLISHED:
            return
        if session.negotiated is not None and session.negotiated.enhanced_refresh:
            return  # BoRR will mark
        self._mark_stale(session)
        session.sweep_at = now + REFRESH_QUIET_S

    def _end_snapshot(self, process: str, now: float) -> None:
        seen = self._in_snapshot.pop(process, set())
        for session in self._of(process):
            if session.config.name not in seen:
                session.told = False
            if session.told and session.phase is Phase.ESTABLISHED:
                self._sweep(session)
                if not session.eor:
                    session.quiet_at = now + EOR_WAIT_S
            elif session.phase is Phase.ESTABLISHED:
                session.stale.clear()
                self._ask_refresh(session, "the shim's memory of the table is incomplete")

    def unknown(self, process: str) -> list[str]:
        """Name the sessions of a process on which the last snapshot said nothing certain."""
        return [session.config.name for session in self._of(process) if not session.told]

    # Sessions

    def _receive_state(self, session: _Session, event: SessionState, now: float) -> None:
        if event.state is State.UP:
            if session.phase is not Phase.ESTABLISHED:
                session.eor = False
                session.quiet_at = now + EOR_WAIT_S
                self._judge_restart(session)
                self._enter(session, Phase.ESTABLISHED, "", event.at)
        elif event.state is State.CONNECTED:
            if session.phase is Phase.ESTABLISHED:
                self._down(session, "replaced by a new connection", event.at, graceful=True)
            session.notification = None
            session.peer_open = session.negotiated = None
            session.told = True  # from here on nothing was missed
        else:
            session.told = True
            reason = str(session.notification) if session.notification is not None else event.reason
            ended_in_peace = session.notification is not None or "closing without sending" in event.reason
            self._down(session, reason, event.at, graceful=not ended_in_peace)

    def _receive_fsm(self, session: _Session, event: Fsm) -> None:
        if session.phase is Phase.ESTABLISHED:
            return  # only `state` ends a session; a second connection may be trying meanwhile
        phase = {
            "IDLE": Phase.IDLE,
            "ACTIVE": Phase.CONNECTING,
            "CONNECT": Phase.CONNECTING,
            "OPENSENT": Phase.OPEN,
            "OPENCONFIRM": Phase.OPEN,
        }.get(event.state)
        # ExaBGP passes through IDLE at every attempt; for an operator that is still connecting.
        if phase is Phase.IDLE and session.phase is not Phase.IDLE:
            phase = Phase.CONNECTING
        if phase is not None and phase is not session.phase:
            self._enter(session, phase, session.reason, event.at)

    def _enter(self, session: _Session, phase: Phase, reason: str, at: float) -> None:
        if session.phase is phase and session.reason == reason:
            return
        # Attempts after a failure are one state for an operator: since it went down.
        trying = {Phase.CONNECTING, Phase.OPEN}
        if not (session.phase in trying and phase in trying):
            session.since = at
        session.phase, session.reason = phase, reason
        self._outputs.append(SessionChange(session.config.name, phase, reason, session.since))

    def _down(self, session: _Session, reason: str, at: float, *, graceful: bool) -> None:
        was_up = session.phase is Phase.ESTABLISHED
        session.eor = False
        session.quiet_at = None
        session.refreshing = False
        if was_up:
            session.flaps += 1
            peer = session.peer_open.graceful_restart if session.peer_open is not None else None
            offered_s = session.connection.bgp.graceful_restart_s
            if graceful and offered_s > 0 and peer is not None and peer.time_s > 0:
                self._mark_stale(session)
                session.sweep_at = at + min(peer.time_s, offered_s)
            else:
                self._drop_all(session)
        if was_up or session.phase is not Phase.IDLE:
            self._enter(session, Phase.CONNECTING, reason, at)

    def _judge_restart(self, session: _Session) -> None:
        """The session is up again: stale routes stay only if the peer kept its forwarding state."""
        if not session.stale:
            return
        restart = session.peer_open.graceful_restart if session.peer_open is not None else None
        family = f"{session.config.afi}/unicast"
        if restart is None or (restart.restarting and family not in restart.forwarding):
            self._drop_all(session)
        elif session.sweep_at is not None:
            session.sweep_at += GRACEFUL_LIMIT_S

    # Routes

    def _receive_update(self, session: _Session, update: Update, now: float) -> None:
        session.updates += 1
        if session.sweep_at is not None and session.phase is Phase.ESTABLISHED and not session.refreshing:
            session.sweep_at = max(session.sweep_at, now + REFRESH_QUIET_S)
        if session.quiet_at is not None:
            session.quiet_at = now + EOR_WAIT_S
        malformed = (update.attributes.error or "").startswith("treat-as-withdraw")
        for prefix in update.withdraw:
            if malformed:
                self._reject(session, prefix, Reason.TREAT_AS_WITHDRAW)
            else:
                self._withdraw(session, prefix)
        for announcement in update.announce:
            verdict = session.policy.judge_path(update.attributes, announcement.nexthops)
            if isinstance(verdict, Reason):
                for prefix in announcement.prefixes:
                    self._reject(session, prefix, verdict)
                continue
            path = self._path(session, update, verdict.nexthop)
            judge = self._imports[session.connection.name].judge_prefix
            size = session.config.afi.size
            for prefix in announcement.prefixes:
                reason = judge(prefix) if len(prefix.address) == size else Reason.WRONG_FAMILY
                if reason is None:
                    self._accept(session, prefix, path)
                else:
                    self._reject(session, prefix, reason)

    def _path(self, session: _Session, update: Update, nexthop: bytes) -> Path:
        key = (update.attributes, nexthop)
        path = session.paths.get(key)
        if path is None:
            if len(session.paths) > 10_000:
                session.paths.clear()
            router_id = session.peer_open.router_id if session.peer_open is not None else "0.0.0.0"
            path = session.paths[key] = Path(
                session=session.config.name,
                attributes=update.attributes,
                local_preference=session.connection.bgp.local_preference,
                neighbor_as=session.config.peer_asn,
                router_id=int.from_bytes(pack_address(router_id)),
                peer=pack_address(session.config.addresses.peer),
                nexthop=Nexthop(session.config.device, nexthop),
            )
        return path

    def _touch(self, session: _Session, prefix: Prefix) -> None:
        self._dirty.setdefault(session.connection.table, set()).add(prefix)

    def _accept(self, session: _Session, prefix: Prefix, path: Path) -> None:
        session.stale.discard(prefix)
        previous = session.accepted.get(prefix)
        if previous is path:
            return
        if previous is None:
            session.rejected.pop(prefix, None)
            if len(session.accepted) >= session.connection.bgp.prefix_max:
                self._hold_back(session, prefix, path)
                return
            session.held.pop(prefix, None)
        session.accepted[prefix] = path
        self._touch(session, prefix)

    def _hold_back(self, session: _Session, prefix: Prefix, path: Path) -> None:
        if prefix in session.held or len(session.held) < REJECTED_MAX:
            session.held[prefix] = path
        else:
            session.unlisted[Reason.PREFIX_LIMIT] += 1

    def _reject(self, session: _Session, prefix: Prefix, reason: Reason) -> None:
        self._withdraw(session, prefix)
        if len(session.rejected) < REJECTED_MAX:
            session.rejected[prefix] = reason
        else:
            session.unlisted[reason] += 1

    def _withdraw(self, session: _Session, prefix: Prefix) -> None:
        session.stale.discard(prefix)
        session.rejected.pop(prefix, None)
        session.held.pop(prefix, None)
        if session.accepted.pop(prefix, None) is not None:
            self._touch(session, prefix)
            self._admit_held(session)

    def _admit_held(self, session: _Session) -> None:
        """There is room under the ceiling: the route that waits longest gets it."""
        if session.held and len(session.accepted) < session.connection.bgp.prefix_max:
            prefix = next(iter(session.held))
            session.accepted[prefix] = session.held.pop(prefix)
            self._touch(session, prefix)

    def _mark_stale(self, session: _Session) -> None:
        session.stale = {*session.accepted, *session.rejected, *session.held}
        session.unlisted.clear()

    def _sweep(self, session: _Session) -> None:
        session.sweep_at = None
        for prefix in list(session.stale):
            self._withdraw(session, prefix)

    def _drop_all(self, session: _Session) -> None:
        for prefix in session.accepted:
            self._touch(session, prefix)
        session.accepted.clear()
        session.rejected.clear()
        session.held.clear()
        session.unlisted.clear()
        session.stale.clear()
        session.paths.clear()
        session.sweep_at = None

    # Time

    def next_timer(self) -> float | None:
        """When `handle_timer` wants to be called (the clock of `now`)."""
        times = [*self._lost_at.values()]
        for session in self._sessions.values():
            times += [t for t in (session.sweep_at, session.quiet_at) if t is not None]
        times += [age + SETTLED_S for p, age in self._age.items() if any(not s.settled for s in self._of(p))]
        return min(times, default=None)

    def handle_timer(self, now: float) -> None:
        """Do what is due."""
        for process, at in list(self._lost_at.items()):
            if now >= at:
                del self._lost_at[process]
                for session in self._of(process):
                    self._down(session, "ExaBGP does not run", now, graceful=True)
        for process, began in self._age.items():
            if now >= began + SETTLED_S:
                for session in self._of(process):
                    session.settled = True
        for session in self._sessions.values():
            if session.sweep_at is not None and now >= session.sweep_at:
                session.refreshing = False
                self._sweep(session)
            if session.quiet_at is not None and now >= session.quiet_at:
                session.quiet_at = None
                session.eor = True

    # Results

    def take_outputs(self) -> list[Output]:
        """Decide every touched prefix and return what changed since the last call, in order."""
        for table, prefixes in self._dirty.items():
            self._decide(table, prefixes)
        self._dirty.clear()
        outputs, self._outputs = self._outputs, []
        return outputs

    def _decide(self, table: int, prefixes: set[Prefix]) -> None:
        routes = self._locrib.setdefault(table, {})
        sessions = self._tables.get(table, [])
        relax, most = self._multipath.get(table, (False, 1))
        decided: dict[tuple[int, ...], tuple[Decision, tuple[Nexthop, ...]]] = {}
        for prefix in prefixes:
            paths = [path for s in sessions if (path := s.accepted.get(prefix)) is not None]
            old = routes.get(prefix)
            if not paths:
                if old is not None:
                    del routes[prefix]
                    self._outputs.append(RouteChange(table, prefix, ()))
                continue
            key = tuple(map(id, paths))
            known = decided.get(key)
            if known is None:
                decision = decide(paths, multipath_relax=relax, max_paths=most)
                assert decision is not None
                known = decided[key] = (decision, nexthops_of(decision))
            routes[prefix] = known[0]
            if old is None or (old is not known[0] and nexthops_of(old) != known[1]):
                self._outputs.append(RouteChange(table, prefix, known[1]))

    def phase(self, name: str) -> Phase:
        """A session's state; idle where it is not known."""
        session = self._sessions.get(name)
        return Phase.IDLE if session is None else session.phase

    def unsynced(self) -> list[str]:
        """Name the sessions whose tables are not complete yet."""
        return [name for name, session in self._sessions.items() if not session.synced]

    def locrib(self) -> Mapping[int, Mapping[Prefix, Decision]]:
        """All chosen routes by table, as of the last `take_outputs`."""
        return self._locrib

    def rejected(self, name: str) -> dict[Prefix, Reason]:
        """Refused prefixes of a session with their reasons, held back ones included."""
        session = self._sessions[name]
        return {**session.rejected, **dict.fromkeys(session.held, Reason.PREFIX_LIMIT)}

    def adj_rib_in(self, name: str) -> Mapping[Prefix, Path]:
        """Accepted routes of a session."""
        return self._sessions[name].accepted

    def status(self) -> list[SessionStatus]:
        """Report on every session, in the order of the configuration."""
        order = [s.name for s in self._config.sessions]
        return [self._status(self._sessions[name]) for name in order if name in self._sessions]

    def _status(self, session: _Session) -> SessionStatus:
        counts = Counter(session.rejected.values())
        counts.update(session.unlisted)
        if session.held:
            counts[Reason.PREFIX_LIMIT] += len(session.held)
        opened = session.peer_open
        return SessionStatus(
            name=session.config.name,
            connection=session.config.connection,
            channel=session.config.channel,
            family=str(session.config.afi),
            device=session.config.device,
            local_address=session.config.addresses.local,
            peer_address=session.config.addresses.peer,
            peer_asn=session.config.peer_asn,
            phase=session.phase,
            since=session.since,
            reason=session.reason,
            seen_asn=opened.asn if opened is not None else None,
            seen_router_id=opened.router_id if opened is not None else None,
            hold_time_s=session.negotiated.hold_time_s if session.negotiated is not None else None,
            accepted=len(session.accepted),
            rejected=dict(counts),
            stale=len(session.stale),
            prefix_warn=warn_level_reached(
                session.connection.bgp, len(session.accepted) + sum(counts.values())
            ),
            synced=session.synced,
            gaps_total=session.gaps,
            updates_total=session.updates,
            flaps_total=session.flaps,
        )


def _same_session(old: Session, new: Session) -> bool:
    """Tell whether ExaBGP keeps the session across the change."""
    return old == new


def nexthops_of(decision: Decision) -> tuple[Nexthop, ...]:
    """The next hops of a decision's multipath set, sorted."""
    return tuple(sorted({path.nexthop for path in decision.multipath}))

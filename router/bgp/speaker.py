"""The BGP driver of routerd: sockets to the shims, commands to ExaBGP, one Rib, one timer.

A `Speaker` owns a unix socket for each ExaBGP process. Lines that come in go to the `Rib`; what
the Rib puts out goes to `events`, where routerd takes it from, and to ExaBGP as commands. It
keeps what we announce equal to what the configuration says: after an ExaBGP has started, after
routerd has, and after a change, it asks ExaBGP what it announces and sends the difference.
"""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import signal
import socket
import struct
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import structlog

from router.bgp import exabgp, md5
from router.bgp.messages import Eor, Event, Hello, Reply, SnapshotEnd, parse
from router.bgp.policy import Export, ExportAttributes, export_of
from router.bgp.rib import AskRefresh, Phase, Rib, RouteChange, SessionChange, SessionStatus
from router.config.effective import EffectiveConfig, SecretRef, Session
from router.errors import ConfigError, ProtocolError
from router.model import Prefix, Secret, pack_address
from router.supervise import ChildSpec

COMMAND_TIMEOUT_S: Final = 30.0
ADMINISTRATIVE_RESET: Final = 4
"""Subcode of Cease (RFC 4486)."""
ADOPT_LIMIT_S: Final = 60.0
"""Adopted routes are swept at the latest this long after the start."""
UNANSWERED_S: Final = 5.0
"""A session that connects for longer is looked at for attempts that nobody answers."""
NLRI_PER_COMMAND: Final = 500
READS_FILE_AFTER_S: Final = 0.1
"""An ExaBGP reads its file no sooner after its start than this; it takes three times as long."""
RELOAD_SIGNALS: Final = 2
RELOAD_AGAIN_S: Final = 2.0
"""ExaBGP 5.0.15 forgets a SIGUSR1 that comes while any neighbour has updates to send; so it gets a
second one, which changes nothing where the first was heard."""
LINE_MAX: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Routes:
    """Routes of the Loc-RIB changed; for the FIB, as one batch."""

    changes: tuple[RouteChange, ...]


@dataclass(frozen=True, slots=True)
class Synced:
    """Every session has told all it has, or had its time: stale routes may be swept."""

    reason: str


SpeakerEvent = Routes | SessionChange | Synced


@dataclass(frozen=True, slots=True)
class SpeakerStatus:
    """A snapshot for status."""

    sessions: tuple[SessionReport, ...]
    processes: Mapping[str, ProcessReport]


@dataclass(frozen=True, slots=True)
class SessionReport:
    """A session with what the driver knows beside the Rib."""

    rib: SessionStatus
    advertised: tuple[Prefix, ...]
    """What ExaBGP has confirmed."""
    cause: str
    """The likely cause of its being down, in words; empty when established or unknown."""


@dataclass(frozen=True, slots=True)
class ProcessReport:
    """An ExaBGP process as its shim reports it."""

    connected: bool
    pid: int | None
    lines_total: int
    malformed_total: int


class _Link:
    """One shim's connection; at most one is current for a process."""

    def __init__(self, process: str) -> None:
        self.process = process
        self.writer: asyncio.StreamWriter | None = None
        self.pid: int | None = None
        self.lines = 0
        self.malformed = 0
        self.announced: dict[str, Export] = {}
        """By session name, as ExaBGP confirmed it in this connection."""
        self.wake = asyncio.Event()
        self.stale_export = True
        """What ExaBGP announces is not known: ask before the next command."""
        self.eor_due: set[str] = set()
        self.refresh_due: set[str] = set()
        self.ask_states = False
        self.reload_due = 0
        self._number = 0
        self._pending: dict[int, asyncio.Future[Reply]] = {}

    async def command(self, text: str) -> Reply:
        """Send a command and wait for its answer. Raises ProtocolError, ConnectionError, TimeoutError."""
        if self.writer is None:
            raise ConnectionError(f"the shim of {self.process} is not connected")
        self._number += 1
        number = self._number
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._pending[number] = future
        try:
            self.writer.write(json.dumps({"id": number, "command": text}).encode() + b"\n")
            await self.writer.drain()
            # Not wait_for, which swallows a cancellation that meets a result (Python 3.11).
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                reply = await future
        finally:
            self._pending.pop(number, None)
        if not reply.ok:
            raise ProtocolError(f"ExaBGP of {self.process} refused: {text[:200]}")
        return reply

    def answer(self, reply: Reply) -> None:
        """Hand a reply to whom it belongs."""
        future = self._pending.get(reply.id)
        if future is not None and not future.done():
            future.set_result(reply)

    def close(self) -> None:
        """The connection is gone."""
        self.writer = None
        self.pid = None
        self.stale_export = True
        self.announced = {}
        for future in self._pending.values():
            if not future.done():
                future.set_exception(ConnectionError(f"the shim of {self.process} went away"))


class Speaker:
    """BGP as routerd sees it. `prepare()`, start the `children()`, then `run()` for good."""

    def __init__(
        self,
        config: EffectiveConfig,
        run_dir: Path,
        *,
        resolve: Callable[[SecretRef], Secret],
        signal_child: Callable[[str, signal.Signals], Awaitable[None]],
        user: str | None = exabgp.USER,
        proc_net: Path = Path("/proc/net"),
        open_ears: Callable[[], list[socket.socket]] = md5.open_ears,
    ) -> None:
        """`resolve` reads a password; `signal_child` sends a signal to a child by its ChildSpec name.

        `proc_net` and `open_ears` look at the network namespace that the sessions are in.
        """
        self.events: asyncio.Queue[SpeakerEvent] = asyncio.Queue()
        self._config = config
        self._run_dir = run_dir
        self._resolve = resolve
        self._signal_child = signal_child
        self._user = user if os.geteuid() == 0 else None
        self._processes = exabgp.processes(config)
        self._rib = Rib(config, self._processes, time.time())
        self._links = {name: _Link(name) for name in self._processes}
        self._servers: dict[str, asyncio.Server] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._workers: dict[str, asyncio.Task[None]] = {}
        self._attributes: dict[str, ExportAttributes] = {}
        self._silent: set[str] = set()
        self._rearm = asyncio.Event()
        self._installed: dict[str, float] = {}
        """Files that changed before this life met their ExaBGP, which may be older than they are."""
        self._adopt_until = time.time() + ADOPT_LIMIT_S
        self._synced = False
        self._proc_net = proc_net
        self._open_ears = open_ears
        self._md5_now = md5.Counters()
        self._md5_base: dict[str, md5.Counters] = {}
        """By session: the counters when it was last established, or first seen."""
        self._syns: dict[str, Counter[md5.Signature]] = {}
        """By session: the peer's attempts to connect since then, by what their signatures said."""
        self._log = structlog.get_logger("bgp")

    # Configuration

    def children(self) -> list[ChildSpec]:
        """The processes that the supervisor is to run."""
        return [exabgp.child(name, self._run_dir, self._user) for name in self._processes]

    async def prepare(self) -> None:
        """Write the configuration files and open the sockets. Raises ConfigError; then nothing changed."""
        changed = await self._install(self._config, self._processes)
        self._installed = dict.fromkeys(changed, time.clock_gettime(time.CLOCK_BOOTTIME))
        for name in self._processes:
            await self._listen(name)

    async def reconfigure(self, config: EffectiveConfig) -> None:
        """Take a new configuration: files first, then the Rib, then a reload where a file changed.

        Raises ConfigError before anything has changed. Call before the supervisor is given the
        new `children()` where processes are added; sessions that are equal in both are untouched.
        """
        wanted = exabgp.processes(config)
        changed = await self._install(config, wanted)
        self._config, self._processes = config, wanted
        for name in [name for name in self._links if name not in wanted]:
            self._links.pop(name).close()
            self._servers.pop(name).close()
            if worker := self._workers.pop(name, None):
                worker.cancel()
            exabgp.socket_path(name, self._run_dir).unlink(missing_ok=True)
            exabgp.config_path(name, self._run_dir).unlink(missing_ok=True)
        self._rib.configure(config, wanted, time.time())
        for name in wanted:
            if name not in self._links:
                self._links[name] = _Link(name)
                await self._listen(name)
                self._start_worker(name)
            elif name in changed:
                self._links[name].reload_due = RELOAD_SIGNALS
            self._links[name].stale_export = True
            self._links[name].wake.set()
        self._deliver()

    async def _install(self, config: EffectiveConfig, wanted: Mapping[str, tuple[Session, ...]]) -> set[str]:
        connections = {connection.name: connection for connection in config.connections}
        for session in config.sessions:
            export_of(session, connections[session.connection])
        self._run_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
        passwords = {s.name: self._resolve(s.password) for s in config.sessions if s.password is not None}
        try:
            texts = {
                exabgp.config_path(name, self._run_dir): exabgp.render(
                    sessions, connections, passwords, exabgp.socket_path(name, self._run_dir)
                )
                for name, sessions in wanted.items()
            }
            changed = await exabgp.install(texts, user=self._user, secrets=passwords)
        finally:
            for password in passwords.values():
                password.wipe()
        return {name for name in wanted if exabgp.config_path(name, self._run_dir) in changed}

    async def _listen(self, name: str) -> None:
        path = exabgp.socket_path(name, self._run_dir)
        path.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(lambda r, w: self._accept(name, r, w), path, limit=LINE_MAX)
        if self._user is not None:
            account = pwd.getpwnam(self._user)
            os.chown(path, account.pw_uid, account.pw_gid)
        path.chmod(0o600)
        self._servers[name] = server

    # Running

    async def run(self) -> None:
        """Serve the shims and the clock until cancelled."""
        for name in self._processes:
            self._start_worker(name)
        ears = self._listen_for_syns()
        try:
            while True:
                now = time.time()
                self._rib.handle_timer(now)
                self._sample_md5()
                self._deliver()
                due = self._rib.next_timer()
                wait = min(1.0, max(0.01, due - now)) if due is not None else 1.0
                self._rearm.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._rearm.wait()
        finally:
            for ear in ears:
                asyncio.get_running_loop().remove_reader(ear)
                ear.close()
            for server in self._servers.values():
                server.close()
            tasks = [*self._tasks, *self._workers.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _start_worker(self, name: str) -> None:
        self._workers[name] = asyncio.create_task(self._work(self._links[name]), name=f"bgp-{name}")

    async def _accept(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if self._is_child(writer):
                await self._serve(name, reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    def _is_child(self, writer: asyncio.StreamWriter) -> bool:
        """Only ourselves and ExaBGP's user may speak here."""
        peer: socket.socket = writer.get_extra_info("socket")
        _, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        allowed = {os.geteuid()} | ({pwd.getpwnam(self._user).pw_uid} if self._user else set())
        return uid in allowed

    async def _serve(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = self._links.get(name)
        if link is None:
            return
        if link.writer is not None:
            link.writer.close()
            link.close()
        link.writer = writer
        partial = b""
        try:
            while data := await reader.read(1 << 18):
                *lines, partial = (partial + data).split(b"\n")
                for line in lines:
                    self._take(link, line)
                self._deliver()
        finally:
            if link.writer is writer:
                link.close()
                self._rib.link_lost(name, time.time())
                self._rearm.set()
                self._log.warning("bgp.shim.lost", process=name)

    def _take(self, link: _Link, text: bytes) -> None:
        link.lines += 1
        try:
            line = parse(text)
        except ProtocolError as error:
            link.malformed += 1
            if link.malformed in {1, 10, 100} or link.malformed % 1000 == 0:
                self._log.warning(
                    "bgp.line.malformed", process=link.process, total=link.malformed, error=str(error)
                )
            return
        if isinstance(line, Reply):
            link.answer(line)
            return
        if isinstance(line, Hello):
            self._reload_if_older(link, line.pid)
            link.pid = line.pid
            link.stale_export = True
            link.announced = {}
        self._rib.receive(link.process, line, time.time())
        if isinstance(line, SnapshotEnd):
            link.ask_states = bool(self._rib.unknown(link.process))
            link.wake.set()
        elif isinstance(line, Eor | Event):
            pass

    def _reload_if_older(self, link: _Link, pid: int) -> None:
        """Tell an ExaBGP that ran while its file was replaced, in our absence, to read it."""
        installed = self._installed.pop(link.process, None)
        if installed is None:
            return
        try:
            began = _started(pid)
        except OSError:
            return
        if began + READS_FILE_AFTER_S < installed:
            link.reload_due = RELOAD_SIGNALS
            link.wake.set()

    def _deliver(self) -> None:
        """Pass on what the Rib has put out."""
        routes: list[RouteChange] = []
        for output in self._rib.take_outputs():
            match output:
                case RouteChange():
                    routes.append(output)
                case SessionChange():
                    self._session_changed(output)
                case AskRefresh():
                    self._log.info("bgp.refresh", session=output.session, reason=output.reason)
                    link = self._link_of(output.session)
                    if link is not None:
                        link.refresh_due.add(output.session)
                        link.wake.set()
        if routes:
            self.events.put_nowait(Routes(tuple(routes)))
        if not self._synced:
            unsynced = self._rib.unsynced()
            if not unsynced or time.time() >= self._adopt_until:
                self._synced = True
                reason = f"no answer from {', '.join(unsynced)}" if unsynced else "all sessions are complete"
                self.events.put_nowait(Synced(reason))
        self._rearm.set()

    def _session_changed(self, change: SessionChange) -> None:
        self._log.info(
            "bgp.session", session=change.session, phase=change.phase.value, reason=change.reason or None
        )
        if change.phase is Phase.ESTABLISHED:
            self._md5_base.pop(change.session, None)
            self._syns.pop(change.session, None)
            link = self._link_of(change.session)
            if link is not None:
                link.eor_due.add(change.session)
                link.stale_export = True  # a reload may have given it an empty Adj-RIB-Out
                link.wake.set()
        self.events.put_nowait(change)

    def _link_of(self, session: str) -> _Link | None:
        for name, sessions in self._processes.items():
            if any(known.name == session for known in sessions):
                return self._links.get(name)
        return None

    # Commands

    async def _work(self, link: _Link) -> None:
        """Keep one ExaBGP's announcements, refreshes and EORs as they should be."""
        while True:
            await link.wake.wait()
            link.wake.clear()
            if link.writer is None:
                continue
            try:
                await self._work_once(link)
            except (ConnectionError, TimeoutError, ProtocolError) as error:
                self._log.warning("bgp.command", process=link.process, error=str(error) or "timeout")
                if link.writer is not None:
                    await asyncio.sleep(1.0)
                    link.stale_export = True
                    link.wake.set()

    async def _work_once(self, link: _Link) -> None:
        sessions = {session.name: session for session in self._processes.get(link.process, ())}
        if link.reload_due:
            link.reload_due -= 1
            if link.reload_due:
                asyncio.get_running_loop().call_later(RELOAD_AGAIN_S, link.wake.set)
            link.ask_states = True
            await self._signal_child(f"exabgp-{link.process}", signal.SIGUSR1)
        if link.ask_states:
            await self._ask_states(link, sessions)
        if link.stale_export:
            link.announced = await self._observe_exports(link, sessions)
            link.stale_export = False
        for name, session in sessions.items():
            await self._announce(link, session, self._export(session))
            if name in link.eor_due:
                link.eor_due.discard(name)
                if self._connection(session).bgp.graceful_restart_s:
                    await link.command(f"neighbor {_selector(session)} announce eor {session.afi} unicast")
        for name in sorted(link.refresh_due):
            link.refresh_due.discard(name)
            if name in sessions:
                session = sessions[name]
                self._rib.refresh_sent(name, time.time())
                await link.command(
                    f"neighbor {_selector(session)} announce route-refresh {session.afi} unicast"
                )

    async def _ask_states(self, link: _Link, sessions: Mapping[str, Session]) -> None:
        """Ask ExaBGP itself about sessions the shim could say nothing of, and check none is missing."""
        link.ask_states = False
        reply = await link.command("show neighbor json")
        unknown = set(self._rib.unknown(link.process))  # live lines may have told meanwhile
        try:
            listed = {
                (entry["local"]["address"], entry["peer"]["address"]): entry["fsm"].lower() == "established"
                for entry in json.loads("".join(reply.lines))
            }
        except (ValueError, KeyError, TypeError) as error:
            raise ProtocolError(f"show neighbor json: {error}") from error
        for name, session in sessions.items():
            up = listed.get((session.addresses.local, session.addresses.peer))
            if up is not None and name in unknown:
                self._rib.learn_state(name, established=up, now=time.time())
        self._deliver()
        missing = [s.name for s in sessions.values() if (s.addresses.local, s.addresses.peer) not in listed]
        if missing:
            link.ask_states = True
            raise ProtocolError(f"ExaBGP of {link.process} has not loaded {', '.join(missing)} (yet)")

    async def _observe_exports(self, link: _Link, sessions: Mapping[str, Session]) -> dict[str, Export]:
        """Ask what ExaBGP announces. Attributes are not compared: announcing again is idempotent."""
        reply = await link.command("show adj-rib out")
        found: dict[str, list[Prefix]] = {}
        for line in reply.lines:
            words = line.split()
            for name, session in sessions.items():
                if words[0] == session.addresses.peer and len(words) > 3:
                    with suppress(ValueError):
                        found.setdefault(name, []).append(Prefix.parse(words[3]))
        return {
            name: Export(tuple(sorted(prefixes)), ExportAttributes(prepend=-1))
            for name, prefixes in found.items()
        }

    async def _announce(self, link: _Link, session: Session, wanted: Export) -> None:
        """Make what ExaBGP announces equal to `wanted`; what is new waits until the session is up.

        Updates that wait in ExaBGP for a session that is down make it deaf to reloads. What it
        has announced before it keeps, and announces again by itself.
        """
        announced = link.announced.get(session.name, Export(()))
        if announced == wanted:
            return
        neighbor = f"neighbor {_selector(session)}"
        gone = [prefix for prefix in announced.prefixes if prefix not in wanted.prefixes]
        for part in _parts(gone):
            await link.command(
                f"{neighbor} withdraw attributes next-hop self nlri {' '.join(map(str, part))}"
            )
        if self._rib.phase(session.name) is not Phase.ESTABLISHED:
            kept = tuple(prefix for prefix in announced.prefixes if prefix in wanted.prefixes)
            link.announced[session.name] = replace(announced, prefixes=kept)
            return
        fresh = wanted.prefixes
        if announced.attributes == wanted.attributes:
            fresh = tuple(prefix for prefix in wanted.prefixes if prefix not in announced.prefixes)
        attributes = _attribute_words(session, wanted.attributes)
        for part in _parts(list(fresh)):
            await link.command(f"{neighbor} announce attributes {attributes} nlri {' '.join(map(str, part))}")
        link.announced[session.name] = wanted

    def _connection(self, session: Session) -> Any:
        return next(c for c in self._config.connections if c.name == session.connection)

    def _export(self, session: Session) -> Export:
        if session.name in self._silent:
            return Export(())
        attributes = self._attributes.get(session.name, ExportAttributes())
        return export_of(session, self._connection(session), attributes)

    def set_export_attributes(self, session: str, attributes: ExportAttributes) -> None:
        """Announce with further attributes (drain). Takes effect without touching the session."""
        self._attributes[session] = attributes
        self._wake(session)

    def set_silent(self, session: str, silent: bool) -> None:
        """Withdraw all that the session announces, or announce it again."""
        (self._silent.add if silent else self._silent.discard)(session)
        self._wake(session)

    def _wake(self, session: str) -> None:
        link = self._link_of(session)
        if link is None:
            raise ConfigError(f"there is no BGP session {session}")
        link.wake.set()

    async def reset(self, sessions: Sequence[Session]) -> None:
        """End sessions by a Cease (administrative reset, RFC 4486); ExaBGP connects anew.

        For a path that goes away and comes back: each side may keep a connection that the other has
        forgotten until its hold time ends.
        """
        for session in sessions:
            link = self._link_of(session.name)
            if link is None:
                continue
            try:
                await link.command(f"neighbor {_selector(session)} teardown {ADMINISTRATIVE_RESET}")
            except (ProtocolError, ConnectionError, TimeoutError) as error:
                self._log.warning("bgp.not_reset", session=session.name, reason=str(error))

    async def withdraw_all(self, timeout_s: float = 5.0) -> None:
        """Withdraw everything, for a planned stop: with graceful restart SIGTERM sends no NOTIFICATION."""
        names = [session.name for session in self._config.sessions]
        for name in names:
            self.set_silent(name, True)
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            links = [link for link in self._links.values() if link.writer is not None]
            if not any(export.prefixes for link in links for export in link.announced.values()):
                return
            await asyncio.sleep(0.05)

    # Reports

    def _sample_md5(self) -> None:
        """Remember the counters as they were when a session with a password began to connect."""
        try:
            self._md5_now = md5.read_counters((self._proc_net / "netstat").read_text())
        except OSError:
            return
        for report in self._rib.status():
            if report.phase is not Phase.ESTABLISHED:
                self._md5_base.setdefault(report.name, self._md5_now)

    def _listen_for_syns(self) -> list[socket.socket]:
        """Hear the peers' own attempts to connect, which show what password they use."""
        try:
            ears = self._open_ears()
        except OSError as error:
            self._log.warning("bgp.md5.deaf", error=str(error))
            return []
        for ear in ears:
            asyncio.get_running_loop().add_reader(ear, self._hear, ear)
        return ears

    def _hear(self, ear: socket.socket) -> None:
        try:
            source, destination, segment = md5.hear(ear)
        except (OSError, ValueError):
            return
        for session in self._config.sessions:
            local, peer = pack_address(session.addresses.local), pack_address(session.addresses.peer)
            if peer == source and destination in (None, local):
                with suppress(ValueError, ConfigError):
                    password = self._resolve(session.password) if session.password else Secret(b"")
                    verdict = md5.check(source, local, segment, password)
                    password.wipe()
                    self._syns.setdefault(session.name, Counter())[verdict] += 1

    def rib(self) -> Rib:
        """The Rib, for `routes` and status. Read only."""
        return self._rib

    def status(self) -> SpeakerStatus:
        """Report on every session and process."""
        now = time.time()
        sessions = []
        passwords = {session.name: session.password is not None for session in self._config.sessions}
        for report in self._rib.status():
            link = self._link_of(report.name)
            export = link.announced.get(report.name) if link is not None else None
            cause = self._cause(report, passwords[report.name], now)
            sessions.append(SessionReport(report, export.prefixes if export is not None else (), cause))
        processes = {
            name: ProcessReport(link.writer is not None, link.pid, link.lines, link.malformed)
            for name, link in self._links.items()
        }
        return SpeakerStatus(tuple(sessions), processes)

    def _cause(self, report: SessionStatus, password: bool, now: float) -> str:
        if report.phase is Phase.ESTABLISHED:
            return ""
        if report.seen_asn is not None and report.seen_asn != report.peer_asn:
            return f"the peer says it is AS {report.seen_asn}; peer_asn is {report.peer_asn}"
        if "Bad Peer AS" in report.reason:
            return f"the peer does not expect our AS, or is not AS {report.peer_asn} ({report.reason})"
        syns = self._syns.get(report.name, Counter())
        refused = self._md5_now - self._md5_base.get(report.name, self._md5_now)
        bad = syns[md5.Signature.BAD] + refused.failure
        if password and bad:
            return f"MD5 password differs from the peer's ({bad} TCP-MD5 failures)"
        if password and (unsigned := syns[md5.Signature.ABSENT] + refused.not_found):
            return f"the peer uses no MD5 password ({unsigned} unsigned segments); one is configured here"
        if not password and bad:
            return f"the peer uses an MD5 password ({bad} signed segments); none is configured here"
        if now - report.since >= UNANSWERED_S and self._unanswered(report.peer_address):
            return (
                "no answer to our attempts to connect: the peer does not know us, a filter drops them, "
                + ("or its MD5 password differs" if password else "or it wants an MD5 password")
            )
        return ""

    def _unanswered(self, peer: str) -> bool:
        address = pack_address(peer)
        try:
            table = (self._proc_net / ("tcp" if len(address) == 4 else "tcp6")).read_text()
        except OSError:
            return False
        return md5.unanswered(table, address)


def _started(pid: int) -> float:
    """When a process started, in seconds since boot, to a hundredth. Raises OSError."""
    text = Path(f"/proc/{pid}/stat").read_text()
    ticks = int(text.rpartition(")")[2].split()[19])  # field 22, the name in brackets is the second
    return ticks / os.sysconf("SC_CLK_TCK")


def _selector(session: Session) -> str:
    """Name one neighbour in a command."""
    return f"{session.addresses.peer} local-ip {session.addresses.local}"


def _parts(prefixes: list[Prefix]) -> list[list[Prefix]]:
    return [prefixes[i : i + NLRI_PER_COMMAND] for i in range(0, len(prefixes), NLRI_PER_COMMAND)]


def _attribute_words(session: Session, attributes: ExportAttributes) -> str:
    words = ["next-hop self", "origin igp"]
    if attributes.prepend > 0:
        path = " ".join([str(session.local_asn)] * (attributes.prepend + 1))
        words.append(f"as-path [ {path} ]")
    if attributes.med is not None:
        words.append(f"med {attributes.med}")
    if attributes.communities:
        words.append("community [ " + " ".join(f"{a}:{b}" for a, b in attributes.communities) + " ]")
    return " ".join(words)

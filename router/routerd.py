"""The router daemon: wires kernel, BGP, FIB, proofs and verdicts together. No logic of its own.

    netlink --> Reconciler --link events--> Fib <--routes-- Speaker <--> shims
                    |                        |
                    +--<-- desired state     +--> operations --> kernel
    MtuProber, SecY, neighbours --> ChannelFacts --> Verdicts --> status, log

It may die at any moment: forwarding is the kernel's, BGP is ExaBGP's, keys are keyd's. On start it
adopts the routes that it finds, asks the shims what the peers said, and only then sweeps.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from router import __version__, log  # log first: it keeps rich out of structlog
from router.accepted import accept, accepted_path, load_accepted
from router.api.keyd import ask_async, summary
from router.api.server import serve
from router.api.types import (
    ChannelStatus,
    CheckResult,
    FindingStatus,
    ObjectError,
    ProcessStatus,
    RouterStatus,
    Routes,
    RouteStatus,
    Status,
)
from router.bgp.rib import SessionChange
from router.bgp.speaker import Routes as RoutesChanged
from router.bgp.speaker import SessionReport, Speaker, Synced
from router.channel import ChannelFacts, FeatureFacts, MacsecFacts, SessionFacts, Verdict, Verdicts
from router.config.effective import Channel, EffectiveConfig, Feature, MacsecMode, Session
from router.config.findings import ConfigErrors, Finding
from router.config.impact import remade_anyway
from router.config.secrets import check_secrets, resolve_password
from router.dataplane.client import DataplaneClient
from router.dataplane.control import DataplaneControl, wanted_channels
from router.dataplane.secy import FastpathSecY
from router.errors import ConfigError, ControlError, KernelError
from router.fib import Fib
from router.fib_ops import FibOp, GroupReplace, NexthopDelete, NexthopReplace, RouteDelete, RouteReplace
from router.kernel.netlink import NetlinkKernel
from router.kernel.support import lacking_kinds
from router.model import ChannelId, CipherSuite, Nexthop, Prefix, pack_address
from router.monitor.probes import MtuProber, MtuResult
from router.monitor.probes import Path as ProbePath
from router.reconcile.desired import desired_state
from router.reconcile.kernel import FibFailure
from router.reconcile.loop import Reconciler
from router.reconcile.objects import EgressGuard, Key
from router.secy import SecY, SecyState
from router.secy_choice import SecyChoice, settle
from router.standby import KEYD_LOCK, roles
from router.status import Facts, feature_status, macsec_status, process_status, receiving, route_status
from router.suite_roll import Standing, SuiteRoll
from router.supervise import DATAPLANE, ChildSpec, ask

FACTS_INTERVAL_S: Final = 2.0
"""Verdicts are formed at least this often, and at once when a link or session changes."""
FACTS_AGE_S: Final = 1.0
"""Status asked for more often than this is answered from the last collection."""
FACTS_PAUSE_S: Final = 0.25
"""Bursts of changes are judged once."""
FIB_RETRY_S: Final = 0.5
RESYNC_PAUSE_S: Final = 0.05
"""Bursts of route notifications are answered by one look at the kernel."""
DRAIN_S: Final = 2.0
"""A session that a reload removes is first withdrawn and taken out of the groups this long."""
CHILDREN_RETRY_S: Final = 1.0
KEYD_TIMEOUT_S: Final = 1.0
SUITES_LOOK_S: Final = 1.0
SUITE_CHANGE_S: Final = 10.0
"""A device is made anew within so long, or the reconciler says why not; the next channel waits in any case."""
DATAPLANE_CHECK_S: Final = 1.0
"""The data plane is told at least this often what is wanted; the same again does nothing."""


class Daemon:
    """One router. `run()` ends when it is told to stop."""

    def __init__(
        self, run_dir: Path, state_dir: Path, config: EffectiveConfig, kernel: NetlinkKernel, logger: Any
    ) -> None:
        self._run_dir = run_dir
        self._state_dir = state_dir
        self._config = config
        self._kernel = kernel
        self._log = logger
        self._started = self._config_since = time.time()
        self._notice = ""
        self._reconciler = Reconciler(kernel)
        self._speaker = Speaker(config, run_dir, resolve=resolve_password, signal_child=self._signal_child)
        self._fib = Fib()
        self._fib_lock = asyncio.Lock()
        self._fib_retry = asyncio.Event()
        self._fib_errors: dict[str, ObjectError] = {}
        self._prober = MtuProber()
        self._verdicts = Verdicts()
        self._facts = Facts()
        self._facts_lock = asyncio.Lock()
        self._judge_now = asyncio.Event()
        self._not_valid_base: dict[str, tuple[int, int]] = {}
        self._reload_lock = asyncio.Lock()
        self._flaps: dict[str, int] = {}
        self._stop = asyncio.Event()
        self._suites: dict[str, CipherSuite] = {}
        """Agreed upon with the peers, by channel, where a configuration takes several."""
        self._roll = SuiteRoll()
        self._choices: Mapping[ChannelId, SecyChoice] = {}
        """Who does MACsec, by channel, and why."""
        self._dataplane = DataplaneClient(run_dir)
        self._dataplane_problem = ""
        """Why the data plane does nothing at all, where it does not answer."""
        self._dataplane_errors: dict[str, str] = {}
        """What it could not do, by SecY or device."""
        self._want_now = asyncio.Event()

    # Running

    async def run(self) -> None:
        """Run until SIGTERM. Raises ConfigError where BGP cannot be set up at all."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop.set)
        observed = await self._kernel.observe_fib()
        self._fib.adopt(observed.nexthops, observed.groups, observed.routes)
        self._log.info("routerd.adopted", routes=len(observed.routes), groups=len(observed.groups))
        self._choose_secys()
        await self._keep_suites()
        await self._hold_suites(None)
        self._desire()
        self._prober.set_paths(_probe_paths(self._config))
        api = await serve(self, self._run_dir / "control.sock")
        stopper = asyncio.create_task(self._stop.wait())
        try:
            async with asyncio.TaskGroup() as tasks:
                work = [
                    self._reconciler.run(),
                    self._bgp(),
                    self._prober.run(),
                    self._take_routes(),
                    self._take_links(),
                    self._resync(),
                    self._retry(),
                    self._judge(),
                    self._drive_dataplane(),
                    self._change_suites(),
                ]
                running = [tasks.create_task(coroutine) for coroutine in work]
                reloads: set[asyncio.Task[CheckResult]] = set()

                def reload() -> None:
                    task = tasks.create_task(self.reload(None))
                    reloads.add(task)
                    task.add_done_callback(reloads.discard)

                loop.add_signal_handler(signal.SIGHUP, reload)
                await stopper
                for task in running:
                    task.cancel()
        finally:
            await api.cleanup()
            await self._dataplane.close()
            (self._run_dir / "control.sock").unlink(missing_ok=True)

    async def _bgp(self) -> None:
        await self._speaker.prepare()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._speaker.run())
            await self._want_children()

    async def _want_children(self) -> None:
        """Tell the supervisor which processes BGP and the channels need, until it has heard."""
        while True:
            try:
                children = [*self._speaker.children(), *self._dataplane_child()]
                await ask(self._run_dir, {"children": [spec.to_json() for spec in children]})
            except (OSError, ValueError) as error:
                self._log.warning("routerd.no_supervisor", reason=str(error))
                await asyncio.sleep(CHILDREN_RETRY_S)
            else:
                return

    async def _signal_child(self, name: str, number: signal.Signals) -> None:
        try:
            await ask(self._run_dir, {"signal": [name, number.name]})
        except (OSError, ValueError) as error:
            self._log.warning("routerd.no_supervisor", reason=str(error))

    # The SecYs, and the data plane

    def _choose_secys(self) -> None:
        """Settle who does MACsec on each channel. Raises KernelError."""
        automatic = any(channel.secy == "auto" for channel in self._config.channels)
        self._config, choices = settle(self._config, lacking_kinds() if automatic else ())
        for name, choice in choices.items():
            if self._choices.get(name) != choice:
                self._log.info("secy.chosen", channel=name, secy=choice.secy, reason=choice.reason)
        self._choices = choices

    def _fastpath(self, config: EffectiveConfig) -> list[ChannelId]:
        return [channel.id for channel in config.channels if channel.secy == "fastpath"]

    def _dataplane_child(self) -> list[ChildSpec]:
        if not self._fastpath(self._config):
            return []
        directories = ("--run-dir", str(self._run_dir), "--state-dir", str(self._state_dir))
        return [ChildSpec(DATAPLANE, (sys.executable, "-m", "router.dataplane.process", *directories))]

    def _desire(self) -> None:
        """Have the kernel and the data plane changed to what is configured."""
        self._reconciler.set_desired(desired_state(self._with_suites(self._config)))
        self._want_now.set()

    async def _drive_dataplane(self) -> None:
        """Tell the data plane what is wanted, whenever that or the process may be new."""
        control = DataplaneControl(self._dataplane)
        while True:
            self._want_now.clear()
            config = self._with_suites(self._config)
            channels = self._fastpath(config)
            if channels:
                try:
                    errors = await control.want(wanted_channels(config, channels))
                    problem = ""
                except KernelError as error:
                    errors, problem = {}, str(error)
                if (problem, errors) != (self._dataplane_problem, self._dataplane_errors):
                    bad = problem or "; ".join(f"{name}: {reason}" for name, reason in sorted(errors.items()))
                    (self._log.warning if bad else self._log.info)(
                        "dataplane.problem" if bad else "dataplane.ok", reason=bad or None
                    )
                self._dataplane_problem, self._dataplane_errors = problem, errors
            with suppress(TimeoutError):
                await asyncio.wait_for(self._want_now.wait(), DATAPLANE_CHECK_S if channels else None)

    def _secy_of(self, channel: Channel) -> SecY:
        if channel.secy == "fastpath":
            return FastpathSecY(self._dataplane, channel.macsec_device)
        return self._kernel.secy(channel.macsec_device)

    # Routes

    async def _take_routes(self) -> None:
        queue = self._speaker.events
        while True:
            event = await queue.get()
            while True:
                match event:
                    case RoutesChanged(changes):
                        for change in changes:
                            self._fib.set_route(change.table, change.prefix, change.nexthops)
                    case Synced(reason):
                        swept = self._fib.sweep()
                        self._log.info("routerd.synced", reason=reason, swept=swept)
                    case SessionChange():
                        self._judge_now.set()
                if queue.empty():
                    break
                event = queue.get_nowait()
            await self._flush()

    async def _take_links(self) -> None:
        while True:
            event = await self._reconciler.link_events.get()
            self._fib.set_device(event.device, event.up)
            if self._reconciler.link_events.empty():
                await self._flush()
                self._judge_now.set()

    async def _resync(self) -> None:
        """Read our routes back whenever somebody else may have changed them."""
        while True:
            await self._reconciler.fib_resync.wait()
            await asyncio.sleep(RESYNC_PAUSE_S)
            self._reconciler.fib_resync.clear()
            async with self._fib_lock:
                try:
                    observed = await self._kernel.observe_fib()
                except KernelError as error:
                    self._log.warning("fib.observe_failed", reason=str(error))
                    self._fib_retry.set()
                    continue
                self._fib.resync(observed.nexthops, observed.groups, observed.routes)
                await self._apply()

    async def _retry(self) -> None:
        while True:
            await self._fib_retry.wait()
            await asyncio.sleep(FIB_RETRY_S)
            self._fib_retry.clear()
            self._reconciler.fib_resync.set()

    async def _flush(self) -> None:
        async with self._fib_lock:
            await self._apply()

    async def _apply(self) -> None:
        """Bring the kernel to what the FIB wants; what is refused is tried again from a fresh look."""
        ops = self._fib.take_outputs()
        if not ops:
            return
        failures = await self._kernel.apply_fib(ops)
        errors = {_name(failure.op): failure for failure in failures}
        now = time.time()
        self._fib_errors = {
            name: ObjectError(
                name, failure.reason, known.since if (known := self._fib_errors.get(name)) else now
            )
            for name, failure in errors.items()
        }
        if failures:
            self._log.warning(
                "fib.refused", count=len(failures), first=_name(failures[0].op), reason=failures[0].reason
            )
            self._forget(failures)
            self._fib_retry.set()

    def _forget(self, failures: Sequence[FibFailure]) -> None:
        ids: list[int] = []
        routes: list[tuple[int, Prefix]] = []
        for failure in failures:
            match failure.op:
                case NexthopReplace(id=number) | GroupReplace(id=number):
                    ids.append(number)
                case RouteReplace(table=table, prefix=prefix):
                    routes.append((table, prefix))
                case _:
                    pass
        self._fib.kernel_lost(ids, routes)

    # Configuration

    def config(self) -> dict[str, str]:
        """Return the accepted configuration: its path and its text."""
        return {
            "path": str(accepted_path(self._run_dir)),
            "text": (self._run_dir / "accepted.yaml").read_text(),
        }

    async def reload(self, path: Path | None) -> CheckResult:
        """Load a file and change over to it; refused whole where anything is wrong with it."""
        from router.config.load import load

        async with self._reload_lock:
            file = path or accepted_path(self._run_dir)
            try:
                loaded = load(file)
                text = file.read_text()
                if findings := check_secrets(loaded.effective, loaded.origins):
                    return self._refuse(file, findings)
                await self._change_over(loaded.effective)
            except ConfigErrors as error:
                return self._refuse(file, error.findings)
            except (ConfigError, OSError) as error:
                return self._refuse(file, [Finding(str(file), 0, 0, "", str(error))])
            accept(self._run_dir, file, text, loaded.effective)
            self._notice, self._config_since = "", time.time()
            with suppress(ControlError):  # it looks every second anyway
                await ask_async(self._run_dir, KEYD_TIMEOUT_S, verb="reload")
            self._log.info("config.accepted", file=str(file))
            return CheckResult(ok=True, file=str(file), findings=_shown(loaded.warnings))

    def _refuse(self, file: Path, findings: Sequence[Finding]) -> CheckResult:
        clock = time.strftime("%H:%M:%S")
        self._notice = f"{file} was refused at {clock} ({findings[0]}); the configuration before it runs on"
        self._log.warning("config.refused", file=str(file), findings=[str(finding) for finding in findings])
        return CheckResult(ok=False, file=str(file), findings=_shown(findings))

    async def _change_over(self, config: EffectiveConfig) -> None:
        """Go over to `config`. Raises ConfigError before anything has changed."""
        kept = {session.name: session for session in config.sessions}
        leaving = [s for s in self._config.sessions if kept.get(s.name) != s]
        if leaving:
            await self._drain(leaving)
        try:
            await self._speaker.reconfigure(config)
        finally:
            self._restore(leaving)
        before, self._config = self._config, config
        self._choose_secys()
        await self._hold_suites(before)
        await self._want_children()
        self._desire()
        self._prober.set_paths(_probe_paths(config))
        self._verdicts.forget([channel.id for channel in config.channels])
        self._facts = Facts()
        await self._flush()
        self._judge_now.set()

    async def _drain(self, sessions: Sequence[Session]) -> None:
        """Move traffic away from sessions that end: both directions, before the session goes."""
        for session in sessions:
            self._fib.set_nexthop(Nexthop(session.device, pack_address(session.addresses.peer)), alive=False)
            with suppress(ConfigError):
                self._speaker.set_silent(session.name, silent=True)
        await self._flush()
        await asyncio.sleep(DRAIN_S)

    def _restore(self, sessions: Sequence[Session]) -> None:
        """Let traffic come back to sessions that were drained, where there is a way."""
        for session in sessions:
            self._fib.set_nexthop(Nexthop(session.device, pack_address(session.addresses.peer)), alive=True)
            with suppress(ConfigError):
                self._speaker.set_silent(session.name, silent=False)

    async def shut_down(self, *, release: bool) -> None:
        """Withdraw from the peers; with `release` also end BGP and remove what we made."""
        self._log.info("routerd.shutdown", release=release)
        await self._speaker.withdraw_all()
        if release:
            if self._fastpath(self._config):
                with suppress(KernelError):
                    await DataplaneControl(self._dataplane).want(())
            with suppress(OSError, ValueError):
                await ask(self._run_dir, {"children": []})
            try:
                await self._reconciler.release()
            except KernelError as error:
                self._log.error("routerd.release_failed", reason=str(error))

    # Facts and verdicts

    async def _judge(self) -> None:
        while True:
            await self._collect(0.0)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._judge_now.wait(), FACTS_INTERVAL_S)
                await asyncio.sleep(FACTS_PAUSE_S)
            self._judge_now.clear()

    async def _collect(self, age_s: float) -> Facts:
        """Look at the kernel, unless the last look is younger than `age_s`; then judge all channels."""
        async with self._facts_lock:
            if time.monotonic() - self._facts.at < age_s:
                return self._facts
            config, facts = self._config, Facts()
            try:
                links = await self._kernel.link_facts()
            except KernelError as error:
                self._log.warning("routerd.links_unknown", reason=str(error))
                return self._facts
            facts.carrier = {name: link.up and link.carrier for name, link in links.items()}
            facts.up = {name: link.up and link.operstate in {"up", "unknown"} for name, link in links.items()}
            for channel in config.channels:
                facts.secys[channel.macsec_device] = await self._secy(channel, links)
            for feature in (f for c in config.connections for f in c.features):
                with suppress(KernelError):
                    if feature.device in links:
                        facts.neighbours[feature.device] = await self._kernel.neighbours(feature.device)
            await self._ask_keyd(facts)
            facts.at = time.monotonic()
            self._facts = facts
            reports = {r.rib.name: r for r in self._speaker.status().sessions}
            for channel in config.channels:
                change = self._verdicts.update(
                    channel.id, self._channel_facts(channel, facts, reports), time.time()
                )
                if change is not None:
                    self._log.info(
                        "channel.verdict",
                        channel=channel.id,
                        verdict=change.verdict.value,
                        reason=change.reason or None,
                    )
            return facts

    async def _ask_keyd(self, facts: Facts) -> None:
        """Take what the key daemon says, and have a device made anew that needs another suite."""
        with suppress(ControlError, KeyError, TypeError):
            answer = await ask_async(self._run_dir, KEYD_TIMEOUT_S, verb="status")
            suites = {}
            for name, keys in answer["channels"].items():
                if keys["kind"] == "mka":
                    facts.keys[name] = summary(keys)
                    if keys["wanted_suite"]:
                        suites[name] = CipherSuite.parse(keys["wanted_suite"])
            self._want_suites(suites)

    async def _keep_suites(self) -> None:
        """Take the suites of the devices that are there: our restart must not make them anew."""
        for channel in self._config.channels:
            if len(channel.macsec.suites) > 1:
                with suppress(KernelError):
                    state = await self._secy_of(channel).observe()
                    self._suites[channel.id] = state.suite

    def _want_suites(self, suites: Mapping[str, CipherSuite]) -> None:
        """Remember which suites were agreed upon, and desire devices that have them."""
        changed = {name: suite for name, suite in suites.items() if self._suites.get(name) is not suite}
        if changed:
            self._suites |= changed
            for name in changed:
                self._roll.let_go(ChannelId(name))  # the peer has changed already
            self._log.warning("secy.rebuilt_for_suite", suites={n: str(s) for n, s in changed.items()})
            self._desire()

    def _with_suites(self, config: EffectiveConfig) -> EffectiveConfig:
        """Return the configuration with the suites that the channels are to have now.

        One that was agreed upon, where it is acceptable; the one it has, while it waits for its turn.
        """
        channels = []
        for channel in config.channels:
            suite = self._roll.held.get(channel.id, self._wanted_suite(channel))
            channels.append(replace(channel, macsec=replace(channel.macsec, suite=suite)))
        return replace(config, channels=tuple(channels))

    def _wanted_suite(self, channel: Channel) -> CipherSuite:
        agreed = self._suites.get(channel.id)
        if agreed in channel.macsec.suites and channel.macsec.static is None:
            assert agreed is not None
            return agreed
        return channel.macsec.suite

    # From one suite to another

    async def _hold_suites(self, before: EffectiveConfig | None) -> None:
        """Have channels that are there with another suite than the wanted one wait for their turn.

        `before` is what ran until now; None at start, where what is found may be a change half done.
        A channel whose device is made anew for another reason too waits for nothing.
        """
        self._roll.forget()
        known = {channel.id: channel for channel in before.channels} if before is not None else {}
        for channel in self._config.channels:
            was = known.get(channel.id)
            if was is not None and was.macsec.suites != channel.macsec.suites:
                self._suites.pop(channel.id, None)  # what was agreed upon was agreed upon under other terms
            if channel.macsec.static is not None or not channel.enabled:
                continue
            if before is not None and (was is None or remade_anyway(was, channel)):
                continue
            with suppress(KernelError):
                state = await self._secy_of(channel).observe()
                if state.suite is not self._wanted_suite(channel) and state.operational:
                    self._roll.hold(channel.id, state.suite)
        if self._roll.held:
            self._log.info("suites.held", channels={c: str(s) for c, s in self._roll.held.items()})

    async def _change_suites(self) -> None:
        """Make the SecYs of channels that wait for another suite anew, each when its turn has come."""
        while True:
            await asyncio.sleep(SUITES_LOOK_S)
            if not self._roll.held:
                continue
            standings = {}
            for channel in self._config.channels:
                judged = self._verdicts.get(channel.id)
                state = self._facts.secys.get(channel.macsec_device)
                if judged is None or state is None:
                    continue
                carries = judged.verdict in {Verdict.UP, Verdict.DEGRADED}
                standings[channel.id] = Standing(carries, judged.since)
                if carries and state.suite is self._wanted_suite(channel):
                    self._roll.arrived(channel.id)
            turn = self._roll.next(standings, time.time())
            if turn is not None:
                async with self._reload_lock:
                    await self._change_suite(turn, drain=standings[turn].carries)

    async def _change_suite(self, name: ChannelId, *, drain: bool) -> None:
        """Move the traffic of a channel to the others, then have its SecY made anew."""
        if name not in self._roll.held:
            return  # a reload came first
        sessions = [session for session in self._config.sessions if session.channel == name]
        channel = self._config.channel(name)
        suite = self._wanted_suite(channel)
        self._log.warning("suite.changes", channel=name, was=str(self._roll.held[name]), now=str(suite))
        try:
            if drain:
                await self._drain(sessions)
            # While the peer can still hear it: its device goes too, and its side of the sessions with it.
            await self._speaker.reset(sessions)
            self._roll.let_go(name)
            self._desire()
            deadline = time.monotonic() + SUITE_CHANGE_S
            while time.monotonic() < deadline:
                with suppress(KernelError):
                    if (await self._secy_of(channel).observe()).suite is suite:
                        break
                await asyncio.sleep(FACTS_PAUSE_S)
            # A session that came back at once was left without a path, and would look alive until its hold time.
            await self._speaker.reset(sessions)
        finally:
            self._verdicts.forget([name])
            self._facts = Facts()
            self._restore(sessions)
            await self._flush()
            self._judge_now.set()

    async def _secy(self, channel: Channel, links: Mapping[str, Any]) -> SecyState | None:
        if channel.secy != "fastpath" and channel.macsec_device not in links:
            return None
        try:
            return await self._secy_of(channel).observe()
        except KernelError:
            return None

    def _channel_facts(
        self, channel: Channel, facts: Facts, reports: Mapping[str, SessionReport]
    ) -> ChannelFacts:
        secy = facts.secys.get(channel.macsec_device)
        keys = facts.keys.get(channel.id)
        features = tuple(
            FeatureFacts(
                connection=feature.connection,
                device=feature.device,
                present=feature.device in facts.up,
                up=facts.up.get(feature.device, False),
                mtu_problem=self._mtu_problem(feature),
                sessions=tuple(
                    self._session_facts(reports[session.name], warn)
                    for session in feature.sessions
                    if session.name in reports
                ),
            )
            for feature, warn in self._features(channel)
        )
        return ChannelFacts(
            enabled=channel.enabled,
            port=channel.port,
            port_present=channel.port in facts.carrier,
            carrier=facts.carrier.get(channel.port, False),
            errors=tuple(self._errors_of(channel, features)),
            macsec=MacsecFacts(
                present=secy is not None or channel.macsec_device in facts.up,
                operational=secy is not None and secy.operational,
                receiving=receiving(secy),
                in_ok=secy.counters.in_pkts_ok if secy else 0,
                in_not_valid=self._not_valid(channel.macsec_device, secy),
                keys_reason=keys.reason if keys else "",
                unprotected=secy.unprotected if secy else bool(keys and keys.port == "unprotected"),
            ),
            features=features,
        )

    def _features(self, channel: Channel) -> list[tuple[Feature, int]]:
        return [
            (feature, connection.bgp.prefix_warn)
            for connection in self._config.connections
            for feature in connection.features
            if feature.channel == channel.id
        ]

    @staticmethod
    def _session_facts(report: SessionReport, warn: int) -> SessionFacts:
        rib = report.rib
        reason = report.cause or rib.reason
        return SessionFacts(rib.name, rib.family, rib.phase.value, reason, rib.received, rib.accepted, warn)

    def _errors_of(self, channel: Channel, features: Sequence[FeatureFacts]) -> list[str]:
        devices = {channel.port, channel.macsec_device, *(feature.device for feature in features)}
        if channel.lag:
            devices.update(channel.lag.members)
        errors = [
            f"{key}: {error.reason}"
            for key, error in self._reconciler.errors.items()
            if error.attempts and devices & set(key.name.split())
        ]
        if channel.secy == "fastpath":
            named = [
                f"{name}: {why}" for name, why in sorted(self._dataplane_errors.items()) if name in devices
            ]
            if problem := self._dataplane_problem or "; ".join(named):
                errors.insert(0, f"data plane: {problem}")
        return errors

    def _mtu_problem(self, feature: Feature) -> str:
        for path, result in self._prober.results().items():
            if path.device == feature.device and result.state == "too small":
                return f"MTU: {result.configured} is configured, {result.passes} passes to {path.peer}"
        return ""

    def _not_valid(self, device: str, secy: SecyState | None) -> int:
        """Count the frames that failed validation since one last passed."""
        if secy is None:
            self._not_valid_base.pop(device, None)
            return 0
        ok, bad = secy.counters.in_pkts_ok, secy.counters.in_pkts_not_valid
        base_ok, base_bad = self._not_valid_base.get(device, (ok, bad))
        if ok != base_ok or bad < base_bad:
            base_ok, base_bad = ok, bad
        self._not_valid_base[device] = base_ok, base_bad
        return bad - base_bad

    # Status

    async def status(self) -> Status:
        """Collect everything that `lastmile status` shows."""
        facts = await self._collect(FACTS_AGE_S)
        reports = {report.rib.name: report for report in self._speaker.status().sessions}
        proofs = self._prober.results()
        errors = [
            ObjectError(str(key), error.reason, error.since) for key, error in self._reconciler.errors.items()
        ]
        router = self._config.router
        return Status(
            router=RouterStatus(
                name=router.name,
                asn=router.asn,
                router_id=router.router_id,
                version=__version__,
                config=str(accepted_path(self._run_dir)),
                config_since=self._config_since,
                since=self._started,
                notice=self._notice or self._roll.notice,
            ),
            channels=[self._channel_status(c, facts, reports, proofs) for c in self._config.channels],
            errors=[*errors, *self._fib_errors.values()],
            processes=await self._processes(),
        )

    async def _processes(self) -> list[ProcessStatus]:
        try:
            children = (await ask(self._run_dir, {"list": True}))["children"]
        except (OSError, ValueError):
            children = {}
        return process_status(children, roles(self._run_dir / KEYD_LOCK))

    def _channel_status(
        self,
        channel: Channel,
        facts: Facts,
        reports: Mapping[str, SessionReport],
        proofs: Mapping[ProbePath, MtuResult],
    ) -> ChannelStatus:
        standing = self._verdicts.get(channel.id)
        guard = Key(EgressGuard.KIND, channel.lag.members[0] if channel.lag else channel.port)
        return ChannelStatus(
            name=channel.id,
            interconnect=channel.interconnect,
            site=channel.site,
            verdict=standing.verdict.value if standing else "down",
            reason=standing.reason if standing else "not looked at yet",
            since=standing.since if standing else self._started,
            port=channel.port,
            carrier=facts.carrier.get(channel.port, False),
            guarded=(
                channel.macsec.mode is MacsecMode.MUST_SECURE  # else the guard passes frames in clear too
                and guard in self._reconciler.observed.objects
                and guard not in self._reconciler.errors
            ),
            macsec=macsec_status(
                channel,
                self._choices.get(channel.id),
                facts.secys.get(channel.macsec_device),
                facts.keys.get(channel.id),
            ),
            connections=[
                feature_status(feature, facts, reports, proofs) for feature, _ in self._features(channel)
            ],
        )

    def _sessions_of(self, table: int) -> list[Session]:
        return [
            session
            for connection in self._config.connections
            if connection.table == table
            for feature in connection.features
            for session in feature.sessions
        ]

    def routes(self, *, prefix: str | None, limit: int) -> Routes:
        """Return the Loc-RIB, or one prefix of it with the paths that were refused."""
        try:
            only = Prefix.parse(prefix) if prefix else None
        except ValueError as error:
            raise ConfigError(str(error)) from None
        groups = self._fib.installed()
        rows: list[RouteStatus] = []
        total = 0
        rib = self._speaker.rib()
        for table, decisions in sorted(rib.locrib().items()):
            sessions = self._sessions_of(table)
            for key in decisions if only is None else [only]:
                total += 1
                if len(rows) < limit:
                    rows.append(
                        route_status(
                            sessions, rib, (table, key), decisions.get(key), groups.get((table, key))
                        )
                    )
        if only is not None:
            rows = [row for row in rows if row.paths]
            total = len(rows)
        return Routes(total=total, routes=rows)


def _shown(findings: Sequence[Finding]) -> list[FindingStatus]:
    return [FindingStatus(f.file, f.line, f.column, f.path, f.message, f.severity.value) for f in findings]


def _name(op: FibOp) -> str:
    match op:
        case NexthopReplace(number, nexthop):
            return f"nexthop {number} via {nexthop}"
        case GroupReplace(number):
            return f"nexthop group {number}"
        case NexthopDelete(number):
            return f"nexthop {number}"
        case RouteReplace(table, prefix) | RouteDelete(table, prefix):
            return f"route {prefix} table {table}"


def _probe_paths(config: EffectiveConfig) -> list[ProbePath]:
    enabled = {channel.id for channel in config.channels if channel.enabled}
    return [
        ProbePath(feature.device, pair.local, pair.peer, pair.afi, connection.mtu)
        for connection in config.connections
        for feature in connection.features
        if feature.channel in enabled
        for pair in feature.addresses
    ]


async def _run(config: Path, run_dir: Path, state_dir: Path, logger: Any) -> int:
    if not (run_dir / "accepted.yaml").exists():
        from router.config.load import load

        accept(run_dir, config, config.read_text(), load(config).effective)
    accepted = load_accepted(run_dir)
    # What is loaded stays; a full table is young garbage for a moment and must not be searched for it.
    gc.freeze()
    gc.set_threshold(200_000, 50, 1000)
    kernel = await NetlinkKernel.open()
    try:
        await Daemon(run_dir, state_dir, accepted, kernel, logger).run()
    finally:
        await kernel.close()
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m router.routerd --config FILE --run-dir DIR --state-dir DIR`."""
    parser = argparse.ArgumentParser(prog="lastmile-routerd")
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("--run-dir", required=True, type=Path)
    parser.add_argument("--state-dir", required=True, type=Path)
    options = parser.parse_args(argv)
    logger = log.configure("routerd")
    try:
        return asyncio.run(_run(options.config, options.run_dir, options.state_dir, logger))
    except (ConfigError, KernelError, OSError) as error:
        logger.error("routerd.cannot_run", reason=str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main())

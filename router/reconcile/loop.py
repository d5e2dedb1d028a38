"""Keep the kernel as it must be: observe, plan, apply, on every notification and on a timer.

First start, reload, failure and drift are this one path. An object that the kernel refuses is in
error with a reason and a since, is tried again with growing pauses (at once where its device
changed), and everything that does not stand on it goes on. Nothing is removed when the process
ends; `release()` removes all that carries our mark.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import structlog

from router.errors import KernelError, Unsupported
from router.fib_ops import FibOp, NexthopDelete, RouteDelete
from router.reconcile.diff import Action, Plan, Verb, plan
from router.reconcile.kernel import AddressEvent, Event, EventsLost, FibEvent, Kernel, LinkEvent
from router.reconcile.objects import (
    ControlPlaneRules,
    DesiredState,
    EgressGuard,
    Key,
    LinkFacts,
    ObservedState,
    PortLink,
    Sysctl,
)

TIMER_S = 1.0
"""A full look at the kernel at least this often."""
DEBOUNCE_S = 0.005
"""Notifications come in bursts: wait this long for the rest of one."""
REPEATS_MAX = 20
"""After so many looks in a row at which the same thing was wrong again, somebody fights with us."""
RETRY_FIRST_S = 0.5
RETRY_LAST_S = 30.0


@dataclass(frozen=True, slots=True)
class ObjectError:
    """Why an object is not as it must be."""

    reason: str
    since: float
    """Wall-clock time in seconds since the epoch at which the error began."""
    attempts: int
    """How often the kernel refused; 0 where the object only waits for another one."""
    retry_at: float
    """Monotonic time before which it is not tried again."""
    unsupported: bool = False
    """This kernel cannot do it at all: a limit of the machine rather than a fault."""


class Reconciler:
    """Drives one kernel to one desired state.

    `set_desired` gives it work; `run` does it until cancelled; `link_events` and `fib_resync` tell
    the daemon what it must know about channels and routes.
    """

    def __init__(
        self,
        kernel: Kernel,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._kernel = kernel
        self._clock = clock
        self._wall = wall
        self._log = structlog.get_logger().bind(part="reconcile")
        self._desired = DesiredState()
        self._wake = asyncio.Event()
        self._lock = asyncio.Lock()
        self._observed = ObservedState()
        self._errors: dict[Key, ObjectError] = {}
        self._repeats: dict[Key, int] = {}
        """How often in a row an object was put right, and was not right at the next look."""
        self._up: dict[str, bool] = {}
        self._links_known = False
        """Notifications tell every change of a link. A look at all of them is needed only first, and
        where some were lost; else it would overtake notifications that wait to be read."""
        self.link_events: asyncio.Queue[LinkEvent] = asyncio.Queue()
        """One event per change of a device's state; the first look reports every device."""
        self.fib_resync = asyncio.Event()
        """Set where routes or nexthops may be missing in the kernel. The daemon clears it."""
        self.settled = asyncio.Event()
        """Set while the last cycle found nothing to do, or only what is in error."""

    # -- what the daemon sees

    @property
    def errors(self) -> Mapping[Key, ObjectError]:
        """Objects in error."""
        return self._errors

    @property
    def observed(self) -> ObservedState:
        """What the last cycle saw, before it changed anything."""
        return self._observed

    def set_desired(self, desired: DesiredState) -> None:
        """Change what must be true; takes effect at once."""
        self._desired = desired
        self.settled.clear()
        self._wake.set()

    async def preview(self, desired: DesiredState) -> Plan:
        """Return what `set_desired` would do now."""
        return plan(desired, await self._kernel.observe(desired))

    # -- work

    async def run(self) -> None:
        """Reconcile until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch(), name="reconcile-watch")
            tasks.create_task(self._repeat(), name="reconcile-cycle")

    async def _watch(self) -> None:
        while True:
            for event in await self._kernel.next_events():
                self._take(event)
            self._wake.set()

    def _take(self, event: Event) -> None:
        match event:
            case LinkEvent(device, up, at):
                self._note_link(device, up=up, at=at)
                for key, error in self._errors.items():
                    if device in key.name.split():
                        self._errors[key] = replace(error, retry_at=at)
            case FibEvent() | EventsLost() | AddressEvent():
                self.fib_resync.set()
            case _:
                pass
        if isinstance(event, EventsLost):
            self._links_known = False
            self._log.warning("kernel.notifications_lost")

    def _note_link(self, device: str, *, up: bool, at: float) -> None:
        if self._up.get(device) is up:
            return
        self._up[device] = up
        self.link_events.put_nowait(LinkEvent(device, up, at))
        if up:
            # The kernel deleted this device's nexthops when it went down, and does not tell.
            self.fib_resync.set()

    async def _repeat(self) -> None:
        while True:
            try:
                await self.cycle()
            except KernelError as error:
                # Observing failed as a whole: nothing is known, so nothing is done.
                self._log.error("kernel.observe_failed", reason=str(error))
            try:
                async with asyncio.timeout(TIMER_S):
                    await self._wake.wait()
                await asyncio.sleep(DEBOUNCE_S)
            except TimeoutError:
                pass
            self._wake.clear()

    async def cycle(self) -> Plan:
        """Observe, plan and apply once; return the plan. Raises KernelError if observing fails."""
        async with self._lock:
            desired = self._desired
            self._observed = await self._kernel.observe(desired)
            now = self._clock()
            if not self._links_known:
                self._links_known = True
                for facts in self._observed.links.values():
                    self._note_link(facts.name, up=_passes(facts), at=now)
                for device in self._up.keys() - self._observed.links.keys():
                    self._note_link(device, up=False, at=now)
            steps = plan(desired, self._observed)
            pending = {action.key for action in steps.actions}
            for key in [k for k in self._errors if k not in pending]:
                self._log.info("kernel.recovered", object=str(key))
                del self._errors[key]
            self._repeats = {key: count for key, count in self._repeats.items() if key in pending}
            applied = [await self._step(action) for action in steps.actions]
            if any(applied):
                self.settled.clear()
                self._wake.set()  # look again: what was applied must be what is there
                if any(
                    done and not isinstance(action.object, Sysctl | ControlPlaneRules)
                    for done, action in zip(applied, steps.actions, strict=True)
                ):
                    self.fib_resync.set()
            elif desired is self._desired:
                self.settled.set()
            return steps

    async def _step(self, action: Action) -> bool:
        """Apply one action if it may be; tell whether it was."""
        key = action.key
        if action.verb not in {Verb.DELETE, Verb.SHUT}:
            for need in action.object.needs:
                if need in self._errors:
                    self._fail(key, f"waits for {need}: {self._errors[need].reason}", attempts=0)
                    return False
        known = self._errors.get(key)
        if known and known.attempts and self._clock() < known.retry_at:
            return False
        try:
            await self._kernel.apply(action)
        except KernelError as error:
            attempts = known.attempts + 1 if known else 1
            self._fail(key, str(error), attempts=attempts, unsupported=isinstance(error, Unsupported))
            if isinstance(action.object, EgressGuard) and action.verb is not Verb.DELETE:
                await self._shut(action.object.device)
            return False
        self._repeats[key] = self._repeats.get(key, 0) + 1
        if self._repeats[key] >= REPEATS_MAX:
            reason = (
                f"does not stay as it was set ({action.was or 'removed again'}): another program changes it"
            )
            self._fail(key, reason, attempts=self._repeats[key] - REPEATS_MAX + 1)
            return False
        if known:
            del self._errors[key]
        self._log.info("kernel.applied", action=action.describe())
        return True

    async def _shut(self, device: str) -> None:
        """Fail closed: a channel's port that cannot be guarded goes down."""
        facts = self._observed.links.get(device)
        if facts is None or not facts.up:
            return
        port = PortLink(device, facts.mtu, up=False, guarded=True)
        try:
            await self._kernel.apply(Action(Verb.SHUT, port))
        except KernelError as error:
            self._log.critical("kernel.unguarded_port_up", device=device, reason=str(error))
        else:
            self._log.warning("kernel.port_shut", device=device, reason="it cannot be guarded")

    def _fail(self, key: Key, reason: str, *, attempts: int, unsupported: bool = False) -> None:
        known = self._errors.get(key)
        doublings = min(max(attempts - 1, 0), 10)
        pause = RETRY_LAST_S if unsupported else min(RETRY_FIRST_S * 2**doublings, RETRY_LAST_S)
        since = known.since if known else self._wall()
        self._errors[key] = ObjectError(reason, since, attempts, self._clock() + pause, unsupported)
        if known is None or known.reason != reason:
            self._log.warning("kernel.refused", object=str(key), reason=reason)

    async def release(self) -> Plan:
        """Remove everything that carries our mark: routes, devices, addresses, rules, guards.

        A channel's port is left down, since nothing guards it any more. Raises KernelError after
        everything that could be removed has been.
        """
        async with self._lock:
            self._desired = DesiredState()
            fib = await self._kernel.observe_fib()
            ops: list[FibOp] = [RouteDelete(table, prefix) for table, prefix in fib.routes]
            ops += [NexthopDelete(identifier) for identifier in (*fib.groups, *fib.nexthops)]
            failures = [f.reason for f in await self._kernel.apply_fib(ops)]
            steps = plan(DesiredState(), await self._kernel.observe(DesiredState()))
            for action in steps.actions:
                try:
                    await self._kernel.apply(action)
                except KernelError as error:
                    failures.append(str(error))
            self._errors.clear()
            if failures:
                raise KernelError(f"{len(failures)} objects could not be removed: {'; '.join(failures[:5])}")
            return steps


def _passes(facts: LinkFacts) -> bool:
    """Tell whether frames can pass; the kernel calls a device without operstate `unknown`."""
    return facts.up and facts.carrier and facts.operstate in {"up", "unknown"}

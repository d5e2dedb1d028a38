"""Endpoints and an imaginary wire: KaYs with SecYs of memory, in a time that costs nothing.

`World` is the wire, the clock and the referee. The referee knows all SecYs and raises `Violation`
when a rule is broken that no single one could see: two SAs that send under one nonce, a key
installed twice, a frame in clear.
"""

import heapq
from collections import deque
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from random import Random

from router.mka.events import (
    ConfigureSecy,
    CreateReceiveSa,
    CreateReceiveSc,
    CreateTransmitSa,
    DeleteReceiveSa,
    DeleteReceiveSc,
    DeleteTransmitSa,
    EnableReceive,
    EnableTransmit,
    Fact,
    PortState,
    SendMkpdu,
    SetControlledPort,
    UpdateReceivePn,
)
from router.mka.kay import Kay, KayConfig, KeyEntry
from router.model import CipherSuite, Sci, Secret
from router.secy import ReceiveScState, SaKey, SaState, SecyCounters, SecyState

CAK = Secret(bytes(range(32)))
CKN = b"\x01\x02\x03"
KEY = KeyEntry(CKN, CAK)


class Violation(AssertionError):  # noqa: N818 - reads as what happened
    """A rule that holds between SecYs was broken."""


def sci_of(number: int, port: int = 1) -> Sci:
    return Sci.parse(f"02:00:00:00:00:{number:02x}/{port}")


def copied(key: SaKey) -> SaKey:
    """A SecY keeps a copy of the SAK: the KaY wipes its own."""
    return replace(key, sak=Secret(key.sak.reveal()))


@dataclass
class Sa:
    key: SaKey
    token: int
    pn: int = 1
    active: bool = False


@dataclass
class FakeSecy:
    """A SecY of memory with the kernel's manners: EBUSY for a taken AN, one suite at a time."""

    world: "World"
    sci: Sci
    suite: CipherSuite | None = None
    mixed_suites: bool = False
    transmit: dict[int, Sa] = field(default_factory=dict)
    receive: dict[Sci, dict[int, Sa]] = field(default_factory=dict)
    encoding_an: int = 0
    port: PortState = PortState.CLOSED
    refuse: Callable[[object], str | None] = lambda _operation: None
    """Says why an operation fails; None lets it pass."""
    log: list[object] = field(default_factory=list)

    def apply(self, operation) -> str | None:
        reason = self.refuse(operation)
        if reason is None:
            reason = self._apply(operation)
        self.log.append((operation, reason))
        return reason

    def _apply(self, operation) -> str | None:
        match operation:
            case ConfigureSecy(suite=suite):
                if suite is not self.suite and not self.mixed_suites:
                    if self.transmit or any(self.receive.values()):
                        raise Violation("the suite changes under installed SAs")
                    self.receive.clear()
                self.suite = suite
            case CreateReceiveSc(sci=sci):
                self.receive.setdefault(sci, {})
            case DeleteReceiveSc(sci=sci):
                self.receive.pop(sci, None)
            case CreateReceiveSa(sci=sci, an=an, key=key, lowest_pn=pn):
                if sci not in self.receive:
                    return "ENODEV: no such SC"
                if an in self.receive[sci]:
                    return None if self.receive[sci][an].key == key else "EBUSY: AN in use"
                self.world.referee_install(self, key, "rx", sci)
                self.receive[sci][an] = Sa(copied(key), next(self.world.tokens), pn)
            case EnableReceive(sci=sci, an=an):
                if an not in self.receive.get(sci, {}):
                    return "ENODEV: no such SA"
                self.receive[sci][an].active = True
                self.world.referee_used(self, self.receive[sci][an].key, "rx", sci)
            case UpdateReceivePn(sci=sci, an=an, lowest_pn=pn):
                if an not in self.receive.get(sci, {}):
                    return "ENODEV: no such SA"
                self.receive[sci][an].pn = max(pn, self.receive[sci][an].pn)
            case DeleteReceiveSa(sci=sci, an=an):
                self.receive.get(sci, {}).pop(an, None)
            case CreateTransmitSa(an=an, key=key, next_pn=pn):
                if an in self.transmit:
                    return None if self.transmit[an].key == key else "EBUSY: AN in use"
                self.transmit[an] = Sa(copied(key), next(self.world.tokens), pn)
            case EnableTransmit(an=an):
                if an not in self.transmit:
                    return "ENODEV: no such SA"
                self.transmit[an].active = True
                self.encoding_an = an
                self.world.referee_transmit(self, self.transmit[an])
            case DeleteTransmitSa(an=an):
                self.transmit.pop(an, None)
            case SetControlledPort(state=state):
                self.port = state
            case _:
                raise AssertionError(operation)
        return None

    def send(self):
        """The SecTAG and nonce of a data frame, None where nothing leaves."""
        if self.port is PortState.UNPROTECTED:
            return "clear"
        sa = self.transmit.get(self.encoding_an)
        if self.port is not PortState.SECURED or sa is None or not sa.active:
            return None
        sa.pn += 1
        return self.sci, self.encoding_an, sa.key, sa.pn - 1

    def accepts(self, frame) -> bool:
        sci, an, key, pn = frame
        sa = self.receive.get(sci, {}).get(an)
        if self.port is not PortState.SECURED or sa is None or not sa.active or sa.key != key or pn < sa.pn:
            return False
        sa.pn = pn
        return True

    def state(self, **counters: int) -> SecyState:
        def sas(table: dict[int, Sa]) -> tuple[SaState, ...]:
            return tuple(
                SaState(an, sa.active, sa.pn, sa.key.key_id, sa.key.ssci) for an, sa in sorted(table.items())
            )

        sa = self.transmit.get(self.encoding_an)
        return SecyState(
            "macsec0",
            self.sci,
            self.suite or CipherSuite.GCM_AES_128,
            sa is not None and sa.active,
            self.encoding_an,
            sas(self.transmit),
            tuple(ReceiveScState(sci, True, sas(table)) for sci, table in self.receive.items()),
            SecyCounters(**counters),
            unprotected=self.port is PortState.UNPROTECTED,
        )


class Node:
    """One station: KaY, SecY and the driver between them."""

    def __init__(self, world: "World", number: int, config: KayConfig, keys=(KEY,), *, kay=True):
        self.world = world
        self.number = number
        self.config = config
        self.keys = tuple(keys)
        self.secy = FakeSecy(world, config.sci, mixed_suites=config.mixed_suites)
        self.facts: list[Fact] = []
        self.sent: list[bytes] = []
        self.used_keys: set[bytes] = set()
        self.kay: Kay | None = None
        self.pumping = False
        self.frozen = False
        self.backlog: list[bytes] = []
        self.secy_delay_s = 0.0
        self.operations: deque[object] = deque()
        self.operating = False
        if kay:
            self.start()

    def start(self, *, adopt=False, handover=None):
        """Start the key agreement process; with `adopt`, over the SAs that the former one left."""
        self.kay = Kay(
            self.config, now=self.world.now, entropy=self.world.random.randbytes, used_keys=self.used_keys
        )
        if adopt:
            self.kay.adopt(self.secy.state(), self.world.now, handover)
        else:
            self.secy.transmit.clear()
            self.secy.receive.clear()
            self.secy.port = PortState.CLOSED
        self.kay.set_keys(self.keys, self.world.now)
        self.pump()

    def kill(self):
        """The process is gone; what it put into the SecY stays."""
        self.kay = None
        self.backlog.clear()
        self.operations.clear()
        self.operating = False

    def pump(self):
        """Drain the outputs in order and answer the SecY's operations, as the driver does."""
        if self.pumping:
            return
        self.pumping = True
        while self.kay is not None and (outputs := self.kay.take_outputs()):
            for output in outputs:
                match output:
                    case SendMkpdu(frame=frame):
                        self.sent.append(frame)
                        self.world.transmit(self, frame)
                    case Fact():
                        self.facts.append(output)
                        if output.name == "sak.known":
                            self.used_keys.add(bytes.fromhex(dict(output.fields)["key_id"]))
                    case _ if self.secy_delay_s:
                        self.operations.append(output)
                        if not self.operating:
                            self._operate_later()
                    case _:
                        self._operate(output)
        self.pumping = False

    def _operate(self, operation):
        reason = self.secy.apply(operation)
        if reason is None:
            self.kay.succeeded(operation.id, self.world.now)
        else:
            self.kay.failed(operation.id, reason, self.world.now)

    def _operate_later(self):
        """One operation after the other takes its time; what a killed process had ordered is never done."""
        kay = self.kay
        self.operating = True

        def operate():
            if self.kay is not kay:
                return
            if not self.frozen:
                self._operate(self.operations.popleft())
                self.pump()
            self.operating = False
            if self.operations:
                self._operate_later()

        self.world.at(self.world.now + self.secy_delay_s, operate)

    def freeze(self):
        """SIGSTOP: no timer runs, frames wait in the socket."""
        self.frozen = True

    def thaw(self):
        """SIGCONT: the timer is late, then the backlog is read."""
        self.frozen = False
        if self.kay is not None:
            self.do(lambda kay: kay.handle_timer(self.world.now))
        backlog, self.backlog = self.backlog, []
        for frame in backlog:
            self.receive(frame)

    def receive(self, frame: bytes):
        if self.frozen:
            self.backlog.append(frame)
        elif self.kay is not None:
            self.kay.receive(frame, self.world.now)
            self.pump()

    def do(self, action):
        """Call something on the KaY and carry out what follows."""
        assert self.kay is not None
        action(self.kay)
        self.pump()

    def set_keys(self, *keys):
        self.keys = keys
        self.do(lambda kay: kay.set_keys(keys, self.world.now))

    def observe(self, **counters):
        self.do(lambda kay: kay.observe(self.secy.state(**counters), self.world.now))

    @property
    def snapshot(self):
        assert self.kay is not None
        return self.kay.snapshot(self.world.now)

    @property
    def ki(self):
        current = self.snapshot.current
        return current.ki if current else None

    def named(self, name):
        return [dict(fact.fields) for fact in self.facts if fact.name == name]


@dataclass
class World:
    """The wire between all nodes, and the referee."""

    random: Random = field(default_factory=lambda: Random(1))
    now: float = 1000.0
    latency_s: float = 0.001
    nodes: list[Node] = field(default_factory=list)
    fate: Callable[[Node, Node, bytes], list[float]] | None = None
    """Delays, in seconds, of the copies of a frame that arrive; empty is loss."""
    tokens: count = field(default_factory=count)
    events: list = field(default_factory=list)
    order: count = field(default_factory=count)
    senders: dict = field(default_factory=dict)
    receivers: dict = field(default_factory=dict)

    def add(self, number: int, keys=(KEY,), **config) -> Node:
        node = Node(self, number, KayConfig(sci=config.pop("sci", sci_of(number)), **config), keys)
        self.nodes.append(node)
        return node

    def transmit(self, sender: Node, frame: bytes):
        for node in self.nodes:
            if node is not sender:
                delays = [self.latency_s] if self.fate is None else self.fate(sender, node, frame)
                for delay in delays:
                    self.at(self.now + delay, lambda node=node: node.receive(frame))

    def at(self, time: float, action: Callable[[], None]):
        heapq.heappush(self.events, (time, next(self.order), action))

    def next_event(self) -> float | None:
        times = [node.kay.next_timer() for node in self.nodes if node.kay is not None and not node.frozen]
        times.append(self.events[0][0] if self.events else None)
        return min((time for time in times if time is not None), default=None)

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> float:
        """Let time pass, at most so many seconds or until something holds; return how long it took."""
        start, end = self.now, self.now + seconds
        while until is None or not until():
            time = self.next_event()
            if time is None or time > end:
                self.now = end
                break
            self.now = max(self.now, time)
            while self.events and self.events[0][0] <= self.now:
                heapq.heappop(self.events)[2]()
            for node in self.nodes:
                timer = node.kay.next_timer() if node.kay is not None and not node.frozen else None
                if timer is not None and timer <= self.now:
                    node.do(lambda kay: kay.handle_timer(self.now))
        return self.now - start

    # ---------------------------------------------------------------------- referee

    def referee_transmit(self, secy: FakeSecy, sa: Sa):
        """No two SAs ever send under the same key and the same SSCI or SCI: that repeats nonces."""
        key = sa.key
        nonce = (key.sak.reveal(), key.ssci or secy.sci)
        if self.senders.setdefault(nonce, sa.token) != sa.token:
            raise Violation(f"two SAs send with one nonce: {secy.sci} under key {key.key_id.hex()}")

    def referee_install(self, secy: FakeSecy, key: SaKey, direction: str, sci: Sci):
        if (id(secy), key.sak.reveal(), direction, sci) in self.receivers:
            raise Violation(f"{secy.sci} installs key {key.key_id.hex()} for {sci} a second time")

    def referee_used(self, secy: FakeSecy, key: SaKey, direction: str, sci: Sci):
        self.receivers[id(secy), key.sak.reveal(), direction, sci] = True

    def secured(self) -> bool:
        """Whether every node's data frames are accepted by every other."""
        return all(self.passes(a, b) for a in self.nodes for b in self.nodes if a is not b)

    def passes(self, a: Node, b: Node) -> bool:
        frame = a.secy.send()
        if frame == "clear":
            raise Violation(f"{a.secy.sci} sends in clear")
        return frame is not None and b.secy.accepts(frame)

    def quiet(self) -> bool:
        """Whether all agree on one key and no rollover is under way."""
        return self.secured() and all(len(node.secy.transmit) == 1 for node in self.nodes)


@contextmanager
def mka_pair(a=None, b=None, keys=(KEY,), **both):
    """Two stations on a wire, already secured."""
    world = World()
    one = world.add(0x0A, keys, **{"priority": 16, **both, **(a or {})})
    two = world.add(0x0B, keys, **{"priority": 32, **both, **(b or {})})
    world.run(3.0, world.quiet)
    assert world.quiet(), (one.snapshot, two.snapshot)
    yield one, two

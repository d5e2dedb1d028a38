"""A seeded explorer of what two and three stations can go through together.

Each episode draws a topology and a policy, then faults at random moments: loss, duplication,
reordering and delay of MKPDUs, slow SecYs, one-way silence, kill and restart of the key agreement with and
without the SecY's state, SIGSTOP, SecY refusals, key chains changing, rekey commands, PN jumps,
SAs taken away by hand, carrier loss. After each storm the wire heals and the world must be at peace again:

* every station's frames reach every other (no deadlock, always re-secured);
* no old SA is left over;
* throughout: no two SAs send with one nonce, no SA is installed twice, nothing leaves in clear;
  these are checked by the referee in `mka_world`, at the moment they happen.

Same seed, same story: `python tests/unit/mka/explorer.py --seed 7 --steps 1000000`.
"""

import argparse
import sys
from random import Random

from mka_world import Node, Violation, World

from router.mka.events import EnableTransmit, PortState
from router.mka.kay import KeyEntry
from router.model import CipherSuite, Secret

PEACE_WITHIN_S = 45.0
"""Healed wire to secured: MKA life time, the watchdog, the spacing of SAKs, and as much again."""

CHAIN = tuple(KeyEntry(bytes([n]), Secret(bytes([n]) * 32)) for n in (1, 2, 3))


class Episode:
    """One world with its own faults."""

    def __init__(
        self, seed: int, storms: int = 6, sak_retire_time_s: float = 3.0, *, must_secure: bool = True
    ) -> None:
        self.seed = seed
        self.must_secure = must_secure
        self.sak_retire_time_s = sak_retire_time_s
        self.random = Random(seed)
        self.world = World(random=Random(seed + 1))
        self.world.fate = self.fate
        self.loss = self.duplicate = 0.0
        self.delay_s = 0.001
        self.deaf: set[tuple[Node, Node]] = set()
        self.frozen: set[Node] = set()
        self.steps = 0
        self.storms = storms
        self.story: list[str] = []

    def tell(self, what: str) -> None:
        self.story.append(f"{self.world.now - 1000:9.3f} {what}")

    def fate(self, sender: Node, receiver: Node, _frame: bytes) -> list[float]:
        self.steps += 1
        if (sender, receiver) in self.deaf or self.random.random() < self.loss:
            return []
        copies = 2 if self.random.random() < self.duplicate else 1
        return [self.random.uniform(0.0001, self.delay_s) for _ in range(copies)]

    def run(self) -> int:
        """Play the episode; returns the number of MKPDUs delivered or lost."""
        self.keys = CHAIN[: self.random.choice((1, 1, 2))]
        policy = {
            "suites": self.random.choice(
                (
                    (CipherSuite.GCM_AES_XPN_256,),
                    (CipherSuite.GCM_AES_128,),
                    (CipherSuite.GCM_AES_XPN_128, CipherSuite.GCM_AES_256),
                )
            ),
            "sak_lifetime_s": self.random.choice((0.0, 0.0, 30.0)),
            "delay_protection": self.random.random() < 0.2,
            "sak_retire_time_s": self.sak_retire_time_s,
            "must_secure": self.must_secure,
        }
        slowness = self.random.choice((0.0, 0.0, 0.002, 0.1))
        for number in range(self.random.choice((2, 2, 3))):
            priority = self.random.choice((16, 16, 32, 255))
            node = self.world.add(10 + number, self.keys, priority=priority, **policy)
            node.secy_delay_s = slowness
            node.pump()
        self.tell(
            f"{len(self.world.nodes)} stations {policy} {[n.config.priority for n in self.world.nodes]}"
        )
        self.observe_all()
        self.peace("start")
        for _ in range(self.storms):
            self.storm()
            self.heal()
            self.peace("storm")
        return self.steps

    def observe_all(self) -> None:
        """Every driver looks at its SecY once per hello interval."""
        for node in self.world.nodes:
            if node.kay is not None and not node.frozen:
                node.observe()
        self.world.at(self.world.now + 2.0, self.observe_all)

    def quiet(self) -> bool:
        """All are secured, with one key each; a should-secure port may still be open before that."""
        if not self.must_secure and any(n.secy.port is PortState.UNPROTECTED for n in self.world.nodes):
            return False
        return self.world.quiet()

    def peace(self, after: str) -> None:
        self.world.run(PEACE_WITHIN_S, self.quiet)
        if not self.quiet():
            raise Violation(f"seed {self.seed}: not secured {PEACE_WITHIN_S} s after {after}")
        self.tell("peace")

    def heal(self) -> None:
        self.loss = self.duplicate = 0.0
        self.delay_s = 0.001
        self.deaf.clear()
        for node in self.world.nodes:
            node.secy.refuse = lambda _operation: None
            if node.kay is None:
                self.restart(node)
            node.thaw()
            node.do(lambda kay: kay.carrier(self.world.now, up=True))
            node.set_keys(*self.keys)
        self.tell("healed")

    def storm(self) -> None:
        for _ in range(self.random.randint(1, 8)):
            fault = self.random.choice(self.FAULTS)
            node = self.random.choice(self.world.nodes)
            self.tell(f"{fault.__name__} at {node.number}")
            fault(self, node)
            self.world.run(self.random.choice((0.0, 0.0005, 0.0011, 0.0021, 0.0031, 0.3, 1.0, 3.1, 7.0)))
            for node in self.world.nodes:
                self.check_port(node)
                if node.kay is not None and self.random.random() < 0.3:
                    node.observe()

    def check_port(self, node: Node) -> None:
        """Must-secure is never open; should-secure never while a peer proves a key."""
        if self.must_secure and node.secy.port is PortState.UNPROTECTED:
            raise Violation("the port is open in clear")
        if node.kay is not None and node.kay.port is PortState.UNPROTECTED:
            peers = [peer for p in node.snapshot.participants for peer in p.peers if peer.live]
            if peers:
                raise Violation(f"open in clear beside live peer {peers[0].sci}")

    # ----------------------------------------------------------------------- faults

    def lossy(self, _node: Node) -> None:
        self.loss = self.random.choice((0.1, 0.5, 0.9))

    def duplicating(self, _node: Node) -> None:
        self.duplicate = 0.5

    def delaying(self, _node: Node) -> None:
        self.delay_s = self.random.choice((0.01, 0.5, 3.0, 8.0))

    def one_way(self, node: Node) -> None:
        other = self.random.choice([n for n in self.world.nodes if n is not node])
        self.deaf.add((node, other))

    def cut(self, node: Node) -> None:
        for other in self.world.nodes:
            self.deaf |= {(node, other), (other, node)}

    def joined(self, _node: Node) -> None:
        self.deaf.clear()

    def kill(self, node: Node) -> None:
        node.thaw()
        node.kill()

    def restart(self, node: Node) -> None:
        node.thaw()
        handover = node.kay.handover() if node.kay is not None and self.random.random() < 0.5 else None
        node.kill()
        adopt = handover is not None or self.random.random() < 0.5
        self.tell(f"restart of {node.number}, adopt={adopt}, handover={handover is not None}")
        node.start(adopt=adopt, handover=handover)

    def freeze(self, node: Node) -> None:
        node.freeze()

    def thaw(self, node: Node) -> None:
        node.thaw()

    def refuse(self, node: Node) -> None:
        share = self.random.choice((0.2, 1.0))
        random = self.random
        kind = self.random.choice((object, object, EnableTransmit))
        node.secy.refuse = lambda op: "EIO" if isinstance(op, kind) and random.random() < share else None

    def accept(self, node: Node) -> None:
        node.secy.refuse = lambda _operation: None

    def rekey(self, node: Node) -> None:
        if node.kay is not None and node.snapshot.principal is not None:
            server = [p.server for p in node.snapshot.participants if p.principal and p.peers]
            live = any(peer.live for p in node.snapshot.participants if p.principal for peer in p.peers)
            if server == [node.config.sci] and live:
                node.do(lambda kay: kay.rekey(self.world.now))

    def pn_jump(self, node: Node) -> None:
        for sa in node.secy.transmit.values():
            limit = 0xC000_0000_0000_0000 if node.secy.suite and node.secy.suite.is_xpn else 0xC000_0000
            sa.pn = max(sa.pn, limit)
        if node.kay is not None:
            node.observe()

    def rob(self, node: Node) -> None:
        """Somebody deletes an SA by hand."""
        table = self.random.choice([node.secy.transmit, *node.secy.receive.values()])
        if table and node.kay is not None:
            table.pop(self.random.choice(list(table)))
            for _ in range(2):
                self.world.run(0.5)
                if node.kay is not None:
                    node.observe()

    def carrier(self, node: Node) -> None:
        if node.kay is not None:
            up = self.random.random() < 0.5
            node.do(lambda kay: kay.carrier(self.world.now, up=up))

    def chain(self, node: Node) -> None:
        """The wall clock steps, or a key is added: another set of keys is live here."""
        if node.kay is not None:
            keys = self.random.sample(CHAIN, self.random.randint(1, 3))
            node.set_keys(*keys)

    def roll(self, _node: Node) -> None:
        """The key chain moves on everywhere, newest first."""
        self.keys = (self.random.choice([key for key in CHAIN if key not in self.keys]), self.keys[0])
        for node in self.world.nodes:
            if node.kay is not None:
                node.set_keys(*self.keys)

    FAULTS = (
        lossy, duplicating, delaying, one_way, cut, joined, kill, restart, restart, freeze, thaw, refuse,
        accept, rekey, rekey, pn_jump, rob, carrier, chain, roll,
    )  # fmt: skip


JOINED_WITHIN_S = 240.0
"""Slow SecYs take 20 s for one key, which is void whenever another station joins meanwhile."""


def gather(seed: int) -> float:
    """Three stations on a slow machine start one after the other, over a bad wire until all are there.

    Like a guest without processor time: MKPDUs come seconds late, and each operation of a SecY takes
    up to 2 s, so that a key server needs longer to begin with a key than others have patience.
    Returns the seconds from the last start until each station's frames reach each other's.
    """
    random = Random(seed)
    world = World(random=Random(seed + 1))
    delay_s, loss = random.choice((0.01, 0.5, 3.0)), random.choice((0.0, 0.0, 0.3))
    good_from = world.now + 30.0

    def fate(_sender: Node, _receiver: Node, _frame: bytes) -> list[float]:
        if world.now >= good_from:
            return [0.001]
        return [] if random.random() < loss else [random.uniform(0.0001, delay_s)]

    def observe() -> None:
        for node in world.nodes:
            node.observe()
        world.at(world.now + 1.0, observe)

    world.fate = fate
    priorities = random.choice(((16, 16, 16), (16, 32, 32), (32, 16, 32), (32, 32, 16)))
    for number, priority in zip(random.sample((10, 11, 12), 3), priorities, strict=True):
        node = world.add(number, CHAIN[:1], priority=priority)
        node.secy_delay_s = random.choice((0.0, 0.01, 0.2, 1.0, 2.0))
        node.pump()
        if len(world.nodes) < 3:
            world.run(random.uniform(0.0, 12.0))
    observe()
    took = world.run(JOINED_WITHIN_S, world.secured)
    if not world.secured():
        raise Violation(f"seed {seed}: three stations are not secured after {JOINED_WITHIN_S:.0f} s")
    return took


def explore(seed: int, steps: int) -> tuple[int, int]:
    """Play episodes from `seed` on until so many MKPDUs were sent; returns episodes and steps."""
    episodes = done = 0
    while done < steps:
        episode = Episode(seed + episodes, sak_retire_time_s=(3.0, 0.1)[episodes % 2])
        try:
            done += episode.run()
        except AssertionError:
            sys.stderr.write("\n".join(episode.story[-40:]) + f"\nseed {episode.seed}\n")
            raise
        episodes += 1
    return episodes, done


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1_000_000)
    arguments = parser.parse_args()
    count, sent = explore(arguments.seed, arguments.steps)
    print(f"episodes {count}, MKPDUs {sent}")  # noqa: T201

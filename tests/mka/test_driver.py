"""The driver: two of them on a socket pair agree on keys for two SecYs that are only remembered."""

import asyncio
import errno
import os
import socket
import stat
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import structlog

from router.errors import KernelError, Unsupported
from router.mka import driver as module
from router.mka import kay as kay_module
from router.mka.driver import KayDriver, UsedKeys
from router.mka.events import PortState
from router.mka.kay import KayConfig, KeyEntry
from router.model import CipherSuite, Confidentiality, Sci, Secret
from router.secy import ReceiveScState, SaState, SecyCounters, SecyState

CKN = bytes(31) + b"\1"
CAK = bytes(range(32))
XPN = CipherSuite.GCM_AES_XPN_256
DEADLINE_S = 10.0


class MemorySecy:
    """A SecY that remembers; `missing` makes it behave like a device that is not there."""

    def __init__(self, sci, suite=XPN):
        self.sci, self.suite = sci, suite
        self.transmit, self.receive = {}, {}
        self.encoding_an = 0
        self.missing = False
        self.installed = []
        self.unprotected, self.confidentiality = False, Confidentiality.OFFSET_0
        self.refusal = ""
        """Why it neither opens nor closes."""
        self.port_orders = []

    def _there(self):
        if self.missing:
            raise KernelError("no such device", errno.ENODEV)

    async def observe(self):
        self._there()
        return SecyState(
            device="ms-x",
            sci=self.sci,
            suite=self.suite,
            operational=self.encoding_an in self.transmit,
            encoding_an=self.encoding_an,
            transmit=tuple(self.transmit.values()),
            receive=tuple(
                ReceiveScState(sci, True, tuple(sas.values())) for sci, sas in self.receive.items()
            ),
            counters=SecyCounters(),
            confidentiality=self.confidentiality,
            unprotected=self.unprotected,
        )

    async def set_controlled_port(self, *, unprotected):
        self._there()
        if self.refusal:
            raise KernelError(self.refusal, errno.EBUSY)
        self.port_orders.append(unprotected)
        self.unprotected = unprotected

    async def set_confidentiality(self, confidentiality):
        if confidentiality.offset:
            raise Unsupported("no offsets here", errno.EOPNOTSUPP)
        assert not self.transmit, "before the SAs that it is for"
        self.confidentiality = confidentiality

    async def create_receive_sc(self, sci):
        self._there()
        self.receive.setdefault(sci, {})

    async def delete_receive_sc(self, sci):
        self.receive.pop(sci, None)

    async def create_receive_sa(self, sci, an, key, lowest_pn):
        self._there()
        if sci not in self.receive:
            raise KernelError("no such SC", errno.ENODEV)
        self.receive[sci][an] = SaState(an, False, lowest_pn, key.key_id, key.ssci)

    async def enable_receive_sa(self, sci, an, *, active=True):
        self._there()
        self.receive[sci][an] = replace(self.receive[sci][an], active=active)

    async def update_receive_pn(self, sci, an, lowest_pn):
        self.receive[sci][an] = replace(self.receive[sci][an], next_pn=lowest_pn)

    async def delete_receive_sa(self, sci, an):
        self.receive.get(sci, {}).pop(an, None)

    async def create_transmit_sa(self, an, key, next_pn):
        self._there()
        assert (key.key_id, next_pn) not in self.installed, "the same key from the same packet number, twice"
        self.installed.append((key.key_id, next_pn))
        self.transmit[an] = SaState(an, False, next_pn, key.key_id, key.ssci)

    async def enable_transmit_sa(self, an):
        self._there()
        self.transmit[an] = replace(self.transmit[an], active=True)
        self.encoding_an = an

    async def delete_transmit_sa(self, an):
        self.transmit.pop(an, None)

    def lose_all(self):
        """The device is made anew."""
        self.transmit, self.receive, self.encoding_an = {}, {}, 0


async def until(probe):
    """Wait for a state, with a deadline."""
    async with asyncio.timeout(DEADLINE_S):
        while not probe():  # noqa: ASYNC110 - a poll with a deadline
            await asyncio.sleep(0.01)


class World:
    """Two ends of a wire."""

    def __init__(self, tmp_path):
        self.scis = [Sci.parse(f"02:00:00:00:00:0{n}/1") for n in (1, 2)]
        self.secys = [MemorySecy(sci) for sci in self.scis]
        self.drivers = [None, None]
        self.tasks = [None, None]
        self.wires = list(socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
        self.tmp_path = tmp_path

    def start(self, end, *, cak=CAK, suites=(XPN,), **policy):
        driver = self.drivers[end] = KayDriver(
            port=f"port{end}",
            device=f"ms{end}",
            config=KayConfig(sci=self.scis[end], priority=16, suites=suites, **policy),
            secy=self.secys[end],
            used_keys=UsedKeys(self.tmp_path / f"{end}.used"),
            log=structlog.get_logger(),
        )
        driver.set_keys((KeyEntry(CKN, Secret(cak)),))
        self.tasks[end] = asyncio.create_task(driver.run())
        return driver

    async def end(self, end):
        self.tasks[end].cancel()
        await asyncio.gather(self.tasks[end], return_exceptions=True)
        self.drivers[end].close()

    def secured(self):
        return all(d.port_state is PortState.SECURED for d in self.drivers) and all(
            s.encoding_an in s.transmit and s.transmit[s.encoding_an].active for s in self.secys
        )

    def key_ids(self):
        return [s.transmit[s.encoding_an].key_id for s in self.secys]


@pytest.fixture
def wire(monkeypatch, tmp_path):
    """Return a context manager that gives a world, its sockets in place of packet sockets."""

    @asynccontextmanager
    async def world():
        it = World(tmp_path)

        def open_port(port):
            descriptor = os.dup(it.wires[int(port[-1])].fileno())
            copy = socket.socket(fileno=descriptor)
            copy.setblocking(False)
            return copy

        monkeypatch.setattr(module, "open_port", open_port)
        monkeypatch.setattr(module.socket, "if_nametoindex", lambda name: 10 + int(name[-1]))
        try:
            yield it
        finally:
            for end, task in enumerate(it.tasks):
                if task is not None:
                    await it.end(end)
            for each in it.wires:
                each.close()

    return world


def run(coroutine):
    asyncio.run(asyncio.wait_for(coroutine, 30))


def test_two_ends_agree(wire):
    """On one key, in well under a second on a quiet wire, and both say so."""

    async def scenario():
        async with wire() as world:
            world.start(0)
            world.start(1)
            await until(world.secured)
            assert world.key_ids()[0] == world.key_ids()[1]
            assert all(d.snapshot().suspicion == "" for d in world.drivers)

    run(scenario())


def test_a_wrong_cak_is_named_and_installs_nothing(wire):
    """Fail closed, and say why."""

    async def scenario():
        async with wire() as world:
            world.start(0)
            world.start(1, cak=bytes(32))
            await until(lambda: world.drivers[0].snapshot() and world.drivers[0].snapshot().suspicion)
            await until(lambda: "CAKs differ" in world.drivers[0].snapshot().suspicion)
            assert not world.secys[0].transmit
            assert world.drivers[0].port_state is PortState.CLOSED

    run(scenario())


def test_a_successor_adopts_and_never_installs_a_key_twice(wire):
    """MemorySecy asserts it: not one (key, PN) comes twice; the SAs stay in place meanwhile."""

    async def scenario():
        async with wire() as world:
            world.start(0)
            world.start(1)
            await until(world.secured)
            before = world.key_ids()[0]
            await world.end(0)
            assert world.secys[0].transmit, "the SAs are left for the successor"
            world.start(0)
            await until(lambda: world.secured() and before not in world.key_ids())
            assert world.key_ids()[0] == world.key_ids()[1]

    run(scenario())


def test_a_device_made_anew_gets_a_fresh_key(wire):
    """Its packet numbers are lost, so the key goes too."""

    async def scenario():
        async with wire() as world:
            world.start(0)
            world.start(1)
            await until(world.secured)
            before = world.key_ids()[0]
            await until(lambda: world.drivers[0].snapshot().state.value == "RETIRE")
            world.secys[0].lose_all()
            for _ in range(2):
                world.drivers[0].look()
                await asyncio.sleep(0.05)
            await until(lambda: world.secured() and before not in world.key_ids())

    run(scenario())


def test_a_missing_device_is_waited_for(wire):
    """And what is wrong is said meanwhile."""

    async def scenario():
        async with wire() as world:
            world.secys[0].missing = True
            world.start(0)
            world.start(1)
            await until(lambda: "no such device" in world.drivers[0].problem)
            world.secys[0].missing = False
            await until(world.secured)

    run(scenario())


def test_another_suite_is_asked_for(wire):
    """The kernel's devices cannot change theirs: whoever made the device is told."""

    async def scenario():
        async with wire() as world:
            world.secys[0].suite = CipherSuite.GCM_AES_256
            world.start(0, suites=(XPN, CipherSuite.GCM_AES_256))
            world.start(1, suites=(XPN,))
            await until(lambda: world.drivers[0].wanted_suite is XPN)
            assert world.drivers[0].port_state is PortState.CLOSED
            world.secys[0].suite = XPN
            world.drivers[0].look()
            await until(world.secured)
            assert world.drivers[0].wanted_suite is None

    run(scenario())


def test_a_suite_that_is_no_longer_configured_is_kept_until_the_device_is_made_anew(wire):
    """A new configuration must not stop all channels at once: who makes the devices anew chooses when."""

    async def scenario():
        async with wire() as world:
            for secy in world.secys:
                secy.suite = CipherSuite.GCM_AES_256
            for end in (0, 1):
                world.start(end)  # wants XPN
            await until(world.secured)
            assert all(driver.wanted_suite is None for driver in world.drivers)
            for end, secy in enumerate(world.secys):
                secy.suite = XPN
                secy.lose_all()
                world.drivers[end].look()
            await until(world.secured)
            assert all(d.snapshot().current.suite is XPN for d in world.drivers)

    run(scenario())


def test_a_carrier_that_comes_after_us_is_greeted_at_once(wire, monkeypatch):
    """We start without it, and nobody tells: it is seen, and its return begins the fast hellos anew."""
    carrier = [False]

    async def scenario():
        async with wire() as world:
            monkeypatch.setattr(module, "carrier_of", lambda _socket, _port: carrier[0])
            world.start(0)
            world.start(1)
            await until(lambda: world.drivers[0].snapshot() and world.drivers[1].snapshot())
            await asyncio.sleep(0.3)
            assert all(driver.counters.mkpdus_sent == 0 for driver in world.drivers)
            carrier[0] = True
            start = asyncio.get_running_loop().time()
            for driver in world.drivers:
                driver.look()
            await until(world.secured)
            assert asyncio.get_running_loop().time() - start < 1.0

    run(scenario())


def test_a_changed_encoding_sa_is_put_right(wire):
    """Somebody else's hand on the device."""

    async def scenario():
        async with wire() as world:
            world.start(0)
            world.start(1)
            await until(world.secured)
            right = world.secys[0].encoding_an
            world.secys[0].encoding_an = (right + 1) % 4
            for _ in range(3):
                world.drivers[0].look()
                await asyncio.sleep(0.05)
            await until(lambda: world.secys[0].encoding_an == right)

    run(scenario())


@pytest.fixture
def impatient(monkeypatch):
    """A port opens after 0.2 s without a peer."""
    monkeypatch.setattr(kay_module, "MKA_LIFE_TIME_S", 0.2)


def test_should_secure_opens_the_secy_and_closes_it_for_a_peer(wire, impatient):
    """In clear while nobody proves a key; closed before the first SA; a must-secure SecY is never touched."""

    async def scenario():
        async with wire() as world:
            world.start(0, must_secure=False)
            await until(lambda: world.secys[0].unprotected)
            assert world.drivers[0].port_state is PortState.UNPROTECTED
            world.start(1)
            await until(world.secured)
            assert world.secys[0].port_orders == [True, False]
            assert world.secys[1].port_orders == []

    run(scenario())


def test_a_port_that_cannot_be_closed_claims_nothing(wire, impatient):
    """The SecY refuses to protect: shown as in clear, with the reason, and no key is installed over it."""

    async def scenario():
        async with wire() as world:
            world.start(0, must_secure=False)
            await until(lambda: world.secys[0].unprotected)
            world.secys[0].refusal = "the device is busy"
            world.start(1)
            await until(lambda: world.drivers[0].port_problem)
            await until(lambda: "still passes frames in clear" in world.drivers[0].snapshot().refusal)
            assert world.drivers[0].port_state is PortState.UNPROTECTED
            assert not world.secys[0].transmit
            assert not world.secured()
            world.secys[0].refusal = ""
            await until(world.secured)
            assert not world.secys[0].unprotected

    run(scenario())


def test_a_port_that_cannot_be_opened_is_shown_as_closed(wire, impatient):
    """An order is not a fact."""

    async def scenario():
        async with wire() as world:
            world.secys[0].refusal = "operation not permitted"
            world.start(0, must_secure=False)
            await until(lambda: world.drivers[0].port_problem == "operation not permitted")
            assert world.drivers[0].port_state is PortState.CLOSED
            world.secys[0].refusal = ""
            await until(lambda: world.drivers[0].port_state is PortState.UNPROTECTED)

    run(scenario())


def test_a_must_secure_port_that_was_left_open_is_closed(wire):
    """By the policy before this one, or by somebody's hand."""

    async def scenario():
        async with wire() as world:
            world.secys[0].unprotected = True
            world.start(0)
            await until(lambda: not world.secys[0].unprotected)
            world.start(1)
            await until(world.secured)
            world.secys[0].unprotected = True
            for _ in range(3):
                world.drivers[0].look()
                await asyncio.sleep(0.05)
            await until(lambda: not world.secys[0].unprotected)

    run(scenario())


def test_a_successor_of_an_open_port_keeps_it_open(wire, impatient):
    """No second silence: the SecY tells that frames passed in clear."""

    async def scenario():
        async with wire() as world:
            world.start(0, must_secure=False)
            await until(lambda: world.secys[0].unprotected)
            await world.end(0)
            assert world.secys[0].unprotected, "it is left as it is"
            world.start(0, must_secure=False)
            await until(lambda: world.drivers[0].port_state is PortState.UNPROTECTED)

    run(scenario())


def test_the_secy_encrypts_what_the_key_server_orders(wire):
    """Integrity only where both ends allow it, set before the SAs."""

    async def scenario():
        async with wire() as world:
            readable = {
                "suites": (CipherSuite.GCM_AES_128,),
                "confidentiality": Confidentiality.INTEGRITY_ONLY,
                "accept": frozenset({Confidentiality.INTEGRITY_ONLY, Confidentiality.OFFSET_0}),
            }
            for secy in world.secys:
                secy.suite = CipherSuite.GCM_AES_128
            world.start(0, **readable)
            world.start(1, **readable)
            await until(world.secured)
            assert all(secy.confidentiality is Confidentiality.INTEGRITY_ONLY for secy in world.secys)

    run(scenario())


def test_used_keys_are_private_and_survive(tmp_path):
    """Mode 0600; a damaged line is left out."""
    path = tmp_path / "a.used"
    keys = UsedKeys(path)
    keys.add(bytes(16))
    keys.add(bytes(15) + b"\1")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text(path.read_text() + "rubbish\n")
    assert list(UsedKeys(path)) == [bytes(15) + b"\1"]


def test_a_thousand_keys_of_one_server_push_out_no_other_s(tmp_path):
    """The last of each key server is kept, whatever came in between, and a lower one changes nothing."""
    keys = UsedKeys(tmp_path / "a.used")
    keys.add(b"x" * 12 + (7).to_bytes(4))
    for number in range(1, 1001):
        keys.add(b"y" * 12 + number.to_bytes(4))
    keys.add(b"y" * 12 + (3).to_bytes(4))
    assert list(UsedKeys(tmp_path / "a.used")) == [
        b"x" * 12 + (7).to_bytes(4),
        b"y" * 12 + (1000).to_bytes(4),
    ]

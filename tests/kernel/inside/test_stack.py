"""The whole stack of a channel in a kernel that has everything, against far ends made by iproute2."""

import asyncio
import time

import pytest
import structlog
from conftest import ip, run

from router.config.secrets import resolve_sak
from router.errors import KernelError
from router.kernel.netlink import NetlinkKernel
from router.keyd import Keyd
from router.reconcile.desired import desired_state
from router.reconcile.diff import plan
from router.reconcile.loop import Reconciler
from router.reconcile.objects import DesiredState
from router.static_keys import PnHistory


async def until(condition, what, timeout_s=10.0):
    """Poll until `condition()` is true; fail with `what` it waits for."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)


class Router:
    """Reconciler and key daemon in this process, as routerd and keyd run them."""

    def __init__(self, kernel, config, directory):
        self.kernel, self.config = kernel, config
        self.reconciler = Reconciler(kernel)
        self.history = PnHistory(directory / "packet-numbers.json")
        self.history.load()
        self.keyd = Keyd(
            lambda: config,
            lambda channel: kernel.secy(channel.macsec_device),
            self.history,
            resolve_sak,
            structlog.get_logger(),
        )
        self.keyd.reload()
        self.tasks = []

    async def __aenter__(self):
        self.reconciler.set_desired(desired_state(self.config))
        self.stopping = asyncio.Event()
        self.tasks = [
            asyncio.create_task(self.reconciler.run()),
            asyncio.create_task(self.keyd.run(self.stopping, lambda: False)),
            asyncio.create_task(self.wake_keyd()),
        ]
        return self

    async def wake_keyd(self):
        while True:
            await self.reconciler.link_events.get()
            self.keyd.wake.set()

    async def __aexit__(self, *exc):
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def faults(self):
        """Errors, without what this kernel cannot do at all (a guest's nftables has no inet family)."""
        return {key: e for key, e in self.reconciler.errors.items() if not e.unsupported}

    async def left(self):
        """What a fresh plan would do, without what this kernel cannot do."""
        desired = desired_state(self.config)
        todo = plan(desired, await self.kernel.observe(desired)).actions
        return [a.describe() for a in todo if a.key not in self.reconciler.errors]

    async def keyed(self, device):
        try:
            return (await self.kernel.secy(device).observe()).operational
        except KernelError:
            return False

    async def up(self):
        await until(self.reconciler.settled.is_set, f"settled: {self.reconciler.errors}")
        assert not self.faults()
        for channel in self.config.channels:
            await until(lambda c=channel: self.keyed(c.macsec_device), f"{channel.id} keyed")


@pytest.fixture
async def router(four_channels, tmp_path):
    kernel = await NetlinkKernel.open()
    async with Router(kernel, four_channels, tmp_path / "state") as running:
        yield running
    await kernel.close()


def ping(address, size=56):
    return (
        run("ping", "-c", "1", "-W", "2", "-M", "do", "-s", str(size), address, check=False).returncode == 0
    )


async def test_four_channels_carry_8500_octets_both_families(router):
    """From nothing to four keyed channels; DF pings of exactly the MTU pass, one octet more does not."""
    started = time.monotonic()
    await router.up()
    took = time.monotonic() - started
    for connection in router.config.connections:
        for feature in connection.features:
            for pair in feature.addresses:
                header = 48 if ":" in pair.peer else 28
                assert await asyncio.to_thread(ping, pair.peer, connection.mtu - header), pair
                assert not await asyncio.to_thread(ping, pair.peer, connection.mtu - header + 1), pair
    for channel in router.config.channels:
        state = await router.kernel.secy(channel.macsec_device).observe()
        assert state.counters.in_pkts_ok >= 2
        assert state.counters.out_pkts_encrypted >= 2
        assert state.counters.in_pkts_not_valid == 0
    assert took < 30


async def test_a_second_look_finds_nothing_to_do(router):
    """What was applied is what is observed: the plan is empty, from this process and from a new one."""
    await router.up()
    assert not await router.left()
    mine, router.kernel = router.kernel, await NetlinkKernel.open()
    assert not await router.left()
    await router.kernel.close()
    router.kernel = mine


@pytest.mark.parametrize(
    "damage",
    [
        "link del {macsec}",
        "link del {vlan}",
        "link set {vlan} down",
        "link set {macsec} down",
        "link set {port} down",
        "link set {vlan} mtu 1400",
        "link set {macsec} mtu 1400",
        "addr del {address} dev {vlan}",
        "addr flush dev {vlan}",
        "link set {macsec} type macsec validate disabled",
        "link set {macsec} type macsec encrypt off",
    ],
)
async def test_drift_is_repaired_within_a_second(router, damage):
    """Whatever is changed by hand is as it must be again, and the peer answers."""
    await router.up()
    channel = router.config.channels[0]
    feature = router.config.connections[0].features[0]
    pair = feature.addresses[0]
    assert await asyncio.to_thread(ping, pair.peer)
    names = {
        "macsec": channel.macsec_device,
        "vlan": feature.device,
        "port": channel.port,
        "address": f"{pair.local}/{pair.prefix_length}",
    }
    ip(damage.format(**names))
    started = time.monotonic()

    async def repaired():
        return not await router.left()

    await until(repaired, "repaired", 5)
    await until(lambda: router.keyed(channel.macsec_device), "keyed", 5)
    took = time.monotonic() - started
    assert await asyncio.to_thread(ping, pair.peer)
    # A second on a machine of its own; a guest on a busy host gets a little more.
    assert took < 2.0, f"{took:.2f} s"


async def test_a_rebuilt_device_never_repeats_a_packet_number(router):
    """After the device was deleted, the same SAK goes on above every PN that was ever sent."""
    await router.up()
    channel = router.config.channels[0]
    feature = router.config.connections[0].features[0]
    secy = router.kernel.secy(channel.macsec_device)
    for _ in range(3):
        assert await asyncio.to_thread(ping, feature.addresses[0].peer)
        before = (await secy.observe()).transmit[0].next_pn
        ip(f"link del {channel.macsec_device}")
        await until(lambda: router.keyed(channel.macsec_device), "keyed again")
        after = (await secy.observe()).transmit[0].next_pn
        assert after >= before + (1 << 23)


async def test_release_leaves_nothing_of_ours(router):
    """After release there is no device, address, rule or guard with our mark, and channel ports are down."""
    await router.up()
    for task in router.tasks:
        task.cancel()
    await router.reconciler.release()
    observed = await router.kernel.observe(DesiredState())
    assert not plan(DesiredState(), observed).describe()
    assert not any(facts.ours for facts in observed.links.values())
    for channel in router.config.channels:
        assert not observed.links[channel.port].up
    assert "lastmile" not in run("nft", "list", "tables", check=False).stdout

"""The open mode of should-secure, and integrity only, on the kernel's own macsec device and behind its guard."""

import asyncio
from dataclasses import replace

import pytest
from conftest import ip, run
from test_fail_closed import Tap
from test_stack import Router, ping, until

from router.config.effective import MacsecMode
from router.errors import Unsupported
from router.kernel.guard import NftGuard
from router.kernel.netlink import NetlinkKernel
from router.model import Confidentiality
from router.reconcile.desired import ETHERTYPE_MACSEC, ETHERTYPE_VLAN, desired_state
from router.reconcile.diff import plan
from router.reconcile.objects import EgressGuard


def with_policy(config, **policy):
    """The same configuration with another policy on its first channel."""
    first, *others = config.channels
    return replace(config, channels=(replace(first, macsec=replace(first.macsec, **policy)), *others))


@pytest.fixture
async def router(four_channels, tmp_path):
    kernel = await NetlinkKernel.open()
    config = with_policy(four_channels, mode=MacsecMode.SHOULD_SECURE)
    async with Router(kernel, config, tmp_path / "state") as running:
        yield running
    await kernel.close()


def talk_in_clear(far, config):
    """The first channel's far end gives up MACsec and speaks plain frames in the same VLAN."""
    feature = config.connections[0].features[0]
    ip(f"-n {far} link del ms1")
    ip(f"-n {far} link add link peer1 name clear1 type vlan id {feature.vlan}")
    ip(f"-n {far} link set clear1 up")
    pair = feature.addresses[0]
    ip(f"-n {far} addr add {pair.peer}/{pair.prefix_length} dev clear1")
    return pair.peer


async def switch(router, **policy):
    """Reload with another policy; return what the plan announces."""
    router.config = with_policy(router.config, **policy)
    desired = desired_state(router.config)
    announced = plan(desired, await router.kernel.observe(desired)).describe()
    router.reconciler.set_desired(desired)
    router.keyd._load = lambda: router.config
    router.keyd.reload()
    return announced


async def test_the_port_opens_and_closes_when_it_is_told(router, namespace):
    """Open: plain frames pass both ways and the reconciler leaves it alone. Closed: not one more."""
    await router.up()
    channel = router.config.channels[0]
    secy = router.kernel.secy(channel.macsec_device)
    peer = talk_in_clear(namespace, router.config)
    assert not await asyncio.to_thread(ping, peer)
    await secy.set_controlled_port(unprotected=True)
    assert (await secy.observe()).unprotected
    tap = Tap(namespace, "peer1")
    try:
        assert await asyncio.to_thread(ping, peer)
        assert not await router.left()
        await router.reconciler.cycle()
        assert (await secy.observe()).unprotected
    finally:
        seen = tap.close()
    assert seen.get(ETHERTYPE_VLAN, 0) + seen.get(0x0800, 0) + seen.get(0x0806, 0) > 0
    counters = (await secy.observe()).counters
    assert counters.in_pkts_untagged > 0
    assert counters.out_pkts_untagged > 0
    await secy.set_controlled_port(unprotected=False)
    assert not (await secy.observe()).unprotected
    tap = Tap(namespace, "peer1")
    try:
        assert not await asyncio.to_thread(ping, peer)
    finally:
        seen = tap.close()
    assert set(seen) <= {ETHERTYPE_MACSEC}


async def test_a_change_to_must_secure_closes_at_once(router, namespace):
    """The plan says so; nobody else need do anything; and what is opened by hand is closed again."""
    await router.up()
    channel = router.config.channels[0]
    secy = router.kernel.secy(channel.macsec_device)
    peer = talk_in_clear(namespace, router.config)
    await secy.set_controlled_port(unprotected=True)
    assert await asyncio.to_thread(ping, peer)
    announced = await switch(router, mode=MacsecMode.MUST_SECURE)
    assert f"change guard on {channel.port}" in announced
    assert f"change macsec {channel.macsec_device}" in announced
    assert "IN CLEAR" in announced
    assert "interrupts" not in announced

    async def is_open():
        return (await secy.observe()).unprotected

    async def is_closed():
        return not await is_open()

    await until(is_closed, "closed by the reconciler")
    await until(router.reconciler.settled.is_set, "settled")
    assert not await asyncio.to_thread(ping, peer)
    await secy.set_controlled_port(unprotected=True)
    assert not await asyncio.to_thread(ping, peer), "the guard lets no plain frame out of a must-secure port"
    await until(is_closed, "closed again")


async def test_a_device_that_is_made_anew_is_born_closed(router):
    """Whatever it was before: only the key daemon opens it."""
    await router.up()
    channel = router.config.channels[0]
    secy = router.kernel.secy(channel.macsec_device)
    await secy.set_controlled_port(unprotected=True)
    ip(f"link del {channel.macsec_device}")
    await until(lambda: router.keyed(channel.macsec_device), "keyed again")
    assert not (await secy.observe()).unprotected


async def test_integrity_only_sends_readable_frames_where_the_policy_allows(router):
    """Traffic goes on; the policy is enforced where frames must be encrypted, and an offset is refused."""
    await router.up()
    channel = router.config.channels[0]
    feature = router.config.connections[0].features[0]
    peer = feature.addresses[0].peer
    secy = router.kernel.secy(channel.macsec_device)
    with pytest.raises(Unsupported, match="no confidentiality offset"):
        await secy.set_confidentiality(Confidentiality.OFFSET_30)
    await switch(router, confidentiality=Confidentiality.INTEGRITY_ONLY)

    async def is_readable():
        return (await secy.observe()).confidentiality is Confidentiality.INTEGRITY_ONLY

    await until(is_readable, "the key daemon has it send readable frames")
    assert await asyncio.to_thread(ping, peer)
    state = await secy.observe()
    assert state.confidentiality is Confidentiality.INTEGRITY_ONLY
    assert state.counters.out_pkts_protected > 0
    assert not await router.left()
    announced = await switch(router, confidentiality=Confidentiality.OFFSET_0)
    assert "may not encrypt" in announced

    async def encrypts():
        return (await secy.observe()).confidentiality is Confidentiality.OFFSET_0

    await until(encrypts, "it encrypts again")
    assert await asyncio.to_thread(ping, peer)


async def test_a_guards_list_grows_and_shrinks_without_a_gap(wire):
    """On either mechanism; the filter that drops stands all the time, and what was tampered with comes back."""
    wire("port1", "peer1")
    kernel = await NetlinkKernel.open()
    index = (await kernel.link_facts())["port1"].index
    secured, lag = (0x888E, 0x88E5), (0x8100, 0x8809, 0x888E, 0x88E5)
    for types in (secured, (0x8100, *secured), secured, lag, lag, secured):
        guard = EgressGuard("port1", types)
        await kernel._guards.install(guard, index)
        assert (await kernel._guards.observe({"port1": index})) == {"port1": guard}
    if not isinstance(kernel._guards, NftGuard):
        run("tc", "filter", "del", "dev", "port1", "egress", "pref", "100")
        assert not await kernel._guards.observe({"port1": index})
        await kernel._guards.install(guard, index)
        assert (await kernel._guards.observe({"port1": index})) == {"port1": guard}
    await kernel._guards.remove(guard, index)
    assert not await kernel._guards.observe({"port1": index})
    await kernel.close()

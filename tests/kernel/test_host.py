"""The real kernel of the host, in a namespace: what needs neither macsec nor 8021q."""

import asyncio
import contextlib
import socket
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.fib_ops import (
    MAIN_TABLE,
    NEXTHOP_ID_FIRST,
    GroupReplace,
    NexthopDelete,
    NexthopReplace,
    RouteDelete,
    RouteReplace,
)
from router.kernel.guard import NftGuard
from router.kernel.netlink import NetlinkKernel
from router.model import Afi, Nexthop, Prefix, pack_address
from router.reconcile.diff import Action, Verb, plan
from router.reconcile.kernel import FibEvent, LinkEvent
from router.reconcile.loop import Reconciler
from router.reconcile.objects import (
    Address,
    ControlPlaneRules,
    DesiredState,
    EgressGuard,
    PeerRule,
    PortLink,
    Sysctl,
)

pytestmark = pytest.mark.root

RULES = ControlPlaneRules((PeerRule("d0", "10.0.0.2"), PeerRule("d0", "fd00::2")))
GUARD = EgressGuard("d0", (0x888E, 0x88E5))
PREFIX = Prefix.parse("20.0.0.0/24")


def sh(command):
    return subprocess.run(command.split(), check=True, capture_output=True, text=True).stdout


@pytest.fixture
async def kernel(fresh_namespace):
    opened = await NetlinkKernel.open()
    yield opened
    await opened.close()


async def reach(kernel, desired):
    for _ in range(3):
        steps = plan(desired, await kernel.observe(desired))
        if not steps:
            return
        for action in steps.actions:
            await kernel.apply(action)
    assert not plan(desired, await kernel.observe(desired)).describe()


@st.composite
def states(draw):
    port = PortLink(
        "d0", draw(st.sampled_from((1500, 9000))), draw(st.booleans()), guarded=draw(st.booleans())
    )
    objects = [GUARD, port] if port.guarded else [port]
    addresses = ("10.0.0.1/24", "10.1.0.1/30", "fd00::1/64", "fd01::1/126")
    for text in draw(st.lists(st.sampled_from(addresses), unique=True)):
        address, _, length = text.partition("/")
        objects.append(Address("d0", address, int(length), port.key))
    objects.append(Sysctl(("net", "ipv4", "conf", "d0", "rp_filter"), draw(st.sampled_from("012")), "d0"))
    peers = draw(st.lists(st.sampled_from(RULES.peers), unique=True))
    if draw(st.booleans()):
        objects.append(ControlPlaneRules(tuple(sorted(peers))))
    return DesiredState(tuple(objects))


@settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(states(), states())
def test_applying_the_plan_is_enough(fresh_namespace, a, b):
    """From any state to any other on the real kernel, with keep_addr_on_down as the router sets it."""

    async def work():
        fresh_namespace()
        sh("sysctl -qw net.ipv6.conf.d0.keep_addr_on_down=1")
        kernel = await NetlinkKernel.open()
        try:
            await reach(kernel, a)
            await reach(kernel, b)
            await reach(kernel, DesiredState())
            assert "inet lastmile" not in sh("nft list tables")
            assert "chain" not in sh("nft list ruleset")
        finally:
            await kernel.close()

    asyncio.run(work())


async def test_foreign_things_are_left_alone(kernel):
    """Release deletes neither an address nor a table of somebody else."""
    sh("ip addr add 10.9.0.1/24 dev d0")
    sh("nft add table inet mine")
    await reach(kernel, DesiredState((PortLink("d0", 1500, up=True, guarded=False), RULES)))
    await reach(kernel, DesiredState())
    assert "10.9.0.1/24" in sh("ip addr show d0")
    assert sh("nft list tables").split() == ["table", "inet", "mine"]


async def until(condition, timeout_s=10.0):
    """Poll until `await condition()`."""
    async with asyncio.timeout(timeout_s):
        while not await condition():  # noqa: ASYNC110 - the kernel has no event for it
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "damage",
    [
        'delete element inet lastmile peers4 {"d0" . 10.0.0.2}',
        "flush chain inet lastmile input",
        "delete table inet lastmile",
    ],
)
async def test_rules_changed_by_hand_are_repaired(kernel, damage):
    """A rule or element taken out, or the whole table: noticed by notification, put back."""
    desired = DesiredState((RULES,))
    reconciler = Reconciler(kernel)
    reconciler.set_desired(desired)
    other = await NetlinkKernel.open()

    async def intact():
        other._filters = None
        return not plan(desired, await other.observe(desired))

    async def settled():
        return reconciler.settled.is_set()

    task = asyncio.create_task(reconciler.run())
    try:
        await until(settled)
        assert await intact()
        await asyncio.to_thread(subprocess.run, ["nft", damage], check=True)
        await until(intact)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await other.close()


async def test_bgp_is_taken_from_peers_only(kernel):
    """A TCP connection to port 179 from an address that is no peer's is dropped, and counted."""
    await kernel.apply(Action(Verb.CREATE, RULES))
    with socket.socket() as listener, socket.socket() as stranger:
        listener.bind(("127.0.0.1", 179))
        listener.listen()
        stranger.settimeout(0.3)
        with pytest.raises(OSError):
            stranger.connect(("127.0.0.1", 179))
        allowed = ControlPlaneRules((PeerRule("lo", "127.0.0.1"),))
        await kernel.apply(Action(Verb.CHANGE, allowed))
        with socket.create_connection(("127.0.0.1", 179), timeout=2):
            pass


async def test_a_guard_that_may_pass_vlan_frames_does_and_stops_it_when_its_list_shrinks(kernel):
    """should-secure and back: 802.1Q passes with the one list and not with the other; a bare IPv4 frame never."""
    if not isinstance(kernel._guards, NftGuard):
        pytest.skip("this kernel guards with tc")
    opens = EgressGuard("d0", (0x8100, *GUARD.ethertypes))
    for guard, expected in ((opens, [0x8100, 0x88E5]), (GUARD, [0x88E5]), (opens, [0x8100, 0x88E5])):
        await reach(kernel, DesiredState((guard, PortLink("d0", 1500, up=True, guarded=True))))
        assert sent_through("d0", "d1", (0x8100, 0x0800, 0x88E5)) == expected


def sent_through(device, far, ethertypes):
    """Write a frame of each type to a device; return the types that arrive at the far end."""
    seen = []
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as tap:
        tap.bind((far, 3))
        tap.settimeout(0.3)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
            for ethertype in ethertypes:
                # The tag of an 802.1Q frame is told beside the frame: what follows it is 0x88B5 here.
                payload = bytes((0, 5, 0x88, 0xB5)) if ethertype == 0x8100 else b""
                frame = b"\2" * 12 + ethertype.to_bytes(2, "big") + payload + bytes(60)
                with contextlib.suppress(OSError):  # dropped by the hook
                    sender.sendto(frame, (device, ethertype))
        with contextlib.suppress(TimeoutError):
            while True:
                frame, address = tap.recvfrom(2048)
                if address[2] != socket.PACKET_OUTGOING and frame[:12] == b"\2" * 12:
                    found = int.from_bytes(frame[12:14], "big")
                    seen.append(0x8100 if found == 0x88B5 else found)
    return seen


async def test_the_guard_reads_the_frame(kernel):
    """With nftables nothing in clear passes in or out, not even with a forged protocol; MACsec and EAPOL do."""
    if not isinstance(kernel._guards, NftGuard):
        pytest.skip("this kernel guards with tc")
    await reach(kernel, DesiredState((GUARD, PortLink("d0", 1500, up=True, guarded=True))))
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as tap:
        tap.bind(("d1", 3))
        tap.settimeout(0.3)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
            for ethertype, declared in (
                (0x0800, 0x0800),
                (0x0800, 0x88E5),
                (0x88E5, 0x88E5),
                (0x888E, 0x888E),
            ):
                frame = bytes(12) + ethertype.to_bytes(2, "big") + bytes(60)
                with contextlib.suppress(OSError):  # dropped by the hook
                    sender.sendto(frame, ("d0", declared))
        seen = []
        try:
            while True:
                frame, address = tap.recvfrom(2048)
                if address[2] != socket.PACKET_OUTGOING:
                    seen.append(int.from_bytes(frame[12:14], "big"))
        except TimeoutError:
            pass
    assert seen == [0x88E5, 0x888E]


async def test_each_refusal_names_its_operation(kernel):
    """In a long list, exactly the operations that the kernel refused come back, with its reason."""
    sh("ip link set d0 up")
    sh("ip addr add 10.0.0.1/24 dev d0")
    good = NexthopReplace(NEXTHOP_ID_FIRST, Nexthop("d0", pack_address("10.0.0.2")))
    group = GroupReplace(NEXTHOP_ID_FIRST + 1, Afi.IPV4, (NEXTHOP_ID_FIRST,))
    routes = [
        RouteReplace(MAIN_TABLE, Prefix((0x14000000 + (i << 8)).to_bytes(4, "big"), 24), group.id)
        for i in range(1000)
    ]
    bad = [
        NexthopReplace(NEXTHOP_ID_FIRST + 2, Nexthop("nope", pack_address("10.0.0.2"))),
        NexthopReplace(NEXTHOP_ID_FIRST + 3, Nexthop("d0", pack_address("99.0.0.1"))),
        RouteReplace(MAIN_TABLE, PREFIX, NEXTHOP_ID_FIRST + 99),
    ]
    ops = [good, group, *routes[:150], bad[0], *routes[150:500], bad[1], *routes[500:], bad[2]]
    failures = await kernel.apply_fib(ops)
    assert [f.op for f in failures] == bad
    assert "invalid gateway" in failures[1].reason
    observed = await kernel.observe_fib()
    assert len(observed.routes) == 1000
    assert observed.groups == {group.id: (NEXTHOP_ID_FIRST,)}
    gone = [RouteDelete(MAIN_TABLE, r.prefix) for r in routes] * 2
    assert (
        await kernel.apply_fib(
            [*gone, NexthopDelete(group.id), NexthopDelete(group.id), NexthopDelete(good.id)]
        )
        == []
    )
    observed = await kernel.observe_fib()
    assert not observed.routes
    assert not observed.groups
    assert not observed.nexthops


async def test_a_route_of_somebody_else_is_not_replaced(kernel):
    """Our routes have a metric of their own."""
    sh("ip link set d0 up")
    sh("ip addr add 10.0.0.1/24 dev d0")
    sh("ip route add 20.0.0.0/24 via 10.0.0.9")
    nexthop = NexthopReplace(NEXTHOP_ID_FIRST, Nexthop("d0", pack_address("10.0.0.2")))
    assert await kernel.apply_fib([nexthop, RouteReplace(MAIN_TABLE, PREFIX, nexthop.id)]) == []
    assert await kernel.apply_fib([RouteDelete(MAIN_TABLE, PREFIX)]) == []
    assert "20.0.0.0/24 via 10.0.0.9" in sh("ip route show")


async def test_notifications_are_of_others_only(kernel):
    """Our own route changes do not come back; a deletion by hand and a link that falls do."""
    sh("ip link set d0 up")
    sh("ip addr add 10.0.0.1/24 dev d0")
    await kernel.next_events()
    nexthop = NexthopReplace(NEXTHOP_ID_FIRST, Nexthop("d0", pack_address("10.0.0.2")))
    assert await kernel.apply_fib([nexthop, RouteReplace(MAIN_TABLE, PREFIX, nexthop.id)]) == []
    sh("ip route add 30.0.0.0/24 dev d0")
    sh("ip route del 20.0.0.0/24")
    async with asyncio.timeout(2):
        events = [e for e in await kernel.next_events() if isinstance(e, FibEvent)]
    assert events == [FibEvent("route")]
    sh("ip link set d0 down")
    async with asyncio.timeout(2):
        events = await kernel.next_events()
    assert any(isinstance(e, LinkEvent) and (e.device, e.up) == ("d0", False) for e in events)
    assert (await kernel.observe_fib()).nexthops == {}


async def test_a_device_of_the_same_name_is_refused(kernel):
    """A link that carries our name but not our mark is neither changed nor deleted."""
    from router.errors import KernelError
    from router.reconcile.objects import VrfLink

    with pytest.raises(KernelError, match="not ours"):
        await kernel.apply(Action(Verb.CREATE, VrfLink("d0", 100)))
    with pytest.raises(KernelError, match="not ours"):
        await kernel.apply(Action(Verb.DELETE, VrfLink("d0", 100)))

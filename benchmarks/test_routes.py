"""Routes into the kernel, and all of them moved to other next hops; beside iproute2 and pyroute2.

    sudo .venv/bin/pytest benchmarks/test_routes.py --benchmark-group-by=group

Every case runs in a network namespace of its own. Compare within one run: the machine may be busy.
`extra_info` has routes per second of wall clock and of CPU time (this process with the kernel's
part of it), the latter being the steadier figure on a shared machine.
"""

import asyncio
import ctypes
import os
import subprocess
import time

import pytest

from router.fib_ops import MAIN_TABLE, NEXTHOP_ID_FIRST, GroupReplace, NexthopReplace, RouteReplace
from router.kernel.fib import FibSocket, _Encoder
from router.model import Afi, Nexthop, Prefix, pack_address

pytestmark = pytest.mark.root

CLONE_NEWNET = 0x40000000
SINGLES = tuple(NEXTHOP_ID_FIRST + i for i in range(4))
GROUP = NEXTHOP_ID_FIRST + 16


@pytest.fixture
def namespace():
    """A network namespace with a device that has four neighbours, and nexthop_compat_mode off."""
    if os.geteuid():
        pytest.skip("needs root")
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/self/ns/net", os.O_RDONLY)
    assert libc.unshare(CLONE_NEWNET) == 0
    try:
        for command in (
            "ip link set lo up",
            "ip link add d0 type veth peer name d1",
            "ip link set d0 up",
            "ip link set d1 up",
            "ip addr add 10.0.0.1/24 dev d0",
            "sysctl -qw net.ipv4.nexthop_compat_mode=0",
        ):
            subprocess.run(command.split(), check=True)
        yield
    finally:
        assert libc.setns(before, CLONE_NEWNET) == 0
        os.close(before)


@pytest.fixture
def fib(namespace):
    """A socket with four next hops and a group over them."""
    sock = FibSocket()
    ops = [
        NexthopReplace(identifier, Nexthop("d0", pack_address(f"10.0.0.{i}")))
        for i, identifier in enumerate(SINGLES, start=2)
    ]
    assert asyncio.run(sock.apply([*ops, GroupReplace(GROUP, Afi.IPV4, SINGLES)])) == []
    yield sock
    sock.close()


def prefixes(count):
    return [Prefix((0x14000000 + (i << 8)).to_bytes(4, "big"), 24) for i in range(count)]


def flush():
    subprocess.run(["ip", "route", "flush", "proto", "205"], check=True, capture_output=True)


def rate(benchmark, count, cpu_s):
    benchmark.extra_info["routes_per_s"] = round(count / benchmark.stats.stats.median)
    benchmark.extra_info["routes_per_cpu_s"] = round(count * benchmark.stats.stats.rounds / cpu_s)


@pytest.mark.parametrize("count", [10_000, 100_000])
def test_install_packed(benchmark, fib, count):
    """Our way: packed messages that point at a nexthop group."""
    ops = [RouteReplace(MAIN_TABLE, prefix, GROUP) for prefix in prefixes(count)]
    benchmark.group = f"install {count} routes"
    cpu = []

    def install():
        before = time.process_time()
        assert asyncio.run(fib.apply(ops)) == []
        cpu.append(time.process_time() - before)

    benchmark.pedantic(install, setup=flush, rounds=3)
    assert len(asyncio.run(fib.observe()).routes) == count
    rate(benchmark, count, sum(cpu))


@pytest.mark.parametrize("count", [10_000, 100_000])
def test_install_ip_batch(benchmark, namespace, tmp_path, count):
    """iproute2: `ip -batch` with one next hop each."""
    file = tmp_path / "batch"
    file.write_text("".join(f"route replace {p} via 10.0.0.2 proto 205\n" for p in prefixes(count)))
    benchmark.group = f"install {count} routes"
    benchmark.pedantic(lambda: subprocess.run(["ip", "-batch", str(file)], check=True), setup=flush, rounds=3)
    benchmark.extra_info["routes_per_s"] = round(count / benchmark.stats.stats.median)


def test_install_pyroute2_one_at_a_time(benchmark, namespace):
    """pyroute2's `route("add")`; 1,000 routes, because it would take minutes."""
    from pyroute2 import IPRoute

    count = 1_000
    benchmark.group = "install 10000 routes"
    with IPRoute() as route:
        index = route.link_lookup(ifname="d0")[0]

        def install():
            for prefix in prefixes(count):
                route.route("replace", dst=str(prefix), gateway="10.0.0.2", oif=index, proto=205)

        benchmark.pedantic(install, setup=flush, rounds=1)
    benchmark.extra_info["routes"] = count
    benchmark.extra_info["routes_per_s"] = round(count / benchmark.stats.stats.median)


@pytest.mark.parametrize("count", [10_000, 100_000])
def test_group_switch(benchmark, fib, count):
    """All routes leave two of four next hops: one group replace, whatever the table's size."""
    assert asyncio.run(fib.apply([RouteReplace(MAIN_TABLE, p, GROUP) for p in prefixes(count)])) == []
    benchmark.group = "group switch"
    members = [SINGLES, SINGLES[:2]]

    def switch():
        members.reverse()
        op = GroupReplace(GROUP, Afi.IPV4, members[0])
        parts = []
        _Encoder().add(op, 0, parts)
        assert fib._send(b"".join(parts), [op]) == []

    benchmark.pedantic(switch, rounds=50, warmup_rounds=2)
    assert benchmark.stats.stats.median < 0.001

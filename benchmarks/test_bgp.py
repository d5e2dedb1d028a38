"""10,000 prefixes from the peer's first UPDATE to the kernel, beside BIRD doing the same.

    make bench            or: pytest benchmarks/test_bgp.py -s      (root: it makes namespaces)

The peer is a BIRD in a namespace of its own with two sessions to the router's namespace. It holds
its routes back until the sessions are up; the clock runs from the moment it lets them go until
`ip route` counts all of them in the router's kernel. The same peer, the same polling and the same
kernel for both. What runs in this process (Speaker, Rib, Fib, netlink) stands for routerd.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / part) for part in ("bgp", "unit/bgp")]

from bgp_builders import LOCAL_ASN, PEER_ASN, make_config  # noqa: E402
from bgp_live import Bench, Routerd, bench, until  # noqa: E402

from router.bgp.rib import SessionChange  # noqa: E402
from router.bgp.speaker import Routes, Synced  # noqa: E402
from router.kernel.fib import FibSocket  # noqa: E402

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

PREFIXES = [f"172.{16 + (n >> 16)}.{n >> 8 & 255}.{n & 255}/32" for n in range(10_000)]
ROUNDS = 3


class Installing(Routerd):
    """The router with a kernel behind it."""

    kernel: FibSocket

    async def _drain(self) -> None:
        while True:
            event = await self.speaker.events.get()
            while True:
                match event:
                    case Routes(changes):
                        for change in changes:
                            self.fib.set_route(change.table, change.prefix, change.nexthops)
                    case Synced():
                        self.synced = True
                        self.fib.sweep()
                    case SessionChange():
                        pass
                if self.speaker.events.empty():
                    break
                event = self.speaker.events.get_nowait()
            failures = await self.kernel.apply(self.fib.take_outputs())
            assert failures == [], failures[:2]


@contextmanager
def inside(net: Bench) -> Iterator[None]:
    """Be in the router's namespace, as routerd is."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/self/ns/net").open() as home, Path(f"/run/netns/{net.router}").open() as router:
        assert libc.setns(router.fileno(), 0x40000000) == 0
        try:
            yield
        finally:
            assert libc.setns(home.fileno(), 0x40000000) == 0


def routes(net: Bench) -> int:
    done = subprocess.run(["ip", "-n", net.router, "-4", "route"], capture_output=True, check=True)
    return done.stdout.count(b"172.")


async def counted(net: Bench, wanted: int) -> None:
    loop = asyncio.get_running_loop()
    deadline = time.monotonic() + 60
    while await loop.run_in_executor(None, routes, net) != wanted:
        assert time.monotonic() < deadline, "the routes did not arrive"
        await asyncio.sleep(0.02)


def rss_mib(pid: int) -> float:
    return psutil.Process(pid).memory_info().rss / 2**20


def measure(benchmark, net: Bench, loop: asyncio.AbstractEventLoop, pids) -> None:
    def hold_back():
        net.birdc("disable", "s4")
        loop.run_until_complete(counted(net, 0))

    def let_go():
        net.birdc("enable", "s4")
        loop.run_until_complete(counted(net, len(PREFIXES)))

    benchmark.pedantic(let_go, setup=hold_back, rounds=ROUNDS)
    found = {name: f"{rss_mib(pid):.1f} MiB" for name, pid in pids().items()}
    benchmark.extra_info |= {"prefixes": len(PREFIXES), "sessions": net.channels, "rss": found}
    print(f"\n{benchmark.name}: RSS {found}")


def test_router_10k_prefixes_to_kernel(benchmark):
    """ExaBGP, shim, Rib, Fib, netlink."""
    with bench(2) as net, asyncio.Runner() as runner, inside(net):
        net.bird(PREFIXES, [], password=None)
        config = make_config(2, families=("ipv4",))
        routerd = Installing(net, config)
        routerd.kernel = FibSocket()
        runner.run(routerd.start())

        async def ready():
            await until(routerd.all_established, "sessions")

        def pids():
            found = {"routerd (this process, with pytest)": os.getpid()}
            for name, process in routerd.exabgp.items():
                found[name] = process.pid
                for child in psutil.Process(process.pid).children():
                    found[f"shim of {name}"] = child.pid
            return found

        runner.run(ready())
        measure(benchmark, net, runner.get_loop(), pids)
        runner.run(routerd.stop())
        routerd.kernel.close()


def test_bird_10k_prefixes_to_kernel(benchmark):
    """BIRD as the router, ECMP over the same two links."""
    with bench(2) as net, asyncio.Runner() as runner:
        net.bird(PREFIXES, [], password=None)
        text = ["router id 10.255.0.1;", "protocol device {}"]
        text.append("protocol kernel { merge paths on; ipv4 { import none; export all; }; }")
        text += [
            f"protocol bgp u{n} {{ local 169.254.{n}.1 as {LOCAL_ASN}; neighbor 169.254.{n}.2 as {PEER_ASN};"
            " connect delay time 1; connect retry time 1; ipv4 { import all; export none; }; }"
            for n in (1, 2)
        ]
        path = net.run_dir / "router.conf"
        path.write_text("\n".join(text) + "\n")
        control = str(net.run_dir / "router.ctl")
        process = net.spawn(net.router, "/usr/sbin/bird", "-f", "-c", str(path), "-s", control)

        def established():
            shown = subprocess.run(
                ["birdc", "-s", control, "show", "protocols"], capture_output=True, check=False
            )
            return shown.stdout.count(b"Established") == 2

        async def ready():
            await until(established, "sessions")

        runner.run(ready())
        measure(benchmark, net, runner.get_loop(), lambda: {"bird": process.pid})

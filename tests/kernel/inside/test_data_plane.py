"""Our data plane on what a small kernel may lack: a LAG as its port, a VRF around its TAPs."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "dataplane"))
from gateways import ip, key, pair, until, wire

RECONCILE = """
import asyncio
from router.kernel.netlink import NetlinkKernel
from router.reconcile.diff import plan
from router.reconcile.objects import Address, DesiredState, TapLink, VrfLink

async def main():
    tap = TapLink("f.100", 8500, "blue", up=True)
    wanted = DesiredState((VrfLink("blue", 100), tap, Address("f.100", "10.9.0.1", 24, tap.key)))
    kernel = await NetlinkKernel.open()
    for _ in range(2):
        for action in plan(wanted, await kernel.observe(wanted)).actions:
            await kernel.apply(action)
    assert not plan(wanted, await kernel.observe(wanted)).actions
    await kernel.close()

asyncio.run(main())
"""
"""What routerd does, in the namespace of the data plane's TAP."""


@pytest.mark.parametrize("path", ["packet", "auto"])
async def test_a_lag_is_a_port_like_any_other(path):
    """Two members with LACP: packets of the full MTU pass, one member down or the other, never in clear."""
    async with wire(path, lag=True) as (a, b):
        for gateway in (a, b):
            await gateway.start()
            await gateway.want()
            gateway.address()
        await key(a, b)
        for gateway in (a, b):
            await until(gateway.carrier, f"{gateway.name} has carrier")
        await until(lambda: a.ping("10.9.0.2", count_=1), "ping passes")
        seen = [await b.helper("capture", member) for member in ("m0", "m1")]
        assert a.ping("10.9.0.2", size=8500 - 28)
        for member in ("m0", "m1"):
            ip("-n", a.ns, "link", "set", member, "down")
            await until(lambda: a.ping("10.9.0.2", size=8500 - 28), f"ping passes without {member}")
            ip("-n", a.ns, "link", "set", member, "up")
            await until(lambda m=member: _is_aggregated(a.ns, m), f"{member} is back")
        counts = [(await capture.end())["counts"] for capture in seen]
        assert all(set(count) <= {"88e5", "8809"} for count in counts)
        assert all("8809" in count for count in counts)
        for gateway in (a, b):
            ip("-n", gateway.ns, "link", "set", "m0", "down")
            ip("-n", gateway.ns, "link", "set", "m1", "down")

        async def down():
            return not await a.carrier()

        await until(down, "a LAG without members has no carrier, and so has its TAP none")


def _is_aggregated(ns, member):
    """LACP has put the member into the group that carries frames."""
    shown = json.loads(ip("-n", ns, "-d", "-j", "link", "show", member))[0]
    slave = shown["linkinfo"]["info_slave_data"]
    return slave["mii_status"] == "UP" and slave["state"] == "ACTIVE"


async def test_taps_can_be_in_a_vrf():
    """The reconciler puts the TAP into its VRF: its packets and routes are that VRF's, and nobody else's."""
    async with pair() as (a, b):
        done = a.run(sys.executable, "-c", RECONCILE)
        assert done.returncode == 0, done.stderr
        link = json.loads(a.run("ip", "-j", "link", "show", "f.100").stdout)[0]
        assert link["master"] == "blue"
        assert "10.9.0.0/24" in a.run("ip", "route", "show", "table", "100").stdout
        assert "10.9.0.0/24" not in a.run("ip", "route", "show").stdout
        await until(
            lambda: a.run("ping", "-c1", "-W1", "-I", "blue", "10.9.0.2").returncode == 0, "ping in the VRF"
        )
        assert a.run("ping", "-c1", "-W1", "10.9.0.2").returncode != 0
        assert b.ping("10.9.0.1", size=8500 - 28)
        await a.want()  # as routerd does every second: the VRF is not the data plane's business
        link = json.loads(a.run("ip", "-j", "link", "show", "f.100").stdout)[0]
        assert link["master"] == "blue"

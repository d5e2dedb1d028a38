"""A channel on a LAG: members guarded, enslaved while down, macsec on the bond."""

from conftest import ip

from router.kernel.netlink import NetlinkKernel
from router.model import CipherSuite
from router.reconcile.diff import plan
from router.reconcile.objects import BondLink, DesiredState, EgressGuard, MacsecLink, PortLink, Sysctl

SECURED = (0x888E, 0x88E5)


def member(name):
    return (
        Sysctl(("net", "ipv6", "conf", name, "disable_ipv6"), "1", name),
        EgressGuard(name, (0x8809, *SECURED)),
        PortLink(name, 9100, up=True, guarded=True, bond="lag0"),
    )


LAG = DesiredState(
    (
        BondLink("lag0", lacp_fast=True, min_links=1),
        *member("port1"),
        *member("port2"),
        EgressGuard("lag0", SECURED),
        PortLink("lag0", 9100, up=True, guarded=True),
        MacsecLink("ms1", "lag0", 9068, 1, CipherSuite.GCM_AES_XPN_256, 64, send_sci=True, up=True),
    )
)


async def test_a_lag_is_built_and_taken_down(wire):
    """Two looks reach it, a third finds nothing to do; release leaves the ports, down."""
    wire("port1", "peer1")
    wire("port2", "peer2")
    kernel = await NetlinkKernel.open()
    try:
        for _ in range(2):
            for action in plan(LAG, await kernel.observe(LAG)).actions:
                await kernel.apply(action)
        observed = await kernel.observe(LAG)
        assert not plan(LAG, observed).describe()
        assert {observed.links[p].master for p in ("port1", "port2")} == {"lag0"}
        assert "802.3ad" in ip("-d link show lag0")
        for action in plan(DesiredState(), observed).actions:
            await kernel.apply(action)
        links = await kernel.link_facts()
        assert "lag0" not in links
        assert not links["port1"].up
    finally:
        await kernel.close()

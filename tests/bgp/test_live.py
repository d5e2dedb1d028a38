"""ExaBGP, shim, Speaker, Rib and Fib against independent BGP daemons."""

import pytest
from bgp_builders import make_config
from bgp_live import REF, Routerd, bench, until

from router.bgp.policy import Reason
from router.fib_ops import GroupReplace, NexthopReplace, RouteReplace
from router.model import Prefix

V4 = ["10.20.1.0/24", "10.20.2.0/24", "192.0.2.0/24"]
V6 = ["2001:db8:20:1::/64", "2001:db8:bad::/48"]


@pytest.mark.parametrize("daemon", ["frr", "bird", "gobgp"])
async def test_routes_of_a_foreign_peer_become_kernel_operations(daemon):
    """With MD5, both families: accepted prefixes get one group per family, refused ones a reason."""
    with bench(2) as net:
        getattr(net, daemon)(V4, V6)
        routerd = Routerd(net, make_config(2, password=REF))
        try:
            await routerd.start()
            await until(routerd.all_established, "sessions")
            await until(lambda: routerd.synced, "synced")
            wanted = {Prefix.parse(p) for p in (*V4[:2], V6[0])}
            await until(lambda: set(routerd.routes) == wanted, "routes")
            await until(lambda: all(len(hops) == 2 for hops in routerd.routes.values()), "multipath")
            groups = {op.id: op for op in routerd.ops if isinstance(op, GroupReplace)}
            nexthops = {op.id: op.nexthop for op in routerd.ops if isinstance(op, NexthopReplace)}
            last = {op.prefix: op.nexthop_id for op in routerd.ops if isinstance(op, RouteReplace)}
            for prefix, hops in routerd.routes.items():
                assert {nexthops[n] for n in groups[last[prefix]].members} == set(hops)
            rejected = routerd.speaker.rib().rejected("prod/c1/ipv4")
            assert rejected[Prefix.parse("192.0.2.0/24")] is Reason.NOT_ACCEPTED
            assert set(rejected.values()) <= {Reason.NOT_ACCEPTED, Reason.OWN_AS}  # FRR sends ours back
        finally:
            await routerd.stop()

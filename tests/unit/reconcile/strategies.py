"""Random desired states over a handful of names, so that two of them collide often."""

from hypothesis import strategies as st

from router.model import CipherSuite
from router.reconcile.objects import (
    Address,
    ControlPlaneRules,
    DesiredState,
    EgressGuard,
    MacsecLink,
    PeerRule,
    PortLink,
    Sysctl,
    VlanLink,
    VrfLink,
)

PORTS = ("p1", "p2", "p3")


@st.composite
def channels(draw, port):
    number = port[1:]
    mtu = draw(st.sampled_from((1600, 9100)))
    up = draw(st.booleans())
    yield_objects = [
        EgressGuard(port, (0x888E, 0x88E5)),
        PortLink(port, mtu, up, guarded=True),
        MacsecLink(
            f"ms{number}",
            port,
            draw(st.sampled_from((mtu - 32, 1500))),
            draw(st.sampled_from((1, 2))),
            draw(st.sampled_from(list(CipherSuite))),
            draw(st.sampled_from((0, 64))),
            draw(st.booleans()),
            up,
        ),
    ]
    for vid in draw(st.lists(st.sampled_from((1101, 1102)), unique=True)):
        vrf = draw(st.sampled_from((None, "red")))
        vlan = VlanLink(f"ms{number}.{vid}", f"ms{number}", vid, draw(st.sampled_from((1400, 1492))), vrf, up)
        yield_objects.append(vlan)
        yield_objects.append(Sysctl(("net", "ipv4", "conf", vlan.name, "rp_filter"), "2", vlan.name))
        for last in draw(st.lists(st.sampled_from((1, 2)), unique=True)):
            address = f"169.254.{number}.{last}" if vid == 1101 else f"fd00:{number}::{last}"
            yield_objects.append(Address(vlan.name, address, 30 if vid == 1101 else 126, vlan.key))
    return yield_objects


@st.composite
def desired_states(draw):
    objects = [VrfLink("red", draw(st.sampled_from((1001, 1002))))]
    peers = draw(st.lists(st.sampled_from(("10.0.0.2", "fd00::2")), unique=True))
    if peers or draw(st.booleans()):
        objects.append(ControlPlaneRules(tuple(sorted(PeerRule("ms1.1101", peer) for peer in peers))))
    for port in draw(st.lists(st.sampled_from(PORTS), unique=True)):
        objects += draw(channels(port))
    return DesiredState(tuple(objects))

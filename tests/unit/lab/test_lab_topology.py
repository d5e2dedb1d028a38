"""Topologies: what the files say is what gets built, and mistakes in them are sentences."""

import copy
import dataclasses
import re

import pytest

from router.errors import LabError
from router.lab import box, topology
from router.lab.network import Network

CONFIG = """
router: {name: r1, asn: 65010}
interconnects:
  - name: m
    profile: generic
    macsec: {suite: gcm-aes-256}
    channels:
      - name: a1
        site: s1
        macsec:
          static:
            peer_sci: 02:00:00:00:01:01/1
            transmit: {an: 0, sak: {file: a-tx.sak}}
            receive: {an: 1, sak: {file: a-rx.sak}}
connections:
  - interconnect: m
    mtu: 1500
    advertise: [10.1.0.0/24]
    features:
      - channel: a1
        vlan: 1100
        ipv4: {local: 169.254.1.1/30, peer: 169.254.1.2}
        ipv6: {local: fd00::1/126, peer: fd00::2}
        bgp: {peer_asn: 65020}
"""
HOST = {"address4": "10.1.0.10", "address6": "2001:db8::10"}
RAW = {
    "name": "one",
    "nodes": ["br", "r", "pe1", "cloud"],
    "router": "r",
    "branch": {"node": "br", **HOST},
    "cloud": {"node": "cloud", **HOST},
    "announce": ["10.2.0.0/24"],
    "wires": [
        {"ends": ["br:eth0", "r:lan0"], "mtu": 1500},
        {"ends": ["pe1:port 02:00:00:00:01:01", "r:port1 02:00:00:00:01:02"], "mtu": 1600},
    ],
    "addresses": {"br": {"eth0": ["10.1.0.10/24"]}, "cloud": {"lo": ["10.2.0.10/32"]}},
    "edges": {"pe1": {"channel": "a1", "port": "port", "router_id": "10.0.0.1"}},
}


@pytest.mark.parametrize("name", topology.names())
def test_topology_survives_the_way_into_the_machine(name):
    """The machine reads exactly what the host resolved."""
    loaded = topology.load(name)
    assert topology.Topology.from_json(loaded.to_json()) == loaded


@pytest.mark.parametrize("name", topology.names())
def test_topology_says_what_it_is(name):
    """`lab list` has a line for each."""
    assert topology.load(name).about


def test_four_and_eight_channels_are_there():
    """The two topologies of the product, with as many edges as they are called after."""
    assert len(topology.load("four-channels").edges) == 4
    assert len(topology.load("eight-channels").edges) == 8


@pytest.mark.parametrize("name", topology.names())
def test_every_end_of_a_wire_has_a_mac_of_its_own(name):
    """A port's MAC address is its SCI, and a box finds its devices by them."""
    loaded = topology.load(name)
    macs = [end.mac for wire in loaded.wires for end in (wire.a, wire.b)]
    assert all(macs)
    assert len(macs) == len(set(macs))


def test_boxes_share_the_nodes_out():
    """Every node of the topology is in exactly one box."""
    loaded = topology.load("four-channels")
    nodes = [
        node
        for role in ("router", "branch", "cloud", "site-a", "site-b")
        for node in box.nodes_of(loaded, role)
    ]
    assert sorted(nodes) == sorted(loaded.nodes)
    with pytest.raises(LabError, match="no box 'site-z'"):
        box.nodes_of(loaded, "site-z")


def test_vagrant_gives_every_device_its_mac():
    """The Vagrantfile's wires have the addresses by which a box finds its devices."""
    text = (topology.config_directory().parent / "vagrant" / "Vagrantfile").read_text()
    loaded = topology.load("four-channels")
    listed = {bytes.fromhex(m).hex(":") for m in re.findall(r'"(02[0-9a-f]{10})"', text)}
    assert {end.mac for wire in loaded.wires for end in (wire.a, wire.b)} == listed


def test_edge_is_the_channel_seen_from_the_other_side():
    """What the router sends with, the edge receives with, and the other way round."""
    edge = topology.resolve(RAW, CONFIG, "c.yaml").edges[0]
    assert (edge.transmit.sak_file, edge.receive.sak_file) == ("a-rx.sak", "a-tx.sak")
    assert (edge.transmit.an, edge.receive.an) == (1, 0)
    assert (edge.ipv4.own, edge.ipv4.router) == ("169.254.1.2", "169.254.1.1")
    assert (edge.asn, edge.router_asn) == (65020, 65010)
    assert edge.gtsm
    assert edge.md5_file == ""
    assert edge.router_port == "port1"


def test_secrets_have_the_length_of_the_suite():
    """A SAK of a 256-bit suite has 32 octets."""
    assert topology.resolve(RAW, CONFIG, "c.yaml").secrets == (
        ("a-rx.sak", "hex", 32),
        ("a-tx.sak", "hex", 32),
    )


def test_wires_are_made_in_their_namespaces():
    """Both ends of a pair are created where they belong, with MTU and MAC."""
    lines = Network(topology.resolve(RAW, CONFIG, "c.yaml"))._namespaces_and_wires()
    assert lines[:4] == ["netns add br", "netns add r", "netns add pe1", "netns add cloud"]
    assert (
        "link add name port mtu 1600 netns pe1 address 02:00:00:00:01:01 type veth "
        "peer name port1 mtu 1600 netns r address 02:00:00:00:01:02" in lines
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw["wires"].append(raw["wires"][0]), "end of two wires"),
        (lambda raw: raw["addresses"].update(ghost={"lo": ["10.0.0.1/32"]}), "ghost"),
        (lambda raw: raw["addresses"]["br"].update(eth9=["10.0.0.1/32"]), "eth9 has an address but no wire"),
        (lambda raw: raw["edges"]["pe1"].update(channel="zz"), "no channel 'zz'"),
        (lambda raw: raw["edges"]["pe1"].update(port="nope"), "no wire begins at pe1:nope"),
        (lambda raw: raw["wires"].__setitem__(1, {"ends": ["pe1:port", "r:port1"], "mtu": 9}), "expects SCI"),
        (lambda raw: raw["wires"][0].update(ends=["br", "r:lan0"]), "NODE:DEVICE"),
        (lambda raw: raw.pop("cloud"), "'cloud' is missing"),
    ],
)
def test_mistakes_are_named(change, message):
    """A wrong topology is a LabError that says what is wrong."""
    raw = copy.deepcopy(RAW)
    change(raw)
    with pytest.raises(LabError, match=message):
        topology.resolve(raw, CONFIG, "c.yaml")


def test_unknown_topology_lists_the_known_ones():
    """A wrong name is answered with the right ones."""
    with pytest.raises(LabError, match="four-channels"):
        topology.load("five-channels")


def test_topology_is_a_value():
    """Nothing changes a topology after it was resolved."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        topology.load("four-channels").name = "x"

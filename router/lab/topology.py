"""What a lab is made of: nodes, wires, addresses and provider edges, from one short YAML file.

A topology names the router's configuration file, which the lab runs as it stands. Each edge says
which channel of that file it ends; its VLAN, addresses, keys and BGP parameters are the channel's,
seen from the other side. They are read here from the plain YAML, by name, and not through
`router.config`: the far end must not agree with the router merely because both asked the same code.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

import router
from router.errors import LabError

PROFILE_GTSM: Final = {"aws-dx": False, "azure-er": False, "gcp": False, "generic": True}
"""Whether a provider's edge sends and requires TTL 255 (RFC 5082); else TTL 1."""

PROFILE_TIMERS: Final = {"aws-dx": (30, 90), "azure-er": (60, 180), "gcp": (20, 60), "generic": (10, 30)}
"""Keepalive and hold time of the edge, in seconds."""


@dataclass(frozen=True, slots=True)
class End:
    """One end of a wire."""

    node: str
    device: str
    mac: str
    """MAC address, or empty for one the kernel makes up."""


@dataclass(frozen=True, slots=True)
class Wire:
    """A veth pair."""

    a: End
    b: End
    mtu: int


@dataclass(frozen=True, slots=True)
class Host:
    """A node that packets are sent from or to, with the addresses to use."""

    node: str
    address4: str
    address6: str


@dataclass(frozen=True, slots=True)
class Pair:
    """The edge's own address and the router's, in one subnet."""

    own: str
    router: str
    length: int


@dataclass(frozen=True, slots=True)
class Key:
    """One direction of a static SA: where its SAK is (relative to the configuration), SSCI, AN."""

    sak_file: str
    ssci: int
    an: int


NO_KEY: Final = Key("", 0, 0)
"""Where keys are agreed upon."""


@dataclass(frozen=True, slots=True)
class Edge:
    """A provider's edge router at the far end of one channel."""

    node: str
    channel: str
    site: str
    port: str
    router_port: str
    router_id: str
    suite: str
    salt: str
    transmit: Key
    """The edge's: the channel's receive key."""
    receive: Key
    router_sci_mac: str
    vlan: int
    mtu: int
    ipv4: Pair
    ipv6: Pair
    asn: int
    router_asn: int
    md5_file: str
    """Relative to the configuration; empty where the session has no password."""
    router_prefixes: tuple[str, ...]
    """What the router advertises: routes back for a speaker without a forwarding table."""
    gtsm: bool
    keepalive_s: int
    hold_s: int
    key_directory: str = ""
    """The channel's key chain, relative to the configuration; empty where the keys are static."""
    priority: int = 16
    """Key Server Priority of the edge."""


@dataclass(frozen=True, slots=True)
class Topology:
    """A whole lab, resolved: nothing more needs to be looked up to build it."""

    name: str
    about: str
    config: str
    """The router's configuration, the file's text."""
    config_name: str
    nodes: tuple[str, ...]
    router: str
    branch: Host
    cloud: Host
    announce: tuple[str, ...]
    wires: tuple[Wire, ...]
    addresses: tuple[tuple[str, str, str], ...]
    """(node, device, address with prefix length)."""
    routes: tuple[tuple[str, str, tuple[str, ...]], ...]
    """(node, prefix, gateways)."""
    edges: tuple[Edge, ...]
    secrets: tuple[tuple[str, str, int], ...]
    """(file relative to the configuration, kind `hex` or `text`, octets) to be made up at lab-up; of kind
    `chain` it is a key directory with one CAK of that size."""

    def to_json(self) -> str:
        """Text for the machine, where no YAML needs to be read."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Topology:
        """Undo `to_json`."""
        raw = json.loads(text)
        raw["branch"], raw["cloud"] = Host(**raw["branch"]), Host(**raw["cloud"])
        raw["wires"] = tuple(Wire(End(**w["a"]), End(**w["b"]), w["mtu"]) for w in raw["wires"])
        raw["edges"] = tuple(
            Edge(
                **{
                    **e,
                    "transmit": Key(**e["transmit"]),
                    "receive": Key(**e["receive"]),
                    "ipv4": Pair(**e["ipv4"]),
                    "ipv6": Pair(**e["ipv6"]),
                    "router_prefixes": tuple(e["router_prefixes"]),
                }
            )
            for e in raw["edges"]
        )
        for name in ("nodes", "announce", "addresses", "secrets"):
            raw[name] = tuple(tuple(v) if isinstance(v, list) else v for v in raw[name])
        raw["routes"] = tuple((node, prefix, tuple(gateways)) for node, prefix, gateways in raw["routes"])
        return cls(**raw)

    def with_secy(self, secy: str) -> Topology:
        """The same with this `secy` in every interconnect of the configuration; `auto` changes nothing."""
        if secy == "auto":
            return self
        text = re.sub(r"^( +)profile: .*$", rf"\g<0>\n\1secy: {secy}", self.config, flags=re.MULTILINE)
        return dataclasses.replace(self, config=text)

    def edge(self, node: str) -> Edge:
        """Look an edge up by its node. Raises KeyError."""
        for edge in self.edges:
            if edge.node == node:
                return edge
        raise KeyError(node)


def names() -> list[str]:
    """The topologies that come with the lab."""
    folder = resources.files("router.lab") / "topologies"
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def config_directory() -> Path:
    """Where the example configurations are: beside the package, in the checkout. Raises LabError."""
    path = Path(router.__file__).parent.parent / "config"
    if not path.is_dir():
        raise LabError(f"{path} is missing: the lab runs the example configurations of a checkout")
    return path


def load(name: str) -> Topology:
    """Load a topology that comes with the lab, by name. Raises LabError."""
    if name not in names():
        raise LabError(f"there is no topology {name!r}; there are {', '.join(names())}")
    text = (resources.files("router.lab") / "topologies" / f"{name}.yaml").read_text()
    raw = _yaml(text)
    path = config_directory() / raw["config"]
    try:
        config = path.read_text()
    except OSError as error:
        raise LabError(f"topology {name}: {path}: {error.strerror}") from error
    return resolve(raw, config, path.name)


def resolve(raw: dict[str, Any], config_text: str, config_name: str) -> Topology:
    """Make a topology of its YAML mapping and the configuration's text. Raises LabError."""
    try:
        return _resolve(raw, config_text, config_name)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise LabError(f"topology {raw.get('name', '?')}: {what}") from error


def _resolve(raw: dict[str, Any], config_text: str, config_name: str) -> Topology:
    config = _yaml(config_text)
    nodes = tuple(raw["nodes"])
    wires = tuple(Wire(_end(w["ends"][0]), _end(w["ends"][1]), int(w["mtu"])) for w in raw["wires"])
    devices = {(end.node, end.device) for wire in wires for end in (wire.a, wire.b)}
    if len(devices) != 2 * len(wires):
        raise ValueError("a device is the end of two wires")
    addresses = tuple(
        (node, device, str(address))
        for node, by_device in raw["addresses"].items()
        for device, several in by_device.items()
        for address in several
    )
    for node, device in sorted(devices | {(a[0], a[1]) for a in addresses}):
        if node not in nodes:
            raise ValueError(f"node {node!r} of {node}:{device} is not in nodes")
        if device != "lo" and (node, device) not in devices:
            raise ValueError(f"{node}:{device} has an address but no wire")
    edges = tuple(_edge(node, e, config, wires) for node, e in raw["edges"].items())
    secrets = []
    for edge in edges:
        octets = 32 if edge.suite.endswith("256") else 16
        if edge.key_directory:
            secrets.append((edge.key_directory, "chain", octets))
        else:
            secrets += [(edge.transmit.sak_file, "hex", octets), (edge.receive.sak_file, "hex", octets)]
        if edge.md5_file:
            secrets.append((edge.md5_file, "text", 24))
    return Topology(
        name=raw["name"],
        about=raw.get("about", ""),
        config=config_text,
        config_name=config_name,
        nodes=nodes,
        router=raw["router"],
        branch=Host(**raw["branch"]),
        cloud=Host(**raw["cloud"]),
        announce=tuple(raw["announce"]),
        wires=wires,
        addresses=addresses,
        routes=tuple(
            (node, str(prefix), tuple(gateways))
            for node, by_prefix in raw.get("routes", {}).items()
            for prefix, gateways in by_prefix.items()
        ),
        edges=edges,
        secrets=tuple(dict.fromkeys(secrets)),
    )


def _edge(node: str, raw: dict[str, Any], config: dict[str, Any], wires: tuple[Wire, ...]) -> Edge:
    name = raw["channel"]
    found = [(i, c) for i in config["interconnects"] for c in i["channels"] if c["name"] == name]
    features = [(c, f) for c in config["connections"] for f in c["features"] if f["channel"] == name]
    if not found or not features:
        raise ValueError(f"edge {node}: the configuration has no channel {name!r} with a feature")
    (interconnect, channel), (connection, feature) = found[0], features[0]
    port = next((w for w in wires if (w.a.node, w.a.device) == (node, raw["port"])), None)
    if port is None:
        raise ValueError(f"edge {node}: no wire begins at {node}:{raw['port']}")
    chain = channel["macsec"].get("key_chain")
    static = channel["macsec"].get("static") or {}
    if not chain and static["peer_sci"] != f"{port.a.mac}/1":
        raise ValueError(
            f"edge {node}: channel {name} expects SCI {static['peer_sci']}, the wire has {port.a.mac}/1"
        )
    profile = interconnect["profile"]
    keepalive_s, hold_s = PROFILE_TIMERS[profile]
    password = feature["bgp"].get("password")
    return Edge(
        node=node,
        channel=name,
        site=channel["site"],
        port=raw["port"],
        router_port=port.b.device,
        router_id=raw["router_id"],
        suite=interconnect["macsec"]["suite"],
        salt=str(static.get("salt", "")),
        transmit=NO_KEY if chain else _key(static["receive"]),
        receive=NO_KEY if chain else _key(static["transmit"]),
        router_sci_mac=port.b.mac,
        vlan=int(feature["vlan"]),
        mtu=int(connection["mtu"]),
        ipv4=_pair(feature["ipv4"]),
        ipv6=_pair(feature["ipv6"]),
        asn=int(feature["bgp"]["peer_asn"]),
        router_asn=int(config["router"]["asn"]),
        md5_file=password["file"] if password else "",
        router_prefixes=tuple(connection["advertise"]),
        gtsm=PROFILE_GTSM[profile],
        keepalive_s=keepalive_s,
        hold_s=hold_s,
        key_directory=chain["directory"] if chain else "",
        priority=int(raw.get("priority", 16)),
    )


def _key(raw: dict[str, Any]) -> Key:
    return Key(raw["sak"]["file"], int(raw.get("ssci", 0)), int(raw["an"]))


def _pair(raw: dict[str, Any]) -> Pair:
    address, _, length = raw["local"].partition("/")
    return Pair(own=raw["peer"], router=address, length=int(length))


def _end(text: str) -> End:
    where, _, mac = text.partition(" ")
    node, colon, device = where.partition(":")
    if not colon or not device:
        raise ValueError(f"{text!r}: a wire's end is NODE:DEVICE [MAC]")
    return End(node, device, mac.strip())


def _yaml(text: str) -> dict[str, Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        value = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise LabError(f"not YAML: {error}") from error
    if not isinstance(value, dict):
        raise LabError("not a YAML mapping")
    return value

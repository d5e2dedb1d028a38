"""Runs in a machine of its own (see `test_inside.py`), each test in a network namespace of its own."""

import ctypes
import os
import subprocess
from pathlib import Path

import pytest

collect_ignore_glob = [] if os.environ.get("LASTMILE_INSIDE") else ["test_*.py"]

CLONE_NEWNET = 0x40000000


def run(*argv, check=True):
    """Run a tool of the far end's."""
    return subprocess.run(argv, check=check, capture_output=True, text=True)


def ip(command):
    return run("ip", *command.split()).stdout


@pytest.fixture
def namespace():
    """Put the test into a fresh network namespace; `far` is the name of a second one for the far ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    far = f"far{os.getpid()}"
    before = os.open("/proc/self/ns/net", os.O_RDONLY)
    assert libc.unshare(CLONE_NEWNET) == 0
    try:
        ip("link set lo up")
        ip(f"netns add {far}")
        ip(f"-n {far} link set lo up")
        yield far
    finally:
        run("ip", "netns", "del", far, check=False)
        assert libc.setns(before, CLONE_NEWNET) == 0
        os.close(before)


@pytest.fixture
def wire(namespace):
    """Lay a wire: `wire("port1", "peer1")`, with the second end in the far namespace."""

    def lay(near, far_end, mtu=9100):
        ip(f"link add {near} type veth peer name {far_end} netns {namespace}")
        ip(f"-n {namespace} link set {far_end} mtu {mtu} up")

    return lay


@pytest.fixture
def four_channels(tmp_path, wire, namespace):
    """The shipped four-channels configuration, its ports laid and its far ends answering in MACsec."""
    from router.config.load import load

    text = (Path(__file__).parents[3] / "config" / "static-keys.yaml").read_text()
    file = tmp_path / "router.yaml"
    file.write_text(text)
    secrets = tmp_path / "secrets"
    secrets.mkdir(mode=0o700)
    for index, channel in enumerate(("a1", "a2", "b1", "b2")):
        for offset, kind in ((0x10, "transmit.sak"), (0x80, "receive.sak")):
            octets = bytes((offset + index + i) % 256 for i in range(32))
            (secrets / f"{channel}-{kind}").write_text(octets.hex())
        (secrets / f"{channel}.md5").write_text("secret")
    for path in secrets.iterdir():
        path.chmod(0o600)
    ip("link add lan0 type veth peer name lan1")
    config = load(file).effective
    for number, channel in enumerate(config.channels, start=1):
        ip(f"link add {channel.port} type veth peer name peer{number} netns {namespace}")
        far_end(namespace, config, channel, number)
    return config


def far_end(far, config, channel, number):
    """A provider edge of one channel: macsec by iproute2, VLAN, addresses."""
    static, suite = channel.macsec.static, channel.macsec.suite
    key = {n: Path(getattr(static, n).sak.value).read_text().strip() for n in ("transmit", "receive")}
    mac = str(static.peer_sci.mac)
    ours = ip(f"link show {channel.port}").split("link/ether ")[1].split()[0]
    name, parent = f"ms{number}", f"peer{number}"
    ip(f"-n {far} link set {parent} address {mac} mtu {channel.port_mtu} up")
    ip(
        f"-n {far} link add link {parent} {name} type macsec port {static.peer_sci.port} cipher {suite}"
        f" encrypt on validate strict replay on window {channel.macsec.replay_window}"
    )
    xpn = f" ssci {static.receive.ssci} salt {static.salt.hex()}" if suite.is_xpn else ""
    # iproute2 wants the key last, and the pn before it.
    run(
        *f"ip -n {far} macsec add {name} tx sa {static.receive.an} {'xpn' if suite.is_xpn else 'pn'} 1".split(),
        *f"on{xpn} key 00 {key['receive']}".split(),
    )
    run(*f"ip -n {far} macsec add {name} rx port {channel.macsec.sci_port} address {ours}".split())
    xpn = f" ssci {static.transmit.ssci} salt {static.salt.hex()}" if suite.is_xpn else ""
    run(
        *f"ip -n {far} macsec add {name} rx port {channel.macsec.sci_port} address {ours} sa {static.transmit.an}".split(),
        *f"{'xpn' if suite.is_xpn else 'pn'} 1 on{xpn} key 01 {key['transmit']}".split(),
    )
    ip(f"-n {far} link set {name} mtu {channel.port_mtu - 32} up")
    for connection in config.connections:
        for feature in connection.features:
            if feature.channel != channel.id:
                continue
            vlan = f"{name}.{feature.vlan}"
            ip(f"-n {far} link add link {name} name {vlan} type vlan id {feature.vlan}")
            ip(f"-n {far} link set {vlan} mtu {connection.mtu} up")
            for pair in feature.addresses:
                nodad = " nodad" if ":" in pair.peer else ""
                ip(f"-n {far} addr add {pair.peer}/{pair.prefix_length} dev {vlan}{nodad}")

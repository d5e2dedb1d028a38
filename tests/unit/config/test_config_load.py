"""Loading: the examples, the origin of every value, all errors at once, and no other exception ever."""

import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from router.config.findings import ConfigErrors, Severity
from router.config.leaves import dotted, leaves
from router.config.load import load, load_text
from router.config.source import FILE_SIZE_MAX
from router.model import CipherSuite, Prefix

CONFIG = Path(__file__).parents[3] / "config"
EXAMPLES = sorted(CONFIG.glob("*.yaml"))
FOUR = (CONFIG / "static-keys.yaml").read_text()


def errors_of(text):
    """Return the errors in a text, as lines without the file's name."""
    with pytest.raises(ConfigErrors) as raised:
        load_text(text, "x.yaml")
    return [str(f).removeprefix("x.yaml:") for f in raised.value.findings if f.severity is Severity.ERROR]


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_loads(file):
    """No error, and no warning but what the example is for: static keys, one channel alone."""
    meant = ("STATIC KEYS", *(("1 enabled channels", "1 site") if file.stem.startswith("one-") else ()))
    loaded = load(file)
    assert loaded.effective.sessions
    assert [w for w in loaded.warnings if not any(words in w.message for words in meant)] == []


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_every_value_has_an_origin(file):
    """The origins' keys are exactly the effective leaves, and file origins name lines of the file."""
    loaded = load(file)
    keys = [dotted(path) for path, _ in leaves(loaded.effective)]
    assert len(keys) == len(set(keys))
    assert set(keys) == set(loaded.origins)
    lines = file.read_text().count("\n") + 1
    for origin in loaded.origins.values():
        assert (1 <= origin.line <= lines and origin.source == str(file)) == (origin.kind == "file")


def test_origins_say_file_profile_default_and_derived():
    """One of each kind, as it is printed."""
    origins = load_text(FOUR, "static-keys.yaml").origins
    line = FOUR.split("\n").index("      suite: gcm-aes-xpn-256") + 1
    assert str(origins["channels.a1.macsec.suite"]) == f"static-keys.yaml:{line}"
    assert str(origins["connections.prod.bgp.timers.hold_s"]) == "profile aws-dx"
    assert str(origins["connections.prod.bgp.local_preference"]) == "default"
    assert str(origins["connections.prod.features.a1.device"]) == "derived"
    assert str(origins["connections.prod.features.a1.sessions.ipv4.local_asn"]) == "static-keys.yaml:4"


def test_four_channels_is_what_it_says():
    """The values that the lab and the other parts rely on."""
    config = load(CONFIG / "static-keys.yaml").effective
    assert [channel.id for channel in config.channels] == ["a1", "a2", "b1", "b2"]
    assert config.sites == ("site-a", "site-b")
    assert len(config.sessions) == 8
    channel = config.channel("a1")
    assert (channel.port, channel.port_mtu, channel.macsec_device) == ("port1", 9100, "ms-a1")
    assert channel.macsec.suite is CipherSuite.GCM_AES_XPN_256
    assert channel.macsec.static.salt.hex() == "9a3f5c7e11d2b4860f1e2d3c"
    assert channel.macsec.static.transmit.sak.value == str(CONFIG / "secrets/a1-transmit.sak")
    (prod,) = config.connections
    assert (prod.bandwidth_mbps, prod.mtu, prod.vrf, prod.table) == (10_000, 8500, None, 254)
    assert prod.features[0].device == "a1.1101"
    assert (prod.bgp.ttl, prod.bgp.timers.hold_s, prod.bgp.md5_required) == (1, 90, True)
    assert prod.advertise == (Prefix.parse("10.10.0.0/24"), Prefix.parse("2001:db8:10::/64"))
    assert [s.name for s in prod.features[0].sessions] == ["prod/a1/ipv4", "prod/a1/ipv6"]


def test_the_profile_gives_the_peer_asn_and_the_file_wins_over_it():
    """azure-er prescribes 12076; a file may say otherwise."""
    azure = (CONFIG / "azure-er.yaml").read_text()
    assert {s.peer_asn for s in load_text(azure, "x").effective.sessions} == {12076}
    other = azure.replace("    features:", "    bgp: {peer_asn: 65500}\n    features:")
    assert {s.peer_asn for s in load_text(other, "x").effective.sessions} == {65500}


def test_a_channel_wins_over_its_interconnect_and_that_over_the_profile():
    """The innermost word counts."""
    text = FOUR.replace("      policy: must-secure", "      replay_window: 7").replace(
        "        port: {name: port2, mtu: 9100}\n        macsec:\n",
        "        port: {name: port2, mtu: 9100}\n        macsec:\n          replay_window: 9\n",
    )
    channels = load_text(text, "x").effective.channels
    assert [channel.macsec.replay_window for channel in channels] == [7, 9, 7, 7]


def test_a_port_without_mtu_gets_what_its_connections_need():
    """The IP MTU, the VLAN tag and MACsec."""
    text = FOUR.replace("{name: port1, mtu: 9100}", "port1")
    loaded = load_text(text, "x")
    assert loaded.effective.channel("a1").port_mtu == 8536
    assert str(loaded.origins["channels.a1.port_mtu"]) == "derived"


def test_a_hold_time_alone_brings_its_keepalive():
    """A third of it."""
    text = FOUR.replace("    features:", "    bgp: {timers: {hold_s: 9}}\n    features:")
    timers = load_text(text, "x").effective.connections[0].bgp.timers
    assert (timers.hold_s, timers.keepalive_s) == (9, 3)


def test_secret_files_are_relative_to_the_base_directory():
    """An accepted copy elsewhere still refers to the original's secrets."""
    session = load_text(FOUR, "/run/x/accepted.yaml", base_dir=Path("/etc/lastmile")).effective.sessions[0]
    assert str(session.password) == "file:/etc/lastmile/secrets/a1.md5"


def test_all_errors_are_reported_at_once_whatever_stage_finds_them():
    """A key given twice, a value of the wrong form and values that do not fit together, in one run."""
    text = (
        FOUR.replace("  router_id: 10.255.0.1", "  router_id: 10.255.0.1\n  asn: 65010")
        .replace("vlan: 1101", "vlan: 0x10")
        .replace("{name: port2, mtu: 9100}", "{name: port2, mtu: 1500}")
        .replace("vlan: 1103", "vlan: 1000")
    )
    assert errors_of(text) == [
        "6: router.asn: given twice (first in line 4) - remove one",
        (
            "31: interconnects.metro.channels.a2.port.mtu:"
            " 1500 is below the 8536 that mtu 8500 needs (+4 VLAN, +32 MACsec)"
        ),
        (
            "66: connections.prod.features.a1.vlan: not a whole number ('0x10')"
            " - write it in decimal, without quotes: 16"
        ),
        "76: connections.prod.features.b1.vlan: 1000 is reserved by profile aws-dx - use 1025 to 4094",
    ]


def test_a_malformed_value_does_not_cause_errors_elsewhere():
    """The channel whose name is malformed is still there for the feature that uses it."""
    assert len(errors_of(FOUR.replace("name: port1, mtu: 9100", "name: port1, mtu: big"))) == 1
    assert len(errors_of(FOUR.replace("        site: site-a\n", "", 1))) == 1


def test_a_file_that_cannot_be_read_is_a_config_error(tmp_path):
    """Missing, a directory, too large: a sentence each."""
    with pytest.raises(ConfigErrors, match=r"no-such\.yaml: cannot be read: no such file or directory"):
        load(tmp_path / "no-such.yaml")
    with pytest.raises(ConfigErrors, match="cannot be read: is a directory"):
        load(tmp_path)
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (FILE_SIZE_MAX + 1))
    with pytest.raises(ConfigErrors, match="larger than 262144 octets"):
        load(large)


def test_a_byte_order_mark_and_windows_line_ends_are_read():
    """What editors on other systems leave does no harm."""
    windows = "\ufeff" + FOUR.replace("\n", "\r\n")
    assert load_text(windows, "config/x.yaml").effective == load_text(FOUR, "config/x.yaml").effective


def test_an_inline_secret_is_not_repeated():
    """Whoever writes a secret into the file does not find it in a log as well."""
    for text in (
        FOUR.replace("password: {file: secrets/a1.md5}", "password: hunter2"),
        FOUR.replace("password: {file: secrets/a1.md5}", "password: {hunter: [hunter2]}"),
        FOUR.replace("password: {file: secrets/a1.md5}", "password: {file: [hunter2]}"),
        FOUR.replace("sak: {file: secrets/a1-transmit.sak}", "sak: hunter2"),
    ):
        assert text != FOUR
        assert "hunter2" not in "\n".join(errors_of(text))


def test_loading_is_deterministic():
    """The same text gives equal results, whatever was loaded between."""
    first = load_text(FOUR, "x")
    load_text((CONFIG / "gcp.yaml").read_text(), "y")
    again = load_text(FOUR, "x")
    assert first.effective == again.effective
    assert dict(first.origins) == dict(again.origins)
    assert first.warnings == again.warnings


def _or_refused(text):
    """Load a text; where it is refused, look at every remark: one printable line, not endless."""
    try:
        return load_text(text, "x.yaml")
    except ConfigErrors as error:
        lines = [str(finding) for finding in error.findings]
    assert lines
    for line in lines:
        assert line.isprintable()
        assert len(line) < 1000
    return lines


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=200))
def test_arbitrary_text_is_loaded_or_refused(text):
    """Nothing but ConfigErrors comes out, and twice the same."""
    assert _or_refused(text) == _or_refused(text)


_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["10.0.0.0/8", "::/0", "10.0.0.1/24", "10G", "aws-dx", "a1", "metro", "0x10", "fe80::1"]),
)
_KEYS = st.one_of(
    st.text(string.ascii_lowercase, max_size=4),
    st.sampled_from(
        [
            "router",
            "interconnects",
            "connections",
            "vrfs",
            "lan",
            "name",
            "asn",
            "router_id",
            "profile",
            "channels",
            "site",
            "port",
            "lag",
            "macsec",
            "static",
            "features",
            "channel",
            "vlan",
            "ipv4",
            "ipv6",
            "local",
            "peer",
            "bgp",
            "peer_asn",
            "password",
            "file",
            "mtu",
            "advertise",
            "accept",
        ]
    ),
)
_TREES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=100, deadline=None)
@given(_TREES)
def test_arbitrary_yaml_is_loaded_or_refused(tree):
    """Well-formed YAML of any shape gives findings, never another exception."""
    from io import StringIO

    stream = StringIO()
    YAML(typ="safe", pure=True).dump(tree, stream)
    _or_refused(stream.getvalue())


def _places(value, path=()):
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _places(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _places(inner, (*path, index))


_DOCUMENT = YAML(typ="safe", pure=True).load(FOUR)
_PLACES = [path for path in _places(_DOCUMENT) if path]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(_PLACES), _TREES), min_size=1, max_size=3), st.booleans())
def test_a_good_file_with_anything_put_anywhere_is_loaded_or_refused(faults, remove):
    """The deep stages meet strange values too, several at once, and values that are missing."""
    import json
    from copy import deepcopy

    document = deepcopy(_DOCUMENT)
    for path, value in faults:
        node = document
        try:
            for step in path[:-1]:
                node = node[step]
            if remove:
                del node[path[-1]]
            else:
                node[path[-1]] = value
        except (KeyError, IndexError, TypeError):
            continue
    _or_refused(json.dumps(document, ensure_ascii=False, default=str))

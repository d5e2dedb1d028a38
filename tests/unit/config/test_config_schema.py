"""The JSON Schema that editors use: complete, and true to what the loader takes."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from router.config.schema import (
    BANDWIDTHS_MBPS,
    json_schema,
    parse_bandwidth,
    parse_filter,
    parse_interface,
    parse_prefix,
)
from router.model import Prefix

HERE = Path(__file__).parent
EXAMPLES = sorted((HERE.parents[2] / "config").glob("*.yaml"))
REFUSED_BY_SCHEMA = [
    "unknown-field",
    "unknown-top-level",
    "missing-site",
    "missing-router",
    "missing-vlan",
    "unknown-profile",
    "name-with-space",
    "port-and-lag",
    "neither-port-nor-lag",
    "lacp-unknown",
    "lag-without-members",
    "secret-inline",
    "secret-both",
    "secret-empty",
    "bandwidth-no-unit",
    "bandwidth-no-tier",
    "vlan-zero",
    "vlan-4095",
    "vlan-quoted",
    "suite-unknown",
    "policy-off",
    "too-many-channels",
    "salt-short",
    "an-four",
    "mtu-small",
]


def read(file):
    return YAML(typ="safe", pure=True).load(file)


@pytest.fixture(scope="module")
def validator():
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(json_schema())
    return jsonschema.Draft202012Validator(json_schema())


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_validates(validator, file):
    """An editor shows no red line in what we ship."""
    assert [error.message for error in validator.iter_errors(read(file))] == []


@pytest.mark.parametrize("name", REFUSED_BY_SCHEMA)
def test_what_a_schema_can_refuse_it_does(validator, name):
    """Faults of form are marked while typing."""
    assert not validator.is_valid(read(HERE / "bad" / f"{name}.yaml"))


def _objects(schema):
    yield from (definition for definition in schema["$defs"].values() if definition.get("type") == "object")
    yield schema


def test_every_field_is_described_and_no_other_is_allowed():
    """Hovering over a field explains it."""
    schema = json_schema()
    for definition in _objects(schema):
        assert definition["additionalProperties"] is False
        for name, field in definition["properties"].items():
            target = schema["$defs"].get(field.get("$ref", "").removeprefix("#/$defs/"), {})
            assert field.get("description") or target.get("description"), (definition["title"], name)


@pytest.mark.parametrize("tier", BANDWIDTHS_MBPS)
def test_a_tier_may_be_written_in_several_units(tier):
    """G, Gbps, Gbit/s, with or without a space, and the same in M."""
    number = int(tier[:-1])
    for text in (tier, f"{number} G", f"{number}Gbps", f"{number} Gbit/s", f"{number * 1000}M"):
        assert parse_bandwidth(text) == number * 1000


@pytest.mark.parametrize("text", ["0G", "3G", "10", "10g", "-1G", "1.5G", "10GB", "", "G", "9" * 9 + "G"])
def test_what_is_no_tier_is_refused(text):
    """Providers sell seven tiers."""
    with pytest.raises(ValueError, match="no bandwidth tier"):
        parse_bandwidth(text)


def test_filters_default_to_the_exact_prefix():
    """le opens downwards from the prefix, ge alone to single addresses."""
    entry = parse_filter("10.20.0.0/16")
    assert (entry.ge, entry.le) == (16, 16)
    entry = parse_filter("10.20.0.0/16 le 24")
    assert (entry.ge, entry.le) == (16, 24)
    entry = parse_filter("2001:db8::/32 ge 48")
    assert (entry.ge, entry.le) == (48, 128)
    entry = parse_filter("10.20.0.0/16  ge 20  le 24")
    assert (entry.ge, entry.le) == (20, 24)
    assert entry.matches(Prefix.parse("10.20.16.0/20"))
    assert not entry.matches(Prefix.parse("10.20.0.0/16"))
    assert not entry.matches(Prefix.parse("10.20.1.0/25"))


@pytest.mark.parametrize(
    "text",
    ["10.0.0.0", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/8 le", "::/129", "x/8", "10.0.0.0/8 le 24 ge 9"],
)
def test_what_is_no_filter_is_refused(text):
    """One sentence each."""
    with pytest.raises(ValueError, match=r".+"):
        parse_filter(text)


def test_an_interface_address_knows_its_subnet():
    """Host bits are what makes it an interface address."""
    assert parse_interface("169.254.11.6/30").network == Prefix.parse("169.254.11.4/30")
    assert parse_interface("fd00::5/126").network == Prefix.parse("fd00::4/126")
    assert str(parse_interface("FD00:0:0::5/126")) == "fd00::5/126"
    with pytest.raises(ValueError, match=r"has host bits set - write 169\.254\.11\.4/30"):
        parse_prefix("169.254.11.6/30")

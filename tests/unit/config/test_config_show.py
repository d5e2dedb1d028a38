"""The effective configuration as data: complete, plain, and with an origin for each value."""

import json
from pathlib import Path

import pytest

from router.config.load import load
from router.config.show import nested, show

EXAMPLES = sorted((Path(__file__).parents[3] / "config").glob("*.yaml"))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_every_value_is_plain_and_has_an_origin(file):
    """It goes through JSON unchanged, in both forms."""
    loaded = load(file)
    rows = show(loaded)
    assert len(rows) == len(loaded.origins)
    assert all(row.origin for row in rows)
    values = {row.path: row.value for row in rows}
    assert json.loads(json.dumps(values)) == values
    tree = nested(loaded, origin=True)
    assert json.loads(json.dumps(tree)) == tree

    def count(node):
        if set(node) == {"value", "origin"}:
            return 1
        return sum(count(inner) for inner in node.values())

    assert count(tree) == len(rows)


def test_values_read_as_in_the_file():
    """Suites, prefixes, filters, SCIs and references in their own notation."""
    file = next(file for file in EXAMPLES if file.stem == "static-keys")
    tree = nested(load(file))
    static = tree["channels"]["a1"]["macsec"]["static"]
    assert tree["channels"]["a1"]["macsec"]["suite"] == "gcm-aes-xpn-256"
    assert tree["channels"]["a1"]["macsec"]["mode"] == "must-secure"
    assert static["peer_sci"] == "02:00:00:00:01:01/1"
    assert static["salt"] == "9a3f5c7e11d2b4860f1e2d3c"
    assert static["transmit"]["sak"] == f"file:{file.parent}/secrets/a1-transmit.sak"
    assert tree["connections"]["prod"]["accept"] == [
        "10.20.0.0/16 ge 16 le 24",
        "2001:db8:20::/48 ge 48 le 64",
    ]
    assert tree["connections"]["prod"]["bgp"]["timers"] == {"hold_s": 90, "keepalive_s": 30}
    rows = {row.path: row for row in show(load(file))}
    assert rows["connections.prod.bgp.timers.hold_s"].origin == "profile aws-dx"

"""Far ends: the configuration files say what the edge is to do."""

import dataclasses
import shutil
import subprocess
import tomllib

import pytest

from router.errors import LabError
from router.lab import farend, topology
from router.lab.farend import bird, frr, gobgp
from router.lab.node import Node

EDGE = topology.load("four-channels").edges[0]
GTSM = dataclasses.replace(EDGE, gtsm=True)
ANNOUNCED = ("10.20.1.0/24", "2001:db8:20:1::/64")


def test_frr_has_both_sessions_with_password_timers_and_networks():
    """The provider's side of channel a1."""
    text = frr.render(EDGE, "geheim", ANNOUNCED)
    assert "router bgp 64512\n" in text
    for peer in ("169.254.11.1", "fd00:11::1"):
        assert f" neighbor {peer} remote-as 4200000010\n" in text
        assert f" neighbor {peer} password geheim\n" in text
        assert f" neighbor {peer} timers 30 90\n" in text
    assert "  network 10.20.1.0/24\n" in text
    assert "  network 2001:db8:20:1::/64\n" in text


@pytest.mark.parametrize(
    ("render", "text"),
    [
        (lambda e: frr.render(e, "", ()), "ttl-security hops 1"),
        (lambda e: bird.render(e, "", ()), "ttl security on;"),
        (lambda e: gobgp.render(e, ""), "ttl-min = 255"),
    ],
)
def test_gtsm_is_the_profiles_business(render, text):
    """TTL 255 is asked for where the profile has it, and only there (aws-dx: TTL 1)."""
    assert text in render(GTSM)
    assert text not in render(EDGE)


@pytest.mark.parametrize(
    "render",
    [lambda p: frr.render(EDGE, p, ()), lambda p: bird.render(EDGE, p, ()), lambda p: gobgp.render(EDGE, p)],
)
def test_no_password_where_there_is_none(render):
    """A session without MD5 has no password line."""
    assert "password" not in render("")
    assert render("geheim").count("geheim") == 2


def test_gobgp_is_toml_with_both_families():
    """The file is well-formed, one neighbour per family."""
    data = tomllib.loads(gobgp.render(EDGE, "geheim"))
    assert [n["config"]["neighbor-address"] for n in data["neighbors"]] == ["169.254.11.1", "fd00:11::1"]
    assert [n["afi-safis"][0]["config"]["afi-safi-name"] for n in data["neighbors"]] == [
        "ipv4-unicast",
        "ipv6-unicast",
    ]


@pytest.mark.skipif(not shutil.which("bird", path="/usr/sbin:/usr/bin"), reason="BIRD is not installed")
def test_bird_accepts_its_configuration(tmp_path):
    """BIRD's own parser is the judge."""
    path = tmp_path / "bird.conf"
    path.write_text(bird.render(EDGE, "geheim", ANNOUNCED))
    bird_path = shutil.which("bird", path="/usr/sbin:/usr/bin")
    done = subprocess.run([bird_path, "-p", "-c", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_unknown_far_end_lists_the_known_ones(tmp_path):
    """A wrong name is answered with the right ones."""
    with pytest.raises(LabError, match="frr, bird, gobgp"):
        farend.make("quagga", Node("x"), EDGE, tmp_path / "x", password="", announced=())

"""The generated configuration, judged by ExaBGP itself."""

from dataclasses import replace

import pytest
from bgp_builders import POLICY, make_config

from router.bgp import exabgp
from router.config.effective import SecretRef
from router.errors import ConfigError
from router.model import Secret

REF = SecretRef("file", "/nowhere")


def render(config, tmp_path, password=b"s3cret", process=None):
    groups = exabgp.processes(config)
    sessions = groups[process or next(iter(groups))]
    connections = {c.name: c for c in config.connections}
    passwords = {s.name: Secret(password) for s in config.sessions if s.password}
    return exabgp.render(sessions, connections, passwords, tmp_path / "bgp.sock")


def test_there_are_at_least_two_processes():
    """One a site; two for one site, by turns, so that a further channel moves none."""
    two = exabgp.processes(make_config(4))
    assert {name: len(sessions) for name, sessions in two.items()} == {"site-a": 4, "site-b": 4}
    one = exabgp.processes(make_config(4, sites=("x",)))
    more = exabgp.processes(make_config(5, sites=("x",)))
    assert sorted(one) == ["x.1", "x.2"]
    for name, sessions in one.items():
        assert set(sessions) <= set(more[name])


def test_each_profile_setting_is_in_the_file(tmp_path):
    """TTL 1 without GTSM; 255 both ways with it; graceful restart holds the EOR back."""
    text = render(make_config(1), tmp_path)
    assert "outgoing-ttl 1;" in text
    assert "incoming-ttl" not in text
    assert "graceful-restart disable;" in text
    assert "manual-eor false;" in text
    assert "md5-password" not in text
    generic = replace(POLICY, gtsm=True, ttl=255, graceful_restart_s=120)
    text = render(make_config(1, policy=generic, password=REF), tmp_path)
    assert "outgoing-ttl 255;\n    incoming-ttl 255;" in text
    assert "graceful-restart 120;" in text
    assert "manual-eor true;" in text
    assert "md5-base64 false;" in text
    assert 'source-interface "ch1";' in text
    assert text.count("family {") == 2


@pytest.mark.parametrize("password", [b"plain", b'q"uo\\te', b"a;b{c}d#e'f", b"x" * 80, b"[1,2]$`!", b"!~"])
async def test_any_printable_password_survives_exabgps_parser(tmp_path, password):
    """Quotes, semicolons, braces: ExaBGP reads back what the file of the secret says."""
    config = make_config(1, password=REF, families=("ipv4",))
    path = tmp_path / "x.conf"
    path.write_text(render(config, tmp_path, password))
    from exabgp.configuration.configuration import Configuration
    from exabgp.environment import getenv
    from exabgp.logger import log
    from exabgp.util.psk import decode_base64

    log.init(getenv())
    parsed = Configuration([str(path)])
    assert parsed.reload(), str(parsed.error)
    (neighbor,) = parsed.neighbors.values()
    read = neighbor["md5-password"]
    assert (decode_base64(read) if neighbor["md5-base64"] else read.encode()) == password
    assert neighbor["description"] == "prod/c1/ipv4"


@pytest.mark.parametrize("password", [b"", b"x" * 81, b"s3cret ", b"new\nline", "ü".encode()])
def test_a_password_that_tcp_or_the_file_cannot_carry_is_refused(tmp_path, password):
    """Without printing it."""
    with pytest.raises(ConfigError, match="prod/c1/ipv4: the MD5 password") as refused:
        render(make_config(1, password=REF, families=("ipv4",)), tmp_path, password)
    assert not password or password.decode() not in str(refused.value)


def test_a_required_password_that_is_missing_is_refused(tmp_path):
    """`aws-dx` never runs without one."""
    with pytest.raises(ConfigError, match="requires an MD5 password"):
        render(make_config(1, policy=replace(POLICY, md5_required=True)), tmp_path)


async def test_install_validates_first_and_replaces_by_rename(tmp_path):
    """One refused text leaves all old files; an equal one is no change; mode 0600; no password in errors."""
    one, two = tmp_path / "bgp-a.conf", tmp_path / "bgp-b.conf"
    good = render(make_config(1, password=REF), tmp_path)
    secrets = {"prod/c1/ipv4": Secret(b"s3cret")}
    assert await exabgp.install({one: good, two: good}, user=None, secrets=secrets) == {one, two}
    assert not await exabgp.install({one: good, two: good}, user=None, secrets=secrets)
    assert one.stat().st_mode & 0o777 == 0o600
    bad = good + 'neighbor oops { md5-password "s3cret"; }\n'
    with pytest.raises(ConfigError, match="ExaBGP refuses") as refused:
        await exabgp.install({one: good + "# other\n", two: bad}, user=None, secrets=secrets)
    assert "s3cret" not in str(refused.value)
    assert one.read_text() == two.read_text() == good
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bgp-a.conf", "bgp-b.conf"]


def test_the_command_line_holds_no_secret(tmp_path):
    """Only paths and settings."""
    spec = exabgp.child("site-a", tmp_path)
    assert spec.user == "nobody"
    assert spec.env["exabgp_api_cli"] == "false"
    assert "s3cret" not in repr(spec)


def test_two_sessions_of_one_process_with_the_same_addresses_are_refused(tmp_path):
    """ExaBGP knows a neighbour by its address."""
    config = make_config(2, sites=("x",), families=("ipv4",))
    one, two = config.sessions
    twin = replace(two, addresses=one.addresses)
    with pytest.raises(ConfigError, match="same addresses"):
        exabgp.render((one, twin), {c.name: c for c in config.connections}, {}, tmp_path / "s")

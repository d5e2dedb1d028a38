"""The verbs as a user types them: exit codes, sentences instead of tracebacks, stable JSON."""

import asyncio
import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import jsonschema
import pytest

from router.api import types
from router.api.server import serve
from router.api.types import (
    ChannelStatus,
    CheckResult,
    FeatureStatus,
    FindingStatus,
    MacsecStatus,
    MtuStatus,
    NeighbourStatus,
    PathStatus,
    ProcessStatus,
    RouterStatus,
    Routes,
    RouteStatus,
    SessionStatus,
    Status,
)
from router.errors import ConfigError

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "config" / "static-keys.yaml"


def lastmile(*words, run_dir=None, env=None):
    """Run the command as a program of its own."""
    environment = {**os.environ, "COLUMNS": "200", **(env or {})}
    if run_dir is not None:
        environment["LASTMILE_RUN_DIR"] = str(run_dir)
    return subprocess.run(
        [sys.executable, "-m", "router.cli.main", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=environment,
        timeout=60,
    )


def channel(name, verdict, reason=""):
    session = SessionStatus(
        f"prod/{name}/ipv4",
        "ipv4",
        "169.254.1.2",
        64512,
        "established",
        1.0,
        "",
        90,
        2,
        1,
        1,
        {"bogon": 1},
        0,
    )
    feature = FeatureStatus(
        "prod",
        1101,
        f"{name}.1101",
        True,
        [NeighbourStatus("169.254.1.2", "reachable", "02:00:00:00:01:01")],
        [session],
        [MtuStatus("ipv4", 8500, "proven", 8500, 1.0)],
    )
    macsec = MacsecStatus(
        f"ms-{name}",
        "kernel",
        "configured",
        "must-secure",
        "gcm-aes-xpn-256",
        "static",
        True,
        True,
        "02:00:00:00:01:02/1",
        0,
        7,
        0,
        9,
        "ab" * 16,
        7,
        9,
        0,
        0,
        0,
    )
    return ChannelStatus(
        name, "metro", "site-a", verdict, reason, 1.0, "port1", True, True, macsec, [feature]
    )


class FakeRouter:
    """What the control socket talks to."""

    def __init__(self, verdicts):
        self.verdicts = verdicts

    async def status(self):
        return Status(
            RouterStatus("branch-1", 65000, "10.0.0.1", "0", "/etc/x.yaml", 1.0, 1.0, ""),
            [channel(f"c{i}", v, "no carrier" if v == "down" else "") for i, v in enumerate(self.verdicts)],
            [],
            [ProcessStatus("routerd", 1, 0, 1.0, "", 50_000_000)],
        )

    def routes(self, *, prefix, limit):
        if prefix == "rubbish":
            raise ConfigError("'rubbish' is not an IP address")
        path = PathStatus("prod/c0/ipv4", "169.254.1.2", "c0.1101", "64512", selected=True, reason="")
        return Routes(2, [RouteStatus(254, "10.20.0.0/24", 9, ["169.254.1.2 dev c0.1101"], [path])][:limit])

    def config(self):
        return {"path": "/etc/x.yaml", "text": ""}

    async def reload(self, path):
        finding = FindingStatus(str(path), 3, 1, "router.asn", "is missing", "error")
        return CheckResult(ok=False, file=str(path), findings=[finding])

    async def shut_down(self, *, release):
        return


@contextmanager
def router(tmp_path, *verdicts):
    """A control socket with a fake router behind it, served by a thread."""
    loop = asyncio.new_event_loop()
    runner = loop.run_until_complete(serve(FakeRouter(verdicts), tmp_path / "control.sock"))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield tmp_path
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(runner.cleanup())
        loop.close()


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["nonsense"], 2, "No such command"),
        (["check"], 2, "Missing argument"),
        (["check", "/nonexistent.yaml"], 1, "/nonexistent.yaml: cannot be read"),
        (["check", "/"], 1, "/: cannot be read"),
        (["config", "show", "/nonexistent.yaml"], 1, "cannot be read"),
        (["plan", "/nonexistent.yaml"], 1, "cannot be read"),
        (["run", "/nonexistent.yaml"], 1, "cannot be read"),
        (["status"], 2, "no router runs in"),
        (["status", "--json"], 2, "no router runs in"),
        (["routes"], 2, "no router runs in"),
        (["reload"], 2, "no router runs in"),
        (["stop"], 2, "no router runs in"),
        (["schema", "nothing"], 2, "no schema 'nothing'"),
        (["routes", "--limit", "0"], 2, "limit"),
        (["lab", "run", "nothing"], 2, "nothing"),
    ],
)
def test_a_users_mistake_is_a_sentence(tmp_path, words, code, says):
    """Never a traceback, and the exit code tells a refusal from a question that could not be put."""
    done = lastmile(*words, run_dir=tmp_path)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_a_broken_file_is_refused_as_data_too(tmp_path):
    """check --json prints every finding with its line, and exits with 1."""
    broken = tmp_path / "broken.yaml"
    broken.write_text("router: {name: x, asn: 0, router_id: 10.0.0.1}\nconnections: 7\n")
    done = lastmile("check", broken, "--json")
    data = json.loads(done.stdout)
    assert done.returncode == 1
    assert not data["ok"]
    assert {finding["line"] for finding in data["findings"]} >= {1, 2}


def test_check_says_what_a_good_file_holds():
    """One line to read, and the warnings on the other stream."""
    done = lastmile("check", EXAMPLE, "--no-secrets")
    assert done.returncode == 0
    assert "ok: 4 channels over 2 sites, 1 connections, 8 BGP sessions" in done.stdout


def test_every_value_has_an_origin():
    """config show --origin: file and line, profile, default or derived."""
    data = json.loads(lastmile("config", "show", "--origin", "--json", EXAMPLE).stdout)
    assert (
        data["router"]["asn"]["origin"].startswith("config/static-keys.yaml:")
        or ":" in data["router"]["asn"]["origin"]
    )
    text = lastmile("config", "show", "--origin", EXAMPLE).stdout
    assert "profile aws-dx" in text
    assert "# default" in text


def test_status_is_a_line_a_channel_and_its_exit_code_a_verdict(tmp_path):
    """0 where all are up, 1 where one is not; the reason stands in the line."""
    with router(tmp_path, "up", "up") as run_dir:
        assert lastmile("status", run_dir=run_dir).returncode == 0
    with router(tmp_path, "up", "down", "disabled") as run_dir:
        done = lastmile("status", run_dir=run_dir)
        lines = [line for line in done.stdout.splitlines() if line.startswith("c")]
        assert done.returncode == 1
        assert len(lines) == 3
        assert "no carrier" in lines[1]
        verbose = lastmile("status", "-v", run_dir=run_dir).stdout
        assert "in ok 9" in verbose
        assert "routerd" in verbose


@pytest.mark.parametrize("verb", ["status", "routes"])
def test_what_a_verb_prints_is_what_its_schema_says(tmp_path, verb):
    """`lastmile schema VERB` describes `lastmile VERB --json`."""
    with router(tmp_path, "up") as run_dir:
        printed = json.loads(lastmile(verb, "--json", run_dir=run_dir).stdout)
    schema = json.loads(lastmile("schema", verb).stdout)
    jsonschema.validate(printed, schema)


def test_every_shape_has_a_schema():
    """Each verb's shape can be printed."""
    for name in ("config", "status", "routes", "plan", "check"):
        assert json.loads(lastmile("schema", name).stdout)["type"] == "object"
    assert types.PlanResult


def test_routes_and_their_mistakes(tmp_path):
    """A count, the paths, and a sentence for what is no prefix."""
    with router(tmp_path, "up") as run_dir:
        assert "2 prefixes, 1 shown" in lastmile("routes", run_dir=run_dir).stdout
        done = lastmile("routes", "rubbish", run_dir=run_dir)
        assert (done.returncode, "'rubbish' is not an IP address" in done.stderr) == (2, True)


def test_a_refused_reload_shows_the_findings(tmp_path):
    """The daemon's findings, its exit code, and that the running one stays."""
    with router(tmp_path, "up") as run_dir:
        done = lastmile("reload", "/etc/y.yaml", run_dir=run_dir)
        assert done.returncode == 1
        assert "/etc/y.yaml:3: router.asn: is missing" in done.stderr
        assert "the running one stays" in done.stdout


def test_the_shell_can_complete_verbs():
    """Typer's completion protocol answers for the installed command."""
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lastmile")],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "_LASTMILE_COMPLETE": "complete_bash",
            "COMP_WORDS": "lastmile st",
            "COMP_CWORD": "1",
        },
    )
    assert set(done.stdout.split()) == {"status", "stop"}

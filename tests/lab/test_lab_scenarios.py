"""The scenarios, through the command a user types: exit status and JSON."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from router.lab import detect
from router.lab.scenario import all_scenarios

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

STDERR_TAIL = 30_000
"""Characters: the notes in which a failure explains itself are long."""

BY_HAND = {"sak-rotation-1000", "fastpath-soak-long"}
"""Each has a short sibling here."""

EACH_TIME = {
    "four-channels",
    "eight-channels",
    "drift",
    "restart",
    "bad-config",
    "exabgp-crash",
    "wrong-md5",
    "10k-prefixes",
    "mka-wpa-supplicant",
    "mka-wrong-keys",
    "mka-should-secure",
    "sak-rotation",
    "xpn-wrap",
    "keychain",
    "keyd-restart",
    "fastpath-interop",
    "fastpath-crash",
    "fastpath-soak",
}
"""What `make test` runs in twenty minutes; the others are slow, or need a machine of their own for
their timing: `make test-lab` runs all."""


def run(name, edges):
    marks = () if name in EACH_TIME else (pytest.mark.slow,)
    return pytest.param(name, edges, marks=marks, id=f"{name}-{edges}")


RUNS = [run(s.name, s.edges[0]) for s in all_scenarios() if s.name not in BY_HAND] + [
    run("four-channels", "bird"),
    run("four-channels", "gobgp"),
]


def lab(*arguments):
    """Run the command; nothing that it started or made may be there when it has ended."""
    command = [sys.executable, "-m", "router.cli.main", "lab", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            out, err = process.communicate(timeout=800)
        finally:
            process.kill()
        assert not leftovers(process.pid)
        return subprocess.CompletedProcess(command, process.returncode, out, err)


def leftovers(owner):
    """Directories and processes of the lab that `owner` ran; another lab may run beside it."""
    mark = f"lastmile-lab-{owner}-"
    found = [path.name for path in Path("/run").glob(f"{mark}*")]
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (entry / "cmdline").read_bytes():
                found.append(entry.name)
    return found


@pytest.mark.parametrize(("name", "edges"), RUNS)
def test_scenario(name, edges):
    """It ends with 0, prints the documented JSON, and every check in it holds."""
    done = lab("run", name, "--edges", edges, "--json")
    assert done.stdout, done.stderr
    data = json.loads(done.stdout)
    failed = [check for check in data["checks"] if not check["ok"]]
    assert not failed, json.dumps(failed, indent=1) + done.stderr[-STDERR_TAIL:]
    assert (done.returncode, data["ok"], data["scenario"]) == (0, True, name)
    assert data["checks"]
    assert set(data) == {"scenario", "ok", "checks", "figures"}


WITH_THE_DATA_PLANE = (
    "four-channels",
    "drift",
    "restart",
    "sak-rotation",
    "xpn-wrap",
    "mka-should-secure",
)
WITH_THE_DATA_PLANE_EACH_TIME = {"four-channels"}


def run_with_the_data_plane(name):
    marks = () if name in WITH_THE_DATA_PLANE_EACH_TIME else (pytest.mark.slow,)
    return pytest.param(name, marks=marks, id=name)


@pytest.mark.parametrize("name", [run_with_the_data_plane(name) for name in WITH_THE_DATA_PLANE])
def test_scenario_with_the_data_plane(name):
    """The same checks hold where the router's own data plane does MACsec."""
    done = lab("run", name, "--secy", "fastpath", "--json")
    assert done.stdout, done.stderr
    data = json.loads(done.stdout)
    failed = [check for check in data["checks"] if not check["ok"]]
    assert not failed, json.dumps(failed, indent=1) + done.stderr[-STDERR_TAIL:]
    assert (done.returncode, data["ok"]) == (0, True)


def lab_command(*arguments, stdin=""):
    """Run the command where its lab outlives it."""
    command = [sys.executable, "-m", "router.cli.main", "lab", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture
def lab_with_the_data_plane():
    """`lab up --secy fastpath`: the lab that a user looks around in, until the test ends."""
    done = lab_command("up", "static-keys", "--secy", "fastpath")
    assert done.returncode == 0, done.stderr
    yield
    done = lab_command("down")
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("lab_with_the_data_plane")
def test_a_lab_with_the_data_plane_can_be_looked_around_in():
    """Commands reach every node, in whichever kernel it is; the router's own say who does MACsec and why."""
    facts = json.loads(lab_command("status", "--json").stdout)
    assert facts["secy"] == "fastpath"
    assert {channel["verdict"] for channel in facts["router"]["channels"]} == {"up"}
    assert {channel["macsec"]["secy"] for channel in facts["router"]["channels"]} == {"fastpath"}
    shown = lab_command("exec", "r", "--", "lastmile", "status", "-v").stdout
    assert shown.count("data plane: configured") == 4
    edge = lab_command("exec", "pe1", "--", "ip", "macsec", "show")
    assert "cipher suite: GCM-AES-XPN-256" in edge.stdout
    echoed = lab_command("exec", "pe1", "--", "sh", "-c", "cat; exit 7", stdin="hello\n" * 2000)
    assert (echoed.returncode, echoed.stdout) == (7, "hello\n" * 2000)
    ping = lab_command("exec", "br", "--", "ping", "-c1", "-W2", "-M", "do", "-s", "8472", "10.20.1.10")
    assert ping.returncode == 0, ping.stdout
    plan = lab_command("exec", "r", "--", "lastmile", "plan", "/run/lastmile-lab/config/static-keys.yaml")
    assert plan.stdout.count("fastpath (configured)") == 4


def test_unknown_scenario_is_a_sentence():
    """Exit status 2, the known names, no traceback."""
    done = lab("run", "five-channels")
    assert done.returncode == 2
    assert "four-channels" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_choice_of_machine_says_why():
    """One line, whichever it is."""
    kind, reason = detect.choose("auto")
    assert kind in {"host", "guest"}
    assert "\n" not in reason

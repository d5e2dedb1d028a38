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
    "static-keys",
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
    "mka-three-stations",
    "mka-three-stations-xpn",
    "sak-rotation",
    "xpn-wrap",
    "keychain",
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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["four-channels", "drift", "restart", "sak-rotation", "xpn-wrap"])
def test_scenario_with_the_data_plane(name):
    """The same checks hold where the router's own data plane does MACsec."""
    done = lab("run", name, "--secy", "fastpath", "--json")
    assert done.stdout, done.stderr
    data = json.loads(done.stdout)
    failed = [check for check in data["checks"] if not check["ok"]]
    assert not failed, json.dumps(failed, indent=1) + done.stderr[-STDERR_TAIL:]
    assert (done.returncode, data["ok"]) == (0, True)


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

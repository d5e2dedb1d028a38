"""`lastmile keys`: what is refused says which rule; what is done is on disk, private, and never shown."""

import json
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from router.cli.keys import app, explanation

CONFIG = Path(__file__).parents[2] / "config" / "four-channels.yaml"


@pytest.fixture
def box(tmp_path):
    """A configuration with four empty key chains, and no router running."""
    directory = tmp_path / "config"
    directory.mkdir(mode=0o700)
    file = directory / "router.yaml"
    file.write_text(CONFIG.read_text())
    return file


@pytest.fixture
def keys(box, tmp_path):
    """Return a function that runs a verb on the box's configuration and gives its exit code and output."""

    def run(*arguments, config=True):
        more = ["--config", str(box)] if config else []
        run_dir = ["--run-dir", str(tmp_path / "run")]
        result = CliRunner().invoke(app, [*arguments, *more, *run_dir])
        return result.exit_code, result.output

    return run


def test_the_first_key_is_active_and_private(keys, box):
    """Mode 0700 and 0600; nothing of the CAK is printed."""
    code, output = keys("add", "a1", "--first", "--json")
    assert code == 0
    answer = json.loads(output)
    file = Path(answer["file"])
    stored = json.loads(file.read_text())
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert stored["cak"] not in output
    assert (len(stored["ckn"]), len(stored["cak"]), stored["standby"]) == (64, 64, False)
    assert file.parent == box.parent / "keys" / "a1"


def test_a_second_key_waits(keys):
    """It runs, but is not chosen until `rotate`."""
    keys("add", "a1", "--first")
    code, output = keys("add", "a1", "--json")
    assert code == 0
    assert json.loads(output)["standby"] is True


def test_one_channel_at_a_time(keys):
    """While one channel holds two keys, no other gets a second one."""
    for channel in ("a1", "a2"):
        keys("add", channel, "--first")
    keys("add", "a1")
    code, output = keys("add", "a2", "--json")
    assert code == 1
    assert json.loads(output)["rule"] == "other_channel"


def test_a_provider_s_keys_are_not_ours_to_change(keys, box):
    """Which rule it is, is said."""
    box.write_text(
        box.read_text().replace("policy: must-secure", "policy: must-secure\n      keys_managed_by: provider")
    )
    code, output = keys("add", "a1", "--json")
    assert (code, json.loads(output)["rule"]) == (1, "not_manager")


def test_the_list_shows_fingerprints_only(keys):
    """Equal at both ends, and tells nothing."""
    _, output = keys("add", "a1", "--first", "--json")
    added = json.loads(output)
    code, output = keys("list", "--json")
    assert code == 0
    row = json.loads(output)["keys"][0]
    assert (row["ckn"], row["fingerprint"]) == (added["ckn"], added["fingerprint"])
    assert json.loads(Path(added["file"]).read_text())["cak"] not in output


def test_a_key_from_elsewhere(keys, tmp_path):
    """With the CKN that the other side gave it."""
    file = tmp_path / "cak"
    file.write_text("ab" * 32 + "\n")
    code, output = keys("add", "a1", "--first", "--ckn", "cd" * 32, "--cak-file", str(file), "--json")
    assert code == 0, output
    assert json.loads(output)["ckn"] == "cd" * 32
    code, output = keys("add", "a2", "--first", "--cak-file", str(file))
    assert code == 2
    assert "--ckn" in output


def test_the_provider_s_sizes_hold(keys, tmp_path):
    """AWS takes CKNs and CAKs of 32 octets."""
    file = tmp_path / "cak"
    file.write_text("ab" * 16)
    code, output = keys("add", "a1", "--first", "--ckn", "cd" * 32, "--cak-file", str(file))
    assert code == 1
    assert "16 octets" in output


def test_nothing_is_removed_blindly(keys):
    """Without the key daemon nobody knows which key is in use, and there is no accepted configuration."""
    code, output = keys("remove", "a1", "ab" * 32, config=False)
    assert code == 2
    assert "no router runs" in output


def test_an_explanation_names_the_cause_first():
    """Then everything else."""
    shown = {
        "port": "closed", "reason": "no MKPDU has been received", "fail_open": True, "sci": None,
        "suite": None, "suites": ["gcm-aes-128"], "wanted_suite": None, "current": None, "next": None,
        "participants": [], "unknown_ckns": [{"ckn": "aa", "source": "02:00:00:00:00:01", "last_seen": 90.0, "count": 3}],
        "expiry": "", "problems": ["a key is skipped"], "drops": {"icv": 3},
        "transitions": ["1.000 INIT -> CHANGE: UCT"],
    }  # fmt: skip
    lines = list(explanation("a1", shown, 100.0))
    assert lines[0] == "a1: closed: no MKPDU has been received"
    assert "IN CLEAR" in lines[1]
    text = "\n".join(lines)
    for part in ("unknown CKN aa", "3 times", "a key is skipped", "icv 3", "INIT -> CHANGE"):
        assert part in text

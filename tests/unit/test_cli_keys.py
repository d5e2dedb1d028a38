"""`lastmile keys`: what is refused says which rule; what is done is on disk, private, and never shown."""

import json
import stat
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest
from typer.testing import CliRunner

from router.accepted import accept
from router.cli.keys import app, explanation
from router.config.load import load
from router.key_use import KeyUse

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


SEEN_KEY = {"in_use": False, "peers_live": 1}


@pytest.fixture
def live(keys, box, tmp_path, monkeypatch):
    """A router that runs, whose key daemon says of each key in `live.seen` what is given there."""
    (tmp_path / "run").mkdir()

    class Live:
        seen: ClassVar[dict[str, dict[str, Any]]] = {}
        poked = 0

        def __call__(self, *arguments):
            state = ["--state-dir", str(tmp_path / "state")]
            result = CliRunner().invoke(
                app, [*arguments, "--json", "--run-dir", str(tmp_path / "run"), *state]
            )
            return result.exit_code, json.loads(result.output)

        def key(self, channel, ckn, **said):
            """Say something of a key."""
            chain = self.seen.setdefault(channel, {"kind": "mka", "current": None, "chain": []})
            chain["chain"] = [k for k in chain["chain"] if k["ckn"] != ckn] + [
                {"ckn": ckn, **SEEN_KEY, **said}
            ]
            if said.get("in_use"):
                chain["current"] = {"ckn": ckn}

        def accept(self, **change):
            """Accept the configuration, with texts replaced."""
            text = box.read_text()
            for old, new in change.values():
                assert old in text
                text = text.replace(old, new)
            box.write_text(text)
            accept(tmp_path / "run", box, text, load(box).effective)

    live = Live()
    live.seen = {}

    def ask(_run_dir, *, verb, **_):
        if verb == "reload":
            live.poked += 1
        return {"channels": live.seen}

    monkeypatch.setattr("router.cli.keys.ask", ask)
    for channel in ("a1", "a2"):
        code, output = keys("add", channel, "--first", "--json")
        assert code == 0
        live.key(channel, json.loads(output)["ckn"], in_use=True)
    live.accept()
    return live


def ckn_in_use(live, channel):
    return live.seen[channel]["current"]["ckn"]


def test_a_rotation_from_the_first_command_to_the_last(live):
    """Add, wait for the peer, rotate, remove the old one; each step only when it is safe."""
    old = ckn_in_use(live, "a1")
    code, added = live("add", "a1")
    assert (code, added["standby"]) == (0, True)
    new = added["ckn"]
    assert live("rotate", "a1")[1]["rule"] == "new_not_live"
    assert live("add", "a2")[1]["rule"] == "other_channel"
    live.key("a1", new)
    live.seen["a1"]["participants"] = [{"principal": True, "key_server": "02:00:00:00:01:01/1"}]
    code, rotated = live("rotate", "a1")
    assert (code, rotated["ckn"], rotated["key_server"]) == (0, new, "02:00:00:00:01:01/1")
    stored = json.loads(Path(added["file"]).read_text())
    assert (stored["standby"], stored["start"] is not None) == (False, True)
    live.key("a1", old, in_use=False)
    live.key("a1", new, in_use=True)
    assert live("remove", "a1", new)[1]["rule"] == "key_active"
    assert live("remove", "a1", old)[0] == 0
    assert live("add", "a2")[1]["rule"] == "bake"
    assert live.poked == 5, "two first keys, add, rotate, remove"


def test_a_rotation_by_time_bakes_like_one_by_command(live, tmp_path):
    """The daemon noted it in the state directory, maybe before it was restarted."""
    use = KeyUse(tmp_path / "state" / KeyUse.FILE)
    use.note("a1", b"\1", 0.0)
    use.note("a1", b"\2", time.time() - 100)
    assert live("add", "a2")[1]["rule"] == "bake"
    assert live("add", "a1")[0] == 0


def test_start_times_within_the_bake_time_are_refused(live):
    """Two channels that go over to new keys by the clock do so hours apart."""
    soon, late = (datetime.fromtimestamp(time.time() + s, UTC).isoformat() for s in (90000, 98000))
    assert live("add", "a1", "--start", soon)[0] == 0
    assert live("add", "a2", "--start", soon)[1]["rule"] == "bake"
    assert live("add", "a2", "--start", late)[0] == 0


def test_the_provider_takes_three_keys_and_the_open_specification_two(live):
    """Which rules apply is a leaf of the configuration."""
    start = datetime.fromtimestamp(time.time() + 90000, UTC).isoformat()
    later = datetime.fromtimestamp(time.time() + 180000, UTC).isoformat()
    assert live("add", "a1", "--start", start)[0] == 0
    live.accept(rules=("policy: must-secure", "policy: must-secure\n      key_rules: open-spec"))
    assert live("add", "a1", "--start", later)[1]["rule"] == "chain_full"
    live.accept(rules=("key_rules: open-spec", "key_rules: provider"))
    assert live("add", "a1", "--start", later)[0] == 0
    assert live("add", "a1", "--start", later)[1]["rule"] == "chain_full"


def test_a_provider_that_takes_one_key_has_it_exchanged(live):
    """Azure: no second key beside it, so the exchange is asked for by name."""
    live.accept(
        profile=("profile: aws-dx", "profile: azure-er"),
        asn=("peer_asn: 64512", "peer_asn: 12076"),
        mtu=("mtu: 8500", "mtu: 1500"),
    )
    old = ckn_in_use(live, "a1")
    code, refused = live("add", "a1")
    assert (code, refused["rule"]) == (1, "single_key")
    code, added = live("add", "a1", "--replace")
    assert (code, added["standby"]) == (0, False)
    assert [f.stem for f in Path(added["file"]).parent.glob("*.json")] == [added["ckn"]]
    assert added["ckn"] != old
    assert live("add", "a2", "--replace")[1]["rule"] == "bake"


def test_keys_that_follow_too_closely_are_refused_by_the_provider_s_rule(live):
    """Google wants six hours between start times, also of one that is rotated to now."""
    live.accept(profile=("profile: aws-dx", "profile: gcp"), mtu=("mtu: 8500", "mtu: 8896"))
    soon = datetime.fromtimestamp(time.time() + 5 * 3600, UTC).isoformat()
    assert live("add", "a1", "--start", soon)[0] == 0
    code, added = live("add", "a1")
    assert code == 0
    live.key("a1", added["ckn"])
    code, refused = live("rotate", "a1")
    assert (code, refused["rule"]) == (1, "chain_limit")
    assert "21600 s required" in refused["reason"]


def test_a_key_in_use_that_has_no_name_yet_keeps_all(live):
    """A daemon that has just taken over may not know the name of the key that it adopted."""
    _, added = live("add", "a1")
    live.seen["a1"]["current"] = {"ckn": ""}
    assert live("remove", "a1", added["ckn"])[1]["rule"] == "in_use_unknown"

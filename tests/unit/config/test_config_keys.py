"""Key chains: what is read, what is skipped and named, and that a CAK is never repeated."""

import json
import stat
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from router.config.effective import MkaKey, SecretRef
from router.config.keys import load_chain, stamp, write_key
from router.config.load import load, load_text
from router.config.secrets import check_secrets, resolve, resolve_cak
from router.errors import ConfigError, SecretError
from router.mka.keychain import ChainKey
from router.model import Secret

CONFIG = Path(__file__).parents[3] / "config"
FOUR = (CONFIG / "four-channels.yaml").read_text()
CKN, CAK = bytes(range(32)), bytes(range(100, 132))


@pytest.fixture
def macsec(tmp_path):
    """A channel's policy with a key directory of its own."""
    directory = tmp_path / "keys"
    channel = load(CONFIG / "four-channels.yaml").effective.channels[0]
    return replace(channel.macsec, key_directory=str(directory))


def chain_of(macsec, profile="generic"):
    chain = load_chain(macsec, profile, "a1")
    assert CAK.hex() not in " ".join(chain.problems)
    return chain


def test_what_is_written_is_read(macsec):
    """With its times, and private."""
    key = ChainKey(CKN, Secret(CAK), 1000.0, 2000.5)
    path = write_key(Path(macsec.key_directory), key, standby=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    chain = chain_of(macsec)
    assert chain.keys == (key,)
    assert (chain.standby, chain.problems, chain.files) == (frozenset({CKN}), (), {CKN: path})


def test_a_standby_key_runs_but_is_not_chosen(macsec):
    """`rotate` chooses it."""
    write_key(Path(macsec.key_directory), ChainKey(CKN, Secret(CAK)), standby=True)
    (entry,) = chain_of(macsec).running(5000.0, 600.0)
    assert not entry.eligible
    write_key(Path(macsec.key_directory), ChainKey(CKN, Secret(CAK), 4000.0), standby=False)
    (entry,) = chain_of(macsec).running(5000.0, 600.0)
    assert entry.eligible


@pytest.mark.parametrize(
    ("content", "mode", "reason"),
    [
        ("{}", 0o600, "is no key file"),
        ("[1]", 0o600, "is no key file"),
        (json.dumps({"ckn": "zz", "cak": CAK.hex()}), 0o600, "is no key file"),
        (json.dumps({"ckn": "aa", "cak": CAK.hex()[:-2]}), 0o600, "31 octets"),
        (json.dumps({"ckn": "aa" * 33, "cak": CAK.hex()}), 0o600, "33 octets"),
        (json.dumps({"ckn": "aa", "cak": CAK.hex()}), 0o640, "others can get at it"),
        (json.dumps({"ckn": "aa", "cak": CAK.hex(), "start": "soon"}), 0o600, "is no key file"),
    ],
)
def test_a_bad_file_is_skipped_and_named(macsec, content, mode, reason):
    """The good one beside it works."""
    directory = Path(macsec.key_directory)
    write_key(directory, ChainKey(CKN, Secret(CAK)), standby=False)
    bad = directory / "bad.json"
    bad.write_text(content)
    bad.chmod(mode)
    chain = chain_of(macsec)
    assert [key.ckn for key in chain.keys] == [CKN]
    assert len(chain.problems) == 1
    assert reason in chain.problems[0]


def test_a_directory_that_others_can_read_is_refused(macsec):
    """Its names tell which keys there are, and its mode who may replace them."""
    write_key(Path(macsec.key_directory), ChainKey(CKN, Secret(CAK)), standby=False)
    Path(macsec.key_directory).chmod(0o755)
    chain = chain_of(macsec)
    assert not chain.keys
    assert "chmod 700" in chain.problems[0]


def test_a_missing_directory_says_what_makes_it(macsec):
    """No traceback on a new box."""
    assert "lastmile keys add" in chain_of(macsec).problems[0]


def test_limits_of_the_provider_are_named(macsec):
    """The keys still run: a router that refuses working keys helps nobody."""
    for number in range(4):
        key = ChainKey(bytes(31) + bytes((number,)), Secret(bytes(31) + bytes((number,))))
        write_key(Path(macsec.key_directory), key, standby=False)
    chain = chain_of(macsec, "aws-dx")
    assert len(chain.keys) == 4
    assert "at most 3" in chain.problems[0]


def test_the_stamp_changes_with_the_files(macsec):
    """So the daemon reads again what was replaced, and only then."""
    empty = stamp(macsec)
    write_key(Path(macsec.key_directory), ChainKey(CKN, Secret(CAK)), standby=False)
    one = stamp(macsec)
    assert one != empty
    assert stamp(macsec) == one
    write_key(Path(macsec.key_directory), ChainKey(CKN, Secret(CAK)), standby=True)
    assert stamp(macsec) != one


def test_keys_of_the_file_and_of_the_directory_are_one_chain(macsec, tmp_path):
    """By reference both."""
    secret = tmp_path / "cak"
    secret.write_text("ab" * 16)
    secret.chmod(0o600)
    spec = MkaKey(b"\1\2\3", SecretRef("file", str(secret)), None, 3000.0)
    write_key(Path(macsec.key_directory), ChainKey(CKN, Secret(CAK)), standby=False)
    chain = chain_of(replace(macsec, keys=(spec,)))
    assert {key.ckn for key in chain.keys} == {b"\1\2\3", CKN}
    assert set(chain.files) == {CKN}


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (("/bin/false",), "ended with status 1"),
        (("/no/such/program",), "cannot be run"),
        (("/bin/sh", "-c", "yes"), "printed more than"),
        (("/bin/sh", "-c", "sleep 60 & exec sleep 60"), "did not end"),
    ],
)
def test_a_command_that_fails_is_named(argv, reason, monkeypatch):
    """What it printed is not."""
    monkeypatch.setattr("router.config.secrets.COMMAND_TIMEOUT_S", 0.5)
    with pytest.raises(SecretError) as raised:
        resolve(SecretRef("command", " ".join(argv), argv))
    assert reason in str(raised.value)


def test_a_command_prints_a_cak():
    """Without a shell, without our standard input."""
    argv = (sys.executable, "-c", "print('ab' * 32)")
    assert resolve_cak(SecretRef("command", "python", argv)).reveal() == b"\xab" * 32


def test_check_reads_the_directories(tmp_path):
    """`lastmile check` finds what the daemon would."""
    loaded = load_text(FOUR, str(tmp_path / "x.yaml"), base_dir=tmp_path)
    paths = {finding.path: finding for finding in check_secrets(loaded.effective, loaded.origins)}
    finding = paths["channels.a1.macsec.key_directory"]
    assert finding.line == FOUR[: FOUR.index("keys/a1")].count("\n") + 1
    assert "lastmile keys add" in finding.message


def test_agreement_has_the_profile_s_defaults():
    """And the file's values where it has them."""
    mka = load(CONFIG / "gcp.yaml").effective.channels[0].macsec.mka
    assert (mka.priority, mka.rekey_interval_s, mka.icv_indicator) == (15, 28_800, True)
    text = FOUR.replace("{priority: 16, rekey_interval_s: 28800}", "{priority: 3, ssci_order: reversed}")
    mka = load_text(text, "x.yaml").effective.channels[0].macsec.mka
    assert (mka.priority, mka.rekey_interval_s, mka.ssci_order) == (3, 28_800, "reversed")
    assert mka.sak_retire_time_ms == 3000, "the standard's"


@pytest.mark.parametrize(("wanted", "good"), [(100, True), (10_000, True), (99, False), (10_001, False)])
def test_the_retire_time_has_bounds(wanted, good):
    """Less than a tenth of a second loses what the wire delays; more only delays the next rotation."""
    text = FOUR.replace("{priority: 16, rekey_interval_s: 28800}", f"{{sak_retire_time_ms: {wanted}}}")
    with nullcontext() if good else pytest.raises(ConfigError, match="sak_retire_time_ms"):
        assert load_text(text, "x.yaml").effective.channels[0].macsec.mka.sak_retire_time_ms == wanted

"""Secrets: what is refused, that the reason says what, and that no error ever repeats the secret."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from router.config.effective import SecretRef
from router.config.load import load
from router.config.secrets import check_secrets, resolve, resolve_password, resolve_sak
from router.errors import ConfigError, SecretError

CONFIG = Path(__file__).parents[3] / "config"
WORD = "Tr0ub4dor-and-3"


@pytest.fixture
def secret(tmp_path):
    """Return a function that writes a secret's file and gives the reference to it."""
    directory = tmp_path / "secrets"
    directory.mkdir(mode=0o700)

    def write(octets, mode=0o600, name="secret"):
        file = directory / name
        file.write_bytes(octets if isinstance(octets, bytes) else octets.encode())
        file.chmod(mode)
        return SecretRef("file", str(file))

    return write


def refused(call, *arguments):
    """Return the reason, which must not hold the secret."""
    with pytest.raises(SecretError) as raised:
        call(*arguments)
    reason = str(raised.value)
    assert WORD not in reason
    assert "\n" not in reason
    assert raised.value.__cause__ is None
    return reason


@pytest.mark.parametrize("text", [WORD, WORD + "\n", "x", "with a space inside", "y" * 80])
def test_a_password_is_read_without_its_line_break(secret, text):
    """One line break at the end is the editor's, not the secret's."""
    assert resolve_password(secret(text)).reveal() == text.removesuffix("\n").encode()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (WORD + " ", "ends with a space"),
        (WORD + " \n", "ends with a space"),
        (WORD + "\t\n", "ends with a tab"),
        (WORD + "\n\n", "ends with an empty line"),
        (WORD + "\r\n", "ends with a carriage return"),
        (" " + WORD, "begins with a space"),
        (WORD + "\n" + WORD, "has several lines"),
        ("", "is empty"),
        ("\n", "is empty"),
        ("  \n", "is empty"),
        ("z" * 81, "81 octets - an MD5 secret has at most 80"),
        (WORD + "\x00", "not printable ASCII"),
        (WORD + "é", "not printable ASCII"),
        ("q" * 5000, "larger than 4096 octets"),
    ],
)
def test_a_password_with_something_odd_is_refused(secret, text, reason):
    """The trailing space above all: nobody sees it, and the provider's router does not have it."""
    assert reason in refused(resolve_password, secret(text))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620, 0o602, 0o666, 0o610])
def test_a_file_that_others_can_get_at_is_refused(secret, mode):
    """Readable, writable or executable, by the group or by all."""
    reason = refused(resolve, secret(WORD, mode=mode))
    assert f"mode {mode:04o}" in reason
    assert "chmod 600" in reason


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_a_file_of_our_own_is_read(secret, mode):
    """Whatever we may do with it ourselves."""
    assert resolve(secret(WORD, mode=mode)).reveal() == WORD.encode()


@pytest.mark.parametrize("mode", [0o770, 0o720, 0o702, 0o777])
def test_a_directory_that_others_can_write_is_refused(secret, mode):
    """They could put another file in the secret's place."""
    ref = secret(WORD)
    Path(ref.value).parent.chmod(mode)
    assert f"can be written by others (mode {mode:04o})" in refused(resolve, ref)


def test_a_directory_that_others_can_read_is_no_harm(secret):
    """The names in it are no secret, the files are protected themselves."""
    ref = secret(WORD)
    Path(ref.value).parent.chmod(0o755)
    assert resolve(ref).reveal() == WORD.encode()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_another_user_is_refused(secret):
    """Only root's and our own are believed."""
    ref = secret(WORD)
    os.chown(ref.value, 12345, 0)
    assert "it belongs to user 12345" in refused(resolve, ref)
    os.chown(ref.value, 0, 0)
    os.chown(Path(ref.value).parent, 12345, 0)
    assert "belongs to user 12345" in refused(resolve, ref)


def test_what_is_no_regular_file_is_refused(secret, tmp_path):
    """A directory, a fifo (which must not block), nothing at all."""
    ref = secret(WORD)
    directory = Path(ref.value).parent
    os.mkfifo(directory / "fifo", 0o600)
    assert "not a regular file" in refused(resolve, SecretRef("file", str(directory / "fifo")))
    assert "not a regular file" in refused(resolve, SecretRef("file", str(directory)))
    assert "no such file" in refused(resolve, SecretRef("file", str(directory / "none")))
    assert "no such file" in refused(resolve, SecretRef("file", str(tmp_path / "none" / "none")))


def test_a_credential_comes_from_systemds_directory(secret, monkeypatch):
    """By name; its group bits are an ACL's mask and do not count, others' bits do."""
    ref = secret(WORD, mode=0o440, name="a1.md5")
    credential = SecretRef("credential", "a1.md5")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(Path(ref.value).parent))
    assert resolve_password(credential).reveal() == WORD.encode()
    Path(ref.value).chmod(0o444)
    assert "others can get at it" in refused(resolve, credential)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    assert "LoadCredential=a1.md5" in refused(resolve, credential)


@pytest.mark.parametrize("size", [16, 32])
def test_a_sak_is_hex_of_the_suites_size(secret, size):
    """Upper or lower case, with or without a line break."""
    for text in ("aB" * size, "aB" * size + "\n"):
        assert resolve_sak(secret(text), size).reveal() == bytes.fromhex("ab" * size)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ab" * 16, "32 characters - the suite's key is 64 hex digits (256 bit)"),
        ("ab" * 31 + "a", "63 characters"),
        ("ab" * 32 + "a", "65 characters"),
        ("ab" * 31 + "ag", "no hex digit"),
        ("ab" * 31 + " a", "no hex digit"),
        ("ab" * 32 + " ", "ends with a space"),
        ("0x" + "ab" * 31, "no hex digit"),
    ],
)
def test_a_sak_of_another_form_is_refused(secret, text, reason):
    """Length first, then digits; never the digits themselves."""
    message = refused(resolve_sak, secret(text), 32)
    assert reason in message
    assert "abab" not in message


def test_a_secret_error_is_the_operators():
    """It is reported as a sentence like any error in the file."""
    assert issubclass(SecretError, ConfigError)


@pytest.fixture
def populated(tmp_path):
    """Return static-keys.yaml beside its secrets, loaded."""
    (tmp_path / "four.yaml").write_bytes((CONFIG / "static-keys.yaml").read_bytes())
    (tmp_path / "secrets").mkdir(mode=0o700)
    for n, channel in enumerate(("a1", "a2", "b1", "b2")):
        for name, text in (
            (f"{channel}-transmit.sak", f"{2 * n + 1:02x}" * 32),
            (f"{channel}-receive.sak", f"{2 * n + 2:02x}" * 32),
            (f"{channel}.md5", WORD),
        ):
            file = tmp_path / "secrets" / name
            file.write_text(text + "\n")
            file.chmod(0o600)
    return load(tmp_path / "four.yaml")


def test_good_secrets_are_no_finding(populated):
    """Four channels may share an MD5 secret; keys differ."""
    assert check_secrets(populated.effective, populated.origins) == ()


def test_a_bad_secret_is_found_in_the_line_that_refers_to_it(populated, tmp_path):
    """Both sessions of a channel use it; it is reported once."""
    (tmp_path / "secrets" / "a1.md5").write_text(WORD + " \n")
    (finding,) = check_secrets(populated.effective, populated.origins)
    assert finding.file == str(tmp_path / "four.yaml")
    assert finding.line == 68
    assert finding.path == "connections.prod.features.a1.sessions.ipv4.password"
    assert "ends with a space" in finding.message
    assert WORD not in str(finding)
    (without,) = check_secrets(populated.effective)
    assert "ends with a space" in str(without)


def test_the_same_key_in_two_files_is_found(populated, tmp_path):
    """A copied file is the same key under another name."""
    secrets = tmp_path / "secrets"
    (secrets / "b2-receive.sak").write_bytes((secrets / "a1-transmit.sak").read_bytes())
    (finding,) = check_secrets(populated.effective, populated.origins)
    assert "the same key as channels.a1.macsec.static.transmit.sak" in finding.message
    assert "0101" not in str(finding)


def test_all_missing_secrets_are_reported(populated):
    """On a machine without the secrets each reference is named: eight keys, four passwords."""
    moved = replace(
        populated.effective,
        channels=tuple(
            replace(c, macsec=replace(c.macsec, static=_elsewhere(c.macsec.static)))
            for c in populated.effective.channels
        ),
    )
    findings = check_secrets(moved, populated.origins)
    assert len(findings) == 8
    assert all("no such file" in finding.message for finding in findings)


def _elsewhere(static):
    def move(sa):
        return replace(sa, sak=SecretRef("file", sa.sak.value + ".gone"))

    return replace(static, transmit=move(static.transmit), receive=move(static.receive))

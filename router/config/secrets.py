"""References -> secrets. Checked before they are believed, and never repeated in an error.

A secret's file is refused where others could read it or put another in its place, and where
an editor or a copy has left something at its end: the trailing space in a BGP key is the most
common fault with providers, because it is part of the key and nobody sees it.
"""

from __future__ import annotations

import os
import select
import signal
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Final

from router.config.effective import EffectiveConfig, SecretRef
from router.config.findings import Finding, Origin
from router.errors import SecretError
from router.model import Secret

CREDENTIALS_DIRECTORY: Final = "CREDENTIALS_DIRECTORY"
"""Environment variable by which systemd names the directory of a service's credentials."""

SECRET_SIZE_MAX: Final = 4096
"""Octets of a secret's file."""

PASSWORD_SIZE_MAX: Final = 80
"""Octets of a TCP MD5 key (TCP_MD5SIG_MAXKEYLEN)."""

COMMAND_TIMEOUT_S: Final = 10
"""A secret's command that takes longer is ended."""

_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


def resolve(ref: SecretRef) -> Secret:
    """Read a secret without its final line break. Raises SecretError."""
    if ref.kind == "command":
        return Secret(_trimmed(ref, _printed(ref)))
    return Secret(_trimmed(ref, read_private(ref)))


def read_private(ref: SecretRef) -> bytes:
    """Read a whole file that only its owner can get at. Raises SecretError."""
    path = _path(ref)
    _check_directory(ref, os.path.dirname(path))  # noqa: PTH120 - text only
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise SecretError(
            f"{ref}: cannot be read: {_reason(error)} - put the secret there, mode 0600"
        ) from None
    try:
        # Checked on the open file: a path may mean another one by the time it is read.
        _check_file(ref, os.fstat(descriptor))
        octets = os.read(descriptor, SECRET_SIZE_MAX + 1)
    except OSError as error:
        raise SecretError(f"{ref}: cannot be read: {_reason(error)}") from None
    finally:
        os.close(descriptor)
    if len(octets) > SECRET_SIZE_MAX:
        raise SecretError(f"{ref}: larger than {SECRET_SIZE_MAX} octets - this is no secret of ours")
    return octets


def _printed(ref: SecretRef) -> bytes:
    """Run a secret's command and take what it prints. Raises SecretError that repeats none of it.

    Output and time are bounded, and what it started ends with it (its own process group).
    """
    try:
        child = subprocess.Popen(
            ref.argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise SecretError(f"{ref}: cannot be run: {_reason(error)} - name an executable program") from None
    assert child.stdout is not None
    deadline = time.monotonic() + COMMAND_TIMEOUT_S
    octets = b""
    try:
        while len(octets) <= SECRET_SIZE_MAX:
            if not select.select([child.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise SecretError(f"{ref}: did not end within {COMMAND_TIMEOUT_S} s - it must not ask")
            piece = os.read(child.stdout.fileno(), SECRET_SIZE_MAX + 1 - len(octets))
            if not piece:
                break
            octets += piece
        else:
            raise SecretError(
                f"{ref}: printed more than {SECRET_SIZE_MAX} octets - this is no secret of ours"
            )
        status = child.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise SecretError(f"{ref}: did not end within {COMMAND_TIMEOUT_S} s - it must not ask") from None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.stdout.close()
        child.wait()
    if status:
        raise SecretError(f"{ref}: ended with status {status} - run it by hand to see why")
    return octets


def resolve_password(ref: SecretRef) -> Secret:
    """Read a TCP MD5 secret: 1 to 80 printable ASCII characters. Raises SecretError."""
    secret = resolve(ref)
    octets = secret.reveal()
    if len(octets) > PASSWORD_SIZE_MAX:
        raise SecretError(f"{ref}: {len(octets)} octets - an MD5 secret has at most {PASSWORD_SIZE_MAX}")
    if any(not 0x20 <= octet <= 0x7E for octet in octets):
        raise SecretError(f"{ref}: has a character that is not printable ASCII - providers take no other")
    return secret


def resolve_sak(ref: SecretRef, key_size: int) -> Secret:
    """Read a SAK of `key_size` octets, written as hex digits. Raises SecretError."""
    secret = resolve(ref)
    if len(secret) != 2 * key_size:
        raise SecretError(
            f"{ref}: {len(secret)} characters - the suite's key is {2 * key_size} hex digits ({key_size * 8} bit)"
        )
    return _from_hex(ref, secret)


def resolve_cak(ref: SecretRef) -> Secret:
    """Read a CAK of 16 or 32 octets, written as hex digits. Raises SecretError."""
    secret = resolve(ref)
    if len(secret) not in {32, 64}:
        raise SecretError(f"{ref}: {len(secret)} characters - a CAK is 32 or 64 hex digits (128 or 256 bit)")
    return _from_hex(ref, secret)


def _from_hex(ref: SecretRef, secret: Secret) -> Secret:
    digits = secret.reveal()
    if any(octet not in b"0123456789abcdefABCDEF" for octet in digits):
        raise SecretError(f"{ref}: has a character that is no hex digit - a key is written as 0-9 and a-f")
    key = Secret(bytes.fromhex(digits.decode("ascii")))
    secret.wipe()
    return key


def check_secrets(
    effective: EffectiveConfig, origins: Mapping[str, Origin] | None = None
) -> tuple[Finding, ...]:
    """Try every reference. With `origins` the findings name the line that refers to the secret."""
    findings: list[Finding] = []
    keys: dict[Secret, str] = {}
    seen: set[SecretRef] = set()
    for path, ref, key_size in _references(effective):
        if ref in seen:
            continue
        seen.add(ref)
        origin = (origins or {}).get(path)
        file, line = (origin.source, origin.line) if origin is not None else (ref.value, 0)
        try:
            if key_size is None:
                resolve_password(ref).wipe()
                continue
            key = resolve_sak(ref, key_size) if key_size else resolve_cak(ref)
        except SecretError as error:
            message = str(error) if origin is not None else str(error).removeprefix(f"{ref}: ")
            findings.append(Finding(file, line, 0, path, message))
            continue
        if key in keys:
            own = "each direction of each channel has its own" if key_size else "each name has its own"
            message = f"{ref}: the same key as {keys[key]} - {own}"
            findings.append(Finding(file, line, 0, path, message))
        keys.setdefault(key, path)
    for key in list(keys):
        key.wipe()
    return (*findings, *_check_directories(effective, origins or {}))


def _check_directories(effective: EffectiveConfig, origins: Mapping[str, Origin]) -> Iterator[Finding]:
    """Read the key directories, as the key daemon will."""
    from router.config.keys import load_chain  # only where there are any: it brings the cryptography

    for channel in effective.channels:
        if channel.macsec.key_directory is None:
            continue
        path = f"channels.{channel.id}.macsec.key_directory"
        origin = origins.get(path)
        file, line = (origin.source, origin.line) if origin is not None else (channel.macsec.key_directory, 0)
        profile = next(i.profile for i in effective.interconnects if i.name == channel.interconnect)
        chain = load_chain(channel.macsec, profile, str(channel.id), only_directory=True)
        for problem in chain.problems:
            yield Finding(file, line, 0, path, problem)
        chain.wipe()


def _references(effective: EffectiveConfig) -> Iterator[tuple[str, SecretRef, int | None]]:
    """List path, reference, and key size in octets (None: a password; 0: a CAK of either size)."""
    for channel in effective.channels:
        static = channel.macsec.static
        if static is not None:
            path = f"channels.{channel.id}.macsec.static"
            yield f"{path}.transmit.sak", static.transmit.sak, channel.macsec.suite.key_size
            yield f"{path}.receive.sak", static.receive.sak, channel.macsec.suite.key_size
        for key in channel.macsec.keys:
            yield f"channels.{channel.id}.macsec.keys.{key.ckn.hex()}.cak", key.cak, 0
    for session in effective.sessions:
        if session.password is not None:
            path = f"connections.{session.connection}.features.{session.channel}.sessions.{session.afi}"
            yield f"{path}.password", session.password, None


def _path(ref: SecretRef) -> str:
    if ref.kind == "file":
        return ref.value
    directory = os.environ.get(CREDENTIALS_DIRECTORY)
    if not directory:
        raise SecretError(
            f"{ref}: ${CREDENTIALS_DIRECTORY} is not set - add LoadCredential={ref.value}:PATH to the service"
        )
    return f"{directory}/{ref.value}"


def _check_directory(ref: SecretRef, directory: str) -> None:
    """Refuse a directory in which others could put another file in the secret's place."""
    try:
        status = os.stat(directory or ".")  # noqa: PTH116 - as in the rest of this file
    except OSError as error:
        raise SecretError(
            f"{ref}: its directory cannot be read: {_reason(error)} - make it, mode 0700"
        ) from None
    _check_owner(ref, status, f"its directory {directory}")
    # In a sticky directory (/tmp) nobody can replace what is not theirs.
    if status.st_mode & _OTHERS_WRITE and not status.st_mode & stat.S_ISVTX:
        mode = stat.S_IMODE(status.st_mode)
        raise SecretError(
            f"{ref}: its directory {directory} can be written by others (mode {mode:04o}) - chmod go-w it"
        )


def _check_file(ref: SecretRef, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise SecretError(f"{ref}: is not a regular file - name the file with the secret")
    _check_owner(ref, status, "it")
    # systemd gives a service's user access by an ACL, whose mask shows as the group's bits.
    others = stat.S_IRWXO | stat.S_IWGRP if ref.kind == "credential" else _OTHERS
    if status.st_mode & others:
        mode = stat.S_IMODE(status.st_mode)
        raise SecretError(f"{ref}: others can get at it (mode {mode:04o}) - chmod 600 it")


def _check_owner(ref: SecretRef, status: os.stat_result, what: str) -> None:
    if status.st_uid not in {0, os.geteuid()}:
        raise SecretError(f"{ref}: {what} belongs to user {status.st_uid} - chown it to root")


def _trimmed(ref: SecretRef, octets: bytes) -> bytes:
    """Take one line break off the end, and refuse what else nobody sees."""
    body = octets.removesuffix(b"\n")
    if not body.strip():
        raise SecretError(f"{ref}: is empty - write the secret into it")
    invisible = {
        0x20: "a space",
        0x09: "a tab",
        0x0A: "an empty line",
        0x0D: "a carriage return (saved on Windows?)",
    }
    if body[-1] in invisible:
        raise SecretError(
            f"{ref}: ends with {invisible[body[-1]]}, which would be part of the secret - remove it"
        )
    if body[0] in invisible:
        raise SecretError(
            f"{ref}: begins with {invisible[body[0]]}, which would be part of the secret - remove it"
        )
    if b"\n" in body:
        raise SecretError(f"{ref}: has several lines - a secret is one")
    return body


def _reason(error: OSError) -> str:
    return (error.strerror or "input/output error").lower()

"""The key file of `lastmile frames`: SAKs by hand, for captures.

    suite: gcm-aes-xpn-256
    confidentiality_offset: 0              # or 30, 50
    associations:
      - sci: 02:00:00:00:00:0a/1           # or 16 hex digits, as `ip macsec show` prints it
        an: 0
        sak: 64 hex digits
        ssci: 1                            # XPN suites only
        salt: 24 hex digits                # XPN suites only
        pn: 1                              # lowest PN accepted, or the first one sent

YAML, of which JSON is a part. The file holds keys, so it must be readable by its owner alone; no
error repeats what it says.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from router.dataplane.frame import CONFIDENTIALITY_OFFSETS
from router.errors import ConfigError, SecretError
from router.model import CipherSuite, Sci, Secret
from router.secy import SaKey

FILE_SIZE_MAX: Final = 1 << 20
"""Octets of a key file."""

_FILE_KEYS: Final = {"suite", "confidentiality_offset", "associations"}
_SA_KEYS: Final = {"sci", "an", "sak", "ssci", "salt", "pn"}


@dataclass(frozen=True, slots=True)
class Association:
    """One SA of the file."""

    sci: Sci
    an: int
    key: SaKey
    pn: int


@dataclass(frozen=True, slots=True)
class KeyFile:
    """All of it."""

    suite: CipherSuite
    confidentiality_offset: int
    associations: tuple[Association, ...]


def load_key_file(path: Path) -> KeyFile:
    """Read a key file. Raises SecretError for its permissions, ConfigError for its content."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    text = _read_private(path)
    try:
        # "base" leaves every scalar a string: a key of digits alone is not a number.
        data = YAML(typ="base", pure=True).load(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not YAML") from None
    return _parse(_Where(str(path)), data)


def _read_private(path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise SecretError(f"{path}: cannot be read: {os.strerror(error.errno or 0)}") from None
    try:
        # Checked on the open file: a path may mean another one by the time it is read.
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise SecretError(f"{path}: is not a regular file - name the file with the keys")
        if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise SecretError(
                f"{path}: others can get at it (mode {stat.S_IMODE(status.st_mode):04o}) - chmod 600 it"
            )
        if status.st_uid not in {0, os.geteuid()}:
            raise SecretError(f"{path}: belongs to user {status.st_uid} - chown it")
        octets = os.read(descriptor, FILE_SIZE_MAX + 1)
    finally:
        os.close(descriptor)
    if len(octets) > FILE_SIZE_MAX:
        raise SecretError(f"{path}: larger than {FILE_SIZE_MAX} octets - this is no key file")
    try:
        return octets.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not text") from None


@dataclass(frozen=True, slots=True)
class _Where:
    """A place in the file, for errors."""

    text: str

    def __truediv__(self, part: str) -> _Where:
        return _Where(f"{self.text}: {part}" if ": " not in self.text else f"{self.text}.{part}")

    def refuse(self, reason: str) -> ConfigError:
        return ConfigError(f"{self.text}: {reason}")


def _mapping(where: _Where, data: Any, known: set[str]) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise where.refuse(f"must be a mapping with {', '.join(sorted(known))}")
    if unknown := set(data) - known:
        raise where.refuse(
            f"has {len(unknown)} unknown key{'s' * (len(unknown) > 1)} - known are {', '.join(sorted(known))}"
        )
    return data


def _text(where: _Where, data: Mapping[str, Any], name: str) -> str:
    value = data.get(name)
    if value is None:
        raise (where / name).refuse("is missing")
    if not isinstance(value, str):
        raise (where / name).refuse("must be a single value")
    return value.strip()


def _number(where: _Where, data: Mapping[str, Any], name: str, *, low: int, high: int, default: int) -> int:
    if name not in data:
        return default
    text = _text(where, data, name)
    try:
        number = int(text, 0)
    except ValueError:
        number = -1
    if not low <= number <= high:
        raise (where / name).refuse(f"must be {low} to {high}")
    return number


def _hex(where: _Where, data: Mapping[str, Any], name: str, size: int, why: str) -> bytes:
    text = _text(where, data, name)
    if not re.fullmatch(f"[0-9a-fA-F]{{{2 * size}}}", text):
        raise (where / name).refuse(f"must be {2 * size} hex digits ({why}), has {len(text)} characters")
    return bytes.fromhex(text)


def _sci(where: _Where, data: Mapping[str, Any]) -> Sci:
    text = _text(where, data, "sci")
    try:
        if re.fullmatch("[0-9a-fA-F]{16}", text):
            return Sci.unpack(bytes.fromhex(text))
        return Sci.parse(text)
    except ValueError as error:
        raise (where / "sci").refuse(str(error)) from None


def _parse(where: _Where, data: Any) -> KeyFile:
    data = _mapping(where, data, _FILE_KEYS)
    try:
        suite = CipherSuite.parse(_text(where, data, "suite"))
    except ValueError as error:
        raise (where / "suite").refuse(str(error)) from None
    offset = _number(where, data, "confidentiality_offset", low=0, high=50, default=0)
    if offset not in CONFIDENTIALITY_OFFSETS:
        raise (where / "confidentiality_offset").refuse("must be 0, 30 or 50")
    rows = data.get("associations")
    if not isinstance(rows, list) or not rows:
        raise (where / "associations").refuse("must be a list of at least one")
    found: dict[tuple[Sci, int], Association] = {}
    for i, row in enumerate(rows):
        here = where / f"associations[{i}]"
        sa = _association(here, row, suite)
        if (sa.sci, sa.an) in found:
            raise here.refuse(f"SCI {sa.sci} has two keys under AN {sa.an}")
        found[sa.sci, sa.an] = sa
    return KeyFile(suite, offset, tuple(found.values()))


def _association(where: _Where, row: Any, suite: CipherSuite) -> Association:
    data = _mapping(where, row, _SA_KEYS)
    if "an" not in data:
        raise (where / "an").refuse("is missing")
    if not suite.is_xpn and ("ssci" in data or "salt" in data):
        raise where.refuse(f"ssci and salt belong to XPN suites, not to {suite}")
    ssci, salt = 0, b""
    if suite.is_xpn:
        if "ssci" not in data:
            raise (where / "ssci").refuse(f"is missing; {suite} needs it")
        ssci = _number(where, data, "ssci", low=1, high=(1 << 32) - 1, default=0)
        salt = _hex(where, data, "salt", 12, "12 octets")
    sak = _hex(where, data, "sak", suite.key_size, f"{suite.key_size * 8} bit for {suite}")
    return Association(
        sci=_sci(where, data),
        an=_number(where, data, "an", low=0, high=3, default=0),
        key=SaKey(Secret(sak), bytes(16), ssci, salt),
        pn=_number(where, data, "pn", low=1, high=suite.pn_max, default=1),
    )

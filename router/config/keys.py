"""Key chains on disk: a channel's CAKs from the configuration and from its key directory.

A key directory has mode 0700, and one file per key with mode 0600, named CKN.json:

    {"ckn": HEX, "cak": HEX, "start": TIME or null, "end": TIME or null, "standby": BOOL}

A *standby* key takes part in MKA, so that both ends can see each other under it, but is not chosen
by us: `lastmile keys rotate` makes it active. A key that cannot be used is skipped and named; the
others work on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from router.config.effective import Macsec, SecretRef
from router.config.secrets import read_private, resolve_cak
from router.errors import ConfigError, SecretError
from router.mka.kay import KeyEntry
from router.mka.keychain import ChainKey, chain_limits, check, live
from router.model import Secret

SUFFIX = ".json"


@dataclass(frozen=True, slots=True)
class Chain:
    """A channel's keys as they were found."""

    keys: tuple[ChainKey, ...] = ()
    standby: frozenset[bytes] = frozenset()
    """CKNs of keys that wait for `rotate`."""
    problems: tuple[str, ...] = ()
    """What was skipped and why, and rules that the chain breaks."""
    files: dict[bytes, Path] = field(default_factory=dict)
    """File of each key that is in the directory, by CKN."""

    def running(self, wall: float, skew_s: float) -> tuple[KeyEntry, ...]:
        """Return the keys to run at `wall` for `Kay.set_keys`."""
        return tuple(
            replace(entry, eligible=False) if entry.ckn in self.standby else entry
            for entry in live(self.keys, wall, skew_s)
        )

    def wipe(self) -> None:
        """Overwrite the CAKs."""
        for key in self.keys:
            key.cak.wipe()


def load_chain(macsec: Macsec, profile: str, channel: str, *, only_directory: bool = False) -> Chain:
    """Read a channel's chain; never raises: what cannot be used is a problem."""
    keys: list[ChainKey] = []
    standby: set[bytes] = set()
    problems: list[str] = []
    files: dict[bytes, Path] = {}
    for spec in () if only_directory else macsec.keys:
        try:
            cak = resolve_cak(spec.cak)
        except SecretError as error:
            problems.append(f"key {spec.ckn.hex()} is skipped: {error}")
            continue
        start = float("-inf") if spec.start is None else spec.start
        keys.append(ChainKey(spec.ckn, cak, start, float("inf") if spec.end is None else spec.end))
    if macsec.key_directory is not None:
        try:
            names = sorted(_names(Path(macsec.key_directory)))
        except SecretError as error:
            names = []
            problems.append(str(error))
        for path in names:
            try:
                key, waits = _read(path)
            except SecretError as error:
                problems.append(f"a key is skipped: {error}")
                continue
            keys.append(key)
            files[key.ckn] = path
            if waits:
                standby.add(key.ckn)
    try:
        check(keys, chain_limits(profile, macsec.key_rules), f"channel {channel}")
    except ConfigError as error:
        problems.append(str(error))
    return Chain(tuple(keys), frozenset(standby), tuple(problems), files)


def stamp(macsec: Macsec) -> tuple[object, ...]:
    """Return what changes when the chain's files do."""
    places = [key.cak.value for key in macsec.keys if key.cak.kind == "file"]
    if macsec.key_directory is not None:
        places.append(macsec.key_directory)
        try:
            places += map(str, sorted(_names(Path(macsec.key_directory))))
        except SecretError:
            places.append("")
    return tuple(map(_file_stamp, places))


def _file_stamp(path: str) -> tuple[str, int, int]:
    try:
        status = Path(path).stat()
    except OSError:
        return path, 0, 0
    return path, status.st_ino, status.st_mtime_ns


def _names(directory: Path) -> Iterator[Path]:
    """List the key files. Raises SecretError where the directory cannot be trusted."""
    try:
        status = directory.stat()
        entries = list(directory.iterdir())
    except FileNotFoundError:
        raise SecretError(f"{directory}: is not there - `lastmile keys add` makes it") from None
    except OSError as error:
        raise SecretError(f"{directory}: cannot be read: {error.strerror}") from None
    if status.st_mode & 0o077 or status.st_uid not in {0, os.geteuid()}:
        raise SecretError(f"{directory}: others can get at it - chmod 700 it, owned by root")
    for entry in entries:
        if entry.name.endswith(SUFFIX) and not entry.name.startswith("."):
            yield entry


def _read(path: Path) -> tuple[ChainKey, bool]:
    """Read one key file. Raises SecretError, which never repeats the CAK."""
    octets = read_private(SecretRef("file", str(path)))
    try:
        data = json.loads(octets)
        ckn = bytes.fromhex(data["ckn"])
        cak = bytes.fromhex(data["cak"])
        start, end, standby = (
            _time(data.get("start")), _time(data.get("end")), bool(data.get("standby", False))
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SecretError(f"{path}: is no key file - `lastmile keys add` writes them") from None
    if not 1 <= len(ckn) <= 32:
        raise SecretError(f"{path}: the CKN has {len(ckn)} octets - 1 to 32")
    if len(cak) not in {16, 32}:
        raise SecretError(f"{path}: the CAK has {len(cak)} octets - 16 or 32")
    key = ChainKey(
        ckn,
        Secret(cak),
        float("-inf") if start is None else start,
        float("inf") if end is None else end,
    )
    return key, standby


def _time(text: str | None) -> float | None:
    return None if text is None else datetime.fromisoformat(text).timestamp()


def show_time(when: float) -> str | None:
    """Print Unix seconds as in a key file; None where there is no limit."""
    if when in {float("inf"), float("-inf")}:
        return None
    return datetime.fromtimestamp(when, UTC).isoformat()


def write_key(directory: Path, key: ChainKey, *, standby: bool) -> Path:
    """Write a key file whole or not at all, and wait until it is on disk. Raises OSError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / (key.ckn.hex() + SUFFIX)
    data: dict[str, Any] = {
        "ckn": key.ckn.hex(),
        "cak": key.cak.reveal().hex(),
        "start": show_time(key.start),
        "end": show_time(key.end),
        "standby": standby,
    }
    fresh = path.with_name("." + path.name)
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        json.dump(data, file)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)
    return path

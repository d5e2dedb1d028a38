"""Rounds in which all candidates take turns, their medians, and which tier they are enough for.

The machine may be shared, so a figure means something only beside its neighbours in time. So every
size has its turn in every round, with the port limit measured among the candidates; a row's
`of_limit` is the median of the rounds' own ratios, not the ratio of two medians; for whole frames,
which another program measures, that of the fastest rounds. Figures are cut, never rounded up.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from router.bench import library, machine, programs

SIZES: Final = (64, 128, 256, 512, 1024, 1500, 4096, 9000)
"""Octets of secure data."""
SUITES: Final = ("gcm-aes-128", "gcm-aes-256", "gcm-aes-xpn-128", "gcm-aes-xpn-256")
DIRECTIONS: Final = ("protect", "validate")
OURS: Final = ("vaes512", "vaes256", "aesni")
PEERS: Final = ("ipsec-mb", "openssl", library.NAME)
TIERS_GBPS: Final = (1, 2, 5, 10, 25, 50, 100)
MIXES: Final[Mapping[str, Mapping[int, int]]] = {
    "imix": {64: 7, 576: 4, 1500: 1},
    "jumbo": {9000: 1},
}
"""Frames by size: the usual 7:4:1, and what a backup over a jumbo channel looks like."""

Key = tuple[str, str, str, int]
"""Backend, suite, direction, size."""
Row = dict[str, Any]
Program = Callable[..., list[dict[str, Any]]]


def cut(value: float, digits: int) -> float:
    """Fewer digits, towards zero. Room for the last bit: 0.29 must not become 0.28."""
    scale = 10.0**digits
    return float(math.floor(value * scale + 1e-9) / scale)


@dataclass(slots=True)
class Samples:
    """All rounds of one kind of measurement."""

    gbps: dict[Key, list[float]] = field(default_factory=dict)
    of_limit: dict[Key, list[float]] = field(default_factory=dict)

    def add(self, rows: Iterable[Mapping[str, Any]], limit: Mapping[str, float] | None) -> None:
        """Take in one round of one size. A row may bring the share of a limit sampled beside it."""
        for row in rows:
            key = (row["backend"], row["suite"], row["direction"], row["size"])
            self.gbps.setdefault(key, []).append(row["gbps"])
            if limit is not None:
                bits = "128" if row["suite"].endswith("128") else "256"
                share = row.get("of_limit") or row["gbps"] / limit[f"aes{bits}_gbps"]
                self.of_limit.setdefault(key, []).append(share)

    def rows(self, limits: Sequence[Mapping[str, float]] = ()) -> list[Row]:
        """Medians, in the order of the first round.

        `limits` are for what runs in a program of its own, seconds away from the limit's: the share
        is then of the fastest rounds of both, those that nobody disturbed.
        """
        found = []
        for key, samples in self.gbps.items():
            backend, suite, direction, size = key
            gbps = statistics.median(samples)
            row: Row = {"backend": backend, "suite": suite, "direction": direction, "size": size}
            row |= {"gbps": cut(gbps, 3), "mpps": cut(gbps * 1e3 / (8 * size), 4)}
            if limits:
                top = max(limit[f"aes{'128' if suite.endswith('128') else '256'}_gbps"] for limit in limits)
                row["of_limit"] = cut(max(samples) / top, 3)
            elif key in self.of_limit:
                row["of_limit"] = cut(statistics.median(self.of_limit[key]), 3)
            found.append(row)
        return found


@dataclass(slots=True)
class Measured:
    """What came out."""

    machine: dict[str, Any]
    cipher: Samples = field(default_factory=Samples)
    cold: Samples = field(default_factory=Samples)
    """The cipher with a working set larger than the last cache."""
    frames: Samples = field(default_factory=Samples)
    limits: list[dict[str, float]] = field(default_factory=list)
    rounds: int = 0

    def port_limit(self) -> dict[str, float] | None:
        """Gbit/s that the ports of one core allow; None without AVX-512."""
        if not self.limits:
            return None
        names = ("aes128_gbps", "aes256_gbps")
        return {name: cut(statistics.median(limit[name] for limit in self.limits), 1) for name in names}

    def frame_rows(self) -> list[Row]:
        """Rows of whole frames with their share of the port limit."""
        return self.frames.rows(self.limits)

    def left_out(self) -> list[str]:
        """Why a peer has no rows."""
        if any(key[0] == "ipsec-mb" for key in self.cipher.gbps):
            return []
        return ["ipsec-mb is not installed (Debian package libipsec-mb1)"]


def measure(sizes: Sequence[int] = SIZES, seconds: float = 10.0, *, frames: bool = True) -> Measured:
    """Measure the cipher, and whole frames if asked, in rounds until `seconds` are over; at least one.

    Builds the C programs if need be, which is not counted. Raises BenchError.
    """
    directory = programs.build()
    result = Measured(machine.describe())
    end = time.monotonic() + seconds
    while True:
        began = time.monotonic()
        for size in sizes:
            _one(result, directory, size, frames=frames)
        result.rounds += 1
        now = time.monotonic()
        if now + (now - began) / 2 > end:
            return result


def _one(result: Measured, directory: Path, size: int, *, frames: bool) -> None:
    """One size's turn."""
    option = ("--quick", "--size", str(size))
    *rows, last = programs.run(directory / "bench_cipher", *option)
    limit = last["port_limit"]
    if limit is not None:
        result.limits.append(limit)
    result.cipher.add((row for row in rows if row["memory"] == "hot"), limit)
    result.cold.add((row for row in rows if row["memory"] == "cold"), limit)
    result.cipher.add(library.cipher(size), limit)
    if frames:
        result.frames.add(programs.run(directory / "bench_frames", *option), None)
        result.frames.add(library.frames(size), None)


# ---------------------------------------------------------------- reading the rows


def index(rows: Iterable[Row]) -> dict[Key, Row]:
    """Rows by what they are of."""
    return {(row["backend"], row["suite"], row["direction"], row["size"]): row for row in rows}


def best(rows: Iterable[Row], among: Sequence[str], suite: str, direction: str, size: int) -> Row | None:
    """The fastest row of some backends, or None where none of them ran."""
    found = [
        row
        for row in rows
        if row["backend"] in among
        and (row["suite"], row["direction"], row["size"]) == (suite, direction, size)
    ]
    return max(found, key=lambda row: row["gbps"], default=None)


def duplex_gbps(rows: Sequence[Row], mix: Mapping[int, int], suite: str = "gcm-aes-xpn-256") -> float:
    """Gbit/s in each direction that one core protects and validates at once; fastest backend.

    A size between two measured ones gets the time of a frame interpolated between theirs.
    """
    octets = sum(size * count for size, count in mix.items())
    took = 0.0
    for direction in DIRECTIONS:
        known = {size: _frame_s(rows, suite, direction, size) for size in SIZES}
        took += sum(_between(known, size) * count for size, count in mix.items())
    return octets * 8e-9 / took


def _frame_s(rows: Sequence[Row], suite: str, direction: str, size: int) -> float:
    row = best(rows, (*OURS, *PEERS), suite, direction, size)
    assert row is not None, f"{suite} {direction} {size} was not measured"
    return float(size * 8e-9 / row["gbps"])


def _between(known: Mapping[int, float], size: int) -> float:
    if size in known:
        return known[size]
    low = max(one for one in known if one < size)
    high = min(one for one in known if one > size)
    share = (size - low) / (high - low)
    return known[low] * (1 - share) + known[high] * share


def tiers(rows: Sequence[Row], cores: int) -> list[dict[str, Any]]:
    """For every tier and mix: cores that the SecY alone needs with both directions full."""
    found = []
    for mix, frames in MIXES.items():
        per_core = duplex_gbps(rows, frames)
        for tier in TIERS_GBPS:
            needed = math.ceil(tier / per_core)
            found.append(
                {
                    "tier": f"{tier}G",
                    "mix": mix,
                    "per_core_gbps": cut(per_core, 1),
                    "cores": needed,
                    "supported": needed <= cores,
                }
            )
    return found

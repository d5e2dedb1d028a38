"""Rounds in which all candidates take turns, their medians, and which tier they are enough for.

The machine may be shared, so a figure means something only beside its neighbours in time. One program,
pinned to a core, measures the port limit, every cipher alone and whole frames on every cipher, in
rounds of milliseconds; every size has its turn in every round of ours. A ratio, to the port limit or to
a peer, is the median of the rounds' own ratios, never the ratio of two medians. Figures are cut, never
rounded up.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
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
ROUNDS_A_TURN: Final = 3
"""Of the C program, each time that a size has its turn."""
TIERS_GBPS: Final = (1, 2, 5, 10, 25, 50, 100)
MIXES: Final[Mapping[str, Mapping[int, int]]] = {
    "imix": {64: 7, 576: 4, 1500: 1},
    "jumbo": {9000: 1},
}
"""Frames by size: the usual 7:4:1, and what a backup over a jumbo channel looks like."""

Key = tuple[str, str, str, int]
"""Backend, suite, direction, size."""
Row = dict[str, Any]


def cut(value: float, digits: int) -> float:
    """Fewer digits, towards zero. Room for the last bit: 0.29 must not become 0.28."""
    scale = 10.0**digits
    return float(math.floor(value * scale + 1e-9) / scale)


@dataclass(slots=True)
class Samples:
    """All rounds of one kind of measurement. Those of C's backends match, round by round."""

    gbps: dict[Key, list[float]] = field(default_factory=dict)
    of_limit: dict[Key, list[float]] = field(default_factory=dict)

    def add(self, row: Mapping[str, Any], limit: float | None) -> None:
        """Take in one sample, and the port limit of its round if there is one."""
        key = (row["backend"], row["suite"], row["direction"], row["size"])
        self.gbps.setdefault(key, []).append(row["gbps"])
        if limit is not None:
            self.of_limit.setdefault(key, []).append(row["gbps"] / limit)

    def rows(self) -> list[Row]:
        """Medians, in the order of the first round."""
        found = []
        for key, samples in self.gbps.items():
            backend, suite, direction, size = key
            gbps = statistics.median(samples)
            row: Row = {"backend": backend, "suite": suite, "direction": direction, "size": size}
            row |= {"gbps": cut(gbps, 3), "mpps": cut(gbps * 1e3 / (8 * size), 4)}
            if key in self.of_limit:
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
    imix: dict[str, list[float]] = field(default_factory=dict)
    """Gbit/s of whole frames of the usual mix in no order, by direction: our fastest, round by round."""
    limits: dict[int, list[float]] = field(default_factory=dict)
    """Gbit/s that the ports of one core allow, by bits of the key, round by round."""
    rounds: int = 0

    def port_limit(self) -> dict[str, float] | None:
        """Medians of the limits; None without AVX-512."""
        if not self.limits:
            return None
        return {f"aes{bits}_gbps": cut(statistics.median(self.limits[bits]), 1) for bits in (128, 256)}

    def imix_duplex_gbps(self) -> float | None:
        """What one core carries of the mix in each direction, both at once; None if not measured."""
        if not self.imix:
            return None
        return 1 / sum(1 / statistics.median(rounds) for rounds in self.imix.values())

    def left_out(self) -> list[str]:
        """Why a peer has no rows."""
        if any(key[0] == "ipsec-mb" for key in self.cipher.gbps):
            return []
        return ["ipsec-mb is not installed (Debian package libipsec-mb1)"]


def measure(sizes: Sequence[int] = SIZES, seconds: float = 10.0, *, frames: bool = True) -> Measured:
    """Measure the cipher, and whole frames if asked, in rounds until `seconds` are over; at least one.

    Builds the C program if need be, which is not counted. Raises BenchError.
    """
    program = programs.build()
    result = Measured(machine.describe())
    end = time.monotonic() + seconds
    while True:
        began = time.monotonic()
        for size in sizes:
            _one(result, program, size, frames=frames)
        if frames and sizes == SIZES:
            _mix(result, program)
        result.rounds += 1
        now = time.monotonic()
        if now + (now - began) / 2 > end:
            return result


def _one(result: Measured, program: Path, size: int, *, frames: bool) -> None:
    """One size's turn: some rounds in C, then Python's library once, beside the last round's limit."""
    options = ["--size", str(size), "--rounds", str(ROUNDS_A_TURN)]
    options += [] if frames else ["--kind", "cipher", "--cold"]
    limits: dict[str, float | None] = {}
    for row in programs.run(program, *options):
        if "port_limit" in row:
            limits[row["suite"]] = _limit(result, row)
        elif row["kind"] == "frames":
            result.frames.add(row, limits[row["suite"]])
        else:
            kind = result.cold if row["memory"] == "cold" else result.cipher
            kind.add(row, limits[row["suite"]])
    for row in library.cipher(size):
        result.cipher.add(row, limits[row["suite"]])
    for row in library.frames(size) if frames else ():
        result.frames.add(row, limits[row["suite"]])


def _mix(result: Measured, program: Path) -> None:
    """The mix, whole frames of the suite that providers ask for."""
    options = ("--mix", "--kind", "frames", "--suite", "gcm-aes-xpn-256", "--rounds", str(ROUNDS_A_TURN))
    best: dict[tuple[str, int], float] = {}
    for row in programs.run(program, *options):
        if "gbps" in row and row["backend"] not in PEERS:
            key = (row["direction"], row["round"])
            best[key] = max(best.get(key, 0.0), row["gbps"])
    for (direction, _), gbps in best.items():
        result.imix.setdefault(direction, []).append(gbps)


def _limit(result: Measured, row: Mapping[str, Any]) -> float | None:
    """Keep the limit of a round."""
    if row["port_limit"] is None:
        return None
    limit = float(row["port_limit"]["full_gbps"])
    result.limits.setdefault(128 if row["suite"].endswith("128") else 256, []).append(limit)
    return limit


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


def tiers(rows: Sequence[Row], cores: int, imix_gbps: float | None = None) -> list[dict[str, Any]]:
    """For every tier and mix: cores that the SecY alone needs with both directions full.

    `imix_gbps` is what a core carries of frames that come in no order; without it the mix is reckoned
    from runs of each size, which are faster.
    """
    found = []
    for mix, frames in MIXES.items():
        per_core = imix_gbps if mix == "imix" and imix_gbps else duplex_gbps(rows, frames)
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

"""The marks that PERFORMANCE sets, and whether a run reached them.

The machine may be shared, so a missed mark does not fail a run: it stands in the results as not met.
"""

from __future__ import annotations

import statistics

from router.bench import figures

SUITE = "gcm-aes-xpn-256"
TIMES_OF_PEER = {64: 3.0, 128: 1.5, 256: 1.5, 512: 1.5, 1024: 1.0, 1500: 1.2, 4096: 1.0, 9000: 1.0}
"""Times the fastest library's bare cipher, by octets."""
MPPS_AT_64 = 75.0
OF_LIMIT_AT_9000 = 0.85


def ratio_to_peer(ours, peers, direction, size):
    """The median over the rounds of ours to the fastest peer of the same round."""

    def rounds(samples, among):
        lines = [
            values
            for (backend, suite, way, octets), values in samples.gbps.items()
            if backend in among and (suite, way, octets) == (SUITE, direction, size)
        ]
        return [max(values) for values in zip(*lines, strict=True)]

    pairs = zip(rounds(ours, figures.OURS), rounds(peers, figures.PEERS), strict=True)
    return statistics.median(a / b for a, b in pairs)


def judge_all(ours, peers):
    """Every mark with what was measured: `ours` are samples of whole frames or the cipher, `peers` the cipher's."""
    found, rows = [], ours.rows()

    def judge(what, wanted, value):
        found.append(
            {"target": what, "wanted": wanted, "measured": figures.cut(value, 3), "met": value >= wanted}
        )

    for direction in figures.DIRECTIONS:
        for size, times in TIMES_OF_PEER.items():
            judge(
                f"{direction} {size}: times the fastest peer's bare cipher",
                times,
                ratio_to_peer(ours, peers, direction, size),
            )
        small = figures.best(rows, figures.OURS, SUITE, direction, 64)
        judge(f"{direction} 64: Mpps", MPPS_AT_64, small["mpps"])
        if ours.of_limit:
            jumbo = figures.best(rows, figures.OURS, SUITE, direction, 9000)
            judge(f"{direction} 9000: of the port limit", OF_LIMIT_AT_9000, jumbo["of_limit"])
    return found

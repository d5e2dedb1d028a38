"""The marks that PERFORMANCE sets, and whether a run reached them.

The machine may be shared, so a missed mark does not fail a run: it stands in the results as not met.
"""

from __future__ import annotations

import statistics

from router.bench import figures, library

SUITE = "gcm-aes-xpn-256"
TIMES_OF_PEER = {64: 3.0, 128: 1.5, 256: 1.5, 512: 1.5, 1024: 1.0, 1500: 1.2, 4096: 1.0, 9000: 1.0}
"""Times the fastest library's bare cipher, by octets."""
IN_ROUNDS = [name for name in figures.PEERS if name != library.NAME]
MPPS_AT_64 = 75.0
XPN_128_GBPS_AT_9000 = 100.0
OF_LIMIT_AT_9000 = 0.85


def _rounds(samples, among, direction, size):
    """Gbit/s of the fastest of some backends, round by round."""
    lines = [
        values
        for (backend, suite, way, octets), values in samples.gbps.items()
        if backend in among and (suite, way, octets) == (SUITE, direction, size)
    ]
    return [max(values) for values in zip(*lines, strict=True)]


def same_rounds(ours, peers):
    """The median of the rounds' own ratios to the fastest peer of the round.

    Python's library has its turn less often and is no candidate: it calls OpenSSL, a frame at a time.
    """

    def ratio(direction, size):
        rounds = (
            _rounds(ours, figures.OURS, direction, size),
            _rounds(peers, IN_ROUNDS, direction, size),
        )
        return statistics.median(a / b for a, b in zip(*rounds, strict=True))

    return ratio


def judge_all(rows, ratio):
    """Every mark with what was measured; `ratio` of a direction and size is to the fastest peer."""
    found = []

    def judge(what, wanted, value):
        found.append(
            {"target": what, "wanted": wanted, "measured": figures.cut(value, 3), "met": value >= wanted}
        )

    for direction in figures.DIRECTIONS:
        for size, times in TIMES_OF_PEER.items():
            judge(
                f"{direction} {size}: times the fastest peer's bare cipher",
                times,
                ratio(direction, size),
            )
        small = figures.best(rows, figures.OURS, SUITE, direction, 64)
        judge(f"{direction} 64: Mpps", MPPS_AT_64, small["mpps"])
        jumbo = figures.best(rows, figures.OURS, SUITE, direction, 9000)
        light = figures.best(rows, figures.OURS, "gcm-aes-xpn-128", direction, 9000)
        judge(f"{direction} 9000: Gbit/s of gcm-aes-xpn-128", XPN_128_GBPS_AT_9000, light["gbps"])
        if "of_limit" in jumbo:
            judge(f"{direction} 9000: of the port limit", OF_LIMIT_AT_9000, jumbo["of_limit"])
    return found

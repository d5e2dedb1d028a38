"""AES-GCM alone: ours beside ipsec-mb, OpenSSL and Python's cryptography, and the port limit.

    pytest benchmarks/test_cipher.py --benchmark-only -s       into results/cipher.{json,md,svg}

All backends and the limit take turns, size by size, in rounds; see `router.bench.figures`.
"""

import json
import os

import marks
import pytest
import render

from router.bench import figures

SECONDS = float(os.environ.get("BENCH_SECONDS", "40"))


def test_cipher(benchmark):
    """At no size is a library the better choice."""
    measured = benchmark.pedantic(lambda: figures.measure(seconds=SECONDS, frames=False), rounds=1)
    rows = measured.cipher.rows()
    document = {"machine": measured.machine, "rounds": measured.rounds, "port_limit": measured.port_limit()}
    document |= {"rows": rows, "cold": measured.cold.rows(), "left_out": measured.left_out()}
    if figures.best(rows, figures.OURS, marks.SUITE, "protect", 64) is None:
        pytest.skip("none of our ciphers runs on this CPU")
    document["targets"] = marks.judge_all(rows, marks.same_rounds(measured.cipher, measured.cipher))
    render.write("cipher", render.TITLES["cipher"], document)
    ratios = marks.same_rounds(measured.cipher, measured.cipher)
    for line in document["targets"]:
        print(json.dumps(line))
    for direction in figures.DIRECTIONS:
        for size in figures.SIZES:
            ratio = ratios(direction, size)
            assert ratio > 1, (direction, size, ratio)

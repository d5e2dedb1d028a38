"""Whole MACsec frames beside the bare ciphers of the same run, and on two cores at once.

    pytest benchmarks/test_frames.py --benchmark-only -s       into results/frames.{json,md,svg}

What fails the run is a figure that no load explains; the marks are judged in the results.
"""

import json
import os
import shutil
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import marks
import pytest
import render

from router.bench import figures, programs

SECONDS = float(os.environ.get("BENCH_SECONDS", "90"))


def test_frames(benchmark):
    """Whole frames on our ciphers are faster than OpenSSL's cipher alone, at every size."""
    measured = benchmark.pedantic(lambda: figures.measure(seconds=SECONDS), rounds=1)
    rows = measured.frame_rows()
    document = {"machine": measured.machine, "rounds": measured.rounds, "port_limit": measured.port_limit()}
    document |= {"rows": rows, "beside": measured.cipher.rows(), "left_out": measured.left_out()}
    document["tiers"] = figures.tiers(rows, measured.machine["cores"])
    if figures.best(rows, figures.OURS, marks.SUITE, "protect", 64) is None:
        pytest.skip("none of our ciphers runs on this CPU")
    document["targets"] = marks.judge_all(rows, marks.best_rounds(measured.frames, measured.cipher))
    render.write("frames", render.TITLES["frames"], document)
    for line in document["targets"]:
        print(json.dumps(line))
    for direction in figures.DIRECTIONS:
        for size in figures.SIZES:
            ours = figures.best(rows, figures.OURS, marks.SUITE, direction, size)
            openssl = figures.best(measured.cipher.rows(), ("openssl",), marks.SUITE, direction, size)
            assert ours["gbps"] > openssl["gbps"], (direction, size)


def test_two_cores(benchmark):
    """Two cores carry what one carries, twice: the median of rounds that take turns."""
    cpus = sorted(os.sched_getaffinity(0))[:2]
    if len(cpus) < 2 or not shutil.which("taskset"):
        pytest.skip("needs two cores and taskset")
    program = programs.build() / "bench_frames"
    taskset = Path(shutil.which("taskset"))
    found = {}

    def one(cpu, size):
        rows = programs.run(
            taskset, "-c", str(cpu), str(program), "--quick", "--suite", marks.SUITE, "--size", str(size)
        )
        return max(row["gbps"] for row in rows if row["direction"] == "protect")

    def run():
        with ThreadPoolExecutor(2) as pool:
            for _ in range(5):
                for size in (64, 1500, 9000):
                    alone = [one(cpu, size) for cpu in cpus]
                    both = list(pool.map(one, cpus, (size, size)))
                    found.setdefault(size, []).append(2 * sum(both) / sum(alone))

    benchmark.pedantic(run, rounds=1)
    times = {size: figures.cut(statistics.median(values), 2) for size, values in found.items()}
    load = round(os.getloadavg()[0], 2)
    document = {"suite": marks.SUITE, "load_1min": load, "two_cores_times_one": times}
    (render.RESULTS / "two_cores.json").write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document))
    assert min(times.values()) > 1.2

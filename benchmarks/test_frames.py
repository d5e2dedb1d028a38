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
    rows = measured.frames.rows()
    document = {"machine": measured.machine, "rounds": measured.rounds, "port_limit": measured.port_limit()}
    document |= {"rows": rows, "beside": measured.cipher.rows(), "left_out": measured.left_out()}
    document["imix_gbps"] = {
        way: figures.cut(statistics.median(all_), 1) for way, all_ in measured.imix.items()
    }
    document["tiers"] = figures.tiers(rows, measured.machine["cores"], measured.imix_duplex_gbps())
    if figures.best(rows, figures.OURS, marks.SUITE, "protect", 64) is None:
        pytest.skip("none of our ciphers runs on this CPU")
    document["targets"] = marks.judge_all(rows, marks.same_rounds(measured.frames, measured.cipher))
    render.write("frames", render.TITLES["frames"], document)
    for line in document["targets"]:
        print(json.dumps(line))
    for direction in figures.DIRECTIONS:
        for size in figures.SIZES:
            ours = figures.best(rows, figures.OURS, marks.SUITE, direction, size)
            openssl = figures.best(measured.cipher.rows(), ("openssl",), marks.SUITE, direction, size)
            assert ours["gbps"] > openssl["gbps"], (direction, size)


def test_two_cores(benchmark):
    """Two cores carry more than one, and as many times more as the register-only loop does.

    Two virtual CPUs may be two threads of one core: then nothing doubles. So the port limit is measured
    in the same rounds, alone and both at once, and says what the machine has to give.
    """
    cpus = sorted(os.sched_getaffinity(0))[:2]
    if len(cpus) < 2 or not shutil.which("taskset"):
        pytest.skip("needs two cores and taskset")
    program, taskset = programs.build(), Path(shutil.which("taskset"))
    backend = next((name for name in figures.OURS if name in _usable(program)), "openssl")
    found = {}

    def one(cpu, size):
        """Medians of what one core carries, all through the same second."""
        rows = programs.run(
            *(taskset, "-c", str(cpu), str(program)),
            *("--kind", "frames", "--backend", backend, "--suite", marks.SUITE),
            *("--size", str(size), "--rounds", "200"),
        )
        samples = {}
        for row in rows:
            if row.get("port_limit"):
                samples.setdefault("port_limit", []).append(row["port_limit"]["full_gbps"])
            elif "direction" in row:
                samples.setdefault(row["direction"], []).append(row["gbps"])
        return {name: statistics.median(values) for name, values in samples.items()}

    def run():
        with ThreadPoolExecutor(2) as pool:
            for _ in range(3):
                for size in (64, 1500, 9000):
                    alone = [one(cpu, size) for cpu in cpus]
                    both = list(pool.map(one, cpus, (size, size)))
                    for name in alone[0]:
                        times = 2 * sum(one[name] for one in both) / sum(one[name] for one in alone)
                        found.setdefault(size, {}).setdefault(name, []).append(times)

    benchmark.pedantic(run, rounds=1)
    times = {
        size: {name: figures.cut(statistics.median(values), 2) for name, values in line.items()}
        for size, line in found.items()
    }
    load = round(os.getloadavg()[0], 2)
    document = {"backend": backend, "suite": marks.SUITE, "load_1min": load, "two_cores_times_one": times}
    (render.RESULTS / "two_cores.json").write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document))
    assert min(min(line.values()) for line in times.values()) > 1.0


def _usable(program):
    """Backends that run here."""
    rows = programs.run(program, "--suite", marks.SUITE, "--size", "64", "--rounds", "1")
    return {row["backend"] for row in rows if "backend" in row}

"""Keep what was measured: medians and extra_info go to results/, a file for each file of benchmarks.

The files that write their own rows (cipher, frames, gateway) are left to it. pytest-benchmark's own
JSON is not used: it names the machine.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

RESULTS = Path(__file__).parent / "results"
OWN = {"cipher", "frames", "gateway"}


def pytest_sessionfinish(session):
    benchmarks = getattr(session.config, "_benchmarksession", None)
    found = {}
    for bench in benchmarks.benchmarks if benchmarks else ():
        name = Path(bench.fullname.partition("::")[0]).stem.removeprefix("test_")
        if name in OWN or bench.has_error or not bench.stats.data:
            continue
        row = {
            "name": bench.name,
            "median_s": bench.stats.median,
            "min_s": bench.stats.min,
            "rounds": bench.stats.rounds,
            **bench.extra_info,
        }
        found.setdefault(name, []).append(row)
    machine = {
        "cores": os.cpu_count(),
        "kernel": ".".join(os.uname().release.split(".")[:2]),
        "load_1min": round(os.getloadavg()[0], 2),
    }
    for name, rows in found.items():
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{name}.json"
        old = json.loads(path.read_text())["rows"] if path.exists() else []
        new = {row["name"] for row in rows}
        kept = [*(row for row in old if row["name"] not in new), *rows]
        path.write_text(json.dumps({"machine": machine, "rows": kept}, indent=1) + "\n")

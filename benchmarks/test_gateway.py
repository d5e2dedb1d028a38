"""One stream from end to end: plain veth, our data plane on each of its paths, wireguard-go.

    pytest benchmarks/test_gateway.py --benchmark-only       rows go to benchmarks/results/gateway.json

Both gateways and the load share this machine's cores; so a figure means something only beside
`veth` of the same run: the same iperf3 over the same kind of wire, unprotected. All candidates are
set up at once, take turns and run with real-time priority, and the median of the rounds' ratios is
what counts: the machine may be shared, and four threads lose more by that than veth's two.

    [ns a: iperf3 - TAP - data plane - wire ]--veth--[ wire - data plane - TAP - iperf3: ns b]
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from router.bench import gateway, machine

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

RESULTS = Path(__file__).parent / "results/gateway.json"
SECONDS = int(os.environ.get("BENCH_GATEWAY_SECONDS", "1"))
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
UDP_SIZES = (64, 512, 1400, 8400)
PATHS, LEFT_OUT = gateway.available(("veth", *gateway.FASTPATHS, "kernel", "wireguard-go"))
UDP_PATHS = [path for path in PATHS if path != "fastpath-xdp"]
"""Slower than the others for a stream, and 20 s of a shared machine's time."""
UDP_ROUNDS = int(os.environ.get("BENCH_UDP_ROUNDS", "1"))
TARGETS = {1500: 0.4, 8500: 0.5}
"""Of plain veth's throughput, one TCP stream (fastest path)."""


def keep(rows: list[dict]) -> None:
    """Replace the rows of the same kind in the result file."""
    RESULTS.parent.mkdir(exist_ok=True)
    old = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []

    def kind(row: dict) -> tuple:
        return row["mtu"], row.get("udp_size"), row.get("streams", 1)

    kinds = {kind(row) for row in rows}
    rest = [row for row in old if kind(row) not in kinds]
    document = {"machine": machine.describe(), "left_out": LEFT_OUT, "rows": rest + rows}
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")


@pytest.mark.parametrize("mtu", gateway.MTUS)
def test_one_tcp_stream(benchmark, mtu):
    """One TCP stream through both gateways, beside plain veth and wireguard-go."""
    with gateway.undisturbed():
        rows = benchmark.pedantic(lambda: gateway.tcp(PATHS, mtu, SECONDS, ROUNDS), rounds=1, iterations=1)
    ours = [row for row in rows if row["path"].startswith("fastpath-")]
    best = max(ours, key=lambda row: row["of_veth"])
    keep(rows)
    benchmark.extra_info["rows"] = rows
    for row in rows:
        print(json.dumps(row))
    print(
        f"MTU {mtu}: {best['path']} reaches {best['of_veth']:.2f} of plain veth, the target is {TARGETS[mtu]}"
    )
    peers = [row["gbps"] for row in rows if row["path"] == "wireguard-go"]
    assert best["gbps"] > max(peers, default=0)


def test_four_tcp_streams_by_one_and_two_cores(benchmark):
    """What a second core that sends for the channel gives where both gateways and the load have but two."""
    paths = ("veth", "fastpath", gateway.TWO_CORES)
    with gateway.undisturbed():
        rows = benchmark.pedantic(
            lambda: gateway.tcp(paths, 1500, SECONDS, ROUNDS, streams=4), rounds=1, iterations=1
        )
    keep(rows)
    for row in rows:
        print(json.dumps(row))
        assert row["gbps"] > 0


@pytest.mark.parametrize("size", UDP_SIZES)
def test_udp(benchmark, size):
    """Datagrams of one size: the highest rate of which 99 % arrive, found by halves (RFC 2544)."""
    with gateway.undisturbed():
        rows = benchmark.pedantic(
            lambda: gateway.udp(UDP_PATHS, size, rounds=UDP_ROUNDS), rounds=1, iterations=1
        )
    keep(rows)
    benchmark.extra_info["rows"] = rows
    for row in rows:
        print(json.dumps(row))
        assert row["mpps"] > 0

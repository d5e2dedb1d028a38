"""`lastmile bench`: figures that are never better than measured, sentences where something is missing."""

import asyncio
import json
import os

import pytest
from typer.testing import CliRunner

from router.bench import figures, gateway, library, machine, programs
from router.cli import bench
from router.errors import BenchError

SUITE = "gcm-aes-xpn-256"


def rows(gbps, backend="vaes512", sizes=figures.SIZES):
    return [
        {"backend": backend, "suite": SUITE, "direction": direction, "size": size, "gbps": gbps, "mpps": 1.0}
        for direction in figures.DIRECTIONS
        for size in sizes
    ]


def program(directory, name, text):
    path = directory / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """A program that prints fixed figures; the second call's are twice as fast as the first one's."""
    calls = []

    def run(path, *options):
        if "--mix" in options:
            return [row | {"round": 0} for row in rows(10.0, sizes=(0,))]
        calls.append(options)
        size = int(options[options.index("--size") + 1])
        speed = 100.0 * len(calls)
        limits = [
            {"round": 0, "suite": suite, "size": size, "port_limit": {"full_gbps": factor * speed}}
            for suite, factor in zip(figures.SUITES, (4, 2, 4, 2), strict=True)
        ]
        return [
            *limits,
            *(row | {"round": 0, "kind": "cipher", "memory": "hot"} for row in rows(speed, sizes=(size,))),
            *(
                row | {"round": 0, "kind": "cipher", "memory": "cold"}
                for row in rows(speed / 2, sizes=(size,))
            ),
            *(
                row | {"round": 0, "kind": "frames", "memory": "hot"}
                for row in rows(speed / 4, sizes=(size,))
            ),
        ]

    monkeypatch.setattr(programs, "build", lambda: tmp_path / programs.ROUNDS)
    monkeypatch.setattr(programs, "run", run)
    return calls


@pytest.mark.parametrize(("value", "digits", "cut"), [(0.849, 2, 0.84), (0.29, 2, 0.29), (1.999, 0, 1.0)])
def test_figures_are_cut_and_not_rounded_up(value, digits, cut):
    assert figures.cut(value, digits) == cut


def test_a_ratio_is_the_median_of_the_rounds_own_ratios(fake):
    """Both rounds reach half of their own limit, so the machine's other half-speed round does not show."""
    measured = figures.measure((64,), seconds=0)
    while measured.rounds < 2:
        figures._one(measured, programs.build(), 64, frames=True)
        measured.rounds += 1
    hot = figures.index(measured.cipher.rows())["vaes512", SUITE, "protect", 64]
    assert hot["gbps"] == 150.0
    assert hot["of_limit"] == 0.5
    assert hot["mpps"] == figures.cut(150e3 / 512, 4)
    assert {row["gbps"] for row in measured.cold.rows()} == {75.0}
    frames = figures.index(measured.frames.rows())["vaes512", SUITE, "protect", 64]
    assert (frames["gbps"], frames["of_limit"]) == (37.5, 0.125)
    assert measured.port_limit() == {"aes128_gbps": 600.0, "aes256_gbps": 300.0}


def test_a_machine_without_avx512_has_no_port_limit():
    samples = figures.Samples()
    for row in rows(1.0):
        samples.add(row, None)
    assert all("of_limit" not in row for row in samples.rows())
    assert figures.Measured({}).port_limit() is None


def test_the_duplex_rate_of_equal_directions_is_half_of_one():
    assert figures.duplex_gbps(rows(100.0), {9000: 1}) == pytest.approx(50.0)


def test_a_mix_is_weighted_by_time_and_sizes_between_are_interpolated():
    """576 octets lie an eighth of the way from 512 to 1024."""
    assert figures.duplex_gbps(rows(100.0), figures.MIXES["imix"]) == pytest.approx(50.0)
    slow = [row | {"gbps": 1.0} if row["size"] == 64 else row for row in rows(100.0)]
    octets = 7 * 64 + 4 * 576 + 1500
    took = 2 * (7 * 64 / 1.0 + (4 * 576 + 1500) / 100.0)
    assert figures.duplex_gbps(slow, figures.MIXES["imix"]) == pytest.approx(octets / took)


def test_the_mix_is_measured_where_all_sizes_are(monkeypatch):
    """Both directions at once share a core; the fastest of ours counts in every round, no peer does."""

    def run(path, *options):
        del path
        if "--mix" not in options:
            return []
        return [
            {"round": number, "backend": backend, "direction": direction, "size": 0, "gbps": gbps}
            for number in range(3)
            for backend, gbps in (("aesni", 10.0), ("vaes512", 60.0), ("ipsec-mb", 99.0))
            for direction in figures.DIRECTIONS
        ]

    monkeypatch.setattr(programs, "build", lambda: None)
    monkeypatch.setattr(programs, "run", run)
    monkeypatch.setattr(library, "cipher", lambda _: [])
    monkeypatch.setattr(library, "frames", lambda _: [])
    measured = figures.measure(seconds=0)
    assert measured.imix_duplex_gbps() == pytest.approx(30.0)
    assert figures.measure((64,), seconds=0).imix_duplex_gbps() is None
    found = {(row["tier"], row["mix"]): row for row in figures.tiers(rows(100.0), 2, 30.0)}
    assert found["50G", "imix"]["cores"] == 2
    assert found["50G", "jumbo"]["cores"] == 1


def test_a_tier_is_supported_only_by_cores_that_are_here():
    found = {(row["tier"], row["mix"]): row for row in figures.tiers(rows(60.0), 2)}
    assert found["25G", "jumbo"]["cores"] == 1
    assert found["50G", "jumbo"]["cores"] == 2
    assert found["50G", "jumbo"]["supported"]
    assert found["100G", "jumbo"]["cores"] == 4
    assert not found["100G", "jumbo"]["supported"]


def test_python_rows_have_every_suite_and_direction():
    for made in (library.cipher(64), library.frames(64)):
        assert {(row["suite"], row["direction"]) for row in made} == {
            (suite, direction) for suite in figures.SUITES for direction in figures.DIRECTIONS
        }
        assert all(row["gbps"] > 0 and row["backend"] == "cryptography" for row in made)


def test_the_machine_is_described_without_its_name():
    described = machine.describe()
    assert described["cores"] >= 1
    assert os.uname().nodename not in json.dumps(described)


def test_no_compiler_is_a_sentence_with_the_package(monkeypatch, tmp_path):
    (tmp_path / "Makefile").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BenchError, match="apt-get install build-essential"):
        programs.build(tmp_path)


def test_no_compiler_is_no_obstacle_once_the_program_is_built(monkeypatch, tmp_path):
    (tmp_path / "Makefile").touch()
    (tmp_path / "build/opt").mkdir(parents=True)
    built = program(tmp_path / "build/opt", programs.ROUNDS, "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert programs.build(tmp_path) == built


def test_a_wheel_without_the_c_tree_says_so(tmp_path):
    with pytest.raises(BenchError, match="from a checkout"):
        programs.build(tmp_path)


def test_a_build_that_fails_says_the_first_error(tmp_path):
    (tmp_path / "Makefile").write_text("bench:\n\t@echo 'x.c:1: error: no such thing' >&2; exit 1\n")
    with pytest.raises(BenchError, match="no such thing"):
        programs.build(tmp_path)


def test_a_program_that_fails_says_its_last_line(tmp_path):
    with pytest.raises(BenchError, match="wrong answer"):
        programs.run(program(tmp_path, "p", "echo one; echo wrong answer >&2; exit 1"))


def test_cipher_and_frames_print_the_documented_shape(fake):
    for verb in ("cipher", "frames"):
        done = CliRunner().invoke(bench.app, [verb, "--json", "--seconds", "0.1", "--sizes", "64,9000"])
        assert done.exit_code == 0, done.output
        document = json.loads(done.output)
        assert set(document["port_limit"]) == {"aes128_gbps", "aes256_gbps"}
        assert document["machine"]["cores"] >= 1
        assert {row["size"] for row in document["rows"]} == {64, 9000}
        for row in document["rows"]:
            assert {"backend", "suite", "direction", "size", "gbps", "mpps"} <= set(row)
        assert document["left_out"] == ["ipsec-mb is not installed (Debian package libipsec-mb1)"]


def test_no_verb_prints_what_the_box_carries(fake):
    done = CliRunner().invoke(bench.app, ["--seconds", "0.1", "--no-gateway"])
    assert done.exit_code == 0, done.output
    for words in ("cipher alone", "whole frames", "100G", "port limit", "left out: gateways"):
        assert words in done.output


@pytest.mark.parametrize("sizes", ["65", "x", "64,", ","])
def test_sizes_that_are_not_measured_are_refused(fake, sizes):
    done = CliRunner().invoke(bench.app, ["cipher", "--sizes", sizes])
    assert done.exit_code == (0 if sizes == "64," else 2)
    assert "Traceback" not in done.output


def test_the_gateway_bench_says_that_it_needs_root(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    done = CliRunner().invoke(bench.app, ["gateway"])
    assert done.exit_code == 2
    assert "needs root" in done.output


def test_a_missing_peer_is_left_out_and_said_so(monkeypatch, tmp_path):
    monkeypatch.setattr(gateway, "kernel_has_macsec", lambda: False)
    monkeypatch.setenv("PATH", str(tmp_path))
    paths, sentences = gateway.available()
    assert paths == ["veth", "fastpath"]
    assert len(sentences) == 2
    assert "wireguard-go" in " ".join(sentences)


def test_the_highest_rate_without_loss_is_found_by_halves():
    """Of a path that carries so much and drops the rest; a trial that lost by accident is done again."""
    asked = []

    async def trial(rate):
        asked.append(rate)
        offered = min(rate or 1e9, 800_000)
        carried = 310_000 if len(asked) != 3 else 1000  # once the machine was away
        return gateway.Trial(offered, min(offered, carried))

    best, flood = asyncio.run(gateway.highest_rate(trial))
    assert flood == gateway.Trial(800_000, 310_000)
    assert 300_000 < best.received_pps <= 310_000
    assert best.loss <= gateway.LOSS_MAX
    assert len(asked) < 15


@pytest.mark.parametrize("carried", [800_000, 793_000])
def test_a_sender_that_loses_nothing_at_full_rate_is_not_asked_again(carried):
    """Then it is the sender that sets the rate."""

    async def trial(rate):
        assert rate == 0
        return gateway.Trial(800_000, carried)

    best, flood = asyncio.run(gateway.highest_rate(trial))
    assert best is flood

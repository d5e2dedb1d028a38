"""The router's processes: from start to answering, and what each holds in memory; beside BIRD and FRR.

    sudo .venv/bin/pytest benchmarks/test_processes.py

Four channels with eight BGP sessions, in a network namespace of their own with empty ports: nothing
is on the wires, so the figures are those of the processes alone. `extra_info` has RSS and PSS (RSS
with shared pages divided among their users) of each in MB. The peers have the same eight sessions.
"""

import ctypes
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from router.api.client import request
from router.bench.gateway import kernel_has_macsec
from router.errors import ControlError

pytestmark = pytest.mark.root
ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "config" / "static-keys.yaml"
CLONE_NEWNET = 0x40000000
DEADLINE_S = 60.0
PROCESSES = ["exabgp", "exabgp", "keyd", "keyd", "routerd", "shim", "shim"]
DATAPLANE = "dataplane.process"
"""One more where the kernel has no MACsec."""


@pytest.fixture
def namespace():
    """A network namespace with the ports that the configuration names."""
    if os.geteuid():
        pytest.skip("needs root")
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/self/ns/net", os.O_RDONLY)
    assert libc.unshare(CLONE_NEWNET) == 0
    try:
        for name in ("lan0", "port1", "port2", "port3", "port4"):
            subprocess.run(
                ["ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}p"], check=True
            )
        yield
    finally:
        assert libc.setns(before, CLONE_NEWNET) == 0
        os.close(before)


@pytest.fixture
def config(tmp_path):
    """The example with secrets made for it."""
    path = tmp_path / "router.yaml"
    path.write_text(CONFIG.read_text())
    (tmp_path / "secrets").mkdir(mode=0o700)
    for name in set(re.findall(r"secrets/([\w.-]+)", path.read_text())):
        secret = tmp_path / "secrets" / name
        secret.touch(mode=0o600)
        secret.write_text(secrets.token_hex(32 if name.endswith(".sak") else 8) + "\n")
    return path


def until(condition):
    deadline = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return value


def memory(pid):
    """RSS and PSS of a process in MB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    sizes = {word: int(re.search(rf"^{word}:\s+(\d+) kB", text, re.MULTILINE)[1]) for word in ("Rss", "Pss")}
    return {"rss_mb": round(sizes["Rss"] / 1000, 1), "pss_mb": round(sizes["Pss"] / 1000, 1)}


def status(run_dir):
    try:
        code, answer = request(run_dir, "GET", "/v1/status")
    except ControlError:
        return None
    return answer if code == 200 else None


def descendants(pid):
    """All processes below one."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [int(child), *descendants(int(child))]
    return found


def name_of(pid):
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    for word in words:
        text = word.decode()
        if text.startswith("router."):
            return text.removeprefix("router.")
        if text.endswith("shim.py"):
            return "shim"
        if text == "exabgp":
            return "exabgp"
    return words[0].decode()


def complete(pid):
    """The router's processes by pid once all are there, and no passing one (a validation) is."""
    try:
        children = {child: name_of(child) for child in descendants(pid)}
    except OSError:
        return None
    return children if sorted(children.values()) == expected() else None


def expected():
    return PROCESSES if kernel_has_macsec() else [DATAPLANE, *PROCESSES]


def test_lastmile(benchmark, namespace, config, tmp_path):
    """From `lastmile run` to status and two BGP processes with their helpers."""
    memories = {}

    def start():
        run_dir = tmp_path / "run"
        shutil.rmtree(run_dir, ignore_errors=True)
        run_dir.mkdir(mode=0o755)
        for parent in (tmp_path, *tmp_path.parents):
            if not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o011)
        argv = [sys.executable, "-m", "router.cli.main", "run", str(config), "--json"]
        argv += ["--run-dir", str(run_dir), "--state-dir", str(tmp_path / "state")]
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            until(lambda: status(run_dir))
            benchmark.extra_info["status_s"] = round(time.monotonic() - started[0], 2)
            try:
                children = until(lambda: complete(process.pid))
            except AssertionError:
                seen = sorted(name_of(child) for child in descendants(process.pid))
                raise AssertionError(f"{seen} run, {expected()} should") from None
            memories.clear()
            memories["supervise"] = memory(process.pid)
            memories.update({f"{name} {pid}": memory(pid) for pid, name in children.items()})
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(DEADLINE_S)

    started = [0.0]

    def setup():
        started[0] = time.monotonic()

    benchmark.pedantic(start, setup=setup, rounds=3)
    benchmark.extra_info["memory"] = memories
    benchmark.extra_info["rss_mb"] = round(sum(m["rss_mb"] for m in memories.values()), 1)
    benchmark.extra_info["pss_mb"] = round(sum(m["pss_mb"] for m in memories.values()), 1)
    print(json.dumps(benchmark.extra_info))


PEERS = [(f"169.254.1{i}.1", f"169.254.1{i}.2", f"fd00:1{i}::1", f"fd00:1{i}::2") for i in range(1, 5)]


def bird(directory):
    sessions = [
        f"protocol bgp s{i}{f} {{ local {ours} as 4200000010; neighbor {theirs} as 64512; ipv{f} {{ import all; export none; }}; }}"
        for i, (a, b, c, d) in enumerate(PEERS)
        for f, ours, theirs in ((4, a, b), (6, c, d))
    ]
    path = directory / "bird.conf"
    path.write_text("router id 10.255.0.1;\nprotocol device {}\n" + "\n".join(sessions) + "\n")
    return ["bird", "-f", "-c", str(path), "-s", str(directory / "bird.ctl")], directory / "bird.ctl"


def frr(directory):
    shutil.chown(directory, "frr", "frr")
    lines = ["router bgp 4200000010", " bgp router-id 10.255.0.1"]
    lines += [f" neighbor {peer} remote-as 64512" for _, a, _, b in PEERS for peer in (a, b)]
    path = directory / "bgpd.conf"
    path.write_text("\n".join(lines) + "\n")
    argv = ["/usr/lib/frr/bgpd", "-n", "-Z", "-f", str(path), "-i", str(directory / "bgpd.pid")]
    return [
        *argv,
        "--vty_socket",
        str(directory),
        "-u",
        "frr",
        "-g",
        "frr",
        "-l",
        "127.0.0.1",
    ], directory / "bgpd.vty"


@pytest.mark.parametrize("make", [bird, frr])
def test_peer(benchmark, namespace, tmp_path, make):
    """The same sessions in one process that is not ours: BGP alone, no MACsec, no proofs."""
    for parent in (tmp_path, *tmp_path.parents):
        if not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    argv, socket = make(tmp_path)

    def start():
        socket.unlink(missing_ok=True)
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            until(socket.exists)
            assert process.poll() is None
            benchmark.extra_info["memory"] = memory(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(DEADLINE_S)

    benchmark.pedantic(start, rounds=3)

"""The shim between a pretended ExaBGP (two pipes) and a pretended daemon (a unix socket)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from router.bgp import shim as shim_module
from router.bgp.messages import Eor, Hello, Reply, SnapshotBegin, SnapshotEnd, SnapshotNeighbor, Update, parse
from router.bgp.shim import Memory, Shim

NEIGHBOR = {"address": {"local": "169.254.1.1", "peer": "169.254.1.2"}}


def line(counter, kind, **body):
    """As ExaBGP prints it, with its first octets."""
    head = f'{{ "exabgp": "5.0.0", "time": 1.5, "pid": 7, "counter": {counter}, "type": "{kind}", '
    return (head + '"neighbor": ' + json.dumps({**NEIGHBOR, **body}) + " }\n").encode()


def update(counter, announce=(), withdraw=(), med=0, nexthops=("169.254.1.2",), family="ipv4 unicast"):
    body = {}
    if announce:
        body["attribute"] = {
            "origin": "igp",
            "as-path": {"0": {"element": "as-sequence", "value": [1]}},
            "med": med,
        }
        body["announce"] = {family: {hop: list(announce) for hop in nexthops}}
    if withdraw:
        body["withdraw"] = {family: list(withdraw)}
    return line(counter, "update", direction="receive", message={"update": body})


def table_of(events):
    """prefix -> (MED, next hops) after these events."""
    table = {}
    for event in events:
        if isinstance(event, Update):
            for prefix in event.withdraw:
                table.pop(str(prefix), None)
            for announcement in event.announce:
                for prefix in announcement.prefixes:
                    table[str(prefix)] = (event.attributes.med, announcement.nexthops)
    return table


class Rig:
    """A running shim; `exabgp` writes to it, `daemon()` accepts its connection."""

    def __init__(self, directory):
        self.path = str(directory / "sock")
        source, self.exabgp = os.pipe()
        self.answers, sink = os.pipe()
        self.server = None
        self.thread = threading.Thread(target=Shim(self.path, source, sink).run, daemon=True)
        self.thread.start()

    def say(self, *lines):
        left = b"".join(lines)
        while left:
            left = left[os.write(self.exabgp, left) :]

    def daemon(self):
        Path(self.path).unlink(missing_ok=True)
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(self.path)
        self.server.listen()
        self.server.settimeout(5)
        connection, _ = self.server.accept()
        connection.settimeout(5)
        return Daemon(connection)

    def command(self):
        data = b""
        while not data.endswith(b"\n"):
            data += os.read(self.answers, 1)
        return data.decode().strip()

    def end(self):
        os.close(self.exabgp)
        self.thread.join(5)
        assert not self.thread.is_alive(), "it ends when ExaBGP does"


class Daemon:
    def __init__(self, connection):
        self.connection = connection
        self.file = connection.makefile("rb")

    def read(self):
        return parse(self.file.readline())

    def until(self, kind):
        events = []
        while not events or not isinstance(events[-1], kind):
            events.append(self.read())
        return events

    def send(self, number, command):
        self.connection.sendall(json.dumps({"id": number, "command": command}).encode() + b"\n")

    def close(self):
        self.file.close()
        self.connection.close()


@pytest.fixture
def rig(tmp_path):
    made = Rig(tmp_path)
    yield made
    made.end()


def test_live_lines_pass_and_a_new_daemon_gets_a_snapshot(rig):
    """Hello, a frame around what is known, then lines as they come."""
    rig.say(line(1, "state", state="connected"), line(2, "state", state="up"))
    rig.say(update(3, ["10.0.0.0/8", "10.1.0.0/16"]), update(4, ["10.2.0.0/16"], ["10.1.0.0/16"], med=5))
    rig.say(line(5, "update", direction="receive", message={"eor": {"afi": "ipv4", "safi": "unicast"}}))
    time.sleep(0.1)  # nobody listens yet
    daemon = rig.daemon()
    events = daemon.until(SnapshotEnd)
    assert isinstance(events[0], Hello)
    assert events[0].pid == os.getppid()
    assert isinstance(events[1], SnapshotBegin)
    assert events[2] == SnapshotNeighbor(("169.254.1.1", "169.254.1.2"), os.getppid(), (5,), complete=True)
    assert table_of(events) == {"10.0.0.0/8": (0, ("169.254.1.2",)), "10.2.0.0/16": (5, ("169.254.1.2",))}
    assert any(isinstance(event, Eor) for event in events)
    rig.say(update(6, [], ["10.0.0.0/8"]))
    assert daemon.read().counter == 6
    daemon.close()


def test_both_next_hops_of_an_ipv6_route_are_remembered(rig):
    """What ExaBGP's own table forgets."""
    rig.say(line(1, "state", state="connected"))
    hops = ("fd00::2", "fe80::1")
    rig.say(update(2, ["2001:db8::/32"], nexthops=hops, family="ipv6 unicast"))
    daemon = rig.daemon()
    events = daemon.until(SnapshotEnd)
    while not table_of(events):
        events.append(daemon.read())
    assert table_of(events) == {"2001:db8::/32": (0, hops)}
    daemon.close()


def test_a_shim_that_began_in_the_middle_says_so(rig):
    """Its predecessor died; ExaBGP replays nothing."""
    rig.say(update(30, ["10.0.0.0/8"]))
    daemon = rig.daemon()
    events = daemon.until(SnapshotEnd)
    if not any(isinstance(event, SnapshotNeighbor) for event in events):
        daemon.read()
        daemon.close()
        daemon = rig.daemon()
        events = daemon.until(SnapshotEnd)
    assert [e.complete for e in events if isinstance(e, SnapshotNeighbor)] == [False]
    daemon.close()


def test_answers_are_paired_though_events_interleave(rig):
    """One command in flight; output lines belong to it; `error` is its failure."""
    daemon = rig.daemon()
    daemon.until(SnapshotEnd)
    daemon.send(1, "show neighbor json")
    daemon.send(2, "announce nonsense")
    assert rig.command() == "show neighbor json"
    rig.say(update(1, ["10.0.0.0/8"]), b"[1, 2]\n", update(2, [], ["10.0.0.0/8"]), b"done\n")
    assert rig.command() == "announce nonsense"
    rig.say(b"error\n")
    events = [daemon.read() for _ in range(4)]
    replies = [event for event in events if isinstance(event, Reply)]
    assert replies == [Reply(1, ok=True, lines=("[1, 2]",)), Reply(2, ok=False, lines=())]
    daemon.close()


def test_an_answer_to_a_daemon_that_died_is_not_given_to_the_next(rig):
    """The command was sent, its daemon is gone, `done` comes later."""
    daemon = rig.daemon()
    daemon.until(SnapshotEnd)
    daemon.send(1, "first")
    assert rig.command() == "first"
    daemon.close()
    rig.server.close()
    daemon = rig.daemon()
    daemon.until(SnapshotEnd)
    daemon.send(1, "second")
    rig.say(b"done\n")
    assert rig.command() == "second"
    rig.say(b"error\n")
    replies = [event for event in (daemon.read(), daemon.read()) if isinstance(event, Reply)]
    assert replies[-1] == Reply(1, ok=False, lines=())
    daemon.close()


def test_a_daemon_that_does_not_read_never_blocks_exabgp(rig, monkeypatch):
    """Beyond the bound of the spool it gets a snapshot, whose table is right."""
    monkeypatch.setattr(shim_module, "SPOOL_MAX", 100_000)
    rig.say(line(1, "state", state="connected"))
    daemon = rig.daemon()
    daemon.until(SnapshotEnd)
    began = time.monotonic()
    count = 6000
    for n in range(count):
        rig.say(update(n + 2, [f"10.{n >> 8 & 255}.{n & 255}.0/24"], med=n % 7))
    assert time.monotonic() - began < 10
    rig.say(update(count + 2, ["192.0.2.0/24"]))
    events, snapshots, within = [], 0, False
    while within or "192.0.2.0/24" not in table_of(events):
        event = daemon.read()
        if isinstance(event, SnapshotBegin):
            events, snapshots, within = [], snapshots + 1, True
        within = within and not isinstance(event, SnapshotEnd)
        if within or isinstance(event, Update):
            events.append(event)
    assert snapshots, "it was told that lines were dropped"
    table = table_of(events)
    assert len(table) == count + 1
    assert table["10.1.2.0/24"][0] == 258 % 7
    daemon.close()


def test_a_daemon_that_talks_nonsense_is_disconnected(rig):
    """And the shim goes on."""
    daemon = rig.daemon()
    daemon.until(SnapshotEnd)
    daemon.connection.sendall(b"nonsense\n")
    assert daemon.file.read() == b""
    daemon.close()
    rig.server.close()
    rig.daemon().close()


def test_the_memory_is_bounded():
    """A table over the limit is given up, and said to be incomplete."""
    memory = Memory(routes_max=10)
    memory.learn(line(1, "state", state="connected"))
    memory.learn(update(2, [f"10.0.{n}.0/24" for n in range(10)]))
    (neighbor,) = memory.neighbors.values()
    assert neighbor.complete
    memory.learn(update(3, ["10.1.0.0/16"]))
    assert not neighbor.complete
    assert neighbor.routes == {}


def test_a_new_connection_empties_the_table():
    """Routes of the old session are not those of the new one."""
    memory = Memory()
    memory.learn(line(1, "state", state="connected"))
    memory.learn(update(2, ["10.0.0.0/8"]))
    memory.learn(line(3, "state", state="down", reason="x"))
    (neighbor,) = memory.neighbors.values()
    assert (neighbor.routes, neighbor.complete) == ({}, True)


@pytest.mark.parametrize(
    "junk", [b"", b"{", b"[]", b'{"neighbor":1}', b'{"neighbor":{"address":{}}}', b"\xff"]
)
def test_rubbish_is_passed_on_and_not_remembered(junk):
    """Judging it is the daemon's business."""
    memory = Memory()
    memory.learn(junk)
    assert memory.neighbors == {}


def test_it_needs_nothing_but_the_standard_library(tmp_path):
    """It starts with site-packages and the environment shut out, and ends when its input does."""
    argv = [sys.executable, "-I", "-S", "-B", shim_module.__file__, str(tmp_path / "none")]
    done = subprocess.run(argv, input=b"done\n", capture_output=True, timeout=10, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")

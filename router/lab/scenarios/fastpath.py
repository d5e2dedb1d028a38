"""The router's own data plane: killed under load, unable to start, on a wire that spoils frames."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import select
import signal
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from router.api.keyd import ask as ask_keyd
from router.errors import ControlError, LabError
from router.lab.capture import ETHERTYPE_MACSEC, frames
from router.lab.lab import Lab
from router.lab.network import WIRES, crossings, write_private
from router.lab.node import Node, run
from router.lab.poll import reached, until
from router.lab.report import Report
from router.lab.scenarios.channels import check_cleartext, check_ecmp, start_and_wait, wait_for_channels
from router.lab.topology import Edge
from router.lab.traffic import Prober, path_mtu_ping

BACK_TIMEOUT_S: Final = 60.0
KILLS: Final = 3
"""The first while nothing else happens; the others while the channels get new keys."""
STEADY_S: Final = 1.0
TUN_DIRECTORY: Final = "/dev/net"
BLOCK: Final = 1400
ECHO_PORT: Final = 7100
ECHO_SIZES: Final = (1, 8400)
"""Octets of payload: from a frame that is padded to one that just fits the channel's MTU."""
ECHO_BURST: Final = 4
ECHO_UNDER_WAY: Final = 64
ECHO_PATIENCE_S: Final = 0.5
SOAK_S: Final = 60.0
SOAK_LONG_S: Final = 600.0
REKEY_S: Final = 8.0
RSS_GROWTH_MAX: Final = 1 << 20
SO_RCVBUFFORCE: Final = 33
SOL_PACKET: Final = 263
PACKET_IGNORE_OUTGOING: Final = 23
PACKET_STATISTICS: Final = 6
_STATISTICS: Final = struct.Struct("=II")
ETH_P_ALL: Final = 3
FRAME_MAX: Final = 1 << 16
HOLD_FRAMES: Final = 3
"""A frame that is late by so many is well inside the replay window."""
HOLD_S: Final = 0.05

# Places in a frame with an explicit SCI (IEEE 802.1AE-2018 9.3).
TCI_AN, PN, SCI, DATA = 14, 16, 20, 28
TCI_V: Final = 0x80
ICV_OCTETS: Final = 16


def dataplane_status(lab: Lab) -> dict[str, Any]:
    """What the data plane says of itself. Raises LabError."""
    return ask_dataplane(lab, status=True)


def ask_dataplane(lab: Lab, **request: object) -> dict[str, Any]:
    """One request on the data plane's socket. Raises LabError."""
    with socket.socket(socket.AF_UNIX) as talk:
        talk.settimeout(10.0)
        try:
            talk.connect(str(lab.router.run_directory / "dataplane.sock"))
            talk.sendall(json.dumps(request).encode() + b"\n")
            with talk.makefile("rb") as answers:
                answer: dict[str, Any] = json.loads(answers.readline())
        except (OSError, ValueError) as error:
            raise LabError(f"the data plane does not answer: {error}") from error
    if not answer["ok"]:
        raise LabError(f"the data plane refuses: {answer['error']}")
    return answer


def _process(lab: Lab) -> dict[str, Any]:
    """The data plane's process. Raises LabError."""

    def running() -> dict[str, Any] | None:
        status = lab.router.status() or {}
        return next((p for p in status.get("processes", []) if p["name"] == "dataplane" and p["pid"]), None)

    return until(running, BACK_TIMEOUT_S, lambda: "there is no data plane") or {}


def _keys(lab: Lab) -> dict[str, str]:
    """The name of the key that each channel sends under."""
    return {name: str(c["macsec"]["key_id"]) for name, c in lab.router.channels().items()}


# -- killed under load


@contextlib.contextmanager
def _load(source: Node, address: str) -> Iterator[None]:
    """Large datagrams from `source`, as many as one thread can, while the block lasts."""
    stop = threading.Event()
    sender = source.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def send() -> None:
        block = bytes(BLOCK)
        while not stop.wait(0.001):
            for port in range(20):
                with contextlib.suppress(OSError):
                    sender.sendto(block, (address, ECHO_PORT + 100 + port))

    thread = threading.Thread(target=send, name="load", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        sender.close()


def crash(lab: Lab, report: Report) -> None:
    """The engine dies under load: no frame in clear, no packet number twice, and it comes back by itself.

    In the end it cannot come back for a while, because TAPs cannot be made: that is said, and mended.
    """
    start_and_wait(lab, report)
    check_ecmp(lab, report)
    names = [edge.channel for edge in lab.topology.edges]
    static = not any(edge.key_directory for edge in lab.topology.edges)
    seen = {name: [key] for name, key in _keys(lab).items()}
    prober = Prober(lab.network.branch, lab.network.cloud, lab.topology.cloud.address4)
    prober.start()
    slowest = 0.0
    try:
        with _load(lab.network.branch, lab.topology.cloud.address4):
            for kill in range(1, KILLS + 1):
                time.sleep(STEADY_S)  # the length of a measurement: the load flows before each kill
                if kill > 1 and not static:
                    _rekey(lab, names, begun=kill == 2)
                _kill(lab)
                died = time.monotonic()
                report.progress(f"data plane killed, {kill} of {KILLS}")
                _wait_until_back(lab, report, seen, static=static)
                slowest = max(slowest, time.monotonic() - died)
            _cannot_start(lab, report, seen, static=static)
    finally:
        outage = prober.stop()
    report.figure("kills", KILLS)
    report.figure("slowest_recovery", round(slowest, 1), "s")
    report.figure("probes_sent", outage.sent)
    report.figure("probes_lost", outage.lost)
    report.figure("longest_outage", outage.longest_ms, "ms")
    report.check("traffic comes back after every kill", outage.lost < outage.sent, f"{outage.lost} lost")
    for name, keys in seen.items():
        if static:
            report.check(f"{name}: the same static key", len(set(keys)) == 1, f"{keys[0][:8]}")
        else:
            good = len(set(keys)) == KILLS + 2
            report.check(f"{name}: another key after every kill", good, ", ".join(key[-10:] for key in keys))
    check_ecmp(lab, report)
    paths = {edge.channel: edge for edge in lab.topology.edges}
    check_cleartext(lab, report)
    for channel, path in lab.stop_captures().items():
        _check_numbers(report, paths[channel], path, 1 if static else KILLS + 2)


def _kill(lab: Lab) -> None:
    """Kill the data plane and wait for another one. Raises LabError."""
    process = int(_process(lab)["pid"])
    os.kill(process, signal.SIGKILL)
    until(
        lambda: int(_process(lab)["pid"]) != process,
        BACK_TIMEOUT_S,
        lambda: "the data plane did not come back",
    )


def _rekey(lab: Lab, names: list[str], *, begun: bool) -> None:
    """Ask for new keys on all channels; where `begun` is set, wait until one is being rolled out."""
    for name in names:
        ask_keyd(lab.router.run_directory, verb="rekey", channel=name)
    if begun:
        until(
            lambda: any(channel.get("next") for channel in _key_states(lab).values()),
            BACK_TIMEOUT_S,
            lambda: "no key is being rolled out",
            0.002,
        )


def _key_states(lab: Lab) -> dict[str, dict[str, Any]]:
    states: dict[str, dict[str, Any]] = ask_keyd(lab.router.run_directory, verb="status")["channels"]
    return states


def _wait_until_back(lab: Lab, report: Report, seen: dict[str, list[str]], *, static: bool) -> None:
    """Wait until every channel has a key that is not in `seen` and carries traffic; add the keys to it."""
    until(
        lambda: not _stale(lab, list(seen), seen, static=static),
        BACK_TIMEOUT_S,
        lambda: "the channels have no keys",
    )
    wait_for_channels(lab, report, seen, BACK_TIMEOUT_S)
    until(
        lambda: all(_passes(lab, edge) for edge in lab.topology.edges),
        BACK_TIMEOUT_S,
        lambda: "not every channel carries traffic again",
    )
    for name, key in _keys(lab).items():
        seen[name].append(key)


def _cannot_start(lab: Lab, report: Report, seen: dict[str, list[str]], *, static: bool) -> None:
    """The data plane comes back without /dev/net/tun: the channels are down and say why; then it is there."""
    report.progress(f"data plane killed, and {TUN_DIRECTORY} is empty")
    supervisor = lab.router.process
    assert supervisor is not None
    # `ip netns exec` has given it a mount namespace of its own; its root may be a chroot's.
    inside = ["nsenter", "-t", str(supervisor.pid), "-m", "-r"]
    run([*inside, "mount", "-t", "tmpfs", "none", TUN_DIRECTORY])
    try:
        _kill(lab)
        reasons: dict[str, str] = {}

        def named() -> bool:
            nonlocal reasons
            reasons = {n: c["reason"] for n, c in lab.router.channels().items() if c["verdict"] == "down"}
            return set(reasons) == set(seen) and all("/dev/net/tun" in reason for reason in reasons.values())

        seconds = reached(named, BACK_TIMEOUT_S)
        report.check(
            "without /dev/net/tun every channel is down, and says so", seconds is not None, str(reasons)
        )
    finally:
        run([*inside, "umount", TUN_DIRECTORY])
    _wait_until_back(lab, report, seen, static=static)
    report.check("with it again they come back by themselves", True, ", ".join(seen))


def _passes(lab: Lab, edge: Edge) -> bool:
    """One echo over the channel."""
    return path_mtu_ping(lab.network.router, edge.ipv4.own, BLOCK).outcome == "ok"


def _stale(lab: Lab, names: list[str], seen: dict[str, list[str]], *, static: bool) -> bool:
    """Whether some channel has no key yet, or with key agreement still one of before."""
    keys = _keys(lab)
    return any(
        keys.get(name) in {None, "None"} or (not static and keys[name] in seen[name]) for name in names
    )


def _check_numbers(report: Report, edge: Edge, path: Path, keys: int) -> None:
    """No packet number of the router is twice on a wire under one of at least `keys` keys."""
    source = bytes.fromhex(edge.router_sci_mac.replace(":", ""))
    sent = (
        (frame.octets[TCI_AN] & 3, int.from_bytes(frame.octets[PN : PN + 4]))
        for frame in frames(path)
        if frame.ethertype == ETHERTYPE_MACSEC and frame.octets[6:12] == source
    )
    numbers = packet_numbers(sent)
    again = [f"key {key} PN {pn}" for (key, pn), count in numbers.items() if count > 1]
    used = len({key for key, _ in numbers})
    detail = f"{len(numbers)} frames, {used} keys" + (f", twice: {', '.join(again[:5])}" if again else "")
    report.check(f"wire {edge.channel}: no packet number comes twice", used >= keys and not again, detail)


def packet_numbers(sent: Iterable[tuple[int, int]]) -> Counter[tuple[int, int]]:
    """How often each (key, PN) was sent, of (AN, PN) in order; keys are counted from 1.

    The next key has the next AN (IEEE 802.1X-2020 9.8), or the one after it where a key was never
    sent under; while it takes over, frames of the one before may still come.
    """
    numbers: Counter[tuple[int, int]] = Counter()
    key = current = 0
    for an, pn in sent:
        step = (an - current) % 4 if key else 1
        if step in {1, 2}:
            key, current = key + 1, an
        numbers[key - (step == 3), pn] += 1
    return numbers


# -- a bad wire


class BadWire:
    """Takes the place of a wire's bridge: what the edge sends may be repeated, late, or joined by bad copies.

    Every good frame is passed on; `injected` counts what was added, by the name under which the
    router must count it. A bad copy goes before the good frame, with the same packet number: a
    receiver that believes a frame before it has checked it would then lose the good one.
    """

    def __init__(self, lab: Lab, edge: Edge, rate: float, seed: int) -> None:
        """`rate`: the part of the edge's frames to which something is done."""
        crossing = next(
            c for c in crossings(lab.topology) if (c.guest.node, c.guest.device) == (edge.node, edge.port)
        )
        wires = Node(WIRES)
        wires.batch([f"link set {crossing.tap} nomaster", f"link set {crossing.port} nomaster"])
        self.injected: Counter[str] = Counter()
        self.reordered = 0
        self.passed = 0
        self.send_failed = 0
        self.lost = 0
        """Of `dropped`, summed by whoever asks."""
        self._random = random.Random(seed)  # noqa: S311 - repeatable, not secret
        self._rate = rate
        self._held: list[tuple[int, float, bytes]] = []
        """Frames to be late: (how many of the others first, at the latest when, the frame)."""
        self._edge = self._open(wires, crossing.tap)
        self._router = self._open(wires, crossing.port)
        self._stop = threading.Event()
        self.mischief = threading.Event()
        """While set, bad things happen; before, it is a wire."""
        self._thread = threading.Thread(target=self._run, name="bad-wire", daemon=True)
        self._thread.start()

    @staticmethod
    def _open(node: Node, device: str) -> socket.socket:
        packets = node.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        packets.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
        packets.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        packets.bind((device, ETH_P_ALL))
        packets.setblocking(False)
        return packets

    def dropped(self) -> int:
        """Frames that it lost since the last question: it was starved of processor time."""
        failed, self.send_failed = self.send_failed, 0
        for packets in (self._edge, self._router):
            failed += _STATISTICS.unpack(packets.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1]
        return failed

    def stop(self) -> None:
        """End the wire."""
        self._stop.set()
        self._thread.join()
        self._edge.close()
        self._router.close()

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self._edge, select.POLLIN)
        poller.register(self._router, select.POLLIN)
        while not self._stop.is_set():
            for descriptor, _ in poller.poll(10):
                with contextlib.suppress(BlockingIOError):
                    while True:
                        if descriptor == self._router.fileno():
                            self._put(self._edge, self._router.recv(FRAME_MAX))
                        else:
                            self._from_edge(self._edge.recv(FRAME_MAX))
            self._release(0)

    def _put(self, where: socket.socket, frame: bytes) -> None:
        try:
            where.send(frame)
        except OSError:
            self.send_failed += 1

    def _from_edge(self, frame: bytes) -> None:
        kind = int.from_bytes(frame[12:14])
        if kind != ETHERTYPE_MACSEC or not self.mischief.is_set() or self._random.random() > self._rate:
            self._pass(frame)
            return
        what = self._random.choice((self._corrupt, self._tag, self._cut, self._sci, self._an, None, None))
        if what is not None:
            bad, name = what(bytearray(frame))
            self._put(self._router, bytes(bad))
            self.injected[name] += 1
            self._pass(frame)
        elif self._random.random() < 0.5:
            self._pass(frame)
            self._put(self._router, frame)
            self.injected["in_pkts_late"] += 1
        else:
            self.reordered += 1
            self._held.append((HOLD_FRAMES, time.monotonic() + HOLD_S, frame))

    def _pass(self, frame: bytes) -> None:
        self._put(self._router, frame)
        self.passed += 1
        self._release(1)

    def _release(self, passed: int) -> None:
        now = time.monotonic()
        self._held = [(left - passed, latest, frame) for left, latest, frame in self._held]
        due = [entry for entry in self._held if entry[0] <= 0 or entry[1] <= now]
        self._held = [entry for entry in self._held if entry not in due]
        for _, _, frame in due:
            self._put(self._router, frame)
            self.passed += 1

    def _corrupt(self, frame: bytearray) -> tuple[bytearray, str]:
        place = self._random.randrange(DATA, len(frame))
        # A short frame is padded after its ICV, and what is there is nobody's business.
        short = frame[TCI_AN + 1] & 0x3F
        if short:
            place = self._random.randrange(DATA, DATA + short + ICV_OCTETS)
        frame[place] ^= 1 << self._random.randrange(8)
        return frame, "in_pkts_not_valid"

    def _tag(self, frame: bytearray) -> tuple[bytearray, str]:
        frame[TCI_AN] |= TCI_V
        return frame, "in_pkts_bad_tag"

    def _cut(self, frame: bytearray) -> tuple[bytearray, str]:
        return frame[: DATA + ICV_OCTETS - 1], "in_pkts_bad_tag"

    def _sci(self, frame: bytearray) -> tuple[bytearray, str]:
        frame[SCI + 5] ^= 0x40
        return frame, "in_pkts_no_sci"

    def _an(self, frame: bytearray) -> tuple[bytearray, str]:
        frame[TCI_AN] ^= 2  # the AN after the next: never in use together with this one
        return frame, "in_pkts_not_using_sa"


class _Echo:
    """Datagrams of random sizes to the cloud and back, counted."""

    def __init__(self, lab: Lab, seed: int) -> None:
        address = lab.topology.cloud.address4
        self._random = random.Random(seed)  # noqa: S311 - repeatable, not secret
        self._server = lab.network.cloud.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._server.bind((address, ECHO_PORT))
        self._client = lab.network.branch.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._client.connect((address, ECHO_PORT))
        for each in (self._server, self._client):
            each.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
            each.setblocking(False)
        self.sent = self.returned = 0
        self._given_up = 0
        self._last = time.monotonic()

    def burst(self) -> None:
        """Send some, unless many are under way: what is tested is not the length of queues."""
        if self.sent - self.returned - self._given_up > ECHO_UNDER_WAY:
            if time.monotonic() - self._last < ECHO_PATIENCE_S:
                return
            self._given_up = self.sent - self.returned
        for _ in range(ECHO_BURST):
            size = round(ECHO_SIZES[0] * (ECHO_SIZES[1] / ECHO_SIZES[0]) ** self._random.random())
            with contextlib.suppress(OSError):
                self._client.send(self._random.randbytes(size))
            self.sent += 1

    def drain(self, timeout_s: float) -> None:
        """Send back and count for `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            for ready in select.select([self._server, self._client], [], [], left)[0]:
                with contextlib.suppress(OSError):
                    data, sender = ready.recvfrom(FRAME_MAX)
                    if ready is self._server:
                        ready.sendto(data, sender)
                    else:
                        self.returned += 1
                        self._last = time.monotonic()

    def close(self) -> None:
        """Close both ends."""
        self._server.close()
        self._client.close()


def _own_loss(lab: Lab, edge: Edge, wire: BadWire) -> int:
    """Frames that the queues between the router and the edge have dropped: TAPs, guest, the wire itself.

    With one processor for everything they overflow now and then; none of it is the data plane's.
    """
    shown = Node(WIRES).ip("-s", "link", "show")
    shown += json.loads(lab.at_edge(edge.node, "ip", "-s", "-j", "link", "show"))
    queues = sum(int(link["stats64"][way]["dropped"]) for link in shown for way in ("rx", "tx"))
    wire.lost += wire.dropped()
    return queues + wire.lost


def soak(lab: Lab, report: Report) -> None:
    """The short one."""
    _soak(lab, report, SOAK_S)


def soak_long(lab: Lab, report: Report) -> None:
    """Ten minutes of it."""
    _soak(lab, report, SOAK_LONG_S)


def _soak(lab: Lab, report: Report, length_s: float) -> None:
    """Random sizes, rekeys and a bad wire: every bad frame is counted by its name, no good one is lost."""
    edge = lab.topology.edges[0]
    name = f"ms-{edge.channel}"
    wire = BadWire(lab, edge, rate=0.2, seed=1)
    start_and_wait(lab, report)
    echo = _Echo(lab, seed=2)
    echo.drain(0.2)
    before = dataplane_status(lab)["channels"][name]
    lost_before = _own_loss(lab, edge, wire)
    sizes: list[int] = []
    keys = {_keys(lab)[edge.channel]}
    report.progress(f"a bad wire for {length_s:.0f} s")
    wire.mischief.set()
    began = rekeyed = looked = time.monotonic()
    while (now := time.monotonic()) - began < length_s:
        echo.burst()
        echo.drain(0.004)
        if now - looked > 1.0:
            looked = now
            keys.add(_keys(lab)[edge.channel])
            if now - began > length_s / 4:
                sizes.append(int(_process(lab)["rss_bytes"] or 0))
        if now - rekeyed > REKEY_S:
            rekeyed = now
            with contextlib.suppress(ControlError):
                ask_keyd(lab.router.run_directory, verb="rekey", channel=edge.channel)
    wire.mischief.clear()
    echo.drain(1.0)
    after = dataplane_status(lab)["channels"][name]
    own_loss = _own_loss(lab, edge, wire) - lost_before
    wire.stop()
    echo.close()
    seen = {k: after["secy_counters"][k] - before["secy_counters"][k] for k in after["secy_counters"]}
    for counter, count in sorted(wire.injected.items()):
        report.check(f"{counter} counts each of them", seen[counter] == count, f"{seen[counter]} of {count}")
    others = {
        k: v
        for k, v in seen.items()
        if k.startswith("in_pkts") and v and k not in wire.injected and k != "in_pkts_ok"
    }
    report.check("nothing else is counted as bad", not others, str(others or "nothing"))
    report.check("there were bad frames of every kind", len(wire.injected) == 5, str(dict(wire.injected)))
    report.check("and late ones", wire.reordered > 0, f"{wire.reordered}, each late by {HOLD_FRAMES} frames")
    lost = echo.sent - echo.returned
    report.check(
        "no good frame is lost beyond the wire's own loss",
        lost <= own_loss and echo.returned > echo.sent // 2,
        f"{lost} of {echo.sent} echoes; {own_loss} frames dropped by the wire's queues",
    )
    report.figure("echoes_lost", lost)
    drops = {k: after["counters"][k] - before["counters"][k] for k in after["counters"] if "drop" in k}
    # What the edge's kernel says on its macsec device itself is in no VLAN, and so in none of ours.
    report.figure("frames_in_no_vlan", drops.pop("in_drop_no_feature"))
    report.check("the engine dropped nothing of its own", not any(drops.values()), str(drops))
    report.check("rekeys went on meanwhile", len(keys) >= int(length_s / REKEY_S) - 1, f"{len(keys)} keys")
    growth = max(sizes) - sizes[0] if sizes else -1
    report.check(
        "memory is flat", 0 <= growth <= RSS_GROWTH_MAX, f"{sizes[0] >> 10 if sizes else 0} KiB, +{growth}"
    )
    report.figure("echoes", echo.sent)
    report.figure("bad_frames", sum(wire.injected.values()))
    report.figure("reordered", wire.reordered)
    report.figure("keys", len(keys))
    report.figure("rss", round(max(sizes, default=0) / 1e6, 1), "MB")
    check_cleartext(lab, report)


# -- from one SecY to the other


def switch(lab: Lab, report: Report) -> None:
    """A reload moves a running channel from the kernel's MACsec to the data plane, and back."""
    start_and_wait(lab, report)
    text = lab.network.config.read_text()
    for secy in ("fastpath", "kernel"):
        changed = text.replace("secy: kernel", f"secy: {secy}")
        write_private(lab.network.config, changed)
        began = time.monotonic()
        code, answer = lab.router.request("POST", "/v1/reload", {})
        report.check(f"a reload to the {secy}'s SecY is taken", code == http.client.OK, str(answer)[:200])
        until(
            lambda s=secy: _is_on(lab, s),  # type: ignore[misc]
            BACK_TIMEOUT_S,
            lambda s=secy: f"not up on the {s}'s SecY: {_reasons(lab)}",  # type: ignore[misc]
        )
        report.figure(f"to_{secy}", round(time.monotonic() - began, 1), "s")
        links = {link["ifname"] for link in lab.network.router.ip("link", "show")}
        has_macsec = any(f"ms-{edge.channel}" in links for edge in lab.topology.edges)
        report.check(f"{secy}: macsec devices only where they are used", has_macsec == (secy == "kernel"))
        check_ecmp(lab, report)
    check_cleartext(lab, report)


def _is_on(lab: Lab, secy: str) -> bool:
    """Whether every channel is up on this SecY and carries packets."""
    channels = lab.router.channels().values()
    return (
        bool(channels)
        and all(c["macsec"]["secy"] == secy and c["verdict"] == "up" for c in channels)
        and all(_passes(lab, edge) for edge in lab.topology.edges)
    )


def _reasons(lab: Lab) -> str:
    return "; ".join(f"{name}: {c['reason']}" for name, c in lab.router.channels().items())

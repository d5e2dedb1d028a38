"""Traffic between the branch and the cloud, from one process that holds sockets in both.

* `path_mtu_ping`: one echo request of an exact size that must not be fragmented.
* `spread`: one datagram on each of many flows, there and back.
* `tcp_through`: a TCP stream and how much of it arrived.
* `Prober`: a numbered datagram every millisecond over many flows, there and back; what is lost,
  times 1 ms, is the outage (RFC 7747). The guest's clock ticks at 100 Hz, so the datagrams of one
  tick go out together: single losses are exact, the start of an outage is to the tick.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
import time
from dataclasses import dataclass
from typing import Final

from router.lab.node import Node

SO_RCVBUFFORCE: Final = 33
IP_MTU_DISCOVER: Final = 10
IPV6_MTU_DISCOVER: Final = 23
IPV6_DONTFRAG: Final = 62
PMTUDISC_PROBE: Final = 3
"""Set DF, and do not let the kernel answer from what it learned before."""

ECHO_REQUEST4, ECHO_REPLY4, UNREACHABLE4, FRAGMENTATION_NEEDED = 8, 0, 3, 4
ECHO_REQUEST6, ECHO_REPLY6, PACKET_TOO_BIG6 = 128, 129, 2
PORT: Final = 7000
SPREAD_WINDOW: Final = 24
SPREAD_PAUSE_S: Final = 0.02
PROBE = struct.Struct("!QI")
BUFFER: Final = 4 << 20
BURST: Final = 64
TCP_LOAD_INTERVAL_S: Final = 0.02
TCP_LOAD_TIMEOUT_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Ping:
    """Outcome of one echo request: `ok`, `too big` with the MTU that was told, or `lost`."""

    outcome: str
    mtu: int = 0
    reporter: str = ""

    def __str__(self) -> str:
        return (
            f"too big, mtu {self.mtu} (from {self.reporter})" if self.outcome == "too big" else self.outcome
        )


def path_mtu_ping(node: Node, address: str, size: int, timeout_s: float = 1.0) -> Ping:
    """Send one echo request whose IP packet has exactly `size` octets, with DF."""
    six = ":" in address
    family = socket.AF_INET6 if six else socket.AF_INET
    protocol = socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP
    header = 40 if six else 20
    ident, sequence = os.getpid() & 0xFFFF, int.from_bytes(os.urandom(2))
    message = struct.pack("!BBHHH", ECHO_REQUEST6 if six else ECHO_REQUEST4, 0, 0, ident, sequence)
    message += bytes(size - header - len(message))
    if not six:
        message = message[:2] + _checksum(message).to_bytes(2) + message[4:]
    with node.socket(family, socket.SOCK_RAW, protocol) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        if six:
            raw.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_PROBE)
            raw.setsockopt(socket.IPPROTO_IPV6, IPV6_DONTFRAG, 1)
        else:
            raw.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_PROBE)
        try:
            raw.sendto(message, (address, 0))
        except OSError:
            return Ping("too big", 0, "own device")
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0 and select.select([raw], [], [], left)[0]:
            packet, sender = raw.recvfrom(65536)
            answer = _read6(packet, ident, sequence) if six else _read4(packet, ident, sequence)
            if answer is not None:
                return Ping(answer[0], answer[1], sender[0])
    return Ping("lost")


def _read4(packet: bytes, ident: int, sequence: int) -> tuple[str, int] | None:
    icmp = packet[(packet[0] & 15) * 4 :]
    kind, code, _, first, second = struct.unpack("!BBHHH", icmp[:8])
    if kind == ECHO_REPLY4 and (first, second) == (ident, sequence):
        return "ok", 0
    if kind == UNREACHABLE4 and code == FRAGMENTATION_NEEDED:
        quoted = icmp[8 + (icmp[8] & 15) * 4 :]
        if struct.unpack("!HH", quoted[4:8]) == (ident, sequence):
            return "too big", second
    return None


def _read6(icmp: bytes, ident: int, sequence: int) -> tuple[str, int] | None:
    if icmp[0] == ECHO_REPLY6 and struct.unpack("!HH", icmp[4:8]) == (ident, sequence):
        return "ok", 0
    if icmp[0] == PACKET_TOO_BIG6 and struct.unpack("!HH", icmp[52:56]) == (ident, sequence):
        return "too big", int.from_bytes(icmp[4:8])
    return None


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) // 2 * 2]))
    total += data[-1] << 8 if len(data) % 2 else 0
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def spread(source: Node, sink: Node, address: str, flows: int, timeout_s: float = 3.0) -> int:
    """Send one datagram on each of `flows` flows and have it answered; return how many came back.

    At most SPREAD_WINDOW are on their way at once: a lab's wire has a queue of 64 frames.
    """
    family = _family(address)
    with contextlib.ExitStack() as stack:
        responder = stack.enter_context(sink.socket(family, socket.SOCK_DGRAM))
        responder.bind((address, PORT + 1))
        waiting: dict[int, socket.socket] = {}
        poller = select.poll()
        poller.register(responder, select.POLLIN)

        def drain(until: float, most: int) -> None:
            """Answer and receive until no more than `most` are waited for, or time is up."""
            while len(waiting) > most and (left := until - time.monotonic()) > 0:
                for descriptor, _ in poller.poll(left * 1000):
                    if descriptor == responder.fileno():
                        _answer(responder)
                    elif descriptor in waiting:
                        waiting.pop(descriptor).recv(64)
                        poller.unregister(descriptor)

        for _ in range(flows):
            sender = stack.enter_context(source.socket(family, socket.SOCK_DGRAM))
            sender.sendto(b"lastmile", (address, PORT + 1))
            waiting[sender.fileno()] = sender
            poller.register(sender, select.POLLIN)
            drain(time.monotonic() + SPREAD_PAUSE_S, SPREAD_WINDOW)
        drain(time.monotonic() + timeout_s, 0)
    return flows - len(waiting)


def _answer(responder: socket.socket) -> None:
    """Send back what has come, if anything has."""
    with contextlib.suppress(BlockingIOError):
        data, peer = responder.recvfrom(64, socket.MSG_DONTWAIT)
        responder.sendto(data, peer)


@dataclass(frozen=True, slots=True)
class Stream:
    """What a TCP stream carried."""

    octets: int
    seconds: float

    @property
    def mbps(self) -> float:
        """Goodput in Mbit/s."""
        return self.octets * 8 / 1e6 / self.seconds if self.seconds else 0.0


def tcp_through(source: Node, sink: Node, address: str, octets: int, timeout_s: float = 20.0) -> Stream:
    """Send `octets` octets over one TCP connection; the stream ends early at `timeout_s`."""
    family = _family(address)
    received = 0
    deadline = time.monotonic() + timeout_s
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(sink.socket(family, socket.SOCK_STREAM))
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, PORT + 2))
        server.listen()
        server.settimeout(timeout_s)
        client = stack.enter_context(source.socket(family, socket.SOCK_STREAM))
        client.settimeout(timeout_s)
        start = time.monotonic()
        try:
            client.connect((address, PORT + 2))
            peer, _ = server.accept()
        except OSError:
            return Stream(0, time.monotonic() - start)
        stack.enter_context(peer)
        client.setblocking(False)
        block, left = bytes(1 << 16), octets
        while received < octets and time.monotonic() < deadline:
            readable, writable, _ = select.select([peer], [client] if left else [], [], 0.5)
            if writable:
                with contextlib.suppress(BlockingIOError):
                    left -= client.send(block[:left] if left < len(block) else block)
            if readable:
                received += len(peer.recv(1 << 18))
        return Stream(received, time.monotonic() - start)


class TcpLoad:
    """A TCP connection that carries `mbps` from `start` to `stop`, beside whatever else is done."""

    def __init__(self, source: Node, sink: Node, address: str, mbps: float = 8.0) -> None:
        family = _family(address)
        self._block = bytes(round(mbps * 1e6 / 8 * TCP_LOAD_INTERVAL_S))
        self._server = sink.socket(family, socket.SOCK_STREAM)
        self._server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._server.bind((address, PORT + 3))
        self._server.listen()
        self._server.settimeout(TCP_LOAD_TIMEOUT_S)
        self._client = source.socket(family, socket.SOCK_STREAM)
        self._client.settimeout(TCP_LOAD_TIMEOUT_S)
        self._client.connect((address, PORT + 3))
        self._sent = 0
        self._received = 0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=t, daemon=True) for t in (self._send, self._receive)]

    def start(self) -> None:
        """Begin to send."""
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        while not self._stop.wait(TCP_LOAD_INTERVAL_S):
            try:
                self._client.sendall(self._block)
            except OSError:
                return
            self._sent += len(self._block)
        with contextlib.suppress(OSError):
            self._client.shutdown(socket.SHUT_WR)

    def _receive(self) -> None:
        try:
            peer, _ = self._server.accept()
            with peer:
                peer.settimeout(TCP_LOAD_TIMEOUT_S)
                while data := peer.recv(1 << 18):
                    self._received += len(data)
        except OSError:
            return

    def stop(self) -> tuple[Stream, bool]:
        """End it; returns what arrived, and whether that is all that was sent."""
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * TCP_LOAD_TIMEOUT_S)
        self._client.close()
        self._server.close()
        whole = self._received == self._sent > 0
        return Stream(self._received, time.monotonic() - self._began), whole


@dataclass(frozen=True, slots=True)
class Outage:
    """What a `Prober` saw."""

    sent: int
    lost: int
    longest_ms: int
    """Longest run of lost probes on one flow, as time."""
    first_lost_s: float
    """Seconds from the start to the first lost probe; negative where none was lost."""


class Prober:
    """A numbered datagram each millisecond, spread over flows, answered by the far side."""

    def __init__(
        self,
        source: Node,
        sink: Node,
        address: str,
        *,
        flows: int = 16,
        interval_s: float = 0.001,
        linger_s: float = 1.0,
    ) -> None:
        family = _family(address)
        self._interval_s = interval_s
        self._linger_s = linger_s
        self._responder = sink.socket(family, socket.SOCK_DGRAM)
        self._responder.bind((address, PORT))
        self._senders = [source.socket(family, socket.SOCK_DGRAM) for _ in range(flows)]
        for sender in [self._responder, *self._senders]:
            sender.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
            sender.setblocking(False)
        for sender in self._senders:
            sender.connect((address, PORT))
        self._sent = 0
        self._returned = bytearray()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prober", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def _run(self) -> None:
        poller = select.poll()
        sockets = {s.fileno(): s for s in [self._responder, *self._senders]}
        for descriptor in sockets:
            poller.register(descriptor, select.POLLIN)
        start = time.monotonic()
        ended = 0.0
        while not ended or time.monotonic() - ended < self._linger_s:
            if self._stop.is_set():
                ended = ended or time.monotonic()
            else:
                self._send_due(int((time.monotonic() - start) / self._interval_s))
            for descriptor, _ in poller.poll(5):
                self._drain(sockets[descriptor])

    def _send_due(self, due: int) -> None:
        # A starved process catches up in steps, so that its own burst overflows no queue.
        due = min(due, self._sent + BURST)
        while self._sent < due:
            # An unreachable route counts as a lost probe, as it is one for the user.
            with contextlib.suppress(OSError):
                self._senders[self._sent % len(self._senders)].send(PROBE.pack(self._sent, 0))
            self._sent += 1
            self._returned.append(0)

    def _drain(self, ready: socket.socket) -> None:
        while True:
            try:
                data, sender = ready.recvfrom(64)
            except BlockingIOError:
                return
            except OSError:
                continue  # an ICMP error of an earlier probe
            if ready is self._responder:
                with contextlib.suppress(OSError):
                    ready.sendto(data, sender)
            else:
                number = int(PROBE.unpack(data)[0])
                if number < len(self._returned):
                    self._returned[number] = 1

    def stop(self) -> Outage:
        """Stop sending, wait a moment for what is under way, and count."""
        self._stop.set()
        self._thread.join()
        for each in [self._responder, *self._senders]:
            each.close()
        return count(self._returned, len(self._senders), self._interval_s)


def count(returned: bytes | bytearray, flows: int, interval_s: float) -> Outage:
    """Count losses of probes 0..n-1, where probe k went on flow k mod `flows`."""
    longest = 0
    for flow in range(flows):
        run = 0
        for came in returned[flow::flows]:
            run = 0 if came else run + 1
            longest = max(longest, run)
    first = returned.find(0)
    return Outage(
        sent=len(returned),
        lost=returned.count(0),
        longest_ms=round(longest * flows * interval_s * 1000),
        first_lost_s=first * interval_s if first >= 0 else -1.0,
    )

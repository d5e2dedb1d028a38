"""ExaBGP's helper process: stands between ExaBGP, which it must never block, and routerd.

A helper that stops reading blocks ExaBGP, and every session dies at its hold time. So this
program does nothing but read, and remembers for the daemon what it needs to know after it was
away. It imports the standard library only, holds no policy, and has one loop.

    ExaBGP --stdin-->  shim  --unix socket-->  routerd       events, snapshots, replies
    ExaBGP <-stdout--  shim  <-unix socket---  routerd       commands

What it keeps for each neighbour: the last state, OPEN, negotiated and notification lines, and
the table (prefix -> attributes and next hops) since the session came up. A daemon that connects,
or that was too slow for the bounded spool, gets a *snapshot* of that and then live lines; since
one loop writes both there is no moment between them. This was preferred to ExaBGP's own
`show adj-rib in` because that forgets one of the two next hops of an IPv6 route, holds ExaBGP's
loop while it prints, and interleaves with live updates.

What it cannot know, it says: a shim that began while sessions were up (its predecessor died) has
incomplete tables, and so has one whose table grew over the limit. The daemon then asks the peer
for a route refresh.

Commands go to ExaBGP one at a time, since its answers (`done`, `error`) carry no number.
"""

from __future__ import annotations

import fcntl
import json
import os
import selectors
import socket
import sys
import time
from collections import deque
from typing import Any, Final

SPOOL_MAX: Final = 32 << 20
"""Octets that wait for a daemon that does not read; beyond it gets a snapshot instead."""
ROUTES_MAX: Final = 400_000
"""Routes remembered in all tables together, some 150 octets each."""
LINE_MAX: Final = 16 << 20
"""Octets of one line from either side; a longer one is dropped and counts as a gap."""
SEQUENCES_MAX: Final = 4
"""A reload of ExaBGP begins a new sequence of counters while the old one may go on."""
RECONNECT_S: Final = 0.25
READ_SIZE: Final = 1 << 18

_REMEMBERED: Final = ("fsm", "open-send", "open-receive", "negotiated", "notification", "state")
"""Kinds of line whose last one is kept, in the order in which they are replayed."""


class Neighbor:
    """What is remembered about one neighbour."""

    def __init__(self, local: str, peer: str) -> None:
        self.local = local
        self.peer = peer
        self.counters = [0]
        self.complete = False
        self.lines: dict[str, bytes] = {}
        self.eor: list[bytes] = []
        self.header: dict[str, Any] = {}
        self.routes: dict[tuple[str, str], tuple[str, tuple[str, ...]]] = {}

    def clear_table(self) -> None:
        """Forget the routes and the end-of-RIB."""
        self.routes = {}
        self.eor = []


class Memory:
    """All neighbours of one ExaBGP process."""

    def __init__(self, routes_max: int = ROUTES_MAX) -> None:
        self.neighbors: dict[tuple[str, str], Neighbor] = {}
        self._routes_max = routes_max

    def learn(self, line: bytes) -> None:
        """Take what a line says into the memory. Lines that do not fit are the daemon's to report."""
        try:
            data = json.loads(line)
            if "neighbor" in data:
                self._learn(data, data["neighbor"], line)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return

    def forget(self) -> None:
        """Lines were lost: no table is complete any more."""
        for neighbor in self.neighbors.values():
            neighbor.complete = False

    def _learn(self, data: dict[str, Any], body: dict[str, Any], line: bytes) -> None:
        address = body["address"]
        key = (address["local"], address["peer"])
        neighbor = self.neighbors.get(key)
        if neighbor is None:
            neighbor = self.neighbors[key] = Neighbor(*key)
        counter = data["counter"]
        if counter - 1 in neighbor.counters:
            neighbor.counters.remove(counter - 1)
        neighbor.counters = [*neighbor.counters, counter][-SEQUENCES_MAX:]
        kind = data["type"]
        if kind == "update":
            self._learn_update(neighbor, data, body["message"], line)
            return
        if kind == "state":
            if body["state"] in ("connected", "down"):
                # A new connection begins with an empty table, and from here we have seen it all.
                neighbor.clear_table()
                neighbor.complete = True
                for forgotten in ("open-send", "open-receive", "negotiated"):
                    neighbor.lines.pop(forgotten, None)
                if body["state"] == "connected":
                    neighbor.lines.pop("notification", None)
        elif kind == "open":
            kind = "open-" + body["direction"]
        if kind in _REMEMBERED:
            neighbor.lines[kind] = line

    def _learn_update(
        self, neighbor: Neighbor, data: dict[str, Any], message: dict[str, Any], line: bytes
    ) -> None:
        if "eor" in message:
            neighbor.eor.append(line)
            return
        update = message["update"]
        routes = neighbor.routes
        for family, nlris in update.get("withdraw", {}).items():
            for nlri in nlris:
                routes.pop((family, nlri if isinstance(nlri, str) else nlri["nlri"]), None)
        if "announce" not in update:
            return
        neighbor.header = {name: data[name] for name in ("exabgp", "time", "pid")}
        neighbor.header["address"] = data["neighbor"]["address"]
        attributes = json.dumps(update.get("attribute", {}), separators=(",", ":"))
        seen: dict[tuple[str, str], tuple[str, ...]] = {}
        for family, by_nexthop in update["announce"].items():
            for nexthop, nlris in by_nexthop.items():
                for nlri in nlris:
                    key = (family, nlri if isinstance(nlri, str) else nlri["nlri"])
                    seen[key] = (*seen.get(key, ()), nexthop)
        for key, nexthops in seen.items():
            routes[key] = (attributes, nexthops)
        if sum(len(other.routes) for other in self.neighbors.values()) > self._routes_max:
            neighbor.clear_table()
            neighbor.complete = False

    def snapshot(self, pid: int, reason: str) -> bytes:
        """Everything we know, as lines that read like ExaBGP's."""
        out = [_line({"shim": "snapshot-begin", "pid": pid, "reason": reason})]
        for neighbor in self.neighbors.values():
            out.append(
                _line(
                    {
                        "shim": "neighbor",
                        "local": neighbor.local,
                        "peer": neighbor.peer,
                        "pid": pid,
                        "counters": neighbor.counters,
                        "complete": neighbor.complete,
                    }
                )
            )
            out += [neighbor.lines[kind] for kind in _REMEMBERED if kind in neighbor.lines]
            out += _replay(neighbor)
            out += neighbor.eor
        out.append(_line({"shim": "snapshot-end", "pid": pid}))
        return b"".join(out)


def _replay(neighbor: Neighbor) -> list[bytes]:
    """The table as few UPDATE lines: one for each set of attributes and next hops."""
    groups: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    for (family, nlri), (attributes, nexthops) in neighbor.routes.items():
        groups.setdefault((attributes, family, nexthops), []).append(nlri)
    header = dict(neighbor.header)
    address = header.pop("address", None)
    return [
        _line(
            {
                **header,
                "counter": neighbor.counters[-1],
                "type": "update",
                "neighbor": {
                    "address": address,
                    "direction": "receive",
                    "message": {
                        "update": {
                            "attribute": json.loads(attributes),
                            "announce": {family: dict.fromkeys(nexthops, nlris)},
                        }
                    },
                },
            }
        )
        for (attributes, family, nexthops), nlris in groups.items()
    ]


def _line(data: dict[str, Any]) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode() + b"\n"


class Shim:
    """The loop: ExaBGP on two pipes, the daemon on a unix socket."""

    def __init__(self, path: str, source: int = 0, sink: int = 1) -> None:
        self._path = path
        self._source = source
        self._sink = sink
        self._exabgp = os.getppid()
        self._started = time.monotonic()
        self._memory = Memory()
        self._selector = selectors.DefaultSelector()
        self._partial = bytearray()
        self._overlong = False
        self._daemon: socket.socket | None = None
        self._retry_at = 0.0
        self._spool: deque[bytes | memoryview] = deque()
        self._spooled = 0
        self._snapshot_due = ""
        self._request = bytearray()
        self._commands: deque[tuple[int, str]] = deque()
        self._in_flight: tuple[int, list[str]] | None = None
        self._to_exabgp = bytearray()
        for fd in (source, sink):
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_NONBLOCK)
        self._selector.register(source, selectors.EVENT_READ)

    def run(self) -> None:
        """Run until ExaBGP closes our input."""
        while True:
            self._connect()
            timeout = None if self._daemon else max(0.0, self._retry_at - time.monotonic())
            for key, ready in self._selector.select(timeout):
                if key.fd == self._source:
                    if not self._read_exabgp():
                        return
                elif key.fd == self._sink:
                    self._write_exabgp()
                elif self._daemon is not None:
                    if ready & selectors.EVENT_READ:
                        self._read_daemon()
                    if ready & selectors.EVENT_WRITE:
                        self._write_daemon()

    # From ExaBGP

    def _read_exabgp(self) -> bool:
        try:
            data = os.read(self._source, READ_SIZE)
        except BlockingIOError:
            return True
        if not data:
            return False
        self._partial += data
        end = self._partial.rfind(b"\n")
        if end >= 0:
            lines = bytes(self._partial[: end + 1]).splitlines(keepends=True)
            del self._partial[: end + 1]
            for line in lines:
                if self._overlong:
                    self._overlong = False
                else:
                    self._take(line)
        if len(self._partial) > LINE_MAX:
            self._partial.clear()
            self._overlong = True
            self._memory.forget()
            self._snapshot("a line from ExaBGP was too long")
        return True

    def _take(self, line: bytes) -> None:
        if line.startswith(b'{ "exabgp"'):
            self._memory.learn(line)
            self._send(line)
            return
        text = line.decode("ascii", "replace").strip()
        if self._in_flight is None:
            return
        number, lines = self._in_flight
        if text in ("done", "error"):
            self._in_flight = None
            self._send(_line({"shim": "reply", "id": number, "ok": text == "done", "lines": lines}))
            self._next_command()
        elif text:
            lines.append(text)

    # To ExaBGP

    def _next_command(self) -> None:
        if self._in_flight is None and self._commands:
            number, command = self._commands.popleft()
            self._in_flight = (number, [])
            self._to_exabgp += command.encode("ascii", "replace") + b"\n"
            self._write_exabgp()

    def _write_exabgp(self) -> None:
        try:
            while self._to_exabgp:
                del self._to_exabgp[: os.write(self._sink, self._to_exabgp)]
        except BlockingIOError:
            pass
        waiting = bool(self._to_exabgp)
        registered = self._sink in self._selector.get_map()
        if waiting and not registered:
            self._selector.register(self._sink, selectors.EVENT_WRITE)
        elif registered and not waiting:
            self._selector.unregister(self._sink)

    # To the daemon

    def _connect(self) -> None:
        if self._daemon is not None or time.monotonic() < self._retry_at:
            return
        daemon = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            daemon.connect(self._path)
        except OSError:
            daemon.close()
            self._retry_at = time.monotonic() + RECONNECT_S
            return
        self._daemon = daemon
        self._selector.register(daemon, selectors.EVENT_READ)
        self._spool.clear()
        self._spooled = 0
        age_s = time.monotonic() - self._started
        self._send(_line({"shim": "hello", "pid": self._exabgp, "shim_pid": os.getpid(), "age_s": age_s}))
        self._snapshot("connected")

    def _disconnect(self) -> None:
        assert self._daemon is not None
        self._selector.unregister(self._daemon)
        self._daemon.close()
        self._daemon = None
        self._retry_at = time.monotonic() + RECONNECT_S
        self._request.clear()
        self._commands.clear()
        self._spool.clear()
        self._spooled = 0
        self._snapshot_due = ""
        if self._in_flight is not None:
            self._in_flight = (0, [])  # its answer is still to come, and nobody's

    def _snapshot(self, reason: str) -> None:
        """Send what we know as soon as the spool is empty."""
        self._snapshot_due = reason
        self._write_daemon()

    def _send(self, line: bytes) -> None:
        if self._daemon is None:
            return
        if self._snapshot_due and not line.startswith(b'{"shim"'):
            return  # the snapshot will contain it
        self._spool.append(line)
        self._spooled += len(line)
        if self._spooled > SPOOL_MAX:
            # The first element may be half sent; replies must survive.
            kept = [one for one in list(self._spool)[1:] if bytes(one[:15]) == b'{"shim":"reply"']
            first = self._spool[0]
            self._spool = deque([first, *kept])
            self._spooled = sum(map(len, self._spool))
            self._snapshot_due = "the daemon did not read"
        if len(self._spool) == 1:
            self._write_daemon()

    def _write_daemon(self) -> None:
        if self._daemon is None:
            return
        try:
            while True:
                if not self._spool:
                    if not self._snapshot_due:
                        break
                    reason, self._snapshot_due = self._snapshot_due, ""
                    self._spool.append(self._memory.snapshot(self._exabgp, reason))
                    self._spooled = len(self._spool[0])
                sent = self._daemon.send(self._spool[0])
                self._spooled -= sent
                if sent == len(self._spool[0]):
                    self._spool.popleft()
                else:
                    self._spool[0] = memoryview(self._spool[0])[sent:]
        except BlockingIOError:
            pass
        except OSError:
            self._disconnect()
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._spool else 0)
        if self._selector.get_key(self._daemon).events != wanted:
            self._selector.modify(self._daemon, wanted)

    # From the daemon

    def _read_daemon(self) -> None:
        assert self._daemon is not None
        try:
            data = self._daemon.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._disconnect()
            return
        self._request += data
        while (end := self._request.find(b"\n")) >= 0:
            line = bytes(self._request[:end])
            del self._request[: end + 1]
            try:
                request = json.loads(line)
                self._commands.append((int(request["id"]), str(request["command"])))
            except (ValueError, KeyError, TypeError):
                self._disconnect()
                return
        if len(self._request) > LINE_MAX:
            self._disconnect()
            return
        self._next_command()


def main() -> int:
    """Run: `shim.py /path/to/routerd.sock`."""
    Shim(sys.argv[1]).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())

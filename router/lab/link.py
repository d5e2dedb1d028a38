"""The host's end of the line to the agent: run a command in the lab's machine from here."""

from __future__ import annotations

import base64
import contextlib
import json
import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NoReturn

from router.errors import LabError

Sink = Callable[[int, bytes], None]
"""Takes output as it comes: descriptor (1 or 2) and octets."""

LINE_MAX: Final = 4000
"""Octets of one message. The guest's serial line stalls for good once its terminal buffer of 4096
has overflowed."""

PIECE: Final = 1024
"""Octets of input under way; the next piece waits until the agent has taken the last one."""


def _too_late(argv: Sequence[str], timeout_s: float | None) -> NoReturn:
    raise LabError(f"{argv[0]} did not end within {timeout_s or 0:.0f} s")


def _pieces(data: bytes) -> Iterator[bytes | None]:
    for start in range(0, len(data), PIECE):
        yield data[start : start + PIECE]
    yield None


class Link:
    """One conversation with an agent, over a socket to it or to the process that holds it.

    Not for several threads. Commands run one after the other; output of one that is still running
    after an interrupt is dropped.
    """

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._buffer = b""
        self._last_id = 0

    def fileno(self) -> int:
        """Descriptor to wait on."""
        return self._line.fileno()

    def send(self, **message: object) -> None:
        """Send one message. Raises LabError where the machine is gone."""
        data = json.dumps(message).encode() + b"\n"
        if len(data) > LINE_MAX:
            raise LabError(
                f"the command line is too long for the lab's machine: {len(data)} octets, {LINE_MAX} at most"
            )
        self._write(data)

    def pass_on(self, message: Mapping[str, object]) -> None:
        """Send what an agent said to a client: of any length, for it crosses no serial line any more."""
        self._write(json.dumps(message).encode() + b"\n")

    def _write(self, data: bytes) -> None:
        try:
            self._line.sendall(data)
        except OSError as error:
            raise LabError(f"the lab's machine is gone: {error.strerror}") from error

    def receive(self, timeout_s: float | None) -> dict[str, Any] | None:
        """Return the next message, or None after `timeout_s`. Raises LabError where the line closed."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self._line], [], [], left)[0]:
                return None
            try:
                data = self._line.recv(65536)
            except OSError:
                data = b""
            if not data:
                raise LabError("the lab's machine ended unexpectedly")
            self._buffer += data
        text, _, self._buffer = self._buffer.partition(b"\n")
        message = json.loads(text)
        assert isinstance(message, dict)
        return message

    def run(
        self,
        argv: Sequence[str],
        sink: Sink,
        *,
        env: Mapping[str, str] | None = None,
        stdin: bytes | None = b"",
        timeout_s: float | None = None,
    ) -> int:
        """Run `argv` in the machine and return its exit status; `stdin` None leaves input open.

        An interrupt (KeyboardInterrupt, or any exception out of `sink`) ends the command there
        before it is passed on. Raises LabError on `timeout_s`.
        """
        self._last_id += 1
        job = self._last_id
        self.send(op="spawn", id=job, argv=list(argv), env=dict(env or {}))
        pieces = _pieces(stdin) if stdin is not None else iter(())
        self._feed(job, pieces)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            while True:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                message = self.receive(left)
                if message is None:
                    _too_late(argv, timeout_s)
                if message.get("id") != job:
                    continue
                if message["op"] == "exit":
                    return int(message["code"])
                if message["op"] == "taken":
                    self._feed(job, pieces)
                elif message["op"] == "out":
                    sink(message["fd"], base64.b64decode(message["data"]))
        except BaseException:
            with contextlib.suppress(LabError):
                self.send(op="signal", id=job, number=15)
            raise

    def _feed(self, job: int, pieces: Iterator[bytes | None]) -> None:
        """Send the next piece of a job's input, if there is one."""
        with contextlib.suppress(StopIteration):
            piece = next(pieces)
            self.send(op="stdin", id=job, data=None if piece is None else base64.b64encode(piece).decode())

    def bye(self, timeout_s: float) -> None:
        """Have the agent write all files out, so that the machine may be ended."""
        self.send(op="bye")
        deadline = time.monotonic() + timeout_s
        while (message := self.receive(max(0.0, deadline - time.monotonic()))) is not None:
            if message["op"] == "bye":
                return

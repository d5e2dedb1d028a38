"""One agent's line for several clients: each speaks the agent's own protocol on a unix socket.

Job numbers are made unique on the way. The process that started the agent goes on using its link
for jobs of its own; what they say is given to nobody here.

    python -m router.lab.switchboard SOCKET COMMAND...

is such a client: it runs one command, with its own standard streams, and ends with its status.
"""

from __future__ import annotations

import contextlib
import selectors
import signal
import socket
import sys
from pathlib import Path
from typing import Any, Final

from router.errors import LabError
from router.lab.link import Link

FIRST_JOB: Final = 1_000_000
"""Job numbers of clients; those of the link's owner are below."""


class Switchboard:
    """Connects the clients of `server` with the agent at the end of `link`."""

    def __init__(self, link: Link, server: socket.socket) -> None:
        self._link = link
        self._server = server
        self._selector = selectors.DefaultSelector()
        self._jobs: dict[int, tuple[Link | None, int]] = {}
        """Client and its own number, by our number; no client: it is gone."""
        self._last = FIRST_JOB
        self._down = False

    def serve(self) -> None:
        """Serve until a client says `down`. Raises LabError where the agent is gone."""
        self._selector.register(self._server, selectors.EVENT_READ, None)
        self._selector.register(self._link, selectors.EVENT_READ, self._link)
        while not self._down:
            for key, _ in self._selector.select():
                if key.data is None:
                    client = Link(self._server.accept()[0])
                    self._selector.register(client, selectors.EVENT_READ, client)
                elif key.data is self._link:
                    self._from_agent()
                else:
                    self._from_client(key.data)

    def _from_agent(self) -> None:
        while (message := self._link.receive(0)) is not None:
            client, number = self._jobs.get(message.get("id", 0), (None, 0))
            if client is not None:
                with contextlib.suppress(LabError):
                    client.pass_on({**message, "id": number})
            if message["op"] == "exit":
                self._jobs.pop(message["id"], None)

    def _from_client(self, client: Link) -> None:
        try:
            while (message := client.receive(0)) is not None:
                if message["op"] == "down":
                    self._down = True
                    return
                self._forward(client, message)
        except (LabError, KeyError, ValueError):
            self._selector.unregister(client)
            for number, (owner, _) in list(self._jobs.items()):
                if owner is client:  # a client that is gone ends what it started
                    self._link.send(op="signal", id=number, number=signal.SIGTERM)
                    self._jobs[number] = (None, 0)

    def _forward(self, client: Link, message: dict[str, Any]) -> None:
        if message["op"] == "spawn":
            self._last += 1
            self._jobs[self._last] = (client, message["id"])
            number = self._last
        else:
            number = next((n for n, job in self._jobs.items() if job == (client, message["id"])), 0)
        self._link.send(**{**message, "id": number})


def listen(path: Path) -> socket.socket:
    """A socket for clients, its owner's alone."""
    server = socket.socket(socket.AF_UNIX)
    path.unlink(missing_ok=True)
    server.bind(str(path))
    path.chmod(0o600)
    server.listen()
    return server


def main() -> int:
    """Run one command; see the module's docstring."""
    path, *command = sys.argv[1:]

    def sink(descriptor: int, data: bytes) -> None:
        stream = sys.stdout if descriptor == 1 else sys.stderr
        stream.buffer.write(data)
        stream.flush()

    with socket.socket(socket.AF_UNIX) as line:
        try:
            line.connect(path)
            return Link(line).run(command, sink, stdin=sys.stdin.buffer.read())
        except (LabError, OSError) as error:
            sys.stderr.write(f"{path}: {error}\n")
            return 2


if __name__ == "__main__":
    sys.exit(main())

"""Runs inside the lab's machine as process 1: starts commands there and carries their output out.

The machine is a user-mode-Linux guest (the line is its first serial port) or a set of fresh
namespaces on the host (the line is a socket). Standard library only, and started as a plain file
with `-I -S`: in the guest the interpreter's start-up is a third of a second as it is.

The line carries one JSON object per text line:

    to the agent    {"op": "spawn", "id": 1, "argv": [...], "env": {...}}
                    {"op": "stdin", "id": 1, "data": BASE64 or null for end of file}
                    {"op": "signal", "id": 1, "number": 15}
                    {"op": "bye"}
    from the agent  {"op": "hello"}
                    {"op": "taken", "id": 1}                the input arrived: send the next piece
                    {"op": "out", "id": 1, "fd": 1 or 2, "data": BASE64}
                    {"op": "exit", "id": 1, "code": 0}      128 + n where signal n ended it
                    {"op": "bye"}                           every file is written out
"""

import base64
import contextlib
import json
import os
import selectors
import signal
import sys
import tty
from typing import Any

CHUNK = 32768


class Agent:
    """One line to the host, any number of children; all in one thread."""

    def __init__(self, line: int) -> None:
        self.line = line
        self.buffer = b""
        self.selector = selectors.DefaultSelector()
        self.jobs: dict[int, int] = {}
        """Process id by job id."""
        self.stdins: dict[int, int] = {}
        self.open_outputs: dict[int, int] = {}
        """How many output pipes of a job are still open: its exit is reported after the last."""
        self.codes: dict[int, int] = {}

    def send(self, **message: object) -> None:
        """Write one message whole; blocks while the host does not read."""
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(self.line, data) :]

    def run(self) -> None:
        """Serve until `bye` or until the line closes."""
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write)
        self.selector.register(self.line, selectors.EVENT_READ, ("line", 0, 0))
        self.selector.register(wake_read, selectors.EVENT_READ, ("child", 0, 0))
        self.send(op="hello")
        while True:
            for key, _ in self.selector.select():
                kind, job, number = key.data
                if kind == "child":
                    os.read(wake_read, 512)
                    self.reap()
                elif kind == "output":
                    self.forward(key.fd, job, number)
                elif not self.receive():
                    return

    def receive(self) -> bool:
        """Take what came on the line. False when it is over."""
        data = os.read(self.line, CHUNK)
        self.buffer += data
        *lines, self.buffer = self.buffer.split(b"\n")
        for text in lines:
            message = json.loads(text)
            if message["op"] == "bye":
                os.sync()
                self.send(op="bye")
                return False
            self.handle(message)
        return bool(data)

    def handle(self, message: dict[str, Any]) -> None:
        """Carry one message out."""
        job = message["id"]
        if message["op"] == "spawn":
            self.spawn(job, message["argv"], message.get("env", {}))
        elif message["op"] == "signal" and job in self.jobs:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.jobs[job], message["number"])
        elif message["op"] == "stdin" and job in self.stdins:
            self.feed(job, message["data"])

    def feed(self, job: int, data: str | None) -> None:
        """Hand input to a job; `None` closes it."""
        descriptor = self.stdins[job]
        try:
            rest = base64.b64decode(data or "")
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        except BrokenPipeError:
            data = None
        if data is None:
            os.close(descriptor)
            del self.stdins[job]
        self.send(op="taken", id=job)

    def spawn(self, job: int, argv: list[str], env: dict[str, str]) -> None:
        """Start a job in a process group of its own, with pipes for all three streams."""
        stdin_read, stdin_write = os.pipe()
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.setsid()
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for source, target in ((stdin_read, 0), (out_write, 1), (err_write, 2)):
                    os.dup2(source, target)
                os.execvpe(argv[0], argv, {**os.environ, **env})  # noqa: S606 - no shell is the point
            except OSError as error:
                os.write(2, f"lab: {argv[0]}: {error.strerror}\n".encode())
            finally:
                os._exit(127)
        for descriptor in (stdin_read, out_write, err_write):
            os.close(descriptor)
        self.jobs[job] = child
        self.stdins[job] = stdin_write
        self.open_outputs[job] = 2
        self.selector.register(out_read, selectors.EVENT_READ, ("output", job, 1))
        self.selector.register(err_read, selectors.EVENT_READ, ("output", job, 2))

    def forward(self, descriptor: int, job: int, number: int) -> None:
        """Send on what a job wrote."""
        data = os.read(descriptor, CHUNK)
        if data:
            self.send(op="out", id=job, fd=number, data=base64.b64encode(data).decode())
            return
        self.selector.unregister(descriptor)
        os.close(descriptor)
        self.open_outputs[job] -= 1
        self.finish(job)

    def reap(self) -> None:
        """Collect ended processes: our jobs, and orphans, since we are process 1."""
        by_process = {process: job for job, process in self.jobs.items()}
        while True:
            try:
                process, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not process:
                return
            job = by_process.get(process)
            if job is not None:
                code = os.waitstatus_to_exitcode(status)
                self.codes[job] = code if code >= 0 else 128 - code
                self.finish(job)

    def finish(self, job: int) -> None:
        """Report a job's end once it has exited and its output has been sent.

        Something it left in the background may hold the pipes open; `lab up` does so on purpose,
        with its output elsewhere, so an open pipe always means output that is still wanted.
        """
        if job in self.codes and not self.open_outputs[job]:
            self.send(op="exit", id=job, code=self.codes.pop(job))
            del self.jobs[job], self.open_outputs[job]
            if job in self.stdins:
                os.close(self.stdins.pop(job))


def main() -> None:
    """Open the line that the first argument names: a device or a descriptor's number."""
    name = sys.argv[1]
    line = os.open(name, os.O_RDWR | os.O_NOCTTY) if name.startswith("/") else int(name)
    os.set_inheritable(line, False)
    if os.isatty(line):
        tty.setraw(line)
    Agent(line).run()


if __name__ == "__main__":
    main()

"""The router under test: `lastmile run` in its namespace, asked over its control socket."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from router.api.client import UnixConnection
from router.errors import LabError
from router.lab.network import Network
from router.lab.node import stop

REQUEST_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 20.0
LOG_TAIL_LINES: Final = 20


class RouterUnderTest:
    """One running router. Status is read in this process: a CLI call costs the guest two seconds."""

    def __init__(self, network: Network, directory: Path) -> None:
        self.network = network
        self.run_directory = directory / "run"
        self.state_directory = directory / "state"
        self.log = directory / "router.log"
        self.process: subprocess.Popen[bytes] | None = None
        # Its unprivileged children have to reach their own directories below.
        self.run_directory.mkdir(parents=True, mode=0o755)

    def command(self, *arguments: str) -> list[str]:
        """A `lastmile` command line."""
        return [sys.executable, "-m", "router.cli.main", *arguments]

    def start(self) -> None:
        """Start it; it is up when `status()` says so."""
        directories = ("--run-dir", str(self.run_directory), "--state-dir", str(self.state_directory))
        argv = self.command("run", str(self.network.config), *directories)
        self.process = self.network.router.start(argv, self.log)

    def stop(self) -> int:
        """End it by SIGTERM and return its exit status."""
        assert self.process is not None
        return stop(self.process, STOP_TIMEOUT_S)

    def ended(self) -> int | None:
        """Its exit status where it is not running any more."""
        return None if self.process is None else self.process.poll()

    def request(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """One request on the control socket: HTTP status and JSON. Raises OSError where nobody answers."""
        connection = UnixConnection(self.run_directory / "control.sock", REQUEST_TIMEOUT_S)
        try:
            data = None if body is None else json.dumps(body).encode()
            connection.request(method, path, data, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, json.loads(response.read() or b"null")
        except (http.client.HTTPException, json.JSONDecodeError) as error:
            raise ConnectionError(f"control socket: {error!r}") from error
        finally:
            connection.close()

    def status(self) -> dict[str, Any] | None:
        """What it says of itself, or None where it does not answer yet. Raises LabError where it ended."""
        if (code := self.ended()) is not None:
            raise LabError(f"the router ended with status {code}: {self.log_tail(3)}")
        try:
            code, answer = self.request("GET", "/v1/status")
        except OSError:
            return None
        return answer if code == http.client.OK and isinstance(answer, dict) else None

    def channels(self) -> dict[str, dict[str, Any]]:
        """Status by channel; empty where it does not answer."""
        status = self.status() or {}
        return {channel["name"]: channel for channel in status.get("channels", [])}

    def daemons(self) -> list[tuple[int, str]]:
        """Process id and command line of everything of the router that runs."""
        found = []
        own = str(self.run_directory)
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    command = (
                        (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                    )
                except OSError:
                    continue
                if own in command and not command.startswith("ip netns exec"):
                    found.append((int(entry.name), command))
        return sorted(found)

    def log_tail(self, lines: int = LOG_TAIL_LINES) -> str:
        """The end of what it wrote."""
        try:
            text = self.log.read_text(errors="replace")
        except FileNotFoundError:
            return "(it wrote nothing)"
        return "\n".join(text.strip().splitlines()[-lines:])

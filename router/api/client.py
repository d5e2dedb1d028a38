"""The CLI's side of the control socket: HTTP with JSON over RUN_DIR/control.sock.

Standard library only: `lastmile status` must be quick on a small box.
"""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any, Final

from router.errors import ControlError

TIMEOUT_S: Final = 30.0


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("lastmile", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket's path instead of a host."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def request(run_dir: Path, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
    """Send one request; return the HTTP status and the decoded answer. Raises ControlError."""
    connection = UnixConnection(run_dir / "control.sock", TIMEOUT_S)
    try:
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"Content-Type": "application/json"} if data else {})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    except PermissionError:
        raise ControlError(f"no access to the router's socket in {run_dir}: run this as root") from None
    except (FileNotFoundError, ConnectionRefusedError):
        raise ControlError(
            f"no router runs in {run_dir}; start one with `lastmile run FILE`, or name its --run-dir"
        ) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ControlError(f"the router in {run_dir} does not answer: {error}") from error
    finally:
        connection.close()


def get(run_dir: Path, path: str) -> Any:
    """GET, and raise ControlError for everything but 200."""
    status, answer = request(run_dir, "GET", path)
    if status != http.client.OK:
        raise ControlError(f"{path}: {answer.get('error', status) if isinstance(answer, dict) else status}")
    return answer

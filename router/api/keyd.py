"""The clients' side of the key daemon's socket, RUN_DIR/keyd.sock: one JSON object per line."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any, Final

from router.api.types import KeysSummary
from router.errors import ControlError

TIMEOUT_S: Final = 5.0
ANSWER_MAX: Final = 1 << 22


def _answer(line: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(line)
    except ValueError as error:
        raise ControlError(f"the key daemon does not answer: {error}") from error
    if not isinstance(answer, dict) or not answer.pop("ok", False):
        raise ControlError(str(answer.get("error", answer)) if isinstance(answer, dict) else "no answer")
    return answer


def ask(run_dir: Path, **request: object) -> dict[str, Any]:
    """Send one request and return the answer. Raises ControlError."""
    try:
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(TIMEOUT_S)
            control.connect(str(run_dir / "keyd.sock"))
            control.sendall(json.dumps(request).encode() + b"\n")
            with control.makefile("rb") as answers:
                line = answers.readline(ANSWER_MAX)
    except PermissionError:
        raise ControlError(f"no access to the key daemon's socket in {run_dir}: run this as root") from None
    except (FileNotFoundError, ConnectionRefusedError):
        raise ControlError(
            f"no key daemon runs in {run_dir}; start the router, or name its --run-dir"
        ) from None
    except OSError as error:
        raise ControlError(f"the key daemon in {run_dir} does not answer: {error}") from error
    return _answer(line)


async def ask_async(run_dir: Path, timeout_s: float = TIMEOUT_S, **request: object) -> dict[str, Any]:
    """Do the same without blocking. Raises ControlError."""
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_unix_connection(run_dir / "keyd.sock", limit=ANSWER_MAX)
            try:
                writer.write(json.dumps(request).encode() + b"\n")
                await writer.drain()
                line = await reader.readline()
            finally:
                writer.close()
    except (OSError, ValueError) as error:  # TimeoutError is an OSError
        raise ControlError(f"the key daemon does not answer: {error or 'timeout'}") from error
    return _answer(line)


def summary(shown: dict[str, Any]) -> KeysSummary:
    """Shorten what the daemon says of a channel with key agreement. Raises KeyError where it is something else."""
    principal = next((p for p in shown["participants"] if p["principal"]), None)
    current = shown["current"]
    return KeysSummary(
        port=shown["port"],
        reason=shown["reason"],
        fail_open=shown["fail_open"],
        key_server=principal["key_server"] if principal else None,
        ckn=current["ckn"] if current else None,
        peers_live=sum(peer["live"] for peer in principal["peers"]) if principal else 0,
        age_s=current["age_s"] if current else None,
        exhaustion_s=current["exhaustion_s"] if current else None,
        expiry=shown["expiry"],
        problems=shown["problems"],
    )

"""One connection to the data plane's socket: a line out, a line in. Comes back by itself."""

from __future__ import annotations

import asyncio
import errno
import json
from pathlib import Path
from typing import Any, Final

from router.errors import DataplaneError

TIMEOUT_S: Final = 10.0
LINE_MAX: Final = 1 << 20


class DataplaneClient:
    """Requests in order, one at a time. A connection that broke is made anew by the next request."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / "dataplane.sock"
        self._lock = asyncio.Lock()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def request(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send one request and return its answer. Raises DataplaneError (ENOTCONN: nobody is there)."""
        async with self._lock:
            try:
                # Not wait_for: before Python 3.12 it swallows a cancellation that comes with the answer.
                async with asyncio.timeout(TIMEOUT_S):
                    answer = await self._exchange(request)
            except (OSError, TimeoutError, ValueError) as error:
                self._drop()
                reason = str(error) or type(error).__name__
                # Not from: the frames of a cause may show the request, and that the key.
                raise DataplaneError(f"the data plane does not answer: {reason}", errno.ENOTCONN) from None
        if not answer.pop("ok"):
            raise DataplaneError(str(answer["error"]), int(answer.get("errno", 0)))
        return answer

    async def close(self) -> None:
        """Close the connection."""
        self._drop()

    async def _exchange(self, request: dict[str, Any]) -> dict[str, Any]:
        line = json.dumps(request).encode() + b"\n"
        fresh = self._streams is None
        try:
            return await self._try(line)
        except (ConnectionError, ValueError):
            if fresh:
                raise
            self._drop()  # it was restarted since we last spoke; every request may be repeated
            return await self._try(line)

    async def _try(self, line: bytes) -> dict[str, Any]:
        if self._streams is None:
            self._streams = await asyncio.open_unix_connection(self._path, limit=LINE_MAX)
        reader, writer = self._streams
        writer.write(line)
        await writer.drain()
        answer = await reader.readline()
        if not answer.endswith(b"\n"):
            raise ConnectionResetError(errno.ECONNRESET, "connection closed")
        result: dict[str, Any] = json.loads(answer)
        return result

    def _drop(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None

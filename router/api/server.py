"""The control socket: HTTP and JSON on RUN_DIR/control.sock, mode 0660.

GET  /v1/status                    types.Status
GET  /v1/routes?prefix=&limit=     types.Routes
GET  /v1/config                    {"path", "text"} as accepted
POST /v1/reload  {"path"?}         types.CheckResult; 409 and nothing changed where refused
POST /v1/shutdown {"release"}      {}; withdraws our routes from the peers, then ends routerd
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from aiohttp import web

from router.api.types import CheckResult, Routes, Status
from router.errors import LastmileError


class Router(Protocol):
    """What the daemon offers to the socket."""

    async def status(self) -> Status:
        """Collect everything that `lastmile status` shows."""

    def routes(self, *, prefix: str | None, limit: int) -> Routes:
        """Return the Loc-RIB, or the one prefix. Raises ConfigError for a prefix that is none."""

    def config(self) -> dict[str, str]:
        """Return the accepted configuration."""

    async def reload(self, path: Path | None) -> CheckResult:
        """Load the configuration again and change over to it, or refuse it whole."""

    async def shut_down(self, *, release: bool) -> None:
        """Withdraw, remove what we made if asked, and end."""


def _json(data: Any, status: int = 200) -> web.Response:
    return web.Response(text=json.dumps(data), status=status, content_type="application/json")


@web.middleware
async def _errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except LastmileError as error:
        return _json({"error": str(error)}, 400)
    except web.HTTPException as error:
        return _json({"error": error.reason}, error.status)


def application(router: Router) -> web.Application:
    """Make the routes."""

    async def status(_: web.Request) -> web.Response:
        return _json(asdict(await router.status()))

    async def routes(request: web.Request) -> web.Response:
        limit = request.query.get("limit", "1000")
        if not limit.isdecimal():
            raise web.HTTPBadRequest(reason="limit must be a number")
        return _json(asdict(router.routes(prefix=request.query.get("prefix"), limit=int(limit))))

    async def config(_: web.Request) -> web.Response:
        return _json(router.config())

    async def reload(request: web.Request) -> web.Response:
        body = await request.json() if request.can_read_body else {}
        path = body.get("path")
        result = await router.reload(Path(path) if path else None)
        return _json(asdict(result), 200 if result.ok else 409)

    async def shutdown(request: web.Request) -> web.Response:
        body = await request.json() if request.can_read_body else {}
        await router.shut_down(release=bool(body.get("release")))
        return _json({})

    app = web.Application(middlewares=[_errors])
    app.add_routes(
        [
            web.get("/v1/status", status),
            web.get("/v1/routes", routes),
            web.get("/v1/config", config),
            web.post("/v1/reload", reload),
            web.post("/v1/shutdown", shutdown),
        ]
    )
    return app


async def serve(router: Router, path: Path) -> web.AppRunner:
    """Listen on `path`; the caller cleans the runner up."""
    runner = web.AppRunner(application(router), access_log=None)
    await runner.setup()
    path.unlink(missing_ok=True)
    await web.UnixSite(runner, str(path)).start()
    path.chmod(0o660)
    return runner

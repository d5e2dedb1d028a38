"""Logging of the processes: events, not sentences; to standard error; pretty on a terminal, else JSON."""

from __future__ import annotations

import os
import sys
from typing import cast

if "rich" not in sys.modules:
    # structlog imports rich for coloured tracebacks: 8 MB and a tenth of a second for each daemon.
    sys.modules["rich"] = None  # type: ignore[assignment]
    import structlog

    del sys.modules["rich"]
else:
    import structlog


def configure(process: str) -> structlog.stdlib.BoundLogger:
    """Set structlog up for this process and return its logger. LASTMILE_LOG=json|pretty overrides."""
    pretty = os.environ.get("LASTMILE_LOG", "pretty" if sys.stderr.isatty() else "json") == "pretty"
    renderer = (
        structlog.dev.ConsoleRenderer(pad_event_to=0) if pretty else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    return cast("structlog.stdlib.BoundLogger", structlog.get_logger().bind(process=process))

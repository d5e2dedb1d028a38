"""What the figures were made on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

_FEATURES: Final = ("aes", "pclmulqdq", "avx2", "avx512f", "vaes", "vpclmulqdq")


def cores() -> int:
    """CPUs that we may run on."""
    return len(os.sched_getaffinity(0))


def describe() -> dict[str, Any]:
    """CPU, cores, kernel, and how busy it was when we began: a busy machine's figures are low."""
    lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    return {
        "cpu": fields.get("model name", os.uname().machine),
        "family": fields.get("cpu family", ""),
        "features": [name for name in _FEATURES if name in flags],
        "cores": cores(),
        "kernel": ".".join(os.uname().release.split(".")[:2]),
        "load_1min": round(os.getloadavg()[0], 2),
    }

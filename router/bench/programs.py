"""The C program that measures: found or built in csrc/build, run, and read line by line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import router
from router.errors import BenchError

ROUNDS: Final = "bench_rounds"
CSRC: Final = Path(router.__file__).resolve().parents[1] / "csrc"
BUILD_TIMEOUT_S: Final = 600.0
RUN_TIMEOUT_S: Final = 300.0


def build(csrc: Path = CSRC) -> Path:
    """Bring the program up to date and return it. Raises BenchError.

    Without make or a compiler, one that was built before is taken as it is.
    """
    program = csrc / "build" / "opt" / ROUNDS
    if not (csrc / "Makefile").exists():
        raise BenchError(f"{csrc} is not there: the C program is built from a checkout, not from a wheel")
    if not shutil.which("make") or not shutil.which("cc"):
        if os.access(program, os.X_OK):
            return program
        raise BenchError(
            "no C compiler to build the measuring program; apt-get install build-essential libssl-dev"
        )
    try:
        done = subprocess.run(
            ["make", "-C", str(csrc), f"-j{os.cpu_count() or 1}", "bench"],
            capture_output=True,
            text=True,
            timeout=BUILD_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"make -C {csrc} bench did not end in {BUILD_TIMEOUT_S:.0f} s") from error
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line.lower()]
        why = (errors or done.stderr.splitlines() or [f"exit {done.returncode}"])[0]
        raise BenchError(f"make -C {csrc} bench failed: {why}")
    return program


def run(program: Path, *options: str) -> list[dict[str, Any]]:
    """Run one to its end and return the objects it printed. Raises BenchError."""
    try:
        done = subprocess.run(
            [str(program), *options], capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False
        )
    except OSError as error:
        raise BenchError(f"{program}: {error.strerror}; make -C csrc bench builds it") from error
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{program.name} did not end in {RUN_TIMEOUT_S:.0f} s") from error
    if done.returncode:
        raise BenchError(f"{program.name}: {_last(done.stderr.splitlines()) or f'exit {done.returncode}'}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def _last(lines: Sequence[str]) -> str:
    return lines[-1] if lines else ""

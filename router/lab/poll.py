"""Waiting: for a state, with a deadline. Nothing in the lab sleeps and hopes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

from router.errors import LabError

INTERVAL_S: Final = 0.05

T = TypeVar("T")


def until(
    probe: Callable[[], T], timeout_s: float, message: Callable[[], str], interval_s: float = INTERVAL_S
) -> T:
    """Return the first true answer of `probe`. Raises LabError(message()) after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = probe()
        if answer:
            return answer
        if time.monotonic() >= deadline:
            raise LabError(message())
        time.sleep(interval_s)


def reached(probe: Callable[[], object], timeout_s: float, interval_s: float = INTERVAL_S) -> float | None:
    """Return the seconds until `probe` was true, or None where it was not within `timeout_s`."""
    start = time.monotonic()
    while not probe():
        if time.monotonic() - start >= timeout_s:
            return None
        time.sleep(interval_s)
    return time.monotonic() - start

"""A clock for spans: it never goes back and, where the system has one, also counts the time the machine was suspended."""

from __future__ import annotations

import time


def awake_seconds() -> float:
    """Return seconds since some moment in the past."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()

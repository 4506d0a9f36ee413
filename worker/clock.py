"""The clocks, and the random numbers: only this module reads and draws them; everything else gets them passed in.

`awake_seconds` is a monotonic clock that, where the system has one, also counts the time the machine was suspended.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime


def awake_seconds() -> float:
    """Return seconds since an arbitrary moment in the past."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def utc_now() -> datetime:
    """Return the present moment."""
    return datetime.now(UTC)  # noqa: TID251 - the one place that reads the clock


def chance() -> float:
    """Return a random number in [0, 1)."""
    return random.random()  # noqa: TID251, S311 - the one place that draws; jitter is no secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Time, sleeping and random numbers. Tests and simulations pass another one to make a run repeatable."""

    now: Callable[[], datetime] = utc_now
    #: Seconds of a clock that never goes back and also counts time in which the machine was suspended; for spans.
    awake_seconds: Callable[[], float] = awake_seconds
    sleep: Callable[[float], None] = time.sleep
    chance: Callable[[], float] = chance


def new_id(prefix: str) -> str:
    """Return a new id such as `ev_019ab3...`, sortable by time: 12 hexadecimal digits of time and 16 random ones."""
    milliseconds = time.time_ns() // 1_000_000
    return f"{prefix}_{milliseconds:012x}{secrets.token_hex(8)}"

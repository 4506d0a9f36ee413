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
from typing import Final

#: Two clocks that drift apart by less between two looks are both right.
DRIFT_SECONDS: Final = 1.0


def awake_seconds() -> float:
    """Return seconds since an arbitrary moment in the past."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class Steadiness:
    """For how long the clock on the wall has kept step with this one: people and time servers may set it at any moment."""

    def __init__(self, now: Callable[[], datetime], awake: Callable[[], float] = awake_seconds) -> None:
        self._now = now
        self._awake = awake
        self._apart_seconds = now().timestamp() - awake()
        self._since_seconds = awake()

    def seconds(self) -> float:
        """Return for how long, as far as is known here; to be asked often, since a change is seen only then."""
        seconds = self._awake()
        apart_seconds = self._now().timestamp() - seconds
        if abs(apart_seconds - self._apart_seconds) > DRIFT_SECONDS:
            self._since_seconds = seconds
        self._apart_seconds = apart_seconds
        return seconds - self._since_seconds


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

"""A monotonic clock that, where the system has one, also counts the time the machine was suspended."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
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

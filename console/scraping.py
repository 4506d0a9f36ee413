"""How often something costly is read for those who watch, and how long they wait for it.

One reading at a time, in a thread of its own, shared by all who ask meanwhile; its result is good for a while that grows
with what it cost, so that watching never takes more than a twentieth of a processor. Who asks waits for a bounded time,
whatever the reading meets.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

T = TypeVar("T")

#: How long a result is good for at the least.
FRESH_SECONDS: Final = 2.0
#: A result is good for this many times what reading it took.
REST: Final = 20.0
#: And this long at the most.
LONGEST_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Read(Generic[T]):
    """A result, how long reading it took, and when it was complete by a clock that never goes back."""

    value: T
    took_seconds: float
    done_seconds: float

    def is_fresh(self) -> bool:
        """Say whether it may still be shown."""
        return time.monotonic() - self.done_seconds < min(max(FRESH_SECONDS, REST * self.took_seconds), LONGEST_SECONDS)


class Readings(Generic[T]):
    """Readings of one thing."""

    def __init__(self, name: str, read: Callable[[], T]) -> None:
        self._name = name
        self._read = read
        self._lock = threading.Lock()
        self._last: Read[T] | None = None
        self._under_way: Future[Read[T]] | None = None

    def get(self, patience_seconds: float) -> Read[T]:
        """Return a result that is fresh. Raises TimeoutError when it does not come in time, and whatever reading raised."""
        with self._lock:
            if self._last is not None and self._last.is_fresh():
                return self._last
            future = self._under_way
            if future is None:
                future = self._under_way = Future()
                threading.Thread(target=self._run, args=(future,), name=f"read-{self._name}", daemon=True).start()
        return future.result(patience_seconds)

    def _run(self, future: Future[Read[T]]) -> None:
        began_seconds = time.monotonic()
        try:
            value = self._read()
        except BaseException as error:  # noqa: BLE001 - whoever waits is told, and the next one to ask tries again
            with self._lock:
                self._under_way = None
            future.set_exception(error)
            return
        done_seconds = time.monotonic()
        read = Read(value, done_seconds - began_seconds, done_seconds)
        with self._lock:
            self._last = read
            self._under_way = None
        future.set_result(read)

"""In which order the writers of several processes take their turn at one SQLite file.

SQLite lets one write at a time, and whoever finds it busy sleeps and looks again, up to 100 ms, without a queue: with two
busy processes most of the time goes by in such sleeps, and one of them can starve. A lock of the system on a file beside
the ledger wakes the next writer at once, in the order of asking, and is free the moment its holder dies. SQLite's own lock
stays what protects the data.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Turnstile:
    """One process's place in the queue; for the one thread that writes."""

    def __init__(self, ledger_file: Path) -> None:
        self._descriptor = os.open(f"{ledger_file}-turn", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for the turn and hold it."""
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        """Leave the queue."""
        os.close(self._descriptor)

"""Counts of webhook requests, which reach the ledger in sums once a second.

A stranger can post as often as the machine allows, so a refused request writes nothing; a second of counting is lost when the
process is killed.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from rules.vocabulary import LedgerError
from worker.ledger.inbox import LedgerInbox

log = logging.getLogger(__name__)

PERIOD_SECONDS: Final = 1.0
#: What stands for every source that is not configured: anybody can post to any number of names.
UNKNOWN: Final = "(unknown)"

#: How many requests by (source, outcome, reason).
Requests = Mapping[tuple[str, str, str], int]


class RequestCounts:
    """What one process has counted and not written yet, and from `start` to `close` the thread that writes it."""

    def __init__(self, inbox: LedgerInbox, *, period_seconds: float = PERIOD_SECONDS) -> None:
        self._inbox = inbox
        self._period_seconds = period_seconds
        self._unwritten: Counter[tuple[str, str, str]] = Counter()
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="request-counts", daemon=True)

    def add(self, source: str, outcome: str, reason: str) -> None:
        """Count one request; may be called from any thread."""
        with self._lock:
            self._unwritten[source, str(outcome), reason] += 1

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def close(self) -> None:
        """Write what has not been written yet, and end."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def write(self) -> None:
        """Add what was counted since the last time to the ledger; when that cannot be done now, it is part of the next time."""
        with self._writing:
            with self._lock:
                new, self._unwritten = self._unwritten, Counter()
            if not new:
                return
            try:
                self._inbox.count_requests(new)
            except LedgerError as error:
                log.debug("requests are counted in the ledger later: %s", error)
                with self._lock:
                    self._unwritten.update(new)

    @contextmanager
    def paused(self) -> Iterator[Requests]:
        """Write nothing for a while, and give what is not in the ledger: busy answers matter most while it takes nothing."""
        with self._writing:
            with self._lock:
                unwritten = dict(self._unwritten)
            yield unwritten

    def _run(self) -> None:
        while not self._closing.wait(self._period_seconds):
            self.write()
        self.write()

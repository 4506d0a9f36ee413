"""Counts of webhook requests, summed in memory and written to the ledger once a second.

Anybody can post, as fast as the machine allows, so a refused request causes no write. A killed process loses one second of
counts.
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
from worker.runtime import PeriodicThread

log = logging.getLogger(__name__)

PERIOD_SECONDS: Final = 1.0
#: What stands for every source that is not configured: anybody can post to any number of names.
UNKNOWN: Final = "(unknown)"

#: How many requests by (source, outcome, reason).
Requests = Mapping[tuple[str, str, str], int]


class RequestCounts:
    """The counts of one process not yet written, and, between `start` and `close`, the thread that writes them."""

    def __init__(self, inbox: LedgerInbox, *, period_seconds: float = PERIOD_SECONDS) -> None:
        self._inbox = inbox
        self._period_seconds = period_seconds
        self._unwritten: Counter[tuple[str, str, str]] = Counter()
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._thread = PeriodicThread("request-counts", self._write_round, period_seconds=period_seconds)

    def add(self, source: str, outcome: str, reason: str) -> None:
        """Count one request. Safe to call from any thread."""
        with self._lock:
            self._unwritten[source, str(outcome), reason] += 1

    def start(self) -> None:
        """Start the writing thread."""
        self._thread.start()

    def close(self) -> None:
        """Write the remaining counts and stop the thread."""
        self._thread.stop(10)
        self.write()

    def write(self) -> None:
        """Add the counts since the last call to the ledger; when that fails they are kept for the next call."""
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
        """Pause writing within the block and yield the counts not yet in the ledger, so that a scrape also sees busy answers."""
        with self._writing:
            with self._lock:
                unwritten = dict(self._unwritten)
            yield unwritten

    def _write_round(self) -> float:
        self.write()
        return self._period_seconds

"""How counts of webhook requests reach the ledger: what was added since the last time, once a second.

A stranger can post as often as the machine allows, so a refused request writes nothing; a second of counting is lost when the
process is killed. Sources that nobody configured count under one name. What could not be written yet can be shown beside
the ledger's numbers: busy answers are most worth knowing about while the ledger takes nothing.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Final, Protocol

from rules.vocabulary import LedgerError

log = logging.getLogger(__name__)

PERIOD_SECONDS: Final = 1.0
#: What stands for every source that is not configured.
UNKNOWN: Final = "(unknown)"

Requests = Mapping[tuple[str, str, str], int]


class RequestCounter:
    """How often requests to each source came to each outcome, and why; one per process, for any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counter: Counter[tuple[str, str, str]] = Counter()

    def add(self, source: str, outcome: str, reason: str) -> None:
        """Count one request."""
        with self._lock:
            self._counter[source, str(outcome), reason] += 1

    def all(self) -> dict[tuple[str, str, str], int]:
        """Return the counts by (source, outcome, reason)."""
        with self._lock:
            return dict(self._counter)


class RequestLedger(Protocol):
    """What is needed of the ledger's inbox."""

    def count_requests(self, requests: Requests) -> None:
        """Add so many requests by source, outcome and reason."""


class RequestCounts:
    """The thread that carries a process's counts into the ledger until `close`."""

    def __init__(
        self,
        counts: Callable[[], Requests],
        inbox: RequestLedger,
        sources: Collection[str],
        *,
        period_seconds: float = PERIOD_SECONDS,
    ) -> None:
        """Take what returns the process's counts so far by (source, outcome, reason), which only ever grow."""
        self._counts = counts
        self._inbox = inbox
        self._sources = frozenset(sources)
        self._period_seconds = period_seconds
        self._written: Counter[tuple[str, str, str]] = Counter()
        self._writing = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="request-counts", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """Write what has not been written yet, and end."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._closing.wait(self._period_seconds):
            self.once()
        self.once()

    def once(self) -> None:
        """Write what was counted since the last time; a ledger that cannot be written now gets it next time."""
        with self._writing:
            counts = self._counts()
            new = self._since(counts)
            if not new:
                return
            try:
                self._inbox.count_requests(new)
            except LedgerError as error:
                log.debug("requests are counted in the ledger later: %s", error)
                return
            self._written = Counter(counts)

    @contextmanager
    def standing_still(self) -> Iterator[Requests]:
        """Write nothing for a while; give what is not in the ledger until then."""
        with self._writing:
            yield self._since(self._counts())

    def _since(self, counts: Requests) -> Counter[tuple[str, str, str]]:
        new: Counter[tuple[str, str, str]] = Counter()
        for (source, outcome, reason), number in counts.items():
            added = number - self._written[source, outcome, reason]
            if added:
                new[source if source in self._sources else UNKNOWN, outcome, reason] += added
        return new

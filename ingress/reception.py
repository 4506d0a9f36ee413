"""What becomes of a webhook, through whichever door it came: its source is found, `accept.py` does the rest, all is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime
from threading import Lock
from typing import Final

from ingress.accept import BODY_LIMIT_BYTES, Recording, Reply, begin, busy, no_such_source, oversized
from ingress.request_counts import UNKNOWN
from ingress.sources import Source, WebhookRequest

#: Statuses that have no body (RFC 9110 15.3.5 and 15.3.6).
_RESET: Final = 205
_WITHOUT_BODY: Final = frozenset({204, _RESET})
#: With every answer.
GUARDS: Final = (("X-Content-Type-Options", "nosniff"), ("Cache-Control", "no-store"))

#: The sources in force, or None while there are none: webhooks then are asked to come again.
Sources = Mapping[str, Source] | None


class Counts:
    """How often each source came to each outcome, and why; one per process."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._counter: Counter[tuple[str, str, str]] = Counter()

    def add(self, source: str, reply: Reply) -> None:
        """Count one request."""
        with self._lock:
            self._counter[source, str(reply.outcome), reply.reason] += 1

    def all(self) -> dict[tuple[str, str, str], int]:
        """Return the counts by (source, outcome, reason)."""
        with self._lock:
            return dict(self._counter)


class Reception:
    """Takes webhooks for the sources in force."""

    def __init__(
        self,
        sources: Sources | Callable[[], Sources],
        now: Callable[[], datetime],
        new_id: Callable[[], str],
        body_limit_bytes: int = BODY_LIMIT_BYTES,
    ) -> None:
        """Take the sources, or what returns them and is asked at every request; the limit holds where a source has none."""
        self.in_force: Callable[[], Sources] = sources if callable(sources) else lambda: sources
        self.counts = Counts()
        self._now = now
        self._new_id = new_id
        self._body_limit_bytes = body_limit_bytes

    def begin(self, name: str, read: Callable[[int], WebhookRequest | None]) -> tuple[str, Reply | Recording]:
        """Return under which name a webhook counts, and what its sender is told or what has to be recorded first.

        `read` returns the request, or None when its body is larger than it is given. It never waits for the ledger.
        """
        known = self.in_force()
        if known is None:
            return UNKNOWN, busy(None, "no_sources")
        source = known.get(name)
        if source is None:
            return UNKNOWN, no_such_source()  # never the posted name: anybody can post any number
        limit_bytes = source.body_limit_bytes or self._body_limit_bytes
        received = read(limit_bytes)
        if received is None:
            return name, oversized(limit_bytes)
        return name, begin(received, source, self._now(), self._new_id, body_limit_bytes=limit_bytes)

    def answer(self, name: str, reply: Reply) -> tuple[int, list[tuple[str, str]], bytes]:
        """Count what a sender is told, and return its status, headers and body."""
        self.counts.add(name, reply)
        if reply.status in _WITHOUT_BODY:
            return reply.status, [*GUARDS, *([("Content-Length", "0")] if reply.status == _RESET else [])], b""
        return reply.status, guarded_headers(reply.headers, reply.body), reply.body

    def read_limit_bytes(self) -> int:
        """Return the largest body that any source takes."""
        sources = self.in_force() or {}
        return max([self._body_limit_bytes, *(source.body_limit_bytes or 0 for source in sources.values())])


def guarded_headers(headers: Mapping[str, str], body: bytes) -> list[tuple[str, str]]:
    """Return the headers of an answer that does not go through Flask, with those that every answer has."""
    given = [(name.title(), value) for name, value in headers.items()]
    return [*given, *GUARDS, ("Content-Length", str(len(body)))]

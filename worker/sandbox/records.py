"""What the sandbox remembers of requests: when each came, what it got, and why it was refused; the oldest are forgotten."""

from __future__ import annotations

from collections import deque
from datetime import datetime
from typing import Final

from rules.vocabulary import Json
from worker.sandbox.calls import Call, Said, stamp

REQUEST_LIMIT: Final = 50_000
REFUSED_LIMIT: Final = 5_000


class Records:
    """The log of requests. Bodies are not kept: what was accepted is in the tasks."""

    def __init__(self) -> None:
        self._requests: deque[dict[str, Json]] = deque(maxlen=REQUEST_LIMIT)
        self._refused: deque[dict[str, Json]] = deque(maxlen=REFUSED_LIMIT)
        self._count = 0
        self._refused_count = 0

    def note(self, provider: str, call: Call, said: Said | None, fault: str | None, arrived_at: datetime) -> None:
        """Remember a request; `said` is None for one that was not executed and got no answer."""
        self._count += 1
        title = call.document.get("title") if isinstance(call.document, dict) else None
        entry: dict[str, Json] = {
            "number": self._count,
            "arrived_at": stamp(arrived_at),
            "provider": provider,
            "method": call.method,
            "path": call.path,
            "title": title if isinstance(title, str) else None,
            "status": said.status if said else None,
            "task": said.task if said else None,
            "why": said.why if said else None,
            "fault": fault,
        }
        self._requests.append(entry)
        if said is not None and said.why is not None:
            self._refused_count += 1
            self._refused.append(entry)

    def as_json(self, limit: int) -> dict[str, Json]:
        """Return the newest requests and refusals, oldest first, and how many there were in all."""
        return {
            "requests": list(self._requests)[-limit:],
            "refused": list(self._refused)[-limit:],
            "counts": {"requests": self._count, "refused": self._refused_count},
        }

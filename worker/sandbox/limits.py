"""How many requests a provider of the sandbox takes before it answers 429, and what it says then."""

from __future__ import annotations

import math
from collections import deque
from datetime import datetime, timedelta

from worker.sandbox.switches import Switches


class RateLimit:
    """Counts requests in a sliding window; the switches say how many and how long."""

    def __init__(self, provider: str, switches: Switches) -> None:
        self._provider = provider
        self._switches = switches
        self._taken: deque[datetime] = deque()

    def refuse(self, now: datetime) -> dict[str, str] | None:
        """Count a request; return the headers of the 429 when it is one too many, else None."""
        limit = int(self._switches.number(f"{self._provider}.rate_limit"))
        if limit == 0:
            return None
        window = timedelta(seconds=self._switches.number(f"{self._provider}.rate_window_seconds"))
        while self._taken and self._taken[0] <= now - window:
            self._taken.popleft()
        if len(self._taken) < limit:
            self._taken.append(now)
            return None
        if self._switches.on(f"{self._provider}.retry_after", "none"):
            return {}
        wait = self._taken[0] + window - now
        return {"Retry-After": str(max(1, math.ceil(wait.total_seconds())))}

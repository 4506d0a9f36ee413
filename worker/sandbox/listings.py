"""How a listing of tasks misbehaves when the switches say so, the same for both providers: late, broken, or empty."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from rules.vocabulary import Json
from worker.sandbox.calls import Said
from worker.sandbox.switches import Switches


class Listing:
    """What the switches make of one provider's listing."""

    def __init__(self, provider: str, switches: Switches) -> None:
        self._provider = provider
        self._switches = switches

    def spoiled(self) -> Said | None:
        """Return what is answered instead of the listing; None when it is answered at all."""
        match self._switches[f"{self._provider}.listing"]:
            case "status_500":
                return Said(status=500, body={"message": "the listing is broken"}, why="the listing is broken")
            case "garbage":
                return Said(status=200, body='{"data": [{"')
            case "silent":
                return Said(status=200, silent=True)
        return None

    def shown(self, tasks: Iterable[dict[str, Json]], now: datetime) -> list[dict[str, Json]]:
        """Return the tasks that are listed by now."""
        if self._switches.on(f"{self._provider}.listing", "empty"):
            return []
        delay = timedelta(seconds=self._switches.number(f"{self._provider}.listing_delay_seconds"))
        if not delay:
            return list(tasks)
        return [task for task in tasks if datetime.fromisoformat(task["created_at"]) + delay <= now]

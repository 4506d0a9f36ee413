"""What the sandboxes of both providers share: tasks in memory, a rate limit, listings with faults."""

from __future__ import annotations

import json
import math
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar, Final

from rules.vocabulary import Json
from worker.sandbox.faults import SandboxResponse
from worker.sandbox.switches import Switches

#: More tasks than these push out the oldest.
TASK_LIMIT: Final = 50_000

_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class FieldError:
    """One error in a request's body: field, message, HTTP status and code of the answer."""

    field: str
    message: str
    status: int
    code: str = "VALIDATION_ERROR"


class ProviderSandbox:
    """A provider's tasks and behaviour switches. Not thread-safe: the sandbox holds its lock."""

    name: ClassVar[str]

    def __init__(self, switches: Switches) -> None:
        self._switches = switches
        self._tasks: dict[str, dict[str, Json]] = {}
        self._by_body: dict[str, str] = {}
        self._taken: deque[datetime] = deque()

    def _over_limit(self, now: datetime) -> dict[str, str] | None:
        """Count a request in the sliding window; return the headers of the 429 when it is one too many, else None."""
        limit = int(self._switches.number(f"{self.name}.rate_limit"))
        if limit == 0:
            return None
        window = timedelta(seconds=self._switches.number(f"{self.name}.rate_window_seconds"))
        while self._taken and self._taken[0] <= now - window:
            self._taken.popleft()
        if len(self._taken) < limit:
            self._taken.append(now)
            return None
        if self._switches.on(f"{self.name}.retry_after", "none"):
            return {}
        wait = self._taken[0] + window - now
        return {"Retry-After": str(max(1, math.ceil(wait.total_seconds())))}

    def _spoiled_listing(self) -> SandboxResponse | None:
        """Return what is answered instead of a listing; None when it is answered at all."""
        match self._switches[f"{self.name}.listing"]:
            case "status_500":
                why = "the listing is broken"
                return SandboxResponse(status=500, body={"message": why}, why=why)
            case "garbage":
                return SandboxResponse(status=200, body='{"data": [{"')
            case "silent":
                return SandboxResponse(status=200, silent=True)
        return None

    def _listed(self, now: datetime) -> list[dict[str, Json]]:
        """Return the tasks that a listing shows by now."""
        if self._switches.on(f"{self.name}.listing", "empty"):
            return []
        delay = timedelta(seconds=self._switches.number(f"{self.name}.listing_delay_seconds"))
        tasks = list(self._tasks.values())
        return [task for task in tasks if datetime.fromisoformat(task["created_at"]) + delay <= now] if delay else tasks

    def _made_before(self, body: Mapping[str, Json]) -> dict[str, Json] | None:
        """Return the task of the same body, where the switch says that a body makes one task only."""
        if not self._switches.on(f"{self.name}.same_body_twice", "same_task"):
            return None
        return self._tasks.get(self._by_body.get(json.dumps(body, sort_keys=True), ""))

    def _hold(self, identifier: str, task: dict[str, Json], body: Mapping[str, Json]) -> None:
        self._tasks[identifier] = task
        self._by_body[json.dumps(body, sort_keys=True)] = identifier
        forget_oldest(self._tasks)
        forget_oldest(self._by_body)


def forget_oldest(held: dict[str, Any]) -> None:
    """Remove the oldest entries, to bound memory."""
    while len(held) > TASK_LIMIT:
        del held[next(iter(held))]


def is_uuid(value: Json) -> bool:
    """Say whether a value is a UUID in its usual spelling."""
    return isinstance(value, str) and _UUID.fullmatch(value) is not None

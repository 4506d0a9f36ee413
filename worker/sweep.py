"""What time, a lost message or a dead process left behind: found in the ledger and set going again.

Runs inside every worker; several at once are harmless, because each thing it finds is taken by compare-and-set. While the
broker cannot be reached, or enough messages wait there, it leaves the ledger as it is.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from typing import Final

from rules.vocabulary import LedgerError, ProviderName
from worker.broker import EVENTS_QUEUE, QUEUE_OF, QueueDepths
from worker.context import WorkerContext
from worker.publisher import DEPTH_LIMIT

log = logging.getLogger(__name__)

#: Due work starts within a second of its moment, where a thread and a place in its queue are free.
PERIOD_SECONDS: Final = 0.5
#: The next round after one that sent as much as there was room for: what is left need not wait for a period.
NEXT_SECONDS: Final = 0.1
#: Of a provider that holds all its slots, or has as many requests as it may have at once, so many tasks are dispatched in a
#: round all the same: else newcomers, which are dispatched or claimed when they are planned, would take every place that comes
#: free, and the oldest would wait for ever.
AT_FULL: Final = 2
#: Events found at once; they travel a hundred to a message.
EVENTS_LIMIT: Final = 1000
#: How long a message is given before it counts as lost: short when its queue is empty, long while others stand before it.
GRACE_EMPTY: Final = timedelta(seconds=5)
GRACE_WAITING: Final = timedelta(seconds=30)
#: How often expired leases are looked for.
LEASES_SECONDS: Final = 5.0


class Sweeper:
    """The sweeping thread of one worker process."""

    def __init__(self, context: WorkerContext, depths: QueueDepths) -> None:
        self._context = context
        self._depths = depths
        self._stopping = threading.Event()
        self._leases_seconds = 0.0
        self._thread = threading.Thread(target=self._run, name="sweep", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the round under way."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=15)

    def _run(self) -> None:
        more = False
        while not self._stopping.wait(NEXT_SECONDS if more else PERIOD_SECONDS):
            try:
                more = self._go_on() if more else self.once()
            except LedgerError as error:
                log.warning("the sweep cannot use the ledger now: %s", error)
                more = False
            except Exception:
                log.exception("a round of the sweep failed; the next one tries again")
                more = False
        self._depths.close()

    def once(self) -> bool:
        """Do one round; return whether it left tasks behind for want of room alone."""
        clock = self._context.clock
        now = clock.now()
        if clock.awake_seconds() - self._leases_seconds >= LEASES_SECONDS:
            self._leases_seconds = clock.awake_seconds()
            for task_id in self._context.ledger.tasks.expire_leases(now):
                log.warning(
                    "task %s: its lease ended without an outcome; it is unknown whether it was executed", task_id
                )
        depths = self._depths.read()
        if depths is None:
            return False
        more = self._tasks(depths)
        if depths[EVENTS_QUEUE] < DEPTH_LIMIT:
            grace = GRACE_WAITING if depths[EVENTS_QUEUE] else GRACE_EMPTY
            self._context.publisher.events(self._context.ledger.inbox.dispatch_overdue(now, grace, EVENTS_LIMIT))
        return more

    def _go_on(self) -> bool:
        """Dispatch what the last round left behind; return what `once` does."""
        depths = self._depths.read()
        return depths is not None and self._tasks(depths)

    def _tasks(self, depths: Mapping[str, int]) -> bool:
        room = {name: max(0, min(self._share(name), DEPTH_LIMIT - depths[queue])) for name, queue in QUEUE_OF.items()}
        idle = {name: limit for name, limit in room.items() if limit and not depths[QUEUE_OF[name]]}
        busy = {name: limit for name, limit in room.items() if limit and name not in idle}
        more = False
        for limits, grace in ((idle, GRACE_EMPTY), (busy, GRACE_WAITING)):
            if limits:
                due = self._context.ledger.tasks.dispatch_due(self._context.clock.now(), grace, limits)
                self._context.publisher.tasks(due)
                sent = Counter(task.provider for task in due)
                more = more or any(sent[name] == limit > AT_FULL for name, limit in limits.items())
        return more and not self._context.publisher.is_failing

    def _share(self, name: ProviderName) -> int:
        """Return how many of a provider's tasks may be dispatched now: as its slots are free, so that few are put back."""
        client = self._context.clients[name]
        if client.batch_size.full_until_seconds > self._context.clock.awake_seconds():
            return AT_FULL
        bulkhead = client.bulkhead
        return max(AT_FULL, DEPTH_LIMIT * bulkhead.free // bulkhead.number)

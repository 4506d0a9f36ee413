"""The operator's part of the door to the ledger: what is looked at, and what a person decides.

Reads never wait for a writer; long ones go page by page. Each write is a transaction of its own, and asks again whether what
it is about is still as it was when it was looked at.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime

from sqlalchemy import Engine

from rules.vocabulary import EventState, ProviderName, TaskState, TaskType
from worker.ledger import (
    by_hand,
    counters,
    listing,
    measuring,
    replaying,
    selecting,
    workload,
)
from worker.ledger.engine import reading, snapshot
from worker.ledger.types import AttemptRow, Counts, StoredEvent, StoredTask
from worker.ledger.writer import Writer


class AdminQueries:
    """Where an operator looks and decides; a part of `Ledger`, whose faults its methods raise."""

    def __init__(self, readers: Engine, writer: Writer) -> None:
        self._readers = readers
        self._writer = writer

    # -- reads ----------------------------------------------------------------------------------------------------------

    def list_events(
        self, limit: int | None = None, state: EventState | None = None, source: str | None = None
    ) -> Iterator[StoredEvent]:
        """Return events with their decisions, newest first, read page by page."""
        return listing.list_events(self._readers, limit, state=state, source=source)

    def list_tasks(
        self,
        limit: int | None = None,
        state: TaskState | None = None,
        type: TaskType | None = None,  # noqa: A002 - the word of the vocabulary
        rule: str | None = None,
        provider: ProviderName | None = None,
        event_id: str | None = None,
    ) -> Iterator[StoredTask]:
        """Return tasks, newest first, read page by page."""
        wanted = {"state": state, "type": type, "rule": rule, "provider": provider, "event_id": event_id}
        return listing.list_tasks(self._readers, limit, wanted)

    def select_tasks(self, wanted: selecting.TaskSelection) -> Iterator[StoredTask]:
        """Return the tasks that an operator selected, oldest first, read page by page."""
        return selecting.select_tasks(self._readers, wanted)

    def select_events(self, wanted: selecting.EventSelection) -> Iterator[StoredEvent]:
        """Return the events that an operator selected, oldest first, without their decisions."""
        return selecting.select_events(self._readers, wanted)

    def event(self, event_id: str) -> StoredEvent | None:
        """Return the event with this id, or with the only id that begins so; several: LedgerError."""
        with reading(self._readers) as connection:
            return listing.event(connection, event_id)

    def last_event(self) -> StoredEvent | None:
        """Return the event that was recorded last."""
        with reading(self._readers) as connection:
            return listing.last_event(connection)

    def delivery_body(self, event_id: str) -> bytes | None:
        """Return the raw body that an event came in, or None when it is unknown or no longer kept."""
        with reading(self._readers) as connection:
            return listing.delivery_body(connection, event_id)

    def task(self, task_id: str) -> StoredTask | None:
        """Return the task with this id, or with the only id that begins so; several: LedgerError."""
        with reading(self._readers) as connection:
            return listing.task(connection, task_id)

    def tasks_of(self, event_id: str) -> list[StoredTask]:
        """Return an event's tasks in the order they were planned."""
        with reading(self._readers) as connection:
            return listing.tasks_of(connection, event_id)

    def attempts(self, task_id: str) -> list[AttemptRow]:
        """Return a task's attempts, oldest first."""
        with reading(self._readers) as connection:
            return listing.attempts_of(connection, task_id)

    def measure(self, now: datetime) -> measuring.Measures:
        """Return the ledger's numbers at this moment: what was ever counted, and what is there."""
        with snapshot(self._readers) as connection:
            return measuring.measure(connection, now)

    def count_requests(self, requests: Mapping[tuple[str, str, str], int]) -> None:
        """Add so many webhook requests by source, outcome and reason to the counts."""
        self._writer.write(counters.count_requests(requests))

    def counts(self) -> Counts:
        """Return how many events and tasks are in each state."""
        with snapshot(self._readers) as connection:
            return listing.counts(connection)

    def workloads(self, now: datetime) -> dict[ProviderName, workload.Workload]:
        """Return for every provider what lies before it, and how many attempts began today."""
        with snapshot(self._readers) as connection:
            return workload.workloads(connection, now)

    # -- writes ---------------------------------------------------------------------------------------------------------

    def settle_by_hand(self, task_id: str, delivered: bool, external_id: str | None, now: datetime) -> StoredTask:
        """End the doubt about an `unknown` task: delivered, or due again now. LedgerError from any other state."""
        return self._writer.write(by_hand.settle(task_id, delivered, external_id, now))

    def retry(self, task_id: str, now: datetime) -> StoredTask:
        """Make a dead, cancelled, suppressed or waiting task due now; LedgerError, with the way on, from other states.

        One that had ended begins a new epoch with its attempts at 0; its history stays, and an `expires_at` that has
        passed is lifted, with a note.
        """
        return self._writer.write(by_hand.retry(task_id, now))

    def retry_many(self, due: Mapping[str, datetime], states: Collection[TaskState], now: datetime) -> list[StoredTask]:
        """Retry tasks that still are in one of these states, each due at its moment; return those that were."""
        return self._writer.write(by_hand.retry_many(due, states, now)) if due else []

    def cancel(self, task_id: str, why: str | None, now: datetime) -> StoredTask:
        """End a task that has not been sent, or of which nobody knows; LedgerError, with the way on, from other states."""
        return self._writer.write(by_hand.cancel(task_id, why, now))

    def cancel_many(
        self, ids: Sequence[str], states: Collection[TaskState], why: str | None, now: datetime
    ) -> list[StoredTask]:
        """Cancel tasks that still are in one of these states; return those that were."""
        return self._writer.write(by_hand.cancel_many(ids, states, why, now)) if ids else []

    def cancelled_there(self, task_id: str, answer: str, why: str | None, now: datetime, *, taken: bool) -> StoredTask:
        """Keep what a provider answered when it was asked to cancel a task; one that it ended is cancelled here too."""
        return self._writer.write(by_hand.cancelled_there(task_id, answer, why, now, taken=taken))

    def replay(
        self, ids: Sequence[str], now: datetime, *, failed_too: bool, new_keys: bool = False
    ) -> list[replaying.Replayed]:
        """Have events decided again by a worker, at once; one answer for each that is there.

        What exists of their tasks is not made again, except under `new_keys`: then each becomes a new event `ID.2`, `ID.3`,
        whose tasks are new.
        """
        work = replaying.renew if new_keys else replaying.replay
        return self._writer.write(work(ids, now, failed_too=failed_too)) if ids else []

"""The one door to the ledger: a method per intention, each a transaction of its own.

Writes go through the process's one grouping writer thread and return when their commit stands on disk; reads use pooled
connections and never wait for a writer. One `Ledger` per process: neither connections nor the thread survive a fork, so
open it after forking.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta

from sqlalchemy import Engine

from rules.vocabulary import EventState, Plan, ProviderName, TaskState, TaskType
from worker.ledger import (
    by_hand,
    claiming,
    dispatching,
    front_door,
    listing,
    measuring,
    pauses,
    planning,
    probing,
    rule_sets,
    settling,
    tallying,
)
from worker.ledger.engine import reading, snapshot
from worker.ledger.rows import (
    AttemptRow,
    Claim,
    Counts,
    Delivery,
    IncomingEvent,
    NotClaimed,
    ProviderState,
    Recorded,
    Settlement,
    StoredEvent,
    StoredTask,
    TaskRef,
)
from worker.ledger.writer import Writer


class Ledger:
    """The truth about what came in, what was decided and what became of it.

    Every method may raise LedgerBusyError when the ledger cannot be written right now and LedgerError for other faults of
    the storage. After LedgerBusyError the change is not in force, or (its message says so) it is not known whether it is;
    no method ever reports a success that does not stand on disk.
    """

    def __init__(self, readers: Engine, writer: Writer) -> None:
        self._readers = readers
        self._writer = writer

    def close(self) -> None:
        """Finish the writes that are waiting, then let go of every connection."""
        self._writer.close()
        self._readers.dispose()

    # -- the front door ------------------------------------------------------------------------------------------------

    def record(self, delivery: Delivery, events: Sequence[IncomingEvent]) -> Recorded:
        """Keep a delivery and its new events; a redelivery changes nothing."""
        return self._writer.write(front_door.record(delivery, events))

    def writable(self) -> None:
        """Commit a write that leaves nothing behind; raises LedgerBusyError when that cannot be done now."""
        self._writer.write(probing.probe, wait=probing.WAIT)

    # -- deciding ------------------------------------------------------------------------------------------------------

    def fresh_events(self, ids: Sequence[str]) -> tuple[list[StoredEvent], list[str]]:
        """Return those to be decided that were dispatched once, and the ids of those dispatched before.

        The latter may have crashed their processing: they are asked for one at a time with `events_to_process`, so that a
        poisonous one takes no neighbour with it.
        """
        with reading(self._readers) as connection:
            found = planning.open_events(connection, ids)
        suspects = planning.suspects_of(found)
        return [event for event in found if event.dispatches == 1], suspects

    def events_to_process(self, ids: Sequence[str], now: datetime) -> list[StoredEvent]:
        """Return those of the events that still have to be decided, in the order of `ids`.

        An event that was dispatched more than once may have crashed its process: its try is counted, on disk, before it is
        returned, and it counts as dispatched `now`; after five tries it becomes `failed` instead.
        """
        with reading(self._readers) as connection:
            found = planning.open_events(connection, ids)
        suspects = planning.suspects_of(found)
        if not suspects:
            return found
        counted = self._writer.write(planning.count_tries(suspects, now))
        return planning.returned(found, counted)

    def record_plans(self, plans: Sequence[Plan], now: datetime) -> tuple[TaskRef, ...]:
        """Keep decisions and tasks of events that are still `received`; return the tasks due now, marked as queued.

        A plan whose event has been decided already is skipped as a whole.
        """
        return self._writer.write(planning.record_plans(plans, now)) if plans else ()

    def event_failed(self, event_id: str, error: str, now: datetime) -> None:
        """Note that deciding an event raised `error`: it is due again later, and `failed` after five tries."""
        self._writer.write(planning.event_failed(event_id, error, now))

    def overdue_events(self, now: datetime, grace: timedelta, limit: int) -> list[str]:
        """Return the ids of undecided events that are due and were last dispatched `grace` ago; they count as dispatched."""
        with reading(self._readers) as connection:
            found = dispatching.any_overdue_event(connection, now, grace)
        return self._writer.write(dispatching.dispatch_events(now, grace, limit)) if found else []

    def oldest_due(self) -> datetime | None:
        """Return since when the oldest work that nobody holds is due, or will be; None when there is none."""
        with reading(self._readers) as connection:
            return dispatching.oldest_due(connection)

    # -- delivering ----------------------------------------------------------------------------------------------------

    def due_tasks(
        self, now: datetime, grace: timedelta, limit_per_provider: Mapping[ProviderName, int]
    ) -> list[TaskRef]:
        """Return the tasks to put on the broker now, oldest due first, marked as queued.

        These are the ones that are due, and queued ones whose message was sent `grace` ago and never led to a claim.
        """
        with reading(self._readers) as connection:
            found = dispatching.any_due_task(connection, now, grace, limit_per_provider)
        return self._writer.write(dispatching.dispatch_tasks(now, grace, limit_per_provider)) if found else []

    def put_back(self, ids: Sequence[str], now: datetime) -> None:
        """Make queued tasks wait again, due as they were: nobody has a thread for them now."""
        self._writer.write(dispatching.put_back(ids, now))

    def claim(self, ids: Sequence[str], now: datetime, lease: timedelta, owner: str) -> list[Claim | NotClaimed]:
        """Take the right to send each task, or learn why not; one answer for each id, in order.

        A claimed task is `sending` and its attempt is on disk before this returns. A task past `expires_at` ends as
        `suppressed`; one whose provider is paused waits until then and loses no attempt.
        """
        return self._writer.write(claiming.claim(ids, now, lease, owner)) if ids else []

    def settle(self, claim: Claim, settlement: Settlement, now: datetime) -> bool:
        """Record what an attempt came to; return whether the task took it.

        False: the claim no longer holds (its lease ended, or a person decided meanwhile), so only the attempt's row has
        the outcome. A late DELIVERED is taken even then, except by a task that was cancelled or suppressed, which says in
        its reason that it was executed all the same.
        """
        return self.settle_many([(claim, settlement)], now)[0]

    def settle_many(self, settled: Sequence[tuple[Claim, Settlement]], now: datetime) -> list[bool]:
        """Record what several attempts came to, in one transaction; see `settle`."""
        return self._writer.write(settling.settle(settled, now)) if settled else []

    def give_back(self, claim: Claim, now: datetime) -> bool:
        """Undo a claim whose request never began: the task waits, due now; False when the claim no longer holds."""
        return self._writer.write(settling.give_back(claim, now))

    def release(self, owner_prefix: str, now: datetime) -> list[str]:
        """Make `unknown` what owners with this prefix, now dead, were sending; return the ids."""
        return self._writer.write(settling.release(owner_prefix, now))

    def expire_leases(self, now: datetime) -> list[str]:
        """Make `unknown` what was being sent under a lease that has ended; return the ids."""
        with reading(self._readers) as connection:
            expired = settling.any_expired(connection, now)
        return self._writer.write(settling.expire_leases(now)) if expired else []

    # -- providers -----------------------------------------------------------------------------------------------------

    def pause_provider(self, provider: ProviderName, until_at: datetime, reason: str, now: datetime) -> None:
        """Hold a provider's tasks until then or until `resume_provider`; no success of an attempt lifts this."""
        self._writer.write(pauses.hold(provider, until_at, reason, now))

    def resume_provider(self, provider: ProviderName, now: datetime) -> None:
        """Lift any pause of a provider; the tasks that waited for its end are due now."""
        self._writer.write(pauses.resume(provider, now))

    def lift_answers_pauses(self, now: datetime) -> None:
        """Lift the pauses that answers brought about, not those a person ordered: at a start the settings may be mended."""
        self._writer.write(pauses.lift_all_of_attempts(now))

    def provider_states(self) -> list[ProviderState]:
        """Return what is known of each provider that was ever paused."""
        with reading(self._readers) as connection:
            return pauses.states(connection)

    # -- rule sets -----------------------------------------------------------------------------------------------------

    def store_rule_set(self, version: str, files: Mapping[str, str], now: datetime) -> None:
        """Keep an accepted rule set; accepting one again makes it the latest."""
        self._writer.write(rule_sets.store(version, files, now))

    def latest_rule_set(self) -> tuple[str, Mapping[str, str]] | None:
        """Return version and files of the rule set that was accepted last."""
        with reading(self._readers) as connection:
            return rule_sets.latest(connection)

    def rule_set(self, version: str) -> Mapping[str, str] | None:
        """Return the files of one rule set, name to text."""
        with reading(self._readers) as connection:
            return rule_sets.find(connection, version)

    # -- the operator's reads ------------------------------------------------------------------------------------------

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
        self._writer.write(tallying.count_requests(requests))

    def counts(self) -> Counts:
        """Return how many events and tasks are in each state."""
        with snapshot(self._readers) as connection:
            return listing.counts(connection)

    # -- the operator's writes -----------------------------------------------------------------------------------------

    def settle_by_hand(self, task_id: str, delivered: bool, external_id: str | None, now: datetime) -> StoredTask:
        """End the doubt about an `unknown` task: delivered, or due again now. LedgerError from any other state."""
        return self._writer.write(by_hand.settle(task_id, delivered, external_id, now))

    def retry(self, task_id: str, now: datetime) -> StoredTask:
        """Make a dead, cancelled, suppressed or waiting task due now; LedgerError, with the way on, from other states.

        One that had ended begins a new epoch with its attempts at 0; its history stays, and an `expires_at` that has
        passed is lifted, with a note.
        """
        return self._writer.write(by_hand.retry(task_id, now))

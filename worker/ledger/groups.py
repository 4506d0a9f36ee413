"""The ledger's methods, by what they are about."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Final

from sqlalchemy import Engine

from rules.vocabulary import PROVIDER_OF, EventState, LedgerError, Plan, ProviderName, Task, TaskState, TaskType
from worker.ledger import (
    answering,
    by_hand,
    claiming,
    counters,
    dispatching,
    doubts,
    front_door,
    gates,
    listing,
    looked_up,
    measuring,
    outcomes,
    pauses,
    planning,
    replaying,
    rule_sets,
    selecting,
    settling,
    workload,
)
from worker.ledger.database import reading, snapshot
from worker.ledger.types import (
    AttemptRow,
    Claim,
    ClaimTerms,
    Counts,
    Delivery,
    IncomingEvent,
    Limits,
    NotClaimed,
    PauseKind,
    PendingReconciliation,
    Poll,
    ProviderState,
    Reaction,
    Recorded,
    Settlement,
    StoredEvent,
    StoredTask,
    TaskRef,
)
from worker.ledger.writer import Job, Writer

_UNLIMITED: Final[Mapping[ProviderName, Limits]] = MappingProxyType({})
#: So many missed deliveries are taken up at once, of each type.
_MISSED_LIMIT: Final = 500


class LedgerGroup:
    """Some of the ledger's methods: they read by `readers`, and write by the process's one `writer`."""

    def __init__(self, readers: Engine, writer: Writer) -> None:
        self._readers = readers
        self._writer = writer


class Inbox(LedgerGroup):
    """TODO Inbox."""

    def record(self, delivery: Delivery, events: Sequence[IncomingEvent]) -> Recorded:
        """Keep a delivery and its new events; a redelivery changes nothing."""
        return self._writer.write(front_door.record(delivery, events))

    def begin_record(
        self, delivery: Delivery, events: Sequence[IncomingEvent], tell: Callable[[Job[Recorded]], None]
    ) -> Job[Recorded]:
        """Begin to keep a delivery, for a caller whose thread must not wait; `tell` is called in the writer's thread.

        See `Writer.submit`; `Job.outcome` then returns, or raises, what `record` would have.
        """
        return self._writer.submit(front_door.record(delivery, events), tell)

    def count_requests(self, requests: Mapping[tuple[str, str, str], int]) -> None:
        """Add so many webhook requests by source, outcome and reason to the counts."""
        self._writer.write(counters.count_requests(requests))

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

    def event_failed(self, event_id: str, error: str, now: datetime) -> None:
        """Note that deciding an event raised `error`: it is due again later, and `failed` after five tries."""
        self._writer.write(planning.event_failed(event_id, error, now))

    def dispatch_overdue(self, now: datetime, grace: timedelta, limit: int) -> list[str]:
        """Return the ids of undecided events that are due and were last dispatched `grace` ago; they count as dispatched."""
        with reading(self._readers) as connection:
            found = dispatching.any_overdue_event(connection, now, grace)
        return self._writer.write(dispatching.dispatch_events(now, grace, limit)) if found else []


class Tasks(LedgerGroup):
    """TODO Tasks."""

    def insert(self, plans: Sequence[Plan], now: datetime) -> tuple[TaskRef, ...]:
        """Keep decisions and tasks of events that are still `received`; return the tasks due now, marked as queued.

        A plan whose event has been decided already is skipped as a whole.
        """
        return tuple(self._writer.write(planning.record_plans(plans, now)).due) if plans else ()

    def insert_and_claim(
        self, plans: Sequence[Plan], now: datetime, terms: ClaimTerms
    ) -> tuple[tuple[TaskRef, ...], list[Claim | NotClaimed]]:
        """Do as `record_plans`, and claim in the same transaction what `terms` name of the tasks due now.

        Return the tasks due now that were not asked for, marked as queued, and what `claim` says of the others.
        """
        kept = self._writer.write(planning.record_plans(plans, now, terms))
        return tuple(kept.due), self._claims(kept.taken, terms.owner, now)

    def dispatch_due(
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

    def claim(
        self,
        ids: Sequence[str],
        now: datetime,
        lease: timedelta,
        owner: str,
        limits: Mapping[ProviderName, Limits] = _UNLIMITED,
    ) -> list[Claim | NotClaimed]:
        """Take the right to send each task, or learn why not; one answer for each id, in order.

        A claimed task is `sending` and its attempt is on disk before this returns. A task past `expires_at` ends as
        `suppressed`; one whose provider is paused, or has as much as `limits` allow, waits until `due_at` and loses no attempt.
        """
        if not ids:
            return []
        return self._claims(self._writer.write(claiming.claim(ids, now, lease, owner, limits)), owner, now)

    def _claims(
        self, taken: Sequence[claiming.Taken | NotClaimed], owner: str, now: datetime
    ) -> list[Claim | NotClaimed]:
        """Make claims of rows, and give back what cannot be read."""
        answers, unreadable = claiming.claims(taken)
        if unreadable:
            with suppress(LedgerError):  # else their lease ends it; what can be sent must not wait for that
                self._writer.write(settling.give_back_of(owner, unreadable, now, claiming.UNREADABLE_REST))
        return answers

    def settle(self, claim: Claim, settlement: Settlement, now: datetime) -> bool:
        """Record what an attempt came to; return whether the task took it.

        False: the claim no longer holds (its lease ended, or a person decided meanwhile), so only the attempt's row has
        the outcome. A late DELIVERED is taken even then, except by a task that was cancelled or suppressed, which says in
        its reason that it was executed all the same.
        """
        return self.settle_many([(claim, settlement)], now)[0]

    def settle_many(
        self,
        settled: Sequence[tuple[Claim, Settlement]],
        now: datetime,
        alert: Callable[[ProviderState], None] | None = None,
    ) -> list[bool]:
        """Record what several attempts came to, in one transaction; see `settle`.

        `alert` is told of each pause of a provider that begins with these outcomes, once it stands on disk: once for a pause.
        """
        if not settled:
            return []
        result = self._writer.write(settling.settle(settled, now))
        if alert is not None:
            for pause in result.began:
                alert(pause)
        return result.taken

    def give_back(self, claim: Claim, now: datetime) -> bool:
        """Undo a claim whose request never began: the task waits, due now; False when the claim no longer holds."""
        return self._writer.write(settling.give_back(claim, now))

    def give_back_of(self, owner: str, ids: Sequence[str], now: datetime) -> list[str]:
        """Undo whatever claims of these tasks an owner has, of which no request ever began; return the ids.

        For a claim of which nobody knows whether it was written: `owner` must be that claim's alone.
        """
        return self._writer.write(settling.give_back_of(owner, ids, now)) if ids else []

    def release(self, owner_prefix: str, now: datetime) -> list[str]:
        """Make `unknown` what owners with this prefix, now dead, were sending; return the ids."""
        return self._writer.write(settling.release(owner_prefix, now))

    def expire_leases(self, now: datetime) -> list[str]:
        """Make `unknown` what was being sent under a lease that has ended; return the ids."""
        with reading(self._readers) as connection:
            expired = settling.any_expired(connection, now)
        return self._writer.write(settling.expire_leases(now)) if expired else []


class Reconciliation(LedgerGroup):
    """TODO Reconciliation."""

    def claim(self, provider: ProviderName, now: datetime, hold: timedelta, limit: int) -> list[PendingReconciliation]:
        """Take unknown tasks to be looked up at this provider now, for as long as `hold`; none while it is paused."""
        with reading(self._readers) as connection:
            found = doubts.any_due(connection, provider, now)
        return self._writer.write(doubts.claim(provider, now, hold, limit)) if found else []

    def postpone(
        self, doubt: PendingReconciliation, due_at: datetime, *, failed: bool, absent_at: datetime | None = None
    ) -> bool:
        """Put off a doubt's next look-up; False when the doubt is no longer held.

        `failed`: this one could not tell. `absent_at`: when a complete listing without the task was asked for.
        """
        return self._writer.write(doubts.note(doubt, due_at, failed=failed, absent_at=absent_at))

    def resolve(self, doubt: PendingReconciliation, settlement: Settlement, now: datetime) -> bool:
        """End a doubt: the task is delivered, due again or dead, or it stays unknown and waits for a person.

        False, and nothing has changed, when somebody else has decided meanwhile; that the provider has the task (DELIVERED)
        is taken all the same, as a late success is by `settle`.
        """
        return self._writer.write(looked_up.end(doubt, settlement, now))

    def note_query_works(self, provider: ProviderName, now: datetime) -> None:
        """Remember that a listing of this provider has shown what it was asked for."""
        self._writer.write(doubts.form_works(provider, now))


class ProviderLimits(LedgerGroup):
    """TODO ProviderLimits."""

    def pause(self, provider: ProviderName, until_at: datetime, reason: str, now: datetime) -> None:
        """Hold a provider's tasks until then or until `resume_provider`; no success of an attempt lifts this."""
        self._writer.write(pauses.hold(provider, until_at, reason, now))

    def resume(self, provider: ProviderName, now: datetime) -> None:
        """Lift any pause of a provider; the tasks that waited for its end are due now."""
        self._writer.write(pauses.resume(provider, now))

    def resume_rejected(self, now: datetime) -> None:
        """Lift the pauses by a credential or address that was not taken: at a start the settings may be mended."""
        self._writer.write(pauses.lift_all_of_answers(now))

    def charge(self, provider: ProviderName, limits: Limits, now: datetime) -> datetime:
        """Count a request that no claim stands for (a look-up, a poll) against a provider's rate; it is never refused.

        Return the moment of its place in line, before which it should not be sent.
        """
        return self._writer.write(gates.charge(provider, limits, now)) if limits.rate_per_second else now

    def pause_on_answer(
        self,
        provider: ProviderName,
        kind: PauseKind,
        until_at: datetime,
        reason: str,
        asked_at: datetime,
        now: datetime,
    ) -> ProviderState | None:
        """Pause a provider whose answer to a question, sent at `asked_at`, asks for it, as an attempt's answer would.

        Return the pause if it begins with this.
        """
        return self._writer.write(pauses.refused(provider, kind, until_at, reason, asked_at, now))

    def states(self) -> list[ProviderState]:
        """Return what is kept of each provider: its pause and the kind of it, its failures, what the day has seen."""
        with reading(self._readers) as connection:
            return pauses.states(connection)


class FollowUps(LedgerGroup):
    """TODO FollowUps."""

    def claim(self, now: datetime, limit: int) -> list[Reaction]:
        """Take ends to answer, oldest first; each belongs to the caller until its `due_at`, and its try is counted.

        One that was tried five times is put aside instead, and the task says so.
        """
        with reading(self._readers) as connection:
            found = answering.any_due(connection, now)
        return self._writer.write(answering.take(now, limit)) if found else []

    def record(
        self, reaction: Reaction, planned: Sequence[Task], now: datetime, note: str | None = None
    ) -> tuple[TaskRef, ...]:
        """Record what answers an end and strike the end off, in one transaction; return the tasks due now, as queued.

        `note` becomes a remark on the task that ended. Nothing is recorded when the end belongs to somebody else by now, or
        when the failure was undone: the task is to be sent again, or was delivered after all.
        """
        return self._writer.write(answering.record(reaction, planned, note, now))

    def set_aside(self, reaction: Reaction, error: str, now: datetime) -> None:
        """Give up answering an end for now, with a remark on its task."""
        self._writer.write(answering.failed(reaction, error, now))

    def retry_set_aside(self, now: datetime) -> int:
        """Make everything due that was put aside; return how many."""
        with reading(self._readers) as connection:
            found = answering.any_aside(connection)
        return self._writer.write(answering.try_again(now)) if found else 0


class OutcomePolls(LedgerGroup):
    """TODO OutcomePolls."""

    def claim(self, provider: ProviderName, now: datetime, pause: Callable[[int], timedelta], limit: int) -> list[Poll]:
        """Take tasks whose outcome is to be asked for; each is due again after `pause(times asked)`."""
        with reading(self._readers) as connection:
            found = outcomes.any_due(connection, provider, now)
        return self._writer.write(outcomes.take(provider, now, pause, limit)) if found else []

    def record(self, poll: Poll, word: str, now: datetime, *, final: bool) -> bool:
        """Keep the provider's word for how a task stands; return whether it is news. A final one ends the asking."""
        return self._writer.write(outcomes.seen(poll, word, now, final=final))

    def poll_missed(self, provider: ProviderName, now: datetime, due_at: datetime) -> int:
        """Ask about tasks that were delivered without a worker's settling, from `due_at` on; return how many."""
        types = [type_ for type_, name in PROVIDER_OF.items() if name is provider]
        with reading(self._readers) as connection:
            rows = outcomes.missed(connection, types, now, _MISSED_LIMIT)
        if rows:
            self._writer.write(outcomes.follow_missed(rows, due_at))
        return len(rows)


class RuleSets(LedgerGroup):
    """TODO RuleSets."""

    def store(self, version: str, files: Mapping[str, str], now: datetime) -> None:
        """Keep an accepted rule set; accepting one again makes it the latest."""
        self._writer.write(rule_sets.store(version, files, now))

    def latest(self) -> tuple[str, Mapping[str, str]] | None:
        """Return version and files of the rule set that was accepted last."""
        with reading(self._readers) as connection:
            return rule_sets.latest(connection)

    def get(self, version: str) -> Mapping[str, str] | None:
        """Return the files of one rule set, name to text."""
        with reading(self._readers) as connection:
            return rule_sets.find(connection, version)


class Queries(LedgerGroup):
    """TODO Queries."""

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

    def oldest_due(self) -> datetime | None:
        """Return since when the oldest work that nobody holds is due, or will be; None when there is none."""
        with reading(self._readers) as connection:
            return dispatching.oldest_due(connection)

    def measure(self, now: datetime) -> measuring.Measures:
        """Return the ledger's numbers at this moment: what was ever counted, and what is there."""
        with snapshot(self._readers) as connection:
            return measuring.measure(connection, now)

    def counts(self) -> Counts:
        """Return how many events and tasks are in each state."""
        with snapshot(self._readers) as connection:
            return listing.counts(connection)

    def workloads(self, now: datetime) -> dict[ProviderName, workload.Workload]:
        """Return for every provider what lies before it, and how many attempts began today."""
        with snapshot(self._readers) as connection:
            return workload.workloads(connection, now)


class AdminQueries(LedgerGroup):
    """TODO AdminQueries."""

    def settle(self, task_id: str, delivered: bool, external_id: str | None, now: datetime) -> StoredTask:
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

    def cancelled_at_provider(
        self, task_id: str, answer: str, why: str | None, now: datetime, *, taken: bool
    ) -> StoredTask:
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

"""The one door to the ledger: a method per intention, each a transaction of its own.

Writes go through the process's one grouping writer thread and return when their commit stands on disk; reads use pooled
connections and never wait for a writer. One `Ledger` per process: neither connections nor the thread survive a fork, so
open it after forking.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Final

from sqlalchemy import Engine

from rules.vocabulary import LedgerError, Plan, ProviderName
from worker.ledger import (
    claiming,
    dispatching,
    doubts,
    front_door,
    gates,
    looked_up,
    pauses,
    planning,
    probing,
    rule_sets,
    settling,
)
from worker.ledger.desk import AdminQueries
from worker.ledger.engine import reading
from worker.ledger.following import FollowUps
from worker.ledger.types import (
    Claim,
    ClaimTerms,
    Delivery,
    IncomingEvent,
    Limits,
    NotClaimed,
    PauseKind,
    PendingReconciliation,
    ProviderState,
    Recorded,
    Settlement,
    StoredEvent,
    TaskRef,
)
from worker.ledger.work import Job
from worker.ledger.writer import Writer

_UNLIMITED: Final[Mapping[ProviderName, Limits]] = MappingProxyType({})


class Ledger(AdminQueries):
    """The truth about what came in, what was decided and what became of it.

    Every method may raise LedgerBusyError when the ledger cannot be written right now and LedgerError for other faults of
    the storage. After LedgerBusyError the change is not in force, or (its message says so) it is not known whether it is;
    no method ever reports a success that does not stand on disk.
    """

    def __init__(self, readers: Engine, writer: Writer) -> None:
        super().__init__(readers, writer)
        self.follow_ups = FollowUps(readers, writer)

    def close(self) -> None:
        """Finish the writes that are waiting, then let go of every connection."""
        self._writer.close()
        self._readers.dispose()

    # -- the front door ------------------------------------------------------------------------------------------------

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
        return tuple(self._writer.write(planning.record_plans(plans, now)).due) if plans else ()

    def record_and_claim(
        self, plans: Sequence[Plan], now: datetime, terms: ClaimTerms
    ) -> tuple[tuple[TaskRef, ...], list[Claim | NotClaimed]]:
        """Do as `record_plans`, and claim in the same transaction what `terms` name of the tasks due now.

        Return the tasks due now that were not asked for, marked as queued, and what `claim` says of the others.
        """
        kept = self._writer.write(planning.record_plans(plans, now, terms))
        return tuple(kept.due), self._claims(kept.taken, terms.owner, now)

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

    def give_way(self) -> None:
        """Wait, for milliseconds, while this process has the turn to write: for a thread that is about to compute."""
        self._writer.give_way()

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

    # -- doubts --------------------------------------------------------------------------------------------------------

    def claim_doubts(
        self, provider: ProviderName, now: datetime, hold: timedelta, limit: int
    ) -> list[PendingReconciliation]:
        """Take unknown tasks to be looked up at this provider now, for as long as `hold`; none while it is paused."""
        with reading(self._readers) as connection:
            found = doubts.any_due(connection, provider, now)
        return self._writer.write(doubts.claim(provider, now, hold, limit)) if found else []

    def note_look_up(
        self, doubt: PendingReconciliation, due_at: datetime, *, failed: bool, absent_at: datetime | None = None
    ) -> bool:
        """Put off a doubt's next look-up; False when the doubt is no longer held.

        `failed`: this one could not tell. `absent_at`: when a complete listing without the task was asked for.
        """
        return self._writer.write(doubts.note(doubt, due_at, failed=failed, absent_at=absent_at))

    def end_doubt(self, doubt: PendingReconciliation, settlement: Settlement, now: datetime) -> bool:
        """End a doubt: the task is delivered, due again or dead, or it stays unknown and waits for a person.

        False, and nothing has changed, when somebody else has decided meanwhile; that the provider has the task (DELIVERED)
        is taken all the same, as a late success is by `settle`.
        """
        return self._writer.write(looked_up.end(doubt, settlement, now))

    def note_form_works(self, provider: ProviderName, now: datetime) -> None:
        """Remember that a listing of this provider has shown what it was asked for."""
        self._writer.write(doubts.form_works(provider, now))

    # -- providers -----------------------------------------------------------------------------------------------------

    def pause_provider(self, provider: ProviderName, until_at: datetime, reason: str, now: datetime) -> None:
        """Hold a provider's tasks until then or until `resume_provider`; no success of an attempt lifts this."""
        self._writer.write(pauses.hold(provider, until_at, reason, now))

    def resume_provider(self, provider: ProviderName, now: datetime) -> None:
        """Lift any pause of a provider; the tasks that waited for its end are due now."""
        self._writer.write(pauses.resume(provider, now))

    def lift_answers_pauses(self, now: datetime) -> None:
        """Lift the pauses by a credential or address that was not taken: at a start the settings may be mended."""
        self._writer.write(pauses.lift_all_of_answers(now))

    def charge(self, provider: ProviderName, limits: Limits, now: datetime) -> datetime:
        """Count a request that no claim stands for (a look-up, a poll) against a provider's rate; it is never refused.

        Return the moment of its place in line, before which it should not be sent.
        """
        return self._writer.write(gates.charge(provider, limits, now)) if limits.rate_per_second else now

    def note_refusal(
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

    def provider_states(self) -> list[ProviderState]:
        """Return what is kept of each provider: its pause and the kind of it, its failures, what the day has seen."""
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

"""Questions to providers: was an unknown task executed (reconciliation), and what became of a delivered one (outcome polls).

Reconciliation: an unknown task is never sent again before it was looked up. When a task becomes unknown, a row is inserted in
the same transaction (`transitions.py`). Claiming a row moves its `due_at`; only the process that knows this new value may write
the look-up's result, so one process at a time holds a row. Settling the task otherwise (a late answer, an operator) deletes the
row; a row that was left over is deleted when it is due. While a provider is paused nothing is looked up there: a look-up that
fails would pass the task to a person although waiting is enough.

Outcome polls: a row exists from the delivery on. It is polled while it has a `due_at` and its task is delivered; a task that an
operator cancelled at the provider is not polled. The provider's status word is stored unchanged, also an unknown one. A final
word adds a reaction for the task's rule in the same transaction.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, and_, bindparam, delete, exists, func, null, select, update

from rules.vocabulary import PROVIDER_OF, TERMINAL_TASK_STATES, ProviderName, TaskState, outcome_trigger
from worker.ledger import transitions
from worker.ledger.counters import CounterName, counters_of
from worker.ledger.encoding import (
    label,
    micros,
    micros_or_none,
    moment,
    moment_or_none,
    reactions_of,
    sentence_or_none,
    stored_task,
)
from worker.ledger.schema import doubts, outcomes, providers, tasks
from worker.ledger.statements import ForIds, Statement, upsert
from worker.ledger.types import PendingReconciliation, Poll, Settlement
from worker.ledger.writer import LedgerGroup

_PAUSED: Final = and_(providers.c.name == doubts.c.provider, providers.c.paused_until_at > bindparam("now"))
_PENDING_DUE: Final = and_(
    doubts.c.provider == bindparam("provider"),
    doubts.c.due_at <= bindparam("now"),
    ~exists(select(providers.c.name).where(_PAUSED)),
)
_ANY_PENDING: Final = Statement(select(doubts.c.task_id).where(_PENDING_DUE).limit(1))
_OLDEST_PENDING: Final = Statement(
    select(doubts)
    .where(_PENDING_DUE)
    .order_by(doubts.c.due_at, doubts.c.task_id)
    .limit(bindparam("most"))
    .with_for_update(skip_locked=True)
)
_TASKS: Final = ForIds(lambda among: select(tasks).where(among(tasks.c.id)))
_QUERY_WORKED_AT: Final = Statement(select(providers.c.found_at).where(providers.c.name == bindparam("provider")))
_HELD: Final = and_(doubts.c.task_id == bindparam("this_id"), doubts.c.due_at == bindparam("held_until"))
_POSTPONE: Final = Statement(
    update(doubts)
    .where(_HELD)
    .values(
        due_at=bindparam("new_due_at"),
        look_ups=doubts.c.look_ups + bindparam("failed", type_=doubts.c.look_ups.type),
        absent_at=func.coalesce(doubts.c.absent_at, bindparam("new_absent_at", type_=doubts.c.absent_at.type)),
    )
)
_END_PENDING: Final = Statement(delete(doubts).where(_HELD))
_NEW_PROVIDER: Final = upsert(providers)
_QUERY_WORKS: Final = Statement(
    _NEW_PROVIDER.on_conflict_do_update(
        index_elements=(providers.c.name,),
        set_={"found_at": _NEW_PROVIDER.excluded.found_at},
        where=providers.c.found_at.is_(None),
    ),
    ("name", "held", "updated_at", "found_at", "failures", "openings", "sent_today"),
)
_LOCK_TASK: Final = Statement(
    select(tasks.c.id).where(tasks.c.id == bindparam("this_id")).with_for_update(key_share=True)
)
_RESOLVE: Final = Statement(
    update(tasks)
    .where(
        tasks.c.id == bindparam("this_id"), tasks.c.epoch == bindparam("held_epoch"), tasks.c.state == TaskState.UNKNOWN
    )
    .values(
        state=bindparam("new_state"),
        due_at=func.coalesce(bindparam("new_due_at", type_=tasks.c.due_at.type), tasks.c.due_at),
        reason=bindparam("new_reason"),
        dispatched_at=None,
        updated_at=bindparam("now"),
    )
)


class LedgerReconciliation(LedgerGroup):
    """`ledger.reconciliation`: unknown tasks that are to be looked up at their provider."""

    def claim(self, provider: ProviderName, now: datetime, hold: timedelta, limit: int) -> list[PendingReconciliation]:
        """Claim unknown tasks for a look-up, for the span `hold`, at most `limit`; none while the provider is paused."""
        asked = {"provider": provider, "now": micros(now), "most": limit}
        if not self._read(lambda connection: _ANY_PENDING.rows(connection, asked)):
            return []
        return self._writer.write(lambda connection: _claim_pending(connection, asked, micros(now + hold)))

    def postpone(
        self, pending: PendingReconciliation, due_at: datetime, *, failed: bool, absent_at: datetime | None = None
    ) -> bool:
        """Schedule the next look-up at `due_at`; returns False when another process holds the row now.

        `failed`: this look-up was inconclusive. `absent_at`: when the complete listing without the task was requested.
        """
        row = _postponed(
            pending.task.id,
            micros(pending.due_at),
            micros(due_at),
            failed=int(failed),
            absent_at=micros_or_none(absent_at),
        )
        return self._writer.write(lambda connection: _POSTPONE.run(connection, row) == 1)

    def resolve(self, pending: PendingReconciliation, settlement: Settlement, now: datetime) -> bool:
        """End a reconciliation: the task becomes delivered, due again, dead, or stays unknown until an operator settles it.

        Returns False, without a change, when the task was settled otherwise meanwhile. DELIVERED is recorded even then, like a
        late success in `ledger.tasks.settle`.
        """
        external_id = None if settlement.external_id is None else label(settlement.external_id)
        row = {
            "this_id": pending.task.id,
            "held_epoch": pending.task.epoch,
            "held_until": micros(pending.due_at),
            "new_state": settlement.state,
            "new_due_at": micros_or_none(settlement.due_at),
            "new_external_id": external_id,
            "new_reason": sentence_or_none(settlement.reason),
            "now": micros(now),
        }
        return self._writer.write(lambda connection: _resolve(connection, pending, row))

    def note_query_works(self, provider: ProviderName, now: datetime) -> None:
        """Record that this provider's listing has returned a task it was asked for: an empty one can be trusted."""
        row = {"name": provider, "held": False, "updated_at": micros(now), "found_at": micros(now)}
        row |= {"failures": 0, "openings": 0, "sent_today": 0}
        self._writer.write(lambda connection: _QUERY_WORKS.run(connection, row))


def _claim_pending(connection: Connection, asked: dict[str, Any], until_at: int) -> list[PendingReconciliation]:
    rows = {row.task_id: row for row in _OLDEST_PENDING.rows(connection, asked)}
    if not rows:
        return []
    found = {row.id: stored_task(row) for row in _TASKS.rows(connection, list(rows))}
    known = [task_id for task_id in rows if found[task_id].state != TaskState.UNKNOWN]
    transitions.drop_reconciliation(connection, known)
    query_works = _QUERY_WORKED_AT.value(connection, asked) is not None
    taken = [row for task_id, row in rows.items() if found[task_id].state == TaskState.UNKNOWN]
    moved = [_postponed(row.task_id, row.due_at, until_at) for row in taken]
    held = _POSTPONE.run_each(connection, moved) if moved else []
    return [
        PendingReconciliation(
            task=found[row.task_id],
            began_at=moment(row.began_at),
            ended_at=moment(row.ended_at),
            due_at=moment(until_at),
            look_ups=row.look_ups,
            absent_at=moment_or_none(row.absent_at),
            query_works=query_works,
        )
        for row, took in zip(taken, held, strict=True)
        if took
    ]


def _postponed(
    task_id: str, held_until: int, due_at: int, *, failed: int = 0, absent_at: int | None = None
) -> dict[str, Any]:
    return {
        "this_id": task_id,
        "held_until": held_until,
        "new_due_at": due_at,
        "failed": failed,
        "new_absent_at": absent_at,
    }


def _resolve(connection: Connection, pending: PendingReconciliation, row: dict[str, Any]) -> bool:
    task, state, at = pending.task, row["new_state"], row["now"]
    if state == TaskState.DELIVERED:
        fits, ended = transitions.deliver_late(connection, row)
        transitions.drop_reconciliation(connection, [task.id])
        if fits:
            transitions.poll_found_outcome(connection, task.id, task.provider, row["new_external_id"], at)
    else:
        _LOCK_TASK.rows(connection, row)  # the task before its row here, as everybody does: no two wait for each other
        fits = ended = _END_PENDING.run(connection, row) == 1 and _RESOLVE.run(connection, row) == 1
    if ended and state in TERMINAL_TASK_STATES:
        counters_of(connection).count(CounterName.TASKS_ENDED, task.type, state)
    if ended and state in transitions.FAILED_STATES:
        transitions.note_ends(connection, [(task.id, task.reactions)], at)
    return fits


# Outcome polls ---------------------------------------------------------------------------------------------------------

#: How long after the last of its moments (delivered, due, expired) a task is asked about.
ASKED_FOR: Final = timedelta(days=7)
#: Tasks that were delivered while nobody asked are found so long after they were due.
MISSED_FOR: Final = timedelta(days=1)
#: So many missed deliveries are taken up at once, of each type.
_MISSED_LIMIT: Final = 500

_POLL_DUE: Final = and_(outcomes.c.provider == bindparam("of_provider"), outcomes.c.due_at <= bindparam("now"))
_ANY_POLL: Final = Statement(select(outcomes.c.task_id).where(_POLL_DUE).limit(1))
_OLDEST_POLLS: Final = Statement(
    select(outcomes)
    .where(_POLL_DUE)
    .order_by(outcomes.c.due_at)
    .limit(bindparam("most"))
    .with_for_update(skip_locked=True)
)
_OF_TASK: Final = outcomes.c.task_id == bindparam("of_task")
_TAKE_POLL: Final = Statement(
    update(outcomes).where(_OF_TASK).values(due_at=bindparam("new_due_at"), polls=outcomes.c.polls + 1)
)
_POLLED_TASK: Final = Statement(
    select(tasks.c.state, tasks.c.reactions, tasks.c.due_at, tasks.c.expires_at).where(
        tasks.c.id == bindparam("of_task")
    )
)
_STOP_POLLING: Final = Statement(update(outcomes).where(_OF_TASK).values(due_at=null()))
_SEEN: Final = Statement(
    update(outcomes)
    .where(_OF_TASK, outcomes.c.due_at == bindparam("held"))
    .values(outcome=bindparam("new_outcome"), seen_at=bindparam("now"), due_at=bindparam("new_due_at"))
)
_MISSED: Final = Statement(
    select(tasks.c.id, tasks.c.provider, tasks.c.external_id, tasks.c.updated_at)
    .select_from(tasks.outerjoin(outcomes, outcomes.c.task_id == tasks.c.id))
    .where(
        tasks.c.state == TaskState.DELIVERED,
        tasks.c.type == bindparam("of_type"),
        tasks.c.due_at > bindparam("cutoff"),
        tasks.c.external_id.is_not(None),
        outcomes.c.task_id.is_(None),
    )
    .limit(bindparam("most"))
)


class LedgerOutcomes(LedgerGroup):
    """`ledger.outcomes`: polls for what became of delivered tasks at their provider."""

    def claim(self, provider: ProviderName, now: datetime, pause: Callable[[int], timedelta], limit: int) -> list[Poll]:
        """Claim tasks to poll, at most `limit`; each is due again after `pause(number of polls so far)`.

        A task that was polled for long enough, or is no longer delivered, is not polled again and keeps its last word.
        """
        asked = {"of_provider": provider, "now": micros(now), "most": limit}
        if not self._read(lambda connection: _ANY_POLL.rows(connection, asked)):
            return []
        return self._writer.write(lambda connection: _claim_polls(connection, asked, now, pause))

    def record(self, poll: Poll, word: str, now: datetime, *, final: bool) -> bool:
        """Store the provider's status word; return whether it is new. A final word ends the polling."""
        kept, held = label(word), micros(poll.due_at)
        row = {
            "of_task": poll.task_id,
            "held": held,
            "new_outcome": kept,
            "now": micros(now),
            "new_due_at": None if final else held,
        }

        def work(connection: Connection) -> bool:
            if _SEEN.run(connection, row) == 0:
                return False
            if final:
                ended = [(poll.task_id, poll.reactions)]
                transitions.note_ends(connection, ended, micros(now), outcome_trigger(kept))
            return kept != poll.outcome

        return self._writer.write(work)

    def poll_missed(self, provider: ProviderName, now: datetime, due_at: datetime) -> int:
        """Start polling, at `due_at`, tasks delivered by other means than a worker's attempt; return how many."""
        types = [type_ for type_, name in PROVIDER_OF.items() if name is provider]
        asked = [{"of_type": type_, "cutoff": micros(now - MISSED_FOR), "most": _MISSED_LIMIT} for type_ in types]
        rows = self._read(lambda connection: [row for each in asked for row in _MISSED.rows(connection, each)])

        def work(connection: Connection) -> None:
            for row in rows:
                delivered = [(row.id, row.provider, row.external_id)]
                transitions.poll_outcomes(connection, delivered, row.updated_at, micros(due_at))

        if rows:
            self._writer.write(work)
        return len(rows)


def stop_polling(connection: Connection, task_id: str) -> None:
    """Poll a task no more."""
    _STOP_POLLING.run(connection, {"of_task": task_id})


def _claim_polls(
    connection: Connection, asked: dict[str, Any], now: datetime, pause: Callable[[int], timedelta]
) -> list[Poll]:
    rows = _OLDEST_POLLS.rows(connection, asked)
    found = _POLLED_TASK.rows_each(connection, [{"of_task": row.task_id} for row in rows]) if rows else []
    polls, taken = [], []
    for row, (task,) in zip(rows, found, strict=True):
        until = moment(max(row.delivered_at, task.due_at, task.expires_at or 0)) + ASKED_FOR
        due_at = now + pause(row.polls + 1)
        over = now >= until or task.state != TaskState.DELIVERED
        taken.append({"of_task": row.task_id, "new_due_at": None if over else micros(due_at)})
        if not over:
            poll = Poll(
                task_id=row.task_id,
                provider=ProviderName(row.provider),
                external_id=row.external_id,
                reactions=reactions_of(task),
                outcome=row.outcome,
                due_at=due_at,
            )
            polls.append(poll)
    if taken:
        _TAKE_POLL.run_many(connection, taken)
    return polls

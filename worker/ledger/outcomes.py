"""What became of delivered tasks at their provider: who is asked about when, and what was said last.

A row lives from the delivery on; it is asked about while it has a `due_at` and its task is delivered: what a person
cancelled there is left alone. The provider's word is kept as it is, also one that nobody knows; the word that ends a task is
noted for its rule in the same transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, and_, bindparam, null, select, update

from rules.vocabulary import ProviderName, TaskState, outcome_trigger
from worker.ledger import reacting
from worker.ledger.encoding import label, load, micros, moment
from worker.ledger.schema import outcomes, tasks
from worker.ledger.statements import Statement, columns_of, upsert
from worker.ledger.types import Poll

#: How long after the last of its moments (delivered, due, expired) a task is asked about.
ASKED_FOR: Final = timedelta(days=7)
#: Providers that tell nobody what became of a task, so that they are asked.
ASKED: Final = frozenset({ProviderName.MINDHUNTERS})
#: Tasks that were delivered while nobody asked are found so long after they were due.
MISSED_FOR: Final = timedelta(days=1)

_NEW: Final = upsert(outcomes)
_FOLLOW: Final = Statement(_NEW.on_conflict_do_nothing(), columns_of(outcomes, "outcome", "seen_at"))
_IS_DUE: Final = and_(outcomes.c.provider == bindparam("of_provider"), outcomes.c.due_at <= bindparam("now"))
_ANY_DUE: Final = Statement(select(outcomes.c.task_id).where(_IS_DUE).limit(1))
_DUE: Final = Statement(
    select(outcomes)
    .where(_IS_DUE)
    .order_by(outcomes.c.due_at)
    .limit(bindparam("most"))
    .with_for_update(skip_locked=True)
)
_THIS: Final = outcomes.c.task_id == bindparam("of_task")
_TAKE: Final = Statement(
    update(outcomes).where(_THIS).values(due_at=bindparam("new_due_at"), polls=outcomes.c.polls + 1)
)
_LAST: Final = Statement(
    select(tasks.c.state, tasks.c.reactions, tasks.c.due_at, tasks.c.expires_at).where(
        tasks.c.id == bindparam("of_task")
    )
)
_LEAVE: Final = Statement(update(outcomes).where(_THIS).values(due_at=null()))
_SEEN: Final = Statement(
    update(outcomes)
    .where(_THIS, outcomes.c.due_at == bindparam("held"))
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


def follow(connection: Connection, delivered: Sequence[tuple[str, ProviderName, str]], at: int, due_at: int) -> None:
    """Ask what becomes of tasks, given by id, provider and the provider's id; one that is followed already stays so."""
    rows = [
        {
            "task_id": task_id,
            "provider": provider,
            "external_id": external_id,
            "delivered_at": at,
            "due_at": due_at,
            "polls": 0,
        }
        for task_id, provider, external_id in delivered
    ]
    if rows:
        _FOLLOW.run_many(connection, rows)


def follow_found(
    connection: Connection, task_id: str, provider: ProviderName, external_id: str | None, at: int
) -> None:
    """Ask from now on about a task that no worker's settling has delivered: a look-up found it, or a person knows of it.

    Whether anybody asks at all is not known here; what nobody asks about costs a row.
    """
    if provider in ASKED and external_id is not None:
        follow(connection, [(task_id, provider, external_id)], at, at)


def leave(connection: Connection, task_id: str) -> None:
    """Ask no more about a task."""
    _LEAVE.run(connection, {"of_task": task_id})


def any_due(connection: Connection, provider: ProviderName, now: datetime) -> bool:
    """Whether there is a task to ask about."""
    return bool(_ANY_DUE.rows(connection, {"of_provider": provider, "now": micros(now)}))


def take(
    provider: ProviderName, now: datetime, pause: Callable[[int], timedelta], limit: int
) -> Callable[[Connection], list[Poll]]:
    """Return the work that takes tasks to ask about; each is due again after `pause` of how often it was asked about.

    What was asked about for long enough, or is not delivered any more, is left as it was seen last.
    """

    def work(connection: Connection) -> list[Poll]:
        rows = _DUE.rows(connection, {"of_provider": provider, "now": micros(now), "most": limit})
        last = _LAST.rows_each(connection, [{"of_task": row.task_id} for row in rows]) if rows else []
        polls: list[Poll] = []
        taken = []
        for row, (task,) in zip(rows, last, strict=True):
            until = moment(max(row.delivered_at, task.due_at, task.expires_at or 0)) + ASKED_FOR
            due_at = now + pause(row.polls + 1)
            over = now >= until or task.state != TaskState.DELIVERED
            taken.append({"of_task": row.task_id, "new_due_at": None if over else micros(due_at)})
            if not over:
                polls.append(
                    Poll(
                        task_id=row.task_id,
                        provider=ProviderName(row.provider),
                        external_id=row.external_id,
                        reactions=tuple(load(task.reactions)) if task.reactions else (),
                        outcome=row.outcome,
                        due_at=due_at,
                    )
                )
        if taken:
            _TAKE.run_many(connection, taken)
        return polls

    return work


def seen(poll: Poll, word: str, now: datetime, *, final: bool) -> Callable[[Connection], bool]:
    """Return the work that keeps what a provider said; its result says whether it was news.

    A final word ends the asking, and is noted for the rule.
    """

    def work(connection: Connection) -> bool:
        held, at = micros(poll.due_at), micros(now)
        kept = label(word)
        changed = {
            "of_task": poll.task_id,
            "held": held,
            "new_outcome": kept,
            "now": at,
            "new_due_at": None if final else held,
        }
        if _SEEN.run(connection, changed) == 0:
            return False
        if final:
            reacting.note_ends(connection, [(poll.task_id, poll.reactions)], at, outcome_trigger(kept))
        return kept != poll.outcome

    return work


def missed(connection: Connection, types: Sequence[str], now: datetime, limit: int) -> list[Any]:
    """Return rows of delivered tasks of these types that nobody follows."""
    cutoff = micros(now - MISSED_FOR)
    asked = [{"of_type": type_, "cutoff": cutoff, "most": limit} for type_ in types]
    return [row for each in asked for row in _MISSED.rows(connection, each)]


def follow_missed(rows: Sequence[Any], due_at: datetime) -> Callable[[Connection], None]:
    """Return the work that follows what `missed` found."""

    def work(connection: Connection) -> None:
        for row in rows:
            follow(connection, [(row.id, row.provider, row.external_id)], row.updated_at, micros(due_at))

    return work

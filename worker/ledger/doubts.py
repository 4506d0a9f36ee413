"""Which tasks are looked up at their provider, when, and by whom: nothing in doubt is sent again before that.

A task that becomes `unknown` gets a row here in the same transaction. Where the worker that sent it has settled its attempt,
the first look-up is due at once; where that worker died it is due when the lease has ended, for until then the request may
still be executed. One process at a time holds a row: taking it moves its `due_at`,
and only who knows that very moment may write what the look-up came to. Whoever ends the doubt otherwise (a late answer, a
person) takes the row away; one that was left behind is cleared when it is due. An unknown task without a row waits for a
person. While a provider is paused nobody asks it: what failed then would be a person's though it only has to be waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, and_, bindparam, delete, exists, func, insert, or_, select, update

from rules.vocabulary import ProviderName, TaskState, Verdict
from worker.ledger.encoding import micros, micros_or_none, moment, moment_or_none, stored_task
from worker.ledger.schema import attempts, doubts, providers, tasks
from worker.ledger.statements import ForIds, Statement, columns_of, upsert
from worker.ledger.types import PendingReconciliation

#: How long after somebody else than its own worker called it unknown a task is looked up at the soonest.
FIRST_LOOK: Final = timedelta(seconds=5)
FIRST_LOOK_MICROS: Final = FIRST_LOOK // timedelta(microseconds=1)

#: The attempts since the task was planned, or retried by hand, that may have been executed.
_BEGAN: Final = Statement(
    select(func.min(attempts.c.started_at)).where(
        attempts.c.task_id == bindparam("task_id"),
        attempts.c.deferred.is_(False),
        or_(attempts.c.verdict.is_(None), attempts.c.verdict == Verdict.UNKNOWN),
        attempts.c.started_at
        >= func.coalesce(
            select(tasks.c.first_attempt_at).where(tasks.c.id == bindparam("task_id")).scalar_subquery(), 0
        ),
    )
)
_NEW: Final = upsert(doubts)
_BEGIN: Final = Statement(
    _NEW.on_conflict_do_update(
        index_elements=(doubts.c.task_id,),
        set_={
            name: _NEW.excluded[name]
            for name in ("began_at", "ended_at", "due_at", "look_ups", "absent_at", "provider")
        },
    ),
    columns_of(doubts),
)
_LOOKED_UP: Final = ForIds(lambda among: select(doubts.c.task_id).where(among(doubts.c.task_id)))
_DROP: Final = Statement(delete(doubts).where(doubts.c.task_id == bindparam("this_id")))
_PAUSED: Final = and_(providers.c.name == doubts.c.provider, providers.c.paused_until_at > bindparam("now"))
_DUE: Final = and_(
    doubts.c.provider == bindparam("provider"),
    doubts.c.due_at <= bindparam("now"),
    ~exists(select(providers.c.name).where(_PAUSED)),
)
_ANY_DUE: Final = Statement(select(doubts.c.task_id).where(_DUE).limit(1))
_DUE_DOUBTS: Final = Statement(
    select(doubts)
    .where(_DUE)
    .order_by(doubts.c.due_at, doubts.c.task_id)
    .limit(bindparam("most"))
    .with_for_update(skip_locked=True)
)
_TASKS: Final = ForIds(lambda among: select(tasks).where(among(tasks.c.id)))
_FOUND_AT: Final = Statement(select(providers.c.found_at).where(providers.c.name == bindparam("provider")))
_HELD: Final = and_(doubts.c.task_id == bindparam("this_id"), doubts.c.due_at == bindparam("held_until"))
_MOVE: Final = Statement(
    update(doubts)
    .where(_HELD)
    .values(
        due_at=bindparam("new_due_at"),
        look_ups=doubts.c.look_ups + bindparam("failed", type_=doubts.c.look_ups.type),
        absent_at=func.coalesce(doubts.c.absent_at, bindparam("new_absent_at", type_=doubts.c.absent_at.type)),
    )
)
_END: Final = Statement(delete(doubts).where(_HELD))
_FORM_WORKS: Final = Statement(
    update(providers)
    .where(providers.c.name == bindparam("provider"), providers.c.found_at.is_(None))
    .values(found_at=bindparam("now"))
)
_KNOWN: Final = Statement(select(providers.c.name).where(providers.c.name == bindparam("provider")))
_FIRST_OF_PROVIDER: Final = Statement(
    insert(providers), ("name", "held", "updated_at", "found_at", "failures", "openings", "sent_today")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A task that has just become unknown: when its attempt has ended at the latest, and when it is first looked up."""

    task_id: str
    provider: ProviderName
    ended_at: int
    look_up_at: int


def begin(connection: Connection, begun: Sequence[Begun]) -> None:
    """Have these looked up; one that is already is looked up from the beginning."""
    if not begun:
        return
    began = _BEGAN.rows_each(connection, [{"task_id": each.task_id} for each in begun])
    rows = [
        {
            "task_id": each.task_id,
            "provider": each.provider,
            "began_at": (found[0][0] if found and found[0][0] is not None else each.ended_at),
            "ended_at": each.ended_at,
            "due_at": each.look_up_at,
            "look_ups": 0,
            "absent_at": None,
        }
        for each, found in zip(begun, began, strict=True)
    ]
    _BEGIN.run_many(connection, rows)


def drop(connection: Connection, task_ids: Sequence[str]) -> None:
    """Have these looked up no more: their doubt has ended. Nearly always there was none, which one look tells."""
    found = _LOOKED_UP.rows(connection, list(task_ids)) if task_ids else []
    if found:
        _DROP.run_many(connection, [{"this_id": row.task_id} for row in found])


def any_due(connection: Connection, provider: ProviderName, now: datetime) -> bool:
    """Whether a provider is to be asked about a task; not while it is paused."""
    return bool(_ANY_DUE.rows(connection, {"provider": provider, "now": micros(now)}))


def claim(
    provider: ProviderName, now: datetime, hold: timedelta, limit: int
) -> Callable[[Connection], list[PendingReconciliation]]:
    """Return the work that takes doubts whose look-up is due, the longest overdue first, until `hold` from now."""

    def work(connection: Connection) -> list[PendingReconciliation]:
        asked = {"provider": provider, "now": micros(now), "most": limit}
        rows = {row.task_id: row for row in _DUE_DOUBTS.rows(connection, asked)}
        if not rows:
            return []
        found = {row.id: stored_task(row) for row in _TASKS.rows(connection, list(rows))}
        drop(connection, [task_id for task_id in rows if found[task_id].state != TaskState.UNKNOWN])
        form_works = _FOUND_AT.value(connection, {"provider": provider}) is not None
        until_at = micros(now + hold)
        taken = [row for task_id, row in rows.items() if found[task_id].state == TaskState.UNKNOWN]
        moved = [_moved(row.task_id, row.due_at, until_at) for row in taken]
        held = _MOVE.run_each(connection, moved) if moved else []
        return [
            _doubt(row, found[row.task_id], until_at, form_works=form_works)
            for row, took in zip(taken, held, strict=True)
            if took
        ]

    return work


def note(
    doubt: PendingReconciliation, due_at: datetime, *, failed: bool, absent_at: datetime | None
) -> Callable[[Connection], bool]:
    """Return the work that puts off a look-up; its result says whether the doubt was still held.

    `failed`: it could not tell. `absent_at`: when a complete listing without the task was asked for.
    """
    row = _moved(
        doubt.task.id, micros(doubt.due_at), micros(due_at), failed=int(failed), absent_at=micros_or_none(absent_at)
    )
    return lambda connection: _MOVE.run(connection, row) == 1


def end(connection: Connection, doubt: PendingReconciliation) -> bool:
    """Take the row of a doubt away; False when somebody else has, or holds it now."""
    return _END.run(connection, {"this_id": doubt.task.id, "held_until": micros(doubt.due_at)}) == 1


def form_works(provider: ProviderName, now: datetime) -> Callable[[Connection], None]:
    """Return the work that remembers that a listing of this provider has found something."""

    def work(connection: Connection) -> None:
        row = {"provider": provider, "now": micros(now)}
        if _KNOWN.first(connection, row) is None:
            first = {"name": provider, "held": False, "updated_at": micros(now), "found_at": micros(now)}
            _FIRST_OF_PROVIDER.run(connection, first | {"failures": 0, "openings": 0, "sent_today": 0})
        else:
            _FORM_WORKS.run(connection, row)

    return work


def _moved(
    task_id: str, held_until: int, due_at: int, *, failed: int = 0, absent_at: int | None = None
) -> dict[str, Any]:
    return {
        "this_id": task_id,
        "held_until": held_until,
        "new_due_at": due_at,
        "failed": failed,
        "new_absent_at": absent_at,
    }


def _doubt(row: Any, task: Any, until_at: int, *, form_works: bool) -> PendingReconciliation:
    return PendingReconciliation(
        task=task,
        began_at=moment(row.began_at),
        ended_at=moment(row.ended_at),
        due_at=moment(until_at),
        look_ups=row.look_ups,
        absent_at=moment_or_none(row.absent_at),
        form_works=form_works,
    )

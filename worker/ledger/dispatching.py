"""What goes on the broker now: what is due, and what was dispatched but never taken up.

Reads look first, through the partial indexes, so that a sweep that finds nothing writes nothing. The write asks again:
of several sweeps at once, one dispatches a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, and_, bindparam, func, or_, select, update

from rules.vocabulary import ProviderName, TaskState
from worker.ledger.encoding import micros, moment
from worker.ledger.mapping import task_ref
from worker.ledger.rows import TaskRef
from worker.ledger.statements import ForIds, Statement
from worker.ledger.tables import EVENT_OPEN, TASK_QUEUED, TASK_TIMED, events, tasks

_EVENT_OVERDUE: Final = and_(
    EVENT_OPEN, events.c.due_at <= bindparam("now"), events.c.dispatched_at <= bindparam("cutoff")
)
_OVERDUE_EVENTS: Final = Statement(
    select(events.c.id).where(_EVENT_OVERDUE).order_by(events.c.due_at).limit(bindparam("most"))
)
_DISPATCH_EVENTS: Final = ForIds(
    lambda ids: (
        update(events)
        .where(events.c.id.in_(ids), _EVENT_OVERDUE)
        .values(dispatched_at=bindparam("now"), dispatches=events.c.dispatches + 1)
        .returning(events.c.id)
    )
)

_TASK_DUE: Final = and_(TASK_TIMED, tasks.c.due_at <= bindparam("now"))
_TASK_STALE: Final = and_(TASK_QUEUED, tasks.c.dispatched_at <= bindparam("cutoff"))
_OF_PROVIDER: Final = tasks.c.provider == bindparam("provider")
_OLDEST: Final = select(tasks.c.id, tasks.c.due_at).order_by(tasks.c.due_at).limit(bindparam("most"))
_DUE_TASKS: Final = Statement(_OLDEST.where(_OF_PROVIDER, _TASK_DUE))
_STALE_TASKS: Final = Statement(_OLDEST.where(_OF_PROVIDER, _TASK_STALE))
_DISPATCH_TASKS: Final = ForIds(
    lambda ids: (
        update(tasks)
        .where(tasks.c.id.in_(ids), or_(_TASK_DUE, _TASK_STALE))
        .values(state=TaskState.QUEUED, dispatched_at=bindparam("now"), updated_at=bindparam("now"))
        .returning(*(tasks.c[name] for name in ("id", "type", "provider", "rule", "name", "attempts", "epoch")))
    )
)
_OLDEST_DUE: Final = (
    Statement(select(func.min(events.c.due_at)).where(EVENT_OPEN)),
    Statement(select(func.min(tasks.c.due_at)).where(TASK_TIMED)),
    Statement(select(func.min(tasks.c.due_at)).where(TASK_QUEUED)),
)
_PUT_BACK: Final = ForIds(
    lambda ids: (
        update(tasks)
        .where(tasks.c.id.in_(ids), TASK_QUEUED)
        .values(state=TaskState.WAITING, updated_at=bindparam("now"))
        .returning(tasks.c.id)
    )
)


def put_back(ids: Sequence[str], now: datetime) -> Callable[[Connection], None]:
    """Return the work that takes queued tasks off the broker's account: due as before, for the sweep to dispatch."""

    def work(connection: Connection) -> None:
        _PUT_BACK.rows(connection, ids, {"now": micros(now)})

    return work


def oldest_due(connection: Connection) -> datetime | None:
    """Return since when the oldest work that nobody holds is due, or will be; None when there is none."""
    moments = [value for statement in _OLDEST_DUE for value in statement.values(connection, {}) if value is not None]
    return moment(min(moments)) if moments else None


def overdue_event_ids(connection: Connection, now: datetime, grace: timedelta, limit: int) -> list[str]:
    """Return the ids of events to dispatch again, oldest due first."""
    return _OVERDUE_EVENTS.values(connection, _moments(now, grace) | {"most": limit})


def dispatch_events(ids: Sequence[str], now: datetime, grace: timedelta) -> Callable[[Connection], list[str]]:
    """Return the work that marks those of the events as dispatched that still have to be; its result is their ids."""

    def work(connection: Connection) -> list[str]:
        marked = {row.id for row in _DISPATCH_EVENTS.rows(connection, ids, _moments(now, grace))}
        return [event_id for event_id in ids if event_id in marked]

    return work


def due_task_ids(
    connection: Connection, now: datetime, grace: timedelta, limit_per_provider: Mapping[ProviderName, int]
) -> list[str]:
    """Return the ids of tasks to dispatch, oldest due first, at most so many of each provider."""
    chosen: list[tuple[int, str]] = []
    for provider, limit in limit_per_provider.items():
        if limit <= 0:
            continue
        asked = _moments(now, grace) | {"provider": provider, "most": limit}
        found = [
            (row.due_at, row.id)
            for statement in (_DUE_TASKS, _STALE_TASKS)
            for row in statement.rows(connection, asked)
        ]
        chosen += sorted(found)[:limit]
    return [task_id for _, task_id in sorted(chosen)]


def dispatch_tasks(ids: Sequence[str], now: datetime, grace: timedelta) -> Callable[[Connection], list[TaskRef]]:
    """Return the work that marks those of the tasks as queued that still have to be; its result is what messages need."""

    def work(connection: Connection) -> list[TaskRef]:
        marked = _DISPATCH_TASKS.rows(connection, ids, _moments(now, grace))
        refs = {row.id: task_ref(row) for row in marked}
        return [refs[task_id] for task_id in ids if task_id in refs]

    return work


def _moments(now: datetime, grace: timedelta) -> dict[str, object]:
    return {"now": micros(now), "cutoff": micros(now - grace)}

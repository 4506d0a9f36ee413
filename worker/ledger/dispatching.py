"""What goes on the broker now: what is due, and what was dispatched but never taken up.

Reads look first, through the partial indexes, so that a sweep that finds nothing writes nothing. The write chooses: of
several sweeps at once each takes the oldest that no other holds, so that they share the work and never wait for each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, and_, bindparam, func, select, update

from rules.vocabulary import ProviderName, TaskState, TaskType
from worker.ledger.encoding import micros, moment, task_ref
from worker.ledger.schema import EVENT_OPEN, TASK_QUEUED, TASK_TIMED, events, tasks
from worker.ledger.statements import ForIds, Statement
from worker.ledger.types import TaskRef

_EVENT_OVERDUE: Final = and_(
    EVENT_OPEN, events.c.due_at <= bindparam("now"), events.c.dispatched_at <= bindparam("cutoff")
)
_ANY_OVERDUE: Final = Statement(select(events.c.id).where(_EVENT_OVERDUE).limit(1))
_OVERDUE_EVENTS: Final = Statement(
    select(events.c.id)
    .where(_EVENT_OVERDUE)
    .order_by(events.c.due_at)
    .limit(bindparam("most"))
    .with_for_update(key_share=True, skip_locked=True)
)
_DISPATCH_EVENTS: Final = ForIds(
    lambda among: (
        update(events)
        .where(among(events.c.id))
        .values(dispatched_at=bindparam("now"), dispatches=events.c.dispatches + 1)
        .returning(events.c.id)
    )
)

_TASK_DUE: Final = and_(TASK_TIMED, tasks.c.due_at <= bindparam("now"))
_TASK_STALE: Final = and_(TASK_QUEUED, tasks.c.dispatched_at <= bindparam("cutoff"))
_OF_PROVIDER: Final = tasks.c.provider == bindparam("provider")
_ANY_TASK: Final = tuple(
    Statement(select(tasks.c.id).where(_OF_PROVIDER, due).limit(1)) for due in (_TASK_DUE, _TASK_STALE)
)
_OLDEST: Final = (
    select(tasks.c.id, tasks.c.due_at)
    .order_by(tasks.c.due_at)
    .limit(bindparam("most"))
    .with_for_update(key_share=True, skip_locked=True)
)
_DUE_TASKS: Final = Statement(_OLDEST.where(_OF_PROVIDER, _TASK_DUE))
_STALE_TASKS: Final = Statement(_OLDEST.where(_OF_PROVIDER, _TASK_STALE))
_DISPATCH_TASKS: Final = ForIds(
    lambda among: (
        update(tasks)
        .where(among(tasks.c.id))
        .values(state=TaskState.QUEUED, dispatched_at=bindparam("now"), updated_at=bindparam("now"))
        .returning(*(tasks.c[name] for name in ("id", "type", "provider", "rule", "name", "attempts", "epoch")))
    )
)
#: One look into an index for each: the smallest of a range that covers several states or types would cost a scan.
_OLDEST_DUE: Final = (
    Statement(select(func.min(events.c.due_at)).where(EVENT_OPEN)),
    *(
        Statement(select(func.min(tasks.c.due_at)).where(tasks.c.state == state, tasks.c.type == type_))
        for state in (TaskState.PLANNED, TaskState.WAITING, TaskState.QUEUED)
        for type_ in TaskType
    ),
)
_PUT_BACK: Final = ForIds(
    lambda among: (
        update(tasks)
        .where(among(tasks.c.id), TASK_QUEUED)
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


def any_overdue_event(connection: Connection, now: datetime, grace: timedelta) -> bool:
    """Whether there is an event to dispatch again."""
    return bool(_ANY_OVERDUE.rows(connection, _moments(now, grace)))


def dispatch_events(now: datetime, grace: timedelta, limit: int) -> Callable[[Connection], list[str]]:
    """Return the work that marks events as dispatched that have to be again; its result is their ids, oldest due first."""

    def work(connection: Connection) -> list[str]:
        at = _moments(now, grace)
        ids = _OVERDUE_EVENTS.values(connection, at | {"most": limit})
        if ids:
            _DISPATCH_EVENTS.rows(connection, ids, at)
        return ids

    return work


def any_due_task(
    connection: Connection, now: datetime, grace: timedelta, limit_per_provider: Mapping[ProviderName, int]
) -> bool:
    """Whether there is a task to dispatch of a provider that has room."""
    at = _moments(now, grace)
    asked = [at | {"provider": provider} for provider, limit in limit_per_provider.items() if limit > 0]
    return any(statement.rows(connection, each) for each in asked for statement in _ANY_TASK)


def dispatch_tasks(
    now: datetime, grace: timedelta, limit_per_provider: Mapping[ProviderName, int]
) -> Callable[[Connection], list[TaskRef]]:
    """Return the work that marks tasks as queued, oldest due first, at most so many of each provider.

    Its result is what messages need.
    """

    def work(connection: Connection) -> list[TaskRef]:
        at = _moments(now, grace)
        chosen: list[tuple[int, str]] = []
        for provider, limit in limit_per_provider.items():
            if limit > 0:
                asked = at | {"provider": provider, "most": limit}
                found = [row for each in (_DUE_TASKS, _STALE_TASKS) for row in each.rows(connection, asked)]
                chosen += sorted((row.due_at, row.id) for row in found)[:limit]
        ids = [task_id for _, task_id in sorted(chosen)]
        refs = {row.id: task_ref(row) for row in _DISPATCH_TASKS.rows(connection, ids, at)} if ids else {}
        return [refs[task_id] for task_id in ids]

    return work


def _moments(now: datetime, grace: timedelta) -> dict[str, object]:
    return {"now": micros(now), "cutoff": micros(now - grace)}

"""What an operator can look at. Lists are read page by page, newest first, so that any number of rows can pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from sqlalchemy import Connection, Engine, Row, Select, Table, bindparam, func, select

from rules.vocabulary import EventState, LedgerError, TaskState
from worker.ledger.database import reading
from worker.ledger.encoding import attempt_row, label, stored_event, stored_task
from worker.ledger.schema import attempts, decisions, deliveries, events, outcomes, tasks
from worker.ledger.statements import Statement
from worker.ledger.types import AttemptRow, Counts, StoredEvent, StoredTask

#: Rows read at once.
PAGE: Final = 500

_WHOLE_EVENTS: Final = select(events, decisions.c.decisions, deliveries.c.headers).select_from(
    events.outerjoin(decisions, decisions.c.event_id == events.c.id).outerjoin(
        deliveries, deliveries.c.id == events.c.delivery_id
    )
)
_EVENT: Final = Statement(_WHOLE_EVENTS.where(events.c.id == bindparam("wanted")))
_LAST_EVENT: Final = Statement(_WHOLE_EVENTS.order_by(events.c.seq.desc()).limit(1))
_BODY: Final = Statement(
    select(deliveries.c.body)
    .join(events, events.c.delivery_id == deliveries.c.id)
    .where(events.c.id == bindparam("wanted"))
)
_WHOLE_TASKS: Final = select(tasks, outcomes.c.outcome).select_from(
    tasks.outerjoin(outcomes, outcomes.c.task_id == tasks.c.id)
)
_TASK: Final = Statement(_WHOLE_TASKS.where(tasks.c.id == bindparam("wanted")))
_TASKS_OF: Final = Statement(_WHOLE_TASKS.where(tasks.c.event_id == bindparam("wanted")).order_by(tasks.c.seq))
_ATTEMPTS_OF: Final = Statement(
    select(attempts).where(attempts.c.task_id == bindparam("wanted")).order_by(attempts.c.epoch)
)
_EVENT_COUNTS: Final = Statement(select(events.c.state, func.count()).group_by(events.c.state))
_TASK_COUNTS: Final = Statement(select(tasks.c.state, func.count()).group_by(tasks.c.state))

#: As many ids as an ambiguous beginning shows.
_SHOWN: Final = 3


def list_events(
    readers: Engine, limit: int | None, *, state: EventState | None, source: str | None
) -> Iterator[StoredEvent]:
    """Return events with decisions and headers, newest first."""
    statement = _filtered(_WHOLE_EVENTS, events, {"state": state, "source": source})
    for row in _pages(readers, statement, events, limit):
        yield _whole_event(row)


def list_tasks(readers: Engine, limit: int | None, wanted: Mapping[str, str | None]) -> Iterator[StoredTask]:
    """Return tasks, newest first; `wanted` maps column names to values, None for any."""
    for row in _pages(readers, _filtered(_WHOLE_TASKS, tasks, wanted), tasks, limit):
        yield stored_task(row)


def event(connection: Connection, beginning: str) -> StoredEvent | None:
    """Return the event with this id, or with the only id that begins so."""
    event_id = full_id(connection, events, beginning)
    row = _EVENT.first(connection, {"wanted": event_id}) if event_id else None
    return _whole_event(row) if row else None


def last_event(connection: Connection) -> StoredEvent | None:
    """Return the event recorded last."""
    row = _LAST_EVENT.first(connection)
    return _whole_event(row) if row else None


def delivery_body(connection: Connection, event_id: str) -> bytes | None:
    """Return the raw body that an event came in."""
    body: bytes | None = _BODY.value(connection, {"wanted": label(event_id)})
    return body


def task(connection: Connection, beginning: str) -> StoredTask | None:
    """Return the task with this id, or with the only id that begins so."""
    task_id = full_id(connection, tasks, beginning)
    row = _TASK.first(connection, {"wanted": task_id}) if task_id else None
    return stored_task(row) if row else None


def tasks_of(connection: Connection, event_id: str) -> list[StoredTask]:
    """Return an event's tasks in the order they were planned."""
    return [stored_task(row) for row in _TASKS_OF.rows(connection, {"wanted": label(event_id)})]


def attempts_of(connection: Connection, task_id: str) -> list[AttemptRow]:
    """Return a task's attempts, oldest first."""
    return [attempt_row(row) for row in _ATTEMPTS_OF.rows(connection, {"wanted": label(task_id)})]


def counts(connection: Connection) -> Counts:
    """Return how many events and tasks are in each state."""
    return Counts(
        events={EventState(state): count for state, count in _EVENT_COUNTS.rows(connection)},
        tasks={TaskState(state): count for state, count in _TASK_COUNTS.rows(connection)},
    )


def full_id(connection: Connection, table: Table, beginning: str) -> str | None:
    """Return the id that is this text, or the only one that begins with it; LedgerError when several do."""
    if not beginning or "\0" in beginning or not beginning.isprintable():
        return None
    exact = connection.execute(select(table.c.id).where(table.c.id == beginning)).scalar()
    if exact is not None:
        return str(exact)
    begins = func.substr(table.c.id, 1, len(beginning)) == beginning
    found = connection.execute(select(table.c.id).where(begins).order_by(table.c.id).limit(_SHOWN)).scalars().all()
    if len(found) > 1:
        raise LedgerError(f"several {table.name} begin with {beginning}: {', '.join(found)}; give more characters")
    return found[0] if found else None


def _filtered(statement: Select[Any], table: Table, wanted: Mapping[str, str | None]) -> Select[Any]:
    for name, value in wanted.items():
        if value is not None:
            statement = statement.where(table.c[name] == label(value))
    return statement.order_by(table.c.seq.desc())


def _pages(readers: Engine, statement: Select[Any], table: Table, limit: int | None) -> Iterator[Row[Any]]:
    """Return rows in pages, each read on its own: a reader that stops half-way holds nothing open."""
    below: int | None = None
    left = limit
    while left is None or left > 0:
        size = PAGE if left is None else min(PAGE, left)
        page = statement.limit(size) if below is None else statement.where(table.c.seq < below).limit(size)
        with reading(readers) as connection:
            rows = connection.execute(page).all()
        yield from rows
        if len(rows) < size:
            return
        below = rows[-1].seq
        left = None if left is None else left - size


def _whole_event(row: Row[Any]) -> StoredEvent:
    return stored_event(row, decisions=row.decisions, headers=row.headers)

"""Which tasks and events an operator's selection means, oldest first.

The ids are read at once, because no index has them in their order, and the rest page by page. A selection never locks: what it
found is asked again by the transaction that changes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, Engine, Table, select

from rules.vocabulary import EventState, ProviderName, TaskState, TaskType
from worker.ledger.database import reading
from worker.ledger.encoding import label, micros, stored_event, stored_task
from worker.ledger.replaying import IS_GENERATION
from worker.ledger.schema import events, tasks
from worker.ledger.statements import ForIds
from worker.ledger.types import StoredEvent, StoredTask

#: Rows read at once.
PAGE: Final = 500

_TASKS: Final = ForIds(lambda among: select(tasks).where(among(tasks.c.id)))
_EVENTS: Final = ForIds(lambda among: select(events).where(among(events.c.id)))


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSelection:
    """Tasks in one of these states of which all that is given holds.

    `since_at` and `until_at` bound, from and before, the moment that `by` names: when a task changed last, which for one that
    has ended is its end, or when it was planned.
    """

    states: tuple[TaskState, ...]
    rule: str | None = None
    provider: ProviderName | None = None
    type: TaskType | None = None
    since_at: datetime | None = None
    until_at: datetime | None = None
    by: Literal["updated_at", "created_at"] = "updated_at"


@dataclass(frozen=True, slots=True, kw_only=True)
class EventSelection:
    """Events in one of these states of which all that is given holds; the moments bound when they were received.

    Generations made under new keys are not among them: they repeat events that are.
    """

    states: tuple[EventState, ...]
    source: str | None = None
    type: str | None = None
    since_at: datetime | None = None
    until_at: datetime | None = None


def select_tasks(readers: Engine, wanted: TaskSelection) -> Iterator[StoredTask]:
    """Return the tasks of a selection, oldest first."""
    held = {"rule": wanted.rule, "provider": wanted.provider, "type": wanted.type}
    conditions = [tasks.c.state.in_(wanted.states), *_same(tasks, held)]
    conditions += _between(tasks.c[wanted.by], wanted.since_at, wanted.until_at)
    for row in _pages(readers, tasks, _TASKS, conditions):
        yield stored_task(row)


def select_events(readers: Engine, wanted: EventSelection) -> Iterator[StoredEvent]:
    """Return the events of a selection, oldest first, without their decisions."""
    conditions = [events.c.state.in_(wanted.states), ~IS_GENERATION]
    conditions += _same(events, {"source": wanted.source, "type": wanted.type})
    conditions += _between(events.c.received_at, wanted.since_at, wanted.until_at)
    for row in _pages(readers, events, _EVENTS, conditions):
        yield stored_event(row)


def _same(table: Table, held: dict[str, str | None]) -> list[ColumnElement[bool]]:
    return [table.c[name] == label(value) for name, value in held.items() if value is not None]


def _between(
    column: ColumnElement[int], since_at: datetime | None, until_at: datetime | None
) -> list[ColumnElement[bool]]:
    since = [column >= micros(since_at)] if since_at else []
    return [*since, column < micros(until_at)] if until_at else since


def _pages(readers: Engine, table: Table, whole: ForIds, conditions: list[ColumnElement[bool]]) -> Iterator[Any]:
    """Return rows in pages, each read on its own: a reader that stops half-way holds nothing open."""
    with reading(readers) as connection:
        ids = connection.execute(select(table.c.id).where(*conditions).order_by(table.c.seq)).scalars().all()
    for start in range(0, len(ids), PAGE):
        with reading(readers) as connection:
            rows = whole.rows(connection, ids[start : start + PAGE])
        yield from sorted(rows, key=attrgetter("seq"))

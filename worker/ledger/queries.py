"""Read queries for operators and pages: events, tasks, selections, counts. Reads never wait for a writer.

Lists are read page by page, each in its own transaction: any number of rows can be read, and a reader that stops early holds
nothing open. Counts use indexes alone, so that a million finished tasks cost tens of milliseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, Connection, Engine, Row, Select, Table, bindparam, func, select, text

from rules.vocabulary import (
    PROVIDER_OF,
    TERMINAL_TASK_STATES,
    EventState,
    LedgerError,
    ProviderName,
    TaskState,
    TaskType,
)
from worker.ledger.counters import LABELS, CounterName
from worker.ledger.database import reading, snapshot
from worker.ledger.encoding import attempt_row, label, micros, moment, moment_or_none, stored_event, stored_task
from worker.ledger.limits import pauses_in_force
from worker.ledger.replay import IS_GENERATION
from worker.ledger.schema import (
    EVENT_OPEN,
    REVISIONS,
    attempts,
    decisions,
    deliveries,
    events,
    outcomes,
    rule_sets,
    tallies,
    tasks,
)
from worker.ledger.statements import ForIds, Statement
from worker.ledger.types import AttemptRow, Counts, ProviderState, StoredEvent, StoredTask
from worker.ledger.writer import LedgerGroup

#: Rows read at once.
PAGE: Final = 500
#: As many ids as an ambiguous beginning shows.
_SHOWN: Final = 3

_WHOLE_EVENTS: Final = select(events, decisions.c.decisions, deliveries.c.headers).select_from(
    events.outerjoin(decisions, decisions.c.event_id == events.c.id).outerjoin(
        deliveries, deliveries.c.id == events.c.delivery_id
    )
)
_EVENT: Final = Statement(_WHOLE_EVENTS.where(events.c.id == bindparam("wanted")))
_LAST_EVENT: Final = Statement(_WHOLE_EVENTS.order_by(events.c.seq.desc()).limit(1))
_EVENTS: Final = ForIds(lambda among: select(events).where(among(events.c.id)))
_BODY: Final = Statement(
    select(deliveries.c.body)
    .join(events, events.c.delivery_id == deliveries.c.id)
    .where(events.c.id == bindparam("wanted"))
)
_WHOLE_TASKS: Final = select(tasks, outcomes.c.outcome).select_from(
    tasks.outerjoin(outcomes, outcomes.c.task_id == tasks.c.id)
)
_TASK: Final = Statement(_WHOLE_TASKS.where(tasks.c.id == bindparam("wanted")))
_TASKS: Final = ForIds(lambda among: _WHOLE_TASKS.where(among(tasks.c.id)))
_TASKS_OF: Final = Statement(_WHOLE_TASKS.where(tasks.c.event_id == bindparam("wanted")).order_by(tasks.c.seq))
_ATTEMPTS_OF: Final = Statement(
    select(attempts).where(attempts.c.task_id == bindparam("wanted")).order_by(attempts.c.epoch)
)
_EVENT_COUNTS: Final = Statement(select(events.c.state, func.count()).group_by(events.c.state))
_TASK_COUNTS: Final = Statement(select(tasks.c.state, func.count()).group_by(tasks.c.state))
_NUMBER: Final = func.count().label("number")
#: One look for each state, into the index that begins with it: what has ended is most of a ledger.
_OPEN_TASKS: Final = Statement(
    select(tasks.c.provider, _NUMBER).where(tasks.c.state == bindparam("this_state")).group_by(tasks.c.provider)
)
_BEGUN_TODAY: Final = Statement(
    select(tasks.c.provider, _NUMBER)
    .select_from(attempts.join(tasks, tasks.c.id == attempts.c.task_id))
    .where(attempts.c.started_at >= bindparam("midnight"), attempts.c.deferred.is_(False))
    .group_by(tasks.c.provider)
)

#: What a worker has not begun yet.
_NOT_BEGUN: Final = (TaskState.PLANNED, TaskState.WAITING, TaskState.QUEUED)
#: One look into an index for each: the smallest of a range that covers several states or types would cost a scan.
_OLDEST_DUE: Final = (
    Statement(select(func.min(events.c.due_at)).where(EVENT_OPEN)),
    *(
        Statement(select(func.min(tasks.c.due_at)).where(tasks.c.state == state, tasks.c.type == type_))
        for state in _NOT_BEGUN
        for type_ in TaskType
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSelection:
    """A filter: tasks in one of these states that match every other field that is set.

    `since_at` (inclusive) and `until_at` (exclusive) bound the moment that `by` names: when the task last changed (for an ended
    task, its end), or when it was planned.
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
    """A filter: events in one of these states that match every other field that is set; the bounds are of `received_at`.

    Copies made by a replay under new keys are left out.
    """

    states: tuple[EventState, ...]
    source: str | None = None
    type: str | None = None
    since_at: datetime | None = None
    until_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One provider's unfinished tasks by state, and the attempts started since midnight UTC."""

    tasks: Mapping[TaskState, int] = field(default_factory=dict)
    begun_today: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """Due work that no process has claimed: how much, and since when the oldest is due."""

    number: int = 0
    oldest_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """The ledger's numbers in one snapshot; they contain no personal data.

    `tallies` maps each counter to its values by labels, in the order of `LABELS`. `paused` has the pauses in force. `rule_set`
    is the version accepted last, and when it was accepted.
    """

    taken_at: datetime
    tallies: Mapping[CounterName, Mapping[tuple[str, ...], int]]
    events: Mapping[tuple[EventState, str], int]
    tasks: Mapping[tuple[TaskState, TaskType], int]
    due_events: Due
    due_tasks: Mapping[ProviderName, Due]
    paused: Mapping[ProviderName, ProviderState]
    rule_set: tuple[str, datetime] | None
    engine: str
    revision: str
    size_bytes: int


class LedgerQueries(LedgerGroup):
    """`ledger.queries`: reads for operators and pages."""

    def list_events(
        self, limit: int | None = None, state: EventState | None = None, source: str | None = None
    ) -> Iterator[StoredEvent]:
        """Return events with their decisions and headers, newest first, read page by page."""
        for row in _newest_first(self._readers, _WHOLE_EVENTS, events, limit, {"state": state, "source": source}):
            yield _whole_event(row)

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
        for row in _newest_first(self._readers, _WHOLE_TASKS, tasks, limit, wanted):
            yield stored_task(row)

    def select_tasks(self, wanted: TaskSelection) -> Iterator[StoredTask]:
        """Return the selected tasks, oldest first, read page by page.

        Nothing is locked: the transaction that changes a task checks it again.
        """
        held = {"rule": wanted.rule, "provider": wanted.provider, "type": wanted.type}
        conditions = [tasks.c.state.in_(wanted.states), *_equal(tasks, held)]
        conditions += _between(tasks.c[wanted.by], wanted.since_at, wanted.until_at)
        return map(stored_task, _oldest_first(self._readers, tasks, _TASKS, conditions))

    def select_events(self, wanted: EventSelection) -> Iterator[StoredEvent]:
        """Return the events that an operator selected, oldest first, without their decisions."""
        conditions = [events.c.state.in_(wanted.states), ~IS_GENERATION]
        conditions += _equal(events, {"source": wanted.source, "type": wanted.type})
        conditions += _between(events.c.received_at, wanted.since_at, wanted.until_at)
        return map(stored_event, _oldest_first(self._readers, events, _EVENTS, conditions))

    def event(self, event_id: str) -> StoredEvent | None:
        """Return the event with this id or unique beginning of an id; None when there is none, LedgerError when several match."""

        def read(connection: Connection) -> StoredEvent | None:
            found = full_id(connection, events, event_id)
            row = _EVENT.first(connection, {"wanted": found}) if found else None
            return _whole_event(row) if row else None

        return self._read(read)

    def last_event(self) -> StoredEvent | None:
        """Return the event that was recorded last."""
        row = self._read(_LAST_EVENT.first)
        return _whole_event(row) if row else None

    def delivery_body(self, event_id: str) -> bytes | None:
        """Return the raw body of the webhook that brought an event; None when it is unknown or was deleted."""
        return self._read(lambda connection: _BODY.value(connection, {"wanted": label(event_id)}))

    def task(self, task_id: str) -> StoredTask | None:
        """Return the task with this id or unique beginning of an id; None when there is none, LedgerError when several match."""

        def read(connection: Connection) -> StoredTask | None:
            found = full_id(connection, tasks, task_id)
            row = _TASK.first(connection, {"wanted": found}) if found else None
            return stored_task(row) if row else None

        return self._read(read)

    def tasks_of(self, event_id: str) -> list[StoredTask]:
        """Return an event's tasks in the order they were planned."""
        rows = self._read(lambda connection: _TASKS_OF.rows(connection, {"wanted": label(event_id)}))
        return [stored_task(row) for row in rows]

    def attempts(self, task_id: str) -> list[AttemptRow]:
        """Return a task's attempts, oldest first."""
        rows = self._read(lambda connection: _ATTEMPTS_OF.rows(connection, {"wanted": label(task_id)}))
        return [attempt_row(row) for row in rows]

    def oldest_due(self) -> datetime | None:
        """Return when the oldest unclaimed work is or will be due; None when there is none."""
        found = self._read(lambda connection: [each.value(connection) for each in _OLDEST_DUE])
        return moment_or_none(min((value for value in found if value is not None), default=None))

    def counts(self) -> Counts:
        """Return how many events and tasks are in each state."""
        with snapshot(self._readers) as connection:
            return Counts(
                events={EventState(state): count for state, count in _EVENT_COUNTS.rows(connection)},
                tasks={TaskState(state): count for state, count in _TASK_COUNTS.rows(connection)},
            )

    def workloads(self, now: datetime) -> dict[ProviderName, Workload]:
        """Return each provider's unfinished tasks and how many attempts started today (UTC)."""
        midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        waiting: dict[str, dict[TaskState, int]] = {name: {} for name in ProviderName}
        with snapshot(self._readers) as connection:
            for state in TaskState:
                if state not in TERMINAL_TASK_STATES:
                    for row in _OPEN_TASKS.rows(connection, {"this_state": state}):
                        waiting[row.provider][state] = row.number
            begun = {row.provider: row.number for row in _BEGUN_TODAY.rows(connection, {"midnight": micros(midnight)})}
        return {name: Workload(tasks=waiting[name], begun_today=begun.get(name, 0)) for name in ProviderName}

    def measure(self, now: datetime) -> Measures:
        """Return counters and current numbers of the ledger, all from one snapshot."""
        with snapshot(self._readers) as connection:
            return _measure(connection, now)


def full_id(connection: Connection, table: Table, beginning: str) -> str | None:
    """Return the id equal to this text, or the only one that begins with it; None without a match, LedgerError for several."""
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


def _newest_first(
    readers: Engine, statement: Select[Any], table: Table, limit: int | None, wanted: Mapping[str, str | None]
) -> Iterator[Row[Any]]:
    """Return the rows of which all that is given holds, in pages."""
    statement = statement.where(*_equal(table, wanted)).order_by(table.c.seq.desc())
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


def _oldest_first(
    readers: Engine, table: Table, whole: ForIds, conditions: Sequence[ColumnElement[bool]]
) -> Iterator[Any]:
    """Return rows in pages; the ids are read at once, because no index has them in their order."""
    with reading(readers) as connection:
        ids = connection.execute(select(table.c.id).where(*conditions).order_by(table.c.seq)).scalars().all()
    for start in range(0, len(ids), PAGE):
        with reading(readers) as connection:
            rows = whole.rows(connection, ids[start : start + PAGE])
        yield from sorted(rows, key=attrgetter("seq"))


def _equal(table: Table, held: Mapping[str, str | None]) -> list[ColumnElement[bool]]:
    return [table.c[name] == label(value) for name, value in held.items() if value is not None]


def _between(
    column: ColumnElement[int], since_at: datetime | None, until_at: datetime | None
) -> list[ColumnElement[bool]]:
    since = [column >= micros(since_at)] if since_at else []
    return [*since, column < micros(until_at)] if until_at else since


def _whole_event(row: Any) -> StoredEvent:
    return stored_event(row, decisions=row.decisions, headers=row.headers)


# Measures --------------------------------------------------------------------------------------------------------------

_COUNTERS: Final = Statement(
    select(tallies.c.name, tallies.c.labels, func.sum(tallies.c.value).label("value")).group_by(
        tallies.c.name, tallies.c.labels
    )
)
_EVENTS_BY_SOURCE: Final = Statement(
    select(events.c.state, events.c.source, _NUMBER).group_by(events.c.state, events.c.source)
)
_TASKS_BY_TYPE: Final = Statement(select(tasks.c.state, tasks.c.type, _NUMBER).group_by(tasks.c.state, tasks.c.type))
_DUE_EVENTS: Final = Statement(
    select(func.min(events.c.due_at).label("oldest"))
    .add_columns(_NUMBER)
    .where(EVENT_OPEN, events.c.due_at <= bindparam("now"))
)
_DUE_TASKS: Final = Statement(
    select(func.min(tasks.c.due_at).label("oldest"))
    .add_columns(_NUMBER)
    .where(
        tasks.c.state == bindparam("of_state"), tasks.c.type == bindparam("of_type"), tasks.c.due_at <= bindparam("now")
    )
)
_RULE_SET: Final = Statement(
    select(rule_sets.c.version, rule_sets.c.accepted_at)
    .order_by(rule_sets.c.accepted_at.desc(), rule_sets.c.seq.desc())
    .limit(1)
)
_SIZES: Final = {
    "sqlite": "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size",
    "postgresql": "SELECT pg_database_size(current_database())",
}


def _measure(connection: Connection, now: datetime) -> Measures:
    rule_set = _RULE_SET.first(connection)
    engine = connection.dialect.name
    return Measures(
        taken_at=now,
        tallies=_counted(connection),
        events={(EventState(row.state), row.source): row.number for row in _EVENTS_BY_SOURCE.rows(connection)},
        tasks={(TaskState(row.state), TaskType(row.type)): row.number for row in _TASKS_BY_TYPE.rows(connection)},
        due_events=_due(_DUE_EVENTS.rows(connection, {"now": micros(now)})),
        due_tasks=_due_tasks(connection, now),
        paused=pauses_in_force(connection, now),
        rule_set=(rule_set.version, moment(rule_set.accepted_at)) if rule_set else None,
        engine=engine,
        revision=REVISIONS[-1],
        size_bytes=int(connection.execute(text(_SIZES[engine])).scalar_one()),
    )


def _counted(connection: Connection) -> dict[CounterName, dict[tuple[str, ...], int]]:
    found: dict[CounterName, dict[tuple[str, ...], int]] = {name: {} for name in CounterName}
    for row in _COUNTERS.rows(connection):
        if row.name not in found:
            continue  # of another version of Leadwire
        name = CounterName(row.name)
        by_name = json.loads(row.labels)
        labels = tuple(by_name.get(each, "") for each in LABELS[name])
        found[name][labels] = found[name].get(labels, 0) + int(row.value)
    return found


def _due_tasks(connection: Connection, now: datetime) -> dict[ProviderName, Due]:
    found: dict[ProviderName, list[Any]] = {name: [] for name in ProviderName}
    for type_ in TaskType:
        for state in _NOT_BEGUN:
            asked = {"of_state": state, "of_type": type_, "now": micros(now)}
            found[PROVIDER_OF[type_]] += _DUE_TASKS.rows(connection, asked)
    return {name: _due(rows) for name, rows in found.items()}


def _due(rows: Sequence[Any]) -> Due:
    oldest = min((row.oldest for row in rows if row.oldest is not None), default=None)
    return Due(number=sum(row.number for row in rows), oldest_at=moment_or_none(oldest))

"""What the ledger says about itself in numbers: every count ever made, and what is there at this moment.

One snapshot. What is there is counted from indexes alone, so that a million finished tasks cost tens of milliseconds; what
is due is found without passing by what is not. Nothing here names a person.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, bindparam, func, select, text

from rules.vocabulary import PROVIDER_OF, EventState, ProviderName, TaskState, TaskType
from worker.ledger import pauses
from worker.ledger.counters import LABELS, Tally
from worker.ledger.encoding import micros, moment, moment_or_none
from worker.ledger.schema import EVENT_OPEN, REVISIONS, events, rule_sets, tallies, tasks
from worker.ledger.statements import Statement
from worker.ledger.types import ProviderState

_TALLIES: Final = Statement(
    select(tallies.c.name, tallies.c.labels, func.sum(tallies.c.value).label("value")).group_by(
        tallies.c.name, tallies.c.labels
    )
)
_NUMBER: Final = func.count().label("number")
_EVENTS: Final = Statement(select(events.c.state, events.c.source, _NUMBER).group_by(events.c.state, events.c.source))
_TASKS: Final = Statement(select(tasks.c.state, tasks.c.type, _NUMBER).group_by(tasks.c.state, tasks.c.type))
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

#: What a worker has not begun yet.
_NOT_BEGUN: Final = (TaskState.PLANNED, TaskState.WAITING, TaskState.QUEUED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """Work that is due and that nobody has begun: how much, and since when the oldest of it."""

    number: int = 0
    oldest_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """The ledger in numbers at one moment.

    `tallies` holds for each count its values by its labels, in the order of `LABELS`. `paused` holds the pauses that are in
    force. `rule_set` is the set accepted last, and when.
    """

    taken_at: datetime
    tallies: Mapping[Tally, Mapping[tuple[str, ...], int]]
    events: Mapping[tuple[EventState, str], int]
    tasks: Mapping[tuple[TaskState, TaskType], int]
    due_events: Due
    due_tasks: Mapping[ProviderName, Due]
    paused: Mapping[ProviderName, ProviderState]
    rule_set: tuple[str, datetime] | None
    engine: str
    revision: str
    size_bytes: int


def measure(connection: Connection, now: datetime) -> Measures:
    """Return the ledger's numbers, all of one snapshot."""
    rule_set = _RULE_SET.first(connection)
    engine = connection.dialect.name
    return Measures(
        taken_at=now,
        tallies=_counted(connection),
        events={(EventState(row.state), row.source): row.number for row in _EVENTS.rows(connection)},
        tasks={(TaskState(row.state), TaskType(row.type)): row.number for row in _TASKS.rows(connection)},
        due_events=_due(_DUE_EVENTS.rows(connection, {"now": micros(now)})),
        due_tasks=_due_tasks(connection, now),
        paused=pauses.in_force(connection, now),
        rule_set=(rule_set.version, moment(rule_set.accepted_at)) if rule_set else None,
        engine=engine,
        revision=REVISIONS[-1],
        size_bytes=int(connection.execute(text(_SIZES[engine])).scalar_one()),
    )


def _counted(connection: Connection) -> dict[Tally, dict[tuple[str, ...], int]]:
    found: dict[Tally, dict[tuple[str, ...], int]] = {tally: {} for tally in Tally}
    for row in _TALLIES.rows(connection):
        if row.name not in found:
            continue  # of another version of Leadwire
        tally = Tally(row.name)
        by_name = json.loads(row.labels)
        labels = tuple(by_name.get(name, "") for name in LABELS[tally])
        found[tally][labels] = found[tally].get(labels, 0) + int(row.value)
    return found


def _due_tasks(connection: Connection, now: datetime) -> dict[ProviderName, Due]:
    rows: dict[ProviderName, list[Due]] = {name: [] for name in ProviderName}
    for type_ in TaskType:
        for state in _NOT_BEGUN:
            asked = {"of_state": state, "of_type": type_, "now": micros(now)}
            rows[PROVIDER_OF[type_]].append(_due(_DUE_TASKS.rows(connection, asked)))
    return {name: _together(found) for name, found in rows.items()}


def _due(rows: list[Any]) -> Due:
    (row,) = rows
    return Due(number=row.number, oldest_at=moment_or_none(row.oldest))


def _together(found: list[Due]) -> Due:
    since = [due.oldest_at for due in found if due.oldest_at is not None]
    return Due(number=sum(due.number for due in found), oldest_at=min(since) if since else None)

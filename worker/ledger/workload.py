"""What lies before each provider and what it was asked today, for a person who decides about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import Connection, bindparam, func, select

from rules.vocabulary import TERMINAL_TASK_STATES, ProviderName, TaskState
from worker.ledger.encoding import micros
from worker.ledger.schema import attempts, tasks
from worker.ledger.statements import Statement

#: The moment of a pause that a person ordered without an end: only `resume_provider` ends it.
UNTIL_RESUMED: Final = datetime(9999, 1, 1, tzinfo=UTC)

_NUMBER: Final = func.count().label("number")
#: One look for each state, into the index that begins with it: what has ended is most of a ledger.
_OPEN: Final = Statement(
    select(tasks.c.provider, _NUMBER).where(tasks.c.state == bindparam("this_state")).group_by(tasks.c.provider)
)
_BEGUN: Final = Statement(
    select(tasks.c.provider, _NUMBER)
    .select_from(attempts.join(tasks, tasks.c.id == attempts.c.task_id))
    .where(attempts.c.started_at >= bindparam("midnight"), attempts.c.deferred.is_(False))
    .group_by(tasks.c.provider)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """How many of a provider's tasks are in each state that has not ended, and how many attempts began since midnight UTC."""

    tasks: Mapping[TaskState, int] = field(default_factory=dict)
    begun_today: int = 0


def workloads(connection: Connection, now: datetime) -> dict[ProviderName, Workload]:
    """Return the workload of every provider."""
    waiting: dict[ProviderName, dict[TaskState, int]] = {name: {} for name in ProviderName}
    for state in TaskState:
        if state not in TERMINAL_TASK_STATES:
            for row in _OPEN.rows(connection, {"this_state": state}):
                waiting[ProviderName(row.provider)][state] = row.number
    midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    begun = {ProviderName(row.provider): row.number for row in _BEGUN.rows(connection, {"midnight": micros(midnight)})}
    return {name: Workload(tasks=waiting[name], begun_today=begun.get(name, 0)) for name in ProviderName}

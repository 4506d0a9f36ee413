"""Claiming tasks in the transaction that records them.

They are decided about before they are written, so that what is claimed is written once, as claimed: what `claiming.py` does
to a task that stands costs a reading and a second writing of its row.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from rules.vocabulary import Task, TaskState
from worker.ledger import claiming
from worker.ledger.claiming import Taken
from worker.ledger.gates import Gates
from worker.ledger.schema import tasks
from worker.ledger.types import ClaimTerms, NotClaimed

#: A task that is to be recorded: for which of several callers, and the row that it becomes.
New = tuple[int, Task, Mapping[str, Any]]

#: A row of `tasks` that is not there yet.
_Made: Any = namedtuple("_Made", tasks.c.keys(), defaults=[None] * len(tasks.c))  # type: ignore[misc]  # noqa: PYI024  # its names are the columns


@dataclass(frozen=True, slots=True)
class AtOnce:
    """What was decided: `rows` are to be recorded in place of those that were given, by the tasks' ids."""

    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    _begun: Sequence[Any] = ()
    _answers: Sequence[tuple[int, Taken | NotClaimed]] = ()

    def stand(self, connection: Connection, there: Collection[str]) -> Iterator[tuple[int, Taken | NotClaimed]]:
        """Note the attempts at those that were recorded; give the answers about them, each with its caller."""
        begun = [row for row in self._begun if row.id in there]
        if begun:
            claiming.add_attempts(connection, begun)
        return (pair for pair in self._answers if pair[1].task_id in there)


@dataclass(frozen=True, slots=True)
class Caller:
    """What one caller of several wants of the tasks that are recorded for it, and at which moment it asks."""

    terms: ClaimTerms | None
    now: datetime


def gates_of(connection: Connection, callers: Sequence[Caller]) -> Gates | None:
    """Lock the providers that callers' terms limit, before anything else is locked; None where nobody claims."""
    claiming_ones = [(each.terms.limits, each.now) for each in callers if each.terms is not None]
    if not claiming_ones:
        return None
    return Gates(connection, [limits for limits, _ in claiming_ones], min(now for _, now in claiming_ones))


def claim_at_once(connection: Connection, callers: Sequence[Caller], new: Iterable[New], gates: Gates | None) -> AtOnce:
    """Decide about the tasks that each caller's terms name. One that has expired is left to its message, which tells so."""
    if gates is None:
        return AtOnce()
    wanted: dict[int, list[str]] = {}
    rows: dict[str, Mapping[str, Any]] = {}
    for number, task, row in new:
        terms = callers[number].terms
        if terms is None or task.type is not terms.type or row["state"] != TaskState.QUEUED:
            continue
        is_over = row["expires_at"] is not None and row["expires_at"] <= row["created_at"]
        if not is_over and len(wanted.get(number, ())) < terms.most:
            wanted.setdefault(number, []).append(row["id"])
            rows[row["id"]] = row
    if not wanted:
        return AtOnce()
    asked = [
        claiming.asked(ids, callers[number].now, terms.lease, terms.owner, terms.limits)
        for number, ids in wanted.items()
        if (terms := callers[number].terms) is not None
    ]
    made = {task_id: _Made(**row) for task_id, row in rows.items()}
    decided = claiming.decide(connection, asked, made, gates)
    changed: dict[str, Mapping[str, Any]] = {row.id: row._asdict() for row in decided.begun}
    for change in decided.ended:
        new_values = {name.removeprefix("new_"): value for name, value in change.items() if name.startswith("new_")}
        changed[change["task_id"]] = {**rows[change["task_id"]], **new_values}
    answers = [(number, answer) for number, part in zip(wanted, decided.answers, strict=True) for answer in part]
    return AtOnce(changed, decided.begun, answers)

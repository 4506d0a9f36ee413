"""Which ends of tasks are to be answered: noted in the very transaction that ends the task, if its rule answers that end.

Nothing is planned here; the row is the promise that it will be. A task that ends again, after a person had it tried again, is
answered again: what it led to before has its keys and is not made twice. While its failure is undone, what answers it and
has not been sent is not wanted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from sqlalchemy import Connection, select

from rules.vocabulary import FAILURE, TaskState
from worker.ledger.schema import reactions, tasks
from worker.ledger.statements import ForIds, Statement, columns_of, upsert

#: The ends that `on_failure` answers. Not one that a person decided: cancelled.
FAILED_STATES: Final = frozenset({TaskState.DEAD, TaskState.SUPPRESSED})

#: How the reason begins of what was not sent because the failure that it answers was undone.
UNDONE: Final = "not wanted any more: "

_NEW: Final = upsert(reactions)
_NOTE: Final = Statement(
    _NEW.on_conflict_do_update(
        index_elements=(reactions.c.task_id, reactions.c.trigger),
        set_={name: _NEW.excluded[name] for name in ("since_at", "due_at", "tries")},
    ),
    columns_of(reactions),
)
_ANSWERED: Final = ForIds(lambda among: select(tasks.c.id, tasks.c.name, tasks.c.state).where(among(tasks.c.id)))


def note_ends(connection: Connection, ended: Iterable[tuple[str, Sequence[str]]], at: int, end: str = FAILURE) -> None:
    """Note an end of tasks, given by id and `Task.reactions`; those whose rule does not answer it are passed over."""
    rows = [
        {"task_id": task_id, "trigger": end, "since_at": at, "due_at": at, "tries": 0}
        for task_id, answered in ended
        if end in answered
    ]
    if rows:
        _NOTE.run_many(connection, rows)


def undone(connection: Connection, asked: Iterable[Any]) -> dict[str, str]:
    """Return, by the ids of these tasks, given as rows, why they are not wanted: each answers a failure that was undone.

    What answers a failure bears the name of the task that failed before its own, and what answers an outcome the word
    between them. What a person had tried again by itself is wanted: its epoch counts more than its tries.
    """
    answers = [task for task in asked if task.parent is not None and task.epoch == task.attempts]
    if not answers:
        return {}
    found = {row.id: row for row in _ANSWERED.rows(connection, sorted({str(task.parent) for task in answers}))}
    why = {}
    for task in answers:
        parent = found.get(task.parent)
        if parent is not None and parent.state not in FAILED_STATES and task.name.rpartition("/")[0] == parent.name:
            why[task.id] = f"{UNDONE}the failure of task {parent.id} was undone; it is {parent.state}"
    return why

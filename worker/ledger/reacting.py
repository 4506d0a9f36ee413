"""Which ends of tasks are to be answered: noted in the very transaction that ends the task, if its rule answers that end.

Nothing is planned here; the row is the promise that it will be. A task that ends again, after a person had it tried again, is
answered again: what it led to before has its keys and is not made twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from sqlalchemy import Connection

from rules.vocabulary import FAILURE, TaskState
from worker.ledger.statements import Statement, columns_of, upsert
from worker.ledger.tables import reactions

#: The ends that `on_failure` answers. Not one that a person decided: cancelled.
FAILED_STATES: Final = frozenset({TaskState.DEAD, TaskState.SUPPRESSED})

_NEW: Final = upsert(reactions)
_NOTE: Final = Statement(
    _NEW.on_conflict_do_update(
        index_elements=(reactions.c.task_id, reactions.c.trigger),
        set_={name: _NEW.excluded[name] for name in ("since_at", "due_at", "tries")},
    ),
    columns_of(reactions),
)


def note_ends(connection: Connection, ended: Iterable[tuple[str, Sequence[str]]], at: int, end: str = FAILURE) -> None:
    """Note an end of tasks, given by id and `Task.reactions`; those whose rule does not answer it are passed over."""
    rows = [
        {"task_id": task_id, "trigger": end, "since_at": at, "due_at": at, "tries": 0}
        for task_id, answered in ended
        if end in answered
    ]
    if rows:
        _NOTE.run_many(connection, rows)

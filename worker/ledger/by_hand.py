"""What an operator may decide about a task, and from which state; every other state is refused with the way on."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, bindparam, select, update

from rules.vocabulary import LedgerError, TaskState, instant
from worker.ledger import listing, tallying
from worker.ledger.encoding import label, micros, sentence
from worker.ledger.mapping import stored_task
from worker.ledger.rows import StoredTask
from worker.ledger.statements import Statement
from worker.ledger.tables import tasks
from worker.ledger.tallying import Tally

_THIS: Final = tasks.c.id == bindparam("task_id")
_FOUND: Final = Statement(select(tasks).where(_THIS).with_for_update(key_share=True))
_CHANGEABLE: Final = ("state", "due_at", "expires_at", "external_id", "reason", "note", "attempts", "epoch")
_CHANGE: Final = Statement(
    update(tasks)
    .where(_THIS)
    .values(
        {name: bindparam(f"new_{name}") for name in (*_CHANGEABLE, "first_attempt_at")}
        | {"dispatched_at": None, "updated_at": bindparam("now")}
    )
)

_REVIVED: Final = frozenset({TaskState.DEAD, TaskState.CANCELLED, TaskState.SUPPRESSED})
_NO_RETRY: Final = {
    TaskState.UNKNOWN: "it may have been executed; find out, then: leadwire settle {id} --delivered|--not-delivered",
    TaskState.DELIVERED: "it was delivered; sending it again would repeat it",
    TaskState.SENDING: "it is being sent now",
    TaskState.QUEUED: "it is about to be sent",
    TaskState.PLANNED: "it has not been tried yet; it is due at {due_at}",
}


def settle(task_id: str, delivered: bool, external_id: str | None, now: datetime) -> Callable[[Connection], StoredTask]:
    """Return the work that ends the doubt about an unknown task."""

    def work(connection: Connection) -> StoredTask:
        task = _find(connection, task_id)
        if task.state != TaskState.UNKNOWN:
            raise LedgerError(f"task {task.id} is {task.state}: only an unknown task can be settled by hand")
        if delivered:
            tallying.of(connection).count(Tally.TASKS_ENDED, task.type, TaskState.DELIVERED)
            known = external_id if external_id is not None else task.external_id
            return _change(
                connection,
                task,
                now,
                state=TaskState.DELIVERED,
                external_id=None if known is None else label(known),
                reason="settled by hand: delivered",
            )
        return _change(
            connection,
            task,
            now,
            state=TaskState.WAITING,
            due_at=micros(now),
            reason="settled by hand: not delivered; it is sent again",
        )

    return work


def retry(task_id: str, now: datetime) -> Callable[[Connection], StoredTask]:
    """Return the work that makes a task due now."""

    def work(connection: Connection) -> StoredTask:
        task = _find(connection, task_id)
        if task.state == TaskState.WAITING:
            return _change(connection, task, now, due_at=micros(now), **_lifted(task, now))
        if task.state not in _REVIVED:
            why = _NO_RETRY[task.state].format(id=task.id, due_at=instant(task.due_at))
            raise LedgerError(f"task {task.id} is {task.state}: {why}")
        if task.state == TaskState.DEAD and task.epoch == 0:
            # It died while it was planned: its fields are incomplete, and a half-made touch must never leave.
            raise LedgerError(
                f"task {task.id} was never complete ({task.reason}): correct the rule or the data, and have the event sent again"
            )
        return _change(
            connection,
            task,
            now,
            state=TaskState.WAITING,
            due_at=micros(now),
            reason=sentence(f"retried by hand; before it was {task.state}: {task.reason or 'no reason given'}"),
            attempts=0,
            epoch=task.epoch + 1,
            first_attempt_at=None,
            **_lifted(task, now),
        )

    return work


def _lifted(task: StoredTask, now: datetime) -> dict[str, Any]:
    """Return the changes that take away an end that has passed."""
    if task.expires_at is None or task.expires_at > now:
        return {}
    remark = f"retried by hand after it had expired at {instant(task.expires_at)}"
    return {"expires_at": None, "note": sentence(f"{task.note}; {remark}" if task.note else remark)}


def _find(connection: Connection, beginning: str) -> StoredTask:
    task_id = listing.full_id(connection, tasks, beginning)
    row = _FOUND.first(connection, {"task_id": task_id}) if task_id else None
    if row is None:
        raise LedgerError(f"there is no task {sentence(beginning)}; list them with: leadwire tasks")
    return stored_task(row)


def _change(connection: Connection, task: StoredTask, now: datetime, **changed: Any) -> StoredTask:
    row = _FOUND.rows(connection, {"task_id": task.id})[0]
    kept = {f"new_{name}": getattr(row, name) for name in (*_CHANGEABLE, "first_attempt_at")}
    new = {f"new_{name}": value for name, value in changed.items()}
    _CHANGE.run(connection, kept | new | {"task_id": task.id, "now": micros(now)})
    return stored_task(_FOUND.rows(connection, {"task_id": task.id})[0])

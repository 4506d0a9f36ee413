"""What an operator may decide about a task, and from which state; every other state is refused with the way on.

Whether a command fits a task is asked twice by the same function: by whoever counts beforehand, and in the transaction that
changes it. What was retried keeps its attempts and goes on under a new epoch; only its reason is told anew.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, bindparam, delete, select, update

from rules.vocabulary import LedgerError, TaskState, Verdict, instant
from worker.ledger import counters, listing, outcomes
from worker.ledger.counters import Tally
from worker.ledger.doubts import FIRST_LOOK_MICROS, Begun
from worker.ledger.doubts import begin as begin_doubts
from worker.ledger.encoding import label, micros, sentence, stored_task
from worker.ledger.schema import attempts, doubts, tasks
from worker.ledger.statements import ForIds, Statement
from worker.ledger.types import StoredTask

_THIS: Final = tasks.c.id == bindparam("task_id")
_FOUND: Final = Statement(select(tasks).where(_THIS).with_for_update(key_share=True))
_FOUND_MANY: Final = ForIds(
    lambda among: select(tasks).where(among(tasks.c.id)).order_by(tasks.c.id).with_for_update(key_share=True)
)
_CHANGEABLE: Final = ("state", "due_at", "expires_at", "external_id", "reason", "note", "attempts", "epoch")
_KEPT: Final = (*_CHANGEABLE, "first_attempt_at")
_CHANGE: Final = Statement(
    update(tasks)
    .where(_THIS)
    .values(
        {name: bindparam(f"new_{name}") for name in _KEPT}
        | {"dispatched_at": None, "slot_at": None, "updated_at": bindparam("now")}
    )
)
_LAST_VERDICT: Final = Statement(
    select(attempts.c.verdict)
    .where(attempts.c.task_id == bindparam("task_id"), attempts.c.deferred.is_(False))
    .order_by(attempts.c.epoch.desc())
    .limit(1)
)
_END_DOUBT: Final = Statement(delete(doubts).where(doubts.c.task_id == bindparam("task_id")))

#: What a selection may be retried from, and cancelled from.
RETRIED_STATES: Final = (TaskState.DEAD, TaskState.SUPPRESSED, TaskState.CANCELLED, TaskState.WAITING)
CANCELLED_STATES: Final = (TaskState.PLANNED, TaskState.QUEUED, TaskState.WAITING, TaskState.UNKNOWN)

_NO_RETRY: Final = {
    TaskState.UNKNOWN: "it may have been executed, and is looked up at its provider; what that cannot tell is yours to settle: "
    "leadwire settle {id} --delivered|--not-delivered",
    TaskState.DELIVERED: "it was delivered; sending it again would repeat it",
    TaskState.SENDING: "it is being sent now",
    TaskState.QUEUED: "it is about to be sent",
    TaskState.PLANNED: "it has not been tried yet; it is due at {due_at}",
}
_NO_CANCEL: Final = {
    TaskState.SENDING: "it is being sent now: its outcome is known within a minute; ask again then",
    TaskState.DELIVERED: "its provider has it; it can only be ended there: leadwire cancel {id} --at-provider",
} | dict.fromkeys((TaskState.DEAD, TaskState.CANCELLED, TaskState.SUPPRESSED), "it has ended already")

_RETRIED: Final = "retried by a person at "
_BEFORE: Final = "; before it was "


def why_not_retried(task: StoredTask) -> str | None:
    """Return why a task may not be sent again by a person's word, with the way on; None when it may."""
    if task.state in _NO_RETRY:
        return (
            f"task {task.id} is {task.state}: {_NO_RETRY[task.state].format(id=task.id, due_at=instant(task.due_at))}"
        )
    if task.state == TaskState.DEAD and task.epoch == 0:
        # It died while it was planned: its fields are incomplete, and a half-made touch must never leave.
        again = "leadwire replay {id} plans it again" if task.parent is None else "leadwire replay {id} --new-keys"
        return (
            f"task {task.id} was never complete ({task.reason}): correct the rule, restart, then "
            f"{again.format(id=task.event_id)}; or correct the data, and have a new event sent"
        )
    if task.external_id is not None and task.state in {TaskState.CANCELLED, TaskState.SUPPRESSED}:
        return (
            f"task {task.id} is {task.state}, and its provider got it as {task.external_id}: sending it would repeat it"
        )
    return None


def why_not_cancelled(task: StoredTask) -> str | None:
    """Return why a task cannot be cancelled here, with the way on; None when it can."""
    refusal = _NO_CANCEL.get(task.state)
    return f"task {task.id} is {task.state}: {refusal.format(id=task.id)}" if refusal else None


def settle(task_id: str, delivered: bool, external_id: str | None, now: datetime) -> Callable[[Connection], StoredTask]:
    """Return the work that ends the doubt about an unknown task."""

    def work(connection: Connection) -> StoredTask:
        task = _find(connection, task_id)
        if task.state != TaskState.UNKNOWN:
            raise LedgerError(f"task {task.id} is {task.state}: only an unknown task can be settled by hand")
        _END_DOUBT.run(connection, {"task_id": task.id})
        if delivered:
            counters.of(connection).count(Tally.TASKS_ENDED, task.type, TaskState.DELIVERED)
            known = external_id if external_id is not None else task.external_id
            changed: dict[str, Any] = {
                "state": TaskState.DELIVERED,
                "external_id": None if known is None else label(known),
                "reason": "settled by hand: delivered",
            }
            outcomes.follow_found(connection, task.id, task.provider, changed["external_id"], micros(now))
        else:
            reason = "settled by hand: not delivered; it is sent again"
            changed = {"state": TaskState.WAITING, "due_at": micros(now), "reason": reason}
        return _change(connection, task, now, changed)

    return work


def retry(task_id: str, now: datetime) -> Callable[[Connection], StoredTask]:
    """Return the work that makes a task due now."""

    def work(connection: Connection) -> StoredTask:
        task = _find(connection, task_id)
        refusal = why_not_retried(task)
        if refusal:
            raise LedgerError(refusal)
        return _change(connection, task, now, _retried(connection, task, now, now))

    return work


def retry_many(
    due: Mapping[str, datetime], states: Collection[TaskState], now: datetime
) -> Callable[[Connection], list[StoredTask]]:
    """Return the work that makes tasks due, each at its moment; those that are in none of these states now are left."""

    def work(connection: Connection) -> list[StoredTask]:
        found = _find_many(connection, list(due))
        fit = [task for task, _ in found if task.state in states and not why_not_retried(task)]
        return _change_many(
            connection, found, {task.id: _retried(connection, task, due[task.id], now) for task in fit}, now
        )

    return work


def cancel(task_id: str, why: str | None, now: datetime) -> Callable[[Connection], StoredTask]:
    """Return the work that ends a task which has not been sent."""

    def work(connection: Connection) -> StoredTask:
        task = _find(connection, task_id)
        refusal = why_not_cancelled(task)
        if refusal:
            raise LedgerError(refusal)
        return _change(connection, task, now, _cancelled(connection, task, why, now))

    return work


def cancel_many(
    ids: Sequence[str], states: Collection[TaskState], why: str | None, now: datetime
) -> Callable[[Connection], list[StoredTask]]:
    """Return the work that ends tasks; those that are in none of these states now are left."""

    def work(connection: Connection) -> list[StoredTask]:
        found = _find_many(connection, ids)
        fit = [task for task, _ in found if task.state in states and not why_not_cancelled(task)]
        return _change_many(connection, found, {task.id: _cancelled(connection, task, why, now) for task in fit}, now)

    return work


def cancelled_there(
    task_id: str, answer: str, why: str | None, now: datetime, *, taken: bool
) -> Callable[[Connection], StoredTask]:
    """Return the work that keeps what a provider answered to a call that cancels a task which it has."""

    def work(connection: Connection) -> StoredTask:
        task = _find(connection, task_id)
        remark = f"asked to be cancelled at {task.provider} at {instant(now)}: {answer}"
        changed: dict[str, Any] = {"note": _noted(task, remark)}
        if taken and task.state == TaskState.DELIVERED:
            counters.of(connection).count(Tally.TASKS_ENDED, task.type, TaskState.CANCELLED)
            reason = _because(f"cancelled at {task.provider} by a person at {instant(now)}", why)
            changed |= {"state": TaskState.CANCELLED, "reason": sentence(reason)}
            outcomes.leave(connection, task.id)
        return _change(connection, task, now, changed)

    return work


def _retried(connection: Connection, task: StoredTask, due_at: datetime, now: datetime) -> dict[str, Any]:
    """Return the changes of a retry: what waits waits no longer than before, what has ended begins anew.

    What has ended while nobody knew whether it was executed is looked up before it is sent again, however it ended: a
    look-up that ended the doubt may have been too early, and a rule that repeats in doubt does not speak for this retry.
    """
    said = f"{_RETRIED}{instant(now)}{_BEFORE}{task.state}: {_first_reason(task) or 'no reason given'}"
    changed = {"state": TaskState.WAITING, "reason": sentence(said), **_lifted(task, now)}
    if task.state == TaskState.WAITING:
        return changed | {"due_at": micros(min(due_at, task.due_at))}
    anew = {"attempts": 0, "epoch": task.epoch + 1, "first_attempt_at": None}
    if _LAST_VERDICT.value(connection, {"task_id": task.id}) == Verdict.UNKNOWN:
        at = micros(now)
        begun = Begun(task_id=task.id, provider=task.provider, ended_at=at, look_up_at=at + FIRST_LOOK_MICROS)
        begin_doubts(connection, [begun])
        changed["state"] = TaskState.UNKNOWN
    return changed | {"due_at": micros(due_at)} | anew


def _first_reason(task: StoredTask) -> str | None:
    """Return a task's reason without what an earlier retry has put before it."""
    reason = task.reason
    if reason is not None and reason.startswith(_RETRIED):
        return reason.partition(_BEFORE)[2].partition(": ")[2]
    return reason


def _lifted(task: StoredTask, now: datetime) -> dict[str, Any]:
    """Return the changes that take away an end that has passed."""
    if task.expires_at is None or task.expires_at > now:
        return {}
    remark = f"retried by hand after it had expired at {instant(task.expires_at)}"
    return {"expires_at": None, "note": _noted(task, remark)}


def _cancelled(connection: Connection, task: StoredTask, why: str | None, now: datetime) -> dict[str, Any]:
    """Return the changes of a task that a person ends; the doubt about it ends too."""
    reason = _because(f"cancelled by a person at {instant(now)}", why)
    if task.state == TaskState.UNKNOWN:
        _END_DOUBT.run(connection, {"task_id": task.id})
        reason = f"{reason}; it may have been executed before: {task.reason}"
    counters.of(connection).count(Tally.TASKS_ENDED, task.type, TaskState.CANCELLED)
    return {"state": TaskState.CANCELLED, "reason": sentence(reason)}


def _because(what: str, why: str | None) -> str:
    return f"{what}: {why}" if why else what


def _noted(task: StoredTask, remark: str) -> str:
    return sentence(f"{task.note}; {remark}" if task.note else remark)


def _find(connection: Connection, beginning: str) -> StoredTask:
    task_id = listing.full_id(connection, tasks, beginning)
    row = _FOUND.first(connection, {"task_id": task_id}) if task_id else None
    if row is None:
        raise LedgerError(f"there is no task {sentence(beginning)}; list them with: leadwire tasks")
    return stored_task(row)


def _find_many(connection: Connection, ids: Sequence[str]) -> list[tuple[StoredTask, Any]]:
    """Return tasks and their rows in the order of their ids, which everybody keeps: no two processes wait for each other."""
    return [(stored_task(row), row) for row in _FOUND_MANY.rows(connection, sorted(ids))]


def _change(connection: Connection, task: StoredTask, now: datetime, changed: Mapping[str, Any]) -> StoredTask:
    return _change_many(connection, _find_many(connection, [task.id]), {task.id: changed}, now)[0]


def _change_many(
    connection: Connection,
    found: Sequence[tuple[StoredTask, Any]],
    changed: Mapping[str, Mapping[str, Any]],
    now: datetime,
) -> list[StoredTask]:
    """Make the changes of each task, by id; return the tasks as they are then."""
    rows = []
    for task, row in found:
        if task.id in changed:
            values = {name: getattr(row, name) for name in _KEPT} | dict(changed[task.id])
            rows.append({"task_id": task.id, "now": micros(now)} | {f"new_{name}": values[name] for name in _KEPT})
    if not rows:
        return []
    _CHANGE.run_many(connection, rows)
    return [task for task, _ in _find_many(connection, list(changed))]

"""Commands of an operator on tasks and events: settle, retry, cancel, replay. Each says from which states it is allowed.

Whether a command is allowed is checked by the same function twice: when the command counts what it selected, and in the
transaction that makes the change. A refusal says what to do instead. A retried task keeps its attempts, gets a new epoch and a
new `reason`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, bindparam, select, update

from rules.vocabulary import LedgerError, TaskState, Verdict, instant
from worker.ledger import transitions
from worker.ledger.counters import CounterName, counters_of
from worker.ledger.encoding import label, micros, sentence, stored_task
from worker.ledger.queries import full_id
from worker.ledger.reconciliation import stop_polling
from worker.ledger.replay import Replayed, renew_events, replay_events
from worker.ledger.schema import attempts, tasks
from worker.ledger.statements import ForIds, Statement
from worker.ledger.types import StoredTask
from worker.ledger.writer import LedgerGroup

_LOCK_TASKS: Final = ForIds(
    lambda among: select(tasks).where(among(tasks.c.id)).order_by(tasks.c.id).with_for_update(key_share=True)
)
_KEPT: Final = (
    *("state", "due_at", "expires_at", "external_id", "reason", "note", "attempts", "epoch", "first_attempt_at"),
)
_CHANGE: Final = Statement(
    update(tasks)
    .where(tasks.c.id == bindparam("task_id"))
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

#: The columns that a command changes, by name.
Changes = dict[str, Any]


def why_not_retried(task: StoredTask) -> str | None:
    """Return why an operator may not retry a task, and what to do instead; None when the task may be retried."""
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
    """Return why a task cannot be cancelled in the ledger, and what to do instead; None when it can be cancelled."""
    refusal = _NO_CANCEL.get(task.state)
    return f"task {task.id} is {task.state}: {refusal.format(id=task.id)}" if refusal else None


class LedgerAdmin(LedgerGroup):
    """`ledger.admin`: an operator's commands. A method for one task also takes the unique beginning of its id."""

    def settle(self, task_id: str, delivered: bool, external_id: str | None, now: datetime) -> StoredTask:
        """Settle an `unknown` task as delivered, or make it due again now. Returns the task; LedgerError from any other state."""

        def decide(connection: Connection, task: StoredTask) -> Changes:
            if task.state != TaskState.UNKNOWN:
                raise LedgerError(f"task {task.id} is {task.state}: only an unknown task can be settled by hand")
            transitions.drop_reconciliation(connection, [task.id])
            if not delivered:
                reason = "settled by hand: not delivered; it is sent again"
                return {"state": TaskState.WAITING, "due_at": micros(now), "reason": reason}
            counters_of(connection).count(CounterName.TASKS_ENDED, task.type, TaskState.DELIVERED)
            known = external_id if external_id is not None else task.external_id
            kept = None if known is None else label(known)
            transitions.poll_found_outcome(connection, task.id, task.provider, kept, micros(now))
            return {"state": TaskState.DELIVERED, "external_id": kept, "reason": "settled by hand: delivered"}

        return self._change(task_id, now, decide)

    def retry(self, task_id: str, now: datetime) -> StoredTask:
        """Make a dead, cancelled, suppressed or waiting task due now and return it. LedgerError from other states.

        A task that had ended starts a new epoch with 0 attempts; its history stays. An `expires_at` that has passed is removed,
        and the task's `note` says so.
        """

        def decide(connection: Connection, task: StoredTask) -> Changes:
            _refuse(why_not_retried(task))
            return _retried(connection, task, now, now)

        return self._change(task_id, now, decide)

    def retry_many(self, due: Mapping[str, datetime], states: Collection[TaskState], now: datetime) -> list[StoredTask]:
        """Retry tasks that still are in one of these states, each due at its moment; return those that were."""

        def decide(connection: Connection, task: StoredTask) -> Changes | None:
            fits = task.state in states and not why_not_retried(task)
            return _retried(connection, task, due[task.id], now) if fits else None

        return self._change_many(list(due), now, decide)

    def cancel(self, task_id: str, why: str | None, now: datetime) -> StoredTask:
        """Cancel a task that was not sent, or whose outcome is unknown, and return it. LedgerError from other states."""

        def decide(connection: Connection, task: StoredTask) -> Changes:
            _refuse(why_not_cancelled(task))
            return _cancelled(connection, task, why, now)

        return self._change(task_id, now, decide)

    def cancel_many(
        self, ids: Sequence[str], states: Collection[TaskState], why: str | None, now: datetime
    ) -> list[StoredTask]:
        """Cancel tasks that still are in one of these states; return those that were."""

        def decide(connection: Connection, task: StoredTask) -> Changes | None:
            fits = task.state in states and not why_not_cancelled(task)
            return _cancelled(connection, task, why, now) if fits else None

        return self._change_many(ids, now, decide)

    def cancelled_at_provider(
        self, task_id: str, answer: str, why: str | None, now: datetime, *, taken: bool
    ) -> StoredTask:
        """Record a provider's answer to a request to cancel a task. If the provider cancelled it, it is cancelled here too."""

        def decide(connection: Connection, task: StoredTask) -> Changes:
            remark = f"asked to be cancelled at {task.provider} at {instant(now)}: {answer}"
            changed: Changes = {"note": _noted(task, remark)}
            if taken and task.state == TaskState.DELIVERED:
                counters_of(connection).count(CounterName.TASKS_ENDED, task.type, TaskState.CANCELLED)
                reason = _because(f"cancelled at {task.provider} by a person at {instant(now)}", why)
                changed |= {"state": TaskState.CANCELLED, "reason": sentence(reason)}
                stop_polling(connection, task.id)
            return changed

        return self._change(task_id, now, decide)

    def replay(self, ids: Sequence[str], now: datetime, *, failed_too: bool, new_keys: bool = False) -> list[Replayed]:
        """Make events due to be planned again. Returns one result for each event that exists, in the order of ids.

        Tasks that exist already are not made again. With `new_keys` each event is copied as a new event (`ID.2`, `ID.3`), and
        all its tasks are made anew.
        """
        replay = renew_events if new_keys else replay_events
        if not ids:
            return []
        return self._writer.write(lambda connection: replay(connection, ids, now, failed_too=failed_too))

    def _change(self, beginning: str, now: datetime, decide: Callable[[Connection, StoredTask], Changes]) -> StoredTask:
        """Change one task by what `decide` says of it; return it as it is then."""

        def work(connection: Connection) -> StoredTask:
            task_id = full_id(connection, tasks, beginning)
            changed = _change_found(connection, [task_id] if task_id else [], now, decide)
            if not changed:
                raise LedgerError(f"there is no task {sentence(beginning)}; list them with: leadwire tasks")
            return changed[0]

        return self._writer.write(work)

    def _change_many(
        self, ids: Sequence[str], now: datetime, decide: Callable[[Connection, StoredTask], Changes | None]
    ) -> list[StoredTask]:
        """Change tasks by what `decide` says of each, None for nothing; return the changed ones as they are then."""
        if not ids:
            return []
        return self._writer.write(lambda connection: _change_found(connection, ids, now, decide))


def _change_found(
    connection: Connection,
    ids: Sequence[str],
    now: datetime,
    decide: Callable[[Connection, StoredTask], Changes | None],
) -> list[StoredTask]:
    """Lock tasks in the order of their ids, which everybody keeps, and change them."""
    rows = []
    for row in _LOCK_TASKS.rows(connection, sorted(ids)) if ids else ():
        changed = decide(connection, stored_task(row))
        if changed is not None:
            values = {name: getattr(row, name) for name in _KEPT} | changed
            rows.append({"task_id": row.id, "now": micros(now)} | {f"new_{name}": values[name] for name in _KEPT})
    if not rows:
        return []
    _CHANGE.run_many(connection, rows)
    return [stored_task(row) for row in _LOCK_TASKS.rows(connection, [row["task_id"] for row in rows])]


def _refuse(why: str | None) -> None:
    if why:
        raise LedgerError(why)


def _retried(connection: Connection, task: StoredTask, due_at: datetime, now: datetime) -> Changes:
    """Return the changes of a retry: what waits waits no longer than before, what has ended begins anew.

    What has ended while nobody knew whether it was executed is looked up before it is sent again, however it ended: an earlier
    look-up may have come too early, and a rule that repeats what is unsure does not speak for this retry.
    """
    said = f"{_RETRIED}{instant(now)}{_BEFORE}{task.state}: {_first_reason(task) or 'no reason given'}"
    changed: Changes = {"state": TaskState.WAITING, "reason": sentence(said)}
    if task.expires_at is not None and task.expires_at <= now:
        remark = f"retried by hand after it had expired at {instant(task.expires_at)}"
        changed |= {"expires_at": None, "note": _noted(task, remark)}
    if task.state == TaskState.WAITING:
        return changed | {"due_at": micros(min(due_at, task.due_at))}
    if _LAST_VERDICT.value(connection, {"task_id": task.id}) == Verdict.UNKNOWN:
        at = micros(now)
        unknown = transitions.BecameUnknown(
            task_id=task.id, provider=task.provider, ended_at=at, look_up_at=at + transitions.FIRST_LOOK_MICROS
        )
        transitions.begin_reconciliation(connection, [unknown])
        changed["state"] = TaskState.UNKNOWN
    return changed | {"due_at": micros(due_at), "attempts": 0, "epoch": task.epoch + 1, "first_attempt_at": None}


def _first_reason(task: StoredTask) -> str | None:
    """Return a task's reason without what an earlier retry has put before it."""
    reason = task.reason
    if reason is not None and reason.startswith(_RETRIED):
        return reason.partition(_BEFORE)[2].partition(": ")[2]
    return reason


def _cancelled(connection: Connection, task: StoredTask, why: str | None, now: datetime) -> Changes:
    """Return the changes of a task that a person ends; a pending reconciliation ends too."""
    reason = _because(f"cancelled by a person at {instant(now)}", why)
    if task.state == TaskState.UNKNOWN:
        transitions.drop_reconciliation(connection, [task.id])
        reason = f"{reason}; it may have been executed before: {task.reason}"
    counters_of(connection).count(CounterName.TASKS_ENDED, task.type, TaskState.CANCELLED)
    return {"state": TaskState.CANCELLED, "reason": sentence(reason)}


def _because(what: str, why: str | None) -> str:
    return f"{what}: {why}" if why else what


def _noted(task: StoredTask, remark: str) -> str:
    return sentence(f"{task.note}; {remark}" if task.note else remark)

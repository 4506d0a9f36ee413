"""Side effects of a task's change of state, in the same transaction.

- A task ends: a reaction is inserted if its rule has a follow-up for that end; `follow_ups.py` plans it later. A task
  that ends again after an operator's retry gets a new reaction; follow-ups that exist have the same keys and are not
  made twice.
- A task becomes unknown: a pending reconciliation is inserted (`reconciliation.py`), so that it is looked up before it
  is sent again. Settling the task deletes it. An unknown task without one waits for an operator.
- A task is delivered: its outcome is polled, if its provider sends no notification of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, bindparam, delete, func, or_, select, update

from rules.vocabulary import FAILURE, ProviderName, TaskState, Verdict
from worker.ledger.encoding import sentence
from worker.ledger.schema import attempts, doubts, outcomes, reactions, tasks
from worker.ledger.statements import ForIds, Statement, columns_of, upsert

# Follow-ups ------------------------------------------------------------------------------------------------------------

#: The ends that `on_failure` follows. Not one that a person decided: cancelled.
FAILED_STATES: Final = frozenset({TaskState.DEAD, TaskState.SUPPRESSED})

#: How the reason begins of a follow-up that was not sent because its parent is no longer failed.
UNDONE: Final = "not wanted any more: "

_NEW_END: Final = upsert(reactions)
_NOTE_END: Final = Statement(
    _NEW_END.on_conflict_do_update(
        index_elements=(reactions.c.task_id, reactions.c.trigger),
        set_={name: _NEW_END.excluded[name] for name in ("since_at", "due_at", "tries")},
    ),
    columns_of(reactions),
)
_PARENTS: Final = ForIds(lambda among: select(tasks.c.id, tasks.c.name, tasks.c.state).where(among(tasks.c.id)))


def note_ends(connection: Connection, ended: Iterable[tuple[str, Sequence[str]]], at: int, end: str = FAILURE) -> None:
    """Insert reactions for ended tasks, given by id and `Task.reactions`; tasks without a follow-up for this end are skipped."""
    rows = [
        {"task_id": task_id, "trigger": end, "since_at": at, "due_at": at, "tries": 0}
        for task_id, wanted in ended
        if end in wanted
    ]
    if rows:
        _NOTE_END.run_many(connection, rows)


def undone(connection: Connection, rows: Iterable[Any]) -> dict[str, str]:
    """Return {task_id: reason} for those follow-up tasks (rows of `tasks`) whose parent's failure was undone.

    Follow-ups of an outcome are left out: their names have the outcome's word after the parent's name. So are tasks that an
    operator retried (`epoch != attempts`).
    """
    followers = [row for row in rows if row.parent is not None and row.epoch == row.attempts]
    if not followers:
        return {}
    parents = {row.id: row for row in _PARENTS.rows(connection, sorted({str(row.parent) for row in followers}))}
    why = {}
    for row in followers:
        parent = parents.get(row.parent)
        if parent is not None and parent.state not in FAILED_STATES and row.name.rpartition("/")[0] == parent.name:
            why[row.id] = f"{UNDONE}the failure of task {parent.id} was undone; it is {parent.state}"
    return why


# Reconciliation --------------------------------------------------------------------------------------------------------

#: How long after somebody else than its own worker called it unknown a task is looked up at the soonest, in microseconds.
FIRST_LOOK_MICROS: Final = 5_000_000
#: How long after its attempt has ended a task is first believed absent (`LookUpPolicy.after_end` in `worker/retry.py`).
ABSENT_AFTER_MICROS: Final = 20_000_000

#: The attempts since the task was planned, or retried by hand, that may have been executed.
_BEGAN: Final = Statement(
    select(func.min(attempts.c.started_at)).where(
        attempts.c.task_id == bindparam("task_id"),
        attempts.c.deferred.is_(False),
        or_(attempts.c.verdict.is_(None), attempts.c.verdict == Verdict.UNKNOWN),
        attempts.c.started_at
        >= func.coalesce(
            select(tasks.c.first_attempt_at).where(tasks.c.id == bindparam("task_id")).scalar_subquery(), 0
        ),
    )
)
_NEW_PENDING: Final = upsert(doubts)
_BEGIN_PENDING: Final = Statement(
    _NEW_PENDING.on_conflict_do_update(
        index_elements=(doubts.c.task_id,),
        set_={
            name: _NEW_PENDING.excluded[name]
            for name in ("began_at", "ended_at", "due_at", "look_ups", "absent_at", "provider")
        },
    ),
    columns_of(doubts),
)
_PENDING: Final = ForIds(lambda among: select(doubts.c.task_id).where(among(doubts.c.task_id)))
_DROP_PENDING: Final = Statement(delete(doubts).where(doubts.c.task_id == bindparam("this_id")))


@dataclass(frozen=True, slots=True, kw_only=True)
class BecameUnknown:
    """A task that just became unknown: the latest end of its attempt, and when to look it up first."""

    task_id: str
    provider: ProviderName
    ended_at: int
    look_up_at: int


def begin_reconciliation(connection: Connection, unknown: Sequence[BecameUnknown]) -> None:
    """Insert pending reconciliations; a task that has one already starts from the beginning.

    The first look-up is due at once when the worker settled the attempt, and soon when the worker died. In the second case the
    attempt counts as running until the lease ends: until then the request may still be executed, so no absence counts.
    """
    if not unknown:
        return
    began = _BEGAN.rows_each(connection, [{"task_id": each.task_id} for each in unknown])
    rows = [
        {
            "task_id": each.task_id,
            "provider": each.provider,
            "began_at": each.ended_at if not found or found[0][0] is None else found[0][0],
            "ended_at": each.ended_at,
            "due_at": each.look_up_at,
            "look_ups": 0,
            "absent_at": None,
        }
        for each, found in zip(unknown, began, strict=True)
    ]
    _BEGIN_PENDING.run_many(connection, rows)


def drop_reconciliation(connection: Connection, task_ids: Sequence[str]) -> None:
    """Delete the pending reconciliations of these tasks. Reads first: nearly always there are none."""
    found = _PENDING.rows(connection, task_ids) if task_ids else []
    if found:
        _DROP_PENDING.run_many(connection, [{"this_id": row.task_id} for row in found])


# Delivered -------------------------------------------------------------------------------------------------------------

#: Providers that tell nobody what became of a task, so that they are polled.
_POLLED: Final = frozenset({ProviderName.MINDHUNTERS})

#: States that a late success does not change; it is remarked in the reason.
_REMARKS: Final = {
    TaskState.CANCELLED: "executed after cancel",
    TaskState.SUPPRESSED: "executed after it was suppressed",
}

_POLL_OUTCOME: Final = Statement(upsert(outcomes).on_conflict_do_nothing(), columns_of(outcomes, "outcome", "seen_at"))
CURRENT: Final = Statement(
    select(tasks.c.state, tasks.c.reason, tasks.c.external_id)
    .where(tasks.c.id == bindparam("this_id"))
    .with_for_update(key_share=True)
)
_DELIVER_LATE: Final = Statement(
    update(tasks)
    .where(tasks.c.id == bindparam("this_id"))
    .values(
        state=bindparam("new_state"),
        reason=bindparam("new_reason"),
        external_id=bindparam("new_external_id"),
        lease_until_at=None,
        owner=None,
        updated_at=bindparam("now"),
    )
)


def poll_outcomes(
    connection: Connection, delivered: Sequence[tuple[str, ProviderName, str]], at: int, due_at: int
) -> None:
    """Poll the outcomes of tasks (id, provider, external id) from `due_at` on; those polled already stay as they are."""
    rows = [
        {
            "task_id": task_id,
            "provider": provider,
            "external_id": external_id,
            "delivered_at": at,
            "due_at": due_at,
            "polls": 0,
        }
        for task_id, provider, external_id in delivered
    ]
    if rows:
        _POLL_OUTCOME.run_many(connection, rows)


def poll_found_outcome(
    connection: Connection, task_id: str, provider: ProviderName, external_id: str | None, at: int
) -> None:
    """Poll the outcome of a task from now on that a look-up or an operator has shown to be delivered.

    This inserts a row even where polling is turned off.
    """
    if provider in _POLLED and external_id is not None:
        poll_outcomes(connection, [(task_id, provider, external_id)], at, at)


def deliver_late(connection: Connection, row: Mapping[str, Any]) -> tuple[bool, bool]:
    """Apply a success that arrives under an old claim, or that a look-up found: the task was executed.

    The task becomes delivered whatever was decided since, except that a cancelled or suppressed task stays so and its reason
    says that it was executed. Returns whether the task is delivered now, and whether it was not before.
    """
    current = CURRENT.first(connection, {"this_id": row["this_id"]})
    if current is None:
        return False, False
    state = TaskState(current.state)
    remark = _REMARKS.get(state)
    if state == TaskState.DELIVERED and current.external_id is not None:
        if current.external_id == row["new_external_id"]:
            return True, False
        remark = f"executed twice: also as {row['new_external_id']}"
    late = {name: row[name] for name in ("this_id", "new_state", "new_reason", "new_external_id", "now")}
    if remark is not None:
        kept = current.external_id if state == TaskState.DELIVERED else row["new_external_id"]
        late |= {"new_state": state, "new_reason": _with_remark(current.reason, remark), "new_external_id": kept}
    _DELIVER_LATE.run(connection, late)
    return remark is None, remark is None and state != TaskState.DELIVERED


def _with_remark(reason: str | None, remark: str) -> str:
    if reason is None:
        return remark
    return reason if remark in reason else sentence(f"{remark}; {reason}")

"""How an end is answered once: whoever takes the noted end records what follows and strikes it off, in one transaction.

Taking it counts a try and keeps it from others until the next try is due; so one that kills its process is tried five times
and no more. What cannot be planned is put aside, with the reason on the task whose end it is, and tried again by the next
worker that starts: what was missing, a variable say, may be there then. A failure that was undone meanwhile, by a person's
retry or a late success, is not answered; an outcome counts while the task is delivered, and not once a person had it
cancelled there. What answered a failure and was not sent because that was undone is made due again when the task fails again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, and_, bindparam, delete, select, update

from rules.vocabulary import FAILURE, Task, TaskState
from worker.ledger import planning
from worker.ledger.encoding import dump, load, micros, micros_or_none, moment, sentence, stored_event, stored_task
from worker.ledger.reacting import FAILED_STATES, UNDONE
from worker.ledger.schema import attempts, events, outcomes, reactions, tasks
from worker.ledger.statements import ForIds, Statement
from worker.ledger.types import Reaction, TaskRef

#: After so many tries an end is put aside.
TRIES_LIMIT: Final = 5
#: The wait after the first try that failed; it doubles with each.
BACK_OFF: Final = timedelta(seconds=5)
#: What has another state was cancelled there by a person meanwhile.
_OUTCOME_STATES: Final = frozenset({TaskState.DELIVERED})
#: When what was put aside is due.
_NEVER: Final = micros(datetime.max.replace(tzinfo=UTC))

_IS_DUE: Final = reactions.c.due_at <= bindparam("now")
_ANY_DUE: Final = Statement(select(reactions.c.task_id).where(_IS_DUE).limit(1))
_DUE: Final = Statement(
    select(reactions)
    .where(_IS_DUE)
    .order_by(reactions.c.due_at)
    .limit(bindparam("most"))
    .with_for_update(skip_locked=True)
)
_THIS: Final = (reactions.c.task_id == bindparam("of_task"), reactions.c.trigger == bindparam("of_trigger"))
_TAKEN: Final = (*_THIS, reactions.c.due_at == bindparam("held"))
_TAKE: Final = Statement(
    update(reactions).where(*_THIS).values(due_at=bindparam("new_due_at"), tries=reactions.c.tries + 1)
)
_STRIKE: Final = Statement(delete(reactions).where(*_TAKEN))
_PUT_ASIDE: Final = Statement(update(reactions).where(*_TAKEN).values(due_at=_NEVER))
_IS_ASIDE: Final = reactions.c.due_at == _NEVER
_ANY_ASIDE: Final = Statement(select(reactions.c.task_id).where(_IS_ASIDE).limit(1))
_TRY_AGAIN: Final = Statement(update(reactions).where(_IS_ASIDE).values(due_at=bindparam("now"), tries=0))

_TASKS: Final = ForIds(
    lambda among: (
        select(tasks, outcomes.c.outcome)
        .select_from(tasks.outerjoin(outcomes, outcomes.c.task_id == tasks.c.id))
        .where(among(tasks.c.id))
    )
)
_EVENTS: Final = ForIds(lambda among: select(events).where(among(events.c.id)))
_STATUSES: Final = ForIds(
    lambda among: (
        select(attempts.c.task_id, attempts.c.status).where(among(attempts.c.task_id)).order_by(attempts.c.epoch)
    )
)
_LOCK_TASK: Final = Statement(
    select(tasks.c.state, tasks.c.note).where(tasks.c.id == bindparam("of_task")).with_for_update(key_share=True)
)
_SET_NOTE: Final = Statement(
    update(tasks)
    .where(tasks.c.id == bindparam("of_task"))
    .values(note=bindparam("new_note"), updated_at=bindparam("now"))
)
#: Planned before, and not sent because the failure was undone.
_PUT_OFF: Final = and_(
    tasks.c.id == bindparam("this_id"),
    tasks.c.state == TaskState.SUPPRESSED,
    tasks.c.reason.startswith(UNDONE, autoescape=True),
)
_FIELDS_PUT_OFF: Final = Statement(select(tasks.c.fields).where(_PUT_OFF).with_for_update(key_share=True))
_RENEW: Final = Statement(
    update(tasks)
    .where(_PUT_OFF)
    .values(
        {name: bindparam(f"new_{name}") for name in ("state", "due_at", "expires_at", "fields", "reason")}
        | {"dispatched_at": None, "updated_at": bindparam("now")}
    )
)


def any_due(connection: Connection, now: datetime) -> bool:
    """Whether there is an end to answer."""
    return bool(_ANY_DUE.rows(connection, {"now": micros(now)}))


def take(now: datetime, limit: int) -> Callable[[Connection], list[Reaction]]:
    """Return the work that takes ends to answer, the oldest first; one that had all its tries is put aside instead."""

    def work(connection: Connection) -> list[Reaction]:
        rows = _DUE.rows(connection, {"now": micros(now), "most": limit})
        due_at = [micros(now + BACK_OFF * 2**row.tries) for row in rows]
        taken = [
            {"of_task": row.task_id, "of_trigger": row.trigger, "new_due_at": at}
            for row, at in zip(rows, due_at, strict=True)
        ]
        if taken:
            _TAKE.run_many(connection, taken)
        found = _reactions(connection, rows, due_at)
        for each in found:
            if each.tries > TRIES_LIMIT:
                _put_aside(connection, each, f"begun {TRIES_LIMIT} times and never ended", now)
        return [each for each in found if each.tries <= TRIES_LIMIT]

    return work


def record(
    reaction: Reaction, planned: Sequence[Task], note: str | None, now: datetime
) -> Callable[[Connection], tuple[TaskRef, ...]]:
    """Return the work that records what answers an end, and a remark on the task; its result is the tasks due now.

    Nothing is done when somebody else has it by now, or when the task has not ended so any more.
    """

    def work(connection: Connection) -> tuple[TaskRef, ...]:
        # The task first, as whoever ends one does, so that no two processes wait for each other.
        task = _LOCK_TASK.rows(connection, {"of_task": reaction.task.id})[0]
        if _STRIKE.run(connection, _held(reaction)) == 0:
            return ()
        counts = FAILED_STATES if reaction.trigger == FAILURE else _OUTCOME_STATES
        if task.state not in counts:
            return ()
        if note:
            _remark(connection, reaction, task.note, note, now)
        if reaction.trigger == FAILURE:
            _renew(connection, planned, now)
        return planning.add_tasks(connection, planned, now)

    return work


def failed(reaction: Reaction, error: str, now: datetime) -> Callable[[Connection], None]:
    """Return the work that puts an end aside which could not be answered, and says so on its task."""

    def work(connection: Connection) -> None:
        _put_aside(connection, reaction, error, now)

    return work


def any_aside(connection: Connection) -> bool:
    """Whether something was put aside."""
    return bool(_ANY_ASIDE.rows(connection))


def try_again(now: datetime) -> Callable[[Connection], int]:
    """Return the work that makes everything due that was put aside; its result is how many."""

    def work(connection: Connection) -> int:
        return _TRY_AGAIN.run(connection, {"now": micros(now)})

    return work


def _reactions(connection: Connection, rows: Sequence[Any], due_at: Sequence[int]) -> list[Reaction]:
    if not rows:
        return []
    ids = list(dict.fromkeys(row.task_id for row in rows))
    ended = {row.id: stored_task(row) for row in _TASKS.rows(connection, ids)}
    of_ids = list(dict.fromkeys(task.event_id for task in ended.values()))
    found = {row.id: stored_event(row).event for row in _EVENTS.rows(connection, of_ids)}
    statuses = {row.task_id: row.status for row in _STATUSES.rows(connection, ids)}
    return [
        Reaction(
            task=ended[row.task_id],
            event=found[ended[row.task_id].event_id],
            trigger=row.trigger,
            status=statuses.get(row.task_id),
            tries=row.tries + 1,
            due_at=moment(at),
        )
        for row, at in zip(rows, due_at, strict=True)
    ]


def _renew(connection: Connection, planned: Sequence[Task], now: datetime) -> None:
    """Make due again what followed on an earlier failure and was put off; whoever had the turn then keeps it."""
    for task in planned:
        row = _FIELDS_PUT_OFF.first(connection, {"this_id": task.id}) if task.state == TaskState.PLANNED else None
        if row is None:
            continue
        kept = {"responsible_ids": load(row.fields).get("responsible_ids")} if task.rotation else {}
        renewed = {
            "this_id": task.id,
            "new_state": TaskState.WAITING,
            "new_due_at": micros(task.due_at),
            "new_expires_at": micros_or_none(task.expires_at),
            "new_fields": dump({**task.fields, **kept}),
            "new_reason": "wanted again: the task that it answers has failed once more",
            "now": micros(now),
        }
        _RENEW.run(connection, renewed)


def _put_aside(connection: Connection, reaction: Reaction, error: str, now: datetime) -> None:
    task = _LOCK_TASK.rows(connection, {"of_task": reaction.task.id})[0]
    if _PUT_ASIDE.run(connection, _held(reaction)):
        why = f"what follows on {reaction.trigger} could not be planned: {error}; a worker that starts tries it again"
        _remark(connection, reaction, task.note, why, now)


def _remark(connection: Connection, reaction: Reaction, note: str | None, remark: str, now: datetime) -> None:
    if remark not in (note or ""):
        new = sentence(f"{note}; {remark}" if note else remark)
        _SET_NOTE.run(connection, {"of_task": reaction.task.id, "new_note": new, "now": micros(now)})


def _held(reaction: Reaction) -> dict[str, Any]:
    return {"of_task": reaction.task.id, "of_trigger": reaction.trigger, "held": micros(reaction.due_at)}

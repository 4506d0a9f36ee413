"""Follow-up tasks: what rules want when a task ends (`on_failure`, `on_outcome`), planned and recorded once.

A reaction is a task's end that has been noted and not yet followed up. Claiming one counts a try and hides it until the next
try is due; one that crashes its process is tried five times. Its follow-ups are recorded, and the reaction deleted, in one
transaction. A reaction that cannot be planned is set aside, with the reason on the task that ended, and is tried again by the
next worker that starts: what was missing (a variable, for example) may be there then.

A failure that was undone meanwhile (an operator's retry, a late success) gets no follow-up. An outcome gets one only while its
task is delivered, and not after an operator cancelled the task at its provider. A follow-up that was suppressed because its
parent's failure was undone becomes due again when the parent fails again.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, and_, bindparam, delete, select, update

from rules.vocabulary import FAILURE, Task, TaskState
from worker.ledger.encoding import dump, load, micros, micros_or_none, moment, sentence, stored_event, stored_task
from worker.ledger.schema import attempts, events, outcomes, reactions, tasks
from worker.ledger.statements import ForIds, Statement
from worker.ledger.tasks import insert_tasks
from worker.ledger.transitions import FAILED_STATES, UNDONE
from worker.ledger.types import Reaction, TaskRef
from worker.ledger.writer import LedgerGroup

#: After so many tries an end is set aside.
TRIES_LIMIT: Final = 5
#: The wait after the first try that failed; it doubles with each.
BACK_OFF: Final = timedelta(seconds=5)
#: What has another state was cancelled there by a person meanwhile.
_OUTCOME_STATES: Final = frozenset({TaskState.DELIVERED})
#: When what was set aside is due.
_NEVER: Final = micros(datetime.max.replace(tzinfo=UTC))

_IS_DUE: Final = reactions.c.due_at <= bindparam("now")
_ANY_DUE: Final = Statement(select(reactions.c.task_id).where(_IS_DUE).limit(1))
_OLDEST_DUE: Final = Statement(
    select(reactions)
    .where(_IS_DUE)
    .order_by(reactions.c.due_at)
    .limit(bindparam("most"))
    .with_for_update(skip_locked=True)
)
_THIS: Final = (reactions.c.task_id == bindparam("of_task"), reactions.c.trigger == bindparam("of_trigger"))
_HELD: Final = (*_THIS, reactions.c.due_at == bindparam("held"))
_TAKE: Final = Statement(
    update(reactions).where(*_THIS).values(due_at=bindparam("new_due_at"), tries=reactions.c.tries + 1)
)
_STRIKE: Final = Statement(delete(reactions).where(*_HELD))
_SET_ASIDE: Final = Statement(update(reactions).where(*_HELD).values(due_at=_NEVER))
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
_UNSENT: Final = and_(
    tasks.c.id == bindparam("this_id"),
    tasks.c.state == TaskState.SUPPRESSED,
    tasks.c.reason.startswith(UNDONE, autoescape=True),
)
_LOCK_UNSENT: Final = Statement(select(tasks.c.fields).where(_UNSENT).with_for_update(key_share=True))
_RENEW: Final = Statement(
    update(tasks)
    .where(_UNSENT)
    .values(
        {name: bindparam(f"new_{name}") for name in ("state", "due_at", "expires_at", "fields", "reason")}
        | {"dispatched_at": None, "updated_at": bindparam("now")}
    )
)


class LedgerFollowUps(LedgerGroup):
    """`ledger.follow_ups`: ends of tasks for which rules plan further tasks."""

    def claim(self, now: datetime, limit: int) -> list[Reaction]:
        """Claim reactions, oldest first, at most `limit`. Each belongs to the caller until its `due_at`; the try is counted.

        A reaction that was tried five times is set aside instead, and its task's `note` says so.
        """
        asked = {"now": micros(now), "most": limit}
        if not self._read(lambda connection: _ANY_DUE.rows(connection, asked)):
            return []

        def work(connection: Connection) -> list[Reaction]:
            found = _take(connection, _OLDEST_DUE.rows(connection, asked), now)
            for each in found:
                if each.tries > TRIES_LIMIT:
                    _set_aside(connection, each, f"begun {TRIES_LIMIT} times and never ended", now)
            return [each for each in found if each.tries <= TRIES_LIMIT]

        return self._writer.write(work)

    def record(
        self, reaction: Reaction, planned: Sequence[Task], now: datetime, note: str | None = None
    ) -> tuple[TaskRef, ...]:
        """Insert the follow-up tasks and delete the reaction, in one transaction. Returns the tasks due now, marked as queued.

        `note` is added to the task that ended. Nothing is recorded when another process has claimed the reaction since, or when
        the failure was undone (the task is retried, or was delivered after all).
        """

        def work(connection: Connection) -> tuple[TaskRef, ...]:
            # The task first, as whoever ends one does, so that no two processes wait for each other.
            task = _LOCK_TASK.rows(connection, {"of_task": reaction.task.id})[0]
            if _STRIKE.run(connection, _held(reaction)) == 0:
                return ()
            if task.state not in (FAILED_STATES if reaction.trigger == FAILURE else _OUTCOME_STATES):
                return ()
            if note:
                _remark(connection, reaction, task.note, note, now)
            if reaction.trigger == FAILURE:
                _renew(connection, planned, now)
            return insert_tasks(connection, planned, now)

        return self._writer.write(work)

    def set_aside(self, reaction: Reaction, error: str, now: datetime) -> None:
        """Stop trying a reaction for now, and add the error to its task's `note`."""
        self._writer.write(lambda connection: _set_aside(connection, reaction, error, now))

    def retry_set_aside(self, now: datetime) -> int:
        """Make every reaction that was set aside due again; return how many."""
        if not self._read(_ANY_ASIDE.rows):
            return 0
        return self._writer.write(lambda connection: _TRY_AGAIN.run(connection, {"now": micros(now)}))


def _take(connection: Connection, rows: Sequence[Any], now: datetime) -> list[Reaction]:
    """Move when these ends are due, by how often they were tried, and return them with their tasks and events."""
    if not rows:
        return []
    due_at = [micros(now + BACK_OFF * 2**row.tries) for row in rows]
    moved = zip(rows, due_at, strict=True)
    _TAKE.run_many(
        connection, [{"of_task": row.task_id, "of_trigger": row.trigger, "new_due_at": at} for row, at in moved]
    )
    ids = list(dict.fromkeys(row.task_id for row in rows))
    ended = {row.id: stored_task(row) for row in _TASKS.rows(connection, ids)}
    event_ids = list(dict.fromkeys(task.event_id for task in ended.values()))
    found = {row.id: stored_event(row).event for row in _EVENTS.rows(connection, event_ids)}
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
    """Make due again what followed on an earlier failure and was not sent; whose turn it was then keeps it."""
    for task in planned:
        row = _LOCK_UNSENT.first(connection, {"this_id": task.id}) if task.state == TaskState.PLANNED else None
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


def _set_aside(connection: Connection, reaction: Reaction, error: str, now: datetime) -> None:
    task = _LOCK_TASK.rows(connection, {"of_task": reaction.task.id})[0]
    if _SET_ASIDE.run(connection, _held(reaction)):
        why = f"what follows on {reaction.trigger} could not be planned: {error}; a worker that starts tries it again"
        _remark(connection, reaction, task.note, why, now)


def _remark(connection: Connection, reaction: Reaction, note: str | None, remark: str, now: datetime) -> None:
    if remark not in (note or ""):
        new = sentence(f"{note}; {remark}" if note else remark)
        _SET_NOTE.run(connection, {"of_task": reaction.task.id, "new_note": new, "now": micros(now)})


def _held(reaction: Reaction) -> dict[str, Any]:
    return {"of_task": reaction.task.id, "of_trigger": reaction.trigger, "held": micros(reaction.due_at)}

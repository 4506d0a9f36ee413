"""Who may send a task: the one whose transaction finds it unclaimed. The attempt is on disk before the request leaves.

The epoch counts claims; whoever holds an older one cannot settle the task any more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, bindparam, func, insert, select, update

from rules.vocabulary import TERMINAL_TASK_STATES, ProviderName, TaskState, instant
from worker.ledger import pauses
from worker.ledger.encoding import label, micros, sentence
from worker.ledger.mapping import stored_task
from worker.ledger.rows import Claim, NotClaimed, ProviderState, StoredTask
from worker.ledger.statements import ForIds, Statement, columns_of
from worker.ledger.tables import attempts, tasks

_FOUND: Final = ForIds(lambda ids: select(tasks).where(tasks.c.id.in_(ids)).order_by(tasks.c.id).with_for_update())
_THIS: Final = tasks.c.id == bindparam("task_id")
_TAKE: Final = Statement(
    update(tasks)
    .where(_THIS)
    .values(
        state=TaskState.SENDING,
        epoch=tasks.c.epoch + 1,
        attempts=tasks.c.attempts + 1,
        first_attempt_at=func.coalesce(tasks.c.first_attempt_at, bindparam("now")),
        lease_until_at=bindparam("lease_end"),
        owner=bindparam("new_owner"),
        updated_at=bindparam("now"),
    )
)
_END: Final = Statement(
    update(tasks)
    .where(_THIS)
    .values(
        state=bindparam("new_state"),
        due_at=bindparam("new_due_at"),
        reason=bindparam("new_reason"),
        updated_at=bindparam("now"),
    )
)
_ADD_ATTEMPTS: Final = Statement(
    insert(attempts), columns_of(attempts, "ended_at", "verdict", "status", "error", "external_id")
)

_CLAIMABLE: Final = frozenset({TaskState.PLANNED, TaskState.QUEUED, TaskState.WAITING})
_WHY_NOT: Final = {
    TaskState.SENDING: "it is being sent already",
    TaskState.UNKNOWN: "nobody knows yet whether it was executed",
} | {state: f"it has ended: {state}" for state in TERMINAL_TASK_STATES}


@dataclass(frozen=True, slots=True)
class _Terms:
    """On what terms tasks are claimed in one call."""

    connection: Connection
    now: datetime
    at: int
    lease_until_at: datetime
    owner: str
    paused: dict[ProviderName, ProviderState]


def claim(
    ids: Sequence[str], now: datetime, lease: timedelta, owner: str
) -> Callable[[Connection], list[Claim | NotClaimed]]:
    """Return the work that claims tasks; its result has one answer for each id, in order."""

    def work(connection: Connection) -> list[Claim | NotClaimed]:
        found = {row.id: stored_task(row) for row in _FOUND.rows(connection, ids)}
        terms = _Terms(connection, now, micros(now), now + lease, label(owner), pauses.in_force(connection, now))
        answers: list[Claim | NotClaimed] = []
        ended: list[dict[str, Any]] = []
        answered: set[str] = set()
        for task_id in ids:
            task = None if task_id in answered else found.get(task_id)
            answers.append(_answer(task_id, task, terms, ended, again=task_id in answered))
            answered.add(task_id)
        _store(connection, [each for each in answers if isinstance(each, Claim)], ended, terms)
        return answers

    return work


def _answer(
    task_id: str, task: StoredTask | None, terms: _Terms, ended: list[dict[str, Any]], *, again: bool
) -> Claim | NotClaimed:
    """Decide about one task; what it becomes without being claimed goes to `ended`."""
    if task is None:
        why = "it was asked for twice at once" if again else "there is no such task"
        return NotClaimed(task_id=task_id, state=None, why=why)
    if task.state not in _CLAIMABLE:
        return NotClaimed(task_id=task_id, state=task.state, why=_WHY_NOT[task.state])
    if task.expires_at is not None and task.expires_at <= terms.now:
        why = f"too late: expired at {instant(task.expires_at)}"
        ended.append(_change(task, TaskState.SUPPRESSED, task.due_at, why, terms))
        return NotClaimed(task_id=task_id, state=TaskState.SUPPRESSED, why=why)
    if task.due_at > terms.now:
        why = f"it is not due before {instant(task.due_at)}"
        return NotClaimed(task_id=task_id, state=task.state, why=why, due_at=task.due_at)
    until_at = _paused_until(task.provider, terms)
    if until_at is None:
        return _claimed(task, terms)
    # The pause's reason quotes the provider and may be personal: it goes to the ledger, `why` goes anywhere.
    why = f"{task.provider} is paused until {instant(until_at)}"
    ended.append(_change(task, TaskState.WAITING, until_at, f"{why}: {terms.paused[task.provider].reason}", terms))
    return NotClaimed(task_id=task_id, state=TaskState.WAITING, why=why, due_at=until_at)


def _paused_until(provider: ProviderName, terms: _Terms) -> datetime | None:
    """Return until when the provider's pause keeps this task; None lets it through, be it as the pause's probe."""
    pause = terms.paused.get(provider)
    if pause is None:
        return None
    probed = pauses.let_probe_through(terms.connection, pause, terms.now)
    if probed is not None:
        terms.paused[provider] = probed
        return None
    return pause.paused_until_at


def _claimed(task: StoredTask, terms: _Terms) -> Claim:
    first_attempt_at = task.first_attempt_at or terms.now
    return Claim(
        task=replace(
            task,
            state=TaskState.SENDING,
            epoch=task.epoch + 1,
            attempts=task.attempts + 1,
            first_attempt_at=first_attempt_at,
            lease_until_at=terms.lease_until_at,
            owner=terms.owner,
            updated_at=terms.now,
        ),
        epoch=task.epoch + 1,
        attempt=task.attempts + 1,
        first_attempt_at=first_attempt_at,
        claimed_at=terms.now,
        lease_until_at=terms.lease_until_at,
    )


def _change(task: StoredTask, state: TaskState, due_at: datetime, why: str, terms: _Terms) -> dict[str, Any]:
    return {
        "task_id": task.id,
        "new_state": state,
        "new_due_at": micros(due_at),
        "new_reason": sentence(why),
        "now": terms.at,
    }


def _store(connection: Connection, claims: Sequence[Claim], ended: Sequence[dict[str, Any]], terms: _Terms) -> None:
    if ended:
        _END.run_many(connection, ended)
    if not claims:
        return
    lease_end = micros(terms.lease_until_at)
    taken = [
        {"task_id": each.task.id, "now": terms.at, "lease_end": lease_end, "new_owner": terms.owner} for each in claims
    ]
    _TAKE.run_many(connection, taken)
    begun = [
        {
            "task_id": each.task.id,
            "epoch": each.epoch,
            "number": each.attempt,
            "started_at": terms.at,
            "deferred": False,
        }
        for each in claims
    ]
    _ADD_ATTEMPTS.run_many(connection, begun)

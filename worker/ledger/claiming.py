"""Who may send a task: the one whose transaction finds it unclaimed. The attempt is on disk before the request leaves.

The epoch counts claims; whoever holds an older one cannot settle the task any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, bindparam, func, insert, select, update

from rules.vocabulary import TERMINAL_TASK_STATES, ProviderName, TaskState, instant
from worker.ledger import pauses, tallying
from worker.ledger.encoding import label, micros, sentence
from worker.ledger.mapping import stored_task
from worker.ledger.rows import Claim, NotClaimed, ProviderState, StoredTask
from worker.ledger.statements import ForIds, Statement, columns_of
from worker.ledger.tables import attempts, tasks
from worker.ledger.tallying import Tally
from worker.ledger.work import Shared

#: What somebody else holds at this moment is left to them.
_FOUND: Final = ForIds(
    lambda among: (
        select(tasks).where(among(tasks.c.id)).order_by(tasks.c.id).with_for_update(key_share=True, skip_locked=True)
    )
)
_EXISTING: Final = ForIds(lambda among: select(tasks.c.id).where(among(tasks.c.id)))
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
class _Asked:
    """Which tasks one caller asks for, and on what terms."""

    ids: Sequence[str]
    now: datetime
    lease_until_at: datetime
    owner: str


@dataclass(frozen=True, slots=True)
class _Terms:
    """On what terms one caller's tasks are claimed."""

    connection: Connection
    now: datetime
    at: int
    lease_until_at: datetime
    owner: str
    paused: dict[ProviderName, ProviderState]


def claim(ids: Sequence[str], now: datetime, lease: timedelta, owner: str) -> Shared[_Asked, list[Claim | NotClaimed]]:
    """Return the work that claims tasks; its result has one answer for each id, in order."""
    return Shared(_claim, _Asked(ids, now, now + lease, label(owner)))


def _claim(connection: Connection, parts: Sequence[_Asked]) -> list[list[Claim | NotClaimed]]:
    ids = list(dict.fromkeys(task_id for asked in parts for task_id in asked.ids))
    found = {row.id: stored_task(row) for row in _FOUND.rows(connection, ids)}
    missing = [task_id for task_id in ids if task_id not in found]
    elsewhere = {row.id for row in _EXISTING.rows(connection, missing)} if missing else set()
    paused = pauses.in_force(connection, min(asked.now for asked in parts))
    ended: list[dict[str, Any]] = []
    begun: list[tuple[Claim, _Asked]] = []
    answers = []
    for asked in parts:
        terms = _Terms(connection, asked.now, micros(asked.now), asked.lease_until_at, asked.owner, paused)
        given: dict[str, Claim | NotClaimed] = {}
        for task_id in asked.ids:
            if task_id in given:
                continue
            answer = _elsewhere(task_id) if task_id in elsewhere else _answer(task_id, found.get(task_id), terms, ended)
            given[task_id] = answer
            if isinstance(answer, Claim):
                begun.append((answer, asked))
                found[task_id] = answer.task  # so that whoever asks next finds it so
            elif task_id in found and answer.state is not None:
                due_at = answer.due_at or found[task_id].due_at
                found[task_id] = replace(found[task_id], state=answer.state, due_at=due_at)
        answers.append(_in_order(asked.ids, given))
    _store(connection, begun, ended)
    return answers


def _in_order(ids: Sequence[str], given: dict[str, Claim | NotClaimed]) -> list[Claim | NotClaimed]:
    """Return an answer for each id in its place; an id that stands there again is told so."""
    answers: list[Claim | NotClaimed] = []
    answered: set[str] = set()
    for task_id in ids:
        twice = NotClaimed(task_id=task_id, state=None, why="it was asked for twice at once")
        answers.append(twice if task_id in answered else given[task_id])
        answered.add(task_id)
    return answers


def _elsewhere(task_id: str) -> NotClaimed:
    return NotClaimed(task_id=task_id, state=TaskState.SENDING, why="another worker is claiming it")


def _answer(task_id: str, task: StoredTask | None, terms: _Terms, ended: list[dict[str, Any]]) -> Claim | NotClaimed:
    """Decide about one task; what it becomes without being claimed goes to `ended`."""
    if task is None:
        return NotClaimed(task_id=task_id, state=None, why="there is no such task")
    if task.state not in _CLAIMABLE:
        return NotClaimed(task_id=task_id, state=task.state, why=_WHY_NOT[task.state])
    if task.expires_at is not None and task.expires_at <= terms.now:
        why = f"too late: expired at {instant(task.expires_at)}"
        ended.append(_change(task, TaskState.SUPPRESSED, task.due_at, why, terms))
        tallying.of(terms.connection).count(Tally.TASKS_ENDED, task.type, TaskState.SUPPRESSED)
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
    if pause is None or (pause.held and pauses.is_over(pause, terms.now)):
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


def _store(connection: Connection, begun: Sequence[tuple[Claim, _Asked]], ended: Sequence[dict[str, Any]]) -> None:
    if ended:
        _END.run_many(connection, ended)
    if not begun:
        return
    taken = [
        {
            "task_id": each.task.id,
            "now": micros(asked.now),
            "lease_end": micros(asked.lease_until_at),
            "new_owner": asked.owner,
        }
        for each, asked in begun
    ]
    _TAKE.run_many(connection, taken)
    attempted = [
        {
            "task_id": each.task.id,
            "epoch": each.epoch,
            "number": each.attempt,
            "started_at": micros(asked.now),
            "deferred": False,
        }
        for each, asked in begun
    ]
    _ADD_ATTEMPTS.run_many(connection, attempted)

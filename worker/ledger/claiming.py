"""Who may send a task: the one whose transaction finds it unclaimed. The attempt is on disk before the request leaves.

The epoch counts claims; whoever holds an older one cannot settle the task any more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, bindparam, func, insert, select, update

from rules.vocabulary import TERMINAL_TASK_STATES, ProviderName, TaskState, instant
from worker.ledger import pauses, reacting, tallying
from worker.ledger.encoding import label, micros, micros_or_none, sentence
from worker.ledger.gates import Gates
from worker.ledger.limits import Refusal
from worker.ledger.mapping import stored_task
from worker.ledger.rows import Claim, Held, Limits, NotClaimed, ProviderState, StoredTask
from worker.ledger.statements import ForIds, Statement, columns_of
from worker.ledger.tables import attempts, tasks
from worker.ledger.tallying import Tally
from worker.ledger.work import Shared
from worker.ledger.workload import UNTIL_RESUMED

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
        slot_at=None,
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
        slot_at=bindparam("new_slot_at"),
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
    limits: Mapping[ProviderName, Limits]


@dataclass(frozen=True, slots=True)
class _Terms:
    """On what terms one caller's tasks are claimed."""

    connection: Connection
    now: datetime
    at: int
    lease_until_at: datetime
    owner: str
    paused: dict[ProviderName, ProviderState]
    limits: Mapping[ProviderName, Limits]
    gates: Gates
    undone: Mapping[str, str]


def claim(
    ids: Sequence[str], now: datetime, lease: timedelta, owner: str, limits: Mapping[ProviderName, Limits]
) -> Shared[_Asked, list[Claim | NotClaimed]]:
    """Return the work that claims tasks; its result has one answer for each id, in order."""
    return Shared(_claim, _Asked(ids, now, now + lease, label(owner), limits))


def _claim(connection: Connection, parts: Sequence[_Asked]) -> list[list[Claim | NotClaimed]]:
    now = min(asked.now for asked in parts)
    gates = Gates(connection, [asked.limits for asked in parts], now)  # before any task is locked
    ids = list(dict.fromkeys(task_id for asked in parts for task_id in asked.ids))
    found = {row.id: stored_task(row) for row in _FOUND.rows(connection, ids)}
    missing = [task_id for task_id in ids if task_id not in found]
    elsewhere = {row.id for row in _EXISTING.rows(connection, missing)} if missing else set()
    paused = pauses.believed(connection, now)
    undone = reacting.undone(connection, found.values())
    ended: list[dict[str, Any]] = []
    begun: list[tuple[Claim, _Asked]] = []
    answers = []
    for asked in parts:
        terms = _Terms(
            connection,
            asked.now,
            micros(asked.now),
            asked.lease_until_at,
            asked.owner,
            paused,
            asked.limits,
            gates,
            undone,
        )
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
    gates.store()
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
    why = terms.undone.get(task.id)
    if why is None and task.expires_at is not None and task.expires_at <= terms.now:
        why = f"too late: expired at {instant(task.expires_at)}"
        reacting.note_ends(terms.connection, [(task.id, task.reactions)], terms.at)
    if why is not None:
        ended.append(_change(task, TaskState.SUPPRESSED, task.due_at, why, terms))
        tallying.of(terms.connection).count(Tally.TASKS_ENDED, task.type, TaskState.SUPPRESSED)
        return NotClaimed(task_id=task_id, state=TaskState.SUPPRESSED, why=why)
    if task.due_at > terms.now:
        why = f"it is not due before {instant(task.due_at)}"
        return NotClaimed(task_id=task_id, state=task.state, why=why, due_at=task.due_at)
    return _admitted(task, terms, ended)


def _admitted(task: StoredTask, terms: _Terms, ended: list[dict[str, Any]]) -> Claim | NotClaimed:
    """Claim a task as far as its provider's pause and limits let it."""
    pause = terms.paused.get(task.provider)
    if pause is not None and pause.held and pauses.is_over(pause, terms.now):
        pause = None
    if pause is not None and not pauses.is_over(pause, terms.now):
        return _paused(task, pause, terms, ended)
    refusal = terms.gates.room(task, terms.limits, terms.now)
    if refusal is None and pause is not None:
        probed = pauses.let_probe_through(terms.connection, pause, terms.now)
        if probed is None:
            return _paused(task, pause, terms, ended)
        terms.paused[task.provider] = probed
    if refusal is None:
        refusal = terms.gates.begin(task, terms.limits, terms.now, at_once=pause is not None)
    return _claimed(task, terms) if refusal is None else _refused(task, refusal, terms, ended)


def _paused(task: StoredTask, pause: ProviderState, terms: _Terms, ended: list[dict[str, Any]]) -> NotClaimed:
    until_at = pause.paused_until_at or terms.now
    # The pause's reason quotes the provider and may be personal: it goes to the ledger, `why` goes anywhere.
    until = "it is resumed" if until_at >= UNTIL_RESUMED else instant(until_at)
    why = f"{task.provider} is paused until {until}"
    ended.append(_change(task, TaskState.WAITING, until_at, f"{why}: {pause.reason}", terms))
    return NotClaimed(task_id=task.id, state=TaskState.WAITING, why=why, due_at=until_at, held=Held.PAUSE)


def _refused(task: StoredTask, refusal: Refusal, terms: _Terms, ended: list[dict[str, Any]]) -> NotClaimed:
    why, due_at = f"{task.provider}: {refusal.why}", refusal.due_at
    ended.append(_change(task, TaskState.WAITING, due_at, why, terms, slot_at=refusal.slot_at))
    return NotClaimed(task_id=task.id, state=TaskState.WAITING, why=why, due_at=due_at, held=refusal.held)


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
            slot_at=None,
            updated_at=terms.now,
        ),
        epoch=task.epoch + 1,
        attempt=task.attempts + 1,
        first_attempt_at=first_attempt_at,
        claimed_at=terms.now,
        lease_until_at=terms.lease_until_at,
    )


def _change(
    task: StoredTask, state: TaskState, due_at: datetime, why: str, terms: _Terms, *, slot_at: datetime | None = None
) -> dict[str, Any]:
    return {
        "task_id": task.id,
        "new_state": state,
        "new_due_at": micros(due_at),
        "new_reason": sentence(why),
        "new_slot_at": micros_or_none(slot_at),
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

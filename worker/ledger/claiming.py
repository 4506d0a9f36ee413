"""Who may send a task: the one whose transaction finds it unclaimed. The attempt is on disk before the request leaves.

The epoch counts claims; whoever holds an older one cannot settle the task any more.

All others that write wait for this transaction, so it works on the rows as they are: `claims` makes tasks of them afterwards.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, bindparam, func, insert, select, update

from rules.vocabulary import TERMINAL_TASK_STATES, ProviderName, TaskState, instant
from worker.ledger import counters, pauses, reacting
from worker.ledger.counters import Tally
from worker.ledger.encoding import (
    label,
    micros,
    micros_or_none,
    moment,
    moment_or_none,
    reactions_of,
    sentence,
    stored_task,
)
from worker.ledger.gates import Gates
from worker.ledger.limits import Refusal
from worker.ledger.schema import attempts, tasks
from worker.ledger.statements import ForIds, Statement, columns_of
from worker.ledger.types import Claim, Held, Limits, NotClaimed, ProviderState
from worker.ledger.workload import UNTIL_RESUMED
from worker.ledger.writer import Batchable

log = logging.getLogger(__name__)

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

#: When a task that cannot be read is tried again.
UNREADABLE_REST: Final = timedelta(minutes=1)

_CLAIMABLE: Final = frozenset({TaskState.PLANNED, TaskState.QUEUED, TaskState.WAITING})
_WHY_NOT: Final = {
    TaskState.SENDING: "it is being sent already",
    TaskState.UNKNOWN: "nobody knows yet whether it was executed",
} | {state: f"it has ended: {state}" for state in TERMINAL_TASK_STATES}


@dataclass(frozen=True, slots=True)
class Asked:
    """Which tasks one caller asks for, and on what terms."""

    ids: Sequence[str]
    now: datetime
    lease_until_at: datetime
    owner: str
    limits: Mapping[ProviderName, Limits]


@dataclass(frozen=True, slots=True)
class Taken:
    """A task that is claimed, as its row in `tasks` stands now."""

    row: Any

    @property
    def task_id(self) -> str:
        """The task's id."""
        return str(self.row.id)


@dataclass(frozen=True, slots=True)
class Decided:
    """An answer for each id that was asked for, caller by caller; the rows of what was claimed; what else is to change."""

    answers: list[list[Taken | NotClaimed]]
    begun: list[Any]
    ended: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class _Terms:
    """On what terms one caller's tasks are claimed."""

    connection: Connection
    now: datetime
    at: int
    lease_end: int
    owner: str
    paused: dict[ProviderName, ProviderState]
    limits: Mapping[ProviderName, Limits]
    gates: Gates
    undone: Mapping[str, str]


def claim(
    ids: Sequence[str], now: datetime, lease: timedelta, owner: str, limits: Mapping[ProviderName, Limits]
) -> Batchable[Asked, list[Taken | NotClaimed]]:
    """Return the work that claims tasks; its result has one answer for each id, in order, which `claims` makes claims of."""
    return Batchable(_claim, asked(ids, now, lease, owner, limits), len(ids))


def asked(
    ids: Sequence[str], now: datetime, lease: timedelta, owner: str, limits: Mapping[ProviderName, Limits]
) -> Asked:
    """Return what one caller asks for."""
    return Asked(ids, now, now + lease, label(owner), limits)


def claims(taken: Sequence[Taken | NotClaimed]) -> tuple[list[Claim | NotClaimed], list[str]]:
    """Return the claims that stand, and why the others do not, in the same order; and the ids of tasks that cannot be read.

    Those are to be given back. A newer version beside this one may have written them, which sends them meanwhile.
    """
    answers: list[Claim | NotClaimed] = []
    unreadable = []
    for each in taken:
        if isinstance(each, NotClaimed):
            answers.append(each)
            continue
        try:
            answers.append(_standing(each.row))
        except Exception as error:  # noqa: BLE001 - whatever it is, it concerns this task alone
            why = f"this version cannot read what the ledger holds of it ({type(error).__name__})"
            log.error("task %s is given back: %s", each.row.id, why)
            answers.append(NotClaimed(task_id=each.row.id, state=TaskState.WAITING, why=why))
            unreadable.append(each.row.id)
    return answers, unreadable


def _claim(connection: Connection, parts: Sequence[Asked]) -> list[list[Taken | NotClaimed]]:
    now = min(asked.now for asked in parts)
    gates = Gates(connection, [asked.limits for asked in parts], now)  # before any task is locked
    ids = list(dict.fromkeys(task_id for asked in parts for task_id in asked.ids))
    found = {row.id: row for row in _FOUND.rows(connection, ids)}
    missing = [task_id for task_id in ids if task_id not in found]
    elsewhere = {row.id for row in _EXISTING.rows(connection, missing)} if missing else set()
    decided = decide(connection, parts, found, gates, elsewhere)
    if decided.ended:
        _END.run_many(connection, decided.ended)
    if decided.begun:
        taken = [
            {"task_id": row.id, "now": row.updated_at, "lease_end": row.lease_until_at, "new_owner": row.owner}
            for row in decided.begun
        ]
        _TAKE.run_many(connection, taken)
        add_attempts(connection, decided.begun)
    return decided.answers


def decide(
    connection: Connection,
    parts: Sequence[Asked],
    found: dict[str, Any],
    gates: Gates,
    elsewhere: Collection[str] = (),
) -> Decided:
    """Decide about tasks, `found` as their rows by id, without writing anything of them; others hold those `elsewhere`."""
    now = min(asked.now for asked in parts)
    paused = pauses.believed(connection, now)
    undone = reacting.undone(connection, found.values())
    ended: list[dict[str, Any]] = []
    begun: list[Any] = []
    answers = []
    for asked in parts:
        terms = _Terms(
            connection,
            asked.now,
            micros(asked.now),
            micros(asked.lease_until_at),
            asked.owner,
            paused,
            asked.limits,
            gates,
            undone,
        )
        given: dict[str, Taken | NotClaimed] = {}
        for task_id in asked.ids:
            if task_id in given:
                continue
            answer = _elsewhere(task_id) if task_id in elsewhere else _answer(task_id, found.get(task_id), terms, ended)
            given[task_id] = answer
            if isinstance(answer, Taken):
                begun.append(answer.row)
                found[task_id] = answer.row  # so that whoever asks next finds it so
            elif task_id in found and answer.state is not None:
                due_at = found[task_id].due_at if answer.due_at is None else micros(answer.due_at)
                found[task_id] = found[task_id]._replace(state=answer.state, due_at=due_at)
        answers.append(_in_order(asked.ids, given))
    gates.store()
    return Decided(answers, begun, ended)


def _in_order(ids: Sequence[str], given: dict[str, Taken | NotClaimed]) -> list[Taken | NotClaimed]:
    """Return an answer for each id in its place; an id that stands there again is told so."""
    answers: list[Taken | NotClaimed] = []
    answered: set[str] = set()
    for task_id in ids:
        twice = NotClaimed(task_id=task_id, state=None, why="it was asked for twice at once")
        answers.append(twice if task_id in answered else given[task_id])
        answered.add(task_id)
    return answers


def _elsewhere(task_id: str) -> NotClaimed:
    return NotClaimed(task_id=task_id, state=TaskState.SENDING, why="another worker is claiming it")


def _answer(task_id: str, row: Any, terms: _Terms, ended: list[dict[str, Any]]) -> Taken | NotClaimed:
    """Decide about one task, whose row may be missing; what it becomes without being claimed goes to `ended`."""
    if row is None:
        return NotClaimed(task_id=task_id, state=None, why="there is no such task")
    state = TaskState(row.state)
    if state not in _CLAIMABLE:
        return NotClaimed(task_id=task_id, state=state, why=_WHY_NOT[state])
    why = terms.undone.get(row.id)
    if why is None and row.expires_at is not None and row.expires_at <= terms.at:
        why = f"too late: expired at {instant(moment(row.expires_at))}"
        reacting.note_ends(terms.connection, [(row.id, reactions_of(row))], terms.at)
    if why is not None:
        ended.append(_change(row, TaskState.SUPPRESSED, row.due_at, why, terms))
        counters.of(terms.connection).count(Tally.TASKS_ENDED, row.type, TaskState.SUPPRESSED)
        return NotClaimed(task_id=task_id, state=TaskState.SUPPRESSED, why=why)
    if row.due_at > terms.at:
        due_at = moment(row.due_at)
        return NotClaimed(task_id=task_id, state=state, why=f"it is not due before {instant(due_at)}", due_at=due_at)
    return _admitted(row, terms, ended)


def _admitted(row: Any, terms: _Terms, ended: list[dict[str, Any]]) -> Taken | NotClaimed:
    """Claim a task as far as its provider's pause and limits let it."""
    provider, slot_at = ProviderName(row.provider), moment_or_none(row.slot_at)
    pause = terms.paused.get(provider)
    if pause is not None and pause.held and pauses.is_over(pause, terms.now):
        pause = None
    if pause is not None and not pauses.is_over(pause, terms.now):
        return _paused(row, pause, terms, ended)
    refusal = terms.gates.room(provider, slot_at, terms.limits, terms.now)
    if refusal is None and pause is not None:
        probed = pauses.let_probe_through(terms.connection, pause, terms.now)
        if probed is None:
            return _paused(row, pause, terms, ended)
        terms.paused[provider] = probed
    if refusal is None:
        refusal = terms.gates.begin(provider, slot_at, terms.limits, terms.now, at_once=pause is not None)
    return _taken(row, terms) if refusal is None else _refused(row, refusal, terms, ended)


def _paused(row: Any, pause: ProviderState, terms: _Terms, ended: list[dict[str, Any]]) -> NotClaimed:
    until_at = pause.paused_until_at or terms.now
    # The pause's reason quotes the provider and may be personal: it goes to the ledger, `why` goes anywhere.
    until = "it is resumed" if until_at >= UNTIL_RESUMED else instant(until_at)
    why = f"{row.provider} is paused until {until}"
    ended.append(_change(row, TaskState.WAITING, micros(until_at), f"{why}: {pause.reason}", terms))
    return NotClaimed(task_id=row.id, state=TaskState.WAITING, why=why, due_at=until_at, held=Held.PAUSE)


def _refused(row: Any, refusal: Refusal, terms: _Terms, ended: list[dict[str, Any]]) -> NotClaimed:
    why, due_at = f"{row.provider}: {refusal.why}", refusal.due_at
    ended.append(_change(row, TaskState.WAITING, micros(due_at), why, terms, slot_at=refusal.slot_at))
    return NotClaimed(task_id=row.id, state=TaskState.WAITING, why=why, due_at=due_at, held=refusal.held)


def _taken(row: Any, terms: _Terms) -> Taken:
    return Taken(
        row._replace(
            state=TaskState.SENDING,
            epoch=row.epoch + 1,
            attempts=row.attempts + 1,
            first_attempt_at=terms.at if row.first_attempt_at is None else row.first_attempt_at,
            lease_until_at=terms.lease_end,
            owner=terms.owner,
            slot_at=None,
            updated_at=terms.at,
        )
    )


def _standing(row: Any) -> Claim:
    return Claim(
        task=stored_task(row),
        epoch=row.epoch,
        attempt=row.attempts,
        first_attempt_at=moment(row.first_attempt_at),
        claimed_at=moment(row.updated_at),
        lease_until_at=moment(row.lease_until_at),
    )


def _change(
    row: Any, state: TaskState, due_at: int, why: str, terms: _Terms, *, slot_at: datetime | None = None
) -> dict[str, Any]:
    return {
        "task_id": row.id,
        "new_state": state,
        "new_due_at": due_at,
        "new_reason": sentence(why),
        "new_slot_at": micros_or_none(slot_at),
        "now": terms.at,
    }


def add_attempts(connection: Connection, begun: Sequence[Any]) -> None:
    """Note the attempts that these rows of claimed tasks stand for."""
    attempted = [
        {
            "task_id": row.id,
            "epoch": row.epoch,
            "number": row.attempts,
            "started_at": row.updated_at,
            "deferred": False,
        }
        for row in begun
    ]
    _ADD_ATTEMPTS.run_many(connection, attempted)

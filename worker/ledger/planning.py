"""How an event is decided once: the one whose transaction finds it `received` records what follows, all of it or nothing.

A try is counted before an event is handed out that was dispatched before: its processing may have killed the process that
would have counted. Until `PLANNING_LEASE` is over it is then handed to nobody else, so that messages which come twice do
not count twice. `event_failed` counts only what was not counted so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from operator import itemgetter
from typing import Any, Final

from sqlalchemy import Connection, bindparam, select, update

from rules.vocabulary import EventState, Plan, Task, TaskState
from worker.ledger import counters, reacting, replaying
from worker.ledger.at_once import Caller, New, claim_at_once, gates_of
from worker.ledger.claiming import Taken
from worker.ledger.counters import Tally
from worker.ledger.encoding import (
    contact_text,
    decisions_text,
    dump,
    micros,
    micros_or_none,
    retry_text,
    sentence,
    sentence_or_none,
    stored_event,
)
from worker.ledger.gates import Gates
from worker.ledger.schema import EVENT_OPEN, decisions, events, tasks, turns
from worker.ledger.statements import ForIds, Statement, columns_of, upsert
from worker.ledger.types import ClaimTerms, NotClaimed, StoredEvent, TaskRef
from worker.ledger.writer import Batchable

#: After so many tries an event is `failed`.
TRIES_LIMIT: Final = 5
#: The wait after the first try that failed; it doubles with each.
BACK_OFF: Final = timedelta(seconds=5)

#: How long a suspect belongs to the one who was given it; planning takes milliseconds.
PLANNING_LEASE: Final = timedelta(seconds=15)

_GIVEN_UP: Final = f"given up: processing it was begun {TRIES_LIMIT} times and never ended; it may crash the worker"

_OPEN: Final = ForIds(lambda among: select(events).where(among(events.c.id), EVENT_OPEN))
_LOCK_OPEN: Final = ForIds(
    lambda among: (
        select(events.c.id, events.c.tries, events.c.dispatches, events.c.rule_set)
        .where(among(events.c.id), EVENT_OPEN)
        .order_by(events.c.id)
        .with_for_update(key_share=True)
    )
)
_GIVE_UP: Final = ForIds(
    lambda among: (
        update(events)
        .where(among(events.c.id), EVENT_OPEN, events.c.due_at <= bindparam("now"), events.c.tries >= TRIES_LIMIT)
        .values(state=EventState.FAILED, reason=_GIVEN_UP)
        .returning(events.c.id)
    )
)
_COUNT_TRY: Final = ForIds(
    lambda among: (
        update(events)
        .where(among(events.c.id), EVENT_OPEN, events.c.due_at <= bindparam("now"))
        .values(tries=events.c.tries + 1, dispatched_at=bindparam("now"), due_at=bindparam("lease_end"))
        .returning(events.c.id, events.c.tries)
    )
)
_SET_FAILED: Final = Statement(
    update(events)
    .where(events.c.id == bindparam("event_id"))
    .values({name: bindparam(f"new_{name}") for name in ("tries", "due_at", "state", "reason")})
)
_SET_DECIDED: Final = Statement(
    update(events)
    .where(events.c.id == bindparam("event_id"))
    .values(state=bindparam("new_state"), rule_set=bindparam("new_rule_set"))
)
_NEW_DECISIONS: Final = upsert(decisions)
_ADD_DECISIONS: Final = Statement(
    _NEW_DECISIONS.on_conflict_do_update(
        index_elements=(decisions.c.event_id,),
        set_={name: _NEW_DECISIONS.excluded[name] for name in ("rule_set", "decided_at", "decisions")},
    ),
    columns_of(decisions),
)
_ADD_TASK: Final = Statement(
    upsert(tasks).on_conflict_do_nothing(),
    columns_of(tasks, "external_id"),
)
#: A task that never left, in the place it has: it keeps its id, its key, and what hangs on them.
_AGAIN: Final = (
    *("type", "provider", "fields", "due_at", "expires_at", "retry", "if_unsure", "contact", "state", "reason", "note"),
    *("rule_set", "dispatched_at", "created_at", "updated_at", "reactions"),
)
_PLAN_AGAIN: Final = Statement(
    update(tasks)
    .where(tasks.c.id == bindparam("task_id"), tasks.c.state == TaskState.DEAD, tasks.c.epoch == 0)
    .values({name: bindparam(f"new_{name}") for name in _AGAIN})
)
_NEW_TURNS: Final = upsert(turns)
_TAKE_TURNS: Final = Statement(
    _NEW_TURNS.on_conflict_do_update(
        index_elements=(turns.c.team,), set_={"taken": turns.c.taken + _NEW_TURNS.excluded.taken}
    ).returning(turns.c.taken),
    columns_of(turns),
)


@dataclass(frozen=True, slots=True)
class _Planned:
    """A plan, and the rows that it becomes."""

    plan: Plan
    event_row: dict[str, Any]
    decisions_row: dict[str, Any]
    tasks: Sequence[tuple[Task, dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class _Part:
    """What one caller wants recorded, and what claimed in the same transaction."""

    planned: Sequence[_Planned]
    caller: Caller


@dataclass(frozen=True, slots=True)
class Kept:
    """The tasks that are to be dispatched, and what came of those that were to be claimed."""

    due: list[TaskRef]
    taken: list[Taken | NotClaimed]


def open_events(connection: Connection, ids: Sequence[str]) -> list[StoredEvent]:
    """Return those of the events that are still to be decided, in the order of `ids`."""
    found = {row.id: stored_event(row) for row in _OPEN.rows(connection, ids)}
    return [found[event_id] for event_id in dict.fromkeys(ids) if event_id in found]


def suspects_of(found: Sequence[StoredEvent]) -> list[str]:
    """Return the ids of the events that may have crashed their processing."""
    return [event.id for event in found if event.dispatches > 1]


def count_tries(ids: Sequence[str], now: datetime) -> Callable[[Connection], Mapping[str, int]]:
    """Return the work that counts a try of each and gives up on those that had all; its result is the tries by id."""

    def work(connection: Connection) -> Mapping[str, int]:
        at = {"now": micros(now), "lease_end": micros(now + PLANNING_LEASE)}
        for _ in _GIVE_UP.rows(connection, ids, at):
            counters.of(connection).count(Tally.EVENTS_ENDED, EventState.FAILED)
        return {row.id: row.tries for row in _COUNT_TRY.rows(connection, ids, at)}

    return work


def returned(found: Sequence[StoredEvent], counted: Mapping[str, int]) -> list[StoredEvent]:
    """Return what was found without the suspects that were not counted, and with the tries of the others."""
    fine = (event for event in found if event.dispatches == 1 or event.id in counted)
    return [replace(event, tries=counted.get(event.id, event.tries)) for event in fine]


def record_plans(plans: Sequence[Plan], now: datetime, terms: ClaimTerms | None = None) -> Batchable[_Part, Kept]:
    """Return the work that records every plan whose event is still open, and claims of its due tasks what `terms` say."""
    at = micros(now)
    planned = [
        _Planned(plan, *_decided_rows(plan, at), [(task, _task_row(task, at)) for task in plan.tasks]) for plan in plans
    ]
    return Batchable(_record_plans, _Part(planned, Caller(terms, now)), len(planned))


def _record_plans(connection: Connection, parts: Sequence[_Part]) -> list[Kept]:
    callers = [part.caller for part in parts]
    gates = gates_of(connection, callers)
    by_event: dict[str, tuple[int, _Planned]] = {}
    for number, part in enumerate(parts):
        for each in part.planned:
            by_event.setdefault(each.plan.event_id, (number, each))
    unsent: Collection[tuple[str, str, str]] = ()
    decided_before = {row.id: row.rule_set is not None for row in _LOCK_OPEN.rows(connection, list(by_event))}
    ours = [each for event_id, each in by_event.items() if event_id in decided_before]
    if any(decided_before.values()):
        ours, unsent = _without_repeats(connection, ours, decided_before)
    if not ours:
        return [Kept([], []) for _ in parts]
    _SET_DECIDED.run_many(connection, [each.event_row for _, each in ours])
    _ADD_DECISIONS.run_many(connection, [each.decisions_row for _, each in ours])
    wanted = [(number, *pair) for number, each in ours for pair in each.tasks]
    return _add_tasks(connection, callers, wanted, [each.plan for _, each in ours], unsent, gates)


def add_tasks(connection: Connection, planned: Sequence[Task], now: datetime) -> tuple[TaskRef, ...]:
    """Record tasks that belong to no new plan, those that are not there yet; return the ones due now, marked as queued."""
    at = micros(now)
    (kept,) = _add_tasks(connection, [Caller(None, now)], [(0, task, _task_row(task, at)) for task in planned], [])
    return tuple(kept.due)


def _add_tasks(
    connection: Connection,
    callers: Sequence[Caller],
    wanted: Sequence[New],
    plans: Sequence[Plan],
    unsent: Collection[tuple[str, str, str]] = (),
    gates: Gates | None = None,
) -> list[Kept]:
    """Record the tasks that are not there, count them and their plans, note the ends that planning gave some of them.

    What never left is rewritten and not counted again: neither that it was made, nor that it has ended.
    """
    pairs = _with_turns(connection, wanted)
    again = [pair for pair in pairs if _id_of(pair[1]) in unsent] if unsent else []
    if again:
        _plan_again(connection, [row for _, _, row in again])
        pairs = [pair for pair in pairs if _id_of(pair[1]) not in unsent]
    claimed = claim_at_once(connection, callers, pairs, gates)
    if claimed.rows:
        pairs = [(number, task, claimed.rows.get(task.id, row)) for number, task, row in pairs]
    is_new = _ADD_TASK.run_each(connection, [row for _, _, row in pairs]) if pairs else []
    added = [pair for pair, count in zip(pairs, is_new, strict=True) if count]
    counters.of(connection).planned(plans, [task for _, task, _ in added])
    for _, task, row in added:
        if task.reactions and task.state in reacting.FAILED_STATES:
            reacting.note_ends(connection, [(task.id, task.reactions)], row["created_at"])
    kept = [Kept([], []) for _ in callers]
    for number, task, row in [*added, *again]:
        if row["state"] == TaskState.QUEUED:
            kept[number].due.append(_ref(task))
    for number, answer in claimed.stand(connection, {task.id for _, task, _ in added}):
        kept[number].taken.append(answer)
    return kept


def _plan_again(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rewrite tasks, in the order of their ids, which everybody keeps: no two processes wait for each other."""
    changed = [{"task_id": row["id"]} | {f"new_{name}": row[name] for name in _AGAIN} for row in rows]
    _PLAN_AGAIN.run_many(connection, sorted(changed, key=itemgetter("task_id")))


def _without_repeats(
    connection: Connection, ours: Sequence[tuple[int, _Planned]], decided_before: Mapping[str, bool]
) -> tuple[list[tuple[int, _Planned]], Collection[tuple[str, str, str]]]:
    """Return plans without those that a replay must not make, and without the tasks that exist: they take no turn.

    Tasks that never left are among them; with the plans comes which those are.
    """
    again = [each.plan for _, each in ours if decided_before[each.plan.event_id]]
    named = {plan.event_id: {(task.rule, task.name, task.type) for task in plan.tasks} for plan in again}
    found = replaying.standing(connection, named)
    left = [
        (number, replace(each, tasks=[pair for pair in each.tasks if _id_of(pair[0]) not in found.made]))
        for number, each in ours
        if each.plan.event_id not in found.refused
    ]
    return left, found.unsent


def _id_of(task: Task) -> tuple[str, str, str]:
    return task.event_id, task.rule, task.name


def event_failed(event_id: str, error: str, now: datetime) -> Callable[[Connection], None]:
    """Return the work that makes an event due again later, or ends it after its last try."""

    def work(connection: Connection) -> None:
        found = _LOCK_OPEN.rows(connection, [event_id])
        if not found:
            return
        row = found[0]
        tries = row.tries + 1 if row.dispatches == 1 or row.tries == 0 else row.tries
        over = tries >= TRIES_LIMIT
        changed = {
            "event_id": event_id,
            "new_tries": tries,
            "new_due_at": micros(now + BACK_OFF * 2 ** (tries - 1)),
            "new_state": EventState.FAILED if over else EventState.RECEIVED,
            "new_reason": sentence(error),
        }
        _SET_FAILED.run(connection, changed)
        if over:
            counters.of(connection).count(Tally.EVENTS_ENDED, EventState.FAILED)

    return work


def _decided_rows(plan: Plan, at: int) -> tuple[dict[str, Any], dict[str, Any]]:
    return (
        {"event_id": plan.event_id, "new_state": plan.state, "new_rule_set": plan.rule_set},
        {
            "event_id": plan.event_id,
            "rule_set": plan.rule_set,
            "decided_at": at,
            "decisions": decisions_text(plan.decisions),
        },
    )


def _task_row(task: Task, at: int) -> dict[str, Any]:
    due_at = micros(task.due_at)
    due = task.state == TaskState.PLANNED and due_at <= at
    return {
        "id": task.id,
        "key": task.key,
        "event_id": task.event_id,
        "rule": task.rule,
        "name": task.name,
        "type": task.type,
        "provider": task.provider,
        "fields": dump(dict(task.fields)),
        "due_at": due_at,
        "expires_at": micros_or_none(task.expires_at),
        "retry": retry_text(task.retry),
        "if_unsure": task.if_unsure,
        "contact": contact_text(task.contact),
        "state": TaskState.QUEUED if due else task.state,
        "reason": sentence_or_none(task.reason),
        "note": sentence_or_none(task.note),
        "rule_set": task.rule_set,
        "attempts": 0,
        "epoch": 0,
        "first_attempt_at": None,
        "lease_until_at": None,
        "owner": None,
        "dispatched_at": at if due else None,
        "created_at": at,
        "updated_at": at,
        "parent": task.parent,
        "reactions": dump(list(task.reactions)) if task.reactions else None,
        "slot_at": None,
    }


def _with_turns(connection: Connection, pairs: Sequence[New]) -> list[New]:
    """Give each task of a rotating team to its next member; a task that planning ended takes no turn.

    Teams are taken in the same order by everybody, so that no two processes wait for each other.
    """
    places: dict[str, list[int]] = {}
    for place, (_, task, _) in enumerate(pairs):
        if task.rotation and task.rotation.member_ids and task.state == TaskState.PLANNED:
            places.setdefault(task.rotation.team, []).append(place)
    if not places:
        return list(pairs)
    teams = sorted(places)
    wanted = [{"team": team, "taken": len(places[team])} for team in teams]
    given = list(pairs)
    for team, (row,) in zip(teams, _TAKE_TURNS.rows_each(connection, wanted), strict=True):
        for turn, place in enumerate(places[team], start=row.taken - len(places[team])):
            number, task, task_row = given[place]
            assert task.rotation is not None
            member = task.rotation.member_ids[turn % len(task.rotation.member_ids)]
            given[place] = (number, task, {**task_row, "fields": dump({**task.fields, "responsible_ids": [member]})})
    return given


def _ref(task: Task) -> TaskRef:
    return TaskRef(
        id=task.id,
        type=task.type,
        provider=task.provider,
        rule=task.rule,
        name=task.name,
        attempts=0,
        epoch=0,
    )

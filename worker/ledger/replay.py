"""Replay: plan an event again without doing anything twice.

A replayed event returns to `received`, so that a worker plans it under the current rules. Its tasks keep their keys, so
existing tasks are not made again. The exception is a task that died while it was planned: it was never sent, and is planned
again in place. A key contains the names of rule and task. When one name was removed and another added, the same task may exist
under its old name; the transaction that would record the new plan then refuses. It recognises an event that was planned before
by its rule set.

With new keys the event is copied as a new generation: a row of its own, `EVENT.2`, whose id goes into all its keys. The first
event keeps its decisions and tasks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, bindparam, insert, select, update

from rules.vocabulary import EventState, TaskState, instant
from worker.ledger.encoding import micros, sentence, stored_event
from worker.ledger.schema import events, tasks
from worker.ledger.statements import ForIds, Statement, columns_of
from worker.ledger.types import StoredEvent, StoredTask

#: Stands between an event's id and the number of its generation; no fresh id holds it.
_DOT: Final = "."
#: An event that was made anew from another one.
IS_GENERATION: Final = events.c.id.contains(_DOT, autoescape=True)

_LOCK_EVENTS: Final = ForIds(
    lambda among: select(events).where(among(events.c.id)).order_by(events.c.id).with_for_update(key_share=True)
)
_EVENT_STATES: Final = ForIds(lambda among: select(events.c.id, events.c.state).where(among(events.c.id)))
_THIS_EVENT: Final = events.c.id == bindparam("event_id")
#: `dispatched_at` 0: no message is on its way, so that the next sweep sends one.
_OPEN_AGAIN: Final = Statement(
    update(events)
    .where(_THIS_EVENT)
    .values(
        state=EventState.RECEIVED,
        reason=bindparam("new_reason"),
        tries=0,
        due_at=bindparam("now"),
        dispatches=bindparam("new_dispatches"),
        dispatched_at=0,
    )
)
_ADD_GENERATION: Final = Statement(insert(events), columns_of(events))
_SET_REASON: Final = Statement(update(events).where(_THIS_EVENT).values(reason=bindparam("new_reason")))
_REFUSE: Final = Statement(
    update(events).where(_THIS_EVENT).values(state=EventState.PROCESSED, reason=bindparam("new_reason"))
)
_TASKS_OF: Final = ForIds(
    lambda among: select(
        tasks.c.event_id, tasks.c.rule, tasks.c.name, tasks.c.type, tasks.c.state, tasks.c.epoch
    ).where(among(tasks.c.event_id), tasks.c.parent.is_(None))
)

#: A rule, the name of one of its tasks, and the task's type.
Name = tuple[str, str, str]
#: The types of a rule's tasks by their names, by rule.
_ByRule = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """The result for one event: the id under which it is planned again, or why it is not and what to do instead."""

    event_id: str
    again_as: str | None = None
    refusal: str | None = None


def why_not_replayed(stored: StoredEvent, *, failed_too: bool) -> str | None:
    """Return why an event cannot be replayed, and what to do instead; None when it can."""
    if stored.state == EventState.RECEIVED:
        return f"event {stored.id} has not been decided yet: a running worker does it within seconds"
    if stored.state == EventState.UNREADABLE:
        return (
            f"event {stored.id} could not be read ({stored.reason}): there is nothing to decide; "
            "correct its source in the rules, and have it sent again"
        )
    if stored.state == EventState.FAILED and not failed_too:
        return (
            f"event {stored.id} failed five times ({stored.reason}) and may crash a worker: once the cause is mended, "
            f"leadwire replay {stored.id} --failed"
        )
    if stored.state == EventState.IGNORED and stored.rule_set is None:
        return f"event {stored.id} is {stored.reason}"
    return None


def never_sent(task: StoredTask) -> bool:
    """Whether a task died while it was planned: it was never sent and never can be."""
    return _never_left(task.state, task.epoch)


def _never_left(state: str, epoch: int) -> bool:
    """Whether a task has ended dead and never been claimed: each claim counts the epoch on."""
    return state == TaskState.DEAD and epoch == 0


def renamed(planned: Iterable[Name], existing: Iterable[Name]) -> str | None:
    """Return a sentence that names the tasks which seem to have been renamed since they were made; None when none were.

    `existing` leaves out tasks that never left. A name that was only added or only removed is no renaming. Nor is a new rule,
    unless a rule that made a task of the same type is gone.
    """
    now, then = _by_rule(planned), _by_rule(existing)
    for rule in sorted(now.keys() & then.keys()):
        new, gone = now[rule].keys() - then[rule].keys(), then[rule].keys() - now[rule].keys()
        if new and gone:
            return (
                f"rule {rule} names its tasks otherwise now ({', '.join(sorted(gone))} then, {', '.join(sorted(new))} now), "
                "so that they would be made a second time: give them their old names by `id`, "
                "or make all tasks anew with --new-keys"
            )
    for gone_rule in sorted(then.keys() - now.keys()):
        for new_rule in sorted(now.keys() - then.keys()):
            types = set(then[gone_rule].values()) & set(now[new_rule].values())
            if types:
                return (
                    f"rule {gone_rule} made a {min(types)} and plans nothing now, rule {new_rule} made nothing and plans one "
                    f"now, so that it would be made a second time: if {new_rule} is {gone_rule} renamed, give it back its old "
                    "`id`; or make all tasks anew with --new-keys"
                )
    return None


def _by_rule(names: Iterable[Name]) -> _ByRule:
    found: dict[str, dict[str, str]] = {}
    for rule, name, type_ in names:
        found.setdefault(rule, {})[name] = type_
    return found


@dataclass(frozen=True, slots=True)
class ExistingTasks:
    """Existing tasks of events that are replayed, and the events whose new plan was refused.

    Tasks are keyed by event, rule and name. `unsent` are those that were never sent and are planned again.
    """

    made: Collection[tuple[str, str, str]] = ()
    unsent: Collection[tuple[str, str, str]] = ()
    refused: Collection[str] = ()


def find_existing(connection: Connection, plans: Mapping[str, Collection[Name]]) -> ExistingTasks:
    """Find the existing tasks of events planned before. `plans` has their new tasks; refuses events whose names changed.

    A refused event is left unchanged, except that its reason says why.
    """
    made: dict[str, list[Any]] = {event_id: [] for event_id in plans}
    unsent, refused = set(), []
    for row in _TASKS_OF.rows(connection, list(plans)):
        if _never_left(row.state, row.epoch):
            unsent.add((row.event_id, row.rule, row.name))
        else:
            made[row.event_id].append(row)
    for event_id, planned in plans.items():
        why = renamed(planned, [(row.rule, row.name, row.type) for row in made[event_id]])
        if why:
            refused.append(event_id)
            _REFUSE.run(connection, {"event_id": event_id, "new_reason": sentence(f"not decided again: {why}")})
    stands = {(event_id, row.rule, row.name) for event_id, rows in made.items() for row in rows}
    return ExistingTasks(stands, unsent, refused)


def replay_events(connection: Connection, ids: Sequence[str], now: datetime, *, failed_too: bool) -> list[Replayed]:
    """Make events due to be planned again; return one result for each event that exists, in the order of ids."""
    return [_replay(connection, row, now, failed_too) for row in _LOCK_EVENTS.rows(connection, sorted(ids))]


def renew_events(connection: Connection, ids: Sequence[str], now: datetime, *, failed_too: bool) -> list[Replayed]:
    """Copy events as their next generation, to be planned anew; returns the same as `replay_events`."""
    found = _LOCK_EVENTS.rows(connection, sorted({event_id.partition(_DOT)[0] for event_id in ids}))
    numbers, undecided = _next_numbers(connection, [row.id for row in found])
    return [_renew(connection, row, numbers[row.id], undecided, now, failed_too) for row in found]


def _replay(connection: Connection, row: Any, now: datetime, failed_too: bool) -> Replayed:
    stored = stored_event(row)
    refusal = why_not_replayed(stored, failed_too=failed_too)
    if refusal:
        return Replayed(event_id=stored.id, refusal=refusal)
    before = f"{stored.state} under {stored.rule_set}" if stored.rule_set else f"{stored.state}: {stored.reason}"
    changed = {
        "event_id": stored.id,
        "new_reason": sentence(f"replayed by a person at {instant(now)}; before it was {before}"),
        "new_dispatches": _dispatches(stored),
        "now": micros(now),
    }
    _OPEN_AGAIN.run(connection, changed)
    return Replayed(event_id=stored.id, again_as=stored.id)


def _renew(
    connection: Connection, row: Any, number: int, undecided: Collection[str], now: datetime, failed_too: bool
) -> Replayed:
    stored = stored_event(row)
    latest = f"{stored.id}{_DOT}{number - 1}"
    refusal = why_not_replayed(stored, failed_too=failed_too)
    if latest in undecided:
        refusal = f"event {stored.id} is being made anew already, as {latest}: it has not been decided yet"
    if refusal:
        return Replayed(event_id=stored.id, refusal=refusal)
    again_as = f"{stored.id}{_DOT}{number}"
    new = {
        "id": again_as,
        "state": EventState.RECEIVED,
        "reason": f"{stored.id} made anew under new keys by a person at {instant(now)}",
        "tries": 0,
        "due_at": micros(now),
        "dispatches": _dispatches(stored),
        "dispatched_at": 0,
        "rule_set": None,
    }
    _ADD_GENERATION.run(connection, {name: getattr(row, name) for name in columns_of(events)} | new)
    told = f"made anew under new keys as {again_as} by a person at {instant(now)}"
    kept = f"{stored.reason}; {told}" if stored.state == EventState.FAILED and stored.reason else told
    _SET_REASON.run(connection, {"event_id": stored.id, "new_reason": sentence(kept)})
    return Replayed(event_id=stored.id, again_as=again_as)


def _dispatches(stored: StoredEvent) -> int:
    """Return how often an event counts as dispatched: one that failed is decided alone, and its tries are counted."""
    return 1 if stored.state == EventState.FAILED else 0


def _next_numbers(connection: Connection, firsts: Sequence[str]) -> tuple[dict[str, int], set[str]]:
    """Return the number of each event's next generation, and the ids of the generations that are still to be decided."""
    numbers: dict[str, int] = {}
    undecided: set[str] = set()
    left, number = list(firsts), 2
    while left:
        found = _EVENT_STATES.rows(connection, [f"{first}{_DOT}{number}" for first in left])
        there = {row.id for row in found}
        undecided |= {row.id for row in found if row.state == EventState.RECEIVED}
        numbers |= {first: number for first in left if f"{first}{_DOT}{number}" not in there}
        left = [first for first in left if first not in numbers]
        number += 1
    return numbers, undecided

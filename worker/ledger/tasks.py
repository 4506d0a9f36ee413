"""Tasks from their plan to their end: inserted, dispatched, claimed, settled.

Insert: the transaction that finds an event `received` records its decisions and tasks, all of it or nothing. Tasks that are
due at once can be claimed as they are inserted: they are written once, as claimed.

Dispatch: the ledger is the timetable. What is due goes on the broker, and again what was dispatched and never claimed.

Claim: the transaction that finds a task unclaimed may send it, with a lease. The attempt is on disk before the request leaves.
`epoch` counts claims and is the fencing number: whoever holds an older one cannot settle the task any more.

Settle: an outcome counts only under the claim's epoch; there also for a task whose lease ran out meanwhile. A late success
counts under any. An attempt whose process ended, or whose lease did, may have been executed: its task becomes `unknown` and is
looked up at its provider.

All other writers wait for a transaction of these, so rows are made before it, and tasks are made of rows after it. Locks are
taken in the order of ids by everybody, so that no two processes wait for each other: providers, events, tasks.
"""

from __future__ import annotations

import logging
from collections import namedtuple
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import islice
from operator import itemgetter
from types import MappingProxyType
from typing import Any, Final

from sqlalchemy import Connection, and_, bindparam, case, func, insert, null, or_, select, update

from rules.vocabulary import (
    TERMINAL_TASK_STATES,
    LedgerError,
    Plan,
    ProviderName,
    Task,
    TaskState,
    TaskType,
    Verdict,
    instant,
)
from worker.ledger import replay, transitions
from worker.ledger.counters import LOST, CounterName, counters_of, status_label
from worker.ledger.encoding import (
    contact_text,
    decisions_text,
    dump,
    label,
    micros,
    micros_or_none,
    moment,
    moment_or_none,
    reactions_of,
    retry_text,
    sentence,
    sentence_or_none,
    stored_task,
    task_ref,
)
from worker.ledger.inbox import LOCK_OPEN_EVENTS
from worker.ledger.limits import (
    RateLimiter,
    is_over,
    note_outcomes,
    pauses_for_claim,
    take_probe,
    uncount_claim,
)
from worker.ledger.schema import TASK_QUEUED, TASK_SENDING, TASK_TIMED, attempts, decisions, events, tasks, turns
from worker.ledger.statements import ForIds, Statement, columns_of, upsert
from worker.ledger.types import (
    UNTIL_RESUMED,
    Claim,
    ClaimTerms,
    Held,
    Limits,
    NotClaimed,
    ProviderState,
    Settlement,
    TaskRef,
)
from worker.ledger.writer import Batchable, LedgerGroup

log = logging.getLogger(__name__)

_NO_LIMITS: Final[Mapping[ProviderName, Limits]] = MappingProxyType({})

# Insert ----------------------------------------------------------------------------------------------------------------

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
_ADD_TASK: Final = Statement(upsert(tasks).on_conflict_do_nothing(), columns_of(tasks, "external_id"))
#: A task that never left is planned again in the place it has: it keeps its id, its key, and what hangs on them.
_PLANNED_AGAIN: Final = (
    *("type", "provider", "fields", "due_at", "expires_at", "retry", "if_unsure", "contact", "state", "reason", "note"),
    *("rule_set", "dispatched_at", "created_at", "updated_at", "reactions"),
)
_PLAN_AGAIN: Final = Statement(
    update(tasks)
    .where(tasks.c.id == bindparam("task_id"), tasks.c.state == TaskState.DEAD, tasks.c.epoch == 0)
    .values({name: bindparam(f"new_{name}") for name in _PLANNED_AGAIN})
)
_NEW_TURNS: Final = upsert(turns)
_TAKE_TURNS: Final = Statement(
    _NEW_TURNS.on_conflict_do_update(
        index_elements=(turns.c.team,), set_={"taken": turns.c.taken + _NEW_TURNS.excluded.taken}
    ).returning(turns.c.taken),
    columns_of(turns),
)
_ADD_ATTEMPTS: Final = Statement(
    insert(attempts), columns_of(attempts, "ended_at", "verdict", "status", "error", "external_id")
)

#: A row of `tasks` that is not there yet.
_NewRow: Any = namedtuple("_NewRow", tasks.c.keys(), defaults=[None] * len(tasks.c))  # type: ignore[misc]  # noqa: PYI024  # its names are the columns


@dataclass(frozen=True, slots=True)
class _NewTask:
    """A task to be inserted, the row that it becomes, and the number of the caller who wants it."""

    caller: int
    task: Task
    row: dict[str, Any]

    @property
    def identity(self) -> tuple[str, str, str]:
        """What exists once: event, rule and name."""
        return self.task.event_id, self.task.rule, self.task.name


@dataclass(frozen=True, slots=True)
class _Planned:
    """A plan, the parameters of what it writes of its event, and the rows of its tasks."""

    plan: Plan
    row: dict[str, Any]
    tasks: Sequence[tuple[Task, dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class _Insertion:
    """What one caller wants inserted, and claimed in the same transaction."""

    plans: Sequence[_Planned]
    now: datetime
    terms: ClaimTerms | None = None


@dataclass(frozen=True, slots=True)
class Inserted:
    """Tasks to dispatch, and the results of the claims made in the same transaction."""

    due: list[TaskRef] = field(default_factory=list)
    claimed: list[Taken | NotClaimed] = field(default_factory=list)


def insert_plans(
    plans: Sequence[Plan], now: datetime, terms: ClaimTerms | None = None
) -> Batchable[_Insertion, Inserted]:
    """Return the write that records the plans of events still `received`, and claims their due tasks as `terms` say."""
    at = micros(now)
    planned = [
        _Planned(
            plan,
            {
                "event_id": plan.event_id,
                "new_state": plan.state,
                "new_rule_set": plan.rule_set,
                "rule_set": plan.rule_set,
                "decided_at": at,
                "decisions": decisions_text(plan.decisions),
            },
            [(task, _task_row(task, at)) for task in plan.tasks],
        )
        for plan in plans
    ]
    return Batchable(_insert_plans, _Insertion(planned, now, terms), len(planned))


def _insert_plans(connection: Connection, parts: Sequence[_Insertion]) -> list[Inserted]:
    claiming = [(part.terms.limits, part.now) for part in parts if part.terms is not None]
    limiter = None
    if claiming:  # the providers are locked before any event
        limiter = RateLimiter(connection, [limits for limits, _ in claiming], min(now for _, now in claiming))
    ours: dict[str, tuple[int, _Planned]] = {}
    for caller, part in enumerate(parts):
        for planned in part.plans:
            ours.setdefault(planned.plan.event_id, (caller, planned))
    found = {row.id: row.rule_set for row in LOCK_OPEN_EVENTS.rows(connection, list(ours))}
    ours = {event_id: each for event_id, each in ours.items() if event_id in found}
    standing = replay.ExistingTasks()
    decided_before = [event_id for event_id in ours if found[event_id] is not None]
    if decided_before:
        names = {
            name: {(task.rule, task.name, task.type) for task, _ in ours[name][1].tasks} for name in decided_before
        }
        standing = replay.find_existing(connection, names)
        ours = {event_id: each for event_id, each in ours.items() if event_id not in standing.refused}
    if not ours:
        return [Inserted() for _ in parts]
    rows = [planned.row for _, planned in ours.values()]
    _SET_DECIDED.run_many(connection, rows)
    _ADD_DECISIONS.run_many(connection, rows)
    new = [_NewTask(caller, task, row) for caller, planned in ours.values() for task, row in planned.tasks]
    if standing.made:
        new = [each for each in new if each.identity not in standing.made]
    return _insert_tasks(
        connection, parts, new, [planned.plan for _, planned in ours.values()], standing.unsent, limiter
    )


def insert_tasks(connection: Connection, planned: Sequence[Task], now: datetime) -> tuple[TaskRef, ...]:
    """Insert tasks outside a plan, skipping existing ones; return those due now, marked as queued."""
    at = micros(now)
    wanted = [_NewTask(0, task, _task_row(task, at)) for task in planned]
    return tuple(_insert_tasks(connection, [_Insertion((), now)], wanted, [])[0].due)


def _insert_tasks(
    connection: Connection,
    callers: Sequence[_Insertion],
    wanted: Sequence[_NewTask],
    plans: Sequence[Plan],
    unsent: Collection[tuple[str, str, str]] = (),
    limiter: RateLimiter | None = None,
) -> list[Inserted]:
    """Record the tasks that are not there, count them and their plans, note the ends that planning gave some of them.

    Those that never left are rewritten and not counted again: neither that they were made, nor that they have ended. They
    and the tasks that exist take no turn in a team.
    """
    new = _with_turns(connection, wanted)
    again = [each for each in new if each.identity in unsent] if unsent else []
    if again:
        changed = [
            {"task_id": each.row["id"]} | {f"new_{name}": each.row[name] for name in _PLANNED_AGAIN} for each in again
        ]
        _PLAN_AGAIN.run_many(connection, sorted(changed, key=itemgetter("task_id")))
        new = [each for each in new if each.identity not in unsent]
    claimed = _claim_on_insert(connection, callers, new, limiter) if limiter else _ClaimedOnInsert()
    if claimed.rows:
        new = [_NewTask(each.caller, each.task, claimed.rows.get(each.task.id, each.row)) for each in new]
    is_new = _ADD_TASK.run_each(connection, [each.row for each in new]) if new else []
    added = [each for each, count in zip(new, is_new, strict=True) if count]
    counters_of(connection).planned(plans, [each.task for each in added])
    for each in added:
        if each.task.reactions and each.task.state in transitions.FAILED_STATES:
            transitions.note_ends(connection, [(each.task.id, each.task.reactions)], each.row["created_at"])
    inserted = [Inserted() for _ in callers]
    for each in [*added, *again]:
        if each.row["state"] == TaskState.QUEUED:
            inserted[each.caller].due.append(task_ref(_NewRow(**each.row)))
    there = {each.task.id for each in added}
    _add_attempts(connection, [row for row in claimed.begun if row.id in there])
    for caller, answer in claimed.answers:
        if answer.task_id in there:
            inserted[caller].claimed.append(answer)
    return inserted


@dataclass(frozen=True, slots=True)
class _ClaimedOnInsert:
    """What was decided about new tasks: the rows that they become, which of them are claimed, and each caller's answers."""

    rows: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    begun: Sequence[Any] = ()
    answers: Sequence[tuple[int, Taken | NotClaimed]] = ()


def _claim_on_insert(
    connection: Connection, callers: Sequence[_Insertion], new: Sequence[_NewTask], limiter: RateLimiter
) -> _ClaimedOnInsert:
    """Decide about the new tasks that each caller's terms name. One that has expired is left to its message, which tells so."""
    wanted: dict[int, list[str]] = {}
    found: dict[str, Any] = {}
    for each in new:
        terms, row = callers[each.caller].terms, each.row
        if terms is None or each.task.type is not terms.type or row["state"] != TaskState.QUEUED:
            continue
        expired = row["expires_at"] is not None and row["expires_at"] <= row["created_at"]
        if not expired and len(wanted.get(each.caller, ())) < terms.most:
            wanted.setdefault(each.caller, []).append(row["id"])
            found[row["id"]] = _NewRow(**row)
    if not wanted:
        return _ClaimedOnInsert()
    requests = {
        caller: ClaimRequest.of(ids, callers[caller].now, terms.lease, terms.owner, terms.limits)
        for caller, ids in wanted.items()
        if (terms := callers[caller].terms) is not None
    }
    claiming = _Claiming(connection, list(requests.values()), dict(found), limiter)
    answers = [(caller, answer) for caller, request in requests.items() for answer in claiming.answers(request)]
    limiter.store()
    rows = {row.id: row._asdict() for row in claiming.begun}
    for change in claiming.ended:
        new_values = {name.removeprefix("new_"): value for name, value in change.items() if name.startswith("new_")}
        rows[change["task_id"]] = found[change["task_id"]]._asdict() | new_values
    return _ClaimedOnInsert(rows, claiming.begun, answers)


def _with_turns(connection: Connection, new: Sequence[_NewTask]) -> list[_NewTask]:
    """Give each task of a rotating team to its next member; a task that planning ended takes no turn."""
    places: dict[str, list[int]] = {}
    for place, each in enumerate(new):
        rotation = each.task.rotation
        if rotation and rotation.member_ids and each.task.state == TaskState.PLANNED:
            places.setdefault(rotation.team, []).append(place)
    given = list(new)
    if not places:
        return given
    teams = sorted(places)
    wanted = [{"team": team, "taken": len(places[team])} for team in teams]
    for team, (row,) in zip(teams, _TAKE_TURNS.rows_each(connection, wanted), strict=True):
        for turn, place in enumerate(places[team], start=row.taken - len(places[team])):
            each = given[place]
            assert each.task.rotation is not None
            members = each.task.rotation.member_ids
            fields = dump({**each.task.fields, "responsible_ids": [members[turn % len(members)]]})
            given[place] = replace(each, row={**each.row, "fields": fields})
    return given


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


# Dispatch --------------------------------------------------------------------------------------------------------------
# Reads look first, through the partial indexes, so that a sweep that finds nothing writes nothing. The write chooses: of
# several sweeps at once each takes the oldest that no other holds, so that they share the work and never wait for each other.

_OF_PROVIDER: Final = tasks.c.provider == bindparam("provider")
_TASK_DUE: Final = and_(TASK_TIMED, tasks.c.due_at <= bindparam("now"))
_TASK_STALE: Final = and_(TASK_QUEUED, tasks.c.dispatched_at <= bindparam("cutoff"))
_ANY_DUE: Final = tuple(
    Statement(select(tasks.c.id).where(_OF_PROVIDER, due).limit(1)) for due in (_TASK_DUE, _TASK_STALE)
)
_OLDEST: Final = (
    select(tasks.c.id, tasks.c.due_at)
    .order_by(tasks.c.due_at)
    .limit(bindparam("most"))
    .with_for_update(key_share=True, skip_locked=True)
)
_OLDEST_DUE: Final = Statement(_OLDEST.where(_OF_PROVIDER, _TASK_DUE))
_OLDEST_STALE: Final = Statement(_OLDEST.where(_OF_PROVIDER, _TASK_STALE))
_DISPATCH: Final = ForIds(
    lambda among: (
        update(tasks)
        .where(among(tasks.c.id))
        .values(state=TaskState.QUEUED, dispatched_at=bindparam("now"), updated_at=bindparam("now"))
        .returning(*(tasks.c[name] for name in ("id", "type", "provider", "rule", "name", "attempts", "epoch")))
    )
)
_PUT_BACK: Final = ForIds(
    lambda among: (
        update(tasks)
        .where(among(tasks.c.id), TASK_QUEUED)
        .values(state=TaskState.WAITING, updated_at=bindparam("now"))
        .returning(tasks.c.id)
    )
)


def _dispatch_due(connection: Connection, at: Mapping[str, Any], limits: Mapping[ProviderName, int]) -> list[TaskRef]:
    chosen: list[tuple[int, str]] = []
    for provider, limit in limits.items():
        asked = {**at, "provider": provider, "most": limit}
        found = [row for each in (_OLDEST_DUE, _OLDEST_STALE) for row in each.rows(connection, asked)]
        chosen += sorted((row.due_at, row.id) for row in found)[:limit]
    ids = [task_id for _, task_id in sorted(chosen)]
    refs = {row.id: task_ref(row) for row in _DISPATCH.rows(connection, ids, at)} if ids else {}
    return [refs[task_id] for task_id in ids]


# Claim -----------------------------------------------------------------------------------------------------------------

#: What somebody else holds at this moment is left to them.
_LOCK_TASKS: Final = ForIds(
    lambda among: (
        select(tasks).where(among(tasks.c.id)).order_by(tasks.c.id).with_for_update(key_share=True, skip_locked=True)
    )
)
_EXISTING: Final = ForIds(lambda among: select(tasks.c.id).where(among(tasks.c.id)))
_TAKE: Final = Statement(
    update(tasks)
    .where(tasks.c.id == bindparam("task_id"))
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
_DEFER_OR_END: Final = Statement(
    update(tasks)
    .where(tasks.c.id == bindparam("task_id"))
    .values(
        state=bindparam("new_state"),
        due_at=bindparam("new_due_at"),
        reason=bindparam("new_reason"),
        slot_at=bindparam("new_slot_at"),
        updated_at=bindparam("now"),
    )
)

#: When a task that cannot be read is tried again.
_UNREADABLE_REST: Final = timedelta(minutes=1)

_CLAIMABLE: Final = frozenset({TaskState.PLANNED, TaskState.QUEUED, TaskState.WAITING})
_WHY_NOT: Final = {
    TaskState.SENDING: "it is being sent already",
    TaskState.UNKNOWN: "nobody knows yet whether it was executed",
} | {state: f"it has ended: {state}" for state in TERMINAL_TASK_STATES}


@dataclass(frozen=True, slots=True)
class Taken:
    """A task just claimed: its updated row in `tasks`."""

    row: Any

    @property
    def task_id(self) -> str:
        """The task's id."""
        return str(self.row.id)


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """The tasks one caller wants to claim, and how; `at` (now) and `lease_end` are microseconds since 1970."""

    ids: Sequence[str]
    now: datetime
    at: int
    lease_end: int
    owner: str
    limits: Mapping[ProviderName, Limits]

    @classmethod
    def of(
        cls, ids: Sequence[str], now: datetime, lease: timedelta, owner: str, limits: Mapping[ProviderName, Limits]
    ) -> ClaimRequest:
        """Build one whose lease ends `lease` after `now`."""
        return cls(ids, now, micros(now), micros(now + lease), label(owner), limits)


def claim_tasks(
    ids: Sequence[str], now: datetime, lease: timedelta, owner: str, limits: Mapping[ProviderName, Limits]
) -> Batchable[ClaimRequest, list[Taken | NotClaimed]]:
    """Return the write that claims tasks; it returns one result for each id, in order."""
    return Batchable(_claim_tasks, ClaimRequest.of(ids, now, lease, owner, limits), len(ids))


def _claim_tasks(connection: Connection, requests: Sequence[ClaimRequest]) -> list[list[Taken | NotClaimed]]:
    now = min(request.now for request in requests)
    limiter = RateLimiter(connection, [request.limits for request in requests], now)  # before any task is locked
    ids = list(dict.fromkeys(task_id for request in requests for task_id in request.ids))
    found = {row.id: row for row in _LOCK_TASKS.rows(connection, ids)}
    missing = [task_id for task_id in ids if task_id not in found]
    elsewhere = {row.id for row in _EXISTING.rows(connection, missing)} if missing else set()
    claiming = _Claiming(connection, requests, found, limiter, elsewhere)
    answers = [claiming.answers(request) for request in requests]
    limiter.store()
    if claiming.ended:
        _DEFER_OR_END.run_many(connection, claiming.ended)
    if claiming.begun:
        taken = [
            {"task_id": row.id, "now": row.updated_at, "lease_end": row.lease_until_at, "new_owner": row.owner}
            for row in claiming.begun
        ]
        _TAKE.run_many(connection, taken)
        _add_attempts(connection, claiming.begun)
    return answers


class _Claiming:
    """Decides about the claims of one transaction, without writing anything of the tasks.

    `begun` are the rows of what was claimed, `ended` the changes of what is deferred or suppressed.
    """

    def __init__(
        self,
        connection: Connection,
        requests: Sequence[ClaimRequest],
        rows: dict[str, Any],
        limiter: RateLimiter,
        elsewhere: Collection[str] = (),
    ) -> None:
        """Take tasks' rows by id; others hold those `elsewhere`."""
        self.begun: list[Any] = []
        self.ended: list[dict[str, Any]] = []
        self._connection = connection
        self._rows = rows
        self._limiter = limiter
        self._elsewhere = elsewhere
        self._paused = pauses_for_claim(connection, min(request.now for request in requests))
        self._undone = transitions.undone(connection, rows.values())

    def answers(self, request: ClaimRequest) -> list[Taken | NotClaimed]:
        """Return an answer for each id in its place; one that stands there again is told so."""
        answers: list[Taken | NotClaimed] = []
        asked = set()
        for task_id in request.ids:
            if task_id in asked:
                answers.append(NotClaimed(task_id=task_id, state=None, why="it was asked for twice at once"))
                continue
            asked.add(task_id)
            row = self._rows.get(task_id)
            answer = self._answer(task_id, row, request)
            answers.append(answer)
            # Whoever asks next finds it so:
            if isinstance(answer, Taken):
                self.begun.append(answer.row)
                self._rows[task_id] = answer.row
            elif row is not None and answer.state is not None:
                due_at = row.due_at if answer.due_at is None else micros(answer.due_at)
                self._rows[task_id] = row._replace(state=answer.state, due_at=due_at)
        return answers

    def _answer(self, task_id: str, row: Any, request: ClaimRequest) -> Taken | NotClaimed:
        if task_id in self._elsewhere:
            return NotClaimed(task_id=task_id, state=TaskState.SENDING, why="another worker is claiming it")
        if row is None:
            return NotClaimed(task_id=task_id, state=None, why="there is no such task")
        state = TaskState(row.state)
        if state not in _CLAIMABLE:
            return NotClaimed(task_id=task_id, state=state, why=_WHY_NOT[state])
        why = self._undone.get(task_id)
        if why is None and row.expires_at is not None and row.expires_at <= request.at:
            why = f"too late: expired at {instant(moment(row.expires_at))}"
            transitions.note_ends(self._connection, [(task_id, reactions_of(row))], request.at)
        if why is not None:
            self._end(row, TaskState.SUPPRESSED, row.due_at, why, request)
            counters_of(self._connection).count(CounterName.TASKS_ENDED, row.type, TaskState.SUPPRESSED)
            return NotClaimed(task_id=task_id, state=TaskState.SUPPRESSED, why=why)
        if row.due_at > request.at:
            due_at = moment(row.due_at)
            why = f"it is not due before {instant(due_at)}"
            return NotClaimed(task_id=task_id, state=state, why=why, due_at=due_at)
        return self._admitted(row, request)

    def _admitted(self, row: Any, request: ClaimRequest) -> Taken | NotClaimed:
        """Claim a task as far as its provider's pause and limits let it."""
        provider, slot_at = ProviderName(row.provider), moment_or_none(row.slot_at)
        pause = self._paused.get(provider)
        if pause is not None and pause.held and is_over(pause, request.now):
            pause = None
        if pause is not None and not is_over(pause, request.now):
            return self._meets_pause(row, pause, request)
        deferral = self._limiter.check_room(provider, slot_at, request.limits, request.now)
        if deferral is None and pause is not None:
            probed = take_probe(self._connection, pause, request.now)
            if probed is None:
                return self._meets_pause(row, pause, request)
            self._paused[provider] = probed
        if deferral is None:
            deferral = self._limiter.begin(
                provider, slot_at, request.limits, request.now, whatever_the_rate=pause is not None
            )
        if deferral is None:
            return self._taken(row, request)
        why, due_at = f"{row.provider}: {deferral.why}", deferral.due_at
        self._end(row, TaskState.WAITING, micros(due_at), why, request, slot_at=deferral.slot_at)
        return NotClaimed(task_id=row.id, state=TaskState.WAITING, why=why, due_at=due_at, held=deferral.held)

    def _meets_pause(self, row: Any, pause: ProviderState, request: ClaimRequest) -> NotClaimed:
        until_at = pause.paused_until_at or request.now
        # The pause's reason quotes the provider and may be personal: it goes to the ledger, `why` goes anywhere.
        why = f"{row.provider} is paused until {'it is resumed' if until_at >= UNTIL_RESUMED else instant(until_at)}"
        self._end(row, TaskState.WAITING, micros(until_at), f"{why}: {pause.reason}", request)
        return NotClaimed(task_id=row.id, state=TaskState.WAITING, why=why, due_at=until_at, held=Held.PAUSE)

    def _taken(self, row: Any, request: ClaimRequest) -> Taken:
        return Taken(
            row._replace(
                state=TaskState.SENDING,
                epoch=row.epoch + 1,
                attempts=row.attempts + 1,
                first_attempt_at=request.at if row.first_attempt_at is None else row.first_attempt_at,
                lease_until_at=request.lease_end,
                owner=request.owner,
                slot_at=None,
                updated_at=request.at,
            )
        )

    def _end(
        self,
        row: Any,
        state: TaskState,
        due_at: int,
        why: str,
        request: ClaimRequest,
        *,
        slot_at: datetime | None = None,
    ) -> None:
        """Keep what a task becomes without being claimed."""
        self.ended.append(
            {
                "task_id": row.id,
                "new_state": state,
                "new_due_at": due_at,
                "new_reason": sentence(why),
                "new_slot_at": micros_or_none(slot_at),
                "now": request.at,
            }
        )


def _add_attempts(connection: Connection, begun: Sequence[Any]) -> None:
    """Note the attempts that these rows of claimed tasks stand for."""
    rows = [
        {"task_id": row.id, "epoch": row.epoch, "number": row.attempts, "started_at": row.updated_at, "deferred": False}
        for row in begun
    ]
    if rows:
        _ADD_ATTEMPTS.run_many(connection, rows)


# Settle ----------------------------------------------------------------------------------------------------------------

_THIS: Final = tasks.c.id == bindparam("this_id")
_OF_EPOCH: Final = and_(_THIS, tasks.c.epoch == bindparam("held_epoch"))
_THIS_ATTEMPT: Final = and_(attempts.c.task_id == bindparam("this_id"), attempts.c.epoch == bindparam("held_epoch"))
_SETTLE: Final = Statement(
    update(tasks)
    # Still the claim's own: held, or given up as unknown and touched by nobody since.
    .where(_OF_EPOCH, or_(TASK_SENDING, tasks.c.state == TaskState.UNKNOWN))
    .values(
        state=bindparam("new_state"),
        due_at=func.coalesce(bindparam("new_due_at", type_=tasks.c.due_at.type), tasks.c.due_at),
        external_id=func.coalesce(bindparam("new_external_id", type_=tasks.c.external_id.type), tasks.c.external_id),
        reason=bindparam("new_reason"),
        attempts=tasks.c.attempts - bindparam("given_back", type_=tasks.c.attempts.type),
        first_attempt_at=case(
            (tasks.c.attempts > bindparam("never_begun", type_=tasks.c.attempts.type), tasks.c.first_attempt_at),
            else_=null(),
        ),
        lease_until_at=None,
        owner=None,
        updated_at=bindparam("now"),
    )
)
_CLOSE_ATTEMPT: Final = Statement(
    update(attempts)
    .where(_THIS_ATTEMPT)
    .values(
        ended_at=bindparam("now"),
        verdict=bindparam("new_verdict"),
        status=bindparam("new_status"),
        error=bindparam("new_reason"),
        external_id=bindparam("new_external_id"),
        deferred=bindparam("is_deferred"),
    )
)
_VERDICT: Final = Statement(select(attempts.c.verdict).where(_THIS_ATTEMPT))
_EVENT_MOMENTS: Final = ForIds(
    lambda among: select(events.c.id, events.c.received_at, events.c.occurred_at).where(among(events.c.id))
)
_SENDING: Final = (
    select(tasks.c.id, tasks.c.epoch, tasks.c.type, tasks.c.provider, tasks.c.owner, tasks.c.lease_until_at)
    .where(TASK_SENDING)
    .order_by(tasks.c.id)
    .with_for_update(key_share=True, skip_locked=True)
)
_OF_OWNER: Final = Statement(
    _SENDING.where(func.substr(tasks.c.owner, 1, func.length(bindparam("prefix"))) == bindparam("prefix"))
)
_LEASE_OVER: Final = tasks.c.lease_until_at <= bindparam("now")
_EXPIRED: Final = Statement(_SENDING.where(_LEASE_OVER))
_ANY_EXPIRED: Final = Statement(select(tasks.c.id).where(TASK_SENDING, _LEASE_OVER).limit(1))
_GIVE_UP: Final = Statement(
    update(tasks)
    .where(_OF_EPOCH, TASK_SENDING)
    .values(
        state=TaskState.UNKNOWN,
        reason=bindparam("new_reason"),
        lease_until_at=None,
        owner=None,
        updated_at=bindparam("now"),
    )
)
_GIVE_UP_ATTEMPT: Final = Statement(
    update(attempts)
    .where(_THIS_ATTEMPT, attempts.c.ended_at.is_(None))
    .values(ended_at=bindparam("now"), verdict=Verdict.UNKNOWN, error=bindparam("new_reason"))
)

#: A lease that merely ran out may have done so by the wrong clock of whoever looks, with its claim just made: its request
#: may be under way for as long as an attempt takes (`worker/delivery.py`).
STILL_SENDING: Final = timedelta(seconds=30)

#: What a task comes to, for now or for good.
_COUNTED: Final = TERMINAL_TASK_STATES | {TaskState.UNKNOWN}


@dataclass(frozen=True, slots=True)
class _Outcome:
    """An attempt's outcome, the row of parameters that it becomes, and when it came."""

    claim: Claim
    settlement: Settlement
    row: dict[str, Any]
    now: datetime


@dataclass(frozen=True, slots=True)
class Settled:
    """For each task whether its outcome was applied, and the provider pauses that these outcomes started."""

    taken: list[bool]
    began: list[ProviderState]


def settle_claims(settled: Sequence[tuple[Claim, Settlement]], now: datetime) -> Batchable[Sequence[_Outcome], Settled]:
    """Return the write that records outcomes."""
    at = micros(now)
    return Batchable(
        _settle_claims,
        [_Outcome(claim, settlement, _outcome_row(claim, settlement, at), now) for claim, settlement in settled],
        len(settled),
    )


def _outcome_row(claim: Claim, settlement: Settlement, at: int) -> dict[str, Any]:
    external_id = settlement.external_id
    return {
        "this_id": claim.task.id,
        "held_epoch": claim.epoch,
        "new_state": settlement.state,
        "new_due_at": micros_or_none(settlement.due_at),
        "new_external_id": None if external_id is None else label(external_id),
        "new_reason": sentence_or_none(settlement.reason),
        "new_verdict": settlement.verdict,
        "new_status": settlement.status,
        "given_back": 0 if settlement.counted else 1,
        "never_begun": 0,
        "is_deferred": not settlement.counted,
        "now": at,
    }


def _settle_claims(connection: Connection, parts: Sequence[Sequence[_Outcome]]) -> list[Settled]:
    every = [each for part in parts for each in part]
    order = sorted(range(len(every)), key=lambda place: every[place].claim.task.id)
    unknown = _unknown_before(connection, [every[place] for place in order])
    counted: list[tuple[_Outcome, bool]] = []
    taken = [False] * len(every)
    for place, changed in zip(order, _SETTLE.run_each(connection, [every[place].row for place in order]), strict=True):
        each = every[place]
        was_unknown = each.claim.task.id in unknown
        fits = ended = changed == 1
        is_first = fits and not was_unknown
        if not fits and each.settlement.verdict == Verdict.DELIVERED:
            fits, ended = transitions.deliver_late(connection, each.row)
        if is_first or _VERDICT.value(connection, each.row) != each.settlement.verdict:
            counted.append((each, ended and not was_unknown))
        taken[place] = fits
    _count_outcomes(connection, counted)
    _CLOSE_ATTEMPT.run_many(connection, [each.row for each in every])
    _follow(connection, [every[place] for place in order if taken[place]])
    began = note_outcomes(connection, [(each.claim, each.settlement, each.now) for each in every])
    answers = iter(taken)
    settled = [Settled(list(islice(answers, len(part))), []) for part in parts]
    for pause in began:  # one caller tells of it
        concerned = (any(each.claim.task.provider == pause.name for each in part) for part in parts)
        settled[list(concerned).index(True)].began.append(pause)
    return settled


def _unknown_before(connection: Connection, outcomes: Sequence[_Outcome]) -> set[str]:
    """Return the ids of tasks that are to become unknown and are so already: they were given up before."""
    rows = [each.row for each in outcomes if each.settlement.state == TaskState.UNKNOWN]
    found = transitions.CURRENT.rows_each(connection, rows) if rows else []
    pairs = zip(rows, found, strict=True)
    return {row["this_id"] for row, current in pairs if current and current[0].state == TaskState.UNKNOWN}


def _count_outcomes(connection: Connection, outcomes: Sequence[tuple[_Outcome, bool]]) -> None:
    """Count attempts, the ends of tasks that came with them (the flag), and how long deliveries took in all."""
    counters = counters_of(connection)
    delivered = []
    for each, ended in outcomes:
        task, settlement = each.claim.task, each.settlement
        counters.count(CounterName.ATTEMPTS, task.provider, settlement.verdict, status_label(settlement.status))
        if ended and settlement.state in _COUNTED:
            counters.count(CounterName.TASKS_ENDED, task.type, settlement.state)
            if settlement.state == TaskState.DELIVERED:
                delivered.append((task, each.row["now"]))
    if not delivered:
        return
    moments = {row.id: row for row in _EVENT_MOMENTS.rows(connection, [task.event_id for task, _ in delivered])}
    for task, at in delivered:
        if (event := moments.get(task.event_id)) is not None:
            counters.delivered(task.type, at - event.received_at, at - event.occurred_at)


def _follow(connection: Connection, outcomes: Sequence[_Outcome]) -> None:
    """Begin and drop reconciliations, note ends that rules follow, and have outcomes polled."""
    unknown, known = [], []
    for each in outcomes:
        task, settlement, at = each.claim.task, each.settlement, each.row["now"]
        external_id = each.row["new_external_id"]
        if settlement.state == TaskState.UNKNOWN:
            now_unknown = transitions.BecameUnknown(task_id=task.id, provider=task.provider, ended_at=at, look_up_at=at)
            unknown.append(now_unknown)
            continue
        known.append(task.id)
        if settlement.state in transitions.FAILED_STATES:
            transitions.note_ends(connection, [(task.id, task.reactions)], at)
        elif settlement.state == TaskState.DELIVERED and settlement.poll_at is not None and external_id is not None:
            delivered = (task.id, task.provider, external_id)
            transitions.poll_outcomes(connection, [delivered], at, micros(settlement.poll_at))
    transitions.begin_reconciliation(connection, unknown)
    transitions.drop_reconciliation(connection, known)


def _give_back(connection: Connection, task_id: str, epoch: int, at: int, due_at: int) -> bool:
    """Undo a claim whose request never began; False when it no longer holds."""
    row = {
        "this_id": task_id,
        "held_epoch": epoch,
        "new_state": TaskState.WAITING,
        "new_due_at": due_at,
        "new_external_id": None,
        "new_reason": "given back: the request never began",
        "new_verdict": None,
        "new_status": None,
        "given_back": 1,
        "never_begun": 1,
        "is_deferred": True,
        "now": at,
    }
    if _SETTLE.run(connection, row) == 0:
        return False
    _CLOSE_ATTEMPT.run(connection, row)
    transitions.drop_reconciliation(connection, [task_id])
    uncount_claim(connection, task_id, epoch)
    return True


def _give_up(connection: Connection, held: Sequence[Any], why: str, at: int, still_sending: int = 0) -> list[str]:
    """Call these unknown; `still_sending` is how much longer their requests may be under way (microseconds)."""
    if not held:
        return []
    rows = [
        {
            "this_id": row.id,
            "held_epoch": row.epoch,
            "new_reason": f"{why}; it is looked up at its provider before anything is sent again, and where that cannot "
            f"tell a person decides: leadwire settle {row.id} --delivered|--not-delivered",
            "now": at,
        }
        for row in held
    ]
    counters = counters_of(connection)
    for row in held:
        counters.count(CounterName.TASKS_ENDED, TaskType(row.type), TaskState.UNKNOWN)
        counters.count(CounterName.ATTEMPTS, ProviderName(row.provider), Verdict.UNKNOWN, LOST)
    _GIVE_UP.run_many(connection, rows)
    _GIVE_UP_ATTEMPT.run_many(connection, rows)
    unknown = [
        transitions.BecameUnknown(
            task_id=row.id,
            provider=ProviderName(row.provider),
            ended_at=max(at + still_sending, (row.lease_until_at or 0) - transitions.ABSENT_AFTER_MICROS),
            look_up_at=at + transitions.FIRST_LOOK_MICROS,
        )
        for row in held
    ]
    transitions.begin_reconciliation(connection, unknown)
    return [row.id for row in held]


# The methods -----------------------------------------------------------------------------------------------------------


class LedgerTasks(LedgerGroup):
    """`ledger.tasks`: insert, dispatch, claim and settle tasks."""

    def insert(self, plans: Sequence[Plan], now: datetime) -> tuple[TaskRef, ...]:
        """Record decisions and tasks of events still `received`; return the tasks due now, marked as queued.

        A plan whose event was decided already is skipped as a whole.
        """
        return tuple(self._writer.write(insert_plans(plans, now)).due) if plans else ()

    def insert_and_claim(
        self, plans: Sequence[Plan], now: datetime, terms: ClaimTerms
    ) -> tuple[tuple[TaskRef, ...], list[Claim | NotClaimed]]:
        """Do as `insert`, and claim those due tasks that `terms` select, in the same transaction.

        Returns the due tasks that were not selected, marked as queued, and the results of `claim` for the others.
        """
        inserted = self._writer.write(insert_plans(plans, now, terms))
        return tuple(inserted.due), self._claims(inserted.claimed, terms.owner, now)

    def dispatch_due(
        self, now: datetime, grace: timedelta, limit_per_provider: Mapping[ProviderName, int]
    ) -> list[TaskRef]:
        """Return the tasks to publish to the broker now, oldest due first; marks them as queued.

        These are tasks that are due, and queued tasks whose message was sent `grace` ago and that were never claimed.
        """
        at = {"now": micros(now), "cutoff": micros(now - grace)}
        limits = {provider: limit for provider, limit in limit_per_provider.items() if limit > 0}

        def any_due(connection: Connection) -> bool:
            asked = [{**at, "provider": provider} for provider in limits]
            return any(statement.rows(connection, each) for each in asked for statement in _ANY_DUE)

        if not self._read(any_due):
            return []
        return self._writer.write(lambda connection: _dispatch_due(connection, at, limits))

    def put_back(self, ids: Sequence[str], now: datetime) -> None:
        """Make queued tasks wait again, with `due_at` unchanged: no thread is free for them now."""
        self._writer.write(lambda connection: _PUT_BACK.rows(connection, ids, {"now": micros(now)}))

    def claim(
        self,
        ids: Sequence[str],
        now: datetime,
        lease: timedelta,
        owner: str,
        limits: Mapping[ProviderName, Limits] = _NO_LIMITS,
    ) -> list[Claim | NotClaimed]:
        """Claim tasks for one attempt each; return a Claim or the reason (NotClaimed) for each id, in order.

        A claimed task is `sending`, and its attempt is on disk before this returns. A task past `expires_at` ends as
        `suppressed`. A task whose provider is paused or at its `limits` waits until a new `due_at` and loses no attempt.
        """
        if not ids:
            return []
        return self._claims(self._writer.write(claim_tasks(ids, now, lease, owner, limits)), owner, now)

    def _claims(self, answers: Sequence[Taken | NotClaimed], owner: str, now: datetime) -> list[Claim | NotClaimed]:
        """Make claims of rows, and give back what cannot be read: a newer version beside this one may have written it."""
        claims: list[Claim | NotClaimed] = []
        unreadable = []
        for each in answers:
            if isinstance(each, NotClaimed):
                claims.append(each)
                continue
            try:
                claims.append(_claim_of(each.row))
            except Exception as error:  # noqa: BLE001 - whatever it is, it concerns this task alone
                why = f"this version cannot read what the ledger holds of it ({type(error).__name__})"
                log.error("task %s is given back: %s", each.task_id, why)
                claims.append(NotClaimed(task_id=each.task_id, state=TaskState.WAITING, why=why))
                unreadable.append(each.task_id)
        if unreadable:
            with suppress(LedgerError):  # else their lease ends it; what can be sent must not wait for that
                self._give_back_of(owner, unreadable, now, _UNREADABLE_REST)
        return claims

    def settle(self, claim: Claim, settlement: Settlement, now: datetime) -> bool:
        """Record an attempt's outcome; return whether it was applied to the task.

        False: the claim no longer holds (its lease ended, or an operator decided meanwhile), so only the attempt's row has the
        outcome. A late DELIVERED is applied even then, except to a cancelled or suppressed task, whose reason then says that it
        was executed.
        """
        return self.settle_many([(claim, settlement)], now)[0]

    def settle_many(
        self,
        settled: Sequence[tuple[Claim, Settlement]],
        now: datetime,
        alert: Callable[[ProviderState], None] | None = None,
    ) -> list[bool]:
        """Record the outcomes of several attempts in one transaction; see `settle`.

        `alert` is called once for each provider pause that these outcomes started, after the commit.
        """
        if not settled:
            return []
        result = self._writer.write(settle_claims(settled, now))
        if alert is not None:
            for pause in result.began:
                alert(pause)
        return result.taken

    def give_back(self, claim: Claim, now: datetime) -> bool:
        """Undo a claim whose request never began: the task is due now. Returns False when the claim no longer holds."""
        at = micros(now)
        return self._writer.write(lambda connection: _give_back(connection, claim.task.id, claim.epoch, at, at))

    def give_back_of(self, owner: str, ids: Sequence[str], now: datetime) -> list[str]:
        """Undo all claims that an owner holds on these tasks and whose requests never began; return the ids.

        For a claim whose commit is in doubt: `owner` must have been used for that claim alone.
        """
        return self._give_back_of(owner, ids, now, timedelta()) if ids else []

    def _give_back_of(self, owner: str, ids: Sequence[str], now: datetime, rest: timedelta) -> list[str]:
        def work(connection: Connection) -> list[str]:
            held = [row for row in _OF_OWNER.rows(connection, {"prefix": label(owner)}) if row.owner == label(owner)]
            mine = [row for row in held if row.id in wanted]
            return [
                row.id for row in mine if _give_back(connection, row.id, row.epoch, micros(now), micros(now + rest))
            ]

        wanted = frozenset(ids)
        return self._writer.write(work)

    def release(self, owner_prefix: str, now: datetime) -> list[str]:
        """Make tasks `unknown` that dead owners with this prefix were sending; return the ids."""
        why = "the worker ended while the request may have been on its way"
        return self._writer.write(
            lambda connection: _give_up(
                connection, _OF_OWNER.rows(connection, {"prefix": owner_prefix}), why, micros(now)
            )
        )

    def expire_leases(self, now: datetime) -> list[str]:
        """Make tasks `unknown` that were being sent under a lease that has ended; return the ids."""
        at = {"now": micros(now)}
        if not self._read(lambda connection: _ANY_EXPIRED.rows(connection, at)):
            return []
        why = "no outcome came before the lease ended, and the request may have been on its way"
        still_sending = STILL_SENDING // timedelta(microseconds=1)
        return self._writer.write(
            lambda connection: _give_up(connection, _EXPIRED.rows(connection, at), why, at["now"], still_sending)
        )


def _claim_of(row: Any) -> Claim:
    return Claim(
        task=stored_task(row),
        epoch=row.epoch,
        attempt=row.attempts,
        first_attempt_at=moment(row.first_attempt_at),
        claimed_at=moment(row.updated_at),
        lease_until_at=moment(row.lease_until_at),
    )

"""What an attempt's end does to its task, also when it comes late, or never.

An outcome counts only under the claim's epoch; there it also ends the doubt about a task whose lease ran out meanwhile. A
late success counts under any: the task was executed, so it is delivered, whatever has been decided since; only a task that
was cancelled or suppressed stays so and says that it was executed. An attempt whose process ended, or whose lease did, may
have been executed: its task is `unknown`. Whatever becomes unknown here is looked up (see `doubts.py`), and no more
once an outcome has settled it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Final

from sqlalchemy import Connection, and_, bindparam, case, func, null, or_, select, update

from rules.vocabulary import TERMINAL_TASK_STATES, ProviderName, TaskState, TaskType, Verdict
from worker.ledger import counters, doubts, gates, outcomes, pauses, reacting
from worker.ledger.counters import Tally
from worker.ledger.encoding import label, micros, micros_or_none, sentence, sentence_or_none
from worker.ledger.schema import TASK_SENDING, attempts, events, tasks
from worker.ledger.statements import ForIds, Statement
from worker.ledger.types import Claim, ProviderState, Settlement
from worker.ledger.writer import Batchable

_THIS: Final = tasks.c.id == bindparam("this_id")
_OF_EPOCH: Final = and_(_THIS, tasks.c.epoch == bindparam("held_epoch"))
_HELD: Final = and_(_OF_EPOCH, TASK_SENDING)
#: Still the claim's own: held, or given up as unknown and touched by nobody since.
_OWN: Final = and_(_OF_EPOCH, or_(TASK_SENDING, tasks.c.state == TaskState.UNKNOWN))
_SETTLE: Final = Statement(
    update(tasks)
    .where(_OWN)
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
    .where(attempts.c.task_id == bindparam("this_id"), attempts.c.epoch == bindparam("held_epoch"))
    .values(
        ended_at=bindparam("now"),
        verdict=bindparam("new_verdict"),
        status=bindparam("new_status"),
        error=bindparam("new_reason"),
        external_id=bindparam("new_external_id"),
        deferred=bindparam("is_deferred"),
    )
)
_VERDICT: Final = Statement(
    select(attempts.c.verdict).where(
        attempts.c.task_id == bindparam("this_id"), attempts.c.epoch == bindparam("held_epoch")
    )
)
_MOMENTS: Final = ForIds(
    lambda among: select(events.c.id, events.c.received_at, events.c.occurred_at).where(among(events.c.id))
)
_CURRENT: Final = Statement(
    select(tasks.c.state, tasks.c.reason, tasks.c.external_id).where(_THIS).with_for_update(key_share=True)
)
_LATE: Final = Statement(
    update(tasks)
    .where(_THIS)
    .values(
        state=bindparam("new_state"),
        reason=bindparam("new_reason"),
        external_id=bindparam("new_external_id"),
        lease_until_at=None,
        owner=None,
        updated_at=bindparam("now"),
    )
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
    .where(_HELD)
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
    .where(
        attempts.c.task_id == bindparam("this_id"),
        attempts.c.epoch == bindparam("held_epoch"),
        attempts.c.ended_at.is_(None),
    )
    .values(ended_at=bindparam("now"), verdict=Verdict.UNKNOWN, error=bindparam("new_reason"))
)

#: A lease that merely ran out may have done so by the wrong clock of whoever looks, with its claim just made: its request
#: may be under way for as long as an attempt takes (`worker/delivery.py`).
STILL_SENDING: Final = timedelta(seconds=30)

#: What a task comes to, for now or for good.
_COUNTED: Final = TERMINAL_TASK_STATES | {TaskState.UNKNOWN}

#: States that a late success does not change; it is remarked in the reason.
_REMARKS: Final = {
    TaskState.CANCELLED: "executed after cancel",
    TaskState.SUPPRESSED: "executed after it was suppressed",
}


@dataclass(frozen=True, slots=True)
class _Settled:
    """An outcome, the row of parameters that it becomes, and when it came."""

    claim: Claim
    settlement: Settlement
    row: dict[str, Any]
    now: datetime


@dataclass(frozen=True, slots=True)
class Settled:
    """Whether each task took its outcome, and the pauses that began with these outcomes."""

    taken: list[bool]
    began: list[ProviderState]


def settle(settled: Sequence[tuple[Claim, Settlement]], now: datetime) -> Batchable[Sequence[_Settled], Settled]:
    """Return the work that records outcomes."""
    at = micros(now)
    return Batchable(_settle, [_Settled(*pair, _outcome(*pair, at), now) for pair in settled], len(settled))


def _settle(connection: Connection, parts: Sequence[Sequence[_Settled]]) -> list[Settled]:
    every = [each for part in parts for each in part]
    # In the same order by everybody, so that no two processes wait for each other.
    order = sorted(range(len(every)), key=lambda place: every[place].claim.task.id)
    unknown = _unknown_before(connection, [every[place] for place in order])
    counted: list[tuple[_Settled, bool]] = []
    taken = [False] * len(every)
    for place, changed in zip(order, _SETTLE.run_each(connection, [every[place].row for place in order]), strict=True):
        each = every[place]
        was_unknown = each.claim.task.id in unknown
        fits = ended = changed == 1
        is_first = fits and not was_unknown
        if not fits and each.settlement.verdict == Verdict.DELIVERED:
            fits, ended = deliver_late(connection, each.row)
        if is_first or _VERDICT.value(connection, each.row) != each.settlement.verdict:
            counted.append((each, ended and not was_unknown))
        taken[place] = fits
    _count(connection, counted)
    _CLOSE_ATTEMPT.run_many(connection, [each.row for each in every])
    _mind_doubts(connection, [every[place] for place in order if taken[place]])
    _mind_ends(connection, [every[place] for place in order if taken[place]])
    began = pauses.mind(connection, [(each.claim, each.settlement, each.now) for each in every])
    answers = iter(taken)
    settled = [Settled(list(islice(answers, len(part))), []) for part in parts]
    for pause in began:  # one caller tells of it
        first = next(place for place, part in enumerate(parts) if any(_is_of(each, pause) for each in part))
        settled[first].began.append(pause)
    return settled


def _is_of(each: _Settled, pause: ProviderState) -> bool:
    return each.claim.task.provider == pause.name


def _unknown_before(connection: Connection, settled: Sequence[_Settled]) -> set[str]:
    """Return the ids of tasks that are to become unknown and are so already: they were given up before."""
    doubtful = [each.row for each in settled if each.settlement.state == TaskState.UNKNOWN]
    found = _CURRENT.rows_each(connection, doubtful) if doubtful else []
    pairs = zip(doubtful, found, strict=True)
    return {row["this_id"] for row, current in pairs if current and current[0].state == TaskState.UNKNOWN}


def give_back(claim: Claim, now: datetime) -> Callable[[Connection], bool]:
    """Return the work that undoes a claim; its result says whether the claim still held."""

    def work(connection: Connection) -> bool:
        return _give_back(connection, claim.task.id, claim.epoch, micros(now), micros(now))

    return work


def give_back_of(
    owner: str, ids: Sequence[str], now: datetime, rest: timedelta = timedelta(0)
) -> Callable[[Connection], list[str]]:
    """Return the work that undoes the claims of these tasks that exactly this owner has, due after `rest`; gives the ids."""

    def work(connection: Connection) -> list[str]:
        wanted = frozenset(ids)
        held = [row for row in _OF_OWNER.rows(connection, {"prefix": label(owner)}) if row.id in wanted]
        mine = [row for row in held if row.owner == label(owner)]
        return [row.id for row in mine if _give_back(connection, row.id, row.epoch, micros(now), micros(now + rest))]

    return work


def _give_back(connection: Connection, task_id: str, epoch: int, at: int, due_at: int) -> bool:
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
    doubts.drop(connection, [task_id])
    gates.uncount_claim(connection, task_id, epoch)
    return True


def release(owner_prefix: str, now: datetime) -> Callable[[Connection], list[str]]:
    """Return the work that makes `unknown` what dead owners were sending; its result is the ids."""
    why = "the worker ended while the request may have been on its way"

    def work(connection: Connection) -> list[str]:
        held = _OF_OWNER.rows(connection, {"prefix": owner_prefix})
        return _give_up(connection, held, why, micros(now))

    return work


def any_expired(connection: Connection, now: datetime) -> bool:
    """Whether a lease has ended without an outcome."""
    return bool(_ANY_EXPIRED.rows(connection, {"now": micros(now)}))


def expire_leases(now: datetime) -> Callable[[Connection], list[str]]:
    """Return the work that makes `unknown` what was being sent under a lease that has ended; its result is the ids."""
    why = "no outcome came before the lease ended, and the request may have been on its way"

    def work(connection: Connection) -> list[str]:
        held = _EXPIRED.rows(connection, {"now": micros(now)})
        return _give_up(connection, held, why, micros(now), STILL_SENDING // timedelta(microseconds=1))

    return work


def _outcome(claim: Claim, settlement: Settlement, at: int) -> dict[str, Any]:
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


def deliver_late(connection: Connection, row: dict[str, Any]) -> tuple[bool, bool]:
    """Let a success under an old claim count, or one that was found at the provider.

    Return whether the task is delivered by it, and whether it was not before.
    """
    current = _CURRENT.first(connection, {"this_id": row["this_id"]})
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
    _LATE.run(connection, late)
    return remark is None, remark is None and state != TaskState.DELIVERED


def _count(connection: Connection, settled: Sequence[tuple[_Settled, bool]]) -> None:
    """Count attempts, the ends of tasks that came with them (the flag), and how long deliveries took in all."""
    counted = counters.of(connection)
    delivered = []
    for each, ended in settled:
        task, settlement = each.claim.task, each.settlement
        status = counters.status_label(settlement.status)
        counted.count(Tally.ATTEMPTS, task.provider, settlement.verdict, status)
        if ended and settlement.state in _COUNTED:
            counted.count(Tally.TASKS_ENDED, task.type, settlement.state)
            if settlement.state == TaskState.DELIVERED:
                delivered.append((task, each.row["now"]))
    if not delivered:
        return
    moments = {row.id: row for row in _MOMENTS.rows(connection, [task.event_id for task, _ in delivered])}
    for task, at in delivered:
        if (of_event := moments.get(task.event_id)) is not None:
            counted.delivered(task.type, at - of_event.received_at, at - of_event.occurred_at)


def _with_remark(reason: str | None, remark: str) -> str:
    if reason is None:
        return remark
    return reason if remark in reason else sentence(f"{remark}; {reason}")


def _mind_doubts(connection: Connection, settled: Sequence[_Settled]) -> None:
    """Have looked up what became unknown, and no more what did not."""
    unknown = [each for each in settled if each.settlement.state == TaskState.UNKNOWN]
    doubts.begin(
        connection,
        [
            doubts.Begun(
                task_id=each.claim.task.id,
                provider=each.claim.task.provider,
                ended_at=each.row["now"],
                look_up_at=each.row["now"],
            )
            for each in unknown
        ],
    )
    doubts.drop(connection, [each.claim.task.id for each in settled if each.settlement.state != TaskState.UNKNOWN])


def _mind_ends(connection: Connection, settled: Sequence[_Settled]) -> None:
    """Note the ends that rules answer, and whose outcome is to be asked for."""
    for each in settled:
        task, settlement, at = each.claim.task, each.settlement, each.row["now"]
        external_id = each.row["new_external_id"]
        if settlement.state in reacting.FAILED_STATES:
            reacting.note_ends(connection, [(task.id, task.reactions)], at)
        elif settlement.state == TaskState.DELIVERED and settlement.poll_at is not None and external_id is not None:
            outcomes.follow(connection, [(task.id, task.provider, external_id)], at, micros(settlement.poll_at))


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
    counted = counters.of(connection)
    for row in held:
        counted.count(Tally.TASKS_ENDED, TaskType(row.type), TaskState.UNKNOWN)
        counted.count(Tally.ATTEMPTS, ProviderName(row.provider), Verdict.UNKNOWN, counters.LOST)
    _GIVE_UP.run_many(connection, rows)
    _GIVE_UP_ATTEMPT.run_many(connection, rows)
    begun = [
        doubts.Begun(
            task_id=row.id,
            provider=ProviderName(row.provider),
            ended_at=at + still_sending,
            look_up_at=max(row.lease_until_at or 0, at + doubts.FIRST_LOOK_MICROS),
        )
        for row in held
    ]
    doubts.begin(connection, begun)
    return [row.id for row in held]

"""What an attempt's end does to its task, also when it comes late, or never.

An outcome counts only under the claim's epoch; there it also ends the doubt about a task whose lease ran out meanwhile. A
late success counts under any: the task was executed, so it is delivered, whatever has been decided since; only a task that
was cancelled or suppressed stays so and says that it was executed. An attempt whose process ended, or whose lease did, may
have been executed: its task is `unknown`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, and_, bindparam, case, func, null, or_, select, update

from rules.vocabulary import ProviderName, TaskState, Verdict
from worker.ledger import pauses
from worker.ledger.encoding import label, micros, micros_or_none, sentence, sentence_or_none
from worker.ledger.rows import Claim, Settlement
from worker.ledger.statements import Statement
from worker.ledger.tables import TASK_SENDING, attempts, tasks

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
_CURRENT: Final = Statement(select(tasks.c.state, tasks.c.reason, tasks.c.external_id).where(_THIS).with_for_update())
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
_SENDING: Final = select(tasks.c.id, tasks.c.epoch).where(TASK_SENDING).order_by(tasks.c.due_at).with_for_update()
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

#: States that a late success does not change; it is remarked in the reason.
_REMARKS: Final = {
    TaskState.CANCELLED: "executed after cancel",
    TaskState.SUPPRESSED: "executed after it was suppressed",
}


def settle(settled: Sequence[tuple[Claim, Settlement]], now: datetime) -> Callable[[Connection], list[bool]]:
    """Return the work that records outcomes; its result says for each whether the task took it."""
    at = micros(now)
    rows = [_outcome(claim, settlement, at) for claim, settlement in settled]

    def work(connection: Connection) -> list[bool]:
        taken = []
        for (_, settlement), row in zip(settled, rows, strict=True):
            fits = _SETTLE.run(connection, row) == 1
            if not fits and settlement.verdict == Verdict.DELIVERED:
                fits = _deliver_late(connection, row)
            taken.append(fits)
        _CLOSE_ATTEMPT.run_many(connection, rows)
        _mind_providers(connection, settled, now)
        return taken

    return work


def give_back(claim: Claim, now: datetime) -> Callable[[Connection], bool]:
    """Return the work that undoes a claim; its result says whether the claim still held."""
    at = micros(now)
    row = {
        "this_id": claim.task.id,
        "held_epoch": claim.epoch,
        "new_state": TaskState.WAITING,
        "new_due_at": at,
        "new_external_id": None,
        "new_reason": "given back: the request never began",
        "new_verdict": None,
        "new_status": None,
        "given_back": 1,
        "never_begun": 1,
        "is_deferred": True,
        "now": at,
    }

    def work(connection: Connection) -> bool:
        if _SETTLE.run(connection, row) == 0:
            return False
        _CLOSE_ATTEMPT.run(connection, row)
        return True

    return work


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
        return _give_up(connection, held, why, micros(now))

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


def _deliver_late(connection: Connection, row: dict[str, Any]) -> bool:
    """Let a success under an old claim count; return whether the task is delivered by it."""
    current = _CURRENT.first(connection, {"this_id": row["this_id"]})
    if current is None:
        return False
    state = TaskState(current.state)
    remark = _REMARKS.get(state)
    if state == TaskState.DELIVERED and current.external_id is not None:
        if current.external_id == row["new_external_id"]:
            return True
        remark = f"executed twice: also as {row['new_external_id']}"
    late = {name: row[name] for name in ("this_id", "new_state", "new_reason", "new_external_id", "now")}
    if remark is not None:
        kept = current.external_id if state == TaskState.DELIVERED else row["new_external_id"]
        late |= {"new_state": state, "new_reason": _with_remark(current.reason, remark), "new_external_id": kept}
    _LATE.run(connection, late)
    return remark is None


def _with_remark(reason: str | None, remark: str) -> str:
    if reason is None:
        return remark
    return reason if remark in reason else sentence(f"{remark}; {reason}")


def _mind_providers(connection: Connection, settled: Sequence[tuple[Claim, Settlement]], now: datetime) -> None:
    """Pause or free each provider as its last telling outcome says."""
    telling: dict[ProviderName, Settlement] = {}
    for claim, settlement in settled:
        if settlement.pause_until_at is not None or _shows_life(settlement):
            telling[claim.task.provider] = settlement
    for provider, settlement in telling.items():
        if settlement.pause_until_at is None:
            pauses.lift_after_delivery(connection, provider, now)
            continue
        reason = settlement.pause_reason or settlement.reason or "its answer asked for a pause"
        pauses.pause_after_attempt(connection, provider, settlement.pause_until_at, reason, now)


def _shows_life(settlement: Settlement) -> bool:
    """Say whether the provider spoke about the task itself: its credential and its address are good then."""
    refused = settlement.verdict == Verdict.REFUSED and settlement.status is not None
    return refused or settlement.verdict == Verdict.DELIVERED


def _give_up(connection: Connection, held: Sequence[Any], why: str, at: int) -> list[str]:
    if not held:
        return []
    rows = [
        {
            "this_id": row.id,
            "held_epoch": row.epoch,
            "new_reason": f"{why}; settle with: leadwire settle {row.id} --delivered|--not-delivered",
            "now": at,
        }
        for row in held
    ]
    _GIVE_UP.run_many(connection, rows)
    _GIVE_UP_ATTEMPT.run_many(connection, rows)
    return [row.id for row in held]

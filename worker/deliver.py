"""Task -> attempt -> outcome: what the delivering Celery tasks do.

The attempt is recorded before the request leaves and settled after; whatever dies in between leaves an attempt without an
outcome, which becomes `unknown` and is never sent again by itself. Within one attempt a failure that certainly did not
create the task is tried again a few times, so that a blip does not cost the hour until the next retry.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from rules.vocabulary import LedgerBusyError, TaskState, Verdict, instant
from worker.ledger import Claim, NotClaimed, Settlement
from worker.retry import History, next_step
from worker.wire import Answered, NotBegun, Reading, Request, Sent, Unsendable
from worker.wiring import Hand, Services, awake_seconds, chance, utc_now

log = logging.getLogger(__name__)

#: A claim that is older may have been taken back: no request begins after it.
BEGIN_WITHIN_SECONDS: Final = 10.0
#: One attempt with all its quick tries.
ATTEMPT_SECONDS: Final = 30.0
#: How long a claim holds; then the sweep calls the outcome unknown. Longer than any attempt.
LEASE: Final = timedelta(seconds=60)
#: Pauses before the quick tries of one attempt.
QUICK_PAUSES_SECONDS: Final = (0.2, 1.0, 3.0)
#: A quick try needs at least this much of the attempt's time.
QUICK_TRY_NEEDS_SECONDS: Final = 10.0
#: A provider that asks for a longer rest than this is not tried again within the attempt.
QUICK_RETRY_AFTER: Final = timedelta(seconds=5)
#: How often a settlement is tried while the ledger is busy; the answer is known and must not be lost.
SETTLE_PATIENCE_SECONDS: Final = 25.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """What one delivery message came to for one task, in words that may be shown anywhere."""

    task_id: str
    state: TaskState | None
    due_at: datetime | None = None
    words: str


def deliver(services: Services, task_ids: Sequence[str]) -> list[Delivered]:
    """Claim these tasks in one transaction, send them side by side, and settle each as its answer arrives."""
    claimed_seconds = awake_seconds()
    claims = services.ledger.claim(task_ids, utc_now(), LEASE, services.owner)
    if len(claims) == 1:
        return [_deliver_one(services, claims[0], claimed_seconds)]
    futures = [
        services.hands[claim.task.provider].pool.submit(_deliver_one, services, claim, claimed_seconds)
        for claim in claims
        if isinstance(claim, Claim)
    ]
    passed = [_pass(claim) for claim in claims if isinstance(claim, NotClaimed)]
    return passed + [future.result() for future in futures]


def _pass(claim: NotClaimed) -> Delivered:
    return Delivered(task_id=claim.task_id, state=claim.state, due_at=claim.due_at, words=f"nothing sent: {claim.why}")


def _deliver_one(services: Services, claim: Claim | NotClaimed, claimed_seconds: float) -> Delivered:
    if isinstance(claim, NotClaimed):
        return _pass(claim)
    task = claim.task
    hand = services.hands[task.provider]
    made = _attempt(services, hand, claim, claimed_seconds)
    if made is None:
        services.ledger.give_back(claim, utc_now())
        return Delivered(
            task_id=task.id, state=TaskState.WAITING, words="given back: the claim grew old before the request"
        )
    reading, status = made
    history = History(
        attempt=claim.attempt, deferrals=claim.epoch - claim.attempt, first_attempt_at=claim.first_attempt_at
    )
    step = next_step(reading, task.retry, history, now=utc_now(), chance=chance())
    settlement = Settlement(
        verdict=reading.verdict,
        state=step.state,
        due_at=step.due_at,
        external_id=reading.external_id,
        reason=step.reason,
        status=status,
        counted=step.counted,
        pause_until_at=step.pause_until_at,
        pause_reason=reading.reason if step.pause_until_at else None,
    )
    if not _settle(services, claim, settlement):
        return Delivered(task_id=task.id, state=None, words="settled late: somebody else holds the task")
    if step.pause_until_at:
        # The provider's own words may hold personal data: they are in the ledger, not in the log.
        why = status or "no answer"
        log.error("%s pauses until %s (%s); see `leadwire tasks`", task.provider, instant(step.pause_until_at), why)
    return Delivered(task_id=task.id, state=step.state, due_at=step.due_at, words=_words(reading, status, step.due_at))


def _words(reading: Reading, status: int | None, due_at: datetime | None) -> str:
    """Return verdict, status and next moment: what Flower may show of an outcome."""
    words = f"{reading.verdict} {status}" if status else f"{reading.verdict}, no answer"
    return f"{words}, again at {instant(due_at)}" if due_at else words


def _attempt(services: Services, hand: Hand, claim: Claim, claimed_seconds: float) -> tuple[Reading, int | None] | None:
    """Make one attempt with its quick tries; None when no request began because the claim had grown old."""
    end_seconds = claimed_seconds + ATTEMPT_SECONDS
    begin_by_seconds = claimed_seconds + BEGIN_WITHIN_SECONDS
    for pause_seconds in (*QUICK_PAUSES_SECONDS, None):
        request = hand.provider.prepare(claim.task, utc_now())
        if isinstance(request, Unsendable):
            return Reading(verdict=Verdict.REFUSED, reason=request.reason), None
        sent = _send(hand, request, end_seconds, begin_by_seconds)
        if isinstance(sent, NotBegun):
            return None
        reading = _read(hand, sent, request, end_seconds)
        rest_seconds = _quick_rest(reading, pause_seconds)
        if rest_seconds is None or awake_seconds() + rest_seconds > end_seconds - QUICK_TRY_NEEDS_SECONDS:
            break
        if services.closing.wait(rest_seconds):
            break
        # What was sent so far was certainly not executed, and the lease outlasts the attempt: a later begin is safe.
        begin_by_seconds = end_seconds - QUICK_TRY_NEEDS_SECONDS + 1
    return reading, sent.status if isinstance(sent, Answered) else None


def _send(hand: Hand, request: Request, end_seconds: float, begin_by_seconds: float) -> Sent | NotBegun:
    return hand.transport.send(
        request,
        deadline_seconds=end_seconds - awake_seconds(),
        may_begin=lambda: awake_seconds() <= begin_by_seconds,
    )


def _read(hand: Hand, sent: Sent, request: Request, end_seconds: float) -> Reading:
    reading = hand.provider.read(sent, utc_now(), request)
    if not reading.probe_first:
        return reading
    probed = hand.transport.send(hand.provider.probe(), deadline_seconds=max(1.0, end_seconds - awake_seconds()))
    if isinstance(probed, Answered) and probed.status < 300:  # noqa: PLR2004 - any success
        return Reading(verdict=Verdict.REFUSED, reason=reading.reason)
    return reading


def _quick_rest(reading: Reading, pause_seconds: float | None) -> float | None:
    """Return how long to rest before trying again within the attempt; None when it must not be tried again now."""
    if pause_seconds is None or reading.verdict is not Verdict.BUSY:
        return None
    if reading.retry_after_at is None:
        return pause_seconds
    asked = reading.retry_after_at - utc_now()
    return max(asked.total_seconds(), 0.0) if asked <= QUICK_RETRY_AFTER else None


def _settle(services: Services, claim: Claim, settlement: Settlement) -> bool:
    """Settle, with patience: the answer is known, and only when the ledger stays shut is it left to the lease."""
    give_up_seconds = awake_seconds() + SETTLE_PATIENCE_SECONDS
    while True:
        try:
            return services.ledger.settle(claim, settlement, utc_now())
        except LedgerBusyError:
            if awake_seconds() > give_up_seconds:
                log.error(
                    "task %s cannot be settled: the ledger stays shut; its outcome becomes unknown", claim.task.id
                )
                raise
            time.sleep(0.5)

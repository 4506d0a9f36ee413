"""Task -> attempt -> outcome: what the delivering Celery tasks do.

The attempt is recorded before the request leaves and settled after; whatever dies in between leaves an attempt without an
outcome, which becomes `unknown` and is never sent again by itself. Within one attempt a failure that certainly did not
create the task is tried again a few times, so that a blip does not cost the hour until the next retry.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from rules.drafting import mark
from rules.vocabulary import LedgerBusyError, ProviderName, TaskState, Verdict, instant
from worker.ledger import Claim, NotClaimed, Settlement
from worker.retry import History, next_step
from worker.wire import Answered, NotBegun, Reading, Request, Sent, Unsendable
from worker.wiring import SIDE_BY_SIDE, Hand, Services, awake_seconds, chance, utc_now

log = logging.getLogger(__name__)

#: How long a message waits for one of its provider's slots before it is put back.
SLOT_PATIENCE_SECONDS: Final = 0.2
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
#: How long a settlement is tried while the ledger is busy; the answer is known and must not be lost.
SETTLE_PATIENCE_SECONDS: Final = 25.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """What one delivery message came to for one task, in words that may be shown anywhere."""

    task_id: str
    state: TaskState | None
    due_at: datetime | None = None
    words: str


def deliver(services: Services, provider: ProviderName, task_ids: Sequence[str]) -> list[Delivered]:
    """Deliver these tasks of one provider; each is claimed before, and settled when its answer arrives.

    When the provider holds its share of the worker's threads already, or the worker is about to end, what has not been
    claimed is put back for the sweep.
    """
    hand = services.hands[provider]
    if not hand.slots.take(SLOT_PATIENCE_SECONDS):
        return _put_back(services, task_ids, f"{provider} holds its share of the threads")
    delivered: list[Delivered] = []
    try:
        for start in range(0, len(task_ids), SIDE_BY_SIDE):
            if services.closing.is_set():
                return delivered + _put_back(services, task_ids[start:], "the worker ends")
            delivered += _deliver(services, hand, task_ids[start : start + SIDE_BY_SIDE])
    finally:
        hand.slots.give()
    return delivered


def _put_back(services: Services, task_ids: Sequence[str], why: str) -> list[Delivered]:
    services.ledger.put_back(task_ids, utc_now())
    return [Delivered(task_id=task_id, state=TaskState.WAITING, words=f"put back: {why}") for task_id in task_ids]


def _deliver(services: Services, hand: Hand, task_ids: Sequence[str]) -> list[Delivered]:
    """Claim these tasks in one transaction and send them side by side: no more than can begin at once."""
    claimed_seconds = awake_seconds()
    claims = services.ledger.claim(task_ids, utc_now(), LEASE, services.owner)
    if len(claims) == 1:
        return [_deliver_one(services, hand, claims[0], claimed_seconds)]
    futures = [hand.pool.submit(_deliver_one, services, hand, claim, claimed_seconds) for claim in claims]
    return [future.result() for future in futures]


def _deliver_one(services: Services, hand: Hand, claim: Claim | NotClaimed, claimed_seconds: float) -> Delivered:
    if isinstance(claim, NotClaimed):
        words = f"nothing sent: {claim.why}"
        return Delivered(task_id=claim.task_id, state=claim.state, due_at=claim.due_at, words=words)
    task = claim.task
    made = _attempt(services, hand, claim, claimed_seconds)
    if made is None:
        _patiently(lambda: services.ledger.give_back(claim, utc_now()), task.id)
        return Delivered(task_id=task.id, state=TaskState.WAITING, words="given back before anything was sent")
    settlement = _settlement(claim, made)
    if not _patiently(lambda: services.ledger.settle(claim, settlement, utc_now()), task.id):
        return Delivered(task_id=task.id, state=None, words="settled late: somebody else holds the task")
    if settlement.pause_until_at:
        # The provider's own words may hold personal data: they are in the ledger, not in the log.
        until, why = instant(settlement.pause_until_at), settlement.status or "no answer"
        log.error("%s pauses until %s (%s); see `leadwire tasks`", task.provider, until, why)
    return Delivered(task_id=task.id, state=settlement.state, due_at=settlement.due_at, words=_words(settlement))


def _settlement(claim: Claim, made: Attempted) -> Settlement:
    """Return what the attempt means for its task."""
    reading = made.reading
    history = History(attempt=claim.attempt, first_attempt_at=claim.first_attempt_at)
    step = next_step(reading, claim.task.retry, history, now=utc_now(), chance=chance())
    reason = step.reason
    if step.state is TaskState.UNKNOWN:
        reason = f"{reason} Its mark is {mark(claim.task.key)}."
    return Settlement(
        verdict=reading.verdict,
        state=TaskState.SUPPRESSED if made.too_late else step.state,
        due_at=step.due_at,
        external_id=reading.external_id,
        reason=reason,
        status=made.status,
        counted=step.counted,
        pause_until_at=step.pause_until_at,
        pause_reason=reading.reason if step.pause_until_at else None,
    )


def _words(settlement: Settlement) -> str:
    """Return verdict, status and next moment: what Flower may show of an outcome."""
    words = f"{settlement.verdict} {settlement.status}" if settlement.status else f"{settlement.verdict}, no answer"
    return f"{words}, again at {instant(settlement.due_at)}" if settlement.due_at else words


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempted:
    """What an attempt came to; `too_late` when the task can no longer be made before it expires."""

    reading: Reading
    status: int | None = None
    too_late: bool = False


def _attempt(services: Services, hand: Hand, claim: Claim, claimed_seconds: float) -> Attempted | None:
    """Make one attempt with its quick tries; None when nothing was executed for a reason of our own.

    That is a claim which grew old before the request began, or a worker that ends: the task loses nothing by either.
    """
    end_seconds = claimed_seconds + ATTEMPT_SECONDS
    begin_by_seconds = claimed_seconds + BEGIN_WITHIN_SECONDS
    for pause_seconds in (*QUICK_PAUSES_SECONDS, None):
        request = hand.provider.prepare(claim.task, utc_now())
        if isinstance(request, Unsendable):
            reading = Reading(verdict=Verdict.REFUSED, reason=request.reason)
            return Attempted(reading=reading, too_late=request.too_late)
        if services.closing.is_set() or awake_seconds() > begin_by_seconds:
            return None
        sent = _send(hand, request, end_seconds, begin_by_seconds)
        if isinstance(sent, NotBegun):
            return None
        reading = _read(hand, sent, request, end_seconds)
        rest_seconds = _quick_rest(reading, pause_seconds)
        if rest_seconds is None or awake_seconds() + rest_seconds > end_seconds - QUICK_TRY_NEEDS_SECONDS:
            break
        if services.closing.wait(rest_seconds):
            return None
        # What was sent so far was certainly not executed, and the lease outlasts the attempt: a later begin is safe.
        begin_by_seconds = end_seconds - QUICK_TRY_NEEDS_SECONDS + 1
    return Attempted(reading=reading, status=sent.status if isinstance(sent, Answered) else None)


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
    return max(asked.total_seconds(), pause_seconds) if asked <= QUICK_RETRY_AFTER else None


def _patiently(write: Callable[[], bool], task_id: str) -> bool:
    """Write, with patience: the outcome is known, and only when the ledger stays shut is it left to the lease."""
    give_up_seconds = awake_seconds() + SETTLE_PATIENCE_SECONDS
    while True:
        try:
            return write()
        except LedgerBusyError:
            if awake_seconds() > give_up_seconds:
                log.error("task %s cannot be settled: the ledger stays shut; its outcome becomes unknown", task_id)
                raise
            time.sleep(0.5)

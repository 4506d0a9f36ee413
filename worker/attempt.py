"""One attempt: the request, its quick tries, and what the provider's answers mean.

Within one attempt a failure that certainly did not create the task is tried again a few times, so that a blip does not cost
the hour until the next retry.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from rules.vocabulary import Verdict
from worker.context import Clock, ProviderClient, WorkerContext
from worker.ledger import Claim
from worker.providers import Answered, Interpretation, NotBegun, ProviderRequest, Sent, Unsendable

#: A claim that is older may have been taken back: no request begins after it.
BEGIN_WITHIN_SECONDS: Final = 10.0
#: One attempt with all its quick tries.
ATTEMPT_SECONDS: Final = 30.0
#: Pauses before the quick tries of one attempt.
QUICK_PAUSES_SECONDS: Final = (0.2, 1.0, 3.0)
#: A quick try needs at least this much of the attempt's time.
QUICK_TRY_NEEDS_SECONDS: Final = 10.0
#: A provider that asks for a longer rest than this is not tried again within the attempt.
QUICK_RETRY_AFTER: Final = timedelta(seconds=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptResult:
    """What an attempt came to, how long it took; `too_late` when the task can no longer be made before it expires."""

    reading: Interpretation
    status: int | None = None
    too_late: bool = False
    seconds: float = 0.0


def attempt(
    context: WorkerContext, client: ProviderClient, claim: Claim, claimed_seconds: float
) -> AttemptResult | None:
    """Make one attempt with its quick tries; None when nothing was executed for a reason of our own.

    That is a claim which grew old before the request began, or a worker that ends: the task loses nothing by either.
    """
    clock = context.clock
    end_seconds = claimed_seconds + ATTEMPT_SECONDS
    begin_by_seconds = claimed_seconds + BEGIN_WITHIN_SECONDS
    context.ledger.yield_to_writer()
    began_seconds = clock.awake_seconds()
    for pause_seconds in (*QUICK_PAUSES_SECONDS, None):
        # By the claim's own clock: a look-up searches around the claim, and the system's may leap meanwhile.
        elapsed = timedelta(seconds=clock.awake_seconds() - claimed_seconds)
        request = client.provider.build_request(claim.task, claim.claimed_at + elapsed)
        if isinstance(request, Unsendable):
            reading = Interpretation(verdict=Verdict.REFUSED, reason=request.reason)
            return AttemptResult(reading=reading, too_late=request.too_late)
        if context.closing.is_set() or clock.awake_seconds() > begin_by_seconds:
            return None
        sent = _send(clock, client, request, end_seconds, begin_by_seconds)
        if isinstance(sent, NotBegun):
            return None
        reading = _read(clock, client, sent, request, end_seconds)
        rest_seconds = _quick_rest(clock, reading, pause_seconds)
        if rest_seconds is None or clock.awake_seconds() + rest_seconds > end_seconds - QUICK_TRY_NEEDS_SECONDS:
            break
        if context.closing.wait(rest_seconds):
            return None
        # What was sent so far was certainly not executed, and the lease outlasts the attempt: a later begin is safe.
        begin_by_seconds = end_seconds - QUICK_TRY_NEEDS_SECONDS + 1
    status = sent.status if isinstance(sent, Answered) else None
    return AttemptResult(reading=reading, status=status, seconds=clock.awake_seconds() - began_seconds)


def _send(
    clock: Clock, client: ProviderClient, request: ProviderRequest, end_seconds: float, begin_by_seconds: float
) -> Sent | NotBegun:
    return client.transport.send(
        request,
        deadline_seconds=end_seconds - clock.awake_seconds(),
        may_begin=lambda: clock.awake_seconds() <= begin_by_seconds,
    )


def _read(
    clock: Clock, client: ProviderClient, sent: Sent, request: ProviderRequest, end_seconds: float
) -> Interpretation:
    reading = client.provider.read_response(sent, clock.now(), request)
    if not reading.probe_first:
        return reading
    probed = client.transport.send(
        client.provider.probe_request(), deadline_seconds=max(1.0, end_seconds - clock.awake_seconds())
    )
    if isinstance(probed, Answered) and probed.status < 300:  # noqa: PLR2004 - any success
        return Interpretation(verdict=Verdict.REFUSED, reason=reading.reason)
    return reading


def _quick_rest(clock: Clock, reading: Interpretation, pause_seconds: float | None) -> float | None:
    """Return how long to rest before trying again within the attempt; None when it must not be tried again now."""
    if pause_seconds is None or reading.verdict is not Verdict.BUSY:
        return None
    if reading.retry_after_at is None:
        return pause_seconds
    asked = reading.retry_after_at - clock.now()
    return max(asked.total_seconds(), pause_seconds) if asked <= QUICK_RETRY_AFTER else None

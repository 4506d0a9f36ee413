"""What follows an attempt: retry when, give up when, ask a person when.

Pure: the reading of the answer, the task's policy, `now` and `chance` go in, the next step comes out. Retry-After is kept
in full up to the policy's cap, and jitter only ever makes a retry later.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, assert_never

from rules.vocabulary import RetryPolicy, TaskState, Verdict
from worker.wire import Reading

#: How long a provider is left alone after an answer that no other of its tasks would fare better with (a rejected
#: credential, a wrong URL). Then one task is let through as a probe (see `worker/ledger/pauses.py`).
PROVIDER_PAUSE: Final = timedelta(seconds=60)
#: The shortest wait after a Retry-After that comes sooner than the policy's own delay.
FIRST_PATIENCE: Final = timedelta(seconds=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class NextStep:
    """The state a task goes to. `counted` is false when the attempt costs the task nothing."""

    state: TaskState
    due_at: datetime | None = None
    reason: str | None = None
    counted: bool = True
    pause_until_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What was tried before: `attempt` is this attempt's number (from 1)."""

    attempt: int
    first_attempt_at: datetime


def next_step(reading: Reading, policy: RetryPolicy, history: History, *, now: datetime, chance: float) -> NextStep:
    """Say what follows an attempt. `chance` is a number from 0 up to 1."""
    match reading.verdict:
        case Verdict.DELIVERED:
            return NextStep(state=TaskState.DELIVERED, reason=reading.warning)
        case Verdict.REFUSED:
            return NextStep(state=TaskState.DEAD, reason=reading.reason)
        case Verdict.UNKNOWN:
            return NextStep(state=TaskState.UNKNOWN, reason=reading.reason)
        case Verdict.PAUSE:
            until_at = now + PROVIDER_PAUSE
            return NextStep(
                state=TaskState.WAITING, due_at=until_at, reason=reading.reason, counted=False, pause_until_at=until_at
            )
        case Verdict.BUSY:
            return _retry(reading, policy, history, now=now, chance=chance)
    assert_never(reading.verdict)


def _retry(reading: Reading, policy: RetryPolicy, history: History, *, now: datetime, chance: float) -> NextStep:
    retries_made = history.attempt - 1
    own_at = now + delay_before(retries_made, policy, chance)
    due_at, counted = own_at, True
    if reading.retry_after_at is not None:
        # The provider said when. Sooner than the policy's own delay, its word costs no attempt; a provider that says so
        # again and again is asked less and less often: a wait is never shorter than all the waiting before it.
        patience = max(FIRST_PATIENCE, now - history.first_attempt_at)
        asked_at = min(reading.retry_after_at, now + policy.cap)
        due_at = max(asked_at, min(own_at, now + patience))
        counted = due_at >= own_at
    if counted and retries_made >= policy.max_attempts:
        tries = f"{history.attempt} tries" if history.attempt > 1 else "1 try"
        return NextStep(state=TaskState.DEAD, reason=f"gave up after {tries}: {reading.reason}")
    if due_at - history.first_attempt_at > policy.budget:
        return NextStep(
            state=TaskState.DEAD, reason=f"gave up: the next try would be past the budget: {reading.reason}"
        )
    return NextStep(state=TaskState.WAITING, due_at=due_at, reason=reading.reason, counted=counted)


def delay_before(retries_made: int, policy: RetryPolicy, chance: float) -> timedelta:
    """Return how long to wait before the next retry, jitter included.

    With the defaults (fixed, 60 minutes, jitter 0.1) every retry comes 60 to 66 minutes after the try before it.
    """
    match policy.strategy:
        case "fixed":
            delay = policy.delay
        case "exponential":
            delay = _exponential(retries_made, policy)
        case "custom":
            delay = policy.schedule[min(retries_made, len(policy.schedule) - 1)]
    delay = min(delay, policy.cap)
    return delay * chance if policy.jitter == "full" else delay * (1 + policy.jitter * chance)


def _exponential(retries_made: int, policy: RetryPolicy) -> timedelta:
    """Return `delay x factor^n`, the cap where that overflows."""
    try:
        return policy.delay * policy.factor**retries_made
    except OverflowError:
        return policy.cap

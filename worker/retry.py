"""What follows an attempt or a look-up: when to retry, when to give up, when to ask a person.

Pure functions: the outcome, the task's policy, `now` and a random number go in, the next step comes out. Retry-After is
respected in full up to the policy's cap. Jitter only makes a retry later.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal, assert_never

from rules.vocabulary import RetryPolicy, TaskState, Verdict
from worker.providers import CannotTell, Interpretation, TaskAbsent, TaskFound

#: How long a provider is left alone after an answer that no other of its tasks would fare better with (a rejected
#: credential, a wrong URL). Then one task is let through as a probe (see `worker/ledger/limits.py`).
PROVIDER_PAUSE: Final = timedelta(seconds=60)
#: How long a provider that gets too many requests (429) is left alone, at the least, without a wish, and at the longest.
ASKED_LEAST: Final = timedelta(seconds=1)
ASKED_WITHOUT_WISH: Final = timedelta(seconds=5)
ASKED_LONGEST: Final = timedelta(hours=1)
_TOO_MANY_REQUESTS: Final = 429
_NOT_LET_IN: Final = (401, 403)
_OUT_OF_SERVICE: Final = 503
#: The shortest wait after a Retry-After that comes sooner than the policy's own delay.
FIRST_PATIENCE: Final = timedelta(seconds=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class NextStep:
    """The next state of a task. `counted` is false when the attempt does not count against the policy.

    `pause_until_at` pauses the task's provider; `pause_asked` says that the provider asked for it, rather than having failed.
    """

    state: TaskState
    due_at: datetime | None = None
    reason: str | None = None
    counted: bool = True
    pause_until_at: datetime | None = None
    pause_asked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptHistory:
    """Earlier attempts: `attempt` is the number of the current one (from 1)."""

    attempt: int
    first_attempt_at: datetime


def next_step(
    reading: Interpretation,
    policy: RetryPolicy,
    history: AttemptHistory,
    *,
    now: datetime,
    chance: float,
    status: int | None = None,
) -> NextStep:
    """Return what follows an attempt. `chance` is a random number in [0, 1), `status` the answer's HTTP status."""
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
        case Verdict.BUSY if status == _TOO_MANY_REQUESTS:
            return _rest(reading, policy, history, now)
        case Verdict.BUSY:
            return _retry(reading, policy, history, now=now, chance=chance)
    assert_never(reading.verdict)


def _rest(reading: Interpretation, policy: RetryPolicy, history: AttemptHistory, now: datetime) -> NextStep:
    """Leave a provider alone that gets too many requests; the task waits for as long as it was asked to, and loses no try.

    The provider's other tasks wait no longer than `ASKED_LONGEST`, whatever one answer says.
    """
    asked = _asked(reading.retry_after_at, now)
    due_at, until_at = now + max(min(asked, policy.cap), ASKED_LEAST), now + min(asked, ASKED_LONGEST)
    over = due_at - history.first_attempt_at > policy.budget
    return NextStep(
        state=TaskState.DEAD if over else TaskState.WAITING,
        due_at=None if over else due_at,
        reason=f"gave up: the next try would be past the budget: {reading.reason}" if over else reading.reason,
        counted=over,
        pause_until_at=until_at,
        pause_asked=True,
    )


def _asked(retry_after_at: datetime | None, now: datetime) -> timedelta:
    """Return how long a provider that gets too many requests asks to be left alone."""
    return max(ASKED_WITHOUT_WISH if retry_after_at is None else retry_after_at - now, ASKED_LEAST)


def _retry(
    reading: Interpretation, policy: RetryPolicy, history: AttemptHistory, *, now: datetime, chance: float
) -> NextStep:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class LookUpPolicy:
    """When a task of unknown outcome is looked up again.

    A task counts as absent after two complete listings without it. The second is requested at least `after_end` after the
    attempt ended and `apart` after the first, since a provider may list new tasks late. An inconclusive look-up is repeated
    after each span of `again`; after the last one a person is asked. Look-ups that fail because of an outage are repeated for
    up to `outage` after the attempt ended, between `outage_least` and `outage_longest` apart.
    """

    after_end: timedelta = timedelta(seconds=20)
    apart: timedelta = timedelta(seconds=10)
    again: tuple[timedelta, ...] = (
        timedelta(seconds=5),
        timedelta(seconds=20),
        timedelta(minutes=1),
        timedelta(minutes=5),
    )
    outage: timedelta = timedelta(hours=24)
    outage_least: timedelta = timedelta(seconds=5)
    outage_longest: timedelta = timedelta(minutes=5)


LOOK_UP_POLICY: Final = LookUpPolicy()


@dataclass(frozen=True, slots=True, kw_only=True)
class LookUpHistory:
    """Earlier look-ups: `failed` were inconclusive; `absent_at` is when the first listing without the task was requested."""

    ended_at: datetime
    failed: int = 0
    absent_at: datetime | None = None


def after_look_up(
    told: TaskFound | TaskAbsent | CannotTell,
    before: LookUpHistory,
    policy: RetryPolicy,
    history: AttemptHistory,
    if_unsure: Literal["ask", "repeat"],
    *,
    asked_at: datetime,
    now: datetime,
    look_up_policy: LookUpPolicy = LOOK_UP_POLICY,
) -> NextStep:
    """Return what follows a look-up that began at `asked_at`.

    UNKNOWN with `due_at`: look up again then; with `counted` False this look-up does not count. UNKNOWN without `due_at`: a
    person must settle the task.
    """
    match told:
        case TaskFound():
            return NextStep(
                state=TaskState.DELIVERED, reason="no usable answer came; found at the provider by its mark"
            )
        case CannotTell():
            return _undecided(told, before, policy, history, if_unsure, now=now, look_up_policy=look_up_policy)
        case TaskAbsent() if asked_at < before.ended_at:
            again_at = max(before.ended_at, asked_at + look_up_policy.apart)
            return NextStep(state=TaskState.UNKNOWN, due_at=again_at, counted=False)
        case TaskAbsent():
            second_at = _second_listing_at(before, asked_at, look_up_policy)
            if second_at is not None:
                return NextStep(state=TaskState.UNKNOWN, due_at=second_at)
            why = "no usable answer came; looked up twice, and the provider does not have it"
            return _send_again(f"{why}: sent again", why, policy, history, now)
    assert_never(told)


def _undecided(
    told: CannotTell,
    before: LookUpHistory,
    policy: RetryPolicy,
    history: AttemptHistory,
    if_unsure: Literal["ask", "repeat"],
    *,
    now: datetime,
    look_up_policy: LookUpPolicy,
) -> NextStep:
    if told.passes and now - before.ended_at < look_up_policy.outage:
        return NextStep(state=TaskState.UNKNOWN, due_at=_after_outage(told, before, look_up_policy, now), counted=False)
    if before.failed < len(look_up_policy.again):
        return NextStep(state=TaskState.UNKNOWN, due_at=now + look_up_policy.again[before.failed])
    if if_unsure == "repeat":
        why = f"it could not be looked up at the provider ({told.reason})"
        return _send_again(f"{why}; sent again, as `if_unsure: repeat` says", why, policy, history, now)
    return NextStep(state=TaskState.UNKNOWN, reason=told.reason)


def _after_outage(told: CannotTell, before: LookUpHistory, look_up_policy: LookUpPolicy, now: datetime) -> datetime:
    """Return when to ask again after an outage: the longer ago the attempt is, the more seldom; not before it is welcome."""
    own_at = now + min(max((now - before.ended_at) / 8, look_up_policy.outage_least), look_up_policy.outage_longest)
    return own_at if told.retry_after_at is None else max(own_at, told.retry_after_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hindrance:
    """A temporary reason why a look-up or poll failed.

    `answered` is false when no answer came; `pause_until_at` pauses the provider, as it does after an attempt.
    """

    answered: bool = True
    retry_after_at: datetime | None = None
    pause_until_at: datetime | None = None
    pause_asked: bool = False


def hindrance_of(status: int | None, retry_after_at: datetime | None, now: datetime) -> Hindrance | None:
    """Return why a look-up or poll answered with this status (None: no answer) failed for now; None when it did not."""
    if status is None:
        return Hindrance(answered=False)
    if status in _NOT_LET_IN:
        return Hindrance(pause_until_at=now + PROVIDER_PAUSE)
    if status == _TOO_MANY_REQUESTS:
        asked = _asked(retry_after_at, now)
        return Hindrance(retry_after_at=now + asked, pause_until_at=now + min(asked, ASKED_LONGEST), pause_asked=True)
    return Hindrance(retry_after_at=retry_after_at) if status == _OUT_OF_SERVICE else None


def _second_listing_at(before: LookUpHistory, asked_at: datetime, look_up_policy: LookUpPolicy) -> datetime | None:
    """Return when to list again after a listing without the task; None when it was the second one."""
    soonest_at = before.ended_at + look_up_policy.after_end
    if before.absent_at is None:
        return max(soonest_at, asked_at + look_up_policy.apart)
    soonest_at = max(soonest_at, before.absent_at + look_up_policy.apart)
    return None if asked_at >= soonest_at else soonest_at


def _send_again(reason: str, why: str, policy: RetryPolicy, history: AttemptHistory, now: datetime) -> NextStep:
    if history.attempt > policy.max_attempts:
        tries = f"{history.attempt} tries" if history.attempt > 1 else "1 try"
        return NextStep(state=TaskState.DEAD, reason=f"gave up after {tries}: {why}")
    if now - history.first_attempt_at > policy.budget:
        return NextStep(state=TaskState.DEAD, reason=f"gave up: the next try would be past the budget: {why}")
    return NextStep(state=TaskState.WAITING, due_at=now, reason=reason)


def delay_before(retries_made: int, policy: RetryPolicy, chance: float) -> timedelta:
    """Return the delay before the next retry, with jitter.

    With the defaults (fixed, 60 minutes, jitter 0.1) a retry comes 60 to 66 minutes after the last attempt.
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

"""Task -> attempt -> outcome: what the delivering Celery tasks do.

The attempt is recorded before the request leaves and settled after; whatever dies in between leaves an attempt without an
outcome, which becomes `unknown` and is never sent again by itself. Within one attempt a failure that certainly did not
create the task is tried again a few times, so that a blip does not cost the hour until the next retry.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar

from rules.drafting import mark
from rules.vocabulary import LedgerBusyError, LedgerInDoubtError, ProviderName, TaskState, Verdict, instant
from worker.alerting import tell_of
from worker.ledger import Claim, Held, Limits, NotClaimed, PauseKind, Settlement
from worker.retry import History, next_step
from worker.wire import Answered, NotBegun, Reading, Request, Sent, Unsendable
from worker.wiring import SIDE_BY_SIDE, Clock, Hand, Pace, Services

log = logging.getLogger(__name__)

_Written = TypeVar("_Written")

#: How long a message waits for one of its provider's slots before it is put back.
SLOT_PATIENCE_SECONDS: Final = 0.2
#: How long an answer waits for others of its message, so that they are settled in one commit.
COMPANY_SECONDS: Final = 0.05
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
    """What one delivery message came to for one task, in words that may be shown anywhere.

    `rule` and `attempt` (counting from 1) are those of the task; without a rule nothing was claimed. `told` says that it has
    been shown already, `began_at` and `ended_at` when that was, unless it was now.
    """

    task_id: str
    state: TaskState | None
    due_at: datetime | None = None
    words: str
    rule: str | None = None
    attempt: int = 1
    told: bool = False
    began_at: datetime | None = None
    ended_at: datetime | None = None


#: Shows outcomes at once: what anybody may take up again before the ledger lets go of it, and a slice when it is done.
Tell = Callable[[Sequence[Delivered]], None]


def deliver(services: Services, provider: ProviderName, task_ids: Sequence[str], tell: Tell) -> list[Delivered]:
    """Deliver these tasks of one provider; each is claimed before, and settled when its answer arrives.

    When the provider holds its share of the worker's threads already, or the worker is about to end, what has not been
    claimed is put back for the sweep.
    """
    hand = services.hands[provider]
    if not hand.slots.take(SLOT_PATIENCE_SECONDS):
        return _put_back(services, task_ids, f"{provider} holds its share of the threads", tell)
    try:
        if len(task_ids) == 1:
            return _deliver_alone(services, hand, task_ids, tell)
        return _deliver_together(services, hand, task_ids, tell)
    finally:
        hand.slots.give()


def _put_back(services: Services, task_ids: Sequence[str], why: str, tell: Tell) -> list[Delivered]:
    waiting = TaskState.WAITING
    given = [Delivered(task_id=task_id, state=waiting, words=f"put back: {why}") for task_id in task_ids]
    tell(given)
    services.ledger.put_back(task_ids, services.clock.now())
    return [replace(outcome, told=True) for outcome in given]


def _deliver_alone(services: Services, hand: Hand, task_ids: Sequence[str], tell: Tell) -> list[Delivered]:
    claimed_seconds = services.clock.awake_seconds()
    (claim,) = _claim(services, hand, task_ids)
    if isinstance(claim, NotClaimed):
        if claim.held is Held.CONCURRENCY:
            hand.pace.full(claimed_seconds)
        return [_not_claimed(claim)]
    return _settle(services, [(claim, _attempt(services, hand, claim, claimed_seconds))], tell)


def _deliver_together(services: Services, hand: Hand, task_ids: Sequence[str], tell: Tell) -> list[Delivered]:
    """Claim and send in slices no larger than the provider was seen to answer within a moment, or than it may have at once.

    Where its rate or a pause keeps one, the rest is asked for together, so that each learns its own moment at once.
    """
    delivered: list[Delivered] = []
    rest = list(task_ids)
    most = services.limits.get(hand.provider.name, Limits()).concurrency or len(rest)
    held: Held | None = None
    while rest:
        if services.closing.is_set():
            return delivered + _put_back(services, rest, "the worker ends", tell)
        if held is Held.CONCURRENCY:
            hand.pace.full(services.clock.awake_seconds())
            why = f"{hand.provider.name} has as many requests as it may have at once"
            return delivered + _put_back(services, rest, why, tell)
        size = len(rest) if held else min(hand.pace.size, most)
        done, held = _deliver_slice(services, hand, rest[:size], tell)
        tell([outcome for outcome in done if not outcome.told])
        delivered += done
        rest = rest[size:]
    return delivered


def _deliver_slice(
    services: Services, hand: Hand, task_ids: Sequence[str], tell: Tell
) -> tuple[list[Delivered], Held | None]:
    """Claim these in one transaction, send them side by side, and settle together what was answered meanwhile.

    Returns also what of the provider keeps the tasks after these; of its concurrency nothing does when any was claimed.
    """
    clock = services.clock
    claimed_seconds = clock.awake_seconds()
    answers = _claim(services, hand, task_ids)
    claims = [claim for claim in answers if isinstance(claim, Claim)]
    delivered = [_not_claimed(answer) for answer in answers if isinstance(answer, NotClaimed)]
    ended: SimpleQueue[tuple[Claim, Future[Attempted | None]]] = SimpleQueue()
    for claim in claims:
        try:
            future = hand.pool.submit(_attempt, services, hand, claim, claimed_seconds)
        except RuntimeError as error:  # no thread is to be had, or the process ends: it never began
            log.error("task %s is given back: %s", claim.task.id, error)
            future = Future()
            future.set_result(None)
        future.add_done_callback(partial(_hand_over, ended, claim))
    waiting, attempts = len(claims), list[Attempted | None]()
    while waiting:
        group = [ended.get()]
        settle_by_seconds = clock.awake_seconds() + COMPANY_SECONDS
        while len(group) < waiting:
            try:
                group.append(ended.get(timeout=max(0.0, settle_by_seconds - clock.awake_seconds())))
            except Empty:
                break
        waiting -= len(group)
        made = [(claim, _attempted(claim, future)) for claim, future in group]
        attempts += [attempted for _, attempted in made]
        delivered += _settle(services, made, tell)
    _learn(hand.pace, attempts)
    kept = [answer.held for answer in answers if isinstance(answer, NotClaimed) and answer.held is not None]
    held = kept[-1] if kept else None
    return delivered, None if held is Held.CONCURRENCY and claims else held


def _claim(services: Services, hand: Hand, task_ids: Sequence[str]) -> list[Claim | NotClaimed]:
    """Claim under a name of its own, so that a claim of which nobody knows whether it stands is undone if it does."""
    name = hand.provider.name
    # The other provider's line is not touched.
    limits = {name: services.limits[name]} if name in services.limits else {}
    clock, ledger, owner = services.clock, services.ledger, f"{services.owner}/{next(services.claim_numbers)}"
    try:
        return ledger.claim(task_ids, clock.now(), LEASE, owner, limits)
    except LedgerInDoubtError:
        given = _patiently(clock, lambda: ledger.give_back_of(owner, task_ids, clock.now()), ", ".join(task_ids))
        log.warning("a claim's commit was in doubt; of it was given back, unsent: %s", ", ".join(given) or "nothing")
        raise


def _attempted(claim: Claim, future: Future[Attempted | None]) -> Attempted | None:
    """Return what an attempt came to; a fault of ours leaves it open, and concerns this task alone."""
    try:
        return future.result()
    except Exception as error:
        log.exception("task %s: a fault in its attempt; it may have been executed", claim.task.id)
        reason = f"a fault in the worker ({type(error).__name__}) while it was sent: it may have been executed."
        return Attempted(reading=Reading(verdict=Verdict.UNKNOWN, reason=reason))


def _hand_over(ended: SimpleQueue[Any], claim: Claim, future: Future[Attempted | None]) -> None:
    ended.put((claim, future))


def _learn(pace: Pace, attempts: Sequence[Attempted | None]) -> None:
    """Learn how many may be claimed at once, from the provider's answers alone: the ledger has its own reasons to be slow."""
    if None in attempts:  # a claim grew too old: fewer at once begin in time
        pace.reset()
    elif attempts:
        seconds = sum(attempted.seconds for attempted in attempts if attempted is not None)
        pace.note(len(attempts), seconds / SIDE_BY_SIDE)


def _not_claimed(answer: NotClaimed) -> Delivered:
    words = f"nothing sent, {answer.why}"
    return Delivered(task_id=answer.task_id, state=answer.state, due_at=answer.due_at, words=words)


def _settle(services: Services, made: Sequence[tuple[Claim, Attempted | None]], tell: Tell) -> list[Delivered]:
    """Record what attempts came to, those that never began as given back; a write that fails is tried for long."""
    delivered = []
    clock = services.clock
    poll = timedelta(seconds=services.settings.mindhunters_poll_seconds)
    settled = [
        (claim, _settlement(clock, claim, attempted, poll)) for claim, attempted in made if attempted is not None
    ]
    if settled:
        ids = ", ".join(claim.task.id for claim, _ in settled)
        taken = _patiently(clock, lambda: services.ledger.settle_many(settled, clock.now(), tell_of), ids)
        delivered += [_settled(*pair, taken=took) for pair, took in zip(settled, taken, strict=True)]
    for claim in (claim for claim, attempted in made if attempted is None):
        given = _told(claim, TaskState.WAITING, "given back before anything was sent")
        tell([given])
        _patiently(clock, partial(services.ledger.give_back, claim, clock.now()), claim.task.id)
        delivered.append(replace(given, told=True))
    return delivered


def _settled(claim: Claim, settlement: Settlement, *, taken: bool) -> Delivered:
    if not taken:
        return _told(claim, None, "settled late: somebody else holds the task")
    words = outcome_words(
        settlement.verdict, settlement.status, settlement.state, due_at=settlement.due_at, attempt=claim.attempt
    )
    return _told(claim, settlement.state, words, settlement.due_at)


def _told(claim: Claim, state: TaskState | None, words: str, due_at: datetime | None = None) -> Delivered:
    task = claim.task
    return Delivered(task_id=task.id, state=state, due_at=due_at, words=words, rule=task.rule, attempt=claim.attempt)


def _settlement(clock: Clock, claim: Claim, made: Attempted, poll: timedelta) -> Settlement:
    """Return what the attempt means for its task; Mindhunters is asked after `poll` what became of it, or never."""
    reading = made.reading
    history = History(attempt=claim.attempt, first_attempt_at=claim.first_attempt_at)
    step = next_step(reading, claim.task.retry, history, now=clock.now(), chance=clock.chance(), status=made.status)
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
        pause_kind=PauseKind.ASKED if step.pause_asked else PauseKind.ANSWER,
        poll_at=clock.now() + poll if poll and claim.task.provider is ProviderName.MINDHUNTERS else None,
    )


#: What a status means for an operator. A provider's own words may be personal; they stay in the ledger.
_MEANING: Final[Mapping[int | None, str]] = {
    400: "it did not take the fields",
    401: "it did not take our credential",
    403: "it did not let us",
    404: "it does not know the address or an id",
    408: "it was too slow",
    409: "it found a conflict",
    422: "it did not take the fields",
    429: "too many requests",
    503: "",
}


def outcome_words(
    verdict: Verdict, status: int | None, state: TaskState, *, due_at: datetime | None, attempt: int
) -> str:
    """Return verdict, status, what that means and what follows: what may be shown anywhere of an outcome."""
    if state is TaskState.SUPPRESSED:
        return "too late: its time has passed"
    words = f"{verdict} {status}" if status else str(verdict)
    meaning = _MEANING.get(status)
    if meaning is None:
        meaning = _meaning(verdict, status)
    if meaning and verdict is not Verdict.DELIVERED:
        words = f"{words}, {meaning}"
    if due_at:
        return f"{words}; again at {instant(due_at)}"
    if verdict is Verdict.BUSY and state is TaskState.DEAD:
        return f"{words}; given up after attempt {attempt}"
    return words


def _meaning(verdict: Verdict, status: int | None) -> str:
    match verdict:
        case Verdict.UNKNOWN:
            return "may have been executed" if status else "no answer: may have been executed"
        case Verdict.REFUSED if status is None:
            return "the fields cannot be put into a request"
        case _:
            return "see its answer in the ledger" if status else "it could not be reached"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempted:
    """What an attempt came to, how long it took; `too_late` when the task can no longer be made before it expires."""

    reading: Reading
    status: int | None = None
    too_late: bool = False
    seconds: float = 0.0


def _attempt(services: Services, hand: Hand, claim: Claim, claimed_seconds: float) -> Attempted | None:
    """Make one attempt with its quick tries; None when nothing was executed for a reason of our own.

    That is a claim which grew old before the request began, or a worker that ends: the task loses nothing by either.
    """
    clock = services.clock
    end_seconds = claimed_seconds + ATTEMPT_SECONDS
    begin_by_seconds = claimed_seconds + BEGIN_WITHIN_SECONDS
    services.ledger.give_way()
    began_seconds = clock.awake_seconds()
    for pause_seconds in (*QUICK_PAUSES_SECONDS, None):
        # By the claim's own clock: a look-up searches around the claim, and the system's may leap meanwhile.
        elapsed = timedelta(seconds=clock.awake_seconds() - claimed_seconds)
        request = hand.provider.prepare(claim.task, claim.claimed_at + elapsed)
        if isinstance(request, Unsendable):
            reading = Reading(verdict=Verdict.REFUSED, reason=request.reason)
            return Attempted(reading=reading, too_late=request.too_late)
        if services.closing.is_set() or clock.awake_seconds() > begin_by_seconds:
            return None
        sent = _send(clock, hand, request, end_seconds, begin_by_seconds)
        if isinstance(sent, NotBegun):
            return None
        reading = _read(clock, hand, sent, request, end_seconds)
        rest_seconds = _quick_rest(clock, reading, pause_seconds)
        if rest_seconds is None or clock.awake_seconds() + rest_seconds > end_seconds - QUICK_TRY_NEEDS_SECONDS:
            break
        if services.closing.wait(rest_seconds):
            return None
        # What was sent so far was certainly not executed, and the lease outlasts the attempt: a later begin is safe.
        begin_by_seconds = end_seconds - QUICK_TRY_NEEDS_SECONDS + 1
    status = sent.status if isinstance(sent, Answered) else None
    return Attempted(reading=reading, status=status, seconds=clock.awake_seconds() - began_seconds)


def _send(clock: Clock, hand: Hand, request: Request, end_seconds: float, begin_by_seconds: float) -> Sent | NotBegun:
    return hand.transport.send(
        request,
        deadline_seconds=end_seconds - clock.awake_seconds(),
        may_begin=lambda: clock.awake_seconds() <= begin_by_seconds,
    )


def _read(clock: Clock, hand: Hand, sent: Sent, request: Request, end_seconds: float) -> Reading:
    reading = hand.provider.read(sent, clock.now(), request)
    if not reading.probe_first:
        return reading
    probed = hand.transport.send(hand.provider.probe(), deadline_seconds=max(1.0, end_seconds - clock.awake_seconds()))
    if isinstance(probed, Answered) and probed.status < 300:  # noqa: PLR2004 - any success
        return Reading(verdict=Verdict.REFUSED, reason=reading.reason)
    return reading


def _quick_rest(clock: Clock, reading: Reading, pause_seconds: float | None) -> float | None:
    """Return how long to rest before trying again within the attempt; None when it must not be tried again now."""
    if pause_seconds is None or reading.verdict is not Verdict.BUSY:
        return None
    if reading.retry_after_at is None:
        return pause_seconds
    asked = reading.retry_after_at - clock.now()
    return max(asked.total_seconds(), pause_seconds) if asked <= QUICK_RETRY_AFTER else None


def _patiently(clock: Clock, write: Callable[[], _Written], task_ids: str) -> _Written:
    """Write, with patience: the outcome is known, and only when the ledger stays shut is it left to the lease."""
    give_up_seconds = clock.awake_seconds() + SETTLE_PATIENCE_SECONDS
    while True:
        try:
            return write()
        except LedgerBusyError:
            if clock.awake_seconds() > give_up_seconds:
                log.error("cannot be settled, the ledger stays shut; the outcome becomes unknown: %s", task_ids)
                raise
            clock.sleep(0.5)

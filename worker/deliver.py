"""Task -> attempt -> outcome: what the delivering Celery tasks do.

The attempt is recorded before the request leaves and settled after; whatever dies in between leaves an attempt without an
outcome, which becomes `unknown` and is never sent again by itself.

What is claimed elsewhere, as `first_attempts.py` does, is sent and settled here too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Final, TypeVar

from rules.engine import correlation_tag
from rules.vocabulary import (
    LedgerBusyError,
    LedgerInDoubtError,
    ProviderName,
    TaskState,
    Verdict,
    instant,
)
from worker.alerting import tell_of
from worker.attempt import AttemptResult, attempt
from worker.context import SIDE_BY_SIDE, TOGETHER, AdaptiveBatchSize, Clock, ProviderClient, WorkerContext
from worker.ledger import Claim, Held, Limits, NotClaimed, PauseKind, Settlement
from worker.retry import History, next_step
from worker.side_by_side import ConcurrentSender, Made

log = logging.getLogger(__name__)

_Written = TypeVar("_Written")

#: How long a message waits for one of its provider's slots before it is put back.
SLOT_PATIENCE_SECONDS: Final = 0.2
#: How long a claim holds; then the sweep calls the outcome unknown. Longer than any attempt.
LEASE: Final = timedelta(seconds=60)
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


def deliver(context: WorkerContext, provider: ProviderName, task_ids: Sequence[str], tell: Tell) -> list[Delivered]:
    """Deliver these tasks of one provider; each is claimed before, and settled when its answer arrives.

    When the provider holds its share of the worker's threads already, or the worker is about to end, what has not been
    claimed is put back for the sweep.
    """
    client = context.clients[provider]
    if not client.take_slot(SLOT_PATIENCE_SECONDS):
        return _put_back(context, task_ids, f"{provider} holds its share of the threads", tell)
    try:
        if len(task_ids) == 1:
            return _deliver_alone(context, client, task_ids, tell)
        return _deliver_together(context, client, task_ids, tell)
    finally:
        client.bulkhead.give()


def _put_back(context: WorkerContext, task_ids: Sequence[str], why: str, tell: Tell) -> list[Delivered]:
    waiting = TaskState.WAITING
    given = [Delivered(task_id=task_id, state=waiting, words=f"put back: {why}") for task_id in task_ids]
    tell(given)
    context.ledger.tasks.put_back(task_ids, context.clock.now())
    return [replace(outcome, told=True) for outcome in given]


def _deliver_alone(
    context: WorkerContext, client: ProviderClient, task_ids: Sequence[str], tell: Tell
) -> list[Delivered]:
    claimed_seconds = context.clock.awake_seconds()
    (claim,) = _claim(context, client, task_ids)
    if isinstance(claim, NotClaimed):
        if claim.held is Held.CONCURRENCY:
            client.batch_size.full(claimed_seconds)
        return [_not_claimed(claim)]
    return _settle(context, [(claim, attempt(context, client, claim, claimed_seconds))], tell)


def _deliver_together(
    context: WorkerContext, client: ProviderClient, task_ids: Sequence[str], tell: Tell
) -> list[Delivered]:
    """Claim and send in slices no larger than the provider was seen to answer within a moment, or than it may have at once.

    Where its rate or a pause keeps one, the rest is asked for together, so that each learns its own moment at once.
    """
    delivered: list[Delivered] = []
    rest = list(task_ids)
    most = most_at_once(context, client) or len(rest)
    held: Held | None = None
    while rest:
        if context.closing.is_set():
            return delivered + _put_back(context, rest, "the worker ends", tell)
        if held_back(context, client, held):
            why = f"{client.provider.name} has as many requests as it may have at once"
            return delivered + _put_back(context, rest, why, tell)
        size = len(rest) if held else min(client.batch_size.size, most, TOGETHER)
        done, held = _deliver_slice(context, client, rest[:size], tell)
        tell([outcome for outcome in done if not outcome.told])
        delivered += done
        rest = rest[size:]
    return delivered


def _deliver_slice(
    context: WorkerContext, client: ProviderClient, task_ids: Sequence[str], tell: Tell
) -> tuple[list[Delivered], Held | None]:
    claimed_seconds = context.clock.awake_seconds()
    return send(context, client, _claim(context, client, task_ids), claimed_seconds, tell)


def send(
    context: WorkerContext,
    client: ProviderClient,
    answers: Sequence[Claim | NotClaimed],
    claimed_seconds: float,
    tell: Tell,
) -> tuple[list[Delivered], Held | None]:
    """Send what was claimed in one transaction side by side, and settle together what was answered meanwhile.

    Returns also what of the provider keeps the tasks after these; of its concurrency nothing does when any was claimed.
    """
    claims = [claim for claim in answers if isinstance(claim, Claim)]
    delivered = [_not_claimed(answer) for answer in answers if isinstance(answer, NotClaimed)]
    attempts: list[AttemptResult | None] = []
    side_by_side = ConcurrentSender(context, client, claims, claimed_seconds)
    fault: Exception | None = None
    for group in side_by_side.answers():
        attempts += [attempted for _, attempted in group]
        try:
            delivered += _settle(context, group, tell)
        except Exception as error:  # noqa: BLE001 - raised when the others of these claims are settled, or given back
            side_by_side.stop()
            fault = fault or error
    if fault is not None:
        raise fault
    _learn(client.batch_size, attempts)
    kept = [answer.held for answer in answers if isinstance(answer, NotClaimed) and answer.held is not None]
    held = kept[-1] if kept else None
    return delivered, None if held is Held.CONCURRENCY and claims else held


def _claim(context: WorkerContext, client: ProviderClient, task_ids: Sequence[str]) -> list[Claim | NotClaimed]:
    owner = claim_name(context)
    try:
        return context.ledger.tasks.claim(task_ids, context.clock.now(), LEASE, owner, limits_for(context, client))
    except LedgerInDoubtError:
        undo_claim(context, owner, task_ids)
        raise


def claim_name(context: WorkerContext) -> str:
    """Return a name of its own for a claim, so that one of which nobody knows whether it stands is undone if it does."""
    return f"{context.owner}/{next(context.claim_numbers)}"


def undo_claim(context: WorkerContext, owner: str, task_ids: Sequence[str]) -> None:
    """Give back what a claim under this name has, of which nobody knows whether it stands and nothing was sent."""
    clock, ledger = context.clock, context.ledger
    given = _patiently(clock, lambda: ledger.tasks.give_back_of(owner, task_ids, clock.now()), ", ".join(task_ids))
    log.warning("a claim's commit was in doubt; of it was given back, unsent: %s", ", ".join(given) or "nothing")


def limits_for(context: WorkerContext, client: ProviderClient) -> Mapping[ProviderName, Limits]:
    """Return the limits of this provider alone: the other's line is not touched."""
    name = client.provider.name
    return {name: context.limits[name]} if name in context.limits else {}


def held_back(context: WorkerContext, client: ProviderClient, held: Held | None) -> bool:
    """Whether a provider has as many requests as it may have at once; its pace learns that."""
    if held is Held.CONCURRENCY:
        client.batch_size.full(context.clock.awake_seconds())
    return held is Held.CONCURRENCY


def most_at_once(context: WorkerContext, client: ProviderClient) -> int:
    """Return how many requests a provider may have at once, 0 for no limit."""
    return context.limits.get(client.provider.name, Limits()).concurrency


def _learn(batch_size: AdaptiveBatchSize, attempts: Sequence[AttemptResult | None]) -> None:
    """Learn how many may be claimed at once, from the provider's answers alone: the ledger has its own reasons to be slow."""
    if None in attempts:  # a claim grew too old: fewer at once begin in time
        batch_size.reset()
    elif attempts:
        seconds = sum(attempted.seconds for attempted in attempts if attempted is not None)
        batch_size.note(len(attempts), seconds / SIDE_BY_SIDE)


def _not_claimed(answer: NotClaimed) -> Delivered:
    words = f"nothing sent, {answer.why}"
    return Delivered(task_id=answer.task_id, state=answer.state, due_at=answer.due_at, words=words)


def _settle(context: WorkerContext, made: Sequence[Made], tell: Tell) -> list[Delivered]:
    """Record what attempts came to, those that never began as given back; a write that fails is tried for long."""
    delivered: list[Delivered] = []
    clock = context.clock
    poll = timedelta(seconds=context.settings.mindhunters_poll_seconds)
    settled = [
        (claim, _settlement(clock, claim, attempted, poll)) for claim, attempted in made if attempted is not None
    ]
    try:
        if settled:
            ids = ", ".join(claim.task.id for claim, _ in settled)
            taken = _patiently(clock, lambda: context.ledger.tasks.settle_many(settled, clock.now(), tell_of), ids)
            delivered += [_settled(*pair, taken=took) for pair, took in zip(settled, taken, strict=True)]
    finally:  # nothing was sent of these, whatever became of the others
        for claim in (claim for claim, attempted in made if attempted is None):
            given = _told(claim, TaskState.WAITING, "given back before anything was sent")
            tell([given])
            _patiently(clock, partial(context.ledger.tasks.give_back, claim, clock.now()), claim.task.id)
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


def _settlement(clock: Clock, claim: Claim, made: AttemptResult, poll: timedelta) -> Settlement:
    """Return what the attempt means for its task; Mindhunters is asked after `poll` what became of it, or never."""
    reading = made.reading
    history = History(attempt=claim.attempt, first_attempt_at=claim.first_attempt_at)
    step = next_step(reading, claim.task.retry, history, now=clock.now(), chance=clock.chance(), status=made.status)
    reason = step.reason
    if step.state is TaskState.UNKNOWN:
        reason = f"{reason} Its mark is {correlation_tag(claim.task.key)}."
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

"""Deliver tasks: claim each in the ledger, send its request, record the outcome.

The attempt is recorded before the request is sent and settled afterwards. If the process dies in between, the attempt has no
outcome: the task becomes `unknown` and is looked up at its provider (`worker/reconciler.py`) before it may be sent again.

`deliver` is the body of the Celery tasks `make_call`, `whatsapp_template` and so on. Under load `worker/planning.py` claims
tasks in the transaction that records them, and sends them with `send_claimed`.
"""

from __future__ import annotations

import logging
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Final, TypeVar

from rules.engine import correlation_tag
from rules.vocabulary import LedgerBusyError, LedgerInDoubtError, ProviderName, TaskState, Verdict, instant
from worker.clock import Clock
from worker.context import CONCURRENT_REQUESTS, ROWS_PER_WRITE, AdaptiveBatchSize, ProviderClient, WorkerContext
from worker.ledger import Claim, Held, NotClaimed, PauseKind, ProviderState, Settlement
from worker.providers import Answered, Interpretation, NotBegun, ProviderRequest, Sent, Unsendable
from worker.retry import AttemptHistory, next_step

log = logging.getLogger(__name__)

_Written = TypeVar("_Written")

#: How long a message waits for a place in its provider's bulkhead before its tasks are put back.
BULKHEAD_PATIENCE_SECONDS: Final = 0.2
#: How long a claim holds; then the sweeper calls the outcome unknown. Longer than any attempt.
LEASE: Final = timedelta(seconds=60)
#: How long a settlement is tried while the ledger is busy: the answer is known and must not be lost.
SETTLE_PATIENCE_SECONDS: Final = 25.0

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

#: How long an answer waits for others, so that they are settled in one commit.
GATHER_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryOutcome:
    """The result of one task in a delivery message; holds nothing personal.

    `rule` and `attempt` (from 1) are the task's; `rule` is None when nothing was claimed. `already_shown`: Flower has it
    already. `began_at` and `ended_at` bound the attempt; None means the present moment.
    """

    task_id: str
    state: TaskState | None
    due_at: datetime | None = None
    words: str
    rule: str | None = None
    attempt: int = 1
    already_shown: bool = False
    began_at: datetime | None = None
    ended_at: datetime | None = None


#: Shows outcomes at once. Called with what anybody may take up again before the ledger lets go of it, and with each slice of
#: a message when it is done.
Tell = Callable[[Sequence[DeliveryOutcome]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptResult:
    """How an attempt ended and how long it took; `too_late`: the task would have expired before the request could be sent."""

    reading: Interpretation
    status: int | None = None
    too_late: bool = False
    seconds: float = 0.0


#: A claim and what its attempt came to; None when it never began, for a reason of our own.
Attempted = tuple[Claim, AttemptResult | None]


def deliver(
    context: WorkerContext, provider: ProviderName, task_ids: Sequence[str], tell: Tell
) -> list[DeliveryOutcome]:
    """Deliver tasks of one provider: claim each before its request, settle it after the answer. Returns one outcome each.

    When the provider already holds its share of the worker's threads, or the worker is shutting down, tasks not yet claimed are
    put back for the sweeper. Raises LedgerError when the ledger cannot be used.
    """
    client = context.clients[provider]
    if not client.acquire(BULKHEAD_PATIENCE_SECONDS):
        return _put_back(context, task_ids, f"{provider} holds its share of the threads", tell)
    try:
        if len(task_ids) == 1:
            return _deliver_one(context, client, task_ids[0], tell)
        return _deliver_many(context, client, task_ids, tell)
    finally:
        client.bulkhead.release()


def _put_back(context: WorkerContext, task_ids: Sequence[str], why: str, tell: Tell) -> list[DeliveryOutcome]:
    waiting = TaskState.WAITING
    outcomes = [DeliveryOutcome(task_id=task_id, state=waiting, words=f"put back: {why}") for task_id in task_ids]
    tell(outcomes)
    context.ledger.tasks.put_back(task_ids, context.clock.now())
    return [replace(outcome, already_shown=True) for outcome in outcomes]


def _deliver_one(context: WorkerContext, client: ProviderClient, task_id: str, tell: Tell) -> list[DeliveryOutcome]:
    claimed_seconds = context.clock.awake_seconds()
    (claim,) = _claim(context, client, [task_id])
    if isinstance(claim, NotClaimed):
        note_full(context, client, claim.held)
        return [_not_claimed(claim)]
    return _settle(context, [(claim, make_attempt(context, client, claim, claimed_seconds))], tell)


def _deliver_many(
    context: WorkerContext, client: ProviderClient, task_ids: Sequence[str], tell: Tell
) -> list[DeliveryOutcome]:
    """Claim and send in slices no larger than the provider was seen to answer within a moment, or than it may have at once.

    Where its rate or a pause keeps one, the rest is claimed together, so that each learns its own moment at once.
    """
    delivered: list[DeliveryOutcome] = []
    rest = list(task_ids)
    most = context.limits_for(client).concurrency or len(rest)
    held: Held | None = None
    while rest:
        if context.closing.is_set():
            return delivered + _put_back(context, rest, "the worker ends", tell)
        if note_full(context, client, held):
            why = f"{client.provider.name} has as many requests as it may have at once"
            return delivered + _put_back(context, rest, why, tell)
        size = len(rest) if held else min(client.batch_size.size, most, ROWS_PER_WRITE)
        claimed_seconds = context.clock.awake_seconds()
        answers = _claim(context, client, rest[:size])
        done, held = send_claimed(context, client, answers, claimed_seconds, tell)
        tell([outcome for outcome in done if not outcome.already_shown])
        delivered += done
        rest = rest[size:]
    return delivered


def send_claimed(
    context: WorkerContext,
    client: ProviderClient,
    answers: Sequence[Claim | NotClaimed],
    claimed_seconds: float,
    tell: Tell,
) -> tuple[list[DeliveryOutcome], Held | None]:
    """Send tasks that were claimed in one transaction concurrently, and settle answered ones in groups.

    `answers` are the results of the claim, `claimed_seconds` the moment of the claim by `Clock.awake_seconds`. Returns the
    outcomes, and the provider's limit or pause that keeps further tasks from being claimed (None: none does). An error of
    settling is raised after all of them have been tried.
    """
    claims = [claim for claim in answers if isinstance(claim, Claim)]
    outcomes = [_not_claimed(answer) for answer in answers if isinstance(answer, NotClaimed)]
    results: list[AttemptResult | None] = []
    sender = ConcurrentSender(context, client, claims, claimed_seconds)
    fault: Exception | None = None
    for group in sender.results():
        results += [result for _, result in group]
        try:
            outcomes += _settle(context, group, tell)
        except Exception as error:  # noqa: BLE001 - raised when the others of these claims are settled, or given back
            sender.stop()
            fault = fault or error
    if fault is not None:
        raise fault
    _adapt(client.batch_size, results)
    held = next((answer.held for answer in reversed(answers) if isinstance(answer, NotClaimed) and answer.held), None)
    # Where any was claimed, its concurrency keeps nothing: those requests have ended.
    return outcomes, None if held is Held.CONCURRENCY and claims else held


def _adapt(batch_size: AdaptiveBatchSize, results: Sequence[AttemptResult | None]) -> None:
    """Adapt how many are claimed at once to the provider's answers alone: the ledger has its own reasons to be slow."""
    if None in results:  # a claim grew too old: fewer at once begin in time
        batch_size.reset()
    elif results:
        seconds = sum(result.seconds for result in results if result is not None)
        batch_size.note(len(results), seconds / CONCURRENT_REQUESTS)


# -- claiming ----------------------------------------------------------------------------------------------------------


def _claim(context: WorkerContext, client: ProviderClient, task_ids: Sequence[str]) -> list[Claim | NotClaimed]:
    owner = context.new_claim_owner()
    limits = {client.provider.name: context.limits_for(client)}
    try:
        return context.ledger.tasks.claim(task_ids, context.clock.now(), LEASE, owner, limits)
    except LedgerInDoubtError:
        undo_claim(context, owner, task_ids)
        raise


def undo_claim(context: WorkerContext, owner: str, task_ids: Sequence[str]) -> None:
    """Give back what was claimed under this owner's name, if that claim, whose commit is in doubt, was written."""
    clock, ledger = context.clock, context.ledger
    given = _write_patiently(
        clock, lambda: ledger.tasks.give_back_of(owner, task_ids, clock.now()), ", ".join(task_ids)
    )
    log.warning("a claim's commit was in doubt; of it was given back, unsent: %s", ", ".join(given) or "nothing")


def note_full(context: WorkerContext, client: ProviderClient, held: Held | None) -> bool:
    """Return whether the provider is at its concurrency limit, and remember that for a moment."""
    if held is Held.CONCURRENCY:
        client.batch_size.note_full(context.clock.awake_seconds())
    return held is Held.CONCURRENCY


def _not_claimed(answer: NotClaimed) -> DeliveryOutcome:
    words = f"nothing sent, {answer.why}"
    return DeliveryOutcome(task_id=answer.task_id, state=answer.state, due_at=answer.due_at, words=words)


# -- one attempt -------------------------------------------------------------------------------------------------------


def make_attempt(
    context: WorkerContext, client: ProviderClient, claim: Claim, claimed_seconds: float
) -> AttemptResult | None:
    """Send a claimed task's request; retry quickly after a failure that certainly did not create the task.

    The quick retries keep a short outage from costing the hour until the next attempt. Returns None when no request was sent
    because the claim had become too old or the worker is shutting down; the attempt is then not counted.
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
        rest_seconds = _seconds_to_quick_try(clock, reading, pause_seconds)
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
    left_seconds = max(1.0, end_seconds - clock.awake_seconds())
    probed = client.transport.send(client.provider.probe_request(), deadline_seconds=left_seconds)
    if isinstance(probed, Answered) and probed.status < 300:  # noqa: PLR2004 - any success
        return Interpretation(verdict=Verdict.REFUSED, reason=reading.reason)
    return reading


def _seconds_to_quick_try(clock: Clock, reading: Interpretation, pause_seconds: float | None) -> float | None:
    """Return how long to rest before trying again within the attempt; None when it must not be tried again now."""
    if pause_seconds is None or reading.verdict is not Verdict.BUSY:
        return None
    if reading.retry_after_at is None:
        return pause_seconds
    asked = reading.retry_after_at - clock.now()
    return max(asked.total_seconds(), pause_seconds) if asked <= QUICK_RETRY_AFTER else None


class ConcurrentSender:
    """Makes the attempts for claims of one provider, with up to `CONCURRENT_REQUESTS` threads that take claims from one list.

    Each claim is taken, sent and answered by one thread only. The thread that settles is woken once for many results: waking it
    for each claim and each answer took a fifth of a delivery's cost. `claimed_seconds` is as for `send_claimed`.
    """

    def __init__(
        self, context: WorkerContext, client: ProviderClient, claims: Sequence[Claim], claimed_seconds: float
    ) -> None:
        self._context = context
        self._client = client
        self._claimed_seconds = claimed_seconds
        self._left = deque(claims)
        self._made: deque[Attempted] = deque()
        self._open = len(claims)
        self._lock = threading.Lock()
        self._some = threading.Event()
        self._all = threading.Event()

    def results(self) -> Iterator[list[Attempted]]:
        """Make the attempts and yield their results in groups, as they arrive."""
        given, number = 0, self._open
        self._begin()
        while given < number:
            self._some.wait()
            self._all.wait(GATHER_SECONDS)
            self._some.clear()  # before it is taken: what comes from here on counts as new
            group = [self._made.popleft() for _ in range(len(self._made))]
            given += len(group)
            if group:
                yield group

    def stop(self) -> None:
        """Start no further attempts; claims not started yield None as their result."""
        while (claim := self._next()) is not None:
            self._answer(claim, None)

    def _begin(self) -> None:
        threads: list[Future[None]] = []
        for _ in range(min(CONCURRENT_REQUESTS, self._open)):
            try:
                threads.append(self._client.pool.submit(self._work_off))
            except RuntimeError as error:  # no thread is to be had, or the process ends
                log.error("no further thread sends to %s: %s", self._client.provider.name, error)
                break
        if not threads:
            self.stop()
            return
        running = len(threads)

        def ended(_thread: Future[None]) -> None:
            nonlocal running
            with self._lock:
                running -= 1
                is_last = running == 0
            if is_last:  # of cancelled ones nobody took anything
                self.stop()

        for thread in threads:
            thread.add_done_callback(ended)

    def _work_off(self) -> None:
        while (claim := self._next()) is not None:
            result: AttemptResult | None = _fault(SystemExit())
            try:
                result = make_attempt(self._context, self._client, claim, self._claimed_seconds)
            except Exception as error:  # a fault of ours leaves it open what became of it, and concerns this task alone
                log.exception("task %s: a fault in its attempt; it may have been executed", claim.task.id)
                result = _fault(error)
            finally:
                self._answer(claim, result)

    def _next(self) -> Claim | None:
        try:
            return self._left.popleft()
        except IndexError:
            return None

    def _answer(self, claim: Claim, result: AttemptResult | None) -> None:
        self._made.append((claim, result))
        with self._lock:
            self._open -= 1
            is_last = self._open == 0
        if is_last:
            self._all.set()
        self._some.set()


def _fault(error: BaseException) -> AttemptResult:
    reason = f"a fault in the worker ({type(error).__name__}) while it was sent: it may have been executed."
    return AttemptResult(reading=Interpretation(verdict=Verdict.UNKNOWN, reason=reason))


# -- settling ----------------------------------------------------------------------------------------------------------


def _settle(context: WorkerContext, attempts: Sequence[Attempted], tell: Tell) -> list[DeliveryOutcome]:
    """Record what attempts came to, and give back those that never began; a write that fails is tried for long."""
    outcomes: list[DeliveryOutcome] = []
    clock, ledger = context.clock, context.ledger
    poll = timedelta(seconds=context.settings.mindhunters_poll_seconds)
    settled = [(claim, _settlement(clock, claim, result, poll)) for claim, result in attempts if result is not None]
    try:
        if settled:
            ids = ", ".join(claim.task.id for claim, _ in settled)
            taken = _write_patiently(clock, lambda: ledger.tasks.settle_many(settled, clock.now(), log_pause), ids)
            outcomes += [_settled(*pair, taken=took) for pair, took in zip(settled, taken, strict=True)]
    finally:  # nothing was sent of these, whatever became of the others
        for claim in (claim for claim, result in attempts if result is None):
            outcome = _outcome(claim, TaskState.WAITING, "given back before anything was sent")
            tell([outcome])
            _write_patiently(clock, partial(ledger.tasks.give_back, claim, clock.now()), claim.task.id)
            outcomes.append(replace(outcome, already_shown=True))
    return outcomes


def _settlement(clock: Clock, claim: Claim, result: AttemptResult, poll: timedelta) -> Settlement:
    """Return what the attempt means for its task; Mindhunters is asked after `poll` what became of it, or never."""
    reading, now = result.reading, clock.now()
    history = AttemptHistory(attempt=claim.attempt, first_attempt_at=claim.first_attempt_at)
    step = next_step(reading, claim.task.retry, history, now=now, chance=clock.chance(), status=result.status)
    reason = step.reason
    if step.state is TaskState.UNKNOWN:
        reason = f"{reason} Its mark is {correlation_tag(claim.task.key)}."
    return Settlement(
        verdict=reading.verdict,
        state=TaskState.SUPPRESSED if result.too_late else step.state,
        due_at=step.due_at,
        external_id=reading.external_id,
        reason=reason,
        status=result.status,
        counted=step.counted,
        pause_until_at=step.pause_until_at,
        pause_reason=reading.reason if step.pause_until_at else None,
        pause_kind=PauseKind.ASKED if step.pause_asked else PauseKind.ANSWER,
        poll_at=now + poll if poll and claim.task.provider is ProviderName.MINDHUNTERS else None,
    )


def _write_patiently(clock: Clock, write: Callable[[], _Written], task_ids: str) -> _Written:
    """Write again and again while the ledger is busy: only when it stays shut is the known outcome left to the lease."""
    give_up_seconds = clock.awake_seconds() + SETTLE_PATIENCE_SECONDS
    while True:
        try:
            return write()
        except LedgerBusyError:
            if clock.awake_seconds() > give_up_seconds:
                log.error("cannot be settled, the ledger stays shut; the outcome becomes unknown: %s", task_ids)
                raise
            clock.sleep(0.5)


def _settled(claim: Claim, settlement: Settlement, *, taken: bool) -> DeliveryOutcome:
    if not taken:
        return _outcome(claim, None, "settled late: somebody else holds the task")
    words = outcome_words(
        settlement.verdict, settlement.status, settlement.state, due_at=settlement.due_at, attempt=claim.attempt
    )
    return _outcome(claim, settlement.state, words, settlement.due_at)


def _outcome(claim: Claim, state: TaskState | None, words: str, due_at: datetime | None = None) -> DeliveryOutcome:
    task = claim.task
    return DeliveryOutcome(
        task_id=task.id, state=state, due_at=due_at, words=words, rule=task.rule, attempt=claim.attempt
    )


# -- in words ----------------------------------------------------------------------------------------------------------

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
    """Return verdict, status, its meaning and the next state in one text without personal data."""
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


#: What a pause that begins with an answer means for an operator.
_PAUSED: Final[Mapping[PauseKind | None, str]] = {
    PauseKind.ANSWER: "it does not take our credential, or its URL is wrong",
    PauseKind.BREAKER: "tries in a row failed",
    PauseKind.ASKED: "it got too many requests",
}


def log_pause(pause: ProviderState) -> None:
    """Log that a provider is paused: until when and, in words of Leadwire's own, why.

    The provider's own text may hold personal data and stays in the ledger.
    """
    until = instant(pause.paused_until_at) if pause.paused_until_at else "it is resumed"
    status = re.match(r"[1-5][0-9]{2}\b", pause.reason or "")
    why = f"{status[0]}, {_PAUSED[pause.kind]}" if status else _PAUSED[pause.kind]
    log.error("%s is left alone until %s (%s); its tasks wait, see `leadwire tasks`", pause.name, until, why)

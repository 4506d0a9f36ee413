"""Look up tasks of unknown outcome at their provider, before anything is sent again.

Such a task waits in the ledger as a `PendingReconciliation`. There is one `Reconciler` for each provider, so that an
unreachable one does not delay the other. Several workers may reconcile at once: each pending task is claimed by one process,
and only the process that still holds it may write the result. `worker/retry.py` decides what follows a look-up, the provider's
own module what an answer proves.

One listing serves all tasks that it would show, so that many pending tasks cost few requests (after a worker was killed, or a
provider hung). After two listings without any answer, or one answer that asks to stop, the remaining tasks of the round are
postponed without a request. While a provider is paused it is not asked at all.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Final

from rules.engine import correlation_tag
from rules.vocabulary import ProviderName, TaskState, Verdict
from worker.clock import Clock, awake_seconds
from worker.context import WorkerContext
from worker.delivery import log_pause
from worker.http import HttpClient
from worker.ledger import Ledger, PauseKind, PendingReconciliation, Settlement
from worker.providers import (
    Answered,
    CannotTell,
    ListingProgress,
    LookupTarget,
    NextPage,
    Provider,
    ProviderRequest,
    Sent,
    TaskAbsent,
    TaskFound,
    WholeListing,
)
from worker.providers.answers import result_for, retry_not_before
from worker.retry import (
    LOOK_UP_POLICY,
    AttemptHistory,
    Hindrance,
    LookUpHistory,
    NextStep,
    after_look_up,
    hindrance_of,
)

log = logging.getLogger(__name__)

#: The total deadline of one request.
REQUEST_SECONDS: Final = 10.0
#: The total deadline of all look-ups of one round with their pages; no listing begins in its second half.
LOOK_UP_SECONDS: Final = 40.0
#: How long a pending task is held meanwhile: longer than both together.
HOLD: Final = timedelta(seconds=60)
#: How many pending tasks are taken at once.
BATCH: Final = 100
#: So many listings in a row without any answer, and the rest of what was taken counts as asked.
SILENT_LIMIT: Final = 2
#: Tasks whose attempts began within this are looked for in one listing; its window covers them all.
TOGETHER: Final = timedelta(minutes=10)
#: A task counts as absent only when the clock has not leapt since its attempt began, or for so long: longer than any attempt
#: takes.
STEADY_SECONDS: Final = 60.0
#: Two clocks that drift apart by less between two looks are both right.
DRIFT_SECONDS: Final = 1.0
#: While a request waits for its place in line it looks so often whether the process ends.
SLICE_SECONDS: Final = 0.2
#: A place that is further away is not waited for to the end: no line is believed to be so long.
LONGEST_SECONDS: Final = 300.0

_FORBIDDEN: Final = 403

#: Pending tasks that one listing tells of.
Group = list[tuple[PendingReconciliation, LookupTarget]]


class ThrottledClient:
    """Sends look-ups and polls to one provider within its rate limit.

    `charge` reserves a slot of the rate and returns its moment; `is_over` returns whether the process is shutting down. A slot
    that is far ahead is kept until it comes, so that waiting does not make the line longer. An answer that asks for a pause
    pauses the provider, as it does for an attempt.
    """

    def __init__(
        self,
        ledger: Ledger,
        provider: Provider,
        http_client: HttpClient,
        *,
        clock: Clock,
        charge: Callable[[datetime], datetime],
        is_over: Callable[[], bool],
    ) -> None:
        self._ledger = ledger
        self._provider = provider
        self._http_client = http_client
        self._clock = clock
        self._charge = charge
        self._is_over = is_over
        self._place_seconds: float | None = None

    def wait(self, patience_seconds: float) -> bool:
        """Wait for a slot. False when it is more than `patience_seconds` away, at shutdown, or when the provider is paused.

        The slot is kept for the next request.
        """
        clock = self._clock
        if self._place_seconds is None:
            now = clock.now()
            away = (self._charge(now) - now).total_seconds()
            self._place_seconds = clock.awake_seconds() + min(max(away, 0.0), LONGEST_SECONDS)
        if self._place_seconds - clock.awake_seconds() > patience_seconds:
            return False
        while (left_seconds := self._place_seconds - clock.awake_seconds()) > 0 and not self._is_over():
            clock.sleep(min(left_seconds, SLICE_SECONDS))
        return not self._is_over() and not self._is_paused()

    @property
    def place_at(self) -> datetime:
        """Return when the reserved slot comes; now when there is none or it has come."""
        now, seconds = self._clock.now(), self._clock.awake_seconds()
        return now + timedelta(seconds=max(0.0, (self._place_seconds or seconds) - seconds))

    def ask(self, request: ProviderRequest, deadline_seconds: float) -> tuple[Sent, Hindrance | None]:
        """Send a request; return the response and what hindered it, if that is temporary. Charges a slot if none is reserved."""
        asked_at = self._clock.now()
        if self._place_seconds is None:
            self._charge(asked_at)
        self._place_seconds = None
        sent = self._http_client.send(request, deadline_seconds=deadline_seconds)
        now = self._clock.now()
        if not isinstance(sent, Answered):
            return sent, hindrance_of(None, None, now)
        hindrance = hindrance_of(sent.status, retry_not_before(sent.headers.get("retry-after"), now), now)
        if sent.status == _FORBIDDEN and self._is_let_in(asked_at, deadline_seconds):
            return sent, None
        if hindrance is not None and hindrance.pause_until_at is not None:
            kind = PauseKind.ASKED if hindrance.pause_asked else PauseKind.ANSWER
            reason = f"{sent.status} was its answer to a question about earlier tasks"
            began = self._ledger.limits.pause_on_answer(
                self._provider.name, kind, hindrance.pause_until_at, reason, asked_at, now
            )
            if began is not None:
                log_pause(began)
        return sent, hindrance

    def _is_let_in(self, now: datetime, deadline_seconds: float) -> bool:
        """Whether the provider takes our credential: then a 403 is about this request alone."""
        self._charge(now)
        probed = self._http_client.send(self._provider.probe_request(), deadline_seconds=deadline_seconds)
        return isinstance(probed, Answered) and probed.status < 300  # noqa: PLR2004 - any success

    def _is_paused(self) -> bool:
        now, name = self._clock.now(), self._provider.name
        return any(
            state.name is name and (state.paused_until_at or now) > now for state in self._ledger.limits.states()
        )


class ClockSteadiness:
    """Measures for how long the wall clock has agreed with the monotonic clock; people and time servers may set it."""

    def __init__(self, now: Callable[[], datetime], awake: Callable[[], float] = awake_seconds) -> None:
        self._now = now
        self._awake = awake
        self._apart_seconds = now().timestamp() - awake()
        self._since_seconds = awake()

    def seconds(self) -> float:
        """Return for how many seconds no jump was seen. Call it often: a jump is noticed only by a call."""
        seconds = self._awake()
        apart_seconds = self._now().timestamp() - seconds
        if abs(apart_seconds - self._apart_seconds) > DRIFT_SECONDS:
            self._since_seconds = seconds
        self._apart_seconds = apart_seconds
        return seconds - self._since_seconds


class Reconciler:
    """Looks up the pending tasks of one provider.

    `charge` counts a request against the provider's rate and returns the moment of its slot. `rest_seconds` is the least pause
    between two pages of one listing. Without `steadiness` the clock is assumed to be steady.
    """

    def __init__(
        self,
        ledger: Ledger,
        provider: Provider,
        http_client: HttpClient,
        *,
        clock: Clock,
        closing: threading.Event | None = None,
        charge: Callable[[datetime], datetime] = lambda now: now,
        rest_seconds: float = 0.0,
        steadiness: ClockSteadiness | None = None,
    ) -> None:
        self.name = provider.name
        self._ledger = ledger
        self._provider = provider
        self._clock = clock
        self._closing = closing or threading.Event()
        is_over = self._closing.is_set
        self._client = ThrottledClient(ledger, provider, http_client, clock=clock, charge=charge, is_over=is_over)
        self._rest_seconds = rest_seconds
        self._steadiness = steadiness
        self._query_works = False

    def once(self) -> int:
        """Look up what is due now; return the number of pending tasks taken. Raises LedgerError."""
        self._is_steady(timedelta())  # looks at the clocks in every round
        pending = self._ledger.reconciliation.claim(self._provider.name, self._clock.now(), HOLD, BATCH)
        end_seconds = self._clock.awake_seconds() + LOOK_UP_SECONDS
        begin_by_seconds = end_seconds - LOOK_UP_SECONDS / 2
        silent = 0
        for group in self._groups(pending):
            if silent < SILENT_LIMIT:
                left_seconds = begin_by_seconds - self._clock.awake_seconds()
                if self._closing.is_set() or left_seconds <= 0 or not self._client.wait(left_seconds):
                    self._let_go(group)
                    continue
                asked_at = self._clock.now()
                listing, held = self._list(group, end_seconds)
                silent += _silence(listing)
            if listing is None:
                self._let_go(group)
                continue
            if isinstance(listing, WholeListing) and listing.query_works:
                self._remember_form(group[0][0], asked_at)
            for each, sought in group:
                self._conclude(each, result_for(listing, held, sought), asked_at)
        return len(pending)

    def _groups(self, pending: Sequence[PendingReconciliation]) -> list[Group]:
        """Return the tasks by the listing that tells of them; those that no listing can tell of are concluded."""
        open_: dict[Hashable, list[Group]] = {}
        for each in sorted(pending, key=lambda each: each.began_at):
            sought = LookupTarget(
                task=each.task, tag=correlation_tag(each.task.key), began_at=each.began_at, ended_at=each.ended_at
            )
            listing = self._provider.listing_key(sought)
            if isinstance(listing, CannotTell):
                self._conclude(each, listing, self._clock.now())
                continue
            groups = open_.setdefault(listing, [])
            if not groups or each.began_at - groups[-1][0][0].began_at > TOGETHER:
                groups.append([])
            groups[-1].append((each, sought))
        return [group for groups in open_.values() for group in groups]

    def _list(self, group: Group, end_seconds: float) -> tuple[WholeListing | CannotTell | None, Mapping[str, str]]:
        """Read a listing page by page; return what it came to (None: the process ends) and what was found on its pages."""
        sought = [each for _, each in group]
        page, seen = 1, ListingProgress()
        while not self._closing.is_set():
            left_seconds = end_seconds - self._clock.awake_seconds()
            if left_seconds <= 0:
                why = f"it could not be read within {LOOK_UP_SECONDS:g} s"
                return CannotTell(reason=why), seen.held
            request = self._provider.listing_request(sought, page)
            sent, hindrance = self._client.ask(request, min(left_seconds, REQUEST_SECONDS))
            listing = self._provider.read_listing(sent, sought, page, seen, query_works=group[0][0].query_works)
            if hindrance is not None and isinstance(listing, CannotTell):
                listing = replace(listing, passes=True, retry_after_at=hindrance.retry_after_at)
            if not isinstance(listing, NextPage):
                return listing, listing.held if isinstance(listing, WholeListing) else seen.held
            page, seen = listing.page, listing.seen
            if self._rest_seconds:
                self._closing.wait(self._rest_seconds)
        return None, seen.held

    def _let_go(self, group: Group) -> None:
        """Leave tasks to whoever has time for them, when the place in line that is kept has come."""
        for each, _ in group:
            self._ledger.reconciliation.postpone(each, self._client.place_at, failed=False)

    def _conclude(
        self, pending: PendingReconciliation, outcome: TaskFound | TaskAbsent | CannotTell, asked_at: datetime
    ) -> None:
        """Write down what a look-up that began at `asked_at` came to."""
        now, task = self._clock.now(), pending.task
        if isinstance(outcome, TaskAbsent) and not self._is_steady(now - pending.began_at):
            self._ledger.reconciliation.postpone(pending, now + LOOK_UP_POLICY.apart, failed=False)
            return
        step = after_look_up(
            outcome,
            LookUpHistory(ended_at=pending.ended_at, failed=pending.look_ups, absent_at=pending.absent_at),
            task.retry,
            AttemptHistory(attempt=task.attempts, first_attempt_at=task.first_attempt_at or now),
            task.if_unsure,
            asked_at=asked_at,
            now=now,
        )
        if step.state is TaskState.UNKNOWN and step.due_at is not None:
            absent_at = asked_at if isinstance(outcome, TaskAbsent) and step.counted else None
            failed = isinstance(outcome, CannotTell) and step.counted
            self._ledger.reconciliation.postpone(pending, step.due_at, failed=failed, absent_at=absent_at)
            return
        if self._ledger.reconciliation.resolve(pending, self._settlement(pending, outcome, step), now):
            self._log(pending, outcome, step)

    def _settlement(
        self, pending: PendingReconciliation, outcome: TaskFound | TaskAbsent | CannotTell, step: NextStep
    ) -> Settlement:
        reason = step.reason
        if step.state is TaskState.UNKNOWN:
            reason = _for_a_person(pending, step.reason or "no look-up could tell", self._provider.name)
        return Settlement(
            verdict=Verdict.DELIVERED if isinstance(outcome, TaskFound) else Verdict.UNKNOWN,
            state=step.state,
            due_at=None if step.due_at is None else max(step.due_at, pending.task.due_at),
            external_id=outcome.external_id if isinstance(outcome, TaskFound) else None,
            reason=reason,
        )

    def _log(
        self, pending: PendingReconciliation, outcome: TaskFound | TaskAbsent | CannotTell, step: NextStep
    ) -> None:
        name, task_id = self._provider.name, pending.task.id
        match step.state:
            case TaskState.UNKNOWN:
                why = outcome.reason if isinstance(outcome, CannotTell) else step.reason
                log.warning(
                    "task %s cannot be looked up at %s (%s): a person decides, with leadwire settle", task_id, name, why
                )
            case TaskState.DELIVERED:
                log.info("task %s was looked up at %s: it is there, and delivered", task_id, name)
            case TaskState.WAITING if isinstance(outcome, TaskAbsent):
                log.info("task %s was looked up at %s twice: it is not there, and sent again", task_id, name)
            case TaskState.WAITING:
                log.info("task %s cannot be looked up at %s, and is sent again as its rule says", task_id, name)
            case _:
                log.info("task %s was looked up at %s: it is %s", task_id, name, step.state)

    def _remember_form(self, pending: PendingReconciliation, now: datetime) -> None:
        if not (self._query_works or pending.query_works):
            self._ledger.reconciliation.note_query_works(self._provider.name, now)
        self._query_works = True

    def _is_steady(self, since_attempt: timedelta) -> bool:
        """Whether what the ledger says of an attempt that began so long ago can be trusted.

        After a leap of the clock its lease may have seemed to end early, and the moment of its end may be wrong. Then a
        request may still be on its way, and what is absent may be made yet.
        """
        if self._steadiness is None:
            return True
        is_recent = timedelta() <= since_attempt < timedelta(seconds=STEADY_SECONDS)
        return self._steadiness.seconds() >= (since_attempt.total_seconds() if is_recent else STEADY_SECONDS)


def reconcilers(context: WorkerContext) -> list[Reconciler]:
    """Return one reconciler for each provider of a worker."""
    found = []
    for name, client in context.clients.items():
        limits = context.limits_for(client)
        reconciler = Reconciler(
            context.ledger,
            client.provider,
            client.transport,
            clock=context.clock,
            closing=context.closing,
            steadiness=ClockSteadiness(context.clock.now, context.clock.awake_seconds),
            charge=partial(context.ledger.limits.charge, name, limits),
            rest_seconds=1 / limits.rate_per_second if limits.rate_per_second else 0.0,
        )
        found.append(reconciler)
    return found


def _silence(listing: WholeListing | CannotTell | None) -> int:
    """Return how much nearer a listing brings the moment from which nobody else is asked in this round."""
    if not isinstance(listing, CannotTell):
        return 0
    if listing.answered:
        return SILENT_LIMIT if listing.passes else 0
    return 1


def _for_a_person(pending: PendingReconciliation, why: str, provider: ProviderName) -> str:
    """Return the reason of a task that waits for a person, with what to do."""
    task_id = pending.task.id
    return (
        f"It may have been executed, and Leadwire cannot tell: {why} (asked {pending.look_ups + 1} times). Look for its mark "
        f"{correlation_tag(pending.task.key)} at {provider}, then: leadwire settle {task_id} --delivered [EXTERNAL_ID] | "
        f"leadwire settle {task_id} --not-delivered"
    )

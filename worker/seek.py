"""What may have been executed is looked up at its provider, before anything is sent again.

One thread for each provider, so that a dead one never delays the other. Several workers seek side by side: a doubt is taken
from the ledger by one at a time, and what a look-up comes to is written only by who still holds it. What follows a look-up
is decided by `worker/retry.py`, what an answer proves by the provider's own file.

While a provider is paused, by whatever, nobody asks it: the doubts wait for the end of the pause.

One listing answers for all tasks that it holds if they were made, so that many doubts at once (a worker that was killed, a
provider that hung) cost few requests. A provider that does not answer is not asked for each listing in turn: after two
without any answer, or one that says that it takes no questions now, whatever else was taken counts as asked.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Final

from rules.engine import correlation_tag
from rules.vocabulary import LedgerError, ProviderName, TaskState, Verdict
from worker.asking import Sender, ThrottledClient
from worker.awake import Steadiness
from worker.context import Clock, WorkerContext
from worker.ledger import Ledger, Limits, PendingReconciliation, Settlement
from worker.providers import (
    CannotTell,
    ListingProgress,
    LookupTarget,
    NextPage,
    Provider,
    TaskAbsent,
    TaskFound,
    WholeListing,
)
from worker.providers.answers import result_for
from worker.retry import LOOKING_UP, History, LookingUp, LookUps, NextStep, after_look_up

log = logging.getLogger(__name__)

#: How many doubts are taken at once.
BATCH: Final = 100
#: So many listings in a row without any answer, and the rest of what was taken counts as asked.
SILENT_LIMIT: Final = 2
#: Tasks whose attempts began within this are looked for in one listing; its window covers them all.
TOGETHER: Final = timedelta(minutes=10)


#: Tasks in doubt that one listing tells of.
Group = list[tuple[PendingReconciliation, LookupTarget]]


#: A task counts as absent only when the clock has not leapt since its attempt began, or for so long: longer than any attempt
#: takes.
STEADY_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long things may take and when they are done again.

    `request_seconds` is the total deadline of one request, `look_up_seconds` that of all look-ups of one round with their
    pages, of which no listing begins in the second half; `hold` is how long a doubt is held meanwhile, so it is longer than
    both together.
    """

    period_seconds: float = 0.5
    request_seconds: float = 10.0
    look_up_seconds: float = 40.0
    hold: timedelta = timedelta(seconds=60)
    plan: LookingUp = LOOKING_UP


TIMING: Final = Timing()


class Reconciler:
    """The thread of one worker process that looks tasks up at one provider.

    `charge` counts a request against the provider's rate and returns its place in line, for which each listing waits;
    `rest_seconds` lie between two of its pages at least.
    """

    def __init__(
        self,
        ledger: Ledger,
        provider: Provider,
        sender: Sender,
        *,
        clock: Clock,
        timing: Timing = TIMING,
        closing: threading.Event | None = None,
        charge: Callable[[datetime], datetime] = lambda now: now,
        rest_seconds: float = 0.0,
        steadiness: Steadiness | None = None,
    ) -> None:
        self._ledger = ledger
        self._provider = provider
        self._clock = clock
        self._timing = timing
        self._closing = closing or threading.Event()
        self._asking = ThrottledClient(ledger, provider, sender, clock=clock, charge=charge, is_over=self._is_over)
        self._rest_seconds = rest_seconds
        self._steadiness = steadiness
        self._form_works = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"seek-{provider.name}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the request under way."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=self._timing.request_seconds + 5)

    def _run(self) -> None:
        while not self._stopping.wait(self._timing.period_seconds):
            try:
                while not self._is_over() and self.once():
                    pass
            except LedgerError as error:
                log.warning("look-ups at %s cannot use the ledger now: %s", self._provider.name, error)
            except Exception:
                log.exception("a look-up at %s failed; it is looked up again", self._provider.name)

    def once(self) -> int:
        """Do what is due now; return how many doubts that was."""
        self._is_steady(timedelta())  # looks at the clocks in every round
        doubts = self._ledger.reconciliation.claim(self._provider.name, self._clock.now(), self._timing.hold, BATCH)
        end_seconds = self._clock.awake_seconds() + self._timing.look_up_seconds
        begin_by_seconds = end_seconds - self._timing.look_up_seconds / 2
        silent = 0
        for group in self._groups(doubts):
            if silent < SILENT_LIMIT:
                left_seconds = begin_by_seconds - self._clock.awake_seconds()
                if self._is_over() or left_seconds <= 0 or not self._asking.wait(left_seconds):
                    self._let_go(group)
                    continue
                asked_at = self._clock.now()
                listing, held = self._list(group, end_seconds)
                silent += _silence(listing)
            if listing is None:
                self._let_go(group)
                continue
            if isinstance(listing, WholeListing) and listing.form_works:
                self._remember_form(group[0][0], asked_at)
            for doubt, sought in group:
                self._conclude(doubt, result_for(listing, held, sought), asked_at)
        return len(doubts)

    def _groups(self, doubts: Sequence[PendingReconciliation]) -> list[Group]:
        """Return the doubts by the listing that tells of them; those that no listing can tell of are concluded."""
        open_: dict[Hashable, list[Group]] = {}
        for doubt in sorted(doubts, key=lambda doubt: doubt.began_at):
            sought = LookupTarget(
                task=doubt.task, mark=correlation_tag(doubt.task.key), began_at=doubt.began_at, ended_at=doubt.ended_at
            )
            listing = self._provider.listing_key(sought)
            if isinstance(listing, CannotTell):
                self._conclude(doubt, listing, self._clock.now())
                continue
            groups = open_.setdefault(listing, [])
            if not groups or doubt.began_at - groups[-1][0][0].began_at > TOGETHER:
                groups.append([])
            groups[-1].append((doubt, sought))
        return [group for groups in open_.values() for group in groups]

    def _list(self, group: Group, end_seconds: float) -> tuple[WholeListing | CannotTell | None, Mapping[str, str]]:
        """Read a listing page by page; return what it came to (None: the process ends) and what was found on its pages."""
        sought = [each for _, each in group]
        page, seen = 1, ListingProgress()
        while not self._is_over():
            left_seconds = end_seconds - self._clock.awake_seconds()
            if left_seconds <= 0:
                why = f"it could not be read within {self._timing.look_up_seconds:g} s"
                return CannotTell(reason=why), seen.held
            request = self._provider.listing_request(sought, page)
            sent, hindrance = self._asking.ask(request, min(left_seconds, self._timing.request_seconds))
            listing = self._provider.read_listing(sent, sought, page, seen, form_works=group[0][0].form_works)
            if hindrance is not None and isinstance(listing, CannotTell):
                listing = replace(listing, passes=True, retry_after_at=hindrance.retry_after_at)
            if not isinstance(listing, NextPage):
                return listing, listing.held if isinstance(listing, WholeListing) else seen.held
            page, seen = listing.page, listing.seen
            if self._rest_seconds:
                self._stopping.wait(self._rest_seconds)
        return None, seen.held

    def _let_go(self, group: Group) -> None:
        """Leave doubts to whoever has time for them, when the place in line that is kept has come."""
        for doubt, _ in group:
            self._ledger.reconciliation.postpone(doubt, self._asking.place_at, failed=False)

    def _conclude(
        self, doubt: PendingReconciliation, outcome: TaskFound | TaskAbsent | CannotTell, asked_at: datetime
    ) -> None:
        """Write down what a look-up that began then came to."""
        now = self._clock.now()
        task = doubt.task
        if isinstance(outcome, TaskAbsent) and not self._is_steady(now - doubt.began_at):
            self._ledger.reconciliation.postpone(doubt, now + self._timing.plan.apart, failed=False)
            return
        step = after_look_up(
            outcome,
            LookUps(ended_at=doubt.ended_at, failed=doubt.look_ups, absent_at=doubt.absent_at),
            task.retry,
            History(attempt=task.attempts, first_attempt_at=task.first_attempt_at or now),
            task.if_unsure,
            asked_at=asked_at,
            now=now,
            plan=self._timing.plan,
        )
        if step.state is TaskState.UNKNOWN and step.due_at is not None:
            absent_at = asked_at if isinstance(outcome, TaskAbsent) and step.counted else None
            failed = isinstance(outcome, CannotTell) and step.counted
            self._ledger.reconciliation.postpone(doubt, step.due_at, failed=failed, absent_at=absent_at)
            return
        if self._ledger.reconciliation.resolve(doubt, self._settlement(doubt, outcome, step), now):
            self._say(doubt, outcome, step)

    def _settlement(
        self, doubt: PendingReconciliation, outcome: TaskFound | TaskAbsent | CannotTell, step: NextStep
    ) -> Settlement:
        reason = step.reason
        if step.state is TaskState.UNKNOWN:
            reason = _for_a_person(doubt, step.reason or "no look-up could tell", self._provider.name)
        return Settlement(
            verdict=Verdict.DELIVERED if isinstance(outcome, TaskFound) else Verdict.UNKNOWN,
            state=step.state,
            due_at=None if step.due_at is None else max(step.due_at, doubt.task.due_at),
            external_id=outcome.external_id if isinstance(outcome, TaskFound) else None,
            reason=reason,
        )

    def _say(self, doubt: PendingReconciliation, outcome: TaskFound | TaskAbsent | CannotTell, step: NextStep) -> None:
        name, task_id = self._provider.name, doubt.task.id
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

    def _remember_form(self, doubt: PendingReconciliation, now: datetime) -> None:
        if not (self._form_works or doubt.form_works):
            self._ledger.reconciliation.note_query_works(self._provider.name, now)
        self._form_works = True

    def _is_steady(self, since_attempt: timedelta) -> bool:
        """Whether what the ledger says of an attempt that began so long ago can be trusted.

        After a leap of the clock its lease may have seemed to end early, and the moment of its end may be wrong. Then a
        request may still be on its way, and what is absent may be made yet.
        """
        if self._steadiness is None:
            return True
        is_recent = timedelta() <= since_attempt < timedelta(seconds=STEADY_SECONDS)
        return self._steadiness.seconds() >= (since_attempt.total_seconds() if is_recent else STEADY_SECONDS)

    def _is_over(self) -> bool:
        return self._stopping.is_set() or self._closing.is_set()


def seekers(context: WorkerContext, timing: Timing = TIMING) -> list[Reconciler]:
    """Return the seeking threads of a worker, one for each provider."""
    return [_seeker(context, name, timing) for name in context.clients]


def _seeker(context: WorkerContext, name: ProviderName, timing: Timing) -> Reconciler:
    client = context.clients[name]
    limits = context.limits.get(name, Limits())
    return Reconciler(
        context.ledger,
        client.provider,
        client.transport,
        clock=context.clock,
        timing=timing,
        closing=context.closing,
        steadiness=Steadiness(context.clock.now, context.clock.awake_seconds),
        charge=partial(context.ledger.limits.charge, name, limits),
        rest_seconds=1 / limits.rate_per_second if limits.rate_per_second else 0.0,
    )


def _silence(listing: WholeListing | CannotTell | None) -> int:
    """Return how much nearer a listing brings the moment from which nobody else is asked in this round."""
    if not isinstance(listing, CannotTell):
        return 0
    if listing.answered:
        return SILENT_LIMIT if listing.passes else 0
    return 1


def _for_a_person(doubt: PendingReconciliation, why: str, provider: ProviderName) -> str:
    """Return the reason of a task that waits for a person, with what to do."""
    task_id = doubt.task.id
    return (
        f"It may have been executed, and Leadwire cannot tell: {why} (asked {doubt.look_ups + 1} times). Look for its mark "
        f"{correlation_tag(doubt.task.key)} at {provider}, then: leadwire settle {task_id} --delivered [EXTERNAL_ID] | "
        f"leadwire settle {task_id} --not-delivered"
    )

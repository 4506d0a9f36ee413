"""Background work of a worker process, each kind on a thread of its own.

- `Sweeper` dispatches due work, including that of lost messages, and ends the leases of dead workers.
- `Reconciler` (`worker/reconciler.py`, one for each provider) looks up tasks of unknown outcome.
- `FollowUps` plans the tasks that rules want when a task ends: `on_failure` and `on_outcome`.
- `OutcomePoller` asks Mindhunters what became of delivered tasks.
- `Watchdog` reports the worker's health, and ends a worker that takes no messages any more.

`BackgroundWork` starts and stops all but the watchdog. Several workers may do all this at once: the ledger hands each item to
one of them.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final

from rules.engine import Ended, react
from rules.rule_set import Action, RuleSet
from rules.vocabulary import FAILURE, LedgerBusyError, LedgerError, Problem, ProviderName, Task, TaskState
from worker.broker import EVENTS_QUEUE, QUEUE_OF, QueueDepths
from worker.clock import awake_seconds, utc_now
from worker.context import WorkerContext
from worker.delivery import DeliveryOutcome
from worker.ledger import Poll, Reaction
from worker.ledger.follow_ups import TRIES_LIMIT
from worker.providers import CannotTell, ReportsOutcomes
from worker.publisher import DEPTH_LIMIT
from worker.reconciler import Reconciler, ThrottledClient, reconcilers
from worker.rule_sets import WORKER_SECTIONS, KeptRuleSets
from worker.runtime import PERIOD_SECONDS, STOP_SECONDS, HealthReport, PeriodicThread

log = logging.getLogger(__name__)


class BackgroundWork:
    """All background threads of one worker process but the watchdog.

    `show` is called with planned follow-ups for which no message is published now, so that Flower can show them.
    """

    def __init__(
        self, context: WorkerContext, depths: QueueDepths, show: Callable[[Sequence[Task]], None] = lambda _: None
    ) -> None:
        self._context = context
        self._depths = depths
        follow_ups, poller = FollowUps(context, show), OutcomePoller(context)
        self._follow_ups_thread = PeriodicThread("the follow-ups", follow_ups.work)
        self.threads = [
            PeriodicThread("the sweeper", Sweeper(context, depths).work),
            self._follow_ups_thread,
            *(
                PeriodicThread(f"the reconciler of {each.name}", partial(_reconcile, each))
                for each in reconcilers(context)
            ),
        ]
        if poller.is_wanted():
            self.threads.append(PeriodicThread("the outcome poller", poller.work))

    def start(self) -> None:
        """Start all threads."""
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        """Stop all threads after their current rounds; marks the worker as shutting down, so that attempts give up early."""
        self._context.closing.set()
        for patience_seconds in (0.0, STOP_SECONDS):  # all are told to end before any is waited for
            for thread in self.threads:
                thread.stop(patience_seconds)
        self._depths.close()

    def note(self, outcomes: Iterable[DeliveryOutcome]) -> None:
        """Start a round of follow-ups at once when one of these outcomes is a task that ended in failure."""
        if any(outcome.state in {TaskState.DEAD, TaskState.SUPPRESSED} for outcome in outcomes):
            self._follow_ups_thread.wake()


def _reconcile(reconciler: Reconciler) -> float:
    return 0.0 if reconciler.once() else PERIOD_SECONDS


# -- sweeping ----------------------------------------------------------------------------------------------------------

#: The next round after one that sent as much as there was room for: what is left need not wait for a period.
NEXT_SWEEP_SECONDS: Final = 0.1
#: Of a provider that holds its whole bulkhead, or has as many requests as it may have at once, so many tasks are dispatched in
#: a round all the same: else newcomers, which are dispatched or claimed when they are planned, would take every place that
#: comes free, and the oldest would wait for ever.
LEAST_SHARE: Final = 2
#: Events found at once; they travel a hundred to a message.
EVENTS_LIMIT: Final = 1000
#: How long a message is given before it counts as lost: short when its queue is empty, long while others stand before it.
GRACE_EMPTY: Final = timedelta(seconds=5)
GRACE_WAITING: Final = timedelta(seconds=30)
#: How often expired leases are looked for.
LEASES_SECONDS: Final = 5.0


class Sweeper:
    """Finds due work, lost messages and leases of dead processes in the ledger, and dispatches or releases them.

    Each row is taken by compare-and-set, so several sweepers do no harm. While the broker cannot be reached, or enough messages
    wait there, nothing is dispatched.
    """

    def __init__(self, context: WorkerContext, depths: QueueDepths) -> None:
        self._context = context
        self._depths = depths
        self._leases_seconds = 0.0
        self._more = False

    def work(self) -> float:
        """Do one round (tasks only, when the last round left some); return the seconds until the next one."""
        is_next, self._more = self._more, False
        self._more = self._dispatch_more() if is_next else self.once()
        return NEXT_SWEEP_SECONDS if self._more else PERIOD_SECONDS

    def once(self) -> bool:
        """Do a whole round; return whether due tasks were left only because the queues are full."""
        context, clock = self._context, self._context.clock
        now = clock.now()
        if clock.awake_seconds() - self._leases_seconds >= LEASES_SECONDS:
            self._leases_seconds = clock.awake_seconds()
            for task_id in context.ledger.tasks.expire_leases(now):
                log.warning(
                    "task %s: its lease ended without an outcome; it is unknown whether it was executed", task_id
                )
        depths = self._depths.read()
        if depths is None:
            return False
        more = self._dispatch_tasks(depths)
        if depths[EVENTS_QUEUE] < DEPTH_LIMIT:
            grace = GRACE_WAITING if depths[EVENTS_QUEUE] else GRACE_EMPTY
            context.publisher.events(context.ledger.inbox.dispatch_overdue(now, grace, EVENTS_LIMIT))
        return more

    def _dispatch_more(self) -> bool:
        depths = self._depths.read()
        return depths is not None and self._dispatch_tasks(depths)

    def _dispatch_tasks(self, depths: Mapping[str, int]) -> bool:
        context = self._context
        room = {name: max(0, min(self._share(name), DEPTH_LIMIT - depths[queue])) for name, queue in QUEUE_OF.items()}
        idle = {name: limit for name, limit in room.items() if limit and not depths[QUEUE_OF[name]]}
        busy = {name: limit for name, limit in room.items() if limit and name not in idle}
        more = False
        for limits, grace in ((idle, GRACE_EMPTY), (busy, GRACE_WAITING)):
            if limits:
                due = context.ledger.tasks.dispatch_due(context.clock.now(), grace, limits)
                context.publisher.tasks(due)
                sent = Counter(task.provider for task in due)
                more = more or any(sent[name] == limit > LEAST_SHARE for name, limit in limits.items())
        return more and not context.publisher.is_failing

    def _share(self, name: ProviderName) -> int:
        """Return how many of a provider's tasks may be dispatched now: as its bulkhead is free, so that few are put back."""
        client = self._context.clients[name]
        if client.batch_size.full_until_seconds > self._context.clock.awake_seconds():
            return LEAST_SHARE
        return max(LEAST_SHARE, DEPTH_LIMIT * client.bulkhead.free // client.bulkhead.size)


# -- follow-ups --------------------------------------------------------------------------------------------------------

#: Ends taken at once.
ENDS_BATCH: Final = 20

_NO_REASON: Final = "no reason was recorded"


class FollowUps:
    """Plans the tasks that a rule wants when one of its tasks ends, using the rule set that planned the ended task.

    A reaction is inserted in the transaction that ends the task and deleted in the one that records the follow-ups: a worker
    that dies delays them by seconds and never loses or doubles them. A reaction that cannot be planned (its rule set or a
    variable is missing) is tried five times, then set aside with a note on the task. `show` is called with the tasks for which
    no message is published now.
    """

    def __init__(self, context: WorkerContext, show: Callable[[Sequence[Task]], None] = lambda _: None) -> None:
        self._context = context
        self._show = show
        self._sets = KeptRuleSets(context.ledger, context.rule_set, context.settings.environment, WORKER_SECTIONS)
        self._has_retried = False

    def work(self) -> float:
        """Do one round; return the seconds until the next one. The first round retries what was set aside."""
        if not self._has_retried:
            self.retry_set_aside()
            self._has_retried = True
        return 0.0 if self.once() == ENDS_BATCH else PERIOD_SECONDS

    def retry_set_aside(self) -> None:
        """Make reactions due again that were set aside: what was missing may be present in this process."""
        number = self._context.ledger.follow_ups.retry_set_aside(self._context.clock.now())
        if number:
            log.info("%s tasks have ended whose answer could not be planned before; it is tried again", number)

    def once(self) -> int:
        """Plan the follow-ups of noted ends; return how many ends were taken."""
        taken = self._context.ledger.follow_ups.claim(self._context.clock.now(), ENDS_BATCH)
        for reaction in taken:
            self._plan(reaction)
        return len(taken)

    def _plan(self, reaction: Reaction) -> None:
        context, task = self._context, reaction.task
        try:
            rule_set = self._sets.rule_set(task.rule_set)
            now = context.clock.now()
            planned, note = react(rule_set, reaction.event, _ended(reaction), reaction.trigger, now=now)
            due = context.ledger.follow_ups.record(reaction, planned, now, note)
        except LedgerBusyError:
            raise  # nothing is wrong with the follow-up: it is taken again
        except Exception as error:  # noqa: BLE001 - whatever it is, it concerns this end alone
            self._note_failure(reaction, error)
            return
        context.publisher.tasks(due)
        sent = {ref.id for ref in due}
        self._show([each for each in planned if each.id not in sent])
        names = ", ".join(each.name for each in planned) or "nothing"
        log.info("task %s of rule %s: on %s follows %s", task.id, task.rule, reaction.trigger, names)

    def _note_failure(self, reaction: Reaction, error: Exception) -> None:
        """Leave an end to its next try, or set it aside; the log gets no message that may quote a payload."""
        told = f": {error}" if isinstance(error, Problem) else ""
        task, trigger = reaction.task, reaction.trigger
        name = type(error).__name__
        if reaction.tries < TRIES_LIMIT:
            log.warning("task %s: what follows on %s cannot be planned yet (%s%s)", task.id, trigger, name, told)
            return
        log.error(
            "task %s: what follows on %s cannot be planned (%s%s); see leadwire show", task.id, trigger, name, told
        )
        self._context.ledger.follow_ups.set_aside(reaction, f"{name}: {error}", self._context.clock.now())


def _ended(reaction: Reaction) -> Ended:
    """Return what the templates of what follows may say of a task's end."""
    task = reaction.task
    outcome = None if reaction.trigger == FAILURE else reaction.trigger.partition(":")[2]
    return Ended(
        id=task.id,
        rule=task.rule,
        name=task.name,
        title=str(task.fields.get("title") or ""),
        reason=task.reason or _NO_REASON if outcome is None else f"{task.provider} says it has ended: {outcome}",
        status=reaction.status if outcome is None else None,
        outcome=outcome,
    )


# -- outcomes ----------------------------------------------------------------------------------------------------------

#: Tasks asked about in one round; each costs one short request.
POLLS_BATCH: Final = 10
#: The total deadline of one request.
POLL_SECONDS: Final = 10.0
#: The longest pause between two requests about one task, unless the setting says a longer one.
LONGEST_POLL_PAUSE: Final = timedelta(hours=1)
#: How often deliveries are looked for that no worker settled.
MISSED_SECONDS: Final = 60.0
#: How long a round waits for a place in the provider's bulkhead, and for one in its line.
BULKHEAD_PATIENCE_SECONDS: Final = 1.0
PLACE_PATIENCE_SECONDS: Final = 5.0
#: How long a provider is not asked that did not answer, or was out of service and did not say for how long.
REST_SECONDS: Final = 5.0


class OutcomePoller:
    """Polls Mindhunters, which sends no notifications, for what became of delivered tasks: within its rate, ever less often.

    Off unless `LEADWIRE_MINDHUNTERS_POLL` sets the first pause. A final status is recorded and starts the rule's follow-ups;
    any other status is recorded unchanged. After an inconclusive answer the task is polled again, until a week after its
    delivery, `due_at` or `expires_at`, whichever is latest. An answer that asks for a pause ends the round.
    """

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self._client = context.clients[ProviderName.MINDHUNTERS]
        self._first_pause = timedelta(seconds=context.settings.mindhunters_poll_seconds)
        self._missed_seconds: float | None = None
        self._rest_until_seconds = 0.0
        self._asking = ThrottledClient(
            context.ledger,
            self._client.provider,
            self._client.transport,
            clock=context.clock,
            charge=partial(context.ledger.limits.charge, ProviderName.MINDHUNTERS, context.limits_for(self._client)),
            is_over=context.closing.is_set,
        )

    def is_wanted(self) -> bool:
        """Whether the settings turn polling on; logs a warning when it is off and a rule needs it."""
        if not self._first_pause and waits_for_outcomes(self._context.rule_set):
            log.warning("rules have on_outcome, and nobody asks for outcomes: set LEADWIRE_MINDHUNTERS_POLL, to 60 say")
        return bool(self._first_pause)

    def work(self) -> float:
        """Do one round; return the seconds until the next one."""
        return 0.0 if self.once() == POLLS_BATCH else PERIOD_SECONDS

    def once(self) -> int:
        """Poll the tasks that are due; return how many were taken."""
        context, clock, name = self._context, self._context.clock, ProviderName.MINDHUNTERS
        now, seconds = clock.now(), clock.awake_seconds()
        if self._missed_seconds is None or seconds - self._missed_seconds >= MISSED_SECONDS:
            self._missed_seconds = seconds
            context.ledger.outcomes.poll_missed(name, now, now + self._first_pause)
        bulkhead, taken = self._client.bulkhead, 0
        while taken < POLLS_BATCH and clock.awake_seconds() >= self._rest_until_seconds:
            if not self._asking.wait(PLACE_PATIENCE_SECONDS) or not bulkhead.acquire(BULKHEAD_PATIENCE_SECONDS):
                break
            try:
                polls = context.ledger.outcomes.claim(name, clock.now(), self._pause, 1)
                if not polls or not self._ask(polls[0]):
                    return taken + len(polls)
            finally:
                bulkhead.release()
            taken += 1
        return taken

    def _ask(self, poll: Poll) -> bool:
        """Ask about one task; return whether the provider takes further requests now."""
        provider, clock = self._client.provider, self._context.clock
        assert isinstance(provider, ReportsOutcomes)
        sent, hindrance = self._asking.ask(provider.outcome_request(poll.external_id), POLL_SECONDS)
        told = provider.read_outcome(sent, poll.external_id)
        if isinstance(told, CannotTell):
            log.info("task %s: what became of it is not known (%s); asked again later", poll.task_id, told.reason)
        elif self._context.ledger.outcomes.record(poll, told.word, clock.now(), final=told.final) and told.final:
            log.info("task %s: %s says it is %s", poll.task_id, provider.name, told.word)
        if hindrance is None:
            return True
        wish = hindrance.retry_after_at - clock.now() if hindrance.retry_after_at else timedelta()
        self._rest_until_seconds = clock.awake_seconds() + max(REST_SECONDS, wish.total_seconds())
        return False

    def _pause(self, times: int) -> timedelta:
        """Return how long to wait after a task was asked about so often: twice as long each time."""
        return min(self._first_pause * (1 << min(times, 20)), max(self._first_pause, LONGEST_POLL_PAUSE))


def waits_for_outcomes(rule_set: RuleSet) -> bool:
    """Whether any rule of the set has `on_outcome`."""
    open_: list[Action] = [action for rule in rule_set.rules for action in rule.actions]
    while open_:
        action = open_.pop()
        if action.on_outcome:
            return True
        open_ += action.on_failure
    return False


# -- the worker's own health -------------------------------------------------------------------------------------------

REPORT_SECONDS: Final = 5.0
#: While something hinders the worker: that it is over shall be told soon.
HINDERED_REPORT_SECONDS: Final = 1.0
#: More than a lost message (30 s until the sweeper repeats it) and a slow attempt (30 s) explain.
DEAF_SECONDS: Final = 75.0
#: How long a deaf worker may take to end by itself.
ENDING_SECONDS: Final = 20.0


class Watchdog:
    """Writes the health report that probes read, and ends a worker that takes no messages, so that it is restarted.

    After a crash of the broker Celery was seen connected but taking no messages for good. A worker counts as deaf when it takes
    no message for `deaf_seconds` while work is due and messages wait. A slow provider, an idle hour, or a broker that is
    unreachable or full do not count.

    `depths` returns the number of messages in each queue, None while the broker cannot be reached; `oldest_due` returns since
    when the oldest work is due. `sign` is a file that the worker touches for every message it takes; `report` is the file for
    probes. `end` ends the process.
    """

    def __init__(
        self,
        depths: Callable[[], Mapping[str, int] | None],
        oldest_due: Callable[[], datetime | None],
        *,
        sign: Path,
        report: Path,
        end: Callable[[], None] | None = None,
        deaf_seconds: float = DEAF_SECONDS,
    ) -> None:
        self._depths = depths
        self._oldest_due = oldest_due
        self._sign = sign
        self._report = report
        self._end = end or self._end_process
        self._deaf_seconds = deaf_seconds
        self._taken: float | None = None
        self._still_since_seconds = awake_seconds()
        self._seen_waiting = False
        self._stopped = threading.Event()
        self._thread = PeriodicThread("the watchdog", self._work, period_seconds=HINDERED_REPORT_SECONDS)

    def start(self) -> None:
        """Start, after deleting files of an earlier process."""
        self._sign.unlink(missing_ok=True)
        self._report.unlink(missing_ok=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop and delete the report."""
        self._stopped.set()
        self._thread.stop(patience_seconds=5)
        self._report.unlink(missing_ok=True)

    def _work(self) -> float:
        try:
            works = self.once().works
        except OSError as error:
            log.warning("the report for probes cannot be written: %s", error)
            works = False
        return REPORT_SECONDS if works else HINDERED_REPORT_SECONDS

    def once(self) -> HealthReport:
        """Check once, write the report, and end the process when it is deaf."""
        hindered = self._hindered()
        if hindered is not None:
            self._taken = self._last_taken()
            self._still_since_seconds = awake_seconds()
            self._seen_waiting = False
        deaf = self._seen_waiting and awake_seconds() - self._still_since_seconds > self._deaf_seconds
        reason = "work is due, messages wait, and none is taken" if deaf else hindered or ""
        report = HealthReport(works=not reason, reason=reason)
        report.write(self._report)
        if deaf:
            log.error("%s: this worker ends, to be started afresh", reason)
            self._end()
        return report

    def _hindered(self) -> str | None:
        """Return what keeps the worker from its work, empty when nothing does; None when it stands still, for whatever cause."""
        taken = self._last_taken()
        if taken is None:
            return "it has not begun to take messages"
        waiting = self._depths()
        if waiting is None:
            return "the broker cannot be reached"
        try:
            oldest_at = self._oldest_due()
        except LedgerError as fault:
            return str(fault)
        if oldest_at is None or oldest_at > utc_now() or taken != self._taken:
            return ""
        self._seen_waiting = self._seen_waiting or any(waiting.values())
        return None

    def _last_taken(self) -> float | None:
        """Return when the last message was taken, or work began; None before that."""
        try:
            return self._sign.stat().st_mtime
        except FileNotFoundError:
            return None

    def _end_process(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        if not self._stopped.wait(ENDING_SECONDS):
            os._exit(1)

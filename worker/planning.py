"""Plan events: decide which tasks each one leads to, record them, and under load deliver them at once.

`process_events` is the body of the Celery task `process_event`. Planning is pure. Recording is one transaction that checks that
the event is still unplanned, so a duplicate message, or two workers with the same event, change nothing.

Under load most tasks get their first attempt within the message that plans them, without another message (`InlineDelivery`).
They are claimed in the transactions that insert them, and sent when the whole message is recorded, so that no event waits for
another event's provider.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Self

from rules.engine import decide
from rules.vocabulary import (
    PROVIDER_OF,
    EventState,
    LedgerBusyError,
    LedgerInDoubtError,
    Plan,
    Task,
    TaskState,
    TaskType,
)
from worker.context import ROWS_PER_WRITE, ProviderClient, WorkerContext
from worker.delivery import LEASE, DeliveryOutcome, note_full, send_claimed, undo_claim
from worker.ledger import Claim, ClaimTerms, NotClaimed, StoredEvent
from worker.publisher import SINGLE_DELIVERY_LIMIT

log = logging.getLogger(__name__)


@dataclass(slots=True)
class ProcessingSummary:
    """The result of one message of events: counts, and the tasks for which no message is published now.

    Those `quiet` tasks are due later, or ended during planning.
    """

    asked: int
    planned: int = 0
    ignored: int = 0
    tasks: int = 0
    quiet: list[Task] = field(default_factory=list)

    def __str__(self) -> str:
        """Return it in words, without anything personal."""
        return f"{self.planned} of {self.asked} events planned, {self.ignored} ignored, {self.tasks} tasks"


@dataclass(frozen=True, slots=True)
class InlineBatch:
    """Tasks of one type that were delivered within the message that planned them, and when that began."""

    type: TaskType
    outcomes: Sequence[DeliveryOutcome]
    began_at: datetime


#: Shows outcomes of tasks of one type at once; see `worker.delivery.Tell`.
TellOf = Callable[[TaskType, Sequence[DeliveryOutcome]], None]


def process_events(
    context: WorkerContext, event_ids: Sequence[str], tell: TellOf, ended: Callable[[InlineBatch], None]
) -> ProcessingSummary:
    """Plan these events. Publish the tasks that are due, or deliver them at once when there are many of one type.

    `tell` is called with outcomes as they come. `ended` is called with each batch delivered, also when this function raises.
    Events that were dispatched before are planned one at a time, because one of them may crash the process. Raises LedgerError
    when the ledger cannot be used; the sweeper dispatches again what was not recorded.
    """
    summary = ProcessingSummary(asked=len(event_ids))
    fresh, suspects = context.ledger.inbox.fresh_events(event_ids)
    _process(context, fresh, summary, tell, ended)
    # Only now: of what was claimed nothing may be unsent when one of these crashes the process.
    for event_id in suspects:
        suspect = context.ledger.inbox.events_to_process([event_id], context.clock.now())
        _process(context, suspect, summary, tell, ended)
    return summary


def _process(
    context: WorkerContext,
    events: Sequence[StoredEvent],
    summary: ProcessingSummary,
    tell: TellOf,
    ended: Callable[[InlineBatch], None],
) -> None:
    """Plan these events, then record them, then send what was claimed with them."""
    plans = [plan for event in events if (plan := _plan(context, event)) is not None]
    with InlineDelivery(context) as inline:
        try:
            for start in range(0, len(plans), ROWS_PER_WRITE):
                _record(context, plans[start : start + ROWS_PER_WRITE], summary, inline)
        finally:  # what was claimed is sent, whatever became of the others
            batch = inline.send(tell)
            if batch is not None:
                ended(batch)


def _plan(context: WorkerContext, stored: StoredEvent) -> Plan | None:
    """Return the event's plan; an event whose planning fails is noted in the ledger, and its neighbours go on."""
    context.ledger.yield_to_writer()
    try:
        return decide(context.rule_set, stored.event, now=context.clock.now())
    except Exception as error:  # noqa: BLE001 - whatever it is, it concerns this event alone
        _note_failure(context, stored.event.id, "planning", error)
        return None


def _record(context: WorkerContext, plans: Sequence[Plan], summary: ProcessingSummary, inline: InlineDelivery) -> None:
    try:
        on_their_way = inline.record(plans)
    except LedgerBusyError:
        raise  # nothing is wrong with the events: the sweeper repeats them
    except Exception as error:  # noqa: BLE001 - one event's row may be at fault: each is tried alone
        if len(plans) == 1:
            _note_failure(context, plans[0].event_id, "recording", error)
            return
        for plan in plans:
            _record(context, [plan], summary, inline)
        return
    summary.quiet += [task for plan in plans for task in plan.tasks if task.id not in on_their_way]
    summary.planned += len(plans)
    summary.ignored += sum(plan.state is EventState.IGNORED for plan in plans)
    summary.tasks += sum(len(plan.tasks) for plan in plans)


def _note_failure(context: WorkerContext, event_id: str, step: str, error: Exception) -> None:
    """Note a failure in the ledger; the log gets no message of it, since that may quote the payload."""
    log.error("event %s: %s failed with %s; see `leadwire show`", event_id, step, type(error).__name__)
    context.ledger.inbox.event_failed(event_id, f"{step} failed: {type(error).__name__}: {error}", context.clock.now())


class InlineDelivery:
    """The first attempts that one message makes at tasks of one type: `record` claims them, `send` sends them.

    A context manager: from the first claim to its end it holds one of the provider's places in the worker (see `Bulkhead`).
    """

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self._client: ProviderClient | None = None
        self._type: TaskType | None = None
        self._room = 0
        self._answers: list[Claim | NotClaimed] = []
        #: The moment of all its claims, by both clocks: their age counts from it, and so does the time of a request.
        self._claimed_at = context.clock.now()
        self._claimed_seconds = 0.0

    def __enter__(self) -> Self:
        """Begin without a place in the bulkhead."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give the place in the bulkhead back, if there is one."""
        if self._client is not None:
            self._client.bulkhead.release()

    def record(self, plans: Sequence[Plan]) -> Collection[str]:
        """Record plans, publish their due tasks, claim those that this message delivers; return the ids of all of these.

        Raises what the ledger raises; claims of these plans that may have been written are given back first.
        """
        clock, ledger = self._context.clock, self._context.ledger
        terms = self._terms(plans, clock.now())
        answers: Sequence[Claim | NotClaimed] = ()
        if terms is None:
            due = ledger.tasks.insert(plans, clock.now())
        else:
            try:
                due, answers = ledger.tasks.insert_and_claim(plans, self._claimed_at, terms)
            except LedgerInDoubtError:
                undo_claim(self._context, terms.owner, [task.id for plan in plans for task in plan.tasks])
                raise
        self._context.publisher.tasks(due)
        self._answers += answers
        self._room -= len(answers)
        return {task.id for task in due} | {answer.task_id for answer in answers}

    def send(self, tell_of: TellOf) -> InlineBatch | None:
        """Deliver the claimed tasks; returns None when `record` asked for none."""
        client, type_ = self._client, self._type
        if client is None or type_ is None or not self._answers:
            return None
        began_at = self._context.clock.now()
        tell = partial(tell_of, type_)
        answers, self._answers = self._answers, []
        outcomes, held = send_claimed(self._context, client, answers, self._claimed_seconds, tell)
        note_full(self._context, client, held)
        tell([outcome for outcome in outcomes if not outcome.already_shown])
        return InlineBatch(type_, outcomes, began_at)

    def _terms(self, plans: Sequence[Plan], now: datetime) -> ClaimTerms | None:
        """Return what is claimed of these plans; None when all of them are dispatched."""
        type_ = _frequent_type(plans, now)
        if type_ is None or not self._may_claim(type_):
            return None
        assert self._client is not None
        limits = {self._client.provider.name: self._context.limits_for(self._client)}
        owner = self._context.new_claim_owner()
        return ClaimTerms(type=type_, most=self._room, lease=LEASE, owner=owner, limits=limits)

    def _may_claim(self, type_: TaskType) -> bool:
        clock = self._context.clock
        if self._client is None:
            client = self._context.clients[PROVIDER_OF[type_]]
            batch_size = client.batch_size
            if batch_size.full_until_seconds > clock.awake_seconds() or not client.acquire(0):
                return False
            self._client, self._type = client, type_
            self._room = min(batch_size.size, self._context.limits_for(client).concurrency or batch_size.size)
            self._claimed_at = clock.now()
            self._claimed_seconds = clock.awake_seconds()
        return type_ is self._type and self._room > 0 and not self._context.closing.is_set()


def _frequent_type(plans: Sequence[Plan], now: datetime) -> TaskType | None:
    """Return the most frequent type of task that is due, if its tasks are more than would have messages of their own."""
    due = Counter(
        task.type for plan in plans for task in plan.tasks if task.state is TaskState.PLANNED and task.due_at <= now
    )
    for type_, number in due.most_common(1):
        return type_ if number > SINGLE_DELIVERY_LIMIT else None
    return None

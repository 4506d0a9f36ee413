"""Event -> planned tasks, and under load their first attempts: what `process_event` does.

Planning is pure and the recording is one transaction that checks the event is still unplanned, so a message that comes
twice, or two workers with the same event, change nothing. Events that were dispatched before are decided one at a time: one
that crashes the process must not take its neighbours with it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rules.engine import decide
from rules.vocabulary import EventState, LedgerBusyError, Plan, Task
from worker.context import TOGETHER, WorkerContext
from worker.first_attempts import Batch, InlineDelivery, TellOf
from worker.ledger import StoredEvent

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Tally:
    """What a message came to."""

    asked: int
    planned: int = 0
    ignored: int = 0
    tasks: int = 0
    #: Tasks that no message goes out for now: due later, or ended while they were planned.
    quiet: list[Task] = field(default_factory=list)

    def __str__(self) -> str:
        """Return it in words, without anything personal."""
        return f"{self.planned} of {self.asked} events planned, {self.ignored} ignored, {self.tasks} tasks"


def process_events(
    context: WorkerContext, event_ids: Sequence[str], tell: TellOf, ended: Callable[[Batch], None]
) -> Tally:
    """Decide and plan these events, and dispatch what is due, or deliver it where one message would carry it all.

    `tell` shows outcomes at once, `ended` is told of the batch that was delivered, also when this raises in the end.
    """
    tally = Tally(asked=len(event_ids))
    fresh, suspects = context.ledger.inbox.fresh_events(event_ids)
    _process(context, fresh, tally, tell, ended)
    # Only now: of what was claimed nothing may be unsent when one of these crashes the process.
    for event_id in suspects:
        suspect = context.ledger.inbox.events_to_process([event_id], context.clock.now())
        _process(context, suspect, tally, tell, ended)
    return tally


def _process(
    context: WorkerContext,
    events: Sequence[StoredEvent],
    tally: Tally,
    tell: TellOf,
    ended: Callable[[Batch], None],
) -> None:
    """Plan these events, then record them, then make the first attempts that were claimed with them."""
    plans = [plan for event in events if (plan := _plan(context, event)) is not None]
    with InlineDelivery(context) as first:
        try:
            for start in range(0, len(plans), TOGETHER):
                _record(context, plans[start : start + TOGETHER], tally, first)
        finally:  # what was claimed is sent, whatever became of the others
            batch = first.make(tell)
            if batch is not None:
                ended(batch)


def _record(context: WorkerContext, plans: Sequence[Plan], tally: Tally, first: InlineDelivery) -> None:
    try:
        on_their_way = first.record(plans)
    except LedgerBusyError:
        raise  # nothing is wrong with the events: the sweep repeats them
    except Exception as error:  # noqa: BLE001 - one event's row may be at fault: each is tried alone
        if len(plans) == 1:
            _failed(context, plans[0].event_id, "recording", error)
            return
        for plan in plans:
            _record(context, [plan], tally, first)
        return
    tally.quiet += [task for plan in plans for task in plan.tasks if task.id not in on_their_way]
    tally.planned += len(plans)
    tally.ignored += sum(plan.state is EventState.IGNORED for plan in plans)
    tally.tasks += sum(len(plan.tasks) for plan in plans)


def _plan(context: WorkerContext, stored: StoredEvent) -> Plan | None:
    """Return the event's plan; an event whose planning fails is noted in the ledger, and its neighbours go on."""
    context.ledger.yield_to_writer()
    try:
        return decide(context.rule_set, stored.event, now=context.clock.now())
    except Exception as error:  # noqa: BLE001 - whatever it is, it concerns this event alone
        _failed(context, stored.event.id, "planning", error)
        return None


def _failed(context: WorkerContext, event_id: str, step: str, error: Exception) -> None:
    """Note a failure in the ledger; the log gets no message of it, since that may quote the payload."""
    log.error("event %s: %s failed with %s; see `leadwire show`", event_id, step, type(error).__name__)
    context.ledger.inbox.event_failed(event_id, f"{step} failed: {type(error).__name__}: {error}", context.clock.now())

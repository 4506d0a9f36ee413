"""Event -> planned tasks: what `process_event` does.

Planning is pure and the recording is one transaction that checks the event is still unplanned, so a message that comes
twice, or two workers with the same event, change nothing. Events that were dispatched before are decided one at a time: one
that crashes the process must not take its neighbours with it.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

from rules.plan import decide
from rules.vocabulary import EventState, LedgerBusyError, Plan, Task, TaskState, TaskType
from worker.deliver import Delivered, deliver_planned
from worker.dispatch import SINGLE_DELIVERY_LIMIT
from worker.ledger import StoredEvent
from worker.wiring import TOGETHER, Services

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
    #: What came of the tasks that were delivered at once, and when that began.
    batches: list[Batch] = field(default_factory=list)

    def __str__(self) -> str:
        """Return it in words, without anything personal."""
        return f"{self.planned} of {self.asked} events planned, {self.ignored} ignored, {self.tasks} tasks"


@dataclass(frozen=True, slots=True)
class Batch:
    """Tasks of one type that were delivered with the message that planned them."""

    type: TaskType
    outcomes: Sequence[Delivered]
    began_at: datetime


#: Shows outcomes of one type at once; see `worker/deliver.py`.
Tell = Callable[[TaskType, Sequence[Delivered]], None]


def process_events(services: Services, event_ids: Sequence[str], tell: Tell) -> Tally:
    """Decide and plan these events, and dispatch what is due, or deliver it where one message would carry it all."""
    tally = Tally(asked=len(event_ids))
    fresh, suspects = services.ledger.fresh_events(event_ids)
    for start in range(0, len(fresh), TOGETHER):
        _process(services, fresh[start : start + TOGETHER], tally, tell)
    for event_id in suspects:
        _process(services, services.ledger.events_to_process([event_id], services.clock.now()), tally, tell)
    return tally


def _process(services: Services, events: Sequence[StoredEvent], tally: Tally, tell: Tell) -> None:
    plans = [plan for event in events if (plan := _plan(services, event)) is not None]
    if not plans:
        return
    try:
        _record(services, plans, tally, tell)
    except LedgerBusyError:
        raise  # nothing is wrong with the events: the sweep repeats them
    except Exception as error:  # noqa: BLE001 - one event's row may be at fault: each is tried alone
        if len(plans) == 1:
            _failed(services, plans[0].event_id, "recording", error)
            return
        for event in events:
            _process(services, [event], tally, tell)


def _record(services: Services, plans: Sequence[Plan], tally: Tally, tell: Tell) -> None:
    now = services.clock.now()
    type_ = _in_company(plans, now)
    done = deliver_planned(services, plans, type_, partial(tell, type_)) if type_ else None
    if type_ is None or done is None:
        due = services.ledger.record_plans(plans, now)
        services.dispatcher.tasks(due)
        sent = {task.id for task in due}
    else:
        due, outcomes = done
        sent = {task.id for task in due} | {outcome.task_id for outcome in outcomes}
        tally.batches.append(Batch(type_, outcomes, now))
    tally.quiet += [task for plan in plans for task in plan.tasks if task.id not in sent]
    tally.planned += len(plans)
    tally.ignored += sum(plan.state is EventState.IGNORED for plan in plans)
    tally.tasks += sum(len(plan.tasks) for plan in plans)


def _in_company(plans: Sequence[Plan], now: datetime) -> TaskType | None:
    """Return the type of which more tasks are due than would have messages of their own, the most frequent one."""
    due = Counter(
        task.type for plan in plans for task in plan.tasks if task.state is TaskState.PLANNED and task.due_at <= now
    )
    for type_, number in due.most_common(1):
        return type_ if number > SINGLE_DELIVERY_LIMIT else None
    return None


def _plan(services: Services, stored: StoredEvent) -> Plan | None:
    """Return the event's plan; an event whose planning fails is noted in the ledger, and its neighbours go on."""
    services.ledger.give_way()
    try:
        return decide(services.book, stored.event, now=services.clock.now())
    except Exception as error:  # noqa: BLE001 - whatever it is, it concerns this event alone
        _failed(services, stored.event.id, "planning", error)
        return None


def _failed(services: Services, event_id: str, step: str, error: Exception) -> None:
    """Note a failure in the ledger; the log gets no message of it, since that may quote the payload."""
    log.error("event %s: %s failed with %s; see `leadwire show`", event_id, step, type(error).__name__)
    services.ledger.event_failed(event_id, f"{step} failed: {type(error).__name__}: {error}", services.clock.now())

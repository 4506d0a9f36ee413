"""Event -> planned tasks: what `process_event` does.

Planning is pure and the recording is one transaction that checks the event is still unplanned, so a message that comes
twice, or two workers with the same event, change nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from rules.plan import decide
from rules.vocabulary import EventState, Plan
from worker.ledger import StoredEvent
from worker.wiring import Services, utc_now

log = logging.getLogger(__name__)


def process_events(services: Services, event_ids: Sequence[str]) -> str:
    """Decide and plan these events, and dispatch what is due; returns a summary without anything personal."""
    events = services.ledger.events_to_process(event_ids, utc_now())
    plans = [plan for event in events if (plan := _plan(services, event)) is not None]
    if not plans:
        return f"0 of {len(event_ids)} events planned"
    due = services.ledger.record_plans(plans, utc_now())
    services.dispatcher.tasks(due)
    tasks = sum(len(plan.tasks) for plan in plans)
    ignored = sum(plan.state is EventState.IGNORED for plan in plans)
    return f"{len(plans)} of {len(event_ids)} events planned, {ignored} ignored, {tasks} tasks"


def _plan(services: Services, stored: StoredEvent) -> Plan | None:
    """Return the event's plan; an event whose planning fails is noted in the ledger, and its neighbours go on."""
    try:
        return decide(services.book, stored.event, now=utc_now())
    except Exception as error:
        log.exception("event %s cannot be planned", stored.event.id)
        services.ledger.event_failed(stored.event.id, f"planning failed: {type(error).__name__}: {error}", utc_now())
        return None

"""The JSON documents that commands with `--json` print: which keys an event, a task, a decision and an attempt have.

Keys are only ever added. Moments are ISO 8601 UTC with `Z`.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime

from rules.vocabulary import Decision, Json, Task, instant
from worker.ledger import AttemptRow, StoredEvent, StoredTask

Document = dict[str, Json]


def _moment(at: datetime | None) -> str | None:
    return instant(at) if at else None


def decision_document(decision: Decision) -> Document:
    """Return what a rule decided; `failed` is null unless a test failed."""
    failed = decision.failed
    return {
        "rule": decision.rule,
        "outcome": str(decision.outcome),
        "reason": decision.reason,
        "failed": asdict(failed) if failed else None,
        "tasks": list(decision.tasks),
        "place": decision.place,
    }


def event_document(stored: StoredEvent) -> Document:
    """Return an event as `events --json` lists it."""
    event = stored.event
    return {
        "id": event.id,
        "source": event.source,
        "type": event.type,
        "occurred_at": instant(event.occurred_at),
        "received_at": instant(event.received_at),
        "subject": asdict(event.subject) if event.subject else None,
        "contact": asdict(event.contact),
        "state": str(stored.state),
        "decisions": [decision_document(decision) for decision in stored.decisions],
        "reason": stored.reason,
        "rule_set": stored.rule_set,
        "tries": stored.tries,
    }


def whole_event_document(stored: StoredEvent) -> Document:
    """Return an event as `show --json` prints it: with what its rules see and how it came in."""
    event = stored.event
    return {
        **event_document(stored),
        "changed": dict(event.changed),
        "attempt": event.attempt,
        "data": event.data,
        "delivery_id": stored.delivery_id,
        "dedupe_key": stored.dedupe_key,
        "content_hash": stored.content_hash,
        "headers": dict(stored.headers),
    }


def task_document(task: StoredTask) -> Document:
    """Return a task as `tasks --json` lists it."""
    return {
        "id": task.id,
        "event_id": task.event_id,
        "rule": task.rule,
        "name": task.name,
        "type": str(task.type),
        "provider": str(task.provider),
        "state": str(task.state),
        "due_at": instant(task.due_at),
        "attempts": task.attempts,
        "external_id": task.external_id,
        "reason": task.reason,
        "key": task.key,
        "contact": asdict(task.contact),
        "created_at": instant(task.created_at),
        "updated_at": instant(task.updated_at),
        "expires_at": _moment(task.expires_at),
        "note": task.note,
        "rule_set": task.rule_set,
        "parent": task.parent,
        "outcome": task.outcome,
    }


def attempt_document(attempt: AttemptRow) -> Document:
    """Return one try to hand a task to its provider."""
    return {
        "epoch": attempt.epoch,
        "number": attempt.number,
        "started_at": instant(attempt.started_at),
        "ended_at": _moment(attempt.ended_at),
        "verdict": str(attempt.verdict) if attempt.verdict else None,
        "status": attempt.status,
        "error": attempt.error,
        "external_id": attempt.external_id,
        "deferred": attempt.deferred,
    }


def whole_task_document(task: StoredTask, attempts: list[AttemptRow], follow_ups: list[StoredTask]) -> Document:
    """Return a task as `show --json` prints it: with what its provider is told, every try, and what followed on its end."""
    return {
        **task_document(task),
        "fields": dict(task.fields),
        "if_unsure": task.if_unsure,
        "epoch": task.epoch,
        "first_attempt_at": _moment(task.first_attempt_at),
        "lease_until_at": _moment(task.lease_until_at),
        "reactions": list(task.reactions),
        "follow_ups": [task_document(one) for one in follow_ups],
        "attempt_history": [attempt_document(attempt) for attempt in attempts],
    }


def planned_task_document(task: Task) -> Document:
    """Return a task that would be made, as `explain FILE --json` prints it."""
    return {
        "id": task.id,
        "rule": task.rule,
        "name": task.name,
        "type": str(task.type),
        "provider": str(task.provider),
        "state": str(task.state),
        "due_at": instant(task.due_at),
        "expires_at": _moment(task.expires_at),
        "reason": task.reason,
        "note": task.note,
        "fields": dict(task.fields),
        "reactions": list(task.reactions),
    }

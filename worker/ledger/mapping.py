"""How rows become the vocabulary's values and back.

An event's parts that nobody searches for (subject, contact, changes, attempt, data) stand together in one JSON document;
empty parts are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from datetime import timedelta
from functools import lru_cache
from typing import Any, Final

from rules.vocabulary import (
    Contact,
    Decision,
    DecisionOutcome,
    Event,
    EventState,
    FailedTest,
    Json,
    ProviderName,
    RetryPolicy,
    Subject,
    TaskState,
    TaskType,
    Verdict,
)
from worker.ledger.encoding import dump, load, moment, moment_or_none
from worker.ledger.rows import AttemptRow, StoredEvent, StoredTask, TaskRef

_CONTACT_PARTS: Final = tuple(part.name for part in fields(Contact))


def event_document(event: Event) -> str:
    """Return what the column `document` holds of an event."""
    parts: dict[str, Json] = {"data": event.data}
    if event.subject is not None:
        parts["subject"] = [event.subject.kind, event.subject.id]
    if event.changed:
        parts["changed"] = dict(event.changed)
    if event.attempt is not None:
        parts["attempt"] = event.attempt
    contact = _contact_parts(event.contact)
    if contact:
        parts["contact"] = contact
    return dump(parts)


def stored_event(row: Any, *, decisions: str | None = None, headers: str | None = None) -> StoredEvent:
    """Return the event of a row of `events`; `decisions` and `headers` are the JSON texts of the rows beside it."""
    parts = load(row.document)
    subject = parts.get("subject")
    event = Event(
        id=row.id,
        source=row.source,
        type=row.type,
        occurred_at=moment(row.occurred_at),
        received_at=moment(row.received_at),
        subject=Subject(kind=subject[0], id=subject[1]) if subject else None,
        contact=Contact(**parts.get("contact", {})),
        changed=parts.get("changed", {}),
        attempt=parts.get("attempt"),
        data=parts["data"],
    )
    return StoredEvent(
        event=event,
        delivery_id=row.delivery_id,
        dedupe_key=row.dedupe_key,
        content_hash=row.content_hash,
        state=EventState(row.state),
        reason=row.reason,
        tries=row.tries,
        due_at=moment(row.due_at),
        dispatches=row.dispatches,
        dispatched_at=moment(row.dispatched_at),
        rule_set=row.rule_set,
        decisions=_decisions(decisions) if decisions else (),
        headers=load(headers) if headers else {},
    )


def contact_text(contact: Contact) -> str:
    """Return what a column holds of a contact."""
    return dump(_contact_parts(contact))


def decisions_text(decisions: tuple[Decision, ...]) -> str:
    """Return what the column `decisions` holds."""
    return dump([_decision_parts(decision) for decision in decisions])


@lru_cache(maxsize=256)
def retry_text(policy: RetryPolicy) -> str:
    """Return what a column holds of a retry policy; spans are in microseconds."""
    parts = {part.name: getattr(policy, part.name) for part in fields(policy)}
    parts |= {name: _micros(policy, name) for name in ("delay", "cap", "budget")}
    parts["schedule"] = [span // _MICROSECOND for span in policy.schedule]
    return dump(parts)


@lru_cache(maxsize=256)
def retry_policy(text: str) -> RetryPolicy:
    """Return the policy that `retry_text` made a text of."""
    parts = load(text)
    spans = {name: timedelta(microseconds=parts[name]) for name in ("delay", "cap", "budget")}
    schedule = tuple(timedelta(microseconds=span) for span in parts["schedule"])
    return RetryPolicy(**(parts | spans | {"schedule": schedule}))


def stored_task(row: Any) -> StoredTask:
    """Return the task of a row of `tasks`."""
    return StoredTask(
        id=row.id,
        key=row.key,
        event_id=row.event_id,
        rule=row.rule,
        name=row.name,
        type=TaskType(row.type),
        provider=ProviderName(row.provider),
        fields=load(row.fields),
        due_at=moment(row.due_at),
        expires_at=moment_or_none(row.expires_at),
        retry=retry_policy(row.retry),
        if_unsure=row.if_unsure,
        contact=Contact(**load(row.contact)),
        state=TaskState(row.state),
        reason=row.reason,
        note=row.note,
        rule_set=row.rule_set,
        attempts=row.attempts,
        epoch=row.epoch,
        first_attempt_at=moment_or_none(row.first_attempt_at),
        lease_until_at=moment_or_none(row.lease_until_at),
        owner=row.owner,
        dispatched_at=moment_or_none(row.dispatched_at),
        external_id=row.external_id,
        created_at=moment(row.created_at),
        updated_at=moment(row.updated_at),
        parent=row.parent,
        reactions=reactions_of(row),
        slot_at=moment_or_none(row.slot_at),
        outcome=getattr(row, "outcome", None),
    )


def reactions_of(row: Any) -> tuple[str, ...]:
    """Return the ends that the rule of a row's task answers."""
    return tuple(load(row.reactions)) if row.reactions else ()


def task_ref(row: Any) -> TaskRef:
    """Return what a message needs of a row with a task's id and labels."""
    return TaskRef(
        id=row.id,
        type=TaskType(row.type),
        provider=ProviderName(row.provider),
        rule=row.rule,
        name=row.name,
        attempts=row.attempts,
        epoch=row.epoch,
    )


def attempt_row(row: Any) -> AttemptRow:
    """Return the attempt of a row of `attempts`."""
    return AttemptRow(
        epoch=row.epoch,
        number=row.number,
        started_at=moment(row.started_at),
        ended_at=moment_or_none(row.ended_at),
        verdict=Verdict(row.verdict) if row.verdict else None,
        status=row.status,
        error=row.error,
        external_id=row.external_id,
        deferred=bool(row.deferred),
    )


_MICROSECOND: Final = timedelta(microseconds=1)


def _micros(policy: RetryPolicy, name: str) -> int:
    span: timedelta = getattr(policy, name)
    return span // _MICROSECOND


def _contact_parts(contact: Contact) -> dict[str, Json]:
    parts = {name: getattr(contact, name) for name in _CONTACT_PARTS}
    return {name: part for name, part in parts.items() if part is not None}


def _decision_parts(decision: Decision) -> dict[str, Json]:
    failed = decision.failed
    return {
        "rule": decision.rule,
        "outcome": decision.outcome,
        "reason": decision.reason,
        "failed": {part.name: getattr(failed, part.name) for part in fields(failed)} if failed else None,
        "tasks": decision.tasks,
        "place": decision.place,
    }


def _decisions(text: str) -> tuple[Decision, ...]:
    return tuple(_decision(parts) for parts in load(text))


def _decision(parts: Mapping[str, Json]) -> Decision:
    failed = parts["failed"]
    return Decision(
        rule=parts["rule"],
        outcome=DecisionOutcome(parts["outcome"]),
        reason=parts["reason"],
        failed=FailedTest(**failed) if failed else None,
        tasks=tuple(parts["tasks"]),
        place=parts["place"],
    )

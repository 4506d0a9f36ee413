"""Conversions between Python values and columns: whatever a CRM's JSON holds can be stored and read back.

JSON is stored as ASCII text, so lone surrogates and NUL characters pass every database as escapes. What JSON cannot hold (NaN,
infinities) becomes null. Values nested deeper than `DEPTH_LIMIT` are cut off there; the raw body keeps the original.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from math import isfinite
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
from worker.ledger.types import AttemptRow, StoredEvent, StoredTask, TaskRef

#: Deeper values are cut off: reading them back could exhaust the stack of whoever reads.
DEPTH_LIMIT: Final = 100

#: Identities from outside are cut to this many characters, a hash of the whole included.
LABEL_LIMIT: Final = 255

#: Sentences (reasons, errors) are cut to this many characters.
SENTENCE_LIMIT: Final = 4000

_MICROSECOND: Final = timedelta(microseconds=1)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST: Final = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND
_LAST: Final = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND
_UNFIT: Final = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_UNFIT_IN_SENTENCES: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
_encode = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode


def micros(moment: datetime) -> int:
    """Return an aware moment as microseconds since 1970 UTC, clamped to the range of datetime."""
    since = moment - _EPOCH
    value = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    return min(max(value, _FIRST), _LAST)


def micros_or_none(moment: datetime | None) -> int | None:
    """Return `micros(moment)`, or None for None."""
    return None if moment is None else micros(moment)


def moment(value: int) -> datetime:
    """Return the aware UTC datetime for microseconds since 1970 UTC."""
    return _EPOCH + timedelta(microseconds=value)


def moment_or_none(value: int | None) -> datetime | None:
    """Return `moment(value)`, or None for None."""
    return None if value is None else moment(value)


def dump(value: Json) -> str:
    """Return any value as JSON text. Never raises; the module's docstring says what cannot be kept."""
    try:
        text = _encode(value)
    except (ValueError, TypeError, RecursionError):
        return _encode(_tamed(value, DEPTH_LIMIT))
    if text.count("[") + text.count("{") > DEPTH_LIMIT:
        return _encode(_tamed(value, DEPTH_LIMIT))
    return text


def load(text: str) -> Json:
    """Parse JSON text that `dump` made."""
    return json.loads(text)


def label(value: str) -> str:
    """Return an id from outside as it is stored: itself, or for a long or odd one its readable part and its hash."""
    if len(value) <= LABEL_LIMIT and not _UNFIT.search(value):
        return value
    digest = hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    readable = _UNFIT.sub("\ufffd", value[: LABEL_LIMIT - 33])
    return f"{readable}~{digest}"


def sentence(value: str) -> str:
    """Return a text for people as it is stored: cut to a limit, without characters that no column can hold."""
    fit = _UNFIT_IN_SENTENCES.sub("\ufffd", value)
    return fit if len(fit) <= SENTENCE_LIMIT else f"{fit[: SENTENCE_LIMIT - 1]}…"


def sentence_or_none(value: str | None) -> str | None:
    """Return `sentence(text)`, or None for None."""
    return None if value is None else sentence(value)


def _tamed(value: Json, levels: int) -> Json:
    if isinstance(value, Mapping):
        return {str(key): _tamed(item, levels - 1) for key, item in value.items()} if levels else None
    if isinstance(value, list | tuple | set | frozenset):
        return [_tamed(item, levels - 1) for item in value] if levels else None
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, int):
        try:
            str(value)
        except ValueError:  # more digits than Python turns into text; no number anybody sent
            return None
        return value
    return value if value is None else str(value)


#: Rows become the vocabulary's values and back. An event's parts that nobody searches for (subject, contact, changes,
#: attempt, data) stand together in one JSON document; empty parts are left out.


def event_document(event: Event) -> str:
    """Return the text of the column `document` for an event."""
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
    """Build a StoredEvent from a row of `events` and the JSON texts of its `decisions` and `headers`."""
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
        decisions=tuple(map(_decision, load(decisions))) if decisions else (),
        headers=load(headers) if headers else {},
    )


def contact_text(contact: Contact) -> str:
    """Return the column text of a contact."""
    return dump(_contact_parts(contact))


def decisions_text(decisions: tuple[Decision, ...]) -> str:
    """Return the column text of decisions."""
    return dump([_parts(each) | {"failed": _parts(each.failed) if each.failed else None} for each in decisions])


def _decision(parts: dict[str, Json]) -> Decision:
    failed = FailedTest(**parts["failed"]) if parts["failed"] else None
    changed = {"outcome": DecisionOutcome(parts["outcome"]), "failed": failed, "tasks": tuple(parts["tasks"])}
    return Decision(**(parts | changed))


@lru_cache(maxsize=256)
def retry_text(policy: RetryPolicy) -> str:
    """Return the column text of a retry policy; durations are in microseconds."""
    parts = _parts(policy)
    parts |= {name: parts[name] // _MICROSECOND for name in ("delay", "cap", "budget")}
    return dump(parts | {"schedule": [span // _MICROSECOND for span in policy.schedule]})


@lru_cache(maxsize=256)
def retry_policy(text: str) -> RetryPolicy:
    """Parse a retry policy that `retry_text` made."""
    parts = load(text)
    spans = {name: timedelta(microseconds=parts[name]) for name in ("delay", "cap", "budget")}
    schedule = tuple(timedelta(microseconds=span) for span in parts["schedule"])
    return RetryPolicy(**(parts | spans | {"schedule": schedule}))


def stored_task(row: Any) -> StoredTask:
    """Build a StoredTask from a row of `tasks`."""
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
    """Return the triggers (`Task.reactions`) of a row of `tasks`."""
    return tuple(load(row.reactions)) if row.reactions else ()


def task_ref(row: Any) -> TaskRef:
    """Build a TaskRef from a row that has a task's id and labels."""
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
    """Build an AttemptRow from a row of `attempts`."""
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


def _contact_parts(contact: Contact) -> dict[str, Json]:
    return {name: part for name, part in _parts(contact).items() if part is not None}


def _parts(value: Contact | Decision | FailedTest | RetryPolicy) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}

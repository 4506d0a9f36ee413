"""How one item of a body becomes an event in Leadwire's words, and by what it is recognised when it comes again.

Identity is (source, type, key): the key is the item's id; else its `dedupe` values together; else the hash of its content,
and then for ten minutes only, because two honest events may be alike. An id from a header that the signature does not cover
proves nothing: anybody who once saw a signed body could send it again under another id, so there the content's own hash is
the key, for ever. What the sender counts up between tries of the same event is left out of every hash.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from ingress.sources.contacts import ID_LIMIT, LABEL_LIMIT, ContactPaths, bounded
from ingress.sources.event_words import Dedupe, TypeMap, When, canonical
from rules.paths import CompiledPath, Scope, replaced, text_of
from rules.vocabulary import Event, EventState, Json, Subject
from worker.ledger.types import IncomingEvent

#: How long an event without an id is recognised by its content alone.
CONTENT_MEMORY: Final = timedelta(minutes=10)
TYPE_LIMIT: Final = 200
#: The type of what was verified and cannot be read.
UNREADABLE_TYPE: Final = "unreadable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """Where an item says which fields changed."""

    field: CompiledPath | None = None
    fields: CompiledPath | None = None
    before: CompiledPath | None = None
    after: CompiledPath | None = None

    def find(self, scope: Scope) -> dict[str, dict[str, Json]]:
        """Return `{field: {"from": old, "to": new}}`, null where the source does not say."""
        before = self.before.find(scope) if self.before else None
        after = self.after.find(scope) if self.after else None
        if self.field:
            name = text_of(self.field.find(scope))
            return {name: _change(before, after)} if name else {}
        old, new = (one if isinstance(one, dict) else {} for one in (before, after))
        listed = self.fields.find(scope) if self.fields else None
        names = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else list(old)
        return {name: _change(old.get(name), new.get(name)) for name in names}


@dataclass(frozen=True, slots=True, kw_only=True)
class EventPaths:
    """Where an item says what an Event needs; `signed_headers` is None when the whole request is vouched for."""

    source: str
    type: CompiledPath
    types: TypeMap = field(default_factory=dict)
    id: CompiledPath | None = None
    dedupe: Dedupe | None = None
    occurred_at: When | None = None
    subject_kind: str | None = None
    subject_id: CompiledPath | None = None
    changed: Changed | None = None
    attempt: CompiledPath | None = None
    contact: ContactPaths = field(default_factory=ContactPaths)
    data: CompiledPath | None = None
    region: str | None = None
    signed_headers: frozenset[tuple[str, ...]] | None = None

    @property
    def id_is_signed(self) -> bool:
        """Whether whoever changes the id breaks the proof of where the request is from."""
        headers = self.id.headers if self.id else ()
        return self.signed_headers is None or not headers or headers in self.signed_headers

    def read(self, scope: Scope, *, event_id: str, received_at: datetime, index: int, items: int) -> IncomingEvent:
        """Return the item as an event, or as one in state UNREADABLE that says why."""
        content_hash = hash_of(self._lasting(scope.item))
        raw_type = bounded(self.type.find(scope), TYPE_LIMIT)
        if raw_type is None:
            reason = f"the item has no event type: nothing at {self.type.text}"
            return unreadable(self.source, event_id, received_at, reason, content_hash, scope.item)
        event_type = canonical(raw_type, self.types, scope)
        contact, note = self.contact.read(scope, self.region)
        event = Event(
            id=event_id,
            source=self.source,
            type=event_type,
            occurred_at=(self.occurred_at.find(scope) if self.occurred_at else None) or received_at,
            received_at=received_at,
            subject=self._subject(scope, event_type),
            contact=contact,
            changed=self.changed.find(scope) if self.changed else {},
            attempt=self._attempt(scope),
            data=self.data.find(scope) if self.data else scope.item,
        )
        key = self._key(scope, content_hash, index if items > 1 else None)
        return IncomingEvent(
            event=event,
            dedupe_key=key or f"content:{content_hash}",
            content_hash=content_hash,
            until_at=None if key else received_at + CONTENT_MEMORY,
            reason=note,
        )

    def _key(self, scope: Scope, content_hash: str, index: int | None) -> str | None:
        """Return what the event is recognised by for ever, or None when it names nothing of the kind."""
        if self.id is not None:
            proven = scope if self.id_is_signed else replace(scope, headers={})
            found = text_of(self.id.find(proven))
            if found is not None:
                # An id outside the items is the same for all of them.
                outside = self.id.shared or any(name in proven.headers for name in self.id.headers)
                mark = f"#{index}" if index is not None and outside else ""
                return f"id:{found}{mark}" if len(found) <= ID_LIMIT else f"id-hash:{hash_of(found)}{mark}"
            if text_of(self.id.find(scope)) is not None:
                return f"content:{content_hash}"
        if self.dedupe is None:
            return None
        values = [text_of(path.find(scope)) for path in self.dedupe.paths]
        if not any(values):
            return None
        return f"values:{hash_of([*values, content_hash] if self.dedupe.with_content else values)}"

    def _lasting(self, item: Json) -> Json:
        """Return the item less what counts the tries: a redelivery is no other content."""
        for steps in self.attempt.steps if self.attempt else ():
            item = replaced(item, steps, None)
        return item

    def _subject(self, scope: Scope, event_type: str) -> Subject | None:
        found = bounded(self.subject_id.find(scope), ID_LIMIT) if self.subject_id else None
        if found is None:
            return None
        kind = self.subject_kind or event_type.partition(".")[0]
        return Subject(kind=kind[:LABEL_LIMIT], id=found)

    def _attempt(self, scope: Scope) -> int | None:
        text = text_of(self.attempt.find(scope)) if self.attempt else None
        return int(text) if text and text.isascii() and text.isdigit() and len(text) <= 9 else None  # noqa: PLR2004


def unreadable(
    source: str, event_id: str, received_at: datetime, reason: str, content_hash: str, data: Json = None
) -> IncomingEvent:
    """Return what was verified and cannot be read, to be kept with the reason."""
    event = Event(
        id=event_id, source=source, type=UNREADABLE_TYPE, occurred_at=received_at, received_at=received_at, data=data
    )
    return IncomingEvent(
        event=event,
        dedupe_key=f"content:{content_hash}",
        content_hash=content_hash,
        state=EventState.UNREADABLE,
        reason=reason,
    )


def hash_of(value: Json) -> str:
    """Return the SHA-256 of a JSON value, the same however it was written."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _change(old: Json, new: Json) -> dict[str, Json]:
    return {"from": old, "to": new}


def headers_read(*lookups: CompiledPath | None) -> frozenset[str]:
    """Return the headers that these paths read."""
    return frozenset(name for lookup in lookups if lookup for name in lookup.headers)

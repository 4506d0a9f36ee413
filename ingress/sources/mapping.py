"""Map one item of a webhook's body to an event, and give it the key by which a duplicate is recognised.

An event is identified by (source, type, key). The key is the item's id; without one, its `dedupe` values together; without
these, a hash of its content, which counts for ten minutes only, because two genuine events may be equal. An id from a header
that the signature does not cover proves nothing: a captured body could be sent again under another id. There the content's hash
is the key, for ever. A field that counts the sender's own retries is left out of every hash.

A value that cannot be read is left out, never guessed; the raw value stays in `data`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

import phonenumbers

from ingress.sources.schema import ChangedSection, ContactSection, EventSection, TimeUnit, TypeByField
from rules.paths import CompiledPath, Scope, replaced, text_of
from rules.vocabulary import Contact, Event, EventState, Json, Subject
from worker.ledger.types import IncomingEvent

#: How long an event without an id is recognised by its content alone.
CONTENT_MEMORY: Final = timedelta(minutes=10)
#: Longest text kept of each field; what is longer is no such thing.
TYPE_LIMIT: Final = 200
ID_LIMIT: Final = 255
NAME_LIMIT: Final = 200
EMAIL_LIMIT: Final = 320
LABEL_LIMIT: Final = 64
#: Longer than any way to write a phone number or a moment.
_PHONE_LIMIT: Final = 64
_MOMENT_LIMIT: Final = 64
#: The type of what was verified and cannot be read.
UNREADABLE_TYPE: Final = "unreadable"
PHONE_NOTE: Final = (
    "contact.phone is no phone number; a number without country code needs contact.country or the source's region"
)

_COUNTRY: Final = re.compile(r"[A-Za-z]{2}")
_DIGITS: Final = re.compile(r"[0-9]{8,15}")
_NUMBER: Final = re.compile(r"-?\d{1,17}(\.\d{1,12})?")
_ATTEMPT: Final = re.compile(r"[0-9]{1,9}")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
#: Seconds since 1970 have reached ten digits; milliseconds have thirteen.
_SECONDS_END: Final = 100_000_000_000
_CANONICAL: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventMapping:
    """Maps the items of a source to events.

    `id_is_signed`: the id cannot be changed without breaking the request's signature or secret.
    """

    source: str
    event: EventSection
    contact: ContactSection
    data: CompiledPath | None = None
    region: str | None = None
    id_is_signed: bool = True

    def read(self, scope: Scope, *, event_id: str, received_at: datetime, index: int, items: int) -> IncomingEvent:
        """Map one item to an event. An item that cannot be mapped gives an event in state UNREADABLE with a reason."""
        content_hash = hash_of(self._without_attempt(scope.item))
        raw_type = bounded(self.event.type.find(scope), TYPE_LIMIT)
        if raw_type is None:
            reason = f"the item has no event type: nothing at {self.event.type.text}"
            return unreadable_event(self.source, event_id, received_at, reason, content_hash, scope.item)
        event_type = self._canonical_type(raw_type, scope)
        contact, note = read_contact(self.contact, scope, self.region)
        when = self.event.occurred_at
        occurred_at = moment_of(when.path.find(scope), when.unit) if when else None
        attempt = text_of(_find(self.event.attempt, scope))
        event = Event(
            id=event_id,
            source=self.source,
            type=event_type,
            occurred_at=occurred_at or received_at,
            received_at=received_at,
            subject=self._subject(scope, event_type),
            contact=contact,
            changed=read_changes(self.event.changed, scope) if self.event.changed else {},
            attempt=int(attempt) if attempt and _ATTEMPT.fullmatch(attempt) else None,
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

    def _canonical_type(self, raw: str, scope: Scope) -> str:
        """Return Leadwire's word for a raw type, or the raw type itself."""
        word: str | TypeByField | None = self.event.map.get(raw)
        while isinstance(word, TypeByField):
            value = text_of(word.field.find(scope))
            word = (word.types.get(value) if value is not None else None) or word.otherwise
        return word or raw

    def _key(self, scope: Scope, content_hash: str, index: int | None) -> str | None:
        """Return what the event is recognised by for ever, or None when it names nothing of the kind."""
        path = self.event.id
        if path is not None:
            proven = scope if self.id_is_signed else scope.without_headers()
            found = text_of(path.find(proven))
            if found is not None:
                # An id outside the items is the same for all of them.
                outside = path.shared or any(name in proven.headers for name in path.headers)
                mark = f"#{index}" if index is not None and outside else ""
                return f"id:{found}{mark}" if len(found) <= ID_LIMIT else f"id-hash:{hash_of(found)}{mark}"
            if text_of(path.find(scope)) is not None:
                return f"content:{content_hash}"
        dedupe = self.event.dedupe
        if dedupe is None:
            return None
        values = [text_of(one.find(scope)) for one in dedupe.paths]
        if not any(values):
            return None
        return f"values:{hash_of([*values, content_hash] if dedupe.with_content else values)}"

    def _without_attempt(self, item: Json) -> Json:
        """Return the item less what counts the tries: a redelivery is no other content."""
        for steps in self.event.attempt.steps if self.event.attempt else ():
            item = replaced(item, steps, None)
        return item

    def _subject(self, scope: Scope, event_type: str) -> Subject | None:
        section = self.event.subject
        if section is None or (found := bounded(section.id.find(scope), ID_LIMIT)) is None:
            return None
        return Subject(kind=(section.kind or event_type.partition(".")[0])[:LABEL_LIMIT], id=found)


def unreadable_event(
    source: str, event_id: str, received_at: datetime, reason: str, content_hash: str, data: Json = None
) -> IncomingEvent:
    """Return an event in state UNREADABLE for verified content that cannot be mapped, with the reason."""
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
    """Return the SHA-256 of a JSON value in hex. Key order and formatting do not matter."""
    return hashlib.sha256(_CANONICAL.encode(value).encode("ascii")).hexdigest()


def read_changes(section: ChangedSection, scope: Scope) -> dict[str, dict[str, Json]]:
    """Return `{field: {"from": old, "to": new}}`; values that the source does not give are null."""
    before, after = _find(section.before, scope), _find(section.after, scope)
    if section.field:
        name = text_of(section.field.find(scope))
        return {name: {"from": before, "to": after}} if name else {}
    old, new = (one if isinstance(one, dict) else {} for one in (before, after))
    listed = _find(section.fields, scope)
    names = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else list(old)
    return {name: {"from": old.get(name), "to": new.get(name)} for name in names}


def read_contact(section: ContactSection, scope: Scope, region: str | None) -> tuple[Contact, str | None]:
    """Return the contact, and a note when its phone cannot be used.

    `region` (ISO 3166-1 alpha-2) is used for national phone numbers when the contact has no country. The contact's country is
    what the source gives, not what the phone suggests.
    """
    country = country_of(_find(section.country, scope))
    raw_phone = _find(section.phone, scope)
    phone = phone_of(raw_phone, country or region)
    consent = _find(section.consent, scope)
    contact = Contact(
        id=bounded(_find(section.id, scope), ID_LIMIT),
        name=bounded(_find(section.name, scope), NAME_LIMIT),
        phone=phone,
        email=email_of(_find(section.email, scope)),
        country=country,
        timezone=bounded(_find(section.timezone, scope), LABEL_LIMIT),
        language=bounded(_find(section.language, scope), LABEL_LIMIT),
        consent=consent if isinstance(consent, dict) else None,
    )
    return contact, PHONE_NOTE if phone is None and text_of(raw_phone) else None


def phone_of(value: Json, region: str | None) -> str | None:
    """Return a phone number as E.164, or None. `region` (ISO 3166-1 alpha-2) is the country of national numbers.

    A number only has to be possible: strict validity rejects number ranges that exist.
    """
    raw = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(raw, str) or not raw.strip() or len(raw) > _PHONE_LIMIT:
        return None
    found = _e164(raw.strip(), region)
    if found is None and (raw[0] == " " or raw.startswith("00")):
        # A literal plus in a form arrives as a blank; 00 is how most of the world dials abroad.
        digits = raw.strip().removeprefix("00")
        found = _e164("+" + digits, None) if _DIGITS.fullmatch(digits.replace(" ", "")) else None
    return found


def country_of(value: Json) -> str | None:
    """Return a country code as upper-case alpha-2, or None; country names are not recognised."""
    text = text_of(value)
    return text.upper() if text and _COUNTRY.fullmatch(text) else None


def email_of(value: Json) -> str | None:
    """Return an e-mail address, trimmed, or None when the value cannot be one."""
    text = text_of(value)
    if not text or len(text) > EMAIL_LIMIT or "@" not in text[1:-1] or _CONTROL.search(text):
        return None
    return text


def bounded(value: Json, limit: int) -> str | None:
    """Return a value as one line of at most `limit` characters, or None when it is empty."""
    text = text_of(value)
    if not text:
        return None
    if not text.isprintable():
        text = _CONTROL.sub(" ", text)
    return text[:limit].strip() or None


def moment_of(value: Json, unit: TimeUnit) -> datetime | None:
    """Return a moment as aware UTC; one without an offset is taken as UTC. None when it cannot be read."""
    text = text_of(value)
    if text is None or len(text) > _MOMENT_LIMIT:
        return None
    if unit is TimeUnit.AUTO and _NUMBER.fullmatch(text):
        unit = TimeUnit.SECONDS if abs(float(text)) < _SECONDS_END else TimeUnit.MILLISECONDS
    try:
        if unit in (TimeUnit.ISO, TimeUnit.AUTO):
            found = datetime.fromisoformat(text)
            return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
        seconds = float(text) / (1000 if unit is TimeUnit.MILLISECONDS else 1)
        return datetime.fromtimestamp(seconds, UTC) if _NUMBER.fullmatch(text) and math.isfinite(seconds) else None
    except (ValueError, OverflowError, OSError):
        return None


@lru_cache(maxsize=1024)  # a CRM posts several webhooks about one contact in a row
def _e164(raw: str, region: str | None) -> str | None:
    try:
        number = phonenumbers.parse(raw, region)
    except phonenumbers.NumberParseException:
        return None
    if not phonenumbers.is_possible_number(number):
        return None
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)


def _find(path: CompiledPath | None, scope: Scope) -> Json:
    return path.find(scope) if path else None

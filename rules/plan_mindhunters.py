"""What a task for Mindhunters says: whom it reaches, when it is made, until when it is worth making.

The CRM's own contact id is never sent. Without a `contact_uuid` of the rule's own, a call or a WhatsApp template needs a
phone number; other tasks do with an e-mail address. The contact's zone is the task's own `timezone`, else what is known of
the contact whom the task reaches; a time of day without any zone is read in the rule's, the default's, or UTC.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from rules.drafting import Draft
from rules.filters import e164, in_words
from rules.moments import At, parse_at
from rules.rulebook import Dynamic
from rules.showing import as_json
from rules.templates import Template
from rules.vocabulary import Contact, Json, TaskType, instant
from rules.zones import zones_of

_E164: Final = re.compile(r"\+[1-9][0-9]{6,14}", re.ASCII)
#: Keys that are rendered here with a meaning of their own; all others go through as they are.
_OWN: Final = frozenset({"title", "description", "contact", "contact_uuid"})
_NEEDS_PHONE: Final = frozenset({TaskType.MAKE_CALL, TaskType.WHATSAPP_TEMPLATE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """When a task is to be made and until when; `too_late` says why it is not to be made any more."""

    due_at: datetime
    expires_at: datetime | None = None
    too_late: str | None = None


def draft_mindhunters(draft: Draft) -> tuple[Contact, Timing]:
    """Fill in a task for Mindhunters; return whom it reaches and when."""
    draft.title_and_description()
    for name, value in draft.action.body.items():
        rendered = None if name in _OWN or value is None else draft.render(name, value)
        if rendered is not None:
            draft.fields[name] = rendered
    draft.fields.setdefault("auto_queue", True)
    contact = _reach(draft)
    return contact, _timing(draft, contact)


def _reach(draft: Draft) -> Contact:
    """Fill in exactly one of `contact_uuid` and `contact`; return whom the task reaches."""
    contact = draft.scene.event.contact
    contact_uuid = draft.text("contact_uuid")
    if contact_uuid:
        draft.fields["contact_uuid"] = contact_uuid
        return contact
    before = len(draft.faults)
    asked: Dynamic = draft.action.body.get("contact")
    if asked is None:
        by_mail = draft.action.type not in _NEEDS_PHONE and not contact.phone
        told: Json = {"email": contact.email} if by_mail else {"phone_number": contact.phone}
        origin = "contact.phone"
    else:
        told = draft.render("contact", asked)
        origin = "contact.phone_number"
    told = told if isinstance(told, dict) else {}
    phone = _phone(draft, told.get("phone_number"), origin)
    email = in_words(told.get("email") or "").strip() or None
    reached = {"phone_number": phone, "email": email}
    draft.fields["contact"] = {name: value for name, value in reached.items() if value}
    if len(draft.faults) == before:
        _complain_of_nobody(draft, phone, email)
    if asked is None or (phone and phone == contact.phone) or (not phone and email == contact.email):
        return contact
    return Contact(phone=phone, email=email)


def _phone(draft: Draft, value: Json, origin: str) -> str | None:
    """Return a phone number as E.164; a fault where it cannot be read as one."""
    text = in_words(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if not text or _E164.fullmatch(text):
        return text or None
    country = draft.scene.event.contact.country
    number = e164(text, country if isinstance(country, str) else None)
    if number is None or not _E164.fullmatch(number):
        draft.faults.append(
            f"no phone: {origin} is {as_json(text, 40)}, which is no phone number; give it with + and its country code, "
            "or set contact.country"
        )
        return None
    return number


def _complain_of_nobody(draft: Draft, phone: str | None, email: str | None) -> None:
    if draft.action.type in _NEEDS_PHONE and not phone:
        draft.faults.append("no phone: the contact has no phone number, and the rule gives no contact_uuid")
    elif not phone and not email:
        draft.faults.append(
            "nobody to reach: the contact has neither phone nor e-mail, and the rule gives no contact_uuid"
        )


def _timing(draft: Draft, contact: Contact) -> Timing:
    scene, action = draft.scene, draft.action
    choice = zones_of(contact, scene.book.defaults)
    own = draft.own_zone()
    told = own or choice.only
    if told:
        draft.fields["timezone"] = told
    due_at = scene.now
    at = _at(draft, action.at)
    if at.needs_zone:
        assumed = scene.fallback_zone or "UTC"
        zones = (own,) if own else choice.zones or (assumed,)
        source = f"zone {own} from the task's timezone" if own else choice.note
        draft.notes.append(source if own or choice.zones else f"{source}; {assumed} was assumed")
    else:
        zones = ()
    try:
        due_at = at.resolve(scene.now, zones)
    except ValueError as error:
        draft.faults.append(f"at: {error}")
    return _expiry(draft, due_at)


def _at(draft: Draft, at: At | Template | None) -> At:
    if isinstance(at, Template):
        written = draft.render("at", at)
        try:
            return _NOW if written is None else parse_at(written)
        except ValueError as error:
            draft.faults.append(f"at: {error}")
            return _NOW
    return at or _NOW


_NOW: Final = At(after=timedelta())


def _expiry(draft: Draft, due_at: datetime) -> Timing:
    span = draft.action.expires
    if span is None:
        return Timing(due_at=due_at)
    occurred_at = draft.scene.event.occurred_at
    try:
        expires_at = occurred_at + span
    except OverflowError:  # an event of the year 9999 does not expire within the calendar
        return Timing(due_at=due_at)
    too_late = None
    if expires_at <= draft.scene.now:
        too_late = f"too late: it expired at {instant(expires_at)}; the event occurred at {instant(occurred_at)}"
    elif due_at >= expires_at:
        too_late = f"too late: it would be made at {instant(due_at)} and expires at {instant(expires_at)}"
    return Timing(due_at=due_at, expires_at=expires_at, too_late=too_late)

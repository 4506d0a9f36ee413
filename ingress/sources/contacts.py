"""How the words of a source for a person become a Contact that can be called and recognised.

Phones become E.164, read with the contact's country, else the source's region; possible numbers count, because strict
validity rejects real ranges (Leadwire's design, section 5). What cannot be read is left out, never guessed: the raw value
stays in `data`. Country is what the source says, not what a phone suggests.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import phonenumbers

from rules.paths import CompiledPath, Scope, text_of
from rules.vocabulary import Contact, Json

#: Longest text kept of each field; what is longer is no such thing.
ID_LIMIT: Final = 255
NAME_LIMIT: Final = 200
EMAIL_LIMIT: Final = 320
LABEL_LIMIT: Final = 64

_COUNTRY: Final = re.compile(r"[A-Za-z]{2}")
_DIGITS: Final = re.compile(r"[0-9]{8,15}")
#: Everything a raw phone number of any notation fits into.
_PHONE_LIMIT: Final = 64
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")

PHONE_NOTE: Final = (
    "contact.phone is no phone number; a number without country code needs contact.country or the source's region"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContactPaths:
    """Where an item says who it is about; None: it does not."""

    id: CompiledPath | None = None
    name: CompiledPath | None = None
    phone: CompiledPath | None = None
    email: CompiledPath | None = None
    country: CompiledPath | None = None
    timezone: CompiledPath | None = None
    language: CompiledPath | None = None
    consent: CompiledPath | None = None

    def read(self, scope: Scope, region: str | None) -> tuple[Contact, str | None]:
        """Return the contact, and a note when it has a phone that cannot be used."""
        country = country_of(_find(self.country, scope))
        raw_phone = _find(self.phone, scope)
        phone = phone_of(raw_phone, country or region)
        consent = _find(self.consent, scope)
        contact = Contact(
            id=bounded(_find(self.id, scope), ID_LIMIT),
            name=bounded(_find(self.name, scope), NAME_LIMIT),
            phone=phone,
            email=email_of(_find(self.email, scope)),
            country=country,
            timezone=bounded(_find(self.timezone, scope), LABEL_LIMIT),
            language=bounded(_find(self.language, scope), LABEL_LIMIT),
            consent=consent if isinstance(consent, dict) else None,
        )
        return contact, PHONE_NOTE if phone is None and text_of(raw_phone) else None


def phone_of(value: Json, region: str | None) -> str | None:
    """Return a raw phone as E.164, or None when it is none; `region` is ISO 3166-1 alpha-2 and reads national numbers."""
    raw = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(raw, str) or not raw.strip() or len(raw) > _PHONE_LIMIT:
        return None
    found = _parsed(raw.strip(), region)
    if found is None and (raw[0] == " " or raw.startswith("00")):
        # A literal plus in a form arrives as a blank; 00 is how most of the world dials abroad.
        digits = raw.strip().removeprefix("00")
        found = _parsed("+" + digits, None) if _DIGITS.fullmatch(digits.replace(" ", "")) else None
    return found


def country_of(value: Json) -> str | None:
    """Return a country as upper-case alpha-2, or None: names are not guessed at."""
    text = text_of(value)
    return text.upper() if text and _COUNTRY.fullmatch(text) else None


def email_of(value: Json) -> str | None:
    """Return an e-mail address as it came, trimmed, or None when it cannot be one."""
    text = text_of(value)
    if not text or len(text) > EMAIL_LIMIT or "@" not in text[1:-1] or _CONTROL.search(text):
        return None
    return text


def bounded(value: Json, limit: int) -> str | None:
    """Return a value as one line of text with at most `limit` characters, or None when there is none."""
    text = text_of(value)
    return (_CONTROL.sub(" ", text)[:limit].strip() or None) if text else None


def _parsed(raw: str, region: str | None) -> str | None:
    try:
        number = phonenumbers.parse(raw, region)
    except phonenumbers.NumberParseException:
        return None
    if not phonenumbers.is_possible_number(number):
        return None
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)


def _find(lookup: CompiledPath | None, scope: Scope) -> Json:
    return lookup.find(scope) if lookup else None

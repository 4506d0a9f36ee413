"""What the filters of templates do: `phone money date local_time default first_name`, and a few plain ones made safe.

Each is total: what it cannot work with raises TemplateError with the reason and the remedy, never another exception. A
missing value given to any of them but `default` is reported by its name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from decimal import ROUND_HALF_UP, Decimal
from functools import lru_cache
from typing import Final

import phonenumbers
from jinja2 import pass_context
from jinja2.runtime import Context, Undefined

from rules.messages import as_json
from rules.times import is_date, is_zone, read_moment, to_local
from rules.vocabulary import Json, Problem

#: The name under which a view says in which zone `date` and `local_time` tell the time; no path can name it.
ZONE: Final = "_zone"

#: A text made in a template is at most this long, in characters.
TEXT_LIMIT: Final = 100_000

_PLACES_LIMIT: Final = 10
#: Longer texts are no phone number, and are not to be remembered.
_PHONE_LIMIT: Final = 250
_AMOUNT: Final = re.compile(r"-?[0-9]{1,30}(\.[0-9]{1,30})?", re.ASCII)
_AMOUNT_LIMIT: Final = Decimal(10) ** 18
_FORMAT_LIMIT: Final = 64
_DIRECTIVES: Final = frozenset("YmdHMSyBbAajpI%")


class TemplateError(Problem):
    """A template that could not be rendered; the message names what was missing or wrong, and the remedy."""


def _text(value: Json) -> str:
    """Return a text or a number as text; a missing value raises the error that names it."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | dict | list | tuple):
        raise TemplateError(f"{as_json(value, 80)} is no text")
    return str(value)


@pass_context
def phone(context: Context, value: Json, form: str = "international") -> str:
    """A phone number for people: "+56 2 2345 6789"; form "national" or "e164" instead. Its country: the contact's."""
    forms = {
        "international": phonenumbers.PhoneNumberFormat.INTERNATIONAL,
        "national": phonenumbers.PhoneNumberFormat.NATIONAL,
        "e164": phonenumbers.PhoneNumberFormat.E164,
    }
    if form not in forms:
        raise TemplateError(f"phone: there is no form {as_json(form)}; write one of {', '.join(forms)}")
    contact = context.get("contact")
    country = contact.get("country") if isinstance(contact, dict) else None
    number = _number(_text(value), country if isinstance(country, str) else None)
    if number is None:
        raise TemplateError(f"phone: {as_json(value)} is no phone number; write it with + and the country code")
    return phonenumbers.format_number(number, forms[form])


def e164(text: str, country: str | None) -> str | None:
    """Return a phone number as E.164, read as one of `country` where it has no country code; None if it cannot be one."""
    number = _number(text, country)
    return None if number is None else phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)


def _number(text: str, country: str | None) -> phonenumbers.PhoneNumber | None:
    return _parsed(text, country) if len(text) + len(country or "") <= _PHONE_LIMIT else None


@lru_cache(maxsize=4096)
def _parsed(text: str, country: str | None) -> phonenumbers.PhoneNumber | None:
    try:
        number = phonenumbers.parse(text, country.strip().upper() if country else None)
    except phonenumbers.NumberParseException:
        return None
    return number if phonenumbers.is_possible_number(number) else None


def money(value: Json, currency: str = "", decimals: Json = None, thousands: str = ",") -> str:
    """An amount for people: 12000 is "12,000", 12000.5 is "12,000.50", and with "USD" as argument "USD 12,000".

    `decimals` fixes the digits after the point (else none for whole amounts and two for others); `thousands` is the
    separator, `","`, `"."` or `" "`; with `"."` the decimal mark is a comma.
    """
    exact = _amount(value)
    if thousands not in {",", ".", " "}:
        raise TemplateError(f'money: thousands is ",", "." or " ", not {as_json(thousands)}')
    digits = decimals if decimals is not None else 0 if exact == exact.to_integral_value() else 2
    if isinstance(digits, bool) or not isinstance(digits, int) or not 0 <= digits <= _PLACES_LIMIT:
        raise TemplateError(f"money: decimals is a number from 0 to {_PLACES_LIMIT}, not {as_json(decimals)}")
    rounded = exact.quantize(Decimal(1).scaleb(-digits), rounding=ROUND_HALF_UP)
    amount = f"{rounded:,}".translate(str.maketrans(",.", thousands + ("," if thousands == "." else ".")))
    return f"{_text(currency)} {amount}".strip()


def _amount(value: Json) -> Decimal:
    written = repr(value) if isinstance(value, float) else _text(value).strip()
    exact: Decimal | None = None
    if isinstance(value, float):
        exact = Decimal(written) if math.isfinite(value) else None
    elif not isinstance(value, bool) and _AMOUNT.fullmatch(written):
        exact = Decimal(written)
    if exact is None or abs(exact) >= _AMOUNT_LIMIT:
        raise TemplateError(
            f"money: {as_json(value)} is no amount; give a number or a text such as 12000.50, below 10^18"
        )
    return exact


@pass_context
def date(context: Context, value: Json, zone: str | None = None, form: str = "%Y-%m-%d") -> str:
    """The date of a moment in the contact's zone, or in the one given: "2026-12-01"; form="%d/%m/%Y" -> "01/12/2026".

    A moment without an offset is local already, and a value that is only a date is that date everywhere.
    """
    return _formatted("date", _local("date", context, value, zone), form)


@pass_context
def local_time(context: Context, value: Json, zone: str | None = None, form: str = "%H:%M") -> str:
    """The time of day of a moment in the contact's zone, or in the one given: "14:30"; form="%H:%M:%S" with seconds."""
    if is_date(_text(value)):
        raise TemplateError(f"local_time: {as_json(value)} has no time of day")
    return _formatted("local_time", _local("local_time", context, value, zone), form)


def _local(name: str, context: Context, value: Json, zone: str | None) -> datetime:
    if zone is not None and not is_zone(zone):
        raise TemplateError(
            f'{name}: {as_json(zone)} is no time zone; write {name}("America/Santiago") or form="%d/%m/%Y"'
        )
    try:
        moment = read_moment(_text(value))
        if moment.tzinfo is None:
            return moment
        where = zone or context.get(ZONE)
        if not isinstance(where, str):
            raise TemplateError(
                f'{name}: the zone of the contact is not known; name one, {name}("America/Santiago"), or set '
                "country_zones or timezone in defaults"
            )
        return to_local(moment, where)
    except ValueError as error:
        raise TemplateError(f"{name}: {error}") from None


def _formatted(name: str, moment: datetime, form: str) -> str:
    used = _text(form)
    directives = re.findall(r"%(.?)", used, re.DOTALL)
    wrong = next((f"%{letter}" for letter in directives if letter not in _DIRECTIVES or not letter), None)
    if wrong is not None or len(used) > _FORMAT_LIMIT:
        known = " ".join(f"%{letter}" for letter in sorted(_DIRECTIVES))
        raise TemplateError(
            f"{name}: the form {as_json(used, 80)} has {wrong or 'too many characters'}; known are {known}"
        )
    return "".join(
        moment.strftime(part) if part.startswith("%") else part for part in re.split(r"(%.)", used, flags=re.DOTALL)
    )


def default(value: Json, fallback: Json = "", also_empty: bool = False) -> Json:
    """The value, or `fallback` where it is absent or null; with `true` as second argument also where it is empty or false."""
    if value is None or isinstance(value, Undefined) or (also_empty and not value):
        return fallback
    return value


def first_name(value: Json) -> str:
    """The first word of a name: "Ana López" -> "Ana", and "López, Ana" -> "Ana"."""
    name = _text(value)
    family, comma, given = name.partition(",")
    words = (given if comma and given.strip() else family).split()
    if not words:
        raise TemplateError(f"first_name: there is no name in {as_json(value)}")
    return words[0]


# Plain ones, made safe -----------------------------------------------------------------------------------------------


def bounded(text: str) -> str:
    """Return a text made in a template; TemplateError where it is over the limit."""
    if len(text) > TEXT_LIMIT:
        raise TemplateError(f"a text of {len(text):,} characters is made here; {TEXT_LIMIT:,} are allowed")
    return text


def replace(value: Json, old: str, new: str) -> str:
    """The text with every `old` replaced by `new`."""
    text, sought, put = _text(value), _text(old), _text(new)
    if not sought:
        raise TemplateError("replace: the text to be replaced is empty")
    if len(text) + text.count(sought) * len(put) > TEXT_LIMIT * 2:
        raise TemplateError(f"replace: the result has more than {TEXT_LIMIT:,} characters")
    return bounded(text.replace(sought, put))


def join(value: Iterable[Json], separator: str = "") -> str:
    """The items of a list as one text, with `separator` between them."""
    if isinstance(value, str):
        return value
    parts: list[str] = []
    length = 0
    for item in value:
        part = in_words(item)
        length += len(part) + len(separator)
        if length > TEXT_LIMIT:
            raise TemplateError(f"join: the result has more than {TEXT_LIMIT:,} characters")
        parts.append(part)
    return _text(separator).join(parts)


def concatenated(parts: Iterable[Json]) -> str:
    """What `a ~ b` makes: the parts as one text."""
    return join(list(parts))


def rounded(value: Json, digits: Json = 0) -> Json:
    """The number rounded half up to so many digits after the point; none gives a whole number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TemplateError(f"round: {as_json(value)} is no number")
    if isinstance(digits, bool) or not isinstance(digits, int) or not 0 <= digits <= _PLACES_LIMIT:
        raise TemplateError(f"round: the digits are a number from 0 to {_PLACES_LIMIT}, not {as_json(digits)}")
    exact = _amount(value).quantize(Decimal(1).scaleb(-digits), rounding=ROUND_HALF_UP)
    return float(exact) if digits else int(exact)


def total(value: Iterable[Json]) -> Json:
    """The sum of a list of numbers."""
    items = list(value)
    wrong = next((item for item in items if isinstance(item, bool) or not isinstance(item, int | float)), None)
    if wrong is not None:
        raise TemplateError(f"sum: {as_json(wrong)} is no number")
    return sum(items)


def tojson(value: Json) -> str:
    """The value as JSON text."""
    return bounded(json.dumps(value, ensure_ascii=False, default=str))


def in_words(value: Json) -> str:
    """Return a value as it appears in a text: true and false as JSON writes them, lists and mappings as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, range):
        value = list(value)
    if isinstance(value, bool | dict | list | tuple):
        return json.dumps(value, ensure_ascii=False, default=str)  # str names what is missing inside
    return str(value)


#: The documented filters, by the name templates use.
DOCUMENTED: Final[Mapping[str, Callable[..., Json]]] = {
    "phone": phone,
    "money": money,
    "date": date,
    "local_time": local_time,
    "default": default,
    "first_name": first_name,
}

#: Filters of Jinja2 in our own, bounded form.
REPLACED: Final[Mapping[str, Callable[..., Json]]] = {
    "join": join,
    "replace": replace,
    "round": rounded,
    "sum": total,
    "tojson": tojson,
}

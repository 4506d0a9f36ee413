"""Which single values a rule file may hold, and the complaint about one that it may not.

Each function takes a value as read and returns it checked (parsed, where that is its purpose), or raises ValueError (its
own are `UnfitError`) with a message for the author. What the providers ask of a value is in `rules/provider_shapes.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from rules.messages import did_you_mean, kind, nearest, shown
from rules.templates import is_template
from rules.times import At, is_zone, parse_at, parse_date, parse_span, read_moment, zone_names
from rules.variables import Constant, Numeral, Pending
from rules.vocabulary import Json
from rules.yaml_reader import Path

Check = Callable[[Json], Json]

TIME_PATTERN: Final = r"([01][0-9]|2[0-3]):[0-5][0-9]"
NAME_LIMIT_CHARACTERS: Final = 100

#: Retry schedules with a name. Source: Standard Webhooks specification, example schedule, read 2026-11.
SCHEDULES: Final = {
    "standard-webhooks": tuple(
        timedelta(seconds=seconds) for seconds in (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
    )
}

_BEGINS_LIKE_A_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")

EMPTY: Final = "is empty: give it a value, or remove it"


class UnfitError(ValueError):
    """A value that may not stand where it stands.

    `inside` leads from the value to the part that is wrong, with `at_key` to that part's key; `more` are the faults of
    other parts of the same value.
    """

    def __init__(
        self, message: str, inside: Path = (), *, at_key: bool = False, more: tuple[UnfitError, ...] = ()
    ) -> None:
        super().__init__(message)
        self.inside = inside
        self.at_key = at_key
        self.more = more


def raise_all(faults: list[UnfitError]) -> None:
    """Raise the faults of one value together, if there are any."""
    if faults:
        first = faults[0]
        raise UnfitError(str(first), first.inside, at_key=first.at_key, more=(*first.more, *faults[1:]))


def within(error: ValueError, step: str | int) -> UnfitError:
    """Return the fault of a part of a value as a fault of the value."""
    return UnfitError(str(error), (step, *getattr(error, "inside", ())))


def fixed(check: Check) -> Check:
    """Return a check for a value that no template may give; a variable that is not resolved here passes."""

    def checked(value: Json) -> Json:
        if isinstance(value, Pending):
            return value
        if _has_code(value):
            raise UnfitError("cannot be a template: this value is needed before there is an event")
        return check(value)

    return checked


def dynamic(check: Check) -> Check:
    """Return a check for a value that a template may give: a template passes, its result is checked when it is there."""

    def checked(value: Json) -> Json:
        return value if isinstance(value, Pending) or _has_code(value) else check(value)

    return checked


def _has_code(value: Json) -> bool:
    return isinstance(value, str) and not isinstance(value, Constant) and is_template(value)


def each(check: Check, values: list[Json]) -> list[Json]:
    """Return a list with each entry checked; each that is wrong is a fault of its own."""
    checked, faults = [], []
    for index, value in enumerate(values):
        try:
            checked.append(check(value))
        except ValueError as error:
            faults.append(within(error, index))
    raise_all(faults)
    return checked


def present(value: Json) -> Json:
    """Return the value; a key without a value is refused."""
    if value is None:
        raise UnfitError(EMPTY)
    return value


def text(value: Json) -> str:
    """Return text that is not empty."""
    if value is None:
        raise UnfitError(EMPTY)
    if isinstance(value, int | float):
        raise UnfitError(f"must be text, not {kind(value)}: put it in quotes")
    if not isinstance(value, str):
        raise UnfitError(f"must be text, not {kind(value)}")
    if not value.strip():
        raise UnfitError("must not be empty text")
    return value


def unless_missing(check: Check) -> Check:
    """Return a check that also takes what an event carries where nothing is known: null, or an empty text."""
    return lambda value: value if value is None or value == "" else check(value)


def name(value: Json) -> str:
    """Return a name: text in one line that messages, keys and lists can carry."""
    found = text(value)
    if len(found) > NAME_LIMIT_CHARACTERS:
        raise UnfitError(f"must have at most {NAME_LIMIT_CHARACTERS} characters, not {len(found)}")
    odd = next((letter for letter in found if not letter.isprintable()), None)
    if odd is not None and odd not in "\r\n\x85\u2028\u2029":
        raise UnfitError(f"must not hold the unprintable character U+{ord(odd):04X}: remove it")
    if odd is not None or found != found.strip():
        raise UnfitError("must be one line without spaces around it")
    return found


def task_name(value: Json) -> str:
    """Return the name of a task: a name without `/`."""
    found = name(value)
    if "/" in found:
        raise UnfitError("must not hold a `/`: it separates the names of tasks that follow on one another")
    return found


def event_type(value: Json) -> str:
    """Return an event type or a pattern with at most one `*`."""
    found = name(value)
    if found.count("*") > 1:
        raise UnfitError(f"must hold at most one `*`, as in deal.*; {shown(found)} holds {found.count('*')}")
    return found


def event_types(value: Json) -> tuple[str, ...]:
    """Return what a rule listens to: one type, or a list of them."""
    if isinstance(value, dict):
        if "absent" in value:
            raise UnfitError("`absent` is not yet supported: for now a rule listens to an event that came")
        raise UnfitError("must be an event type, a list of them, or a pattern such as deal.*, not a mapping")
    if not isinstance(value, list):
        return (event_type(value),)
    if not value:
        raise UnfitError("must name at least one event type")
    return tuple(each(event_type, value))


def version(value: Json) -> int:
    """Return the version of the grammar: 1."""
    if value != 1 or isinstance(value, bool) or not isinstance(value, int):
        raise UnfitError(f"must be 1, the one version of rule files there is, not {kind(value)}")
    return 1


def flag(value: Json) -> bool:
    """Return true or false."""
    if not isinstance(value, bool):
        raise UnfitError(f"must be true or false, not {kind(value)}")
    return value


def one_of(*words: str) -> Check:
    """Return a check for a closed set of words."""

    def checked(value: Json) -> Json:
        if value not in words:
            hint = did_you_mean(value, words) if isinstance(value, str) else ""
            raise UnfitError(f"must be {' or '.join(words)}, not {kind(value)}{hint}")
        return value

    return checked


def whole(least: int, most: int | None = None, because: str = "") -> Check:
    """Return a check for a whole number between two bounds, both included."""
    bounds = f"from {least} to {most}" if most is not None else f"of {least} or more"

    def checked(value: Json) -> Json:
        if isinstance(value, Numeral):
            value = value.number()
        if isinstance(value, str) and re.fullmatch(r"-?[0-9]+", value):
            raise UnfitError(f"must be a whole number {bounds} without quotes{because}, not the text {shown(value)}")
        if not isinstance(value, int) or isinstance(value, bool) or value < least or (most or value) < value:
            raise UnfitError(f"must be a whole number {bounds}{because}, not {kind(value)}")
        return value

    return checked


def number(least: float, most: float) -> Check:
    """Return a check for a number between two bounds, both included."""

    def checked(value: Json) -> Json:
        if isinstance(value, Numeral):
            value = value.number()
        if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
            raise UnfitError(f"must be a number from {least} to {most}, not {kind(value)}")
        return float(value)

    return checked


def jitter(value: Json) -> Json:
    """Return the largest part of a delay that chance may add, or "full"."""
    if value == "full":
        return value
    try:
        return number(0, 1)(value)
    except ValueError as error:
        raise UnfitError(f"must be a number from 0 to 1, or full, not {kind(value)}") from error


def span(value: Json) -> timedelta:
    """Return a span that is longer than nothing; a leading `+` is allowed."""
    if isinstance(value, bool) or not isinstance(value, str):
        remedy = ": say the unit" if isinstance(value, int | float) and not isinstance(value, bool) else ""
        raise UnfitError(f"must be a span such as 90s, 15m, 2h, 3d or 2w, not {kind(value)}{remedy}")
    found = parse_span(value.removeprefix("+"))
    if found <= timedelta(0):
        raise UnfitError(f"must be longer than nothing, not {shown(value)}")
    return found


def at(value: Json) -> At:
    """Return when a task is to be made: `now`, `+10m`, `next 09:00`, or a moment."""
    written = text(value)
    try:
        return parse_at(written)
    except ValueError as error:
        if _BEGINS_LIKE_A_DATE.match(written):
            read_moment(written)  # says better what is wrong with a moment
        raise UnfitError(f'must be now, +10m, "next 09:00" or a moment such as 2026-12-01T14:00; {error}') from error


def due_text(value: Json) -> timedelta:
    """Return the span after which a team task is due, when it is written as text."""
    try:
        return span(value)
    except ValueError as error:
        raise UnfitError(
            f'must be a span such as +2h, or {{date: 2026-12-01, time: "14:00"}}, not {kind(value)}'
        ) from error


def day(value: Json) -> str:
    """Return a date that exists, as `YYYY-MM-DD`."""
    if not isinstance(value, str):
        raise UnfitError(f"must be a date such as 2026-12-01, not {kind(value)}")
    parse_date(value)
    return value


def clock(value: Json) -> str:
    """Return a time of day, `HH:MM` with 24 hours, as Vambe takes it."""
    if isinstance(value, str) and re.fullmatch(TIME_PATTERN, value):
        return value
    raise UnfitError(f'must be a time of day such as "09:00" or "14:30" (HH:MM, 24 hours), not {kind(value)}')


def moment(value: Json) -> str:
    """Return a moment as ISO 8601 text, as it stands in a test."""
    if not isinstance(value, str):
        raise UnfitError(f'must be a moment such as "2026-03-02T10:00:00-03:00", not {kind(value)}')
    read_moment(value)
    return value


def zone(value: Json) -> str:
    """Return the IANA name of a time zone."""
    if isinstance(value, str) and is_zone(value):
        return value
    hint = ""
    if isinstance(value, str):
        last = {known.rpartition("/")[2]: known for known in sorted(zone_names(), reverse=True)}
        meant = last.get(value.strip().title().replace(" ", "_")) or nearest(value, zone_names())
        hint = f"; did you mean {meant}?" if meant else ""
    raise UnfitError(f"must be the name of a time zone such as America/Santiago, not {kind(value)}{hint}")


def mapping(value: Json) -> dict[str, Json]:
    """Return a mapping, whatever it holds."""
    if not isinstance(value, dict):
        raise UnfitError(EMPTY if value is None else f"must be a mapping, not {kind(value)}")
    return value


def no_calendars(value: Json) -> None:
    """Return nothing: calendars come with windows."""
    if value is not None:
        raise UnfitError("`calendars` are not yet supported: they come with calling windows; remove the section")


def schedule(value: Json) -> tuple[timedelta, ...] | Pending:
    """Return the delays of a custom retry: a list of spans, or the name of a shipped list."""
    if isinstance(value, str):
        if value not in SCHEDULES:
            hint = did_you_mean(value, SCHEDULES)
            raise UnfitError(
                f"must be a list of spans such as [1m, 5m, 1h], or {' or '.join(SCHEDULES)}, not {kind(value)}{hint}"
            )
        return SCHEDULES[value]
    if not isinstance(value, list) or not value:
        raise UnfitError(f"must be a list of spans such as [1m, 5m, 1h], not {kind(value) if value else 'empty'}")
    return tuple(each(span, value))


def items(what: str) -> Check:
    """Return a check for a list that holds at least one entry."""

    def checked(value: Json) -> Json:
        if value is None or value == []:
            raise UnfitError(f"must hold at least one {what}")
        return value

    return checked


def country_zones(value: Json) -> Json:
    """Return a mapping of country codes to zones, each pair checked by itself."""
    if not isinstance(value, dict):
        raise UnfitError(EMPTY if value is None else f"must be a mapping, not {kind(value)}")
    faults = []
    for country, one in value.items():
        if not re.fullmatch(r"[A-Z]{2}", country):
            meant = f"; did you mean {country.upper()}?" if re.fullmatch(r"[A-Za-z]{2}", country) else ""
            message = f"must be a country code of two capital letters, such as CL, not {shown(country)}{meant}"
            faults.append(UnfitError(message, (country,), at_key=True))
        try:
            fixed(zone)(one)
        except ValueError as error:
            faults.append(within(error, country))
    raise_all(faults)
    return value


def expected(value: Json) -> tuple[tuple[str, dict[str, Json]], ...]:
    """Return what a test expects: pairs of a task's type or name and the fields it must have."""
    if not isinstance(value, list):
        raise UnfitError(f"must be a list of tasks such as [make_call, team_task], or [] for none, not {kind(value)}")
    return tuple(each(_expected_task, value))


def _expected_task(entry: Json) -> tuple[str, dict[str, Json]]:
    if isinstance(entry, str):
        return entry, {}
    if isinstance(entry, dict) and len(entry) == 1:
        ((task, fields),) = entry.items()
        if fields is None or isinstance(fields, dict):
            return task, fields or {}
    raise UnfitError(
        "must be one task such as make_call or {make_call: {title: Call Ana}}, "
        f"not {shown(entry) if isinstance(entry, dict) else kind(entry)}"
    )

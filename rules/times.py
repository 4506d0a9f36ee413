"""How spans, moments, times of day and time zones are written.

Spans are `90s 15m 2h 3d 2w`. Moments are ISO 8601: a date, or a date and a time with or without an offset. Zones are
the names of the IANA database as the `tzdata` package lists them, so that a rule means the same on every machine.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from importlib.resources import files
from typing import Final
from zoneinfo import ZoneInfo

from rules.showing import as_json
from rules.wording import nearest

_SPAN: Final = re.compile(r"\+?([0-9]{1,9})([smhdw])", re.ASCII)
_UNIT_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_LONGEST: Final = timedelta(days=3_660)
_CLOCK: Final = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])(?::([0-5][0-9]))?", re.ASCII)
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)
_MOMENT: Final = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ]([0-9]{2}:[0-9]{2}(?::[0-9]{2})?)([.,][0-9]{1,9})?"
    r"(Z|z|[+-][0-9]{2}(?::?[0-9]{2})?)?",
    re.ASCII,
)
_LONGEST_TEXT: Final = 64


def parse_span(text: object) -> timedelta:
    """Read a span such as `15m`; a leading `+` says "from now" and changes nothing.

    Raises ValueError with a message for the author of the rule.
    """
    found = _SPAN.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise ValueError(
            f"{as_json(text)} is no span of time: write a whole number and s, m, h, d or w, such as 90s or 2h"
        )
    span = timedelta(seconds=int(found[1]) * _UNIT_SECONDS[found[2]])
    if span > _LONGEST:
        raise ValueError(f"{text} is longer than ten years (3660d), the longest span there is")
    return span


def is_span(text: str) -> bool:
    """Say whether a text has the form of a span, as `2h` and `+2h` have."""
    return _SPAN.fullmatch(text) is not None


def parse_clock(text: object) -> time:
    """Read a time of day, `HH:MM` or `HH:MM:SS` on the 24-hour clock; ValueError otherwise."""
    found = _CLOCK.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise ValueError(f'{as_json(text)} is no time of day: write HH:MM from "00:00" to "23:59", quoted')
    return time(int(found[1]), int(found[2]), int(found[3] or 0))


def parse_date(text: object) -> date:
    """Read a date, `YYYY-MM-DD`; ValueError otherwise."""
    if isinstance(text, str) and _DATE.fullmatch(text):
        try:
            return date.fromisoformat(text)
        except ValueError:
            raise ValueError(f"{as_json(text)} is not in the calendar") from None
    raise ValueError(f"{as_json(text)} is no date: write YYYY-MM-DD")


def is_date(text: str) -> bool:
    """Say whether a text has the form of a date without a time."""
    return _DATE.fullmatch(text) is not None


def read_moment(text: object) -> datetime:
    """Read a moment; the answer is aware UTC when it has an offset, else naive (a date is its midnight).

    Raises ValueError with a message for the author of the rule.
    """
    if not isinstance(text, str) or len(text) > _LONGEST_TEXT:
        raise ValueError(_no_moment(text))
    if is_date(text):
        return datetime.combine(parse_date(text), time())
    found = _MOMENT.fullmatch(text)
    if found is None:
        raise ValueError(_no_moment(text))
    day, clock, fraction, offset = found.groups()
    zone = "+00:00" if offset in {"Z", "z"} else offset or ""
    try:
        moment = datetime.fromisoformat(f"{day}T{clock}{(fraction or '').replace(',', '.')[:7]}{zone}")
        return moment.astimezone(UTC) if moment.tzinfo else moment
    except (ValueError, OverflowError):
        raise ValueError(f"{as_json(text)} is not in the calendar") from None


def _no_moment(text: object) -> str:
    return f"{as_json(text)} is no moment: write ISO 8601, such as 2026-12-01T14:00:00-03:00 or 2026-12-01"


def read_instant(text: str) -> datetime:
    """Read a moment as aware UTC; one without an offset is taken as UTC. Raises ValueError."""
    moment = read_moment(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


@lru_cache(maxsize=1)
def zone_names() -> frozenset[str]:
    """Return the names of all time zones."""
    return frozenset((files("tzdata") / "zones").read_text(encoding="utf-8").split())


def is_zone(name: object) -> bool:
    """Say whether this is the name of a time zone."""
    return isinstance(name, str) and name in zone_names()


def zone(name: object) -> ZoneInfo:
    """Return the time zone of that name; ValueError names the nearest one."""
    if not is_zone(name):
        near = nearest(str(name), zone_names())
        hint = f"did you mean {near}?" if near else "write a name of the IANA database, such as America/Santiago"
        raise ValueError(f"{as_json(name)} is no time zone; {hint}")
    return ZoneInfo(str(name))


def to_utc(local: datetime, name: str) -> datetime:
    """Return the UTC moment of a naive local time in a zone.

    A local time that the clocks skip moves forward by what they skip (02:30 becomes 03:30); one that they show twice is
    the first of the two. Raises ValueError at the ends of the calendar.
    """
    try:
        return local.replace(tzinfo=zone(name), fold=0).astimezone(UTC)
    except OverflowError:
        raise ValueError(f"{local.isoformat()} in {name} is outside of the calendar") from None


def to_local(moment: datetime, name: str) -> datetime:
    """Return an aware moment as local time in a zone; ValueError at the ends of the calendar."""
    try:
        return moment.astimezone(zone(name))
    except OverflowError:
        raise ValueError(f"{moment.isoformat()} in {name} is outside of the calendar") from None

"""Spans, moments, times of day and time zones: how they are written, and what they mean for a contact.

Spans are `90s 15m 2h 3d 2w`. Moments are ISO 8601: a date, or a date and a time with or without an offset. Zones are the names
of the IANA database as the `tzdata` package lists them, so that a rule means the same on every machine.

A moment without an offset is local time in the contact's zone; where several zones are possible, the latest of them counts, so
that it is not too early anywhere. A local time that the clocks skip moves forward by what they skip (02:30 becomes 03:30); one
that they show twice is the first of the two. Arithmetic is in UTC.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from importlib.resources import files
from typing import Final
from zoneinfo import ZoneInfo

import phonenumbers

from rules.messages import as_json, nearest
from rules.vocabulary import Contact

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
    """Parse a span such as `15m`; a leading `+` ("from now") is ignored.

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
    """Return whether a text looks like a span: `2h`, `+2h`."""
    return _SPAN.fullmatch(text) is not None


def parse_clock(text: object) -> time:
    """Parse a time of day, `HH:MM` or `HH:MM:SS` (24 hours). Raises ValueError."""
    found = _CLOCK.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise ValueError(f'{as_json(text)} is no time of day: write HH:MM from "00:00" to "23:59", quoted')
    return time(int(found[1]), int(found[2]), int(found[3] or 0))


def parse_date(text: object) -> date:
    """Parse a date, `YYYY-MM-DD`. Raises ValueError."""
    if isinstance(text, str) and _DATE.fullmatch(text):
        try:
            return date.fromisoformat(text)
        except ValueError:
            raise ValueError(f"{as_json(text)} is not in the calendar") from None
    raise ValueError(f"{as_json(text)} is no date: write YYYY-MM-DD")


def is_date(text: str) -> bool:
    """Return whether a text looks like a date without a time."""
    return _DATE.fullmatch(text) is not None


def read_moment(text: object) -> datetime:
    """Parse a moment: aware UTC when it has an offset, else naive (a date is its midnight).

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
    """Parse a moment as aware UTC; without an offset it is taken as UTC. Raises ValueError."""
    moment = read_moment(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


@lru_cache(maxsize=1)
def zone_names() -> frozenset[str]:
    """Return the names of all time zones."""
    return frozenset((files("tzdata") / "zones").read_text(encoding="utf-8").split())


def is_zone(name: object) -> bool:
    """Return whether this is the name of a time zone."""
    return isinstance(name, str) and name in zone_names()


def zone(name: object) -> ZoneInfo:
    """Return the time zone with this name. ValueError suggests a similar name."""
    if not is_zone(name):
        near = nearest(str(name), zone_names())
        hint = f"did you mean {near}?" if near else "write a name of the IANA database, such as America/Santiago"
        raise ValueError(f"{as_json(name)} is no time zone; {hint}")
    return ZoneInfo(str(name))


def to_utc(local: datetime, name: str) -> datetime:
    """Return the UTC moment of a naive local time in a zone. Raises ValueError outside the range of datetime."""
    try:
        return local.replace(tzinfo=zone(name), fold=0).astimezone(UTC)
    except OverflowError:
        raise ValueError(f"{local.isoformat()} in {name} is outside of the calendar") from None


def to_local(moment: datetime, name: str) -> datetime:
    """Return an aware moment as local time in a zone. Raises ValueError outside the range of datetime."""
    try:
        return moment.astimezone(zone(name))
    except OverflowError:
        raise ValueError(f"{moment.isoformat()} in {name} is outside of the calendar") from None


_NEXT: Final = re.compile(r"next +(\S+)", re.ASCII)
_MINUTE: Final = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class At:
    """When to make a task: a span from now, the next time that clocks show `clock`, or a moment; exactly one is set.

    A `moment` without an offset is local time.
    """

    after: timedelta | None = None
    clock: time | None = None
    moment: datetime | None = None

    @property
    def needs_zone(self) -> bool:
        """Whether the result depends on the contact's time zone."""
        return self.clock is not None or (self.moment is not None and self.moment.tzinfo is None)

    def resolve(self, now: datetime, zones: Sequence[str]) -> datetime:
        """Return the moment as aware UTC, never before `now`.

        `zones` are the zones the contact may be in; the latest result counts. Without zones UTC is used. Raises ValueError for
        an unknown zone and outside the range of datetime.
        """
        now = now.astimezone(UTC)
        if self.after is not None:
            return _plus(now, self.after)
        places = tuple(zones) or ("UTC",)
        if self.clock is not None:
            return next_clock(now, self.clock, places)
        assert self.moment is not None
        if self.moment.tzinfo is not None:
            return max(now, self.moment.astimezone(UTC))
        return max(now, *(to_utc(self.moment, zone) for zone in places))


def parse_at(text: object) -> At:
    """Parse `now`, `+10m`, `next 09:00` or a moment. Raises ValueError with a message for the author of the rule."""
    words = text.strip() if isinstance(text, str) else ""
    if words == "now":
        return At(after=timedelta())
    if words.startswith("+"):
        return At(after=parse_span(words))
    following = _NEXT.fullmatch(words)
    if following:
        return At(clock=parse_clock(following[1].strip("\"'")))
    try:
        return At(moment=read_moment(words))
    except ValueError:
        raise ValueError(f"{as_json(text)} is no moment: {_FORMS}") from None


_FORMS: Final = 'write now, a span such as +10m, "next 09:00", or a moment such as 2026-12-01T14:00:00-03:00'


def parse_moment(text: object, zone: str) -> datetime:
    """Parse a moment as aware UTC; without an offset it is local time in `zone`. Raises ValueError."""
    moment = read_moment(text)
    return moment if moment.tzinfo else to_utc(moment, zone)


def next_clock(now: datetime, clock: time, zones: Sequence[str]) -> datetime:
    """Return the first moment after `now`, as aware UTC, by which it is or was this time of day in all these zones.

    Computed for each day, with that day's latest zone: with zones five hours apart, "next 09:00" is 09:00 in the last of them,
    never before 09:00 in any. On a day on which clocks skip the time, the result is later by the skipped span. Raises
    ValueError without zones and outside the range of datetime.
    """
    try:
        today = min(to_local(now, zone).date() for zone in zones)
        # From yesterday, whose skipped time can lie after midnight; a whole day has been skipped too (Apia, 2011).
        for days in range(-1, 5):
            local = datetime.combine(today + timedelta(days=days), clock)
            candidate = max(to_utc(local, zone) for zone in zones)
            if candidate > now:
                return candidate
    except OverflowError:
        pass
    raise ValueError(f"after {now.isoformat()} there is no {clock.isoformat('minutes')} within the calendar")


def local_minute(moment: datetime, zone: str) -> datetime:
    """Return a moment as local time in a zone, rounded up to a whole minute, so that it is never too early."""
    rounded = moment.astimezone(UTC).replace(second=0, microsecond=0)
    return to_local(rounded if rounded == moment else _plus(rounded, _MINUTE), zone)


def _plus(moment: datetime, span: timedelta) -> datetime:
    try:
        return moment + span
    except OverflowError:
        raise ValueError(f"{moment.isoformat()} and {span} more is outside of the calendar") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class ZoneChoice:
    """The time zones a contact may be in (none, one or several); `note` says how they were determined."""

    zones: tuple[str, ...]
    note: str

    @property
    def only(self) -> str | None:
        """The zone, when there is exactly one; else None."""
        return self.zones[0] if len(self.zones) == 1 else None


def zones_of(contact: Contact, assumed: Mapping[str, str]) -> ZoneChoice:
    """Return the time zones a contact may be in, and how they were determined.

    The first that is known counts: the contact's `timezone`; the only zone of the phone's country; the only zone of the
    contact's country; the zone that `assumed` (by country code) gives for these countries; else all zones of the country, and
    the caller must satisfy all of them.
    """
    ignored = ""
    if contact.timezone is not None:
        if is_zone(contact.timezone):
            return ZoneChoice(zones=(contact.timezone,), note=f"zone {contact.timezone} from contact.timezone")
        ignored = f"; contact.timezone {as_json(contact.timezone, 60)} is no zone name and was ignored"
    by_phone = country_of(contact.phone) if isinstance(contact.phone, str) else None
    said = contact.country.strip().upper() if isinstance(contact.country, str) else None
    countries = [pair for pair in ((by_phone, "the country of the phone"), (said, "contact.country")) if pair[0]]
    for country, origin in countries:
        zones = country_zones().get(country or "", ())
        if len(zones) == 1:
            return ZoneChoice(zones=zones, note=f"zone {zones[0]} from {origin} ({country}){ignored}")
    for country, _ in countries:
        zone_name = assumed.get(country or "")
        if zone_name:
            return ZoneChoice(zones=(zone_name,), note=f"zone {zone_name} from country_zones ({country}){ignored}")
    for country, origin in countries:
        zones = country_zones().get(country or "", ())
        if zones:
            several = f"has {len(zones)} zones, all of them count; country_zones can name one"
            return ZoneChoice(zones=zones, note=f"{country} ({origin}) {several}{ignored}")
    return ZoneChoice(zones=(), note=f"no zone is known for the contact{ignored}")


@lru_cache(maxsize=4096)
def country_of(phone: str) -> str | None:
    """Return an E.164 number's country (ISO 3166-1 alpha-2); None when it has none or several share the prefix."""
    try:
        number = phonenumbers.parse(phone)
    except phonenumbers.NumberParseException:
        return None
    exact = phonenumbers.region_code_for_number(number)
    regions = phonenumbers.region_codes_for_country_code(number.country_code or 0)
    region = exact or (regions[0] if len(regions) == 1 else None)
    return None if region in {None, "001", "ZZ"} else region


@lru_cache(maxsize=1)
def country_zones() -> Mapping[str, tuple[str, ...]]:
    """Return the time zones of every country, by ISO 3166-1 alpha-2 code, from `zone.tab` of the IANA database."""
    table: dict[str, tuple[str, ...]] = {}
    for line in (files("tzdata") / "zoneinfo" / "zone.tab").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            country, _, zone = line.split("\t")[:3]
            table[country] = (*table.get(country, ()), zone)
    return table

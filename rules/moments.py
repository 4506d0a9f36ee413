"""When a task is to be made: what `at` and `due` mean, in which zone, and what the clocks' changes do to it.

A moment without an offset is local time in the contact's zone; where several zones are possible, the latest of them
counts, so that it is not too early anywhere. A local time that the clocks skip moves forward by what they skip; one that
they show twice is the first of the two. A moment in the past means now. Arithmetic is in UTC.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Final

from rules.showing import as_json
from rules.times import parse_clock, parse_span, read_moment, to_local, to_utc

__all__ = ["At", "Moment", "local_minute", "next_clock", "parse_at", "parse_moment", "parse_span"]

_NEXT: Final = re.compile(r"next +(\S+)", re.ASCII)
_MINUTE: Final = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A point in time as written: aware, or naive local time."""

    at: datetime

    @property
    def is_local(self) -> bool:
        return self.at.tzinfo is None


@dataclass(frozen=True, slots=True, kw_only=True)
class At:
    """When a task is to be made: a span from now, the next time a clock shows `clock`, or a moment; exactly one is set."""

    after: timedelta | None = None
    clock: time | None = None
    moment: Moment | None = None

    @property
    def needs_zone(self) -> bool:
        """Whether the answer depends on where the contact is."""
        return self.clock is not None or (self.moment is not None and self.moment.is_local)

    def resolve(self, now: datetime, zones: Sequence[str]) -> datetime:
        """Return the moment as aware UTC, never before `now`.

        `zones` are all the zones the contact may be in; the latest candidate wins. None at all means UTC. Raises ValueError
        for a zone that is none and at the ends of the calendar.
        """
        now = now.astimezone(UTC)
        if self.after is not None:
            return _plus(now, self.after)
        places = tuple(zones) or ("UTC",)
        if self.clock is not None:
            return next_clock(now, self.clock, places)
        assert self.moment is not None
        written = self.moment.at
        if not self.moment.is_local:
            return max(now, written.astimezone(UTC))
        return max(now, *(to_utc(written, zone) for zone in places))


def parse_at(text: object) -> At:
    """Read `now`, `+10m`, `next 09:00` or a moment; ValueError with a message for the author of the rule."""
    words = text.strip() if isinstance(text, str) else ""
    if words == "now":
        return At(after=timedelta())
    if words.startswith("+"):
        return At(after=parse_span(words))
    following = _NEXT.fullmatch(words)
    if following:
        return At(clock=parse_clock(following[1].strip("\"'")))
    try:
        return At(moment=Moment(at=read_moment(words)))
    except ValueError:
        raise ValueError(f"{as_json(text)} is no moment: {_FORMS}") from None


_FORMS: Final = 'write now, a span such as +10m, "next 09:00", or a moment such as 2026-12-01T14:00:00-03:00'


def parse_moment(text: object, zone: str) -> datetime:
    """Read a moment as aware UTC; one without an offset is local time in `zone`. Raises ValueError."""
    moment = read_moment(text)
    return moment if moment.tzinfo else to_utc(moment, zone)


def next_clock(now: datetime, clock: time, zones: Sequence[str]) -> datetime:
    """Return the first moment after `now`, aware UTC, by which the clocks of all these zones have shown a time of day.

    It is taken day by day, the latest zone of each day: with zones five hours apart, "next 09:00" is 09:00 in the last of
    them and never before 09:00 in any. On a day on which clocks skip the time, it is later by what they skip. Raises
    ValueError for no zones and at the ends of the calendar.
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
    """Return a moment as local time in a zone, rounded up to the whole minute, so that it is not earlier than asked."""
    rounded = moment.astimezone(UTC).replace(second=0, microsecond=0)
    return to_local(rounded if rounded == moment else _plus(rounded, _MINUTE), zone)


def _plus(moment: datetime, span: timedelta) -> datetime:
    try:
        return moment + span
    except OverflowError:
        raise ValueError(f"{moment.isoformat()} and {span} more is outside of the calendar") from None

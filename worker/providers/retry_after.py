"""What a Retry-After header asks for: seconds or an HTTP date, kept in full up to a day; anything else is ignored.

Neither provider promises the header; both are believed when they send it. Source: RFC 9110 section 10.2.3.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Final

#: Longer requests are mistakes more often than wishes (milliseconds, year 9999); the task comes back and asks again.
LONGEST: Final = timedelta(hours=24)

_SECONDS: Final = re.compile(r"[0-9]+(\.[0-9]+)?")
#: More digits than this are far beyond LONGEST, and thousands of them are more than int() takes.
_DIGITS: Final = 12


def asked_until(header: str | None, now: datetime) -> datetime | None:
    """Return the moment before which the provider asks to be left alone, at most LONGEST away; None without a wish.

    Garbage, a negative number and a date that has passed are no wish.
    """
    if header is None:
        return None
    text = header.strip()
    if _SECONDS.fullmatch(text):
        whole = text.partition(".")[0]
        seconds = float(text) if len(whole) <= _DIGITS else LONGEST.total_seconds()
        return now + min(timedelta(seconds=min(seconds, LONGEST.total_seconds())), LONGEST)
    try:
        moment = parsedate_to_datetime(text)
        if moment.tzinfo is None:  # "-0000": a time in UTC whose place is not told
            moment = moment.replace(tzinfo=UTC)
        return min(moment, now + LONGEST).astimezone(UTC) if moment > now else None
    except (ValueError, TypeError, IndexError, OverflowError):
        return None

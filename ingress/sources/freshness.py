"""Whether a request was made just now: the timestamp it carries, checked both ways.

A signature says who made a request, not when; without this check a captured one could be sent again for ever. The
comparison is done on numbers, so that no timestamp whatsoever can overflow a moment.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from ingress.sources.event_words import Unit, moment_of
from ingress.sources.request import Rejected, VerificationFailure, WebhookRequest

#: Digits only: `NaN`, signs, blanks inside and exponents are no timestamps.
_NUMBER: Final = re.compile(rb"\d{1,15}(\.\d{1,9})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Freshness:
    """Where a request says when it was made, and how far from now that may be."""

    raw: Callable[[WebhookRequest], bytes | None]
    unit: Unit
    max_age: timedelta
    max_future: timedelta

    def check(self, received: WebhookRequest, now: datetime) -> Rejected | None:
        """Return why the request is too old or too new, or None when it is fresh."""
        raw = self.raw(received)
        seconds = None if raw is None else _seconds(raw, self.unit)
        if seconds is None:
            return Rejected(reason=VerificationFailure.NO_TIMESTAMP, detail="its timestamp is missing or not one")
        age_seconds = now.timestamp() - seconds
        if age_seconds > self.max_age.total_seconds():
            return Rejected(reason=VerificationFailure.TOO_OLD, detail=f"it was made {_about(age_seconds)} ago")
        if -age_seconds > self.max_future.total_seconds():
            return Rejected(
                reason=VerificationFailure.TOO_NEW, detail=f"it was made {_about(-age_seconds)} in the future"
            )
        return None

    def write(self, now: datetime) -> str:
        """Return `now` as a sender would write it."""
        if self.unit is Unit.ISO:
            return now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return str(int(now.timestamp() * (1000 if self.unit is Unit.MILLISECONDS else 1)))


def _seconds(raw: bytes, unit: Unit) -> float | None:
    raw = raw.strip()
    if unit is Unit.ISO:
        moment = moment_of(raw.decode("latin-1"), Unit.ISO)
        return moment.timestamp() if moment else None
    if not _NUMBER.fullmatch(raw):
        return None
    return float(raw) / (1000 if unit is Unit.MILLISECONDS else 1)


def _about(seconds: float) -> str:
    """Return a span roughly: a clock that is wrong by hours or a unit that is wrong by a thousand shows itself."""
    for size, name in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{seconds:.0f} seconds"

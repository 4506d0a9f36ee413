"""How spans, moments, times of day and zones are written."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.times import is_span, is_zone, parse_clock, parse_date, parse_span, read_instant, read_moment, zone


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(90, "90s"), (900, "15m"), (7_200, "2h"), (259_200, "3d"), (1_209_600, "2w"), (600, "+10m"), (0, "0s")],
)
def test_a_span_is_a_whole_number_and_a_unit(seconds, text):
    """Seconds, minutes, hours, days and weeks; a plus before it changes nothing."""
    assert timedelta(seconds=seconds) == parse_span(text)


@pytest.mark.parametrize(
    "text", ["", "15", "m", "1.5h", "-2h", "2 h", "2H", "1h30m", "\u0665m", "99999d", 90, None, ["2h"]]
)
def test_what_is_no_span_is_refused(text):
    """Anything else has a message that shows how spans are written, or how long the longest is."""
    with pytest.raises(ValueError, match=r"such as 90s or 2h|longer than ten years"):
        parse_span(text)


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        (datetime(2026, 3, 2, 13, 0, tzinfo=UTC), "2026-03-02T10:00:00-03:00"),
        (datetime(2026, 3, 2, 13, 0, tzinfo=UTC), "2026-03-02T13:00:00Z"),
        (datetime(2026, 3, 2, 13, 0, tzinfo=UTC), "2026-03-02t13:00z"),
        (datetime(2026, 3, 2, 13, 0, tzinfo=UTC), "2026-03-02T13:00:00.000+0000"),
        (datetime(2026, 3, 2, 13, 0, 0, 123456, tzinfo=UTC), "2026-03-02 13:00:00.123456789+00"),
        (datetime(2026, 3, 2, 13, 0), "2026-03-02T13:00:00"),  # noqa: DTZ001 - local time without a zone is the point
        (datetime(2026, 3, 2), "2026-03-02"),  # noqa: DTZ001 - likewise
    ],
)
def test_a_moment_is_iso_8601(expected, text):
    """With an offset it is aware UTC, without one naive; a date is its midnight."""
    assert expected == read_moment(text)
    assert (expected.tzinfo is None) == (read_moment(text).tzinfo is None)


@pytest.mark.parametrize(
    "text",
    ["", "now", "20260302", "2026-W10-1", "2026-02-30", "2026-03-02T25:00Z", "0001-01-01T00:00:00+14:00", 5, None],
)
def test_what_is_no_moment_is_refused(text):
    """Other forms, days that are not in the calendar, and what lies before it have a message."""
    with pytest.raises(ValueError, match=r"write ISO 8601|not in the calendar"):
        read_moment(text)


@given(st.text(max_size=40) | st.datetimes().map(str) | st.from_regex(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.+Z-]*"))
def test_reading_a_moment_ends_in_utc_or_in_a_message(text):
    """No text makes it fail in another way."""
    with suppress(ValueError):
        assert timedelta() == read_instant(text).utcoffset()


def test_times_of_day_and_dates_are_strict():
    """`HH:MM` with or without seconds, and `YYYY-MM-DD`; nothing else."""
    assert parse_clock("09:30").isoformat() == "09:30:00"
    assert parse_date("2026-12-01").isoformat() == "2026-12-01"
    for text in ("9:30", "24:00", "09:60", None):
        with pytest.raises(ValueError, match="no time of day"):
            parse_clock(text)
    for text in ("2026-12-1", "01/12/2026", 5):
        with pytest.raises(ValueError, match="no date"):
            parse_date(text)


def test_zones_are_those_of_the_iana_database():
    """A name is known or the nearest one is suggested, the same on every machine."""
    assert is_zone("America/Santiago")
    assert not any(is_zone(name) for name in ("GMT-3", "localtime", "../etc/passwd", "America", "", None, 5, "\0"))
    with pytest.raises(ValueError, match="did you mean America/Santiago"):
        zone("America/Santigo")


def test_the_form_of_a_span_is_known():
    """A whole number and a unit, with or without a plus before it."""
    assert all(is_span(text) for text in ("2h", "+2h", "90s"))
    assert not any(is_span(text) for text in ("", "2", "h", "2 h", "-2h", "2026-12-01"))

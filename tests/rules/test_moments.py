"""When a task is to be made, over the changes of the clocks."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.times import country_zones, local_minute, next_clock, parse_at, parse_moment, to_utc

SANTIAGO = "America/Santiago"


def utc(*parts):
    """Return a moment in UTC."""
    return datetime(*parts, tzinfo=UTC)


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        (utc(2026, 3, 2, 13, 0), "now"),
        (utc(2026, 3, 2, 13, 10), "+10m"),
        (utc(2026, 3, 3, 12, 0), "next 09:00"),
        (utc(2026, 3, 2, 14, 0), "next 11:00"),
        (utc(2026, 3, 3, 13, 0), "next 10:00"),
        (utc(2026, 12, 1, 17, 0), "2026-12-01T14:00:00-03:00"),
        (utc(2026, 12, 1, 17, 0), "2026-12-01T14:00"),
        (utc(2026, 12, 1, 3, 0), "2026-12-01"),
        (utc(2026, 3, 2, 13, 0), "2020-01-01T00:00:00Z"),
        (utc(2026, 3, 2, 13, 0), "2026-03-02T09:59"),
    ],
)
def test_at_counts_from_now_in_the_contacts_zone(expected, text, now):
    """Spans count from now, times of day and moments without offset are the contact's, and what is past means now."""
    assert expected == parse_at(text).resolve(now, [SANTIAGO])


@pytest.mark.parametrize("text", ["", "later", "next", "next 9:00", "next 24:00", "+10", "10m", "+1h30m", 5, None, {}])
def test_what_is_no_moment_is_refused_with_the_forms_there_are(text):
    """The message shows how `at` is written."""
    with pytest.raises(ValueError, match=r"write now|such as 90s|no time of day"):
        parse_at(text)


def test_with_several_zones_it_is_early_nowhere(now):
    """In the US at 13:00 UTC "next 09:00" is 09:00 in the last of its zones, and never before 09:00 in any."""
    zones = country_zones()["US"]
    at = parse_at("next 09:00").resolve(now, zones)
    local = [at.astimezone(ZoneInfo(zone)) for zone in zones]
    assert time(9) == min(moment.time() for moment in local)
    assert {now.date()} == {moment.date() for moment in local}


def test_a_local_moment_in_several_zones_is_the_latest_of_them(now):
    """A moment without an offset has come in every zone the contact may be in."""
    at = parse_at("2026-12-01T09:00").resolve(now, ["America/New_York", "America/Los_Angeles"])
    assert utc(2026, 12, 1, 17, 0) == at


def test_without_any_zone_it_is_utc(now):
    """Nothing is known of the contact: the caller says what to assume, else UTC."""
    assert utc(2026, 3, 3, 9, 0) == parse_at("next 09:00").resolve(now, [])


@pytest.mark.parametrize(
    ("expected", "text", "zone"),
    [
        # Chile's clocks go from 24:00 on 5 September 2026 to 01:00 on the 6th, and from 24:00 on 4 April back to 23:00.
        (utc(2026, 9, 6, 4, 30), "2026-09-06T00:30", SANTIAGO),
        (utc(2026, 9, 6, 4, 0), "2026-09-06", SANTIAGO),
        (utc(2026, 4, 5, 2, 30), "2026-04-04T23:30", SANTIAGO),
        (utc(2026, 3, 29, 1, 30), "2026-03-29T02:30", "Europe/Madrid"),
        (utc(2026, 10, 25, 0, 30), "2026-10-25T02:30", "Europe/Madrid"),
        (utc(2011, 12, 30, 19, 0), "2011-12-30T09:00", "Pacific/Apia"),
    ],
)
def test_skipped_times_move_forward_and_doubled_ones_are_the_first(expected, text, zone):
    """A local time in a gap moves by the gap's length; of two occurrences the first counts."""
    assert expected == parse_moment(text, zone)


def test_the_next_midnight_of_a_day_without_one_is_its_first_moment():
    """Chile's spring Sunday begins at 01:00."""
    assert utc(2026, 9, 6, 4, 0) == next_clock(utc(2026, 9, 5, 20, 0), time(0), [SANTIAGO])


def test_the_end_of_the_calendar_is_a_message():
    """What would lie after the year 9999 is refused, not an overflow."""
    for text in ("+1d", "next 09:00"):
        with pytest.raises(ValueError, match="calendar"):
            parse_at(text).resolve(utc(9999, 12, 31, 23, 0), ["UTC"])


def test_a_due_minute_is_never_earlier_than_asked():
    """Seconds round up to the next minute, in the zone's own clock."""
    assert "2026-03-02T10:01:00-03:00" == local_minute(utc(2026, 3, 2, 13, 0, 0, 1), SANTIAGO).isoformat()
    assert "2026-03-02T10:00:00-03:00" == local_minute(utc(2026, 3, 2, 13, 0), SANTIAGO).isoformat()


zones = st.sampled_from(
    [
        "America/Santiago",
        "Europe/Madrid",
        "America/New_York",
        "Australia/Lord_Howe",
        "Asia/Kathmandu",
        "Pacific/Apia",
        "UTC",
    ]
)
moments = st.datetimes(datetime(2010, 1, 1), datetime(2037, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - Hypothesis wants bounds without a zone
clocks = st.times().map(lambda clock: clock.replace(second=0, microsecond=0))


@given(moments, clocks, zones)
def test_the_next_time_of_day_comes_after_now_within_two_days(now, clock, zone):
    """It is later than now, at most two days away, and the zone's clocks show it or have just skipped it."""
    at = next_clock(now, clock, [zone])
    assert now < at <= now + timedelta(days=2, hours=1)
    shown = at.astimezone(ZoneInfo(zone))
    if shown.time() != clock:
        skipped = shown.replace(tzinfo=None, hour=clock.hour, minute=clock.minute)
        assert to_utc(skipped, zone) in {at, at - timedelta(days=1), at + timedelta(days=1)} or zone == "Pacific/Apia"


@given(moments, clocks, zones)
def test_no_earlier_moment_after_now_shows_that_time(now, clock, zone):
    """Between now and the answer the zone's clocks do not show the time of day for the first time of a day."""
    at = next_clock(now, clock, [zone])
    local = now.astimezone(ZoneInfo(zone))
    for days in (0, 1):
        candidate = to_utc(datetime.combine(local.date() + timedelta(days=days), clock), zone)
        assert not now < candidate < at


@given(st.datetimes(datetime(2010, 1, 1), datetime(2037, 1, 1)), zones)  # noqa: DTZ001 - local times are the point
def test_a_local_time_becomes_the_first_moment_that_shows_it_or_moves_forward(local, zone):
    """There and back gives the same local time, or a later one where the clocks skip it."""
    moment = to_utc(local, zone)
    back = moment.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    assert back >= local
    if back == local:
        earlier = (moment - timedelta(hours=1)).astimezone(ZoneInfo(zone)).replace(tzinfo=None)
        assert earlier != local


@given(moments, zones)
def test_a_due_minute_is_at_most_a_minute_late(moment, zone):
    """Rounding up adds less than a minute."""
    assert timedelta() <= local_minute(moment, zone) - moment < timedelta(minutes=1)


@given(moments, st.integers(0, 10_000).map(lambda minutes: f"+{minutes}m"), zones)
def test_spans_are_real_time(now, text, zone):
    """A span of hours is that long over any change of the clocks."""
    assert timedelta(minutes=int(text[1:-1])) == parse_at(text).resolve(now, [zone]) - now


@given(st.text() | st.text().map(lambda tail: f"next {tail}") | st.text().map(lambda tail: f"+{tail}"))
def test_reading_at_ends_in_a_value_or_in_a_message(text):
    """No text makes it fail in another way."""
    with suppress(ValueError):
        assert parse_at(text)

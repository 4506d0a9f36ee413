"""What a Retry-After header asks for."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.providers.answers import LONGEST_RETRY_AFTER, retry_not_before

NOW = datetime(2026, 3, 2, 13, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("expected", "header"),
    [
        (timedelta(seconds=120), "120"),
        (timedelta(seconds=120), " 120 "),
        (timedelta(0), "0"),
        (timedelta(seconds=1.5), "1.5"),
        (LONGEST_RETRY_AFTER, "86401"),
        (LONGEST_RETRY_AFTER, "1000000000"),
        (LONGEST_RETRY_AFTER, "9" * 5000),
        (timedelta(minutes=2), "Mon, 02 Mar 2026 13:02:00 GMT"),
        (timedelta(minutes=2), "Mon, 02 Mar 2026 13:02:00 -0000"),
        (timedelta(minutes=2), "Monday, 02-Mar-26 13:02:00 GMT"),
        (LONGEST_RETRY_AFTER, "Fri, 31 Dec 9999 23:59:59 GMT"),
        (LONGEST_RETRY_AFTER, "Fri, 31 Dec 9999 23:59:59 -1200"),
        (None, "Mon, 02 Mar 2026 12:00:00 GMT"),
        (None, "-5"),
        (None, "soon"),
        (None, ""),
        (None, "1e9"),
        (None, "12, 13"),
        (None, "١٢"),
        (None, "inf"),
        (None, None),
    ],
)
def test_retry_after(expected, header) -> None:
    """Seconds and HTTP dates are kept in full up to a day; garbage, the past and the negative are no wish."""
    until = retry_not_before(header, NOW)
    assert expected == (None if until is None else until - NOW)


@given(st.text(max_size=60) | st.integers().map(str) | st.datetimes().map(lambda at: f"{at:%a, %d %b %Y %H:%M:%S} GMT"))
def test_retry_after_is_never_absurd(header) -> None:
    """Whatever the header says, the wish is none, or between now and a day from now."""
    until = retry_not_before(header, NOW)
    assert until is None or NOW <= until <= NOW + LONGEST_RETRY_AFTER

"""Phones, countries, e-mail addresses and moments as senders write them, and what becomes of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingress.sources.contacts import bounded, country_of, email_of, phone_of
from ingress.sources.event_words import Unit, moment_of

AT = datetime(2026, 3, 2, 13, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("raw", "region", "expected"),
    [
        ("+56 9 1111 2222", None, "+56911112222"),
        ("+56911112222", "US", "+56911112222"),
        ("9 1111 2222", "CL", "+56911112222"),
        ("911112222", "CL", "+56911112222"),
        ("56911112222", "CL", "+56911112222"),
        (56911112222, "CL", "+56911112222"),
        ("(415) 555-0132", "US", "+14155550132"),
        ("0056911112222", None, "+56911112222"),
        (" 56911112222", None, "+56911112222"),
        ("tel:+56-9-1111-2222", None, "+56911112222"),
        ("911112222", None, None),
        ("56911112222", None, None),
        ("not a phone", "CL", None),
        ("12", "CL", None),
        ("+", None, None),
        ("", "CL", None),
        (None, "CL", None),
        (True, "CL", None),
        ([], "CL", None),
        ({"a": 1}, "CL", None),
        ("9" * 100, "CL", None),
        ("+999999999999", None, None),
        ("\u0669\u0661\u0661", "CL", None),
        ("\x00", "CL", None),
    ],
    ids=repr,
)
def test_phones(raw, region, expected) -> None:
    """A phone is E.164 or none: what cannot be read is never guessed."""
    assert expected == phone_of(raw, region)


@given(
    raw=st.text(max_size=70) | st.integers() | st.floats() | st.none(),
    region=st.sampled_from([None, "CL", "US", "ZZ", "xx"]),
)
def test_no_phone_raises(raw, region) -> None:
    """Whatever stands where a phone is expected, the result is E.164 or nothing."""
    found = phone_of(raw, region)

    assert found is None or (found[0] == "+" and found[1:].isascii() and found[1:].isdigit())


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("cl", "CL"),
        (" CL ", "CL"),
        ("Chile", None),
        ("CHL", None),
        ("", None),
        (None, None),
        (56, None),
        ("ñl", None),
        (["CL"], None),
    ],
)
def test_countries(raw, expected) -> None:
    """Two letters are a country; names are not guessed at."""
    assert expected == country_of(raw)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (" Ana@Example.com ", "Ana@Example.com"),
        ("ana", None),
        ("@x", None),
        ("a@", None),
        ("a\n@b", None),
        ("a" * 400 + "@b.c", None),
        (7, None),
    ],
)
def test_email_addresses(raw, expected) -> None:
    """An address is kept as it came, trimmed; what cannot be one is none."""
    assert expected == email_of(raw)


@pytest.mark.parametrize(
    ("raw", "unit", "expected"),
    [
        ("2026-03-02T13:00:00Z", "iso", AT),
        ("2026-03-02T10:00:00-03:00", "iso", AT),
        ("2026-03-02 13:00:00", "iso", AT),
        ("2026-03-02T13:00:00.000Z", "iso", AT),
        ("2026-03-02", "iso", AT - timedelta(hours=13)),
        (1772456400, "s", AT),
        ("1772456400", "s", AT),
        (1772456400000, "ms", AT),
        (1772456400, "auto", AT),
        ("1772456400000", "auto", AT),
        ("2026-03-02T13:00:00Z", "auto", AT),
        ("yesterday", "iso", None),
        ("", "iso", None),
        (None, "iso", None),
        ("NaN", "s", None),
        (1e300, "s", None),
        ("9" * 17, "ms", None),
        ("9" * 5000, "s", None),
        ("0001-01-01T00:00:00+23:00", "iso", None),
        (True, "s", None),
        ({}, "auto", None),
    ],
    ids=repr,
)
def test_moments(raw, unit, expected) -> None:
    """A moment is aware UTC, one without offset is UTC, and nonsense is none."""
    assert expected == moment_of(raw, Unit(unit))


@given(raw=st.text(max_size=40) | st.integers() | st.floats() | st.booleans(), unit=st.sampled_from(list(Unit)))
def test_no_moment_raises(raw, unit) -> None:
    """Whatever stands where a moment is expected, the result is aware or nothing."""
    found = moment_of(raw, unit)

    assert found is None or found.utcoffset() == timedelta(0)


def test_text_is_bounded_and_of_one_line() -> None:
    """Ids and names are trimmed, cut, and lose control characters."""
    assert "a b" == bounded(" a\r\nb ", 10)
    assert "x" * 255 == bounded("x" * 300, 255)
    assert "12" == bounded(12, 255)
    assert "12" == bounded(12.0, 255)
    assert bounded("\x00\x01", 255) is None
    assert bounded(True, 255) is None

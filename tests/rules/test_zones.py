"""In which zone a contact is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.times import country_of, country_zones, is_zone, zones_of
from rules.vocabulary import Contact

ASSUMED = {"CL": "America/Santiago", "PE": "America/Bogota"}


@pytest.mark.parametrize(
    ("zone", "origin", "contact"),
    [
        ("Asia/Tokyo", "contact.timezone", Contact(timezone="Asia/Tokyo", phone="+51999999999", country="AR")),
        ("America/Lima", "phone (PE)", Contact(phone="+51999999999", country="CL")),
        ("America/Lima", "contact.country (PE)", Contact(phone="+56911112222", country="pe")),
        ("America/Lima", "contact.country (PE)", Contact(phone="none", country="PE")),
        ("America/Santiago", "country_zones (CL)", Contact(phone="+56911112222")),
        ("America/Santiago", "country_zones (CL)", Contact(country="CL")),
        ("America/Lima", '"GMT-5" is no zone name and was ignored', Contact(timezone="GMT-5", country="PE")),
    ],
)
def test_the_first_that_is_known_says_the_zone(zone, origin, contact):
    """Own zone, the only zone of the phone's country, of the country, then country_zones; the note says which."""
    choice = zones_of(contact, ASSUMED)
    assert zone == choice.only
    assert origin in choice.note


def test_a_country_with_several_zones_gives_all_of_them():
    """Chile has four zones and the United States twenty-nine; without country_zones all of them count."""
    chile = zones_of(Contact(phone="+56911112222"), {})
    assert 4 == len(chile.zones)
    assert chile.only is None
    assert "all of them count" in chile.note
    assert 29 == len(zones_of(Contact(country="US"), {}).zones)


@pytest.mark.parametrize(
    "contact", [Contact(), Contact(country="ZZ"), Contact(phone="+80012345678"), Contact(phone="x")]
)
def test_of_a_contact_without_a_place_no_zone_is_known(contact):
    """Nothing, an unknown country, or a number of no country."""
    assert () == zones_of(contact, ASSUMED).zones


@pytest.mark.parametrize(
    ("country", "phone"),
    [("CL", "+56911112222"), ("US", "+12025550123"), ("CA", "+14165550123"), (None, "+1999"), (None, "+80012345678")],
)
def test_a_phone_says_its_country(country, phone):
    """Numbers of one calling code are told apart; those of none or of several countries have none."""
    assert country == country_of(phone)


def test_every_zone_of_a_country_is_a_zone():
    """The table of countries names only zones that exist."""
    assert all(is_zone(zone) for zones in country_zones().values() for zone in zones)


anything = (
    st.none()
    | st.text(st.characters(), max_size=12)
    | st.sampled_from(["+5", "+56911112222", "CL", "US"])
    | st.integers()
)


@given(anything, anything, anything)
def test_any_contact_has_an_answer(phone, country, timezone):
    """Whatever a CRM put there, the answer is a list of zones and a sentence."""
    choice = zones_of(Contact(phone=phone, country=country, timezone=timezone), ASSUMED)
    assert choice.note
    assert all(is_zone(zone) for zone in choice.zones)

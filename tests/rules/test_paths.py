"""How fields are named and found."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.paths import MISSING, find, getter, parse, spelled, split

VIEW = {
    "id": "ev_1",
    "contact": {"name": "Ana", "phone": None},
    "data": {
        "deep": {"list": [{"x": 1}, {"x": 2}]},
        "odd.key": 3,
        "a]b": 4,
        "con espacio": 5,
        "0": "zero",
        "-1": "minus",
        "007": "bond",
        "null": None,
        "text": "abc",
    },
}


@pytest.mark.parametrize(
    ("expected", "path"),
    [
        ("ev_1", "id"),
        ("Ana", "contact.name"),
        (2, "data.deep.list[1].x"),
        (2, "data.deep.list.1.x"),
        (3, 'data["odd.key"]'),
        (3, "data['odd.key']"),
        (4, 'data["a]b"]'),
        (5, "data.con espacio"),
        ("zero", "data.0"),
        ("zero", "data[0]"),
        ("bond", "data.007"),
        ("minus", 'data["-1"]'),
        (MISSING, "data.deep.list[2].x"),
        (MISSING, "data.deep.list.x"),
        (MISSING, 'data.deep.list["1"]'),
        (MISSING, "data.text[0]"),
        (MISSING, "data.text.x"),
        (MISSING, "data.nothing.at.all"),
        (None, "data.null"),
        (MISSING, "data.null.x"),
        (None, "contact.phone"),
    ],
)
def test_a_path_finds_what_it_names(expected, path):
    """Keys, indexes in both spellings, and quoted keys lead to the value; what is not there is missing."""
    assert expected is find(VIEW, parse(path)) or expected == find(VIEW, parse(path))


@pytest.mark.parametrize(
    "path", ["id", "contact.name", "data.deep.list[1].x", "data.nothing.x", "data.null", "data[5]"]
)
def test_a_getter_finds_the_same_with_none_for_what_is_missing(path):
    """The compiled form agrees with `find`, whatever the depth."""
    found = find(VIEW, parse(path))
    assert (None if found is MISSING else found) == getter(parse(path))(VIEW)


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("", "is no path"),
        ("data..x", "is no path"),
        ("data.", "is no path"),
        (".data", "is no path"),
        ("data[1", "is no path"),
        ("data[-1]", "counts from the end"),
        ("data.list.-1", "counts from the end"),
        ("data[x]", "no index"),
        ("data. x", "space beside a dot"),
        ("value", "did you mean data.value?"),
        ("lead.value", "did you mean data.lead.value?"),
        ("dat.value", "did you mean data.value or data.dat.value?"),
        ("contcat.phone", "did you mean contact.phone"),
        ("contact.phnoe", "did you mean contact.phone?"),
        ("contact.owner", "it has id, name, phone, email, country, timezone, language, consent"),
        ("contact.name.first", "nothing lies below it"),
        ("subject.title", "subject has no title"),
        ("type.x", "a single value"),
        ("x" * 501, "up to 500 characters"),
    ],
)
def test_a_path_that_no_event_can_have_is_refused_with_a_suggestion(path, part):
    """The message says what is wrong and what was probably meant."""
    with pytest.raises(ValueError) as refused:
        parse(path)
    assert part in str(refused.value)


def test_consent_is_free_below():
    """`contact.consent` holds whatever the source says about it."""
    assert ("contact", "consent", "call", "at") == parse("contact.consent.call.at")


@given(st.text())
def test_reading_a_path_ends_in_steps_or_in_a_message(text):
    """No text makes it fail in another way."""
    with suppress(ValueError):
        assert parse(text)


keys = st.text(st.characters(exclude_characters='"'), min_size=1, max_size=10)


@given(st.lists(keys | st.integers(0, 999_999_999), max_size=5))
def test_the_spelling_of_a_path_reads_back_as_itself(below):
    """What messages print can be written in a rule; quotes of one kind in a key are the most there can be."""
    steps = ("data", *below)
    if all("]" not in str(step) or "'" not in str(step) for step in steps):
        assert steps == split(spelled(steps))

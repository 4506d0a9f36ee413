from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.ledger.encoding import DEPTH_LIMIT, LABEL_LIMIT, dump, label, load, micros, moment, sentence

texts = st.text(st.characters(exclude_categories=())) | st.text()
jsons = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)


@given(jsons)
def test_json_comes_back_as_it_was(value):
    """What JSON can hold is stored as ASCII text and read back the same, lone surrogates included."""
    text = dump(value)
    assert text.isascii()
    assert "\x00" not in text
    assert value == load(text)


@given(
    st.recursive(
        st.floats() | st.integers() | st.binary() | st.just(object),
        lambda inner: st.lists(inner) | st.dictionaries(st.integers() | st.none(), inner) | st.tuples(inner),
        max_leaves=10,
    )
)
def test_anything_at_all_can_be_stored(value):
    """What JSON cannot hold is stored as something readable."""
    load(dump(value))


@pytest.mark.parametrize("value", [MappingProxyType({"a": 1}), {"a": 1}])
def test_any_mapping_is_an_object(value):
    """Read-only mappings are stored like dicts."""
    assert {"a": 1} == load(dump(value))


def test_depth_is_cut_off():
    """Values below the deepest level kept are null; what stands above them stays."""
    value = "bottom"
    for _ in range(DEPTH_LIMIT + 1):
        value = [value]
    stored, levels = load(dump({"deep": value, "flat": [1]})), 0
    assert [1] == stored["flat"]
    inner = stored["deep"]
    while inner is not None:
        inner, levels = inner[0], levels + 1
    assert DEPTH_LIMIT - 1 == levels


@given(texts)
def test_labels_fit_into_every_column(value):
    """A stored identity is short, printable enough, and stable."""
    stored = label(value)
    assert len(stored) <= LABEL_LIMIT
    stored.encode()
    assert "\x00" not in stored
    assert stored == label(value)


@given(st.lists(texts, unique=True, min_size=2, max_size=2))
def test_different_identities_stay_different(values):
    """No two identities become one by being stored."""
    assert label(values[0]) != label(values[1])


def test_ordinary_identities_are_kept_as_they_are():
    """Sensible ids, also with accents, are readable in the ledger."""
    assert "contact/7:José 東京" == label("contact/7:José 東京")


@given(texts)
def test_sentences_fit_into_every_column(value):
    """Reasons keep their line breaks and lose what no column can hold."""
    stored = sentence(value)
    stored.encode()
    assert "\x00" not in stored


@given(st.datetimes(timezones=st.just(UTC)))
def test_moments_come_back_to_the_microsecond(value):
    """Every moment of the calendar is an integer and comes back the same."""
    assert value == moment(micros(value))


def test_moments_of_other_zones_are_the_same_moment():
    """Only the moment is stored, not the zone it was written in."""
    santiago = datetime(2026, 3, 2, 9, tzinfo=timezone(timedelta(hours=-3)))
    assert datetime(2026, 3, 2, 12, tzinfo=UTC) == moment(micros(santiago))

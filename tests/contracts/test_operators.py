"""One suite over every operator: what holds for all of them, whatever they ask."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.conditions import compile_conditions, explain
from rules.operators import OPERATORS
from rules.yaml_reader import SourceMap

NOW = "2026-03-02T13:00:00.000Z"

#: A wanted value that each operator accepts.
ACCEPTED = {
    "eq": "lost",
    "ne": "lost",
    "gt": 10,
    "gte": 10,
    "lt": 10,
    "lte": 10,
    "between": [10, 20],
    "in": ["CL", 5],
    "not_in": ["CL", 5],
    "contains": "vip",
    "starts_with": "a",
    "ends_with": "a",
    "matches": "^a+$",
    "exists": True,
    "before": "2026-01-01",
    "after": "2026-01-01T00:00:00Z",
    "older_than": "30d",
    "newer_than": "2h",
}

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=20)
    | st.sampled_from(["10", "1e5", NOW, "30d", "9999-12-31T23:59:59-14:00", "\ud800", 10**400, float("inf")])
)
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
)


def test_the_suite_knows_every_operator_but_the_one_that_is_not_yet_built():
    """Whoever adds an operator adds a value that it accepts here."""
    assert set(OPERATORS) - {"changed"} == set(ACCEPTED)


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_is_documented_in_one_line(name):
    """The schema and the documentation have a sentence for every operator."""
    doc = OPERATORS[name].doc
    assert doc.endswith(".")
    assert "\n" not in doc


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_an_operator_accepts_compiles_and_asks_any_value(name):
    """An accepted value compiles, and its question is answered with true or false for text, numbers, lists, mappings."""
    holds = OPERATORS[name].compile(ACCEPTED[name])
    for seen in ("lost", 10, 10.5, True, [], ["vip"], {}, {"a": None}, float("nan"), 10**400, "\ud800"):
        assert isinstance(holds(seen, {"now": NOW}), bool)


@pytest.mark.parametrize("name", OPERATORS)
@given(wanted=json_values, seen=json_values)
def test_no_value_makes_an_operator_fail(name, wanted, seen):
    """Whatever a rule wants is accepted or complained of; whatever an event has, the question has an answer."""
    try:
        holds = OPERATORS[name].compile(wanted)
    except ValueError as error:
        refused = str(error).strip()
    else:
        refused = None
        assert seen is None or isinstance(holds(seen, {"now": NOW}), bool)
    assert refused != ""


@pytest.mark.parametrize("name", ACCEPTED)
@pytest.mark.parametrize("data", [{}, {"field": None}, {"field": {"below": None}}, [], None, "text", 5])
def test_no_operator_holds_on_a_missing_field(name, data):
    """Absent or null: no operator but `exists: false` holds, and the explanation says that it is missing."""
    path = "data.field.below" if data == {"field": {"below": None}} else "data.field"
    places = SourceMap("rules.yaml")
    failed = compile_conditions({path: {name: ACCEPTED[name]}}, places, ())({"data": data, "now": NOW})
    assert failed is not None
    assert failed.missing
    assert failed.seen is None
    assert "but it is missing" in explain(failed)


@pytest.mark.parametrize("name", ACCEPTED)
def test_not_turns_every_operator_around_on_a_missing_field(name):
    """An enclosing `not` holds where its line does not, so also where the field is missing."""
    test = compile_conditions({"not": {"data.field": {name: ACCEPTED[name]}}}, SourceMap("rules.yaml"), ())
    assert test({"data": {}, "now": NOW}) is None


def test_changed_is_refused_until_it_is_built():
    """`changed` is in the language and says "not yet" for anything."""
    with pytest.raises(ValueError, match=r"^not yet"):
        OPERATORS["changed"].compile({"from": "a"})

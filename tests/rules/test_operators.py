"""What each operator answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.operators import OPERATORS, equal, number

VIEW = {"now": "2026-03-02T13:00:00.000Z"}


def holds(name, wanted, seen):
    """Ask an operator."""
    return OPERATORS[name].compile(wanted)(seen, VIEW)


@pytest.mark.parametrize(
    ("expected", "name", "wanted", "seen"),
    [
        (True, "eq", 1, 1.0),
        (False, "eq", 1, True),
        (False, "eq", True, 1),
        (False, "eq", 1, "1"),
        (False, "eq", "15", 15),
        (False, "eq", "Lost", "lost"),
        (True, "eq", [1, {"a": [2.0]}], [1.0, {"a": [2]}]),
        (False, "eq", [1, {"a": [True]}], [1, {"a": [1]}]),
        (False, "eq", {"a": 1}, {"a": 1, "b": 2}),
        (True, "eq", {"a": None}, {"a": None}),
        (False, "eq", 2**53 + 1, float(2**53)),
        (True, "ne", 1, True),
        (False, "ne", 1, 1.0),
        (True, "gt", 10_000, "12000"),
        (True, "gt", 10_000, "12000.50"),
        (False, "gt", 10_000, "1e5"),
        (False, "gt", 10_000, "12,000"),
        (False, "gt", 1, " 5"),
        (False, "gt", 1, "+5"),
        (False, "gt", 1, "007"),
        (False, "gt", 1, "\u0665"),
        (False, "gt", 0, True),
        (False, "gt", 0, [5]),
        (True, "gt", "10", 11),
        (True, "gt", 2**53, 2**53 + 1),
        (False, "gt", float(2**53), 2**53),
        (True, "gt", 10, float("inf")),
        (False, "gt", 10, float("nan")),
        (False, "lt", 10, float("nan")),
        (True, "gt", 10, 10**400),
        (True, "gte", 0.1, "0.1"),
        (True, "lte", 10, 10),
        (False, "lt", 10, 10),
        (True, "lt", 0, "-0.5"),
        (True, "between", [10, 20], 10),
        (True, "between", [10, 20], "20"),
        (False, "between", [10, 20], 20.001),
        (True, "in", ["CL", "PE"], "CL"),
        (False, "in", ["CL", "PE"], "cl"),
        (False, "in", ["CL", "PE"], ["CL"]),
        (True, "in", [1, [2]], [2]),
        (False, "in", [1], True),
        (True, "not_in", ["CL"], "AR"),
        (False, "not_in", ["CL"], "CL"),
        (True, "contains", "vip", ["a", "vip"]),
        (False, "contains", "vip", ["a vip"]),
        (True, "contains", "vip", "a vip lead"),
        (False, "contains", 5, "a5"),
        (True, "contains", 5, [5.0]),
        (False, "contains", "a", {"a": 1}),
        (True, "starts_with", "+56", "+56911112222"),
        (False, "starts_with", "56", 5691),
        (True, "ends_with", ".cl", "ana@acme.cl"),
        (True, "matches", "acme", "ana@acme.cl"),
        (False, "matches", "^acme", "ana@acme.cl"),
        (True, "matches", "(?i)ACME", "ana@acme.cl"),
        (False, "matches", "9", 91),
        (True, "exists", True, 0),
        (False, "exists", False, 0),
        (True, "before", "2026-03-02T10:00:00-03:00", "2026-03-02T12:59:59Z"),
        (False, "before", "2026-03-02", "2026-03-02"),
        (True, "after", "2026-03-01", "2026-03-01T00:00:01"),
        (False, "after", "2026-03-01", 1772539200),
        (False, "after", "2026-03-01", "next week"),
        (True, "older_than", "30d", "2026-01-01"),
        (False, "older_than", "30d", "2026-03-01"),
        (False, "older_than", "30d", "2030-01-01"),
        (True, "newer_than", "2h", "2026-03-02T12:00:00Z"),
        (False, "newer_than", "2h", "2026-03-02T11:00:00Z"),
        (True, "newer_than", "2h", "2030-01-01"),
    ],
)
def test_an_operator_answers_as_documented(expected, name, wanted, seen):
    """Each pair of what is wanted and what is seen has the answer of the documentation."""
    assert expected is holds(name, wanted, seen)


@pytest.mark.parametrize(
    ("name", "wanted", "part"),
    [
        ("eq", None, "exists: false"),
        ("eq", float("nan"), "not even to itself"),
        ("gt", "abc", "a plain one"),
        ("gt", True, "a plain one"),
        ("gt", float("inf"), "a plain one"),
        ("between", [20, 10], "smaller end first"),
        ("between", 5, "two ends"),
        ("between", [1, "x"], "a plain one"),
        ("in", "CL", "write a list"),
        ("in", [], "write a list"),
        ("not_in", [None], "exists"),
        ("contains", "", "every text"),
        ("starts_with", 5, "write a text"),
        ("matches", "(a", "missing )"),
        ("matches", "a(?=b)", "RE2"),
        ("matches", "\ud800", "Unicode"),
        ("matches", "a" * 1_001, "1000 are allowed"),
        ("exists", "yes", "true or false"),
        ("before", "tomorrow", "ISO 8601"),
        ("after", "2026-02-30", "not in the calendar"),
        ("older_than", "30 days", "such as 90s or 2h"),
        ("newer_than", 30, "such as 90s or 2h"),
    ],
)
def test_what_an_operator_does_not_accept_is_answered_with_the_remedy(name, wanted, part):
    """A wanted value that can never make sense is complained of when the rule is read."""
    with pytest.raises(ValueError) as refused:
        OPERATORS[name].compile(wanted)
    assert part in str(refused.value)


def test_a_slow_pattern_is_fast():
    """The pattern that keeps a backtracking engine busy for ever is answered at once."""
    assert not holds("matches", "(a+)+$", "a" * 50_000 + "!")


@given(st.integers())
def test_a_whole_number_counts_the_same_as_its_text(value):
    """Ordering reads the text of a whole number exactly, however large."""
    assert value == number(str(value))


@given(st.integers() | st.floats(allow_nan=False, allow_infinity=False), st.integers() | st.floats(allow_nan=False))
def test_the_ordering_operators_agree_with_each_other(wanted, seen):
    """Of `lt`, `eq` and `gt` exactly one holds, also between whole numbers and fractions."""
    assert 1 == holds("lt", wanted, seen) + equal(wanted, seen) + holds("gt", wanted, seen)

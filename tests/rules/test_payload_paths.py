"""How paths find values: the grammar, what is absent, and that no path and no item raises."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.paths import Scope, compile_path, expand, parse_payload_path, replaced

ITEM = {"a": {"b": [{"c": 1}, {"c": 2, "d": "x"}]}, "n": None, "s": "text", "0": "zero", "e": "", "blank": " "}
SCOPE = Scope(
    item=ITEM,
    root={"account": {"id": 7}, "items": [ITEM]},
    parent={"p": 1},
    headers={"x-id": "h1"},
    constants={"kind": "k"},
)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("s", "text"),
        ("a.b[0].c", 1),
        ("a.b.1.c", 2),
        ("a.b[*].d", "x"),
        ("a.b[2].c", None),
        ("a.b.x", None),
        ("s.x", None),
        ("s[0]", "text"),
        ("n", None),
        ("n.x", None),
        ("0", "zero"),
        ("kind", "k"),
        ("$root.account.id", 7),
        ("$parent.p", 1),
        ("$item.s", "text"),
        ("header:X-Id", "h1"),
        ("header:missing", None),
        ("{a.b[0].c}.{s}", "1.text"),
        ("{a.b[0].c}.{missing}", None),
        ("+{a.b[0].c}", "+1"),
        ("{s}", "text"),
        (["missing", "e", "n", "s"], "text"),
        (["missing", ["also", "a.b[1].c"]], 2),
        ({"path": "s", "beside": "a"}, "text"),
        ({"path": "s", "beside": ["x", "y"]}, None),
        ({"path": "s", "without": ["x", "y"]}, "text"),
        ({"path": "s", "without": ["x", "a"]}, None),
        ({"path": "s", "where": {"a.b[0].c": 1}}, "text"),
        ({"path": "s", "where": {"s": "t*"}}, "text"),
        ({"path": "s", "where": {"s": "u*"}}, None),
        ({"path": "s", "where": {"missing": "*"}}, None),
    ],
)
def test_a_path_finds(path, expected) -> None:
    """Each form of path finds its value; null and what is not there are the same."""
    assert expected == compile_path(path).find(SCOPE)


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "a[",
        "a[]",
        "a[x]",
        "a[-1]",
        "a]b",
        "[0]a",
        "a[9999999999]",
        "{a",
        "a}",
        "{a}}",
        "{}",
        "{a..b}",
        "$nonsense.a",
        "header:",
        "header:a b",
        7,
        None,
        [],
        {},
        {"path": "a"},
        {"path": "a", "x": 1},
        {"beside": "a"},
        {"path": "a", "where": {}},
        {"path": "a", "where": {"b": None}},
        True,
        "x" * 501,
    ],
)
def test_what_is_no_path_is_refused_with_a_sentence(path) -> None:
    """A mistake in a path is found when the file is read, not when a webhook comes."""
    with pytest.raises(ValueError, match=r"[a-z]{2,}"):
        compile_path(path)


def test_every_element() -> None:
    """`[*]` is the elements of a list, the values of a map keyed by numbers, or the one value there is."""

    def all_of(value, path: str) -> list[object]:
        return [item for item, _ in expand(value, parse_payload_path(path), None)]

    assert [1, 2] == all_of({"a": [1, 2]}, "a[*]")
    assert [1, 2] == all_of({"a": {"5": 1, "7": 2}}, "a[*]")
    assert [{"b": 1}] == all_of({"a": {"b": 1}}, "a[*]")
    assert [] == all_of({"a": []}, "a[*]")
    assert [] == all_of({"a": None}, "a[*]")
    assert [[1], [2]] == all_of([[[1], [2]]], "[*][*]")
    assert [3, 4] == all_of([{"x": [3]}, {"x": [4]}, {"y": [5]}], "[*].x[*]")


@pytest.mark.parametrize(
    ("value", "path", "expected"),
    [
        ({"a": [{"b": 1, "c": 2}], "d": 3}, "a[*].b", {"a": [{"b": "*", "c": 2}], "d": 3}),
        ({"a": [1, 2]}, "a[1]", {"a": [1, "*"]}),
        ({"a": [1, 2]}, "a.1", {"a": [1, "*"]}),
        ({"a": {"5": 1, "7": 2}}, "a[*]", {"a": {"5": "*", "7": "*"}}),
        ({"a": {"0": 1}}, "a[0]", {"a": {"0": "*"}}),
        ({"a": {"b": 1}}, "a[*].b", {"a": {"b": "*"}}),
        ({"a": 1}, "a[*]", {"a": "*"}),
        ({"a": 1}, "a[0]", {"a": "*"}),
        ({"a": None}, "a", {"a": None}),
        ({"a": 1}, "x.y", {"a": 1}),
        ({"a": 1}, "a.y", {"a": 1}),
    ],
    ids=repr,
)
def test_a_value_is_replaced_where_it_would_be_found(value, path, expected) -> None:
    """What a path finds can be taken out by the same path; the original stays as it is."""
    before = repr(value)

    assert expected == replaced(value, parse_payload_path(path), "*")
    assert before == repr(value)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "0", "id", ""]), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(
    item=_JSON, path=st.sampled_from(["a", "a.b", "a[0]", "a[*].b[*]", "[*].a", "a.0.b", "{a}.{b}", "$root.a", "$item"])
)
def test_no_item_makes_a_path_raise(item, path) -> None:
    """A path finds something or nothing, whatever the item is."""
    compile_path(path).find(Scope(item=item, root=item, parent=item))


@given(item=_JSON, path=st.sampled_from(["a", "a.b", "a[0]", "a[*].b[*]", "[*].a", "a.0.b", "a[*]"]))
def test_nothing_is_left_where_everything_was_replaced(item, path) -> None:
    """Whatever the item is, no value that the path found before is found after."""
    steps = parse_payload_path(path)

    assert {"*"} >= {found for found, _ in expand(replaced(item, steps, "*"), steps, None) if found is not None}


@given(st.text(max_size=30))
def test_any_text_is_a_path_or_is_refused(text) -> None:
    """Reading a path ends in a path or in a ValueError, nothing else."""
    with suppress(ValueError):
        compile_path(text).find(SCOPE)

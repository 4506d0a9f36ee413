"""How values from outside are shown."""

from __future__ import annotations

from rules.messages import as_json, cut


def test_a_value_of_many_lists_is_cut():
    """Lists of lists are cut in all and not only one by one, so that no explanation is long."""
    value = 1
    for _ in range(6):
        value = [value] * 20
    assert len(str(cut(value))) < 5_000
    assert as_json(value).startswith("[[[[[[1, 1")


def test_small_values_are_shown_whole():
    """What is short is not touched."""
    value = {"a": [1, 2.5, None, True, "x"], "b": {"c": []}}
    assert value == cut(value)

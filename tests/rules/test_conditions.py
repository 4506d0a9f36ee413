"""What an `if:` means."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.conditions import compile_conditions, explain, present_paths
from rules.loader import load
from rules.vocabulary import RuleError
from rules.yaml_reader import Position, SourceMap

VIEW = {
    "type": "lead.created",
    "now": "2026-03-02T13:00:00.000Z",
    "attempt": None,
    "contact": {"name": "Ana", "country": "CL", "email": None},
    "data": {
        "value": 12_000,
        "text_value": "12000.50",
        "flag": True,
        "zero": 0,
        "empty": "",
        "nothing": None,
        "source": "web_form",
        "tags": ["vip", 5, None],
        "nested": {"deep": {"list": [{"x": 1}, {"x": 2}]}},
        "created": "2026-03-01T00:00:00Z",
        "big": 10**400,
        "inf": float("inf"),
    },
}


def compiled(value, **positions):
    """Compile conditions that are good."""
    places = SourceMap("rules.yaml", **positions)
    test = compile_conditions(value, places, ("if",))
    assert [] == places.faults
    return test


def faults(value):
    """Return what is wrong with conditions."""
    places = SourceMap("rules.yaml")
    compile_conditions(value, places, ("if",))
    return [str(fault) for fault in places.faults]


@pytest.mark.parametrize(
    ("expected", "conditions"),
    [
        # plain values
        (True, {"data.source": "web_form"}),
        (False, {"data.source": "Web_form"}),
        (True, {"data.value": 12_000.0}),
        (False, {"data.flag": 1}),
        (True, {"data.flag": True}),
        (False, {"data.zero": False}),
        (True, {"data.empty": ""}),
        # missing and null
        (True, {"data.nothing": None}),
        (True, {"data.absent": None}),
        (False, {"data.value": None}),
        (False, {"data.zero": None}),
        (True, {"data.absent": {"exists": False}}),
        (True, {"data.empty": {"exists": True}}),
        (False, {"data.nothing": {"exists": True}}),
        (False, {"data.nothing": {"ne": 5}}),
        (False, {"data.absent": {"not_in": [5]}}),
        (True, {"not": {"data.absent": {"not_in": [5]}}}),
        (True, {"not": {"data.absent": 5}}),
        (False, {"not": {"data.absent": None}}),
        (False, {"data.absent.deeper": {"gt": 1}}),
        (False, {"data.source.deeper": {"exists": True}}),
        (True, {"attempt": None}),
        # text for number
        (True, {"data.text_value": {"gt": 10_000}}),
        (False, {"data.text_value": 12_000.5}),
        (False, {"data.source": {"gt": 1}}),
        (True, {"data.text_value": {"between": [12_000, 12_001]}}),
        (False, {"data.flag": {"gte": 1}}),
        (True, {"data.big": {"gt": 1}}),
        (True, {"data.inf": {"gt": 1}}),
        # several operators
        (True, {"data.value": {"gt": 10_000, "lt": 13_000}}),
        (False, {"data.value": {"gt": 10_000, "lt": 11_000}}),
        # nested and list fields
        (True, {"data.nested.deep.list[1].x": 2}),
        (True, {"data.nested.deep.list.0.x": 1}),
        (False, {"data.nested.deep.list[2].x": {"exists": True}}),
        (True, {"data.nested.deep": {"eq": {"list": [{"x": 1}, {"x": 2}]}}}),
        (True, {"data.tags": {"contains": "vip"}}),
        (True, {"data.tags": {"contains": 5.0}}),
        (False, {"data.tags": {"contains": "vi"}}),
        (True, {"data.tags[0]": {"in": ["vip", "gold"]}}),
        (True, {"data.tags[2]": None}),
        (True, {"data.created": {"newer_than": "2d"}}),
        (False, {"data.created": {"newer_than": "1d"}}),
        # groups
        (True, {"any": [{"data.source": "ads"}, {"data.tags": {"contains": "vip"}}]}),
        (False, {"any": [{"data.source": "ads"}, {"data.absent": 5}]}),
        (True, {"all": [{"data.source": "web_form"}, {"contact.country": {"in": ["CL"]}}]}),
        (False, {"any": [{"data.source": "web_form", "data.value": 1}]}),
        (True, {"not": {"any": [{"data.source": "ads"}, {"data.value": 1}]}}),
        (True, {"not": {"all": [{"data.source": "web_form"}, {"data.value": 1}]}}),
        (False, {"not": {"all": [{"data.source": "web_form"}, {"data.value": 12_000}]}}),
        (True, {"any": [{"not": {"data.source": "ads"}}]}),
    ],
)
def test_conditions_hold_as_documented(expected, conditions):
    """Over missing, null, text-for-number, nested and list fields each condition has the answer of the documentation."""
    assert expected is (compiled(conditions)(VIEW) is None)


def test_without_conditions_a_rule_always_holds():
    """An absent `if` is compiled to a test that holds."""
    assert compiled(None)({}) is None


def test_the_first_failing_line_is_told_with_its_place():
    """The failed test names the field in the rule's spelling, what was wanted, what was seen, and where it stands."""
    line = ("if", "data.tags.0", "eq")
    test = compiled(
        {"data.value": {"gt": 1}, "data.tags.0": {"eq": "gold"}, "data.source": "ads"},
        keys={line: Position("rules.yaml", 7, 9)},
    )
    failed = test(VIEW)
    assert ("data.tags.0", "eq", "gold", "vip", False, "rules.yaml:7:9") == (
        failed.path,
        failed.operator,
        failed.wanted,
        failed.seen,
        failed.missing,
        failed.place,
    )


@pytest.mark.parametrize(
    ("expected", "conditions"),
    [
        ("data.value: wanted gt 20000, saw 12000", {"data.value": {"gt": 20_000}}),
        ('contact.email: wanted in ["a", "b"], but it is missing', {"contact.email": {"in": ["a", "b"]}}),
        ('data.source: wanted exists false, saw "web_form"', {"data.source": None}),
        ("data.absent: wanted exists true, but it is missing", {"data.absent": {"exists": True}}),
        (
            'none of these held: data.source: wanted eq "ads", saw "web_form"; data.absent: wanted gt 5, but it is missing',
            {"any": [{"data.source": "ads"}, {"data.absent": {"gt": 5}}]},
        ),
        ('data.source: wanted not eq "web_form", saw "web_form"', {"not": {"data.source": "web_form"}}),
        ("data.value: wanted not gt 1 and lt 20000, saw 12000", {"not": {"data.value": {"gt": 1, "lt": 20_000}}}),
        ("data.absent: wanted not exists false, but it is missing", {"not": {"data.absent": None}}),
        (
            (
                'data.flag, data.zero: wanted not {"any": [{"data.flag": true}, {"data.zero": 1}]}, '
                'saw {"data.flag": true, "data.zero": 0}'
            ),
            {"not": {"any": [{"data.flag": True}, {"data.zero": 1}]}},
        ),
        ('data.inf: wanted lt 5, saw "inf"', {"data.inf": {"lt": 5}}),
    ],
)
def test_a_failed_test_is_told_as_a_sentence(expected, conditions):
    """The sentence has what was wanted and what was seen as JSON, or says that the field is missing."""
    assert expected == explain(compiled(conditions)(VIEW))


def test_long_values_are_cut_in_the_explanation():
    """A text of a megabyte does not end up in the decision."""
    failed = compiled({"data.text": "short"})({"data": {"text": "x" * 1_000_000}})
    assert 300 > len(explain(failed))


@pytest.mark.parametrize(
    ("conditions", "part"),
    [
        (
            {"data.value": {"gtt": 5}},
            "if.data.value.gtt: there is no operator gtt; did you mean gt? allowed are eq, ne, gt",
        ),
        ({"data.value": {"amount": 1}}, "to compare with a mapping, write eq: {...}"),
        ({"data.value": {}}, "no operator stands here"),
        ({"data.value": {"gt": "many"}}, "gt: it orders numbers"),
        ({"data.text": {"matches": "("}}, "if.data.text.matches: matches:"),
        ({"data.text": {"changed": {"to": "x"}}}, "not yet"),
        ({"data.text": {"eq": None}}, "exists: false"),
        ({"expr": "a > 1"}, "not yet: `expr`"),
        ({"gt": 5}, "`gt` is an operator"),
        ({"value": 5}, "did you mean data.value?"),
        ({"any": {"data.x": 1}}, "`any` takes a list of tests"),
        ({"all": []}, "`all` takes a list of tests"),
        ({"any": ["data.x"]}, "if.any.0: write a mapping of field and test"),
        ({"not": {"data.x": 1, "data.y": 2}}, "`not` takes one line"),
        ({"not": []}, "`not` takes one line"),
        ({"not": {"not": {"data.x": 1}}}, "leave out both"),
        ([{"data.x": 1}], "a list stands under any: or all:"),
        ({}, "no test stands here"),
        ("data.x", "write a mapping of field and test"),
        ({5: 1}, "an event has no 5"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_remedy(conditions, part):
    """Every faulty form has a message that names the place and leads to the fix."""
    found = faults(conditions)
    assert 1 == len(found)
    assert part in found[0]


def test_all_faults_come_in_one_run():
    """Reading goes on after a fault."""
    assert 3 == len(faults({"valu": 1, "data.x": {"gtt": 1}, "any": 5}))


@pytest.mark.parametrize("name", ["ne", "not_in"])
def test_a_negative_test_on_a_field_that_may_be_missing_is_warned_of(name):
    """`ne` and `not_in` do not hold on a missing field, which authors forget; `exists: true` beside it shows they did not."""
    places = SourceMap("rules.yaml")
    compile_conditions({"data.stage": {name: ["lost"]}, "type": {name: ["x"]}}, places, ())
    compile_conditions({"data.stage": {name: ["lost"], "exists": True}}, places, ())
    assert 1 == len(places.warnings)
    assert f"{name} does not hold where data.stage is missing" in str(places.warnings[0])


def test_a_plain_list_is_compared_as_a_whole_and_warned_of():
    """A list without an operator means eq; the author probably meant `in`."""
    places = SourceMap("rules.yaml")
    test = compile_conditions({"data.tags": ["a", "b"]}, places, ())
    assert test({"data": {"tags": ["a", "b"]}}) is None
    assert "{in: " in str(places.warnings[0])


def test_tested_fields_are_known_to_be_present():
    """What stands under no any and no not, and does not ask for absence, is there when the conditions hold."""
    conditions = {
        "data.list.0.x": {"gt": 1},
        "data.gone": None,
        "data.not_there": {"exists": False},
        "any": [{"data.maybe": 1}],
        "not": {"data.other": 1},
        "all": [{"contact.name": {"exists": True}}],
    }
    assert {"data.list[0].x", "contact.name"} == present_paths(conditions)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
)
lines = st.dictionaries(
    st.sampled_from(["data", "data.a", "data.a.b", "data.a[0]", "data.b.1.c"]),
    json_values
    | st.dictionaries(
        st.sampled_from(["eq", "gt", "in", "contains", "exists", "matches", "between", "older_than"]),
        json_values,
        min_size=1,
        max_size=2,
    ),
    min_size=1,
    max_size=3,
)
conditions = st.recursive(
    lines,
    lambda inner: st.fixed_dictionaries(
        {}, optional={"any": st.lists(inner, max_size=3), "all": st.lists(inner, max_size=3), "not": inner}
    ),
    max_leaves=6,
)


@given(conditions, json_values)
def test_any_conditions_are_refused_or_answer_for_any_event(value, data):
    """Compiling never fails, and what is accepted decides every event and tells why."""
    places = SourceMap("rules.yaml")
    test = compile_conditions(value, places, ())
    if not places.faults:
        failed = test({"data": data, "now": "2026-03-02T13:00:00.000Z"})
        assert failed is None or explain(failed)


@given(lines, json_values)
def test_not_holds_exactly_where_its_group_does_not(value, data):
    """`not: {all: [x]}` is the opposite of x, for every event."""
    view = {"data": data, "now": "2026-03-02T13:00:00.000Z"}
    places = SourceMap("rules.yaml")
    plain = compile_conditions(value, places, ())
    turned = compile_conditions({"not": {"all": [value]}}, places, ())
    if not places.faults:
        assert (plain(view) is None) is (turned(view) is not None)


@pytest.mark.parametrize("around", ["", "not"])
def test_changed_in_the_spelling_of_the_design_is_not_yet_built(around):
    """`changed` with a mapping of fields is refused as "not yet", with what to write until then."""
    value = {"changed": {"data.stage": {"from": "mql", "to": "sql"}}}
    (fault,) = faults({around: value} if around else value)
    assert "not yet: `changed` comes with a later version; test the value it has now" in fault


def test_an_empty_if_is_refused_and_not_taken_for_always():
    """`if:` with nothing behind it is a fault of the file; only a rule without `if` always acts."""
    rule = "rules:\n  - id: a\n    when: lead.created\n    if: null\n    then:\n      - team_task: {title: x, assign: [u]}\n"
    with pytest.raises(RuleError, match=r"r\.yaml:4:9: rules\.0\.if: "):
        load({"r.yaml": rule}, {})

from __future__ import annotations

import json
from importlib.resources import files

import pytest
from jsonschema import Draft202012Validator

from rules.operators import OPERATORS
from rules.schema import MakeCall, OtherTask, Redial, RuleFile, RuleSpec, TaskEntry, TeamTask, json_schema
from rules.yaml_reader import read

AGENT = "11111111-1111-4111-8111-111111111111"
EXAMPLES = sorted(
    (file for file in files("rules").joinpath("examples").iterdir() if file.name.endswith(".yaml")),
    key=lambda file: file.name,
)


@pytest.fixture(scope="module")
def validator():
    """Return a validator that works by the schema."""
    Draft202012Validator.check_schema(json_schema())
    return Draft202012Validator(json_schema())


def with_rule(**keys):
    """Return a document with one sound rule, but for these keys."""
    return {"rules": [{"id": "a", "when": "lead.created", "then": [{"make_call": {"agent": AGENT}}], **keys}]}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda file: file.name)
def test_the_examples_are_valid(example, validator):
    """Every example file satisfies the schema that editors use."""
    document, _ = read(example.read_text(encoding="utf-8"), example.name)

    assert [] == [error.message for error in validator.iter_errors(document)]


@pytest.mark.parametrize(
    "document",
    [
        {"ruls": []},
        with_rule(wen="x"),
        with_rule(window="x"),
        with_rule(then=[{"make_cal": {"agent": AGENT}}]),
        with_rule(then=[{"make_call": {"agnt": AGENT}}]),
        with_rule(then=[{"make_call": {"agent": "sales"}}]),
        with_rule(then=[{"make_call": {"agent": AGENT, "priority": 11}}]),
        with_rule(then=[{"make_call": {"agent": AGENT}, "team_task": {"assign": ["x"]}}]),
        with_rule(then=[{"id": "x"}]),
        with_rule(then=[{"team_task": {"assign": ["x"], "due": {"time": "14:00"}}}]),
        with_rule(**{"if": {"data.x": {"greater": 1}}}),
        with_rule(**{"if": {"data.x": {"changed": 1}}}),
        with_rule(**{"if": {"expr": "a > b"}}),
        with_rule(**{"if": {"dta.x": 1}}),
        with_rule(**{"if": {"datax": 1}}),
        with_rule(when=None),
        with_rule(**{"if": {"any": [{"data.x": {"gtt": 1}}]}}),
        with_rule(tests=[{"name": "x", "given": {"contakt": {}}, "expect": []}]),
        with_rule(title=None),
    ],
)
def test_what_is_wrong_is_marked(document, validator):
    """A misspelt key, an unknown operator or a wrong shape is an error in the editor, too."""
    assert not validator.is_valid(document)


@pytest.mark.parametrize(
    "document",
    [
        with_rule(**{"if": {"data.x": 1, "data.y": None, "not": {"data.z": {"in": [1]}}, "any": [{"data.a": True}]}}),
        with_rule(
            then=[{"make_call": {"agent": "${SALES_AGENT}", "priority": "{{ data.p }}"}, "retry": {"delay": "1h"}}]
        ),
        with_rule(then=[{"team_task": {"assign": "closers", "due": {"date": "2026-12-01"}}}]),
        with_rule(then=[{"team_task": {"assign": "{{ data.owner }}", "due": "+2h"}}]),
        {"sources": {"x": {"extend": "generic", "anything": [1]}}},
        {"version": 1, "defaults": None, "teams": None, "sources": None, "rules": None},
        with_rule(tests=[{"name": "x", "given": {"contact": {"name": None}, "subject": None}, "expect": []}]),
        with_rule(**{"if": {"data.list[1].x": 1, "contact": None, "changed.data": {"exists": True}}}),
    ],
)
def test_what_is_right_is_not_marked(document, validator):
    """Variables, templates, short forms and sources pass."""
    assert [] == [error.message for error in validator.iter_errors(document)]


def test_every_operator_is_described():
    """All operators but those of a later version are offered, each with its sentence."""
    offered = json_schema()["$defs"]["Test"]["anyOf"][1]["properties"]

    assert set(OPERATORS) - {"changed"} == set(offered)
    assert all(operator["description"] for operator in offered.values())


def test_keys_of_a_later_version_are_not_offered():
    """What would be refused with "not yet" is not in the schema."""
    made = json_schema()
    for model in (RuleFile, RuleSpec, TaskEntry, MakeCall, OtherTask, TeamTask, Redial):
        properties = (made if model is RuleFile else made["$defs"][model.__name__])["properties"]

        assert set() == set(properties) & set(model.NOT_YET)
    assert "calendars" not in made["properties"]


def test_every_key_has_a_description():
    """An editor can explain each key."""
    made = json_schema()
    for name, definition in ({"": made} | made["$defs"]).items():
        for key, value in definition.get("properties", {}).items():
            assert value.get("description"), f"{name}.{key}"


def test_the_schema_is_json_of_draft_2020_12():
    """It can be written to a file, and says which draft it is."""
    assert "https://json-schema.org/draft/2020-12/schema" == json.loads(json.dumps(json_schema()))["$schema"]

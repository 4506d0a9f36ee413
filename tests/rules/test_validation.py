from __future__ import annotations

import pytest

from rules.schema import (
    MakeCall,
    OtherTask,
    Redial,
    RuleFile,
    RuleSpec,
    Section,
    TaskEntry,
    TeamTask,
    WhatsappTemplate,
    allowed_keys,
)
from rules.validation import validated
from rules.yaml_reader import SourceMap

AGENT = "11111111-1111-4111-8111-111111111111"
COMMON = {
    "agent": AGENT,
    "title": "x",
    "description": "x",
    "at": "next 09:00",
    "expires": "+2h",
    "priority": 10,
    "redial": {"max": 1},
    "campaign": AGENT,
    "contact": {"phone_number": "+56911112222", "email": "a@example.com"},
    "contact_uuid": AGENT,
    "timezone": "America/Santiago",
    "auto_queue": False,
    "extra_fields": {"x": 1},
}


def complaints(document):
    """Return what the grammar makes of a document, and the path and message of each fault."""
    places = SourceMap("f.yaml")
    return validated(document, places), [(fault.path, fault.message) for fault in places.faults]


def of_task(kind, task):
    """Return the faults of one task."""
    return complaints({"rules": [{"id": "a", "when": "x", "then": [{kind: task}]}]})[1]


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("make_call", COMMON),
        ("whatsapp_template", COMMON | {"template": AGENT}),
        ("mindhunters_task", COMMON | {"type": "survey", "task_data": {"any": ["thing"]}}),
        (
            "team_task",
            {
                "title": "x",
                "description": "x",
                "due": {"date": "2026-12-01", "time": "14:00"},
                "timezone": "UTC",
                "priority": "low",
                "assign": ["a"],
                "ai_contact_id": "a",
                "ai_customer_id": "a",
                "extra_fields": {},
            },
        ),
    ],
)
def test_every_documented_key_of_a_task_is_taken(kind, task):
    """All keys of the four task types are accepted together."""
    assert [] == of_task(kind, task)


@pytest.mark.parametrize("key", sorted(set(COMMON) - {"expires", "redial", "contact", "extra_fields"}))
def test_a_template_may_give_what_is_sent(key):
    """Whatever goes to the provider may come from the event; its shape is checked when it is there."""
    assert [] == of_task("make_call", COMMON | {key: "{{ data.x }}"})


def test_templates_in_the_keys_of_a_team_task():
    """Assignment, due date, priority and zone may come from the event."""
    template = "{{ data.x }}"
    task = {"assign": template, "due": template, "priority": template, "timezone": template}

    assert [] == of_task("team_task", task)
    assert [] == of_task("team_task", task | {"due": {"date": template, "time": template}, "assign": [template]})


@pytest.mark.parametrize(
    ("model", "key"),
    [(model, key) for model in (RuleFile, RuleSpec, TaskEntry, MakeCall, TeamTask, Redial) for key in model.NOT_YET],
    ids=str,
)
def test_a_key_of_a_later_version_is_no_key_of_this_one(model, key):
    """What is refused with "not yet" is not accepted under the same name."""
    assert key not in allowed_keys(model)


def test_not_yet_and_unknown_are_two_messages():
    """A key of a later version says "not yet"; an unknown one lists what is allowed."""
    (later,), (unknown,) = (of_task("make_call", {"agent": AGENT, key: 1}) for key in ("window", "windwo"))

    assert "rules.0.then.0.make_call.window" == later[0]
    assert "not yet" in later[1]
    assert "not yet" not in unknown[1]
    assert "allowed here: agent, at, auto_queue" in unknown[1]


def test_one_fault_does_not_hide_another():
    """Every rule, task and key is looked at, whatever is wrong before it."""
    _, found = complaints(
        {
            "version": 2,
            "teams": [],
            "rules": [
                {"id": "a", "when": "x", "then": [{"make_call": {"agnt": 1, "priority": 0}}, {"team_task": 3}]},
                7,
                {"id": "c", "when": "x", "then": {}},
            ],
        }
    )

    assert [
        "version",
        "teams",
        "rules.0.then.0.make_call",
        "rules.0.then.0.make_call.priority",
        "rules.0.then.0.make_call.agnt",
        "rules.0.then.1.team_task",
        "rules.1",
        "rules.2.then",
    ] == [path for path, _ in found]


def test_no_message_speaks_of_pydantic():
    """Messages are written for authors of rules: no types of Python, no addresses, no unions."""
    odd = [None, [], {}, 3, "x", True, {"x": {}}]
    documents = [{key: value} for key in RuleFile.model_fields for value in odd]
    documents += [
        {"rules": [{"id": "a", "when": "x", "then": [{kind: {key: value}}]}]}
        for kind, model in (
            ("make_call", MakeCall),
            ("whatsapp_template", WhatsappTemplate),
            ("mindhunters_task", OtherTask),
            ("team_task", TeamTask),
        )
        for key in model.model_fields
        for value in odd
    ]
    messages = {message for document in documents for _, message in complaints(document)[1]}

    assert len(messages) > 60
    for word in ("pydantic", "http", "Input", "dict", "instance", "Value error", "union", "\0", "None", "str"):
        assert not [message for message in messages if word in message.replace("strategy", "")], word


def sections(model):
    """Yield a model and all that are made from it."""
    yield model
    for child in model.__subclasses__():
        yield from sections(child)


@pytest.mark.parametrize("model", [model for model in sections(Section) if model is not Section], ids=str)
def test_every_key_is_described(model):
    """Each key has the description that editors and messages show."""
    assert [] == [name for name, field in model.model_fields.items() if not field.description and name != "calendars"]
    assert model.__doc__

from __future__ import annotations

from datetime import UTC, datetime
from importlib.resources import files

import pytest

from rules.engine import decide
from rules.loader import load
from rules.rule_tests import run_rule_tests
from rules.vocabulary import Contact, Event, TaskType

#: Everything the examples ask of the environment.
VARIABLES = {
    "SALES_AGENT": "11111111-1111-4111-8111-111111111111",
    "WELCOME_TEMPLATE": "22222222-2222-4222-8222-222222222222",
}


@pytest.fixture(scope="module")
def rule_set():
    """Return the book of all example files."""
    texts = {
        file.name: file.read_text(encoding="utf-8")
        for file in files("rules").joinpath("examples").iterdir()
        if file.name.endswith(".yaml")
    }
    return load(dict(sorted(texts.items())), VARIABLES)


def test_the_examples_are_accepted_without_a_warning(rule_set):
    """A user who copies them starts from rules that nobody complains about."""
    assert () == rule_set.warnings


def test_every_example_rule_proves_itself(rule_set, now):
    """Each rule has tests, with one that makes a task and one that makes none, and all of them hold."""
    assert [] == [str(fault) for fault in run_rule_tests(rule_set, now=now)]
    for rule in rule_set.rules:
        assert {True, False} == {bool(proof.expected) for proof in rule.tests}, rule.id


def test_the_examples_define_the_sources_of_the_demo(rule_set):
    """Three sources in three formats, each with its secret in the environment."""
    assert {
        "website": {"extend": "generic", "secrets": [{"env": "DEMO_GENERIC_SECRET"}]},
        "hubspot": {"extend": "hubspot", "secrets": [{"env": "DEMO_HUBSPOT_SECRET"}]},
        "partner": {"extend": "standard-webhooks", "secrets": [{"env": "DEMO_STANDARD_SECRET"}]},
    } == {source.name: source.value for source in rule_set.sources}


def test_the_case_of_the_vambe_document(rule_set):
    """A lead worth more than 10,000 becomes a high-priority task due in two hours, in Santiago's time."""
    now = datetime(2026, 3, 2, 13, tzinfo=UTC)
    event = Event(
        id="ev_1",
        source="website",
        type="lead.created",
        occurred_at=now,
        received_at=now,
        contact=Contact(name="Ana", phone="+56911112222"),
        data={"value": 10_001},
    )
    (task,) = (task for task in decide(rule_set, event, now=now).tasks if task.type is TaskType.TEAM_TASK)

    assert {
        "title": "Follow up: High-value lead - Ana",
        "priority": "high",
        "due_date": "2026-03-02",
        "due_time": "12:00",
        "timezone": "America/Santiago",
        "responsible_ids": ["aaaaaaaa-0000-4000-8000-000000000001"],
    }.items() <= task.fields.items()

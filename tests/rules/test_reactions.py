"""What follows on the end of a task: how it is written, named and planned."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from rules.engine import Ended, decide, react, task_key
from rules.loader import inspect, load
from rules.rule_tests import run_rule_tests
from rules.vocabulary import Contact, Event, TaskState, TaskType

NOW = datetime(2026, 3, 2, 13, 0, 30, tzinfo=UTC)
AGENT = "11111111-1111-4111-8111-111111111111"
USER = "aaaaaaaa-0000-4000-8000-000000000001"
RULES = f"""
teams: {{turns: {{by: round_robin, timezone: America/Lima, members: [{{id: {USER}}}, {{id: {AGENT}}}]}}}}
rules:
  - id: r
    when: lead.created
    if: {{data.value: {{gt: 10}}, contact.name: {{exists: true}}}}
    then:
      - id: call
        make_call: {{agent: {AGENT}, title: "Call {{{{ contact.name }}}}", expires: +2h}}
        on_failure:
          - team_task:
              title: "Not placed: {{{{ failure.title }}}}"
              description: "{{{{ failure.task }}}} {{{{ failure.status | default('no answer') }}}}: {{{{ failure.reason }}}}"
              assign: turns
              due: +1h
          - id: write
            make_call: {{agent: {AGENT}, contact: {{phone_number: "{{{{ data.second | default('') }}}}"}}}}
            on_failure: [{{team_task: {{assign: [{USER}]}}}}]
        on_outcome:
          failed: [{{team_task: {{title: "{{{{ outcome }}}}: {{{{ failure.reason }}}}", assign: [{USER}]}}}}]
          expired: [{{team_task: {{assign: [{USER}]}}}}]
      - team_task: {{assign: [{USER}]}}
"""


def event(value=20):
    """Return a lead."""
    contact = Contact(name="Ana", phone="+56911112222", country="CL")
    return Event(
        id="ev_1",
        source="crm",
        type="lead.created",
        occurred_at=NOW,
        received_at=NOW,
        contact=contact,
        data={"value": value},
    )


def ended(name="call", **more):
    """Return a task that has ended."""
    return Ended(id="tk_1", rule="r", name=name, title="Call Ana", reason="422 no such agent", **more)


def test_a_task_lists_the_ends_that_its_rule_answers():
    """The ledger learns with the task what is to be answered; a task without answers lists none."""
    call, team = decide(load({"a.yaml": RULES}, {}), event(), now=NOW).tasks

    assert ("failure", "outcome:failed", "outcome:expired") == call.reactions
    assert ((), None) == (team.reactions, team.parent)


def test_a_failure_leads_to_its_tasks():
    """Each is named after its parent, has a key of its own, and may say what failed and why."""
    rule_set = load({"a.yaml": RULES}, {})

    (team, write), note = react(rule_set, event(), ended(status=422), "failure", now=NOW + timedelta(hours=3))

    assert note is None
    assert ("call/team_task", "tk_1", TaskType.TEAM_TASK) == (team.name, team.parent, team.type)
    assert task_key("ev_1", "r", "call/team_task") == team.key
    assert "Not placed: Call Ana" == team.fields["title"]
    assert team.fields["description"].startswith("call 422: 422 no such agent [lw:")
    assert ("2026-03-02", "12:01", "turns") == (
        team.fields["due_date"],
        team.fields["due_time"],
        team.rotation.team,
    )
    assert ("call/write", TaskState.DEAD, ("failure",)) == (write.name, write.state, write.reactions)


def test_what_follows_may_be_answered_itself():
    """A message that failed after a call that failed leads to the task that its own entry names."""
    (task,), _ = react(load({"a.yaml": RULES}, {}), event(), ended("call/write"), "failure", now=NOW)

    assert "call/write/team_task" == task.name


def test_an_outcome_leads_to_the_tasks_of_its_word():
    """Two outcomes may be answered by tasks of one type; the provider's word is known to templates."""
    rule_set = load({"a.yaml": RULES}, {})

    (failed,), _ = react(rule_set, event(), ended(outcome="failed"), "outcome:failed", now=NOW)
    (expired,), _ = react(rule_set, event(), ended(outcome="expired"), "outcome:expired", now=NOW)

    assert ("call/failed/team_task", "call/expired/team_task") == (failed.name, expired.name)
    assert "failed: 422 no such agent" == failed.fields["title"]


def test_conditions_are_not_asked_again():
    """What was promised when the rule matched is kept, whatever the conditions would say."""
    tasks, _ = react(load({"a.yaml": RULES}, {}), event(value=1), ended(), "failure", now=NOW)

    assert 2 == len(tasks)


def test_a_missing_status_without_a_default_ends_that_task():
    """Where there was no answer there is no status: a template that needs one makes its task dead, by name."""
    rule_set = load({"a.yaml": RULES.replace(" | default('no answer')", "")}, {})

    (team, _), _ = react(rule_set, event(), ended(), "failure", now=NOW)

    assert TaskState.DEAD is team.state
    assert "failure.status is missing" in team.reason


def test_check_warns_of_a_status_without_a_default():
    """Of the four words about a failure the status alone may be missing, and `check` says so."""
    (warning,) = inspect({"a.yaml": RULES.replace(" | default('no answer')", "")}, {}).warnings

    assert "without failure.status this task ends dead" in warning.message
    assert () == inspect({"a.yaml": RULES}, {}).warnings


@pytest.mark.parametrize(("name", "trigger"), [("nobody", "failure"), ("team_task", "failure"), ("call", "outcome:x")])
def test_what_nothing_answers_is_said(name, trigger):
    """A rule set without such a task or answer gives no task and a sentence, and never raises."""
    tasks, note = react(load({"a.yaml": RULES}, {}), event(), ended(name), trigger, now=NOW)

    assert () == tasks
    assert f"nothing that answers {trigger} of r/{name}" in note


def test_the_tests_of_a_rule_expect_what_an_event_leads_to():
    """What follows on an end is no part of what the event itself leads to."""
    text = RULES + "    tests: [{name: x, given: {contact: {name: A, phone: '+56911112222'}, data: {value: 20}}, "

    assert [] == run_rule_tests(load({"a.yaml": text + "expect: [make_call, team_task]}]"}, {}), now=NOW)


def test_variables_are_resolved_in_what_follows():
    """An agent from the environment counts there, too, and one that is not set is refused at its place."""
    text = RULES.replace(f"assign: [{USER}]", "assign: ['${SOMEBODY}']")
    rule_set = load({"a.yaml": text}, {"SOMEBODY": USER})

    (task,), _ = react(rule_set, event(), ended(outcome="failed"), "outcome:failed", now=NOW)

    assert [USER] == task.fields["responsible_ids"]
    assert "SOMEBODY is not set" in inspect({"a.yaml": text}, {}).faults[0].message

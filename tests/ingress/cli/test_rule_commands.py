"""`check`, `explain` and `schema`."""

from __future__ import annotations

import json
import os
import re

import pytest

SMALL = json.dumps({"type": "lead.created", "contact": {"country": "CL"}, "data": {"value": 9000}})


def test_good_rules_are_counted(run, rules):
    """`check` of good rules ends with 0 and counts what it read and ran."""
    said = run("check")

    assert (0, "") == (said.code, said.err)
    assert "1 file good: 1 rule, 1 source, 1 test passed." in said.out


def test_a_fault_is_told_at_its_place(run, rules):
    """A fault is `file:line:column: path: message`, the file as it was given, and the exit code is 1."""
    (rules / "bad.yaml").write_text("version: 1\nrules:\n  - id: a\n    whenn: lead.created\n    then: []\n")

    said = run("check", "my-rules")

    assert 1 == said.code
    assert "my-rules/bad.yaml:4:5: rules.0.whenn: unknown key `whenn`; did you mean `when`?" in said.out
    assert "leadwire check my-rules" in said.out


def test_a_failing_test_of_a_rule_is_a_fault(run, rules):
    """A rule's own test that fails is a fault at the test's place, with its name."""
    text = (rules / "leads.yaml").read_text().replace("expect: []", "expect: [make_call]")
    (rules / "leads.yaml").write_text(text)

    said = run("check", "my-rules/leads.yaml")

    assert 1 == said.code
    assert re.search(r"^my-rules/leads.yaml:\d+:\d+: rules\.0\.tests\.0: ", said.out, re.MULTILINE)
    assert "a small lead is left alone" in said.out


def test_a_source_without_its_secret_is_a_fault(run, rules, monkeypatch):
    """A source whose secret is not set cannot be put in force: `check` says so."""
    monkeypatch.delenv("CRM_SECRET")

    said = run("check")

    assert 1 == said.code
    assert "CRM_SECRET" in said.out


def test_check_as_json_is_one_document(run, rules):
    """`check --json` prints one document with faults and warnings, and keeps its exit code."""
    (rules / "bad.yaml").write_text("nonsense: 1\n")

    said = run("check", "--json")
    result = json.loads(said.out)

    assert (1, False) == (said.code, result["good"])
    assert [{"my-rules/bad.yaml"}, 1] == [{fault["file"] for fault in result["faults"]}, result["faults"][0]["line"]]


@pytest.mark.parametrize("arguments", [(), ("no-such-folder",)])
def test_nothing_to_check_is_wrong_use(run, arguments):
    """No path at all, or one that is not there, is exit code 2 with a message."""
    said = run("check", *arguments)

    assert 2 == said.code
    assert said.err.strip()
    assert "" == said.out


def test_an_empty_folder_is_good_and_said_to_be_empty(run, folder):
    """A folder without rule files can be put in force, and `check` says that nothing is in it."""
    (folder / "empty").mkdir()

    said = run("check", "empty")

    assert 0 == said.code
    assert "no rule files" in said.out


def test_whatever_is_in_the_folder_there_is_no_traceback(run, folder):
    """Binary files, folders named like rule files and broken links are told in words."""
    place = folder / "odd"
    place.mkdir()
    (place / "binary.yaml").write_bytes(bytes(range(256)))
    (place / "folder.yaml").mkdir()
    (place / ".hidden.yaml").write_text("nonsense")
    (place / "link.yaml").symlink_to("nowhere.yaml")

    said = run("check", "odd")

    assert 1 == said.code
    assert "Traceback" not in said.out + said.err
    assert "link.yaml" in said.out + said.err


def test_a_single_yml_file_may_be_checked(run, rules):
    """A single file may be named, and its ending may be .yml."""
    (rules / "leads.yaml").rename(rules / "leads.yml")

    assert 0 == run("check", os.path.join("my-rules", "leads.yml")).code
    assert 0 == run("check", "my-rules").code


def test_a_lead_that_was_left_alone_is_explained(run, history):
    """`explain` names the rule, the failing test, the value seen and the value wanted."""
    said = run("explain", "ev_2")

    assert 0 == said.code
    assert "rule high-value-lead: left alone" in said.out
    assert "failing test  data.value gt 10000   [leads.yaml:9:20]" in said.out
    assert "value seen    9000" in said.out
    assert "value wanted  gt 10000" in said.out


def test_a_failed_choice_is_explained_with_each_of_its_tests(run, history):
    """Where one of several tests had to hold, each is told with what it saw."""
    said = run("explain", "ev_3")

    assert "any: one of these had to hold, and none did" in said.out
    assert 'data.source: wanted eq "web_form", saw "import"' in said.out
    assert 'data.tags: wanted contains "vip", but it is missing' in said.out


def test_the_last_event_says_which_types_are_listened_to(run, history):
    """`explain --last` takes the event that came last; one that no rule listens to is told what rules listen to."""
    said = run("explain", "--last")

    assert "deal.created from crm" in said.out
    assert "no rule listens to deal.created; the rules listen to lead.created" in said.out


def test_what_became_of_the_tasks_is_told(run, history):
    """An event that matched is explained with its tasks: state, attempts, the provider's id or the reason."""
    said = run("explain", "ev_1")

    assert "rule high-value-lead: matched, 2 tasks" in said.out
    assert "make_call by mindhunters, delivered" in said.out
    assert "at the provider mh-1" in said.out
    assert "leadwire settle ID" in said.out
    assert "no answer: timed out" in said.out


def test_an_explanation_as_json_is_one_document(run, history):
    """`explain --json` has the decisions with the failed test and the tasks."""
    small = json.loads(run("explain", "ev_2", "--json").out)
    other = json.loads(run("explain", "ev_4", "--json").out)

    failed = small["decisions"][0]["failed"]
    assert ("data.value", "gt", 10000, 9000) == tuple(failed[name] for name in ("path", "operator", "wanted", "seen"))
    assert ("ignored", ["lead.created"]) == (other["state"], other["listened_types"])


@pytest.mark.parametrize("arguments", [(), ("ev_1", "--last"), ("ev_1", "--rules", "x")])
def test_explain_needs_one_event(run, history, arguments):
    """Neither an id nor --last, both, or rules for a stored event: wrong use."""
    assert 2 == run("explain", *arguments).code


def test_an_unknown_event_says_where_to_look(run, history):
    """An id that no event has is a fault with the way on."""
    said = run("explain", "ev_none")

    assert 1 == said.code
    assert "leadwire events" in said.err


def test_a_file_is_explained_without_a_ledger(run, rules, folder):
    """A JSON file with an event is explained against the rules; nothing is recorded."""
    (folder / "lead.json").write_text(SMALL)

    said = run("explain", "lead.json")

    assert 0 == said.code
    assert "value seen    9000" in said.out
    assert not (folder / "home").exists()


def test_a_match_of_a_file_shows_what_would_be_sent(run, rules):
    """An event from standard input that matches shows the tasks as they would be planned."""
    big = {"type": "lead.created", "contact": {"name": "Ana", "phone": "+56911112222"}}
    text = json.dumps({**big, "data": {"value": 15000, "source": "web_form"}})

    said = run("explain", "-", stdin=text)
    planned = json.loads(run("explain", "-", "--json", stdin=text).out)

    assert '"Call Ana"' in said.out
    assert ["make_call", "team_task"] == [task["type"] for task in planned["tasks"]]


@pytest.mark.parametrize(
    "text",
    ["", "[1]", "{", '{"type": 3}', '{"type": "a", "contact": {"phon": 1}}', '{"type": "a", "x": 1}', "[" * 100_000],
)
def test_a_file_that_is_no_event_is_told_in_words(run, rules, text):
    """Whatever the file holds, the answer is a message and exit code 1."""
    said = run("explain", "-", stdin=text)

    assert 1 == said.code
    assert "standard input" in said.err


def test_the_schema_is_a_document(run):
    """`schema` prints the JSON Schema of rule files."""
    said = run("schema")

    assert 0 == said.code
    assert "rules" in json.loads(said.out)["properties"]

"""`check`, `explain` and `schema`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from jsonschema import Draft202012Validator

from ingress.sources import PRESETS, preset

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
    assert ["odd/binary.yaml:1:1", "odd/folder.yaml:1:1", "odd/link.yaml:1:1"] == [
        line.partition(": ")[0] for line in said.out.splitlines()[:-1]
    ]


def test_faults_of_rules_and_sources_come_in_one_run(run, rules):
    """A fault of a rule hides none of a source nor a warning, and the list follows the files from top to bottom."""
    (rules / "a.yaml").write_text("sources:\n  shop: {extend: generc}\nwrong: 1\n")
    (rules / "b.yaml").write_text("wrong: 1\nsources:\n  web: {extend: generic, secrets: [{env: UNSET_ONE}]}\n")
    (rules / "c.yaml").symlink_to("nowhere")
    (rules / "d.yaml").write_text(
        "rules: [{id: w, when: Lead.Created, then: [{team_task: {assign: [22222222-2222-4222-8222-222222222222]}}]}]\n"
    )

    result = json.loads(run("check", "--json").out)

    assert ["a.yaml:2", "a.yaml:3", "b.yaml:1", "b.yaml:3", "c.yaml:1"] == [
        f"{fault['file'].removeprefix('my-rules/')}:{fault['line']}" for fault in result["faults"]
    ]
    assert any("did you mean `lead.created`?" in warning["message"] for warning in result["warnings"])


def test_a_name_no_file_can_have_is_wrong_use(run):
    """A name that is too long, or none at all, is no place to check."""
    for path in ("x" * 5_000, ""):
        said = run("check", path)

        assert (2, "") == (said.code, said.out)
        assert "no such file or folder" in said.err
        assert len(said.err) < 1_000


def test_an_event_id_may_be_longer_than_a_file_name(run, history):
    """`explain` of a very long word looks for an event, and does not repeat it all."""
    said = run("explain", "x" * 5_000)

    assert 1 == said.code
    assert "no event has this id" in said.err
    assert len(said.err) < 1_000


@pytest.mark.parametrize("place", ["closed", "closed/leads.yaml"])
def test_a_folder_without_permission_is_told_in_words(folder, place):
    """What may not be read is a fault at the place, also as JSON."""
    (folder / "closed").mkdir()
    (folder / "closed" / "leads.yaml").write_text("rules: []\n")
    (folder / "closed").chmod(0)
    as_anybody = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.getuid() == 0 else []
    program = [*as_anybody, sys.executable, "-m", "console.cli", "check", place, "--json"]

    done = subprocess.run(program, check=False, cwd=folder, capture_output=True, text=True)
    (folder / "closed").chmod(0o700)

    assert (1, "") == (done.returncode, done.stderr)
    assert [(place, "cannot be read: Permission denied")] == [
        (fault["file"], fault["message"]) for fault in json.loads(done.stdout)["faults"]
    ]


def test_rule_files_below_the_folder_are_a_warning(run, folder):
    """A folder that holds rule files in sub-folders only is good, and `check` says what it does not read."""
    (folder / "only" / "sub").mkdir(parents=True)
    (folder / "only" / "sub" / "a.yaml").write_text("rules: []\n")

    said = run("check", "only")

    assert 0 == said.code
    assert "warning: only/sub:1:1: sub-folders are not read" in said.out


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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{"type": "a", "contact": 5}', "contact: must be a mapping, not the number 5"),
        (b'{"type": "a", "subject": {"kind": "x", "idd": "1"}}', "subject.idd: unknown key `idd`; did you mean `id`?"),
        (b'{"type": "a", "dat": 1}', "dat: unknown key `dat`; did you mean `data`?"),
        (b'{"type": "a", "data": %s}' % (b"1" * 5_000), "holds a number of 5000 digits"),
        (b'{"type": "a", "data": NaN}', "holds NaN, which is no number"),
        (b'{"type": "\xff"}', "byte 11 (0xff) is not UTF-8"),
        (b'{"type":\n a}', "event.json:2:2: cannot be read as JSON from here on"),
        (b" " * 1_100_000, "larger than 1 MiB"),
    ],
)
def test_what_is_wrong_with_an_event_is_told_as_in_rule_files(run, rules, folder, text, words):
    """The place, the nearest right word and the keys that are allowed there, and nothing in terms of Python."""
    (folder / "event.json").write_bytes(text)

    said = run("explain", "event.json")

    assert 1 == said.code
    assert words in said.err


def test_an_event_may_hold_null_as_real_ones_do(run, rules):
    """What an event has as null or empty where nothing is known can be explained."""
    contact = dict.fromkeys(("id", "name", "phone", "email", "country", "timezone", "language", "consent"))
    event = {"type": "lead.created", "contact": {**contact, "email": ""}, "subject": None, "attempt": None}

    assert 0 == run("explain", "-", stdin=json.dumps(event)).code


def test_the_schema_marks_misspelt_keys_of_sources(run):
    """The schema knows what a source may hold, and takes every shipped one and what extends it."""
    validator = Draft202012Validator(json.loads(run("schema").out))
    own = {"extend": "generic", "secrets": [{"env": "X"}], "split": None, "body": {"format": "${FORMAT}"}}

    assert validator.is_valid({"sources": {name: dict(preset(name)) for name in PRESETS} | {"own": own}})
    for wrong in ({"extnd": "generic"}, {"auth": {"hmac": {"heder": "X"}}}, {"extend": "nobody"}, {"enrich": {}}):
        assert not validator.is_valid({"sources": {"own": wrong}})


def test_the_schema_is_a_document(run):
    """`schema` prints the JSON Schema of rule files."""
    said = run("schema")

    assert 0 == said.code
    assert "rules" in json.loads(said.out)["properties"]

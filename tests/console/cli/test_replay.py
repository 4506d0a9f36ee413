"""The command `replay`."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from rules.engine import decide
from rules.loader import load
from rules.vocabulary import EventState, TaskState
from worker.ledger import Delivery, IncomingEvent

SECRET = {"CRM_SECRET": "not-a-secret-but-long-enough"}


def decided(ledger, rule_set, now, event_id="ev_1"):
    """Decide an event as a worker does."""
    event = ledger.queries.event(event_id)
    ledger.tasks.insert([decide(rule_set, event.event, now=now)], now)


def test_a_dry_run_shows_what_would_be_made_and_what_exists(run, history):
    """Nothing is changed by it."""
    before = history.queries.event("ev_1")

    said = run("replay", "ev_1", "ev_2", "--dry-run")
    (told,) = json.loads(run("replay", "ev_1", "--dry-run", "--json").out)["events"]

    assert 0 == said.code
    assert "high-value-lead/make_call  make_call: exists, delivered" in said.out
    assert "2 events to replay: 0 tasks would be made, 2 exist" in said.out
    assert ["delivered", "unknown"] == [task["exists"] for task in told["tasks"]]
    assert before == history.queries.event("ev_1")


def test_a_named_event_is_replayed(run, history, now):
    """It is received again, and a worker's decision makes nothing that exists."""
    said = run("replay", "ev_1")

    assert 0 == said.code
    assert EventState.RECEIVED is history.queries.event("ev_1").state
    decided(history, load({"leads.yaml": history.rule_sets.latest()[1]["leads.yaml"]}, SECRET), now)
    assert 2 == len(history.queries.tasks_of("ev_1"))
    assert "note     replayed by a person" in run("explain", "ev_1").out


def test_a_selection_is_replayed_when_confirmed(run, history):
    """Processed ones, unless told otherwise; the ignored ones by their state."""
    declined = run("replay", "--type", "lead.created", stdin="n\n")
    agreed = run("replay", "--type", "lead.created", "--source", "crm", stdin="y\n")
    ignored = run("replay", "--state", "ignored", "--yes", "--json")

    assert (1, 0, 0) == (declined.code, agreed.code, ignored.code)
    assert "replay 3 events?" in agreed.err
    assert [{"id": "ev_4", "again_as": "ev_4", "refused": None}] == json.loads(ignored.out)["events"]
    assert {EventState.RECEIVED: 4} == history.queries.counts().events


def test_changed_names_are_refused(run, history, now):
    """The message names both and the two ways on; --new-keys is one of them, and asks."""
    files = {
        "leads.yaml": history.rule_sets.latest()[1]["leads.yaml"].replace(
            "- make_call", "- id: dial\n        make_call"
        )
    }
    rule_set = load(files, SECRET)
    history.rule_sets.store(rule_set.version, files, now)

    refused = run("replay", "ev_1")
    asked = run("replay", "ev_1", "--new-keys", stdin="n\n")
    said = run("replay", "ev_1", "--new-keys", "--yes")

    assert (1, 1, 0) == (refused.code, asked.code, said.code)
    assert "names its tasks otherwise now (make_call then, dial now)" in refused.err
    assert "make 1 event anew, with 2 tasks, also those that were delivered before?" in asked.err
    assert "made anew as ev_1.2" in said.out
    decided(history, rule_set, now, "ev_1.2")
    assert ["dial", "team_task"] == [task.name for task in history.queries.tasks_of("ev_1.2")]
    assert 2 == len(history.queries.tasks_of("ev_1"))


@pytest.mark.parametrize(("state", "message"), [("unreadable", "nothing to decide"), ("failed", "--failed")])
def test_what_cannot_be_replayed_as_it_is_says_so(run, history, state, message):
    """Unreadable events never, failed ones only when named so."""
    said = run("replay", "--state", state, "--yes")

    assert 1 == said.code
    assert message in said.err


def test_a_failed_event_is_replayed_by_name(run, history, now):
    """A selection leaves it out."""
    run("replay", "ev_2")
    assert ["ev_2"] == history.inbox.dispatch_overdue(
        datetime.now(UTC) + timedelta(seconds=9), timedelta(seconds=5), 10
    )
    for _ in range(5):
        history.inbox.event_failed("ev_2", "boom", now)

    refused = run("replay", "ev_2")
    left_out = run("replay", "--source", "crm", "--dry-run", "--json")
    said = run("replay", "ev_2", "--failed")

    assert (1, 0) == (refused.code, said.code)
    assert ["ev_1", "ev_3"] == [event["id"] for event in json.loads(left_out.out)["events"]]
    assert EventState.RECEIVED is history.queries.event("ev_2").state


@pytest.mark.parametrize("arguments", [(), ("ev_1", "--source", "crm"), ("--until", "soon")])
def test_ids_or_a_selection(run, history, arguments):
    """Neither, both, or a moment that is none is a wrong use."""
    assert 2 == run("replay", *arguments).code


def test_an_id_that_nothing_has_is_a_fault(run, history):
    """Nothing else is replayed with it."""
    assert 1 == run("replay", "ev_none", "ev_1").code
    assert EventState.PROCESSED is history.queries.event("ev_1").state


def test_without_known_rules_the_worker_alone_compares(run, ledger, history):
    """Rules that cannot be read here are said, and hinder nothing."""
    files = {"leads.yaml": "version: 1\nrules: [nonsense]\n"}
    ledger.rule_sets.store("rs_odd", files, history.queries.event("ev_4").event.received_at.replace(year=2030))

    said = run("replay", "ev_1")

    assert 0 == said.code
    assert "cannot be read here" in said.err


def test_a_renamed_rule_is_refused(run, history, now):
    """The touches of the old id would be made a second time; the message names both rules and the ways on."""
    files = {"leads.yaml": history.rule_sets.latest()[1]["leads.yaml"].replace("id: high-value-lead", "id: big-lead")}
    rule_set = load(files, SECRET)
    history.rule_sets.store(rule_set.version, files, now)

    refused = run("replay", "ev_1")
    counted = run("replay", "--type", "lead.created", "--dry-run")

    assert (1, 0) == (refused.code, counted.code)
    assert "rule high-value-lead made a make_call and plans nothing now, rule big-lead made nothing" in refused.err
    assert "give it back its old `id`; or make all tasks anew with --new-keys" in refused.err
    assert "2 events to replay: 0 tasks would be made, 0 exist\n1 event refused" in counted.out
    assert EventState.PROCESSED is history.queries.event("ev_1").state


def test_what_was_never_complete_is_planned_again(run, history, now):
    """A title named what was missing: retry tells of replay, which counts it, and a worker makes it whole."""
    good = history.rule_sets.latest()[1]["leads.yaml"]
    bad = {"leads.yaml": good.replace("Follow up", "Follow up {{ data.nobody }}")}
    stored = history.queries.event("ev_1")
    event = replace(stored.event, id="ev_9")
    incoming = IncomingEvent(event=event, dedupe_key="ev_9", content_hash="c9")
    delivery = Delivery(id="dl_9", source="crm", received_at=now, body=b"{}", content_hash="c9")
    history.inbox.record(delivery, [incoming])
    decided(history, load(bad, SECRET), now, "ev_9")
    _, team = history.queries.tasks_of("ev_9")

    retried = run("retry", team.id)
    dry = run("replay", "ev_9", "--dry-run")
    (told,) = json.loads(run("replay", "ev_9", "--dry-run", "--json").out)["events"]
    said = run("replay", "ev_9")
    decided(history, load({"leads.yaml": good}, SECRET), now, "ev_9")

    assert TaskState.DEAD is team.state
    assert (1, 0, 0) == (retried.code, dry.code, said.code)
    assert "was never complete" in retried.err
    assert "leadwire replay ev_9 plans it again" in retried.err
    assert "team_task: exists, dead, never complete: would be planned again, due" in dry.out
    assert "0 tasks would be made, 2 exist, 1 of them never complete, to be planned again" in dry.out
    assert [False, True] == [task["again"] for task in told["tasks"]]
    mended = history.queries.task(team.id)
    assert (TaskState.QUEUED, "Follow up") == (mended.state, mended.fields["title"])

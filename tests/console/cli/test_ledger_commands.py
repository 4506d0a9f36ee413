"""Commands that look into the ledger and change it."""

from __future__ import annotations

import json
import re

import pytest

EVENT_KEYS = {"id", "source", "type", "occurred_at", "received_at", "subject", "contact", "state", "decisions"}
TASK_KEYS = {
    *("id", "event_id", "rule", "name", "type", "provider", "state", "due_at", "attempts", "external_id", "reason"),
    *("key", "contact", "created_at", "updated_at"),
}
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def test_events_as_json_are_one_array(run, history):
    """`events --json` prints one array with every event, newest first, and nothing else."""
    said = run("events", "--json")
    listed = json.loads(said.out)

    assert (0, "") == (said.code, said.err)
    assert [one["id"] for one in listed] == ["ev_4", "ev_3", "ev_2", "ev_1"]
    assert all(one.keys() >= EVENT_KEYS for one in listed)
    assert all(MOMENT.fullmatch(one[name]) for one in listed for name in ("occurred_at", "received_at"))


def test_tasks_as_json_are_one_array(run, history):
    """`tasks --json` prints one array with every task and its promised keys."""
    listed = json.loads(run("tasks", "--json").out)

    assert {("make_call", "delivered", "mh-1"), ("team_task", "unknown", None)} == {
        (one["type"], one["state"], one["external_id"]) for one in listed
    }
    assert all(one.keys() >= TASK_KEYS for one in listed)
    assert all(MOMENT.fullmatch(one[name]) for one in listed for name in ("due_at", "created_at", "updated_at"))


@pytest.mark.parametrize("command", ["events", "tasks"])
def test_a_listing_without_a_ledger_is_empty_and_says_why(run, command):
    """Where nothing was recorded yet a listing is empty and ends well; the way on is on standard error."""
    said = run(command, "--json")

    assert (0, []) == (said.code, json.loads(said.out))
    assert "leadwire up" in said.err


def test_an_empty_ledger_lists_nothing(run, ledger):
    """An empty listing is a document too."""
    assert json.loads(run("tasks", "--json").out) == []
    assert run("tasks").code == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("events", "--state", "ignored"), ["ev_4"]),
        (("events", "--source", "crm", "--limit", "2"), ["ev_4", "ev_3"]),
        (("events", "--source", "other"), []),
    ],
)
def test_filters_narrow_events(run, history, arguments, expected):
    """Filters and the limit narrow what is listed."""
    assert [one["id"] for one in json.loads(run(*arguments, "--json").out)] == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--state", "unknown"), ["team_task"]),
        (("--type", "make_call"), ["make_call"]),
        (("--provider", "vambe"), ["team_task"]),
        (("--rule", "nobody"), []),
        (("--limit", "1"), ["team_task"]),
    ],
)
def test_filters_narrow_tasks(run, history, arguments, expected):
    """Filters and the limit narrow what is listed."""
    assert [one["type"] for one in json.loads(run("tasks", *arguments, "--json").out)] == expected


@pytest.mark.parametrize("command", ["events", "tasks"])
def test_a_table_fits_and_holds_no_control_characters(run, history, command):
    """A table is at most a hundred columns wide and nothing of a payload can steer the terminal."""
    said = run(command)

    assert said.code == 0
    assert all(len(line) <= 100 and line.isprintable() for line in said.out.splitlines())
    assert "next: leadwire" in said.err


def test_a_listing_refuses_a_word_that_is_no_state(run, history):
    """An unknown state is a wrong use, and the allowed ones are listed."""
    said = run("tasks", "--state", "done")

    assert said.code == 2
    assert "delivered" in said.err


def test_show_tells_all_of_a_task(run, history):
    """`show` of a task has its fields and every attempt, found by the beginning of its id."""
    call, _ = history.queries.tasks_of("ev_1")

    shown = json.loads(run("show", call.id[:12], "--json").out)
    text = run("show", call.id).out

    assert "mh-1" == shown["external_id"]
    assert ["delivered"] == [attempt["verdict"] for attempt in shown["attempt_history"]]
    assert shown["fields"]["title"].startswith("Call Ana")
    assert "1. " in text
    assert "delivered, status 201" in text


def test_show_tells_all_of_an_event(run, history):
    """`show` of an event has its data, its decisions and its tasks."""
    shown = json.loads(run("show", "ev_1", "--json").out)
    text = run("show", "ev_1").out

    assert {"value": 15000, "source": "web_form"} == shown["data"]
    assert 2 == len(shown["tasks"])
    assert "value          15000" in text
    assert "rule high-value-lead: matched, 2 tasks" in text


def test_show_of_nothing_says_where_to_look(run, history):
    """An id that nothing has is a fault with the way on."""
    said = run("show", "tk_none")

    assert 1 == said.code
    assert "leadwire tasks" in said.err


def test_settling_as_delivered_ends_the_doubt(run, history):
    """`settle --delivered ID` makes an unknown task delivered under the provider's id."""
    _, team = history.queries.tasks_of("ev_1")

    said = run("settle", team.id, "--delivered", "vb-9")

    assert 0 == said.code
    assert ("delivered", "vb-9") == _state(history, team.id)


def test_settling_as_not_delivered_sends_it_again(run, history):
    """`settle --not-delivered` makes an unknown task due now."""
    _, team = history.queries.tasks_of("ev_1")

    assert 0 == run("settle", team.id, "--not-delivered").code
    assert "unknown" != _state(history, team.id)[0]


@pytest.mark.parametrize("flags", [(), ("--delivered", "--not-delivered"), ("--not-delivered", "vb-9")])
def test_settling_needs_one_clear_word(run, history, flags):
    """Neither, both, or an id for what was not delivered: wrong use."""
    assert 2 == run("settle", "tk_1", *flags).code


def test_what_is_delivered_cannot_be_settled_or_retried(run, history):
    """A delivered task is left alone: a person was touched already."""
    call, _ = history.queries.tasks_of("ev_1")

    for command in (("settle", call.id, "--not-delivered"), ("retry", call.id)):
        said = run(*command)
        assert 1 == said.code
        assert said.err.strip()
    assert ("delivered", "mh-1") == _state(history, call.id)


def test_retrying_goes_on_after_a_bad_id(run, history):
    """Of several ids each is tried, and the exit code says that one failed."""
    said = run("retry", "tk_none", "tk_nobody")

    assert 1 == said.code
    assert "tk_none" in said.err
    assert "tk_nobody" in said.err


def test_actions_without_a_ledger_say_what_to_do(run):
    """Without a ledger there is nothing to settle: the message names the way on."""
    said = run("settle", "tk_1", "--delivered")

    assert 1 == said.code
    assert "no ledger at" in said.err


def test_migrate_makes_a_ledger(run, folder):
    """`migrate` makes the ledger, and again does nothing."""
    assert [0, 0] == [run("migrate").code, run("migrate").code]
    assert (folder / "home" / "ledger.sqlite3").is_file()
    assert json.loads(run("events", "--json").out) == []


def _state(ledger, task_id):
    task = ledger.queries.task(task_id)
    return str(task.state), task.external_id

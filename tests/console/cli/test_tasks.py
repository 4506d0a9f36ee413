"""Commands by which a person retries and cancels many tasks."""

from __future__ import annotations

import json
from datetime import timedelta
from itertools import pairwise

import pytest

from rules.vocabulary import TaskState, Verdict
from worker.ledger import Settlement
from worker.sandbox import MINDHUNTERS_TOKEN, Sandbox

UNKNOWN = Settlement(verdict=Verdict.UNKNOWN, state=TaskState.UNKNOWN, reason="no answer")


@pytest.fixture
def dead(filled, now):
    """A ledger with six dead tasks, three by each provider."""
    end = Settlement(verdict=Verdict.BUSY, state=TaskState.DEAD, reason="503 down. It is given up", status=503)
    for task in filled.queries.list_tasks():
        (claim,) = filled.tasks.claim([task.id], now, timedelta(seconds=60), "test")
        filled.tasks.settle(claim, end, now)
    return filled


def states(ledger):
    """Return the state of each task."""
    return [str(task.state) for task in ledger.queries.list_tasks()]


def test_a_dry_run_counts_by_rule_and_reason_and_changes_nothing(run, dead):
    """Without --json it is a table, with it a document."""
    said = run("retry", "--provider", "vambe", "--dry-run")
    told = json.loads(run("retry", "--rule", "high-value-lead", "--dry-run", "--json").out)

    assert 0 == said.code
    assert "high-value-lead" in said.out
    assert "503 down" in said.out
    assert "3 tasks selected" in said.out
    assert 6 == told["selected"]
    assert [3, 3] == [group["tasks"] for group in told["groups"]]
    assert ["dead"] * 6 == states(dead)


def test_a_selection_is_retried_at_its_pace(run, dead, now):
    """Each task becomes due its own part of a minute later; the attempts stay on record."""
    said = run("retry", "--state", "dead", "--per-minute", "30", "--yes")

    due = sorted(task.due_at for task in dead.queries.list_tasks())
    assert (0, "6 tasks retried\n") == (said.code, said.out)
    assert ["waiting"] * 6 == states(dead)
    assert [timedelta(seconds=2)] * 5 == [later - earlier for earlier, later in pairwise(due)]
    assert all(1 == len(dead.queries.attempts(task.id)) for task in dead.queries.list_tasks())


@pytest.mark.parametrize(("answer", "code", "state"), [("y\n", 0, "waiting"), ("n\n", 1, "dead"), ("", 1, "dead")])
def test_a_selection_is_confirmed(run, dead, answer, code, state):
    """A no, or nobody to ask, changes nothing."""
    said = run("retry", "--since", "3660d", stdin=answer)

    assert code == said.code
    assert "retry 6 tasks, 60 a minute, in about 1 minute?" in said.err
    assert [state] * 6 == states(dead)


def test_an_empty_selection_is_no_fault(run, dead):
    """There is nothing to agree to."""
    said = run("retry", "--rule", "nobody")

    assert (0, "0 tasks retried\n") == (said.code, said.out)


@pytest.mark.parametrize("command", ["retry", "cancel"])
@pytest.mark.parametrize(
    "arguments", [(), ("tk_1", "--rule", "r"), ("--since", "yesterday"), ("--since", "2026-02-30"), ("--type", "fax")]
)
def test_ids_or_a_selection(run, dead, command, arguments):
    """Neither, both, or a moment that is none is a wrong use."""
    assert 2 == run(command, *arguments).code


def test_unknown_tasks_are_settled_not_retried(run, filled, now):
    """By id or by selection, the way on is told."""
    task = next(filled.queries.list_tasks())
    (claim,) = filled.tasks.claim([task.id], now, timedelta(seconds=60), "test")
    filled.tasks.settle(claim, UNKNOWN, now)

    for arguments in ((task.id,), ("--state", "unknown", "--yes")):
        said = run("retry", *arguments)
        assert 1 == said.code
        assert "leadwire settle" in said.err


def test_what_was_not_sent_is_cancelled(run, filled):
    """With who and why; of ids each is tried, and a second time is refused."""
    first, *_ = filled.queries.list_tasks()

    said = run("cancel", first.id, "--reason", "a wrong number", "--json")
    again = run("cancel", first.id)
    rest = run("cancel", "--rule", "high-value-lead", "--since", "3660d", "--reason", "a wrong rule", "--yes")

    (told,) = json.loads(said.out)["tasks"]
    assert "cancelled" == told["state"]
    assert told["reason"].endswith(": a wrong number")
    assert 1 == again.code
    assert "ended already" in again.err
    assert "5 tasks cancelled\n" == rest.out
    assert ["cancelled"] * 6 == states(filled)


def test_a_dry_run_of_ids_changes_nothing(run, filled):
    """It says what would be done."""
    first, *_ = filled.queries.list_tasks()

    for command in ("cancel", "retry"):
        run(command, first.id, "--dry-run")
    said = run("cancel", first.id, "--dry-run")

    assert (0, True) == (said.code, said.out.startswith("would be cancelled; now: "))
    assert ["queued"] * 6 == states(filled)


@pytest.fixture
def sandbox(monkeypatch):
    """Both providers, as the settings name them."""
    sandbox = Sandbox()
    sandbox.start()
    monkeypatch.setenv("LEADWIRE_MINDHUNTERS_URL", sandbox.mindhunters_url)
    monkeypatch.setenv("LEADWIRE_MINDHUNTERS_TOKEN", MINDHUNTERS_TOKEN)
    monkeypatch.setenv("LEADWIRE_VAMBE_API_KEY", "not-a-real-key")
    yield sandbox
    sandbox.stop()


def test_what_was_delivered_is_cancelled_at_its_provider(run, filled, sandbox, now):
    """Mindhunters is asked and its answer kept; Vambe has no such call; without --at-provider both are refused."""
    call = next(task for task in filled.queries.list_tasks() if task.type == "make_call")
    team = next(task for task in filled.queries.list_tasks() if task.type == "team_task")
    for task, external_id in ((call, "gone"), (team, "vb-1")):
        (claim,) = filled.tasks.claim([task.id], now, timedelta(seconds=60), "test")
        filled.tasks.settle(
            claim, Settlement(verdict=Verdict.DELIVERED, state=TaskState.DELIVERED, external_id=external_id), now
        )

    here = run("cancel", call.id, team.id)
    there = run("cancel", call.id, team.id, "--at-provider")

    assert [1, 1] == [here.code, there.code]
    assert 2 == here.err.count("--at-provider")
    assert "mindhunters answered 404 no such task" in there.err
    assert "vambe has no call that cancels vb-1" in there.err
    assert filled.queries.task(call.id).note.endswith(": 404 no such task")
    assert TaskState.DELIVERED is filled.queries.task(call.id).state


def test_delivered_tasks_are_selected_only_to_be_cancelled_there(run, filled):
    """Else it is a wrong use."""
    assert 2 == run("cancel", "--state", "delivered", "--yes").code

"""Ends that rules answer: noted with the end, answered once, never lost."""

from __future__ import annotations

from datetime import timedelta

import pytest

from rules.vocabulary import EventState, ProviderName, Rotation, TaskState, Verdict
from worker.ledger import Settlement

ANSWERED = ("failure", "outcome:failed")


def died(bench, state=TaskState.DEAD, **changes):
    """Have a task end badly, and return the end, taken."""
    claim = bench.claimed(reactions=ANSWERED, **changes)
    bench.ledger.tasks.settle(claim, bench.ended(state), bench.at(1))
    (reaction,) = taken(bench, 1)
    return reaction


def taken(bench, seconds):
    """Return the ends taken at a moment."""
    return bench.ledger.follow_ups.claim(bench.at(seconds), 10)


def answer(bench, **changes):
    """Return a task that answers the end of tk_1."""
    return bench.task("tk_2", parent="tk_1", name="name of tk_1/team_task", **changes)


@pytest.mark.parametrize("state", [TaskState.DEAD, TaskState.SUPPRESSED])
def test_a_bad_end_is_taken_with_all_that_answering_needs(bench, state):
    """The settlement that ends a task notes it: task, event, the last status and which end it was."""
    reaction = died(bench, state)

    assert ("tk_1", state, "failure", 422, 1) == (
        reaction.task.id,
        reaction.task.state,
        reaction.trigger,
        reaction.status,
        reaction.tries,
    )
    assert ("ev_1", "422: no") == (reaction.event.id, reaction.task.reason)


@pytest.mark.parametrize("state", [TaskState.DELIVERED, TaskState.WAITING, TaskState.UNKNOWN, TaskState.CANCELLED])
def test_other_ends_are_no_failure(bench, state):
    """What was delivered, waits, is in doubt or was cancelled by a person has not failed."""
    claim = bench.claimed(reactions=ANSWERED)
    bench.ledger.tasks.settle(claim, Settlement(verdict=Verdict.REFUSED, state=state), bench.at(1))

    assert [] == taken(bench, 1)


def test_an_end_that_nobody_answers_is_not_noted(bench):
    """A task whose rule answers nothing leaves nothing behind."""
    bench.ledger.tasks.settle(bench.claimed(), bench.ended(TaskState.DEAD), bench.at(1))

    assert [] == taken(bench, 1)


def test_a_task_that_expires_before_its_claim_has_failed(bench):
    """Too late at its claim: suppressed, and noted in that transaction."""
    bench.planned(bench.task(reactions=ANSWERED, expires_at=bench.at(5)))
    bench.ledger.tasks.claim(["tk_1"], bench.at(6), bench.lease, "w-1")

    assert ["tk_1"] == [reaction.task.id for reaction in taken(bench, 6)]


def test_a_doubt_that_ends_badly_is_a_failure(bench):
    """Looked up, not there, and no try left: dead, and noted in that transaction."""
    bench.claimed(reactions=ANSWERED)
    bench.ledger.tasks.expire_leases(bench.at(60))
    (doubt,) = bench.ledger.reconciliation.claim(ProviderName.VAMBE, bench.at(200), timedelta(seconds=45), 1)
    dead = Settlement(verdict=Verdict.UNKNOWN, state=TaskState.DEAD, reason="gave up after 1 try")

    assert bench.ledger.reconciliation.resolve(doubt, dead, bench.at(201))
    assert [("tk_1", "gave up after 1 try")] == [(one.task.id, one.task.reason) for one in taken(bench, 201)]


@pytest.mark.parametrize("state", [TaskState.DEAD, TaskState.SUPPRESSED])
def test_a_task_that_planning_ended_has_failed(bench, state):
    """A template that failed, or a time that had passed, is answered too; there never was a status."""
    bench.planned(bench.task(reactions=ANSWERED, state=state, reason="data.x is missing"))
    (reaction,) = taken(bench, 0)

    assert ("data.x is missing", None) == (reaction.task.reason, reaction.status)


def test_an_answer_is_recorded_once_and_the_end_struck_off(bench):
    """The task that follows is due at once, knows its parent, and nothing is left to answer."""
    reaction = died(bench)
    (ref,) = bench.ledger.follow_ups.record(reaction, [answer(bench)], bench.at(2))

    follow_up = bench.ledger.queries.task("tk_2")
    assert ("tk_2", TaskState.QUEUED, "tk_1") == (ref.id, follow_up.state, follow_up.parent)
    assert () == bench.ledger.follow_ups.record(reaction, [bench.task("tk_3", name="x")], bench.at(3))
    assert ["tk_1", "tk_2"] == [task.id for task in bench.ledger.queries.tasks_of("ev_1")]
    assert [] == taken(bench, 1000)


def test_an_end_that_was_taken_and_not_answered_is_taken_again(bench):
    """A worker that dies in between delays the answer by seconds; the late one finds it taken."""
    first = died(bench)
    assert [] == taken(bench, 5)
    (second,) = taken(bench, 6)

    assert (1, 2) == (first.tries, second.tries)
    assert () == bench.ledger.follow_ups.record(first, [answer(bench)], bench.at(7))
    assert 1 == len(bench.ledger.follow_ups.record(second, [answer(bench)], bench.at(7)))


def test_one_that_is_never_answered_is_put_aside_and_told(bench):
    """After five tries the task says so, nothing is tried any more, and a worker's start tries again."""
    died(bench)
    moments = [6, 16, 36, 76, 156]
    tries = [reaction.tries for seconds in moments for reaction in taken(bench, seconds)]

    assert [2, 3, 4, 5] == tries
    assert "what follows on failure could not be planned: begun 5 times" in bench.ledger.queries.task("tk_1").note
    assert [] == taken(bench, 10_000_000)
    assert 1 == bench.ledger.follow_ups.retry_set_aside(bench.at(200))
    assert [1] == [reaction.tries for reaction in taken(bench, 200)]
    assert 0 == bench.ledger.follow_ups.retry_set_aside(bench.at(200))


def test_what_cannot_be_planned_is_put_aside_with_the_reason(bench):
    """The remark stands beside what the task's note said before."""
    reaction = died(bench, note="UTC was used")
    bench.ledger.follow_ups.set_aside(reaction, "rule set rs_1 is gone", bench.at(2))

    note = bench.ledger.queries.task("tk_1").note
    assert note.startswith("UTC was used; what follows on failure could not be planned: rule set rs_1 is gone;")
    assert [] == taken(bench, 1000)


def test_putting_aside_late_changes_nothing(bench):
    """Whoever lost the end to another cannot put it aside any more."""
    first = died(bench)
    (second,) = taken(bench, 6)
    bench.ledger.follow_ups.set_aside(first, "too slow", bench.at(7))

    assert bench.ledger.queries.task("tk_1").note is None
    assert bench.ledger.follow_ups.record(second, [answer(bench)], bench.at(8))


def test_a_failure_that_was_undone_is_not_answered(bench):
    """Retried by a person before it was answered: nothing follows until it fails again."""
    reaction = died(bench)
    bench.ledger.admin.retry("tk_1", bench.at(2))

    assert () == bench.ledger.follow_ups.record(reaction, [answer(bench)], bench.at(3))
    bench.ledger.tasks.settle(bench.claim(now=bench.at(4)), bench.ended(TaskState.DEAD), bench.at(5))
    (again,) = taken(bench, 5)
    assert 1 == len(bench.ledger.follow_ups.record(again, [answer(bench)], bench.at(6)))


def test_a_second_failure_makes_nothing_twice(bench):
    """What followed on the first failure has its key: it is not made again on the next one."""
    bench.ledger.follow_ups.record(died(bench), [answer(bench)], bench.at(2))
    bench.ledger.admin.retry("tk_1", bench.at(3))
    bench.ledger.tasks.settle(bench.claim(now=bench.at(4)), bench.ended(TaskState.DEAD), bench.at(5))
    (again,) = taken(bench, 5)

    assert () == bench.ledger.follow_ups.record(again, [answer(bench)], bench.at(6))
    assert 2 == len(bench.ledger.queries.tasks_of("ev_1"))


def test_a_late_success_leaves_nothing_to_answer(bench):
    """Delivered after all, before the answer was planned: nobody is told that it failed."""
    old = bench.claimed(reactions=ANSWERED)
    bench.ledger.tasks.expire_leases(bench.at(60))
    bench.ledger.admin.settle("tk_1", False, None, bench.at(61))
    bench.ledger.tasks.settle(bench.claim(now=bench.at(62)), bench.ended(TaskState.DEAD), bench.at(63))
    (reaction,) = taken(bench, 63)
    bench.ledger.tasks.settle(old, bench.delivered("x-1"), bench.at(64))

    assert () == bench.ledger.follow_ups.record(reaction, [answer(bench)], bench.at(65))
    assert TaskState.DELIVERED == bench.state()


def followed_up(bench, **changes):
    """Have a task fail and its answer planned, due at second 2; nobody has sent that yet."""
    bench.ledger.follow_ups.record(died(bench), [answer(bench, due_at=bench.at(2), **changes)], bench.at(2))


def ask(bench, seconds, id="tk_2"):  # noqa: A002 - the field's name
    """Return what a claim of a task says at a moment."""
    return bench.ledger.tasks.claim([id], bench.at(seconds), bench.lease, "w-1")[0]


def test_what_answers_a_failure_is_not_sent_once_that_is_undone(bench):
    """The team's task that was planned is not wanted while the call is tried again, or after it was made."""
    followed_up(bench, reactions=("failure",))
    bench.ledger.admin.retry("tk_1", bench.at(3))

    why = "not wanted any more: the failure of task tk_1 was undone; it is waiting"
    assert (TaskState.SUPPRESSED, why) == (ask(bench, 4).state, bench.ledger.queries.task("tk_2").reason)
    assert [] == taken(bench, 1000)
    assert TaskState.SUPPRESSED is bench.state("tk_2")


def test_a_late_success_keeps_what_answers_the_failure_from_being_sent(bench):
    """Executed after all, found when its answer was planned and not sent: nobody is told that it failed."""
    old = bench.claimed(reactions=ANSWERED)
    bench.ledger.tasks.expire_leases(bench.at(60))
    bench.ledger.admin.settle("tk_1", False, None, bench.at(61))
    bench.ledger.tasks.settle(bench.claim(now=bench.at(62)), bench.ended(TaskState.DEAD), bench.at(63))
    (reaction,) = taken(bench, 63)
    assert 1 == len(bench.ledger.follow_ups.record(reaction, [answer(bench)], bench.at(64)))
    bench.ledger.tasks.settle(old, bench.delivered("x-1"), bench.at(65))

    assert (TaskState.DELIVERED, TaskState.SUPPRESSED) == (bench.state(), ask(bench, 66).state)


@pytest.mark.parametrize("state", [TaskState.DEAD, TaskState.SUPPRESSED])
def test_what_answers_a_failure_that_stands_is_sent(bench, state):
    """Dead or suppressed, as it was when the answer was planned."""
    bench.ledger.follow_ups.record(died(bench, state), [answer(bench)], bench.at(2))

    assert "tk_2" == bench.claim("tk_2", now=bench.at(3)).task.id


def test_what_was_not_wanted_is_sent_when_the_task_fails_again(bench):
    """It is due anew, says what the new failure was, and keeps whose turn it was."""
    rotation = Rotation(team="closers", member_ids=("u1", "u2"))
    followed_up(bench, rotation=rotation)
    bench.ledger.admin.retry("tk_1", bench.at(3))
    ask(bench, 4)
    bench.ledger.tasks.settle(bench.claim(now=bench.at(5)), bench.ended(TaskState.DEAD), bench.at(6))
    (again,) = taken(bench, 6)
    anew = answer(bench, rotation=rotation, due_at=bench.at(7), fields={"title": "failed again"})
    bench.ledger.follow_ups.record(again, [anew], bench.at(7))

    task = bench.ledger.queries.task("tk_2")
    assert (TaskState.WAITING, bench.at(7)) == (task.state, task.due_at)
    assert {"title": "failed again", "responsible_ids": ["u1"]} == task.fields
    assert "tk_2" == bench.claim("tk_2", now=bench.at(8)).task.id


def test_what_answered_a_failure_is_sent_all_the_same_when_a_person_says_so(bench):
    """Retried by itself, it goes out whatever became of the task that it answers."""
    followed_up(bench)
    bench.ledger.admin.retry("tk_1", bench.at(3))
    ask(bench, 4)
    bench.ledger.admin.retry("tk_2", bench.at(5))

    assert "tk_2" == bench.claim("tk_2", now=bench.at(6)).task.id


def test_what_follows_takes_its_turn_and_is_answered_itself(bench):
    """A team that takes turns gives its next member; an answer that planning ended is an end of its own."""
    rotation = Rotation(team="closers", member_ids=("u1", "u2"))
    bench.planned(bench.task("tk_0", event_id="ev_0", rotation=rotation), event_id="ev_0")
    reaction = died(bench)
    dead = bench.task("tk_3", parent="tk_1", state=TaskState.DEAD, reactions=("failure",))
    bench.ledger.follow_ups.record(reaction, [answer(bench, rotation=rotation), dead], bench.at(2))

    assert ["u2"] == bench.ledger.queries.task("tk_2").fields["responsible_ids"]
    assert ["tk_3"] == [reaction.task.id for reaction in taken(bench, 2)]


def test_a_note_without_tasks_strikes_the_end_off(bench):
    """Where nothing can follow, the task says why and the end is done with."""
    bench.ledger.follow_ups.record(died(bench), [], bench.at(2), note="nothing answers it")

    assert "nothing answers it" == bench.ledger.queries.task("tk_1").note
    assert [] == taken(bench, 1000)


def test_an_event_with_answers_is_processed_as_ever(bench):
    """Recording ends with tasks changes nothing about the event itself."""
    bench.planned(bench.task(reactions=ANSWERED, state=TaskState.DEAD))

    assert EventState.PROCESSED == bench.ledger.queries.event("ev_1").state

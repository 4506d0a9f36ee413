"""Ends that rules answer: noted with the end, answered once, never lost."""

from __future__ import annotations

from datetime import timedelta

import pytest

from rules.vocabulary import EventState, ProviderName, Rotation, TaskState, Verdict
from worker.ledger import Settlement

ANSWERED = ("failure", "outcome:failed")


def died(desk, state=TaskState.DEAD, **changes):
    """Have a task end badly, and return the end, taken."""
    claim = desk.claimed(reactions=ANSWERED, **changes)
    desk.ledger.tasks.settle(claim, desk.ended(state), desk.at(1))
    (reaction,) = taken(desk, 1)
    return reaction


def taken(desk, seconds):
    """Return the ends taken at a moment."""
    return desk.ledger.follow_ups.claim(desk.at(seconds), 10)


def answer(desk, **changes):
    """Return a task that answers the end of tk_1."""
    return desk.task("tk_2", parent="tk_1", name="name of tk_1/team_task", **changes)


@pytest.mark.parametrize("state", [TaskState.DEAD, TaskState.SUPPRESSED])
def test_a_bad_end_is_taken_with_all_that_answering_needs(desk, state):
    """The settlement that ends a task notes it: task, event, the last status and which end it was."""
    reaction = died(desk, state)

    assert ("tk_1", state, "failure", 422, 1) == (
        reaction.task.id,
        reaction.task.state,
        reaction.trigger,
        reaction.status,
        reaction.tries,
    )
    assert ("ev_1", "422: no") == (reaction.event.id, reaction.task.reason)


@pytest.mark.parametrize("state", [TaskState.DELIVERED, TaskState.WAITING, TaskState.UNKNOWN, TaskState.CANCELLED])
def test_other_ends_are_no_failure(desk, state):
    """What was delivered, waits, is in doubt or was cancelled by a person has not failed."""
    claim = desk.claimed(reactions=ANSWERED)
    desk.ledger.tasks.settle(claim, Settlement(verdict=Verdict.REFUSED, state=state), desk.at(1))

    assert [] == taken(desk, 1)


def test_an_end_that_nobody_answers_is_not_noted(desk):
    """A task whose rule answers nothing leaves nothing behind."""
    desk.ledger.tasks.settle(desk.claimed(), desk.ended(TaskState.DEAD), desk.at(1))

    assert [] == taken(desk, 1)


def test_a_task_that_expires_before_its_claim_has_failed(desk):
    """Too late at its claim: suppressed, and noted in that transaction."""
    desk.planned(desk.task(reactions=ANSWERED, expires_at=desk.at(5)))
    desk.ledger.tasks.claim(["tk_1"], desk.at(6), desk.lease, "w-1")

    assert ["tk_1"] == [reaction.task.id for reaction in taken(desk, 6)]


def test_a_doubt_that_ends_badly_is_a_failure(desk):
    """Looked up, not there, and no try left: dead, and noted in that transaction."""
    desk.claimed(reactions=ANSWERED)
    desk.ledger.tasks.expire_leases(desk.at(60))
    (doubt,) = desk.ledger.reconciliation.claim(ProviderName.VAMBE, desk.at(200), timedelta(seconds=45), 1)
    dead = Settlement(verdict=Verdict.UNKNOWN, state=TaskState.DEAD, reason="gave up after 1 try")

    assert desk.ledger.reconciliation.resolve(doubt, dead, desk.at(201))
    assert [("tk_1", "gave up after 1 try")] == [(one.task.id, one.task.reason) for one in taken(desk, 201)]


@pytest.mark.parametrize("state", [TaskState.DEAD, TaskState.SUPPRESSED])
def test_a_task_that_planning_ended_has_failed(desk, state):
    """A template that failed, or a time that had passed, is answered too; there never was a status."""
    desk.planned(desk.task(reactions=ANSWERED, state=state, reason="data.x is missing"))
    (reaction,) = taken(desk, 0)

    assert ("data.x is missing", None) == (reaction.task.reason, reaction.status)


def test_an_answer_is_recorded_once_and_the_end_struck_off(desk):
    """The task that follows is due at once, knows its parent, and nothing is left to answer."""
    reaction = died(desk)
    (ref,) = desk.ledger.follow_ups.record(reaction, [answer(desk)], desk.at(2))

    follow_up = desk.ledger.queries.task("tk_2")
    assert ("tk_2", TaskState.QUEUED, "tk_1") == (ref.id, follow_up.state, follow_up.parent)
    assert () == desk.ledger.follow_ups.record(reaction, [desk.task("tk_3", name="x")], desk.at(3))
    assert ["tk_1", "tk_2"] == [task.id for task in desk.ledger.queries.tasks_of("ev_1")]
    assert [] == taken(desk, 1000)


def test_an_end_that_was_taken_and_not_answered_is_taken_again(desk):
    """A worker that dies in between delays the answer by seconds; the late one finds it taken."""
    first = died(desk)
    assert [] == taken(desk, 5)
    (second,) = taken(desk, 6)

    assert (1, 2) == (first.tries, second.tries)
    assert () == desk.ledger.follow_ups.record(first, [answer(desk)], desk.at(7))
    assert 1 == len(desk.ledger.follow_ups.record(second, [answer(desk)], desk.at(7)))


def test_one_that_is_never_answered_is_put_aside_and_told(desk):
    """After five tries the task says so, nothing is tried any more, and a worker's start tries again."""
    died(desk)
    moments = [6, 16, 36, 76, 156]
    tries = [reaction.tries for seconds in moments for reaction in taken(desk, seconds)]

    assert [2, 3, 4, 5] == tries
    assert "what follows on failure could not be planned: begun 5 times" in desk.ledger.queries.task("tk_1").note
    assert [] == taken(desk, 10_000_000)
    assert 1 == desk.ledger.follow_ups.retry_set_aside(desk.at(200))
    assert [1] == [reaction.tries for reaction in taken(desk, 200)]
    assert 0 == desk.ledger.follow_ups.retry_set_aside(desk.at(200))


def test_what_cannot_be_planned_is_put_aside_with_the_reason(desk):
    """The remark stands beside what the task's note said before."""
    reaction = died(desk, note="UTC was used")
    desk.ledger.follow_ups.set_aside(reaction, "rule set rs_1 is gone", desk.at(2))

    note = desk.ledger.queries.task("tk_1").note
    assert note.startswith("UTC was used; what follows on failure could not be planned: rule set rs_1 is gone;")
    assert [] == taken(desk, 1000)


def test_putting_aside_late_changes_nothing(desk):
    """Whoever lost the end to another cannot put it aside any more."""
    first = died(desk)
    (second,) = taken(desk, 6)
    desk.ledger.follow_ups.set_aside(first, "too slow", desk.at(7))

    assert desk.ledger.queries.task("tk_1").note is None
    assert desk.ledger.follow_ups.record(second, [answer(desk)], desk.at(8))


def test_a_failure_that_was_undone_is_not_answered(desk):
    """Retried by a person before it was answered: nothing follows until it fails again."""
    reaction = died(desk)
    desk.ledger.admin.retry("tk_1", desk.at(2))

    assert () == desk.ledger.follow_ups.record(reaction, [answer(desk)], desk.at(3))
    desk.ledger.tasks.settle(desk.claim(now=desk.at(4)), desk.ended(TaskState.DEAD), desk.at(5))
    (again,) = taken(desk, 5)
    assert 1 == len(desk.ledger.follow_ups.record(again, [answer(desk)], desk.at(6)))


def test_a_second_failure_makes_nothing_twice(desk):
    """What followed on the first failure has its key: it is not made again on the next one."""
    desk.ledger.follow_ups.record(died(desk), [answer(desk)], desk.at(2))
    desk.ledger.admin.retry("tk_1", desk.at(3))
    desk.ledger.tasks.settle(desk.claim(now=desk.at(4)), desk.ended(TaskState.DEAD), desk.at(5))
    (again,) = taken(desk, 5)

    assert () == desk.ledger.follow_ups.record(again, [answer(desk)], desk.at(6))
    assert 2 == len(desk.ledger.queries.tasks_of("ev_1"))


def test_a_late_success_leaves_nothing_to_answer(desk):
    """Delivered after all, before the answer was planned: nobody is told that it failed."""
    old = desk.claimed(reactions=ANSWERED)
    desk.ledger.tasks.expire_leases(desk.at(60))
    desk.ledger.admin.settle("tk_1", False, None, desk.at(61))
    desk.ledger.tasks.settle(desk.claim(now=desk.at(62)), desk.ended(TaskState.DEAD), desk.at(63))
    (reaction,) = taken(desk, 63)
    desk.ledger.tasks.settle(old, desk.delivered("x-1"), desk.at(64))

    assert () == desk.ledger.follow_ups.record(reaction, [answer(desk)], desk.at(65))
    assert TaskState.DELIVERED == desk.state()


def followed_up(desk, **changes):
    """Have a task fail and its answer planned, due at second 2; nobody has sent that yet."""
    desk.ledger.follow_ups.record(died(desk), [answer(desk, due_at=desk.at(2), **changes)], desk.at(2))


def ask(desk, seconds, id="tk_2"):  # noqa: A002 - the field's name
    """Return what a claim of a task says at a moment."""
    return desk.ledger.tasks.claim([id], desk.at(seconds), desk.lease, "w-1")[0]


def test_what_answers_a_failure_is_not_sent_once_that_is_undone(desk):
    """The team's task that was planned is not wanted while the call is tried again, or after it was made."""
    followed_up(desk, reactions=("failure",))
    desk.ledger.admin.retry("tk_1", desk.at(3))

    why = "not wanted any more: the failure of task tk_1 was undone; it is waiting"
    assert (TaskState.SUPPRESSED, why) == (ask(desk, 4).state, desk.ledger.queries.task("tk_2").reason)
    assert [] == taken(desk, 1000)
    assert TaskState.SUPPRESSED is desk.state("tk_2")


def test_a_late_success_keeps_what_answers_the_failure_from_being_sent(desk):
    """Executed after all, found when its answer was planned and not sent: nobody is told that it failed."""
    old = desk.claimed(reactions=ANSWERED)
    desk.ledger.tasks.expire_leases(desk.at(60))
    desk.ledger.admin.settle("tk_1", False, None, desk.at(61))
    desk.ledger.tasks.settle(desk.claim(now=desk.at(62)), desk.ended(TaskState.DEAD), desk.at(63))
    (reaction,) = taken(desk, 63)
    assert 1 == len(desk.ledger.follow_ups.record(reaction, [answer(desk)], desk.at(64)))
    desk.ledger.tasks.settle(old, desk.delivered("x-1"), desk.at(65))

    assert (TaskState.DELIVERED, TaskState.SUPPRESSED) == (desk.state(), ask(desk, 66).state)


@pytest.mark.parametrize("state", [TaskState.DEAD, TaskState.SUPPRESSED])
def test_what_answers_a_failure_that_stands_is_sent(desk, state):
    """Dead or suppressed, as it was when the answer was planned."""
    desk.ledger.follow_ups.record(died(desk, state), [answer(desk)], desk.at(2))

    assert "tk_2" == desk.claim("tk_2", now=desk.at(3)).task.id


def test_what_was_not_wanted_is_sent_when_the_task_fails_again(desk):
    """It is due anew, says what the new failure was, and keeps whose turn it was."""
    rotation = Rotation(team="closers", member_ids=("u1", "u2"))
    followed_up(desk, rotation=rotation)
    desk.ledger.admin.retry("tk_1", desk.at(3))
    ask(desk, 4)
    desk.ledger.tasks.settle(desk.claim(now=desk.at(5)), desk.ended(TaskState.DEAD), desk.at(6))
    (again,) = taken(desk, 6)
    anew = answer(desk, rotation=rotation, due_at=desk.at(7), fields={"title": "failed again"})
    desk.ledger.follow_ups.record(again, [anew], desk.at(7))

    task = desk.ledger.queries.task("tk_2")
    assert (TaskState.WAITING, desk.at(7)) == (task.state, task.due_at)
    assert {"title": "failed again", "responsible_ids": ["u1"]} == task.fields
    assert "tk_2" == desk.claim("tk_2", now=desk.at(8)).task.id


def test_what_answered_a_failure_is_sent_all_the_same_when_a_person_says_so(desk):
    """Retried by itself, it goes out whatever became of the task that it answers."""
    followed_up(desk)
    desk.ledger.admin.retry("tk_1", desk.at(3))
    ask(desk, 4)
    desk.ledger.admin.retry("tk_2", desk.at(5))

    assert "tk_2" == desk.claim("tk_2", now=desk.at(6)).task.id


def test_what_follows_takes_its_turn_and_is_answered_itself(desk):
    """A team that takes turns gives its next member; an answer that planning ended is an end of its own."""
    rotation = Rotation(team="closers", member_ids=("u1", "u2"))
    desk.planned(desk.task("tk_0", event_id="ev_0", rotation=rotation), event_id="ev_0")
    reaction = died(desk)
    dead = desk.task("tk_3", parent="tk_1", state=TaskState.DEAD, reactions=("failure",))
    desk.ledger.follow_ups.record(reaction, [answer(desk, rotation=rotation), dead], desk.at(2))

    assert ["u2"] == desk.ledger.queries.task("tk_2").fields["responsible_ids"]
    assert ["tk_3"] == [reaction.task.id for reaction in taken(desk, 2)]


def test_a_note_without_tasks_strikes_the_end_off(desk):
    """Where nothing can follow, the task says why and the end is done with."""
    desk.ledger.follow_ups.record(died(desk), [], desk.at(2), note="nothing answers it")

    assert "nothing answers it" == desk.ledger.queries.task("tk_1").note
    assert [] == taken(desk, 1000)


def test_an_event_with_answers_is_processed_as_ever(desk):
    """Recording ends with tasks changes nothing about the event itself."""
    desk.planned(desk.task(reactions=ANSWERED, state=TaskState.DEAD))

    assert EventState.PROCESSED == desk.ledger.queries.event("ev_1").state

"""What became of tasks at their provider: asked for with growing pauses, kept, and answered where the rule says so."""

from __future__ import annotations

from datetime import timedelta

import pytest

from rules.vocabulary import ProviderName, TaskState, TaskType, Verdict
from worker.ledger import Settlement

ANSWERED = ("failure", "outcome:failed")
MINDHUNTERS = ProviderName.MINDHUNTERS


def taken(desk, seconds):
    """Return the ends taken at a moment."""
    return desk.ledger.follow_ups.claim(desk.at(seconds), 10)


def answer(desk):
    """Return a task that answers a failed call of tk_1."""
    return desk.task("tk_2", parent="tk_1", name="name of tk_1/failed/team_task")


def pause(times):
    """Return ten seconds more with each time."""
    return timedelta(seconds=10 * times)


def followed(desk, **changes):
    """Have a call delivered whose outcome is asked for from second 11 on."""
    parts = {"type": TaskType.MAKE_CALL, "provider": MINDHUNTERS, "reactions": ANSWERED}
    claim = desk.claimed(**(parts | changes))
    desk.ledger.tasks.settle(claim, desk.delivered("x-1", poll_at=desk.at(11)), desk.at(1))


def polls(desk, seconds):
    """Return the tasks to ask about at a moment."""
    return desk.ledger.outcomes.claim(MINDHUNTERS, desk.at(seconds), pause, 10)


def test_a_delivered_task_is_asked_about_with_growing_pauses(desk):
    """Nobody is asked before its moment, and each pause is longer than the last."""
    followed(desk)

    assert [] == polls(desk, 10)
    assert [("tk_1", "x-1")] == [(poll.task_id, poll.external_id) for poll in polls(desk, 11)]
    assert [[], [desk.at(21 + 20)]] == [[poll.due_at for poll in polls(desk, at)] for at in (20, 21)]
    assert [] == desk.ledger.outcomes.claim(ProviderName.VAMBE, desk.at(100), pause, 10)


def test_without_a_moment_nobody_is_asked(desk):
    """The poll is off: a delivery leaves nothing to ask about."""
    claim = desk.claimed(type=TaskType.MAKE_CALL, provider=MINDHUNTERS, reactions=ANSWERED)
    desk.ledger.tasks.settle(claim, desk.delivered("x-1"), desk.at(1))

    assert [] == polls(desk, 10_000)


def test_a_final_word_is_kept_noted_for_the_rule_and_ends_the_asking(desk):
    """The task shows it, what answers it is to be planned, and the provider is left alone."""
    followed(desk)
    (poll,) = polls(desk, 11)

    assert desk.ledger.outcomes.record(poll, "failed", desk.at(12), final=True) is True
    (reaction,) = taken(desk, 12)
    assert ("outcome:failed", "failed", TaskState.DELIVERED) == (
        reaction.trigger,
        reaction.task.outcome,
        desk.ledger.queries.task("tk_1").state,
    )
    assert ["failed"] == [task.outcome for task in desk.ledger.queries.list_tasks()]
    assert [] == polls(desk, 10_000)
    assert 1 == len(desk.ledger.follow_ups.record(reaction, [answer(desk)], desk.at(13)))


def test_an_outcome_that_the_rule_does_not_answer_is_kept_all_the_same(desk):
    """Completed, as nearly all are: shown, and nothing follows."""
    followed(desk)
    (poll,) = polls(desk, 11)
    desk.ledger.outcomes.record(poll, "completed", desk.at(12), final=True)

    assert ("completed", []) == (desk.ledger.queries.task("tk_1").outcome, taken(desk, 12))


def test_any_other_word_is_kept_as_it_is_and_asked_about_again(desk):
    """A word on the way, or one that nobody knows, is shown; the same word again is no news."""
    followed(desk)
    (poll,) = polls(desk, 11)
    assert desk.ledger.outcomes.record(poll, "snoozed", desk.at(12), final=False) is True
    (again,) = polls(desk, 21)

    assert "snoozed" == desk.ledger.queries.task("tk_1").outcome
    assert desk.ledger.outcomes.record(again, "snoozed", desk.at(22), final=False) is False
    assert 1 == len(polls(desk, 41))


def test_a_late_answer_to_an_older_question_is_not_taken(desk):
    """Whoever asked too long ago is not believed: another has asked since."""
    followed(desk)
    (old,) = polls(desk, 11)
    (new,) = polls(desk, 21)

    assert desk.ledger.outcomes.record(old, "failed", desk.at(22), final=True) is False
    assert desk.ledger.outcomes.record(new, "failed", desk.at(23), final=True) is True
    assert 1 == len(taken(desk, 23))


def test_the_asking_ends_a_week_after_the_tasks_last_moment(desk):
    """Delivered, due and expired: the last of them counts; then what was seen last stays."""
    followed(desk, expires_at=desk.at(100))
    week = 7 * 24 * 3600

    assert 1 == len(polls(desk, week + 99))
    assert [] == polls(desk, week + 200)
    assert [] == polls(desk, 10 * week)


def test_what_answers_an_outcome_does_not_ask_for_a_failure(desk):
    """A call that was made and came to nothing is delivered: what follows on its outcome goes out."""
    followed(desk)
    (poll,) = polls(desk, 11)
    desk.ledger.outcomes.record(poll, "failed", desk.at(12), final=True)
    (reaction,) = taken(desk, 12)
    desk.ledger.follow_ups.record(reaction, [answer(desk)], desk.at(13))

    assert "tk_2" == desk.claim("tk_2", now=desk.at(14)).task.id


def cancelled(desk):
    """Have the provider cancel the call that it has, at second 20."""
    desk.ledger.admin.cancelled_at_provider("tk_1", "200", None, desk.at(20), taken=True)


def test_what_was_cancelled_at_its_provider_is_not_asked_about(desk):
    """A person has ended it there: the asking ends, and the answer to a question that was on its way is not taken."""
    followed(desk)
    (poll,) = polls(desk, 11)
    cancelled(desk)

    assert [] == polls(desk, 10_000)
    assert desk.ledger.outcomes.record(poll, "failed", desk.at(21), final=True) is False
    assert [] == taken(desk, 10_000)


def test_an_outcome_is_not_answered_once_the_task_was_cancelled_at_its_provider(desk):
    """The word was noted before, or is our own cancelling come back: nothing follows on it."""
    followed(desk)
    (poll,) = polls(desk, 11)
    desk.ledger.outcomes.record(poll, "failed", desk.at(12), final=True)
    (reaction,) = taken(desk, 12)
    cancelled(desk)

    assert () == desk.ledger.follow_ups.record(reaction, [answer(desk)], desk.at(21))
    assert [] == taken(desk, 10_000)


def doubtful(desk, **changes):
    """Have a task given up in doubt long before it is due no more."""
    parts = {"type": TaskType.MAKE_CALL, "provider": MINDHUNTERS, "reactions": ANSWERED}
    desk.claimed(**(parts | changes))
    desk.ledger.tasks.expire_leases(desk.at(60))


def test_what_a_person_settled_as_delivered_is_asked_about_however_late(desk):
    """A week after it was due: the asking begins with the settling."""
    doubtful(desk)
    week = 7 * 24 * 3600
    desk.ledger.admin.settle("tk_1", True, "x-7", desk.at(week))

    assert ["x-7"] == [poll.external_id for poll in polls(desk, week)]
    assert 0 == desk.ledger.outcomes.poll_missed(MINDHUNTERS, desk.at(week), desk.at(week))


def test_what_a_look_up_found_is_asked_about_however_late(desk):
    """Two days after it was due: the asking begins with the finding."""
    doubtful(desk)
    days = 2 * 24 * 3600
    (doubt,) = desk.ledger.reconciliation.claim(MINDHUNTERS, desk.at(days), timedelta(seconds=45), 1)
    found = Settlement(verdict=Verdict.DELIVERED, state=TaskState.DELIVERED, external_id="x-8")
    assert desk.ledger.reconciliation.resolve(doubt, found, desk.at(days + 1))

    assert ["x-8"] == [poll.external_id for poll in polls(desk, days + 1)]


@pytest.mark.parametrize(("provider", "external_id"), [(ProviderName.VAMBE, "x-7"), (MINDHUNTERS, None)])
def test_what_cannot_be_asked_about_is_not(desk, provider, external_id):
    """Vambe tells nothing of its tasks, and without the provider's id there is nothing to ask for."""
    doubtful(desk, provider=provider)
    desk.ledger.admin.settle("tk_1", True, external_id, desk.at(61))

    assert [] == desk.ledger.outcomes.claim(provider, desk.at(10_000), pause, 10)


def test_a_delivery_while_nobody_asked_is_found(desk):
    """The poll was switched on within a day: what was delivered before is asked about from then on."""
    claim = desk.claimed(type=TaskType.MAKE_CALL, provider=MINDHUNTERS, reactions=ANSWERED)
    desk.ledger.tasks.settle(claim, desk.delivered("x-7"), desk.at(1))

    assert 1 == desk.ledger.outcomes.poll_missed(MINDHUNTERS, desk.at(62), desk.at(70))
    assert 0 == desk.ledger.outcomes.poll_missed(MINDHUNTERS, desk.at(63), desk.at(70))
    assert ["x-7"] == [poll.external_id for poll in polls(desk, 70)]

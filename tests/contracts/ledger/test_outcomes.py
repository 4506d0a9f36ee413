"""What became of tasks at their provider: asked for with growing pauses, kept, and answered where the rule says so."""

from __future__ import annotations

from datetime import timedelta

import pytest

from rules.vocabulary import ProviderName, TaskState, TaskType, Verdict
from worker.ledger import Settlement

ANSWERED = ("failure", "outcome:failed")
MINDHUNTERS = ProviderName.MINDHUNTERS


def taken(bench, seconds):
    """Return the ends taken at a moment."""
    return bench.ledger.follow_ups.claim(bench.at(seconds), 10)


def answer(bench):
    """Return a task that answers a failed call of tk_1."""
    return bench.task("tk_2", parent="tk_1", name="name of tk_1/failed/team_task")


def pause(times):
    """Return ten seconds more with each time."""
    return timedelta(seconds=10 * times)


def followed(bench, **changes):
    """Have a call delivered whose outcome is asked for from second 11 on."""
    parts = {"type": TaskType.MAKE_CALL, "provider": MINDHUNTERS, "reactions": ANSWERED}
    claim = bench.claimed(**(parts | changes))
    bench.ledger.tasks.settle(claim, bench.delivered("x-1", poll_at=bench.at(11)), bench.at(1))


def polls(bench, seconds):
    """Return the tasks to ask about at a moment."""
    return bench.ledger.outcomes.claim(MINDHUNTERS, bench.at(seconds), pause, 10)


def test_a_delivered_task_is_asked_about_with_growing_pauses(bench):
    """Nobody is asked before its moment, and each pause is longer than the last."""
    followed(bench)

    assert [] == polls(bench, 10)
    assert [("tk_1", "x-1")] == [(poll.task_id, poll.external_id) for poll in polls(bench, 11)]
    assert [[], [bench.at(21 + 20)]] == [[poll.due_at for poll in polls(bench, at)] for at in (20, 21)]
    assert [] == bench.ledger.outcomes.claim(ProviderName.VAMBE, bench.at(100), pause, 10)


def test_without_a_moment_nobody_is_asked(bench):
    """The poll is off: a delivery leaves nothing to ask about."""
    claim = bench.claimed(type=TaskType.MAKE_CALL, provider=MINDHUNTERS, reactions=ANSWERED)
    bench.ledger.tasks.settle(claim, bench.delivered("x-1"), bench.at(1))

    assert [] == polls(bench, 10_000)


def test_a_final_word_is_kept_noted_for_the_rule_and_ends_the_asking(bench):
    """The task shows it, what answers it is to be planned, and the provider is left alone."""
    followed(bench)
    (poll,) = polls(bench, 11)

    assert bench.ledger.outcomes.record(poll, "failed", bench.at(12), final=True) is True
    (reaction,) = taken(bench, 12)
    assert ("outcome:failed", "failed", TaskState.DELIVERED) == (
        reaction.trigger,
        reaction.task.outcome,
        bench.ledger.queries.task("tk_1").state,
    )
    assert ["failed"] == [task.outcome for task in bench.ledger.queries.list_tasks()]
    assert [] == polls(bench, 10_000)
    assert 1 == len(bench.ledger.follow_ups.record(reaction, [answer(bench)], bench.at(13)))


def test_an_outcome_that_the_rule_does_not_answer_is_kept_all_the_same(bench):
    """Completed, as nearly all are: shown, and nothing follows."""
    followed(bench)
    (poll,) = polls(bench, 11)
    bench.ledger.outcomes.record(poll, "completed", bench.at(12), final=True)

    assert ("completed", []) == (bench.ledger.queries.task("tk_1").outcome, taken(bench, 12))


def test_any_other_word_is_kept_as_it_is_and_asked_about_again(bench):
    """A word on the way, or one that nobody knows, is shown; the same word again is no news."""
    followed(bench)
    (poll,) = polls(bench, 11)
    assert bench.ledger.outcomes.record(poll, "snoozed", bench.at(12), final=False) is True
    (again,) = polls(bench, 21)

    assert "snoozed" == bench.ledger.queries.task("tk_1").outcome
    assert bench.ledger.outcomes.record(again, "snoozed", bench.at(22), final=False) is False
    assert 1 == len(polls(bench, 41))


def test_a_late_answer_to_an_older_question_is_not_taken(bench):
    """Whoever asked too long ago is not believed: another has asked since."""
    followed(bench)
    (old,) = polls(bench, 11)
    (new,) = polls(bench, 21)

    assert bench.ledger.outcomes.record(old, "failed", bench.at(22), final=True) is False
    assert bench.ledger.outcomes.record(new, "failed", bench.at(23), final=True) is True
    assert 1 == len(taken(bench, 23))


def test_the_asking_ends_a_week_after_the_tasks_last_moment(bench):
    """Delivered, due and expired: the last of them counts; then what was seen last stays."""
    followed(bench, expires_at=bench.at(100))
    week = 7 * 24 * 3600

    assert 1 == len(polls(bench, week + 99))
    assert [] == polls(bench, week + 200)
    assert [] == polls(bench, 10 * week)


def test_what_answers_an_outcome_does_not_ask_for_a_failure(bench):
    """A call that was made and came to nothing is delivered: what follows on its outcome goes out."""
    followed(bench)
    (poll,) = polls(bench, 11)
    bench.ledger.outcomes.record(poll, "failed", bench.at(12), final=True)
    (reaction,) = taken(bench, 12)
    bench.ledger.follow_ups.record(reaction, [answer(bench)], bench.at(13))

    assert "tk_2" == bench.claim("tk_2", now=bench.at(14)).task.id


def cancelled(bench):
    """Have the provider cancel the call that it has, at second 20."""
    bench.ledger.admin.cancelled_at_provider("tk_1", "200", None, bench.at(20), taken=True)


def test_what_was_cancelled_at_its_provider_is_not_asked_about(bench):
    """A person has ended it there: the asking ends, and the answer to a question that was on its way is not taken."""
    followed(bench)
    (poll,) = polls(bench, 11)
    cancelled(bench)

    assert [] == polls(bench, 10_000)
    assert bench.ledger.outcomes.record(poll, "failed", bench.at(21), final=True) is False
    assert [] == taken(bench, 10_000)


def test_an_outcome_is_not_answered_once_the_task_was_cancelled_at_its_provider(bench):
    """The word was noted before, or is our own cancelling come back: nothing follows on it."""
    followed(bench)
    (poll,) = polls(bench, 11)
    bench.ledger.outcomes.record(poll, "failed", bench.at(12), final=True)
    (reaction,) = taken(bench, 12)
    cancelled(bench)

    assert () == bench.ledger.follow_ups.record(reaction, [answer(bench)], bench.at(21))
    assert [] == taken(bench, 10_000)


def doubtful(bench, **changes):
    """Have a task given up in doubt long before it is due no more."""
    parts = {"type": TaskType.MAKE_CALL, "provider": MINDHUNTERS, "reactions": ANSWERED}
    bench.claimed(**(parts | changes))
    bench.ledger.tasks.expire_leases(bench.at(60))


def test_what_a_person_settled_as_delivered_is_asked_about_however_late(bench):
    """A week after it was due: the asking begins with the settling."""
    doubtful(bench)
    week = 7 * 24 * 3600
    bench.ledger.admin.settle("tk_1", True, "x-7", bench.at(week))

    assert ["x-7"] == [poll.external_id for poll in polls(bench, week)]
    assert 0 == bench.ledger.outcomes.poll_missed(MINDHUNTERS, bench.at(week), bench.at(week))


def test_what_a_look_up_found_is_asked_about_however_late(bench):
    """Two days after it was due: the asking begins with the finding."""
    doubtful(bench)
    days = 2 * 24 * 3600
    (doubt,) = bench.ledger.reconciliation.claim(MINDHUNTERS, bench.at(days), timedelta(seconds=45), 1)
    found = Settlement(verdict=Verdict.DELIVERED, state=TaskState.DELIVERED, external_id="x-8")
    assert bench.ledger.reconciliation.resolve(doubt, found, bench.at(days + 1))

    assert ["x-8"] == [poll.external_id for poll in polls(bench, days + 1)]


@pytest.mark.parametrize(("provider", "external_id"), [(ProviderName.VAMBE, "x-7"), (MINDHUNTERS, None)])
def test_what_cannot_be_asked_about_is_not(bench, provider, external_id):
    """Vambe tells nothing of its tasks, and without the provider's id there is nothing to ask for."""
    doubtful(bench, provider=provider)
    bench.ledger.admin.settle("tk_1", True, external_id, bench.at(61))

    assert [] == bench.ledger.outcomes.claim(provider, bench.at(10_000), pause, 10)


def test_a_delivery_while_nobody_asked_is_found(bench):
    """The poll was switched on within a day: what was delivered before is asked about from then on."""
    claim = bench.claimed(type=TaskType.MAKE_CALL, provider=MINDHUNTERS, reactions=ANSWERED)
    bench.ledger.tasks.settle(claim, bench.delivered("x-7"), bench.at(1))

    assert 1 == bench.ledger.outcomes.poll_missed(MINDHUNTERS, bench.at(62), bench.at(70))
    assert 0 == bench.ledger.outcomes.poll_missed(MINDHUNTERS, bench.at(63), bench.at(70))
    assert ["x-7"] == [poll.external_id for poll in polls(bench, 70)]

from __future__ import annotations

from datetime import timedelta

import pytest

from rules.vocabulary import ProviderName, TaskState, TaskType, Verdict
from worker.delivery import ATTEMPT_SECONDS
from worker.ledger import Limits, PauseKind, Settlement
from worker.ledger.counters import CounterName
from worker.ledger.tasks import STILL_SENDING
from worker.ledger.transitions import ABSENT_AFTER_MICROS
from worker.retry import LOOK_UP_POLICY

VAMBE, MINDHUNTERS = ProviderName.VAMBE, ProviderName.MINDHUNTERS
HOLD = timedelta(seconds=45)


def unknown(desk, id="tk_1", *, at=2, now=None, **changes):  # noqa: A002 - the field's name
    """Bring a task to unknown by an answer that tells nothing, `at` seconds after now; return its claim."""
    claim = desk.claimed(id, now=now or desk.now, **changes)
    desk.ledger.tasks.settle(claim, desk.ended(TaskState.UNKNOWN, Verdict.UNKNOWN, "no answer"), desk.at(at))
    return claim


def due(desk, seconds, provider=VAMBE, limit=9):
    """Take the doubts whose look-up is due then."""
    return desk.ledger.reconciliation.claim(provider, desk.at(seconds), HOLD, limit)


def taken(desk, seconds=60):
    """Take the only doubt."""
    (doubt,) = due(desk, seconds)
    return doubt


def found(external_id="x-9"):
    """Return the settlement of a task that was found."""
    return Settlement(verdict=Verdict.DELIVERED, state=TaskState.DELIVERED, external_id=external_id, reason="found")


def decided(state, **changes):
    """Return another end of a doubt."""
    return Settlement(verdict=Verdict.UNKNOWN, state=state, reason=f"now {state}", **changes)


def ended(desk, state):
    """Return how often a task was counted as having come to this state."""
    counted = desk.ledger.queries.measure(desk.at(9999)).tallies
    return counted.get(CounterName.TASKS_ENDED, {}).get((TaskType.TEAM_TASK, state), 0)


def test_what_its_own_worker_settled_is_looked_up_at_once(desk):
    """That worker knows that the attempt has ended: the first look-up need not wait for the end of the lease."""
    unknown(desk)
    assert [] == due(desk, 1)
    doubt = taken(desk, 2)
    assert ("tk_1", desk.now, desk.at(2), 0, None, False) == (
        doubt.task.id,
        doubt.began_at,
        doubt.ended_at,
        doubt.look_ups,
        doubt.absent_at,
        doubt.query_works,
    )


def test_an_expired_lease_is_looked_up_soon(desk):
    """What a lease that ran out left behind is looked up a moment later; its request may go on for an attempt's time."""
    desk.claimed()
    desk.ledger.tasks.expire_leases(desk.at(64))
    assert [] == due(desk, 68)
    assert (desk.now, desk.at(94)) == ((doubt := taken(desk, 69)).began_at, doubt.ended_at)


def test_what_a_dead_worker_held_is_looked_up_soon_and_absent_only_after_the_lease(desk):
    """It may be found at once; its request may be executed until the lease ends, so no absence counts before."""
    desk.claimed(owner="w-1")
    desk.ledger.tasks.release("w-1", desk.at(10))
    assert [] == due(desk, 14)
    lease_ends_at = desk.at(60)
    assert lease_ends_at == taken(desk, 15).ended_at + LOOK_UP_POLICY.after_end


def test_each_provider_has_doubts_of_its_own(desk):
    """A look-up at one provider takes no task of the other."""
    unknown(desk)
    assert [] == due(desk, 100, MINDHUNTERS)
    assert 1 == len(due(desk, 100, VAMBE))


def test_the_longest_overdue_come_first(desk):
    """So many at most, and nobody is overtaken for ever."""
    for number in range(1, 4):
        unknown(desk, f"tk_{number}", event_id=f"ev_{number}", at=5 - number, now=desk.at(4 - number))
    assert ["tk_3", "tk_2"] == [doubt.task.id for doubt in due(desk, 100, limit=2)]
    assert ["tk_1"] == [doubt.task.id for doubt in due(desk, 100, limit=2)]


def test_a_doubt_is_taken_by_one(desk):
    """While one looks it up nobody else does; what a dead process held is free again after a while."""
    unknown(desk)
    first = taken(desk, 60)
    assert [] == due(desk, 104)
    second = taken(desk, 105)
    assert second.due_at > first.due_at
    assert not desk.ledger.reconciliation.postpone(first, desk.at(200), failed=True)
    assert not desk.ledger.reconciliation.resolve(first, decided(TaskState.WAITING, due_at=desk.at(106)), desk.at(106))
    assert TaskState.UNKNOWN == desk.state()
    assert desk.ledger.reconciliation.resolve(second, decided(TaskState.WAITING, due_at=desk.at(106)), desk.at(106))


def test_a_look_up_is_put_off(desk):
    """What failed is counted, when the first complete listing was asked for is kept, and both come with the next look."""
    unknown(desk)
    assert desk.ledger.reconciliation.postpone(taken(desk, 60), desk.at(70), failed=True)
    assert [] == due(desk, 69)
    assert desk.ledger.reconciliation.postpone(taken(desk, 70), desk.at(80), failed=False, absent_at=desk.at(70))
    assert desk.ledger.reconciliation.postpone(taken(desk, 80), desk.at(90), failed=False, absent_at=desk.at(80))
    doubt = taken(desk, 90)
    assert (1, desk.at(70)) == (doubt.look_ups, doubt.absent_at)


def test_a_task_that_was_found_is_delivered(desk):
    """With the provider's id, once: a second look-up that finds it changes nothing."""
    unknown(desk)
    doubt = taken(desk)
    assert desk.ledger.reconciliation.resolve(doubt, found(), desk.at(61))
    task = desk.ledger.queries.task("tk_1")
    assert (TaskState.DELIVERED, "x-9", "found", desk.at(61)) == (
        task.state,
        task.external_id,
        task.reason,
        task.updated_at,
    )
    assert desk.ledger.reconciliation.resolve(doubt, found(), desk.at(62))
    assert task == desk.ledger.queries.task("tk_1")
    assert 1 == ended(desk, TaskState.DELIVERED)
    assert [] == due(desk, 9999)


@pytest.mark.parametrize("state", [TaskState.WAITING, TaskState.DEAD, TaskState.UNKNOWN])
def test_other_ends_of_a_doubt(desk, state):
    """Sent again, given up, or left to a person: each once, and nobody looks it up any more."""
    unknown(desk)
    doubt = taken(desk)
    due_at = desk.at(61) if state == TaskState.WAITING else None
    assert desk.ledger.reconciliation.resolve(doubt, decided(state, due_at=due_at), desk.at(61))
    assert not desk.ledger.reconciliation.resolve(doubt, decided(TaskState.DEAD), desk.at(62))
    task = desk.ledger.queries.task("tk_1")
    assert (state, f"now {state}", due_at or desk.now, 1) == (task.state, task.reason, task.due_at, task.attempts)
    assert (1 if state == TaskState.DEAD else 0) == ended(desk, TaskState.DEAD)
    assert [] == due(desk, 9999)


def test_sent_again_it_counts_on(desk):
    """The next attempt is the second one; when nobody knows its end either, both attempts are looked for."""
    unknown(desk)
    desk.ledger.reconciliation.resolve(taken(desk), decided(TaskState.WAITING, due_at=desk.at(61)), desk.at(61))
    again = desk.claim(now=desk.at(61))
    assert 2 == again.attempt
    desk.ledger.tasks.settle(again, desk.ended(TaskState.UNKNOWN, Verdict.UNKNOWN), desk.at(65))
    doubt = taken(desk, 121)
    assert (desk.now, desk.at(65), 0, None) == (doubt.began_at, doubt.ended_at, doubt.look_ups, doubt.absent_at)


def test_attempts_that_came_to_nothing_are_not_looked_for(desk):
    """What certainly was not executed does not widen the window."""
    desk.ledger.tasks.settle(desk.claimed(), desk.busy(desk.at(1000)), desk.at(1))
    again = desk.claim(now=desk.at(1000))
    desk.ledger.tasks.settle(again, desk.ended(TaskState.UNKNOWN, Verdict.UNKNOWN), desk.at(1001))
    assert desk.at(1000) == taken(desk, 1060).began_at


def test_a_late_answer_ends_the_doubt(desk):
    """An answer that comes after the lease settles the task, and nobody looks it up."""
    claim = desk.claimed()
    desk.ledger.tasks.expire_leases(desk.at(60))
    assert desk.ledger.tasks.settle(claim, desk.delivered(), desk.at(61))
    assert [] == due(desk, 9999)
    assert TaskState.DELIVERED == desk.state()


def test_a_late_answer_that_tells_nothing_moves_the_window(desk):
    """The attempt ended later than was thought: looked up from the beginning, up to then."""
    claim = desk.claimed()
    desk.ledger.tasks.expire_leases(desk.at(60))
    desk.ledger.reconciliation.postpone(taken(desk, 65), desk.at(70), failed=True, absent_at=desk.at(65))
    assert desk.ledger.tasks.settle(claim, desk.ended(TaskState.UNKNOWN, Verdict.UNKNOWN), desk.at(68))
    doubt = taken(desk, 73)
    assert (desk.at(68), 0, None) == (doubt.ended_at, doubt.look_ups, doubt.absent_at)


def test_giving_back_late_ends_the_look_up(desk):
    """Whoever held the claim knows that nothing was sent."""
    claim = desk.claimed()
    desk.ledger.tasks.expire_leases(desk.at(60))
    desk.ledger.tasks.give_back(claim, desk.at(61))
    assert [] == due(desk, 9999)


@pytest.mark.parametrize("delivered", [True, False])
def test_a_person_ends_the_doubt(desk, delivered):
    """What a person decided stands against a look-up that was under way, unless that found the task."""
    unknown(desk)
    doubt = taken(desk)
    desk.ledger.admin.settle("tk_1", delivered, None, desk.at(61))
    before = desk.ledger.queries.task("tk_1")
    assert not desk.ledger.reconciliation.resolve(doubt, decided(TaskState.DEAD), desk.at(62))
    assert before == desk.ledger.queries.task("tk_1")
    assert [] == due(desk, 9999)


def test_what_the_provider_has_is_delivered_whatever_was_decided(desk):
    """A task that a person had sent again and that the look-up then finds is not sent."""
    unknown(desk)
    doubt = taken(desk)
    desk.ledger.admin.settle("tk_1", False, None, desk.at(61))
    assert desk.ledger.reconciliation.resolve(doubt, found(), desk.at(62))
    assert (TaskState.DELIVERED, "x-9") == (desk.state(), desk.ledger.queries.task("tk_1").external_id)


def test_an_older_look_up_decides_nothing_about_a_newer_claim(desk):
    """Sent again meanwhile and in doubt anew: only the look-up of the newer attempt counts."""
    unknown(desk)
    old = taken(desk)
    desk.ledger.admin.settle("tk_1", False, None, desk.at(61))
    newer = desk.claim(now=desk.at(62))
    desk.ledger.tasks.settle(newer, desk.ended(TaskState.UNKNOWN, Verdict.UNKNOWN), desk.at(63))
    assert not desk.ledger.reconciliation.resolve(old, decided(TaskState.WAITING, due_at=desk.at(64)), desk.at(64))
    assert not desk.ledger.reconciliation.postpone(old, desk.at(64), failed=True)
    assert TaskState.UNKNOWN == desk.state()
    assert "tk_1" == taken(desk, 122).task.id


def test_nobody_is_asked_while_a_person_pauses_the_provider(desk):
    """The look-ups wait for the end of the pause."""
    unknown(desk)
    desk.ledger.limits.pause(VAMBE, desk.at(500), "maintenance", desk.at(3))
    assert [] == due(desk, 100)
    assert 1 == len(due(desk, 500))


def test_nobody_is_asked_while_an_answer_pauses_the_provider(desk):
    """A look-up would fail, and a person would be asked in the end; at the pause's moment it is tried."""
    unknown(desk)
    other = desk.claimed("tk_2", event_id="ev_2", now=desk.at(3))
    desk.ledger.tasks.settle(
        other,
        Settlement(
            verdict=Verdict.PAUSE,
            state=TaskState.WAITING,
            due_at=desk.at(900),
            reason="401",
            pause_until_at=desk.at(900),
        ),
        desk.at(4),
    )
    assert [] == due(desk, 899)
    assert 1 == len(due(desk, 900))


def test_an_answer_to_a_question_pauses_the_provider_once(desk):
    """As an attempt's would: the pause that begins is returned, one that goes on is not, and a person's order stands."""
    asked = (VAMBE, PauseKind.ANSWER, desk.at(60), "401 was its answer", desk.now, desk.at(1))
    began = desk.ledger.limits.pause_on_answer(*asked)
    assert (VAMBE, PauseKind.ANSWER, desk.at(60)) == (began.name, began.kind, began.paused_until_at)
    assert desk.ledger.limits.pause_on_answer(*asked) is None
    rest = (MINDHUNTERS, PauseKind.ASKED, desk.at(40), "429 was its answer", desk.now, desk.at(1))
    desk.ledger.limits.pause(MINDHUNTERS, desk.at(30), "maintenance", desk.now)
    assert desk.ledger.limits.pause_on_answer(*rest) is None
    found = {state.name: (state.kind, state.paused_until_at) for state in desk.ledger.limits.states()}
    assert {VAMBE: (PauseKind.ANSWER, desk.at(60)), MINDHUNTERS: (PauseKind.PERSON, desk.at(30))} == found


def test_an_attempt_may_go_on_as_long_as_a_worker_lets_it(desk):
    """The ledger and the worker mean the same time."""
    assert STILL_SENDING.total_seconds() == ATTEMPT_SECONDS
    assert timedelta(microseconds=ABSENT_AFTER_MICROS) == LOOK_UP_POLICY.after_end
    desk.claimed()
    desk.ledger.tasks.expire_leases(desk.at(64))
    assert desk.at(64) + STILL_SENDING == taken(desk, 69).ended_at


def test_a_charge_tells_its_place(desk):
    """Three at once where two may be: the third has a place of its own."""
    limits = Limits(rate_per_second=2, burst=2)
    places = [desk.ledger.limits.charge(VAMBE, limits, desk.now) for _ in range(3)]
    assert [desk.now, desk.now, desk.at(0.5)] == places
    assert desk.now == desk.ledger.limits.charge(VAMBE, Limits(), desk.now)


def test_a_form_that_found_something_is_known_by_all(desk):
    """Once a listing has shown what it was asked for, every later doubt of that provider says so, and no other's."""
    unknown(desk)
    desk.ledger.reconciliation.note_query_works(VAMBE, desk.at(5))
    desk.ledger.reconciliation.note_query_works(VAMBE, desk.at(6))
    assert taken(desk).query_works
    unknown(desk, "tk_2", event_id="ev_2", provider=MINDHUNTERS, type=TaskType.MAKE_CALL)
    (other,) = due(desk, 100, MINDHUNTERS)
    assert not other.query_works


def test_a_form_is_known_beside_a_pause(desk):
    """Noting it changes nothing about a provider that is known already, nor does a pause forget it."""
    desk.ledger.limits.pause(VAMBE, desk.at(50), "maintenance", desk.now)
    desk.ledger.reconciliation.note_query_works(VAMBE, desk.at(5))
    desk.ledger.limits.pause(VAMBE, desk.at(55), "maintenance", desk.at(6))
    desk.ledger.limits.resume(VAMBE, desk.at(7))
    unknown(desk)
    assert taken(desk).query_works

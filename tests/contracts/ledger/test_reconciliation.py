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


def unknown(bench, id="tk_1", *, at=2, now=None, **changes):  # noqa: A002 - the field's name
    """Bring a task to unknown by an answer that tells nothing, `at` seconds after now; return its claim."""
    claim = bench.claimed(id, now=now or bench.now, **changes)
    bench.ledger.tasks.settle(claim, bench.ended(TaskState.UNKNOWN, Verdict.UNKNOWN, "no answer"), bench.at(at))
    return claim


def due(bench, seconds, provider=VAMBE, limit=9):
    """Take the doubts whose look-up is due then."""
    return bench.ledger.reconciliation.claim(provider, bench.at(seconds), HOLD, limit)


def taken(bench, seconds=60):
    """Take the only doubt."""
    (doubt,) = due(bench, seconds)
    return doubt


def found(external_id="x-9"):
    """Return the settlement of a task that was found."""
    return Settlement(verdict=Verdict.DELIVERED, state=TaskState.DELIVERED, external_id=external_id, reason="found")


def decided(state, **changes):
    """Return another end of a doubt."""
    return Settlement(verdict=Verdict.UNKNOWN, state=state, reason=f"now {state}", **changes)


def ended(bench, state):
    """Return how often a task was counted as having come to this state."""
    counted = bench.ledger.queries.measure(bench.at(9999)).tallies
    return counted.get(CounterName.TASKS_ENDED, {}).get((TaskType.TEAM_TASK, state), 0)


def test_what_its_own_worker_settled_is_looked_up_at_once(bench):
    """That worker knows that the attempt has ended: the first look-up need not wait for the end of the lease."""
    unknown(bench)
    assert [] == due(bench, 1)
    doubt = taken(bench, 2)
    assert ("tk_1", bench.now, bench.at(2), 0, None, False) == (
        doubt.task.id,
        doubt.began_at,
        doubt.ended_at,
        doubt.look_ups,
        doubt.absent_at,
        doubt.query_works,
    )


def test_an_expired_lease_is_looked_up_soon(bench):
    """What a lease that ran out left behind is looked up a moment later; its request may go on for an attempt's time."""
    bench.claimed()
    bench.ledger.tasks.expire_leases(bench.at(64))
    assert [] == due(bench, 68)
    assert (bench.now, bench.at(94)) == ((doubt := taken(bench, 69)).began_at, doubt.ended_at)


def test_what_a_dead_worker_held_is_looked_up_soon_and_absent_only_after_the_lease(bench):
    """It may be found at once; its request may be executed until the lease ends, so no absence counts before."""
    bench.claimed(owner="w-1")
    bench.ledger.tasks.release("w-1", bench.at(10))
    assert [] == due(bench, 14)
    lease_ends_at = bench.at(60)
    assert lease_ends_at == taken(bench, 15).ended_at + LOOK_UP_POLICY.after_end


def test_each_provider_has_doubts_of_its_own(bench):
    """A look-up at one provider takes no task of the other."""
    unknown(bench)
    assert [] == due(bench, 100, MINDHUNTERS)
    assert 1 == len(due(bench, 100, VAMBE))


def test_the_longest_overdue_come_first(bench):
    """So many at most, and nobody is overtaken for ever."""
    for number in range(1, 4):
        unknown(bench, f"tk_{number}", event_id=f"ev_{number}", at=5 - number, now=bench.at(4 - number))
    assert ["tk_3", "tk_2"] == [doubt.task.id for doubt in due(bench, 100, limit=2)]
    assert ["tk_1"] == [doubt.task.id for doubt in due(bench, 100, limit=2)]


def test_a_doubt_is_taken_by_one(bench):
    """While one looks it up nobody else does; what a dead process held is free again after a while."""
    unknown(bench)
    first = taken(bench, 60)
    assert [] == due(bench, 104)
    second = taken(bench, 105)
    assert second.due_at > first.due_at
    assert not bench.ledger.reconciliation.postpone(first, bench.at(200), failed=True)
    assert not bench.ledger.reconciliation.resolve(
        first, decided(TaskState.WAITING, due_at=bench.at(106)), bench.at(106)
    )
    assert TaskState.UNKNOWN == bench.state()
    assert bench.ledger.reconciliation.resolve(second, decided(TaskState.WAITING, due_at=bench.at(106)), bench.at(106))


def test_a_look_up_is_put_off(bench):
    """What failed is counted, when the first complete listing was asked for is kept, and both come with the next look."""
    unknown(bench)
    assert bench.ledger.reconciliation.postpone(taken(bench, 60), bench.at(70), failed=True)
    assert [] == due(bench, 69)
    assert bench.ledger.reconciliation.postpone(taken(bench, 70), bench.at(80), failed=False, absent_at=bench.at(70))
    assert bench.ledger.reconciliation.postpone(taken(bench, 80), bench.at(90), failed=False, absent_at=bench.at(80))
    doubt = taken(bench, 90)
    assert (1, bench.at(70)) == (doubt.look_ups, doubt.absent_at)


def test_a_task_that_was_found_is_delivered(bench):
    """With the provider's id, once: a second look-up that finds it changes nothing."""
    unknown(bench)
    doubt = taken(bench)
    assert bench.ledger.reconciliation.resolve(doubt, found(), bench.at(61))
    task = bench.ledger.queries.task("tk_1")
    assert (TaskState.DELIVERED, "x-9", "found", bench.at(61)) == (
        task.state,
        task.external_id,
        task.reason,
        task.updated_at,
    )
    assert bench.ledger.reconciliation.resolve(doubt, found(), bench.at(62))
    assert task == bench.ledger.queries.task("tk_1")
    assert 1 == ended(bench, TaskState.DELIVERED)
    assert [] == due(bench, 9999)


@pytest.mark.parametrize("state", [TaskState.WAITING, TaskState.DEAD, TaskState.UNKNOWN])
def test_other_ends_of_a_doubt(bench, state):
    """Sent again, given up, or left to a person: each once, and nobody looks it up any more."""
    unknown(bench)
    doubt = taken(bench)
    due_at = bench.at(61) if state == TaskState.WAITING else None
    assert bench.ledger.reconciliation.resolve(doubt, decided(state, due_at=due_at), bench.at(61))
    assert not bench.ledger.reconciliation.resolve(doubt, decided(TaskState.DEAD), bench.at(62))
    task = bench.ledger.queries.task("tk_1")
    assert (state, f"now {state}", due_at or bench.now, 1) == (task.state, task.reason, task.due_at, task.attempts)
    assert (1 if state == TaskState.DEAD else 0) == ended(bench, TaskState.DEAD)
    assert [] == due(bench, 9999)


def test_sent_again_it_counts_on(bench):
    """The next attempt is the second one; when nobody knows its end either, both attempts are looked for."""
    unknown(bench)
    bench.ledger.reconciliation.resolve(taken(bench), decided(TaskState.WAITING, due_at=bench.at(61)), bench.at(61))
    again = bench.claim(now=bench.at(61))
    assert 2 == again.attempt
    bench.ledger.tasks.settle(again, bench.ended(TaskState.UNKNOWN, Verdict.UNKNOWN), bench.at(65))
    doubt = taken(bench, 121)
    assert (bench.now, bench.at(65), 0, None) == (doubt.began_at, doubt.ended_at, doubt.look_ups, doubt.absent_at)


def test_attempts_that_came_to_nothing_are_not_looked_for(bench):
    """What certainly was not executed does not widen the window."""
    bench.ledger.tasks.settle(bench.claimed(), bench.busy(bench.at(1000)), bench.at(1))
    again = bench.claim(now=bench.at(1000))
    bench.ledger.tasks.settle(again, bench.ended(TaskState.UNKNOWN, Verdict.UNKNOWN), bench.at(1001))
    assert bench.at(1000) == taken(bench, 1060).began_at


def test_a_late_answer_ends_the_doubt(bench):
    """An answer that comes after the lease settles the task, and nobody looks it up."""
    claim = bench.claimed()
    bench.ledger.tasks.expire_leases(bench.at(60))
    assert bench.ledger.tasks.settle(claim, bench.delivered(), bench.at(61))
    assert [] == due(bench, 9999)
    assert TaskState.DELIVERED == bench.state()


def test_a_late_answer_that_tells_nothing_moves_the_window(bench):
    """The attempt ended later than was thought: looked up from the beginning, up to then."""
    claim = bench.claimed()
    bench.ledger.tasks.expire_leases(bench.at(60))
    bench.ledger.reconciliation.postpone(taken(bench, 65), bench.at(70), failed=True, absent_at=bench.at(65))
    assert bench.ledger.tasks.settle(claim, bench.ended(TaskState.UNKNOWN, Verdict.UNKNOWN), bench.at(68))
    doubt = taken(bench, 73)
    assert (bench.at(68), 0, None) == (doubt.ended_at, doubt.look_ups, doubt.absent_at)


def test_giving_back_late_ends_the_look_up(bench):
    """Whoever held the claim knows that nothing was sent."""
    claim = bench.claimed()
    bench.ledger.tasks.expire_leases(bench.at(60))
    bench.ledger.tasks.give_back(claim, bench.at(61))
    assert [] == due(bench, 9999)


@pytest.mark.parametrize("delivered", [True, False])
def test_a_person_ends_the_doubt(bench, delivered):
    """What a person decided stands against a look-up that was under way, unless that found the task."""
    unknown(bench)
    doubt = taken(bench)
    bench.ledger.admin.settle("tk_1", delivered, None, bench.at(61))
    before = bench.ledger.queries.task("tk_1")
    assert not bench.ledger.reconciliation.resolve(doubt, decided(TaskState.DEAD), bench.at(62))
    assert before == bench.ledger.queries.task("tk_1")
    assert [] == due(bench, 9999)


def test_what_the_provider_has_is_delivered_whatever_was_decided(bench):
    """A task that a person had sent again and that the look-up then finds is not sent."""
    unknown(bench)
    doubt = taken(bench)
    bench.ledger.admin.settle("tk_1", False, None, bench.at(61))
    assert bench.ledger.reconciliation.resolve(doubt, found(), bench.at(62))
    assert (TaskState.DELIVERED, "x-9") == (bench.state(), bench.ledger.queries.task("tk_1").external_id)


def test_an_older_look_up_decides_nothing_about_a_newer_claim(bench):
    """Sent again meanwhile and in doubt anew: only the look-up of the newer attempt counts."""
    unknown(bench)
    old = taken(bench)
    bench.ledger.admin.settle("tk_1", False, None, bench.at(61))
    newer = bench.claim(now=bench.at(62))
    bench.ledger.tasks.settle(newer, bench.ended(TaskState.UNKNOWN, Verdict.UNKNOWN), bench.at(63))
    assert not bench.ledger.reconciliation.resolve(old, decided(TaskState.WAITING, due_at=bench.at(64)), bench.at(64))
    assert not bench.ledger.reconciliation.postpone(old, bench.at(64), failed=True)
    assert TaskState.UNKNOWN == bench.state()
    assert "tk_1" == taken(bench, 122).task.id


def test_nobody_is_asked_while_a_person_pauses_the_provider(bench):
    """The look-ups wait for the end of the pause."""
    unknown(bench)
    bench.ledger.limits.pause(VAMBE, bench.at(500), "maintenance", bench.at(3))
    assert [] == due(bench, 100)
    assert 1 == len(due(bench, 500))


def test_nobody_is_asked_while_an_answer_pauses_the_provider(bench):
    """A look-up would fail, and a person would be asked in the end; at the pause's moment it is tried."""
    unknown(bench)
    other = bench.claimed("tk_2", event_id="ev_2", now=bench.at(3))
    bench.ledger.tasks.settle(
        other,
        Settlement(
            verdict=Verdict.PAUSE,
            state=TaskState.WAITING,
            due_at=bench.at(900),
            reason="401",
            pause_until_at=bench.at(900),
        ),
        bench.at(4),
    )
    assert [] == due(bench, 899)
    assert 1 == len(due(bench, 900))


def test_an_answer_to_a_question_pauses_the_provider_once(bench):
    """As an attempt's would: the pause that begins is returned, one that goes on is not, and a person's order stands."""
    asked = (VAMBE, PauseKind.ANSWER, bench.at(60), "401 was its answer", bench.now, bench.at(1))
    began = bench.ledger.limits.pause_on_answer(*asked)
    assert (VAMBE, PauseKind.ANSWER, bench.at(60)) == (began.name, began.kind, began.paused_until_at)
    assert bench.ledger.limits.pause_on_answer(*asked) is None
    rest = (MINDHUNTERS, PauseKind.ASKED, bench.at(40), "429 was its answer", bench.now, bench.at(1))
    bench.ledger.limits.pause(MINDHUNTERS, bench.at(30), "maintenance", bench.now)
    assert bench.ledger.limits.pause_on_answer(*rest) is None
    found = {state.name: (state.kind, state.paused_until_at) for state in bench.ledger.limits.states()}
    assert {VAMBE: (PauseKind.ANSWER, bench.at(60)), MINDHUNTERS: (PauseKind.PERSON, bench.at(30))} == found


def test_an_attempt_may_go_on_as_long_as_a_worker_lets_it(bench):
    """The ledger and the worker mean the same time."""
    assert STILL_SENDING.total_seconds() == ATTEMPT_SECONDS
    assert timedelta(microseconds=ABSENT_AFTER_MICROS) == LOOK_UP_POLICY.after_end
    bench.claimed()
    bench.ledger.tasks.expire_leases(bench.at(64))
    assert bench.at(64) + STILL_SENDING == taken(bench, 69).ended_at


def test_a_charge_tells_its_place(bench):
    """Three at once where two may be: the third has a place of its own."""
    limits = Limits(rate_per_second=2, burst=2)
    places = [bench.ledger.limits.charge(VAMBE, limits, bench.now) for _ in range(3)]
    assert [bench.now, bench.now, bench.at(0.5)] == places
    assert bench.now == bench.ledger.limits.charge(VAMBE, Limits(), bench.now)


def test_a_form_that_found_something_is_known_by_all(bench):
    """Once a listing has shown what it was asked for, every later doubt of that provider says so, and no other's."""
    unknown(bench)
    bench.ledger.reconciliation.note_query_works(VAMBE, bench.at(5))
    bench.ledger.reconciliation.note_query_works(VAMBE, bench.at(6))
    assert taken(bench).query_works
    unknown(bench, "tk_2", event_id="ev_2", provider=MINDHUNTERS, type=TaskType.MAKE_CALL)
    (other,) = due(bench, 100, MINDHUNTERS)
    assert not other.query_works


def test_a_form_is_known_beside_a_pause(bench):
    """Noting it changes nothing about a provider that is known already, nor does a pause forget it."""
    bench.ledger.limits.pause(VAMBE, bench.at(50), "maintenance", bench.now)
    bench.ledger.reconciliation.note_query_works(VAMBE, bench.at(5))
    bench.ledger.limits.pause(VAMBE, bench.at(55), "maintenance", bench.at(6))
    bench.ledger.limits.resume(VAMBE, bench.at(7))
    unknown(bench)
    assert taken(bench).query_works

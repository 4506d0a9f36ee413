from __future__ import annotations

import pytest

from rules.vocabulary import ProviderName, TaskState, Verdict


def last_attempt(bench):
    """Return the newest attempt of task tk_1."""
    return bench.ledger.queries.attempts("tk_1")[-1]


def bring_to(bench, state):
    """Leave task tk_1 in a state while an old claim of it is still out; returns that claim."""
    old = bench.claimed(expires_at=bench.at(3000))
    bench.ledger.tasks.expire_leases(bench.at(60))
    if state == TaskState.UNKNOWN:
        return old
    if state == TaskState.SUPPRESSED:
        bench.ledger.admin.settle("tk_1", False, None, bench.at(61))
        bench.ledger.tasks.claim(["tk_1"], bench.at(3000), bench.lease, "w-3")
        return old
    if state == TaskState.DELIVERED:
        bench.ledger.admin.settle("tk_1", True, None, bench.at(61))
        return old
    bench.ledger.admin.settle("tk_1", False, None, bench.at(61))
    if state == TaskState.QUEUED:
        bench.ledger.tasks.dispatch_due(bench.at(61), bench.lease, {ProviderName.VAMBE: 9})
    if state in {TaskState.SENDING, TaskState.DEAD, TaskState.CANCELLED}:
        newer = bench.claim(now=bench.at(62))
        if state != TaskState.SENDING:
            bench.ledger.tasks.settle(newer, bench.ended(state), bench.at(63))
    assert state == bench.state()
    return old


def test_a_delivery_ends_the_task(bench):
    """A delivered attempt closes its row and the task, with the provider's id."""
    claim = bench.claimed()
    assert bench.ledger.tasks.settle(claim, bench.delivered("x-9"), bench.at(2)) is True
    task, attempt = bench.ledger.queries.task("tk_1"), last_attempt(bench)
    assert (TaskState.DELIVERED, "x-9", None, None, None) == (
        task.state,
        task.external_id,
        task.reason,
        task.lease_until_at,
        task.owner,
    )
    assert (bench.at(2), Verdict.DELIVERED, 201, None, "x-9", False) == (
        attempt.ended_at,
        attempt.verdict,
        attempt.status,
        attempt.error,
        attempt.external_id,
        attempt.deferred,
    )


def test_a_busy_answer_makes_the_task_wait(bench):
    """A retry's moment, its reason and the attempt's outcome are kept together."""
    claim = bench.claimed()
    assert bench.ledger.tasks.settle(claim, bench.busy(bench.at(3600)), bench.at(2))
    task, attempt = bench.ledger.queries.task("tk_1"), last_attempt(bench)
    assert (TaskState.WAITING, bench.at(3600), "503: try later", 1) == (
        task.state,
        task.due_at,
        task.reason,
        task.attempts,
    )
    assert (Verdict.BUSY, 503, "503: try later") == (attempt.verdict, attempt.status, attempt.error)


def test_no_new_moment_keeps_the_old_one(bench):
    """A settlement without a moment leaves the task's as it was."""
    bench.ledger.tasks.settle(bench.claimed(), bench.ended(TaskState.DEAD), bench.at(2))
    assert (TaskState.DEAD, bench.now) == (bench.state(), bench.ledger.queries.task("tk_1").due_at)


def test_an_uncounted_attempt_is_given_back(bench):
    """A deferral costs no attempt; it stays in the history as deferred, and the task's time runs from its first request."""
    claim = bench.claimed()
    assert bench.ledger.tasks.settle(claim, bench.busy(bench.at(10), counted=False), bench.at(2))
    assert (0, bench.now) == (
        bench.ledger.queries.task("tk_1").attempts,
        bench.ledger.queries.task("tk_1").first_attempt_at,
    )
    assert (True, Verdict.BUSY) == (last_attempt(bench).deferred, last_attempt(bench).verdict)
    again = bench.claim(now=bench.at(10))
    assert (1, 2, bench.now) == (again.attempt, again.epoch, again.first_attempt_at)


def test_a_later_uncounted_attempt_keeps_the_first_ones_moment(bench):
    """The time of the first try that counted stays."""
    bench.ledger.tasks.settle(bench.claimed(), bench.busy(bench.at(10)), bench.at(1))
    bench.ledger.tasks.settle(bench.claim(now=bench.at(10)), bench.busy(bench.at(20), counted=False), bench.at(11))
    assert (1, bench.now) == (
        bench.ledger.queries.task("tk_1").attempts,
        bench.ledger.queries.task("tk_1").first_attempt_at,
    )


def test_a_claim_given_back_never_happened(bench):
    """A request that never began costs no attempt, and the task is due at once."""
    claim = bench.claimed()
    assert bench.ledger.tasks.give_back(claim, bench.at(11)) is True
    task = bench.ledger.queries.task("tk_1")
    assert (TaskState.WAITING, bench.at(11), 0, None) == (task.state, task.due_at, task.attempts, task.owner)
    assert (True, None) == (last_attempt(bench).deferred, last_attempt(bench).verdict)
    assert bench.ledger.tasks.give_back(claim, bench.at(12)) is False
    assert 1 == bench.claim(now=bench.at(12)).attempt


def test_an_old_claim_cannot_be_given_back(bench):
    """Once somebody has decided upon the task, giving its old claim back changes nothing."""
    claim = bring_to(bench, TaskState.UNKNOWN)
    bench.ledger.admin.settle("tk_1", True, "x-9", bench.at(65))
    assert bench.ledger.tasks.give_back(claim, bench.at(70)) is False
    assert TaskState.DELIVERED == bench.state()


def test_giving_back_late_ends_the_doubt(bench):
    """Whoever held the claim knows that nothing was sent: the task is not unknown any more."""
    claim = bring_to(bench, TaskState.UNKNOWN)
    assert bench.ledger.tasks.give_back(claim, bench.at(70))
    assert TaskState.WAITING == bench.state()


def test_a_late_outcome_ends_the_doubt_of_its_own_claim(bench):
    """A task that became unknown when its lease ran out is not unknown any more once its own attempt's answer is there."""
    claim = bring_to(bench, TaskState.UNKNOWN)
    assert bench.ledger.tasks.settle(claim, bench.busy(bench.at(90)), bench.at(70))
    assert (TaskState.WAITING, bench.at(90)) == (bench.state(), bench.ledger.queries.task("tk_1").due_at)


def test_a_late_failure_goes_to_the_attempt_only(bench):
    """An outcome under a claim that somebody has decided upon since does not move the task; the attempt's row tells it."""
    claim = bring_to(bench, TaskState.UNKNOWN)
    bench.ledger.admin.settle("tk_1", False, None, bench.at(65))
    assert bench.ledger.tasks.settle(claim, bench.busy(), bench.at(70)) is False
    assert (TaskState.WAITING, bench.at(65)) == (bench.state(), bench.ledger.queries.task("tk_1").due_at)
    assert (Verdict.BUSY, 503, bench.at(70)) == (
        last_attempt(bench).verdict,
        last_attempt(bench).status,
        last_attempt(bench).ended_at,
    )


@pytest.mark.parametrize(
    "state",
    [TaskState.UNKNOWN, TaskState.WAITING, TaskState.QUEUED, TaskState.DEAD, TaskState.SENDING],
)
def test_a_late_success_ends_the_task(bench, state):
    """The task was executed, so it is delivered, whatever has been decided meanwhile; nobody sends it again."""
    old = bring_to(bench, state)
    assert bench.ledger.tasks.settle(old, bench.delivered("x-late"), bench.at(70)) is True
    task = bench.ledger.queries.task("tk_1")
    assert (TaskState.DELIVERED, "x-late", None) == (task.state, task.external_id, task.owner)
    assert Verdict.DELIVERED == bench.ledger.queries.attempts("tk_1")[0].verdict


def test_a_late_success_of_a_planned_task(bench):
    """A task that was planned anew is delivered by a late success too."""
    old = bring_to(bench, TaskState.WAITING)
    assert bench.ledger.tasks.settle(old, bench.delivered("x-late"), bench.at(70))
    assert [] == bench.ledger.tasks.dispatch_due(bench.at(9999), bench.lease, {ProviderName.VAMBE: 9})


def test_after_a_late_success_the_newer_attempt_cannot_undo_it(bench):
    """The attempt that was under way when the late success came leaves the task delivered."""
    old = bring_to(bench, TaskState.WAITING)
    newer = bench.claim(now=bench.at(62))
    bench.ledger.tasks.settle(old, bench.delivered("x-late"), bench.at(70))
    assert bench.ledger.tasks.settle(newer, bench.busy(), bench.at(71)) is False
    assert TaskState.DELIVERED == bench.state()
    assert [Verdict.DELIVERED, Verdict.BUSY] == [row.verdict for row in bench.ledger.queries.attempts("tk_1")]


@pytest.mark.parametrize(
    ("state", "remark"),
    [(TaskState.CANCELLED, "executed after cancel"), (TaskState.SUPPRESSED, "executed after it was suppressed")],
)
def test_a_late_success_of_an_ended_task_is_remarked(bench, state, remark):
    """A cancelled or suppressed task stays so and says, once, that it was executed all the same."""
    old = bring_to(bench, state)
    before = bench.ledger.queries.task("tk_1").reason
    for _ in range(2):
        assert bench.ledger.tasks.settle(old, bench.delivered("x-late"), bench.at(70)) is False
    task = bench.ledger.queries.task("tk_1")
    assert (state, f"{remark}; {before}", "x-late") == (task.state, task.reason, task.external_id)


def test_a_late_success_gives_a_hand_settled_task_its_id(bench):
    """A person said delivered without knowing the id; the late answer brings it."""
    old = bring_to(bench, TaskState.DELIVERED)
    assert bench.ledger.tasks.settle(old, bench.delivered("x-late"), bench.at(70)) is True
    assert (TaskState.DELIVERED, "x-late") == (bench.state(), bench.ledger.queries.task("tk_1").external_id)


def test_settling_twice_is_harmless(bench):
    """A caller that does not know whether its settlement stands may repeat it."""
    claim = bench.claimed()
    assert bench.ledger.tasks.settle(claim, bench.delivered("x-1"), bench.at(2)) is True
    assert bench.ledger.tasks.settle(claim, bench.delivered("x-1"), bench.at(3)) is True
    assert TaskState.DELIVERED == bench.state()


def test_several_settlements_in_one_transaction(bench):
    """Many outcomes are taken at once, each by its own claim."""
    bench.planned(bench.task("tk_1"), bench.task("tk_2"), bench.task("tk_3"))
    claims = [bench.claim(f"tk_{number}") for number in (1, 2, 3)]
    bench.ledger.tasks.give_back(claims[1], bench.now)
    outcomes = [bench.delivered("a"), bench.busy(), bench.ended(TaskState.DEAD)]
    assert [True, False, True] == bench.ledger.tasks.settle_many(list(zip(claims, outcomes, strict=True)), bench.at(1))
    states = [bench.state(f"tk_{number}") for number in (1, 2, 3)]
    assert [TaskState.DELIVERED, TaskState.WAITING, TaskState.DEAD] == states
    assert [] == bench.ledger.tasks.settle_many([], bench.now)


def test_hostile_answers_are_stored(bench):
    """Whatever a provider answers can be kept."""
    odd = "\x00\ud800" + "x" * 100_000
    claim = bench.claimed()
    assert bench.ledger.tasks.settle(claim, bench.delivered(odd, reason=odd), bench.now)
    assert bench.ledger.tasks.settle(claim, bench.delivered(odd, reason=odd), bench.now) is True
    assert TaskState.DELIVERED == bench.state()


def test_a_dead_workers_tasks_become_unknown(bench):
    """What a dead worker held may have been sent: unknown at once, with the way on, and its attempts are closed."""
    bench.planned(bench.task("tk_1"), bench.task("tk_2"), bench.task("tk_3"), bench.task("tk_4"))
    for number, owner in [(1, "host:7:a"), (2, "host:7:b"), (3, "host:77"), (4, "HOST:7:a")]:
        bench.claim(f"tk_{number}", owner=owner)
    assert {"tk_1", "tk_2"} == set(bench.ledger.tasks.release("host:7:", bench.at(5)))
    task = bench.ledger.queries.task("tk_1")
    expected = (
        "the worker ended while the request may have been on its way; it is looked up at its provider before anything is "
        "sent again, and where that cannot tell a person decides: leadwire settle tk_1 --delivered|--not-delivered"
    )
    assert (TaskState.UNKNOWN, expected, None) == (task.state, task.reason, task.lease_until_at)
    assert (bench.at(5), Verdict.UNKNOWN) == (last_attempt(bench).ended_at, last_attempt(bench).verdict)
    assert [TaskState.SENDING] * 2 == [bench.state("tk_3"), bench.state("tk_4")]
    assert [] == bench.ledger.tasks.release("host:7:", bench.at(6))


def test_ended_leases_become_unknown(bench):
    """A lease ends at its moment, not before; then the task is unknown with the way on."""
    bench.claimed()
    assert [] == bench.ledger.tasks.expire_leases(bench.at(59.9))
    assert ["tk_1"] == bench.ledger.tasks.expire_leases(bench.at(60))
    assert TaskState.UNKNOWN == bench.state()
    assert "leadwire settle tk_1 --delivered|--not-delivered" in bench.ledger.queries.task("tk_1").reason
    assert Verdict.UNKNOWN == last_attempt(bench).verdict
    assert [] == bench.ledger.tasks.expire_leases(bench.at(61))


def test_an_answer_can_pause_the_provider(bench):
    """The pause is there with the outcome that asked for it, and holds the provider's other tasks."""
    bench.planned(bench.task("tk_1"), bench.task("tk_2"))
    pausing = bench.busy(bench.at(300), counted=False, pause_until_at=bench.at(300), pause_reason="401: bad key")
    bench.ledger.tasks.settle(bench.claim(), pausing, bench.now)
    (state,) = bench.ledger.limits.states()
    assert (ProviderName.VAMBE, bench.at(300), "401: bad key", False) == (
        state.name,
        state.paused_until_at,
        state.reason,
        state.held,
    )
    bench.ledger.tasks.claim(["tk_2"], bench.at(1), bench.lease, "w")
    assert TaskState.WAITING == bench.state("tk_2")


def test_a_delivery_lifts_an_answers_pause(bench):
    """A success shows that the provider works: the pause ends and what waited for its end is due now."""
    bench.planned(*(bench.task(f"tk_{number}") for number in range(1, 5)), bench.task("tk_later", due_at=bench.at(500)))
    under_way = bench.claim("tk_2")
    pausing = bench.busy(bench.at(300), counted=False, pause_until_at=bench.at(300))
    bench.ledger.tasks.settle(bench.claim("tk_1"), pausing, bench.now)
    bench.ledger.tasks.claim(["tk_3"], bench.at(1), bench.lease, "w")
    bench.ledger.tasks.settle(under_way, bench.delivered(), bench.at(2))
    assert [None] == [state.paused_until_at for state in bench.ledger.limits.states()]
    assert [bench.at(2)] * 2 == [bench.ledger.queries.task(task_id).due_at for task_id in ("tk_1", "tk_3")]
    assert bench.at(500) == bench.ledger.queries.task("tk_later").due_at
    assert "tk_4" == bench.claim("tk_4", now=bench.at(2)).task.id


def test_an_ordered_pause_outlives_deliveries(bench):
    """A pause that a person ordered is neither lifted by a success nor replaced by an answer's, until resumed."""
    bench.planned(bench.task("tk_1"), bench.task("tk_2"), bench.task("tk_3"))
    first, second = bench.claim("tk_1"), bench.claim("tk_2")
    bench.ledger.limits.pause(ProviderName.VAMBE, bench.at(900), "holiday", bench.now)
    bench.ledger.tasks.settle(first, bench.delivered(), bench.at(1))
    bench.ledger.tasks.settle(second, bench.busy(pause_until_at=bench.at(5), counted=False), bench.at(1))
    bench.ledger.tasks.claim(["tk_3"], bench.at(2), bench.lease, "w")
    assert ("holiday", bench.at(900), True) == (
        bench.ledger.limits.states()[0].reason,
        bench.ledger.queries.task("tk_3").due_at,
        bench.ledger.limits.states()[0].held,
    )
    bench.ledger.limits.resume(ProviderName.VAMBE, bench.at(3))
    assert "tk_3" == bench.claim("tk_3", now=bench.at(3)).task.id
    bench.ledger.limits.resume(ProviderName.MINDHUNTERS, bench.at(3))


def test_a_pause_that_is_over_holds_nothing(bench):
    """After its moment a pause is history, also an ordered one: an answer may pause anew."""
    bench.planned(bench.task("tk_1"), bench.task("tk_2"))
    bench.ledger.limits.pause(ProviderName.VAMBE, bench.at(5), "holiday", bench.now)
    pausing = bench.busy(pause_until_at=bench.at(50), pause_reason="401", counted=False)
    bench.ledger.tasks.settle(bench.claim("tk_1", now=bench.at(6)), pausing, bench.at(7))
    (state,) = bench.ledger.limits.states()
    assert (bench.at(50), "401", False) == (state.paused_until_at, state.reason, state.held)

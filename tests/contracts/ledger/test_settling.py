from __future__ import annotations

import pytest

from rules.vocabulary import ProviderName, TaskState, Verdict


def last_attempt(desk):
    """Return the newest attempt of task tk_1."""
    return desk.ledger.queries.attempts("tk_1")[-1]


def bring_to(desk, state):
    """Leave task tk_1 in a state while an old claim of it is still out; returns that claim."""
    old = desk.claimed(expires_at=desk.at(3000))
    desk.ledger.tasks.expire_leases(desk.at(60))
    if state == TaskState.UNKNOWN:
        return old
    if state == TaskState.SUPPRESSED:
        desk.ledger.admin.settle("tk_1", False, None, desk.at(61))
        desk.ledger.tasks.claim(["tk_1"], desk.at(3000), desk.lease, "w-3")
        return old
    if state == TaskState.DELIVERED:
        desk.ledger.admin.settle("tk_1", True, None, desk.at(61))
        return old
    desk.ledger.admin.settle("tk_1", False, None, desk.at(61))
    if state == TaskState.QUEUED:
        desk.ledger.tasks.dispatch_due(desk.at(61), desk.lease, {ProviderName.VAMBE: 9})
    if state in {TaskState.SENDING, TaskState.DEAD, TaskState.CANCELLED}:
        newer = desk.claim(now=desk.at(62))
        if state != TaskState.SENDING:
            desk.ledger.tasks.settle(newer, desk.ended(state), desk.at(63))
    assert state == desk.state()
    return old


def test_a_delivery_ends_the_task(desk):
    """A delivered attempt closes its row and the task, with the provider's id."""
    claim = desk.claimed()
    assert desk.ledger.tasks.settle(claim, desk.delivered("x-9"), desk.at(2)) is True
    task, attempt = desk.ledger.queries.task("tk_1"), last_attempt(desk)
    assert (TaskState.DELIVERED, "x-9", None, None, None) == (
        task.state,
        task.external_id,
        task.reason,
        task.lease_until_at,
        task.owner,
    )
    assert (desk.at(2), Verdict.DELIVERED, 201, None, "x-9", False) == (
        attempt.ended_at,
        attempt.verdict,
        attempt.status,
        attempt.error,
        attempt.external_id,
        attempt.deferred,
    )


def test_a_busy_answer_makes_the_task_wait(desk):
    """A retry's moment, its reason and the attempt's outcome are kept together."""
    claim = desk.claimed()
    assert desk.ledger.tasks.settle(claim, desk.busy(desk.at(3600)), desk.at(2))
    task, attempt = desk.ledger.queries.task("tk_1"), last_attempt(desk)
    assert (TaskState.WAITING, desk.at(3600), "503: try later", 1) == (
        task.state,
        task.due_at,
        task.reason,
        task.attempts,
    )
    assert (Verdict.BUSY, 503, "503: try later") == (attempt.verdict, attempt.status, attempt.error)


def test_no_new_moment_keeps_the_old_one(desk):
    """A settlement without a moment leaves the task's as it was."""
    desk.ledger.tasks.settle(desk.claimed(), desk.ended(TaskState.DEAD), desk.at(2))
    assert (TaskState.DEAD, desk.now) == (desk.state(), desk.ledger.queries.task("tk_1").due_at)


def test_an_uncounted_attempt_is_given_back(desk):
    """A deferral costs no attempt; it stays in the history as deferred, and the task's time runs from its first request."""
    claim = desk.claimed()
    assert desk.ledger.tasks.settle(claim, desk.busy(desk.at(10), counted=False), desk.at(2))
    assert (0, desk.now) == (
        desk.ledger.queries.task("tk_1").attempts,
        desk.ledger.queries.task("tk_1").first_attempt_at,
    )
    assert (True, Verdict.BUSY) == (last_attempt(desk).deferred, last_attempt(desk).verdict)
    again = desk.claim(now=desk.at(10))
    assert (1, 2, desk.now) == (again.attempt, again.epoch, again.first_attempt_at)


def test_a_later_uncounted_attempt_keeps_the_first_ones_moment(desk):
    """The time of the first try that counted stays."""
    desk.ledger.tasks.settle(desk.claimed(), desk.busy(desk.at(10)), desk.at(1))
    desk.ledger.tasks.settle(desk.claim(now=desk.at(10)), desk.busy(desk.at(20), counted=False), desk.at(11))
    assert (1, desk.now) == (
        desk.ledger.queries.task("tk_1").attempts,
        desk.ledger.queries.task("tk_1").first_attempt_at,
    )


def test_a_claim_given_back_never_happened(desk):
    """A request that never began costs no attempt, and the task is due at once."""
    claim = desk.claimed()
    assert desk.ledger.tasks.give_back(claim, desk.at(11)) is True
    task = desk.ledger.queries.task("tk_1")
    assert (TaskState.WAITING, desk.at(11), 0, None) == (task.state, task.due_at, task.attempts, task.owner)
    assert (True, None) == (last_attempt(desk).deferred, last_attempt(desk).verdict)
    assert desk.ledger.tasks.give_back(claim, desk.at(12)) is False
    assert 1 == desk.claim(now=desk.at(12)).attempt


def test_an_old_claim_cannot_be_given_back(desk):
    """Once somebody has decided upon the task, giving its old claim back changes nothing."""
    claim = bring_to(desk, TaskState.UNKNOWN)
    desk.ledger.admin.settle("tk_1", True, "x-9", desk.at(65))
    assert desk.ledger.tasks.give_back(claim, desk.at(70)) is False
    assert TaskState.DELIVERED == desk.state()


def test_giving_back_late_ends_the_doubt(desk):
    """Whoever held the claim knows that nothing was sent: the task is not unknown any more."""
    claim = bring_to(desk, TaskState.UNKNOWN)
    assert desk.ledger.tasks.give_back(claim, desk.at(70))
    assert TaskState.WAITING == desk.state()


def test_a_late_outcome_ends_the_doubt_of_its_own_claim(desk):
    """A task that became unknown when its lease ran out is not unknown any more once its own attempt's answer is there."""
    claim = bring_to(desk, TaskState.UNKNOWN)
    assert desk.ledger.tasks.settle(claim, desk.busy(desk.at(90)), desk.at(70))
    assert (TaskState.WAITING, desk.at(90)) == (desk.state(), desk.ledger.queries.task("tk_1").due_at)


def test_a_late_failure_goes_to_the_attempt_only(desk):
    """An outcome under a claim that somebody has decided upon since does not move the task; the attempt's row tells it."""
    claim = bring_to(desk, TaskState.UNKNOWN)
    desk.ledger.admin.settle("tk_1", False, None, desk.at(65))
    assert desk.ledger.tasks.settle(claim, desk.busy(), desk.at(70)) is False
    assert (TaskState.WAITING, desk.at(65)) == (desk.state(), desk.ledger.queries.task("tk_1").due_at)
    assert (Verdict.BUSY, 503, desk.at(70)) == (
        last_attempt(desk).verdict,
        last_attempt(desk).status,
        last_attempt(desk).ended_at,
    )


@pytest.mark.parametrize(
    "state",
    [TaskState.UNKNOWN, TaskState.WAITING, TaskState.QUEUED, TaskState.DEAD, TaskState.SENDING],
)
def test_a_late_success_ends_the_task(desk, state):
    """The task was executed, so it is delivered, whatever has been decided meanwhile; nobody sends it again."""
    old = bring_to(desk, state)
    assert desk.ledger.tasks.settle(old, desk.delivered("x-late"), desk.at(70)) is True
    task = desk.ledger.queries.task("tk_1")
    assert (TaskState.DELIVERED, "x-late", None) == (task.state, task.external_id, task.owner)
    assert Verdict.DELIVERED == desk.ledger.queries.attempts("tk_1")[0].verdict


def test_a_late_success_of_a_planned_task(desk):
    """A task that was planned anew is delivered by a late success too."""
    old = bring_to(desk, TaskState.WAITING)
    assert desk.ledger.tasks.settle(old, desk.delivered("x-late"), desk.at(70))
    assert [] == desk.ledger.tasks.dispatch_due(desk.at(9999), desk.lease, {ProviderName.VAMBE: 9})


def test_after_a_late_success_the_newer_attempt_cannot_undo_it(desk):
    """The attempt that was under way when the late success came leaves the task delivered."""
    old = bring_to(desk, TaskState.WAITING)
    newer = desk.claim(now=desk.at(62))
    desk.ledger.tasks.settle(old, desk.delivered("x-late"), desk.at(70))
    assert desk.ledger.tasks.settle(newer, desk.busy(), desk.at(71)) is False
    assert TaskState.DELIVERED == desk.state()
    assert [Verdict.DELIVERED, Verdict.BUSY] == [row.verdict for row in desk.ledger.queries.attempts("tk_1")]


@pytest.mark.parametrize(
    ("state", "remark"),
    [(TaskState.CANCELLED, "executed after cancel"), (TaskState.SUPPRESSED, "executed after it was suppressed")],
)
def test_a_late_success_of_an_ended_task_is_remarked(desk, state, remark):
    """A cancelled or suppressed task stays so and says, once, that it was executed all the same."""
    old = bring_to(desk, state)
    before = desk.ledger.queries.task("tk_1").reason
    for _ in range(2):
        assert desk.ledger.tasks.settle(old, desk.delivered("x-late"), desk.at(70)) is False
    task = desk.ledger.queries.task("tk_1")
    assert (state, f"{remark}; {before}", "x-late") == (task.state, task.reason, task.external_id)


def test_a_late_success_gives_a_hand_settled_task_its_id(desk):
    """A person said delivered without knowing the id; the late answer brings it."""
    old = bring_to(desk, TaskState.DELIVERED)
    assert desk.ledger.tasks.settle(old, desk.delivered("x-late"), desk.at(70)) is True
    assert (TaskState.DELIVERED, "x-late") == (desk.state(), desk.ledger.queries.task("tk_1").external_id)


def test_settling_twice_is_harmless(desk):
    """A caller that does not know whether its settlement stands may repeat it."""
    claim = desk.claimed()
    assert desk.ledger.tasks.settle(claim, desk.delivered("x-1"), desk.at(2)) is True
    assert desk.ledger.tasks.settle(claim, desk.delivered("x-1"), desk.at(3)) is True
    assert TaskState.DELIVERED == desk.state()


def test_several_settlements_in_one_transaction(desk):
    """Many outcomes are taken at once, each by its own claim."""
    desk.planned(desk.task("tk_1"), desk.task("tk_2"), desk.task("tk_3"))
    claims = [desk.claim(f"tk_{number}") for number in (1, 2, 3)]
    desk.ledger.tasks.give_back(claims[1], desk.now)
    outcomes = [desk.delivered("a"), desk.busy(), desk.ended(TaskState.DEAD)]
    assert [True, False, True] == desk.ledger.tasks.settle_many(list(zip(claims, outcomes, strict=True)), desk.at(1))
    states = [desk.state(f"tk_{number}") for number in (1, 2, 3)]
    assert [TaskState.DELIVERED, TaskState.WAITING, TaskState.DEAD] == states
    assert [] == desk.ledger.tasks.settle_many([], desk.now)


def test_hostile_answers_are_stored(desk):
    """Whatever a provider answers can be kept."""
    odd = "\x00\ud800" + "x" * 100_000
    claim = desk.claimed()
    assert desk.ledger.tasks.settle(claim, desk.delivered(odd, reason=odd), desk.now)
    assert desk.ledger.tasks.settle(claim, desk.delivered(odd, reason=odd), desk.now) is True
    assert TaskState.DELIVERED == desk.state()


def test_a_dead_workers_tasks_become_unknown(desk):
    """What a dead worker held may have been sent: unknown at once, with the way on, and its attempts are closed."""
    desk.planned(desk.task("tk_1"), desk.task("tk_2"), desk.task("tk_3"), desk.task("tk_4"))
    for number, owner in [(1, "host:7:a"), (2, "host:7:b"), (3, "host:77"), (4, "HOST:7:a")]:
        desk.claim(f"tk_{number}", owner=owner)
    assert {"tk_1", "tk_2"} == set(desk.ledger.tasks.release("host:7:", desk.at(5)))
    task = desk.ledger.queries.task("tk_1")
    expected = (
        "the worker ended while the request may have been on its way; it is looked up at its provider before anything is "
        "sent again, and where that cannot tell a person decides: leadwire settle tk_1 --delivered|--not-delivered"
    )
    assert (TaskState.UNKNOWN, expected, None) == (task.state, task.reason, task.lease_until_at)
    assert (desk.at(5), Verdict.UNKNOWN) == (last_attempt(desk).ended_at, last_attempt(desk).verdict)
    assert [TaskState.SENDING] * 2 == [desk.state("tk_3"), desk.state("tk_4")]
    assert [] == desk.ledger.tasks.release("host:7:", desk.at(6))


def test_ended_leases_become_unknown(desk):
    """A lease ends at its moment, not before; then the task is unknown with the way on."""
    desk.claimed()
    assert [] == desk.ledger.tasks.expire_leases(desk.at(59.9))
    assert ["tk_1"] == desk.ledger.tasks.expire_leases(desk.at(60))
    assert TaskState.UNKNOWN == desk.state()
    assert "leadwire settle tk_1 --delivered|--not-delivered" in desk.ledger.queries.task("tk_1").reason
    assert Verdict.UNKNOWN == last_attempt(desk).verdict
    assert [] == desk.ledger.tasks.expire_leases(desk.at(61))


def test_an_answer_can_pause_the_provider(desk):
    """The pause is there with the outcome that asked for it, and holds the provider's other tasks."""
    desk.planned(desk.task("tk_1"), desk.task("tk_2"))
    pausing = desk.busy(desk.at(300), counted=False, pause_until_at=desk.at(300), pause_reason="401: bad key")
    desk.ledger.tasks.settle(desk.claim(), pausing, desk.now)
    (state,) = desk.ledger.limits.states()
    assert (ProviderName.VAMBE, desk.at(300), "401: bad key", False) == (
        state.name,
        state.paused_until_at,
        state.reason,
        state.held,
    )
    desk.ledger.tasks.claim(["tk_2"], desk.at(1), desk.lease, "w")
    assert TaskState.WAITING == desk.state("tk_2")


def test_a_delivery_lifts_an_answers_pause(desk):
    """A success shows that the provider works: the pause ends and what waited for its end is due now."""
    desk.planned(*(desk.task(f"tk_{number}") for number in range(1, 5)), desk.task("tk_later", due_at=desk.at(500)))
    under_way = desk.claim("tk_2")
    pausing = desk.busy(desk.at(300), counted=False, pause_until_at=desk.at(300))
    desk.ledger.tasks.settle(desk.claim("tk_1"), pausing, desk.now)
    desk.ledger.tasks.claim(["tk_3"], desk.at(1), desk.lease, "w")
    desk.ledger.tasks.settle(under_way, desk.delivered(), desk.at(2))
    assert [None] == [state.paused_until_at for state in desk.ledger.limits.states()]
    assert [desk.at(2)] * 2 == [desk.ledger.queries.task(task_id).due_at for task_id in ("tk_1", "tk_3")]
    assert desk.at(500) == desk.ledger.queries.task("tk_later").due_at
    assert "tk_4" == desk.claim("tk_4", now=desk.at(2)).task.id


def test_an_ordered_pause_outlives_deliveries(desk):
    """A pause that a person ordered is neither lifted by a success nor replaced by an answer's, until resumed."""
    desk.planned(desk.task("tk_1"), desk.task("tk_2"), desk.task("tk_3"))
    first, second = desk.claim("tk_1"), desk.claim("tk_2")
    desk.ledger.limits.pause(ProviderName.VAMBE, desk.at(900), "holiday", desk.now)
    desk.ledger.tasks.settle(first, desk.delivered(), desk.at(1))
    desk.ledger.tasks.settle(second, desk.busy(pause_until_at=desk.at(5), counted=False), desk.at(1))
    desk.ledger.tasks.claim(["tk_3"], desk.at(2), desk.lease, "w")
    assert ("holiday", desk.at(900), True) == (
        desk.ledger.limits.states()[0].reason,
        desk.ledger.queries.task("tk_3").due_at,
        desk.ledger.limits.states()[0].held,
    )
    desk.ledger.limits.resume(ProviderName.VAMBE, desk.at(3))
    assert "tk_3" == desk.claim("tk_3", now=desk.at(3)).task.id
    desk.ledger.limits.resume(ProviderName.MINDHUNTERS, desk.at(3))


def test_a_pause_that_is_over_holds_nothing(desk):
    """After its moment a pause is history, also an ordered one: an answer may pause anew."""
    desk.planned(desk.task("tk_1"), desk.task("tk_2"))
    desk.ledger.limits.pause(ProviderName.VAMBE, desk.at(5), "holiday", desk.now)
    pausing = desk.busy(pause_until_at=desk.at(50), pause_reason="401", counted=False)
    desk.ledger.tasks.settle(desk.claim("tk_1", now=desk.at(6)), pausing, desk.at(7))
    (state,) = desk.ledger.limits.states()
    assert (desk.at(50), "401", False) == (state.paused_until_at, state.reason, state.held)

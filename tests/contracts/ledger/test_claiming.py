from __future__ import annotations

import subprocess
import sys
from collections import Counter
from datetime import timedelta

from rules.vocabulary import ProviderName, TaskState, Verdict
from worker.ledger import Claim, NotClaimed

GRACE = timedelta(seconds=10)
BOTH = {ProviderName.VAMBE: 100, ProviderName.MINDHUNTERS: 100}


def refused(desk, id="tk_1", now=None):  # noqa: A002 - the field's name
    """Why a task is not claimed."""
    (answer,) = desk.ledger.tasks.claim([id], now or desk.now, desk.lease, "w-2")
    assert isinstance(answer, NotClaimed), answer
    return answer


def test_a_claim_is_on_disk_before_it_is_given(desk):
    """A claimed task is sending under a lease and a new epoch, and its attempt has begun."""
    claim = desk.claimed(now=desk.at(5))
    task = desk.ledger.queries.task("tk_1")
    assert task == claim.task
    assert (TaskState.SENDING, 1, 1, "w-1") == (task.state, task.epoch, task.attempts, task.owner)
    assert (1, 1, desk.at(5), desk.at(5), desk.at(65)) == (
        claim.epoch,
        claim.attempt,
        claim.first_attempt_at,
        claim.claimed_at,
        claim.lease_until_at,
    )
    (attempt,) = desk.ledger.queries.attempts("tk_1")
    assert (1, 1, desk.at(5), None, None, False) == (
        attempt.epoch,
        attempt.number,
        attempt.started_at,
        attempt.ended_at,
        attempt.verdict,
        attempt.deferred,
    )


def test_a_task_is_claimed_once(desk):
    """Whoever comes second is told why not; so is one who asks for the same task twice at once."""
    desk.planned(desk.task("tk_1"), desk.task("tk_2"))
    first, second = desk.ledger.tasks.claim(["tk_1", "tk_1"], desk.now, desk.lease, "w-1")
    assert isinstance(first, Claim)
    assert isinstance(second, NotClaimed)
    answer = refused(desk)
    assert TaskState.SENDING == answer.state
    assert "being sent" in answer.why
    assert 1 == len(desk.ledger.queries.attempts("tk_1"))


def test_every_id_is_answered_in_order(desk):
    """One call claims many tasks and answers each id in its place."""
    desk.planned(*(desk.task(f"tk_{number}") for number in range(5)))
    ids = ["tk_3", "tk_x", "tk_0", "tk_4"]
    answers = desk.ledger.tasks.claim(ids, desk.now, desk.lease, "w-1")
    assert [True, False, True, True] == [isinstance(answer, Claim) for answer in answers]
    assert ids == [answer.task.id if isinstance(answer, Claim) else answer.task_id for answer in answers]
    assert answers[1].state is None
    assert [] == desk.ledger.tasks.claim([], desk.now, desk.lease, "w-1")


def test_planned_queued_and_waiting_tasks_can_be_claimed_when_due(desk):
    """The state matters less than the moment."""
    desk.planned(desk.task("tk_planned", due_at=desk.at(10)), desk.task("tk_queued"), desk.task("tk_waiting"))
    desk.ledger.tasks.settle(desk.claim("tk_waiting"), desk.busy(desk.at(10)), desk.now)
    for task_id in ("tk_planned", "tk_queued", "tk_waiting"):
        assert task_id == desk.claim(task_id, now=desk.at(10)).task.id


def test_a_task_that_is_not_due_is_refused_with_its_moment(desk):
    """Too early: nothing changes, and the answer says when."""
    desk.planned(desk.task(due_at=desk.at(10)))
    answer = refused(desk, now=desk.at(9))
    assert (TaskState.PLANNED, desk.at(10)) == (answer.state, answer.due_at)
    assert [] == desk.ledger.queries.attempts("tk_1")


def test_ended_tasks_are_refused(desk):
    """What is delivered, dead or unknown is not sent."""
    desk.planned(*(desk.task(f"tk_{state}") for state in ("delivered", "dead", "unknown")))
    desk.ledger.tasks.settle(desk.claim("tk_delivered"), desk.delivered(), desk.now)
    desk.ledger.tasks.settle(desk.claim("tk_dead"), desk.ended(TaskState.DEAD), desk.now)
    desk.ledger.tasks.settle(desk.claim("tk_unknown"), desk.ended(TaskState.UNKNOWN, Verdict.UNKNOWN), desk.now)
    for state in ("delivered", "dead", "unknown"):
        assert TaskState(state) == refused(desk, f"tk_{state}", desk.at(9999)).state


def test_a_task_past_its_end_is_suppressed(desk):
    """Too late to be made: the task ends with the reason, at the very moment, and costs no attempt."""
    desk.planned(desk.task(expires_at=desk.at(60)))
    answer = refused(desk, now=desk.at(60))
    assert (TaskState.SUPPRESSED, "too late: expired at 2026-03-02T12:01:00.123Z") == (answer.state, answer.why)
    task = desk.ledger.queries.task("tk_1")
    assert (TaskState.SUPPRESSED, answer.why, 0) == (task.state, task.reason, task.attempts)
    assert [] == desk.ledger.queries.attempts("tk_1")


def test_a_task_before_its_end_is_claimed(desk):
    """The end itself is the first moment that is too late."""
    desk.planned(desk.task(expires_at=desk.at(60)))
    assert isinstance(desk.claim(now=desk.at(59.999999)), Claim)


def test_a_paused_provider_holds_its_tasks(desk):
    """A task of a paused provider waits until the pause ends, with the reason, and loses no attempt."""
    desk.planned(desk.task("tk_1"), desk.task("tk_2", provider=ProviderName.MINDHUNTERS))
    desk.ledger.limits.pause(ProviderName.VAMBE, desk.at(300), "401: bad key", desk.now)
    answer = refused(desk)
    assert (TaskState.WAITING, desk.at(300)) == (answer.state, answer.due_at)
    task = desk.ledger.queries.task("tk_1")
    assert (TaskState.WAITING, desk.at(300), 0) == (task.state, task.due_at, task.attempts)
    assert "401: bad key" in task.reason
    assert [] == desk.ledger.queries.attempts("tk_1")
    assert isinstance(desk.claim("tk_2"), Claim)
    assert isinstance(desk.claim("tk_1", now=desk.at(300)), Claim)


def test_attempts_and_epochs_count_on(desk):
    """Each claim is a new epoch and attempt; the first attempt's moment stays."""
    desk.ledger.tasks.settle(desk.claimed(), desk.busy(desk.at(10)), desk.at(1))
    second = desk.claim(now=desk.at(10))
    assert (2, 2, desk.now) == (second.epoch, second.attempt, second.first_attempt_at)
    assert [(1, 1), (2, 2)] == [(row.epoch, row.number) for row in desk.ledger.queries.attempts("tk_1")]


def test_due_tasks_are_queued_once_oldest_first(desk):
    """Tasks that have become due are returned, oldest due first, once per grace."""
    desk.planned(*(desk.task(f"tk_{number}", due_at=desk.at(number)) for number in (30, 10, 20, 99)))
    assert [] == desk.ledger.tasks.dispatch_due(desk.at(9), GRACE, BOTH)
    assert ["tk_10", "tk_20", "tk_30"] == [ref.id for ref in desk.ledger.tasks.dispatch_due(desk.at(30), GRACE, BOTH)]
    task = desk.ledger.queries.task("tk_10")
    assert (TaskState.QUEUED, desk.at(30)) == (task.state, task.dispatched_at)
    assert [] == desk.ledger.tasks.dispatch_due(desk.at(39), GRACE, BOTH)
    assert 3 == len(desk.ledger.tasks.dispatch_due(desk.at(40), GRACE, BOTH))


def test_waiting_tasks_become_due(desk):
    """A retry is dispatched at its moment, with the attempts and epoch that it has come to."""
    desk.ledger.tasks.settle(desk.claimed(), desk.busy(desk.at(10)), desk.now)
    assert [] == desk.ledger.tasks.dispatch_due(desk.at(9), GRACE, BOTH)
    (ref,) = desk.ledger.tasks.dispatch_due(desk.at(10), GRACE, BOTH)
    assert ("tk_1", 1, 1) == (ref.id, ref.attempts, ref.epoch)


def test_due_tasks_are_bounded_for_each_provider(desk):
    """Each provider has a bound of its own; one without a bound, or with 0, gets nothing."""
    desk.planned(
        *(desk.task(f"tk_v{number}", due_at=desk.at(number)) for number in range(1, 4)),
        *(desk.task(f"tk_m{n}", due_at=desk.at(n), provider=ProviderName.MINDHUNTERS) for n in range(1, 4)),
    )
    asked = {ProviderName.VAMBE: 2, ProviderName.MINDHUNTERS: 0}
    assert ["tk_v1", "tk_v2"] == [ref.id for ref in desk.ledger.tasks.dispatch_due(desk.at(10), GRACE, asked)]
    asked = {ProviderName.MINDHUNTERS: 5}
    assert ["tk_m1", "tk_m2", "tk_m3"] == [ref.id for ref in desk.ledger.tasks.dispatch_due(desk.at(10), GRACE, asked)]


def test_what_was_claimed_is_not_dispatched(desk):
    """A task that is being sent stays out of the sweep."""
    desk.claimed()
    assert [] == desk.ledger.tasks.dispatch_due(desk.at(1000), GRACE, BOTH)


def test_the_oldest_open_work_is_known(desk):
    """The moment since when work is due moves on as work is taken up, and is absent when nothing is open."""
    assert desk.ledger.queries.oldest_due() is None
    desk.record(desk.incoming(), received_at=desk.at(1))
    assert desk.at(1) == desk.ledger.queries.oldest_due()
    tasks = (desk.task("tk_now", due_at=desk.at(2)), desk.task("tk_later", due_at=desk.at(9)))
    desk.ledger.tasks.insert([desk.plan(*tasks)], desk.at(3))
    assert desk.at(2) == desk.ledger.queries.oldest_due()
    claim = desk.claim("tk_now", now=desk.at(3))
    assert desk.at(9) == desk.ledger.queries.oldest_due()
    desk.ledger.tasks.settle(claim, desk.busy(desk.at(5)), desk.at(3))
    assert desk.at(5) == desk.ledger.queries.oldest_due()


CLAIMER = """
import sys
from datetime import datetime, timedelta
from worker.ledger import Claim, open_ledger
ledger = open_ledger(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
ids = [f"tk_{number}" for number in range(200)]
for start in range(0, 200, 5):
    answers = ledger.tasks.claim(ids[start:start + 5], datetime.fromisoformat(sys.argv[2]), timedelta(seconds=60), sys.argv[3])
    for answer in answers:
        if isinstance(answer, Claim):
            print(answer.task.id)
ledger.close()
"""


def test_two_processes_claim_each_task_once(desk):
    """Two processes that want the same 200 tasks get each of them once between them."""
    desk.planned(*(desk.task(f"tk_{number}") for number in range(200)))
    claimers = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIMER, desk.url, desk.now.isoformat(), f"w-{number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    for claimer in claimers:
        assert "ready\n" == claimer.stdout.readline()
    for claimer in claimers:
        claimer.stdin.write("go\n")
        claimer.stdin.flush()
    claimed = [claimer.communicate(timeout=30)[0].split() for claimer in claimers]
    assert [0, 0] == [claimer.returncode for claimer in claimers]
    assert Counter({f"tk_{number}": 1 for number in range(200)}) == Counter(claimed[0] + claimed[1])
    for number in range(2):
        assert {f"w-{number}"} >= {desk.ledger.queries.task(task_id).owner for task_id in claimed[number]}


def test_after_a_pause_one_task_probes_for_all(desk):
    """When an answer's pause is over one claim goes through; the others wait until the provider has answered to the point."""
    desk.planned(*(desk.task(f"tk_{number}") for number in range(4)))
    paused = desk.busy(
        desk.at(60), verdict=Verdict.PAUSE, counted=False, pause_until_at=desk.at(60), pause_reason="401"
    )
    desk.ledger.tasks.settle(desk.claim("tk_0"), paused, desk.now)
    probe, *others = desk.ledger.tasks.claim(["tk_0", "tk_1", "tk_2", "tk_3"], desk.at(60), desk.lease, "w")
    assert isinstance(probe, Claim)
    assert [desk.at(120)] * 3 == [other.due_at for other in others]
    desk.ledger.tasks.settle(probe, desk.ended(TaskState.DEAD), desk.at(61))
    assert [desk.at(61)] * 3 == [desk.ledger.queries.task(f"tk_{number}").due_at for number in (1, 2, 3)]


def test_a_start_lifts_the_pauses_of_answers(desk):
    """A mended credential counts at once: a start ends what an answer paused, and leaves what a person paused."""
    desk.planned(desk.task("tk_0"), desk.task("tk_1"))
    paused = desk.busy(
        desk.at(60), verdict=Verdict.PAUSE, counted=False, pause_until_at=desk.at(60), pause_reason="401"
    )
    desk.ledger.tasks.settle(desk.claim("tk_0"), paused, desk.now)
    desk.ledger.limits.resume_rejected(desk.at(5))
    assert desk.at(5) == desk.claim("tk_0", now=desk.at(5)).claimed_at
    desk.ledger.limits.pause(ProviderName.VAMBE, desk.at(99), "audit", desk.at(6))
    desk.ledger.limits.resume_rejected(desk.at(7))
    (held,) = desk.ledger.tasks.claim(["tk_1"], desk.at(8), desk.lease, "w")
    assert desk.at(99) == held.due_at


def test_what_is_said_of_a_paused_provider_quotes_nobody(desk):
    """The reason of a pause may hold a person's data: it is in the ledger, and not in what a message's outcome says."""
    desk.planned(desk.task("tk_0"), desk.task("tk_1"))
    paused = desk.busy(
        desk.at(60), verdict=Verdict.PAUSE, counted=False, pause_until_at=desk.at(60), pause_reason="Ana"
    )
    desk.ledger.tasks.settle(desk.claim("tk_0"), paused, desk.now)
    (other,) = desk.ledger.tasks.claim(["tk_1"], desk.at(1), desk.lease, "w")
    assert "Ana" not in other.why
    assert "Ana" in desk.ledger.queries.task("tk_1").reason


def test_queued_tasks_can_be_put_back(desk):
    """A task nobody has a thread for waits again, due as it was; one that is being sent stays so."""
    desk.planned(desk.task("tk_1"), desk.task("tk_2"))
    desk.claim("tk_2")
    desk.ledger.tasks.put_back(["tk_1", "tk_2"], desk.at(5))
    assert [TaskState.WAITING, TaskState.SENDING] == [desk.state("tk_1"), desk.state("tk_2")]
    assert desk.now == desk.ledger.queries.task("tk_1").due_at

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from datetime import timedelta

from rules.vocabulary import ProviderName, TaskState, Verdict
from worker.ledger import Claim, NotClaimed

GRACE = timedelta(seconds=10)
BOTH = {ProviderName.VAMBE: 100, ProviderName.MINDHUNTERS: 100}


def refused(bench, id="tk_1", now=None):  # noqa: A002 - the field's name
    """Why a task is not claimed."""
    (answer,) = bench.ledger.tasks.claim([id], now or bench.now, bench.lease, "w-2")
    assert isinstance(answer, NotClaimed), answer
    return answer


def test_a_claim_is_on_disk_before_it_is_given(bench):
    """A claimed task is sending under a lease and a new epoch, and its attempt has begun."""
    claim = bench.claimed(now=bench.at(5))
    task = bench.ledger.queries.task("tk_1")
    assert task == claim.task
    assert (TaskState.SENDING, 1, 1, "w-1") == (task.state, task.epoch, task.attempts, task.owner)
    assert (1, 1, bench.at(5), bench.at(5), bench.at(65)) == (
        claim.epoch,
        claim.attempt,
        claim.first_attempt_at,
        claim.claimed_at,
        claim.lease_until_at,
    )
    (attempt,) = bench.ledger.queries.attempts("tk_1")
    assert (1, 1, bench.at(5), None, None, False) == (
        attempt.epoch,
        attempt.number,
        attempt.started_at,
        attempt.ended_at,
        attempt.verdict,
        attempt.deferred,
    )


def test_a_task_is_claimed_once(bench):
    """Whoever comes second is told why not; so is one who asks for the same task twice at once."""
    bench.planned(bench.task("tk_1"), bench.task("tk_2"))
    first, second = bench.ledger.tasks.claim(["tk_1", "tk_1"], bench.now, bench.lease, "w-1")
    assert isinstance(first, Claim)
    assert isinstance(second, NotClaimed)
    answer = refused(bench)
    assert TaskState.SENDING == answer.state
    assert "being sent" in answer.why
    assert 1 == len(bench.ledger.queries.attempts("tk_1"))


def test_every_id_is_answered_in_order(bench):
    """One call claims many tasks and answers each id in its place."""
    bench.planned(*(bench.task(f"tk_{number}") for number in range(5)))
    ids = ["tk_3", "tk_x", "tk_0", "tk_4"]
    answers = bench.ledger.tasks.claim(ids, bench.now, bench.lease, "w-1")
    assert [True, False, True, True] == [isinstance(answer, Claim) for answer in answers]
    assert ids == [answer.task.id if isinstance(answer, Claim) else answer.task_id for answer in answers]
    assert answers[1].state is None
    assert [] == bench.ledger.tasks.claim([], bench.now, bench.lease, "w-1")


def test_planned_queued_and_waiting_tasks_can_be_claimed_when_due(bench):
    """The state matters less than the moment."""
    bench.planned(bench.task("tk_planned", due_at=bench.at(10)), bench.task("tk_queued"), bench.task("tk_waiting"))
    bench.ledger.tasks.settle(bench.claim("tk_waiting"), bench.busy(bench.at(10)), bench.now)
    for task_id in ("tk_planned", "tk_queued", "tk_waiting"):
        assert task_id == bench.claim(task_id, now=bench.at(10)).task.id


def test_a_task_that_is_not_due_is_refused_with_its_moment(bench):
    """Too early: nothing changes, and the answer says when."""
    bench.planned(bench.task(due_at=bench.at(10)))
    answer = refused(bench, now=bench.at(9))
    assert (TaskState.PLANNED, bench.at(10)) == (answer.state, answer.due_at)
    assert [] == bench.ledger.queries.attempts("tk_1")


def test_ended_tasks_are_refused(bench):
    """What is delivered, dead or unknown is not sent."""
    bench.planned(*(bench.task(f"tk_{state}") for state in ("delivered", "dead", "unknown")))
    bench.ledger.tasks.settle(bench.claim("tk_delivered"), bench.delivered(), bench.now)
    bench.ledger.tasks.settle(bench.claim("tk_dead"), bench.ended(TaskState.DEAD), bench.now)
    bench.ledger.tasks.settle(bench.claim("tk_unknown"), bench.ended(TaskState.UNKNOWN, Verdict.UNKNOWN), bench.now)
    for state in ("delivered", "dead", "unknown"):
        assert TaskState(state) == refused(bench, f"tk_{state}", bench.at(9999)).state


def test_a_task_past_its_end_is_suppressed(bench):
    """Too late to be made: the task ends with the reason, at the very moment, and costs no attempt."""
    bench.planned(bench.task(expires_at=bench.at(60)))
    answer = refused(bench, now=bench.at(60))
    assert (TaskState.SUPPRESSED, "too late: expired at 2026-03-02T12:01:00.123Z") == (answer.state, answer.why)
    task = bench.ledger.queries.task("tk_1")
    assert (TaskState.SUPPRESSED, answer.why, 0) == (task.state, task.reason, task.attempts)
    assert [] == bench.ledger.queries.attempts("tk_1")


def test_a_task_before_its_end_is_claimed(bench):
    """The end itself is the first moment that is too late."""
    bench.planned(bench.task(expires_at=bench.at(60)))
    assert isinstance(bench.claim(now=bench.at(59.999999)), Claim)


def test_a_paused_provider_holds_its_tasks(bench):
    """A task of a paused provider waits until the pause ends, with the reason, and loses no attempt."""
    bench.planned(bench.task("tk_1"), bench.task("tk_2", provider=ProviderName.MINDHUNTERS))
    bench.ledger.limits.pause(ProviderName.VAMBE, bench.at(300), "401: bad key", bench.now)
    answer = refused(bench)
    assert (TaskState.WAITING, bench.at(300)) == (answer.state, answer.due_at)
    task = bench.ledger.queries.task("tk_1")
    assert (TaskState.WAITING, bench.at(300), 0) == (task.state, task.due_at, task.attempts)
    assert "401: bad key" in task.reason
    assert [] == bench.ledger.queries.attempts("tk_1")
    assert isinstance(bench.claim("tk_2"), Claim)
    assert isinstance(bench.claim("tk_1", now=bench.at(300)), Claim)


def test_attempts_and_epochs_count_on(bench):
    """Each claim is a new epoch and attempt; the first attempt's moment stays."""
    bench.ledger.tasks.settle(bench.claimed(), bench.busy(bench.at(10)), bench.at(1))
    second = bench.claim(now=bench.at(10))
    assert (2, 2, bench.now) == (second.epoch, second.attempt, second.first_attempt_at)
    assert [(1, 1), (2, 2)] == [(row.epoch, row.number) for row in bench.ledger.queries.attempts("tk_1")]


def test_due_tasks_are_queued_once_oldest_first(bench):
    """Tasks that have become due are returned, oldest due first, once per grace."""
    bench.planned(*(bench.task(f"tk_{number}", due_at=bench.at(number)) for number in (30, 10, 20, 99)))
    assert [] == bench.ledger.tasks.dispatch_due(bench.at(9), GRACE, BOTH)
    assert ["tk_10", "tk_20", "tk_30"] == [ref.id for ref in bench.ledger.tasks.dispatch_due(bench.at(30), GRACE, BOTH)]
    task = bench.ledger.queries.task("tk_10")
    assert (TaskState.QUEUED, bench.at(30)) == (task.state, task.dispatched_at)
    assert [] == bench.ledger.tasks.dispatch_due(bench.at(39), GRACE, BOTH)
    assert 3 == len(bench.ledger.tasks.dispatch_due(bench.at(40), GRACE, BOTH))


def test_waiting_tasks_become_due(bench):
    """A retry is dispatched at its moment, with the attempts and epoch that it has come to."""
    bench.ledger.tasks.settle(bench.claimed(), bench.busy(bench.at(10)), bench.now)
    assert [] == bench.ledger.tasks.dispatch_due(bench.at(9), GRACE, BOTH)
    (ref,) = bench.ledger.tasks.dispatch_due(bench.at(10), GRACE, BOTH)
    assert ("tk_1", 1, 1) == (ref.id, ref.attempts, ref.epoch)


def test_due_tasks_are_bounded_for_each_provider(bench):
    """Each provider has a bound of its own; one without a bound, or with 0, gets nothing."""
    bench.planned(
        *(bench.task(f"tk_v{number}", due_at=bench.at(number)) for number in range(1, 4)),
        *(bench.task(f"tk_m{n}", due_at=bench.at(n), provider=ProviderName.MINDHUNTERS) for n in range(1, 4)),
    )
    asked = {ProviderName.VAMBE: 2, ProviderName.MINDHUNTERS: 0}
    assert ["tk_v1", "tk_v2"] == [ref.id for ref in bench.ledger.tasks.dispatch_due(bench.at(10), GRACE, asked)]
    asked = {ProviderName.MINDHUNTERS: 5}
    assert ["tk_m1", "tk_m2", "tk_m3"] == [
        ref.id for ref in bench.ledger.tasks.dispatch_due(bench.at(10), GRACE, asked)
    ]


def test_what_was_claimed_is_not_dispatched(bench):
    """A task that is being sent stays out of the sweep."""
    bench.claimed()
    assert [] == bench.ledger.tasks.dispatch_due(bench.at(1000), GRACE, BOTH)


def test_the_oldest_open_work_is_known(bench):
    """The moment since when work is due moves on as work is taken up, and is absent when nothing is open."""
    assert bench.ledger.queries.oldest_due() is None
    bench.record(bench.incoming(), received_at=bench.at(1))
    assert bench.at(1) == bench.ledger.queries.oldest_due()
    tasks = (bench.task("tk_now", due_at=bench.at(2)), bench.task("tk_later", due_at=bench.at(9)))
    bench.ledger.tasks.insert([bench.plan(*tasks)], bench.at(3))
    assert bench.at(2) == bench.ledger.queries.oldest_due()
    claim = bench.claim("tk_now", now=bench.at(3))
    assert bench.at(9) == bench.ledger.queries.oldest_due()
    bench.ledger.tasks.settle(claim, bench.busy(bench.at(5)), bench.at(3))
    assert bench.at(5) == bench.ledger.queries.oldest_due()


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


def test_two_processes_claim_each_task_once(bench):
    """Two processes that want the same 200 tasks get each of them once between them."""
    bench.planned(*(bench.task(f"tk_{number}") for number in range(200)))
    claimers = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIMER, bench.url, bench.now.isoformat(), f"w-{number}"],
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
        assert {f"w-{number}"} >= {bench.ledger.queries.task(task_id).owner for task_id in claimed[number]}


def test_after_a_pause_one_task_probes_for_all(bench):
    """When an answer's pause is over one claim goes through; the others wait until the provider has answered to the point."""
    bench.planned(*(bench.task(f"tk_{number}") for number in range(4)))
    paused = bench.busy(
        bench.at(60), verdict=Verdict.PAUSE, counted=False, pause_until_at=bench.at(60), pause_reason="401"
    )
    bench.ledger.tasks.settle(bench.claim("tk_0"), paused, bench.now)
    probe, *others = bench.ledger.tasks.claim(["tk_0", "tk_1", "tk_2", "tk_3"], bench.at(60), bench.lease, "w")
    assert isinstance(probe, Claim)
    assert [bench.at(120)] * 3 == [other.due_at for other in others]
    bench.ledger.tasks.settle(probe, bench.ended(TaskState.DEAD), bench.at(61))
    assert [bench.at(61)] * 3 == [bench.ledger.queries.task(f"tk_{number}").due_at for number in (1, 2, 3)]


def test_a_start_lifts_the_pauses_of_answers(bench):
    """A mended credential counts at once: a start ends what an answer paused, and leaves what a person paused."""
    bench.planned(bench.task("tk_0"), bench.task("tk_1"))
    paused = bench.busy(
        bench.at(60), verdict=Verdict.PAUSE, counted=False, pause_until_at=bench.at(60), pause_reason="401"
    )
    bench.ledger.tasks.settle(bench.claim("tk_0"), paused, bench.now)
    bench.ledger.limits.resume_rejected(bench.at(5))
    assert bench.at(5) == bench.claim("tk_0", now=bench.at(5)).claimed_at
    bench.ledger.limits.pause(ProviderName.VAMBE, bench.at(99), "audit", bench.at(6))
    bench.ledger.limits.resume_rejected(bench.at(7))
    (held,) = bench.ledger.tasks.claim(["tk_1"], bench.at(8), bench.lease, "w")
    assert bench.at(99) == held.due_at


def test_what_is_said_of_a_paused_provider_quotes_nobody(bench):
    """The reason of a pause may hold a person's data: it is in the ledger, and not in what a message's outcome says."""
    bench.planned(bench.task("tk_0"), bench.task("tk_1"))
    paused = bench.busy(
        bench.at(60), verdict=Verdict.PAUSE, counted=False, pause_until_at=bench.at(60), pause_reason="Ana"
    )
    bench.ledger.tasks.settle(bench.claim("tk_0"), paused, bench.now)
    (other,) = bench.ledger.tasks.claim(["tk_1"], bench.at(1), bench.lease, "w")
    assert "Ana" not in other.why
    assert "Ana" in bench.ledger.queries.task("tk_1").reason


def test_queued_tasks_can_be_put_back(bench):
    """A task nobody has a thread for waits again, due as it was; one that is being sent stays so."""
    bench.planned(bench.task("tk_1"), bench.task("tk_2"))
    bench.claim("tk_2")
    bench.ledger.tasks.put_back(["tk_1", "tk_2"], bench.at(5))
    assert [TaskState.WAITING, TaskState.SENDING] == [bench.state("tk_1"), bench.state("tk_2")]
    assert bench.now == bench.ledger.queries.task("tk_1").due_at

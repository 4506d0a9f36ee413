"""Answers and messages that come late, twice or from another time: one effect, and the ledger keeps the truth."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from rules.vocabulary import TaskState


def until(condition, seconds=10.0):
    """Wait until the condition gives something true, and return it."""
    give_up_at = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < give_up_at:
        time.sleep(0.02)
    return found


@pytest.mark.parametrize("ahead_seconds", [61, 7200], ids=["its lease has ended", "another clock is two hours ahead"])
def test_a_worker_that_was_held_up_is_fenced_and_its_late_success_counts(workshop, ahead_seconds):
    """Taken for dead in a call: nobody sends it meanwhile, and the late answer ends the doubt (experiments 5, 14)."""
    (task_id,) = workshop.task()
    workshop.sandbox.script([{"provider": "vambe", "answer": {"delay_seconds": 0.8}}])
    held_up = workshop.begin([task_id])
    assert until(lambda: workshop.sandbox.tasks("vambe"))
    other = workshop.worker("worker-2")
    assert [task_id] == other.ledger.tasks.expire_leases(datetime.now(UTC) + timedelta(seconds=ahead_seconds))
    assert TaskState.UNKNOWN is workshop.state(task_id)
    workshop.deliver([task_id], other)
    assert TaskState.UNKNOWN is workshop.state(task_id)
    held_up.join()
    assert TaskState.DELIVERED is workshop.state(task_id)
    assert 1 == len(workshop.sandbox.tasks("vambe"))


def test_a_late_failure_leaves_the_doubt(workshop):
    """A hang-up after the lease has ended: the task stays unknown, nothing was sent a second time (experiments 5, 15)."""
    (task_id,) = workshop.task()
    workshop.sandbox.script([{"provider": "vambe", "answer": {"hang_up": "after", "delay_seconds": 0.6}}])
    held_up = workshop.begin([task_id])
    assert until(lambda: workshop.sandbox.tasks("vambe"))
    workshop.ledger.tasks.expire_leases(datetime.now(UTC) + timedelta(seconds=61))
    held_up.join()
    assert TaskState.UNKNOWN is workshop.state(task_id)
    assert 1 == len(workshop.sandbox.tasks("vambe"))


def test_a_clock_two_hours_behind_takes_nothing_twice(workshop):
    """A worker whose clock is behind finds nothing due, and gives up nobody's lease (experiment 14)."""
    (task_id,) = workshop.task()
    behind = datetime.now(UTC) - timedelta(hours=2)
    (answer,) = workshop.ledger.tasks.claim([task_id], behind, timedelta(seconds=60), "behind")
    assert TaskState.QUEUED is answer.state or TaskState.WAITING is answer.state
    assert [] == workshop.ledger.tasks.expire_leases(behind)
    workshop.deliver([task_id])
    assert TaskState.DELIVERED is workshop.state(task_id)
    assert 1 == len(workshop.sandbox.tasks("vambe"))


def test_a_hundred_messages_for_each_task_make_one_effect_each(workshop):
    """Messages that come a hundred times, from two workers at once, and again when all is over, send once (experiment 18)."""
    workers = (workshop.context, workshop.worker("worker-2"))
    ids = [task_id for _ in range(4) for task_id in workshop.task()]
    messages = [(ids[n % 4 :] + ids[: n % 4], workers[n % 2]) for n in range(100)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda message: workshop.deliver(*message), messages))
    assert until(lambda: {TaskState.DELIVERED} == {workshop.state(task_id) for task_id in ids})
    for task_ids, worker in messages[:8]:
        workshop.deliver(task_ids, worker)
    assert 4 == len(workshop.sandbox.tasks("vambe"))


def test_a_message_for_nobody_is_answered_and_over(workshop):
    """A message with an id that is not in the ledger sends nothing and is no error, alone or among others (experiment 18)."""
    (task_id,) = workshop.task()
    (alone,) = workshop.deliver(["tk_of_another_ledger"])
    assert (None, 0) == (alone.state, len(workshop.sandbox.tasks("vambe")))
    workshop.deliver(["tk_of_another_ledger", task_id])
    assert TaskState.DELIVERED is workshop.state(task_id)

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from rules.vocabulary import TaskState, Verdict
from tests.faults.simulation.actors import on_one_core
from tests.faults.simulation.storage import Storage
from tests.faults.simulation.world import World
from tests.standins import Instead
from worker.delivery import LEASE, DeliveryOutcome, deliver
from worker.ledger import Claim, Settlement
from worker.planning import process_events
from worker.publisher import SINGLE_DELIVERY_LIMIT

ROOT = Path(__file__).parents[3]
#: So many in the suite; the long form is `python -m tests.faults.simulation --seeds 0:20000`.
SEEDS = int(os.environ.get("SEEDS", "200"))
#: Among so many a broken worker is found out.
ENOUGH = 60


@pytest.fixture(scope="module")
def storage():
    """A ledger for one run after the other."""
    storage = Storage()
    with on_one_core():
        yield storage
    storage.close()


@pytest.fixture(scope="module")
def runs(storage):
    """What became of many seeds: by seed, what does not hold and what was seen."""
    worlds = ((seed, World(seed, storage)) for seed in range(SEEDS))
    return {seed: (world.run(), world.record) for seed, world in worlds}


def test_nothing_is_lost_or_repeated_whatever_happens(runs):
    """Of hundreds of seeds each comes to rest with every event decided, every task ended, and nothing made twice."""
    assert {} == {seed: said for seed, (said, _) in runs.items() if said}


def test_the_seeds_meet_what_they_are_for(runs):
    """Among the seeds are doubts, refusals, calls that nobody lived to settle, and outcomes that come after the lease."""
    states = {task["state"] for _, record in runs.values() for task in record.tasks}
    kinds = {step.kind for _, record in runs.values() for step in record.steps}
    assert {TaskState.DELIVERED, TaskState.UNKNOWN, TaskState.DEAD} <= states
    assert {"claimed", "began", "ended", "settled"} <= kinds
    assert any(_settles_too_late(record.steps) for _, record in runs.values())


def test_the_seeds_claim_tasks_as_they_plan_them(runs):
    """In some seeds tasks are claimed in the transaction that plans them, in some of these too few or none could be."""
    numbers = [record.at_once for _, record in runs.values()]
    assert sum(number > 0 for number in numbers) >= SEEDS // 10
    assert max(numbers) > SINGLE_DELIVERY_LIMIT // 2
    assert 0 in numbers


def _settles_too_late(steps):
    """Whether an outcome came when its claim's lease had ended."""
    claimed = {(step.task, step.epoch): step.at for step in steps if step.kind == "claimed"}
    return any(
        step.at - claimed.get((step.task, step.epoch), step.at) > LEASE.total_seconds()
        for step in steps
        if step.kind == "settled"
    )


def test_a_seed_is_the_same_run_each_time():
    """In two processes that hash differently a seed leaves the same trace, byte for byte."""
    command = [sys.executable, "-m", "tests.faults.simulation", "--seed", "11", "--trace"]
    traces = [
        subprocess.run(
            command, cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": hash_seed}, capture_output=True, check=False
        )
        for hash_seed in ("1", "2")
    ]
    assert [(0, b""), (0, b"")] == [(trace.returncode, trace.stderr) for trace in traces]
    assert traces[0].stdout == traces[1].stdout
    assert len(traces[0].stdout.splitlines()) > 50


def is_found_out(storage, *wanted, **broken):
    """Whether the checker says all this of a broken worker, over the seeds it is given."""
    left = set(wanted)
    for seed in range(ENOUGH):
        left -= {said.partition(":")[0] for said in World(seed, storage, **broken).run()}
        if not left:
            return True
    return False


def test_a_worker_that_sends_before_it_claims_is_found_out(storage):
    """Sending first and claiming after is caught: a request without a claim, and tasks that are made twice."""

    def sends_first(context, provider, task_ids, tell):
        client = context.clients[provider]
        for task_id in task_ids:
            task = context.ledger.queries.task(task_id)
            if task is not None and task.state is TaskState.QUEUED:
                request = client.provider.build_request(task, context.clock.now())
                client.transport.send(request)
        return deliver(context, provider, task_ids, tell)

    assert is_found_out(storage, "sent", "twice", deliver=sends_first)


def test_a_worker_that_trusts_silence_is_found_out(storage):
    """Taking an attempt without an answer for one that was not executed is caught: tasks are made twice."""

    def trusts(context, provider, task_ids, tell):
        return deliver(replace(context, ledger=trusting(context.ledger)), provider, task_ids, tell)

    assert is_found_out(storage, "twice", deliver=trusts)


def trusting(ledger):
    """A ledger in which nothing becomes unknown: what got no answer is due again."""

    def settle_many(settled, now, *more):
        again = Settlement(verdict=Verdict.BUSY, state=TaskState.WAITING, due_at=now, reason="no answer")
        sure = [(claim, again if each.state is TaskState.UNKNOWN else each) for claim, each in settled]
        return ledger.tasks.settle_many(sure, now, *more)

    return Instead(ledger, tasks=Instead(ledger.tasks, settle_many=settle_many))


def test_a_worker_that_only_says_it_sent_is_found_out(storage):
    """Settling as delivered what never left is caught."""

    def pretends(context, _provider, task_ids, _tell):
        now = context.clock.now()
        claims = context.ledger.tasks.claim(task_ids, now, LEASE, context.owner)
        for claim in claims:
            if isinstance(claim, Claim):
                done = Settlement(verdict="delivered", state=TaskState.DELIVERED, external_id="x", status=201)
                context.ledger.tasks.settle_many([(claim, done)], now)
        return [DeliveryOutcome(task_id=task_id, state=None, words="") for task_id in task_ids]

    assert is_found_out(storage, "false", deliver=pretends)


# The same faults in what a worker does with the events that it plans.


def test_a_worker_that_trusts_silence_as_it_plans_is_found_out(storage):
    """Taking an attempt for one that was not executed is caught too where the task was claimed with its plan."""

    def trusts(context, event_ids, tell, ended):
        return process_events(replace(context, ledger=trusting(context.ledger)), event_ids, tell, ended)

    assert is_found_out(storage, "twice", process=trusts)


def processing_with(act):
    """Return a worker's way with events in which `act` stands in place of `tasks.insert_and_claim`."""

    def process(context, event_ids, tell, ended):
        ledger = context.ledger
        other = Instead(ledger, tasks=Instead(ledger.tasks, insert_and_claim=partial(act, ledger)))
        return process_events(replace(context, ledger=other), event_ids, tell, ended)

    return process


def test_a_worker_that_only_says_it_sent_as_it_plans_is_found_out(storage):
    """Settling as delivered what was claimed with its plan and never left is caught."""

    def pretends(ledger, plans, now, terms):
        due, answers = ledger.tasks.insert_and_claim(plans, now, terms)
        done = Settlement(verdict=Verdict.DELIVERED, state=TaskState.DELIVERED, external_id="x", status=201)
        ledger.tasks.settle_many([(answer, done) for answer in answers if isinstance(answer, Claim)], now)
        return due, []

    assert is_found_out(storage, "false", process=processing_with(pretends))


def test_a_worker_that_sends_what_it_only_planned_is_found_out(storage):
    """Making an attempt at a task that was recorded without a claim is caught: its message makes another one."""

    def sends(ledger, plans, now, terms):
        due = ledger.tasks.insert(plans, now)
        found = [ledger.queries.task(ref.id) for ref in due if ref.type is terms.type]
        ends = {"first_attempt_at": now, "claimed_at": now, "lease_until_at": now + LEASE}
        return due, [Claim(task=task, epoch=1, attempt=1, **ends) for task in found]

    assert is_found_out(storage, "sent", "twice", process=processing_with(sends))


def test_a_worker_that_forgets_what_it_planned_is_found_out(storage):
    """Keeping neither plans nor tasks is caught, though nothing is made twice."""

    def forgets(ledger, plans, now, _terms):
        ledger.tasks.insert([replace(plan, tasks=()) for plan in plans], now)
        return (), []

    assert is_found_out(storage, "lost", process=processing_with(forgets))

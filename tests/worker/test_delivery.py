"""Delivering to the sandbox under limits, with a ledger on disk and requests on the wire."""

import logging
import threading
import time
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import pytest

from rules.vocabulary import (
    Event,
    EventState,
    LedgerError,
    LedgerInDoubtError,
    Plan,
    ProviderName,
    Task,
    TaskState,
    TaskType,
)
from worker.background import Sweeper
from worker.broker import EVENTS_QUEUE, QUEUE_OF
from worker.clock import Clock, utc_now
from worker.context import CONCURRENT_REQUESTS, QUICK_SECONDS, WorkerContext, limits_of
from worker.context import _client as client_of
from worker.delivery import deliver
from worker.ledger import Delivery, IncomingEvent, Limits, migrate, open_ledger
from worker.ledger.database import sqlite_module
from worker.ledger.writer import WriterFileLock
from worker.planning import InlineDelivery
from worker.publisher import DEPTH_LIMIT
from worker.sandbox import VAMBE_API_KEY, Sandbox
from worker.settings import Settings

VAMBE = ProviderName.VAMBE
PERSON = "a3f1c9d2-7b64-4e1a-9c55-0d2e8f4b6a17"


class Bench:
    """A worker's services without a broker: one provider, the sandbox's."""

    def __init__(self, folder, wait_seconds=10, **limits):
        self.url = f"sqlite:///{folder / 'ledger.sqlite3'}"
        migrate(self.url)
        self.ledger = open_ledger(self.url, wait=timedelta(seconds=wait_seconds))
        self.sandbox = Sandbox()
        self.sandbox.start()
        settings = Settings.from_environment({"LEADWIRE_HOME": str(folder), "LEADWIRE_VAMBE_API_KEY": VAMBE_API_KEY})
        self.slept = threading.Event()
        self.context = WorkerContext(
            settings=settings,
            ledger=self.ledger,
            publisher=None,
            rule_set=None,
            clients={VAMBE: client_of(VAMBE, self.sandbox.vambe_url, settings.vambe_api_key, threads=8)},
            owner="w-1",
            limits={VAMBE: Limits(**limits)} if limits else {},
            clock=Clock(sleep=lambda seconds: self.slept.set()),
        )

    def plan(self, number):
        """Plan so many tasks of one event, due now; return their ids."""
        plan = self.decided(number)
        self.ledger.tasks.insert([plan], utc_now())
        return [task.id for task in plan.tasks]

    def decided(self, number):
        """Record an event, and return a plan of it that is not recorded, with so many tasks that are due now."""
        now = utc_now()
        event = Event(id="ev_1", source="crm", type="lead.created", occurred_at=now, received_at=now, data={})
        delivery = Delivery(id="dl_1", source="crm", received_at=now, headers={}, body=b"{}", content_hash="h")
        self.ledger.inbox.record(delivery, [IncomingEvent(event=event, dedupe_key="k", content_hash="h")])
        tasks = tuple(
            Task(
                id=f"tk_{place:03}",
                key=f"{place:064x}",
                event_id="ev_1",
                rule="r",
                name=f"n{place}",
                type=TaskType.TEAM_TASK,
                provider=VAMBE,
                due_at=now,
                fields={"title": f"Touch {place}", "responsible_ids": [PERSON]},
                rule_set="rs_1",
            )
            for place in range(number)
        )
        return Plan(event_id="ev_1", rule_set="rs_1", state=EventState.PROCESSED, decisions=(), tasks=tasks)

    def deliver_planned(self, plan, **changes):
        """Record a plan and deliver of it what can be; return what was dispatched besides, and the outcomes, if any."""
        sent = []
        context = replace(self.context, publisher=SimpleNamespace(tasks=sent.extend), **changes)
        with InlineDelivery(context) as first:
            first.record([plan])
            batch = first.send(lambda _type, _outcomes: None)
        return [ref.id for ref in sent], batch and batch.outcomes

    def states(self):
        """Return how many tasks are in each state."""
        return dict(self.ledger.queries.counts().tasks)

    def close(self):
        """Give everything back."""
        for client in self.context.clients.values():
            client.pool.shutdown()
            client.transport.close()
        self.sandbox.stop()
        self.ledger.close()


@pytest.fixture
def bench(tmp_path):
    """Give what makes a bench with these limits."""
    made = []

    def make(**limits):
        made.append(Bench(tmp_path, **limits))
        return made[-1]

    yield make
    for each in made:
        each.close()


def quiet(outcomes):
    """Show nothing."""


def test_a_long_message_is_worked_through_in_slices(bench):
    """With three requests at once all of a message's tasks are sent, none is deferred, each at its first try."""
    line = bench(concurrency=3)
    ids = line.plan(14)
    done = deliver(line.context, VAMBE, ids, quiet)
    assert {TaskState.DELIVERED: 14} == line.states()
    assert [TaskState.DELIVERED] * 14 == [outcome.state for outcome in done]
    assert {(1, 1)} == {(task.attempts, task.epoch) for task in line.ledger.queries.list_tasks()}


def test_what_finds_no_room_is_put_back_together(bench):
    """While all requests that may be are on their way, the rest of a message goes back untouched, due as it was."""
    line = bench(concurrency=2)
    ids = line.plan(12)
    line.ledger.tasks.claim(ids[:2], utc_now(), timedelta(seconds=60), "other")
    before = {task.id: task.due_at for task in line.ledger.queries.list_tasks()}
    words = [outcome.words for outcome in deliver(line.context, VAMBE, ids[2:], quiet)]
    assert (2, 8) == (sum("on their way" in each for each in words), sum("put back" in each for each in words))
    assert before.items() >= {task_id: line.ledger.queries.task(task_id).due_at for task_id in ids[4:]}.items()
    assert {TaskState.SENDING: 2, TaskState.WAITING: 10} == line.states()
    assert line.context.clients[VAMBE].batch_size.full_until_seconds > 0


def test_a_busy_ledger_makes_no_slices_smaller(bench, tmp_path):
    """How many are claimed at once follows the provider's answers, whatever the wait for the ledger."""
    line = bench()
    ids = line.plan(CONCURRENT_REQUESTS)
    held = threading.Event()

    def hold():
        lock = WriterFileLock(tmp_path / "ledger.sqlite3-turn")
        with lock.held():
            held.set()
            time.sleep(QUICK_SECONDS + 0.2)
        lock.close()

    other = threading.Thread(target=hold)
    other.start()
    held.wait()
    deliver(line.context, VAMBE, ids, quiet)
    other.join()
    assert {TaskState.DELIVERED: CONCURRENT_REQUESTS} == line.states()
    assert line.context.clients[VAMBE].batch_size.size == 2 * CONCURRENT_REQUESTS


def test_what_cannot_be_read_keeps_nobody_from_being_sent(bench, tmp_path):
    """A task that a newer version wrote is given back for a minute; its neighbours are sent."""
    line = bench()
    ids = line.plan(3)
    with closing(sqlite_module().connect(tmp_path / "ledger.sqlite3", isolation_level=None)) as other:
        other.execute("UPDATE tasks SET contact = '{\"of_the_future\": 1}' WHERE id = ?", [ids[1]])
        told = deliver(line.context, VAMBE, ids, quiet)
        other.execute("UPDATE tasks SET contact = '{}' WHERE id = ?", [ids[1]])
    assert ["this version cannot read"] == [outcome.words[14:38] for outcome in told if outcome.task_id == ids[1]]
    assert {TaskState.DELIVERED: 2, TaskState.WAITING: 1} == line.states()
    left = line.ledger.queries.task(ids[1])
    assert (0, None) == (left.attempts, left.first_attempt_at)
    assert left.due_at > utc_now() + timedelta(seconds=50)


def test_claims_that_grew_too_old_make_slices_small(bench):
    """Where the claim took so long that nothing may begin, fewer are claimed next, whatever was quick before."""
    line = bench()
    ids = line.plan(4)
    batch_size = line.context.clients[VAMBE].batch_size
    batch_size.size = 64
    leap = iter([0.0, 0.0])
    late = replace(line.context, clock=replace(line.context.clock, awake_seconds=lambda: next(leap, 11.0)))
    deliver(late, VAMBE, ids, quiet)
    assert {TaskState.WAITING: 4} == line.states()
    assert batch_size.size == CONCURRENT_REQUESTS


def test_a_sweep_says_when_it_left_tasks_for_want_of_room(bench):
    """What many put back at once need not wait for a period after every queue full."""
    line = bench()
    due = line.plan(DEPTH_LIMIT + 50)
    line.ledger.tasks.put_back(due, utc_now())
    sent = []
    clients = dict.fromkeys(ProviderName, line.context.clients[VAMBE])
    context = replace(
        line.context,
        clients=clients,
        publisher=SimpleNamespace(tasks=sent.extend, events=lambda _: None, is_failing=False),
    )
    sweep = Sweeper(context, SimpleNamespace(read=lambda: {EVENTS_QUEUE: 0, **dict.fromkeys(QUEUE_OF.values(), 0)}))
    assert [True, False] == [sweep.once(), sweep.once()]
    assert sorted(due) == sorted(task.id for task in sent)


def test_the_rate_gives_the_rest_of_a_message_its_places(bench):
    """What the burst lets begin is sent, all others learn their own moment at once."""
    line = bench(rate_per_second=1, burst=3)
    deliver(line.context, VAMBE, line.plan(10), quiet)
    assert {TaskState.DELIVERED: 3, TaskState.WAITING: 7} == line.states()
    moments = sorted(task.due_at for task in line.ledger.queries.list_tasks(state=TaskState.WAITING))
    assert [timedelta(seconds=1)] * 6 == [later - sooner for sooner, later in pairwise(moments)]


def test_too_many_requests_are_told_of_once(bench, caplog):
    """A provider that answers 429 to all is left alone after the first slice: one error, no attempt lost."""
    line = bench()
    always = {"status": 429, "headers": {"Retry-After": "30"}}
    line.sandbox.script([{"provider": "vambe", "times": None, "answer": always}])
    with caplog.at_level(logging.ERROR):
        deliver(line.context, VAMBE, line.plan(20), quiet)
    assert 1 == sum("vambe is left alone until" in record.message for record in caplog.records)
    assert {TaskState.WAITING: 20} == line.states()
    assert {0} == {task.attempts for task in line.ledger.queries.list_tasks()}
    assert 8 == len(line.sandbox.state()["requests"])


def in_doubt(line, act):
    """Do what writes once, whose commit comes after its patience, and stands."""
    held, asked = threading.Event(), threading.Event()

    def first(_):
        held.set()
        asked.wait(5)

    def last(_):  # in the claim's own transaction, which stands only after it
        line.slept.wait(5)

    def write(work):
        line.ledger._writer.write(work, wait=timedelta(seconds=10))

    threads = [threading.Thread(target=write, args=[first])]
    threads[0].start()
    held.wait(5)
    raised = []

    def claim():
        with pytest.raises(LedgerInDoubtError) as told:
            act()
        raised.append(told)

    threads.append(threading.Thread(target=claim))
    threads[1].start()
    while line.ledger._writer._queue.empty():
        held.wait(0.001)
    threads.append(threading.Thread(target=write, args=[last]))
    threads[2].start()
    while line.ledger._writer._queue.qsize() < 2:
        held.wait(0.001)
    asked.set()
    for thread in threads:
        thread.join(20)
    assert 1 == len(raised)


def test_a_claim_in_doubt_that_stands_is_given_back(bench):
    """The commit comes after the patience of who claimed: nothing is sent, and the task waits instead of becoming unknown."""
    line = bench(wait_seconds=0.5)
    ids = line.plan(2)
    in_doubt(line, lambda: deliver(line.context, VAMBE, ids, quiet))
    assert {TaskState.WAITING: 2} == line.states()
    assert [] == line.sandbox.tasks("vambe")
    for task_id in ids:
        assert 0 == line.ledger.queries.task(task_id).attempts
        assert [(None, True)] == [(row.verdict, row.deferred) for row in line.ledger.queries.attempts(task_id)]
    deliver(line.context, VAMBE, ids, quiet)
    assert {TaskState.DELIVERED: 2} == line.states()


def test_plans_are_recorded_and_delivered_at_once(bench):
    """As many as the pace allows are sent at their first try; the others are dispatched, and the pace grows."""
    line = bench()
    sent, done = line.deliver_planned(line.decided(CONCURRENT_REQUESTS + 5))
    assert {TaskState.DELIVERED: CONCURRENT_REQUESTS, TaskState.QUEUED: 5} == line.states()
    assert [TaskState.DELIVERED] * CONCURRENT_REQUESTS == [outcome.state for outcome in done]
    assert [f"tk_{place:03}" for place in range(CONCURRENT_REQUESTS, CONCURRENT_REQUESTS + 5)] == sent
    assert CONCURRENT_REQUESTS == len(line.sandbox.tasks("vambe"))
    assert EventState.PROCESSED is line.ledger.queries.event("ev_1").state
    assert 2 * CONCURRENT_REQUESTS == line.context.clients[VAMBE].batch_size.size
    assert 8 == line.context.clients[VAMBE].bulkhead.free


def test_plans_are_delivered_within_their_providers_limits(bench):
    """No more are claimed than may be on their way at once; what the rate keeps waits for its own moment."""
    line = bench(concurrency=3, rate_per_second=1, burst=2)
    sent, done = line.deliver_planned(line.decided(9))
    assert {TaskState.DELIVERED: 2, TaskState.WAITING: 1, TaskState.QUEUED: 6} == line.states()
    assert ["tk_003", "tk_004", "tk_005", "tk_006", "tk_007", "tk_008"] == sent
    assert {"tk_000": True, "tk_001": True, "tk_002": False} == {
        each.task_id: each.words == "delivered 201" for each in done
    }


def test_where_no_request_more_may_be_on_its_way_the_next_plans_go_the_old_way(bench):
    """What finds the provider full waits, and until that has passed no further plans are delivered at once."""
    line = bench(concurrency=1)
    line.ledger.tasks.claim(line.plan(1), utc_now(), timedelta(seconds=60), "other")
    plan = line.decided(12)
    tasks = tuple(replace(task, id=f"{task.id}b", key=f"b{task.key[1:]}", event_id="ev_2") for task in plan.tasks)
    now = utc_now()
    event = Event(id="ev_2", source="crm", type="lead.created", occurred_at=now, received_at=now, data={})
    delivery = Delivery(id="dl_2", source="crm", received_at=now, headers={}, body=b"{}", content_hash="h2")
    line.ledger.inbox.record(delivery, [IncomingEvent(event=event, dedupe_key="k2", content_hash="h2")])
    sent, done = line.deliver_planned(replace(plan, event_id="ev_2", tasks=tasks))
    assert (11, [TaskState.WAITING]) == (len(sent), [outcome.state for outcome in done])
    assert line.context.clients[VAMBE].batch_size.full_until_seconds > 0
    assert line.deliver_planned(replace(plan, event_id="ev_3"))[1] is None


@pytest.mark.parametrize("why", ["slots", "waiting", "full", "closing"])
def test_plans_go_the_usual_way_where_their_provider_has_no_thread_for_them(bench, why):
    """Nothing is claimed while its share is held or others wait for it, while it is full, or when the worker ends."""
    line, others, more = bench(), [], {}
    client = line.context.clients[VAMBE]
    if why in {"slots", "waiting"}:
        assert all(client.bulkhead.acquire(0) for _ in range(8))
    if why == "waiting":
        others.append(threading.Thread(target=lambda: client.bulkhead.acquire(10)))
        others[0].start()
        while not client.bulkhead._waiting:
            pass
    if why == "full":
        client.batch_size.note_full(line.context.clock.awake_seconds())
    if why == "closing":
        more["closing"] = threading.Event()
        more["closing"].set()
    plan = line.decided(12)
    assert ([task.id for task in plan.tasks], None) == line.deliver_planned(plan, **more)
    assert {TaskState.QUEUED: 12} == line.states()
    assert EventState.PROCESSED is line.ledger.queries.event("ev_1").state
    for _ in others:
        client.bulkhead.release()
        others[0].join(10)


def test_plans_wait_for_a_provider_that_answers_quickly(bench):
    """Where the pace has grown, a slot that comes free within a moment is worth the wait."""
    line = bench()
    client = line.context.clients[VAMBE]
    client.batch_size.size = 2 * CONCURRENT_REQUESTS
    assert all(client.bulkhead.acquire(0) for _ in range(8))
    answers = []
    plan = line.decided(12)
    waiting = threading.Thread(target=lambda: answers.append(line.deliver_planned(plan)[1]))
    waiting.start()
    while not client.bulkhead._waiting:
        pass
    client.bulkhead.release()
    waiting.join(10)
    assert [12] == [len(done) for done in answers]
    assert {TaskState.DELIVERED: 12} == line.states()


def test_plans_in_doubt_are_given_back_unsent(bench):
    """A commit of which nobody knew stands: its tasks wait, lose no attempt, and the sweep finds them."""
    line = bench(wait_seconds=0.5)
    plan = line.decided(12)
    in_doubt(line, lambda: line.deliver_planned(plan))
    assert {TaskState.WAITING: CONCURRENT_REQUESTS, TaskState.QUEUED: 12 - CONCURRENT_REQUESTS} == line.states()
    assert [] == line.sandbox.tasks("vambe")
    assert EventState.PROCESSED is line.ledger.queries.event("ev_1").state
    assert {0} == {task.attempts for task in line.ledger.queries.list_tasks()}
    assert [(None, True)] == [(row.verdict, row.deferred) for row in line.ledger.queries.attempts("tk_000")]
    assert 8 == line.context.clients[VAMBE].bulkhead.free
    deliver(line.context, VAMBE, [task.id for task in plan.tasks], quiet)
    assert {TaskState.DELIVERED: 12} == line.states()


def test_a_provider_that_asks_for_rest_gets_it_from_plans_too(bench):
    """What was claimed with its plan and met a 429 waits; the provider is left alone, and no attempt is lost."""
    line = bench()
    always = {"status": 429, "headers": {"Retry-After": "30"}}
    line.sandbox.script([{"provider": "vambe", "times": None, "answer": always}])
    line.deliver_planned(line.decided(12))
    assert {TaskState.WAITING: CONCURRENT_REQUESTS, TaskState.QUEUED: 12 - CONCURRENT_REQUESTS} == line.states()
    assert {0} == {task.attempts for task in line.ledger.queries.list_tasks()}
    assert [VAMBE] == [state.name for state in line.ledger.limits.states() if state.paused_until_at]


@pytest.mark.parametrize("at_once", [False, True])
def test_what_cannot_be_settled_stops_the_rest_which_is_given_back(bench, monkeypatch, at_once):
    """The ledger fails for the first outcomes: what had not begun waits again, and the fault is shown."""
    line = bench()
    monkeypatch.setattr("worker.delivery.GATHER_SECONDS", 0)
    settle_many = line.ledger.tasks.settle_many

    def fail(*arguments):
        line.ledger.tasks.settle_many = settle_many
        raise LedgerError("the disk is gone")

    line.sandbox.script([{"provider": "vambe", "times": None, "answer": {"delay_seconds": 0.2}}])
    line.context.clients[VAMBE].batch_size.size = 64
    plan = line.decided(40)
    line.ledger.tasks.settle_many = fail
    if at_once:
        act = partial(line.deliver_planned, plan)
    else:
        line.ledger.tasks.insert([plan], utc_now())
        act = partial(deliver, line.context, VAMBE, [task.id for task in plan.tasks], quiet)
    with pytest.raises(LedgerError, match="the disk is gone"):
        act()
    states = line.states()
    assert 40 == sum(states.values())
    assert states[TaskState.WAITING] >= 40 - 2 * CONCURRENT_REQUESTS
    assert states[TaskState.SENDING] <= CONCURRENT_REQUESTS  # whose outcome is lost: their lease ends it
    assert len(line.sandbox.tasks("vambe")) == states.get(TaskState.DELIVERED, 0) + states[TaskState.SENDING]


def test_the_settings_say_what_a_provider_gets():
    """Each provider has its own limits; the burst is what a second gives, and one at the least."""
    environment = {"LEADWIRE_VAMBE_RATE": "0.5", "LEADWIRE_VAMBE_CONCURRENCY": "0", "LEADWIRE_VAMBE_DAILY_CAP": "90"}
    assert {
        ProviderName.MINDHUNTERS: Limits(rate_per_second=20, burst=20, concurrency=8),
        VAMBE: Limits(rate_per_second=0.5, burst=1, daily_cap=90),
    } == limits_of(Settings.from_environment(environment))

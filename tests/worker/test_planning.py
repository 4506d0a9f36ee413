"""Which tasks are delivered with the message that plans them, over a real ledger and the sandbox."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from itertools import count
from types import SimpleNamespace

import pytest
from pydantic import SecretStr

from rules.loader import load
from rules.vocabulary import Contact, Event, EventState, LedgerBusyError, ProviderName, TaskState, TaskType
from tests.standins import Instead
from worker.clock import utc_now
from worker.context import CONCURRENT_REQUESTS, ROWS_PER_WRITE, WorkerContext
from worker.context import _client as client_of
from worker.ledger import Delivery, IncomingEvent, Limits, migrate, open_ledger
from worker.planning import process_events
from worker.publisher import IDS_PER_MESSAGE, SINGLE_DELIVERY_LIMIT
from worker.sandbox import MINDHUNTERS_TOKEN, VAMBE_API_KEY, Sandbox
from worker.settings import Settings

VAMBE, MINDHUNTERS = ProviderName.VAMBE, ProviderName.MINDHUNTERS
#: After so long without a decision an event is dispatched again.
TOO_LATE = timedelta(seconds=60)
RULES = """
rules:
  - id: now
    when: [deal.created, deal.won]
    then:
      - team_task: {title: "Offer {{ contact.name }}", assign: [cccccccc-cccc-4ccc-8ccc-cccccccccccc]}
  - id: later
    when: lead.updated
    then:
      - make_call: {agent: 11111111-1111-4111-8111-111111111111, title: "Ask {{ contact.name }}", at: +1h}
  - id: both
    when: [lead.created, deal.won]
    then:
      - make_call: {agent: 11111111-1111-4111-8111-111111111111, title: "Call {{ contact.name }}"}
"""


class Hall:
    """A worker's services without a broker, whose providers are the sandbox's; `sent` is what was dispatched."""

    def __init__(self, folder):
        url = f"sqlite:///{folder / 'ledger.sqlite3'}"
        migrate(url)
        self.ledger = open_ledger(url)
        self.sandbox = Sandbox().start()
        self.sent = []
        self.told = []
        self.batches = []
        self.context = WorkerContext(
            settings=Settings.from_environment({"LEADWIRE_HOME": str(folder)}),
            ledger=self.ledger,
            publisher=SimpleNamespace(tasks=lambda refs: self.sent.extend(ref.id for ref in refs)),
            rule_set=load({"a.yaml": RULES}, {}),
            clients={
                VAMBE: client_of(VAMBE, self.sandbox.vambe_url, SecretStr(VAMBE_API_KEY), threads=2),
                MINDHUNTERS: client_of(
                    MINDHUNTERS, self.sandbox.mindhunters_url, SecretStr(MINDHUNTERS_TOKEN), threads=2
                ),
            },
            owner="w-1",
        )
        for client in self.context.clients.values():
            client.batch_size.size = ROWS_PER_WRITE

    def post(self, number, type_="deal.created", first=0):
        """Record so many events; return their ids."""
        now = utc_now()
        names = [f"{place:03}" for place in range(first, first + number)]
        events = [
            Event(
                id=f"ev_{name}",
                source="crm",
                type=type_,
                occurred_at=now,
                received_at=now,
                contact=Contact(name=f"Ana {name}", phone="+56911112222"),
                data={},
            )
            for name in names
        ]
        delivery = Delivery(id=f"dl_{first}", source="crm", received_at=now, body=b"{}", content_hash=f"h{first}")
        incoming = [IncomingEvent(event=each, dedupe_key=each.id, content_hash="c") for each in events]
        return list(self.ledger.inbox.record(delivery, incoming).event_ids)

    def process(self, ids, **changes):
        """Decide these events as one message does."""
        self.batches.clear()
        return process_events(replace(self.context, **changes), ids, self._tell, self.batches.append)

    def _tell(self, type_, outcomes):
        self.told.append((type_, len(outcomes)))

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
def hall(tmp_path):
    """Give a worker that has nothing to do yet."""
    hall = Hall(tmp_path)
    yield hall
    hall.close()


@pytest.mark.parametrize("number", [1, SINGLE_DELIVERY_LIMIT])
def test_few_tasks_get_messages_of_their_own(hall, number):
    """As many as have a row each in Flower are only planned: nothing is claimed, and each is dispatched."""
    tally = hall.process(hall.post(number))
    assert {TaskState.QUEUED: number} == hall.states()
    assert number == len(hall.sent)
    assert ([], [], number) == (hall.batches, hall.told, tally.tasks)
    assert [0] == sorted({task.epoch for task in hall.ledger.queries.list_tasks()})
    assert [] == hall.sandbox.tasks("vambe")


def test_many_tasks_of_a_type_are_delivered_with_their_plans(hall):
    """Of twenty events with one task each, all tasks are made at their first try, without a message more."""
    tally = hall.process(hall.post(20))
    assert {TaskState.DELIVERED: 20} == hall.states()
    assert {(1, 1)} == {(task.attempts, task.epoch) for task in hall.ledger.queries.list_tasks()}
    assert 20 == len(hall.sandbox.tasks("vambe"))
    (batch,) = hall.batches
    assert (TaskType.TEAM_TASK, {TaskState.DELIVERED}) == (batch.type, {each.state for each in batch.outcomes})
    assert {task.id for task in hall.ledger.queries.list_tasks()} == {each.task_id for each in batch.outcomes}
    assert ([], [], 20, 20) == (hall.sent, tally.quiet, tally.planned, tally.tasks)
    assert {(TaskType.TEAM_TASK, 20)} == set(hall.told)
    assert "20 of 20 events planned, 0 ignored, 20 tasks" == str(tally)


def test_tasks_that_are_due_later_are_only_planned(hall):
    """However many there are, nothing is claimed, and all are quiet."""
    tally = hall.process(hall.post(20, "lead.updated"))
    assert {TaskState.PLANNED: 20} == hall.states()
    assert ([], [], 20) == (hall.batches, hall.sent, len(tally.quiet))


def test_of_two_types_one_is_delivered_and_the_other_dispatched(hall):
    """Each event's second task, of another type and provider, gets its message."""
    hall.process(hall.post(12, "deal.won"))
    assert {TaskState.DELIVERED: 12, TaskState.QUEUED: 12} == hall.states()
    (batch,) = hall.batches
    delivered = {each.task_id for each in batch.outcomes}
    assert (12, 12, set()) == (len(delivered), len(hall.sent), delivered & set(hall.sent))
    assert {batch.type} == {task.type for task in hall.ledger.queries.list_tasks() if task.id in delivered}


def test_few_of_each_type_are_not_enough(hall):
    """What counts is how many would share a message, not how many there are."""
    ids = hall.post(6, "deal.won") + hall.post(2, "lead.created", first=6)
    hall.process(ids)
    assert [] == hall.batches
    assert {TaskState.QUEUED: 14} == hall.states()


def test_the_pace_bounds_what_is_delivered(hall):
    """What the provider was not seen to answer within a moment is dispatched."""
    hall.context.clients[VAMBE].batch_size.reset()
    hall.process(hall.post(20))
    assert {TaskState.DELIVERED: CONCURRENT_REQUESTS, TaskState.QUEUED: 20 - CONCURRENT_REQUESTS} == hall.states()
    assert 20 - CONCURRENT_REQUESTS == len(hall.sent)


def test_where_the_provider_has_no_thread_left_all_are_dispatched(hall):
    """Its share is held: the plans are recorded all the same, and every task gets a message."""
    client = hall.context.clients[VAMBE]
    client.batch_size.reset()
    assert all(client.bulkhead.acquire(0) for _ in range(2))
    tally = hall.process(hall.post(20))
    assert {TaskState.QUEUED: 20} == hall.states()
    assert (20, [], [], 20) == (len(hall.sent), hall.batches, tally.quiet, tally.planned)


def test_a_long_message_is_recorded_in_parts_and_delivered_as_a_whole(hall):
    """More events than are planned together are all decided before the first request leaves, and have one row."""
    decided = []
    hall.context.clients[VAMBE].batch_size.size = IDS_PER_MESSAGE
    number = ROWS_PER_WRITE + 20

    class Watching:
        """Notes, when a request is prepared, how many events were decided."""

        def __getattr__(self, name):
            return getattr(hall.context.clients[VAMBE].provider, name)

        def build_request(self, *arguments):
            decided.append(hall.ledger.queries.counts().events[EventState.PROCESSED])
            return hall.context.clients[VAMBE].provider.build_request(*arguments)

    clients = {**hall.context.clients, VAMBE: replace(hall.context.clients[VAMBE], provider=Watching())}
    tally = hall.process(hall.post(number), clients=clients)
    assert [number] == [len(batch.outcomes) for batch in hall.batches]
    assert ({TaskState.DELIVERED: number}, {number}) == (hall.states(), set(decided))
    assert (number, []) == (tally.planned, hall.sent)


def test_what_was_claimed_is_sent_though_the_rest_cannot_be_recorded(hall):
    """A ledger that is busy for a message's second part has nothing to do with the first, which is claimed already."""
    hall.context.clients[VAMBE].batch_size.size = IDS_PER_MESSAGE
    ids = hall.post(ROWS_PER_WRITE + 20)
    with pytest.raises(LedgerBusyError):
        hall.process(ids, ledger=faulty(hall.ledger, LedgerBusyError("busy"), after=1))
    assert {TaskState.DELIVERED: ROWS_PER_WRITE} == hall.states()
    assert [ROWS_PER_WRITE] == [len(batch.outcomes) for batch in hall.batches]
    assert 2 == hall.context.clients[VAMBE].bulkhead.free


def test_what_a_limit_keeps_is_neither_dispatched_nor_quiet(hall):
    """Tasks that wait for their place in line are shown by their outcome, and come again by themselves."""
    tally = hall.process(hall.post(12), limits={VAMBE: Limits(rate_per_second=0.01, burst=4)})
    assert {TaskState.DELIVERED: 4, TaskState.WAITING: 8} == hall.states()
    (batch,) = hall.batches
    assert ([], [], 12) == (hall.sent, tally.quiet, len(batch.outcomes))


def test_events_that_come_again_deliver_nothing_again(hall):
    """A message that comes twice finds its events decided."""
    ids = hall.post(12)
    hall.process(ids)
    tally = hall.process(ids)
    assert (0, []) == (tally.planned, hall.batches)
    assert 12 == len(hall.sandbox.tasks("vambe"))


def test_events_that_may_have_crashed_a_worker_are_tried_alone(hall):
    """Each event that was dispatched before is planned by itself, however many come with it."""
    ids = hall.post(12)
    later = utc_now() + TOO_LATE
    assert 12 == len(hall.ledger.inbox.dispatch_overdue(later, TOO_LATE / 2, 100))
    clock = replace(hall.context.clock, now=lambda: later)
    hall.process(ids, clock=clock)
    assert [] == hall.batches
    assert {TaskState.QUEUED: 12} == hall.states()


def test_what_was_claimed_is_sent_before_a_suspect_is_planned(hall):
    """One that crashes the process then leaves no task of its neighbours in doubt."""
    suspects = hall.post(2)
    later = utc_now() + TOO_LATE
    assert 2 == len(hall.ledger.inbox.dispatch_overdue(later, TOO_LATE / 2, 100))
    seen = []

    def events_to_process(*arguments):
        seen.append(hall.states())
        return hall.ledger.inbox.events_to_process(*arguments)

    watching = Instead(hall.ledger, inbox=Instead(hall.ledger.inbox, events_to_process=events_to_process))
    fresh = hall.post(12, first=2)
    hall.process(suspects + fresh, ledger=watching, clock=replace(hall.context.clock, now=lambda: later))
    assert [{TaskState.DELIVERED: 12}, {TaskState.DELIVERED: 12, TaskState.QUEUED: 1}] == seen
    assert {TaskState.DELIVERED: 12, TaskState.QUEUED: 2} == hall.states()


def faulty(ledger, error, after=0):
    """A ledger that raises `error` when it has recorded and claimed so often."""
    calls = count()

    def insert_and_claim(*arguments):
        if next(calls) >= after:
            raise error
        return ledger.tasks.insert_and_claim(*arguments)

    return Instead(ledger, tasks=Instead(ledger.tasks, insert_and_claim=insert_and_claim))


def test_what_cannot_be_recorded_together_is_recorded_alone(hall):
    """A fault of one event's row costs the others only the way at once: each is planned by itself."""
    hall.process(hall.post(12), ledger=faulty(hall.ledger, ValueError("a row")))
    assert {TaskState.QUEUED: 12} == hall.states()
    assert {EventState.PROCESSED} == {event.state for event in hall.ledger.queries.list_events()}
    assert 2 == hall.context.clients[VAMBE].bulkhead.free


def test_a_busy_ledger_leaves_the_events_to_the_sweep(hall):
    """Nothing is wrong with events that a busy ledger could not record: they stay to be decided, and no try is counted."""
    with pytest.raises(LedgerBusyError):
        hall.process(hall.post(12), ledger=faulty(hall.ledger, LedgerBusyError("busy")))
    assert {} == hall.states()
    assert {(EventState.RECEIVED, 0)} == {(event.state, event.tries) for event in hall.ledger.queries.list_events()}
    assert 2 == hall.context.clients[VAMBE].bulkhead.free

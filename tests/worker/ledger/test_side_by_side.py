"""Several processes on one ledger in PostgreSQL, each with connections and a writer of its own."""

from __future__ import annotations

import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from rules.vocabulary import (
    Event,
    EventState,
    Plan,
    ProviderName,
    Rotation,
    Task,
    TaskState,
    TaskType,
    Verdict,
)
from worker.ledger import Claim, Delivery, IncomingEvent, NotClaimed, Settlement, open_ledger

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
LEASE = timedelta(seconds=60)
GRACE = timedelta(seconds=10)
PROCESSES = 4


def incoming(id):  # noqa: A002 - the field's name
    """An event that comes from outside."""
    event = Event(id=id, source="crm", type="lead.created", occurred_at=NOW, received_at=NOW, data={})
    return IncomingEvent(event=event, dedupe_key=id.partition(" ")[0], content_hash="c")


def record(ledger, delivery_id, *ids):
    """Record one delivery with events of these ids."""
    delivery = Delivery(id=delivery_id, source="crm", received_at=NOW, body=b"{}", content_hash=delivery_id)
    return ledger.inbox.record(delivery, [incoming(id_) for id_ in ids])


def plan(event_id, tasks=1, **changes):
    """A plan with so many tasks that are due now."""
    made = tuple(
        Task(
            id=f"tk_{event_id}_{number}",
            key=f"{event_id}/{number}",
            event_id=event_id,
            rule="r",
            name=f"n{number}",
            type=TaskType.TEAM_TASK,
            provider=ProviderName.VAMBE,
            due_at=changes.pop("due_at", NOW),
            fields={"title": "x"},
            rule_set="rs_1",
            **changes,
        )
        for number in range(tasks)
    )
    return Plan(event_id=event_id, rule_set="rs_1", state=EventState.PROCESSED, decisions=(), tasks=made)


@pytest.fixture
def url(postgres):
    """An empty ledger in PostgreSQL."""
    return postgres.emptied()


@pytest.fixture
def ledgers(url):
    """What several processes have open."""
    opened = [open_ledger(url, busy_timeout=timedelta(seconds=5)) for _ in range(PROCESSES)]
    yield opened
    for ledger in opened:
        ledger.close()


def at_once(ledgers, act, threads=4):
    """Run `act(ledger, number)` in several threads of each process, all beginning together; return every result."""
    start = threading.Barrier(len(ledgers) * threads)

    def run(ledger, number):
        start.wait(10)
        return act(ledger, number)

    with ThreadPoolExecutor(len(ledgers) * threads) as pool:
        futures = [
            pool.submit(run, ledger, n * threads + t) for n, ledger in enumerate(ledgers) for t in range(threads)
        ]
        return [future.result(60) for future in futures]


def test_the_same_webhooks_at_every_door_are_recorded_once(ledgers):
    """Sixteen senders post the same 200 events to four front doors in different orders and groups: each is kept once."""

    def post(ledger, number):
        draw = random.Random(number)
        ids = [f"ev_{each} by {number}" for each in range(200)]
        draw.shuffle(ids)
        new = []
        while ids:
            size = draw.choice((1, 3, 20))
            recorded = record(ledger, f"dl_{number}_{len(ids)}", *ids[:size])
            assert len(ids[:size]) == len(recorded.event_ids) + recorded.duplicates
            new += recorded.event_ids
            ids = ids[size:]
        return new

    new = [event_id.partition(" ")[0] for ids in at_once(ledgers, post) for event_id in ids]
    assert Counter({f"ev_{each}": 1 for each in range(200)}) == Counter(new)
    assert {EventState.RECEIVED: 200} == ledgers[0].queries.counts().events


def test_overlapping_claims_give_each_task_to_one(ledgers):
    """Sixteen threads of four processes want the same 120 tasks in different orders: each task is claimed once, by one."""
    record(ledgers[0], "dl_1", *(f"ev_{each}" for each in range(12)))
    ledgers[0].tasks.insert([plan(f"ev_{each}", 10) for each in range(12)], NOW)
    wanted = [f"tk_ev_{each}_{number}" for each in range(12) for number in range(10)]

    def claim(ledger, number):
        ids = random.Random(number).sample(wanted, len(wanted))
        return [
            each for s in range(0, 120, 8) for each in ledger.tasks.claim(ids[s : s + 8], NOW, LEASE, f"w-{number}")
        ]

    answers = [answer for given in at_once(ledgers, claim) for answer in given]
    claims = [answer for answer in answers if isinstance(answer, Claim)]
    assert Counter(dict.fromkeys(wanted, 1)) == Counter(each.task.id for each in claims)
    assert {TaskState.SENDING} == {answer.state for answer in answers if isinstance(answer, NotClaimed)}
    assert len(answers) == 16 * 120
    assert {1} == {len(ledgers[0].queries.attempts(task_id)) for task_id in wanted}


def test_a_claim_never_waits_for_another_one(ledgers, postgres, url):
    """A task that another worker is claiming at this moment is passed by at once; the others are claimed."""
    record(ledgers[0], "dl_1", "ev_1")
    ledgers[0].tasks.insert([plan("ev_1", 3)], NOW)
    with postgres.connect(url.rpartition("/")[2]) as elsewhere, elsewhere.transaction():
        elsewhere.execute("SELECT 1 FROM tasks WHERE id = 'tk_ev_1_1' FOR UPDATE")
        elsewhere.execute("SET LOCAL statement_timeout = 0")
        ids = ["tk_ev_1_0", "tk_ev_1_1", "tk_ev_1_2", "tk_none"]
        first, held, third, none = ledgers[0].tasks.claim(ids, NOW, LEASE, "w")
    assert [True, True] == [isinstance(each, Claim) for each in (first, third)]
    assert (TaskState.SENDING, "another worker is claiming it") == (held.state, held.why)
    assert (None, "there is no such task") == (none.state, none.why)
    assert isinstance(ledgers[1].tasks.claim(["tk_ev_1_1"], NOW, LEASE, "w")[0], Claim)


def test_sweeps_share_what_is_due(ledgers):
    """Four sweeps at once take 200 due tasks and 100 overdue events between them, none of them twice, and never fail."""
    for start in range(0, 300, 100):
        record(ledgers[0], f"dl_{start}", *(f"ev_{each}" for each in range(start, start + 100)))
    ledgers[0].tasks.insert([plan(f"ev_{each}", due_at=NOW + GRACE) for each in range(200)], NOW)
    later = NOW + GRACE * 2

    def sweep(ledger, _number):
        tasks = [ref.id for _ in range(8) for ref in ledger.tasks.dispatch_due(later, GRACE, {ProviderName.VAMBE: 10})]
        return tasks, [event_id for _ in range(8) for event_id in ledger.inbox.dispatch_overdue(later, GRACE, 10)]

    swept = at_once(ledgers, sweep, threads=1)
    assert Counter({f"tk_ev_{each}_0": 1 for each in range(200)}) == Counter(t for tasks, _ in swept for t in tasks)
    assert Counter({f"ev_{each}": 1 for each in range(200, 300)}) == Counter(e for _, events in swept for e in events)


def test_a_sweep_takes_the_next_ones_when_the_oldest_are_held(ledgers, postgres, url):
    """While one sweep holds the oldest ten, another one takes the ten behind them instead of nothing."""
    record(ledgers[0], "dl_1", *(f"ev_{each:02}" for each in range(20)))
    due = [plan(f"ev_{each:02}", due_at=NOW + timedelta(seconds=each + 1)) for each in range(20)]
    ledgers[0].tasks.insert(due, NOW)
    with postgres.connect(url.rpartition("/")[2]) as elsewhere, elsewhere.transaction():
        elsewhere.execute("SELECT 1 FROM tasks WHERE id < 'tk_ev_10' FOR UPDATE")
        taken = ledgers[0].tasks.dispatch_due(NOW + LEASE, GRACE, {ProviderName.VAMBE: 10})
    assert [f"tk_ev_{each}_0" for each in range(10, 20)] == [ref.id for ref in taken]


def test_an_event_is_planned_by_one(ledgers):
    """Sixteen workers decide the same 50 events at once: each gets its tasks once, and turns stay even."""
    record(ledgers[0], "dl_1", *(f"ev_{each}" for each in range(50)))
    rotation = Rotation(team="closers", member_ids=("ana", "luis"))

    def decide(ledger, number):
        ids = random.Random(number).sample(range(50), 50)
        plans = [plan(f"ev_{each}", rotation=rotation) for each in ids]
        return [ref.id for s in range(0, 50, 5) for ref in ledger.tasks.insert(plans[s : s + 5], NOW)]

    planned = [task_id for ids in at_once(ledgers, decide) for task_id in ids]
    assert Counter({f"tk_ev_{each}_0": 1 for each in range(50)}) == Counter(planned)
    chosen = Counter(task.fields["responsible_ids"][0] for task in ledgers[0].queries.list_tasks())
    assert {"ana": 25, "luis": 25} == chosen


def test_settlements_and_expiry_never_wait_for_each_other(ledgers):
    """While four workers settle what they hold, others look for ended leases: every delivery is kept, and none fails."""
    record(ledgers[0], "dl_1", *(f"ev_{each}" for each in range(80)))
    ledgers[0].tasks.insert([plan(f"ev_{each}") for each in range(80)], NOW)
    claims = ledgers[0].tasks.claim([f"tk_ev_{each}_0" for each in range(80)], NOW, LEASE, "w")
    done = Settlement(verdict=Verdict.DELIVERED, state=TaskState.DELIVERED, external_id="x", status=201)

    def act(ledger, number):
        if number % 4 == 3:
            return [ledger.tasks.expire_leases(NOW + LEASE) for _ in range(5)] and []
        mine = claims[number % 4 :: 3] if number < 4 else []
        return [ledger.tasks.settle(claim, done, NOW) for claim in random.Random(number).sample(mine, len(mine))]

    taken = [each for given in at_once(ledgers, act) for each in given]
    assert [True] * 80 == taken
    assert {TaskState.DELIVERED: 80} == ledgers[0].queries.counts().tasks


def test_one_task_probes_a_provider_after_its_pause(ledgers):
    """Four workers that claim when a pause ends let one task through between them; the others wait."""
    record(ledgers[0], "dl_1", *(f"ev_{each}" for each in range(17)))
    ledgers[0].tasks.insert([plan(f"ev_{each}") for each in range(17)], NOW)
    (claim,) = ledgers[0].tasks.claim(["tk_ev_16_0"], NOW, LEASE, "w")
    paused = Settlement(
        verdict=Verdict.PAUSE, state=TaskState.WAITING, due_at=NOW + LEASE, counted=False, pause_until_at=NOW + LEASE
    )
    ledgers[0].tasks.settle(claim, paused, NOW)

    def probe(ledger, number):
        return isinstance(ledger.tasks.claim([f"tk_ev_{number}_0"], NOW + LEASE, LEASE, "w")[0], Claim)

    assert 1 == sum(at_once(ledgers, probe))


def test_a_persons_pause_is_not_replaced_by_an_answers(ledgers):
    """A person orders a pause while answers bring pauses about: the order stands."""
    record(ledgers[0], "dl_1", *(f"ev_{each}" for each in range(16)))
    ledgers[0].tasks.insert([plan(f"ev_{each}") for each in range(16)], NOW)
    claims = ledgers[0].tasks.claim([f"tk_ev_{each}_0" for each in range(16)], NOW, LEASE, "w")
    until_at = NOW + timedelta(days=1)
    answered = Settlement(verdict=Verdict.PAUSE, state=TaskState.WAITING, counted=False, pause_until_at=NOW + LEASE)

    def act(ledger, number):
        if number == 7:
            ledger.limits.pause(ProviderName.VAMBE, until_at, "holiday", NOW)
        else:
            ledger.tasks.settle(claims[number], answered, NOW)

    at_once(ledgers, act)
    (state,) = ledgers[0].limits.states()
    assert (True, until_at, "holiday") == (state.held, state.paused_until_at, state.reason)

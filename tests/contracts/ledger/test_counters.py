"""Counts never disagree with what they count: they come and go with the transaction that makes the fact."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest

from rules.vocabulary import (
    Decision,
    DecisionOutcome,
    EventState,
    LedgerError,
    ProviderName,
    TaskState,
    TaskType,
    Verdict,
)
from worker.ledger import NotClaimed, Settlement, open_ledger
from worker.ledger.counters import LOST, OTHER, RULES_LIMIT, CounterName

TEAM = TaskType.TEAM_TASK
VAMBE = ProviderName.VAMBE


def counted(bench, tally):
    """Return the values of a count by its labels."""
    return dict(bench.ledger.queries.measure(bench.now).tallies[tally])


def test_events_are_counted_when_they_are_kept(bench):
    """New events count by source and type, types of the sender's own as one; a redelivery counts nothing."""
    unreadable = {"state": EventState.UNREADABLE, "reason": "no JSON"}
    bench.record(bench.incoming("ev_1"), bench.incoming("ev_2", event=bench.event("ev_2", type="my.own.type")))
    bench.record(bench.incoming("ev_3", **unreadable))
    bench.record(bench.incoming("ev_1"), id="dl_again")
    bench.record(bench.incoming("ev_4", key="ev_1", content="other"))
    assert {("crm", "lead.created"): 3, ("crm", OTHER): 1} == counted(bench, CounterName.EVENTS_RECEIVED)
    assert {("unreadable",): 1, ("ignored",): 1} == counted(bench, CounterName.EVENTS_ENDED)


def test_plans_are_counted_once(bench):
    """A plan counts its event's end, every decision and every task; recorded again it counts nothing."""
    bench.record(bench.incoming())
    no = Decision(rule="other", outcome=DecisionOutcome.NOT_MATCHED, reason="no", place="a.yaml:1:1")
    yes = Decision(rule="follow-up", outcome=DecisionOutcome.MATCHED, reason="yes", place="a.yaml:9:1")
    plan = bench.plan(bench.task(), bench.task("tk_2", state=TaskState.DEAD, reason="no phone"), decisions=(no, yes))
    for _ in range(2):
        bench.ledger.tasks.insert([plan], bench.now)
    assert {("processed",): 1} == counted(bench, CounterName.EVENTS_ENDED)
    assert {("other", "not_matched"): 1, ("follow-up", "matched"): 1} == counted(bench, CounterName.DECISIONS)
    assert {(TEAM,): 2} == counted(bench, CounterName.TASKS_PLANNED)
    assert {(TEAM, "dead"): 1} == counted(bench, CounterName.TASKS_ENDED)


def test_rules_have_labels_up_to_a_limit(bench):
    """However many rules decide, the labels stay few: those beyond the limit count together."""
    bench.record(bench.incoming())
    decisions = [
        Decision(rule=f"rule-{number}", outcome=DecisionOutcome.MATCHED, reason="yes", place="a.yaml:1:1")
        for number in range(RULES_LIMIT + 7)
    ]
    bench.ledger.tasks.insert([bench.plan(decisions=tuple(decisions))], bench.now)
    found = counted(bench, CounterName.DECISIONS)
    assert RULES_LIMIT + 1 == len(found)
    assert 7 == found[OTHER, "matched"]
    assert 1 == found["rule-0", "matched"]


def test_an_event_that_is_given_up_counts_as_failed(bench):
    """Whether deciding raised or killed its process: the fifth try ends the event, and counts."""
    bench.record(bench.incoming("ev_1"), bench.incoming("ev_2"))
    for number in range(5):
        bench.ledger.inbox.event_failed("ev_1", "boom", bench.at(1000 * number))
    for number in range(8):
        at = bench.at(1000 * (number + 1))
        bench.ledger.inbox.dispatch_overdue(at, timedelta(seconds=1), 10)
        bench.ledger.inbox.events_to_process(["ev_2"], at)
    assert [EventState.FAILED] * 2 == [event.state for event in bench.ledger.queries.list_events()]
    assert {("failed",): 2} == counted(bench, CounterName.EVENTS_ENDED)


def test_a_delivery_counts_attempt_end_and_time(bench):
    """A delivery counts its attempt, the task's end, and how long it took since the event occurred and was received."""
    late = bench.event(occurred_at=bench.at(-3600))
    bench.record(bench.incoming(event=late))
    bench.ledger.tasks.insert([bench.plan(bench.task())], bench.now)
    claim = bench.claim()
    assert bench.ledger.tasks.settle(claim, bench.delivered(), bench.at(7))
    assert {(VAMBE, "delivered", "2xx"): 1} == counted(bench, CounterName.ATTEMPTS)
    assert {(TEAM, "delivered"): 1} == counted(bench, CounterName.TASKS_ENDED)
    assert {(TEAM, "10"): 1} == counted(bench, CounterName.AFTER_RECEIVED)
    assert {(TEAM,): 7_000} == counted(bench, CounterName.AFTER_RECEIVED_SUM)
    assert {(TEAM, "14400"): 1} == counted(bench, CounterName.AFTER_OCCURRED)
    assert {(TEAM,): 3_607_000} == counted(bench, CounterName.AFTER_OCCURRED_SUM)


@pytest.mark.parametrize(
    ("occurred_seconds", "end", "total"),
    [(60, "0.05", 0), (-86400 * 2, "+Inf", 2 * 86_400_000), (-86400 * 30000, "+Inf", 365 * 86_400_000)],
)
def test_odd_dates_stay_in_bounds(bench, occurred_seconds, end, total):
    """An event of the future took no time, one of long ago a year at the most."""
    bench.record(bench.incoming(event=bench.event(occurred_at=bench.at(occurred_seconds))))
    bench.ledger.tasks.insert([bench.plan(bench.task())], bench.now)
    bench.ledger.tasks.settle(bench.claim(), bench.delivered(), bench.now)
    assert {(TEAM, end): 1} == counted(bench, CounterName.AFTER_OCCURRED)
    assert {(TEAM,): total} == counted(bench, CounterName.AFTER_OCCURRED_SUM)


def test_a_settlement_written_again_counts_once(bench):
    """A worker that does not know whether its settlement was written writes it again: nothing counts twice."""
    for number, settlement in enumerate(
        (bench.delivered(), bench.busy(), bench.ended(TaskState.UNKNOWN, Verdict.UNKNOWN), bench.ended(TaskState.DEAD))
    ):
        ids = {"id": f"tk_{number}", "event_id": f"ev_{number}"}
        claim = bench.claimed(**ids)
        for _ in range(2):
            bench.ledger.tasks.settle(claim, settlement, bench.now)
    assert {
        (VAMBE, "delivered", "2xx"): 1,
        (VAMBE, "busy", "5xx"): 1,
        (VAMBE, "unknown", "4xx"): 1,
        (VAMBE, "refused", "4xx"): 1,
    } == counted(bench, CounterName.ATTEMPTS)
    assert {(TEAM, "delivered"): 1, (TEAM, "unknown"): 1, (TEAM, "dead"): 1} == counted(bench, CounterName.TASKS_ENDED)


def test_a_lost_attempt_whose_answer_comes_after_all(bench):
    """A given-up attempt counts as lost and its task as unknown; the late answer counts as well, the doubt only once."""
    first = bench.claimed()
    bench.ledger.tasks.release("w", bench.at(5))
    assert {(VAMBE, "unknown", LOST): 1} == counted(bench, CounterName.ATTEMPTS)
    assert {(TEAM, "unknown"): 1} == counted(bench, CounterName.TASKS_ENDED)

    no_answer = Settlement(verdict=Verdict.UNKNOWN, state=TaskState.UNKNOWN, reason="no answer")
    bench.ledger.tasks.settle(first, no_answer, bench.at(6))
    assert {(TEAM, "unknown"): 1} == counted(bench, CounterName.TASKS_ENDED)

    bench.ledger.tasks.settle(first, bench.delivered(), bench.at(7))
    assert {(VAMBE, "unknown", LOST): 1, (VAMBE, "delivered", "2xx"): 1} == counted(bench, CounterName.ATTEMPTS)
    assert {(TEAM, "unknown"): 1, (TEAM, "delivered"): 1} == counted(bench, CounterName.TASKS_ENDED)


def test_a_late_success_counts_where_it_counts(bench):
    """A success under an old claim delivers the task and counts so; one beside another delivery is an attempt and no end."""
    old = bench.claimed()
    bench.ledger.tasks.release("w", bench.at(1))
    bench.ledger.admin.settle("tk_1", False, None, bench.at(2))
    new = bench.claim(now=bench.at(3))
    bench.ledger.tasks.settle(old, bench.delivered("x-1"), bench.at(4))
    bench.ledger.tasks.settle(new, bench.delivered("x-2"), bench.at(5))
    assert {(TEAM, "unknown"): 1, (TEAM, "delivered"): 1} == counted(bench, CounterName.TASKS_ENDED)
    assert {(VAMBE, "unknown", LOST): 1, (VAMBE, "delivered", "2xx"): 2} == counted(bench, CounterName.ATTEMPTS)
    assert {(TEAM, "5"): 1} == counted(bench, CounterName.AFTER_RECEIVED)


def test_what_expires_counts_as_suppressed(bench):
    """A task that comes too late ends without an attempt."""
    bench.planned(bench.task(expires_at=bench.at(60)))
    (answer,) = bench.ledger.tasks.claim(["tk_1"], bench.at(61), bench.lease, "w-1")
    assert isinstance(answer, NotClaimed)
    assert {(TEAM, "suppressed"): 1} == counted(bench, CounterName.TASKS_ENDED)
    assert {} == counted(bench, CounterName.ATTEMPTS)


def test_a_person_who_settles_counts(bench):
    """Delivered by hand is delivered; how long that took says nothing, and what is refused counts nothing."""
    bench.ledger.tasks.settle(bench.claimed(), bench.ended(TaskState.UNKNOWN, Verdict.UNKNOWN), bench.now)
    bench.ledger.admin.settle("tk_1", True, "x-9", bench.at(99))
    with pytest.raises(LedgerError):
        bench.ledger.admin.settle("tk_1", True, "x-9", bench.at(99))
    assert {(TEAM, "unknown"): 1, (TEAM, "delivered"): 1} == counted(bench, CounterName.TASKS_ENDED)
    assert {} == counted(bench, CounterName.AFTER_RECEIVED)


def test_a_pause_counts_when_it_begins(bench):
    """A pause counts once, however often its probes fail, and again after it was lifted."""
    for number in range(3):
        ids = {"id": f"tk_{number}", "event_id": f"ev_{number}"}
        at = bench.at(100 * number)
        pause = bench.busy(at, verdict=Verdict.PAUSE, status=401, pause_until_at=at + timedelta(seconds=60))
        bench.ledger.tasks.settle(bench.claimed(now=at, **ids), pause, at)
    assert {(VAMBE, "answer"): 1} == counted(bench, CounterName.PAUSES)
    bench.ledger.limits.resume(VAMBE, bench.at(300))
    bench.ledger.limits.pause(VAMBE, bench.at(900), "a break", bench.at(400))
    bench.ledger.limits.pause(VAMBE, bench.at(999), "a longer one", bench.at(401))
    assert {(VAMBE, "answer"): 1, (VAMBE, "person"): 1} == counted(bench, CounterName.PAUSES)


def test_requests_are_added_up(bench):
    """Requests come in sums by source, outcome and reason."""
    bench.ledger.inbox.count_requests({("crm", "rejected", "mismatch"): 3, ("crm", "accepted", ""): 2})
    bench.ledger.inbox.count_requests({("crm", "rejected", "mismatch"): 4})
    assert {("crm", "rejected", "mismatch"): 7, ("crm", "accepted", ""): 2} == counted(bench, CounterName.REQUESTS)


def test_counts_of_several_processes_add_up(bench):
    """Every process counts for itself; what dead ones counted stays, and its rows do not pile up."""
    for number in range(5):
        ledger = open_ledger(bench.url)
        ledger.inbox.count_requests({("crm", "accepted", ""): number})
        ledger.inbox.count_requests({("crm", "accepted", ""): 100})
        ledger.close()
    bench.ledger.inbox.count_requests({("crm", "accepted", ""): 1000})
    assert {("crm", "accepted", ""): 1510} == counted(bench, CounterName.REQUESTS)
    assert 1 == bench.ledger._writer.write(rows_of)


def rows_of(connection):
    """Return how many rows hold the counts."""
    return connection.exec_driver_sql("SELECT count(*) FROM tallies").scalar_one()


def test_processes_that_count_at_the_same_time(bench):
    """Heirs may take over rows of the living while these count on: no count is lost, none is doubled, nobody waits long."""
    stop = threading.Event()
    added = [0, 0]

    def count(place):
        ledger = open_ledger(bench.url)
        while not stop.is_set():
            ledger.inbox.count_requests({("crm", "accepted", ""): 1, ("crm", "busy", "x"): 1})
            added[place] += 1
        ledger.close()

    threads = [threading.Thread(target=count, args=(place,)) for place in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        heir = open_ledger(bench.url)
        heir.inbox.count_requests({("crm", "accepted", ""): 1, ("crm", "busy", "x"): 1})
        heir.close()
    stop.set()
    for thread in threads:
        thread.join(30)
    total = sum(added) + 10
    assert {("crm", "accepted", ""): total, ("crm", "busy", "x"): total} == counted(bench, CounterName.REQUESTS)
    assert min(added) > 0

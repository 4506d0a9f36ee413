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


def counted(desk, tally):
    """Return the values of a count by its labels."""
    return dict(desk.ledger.queries.measure(desk.now).tallies[tally])


def test_events_are_counted_when_they_are_kept(desk):
    """New events count by source and type, types of the sender's own as one; a redelivery counts nothing."""
    unreadable = {"state": EventState.UNREADABLE, "reason": "no JSON"}
    desk.record(desk.incoming("ev_1"), desk.incoming("ev_2", event=desk.event("ev_2", type="my.own.type")))
    desk.record(desk.incoming("ev_3", **unreadable))
    desk.record(desk.incoming("ev_1"), id="dl_again")
    desk.record(desk.incoming("ev_4", key="ev_1", content="other"))
    assert {("crm", "lead.created"): 3, ("crm", OTHER): 1} == counted(desk, CounterName.EVENTS_RECEIVED)
    assert {("unreadable",): 1, ("ignored",): 1} == counted(desk, CounterName.EVENTS_ENDED)


def test_plans_are_counted_once(desk):
    """A plan counts its event's end, every decision and every task; recorded again it counts nothing."""
    desk.record(desk.incoming())
    no = Decision(rule="other", outcome=DecisionOutcome.NOT_MATCHED, reason="no", place="a.yaml:1:1")
    yes = Decision(rule="follow-up", outcome=DecisionOutcome.MATCHED, reason="yes", place="a.yaml:9:1")
    plan = desk.plan(desk.task(), desk.task("tk_2", state=TaskState.DEAD, reason="no phone"), decisions=(no, yes))
    for _ in range(2):
        desk.ledger.tasks.insert([plan], desk.now)
    assert {("processed",): 1} == counted(desk, CounterName.EVENTS_ENDED)
    assert {("other", "not_matched"): 1, ("follow-up", "matched"): 1} == counted(desk, CounterName.DECISIONS)
    assert {(TEAM,): 2} == counted(desk, CounterName.TASKS_PLANNED)
    assert {(TEAM, "dead"): 1} == counted(desk, CounterName.TASKS_ENDED)


def test_rules_have_labels_up_to_a_limit(desk):
    """However many rules decide, the labels stay few: those beyond the limit count together."""
    desk.record(desk.incoming())
    decisions = [
        Decision(rule=f"rule-{number}", outcome=DecisionOutcome.MATCHED, reason="yes", place="a.yaml:1:1")
        for number in range(RULES_LIMIT + 7)
    ]
    desk.ledger.tasks.insert([desk.plan(decisions=tuple(decisions))], desk.now)
    found = counted(desk, CounterName.DECISIONS)
    assert RULES_LIMIT + 1 == len(found)
    assert 7 == found[OTHER, "matched"]
    assert 1 == found["rule-0", "matched"]


def test_an_event_that_is_given_up_counts_as_failed(desk):
    """Whether deciding raised or killed its process: the fifth try ends the event, and counts."""
    desk.record(desk.incoming("ev_1"), desk.incoming("ev_2"))
    for number in range(5):
        desk.ledger.inbox.event_failed("ev_1", "boom", desk.at(1000 * number))
    for number in range(8):
        at = desk.at(1000 * (number + 1))
        desk.ledger.inbox.dispatch_overdue(at, timedelta(seconds=1), 10)
        desk.ledger.inbox.events_to_process(["ev_2"], at)
    assert [EventState.FAILED] * 2 == [event.state for event in desk.ledger.queries.list_events()]
    assert {("failed",): 2} == counted(desk, CounterName.EVENTS_ENDED)


def test_a_delivery_counts_attempt_end_and_time(desk):
    """A delivery counts its attempt, the task's end, and how long it took since the event occurred and was received."""
    late = desk.event(occurred_at=desk.at(-3600))
    desk.record(desk.incoming(event=late))
    desk.ledger.tasks.insert([desk.plan(desk.task())], desk.now)
    claim = desk.claim()
    assert desk.ledger.tasks.settle(claim, desk.delivered(), desk.at(7))
    assert {(VAMBE, "delivered", "2xx"): 1} == counted(desk, CounterName.ATTEMPTS)
    assert {(TEAM, "delivered"): 1} == counted(desk, CounterName.TASKS_ENDED)
    assert {(TEAM, "10"): 1} == counted(desk, CounterName.AFTER_RECEIVED)
    assert {(TEAM,): 7_000} == counted(desk, CounterName.AFTER_RECEIVED_SUM)
    assert {(TEAM, "14400"): 1} == counted(desk, CounterName.AFTER_OCCURRED)
    assert {(TEAM,): 3_607_000} == counted(desk, CounterName.AFTER_OCCURRED_SUM)


@pytest.mark.parametrize(
    ("occurred_seconds", "end", "total"),
    [(60, "0.05", 0), (-86400 * 2, "+Inf", 2 * 86_400_000), (-86400 * 30000, "+Inf", 365 * 86_400_000)],
)
def test_odd_dates_stay_in_bounds(desk, occurred_seconds, end, total):
    """An event of the future took no time, one of long ago a year at the most."""
    desk.record(desk.incoming(event=desk.event(occurred_at=desk.at(occurred_seconds))))
    desk.ledger.tasks.insert([desk.plan(desk.task())], desk.now)
    desk.ledger.tasks.settle(desk.claim(), desk.delivered(), desk.now)
    assert {(TEAM, end): 1} == counted(desk, CounterName.AFTER_OCCURRED)
    assert {(TEAM,): total} == counted(desk, CounterName.AFTER_OCCURRED_SUM)


def test_a_settlement_written_again_counts_once(desk):
    """A worker that does not know whether its settlement was written writes it again: nothing counts twice."""
    for number, settlement in enumerate(
        (desk.delivered(), desk.busy(), desk.ended(TaskState.UNKNOWN, Verdict.UNKNOWN), desk.ended(TaskState.DEAD))
    ):
        ids = {"id": f"tk_{number}", "event_id": f"ev_{number}"}
        claim = desk.claimed(**ids)
        for _ in range(2):
            desk.ledger.tasks.settle(claim, settlement, desk.now)
    assert {
        (VAMBE, "delivered", "2xx"): 1,
        (VAMBE, "busy", "5xx"): 1,
        (VAMBE, "unknown", "4xx"): 1,
        (VAMBE, "refused", "4xx"): 1,
    } == counted(desk, CounterName.ATTEMPTS)
    assert {(TEAM, "delivered"): 1, (TEAM, "unknown"): 1, (TEAM, "dead"): 1} == counted(desk, CounterName.TASKS_ENDED)


def test_a_lost_attempt_whose_answer_comes_after_all(desk):
    """A given-up attempt counts as lost and its task as unknown; the late answer counts as well, the doubt only once."""
    first = desk.claimed()
    desk.ledger.tasks.release("w", desk.at(5))
    assert {(VAMBE, "unknown", LOST): 1} == counted(desk, CounterName.ATTEMPTS)
    assert {(TEAM, "unknown"): 1} == counted(desk, CounterName.TASKS_ENDED)

    no_answer = Settlement(verdict=Verdict.UNKNOWN, state=TaskState.UNKNOWN, reason="no answer")
    desk.ledger.tasks.settle(first, no_answer, desk.at(6))
    assert {(TEAM, "unknown"): 1} == counted(desk, CounterName.TASKS_ENDED)

    desk.ledger.tasks.settle(first, desk.delivered(), desk.at(7))
    assert {(VAMBE, "unknown", LOST): 1, (VAMBE, "delivered", "2xx"): 1} == counted(desk, CounterName.ATTEMPTS)
    assert {(TEAM, "unknown"): 1, (TEAM, "delivered"): 1} == counted(desk, CounterName.TASKS_ENDED)


def test_a_late_success_counts_where_it_counts(desk):
    """A success under an old claim delivers the task and counts so; one beside another delivery is an attempt and no end."""
    old = desk.claimed()
    desk.ledger.tasks.release("w", desk.at(1))
    desk.ledger.admin.settle("tk_1", False, None, desk.at(2))
    new = desk.claim(now=desk.at(3))
    desk.ledger.tasks.settle(old, desk.delivered("x-1"), desk.at(4))
    desk.ledger.tasks.settle(new, desk.delivered("x-2"), desk.at(5))
    assert {(TEAM, "unknown"): 1, (TEAM, "delivered"): 1} == counted(desk, CounterName.TASKS_ENDED)
    assert {(VAMBE, "unknown", LOST): 1, (VAMBE, "delivered", "2xx"): 2} == counted(desk, CounterName.ATTEMPTS)
    assert {(TEAM, "5"): 1} == counted(desk, CounterName.AFTER_RECEIVED)


def test_what_expires_counts_as_suppressed(desk):
    """A task that comes too late ends without an attempt."""
    desk.planned(desk.task(expires_at=desk.at(60)))
    (answer,) = desk.ledger.tasks.claim(["tk_1"], desk.at(61), desk.lease, "w-1")
    assert isinstance(answer, NotClaimed)
    assert {(TEAM, "suppressed"): 1} == counted(desk, CounterName.TASKS_ENDED)
    assert {} == counted(desk, CounterName.ATTEMPTS)


def test_a_person_who_settles_counts(desk):
    """Delivered by hand is delivered; how long that took says nothing, and what is refused counts nothing."""
    desk.ledger.tasks.settle(desk.claimed(), desk.ended(TaskState.UNKNOWN, Verdict.UNKNOWN), desk.now)
    desk.ledger.admin.settle("tk_1", True, "x-9", desk.at(99))
    with pytest.raises(LedgerError):
        desk.ledger.admin.settle("tk_1", True, "x-9", desk.at(99))
    assert {(TEAM, "unknown"): 1, (TEAM, "delivered"): 1} == counted(desk, CounterName.TASKS_ENDED)
    assert {} == counted(desk, CounterName.AFTER_RECEIVED)


def test_a_pause_counts_when_it_begins(desk):
    """A pause counts once, however often its probes fail, and again after it was lifted."""
    for number in range(3):
        ids = {"id": f"tk_{number}", "event_id": f"ev_{number}"}
        at = desk.at(100 * number)
        pause = desk.busy(at, verdict=Verdict.PAUSE, status=401, pause_until_at=at + timedelta(seconds=60))
        desk.ledger.tasks.settle(desk.claimed(now=at, **ids), pause, at)
    assert {(VAMBE, "answer"): 1} == counted(desk, CounterName.PAUSES)
    desk.ledger.limits.resume(VAMBE, desk.at(300))
    desk.ledger.limits.pause(VAMBE, desk.at(900), "a break", desk.at(400))
    desk.ledger.limits.pause(VAMBE, desk.at(999), "a longer one", desk.at(401))
    assert {(VAMBE, "answer"): 1, (VAMBE, "person"): 1} == counted(desk, CounterName.PAUSES)


def test_requests_are_added_up(desk):
    """Requests come in sums by source, outcome and reason."""
    desk.ledger.inbox.count_requests({("crm", "rejected", "mismatch"): 3, ("crm", "accepted", ""): 2})
    desk.ledger.inbox.count_requests({("crm", "rejected", "mismatch"): 4})
    assert {("crm", "rejected", "mismatch"): 7, ("crm", "accepted", ""): 2} == counted(desk, CounterName.REQUESTS)


def test_counts_of_several_processes_add_up(desk):
    """Every process counts for itself; what dead ones counted stays, and its rows do not pile up."""
    for number in range(5):
        ledger = open_ledger(desk.url)
        ledger.inbox.count_requests({("crm", "accepted", ""): number})
        ledger.inbox.count_requests({("crm", "accepted", ""): 100})
        ledger.close()
    desk.ledger.inbox.count_requests({("crm", "accepted", ""): 1000})
    assert {("crm", "accepted", ""): 1510} == counted(desk, CounterName.REQUESTS)
    assert 1 == desk.ledger._writer.write(rows_of)


def rows_of(connection):
    """Return how many rows hold the counts."""
    return connection.exec_driver_sql("SELECT count(*) FROM tallies").scalar_one()


def test_processes_that_count_at_the_same_time(desk):
    """Heirs may take over rows of the living while these count on: no count is lost, none is doubled, nobody waits long."""
    stop = threading.Event()
    added = [0, 0]

    def count(place):
        ledger = open_ledger(desk.url)
        while not stop.is_set():
            ledger.inbox.count_requests({("crm", "accepted", ""): 1, ("crm", "busy", "x"): 1})
            added[place] += 1
        ledger.close()

    threads = [threading.Thread(target=count, args=(place,)) for place in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        heir = open_ledger(desk.url)
        heir.inbox.count_requests({("crm", "accepted", ""): 1, ("crm", "busy", "x"): 1})
        heir.close()
    stop.set()
    for thread in threads:
        thread.join(30)
    total = sum(added) + 10
    assert {("crm", "accepted", ""): total, ("crm", "busy", "x"): total} == counted(desk, CounterName.REQUESTS)
    assert min(added) > 0

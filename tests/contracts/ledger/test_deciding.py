from __future__ import annotations

from collections import Counter
from datetime import timedelta

from rules.vocabulary import (
    Contact,
    Decision,
    DecisionOutcome,
    EventState,
    FailedTest,
    RetryPolicy,
    Rotation,
    TaskState,
)

GRACE = timedelta(seconds=10)


def dispatched_again(bench, seconds):
    """Let the sweep find the event."""
    return bench.ledger.inbox.dispatch_overdue(bench.at(seconds), GRACE, 100)


def test_open_events_come_in_the_order_asked_for(bench):
    """Only events in state received are returned, each once, in the order of the ids."""
    bench.record(*(bench.incoming(f"ev_{letter}") for letter in "abc"))
    bench.ledger.tasks.insert([bench.plan(event_id="ev_b")], bench.now)
    found = bench.ledger.inbox.events_to_process(["ev_c", "ev_b", "ev_x", "ev_a", "ev_c"], bench.now)
    assert ["ev_c", "ev_a"] == [event.id for event in found]


def test_first_dispatch_costs_no_try(bench):
    """An event that was dispatched once is handed out as often as asked for without counting a try."""
    bench.record(bench.incoming())
    for _ in range(9):
        assert 1 == len(bench.ledger.inbox.events_to_process(["ev_1"], bench.now))
    assert 0 == bench.ledger.queries.event("ev_1").tries


def test_five_crashes_end_an_event(bench):
    """An event whose processing kills the process every time is handed out five times after the first, then fails."""
    bench.record(bench.incoming())
    handed_out = 0
    for round_ in range(1, 9):
        for event_id in dispatched_again(bench, round_ * 100):
            handed_out += len(bench.ledger.inbox.events_to_process([event_id], bench.at(round_ * 100)))
    assert 5 == handed_out
    event = bench.ledger.queries.event("ev_1")
    assert (EventState.FAILED, 5) == (event.state, event.tries)
    assert "given up" in event.reason


def test_a_suspect_carries_its_counted_try(bench):
    """The try is on disk before the event is returned, and the event says so; its neighbours lose nothing."""
    bench.record(bench.incoming("ev_1"))
    dispatched_again(bench, 100)
    bench.record(bench.incoming("ev_2"))
    found = bench.ledger.inbox.events_to_process(["ev_1", "ev_2"], bench.at(100))
    assert [("ev_1", 1), ("ev_2", 0)] == [(event.id, event.tries) for event in found]
    assert 1 == bench.ledger.queries.event("ev_1").tries


def test_failing_events_are_due_later_and_fail_after_five_tries(bench):
    """Each failure doubles the wait, beginning with five seconds; the fifth ends the event with the error."""
    bench.record(bench.incoming())
    now, waits = bench.now, []
    for number in range(1, 6):
        assert ["ev_1"] == [event.id for event in bench.ledger.inbox.events_to_process(["ev_1"], now)]
        bench.ledger.inbox.event_failed("ev_1", f"error {number}", now)
        event = bench.ledger.queries.event("ev_1")
        assert number == event.tries
        waits.append((event.due_at - now).total_seconds())
        now += timedelta(hours=1)
        bench.ledger.inbox.dispatch_overdue(now, GRACE, 100)
    assert [5, 10, 20, 40] == waits[:4]
    assert (EventState.FAILED, "error 5") == (event.state, event.reason)
    assert [] == bench.ledger.inbox.events_to_process(["ev_1"], now)


def test_a_failed_event_is_not_overdue_before_its_moment(bench):
    """The back-off holds the sweep off."""
    bench.record(bench.incoming())
    bench.ledger.inbox.event_failed("ev_1", "boom", bench.at(100))
    assert [] == dispatched_again(bench, 104)
    assert ["ev_1"] == dispatched_again(bench, 105)


def test_failure_of_a_decided_event_changes_nothing(bench):
    """Once an event is processed, a late complaint about it is void."""
    bench.planned(bench.task())
    bench.ledger.inbox.event_failed("ev_1", "boom\ud800\x00", bench.now)
    assert EventState.PROCESSED == bench.ledger.queries.event("ev_1").state


def test_a_plan_becomes_decisions_and_tasks(bench):
    """Tasks, decisions and the event's state are there together, and what is due is returned as queued."""
    failed = FailedTest(path="data.v", operator="gt", wanted=5, seen=[1], missing=False, place="a.yaml:2:3")
    decisions = (
        Decision(rule="one", outcome=DecisionOutcome.MATCHED, reason="all holds", tasks=("call",), place="a.yaml:1:1"),
        Decision(rule="two", outcome=DecisionOutcome.NOT_MATCHED, reason="no", failed=failed, place="a.yaml:2:1"),
    )
    task = bench.task(
        expires_at=bench.at(3600),
        retry=RetryPolicy(strategy="custom", schedule=(timedelta(seconds=1), timedelta(hours=5)), jitter="full"),
        if_unsure="repeat",
        contact=Contact(phone="+1", email="a@example.com"),
        note="zone taken from the phone",
        fields={"title": "x", "list": [1, {"a": None}]},
    )
    bench.record(bench.incoming())
    (ref,) = bench.ledger.tasks.insert([bench.plan(task, decisions=decisions)], bench.now)
    assert (task.id, task.type, task.provider, task.rule, task.name, 0, 0) == (
        ref.id,
        ref.type,
        ref.provider,
        ref.rule,
        ref.name,
        ref.attempts,
        ref.epoch,
    )
    event, (stored,) = bench.ledger.queries.event("ev_1"), bench.ledger.queries.tasks_of("ev_1")
    assert (EventState.PROCESSED, "rs_1", decisions) == (event.state, event.rule_set, event.decisions)
    kept = ("key", "expires_at", "retry", "if_unsure", "contact", "note", "fields", "due_at", "rule_set", "event_id")
    assert [getattr(task, name) for name in kept] == [getattr(stored, name) for name in kept]
    assert (TaskState.QUEUED, bench.now, "tk_1") == (stored.state, stored.dispatched_at, ref.id)


def test_only_what_is_due_is_queued(bench):
    """A later task stays planned; one that planning ended keeps its state and reason."""
    later = bench.task("tk_later", due_at=bench.at(1))
    dead = bench.task("tk_dead", state=TaskState.DEAD, reason="no phone")
    late = bench.task("tk_late", state=TaskState.SUPPRESSED, reason="too late")
    refs = bench.planned(bench.task("tk_now"), later, dead, late)
    assert ["tk_now"] == [ref.id for ref in refs]
    assert [
        ("tk_now", TaskState.QUEUED, None),
        ("tk_later", TaskState.PLANNED, None),
        ("tk_dead", TaskState.DEAD, "no phone"),
        ("tk_late", TaskState.SUPPRESSED, "too late"),
    ] == [(task.id, task.state, task.reason) for task in bench.ledger.queries.tasks_of("ev_1")]


def test_an_event_is_planned_once(bench):
    """A second plan of the same event is skipped as a whole; another event's plan in the same call is not."""
    bench.record(bench.incoming("ev_1"), bench.incoming("ev_2"))
    bench.ledger.tasks.insert([bench.plan(bench.task("tk_1"))], bench.now)
    again = bench.plan(bench.task("tk_9", name="another"), rule_set="rs_9")
    refs = bench.ledger.tasks.insert([again, bench.plan(bench.task("tk_2", "ev_2"), event_id="ev_2")], bench.now)
    assert ["tk_2"] == [ref.id for ref in refs]
    assert ["tk_1"] == [task.id for task in bench.ledger.queries.tasks_of("ev_1")]
    assert "rs_1" == bench.ledger.queries.event("ev_1").rule_set


def test_a_task_exists_once(bench):
    """The same key, or the same rule and name for the event, makes no second task."""
    first = bench.task("tk_1", key="k", name="call")
    same_key = bench.task("tk_2", key="k", name="other")
    same_name = bench.task("tk_3", key="k3", name="call")
    assert ["tk_1"] == [ref.id for ref in bench.planned(first, same_key, same_name)]
    assert ["tk_1"] == [task.id for task in bench.ledger.queries.tasks_of("ev_1")]


def test_a_plan_without_tasks(bench):
    """An event that no rule listens to is ignored, without tasks."""
    bench.record(bench.incoming())
    assert () == bench.ledger.tasks.insert([bench.plan(state=EventState.IGNORED, decisions=())], bench.now)
    assert EventState.IGNORED == bench.ledger.queries.event("ev_1").state
    assert () == bench.ledger.tasks.insert([], bench.now)


def test_turns_are_even_and_follow_the_order(bench):
    """A team's members are chosen in turn over all events, each team by itself."""
    chosen = []
    for number in range(7):
        rotation = Rotation(team="closers", member_ids=("ana", "luis", "eva"))
        other = Rotation(team="others", member_ids=("kim",))
        event_id = f"ev_{number}"
        tasks = (
            bench.task(f"tk_{number}a", event_id, rotation=rotation),
            bench.task(f"tk_{number}b", event_id, rotation=other),
        )
        bench.planned(*tasks, event_id=event_id)
        chosen += bench.ledger.queries.task(f"tk_{number}a").fields["responsible_ids"]
        assert ["kim"] == bench.ledger.queries.task(f"tk_{number}b").fields["responsible_ids"]
    assert ["ana", "luis", "eva", "ana", "luis", "eva", "ana"] == chosen


def test_turns_within_one_transaction(bench):
    """Sixty tasks planned at once are shared out evenly, and one that planning ended takes no turn."""
    rotation = Rotation(team="closers", member_ids=("ana", "luis", "eva"))
    tasks = [bench.task(f"tk_{number}", rotation=rotation) for number in range(60)]
    dead = bench.task("tk_dead", rotation=rotation, state=TaskState.DEAD, reason="no title")
    bench.planned(dead, *tasks)
    shares = Counter(bench.ledger.queries.task(task.id).fields["responsible_ids"][0] for task in tasks)
    assert {"ana": 20, "luis": 20, "eva": 20} == shares
    assert "responsible_ids" not in bench.ledger.queries.task("tk_dead").fields


def test_undispatched_events_are_found_once(bench):
    """An event whose message was lost is found after the grace, once, and again only after another grace."""
    bench.record(bench.incoming())
    assert [] == dispatched_again(bench, 9.9)
    assert ["ev_1"] == dispatched_again(bench, 10)
    assert 2 == bench.ledger.queries.event("ev_1").dispatches
    assert [] == dispatched_again(bench, 19.9)
    assert ["ev_1"] == dispatched_again(bench, 20)


def test_decided_events_are_never_overdue(bench):
    """What has been decided is not dispatched again."""
    bench.planned(bench.task())
    assert [] == dispatched_again(bench, 1000)


def test_overdue_events_are_bounded_and_oldest_first(bench):
    """At most so many as asked for, those that are due longest first."""
    for number in (3, 1, 2):
        bench.record(bench.incoming(f"ev_{number}"), received_at=bench.at(number))
    assert ["ev_1", "ev_2"] == bench.ledger.inbox.dispatch_overdue(bench.at(60), GRACE, 2)
    assert ["ev_3"] == bench.ledger.inbox.dispatch_overdue(bench.at(60), GRACE, 2)


def test_a_suspect_is_handed_to_one_at_a_time(bench):
    """Messages that come twice neither plan an event twice nor count its tries twice; after the lease it is free again."""
    bench.record(bench.incoming("ev_1"))
    bench.ledger.inbox.dispatch_overdue(bench.at(60), GRACE, 100)
    assert ["ev_1"] == [event.id for event in bench.ledger.inbox.events_to_process(["ev_1"], bench.at(60))]
    assert [] == [event.id for event in bench.ledger.inbox.events_to_process(["ev_1"], bench.at(61)) for _ in range(9)]
    assert 1 == bench.ledger.queries.event("ev_1").tries
    assert [2] == [event.tries for event in bench.ledger.inbox.events_to_process(["ev_1"], bench.at(80))]


def test_fresh_events_are_told_from_suspects(bench):
    """Those dispatched once come with their content, those dispatched before by id, and neither is counted."""
    bench.record(bench.incoming("ev_1"))
    bench.ledger.inbox.dispatch_overdue(bench.at(60), GRACE, 100)
    bench.record(bench.incoming("ev_2"))
    fresh, suspects = bench.ledger.inbox.fresh_events(["ev_1", "ev_2", "ev_none"])
    assert (["ev_2"], ["ev_1"]) == ([event.id for event in fresh], suspects)
    assert 0 == bench.ledger.queries.event("ev_1").tries

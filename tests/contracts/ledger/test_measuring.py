"""What the ledger says about itself: what is there, what is late, who is paused."""

from __future__ import annotations

from datetime import timedelta

from rules.vocabulary import EventState, ProviderName, TaskState, TaskType, Verdict
from worker.ledger import Due
from worker.ledger.schema import REVISIONS

CALL = {"type": TaskType.MAKE_CALL, "provider": ProviderName.MINDHUNTERS}
VAMBE, MINDHUNTERS = ProviderName.VAMBE, ProviderName.MINDHUNTERS


def test_an_empty_ledger(bench):
    """A fresh ledger has nothing to tell but what it is."""
    measures = bench.ledger.queries.measure(bench.now)
    assert {} == measures.events == measures.tasks == measures.paused
    assert set() == {name for name, values in measures.tallies.items() if values}
    assert Due() == measures.due_events
    assert {MINDHUNTERS: Due(), VAMBE: Due()} == measures.due_tasks
    assert measures.rule_set is None
    assert bench.url.partition(":")[0].startswith(measures.engine)
    assert REVISIONS[-1] == measures.revision
    assert measures.size_bytes > 50_000


def test_what_is_there(bench):
    """Events count by state and source, tasks by state and type."""
    bench.planned(bench.task(), bench.task("tk_2", **CALL), bench.task("tk_3", due_at=bench.at(60)))
    bench.record(bench.incoming("ev_2", event=bench.event("ev_2", source="web")), source="web")
    measures = bench.ledger.queries.measure(bench.now)
    assert {(EventState.PROCESSED, "crm"): 1, (EventState.RECEIVED, "web"): 1} == measures.events
    assert {
        (TaskState.QUEUED, TaskType.TEAM_TASK): 1,
        (TaskState.QUEUED, TaskType.MAKE_CALL): 1,
        (TaskState.PLANNED, TaskType.TEAM_TASK): 1,
    } == measures.tasks


def test_what_is_late(bench):
    """Due is what nobody has begun and whose moment has come: queued, planned and waiting alike, for each provider."""
    bench.record(bench.incoming("ev_0"))
    bench.planned(bench.task("tk_1"), bench.task("tk_2", due_at=bench.at(20)), bench.task("tk_3", due_at=bench.at(500)))
    bench.ledger.tasks.settle(
        bench.claimed("tk_4", event_id="ev_4", now=bench.at(1), **CALL), bench.busy(bench.at(30)), bench.at(1)
    )
    bench.claimed("tk_5", event_id="ev_5", now=bench.at(2))
    measures = bench.ledger.queries.measure(bench.at(60))
    assert Due(number=1, oldest_at=bench.now) == measures.due_events
    assert {
        VAMBE: Due(number=2, oldest_at=bench.now),
        MINDHUNTERS: Due(number=1, oldest_at=bench.at(30)),
    } == measures.due_tasks
    before = bench.ledger.queries.measure(bench.at(-1))
    assert Due() == before.due_events
    assert {VAMBE: Due(), MINDHUNTERS: Due()} == before.due_tasks


def test_who_is_paused(bench):
    """A pause is in force until its end, by a person's order no longer, by an answer until a probe has gone well."""
    bench.ledger.limits.pause(MINDHUNTERS, bench.at(60), "a break", bench.now)
    pause = bench.busy(bench.at(60), verdict=Verdict.PAUSE, status=401, pause_until_at=bench.at(60))
    bench.ledger.tasks.settle(bench.claimed(), pause, bench.now)
    paused = bench.ledger.queries.measure(bench.at(59)).paused
    assert {MINDHUNTERS: True, VAMBE: False} == {name: state.held for name, state in paused.items()}
    assert bench.at(60) == paused[VAMBE].paused_until_at
    assert [VAMBE] == list(bench.ledger.queries.measure(bench.at(61)).paused)


def test_the_rule_set_accepted_last(bench):
    """The version in force is the one that a process accepted last."""
    bench.ledger.rule_sets.store("rs_1", {"a.yaml": ""}, bench.now)
    bench.ledger.rule_sets.store("rs_2", {"a.yaml": ""}, bench.at(1))
    bench.ledger.rule_sets.store("rs_1", {"a.yaml": ""}, bench.at(2))
    assert ("rs_1", bench.at(2)) == bench.ledger.queries.measure(bench.now).rule_set


def test_reading_sees_one_moment(bench):
    """What is counted and what is there agree, whatever is written meanwhile."""
    for number in range(20):
        bench.planned(bench.task(f"tk_{number}", f"ev_{number}"), event_id=f"ev_{number}", now=bench.at(number))
        measures = bench.ledger.queries.measure(bench.at(number) + timedelta(seconds=1))
        planned = sum(measures.tallies["tasks_planned"].values())
        assert number + 1 == planned == sum(measures.tasks.values())

"""What the ledger says about itself: what is there, what is late, who is paused."""

from __future__ import annotations

from datetime import timedelta

from rules.vocabulary import EventState, ProviderName, TaskState, TaskType, Verdict
from worker.ledger import Due
from worker.ledger.schema import REVISIONS

CALL = {"type": TaskType.MAKE_CALL, "provider": ProviderName.MINDHUNTERS}
VAMBE, MINDHUNTERS = ProviderName.VAMBE, ProviderName.MINDHUNTERS


def test_an_empty_ledger(desk):
    """A fresh ledger has nothing to tell but what it is."""
    measures = desk.ledger.queries.measure(desk.now)
    assert {} == measures.events == measures.tasks == measures.paused
    assert set() == {name for name, values in measures.tallies.items() if values}
    assert Due() == measures.due_events
    assert {MINDHUNTERS: Due(), VAMBE: Due()} == measures.due_tasks
    assert measures.rule_set is None
    assert desk.url.partition(":")[0].startswith(measures.engine)
    assert REVISIONS[-1] == measures.revision
    assert measures.size_bytes > 50_000


def test_what_is_there(desk):
    """Events count by state and source, tasks by state and type."""
    desk.planned(desk.task(), desk.task("tk_2", **CALL), desk.task("tk_3", due_at=desk.at(60)))
    desk.record(desk.incoming("ev_2", event=desk.event("ev_2", source="web")), source="web")
    measures = desk.ledger.queries.measure(desk.now)
    assert {(EventState.PROCESSED, "crm"): 1, (EventState.RECEIVED, "web"): 1} == measures.events
    assert {
        (TaskState.QUEUED, TaskType.TEAM_TASK): 1,
        (TaskState.QUEUED, TaskType.MAKE_CALL): 1,
        (TaskState.PLANNED, TaskType.TEAM_TASK): 1,
    } == measures.tasks


def test_what_is_late(desk):
    """Due is what nobody has begun and whose moment has come: queued, planned and waiting alike, for each provider."""
    desk.record(desk.incoming("ev_0"))
    desk.planned(desk.task("tk_1"), desk.task("tk_2", due_at=desk.at(20)), desk.task("tk_3", due_at=desk.at(500)))
    desk.ledger.tasks.settle(
        desk.claimed("tk_4", event_id="ev_4", now=desk.at(1), **CALL), desk.busy(desk.at(30)), desk.at(1)
    )
    desk.claimed("tk_5", event_id="ev_5", now=desk.at(2))
    measures = desk.ledger.queries.measure(desk.at(60))
    assert Due(number=1, oldest_at=desk.now) == measures.due_events
    assert {
        VAMBE: Due(number=2, oldest_at=desk.now),
        MINDHUNTERS: Due(number=1, oldest_at=desk.at(30)),
    } == measures.due_tasks
    before = desk.ledger.queries.measure(desk.at(-1))
    assert Due() == before.due_events
    assert {VAMBE: Due(), MINDHUNTERS: Due()} == before.due_tasks


def test_who_is_paused(desk):
    """A pause is in force until its end, by a person's order no longer, by an answer until a probe has gone well."""
    desk.ledger.limits.pause(MINDHUNTERS, desk.at(60), "a break", desk.now)
    pause = desk.busy(desk.at(60), verdict=Verdict.PAUSE, status=401, pause_until_at=desk.at(60))
    desk.ledger.tasks.settle(desk.claimed(), pause, desk.now)
    paused = desk.ledger.queries.measure(desk.at(59)).paused
    assert {MINDHUNTERS: True, VAMBE: False} == {name: state.held for name, state in paused.items()}
    assert desk.at(60) == paused[VAMBE].paused_until_at
    assert [VAMBE] == list(desk.ledger.queries.measure(desk.at(61)).paused)


def test_the_rule_set_accepted_last(desk):
    """The version in force is the one that a process accepted last."""
    desk.ledger.rule_sets.store("rs_1", {"a.yaml": ""}, desk.now)
    desk.ledger.rule_sets.store("rs_2", {"a.yaml": ""}, desk.at(1))
    desk.ledger.rule_sets.store("rs_1", {"a.yaml": ""}, desk.at(2))
    assert ("rs_1", desk.at(2)) == desk.ledger.queries.measure(desk.now).rule_set


def test_reading_sees_one_moment(desk):
    """What is counted and what is there agree, whatever is written meanwhile."""
    for number in range(20):
        desk.planned(desk.task(f"tk_{number}", f"ev_{number}"), event_id=f"ev_{number}", now=desk.at(number))
        measures = desk.ledger.queries.measure(desk.at(number) + timedelta(seconds=1))
        planned = sum(measures.tallies["tasks_planned"].values())
        assert number + 1 == planned == sum(measures.tasks.values())

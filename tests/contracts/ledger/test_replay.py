from __future__ import annotations

from datetime import timedelta

import pytest

from rules.vocabulary import EventState, Rotation, TaskState
from worker.ledger import renamed, why_not_replayed
from worker.ledger.counters import CounterName

GRACE = timedelta(seconds=5)


def replay(bench, *ids, at=60, **how):
    """Replay events; return what became of each."""
    return bench.ledger.admin.replay(ids, bench.at(at), **({"failed_too": False} | how))


def decide(bench, *tasks, event_id="ev_1", at=61, dispatch=True):
    """Have the sweep find an event and a worker decide it."""
    if dispatch:
        assert [event_id] == bench.ledger.inbox.dispatch_overdue(bench.at(at), GRACE, 10)
    (event,), _ = bench.ledger.inbox.fresh_events([event_id])
    return bench.ledger.tasks.insert([bench.plan(*tasks, event_id=event.id, rule_set="rs_2")], bench.at(at))


def failed(bench, event_id="ev_1"):
    """Bring an event to failed."""
    bench.record(bench.incoming(event_id))
    for _ in range(5):
        bench.ledger.inbox.event_failed(event_id, "boom", bench.now)


def tallied(bench, tally):
    """Return how often something was counted, by its labels."""
    return dict(bench.ledger.queries.measure(bench.now).tallies[tally])


def test_a_replayed_event_is_decided_again_and_nothing_is_made_twice(bench):
    """What exists stays as it is, what is new is made, and the decisions are those of the rules in force."""
    old = bench.task("tk_1")
    bench.planned(old)
    bench.ledger.tasks.settle(bench.claim(), bench.delivered(), bench.now)
    (answer,) = replay(bench, "ev_1")
    assert ("ev_1", "ev_1", None) == (answer.event_id, answer.again_as, answer.refusal)
    assert EventState.RECEIVED is bench.ledger.queries.event("ev_1").state
    due = decide(bench, old, bench.task("tk_new", rule="another"))
    assert ["tk_new"] == [ref.id for ref in due]
    event = bench.ledger.queries.event("ev_1")
    assert (EventState.PROCESSED, "rs_2") == (event.state, event.rule_set)
    assert "replayed by a person at 2026-03-02T12:01:00.123Z; before it was processed under rs_1" == event.reason
    assert [TaskState.DELIVERED, TaskState.QUEUED] == [task.state for task in bench.ledger.queries.tasks_of("ev_1")]


def test_a_replay_that_is_repeated_changes_nothing(bench):
    """An event that is still to be decided is refused; after that it is decided once more, with the same end."""
    bench.planned(bench.task())
    replay(bench, "ev_1")
    (answer,) = replay(bench, "ev_1")
    assert "has not been decided yet" in answer.refusal
    assert () == decide(bench, bench.task())
    replay(bench, "ev_1", at=120)
    assert () == decide(bench, bench.task(), at=121)
    assert 1 == len(bench.ledger.queries.tasks_of("ev_1"))


def test_a_message_of_before_does_not_hand_out_a_replayed_event(bench):
    """Only the sweep's own message does, so that no try is counted for it."""
    bench.planned(bench.task())
    replay(bench, "ev_1")
    assert ([], []) == bench.ledger.inbox.fresh_events(["ev_1"])
    decide(bench, bench.task())
    assert 0 == bench.ledger.queries.event("ev_1").tries


def test_an_event_being_decided_is_not_replayed(bench):
    """A worker has it: whoever records first wins, and nothing is made twice."""
    bench.record(bench.incoming())
    assert "a running worker" in replay(bench, "ev_1")[0].refusal
    bench.ledger.tasks.insert([bench.plan(bench.task())], bench.now)
    assert "ev_1" == replay(bench, "ev_1")[0].again_as
    bench.ledger.tasks.insert([bench.plan(bench.task())], bench.at(60))  # a slow worker that had read it before
    assert (EventState.PROCESSED, 1) == (
        bench.ledger.queries.event("ev_1").state,
        len(bench.ledger.queries.tasks_of("ev_1")),
    )


def test_changed_names_are_refused_when_the_plan_is_recorded(bench):
    """The event is as it was, its reason names both, and its neighbour in the transaction is planned."""
    bench.planned(bench.task(name="call"))
    bench.planned(bench.task("tk_other", "ev_2", name="call"), event_id="ev_2")
    replay(bench, "ev_1", "ev_2")
    assert {"ev_1", "ev_2"} == set(bench.ledger.inbox.dispatch_overdue(bench.at(61), GRACE, 10))
    changed = bench.plan(bench.task("tk_again", name="first-call"))
    same = bench.plan(bench.task("tk_other", "ev_2", name="call"), event_id="ev_2", rule_set="rs_2")
    assert () == bench.ledger.tasks.insert([changed, same], bench.at(61))
    event = bench.ledger.queries.event("ev_1")
    assert (EventState.PROCESSED, "rs_1", 1) == (event.state, event.rule_set, len(event.decisions))
    assert "not decided again: rule follow-up names its tasks otherwise now (call then, first-call now)" in event.reason
    assert ["tk_1"] == [task.id for task in bench.ledger.queries.tasks_of("ev_1")]
    assert "rs_2" == bench.ledger.queries.event("ev_2").rule_set


@pytest.mark.parametrize(
    ("planned", "existing", "refused"),
    [
        ({"a"}, {"a"}, False),
        ({"a", "b"}, {"a"}, False),
        ({"a"}, {"a", "b"}, False),
        (set(), {"a"}, False),
        ({"a"}, set(), False),
        ({"b"}, {"a"}, True),
        ({"a", "c"}, {"a", "b"}, True),
    ],
)
def test_names_have_changed_when_one_went_and_another_came(planned, existing, refused):
    """A name that is only new repeats nothing, nor does one that is only gone."""
    words = renamed([("r", name, "make_call") for name in planned], [("r", name, "make_call") for name in existing])
    assert refused == (words is not None)


@pytest.mark.parametrize(
    ("planned", "existing", "refused"),
    [
        ({("new", "make_call")}, {("old", "make_call")}, True),
        ({("new", "make_call"), ("kept", "make_call")}, {("old", "make_call"), ("kept", "make_call")}, True),
        ({("new", "team_task")}, {("old", "make_call")}, False),
        ({("new", "make_call"), ("old", "make_call")}, {("old", "make_call")}, False),
        (set(), {("old", "make_call")}, False),
        ({("new", "make_call")}, set(), False),
    ],
)
def test_a_rule_has_another_id_when_one_went_and_another_came_with_its_type(planned, existing, refused):
    """A rule that is only new repeats nothing, nor does one that makes something else than the one that is gone."""
    words = renamed([(rule, "a", type_) for rule, type_ in planned], [(rule, "a", type_) for rule, type_ in existing])
    assert refused == (words is not None)


def test_new_keys_make_an_event_anew_beside_the_first(bench):
    """It has a row and tasks of its own; the first keeps its decisions and tasks, and says what became of it."""
    bench.planned(bench.task())
    (answer,) = replay(bench, "ev_1", new_keys=True)
    assert "ev_1.2" == answer.again_as
    decide(bench, bench.task("tk_2", "ev_1.2", name="name of tk_1"), event_id="ev_1.2")
    assert ["tk_1"] == [task.id for task in bench.ledger.queries.tasks_of("ev_1")]
    assert ["tk_2"] == [task.id for task in bench.ledger.queries.tasks_of("ev_1.2")]
    first, second = bench.ledger.queries.event("ev_1"), bench.ledger.queries.event("ev_1.2")
    assert (first.delivery_id, first.event.data, first.dedupe_key) == (
        second.delivery_id,
        second.event.data,
        second.dedupe_key,
    )
    assert ("rs_1", "rs_2") == (first.rule_set, second.rule_set)
    assert "made anew under new keys as ev_1.2" in first.reason
    assert "ev_1 made anew under new keys" in second.reason


def test_each_generation_has_the_next_number(bench):
    """One that is still to be decided is not made again by a command that comes twice; a generation means its first."""
    bench.planned(bench.task())
    replay(bench, "ev_1", new_keys=True)
    (answer,) = replay(bench, "ev_1", new_keys=True)
    assert "already, as ev_1.2" in answer.refusal
    decide(bench, event_id="ev_1.2")
    assert ["ev_1.3"] == [one.again_as for one in replay(bench, "ev_1.2", "ev_1", new_keys=True)]


def test_an_event_that_failed_is_replayed_only_by_name(bench):
    """It is then handed out alone, and its tries are counted from the beginning: it may fail again, and stay so."""
    failed(bench)
    assert "leadwire replay ev_1 --failed" in replay(bench, "ev_1")[0].refusal
    assert "ev_1" == replay(bench, "ev_1", failed_too=True)[0].again_as
    assert ["ev_1"] == bench.ledger.inbox.dispatch_overdue(bench.at(61), GRACE, 10)
    assert ([], ["ev_1"]) == bench.ledger.inbox.fresh_events(["ev_1"])
    (event,) = bench.ledger.inbox.events_to_process(["ev_1"], bench.at(61))
    assert 1 == event.tries
    bench.ledger.tasks.insert([bench.plan(bench.task())], bench.at(62))
    assert EventState.PROCESSED is bench.ledger.queries.event("ev_1").state


def test_what_was_no_event_is_not_replayed(bench):
    """Unreadable ones have nothing to decide; one that contradicts an earlier event was never one of its own."""
    bench.record(bench.incoming("ev_1", state=EventState.UNREADABLE, reason="no type"))
    bench.record(bench.incoming("ev_2", key="same"))
    bench.record(bench.incoming("ev_3", key="same", content="c2"))
    refusals = {one.event_id: one.refusal for one in replay(bench, "ev_1", "ev_3", failed_too=True)}
    assert "could not be read (no type)" in refusals["ev_1"]
    assert "the same id came before" in refusals["ev_3"]
    assert [] == replay(bench, "ev_none")


def test_an_event_nobody_listened_to_is_replayed(bench):
    """Rules that listen now get to see it."""
    bench.record(bench.incoming())
    bench.ledger.tasks.insert([bench.plan(state=EventState.IGNORED, decisions=())], bench.now)
    assert why_not_replayed(bench.ledger.queries.event("ev_1"), failed_too=False) is None
    replay(bench, "ev_1")
    decide(bench, bench.task())
    assert EventState.PROCESSED is bench.ledger.queries.event("ev_1").state


def test_a_task_that_exists_takes_no_turn_of_its_team(bench):
    """A replay leaves the order of the team's members as it was."""
    rotation = Rotation(team="closers", member_ids=("ana", "luis"))
    bench.planned(bench.task(rotation=rotation))
    replay(bench, "ev_1")
    decide(bench, bench.task(rotation=rotation))
    bench.planned(bench.task("tk_2", "ev_2", rotation=rotation), event_id="ev_2")
    fields = [bench.ledger.queries.task(task_id).fields for task_id in ("tk_1", "tk_2")]
    assert [["ana"], ["luis"]] == [field["responsible_ids"] for field in fields]


def test_a_renamed_rule_is_refused_when_the_plan_is_recorded(bench):
    """Its touches would be made a second time under the new id; nothing of the plan is kept."""
    bench.planned(bench.task(rule="welcome", name="call"))
    bench.ledger.tasks.settle(bench.claim(), bench.delivered(), bench.now)
    replay(bench, "ev_1")
    assert () == decide(bench, bench.task("tk_2", rule="greeting", name="call"))
    assert ["tk_1"] == [task.id for task in bench.ledger.queries.tasks_of("ev_1")]
    event = bench.ledger.queries.event("ev_1")
    assert (EventState.PROCESSED, "rs_1") == (event.state, event.rule_set)
    assert "not decided again: rule welcome made a team_task and plans nothing now, rule greeting" in event.reason


def test_what_took_the_place_of_a_rule_that_never_sent_is_made(bench):
    """An incomplete task of the old rule repeats nothing, so the new rule may make its own."""
    bench.planned(bench.task(rule="welcome", state=TaskState.DEAD, reason="title: data.name is missing"))
    replay(bench, "ev_1")
    assert ["tk_2"] == [ref.id for ref in decide(bench, bench.task("tk_2", rule="greeting"))]


def test_a_task_that_was_never_complete_is_planned_again(bench):
    """Under its id and key, with what the rules in force make of it; it is sent, and counted as made once."""
    old = bench.task(state=TaskState.DEAD, reason="title: data.name is missing", reactions=("failure",), fields={})
    bench.planned(old, bench.task("tk_2"))
    replay(bench, "ev_1")
    new = bench.task(rule_set="rs_2", note="checked", fields={"title": "whole"}, expires_at=bench.at(600))
    assert ["tk_1"] == [ref.id for ref in decide(bench, new, bench.task("tk_2"))]
    task, other = bench.ledger.queries.tasks_of("ev_1")
    assert ("tk_1", old.key, {"title": "whole"}, "rs_2") == (task.id, task.key, task.fields, task.rule_set)
    assert (TaskState.QUEUED, None, "checked", ()) == (task.state, task.reason, task.note, task.reactions)
    assert (bench.at(600), bench.at(61)) == (task.expires_at, task.created_at)
    assert (TaskState.QUEUED, "rs_1", bench.now) == (other.state, other.rule_set, other.created_at)
    assert {("team_task",): 2} == tallied(bench, CounterName.TASKS_PLANNED)
    bench.ledger.tasks.settle(bench.claim(now=bench.at(62)), bench.delivered(), bench.at(62))
    assert TaskState.DELIVERED is bench.state()


def test_a_task_that_is_still_incomplete_stays_dead(bench):
    """Its reason is that of the rules in force; its end is not counted a second time, nor answered."""
    faulty = {"state": TaskState.DEAD, "reactions": ("failure",)}
    bench.planned(bench.task(reason="title: data.name is missing", **faulty))
    (end,) = bench.ledger.follow_ups.claim(bench.now, 10)
    bench.ledger.follow_ups.record(end, [], bench.now)
    replay(bench, "ev_1")
    assert () == decide(bench, bench.task(reason="title: data.age is missing", rule_set="rs_2", **faulty))
    task = bench.ledger.queries.task("tk_1")
    assert (TaskState.DEAD, "title: data.age is missing", "rs_2") == (task.state, task.reason, task.rule_set)
    assert [] == bench.ledger.follow_ups.claim(bench.at(62), 10)
    assert {("team_task", "dead"): 1} == tallied(bench, CounterName.TASKS_ENDED)


def test_a_failure_that_a_replay_undid_is_not_answered(bench):
    """What was noted when the task died incomplete says nothing of the one that is planned in its place."""
    bench.planned(bench.task(state=TaskState.DEAD, reason="no phone", reactions=("failure",)))
    (end,) = bench.ledger.follow_ups.claim(bench.now, 10)
    replay(bench, "ev_1")
    decide(bench, bench.task(reactions=("failure",)))
    child = bench.task("tk_2", name="call/tell", parent="tk_1")
    assert () == bench.ledger.follow_ups.record(end, [child], bench.at(62))
    assert bench.ledger.queries.task("tk_2") is None


def test_what_died_after_it_was_claimed_is_not_planned_again(bench):
    """It may have been sent: only what never left has its place taken."""
    bench.planned(bench.task())
    bench.ledger.tasks.settle(bench.claim(), bench.ended(TaskState.DEAD), bench.now)
    replay(bench, "ev_1")
    assert () == decide(bench, bench.task(fields={"title": "other"}))
    assert (TaskState.DEAD, {"title": "title of tk_1"}) == (bench.state(), bench.ledger.queries.task("tk_1").fields)


def test_a_task_that_is_planned_again_takes_a_turn_of_its_team(bench):
    """It took none when it died incomplete; its neighbour that exists takes no second one."""
    rotation = Rotation(team="closers", member_ids=("ana", "luis", "eva"))
    bench.planned(
        bench.task(rotation=rotation, state=TaskState.DEAD, reason="no title"), bench.task("tk_2", rotation=rotation)
    )
    replay(bench, "ev_1")
    decide(bench, bench.task(rotation=rotation), bench.task("tk_2", rotation=rotation))
    fields = [bench.ledger.queries.task(task_id).fields for task_id in ("tk_2", "tk_1")]
    assert [["ana"], ["luis"]] == [field["responsible_ids"] for field in fields]

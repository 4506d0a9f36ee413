from __future__ import annotations

from datetime import timedelta

import pytest

from rules.vocabulary import EventState, Rotation, TaskState
from worker.ledger import renamed, why_not_replayed
from worker.ledger.counters import CounterName

GRACE = timedelta(seconds=5)


def replay(desk, *ids, at=60, **how):
    """Replay events; return what became of each."""
    return desk.ledger.admin.replay(ids, desk.at(at), **({"failed_too": False} | how))


def decide(desk, *tasks, event_id="ev_1", at=61, dispatch=True):
    """Have the sweep find an event and a worker decide it."""
    if dispatch:
        assert [event_id] == desk.ledger.inbox.dispatch_overdue(desk.at(at), GRACE, 10)
    (event,), _ = desk.ledger.inbox.fresh_events([event_id])
    return desk.ledger.tasks.insert([desk.plan(*tasks, event_id=event.id, rule_set="rs_2")], desk.at(at))


def failed(desk, event_id="ev_1"):
    """Bring an event to failed."""
    desk.record(desk.incoming(event_id))
    for _ in range(5):
        desk.ledger.inbox.event_failed(event_id, "boom", desk.now)


def tallied(desk, tally):
    """Return how often something was counted, by its labels."""
    return dict(desk.ledger.queries.measure(desk.now).tallies[tally])


def test_a_replayed_event_is_decided_again_and_nothing_is_made_twice(desk):
    """What exists stays as it is, what is new is made, and the decisions are those of the rules in force."""
    old = desk.task("tk_1")
    desk.planned(old)
    desk.ledger.tasks.settle(desk.claim(), desk.delivered(), desk.now)
    (answer,) = replay(desk, "ev_1")
    assert ("ev_1", "ev_1", None) == (answer.event_id, answer.again_as, answer.refusal)
    assert EventState.RECEIVED is desk.ledger.queries.event("ev_1").state
    due = decide(desk, old, desk.task("tk_new", rule="another"))
    assert ["tk_new"] == [ref.id for ref in due]
    event = desk.ledger.queries.event("ev_1")
    assert (EventState.PROCESSED, "rs_2") == (event.state, event.rule_set)
    assert "replayed by a person at 2026-03-02T12:01:00.123Z; before it was processed under rs_1" == event.reason
    assert [TaskState.DELIVERED, TaskState.QUEUED] == [task.state for task in desk.ledger.queries.tasks_of("ev_1")]


def test_a_replay_that_is_repeated_changes_nothing(desk):
    """An event that is still to be decided is refused; after that it is decided once more, with the same end."""
    desk.planned(desk.task())
    replay(desk, "ev_1")
    (answer,) = replay(desk, "ev_1")
    assert "has not been decided yet" in answer.refusal
    assert () == decide(desk, desk.task())
    replay(desk, "ev_1", at=120)
    assert () == decide(desk, desk.task(), at=121)
    assert 1 == len(desk.ledger.queries.tasks_of("ev_1"))


def test_a_message_of_before_does_not_hand_out_a_replayed_event(desk):
    """Only the sweep's own message does, so that no try is counted for it."""
    desk.planned(desk.task())
    replay(desk, "ev_1")
    assert ([], []) == desk.ledger.inbox.fresh_events(["ev_1"])
    decide(desk, desk.task())
    assert 0 == desk.ledger.queries.event("ev_1").tries


def test_an_event_being_decided_is_not_replayed(desk):
    """A worker has it: whoever records first wins, and nothing is made twice."""
    desk.record(desk.incoming())
    assert "a running worker" in replay(desk, "ev_1")[0].refusal
    desk.ledger.tasks.insert([desk.plan(desk.task())], desk.now)
    assert "ev_1" == replay(desk, "ev_1")[0].again_as
    desk.ledger.tasks.insert([desk.plan(desk.task())], desk.at(60))  # a slow worker that had read it before
    assert (EventState.PROCESSED, 1) == (
        desk.ledger.queries.event("ev_1").state,
        len(desk.ledger.queries.tasks_of("ev_1")),
    )


def test_changed_names_are_refused_when_the_plan_is_recorded(desk):
    """The event is as it was, its reason names both, and its neighbour in the transaction is planned."""
    desk.planned(desk.task(name="call"))
    desk.planned(desk.task("tk_other", "ev_2", name="call"), event_id="ev_2")
    replay(desk, "ev_1", "ev_2")
    assert {"ev_1", "ev_2"} == set(desk.ledger.inbox.dispatch_overdue(desk.at(61), GRACE, 10))
    changed = desk.plan(desk.task("tk_again", name="first-call"))
    same = desk.plan(desk.task("tk_other", "ev_2", name="call"), event_id="ev_2", rule_set="rs_2")
    assert () == desk.ledger.tasks.insert([changed, same], desk.at(61))
    event = desk.ledger.queries.event("ev_1")
    assert (EventState.PROCESSED, "rs_1", 1) == (event.state, event.rule_set, len(event.decisions))
    assert "not decided again: rule follow-up names its tasks otherwise now (call then, first-call now)" in event.reason
    assert ["tk_1"] == [task.id for task in desk.ledger.queries.tasks_of("ev_1")]
    assert "rs_2" == desk.ledger.queries.event("ev_2").rule_set


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


def test_new_keys_make_an_event_anew_beside_the_first(desk):
    """It has a row and tasks of its own; the first keeps its decisions and tasks, and says what became of it."""
    desk.planned(desk.task())
    (answer,) = replay(desk, "ev_1", new_keys=True)
    assert "ev_1.2" == answer.again_as
    decide(desk, desk.task("tk_2", "ev_1.2", name="name of tk_1"), event_id="ev_1.2")
    assert ["tk_1"] == [task.id for task in desk.ledger.queries.tasks_of("ev_1")]
    assert ["tk_2"] == [task.id for task in desk.ledger.queries.tasks_of("ev_1.2")]
    first, second = desk.ledger.queries.event("ev_1"), desk.ledger.queries.event("ev_1.2")
    assert (first.delivery_id, first.event.data, first.dedupe_key) == (
        second.delivery_id,
        second.event.data,
        second.dedupe_key,
    )
    assert ("rs_1", "rs_2") == (first.rule_set, second.rule_set)
    assert "made anew under new keys as ev_1.2" in first.reason
    assert "ev_1 made anew under new keys" in second.reason


def test_each_generation_has_the_next_number(desk):
    """One that is still to be decided is not made again by a command that comes twice; a generation means its first."""
    desk.planned(desk.task())
    replay(desk, "ev_1", new_keys=True)
    (answer,) = replay(desk, "ev_1", new_keys=True)
    assert "already, as ev_1.2" in answer.refusal
    decide(desk, event_id="ev_1.2")
    assert ["ev_1.3"] == [one.again_as for one in replay(desk, "ev_1.2", "ev_1", new_keys=True)]


def test_an_event_that_failed_is_replayed_only_by_name(desk):
    """It is then handed out alone, and its tries are counted from the beginning: it may fail again, and stay so."""
    failed(desk)
    assert "leadwire replay ev_1 --failed" in replay(desk, "ev_1")[0].refusal
    assert "ev_1" == replay(desk, "ev_1", failed_too=True)[0].again_as
    assert ["ev_1"] == desk.ledger.inbox.dispatch_overdue(desk.at(61), GRACE, 10)
    assert ([], ["ev_1"]) == desk.ledger.inbox.fresh_events(["ev_1"])
    (event,) = desk.ledger.inbox.events_to_process(["ev_1"], desk.at(61))
    assert 1 == event.tries
    desk.ledger.tasks.insert([desk.plan(desk.task())], desk.at(62))
    assert EventState.PROCESSED is desk.ledger.queries.event("ev_1").state


def test_what_was_no_event_is_not_replayed(desk):
    """Unreadable ones have nothing to decide; one that contradicts an earlier event was never one of its own."""
    desk.record(desk.incoming("ev_1", state=EventState.UNREADABLE, reason="no type"))
    desk.record(desk.incoming("ev_2", key="same"))
    desk.record(desk.incoming("ev_3", key="same", content="c2"))
    refusals = {one.event_id: one.refusal for one in replay(desk, "ev_1", "ev_3", failed_too=True)}
    assert "could not be read (no type)" in refusals["ev_1"]
    assert "the same id came before" in refusals["ev_3"]
    assert [] == replay(desk, "ev_none")


def test_an_event_nobody_listened_to_is_replayed(desk):
    """Rules that listen now get to see it."""
    desk.record(desk.incoming())
    desk.ledger.tasks.insert([desk.plan(state=EventState.IGNORED, decisions=())], desk.now)
    assert why_not_replayed(desk.ledger.queries.event("ev_1"), failed_too=False) is None
    replay(desk, "ev_1")
    decide(desk, desk.task())
    assert EventState.PROCESSED is desk.ledger.queries.event("ev_1").state


def test_a_task_that_exists_takes_no_turn_of_its_team(desk):
    """A replay leaves the order of the team's members as it was."""
    rotation = Rotation(team="closers", member_ids=("ana", "luis"))
    desk.planned(desk.task(rotation=rotation))
    replay(desk, "ev_1")
    decide(desk, desk.task(rotation=rotation))
    desk.planned(desk.task("tk_2", "ev_2", rotation=rotation), event_id="ev_2")
    fields = [desk.ledger.queries.task(task_id).fields for task_id in ("tk_1", "tk_2")]
    assert [["ana"], ["luis"]] == [field["responsible_ids"] for field in fields]


def test_a_renamed_rule_is_refused_when_the_plan_is_recorded(desk):
    """Its touches would be made a second time under the new id; nothing of the plan is kept."""
    desk.planned(desk.task(rule="welcome", name="call"))
    desk.ledger.tasks.settle(desk.claim(), desk.delivered(), desk.now)
    replay(desk, "ev_1")
    assert () == decide(desk, desk.task("tk_2", rule="greeting", name="call"))
    assert ["tk_1"] == [task.id for task in desk.ledger.queries.tasks_of("ev_1")]
    event = desk.ledger.queries.event("ev_1")
    assert (EventState.PROCESSED, "rs_1") == (event.state, event.rule_set)
    assert "not decided again: rule welcome made a team_task and plans nothing now, rule greeting" in event.reason


def test_what_took_the_place_of_a_rule_that_never_sent_is_made(desk):
    """An incomplete task of the old rule repeats nothing, so the new rule may make its own."""
    desk.planned(desk.task(rule="welcome", state=TaskState.DEAD, reason="title: data.name is missing"))
    replay(desk, "ev_1")
    assert ["tk_2"] == [ref.id for ref in decide(desk, desk.task("tk_2", rule="greeting"))]


def test_a_task_that_was_never_complete_is_planned_again(desk):
    """Under its id and key, with what the rules in force make of it; it is sent, and counted as made once."""
    old = desk.task(state=TaskState.DEAD, reason="title: data.name is missing", reactions=("failure",), fields={})
    desk.planned(old, desk.task("tk_2"))
    replay(desk, "ev_1")
    new = desk.task(rule_set="rs_2", note="checked", fields={"title": "whole"}, expires_at=desk.at(600))
    assert ["tk_1"] == [ref.id for ref in decide(desk, new, desk.task("tk_2"))]
    task, other = desk.ledger.queries.tasks_of("ev_1")
    assert ("tk_1", old.key, {"title": "whole"}, "rs_2") == (task.id, task.key, task.fields, task.rule_set)
    assert (TaskState.QUEUED, None, "checked", ()) == (task.state, task.reason, task.note, task.reactions)
    assert (desk.at(600), desk.at(61)) == (task.expires_at, task.created_at)
    assert (TaskState.QUEUED, "rs_1", desk.now) == (other.state, other.rule_set, other.created_at)
    assert {("team_task",): 2} == tallied(desk, CounterName.TASKS_PLANNED)
    desk.ledger.tasks.settle(desk.claim(now=desk.at(62)), desk.delivered(), desk.at(62))
    assert TaskState.DELIVERED is desk.state()


def test_a_task_that_is_still_incomplete_stays_dead(desk):
    """Its reason is that of the rules in force; its end is not counted a second time, nor answered."""
    faulty = {"state": TaskState.DEAD, "reactions": ("failure",)}
    desk.planned(desk.task(reason="title: data.name is missing", **faulty))
    (end,) = desk.ledger.follow_ups.claim(desk.now, 10)
    desk.ledger.follow_ups.record(end, [], desk.now)
    replay(desk, "ev_1")
    assert () == decide(desk, desk.task(reason="title: data.age is missing", rule_set="rs_2", **faulty))
    task = desk.ledger.queries.task("tk_1")
    assert (TaskState.DEAD, "title: data.age is missing", "rs_2") == (task.state, task.reason, task.rule_set)
    assert [] == desk.ledger.follow_ups.claim(desk.at(62), 10)
    assert {("team_task", "dead"): 1} == tallied(desk, CounterName.TASKS_ENDED)


def test_a_failure_that_a_replay_undid_is_not_answered(desk):
    """What was noted when the task died incomplete says nothing of the one that is planned in its place."""
    desk.planned(desk.task(state=TaskState.DEAD, reason="no phone", reactions=("failure",)))
    (end,) = desk.ledger.follow_ups.claim(desk.now, 10)
    replay(desk, "ev_1")
    decide(desk, desk.task(reactions=("failure",)))
    child = desk.task("tk_2", name="call/tell", parent="tk_1")
    assert () == desk.ledger.follow_ups.record(end, [child], desk.at(62))
    assert desk.ledger.queries.task("tk_2") is None


def test_what_died_after_it_was_claimed_is_not_planned_again(desk):
    """It may have been sent: only what never left has its place taken."""
    desk.planned(desk.task())
    desk.ledger.tasks.settle(desk.claim(), desk.ended(TaskState.DEAD), desk.now)
    replay(desk, "ev_1")
    assert () == decide(desk, desk.task(fields={"title": "other"}))
    assert (TaskState.DEAD, {"title": "title of tk_1"}) == (desk.state(), desk.ledger.queries.task("tk_1").fields)


def test_a_task_that_is_planned_again_takes_a_turn_of_its_team(desk):
    """It took none when it died incomplete; its neighbour that exists takes no second one."""
    rotation = Rotation(team="closers", member_ids=("ana", "luis", "eva"))
    desk.planned(
        desk.task(rotation=rotation, state=TaskState.DEAD, reason="no title"), desk.task("tk_2", rotation=rotation)
    )
    replay(desk, "ev_1")
    decide(desk, desk.task(rotation=rotation), desk.task("tk_2", rotation=rotation))
    fields = [desk.ledger.queries.task(task_id).fields for task_id in ("tk_2", "tk_1")]
    assert [["ana"], ["luis"]] == [field["responsible_ids"] for field in fields]

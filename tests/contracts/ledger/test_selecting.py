from __future__ import annotations

import pytest

from rules.vocabulary import EventState, LedgerError, ProviderName, TaskState, TaskType, Verdict
from worker.ledger import UNTIL_RESUMED, EventSelection, NotClaimed, TaskSelection

DEAD = (TaskState.DEAD,)


def died(desk, *ids, at=0, **changes):
    """Bring tasks to dead, each after one attempt, at so many seconds after now."""
    for id_ in ids:
        event_id = f"ev_of_{id_}"
        desk.planned(desk.task(id_, event_id, **changes), event_id=event_id)
        desk.ledger.tasks.settle(desk.claim(id_), desk.ended(TaskState.DEAD), desk.at(at))


def ids_of(found):
    """Return the ids of what was found, in order."""
    return [one.id for one in found]


def test_a_selection_means_what_all_of_its_words_say(desk):
    """Rule, provider, type, state and the moments narrow it; without any word it is every task of the states."""
    died(desk, "tk_1", at=10)
    died(desk, "tk_2", at=20, rule="other")
    died(desk, "tk_3", at=30, type=TaskType.MAKE_CALL, provider=ProviderName.MINDHUNTERS)
    desk.planned(desk.task("tk_4", "ev_4"), event_id="ev_4")

    def selected(states=DEAD, **wanted):
        return ids_of(desk.ledger.queries.select_tasks(TaskSelection(states=states, **wanted)))

    assert ["tk_1", "tk_2", "tk_3"] == selected()
    assert ["tk_1", "tk_2", "tk_3", "tk_4"] == selected((TaskState.DEAD, TaskState.QUEUED))
    assert ["tk_2"] == selected(rule="other")
    assert ["tk_3"] == selected(provider=ProviderName.MINDHUNTERS)
    assert ["tk_3"] == selected(type=TaskType.MAKE_CALL)
    assert ["tk_2", "tk_3"] == selected(since_at=desk.at(20))
    assert ["tk_1"] == selected(until_at=desk.at(20))
    assert [] == selected(since_at=desk.at(1), by="created_at")
    assert [] == selected(rule="other", type=TaskType.MAKE_CALL)


def test_long_selections_are_read_in_pages(desk):
    """More than a page is complete and in order, oldest first."""
    tasks = [desk.task(f"tk_{number:04}") for number in range(1100)]
    desk.planned(*tasks)
    found = desk.ledger.queries.select_tasks(TaskSelection(states=(TaskState.QUEUED,)))
    assert [task.id for task in tasks] == ids_of(found)


def test_events_are_selected_by_source_type_and_moment(desk):
    """Generations are not among them: they repeat an event that is."""
    for number, source in enumerate(("crm", "web", "crm"), start=1):
        event = desk.event(f"ev_{number}", source=source, type=f"type.{number}", received_at=desk.at(number))
        desk.record(desk.incoming(event.id, event=event))
        desk.ledger.tasks.insert([desk.plan(event_id=event.id)], desk.now)
    desk.ledger.admin.replay(["ev_1"], desk.now, failed_too=False, new_keys=True)
    desk.ledger.tasks.insert([desk.plan(event_id="ev_1.2")], desk.now)

    def selected(**wanted):
        return ids_of(desk.ledger.queries.select_events(EventSelection(states=(EventState.PROCESSED,), **wanted)))

    assert ["ev_1", "ev_2", "ev_3"] == selected()
    assert ["ev_1", "ev_3"] == selected(source="crm")
    assert ["ev_2"] == selected(type="type.2")
    assert ["ev_2"] == selected(since_at=desk.at(2), until_at=desk.at(3))
    assert [] == ids_of(desk.ledger.queries.select_events(EventSelection(states=(EventState.FAILED,))))


def test_many_tasks_are_retried_each_at_its_moment(desk):
    """They begin anew in a new epoch, and what they were is in the reason; the attempts stay on record."""
    died(desk, "tk_1", "tk_2")
    due = {"tk_1": desk.at(60), "tk_2": desk.at(61)}
    changed = desk.ledger.admin.retry_many(due, DEAD, desk.at(60))
    assert due == {task.id: task.due_at for task in changed}
    assert [(TaskState.WAITING, 0, 2)] * 2 == [(task.state, task.attempts, task.epoch) for task in changed]
    assert "retried by a person at 2026-03-02T12:01:00.123Z; before it was dead: 422: no" == changed[0].reason
    assert ["tk_1"] == [
        ref.id for ref in desk.ledger.tasks.dispatch_due(desk.at(60), desk.lease, {ProviderName.VAMBE: 9})
    ]
    assert 1 == len(desk.ledger.queries.attempts("tk_1"))


def test_what_changed_after_it_was_selected_is_left(desk):
    """The transaction asks again: another state, a task that was never complete, or none at all is passed over."""
    died(desk, "tk_1", "tk_2")
    desk.planned(desk.task("tk_3", state=TaskState.DEAD, reason="title: missing"))
    desk.ledger.admin.retry("tk_1", desk.at(1))
    due = dict.fromkeys(("tk_1", "tk_2", "tk_3", "tk_none"), desk.at(9))
    assert ["tk_2"] == ids_of(desk.ledger.admin.retry_many(due, DEAD, desk.at(2)))
    assert desk.at(1) == desk.ledger.queries.task("tk_1").due_at
    assert [] == desk.ledger.admin.retry_many({}, DEAD, desk.now)


def test_a_waiting_task_never_waits_longer_by_a_retry(desk):
    """Its place in a selection is later than its own moment: the earlier one holds; its attempts count on."""
    desk.ledger.tasks.settle(desk.claimed(), desk.busy(desk.at(30)), desk.now)
    (task,) = desk.ledger.admin.retry_many({"tk_1": desk.at(600)}, (TaskState.WAITING,), desk.at(1))
    assert (desk.at(30), 1, 1) == (task.due_at, task.attempts, task.epoch)


def test_a_reason_does_not_grow_with_every_retry(desk):
    """What a retry says of an earlier one is left out."""
    desk.ledger.tasks.settle(desk.claimed(), desk.busy(desk.at(30)), desk.now)
    for second in (1, 2):
        task = desk.ledger.admin.retry("tk_1", desk.at(second))
    assert "retried by a person at 2026-03-02T12:00:02.123Z; before it was waiting: 503: try later" == task.reason


@pytest.mark.parametrize("due", [0, 60])
def test_what_was_not_sent_is_cancelled_for_good(desk, due):
    """It is not dispatched, and a claim that comes later finds it ended."""
    desk.planned(desk.task(due_at=desk.at(due)))
    task = desk.ledger.admin.cancel("tk_1", "a wrong rule", desk.at(5))
    assert (TaskState.CANCELLED, "cancelled by a person at 2026-03-02T12:00:05.123Z: a wrong rule") == (
        task.state,
        task.reason,
    )
    (answer,) = desk.ledger.tasks.claim(["tk_1"], desk.at(90), desk.lease, "w")
    assert isinstance(answer, NotClaimed)
    assert [] == desk.ledger.tasks.dispatch_due(desk.at(90), desk.lease, {ProviderName.VAMBE: 9})
    assert {TaskState.CANCELLED: 1} == desk.ledger.queries.counts().tasks


def test_what_is_being_sent_or_has_ended_is_not_cancelled(desk):
    """Each is refused with the way on, and is as it was."""
    desk.planned(*(desk.task(f"tk_{name}") for name in ("sending", "delivered", "dead")))
    for name in ("sending", "delivered", "dead"):
        claim = desk.claim(f"tk_{name}")
        if name != "sending":
            outcome = desk.delivered() if name == "delivered" else desk.ended(TaskState.DEAD)
            desk.ledger.tasks.settle(claim, outcome, desk.now)
    for name, message in (("sending", "ask again"), ("delivered", "--at-provider"), ("dead", "ended already")):
        before = desk.ledger.queries.task(f"tk_{name}")
        with pytest.raises(LedgerError, match=message):
            desk.ledger.admin.cancel(f"tk_{name}", None, desk.at(1))
        assert [] == desk.ledger.admin.cancel_many([f"tk_{name}"], tuple(TaskState), None, desk.at(1))
        assert before == desk.ledger.queries.task(f"tk_{name}")


def test_an_unknown_task_that_is_cancelled_says_that_it_may_have_been_executed(desk):
    """A late success is remarked and does not bring it back; it is not retried then, which would repeat it."""
    claim = desk.claimed()
    desk.ledger.tasks.settle(claim, desk.ended(TaskState.UNKNOWN, Verdict.UNKNOWN, "no answer"), desk.now)
    (task,) = desk.ledger.admin.cancel_many(["tk_1"], (TaskState.UNKNOWN,), "gone", desk.at(5))
    assert ": gone; it may have been executed before: no answer" in task.reason
    desk.ledger.tasks.settle(claim, desk.delivered("x-1"), desk.at(6))
    assert (TaskState.CANCELLED, "x-1") == (desk.state(), desk.ledger.queries.task("tk_1").external_id)
    with pytest.raises(LedgerError, match="got it as x-1"):
        desk.ledger.admin.retry("tk_1", desk.at(7))


@pytest.mark.parametrize(("taken", "state"), [(True, TaskState.CANCELLED), (False, TaskState.DELIVERED)])
def test_what_a_provider_answers_to_a_cancel_is_kept(desk, taken, state):
    """Its answer stands in the note; only when it took the call the task is cancelled here."""
    desk.ledger.tasks.settle(desk.claimed(), desk.delivered("x-1"), desk.now)
    task = desk.ledger.admin.cancelled_at_provider("tk_1", "409 too late", "a wrong rule", desk.at(5), taken=taken)
    assert (state, "x-1") == (task.state, task.external_id)
    assert "asked to be cancelled at vambe at 2026-03-02T12:00:05.123Z: 409 too late" == task.note
    assert ("cancelled at vambe by a person" in (task.reason or "")) is taken


def test_a_provider_is_paused_until_it_is_resumed(desk):
    """Its tasks wait beyond any moment, and are due when it is resumed."""
    desk.planned(desk.task())
    desk.ledger.limits.pause(ProviderName.VAMBE, UNTIL_RESUMED, "by hand", desk.now)
    (answer,) = desk.ledger.tasks.claim(["tk_1"], desk.at(1), desk.lease, "w")
    assert (TaskState.WAITING, UNTIL_RESUMED) == (answer.state, answer.due_at)
    assert "vambe is paused until it is resumed" == answer.why
    assert [UNTIL_RESUMED] == [state.paused_until_at for state in desk.ledger.limits.states()]
    desk.ledger.limits.resume(ProviderName.VAMBE, desk.at(2))
    assert "tk_1" == desk.claim(now=desk.at(2)).task.id


def test_the_work_before_a_provider_is_counted(desk):
    """By state, without what has ended; attempts of today count, those of yesterday and given back ones do not."""
    desk.planned(*(desk.task(f"tk_{number}") for number in range(4)), now=desk.at(-86_400))
    desk.ledger.tasks.settle(desk.claim("tk_0"), desk.delivered(), desk.now)
    desk.ledger.tasks.give_back(desk.claim("tk_1"), desk.now)
    desk.claim("tk_2")
    loads = desk.ledger.queries.workloads(desk.at(60))
    expected = {TaskState.SENDING: 1, TaskState.WAITING: 1, TaskState.PLANNED: 1}
    assert expected == loads[ProviderName.VAMBE].tasks
    assert 2 == loads[ProviderName.VAMBE].begun_today
    assert 0 == desk.ledger.queries.workloads(desk.at(86_400))[ProviderName.VAMBE].begun_today
    assert {} == loads[ProviderName.MINDHUNTERS].tasks

from __future__ import annotations

import pytest

from rules.vocabulary import EventState, LedgerError, ProviderName, TaskState, TaskType, Verdict
from worker.ledger import UNTIL_RESUMED, EventSelection, NotClaimed, TaskSelection

DEAD = (TaskState.DEAD,)


def died(bench, *ids, at=0, **changes):
    """Bring tasks to dead, each after one attempt, at so many seconds after now."""
    for id_ in ids:
        event_id = f"ev_of_{id_}"
        bench.planned(bench.task(id_, event_id, **changes), event_id=event_id)
        bench.ledger.tasks.settle(bench.claim(id_), bench.ended(TaskState.DEAD), bench.at(at))


def ids_of(found):
    """Return the ids of what was found, in order."""
    return [one.id for one in found]


def test_a_selection_means_what_all_of_its_words_say(bench):
    """Rule, provider, type, state and the moments narrow it; without any word it is every task of the states."""
    died(bench, "tk_1", at=10)
    died(bench, "tk_2", at=20, rule="other")
    died(bench, "tk_3", at=30, type=TaskType.MAKE_CALL, provider=ProviderName.MINDHUNTERS)
    bench.planned(bench.task("tk_4", "ev_4"), event_id="ev_4")

    def selected(states=DEAD, **wanted):
        return ids_of(bench.ledger.queries.select_tasks(TaskSelection(states=states, **wanted)))

    assert ["tk_1", "tk_2", "tk_3"] == selected()
    assert ["tk_1", "tk_2", "tk_3", "tk_4"] == selected((TaskState.DEAD, TaskState.QUEUED))
    assert ["tk_2"] == selected(rule="other")
    assert ["tk_3"] == selected(provider=ProviderName.MINDHUNTERS)
    assert ["tk_3"] == selected(type=TaskType.MAKE_CALL)
    assert ["tk_2", "tk_3"] == selected(since_at=bench.at(20))
    assert ["tk_1"] == selected(until_at=bench.at(20))
    assert [] == selected(since_at=bench.at(1), by="created_at")
    assert [] == selected(rule="other", type=TaskType.MAKE_CALL)


def test_long_selections_are_read_in_pages(bench):
    """More than a page is complete and in order, oldest first."""
    tasks = [bench.task(f"tk_{number:04}") for number in range(1100)]
    bench.planned(*tasks)
    found = bench.ledger.queries.select_tasks(TaskSelection(states=(TaskState.QUEUED,)))
    assert [task.id for task in tasks] == ids_of(found)


def test_events_are_selected_by_source_type_and_moment(bench):
    """Generations are not among them: they repeat an event that is."""
    for number, source in enumerate(("crm", "web", "crm"), start=1):
        event = bench.event(f"ev_{number}", source=source, type=f"type.{number}", received_at=bench.at(number))
        bench.record(bench.incoming(event.id, event=event))
        bench.ledger.tasks.insert([bench.plan(event_id=event.id)], bench.now)
    bench.ledger.admin.replay(["ev_1"], bench.now, failed_too=False, new_keys=True)
    bench.ledger.tasks.insert([bench.plan(event_id="ev_1.2")], bench.now)

    def selected(**wanted):
        return ids_of(bench.ledger.queries.select_events(EventSelection(states=(EventState.PROCESSED,), **wanted)))

    assert ["ev_1", "ev_2", "ev_3"] == selected()
    assert ["ev_1", "ev_3"] == selected(source="crm")
    assert ["ev_2"] == selected(type="type.2")
    assert ["ev_2"] == selected(since_at=bench.at(2), until_at=bench.at(3))
    assert [] == ids_of(bench.ledger.queries.select_events(EventSelection(states=(EventState.FAILED,))))


def test_many_tasks_are_retried_each_at_its_moment(bench):
    """They begin anew in a new epoch, and what they were is in the reason; the attempts stay on record."""
    died(bench, "tk_1", "tk_2")
    due = {"tk_1": bench.at(60), "tk_2": bench.at(61)}
    changed = bench.ledger.admin.retry_many(due, DEAD, bench.at(60))
    assert due == {task.id: task.due_at for task in changed}
    assert [(TaskState.WAITING, 0, 2)] * 2 == [(task.state, task.attempts, task.epoch) for task in changed]
    assert "retried by a person at 2026-03-02T12:01:00.123Z; before it was dead: 422: no" == changed[0].reason
    assert ["tk_1"] == [
        ref.id for ref in bench.ledger.tasks.dispatch_due(bench.at(60), bench.lease, {ProviderName.VAMBE: 9})
    ]
    assert 1 == len(bench.ledger.queries.attempts("tk_1"))


def test_what_changed_after_it_was_selected_is_left(bench):
    """The transaction asks again: another state, a task that was never complete, or none at all is passed over."""
    died(bench, "tk_1", "tk_2")
    bench.planned(bench.task("tk_3", state=TaskState.DEAD, reason="title: missing"))
    bench.ledger.admin.retry("tk_1", bench.at(1))
    due = dict.fromkeys(("tk_1", "tk_2", "tk_3", "tk_none"), bench.at(9))
    assert ["tk_2"] == ids_of(bench.ledger.admin.retry_many(due, DEAD, bench.at(2)))
    assert bench.at(1) == bench.ledger.queries.task("tk_1").due_at
    assert [] == bench.ledger.admin.retry_many({}, DEAD, bench.now)


def test_a_waiting_task_never_waits_longer_by_a_retry(bench):
    """Its place in a selection is later than its own moment: the earlier one holds; its attempts count on."""
    bench.ledger.tasks.settle(bench.claimed(), bench.busy(bench.at(30)), bench.now)
    (task,) = bench.ledger.admin.retry_many({"tk_1": bench.at(600)}, (TaskState.WAITING,), bench.at(1))
    assert (bench.at(30), 1, 1) == (task.due_at, task.attempts, task.epoch)


def test_a_reason_does_not_grow_with_every_retry(bench):
    """What a retry says of an earlier one is left out."""
    bench.ledger.tasks.settle(bench.claimed(), bench.busy(bench.at(30)), bench.now)
    for second in (1, 2):
        task = bench.ledger.admin.retry("tk_1", bench.at(second))
    assert "retried by a person at 2026-03-02T12:00:02.123Z; before it was waiting: 503: try later" == task.reason


@pytest.mark.parametrize("due", [0, 60])
def test_what_was_not_sent_is_cancelled_for_good(bench, due):
    """It is not dispatched, and a claim that comes later finds it ended."""
    bench.planned(bench.task(due_at=bench.at(due)))
    task = bench.ledger.admin.cancel("tk_1", "a wrong rule", bench.at(5))
    assert (TaskState.CANCELLED, "cancelled by a person at 2026-03-02T12:00:05.123Z: a wrong rule") == (
        task.state,
        task.reason,
    )
    (answer,) = bench.ledger.tasks.claim(["tk_1"], bench.at(90), bench.lease, "w")
    assert isinstance(answer, NotClaimed)
    assert [] == bench.ledger.tasks.dispatch_due(bench.at(90), bench.lease, {ProviderName.VAMBE: 9})
    assert {TaskState.CANCELLED: 1} == bench.ledger.queries.counts().tasks


def test_what_is_being_sent_or_has_ended_is_not_cancelled(bench):
    """Each is refused with the way on, and is as it was."""
    bench.planned(*(bench.task(f"tk_{name}") for name in ("sending", "delivered", "dead")))
    for name in ("sending", "delivered", "dead"):
        claim = bench.claim(f"tk_{name}")
        if name != "sending":
            outcome = bench.delivered() if name == "delivered" else bench.ended(TaskState.DEAD)
            bench.ledger.tasks.settle(claim, outcome, bench.now)
    for name, message in (("sending", "ask again"), ("delivered", "--at-provider"), ("dead", "ended already")):
        before = bench.ledger.queries.task(f"tk_{name}")
        with pytest.raises(LedgerError, match=message):
            bench.ledger.admin.cancel(f"tk_{name}", None, bench.at(1))
        assert [] == bench.ledger.admin.cancel_many([f"tk_{name}"], tuple(TaskState), None, bench.at(1))
        assert before == bench.ledger.queries.task(f"tk_{name}")


def test_an_unknown_task_that_is_cancelled_says_that_it_may_have_been_executed(bench):
    """A late success is remarked and does not bring it back; it is not retried then, which would repeat it."""
    claim = bench.claimed()
    bench.ledger.tasks.settle(claim, bench.ended(TaskState.UNKNOWN, Verdict.UNKNOWN, "no answer"), bench.now)
    (task,) = bench.ledger.admin.cancel_many(["tk_1"], (TaskState.UNKNOWN,), "gone", bench.at(5))
    assert ": gone; it may have been executed before: no answer" in task.reason
    bench.ledger.tasks.settle(claim, bench.delivered("x-1"), bench.at(6))
    assert (TaskState.CANCELLED, "x-1") == (bench.state(), bench.ledger.queries.task("tk_1").external_id)
    with pytest.raises(LedgerError, match="got it as x-1"):
        bench.ledger.admin.retry("tk_1", bench.at(7))


@pytest.mark.parametrize(("taken", "state"), [(True, TaskState.CANCELLED), (False, TaskState.DELIVERED)])
def test_what_a_provider_answers_to_a_cancel_is_kept(bench, taken, state):
    """Its answer stands in the note; only when it took the call the task is cancelled here."""
    bench.ledger.tasks.settle(bench.claimed(), bench.delivered("x-1"), bench.now)
    task = bench.ledger.admin.cancelled_at_provider("tk_1", "409 too late", "a wrong rule", bench.at(5), taken=taken)
    assert (state, "x-1") == (task.state, task.external_id)
    assert "asked to be cancelled at vambe at 2026-03-02T12:00:05.123Z: 409 too late" == task.note
    assert ("cancelled at vambe by a person" in (task.reason or "")) is taken


def test_a_provider_is_paused_until_it_is_resumed(bench):
    """Its tasks wait beyond any moment, and are due when it is resumed."""
    bench.planned(bench.task())
    bench.ledger.limits.pause(ProviderName.VAMBE, UNTIL_RESUMED, "by hand", bench.now)
    (answer,) = bench.ledger.tasks.claim(["tk_1"], bench.at(1), bench.lease, "w")
    assert (TaskState.WAITING, UNTIL_RESUMED) == (answer.state, answer.due_at)
    assert "vambe is paused until it is resumed" == answer.why
    assert [UNTIL_RESUMED] == [state.paused_until_at for state in bench.ledger.limits.states()]
    bench.ledger.limits.resume(ProviderName.VAMBE, bench.at(2))
    assert "tk_1" == bench.claim(now=bench.at(2)).task.id


def test_the_work_before_a_provider_is_counted(bench):
    """By state, without what has ended; attempts of today count, those of yesterday and given back ones do not."""
    bench.planned(*(bench.task(f"tk_{number}") for number in range(4)), now=bench.at(-86_400))
    bench.ledger.tasks.settle(bench.claim("tk_0"), bench.delivered(), bench.now)
    bench.ledger.tasks.give_back(bench.claim("tk_1"), bench.now)
    bench.claim("tk_2")
    loads = bench.ledger.queries.workloads(bench.at(60))
    expected = {TaskState.SENDING: 1, TaskState.WAITING: 1, TaskState.PLANNED: 1}
    assert expected == loads[ProviderName.VAMBE].tasks
    assert 2 == loads[ProviderName.VAMBE].begun_today
    assert 0 == bench.ledger.queries.workloads(bench.at(86_400))[ProviderName.VAMBE].begun_today
    assert {} == loads[ProviderName.MINDHUNTERS].tasks

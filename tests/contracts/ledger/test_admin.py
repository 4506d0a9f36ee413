from __future__ import annotations

import pytest

from rules.vocabulary import EventState, LedgerError, ProviderName, TaskState, TaskType, Verdict
from worker.ledger import Counts, Settlement


def unknown(desk):
    """Bring task tk_1 to unknown."""
    desk.ledger.tasks.settle(desk.claimed(), desk.ended(TaskState.UNKNOWN, Verdict.UNKNOWN), desk.now)


def test_events_are_listed_newest_first(desk):
    """Events come in the reverse order of their recording, with their decisions, filtered and bounded as asked."""
    for number in range(1, 4):
        desk.record(desk.incoming(f"ev_{number}", event=desk.event(f"ev_{number}", source=f"crm_{number % 2}")))
    desk.ledger.tasks.insert([desk.plan(desk.task(), event_id="ev_1")], desk.now)
    listed = list(desk.ledger.queries.list_events())
    assert ["ev_3", "ev_2", "ev_1"] == [event.id for event in listed]
    assert [0, 0, 1] == [len(event.decisions) for event in listed]
    assert ["ev_3", "ev_2"] == [event.id for event in desk.ledger.queries.list_events(2)]
    assert ["ev_1"] == [event.id for event in desk.ledger.queries.list_events(state=EventState.PROCESSED)]
    assert ["ev_3", "ev_1"] == [event.id for event in desk.ledger.queries.list_events(source="crm_1")]
    assert [] == list(desk.ledger.queries.list_events(0))


def test_tasks_are_listed_newest_first(desk):
    """Tasks come in the reverse order of their planning, filtered and bounded as asked."""
    desk.planned(
        desk.task("tk_1"),
        desk.task("tk_2", type=TaskType.MAKE_CALL, provider=ProviderName.MINDHUNTERS),
        desk.task("tk_3", rule="other", due_at=desk.at(9)),
    )
    desk.planned(desk.task("tk_4", "ev_2"), event_id="ev_2")

    def listed(**wanted):
        return [task.id for task in desk.ledger.queries.list_tasks(**wanted)]

    assert ["tk_4", "tk_3", "tk_2", "tk_1"] == listed()
    assert ["tk_4", "tk_3"] == listed(limit=2)
    assert ["tk_3"] == listed(state=TaskState.PLANNED)
    assert ["tk_2"] == listed(type=TaskType.MAKE_CALL)
    assert ["tk_3"] == listed(rule="other")
    assert ["tk_2"] == listed(provider=ProviderName.MINDHUNTERS)
    assert ["tk_4"] == listed(event_id="ev_2")
    assert [] == listed(event_id="ev_2", rule="other")


def test_long_lists_are_read_in_pages(desk):
    """A list longer than several pages is complete and in order, also when more arrives while it is read."""
    for start in range(0, 1200, 100):
        numbers = range(start, start + 100)
        desk.record(*(desk.incoming(f"ev_{number:04}") for number in numbers), id=f"dl_{start}")
    listing = desk.ledger.queries.list_events()
    first = next(listing).id
    desk.record(desk.incoming("ev_late"))
    rest = [event.id for event in listing]
    assert [f"ev_{number:04}" for number in reversed(range(1200))] == [first, *rest]
    assert 700 == len(list(desk.ledger.queries.list_events(700)))


def test_the_last_event_is_the_one_recorded_last(desk):
    """Of one delivery's events the last one counts; without any there is none."""
    assert desk.ledger.queries.last_event() is None
    desk.record(desk.incoming("ev_z"), desk.incoming("ev_a"))
    assert "ev_a" == desk.ledger.queries.last_event().id


def test_tasks_and_events_are_found_by_the_beginning_of_their_id(desk):
    """A whole id wins, else the only one that begins so; several are an error that names them; odd texts find none."""
    desk.planned(desk.task("tk_a1"), desk.task("tk_a1b"), desk.task("tk_b"))
    assert "tk_a1" == desk.ledger.queries.task("tk_a1").id
    assert "tk_b" == desk.ledger.queries.task("tk_b").id
    assert "tk_a1b" == desk.ledger.queries.task("tk_a1b").id
    assert "ev_1" == desk.ledger.queries.event("ev").id
    for odd in ("tk_c", "", "%", "_k_b", "TK_B", "\x00", "\ud800", "tk_b' OR 1=1 --"):
        assert desk.ledger.queries.task(odd) is None
        assert desk.ledger.queries.event(odd) is None
        assert desk.ledger.queries.delivery_body(odd) is None
        assert [] == desk.ledger.queries.tasks_of(odd)
        assert [] == desk.ledger.queries.attempts(odd)
        assert [] == list(desk.ledger.queries.list_tasks(rule=odd or "-"))
    with pytest.raises(LedgerError, match="tk_a1, tk_a1b"):
        desk.ledger.queries.task("tk_a")


def test_counts_by_state(desk):
    """Every state that occurs is counted."""
    assert Counts(events={}, tasks={}) == desk.ledger.queries.counts()
    desk.record(desk.incoming("ev_2"), desk.incoming("ev_3"))
    desk.planned(desk.task("tk_1"), desk.task("tk_2", due_at=desk.at(1)), desk.task("tk_3", due_at=desk.at(1)))
    assert {EventState.RECEIVED: 2, EventState.PROCESSED: 1} == desk.ledger.queries.counts().events
    assert {TaskState.QUEUED: 1, TaskState.PLANNED: 2} == desk.ledger.queries.counts().tasks


def test_an_unknown_task_settled_as_delivered(desk):
    """A person says that it was executed, and under which id."""
    unknown(desk)
    task = desk.ledger.admin.settle("tk_1", True, "x-7", desk.at(100))
    assert (TaskState.DELIVERED, "x-7", desk.at(100)) == (task.state, task.external_id, task.updated_at)
    assert task == desk.ledger.queries.task("tk_1")


def test_an_unknown_task_settled_as_not_delivered(desk):
    """A person says that it was not executed: it is due again now, and its attempts count on."""
    unknown(desk)
    task = desk.ledger.admin.settle("tk_1", False, None, desk.at(100))
    assert (TaskState.WAITING, desk.at(100), 1) == (task.state, task.due_at, task.attempts)
    assert 2 == desk.claim(now=desk.at(100)).attempt


def test_only_unknown_tasks_are_settled_by_hand(desk):
    """From any other state the command is refused, naming the state; a task that is not there too."""
    desk.planned(desk.task())
    with pytest.raises(LedgerError, match="tk_1 is queued"):
        desk.ledger.admin.settle("tk_1", True, None, desk.now)
    with pytest.raises(LedgerError, match="no task tk_9"):
        desk.ledger.admin.settle("tk_9", True, None, desk.now)


@pytest.mark.parametrize("state", [TaskState.DEAD, TaskState.CANCELLED, TaskState.SUPPRESSED])
def test_an_ended_task_is_retried_in_a_new_epoch(desk, state):
    """It is due now, its attempts begin at 0, its history and the reason of its end stay."""
    desk.ledger.tasks.settle(desk.claimed(), desk.ended(state, reason="422: no such agent"), desk.now)
    task = desk.ledger.admin.retry("tk_1", desk.at(500))
    assert (TaskState.WAITING, desk.at(500), 0, 2, None) == (
        task.state,
        task.due_at,
        task.attempts,
        task.epoch,
        task.first_attempt_at,
    )
    assert "422: no such agent" in task.reason
    again = desk.claim(now=desk.at(500))
    assert (1, 3, desk.at(500)) == (again.attempt, again.epoch, again.first_attempt_at)
    assert [1, 3] == [row.epoch for row in desk.ledger.queries.attempts("tk_1")]


def test_retrying_a_waiting_task_makes_it_due_now(desk):
    """The wait is cut short; its attempts count on."""
    desk.ledger.tasks.settle(desk.claimed(), desk.busy(desk.at(3600)), desk.now)
    task = desk.ledger.admin.retry("tk_1", desk.at(5))
    assert (TaskState.WAITING, desk.at(5), 1, 1) == (task.state, task.due_at, task.attempts, task.epoch)


def test_retrying_an_expired_task_lifts_its_end(desk):
    """An end that has passed is taken away with a note; one to come stays."""
    desk.planned(
        desk.task("tk_1", expires_at=desk.at(60), note="zone from phone"), desk.task("tk_2", expires_at=desk.at(999))
    )
    desk.ledger.tasks.claim(["tk_1"], desk.at(60), desk.lease, "w")
    task = desk.ledger.admin.retry("tk_1", desk.at(70))
    assert task.expires_at is None
    assert "zone from phone; " in task.note
    assert "2026-03-02T12:01:00" in task.note
    assert "tk_1" == desk.claim(now=desk.at(70)).task.id
    desk.ledger.tasks.settle(desk.claim("tk_2"), desk.ended(TaskState.DEAD), desk.now)
    assert desk.at(999) == desk.ledger.admin.retry("tk_2", desk.at(70)).expires_at


def test_what_may_not_be_retried_is_refused_with_the_way_on(desk):
    """Unknown tasks are settled first; delivered ones stay; what is on its way needs no retry."""
    desk.planned(
        *(desk.task(f"tk_{name}") for name in ("unknown", "delivered", "sending", "queued")),
        desk.task("tk_planned", due_at=desk.at(9)),
    )
    desk.ledger.tasks.settle(desk.claim("tk_unknown"), desk.ended(TaskState.UNKNOWN, Verdict.UNKNOWN), desk.now)
    desk.ledger.tasks.settle(desk.claim("tk_delivered"), desk.delivered(), desk.now)
    desk.claim("tk_sending")
    messages = {
        "tk_unknown": "leadwire settle tk_unknown --delivered",
        "tk_delivered": "was delivered",
        "tk_sending": "being sent",
        "tk_queued": "about to be sent",
        "tk_planned": "due at 2026-03-02T12:00:09",
    }
    for task_id, message in messages.items():
        before = desk.ledger.queries.task(task_id)
        with pytest.raises(LedgerError, match=message):
            desk.ledger.admin.retry(task_id, desk.at(1))
        assert before == desk.ledger.queries.task(task_id)
    with pytest.raises(LedgerError, match="no task"):
        desk.ledger.admin.retry("tk_none", desk.now)


def test_rule_sets_are_kept_under_their_version(desk):
    """Every accepted set stays readable; the one accepted last is the latest, also when it was accepted before."""
    assert desk.ledger.rule_sets.latest() is None
    one, two = {"a.yaml": "rules: []\n"}, {"a.yaml": "é\ud800", "b.yaml": ""}
    desk.ledger.rule_sets.store("rs_1", one, desk.now)
    desk.ledger.rule_sets.store("rs_2", two, desk.now)
    assert ("rs_2", two) == desk.ledger.rule_sets.latest()
    desk.ledger.rule_sets.store("rs_1", one, desk.at(5))
    assert ("rs_1", one) == desk.ledger.rule_sets.latest()
    assert two == desk.ledger.rule_sets.get("rs_2")
    assert desk.ledger.rule_sets.get("rs_3") is None


def test_a_ledger_that_takes_writes_says_so(desk):
    """The check commits and leaves nothing behind."""
    for _ in range(3):
        assert desk.ledger.check_writable() is None


def test_a_task_that_was_never_complete_is_not_retried(desk):
    """What died while it was planned lacks a part of what the rule asked for: no command sends the rest of it."""
    desk.planned(desk.task("tk_1", state=TaskState.DEAD, reason="title: data.name is missing"))
    desk.planned(desk.task("tk_2", "ev_2", state=TaskState.DEAD, reason="no phone", parent="tk_0"), event_id="ev_2")
    with pytest.raises(LedgerError, match=r"complete \(title: data.name is missing\).*replay ev_1 plans it again"):
        desk.ledger.admin.retry("tk_1", desk.now)
    with pytest.raises(LedgerError, match=r"leadwire replay ev_2 --new-keys"):
        desk.ledger.admin.retry("tk_2", desk.now)
    assert TaskState.DEAD is desk.state()


def test_what_was_cancelled_in_doubt_is_looked_up_before_it_is_sent_again(desk):
    """A person's retry of a task that may have been executed before it was cancelled makes it a doubt again."""
    unknown(desk)
    desk.ledger.admin.cancel("tk_1", "not wanted", desk.now)
    assert TaskState.UNKNOWN is desk.ledger.admin.retry("tk_1", desk.at(60)).state
    (doubt,) = desk.ledger.reconciliation.claim(ProviderName.VAMBE, desk.at(120), desk.lease, 10)
    assert ("tk_1", desk.now, desk.at(60)) == (doubt.task.id, doubt.began_at, doubt.ended_at)


@pytest.mark.parametrize("state", [TaskState.DEAD, TaskState.SUPPRESSED])
def test_what_ended_in_doubt_is_looked_up_before_it_is_sent_again(desk, state):
    """Its last attempt may have been executed, however the doubt was ended: no retry sends it without a look."""
    unknown(desk)
    (doubt,) = desk.ledger.reconciliation.claim(ProviderName.VAMBE, desk.at(70), desk.lease, 1)
    gave_up = Settlement(verdict=Verdict.UNKNOWN, state=state, reason="gave up after 3 tries")
    assert desk.ledger.reconciliation.resolve(doubt, gave_up, desk.at(71))
    task = desk.ledger.admin.retry("tk_1", desk.at(80))
    assert (TaskState.UNKNOWN, 0, 2) == (task.state, task.attempts, task.epoch)
    (again,) = desk.ledger.reconciliation.claim(ProviderName.VAMBE, desk.at(120), desk.lease, 1)
    assert (desk.now, desk.at(80)) == (again.began_at, again.ended_at)


def test_an_attempt_that_never_began_hides_no_doubt(desk):
    """Given back after an attempt in doubt, then too late: the doubt is what a retry has to clear up."""
    desk.planned(desk.task(expires_at=desk.at(300)))
    desk.ledger.tasks.settle(desk.claim(), desk.ended(TaskState.UNKNOWN, Verdict.UNKNOWN), desk.now)
    (doubt,) = desk.ledger.reconciliation.claim(ProviderName.VAMBE, desk.at(70), desk.lease, 1)
    repeated = Settlement(verdict=Verdict.UNKNOWN, state=TaskState.WAITING, due_at=desk.at(71), reason="repeated")
    assert desk.ledger.reconciliation.resolve(doubt, repeated, desk.at(71))
    assert desk.ledger.tasks.give_back(desk.claim(now=desk.at(72)), desk.at(73))
    desk.ledger.tasks.claim(["tk_1"], desk.at(400), desk.lease, "w-1")
    assert TaskState.SUPPRESSED is desk.state()
    assert TaskState.UNKNOWN is desk.ledger.admin.retry("tk_1", desk.at(401)).state

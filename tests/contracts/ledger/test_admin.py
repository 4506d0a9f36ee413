from __future__ import annotations

import pytest

from rules.vocabulary import EventState, LedgerError, ProviderName, TaskState, TaskType, Verdict
from worker.ledger import Counts, Settlement


def unknown(bench):
    """Bring task tk_1 to unknown."""
    bench.ledger.tasks.settle(bench.claimed(), bench.ended(TaskState.UNKNOWN, Verdict.UNKNOWN), bench.now)


def test_events_are_listed_newest_first(bench):
    """Events come in the reverse order of their recording, with their decisions, filtered and bounded as asked."""
    for number in range(1, 4):
        bench.record(bench.incoming(f"ev_{number}", event=bench.event(f"ev_{number}", source=f"crm_{number % 2}")))
    bench.ledger.tasks.insert([bench.plan(bench.task(), event_id="ev_1")], bench.now)
    listed = list(bench.ledger.queries.list_events())
    assert ["ev_3", "ev_2", "ev_1"] == [event.id for event in listed]
    assert [0, 0, 1] == [len(event.decisions) for event in listed]
    assert ["ev_3", "ev_2"] == [event.id for event in bench.ledger.queries.list_events(2)]
    assert ["ev_1"] == [event.id for event in bench.ledger.queries.list_events(state=EventState.PROCESSED)]
    assert ["ev_3", "ev_1"] == [event.id for event in bench.ledger.queries.list_events(source="crm_1")]
    assert [] == list(bench.ledger.queries.list_events(0))


def test_tasks_are_listed_newest_first(bench):
    """Tasks come in the reverse order of their planning, filtered and bounded as asked."""
    bench.planned(
        bench.task("tk_1"),
        bench.task("tk_2", type=TaskType.MAKE_CALL, provider=ProviderName.MINDHUNTERS),
        bench.task("tk_3", rule="other", due_at=bench.at(9)),
    )
    bench.planned(bench.task("tk_4", "ev_2"), event_id="ev_2")

    def listed(**wanted):
        return [task.id for task in bench.ledger.queries.list_tasks(**wanted)]

    assert ["tk_4", "tk_3", "tk_2", "tk_1"] == listed()
    assert ["tk_4", "tk_3"] == listed(limit=2)
    assert ["tk_3"] == listed(state=TaskState.PLANNED)
    assert ["tk_2"] == listed(type=TaskType.MAKE_CALL)
    assert ["tk_3"] == listed(rule="other")
    assert ["tk_2"] == listed(provider=ProviderName.MINDHUNTERS)
    assert ["tk_4"] == listed(event_id="ev_2")
    assert [] == listed(event_id="ev_2", rule="other")


def test_long_lists_are_read_in_pages(bench):
    """A list longer than several pages is complete and in order, also when more arrives while it is read."""
    for start in range(0, 1200, 100):
        numbers = range(start, start + 100)
        bench.record(*(bench.incoming(f"ev_{number:04}") for number in numbers), id=f"dl_{start}")
    listing = bench.ledger.queries.list_events()
    first = next(listing).id
    bench.record(bench.incoming("ev_late"))
    rest = [event.id for event in listing]
    assert [f"ev_{number:04}" for number in reversed(range(1200))] == [first, *rest]
    assert 700 == len(list(bench.ledger.queries.list_events(700)))


def test_the_last_event_is_the_one_recorded_last(bench):
    """Of one delivery's events the last one counts; without any there is none."""
    assert bench.ledger.queries.last_event() is None
    bench.record(bench.incoming("ev_z"), bench.incoming("ev_a"))
    assert "ev_a" == bench.ledger.queries.last_event().id


def test_tasks_and_events_are_found_by_the_beginning_of_their_id(bench):
    """A whole id wins, else the only one that begins so; several are an error that names them; odd texts find none."""
    bench.planned(bench.task("tk_a1"), bench.task("tk_a1b"), bench.task("tk_b"))
    assert "tk_a1" == bench.ledger.queries.task("tk_a1").id
    assert "tk_b" == bench.ledger.queries.task("tk_b").id
    assert "tk_a1b" == bench.ledger.queries.task("tk_a1b").id
    assert "ev_1" == bench.ledger.queries.event("ev").id
    for odd in ("tk_c", "", "%", "_k_b", "TK_B", "\x00", "\ud800", "tk_b' OR 1=1 --"):
        assert bench.ledger.queries.task(odd) is None
        assert bench.ledger.queries.event(odd) is None
        assert bench.ledger.queries.delivery_body(odd) is None
        assert [] == bench.ledger.queries.tasks_of(odd)
        assert [] == bench.ledger.queries.attempts(odd)
        assert [] == list(bench.ledger.queries.list_tasks(rule=odd or "-"))
    with pytest.raises(LedgerError, match="tk_a1, tk_a1b"):
        bench.ledger.queries.task("tk_a")


def test_counts_by_state(bench):
    """Every state that occurs is counted."""
    assert Counts(events={}, tasks={}) == bench.ledger.queries.counts()
    bench.record(bench.incoming("ev_2"), bench.incoming("ev_3"))
    bench.planned(bench.task("tk_1"), bench.task("tk_2", due_at=bench.at(1)), bench.task("tk_3", due_at=bench.at(1)))
    assert {EventState.RECEIVED: 2, EventState.PROCESSED: 1} == bench.ledger.queries.counts().events
    assert {TaskState.QUEUED: 1, TaskState.PLANNED: 2} == bench.ledger.queries.counts().tasks


def test_an_unknown_task_settled_as_delivered(bench):
    """A person says that it was executed, and under which id."""
    unknown(bench)
    task = bench.ledger.admin.settle("tk_1", True, "x-7", bench.at(100))
    assert (TaskState.DELIVERED, "x-7", bench.at(100)) == (task.state, task.external_id, task.updated_at)
    assert task == bench.ledger.queries.task("tk_1")


def test_an_unknown_task_settled_as_not_delivered(bench):
    """A person says that it was not executed: it is due again now, and its attempts count on."""
    unknown(bench)
    task = bench.ledger.admin.settle("tk_1", False, None, bench.at(100))
    assert (TaskState.WAITING, bench.at(100), 1) == (task.state, task.due_at, task.attempts)
    assert 2 == bench.claim(now=bench.at(100)).attempt


def test_only_unknown_tasks_are_settled_by_hand(bench):
    """From any other state the command is refused, naming the state; a task that is not there too."""
    bench.planned(bench.task())
    with pytest.raises(LedgerError, match="tk_1 is queued"):
        bench.ledger.admin.settle("tk_1", True, None, bench.now)
    with pytest.raises(LedgerError, match="no task tk_9"):
        bench.ledger.admin.settle("tk_9", True, None, bench.now)


@pytest.mark.parametrize("state", [TaskState.DEAD, TaskState.CANCELLED, TaskState.SUPPRESSED])
def test_an_ended_task_is_retried_in_a_new_epoch(bench, state):
    """It is due now, its attempts begin at 0, its history and the reason of its end stay."""
    bench.ledger.tasks.settle(bench.claimed(), bench.ended(state, reason="422: no such agent"), bench.now)
    task = bench.ledger.admin.retry("tk_1", bench.at(500))
    assert (TaskState.WAITING, bench.at(500), 0, 2, None) == (
        task.state,
        task.due_at,
        task.attempts,
        task.epoch,
        task.first_attempt_at,
    )
    assert "422: no such agent" in task.reason
    again = bench.claim(now=bench.at(500))
    assert (1, 3, bench.at(500)) == (again.attempt, again.epoch, again.first_attempt_at)
    assert [1, 3] == [row.epoch for row in bench.ledger.queries.attempts("tk_1")]


def test_retrying_a_waiting_task_makes_it_due_now(bench):
    """The wait is cut short; its attempts count on."""
    bench.ledger.tasks.settle(bench.claimed(), bench.busy(bench.at(3600)), bench.now)
    task = bench.ledger.admin.retry("tk_1", bench.at(5))
    assert (TaskState.WAITING, bench.at(5), 1, 1) == (task.state, task.due_at, task.attempts, task.epoch)


def test_retrying_an_expired_task_lifts_its_end(bench):
    """An end that has passed is taken away with a note; one to come stays."""
    bench.planned(
        bench.task("tk_1", expires_at=bench.at(60), note="zone from phone"),
        bench.task("tk_2", expires_at=bench.at(999)),
    )
    bench.ledger.tasks.claim(["tk_1"], bench.at(60), bench.lease, "w")
    task = bench.ledger.admin.retry("tk_1", bench.at(70))
    assert task.expires_at is None
    assert "zone from phone; " in task.note
    assert "2026-03-02T12:01:00" in task.note
    assert "tk_1" == bench.claim(now=bench.at(70)).task.id
    bench.ledger.tasks.settle(bench.claim("tk_2"), bench.ended(TaskState.DEAD), bench.now)
    assert bench.at(999) == bench.ledger.admin.retry("tk_2", bench.at(70)).expires_at


def test_what_may_not_be_retried_is_refused_with_the_way_on(bench):
    """Unknown tasks are settled first; delivered ones stay; what is on its way needs no retry."""
    bench.planned(
        *(bench.task(f"tk_{name}") for name in ("unknown", "delivered", "sending", "queued")),
        bench.task("tk_planned", due_at=bench.at(9)),
    )
    bench.ledger.tasks.settle(bench.claim("tk_unknown"), bench.ended(TaskState.UNKNOWN, Verdict.UNKNOWN), bench.now)
    bench.ledger.tasks.settle(bench.claim("tk_delivered"), bench.delivered(), bench.now)
    bench.claim("tk_sending")
    messages = {
        "tk_unknown": "leadwire settle tk_unknown --delivered",
        "tk_delivered": "was delivered",
        "tk_sending": "being sent",
        "tk_queued": "about to be sent",
        "tk_planned": "due at 2026-03-02T12:00:09",
    }
    for task_id, message in messages.items():
        before = bench.ledger.queries.task(task_id)
        with pytest.raises(LedgerError, match=message):
            bench.ledger.admin.retry(task_id, bench.at(1))
        assert before == bench.ledger.queries.task(task_id)
    with pytest.raises(LedgerError, match="no task"):
        bench.ledger.admin.retry("tk_none", bench.now)


def test_rule_sets_are_kept_under_their_version(bench):
    """Every accepted set stays readable; the one accepted last is the latest, also when it was accepted before."""
    assert bench.ledger.rule_sets.latest() is None
    one, two = {"a.yaml": "rules: []\n"}, {"a.yaml": "é\ud800", "b.yaml": ""}
    bench.ledger.rule_sets.store("rs_1", one, bench.now)
    bench.ledger.rule_sets.store("rs_2", two, bench.now)
    assert ("rs_2", two) == bench.ledger.rule_sets.latest()
    bench.ledger.rule_sets.store("rs_1", one, bench.at(5))
    assert ("rs_1", one) == bench.ledger.rule_sets.latest()
    assert two == bench.ledger.rule_sets.get("rs_2")
    assert bench.ledger.rule_sets.get("rs_3") is None


def test_a_ledger_that_takes_writes_says_so(bench):
    """The check commits and leaves nothing behind."""
    for _ in range(3):
        assert bench.ledger.check_writable() is None


def test_a_task_that_was_never_complete_is_not_retried(bench):
    """What died while it was planned lacks a part of what the rule asked for: no command sends the rest of it."""
    bench.planned(bench.task("tk_1", state=TaskState.DEAD, reason="title: data.name is missing"))
    bench.planned(bench.task("tk_2", "ev_2", state=TaskState.DEAD, reason="no phone", parent="tk_0"), event_id="ev_2")
    with pytest.raises(LedgerError, match=r"complete \(title: data.name is missing\).*replay ev_1 plans it again"):
        bench.ledger.admin.retry("tk_1", bench.now)
    with pytest.raises(LedgerError, match=r"leadwire replay ev_2 --new-keys"):
        bench.ledger.admin.retry("tk_2", bench.now)
    assert TaskState.DEAD is bench.state()


def test_what_was_cancelled_in_doubt_is_looked_up_before_it_is_sent_again(bench):
    """A person's retry of a task that may have been executed before it was cancelled makes it a doubt again."""
    unknown(bench)
    bench.ledger.admin.cancel("tk_1", "not wanted", bench.now)
    assert TaskState.UNKNOWN is bench.ledger.admin.retry("tk_1", bench.at(60)).state
    (doubt,) = bench.ledger.reconciliation.claim(ProviderName.VAMBE, bench.at(120), bench.lease, 10)
    assert ("tk_1", bench.now, bench.at(60)) == (doubt.task.id, doubt.began_at, doubt.ended_at)


@pytest.mark.parametrize("state", [TaskState.DEAD, TaskState.SUPPRESSED])
def test_what_ended_in_doubt_is_looked_up_before_it_is_sent_again(bench, state):
    """Its last attempt may have been executed, however the doubt was ended: no retry sends it without a look."""
    unknown(bench)
    (doubt,) = bench.ledger.reconciliation.claim(ProviderName.VAMBE, bench.at(70), bench.lease, 1)
    gave_up = Settlement(verdict=Verdict.UNKNOWN, state=state, reason="gave up after 3 tries")
    assert bench.ledger.reconciliation.resolve(doubt, gave_up, bench.at(71))
    task = bench.ledger.admin.retry("tk_1", bench.at(80))
    assert (TaskState.UNKNOWN, 0, 2) == (task.state, task.attempts, task.epoch)
    (again,) = bench.ledger.reconciliation.claim(ProviderName.VAMBE, bench.at(120), bench.lease, 1)
    assert (bench.now, bench.at(80)) == (again.began_at, again.ended_at)


def test_an_attempt_that_never_began_hides_no_doubt(bench):
    """Given back after an attempt in doubt, then too late: the doubt is what a retry has to clear up."""
    bench.planned(bench.task(expires_at=bench.at(300)))
    bench.ledger.tasks.settle(bench.claim(), bench.ended(TaskState.UNKNOWN, Verdict.UNKNOWN), bench.now)
    (doubt,) = bench.ledger.reconciliation.claim(ProviderName.VAMBE, bench.at(70), bench.lease, 1)
    repeated = Settlement(verdict=Verdict.UNKNOWN, state=TaskState.WAITING, due_at=bench.at(71), reason="repeated")
    assert bench.ledger.reconciliation.resolve(doubt, repeated, bench.at(71))
    assert bench.ledger.tasks.give_back(bench.claim(now=bench.at(72)), bench.at(73))
    bench.ledger.tasks.claim(["tk_1"], bench.at(400), bench.lease, "w-1")
    assert TaskState.SUPPRESSED is bench.state()
    assert TaskState.UNKNOWN is bench.ledger.admin.retry("tk_1", bench.at(401)).state

"""What is told of touches, heard by the state that Flower keeps."""

import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from billiard.einfo import ExceptionInfo
from celery.events.state import State
from celery.exceptions import Ignore
from hypothesis import given
from hypothesis import strategies as st

from console.flower import FlowerState
from rules.vocabulary import ProviderName, Task, TaskState, TaskType, Verdict
from worker.broker import TASK_ID_PREFIX
from worker.delivery import DeliveryOutcome, outcome_words
from worker.flower_events import (
    FlowerEvents,
    RedactedRequest,
    TaskDead,
    TaskUnknown,
    TaskWaiting,
    count_states,
)
from worker.planning import InlineBatch
from worker.publisher import SINGLE_DELIVERY_LIMIT

CALL = "leadwire.make_call"
LATER = datetime(2026, 3, 2, 14, 0, tzinfo=UTC)
FLOWERS_WORD = {
    TaskState.DELIVERED: "SUCCESS",
    TaskState.WAITING: "RETRY",
    TaskState.DEAD: "FAILURE",
    TaskState.UNKNOWN: "FAILURE",
    TaskState.SUPPRESSED: "REVOKED",
}


class Listener:
    """Hears events as they arrive; `rows` are the tasks it knows."""

    def __init__(self, state=None):
        self.state = state or FlowerState(max_tasks_in_memory=100)
        self.types = []
        self.events = FlowerEvents(lambda: self)

    def send(self, type_, **fields):
        """Send an event of the one worker there is."""
        self.types.append(type_)
        now = time.time()
        event = {"type": type_, "hostname": "w@x", "pid": 1, "timestamp": now, "local_received": now, "clock": 1}
        self.state.event(event | fields)

    def flush(self):
        """Events arrive at once here."""

    @property
    def rows(self):
        return self.state.tasks.data

    def alone(self, outcome):
        """A message with one task: what Celery says of it before and after."""
        uuid = outcome.task_id
        self.send(
            "task-received", uuid=uuid, name=CALL, args="[]", kwargs="{}", retries=0, root_id=uuid, parent_id=None
        )
        self.send("task-started", uuid=uuid)
        request = request_of(uuid, self)
        try:
            said = self.events.result(outcome, CALL)
        except Ignore:
            return
        except TaskWaiting as waiting:
            request.on_failure(einfo(waiting), return_ok=True)
        except (TaskDead, TaskUnknown) as fault:
            request.on_failure(einfo(fault), return_ok=True)
        else:
            self.send("task-succeeded", uuid=uuid, result=repr(said), runtime=0.1)


def einfo(exception):
    """Return an exception as the pool hands it over."""
    try:
        raise exception
    except type(exception):
        return ExceptionInfo()


def request_of(uuid, listener):
    """Return a message's request without a broker."""
    request = RedactedRequest.__new__(RedactedRequest)
    request.id, request.name = uuid, CALL
    request._argsrepr, request._kwargsrepr = "['x']", "{}"
    eventer = SimpleNamespace(enabled=True, send=listener.send)
    backend = SimpleNamespace(mark_as_failure=lambda *_, **__: None)
    request._eventer = eventer
    request._task = SimpleNamespace(send_events=True, acks_late=False, retry_on_worker_lost=False, backend=backend)
    request._ignore_result = True
    return request


@pytest.fixture
def listener():
    """Give a listener that knows nothing yet."""
    return Listener()


def outcome(state, words="delivered 201", **changes):
    """Return what a claimed task came to."""
    parts = {"task_id": "tk_1", "state": state, "words": words, "rule": "big-lead", "attempt": 1}
    return DeliveryOutcome(**(parts | changes))


@pytest.mark.parametrize(
    ("state", "words", "shown", "line"),
    [
        (TaskState.DELIVERED, "delivered 201", "SUCCESS", "'delivered 201'"),
        (TaskState.WAITING, "busy 503; again at x", "RETRY", "busy 503; again at x"),
        (TaskState.DEAD, "refused 422, y", "FAILURE", "dead: refused 422, y"),
        (TaskState.UNKNOWN, "unknown 500, z", "FAILURE", "unknown 500, z"),
        (TaskState.SUPPRESSED, "too late", "REVOKED", "suppressed: too late"),
    ],
)
def test_a_touch_alone_has_one_row(listener, state, words, shown, line):
    """State, cause and nothing else: no traceback and no exception."""
    listener.alone(outcome(state, words))
    row = listener.rows["tk_1"]
    assert (shown, line, None, None) == (row.state, row.result, row.exception, row.traceback)


@pytest.mark.parametrize("state", [TaskState.WAITING, TaskState.DEAD, TaskState.UNKNOWN, TaskState.SUPPRESSED])
def test_what_fails_among_many_has_a_row_of_its_own(listener, state):
    """With the type, the rule, the attempt and when it was, though no message bore its id."""
    before = time.time()
    listener.events.outcomes([outcome(state, "words", attempt=3)], CALL)
    row = listener.rows["tk_1"]
    assert (FLOWERS_WORD[state], CALL, 2) == (row.state, row.name, row.retries)
    assert "{'rule': 'big-lead', 'attempt': 3}" == row.kwargs
    assert before <= row.received


def test_what_succeeds_among_many_ends_its_row_and_makes_none(listener):
    """A touch that waited and was then delivered with others is SUCCESS; one that was never seen stays unseen."""
    listener.alone(outcome(TaskState.WAITING, "busy 503; again at x"))
    many = [outcome(TaskState.DELIVERED), outcome(TaskState.DELIVERED, task_id="tk_2")]
    listener.events.outcomes(many, CALL)
    assert {"tk_1": "SUCCESS"} == {uuid: row.state for uuid, row in listener.rows.items()}


def test_other_monitors_take_no_harm(listener):
    """Celery's own state hears what is told without a fault; only rows of touches delivered together are older there."""
    plain = Listener(State())
    plain.alone(outcome(TaskState.DEAD, "refused 422, y"))
    plain.events.outcomes([outcome(TaskState.DELIVERED, task_id="tk_2")], CALL)
    assert "FAILURE" == plain.rows["tk_1"].state


def test_a_repeated_message_changes_nothing(listener):
    """A message that comes again for a touch that has ended leaves its row as it is."""
    for state in (TaskState.DELIVERED, TaskState.DEAD, TaskState.SUPPRESSED):
        uuid = f"tk_{state}"
        listener.alone(outcome(state, task_id=uuid))
        before = listener.rows[uuid].result
        listener.alone(DeliveryOutcome(task_id=uuid, state=state, words="nothing sent, it has ended"))
        if state is not TaskState.SUPPRESSED:
            assert before == listener.rows[uuid].result
        assert FLOWERS_WORD[state] == listener.rows[uuid].state


def test_a_lost_claim_ends_no_row(listener):
    """An outcome that came too late to count is not shown: somebody else holds the task."""
    listener.alone(outcome(None, "settled late: somebody else holds the task"))
    assert "STARTED" == listener.rows["tk_1"].state


def test_what_was_told_before_the_ledger_let_go_is_not_told_again(listener):
    """A task that is put back may be delivered by another worker before this one ends its message."""
    listener.events.outcomes([outcome(TaskState.WAITING, "put back: no thread")], CALL)
    listener.events.outcomes([outcome(TaskState.DELIVERED)], CALL)
    listener.types.clear()
    with pytest.raises(Ignore):
        listener.events.result(outcome(TaskState.WAITING, "put back: no thread", already_shown=True), CALL)
    assert [] == listener.types


STEPS = st.lists(
    st.tuples(st.sampled_from(list(FLOWERS_WORD)), st.sampled_from(["alone", "together", "told again"])), max_size=8
)


@given(steps=STEPS)
def test_the_row_ends_in_the_ledgers_state(steps):
    """Whatever a touch came to, alone or with others, retried by hand or settled in between: the last word counts."""
    listener = Listener()
    last = None
    for attempt, (state, how) in enumerate(steps, start=1):
        if last is TaskState.DELIVERED:
            break  # nothing follows
        made = outcome(state, f"words {attempt}", attempt=attempt)
        if how == "alone":
            listener.alone(made)
        else:
            listener.events.outcomes([made], CALL)
        if how == "told again":
            listener.events.outcomes([made], CALL)
        last = state
    shown = listener.rows["tk_1"].state if "tk_1" in listener.rows else None
    if shown is None:
        assert last in {None, TaskState.DELIVERED}
    else:
        assert FLOWERS_WORD[last] == shown


def test_telling_again_counts_once(listener):
    """What several workers tell of the same touch is one failure in Flower's numbers."""
    for _ in range(3):
        listener.events.outcomes([outcome(TaskState.DEAD, "refused 422, y")], CALL)
    assert 1 == listener.state.counter["w@x"]["task-failed"]
    listener.events.outcomes([outcome(TaskState.DEAD, "refused 404, z")], CALL)
    assert "dead: refused 404, z" == listener.rows["tk_1"].result


# Faults of our own


class StatementError(Exception):
    """A fault that quotes what it was doing."""


def test_a_fault_shows_its_kind_and_not_its_words(listener):
    """What an unexpected exception says may quote a payload: its type is shown, its message and traceback are not."""
    fault = StatementError("INSERT ... 'Ana', '+56911112222'")
    request_of("0b2ecd8c", listener).on_failure(einfo(fault), return_ok=True)
    row = listener.rows["0b2ecd8c"]
    assert ("FAILURE", "a fault in the worker: StatementError; see its log") == (row.state, row.result)
    assert (None, None) == (row.exception, row.traceback)


def test_a_fault_is_no_end_of_a_touch(listener):
    """The ledger decides what becomes of it, so its row waits."""
    request_of("tk_1", listener).on_failure(einfo(StatementError("Ana")), return_ok=True)
    assert "RETRY" == listener.rows["tk_1"].state


def test_an_expired_message_has_a_name(listener):
    """A message that nobody took in time is told apart by its type, and says that it was sent again."""
    request_of("0b2ecd8c", listener).send_event("task-revoked", terminated=False, signum=None, expired=True)
    row = listener.rows["0b2ecd8c"]
    assert ("REVOKED", CALL) == (row.state, row.name)
    assert row.result.startswith("nobody took it in time")


# Planning


def planned(state, reason=None, number=1, due_at=LATER):
    """Return a task as planning leaves it."""
    return Task(
        id=f"tk_{number}",
        key="k",
        event_id="ev_1",
        rule="big-lead",
        name="call",
        type=TaskType.MAKE_CALL,
        provider=ProviderName.MINDHUNTERS,
        due_at=due_at,
        fields={"title": "Call Ana"},
        state=state,
        reason=reason,
        rule_set="rs_1",
    )


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ('no phone: contact.phone is "Ana\'s", which is no phone number', "dead: the contact has no phone number"),
        ("title: data.notes is missing", "dead: title could not be filled"),
        ('Ana wants "peace": and quiet', "dead: a field could not be filled"),
        (None, "dead: a field could not be filled"),
    ],
)
def test_why_planning_ended_a_task_is_told_without_the_payload(listener, now, reason, said):
    """The cause comes out of a closed set, with the command that has the rest."""
    listener.events.planned([planned(TaskState.DEAD, reason)], now)
    row = listener.rows["tk_1"]
    assert ("FAILURE", f"{said}; see: leadwire show tk_1") == (row.state, row.result)


def test_what_is_due_later_is_shown_as_waiting(listener, now):
    """With the moment it is due at; what is due at once shows itself by its message."""
    tasks = [planned(TaskState.PLANNED), planned(TaskState.PLANNED, number=2, due_at=now + timedelta(seconds=5))]
    listener.events.planned(tasks, now)
    assert {"tk_1": "RETRY"} == {uuid: row.state for uuid, row in listener.rows.items()}
    assert "planned, due at 2026-03-02T14:00:00.000Z" == listener.rows["tk_1"].result


def test_a_flood_of_later_touches_is_not_shown(listener, now):
    """A message that plans many for later leaves Flower's memory to what has happened."""
    listener.events.planned([planned(TaskState.PLANNED, number=n) for n in range(SINGLE_DELIVERY_LIMIT + 1)], now)
    assert [] == listener.types


@pytest.mark.parametrize(
    ("verdict", "status", "state", "due_at", "words"),
    [
        (Verdict.DELIVERED, 201, TaskState.DELIVERED, None, "delivered 201"),
        (Verdict.BUSY, 503, TaskState.WAITING, LATER, "busy 503; again at 2026-03-02T14:00:00.000Z"),
        (Verdict.BUSY, 429, TaskState.DEAD, None, "busy 429, too many requests; given up after attempt 4"),
        (Verdict.UNKNOWN, None, TaskState.UNKNOWN, None, "unknown, no answer: may have been executed"),
        (Verdict.UNKNOWN, 500, TaskState.UNKNOWN, None, "unknown 500, may have been executed"),
        (Verdict.REFUSED, None, TaskState.SUPPRESSED, None, "too late: its time has passed"),
        (Verdict.REFUSED, None, TaskState.DEAD, None, "refused, the fields cannot be put into a request"),
    ],
)
def test_outcomes_in_words(verdict, status, state, due_at, words):
    """Verdict, status, what it means and what follows, short enough for a column."""
    assert words == outcome_words(verdict, status, state, due_at=due_at, attempt=4)


def test_a_message_of_many_is_summed_up():
    """How many came to what."""
    many = [outcome(TaskState.DELIVERED)] * 3 + [outcome(TaskState.DEAD), outcome(None)]
    assert "1 dead, 3 delivered, 1 elsewhere" == count_states(many)


# Delivered with their plans


def batch_of(*outcomes, now, seconds=3):
    """Return a batch that took so long."""
    return InlineBatch(TaskType.MAKE_CALL, outcomes, now - timedelta(seconds=seconds))


def test_a_batch_has_one_row_with_counts(listener, now):
    """It looks as a message of the type would: its ids, how many, when it began, how long it took, what came of them."""
    many = [outcome(TaskState.DELIVERED, task_id=f"tk_{number}") for number in range(11)]
    many += [outcome(TaskState.WAITING, "busy 503; again at x", task_id="tk_w"), outcome(None, task_id="tk_e")]
    listener.events.batch(batch_of(*many, now=now), now)
    assert ["task-succeeded"] == listener.types
    (row,) = listener.rows.values()
    assert ("SUCCESS", CALL, 3.0) == (row.state, row.name, row.runtime)
    assert "'11 delivered, 1 elsewhere, 1 waiting'" == row.result
    assert "{'tasks': 13}" == row.kwargs
    assert "tk_0" in row.args
    assert ((now - timedelta(seconds=3)).timestamp(),) * 2 == (row.received, row.started)


def test_a_batch_is_no_touch(listener, now):
    """Its row ends no touch's and is none; each batch has a row of its own."""
    listener.alone(outcome(TaskState.WAITING, "busy 503; again at x"))
    for _ in range(2):
        listener.events.batch(batch_of(outcome(TaskState.DELIVERED), now=now), now)
    assert 3 == len(listener.rows)
    assert "RETRY" == listener.rows["tk_1"].state
    assert ["tk_1"] == [uuid for uuid in listener.rows if uuid.startswith(TASK_ID_PREFIX)]


def test_the_row_of_a_large_batch_is_bounded(listener, now):
    """Arguments are cut as Celery cuts those of a message."""
    many = [outcome(TaskState.DELIVERED, task_id=f"tk_{number:020}") for number in range(100)]
    listener.events.batch(batch_of(*many, now=now), now)
    (row,) = listener.rows.values()
    assert len(row.args) < 1200
    assert "'100 delivered'" == row.result


def test_nothing_personal_is_told_of_a_batch(listener, now):
    """Ids and counts alone: neither the words of an outcome nor its rule."""
    said = []
    personal = outcome(TaskState.DEAD, "refused 422, Ana +56911112222", rule="rule of Ana")
    dispatcher = SimpleNamespace(send=lambda type_, **fields: said.append((type_, fields)))
    FlowerEvents(lambda: dispatcher).batch(batch_of(personal, now=now), now)
    ((_, fields),) = said
    assert {"uuid", "name", "args", "kwargs", "received", "started", "runtime", "result"} == set(fields)
    assert not [value for value in fields.values() if "Ana" in str(value) or "56911112222" in str(value)]
    assert "'1 dead'" == fields["result"]


def test_other_monitors_take_a_batch(now):
    """Celery's own state hears of a batch without a fault."""
    plain = Listener(State())
    plain.events.batch(batch_of(outcome(TaskState.DELIVERED), now=now), now)
    assert ["SUCCESS"] == [row.state for row in plain.rows.values()]

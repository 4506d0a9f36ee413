"""What Flower shows of each touch: one row, under the task's own id, that always tells its latest state.

SUCCESS was delivered, RETRY waits for its moment, FAILURE died or is in doubt, REVOKED was suppressed or cancelled. The
result beside it, which Flower's search reads too, has the verdict, the status and a cause out of a closed set of words, and
nothing personal: the words of providers, payloads and faults stay in the ledger.

Celery's monitors take events in the order in which they arrive, and of a row's states they keep the highest of SUCCESS,
FAILURE, REVOKED, STARTED, RECEIVED; only RETRY is always taken, and anything is taken after it (Celery 5.7,
`celery/events/state.py`, `Task.event`, and `celery/states.py`). Three things follow:

- REVOKED has a RETRY before it, else a row that had failed before would stay so.
- A RETRY must not arrive after a SUCCESS. That of a task that anybody may take up at once is therefore sent before the
  ledger lets go of the task; all others are due seconds later.
- What was delivered in a message of many ends the rows of those that have one: an event of our own names them
  (`DELIVERED_TOGETHER`), which `console/flower.py` understands. None gets a new row by it: failures of an hour would be
  pushed out by successes of a minute.

Telling Flower again what it may have missed, out of the ledger.

Flower knows only what it heard: a worker that is killed says nothing more of what it was sending, doubts are ended by a
look-up or by `leadwire settle` in another process, and while Flower or the broker was away nobody listened. So every worker

- looks every five seconds which tasks are `unknown`, tells those that are so newly, and how a doubt has ended;
- tells what came of the latest tasks when it starts, and when somebody begins to listen.

What is told is what stands, so that telling it twice, or by several workers, changes nothing.

Celery's consumer, with its events sent at a pace.

Celery 5.7 collects the events of tasks and publishes what it has at the next turn of its loop, which under load is one
message per event or two. Flower loses nothing when they come five times a second instead, twenty-four to a message.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from billiard.einfo import ExceptionWithTraceback  # type: ignore[attr-defined]  # the stubs do not know it
from celery import signals
from celery.exceptions import Ignore, Retry
from celery.utils.saferepr import saferepr
from celery.worker import state as celery_state
from celery.worker.consumer import Consumer as CeleryConsumer
from celery.worker.control import Panel, control_command
from celery.worker.request import Request as CeleryRequest

from rules.vocabulary import TERMINAL_TASK_STATES, LedgerError, Problem, Task, TaskState, Verdict, instant
from worker.awake import awake_seconds
from worker.context import utc_now
from worker.deliver import Delivered, outcome_words
from worker.first_attempts import Batch
from worker.ledger import Ledger, StoredTask
from worker.publisher import CELERY_TASK_OF, SINGLE_DELIVERY_LIMIT

#: Every id of a touch begins so, and no other row's does.
TOUCH: Final = "tk_"
#: Its field `uuids` names touches that were delivered; those with a row are SUCCESS by it.
DELIVERED_TOGETHER: Final = "task-delivered"
#: Only what waits for longer is announced as waiting: what is due sooner may be delivered before the event arrives.
WAITS_AT_LEAST: Final = timedelta(seconds=10)

#: As long as Celery lets the arguments of a message be.
_ARGUMENTS_LIMIT: Final = 1024

#: Sends one event of Celery's: its type and its fields.
Send = Callable[..., Any]


class TaskWaiting(Retry):
    """A task waits for its next moment."""


class TaskDead(Problem):
    """A task was given up."""


class TaskUnknown(Problem):
    """Nobody knows whether a task was executed; a person settles it."""


_RETRIED: Final = ("task-retried",)
_FAILED: Final = ("task-failed",)
_REVOKED: Final = ("task-retried", "task-revoked")
_EVENTS_OF: Final[dict[TaskState | None, tuple[str, ...]]] = {
    TaskState.PLANNED: _RETRIED,
    TaskState.WAITING: _RETRIED,
    TaskState.DEAD: _FAILED,
    TaskState.UNKNOWN: _FAILED,
    TaskState.SUPPRESSED: _REVOKED,
    TaskState.CANCELLED: _REVOKED,
}


def show(delivered: Delivered, name: str, send: Send) -> str:
    """Return or raise what makes Celery show the outcome of a message with one task."""
    state = delivered.state
    if delivered.told:
        raise Ignore
    if state in {TaskState.SUPPRESSED, TaskState.CANCELLED}:
        _announce(delivered, name, send)
        raise Ignore
    if state is TaskState.WAITING:
        raise TaskWaiting(_line(delivered), when=delivered.due_at)
    if state is None or delivered.rule is None:
        raise Ignore  # nothing was claimed, or the claim was lost: its row tells already, or another message is about to
    if state is TaskState.DEAD:
        raise TaskDead(_line(delivered))
    if state is TaskState.UNKNOWN:
        raise TaskUnknown(_line(delivered))
    return _line(delivered)


def summary(outcomes: Sequence[Delivered]) -> str:
    """Return what stands beside a message with many tasks: how many came to what."""
    counts: dict[str, int] = {}
    for outcome in outcomes:
        word = str(outcome.state or "elsewhere")
        counts[word] = counts.get(word, 0) + 1
    return ", ".join(f"{count} {word}" for word, count in sorted(counts.items()))


def announce(outcomes: Iterable[Delivered], name: str, send: Send) -> None:
    """Show tasks whose message does not show them by itself; `name` is that of their Celery task.

    A delivered one only ends the row it may have.
    """
    delivered: list[str] = []
    for outcome in outcomes:
        if outcome.told or outcome.rule is None:
            continue
        if outcome.state is TaskState.DELIVERED:
            delivered.append(outcome.task_id)
        elif outcome.state in _EVENTS_OF:
            _announce(outcome, name, send)
    if delivered:
        together(delivered, send)


def batch(delivered: Batch, now: datetime, send: Send) -> None:
    """Show tasks that were delivered with the message that planned them as one message of their type would be shown."""
    ids = [outcome.task_id for outcome in delivered.outcomes]
    began_seconds = delivered.began_at.timestamp()
    send(
        "task-succeeded",
        uuid=str(uuid.uuid4()),
        name=CELERY_TASK_OF[delivered.type],
        args=saferepr([ids], maxlen=_ARGUMENTS_LIMIT),
        kwargs=repr({"tasks": len(ids)}),
        received=began_seconds,
        started=began_seconds,
        runtime=(now - delivered.began_at).total_seconds(),
        result=repr(summary(delivered.outcomes)),  # as Celery shows what a message returns
    )


def together(task_ids: Sequence[str], send: Send, result: str = "delivered, with others in one message") -> None:
    """End the rows of tasks that were delivered; those without a row get none."""
    send(DELIVERED_TOGETHER, uuid=task_ids[0], uuids=list(task_ids), result=result)


def planned(tasks: Sequence[Task], now: datetime, send: Send) -> None:
    """Show the tasks that no message goes out for now: those that planning ended, and those that are due later.

    Those due later only while they are few: else they would push everything else out of Flower.
    """
    later = [task for task in tasks if task.state is TaskState.PLANNED and task.due_at - now >= WAITS_AT_LEAST]
    ended = [task for task in tasks if task.state in {TaskState.DEAD, TaskState.SUPPRESSED}]
    for task in [*ended, *(later if len(later) <= SINGLE_DELIVERY_LIMIT else ())]:
        outcome = Delivered(task_id=task.id, state=task.state, words=planning_words(task), rule=task.rule)
        _announce(outcome, CELERY_TASK_OF[task.type], send)


#: How a reason of planning may begin. It goes on with what may quote the payload.
_CAUSES: Final = {
    "no phone": "the contact has no phone number",
    "nobody to reach": "the contact has no phone and no e-mail",
    "nobody to do it": "assign names nobody",
} | {
    name: f"{name} could not be filled"
    for name in (
        *("title", "description", "agent", "template", "at", "timezone", "contact", "contact_uuid", "campaign"),
        *("priority", "assign", "due", "ai_contact_id", "ai_customer_id", "task_data", "extra_fields", "redial"),
    )
}


def planning_words(task: Any) -> str:
    """Return why planning ended a task (or when it is due), in words that may be shown anywhere."""
    if task.state is TaskState.PLANNED:
        return f"planned, due at {instant(task.due_at)}"
    if task.state is TaskState.SUPPRESSED:
        if task.reason is None or task.reason.startswith("too late"):
            return "too late: it expired before it could be made"
        return f"what it answers was undone; see: leadwire show {task.id}"
    beginning = str(task.reason or "").partition(":")[0]
    return f"{_CAUSES.get(beginning, 'a field could not be filled')}; see: leadwire show {task.id}"


def forgive_revocations() -> None:
    """Let a task be delivered by its next message though one of its messages was revoked.

    Celery drops every later message under a revoked id. Ids of messages are those of tasks here, and only the ledger
    decides about those: `leadwire cancel` is the way to stop one.
    """
    signals.task_revoked.connect(_forgive, weak=False)


def _forgive(request: Any = None, **_: Any) -> None:
    celery_state.revoked.discard(request.id)


class Request(CeleryRequest):
    """A message's events, without what a fault says of itself: that may quote a payload, an address or a statement.

    Named by the tasks' option `Request`.
    """

    _words: str | None = None
    _fault: str = "unknown"

    def on_failure(self, exc_info: Any, *arguments: Any, **named: Any) -> Any:
        """Keep what may be shown of the exception, then do as Celery does."""
        exception = exc_info.exception
        if isinstance(exception, ExceptionWithTraceback):
            exception = exception.exc
        ours = isinstance(exception, TaskWaiting | TaskDead | TaskUnknown)
        self._words = str(exception) if ours else None
        self._fault = type(exception).__name__
        return super().on_failure(exc_info, *arguments, **named)

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002 - Celery's name
        """Send an event with the outcome as its result and without the rest.

        A fault of a touch's message is no end: the ledger has it looked at again, or knows that it is in doubt.
        """
        if type in {"task-failed", "task-retried"}:
            words = self._words
            if words is None:
                words = f"a fault in the worker: {self._fault}; see its log"
                type = "task-retried" if self.id.startswith(TOUCH) else type  # noqa: A001 - as above
            fields = {"result": words, "exception": None, "traceback": None}
        elif type == "task-revoked":
            fields |= {"name": self.name, "args": self.argsrepr, "kwargs": self.kwargsrepr}
            fields["result"] = (
                "nobody took it in time: what it carried was sent again" if fields["expired"] else "revoked"
            )
        super().send_event(type, **fields)


def _line(delivered: Delivered) -> str:
    """Return the outcome in one line of few words: Flower's table shows about fifty characters.

    What waits says until when; the others begin with the ledger's state.
    """
    state, words = delivered.state, delivered.words
    waits = state in {None, TaskState.WAITING, TaskState.PLANNED}
    return words if waits or words.startswith(str(state)) else f"{state}: {words}"


def _announce(outcome: Delivered, name: str, send: Send) -> None:
    """Make a row, or bring it up to date, with as few events as do it."""
    assert outcome.state is not None
    now_seconds = time.time()
    began_seconds = outcome.began_at.timestamp() if outcome.began_at else now_seconds
    row: dict[str, Any] = {"uuid": outcome.task_id, "name": name, "args": repr([outcome.task_id])}
    if outcome.rule is not None:
        row |= {"kwargs": repr({"rule": outcome.rule, "attempt": outcome.attempt}), "retries": outcome.attempt - 1}
    row |= {"received": began_seconds, "result": _line(outcome)}
    if outcome.state is not TaskState.PLANNED:
        row["started"] = began_seconds
    if outcome.ended_at and outcome.state in {TaskState.DEAD, TaskState.UNKNOWN}:
        row["failed"] = outcome.ended_at.timestamp()
    for event in _EVENTS_OF[outcome.state]:
        send(event, **row)


log = logging.getLogger(__name__)

_HEARTBEAT: Final = Panel.data["heartbeat"]
#: How often doubts are looked for.
PERIOD_SECONDS: Final = 5.0
#: How long a newcomer gets to listen, and what is told in answer to several of them.
LISTENING_SECONDS: Final = 1.0
#: The latest tasks, whatever their state, and the latest in each of the states that a person looks for.
LATEST: Final = 1000
LATEST_OF_STATE: Final = 500
TOLD_STATES: Final = (TaskState.UNKNOWN, TaskState.DEAD, TaskState.SUPPRESSED, TaskState.CANCELLED, TaskState.WAITING)
#: What has not changed for longer is left to `leadwire tasks`.
TOLD_AGE: Final = timedelta(hours=24)
#: Rows of a repeated telling are the same; a broker that comes and goes shall not have them sent all the time.
REST_SECONDS: Final = 20.0


class FlowerSync:
    """The telling thread of one worker process."""

    def __init__(self, ledger: Ledger, send: Send) -> None:
        self._ledger = ledger
        self._send = send
        self._doubtful: set[str] = set()
        self._noted: deque[str] = deque()
        self._asked = threading.Event()
        self._asked.set()
        self._told_seconds = -REST_SECONDS
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="retelling", daemon=True)

    def when_somebody_listens(self) -> None:
        """Tell everything again when a monitor begins to listen: it calls for the workers' heartbeats then."""

        @control_command(name="heartbeat")
        def heard(state: Any) -> None:
            _HEARTBEAT(state)
            self._asked.set()

    def note(self, outcomes: Iterable[Delivered]) -> None:
        """Know of doubts that this worker has just shown: one may be ended before the next look."""
        self._noted.extend(outcome.task_id for outcome in outcomes if outcome.state is TaskState.UNKNOWN)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the round under way."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def _run(self) -> None:
        doubts_seconds = 0.0
        while not self._stopping.wait(LISTENING_SECONDS):
            try:
                everything = self._asked.is_set() and awake_seconds() - self._told_seconds >= REST_SECONDS
                if everything or awake_seconds() - doubts_seconds >= PERIOD_SECONDS:
                    doubts_seconds = awake_seconds()
                    self.doubts()  # first: it knows more of how a doubt ended
                if everything:
                    self._asked.clear()
                    self.everything()
                    self._told_seconds = awake_seconds()
            except LedgerError as error:
                log.debug("Flower is told later: %s", error)
            except Exception:
                log.exception("Flower could not be told what it may have missed; the next round tries again")

    def doubts(self) -> None:
        """Tell which tasks are newly in doubt, and which were delivered after all or have ended otherwise."""
        known = self._doubtful | {self._noted.popleft() for _ in range(len(self._noted))}
        found = {task.id: task for task in self._ledger.queries.list_tasks(LATEST_OF_STATE, state=TaskState.UNKNOWN)}
        for task_id in found.keys() - known:
            self._tell(found[task_id])
        ended = [self._ledger.queries.task(task_id) for task_id in known - found.keys()]
        delivered = [task.id for task in ended if task and task.state is TaskState.DELIVERED]
        if delivered:
            together(delivered, self._send, "delivered, after a doubt")
        for task in ended:
            if task and task.state in TERMINAL_TASK_STATES and task.state is not TaskState.DELIVERED:
                self._tell(task)
        self._doubtful = set(found)

    def everything(self) -> None:
        """Tell what came of the latest tasks."""
        delivered: list[str] = []
        for task in self._latest():
            if self._stopping.is_set():
                return
            if task.state is TaskState.DELIVERED:
                delivered.append(task.id)
            else:
                self._tell(task)
        for start in range(0, len(delivered), 100):
            together(delivered[start : start + 100], self._send, "delivered")

    def _latest(self) -> Iterator[StoredTask]:
        oldest_at = utc_now() - TOLD_AGE
        seen: set[str] = set()
        lists = [self._ledger.queries.list_tasks(LATEST)]
        lists += [self._ledger.queries.list_tasks(LATEST_OF_STATE, state=state) for state in TOLD_STATES]
        for tasks in lists:
            for task in tasks:
                if task.id not in seen and task.updated_at >= oldest_at:
                    seen.add(task.id)
                    yield task

    def _tell(self, task: StoredTask) -> None:
        waits = task.state in {TaskState.PLANNED, TaskState.WAITING}
        if waits and task.due_at - utc_now() < WAITS_AT_LEAST:
            return  # its next message is about to tell more
        announce([self._outcome(task)], CELERY_TASK_OF[task.type], self._send)

    def _outcome(self, task: StoredTask) -> Delivered:
        """Return what is to be shown of a task, in the words of the worker that settled it."""
        attempts = [
            attempt for attempt in self._ledger.queries.attempts(task.id) if not attempt.deferred or attempt.verdict
        ]
        last = attempts[-1] if attempts else None
        waiting = task.state is TaskState.WAITING
        if last is None or last.verdict is None:
            words = f"again at {instant(task.due_at)}" if waiting else planning_words(task)
        else:
            due_at = task.due_at if waiting else None
            words = outcome_words(last.verdict, last.status, task.state, due_at=due_at, attempt=last.number)
            if last.verdict is Verdict.UNKNOWN and task.state is TaskState.DEAD:
                words = f"its provider does not have it; given up after attempt {last.number}"
        return Delivered(
            task_id=task.id,
            state=task.state,
            words=words,
            rule=task.rule,
            attempt=last.number if last else 1,
            began_at=last.started_at if last else task.created_at,
            ended_at=last.ended_at if last and last.ended_at else task.updated_at,
        )


#: How long an event may wait for company; a full message (24 events) leaves at once.
EVENTS_SECONDS: Final = 0.2
#: After so long a flush that was scheduled is not believed in any more.
OVERDUE_SECONDS: Final = 2.0


class Consumer(CeleryConsumer):
    """The worker's consumer; named by the setting `worker_consumer`."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._flush_at_seconds = -OVERDUE_SECONDS

    def on_send_event_buffered(self) -> None:  # type: ignore[override]  # the stub names the promise it is called through
        """Have what is collected sent a little later, once."""
        hub: Any = self.hub  # type: ignore[attr-defined]  # the stubs know little of the consumer
        now_seconds = time.monotonic()
        # Overdue by far: Celery cancels what is scheduled when a connection breaks before its loop runs.
        if hub and now_seconds >= self._flush_at_seconds + OVERDUE_SECONDS:
            self._flush_at_seconds = now_seconds + EVENTS_SECONDS
            hub.call_later(EVENTS_SECONDS, self._flush_events)

    def _flush_events(self) -> None:
        self._flush_at_seconds = -OVERDUE_SECONDS
        super()._flush_events()  # type: ignore[misc]  # as above

"""What Flower is told of tasks: one row each, under the task's own id, that shows its latest state.

| Flower shows | when the task |
| --- | --- |
| SUCCESS | was delivered |
| RETRY | waits: for a retry, a window, a limit, its planned moment |
| FAILURE | is dead, or its outcome is unknown |
| REVOKED | was suppressed or cancelled |

A row's result, which Flower's search reads too, holds the verdict, the status and a cause out of a closed set of words.
It holds nothing personal: what providers, payloads and exceptions say stays in the ledger.

Celery shows a message that carries one task by itself (`FlowerEvents.result`). All else is sent as Celery's own events.
Monitors take events in the order in which they arrive. Of a row's states they keep the highest of SUCCESS, FAILURE,
REVOKED, STARTED, RECEIVED; a RETRY is always taken, and after it anything is (Celery 5.7, `Task.event` in
`celery/events/state.py`, and `celery/states.py`). Hence:

- A RETRY is sent before each REVOKED, else a row that had failed before would stay FAILURE.
- A RETRY must not arrive after a SUCCESS. So that of a task which any worker may take at once is sent, and flushed, before
  the ledger releases the task.
- Tasks that were delivered many to a message end the rows that they have, and get none: successes of a minute would push
  the failures of an hour out of Flower. One event of our own, `task-delivered`, names them; `console/flower.py` reads it,
  and monitors that do not know it keep the older state of those rows.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from billiard.einfo import ExceptionWithTraceback  # type: ignore[attr-defined]  # the stubs do not know it
from celery.exceptions import Ignore, Retry
from celery.utils.saferepr import saferepr
from celery.worker.consumer import Consumer
from celery.worker.control import Panel, control_command
from celery.worker.request import Request

from rules.vocabulary import TERMINAL_TASK_STATES, LedgerError, Problem, Task, TaskState, Verdict, instant
from worker.broker import DELIVERED_TOGETHER, TASK_ID_PREFIX
from worker.clock import awake_seconds, utc_now
from worker.delivery import DeliveryOutcome, outcome_words
from worker.ledger import Ledger, StoredTask
from worker.planning import InlineBatch
from worker.publisher import CELERY_TASK_OF, SINGLE_DELIVERY_LIMIT

log = logging.getLogger(__name__)

#: Only what waits for longer is announced as waiting: what is due sooner may be delivered before the event arrives.
WAITS_AT_LEAST: Final = timedelta(seconds=10)
#: Celery cuts the arguments of a message that it shows at this length.
_ARGUMENTS_LIMIT: Final = 1024


class TaskWaiting(Retry):
    """Raised inside a Celery task when the ledger's task waits: Celery sends `task-retried` and publishes no message."""


class TaskDead(Problem):
    """Raised inside a Celery task when the ledger's task is dead: Celery sends `task-failed`."""


class TaskUnknown(Problem):
    """Raised inside a Celery task when it is unknown whether the ledger's task was executed: Celery sends `task-failed`."""


_EVENTS_OF: Final[dict[TaskState | None, tuple[str, ...]]] = {
    **dict.fromkeys((TaskState.PLANNED, TaskState.WAITING), ("task-retried",)),
    **dict.fromkeys((TaskState.DEAD, TaskState.UNKNOWN), ("task-failed",)),
    **dict.fromkeys((TaskState.SUPPRESSED, TaskState.CANCELLED), ("task-retried", "task-revoked")),
}


class FlowerEvents:
    """Sends task events to Flower through the worker's own event dispatcher.

    `dispatcher` returns the dispatcher, or None while the worker has none; then nothing is sent, and `FlowerSync` sends it
    later.
    """

    def __init__(self, dispatcher: Callable[[], Any]) -> None:
        self._dispatcher = dispatcher

    def _call(self, method: str, *arguments: Any, **fields: Any) -> None:
        dispatcher = self._dispatcher()
        if dispatcher is None:
            return
        try:
            getattr(dispatcher, method)(*arguments, **fields)
        except Exception as error:  # noqa: BLE001 - the transports share no root of exceptions; the ledger has it all
            log.debug("Flower misses events: %s", type(error).__name__)

    def result(self, outcome: DeliveryOutcome, name: str) -> str:
        """Return the result of a Celery task, or raise what makes Celery send the right event, for a message with one task.

        `name` is the Celery task's name. Raises TaskWaiting, TaskDead, TaskUnknown, or Ignore when nothing is to be shown.
        """
        state = outcome.state
        if outcome.already_shown:
            raise Ignore
        if state in {TaskState.SUPPRESSED, TaskState.CANCELLED}:
            self.row(outcome, name)
            raise Ignore
        if state is TaskState.WAITING:
            raise TaskWaiting(_line(outcome), when=outcome.due_at)
        if state is None or outcome.rule is None:
            raise Ignore  # nothing was claimed, or the claim was lost: another message shows the task
        if state is TaskState.DEAD:
            raise TaskDead(_line(outcome))
        if state is TaskState.UNKNOWN:
            raise TaskUnknown(_line(outcome))
        return _line(outcome)

    def outcomes(self, outcomes: Sequence[DeliveryOutcome], name: str) -> None:
        """Send events for tasks whose message carries several of them; `name` is their Celery task's name.

        If any of them waits, the events are flushed at once: another worker may claim it next, and its events must arrive
        later.
        """
        delivered: list[str] = []
        for outcome in outcomes:
            if outcome.already_shown or outcome.rule is None:
                continue
            if outcome.state is TaskState.DELIVERED:
                delivered.append(outcome.task_id)
            else:
                self.row(outcome, name)
        if delivered:
            self.delivered(delivered)
        if any(outcome.state is TaskState.WAITING for outcome in outcomes):
            self._call("flush")

    def delivered(self, task_ids: Sequence[str], result: str = "delivered, with others in one message") -> None:
        """Turn the existing rows of these tasks to SUCCESS; tasks without a row get none."""
        self._call("send", DELIVERED_TOGETHER, uuid=task_ids[0], uuids=list(task_ids), result=result)

    def batch(self, batch: InlineBatch, now: datetime) -> None:
        """Show tasks delivered by the message that planned them, as if they had had a delivery message of their own."""
        ids = [outcome.task_id for outcome in batch.outcomes]
        began_seconds = batch.began_at.timestamp()
        self._call(
            "send",
            "task-succeeded",
            uuid=str(uuid.uuid4()),
            name=CELERY_TASK_OF[batch.type],
            args=saferepr([ids], maxlen=_ARGUMENTS_LIMIT),
            kwargs=repr({"tasks": len(ids)}),
            received=began_seconds,
            started=began_seconds,
            runtime=(now - batch.began_at).total_seconds(),
            result=repr(count_states(batch.outcomes)),  # as Celery shows what a task returns
        )

    def planned(self, tasks: Sequence[Task], now: datetime) -> None:
        """Show tasks for which no message is published now: ended during planning, or due later.

        Those due later are shown only while they are few; more would push everything else out of Flower.
        """
        later = [task for task in tasks if task.state is TaskState.PLANNED and task.due_at - now >= WAITS_AT_LEAST]
        ended = [task for task in tasks if task.state in {TaskState.DEAD, TaskState.SUPPRESSED}]
        for task in [*ended, *(later if len(later) <= SINGLE_DELIVERY_LIMIT else ())]:
            outcome = DeliveryOutcome(task_id=task.id, state=task.state, words=_planning_words(task), rule=task.rule)
            self.row(outcome, CELERY_TASK_OF[task.type])

    def row(self, outcome: DeliveryOutcome, name: str) -> None:
        """Create or update a task's row in Flower; does nothing for a state that Flower does not know."""
        if outcome.state not in _EVENTS_OF:
            return
        began_seconds = outcome.began_at.timestamp() if outcome.began_at else time.time()
        row: dict[str, Any] = {"uuid": outcome.task_id, "name": name, "args": repr([outcome.task_id])}
        if outcome.rule is not None:
            row |= {"kwargs": repr({"rule": outcome.rule, "attempt": outcome.attempt}), "retries": outcome.attempt - 1}
        row |= {"received": began_seconds, "result": _line(outcome)}
        if outcome.state is not TaskState.PLANNED:
            row["started"] = began_seconds
        if outcome.ended_at and outcome.state in {TaskState.DEAD, TaskState.UNKNOWN}:
            row["failed"] = outcome.ended_at.timestamp()
        for event in _EVENTS_OF[outcome.state]:
            self._call("send", event, **row)


def count_states(outcomes: Iterable[DeliveryOutcome]) -> str:
    """Return the number of tasks by state, such as `1 dead, 3 delivered`: the Celery result of a message with many tasks."""
    counts = Counter(str(outcome.state or "elsewhere") for outcome in outcomes)
    return ", ".join(f"{count} {word}" for word, count in sorted(counts.items()))


def _line(outcome: DeliveryOutcome) -> str:
    """Return the outcome in one line of few words: Flower's table shows about fifty characters.

    What waits says until when; the others begin with the ledger's state.
    """
    state, words = outcome.state, outcome.words
    waits = state in {None, TaskState.WAITING, TaskState.PLANNED}
    return words if waits or words.startswith(str(state)) else f"{state}: {words}"


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


def _planning_words(task: Task | StoredTask) -> str:
    """Return why planning ended a task, or when the task is due, in words that may be shown anywhere."""
    if task.state is TaskState.PLANNED:
        return f"planned, due at {instant(task.due_at)}"
    if task.state is TaskState.SUPPRESSED:
        if task.reason is None or task.reason.startswith("too late"):
            return "too late: it expired before it could be made"
        return f"what it answers was undone; see: leadwire show {task.id}"
    beginning = str(task.reason or "").partition(":")[0]
    return f"{_CAUSES.get(beginning, 'a field could not be filled')}; see: leadwire show {task.id}"


class RedactedRequest(Request):
    """A Celery request whose events leave out exception texts, which may quote a payload, an address or SQL.

    Set as the tasks' option `Request`.
    """

    _words: str | None = None
    _fault: str = "unknown"

    def on_failure(self, exc_info: Any, *arguments: Any, **named: Any) -> Any:
        """Keep the redacted outcome of the exception, then call Celery's method."""
        exception = exc_info.exception
        if isinstance(exception, ExceptionWithTraceback):
            exception = exception.exc
        ours = isinstance(exception, TaskWaiting | TaskDead | TaskUnknown)
        self._words = str(exception) if ours else None
        self._fault = type(exception).__name__
        return super().on_failure(exc_info, *arguments, **named)

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002 - Celery's name
        """Send an event with the redacted outcome as its result, without exception and traceback.

        For an unexpected exception `task-failed` is not final: the ledger makes the task due again, or marks its outcome as
        unknown.
        """
        if type in {"task-failed", "task-retried"}:
            words = self._words
            if words is None:
                words = f"a fault in the worker: {self._fault}; see its log"
                type = "task-retried" if self.id.startswith(TASK_ID_PREFIX) else type  # noqa: A001 - as above
            fields = {"result": words, "exception": None, "traceback": None}
        elif type == "task-revoked":
            fields |= {"name": self.name, "args": self.argsrepr, "kwargs": self.kwargsrepr}
            fields["result"] = (
                "nobody took it in time: what it carried was sent again" if fields["expired"] else "revoked"
            )
        super().send_event(type, **fields)


class BatchingConsumer(Consumer):
    """Celery's consumer, but sending task events five times a second. Set by `worker_consumer`.

    Celery 5.7 publishes collected events at the next iteration of its loop: under load a message for every one or two events.
    Mingle and gossip with other workers are turned off, because Leadwire does not use them.
    """

    #: How long an event may wait for others; a full message (24 events) leaves at once.
    WAIT_SECONDS: Final = 0.2
    #: After so long a scheduled flush is taken for lost: Celery cancels it when a connection breaks before its loop runs.
    LOST_SECONDS: Final = 2.0

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named | {"without_gossip": True, "without_mingle": True})
        self._flush_at_seconds = -self.LOST_SECONDS

    def on_send_event_buffered(self) -> None:  # type: ignore[override]  # the stub names the promise it is called through
        """Schedule one sending of the collected events, if none is scheduled."""
        hub: Any = self.hub  # type: ignore[attr-defined]  # the stubs know little of the consumer
        now_seconds = time.monotonic()
        if hub and now_seconds >= self._flush_at_seconds + self.LOST_SECONDS:
            self._flush_at_seconds = now_seconds + self.WAIT_SECONDS
            hub.call_later(self.WAIT_SECONDS, self._flush_events)

    def _flush_events(self) -> None:
        self._flush_at_seconds = -self.LOST_SECONDS
        super()._flush_events()  # type: ignore[misc]  # as above


#: How often unknown outcomes are looked for.
UNKNOWN_PERIOD_SECONDS: Final = 5.0
#: How often it is looked whether a monitor has begun to listen; that also gives it time to be ready.
PERIOD_SECONDS: Final = 1.0
#: The latest tasks, whatever their state, and the latest in each of the states that a person looks for.
LATEST: Final = 1000
LATEST_OF_STATE: Final = 500
STATES_SENT_AGAIN: Final = (
    *(TaskState.UNKNOWN, TaskState.DEAD, TaskState.SUPPRESSED, TaskState.CANCELLED, TaskState.WAITING),
)
#: What has not changed for longer is left to `leadwire tasks`.
AGE_LIMIT: Final = timedelta(hours=24)
#: At least so long between two rounds that send everything: a broker may come and go all the time.
REST_SECONDS: Final = 20.0
_CELERYS_HEARTBEAT: Final = Panel.data["heartbeat"]


class FlowerSync:
    """Repeats to Flower what it may have missed, from the ledger. Runs in every worker.

    Flower knows only the events it received. It misses outcomes when a worker is killed, when another process settles an
    unknown task (the reconciler, `leadwire settle`), and while Flower or the broker is down. So every worker checks every five
    seconds which outcomes are unknown or no longer unknown, and sends the latest tasks at its start and when a monitor starts.
    Sending the ledger's states twice, or from several workers, changes nothing. Stops early when `closing` is set.
    """

    def __init__(self, ledger: Ledger, events: FlowerEvents, closing: threading.Event) -> None:
        self._ledger = ledger
        self._events = events
        self._closing = closing
        self._unknown: set[str] = set()
        self._noted: deque[str] = deque()
        self._asked = threading.Event()
        self._asked.set()
        self._sent_all_seconds = -REST_SECONDS
        self._unknown_seconds = 0.0

    def listen_for_monitors(self) -> None:
        """Send everything again when a monitor starts, which shows by its request for a heartbeat to all workers."""

        @control_command(name="heartbeat")
        def heartbeat(state: Any) -> None:
            """Tell worker(s) to send event heartbeat immediately."""
            _CELERYS_HEARTBEAT(state)
            self._asked.set()

    def note(self, outcomes: Iterable[DeliveryOutcome]) -> None:
        """Remember unknown outcomes that this worker has just shown: they may be settled before the next check."""
        self._noted.extend(outcome.task_id for outcome in outcomes if outcome.state is TaskState.UNKNOWN)

    def work(self) -> float:
        """Send what is due now; return the seconds until the next check. For a `PeriodicThread`."""
        try:
            self._send_due()
        except LedgerError as error:
            log.debug("Flower is told later: %s", error)
        return PERIOD_SECONDS

    def _send_due(self) -> None:
        sends_all = self._asked.is_set() and awake_seconds() - self._sent_all_seconds >= REST_SECONDS
        if sends_all or awake_seconds() - self._unknown_seconds >= UNKNOWN_PERIOD_SECONDS:
            self._unknown_seconds = awake_seconds()
            self.send_unknown()  # first: it knows more of how an unknown outcome ended
        if sends_all:
            self._asked.clear()
            self.send_latest()
            self._sent_all_seconds = awake_seconds()

    def send_unknown(self) -> None:
        """Send which outcomes are newly unknown, and how earlier unknown ones were settled."""
        known = self._unknown | {self._noted.popleft() for _ in range(len(self._noted))}
        found = {task.id: task for task in self._ledger.queries.list_tasks(LATEST_OF_STATE, state=TaskState.UNKNOWN)}
        for task_id in found.keys() - known:
            self._send(found[task_id])
        ended = [self._ledger.queries.task(task_id) for task_id in known - found.keys()]
        delivered = [task.id for task in ended if task and task.state is TaskState.DELIVERED]
        if delivered:
            self._events.delivered(delivered, "delivered, after a doubt")
        for task in ended:
            if task and task.state in TERMINAL_TASK_STATES and task.state is not TaskState.DELIVERED:
                self._send(task)
        self._unknown = set(found)

    def send_latest(self) -> None:
        """Send the states of the latest tasks."""
        delivered: list[str] = []
        for task in self._latest():
            if self._closing.is_set():
                return
            if task.state is TaskState.DELIVERED:
                delivered.append(task.id)
            else:
                self._send(task)
        for start in range(0, len(delivered), 100):
            self._events.delivered(delivered[start : start + 100], "delivered")

    def _latest(self) -> Iterator[StoredTask]:
        oldest_at = utc_now() - AGE_LIMIT
        seen: set[str] = set()
        lists = [self._ledger.queries.list_tasks(LATEST)]
        lists += [self._ledger.queries.list_tasks(LATEST_OF_STATE, state=state) for state in STATES_SENT_AGAIN]
        for tasks in lists:
            for task in tasks:
                if task.id not in seen and task.updated_at >= oldest_at:
                    seen.add(task.id)
                    yield task

    def _send(self, task: StoredTask) -> None:
        waits = task.state in {TaskState.PLANNED, TaskState.WAITING}
        if waits and task.due_at - utc_now() < WAITS_AT_LEAST:
            return  # its next message is about to tell more
        self._events.row(self._outcome(task), CELERY_TASK_OF[task.type])

    def _outcome(self, task: StoredTask) -> DeliveryOutcome:
        """Return what is to be shown of a task, in the words of the worker that settled it."""
        attempts = [
            attempt for attempt in self._ledger.queries.attempts(task.id) if not attempt.deferred or attempt.verdict
        ]
        last = attempts[-1] if attempts else None
        waiting = task.state is TaskState.WAITING
        if last is None or last.verdict is None:
            words = f"again at {instant(task.due_at)}" if waiting else _planning_words(task)
        else:
            due_at = task.due_at if waiting else None
            words = outcome_words(last.verdict, last.status, task.state, due_at=due_at, attempt=last.number)
            if last.verdict is Verdict.UNKNOWN and task.state is TaskState.DEAD:
                words = f"its provider does not have it; given up after attempt {last.number}"
        return DeliveryOutcome(
            task_id=task.id,
            state=task.state,
            words=words,
            rule=task.rule,
            attempt=last.number if last else 1,
            began_at=last.started_at if last else task.created_at,
            ended_at=last.ended_at if last and last.ended_at else task.updated_at,
        )

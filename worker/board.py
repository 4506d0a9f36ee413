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
  (`DELIVERED_TOGETHER`), which `console/dashboard.py` understands. None gets a new row by it: failures of an hour would be
  pushed out by successes of a minute.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from billiard.einfo import ExceptionWithTraceback  # type: ignore[attr-defined]  # the stubs do not know it
from celery import signals
from celery.exceptions import Ignore, Retry
from celery.utils.saferepr import saferepr
from celery.worker import state as celery_state
from celery.worker.request import Request as CeleryRequest

from rules.vocabulary import Problem, Task, TaskState, instant
from worker.deliver import Delivered
from worker.dispatch import CELERY_TASK_OF, SINGLE_DELIVERY_LIMIT
from worker.first_attempts import Batch

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

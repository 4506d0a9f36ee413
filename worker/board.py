"""What Flower shows of each touch: one row, under the task's own id, that always tells its latest state.

SUCCESS was delivered, RETRY waits for its next moment, FAILURE died or is in doubt, REVOKED was suppressed or cancelled. The
text beside it has the task's id, the verdict, the status and a cause out of the closed set below, and nothing personal:
the provider's own words stay in the ledger. What travelled with others in one message is announced by events of its own
when it did not simply succeed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from celery import signals
from celery.exceptions import Ignore, Retry
from celery.worker import state as celery_state

from rules.vocabulary import Problem, TaskState
from worker.deliver import Delivered


class TaskWaiting(Retry):
    """A task waits for its next moment. Shows itself as its message: Flower prints the repr."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.message!r})"


class TaskDead(Problem):
    """A task was given up."""


class TaskUnknown(Problem):
    """Nobody knows whether a task was executed; a person settles it."""


#: Ended without an attempt that counts: Flower's word for it is REVOKED.
_ENDED_UNTRIED: Final = frozenset({TaskState.SUPPRESSED, TaskState.CANCELLED})
#: Sends one event of Celery's: its type and its fields.
Send = Callable[..., Any]


def show(delivered: Delivered, message_id: str, send: Send) -> str:
    """Return or raise what makes Celery show the outcome of a message with one task."""
    state = delivered.state
    if state in _ENDED_UNTRIED:
        send("task-revoked", uuid=message_id, terminated=False, signum=None, expired=False, exception=_line(delivered))
        raise Ignore
    if state is TaskState.WAITING:
        raise TaskWaiting(_line(delivered), when=delivered.due_at)
    if delivered.rule is None:
        raise Ignore  # nothing was claimed: its row tells already how it ended, or another message is about to
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


def announce(outcomes: Sequence[Delivered], name: str, send: Send) -> None:
    """Give those of a message's tasks a row of their own that did not simply succeed."""
    for outcome in outcomes:
        if outcome.rule is not None and outcome.state in _EVENT_OF:
            _announce(outcome, name, send)


def forgive_revocations() -> None:
    """Let a task be delivered by its next message though one of its messages was revoked.

    Celery drops every later message under a revoked id. Ids of messages are those of tasks here, and only the ledger
    decides about those: `leadwire cancel` is the way to stop one.
    """
    signals.task_revoked.connect(_forgive, weak=False)


def _forgive(request: Any = None, **_: Any) -> None:
    celery_state.revoked.discard(request.id)


def _line(delivered: Delivered) -> str:
    state = f" {delivered.state}" if delivered.state else ""
    return f"{delivered.task_id}{state}: {delivered.words}"


_EVENT_OF: Final[dict[TaskState | None, tuple[str, type[Exception] | None]]] = {
    TaskState.WAITING: ("task-retried", TaskWaiting),
    TaskState.DEAD: ("task-failed", TaskDead),
    TaskState.UNKNOWN: ("task-failed", TaskUnknown),
    TaskState.SUPPRESSED: ("task-revoked", None),
}


def _announce(outcome: Delivered, name: str, send: Send) -> None:
    task_id, labels = outcome.task_id, {"rule": outcome.rule, "attempt": outcome.attempt}
    event, kind = _EVENT_OF[outcome.state]
    row = {
        "uuid": task_id,
        "name": name,
        "args": repr([task_id]),
        "kwargs": repr(labels),
        "retries": outcome.attempt - 1,
    }
    exception = _line(outcome) if kind is None else repr(kind(_line(outcome)))
    send("task-received", **row, eta=None, expires=None, root_id=task_id, parent_id=None)
    send("task-started", uuid=task_id)
    send(event, uuid=task_id, exception=exception, traceback="", timestamp=time.time())

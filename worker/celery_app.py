"""The Celery side of the worker: five thin tasks, and what starts and ends with the worker process.

Tasks only carry ids to the engine room and put its outcome into Celery's words, so that Flower shows what waits as RETRY
and what died as FAILURE. A retry is announced by raising `Retry` after the ledger holds the next `due_at`: Celery then
publishes nothing, and the sweep does the waking.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from celery import Celery, signals
from celery.exceptions import Retry

from rules.vocabulary import PROVIDER_OF, Problem, ProviderName, TaskState, TaskType
from worker.deliver import Delivered, deliver
from worker.dispatch import CELERY_TASK_OF, EVENTS_QUEUE, PROCESS_EVENT, QUEUE_OF, QueueDepths, celery_app
from worker.process import process_events
from worker.sweep import Sweep
from worker.wiring import Services, broker_of


class TaskWaiting(Retry):
    """A task waits for its next moment. Shows itself as its message: Flower prints the repr."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.message!r})"


class TaskDead(Problem):
    """A task was given up. The message carries its id and verdict and nothing personal: Flower shows it."""


class TaskUnknown(Problem):
    """Nobody knows whether a task was executed; a person settles it. The message is as bare as that of TaskDead."""


#: Celery holds tasks and receivers weakly in places; what must live as long as the process is kept here.
_KEPT: Final[list[Any]] = []


def create(services: Services) -> Celery:
    """Return the worker's Celery application, its tasks bound to these services."""
    app = celery_app(broker_of(services.settings))

    @app.task(name=PROCESS_EVENT)
    def process_event(event_ids: Sequence[str]) -> str:
        return process_events(services, event_ids)

    for type_ in TaskType:
        app.task(name=CELERY_TASK_OF[type_], throws=(TaskDead, TaskUnknown))(_delivering(services, PROVIDER_OF[type_]))

    sweep = Sweep(services, QueueDepths(app))
    _KEPT.append((process_event, sweep))
    signals.worker_ready.connect(lambda **_: sweep.start(), weak=False)
    signals.worker_shutting_down.connect(lambda **_: services.closing.set(), weak=False)
    signals.worker_shutdown.connect(lambda **_: sweep.stop(), weak=False)
    return app


def _delivering(services: Services, provider: ProviderName) -> Callable[..., str]:
    def run(
        task_ids: str | list[str], rule: str | None = None, attempt: int | None = None, tasks: int | None = None
    ) -> str:
        del rule, attempt, tasks  # labels for Flower
        if isinstance(task_ids, str):
            return _outcome(deliver(services, provider, [task_ids])[0])
        return _summary(deliver(services, provider, task_ids))

    return run


def _outcome(delivered: Delivered) -> str:
    """Return or raise what Celery is to show for one task."""
    match delivered.state:
        case TaskState.WAITING:
            raise TaskWaiting(f"{delivered.task_id} {delivered.words}", when=delivered.due_at)
        case TaskState.DEAD:
            raise TaskDead(f"{delivered.task_id} dead: {delivered.words}")
        case TaskState.UNKNOWN:
            raise TaskUnknown(f"{delivered.task_id} unknown: {delivered.words}")
        case _:
            return f"{delivered.task_id} {delivered.words}"


def _summary(outcomes: Sequence[Delivered]) -> str:
    counts: dict[str, int] = {}
    for outcome in outcomes:
        word = str(outcome.state or "elsewhere")
        counts[word] = counts.get(word, 0) + 1
    return ", ".join(f"{count} {word}" for word, count in sorted(counts.items()))


def run(services: Services, name: str, ready_file: Path | None = None) -> None:
    """Work until told to stop (SIGTERM lets running calls end); the process is the worker from here on.

    `ready_file` is made when the worker begins to take messages, and touched with every message it takes.
    """
    app = create(services)
    if ready_file is not None:
        signals.worker_ready.connect(lambda **_: ready_file.touch(), weak=False)
        signals.task_prerun.connect(lambda **_: ready_file.touch(), weak=False)
    queues = ",".join((EVENTS_QUEUE, *QUEUE_OF.values()))
    app.worker_main(
        [
            "worker",
            "--pool=threads",
            f"--concurrency={services.settings.worker_threads}",
            f"--queues={queues}",
            f"--hostname={name}@%h",
            "--events",
            "--without-gossip",
            "--without-mingle",
            f"--loglevel={services.settings.log_level}",
        ]
    )

"""The Celery side of the worker: five thin tasks, and what starts and ends with the worker process.

Tasks only carry ids to the engine room and put its outcome into Celery's words, so that Flower shows what waits as RETRY
and what died as FAILURE. A retry is announced by raising `Retry` after the ledger holds the next `due_at`: Celery then
publishes nothing, and the sweep does the waking.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from celery import Celery, Task, signals

from rules.vocabulary import PROVIDER_OF, ProviderName, TaskState, TaskType
from worker import flower_events, runtime
from worker.broker import EVENTS_QUEUE, QUEUE_OF, QueueDepths, celery_app, declare
from worker.context import WorkerContext, broker_of, utc_now
from worker.deliver import Delivered, deliver
from worker.first_attempts import Batch
from worker.flower_events import FlowerSync
from worker.follow import OutcomePoller
from worker.process import process_events
from worker.publisher import CELERY_TASK_OF, PROCESS_EVENT
from worker.react import FollowUps
from worker.seek import seekers
from worker.sweep import Sweeper

log = logging.getLogger(__name__)

#: Celery holds tasks and receivers weakly in places; what must live as long as the process is kept here.
_KEPT: Final[list[Any]] = []


def create(context: WorkerContext) -> Celery:
    """Return the worker's Celery application, its tasks bound to these services."""
    app = celery_app(broker_of(context.settings), confirm=False)
    events = _Events()
    retelling = FlowerSync(context.ledger, events.send)
    answering = FollowUps(context, lambda tasks: flower_events.planned(tasks, utc_now(), events.send))
    following = OutcomePoller(context)

    @app.task(name=PROCESS_EVENT, Request=flower_events.Request)
    def process_event(event_ids: Sequence[str]) -> str:
        def tell(type_: TaskType, outcomes: Sequence[Delivered]) -> None:
            events.tell(outcomes, CELERY_TASK_OF[type_])

        def ended(batch: Batch) -> None:
            flower_events.batch(batch, utc_now(), events.send)
            retelling.note(batch.outcomes)
            answering.note(batch.outcomes)

        tally = process_events(context, event_ids, tell, ended)
        flower_events.planned(tally.quiet, utc_now(), events.send)
        return str(tally)

    for type_ in TaskType:
        app.task(
            name=CELERY_TASK_OF[type_],
            bind=True,
            throws=(flower_events.TaskDead, flower_events.TaskUnknown),
            Request=flower_events.Request,
        )(_delivering(context, PROVIDER_OF[type_], events, retelling, answering))

    flower_events.forgive_revocations()
    signals.worker_ready.connect(events.begin, weak=False)
    sweep = Sweeper(context, QueueDepths(app))
    retelling.when_somebody_listens()
    seeking = seekers(context)
    _KEPT.append((process_event, sweep, retelling, seeking, answering, following))
    signals.worker_ready.connect(lambda **_: sweep.start(), weak=False)
    signals.worker_ready.connect(lambda **_: retelling.start(), weak=False)
    signals.worker_shutting_down.connect(lambda **_: context.closing.set(), weak=False)
    signals.worker_shutdown.connect(lambda **_: sweep.stop(), weak=False)
    signals.worker_shutdown.connect(lambda **_: retelling.stop(), weak=False)
    for beside in (*seeking, answering, following):
        signals.worker_ready.connect(lambda *, of=beside, **_: of.start(), weak=False)
        signals.worker_shutdown.connect(lambda *, of=beside, **_: of.stop(), weak=False)
    return app


def _delivering(
    context: WorkerContext, provider: ProviderName, events: _Events, retelling: FlowerSync, answering: FollowUps
) -> Callable[..., str]:
    def run(
        self: Task[..., Any],
        task_ids: str | list[str],
        rule: str | None = None,
        attempt: int | None = None,
        tasks: int | None = None,
    ) -> str:
        del tasks  # a label for Flower, as rule and attempt are
        name = str(self.name)

        def tell(outcomes: Sequence[Delivered]) -> None:
            named = [
                outcome if outcome.rule else replace(outcome, rule=rule, attempt=attempt or 1) for outcome in outcomes
            ]
            events.tell(named, name)

        alone = isinstance(task_ids, str)
        outcomes = deliver(context, provider, [task_ids] if isinstance(task_ids, str) else task_ids, tell)
        retelling.note(outcomes)
        answering.note(outcomes)
        if alone:
            return flower_events.show(outcomes[0], name, events.send)
        if len(outcomes) == 1:
            tell([outcome for outcome in outcomes if not outcome.told])
        return flower_events.summary(outcomes)

    return run


class _Events:
    """Sends events as the worker itself does, through its consumer once that is there."""

    def __init__(self) -> None:
        self._consumer: Any = None

    def begin(self, sender: Any = None, **_: Any) -> None:
        self._consumer = sender

    def send(self, type_: str, **fields: Any) -> None:
        dispatcher = self._consumer.event_dispatcher if self._consumer else None
        if dispatcher is None:
            return
        try:
            dispatcher.send(type_, **fields)
        except Exception as error:  # noqa: BLE001 - the transports share no root of exceptions; the ledger has it all
            log.debug("Flower misses an event: %s", type(error).__name__)

    def tell(self, outcomes: Sequence[Delivered], name: str) -> None:
        """Show outcomes of tasks of this Celery name; what waits leaves now: nothing that others send of it may arrive before."""
        flower_events.announce(outcomes, name, self.send)
        if any(outcome.state is TaskState.WAITING for outcome in outcomes):
            self._flush()

    def _flush(self) -> None:
        dispatcher = self._consumer.event_dispatcher if self._consumer else None
        with suppress(Exception):  # likewise
            if dispatcher is not None:
                dispatcher.flush()


def run(context: WorkerContext, name: str, ready_file: Path | None = None) -> None:
    """Work until told to stop (SIGTERM lets running calls end); the process is the worker from here on.

    `ready_file` is made when the worker begins to take messages, and touched with every message it takes.
    """
    app = create(context)
    declare(app)
    if ready_file is not None:
        signals.worker_ready.connect(lambda **_: ready_file.touch(), weak=False)
        signals.task_prerun.connect(lambda **_: ready_file.touch(), weak=False)
    signals.worker_ready.connect(lambda **_: runtime.tune_garbage_collection(), weak=False)
    queues = ",".join((EVENTS_QUEUE, *QUEUE_OF.values()))
    app.worker_main(
        [
            "worker",
            "--pool=threads",
            f"--concurrency={context.settings.worker_threads}",
            f"--queues={queues}",
            f"--hostname={name}@%h",
            "--events",
            "--without-gossip",
            "--without-mingle",
            f"--loglevel={context.settings.log_level}",
        ]
    )

"""The Celery application `worker.app:app`: for `leadwire worker` and `celery -A worker.app ...` alike.

Importing this module reads no setting and opens nothing. Celery's settings are read from the environment when Celery first
needs them; the ledger is opened and the background threads start in a worker only (`LeadwireStep`).

The tasks only carry ids to `process_events` and `deliver` and put the outcome into Celery's words. A retry is announced by
raising `Retry` after the ledger holds the next `due_at`: Celery then publishes nothing, and the sweeper sends the task again.
"""

from __future__ import annotations

import functools
import logging
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Final, NoReturn

import click
from celery import Celery, bootsteps, signals
from celery.concurrency import get_implementation
from celery.loaders.app import AppLoader
from celery.worker.control import Panel, control_command
from click.core import ParameterSource

from rules.vocabulary import PROVIDER_OF, Problem, SettingsError, TaskType
from rules.vocabulary import Task as PlannedTask
from worker.background import BackgroundWork, Watchdog
from worker.broker import TASK_ID_PREFIX, QueueDepths, celery_settings, declare
from worker.clock import utc_now
from worker.context import WorkerContext, build_worker
from worker.delivery import DeliveryOutcome, deliver
from worker.flower_events import (
    FlowerEvents,
    FlowerSync,
    RedactedRequest,
    TaskDead,
    TaskUnknown,
    count_states,
)
from worker.planning import InlineBatch, process_events
from worker.publisher import CELERY_TASK_OF, PROCESS_EVENT
from worker.runtime import PeriodicThread, set_up_logging, tune_garbage_collection
from worker.settings import Settings, broker_of, environment_of

log = logging.getLogger(__name__)

#: How much the threads of a worker that shares its machine with the ingress let it go first (nice(2)): what has been accepted
#: is safe and only waits, what cannot be accepted is turned away.
NICENESS: Final = 10


class RefusedError(SettingsError, click.ClickException):
    """Invalid settings or options; Celery's command line shows the message without a traceback."""


@contextmanager
def _shown_by_celery() -> Iterator[None]:
    try:
        yield
    except Problem as problem:
        raise RefusedError(str(problem)) from problem


@functools.cache
def _settings() -> Settings:
    return Settings.from_environment(environment_of(Path.cwd()))


class LeadwireLoader(AppLoader):
    """Gives Celery its settings, and imports the modules of LEADWIRE_IMPORTS when a worker starts."""

    def read_configuration(self, env: str = "CELERY_CONFIG_MODULE") -> dict[str, Any]:
        """Return Celery's settings. Raises RefusedError when Leadwire's settings are wrong or incomplete."""
        del env  # `celery_settings` refuses it
        with _shown_by_celery():
            settings = _settings()
            wanted = celery_settings(broker_of(settings), confirm=False)
        return {**wanted, "worker_concurrency": settings.worker_threads}

    def on_worker_init(self) -> None:
        """Import the modules of LEADWIRE_IMPORTS. Raises RefusedError for one that cannot be imported."""
        for name in _settings().imports:
            try:
                self.import_task_module(name)
            except Exception as error:
                raise RefusedError(
                    f"LEADWIRE_IMPORTS: {name} cannot be imported ({type(error).__name__}: {error}): it must be installed, or "
                    f"in the folder that the worker is started in; `python -c 'import {name}'` shows more"
                ) from error


app = Celery("leadwire", loader=LeadwireLoader)


# Tasks


class LeadwireWorker:
    """One worker process's context, background threads and Flower events."""

    #: The one of this process, once there is one.
    running: ClassVar[LeadwireWorker | None] = None

    def __init__(self, context: WorkerContext, ready_file: Path | None, health_file: Path | None) -> None:
        self._context = context
        self._consumer: Any = None
        self._events = FlowerEvents(lambda: self._consumer.event_dispatcher if self._consumer else None)
        self._background = BackgroundWork(context, QueueDepths(app), self._show_planned)
        self._flower_sync = FlowerSync(context.ledger, self._events, context.closing)
        self._flower_sync.listen_for_monitors()
        self._flower_thread = PeriodicThread("telling Flower", self._flower_sync.work)
        self._taken_file = ready_file
        self._ending = ExitStack()  # from the last to the first
        self._ending.callback(context.close)
        if health_file is not None:
            self._watch(health_file)
        self._ending.callback(self._flower_thread.stop)
        self._ending.callback(self._background.stop)

    def _watch(self, health_file: Path) -> None:
        self._taken_file = self._taken_file or health_file.with_name(f"{health_file.name}.taken")
        depths = QueueDepths(app)
        oldest_due = self._context.ledger.queries.oldest_due
        watchdog = Watchdog(depths.read, oldest_due, sign=self._taken_file, report=health_file)
        self._ending.callback(depths.close)
        self._ending.callback(watchdog.stop)
        watchdog.start()

    def begin(self, consumer: Any) -> None:
        """Start the background threads; called when Celery's consumer is ready for messages."""
        self._consumer = consumer
        self.note_message()
        self._background.start()
        self._flower_thread.start()
        tune_garbage_collection()

    def note_message(self) -> None:
        """Touch the file that shows when the last message was taken, if there is one."""
        if self._taken_file is not None:
            self._taken_file.touch()

    def hurry(self) -> None:
        """End waits inside attempts early: the process will end when the running messages are done."""
        self._context.closing.set()

    def end(self) -> None:
        """Stop the background threads and close everything, the ledger last."""
        self._ending.close()

    def process(self, event_ids: Sequence[str]) -> str:
        """Plan these events; return the counts of results as text."""

        def show(type_: TaskType, outcomes: Sequence[DeliveryOutcome]) -> None:
            self._events.outcomes(outcomes, CELERY_TASK_OF[type_])

        def show_batch(batch: InlineBatch) -> None:
            self._events.batch(batch, utc_now())
            self._note(batch.outcomes)

        tally = process_events(self._context, event_ids, show, show_batch)
        self._show_planned(tally.quiet)
        return str(tally)

    def deliver(self, type_: TaskType, task_ids: str | Sequence[str], rule: str | None, attempt: int | None) -> str:
        """Deliver these tasks; return, or raise, what Celery shows for the message.

        `task_ids` is one id for a message with a single task, otherwise a list. `rule` and `attempt` label a single task that
        could not be claimed.
        """
        name = CELERY_TASK_OF[type_]

        def show(outcomes: Sequence[DeliveryOutcome]) -> None:
            named = [each if each.rule else replace(each, rule=rule, attempt=attempt or 1) for each in outcomes]
            self._events.outcomes(named, name)

        ids = [task_ids] if isinstance(task_ids, str) else task_ids
        outcomes = deliver(self._context, PROVIDER_OF[type_], ids, show)
        self._note(outcomes)
        if isinstance(task_ids, str):
            return self._events.result(outcomes[0], name)
        if len(outcomes) == 1:
            show([outcome for outcome in outcomes if not outcome.already_shown])
        return count_states(outcomes)

    def _show_planned(self, tasks: Sequence[PlannedTask]) -> None:
        self._events.planned(tasks, utc_now())

    def _note(self, outcomes: Sequence[DeliveryOutcome]) -> None:
        self._flower_sync.note(outcomes)
        self._background.note(outcomes)


def _running() -> LeadwireWorker:
    assert LeadwireWorker.running is not None, "Leadwire's tasks run in a worker only"
    return LeadwireWorker.running


@app.task(name=PROCESS_EVENT, Request=RedactedRequest)
def process_event(event_ids: Sequence[str]) -> str:
    """Plan these events."""
    return _running().process(event_ids)


def _define_delivery(type_: TaskType) -> None:
    @app.task(name=CELERY_TASK_OF[type_], throws=(TaskDead, TaskUnknown), Request=RedactedRequest)
    def deliver_tasks(
        task_ids: str | list[str], rule: str | None = None, attempt: int | None = None, tasks: int | None = None
    ) -> str:
        del tasks  # a label for Flower
        return _running().deliver(type_, task_ids, rule, attempt)


for _type in TaskType:
    _define_delivery(_type)


# The worker process

app.user_options["worker"].update(
    (
        click.Option(
            ["--health-file"],
            type=click.Path(path_type=Path),
            help="Kept up to date for `leadwire healthcheck worker`; with it, a worker that has turned deaf ends by itself.",
        ),
        click.Option(["--ready-file"], type=click.Path(path_type=Path), hidden=True, help="Made when work begins."),
        click.Option(["--owner"], default="", hidden=True, help="What the leases of this worker begin with."),
    )
)


def run_worker(owner: str = "", ready_file: Path | None = None, health_file: Path | None = None) -> None:
    """Run a worker until it is told to stop. On SIGTERM running requests may finish.

    `ready_file` is created when the worker starts taking messages and touched with every message; `health_file` is kept up to
    date for probes. Both must belong to this worker alone. Leases are named after `owner`; a worker with an `owner` gives
    itself a lower CPU priority than the other processes of its machine.
    """
    name = "leadwire" if owner else f"worker-{os.getpid()}-{secrets.token_hex(3)}"
    files = {"--ready-file": ready_file, "--health-file": health_file}
    app.worker_main(
        [
            "worker",
            f"--hostname={name}@%h",
            f"--owner={owner}",
            *(f"{option}={file}" for option, file in files.items() if file),
        ]
    )


class LeadwireStep(bootsteps.Step):
    """Leadwire's step in Celery's worker: opens the ledger before messages are taken and closes it at the end.

    Raises RefusedError for options that would have no effect and for wrong or missing settings.
    """

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        self._options = options
        _refuse_options(worker, options)

    def create(self, worker: Any) -> None:
        """Open everything, and connect Celery's signals that start and stop the background threads."""
        owner = self._options.get("owner") or ""
        with _shown_by_celery():
            declare(app)
            settings = _settings().model_copy(update={"worker_threads": worker.concurrency})
            context = build_worker(settings, owner=f"{owner or 'worker'}-{os.getpid()}-{secrets.token_hex(3)}")
        if owner:
            # On Linux it is this thread's, and that of the threads it starts from here on. The ledger's writer, which the
            # ingress waits for, and the publisher keep theirs: with all of the worker at 5 the ingress took 1,090 events/s,
            # so 1,190.
            os.nice(NICENESS)
        running = LeadwireWorker(context, self._options.get("ready_file"), self._options.get("health_file"))
        LeadwireWorker.running = running
        signals.worker_ready.connect(lambda sender, **_: running.begin(sender), weak=False)
        signals.task_prerun.connect(lambda **_: running.note_message(), weak=False)
        signals.worker_shutting_down.connect(lambda **_: running.hurry(), weak=False)
        signals.worker_shutdown.connect(lambda **_: running.end(), weak=False)


app.steps["worker"].add(LeadwireStep)


@signals.setup_logging.connect
def _set_up_logging(loglevel: int | str | None = None, logfile: str | None = None, **_: Any) -> None:
    """Log as Leadwire's settings say; a level or a file that the command line names goes first."""
    settings = _settings()
    context = click.get_current_context(silent=True)
    is_chosen = context is not None and context.get_parameter_source("loglevel") is ParameterSource.COMMANDLINE
    level = logging.getLevelName(loglevel) if is_chosen and isinstance(loglevel, int) else settings.log_level
    set_up_logging(settings.log_format, level, logfile)


# What Celery offers and Leadwire refuses: docs/celery.md says what to use instead

_FIXED_SIZE: Final = (
    "a worker has LEADWIRE_WORKER_THREADS threads (or --concurrency) for as long as it runs: restart it"
)
_NO_LIMITS: Final = "threads know no time limits: a provider's request has its own, 30 s with all its tries"
_REFUSED_OPTIONS: Final = {
    "beat": "Leadwire has no beat, several workers would each run the schedule: let cron or a rule with `at:` do it",
    "autoscale": _FIXED_SIZE,
    "max_tasks_per_child": "threads are not replaced",
    "max_memory_per_child": "threads are not replaced",
    "time_limit": _NO_LIMITS,
    "soft_time_limit": _NO_LIMITS,
}
_REVOKE: Final = "the ledger decides what is sent, a revoked message would be sent again: use `leadwire cancel TASK_ID`"
_REFUSED_COMMANDS: Final = {
    **dict.fromkeys(("pool_grow", "pool_shrink", "pool_restart", "autoscale"), _FIXED_SIZE),
    "time_limit": _NO_LIMITS,
    "revoke_by_stamped_headers": _REVOKE,
    "terminate": "threads cannot be terminated: `leadwire cancel TASK_ID` stops what has not been sent",
}
_RATE: Final = (
    "a provider's rate holds for all workers together: set LEADWIRE_MINDHUNTERS_RATE or LEADWIRE_VAMBE_RATE and restart"
)
_PREFORK: Final = frozenset({"prefork", "--pool=prefork", "-Pprefork"})


def _refuse_options(worker: Any, options: dict[str, Any]) -> None:
    threads = get_implementation("threads")
    click_context = click.get_current_context(silent=True)
    # Celery takes `--pool prefork` for no choice at all, and the configured pool instead.
    names_pool = click_context and click_context.get_parameter_source("pool") is ParameterSource.COMMANDLINE
    if worker.pool_cls is not threads or (names_pool and not _PREFORK.isdisjoint(sys.argv)):
        raise RefusedError(
            "--pool: Leadwire works in threads only: one process shares its connections to providers and groups what it "
            "writes to the ledger; leave the option out, and start more workers for more processes"
        )
    for name, reason in _REFUSED_OPTIONS.items():
        if options.get(name):
            raise RefusedError(f"--{name.replace('_', '-')}: {reason}")


def _override(name: str, handler: Callable[..., Any], help_: str) -> None:
    """Put a handler in the place of one of Celery's control commands; its arguments stay as they are."""
    meta = Panel.meta[name]
    control_command(name=name, args=meta.args, signature=meta.signature, variadic=meta.variadic, help=help_)(handler)


def _refuse_command(name: str, reason: str, *_: object, **__: object) -> Any:
    log.warning("%s is refused: %s", name, reason)
    return {"error": f"refused: {reason}"}


def _override_commands() -> None:
    celerys_rate_limit, celerys_revoke = Panel.data["rate_limit"], Panel.data["revoke"]

    def rate_limit(state: Any, task_name: str, rate_limit: str, **_: Any) -> Any:
        if task_name in {PROCESS_EVENT, *CELERY_TASK_OF.values()}:
            return _refuse_command("rate_limit", _RATE)
        return celerys_rate_limit(state, task_name, rate_limit)

    def revoke(state: Any, task_id: str | list[str], terminate: bool = False, **more: Any) -> Any:
        ids = [task_id] if isinstance(task_id, str) else list(task_id or ())
        if terminate:
            return _refuse_command("terminate", _REFUSED_COMMANDS["terminate"])
        if any(each.startswith(TASK_ID_PREFIX) for each in ids):
            return _refuse_command("revoke", _REVOKE)
        return celerys_revoke(state, ids, **more)

    _override("rate_limit", rate_limit, "Limit a task of LEADWIRE_IMPORTS; refused for Leadwire's own.")
    _override("revoke", revoke, "Revoke tasks of LEADWIRE_IMPORTS; refused for Leadwire's own.")
    for name, reason in _REFUSED_COMMANDS.items():
        _override(name, functools.partial(_refuse_command, name, reason), "Refused.")


_override_commands()


class RefusedScheduler:
    """Set as `beat_scheduler`, so that `celery beat` fails with an explanation."""

    def __init__(self, *_: object, **__: object) -> NoReturn:
        raise SystemExit(_REFUSED_OPTIONS["beat"])

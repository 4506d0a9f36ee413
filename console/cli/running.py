"""Commands that run until they are stopped: `up`, `ingress`, `worker` and `flower`."""

from __future__ import annotations

import logging
import os
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final

import click

from rules.vocabulary import Problem
from worker import runtime
from worker.settings import PREFIX, Settings, environment_of

if TYPE_CHECKING:
    from worker.context import WorkerContext

log = logging.getLogger(__name__)

#: How much the threads of a worker that shares its machine with the ingress let it go first (nice(2)): what has been accepted
#: is safe and only waits, what cannot be accepted is turned away.
YIELDING: Final = 10


def _settings() -> Settings:
    settings = Settings.from_environment(environment_of(Path.cwd()))
    runtime.set_up_logging(settings.log_format, settings.log_level)
    return settings


@click.command()
def up() -> None:
    """Start everything on this machine: broker, ledger, worker, ingress and Flower."""
    from console.starting import check_start  # noqa: PLC0415 - heavy, and only needed here
    from console.supervisor import Supervisor  # noqa: PLC0415 - likewise

    settings = _settings()
    environment = environment_of(Path.cwd())
    if not check_start(settings):
        environment[f"{PREFIX}RULES"] = ""  # every process then takes the last good set from the ledger
    Supervisor(settings=settings, environment=environment, announce=click.echo).run()


@click.command()
def ingress() -> None:
    """Receive webhooks on LEADWIRE_HOST and LEADWIRE_PORT."""
    from console.starting import bind_public_port, build_front_door  # noqa: PLC0415 - likewise
    from ingress import siblings  # noqa: PLC0415 - heavy, and only needed here

    settings = _settings()
    sockets = bind_public_port(settings)
    ours = siblings.fork(settings.ingress_processes)
    _stop_on_sigterm()
    try:
        door = build_front_door(settings, sockets, operator_port=ours.is_first)
        try:
            ours.watch()
            if ours.is_first:
                log.info("webhooks are received on port %s of %s", door.server.port, door.server.host)
            runtime.tune_garbage_collection()
            door.server.run()
        finally:
            ours.end()
            door.close()
    finally:
        ours.end()
        ours.join()


@click.command()
@click.option("--owner", default="", help="What the leases of this worker begin with; `up` sets it.", hidden=True)
@click.option(
    "--ready-file", type=click.Path(path_type=Path), help="Made when work begins; `up` waits for it.", hidden=True
)
@click.option(
    "--health-file",
    type=click.Path(path_type=Path),
    help="Kept up to date for `leadwire healthcheck worker`; with it, a worker that has turned deaf ends by itself.",
)
def worker(owner: str, ready_file: Path | None, health_file: Path | None) -> None:
    """Process events and deliver tasks."""
    from worker.app import run  # noqa: PLC0415 - heavy, and only needed here
    from worker.context import build_worker  # noqa: PLC0415 - likewise

    settings = _settings()
    name = f"{owner or 'worker'}-{os.getpid()}-{secrets.token_hex(3)}"
    context = build_worker(settings, owner=name)
    try:
        if owner:
            # On Linux it is this thread's, and that of the threads it starts from here on. The ledger's writer, which the
            # ingress waits for, and the publisher keep theirs: with all of the worker at 5 the ingress took 1,090 events/s,
            # so 1,190.
            os.nice(YIELDING)
        with _watched(context, ready_file, health_file) as sign:
            run(context, "leadwire" if owner else name, sign)
    finally:
        context.close()


@contextmanager
def _watched(context: WorkerContext, ready_file: Path | None, health_file: Path | None) -> Iterator[Path | None]:
    """Keep the health file for a while; give the file that the worker touches with every message it takes."""
    from worker.broker import QueueDepths, celery_app  # noqa: PLC0415 - heavy, and only needed here
    from worker.context import broker_of  # noqa: PLC0415 - likewise
    from worker.watch import Watchdog  # noqa: PLC0415 - likewise

    if health_file is None:
        yield ready_file
        return
    sign = ready_file or health_file.with_name(f"{health_file.name}.taken")
    depths = QueueDepths(celery_app(broker_of(context.settings)))
    watch = Watchdog(depths.read, context.ledger.queries.oldest_due, sign=sign, report=health_file)
    watch.start()
    try:
        yield sign
    finally:
        watch.stop()
        depths.close()


@click.command()
def flower() -> None:
    """Show work in Flower, on LEADWIRE_OPERATOR_HOST and behind the operator token."""
    from console.flower import run_flower  # noqa: PLC0415 - heavy, and only needed here

    settings = _settings()
    if settings.operator_token is None:
        raise Problem("LEADWIRE_OPERATOR_TOKEN is not set: Flower is never started without a password")
    run_flower(settings, settings.operator_token)


def _stop_on_sigterm() -> None:
    def stop(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: what ends now must not be interrupted
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, stop)


commands = (up, ingress, worker, flower)

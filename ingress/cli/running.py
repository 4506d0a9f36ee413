"""Commands that run until they are stopped: `up`, `ingress`, `worker` and `flower`."""

from __future__ import annotations

import logging
import os
import secrets
import signal
from pathlib import Path
from types import FrameType

import click

from rules.vocabulary import Problem
from worker import logs
from worker.settings import PREFIX, Settings, environment_of

log = logging.getLogger(__name__)


def _settings() -> Settings:
    settings = Settings.from_environment(environment_of(Path.cwd()))
    logs.set_up(settings.log_format, settings.log_level)
    return settings


@click.command()
def up() -> None:
    """Start everything on this machine: broker, ledger, worker, ingress and Flower."""
    from ingress.starting import check_start  # noqa: PLC0415 - heavy, and only needed here
    from ingress.supervisor import Supervisor  # noqa: PLC0415 - likewise

    settings = _settings()
    environment = environment_of(Path.cwd())
    if not check_start(settings):
        environment[f"{PREFIX}RULES"] = ""  # every process then takes the last good set from the ledger
    Supervisor(settings=settings, environment=environment, announce=click.echo).run()


@click.command()
def ingress() -> None:
    """Receive webhooks on LEADWIRE_HOST and LEADWIRE_PORT."""
    from ingress.starting import build_front_door  # noqa: PLC0415 - heavy, and only needed here

    settings = _settings()
    door = build_front_door(settings)
    _stop_on_sigterm()
    try:
        log.info("webhooks are received on port %s of %s", door.server.port, door.server.host)
        door.server.run()
    finally:
        door.close()


@click.command()
@click.option("--owner", default="", help="What the leases of this worker begin with; `up` sets it.", hidden=True)
@click.option(
    "--ready-file", type=click.Path(path_type=Path), help="Made when work begins; `up` waits for it.", hidden=True
)
def worker(owner: str, ready_file: Path | None) -> None:
    """Process events and deliver tasks."""
    from worker.celery_app import run  # noqa: PLC0415 - heavy, and only needed here
    from worker.wiring import build_worker  # noqa: PLC0415 - likewise

    settings = _settings()
    name = f"{owner or 'worker'}-{os.getpid()}-{secrets.token_hex(3)}"
    services = build_worker(settings, owner=name)
    try:
        run(services, "leadwire" if owner else name, ready_file)
    finally:
        services.close()


@click.command()
def flower() -> None:
    """Show work in Flower, on 127.0.0.1 and behind the operator token."""
    from ingress.starting import run_flower  # noqa: PLC0415 - heavy, and only needed here

    settings = _settings()
    if settings.operator_token is None:
        raise Problem("LEADWIRE_OPERATOR_TOKEN is not set: Flower is never started without a password")
    run_flower(settings, settings.operator_token)


def _stop_on_sigterm() -> None:
    def stop(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, stop)


commands = (up, ingress, worker, flower)

"""Commands that run something: all of it (`up`, `demo`), one process of it, the sandbox, a migration, a health check.

What is heavy is imported when its command runs: none of these may wait for what another one needs.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final

import click

from rules.vocabulary import Problem

if TYPE_CHECKING:
    from worker.sandbox import Sandbox
    from worker.settings import Settings

log = logging.getLogger(__name__)

#: A probe that waits longer is given up by those who run it.
HEALTHCHECK_TIMEOUT_SECONDS: Final = 5.0
#: Addresses that mean every address, and so the loopback one too.
EVERY_ADDRESS: Final = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 - a comparison


@click.command()
def up() -> None:
    """Start everything on this machine: broker, ledger, worker, ingress and Flower."""
    from console.starting import check_start
    from console.supervisor import Supervisor
    from worker.settings import PREFIX, environment_of

    settings = _settings_and_logs()
    environment = environment_of(Path.cwd())
    if not check_start(settings):
        environment[f"{PREFIX}RULES"] = ""  # every process then takes the last good set from the ledger
    Supervisor(settings=settings, environment=environment, announce=click.echo).run()


@click.command()
@click.option("--keep", is_flag=True, help="Keep the demo's folder, with its ledger and logs, and say where it is.")
def demo(*, keep: bool) -> None:
    """Start it all with sandbox providers and example rules, post signed samples, show what became of them.

    Exits 0 only if every promised task was made exactly once. Needs no network, takes free ports and leaves nothing
    running.
    """
    from console.demo import run

    run(keep=keep)


@click.command()
def ingress() -> None:
    """Receive webhooks on LEADWIRE_HOST and LEADWIRE_PORT."""
    from console.starting import bind_public_port, build_ingress
    from ingress import processes
    from worker import runtime

    settings = _settings_and_logs()
    sockets = bind_public_port(settings)
    ours = processes.fork(settings.ingress_processes)
    _stop_on_sigterm()
    try:
        process = build_ingress(settings, sockets, operator_port=ours.is_first)
        try:
            ours.watch()
            if ours.is_first:
                log.info("webhooks are received on port %s of %s", process.server.port, process.server.host)
            runtime.tune_garbage_collection()
            process.server.run()
        finally:
            ours.end()
            process.close()
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
    from worker.app import run_worker

    _settings_and_logs()
    run_worker(owner, ready_file, health_file)


@click.command()
def flower() -> None:
    """Show work in Flower, on LEADWIRE_OPERATOR_HOST and behind the operator token."""
    from console.flower import run_flower

    settings = _settings_and_logs()
    if settings.operator_token is None:
        raise Problem("LEADWIRE_OPERATOR_TOKEN is not set: Flower is never started without a password")
    run_flower(settings, settings.operator_token)


@click.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def celery(arguments: tuple[str, ...]) -> None:
    """Run a command of Celery's, such as `inspect ping`, with the settings in force; see docs/celery.md."""
    from celery.bin.celery import celery as program

    from console import local_broker
    from worker.settings import PREFIX

    settings = _settings_and_logs()
    socket = local_broker.socket_path(settings.home)
    if settings.broker_url is None and socket.is_socket():
        os.environ[f"{PREFIX}BROKER_URL"] = local_broker.broker_url(socket)
    sys.argv = ["celery", "-A", "worker.app", *arguments]  # Celery reads it, also to start itself anew
    program.main(args=sys.argv[1:], prog_name="leadwire celery", auto_envvar_prefix="CELERY")


@click.command()
@click.option("--port", type=click.IntRange(0, 65_535), help="Default: LEADWIRE_SANDBOX_PORT; 0 takes a free one.")
@click.option("--script", type=click.Path(path_type=Path), metavar="FILE", help="Faults to commit, as a JSON list.")
@click.option("--switch", "switches", multiple=True, metavar="NAME=VALUE", help="How to read what no document says.")
def sandbox(port: int | None, script: Path | None, switches: tuple[str, ...]) -> None:
    """Answer like both providers, on 127.0.0.1, with a page that shows what it holds.

    A fault is {"provider": "vambe", "times": 2, "answer": {"status": 503}}; the page lists the switches.
    """
    from worker.sandbox import serve

    for switch in switches:
        if "=" not in switch:
            raise click.UsageError(f"--switch {switch}: write NAME=VALUE")
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    chosen = _settings().sandbox_port if port is None else port
    turned = dict(switch.split("=", 1) for switch in switches)
    serve("127.0.0.1", chosen, script, turned, announce=_announce_sandbox, until=ended)


def _announce_sandbox(running: Sandbox) -> None:
    from worker.sandbox import MINDHUNTERS_TOKEN, VAMBE_API_KEY

    click.echo(f"page      {running.url}")
    click.echo("To use it, start `leadwire up` with:")
    click.echo(f"  LEADWIRE_MINDHUNTERS_URL={running.mindhunters_url} LEADWIRE_MINDHUNTERS_TOKEN={MINDHUNTERS_TOKEN}")
    click.echo(f"  LEADWIRE_VAMBE_URL={running.vambe_url} LEADWIRE_VAMBE_API_KEY={VAMBE_API_KEY}")
    click.echo("Stop with Ctrl-C.")


@click.command()
@click.option(
    "--from",
    "source_url",
    metavar="URL",
    help="Move the ledger of this SQLite file, sqlite:////absolute/path/ledger.sqlite3, into the empty database that "
    "LEADWIRE_DATABASE_URL names.",
)
@click.option(
    "--undo", is_flag=True, help="With --from: give the move up, as long as nothing has worked on the ledger there."
)
def migrate(source_url: str | None, *, undo: bool) -> None:
    """Bring the ledger's tables to this version; `leadwire up` does it by itself.

    With --from: move a ledger from a SQLite file into PostgreSQL. Stop every Leadwire process first. An interrupted move is
    ended by the same command; the file stays where it is and is not used any more.
    """
    import worker.ledger

    settings = _settings()
    if undo and not source_url:
        raise click.UsageError("--undo goes with --from URL: which file is to be used again?")
    if source_url and undo:
        with _progress("comparing") as progress:
            worker.ledger.undo_move(source_url, settings.database_url, progress)
        click.echo("the move is undone: the file can be used again, and the database is empty")
    elif source_url:
        _move(source_url, settings.database_url)
    else:
        if settings.database_url.startswith("sqlite:"):
            settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        worker.ledger.migrate(settings.database_url)
        click.echo("the ledger is up to date")


def _move(source_url: str, target_url: str) -> None:
    from console.cli.output import printable
    from worker.clock import utc_now
    from worker.ledger import move_ledger

    with _progress("moving") as progress:
        moved = move_ledger(source_url, target_url, utc_now(), progress)
    for table, rows in moved.rows.items():
        if rows:
            click.echo(f"{rows:>10}  {table}")
    said = "had arrived before" if moved.resumed else "has moved"
    click.echo(printable(f"the ledger of {moved.source} {said}: it is now in {moved.target}"))
    click.echo(
        "next: start every process with this LEADWIRE_DATABASE_URL; keep the data folder, and the file until you are content\n"
        "what was being sent when the last worker stopped becomes unknown when its lease ends: see `leadwire tasks`"
    )


@contextmanager
def _progress(label: str) -> Iterator[Callable[[str, int, int], None]]:
    """Give what draws a bar on standard error, where that is a terminal."""
    with click.progressbar(length=1, label=label, file=sys.stderr, show_percent=True) as bar:

        def progress(step: str, done: int, total: int) -> None:
            bar.length = max(total, 1)
            bar.label = f"{label}: {step}"
            bar.update(done - bar.pos)

        yield progress


@click.command()
@click.argument("role", type=click.Choice(["ingress", "worker", "flower"]))
@click.option("--alive", is_flag=True, help="Ask only whether the process lives, not whether it can do its work now.")
@click.option(
    "--file",
    "report",
    type=click.Path(path_type=Path),
    help="For worker: the file that `leadwire worker --health-file` keeps.",
)
def healthcheck(role: str, report: Path | None, *, alive: bool) -> None:
    """Say by the exit code whether an ingress, worker or Flower on this machine works: for the probes of containers.

    The ingress and Flower are asked on the ports of the settings; a worker is judged by the file it keeps. Without --alive
    a broker or ledger that is away counts too: restart nothing because of that.
    """
    if (role == "worker") != (report is not None):
        raise click.UsageError("--file goes with worker, and worker with --file: `leadwire worker --health-file FILE`")
    if report is not None:
        from worker.runtime import HealthReport

        said = HealthReport.read(report)
        if not (said.works or alive):
            raise Problem(f"the worker does not work: {said.reason}")
        return
    settings = _settings()
    if role == "ingress":
        _check_answers(settings.host, settings.port, "/healthz" if alive else "/readyz")
    else:
        _check_answers(settings.operator_host, settings.flower_port, "/healthcheck")


def _check_answers(host: str, port: int, path: str) -> None:
    """Raise Problem unless this address answers with 200."""
    import httpx

    url = httpx.URL(scheme="http", host="127.0.0.1" if host in EVERY_ADDRESS else host, port=port, path=path)
    try:
        answer = httpx.get(url, timeout=HEALTHCHECK_TIMEOUT_SECONDS, trust_env=False)
    except httpx.HTTPError as error:
        raise Problem(f"http://{host}:{port}{path} does not answer: {type(error).__name__}") from error
    if answer.status_code != httpx.codes.OK:
        raise Problem(f"http://{host}:{port}{path} answers {answer.status_code}: {answer.text[:1000]}")


def _settings() -> Settings:
    from worker.settings import Settings, environment_of

    return Settings.from_environment(environment_of(Path.cwd()))


def _settings_and_logs() -> Settings:
    from worker import runtime

    settings = _settings()
    runtime.set_up_logging(settings.log_format, settings.log_level)
    return settings


def _stop_on_sigterm() -> None:
    def stop(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: what ends now must not be interrupted
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, stop)

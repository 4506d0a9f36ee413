"""Commands that change what the ledger holds, each a person's decision: `settle`, `retry`, `migrate`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from ingress.cli.surroundings import existing_ledger, settings_in_force
from ingress.cli.words import counted, printable
from rules.vocabulary import LedgerError, Problem, instant
from worker.ledger import Ledger, StoredTask, migrate, move_ledger, undo_move
from worker.wiring import utc_now


@click.command()
@click.argument("task_id", metavar="ID")
@click.option("--delivered", is_flag=True, help="The provider has it; EXTERNAL_ID is its id there, if you know it.")
@click.option("--not-delivered", is_flag=True, help="The provider does not have it: it is sent again, now.")
@click.argument("external_id", required=False)
def settle(task_id: str, external_id: str | None, *, delivered: bool, not_delivered: bool) -> None:
    """End the doubt about a task whose request may have been executed (state unknown).

    Look at the provider first: the task's description there ends in [lw:...], the first 12 characters of its key.
    """
    if delivered == not_delivered:
        raise click.UsageError("say either --delivered [EXTERNAL_ID] or --not-delivered")
    if external_id and not_delivered:
        raise click.UsageError("an EXTERNAL_ID goes with --delivered only: what was not delivered has none")
    with existing_ledger(settings_in_force()) as ledger:
        task = ledger.settle_by_hand(_known(ledger, task_id).id, delivered, external_id, utc_now())
    _tell(task)


@click.command()
@click.argument("task_ids", metavar="ID...", nargs=-1, required=True)
def retry(task_ids: tuple[str, ...]) -> None:
    """Make tasks due now: dead, cancelled and suppressed ones begin anew, waiting ones stop waiting.

    A task in state unknown is settled first (`leadwire settle`): retrying it could touch a person twice.
    """
    failed = 0
    with existing_ledger(settings_in_force()) as ledger:
        for task_id in task_ids:
            try:
                _tell(ledger.retry(_known(ledger, task_id).id, utc_now()))
            except LedgerError as error:
                failed += 1
                click.echo(printable(str(error)), err=True)
    if failed:
        raise Problem(f"{counted(failed, 'task')} of {len(task_ids)} cannot be retried")


@click.command("migrate")
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
def migrate_(source_url: str | None, *, undo: bool) -> None:
    """Bring the ledger's tables to this version; `leadwire up` does it by itself.

    With --from: move a ledger from a SQLite file into PostgreSQL. Stop every Leadwire process first. An interrupted move is
    ended by the same command; the file stays where it is and is not used any more.
    """
    settings = settings_in_force()
    if undo and not source_url:
        raise click.UsageError("--undo goes with --from URL: which file is to be used again?")
    if source_url:
        (_undo if undo else _move)(source_url, settings.database_url)
        return
    if settings.database_url.startswith("sqlite:"):
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    migrate(settings.database_url)
    click.echo("the ledger is up to date")


def _move(source_url: str, target_url: str) -> None:
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


def _undo(source_url: str, target_url: str) -> None:
    with _progress("comparing") as progress:
        undo_move(source_url, target_url, progress)
    click.echo("the move is undone: the file can be used again, and the database is empty")


@contextmanager
def _progress(label: str) -> Iterator[Callable[[str, int, int], None]]:
    """Give what draws a bar on standard error, where that is a terminal."""
    with click.progressbar(length=1, label=label, file=sys.stderr, show_percent=True) as bar:

        def progress(step: str, done: int, total: int) -> None:
            bar.length = max(total, 1)
            bar.label = f"{label}: {step}"
            bar.update(done - bar.pos)

        yield progress


def _known(ledger: Ledger, task_id: str) -> StoredTask:
    task = ledger.task(task_id)
    if task is None:
        raise LedgerError(f"{task_id}: no task has this id: see `leadwire tasks`")
    return task


def _tell(task: StoredTask) -> None:
    known_as = f", at the provider {task.external_id}" if task.external_id else ""
    due = "" if task.external_id else f", due {instant(task.due_at)}"
    click.echo(printable(f"{task.id}  {task.type}  {task.state}{known_as}{due}"))


commands = (settle, retry, migrate_)

"""The command about the ledger as a whole: `migrate` brings it to this version, or moves it into PostgreSQL."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from console.cli.surroundings import settings_in_force
from console.cli.words import printable
from worker.context import utc_now
from worker.ledger import migrate, move_ledger, undo_move


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


commands = (migrate_,)

"""Commands that change what the ledger holds, each a person's decision: `settle`, `retry`, `migrate`."""

from __future__ import annotations

import click

from ingress.cli.surroundings import existing_ledger, settings_in_force
from ingress.cli.words import counted, printable
from rules.vocabulary import LedgerError, Problem, instant
from worker.ledger import Ledger, StoredTask, migrate
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
def migrate_() -> None:
    """Bring the ledger's tables to this version; `leadwire up` does it by itself."""
    settings = settings_in_force()
    if settings.database_url.startswith("sqlite:"):
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    migrate(settings.database_url)
    click.echo("the ledger is up to date")


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

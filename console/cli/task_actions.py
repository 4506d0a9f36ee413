"""Commands by which a person decides about tasks: `retry`, `cancel`, `settle`.

None of them touches the broker: they change the ledger, and the workers' sweep finds what is due within a second. What a
selection changes is spread over few transactions; a command that dies half-way has changed each task or not, and selecting
again finds the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import timedelta
from typing import Any, Final

import click

from console.cli.documents import task_document
from console.cli.ledger_views import as_document
from console.cli.selecting import Found, agree, chunks, look, one_way, selecting_tasks, selection, with_care
from console.cli.surroundings import existing_ledger, settings_in_force
from console.cli.words import counted, document, printable
from rules.vocabulary import LedgerError, Problem, ProviderName, TaskState, instant
from worker.context import reach, utc_now
from worker.ledger import (
    CANCELLED_STATES,
    RETRIED_STATES,
    Ledger,
    StoredTask,
    why_not_cancelled,
    why_not_retried,
)
from worker.settings import Settings

#: How many tasks of a selection become due in a minute, unless told otherwise.
PER_MINUTE: Final = 60
#: What `cancel` selects, unless told otherwise: what would be sent if nobody did anything.
NOT_SENT: Final = (TaskState.PLANNED, TaskState.QUEUED, TaskState.WAITING)


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
        task = ledger.admin.settle(_known(ledger, task_id).id, delivered, external_id, utc_now())
    click.echo(_line(task))


@click.command()
@click.argument("task_ids", metavar="[ID]...", nargs=-1)
@selecting_tasks("came into its state")
@click.option(
    "--state",
    type=click.Choice([str(state) for state in (*RETRIED_STATES, TaskState.UNKNOWN)]),
    help="Only tasks in this state. [default: dead]",
)
@click.option(
    "--per-minute",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"So many of a selection become due in a minute. [default: {PER_MINUTE}]",
)
@with_care
@as_document
def retry(
    task_ids: tuple[str, ...],
    state: str | None,
    per_minute: int | None,
    *,
    dry_run: bool,
    yes: bool,
    json_wanted: bool,
    **chosen: Any,
) -> None:
    """Make tasks due now: dead, cancelled and suppressed ones begin anew, waiting ones stop waiting.

    By id, or by a selection: it is counted and confirmed, and its tasks become due one after the other. Attempts stay on
    record. A task in state unknown is settled first (`leadwire settle`): retrying it could touch a person twice.
    """
    selected = one_way(task_ids, [state, *chosen.values()], "task")
    if state == TaskState.UNKNOWN:
        raise Problem(
            "unknown tasks may have been executed: find out, then: leadwire settle ID --delivered|--not-delivered"
        )
    states = (TaskState(state or TaskState.DEAD),)
    with existing_ledger(settings_in_force()) as ledger:
        if not selected:
            one_by_one = _OneByOne(task_ids, dry_run=dry_run, json_wanted=json_wanted, verb="retried")
            one_by_one.run(ledger, why_not_retried, lambda task: ledger.admin.retry(task.id, utc_now()))
            return
        found = look(ledger.queries.select_tasks(selection(states, chosen)), why_not_retried)
        rate = per_minute or PER_MINUTE
        minutes = -(-len(found.ids) // rate)
        question = f"retry {counted(len(found.ids), 'task')}, {rate} a minute, in about {counted(minutes, 'minute')}?"
        if not _go_on(found, question, dry_run=dry_run, yes=yes, json_wanted=json_wanted):
            return
        now, changed = utc_now(), 0
        gap = timedelta(minutes=1) / rate
        for part in chunks(list(enumerate(found.ids))):
            due = {task_id: now + place * gap for place, task_id in part}
            changed += len(ledger.admin.retry_many(due, states, utc_now()))
    _tell_end(found, changed, "retried", json_wanted=json_wanted)


@click.command()
@click.argument("task_ids", metavar="[ID]...", nargs=-1)
@selecting_tasks("was planned")
@click.option(
    "--state",
    type=click.Choice([str(state) for state in (*CANCELLED_STATES, TaskState.DELIVERED)]),
    help="Only tasks in this state; delivered goes with --at-provider. [default: planned, queued and waiting]",
)
@click.option("--reason", metavar="TEXT", help="Why; kept with the task.")
@click.option("--at-provider", is_flag=True, help="Have the provider cancel what it has already (Mindhunters only).")
@with_care
@as_document
def cancel(
    task_ids: tuple[str, ...],
    state: str | None,
    reason: str | None,
    *,
    at_provider: bool,
    dry_run: bool,
    yes: bool,
    json_wanted: bool,
    **chosen: Any,
) -> None:
    """End tasks that have not been sent: they are never made, unless they are retried.

    By id, or by a selection, which is counted and confirmed. What is being sent cannot be cancelled. What was delivered is
    cancelled with --at-provider, where the provider has a call for that: it answers whether it was in time.
    """
    selected = one_way(task_ids, [state, *chosen.values()], "task")
    there = at_provider and state in {None, TaskState.DELIVERED}
    if state == TaskState.DELIVERED and not at_provider:
        raise click.UsageError("what was delivered can only be ended at its provider: add --at-provider")
    settings = settings_in_force()
    with ExitStack() as stack:
        ledger = stack.enter_context(existing_ledger(settings))
        desk = _Desk(ledger, settings, stack, reason)
        refusal_of = desk.why_not if there else why_not_cancelled
        act = desk.cancel if there else desk.cancel_here
        if not selected:
            one_by_one = _OneByOne(task_ids, dry_run=dry_run, json_wanted=json_wanted, verb="cancelled")
            one_by_one.run(ledger, refusal_of, act)
            return
        states = _cancelled_states(state, there=there)
        found = look(ledger.queries.select_tasks(selection(states, chosen, planned=True)), refusal_of)
        question = f"cancel {counted(len(found.ids), 'task')}?"
        if not _go_on(found, question, dry_run=dry_run, yes=yes, json_wanted=json_wanted):
            return
        changed = desk.cancel_all(found, states, there=there)
    _tell_end(found, changed, "cancelled", json_wanted=json_wanted)


def _cancelled_states(state: str | None, *, there: bool) -> tuple[TaskState, ...]:
    if state is not None:
        return (TaskState(state),)
    return (*NOT_SENT, TaskState.DELIVERED) if there else NOT_SENT


class _Desk:
    """Cancels tasks: in the ledger, and at the provider what it has."""

    def __init__(self, ledger: Ledger, settings: Settings, stack: ExitStack, reason: str | None) -> None:
        self._ledger = ledger
        self._settings = settings
        self._stack = stack
        self._reason = reason
        self._reached: dict[ProviderName, Any] = {}

    def why_not(self, task: StoredTask) -> str | None:
        """Return why a task can be cancelled neither here nor at its provider."""
        if task.state is not TaskState.DELIVERED:
            return why_not_cancelled(task)
        if task.external_id is None:
            return f"task {task.id} is delivered, and nobody knows under which id {task.provider} has it: end it there"
        provider, _ = self._reach(task.provider)
        if provider.cancel(task.external_id) is None:
            return f"task {task.id} is delivered: {task.provider} has no call that cancels {task.external_id}: end it there"
        return None

    def cancel_here(self, task: StoredTask) -> StoredTask:
        """End a task that its provider does not have."""
        return self._ledger.admin.cancel(task.id, self._reason, utc_now())

    def cancel(self, task: StoredTask) -> StoredTask:
        """End a task; what its provider answered is kept before a refusal is raised."""
        if task.state is not TaskState.DELIVERED or task.external_id is None:
            return self.cancel_here(task)
        provider, transport = self._reach(task.provider)
        answer = provider.cancelled(transport.send(provider.cancel(task.external_id)))
        noted = self._ledger.admin.cancelled_at_provider(
            task.id, answer.words, self._reason, utc_now(), taken=answer.taken
        )
        if not answer.taken:
            raise LedgerError(f"task {task.id} is not cancelled: {task.provider} answered {answer.words}")
        return noted

    def cancel_all(self, found: Found, states: tuple[TaskState, ...], *, there: bool) -> int:
        """End what was found; return how many were."""
        changed = 0
        for part in chunks(found.ids):
            changed += len(self._ledger.admin.cancel_many(part, states, self._reason, utc_now()))
        if not there:
            return changed
        for task_id in found.ids:
            task = self._ledger.queries.task(task_id)
            if task is None or task.state is not TaskState.DELIVERED:
                continue
            try:
                self.cancel(task)
                changed += 1
            except LedgerError as error:
                found.refusals.append(printable(str(error)))
                click.echo(printable(str(error)), err=True)
        return changed

    def _reach(self, name: ProviderName) -> Any:
        if name not in self._reached:
            provider, transport = self._reached[name] = reach(self._settings, name)
            del provider
            self._stack.callback(transport.close)
        return self._reached[name]


class _OneByOne:
    """Does one thing to each task that was named, goes on after a refusal, and tells each end."""

    def __init__(self, task_ids: Sequence[str], *, dry_run: bool, json_wanted: bool, verb: str) -> None:
        self._task_ids = task_ids
        self._dry_run = dry_run
        self._json_wanted = json_wanted
        self._verb = verb

    def run(
        self, ledger: Ledger, refusal_of: Callable[[StoredTask], str | None], act: Callable[[StoredTask], StoredTask]
    ) -> None:
        """Raise Problem when any was refused."""
        tasks: list[StoredTask] = []
        refusals: list[str] = []
        for task_id in self._task_ids:
            try:
                tasks.append(self._one(_known(ledger, task_id), refusal_of, act))
            except LedgerError as error:
                refusals.append(printable(str(error)))
                click.echo(refusals[-1], err=True)
        if self._json_wanted:
            told = [task_document(task) for task in tasks]
            click.echo(document({"dry_run": self._dry_run, "tasks": told, "refused": refusals}))
        if refusals:
            raise Problem(f"{counted(len(refusals), 'task')} of {len(self._task_ids)} cannot be {self._verb}")

    def _one(
        self,
        task: StoredTask,
        refusal_of: Callable[[StoredTask], str | None],
        act: Callable[[StoredTask], StoredTask],
    ) -> StoredTask:
        refusal = refusal_of(task)
        if refusal:
            raise LedgerError(refusal)
        done = task if self._dry_run else act(task)
        if not self._json_wanted:
            would = f"would be {self._verb}; now: " if self._dry_run else ""
            click.echo(f"{would}{_line(done)}")
        return done


def _go_on(found: Found, question: str, *, dry_run: bool, yes: bool, json_wanted: bool) -> bool:
    """Show what was found and have a person agree; False when nothing is to be done."""
    if dry_run and json_wanted:
        click.echo(document({"dry_run": True, **found.document()}))
    elif dry_run or not json_wanted:
        click.echo(found.text(), err=not dry_run)
    if dry_run:
        return False
    if found.ids:
        agree(question, yes=yes)
    return True


def _tell_end(found: Found, changed: int, verb: str, *, json_wanted: bool) -> None:
    if json_wanted:
        click.echo(document({"dry_run": False, **found.document(), "changed": changed}))
        return
    click.echo(f"{counted(changed, 'task')} {verb}")
    if changed < len(found.ids):
        click.echo(f"{counted(len(found.ids) - changed, 'task')} had changed meanwhile, or could not be", err=True)


def _known(ledger: Ledger, task_id: str) -> StoredTask:
    task = ledger.queries.task(task_id)
    if task is None:
        raise LedgerError(f"{task_id}: no task has this id: see `leadwire tasks`")
    return task


def _line(task: StoredTask) -> str:
    known_as = f", at the provider {task.external_id}" if task.external_id else ""
    ended = task.external_id or task.state is TaskState.CANCELLED
    due = "" if ended else f", due {instant(task.due_at)}"
    return printable(f"{task.id}  {task.type}  {task.state}{known_as}{due}")


commands = (settle, retry, cancel)

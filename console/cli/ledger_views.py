"""Commands that look into the ledger and change nothing: `events`, `tasks`, `show`.

Newest first. With `--json` a listing is one array of everything, unless `--limit`; without it a table of the newest. A
listing exits 0 whatever it lists, also where nothing was recorded yet.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Final, TypeVar

import click

from console.cli.documents import (
    Document,
    event_document,
    task_document,
    whole_event_document,
    whole_task_document,
)
from console.cli.surroundings import NoLedgerError, existing_ledger, settings_in_force
from console.cli.words import as_json, at_second, counted, decision_lines, document, person, printable, table
from rules.vocabulary import Contact, EventState, Problem, ProviderName, TaskState, TaskType, instant
from worker.ledger import AttemptRow, Ledger, StoredEvent, StoredTask

#: Rows of a table when no `--limit` is given.
TABLE_LIMIT: Final = 20
#: Columns of a table that are never cut: the id, which is there to be copied, the moment and the state.
WHOLE_COLUMNS: Final = 3

Row = TypeVar("Row", StoredEvent, StoredTask)
Command = TypeVar("Command", bound=Callable[..., Any])


def as_document(command: Command) -> Command:
    """Give a command the option `--json`."""
    return click.option("--json", "json_wanted", is_flag=True, help="Print one JSON document and nothing else.")(
        command
    )


def limited(command: Command) -> Command:
    """Give a command the option `--limit`."""
    what = f"Only the newest N; without it a table shows {TABLE_LIMIT}, and --json everything."
    return click.option("--limit", type=click.IntRange(min=1), metavar="N", help=what)(command)


def one_of(option: str, values: Iterable[str], what: str) -> Callable[[Command], Command]:
    """Give a command an option that takes one of a closed set."""
    return click.option(option, type=click.Choice([str(value) for value in values]), help=what)


@click.command()
@one_of("--state", EventState, "Only events in this state.")
@click.option("--source", metavar="NAME", help="Only events of this source.")
@limited
@as_document
def events(state: str | None, source: str | None, limit: int | None, *, json_wanted: bool) -> None:
    """List what came in, newest first."""
    with ExitStack() as stack:
        ledger = _ledger_or_none(stack)
        wanted = EventState(state) if state else None
        found = (
            ledger.queries.list_events(_rows(limit, json_wanted), state=wanted, source=source) if ledger else iter(())
        )
        if json_wanted:
            _print_array(event_document(event) for event in found)
            return
        head = ("id", "received (UTC)", "state", "type", "source", "contact", "tasks")
        _print_table(head, list(found), _event_row, limit, "event", "leadwire explain ID")


@click.command()
@one_of("--state", TaskState, "Only tasks in this state.")
@one_of("--type", TaskType, "Only tasks of this type.")
@click.option("--rule", metavar="ID", help="Only tasks of this rule.")
@one_of("--provider", ProviderName, "Only tasks of this provider.")
@limited
@as_document
def tasks(
    state: str | None,
    type: str | None,  # noqa: A002 - the word of the vocabulary
    rule: str | None,
    provider: str | None,
    limit: int | None,
    *,
    json_wanted: bool,
) -> None:
    """List the touches that were planned and what became of them, newest first."""
    with ExitStack() as stack:
        ledger = _ledger_or_none(stack)
        found = (
            ledger.queries.list_tasks(
                _rows(limit, json_wanted),
                state=TaskState(state) if state else None,
                type=TaskType(type) if type else None,
                rule=rule,
                provider=ProviderName(provider) if provider else None,
            )
            if ledger
            else iter(())
        )
        if json_wanted:
            _print_array(task_document(task) for task in found)
            return
        head = ("id", "due (UTC)", "state", "type", "rule", "contact")
        _print_table(head, list(found), _task_row, limit, "task", "leadwire show ID")


@click.command()
@click.argument("some_id", metavar="ID")
@as_document
def show(some_id: str, *, json_wanted: bool) -> None:
    """Show all that is known of one event or task.

    The beginning of an id is enough where only one begins so.
    """
    with existing_ledger(settings_in_force()) as ledger:
        task = ledger.queries.task(some_id)
        event = None if task else ledger.queries.event(some_id)
        if task:
            attempts = ledger.queries.attempts(task.id)
            answers = [one for one in ledger.queries.tasks_of(task.event_id) if one.parent == task.id]
            text = (
                document(whole_task_document(task, attempts, answers))
                if json_wanted
                else _task_text(task, attempts, answers)
            )
        elif event:
            made = ledger.queries.tasks_of(event.id)
            whole = {**whole_event_document(event), "tasks": [task_document(one) for one in made]}
            text = document(whole) if json_wanted else _event_text(event, made)
        else:
            raise Problem(f"{some_id}: no event and no task has this id: see `leadwire events` and `leadwire tasks`")
    click.echo(text)


def _ledger_or_none(stack: ExitStack) -> Ledger | None:
    """Return the ledger; where none is yet, say so on standard error: an empty listing is still a listing."""
    try:
        return stack.enter_context(existing_ledger(settings_in_force()))
    except NoLedgerError as error:
        click.echo(str(error), err=True)
        return None


def _rows(limit: int | None, json_wanted: bool) -> int | None:
    return limit if json_wanted or limit is not None else TABLE_LIMIT + 1


def _print_array(documents: Iterable[Document]) -> None:
    """Print one JSON array, item by item: a large ledger is never held in memory."""
    separator = "\n"
    click.echo("[", nl=False)
    for one in documents:
        click.echo(f"{separator}  {json.dumps(one)}", nl=False)
        separator = ",\n"
    click.echo("\n]")


def _print_table(
    head: tuple[str, ...],
    found: Sequence[Row],
    row: Callable[[Row], tuple[str, ...]],
    limit: int | None,
    noun: str,
    next_step: str,
) -> None:
    shown = found[: limit or TABLE_LIMIT]
    if not shown:
        click.echo(f"no {noun}s", err=True)
        return
    remarks = [one.reason or "" for one in shown]
    click.echo(table(head, [row(one) for one in shown], whole=WHOLE_COLUMNS, remarks=remarks))
    more = len(found) > len(shown)
    newest = f"the newest {len(shown)}; --limit N shows more" if more else counted(len(shown), noun)
    click.echo(f"{newest}; next: {next_step}", err=True)


def _event_row(stored: StoredEvent) -> tuple[str, ...]:
    event = stored.event
    made = sum(len(decision.tasks) for decision in stored.decisions)
    received = at_second(event.received_at)
    return (event.id, received, str(stored.state), event.type, event.source, _who(event.contact), str(made))


def _task_row(task: StoredTask) -> tuple[str, ...]:
    due = at_second(task.due_at)
    return (task.id, due, str(task.state), str(task.type), task.rule, _who(task.contact))


def _who(contact: Contact) -> str:
    return contact.name or contact.phone or contact.email or contact.id or "-"


def _event_text(stored: StoredEvent, made: list[StoredTask]) -> str:
    event = stored.event
    facts = [
        ("state", str(stored.state) + (f": {stored.reason}" if stored.reason else "")),
        ("type", event.type),
        ("source", event.source),
        ("occurred", instant(event.occurred_at)),
        ("received", instant(event.received_at)),
        ("subject", f"{event.subject.kind} {event.subject.id}" if event.subject else "-"),
        ("contact", person(event.contact)),
        ("delivery", stored.delivery_id or "-"),
        ("dedupe key", stored.dedupe_key),
        ("rule set", stored.rule_set or "-"),
        ("tries", str(stored.tries)),
    ]
    lines = [f"event {event.id}", *_fact_lines(facts)]
    for title, values in (("contact", whole_event_document(stored)["contact"]), ("changed", dict(event.changed))):
        lines += [f"{title}:", *_value_lines({name: value for name, value in values.items() if value is not None})]
    lines += ["data:", *_value_lines(event.data), "decisions:"]
    lines += [f"  {printable(line)}" for one in stored.decisions for line in decision_lines(one)] or ["  none"]
    lines += ["tasks:"]
    lines += [_task_line(one) for one in made] or ["  none"]
    return "\n".join(lines)


def _task_line(task: StoredTask) -> str:
    return f"  {printable(f'{task.id}  {task.type}  {task.rule}/{task.name}  {task.state}')}"


def _task_text(task: StoredTask, attempts: list[AttemptRow], follow_ups: list[StoredTask]) -> str:
    facts = [
        ("state", str(task.state) + (f": {task.reason}" if task.reason else "")),
        ("type", f"{task.type} by {task.provider}"),
        ("rule", f"{task.rule}/{task.name} under {task.rule_set}"),
        ("event", task.event_id),
        ("contact", person(task.contact)),
        ("due", instant(task.due_at)),
        ("expires", instant(task.expires_at) if task.expires_at else "never"),
        ("attempts", f"{task.attempts}, epoch {task.epoch}"),
        ("provider's id", task.external_id or "-"),
        ("outcome", task.outcome or "-"),
        ("follows on", task.parent or "-"),
        ("note", task.note or "-"),
        ("key", task.key),
        ("created", instant(task.created_at)),
        ("updated", instant(task.updated_at)),
    ]
    lines = [f"task {task.id}", *_fact_lines(facts), "fields:", *_value_lines(dict(task.fields)), "attempts:"]
    lines += [f"  {line}" for one in attempts for line in _attempt_lines(one)] or ["  none yet"]
    if task.reactions or follow_ups:
        lines += ["what followed:", *(_task_line(one) for one in follow_ups)]
        lines += [] if follow_ups else [f"  nothing yet; its rule answers {', '.join(task.reactions)}"]
    return "\n".join(lines)


def _attempt_lines(attempt: AttemptRow) -> Iterator[str]:
    ended = instant(attempt.ended_at) if attempt.ended_at else "not ended"
    verdict = "given back before it began" if attempt.deferred else attempt.verdict or "no outcome recorded"
    status = f", status {attempt.status}" if attempt.status else ""
    yield printable(f"{attempt.number}. {instant(attempt.started_at)} to {ended}: {verdict}{status}")
    if attempt.error:
        yield printable(f"   {attempt.error}")


def _fact_lines(facts: list[tuple[str, str]]) -> list[str]:
    return [printable(f"  {name:<14}{value}") for name, value in facts]


def _value_lines(value: Any) -> list[str]:
    if not isinstance(value, dict):
        return [f"  {as_json(value)}"]
    return [f"  {printable(str(name)):<14} {as_json(one)}" for name, one in value.items()] or ["  none"]


commands = (events, tasks, show)

"""Commands about the providers: `providers` shows how each stands, `pause` and `resume` decide whether it gets any work.

A pause that a person ordered ends at its moment or by `resume`, never because the provider answers.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

import click

from console.cli.ledger_views import as_document
from console.cli.surroundings import existing_ledger, settings_in_force
from console.cli.words import counted, document, printable, table
from rules.times import is_span, parse_span, read_instant
from rules.vocabulary import Problem, ProviderName, TaskState, instant
from worker.context import utc_now
from worker.ledger import UNTIL_RESUMED, Ledger, ProviderState, Workload

#: What is about to go out, or would if nothing held it.
_AHEAD: Final = (TaskState.PLANNED, TaskState.QUEUED, TaskState.WAITING)
_NAME: Final = click.argument("name", metavar="PROVIDER", type=click.Choice([str(one) for one in ProviderName]))
_KINDS: Final = {
    "person": "paused by a person",
    "answer": "paused: it does not take our credential or address",
    "breaker": "paused: it fails",
    "asked": "paused: it asked for a rest",
}


class Span(click.ParamType[timedelta]):
    """A span such as 2h."""

    name = "span"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Return the span."""
        try:
            return value if isinstance(value, timedelta) else parse_span(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Moment(click.ParamType[datetime]):
    """A moment in ISO 8601."""

    name = "moment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Return the moment in UTC."""
        if isinstance(value, datetime):
            return value
        if is_span(value):
            self.fail(f"{value} is a span: say --for {value}", param, ctx)
        try:
            return read_instant(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command()
@as_document
def providers(*, json_wanted: bool) -> None:
    """Show how each provider stands: paused or not, until when and why, and the work before it."""
    now = utc_now()
    with existing_ledger(settings_in_force()) as ledger:
        states = {state.name: state for state in ledger.limits.states()}
        loads = ledger.queries.workloads(now)
    documents = [_document(name, states.get(name), loads[name], now) for name in ProviderName]
    if json_wanted:
        click.echo(document(documents))
        return
    head = ("provider", "state", "until (UTC)", "to be sent", "being sent", "unknown", "begun today")
    rows = [_row(one) for one in documents]
    click.echo(table(head, rows, whole=1, remarks=[one["reason"] or "" for one in documents]))


@click.command()
@_NAME
@click.option("--for", "span", type=Span(), metavar="SPAN", help="For so long, such as 2h.")
@click.option("--until", "until_at", type=Moment(), metavar="MOMENT", help="Until this moment, ISO 8601.")
@click.option("--reason", metavar="TEXT", help="Why; shown with every task that waits for it.")
def pause(name: str, span: timedelta | None, until_at: datetime | None, reason: str | None) -> None:
    """Hold back a provider's tasks: until you resume it, or as long as --for or --until says.

    What is being sent goes on. Tasks wait and lose no attempt; those that expire meanwhile end as suppressed.
    """
    if span and until_at:
        raise click.UsageError("say --for or --until, not both")
    now = utc_now()
    ends_at = min(now + span, UNTIL_RESUMED) if span else min(until_at or UNTIL_RESUMED, UNTIL_RESUMED)
    if ends_at <= now:
        raise Problem(f"{instant(ends_at)} is over: name a moment to come, or none")
    with existing_ledger(settings_in_force()) as ledger:
        ledger.limits.pause(ProviderName(name), ends_at, reason or "paused by a person", now)
        ahead = _ahead(ledger, name)
    click.echo(f"{name} is paused {_until(ends_at)}; {counted(ahead, 'task')} ahead of it")
    click.echo(f"next: leadwire resume {name}", err=True)


@click.command()
@_NAME
def resume(name: str) -> None:
    """Lift any pause of a provider: the tasks that waited for its end are due now."""
    now = utc_now()
    with existing_ledger(settings_in_force()) as ledger:
        was = next((state for state in ledger.limits.states() if state.name == name), None)
        ledger.limits.resume(ProviderName(name), now)
        ahead = _ahead(ledger, name)
    paused = was is not None and was.paused_until_at is not None and not (was.held and was.paused_until_at <= now)
    click.echo(f"{name} {'is resumed' if paused else 'was not paused'}; {counted(ahead, 'task')} ahead of it")


def _ahead(ledger: Ledger, name: str) -> int:
    return _number(ledger.queries.workloads(utc_now())[ProviderName(name)], *_AHEAD)


def _document(name: ProviderName, state: ProviderState | None, load: Workload, now: datetime) -> dict[str, Any]:
    """Return a provider as `providers --json` lists it; `until` null with a pause means: until resumed."""
    paused = state is not None and state.paused_until_at is not None
    if state is not None and state.held and state.paused_until_at is not None and state.paused_until_at <= now:
        paused = False  # a person's pause ends at its moment; others end when the provider answers
    until_at = state.paused_until_at if state and paused else None
    return {
        "provider": str(name),
        "paused": paused,
        "kind": str(state.kind) if state and paused and state.kind else None,
        "until": instant(until_at) if until_at and until_at < UNTIL_RESUMED else None,
        "reason": state.reason if state and paused else None,
        "since": instant(state.updated_at) if state and paused else None,
        "tasks": {str(one): load.tasks.get(one, 0) for one in (*_AHEAD, TaskState.SENDING, TaskState.UNKNOWN)},
        "begun_today": load.begun_today,
    }


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    until = (one["until"] or "until resumed") if one["paused"] else "-"
    kind = _KINDS.get(one["kind"] or "", "paused") if one["paused"] else "open"
    tasks = one["tasks"]
    ahead = sum(tasks[str(state)] for state in _AHEAD)
    numbers = (ahead, tasks["sending"], tasks["unknown"], one["begun_today"])
    return (one["provider"], kind, printable(until), *(str(number) for number in numbers))


def _number(load: Workload, *states: TaskState) -> int:
    return sum(load.tasks.get(state, 0) for state in states)


def _until(ends_at: datetime) -> str:
    return "until it is resumed" if ends_at >= UNTIL_RESUMED else f"until {instant(ends_at)}"


commands = (providers, pause, resume)

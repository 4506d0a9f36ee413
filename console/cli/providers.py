"""Commands about providers: `providers` shows how each stands, `pause` and `resume` decide whether it gets any work.

A pause that a person ordered ends at its moment or by `resume`, never because the provider answers.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

import click

from console.cli.options import MOMENT, SPAN, OneOf, existing_ledger, json_option
from console.cli.output import Document, counted, print_json, table
from rules.vocabulary import Problem, ProviderName, TaskState, instant
from worker.clock import utc_now
from worker.ledger import UNTIL_RESUMED, Ledger, ProviderState, Workload

#: What is about to go out, or would if nothing held it.
AHEAD: Final = (TaskState.PLANNED, TaskState.QUEUED, TaskState.WAITING)
PAUSE_WORDS: Final = {
    "person": "paused by a person",
    "answer": "paused: it does not take our credential or address",
    "breaker": "paused: it fails",
    "asked": "paused: it asked for a rest",
}

provider_argument: Final = click.argument("name", metavar="PROVIDER", type=OneOf(ProviderName))


@click.command("providers")
@json_option
def list_providers(*, json_wanted: bool) -> None:
    """Show how each provider stands: paused or not, until when and why, and the work before it."""
    now = utc_now()
    with existing_ledger() as ledger:
        states = {state.name: state for state in ledger.limits.states()}
        loads = ledger.queries.workloads(now)
    documents = [_document(name, states.get(name), loads[name], now) for name in ProviderName]
    if json_wanted:
        print_json(documents)
        return
    head = ("provider", "state", "until (UTC)", "to be sent", "being sent", "unknown", "begun today")
    remarks = [one["reason"] or "" for one in documents]
    click.echo(table(head, [_row(one) for one in documents], remarks=remarks))


@click.command()
@provider_argument
@click.option("--for", "span", type=SPAN, metavar="SPAN", help="For so long, such as 2h.")
@click.option("--until", "until_at", type=MOMENT, metavar="MOMENT", help="Until this moment, ISO 8601.")
@click.option("--reason", metavar="TEXT", help="Why; shown with every task that waits for it.")
def pause(name: ProviderName, span: timedelta | None, until_at: datetime | None, reason: str | None) -> None:
    """Hold back a provider's tasks: until you resume it, or as long as --for or --until says.

    What is being sent goes on. Tasks wait and lose no attempt; those that expire meanwhile end as suppressed.
    """
    if span and until_at:
        raise click.UsageError("say --for or --until, not both")
    now = utc_now()
    ends_at = min(now + span if span else until_at or UNTIL_RESUMED, UNTIL_RESUMED)
    if ends_at <= now:
        raise Problem(f"{instant(ends_at)} is over: name a moment to come, or none")
    with existing_ledger() as ledger:
        ledger.limits.pause(name, ends_at, reason or "paused by a person", now)
        ahead = _ahead(ledger, name)
    until = "until it is resumed" if ends_at >= UNTIL_RESUMED else f"until {instant(ends_at)}"
    click.echo(f"{name} is paused {until}; {ahead} ahead of it")
    click.echo(f"next: leadwire resume {name}", err=True)


@click.command()
@provider_argument
def resume(name: ProviderName) -> None:
    """Lift any pause of a provider: the tasks that waited for its end are due now."""
    now = utc_now()
    with existing_ledger() as ledger:
        was = next((state for state in ledger.limits.states() if state.name == name), None)
        ledger.limits.resume(name, now)
        ahead = _ahead(ledger, name)
    click.echo(f"{name} {'is resumed' if _is_paused(was, now) else 'was not paused'}; {ahead} ahead of it")


def _ahead(ledger: Ledger, name: ProviderName) -> str:
    """Return how many tasks wait to be sent, in words."""
    waiting = ledger.queries.workloads(utc_now())[name].tasks
    return counted(sum(waiting.get(state, 0) for state in AHEAD), "task")


def _is_paused(state: ProviderState | None, now: datetime) -> bool:
    """Say whether a provider is paused: a person's pause ends at its moment, others end when the provider answers."""
    if state is None or state.paused_until_at is None:
        return False
    return not (state.held and state.paused_until_at <= now)


def _document(name: ProviderName, state: ProviderState | None, load: Workload, now: datetime) -> Document:
    """Return a provider as `providers --json` lists it; `until` null with a pause means: until resumed."""
    paused = state if _is_paused(state, now) else None
    until_at = paused.paused_until_at if paused else None
    return {
        "provider": str(name),
        "paused": paused is not None,
        "kind": str(paused.kind) if paused and paused.kind else None,
        "until": instant(until_at) if until_at and until_at < UNTIL_RESUMED else None,
        "reason": paused.reason if paused else None,
        "since": instant(paused.updated_at) if paused else None,
        "tasks": {str(one): load.tasks.get(one, 0) for one in (*AHEAD, TaskState.SENDING, TaskState.UNKNOWN)},
        "begun_today": load.begun_today,
    }


def _row(one: Document) -> tuple[str, ...]:
    until = (one["until"] or "until resumed") if one["paused"] else "-"
    state = PAUSE_WORDS.get(one["kind"] or "", "paused") if one["paused"] else "open"
    tasks = one["tasks"]
    ahead = sum(tasks[state] for state in AHEAD)
    numbers = (ahead, tasks["sending"], tasks["unknown"], one["begun_today"])
    return (one["provider"], state, until, *map(str, numbers))

"""Commands about events: `events` lists what came in, `replay` has events decided again under the rules in force.

`replay` only makes events `received` again; a worker decides them, and the ledger keeps what exists from being made a second
time. Beforehand it decides each event itself, under the rule set that the ledger took last, to tell what would come of it
and to refuse where the names of a rule's tasks, or its id, have changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import click

from console.cli.options import (
    between,
    chunks,
    confirm,
    confirmation,
    existing_ledger,
    is_selection,
    json_option,
    ledger_to_list,
    limit_option,
    one_of,
    settings_in_force,
)
from console.cli.output import (
    TABLE_LIMIT,
    Document,
    as_plain,
    at_second,
    counted,
    event_document,
    first_lines,
    print_json,
    print_listing,
    printable,
    printable_lines,
    short_name,
    shortened,
)
from rules.vocabulary import EventState, Problem, RuleError, Task, TaskState, instant
from worker.clock import utc_now
from worker.ledger import (
    EventSelection,
    Ledger,
    Replayed,
    StoredEvent,
    StoredTask,
    never_sent,
    renamed,
    why_not_replayed,
)
from worker.settings import Settings

if TYPE_CHECKING:
    from rules.rule_set import RuleSet

#: States that a selection may name.
REPLAYED_STATES: Final = (EventState.PROCESSED, EventState.IGNORED, EventState.FAILED, EventState.UNREADABLE)


@click.command("events")
@one_of("--state", EventState, "Only events in this state.")
@click.option("--source", metavar="NAME", help="Only events of this source.")
@limit_option
@json_option
def list_events(limit: int | None, *, json_wanted: bool, **filters: Any) -> None:
    """List what came in, newest first."""
    with ledger_to_list() as ledger:
        print_listing(
            ledger.queries.list_events(limit, **filters) if ledger else (),
            {
                "id": lambda stored: stored.id,
                "received (UTC)": lambda stored: at_second(stored.event.received_at),
                "state": lambda stored: str(stored.state),
                "type": lambda stored: stored.event.type,
                "source": lambda stored: stored.event.source,
                "contact": lambda stored: short_name(stored.event.contact),
                "tasks": lambda stored: str(sum(len(decision.tasks) for decision in stored.decisions)),
            },
            event_document,
            noun="event",
            next_step="leadwire explain ID",
            limit=limit,
            json_wanted=json_wanted,
        )


@click.command()
@click.argument("event_ids", metavar="[EVENT_ID]...", nargs=-1)
@click.option("--source", metavar="NAME", help="Only events of this source.")
@click.option("--type", "type", metavar="TYPE", help="Only events of this type, such as lead.created.")
@between("was received")
@one_of("--state", REPLAYED_STATES, "Only events in this state; failed needs --failed too. [default: processed]")
@click.option("--failed", is_flag=True, help="Also events whose processing failed five times: they may crash a worker.")
@click.option(
    "--new-keys", is_flag=True, help="Make every task anew, also those that were made: people are touched again."
)
@confirmation
@json_option
def replay(
    event_ids: tuple[str, ...],
    state: EventState | None,
    *,
    failed: bool,
    new_keys: bool,
    dry_run: bool,
    yes: bool,
    json_wanted: bool,
    **chosen: Any,
) -> None:
    """Have events decided again under the rules in force: tasks that exist are not made again.

    By id, or by a selection, which is counted and confirmed. A task that was never complete, and so never left, is planned
    again. Refused for an event whose tasks seem to go by other names now, or their rule by another id. With --new-keys each
    event is made anew, as EVENT_ID.2, with all its tasks.
    """
    selected = is_selection(event_ids, [state, *chosen.values()], "event")
    if state is EventState.UNREADABLE:
        raise Problem(
            "unreadable events cannot be replayed: there is nothing to decide; "
            "correct their source in the rules, and have them sent again"
        )
    if state is EventState.FAILED and not failed:
        raise Problem("events that failed five times may crash a worker: to replay them all the same, add --failed")
    settings = settings_in_force()
    with existing_ledger(settings) as ledger:
        wanted = EventSelection(states=(state or EventState.PROCESSED,), **chosen)
        found = ledger.queries.select_events(wanted) if selected else _named(ledger, event_ids)
        rule_set, now = _rules_in_force(ledger, settings), utc_now()
        forecasts = [_forecast(ledger, one, rule_set, now, failed_too=failed, new_keys=new_keys) for one in found]
        if dry_run:
            _print_forecasts(forecasts, json_wanted=json_wanted)
            return
        good = [one for one in forecasts if one.refusal is None]
        if good and (selected or new_keys):
            if not json_wanted:
                click.echo("\n".join(_summary(forecasts)), err=True)
            confirm(_question(good, new_keys=new_keys), yes=yes)
        done = [Replayed(event_id=one.stored.id, refusal=one.refusal) for one in forecasts if one.refusal]
        for part in chunks([one.stored.id for one in good]):
            done += ledger.admin.replay(part, utc_now(), failed_too=failed, new_keys=new_keys)
    _print_end(done, selected=selected, json_wanted=json_wanted)


@dataclass(frozen=True, slots=True)
class _Forecast:
    """What replaying one event would come to: its tasks, each with the one that exists already; or why it is refused."""

    stored: StoredEvent
    refusal: str | None = None
    tasks: Sequence[tuple[Task, StoredTask | None]] = ()

    def document(self) -> Document:
        """Return it as `--json` prints it.

        A task's `exists` is the state of the one that is there, or null; `again` says that it never left and would be planned
        again.
        """
        return {
            "id": self.stored.id,
            "type": self.stored.event.type,
            "state": str(self.stored.state),
            "refused": self.refusal,
            "tasks": [
                {
                    **{
                        key: as_plain(getattr(task, key))
                        for key in ("rule", "name", "type", "state", "due_at", "reason")
                    },
                    "exists": str(made.state) if made else None,
                    "again": made is not None and never_sent(made),
                    "id": made.id if made else None,
                }
                for task, made in self.tasks
            ],
        }

    def lines(self) -> list[str]:
        """Return it for a person."""
        lines = [f"{self.stored.id}  {self.stored.event.type}  {self.stored.state}"]
        if self.refusal:
            return [*lines, f"    refused: {self.refusal}"]
        for task, made in self.tasks:
            ended = f", ends {task.state} at once: {task.reason}" if task.state is not TaskState.PLANNED else ""
            due = f"due {instant(task.due_at)}{ended}"
            would = f"exists, {made.state}" if made else f"would be made, {due}"
            if made and never_sent(made):
                would = f"{would}, never complete: would be planned again, {due}"
            lines.append(f"    {task.rule}/{task.name}  {task.type}: {would}")
        return lines if self.tasks else [*lines, "    no tasks"]


def _forecast(
    ledger: Ledger, stored: StoredEvent, rule_set: RuleSet | None, now: datetime, *, failed_too: bool, new_keys: bool
) -> _Forecast:
    """Decide an event as a worker would, and compare with what exists of it; without a rule set only the worker can."""
    from rules.engine import decide

    refusal = why_not_replayed(stored, failed_too=failed_too)
    if refusal or rule_set is None:
        return _Forecast(stored, refusal and printable(refusal))
    planned = decide(rule_set, stored.event, now=now).tasks
    if new_keys:
        return _Forecast(stored, tasks=[(task, None) for task in planned])
    made = {(task.rule, task.name): task for task in ledger.queries.tasks_of(stored.id) if task.parent is None}
    left = [(task.rule, task.name, task.type) for task in made.values() if not never_sent(task)]
    other_names = renamed([(task.rule, task.name, task.type) for task in planned], left)
    refusal = printable(f"event {stored.id}: {other_names}") if other_names else None
    return _Forecast(stored, refusal, [(task, made.get((task.rule, task.name))) for task in planned])


def _rules_in_force(ledger: Ledger, settings: Settings) -> RuleSet | None:
    """Return the rule set that the ledger took last, or None with a word about it: then the worker alone compares."""
    from rules.loader import load
    from worker.rule_sets import WORKER_SECTIONS

    kept = ledger.rule_sets.latest()
    for environment, resolve in ((settings.environment, WORKER_SECTIONS), ({}, frozenset[str]())):
        try:
            rule_set = load(kept[1], environment, resolve=resolve) if kept else None
        except RuleError:
            continue
        if rule_set is not None and not resolve:
            click.echo(
                "note: some variables are not set here: ${NAME} stands for them; the worker has its own", err=True
            )
        return rule_set
    click.echo("note: the rules in force cannot be read here; the worker decides by its own", err=True)
    return None


def _named(ledger: Ledger, event_ids: Sequence[str]) -> list[StoredEvent]:
    found = {event_id: ledger.queries.event(event_id) for event_id in event_ids}
    missing = [shortened(event_id) for event_id, stored in found.items() if stored is None]
    if missing:
        raise Problem(f"{', '.join(missing)}: no event has this id: see `leadwire events`")
    return list({stored.id: stored for stored in found.values() if stored}.values())


def _question(good: Sequence[_Forecast], *, new_keys: bool) -> str:
    events = counted(len(good), "event")
    if not new_keys:
        return f"replay {events}?"
    made = sum(len(one.tasks) for one in good)
    return f"make {events} anew, with {counted(made, 'task')}, also those that were delivered before?"


def _summary(forecasts: Sequence[_Forecast]) -> list[str]:
    """Return what replaying would come to, in numbers."""
    good = [one for one in forecasts if one.refusal is None]
    existing = [made for one in good for _, made in one.tasks]
    new = existing.count(None)
    again = sum(made is not None and never_sent(made) for made in existing)
    never_complete = f", {again} of them never complete, to be planned again" if again else ""
    refused = len(forecasts) - len(good)
    exist = f"{len(existing) - new} exist{never_complete}"
    return [
        f"{counted(len(good), 'event')} to replay: {counted(new, 'task')} would be made, {exist}",
        *([f"{counted(refused, 'event')} refused"] if refused else []),
    ]


def _print_forecasts(forecasts: Sequence[_Forecast], *, json_wanted: bool) -> None:
    if json_wanted:
        print_json({"dry_run": True, "events": [one.document() for one in forecasts]})
        return
    for one in forecasts[:TABLE_LIMIT]:
        click.echo(printable_lines(one.lines()))
    if len(forecasts) > TABLE_LIMIT:
        click.echo(f"and {counted(len(forecasts) - TABLE_LIMIT, 'more event')}")
    click.echo("\n".join([*_summary(forecasts), "nothing was changed"]))


def _print_end(done: Sequence[Replayed], *, selected: bool, json_wanted: bool) -> None:
    """Tell what became of each; a refusal of an event that was named is a fault, one of a selection leaves it out."""
    refusals = [printable(one.refusal) for one in done if one.refusal]
    again = [one for one in done if one.again_as]
    if json_wanted:
        events = [
            {"id": one.event_id, "again_as": one.again_as, "refused": one.refusal and printable(one.refusal)}
            for one in done
        ]
        print_json({"dry_run": False, "replayed": len(again), "events": events})
    else:
        for line in first_lines([_replayed_line(one) for one in again]):
            click.echo(line)
        for line in first_lines(refusals):
            click.echo(line, err=True)
        click.echo(f"{counted(len(again), 'event')} replayed; next: leadwire explain ID", err=True)
    if refusals and not selected:
        raise Problem(f"{counted(len(refusals), 'event')} of {len(done)} cannot be replayed")


def _replayed_line(one: Replayed) -> str:
    as_another = f" made anew as {one.again_as}," if one.again_as != one.event_id else ""
    return f"{one.event_id}{as_another} is decided again within seconds"

"""The command `replay`: events are decided again, under the rules in force.

The command only makes events `received` again; a worker decides them, and the ledger keeps what exists from being made a
second time. Beforehand it decides each event itself, under the rule set that the ledger took last, to tell what would come of
it and to refuse where the names of a rule's tasks, or its id, have changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

import click

from console.cli.ledger_views import as_document
from console.cli.selecting import SHOWN, agree, between, chunks, one_way, some, with_care
from console.cli.surroundings import existing_ledger, settings_in_force
from console.cli.words import counted, document, printable, shortened
from rules.engine import decide
from rules.loader import load
from rules.rule_set import RuleSet
from rules.vocabulary import EventState, Problem, RuleError, Task, TaskState, instant
from worker.context import WORKER_SECTIONS, utc_now
from worker.ledger import (
    EventSelection,
    Ledger,
    Replayed,
    StoredEvent,
    StoredTask,
    never_left,
    renamed,
    why_not_replayed,
)
from worker.settings import Settings

#: States that a selection may name.
STATES: Final = (EventState.PROCESSED, EventState.IGNORED, EventState.FAILED, EventState.UNREADABLE)


@click.command()
@click.argument("event_ids", metavar="[EVENT_ID]...", nargs=-1)
@click.option("--source", metavar="NAME", help="Only events of this source.")
@click.option("--type", "type", metavar="TYPE", help="Only events of this type, such as lead.created.")
@between("was received")
@click.option(
    "--state",
    type=click.Choice([str(state) for state in STATES]),
    help="Only events in this state; failed needs --failed too. [default: processed]",
)
@click.option("--failed", is_flag=True, help="Also events whose processing failed five times: they may crash a worker.")
@click.option(
    "--new-keys", is_flag=True, help="Make every task anew, also those that were made: people are touched again."
)
@with_care
@as_document
def replay(
    event_ids: tuple[str, ...],
    state: str | None,
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
    selected = one_way(event_ids, [state, *chosen.values()], "event")
    if state == EventState.UNREADABLE:
        raise Problem(
            "unreadable events cannot be replayed: there is nothing to decide; "
            "correct their source in the rules, and have them sent again"
        )
    if state == EventState.FAILED and not failed:
        raise Problem("events that failed five times may crash a worker: to replay them all the same, add --failed")
    settings = settings_in_force()
    with existing_ledger(settings) as ledger:
        ask = _Asked(failed_too=failed, new_keys=new_keys, now=utc_now())
        found = _selected(ledger, state, chosen) if selected else _named(ledger, event_ids)
        rule_set = _book(ledger, settings)
        looks = [_look(ledger, one, rule_set, ask) for one in found]
        if dry_run:
            _tell_dry(looks, json_wanted=json_wanted)
            return
        good = [look for look in looks if look.refusal is None]
        if good and (selected or new_keys):
            if not json_wanted:
                click.echo("\n".join(_summary(looks)), err=True)
            agree(_question(good, new_keys=new_keys), yes=yes)
        done = _replay(ledger, good, ask)
    _tell_end([*(_refused(look) for look in looks if look.refusal), *done], selected=selected, json_wanted=json_wanted)


@dataclass(frozen=True, slots=True)
class _Asked:
    """How events are to be replayed."""

    failed_too: bool
    new_keys: bool
    now: datetime


@dataclass(frozen=True, slots=True)
class _Look:
    """What replaying one event would come to: its tasks, each with the one that exists already; or why it is refused."""

    stored: StoredEvent
    refusal: str | None
    tasks: Sequence[tuple[Task, StoredTask | None]]

    @property
    def new(self) -> list[Task]:
        """The tasks that would be made."""
        return [task for task, made in self.tasks if made is None]

    @property
    def again(self) -> list[Task]:
        """The tasks that exist and never left: they would be planned again."""
        return [task for task, made in self.tasks if made and never_left(made)]

    def document(self) -> dict[str, Any]:
        """Return it as `--json` prints it; `exists` is the state of the task that is there, or null.

        `again` says that it never left and would be planned again.
        """
        return {
            "id": self.stored.id,
            "type": self.stored.event.type,
            "state": str(self.stored.state),
            "refused": self.refusal,
            "tasks": [
                {
                    "rule": task.rule,
                    "name": task.name,
                    "type": str(task.type),
                    "state": str(task.state),
                    "due_at": instant(task.due_at),
                    "reason": task.reason,
                    "exists": str(made.state) if made else None,
                    "again": made is not None and never_left(made),
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
            if made and never_left(made):
                would = f"{would}, never complete: would be planned again, {due}"
            lines.append(f"    {task.rule}/{task.name}  {task.type}: {would}")
        return lines if self.tasks else [*lines, "    no tasks"]


def _named(ledger: Ledger, event_ids: Sequence[str]) -> list[StoredEvent]:
    found = [(event_id, ledger.queries.event(event_id)) for event_id in event_ids]
    missing = [shortened(event_id) for event_id, stored in found if stored is None]
    if missing:
        raise Problem(f"{', '.join(missing)}: no event has this id: see `leadwire events`")
    return list({stored.id: stored for _, stored in found if stored}.values())


def _selected(ledger: Ledger, state: str | None, chosen: dict[str, Any]) -> Iterable[StoredEvent]:
    return ledger.queries.select_events(EventSelection(states=(EventState(state or EventState.PROCESSED),), **chosen))


def _look(ledger: Ledger, stored: StoredEvent, rule_set: RuleSet | None, ask: _Asked) -> _Look:
    """Decide an event as a worker would, and compare with what exists of it."""
    refusal = why_not_replayed(stored, failed_too=ask.failed_too)
    if refusal or rule_set is None:
        return _Look(stored, refusal and printable(refusal), ())
    planned = decide(rule_set, stored.event, now=ask.now).tasks
    if ask.new_keys:
        return _Look(stored, None, [(task, None) for task in planned])
    made = {(task.rule, task.name): task for task in ledger.queries.tasks_of(stored.id) if task.parent is None}
    left = [(task.rule, task.name, task.type) for task in made.values() if not never_left(task)]
    other_names = renamed([(task.rule, task.name, task.type) for task in planned], left)
    refusal = f"event {stored.id}: {other_names}" if other_names else None
    return _Look(stored, refusal and printable(refusal), [(task, made.get((task.rule, task.name))) for task in planned])


def _book(ledger: Ledger, settings: Settings) -> RuleSet | None:
    """Return the rule set that the ledger took last, or None with a word about it: then the worker alone compares."""
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


def _question(good: Sequence[_Look], *, new_keys: bool) -> str:
    events = counted(len(good), "event")
    if not new_keys:
        return f"replay {events}?"
    made = sum(len(look.tasks) for look in good)
    return f"make {events} anew, with {counted(made, 'task')}, also those that were delivered before?"


def _replay(ledger: Ledger, good: Sequence[_Look], ask: _Asked) -> list[Replayed]:
    done: list[Replayed] = []
    for part in chunks([look.stored.id for look in good]):
        done += ledger.admin.replay(part, utc_now(), failed_too=ask.failed_too, new_keys=ask.new_keys)
    return [replace(one, refusal=printable(one.refusal)) if one.refusal else one for one in done]


def _refused(look: _Look) -> Replayed:
    return Replayed(event_id=look.stored.id, refusal=look.refusal)


def _summary(looks: Sequence[_Look]) -> list[str]:
    """Return what replaying would come to, in numbers."""
    good = [look for look in looks if look.refusal is None]
    new = [task for look in good for task in look.new]
    exist = sum(len(look.tasks) for look in good) - len(new)
    again = sum(len(look.again) for look in good)
    never_complete = f", {again} of them never complete, to be planned again" if again else ""
    refused = len(looks) - len(good)
    return [
        f"{counted(len(good), 'event')} to replay: {counted(len(new), 'task')} would be made, {exist} exist{never_complete}",
        *([f"{counted(refused, 'event')} refused"] if refused else []),
    ]


def _tell_dry(looks: Sequence[_Look], *, json_wanted: bool) -> None:
    if json_wanted:
        click.echo(document({"dry_run": True, "events": [look.document() for look in looks]}))
        return
    for look in looks[:SHOWN]:
        click.echo("\n".join(printable(line) for line in look.lines()))
    if len(looks) > SHOWN:
        click.echo(f"and {counted(len(looks) - SHOWN, 'more event')}")
    click.echo("\n".join([*_summary(looks), "nothing was changed"]))


def _tell_end(done: Sequence[Replayed], *, selected: bool, json_wanted: bool) -> None:
    """Tell what became of each; a refusal of an event that was named is a fault, one of a selection leaves it out."""
    refusals = [one.refusal for one in done if one.refusal]
    again = [one for one in done if one.again_as]
    if json_wanted:
        events = [{"id": one.event_id, "again_as": one.again_as, "refused": one.refusal} for one in done]
        click.echo(document({"dry_run": False, "replayed": len(again), "events": events}))
    else:
        for line in some(_line(one) for one in again):
            click.echo(line)
        for line in some(refusals):
            click.echo(line, err=True)
        click.echo(f"{counted(len(again), 'event')} replayed; next: leadwire explain ID", err=True)
    if refusals and not selected:
        raise Problem(f"{counted(len(refusals), 'event')} of {len(done)} cannot be replayed")


def _line(one: Replayed) -> str:
    as_another = f" made anew as {one.again_as}," if one.again_as != one.event_id else ""
    return f"{one.event_id} {as_another} is decided again within seconds".replace("  ", " ")


commands = (replay,)

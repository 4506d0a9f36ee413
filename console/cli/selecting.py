"""How commands are told which tasks or events they are about: by ids, or by a selection in the same few words everywhere.

A moment is ISO 8601 (without an offset: UTC), or a span such as `2h`, which is that long ago. A selection is counted and
shown before anything happens, and a person agrees to it, or said `--yes`.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, TypeVar

import click

from console.cli.words import counted, printable, table
from rules.times import is_span, parse_span, read_instant
from rules.vocabulary import Problem, ProviderName, TaskType
from worker.context import utc_now
from worker.ledger import StoredTask, TaskSelection

#: Groups and refusals that are shown one by one; `--json` has all of them.
SHOWN: Final = 20
#: Reasons that begin with the same so many characters are counted together.
REASON_BEGINS: Final = 60
#: Rows changed in one transaction: few transactions, and none that holds up the workers.
CHUNK: Final = 500

#: A moment within a reason: what differs in it alone has the same reason.
_MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z")

Command = TypeVar("Command", bound=Callable[..., Any])
Item = TypeVar("Item")


class Past(click.ParamType[datetime]):
    """A moment, or a span: that long ago."""

    name = "moment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Return the moment in UTC."""
        if isinstance(value, datetime):
            return value
        try:
            return utc_now() - parse_span(value) if is_span(value) else read_instant(value)
        except (ValueError, OverflowError) as error:
            self.fail(f"{error}, or a span such as 2h", param, ctx)


def between(what: str) -> Callable[[Command], Command]:
    """Give a command the options `--since` and `--until`, bounds of the moment that `what` says."""

    def given(command: Command) -> Command:
        until = click.option(
            "--until", "until_at", type=Past(), metavar="MOMENT", help=f"Only what {what} before then."
        )
        since = click.option(
            "--since",
            "since_at",
            type=Past(),
            metavar="MOMENT",
            help=f"Only what {what} since then: ISO 8601, or a span such as 2h for two hours ago.",
        )
        return since(until(command))

    return given


def selecting_tasks(what: str) -> Callable[[Command], Command]:
    """Give a command the options that select tasks; `what` says which of their moments counts."""

    def given(command: Command) -> Command:
        of_type = click.option("--type", type=click.Choice([str(one) for one in TaskType]), help="Only this type.")
        of_provider = click.option(
            "--provider", type=click.Choice([str(one) for one in ProviderName]), help="Only tasks of this provider."
        )
        of_rule = click.option("--rule", metavar="ID", help="Only tasks of this rule.")
        return of_rule(of_provider(of_type(between(what)(command))))

    return given


def with_care(command: Command) -> Command:
    """Give a command the options `--dry-run` and `--yes`."""
    agreed = click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
    dry = click.option("--dry-run", is_flag=True, help="Show what it would be about, and change nothing.")
    return dry(agreed(command))


def one_way(ids: Sequence[str], given: Iterable[object], noun: str) -> bool:
    """Return whether a selection was made; naming ids as well, or nothing at all, is a wrong use."""
    selected = any(one is not None for one in given)
    if bool(ids) == selected:
        raise click.UsageError(
            f"name {noun}s by their ids, or select them (--since 2h and the like, see --help): not both, not neither"
        )
    return selected


def agree(question: str, *, yes: bool) -> None:
    """Have a person agree; raises Problem when they do not, and where nobody can be asked."""
    if yes:
        return
    try:
        agreed = click.confirm(question, err=True)
    except click.Abort:
        if sys.stdin.isatty():
            raise
        raise Problem("nothing was changed: there is nobody to ask; --yes agrees beforehand") from None
    if not agreed:
        raise Problem("nothing was changed")


@dataclass(frozen=True, slots=True)
class Found:
    """What a selection of tasks came to: how many, in groups by state, rule, provider and reason, and who is left out."""

    ids: list[str] = field(default_factory=list)
    groups: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    refusals: list[str] = field(default_factory=list)

    @property
    def ordered(self) -> list[tuple[tuple[str, str, str, str], int]]:
        """The groups, the largest first."""
        return sorted(self.groups.items(), key=lambda item: (-item[1], item[0]))

    def document(self) -> dict[str, Any]:
        """Return it as `--json` prints it."""
        names = ("state", "rule", "provider", "reason")
        return {
            "selected": len(self.ids),
            "groups": [{**dict(zip(names, group, strict=True)), "tasks": number} for group, number in self.ordered],
            "refused": self.refusals,
        }

    def text(self) -> str:
        """Return it for a person."""
        head = ("tasks", "state", "rule", "provider", "reason")
        lines = []
        if self.groups:
            lines = [table(head, [(str(number), *group) for group, number in self.ordered[:SHOWN]])]
        if len(self.groups) > SHOWN:
            lines.append(f"and {counted(len(self.groups) - SHOWN, 'more group')}")
        lines += some(f"left out: {refusal}" for refusal in self.refusals)
        return "\n".join([*lines, f"{counted(len(self.ids), 'task')} selected"])


def look(tasks: Iterable[StoredTask], refusal_of: Callable[[StoredTask], str | None]) -> Found:
    """Read a selection through and sort it."""
    found = Found()
    for task in tasks:
        refusal = refusal_of(task)
        if refusal:
            found.refusals.append(printable(refusal))
            continue
        found.ids.append(task.id)
        reason = _MOMENT.sub("...", task.reason or "-")
        begins = reason if len(reason) <= REASON_BEGINS else f"{reason[:REASON_BEGINS]}…"
        found.groups[str(task.state), task.rule, str(task.provider), begins] += 1
    return found


def selection(states: tuple[Any, ...], chosen: dict[str, Any], *, planned: bool = False) -> TaskSelection:
    """Return the selection that the options of `selecting_tasks` say; `planned` bounds when tasks were planned."""
    return TaskSelection(
        states=states,
        rule=chosen["rule"],
        provider=ProviderName(chosen["provider"]) if chosen["provider"] else None,
        type=TaskType(chosen["type"]) if chosen["type"] else None,
        since_at=chosen["since_at"],
        until_at=chosen["until_at"],
        by="created_at" if planned else "updated_at",
    )


def some(lines: Iterable[str]) -> list[str]:
    """Return the first of many lines, and how many more there are."""
    every = list(lines)
    more = len(every) - SHOWN
    return [*every[:SHOWN], f"and {more} more"] if more > 0 else every


def chunks(items: Sequence[Item]) -> Iterable[Sequence[Item]]:
    """Return items in parts, each for one transaction."""
    return (items[start : start + CHUNK] for start in range(0, len(items), CHUNK))

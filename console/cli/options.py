"""What commands share: the settings and ledger they start from, the types of options, and how tasks and events are selected.

A command is told which tasks or events it is about by their ids, or by a selection in the same options everywhere. A
selection is counted and shown before anything happens, and a person agrees to it, or said `--yes`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from console.cli.output import TABLE_LIMIT
from rules.times import is_span, parse_span, read_instant
from rules.vocabulary import Problem, ProviderName, TaskType
from worker.clock import utc_now
from worker.ledger import Ledger, open_ledger
from worker.settings import Settings, environment_of

SQLITE_FILE: Final = "sqlite:///"
#: Rows changed in one transaction: few transactions, and none that holds up the workers.
CHUNK_ROWS: Final = 500

Item = TypeVar("Item")
Command = TypeVar("Command", bound=Callable[..., Any])
Member = TypeVar("Member", bound=StrEnum)
Value = TypeVar("Value")


class NoLedgerError(Problem):
    """There is no ledger where the settings say; the message says what to do."""


def settings_in_force() -> Settings:
    """Return the settings from the environment and the working folder's `.env`. Raises SettingsError."""
    return Settings.from_environment(environment_of(Path.cwd()))


@contextmanager
def existing_ledger(settings: Settings | None = None) -> Iterator[Ledger]:
    """Open the ledger of these settings (by default those in force) and close it at the end of the block.

    Never creates one, so that a wrong LEADWIRE_HOME does not look like an empty ledger. Raises NoLedgerError when there is
    none.
    """
    url = (settings or settings_in_force()).database_url
    if url.startswith(SQLITE_FILE) and not Path(url.removeprefix(SQLITE_FILE).partition("?")[0]).exists():
        raise NoLedgerError(
            f"no ledger at {url.removeprefix(SQLITE_FILE)} yet: start `leadwire up`, "
            "or set LEADWIRE_HOME to the data folder of the one that runs"
        )
    ledger = open_ledger(url)
    try:
        yield ledger
    finally:
        ledger.close()


@contextmanager
def ledger_to_list() -> Iterator[Ledger | None]:
    """Open the ledger for a listing; without one, print a note on standard error and yield None, for an empty listing."""
    with ExitStack() as stack:
        ledger = None
        try:
            ledger = stack.enter_context(existing_ledger())
        except NoLedgerError as error:
            click.echo(str(error), err=True)
        yield ledger


# Types of options


class OneOf(click.Choice[Member]):
    """A choice among members of a StrEnum, by their values; gives the member."""

    def normalize_choice(self, choice: object, ctx: click.Context | None) -> str:
        """Return the word for a member, which click would name by its Python name."""
        del ctx
        return str(choice)


class Parsed(click.ParamType[Value]):
    """A value that a function reads from text; its ValueError is the message."""

    def __init__(self, name: str, parse: Callable[[str], Value]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Value:
        """Return the value."""
        try:
            return self._parse(value) if isinstance(value, str) else value
        except (ValueError, OverflowError) as error:
            self.fail(str(error), param, ctx)


def _future(text: str) -> datetime:
    if is_span(text):
        raise ValueError(f"{text} is a span: say --for {text}")
    return read_instant(text)


def _past(text: str) -> datetime:
    try:
        return utc_now() - parse_span(text) if is_span(text) else read_instant(text)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{error}, or a span such as 2h") from error


#: A span such as 2h.
SPAN: Final[click.ParamType[timedelta]] = Parsed("span", parse_span)
#: A moment in ISO 8601; without an offset it is UTC.
MOMENT: Final[click.ParamType[datetime]] = Parsed("moment", _future)
#: Likewise, or a span: that long ago.
PAST: Final[click.ParamType[datetime]] = Parsed("moment", _past)

# Options that several commands have

json_option = click.option("--json", "json_wanted", is_flag=True, help="Print one JSON document and nothing else.")
limit_option = click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"Only the newest N; without it a table shows {TABLE_LIMIT}, and --json everything.",
)


def one_of(option: str, members: Iterable[StrEnum], text: str) -> Callable[[Command], Command]:
    """Give a command an option that takes one of these members of a StrEnum."""
    return click.option(option, type=OneOf(members), help=text)


def between(what: str) -> Callable[[Command], Command]:
    """Give a command `--since` and `--until`, the bounds `since_at` and `until_at` of the moment that `what` names."""
    since = f"Only what {what} since then: ISO 8601, or a span such as 2h for two hours ago."
    return _all_of(
        click.option("--since", "since_at", type=PAST, metavar="MOMENT", help=since),
        click.option("--until", "until_at", type=PAST, metavar="MOMENT", help=f"Only what {what} before then."),
    )


def task_selection(what: str) -> Callable[[Command], Command]:
    """Give a command the options that select tasks, named as the fields of TaskSelection; `what` names the moment that counts."""
    return _all_of(
        click.option("--rule", metavar="ID", help="Only tasks of this rule."),
        one_of("--provider", ProviderName, "Only tasks of this provider."),
        one_of("--type", TaskType, "Only this type."),
        between(what),
    )


def confirmation(command: Command) -> Command:
    """Give a command `--dry-run` and `--yes`."""
    return _all_of(
        click.option("--dry-run", is_flag=True, help="Show what it would be about, and change nothing."),
        click.option("--yes", is_flag=True, help="Do not ask for confirmation."),
    )(command)


def _all_of(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def given(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return given


# Selections


def is_selection(ids: Sequence[str], options: Iterable[object], noun: str) -> bool:
    """Return whether a selection was made; naming ids as well, or nothing at all, is a wrong use."""
    selected = any(one is not None for one in options)
    if bool(ids) == selected:
        raise click.UsageError(
            f"name {noun}s by their ids, or select them (--since 2h and the like, see --help): not both, not neither"
        )
    return selected


def confirm(question: str, *, yes: bool) -> None:
    """Ask the operator to confirm. Raises Problem when they decline, and when there is no terminal."""
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


def chunks(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """Yield items in parts, each for one transaction."""
    for start in range(0, len(items), CHUNK_ROWS):
        yield items[start : start + CHUNK_ROWS]

"""How commands print: words and tables for a person, and the JSON documents that `--json` promises.

Text from outside is printed without control characters, so that no payload can steer the terminal. In text for a person,
values are written as JSON, so that the text "1" and the number 1 look different. Keys of JSON documents are only ever added.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import datetime
from enum import StrEnum
from itertools import islice, zip_longest
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from rules.conditions import explain
from rules.vocabulary import Contact, Decision, DecisionOutcome, FailedTest, Json, Task, TaskState, instant

if TYPE_CHECKING:  # `up` starts without it
    from worker.ledger import AttemptRow, StoredEvent, StoredTask

#: Width of a table.
SCREEN_COLUMNS: Final = 100
#: Between two columns of a table.
GAP: Final = "  "
#: A column is never cut below this width.
NARROWEST_COLUMN: Final = 6
#: A value in an explanation is cut here; `--json` has all of it.
VALUE_LIMIT: Final = 300
#: Rows of a table when no `--limit` is given; also how many lines of a summary are shown one by one.
TABLE_LIMIT: Final = 20

Row = TypeVar("Row")
Document = dict[str, Json]

#: What a state means for a person, and what can be done.
STATE_WORDS: Mapping[TaskState, str] = {
    TaskState.PLANNED: "planned, goes out when due",
    TaskState.QUEUED: "on its way to a worker",
    TaskState.SENDING: "being sent",
    TaskState.DELIVERED: "delivered",
    TaskState.WAITING: "waiting for its next try",
    TaskState.UNKNOWN: "unknown: the provider may have it; it is looked up there, and else yours to decide: `leadwire settle ID`",
    TaskState.DEAD: "dead; once the cause is mended: `leadwire retry ID`",
    TaskState.CANCELLED: "cancelled",
    TaskState.SUPPRESSED: "suppressed",
}

# Words


def printable(text: str) -> str:
    """Return text that cannot move the cursor or colour the screen: whatever is unprintable becomes its escape."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def shortened(text: str) -> str:
    """Return text as messages repeat it: printable, and cut at 300 characters."""
    shown = printable(text)
    return shown if len(shown) <= VALUE_LIMIT else f"{shown[: VALUE_LIMIT - 1]}…"


def printable_lines(lines: Iterable[str]) -> str:
    """Return lines as one printable text."""
    return "\n".join(printable(line) for line in lines)


def as_json(value: Json) -> str:
    """Return a value as one line of JSON for a person: letters as they are, cut at 300 characters."""
    return shortened(json.dumps(value, ensure_ascii=False, default=str))


def counted(number: int, singular: str) -> str:
    """Return `1 task`, `2 tasks`."""
    return f"{number} {singular if number == 1 else singular + 's'}"


def first_lines(lines: Sequence[str]) -> list[str]:
    """Return the first 20 lines, and how many more there are."""
    more = len(lines) - TABLE_LIMIT
    return [*lines[:TABLE_LIMIT], f"and {more} more"] if more > 0 else list(lines)


def at_second(moment: datetime) -> str:
    """Return a moment for a table: `03-02 13:00:00`, in UTC."""
    return instant(moment)[5:19].replace("T", " ")


def person(contact: Contact) -> str:
    """Return who a contact is: the name and how it is reached, as far as known; a dash for nobody."""
    parts = [part for part in (contact.name, contact.phone or contact.email or contact.id) if part]
    return " ".join(parts) or "-"


def short_name(contact: Contact) -> str:
    """Return the one word for a contact in a table: its name, else how it is reached; a dash for nobody."""
    return contact.name or contact.phone or contact.email or contact.id or "-"


def decision_lines(decision: Decision) -> list[str]:
    """Return a decision in words; for a rule that did not match, which test failed, the value seen and the value wanted."""
    rule, failed = decision.rule, decision.failed
    if decision.outcome is DecisionOutcome.MATCHED:
        return [f"rule {rule}: matched, {counted(len(decision.tasks), 'task')}   [{decision.place}]"]
    lines = [f"rule {rule}: left alone   [{decision.place}]"]
    if decision.outcome is DecisionOutcome.STOPPED or failed is None:
        return [*lines, f"    why           {decision.reason}"]
    if failed.operator == "any":
        lines.append(f"    failing test  any: one of these had to hold, and none did   [{failed.place}]")
        return lines + [f"      - {explain(FailedTest(**one))}" for one in failed.seen]
    wanted = f"{failed.operator} {as_json(failed.wanted)}"
    return [
        *lines,
        f"    failing test  {failed.path} {wanted}   [{failed.place}]",
        f"    value seen    {'missing (absent or null)' if failed.missing else as_json(failed.seen)}",
        f"    value wanted  {wanted}",
    ]


# Tables


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    whole: int = 1,
    remarks: Sequence[str] = (),
) -> str:
    """Return rows in columns under a head, at most 100 characters wide: the widest cells are cut, with an ellipsis.

    The first `whole` columns are never cut, because their cells are to be copied. `remarks` has one text for each row,
    which stands below it where it is not empty.
    """
    cells = [[printable(cell) for cell in row] for row in (head, *rows)]
    widths = _fitted([max(_width(row[at]) for row in cells) for at in range(len(head))], whole)
    lines = [GAP.join(_cell(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    shown = [lines[0], GAP.join("-" * width for width in widths)]
    for line, remark in zip_longest(lines[1:], remarks, fillvalue=""):
        shown += [line, f"  {_cell(printable(remark), SCREEN_COLUMNS - 2).rstrip()}"] if remark else [line]
    return "\n".join(shown)


def _fitted(widths: list[int], whole: int) -> list[int]:
    room = SCREEN_COLUMNS - len(GAP) * (len(widths) - 1)
    while sum(widths) > room and max(widths[whole:]) > NARROWEST_COLUMN:
        widest = max(range(whole, len(widths)), key=widths.__getitem__)
        widths[widest] -= 1
    return widths


def _cell(text: str, width: int) -> str:
    if _width(text) > width:
        while _width(text) > width - 1:
            text = text[:-1]
        text += "…"
    return text + " " * (width - _width(text))


def _width(text: str) -> int:
    """Return how many columns a text takes: letters of East Asian scripts take two, combining marks none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text
    )


def print_listing(
    rows: Iterable[Row],
    columns: Mapping[str, Callable[[Row], str]],
    document: Callable[[Row], Document],
    *,
    noun: str,
    next_step: str,
    limit: int | None,
    json_wanted: bool,
) -> None:
    """Print rows that were read from the ledger: as a JSON array of all of them, or as a table of the newest.

    `columns` gives each column's cell under its heading; the first three are never cut. What is no data goes to standard error.
    """
    if json_wanted:
        _print_array(document(row) for row in rows)
        return
    wanted = limit or TABLE_LIMIT
    found = list(islice(rows, wanted + 1))
    shown = found[:wanted]
    if not shown:
        click.echo(f"no {noun}s", err=True)
        return
    cells = [[cell(row) for cell in columns.values()] for row in shown]
    click.echo(table(list(columns), cells, whole=3, remarks=[getattr(row, "reason", None) or "" for row in shown]))
    cut = limit is None and len(found) > len(shown)
    newest = f"the newest {len(shown)}; --limit N shows more" if cut else counted(len(shown), noun)
    click.echo(f"{newest}; next: {next_step}", err=True)


# JSON


def to_json(value: Json) -> str:
    """Return the one JSON document that a command with `--json` prints: plain ASCII, whatever the terminal."""
    return json.dumps(value, indent=2)


def print_json(value: Json) -> None:
    """Print the one JSON document of a command with `--json`."""
    click.echo(to_json(value))


def _print_array(documents: Iterable[Document]) -> None:
    """Print one JSON array, item by item: a large ledger is never held in memory."""
    separator = "\n"
    click.echo("[", nl=False)
    for one in documents:
        click.echo(f"{separator}  {json.dumps(one)}", nl=False)
        separator = ",\n"
    click.echo("\n]")


def as_plain(value: Any) -> Json:
    """Return a value as JSON has it: records as objects, moments as ISO 8601 UTC with `Z`, enumerations as their word."""
    if isinstance(value, datetime):
        return instant(value)
    if isinstance(value, StrEnum):
        return str(value)
    if is_dataclass(value):
        return {part.name: as_plain(getattr(value, part.name)) for part in fields(value)}
    if isinstance(value, Mapping):
        return {name: as_plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_plain(one) for one in value]
    return value


def _picked(record: object, keys: str) -> Document:
    return {key: as_plain(getattr(record, key)) for key in keys.split()}


_EVENT_KEYS: Final = "id source type occurred_at received_at subject contact"
_TASK_KEYS: Final = (
    "id event_id rule name type provider state due_at attempts external_id reason key contact created_at updated_at "
    "expires_at note rule_set parent outcome"
)
_PLANNED_KEYS: Final = "id rule name type provider state due_at expires_at reason note fields reactions"
_ATTEMPT_KEYS: Final = "epoch number started_at ended_at verdict status error external_id deferred"


def decision_document(decision: Decision) -> Document:
    """Return what a rule decided; `failed` is null unless a test failed."""
    return _picked(decision, "rule outcome reason failed tasks place")


def event_document(stored: StoredEvent) -> Document:
    """Return an event as `events --json` lists it."""
    return {**_picked(stored.event, _EVENT_KEYS), **_picked(stored, "state decisions reason rule_set tries")}


def event_details(stored: StoredEvent, tasks: Iterable[StoredTask]) -> Document:
    """Return an event as `show --json` prints it: also what its rules see, how it came in, and its tasks."""
    return {
        **event_document(stored),
        **_picked(stored.event, "changed attempt data"),
        **_picked(stored, "delivery_id dedupe_key content_hash headers"),
        "tasks": [task_document(task) for task in tasks],
    }


def task_document(task: StoredTask) -> Document:
    """Return a task as `tasks --json` lists it."""
    return _picked(task, _TASK_KEYS)


def task_details(task: StoredTask, attempts: Iterable[AttemptRow], follow_ups: Iterable[StoredTask]) -> Document:
    """Return a task as `show --json` prints it: also what its provider is told, every attempt, and what followed on its end."""
    return {
        **task_document(task),
        **_picked(task, "fields if_unsure epoch first_attempt_at lease_until_at reactions"),
        "follow_ups": [task_document(one) for one in follow_ups],
        "attempt_history": [_picked(attempt, _ATTEMPT_KEYS) for attempt in attempts],
    }


def planned_task_document(task: Task) -> Document:
    """Return a task that would be made, as `explain FILE --json` prints it."""
    return _picked(task, _PLANNED_KEYS)

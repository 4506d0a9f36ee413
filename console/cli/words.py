"""How things are put into words and tables for a person at a terminal.

Whatever came from outside is printed without control characters, so that no payload can steer the terminal; values are
written as JSON, so that the text "1" and the number 1 look different.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import zip_longest
from typing import Final

from rules.conditions import explain
from rules.vocabulary import Contact, Decision, DecisionOutcome, FailedTest, Json, instant

#: What a table may take of the screen.
SCREEN_COLUMNS: Final = 100
#: Between two columns of a table.
GAP: Final = "  "
#: A column is never cut below this.
NARROWEST_COLUMN: Final = 6
#: A value in an explanation is cut here; `--json` has all of it.
VALUE_LIMIT: Final = 300


def printable(text: str) -> str:
    """Return text that cannot move the cursor or colour the screen: anything unprintable becomes its escape."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def shortened(text: str) -> str:
    """Return what was typed on the command line as messages repeat it: printable, and cut at 300 characters."""
    shown = printable(text)
    return shown if len(shown) <= VALUE_LIMIT else f"{shown[: VALUE_LIMIT - 1]}…"


def as_json(value: Json) -> str:
    """Return a value as one line of JSON for a person: letters as they are, cut at 300 characters."""
    return shortened(json.dumps(value, ensure_ascii=False, default=str))


def document(value: Json) -> str:
    """Return the one JSON document that a command with `--json` prints: plain ASCII, whatever the terminal."""
    return json.dumps(value, indent=2)


def counted(number: int, singular: str, plural: str | None = None) -> str:
    """Return `1 task`, `2 tasks`."""
    return f"{number} {singular if number == 1 else plural or singular + 's'}"


def at_second(moment: datetime) -> str:
    """Return a moment for a table: `03-02 13:00:00`, in UTC."""
    return instant(moment)[5:19].replace("T", " ")


def person(contact: Contact) -> str:
    """Return who a contact is: the name and how it is reached, as far as known; a dash for nobody."""
    parts = [part for part in (contact.name, contact.phone or contact.email or contact.id) if part]
    return " ".join(parts) or "-"


def decision_lines(decision: Decision) -> list[str]:
    """Return a decision in words: what it came to, and for a rule that did not match which test failed on what."""
    rule, failed = decision.rule, decision.failed
    if decision.outcome is DecisionOutcome.MATCHED:
        return [f"rule {rule}: matched, {counted(len(decision.tasks), 'task')}   [{decision.place}]"]
    if decision.outcome is DecisionOutcome.STOPPED or failed is None:
        return [f"rule {rule}: left alone   [{decision.place}]", f"    why           {decision.reason}"]
    return [f"rule {rule}: left alone   [{decision.place}]", *_failed_lines(failed)]


def _failed_lines(failed: FailedTest) -> list[str]:
    if failed.operator == "any":
        inner = [f"      - {explain(FailedTest(**one))}" for one in failed.seen]
        return [f"    failing test  any: one of these had to hold, and none did   [{failed.place}]", *inner]
    wanted = f"{failed.operator} {as_json(failed.wanted)}"
    return [
        f"    failing test  {failed.path} {wanted}   [{failed.place}]",
        f"    value seen    {'missing (absent or null)' if failed.missing else as_json(failed.seen)}",
        f"    value wanted  {wanted}",
    ]


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    whole: int = 1,
    remarks: Sequence[str] = (),
    columns: int = SCREEN_COLUMNS,
) -> str:
    """Return rows in columns under a head, at most `columns` wide: the widest cells are cut, with an ellipsis.

    The first `whole` columns are never cut, because their cells are to be copied. `remarks` has one text for each row,
    which stands below it where it is not empty.
    """
    cells = [[printable(cell) for cell in row] for row in (head, *rows)]
    widths = _fitted([max(_width(row[at]) for row in cells) for at in range(len(head))], whole, columns)
    lines = [GAP.join(_cell(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    shown = [lines[0], GAP.join("-" * width for width in widths)]
    for line, remark in zip_longest(lines[1:], remarks, fillvalue=""):
        shown += [line, f"  {_cell(printable(remark), columns - 2).rstrip()}"] if remark else [line]
    return "\n".join(shown)


def _fitted(widths: list[int], whole: int, columns: int) -> list[int]:
    room = columns - len(GAP) * (len(widths) - 1)
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

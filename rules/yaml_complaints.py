"""What a YAML syntax error is called in plain English, and where it is best pointed at.

The parser (libyaml) says what it expected in its own terms, often far behind the cause: an open quote is reported at the end
of the file. Here each of its complaints becomes the likely mistake and its remedy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import yaml

#: libyaml's problem -> what to say, for those that need nothing from the text.
_PLAIN: Final[Mapping[str, str]] = {
    "mapping values are not allowed in this context": (
        "a `:` does not belong here: put the value that holds it in quotes, or check the indentation"
    ),
    "block sequence entries are not allowed in this context": (
        "a list item cannot begin here: put `-` on a line of its own below the key"
    ),
    "did not find expected '-' indicator": ("a list item beginning with `-` is expected here: check the indentation"),
    "did not find expected node content": "a value is expected here: if this is text, quote it",
    "found unknown escape character": (
        "unknown escape after `\\`: in double quotes write `\\\\` for a backslash, or use single quotes"
    ),
    "did not find expected hexdecimal number": "an escape in double quotes lacks its hexadecimal digits",
    "found a tab character where an indentation space is expected": "a tab cannot indent: use spaces",
    "found a tab character that violates indentation": "a tab cannot indent: use spaces",
    "did not find expected comment or line break": "nothing may follow `|` or `>` on its line: begin on the next one",
    "found incompatible YAML document": "this YAML version is not supported: remove the `%YAML` line",
    "found unknown directive name": "a line beginning with `%` is a YAML directive: remove it, or quote it if it is text",
    "could not find expected ':'": "a `:` is missing after this key",
    "found undefined tag handle": "tags are not supported: quote it if it is text",
}

#: Something follows a value inside `[ ]` or `{ }` that cannot.
_UNSEPARATED: Final = frozenset({"did not find expected ',' or ']'", "did not find expected ',' or '}'"})
_WORD_LIMIT: Final = 100
_WORD_BEFORE: Final = re.compile(r"[^\s{}\[\],]{1,200}\Z")


def complaint_about(error: yaml.MarkedYAMLError, text: str) -> tuple[str, int, int]:
    """Return what is wrong with the text, and the line and column (counted from 0) where to look."""
    problem = error.problem or "unreadable"
    place = error.problem_mark or error.context_mark
    line, column, index = (place.line, place.column, place.index) if place else (0, 0, 0)
    begun = error.context_mark or place
    context = error.context or ""
    if problem == "found unexpected end of stream" or (problem == "found unexpected document indicator" and begun):
        return ("this quote is never closed", begun.line, begun.column) if begun else ("unexpected end", line, column)
    if text[index : index + 1] == "{" and problem.startswith("did not find expected ','"):
        return _brace_inside(text[max(index - 1, 0) : index + 2]), line, column
    if problem in _UNSEPARATED and text[index : index + 1] == "[" and (found := _WORD_BEFORE.search(text[:index])):
        return _brackets_inside(text[found.start() :]), line, column - len(found.group())
    if problem in _UNSEPARATED and begun:
        bracket = "[" if problem.endswith("']'") else "{"
        what = f"this `{bracket}` is not closed, or a `,` is missing before line {line + 1}, column {column + 1}"
        return what, begun.line, begun.column
    if problem == "did not find expected alphabetic or numeric character" and begun:
        return _sign(context), begun.line, begun.column
    if problem == "did not find expected node content" and not text[index:].strip():
        message = "the file ends inside a `[` or `{` that is never closed"
    elif problem == "found character that cannot start any token":
        message = _bad_start(text[index : index + 1], text[max(index - 1, 0) : index])
    elif problem == "did not find expected key":
        since = f" of the mapping that begins in line {begun.line + 1}" if begun else ""
        message = f"this is no key{since}: check the indentation, and the quotes just before it"
    else:
        message = _PLAIN.get(problem, f"cannot be read as YAML: {problem}")
    return message, line, column


def _sign(context: str) -> str:
    sign = "*" if "alias" in context else "&" if "anchor" in context else "!"
    return f'YAML gives `{sign}` a meaning of its own: quote it if it is text, as in "{sign}"'


def _brace_inside(around: str) -> str:
    if around.startswith("$"):
        return 'inside [ ] or { } a text with a variable needs quotes, as in "${NAME}": quote it'
    if around.endswith("{{"):
        return "YAML reads `{{` as a mapping: quote it, the whole text"
    return "a `,` is missing before this `{`, or the text it stands in needs quotes"


def _brackets_inside(text: str) -> str:
    """Say that a text such as `data.list[1].x` needs quotes; `text` begins with it."""
    found = re.match(r"[^\s{},:]+", text)
    word = found.group() if found else ""
    return f'inside {{ }} or [ ] a path with brackets must be quoted, as in "{word[:_WORD_LIMIT]}"'


def _bad_start(character: str, before: str) -> str:
    if character == "\t":
        return "a tab cannot stand here: indent with spaces"
    if before == "{" and character in {"%", "#"}:
        return f"YAML reads `{{{character}` as a mapping: quote it, the whole text"
    return f"a value cannot begin with `{character}`: quote it if it is text"

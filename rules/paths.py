"""How a rule names a field of an event, and what is found there.

`data.deep.list[1].x` and `data.deep.list.1.x` are the same field. A key with dots, brackets or quotes in it is written
`data["odd.key"]`. A path through something that has no fields, or past the end of a list, finds nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from enum import Enum
from typing import Final

from rules.messages import as_json, nearest
from rules.vocabulary import Contact, Json

#: A key, or for digits an index of a list (and the key of those digits in a mapping).
Step = str | int
Steps = tuple[Step, ...]


class Missing(Enum):
    """The type of MISSING."""

    MISSING = "missing"


#: What `find` returns where there is nothing.
MISSING: Final = Missing.MISSING

#: The names a path can begin with, as `Event.view()` and `now` give them.
ROOTS: Final = (
    "id",
    "source",
    "type",
    "occurred_at",
    "received_at",
    "subject",
    "contact",
    "changed",
    "attempt",
    "data",
    "now",
)

#: The fields below a root that has a closed set of them.
KNOWN: Final[Mapping[str, tuple[str, ...]]] = {
    "contact": tuple(field.name for field in fields(Contact)),
    "subject": ("kind", "id"),
}

#: The roots that are there in every event and have nothing below them.
ALWAYS: Final = frozenset({"id", "source", "type", "occurred_at", "received_at", "now"})
_SCALARS: Final = ALWAYS | {"attempt"}
_OPEN: Final = frozenset({"consent"})

#: What tasks that answer another's end can name beside the event, and what lies below it.
Beside = Mapping[str, tuple[str, ...]]
BESIDE: Final[Beside] = {"failure": ("reason", "status", "title", "task"), "outcome": ()}
#: Of these, what need not be there: no answer, no status.
OPTIONAL_BESIDE: Final = frozenset({("failure", "status")})
_WHERE_BESIDE: Final = {"failure": "on_failure and on_outcome", "outcome": "on_outcome"}

_LENGTH_LIMIT: Final = 500
_INDEX: Final = re.compile(r"0|[1-9][0-9]{0,8}", re.ASCII)
_NEGATIVE: Final = re.compile(r"-[0-9]+", re.ASCII)
_PLAIN_KEY: Final = re.compile(r"\w[\w-]*")
_STEP: Final = re.compile(
    r"""\["(?P<double>[^"]+)"\] | \['(?P<single>[^']+)'\]
      | \[(?P<index>[^\[\]"']*)\] | (?P<dot>\.?)(?P<key>[^.\[\]]+)""",
    re.VERBOSE,
)


def parse(text: str) -> Steps:
    """Read a path; ValueError says what is wrong with it and what was probably meant."""
    steps = split(text)
    complaint = complain(steps, text)
    if complaint:
        raise ValueError(complaint)
    return steps


def split(text: str) -> Steps:
    """Read the form of a path without asking whether an event can have such a field; ValueError otherwise."""
    if not text or len(text) > _LENGTH_LIMIT:
        raise ValueError(f"{as_json(text)} is no path: write up to {_LENGTH_LIMIT} characters such as data.value")
    steps: list[Step] = []
    place = 0
    while place < len(text):
        found = _STEP.match(text, place)
        if found is None or (found["key"] is not None and bool(found["dot"]) != bool(place)):
            raise ValueError(
                f'{as_json(text)} is no path at "{text[place:][:20]}": write data.list[1].x or data["odd.key"]'
            )
        steps.append(_step(found, text))
        place = found.end()
    return tuple(steps)


def _step(found: re.Match[str], text: str) -> Step:
    quoted = found["double"] or found["single"]
    if quoted:
        return quoted
    index, key = found["index"], found["key"]
    word: str = key if index is None else index
    if _NEGATIVE.fullmatch(word):
        raise ValueError(
            f'{as_json(text)}: {word} counts from the end, which paths do not; the first item is 0, a key is ["{word}"]'
        )
    if _INDEX.fullmatch(word):
        return int(word)
    if index is not None:
        raise ValueError(
            f'{as_json(text)}: [{word}] is no index; write [0], or a key in quotes such as ["{word or "key"}"]'
        )
    if word != word.strip():
        raise ValueError(f'{as_json(text)} has a space beside a dot; if it belongs to the key, write ["{word}"]')
    return word


def complain(steps: Steps, text: str, beside: Beside = {}) -> str | None:  # noqa: B006 - never changed
    """Return what is wrong with a path that no event can have, with the remedy; None when there may be such a field.

    `beside` are the roots that are there beside the event's.
    """
    root = str(steps[0])
    if root not in ROOTS and root not in beside:
        return _unknown_root(root, text)
    if len(steps) > 1 and (root in _SCALARS or beside.get(root) == ()):
        return f"{as_json(text)}: {root} is a single value, nothing lies below it"
    known = KNOWN.get(root) or beside.get(root)
    if not known or len(steps) == 1:
        return None
    name = str(steps[1])
    if name not in known:
        near = nearest(name, known)
        hint = f"did you mean {root}.{near}? " if near else ""
        has = f"it has {', '.join(known)}" + ("" if root in beside else "; other fields of the payload are below data")
        return f"{as_json(text)}: {root} has no {name}; {hint}{has}"
    if len(steps) > 2 and name not in _OPEN:  # noqa: PLR2004 - root, name and one more
        return f"{as_json(text)}: {root}.{name} is a single value, nothing lies below it"
    return None


def _unknown_root(root: str, text: str) -> str:
    if root in _WHERE_BESIDE:
        return f"{as_json(text)}: {root} is known to the tasks of {_WHERE_BESIDE[root]} only; did you mean data.{text}?"
    near = nearest(root, ROOTS)
    meant = f"did you mean {near}{text[len(root) :]} or data.{text}?" if near else f"did you mean data.{text}?"
    return f"{as_json(text)}: an event has no {root}; {meant} A path begins with one of {', '.join(ROOTS)}"


def spelled(steps: Steps) -> str:
    """Return a path in the one spelling that messages use: `data.list[1].x`, `data["odd.key"]`."""
    text = str(steps[0])
    for step in steps[1:]:
        if isinstance(step, int):
            text += f"[{step}]"
        elif _PLAIN_KEY.fullmatch(step) and not _INDEX.fullmatch(step):
            text += f".{step}"
        else:
            text += f"['{step}']" if '"' in step else f'["{step}"]'
    return text


def find(view: Json, steps: Steps) -> Json:
    """Return what lies at the path, or MISSING. A null is returned as None; tests count it as missing too."""
    value = view
    for step in steps:
        if isinstance(value, dict):
            value = value.get(step if isinstance(step, str) else str(step), MISSING)
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
        else:
            return MISSING
    return value


def getter(steps: Steps) -> Callable[[Mapping[str, Json]], Json]:
    """Return a function that finds the path in a view, with None for what is absent or null.

    The common depths are spelled out: they are most of what an evaluation costs.
    """
    root = str(steps[0])
    if len(steps) == 1:
        return lambda view: view.get(root)
    if len(steps) == 2 and isinstance(steps[1], str):  # noqa: PLR2004 - root and one key
        key = steps[1]

        def below(view: Mapping[str, Json]) -> Json:
            value = view.get(root)
            return value.get(key) if isinstance(value, dict) else None

        return below

    def deep(view: Mapping[str, Json]) -> Json:
        value = find(view, steps)
        return None if value is MISSING else value

    return deep

"""The operators of conditions: when a test holds, also on a missing or an odd field.

One decorated function is one operator: it takes what the rule wants, refuses what can never make sense (ValueError, with the
remedy), and returns the question that is asked of what the event has. Its docstring is what the schema says. A field that is
absent or null is never asked: there only `exists: false` holds. A field of a kind the operator does not know (a text to `gt`,
a number to `matches`) makes the test fail, never an error.
"""

from __future__ import annotations

import math
import operator as comparing
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import re2  # type: ignore[import-untyped]  # google-re2 ships no types

from rules.messages import as_json
from rules.times import parse_span, read_instant, read_moment
from rules.vocabulary import Json

#: Asks a compiled test of a value that is there; the second argument is the whole view, for its `now` and LOCAL.
Holds = Callable[[Json, Mapping[str, Json]], bool]

#: The name under which a view may hold how to read a local time of the contact's: naive moment -> aware UTC, ValueError
#: where there is none. No path can name it; without it local times are UTC.
LOCAL: Final = "_local"

_PATTERN_LIMIT: Final = 1_000

#: A number as JSON writes it, without an exponent.
_PLAIN_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?", re.ASCII)
_NUMBER_LENGTH_LIMIT: Final = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One operator of the condition language.

    `doc` is one sentence for authors. `compile` takes the wanted value and returns the test; it raises ValueError, with a
    message for the author, when the value makes no sense. `on_missing` is the result for a field that is absent or null.
    """

    name: str
    doc: str
    compile: Callable[[Json], Holds]
    on_missing: Callable[[Json], bool]


_TABLE: Final[dict[str, Operator]] = {}

#: Every operator by name, in the order of the documentation.
OPERATORS: Final[Mapping[str, Operator]] = _TABLE


def operator(
    name: str, *, on_missing: Callable[[Json], bool] = lambda _: False
) -> Callable[[Callable[[Json], Holds]], Callable[[Json], Holds]]:
    """Return a decorator that registers a function as an operator."""

    def enter(compile_: Callable[[Json], Holds]) -> Callable[[Json], Holds]:
        doc = (compile_.__doc__ or "").strip()
        _TABLE[name] = Operator(name=name, doc=doc, compile=compile_, on_missing=on_missing)
        return compile_

    return enter


def number(value: Json) -> int | float | None:
    """Return a number, or the number that a text spells; None for anything else."""
    kind = type(value)
    if kind is int or kind is float:
        return value  # type: ignore[no-any-return]
    if kind is not str or len(value) > _NUMBER_LENGTH_LIMIT or not _PLAIN_NUMBER.fullmatch(value):
        return None
    return float(value) if "." in value else int(value)


def equal(wanted: Json, seen: Json) -> bool:
    """Return whether two values are equal in type and value; 1 equals 1.0, but neither true nor "1"."""
    if isinstance(wanted, bool) or isinstance(seen, bool):
        return wanted is seen
    if isinstance(wanted, int | float):
        return isinstance(seen, int | float) and wanted == seen
    if isinstance(wanted, list):
        return isinstance(seen, list) and len(wanted) == len(seen) and all(map(equal, wanted, seen))
    if isinstance(wanted, dict):
        return (
            isinstance(seen, dict)
            and wanted.keys() == seen.keys()
            and all(equal(value, seen[key]) for key, value in wanted.items())
        )
    return type(wanted) is type(seen) and wanted == seen


def instant_of(value: Json, view: Mapping[str, Json]) -> datetime | None:
    """Return the moment that a text spells as aware UTC, or None. Without an offset it is the contact's local time."""
    try:
        return _in_utc(read_moment(value), view) if isinstance(value, str) else None
    except ValueError:
        return None


def _in_utc(moment: datetime, view: Mapping[str, Json]) -> datetime | None:
    """Return a moment as aware UTC; None where the contact's zone has no such local time."""
    if moment.tzinfo is not None:
        return moment
    local: Callable[[datetime], datetime] | None = view.get(LOCAL)
    try:
        return moment.replace(tzinfo=UTC) if local is None else local(moment)
    except ValueError:
        return None


# What a rule may want ------------------------------------------------------------------------------------------------


def _value(wanted: Json) -> Json:
    if wanted is None:
        raise ValueError(
            "null is equal to nothing: to ask whether the field is there, write exists: true or exists: false"
        )
    if isinstance(wanted, float) and math.isnan(wanted):
        raise ValueError(".nan is equal to nothing, not even to itself")
    return wanted


def _bound(wanted: Json) -> int | float:
    value = number(wanted)
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"it orders numbers: write a plain one such as 10000 or 99.5, not {as_json(wanted)}")
    return value


def _text(wanted: Json) -> str:
    if not isinstance(wanted, str) or not wanted:
        raise ValueError(f"write a text, not {as_json(wanted)}")
    return wanted


# The operators -------------------------------------------------------------------------------------------------------


@operator("eq")
def eq(wanted: Json) -> Holds:
    """The field has this type and value; 1 equals 1.0, but neither true nor "1"."""
    value = _value(wanted)
    if type(value) is str:
        return lambda seen, _: value == seen
    return lambda seen, _: equal(value, seen)


@operator("ne")
def ne(wanted: Json) -> Holds:
    """The field is there and has another type or value."""
    value = _value(wanted)
    return lambda seen, _: not equal(value, seen)


def _ordering(asked: Callable[[float, float], bool], wanted: Json) -> Holds:
    bound = _bound(wanted)

    def holds(seen: Json, _: Mapping[str, Json]) -> bool:
        value = number(seen)
        return value is not None and asked(value, bound)

    return holds


@operator("gt")
def gt(wanted: Json) -> Holds:
    """The field is a number, or a text that is a plain number, greater than this."""
    return _ordering(comparing.gt, wanted)


@operator("gte")
def gte(wanted: Json) -> Holds:
    """The field is a number, or a text that is a plain number, greater than this or equal to it."""
    return _ordering(comparing.ge, wanted)


@operator("lt")
def lt(wanted: Json) -> Holds:
    """The field is a number, or a text that is a plain number, less than this."""
    return _ordering(comparing.lt, wanted)


@operator("lte")
def lte(wanted: Json) -> Holds:
    """The field is a number, or a text that is a plain number, less than this or equal to it."""
    return _ordering(comparing.le, wanted)


@operator("between")
def between(wanted: Json) -> Holds:
    """The field is a number, or a text that is a plain number, from the first of these to the second, both included."""
    if not isinstance(wanted, list) or len(wanted) != 2:  # noqa: PLR2004 - the two ends
        raise ValueError(f"write the two ends as a list, such as [10, 20], not {as_json(wanted)}")
    low, high = gte(wanted[0]), lte(wanted[1])
    if _bound(wanted[0]) > _bound(wanted[1]):
        ends = f"{as_json(wanted[0])} and {as_json(wanted[1])}"
        raise ValueError(f"nothing lies between {ends}: write the smaller end first")
    return lambda seen, view: low(seen, view) and high(seen, view)


def _among(wanted: Json) -> Callable[[Json], bool]:
    if not isinstance(wanted, list) or not wanted:
        raise ValueError(f"write a list of values, such as [CL, PE], not {as_json(wanted)}")
    for item in wanted:
        _value(item)
    texts = frozenset(item for item in wanted if isinstance(item, str))
    others = [item for item in wanted if not isinstance(item, str)]
    return lambda seen: seen in texts if type(seen) is str else any(equal(item, seen) for item in others)


@operator("in")
def in_(wanted: Json) -> Holds:
    """The field equals one of these."""
    among = _among(wanted)
    return lambda seen, _: among(seen)


@operator("not_in")
def not_in(wanted: Json) -> Holds:
    """The field is there and equals none of these."""
    among = _among(wanted)
    return lambda seen, _: not among(seen)


@operator("contains")
def contains(wanted: Json) -> Holds:
    """The field is a list with this element, or a text with this part."""
    if wanted == "":
        raise ValueError("the empty text is part of every text: write what to look for")
    value = _value(wanted)

    def holds(seen: Json, _: Mapping[str, Json]) -> bool:
        if isinstance(seen, str):
            return isinstance(value, str) and value in seen
        return isinstance(seen, list) and any(equal(value, item) for item in seen)

    return holds


@operator("starts_with")
def starts_with(wanted: Json) -> Holds:
    """The field is a text that begins with this."""
    text = _text(wanted)
    return lambda seen, _: isinstance(seen, str) and seen.startswith(text)


@operator("ends_with")
def ends_with(wanted: Json) -> Holds:
    """The field is a text that ends with this."""
    text = _text(wanted)
    return lambda seen, _: isinstance(seen, str) and seen.endswith(text)


def _search(pattern: Json) -> Callable[[str], object]:
    if not isinstance(pattern, str) or not pattern:
        raise ValueError(f"write a pattern as a text, not {as_json(pattern)}")
    if len(pattern) > _PATTERN_LIMIT:
        raise ValueError(f"the pattern has {len(pattern)} characters; {_PATTERN_LIMIT} are allowed")
    options = re2.Options()
    options.log_errors = False  # RE2 writes to stderr by itself otherwise
    try:
        search: Callable[[str], object] = re2.compile(pattern, options).search
    except re2.error as error:
        reason = error.args[0] if error.args else error
        said = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        said = f"{said} (RE2 has no look-around and no back-references)"
        raise ValueError(f"{as_json(pattern)} is no RE2 pattern: {said}") from None
    except ValueError:
        raise ValueError(f"{as_json(pattern)} is no RE2 pattern: it is not valid Unicode") from None
    return search


@operator("matches")
def matches(wanted: Json) -> Holds:
    """The field is a text in which this RE2 pattern is found; anchor it with ^ and $ to match all of the text."""
    search = _search(wanted)

    def holds(seen: Json, _: Mapping[str, Json]) -> bool:
        if not isinstance(seen, str):
            return False
        try:
            return search(seen) is not None
        except UnicodeEncodeError:  # half a surrogate pair, which JSON can carry and UTF-8 cannot
            return search(seen.encode("utf-8", "replace").decode()) is not None

    return holds


@operator("exists", on_missing=lambda wanted: wanted is False)
def exists(wanted: Json) -> Holds:
    """True: the field is there and not null; false: it is absent or null."""
    if not isinstance(wanted, bool):
        raise ValueError(f"write true or false, not {as_json(wanted)}")
    return lambda _, __: wanted


def _in_time(asked: Callable[[datetime, datetime], bool], wanted: Json) -> Holds:
    bound = read_moment(wanted)

    def holds(seen: Json, view: Mapping[str, Json]) -> bool:
        moment, limit = instant_of(seen, view), _in_utc(bound, view)
        return moment is not None and limit is not None and asked(moment, limit)

    return holds


@operator("before")
def before(wanted: Json) -> Holds:
    """The field is a moment before this one; what has no offset is in the contact's zone, and a date is its midnight."""
    return _in_time(comparing.lt, wanted)


@operator("after")
def after(wanted: Json) -> Holds:
    """The field is a moment after this one; what has no offset is in the contact's zone, and a date is its midnight."""
    return _in_time(comparing.gt, wanted)


def _since(asked: Callable[[timedelta, timedelta], bool], wanted: Json) -> Holds:
    span = parse_span(wanted)

    def holds(seen: Json, view: Mapping[str, Json]) -> bool:
        moment = instant_of(seen, view)
        return moment is not None and asked(read_instant(view["now"]) - moment, span)

    return holds


@operator("older_than")
def older_than(wanted: Json) -> Holds:
    """The field is a moment that lies further back than this span, counted from the moment of processing."""
    return _since(comparing.gt, wanted)


@operator("newer_than")
def newer_than(wanted: Json) -> Holds:
    """The field is a moment less far back than this span, counted from the moment of processing, or still to come."""
    return _since(comparing.lt, wanted)


@operator("changed")
def changed(_: Json) -> Holds:
    """Not yet: the field had another value before this event."""
    raise ValueError(
        "not yet: comparing a field with its former value comes with a later version; compare data with a constant"
    )

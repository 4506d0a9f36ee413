"""When a test holds, also on a missing or an odd field.

One decorated function is one operator: it gets what the rule wants and returns the question that is asked of what the
event has. Its docstring is what the schema and the documentation say. A field that is absent or null is never asked:
there only `exists: false` holds. A field of a kind the operator does not know (a text to `gt`, a number to `matches`)
makes the test fail, never an error.
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
    """One word of the condition language.

    `doc` is one sentence for authors. `check` returns the complaint about what a rule wants, or None. `compile` expects
    what `check` accepted. `on_missing` says whether the test holds where the field is absent or null.
    """

    name: str
    doc: str
    check: Callable[[Json], str | None]
    compile: Callable[[Json], Holds]
    on_missing: Callable[[Json], bool]


_TABLE: Final[dict[str, Operator]] = {}

#: Every operator by name, in the order of the documentation.
OPERATORS: Final[Mapping[str, Operator]] = _TABLE


def _never(_: Json) -> bool:
    return False


def operator(
    check: Callable[[Json], str | None], *, name: str = "", on_missing: Callable[[Json], bool] = _never
) -> Callable[[Callable[[Json], Holds]], Callable[[Json], Holds]]:
    """Enter a function into the table, under its own name or the one given (where Python has the word)."""

    def enter(compile_: Callable[[Json], Holds]) -> Callable[[Json], Holds]:
        word = name or compile_.__name__
        doc = (compile_.__doc__ or "").strip()
        _TABLE[word] = Operator(name=word, doc=doc, check=check, compile=compile_, on_missing=on_missing)
        return compile_

    return enter


def number(value: Json) -> int | float | None:
    """Return what a value counts as in ordering: a number, or a text that is a plain one; None for all else."""
    kind = type(value)
    if kind is int or kind is float:
        return value  # type: ignore[no-any-return]
    if kind is not str or len(value) > _NUMBER_LENGTH_LIMIT or not _PLAIN_NUMBER.fullmatch(value):
        return None
    return float(value) if "." in value else int(value)


def equal(wanted: Json, seen: Json) -> bool:
    """Say whether two values are the same in type and value; 1 is 1.0, and neither is true or "1"."""
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
    """Return the moment a text names, as aware UTC; None for all else. One without an offset is the contact's local time."""
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


def _a_value(wanted: Json) -> str | None:
    if wanted is None:
        return "null is equal to nothing: to ask whether the field is there, write exists: true or exists: false"
    if isinstance(wanted, float) and math.isnan(wanted):
        return ".nan is equal to nothing, not even to itself"
    return None


def _a_number(wanted: Json) -> str | None:
    value = number(wanted)
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return f"it orders numbers: write a plain one such as 10000 or 99.5, not {as_json(wanted)}"
    return None


def _two_numbers(wanted: Json) -> str | None:
    if not isinstance(wanted, list) or len(wanted) != 2:  # noqa: PLR2004 - the two ends
        return f"write the two ends as a list, such as [10, 20], not {as_json(wanted)}"
    complaint = _a_number(wanted[0]) or _a_number(wanted[1])
    if complaint:
        return complaint
    low, high = number(wanted[0]), number(wanted[1])
    if low is not None and high is not None and low > high:
        return f"nothing lies between {as_json(wanted[0])} and {as_json(wanted[1])}: write the smaller end first"
    return None


def _a_list(wanted: Json) -> str | None:
    if not isinstance(wanted, list) or not wanted:
        return f"write a list of values, such as [CL, PE], not {as_json(wanted)}"
    return next((complaint for complaint in map(_a_value, wanted) if complaint), None)


def _an_element(wanted: Json) -> str | None:
    if isinstance(wanted, str) and not wanted:
        return "the empty text is part of every text: write what to look for"
    return _a_value(wanted)


def _a_text(wanted: Json) -> str | None:
    return None if isinstance(wanted, str) and wanted else f"write a text, not {as_json(wanted)}"


def _a_pattern(wanted: Json) -> str | None:
    if not isinstance(wanted, str) or not wanted:
        return f"write a pattern as a text, not {as_json(wanted)}"
    if len(wanted) > _PATTERN_LIMIT:
        return f"the pattern has {len(wanted)} characters; {_PATTERN_LIMIT} are allowed"
    try:
        _search(wanted)
    except re2.error as error:
        reason = error.args[0] if error.args else error
        said = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        return f"{as_json(wanted)} is no RE2 pattern: {said} (RE2 has no look-around and no back-references)"
    except ValueError:
        return f"{as_json(wanted)} is no RE2 pattern: it is not valid Unicode"
    return None


def _true_or_false(wanted: Json) -> str | None:
    return None if isinstance(wanted, bool) else f"write true or false, not {as_json(wanted)}"


def _a_moment(wanted: Json) -> str | None:
    try:
        read_moment(wanted)
    except ValueError as error:
        return str(error)
    return None


def _a_span(wanted: Json) -> str | None:
    try:
        parse_span(wanted)
    except ValueError as error:
        return str(error)
    return None


def _not_yet(_: Json) -> str | None:
    return "not yet: comparing a field with its former value comes with a later version; compare data with a constant"


# The operators -------------------------------------------------------------------------------------------------------


@operator(_a_value)
def eq(wanted: Json) -> Holds:
    """The field has this type and value; 1 equals 1.0, but neither true nor "1"."""
    if type(wanted) is str:
        return lambda seen, _: wanted == seen
    return lambda seen, _: equal(wanted, seen)


@operator(_a_value)
def ne(wanted: Json) -> Holds:
    """The field is there and has another type or value."""
    return lambda seen, _: not equal(wanted, seen)


def _ordering(asked: Callable[[float, float], bool], wanted: Json) -> Holds:
    bound = number(wanted)

    def holds(seen: Json, _: Mapping[str, Json]) -> bool:
        value = number(seen)
        return value is not None and bound is not None and asked(value, bound)

    return holds


@operator(_a_number)
def gt(wanted: Json) -> Holds:
    """The field is a number, or a text that is a plain number, greater than this."""
    return _ordering(comparing.gt, wanted)


@operator(_a_number)
def gte(wanted: Json) -> Holds:
    """The field is a number, or a text that is a plain number, greater than this or equal to it."""
    return _ordering(comparing.ge, wanted)


@operator(_a_number)
def lt(wanted: Json) -> Holds:
    """The field is a number, or a text that is a plain number, less than this."""
    return _ordering(comparing.lt, wanted)


@operator(_a_number)
def lte(wanted: Json) -> Holds:
    """The field is a number, or a text that is a plain number, less than this or equal to it."""
    return _ordering(comparing.le, wanted)


@operator(_two_numbers)
def between(wanted: Json) -> Holds:
    """The field is a number, or a text that is a plain number, from the first of these to the second, both included."""
    low, high = gte(wanted[0]), lte(wanted[1])
    return lambda seen, view: low(seen, view) and high(seen, view)


def _among(wanted: Json) -> Callable[[Json], bool]:
    texts = frozenset(item for item in wanted if isinstance(item, str))
    others = [item for item in wanted if not isinstance(item, str)]
    return lambda seen: seen in texts if type(seen) is str else any(equal(item, seen) for item in others)


@operator(_a_list, name="in")
def in_(wanted: Json) -> Holds:
    """The field equals one of these."""
    among = _among(wanted)
    return lambda seen, _: among(seen)


@operator(_a_list)
def not_in(wanted: Json) -> Holds:
    """The field is there and equals none of these."""
    among = _among(wanted)
    return lambda seen, _: not among(seen)


@operator(_an_element)
def contains(wanted: Json) -> Holds:
    """The field is a list with this element, or a text with this part."""

    def holds(seen: Json, _: Mapping[str, Json]) -> bool:
        if isinstance(seen, str):
            return isinstance(wanted, str) and wanted in seen
        return isinstance(seen, list) and any(equal(wanted, item) for item in seen)

    return holds


@operator(_a_text)
def starts_with(wanted: Json) -> Holds:
    """The field is a text that begins with this."""
    return lambda seen, _: isinstance(seen, str) and seen.startswith(wanted)


@operator(_a_text)
def ends_with(wanted: Json) -> Holds:
    """The field is a text that ends with this."""
    return lambda seen, _: isinstance(seen, str) and seen.endswith(wanted)


def _search(pattern: str) -> Callable[[str], object]:
    options = re2.Options()
    options.log_errors = False  # RE2 writes to stderr by itself otherwise
    search: Callable[[str], object] = re2.compile(pattern, options).search
    return search


@operator(_a_pattern)
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


@operator(_true_or_false, on_missing=lambda wanted: wanted is False)
def exists(wanted: Json) -> Holds:
    """True: the field is there and not null; false: it is absent or null."""
    return lambda _, __: wanted is True


def _in_time(asked: Callable[[datetime, datetime], bool], wanted: Json) -> Holds:
    bound = read_moment(wanted)

    def holds(seen: Json, view: Mapping[str, Json]) -> bool:
        moment, limit = instant_of(seen, view), _in_utc(bound, view)
        return moment is not None and limit is not None and asked(moment, limit)

    return holds


@operator(_a_moment)
def before(wanted: Json) -> Holds:
    """The field is a moment before this one; what has no offset is in the contact's zone, and a date is its midnight."""
    return _in_time(comparing.lt, wanted)


@operator(_a_moment)
def after(wanted: Json) -> Holds:
    """The field is a moment after this one; what has no offset is in the contact's zone, and a date is its midnight."""
    return _in_time(comparing.gt, wanted)


def _since(asked: Callable[[timedelta, timedelta], bool], wanted: Json) -> Holds:
    span = parse_span(wanted)

    def holds(seen: Json, view: Mapping[str, Json]) -> bool:
        moment = instant_of(seen, view)
        return moment is not None and asked(read_instant(view["now"]) - moment, span)

    return holds


@operator(_a_span)
def older_than(wanted: Json) -> Holds:
    """The field is a moment that lies further back than this span, counted from the moment of processing."""
    return _since(comparing.gt, wanted)


@operator(_a_span)
def newer_than(wanted: Json) -> Holds:
    """The field is a moment less far back than this span, counted from the moment of processing, or still to come."""
    return _since(comparing.lt, wanted)


@operator(_not_yet)
def changed(_: Json) -> Holds:
    """Not yet: the field had another value before this event."""
    return lambda _, __: False

"""Compiles an `if:` to closures, and explains in a sentence which test failed.

A mapping means "all of these". `any` and `all` take lists; `not` takes one line, or one `any` or `all`. A plain value means
`eq`, a plain null `exists: false`. Several operators on one field must all hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from rules import paths
from rules.messages import as_json, cut, nearest
from rules.operators import OPERATORS, Holds
from rules.vocabulary import FailedTest, Json
from rules.yaml_reader import Located, Path, SourceMap

#: A compiled `if:`; returns the first test that failed, or None when all of it holds. The argument is `Event.view()`
#: with the moment of processing under `now`.
Condition = Callable[[Mapping[str, Json]], FailedTest | None]

#: Finds what a test is about in the view; None for what is absent or null.
Look = Callable[[Mapping[str, Json]], Json]

_GROUPS: Final = ("any", "all", "not")
#: Words of the language that are not built yet -> what to write until then.
_LATER: Final[Mapping[str, str]] = {
    "expr": "use the operators",
    "changed": "test the value it has now, such as data.stage: sql, under a `when` such as deal.stage_changed",
}
#: So many of the failed lines of an `any` are told in its sentence; all are in its value.
_TOLD_LIMIT: Final = 10
#: Operators that hold for whatever is there and different, so that a missing field is easily forgotten.
_NEGATIVE: Final = frozenset({"ne", "not_in"})


def compile_conditions(value: Json, places: SourceMap, path: Path) -> Condition:
    """Compile the value of an `if:`. Faults are added to `places`; the returned test must then not be used.

    Without an `if:` (None) the test always holds.
    """
    if value is None:
        return _always
    return _mapping(Located(_plain(value), path, places))


def present_paths(value: Json) -> frozenset[str]:
    """Return the fields that are certainly present when the conditions hold: tested by anything but `exists: false`.

    They are spelled as in `Template.optional_fields`, so that the two can be compared. Fields tested only inside an `any` or a
    `not` are not certain.
    """
    if not isinstance(value, dict):
        return frozenset()
    found: set[str] = set()
    for key, wanted in value.items():
        if key == "all" and isinstance(wanted, list):
            found.update(*map(present_paths, wanted))
        elif key not in (*_GROUPS, *_LATER) and wanted is not None and wanted != {"exists": False}:
            try:
                found.add(paths.spelled(paths.parse(str(key))))
            except ValueError:  # complained of when the conditions are compiled
                continue
    return frozenset(found)


def explain(failed: FailedTest) -> str:
    """Return a sentence on a failed test: what was wanted and what was seen, values as JSON.

    For an `any`, `seen` holds the failed tests inside it, as JSON; for a `not` over a group, the value of each field.
    """
    if failed.operator == "any":
        told = [explain(FailedTest(**one)) for one in failed.seen[:_TOLD_LIMIT]]
        more = len(failed.seen) - len(told)
        return f"none of these held: {'; '.join(told)}{f'; and {more} more' if more else ''}"
    words = _in_words(failed.wanted) if failed.operator == "not" else as_json(failed.wanted)
    saw = "but it is missing" if failed.missing else f"saw {as_json(failed.seen)}"
    return f"{failed.path}: wanted {failed.operator} {words}, {saw}"


def _in_words(wanted: Json) -> str:
    """Say what stood under a `not`: `eq "lost"` for operators, JSON for a group."""
    if isinstance(wanted, dict) and wanted and all(name in OPERATORS for name in wanted):
        return " and ".join(f"{name} {as_json(value)}" for name, value in wanted.items())
    return as_json(wanted)


def _plain(value: Json) -> Json:
    """Return a value with plain texts: a rule file's may be of a class that says where they came from."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _always(_: Mapping[str, Json]) -> FailedTest | None:
    return None


def _mapping(at: Located) -> Condition:
    """Compile a mapping: every line must hold."""
    if not isinstance(at.value, dict):
        return _refused(at, _no_mapping(at.value))
    if not at.value:
        at.fault("no test stands here: write one such as {data.source: web_form}, or leave it out")
    _warn_of_forgotten(at)
    return _all([_line(key, at[key]) for key in at.value])


def _line(key: Json, at: Located) -> Condition:
    if key in {"any", "all"}:
        return _group(str(key), at)
    if key == "not":
        return _not(at)
    if key in _LATER:
        return _refused_key(at, f"not yet: `{key}` comes with a later version; {_LATER[str(key)]}")
    return _field(key, at)


def _group(key: str, at: Located) -> Condition:
    if not isinstance(at.value, list) or not at.value:
        example = f"{key}: [{{data.source: web_form}}, {{data.tags: {{contains: vip}}}}]"
        return _refused(at, f"`{key}` takes a list of tests, such as {example}")
    tests = [_mapping(item) for item in at.items()]
    return _all(tests) if key == "all" else _any(tests, at.value, at.key_place)


def _not(at: Located) -> Condition:
    if not isinstance(at.value, dict) or len(at.value) != 1:
        return _refused(
            at,
            "`not` takes one line, such as not: {data.stage: lost}; for several say which is meant: "
            "not: {any: [...]} (none may hold) or not: {all: [...]} (not all together)",
        )
    ((key, wanted),) = at.value.items()
    if key == "not":
        return _refused_key(at[key], "`not` within `not`: leave out both")
    test = _line(key, at[key])
    if key in {"any", "all"}:
        return _not_group(test, at.value, at.key_place)
    return _not_field(test, str(key), wanted, at.key_place)


def _field(key: Json, at: Located) -> Condition:
    if isinstance(key, str) and key in OPERATORS:
        return _refused_key(at, f"`{key}` is an operator, it stands below a field: {{data.value: {{{key}: ...}}}}")
    try:
        look = paths.getter(paths.parse(key if isinstance(key, str) else as_json(key)))
    except ValueError as error:
        return _refused_key(at, str(error))
    value = at.value
    if value is None:
        return _test(str(key), look, "exists", False, at.key_place)
    if isinstance(value, dict):
        if not value:
            at.fault(f"no operator stands here: write one of {', '.join(OPERATORS)}")
        return _all([_operator(str(key), look, name, at[name]) for name in value])
    if isinstance(value, list):
        any_of = f"for any one of its items write {{in: {as_json(value, 80)}}}"
        at.warn(f"{key} must equal this whole list; {any_of}")
    elif isinstance(value, str) and value.startswith("{{"):
        at.warn("conditions compare with constants: this text is compared as it stands here")
    try:
        return _test(str(key), look, "eq", value, at.key_place)
    except ValueError as error:
        return _refused(at, str(error))


def _operator(key: str, look: Look, name: Json, at: Located) -> Condition:
    if name not in OPERATORS:
        return _refused_key(at, _unknown_operator(as_json(name).strip('"')))
    try:
        return _test(key, look, name, at.value, at.key_place)
    except ValueError as error:
        return _refused(at, f"{name}: {error}")


def _refused(at: Located, message: str) -> Condition:
    at.fault(message)
    return _always


def _refused_key(at: Located, message: str) -> Condition:
    at.key_fault(message)
    return _always


def _warn_of_forgotten(at: Located) -> None:
    """Warn where a missing field fails a test whose author probably thought of other values only."""
    for key, wanted in at.value.items():
        root = str(key).partition(".")[0]
        if not isinstance(wanted, dict) or root in paths.ALWAYS or not _NEGATIVE.issuperset(wanted):
            continue
        for name in wanted:
            passes = f"not: {{{key}: {as_json(wanted[name], 80)}}}, else add exists: true"
            message = f"{name} does not hold where {key} is missing; where that shall pass, write {passes}"
            at[key][name].warn(message, at_key=True)


def _no_mapping(value: Json) -> str:
    example = "a mapping of field and test, such as {data.value: {gt: 10000}}"
    if isinstance(value, list):
        return f"write {example}; a list stands under any: or all:"
    return f"write {example}, not {as_json(value)}"


def _unknown_operator(name: str) -> str:
    near = nearest(name, OPERATORS)
    meant = f"did you mean {near}? " if near else ""
    listed = ", ".join(word for word in OPERATORS if word != "changed")
    return f"there is no operator {name}; {meant}allowed are {listed} (to compare with a mapping, write eq: {{...}})"


# What evaluation runs ------------------------------------------------------------------------------------------------


def _test(path: str, look: Look, name: str, wanted: Json, place: str) -> Condition:
    operator = OPERATORS[name]
    holds: Holds = operator.compile(wanted)
    shown = cut(wanted)
    missing = FailedTest(path=path, operator=name, wanted=shown, seen=None, missing=True, place=place)
    on_missing = None if operator.on_missing(wanted) else missing

    def test(view: Mapping[str, Json]) -> FailedTest | None:
        seen = look(view)
        if seen is None:
            return on_missing
        if holds(seen, view):
            return None
        return FailedTest(path=path, operator=name, wanted=shown, seen=cut(seen), missing=False, place=place)

    return test


def _all(tests: Sequence[Condition]) -> Condition:
    if len(tests) == 1:
        return tests[0]

    def test(view: Mapping[str, Json]) -> FailedTest | None:
        for one in tests:
            failed = one(view)
            if failed is not None:
                return failed
        return None

    return test


def _any(tests: Sequence[Condition], wanted: Json, place: str) -> Condition:
    shown = cut(wanted)

    def test(view: Mapping[str, Json]) -> FailedTest | None:
        inner: list[FailedTest] = []
        for one in tests:
            failed = one(view)
            if failed is None:
                return None
            inner.append(failed)
        return FailedTest(
            path=_joined(failed.path for failed in inner),
            operator="any",
            wanted=shown,
            seen=[_as_object(failed) for failed in inner],
            missing=False,
            place=place,
        )

    return test


def _as_object(failed: FailedTest) -> dict[str, Json]:
    """Return a failed test as JSON (`dataclasses.asdict` takes ten times as long)."""
    return {
        "path": failed.path,
        "operator": failed.operator,
        "wanted": failed.wanted,
        "seen": failed.seen,
        "missing": failed.missing,
        "place": failed.place,
    }


def _joined(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))


def _not_field(inner: Condition, path: str, wanted: Json, place: str) -> Condition:
    try:
        look = paths.getter(paths.parse(path))
    except ValueError:  # already complained of
        return _always
    shown = {"exists": False} if wanted is None else wanted if isinstance(wanted, dict) else {"eq": wanted}
    shown = cut(shown)

    def test(view: Mapping[str, Json]) -> FailedTest | None:
        if inner(view) is not None:
            return None
        seen = look(view)
        return FailedTest(path=path, operator="not", wanted=shown, seen=cut(seen), missing=seen is None, place=place)

    return test


def _not_group(inner: Condition, wanted: Mapping[str, Json], place: str) -> Condition:
    shown = cut(wanted)
    looks = {}
    for name in dict.fromkeys(_fields_in(wanted)):
        try:
            looks[name] = paths.getter(paths.parse(name))
        except ValueError:  # already complained of
            return _always

    def test(view: Mapping[str, Json]) -> FailedTest | None:
        if inner(view) is not None:
            return None
        seen = {name: cut(look(view)) for name, look in looks.items()}
        return FailedTest(path=_joined(looks), operator="not", wanted=shown, seen=seen, missing=False, place=place)

    return test


def _fields_in(value: Json) -> Iterable[str]:
    """Yield the paths of every line below a group."""
    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, dict):
            continue
        for key, below in item.items():
            if key in _GROUPS:
                yield from _fields_in(below)
            else:
                yield str(key)

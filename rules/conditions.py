"""What an `if:` means: lines compiled once to closures, and the first one that failed, told as a sentence.

A mapping is "all of these". `any` and `all` take lists; `not` takes one line, or one `any` or `all`. A plain value means
`eq`, a plain null `exists: false`; several operators on one field must all hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rules import paths
from rules.messages import as_json, cut, nearest
from rules.operators import OPERATORS, Holds
from rules.vocabulary import FailedTest, Json
from rules.yaml_reader import Path, SourceMap

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
    """Compile the value of an `if:`; complaints go to `places`, and the answer then is a test not to be used.

    An absent `if:` (None) always holds.
    """
    if value is None:
        return _always
    return _Compiler(places).all_of(_plain(value), path)


def present_paths(value: Json) -> frozenset[str]:
    """Return the fields that are certainly there when the conditions hold: tested, and not by `exists: false`.

    They are spelled as `Template.optional_fields` spells them, so that the two can be compared. Only what stands under
    no `any` and no `not` is certain.
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
    """Say a failed test as a sentence: what was wanted and what was seen, values as JSON.

    Of an `any`, `seen` holds the failed tests inside it, as JSON; of a `not` over a group, what each field was.
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


@dataclass(frozen=True, slots=True)
class _Compiler:
    places: SourceMap

    def all_of(self, value: Json, path: Path) -> Condition:
        """Compile a mapping: every line must hold."""
        if not isinstance(value, dict):
            self.places.complain(path, _no_mapping(value))
            return _always
        if not value:
            self.places.complain(
                path, "no test stands here: write one such as {data.source: web_form}, or leave it out"
            )
        self._warn_of_forgotten(value, path)
        return _all([self._line(key, value[key], (*path, key)) for key in value])

    def _line(self, key: Json, value: Json, path: Path) -> Condition:
        if key in {"any", "all"}:
            return self._group(str(key), value, path)
        if key == "not":
            return self._not(value, path)
        if key in _LATER:
            message = f"not yet: `{key}` comes with a later version; {_LATER[str(key)]}"
            self.places.complain(path, message, at_key=True)
            return _always
        return self._field(key, value, path)

    def _group(self, key: str, value: Json, path: Path) -> Condition:
        if not isinstance(value, list) or not value:
            example = f"{key}: [{{data.source: web_form}}, {{data.tags: {{contains: vip}}}}]"
            self.places.complain(path, f"`{key}` takes a list of tests, such as {example}")
            return _always
        tests = [self.all_of(item, (*path, place)) for place, item in enumerate(value)]
        return _all(tests) if key == "all" else _any(tests, value, str(self.places.of_key(path)))

    def _not(self, value: Json, path: Path) -> Condition:
        if not isinstance(value, dict) or len(value) != 1:
            self.places.complain(
                path,
                "`not` takes one line, such as not: {data.stage: lost}; for several say which is meant: "
                "not: {any: [...]} (none may hold) or not: {all: [...]} (not all together)",
            )
            return _always
        key, wanted = next(iter(value.items()))
        if key == "not":
            self.places.complain((*path, key), "`not` within `not`: leave out both", at_key=True)
            return _always
        test = self._line(key, wanted, (*path, key))
        place = str(self.places.of_key(path))
        if key in {"any", "all"}:
            return _not_group(test, value, place)
        return _not_field(test, str(key), wanted, place)

    def _field(self, key: Json, value: Json, path: Path) -> Condition:
        if isinstance(key, str) and key in OPERATORS:
            self.places.complain(
                path, f"`{key}` is an operator, it stands below a field: {{data.value: {{{key}: ...}}}}", at_key=True
            )
            return _always
        try:
            steps = paths.parse(key if isinstance(key, str) else as_json(key))
        except ValueError as error:
            self.places.complain(path, str(error), at_key=True)
            return _always
        look = paths.getter(steps)
        if value is None:
            return _test(str(key), look, "exists", False, str(self.places.of_key(path)))
        if not isinstance(value, dict):
            return self._equality(str(key), look, value, path)
        if not value:
            self.places.complain(path, f"no operator stands here: write one of {', '.join(OPERATORS)}")
        return _all([self._operator(str(key), look, name, value[name], (*path, name)) for name in value])

    def _equality(self, key: str, look: Look, value: Json, path: Path) -> Condition:
        if isinstance(value, list):
            self.places.warn(
                path, f"{key} must equal this whole list; for any one of its items write {{in: {as_json(value, 80)}}}"
            )
        elif isinstance(value, str) and value.startswith("{{"):
            self.places.warn(path, "conditions compare with constants: this text is compared as it stands here")
        try:
            return _test(key, look, "eq", value, str(self.places.of_key(path)))
        except ValueError as error:
            self.places.complain(path, str(error))
            return _always

    def _operator(self, key: str, look: Look, name: Json, wanted: Json, path: Path) -> Condition:
        if name not in OPERATORS:
            self.places.complain(path, _unknown_operator(as_json(name).strip('"')), at_key=True)
            return _always
        try:
            return _test(key, look, name, wanted, str(self.places.of_key(path)))
        except ValueError as error:
            self.places.complain(path, f"{name}: {error}")
            return _always

    def _warn_of_forgotten(self, value: Mapping[Json, Json], path: Path) -> None:
        """Warn where a missing field fails a test whose author probably thought of other values only."""
        for key, wanted in value.items():
            root = str(key).partition(".")[0]
            if not isinstance(wanted, dict) or root in paths.ALWAYS or not _NEGATIVE.issuperset(wanted):
                continue
            for name in wanted:
                self.places.warn(
                    (*path, key, name),
                    f"{name} does not hold where {key} is missing; where that shall pass, write "
                    f"not: {{{key}: {as_json(wanted[name], 80)}}}, else add exists: true",
                    at_key=True,
                )


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

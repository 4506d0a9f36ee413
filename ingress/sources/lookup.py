"""How a path finds a value in an item, in the whole body around it, or in the request's headers.

The grammar, shared by `event`, `contact`, `data` and `split`: dotted names with `[0]` and `[*]`; `$root` is the whole body,
`$parent` the element around a split item, `$item` the item itself, `header:NAME` a header; `"{a}.{b}"` joins several, there
when all of its parts are; a list of paths is the first that is there; `{path: P, beside: [Q, R]}` counts only where Q or R is
there too, `without: [Q, R]` only where neither is, `where: {Q: wanted}` only where Q has that value. Null counts as absent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from ingress.sources.request import text_of_header
from rules.rule_set import covers
from rules.vocabulary import Json

#: A step on the way to a value: a key, an index, or every element.
Step = str | int | None
EVERY: Final = None

_NAME: Final = re.compile(r"[^.\[\]{}]+")
_INDEX: Final = re.compile(r"\[(\*|0|[1-9][0-9]{0,5})\]")
_PART: Final = re.compile(r"\{([^{}]*)\}")
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
#: A path longer than this is a mistake.
PATH_LIMIT: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What a path can reach: the item, the constants its split gave it, the body around it and the headers."""

    item: Json
    root: Json = None
    parent: Json = None
    headers: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, Json] = field(default_factory=dict)


#: A compiled `{path: wanted}`.
Match = Callable[[Scope], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """A compiled path. `headers` names the headers it may read, in order; `text` is the path as written."""

    text: str
    find: Callable[[Scope], Json]
    headers: tuple[str, ...] = ()
    #: True when it may read the body around the item: all items of a body then find the same.
    shared: bool = False
    #: The places in the item it reads, for those that are to be left out of a comparison.
    steps: tuple[tuple[Step, ...], ...] = ()


def parse_steps(text: str) -> tuple[Step, ...]:
    """Return the steps of `a.b[0].c[*]`. Raises ValueError with what is wrong."""
    if len(text) > PATH_LIMIT:
        raise ValueError(f"is longer than {PATH_LIMIT} characters")
    steps: list[Step] = []
    at = 0
    while at < len(text):
        if index := _INDEX.match(text, at):
            steps.append(EVERY if index[1] == "*" else int(index[1]))
            at = index.end()
        elif text[at] == "." and steps and _NAME.match(text, at + 1):
            at += 1
            continue
        elif (name := _NAME.match(text, at)) and (at == 0 or text[at - 1] == "."):
            steps.append(name[0])
            at = name.end()
        else:
            raise ValueError(f'"{text}" is not a path: write names with dots, such as lead.phones[0].number')
    if not steps:
        raise ValueError("is empty: write a path such as lead.id")
    return tuple(steps)


def walk(value: Json, steps: Sequence[Step]) -> Json:
    """Return the value at `steps`, None where there is nothing; `[*]` is the first element for which there is one."""
    for at, step in enumerate(steps):
        if step is EVERY:
            rest = steps[at + 1 :]
            return next((found for one in elements(value) if (found := walk(one, rest)) is not None), None)
        value = _child(value, step)
        if value is None:
            return None
    return value


def elements(value: Json) -> Sequence[Json]:
    """Return what `[*]` stands for: the elements of a list, the values of a map keyed by numbers, else the one value."""
    if value is None:
        return ()
    if isinstance(value, list):
        return value
    return list(value.values()) if _is_numbered(value) else (value,)


def expand(value: Json, steps: Sequence[Step], parent: Json) -> Iterator[tuple[Json, Json]]:
    """Yield every value at `steps` with the element around it."""
    for at, step in enumerate(steps):
        if step is EVERY:
            for one in elements(value):
                rest = steps[at + 1 :]
                yield from expand(one, rest, one if EVERY in rest else parent)
            return
        value = _child(value, step)
        if value is None:
            return
    yield value, parent


def replaced(value: Json, steps: Sequence[Step], new: Json) -> Json:
    """Return `value` with `new` at `steps`, exactly where `walk` and `expand` find something; the original stays."""
    if value is None or not steps:
        return None if value is None else new
    step, rest = steps[0], steps[1:]
    if isinstance(value, list):
        wanted = range(len(value)) if step is EVERY else (_index(value, step),)
        return [replaced(one, rest, new) if at in wanted else one for at, one in enumerate(value)]
    if isinstance(value, dict) and (step is not EVERY or _is_numbered(value)):
        return {
            key: replaced(one, rest, new) if step in (EVERY, key) or key == str(step) else one
            for key, one in value.items()
        }
    return replaced(value, rest, new) if step in (EVERY, 0) else value


def compile_lookup(value: Json) -> Lookup:
    """Compile a path, a join, or a list of them. Raises ValueError with what is wrong."""
    if isinstance(value, list):
        return _first(value)
    if isinstance(value, dict):
        return _conditional(value)
    if not isinstance(value, str):
        raise ValueError("must be a path, such as lead.id, or a list of paths")  # noqa: TRY004 - pydantic reads ValueError
    if "{" in value or "}" in value:
        return _join(value)
    if value.lower().startswith("header:"):
        return _header(value)
    return _path(value)


def text_of(value: Json) -> str | None:
    """Return a found value as text: numbers as JSON writes them; lists, maps, booleans and blanks are none."""
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _child(value: Json, step: Step) -> Json:
    if isinstance(value, dict):
        return value.get(str(step))
    if isinstance(value, list):
        index = _index(value, step)
        return value[index] if index is not None else None
    return value if step == 0 else None  # one element where a list was meant, as XML has it


def _index(value: list[Json], step: Step) -> int | None:
    """Return the place in a list that a step names, be it written as a name; None when there is none."""
    if isinstance(step, str) and step.isascii() and step.isdigit() and len(step) <= len(str(len(value))):
        step = int(step)
    return step if isinstance(step, int) and step < len(value) else None


def _is_numbered(value: Json) -> bool:
    return isinstance(value, dict) and bool(value) and all(key.isascii() and key.isdigit() for key in value)


def _path(text: str) -> Lookup:
    steps = parse_steps(text)
    first, rest = steps[0], steps[1:]
    if first == "$root":
        return Lookup(text=text, find=lambda scope: walk(scope.root, rest), shared=True)
    if first == "$parent":
        return Lookup(text=text, find=lambda scope: walk(scope.parent, rest), shared=True)
    if first == "$item":
        return Lookup(text=text, find=lambda scope: walk(scope.item, rest), steps=(rest,) if rest else ())
    if isinstance(first, str) and first.startswith("$"):
        raise ValueError(f'"{first}" is not known; a path begins with a name, $root, $parent, $item or header:')

    def find(scope: Scope) -> Json:
        if first in scope.constants:
            return walk(scope.constants, steps)
        return walk(scope.item, steps)

    return Lookup(text=text, find=find, steps=(steps,))


def _header(text: str) -> Lookup:
    name = text.partition(":")[2].strip().lower()
    if not _HEADER_NAME.fullmatch(name):
        raise ValueError(f'"{text}" names no header: write header:X-Event-Id')

    def find(scope: Scope) -> Json:
        value = scope.headers.get(name)
        return None if value is None else text_of_header(value)

    return Lookup(text=text, find=find, headers=(name,))


def _join(text: str) -> Lookup:
    literals = _PART.split(text)
    parts = [compile_lookup(part.strip()) for part in literals[1::2]]
    constant = literals[0::2]
    if any("{" in piece or "}" in piece for piece in constant):
        raise ValueError(f'"{text}": a brace is not closed; write paths in braces, such as "{{entity}}.{{action}}"')

    def find(scope: Scope) -> Json:
        found = [text_of(part.find(scope)) for part in parts]
        if None in found:
            return None
        return "".join(piece + (value or "") for piece, value in zip(constant, [*found, ""], strict=True))

    return _combined(text, parts, find)


def _first(values: Sequence[Json]) -> Lookup:
    if not values:
        raise ValueError("is an empty list: write at least one path")
    choices = [compile_lookup(value) for value in values]
    finders = [choice.find for choice in choices]

    def find(scope: Scope) -> Json:
        for one in finders:
            found = one(scope)
            if found is not None and found != "":
                return found
        return None

    return _combined(", ".join(choice.text for choice in choices), choices, find)


def _conditional(value: Mapping[str, Json]) -> Lookup:
    if "path" not in value or set(value) - {"path", *_CONDITIONS} or len(value) == 1:
        raise ValueError(f"must be a path, a list of paths, or {{path: ..., one of {', '.join(_CONDITIONS)}: ...}}")
    wanted = compile_lookup(value["path"])
    tests = [compiled(value[word]) for word, compiled in _CONDITIONS.items() if word in value]

    def find(scope: Scope) -> Json:
        return wanted.find(scope) if all(holds(scope) for holds in tests) else None

    return _combined(wanted.text, [wanted], find)


def _beside(value: Json) -> Match:
    company = compile_lookup(value)
    return lambda scope: company.find(scope) is not None


def _without(value: Json) -> Match:
    company = compile_lookup(value)
    return lambda scope: company.find(scope) is None


def compile_match(value: Json) -> Match:
    """Compile `{path: wanted, ...}`, all of which must hold; `*` in a wanted text stands for any text."""
    if not isinstance(value, dict) or not value:
        raise ValueError("must name paths and the values wanted there, such as {type: ping}")
    tests: list[tuple[Lookup, str]] = []
    for path, wanted in value.items():
        text = text_of(wanted)
        if text is None:
            raise ValueError(f"{path}: the value wanted must be text or a number")
        tests.append((compile_lookup(path), text))

    def holds(scope: Scope) -> bool:
        return all((found := text_of(test.find(scope))) is not None and covers(wanted, found) for test, wanted in tests)

    return holds


def _combined(text: str, parts: Sequence[Lookup], find: Callable[[Scope], Json]) -> Lookup:
    return Lookup(
        text=text,
        find=find,
        headers=tuple(name for part in parts for name in part.headers),
        shared=any(part.shared for part in parts),
        steps=tuple(steps for part in parts for steps in part.steps),
    )


_CONDITIONS: Final[Mapping[str, Callable[[Json], Match]]] = {
    "beside": _beside,
    "without": _without,
    "where": compile_match,
}

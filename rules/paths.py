"""The one path language: how rules name a field of an event, and sources a value of a payload.

`data.deep.list[1].x` and `data.deep.list.1.x` are the same field. A key with dots, brackets or quotes in it is written
`data["odd.key"]`. A path through something that has no fields, or past the end of a list, finds nothing.

Rules (`parse`, `getter`) begin at the event. Sources (`compile_path`) begin at the item of a payload and can write more:
`[*]` is every element, of which the first that has the value counts; `$root` is the whole body, `$parent` the element around
a split item, `$item` the item itself, `header:NAME` a header; `"{a}.{b}"` joins several, there when all of its parts are; a
list of paths is the first that is there; `{path: P, beside: [Q, R]}` counts only where Q or R is there too, `without: [Q, R]`
only where neither is, `where: {Q: wanted}` only where Q has that value. Null counts as absent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Final

from rules.messages import as_json, nearest
from rules.vocabulary import Contact, Json, covers


class Every(Enum):
    """The type of EVERY, the path step `[*]`."""

    EVERY = "*"


#: The step `[*]`: every element of a list.
EVERY: Final = Every.EVERY

#: A key, or for digits an index of a list (and the key of those digits in a mapping), or EVERY.
Step = str | int | Every
Steps = tuple[Step, ...]


class Missing(Enum):
    """The type of MISSING, which stands for an absent value."""

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

#: Roots that may be named in addition to the event's, with the fields below each.
ExtraRoots = Mapping[str, tuple[str, ...]]
#: Those of follow-up tasks, which run when another task failed or came to another outcome.
FOLLOW_UP_ROOTS: Final[ExtraRoots] = {"failure": ("reason", "status", "title", "task"), "outcome": ()}
#: Of these, what need not be there: no answer, no status.
OPTIONAL_FOLLOW_UP_FIELDS: Final = frozenset({("failure", "status")})
_WHERE_KNOWN: Final = {"failure": "on_failure and on_outcome", "outcome": "on_outcome"}

_LENGTH_LIMIT: Final = 500
_INDEX: Final = re.compile(r"0|[1-9][0-9]{0,8}", re.ASCII)
_NEGATIVE: Final = re.compile(r"-[0-9]+", re.ASCII)
_PART: Final = re.compile(r"\{([^{}]*)\}")
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_PLAIN_KEY: Final = re.compile(r"\w[\w-]*")
_STEP: Final = re.compile(
    r"""\["(?P<double>[^"]+)"\] | \['(?P<single>[^']+)'\]
      | \[(?P<index>[^\[\]"']*)\] | (?P<dot>\.?)(?P<key>[^.\[\]]+)""",
    re.VERBOSE,
)


def parse(text: str) -> Steps:
    """Parse a path of a rule. ValueError says what is wrong and suggests a correction."""
    steps = split(text)
    if problem := problem_with(steps, text):
        raise ValueError(problem)
    return steps


def split(text: str) -> Steps:
    """Parse a path without checking that an event can have such a field. Raises ValueError."""
    return _split(text, every=False)


def _split(text: str, *, every: bool) -> Steps:
    """Read a path, in which `[*]` may stand or not."""
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
        steps.append(EVERY if every and found["index"] == "*" else _step(found, text))
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


def problem_with(steps: Steps, text: str, extra_roots: ExtraRoots = {}) -> str | None:  # noqa: B006 - never changed
    """Return why no event can have this path, and what to write instead; None when one may."""
    root = str(steps[0])
    if root not in ROOTS and root not in extra_roots:
        return _unknown_root(root, text)
    if len(steps) > 1 and (root in _SCALARS or extra_roots.get(root) == ()):
        return f"{as_json(text)}: {root} is a single value, nothing lies below it"
    known = KNOWN.get(root) or extra_roots.get(root)
    if not known or len(steps) == 1:
        return None
    name = str(steps[1])
    if name not in known:
        near = nearest(name, known)
        hint = f"did you mean {root}.{near}? " if near else ""
        has = f"it has {', '.join(known)}" + (
            "" if root in extra_roots else "; other fields of the payload are below data"
        )
        return f"{as_json(text)}: {root} has no {name}; {hint}{has}"
    if len(steps) > 2 and name not in _OPEN:  # noqa: PLR2004 - root, name and one more
        return f"{as_json(text)}: {root}.{name} is a single value, nothing lies below it"
    return None


def _unknown_root(root: str, text: str) -> str:
    if root in _WHERE_KNOWN:
        return f"{as_json(text)}: {root} is known to the tasks of {_WHERE_KNOWN[root]} only; did you mean data.{text}?"
    near = nearest(root, ROOTS)
    meant = f"did you mean {near}{text[len(root) :]} or data.{text}?" if near else f"did you mean data.{text}?"
    return f"{as_json(text)}: an event has no {root}; {meant} A path begins with one of {', '.join(ROOTS)}"


def spelled(steps: Steps) -> str:
    """Return a path in canonical spelling: `data.list[1].x`, `data["odd.key"]`."""
    text = str(steps[0])
    for step in steps[1:]:
        if not isinstance(step, str):
            text += f"[{'*' if step is EVERY else step}]"
        elif _PLAIN_KEY.fullmatch(step) and not _INDEX.fullmatch(step):
            text += f".{step}"
        else:
            text += f"['{step}']" if '"' in step else f'["{step}"]'
    return text


def find(view: Json, steps: Steps) -> Json:
    """Return the value at the path, or MISSING. A null is returned as None; tests treat it as missing too."""
    value = view
    for step in steps:
        if isinstance(value, dict):
            value = value.get(step if isinstance(step, str) else str(step), MISSING)
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
        else:
            return MISSING
    return value


def getter(steps: Steps) -> Callable[[Json], Json]:
    """Return a function that returns the value at the path, None when it is absent or null.

    Common depths have code of their own, because finding fields is most of the cost of an evaluation.
    """
    names = tuple(step for step in steps if isinstance(step, str))
    if len(names) != len(steps):

        def indexed(value: Json) -> Json:
            found = find(value, steps)
            return None if found is MISSING else found

        return indexed
    first = names[0]
    if len(names) == 1:
        return lambda value: value.get(first) if isinstance(value, dict) else None
    if len(names) == 2:  # noqa: PLR2004 - a root and one key
        second = names[1]

        def below(value: Json) -> Json:
            inner = value.get(first) if isinstance(value, dict) else None
            return inner.get(second) if isinstance(inner, dict) else None

        return below

    def deep(value: Json) -> Json:
        for name in names:
            if not isinstance(value, dict):
                return None
            value = value.get(name)
        return value

    return deep


# -- payloads ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Scope:
    """What a source's path can read: the item, constants of its split, the body around it, and the headers."""

    item: Json
    root: Json = None
    parent: Json = None
    headers: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, Json] = field(default_factory=dict)

    def without_headers(self) -> Scope:
        """Return the same scope without headers."""
        return Scope(item=self.item, root=self.root, parent=self.parent, constants=self.constants)


#: A compiled `{path: wanted}`.
Match = Callable[[Scope], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledPath:
    """A compiled path of a source; `find` returns its value in a scope, or None.

    `text` is the path as written, `headers` the headers it may read, in order. `shared`: it may read the body around the item,
    so that all items find the same value. `steps` are the paths it reads in the item, for those left out of a comparison.
    `in_item` does the same as `find` for a path that reads nothing but the item.
    """

    text: str
    find: Callable[[Scope], Json]
    headers: tuple[str, ...] = ()
    shared: bool = False
    steps: tuple[Steps, ...] = ()
    in_item: Callable[[Json], Json] | None = None


def parse_payload_path(text: str) -> Steps:
    """Return the steps of a path such as `a.b[0].c[*]`. Raises ValueError."""
    if not text:
        raise ValueError("is empty: write a path such as lead.id")
    if len(text) > _LENGTH_LIMIT:
        raise ValueError(f"is longer than {_LENGTH_LIMIT} characters")
    try:
        steps = () if "{" in text or "}" in text else _split(text, every=True)
    except ValueError:
        steps = ()
    if not steps:
        raise ValueError(f'"{text}" is not a path: write names with dots, such as lead.phones[0].number')
    return steps


def walk(value: Json, steps: Steps) -> Json:
    """Return the value at `steps`, or None; `[*]` takes the first element that has a value.

    A single plain value counts as a list of one element, because XML does not distinguish the two.
    """
    for at, step in enumerate(steps):
        if step is EVERY:
            rest = steps[at + 1 :]
            return next((found for one in _elements(value) if (found := walk(one, rest)) is not None), None)
        value = _child(value, step)
        if value is None:
            return None
    return value


def expand(value: Json, steps: Steps, parent: Json) -> Iterator[tuple[Json, Json]]:
    """Yield every value at `steps`, each with the element that contains it."""
    for at, step in enumerate(steps):
        if step is EVERY:
            rest = steps[at + 1 :]
            for one in _elements(value):
                yield from expand(one, rest, one if EVERY in rest else parent)
            return
        value = _child(value, step)
        if value is None:
            return
    yield value, parent


def replaced(value: Json, steps: Steps, new: Json) -> Json:
    """Return a copy of `value` with `new` at `steps`, at exactly the places that `walk` and `expand` find."""
    if value is None or not steps:
        return None if value is None else new
    step, rest = steps[0], steps[1:]
    if isinstance(value, list):
        return [replaced(one, rest, new) if step in (EVERY, at) else one for at, one in enumerate(value)]
    if isinstance(value, dict) and (step is not EVERY or _is_numbered(value)):
        key = None if step is EVERY else str(step)
        return {name: replaced(one, rest, new) if key in (None, name) else one for name, one in value.items()}
    return replaced(value, rest, new) if step in (EVERY, 0) else value


def text_of(value: Json) -> str | None:
    """Return a value as text (numbers as in JSON); None for lists, mappings, booleans and blank text."""
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def raw_header(value: str) -> bytes:
    """Return a header's value as the received bytes; never raises."""
    try:
        return value.encode("latin-1")
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogatepass")


def header_text(value: str) -> str:
    """Return a header's value as text: decoded as UTF-8 where possible, without characters that cannot be stored."""
    raw = raw_header(value)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    return text.replace("\0", "")


def compile_path(value: Json) -> CompiledPath:
    """Compile a path, a join or a list of paths. Raises ValueError."""
    if isinstance(value, list):
        return _first(value)
    if isinstance(value, dict):
        return _conditional(value)
    if not isinstance(value, str):
        raise ValueError("must be a path, such as lead.id, or a list of paths")  # noqa: TRY004 - pydantic reads ValueError
    if "{" in value or "}" in value:
        return _join(value)
    return _header(value) if value.lower().startswith("header:") else _plain(value)


def compile_match(value: Json) -> Match:
    """Compile `{path: wanted, ...}`, of which all must match; `*` in a wanted text matches any text."""
    if not isinstance(value, dict) or not value:
        raise ValueError("must name paths and the values wanted there, such as {type: ping}")
    tests: list[tuple[CompiledPath, str]] = []
    for path, wanted in value.items():
        text = text_of(wanted)
        if text is None:
            raise ValueError(f"{path}: the value wanted must be text or a number")
        tests.append((compile_path(path), text))

    def holds(scope: Scope) -> bool:
        return all((found := text_of(test.find(scope))) is not None and covers(wanted, found) for test, wanted in tests)

    return holds


def _child(value: Json, step: str | int) -> Json:
    if isinstance(value, dict):
        return value.get(step if isinstance(step, str) else str(step))
    if isinstance(value, list):
        return value[step] if isinstance(step, int) and step < len(value) else None
    return value if step == 0 else None


def _elements(value: Json) -> Sequence[Json]:
    """Return what `[*]` stands for: the elements of a list, the values of a map keyed by numbers, else the one value."""
    if value is None:
        return ()
    if isinstance(value, list):
        return value
    return list(value.values()) if _is_numbered(value) else (value,)


def _is_numbered(value: Json) -> bool:
    return isinstance(value, dict) and bool(value) and all(key.isascii() and key.isdigit() for key in value)


def _look(steps: Steps) -> Callable[[Json], Json]:
    """Return `walk` for these steps, compiled where they are names only."""
    names_only = steps and all(isinstance(step, str) for step in steps)
    return getter(steps) if names_only else lambda value: walk(value, steps)


def _plain(text: str) -> CompiledPath:
    steps = parse_payload_path(text)
    first, rest = str(steps[0]), steps[1:]
    if first.startswith("$"):
        look = _look(rest)
        match first:
            case "$root":
                return CompiledPath(text=text, find=lambda scope: look(scope.root), shared=True)
            case "$parent":
                return CompiledPath(text=text, find=lambda scope: look(scope.parent), shared=True)
            case "$item":
                places = (rest,) if rest else ()
                return CompiledPath(text=text, find=lambda scope: look(scope.item), steps=places, in_item=look)
        raise ValueError(f'"{first}" is not known; a path begins with a name, $root, $parent, $item or header:')
    look = _look(steps)

    def find(scope: Scope) -> Json:
        return look(scope.constants if scope.constants and first in scope.constants else scope.item)

    return CompiledPath(text=text, find=find, steps=(steps,), in_item=look)


def _header(text: str) -> CompiledPath:
    name = text.partition(":")[2].strip().lower()
    if not _HEADER_NAME.fullmatch(name):
        raise ValueError(f'"{text}" names no header: write header:X-Event-Id')

    def find(scope: Scope) -> Json:
        value = scope.headers.get(name)
        return None if value is None else header_text(value)

    return CompiledPath(text=text, find=find, headers=(name,))


def _join(text: str) -> CompiledPath:
    pieces = _PART.split(text)
    parts, constant = [compile_path(part.strip()) for part in pieces[1::2]], pieces[0::2]
    if any("{" in piece or "}" in piece for piece in constant):
        raise ValueError(f'"{text}": a brace is not closed; write paths in braces, such as "{{entity}}.{{action}}"')

    def find(scope: Scope) -> Json:
        joined = constant[0]
        for part, piece in zip(parts, constant[1:], strict=True):
            found = text_of(part.find(scope))
            if found is None:
                return None
            joined += found + piece
        return joined

    return _combined(text, parts, find)


def _first(values: Sequence[Json]) -> CompiledPath:
    if not values:
        raise ValueError("is an empty list: write at least one path")
    choices = [compile_path(value) for value in values]
    looks = [choice.in_item for choice in choices if choice.in_item]
    only_item = len(looks) == len(choices)

    def find(scope: Scope) -> Json:
        if only_item and not scope.constants:
            item = scope.item
            for look in looks:
                found = look(item)
                if found is not None and found != "":
                    return found
            return None
        for choice in choices:
            found = choice.find(scope)
            if found is not None and found != "":
                return found
        return None

    return _combined(", ".join(choice.text for choice in choices), choices, find)


def _conditional(value: Mapping[str, Json]) -> CompiledPath:
    if "path" not in value or set(value) - {"path", *_CONDITIONS} or len(value) == 1:
        raise ValueError(f"must be a path, a list of paths, or {{path: ..., one of {', '.join(_CONDITIONS)}: ...}}")
    wanted = compile_path(value["path"])
    tests = [compiled(value[word]) for word, compiled in _CONDITIONS.items() if word in value]

    def find(scope: Scope) -> Json:
        found = wanted.find(scope)
        return found if found is not None and all(holds(scope) for holds in tests) else None

    return _combined(wanted.text, [wanted], find)


def _beside(value: Json) -> Match:
    other = compile_path(value)
    return lambda scope: other.find(scope) is not None


def _without(value: Json) -> Match:
    there = _beside(value)
    return lambda scope: not there(scope)


_CONDITIONS: Final = {"beside": _beside, "without": _without, "where": compile_match}


def _combined(text: str, parts: Sequence[CompiledPath], find: Callable[[Scope], Json]) -> CompiledPath:
    return CompiledPath(
        text=text,
        find=find,
        headers=tuple(name for part in parts for name in part.headers),
        shared=any(part.shared for part in parts),
        steps=tuple(steps for part in parts for steps in part.steps),
    )

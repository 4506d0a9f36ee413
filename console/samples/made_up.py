"""How a payload is made for a source that has no sample: every path it declares gets a value.

The first of several paths is used; a type that `map` knows is written in the source's own word for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from ingress.sources import Source
from ingress.sources.schema import MomentPath, TimeUnit
from rules.paths import CompiledPath, Step, parse_payload_path
from rules.vocabulary import Json, Problem, instant

_PART: Final = re.compile(r"\{([^{}]*)\}")
#: The event a sample stands for, where the source knows it.
EVENT_TYPE: Final = "lead.created"


class _Draft:
    """A body and headers under construction."""

    def __init__(self, constants: Mapping[str, Json]) -> None:
        self.item: Json = {}
        self.root: Json = {}
        self.headers: dict[str, str] = {}
        self.constants = constants

    def put(self, lookup: CompiledPath | None, value: Json) -> None:
        """Write a value where a path will find it."""
        if lookup is None:
            return
        text = lookup.text.partition(", ")[0]
        if "{" in text:
            self._join(text, str(value))
        else:
            self._one(text, value)

    def _join(self, text: str, value: str) -> None:
        paths = _PART.findall(text)
        pattern = "(.+?)".join(re.escape(piece) for piece in _PART.split(text)[0::2])
        found = re.fullmatch(pattern, value)
        for path, part in zip(paths, found.groups() if found else [value] * len(paths), strict=True):
            self._one(path.strip(), part)

    def _one(self, path: str, value: Json) -> None:
        if path.lower().startswith("header:"):
            self.headers[path.partition(":")[2].strip().lower()] = str(value)
            return
        steps = parse_payload_path(path)
        if steps[0] == "$root":
            self.root = _with(self.root, steps[1:], value)
        elif steps[0] == "$item":
            self.item = _with(self.item, steps[1:], value)
        elif steps[0] not in self.constants:
            self.item = _with(self.item, steps, value)


def made_up(source: Source, words: Mapping[str, Json], now: datetime) -> tuple[Json, Mapping[str, str]]:
    """Return a body and the headers that go with it. Raises Problem for a source that reads XML."""
    if source.body.format == "xml":
        raise Problem(f"{source.name}: no XML sample can be made; send a file of your own")
    data, event, contact = source.mapping.data, source.mapping.event, source.mapping.contact
    split = source.splits[0] if source.splits else None
    draft = _Draft(split.constants if split else {})
    if data is not None:
        for name in ("value", "source", "notes"):
            draft.put(_below(data, name), words[name])
    else:
        draft.item = {name: words[name] for name in ("value", "source", "notes")}
    draft.put(event.type, _raw_type(source))
    draft.put(event.id, words["id"])
    for path in event.dedupe.paths if event.dedupe else ():
        draft.put(path, words["id"])
    draft.put(event.subject.id if event.subject else None, words["record"])
    for name in ("name", "phone", "email", "country"):
        draft.put(getattr(contact, name), words[name])
    if event.occurred_at:
        draft.put(event.occurred_at.path, _moment(event.occurred_at, now))
    body = draft.item
    if split:
        body = _with(draft.root, split.steps, draft.item)
    elif isinstance(draft.root, dict) and isinstance(body, dict):
        body = {**draft.root, **body}
    return body, draft.headers


def _raw_type(source: Source) -> str:
    """Return the source's own word for a new lead, else the first word it maps, else ours."""
    words = source.mapping.event.map
    return next((raw for raw, word in words.items() if word == EVENT_TYPE), next(iter(words), EVENT_TYPE))


def _moment(when: MomentPath, now: datetime) -> Json:
    if when.unit in (TimeUnit.ISO, TimeUnit.AUTO):
        return instant(now)
    return int(now.timestamp() * (1000 if when.unit is TimeUnit.MILLISECONDS else 1))


def _below(lookup: CompiledPath, name: str) -> CompiledPath:
    text = lookup.text.partition(", ")[0]
    return CompiledPath(text=name if text == "$item" else f"{text}.{name}", find=lookup.find)


def _with(value: Json, steps: tuple[Step, ...], new: Json) -> Json:
    """Return `value` with `new` at `steps`; a list gets one element."""
    if not steps:
        return new
    step, rest = steps[0], steps[1:]
    if isinstance(step, str):
        base = value if isinstance(value, dict) else {}
        return {**base, step: _with(base.get(step), rest, new)}
    first = value[0] if isinstance(value, list) and value else None
    return [_with(first, rest, new)]

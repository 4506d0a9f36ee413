"""How a source's words for what happened, when, and whether it came before become Leadwire's.

`map` turns a raw type into a canonical one, by a second field where the name alone does not tell; a type it does not know
passes under its own name. A moment that is absent or makes no sense is the moment of receipt, for the caller to put in.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from rules.paths import CompiledPath, Scope, compile_path, text_of
from rules.vocabulary import Json

#: Stands for the hash of the item in `dedupe`.
CONTENT: Final = "$content"

_NUMBER: Final = re.compile(r"-?\d{1,17}(\.\d{1,12})?")
#: Seconds since 1970 have reached ten digits; milliseconds have thirteen.
_SECONDS_END: Final = 100_000_000_000


class Unit(StrEnum):
    """How a moment is written."""

    ISO = "iso"
    SECONDS = "s"
    MILLISECONDS = "ms"
    #: By its looks: text is ISO 8601, a number is seconds or milliseconds by its size.
    AUTO = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class When:
    """Where an item says when it happened."""

    path: CompiledPath
    unit: Unit = Unit.ISO

    def find(self, scope: Scope) -> datetime | None:
        """Return the moment in UTC, or None when there is none or it makes no sense."""
        return moment_of(self.path.find(scope), self.unit)


@dataclass(frozen=True, slots=True, kw_only=True)
class ByField:
    """A raw type whose canonical one depends on another field."""

    field: CompiledPath
    types: Mapping[str, str]
    otherwise: str | ByField | None


TypeMap = Mapping[str, str | ByField]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dedupe:
    """What identifies an event that has no id: these values together; `with_content` adds the item's own hash."""

    paths: tuple[CompiledPath, ...]
    with_content: bool


def canonical(raw: str, types: TypeMap, scope: Scope) -> str:
    """Return Leadwire's word for a raw type, or the raw type itself."""
    word: str | ByField | None = types.get(raw)
    while isinstance(word, ByField):
        value = text_of(word.field.find(scope))
        word = (word.types.get(value) if value is not None else None) or word.otherwise
    return word or raw


def compile_type_map(value: Json) -> TypeMap:
    """Compile `map`. Raises ValueError with what is wrong."""
    if not isinstance(value, dict):
        raise ValueError("must pair the source's words with types, such as {lead_new: lead.created}")  # noqa: TRY004
    return {raw: _type(raw, word) for raw, word in value.items()}


def _type(raw: str, word: Json) -> str | ByField:
    if isinstance(word, str) and word.strip():
        return word.strip()
    if not isinstance(word, dict) or set(word) - {"by", "is", "else"} or not isinstance(word.get("is"), dict):
        raise ValueError(
            f"{raw}: must be a type such as lead.created, or {{by: path, is: {{value: type}}, else: type}}"
        )
    if not all(isinstance(one, str) for one in word["is"].values()):
        raise ValueError(f"{raw}: every type must be text, such as lead.created")
    otherwise = None if word.get("else") is None else _type(raw, word["else"])
    return ByField(field=compile_path(word.get("by")), types=dict(word["is"]), otherwise=otherwise)


def compile_dedupe(value: Json) -> Dedupe:
    """Compile `dedupe`. Raises ValueError with what is wrong."""
    if not isinstance(value, list) or not value:
        raise ValueError("must be a list of paths that identify an event together, such as [account, id, updated_at]")
    paths = tuple(compile_path(one) for one in value if one != CONTENT)
    if not paths:
        raise ValueError(f"{CONTENT} alone identifies nothing: name at least one path beside it")
    return Dedupe(paths=paths, with_content=CONTENT in value)


def compile_when(value: Json) -> When:
    """Compile `occurred_at`: a path, or `{path, unit}`. Raises ValueError with what is wrong."""
    if not isinstance(value, dict):
        return When(path=compile_path(value))
    if set(value) - {"path", "unit"} or "path" not in value:
        raise ValueError("must be a path, or {path: created_at, unit: iso}")
    try:
        unit = Unit(value.get("unit", Unit.ISO))
    except ValueError:
        raise ValueError(f"unit: must be one of: {', '.join(Unit)}") from None
    return When(path=compile_path(value["path"]), unit=unit)


def moment_of(value: Json, unit: Unit) -> datetime | None:
    """Return a raw moment in UTC; one without offset is in UTC; None when it makes no sense."""
    text = text_of(value)
    if text is None or len(text) > 64:  # noqa: PLR2004 - longer than any way to write a moment
        return None
    if unit is Unit.AUTO and _NUMBER.fullmatch(text):
        unit = Unit.SECONDS if abs(float(text)) < _SECONDS_END else Unit.MILLISECONDS
    try:
        if unit in (Unit.ISO, Unit.AUTO):
            found = datetime.fromisoformat(text)
            return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
        return datetime.fromtimestamp(_seconds(text, unit), UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _seconds(text: str, unit: Unit) -> float:
    if not _NUMBER.fullmatch(text):
        raise ValueError("no number")
    seconds = float(text) / (1000 if unit is Unit.MILLISECONDS else 1)
    if not math.isfinite(seconds):
        raise ValueError("no number")
    return seconds

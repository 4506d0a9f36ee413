"""Which payload stands for a lead at each source, and how a fresh one is made.

In the files `$name` and the like stand for what the caller gives; a text that is nothing but such a word keeps its type.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from importlib.resources import files
from typing import Final
from urllib.parse import urlencode

from console.samples.made_up import made_up
from ingress.sources import Source
from rules.vocabulary import Json, Problem, instant

_FOLDER: Final = files(__package__)
_WORD: Final = re.compile(r"\$([a-z]+)")
_FORM: Final = "application/x-www-form-urlencoded"
#: Digits of a number that stands for an id: exact in every reader of JSON.
_NUMBER_DIGITS: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Lead:
    """Who and what a sample is about."""

    name: str = "Ana Prueba"
    phone: str = "+56911112222"
    email: str = "ana@example.com"
    country: str = "CL"
    value: float = 12000
    source: str = "web_form"
    notes: str = "Asked for a call on the web form."


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A payload to be signed and posted; `headers` are those an event is read from."""

    body: bytes
    content_type: str
    headers: Mapping[str, str] = field(default_factory=dict)


def variants(source: Source) -> tuple[str, ...]:
    """Return the names of a source's samples, the default first."""
    return tuple(_file(source.preset)) if source.preset and _has_file(source.preset) else ("lead",)


def sample(
    source: Source, *, now: datetime, new_id: Callable[[str], str], variant: str | None = None, lead: Lead | None = None
) -> Sample:
    """Return a fresh payload for a source: its preset's, or one made from the paths it declares.

    Raises Problem for a variant that does not exist and for a source that no payload can be made for.
    """
    lead = lead or Lead()
    words = _words(lead, now, new_id)
    if not source.preset or not _has_file(source.preset):
        body, headers = made_up(source, words, now)
        content_type = "application/json" if source.body.format in ("json", "auto") else _FORM
        return Sample(body=_written(body, content_type), content_type=content_type, headers=headers)
    return _from_file(source.preset, words, variant)


def sample_body(
    preset: str, *, now: datetime, new_id: Callable[[str], str], variant: str | None = None, lead: Lead | None = None
) -> bytes:
    """Return the body of a fresh payload of a preset. Raises Problem for a variant that does not exist."""
    return _from_file(preset, _words(lead or Lead(), now, new_id), variant).body


def _from_file(preset: str, words: Mapping[str, Json], variant: str | None) -> Sample:
    choices = _file(preset)
    chosen = choices.get(variant or next(iter(choices)))
    if chosen is None:
        raise Problem(f'there is no sample "{variant}" for {preset}; samples: {", ".join(choices)}')
    content_type = chosen["content_type"]
    return Sample(body=_written(_filled(chosen["body"], words), content_type), content_type=content_type)


def _words(lead: Lead, now: datetime, new_id: Callable[[str], str]) -> dict[str, Json]:
    identity = new_id("sample")
    return {
        "id": identity,
        "record": f"L-{identity[-8:]}",
        "number": int.from_bytes(identity.encode()[-16:], "big") % 10**_NUMBER_DIGITS,
        "iso": instant(now),
        "s": int(now.timestamp()),
        "ms": int(now.timestamp() * 1000),
        "name": lead.name,
        "phone": lead.phone,
        "email": lead.email,
        "country": lead.country,
        "value": lead.value,
        "source": lead.source,
        "notes": lead.notes,
    }


def _filled(value: Json, words: Mapping[str, Json]) -> Json:
    if isinstance(value, dict):
        return {name: _filled(one, words) for name, one in value.items()}
    if isinstance(value, list):
        return [_filled(one, words) for one in value]
    if not isinstance(value, str):
        return value
    whole = _WORD.fullmatch(value)
    return words[whole[1]] if whole else _WORD.sub(lambda found: str(words[found[1]]), value)


def _written(body: Json, content_type: str) -> bytes:
    if content_type != _FORM:
        return json.dumps(body, ensure_ascii=False).encode()
    return urlencode(list(_fields(body))).encode()


def _fields(value: Json, name: str = "") -> list[tuple[str, str]]:
    """Return a value as form fields with bracket keys."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if pairs is None:
        return [(name, str(value))]
    return [field for key, one in pairs for field in _fields(one, f"{name}[{key}]" if name else str(key))]


def _has_file(preset: str) -> bool:
    return _FOLDER.joinpath(f"{preset}.json").is_file()


@cache
def _file(preset: str) -> Mapping[str, Json]:
    if not _has_file(preset):
        raise Problem(f'there is no sample for "{preset}"')
    found: dict[str, Json] = json.loads(_FOLDER.joinpath(f"{preset}.json").read_text(encoding="utf-8"))
    return found

"""What a signature is made over: a list of parts, joined as bytes.

Parts are `method`, `url`, `body`, `timestamp`, `id`, `header:NAME` and literal text such as "." or "v0:"; `text:` in front
makes anything a literal. Joining bytes and never text is the point: what was signed is what came in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final, Literal

from rules.vocabulary import Json

Kind = Literal["method", "url", "body", "timestamp", "id", "header", "text"]
WORDS: Final[tuple[Kind, ...]] = ("method", "url", "body", "timestamp", "id")

#: The escapes HubSpot decodes before it signs an address. Source: HubSpot, "Validating requests", signature v3.
_HUBSPOT_ESCAPES: Final = re.compile("%(3A|2F|3F|40|21|24|27|28|29|2A|2C|3B)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part; `text` is the header's name or the literal."""

    kind: Kind
    text: str = ""


def parse_part(value: Json) -> Part:
    """Return one entry of `signed`. Raises ValueError with what is wrong."""
    if not isinstance(value, str) or not value:
        raise ValueError(f'must list {", ".join(WORDS)}, header:NAME, or literal text such as "."')
    for word in WORDS:
        if value == word:
            return Part(kind=word)
    if value.lower().startswith("header:"):
        return Part(kind="header", text=value.partition(":")[2].strip().lower())
    if value.startswith("text:"):
        return Part(kind="text", text=value.removeprefix("text:"))
    if near := get_close_matches(value.lower(), WORDS, n=1, cutoff=0.7):
        raise ValueError(
            f'"{value}" is not known, did you mean {near[0]}? Literal text that looks like it: "text:{value}"'
        )
    return Part(kind="text", text=value)


def join(parts: Sequence[Part], values: Mapping[str, bytes]) -> bytes:
    """Return the signed bytes; `values` has every part by its kind, headers by `header:name`."""
    return b"".join(_bytes(part, values) for part in parts)


def _bytes(part: Part, values: Mapping[str, bytes]) -> bytes:
    if part.kind == "text":
        return part.text.encode()
    return values[f"header:{part.text}" if part.kind == "header" else part.kind]


def unescaped(url: bytes) -> bytes:
    """Return an address with HubSpot's twelve escapes decoded."""
    text = url.decode("latin-1")
    return _HUBSPOT_ESCAPES.sub(lambda found: chr(int(found[1], 16)), text).encode("latin-1")

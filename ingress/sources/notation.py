"""How single values of a source are written: secrets, headers, spans, splits, and what is never stored.

Each reader raises ValueError with a sentence; the grammar in `document.py` puts it at the right line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from ingress.sources.signed_parts import Part, parse_part
from rules.paths import Step, parse_payload_path
from rules.times import parse_span
from rules.vocabulary import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretRef:
    """A secret as written: the name of the variable that holds it, or the text itself."""

    env: str | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """One way in which a body holds several items; `constants` are reachable by path as if the item had them."""

    steps: tuple[Step, ...]
    text: str
    constants: Mapping[str, Json]


def secrets_of(value: Json) -> tuple[SecretRef, ...]:
    """Return one secret or a list of them, for rotation. Raises ValueError with what is wrong."""
    refs = tuple(_secret(one) for one in (value if isinstance(value, list) else [value]))
    if not refs:
        raise ValueError("is an empty list: name the variable that holds the secret, such as [{env: CRM_SECRET}]")
    return refs


def _secret(value: Json) -> SecretRef:
    if isinstance(value, str):
        return SecretRef(text=value)
    if isinstance(value, dict) and set(value) == {"env"} and isinstance(value["env"], str) and value["env"]:
        if value["env"].startswith("LEADWIRE_"):
            raise ValueError(f"{value['env']} is a setting of Leadwire itself and cannot be a source's secret")
        return SecretRef(env=value["env"])
    raise ValueError("must name the variable that holds the secret, such as {env: CRM_SECRET}")


def header_names(value: Json) -> tuple[str, ...]:
    """Return one header name or several, lower case. Raises ValueError with what is wrong."""
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError("must be the name of a header, or a list of names of which the first that is there counts")
    return tuple(name.strip().lower().removeprefix("header:") for name in names)


def header_value(value: str) -> str:
    """Return a text that can stand in a header. Raises ValueError for any other: it would break the answer."""
    if not (value.isascii() and value.isprintable()):
        raise ValueError("must be printable ASCII on one line, such as text/plain")
    return value


def span_of(value: Json) -> timedelta:
    """Return a span. Raises ValueError with what is wrong."""
    if not isinstance(value, str):
        raise ValueError("must be a span such as 5m")  # noqa: TRY004 - pydantic reads ValueError
    return parse_span(value)


def split_of(value: Json) -> tuple[Split, ...]:
    """Return the ways in which a body is split. Raises ValueError with what is wrong."""
    entries = value if isinstance(value, list) else [value]
    if not entries:
        raise ValueError('is an empty list: write a path such as "items[*]", or leave split out')
    return tuple(_one_split(entry) for entry in entries)


def _one_split(entry: Json) -> Split:
    constants: Json = {}
    if isinstance(entry, dict):
        if set(entry) - {"path", "set"} or not isinstance(entry.get("path"), str):
            raise ValueError('must be a path such as "items[*]", or {path: "items[*]", set: {name: value}}')
        constants = entry.get("set", {})
        if not isinstance(constants, dict):
            raise ValueError("set: must be names with their values, such as {kind: lead}")  # noqa: TRY004 - pydantic reads ValueError
        entry = entry["path"]
    if not isinstance(entry, str):
        raise ValueError('must be a path such as "items[*]"')  # noqa: TRY004 - pydantic reads ValueError
    return Split(steps=_root_steps(entry), text=entry, constants=constants)


def _root_steps(text: str) -> tuple[Step, ...]:
    """Return the steps of a path that begins at the whole body; `$root` may be written and means nothing more."""
    steps = parse_payload_path(text)
    return steps[1:] if steps[0] == "$root" and len(steps) > 1 else steps


def plain_path(value: Json) -> str:
    """Return a path after checking that it is one. Raises ValueError with what is wrong."""
    if not isinstance(value, str):
        raise ValueError("must be a path such as token")  # noqa: TRY004 - pydantic reads ValueError
    parse_payload_path(value)
    return value


def redacted_paths(value: Json) -> tuple[tuple[Step, ...], ...]:
    """Return what is never stored. Raises ValueError with what is wrong."""
    paths = value if isinstance(value, list) else [value]
    if not all(isinstance(path, str) for path in paths):
        raise ValueError("must be a path, or a list of paths, of what is never to be stored")
    return tuple(_root_steps(path) for path in paths)


def parts_of(value: Json) -> tuple[Part, ...]:
    """Return what is signed. Raises ValueError with what is wrong."""
    entries = value if isinstance(value, list) else [value]
    if not entries:
        raise ValueError('is an empty list: write what is signed, such as [body] or [timestamp, ".", body]')
    return tuple(parse_part(entry) for entry in entries)


def not_yet(_value: Json) -> None:
    """Refuse what a later version brings. Raises ValueError with what is wrong."""
    raise ValueError("is not yet supported; until it is, have the sender put phone and name into the webhook")

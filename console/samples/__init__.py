"""Sample webhooks as a source's own sender would make them: for `leadwire send`, the demo and the tests.

Samples of presets are data, a JSON file each in this folder, in which `$name` and the like stand for what the caller gives.
A user's own source gets a payload that has a value at every path it declares. `sign` and `post` take a payload to the ingress.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import cache
from importlib.resources import files
from typing import Final
from urllib.parse import urlencode

import httpx

from ingress.sources import Source
from ingress.sources.schema import TimeUnit
from rules.paths import CompiledPath, Step, parse_payload_path
from rules.vocabulary import Json, Problem, instant

JSON: Final = "application/json"
FORM: Final = "application/x-www-form-urlencoded"
POST_TIMEOUT_SECONDS: Final = 15.0
#: The event a made-up sample stands for, where the source knows it.
EVENT_TYPE: Final = "lead.created"
#: Digits of a number that stands for an id: exact in every reader of JSON.
NUMBER_DIGITS: Final = 12

_FOLDER: Final = files(__package__)
_PLACEHOLDER: Final = re.compile(r"\$([a-z]+)")
_PART: Final = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lead:
    """The person and record that a sample webhook is about."""

    name: str = "Ana Prueba"
    phone: str = "+56911112222"
    email: str = "ana@example.com"
    country: str = "CL"
    value: float = 12000
    source: str = "web_form"
    notes: str = "Asked for a call on the web form."


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A payload to sign and post; `headers` are those that the source reads events from."""

    body: bytes
    content_type: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Posted:
    """The ingress's answer."""

    status: int
    text: str

    @property
    def accepted(self) -> bool:
        """Whether the answer was a success."""
        return httpx.codes.is_success(self.status)


def variants(source: Source) -> tuple[str, ...]:
    """Return the names of a source's samples, the default first."""
    return tuple(_file(source.preset)) or ("lead",)


def sample(
    source: Source, *, now: datetime, new_id: Callable[[str], str], variant: str | None = None, lead: Lead | None = None
) -> Sample:
    """Return a fresh payload for a source: its preset's, or one made from the paths it declares.

    Raises Problem for a variant that does not exist and for a source that no payload can be made for.
    """
    values = _values(lead or Lead(), now, new_id)
    if choices := _file(source.preset):
        chosen = choices.get(variant or next(iter(choices)))
        if chosen is None:
            raise Problem(f'there is no sample "{variant}" for {source.preset}; samples: {", ".join(choices)}')
        return filled_sample(chosen["body"], chosen["content_type"], values)
    body, headers = _made_up(source, values)
    content_type = JSON if source.body.format in ("json", "auto") else FORM
    return Sample(body=_encoded(body, content_type), content_type=content_type, headers=headers)


def filled_sample(body: Json, content_type: str, values: Mapping[str, Json]) -> Sample:
    """Return a payload whose `$name` placeholders are filled in, as JSON or, with that content type, as form fields."""
    return Sample(body=_encoded(_filled(body, values), content_type), content_type=content_type)


def sign(source: Source, payload: Sample, base_url: str, now: datetime) -> httpx.Request:
    """Return the request that the source's sender would make; posting it twice is a redelivery: the same bytes again.

    Raises Problem where only the real sender can sign.
    """
    url = f"{base_url.rstrip('/')}/webhooks/{source.name}"
    try:
        signed = source.sign(payload.body, payload.content_type, url, now)
        return httpx.Request(
            signed.method,
            url,
            params=dict(signed.query) or None,
            headers={**payload.headers, **signed.headers},
            content=signed.body,
        )
    except (ValueError, httpx.InvalidURL) as error:
        raise Problem(f"{base_url}: is no address such as http://127.0.0.1:8080: {error}") from error


def post(request: httpx.Request) -> Posted:
    """Post a signed request. Raises Problem when nobody answers."""
    url = request.url.copy_with(query=None)  # which may hold a secret
    try:
        with httpx.Client(timeout=POST_TIMEOUT_SECONDS, trust_env=False) as client:
            answer = client.send(request)
    except httpx.ConnectError as error:
        raise Problem(f"nobody listens at {url}: start `leadwire up`, or name the server with --url") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Problem(f"{url}: {str(error) or type(error).__name__}") from error
    return Posted(status=answer.status_code, text=answer.text)


def _values(lead: Lead, now: datetime, new_id: Callable[[str], str]) -> dict[str, Json]:
    """Return what placeholders stand for in one fresh sample."""
    identity = new_id("sample")
    return {
        **asdict(lead),
        "id": identity,
        "record": f"L-{identity[-8:]}",
        "number": int.from_bytes(identity.encode()[-16:], "big") % 10**NUMBER_DIGITS,
        "iso": instant(now),
        "s": int(now.timestamp()),
        "ms": int(now.timestamp() * 1000),
    }


def _filled(value: Json, values: Mapping[str, Json]) -> Json:
    """Return a value with its placeholders filled in; a text that is nothing but one takes its value's type."""
    if isinstance(value, dict):
        return {name: _filled(one, values) for name, one in value.items()}
    if isinstance(value, list):
        return [_filled(one, values) for one in value]
    if not isinstance(value, str):
        return value
    whole = _PLACEHOLDER.fullmatch(value)
    return values[whole[1]] if whole else _PLACEHOLDER.sub(lambda found: str(values[found[1]]), value)


def _encoded(body: Json, content_type: str) -> bytes:
    text = urlencode(_form_fields(body)) if content_type == FORM else json.dumps(body, ensure_ascii=False)
    return text.encode()


def _form_fields(value: Json, name: str = "") -> list[tuple[str, str]]:
    """Return a value as form fields with bracket keys."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if pairs is None:
        return [(name, str(value))]
    return [field for key, one in pairs for field in _form_fields(one, f"{name}[{key}]" if name else str(key))]


@cache
def _file(preset: str | None) -> Mapping[str, Json]:
    """Return the samples of a preset by their names; none where it has no file."""
    file = _FOLDER.joinpath(f"{preset}.json")
    found: dict[str, Json] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found


# Samples made from the paths that a source declares


def _made_up(source: Source, values: Mapping[str, Json]) -> tuple[Json, Mapping[str, str]]:
    """Return a body and the headers that go with it. Raises Problem for a source that reads XML.

    The first of several paths is used; a type that `map` knows is written in the source's own word for it.
    """
    if source.body.format == "xml":
        raise Problem(f"{source.name}: no XML sample can be made; send a file of your own")
    data, event, contact = source.mapping.data, source.mapping.event, source.mapping.contact
    split = source.splits[0] if source.splits else None
    draft = _PayloadDraft(split.constants if split else {})
    about = {name: values[name] for name in ("value", "source", "notes")}
    if data is None:
        draft.item = about
    for name, value in about.items() if data else ():
        place = _first(data)
        draft.put(name if place == "$item" else f"{place}.{name}", value)
    raw_types = event.map
    raw_type = next((raw for raw, word in raw_types.items() if word == EVENT_TYPE), next(iter(raw_types), EVENT_TYPE))
    draft.put(_first(event.type), raw_type)
    for path in (event.id, *(event.dedupe.paths if event.dedupe else ())):
        draft.put(_first(path), values["id"])
    draft.put(_first(event.subject.id if event.subject else None), values["record"])
    for name in ("name", "phone", "email", "country"):
        draft.put(_first(getattr(contact, name)), values[name])
    if event.occurred_at:
        unit = event.occurred_at.unit
        form = "iso" if unit in (TimeUnit.ISO, TimeUnit.AUTO) else "ms" if unit is TimeUnit.MILLISECONDS else "s"
        draft.put(_first(event.occurred_at.path), values[form])
    body = draft.item
    if split:
        body = _with(draft.root, split.steps, draft.item)
    elif isinstance(draft.root, dict) and isinstance(body, dict):
        body = {**draft.root, **body}
    return body, draft.headers


def _first(path: CompiledPath | None) -> str:
    """Return the first of several paths as text; empty for none."""
    return path.text.partition(", ")[0] if path else ""


class _PayloadDraft:
    """A body and headers under construction."""

    def __init__(self, constants: Mapping[str, Json]) -> None:
        self.item: Json = {}
        self.root: Json = {}
        self.headers: dict[str, str] = {}
        self._constants = constants

    def put(self, path: str, value: Json) -> None:
        """Write a value where a path will find it; for several paths in a text, each gets its part of the value."""
        if "{" in path:
            parts = _PART.findall(path)
            pattern = "(.+?)".join(re.escape(piece) for piece in _PART.split(path)[0::2])
            found = re.fullmatch(pattern, str(value))
            for part, text in zip(parts, found.groups() if found else [str(value)] * len(parts), strict=True):
                self._put_one(part.strip(), text)
        elif path:
            self._put_one(path, value)

    def _put_one(self, path: str, value: Json) -> None:
        if path.lower().startswith("header:"):
            self.headers[path.partition(":")[2].strip().lower()] = str(value)
            return
        steps = parse_payload_path(path)
        if steps[0] == "$root":
            self.root = _with(self.root, steps[1:], value)
        elif steps[0] == "$item":
            self.item = _with(self.item, steps[1:], value)
        elif steps[0] not in self._constants:
            self.item = _with(self.item, steps, value)


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

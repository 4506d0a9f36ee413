"""What may be written under `sources:`: the models that check it, the presets, the messages, and the JSON Schema.

What a source says is data; the closed families (body, auth, handshake, paths) are the only words with code behind them.
Paths are compiled while they are checked, so that a mistake is found where it is written. The validated models are what
the other modules of this folder work with at run time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from difflib import get_close_matches
from enum import StrEnum
from functools import cache
from importlib.resources import files
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, ValidationError, model_validator
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import ErrorDetails, core_schema

from rules.messages import did_you_mean, kind, listed
from rules.paths import CompiledPath, Match, Steps, compile_match, compile_path, parse_payload_path
from rules.schema import allowed_keys, model_at
from rules.times import parse_span
from rules.vocabulary import Json
from rules.yaml_reader import Path, SourceMap, read

#: The kinds of verifier, in the words of a source: a signature is computed, or the secret itself is sent.
SIGNATURE_KINDS: Final = ("hmac", "hash_concat", "ed25519", "rsa_sha256")
VERIFIER_KINDS: Final = (*SIGNATURE_KINDS, "basic", "static_header", "url_token", "body_token")
HANDSHAKE_KINDS: Final = ("get_echo", "json_challenge", "options", "ignore")
#: A larger limit is a mistake.
LARGEST_BODY_LIMIT_BYTES: Final = 32 * 1024 * 1024
#: Kommo sends thousands of fields for a batch of contacts.
FIELDS_LIMIT: Final = 20_000
#: What can be signed, beside headers and literal text.
_PART_WORDS: Final = ("method", "url", "body", "timestamp", "id")
#: Stands for the hash of the item in `dedupe`.
CONTENT: Final = "$content"

# -- values with a notation of their own -------------------------------------------------------------------------------
#
# Each reader raises ValueError with a sentence, and pydantic says where.


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretReference:
    """A secret in a rule file: the environment variable that holds it, or the text itself."""

    env: str | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitPath:
    """One way to split a body into items. `constants` can be read by path as if each item had them."""

    steps: Steps
    text: str
    constants: Mapping[str, Json]


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedPart:
    """One part of the signed message. `kind`: `header`, `text` or a word of `_PART_WORDS`; `text`: header name or literal."""

    kind: str
    text: str = ""

    @property
    def key(self) -> str:
        """The part's name in messages, and the key under which its bytes are cached during a check."""
        return f"header:{self.text}" if self.kind == "header" else self.kind


class TimeUnit(StrEnum):
    """How a source writes moments."""

    ISO = "iso"
    SECONDS = "s"
    MILLISECONDS = "ms"
    #: By its looks: text is ISO 8601, a number is seconds or milliseconds by its size.
    AUTO = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class MomentPath:
    """The path of the moment at which an item happened, and its unit."""

    path: CompiledPath
    unit: TimeUnit = TimeUnit.ISO


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeByField:
    """Maps a raw event type to a canonical one by the value of another field."""

    field: CompiledPath
    types: Mapping[str, str]
    otherwise: str | TypeByField | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DedupeKey:
    """The values that together identify an event without an id; `with_content` adds a hash of the item."""

    paths: tuple[CompiledPath, ...]
    with_content: bool


def _one_or_more(read_one: Callable[[Json], object], if_empty: str) -> PlainValidator:
    """Return what reads one value, or a list of them that must not be empty, as a tuple."""

    def read(value: Json) -> tuple[object, ...]:
        if value == []:
            raise ValueError(f"is an empty list: {if_empty}")
        return tuple(read_one(one) for one in (value if isinstance(value, list) else [value]))

    return PlainValidator(read)


def _text(value: Json, otherwise: str) -> str:
    if not isinstance(value, str):
        raise ValueError(otherwise)  # noqa: TRY004 - pydantic reads ValueError
    return value


def _secret(value: Json) -> SecretReference:
    if isinstance(value, str):
        return SecretReference(text=value)
    if isinstance(value, dict) and set(value) == {"env"} and isinstance(value["env"], str) and value["env"]:
        if value["env"].startswith("LEADWIRE_"):
            raise ValueError(f"{value['env']} is a setting of Leadwire itself and cannot be a source's secret")
        return SecretReference(env=value["env"])
    raise ValueError("must name the variable that holds the secret, such as {env: CRM_SECRET}")


def _header_names(value: Json) -> tuple[str, ...]:
    """Read one header name or several, lower case."""
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError("must be the name of a header, or a list of names of which the first that is there counts")
    return tuple(name.strip().lower().removeprefix("header:") for name in names)


def _header_value(value: str) -> str:
    """Refuse a text that would break the response whose header it is."""
    if not (value.isascii() and value.isprintable()):
        raise ValueError("must be printable ASCII on one line, such as text/plain")
    return value


def _span(value: Json) -> timedelta:
    return parse_span(_text(value, "must be a span such as 5m"))


def _split(entry: Json) -> SplitPath:
    constants: Json = {}
    if isinstance(entry, dict):
        if set(entry) - {"path", "set"} or not isinstance(entry.get("path"), str):
            raise ValueError('must be a path such as "items[*]", or {path: "items[*]", set: {name: value}}')
        constants = entry.get("set", {})
        if not isinstance(constants, dict):
            raise ValueError("set: must be names with their values, such as {kind: lead}")  # noqa: TRY004 - see _text
        entry = entry["path"]
    text = _text(entry, 'must be a path such as "items[*]"')
    return SplitPath(steps=_root_steps(text), text=text, constants=constants)


def _root_steps(text: str) -> Steps:
    """Read a path that begins at the whole body; `$root` may be written and means nothing more."""
    steps = parse_payload_path(text)
    return steps[1:] if steps[0] == "$root" and len(steps) > 1 else steps


def _plain_path(value: Json) -> str:
    text = _text(value, "must be a path such as token")
    parse_payload_path(text)
    return text


def _redacted_paths(value: Json) -> tuple[Steps, ...]:
    paths = value if isinstance(value, list) else [value]
    if not all(isinstance(path, str) for path in paths):
        raise ValueError("must be a path, or a list of paths, of what is never to be stored")
    return tuple(_root_steps(path) for path in paths)


def _signed_part(value: Json) -> SignedPart:
    """Read `method`, `url`, `body`, `timestamp`, `id`, `header:NAME` or a literal; `text:` makes anything a literal."""
    if not isinstance(value, str) or not value:
        raise ValueError(f'must list {", ".join(_PART_WORDS)}, header:NAME, or literal text such as "."')
    if value in _PART_WORDS:
        return SignedPart(kind=value)
    if value.lower().startswith("header:"):
        return SignedPart(kind="header", text=value.partition(":")[2].strip().lower())
    if value.startswith("text:"):
        return SignedPart(kind="text", text=value.removeprefix("text:"))
    if near := get_close_matches(value.lower(), _PART_WORDS, n=1, cutoff=0.7):
        raise ValueError(
            f'"{value}" is not known, did you mean {near[0]}? Literal text that looks like it: "text:{value}"'
        )
    return SignedPart(kind="text", text=value)


def _type_map(value: Json) -> dict[str, str | TypeByField]:
    if not isinstance(value, dict):
        raise ValueError("must pair the source's words with types, such as {lead_new: lead.created}")  # noqa: TRY004 - see _text
    return {raw: _type(raw, word) for raw, word in value.items()}


def _type(raw: str, word: Json) -> str | TypeByField:
    if isinstance(word, str) and word.strip():
        return word.strip()
    if not isinstance(word, dict) or set(word) - {"by", "is", "else"} or not isinstance(word.get("is"), dict):
        raise ValueError(
            f"{raw}: must be a type such as lead.created, or {{by: path, is: {{value: type}}, else: type}}"
        )
    if not all(isinstance(one, str) for one in word["is"].values()):
        raise ValueError(f"{raw}: every type must be text, such as lead.created")
    otherwise = None if word.get("else") is None else _type(raw, word["else"])
    return TypeByField(field=compile_path(word.get("by")), types=dict(word["is"]), otherwise=otherwise)


def _dedupe(value: Json) -> DedupeKey:
    if not isinstance(value, list) or not value:
        raise ValueError("must be a list of paths that identify an event together, such as [account, id, updated_at]")
    paths = tuple(compile_path(one) for one in value if one != CONTENT)
    if not paths:
        raise ValueError(f"{CONTENT} alone identifies nothing: name at least one path beside it")
    return DedupeKey(paths=paths, with_content=CONTENT in value)


def _moment_path(value: Json) -> MomentPath:
    """Read a path, or `{path, unit}`."""
    if not isinstance(value, dict):
        return MomentPath(path=compile_path(value))
    if set(value) - {"path", "unit"} or "path" not in value:
        raise ValueError("must be a path, or {path: created_at, unit: iso}")
    try:
        unit = TimeUnit(value.get("unit", TimeUnit.ISO))
    except ValueError:
        raise ValueError(f"unit: must be one of: {', '.join(TimeUnit)}") from None
    return MomentPath(path=compile_path(value["path"]), unit=unit)


def _not_yet(_value: Json) -> None:
    raise ValueError("is not yet supported; until it is, have the sender put phone and name into the webhook")


PayloadPath = Annotated[CompiledPath, PlainValidator(compile_path)]
Secrets = Annotated[
    tuple[SecretReference, ...],
    _one_or_more(_secret, "name the variable that holds the secret, such as [{env: CRM_SECRET}]"),
]
SignedParts = Annotated[
    tuple[SignedPart, ...],
    _one_or_more(_signed_part, 'write what is signed, such as [body] or [timestamp, ".", body]'),
]
Splits = Annotated[tuple[SplitPath, ...], _one_or_more(_split, 'write a path such as "items[*]", or leave split out')]
HeaderNames = Annotated[tuple[str, ...], PlainValidator(_header_names)]
Span = Annotated[timedelta, PlainValidator(_span)]
Matching = Annotated[Match, PlainValidator(compile_match)]
Text = Annotated[str, Field(min_length=1, max_length=500)]
HeaderValue = Annotated[Text, AfterValidator(_header_value)]
KeyEncoding = Literal["text", "hex", "base64"]


class _Section(BaseModel):
    """A mapping with these keys and no others."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)


# -- auth --------------------------------------------------------------------------------------------------------------


class VerifierSection(_Section):
    """What every verifier has: its own secrets; without them, those under `secrets`."""

    key: Secrets | None = None
    key_encoding: KeyEncoding = "text"
    key_prefix: Text | None = None
    key_prefix_required: bool = False


class SignatureSection(VerifierSection):
    """Where a signature stands and what it is made over."""

    header: HeaderNames
    encoding: Literal["hex", "base64"] = "hex"
    prefix: str = ""
    separator: Text | None = None
    scheme: Text | None = None
    scheme_separator: Text = "="
    signed: SignedParts = (SignedPart(kind="body"),)


class HmacSection(SignatureSection):
    """A keyed hash over the signed parts."""

    algorithm: Literal["sha1", "sha256", "sha512"] = "sha256"


class PublicKeySection(SignatureSection):
    """A signature that a public key verifies: base64 (raw or SPKI), hex or PEM."""

    key_encoding: KeyEncoding = "base64"
    encoding: Literal["hex", "base64"] = "base64"


class BasicSection(VerifierSection):
    """HTTP Basic: the secret is `user:password`, or the password where `user` is given or any user will do."""

    user: str | None = None
    any_user: bool = False


class StaticHeaderSection(VerifierSection):
    """The secret itself in a header, after `prefix`."""

    header: HeaderNames
    prefix: str = ""


class UrlTokenSection(VerifierSection):
    """The secret itself in the address."""

    param: Text = "token"


class BodyTokenSection(VerifierSection):
    """The secret itself in the body; it is replaced before anything is stored."""

    path: Annotated[str, PlainValidator(_plain_path)]


class TimestampSection(_Section):
    """When the request was made, as the sender says: exactly one of header, item (of the signature's list) and path."""

    header: HeaderNames | None = None
    item: Text | None = None
    path: PayloadPath | None = None
    unit: Literal["s", "ms", "iso"] = "s"
    max_age: Span = timedelta(minutes=5)
    max_future: Span = timedelta(minutes=5)

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if sum(place is not None for place in (self.header, self.item, self.path)) != 1:
            raise ValueError("needs exactly one of: header, item, path")
        return self


class IdSection(_Section):
    """The header that holds the delivery's id, for `signed: [id, ...]`."""

    header: HeaderNames


class WayInSection(_Section):
    """One way to prove where a request is from."""

    name: Text | None = None
    enabled: bool = True
    timestamp: TimestampSection | None = None
    id: IdSection | None = None
    hmac: HmacSection | None = None
    hash_concat: HmacSection | None = None
    ed25519: PublicKeySection | None = None
    rsa_sha256: PublicKeySection | None = None
    basic: BasicSection | None = None
    static_header: StaticHeaderSection | None = None
    url_token: UrlTokenSection | None = None
    body_token: BodyTokenSection | None = None

    @property
    def kinds(self) -> list[str]:
        """The kinds of verifier that are given: one, or none beside `any_of`."""
        return [kind for kind in VERIFIER_KINDS if getattr(self, kind) is not None]

    @property
    def kind(self) -> str:
        """The one kind of verifier that is given."""
        return self.kinds[0]

    @property
    def verifier(self) -> VerifierSection:
        """What stands under that kind."""
        found: VerifierSection = getattr(self, self.kind)
        return found

    @property
    def signed_kinds(self) -> set[str]:
        """The kinds of parts that are signed; none where the secret itself is sent."""
        return {part.kind for kind in SIGNATURE_KINDS if (section := getattr(self, kind)) for part in section.signed}

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if len(self.kinds) > 1:
            raise ValueError(f"has {' and '.join(self.kinds)}: list them under any_of, one for each way in")
        if not self.kinds and type(self) is WayInSection:
            raise ValueError(f"needs one of: {', '.join(VERIFIER_KINDS)}")
        if "timestamp" in self.signed_kinds and self.timestamp is None:
            raise ValueError("signs a timestamp: say where it is, such as timestamp: {header: X-Timestamp, unit: s}")
        if "id" in self.signed_kinds and self.id is None:
            raise ValueError("signs an id: say where it is, such as id: {header: X-Event-Id}")
        return self


class AuthSection(WayInSection):
    """How a request proves where it is from: one verifier, or several of which one is enough."""

    any_of: list[WayInSection] | None = None
    enable: list[Text] = Field(default_factory=list)

    @property
    def ways_in(self) -> list[tuple[Path, WayInSection]]:
        """Every way in with its place below the source."""
        if self.any_of is None:
            return [(("auth",), self)]
        return [(("auth", "any_of", index), entry) for index, entry in enumerate(self.any_of)]

    @model_validator(mode="after")
    def _some_way(self) -> Self:
        if self.any_of is not None and self.kinds:
            raise ValueError(f"has both any_of and {self.kind}: move {self.kind} into any_of")
        if self.any_of == []:
            raise ValueError(
                f"any_of is an empty list: list at least one way in, each with one of: {', '.join(VERIFIER_KINDS)}"
            )
        if not self.any_of and not self.kinds:
            raise ValueError(f"needs any_of, or one of: {', '.join(VERIFIER_KINDS)}")
        return self


# -- body and event ----------------------------------------------------------------------------------------------------


class UrlSection(_Section):
    """The address the sender knows, for signatures that cover it."""

    public_base: Text | None = None
    unescape: Literal["hubspot"] | None = None


class BodyFormat(StrEnum):
    """The forms a body can have."""

    JSON = "json"
    FORM = "form"
    FORM_BRACKETS = "form-brackets"
    XML = "xml"
    AUTO = "auto"


class BodySection(_Section):
    """How the body is read; `json_field` names the form field that holds the JSON, where there is one."""

    format: Annotated[BodyFormat, Field(strict=False)] = BodyFormat.JSON
    charset: Literal["utf-8", "cp1252", "latin-1"] | None = None
    fields_limit: Annotated[int, Field(ge=1, le=FIELDS_LIMIT * 5)] = FIELDS_LIMIT
    json_field: Text | None = None
    limit_bytes: Annotated[int, Field(ge=1024, le=LARGEST_BODY_LIMIT_BYTES)] | None = None


class SubjectSection(_Section):
    """The record an event is about; without `kind` it is the first word of the event's type."""

    kind: Text | None = None
    id: PayloadPath


class ChangedSection(_Section):
    """Which fields changed: one named by `field`, or those of the maps `before` and `after` (or listed in `fields`)."""

    field: PayloadPath | None = None
    fields: PayloadPath | None = None
    before: PayloadPath | None = None
    after: PayloadPath | None = None


class EventSection(_Section):
    """Where an item says what happened, when, and to what."""

    type: PayloadPath
    map: Annotated[Mapping[str, str | TypeByField], PlainValidator(_type_map)] = Field(default_factory=dict)
    id: PayloadPath | None = None
    dedupe: Annotated[DedupeKey, PlainValidator(_dedupe)] | None = None
    occurred_at: Annotated[MomentPath, PlainValidator(_moment_path)] | None = None
    subject: SubjectSection | None = None
    changed: ChangedSection | None = None
    attempt: PayloadPath | None = None


class ContactSection(_Section):
    """Where an item says who it is about."""

    id: PayloadPath | None = None
    name: PayloadPath | None = None
    phone: PayloadPath | None = None
    email: PayloadPath | None = None
    country: PayloadPath | None = None
    timezone: PayloadPath | None = None
    language: PayloadPath | None = None
    consent: PayloadPath | None = None


class AckSection(_Section):
    """What the sender is told: `status` and `body` on success, `busy_status` when it is to come again."""

    status: Annotated[int, Field(ge=200, le=299)] = 200
    busy_status: Literal[429, 500, 502, 503, 504] = 503
    body: str | None = None
    content_type: HeaderValue | None = None


# -- handshakes and the whole source -----------------------------------------------------------------------------------


class GetEchoSection(_Section):
    """A GET whose parameter is echoed when its token is `verify_token`."""

    param: Text = "hub.challenge"
    token_param: Text = "hub.verify_token"  # noqa: S105 - the name of a parameter
    expect: dict[str, str] = Field(default_factory=dict)


class ChallengeSection(_Section):
    """A verified POST that asks for a value of its own body back."""

    match: Matching
    answer: PayloadPath
    respond: Literal["text", "json"] = "json"


class OptionsSection(_Section):
    """The OPTIONS handshake of the CloudEvents webhook specification; `rate` is requests a minute."""

    rate: Annotated[int, Field(ge=1)] | None = None


class IgnoreSection(_Section):
    """A verified POST that means nothing, such as a ping."""

    match: Matching


class HandshakeSection(_Section):
    """One question a sender asks before or between events."""

    get_echo: GetEchoSection | None = None
    json_challenge: ChallengeSection | None = None
    options: OptionsSection | None = None
    ignore: IgnoreSection | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if sum(getattr(self, kind) is not None for kind in HANDSHAKE_KINDS) != 1:
            raise ValueError(f"needs exactly one of: {', '.join(HANDSHAKE_KINDS)}")
        return self


class SourceSection(_Section):
    """One entry of `sources:`, its preset merged in."""

    extend: Text | None = None
    description: str | None = None
    secrets: Secrets | None = None
    verify_token: Secrets | None = None
    url: UrlSection = Field(default_factory=UrlSection)
    auth: AuthSection
    body: BodySection = Field(default_factory=BodySection)
    split: Splits | None = None
    event: EventSection
    contact: ContactSection = Field(default_factory=ContactSection)
    data: PayloadPath | None = None
    region: Annotated[str, Field(pattern="^[A-Z]{2}$")] | None = None
    ack: AckSection = Field(default_factory=AckSection)
    handshake: list[HandshakeSection] = Field(default_factory=list)
    redact: Annotated[tuple[Steps, ...], PlainValidator(_redacted_paths)] = ()
    enrich: Annotated[None, PlainValidator(_not_yet)] = None


# -- presets -----------------------------------------------------------------------------------------------------------

_FOLDER: Final = files(__package__)
#: The names of the presets, in order: one YAML file each in this folder; a new one needs no line of code.
PRESETS: Final = tuple(
    sorted(entry.name.removesuffix(".yaml") for entry in _FOLDER.iterdir() if entry.name.endswith(".yaml"))
)
#: Keys under `auth` that only adjust a preset's; all others say how a request proves where it is from.
_ADJUSTMENTS: Final = frozenset({"enable"})


@cache
def preset(name: str) -> Mapping[str, Json]:
    """Return a preset's YAML as a mapping."""
    value, places = read(_FOLDER.joinpath(f"{name}.yaml").read_text(encoding="utf-8"), f"{name}.yaml")
    assert isinstance(value, dict), places.faults  # package data: proven by a test over every preset
    return value


def extended(base: Mapping[str, Json], own: Mapping[str, Json]) -> dict[str, Json]:
    """Return a preset overridden by a user's source: mappings are merged key by key, everything else is replaced.

    Two exceptions: an `auth` with a verifier of its own replaces the preset's as a whole, and so does a `split`.
    """
    result = dict(base)
    for key, value in own.items():
        if key == "auth" and isinstance(value, dict) and set(value) - _ADJUSTMENTS:
            result[key] = value
        else:
            result[key] = _laid_over(result.get(key), value)
    return result


def _laid_over(base: Json, own: Json) -> Json:
    if not isinstance(base, dict) or not isinstance(own, dict):
        return own
    return {**base, **{key: _laid_over(base.get(key), value) for key, value in own.items()}}


# -- messages ----------------------------------------------------------------------------------------------------------

#: What a key holds, for the message when it is missing.
_NEEDED: Final = {
    "auth": "how requests prove where they are from, such as {static_header: {header: X-Webhook-Secret}}",
    "event": "where an item says what happened, such as {type: event}",
    "type": "the path of the event's type, such as event",
    "header": "the name of the header that is looked at",
    "path": "the path that is looked at",
    "id": "the path of the record's id",
    "match": "paths with the values wanted there, such as {type: ping}",
    "answer": "the path of the value that is sent back",
}
_MESSAGES: Final = {
    "string_type": "must be text",
    "string_too_short": "is empty",
    "string_too_long": "is longer than {max_length} characters",
    "string_pattern_mismatch": "must be two capital letters, such as CL",
    "int_type": "must be a whole number",
    "bool_type": "must be true or false",
    "list_type": "must be a list; begin each entry with `-`",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "greater_than_equal": "must be {ge} or more",
    "less_than_equal": "must be {le} or less",
}


def parse_source(raw: Json, places: SourceMap, at: Path) -> SourceSection | None:
    """Return a source, or None after adding every fault to `places`; `at` is the source's path in its file.

    Messages do not quote values, since one next to a misspelt key may be a secret. A wrong word where only listed words are
    allowed is quoted.
    """
    try:
        return SourceSection.model_validate(raw)
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            _record_fault(fault, places, at)
        return None


def _record_fault(fault: ErrorDetails, places: SourceMap, at: Path) -> None:
    loc = tuple(fault["loc"])
    path = (*at, *loc)
    context = fault.get("ctx", {})
    match fault["type"]:
        case "extra_forbidden":
            model = model_at(loc[:-1], SourceSection)
            keys = allowed_keys(model) if model else []
            places.add_fault(
                path, f"unknown key{did_you_mean(str(loc[-1]), keys) or ';'} allowed here: {listed(keys)}", at_key=True
            )
        case "missing":
            key = str(loc[-1])
            needed = f": {_NEEDED[key]}" if key in _NEEDED else ""
            places.add_fault(path[:-1], f"missing key `{key}`{needed}", at_key=True)
        case "value_error":
            places.add_fault(path, str(context["error"]))
        case "literal_error" | "enum":
            words = [word.strip("' ") for word in re.split(", | or ", str(context["expected"]))]
            meant = did_you_mean(fault["input"], words) if isinstance(fault["input"], str) else ""
            given = kind(fault["input"])
            places.add_fault(path, f"{given} is not one of the words known here{meant or ';'} allowed: {listed(words)}")
        case other:
            places.add_fault(path, _MESSAGES.get(other, "cannot stand here").format(**context))


# -- JSON Schema -------------------------------------------------------------------------------------------------------

_VARIABLE: Final = {"type": "string", "pattern": r"\$\{"}


class _LenientSchema(GenerateJsonSchema):
    """Takes any value where code of ours reads it (paths, spans, secrets), and leaves defaults out."""

    def function_plain_schema(self, schema: core_schema.PlainValidatorFunctionSchema) -> JsonSchemaValue:  # noqa: ARG002 - all alike
        return {}

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])


def definitions() -> dict[str, Json]:
    """Return the JSON Schemas of a source (`SourceSection`) and its sections, by the names of their models.

    No key is required, because the preset that a source extends may provide it.
    """
    made = SourceSection.model_json_schema(schema_generator=_LenientSchema)
    found = made.pop("$defs")
    made["properties"]["extend"] = {"enum": [*PRESETS]}
    del made["properties"]["enrich"]  # it comes with a later version
    found["SourceSection"] = made
    return {name: _cleaned(value) for name, value in found.items()}


def _cleaned(value: Json) -> Json:
    """Return a schema without required keys and titles; where a word of a list may stand, a variable may, too."""
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    if not isinstance(value, dict):
        return value
    made = {
        key: {name: _cleaned(one) for name, one in item.items()} if key == "properties" else _cleaned(item)
        for key, item in value.items()
        if key not in ("required", "title")
    }
    if "properties" in made:
        made["type"] = ["object", "null"]  # null takes away what the preset says
    if made.get("anyOf", [])[1:] == [{"type": "null"}] and "$ref" in made["anyOf"][0]:
        made |= made.pop("anyOf")[0]
    if "enum" in made or "const" in made:
        return {"anyOf": [made, _VARIABLE]}
    return made

"""The grammar of one source: which keys there are, what they may hold, and the sentence for each mistake.

What a source says is data; the closed families (body, auth, handshake, paths) are the only words with code behind them.
Paths are compiled while they are checked, so that a mistake is found where it is written.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, model_validator

from ingress.sources.event_words import Dedupe, TypeMap, When, compile_dedupe, compile_type_map, compile_when
from ingress.sources.notation import (
    SecretRef,
    Split,
    header_names,
    header_value,
    not_yet,
    parts_of,
    plain_path,
    redacted_paths,
    secrets_of,
    span_of,
    split_of,
)
from ingress.sources.parse import FIELDS_LIMIT, Format
from ingress.sources.signed_parts import Part
from rules.paths import CompiledPath, Match, Step, compile_match, compile_path

#: The kinds of verifier, in the words of a source.
KINDS: Final = ("hmac", "hash_concat", "ed25519", "rsa_sha256", "basic", "static_header", "url_token", "body_token")
#: A larger limit is a mistake.
LARGEST_BODY_LIMIT_BYTES: Final = 32 * 1024 * 1024


Path = Annotated[CompiledPath, PlainValidator(compile_path)]
Secrets = Annotated[tuple[SecretRef, ...], PlainValidator(secrets_of)]
HeaderNames = Annotated[tuple[str, ...], PlainValidator(header_names)]
Span = Annotated[timedelta, PlainValidator(span_of)]
Matching = Annotated[Match, PlainValidator(compile_match)]
Text = Annotated[str, Field(min_length=1, max_length=500)]
HeaderValue = Annotated[Text, AfterValidator(header_value)]


class Strict(BaseModel):
    """A mapping with these keys and no others."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)


class Keyed(Strict):
    """What every verifier has: its own secrets; without them, those under `secrets`."""

    key: Secrets | None = None
    key_encoding: Literal["text", "hex", "base64"] = "text"
    key_prefix: Text | None = None
    key_prefix_required: bool = False


class SignatureDoc(Keyed):
    """Where a signature stands and what it is made over."""

    header: HeaderNames
    encoding: Literal["hex", "base64"] = "hex"
    prefix: str = ""
    separator: Text | None = None
    scheme: Text | None = None
    scheme_separator: Text = "="
    signed: Annotated[tuple[Part, ...], PlainValidator(parts_of)] = (Part(kind="body"),)


class HmacDoc(SignatureDoc):
    """A keyed hash over the signed parts."""

    algorithm: Literal["sha1", "sha256", "sha512"] = "sha256"


class PublicKeyDoc(SignatureDoc):
    """A signature that a public key verifies: base64 (raw or SPKI), hex or PEM."""

    key_encoding: Literal["text", "hex", "base64"] = "base64"
    encoding: Literal["hex", "base64"] = "base64"


class BasicDoc(Keyed):
    """HTTP Basic: the secret is `user:password`, or the password where `user` is given or any user will do."""

    user: str | None = None
    any_user: bool = False


class StaticHeaderDoc(Keyed):
    """The secret itself in a header, after `prefix`."""

    header: HeaderNames
    prefix: str = ""


class UrlTokenDoc(Keyed):
    """The secret itself in the address."""

    param: Text = "token"


class BodyTokenDoc(Keyed):
    """The secret itself in the body; it is replaced before anything is stored."""

    path: Annotated[str, PlainValidator(plain_path)]


class TimestampDoc(Strict):
    """When the request was made, as the sender says: exactly one of header, item (of the signature's list) and path."""

    header: HeaderNames | None = None
    item: Text | None = None
    path: Path | None = None
    unit: Literal["s", "ms", "iso"] = "s"
    max_age: Span = timedelta(minutes=5)
    max_future: Span = timedelta(minutes=5)

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if sum(place is not None for place in (self.header, self.item, self.path)) != 1:
            raise ValueError("needs exactly one of: header, item, path")
        return self


class IdDoc(Strict):
    """The header that holds the delivery's id, for `signed: [id, ...]`."""

    header: HeaderNames


class EntryDoc(Strict):
    """One way to prove where a request is from."""

    name: Text | None = None
    enabled: bool = True
    timestamp: TimestampDoc | None = None
    id: IdDoc | None = None
    hmac: HmacDoc | None = None
    hash_concat: HmacDoc | None = None
    ed25519: PublicKeyDoc | None = None
    rsa_sha256: PublicKeyDoc | None = None
    basic: BasicDoc | None = None
    static_header: StaticHeaderDoc | None = None
    url_token: UrlTokenDoc | None = None
    body_token: BodyTokenDoc | None = None

    def kind(self) -> str | None:
        """Return the one kind of verifier that is given."""
        return next((kind for kind in KINDS if getattr(self, kind) is not None), None)

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) > 1:
            raise ValueError(f"has {' and '.join(given)}: list them under any_of, one for each way in")
        if not given and not getattr(self, "any_of", None) and type(self) is EntryDoc:
            raise ValueError(f"needs one of: {', '.join(KINDS)}")
        signed = {
            part.kind
            for doc in (self.hmac, self.hash_concat, self.ed25519, self.rsa_sha256)
            if doc
            for part in doc.signed
        }
        if "timestamp" in signed and self.timestamp is None:
            raise ValueError("signs a timestamp: say where it is, such as timestamp: {header: X-Timestamp, unit: s}")
        if "id" in signed and self.id is None:
            raise ValueError("signs an id: say where it is, such as id: {header: X-Event-Id}")
        return self

    def signs_url(self) -> bool:
        """Whether the address is part of what is signed."""
        docs = (self.hmac, self.hash_concat, self.ed25519, self.rsa_sha256)
        return any(part.kind == "url" for doc in docs if doc for part in doc.signed)


class AuthDoc(EntryDoc):
    """How a request proves where it is from: one verifier, or several of which one is enough."""

    any_of: list[EntryDoc] | None = None
    enable: list[Text] = Field(default_factory=list)

    @model_validator(mode="after")
    def _some_way(self) -> Self:
        if self.any_of is not None and self.kind():
            raise ValueError(f"has both any_of and {self.kind()}: move {self.kind()} into any_of")
        if self.any_of == []:
            raise ValueError(f"any_of is an empty list: list at least one way in, each with one of: {', '.join(KINDS)}")
        if not self.any_of and not self.kind():
            raise ValueError(f"needs any_of, or one of: {', '.join(KINDS)}")
        return self


class UrlDoc(Strict):
    """The address the sender knows, for signatures that cover it."""

    public_base: Text | None = None
    unescape: Literal["hubspot"] | None = None


class BodyDoc(Strict):
    """How the body is read."""

    format: Annotated[Format, Field(strict=False)] = Format.JSON
    charset: Literal["utf-8", "cp1252", "latin-1"] | None = None
    fields_limit: Annotated[int, Field(ge=1, le=FIELDS_LIMIT * 5)] = FIELDS_LIMIT
    json_field: Text | None = None
    limit_bytes: Annotated[int, Field(ge=1024, le=LARGEST_BODY_LIMIT_BYTES)] | None = None


class SubjectDoc(Strict):
    """The record an event is about; without `kind` it is the first word of the event's type."""

    kind: Text | None = None
    id: Path


class ChangedDoc(Strict):
    """Which fields changed: one named by `field`, or those of the maps `before` and `after` (or listed in `fields`)."""

    field: Path | None = None
    fields: Path | None = None
    before: Path | None = None
    after: Path | None = None


class EventDoc(Strict):
    """Where an item says what happened, when, and to what."""

    type: Path
    map: Annotated[TypeMap, PlainValidator(compile_type_map)] = Field(default_factory=dict)
    id: Path | None = None
    dedupe: Annotated[Dedupe, PlainValidator(compile_dedupe)] | None = None
    occurred_at: Annotated[When, PlainValidator(compile_when)] | None = None
    subject: SubjectDoc | None = None
    changed: ChangedDoc | None = None
    attempt: Path | None = None


class ContactDoc(Strict):
    """Where an item says who it is about."""

    id: Path | None = None
    name: Path | None = None
    phone: Path | None = None
    email: Path | None = None
    country: Path | None = None
    timezone: Path | None = None
    language: Path | None = None
    consent: Path | None = None


class AckDoc(Strict):
    """What the sender is told: `status` and `body` on success, `busy_status` when it is to come again."""

    status: Annotated[int, Field(ge=200, le=299)] = 200
    busy_status: Literal[429, 500, 502, 503, 504] = 503
    body: str | None = None
    content_type: HeaderValue | None = None


class GetEchoDoc(Strict):
    """A GET whose parameter is echoed when its token is `verify_token`."""

    param: Text = "hub.challenge"
    token_param: Text = "hub.verify_token"  # noqa: S105 - the name of a parameter
    expect: dict[str, str] = Field(default_factory=dict)


class ChallengeDoc(Strict):
    """A verified POST that asks for a value of its own body back."""

    match: Matching
    answer: Path
    respond: Literal["text", "json"] = "json"


class OptionsDoc(Strict):
    """The OPTIONS handshake of the CloudEvents webhook specification; `rate` is requests a minute."""

    rate: Annotated[int, Field(ge=1)] | None = None


class IgnoreDoc(Strict):
    """A verified POST that means nothing, such as a ping."""

    match: Matching


class HandshakeDoc(Strict):
    """One question a sender asks before or between events."""

    get_echo: GetEchoDoc | None = None
    json_challenge: ChallengeDoc | None = None
    options: OptionsDoc | None = None
    ignore: IgnoreDoc | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        kinds = ("get_echo", "json_challenge", "options", "ignore")
        if sum(getattr(self, kind) is not None for kind in kinds) != 1:
            raise ValueError(f"needs exactly one of: {', '.join(kinds)}")
        return self


class SourceDoc(Strict):
    """One entry of `sources:`, its preset merged in."""

    extend: Text | None = None
    description: str | None = None
    secrets: Secrets | None = None
    verify_token: Secrets | None = None
    url: UrlDoc = Field(default_factory=UrlDoc)
    auth: AuthDoc
    body: BodyDoc = Field(default_factory=BodyDoc)
    split: Annotated[tuple[Split, ...], PlainValidator(split_of)] | None = None
    event: EventDoc
    contact: ContactDoc = Field(default_factory=ContactDoc)
    data: Path | None = None
    region: Annotated[str, Field(pattern="^[A-Z]{2}$")] | None = None
    ack: AckDoc = Field(default_factory=AckDoc)
    handshake: list[HandshakeDoc] = Field(default_factory=list)
    redact: Annotated[tuple[tuple[Step, ...], ...], PlainValidator(redacted_paths)] = ()
    enrich: Annotated[None, PlainValidator(not_yet)] = None

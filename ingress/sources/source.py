"""A compiled source: verify, answer handshakes, and turn requests into events. `build` compiles all sources of a rules folder.

Nothing here stores, sends or reads a clock. A source that is incomplete is not built: an unset secret, a missing verifier, or
an unknown public URL where it is signed is a fault at its line, and never makes a source accept more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from difflib import get_close_matches
from html import escape
from typing import Final
from urllib.parse import quote, quote_plus, urlsplit

from ingress.sources.mapping import EventMapping, hash_of, unreadable_event
from ingress.sources.parse import UnreadableBodyError, decode
from ingress.sources.schema import (
    PRESETS,
    AckSection,
    BodySection,
    ChallengeSection,
    GetEchoSection,
    IgnoreSection,
    OptionsSection,
    SecretReference,
    SourceSection,
    SplitPath,
    UrlSection,
    WayInSection,
    extended,
    parse_source,
    preset,
)
from ingress.sources.verify import (
    CannotSignError,
    Rejected,
    SignedRequest,
    Verified,
    Verifier,
    WebhookRequest,
    WebhookResponse,
    WebhookSecret,
    answer_signed,
    answer_unsigned,
    compile_verifier,
    secrets_for,
    verify_any,
)
from rules.messages import kind
from rules.paths import EVERY, CompiledPath, Scope, Steps, expand, parse_payload_path, replaced, text_of, walk
from rules.rule_set import SourceText
from rules.vocabulary import Json, RuleFault
from rules.yaml_reader import Path, SourceMap
from worker.ledger.types import IncomingEvent

#: Events one request may carry: Meta sends up to 1,000.
EVENTS_LIMIT: Final = 1_000
REDACTED: Final = "[redacted]"
#: Where more, or shorter, values than this would have to be taken out of a raw body, none of it is kept.
REDACTIONS_LIMIT: Final = 100
SHORTEST_REDACTION: Final = 4
#: Headers that are stored with a delivery, beside those that a source's own paths read.
KEPT_HEADERS: Final = frozenset({"content-type", "user-agent"})
#: Headers that are never stored, whatever a source's paths say.
SECRET_HEADERS: Final = frozenset({"authorization", "proxy-authorization", "cookie"})
#: Shorter secrets can be found by trying.
SHORT_SECRET: Final = 16
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """The request is verified, but its body cannot be turned into events; `reason` is for the operator."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """A CRM or lead source, compiled. `warnings` are for the author of its configuration."""

    name: str
    preset: str | None = None
    verifiers: tuple[Verifier, ...] = field(repr=False)
    #: Questions that senders ask without a signature, with the tokens agreed on, and those inside a verified body.
    unsigned_questions: tuple[GetEchoSection | OptionsSection, ...] = ()
    signed_questions: tuple[ChallengeSection | IgnoreSection, ...] = ()
    verify_tokens: tuple[str, ...] = field(default=(), repr=False)
    body: BodySection = field(default_factory=BodySection)
    splits: tuple[SplitPath, ...] = ()
    mapping: EventMapping = field(repr=False)
    redact: tuple[Steps, ...] = ()
    kept_headers: frozenset[str] = KEPT_HEADERS
    public_base: str | None = None
    ack: AckSection = field(default_factory=AckSection)
    warnings: tuple[RuleFault, ...] = ()

    @property
    def body_limit_bytes(self) -> int | None:
        """The largest accepted body in bytes; None: the limit of the whole ingress applies."""
        return self.body.limit_bytes

    def verify(self, request: WebhookRequest, now: datetime) -> Verified | Rejected:
        """Check that the request comes from this source and is fresh. Never raises."""
        return verify_any(self.verifiers, request, now)

    def handshake(self, request: WebhookRequest) -> WebhookResponse | None:
        """Return the answer to an unsigned handshake (GET, OPTIONS), or None when the request is none."""
        answers = (answer_unsigned(one, self.verify_tokens, request) for one in self.unsigned_questions)
        return next((answer for answer in answers if answer), None)

    def challenge(self, request: WebhookRequest) -> WebhookResponse | None:
        """Return the answer to a handshake in a verified body, or None when the body holds events."""
        if not self.signed_questions:
            return None
        try:
            root = self.decode(request)
        except UnreadableBodyError:
            return None
        scope = Scope(item=root, root=root, headers=request.headers)
        answers = (answer_signed(one, scope) for one in self.signed_questions)
        return next((answer for answer in answers if answer), None)

    def read(
        self, request: WebhookRequest, now: datetime, new_id: Callable[[], str]
    ) -> list[IncomingEvent] | Unreadable:
        """Return the events of a verified request, or Unreadable when not even its items can be found.

        An item that cannot be mapped becomes an event in state UNREADABLE with a reason; the other items are not affected.
        """
        try:
            root = self.decode(request)
        except UnreadableBodyError as fault:
            return Unreadable(reason=str(fault))
        for steps in self.redact:
            root = replaced(root, steps, REDACTED)
        found = self._items(root, request.headers)
        if isinstance(found, Unreadable):
            return found
        return [self._event(scope, now, new_id(), index, len(found)) for index, scope in enumerate(found)]

    def unreadable(self, request: WebhookRequest, reason: str, now: datetime, event_id: str) -> IncomingEvent:
        """Return one UNREADABLE event that stands for a whole request; the body is stored with the delivery."""
        return unreadable_event(self.name, event_id, now, reason, hash_of(request.body.hex()))

    def decode(self, request: WebhookRequest) -> Json:
        """Decode the body. Raises UnreadableBodyError."""
        return decode(request.body, request.headers.get("content-type", ""), self.body)

    def kept(self, request: WebhookRequest) -> tuple[Mapping[str, str], bytes]:
        """Return headers and body as they may be stored: without secrets that would let anybody post."""
        headers = {name: value for name, value in request.headers.items() if name in self.kept_headers}
        return headers, self._without_secrets(request) if self.redact else request.body

    def sign(self, body: bytes, content_type: str, url: str, now: datetime) -> SignedRequest:
        """Return the headers, query parameters and body that make a request to `url` pass verification.

        The headers include the content type; the body is `body`, with a token inserted where the source needs one. Raises
        CannotSignError when only the sender has the key.
        """
        parts = urlsplit(url)
        request = WebhookRequest(
            method="POST",
            path=parts.path,
            query_string=parts.query.encode(),
            headers={"content-type": content_type},
            body=body,
        )
        refused: CannotSignError | None = None
        for verifier in self.verifiers:
            try:
                return verifier.sign(request, now)
            except CannotSignError as fault:
                refused = refused or fault
        raise refused or CannotSignError(f"{self.name}: the source has no verifier")

    def _items(self, root: Json, headers: Mapping[str, str]) -> list[Scope] | Unreadable:
        if not self.splits:
            return [Scope(item=root, root=root, parent=root, headers=headers)]
        scopes: list[Scope] = []
        there = False
        for split in self.splits:
            there = there or _is_there(root, split.steps)
            for item, parent in expand(root, split.steps, root):
                if len(scopes) == EVENTS_LIMIT:
                    return Unreadable(reason=f"the request carries more than {EVENTS_LIMIT} events")
                scopes.append(Scope(item=item, root=root, parent=parent, headers=headers, constants=split.constants))
        if not there:
            return Unreadable(reason=f"the body has nothing at {', '.join(split.text for split in self.splits)}")
        return scopes

    def _event(self, scope: Scope, now: datetime, event_id: str, index: int, items: int) -> IncomingEvent:
        try:
            return self.mapping.read(scope, event_id=event_id, received_at=now, index=index, items=items)
        except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as fault:
            # A bad item must not take its neighbours with it; that it came to this is a fault of ours, so it is named.
            reason = f"the item cannot be read: {type(fault).__name__}"
            digest = repr(scope.item)[:10_000]  # it cannot be hashed as a value
            return unreadable_event(self.name, event_id, now, reason, hash_of([index, digest]))

    def _without_secrets(self, request: WebhookRequest) -> bytes:
        """Return the raw body without the values at the paths to be redacted, in any way they may be written."""
        try:
            root = self.decode(request)
        except UnreadableBodyError:
            return b""
        texts = {text for steps in self.redact for value, _ in expand(root, steps, root) if (text := text_of(value))}
        if len(texts) > REDACTIONS_LIMIT or any(len(text) < SHORTEST_REDACTION for text in texts):
            return b""
        body = request.body
        for text in texts:
            for written in _spellings(text):
                body = body.replace(written, REDACTED.encode())
        return body


def _is_there(root: Json, steps: Steps) -> bool:
    """Whether there is anything, be it an empty list, where a split looks for items."""
    return walk(root, steps[: steps.index(EVERY)] if EVERY in steps else steps) is not None


def _spellings(text: str) -> set[bytes]:
    """Return how a text stands in JSON, in a form and in XML."""
    forms = (
        text,
        json.dumps(text)[1:-1],
        json.dumps(text, ensure_ascii=False)[1:-1],
        quote(text),
        quote_plus(text),
        escape(text),
        escape(text, quote=False),
    )
    return {form.encode("utf-8", "replace") for form in forms}


# -- from text to sources ----------------------------------------------------------------------------------------------


def build(
    texts: Sequence[SourceText], environment: Mapping[str, str], *, public_url: str | None
) -> tuple[dict[str, Source], list[RuleFault]]:
    """Compile every entry of `sources:`; return the valid ones by name, and the faults of all others.

    `environment` holds the variables that `{env: NAME}` refers to. `public_url` is this server's URL as senders know it, for
    signatures that cover it. Warnings are on each Source.
    """
    sources: dict[str, Source] = {}
    faults: list[RuleFault] = []
    for text in texts:
        builder = _SourceBuilder(text, environment, public_url)
        source = builder.source()
        if text.name in sources:
            builder.add_fault((), f'a source named "{text.name}" stands in another file already', at_key=True)
        if source and not builder.places.faults:
            sources[text.name] = replace(source, warnings=tuple(builder.places.warnings))
        faults += sorted(builder.places.faults, key=lambda fault: (fault.line, fault.column))
    return sources, faults


class _SourceBuilder:
    """Makes one source; complains into places of its own, so that building again starts afresh."""

    def __init__(self, text: SourceText, environment: Mapping[str, str], public_url: str | None) -> None:
        self.text = text
        self.environment = environment
        self.public_url = public_url
        self.places = SourceMap(file=text.places.file, values=text.places.values, keys=text.places.keys)

    def add_fault(self, path: Path, message: str, *, at_key: bool = False) -> None:
        self.places.add_fault((*self.text.path, *path), message, at_key=at_key)

    def warn(self, path: Path, message: str) -> None:
        self.places.warn((*self.text.path, *path), message)

    def source(self) -> Source | None:
        """Return the source, or None after complaining."""
        if not _NAME.fullmatch(self.text.name):
            self.add_fault(
                (), "a source's name is part of its address: use letters, digits, - and _ (63 at most)", at_key=True
            )
        raw = self._with_preset()
        if raw is None:
            return None
        section = parse_source(raw, self.places, self.text.path)
        if section is None:
            self._complain_of_unset(raw, ())
            return None
        return self._compiled(section)

    def _with_preset(self) -> Mapping[str, Json] | None:
        own: Json = self.text.value  # as a user wrote it: anything
        if not isinstance(own, Mapping):
            self.add_fault((), "must be a mapping, such as {extend: generic, secrets: [{env: CRM_SECRET}]}")
            return None
        name = own.get("extend")
        if name is None:
            if "auth" in own:
                return own
            hint = f"; did you mean extend: {self.text.name}" if self.text.name in PRESETS else ""
            message = f"has no auth: say how its requests prove where they are from, or extend a preset{hint}"
            self.add_fault((), message, at_key=True)
        elif not isinstance(name, str):
            self.add_fault(("extend",), f"must be the name of one preset, such as generic, not {kind(name)}")
        elif name not in PRESETS:
            near = get_close_matches(name, PRESETS, n=1)
            hint = f", did you mean {near[0]}" if near else ""
            self.add_fault(("extend",), f'there is no preset "{name}"{hint}; presets: {", ".join(PRESETS)}')
        else:
            return extended(preset(name), own)
        return None

    def _complain_of_unset(self, value: Json, path: Path) -> None:
        """Complain about unset variables of a source that is faulty anyway, so that one run tells all."""
        if isinstance(value, Mapping) and set(value) == {"env"} and isinstance(value["env"], str):
            own = value["env"].startswith("LEADWIRE_")  # refused already, set or not
            if not own and not self.environment.get(value["env"], "").strip():
                self.add_fault(path, f"{value['env']} is not set, or empty")
            return
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
        for step, one in pairs:
            self._complain_of_unset(one, (*path, step))

    def _compiled(self, section: SourceSection) -> Source | None:
        base = section.url.public_base or self.public_url
        url = section.url.model_copy(update={"public_base": base.rstrip("/") if base else None})
        verifiers = self._verifiers(section, url)
        tokens = self._verify_tokens(section)
        if self.places.faults:
            return None
        if not verifiers:
            self.add_fault(("auth",), "no verifier is enabled: nothing could ever be accepted")
            return None
        covers = [verifier.covers for verifier in verifiers if verifier.covers is not None]
        id_headers = section.event.id.headers if section.event.id else ()
        mapping = EventMapping(
            source=self.text.name,
            event=section.event,
            contact=section.contact,
            data=section.data,
            region=section.region,
            id_is_signed=not id_headers or all(id_headers in covered for covered in covers),
        )
        if section.event.id is None and section.event.dedupe is None:
            message = "names neither id nor dedupe: an event is recognised by its content, and for ten minutes only"
            self.warn(("event",), message)
        elif not mapping.id_is_signed:
            message = "this header is not covered by the signature: events are recognised by their content instead"
            self.warn(("event", "id"), message)
        ways = [way for _, way in section.auth.ways_in]
        token_paths = [parse_payload_path(way.body_token.path) for way in ways if way.body_token]
        secret_headers = SECRET_HEADERS.union(*(verifier.secret_headers for verifier in verifiers))
        questions = section.handshake
        return Source(
            name=self.text.name,
            preset=section.extend,
            verifiers=verifiers,
            unsigned_questions=tuple(found for one in questions if (found := one.get_echo or one.options)),
            signed_questions=tuple(asked for one in questions if (asked := one.json_challenge or one.ignore)),
            verify_tokens=tokens,
            body=section.body,
            splits=section.split or (),
            mapping=mapping,
            redact=(*section.redact, *token_paths),
            kept_headers=(KEPT_HEADERS | _headers_read(section)) - secret_headers,
            public_base=url.public_base,
            ack=section.ack,
        )

    def _secrets(self, refs: tuple[SecretReference, ...] | None, path: Path) -> list[WebhookSecret]:
        found = []
        for index, ref in enumerate(refs or ()):
            at = (*path, index)
            text = ref.text or "" if ref.env is None else self.environment.get(ref.env, "").strip("\r\n")
            if not text.strip():
                what = f"{ref.env} is not set, or empty" if ref.env else "the secret is empty"
                self.add_fault(at, f"{what}: without its secret this source accepts nothing, so it is not started")
                continue
            if len(text) < SHORT_SECRET:
                self.warn(at, f"{ref.env or 'the secret'} has fewer than {SHORT_SECRET} characters and can be guessed")
            found.append(WebhookSecret(text=text, name=ref.env or ".".join(map(str, at))))
        return found

    def _verifiers(self, section: SourceSection, url: UrlSection) -> tuple[Verifier, ...]:
        shared = self._secrets(section.secrets, ("secrets",))
        ways = section.auth.ways_in
        names = {way.name for _, way in ways}
        for index, name in enumerate(section.auth.enable):
            if name not in names:
                self.add_fault(("auth", "enable", index), f'there is no verifier named "{name}" to enable')
        used = [(at, way) for at, way in ways if way.enabled or way.name in section.auth.enable]
        own = [way.verifier for _, way in used if not way.verifier.key]
        prefixes = frozenset(verifier.key_prefix for verifier in own if verifier.key_prefix)
        made = []
        for at, way in used:
            if way.verifier.key is None:
                keys_at: Path = ("secrets",)
                secrets = secrets_for(shared, way.verifier, prefixes)
            else:
                keys_at = (*at, way.kind, "key")
                secrets = self._secrets(way.verifier.key, keys_at)
            if secrets and (verifier := self._verifier(section, way, secrets, keys_at, url)):
                made.append(verifier)
        if own and section.secrets is None:
            message = (
                "secrets: is missing; name the variable that holds the source's secret: secrets: [{env: ..._SECRET}]"
            )
            self.add_fault((), message, at_key=True)
        return tuple(made)

    def _verifier(
        self, section: SourceSection, way: WayInSection, secrets: list[WebhookSecret], at: Path, url: UrlSection
    ) -> Verifier | None:
        def read_body(request: WebhookRequest, path: CompiledPath) -> str | None:
            try:
                root = decode(request.body, request.headers.get("content-type", ""), section.body)
            except UnreadableBodyError:
                return None
            return text_of(path.find(Scope(item=root, root=root, headers=request.headers)))

        if "url" in way.signed_kinds and url.public_base is None:
            message = (
                "its signature covers the address senders know: set LEADWIRE_PUBLIC_URL, "
                'or give url: {public_base: "https://hooks.example.com"}'
            )
            self.add_fault((), message, at_key=True)
            return None
        try:
            return compile_verifier(way, secrets, url, read_body)
        except ValueError as fault:
            self.add_fault(at, str(fault))
        return None

    def _verify_tokens(self, section: SourceSection) -> tuple[str, ...]:
        """Return the tokens that GET handshakes must name; complain where such a handshake has none."""
        echoes = [index for index, one in enumerate(section.handshake) if one.get_echo]
        if not echoes:
            return ()
        if section.verify_token is None:
            message = "needs the token that was agreed with the sender: verify_token: {env: ..._VERIFY_TOKEN}"
            for index in echoes:
                self.add_fault(("handshake", index, "get_echo"), message)
        return tuple(token.text for token in self._secrets(section.verify_token, ("verify_token",)))


def _headers_read(section: SourceSection) -> frozenset[str]:
    """Return the headers an event is made from: they are stored with it, so that it can be read again."""
    event = section.event
    paths: list[CompiledPath | None] = [event.type, event.id, event.attempt, section.data]
    paths += [path for _, path in section.contact]
    paths += event.dedupe.paths if event.dedupe else ()
    paths += [event.occurred_at.path if event.occurred_at else None, event.subject.id if event.subject else None]
    stamps = [way.timestamp for _, way in section.auth.ways_in if way.timestamp]
    return frozenset(name for path in paths if path for name in path.headers).union(
        *(one.header or () for one in stamps)
    )

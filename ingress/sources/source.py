"""One source, compiled: who may post, how its payload becomes events, and what it is told.

Everything here is a decision about one request; nothing is stored, sent or timed. `ingress/accept.py` owns the order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from html import escape
from typing import Final
from urllib.parse import quote, quote_plus, urlsplit

from ingress.sources.handshakes import Handshakes
from ingress.sources.notation import Split
from ingress.sources.parse import BodySpec, UnreadableBodyError, decode
from ingress.sources.reading import EventPaths, hash_of, unreadable
from ingress.sources.request import (
    CannotSignError,
    Rejected,
    SignedRequest,
    Unreadable,
    Verified,
    WebhookRequest,
    WebhookResponse,
)
from ingress.sources.verifiers import Verifier, verify_any
from rules.paths import EVERY, Scope, Steps, expand, replaced, text_of, walk
from rules.vocabulary import Json, RuleFault
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Ack:
    """What the sender is told: success, and "come again"."""

    status: int = 200
    busy_status: int = 503
    body: str | None = None
    content_type: str | None = None


@dataclass(frozen=True, kw_only=True)
class Source:
    """A CRM or lead source. `warnings` are for the author: what is accepted and may surprise."""

    name: str
    preset: str | None = None
    verifiers: tuple[Verifier, ...] = field(repr=False)
    handshakes: Handshakes = field(default_factory=Handshakes, repr=False)
    body: BodySpec = field(default_factory=BodySpec)
    #: None: the limit of the front door.
    body_limit_bytes: int | None = None
    splits: tuple[Split, ...] = ()
    paths: EventPaths = field(repr=False)
    redact: tuple[Steps, ...] = ()
    kept_headers: frozenset[str] = KEPT_HEADERS
    public_base: str | None = None
    ack: Ack = field(default_factory=Ack)
    warnings: tuple[RuleFault, ...] = ()

    def verify(self, received: WebhookRequest, now: datetime) -> Verified | Rejected:
        """Say whether the request is from this source and fresh. Never raises, whatever it holds."""
        return verify_any(self.verifiers, received, now)

    def handshake(self, received: WebhookRequest) -> WebhookResponse | None:
        """Answer a question asked without a signature (GET, OPTIONS), or None when this is none."""
        return self.handshakes.before(received)

    def challenge(self, received: WebhookRequest) -> WebhookResponse | None:
        """Answer a question inside a verified body, or None when it holds events."""
        if not self.handshakes.signed:
            return None
        try:
            root = self.decode(received)
        except UnreadableBodyError:
            return None
        return self.handshakes.after(Scope(item=root, root=root, headers=received.headers))

    def read(
        self, received: WebhookRequest, now: datetime, new_id: Callable[[], str]
    ) -> list[IncomingEvent] | Unreadable:
        """Return the events of a verified request.

        An item that cannot be read is an event in state UNREADABLE with its reason; its neighbours go on. Unreadable: not
        even items could be found.
        """
        try:
            root = self.decode(received)
        except UnreadableBodyError as fault:
            return Unreadable(reason=str(fault))
        for steps in self.redact:
            root = replaced(root, steps, REDACTED)
        found = self._items(root, received.headers)
        if isinstance(found, Unreadable):
            return found
        return [self._event(scope, now, new_id(), index, len(found)) for index, scope in enumerate(found)]

    def unreadable(self, received: WebhookRequest, reason: str, now: datetime, event_id: str) -> IncomingEvent:
        """Return a whole request that cannot be read as one event that says why; the delivery keeps the body."""
        return unreadable(self.name, event_id, now, reason, hash_of(received.body.hex()))

    def decode(self, received: WebhookRequest) -> Json:
        """Return the body as a value. Raises UnreadableBodyError."""
        return decode(received.body, received.headers.get("content-type", ""), self.body)

    def kept(self, received: WebhookRequest) -> tuple[Mapping[str, str], bytes]:
        """Return the headers and the body as they may be stored: nothing that lets anybody else post."""
        headers = {name: value for name, value in received.headers.items() if name in self.kept_headers}
        return headers, self._without_secrets(received) if self.redact else received.body

    def sign(self, body: bytes, content_type: str, url: str, now: datetime) -> SignedRequest:
        """Return what a request for `url` must carry to be believed; raises CannotSignError where only the sender can.

        The result's headers include the content type; its body is `body`, or with a token inside it.
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
                return verifier.proof.sign(request, now)
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
            return self.paths.read(scope, event_id=event_id, received_at=now, index=index, items=items)
        except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as fault:
            # A bad item must not take its neighbours with it; that it came to this is a fault of ours, so it is named.
            reason = f"the item cannot be read: {type(fault).__name__}"
            return unreadable(self.name, event_id, now, reason, hash_of([index, received_digest(scope)]))

    def _without_secrets(self, received: WebhookRequest) -> bytes:
        """Return the raw body without the values at the paths to be redacted, in any way they may be written."""
        try:
            root = self.decode(received)
        except UnreadableBodyError:
            return b""
        texts = {text for steps in self.redact for value, _ in expand(root, steps, root) if (text := text_of(value))}
        if len(texts) > REDACTIONS_LIMIT or any(len(text) < SHORTEST_REDACTION for text in texts):
            return b""
        body = received.body
        for text in texts:
            for written in _spellings(text):
                body = body.replace(written, REDACTED.encode())
        return body


def received_digest(scope: Scope) -> str:
    """Return something that tells items apart when they cannot be hashed as values."""
    return repr(scope.item)[:10_000]


def _is_there(root: Json, steps: Steps) -> bool:
    """Whether there is anything, be it an empty list, where a split looks for items."""
    before_every = steps[: steps.index(EVERY)] if EVERY in steps else steps
    return walk(root, before_every) is not None


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

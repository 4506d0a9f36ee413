"""Verifiers that compare: basic, static_header, url_token, body_token.

The request carries the secret itself, so there is nothing to compute; both sides are hashed first, so that not even the
length shows in the time taken. Nothing here raises, whatever the request holds.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from urllib.parse import parse_qsl, urlencode

from ingress.sources.keys import from_base64
from ingress.sources.request import CannotSignError, Rejected, SignedRequest, VerificationFailure, WebhookRequest
from ingress.sources.signatures import header_bytes
from rules.paths import Step
from rules.vocabulary import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedSecret:
    """One place of a request that carries the secret; `given` reads it there, `place` names it in messages."""

    name: str
    place: str
    keys: tuple[bytes, ...] = field(repr=False)
    given: Callable[[WebhookRequest], bytes | None]
    put: Callable[[WebhookRequest, bytes], SignedRequest]
    #: Whether what is given is right for a key; without it, whether it is the key.
    matches: Callable[[bytes, bytes], bool] | None = None
    headers: tuple[str, ...] = ()

    @property
    def covers(self) -> None:
        """A shared secret vouches for the whole request: who has it could as well have written every header."""
        return

    @property
    def secret_headers(self) -> frozenset[str]:
        """Headers whose value is never stored."""
        return frozenset(self.headers)

    def prove(self, received: WebhookRequest) -> Rejected | None:
        """Return why the request does not carry the secret, or None when it does."""
        given = self.given(received)
        if given is None:
            return Rejected(reason=VerificationFailure.MISSING, detail=f"{self.place} is missing")
        same = self.matches or same_bytes
        holds = False
        for key in self.keys:
            holds |= bool(key) and same(given, key)
        return None if holds else Rejected(reason=VerificationFailure.MISMATCH, detail=f"{self.place} is wrong")

    def sign(self, received: WebhookRequest, now: datetime) -> SignedRequest:  # noqa: ARG002 - every verifier signs alike
        """Return the request with the secret in its place."""
        return self.put(received, self.keys[0])


def same_bytes(given: bytes, wanted: bytes) -> bool:
    """Whether two secrets are the same, in a time that says nothing about them."""
    return hmac.compare_digest(hashlib.sha256(given).digest(), hashlib.sha256(wanted).digest())


def basic(name: str, keys: tuple[bytes, ...], *, user: str | None, any_user: bool) -> SharedSecret:
    """HTTP Basic: a key is the password of `user`, else `user:password`; with `any_user` also a password alone."""
    if user is not None:
        keys = tuple(f"{user}:".encode() + key for key in keys if key)

    def given(received: WebhookRequest) -> bytes | None:
        value = header_bytes(received, ("authorization",))
        scheme, _, credentials = (value or b"").partition(b" ")
        return from_base64(credentials.strip()) if scheme.lower() == b"basic" else None

    def matches(credentials: bytes, key: bytes) -> bool:
        holds = same_bytes(credentials, key)
        if any_user:
            holds |= same_bytes(credentials.partition(b":")[2], key)
        return holds

    def put(received: WebhookRequest, key: bytes) -> SignedRequest:
        credentials = key if b":" in key or not any_user else b"leadwire:" + key
        value = "Basic " + base64.b64encode(credentials).decode("ascii")
        return SignedRequest(headers={**received.headers, "authorization": value}, body=received.body)

    return SharedSecret(
        name=name,
        place="header authorization (Basic)",
        keys=keys,
        given=given,
        put=put,
        matches=matches,
        headers=("authorization",),
    )


def static_header(name: str, keys: tuple[bytes, ...], *, header: tuple[str, ...], prefix: str) -> SharedSecret:
    """The secret in a header of its own, after a prefix such as `Bearer `."""
    start = prefix.encode()

    def given(received: WebhookRequest) -> bytes | None:
        value = header_bytes(received, header)
        if value is None or value[: len(start)].lower() != start.lower():
            return None
        return value[len(start) :].strip()

    def put(received: WebhookRequest, key: bytes) -> SignedRequest:
        value = (start + key).decode("latin-1")
        return SignedRequest(headers={**received.headers, header[0]: value}, body=received.body)

    place = f"header {' or '.join(header)}" + (f" ({prefix.strip()})" if prefix.strip() else "")
    return SharedSecret(name=name, place=place, keys=keys, given=given, put=put, headers=header)


def url_token(name: str, keys: tuple[bytes, ...], *, param: str) -> SharedSecret:
    """The secret in the address: `?token=...`."""

    def given(received: WebhookRequest) -> bytes | None:
        value = received.query().get(param)
        return None if value is None else value.encode("utf-8", "surrogatepass")

    def put(received: WebhookRequest, key: bytes) -> SignedRequest:
        query = {param: key.decode("utf-8", "replace")}
        return SignedRequest(headers=received.headers, query=query, body=received.body)

    return SharedSecret(name=name, place=f"?{param}= in the address", keys=keys, given=given, put=put)


def body_token(
    name: str,
    keys: tuple[bytes, ...],
    *,
    path: str,
    steps: tuple[Step, ...],
    find: Callable[[WebhookRequest], str | None],
) -> SharedSecret:
    """The secret in the body, as Zoho echoes it; `find` decodes the body and reads it there."""

    def given(received: WebhookRequest) -> bytes | None:
        value = find(received)
        return None if value is None else value.encode("utf-8", "surrogatepass")

    def put(received: WebhookRequest, key: bytes) -> SignedRequest:
        body = _with_token(received.body, steps, key.decode("utf-8", "replace"))
        return SignedRequest(headers=received.headers, body=body)

    return SharedSecret(name=name, place=f"{path} in the body", keys=keys, given=given, put=put)


def _with_token(body: bytes, steps: tuple[Step, ...], token: str) -> bytes:
    """Return a JSON or form body with the token at a plain path."""
    names = [step for step in steps if isinstance(step, str)]
    if len(names) != len(steps):
        raise CannotSignError("a token can be put at a plain path only, such as token or auth.token")
    try:
        document: Json = json.loads(body)
    except ValueError:
        key = names[0] + "".join(f"[{name}]" for name in names[1:])
        return urlencode([*parse_qsl(body.decode("utf-8", "replace")), (key, token)]).encode()
    node = document
    for name in names[:-1]:
        node = node.setdefault(name, {})
    node[names[-1]] = token
    return json.dumps(document).encode()

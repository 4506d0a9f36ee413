"""Verifiers that compute: hmac, hash_concat, ed25519, rsa_sha256.

Each compares bytes with bytes: the signature as decoded, the message as it came in. Nothing here raises, whatever the
request holds. What vendors do with headers (prefixes, lists of schemes) is data; see `ingress/sources/document.py`.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from ingress.sources.freshness import Freshness
from ingress.sources.keys import from_base64, from_hex, to_text
from ingress.sources.request import (
    CannotSignError,
    Rejected,
    SignedRequest,
    VerificationFailure,
    WebhookRequest,
)
from ingress.sources.signed_parts import Part, join, unescaped
from rules.paths import raw_header

#: Signatures of one header that are tried: rotation needs two or three.
SIGNATURES_LIMIT = 16

#: Whether a signature is right for a message.
Check = Callable[[bytes, bytes], bool]
#: Makes the signature of a message.
Make = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where the signature stands and in which form. Header names are lower case; the first that is there counts."""

    header: tuple[str, ...]
    encoding: Literal["hex", "base64"]
    prefix: str = ""
    separator: str | None = None
    scheme: str | None = None
    scheme_separator: str = "="

    def value(self, received: WebhookRequest) -> bytes | None:
        """Return the raw header."""
        return header_bytes(received, self.header)

    def item(self, received: WebhookRequest, name: str) -> bytes | None:
        """Return an item of a header that is a list, such as `t` in `t=1,v1=ab`."""
        value = self.value(received)
        return next((text for key, text in self._items(value or b"") if key == name.encode()), None)

    def signatures(self, value: bytes) -> list[bytes]:
        """Return the signatures of a header's value, decoded; what is not of the right form is left out."""
        texts = [value.strip()]
        if self.separator is not None:
            wanted = (self.scheme or "").encode()
            texts = [text for key, text in self._items(value) if key == wanted]
        decoded = (self._decode(text) for text in texts[:SIGNATURES_LIMIT])
        return [one for one in decoded if one]

    def write(self, signature: bytes, timestamp: tuple[str, str] | None) -> str:
        """Return the header's value for a signature; `timestamp` is the item that stands beside it in the list."""
        text = self.prefix + to_text(signature, self.encoding)
        if self.separator is None:
            return text
        items = [timestamp] if timestamp else []
        items.append((self.scheme or "", text))
        return self.separator.join(f"{key}{self.scheme_separator}{value}" if key else value for key, value in items)

    def _items(self, value: bytes) -> list[tuple[bytes, bytes]]:
        pieces = value.split((self.separator or ",").encode())
        between = self.scheme_separator.encode()
        pairs = []
        for piece in pieces:
            key, found, text = piece.strip().partition(between)
            pairs.append((key.strip(), text.strip()) if found else (b"", key))
        return pairs

    def _decode(self, text: bytes) -> bytes | None:
        prefix = self.prefix.encode()
        if text[: len(prefix)].lower() != prefix.lower():
            return None
        text = text[len(prefix) :]
        return from_hex(text) if self.encoding == "hex" else from_base64(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """One scheme of a source: a signature over parts of the request."""

    name: str
    layout: Layout
    parts: tuple[Part, ...]
    checks: tuple[Check, ...] = field(repr=False)
    make: Make | None = field(default=None, repr=False)
    public_base: str | None = None
    unescape: bool = False
    id_header: tuple[str, ...] = ()
    timestamp: Freshness | None = None
    timestamp_header: tuple[str, ...] = ()
    timestamp_item: str | None = None

    @property
    def covers(self) -> frozenset[tuple[str, ...]]:
        """The headers the signature is made over, each with the names it goes by."""
        kinds = {part.kind for part in self.parts}
        named: set[tuple[str, ...]] = {(part.text,) for part in self.parts if part.kind == "header"}
        named |= {self.id_header} if "id" in kinds and self.id_header else set()
        named |= {self.timestamp_header} if "timestamp" in kinds and self.timestamp_header else set()
        return frozenset(named)

    @property
    def secret_headers(self) -> frozenset[str]:
        """Headers whose value is never stored."""
        return frozenset(self.layout.header)

    def prove(self, received: WebhookRequest) -> Rejected | None:
        """Return why the signature does not hold, or None when it does; its age is the caller's affair."""
        value = self.layout.value(received)
        if value is None:
            return Rejected(
                reason=VerificationFailure.MISSING, detail=f"header {' or '.join(self.layout.header)} is missing"
            )
        signatures = self.layout.signatures(value)
        if not signatures:
            return Rejected(
                reason=VerificationFailure.MALFORMED, detail=f"header {self.layout.header[0]} holds no signature"
            )
        values = self._values(received)
        missing = next(
            (part for part in self.parts if _key(part) not in values and part.kind not in ("url", "text")), None
        )
        if missing:
            reason = VerificationFailure.NO_TIMESTAMP if missing.kind == "timestamp" else VerificationFailure.MISSING
            return Rejected(reason=reason, detail=f"{_key(missing)}, which is signed, is missing")
        holds = False
        for message in self._messages(received, values):
            for check in self.checks:
                for signature in signatures:
                    holds |= check(message, signature)
        return None if holds else Rejected(reason=VerificationFailure.MISMATCH, detail="the signature does not match")

    def sign(self, received: WebhookRequest, now: datetime) -> SignedRequest:
        """Return the headers that make a request pass. Raises CannotSignError where only the sender has the key."""
        if self.make is None:
            raise CannotSignError(f"{self.name}: only its sender has the private key, so no request can be signed here")
        headers = dict(received.headers)
        stamp = self.timestamp.write(now) if self.timestamp else None
        if stamp is not None and self.timestamp_header:
            headers[self.timestamp_header[0]] = stamp
        if self.id_header and not any(name in headers for name in self.id_header):
            headers[self.id_header[0]] = f"msg_{hashlib.sha256(received.body).hexdigest()[:24]}"
        item = (self.timestamp_item, stamp) if self.timestamp_item and stamp is not None else None
        request = WebhookRequest(
            method=received.method,
            path=received.path,
            query_string=received.query_string,
            headers=headers,
            body=received.body,
        )
        values = self._values(request)
        if item:
            values["timestamp"] = item[1].encode()
        lacking = [_key(part) for part in self.parts if _key(part) not in values and part.kind not in ("url", "text")]
        if lacking:
            raise CannotSignError(f"{self.name}: {', '.join(lacking)} must be given to sign a request")
        message = next(iter(self._messages(request, values)))
        headers[self.layout.header[0]] = self.layout.write(self.make(message), item)
        return SignedRequest(headers=headers, body=received.body)

    def _values(self, received: WebhookRequest) -> dict[str, bytes]:
        values = {"method": received.method.upper().encode("latin-1", "replace"), "body": received.body}
        for part in self.parts:
            found = None
            if part.kind == "header":
                found = header_bytes(received, (part.text,))
            elif part.kind == "id":
                found = header_bytes(received, self.id_header)
            elif part.kind == "timestamp" and self.timestamp:
                found = self.timestamp.raw(received)
            if found is not None:
                values[_key(part)] = found
        return values

    def _messages(self, received: WebhookRequest, values: Mapping[str, bytes]) -> Sequence[bytes]:
        if not any(part.kind == "url" for part in self.parts):
            return [join(self.parts, values)]
        url = (self.public_base or "").encode() + received.path.encode("utf-8", "surrogatepass")
        if received.query_string:
            url += b"?" + received.query_string
        urls = [url]
        if self.unescape and unescaped(url) != url:
            urls.append(unescaped(url))
        return [join(self.parts, {**values, "url": one}) for one in urls]


def hmac_check(key: bytes, algorithm: str) -> tuple[Check, Make]:
    """Return how to check and make an HMAC. An empty key checks nothing as right."""

    def make(message: bytes) -> bytes:
        return hmac.digest(key, message, algorithm)

    return _comparing(key, make)


def hash_check(key: bytes, algorithm: str) -> tuple[Check, Make]:
    """Return how to check and make a hash over key and message, one after the other."""

    def make(message: bytes) -> bytes:
        return hashlib.new(algorithm, key + message).digest()

    return _comparing(key, make)


def header_bytes(received: WebhookRequest, names: Sequence[str]) -> bytes | None:
    """Return the first of these headers that is there, as the bytes that came in."""
    value = next((received.headers[name] for name in names if name in received.headers), None)
    return None if value is None else raw_header(value)


def _comparing(key: bytes, make: Make) -> tuple[Check, Make]:
    def check(message: bytes, signature: bytes) -> bool:
        return bool(key) and hmac.compare_digest(make(message), signature)

    return check, make


def _key(part: Part) -> str:
    return f"header:{part.text}" if part.kind == "header" else part.kind

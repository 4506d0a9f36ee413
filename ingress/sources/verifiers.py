"""Whether a request is from its source: any one of the source's verifiers says so, and its timestamp is fresh.

The closed family of verifiers, from a source's words to what checks. A source without a key for any verifier does not come
into being: there is no way to run one open.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from ingress.sources.document import EntryDoc, HmacDoc, Keyed, PublicKeyDoc, SignatureDoc, TimestampDoc, UrlDoc
from ingress.sources.event_words import Unit
from ingress.sources.freshness import Freshness
from ingress.sources.keys import Secret, decode_key, ed25519_holds, ed25519_key, rsa_holds, rsa_key
from ingress.sources.request import Rejected, SignedRequest, VerificationFailure, Verified, WebhookRequest
from ingress.sources.shared_secrets import basic, body_token, static_header, url_token
from ingress.sources.signatures import Check, Layout, Make, Signature, hash_check, header_bytes, hmac_check
from rules.paths import CompiledPath, compile_path, parse_payload_path

#: Of several refusals the one that came furthest is told: it is the way in that the sender meant.
_FURTHEST: Final = (
    VerificationFailure.MISSING,
    VerificationFailure.MALFORMED,
    VerificationFailure.MISMATCH,
    VerificationFailure.NO_TIMESTAMP,
    VerificationFailure.TOO_NEW,
    VerificationFailure.TOO_OLD,
)

#: Reads a path in the body of a request, for what stands inside it; None when the body cannot be read.
ReadBody = Callable[[WebhookRequest, CompiledPath], str | None]


class Proof(Protocol):
    """One way to prove where a request is from."""

    @property
    def name(self) -> str: ...
    @property
    def covers(self) -> frozenset[tuple[str, ...]] | None: ...
    @property
    def secret_headers(self) -> frozenset[str]: ...

    def prove(self, received: WebhookRequest) -> Rejected | None:
        """Return why the request is not believed, or None when it is; never raises."""

    def sign(self, received: WebhookRequest, now: datetime) -> SignedRequest:
        """Return what a request must carry to be believed; raises CannotSignError where only the sender can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verifier:
    """A proof, and how old it may be."""

    proof: Proof
    freshness: Freshness | None = None

    def verify(self, received: WebhookRequest, now: datetime) -> Verified | Rejected:
        """Say whether the request is believed; never raises."""
        refused = self.proof.prove(received)
        if refused is None and self.freshness is not None:
            refused = self.freshness.check(received, now)
        return refused or Verified(by=self.proof.name)


def verify_any(verifiers: tuple[Verifier, ...], received: WebhookRequest, now: datetime) -> Verified | Rejected:
    """Say whether any verifier believes the request; else why the one that came furthest does not."""
    refused = Rejected(reason=VerificationFailure.MISSING, detail="the source has no verifier")
    for verifier in verifiers:
        found = verifier.verify(received, now)
        if isinstance(found, Verified):
            return found
        if verifier is verifiers[0] or _FURTHEST.index(found.reason) > _FURTHEST.index(refused.reason):
            refused = found
    return refused


def compile_verifier(
    entry: EntryDoc, keys: list[Secret], *, url: UrlDoc, public_base: str | None, read_body: ReadBody
) -> Verifier:
    """Make what checks of one entry; raises ValueError with what is wrong with its keys."""
    kind = entry.kind()
    assert kind is not None  # the document requires one
    name = entry.name or kind
    doc: Keyed = getattr(entry, kind)
    if isinstance(doc, SignatureDoc):
        layout = _layout(doc)
        freshness = _freshness(entry.timestamp, layout, read_body)
        checks, make = _SCHEMES[kind](doc, keys)
        stamp = entry.timestamp
        proof: Proof = Signature(
            name=name,
            layout=layout,
            parts=doc.signed,
            checks=checks,
            make=make,
            public_base=public_base,
            unescape=url.unescape is not None,
            id_header=entry.id.header if entry.id else (),
            timestamp=freshness,
            timestamp_header=(stamp.header or ()) if stamp else (),
            timestamp_item=stamp.item if stamp else None,
        )
        return Verifier(proof=proof, freshness=freshness)
    shared = tuple(decode_key(key, doc.key_encoding, doc.key_prefix) for key in keys)
    return Verifier(
        proof=_compare(name, entry, shared, read_body), freshness=_freshness(entry.timestamp, None, read_body)
    )


def _compare(name: str, entry: EntryDoc, keys: tuple[bytes, ...], read_body: ReadBody) -> Proof:
    if entry.basic:
        return basic(name, keys, user=entry.basic.user, any_user=entry.basic.any_user)
    if entry.static_header:
        return static_header(name, keys, header=entry.static_header.header, prefix=entry.static_header.prefix)
    if entry.url_token:
        return url_token(name, keys, param=entry.url_token.param)
    assert entry.body_token is not None  # the last of the family
    path = entry.body_token.path
    lookup = compile_path(path)
    return body_token(
        name, keys, path=path, steps=parse_payload_path(path), find=lambda received: read_body(received, lookup)
    )


def _layout(doc: SignatureDoc) -> Layout:
    return Layout(
        header=doc.header,
        encoding=doc.encoding,
        prefix=doc.prefix,
        separator=doc.separator,
        scheme=doc.scheme,
        scheme_separator=doc.scheme_separator,
    )


def _freshness(doc: TimestampDoc | None, layout: Layout | None, read_body: ReadBody) -> Freshness | None:
    if doc is None:
        return None

    def raw(received: WebhookRequest) -> bytes | None:
        if doc.header is not None:
            return header_bytes(received, doc.header)
        if doc.item is not None:
            return layout.item(received, doc.item) if layout else None
        assert doc.path is not None  # exactly one of the three
        text = read_body(received, doc.path)
        return None if text is None else text.encode("utf-8", "surrogatepass")

    return Freshness(raw=raw, unit=Unit(doc.unit), max_age=doc.max_age, max_future=doc.max_future)


def _hmac(doc: SignatureDoc, keys: list[Secret]) -> tuple[tuple[Check, ...], Make]:
    assert isinstance(doc, HmacDoc)
    made = [hmac_check(decode_key(key, doc.key_encoding, doc.key_prefix), doc.algorithm) for key in keys]
    return tuple(check for check, _ in made), made[0][1]


def _hash(doc: SignatureDoc, keys: list[Secret]) -> tuple[tuple[Check, ...], Make]:
    assert isinstance(doc, HmacDoc)
    made = [hash_check(decode_key(key, doc.key_encoding, doc.key_prefix), doc.algorithm) for key in keys]
    return tuple(check for check, _ in made), made[0][1]


def _ed25519(doc: SignatureDoc, keys: list[Secret]) -> tuple[tuple[Check, ...], None]:
    assert isinstance(doc, PublicKeyDoc)
    found = [ed25519_key(key, doc.key_encoding, doc.key_prefix) for key in keys]
    return tuple(lambda message, signature, key=key: ed25519_holds(key, message, signature) for key in found), None


def _rsa(doc: SignatureDoc, keys: list[Secret]) -> tuple[tuple[Check, ...], None]:
    assert isinstance(doc, PublicKeyDoc)
    found = [rsa_key(key, doc.key_encoding, doc.key_prefix) for key in keys]
    return tuple(lambda message, signature, key=key: rsa_holds(key, message, signature) for key in found), None


_SCHEMES: Final[Mapping[str, Callable[[SignatureDoc, list[Secret]], tuple[tuple[Check, ...], Make | None]]]] = {
    "hmac": _hmac,
    "hash_concat": _hash,
    "ed25519": _ed25519,
    "rsa_sha256": _rsa,
}

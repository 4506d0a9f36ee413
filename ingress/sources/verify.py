"""Check webhook requests: signatures, shared secrets, timestamps; and answer handshakes.

There are two families of verifiers. Some compute a signature over raw bytes (hmac, hash_concat, ed25519, rsa_sha256); the
others compare a secret that the request carries (basic, static_header, url_token, body_token). Which header a vendor uses, and
how, is data (`schema.py`). Checking a request never raises. A source without a key for any verifier cannot be built, so none
accepts unverified requests.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Final
from urllib.parse import parse_qsl, urlencode

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key, load_pem_public_key

from ingress.sources.mapping import moment_of
from ingress.sources.schema import (
    BasicSection,
    BodyTokenSection,
    ChallengeSection,
    GetEchoSection,
    HmacSection,
    IgnoreSection,
    KeyEncoding,
    OptionsSection,
    SignatureSection,
    SignedPart,
    StaticHeaderSection,
    TimestampSection,
    TimeUnit,
    UrlSection,
    UrlTokenSection,
    VerifierSection,
    WayInSection,
)
from rules.paths import CompiledPath, Scope, Steps, compile_path, header_text, parse_payload_path, raw_header
from rules.vocabulary import Json, Problem

#: How many query parameters are looked at; a webhook's address has one or two.
QUERY_LIMIT: Final = 100
#: Signatures of one header that are tried: rotation needs two or three.
SIGNATURES_LIMIT: Final = 16

#: What may be echoed: Meta sends digits, Slack letters and digits.
_ECHO: Final = re.compile(r"[A-Za-z0-9._~=+/-]{1,500}")
#: Digits only: `NaN`, signs, blanks inside and exponents are no timestamps.
_TIMESTAMP: Final = re.compile(rb"\d{1,15}(\.\d{1,9})?")
#: The escapes HubSpot decodes before it signs an address. Source: HubSpot, "Validating requests", signature v3.
_HUBSPOT_ESCAPES: Final = re.compile("%(3A|2F|3F|40|21|24|27|28|29|2A|2C|3B)", re.IGNORECASE)
_PLAIN: Final = {"content-type": "text/plain; charset=utf-8"}
_JSON: Final = {"content-type": "application/json"}
#: The length of a raw Ed25519 key.
_ED25519_BYTES: Final = 32

# -- requests and results ----------------------------------------------------------------------------------------------


class CannotSignError(Problem):
    """A request cannot be signed here: only the sender has the private key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookRequest:
    """An HTTP request as received, independent of any framework.

    `path` begins with a slash and has no query. `query_string` is raw, without the question mark. Header names are in lower
    case, values as WSGI gives them (one character for each byte). `body` holds the raw bytes.
    """

    method: str
    path: str
    query_string: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)
    remote: str | None = None

    def query(self) -> dict[str, str]:
        """Return the query parameters, the first value of each name; those that cannot be decoded are left out."""
        text = self.query_string.decode("latin-1")
        try:
            pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=QUERY_LIMIT, errors="replace")
        except ValueError:
            return {}
        return dict(reversed(pairs))

    def raw_header(self, names: Sequence[str]) -> bytes | None:
        """Return the first of these headers that is present, as raw bytes; None when none is."""
        for name in names:
            if name in self.headers:
                return raw_header(self.headers[name])
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookResponse:
    """The response to a sender."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


class VerificationFailure(StrEnum):
    """Why verification failed, in the order of the checks; a closed set, so that failures can be counted."""

    #: The header, parameter or field that carries the proof is not there.
    MISSING = "missing"
    #: It is there and not of the form the source uses.
    MALFORMED = "malformed"
    #: It is of the right form and wrong.
    MISMATCH = "mismatch"
    #: It is right, and its timestamp is missing or not one.
    NO_TIMESTAMP = "no_timestamp"
    #: It is right, and was made too far in the future.
    TOO_NEW = "too_new"
    #: It is right, and was made too long ago.
    TOO_OLD = "too_old"


_ORDER: Final = tuple(VerificationFailure)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """The request is verified; `by` names the verifier that accepted it."""

    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """The request is not verified. `detail` is for the log: it names what was checked and never contains its value."""

    reason: VerificationFailure
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedRequest:
    """What a request must carry to pass: headers, query parameters and the body (with a token inserted, where needed)."""

    headers: Mapping[str, str] = field(repr=False)
    query: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)
    method: str = "POST"


#: Reads a path in the body of a request; None when there is nothing or the body cannot be read.
ReadBody = Callable[[WebhookRequest, CompiledPath], str | None]


def verify_any(verifiers: Sequence[Verifier], request: WebhookRequest, now: datetime) -> Verified | Rejected:
    """Return Verified if any verifier accepts the request, else the failure of the one whose checks got furthest.

    That one is most likely the method that the sender used.
    """
    furthest: Rejected | None = None
    for verifier in verifiers:
        found = verifier.verify(request, now)
        if isinstance(found, Verified):
            return found
        if furthest is None or _ORDER.index(found.reason) > _ORDER.index(furthest.reason):
            furthest = found
    return furthest or Rejected(reason=VerificationFailure.MISSING, detail="the source has no verifier")


# -- secrets and keys --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookSecret:
    """A secret and its name in messages: its environment variable, or its place in the file."""

    text: str = field(repr=False)
    name: str


def secrets_for(
    secrets: Sequence[WebhookSecret], section: VerifierSection, prefixes: frozenset[str]
) -> list[WebhookSecret]:
    """Return those of the shared secrets that a verifier may use.

    A secret with a verifier's prefix (`whsec_`, `whpk_`) is used only by verifiers with that prefix. Otherwise a public key
    could be taken for a shared secret, and everybody could sign.
    """
    chosen = []
    for secret in secrets:
        prefix = next((one for one in prefixes if secret.text.startswith(one)), None)
        if prefix == section.key_prefix or (prefix is None and not section.key_prefix_required):
            chosen.append(secret)
    return chosen


def _key_bytes(secret: WebhookSecret, section: VerifierSection) -> bytes:
    """Return a key's bytes. Raises ValueError with what is wrong, never with the secret."""
    text = secret.text.removeprefix(section.key_prefix) if section.key_prefix else secret.text
    if section.key_encoding == "text":
        return _bytes(text)
    key = _decoded(text.strip().encode(), section.key_encoding)
    if not key:
        raise ValueError(f"{secret.name}: the secret is not {section.key_encoding}")
    return key


def _public_key(secret: WebhookSecret, section: VerifierSection, kind: str) -> Ed25519PublicKey | RSAPublicKey:
    """Return a public key given as PEM, as SPKI or, for Ed25519, raw. Raises ValueError with what is wrong."""
    is_pem = secret.text.lstrip().startswith("-----BEGIN")
    raw = secret.text.strip().encode() if is_pem else _key_bytes(secret, section)
    if kind == "ed25519" and len(raw) == _ED25519_BYTES:
        return Ed25519PublicKey.from_public_bytes(raw)
    try:
        key = (load_pem_public_key if raw.startswith(b"-----BEGIN") else load_der_public_key)(raw)
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError(
            f"{secret.name}: this is no public key; give it as PEM, or as base64 of its SPKI form"
        ) from None
    wanted, name = (Ed25519PublicKey, "Ed25519") if kind == "ed25519" else (RSAPublicKey, "RSA")
    if not isinstance(key, wanted):
        raise ValueError(f"{secret.name}: this is a public key of another kind than {name}")  # noqa: TRY004
    return key


def _decoded(text: bytes, encoding: KeyEncoding) -> bytes | None:
    """Return the bytes that hex text (either case) or base64 text (padding optional) stands for; None when it is none."""
    try:
        if encoding == "hex":
            return binascii.unhexlify(text)
        text = text.rstrip(b"=")
        return binascii.a2b_base64(text + b"=" * (-len(text) % 4), strict_mode=True)
    except ValueError:
        return None


def same_secret(given: bytes, wanted: bytes) -> bool:
    """Compare two secrets in constant time; both are hashed first, so that timing does not reveal the length either."""
    return hmac.compare_digest(hashlib.sha256(given).digest(), hashlib.sha256(wanted).digest())


# -- freshness ---------------------------------------------------------------------------------------------------------


class Freshness:
    """Checks the timestamp of a request, so that a captured request cannot be replayed later.

    Timestamps are compared as numbers, so that no value overflows a datetime.
    """

    def __init__(
        self, section: TimestampSection, read_item: Callable[[WebhookRequest, str], bytes | None], read_body: ReadBody
    ) -> None:
        """Take where the timestamp is and how far from now it may be, and what reads an item of a list or the body."""
        self._section = section
        self._read_item = read_item
        self._read_body = read_body
        self.unit = TimeUnit(section.unit)
        self._max_age_seconds = section.max_age.total_seconds()
        self._max_future_seconds = section.max_future.total_seconds()

    def raw(self, request: WebhookRequest) -> bytes | None:
        """Return the timestamp as received; None when there is none."""
        if self._section.header is not None:
            return request.raw_header(self._section.header)
        if self._section.item is not None:
            return self._read_item(request, self._section.item)
        assert self._section.path is not None  # exactly one of the three
        text = self._read_body(request, self._section.path)
        return None if text is None else _bytes(text)

    def check(self, request: WebhookRequest, now: datetime) -> Rejected | None:
        """Return why the request is too old or too far in the future; None when it is fresh."""
        raw = self.raw(request)
        made_at_seconds = None if raw is None else self._seconds(raw)
        if made_at_seconds is None:
            return Rejected(reason=VerificationFailure.NO_TIMESTAMP, detail="its timestamp is missing or not one")
        age_seconds = now.timestamp() - made_at_seconds
        if age_seconds > self._max_age_seconds:
            return Rejected(reason=VerificationFailure.TOO_OLD, detail=f"it was made {_about(age_seconds)} ago")
        if -age_seconds > self._max_future_seconds:
            detail = f"it was made {_about(-age_seconds)} in the future"
            return Rejected(reason=VerificationFailure.TOO_NEW, detail=detail)
        return None

    def write(self, now: datetime) -> str:
        """Return `now` in the sender's format."""
        if self.unit is TimeUnit.ISO:
            return now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return str(int(now.timestamp() * (1000 if self.unit is TimeUnit.MILLISECONDS else 1)))

    def _seconds(self, raw: bytes) -> float | None:
        raw = raw.strip()
        if self.unit is TimeUnit.ISO:
            moment = moment_of(raw.decode("latin-1"), TimeUnit.ISO)
            return moment.timestamp() if moment else None
        if not _TIMESTAMP.fullmatch(raw):
            return None
        return float(raw) / (1000 if self.unit is TimeUnit.MILLISECONDS else 1)


def _about(seconds: float) -> str:
    """Return a span roughly: a clock that is wrong by hours or a unit that is wrong by a thousand shows itself."""
    for size, name in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{seconds:.0f} seconds"


# -- verifiers ---------------------------------------------------------------------------------------------------------


class Verifier:
    """One way to authenticate a request, with its limit on the request's age."""

    #: The headers that the proof is made over, each with the names it goes by; None: it vouches for the whole request.
    covers: frozenset[tuple[str, ...]] | None = None
    #: Headers whose value is never stored.
    secret_headers: frozenset[str] = frozenset()

    def __init__(self, way: WayInSection, read_body: ReadBody) -> None:
        """Take what the source says of it, and what reads a path in the body of a request."""
        self.name = way.name or way.kind
        self.freshness = Freshness(way.timestamp, self.read_item, read_body) if way.timestamp else None
        self._verified = Verified(by=self.name)

    def verify(self, request: WebhookRequest, now: datetime) -> Verified | Rejected:
        """Check signature or secret, and age. Never raises."""
        rejected = self.prove(request)
        if rejected is None and self.freshness is not None:
            rejected = self.freshness.check(request, now)
        return rejected or self._verified

    def prove(self, request: WebhookRequest) -> Rejected | None:
        """Return why signature or secret is wrong, regardless of age; None when it is right."""
        raise NotImplementedError

    def sign(self, request: WebhookRequest, now: datetime) -> SignedRequest:
        """Return what a request must carry to pass. Raises CannotSignError when only the sender has the key."""
        raise NotImplementedError

    def read_item(self, request: WebhookRequest, name: str) -> bytes | None:  # noqa: ARG002 - a signature's list has items
        """Return a named item of the signature header's list; None when there is none."""
        return None


def compile_verifier(
    way: WayInSection, secrets: Sequence[WebhookSecret], url: UrlSection, read_body: ReadBody
) -> Verifier:
    """Return the verifier of one `auth` entry. Raises ValueError that says what is wrong with its keys.

    `url` is the public URL, for signatures that cover it; `read_body` finds a value in the body.
    """
    section = way.verifier
    if isinstance(section, SignatureSection):
        return SignatureVerifier(way, section, secrets, url, read_body)
    keys = [_key_bytes(secret, section) for secret in secrets]
    match section:
        case BasicSection():
            carrier = _basic(section)
            if section.user is not None:
                keys = [f"{section.user}:".encode() + key for key in keys if key]
        case StaticHeaderSection():
            carrier = _static_header(section)
        case UrlTokenSection():
            carrier = _url_token(section)
        case _:
            assert isinstance(section, BodyTokenSection)  # the last of the family
            carrier = _body_token(section, read_body)
    return SharedSecretVerifier(way, keys, carrier, read_body)


class SignatureVerifier(Verifier):
    """Verifies a signature over parts of the request, computed from the raw bytes as received."""

    def __init__(
        self,
        way: WayInSection,
        section: SignatureSection,
        secrets: Sequence[WebhookSecret],
        url: UrlSection,
        read_body: ReadBody,
    ) -> None:
        """Take what `compile_verifier` takes. Raises ValueError with what is wrong with the keys."""
        super().__init__(way, read_body)
        self._section = section
        self._prefix = section.prefix.encode()
        self.secret_headers = frozenset(section.header)
        self._timestamp = way.timestamp
        self._id_header = way.id.header if way.id else ()
        self._public_base = (url.public_base or "").encode()
        self._unescape = url.unescape is not None
        self._signs_url = "url" in way.signed_kinds
        self._needed = [part for part in section.signed if part.kind not in ("url", "text")]
        named = {"id": self._id_header, "timestamp": (way.timestamp.header or ()) if way.timestamp else ()}
        covered = {(part.text,) if part.kind == "header" else named.get(part.kind, ()) for part in section.signed}
        self.covers = frozenset(covered - {()})
        self._kind = way.kind
        self._keys: list[bytes | Ed25519PublicKey | RSAPublicKey] = []
        for secret in secrets:
            is_shared = isinstance(section, HmacSection)
            self._keys.append(_key_bytes(secret, section) if is_shared else _public_key(secret, section, way.kind))

    def prove(self, request: WebhookRequest) -> Rejected | None:
        """Return why the signature is wrong; None when it is right."""
        header = self._section.header
        value = request.raw_header(header)
        if value is None:
            return Rejected(reason=VerificationFailure.MISSING, detail=f"header {' or '.join(header)} is missing")
        signatures = self._signatures(value)
        if not signatures:
            return Rejected(reason=VerificationFailure.MALFORMED, detail=f"header {header[0]} holds no signature")
        values = self._values(request)
        for part in self._needed:
            if part.key not in values:
                stamp = part.kind == "timestamp"
                reason = VerificationFailure.NO_TIMESTAMP if stamp else VerificationFailure.MISSING
                return Rejected(reason=reason, detail=f"{part.key}, which is signed, is missing")
        holds = False
        for message in self._messages(request, values):
            for key in self._keys:
                for signature in signatures:
                    holds |= self._is_right(signature, message, key)
        return None if holds else Rejected(reason=VerificationFailure.MISMATCH, detail="the signature does not match")

    def sign(self, request: WebhookRequest, now: datetime) -> SignedRequest:
        """Return the headers that make a request pass. Raises CannotSignError when only the sender has the key."""
        key = self._keys[0]
        if not isinstance(key, bytes):
            raise CannotSignError(f"{self.name}: only its sender has the private key, so no request can be signed here")
        headers = dict(request.headers)
        stamp = self.freshness.write(now) if self.freshness else ""
        if self._timestamp and self._timestamp.header:
            headers[self._timestamp.header[0]] = stamp
        if self._id_header and not any(name in headers for name in self._id_header):
            headers[self._id_header[0]] = f"msg_{hashlib.sha256(request.body).hexdigest()[:24]}"
        request = replace(request, headers=headers)
        values = self._values(request)
        item = self._timestamp.item if self._timestamp else None
        if item:
            values["timestamp"] = stamp.encode()
        lacking = [part.key for part in self._needed if part.key not in values]
        if lacking:
            raise CannotSignError(f"{self.name}: {', '.join(lacking)} must be given to sign a request")
        signature = self._made(self._messages(request, values)[0], key)
        headers[self._section.header[0]] = self._written(signature, {item: stamp} if item else {})
        return SignedRequest(headers=headers, body=request.body)

    def _is_right(self, signature: bytes, message: bytes, key: bytes | Ed25519PublicKey | RSAPublicKey) -> bool:
        if isinstance(key, bytes):  # an empty key makes nothing right
            return bool(key) and hmac.compare_digest(self._made(message, key), signature)
        try:
            if isinstance(key, Ed25519PublicKey):
                key.verify(signature, message)
            else:
                key.verify(signature, message, PKCS1v15(), SHA256())
        except (InvalidSignature, ValueError):
            return False
        return True

    def _made(self, message: bytes, key: bytes) -> bytes:
        """Return the HMAC of a message, or for `hash_concat` the hash over key and message, one after the other."""
        assert isinstance(self._section, HmacSection)
        if self._kind == "hash_concat":
            return hashlib.new(self._section.algorithm, key + message).digest()
        return hmac.digest(key, message, self._section.algorithm)

    def _signatures(self, value: bytes) -> list[bytes]:
        """Return the signatures of a header's value, decoded; what is not of the right form is left out."""
        texts = [value.strip()]
        if self._section.separator is not None:
            wanted = (self._section.scheme or "").encode()
            texts = [text for key, text in self._items(value) if key == wanted]
        decoded = (self._signature(text) for text in texts[:SIGNATURES_LIMIT])
        return [signature for signature in decoded if signature]

    def _signature(self, text: bytes) -> bytes | None:
        prefix = self._prefix
        if prefix and text[: len(prefix)].lower() != prefix.lower():
            return None
        return _decoded(text[len(prefix) :], self._section.encoding)

    def _written(self, signature: bytes, items: Mapping[str, str]) -> str:
        """Return the header's value for a signature; `items` stand beside it in the list."""
        section = self._section
        written = signature.hex() if section.encoding == "hex" else base64.b64encode(signature).decode("ascii")
        text = section.prefix + written
        if section.separator is None:
            return text
        pairs = [*items.items(), (section.scheme or "", text)]
        return section.separator.join(f"{key}{section.scheme_separator}{one}" if key else one for key, one in pairs)

    def _items(self, value: bytes) -> list[tuple[bytes, bytes]]:
        """Return the pairs of a header that is a list, such as `t=1,v1=ab`."""
        between = self._section.scheme_separator.encode()
        pairs = []
        for piece in value.split((self._section.separator or ",").encode()):
            key, found, text = piece.strip().partition(between)
            pairs.append((key.strip(), text.strip()) if found else (b"", key))
        return pairs

    def read_item(self, request: WebhookRequest, name: str) -> bytes | None:
        """Return an item of the signature header, such as `t` in `t=1,v1=ab`; None when there is none."""
        value = request.raw_header(self._section.header) or b""
        return next((text for key, text in self._items(value) if key == name.encode()), None)

    def _values(self, request: WebhookRequest) -> dict[str, bytes]:
        """Return the bytes of every signed part that is there, but the address's, by the part's key."""
        values = {"method": request.method.upper().encode("latin-1", "replace"), "body": request.body}
        for part in self._needed:
            found = None
            if part.kind == "header":
                found = request.raw_header((part.text,))
            elif part.kind == "id":
                found = request.raw_header(self._id_header)
            elif part.kind == "timestamp" and self.freshness:
                found = self.freshness.raw(request)
            if found is not None:
                values[part.key] = found
        return values

    def _messages(self, request: WebhookRequest, values: Mapping[str, bytes]) -> list[bytes]:
        """Return what may have been signed: one message, or two where the address can be written in two ways."""
        if not self._signs_url:
            return [_joined(self._section.signed, values)]
        url = self._public_base + request.path.encode("utf-8", "surrogatepass")
        if request.query_string:
            url += b"?" + request.query_string
        urls = [url]
        if self._unescape and (other := _unescaped(url)) != url:
            urls.append(other)
        return [_joined(self._section.signed, {**values, "url": one}) for one in urls]


def _joined(parts: Sequence[SignedPart], values: Mapping[str, bytes]) -> bytes:
    """Return the signed bytes; joining bytes and never text is the point: what was signed is what came in."""
    return b"".join(part.text.encode() if part.kind == "text" else values[part.key] for part in parts)


def _unescaped(url: bytes) -> bytes:
    """Return an address with HubSpot's twelve escapes decoded."""
    text = url.decode("latin-1")
    return _HUBSPOT_ESCAPES.sub(lambda found: chr(int(found[1], 16)), text).encode("latin-1")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Carrier:
    """The place of a request that carries a shared secret; `place` names it in messages.

    `given` returns what may be the secret there, nothing where it is missing; `put` puts a secret there.
    """

    place: str
    given: Callable[[WebhookRequest], Sequence[bytes]]
    put: Callable[[WebhookRequest, bytes], SignedRequest]
    headers: tuple[str, ...] = ()


class SharedSecretVerifier(Verifier):
    """Compares a secret that the request carries. It authenticates the whole request; nothing is computed."""

    def __init__(self, way: WayInSection, keys: Sequence[bytes], carrier: _Carrier, read_body: ReadBody) -> None:
        """Take a way in, its keys, the place that is looked at, and what finds a timestamp in the body."""
        super().__init__(way, read_body)
        self._keys = keys
        self._carrier = carrier
        self.secret_headers = frozenset(carrier.headers)

    def prove(self, request: WebhookRequest) -> Rejected | None:
        """Return why the secret is missing or wrong; None when it is right."""
        given = self._carrier.given(request)
        if not given:
            return Rejected(reason=VerificationFailure.MISSING, detail=f"{self._carrier.place} is missing")
        holds = False
        for key in self._keys:
            for secret in given:
                holds |= bool(key) and same_secret(secret, key)
        if holds:
            return None
        return Rejected(reason=VerificationFailure.MISMATCH, detail=f"{self._carrier.place} is wrong")

    def sign(self, request: WebhookRequest, now: datetime) -> SignedRequest:  # noqa: ARG002 - every verifier signs alike
        """Return the request with the secret in place."""
        return self._carrier.put(request, self._keys[0])


def _basic(section: BasicSection) -> _Carrier:
    """HTTP Basic: the secret is `user:password`; with `any_user` it may be the password alone."""

    def given(request: WebhookRequest) -> Sequence[bytes]:
        scheme, _, text = (request.raw_header(("authorization",)) or b"").partition(b" ")
        credentials = _decoded(text.strip(), "base64") if scheme.lower() == b"basic" else None
        if credentials is None:
            return ()
        return (credentials, credentials.partition(b":")[2]) if section.any_user else (credentials,)

    def put(request: WebhookRequest, key: bytes) -> SignedRequest:
        credentials = key if b":" in key or not section.any_user else b"leadwire:" + key
        value = "Basic " + base64.b64encode(credentials).decode("ascii")
        return SignedRequest(headers={**request.headers, "authorization": value}, body=request.body)

    return _Carrier(place="header authorization (Basic)", given=given, put=put, headers=("authorization",))


def _static_header(section: StaticHeaderSection) -> _Carrier:
    """The secret in a header of its own, after a prefix such as `Bearer `."""
    prefix, names = section.prefix.encode(), section.header

    def given(request: WebhookRequest) -> Sequence[bytes]:
        value = request.raw_header(names)
        if value is None or value[: len(prefix)].lower() != prefix.lower():
            return ()
        return (value[len(prefix) :].strip(),)

    def put(request: WebhookRequest, key: bytes) -> SignedRequest:
        return SignedRequest(headers={**request.headers, names[0]: (prefix + key).decode("latin-1")}, body=request.body)

    shown = f" ({section.prefix.strip()})" if section.prefix.strip() else ""
    return _Carrier(place=f"header {' or '.join(names)}{shown}", given=given, put=put, headers=names)


def _url_token(section: UrlTokenSection) -> _Carrier:
    """The secret in the address: `?token=...`."""

    def given(request: WebhookRequest) -> Sequence[bytes]:
        value = request.query().get(section.param)
        return () if value is None else (_bytes(value),)

    def put(request: WebhookRequest, key: bytes) -> SignedRequest:
        query = {section.param: key.decode("utf-8", "replace")}
        return SignedRequest(headers=request.headers, query=query, body=request.body)

    return _Carrier(place=f"?{section.param}= in the address", given=given, put=put)


def _body_token(section: BodyTokenSection, read_body: ReadBody) -> _Carrier:
    """The secret in the body, as Zoho echoes it."""
    path, steps = compile_path(section.path), parse_payload_path(section.path)

    def given(request: WebhookRequest) -> Sequence[bytes]:
        value = read_body(request, path)
        return () if value is None else (_bytes(value),)

    def put(request: WebhookRequest, key: bytes) -> SignedRequest:
        return SignedRequest(
            headers=request.headers, body=_with_token(request.body, steps, key.decode("utf-8", "replace"))
        )

    return _Carrier(place=f"{section.path} in the body", given=given, put=put)


def _with_token(body: bytes, steps: Steps, token: str) -> bytes:
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


def _bytes(text: str) -> bytes:
    """Return a text as UTF-8; never raises, also for lone surrogates."""
    return text.encode("utf-8", "surrogatepass")


# -- handshakes --------------------------------------------------------------------------------------------------------
#
# What is echoed comes from outside: only a short plain token goes back, as plain text.


def answer_unsigned(
    question: GetEchoSection | OptionsSection, tokens: Sequence[str], request: WebhookRequest
) -> WebhookResponse | None:
    """Return the answer to an unsigned handshake, or None when this request is none.

    `GET ?hub.challenge=...` is echoed when its token is one of `tokens` (Meta, "Webhooks: getting started"). An OPTIONS request
    is granted its origin (CloudEvents, http-webhook.md, section 4).
    """
    if isinstance(question, OptionsSection):
        return _options(question, request)
    query = request.query()
    if request.method != "GET" or question.param not in query:
        return None
    given = query.get(question.token_param, "")
    known = False
    for token in tokens:
        known |= bool(token) and same_secret(_bytes(given), _bytes(token))
    expected = all(query.get(name) == value for name, value in question.expect.items())
    challenge = query[question.param]
    if not known or not expected or not _ECHO.fullmatch(challenge):
        return WebhookResponse(status=403, body=b"refused", headers=_PLAIN)
    return WebhookResponse(status=200, body=challenge.encode("ascii"), headers=_PLAIN)


def _options(question: OptionsSection, request: WebhookRequest) -> WebhookResponse | None:
    origin = request.headers.get("webhook-request-origin")
    if request.method != "OPTIONS" or origin is None:
        return None
    name = header_text(origin)
    if not _ECHO.fullmatch(name):
        return WebhookResponse(status=403, body=b"refused", headers=_PLAIN)
    headers = {"webhook-allowed-origin": name, "allow": "POST, GET, OPTIONS"}
    if "webhook-request-rate" in request.headers or question.rate:
        headers["webhook-allowed-rate"] = str(question.rate or "*")
    return WebhookResponse(status=200, headers=headers)


def answer_signed(question: ChallengeSection | IgnoreSection, scope: Scope) -> WebhookResponse | None:
    """Return the answer to a handshake in a verified body (Slack's url_verification, a ping), or None when it is none."""
    if not question.match(scope):
        return None
    if isinstance(question, IgnoreSection):
        return WebhookResponse(status=200, body=b'{"status":"ignored"}', headers=_JSON)
    value = question.answer.find(scope)
    if not isinstance(value, str) or not _ECHO.fullmatch(value):
        return WebhookResponse(status=400, body=b"no challenge", headers=_PLAIN)
    if question.respond == "json":
        return WebhookResponse(status=200, body=json.dumps({"challenge": value}).encode(), headers=_JSON)
    return WebhookResponse(status=200, body=value.encode("ascii"), headers=_PLAIN)

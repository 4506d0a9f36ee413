"""How the text of a secret becomes the bytes of a key.

Secrets under `secrets` serve every verifier of a source. One with the prefix of a verifier (`whsec_`, `whpk_`) serves only
the verifiers with that prefix: a public key must never be taken for a shared one, or everybody could sign.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key, load_pem_public_key

Encoding = Literal["text", "hex", "base64"]

#: The length of a raw Ed25519 key.
_ED25519_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """A secret with the name it goes by in messages: its variable, or where it is written."""

    text: str = field(repr=False)
    name: str


def serving(
    secrets: Sequence[Secret], own_prefix: str | None, prefixes: frozenset[str], *, required: bool
) -> list[Secret]:
    """Return those of the shared secrets that are meant for a verifier with this prefix."""
    chosen = []
    for secret in secrets:
        prefix = next((one for one in prefixes if secret.text.startswith(one)), None)
        if prefix == own_prefix or (prefix is None and not required):
            chosen.append(secret)
    return chosen


def decode_key(secret: Secret, encoding: Encoding, prefix: str | None) -> bytes:
    """Return a shared key's bytes. Raises ValueError with what is wrong, never with the secret."""
    text = secret.text.removeprefix(prefix) if prefix else secret.text
    if encoding == "text":
        return text.encode("utf-8", "surrogatepass")
    key = from_hex(text.strip().encode()) if encoding == "hex" else from_base64(text.strip().encode())
    if not key:
        raise ValueError(f"{secret.name}: the secret is not {encoding}")
    return key


def from_hex(text: bytes) -> bytes | None:
    """Return the bytes that hexadecimal text stands for, in either case; None when it is none."""
    try:
        return binascii.unhexlify(text)
    except ValueError:
        return None


def from_base64(text: bytes) -> bytes | None:
    """Return the bytes that base64 text stands for, padding optional; None when it is none."""
    text = text.rstrip(b"=")
    try:
        return binascii.a2b_base64(text + b"=" * (-len(text) % 4), strict_mode=True)
    except ValueError:
        return None


def to_text(raw: bytes, encoding: Literal["hex", "base64"]) -> str:
    """Return bytes as hexadecimal or base64 text."""
    return raw.hex() if encoding == "hex" else base64.b64encode(raw).decode("ascii")


def ed25519_key(secret: Secret, encoding: Encoding, prefix: str | None) -> Ed25519PublicKey:
    """Return a public key given raw, as SPKI or as PEM. Raises ValueError with what is wrong."""
    raw = _public_bytes(secret, encoding, prefix)
    if len(raw) == _ED25519_BYTES:
        return Ed25519PublicKey.from_public_bytes(raw)
    key = _load(secret, raw)
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError(f"{secret.name}: this is a public key of another kind than Ed25519")  # noqa: TRY004
    return key


def rsa_key(secret: Secret, encoding: Encoding, prefix: str | None) -> RSAPublicKey:
    """Return a public key given as SPKI or as PEM. Raises ValueError with what is wrong."""
    key = _load(secret, _public_bytes(secret, encoding, prefix))
    if not isinstance(key, RSAPublicKey):
        raise ValueError(f"{secret.name}: this is a public key of another kind than RSA")  # noqa: TRY004
    return key


def ed25519_holds(key: Ed25519PublicKey, message: bytes, signature: bytes) -> bool:
    """Whether the signature is this key's for this message."""
    try:
        key.verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def rsa_holds(key: RSAPublicKey, message: bytes, signature: bytes) -> bool:
    """Whether the signature (PKCS #1 v1.5, SHA-256) is this key's for this message."""
    try:
        key.verify(signature, message, PKCS1v15(), SHA256())
    except (InvalidSignature, ValueError):
        return False
    return True


def _public_bytes(secret: Secret, encoding: Encoding, prefix: str | None) -> bytes:
    if secret.text.lstrip().startswith("-----BEGIN"):
        return secret.text.strip().encode()
    return decode_key(secret, encoding, prefix)


def _load(secret: Secret, raw: bytes) -> object:
    load = load_pem_public_key if raw.startswith(b"-----BEGIN") else load_der_public_key
    try:
        return load(raw)
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError(
            f"{secret.name}: this is no public key; give it as PEM, or as base64 of its SPKI form"
        ) from None

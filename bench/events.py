"""What is posted: distinct, signed events, made cheaply enough to be made ahead, each found again by its number anywhere.

An event's id stands in its body, as the id of its lead too, and from there in the title of the task that the provider is
asked for: so one pattern finds it in the request, in the ledger and at the sink.
"""

from __future__ import annotations

import hmac
import re
import time
from typing import Final

SECRET: Final = b"a-bench-secret-that-guards-nothing"
SIGNATURE_HEADER: Final = "X-Hub-Signature-256"
SIGNATURE_PREFIX: Final = "sha256="
PATH: Final = "/webhooks/crm"
ID: Final = re.compile(rb"evt-[0-9a-f]{6}-[0-9]{6}")

_BODY: Final = (
    '{"id": "%(id)s", "event": "lead.created", "occurred_at": "%(at)s", "lead": {"id": "%(id)s", '
    '"name": "Ana María Pérez", "phone": "+569%(number)08d", "email": "ana%(number)d@example.com", "country": "CL", '
    '"source": "facebook", "campaign": "c-%(number)d", "score": %(score)d, "tags": ["new", "web"]}}'
)


def event_id(run: str, number: int) -> str:
    """Return the id of an event: `run` is six hexadecimal characters, `number` is below a million."""
    return f"evt-{run}-{number:06d}"


def body(run: str, number: int, at: str = "2026-01-05T12:00:00Z") -> bytes:
    """Return the body of an event, about 300 bytes of JSON."""
    values = {"id": event_id(run, number), "at": at, "number": number, "score": 50 + number % 50}
    return (_BODY % values).encode()


def signature(content: bytes) -> str:
    """Return what the signature header says of a body."""
    return SIGNATURE_PREFIX + hmac.digest(SECRET, content, "sha256").hex()


def request(content: bytes, port: int, path: str = PATH) -> bytes:
    """Return the whole signed HTTP request as it goes over the wire."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"{SIGNATURE_HEADER}: {signature(content)}\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def requests(run: str, count: int, port: int, path: str = PATH) -> list[bytes]:
    """Return `count` signed requests that occurred now; number n holds event n of the run."""
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return [request(body(run, number, at), port, path) for number in range(count)]

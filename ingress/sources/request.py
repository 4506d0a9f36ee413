"""One webhook request as a value, and the only ways in which looking at it can end.

Everything in `ingress/sources` works on these: no framework's request object, so that any byte sequence can be tried on any
source in a test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import parse_qsl

from rules.vocabulary import Problem

#: How many query parameters are looked at; a webhook's address has one or two.
QUERY_LIMIT = 100


class CannotSignError(Problem):
    """A request for this source cannot be made here: only its sender has what it takes to sign."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookRequest:
    """One HTTP request as it came in.

    `path` begins with a slash and holds no query; `query_string` is raw, without the question mark. Header names are lower
    case, values as WSGI gives them (each character one byte). `body` holds the raw bytes.
    """

    method: str
    path: str
    query_string: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)
    remote: str | None = None

    def query(self) -> dict[str, str]:
        """Return the query parameters, the first of each name; what cannot be read is left out."""
        text = self.query_string.decode("latin-1")
        try:
            pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=QUERY_LIMIT, errors="replace")
        except ValueError:
            return {}
        return dict(reversed(pairs))


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookResponse:
    """What the sender is told."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


class VerificationFailure(StrEnum):
    """Why a request was not believed; few words, so that they can be counted by source."""

    #: The header, parameter or field that carries the proof is not there.
    MISSING = "missing"
    #: It is there and not of the form the source uses.
    MALFORMED = "malformed"
    #: It is of the right form and wrong.
    MISMATCH = "mismatch"
    #: It is right, and its timestamp is missing or not one.
    NO_TIMESTAMP = "no_timestamp"
    #: It is right, and was made too long ago.
    TOO_OLD = "too_old"
    #: It is right, and was made too far in the future.
    TOO_NEW = "too_new"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """The request is from the source; `by` names the verifier that says so."""

    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """The request is not believed. `detail` is for the log: it names what was looked at and never holds its value."""

    reason: VerificationFailure
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """The request is from the source, and no events can be made of its body; `reason` is for the operator."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedRequest:
    """What a request must carry to be believed: headers, query parameters, and the body (changed by a token inside it)."""

    headers: Mapping[str, str] = field(repr=False)
    query: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)
    method: str = "POST"

"""What goes over the wire to a provider, as values: the request, and the only three ways a send can end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from rules.vocabulary import Json, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One HTTP request to a provider. `path` begins with a slash and is appended to the provider's base URL."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    query: tuple[tuple[str, str], ...] = ()
    json: Json = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsendable:
    """The task cannot be put into a request the provider would accept; `reason` is its complaint and the remedy.

    `too_late` when all that is wrong is the time: it would expire before the provider could act.
    """

    reason: str
    too_late: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """The provider answered. Header names are lower case; `truncated` when the body was over the size that is read."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    truncated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NeverSent:
    """The request certainly did not reach the provider (refused connection, DNS, TLS)."""

    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NoAnswer:
    """The request may have reached the provider, and no usable answer came back (time-out, reset, broken answer)."""

    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NotBegun:
    """The caller's own check said, just before the write, that it is too late to begin; nothing left this machine."""

    reason: str


Sent = Answered | NeverSent | NoAnswer


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a provider's file makes of a send.

    `reason` is for the operator: it begins with the status and the provider's own message, then the remedy.
    `retry_after_at` is the moment the provider asked to be left alone until. `probe_first` asks the caller to send the
    provider's probe before believing a PAUSE (a 403 may concern one task only): if the probe is answered with success, the
    verdict is REFUSED instead.
    """

    verdict: Verdict
    external_id: str | None = None
    reason: str | None = None
    retry_after_at: datetime | None = None
    probe_first: bool = False
    warning: str | None = None

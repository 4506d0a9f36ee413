"""What goes over the wire to a provider, as values: the request, the only three ways a send can end, and what each tells."""

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
class CancelAnswer:
    """What came of asking a provider to cancel a task that it has: whether it did, and its answer in words."""

    taken: bool
    words: str


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the pages of one listing held so far.

    `ids` are those of the pass under way, `earlier` those of the pass before if it was whole, `least_total` the smallest
    number of tasks that its pages told of. `held` maps marks that were found to the provider's ids, and `unmarked` has the
    titles of tasks without any mark, both of all passes.
    """

    ids: frozenset[str] = frozenset()
    held: Mapping[str, str] = field(default_factory=dict)
    unmarked: frozenset[str] = frozenset()
    least_total: int | None = None
    earlier: frozenset[str] | None = None
    passes: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class More:
    """The listing goes on: `page` is to be asked for next, and its reading is given `seen`."""

    page: int
    seen: Seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A listing that was read whole; see `Seen`. `form_works`: it shows that the question itself was understood."""

    held: Mapping[str, str]
    unmarked: frozenset[str]
    form_works: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CannotTell:
    """A look-up decides nothing; `reason` may be shown anywhere. `answered` is false when the provider did not answer.

    `passes`: what stood in the way passes by itself, an outage or a pause; `retry_after_at` is when to ask again at the soonest.
    """

    reason: str
    answered: bool = True
    passes: bool = False
    retry_after_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The provider holds the task that was looked for, under this id."""

    external_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Absent:
    """A listing that was read whole does not hold the task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stands:
    """How a task that the provider accepted stands there, in the provider's word; `final` when that will not change."""

    word: str
    final: bool

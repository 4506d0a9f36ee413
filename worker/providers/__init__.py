"""The providers that execute tasks: what each must be able to do, the values that go in and out, and how one is found.

A provider is pure. It turns a task into a `ProviderRequest` and an answer into an `Interpretation`, and says how a task
that may have been executed is looked for. `worker/http.py` sends, `worker/retry.py` decides what follows. A new one is
a module of this package with a constant `PROVIDER`, or an entry point of another package (see `load`).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Final, Protocol, runtime_checkable

from rules.vocabulary import Json, ProviderName, SettingsError, TaskType, Verdict

#: The entry points by which another package gives a provider.
ENTRY_POINT_GROUP: Final = "leadwire.providers"
#: Of an answer so much is read: it is one task, or an error.
BODY_LIMIT_BYTES: Final = 1024 * 1024
#: Of a listing so much: the tasks of one user may be tens of thousands.
LISTING_LIMIT_BYTES: Final = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderRequest:
    """One HTTP request to a provider.

    `path` begins with a slash and is appended to the provider's base URL. `json` is the body, None for none. Of the answer's body
    `body_limit_bytes` are read. `headers` are not shown by repr.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    query: tuple[tuple[str, str], ...] = ()
    json: Json = None
    body_limit_bytes: int = BODY_LIMIT_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsendable:
    """The task cannot be put into a request that the provider would accept; `reason` says why and what to do.

    `too_late` when all that is wrong is the time: the task would expire before the provider could act.
    """

    reason: str
    too_late: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """The provider answered.

    Header names are in lower case. `truncated` when `body` is not whole: it was over the limit, or a failure's broke off.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    truncated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NeverSent:
    """The request certainly did not reach the provider: refused connection, unknown name, TLS."""

    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NoAnswer:
    """The request may have reached the provider, and no usable answer came back: time-out, reset, broken answer."""

    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NotBegun:
    """The sender's own check said, just before the request would have left, that it is too late; nothing left."""

    reason: str


#: How a send can end, from the provider's point of view.
Sent = Answered | NeverSent | NoAnswer


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpretation:
    """What a send means for the task.

    `reason` is for the operator: the status and the provider's own message, then the remedy. `retry_after_at` is the moment until
    which the provider asked to be left alone. With `probe_first` the caller sends the provider's probe before it believes a
    PAUSE (a 403 may concern one task only): if the probe succeeds, the verdict is REFUSED instead.
    """

    verdict: Verdict
    external_id: str | None = None
    reason: str | None = None
    retry_after_at: datetime | None = None
    probe_first: bool = False
    warning: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelResult:
    """Whether a provider cancelled a task that it has, and its answer in words."""

    taken: bool
    words: str


class ClaimedTask(Protocol):
    """What a provider needs to know of a task that is about to be sent."""

    @property
    def id(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def type(self) -> TaskType: ...
    @property
    def fields(self) -> Mapping[str, Json]: ...
    @property
    def due_at(self) -> datetime: ...
    @property
    def expires_at(self) -> datetime | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupTarget:
    """A task that may have been executed, by a request between these two moments of our clock, and its correlation tag."""

    task: ClaimedTask
    tag: str
    began_at: datetime
    ended_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ListingProgress:
    """What the pages of one listing held so far; `passes` counts how often it was begun.

    `ids` are the tasks of this pass, `earlier` those of the pass before if that was whole, `least_total` the smallest number of
    tasks that a page told of. Of all passes: `held` maps tags that were found to the provider's ids, and `unmarked` has
    those titles that are looked for and that a task without any tag bears.
    """

    ids: frozenset[str] = frozenset()
    held: Mapping[str, str] = field(default_factory=dict)
    unmarked: frozenset[str] = frozenset()
    least_total: int | None = None
    earlier: frozenset[str] | None = None
    passes: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class NextPage:
    """The listing goes on: ask for `page` next, and give `seen` to its reading."""

    page: int
    seen: ListingProgress


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeListing:
    """A listing that was read whole; `held` and `unmarked` as in `ListingProgress`.

    `query_works`: it shows that the provider understood the question itself.
    """

    held: Mapping[str, str]
    unmarked: frozenset[str]
    query_works: bool


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
class TaskFound:
    """The provider holds the task that was looked for, under this id."""

    external_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskAbsent:
    """A listing that was read whole does not hold the task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskStatus:
    """How a task that the provider accepted stands there, in the provider's word; `final` when that will not change."""

    word: str
    final: bool


@runtime_checkable
class Provider(Protocol):
    """One task service: its words, its codes, its documented answers."""

    name: ProviderName

    def auth_headers(self, credential: str) -> Mapping[str, str]:
        """Return the headers that carry the credential."""

    def build_request(self, task: ClaimedTask, now: datetime) -> ProviderRequest | Unsendable:
        """Return the request that creates the task, computed for this moment."""

    def read_response(self, sent: Sent, now: datetime, request: ProviderRequest | None = None) -> Interpretation:
        """Say what the send came to. Never raises, whatever the provider answered.

        With the request that was sent, an answer that differs from what was asked for becomes a warning.
        """

    def probe_request(self) -> ProviderRequest:
        """Return a harmless GET that shows whether the credential works at all."""

    def listing_key(self, sought: LookupTarget) -> Hashable | CannotTell:
        """Return which listing holds the task if it was made: tasks with equal keys may be looked up together."""

    def listing_request(self, sought: Sequence[LookupTarget], page: int) -> ProviderRequest:
        """Return the request for one page (from 1) of the listing that holds each of these if it was made."""

    def read_listing(
        self, sent: Sent, sought: Sequence[LookupTarget], page: int, seen: ListingProgress | None, *, query_works: bool
    ) -> NextPage | WholeListing | CannotTell:
        """Say what that page tells. Never raises.

        `seen` is what the page before handed on, None before the first. `query_works`: a listing asked for in this form
        has found something before, so that an empty one means what it says.
        """

    def cancel_request(self, external_id: str) -> ProviderRequest | None:
        """Return the request that cancels the task which the provider knows by this id; None where it has no such call."""

    def read_cancel(self, sent: Sent) -> CancelResult:
        """Say what came of that request. Never raises."""


@runtime_checkable
class ReportsOutcomes(Protocol):
    """A provider that can be asked what became of a task it accepted."""

    def outcome_request(self, external_id: str) -> ProviderRequest:
        """Return the question how the task with the provider's id stands."""

    def read_outcome(self, sent: Sent, external_id: str) -> TaskStatus | CannotTell:
        """Say how it stands. Never raises; a word that nobody knows is told as it is, and is not final."""


def load(name: ProviderName) -> Provider:
    """Return the provider of that name: from the entry point of another package, else from the module here.

    An entry point of the group `leadwire.providers` names a `Provider`, or a class of it without arguments, and is called as the
    provider that it stands in for: task types, settings and queues are made for `mindhunters` and `vambe`, so one of another name
    cannot be served. Raises SettingsError for such a name, for two packages that give the same one, and for what is no provider.
    """
    given: dict[str, EntryPoint] = {}
    for each in entry_points(group=ENTRY_POINT_GROUP):
        if each.name not in set(ProviderName):
            raise SettingsError(
                f"{_origin(each)} gives a provider `{each.name}`: Leadwire makes tasks for {' and '.join(ProviderName)} "
                f"only, and an entry point may stand in for one of these; rename it, or remove the package"
            )
        if each.name in given:
            raise SettingsError(
                f"{_origin(given[each.name])} and {_origin(each)} both give the provider `{each.name}`: remove one of "
                "the packages"
            )
        given[each.name] = each
    if name not in given:
        provider: Provider = import_module(f"worker.providers.{name}").PROVIDER
        return provider
    return _of_entry_point(name, given[name])


def _of_entry_point(name: ProviderName, point: EntryPoint) -> Provider:
    try:
        found = point.load()
        provider = found() if isinstance(found, type) else found
    except Exception as error:
        raise SettingsError(f"{_origin(point)} cannot be loaded: {type(error).__name__}: {error}") from error
    if not isinstance(provider, Provider) or provider.name != name:
        raise SettingsError(
            f"{_origin(point)} is not the provider `{name}`: it must have that `name`, and each method of "
            "`worker.providers.Provider`"
        )
    return provider


def _origin(point: EntryPoint) -> str:
    package = f"the package {point.dist.name}" if point.dist else "an installed package"
    return f"{package} ({ENTRY_POINT_GROUP}: {point.name} = {point.value})"

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
    """A task that cannot be made into a valid request; `reason` says why and what to do.

    `too_late`: the only problem is time, because the task would expire before the provider could act.
    """

    reason: str
    too_late: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """The provider's answer.

    Header names are in lower case. `truncated`: `body` is incomplete, because it exceeded the limit or the connection broke.
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
    """Nothing was sent: the sender's own check, made just before sending, found that it was too late."""

    reason: str


#: How a send can end, from the provider's point of view.
Sent = Answered | NeverSent | NoAnswer


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpretation:
    """The meaning of a send's result for the task.

    `reason` is for the operator: status, the provider's own message, then the remedy. `retry_after_at` is the moment until
    which the provider asked for no requests. With `probe_first` the caller sends the provider's probe before it acts on a PAUSE
    (a 403 may concern one task only): if the probe succeeds, the verdict is REFUSED instead.
    """

    verdict: Verdict
    external_id: str | None = None
    reason: str | None = None
    retry_after_at: datetime | None = None
    probe_first: bool = False
    warning: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelResult:
    """Whether a provider cancelled a task, and its answer as text."""

    taken: bool
    words: str


class ClaimedTask(Protocol):
    """The attributes of a claimed task that a provider needs to build a request."""

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
    """A task of unknown outcome: its correlation tag, and the two moments between which its requests ran."""

    task: ClaimedTask
    tag: str
    began_at: datetime
    ended_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ListingProgress:
    """What the pages of one listing contained so far; `passes` counts how often reading it was started.

    `ids` are the tasks of this pass, `earlier` those of the previous pass if that was complete, `least_total` the smallest
    total that any page reported. For all passes together: `held` maps the tags found to the provider's ids; `unmarked` has the
    titles of looked-up tasks that also appear on a task without any tag.
    """

    ids: frozenset[str] = frozenset()
    held: Mapping[str, str] = field(default_factory=dict)
    unmarked: frozenset[str] = frozenset()
    least_total: int | None = None
    earlier: frozenset[str] | None = None
    passes: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class NextPage:
    """The listing continues: request `page` next, and pass `seen` to `read_listing`."""

    page: int
    seen: ListingProgress


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeListing:
    """A listing that was read completely; `held` and `unmarked` are as in `ListingProgress`.

    `query_works`: the result shows that the provider understood the query.
    """

    held: Mapping[str, str]
    unmarked: frozenset[str]
    query_works: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CannotTell:
    """An inconclusive look-up; `reason` has no personal data. `answered`: the provider did answer.

    `passes`: the obstacle is temporary (an outage or a pause); `retry_after_at` is the earliest moment to ask again.
    """

    reason: str
    answered: bool = True
    passes: bool = False
    retry_after_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFound:
    """The provider has the task, under this id."""

    external_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskAbsent:
    """A completely read listing does not contain the task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskStatus:
    """A delivered task's status in the provider's word; `final`: it will not change any more."""

    word: str
    final: bool


@runtime_checkable
class Provider(Protocol):
    """One task service: builds requests and interprets answers. Pure; never sends anything."""

    name: ProviderName

    def auth_headers(self, credential: str) -> Mapping[str, str]:
        """Return the headers that carry the credential."""

    def build_request(self, task: ClaimedTask, now: datetime) -> ProviderRequest | Unsendable:
        """Return the request that creates the task, computed for this moment."""

    def read_response(self, sent: Sent, now: datetime, request: ProviderRequest | None = None) -> Interpretation:
        """Interpret the result of sending the request. Never raises, whatever the provider answered.

        If `request` is given, an answer that differs from what was requested adds a warning.
        """

    def probe_request(self) -> ProviderRequest:
        """Return a harmless GET that shows whether the credential works at all."""

    def listing_key(self, sought: LookupTarget) -> Hashable | CannotTell:
        """Return which listing would contain the task; tasks with equal keys can be looked up together."""

    def listing_request(self, sought: Sequence[LookupTarget], page: int) -> ProviderRequest:
        """Return the request for one page (from 1) of the listing that would contain all of these tasks."""

    def read_listing(
        self, sent: Sent, sought: Sequence[LookupTarget], page: int, seen: ListingProgress | None, *, query_works: bool
    ) -> NextPage | WholeListing | CannotTell:
        """Interpret one page of a listing. Never raises.

        `seen` comes from the page before, None for the first page. `query_works`: a listing asked for in this form has found
        something before, so an empty one can be trusted.
        """

    def cancel_request(self, external_id: str) -> ProviderRequest | None:
        """Return the request that cancels the task with this provider's id; None when the provider has no such call."""

    def read_cancel(self, sent: Sent) -> CancelResult:
        """Interpret the answer to that request. Never raises."""


@runtime_checkable
class ReportsOutcomes(Protocol):
    """A provider that can be polled for the outcome of a delivered task."""

    def outcome_request(self, external_id: str) -> ProviderRequest:
        """Return the request for the status of the task with this provider's id."""

    def read_outcome(self, sent: Sent, external_id: str) -> TaskStatus | CannotTell:
        """Interpret the answer. Never raises; an unknown status is returned as it is and is not final."""


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

"""The providers that execute tasks: one file each, found by name, all alike behind one protocol.

A provider's file is pure: it turns a task into a request and an answer into a verdict, and it says how a task that may
have been executed is looked for. `worker/transport.py` does the sending and `worker/retry.py` decides what follows.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import import_module
from typing import Protocol, runtime_checkable

from rules.vocabulary import Json, ProviderName, TaskType
from worker.wire import CancelAnswer, CannotTell, Listed, More, Reading, Request, Seen, Sent, Stands, Unsendable


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
class Sought:
    """A task that may have been executed by a request between these two moments of our clock, and its mark."""

    task: ClaimedTask
    mark: str
    began_at: datetime
    ended_at: datetime


class Provider(Protocol):
    """One task service: its words, its codes, its documented answers."""

    name: ProviderName

    def authorise(self, credential: str) -> Mapping[str, str]:
        """Return the headers that carry the credential."""

    def prepare(self, task: ClaimedTask, now: datetime) -> Request | Unsendable:
        """Turn the task into the request that creates it, computed for this moment."""

    def read(self, sent: Sent, now: datetime, request: Request | None = None) -> Reading:
        """Say what the send came to. Never raises, whatever the provider answered.

        With the request that was sent, an answer that differs from what was asked for becomes a warning.
        """

    def probe(self) -> Request:
        """Return a harmless GET that shows whether the credential works at all."""

    def listing_of(self, sought: Sought) -> Hashable | CannotTell:
        """Return which listing holds the task if it was made: tasks of the same one may be looked up together."""

    def look_up(self, sought: Sequence[Sought], page: int) -> Request:
        """Return the request for one page (from 1) of the listing that holds each of these if it was made."""

    def found(
        self, sent: Sent, sought: Sequence[Sought], page: int, seen: Seen | None, *, form_works: bool
    ) -> More | Listed | CannotTell:
        """Say what that page tells. Never raises.

        `seen` is what the page before handed on, None before the first. `form_works`: a listing asked for in this form
        has found something before, so that an empty one means what it says.
        """

    def cancel(self, external_id: str) -> Request | None:
        """Return the request that cancels the task which the provider knows by this id; None where it has no such call."""

    def cancelled(self, sent: Sent) -> CancelAnswer:
        """Say what came of that request. Never raises."""


@runtime_checkable
class Followed(Protocol):
    """A provider that can be asked what became of a task it accepted."""

    def outcome_request(self, external_id: str) -> Request:
        """Return the question how the task with the provider's id stands."""

    def read_outcome(self, sent: Sent, external_id: str) -> Stands | CannotTell:
        """Say how it stands. Never raises; a word that nobody knows is told as it is, and is not final."""


def load(name: ProviderName) -> Provider:
    """Return the provider of that name: the constant `PROVIDER` of its file."""
    provider: Provider = import_module(f"worker.providers.{name}").PROVIDER
    return provider

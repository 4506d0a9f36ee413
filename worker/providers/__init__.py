"""The providers that execute tasks: one file each, found by name, all alike behind one protocol.

A provider's file is pure: it turns a task into a request and an answer into a verdict. `worker/transport.py` does the
sending and `worker/retry.py` decides what follows.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from importlib import import_module
from typing import Protocol

from rules.vocabulary import Json, ProviderName, TaskType
from worker.wire import Reading, Request, Sent, Unsendable


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


def load(name: ProviderName) -> Provider:
    """Return the provider of that name: the constant `PROVIDER` of its file."""
    provider: Provider = import_module(f"worker.providers.{name}").PROVIDER
    return provider

"""What goes into the ledger and comes out of it, as values.

The columns behind them are the affair of `tables.py`; callers never see a row, a connection or a statement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from rules.vocabulary import (
    Contact,
    Decision,
    Event,
    EventState,
    Json,
    ProviderName,
    RetryPolicy,
    TaskState,
    TaskType,
    Verdict,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One accepted HTTP request: `headers` are those that matter, `body` the raw bytes, `content_hash` theirs."""

    id: str
    source: str
    received_at: datetime
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes
    content_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IncomingEvent:
    """One event of a delivery, before anybody knows whether it came before.

    `dedupe_key` is its identity within (source, type); it is forgotten at `until_at`, or never when that is None.
    `content_hash` tells a redelivery from another content under the same key. `state` is RECEIVED, or UNREADABLE with
    `reason`.
    """

    event: Event
    dedupe_key: str
    content_hash: str
    until_at: datetime | None = None
    state: EventState = EventState.RECEIVED
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What a delivery came to: the ids of its new events in state received, in order, and how many were not new.

    `duplicates` changed nothing; `conflicts` came before under the same key with other content and are kept as `ignored`.
    """

    event_ids: tuple[str, ...]
    duplicates: int
    conflicts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent:
    """An event as the ledger holds it. `decisions` and `headers` are filled by the operator's reads only."""

    event: Event
    delivery_id: str | None
    dedupe_key: str
    content_hash: str
    state: EventState
    reason: str | None
    tries: int
    due_at: datetime
    dispatches: int
    dispatched_at: datetime
    rule_set: str | None
    decisions: tuple[Decision, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The event's id."""
        return self.event.id


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRef:
    """What a broker message needs to know of a task: its id and labels that are safe to show."""

    id: str
    type: TaskType
    provider: ProviderName
    rule: str
    name: str
    attempts: int
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTask:
    """A task as the ledger holds it; it satisfies `worker.providers.ClaimedTask`.

    `attempts` counts the tries since it was planned or last retried by hand, `epoch` every claim and retry ever: it is the
    fencing number. `reason` says why it is in its state, `note` what was assumed. `lease_until_at` and `owner` belong to
    the state sending, `dispatched_at` to queued. `slot_at` is the moment that the provider's rate keeps free for it.
    """

    id: str
    key: str
    event_id: str
    rule: str
    name: str
    type: TaskType
    provider: ProviderName
    fields: Mapping[str, Json]
    due_at: datetime
    expires_at: datetime | None
    retry: RetryPolicy
    if_unsure: Literal["ask", "repeat"]
    contact: Contact
    state: TaskState
    reason: str | None
    note: str | None
    rule_set: str
    attempts: int
    epoch: int
    first_attempt_at: datetime | None
    lease_until_at: datetime | None
    owner: str | None
    dispatched_at: datetime | None
    external_id: str | None
    created_at: datetime
    updated_at: datetime
    parent: str | None = None
    reactions: tuple[str, ...] = ()
    slot_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The right to make one attempt, until `lease_until_at`; `attempt` counts from 1, `first_attempt_at` is the first's."""

    task: StoredTask
    epoch: int
    attempt: int
    first_attempt_at: datetime
    claimed_at: datetime
    lease_until_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class NotClaimed:
    """A task that may not be sent now: `why` is a sentence, `due_at` when it is worth asking again, if ever.

    `state` is None when there is no such task.
    """

    task_id: str
    state: TaskState | None
    why: str
    due_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """What an attempt came to and what follows for its task.

    `due_at` None leaves the moment as it is. `counted` False gives the attempt back: it stays in the history as deferred.
    `pause_until_at` pauses the task's provider in the same transaction.
    """

    verdict: Verdict
    state: TaskState
    due_at: datetime | None = None
    external_id: str | None = None
    reason: str | None = None
    status: int | None = None
    counted: bool = True
    pause_until_at: datetime | None = None
    pause_reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRow:
    """One try: `verdict` None means that it has not ended, or (with `deferred`) that its request never began."""

    epoch: int
    number: int
    started_at: datetime
    ended_at: datetime | None
    verdict: Verdict | None
    status: int | None
    error: str | None
    external_id: str | None
    deferred: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderState:
    """Whether a provider is paused, until when and why. `held`: by `pause_provider`, so that no success lifts it."""

    name: ProviderName
    paused_until_at: datetime | None
    reason: str | None
    held: bool
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many events and tasks are in each state; states without any are absent."""

    events: Mapping[EventState, int]
    tasks: Mapping[TaskState, int]

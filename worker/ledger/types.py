"""The values that the ledger takes and returns; callers never see a row, a connection or a statement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final, Literal

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

#: The moment of a pause that a person ordered without an end: only `ledger.limits.resume` ends it.
UNTIL_RESUMED: Final = datetime(9999, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One accepted HTTP request: `headers` are the relevant ones, `body` the raw bytes, `content_hash` the body's hash."""

    id: str
    source: str
    received_at: datetime
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes
    content_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IncomingEvent:
    """One event of a delivery, before it is known whether it is a duplicate.

    `dedupe_key` identifies it within (source, type); it is kept until `until_at`, for ever when that is None. `content_hash`
    distinguishes a redelivery from other content under the same key. `state` is RECEIVED, or UNREADABLE with `reason`.
    """

    event: Event
    dedupe_key: str
    content_hash: str
    until_at: datetime | None = None
    state: EventState = EventState.RECEIVED
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """The result of recording a delivery: ids of its new events in state received, in order, and how many were not new.

    `duplicates` changed nothing. `conflicts` had the key of an earlier event but other content; they are stored as `ignored`.
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
    """A task's id and the labels that its broker message shows; nothing personal."""

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
    `outcome` is what the provider said last of how it stands there; only the operator's reads fill it.
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
    outcome: str | None = None


class PauseKind(StrEnum):
    """Why a provider is paused: by an operator, a rejected credential or address, failures in a row, or at its own request."""

    PERSON = "person"
    ANSWER = "answer"
    BREAKER = "breaker"
    ASKED = "asked"


class Held(StrEnum):
    """The limit or pause that keeps a claimable task from being claimed."""

    PAUSE = "pause"
    CAP = "cap"
    CONCURRENCY = "concurrency"
    RATE = "rate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of one provider for all workers together; 0 means no limit.

    Up to `burst` requests may start at once, then `rate_per_second`. `concurrency` bounds the requests in flight, `daily_cap`
    the attempts in a day (UTC).
    """

    rate_per_second: float = 0.0
    burst: int = 1
    concurrency: int = 0
    daily_cap: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimTerms:
    """Which tasks are claimed as they are recorded, at most so many of one type, and on what terms; see `Ledger.claim`."""

    type: TaskType
    most: int
    lease: timedelta
    owner: str
    limits: Mapping[ProviderName, Limits] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The right to make one attempt, until `lease_until_at`. `attempt` counts from 1; the first began at `first_attempt_at`."""

    task: StoredTask
    epoch: int
    attempt: int
    first_attempt_at: datetime
    claimed_at: datetime
    lease_until_at: datetime

    @property
    def task_id(self) -> str:
        """The task's id."""
        return self.task.id


@dataclass(frozen=True, slots=True, kw_only=True)
class NotClaimed:
    """A task that may not be sent now: `why` is a sentence, `due_at` when to try again (None: never).

    `state` is None when there is no such task. `held` is the provider's limit or pause that caused it, if one did.
    """

    task_id: str
    state: TaskState | None
    why: str
    due_at: datetime | None = None
    held: Held | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingReconciliation:
    """An unknown task that is to be looked up at its provider, held by one process until `due_at`.

    Requests that may have executed it ran from `began_at` to `ended_at`. `look_ups` counts inconclusive look-ups, `absent_at`
    is when the first complete listing without it was requested. `query_works`: the provider has returned a task for a listing
    asked for in this form.
    """

    task: StoredTask
    began_at: datetime
    ended_at: datetime
    due_at: datetime
    look_ups: int
    absent_at: datetime | None
    query_works: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """An attempt's outcome and the task's next state.

    `due_at` None leaves `due_at` unchanged. `counted` False does not count the attempt; the history has it as deferred.
    `pause_until_at` pauses the provider in the same transaction, `pause_kind` says why.
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
    poll_at: datetime | None = None
    pause_kind: PauseKind = PauseKind.ANSWER


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaction:
    """A task's end that is to be followed up, claimed until `due_at`; `trigger` is the matching entry of `Task.reactions`.

    `status` is the HTTP status of the task's last answer, if any; `tries` includes this one.
    """

    task: StoredTask
    event: Event
    trigger: str
    status: int | None
    tries: int
    due_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Poll:
    """A delivered task whose outcome is to be polled; `outcome` is the provider's last word."""

    task_id: str
    provider: ProviderName
    external_id: str
    reactions: tuple[str, ...]
    outcome: str | None
    due_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRow:
    """One attempt. `verdict` None: it has not ended, or (with `deferred`) its request never began."""

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
    """One provider's pause (until when, why), circuit breaker and attempts of the day.

    `kind` is None without a pause; `updated_at` is when the pause last changed. `failures` counts failures in a row, `openings`
    how often in a row the breaker opened; `sent_today` attempts on `day` (UTC) under a daily cap.
    """

    name: ProviderName
    updated_at: datetime
    paused_until_at: datetime | None = None
    reason: str | None = None
    kind: PauseKind | None = None
    failures: int = 0
    openings: int = 0
    day: str | None = None
    sent_today: int = 0

    @property
    def held(self) -> bool:
        """Whether an operator paused it, so that no successful attempt ends the pause."""
        return self.kind is PauseKind.PERSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many events and tasks are in each state; states without any are absent."""

    events: Mapping[EventState, int]
    tasks: Mapping[TaskState, int]

"""What goes into the ledger and comes out of it, as values.

The columns behind them are the affair of `schema.py`; callers never see a row, a connection or a statement.
"""

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
    """Why a provider is left alone.

    A person ordered it; an answer rejected our credential or address; tries in a row failed; the provider asked for it.
    """

    PERSON = "person"
    ANSWER = "answer"
    BREAKER = "breaker"
    ASKED = "asked"


class Held(StrEnum):
    """What keeps a task that could be claimed otherwise."""

    PAUSE = "pause"
    CAP = "cap"
    CONCURRENCY = "concurrency"
    RATE = "rate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much one provider may get, from all workers together; 0 is no limit.

    `burst` requests may begin at once, then `rate_per_second`; `concurrency` may be on their way at the same time, and
    `daily_cap` attempts be begun in a day (UTC).
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
    """The right to make one attempt, until `lease_until_at`; `attempt` counts from 1, `first_attempt_at` is the first's."""

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
    """A task that may not be sent now: `why` is a sentence, `due_at` when it is worth asking again, if ever.

    `state` is None when there is no such task. `held` says what of its provider keeps it, if that is why.
    """

    task_id: str
    state: TaskState | None
    why: str
    due_at: datetime | None = None
    held: Held | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingReconciliation:
    """A task in state unknown that is to be looked up at its provider, held by one process until `due_at`.

    Requests that may have executed it were under way from `began_at` to `ended_at`. `look_ups` could not tell so far,
    `absent_at` is when the first complete listing without it was asked for. `query_works`: the provider was seen to
    understand how it is asked.
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
    """What an attempt came to and what follows for its task.

    `due_at` None leaves the moment as it is. `counted` False gives the attempt back: it stays in the history as deferred.
    `pause_until_at` pauses the task's provider in the same transaction, `pause_kind` says why.
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
    """A task's end that is to be answered, taken until `due_at`: `trigger` is the end's word in the task's `reactions`.

    `status` is that of the task's last answer, if there was one; `tries` counts this one.
    """

    task: StoredTask
    event: Event
    trigger: str
    status: int | None
    tries: int
    due_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Poll:
    """A delivered task whose provider is to be asked what became of it; `outcome` is what it said last."""

    task_id: str
    provider: ProviderName
    external_id: str
    reactions: tuple[str, ...]
    outcome: str | None
    due_at: datetime


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
    """Whether a provider is paused, until when and why; its circuit breaker; and what its day has seen.

    `kind` is None without a pause, `updated_at` when the pause began, was renewed or ended. `failures` counts tries in a row
    that met no provider at work, `openings` how often the breaker opened since one did; `sent_today` attempts on `day`
    (UTC) under a daily cap.
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
        """Whether a person paused it, so that no success lifts the pause."""
        return self.kind is PauseKind.PERSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many events and tasks are in each state; states without any are absent."""

    events: Mapping[EventState, int]
    tasks: Mapping[TaskState, int]

"""The types, states and exceptions that all packages share.

This module imports nothing else of Leadwire. Moments are aware UTC and their names end in `_at`; spans are `timedelta`.
Expected results are values of the types below; exceptions are for faults and form the one tree at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final, Literal

#: What JSON can hold. `Any` inside, because the shape of a CRM's payload is the CRM's.
Json = Any

#: How a UUID, a phone number (ITU-T E.164: a plus, no leading zero, 7 to 15 digits) and a time of day are written.
UUID_PATTERN: Final = r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"
E164_PATTERN: Final = r"\+[1-9][0-9]{6,14}"
CLOCK_PATTERN: Final = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]"

#: The event types Leadwire itself knows; any other type passes under its sender's own name.
CANONICAL_EVENT_TYPES: Final = (
    "lead.created",
    "lead.updated",
    "lead.replied",
    "contact.created",
    "contact.updated",
    "contact.opted_out",
    "deal.created",
    "deal.updated",
    "deal.stage_changed",
    "message.received",
    "meeting.booked",
    "meeting.cancelled",
    "form.submitted",
)


def covers(pattern: str, text: str) -> bool:
    """Return whether a pattern (`lead.created`, `deal.*`, `*`; at most one `*`) matches an event type or other text."""
    head, star, tail = pattern.partition("*")
    if not star:
        return pattern == text
    return text.startswith(head) and text.endswith(tail) and len(text) >= len(head) + len(tail)


class TaskType(StrEnum):
    """The types of tasks that a rule can make; each is also the name of its Celery task."""

    #: An AI phone call, executed by Mindhunters.
    MAKE_CALL = "make_call"
    #: A WhatsApp template message, executed by Mindhunters.
    WHATSAPP_TEMPLATE = "whatsapp_template"
    #: A task for a person, held by Vambe.
    TEAM_TASK = "team_task"
    #: Any other documented Mindhunters task type.
    MINDHUNTERS_TASK = "mindhunters_task"


class ProviderName(StrEnum):
    """The service that executes a task; each has a queue of its own, so that a slow one never delays the other."""

    MINDHUNTERS = "mindhunters"
    VAMBE = "vambe"


PROVIDER_OF: Final[Mapping[TaskType, ProviderName]] = {
    TaskType.MAKE_CALL: ProviderName.MINDHUNTERS,
    TaskType.WHATSAPP_TEMPLATE: ProviderName.MINDHUNTERS,
    TaskType.MINDHUNTERS_TASK: ProviderName.MINDHUNTERS,
    TaskType.TEAM_TASK: ProviderName.VAMBE,
}


class EventState(StrEnum):
    """The states of an event."""

    #: Recorded; its rules have not been decided yet.
    RECEIVED = "received"
    #: Decided: every listening rule has a decision.
    PROCESSED = "processed"
    #: No rule listens to its type, or its id came before with other content; kept and shown.
    IGNORED = "ignored"
    #: Verified, but not an event anybody can read; kept with the reason.
    UNREADABLE = "unreadable"
    #: Its processing failed five times; kept with the last error.
    FAILED = "failed"


class TaskState(StrEnum):
    """The states of a task. Only an operator's command changes a terminal state."""

    #: Recorded, not yet due or not yet dispatched.
    PLANNED = "planned"
    #: Its id is on the broker.
    QUEUED = "queued"
    #: Claimed: the attempt is recorded and the request may be on its way.
    SENDING = "sending"
    #: The provider accepted it and gave an id.
    DELIVERED = "delivered"
    #: To be sent again, or later, at `due_at`.
    WAITING = "waiting"
    #: The request may have been executed and nobody knows yet; never sent again by itself.
    UNKNOWN = "unknown"
    #: Given up: refused by the provider, out of tries, or not sendable.
    DEAD = "dead"
    #: Ended by an operator or a later event before it was sent.
    CANCELLED = "cancelled"
    #: Ended by a guard: too late to be made.
    SUPPRESSED = "suppressed"


TERMINAL_TASK_STATES: Final = frozenset(
    {TaskState.DELIVERED, TaskState.DEAD, TaskState.CANCELLED, TaskState.SUPPRESSED}
)


class Verdict(StrEnum):
    """The meaning of an attempt's result for the task, as determined by the provider's module."""

    #: Accepted: a 2xx with an id.
    DELIVERED = "delivered"
    #: Certainly not executed; to be tried again.
    BUSY = "busy"
    #: Certainly not executed and never will be as it stands.
    REFUSED = "refused"
    #: May have been executed.
    UNKNOWN = "unknown"
    #: Certainly not executed, and no other task of this provider would fare better: the provider pauses.
    PAUSE = "pause"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The CRM record an event is about, with the source's own kind and id."""

    kind: str
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Contact:
    """The person an event is about; `phone` is E.164, `country` ISO 3166-1 alpha-2, `timezone` an IANA name."""

    id: str | None = None
    name: str | None = None
    phone: str | None = None
    email: str | None = None
    country: str | None = None
    timezone: str | None = None
    language: str | None = None
    consent: Mapping[str, Json] | None = None


#: By hand and not by `asdict`, which copies deeply and costs more than a rule.
CONTACT_FIELDS: Final = tuple(part.name for part in fields(Contact))


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event of a source. `changed` maps a field to `{"from": old, "to": new}`."""

    id: str
    source: str
    type: str
    occurred_at: datetime
    received_at: datetime
    subject: Subject | None = None
    contact: Contact = field(default_factory=Contact)
    changed: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)
    attempt: int | None = None
    data: Json = None

    def view(self) -> dict[str, Json]:
        """Return the event as JSON for rules; its keys are the first names of paths and templates."""
        subject = self.subject
        return {
            "id": self.id,
            "source": self.source,
            "type": self.type,
            "occurred_at": instant(self.occurred_at),
            "received_at": instant(self.received_at),
            "subject": {"kind": subject.kind, "id": subject.id} if subject else None,
            "contact": {name: getattr(self.contact, name) for name in CONTACT_FIELDS},
            "changed": dict(self.changed),
            "attempt": self.attempt,
            "data": self.data,
        }


def instant(moment: datetime) -> str:
    """Return an aware moment as ISO 8601 UTC with `Z`, the only format in which Leadwire writes moments."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When a task that was certainly not executed is retried.

    `max_attempts` counts the retries after the first attempt. `jitter` is the largest random addition, as a share of the delay
    (0.1: up to a tenth later, never earlier); "full" draws between zero and the whole delay. `schedule` holds the delays of
    strategy "custom". `budget` bounds the time from the first attempt to the last. The defaults, three retries 60 minutes
    apart, cover an outage of three hours.
    """

    strategy: Literal["fixed", "exponential", "custom"] = "fixed"
    max_attempts: int = 3
    delay: timedelta = timedelta(minutes=60)
    factor: float = 2.0
    cap: timedelta = timedelta(hours=24)
    jitter: float | Literal["full"] = 0.1
    schedule: tuple[timedelta, ...] = ()
    budget: timedelta = timedelta(days=7)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """A team whose members take turns: the ledger picks the member when the task is recorded."""

    team: str
    member_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A planned task: one call, message or team task to be made at a provider.

    `key` is the hash of event, rule and name, unique for ever; `id` is its readable beginning. `fields` is the rendered content
    in Leadwire's terms (see `rules/engine.py`); the provider's module converts it to a request. `state` is PLANNED, or DEAD or
    SUPPRESSED with `reason` when planning ended it. `note` says what was assumed, for example the time zone. `parent` is the id
    of the task that this one follows up. `reactions` lists the ends of this task for which its rule has follow-ups.
    """

    id: str
    key: str
    event_id: str
    rule: str
    name: str
    type: TaskType
    provider: ProviderName
    due_at: datetime
    expires_at: datetime | None = None
    fields: Mapping[str, Json]
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    if_unsure: Literal["ask", "repeat"] = "ask"
    rotation: Rotation | None = None
    contact: Contact = field(default_factory=Contact)
    state: TaskState = TaskState.PLANNED
    reason: str | None = None
    note: str | None = None
    rule_set: str
    parent: str | None = None
    reactions: tuple[str, ...] = ()


#: The end that `on_failure` answers: the task is dead, or was suppressed.
FAILURE: Final = "failure"
#: The outcomes at Mindhunters that `on_outcome` can answer.
OUTCOMES: Final = ("completed", "failed", "expired")


def outcome_trigger(outcome: str) -> str:
    """Return the entry of `Task.reactions` for a provider's outcome, such as `outcome:failed`."""
    return f"outcome:{outcome}"


class DecisionOutcome(StrEnum):
    """The result of a listening rule for one event."""

    MATCHED = "matched"
    #: A condition did not hold; the decision carries the first one that failed.
    NOT_MATCHED = "not_matched"
    #: An earlier rule of the same file said `stop: true` and made a task.
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedTest:
    """The first test of a condition that failed: field, operator, wanted value, seen value.

    `path` is the field as spelled in the rule, `place` the position of the test (`file:line:column`). `missing`: the field was
    absent or null; `seen` is then None.
    """

    path: str
    operator: str
    wanted: Json
    seen: Json
    missing: bool
    place: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The decision of one rule on one event. `reason` is a sentence for the operator."""

    rule: str
    outcome: DecisionOutcome
    reason: str
    failed: FailedTest | None = None
    tasks: tuple[str, ...] = ()
    place: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All decisions and tasks for one event under one rule set; recorded in one transaction."""

    event_id: str
    rule_set: str
    state: EventState
    decisions: tuple[Decision, ...]
    tasks: tuple[Task, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleFault:
    """One fault of a rule file and its position. Lines and columns count from 1."""

    file: str
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        """Return `file:line:column: path.of.key: what is wrong`."""
        where = f"{self.file}:{self.line}:{self.column}"
        return f"{where}: {self.path}: {self.message}" if self.path else f"{where}: {self.message}"


class Problem(Exception):  # noqa: N818 - the root's name is read by operators, who have problems, not errors
    """The base of all exceptions that Leadwire raises on purpose. Its message is for the operator; no traceback is shown."""


class RuleError(Problem):
    """The rule files cannot be accepted; holds all faults of all files."""

    def __init__(self, faults: Sequence[RuleFault]) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = tuple(faults)


class SettingsError(Problem):
    """The settings cannot be used; the message has all faults."""


class LedgerError(Problem):
    """The ledger cannot be opened, read or written."""


class LedgerBusyError(LedgerError):
    """The ledger cannot be written right now (locked, disk full). The caller should try again later."""


class LedgerInDoubtError(LedgerBusyError):
    """It is unknown whether a transaction was committed."""

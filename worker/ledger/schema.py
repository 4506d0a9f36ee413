"""What is durable, and which unique constraints carry the promises.

- `seen (source, type, key)`: a redelivered event is recognised.
- `tasks (key)` and `tasks (event_id, rule, name)`: a rule makes a task for an event once.
- `attempts (task_id, epoch)`: a claim is made once.

Moments are integers: microseconds since 1970 UTC. JSON is text. `seq` counts rows in the order they were recorded; on
SQLite it is the rowid, so that ordering by it costs nothing. Partial indexes hold only what is still to be dispatched:
their conditions are literal text, repeated word for word in the statements, because SQLite matches them by form.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    TextClause,
    UniqueConstraint,
    text,
)

#: Every schema revision in order; `worker/ledger/migrations/versions/` has a file for each.
REVISIONS: Final = ("0001", "0002", "0003")

metadata = MetaData()


def _seq() -> Column[int]:
    """Return the column that counts rows in the order they were recorded."""
    return Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True)


def _required(type_: type[Text | BigInteger | Integer | Boolean], *names: str) -> list[Column[Any]]:
    return [Column(name, type_, nullable=False) for name in names]


def _optional(type_: type[Text | BigInteger | Integer], *names: str) -> list[Column[Any]]:
    return [Column(name, type_) for name in names]


def _task_id() -> Column[str]:
    return Column("task_id", Text, ForeignKey("tasks.id"), primary_key=True)


def _partial_index(name: str, column: str, second: str, condition: TextClause) -> Index:
    return Index(name, column, second, sqlite_where=condition, postgresql_where=condition)


deliveries = Table(
    "deliveries",
    metadata,
    _seq(),
    Column("id", Text, nullable=False, unique=True),
    *_required(Text, "source"),
    *_required(BigInteger, "received_at"),
    *_required(Text, "headers"),
    Column("body", LargeBinary),
    *_required(Text, "content_hash"),
)

#: The keys of events that came. No foreign key to events: a key outlives the event it belongs to.
seen = Table(
    "seen",
    metadata,
    *(Column(name, Text, primary_key=True) for name in ("source", "type", "key")),
    *_required(Text, "event_id", "content_hash"),
    *_required(BigInteger, "taken_at"),
    *_optional(BigInteger, "until_at"),
    sqlite_with_rowid=False,
)

#: Still to be decided.
EVENT_OPEN: Final = text("state = 'received'")

events = Table(
    "events",
    metadata,
    _seq(),
    Column("id", Text, nullable=False, unique=True),
    Column("delivery_id", Text, ForeignKey("deliveries.id")),
    *_required(Text, "source", "type"),
    *_required(BigInteger, "occurred_at", "received_at"),
    *_required(Text, "document", "dedupe_key", "content_hash", "state"),
    *_optional(Text, "reason"),
    *_required(Integer, "tries"),
    *_required(BigInteger, "due_at"),
    *_required(Integer, "dispatches"),
    *_required(BigInteger, "dispatched_at"),
    *_optional(Text, "rule_set"),
    Index("ix_events_state", "state", "source"),
    _partial_index("ix_events_open", "state", "due_at", EVENT_OPEN),
)

decisions = Table(
    "decisions",
    metadata,
    Column("event_id", Text, ForeignKey("events.id"), primary_key=True),
    *_required(Text, "rule_set"),
    *_required(BigInteger, "decided_at"),
    *_required(Text, "decisions"),
)

#: To be dispatched at `due_at`.
TASK_TIMED: Final = text("state IN ('planned', 'waiting')")
#: Dispatched, not claimed yet.
TASK_QUEUED: Final = text("state = 'queued'")
#: Held by a process.
TASK_SENDING: Final = text("state = 'sending'")

tasks = Table(
    "tasks",
    metadata,
    _seq(),
    *(Column(name, Text, nullable=False, unique=True) for name in ("id", "key")),
    Column("event_id", Text, ForeignKey("events.id"), nullable=False),
    *_required(Text, "rule", "name", "type", "provider", "fields"),
    *_required(BigInteger, "due_at"),
    *_optional(BigInteger, "expires_at"),
    *_required(Text, "retry", "if_unsure", "contact", "state"),
    *_optional(Text, "reason", "note"),
    *_required(Text, "rule_set"),
    *_required(Integer, "attempts", "epoch"),
    *_optional(BigInteger, "first_attempt_at", "lease_until_at"),
    *_optional(Text, "owner"),
    *_optional(BigInteger, "dispatched_at"),
    *_optional(Text, "external_id"),
    *_required(BigInteger, "created_at", "updated_at"),
    *_optional(Text, "parent", "reactions"),
    *_optional(BigInteger, "slot_at"),
    UniqueConstraint("event_id", "rule", "name"),
    Index("ix_tasks_state", "state", "type", "due_at"),
    _partial_index("ix_tasks_timed", "provider", "due_at", TASK_TIMED),
    _partial_index("ix_tasks_queued", "provider", "dispatched_at", TASK_QUEUED),
)

attempts = Table(
    "attempts",
    metadata,
    _task_id(),
    Column("epoch", Integer, primary_key=True),
    *_required(Integer, "number"),
    *_required(BigInteger, "started_at"),
    *_optional(BigInteger, "ended_at"),
    *_optional(Text, "verdict"),
    *_optional(Integer, "status"),
    *_optional(Text, "error", "external_id"),
    *_required(Boolean, "deferred"),
    sqlite_with_rowid=False,
)

#: Whose turn it is in a team: how many turns have been handed out.
turns = Table("turns", metadata, Column("team", Text, primary_key=True), *_required(BigInteger, "taken"))

providers = Table(
    "providers",
    metadata,
    Column("name", Text, primary_key=True),
    *_optional(BigInteger, "paused_until_at"),
    *_optional(Text, "reason"),
    *_required(Boolean, "held"),
    *_required(BigInteger, "updated_at"),
    *_optional(Text, "kind"),
    *(Column(name, Integer, nullable=False, server_default="0") for name in ("failures", "openings")),
    *_optional(BigInteger, "next_slot_at"),
    *_optional(Text, "day"),
    Column("sent_today", Integer, nullable=False, server_default="0"),
    *_optional(BigInteger, "found_at"),
)

#: Pending reconciliations: unknown tasks that are to be looked up at their provider; one without a row waits for a person.
doubts = Table(
    "doubts",
    metadata,
    _task_id(),
    *_required(Text, "provider"),
    *_required(BigInteger, "began_at", "ended_at", "due_at"),
    *_required(Integer, "look_ups"),
    *_optional(BigInteger, "absent_at"),
    Index("ix_doubts_due", "provider", "due_at"),
    sqlite_with_rowid=False,
)

#: Ends of tasks that their rule follows and that are still to be planned for.
reactions = Table(
    "reactions",
    metadata,
    _task_id(),
    Column("trigger", Text, primary_key=True),
    *_required(BigInteger, "since_at", "due_at"),
    *_required(Integer, "tries"),
    Index("ix_reactions_due", "due_at"),
    sqlite_with_rowid=False,
)

#: What became of delivered tasks at their provider; `due_at` is when it is asked next, null when it need not be any more.
outcomes = Table(
    "outcomes",
    metadata,
    _task_id(),
    *_required(Text, "provider", "external_id"),
    *_required(BigInteger, "delivered_at"),
    *_optional(BigInteger, "due_at"),
    *_required(Integer, "polls"),
    *_optional(Text, "outcome"),
    *_optional(BigInteger, "seen_at"),
    Index("ix_outcomes_due", "provider", "due_at"),
    sqlite_with_rowid=False,
)

rule_sets = Table(
    "rule_sets",
    metadata,
    _seq(),
    Column("version", Text, nullable=False, unique=True),
    *_required(Text, "files"),
    *_required(BigInteger, "accepted_at"),
)

#: Written and emptied again by `Ledger.check_writable`.
probes = Table("probes", metadata, _seq(), Column("filler", LargeBinary, nullable=False))

#: How often what happened, in rows of the process that saw it; see `counters.py`. PostgreSQL is told to leave room in the
#: pages, because these few rows are written again with every transaction.
tallies = Table(
    "tallies",
    metadata,
    *(Column(name, Text, primary_key=True) for name in ("shard", "name", "labels")),
    *_required(BigInteger, "value"),
    sqlite_with_rowid=False,
    postgresql_with={"fillfactor": 50},
)

#: In place of the schema's revision while a ledger is moved to another database (`move.py`), and after that.
MOVING: Final = "moving"
MOVED: Final = "moved"

#: Not among the ledger's own tables: only ledgers that went or came have it. `token` is the same in both.
moves = Table(
    "moves",
    MetaData(),
    Column("token", Text, primary_key=True),
    *_required(Text, "place", "revision"),
    *_required(BigInteger, "begun_at"),
)

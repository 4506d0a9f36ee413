"""What is durable, and which unique constraints carry the promises.

- `seen (source, type, key)`: a redelivered event is recognised.
- `tasks (key)` and `tasks (event_id, rule, name)`: a rule makes a task for an event once.
- `attempts (task_id, epoch)`: a claim is made once.

Moments are integers: microseconds since 1970 UTC. JSON is text. `seq` counts rows in the order they were recorded; on
SQLite it is the rowid, so that ordering by it costs nothing. Partial indexes hold only what is still to be dispatched:
their conditions are literal text, repeated word for word in the statements, because SQLite matches them by form.
"""

from __future__ import annotations

from typing import Final

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
    UniqueConstraint,
    text,
)

#: Every schema revision in order; `worker/ledger/migrations/versions/` has a file for each.
REVISIONS: Final = ("0001", "0002", "0003")

metadata = MetaData()

_Counter = BigInteger().with_variant(Integer, "sqlite")

deliveries = Table(
    "deliveries",
    metadata,
    Column("seq", _Counter, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("source", Text, nullable=False),
    Column("received_at", BigInteger, nullable=False),
    Column("headers", Text, nullable=False),
    Column("body", LargeBinary),
    Column("content_hash", Text, nullable=False),
)

#: No foreign key to events: a key outlives the event it belongs to.
seen = Table(
    "seen",
    metadata,
    Column("source", Text, primary_key=True),
    Column("type", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("event_id", Text, nullable=False),
    Column("content_hash", Text, nullable=False),
    Column("taken_at", BigInteger, nullable=False),
    Column("until_at", BigInteger),
    sqlite_with_rowid=False,
)

#: Still to be decided.
EVENT_OPEN: Final = text("state = 'received'")

events = Table(
    "events",
    metadata,
    Column("seq", _Counter, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("delivery_id", Text, ForeignKey("deliveries.id")),
    Column("source", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("occurred_at", BigInteger, nullable=False),
    Column("received_at", BigInteger, nullable=False),
    Column("document", Text, nullable=False),
    Column("dedupe_key", Text, nullable=False),
    Column("content_hash", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text),
    Column("tries", Integer, nullable=False),
    Column("due_at", BigInteger, nullable=False),
    Column("dispatches", Integer, nullable=False),
    Column("dispatched_at", BigInteger, nullable=False),
    Column("rule_set", Text),
    Index("ix_events_state", "state", "source"),
    Index("ix_events_open", "state", "due_at", sqlite_where=EVENT_OPEN, postgresql_where=EVENT_OPEN),
)

decisions = Table(
    "decisions",
    metadata,
    Column("event_id", Text, ForeignKey("events.id"), primary_key=True),
    Column("rule_set", Text, nullable=False),
    Column("decided_at", BigInteger, nullable=False),
    Column("decisions", Text, nullable=False),
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
    Column("seq", _Counter, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("key", Text, nullable=False, unique=True),
    Column("event_id", Text, ForeignKey("events.id"), nullable=False),
    Column("rule", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("provider", Text, nullable=False),
    Column("fields", Text, nullable=False),
    Column("due_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("retry", Text, nullable=False),
    Column("if_unsure", Text, nullable=False),
    Column("contact", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text),
    Column("note", Text),
    Column("rule_set", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("first_attempt_at", BigInteger),
    Column("lease_until_at", BigInteger),
    Column("owner", Text),
    Column("dispatched_at", BigInteger),
    Column("external_id", Text),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("parent", Text),
    Column("reactions", Text),
    Column("slot_at", BigInteger),
    UniqueConstraint("event_id", "rule", "name"),
    Index("ix_tasks_state", "state", "type", "due_at"),
    Index("ix_tasks_timed", "provider", "due_at", sqlite_where=TASK_TIMED, postgresql_where=TASK_TIMED),
    Index("ix_tasks_queued", "provider", "dispatched_at", sqlite_where=TASK_QUEUED, postgresql_where=TASK_QUEUED),
)

attempts = Table(
    "attempts",
    metadata,
    Column("task_id", Text, ForeignKey("tasks.id"), primary_key=True),
    Column("epoch", Integer, primary_key=True),
    Column("number", Integer, nullable=False),
    Column("started_at", BigInteger, nullable=False),
    Column("ended_at", BigInteger),
    Column("verdict", Text),
    Column("status", Integer),
    Column("error", Text),
    Column("external_id", Text),
    Column("deferred", Boolean, nullable=False),
    sqlite_with_rowid=False,
)

#: Whose turn it is in a team: how many turns have been handed out.
turns = Table(
    "turns",
    metadata,
    Column("team", Text, primary_key=True),
    Column("taken", BigInteger, nullable=False),
)

providers = Table(
    "providers",
    metadata,
    Column("name", Text, primary_key=True),
    Column("paused_until_at", BigInteger),
    Column("reason", Text),
    Column("held", Boolean, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("kind", Text),
    Column("failures", Integer, nullable=False, server_default="0"),
    Column("openings", Integer, nullable=False, server_default="0"),
    Column("next_slot_at", BigInteger),
    Column("day", Text),
    Column("sent_today", Integer, nullable=False, server_default="0"),
    Column("found_at", BigInteger),
)

#: Tasks in state unknown that are to be looked up at their provider; one without a row waits for a person.
doubts = Table(
    "doubts",
    metadata,
    Column("task_id", Text, ForeignKey("tasks.id"), primary_key=True),
    Column("provider", Text, nullable=False),
    Column("began_at", BigInteger, nullable=False),
    Column("ended_at", BigInteger, nullable=False),
    Column("due_at", BigInteger, nullable=False),
    Column("look_ups", Integer, nullable=False),
    Column("absent_at", BigInteger),
    Index("ix_doubts_due", "provider", "due_at"),
    sqlite_with_rowid=False,
)

#: What a task's end asks for and what is still to be planned: one row for each end that its rule reacts to.
reactions = Table(
    "reactions",
    metadata,
    Column("task_id", Text, ForeignKey("tasks.id"), primary_key=True),
    Column("trigger", Text, primary_key=True),
    Column("since_at", BigInteger, nullable=False),
    Column("due_at", BigInteger, nullable=False),
    Column("tries", Integer, nullable=False),
    Index("ix_reactions_due", "due_at"),
    sqlite_with_rowid=False,
)

#: What became of delivered tasks at their provider; `due_at` is when it is asked next, null when it need not be any more.
outcomes = Table(
    "outcomes",
    metadata,
    Column("task_id", Text, ForeignKey("tasks.id"), primary_key=True),
    Column("provider", Text, nullable=False),
    Column("external_id", Text, nullable=False),
    Column("delivered_at", BigInteger, nullable=False),
    Column("due_at", BigInteger),
    Column("polls", Integer, nullable=False),
    Column("outcome", Text),
    Column("seen_at", BigInteger),
    Index("ix_outcomes_due", "provider", "due_at"),
    sqlite_with_rowid=False,
)

rule_sets = Table(
    "rule_sets",
    metadata,
    Column("seq", _Counter, primary_key=True),
    Column("version", Text, nullable=False, unique=True),
    Column("files", Text, nullable=False),
    Column("accepted_at", BigInteger, nullable=False),
)

#: Written and emptied again by `Ledger.writable`.
probes = Table(
    "probes",
    metadata,
    Column("seq", _Counter, primary_key=True),
    Column("filler", LargeBinary, nullable=False),
)

#: How often what happened, in rows of the process that saw it; see `counters.py`. PostgreSQL is told to leave room in the
#: pages, because these few rows are written again with every transaction.
tallies = Table(
    "tallies",
    metadata,
    Column("shard", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("labels", Text, primary_key=True),
    Column("value", BigInteger, nullable=False),
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
    Column("place", Text, nullable=False),
    Column("revision", Text, nullable=False),
    Column("begun_at", BigInteger, nullable=False),
)

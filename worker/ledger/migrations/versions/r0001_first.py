"""The first schema: deliveries, events, decisions, tasks, attempts, and what they need beside them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_COUNTER = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Make every table."""
    _make_front_door()
    _make_tasks()
    _make_companions()


def _make_front_door() -> None:
    op.create_table(
        "deliveries",
        sa.Column("seq", _COUNTER, primary_key=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("received_at", sa.BigInteger, nullable=False),
        sa.Column("headers", sa.Text, nullable=False),
        sa.Column("body", sa.LargeBinary),
        sa.Column("content_hash", sa.Text, nullable=False),
    )
    op.create_table(
        "seen",
        sa.Column("source", sa.Text, primary_key=True),
        sa.Column("type", sa.Text, primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("event_id", sa.Text, nullable=False),
        sa.Column("content_hash", sa.Text, nullable=False),
        sa.Column("taken_at", sa.BigInteger, nullable=False),
        sa.Column("until_at", sa.BigInteger),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "events",
        sa.Column("seq", _COUNTER, primary_key=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("delivery_id", sa.Text, sa.ForeignKey("deliveries.id")),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("occurred_at", sa.BigInteger, nullable=False),
        sa.Column("received_at", sa.BigInteger, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.Column("dedupe_key", sa.Text, nullable=False),
        sa.Column("content_hash", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("due_at", sa.BigInteger, nullable=False),
        sa.Column("dispatches", sa.Integer, nullable=False),
        sa.Column("dispatched_at", sa.BigInteger, nullable=False),
        sa.Column("rule_set", sa.Text),
    )
    op.create_index("ix_events_state", "events", ["state", "due_at"])


def _make_tasks() -> None:
    op.create_table(
        "decisions",
        sa.Column("event_id", sa.Text, sa.ForeignKey("events.id"), primary_key=True),
        sa.Column("rule_set", sa.Text, nullable=False),
        sa.Column("decided_at", sa.BigInteger, nullable=False),
        sa.Column("decisions", sa.Text, nullable=False),
    )
    op.create_table(
        "tasks",
        sa.Column("seq", _COUNTER, primary_key=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("key", sa.Text, nullable=False, unique=True),
        sa.Column("event_id", sa.Text, sa.ForeignKey("events.id"), nullable=False),
        sa.Column("rule", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("fields", sa.Text, nullable=False),
        sa.Column("due_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger),
        sa.Column("retry", sa.Text, nullable=False),
        sa.Column("if_unsure", sa.Text, nullable=False),
        sa.Column("contact", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("note", sa.Text),
        sa.Column("rule_set", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("first_attempt_at", sa.BigInteger),
        sa.Column("lease_until_at", sa.BigInteger),
        sa.Column("owner", sa.Text),
        sa.Column("dispatched_at", sa.BigInteger),
        sa.Column("external_id", sa.Text),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("event_id", "rule", "name"),
    )
    op.create_index("ix_tasks_state", "tasks", ["state", "due_at"])
    _partial_index("ix_tasks_timed", "tasks", ["provider", "due_at"], "state IN ('planned', 'waiting')")
    _partial_index("ix_tasks_queued", "tasks", ["provider", "dispatched_at"], "state = 'queued'")
    op.create_table(
        "attempts",
        sa.Column("task_id", sa.Text, sa.ForeignKey("tasks.id"), primary_key=True),
        sa.Column("epoch", sa.Integer, primary_key=True),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("started_at", sa.BigInteger, nullable=False),
        sa.Column("ended_at", sa.BigInteger),
        sa.Column("verdict", sa.Text),
        sa.Column("status", sa.Integer),
        sa.Column("error", sa.Text),
        sa.Column("external_id", sa.Text),
        sa.Column("deferred", sa.Boolean, nullable=False),
        sqlite_with_rowid=False,
    )


def _make_companions() -> None:
    op.create_table(
        "turns", sa.Column("team", sa.Text, primary_key=True), sa.Column("taken", sa.BigInteger, nullable=False)
    )
    op.create_table(
        "providers",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("paused_until_at", sa.BigInteger),
        sa.Column("reason", sa.Text),
        sa.Column("held", sa.Boolean, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "rule_sets",
        sa.Column("seq", _COUNTER, primary_key=True),
        sa.Column("version", sa.Text, nullable=False, unique=True),
        sa.Column("files", sa.Text, nullable=False),
        sa.Column("accepted_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "probes", sa.Column("seq", _COUNTER, primary_key=True), sa.Column("filler", sa.LargeBinary, nullable=False)
    )


def _partial_index(name: str, table: str, columns: list[str], condition: str) -> None:
    op.create_index(name, table, columns, sqlite_where=sa.text(condition), postgresql_where=sa.text(condition))

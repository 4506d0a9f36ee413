"""Doubts that are looked up, what follows an end, what became of a task at its provider, and what keeps providers safe."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make `doubts`, `reactions` and `outcomes`; give tasks and providers the columns that go with them."""
    for column in (sa.Column("parent", sa.Text), sa.Column("reactions", sa.Text), sa.Column("slot_at", sa.BigInteger)):
        op.add_column("tasks", column)
    for column in (
        sa.Column("kind", sa.Text),
        sa.Column("failures", sa.Integer, nullable=False, server_default="0"),
        sa.Column("openings", sa.Integer, nullable=False, server_default="0"),
        sa.Column("next_slot_at", sa.BigInteger),
        sa.Column("day", sa.Text),
        sa.Column("sent_today", sa.Integer, nullable=False, server_default="0"),
        sa.Column("found_at", sa.BigInteger),
    ):
        op.add_column("providers", column)
    op.create_table(
        "doubts",
        sa.Column("task_id", sa.Text, sa.ForeignKey("tasks.id"), primary_key=True),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("began_at", sa.BigInteger, nullable=False),
        sa.Column("ended_at", sa.BigInteger, nullable=False),
        sa.Column("due_at", sa.BigInteger, nullable=False),
        sa.Column("look_ups", sa.Integer, nullable=False),
        sa.Column("absent_at", sa.BigInteger),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_doubts_due", "doubts", ["provider", "due_at"])
    op.create_table(
        "reactions",
        sa.Column("task_id", sa.Text, sa.ForeignKey("tasks.id"), primary_key=True),
        sa.Column("trigger", sa.Text, primary_key=True),
        sa.Column("since_at", sa.BigInteger, nullable=False),
        sa.Column("due_at", sa.BigInteger, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_reactions_due", "reactions", ["due_at"])
    op.create_table(
        "outcomes",
        sa.Column("task_id", sa.Text, sa.ForeignKey("tasks.id"), primary_key=True),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("external_id", sa.Text, nullable=False),
        sa.Column("delivered_at", sa.BigInteger, nullable=False),
        sa.Column("due_at", sa.BigInteger),
        sa.Column("polls", sa.Integer, nullable=False),
        sa.Column("outcome", sa.Text),
        sa.Column("seen_at", sa.BigInteger),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_outcomes_due", "outcomes", ["provider", "due_at"])

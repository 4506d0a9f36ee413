"""Counters beside the work they count, and indexes by which counting what is there stays cheap."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_EVENT_OPEN = sa.text("state = 'received'")


def upgrade() -> None:
    """Make `tallies`, and replace the indexes by state."""
    op.create_table(
        "tallies",
        sa.Column("shard", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("labels", sa.Text, primary_key=True),
        sa.Column("value", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
        postgresql_with={"fillfactor": 50},
    )
    op.drop_index("ix_events_state", "events")
    op.create_index("ix_events_state", "events", ["state", "source"])
    op.create_index(
        "ix_events_open", "events", ["state", "due_at"], sqlite_where=_EVENT_OPEN, postgresql_where=_EVENT_OPEN
    )
    op.drop_index("ix_tasks_state", "tasks")
    op.create_index("ix_tasks_state", "tasks", ["state", "type", "due_at"])

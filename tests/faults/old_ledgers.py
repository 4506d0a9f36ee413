"""Ledgers as earlier versions left them: made by alembic at their revision, with rows that those versions wrote."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime

from alembic import command
from alembic.config import Config
from sqlalchemy import text

from worker.ledger.database import BUSY_TIMEOUT, database_of
from worker.ledger.migrations import FOLDER

#: The moment at which the rows were written, and as the ledger keeps it.
NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
AT = int(NOW.timestamp()) * 1_000_000

_RETRY = (
    '{"strategy":"fixed","max_attempts":3,"delay":3600000000,"factor":2.0,"cap":86400000000,"jitter":0.1,'
    '"schedule":[],"budget":604800000000}'
)
#: Tasks by their state when the old version was stopped; `sending` is one that it left in the middle of a call.
STATES = ("planned", "queued", "sending", "delivered", "waiting", "unknown", "dead")


def make(url, revision):
    """Make a ledger of this revision with an event still to be decided and one with a task in each state."""
    storage = database_of(url)
    storage.make()
    engine = storage.writers(BUSY_TIMEOUT)
    with engine.begin() as connection:
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
        command.upgrade(config, revision)
        for table, row in _rows():
            names = ", ".join(row)
            marks = ", ".join(f":{name}" for name in row)
            connection.execute(text(f"INSERT INTO {table} ({names}) VALUES ({marks})"), row)
    engine.dispose()


def _rows():
    for event, state in (("ev_open", "received"), ("ev_done", "processed")):
        yield (
            "deliveries",
            {
                "id": f"dl_{event}",
                "source": "crm",
                "received_at": AT,
                "headers": "{}",
                "body": b"{}",
                "content_hash": event,
            },
        )
        yield (
            "seen",
            {
                "source": "crm",
                "type": "lead.created",
                "key": event,
                "event_id": event,
                "content_hash": event,
                "taken_at": AT,
            },
        )
        yield (
            "events",
            {
                "id": event,
                "delivery_id": f"dl_{event}",
                "source": "crm",
                "type": "lead.created",
                "occurred_at": AT,
                "received_at": AT,
                "document": '{"contact":{"name":"Ana","phone":"+56911112222"},"data":{}}',
                "dedupe_key": event,
                "content_hash": event,
                "state": state,
                "tries": 0,
                "due_at": AT,
                "dispatches": 1,
                "dispatched_at": AT,
                "rule_set": "rs_old" if state == "processed" else None,
            },
        )
    yield "decisions", {"event_id": "ev_done", "rule_set": "rs_old", "decided_at": AT, "decisions": "[]"}
    yield "providers", {"name": "mindhunters", "held": False, "updated_at": AT}
    yield "rule_sets", {"version": "rs_old", "files": "{}", "accepted_at": AT}
    for state in STATES:
        yield "tasks", task(state)
    for state in ("sending", "delivered", "waiting", "unknown", "dead"):
        yield "attempts", _attempt(state)


def task(state):
    """Return the row of a task in this state."""
    sending = state == "sending"
    tried = state not in {"planned", "queued"}
    return {
        "id": f"tk_{state}",
        "key": f"{STATES.index(state):012x}{'0' * 52}",
        "event_id": "ev_done",
        "rule": "old",
        "name": state,
        "type": "team_task",
        "provider": "vambe",
        "fields": f'{{"title":"{state}","description":"[lw:{STATES.index(state):012x}]","responsible_ids":[]}}',
        "due_at": AT,
        "retry": _RETRY,
        "if_unsure": "ask",
        "contact": "{}",
        "state": state,
        "reason": None,
        "rule_set": "rs_old",
        "attempts": int(tried),
        "epoch": int(tried),
        "first_attempt_at": AT if tried else None,
        "lease_until_at": AT + 60_000_000 if sending else None,
        "owner": "old-1" if sending else None,
        "dispatched_at": AT if state == "queued" else None,
        "external_id": "x-old" if state == "delivered" else None,
        "created_at": AT,
        "updated_at": AT,
    }


def _attempt(state):
    verdicts = {"delivered": "delivered", "waiting": "busy", "unknown": "unknown", "dead": "refused"}
    return {
        "task_id": f"tk_{state}",
        "epoch": 1,
        "number": 1,
        "started_at": AT,
        "ended_at": None if state == "sending" else AT,
        "verdict": verdicts.get(state),
        "deferred": False,
    }


def dump(driver):
    """Return all that a SQLite ledger holds: its schema and every row; counts are summed over the processes that made them."""
    with closing(driver.cursor()) as cursor:
        schema = cursor.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name").fetchall()
        tables = [name for name, sql in schema if sql.startswith("CREATE TABLE")]
        held = {"schema": schema}
        for table in tables:
            asked = (
                "SELECT name, labels, sum(value) FROM tallies GROUP BY name, labels"
                if table == "tallies"
                else f"SELECT * FROM {table}"
            )
            held[table] = sorted(cursor.execute(asked).fetchall(), key=repr)
    return held

"""How PostgreSQL finds what the ledger asks for all the time."""

import re
from importlib import import_module

import pytest
from sqlalchemy.dialects.postgresql.psycopg import dialect

from worker.ledger.statements import ForIds, _compile

SWEEPS = {
    "inbox._ANY_OVERDUE": "ix_events_open",
    "inbox._OLDEST_OVERDUE": "ix_events_open",
    "tasks._ANY_DUE[0]": "ix_tasks_timed",
    "tasks._ANY_DUE[1]": "ix_tasks_queued",
    "tasks._OLDEST_DUE": "ix_tasks_timed",
    "tasks._OLDEST_STALE": "ix_tasks_queued",
    "inbox._DISPATCH": "events_id_key",
    "tasks._DISPATCH": "tasks_id_key",
    "tasks._LOCK_TASKS": "tasks_id_key",
    "inbox._OPEN_EVENTS": "events_id_key",
    "inbox.LOCK_OPEN_EVENTS": "events_id_key",
    "tasks._SETTLE": "tasks_id_key",
    "tasks._ANY_EXPIRED": "ix_tasks_state",
    "tasks._EXPIRED": "ix_tasks_state",
    "limits._MOVE_TASKS": "ix_tasks_timed",
    "limits._COUNT_SENDING": "ix_tasks_state",
    "inbox._HOLDER": "seen_pkey",
}


@pytest.fixture(scope="module")
def grown(postgres):
    """A connection to a ledger with a long history and a little work to do."""
    url = postgres.migrated()
    with postgres.connect(url.rpartition("/")[2]) as connection:
        connection.execute(
            "INSERT INTO events (id, source, type, occurred_at, received_at, document, dedupe_key, content_hash, state,"
            " tries, due_at, dispatches, dispatched_at) SELECT 'ev_' || n, 'crm', 'lead.created', n, n, '{}', n, n,"
            " CASE WHEN mod(n, 1000) = 0 THEN 'received' ELSE 'processed' END, 0, n, 1, n FROM generate_series(1, 30000) n"
        )
        connection.execute(
            "INSERT INTO tasks (id, key, event_id, rule, name, type, provider, fields, due_at, retry, if_unsure, contact,"
            " state, rule_set, attempts, epoch, dispatched_at, created_at, updated_at)"
            " SELECT 'tk_' || n, n, 'ev_' || n, 'r', 'n', 'team_task', 'vambe', '{}', n, '{}', 'ask', '{}',"
            " CASE mod(n, 1000) WHEN 0 THEN 'planned' WHEN 1 THEN 'queued' WHEN 2 THEN 'sending' ELSE 'delivered' END,"
            " 'rs', 0, 0, n, n, n FROM generate_series(1, 30000) n"
        )
        connection.execute(
            "INSERT INTO seen (source, type, key, event_id, content_hash, taken_at) SELECT 'crm', 'lead.created', n, n, n, n"
            " FROM generate_series(1, 30000) n"
        )
        connection.execute("ANALYZE")
        yield connection
    postgres.drop(url)


def explained(connection, statement):
    """The plan that PostgreSQL makes for any parameters: the one that a session which runs for days comes to use."""
    found = _compile(statement.statement, statement.columns, dialect()).text
    names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", found)))
    for place, name in enumerate(names, start=1):
        found = found.replace(f"%({name})s", f"${place}")
    connection.execute("SET plan_cache_mode = force_generic_plan")
    connection.execute(f"PREPARE asked AS {found}", prepare=False)
    try:
        given = ", ".join(["NULL"] * len(names))
        rows = connection.execute(f"EXPLAIN EXECUTE asked{f'({given})' if names else ''}", prepare=False).fetchall()
    finally:
        connection.execute("DEALLOCATE asked")
    return "\n".join(row[0] for row in rows)


def statement_of(name):
    """The statement of this name, in the form that PostgreSQL gets."""
    module, attribute, place = re.fullmatch(r"(\w+)\.(\w+)(?:\[(\d+)\])?", name).groups()
    found = getattr(import_module(f"worker.ledger.{module}"), attribute)
    found = found[int(place)] if place else found
    return found.of_any_length() if isinstance(found, ForIds) else found


@pytest.mark.parametrize(("name", "index"), SWEEPS.items())
def test_what_runs_all_the_time_passes_by_what_is_finished(grown, name, index):
    """Sweeps, claims and settlements find their rows by an index, however long the history."""
    plan = explained(grown, statement_of(name))
    assert index in plan, plan
    assert "Seq Scan" not in plan


@pytest.mark.parametrize("name", ["tasks._OLDEST_DUE", "inbox._OLDEST_OVERDUE"])
def test_the_oldest_are_found_without_sorting(grown, name):
    """The index has what is due in its order, so that a large backlog costs a sweep no more than a small one."""
    assert "Sort" not in explained(grown, statement_of(name))


@pytest.mark.parametrize("name", ["tasks._LOCK_TASKS", "tasks._OLDEST_DUE", "inbox._OLDEST_OVERDUE"])
def test_nobody_waits_for_a_row_that_another_takes(grown, name):
    """Claims and sweeps lock rows, pass by locked ones, and leave room for rows that only refer to them."""
    text = _compile(statement_of(name).statement, None, dialect()).text
    assert text.endswith("FOR NO KEY UPDATE SKIP LOCKED")

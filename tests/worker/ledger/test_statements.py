from __future__ import annotations

import pkgutil
import re
from datetime import UTC, datetime, timedelta
from importlib import import_module

import pytest
from sqlalchemy import create_engine
from sqlalchemy.dialects.postgresql.psycopg import dialect as postgresql

import worker.ledger
from rules.vocabulary import LedgerBusyError, ProviderName
from worker.ledger.database import sqlite_module
from worker.ledger.statements import ForIds, Statement, _compile

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


def statements(of_ids=lambda each: each.of_length(2)):
    """Every statement of the ledger under its name; `of_ids` chooses the form of those about a list of ids."""
    found = {}
    for module in pkgutil.iter_modules(worker.ledger.__path__):
        if module.name == "migrations":
            continue
        for name, value in vars(import_module(f"worker.ledger.{module.name}")).items():
            for place, each in enumerate(value if isinstance(value, tuple) else (value,)):
                statement = of_ids(each) if isinstance(each, ForIds) else each
                if isinstance(statement, Statement):
                    found[f"{module.name}.{name}" + (f"[{place}]" if isinstance(value, tuple) else "")] = statement
    return found


SQLITE = create_engine("sqlite://", module=sqlite_module()).dialect


FORMS = {"sqlite": (SQLITE, lambda each: each.of_length(2)), "postgresql": (postgresql(), ForIds.of_any_length)}


@pytest.mark.parametrize("name", statements())
@pytest.mark.parametrize("engine", FORMS)
def test_every_statement_compiles_for_every_engine(name, engine):
    """There is one set of statements: each compiles for SQLite and for PostgreSQL."""
    dialect, of_ids = FORMS[engine]
    statement = statements(of_ids)[name]
    text = _compile(statement.statement, statement.columns, dialect).text
    assert re.match("SELECT|INSERT|UPDATE|DELETE", text)
    assert "POSTCOMPILE" not in text


SWEEPS = {
    "inbox._ANY_OVERDUE": "ix_events_open",
    "inbox._OLDEST_OVERDUE": "ix_events_open",
    "tasks._ANY_DUE[0]": "ix_tasks_timed",
    "tasks._ANY_DUE[1]": "ix_tasks_queued",
    "tasks._OLDEST_DUE": "ix_tasks_timed",
    "tasks._OLDEST_STALE": "ix_tasks_queued",
    "queries._OLDEST_DUE[0]": "SEARCH events USING COVERING INDEX ix_events_open",
    "queries._OLDEST_DUE[1]": "SEARCH tasks USING COVERING INDEX ix_tasks_state (state=? AND type=?)",
    "queries._OLDEST_DUE[12]": "SEARCH tasks USING COVERING INDEX ix_tasks_state (state=? AND type=?)",
    "tasks._ANY_EXPIRED": "ix_tasks_state",
    "tasks._EXPIRED": "ix_tasks_state",
    "limits._MOVE_TASKS": "ix_tasks_timed",
    "limits._COUNT_SENDING": "ix_tasks_state",
    "queries._EVENT_COUNTS": "COVERING INDEX ix_events_state",
    "queries._TASK_COUNTS": "COVERING INDEX ix_tasks_state",
    "queries._EVENTS_BY_SOURCE": "COVERING INDEX ix_events_state",
    "queries._TASKS_BY_TYPE": "COVERING INDEX ix_tasks_state",
    "queries._DUE_EVENTS": "SEARCH events USING COVERING INDEX ix_events_open (state=? AND due_at<?)",
    "queries._DUE_TASKS": "SEARCH tasks USING COVERING INDEX ix_tasks_state (state=? AND type=? AND due_at<?)",
}


@pytest.mark.parametrize(("name", "index"), SWEEPS.items())
def test_sweeps_look_only_at_what_still_moves(elsewhere, name, index):
    """What runs all the time finds its rows through an index that holds nothing finished."""
    statement = statements()[name]
    text = _compile(statement.statement, statement.columns, SQLITE).text
    plan = elsewhere.execute(f"EXPLAIN QUERY PLAN {text}", [1] * text.count("?")).fetchall()
    assert index in str(plan)
    assert "SCAN" not in str(plan) or "COVERING" in str(plan)


def test_a_sweep_that_finds_nothing_writes_nothing(ledger, elsewhere):
    """Sweeps of an idle ledger work while somebody else holds the write lock; a write does not."""
    elsewhere.execute("BEGIN IMMEDIATE")
    grace = timedelta(seconds=10)
    assert [] == ledger.inbox.dispatch_overdue(NOW, grace, 100)
    assert [] == ledger.tasks.dispatch_due(NOW, grace, dict.fromkeys(ProviderName, 100))
    assert [] == ledger.tasks.expire_leases(NOW)
    assert [] == ledger.inbox.events_to_process(["ev_1"], NOW)
    with pytest.raises(LedgerBusyError):
        ledger.tasks.release("w", NOW)
    elsewhere.execute("ROLLBACK")


def test_reads_do_not_wait_for_writes(ledger, elsewhere, post):
    """While a write is under way elsewhere, reads see what was there before it."""
    post(ledger, "ev_1")
    elsewhere.execute("BEGIN IMMEDIATE")
    elsewhere.execute("UPDATE events SET state = 'failed'")
    assert "received" == ledger.queries.event("ev_1").state
    elsewhere.execute("ROLLBACK")


def test_very_many_ids_at_once(ledger, post):
    """A list of ids has no length that is too long."""
    post(ledger, "ev_1")
    ids = [f"ev_{number}" for number in range(5000)]
    assert ["ev_1"] == [event.id for event in ledger.inbox.events_to_process(ids, NOW)]
    assert 5000 == len(ledger.tasks.claim(ids, NOW, timedelta(seconds=60), "w"))

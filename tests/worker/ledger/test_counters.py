"""Counts share the fate of their transaction, and cost it little."""

from __future__ import annotations

import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import text

from rules.vocabulary import LedgerBusyError
from worker.ledger import migrate, open_ledger
from worker.ledger.counters import BUCKETS, LABELS, CounterName, TransactionCounters, counters_of
from worker.ledger.database import database_of
from worker.ledger.migrations import FOLDER

NOW = datetime(2026, 3, 2, tzinfo=UTC)
ROWS = "SELECT name, labels, sum(value) FROM tallies GROUP BY name, labels ORDER BY labels"


def counts(number):
    """Return a work that counts planned tasks."""
    return lambda connection: counters_of(connection).count(CounterName.TASKS_PLANNED, "make_call", by=number)


def test_a_job_that_fails_counts_nothing(ledger, elsewhere):
    """What one job of a group counts is undone with it; its neighbours' counts stand."""

    def fails(connection):
        counts(100)(connection)
        raise ValueError("no")

    def hold(connection):
        counts(1)(connection)
        assert begun.release() is None
        assert go.wait(10)

    begun, go, ended = threading.Semaphore(0), threading.Event(), []

    def write(work):
        try:
            ledger._writer.write(work)
        except ValueError as error:
            ended.append(str(error))

    threads = [threading.Thread(target=write, args=(work,)) for work in (hold, fails, counts(10), fails)]
    threads[0].start()
    begun.acquire()
    for thread in threads[1:]:
        thread.start()
    go.set()
    for thread in threads:
        thread.join(10)
    assert ["no", "no"] == ended
    assert [("tasks_planned", '{"type":"make_call"}', 11)] == elsewhere.execute(ROWS).fetchall()


def test_a_transaction_that_fails_counts_nothing(ledger, elsewhere):
    """A commit that never stands leaves no count behind, also not for the next one."""
    ledger._writer.write(counts(1))
    elsewhere.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerBusyError):
        ledger._writer.write(counts(10))
    elsewhere.execute("ROLLBACK")
    ledger._writer.write(counts(100))
    assert [("tasks_planned", '{"type":"make_call"}', 101)] == elsewhere.execute(ROWS).fetchall()


def test_what_a_group_counts_is_written_once(url):
    """However often something is counted in a transaction, it is one row of one statement at its end; nothing is none."""
    engine = database_of(url).writers(timedelta(seconds=1))
    with closing(engine.connect()) as connection:
        statements = []
        driver = connection.connection.driver_connection
        tallies = TransactionCounters("me")
        for number in (0, 300):
            connection.begin()
            driver.set_trace_callback(statements.append)
            tallies.begin(connection)
            for _ in range(number):
                counters_of(connection).count(CounterName.DECISIONS, "a rule", "matched")
                counters_of(connection).count(CounterName.TASKS_PLANNED, "make_call")
            tallies.write(connection)
            driver.set_trace_callback(None)
            connection.commit()
        assert ["SELECT", "INSERT", "INSERT"] == [one.split()[0] for one in statements]
        rows = connection.execute(text(ROWS)).all()
    engine.dispose()
    assert [300, 300] == [row[2] for row in rows]


def test_every_count_has_labels():
    """Whatever can be counted says by what, and buckets rise."""
    assert set(CounterName) == set(LABELS)
    assert [float(end) for end in BUCKETS] == sorted(float(end) for end in BUCKETS)


def test_rows_of_another_version_are_left_out(ledger, elsewhere, post):
    """A count that this version does not know, or with fewer labels, breaks no reading."""
    post(ledger, "ev_1")
    elsewhere.execute("INSERT INTO tallies VALUES ('x', 'from_the_future', '{\"a\":\"b\"}', 7)")
    elsewhere.execute("INSERT INTO tallies VALUES ('x', 'tasks_ended', '{\"type\":\"make_call\"}', 7)")
    tallies = ledger.queries.measure(NOW).tallies
    assert {("crm", "lead.created"): 1} == tallies[CounterName.EVENTS_RECEIVED]
    assert {("make_call", ""): 7} == tallies[CounterName.TASKS_ENDED]


def test_a_ledger_of_the_first_revision_goes_forward(tmp_path):
    """What it holds stays, and it counts from then on."""
    file = tmp_path / "ledger.sqlite3"
    file.touch()
    engine = database_of(f"sqlite:///{file}").writers(timedelta(seconds=1))
    with engine.begin() as connection:
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", str(FOLDER))
        command.upgrade(config, "0001")
        connection.execute(text("INSERT INTO rule_sets (version, files, accepted_at) VALUES ('rs_1', '{}', 5)"))
    engine.dispose()
    migrate(f"sqlite:///{file}")
    with closing(open_ledger(f"sqlite:///{file}")) as ledger:
        ledger._writer.write(counts(1))
        measures = ledger.queries.measure(NOW)
    assert ("rs_1", 5) == (measures.rule_set[0], measures.rule_set[1].microsecond)
    assert {("make_call",): 1} == measures.tallies[CounterName.TASKS_PLANNED]

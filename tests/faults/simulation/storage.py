"""The ledger of a run: the real one over SQLite, its works done in the caller's own thread.

What the writer's thread adds is grouping, and which jobs meet in a group is a matter of chance; its own tests are in
tests/worker/ledger. The database is in memory and set back to empty for every run: how it survives a crash is shown in
tests/faults/test_crash_at_every_write.py.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import closing, contextmanager

from sqlalchemy import create_engine, event
from sqlalchemy.pool import StaticPool

from worker.ledger import Ledger, migrate
from worker.ledger.counters import TransactionCounters
from worker.ledger.database import sqlite_module


class Storage:
    """An empty ledger in memory, as often as it is asked for; for one process."""

    def __init__(self):
        sqlite = sqlite_module()
        self._empty = sqlite.connect(":memory:", isolation_level=None)
        with tempfile.TemporaryDirectory() as folder:
            file = os.path.join(folder, "ledger.sqlite3")
            migrate(f"sqlite:///{file}")
            with closing(sqlite.connect(file)) as made:
                made.backup(self._empty)
        self.driver = sqlite.connect(":memory:", isolation_level=None, check_same_thread=False)
        engine = create_engine("sqlite://", module=sqlite, creator=lambda: self.driver, poolclass=StaticPool)

        @event.listens_for(engine, "begin")
        def begun(_connection):
            self.driver.execute("BEGIN")

        self._engine = engine
        self._connection = engine.connect()
        self._reading = engine.connect()

    def fresh(self):
        """Return a ledger that is empty; the one before is gone."""
        self._empty.backup(self.driver)
        self.driver.execute("PRAGMA foreign_keys=ON")
        return Ledger(_Readers(self._engine, self._reading), _InPlace(self._connection))

    def rows(self, statement, *parameters):
        """Return the rows of a query, each a dictionary."""
        cursor = self.driver.execute(statement, parameters)
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def close(self):
        """Let go of it."""
        self._connection.close()
        self._reading.close()
        self._engine.dispose()
        self._empty.close()
        self.driver.close()


class _Readers:
    """What a ledger reads with: always the one connection, which costs nothing to get."""

    def __init__(self, engine, connection):
        self.dialect = engine.dialect
        self._connection = connection

    @contextmanager
    def connect(self):
        yield self._connection
        if self._connection.in_transaction():
            self._connection.rollback()


class _InPlace:
    """Does a work in a transaction of its own, at once: what `Writer.write` promises, without the thread."""

    def __init__(self, connection):
        self._connection = connection
        self._tallies = TransactionCounters("simulation")

    def write(self, work, *, wait=None):
        with self._connection.begin():
            self._tallies.begin(self._connection)
            result = work(self._connection)
            self._tallies.write(self._connection)
        return result

    def close(self):
        """Nothing waits."""

"""A migrated SQLite file to work on, a second connection to it, and the shortest delivery there can be."""

from __future__ import annotations

import shutil
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from rules.vocabulary import Event
from worker.ledger import Delivery, IncomingEvent, migrate, open_ledger
from worker.ledger.database import sqlite_module

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


@pytest.fixture(scope="session")
def made_file(tmp_path_factory):
    """A ledger that was migrated once; tests take copies."""
    file = tmp_path_factory.mktemp("ledger") / "made.sqlite3"
    migrate(f"sqlite:///{file}")
    return file


@pytest.fixture
def file(made_file, tmp_path):
    """The file of an empty ledger."""
    return shutil.copy(made_file, tmp_path / "ledger.sqlite3")


@pytest.fixture
def url(file):
    """The URL of an empty ledger."""
    return f"sqlite:///{file}"


@pytest.fixture
def ledger(url):
    """An empty ledger, open, that waits a tenth of a second for other processes."""
    ledger = open_ledger(url, busy_timeout=timedelta(milliseconds=100), wait=timedelta(seconds=5))
    yield ledger
    ledger.close()


@pytest.fixture
def elsewhere(file):
    """A connection of somebody else to the same file."""
    with closing(sqlite_module().connect(str(file), isolation_level=None)) as connection:
        yield connection


@pytest.fixture
def post():
    """Record one event with this id and a body of so many bytes."""

    def record(ledger, id, size=2):  # noqa: A002 - the field's name
        event = Event(id=id, source="crm", type="lead.created", occurred_at=NOW, received_at=NOW, data={})
        delivery = Delivery(id=f"dl_{id}", source="crm", received_at=NOW, body=bytes(size), content_hash=id)
        return ledger.inbox.record(delivery, [IncomingEvent(event=event, dedupe_key=id, content_hash=id)])

    return record

"""Opening a ledger in PostgreSQL: what is refused, with which words, and how its sessions are set up."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from datetime import timedelta
from types import SimpleNamespace

import pytest
from sqlalchemy import insert, text

from rules.vocabulary import LedgerBusyError, LedgerError
from tests.servers.postgres import PASSWORD, QUOTED_PASSWORD, PostgresServer
from worker.ledger import migrate, open_ledger
from worker.ledger.database import BUSY_TIMEOUT, PostgresDatabase, database_of, reading, snapshot
from worker.ledger.schema import tasks, turns

TIMEOUT = timedelta(milliseconds=700)


@pytest.fixture
def empty(postgres):
    """The URL of a database without anything in it."""
    url = postgres.fresh()
    yield url
    postgres.drop(url)


def name_in(url):
    """The name of the database in a URL."""
    return url.rpartition("/")[2]


def settings_of(engine, *names):
    """What a session says of its settings."""
    with engine.connect() as connection:
        found = [connection.execute(text(f"SHOW {name}")).scalar() for name in names]
    engine.dispose()
    return found


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_each_form_of_the_url_opens_the_ledger(postgres, scheme):
    """The scheme may be any of those that PostgreSQL's own tools and SQLAlchemy use."""
    url = postgres.emptied().replace("postgresql://", f"{scheme}://")
    ledger = open_ledger(url)
    assert ledger.queries.last_event() is None
    ledger.close()


def test_a_database_without_a_schema_is_refused(empty):
    """The message says what makes the schema; opening makes nothing."""
    with pytest.raises(LedgerError, match="has no schema yet; make it with: leadwire migrate"):
        open_ledger(empty)


def test_several_processes_migrate_at_once(empty):
    """Of four processes that make the same schema at the same moment none fails."""
    program = f"from worker.ledger import migrate, open_ledger; migrate({empty!r}); open_ledger({empty!r}).close()"
    processes = [subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE) for _ in range(4)]
    assert [b""] * 4 == [process.communicate(timeout=60)[1] for process in processes]


@pytest.mark.parametrize("revision", ["9999", "some_other_program"])
def test_a_schema_that_is_not_known_is_left_alone(postgres, revision):
    """A newer ledger, or another program's tables, are neither used nor changed."""
    url = postgres.migrated()
    with postgres.connect(name_in(url)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = %s", [revision])
        for act in (open_ledger, migrate):
            with pytest.raises(LedgerError, match=f"newer Leadwire .revision {revision}"):
                act(url)
        assert (revision,) == connection.execute("SELECT version_num FROM alembic_version").fetchone()
    postgres.drop(url)


def test_an_older_schema_is_named(postgres):
    """A ledger that has to be migrated first says so."""
    url = postgres.migrated()
    with postgres.connect(name_in(url)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0001'")
    with pytest.raises(LedgerError, match=r"older than this version.*leadwire migrate"):
        open_ledger(url)
    postgres.drop(url)


def test_a_user_who_may_not_make_tables_is_told_what_to_grant(postgres, empty):
    """Migrating without the right to make tables is a clear fault that names the remedy."""
    with postgres.connect() as connection:
        connection.execute("DROP ROLE IF EXISTS guest")
        connection.execute("CREATE ROLE guest LOGIN PASSWORD 'fake-guest'")
    url = empty.replace(f"leadwire:{QUOTED_PASSWORD}@", "guest:fake-guest@")
    with pytest.raises(LedgerError, match="GRANT CREATE, USAGE ON SCHEMA public TO user"):
        migrate(url)


def wrong_password(url):
    """The URL with another password."""
    return url.replace(QUOTED_PASSWORD, "wrong-fake-p%40ss")


def other_port(url):
    """The URL with a port that nobody listens on."""
    return url.replace(url.rpartition(":")[2].partition("/")[0], "1")


def other_database(url):
    """The URL with the name of a database that is not there."""
    return f"{url}_none"


@pytest.mark.parametrize("spoil", [wrong_password, other_port, other_database])
def test_a_server_that_does_not_let_us_in_is_named_without_the_password(empty, spoil, caplog):
    """Wrong password, nobody there, no such database: the message has the reason and the place, never the password."""
    with pytest.raises(
        LedgerBusyError, match=r"the database fresh_\w+ on 127.0.0.1:\d+ cannot be reached: .*LEADWIRE"
    ) as caught:
        open_ledger(spoil(empty))
    told = f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__context__!r} {caplog.text}"
    for secret in (PASSWORD, QUOTED_PASSWORD, "wrong-fake"):
        assert secret not in told


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:se@cret@h/d",
        "postgresql://user:secret@h:port/d",
        "postgresql://user:secret%zz@h/d",
        "postgresql://user:secret@h/d?nosuchoption=1",
        "postgresql+psycopg2://user:secret@h/d",
    ],
)
def test_a_url_that_cannot_be_read_is_not_repeated(url):
    """A URL that libpq does not understand is refused with the right form, and without its password."""
    with pytest.raises(LedgerError, match=r"postgresql://USER:PASSWORD@HOST:PORT/DATABASE|cannot be reached") as caught:
        open_ledger(url)
    assert "cret" not in f"{caught.value!r} {caught.value.__context__!r} {caught.value.__cause__!r}"


def test_the_description_of_a_database_hides_its_password(empty):
    """Neither the storage's repr nor its name show the password."""
    storage = database_of(empty)
    assert PASSWORD not in f"{storage!r} {storage.name}"


def test_without_the_driver_the_remedy_is_named(empty):
    """Where psycopg is not installed, the message says what to install."""
    program = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from worker.ledger import open_ledger\nfrom rules.vocabulary import LedgerError\n"
        f"try: open_ledger({empty!r})\nexcept LedgerError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert "pip install 'leadwire[postgres]'" in said.stdout
    assert PASSWORD not in said.stdout + said.stderr


def test_a_read_only_database_is_refused(postgres):
    """A database that takes no writes is no ledger; the message names the setting."""
    url = postgres.migrated()
    with postgres.connect() as connection:
        connection.execute(f"ALTER DATABASE {name_in(url)} SET default_transaction_read_only = on")
    with pytest.raises(LedgerBusyError, match="default_transaction_read_only"):
        open_ledger(url)
    postgres.drop(url)


def test_a_standby_is_refused():
    """A server that only follows another one is refused, with the way to name the other."""
    server = PostgresServer().start()
    url = server.migrated()
    server.stop()
    server.make_standby()
    server.again()
    try:
        with pytest.raises(LedgerBusyError, match=r"standby.*target_session_attrs=read-write"):
            open_ledger(url)
    finally:
        server.close()


def test_an_encoding_that_cannot_hold_every_name_is_refused(postgres):
    """A database that is not in UTF8 is refused before anything is written to it."""
    with postgres.connect() as connection:
        connection.execute("CREATE DATABASE narrow ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    with pytest.raises(LedgerError, match=r"encoding LATIN1.*ENCODING 'UTF8'"):
        migrate(postgres.url("narrow"))
    postgres.drop(postgres.url("narrow"))


def test_a_release_that_gets_no_fixes_is_refused(empty):
    """A server older than the oldest supported release is named with the release that is needed."""
    facts = SimpleNamespace(
        version_number=140_021, version="14.21", encoding="UTF8", is_standby=False, is_read_only=False
    )
    with pytest.raises(LedgerError, match=r"PostgreSQL 14\.21.*needs 15 or later"):
        PostgresDatabase.of(empty)._check(facts, writes=True)


def test_sessions_that_write_are_set_up(postgres):
    """UTC, our name, every time-out, and commits that wait for the disk, also where the database says otherwise."""
    url = postgres.migrated()
    with postgres.connect() as connection:
        for setting in ("synchronous_commit = off", "timezone = 'America/Santiago'"):
            connection.execute(f"ALTER DATABASE {name_in(url)} SET {setting}")
    names = (
        "TimeZone",
        "application_name",
        "lock_timeout",
        "statement_timeout",
        "synchronous_commit",
        "transaction_isolation",
    )
    found = settings_of(database_of(url).writers(TIMEOUT), *names, "idle_in_transaction_session_timeout")
    assert ["UTC", "leadwire", "700ms", "1min", "on", "read committed", "1min"] == found
    postgres.drop(url)


def test_a_stricter_commit_is_left_as_it_is(postgres):
    """Who waits for standbys too goes on waiting for them."""
    url = postgres.migrated()
    with postgres.connect() as connection:
        connection.execute(f"ALTER DATABASE {name_in(url)} SET synchronous_commit = remote_apply")
    assert ["remote_apply"] == settings_of(database_of(url).writers(TIMEOUT), "synchronous_commit")
    postgres.drop(url)


def test_the_url_decides_about_the_network(postgres):
    """What the URL says of time-outs, TLS or our name wins over our defaults."""
    url = f"{postgres.emptied()}?application_name=mine&connect_timeout=3&sslmode=disable"
    assert ["mine"] == settings_of(database_of(url).writers(TIMEOUT), "application_name")
    assert "3" == database_of(url).options["connect_timeout"]
    assert 30_000 == database_of(url).options["tcp_user_timeout"]


def test_reads_cannot_write(postgres):
    """Connections for reading refuse to write, in a transaction or not, and say so as a fault of ours."""
    engine = database_of(postgres.emptied()).readers(BUSY_TIMEOUT)
    with pytest.raises(LedgerBusyError, match="read-only"), reading(engine) as connection:
        connection.execute(text("DELETE FROM events"))
    with pytest.raises(LedgerBusyError, match="read-only"), reading(engine) as connection:
        connection.connection.driver_connection.execute("DELETE FROM events")
    engine.dispose()


def test_a_snapshot_sees_one_moment(postgres):
    """Reads of one snapshot agree with each other, whatever is committed meanwhile; the next one sees it."""
    url = postgres.emptied()
    engine = database_of(url).readers(BUSY_TIMEOUT)
    counted = text("SELECT count(*) FROM turns")
    with postgres.connect(name_in(url)) as elsewhere, snapshot(engine) as connection:
        assert 0 == connection.execute(counted).scalar()
        elsewhere.execute("INSERT INTO turns VALUES ('a', 1)")
        assert 0 == connection.execute(counted).scalar()
    with snapshot(engine) as connection:
        assert 1 == connection.execute(counted).scalar()
    engine.dispose()


def test_reads_go_on_after_the_server_has_closed_idle_connections(postgres):
    """A restart of the server costs readers and writers that were idle nothing but new connections."""
    url = postgres.emptied()
    ledger = open_ledger(url)
    assert ledger.queries.last_event() is None
    ledger.check_writable()
    with postgres.connect() as connection:
        ended = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s"
        assert len(connection.execute(ended, [name_in(url)]).fetchall()) >= 2
    assert ledger.queries.last_event() is None
    ledger.check_writable()
    ledger.close()


def test_faults_do_not_quote_rows(postgres):
    """A row that breaks a constraint may hold personal data: the message names the constraint alone."""
    engine = database_of(postgres.emptied()).writers(BUSY_TIMEOUT)
    with (
        pytest.raises(LedgerError, match="NotNullViolation") as caught,
        reading(engine) as connection,
        connection.begin(),
    ):
        connection.execute(insert(tasks).values(id="tk_1", contact='{"phone": "+56911112222"}'))
    assert "+569" not in str(caught.value)
    with reading(engine) as connection, connection.begin():
        connection.execute(insert(turns).values(team="Ana", taken=1))
    with (
        pytest.raises(LedgerError, match="UniqueViolation") as caught,
        reading(engine) as connection,
        connection.begin(),
    ):
        connection.execute(insert(turns).values(team="Ana", taken=1))
    assert "Ana" not in str(caught.value)
    engine.dispose()


@pytest.mark.parametrize(("ahead_seconds", "expected"), [(0, []), (30, ["30.0 s apart"]), (-30, ["30.0 s apart"])])
def test_clocks_that_are_apart_are_reported(postgres, monkeypatch, caplog, ahead_seconds, expected):
    """A machine whose clock differs from the server's by more than two seconds is told so, with the remedy."""
    clock = SimpleNamespace(time=lambda: time.time() - ahead_seconds)
    monkeypatch.setattr("worker.ledger.database.time", clock)
    caplog.set_level(logging.WARNING)
    database_of(postgres.emptied()).connect(BUSY_TIMEOUT).close()
    assert len(expected) == len(caplog.messages)
    for part, message in zip(expected, caplog.messages, strict=True):
        assert part[:2] in message
        assert "NTP" in message


def test_a_server_that_does_not_sync_is_reported(caplog):
    """A server whose administrator has switched off syncing is used, with a warning."""
    server = PostgresServer(fsync="off").start()
    try:
        database_of(server.url()).connect(BUSY_TIMEOUT).close()
    finally:
        server.close()
    assert ["fsync = off" in message for message in caplog.messages] == [True]


def test_connections_are_bounded(postgres):
    """One process takes at most nine connections, so that many processes fit into a server's hundred."""
    url = postgres.emptied()
    engine = database_of(url).readers(timedelta(milliseconds=100))
    held = [engine.connect() for _ in range(8)]
    with pytest.raises(LedgerBusyError, match="no free connection"), reading(engine):
        pass
    for connection in held:
        connection.close()
    engine.dispose()

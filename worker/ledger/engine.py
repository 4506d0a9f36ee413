"""Which databases may hold a ledger, and how their faults come out as ours.

A ledger stands on a SQLite file or on a PostgreSQL database. What differs between the two is in `sqlite.py` and
`postgres.py`; every statement is the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final, Protocol

from sqlalchemy import Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from rules.vocabulary import LedgerBusyError, LedgerError
from worker.ledger.postgres import PostgresDatabase, has_gone
from worker.ledger.sqlite import SqliteFile
from worker.ledger.turnstile import WriterFileLock

#: How long a connection waits for another process's write.
BUSY_TIMEOUT: Final = timedelta(seconds=10)

_FORMS: Final = "sqlite:////absolute/path/ledger.sqlite3 or postgresql://USER:PASSWORD@HOST:PORT/DATABASE"


class Storage(Protocol):
    """Where a ledger stands."""

    @property
    def name(self) -> str:
        """What messages call it; without a password."""

    def must_exist(self) -> None:
        """Raise LedgerError where it can be told at once that nothing is there."""

    def make(self) -> None:
        """Make what a schema is then put into, as far as that is ours to make."""

    def readers(self, busy_timeout: timedelta) -> Engine:
        """Return the engine for reads: pooled connections that cannot write; each transaction sees one snapshot."""

    def writers(self, busy_timeout: timedelta) -> Engine:
        """Return the engine for writes."""

    def turnstile(self) -> WriterFileLock | None:
        """Return what puts the writers of several processes in order where the database does not."""

    def hold_for_migration(self, connection: Connection) -> None:
        """Keep other migrations out until this transaction ends; waits for one that is under way."""


def storage_of(url: str) -> Storage:
    """Return where the ledger of a URL stands; LedgerError for a URL that no ledger can have. It may hold a password."""
    scheme = url.partition("://")[0].lower()
    if PostgresDatabase.speaks(scheme):
        return PostgresDatabase.of(url)
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, SQLAlchemyError, ValueError):
        raise LedgerError(f"the ledger's URL cannot be read; it has the form {_FORMS}") from None
    if backend != "sqlite":
        raise LedgerError(f"the ledger's URL names {backend}, which cannot hold a ledger; use {_FORMS}")
    return SqliteFile.of(parsed)


@contextmanager
def reading(readers: Engine) -> Iterator[Connection]:
    """Give a connection for reads, each of which sees what is committed; faults of the storage come out as ours."""
    try:
        with readers.connect() as connection:
            try:
                yield connection
            except storage_faults(readers) as error:
                if readers.dialect.name == "postgresql":
                    _replace_if_gone(connection, error)
                raise
    except storage_faults(readers) as error:
        raise as_ledger_error(error) from error


@contextmanager
def snapshot(readers: Engine) -> Iterator[Connection]:
    """Give a connection whose reads all see the same moment."""
    with reading(readers) as connection, connection.begin():
        yield connection


def _replace_if_gone(connection: Connection, error: BaseException) -> None:
    """Keep a broken connection from going back to the pool."""
    if not connection.invalidated and has_gone(connection.connection.driver_connection, cause_of(error)):
        connection.invalidate()


def storage_faults(engine: Engine) -> tuple[type[Exception], ...]:
    """Return the exceptions by which an engine, its pool and its driver tell of faults of the storage."""
    return (DBAPIError, PoolTimeoutError, engine.dialect.loaded_dbapi.Error)


def as_ledger_error(error: BaseException) -> LedgerError:
    """Return a fault of the storage in our words: busy when calling again later may help."""
    if isinstance(error, LedgerError):
        return error
    if isinstance(error, PoolTimeoutError):
        return LedgerBusyError(f"the ledger has no free connection: {error}")
    cause = cause_of(error)
    kinds = {kind.__name__ for kind in type(cause).__mro__}  # PEP 249 names them alike in every driver
    if kinds & {"OperationalError", "InternalError"}:
        return LedgerBusyError(f"the ledger cannot be used right now: {in_a_line(cause)}")
    return LedgerError(f"the ledger met a fault: {type(cause).__name__}: {in_a_line(cause)}")


def cause_of(error: BaseException) -> BaseException:
    """Return the driver's own exception."""
    return error.orig if isinstance(error, DBAPIError) and error.orig else error


def in_a_line(error: BaseException) -> str:
    """Return an exception's message as one line; of PostgreSQL's only the first, since the others quote rows."""
    primary = getattr(getattr(error, "diag", None), "message_primary", None)
    if primary:
        return str(primary)
    return "; ".join(part.strip() for part in str(error).splitlines() if part.strip())

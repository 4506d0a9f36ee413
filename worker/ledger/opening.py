"""When a ledger may be used: it is there, on a database that can hold it, in exactly the schema this version knows."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import Connection, text

from rules.vocabulary import LedgerError
from worker.ledger.engine import BUSY_TIMEOUT, as_ledger_error, cause_of, reading, storage_faults, storage_of
from worker.ledger.ledger import Ledger
from worker.ledger.moved import Moved, Progress, refuse_moved
from worker.ledger.schema import REVISIONS
from worker.ledger.writer import GATHERING, WAIT, Writer

#: PostgreSQL's word for a table that is not there; SQLite has only a sentence for it.
_UNDEFINED_TABLE = "42P01"


def open_ledger(
    url: str, *, busy_timeout: timedelta = BUSY_TIMEOUT, wait: timedelta = WAIT, yielding: timedelta = GATHERING
) -> Ledger:
    """Open the ledger at a URL: `sqlite:////var/lib/leadwire/ledger.sqlite3`, `postgresql://USER:PASSWORD@HOST:PORT/DATABASE`.

    `busy_timeout` bounds the wait for other processes' writes, `wait` a caller's wait for its commit; for `yielding` see
    `Writer`. Raises LedgerError when there is none, when its schema is not the one of this version, when it was moved
    elsewhere, or when the database cannot hold a ledger.
    """
    storage = storage_of(url)
    storage.must_exist()
    readers = storage.readers(busy_timeout)
    writers = storage.writers(busy_timeout)
    try:
        with reading(writers):
            pass  # sets SQLite's journal mode before anybody reads, and shows whether a server takes writes
        with reading(readers) as connection:
            found = revision_of(connection, storage.name)
            refuse_moved(connection, found, storage.name)
        if found != REVISIONS[-1]:
            raise LedgerError(_wrong_schema(storage.name, found))
    except BaseException:
        readers.dispose()
        raise
    return Ledger(readers, Writer(writers, wait=wait, turnstile=storage.turnstile(), yielding=yielding))


def migrate(url: str) -> None:
    """Bring the ledger at a URL to this version's schema; a SQLite file (0600) and its folder (0700) are made when absent.

    Several processes may do so at once. Raises LedgerError for a ledger of a newer version, or one that was moved.
    """
    from worker.ledger.migrating import upgrade  # noqa: PLC0415 - alembic and Mako cost every start 0.1 s

    upgrade(storage_of(url))


def move_ledger(source_url: str, target_url: str, now: datetime, progress: Progress) -> Moved:
    """Move the ledger of a SQLite file into an empty database of PostgreSQL, or end a move that was interrupted.

    `progress` is told each step, the rows done and the rows in all. Raises LedgerError; see `moving.move`.
    """
    from worker.ledger.moving import move  # noqa: PLC0415 - as above

    return move(source_url, target_url, now, progress)


def undo_move(source_url: str, target_url: str, progress: Progress) -> None:
    """Give a move up, as long as nothing has worked on the ledger there. Raises LedgerError; see `moving.undo`."""
    from worker.ledger.moving import undo  # noqa: PLC0415 - as above

    undo(source_url, target_url, progress)


def revision_of(connection: Connection, name: str) -> str | None:
    """Return the revision of a ledger's schema; LedgerError when it has none."""
    try:
        found: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    except storage_faults(connection.engine) as error:
        cause = cause_of(error)
        if getattr(cause, "sqlstate", None) == _UNDEFINED_TABLE or "no such table" in str(cause):
            raise LedgerError(f"{name} has no schema yet; make it with: leadwire migrate") from error
        raise as_ledger_error(error) from error
    return found


def _wrong_schema(name: str, found: str | None) -> str:
    if found is None or found in REVISIONS:
        return f"the schema of {name} is older than this version of Leadwire; bring it up with: leadwire migrate"
    return (
        f"the schema of {name} is of a newer Leadwire (revision {found}, known here: {REVISIONS[-1]}); "
        "leadwire migrate goes forward only, so install that newer version"
    )

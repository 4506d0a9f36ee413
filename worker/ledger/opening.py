"""When a ledger may be used: it exists, on a safe library, in exactly the schema this version knows."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from sqlalchemy import URL, text

from rules.vocabulary import LedgerError
from worker.ledger.engine import BUSY_TIMEOUT, parse_url, read_engine, reading, write_engine
from worker.ledger.ledger import Ledger
from worker.ledger.tables import REVISIONS
from worker.ledger.turnstile import Turnstile
from worker.ledger.writer import WAIT, Writer


def open_ledger(url: str, *, busy_timeout: timedelta = BUSY_TIMEOUT, wait: timedelta = WAIT) -> Ledger:
    """Open the ledger at a URL such as `sqlite:////var/lib/leadwire/ledger.sqlite3`.

    `busy_timeout` bounds the wait for other processes' writes, `wait` a caller's wait for its commit. Raises LedgerError
    when there is none, when its schema is not the one of this version, or when the SQLite library is not safe.
    """
    parsed = parse_url(url)
    file = Path(parsed.database or "")
    if not file.is_file():
        raise LedgerError(f"there is no ledger at {file}; make one with: leadwire migrate")
    readers = read_engine(parsed, busy_timeout)
    writers = write_engine(parsed, busy_timeout)
    try:
        with reading(writers):
            pass  # sets the journal mode before anybody reads
        with reading(readers) as connection:
            found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    except LedgerError as error:
        readers.dispose()
        if "no such table" in str(error):
            raise LedgerError(f"{file} has no schema yet; make it with: leadwire migrate") from error
        raise
    if found != REVISIONS[-1]:
        readers.dispose()
        raise LedgerError(_wrong_schema(parsed, found))
    return Ledger(readers, Writer(writers, wait=wait, turnstile=Turnstile(file)))


def migrate(url: str) -> None:
    """Bring the ledger at a URL to this version's schema, making its file (0600) and folder (0700) when absent.

    Several processes may do so at once. Raises LedgerError for a ledger of a newer version.
    """
    from worker.ledger.migrating import upgrade  # noqa: PLC0415 - alembic and Mako cost every start 0.1 s

    upgrade(parse_url(url))


def _wrong_schema(url: URL, found: str | None) -> str:
    if found is None or found in REVISIONS:
        return (
            f"the schema of {url.database} is older than this version of Leadwire; bring it up with: leadwire migrate"
        )
    return (
        f"the schema of {url.database} is of a newer Leadwire (revision {found}, known here: {REVISIONS[-1]}); "
        "leadwire migrate goes forward only, so install that newer version"
    )

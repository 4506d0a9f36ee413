"""The ledger's schema: which revision a database has, whether this version may use it, and how it is brought forward.

`versions/` has one file for each revision, run by alembic in one transaction that keeps other migrations out: of several
processes that migrate at once the first does it; the others wait and find nothing left to do.

A ledger that has moved to another database (`move.py`) says so where every version of Leadwire looks first: in place of the
schema's revision. So an older or newer program refuses it too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sqlalchemy import Connection, inspect, select, text

from rules.vocabulary import LedgerError
from worker.ledger.database import BUSY_TIMEOUT, Database, as_ledger_error, cause_of, database_faults
from worker.ledger.schema import MOVED, MOVING, REVISIONS, moves

#: Where alembic finds `env.py` and the revisions.
FOLDER: Final = Path(__file__).parent

#: PostgreSQL's words for a table that is not there (SQLite has only a sentence for it), and for what a user may not do.
_UNDEFINED_TABLE: Final = "42P01"
_MAY_NOT: Final = "42501"


def refuse_other_revision(connection: Connection, name: str) -> None:
    """Raise LedgerError, with the way on, unless a ledger has exactly this version's schema and has not moved."""
    try:
        found: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    except database_faults(connection.engine) as error:
        cause = cause_of(error)
        if getattr(cause, "sqlstate", None) == _UNDEFINED_TABLE or "no such table" in str(cause):
            raise LedgerError(f"{name} has no schema yet; make it with: leadwire migrate") from error
        raise as_ledger_error(error) from error
    _refuse_moved(connection, found, name)
    if found is None or found in REVISIONS[:-1]:
        raise LedgerError(
            f"the schema of {name} is older than this version of Leadwire; bring it up with: leadwire migrate"
        )
    if found != REVISIONS[-1]:
        raise LedgerError(
            f"the schema of {name} is of a newer Leadwire (revision {found}, known here: {REVISIONS[-1]}); "
            "leadwire migrate goes forward only, so install that newer version"
        )


def upgrade(database: Database) -> None:
    """Bring a ledger to the last revision; a SQLite file is made when absent. Raises LedgerError."""
    database.make()
    engine = database.writers(BUSY_TIMEOUT)
    try:
        with engine.begin() as connection:
            database.hold_for_migration(connection)
            upgrade_in(connection, database.name)
    except database_faults(engine) as error:
        if getattr(cause_of(error), "sqlstate", None) == _MAY_NOT:
            raise LedgerError(
                f"{database.name}: its user may not make tables ({str(cause_of(error)).splitlines()[0]}); let the owner say: "
                "ALTER DATABASE name OWNER TO user, or GRANT CREATE, USAGE ON SCHEMA public TO user"
            ) from error
        raise as_ledger_error(error) from error
    finally:
        engine.dispose()


def upgrade_in(connection: Connection, name: str) -> None:
    """Run the revisions that are missing, in the transaction that is open."""
    found = revision_of(connection)
    if found == REVISIONS[-1]:
        return
    _refuse_moved(connection, found, name)
    if found is not None and found not in REVISIONS:
        raise LedgerError(
            f"the schema of {name} is of a newer Leadwire (revision {found}, known here: {REVISIONS[-1]}), "
            "or of another program; install that newer version, or give Leadwire a database of its own"
        )
    from alembic import command  # noqa: PLC0415 - alembic and Mako would cost every start 0.1 s
    from alembic.config import Config  # noqa: PLC0415 - as above

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    command.upgrade(config, "head")


def revision_of(connection: Connection) -> str | None:
    """Return what stands as the revision of a database's schema, None when it has none."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return found


def _refuse_moved(connection: Connection, revision: str | None, name: str) -> None:
    """Raise LedgerError with the way on when a ledger with this revision has gone elsewhere, or is about to."""
    if revision not in {MOVING, MOVED}:
        return
    place = connection.execute(select(moves.c.place)).scalar()
    if revision == MOVED:
        raise LedgerError(
            f"{name} has moved to {place}: set LEADWIRE_DATABASE_URL to it. "
            "As long as nothing has worked on it there, this undoes the move: leadwire migrate --from URL --undo"
        )
    raise LedgerError(
        f"{name} is being moved to {place}, or that was interrupted: end it with the same leadwire migrate --from URL, "
        "or give it up with: leadwire migrate --from URL --undo"
    )

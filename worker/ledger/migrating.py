"""How a ledger's schema goes forward: alembic's revisions, in one transaction that keeps other migrations out.

Of several processes that migrate at once the first does it; the others wait and find nothing left to do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, inspect, text

from rules.vocabulary import LedgerError
from worker.ledger.engine import BUSY_TIMEOUT, Storage, as_ledger_error, cause_of, storage_faults
from worker.ledger.moved import refuse_moved
from worker.ledger.schema import REVISIONS

_FOLDER: Final = Path(__file__).with_name("migrations")
_MAY_NOT: Final = "42501"


def upgrade(storage: Storage) -> None:
    """Bring a ledger to the last revision; a file is made when absent."""
    storage.make()
    engine = storage.writers(BUSY_TIMEOUT)
    try:
        with engine.begin() as connection:
            storage.hold_for_migration(connection)
            bring_forward(connection, storage.name)
    except storage_faults(engine) as error:
        if getattr(cause_of(error), "sqlstate", None) == _MAY_NOT:
            raise LedgerError(
                f"{storage.name}: its user may not make tables ({str(cause_of(error)).splitlines()[0]}); let the owner say: "
                "ALTER DATABASE name OWNER TO user, or GRANT CREATE, USAGE ON SCHEMA public TO user"
            ) from error
        raise as_ledger_error(error) from error
    finally:
        engine.dispose()


def bring_forward(connection: Connection, name: str) -> None:
    """Run the revisions that are missing, in the transaction that is open."""
    found = None
    if inspect(connection).has_table("alembic_version"):
        found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if found == REVISIONS[-1]:
        return
    refuse_moved(connection, found, name)
    if found is not None and found not in REVISIONS:
        raise LedgerError(
            f"the schema of {name} is of a newer Leadwire (revision {found}, known here: {REVISIONS[-1]}), "
            "or of another program; install that newer version, or give Leadwire a database of its own"
        )
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    command.upgrade(config, "head")

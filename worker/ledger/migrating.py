"""How a ledger's schema goes forward: alembic's revisions, in one transaction that holds the write lock.

Of several processes that migrate at once the first does it; the others wait for the lock and find nothing left to do.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from sqlalchemy import URL, Connection, inspect, text

from rules.vocabulary import LedgerError
from worker.ledger.engine import as_ledger_error, storage_faults, write_engine
from worker.ledger.tables import REVISIONS

_FOLDER: Final = Path(__file__).with_name("migrations")


def upgrade(url: URL) -> None:
    """Make the file when absent and bring it to the last revision."""
    file = Path(url.database or "")
    _make(file)
    engine = write_engine(url)
    try:
        with engine.begin() as connection:
            _bring_forward(connection, file)
    except storage_faults(engine) as error:
        raise as_ledger_error(error) from error
    finally:
        engine.dispose()


def _bring_forward(connection: Connection, file: Path) -> None:
    found = None
    if inspect(connection).has_table("alembic_version"):
        found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if found == REVISIONS[-1]:
        return
    if found is not None and found not in REVISIONS:
        raise LedgerError(
            f"the schema of {file} is of a newer Leadwire (revision {found}, known here: {REVISIONS[-1]}); "
            "install that newer version"
        )
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    command.upgrade(config, "head")


def _make(file: Path) -> None:
    """Make a ledger's file and folder for its owner only; what is there keeps its rights."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise LedgerError(f"the ledger's file {file} cannot be made: {error.strerror}") from error

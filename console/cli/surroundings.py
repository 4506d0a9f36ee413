"""What every command starts from: the settings, and the ledger that is there already.

Commands that look never make a ledger: a wrong LEADWIRE_HOME shall not look like an empty one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rules.vocabulary import Problem
from worker.ledger import Ledger, open_ledger
from worker.settings import Settings, environment_of

SQLITE_FILE: Final = "sqlite:///"


class NoLedgerError(Problem):
    """There is no ledger where the settings say; the message says what to do."""


def settings_in_force() -> Settings:
    """Return the settings of the process's environment and the working folder's `.env`; raises SettingsError."""
    return Settings.from_environment(environment_of(Path.cwd()))


@contextmanager
def existing_ledger(settings: Settings) -> Iterator[Ledger]:
    """Open the ledger for a while; raises NoLedgerError where nothing has been recorded yet."""
    url = settings.database_url
    if url.startswith(SQLITE_FILE) and not Path(url.removeprefix(SQLITE_FILE).partition("?")[0]).exists():
        raise NoLedgerError(
            f"no ledger at {url.removeprefix(SQLITE_FILE)} yet: start `leadwire up`, "
            "or set LEADWIRE_HOME to the data folder of the one that runs"
        )
    ledger = open_ledger(url)
    try:
        yield ledger
    finally:
        ledger.close()

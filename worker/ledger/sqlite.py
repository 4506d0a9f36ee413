"""Which SQLite may hold a ledger, and how every connection to it is set up.

SQLite up to 3.51.2 can corrupt a database in WAL mode when several connections write and checkpoint; fixed in 3.51.3,
3.50.7 and 3.44.6 (https://www.sqlite.org/wal.html#walresetbug). Our processes are exactly that shape, so an affected
library is refused. WAL with `synchronous=FULL` syncs every commit: an answered webhook survives a power cut.
`BEGIN IMMEDIATE` takes the write lock at once; a transaction that reads first and then writes can fail with "locked"
whatever the busy time-out says.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event

from rules.vocabulary import LedgerError
from worker.ledger.turnstile import WriterFileLock
from worker.ledger.work import SAVEPOINT

_FIXED_SINCE: Final = (3, 51, 3)
_FIXED_WITHIN: Final = ((3, 50, 7), (3, 44, 6))
_MODULES: Final = ("pysqlite3.dbapi2", "sqlite3")


def is_safe(version: tuple[int, int, int]) -> bool:
    """Whether this version of the SQLite library is free of the WAL-reset bug."""
    return version >= _FIXED_SINCE or any(version[:2] == fixed[:2] and version >= fixed for fixed in _FIXED_WITHIN)


def sqlite_module(names: tuple[str, ...] = _MODULES) -> ModuleType:
    """Return the first of these DB-API modules whose SQLite library is safe; LedgerError with the remedy if none is."""
    met = []
    for name in names:
        try:
            module = import_module(name)
        except ImportError:
            met.append(f"{name} is not installed")
            continue
        if is_safe(module.sqlite_version_info):
            return module
        met.append(f"{name} has SQLite {module.sqlite_version}")
    raise LedgerError(
        f"no safe SQLite library: {'; '.join(met)}. SQLite before 3.51.3 can corrupt a ledger that several processes "
        "write (https://www.sqlite.org/wal.html#walresetbug). Install the wheel that brings its own: "
        "pip install 'pysqlite3>=0.6.1'"
    )


@dataclass(frozen=True, slots=True)
class SqliteFile:
    """A ledger in one file of this machine."""

    url: URL

    @classmethod
    def of(cls, url: URL) -> SqliteFile:
        """Take a URL such as `sqlite:////var/lib/leadwire/ledger.sqlite3`; LedgerError for one that names no file."""
        if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
            raise LedgerError("the ledger is a file; use sqlite:////absolute/path/ledger.sqlite3")
        return cls(url.set(query={}))

    @property
    def file(self) -> Path:
        """The file."""
        return Path(self.url.database or "")

    @property
    def name(self) -> str:
        """What messages call it."""
        return str(self.file)

    def must_exist(self) -> None:
        """Raise LedgerError when there is no such file."""
        if not self.file.is_file():
            raise LedgerError(f"there is no ledger at {self.file}; make one with: leadwire migrate")

    def make(self) -> None:
        """Make the file and its folder for their owner only; what is there keeps its rights."""
        try:
            self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self.file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise LedgerError(f"the ledger's file {self.file} cannot be made: {error.strerror}") from error

    def readers(self, busy_timeout: timedelta) -> Engine:
        """Return the engine for reads: pooled connections that cannot write; each transaction sees one snapshot."""
        engine = self._engine(pool_size=16, max_overflow=-1)
        _set_up(engine, [*_pragmas(busy_timeout), "PRAGMA query_only=ON"], "BEGIN")
        return engine

    def writers(self, busy_timeout: timedelta) -> Engine:
        """Return the engine for writes: every transaction holds the write lock, and a savepoint, from its beginning."""
        engine = self._engine(poolclass=NullPool)
        _set_up(
            engine, [*_pragmas(busy_timeout), "PRAGMA journal_mode=WAL"], "BEGIN IMMEDIATE", f"SAVEPOINT {SAVEPOINT}"
        )
        return engine

    def alone(self) -> Engine:
        """Return the engine for whoever wants the file for itself: nobody else can even read while it is connected.

        A transaction begins only when no other process has the file open: each of them holds a shared lock on a file in WAL
        mode for as long as it is connected, and this one wants it exclusively (https://www.sqlite.org/pragma.html#pragma_locking_mode).
        """
        engine = self._engine(poolclass=NullPool)
        pragmas = ["PRAGMA locking_mode=EXCLUSIVE", *_pragmas(timedelta(seconds=2))]
        _set_up(engine, pragmas, "BEGIN IMMEDIATE")
        return engine

    def turnstile(self) -> WriterFileLock:
        """Return this process's place among those that write."""
        return WriterFileLock(self.file)

    def hold_for_migration(self, _connection: Connection) -> None:
        """Do nothing: the transaction holds the write lock from its beginning."""

    def _engine(self, **options: Any) -> Engine:
        return create_engine(self.url, module=sqlite_module(), **options)


def _pragmas(busy_timeout: timedelta) -> list[str]:
    return [
        f"PRAGMA busy_timeout={busy_timeout // timedelta(milliseconds=1)}",
        "PRAGMA synchronous=FULL",
        "PRAGMA foreign_keys=ON",
        "PRAGMA temp_store=MEMORY",
        "PRAGMA journal_size_limit=67108864",
    ]


def _set_up(engine: Engine, pragmas: list[str], *begin: str) -> None:
    @event.listens_for(engine, "connect")
    def connected(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself
        for pragma in pragmas:
            connection.execute(pragma).close()

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        driver: Any = connection.connection.driver_connection
        for command in begin:
            driver.execute(command).close()

"""Which SQLite may hold a ledger, and how every connection to it is set up.

SQLite up to 3.51.2 can corrupt a database in WAL mode when several connections write and checkpoint; fixed in 3.51.3,
3.50.7 and 3.44.6 (https://www.sqlite.org/wal.html#walresetbug). Our processes are exactly that shape, so an affected
library is refused. WAL with `synchronous=FULL` syncs every commit: an answered webhook survives a power cut.
`BEGIN IMMEDIATE` takes the write lock at once; a transaction that reads first and then writes can fail with "locked"
whatever the busy time-out says.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module
from types import ModuleType
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from rules.vocabulary import LedgerBusyError, LedgerError

#: How long a connection waits for another process's write.
BUSY_TIMEOUT: Final = timedelta(seconds=10)

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


def parse_url(url: str) -> URL:
    """Return a ledger's URL; LedgerError for one that no ledger can have."""
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, SQLAlchemyError) as error:
        raise LedgerError(f"the ledger's URL cannot be read: {error}") from error
    if backend != "sqlite":
        raise LedgerError(f"a ledger on {backend} is not built yet; use sqlite:////absolute/path/ledger.sqlite3")
    if not parsed.database or parsed.database == ":memory:" or parsed.database.startswith("file:"):
        raise LedgerError("the ledger is a file; use sqlite:////absolute/path/ledger.sqlite3")
    return parsed


def read_engine(url: URL, busy_timeout: timedelta = BUSY_TIMEOUT) -> Engine:
    """Return the engine for reads: pooled connections that cannot write; each transaction sees one snapshot."""
    engine = _engine(url, pool_size=16, max_overflow=-1)
    _set_up(engine, [*_pragmas(busy_timeout), "PRAGMA query_only=ON"], begin="BEGIN")
    return engine


def write_engine(url: URL, busy_timeout: timedelta = BUSY_TIMEOUT) -> Engine:
    """Return the engine for writes: every transaction holds the write lock from its beginning."""
    engine = _engine(url, poolclass=NullPool)
    _set_up(engine, [*_pragmas(busy_timeout), "PRAGMA journal_mode=WAL"], begin="BEGIN IMMEDIATE")
    return engine


@contextmanager
def reading(readers: Engine) -> Iterator[Connection]:
    """Give a connection for one snapshot's reads; faults of the storage come out as ours."""
    try:
        with readers.connect() as connection:
            yield connection
    except storage_faults(readers) as error:
        raise as_ledger_error(error) from error


def storage_faults(engine: Engine) -> tuple[type[Exception], ...]:
    """Return the exceptions by which an engine, its pool and its driver tell of faults of the storage."""
    return (DBAPIError, PoolTimeoutError, engine.dialect.loaded_dbapi.Error)


def as_ledger_error(error: BaseException) -> LedgerError:
    """Return a fault of the storage in our words: busy when calling again later may help."""
    if isinstance(error, PoolTimeoutError):
        return LedgerBusyError(f"the ledger has no free connection: {error}")
    cause = error.orig if isinstance(error, DBAPIError) and error.orig else error
    kinds = {kind.__name__ for kind in type(cause).__mro__}  # PEP 249 names them alike in every driver
    if kinds & {"OperationalError", "InternalError"}:
        return LedgerBusyError(f"the ledger cannot be used right now: {cause}")
    return LedgerError(f"the ledger met a fault: {type(cause).__name__}: {cause}")


def _engine(url: URL, **options: Any) -> Engine:
    return create_engine(url.set(query={}), module=sqlite_module(), **options)


def _pragmas(busy_timeout: timedelta) -> list[str]:
    return [
        f"PRAGMA busy_timeout={busy_timeout // timedelta(milliseconds=1)}",
        "PRAGMA synchronous=FULL",
        "PRAGMA foreign_keys=ON",
        "PRAGMA temp_store=MEMORY",
        "PRAGMA journal_size_limit=67108864",
    ]


def _set_up(engine: Engine, pragmas: list[str], *, begin: str) -> None:
    @event.listens_for(engine, "connect")
    def connected(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself
        for pragma in pragmas:
            connection.execute(pragma).close()

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

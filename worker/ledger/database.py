"""The databases that can hold a ledger: a SQLite file, or a database of a PostgreSQL server.

Each gives two SQLAlchemy engines: one to read with (pooled, cannot write), one to write with (for the process's one writer
thread). All statements are the same on both; what differs between the two is here, in `statements.py` (how lists of ids and
many rows are sent) and in `writer.py` (how a transaction stands).

SQLite: versions up to 3.51.2 can corrupt a database in WAL mode when several connections write and checkpoint; fixed in
3.51.3, 3.50.7 and 3.44.6 (https://www.sqlite.org/wal.html#walresetbug). Our processes are exactly that shape, so an affected
library is refused. WAL with `synchronous=FULL` syncs every commit: an answered webhook survives a power cut. `BEGIN IMMEDIATE`
takes the write lock at once; a transaction that reads first and then writes can fail with "locked" whatever the time-out says.

PostgreSQL: a release that still gets fixes, 15 or later (https://www.postgresql.org/support/versioning/); a server that takes
writes; UTF8; and `synchronous_commit` other than `off`, which is overruled. A session is set up by one statement after
connecting, so a pooler in between has to keep sessions apart (PgBouncer: `pool_mode = session`).
"""

from __future__ import annotations

import logging
import os
import select
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Protocol

from sqlalchemy import URL, Connection, Engine, NullPool, QueuePool, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InvalidatePoolError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from rules.vocabulary import LedgerBusyError, LedgerError

log = logging.getLogger(__name__)

#: How long a connection waits for another process's write.
BUSY_TIMEOUT: Final = timedelta(seconds=10)
#: The savepoint that every writing transaction begins with.
SAVEPOINT: Final = "job"

_FORMS: Final = "sqlite:////absolute/path/ledger.sqlite3 or postgresql://USER:PASSWORD@HOST:PORT/DATABASE"


class Database(Protocol):
    """A database that can hold a ledger: what both kinds must provide."""

    @property
    def name(self) -> str:
        """The name used in messages; it contains no password."""

    @property
    def lock_file(self) -> Path | None:
        """The file that `WriterFileLock` locks; None where the database server orders the writers itself."""

    def must_exist(self) -> None:
        """Raise LedgerError when it is known without connecting that the database does not exist."""

    def make(self) -> None:
        """Create an empty database for the schema, where Leadwire may do that."""

    def readers(self, busy_timeout: timedelta) -> Engine:
        """Return the engine for reads: pooled connections that cannot write; each transaction sees one snapshot."""

    def writers(self, busy_timeout: timedelta) -> Engine:
        """Return the engine for writes: every transaction begins with the savepoint `SAVEPOINT`."""

    def hold_for_migration(self, connection: Connection) -> None:
        """Lock out other migrations until this transaction ends; waits for one that is running."""


def database_of(url: str) -> Database:
    """Return the database that a URL names, without connecting. LedgerError for a URL that cannot hold a ledger.

    Messages never repeat the URL: it may hold a password.
    """
    if url.partition("://")[0].lower().startswith("postgres"):
        return PostgresDatabase.of(url)
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, SQLAlchemyError, ValueError):
        raise LedgerError(f"the ledger's URL cannot be read; it has the form {_FORMS}") from None
    if backend != "sqlite":
        raise LedgerError(f"the ledger's URL names {backend}, which cannot hold a ledger; use {_FORMS}")
    return SqliteFile.of(parsed)


# Reading, and faults ---------------------------------------------------------------------------------------------------


@contextmanager
def reading(readers: Engine) -> Iterator[Connection]:
    """Yield a read connection. Each read sees the latest commits. Faults of the database are raised as LedgerError."""
    try:
        with readers.connect() as connection:
            try:
                yield connection
            except database_faults(readers) as error:
                if readers.dialect.name == "postgresql":
                    _replace_if_gone(connection, error)
                raise
    except database_faults(readers) as error:
        raise as_ledger_error(error) from error


@contextmanager
def snapshot(readers: Engine) -> Iterator[Connection]:
    """Yield a read connection whose reads all see one snapshot."""
    with reading(readers) as connection, connection.begin():
        yield connection


def _replace_if_gone(connection: Connection, error: BaseException) -> None:
    """Keep a broken connection from going back to the pool."""
    if not connection.invalidated and is_disconnected(connection.connection.driver_connection, cause_of(error)):
        connection.invalidate()


def database_faults(engine: Engine) -> tuple[type[Exception], ...]:
    """Return the exception types that an engine, its pool and its driver raise."""
    return (DBAPIError, PoolTimeoutError, engine.dialect.loaded_dbapi.Error)


def as_ledger_error(error: BaseException) -> LedgerError:
    """Convert a database exception: LedgerBusyError when trying again later may help, else LedgerError."""
    if isinstance(error, LedgerError):
        return error
    if isinstance(error, PoolTimeoutError):
        return LedgerBusyError(f"the ledger has no free connection: {error}")
    cause = cause_of(error)
    kinds = {kind.__name__ for kind in type(cause).__mro__}  # PEP 249 names them alike in every driver
    if kinds & {"OperationalError", "InternalError"}:
        return LedgerBusyError(f"the ledger cannot be used right now: {one_line(cause)}")
    return LedgerError(f"the ledger met a fault: {type(cause).__name__}: {one_line(cause)}")


def cause_of(error: BaseException) -> BaseException:
    """Return the driver's own exception."""
    return error.orig if isinstance(error, DBAPIError) and error.orig else error


def one_line(error: BaseException) -> str:
    """Return an exception's message as one line; of PostgreSQL's only the first, since the others quote rows."""
    primary = getattr(getattr(error, "diag", None), "message_primary", None)
    if primary:
        return str(primary)
    return "; ".join(part.strip() for part in str(error).splitlines() if part.strip())


# SQLite ----------------------------------------------------------------------------------------------------------------

_FIXED_SINCE: Final = (3, 51, 3)
_FIXED_WITHIN: Final = ((3, 50, 7), (3, 44, 6))
_SQLITE_MODULES: Final = ("pysqlite3.dbapi2", "sqlite3")


def is_safe(version: tuple[int, int, int]) -> bool:
    """Whether this version of the SQLite library is free of the WAL-reset bug."""
    return version >= _FIXED_SINCE or any(version[:2] == fixed[:2] and version >= fixed for fixed in _FIXED_WITHIN)


def sqlite_module(names: tuple[str, ...] = _SQLITE_MODULES) -> ModuleType:
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
    """A ledger in one SQLite file on this machine."""

    url: URL

    @classmethod
    def of(cls, url: URL) -> SqliteFile:
        """Parse a URL such as `sqlite:////var/lib/leadwire/ledger.sqlite3`. LedgerError when it names no file."""
        if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
            raise LedgerError("the ledger is a file; use sqlite:////absolute/path/ledger.sqlite3")
        return cls(url.set(query={}))

    @property
    def file(self) -> Path:
        """The file."""
        return Path(self.url.database or "")

    @property
    def name(self) -> str:
        """The name used in messages."""
        return str(self.file)

    @property
    def lock_file(self) -> Path:
        """The lock file beside it, by which writers of several processes queue."""
        return Path(f"{self.file}-turn")

    def must_exist(self) -> None:
        """Raise LedgerError when there is no such file."""
        if not self.file.is_file():
            raise LedgerError(f"there is no ledger at {self.file}; make one with: leadwire migrate")

    def make(self) -> None:
        """Create the file (0600) and its folder (0700); existing ones keep their permissions."""
        try:
            self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self.file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise LedgerError(f"the ledger's file {self.file} cannot be made: {error.strerror}") from error

    def readers(self, busy_timeout: timedelta) -> Engine:
        """Return the engine for reads."""
        pragmas = [*_pragmas(busy_timeout), "PRAGMA query_only=ON"]
        return self._engine(pragmas, ["BEGIN"], pool_size=16, max_overflow=-1)

    def writers(self, busy_timeout: timedelta) -> Engine:
        """Return the engine for writes: every transaction holds the write lock from its beginning."""
        pragmas = [*_pragmas(busy_timeout), "PRAGMA journal_mode=WAL"]
        return self._engine(pragmas, ["BEGIN IMMEDIATE", f"SAVEPOINT {SAVEPOINT}"], poolclass=NullPool)

    def exclusive(self) -> Engine:
        """Return an engine that uses the file alone: no other process can even read while it is connected.

        Its transaction begins only when no other process has the file open. In WAL mode each connected process holds a shared
        lock on the file, and this engine asks for the exclusive one (https://www.sqlite.org/pragma.html#pragma_locking_mode).
        """
        pragmas = ["PRAGMA locking_mode=EXCLUSIVE", *_pragmas(timedelta(seconds=2))]
        return self._engine(pragmas, ["BEGIN IMMEDIATE"], poolclass=NullPool)

    def hold_for_migration(self, _connection: Connection) -> None:
        """Do nothing: the transaction holds the write lock from its beginning."""

    def _engine(self, pragmas: list[str], begin: list[str], **options: Any) -> Engine:
        engine = create_engine(self.url, module=sqlite_module(), **options)

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

        return engine


def _pragmas(busy_timeout: timedelta) -> list[str]:
    return [
        f"PRAGMA busy_timeout={_milliseconds(busy_timeout)}",
        "PRAGMA synchronous=FULL",
        "PRAGMA foreign_keys=ON",
        "PRAGMA temp_store=MEMORY",
        "PRAGMA journal_size_limit=67108864",
    ]


# PostgreSQL ------------------------------------------------------------------------------------------------------------

#: The oldest release that gets fixes.
OLDEST_RELEASE: Final = 15
#: From this difference of clocks on a warning is logged: leases and due moments are told by the clocks of the machines.
CLOCKS_APART: Final = timedelta(seconds=2)
#: One statement of ours takes milliseconds; a list's page perhaps seconds.
STATEMENT_TIMEOUT: Final = timedelta(seconds=60)
#: A transaction of ours never waits for anything but the server: one that does belongs to a process that hangs.
IDLE_IN_TRANSACTION_TIMEOUT: Final = timedelta(seconds=60)
#: Connections for reads that one process holds at the most, and keeps.
READERS_LIMIT: Final = 8
READERS_KEPT: Final = 4

#: Each statement of a writing transaction sees what is committed when it begins; those of a reading one see one moment.
BEGIN_WRITE: Final = "BEGIN ISOLATION LEVEL READ COMMITTED"
_BEGIN_SNAPSHOT: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"

#: How the SQLSTATEs begin by which a server says that it ends the connection: on command, in a crash, or broken.
_ENDING: Final = ("57P", "08")

_SCHEMES: Final = frozenset({"postgresql", "postgres", "postgresql+psycopg"})
_POSTGRES_FORM: Final = "postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
#: What libpq is told where the URL says nothing of it; seconds, and milliseconds for `tcp_user_timeout`.
_LIBPQ_DEFAULTS: Final[Mapping[str, str | int]] = {
    "application_name": "leadwire",
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
#: The one key under which migrations of a ledger keep each other out of a database.
_MIGRATION_KEY: Final = int.from_bytes(b"leadwire", "big")
_MIGRATION_WAIT: Final = timedelta(minutes=10)
_DDL_WAIT: Final = timedelta(seconds=30)

_SET_UP: Final = """
SELECT
    ARRAY[
        set_config('TimeZone', 'UTC', false),
        set_config('lock_timeout', %(lock)s, false),
        set_config('statement_timeout', %(statement)s, false),
        set_config('idle_in_transaction_session_timeout', %(idle)s, false),
        set_config('jit', 'off', false),
        set_config(
            'default_transaction_read_only',
            coalesce(%(read_only)s::text, current_setting('default_transaction_read_only')),
            false
        ),
        set_config('synchronous_commit', replace(current_setting('synchronous_commit'), 'off', 'on'), false)
    ] AS settings,
    current_setting('server_version_num')::integer AS version_number,
    current_setting('server_version') AS version,
    current_setting('server_encoding') AS encoding,
    current_setting('fsync') AS fsync,
    pg_is_in_recovery() AS is_standby,
    current_setting('transaction_read_only') = 'on' AS is_read_only,
    extract(epoch FROM clock_timestamp())::float8 AS clock_seconds
"""


@dataclass(frozen=True, slots=True)
class PostgresDatabase:
    """A ledger in a database of a PostgreSQL server."""

    #: What libpq is told, the password among it: never shown.
    options: Mapping[str, Any] = field(repr=False)
    #: The server itself puts writers in order.
    lock_file = None

    @classmethod
    def of(cls, url: str) -> PostgresDatabase:
        """Parse a URL such as `postgresql://leadwire:PASSWORD@db.example.com:5432/leadwire?sslmode=require`.

        Raises LedgerError when the driver is not installed and when the URL cannot be parsed.
        """
        scheme, _, rest = url.partition("://")
        if scheme.lower() not in _SCHEMES:
            raise LedgerError(f"the ledger's URL names a driver that is not used here; write it as {_POSTGRES_FORM}")
        psycopg = _psycopg()
        try:
            found: Mapping[str, Any] = import_module("psycopg.conninfo").conninfo_to_dict(f"postgresql://{rest}")
        except psycopg.Error:
            found = {"host": "@"}
        if "@" in str(found.get("host", "")):
            raise LedgerError(
                f"the ledger's URL cannot be read; it has the form {_POSTGRES_FORM}. "
                "In the password write @ as %40, / as %2F, : as %3A, # as %23 and % as %25"
            )
        return cls({**_LIBPQ_DEFAULTS, **found, "client_encoding": "UTF8"})

    @property
    def name(self) -> str:
        """The name used in messages."""
        database = self.options.get("dbname") or self.options.get("user") or "its default"
        host = self.options.get("host") or self.options.get("hostaddr") or "this machine"
        port = self.options.get("port")
        return f"the database {database} on {host}{f':{port}' if port else ''}"

    def must_exist(self) -> None:
        """Do nothing: the first connection shows whether it exists."""

    def make(self) -> None:
        """Do nothing: an administrator creates the database, Leadwire only its tables."""

    def readers(self, busy_timeout: timedelta) -> Engine:
        """Return the engine for reads."""
        engine = self._engine(
            busy_timeout,
            _BEGIN_SNAPSHOT,
            writes=False,
            poolclass=QueuePool,
            pool_size=READERS_KEPT,
            max_overflow=READERS_LIMIT - READERS_KEPT,
            pool_timeout=busy_timeout.total_seconds(),
            pool_use_lifo=True,
        )

        @event.listens_for(engine, "checkout")
        def checked_out(driver: Any, _record: object, _proxy: object) -> None:
            if may_be_disconnected(driver):
                raise InvalidatePoolError("the server has closed the connection")

        return engine

    def writers(self, busy_timeout: timedelta) -> Engine:
        """Return the engine for writes."""
        return self._engine(busy_timeout, f"{BEGIN_WRITE}; SAVEPOINT {SAVEPOINT}", writes=True, poolclass=NullPool)

    def hold_for_migration(self, connection: Connection) -> None:
        """Lock out other migrations until this transaction ends; waits for one that is running."""
        run = connection.exec_driver_sql
        run(f"SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = {_milliseconds(_MIGRATION_WAIT)}")
        run(f"SELECT pg_advisory_xact_lock({_MIGRATION_KEY})")
        run(f"SET LOCAL lock_timeout = {_milliseconds(_DDL_WAIT)}")

    def connect(self, busy_timeout: timedelta, *, writes: bool = True) -> Any:
        """Return a configured driver connection in autocommit mode. Raises LedgerError."""
        psycopg = _psycopg()
        try:
            driver = psycopg.connect(**self.options, autocommit=True)
        except psycopg.Error as error:
            raise self._cannot_connect(error) from None  # its trace may show the password
        try:
            self._set_up(driver, busy_timeout, writes=writes)
        except psycopg.Error as error:
            driver.close()
            raise self._cannot_connect(error) from None
        except BaseException:
            driver.close()
            raise
        return driver

    def _engine(self, busy_timeout: timedelta, begin: str, *, writes: bool, **options: Any) -> Engine:
        engine = create_engine(
            "postgresql+psycopg://",
            creator=lambda: self.connect(busy_timeout, writes=writes),
            use_native_hstore=False,
            **options,
        )

        @event.listens_for(engine, "begin")
        def begun(connection: Connection) -> None:
            driver: Any = connection.connection.driver_connection
            driver.execute(begin, prepare=False)

        return engine

    def _set_up(self, driver: Any, busy_timeout: timedelta, *, writes: bool) -> None:
        # One type for all integers: else each size of number would make a statement of its own.
        driver.adapters.register_dumper(int, import_module("psycopg.types.numeric").Int8Dumper)
        wanted = {
            "lock": str(max(1, _milliseconds(busy_timeout))),
            "statement": str(_milliseconds(STATEMENT_TIMEOUT)),
            "idle": str(_milliseconds(IDLE_IN_TRANSACTION_TIMEOUT)),
            "read_only": None if writes else "on",
        }
        asked_seconds = time.time()
        with driver.cursor(row_factory=import_module("psycopg.rows").namedtuple_row) as cursor:
            facts = cursor.execute(_SET_UP, wanted).fetchone()
        answered_seconds = time.time()
        self._check(facts, writes=writes)
        if not writes:
            return
        if facts.fsync != "on":
            log.warning("%s does not sync to disk (fsync = off): a power cut loses answered webhooks", self.name)
        apart_seconds = _apart(facts.clock_seconds, asked_seconds, answered_seconds)
        if abs(apart_seconds) > CLOCKS_APART.total_seconds():
            log.warning(
                "the clock of this machine and that of %s are %.1f s apart: let NTP (chrony, systemd-timesyncd) set both, "
                "or work starts at the wrong moment and leases end too early or too late",
                self.name,
                abs(apart_seconds),
            )

    def _check(self, facts: Any, *, writes: bool) -> None:
        if facts.version_number < OLDEST_RELEASE * 10_000:
            raise LedgerError(
                f"{self.name} is PostgreSQL {facts.version}, which gets no fixes any more; "
                f"Leadwire needs {OLDEST_RELEASE} or later (https://www.postgresql.org/support/versioning/)"
            )
        if facts.encoding != "UTF8":
            raise LedgerError(
                f"{self.name} has the encoding {facts.encoding}; make one with: "
                "CREATE DATABASE name ENCODING 'UTF8' TEMPLATE template0"
            )
        if writes and facts.is_standby:
            raise LedgerBusyError(
                f"{self.name} is a standby, which takes no writes: name the primary in LEADWIRE_DATABASE_URL, "
                "or several hosts with target_session_attrs=read-write"
            )
        if writes and facts.is_read_only:
            raise LedgerBusyError(
                f"{self.name} is read-only (default_transaction_read_only = on): find out who set that, and why"
            )

    def _cannot_connect(self, error: BaseException) -> LedgerBusyError:
        said = "; ".join(part.strip() for part in str(error).splitlines() if part.strip())
        password = self.options.get("password")
        if password:
            said = said.replace(str(password), "****")
        return LedgerBusyError(f"{self.name} cannot be reached: {said}; see LEADWIRE_DATABASE_URL")


def may_be_disconnected(driver: Any) -> bool:
    """Whether an idle connection should be replaced. A live one has nothing to read, so readable data means it was closed."""
    return bool(driver.closed) or _is_readable(driver)


def is_disconnected(driver: Any, error: BaseException) -> bool:
    """Whether this exception means that its connection is broken or about to be closed."""
    if driver.closed or str(getattr(error, "sqlstate", None)).startswith(_ENDING):
        return True
    try:
        while _is_readable(driver):
            driver.pgconn.consume_input()
    except _psycopg().Error:
        return True
    return bool(driver.closed)


def _is_readable(driver: Any) -> bool:
    ready = select.poll()
    ready.register(driver.fileno(), select.POLLIN)
    return bool(ready.poll(0))


def _apart(server_seconds: float, asked_seconds: float, answered_seconds: float) -> float:
    """Return by how much the server's clock is ahead at the least, whenever between asking and answer it was read."""
    if server_seconds > answered_seconds:
        return server_seconds - answered_seconds
    return min(0.0, server_seconds - asked_seconds)


def _milliseconds(span: timedelta) -> int:
    return span // timedelta(milliseconds=1)


def _psycopg() -> Any:
    try:
        psycopg = import_module("psycopg")
    except ImportError as error:
        raise LedgerError(
            f"a ledger on PostgreSQL needs the driver psycopg 3 ({error}): pip install 'leadwire[postgres]'"
        ) from error
    # It warns of every fault that follows from one it has raised already.
    logging.getLogger("psycopg").setLevel(logging.ERROR)
    return psycopg

"""Which PostgreSQL may hold a ledger, and how every session with it is set up.

- A release that still gets fixes: 15 or later; 14 ended in November 2026 (https://www.postgresql.org/support/versioning/).
- A server that takes writes: neither a standby nor read-only.
- UTF8, the one encoding that can hold every name.
- `synchronous_commit` other than `off`, so that a commit is on disk when it is answered; `off` is overruled.

The session is set up with one statement after connecting, which also brings the facts above: a pooler between us and the
server has to keep sessions apart (PgBouncer: `pool_mode = session`). Time-outs let go of what a dead or stuck peer holds.
"""

from __future__ import annotations

import logging
import select
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from importlib import import_module
from typing import Any, Final

from sqlalchemy import Connection, Engine, NullPool, QueuePool, create_engine, event
from sqlalchemy.exc import InvalidatePoolError

from rules.vocabulary import LedgerBusyError, LedgerError
from worker.ledger.work import SAVEPOINT

log = logging.getLogger(__name__)

#: The oldest release that gets fixes.
OLDEST_RELEASE: Final = 15
#: From this difference of clocks on it is worth a warning: leases and due moments are told by the clocks of the machines.
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

#: How the states begin by which a server says that it ends the connection: on command, in a crash, or broken.
_ENDING: Final = ("57P", "08")

_SCHEMES: Final = frozenset({"postgresql", "postgres", "postgresql+psycopg"})
_FORM: Final = "postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
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

    @staticmethod
    def speaks(scheme: str) -> bool:
        """Whether a URL with this scheme is one of PostgreSQL."""
        return scheme in _SCHEMES or scheme.startswith("postgres")

    @classmethod
    def of(cls, url: str) -> PostgresDatabase:
        """Take a URL such as `postgresql://leadwire:PASSWORD@db.example.com:5432/leadwire?sslmode=require`.

        LedgerError without the driver and for a URL that cannot be read; its text is never repeated: it holds a password.
        """
        scheme, _, rest = url.partition("://")
        if scheme.lower() not in _SCHEMES:
            raise LedgerError(f"the ledger's URL names a driver that is not used here; write it as {_FORM}")
        psycopg = _psycopg()
        try:
            found: Mapping[str, Any] = import_module("psycopg.conninfo").conninfo_to_dict(f"postgresql://{rest}")
        except psycopg.Error:
            found = {"host": "@"}
        if "@" in str(found.get("host", "")):
            raise LedgerError(
                f"the ledger's URL cannot be read; it has the form {_FORM}. "
                "In the password write @ as %40, / as %2F, : as %3A, # as %23 and % as %25"
            )
        return cls({**_LIBPQ_DEFAULTS, **found, "client_encoding": "UTF8"})

    @property
    def name(self) -> str:
        """What messages call it."""
        database = self.options.get("dbname") or self.options.get("user") or "its default"
        host = self.options.get("host") or self.options.get("hostaddr") or "this machine"
        port = self.options.get("port")
        return f"the database {database} on {host}{f':{port}' if port else ''}"

    def must_exist(self) -> None:
        """Leave that to the first connection."""

    def make(self) -> None:
        """Leave that to its administrator: Leadwire makes tables, not databases."""

    def turnstile(self) -> None:
        """Return nothing: the server puts writers in order."""

    def readers(self, busy_timeout: timedelta) -> Engine:
        """Return the engine for reads: pooled connections that cannot write; each transaction sees one snapshot."""
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
            if may_have_gone(driver):
                raise InvalidatePoolError("the server has closed the connection")

        return engine

    def writers(self, busy_timeout: timedelta) -> Engine:
        """Return the engine for writes: each statement of a transaction sees what is committed when it begins."""
        return self._engine(busy_timeout, f"{BEGIN_WRITE}; SAVEPOINT {SAVEPOINT}", writes=True, poolclass=NullPool)

    def hold_for_migration(self, connection: Connection) -> None:
        """Keep other migrations out until this transaction ends; waits for one that is under way."""
        run = connection.exec_driver_sql
        run(f"SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = {_milliseconds(_MIGRATION_WAIT)}")
        run(f"SELECT pg_advisory_xact_lock({_MIGRATION_KEY})")
        run(f"SET LOCAL lock_timeout = {_milliseconds(_DDL_WAIT)}")

    def connect(self, busy_timeout: timedelta, *, writes: bool = True) -> Any:
        """Return a connection of the driver, set up, that begins no transaction by itself. Raises LedgerError."""
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
        if not writes:
            return
        if facts.is_standby:
            raise LedgerBusyError(
                f"{self.name} is a standby, which takes no writes: name the primary in LEADWIRE_DATABASE_URL, "
                "or several hosts with target_session_attrs=read-write"
            )
        if facts.is_read_only:
            raise LedgerBusyError(
                f"{self.name} is read-only (default_transaction_read_only = on): find out who set that, and why"
            )

    def _cannot_connect(self, error: BaseException) -> LedgerBusyError:
        said = "; ".join(part.strip() for part in str(error).splitlines() if part.strip())
        password = self.options.get("password")
        if password:
            said = said.replace(str(password), "****")
        return LedgerBusyError(f"{self.name} cannot be reached: {said}; see LEADWIRE_DATABASE_URL")


def may_have_gone(driver: Any) -> bool:
    """Whether an idle connection is best replaced: on one that stands nothing is waiting to be read, unless it has ended."""
    return bool(driver.closed) or _is_readable(driver)


def has_gone(driver: Any, error: BaseException) -> bool:
    """Whether the connection on which this fault came up is broken, or about to be."""
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

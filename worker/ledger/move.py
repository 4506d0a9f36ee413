"""Move a ledger from a SQLite file into PostgreSQL: complete, once, and resumable after a crash at any point.

1. Open the file exclusively: nothing happens while another process has it open.
2. Mark the file as moving, durably. From here on no process works on it.
3. Copy and compare everything in one PostgreSQL transaction, which also stores the mark's token.
4. Mark the file as moved.

A later run that finds the mark of step 2 looks for the token in PostgreSQL. If it is there, only step 4 is left; else step 3 is
repeated. So at every moment either one ledger is usable, or the message says how to continue.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from secrets import token_hex
from typing import Any, Final

from sqlalchemy import Boolean, Connection, Row, Table, func, inspect, select, text

from rules.vocabulary import LedgerError
from worker.ledger.database import (
    BUSY_TIMEOUT,
    PostgresDatabase,
    SqliteFile,
    as_ledger_error,
    database_faults,
    database_of,
)
from worker.ledger.encoding import micros
from worker.ledger.migrations import revision_of, upgrade, upgrade_in
from worker.ledger.schema import MOVED, MOVING, metadata, moves

#: Told the name of a step, how many rows are done, and how many there are to do in all (each is copied and compared).
Progress = Callable[[str, int, int], None]

#: Rows copied or compared between two words about how far it is.
BATCH: Final = 2000

#: The tables, in an order in which no row comes before one that it refers to.
_TABLES: Final = metadata.sorted_tables
_NAMES: Final = ", ".join(table.name for table in _TABLES)

#: The file that `leadwire up` holds locked in its data folder.
_LOCK_FILE: Final = "lock"

_Rows = Generator[tuple[Any, ...], None, None]


@dataclass(frozen=True, slots=True)
class Moved:
    """The result of a move: rows by table; `resumed` when an earlier move was interrupted after its copy was committed."""

    source: str
    target: str
    rows: Mapping[str, int]
    resumed: bool


def move(source_url: str, target_url: str, now: datetime, progress: Progress) -> Moved:
    """Move the ledger in a SQLite file into an empty PostgreSQL database, or finish an interrupted move.

    Raises LedgerError while the file is in use, when the database is not empty, and when the copy differs from the original;
    the file then stays usable. After a lost connection the message says to repeat the command.
    """
    with _both_ends(source_url, target_url, progress) as ends:
        mark = ends.mark()
        if mark is None:
            upgrade_in(ends.file, ends.source.name)
        ends.file.commit()
        upgrade(ends.target)
        arrived = ends.arrived()
        if mark is not None and arrived == mark.token:
            return ends.finish(resumed=True)
        ends.refuse_target(mark, arrived)
        mark = mark or ends.set_mark(now)
        ends.tell("mark the file")
        copied = ends.copy_and_commit(mark)
        return ends.finish(resumed=not copied)


def undo(source_url: str, target_url: str, progress: Progress) -> None:
    """Undo a move, finished or not: the file is usable again, and the database is emptied.

    Raises LedgerError when the ledger in PostgreSQL has been used since: there would be two diverging ledgers.
    """
    with _both_ends(source_url, target_url, progress) as ends:
        mark = ends.mark()
        if mark is None:
            raise LedgerError(f"{ends.source.name} has not been moved: there is nothing to undo")
        if ends.arrived() == mark.token:
            with ends.there.begin():
                ends.hold_target()
                ends.total = 2 * sum(_counts(ends.file).values())
                if ends.digests(_read_there) != ends.digests(_read_file):
                    raise LedgerError(
                        f"the ledger in {ends.target.name} has been worked on since it was moved: undoing that would lose "
                        "or repeat its work; go on there"
                    )
                for table in reversed(_TABLES):
                    ends.there.execute(table.delete())
                moves.drop(ends.there)
        elif mark.place != ends.target.name or _first_filled(ends.there) is not None:
            raise LedgerError(
                f"{ends.source.name} went to {mark.place}, and what LEADWIRE_DATABASE_URL names is something else: name that"
            )
        ends.there.rollback()
        ends.tell("empty the database")
        ends.take_mark_away(mark)


@dataclass(slots=True)
class _Ends:
    """Where a ledger goes from and to, and how far it is; `file` is held for ourselves, `there` connected."""

    source: SqliteFile
    target: PostgresDatabase
    file: Connection
    there: Connection
    progress: Progress
    total: int = 0
    done: int = 0

    def tell(self, step: str, rows: int = 0) -> None:
        """Tell that so many more rows are done."""
        self.done += rows
        self.progress(step, self.done, self.total)

    def mark(self) -> Row[Any] | None:
        """Return the mark on the file, if there is one."""
        return self.file.execute(select(moves)).first() if revision_of(self.file) in {MOVING, MOVED} else None

    def set_mark(self, now: datetime) -> Row[Any]:
        """Mark the file as moving, durably."""
        moves.create(self.file, checkfirst=True)
        self.file.execute(moves.delete())
        mark = {"token": token_hex(16), "place": self.target.name, "revision": revision_of(self.file)}
        self.file.execute(moves.insert(), mark | {"begun_at": micros(now)})
        self._set_revision(MOVING)
        self.file.commit()
        return self.file.execute(select(moves)).one()

    def take_mark_away(self, mark: Row[Any]) -> None:
        """Make the file usable again."""
        self._set_revision(mark.revision)
        moves.drop(self.file)
        self.file.commit()

    def _set_revision(self, revision: str) -> None:
        self.file.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})

    def arrived(self) -> str | None:
        """Return the token of the ledger that arrived there."""
        with self.there.begin():
            if not inspect(self.there).has_table(moves.name):
                return None
            found: str | None = self.there.execute(select(moves.c.token)).scalar()
            return found

    def refuse_target(self, mark: Row[Any] | None, arrived: str | None) -> None:
        """Raise LedgerError where the database is not the one that the mark names, or not empty."""
        if mark is not None and mark.place != self.target.name:
            raise LedgerError(
                f"{self.source.name} went to {mark.place}: name that in LEADWIRE_DATABASE_URL, to end the move or to undo it"
            )
        if mark is not None and revision_of(self.file) == MOVED:
            raise LedgerError(f"{self.source.name} has moved to {mark.place} before, and is not there any more")
        with self.there.begin():
            filled = _first_filled(self.there)
        if filled is not None or arrived is not None:
            raise LedgerError(
                f"{self.target.name} is not empty (its table {filled or moves.name} has rows): "
                "a ledger moves into an empty database only, so that no two become one"
            )

    def copy_and_commit(self, mark: Row[Any]) -> bool:
        """Copy everything; False when it turns out to be there: the commit of an earlier try ended only now."""
        committing = False
        try:
            with self.there.begin():
                self.hold_target()
                if inspect(self.there).has_table(moves.name):
                    if self.there.execute(select(moves.c.token)).scalar() != mark.token:
                        raise LedgerError(f"{self.target.name} is not empty any more: another ledger has moved there")
                    return False
                self._copy()
                moves.create(self.there)
                self.there.execute(moves.insert(), {**mark._mapping, "place": self.source.name})  # noqa: SLF001 - SQLAlchemy's public name
                self.tell("commit")
                committing = True
        except BaseException as error:
            if not committing:
                with suppress(Exception):  # the mark then stays, and says how to go on
                    self.file.rollback()
                    self.take_mark_away(mark)
                raise
            raise LedgerError(
                f"the connection to {self.target.name} broke while the copy was committed: repeat the command, which finds out"
            ) from error
        self.tell("committed")
        return True

    def hold_target(self) -> None:
        """Keep everybody else away from the tables there until the transaction ends."""
        self.target.hold_for_migration(self.there)
        self.there.exec_driver_sql(f"LOCK TABLE {_NAMES} IN ACCESS EXCLUSIVE MODE")
        self.there.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
        filled = _first_filled(self.there)
        if filled is not None and not inspect(self.there).has_table(moves.name):
            raise LedgerError(
                f"{self.target.name} is not empty any more (its table {filled} has rows): who works on it?"
            )

    def _copy(self) -> None:
        """Copy every row, then compare what arrived with what was sent."""
        driver: Any = self.there.connection.driver_connection
        sent = {}
        self.total = 2 * sum(_counts(self.file).values())
        for table in _TABLES:
            with driver.cursor() as cursor, cursor.copy(f"COPY {table.name} ({_columns(table)}) FROM STDIN") as copy:
                sent[table.name] = self._digest(f"copy {table.name}", _read_file(self.file, table), copy.write_row)
            if "seq" in table.c:  # what is recorded from now on counts on from here
                sequence = f"pg_get_serial_sequence('{table.name}', 'seq')"
                self.there.exec_driver_sql(
                    f"SELECT setval({sequence}, coalesce(max(seq), 0) + 1, false) FROM {table.name}"  # noqa: S608 - our own names
                )
        arrived = self.digests(_read_there)
        for name, what in sent.items():
            if arrived[name] != what:
                raise LedgerError(
                    f"the table {name} did not arrive as it was sent ({arrived[name][0]} of {what[0]} rows, or other "
                    "content): nothing was moved"
                )
        self.there.exec_driver_sql(f"ANALYZE {_NAMES}")

    def digests(self, read: Callable[[Connection, Table], _Rows]) -> dict[str, tuple[int, int]]:
        """Return for each table how many rows it has, and a sum over them that does not depend on their order."""
        end = self.file if read is _read_file else self.there
        return {table.name: self._digest(f"compare {table.name}", read(end, table)) for table in _TABLES}

    def _digest(self, step: str, rows: _Rows, use: Callable[[Any], object] = lambda _: None) -> tuple[int, int]:
        count = digest = 0
        with closing(rows):
            for row in rows:
                use(row)
                own = blake2b(repr(tuple(row)).encode("utf-8", "surrogatepass"), digest_size=16).digest()
                digest = (digest + int.from_bytes(own, "big")) % 2**128
                count += 1
                if count % BATCH == 0:
                    self.tell(step, BATCH)
        self.tell(step, count % BATCH)
        return count, digest

    def finish(self, *, resumed: bool) -> Moved:
        """Mark the file as moved."""
        self._set_revision(MOVED)
        rows = _counts(self.file)
        self.file.commit()
        self.tell("moved")
        return Moved(self.source.name, self.target.name, rows, resumed)


@contextmanager
def _both_ends(source_url: str, target_url: str, progress: Progress) -> Iterator[_Ends]:
    """Give both ends, the file in a transaction that no other process has it open beside."""
    source, target = database_of(source_url), database_of(target_url)
    if not isinstance(source, SqliteFile):
        raise LedgerError("only a ledger in a SQLite file can be moved: --from sqlite:////absolute/path/ledger.sqlite3")
    if not isinstance(target, PostgresDatabase):
        raise LedgerError("set LEADWIRE_DATABASE_URL to the PostgreSQL database that the ledger is to move to")
    source.must_exist()
    file_engine, there_engine = source.exclusive(), target.writers(BUSY_TIMEOUT)
    try:
        with _folder_held(source):
            try:
                file = file_engine.connect()
                file.begin()
            except database_faults(file_engine) as error:
                raise LedgerError(
                    f"{source.name} is in use: stop every Leadwire process that works on it (`leadwire up`, ingress, worker) "
                    f"and whatever else has it open ({as_ledger_error(error)})"
                ) from error
            with file, there_engine.connect() as there:
                yield _Ends(source, target, file, there, progress)
    except (*database_faults(file_engine), *database_faults(there_engine)) as error:
        raise as_ledger_error(error) from error
    finally:
        file_engine.dispose()
        there_engine.dispose()


@contextmanager
def _folder_held(source: SqliteFile) -> Iterator[None]:
    """Keep `leadwire up` out of the data folder, where there is one."""
    try:
        descriptor = os.open(source.file.with_name(_LOCK_FILE), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        yield
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise LedgerError(f"{source.file.parent}: a `leadwire up` works here: stop it first") from None
        yield
    finally:
        os.close(descriptor)


def _first_filled(there: Connection) -> str | None:
    """Return the name of a table that has rows."""
    made = set(inspect(there).get_table_names())
    filled = (
        each for each in _TABLES if each.name in made and there.execute(select(each).limit(1)).first() is not None
    )
    return next((table.name for table in filled), None)


def _counts(file: Connection) -> dict[str, int]:
    """Return how many rows each table of the file has."""
    return {table.name: file.execute(select(func.count()).select_from(table)).scalar_one() for table in _TABLES}


def _columns(table: Table) -> str:
    return ", ".join(f'"{column.name}"' for column in table.c)


def _read_file(file: Connection, table: Table) -> _Rows:
    """Read a table of the file, with values as PostgreSQL's driver has them."""
    driver: Any = file.connection.driver_connection
    flags = {place for place, column in enumerate(table.c) if isinstance(column.type, Boolean)}
    cursor = driver.execute(f"SELECT {_columns(table)} FROM {table.name}")  # noqa: S608 - our own names
    try:
        while batch := cursor.fetchmany(BATCH):
            for row in batch:
                yield (
                    tuple(bool(value) if place in flags else value for place, value in enumerate(row)) if flags else row
                )
    finally:
        cursor.close()


def _read_there(there: Connection, table: Table) -> _Rows:
    """Read a table there, a batch at a time."""
    driver: Any = there.connection.driver_connection
    with driver.cursor(name="leadwire_move") as cursor:
        cursor.itersize = BATCH
        cursor.execute(f"SELECT {_columns(table)} FROM {table.name}")  # noqa: S608 - our own names
        yield from cursor

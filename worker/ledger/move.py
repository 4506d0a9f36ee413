"""How a ledger moves from a SQLite file into PostgreSQL: whole, once, and resumable after a crash at any point.

1. The file is taken for ourselves: while any other process has it open, nothing happens.
2. The file is marked as moving, durably; from here on no process works on it.
3. Everything is copied, compared and committed in one transaction there, together with the mark's token.
4. The file is marked as moved.

Whoever finds the mark of step 2 knows by the token whether step 3 stands: then only step 4 is left, else step 3 is done
again. So at every moment there is one ledger that can be used, or one that says how to go on.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from secrets import token_hex
from typing import Any, Final

from sqlalchemy import Boolean, Connection, Engine, Row, Table, func, inspect, select, text

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

#: A table's rows, read a batch at a time.
Rows = Generator[tuple[Any, ...], None, None]

#: In an order in which no row comes before one that it refers to.
TABLES: Final[Sequence[Table]] = metadata.sorted_tables

_LOCK_FILE: Final = "lock"


@dataclass(frozen=True, slots=True)
class Moved:
    """What a move came to: rows by table; `resumed` when an earlier one had been interrupted after its copy stood."""

    source: str
    target: str
    rows: Mapping[str, int]
    resumed: bool


@dataclass(slots=True)
class _Way:
    """How far it is."""

    progress: Progress
    total: int = 0
    done: int = 0

    def passed(self, step: str, rows: int = 0) -> None:
        """Tell that so many more rows are done."""
        self.done += rows
        self.progress(step, self.done, self.total)


@dataclass(frozen=True, slots=True)
class _Ends:
    """Where a ledger goes from and to; `file` is held for ourselves, `there` connected."""

    source: SqliteFile
    target: PostgresDatabase
    file: Connection
    there: Connection

    @property
    def mark(self) -> Row[Any] | None:
        """The mark on the file, if there is one."""
        return self.file.execute(select(moves)).first() if self.revision in {MOVING, MOVED} else None

    @property
    def revision(self) -> str | None:
        """What stands on the file as its schema's revision."""
        return revision_of(self.file)


def move(source_url: str, target_url: str, now: datetime, progress: Progress) -> Moved:
    """Move the ledger in a SQLite file into an empty database of PostgreSQL, or end a move that was interrupted.

    Raises LedgerError while the file is in use, when the database holds anything, and when what arrived is not what was
    sent; then the file can be used as before. After a broken connection its message says to repeat the command.
    """
    way = _Way(progress)
    with _ends(source_url, target_url) as ends:
        mark = ends.mark
        if mark is None:
            upgrade_in(ends.file, ends.source.name)
        ends.file.commit()
        upgrade(ends.target)
        arrived = _arrived(ends)
        if mark is not None and arrived == mark.token:
            return _finish(ends, way, resumed=True)
        _refuse_target(ends, mark, arrived)
        if mark is None:
            mark = _set_mark(ends, now)
        way.passed("mark the file")
        copied = _copy_and_commit(ends, mark, way)
        return _finish(ends, way, resumed=not copied)


def undo(source_url: str, target_url: str, progress: Progress) -> None:
    """Give a move up, also one that was ended: the file can be used again, and the database is empty.

    Raises LedgerError when the ledger there has been worked on since: there would be two.
    """
    way = _Way(progress)
    with _ends(source_url, target_url) as ends:
        mark = ends.mark
        if mark is None:
            raise LedgerError(f"{ends.source.name} has not been moved: there is nothing to undo")
        arrived = _arrived(ends)
        if arrived == mark.token:
            with ends.there.begin():
                _hold_target(ends)
                way.total = 2 * _total(ends.file)
                if _digests(_rows_there(ends.there), way) != _digests(_rows_of(ends.file), way):
                    raise LedgerError(
                        f"the ledger in {ends.target.name} has been worked on since it was moved: undoing that would lose "
                        "or repeat its work; go on there"
                    )
                for table in reversed(TABLES):
                    ends.there.execute(table.delete())
                moves.drop(ends.there)
        elif mark.place != ends.target.name or _first_filled(ends.there) is not None:
            raise LedgerError(
                f"{ends.source.name} went to {mark.place}, and what LEADWIRE_DATABASE_URL names is something else: name that"
            )
        ends.there.rollback()
        way.passed("empty the database")
        ends.file.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": mark.revision})
        moves.drop(ends.file)
        ends.file.commit()


@contextmanager
def _ends(source_url: str, target_url: str) -> Iterator[_Ends]:
    """Give both ends, the file held for ourselves."""
    source, target = database_of(source_url), database_of(target_url)
    if not isinstance(source, SqliteFile):
        raise LedgerError("only a ledger in a SQLite file can be moved: --from sqlite:////absolute/path/ledger.sqlite3")
    if not isinstance(target, PostgresDatabase):
        raise LedgerError("set LEADWIRE_DATABASE_URL to the PostgreSQL database that the ledger is to move to")
    source.must_exist()
    file_engine, there_engine = source.exclusive(), target.writers(BUSY_TIMEOUT)
    try:
        with _folder_held(source), _alone_with(source, file_engine) as file, there_engine.connect() as there:
            yield _Ends(source, target, file, there)
    except (*database_faults(file_engine), *database_faults(there_engine)) as error:
        raise as_ledger_error(error) from error
    finally:
        file_engine.dispose()
        there_engine.dispose()


@contextmanager
def _alone_with(source: SqliteFile, engine: Engine) -> Iterator[Connection]:
    """Give the file, in a transaction that no other process has it open beside."""
    try:
        connection = engine.connect()
        connection.begin()
    except database_faults(engine) as error:
        raise LedgerError(
            f"{source.name} is in use: stop every Leadwire process that works on it (`leadwire up`, ingress, worker) "
            f"and whatever else has it open ({as_ledger_error(error)})"
        ) from error
    with connection:
        yield connection


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


def _arrived(ends: _Ends) -> str | None:
    """Return the token of the ledger that arrived there."""
    with ends.there.begin():
        if not inspect(ends.there).has_table(moves.name):
            return None
        found: str | None = ends.there.execute(select(moves.c.token)).scalar()
        return found


def _refuse_target(ends: _Ends, mark: Row[Any] | None, arrived: str | None) -> None:
    if mark is not None and mark.place != ends.target.name:
        raise LedgerError(
            f"{ends.source.name} went to {mark.place}: name that in LEADWIRE_DATABASE_URL, to end the move or to undo it"
        )
    if mark is not None and ends.revision == MOVED:
        raise LedgerError(f"{ends.source.name} has moved to {mark.place} before, and is not there any more")
    with ends.there.begin():
        filled = _first_filled(ends.there)
    if filled is not None or arrived is not None:
        raise LedgerError(
            f"{ends.target.name} is not empty (its table {filled or moves.name} has rows): "
            "a ledger moves into an empty database only, so that no two become one"
        )


def _first_filled(there: Connection) -> str | None:
    """Return the name of a table that has rows."""
    made = set(inspect(there).get_table_names())
    filled = (each for each in TABLES if each.name in made and there.execute(select(each).limit(1)).first() is not None)
    return next((table.name for table in filled), None)


def _set_mark(ends: _Ends, now: datetime) -> Row[Any]:
    moves.create(ends.file, checkfirst=True)
    ends.file.execute(moves.delete())
    row = {"token": token_hex(16), "place": ends.target.name, "revision": ends.revision, "begun_at": micros(now)}
    ends.file.execute(moves.insert(), row)
    ends.file.execute(text("UPDATE alembic_version SET version_num = :mark"), {"mark": MOVING})
    ends.file.commit()
    mark = ends.mark
    assert mark is not None
    return mark


def _take_mark_away(ends: _Ends, mark: Row[Any]) -> None:
    ends.file.rollback()
    ends.file.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": mark.revision})
    moves.drop(ends.file)
    ends.file.commit()


def _copy_and_commit(ends: _Ends, mark: Row[Any], way: _Way) -> bool:
    """Copy everything; False when it turns out to be there: the commit of an earlier try ended only now."""
    committing = False
    try:
        with ends.there.begin():
            _hold_target(ends)
            if inspect(ends.there).has_table(moves.name):
                if ends.there.execute(select(moves.c.token)).scalar() != mark.token:
                    raise LedgerError(f"{ends.target.name} is not empty any more: another ledger has moved there")
                return False
            _copy(ends, way)
            moves.create(ends.there)
            came = {
                "token": mark.token,
                "place": ends.source.name,
                "revision": mark.revision,
                "begun_at": mark.begun_at,
            }
            ends.there.execute(moves.insert(), came)
            way.passed("commit")
            committing = True
    except BaseException as error:
        if not committing:
            with suppress(Exception):  # the mark then stays, and says how to go on
                _take_mark_away(ends, mark)
            raise
        raise LedgerError(
            f"the connection to {ends.target.name} broke while the copy was committed: repeat the command, which finds out"
        ) from error
    way.passed("committed")
    return True


def _hold_target(ends: _Ends) -> None:
    """Keep everybody else away from the tables there until the transaction ends."""
    ends.target.hold_for_migration(ends.there)
    names = ", ".join(table.name for table in TABLES)
    ends.there.exec_driver_sql(f"LOCK TABLE {names} IN ACCESS EXCLUSIVE MODE")
    ends.there.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
    filled = _first_filled(ends.there)
    if filled is not None and not inspect(ends.there).has_table(moves.name):
        raise LedgerError(f"{ends.target.name} is not empty any more (its table {filled} has rows): who works on it?")


def _copy(ends: _Ends, way: _Way) -> None:
    """Copy every row, then compare what arrived with what was sent."""
    driver: Any = ends.there.connection.driver_connection
    sent: dict[str, tuple[int, int]] = {}
    way.total = 2 * _total(ends.file)
    for table in TABLES:
        names = ", ".join(column.name for column in table.c)
        with driver.cursor() as cursor, cursor.copy(f"COPY {table.name} ({names}) FROM STDIN") as copy:
            sent[table.name] = _digest(f"copy {table.name}", _rows_of(ends.file)(table), way, copy.write_row)
        if "seq" in table.c:  # what is recorded from now on counts on from here
            sequence = f"pg_get_serial_sequence('{table.name}', 'seq')"
            ends.there.exec_driver_sql(
                f"SELECT setval({sequence}, coalesce(max(seq), 0) + 1, false) FROM {table.name}"  # noqa: S608 - our own names
            )
    arrived = _digests(_rows_there(ends.there), way)
    for name, what in sent.items():
        if arrived[name] != what:
            raise LedgerError(
                f"the table {name} did not arrive as it was sent ({arrived[name][0]} of {what[0]} rows, or other content): "
                "nothing was moved"
            )
    ends.there.exec_driver_sql("ANALYZE " + ", ".join(table.name for table in TABLES))


def _finish(ends: _Ends, way: _Way, *, resumed: bool) -> Moved:
    ends.file.execute(text("UPDATE alembic_version SET version_num = :mark"), {"mark": MOVED})
    rows = {table.name: _count(ends.file, table) for table in TABLES}
    ends.file.commit()
    way.passed("moved")
    return Moved(ends.source.name, ends.target.name, rows, resumed)


def _count(connection: Connection, table: Table) -> int:
    return int(connection.execute(select(func.count()).select_from(table)).scalar_one())


def _total(connection: Connection) -> int:
    return sum(_count(connection, table) for table in TABLES)


def _rows_of(file: Connection) -> Callable[[Table], Rows]:
    """Return what reads a table of the file, with values as PostgreSQL's driver has them."""

    def rows(table: Table) -> Rows:
        driver: Any = file.connection.driver_connection
        names = ", ".join(f'"{column.name}"' for column in table.c)
        flags = [place for place, column in enumerate(table.c) if isinstance(column.type, Boolean)]
        cursor = driver.execute(f"SELECT {names} FROM {table.name}")  # noqa: S608 - our own names
        try:
            while batch := cursor.fetchmany(BATCH):
                for row in batch:
                    yield (
                        tuple(bool(value) if place in flags else value for place, value in enumerate(row))
                        if flags
                        else row
                    )
        finally:
            cursor.close()

    return rows


def _rows_there(there: Connection) -> Callable[[Table], Rows]:
    """Return what reads a table there, a batch at a time."""

    def rows(table: Table) -> Rows:
        driver: Any = there.connection.driver_connection
        names = ", ".join(column.name for column in table.c)
        with driver.cursor(name="leadwire_move") as cursor:
            cursor.itersize = BATCH
            cursor.execute(f"SELECT {names} FROM {table.name}")  # noqa: S608 - our own names
            yield from cursor

    return rows


def _digests(rows: Callable[[Table], Rows], way: _Way) -> dict[str, tuple[int, int]]:
    """Return for each table how many rows it has, and a sum over them that does not depend on their order."""
    return {table.name: _digest(f"compare {table.name}", rows(table), way) for table in TABLES}


def _digest(step: str, rows: Rows, way: _Way, use: Callable[[tuple[Any, ...]], None] | None = None) -> tuple[int, int]:
    count = digest = 0
    with closing(rows):
        for row in rows:
            if use is not None:
                use(row)
            own = blake2b(repr(tuple(row)).encode("utf-8", "surrogatepass"), digest_size=16).digest()
            digest = (digest + int.from_bytes(own, "big")) % 2**128
            count += 1
            if count % BATCH == 0:
                way.passed(step, BATCH)
    way.passed(step, count % BATCH)
    return count, digest

"""How a process writes to the ledger: group commit by one thread, and the lock by which processes queue for a SQLite file.

A commit costs an fsync whether it holds one job or a hundred, so the writer thread commits the jobs that wait together. Jobs
of one kind are done by one call, in a savepoint; when that fails each is done in a savepoint of its own, and one that fails is
undone alone. A caller gets its result only after the commit of its group stands; every other end is an exception. A caller
that has waited too long withdraws its job, which then certainly is not written; once the job has begun it is too late to
withdraw, and the caller is told when the outcome is not known (LedgerInDoubtError).

PostgreSQL: every wait for an answer costs a round trip, so a group is first sent as a pipeline, without savepoints, in the
hope that all goes well; when anything does not, it is undone and done again step by step. A server may undo a transaction
for the sake of another one (deadlock, lock time-out). It is certain then that nothing was written, so each job of the group
is tried again alone before its caller is told.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from math import inf
from pathlib import Path
from queue import Empty, SimpleQueue
from secrets import token_hex
from time import monotonic, sleep
from typing import Any, Final, Generic, TypeVar

from sqlalchemy import Connection, Engine

from rules.vocabulary import LedgerBusyError, LedgerError, LedgerInDoubtError
from worker.ledger.counters import TransactionCounters
from worker.ledger.database import (
    BEGIN_WRITE,
    SAVEPOINT,
    as_ledger_error,
    cause_of,
    database_faults,
    is_disconnected,
    may_be_disconnected,
    one_line,
    reading,
)

P = TypeVar("P")
T = TypeVar("T")

#: How long a caller waits for its commit before it withdraws.
WAIT: Final = timedelta(seconds=15)

#: Jobs in one transaction at most: bounds how long other processes wait for the write lock.
GROUP_LIMIT: Final = 256

#: A writer that yields takes no further job into a group that is about so many events or tasks: some 8 ms of work. Those
#: whom it makes wait have their own to do meanwhile: reading a request costs more than writing it.
YIELDING_GROUP_SIZE: Final = 64

#: While jobs come several at a time, the next group waits this long for more of them.
GATHERING: Final = timedelta(milliseconds=2)

#: Others count as writing all the time from this usual wait for the lock on; how much the last wait weighs in it; and how many
#: times as long a writer that yields gathers jobs then.
_CONTENDED_SECONDS: Final = 0.0004
_WEIGHT: Final = 0.2
_PATIENCE: Final = 60

#: Rests before the tries of a job alone, when others were in the way of its group, and how long they are tried in all.
_ALONE_RESTS_SECONDS: Final = (0, 0.02, 0.1)
_ALONE_SECONDS: Final = 5.0

#: What a caller that has waited for too long is told.
WITHDRAWN: Final = "the ledger was busy for too long; nothing was written"
IN_DOUBT: Final = "the ledger's commit takes too long; it is not known whether it was written"
_BROKE_IN_COMMIT: Final = (
    "the connection to the database broke during the commit; it is not known whether it was written"
)


# The lock between processes --------------------------------------------------------------------------------------------


class WriterFileLock:
    """A lock between writing processes of one machine: an operating-system lock on a file beside the SQLite file.

    SQLite allows one writer at a time; one that finds it busy sleeps up to 100 ms and tries again, without a queue. With two
    busy processes most time is lost in such sleeps, and one can starve. The operating system wakes the next writer at once, in
    order, and frees the lock when its holder dies. SQLite's own lock still protects the data.
    """

    #: How long a thread yields at the most: a writer may be held up by the disk, or by SQLite's own lock.
    YIELD_SECONDS: Final = 0.05

    def __init__(self, lock_file: Path) -> None:
        self._descriptor = os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._is_free = threading.Event()
        self._is_free.set()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Wait for the lock and hold it within the block; for the writer thread only."""
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        self._is_free.clear()
        try:
            yield
        finally:
            self._is_free.set()
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def yield_to_writer(self) -> None:
        """Wait until this process does not hold the lock, 50 ms at the most; for any thread but the writing one.

        All other processes wait for the holder, so its other threads leave it the interpreter. Measured with eight that
        deliver: the lock was held for 18 ms instead of 27, and the ingress beside them took a third more events a second.
        """
        if not self._is_free.is_set():
            self._is_free.wait(self.YIELD_SECONDS)

    def close(self) -> None:
        """Close the lock file."""
        os.close(self._descriptor)


# Jobs ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Batchable(Generic[P, T]):
    """A write that can be run together with others of its kind: `run_all` takes their parts, returns one result for each.

    Many rows in one statement cost a remote database little more than one row. `size` is the number of events or tasks in it.
    """

    run_all: Callable[[Connection, Sequence[P]], Sequence[T]]
    part: P
    size: int = 1

    def __call__(self, connection: Connection) -> T:
        """Do this part alone."""
        return self.run_all(connection, [self.part])[0]


def _nothing(_connection: Connection) -> Any:
    """Do nothing, in place of a work that was withdrawn."""


class Job(Generic[T]):
    """One caller's write. Whoever acquires `decided` first decides: the writer starts it, or the caller withdraws it.

    `fault` is what the write raised in the current transaction. `error` is what the caller gets: None (success) only once it is
    committed. `tell` is called with the job when its result is known, in the writer thread; it must return at once and never
    raise.
    """

    __slots__ = ("begun", "decided", "error", "fault", "result", "tell", "work")

    def __init__(self, work: Callable[[Connection], T], tell: Callable[[Job[T]], None]) -> None:
        self.work = work
        self.decided = threading.Lock()
        self.tell = tell
        self.result: T | None = None
        self.fault: BaseException | None = None
        self.error: BaseException | None = LedgerBusyError("the ledger was busy; nothing was written")
        self.begun = False

    def begin(self) -> bool:
        """Start the job; False when its caller has withdrawn it."""
        self.begun = self.begun or self.decided.acquire(blocking=False)
        return self.begun

    def withdraw(self) -> bool:
        """Withdraw the job; False when it has started, so that its end must be awaited."""
        withdrawn = self.decided.acquire(blocking=False)
        if withdrawn:
            self.work = _nothing  # it may stand in line for long: what it held is let go
        return withdrawn

    def outcome(self) -> T:
        """Return the job's result or raise its error; call it only after `tell` was called."""
        if self.error is not None:
            raise self.error
        return self.result  # type: ignore[return-value]  # set before it is told, unless there is an error


# The writer ------------------------------------------------------------------------------------------------------------


class Writer:
    """The writer thread of one ledger; the module's docstring says what it guarantees."""

    def __init__(
        self,
        engine: Engine,
        *,
        wait: timedelta = WAIT,
        lock: WriterFileLock | None = None,
        yielding: timedelta = GATHERING,
    ) -> None:
        """Take the engine to write with; `lock` orders the writers of several processes where the engine does not.

        While others write all the time, a group is given up to `yielding` to grow before it asks for the lock, and no more
        than `YIELDING_GROUP_SIZE`: who can wait leaves others most of the time, and makes them wait for a moment only.
        """
        self._engine = engine
        self._lock = lock
        self._yielding_seconds = yielding.total_seconds()
        self._size_limit = YIELDING_GROUP_SIZE if lock and yielding > GATHERING else inf
        self._waited_seconds = 0.0
        self._faults = database_faults(engine)
        self._wait_seconds = wait.total_seconds()
        self._queue: SimpleQueue[Job[Any] | None] = SimpleQueue()
        self._gate = threading.Lock()
        self._closed = False
        self._counters = TransactionCounters(token_hex(6))
        self._connection: Connection | None = None
        self._thread = threading.Thread(target=self._run, name="leadwire-ledger-writer", daemon=True)
        self._thread.start()

    def write(self, work: Callable[[Connection], T], *, wait: timedelta | None = None) -> T:
        """Run `work` in a transaction and return its result after the commit.

        `wait` bounds the time until it starts, and again the time until it ends. `work` may be rolled back and run again, so it
        must change nothing but rows. Raises what `work` raised, LedgerBusyError when the transaction could not be committed,
        LedgerError for other database faults or when the writer is closed.
        """
        done = threading.Lock()
        done.acquire()
        job = self.submit(work, lambda _: done.release())
        wait_seconds = self._wait_seconds if wait is None else wait.total_seconds()
        if not done.acquire(timeout=wait_seconds):
            if job.withdraw():
                raise LedgerBusyError(WITHDRAWN)
            if not done.acquire(timeout=wait_seconds):
                raise LedgerInDoubtError(IN_DOUBT)
        return job.outcome()

    def submit(self, work: Callable[[Connection], T], tell: Callable[[Job[T]], None]) -> Job[T]:
        """Queue `work` and return its Job; `tell` is called when it has ended. For callers whose thread must not block.

        The caller bounds the wait itself: `withdraw` works until the job has started. Raises LedgerError when closed.
        """
        job = Job(work, tell)
        with self._gate:
            if self._closed:
                raise LedgerError("the ledger is closed")
            self._queue.put(job)
        return job

    def yield_to_writer(self) -> None:
        """Wait, for 50 ms at most, while this process holds the lock between writing processes."""
        if self._lock is not None:
            self._lock.yield_to_writer()

    def close(self) -> None:
        """Commit the queued writes, refuse later ones, and end the thread."""
        with self._gate:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        was_grouped = False
        open_ = True
        while open_:
            first = self._queue.get()
            if first is None:
                break
            if self._waited_seconds > _CONTENDED_SECONDS:
                sleep(min(self._yielding_seconds, _PATIENCE * self._waited_seconds))
            elif was_grouped:
                sleep(GATHERING.total_seconds())
            group: list[Job[Any]] = [first]
            try:
                with self._locked():
                    # Only now, with the lock in hand: what came while others wrote goes along.
                    open_ = self._join(group)
                    if not self._write_pipelined(group):
                        self._write_step_by_step(group)
            except BaseException as error:  # noqa: BLE001 - the thread survives everything; the callers are told
                self._failed(group, error)
            was_grouped = len(group) > 1
            for job in group:
                job.tell(job)
        self._disconnect()
        self._engine.dispose()
        if self._lock:
            self._lock.close()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Wait for the lock, where there is one, and note how long that usually takes."""
        if self._lock is None:
            yield
            return
        asked_seconds = monotonic()
        with self._lock.held():
            self._waited_seconds += _WEIGHT * (monotonic() - asked_seconds - self._waited_seconds)
            yield

    def _join(self, group: list[Job[Any]]) -> bool:
        """Add all jobs that wait to a group; False when the writer is to end after them."""
        size = _size_of(group[0])
        with suppress(Empty):
            while len(group) < GROUP_LIMIT and size < self._size_limit:
                job = self._queue.get_nowait()
                if job is None:
                    return False
                group.append(job)
                size += _size_of(job)
        return True

    def _failed(self, group: list[Job[Any]], error: BaseException) -> None:
        """Try each job of a group alone that was undone for the sake of others; else tell its callers."""
        if not _is_passing(error):
            self._disconnect()
            fault = _not_committed(error)
            for job in group:
                job.error = fault
            return
        self._undo()
        give_up_seconds = monotonic() + _ALONE_SECONDS
        for rest_seconds in _ALONE_RESTS_SECONDS:
            if not group:
                break
            sleep(rest_seconds)
            group = [job for job in group if monotonic() > give_up_seconds or not self._ended_alone(job)]
        for job in group:
            job.error = LedgerBusyError("the ledger was busy: others held what this needs; nothing was written")

    def _ended_alone(self, job: Job[Any]) -> bool:
        """Try a job alone; say whether that is its end, be it good or bad."""
        try:
            self._write_step_by_step([job], hurry=True)
        except BaseException as error:  # noqa: BLE001 - as in `_run`
            if _is_passing(error):
                self._undo()
                return False
            self._disconnect()
            job.error = _not_committed(error)
        return True

    def _write_step_by_step(self, group: list[Job[Any]], *, hurry: bool = False) -> None:
        """Run and commit jobs, each kind in a savepoint; `hurry` bounds the wait for what others hold.

        Raises when the transaction as a whole failed: no caller may count on it then.
        """
        connection = self._connected()
        connection.begin()
        self._counters.begin(connection)
        driver: Any = connection.connection.driver_connection
        if hurry and not _is_sqlite(driver):
            driver.execute(f"SET LOCAL lock_timeout = {_HURRY_MILLISECONDS}", prepare=False)
        for place, batch in enumerate(_batches(group)):
            if place:
                _move_savepoint(driver)
            self._do(connection, driver, batch)
        if not _can_commit(driver):
            raise LedgerBusyError("the storage rolled the transaction back")
        self._counters.write(connection)
        try:
            connection.commit()
        except self._faults as error:
            if _is_lost(driver, error):
                raise LedgerInDoubtError(_BROKE_IN_COMMIT) from error
            raise
        _succeed(group)

    def _write_pipelined(self, group: list[Job[Any]]) -> bool:
        """Run and commit jobs with as few waits as a server and these works allow, hoping that all goes well.

        False: it did not, or cannot be tried, and nothing was written. Raises when trying the group again is no use.
        """
        connection = self._connected()
        driver: Any = connection.connection.driver_connection
        if _is_sqlite(driver) or not all(isinstance(job.work, Batchable) for job in group):
            return False
        self._counters.begin(connection)
        committing = False
        try:
            with _pipeline(driver):
                for batch in _batches(group):
                    _run(connection, batch)
                self._counters.write(connection)
                committing = True
        except Exception as error:
            if _is_lost(driver, error):
                if committing:
                    raise LedgerInDoubtError(_BROKE_IN_COMMIT) from error
                raise
            if driver.pgconn.transaction_status != _IDLE:
                driver.execute("ROLLBACK", prepare=False)
            if _is_passing(error):
                raise
            return False
        _succeed(group)
        return True

    def _do(self, connection: Connection, driver: Any, batch: list[Job[Any]]) -> None:
        """Do jobs of one kind together, and when that fails each by itself."""
        counted = self._counters.mark()
        try:
            _run(connection, batch)
        except BaseException as error:  # it belongs to its caller, not to its neighbours
            if _is_passing(error) or not _is_open(driver):
                raise  # a fault that ended the transaction of all, such as a full disk
            driver.execute(f"ROLLBACK TO SAVEPOINT {SAVEPOINT}").close()
            self._counters.back_to(counted)
            if len(batch) == 1:
                batch[0].fault = as_ledger_error(error) if isinstance(error, self._faults) else error
                return
            for job in batch:
                self._do(connection, driver, [job])
                _move_savepoint(driver)

    def _connected(self) -> Connection:
        """Return the connection, another one when it has ended while nobody wrote."""
        if self._connection is not None:
            driver: Any = self._connection.connection.driver_connection
            if not _is_sqlite(driver) and may_be_disconnected(driver):
                self._disconnect()
        if self._connection is None:
            self._connection = self._engine.connect()
        return self._connection

    def _undo(self) -> None:
        """Make the connection ready for the next transaction."""
        try:
            if self._connection is not None:
                self._connection.rollback()
        except Exception:  # noqa: BLE001 - whatever is wrong with it, another one takes its place
            self._disconnect()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        with suppress(Exception):  # it is thrown away because it is broken, or because all is done
            connection.invalidate()
            connection.close()


class LedgerGroup:
    """Base of the ledger's groups of methods: reads use `readers`, writes go through the process's one writer."""

    def __init__(self, readers: Engine, writer: Writer) -> None:
        self._readers = readers
        self._writer = writer

    def _read(self, read: Callable[[Connection], T]) -> T:
        """Return what `read` finds on a connection that cannot write."""
        with reading(self._readers) as connection:
            return read(connection)


def _size_of(job: Job[Any]) -> int:
    return job.work.size if isinstance(job.work, Batchable) else 1


def _batches(group: list[Job[Any]]) -> list[list[Job[Any]]]:
    """Begin jobs and return them by kind, in the order of coming; one whose work is of no kind stands by itself."""
    found: dict[Any, list[Job[Any]]] = {}
    for job in group:
        if job.begin():
            kind = job.work.run_all if isinstance(job.work, Batchable) else job
            found.setdefault(kind, []).append(job)
    return list(found.values())


def _run(connection: Connection, batch: list[Job[Any]]) -> None:
    for job in batch:
        job.fault = None  # of an earlier try
    first = batch[0].work
    if len(batch) == 1 or not isinstance(first, Batchable):
        batch[0].result = first(connection)
        return
    results = first.run_all(connection, [job.work.part for job in batch if isinstance(job.work, Batchable)])
    for job, result in zip(batch, results, strict=True):
        job.result = result


def _succeed(group: list[Job[Any]]) -> None:
    """Give the jobs that were begun what they came to: their transaction is committed."""
    for job in group:
        if job.begun:
            job.error = job.fault


def _not_committed(error: BaseException) -> LedgerError:
    if isinstance(error, LedgerError):
        return error
    return LedgerBusyError(f"the ledger could not commit: {one_line(cause_of(error))}")


# How a transaction stands and moves on, as each driver tells and does it -----------------------------------------------

#: libpq's states of a transaction (PGTransactionStatusType): in none, in one, and in one that a failed statement has spoilt.
_IDLE: Final = 0
_IN_TRANSACTION: Final = 2
_IN_ERROR: Final = 3

#: Serialization failure, deadlock, lock not available in time: undone by the server because somebody else was in the way.
_PASSING: Final = frozenset({"40001", "40P01", "55P03"})

#: How long a job that is tried alone waits for what others hold: others wait behind it.
_HURRY_MILLISECONDS: Final = 500

_RELEASE: Final = f"RELEASE SAVEPOINT {SAVEPOINT}"
_SAVEPOINT: Final = f"SAVEPOINT {SAVEPOINT}"


def _is_sqlite(driver: Any) -> bool:
    return hasattr(driver, "in_transaction")


def _move_savepoint(driver: Any) -> None:
    """Move the savepoint on: what was done so far stands with the transaction."""
    if _is_sqlite(driver):
        for command in (_RELEASE, _SAVEPOINT):
            driver.execute(command).close()
    else:
        driver.execute(f"{_RELEASE}; {_SAVEPOINT}", prepare=False)


def _is_open(driver: Any) -> bool:
    """Whether the transaction can go on, be it from its savepoint: SQLite ends it by itself on some faults."""
    if _is_sqlite(driver):
        return bool(driver.in_transaction)
    return driver.pgconn.transaction_status in {_IN_TRANSACTION, _IN_ERROR}


def _can_commit(driver: Any) -> bool:
    """Whether a commit would commit what was done.

    PostgreSQL commits a spoilt transaction with a rollback that looks like a success. SQLite takes the savepoint of a
    transaction that is not there any more for a new one; releasing it shows that.
    """
    if not _is_sqlite(driver):
        return bool(driver.pgconn.transaction_status == _IN_TRANSACTION)
    if driver.in_transaction:
        driver.execute(_RELEASE).close()
    return bool(driver.in_transaction)


@contextmanager
def _pipeline(driver: Any) -> Iterator[None]:
    """Give a transaction of PostgreSQL whose statements are sent without waiting for each, unless its result is asked for.

    It is committed at the end, or an exception is raised. One that is raised on a connection that still stands means that
    nothing was written: the server skips what follows a fault, a commit too.
    """
    with driver.pipeline():
        driver.execute(BEGIN_WRITE)
        yield
        commit = driver.execute("COMMIT")
    if commit.statusmessage != "COMMIT":
        raise LedgerBusyError(f"the storage answered the commit with {commit.statusmessage}")


def _is_lost(driver: Any, error: BaseException) -> bool:
    """Whether the connection to a server broke when this fault came up."""
    return not _is_sqlite(driver) and is_disconnected(driver, cause_of(error))


def _is_passing(error: BaseException) -> bool:
    """Whether the server has undone the transaction for the sake of another one: tried again, it may well stand."""
    return getattr(cause_of(error), "sqlstate", None) in _PASSING

"""How a process writes: one thread that groups the waiting jobs into one transaction.

A commit costs an fsync whether it holds one job or a hundred, so grouping is what makes `synchronous=FULL` fast. Each job
runs in a savepoint of its own: one that fails is undone alone. A caller gets its result only after the commit of its
group stands; every other end is an exception. A caller that has waited too long withdraws its job, which then certainly is
not written; once the job has begun it is too late to withdraw, and the caller is told when the outcome is not known.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext, suppress
from datetime import timedelta
from queue import Empty, SimpleQueue
from time import sleep
from typing import Any, Final, Generic, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from rules.vocabulary import LedgerBusyError, LedgerError
from worker.ledger.engine import as_ledger_error, storage_faults
from worker.ledger.turnstile import Turnstile

T = TypeVar("T")

#: How long a caller waits for its commit before it withdraws.
WAIT: Final = timedelta(seconds=15)

#: Jobs in one transaction at most: bounds how long other processes wait for the write lock.
GROUP_LIMIT: Final = 256

#: While jobs come in company, the next group waits this long for more of them.
GATHERING: Final = timedelta(milliseconds=1)


class _Job(Generic[T]):
    """One caller's work. Whoever takes `turn` first decides: the writer begins it, or the caller withdraws it."""

    __slots__ = ("done", "error", "result", "turn", "work")

    def __init__(self, work: Callable[[Connection], T]) -> None:
        self.work = work
        self.turn = threading.Lock()
        self.done = threading.Lock()
        self.done.acquire()
        self.result: T | None = None
        self.error: BaseException | None = None


class Writer:
    """The writing thread of one ledger; see the module's docstring for what it promises."""

    def __init__(self, engine: Engine, *, wait: timedelta = WAIT, turnstile: Turnstile | None = None) -> None:
        """Take the engine to write with; `turnstile` orders the writers of several processes where the engine does not."""
        self._engine = engine
        self._turnstile = turnstile
        self._faults = storage_faults(engine)
        self._wait_seconds = wait.total_seconds()
        self._queue: SimpleQueue[_Job[Any] | None] = SimpleQueue()
        self._gate = threading.Lock()
        self._closed = False
        self._connection: Connection | None = None
        self._thread = threading.Thread(target=self._run, name="leadwire-ledger-writer", daemon=True)
        self._thread.start()

    def write(self, work: Callable[[Connection], T], *, wait: timedelta | None = None) -> T:
        """Run `work` in a transaction and return its result once the commit stands.

        `wait` bounds the wait for its beginning, and again the wait for its end. `work` may be undone and is never run
        twice. Raises what `work` raised, LedgerBusyError when the transaction could not be committed, LedgerError for other
        faults of the storage or when closed.
        """
        job = _Job(work)
        wait_seconds = self._wait_seconds if wait is None else wait.total_seconds()
        with self._gate:
            if self._closed:
                raise LedgerError("the ledger is closed")
            self._queue.put(job)
        if not job.done.acquire(timeout=wait_seconds):
            if job.turn.acquire(blocking=False):
                raise LedgerBusyError("the ledger was busy for too long; nothing was written")
            if not job.done.acquire(timeout=wait_seconds):
                raise LedgerBusyError("the ledger's commit takes too long; it is not known whether it was written")
        if job.error is not None:
            raise job.error
        return job.result  # type: ignore[return-value]  # set before `done`, unless there is an error

    def close(self) -> None:
        """Commit what is waiting, refuse what comes later, and end the thread."""
        with self._gate:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        company = False
        open_ = True
        while open_:
            group, open_ = self._next_group(gather=company)
            company = len(group) > 1
            try:
                with self._turnstile.turn() if self._turnstile else nullcontext():
                    self._commit(group)
            except BaseException as error:  # noqa: BLE001 - the thread survives everything; the callers are told
                self._let_go()
                fault = _not_committed(error)
                for job in group:
                    job.error = fault
            for job in group:
                job.done.release()
        self._let_go()
        self._engine.dispose()
        if self._turnstile:
            self._turnstile.close()

    def _next_group(self, *, gather: bool) -> tuple[list[_Job[Any]], bool]:
        """Wait for a job, then take all that wait; the flag is False when the writer is to end after them."""
        group: list[_Job[Any]] = []
        job = self._queue.get()
        if gather and job is not None:
            sleep(GATHERING.total_seconds())
        while job is not None:
            group.append(job)
            if len(group) == GROUP_LIMIT:
                return group, True
            try:
                job = self._queue.get_nowait()
            except Empty:
                return group, True
        return group, False

    def _commit(self, group: list[_Job[Any]]) -> None:
        """Run and commit a group. Raises when the transaction as a whole failed: no caller may count on it then."""
        if not group:
            return
        if self._connection is None:
            self._connection = self._engine.connect()
        connection = self._connection
        connection.begin()
        driver: Any = connection.connection.driver_connection
        for job in group:
            if not job.turn.acquire(blocking=False):
                continue  # withdrawn: nobody waits for it any more
            driver.execute("SAVEPOINT job")
            try:
                job.result = job.work(connection)
            except BaseException as error:  # it belongs to its caller, not to its neighbours
                job.error = as_ledger_error(error) if isinstance(error, self._faults) else error
                if not _is_open(driver):
                    raise  # a fault that ended the transaction of all, such as a full disk
                driver.execute("ROLLBACK TO SAVEPOINT job")
            driver.execute("RELEASE SAVEPOINT job")
        if not _is_open(driver):
            raise LedgerBusyError("the storage rolled the transaction back")
        connection.commit()

    def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        with suppress(Exception):  # it is thrown away because it is broken, or because all is done
            connection.invalidate()
            connection.close()


def _is_open(driver: Any) -> bool:
    """Whether the transaction still stands: SQLite ends it by itself on some faults, and a commit then does nothing."""
    return bool(getattr(driver, "in_transaction", True))


def _not_committed(error: BaseException) -> LedgerError:
    cause = error.orig if isinstance(error, DBAPIError) else error
    return LedgerBusyError(f"the ledger could not commit: {cause}")

"""How a process writes: one thread that groups the waiting jobs into one transaction.

A commit costs an fsync whether it holds one job or a hundred, so grouping is what makes it fast to sync every one. Jobs of
one kind are done together, in a savepoint; when that fails each is done in a savepoint of its own, and one that fails is
undone alone. A caller gets its result only after the commit of its group stands; every other end is an exception. A caller
that has waited too long withdraws its job, which then certainly is not written; once the job has begun it is too late to
withdraw, and the caller is told when the outcome is not known.

With a server every wait for an answer costs a round trip, so a group is first sent in a row, without savepoints, in the
hope that all goes well; when anything does not, it is undone and done again step by step.

A server undoes a transaction for the sake of another one (deadlock, lock time-out). It is certain then that nothing was
written, so each job of the group is tried again alone before its caller is told.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from math import inf
from queue import Empty, SimpleQueue
from secrets import token_hex
from time import monotonic, sleep
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Engine

from rules.vocabulary import LedgerBusyError, LedgerError, LedgerInDoubtError
from worker.ledger import transactions
from worker.ledger.counters import Tallies
from worker.ledger.engine import as_ledger_error, cause_of, in_a_line, storage_faults
from worker.ledger.turnstile import WriterFileLock
from worker.ledger.work import Job, Shared, size_of

T = TypeVar("T")

#: How long a caller waits for its commit before it withdraws.
WAIT: Final = timedelta(seconds=15)

#: Jobs in one transaction at most: bounds how long other processes wait for the write lock.
GROUP_LIMIT: Final = 256

#: Where a writer yields, its turn takes no further job once what it has is about so many events or tasks: some 8 ms of work.
#: Meanwhile those whom it makes wait have their own to do: reading a request costs more than writing it.
TURN_SIZE: Final = 64

#: While jobs come in company, the next group waits this long for more of them.
GATHERING: Final = timedelta(milliseconds=2)

#: The usual wait for the turn from which on others count as writing all the time; how much the last wait weighs in it, and how
#: many times as long a writer that yields waits for company.
CROWDED: Final = timedelta(microseconds=400)
_WEIGHT: Final = 0.2
_PATIENCE: Final = 60

#: Rests before the tries of a job alone, when others were in the way of its group.
ALONE_PAUSES: Final = (timedelta(0), timedelta(milliseconds=20), timedelta(milliseconds=100))
#: How long the jobs of such a group are tried in all: others wait behind them.
ALONE: Final = timedelta(seconds=5)

#: What a caller that has waited for too long is told.
WITHDRAWN: Final = "the ledger was busy for too long; nothing was written"
IN_DOUBT: Final = "the ledger's commit takes too long; it is not known whether it was written"
_BROKE_IN_COMMIT: Final = (
    "the connection to the database broke during the commit; it is not known whether it was written"
)


class Writer:
    """The writing thread of one ledger; see the module's docstring for what it promises."""

    def __init__(
        self,
        engine: Engine,
        *,
        wait: timedelta = WAIT,
        turnstile: WriterFileLock | None = None,
        yielding: timedelta = GATHERING,
    ) -> None:
        """Take the engine to write with; `turnstile` orders the writers of several processes where the engine does not.

        While others write all the time, a group is given up to `yielding` to grow before it asks for the turn, and no more
        than `TURN_SIZE`: who can wait leaves others most of the time, and makes them wait for a moment only.
        """
        self._engine = engine
        self._turnstile = turnstile
        self._yielding_seconds = yielding.total_seconds()
        self._turn_size = TURN_SIZE if turnstile and yielding > GATHERING else inf
        self._waited_seconds = 0.0
        self._faults = storage_faults(engine)
        self._wait_seconds = wait.total_seconds()
        self._queue: SimpleQueue[Job[Any] | None] = SimpleQueue()
        self._gate = threading.Lock()
        self._closed = False
        self._tallies = Tallies(token_hex(6))
        self._connection: Connection | None = None
        self._thread = threading.Thread(target=self._run, name="leadwire-ledger-writer", daemon=True)
        self._thread.start()

    def write(self, work: Callable[[Connection], T], *, wait: timedelta | None = None) -> T:
        """Run `work` in a transaction and return its result once the commit stands.

        `wait` bounds the wait for its beginning, and again the wait for its end. `work` may be undone and run again. Raises
        what `work` raised, LedgerBusyError when the transaction could not be committed, LedgerError for other faults of the
        storage or when closed.
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
        """Have `work` run in a transaction and `tell` called at its end; for callers that cannot wait in their thread.

        They bound the wait themselves, as `write` does: `withdraw` as long as it has not begun. Raises LedgerError when closed.
        """
        job = Job(work, tell)
        with self._gate:
            if self._closed:
                raise LedgerError("the ledger is closed")
            self._queue.put(job)
        return job

    def give_way(self) -> None:
        """Wait, for milliseconds, while this process has the turn that the writers of others wait for."""
        if self._turnstile is not None:
            self._turnstile.give_way()

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
            first = self._queue.get()
            if first is None:
                break
            if self._waited_seconds > CROWDED.total_seconds():
                sleep(min(self._yielding_seconds, _PATIENCE * self._waited_seconds))
            elif company:
                sleep(GATHERING.total_seconds())
            group: list[Job[Any]] = [first]
            try:
                with self._turn():
                    # Only now, with the turn in hand: what came while others wrote goes along.
                    open_ = self._join(group)
                    self._write(group)
            except BaseException as error:  # noqa: BLE001 - the thread survives everything; the callers are told
                self._failed(group, error)
            company = len(group) > 1
            for job in group:
                job.tell(job)
        self._let_go()
        self._engine.dispose()
        if self._turnstile:
            self._turnstile.close()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait for the turn, where there are turns, and note how long that usually takes."""
        if self._turnstile is None:
            yield
            return
        asked_seconds = monotonic()
        with self._turnstile.turn():
            self._waited_seconds += _WEIGHT * (monotonic() - asked_seconds - self._waited_seconds)
            yield

    def _join(self, group: list[Job[Any]]) -> bool:
        """Add all jobs that wait to a group; False when the writer is to end after them."""
        size = size_of(group[0].work)
        with suppress(Empty):
            while len(group) < GROUP_LIMIT and size < self._turn_size:
                job = self._queue.get_nowait()
                if job is None:
                    return False
                group.append(job)
                size += size_of(job.work)
        return True

    def _failed(self, group: list[Job[Any]], error: BaseException) -> None:
        """Try each job of a group alone that was undone for the sake of others; else tell its callers."""
        if transactions.passes(error):
            self._undo()
            self._one_by_one(group)
            return
        self._let_go()
        fault = _not_committed(error)
        for job in group:
            job.error = fault

    def _one_by_one(self, group: list[Job[Any]]) -> None:
        """Try each job of a group alone whose transaction was undone for the sake of another one."""
        give_up_seconds = monotonic() + ALONE.total_seconds()
        left = group
        for pause in ALONE_PAUSES:
            sleep(pause.total_seconds())
            left = [job for job in left if monotonic() > give_up_seconds or not self._is_over(job)]
        for job in left:
            job.error = LedgerBusyError("the ledger was busy: others held what this needs; nothing was written")

    def _is_over(self, job: Job[Any]) -> bool:
        """Try a job alone; say whether that is its end, be it good or bad."""
        try:
            self._write_step_by_step([job], hurry=True)
        except BaseException as error:  # noqa: BLE001 - as in `_run`
            if transactions.passes(error):
                self._undo()
                return False
            self._let_go()
            job.error = _not_committed(error)
        return True

    def _write(self, group: list[Job[Any]]) -> None:
        """Run and commit jobs. Raises when the transaction as a whole failed: no caller may count on it then."""
        if not self._write_in_a_row(group):
            self._write_step_by_step(group)

    def _write_step_by_step(self, group: list[Job[Any]], *, hurry: bool = False) -> None:
        """Run and commit jobs, each kind in a savepoint; `hurry` bounds the wait for what others hold."""
        connection = self._connected()
        connection.begin()
        self._tallies.begin(connection)
        driver: Any = connection.connection.driver_connection
        if hurry:
            transactions.hurry(driver)
        for place, batch in enumerate(_batches(group)):
            if place:
                transactions.keep(driver)
            self._do(connection, driver, batch)
        if not transactions.can_commit(driver):
            raise LedgerBusyError("the storage rolled the transaction back")
        self._tallies.write(connection)
        try:
            connection.commit()
        except self._faults as error:
            if transactions.is_lost(driver, error):
                raise LedgerInDoubtError(_BROKE_IN_COMMIT) from error
            raise
        _stand(group)

    def _write_in_a_row(self, group: list[Job[Any]]) -> bool:
        """Run and commit jobs with as few waits as a server and these works allow, hoping that all goes well.

        False: it did not, or cannot be tried, and nothing was written. Raises when trying the group again is no use.
        """
        connection = self._connected()
        driver: Any = connection.connection.driver_connection
        if not transactions.sends_in_a_row(driver) or not all(isinstance(job.work, Shared) for job in group):
            return False
        self._tallies.begin(connection)
        committing = False
        try:
            with transactions.in_a_row(driver):
                for batch in _batches(group):
                    _run(connection, batch)
                self._tallies.write(connection)
                committing = True
        except Exception as error:
            if transactions.is_lost(driver, error):
                if committing:
                    raise LedgerInDoubtError(_BROKE_IN_COMMIT) from error
                raise
            transactions.roll_back(driver)
            if transactions.passes(error):
                raise
            return False
        _stand(group)
        return True

    def _connected(self) -> Connection:
        """Return the connection, another one when it has ended while nobody wrote."""
        if self._connection is not None and transactions.is_stale(self._connection.connection.driver_connection):
            self._let_go()
        if self._connection is None:
            self._connection = self._engine.connect()
        return self._connection

    def _do(self, connection: Connection, driver: Any, batch: list[Job[Any]]) -> None:
        """Do jobs of one kind together, and when that fails each by itself."""
        counted = self._tallies.mark()
        try:
            _run(connection, batch)
        except BaseException as error:  # it belongs to its caller, not to its neighbours
            if transactions.passes(error) or not transactions.is_open(driver):
                raise  # a fault that ended the transaction of all, such as a full disk
            transactions.go_back(driver)
            self._tallies.back_to(counted)
            if len(batch) == 1:
                batch[0].fault = as_ledger_error(error) if isinstance(error, self._faults) else error
                return
            for job in batch:
                self._do(connection, driver, [job])
                transactions.keep(driver)

    def _undo(self) -> None:
        """Make the connection ready for the next transaction."""
        try:
            if self._connection is not None:
                self._connection.rollback()
        except Exception:  # noqa: BLE001 - whatever is wrong with it, another one takes its place
            self._let_go()

    def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        with suppress(Exception):  # it is thrown away because it is broken, or because all is done
            connection.invalidate()
            connection.close()


def _batches(group: list[Job[Any]]) -> list[list[Job[Any]]]:
    """Begin jobs and return them by kind, in the order of coming; one whose work is of no kind stands by itself."""
    found: dict[Any, list[Job[Any]]] = {}
    for job in group:
        if not job.begin():
            continue
        kind = job.work.act if isinstance(job.work, Shared) else job
        found.setdefault(kind, []).append(job)
    return list(found.values())


def _run(connection: Connection, batch: list[Job[Any]]) -> None:
    for job in batch:
        job.fault = None  # of an earlier try
    first = batch[0].work
    if len(batch) == 1 or not isinstance(first, Shared):
        batch[0].result = first(connection)
        return
    results = first.act(connection, [job.work.part for job in batch if isinstance(job.work, Shared)])
    for job, result in zip(batch, results, strict=True):
        job.result = result


def _stand(group: list[Job[Any]]) -> None:
    """Give the jobs that were begun what they came to: their transaction is committed."""
    for job in group:
        if job.begun:
            job.error = job.fault


def _not_committed(error: BaseException) -> LedgerError:
    if isinstance(error, LedgerError):
        return error
    return LedgerBusyError(f"the ledger could not commit: {in_a_line(cause_of(error))}")

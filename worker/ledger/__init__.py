"""The ledger: what came in, what was decided, and what became of it. Durable, and nothing in it happens twice.

It stands in a SQLite file or a PostgreSQL database. Its methods stand in groups, each beside its SQL:
`ledger.inbox.record(...)`, `ledger.tasks.claim(...)`, `ledger.limits.pause(...)`, `ledger.queries.list_tasks(...)`.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from sqlalchemy import Engine

from worker.ledger.admin import CANCELLED_STATES, RETRIED_STATES, LedgerAdmin, why_not_cancelled, why_not_retried
from worker.ledger.database import BUSY_TIMEOUT, database_of, reading
from worker.ledger.follow_ups import LedgerFollowUps
from worker.ledger.inbox import PROBE_WAIT, LedgerInbox, probe
from worker.ledger.limits import LedgerLimits
from worker.ledger.migrations import refuse_other_revision, upgrade
from worker.ledger.queries import Due, EventSelection, LedgerQueries, Measures, TaskSelection, Workload
from worker.ledger.reconciliation import LedgerOutcomes, LedgerReconciliation
from worker.ledger.replay import Replayed, never_sent, renamed, why_not_replayed
from worker.ledger.rule_sets import LedgerRuleSets
from worker.ledger.tasks import LedgerTasks
from worker.ledger.types import (
    UNTIL_RESUMED,
    AttemptRow,
    Claim,
    ClaimTerms,
    Counts,
    Delivery,
    Held,
    IncomingEvent,
    Limits,
    NotClaimed,
    PauseKind,
    PendingReconciliation,
    Poll,
    ProviderState,
    Reaction,
    Recorded,
    Settlement,
    StoredEvent,
    StoredTask,
    TaskRef,
)
from worker.ledger.writer import GATHERING, WAIT, Job, Writer, WriterFileLock

if TYPE_CHECKING:
    from worker.ledger.move import Moved, Progress

__all__ = [
    "CANCELLED_STATES",
    "RETRIED_STATES",
    "UNTIL_RESUMED",
    "AttemptRow",
    "Claim",
    "ClaimTerms",
    "Counts",
    "Delivery",
    "Due",
    "EventSelection",
    "Held",
    "IncomingEvent",
    "Job",
    "Ledger",
    "Limits",
    "Measures",
    "NotClaimed",
    "PauseKind",
    "PendingReconciliation",
    "Poll",
    "ProviderState",
    "Reaction",
    "Recorded",
    "Replayed",
    "Settlement",
    "StoredEvent",
    "StoredTask",
    "TaskRef",
    "TaskSelection",
    "Workload",
    "migrate",
    "move_ledger",
    "never_sent",
    "open_ledger",
    "renamed",
    "undo_move",
    "why_not_cancelled",
    "why_not_replayed",
    "why_not_retried",
]


class Ledger:
    """One open ledger, one for each process. Open it after forking: neither connections nor the writer thread survive a fork.

    Each method of its groups (`inbox`, `tasks`, ...) is one transaction. Writes go through the writer thread and return when
    their commit is on disk. Reads use pooled connections and never wait for a writer. Every method may raise LedgerBusyError
    when the ledger cannot be used right now, and LedgerError for other faults of the database. After LedgerBusyError the change
    was not made; after its subclass LedgerInDoubtError it is not known whether it was made.
    """

    def __init__(self, readers: Engine, writer: Writer) -> None:
        self._readers = readers
        self._writer = writer
        #: Deliveries and events.
        self.inbox = LedgerInbox(readers, writer)
        #: Tasks from their plan to their end.
        self.tasks = LedgerTasks(readers, writer)
        #: How much each provider may get, and when it is left alone.
        self.limits = LedgerLimits(readers, writer)
        #: Tasks of which nobody knows whether they were executed.
        self.reconciliation = LedgerReconciliation(readers, writer)
        #: What became of delivered tasks at their provider.
        self.outcomes = LedgerOutcomes(readers, writer)
        #: What rules want to follow on the end of a task.
        self.follow_ups = LedgerFollowUps(readers, writer)
        #: The rule sets that were in force.
        self.rule_sets = LedgerRuleSets(readers, writer)
        #: What a person or a page looks at.
        self.queries = LedgerQueries(readers, writer)
        #: What a person decides.
        self.admin = LedgerAdmin(readers, writer)

    def check_writable(self) -> None:
        """Commit a write and its removal. Raises LedgerBusyError when that cannot be done now."""
        self._writer.write(probe, wait=PROBE_WAIT)

    def yield_to_writer(self) -> None:
        """Wait, for 50 ms at most, while this process holds the write lock; for other threads before a long computation."""
        self._writer.yield_to_writer()

    def close(self) -> None:
        """Commit the writes that are queued, then close every connection."""
        self._writer.close()
        self._readers.dispose()


def open_ledger(
    url: str, *, busy_timeout: timedelta = BUSY_TIMEOUT, wait: timedelta = WAIT, yielding: timedelta = GATHERING
) -> Ledger:
    """Open the ledger at a URL: `sqlite:////var/lib/leadwire/ledger.sqlite3`, `postgresql://USER:PASSWORD@HOST:PORT/DATABASE`.

    `busy_timeout` bounds the wait for other processes' writes, `wait` a caller's wait for its commit; for `yielding` see
    `Writer`. Raises LedgerError when there is none, when its schema is not the one of this version, when it was moved
    elsewhere, or when the database cannot hold a ledger.
    """
    database = database_of(url)
    database.must_exist()
    readers = database.readers(busy_timeout)
    writers = database.writers(busy_timeout)
    try:
        with reading(writers):
            pass  # sets SQLite's journal mode before anybody reads, and shows whether a server takes writes
        with reading(readers) as connection:
            refuse_other_revision(connection, database.name)
    except BaseException:
        readers.dispose()
        raise
    lock = WriterFileLock(database.lock_file) if database.lock_file else None
    return Ledger(readers, Writer(writers, wait=wait, lock=lock, yielding=yielding))


def migrate(url: str) -> None:
    """Bring the ledger at a URL to this version's schema; a SQLite file (0600) and its folder (0700) are made when absent.

    Several processes may do so at once. Raises LedgerError for a ledger of a newer version, or one that was moved.
    """
    upgrade(database_of(url))


def move_ledger(source_url: str, target_url: str, now: datetime, progress: Progress) -> Moved:
    """Copy the ledger of a SQLite file into an empty PostgreSQL database and retire the file; resumes an interrupted move.

    `progress` is called with each step, the rows done and the rows in all. Raises LedgerError; see `move.move`.
    """
    from worker.ledger.move import move  # noqa: PLC0415 - only the command that moves needs it

    return move(source_url, target_url, now, progress)


def undo_move(source_url: str, target_url: str, progress: Progress) -> None:
    """Cancel a move, as long as no process has used the PostgreSQL ledger. Raises LedgerError; see `move.undo`."""
    from worker.ledger.move import undo  # noqa: PLC0415 - as above

    undo(source_url, target_url, progress)

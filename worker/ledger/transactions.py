"""How a transaction stands and moves on, as each driver tells and does it, and which faults pass by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final

from rules.vocabulary import LedgerBusyError
from worker.ledger.engine import cause_of
from worker.ledger.postgres import BEGIN_WRITE, has_gone, may_have_gone
from worker.ledger.work import SAVEPOINT

#: libpq's states of a transaction (PGTransactionStatusType): in none, in one, and in one that a failed statement has spoilt.
_IDLE: Final = 0
_IN_TRANSACTION: Final = 2
_IN_ERROR: Final = 3

#: Serialization failure, deadlock, lock not available in time: undone by the server because somebody else was in the way.
_PASSING: Final = frozenset({"40001", "40P01", "55P03"})

#: How long a job that is tried alone waits for what others hold: others wait behind it.
_MOMENT: Final = timedelta(milliseconds=500)

_KEEP: Final = (f"RELEASE SAVEPOINT {SAVEPOINT}", f"SAVEPOINT {SAVEPOINT}")
_GO_BACK: Final = f"ROLLBACK TO SAVEPOINT {SAVEPOINT}"


def keep(driver: Any) -> None:
    """Move the savepoint on: what was done so far stands with the transaction."""
    if _is_sqlite(driver):
        for command in _KEEP:
            driver.execute(command).close()
    else:
        driver.execute("; ".join(_KEEP), prepare=False)


def go_back(driver: Any) -> None:
    """Undo what was done since the savepoint, which stays."""
    driver.execute(_GO_BACK).close()


def is_open(driver: Any) -> bool:
    """Whether the transaction can go on, be it from its savepoint: SQLite ends it by itself on some faults."""
    if _is_sqlite(driver):
        return bool(driver.in_transaction)
    return driver.pgconn.transaction_status in {_IN_TRANSACTION, _IN_ERROR}


def can_commit(driver: Any) -> bool:
    """Whether a commit would commit what was done.

    PostgreSQL commits a spoilt transaction with a rollback that looks like a success. SQLite takes the savepoint of a
    transaction that is not there any more for a new one; releasing it shows that.
    """
    if not _is_sqlite(driver):
        return bool(driver.pgconn.transaction_status == _IN_TRANSACTION)
    if driver.in_transaction:
        driver.execute(_KEEP[0]).close()
    return bool(driver.in_transaction)


def sends_in_a_row(driver: Any) -> bool:
    """Whether the driver can send statements without waiting for each."""
    return not _is_sqlite(driver)


@contextmanager
def in_a_row(driver: Any) -> Iterator[None]:
    """Give a transaction whose statements are sent without waiting for each, as far as nobody asks for its results.

    It is committed at the end, or an exception is raised. One that is raised on a connection that still stands means that
    nothing was written: the server skips what follows a fault, a commit too.
    """
    with driver.pipeline():
        driver.execute(BEGIN_WRITE)
        yield
        commit = driver.execute("COMMIT")
    if commit.statusmessage != "COMMIT":
        raise LedgerBusyError(f"the storage answered the commit with {commit.statusmessage}")


def hurry(driver: Any) -> None:
    """Wait only a moment for what others hold, until this transaction ends."""
    if not _is_sqlite(driver):
        driver.execute(f"SET LOCAL lock_timeout = {_MOMENT // timedelta(milliseconds=1)}", prepare=False)


def roll_back(driver: Any) -> None:
    """End a transaction that was sent in a row and failed."""
    if driver.pgconn.transaction_status != _IDLE:
        driver.execute("ROLLBACK", prepare=False)


def is_stale(driver: Any) -> bool:
    """Whether an idle connection to a server is best replaced before it is used."""
    return not _is_sqlite(driver) and may_have_gone(driver)


def is_lost(driver: Any, error: BaseException) -> bool:
    """Whether the connection to a server broke when this fault came up."""
    return not _is_sqlite(driver) and has_gone(driver, cause_of(error))


def passes(error: BaseException) -> bool:
    """Whether the server has undone the transaction for the sake of another one: tried again, it may well stand."""
    return getattr(cause_of(error), "sqlstate", None) in _PASSING


def _is_sqlite(driver: Any) -> bool:
    return hasattr(driver, "in_transaction")

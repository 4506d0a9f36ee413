"""What the writer is given to do, and how the works of many waiting callers become one.

A work gets the connection with the open transaction. It may be undone and run again: what it changes is rows, never
anything it was made from. Works of one kind differ only in their part, and are done for all who wait at once: so many
rows in one statement cost a database across a network little more than one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from sqlalchemy import Connection

from rules.vocabulary import LedgerBusyError

#: The savepoint that every writing transaction begins with, and that moves on from one work to the next.
SAVEPOINT: Final = "job"

P = TypeVar("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shared(Generic[P, T]):
    """A work that can be done together with others of its kind: `act` takes their parts and returns a result for each.

    `size` is how many events or tasks it is about.
    """

    act: Callable[[Connection, Sequence[P]], Sequence[T]]
    part: P
    size: int = 1

    def __call__(self, connection: Connection) -> T:
        """Do this part alone."""
        return self.act(connection, [self.part])[0]


def size_of(work: Callable[[Connection], Any]) -> int:
    """Return how many events or tasks a work is about, as far as it says."""
    return work.size if isinstance(work, Shared) else 1


def _nothing(_connection: Connection) -> Any:
    """Do nothing, in place of a work that was withdrawn."""


class Job(Generic[T]):
    """One caller's work. Whoever takes `turn` first decides: the writer begins it, or the caller withdraws it.

    `fault` is what the work itself raised in the transaction under way. `error` is what its caller is told: None, which
    means success, only once the commit stands. `tell` is called with the job when that is known, in the writer's thread: it
    must return at once and never raise.
    """

    __slots__ = ("begun", "error", "fault", "result", "tell", "turn", "work")

    def __init__(self, work: Callable[[Connection], T], tell: Callable[[Job[T]], None]) -> None:
        self.work = work
        self.turn = threading.Lock()
        self.tell = tell
        self.result: T | None = None
        self.fault: BaseException | None = None
        self.error: BaseException | None = LedgerBusyError("the ledger was busy; nothing was written")
        self.begun = False

    def begin(self) -> bool:
        """Say whether it is to be done: nobody waits any more for one that was withdrawn."""
        self.begun = self.begun or self.turn.acquire(blocking=False)
        return self.begun

    def withdraw(self) -> bool:
        """Take it back; False when it has begun, so that its end has to be waited for."""
        withdrawn = self.turn.acquire(blocking=False)
        if withdrawn:
            self.work = _nothing  # it may stand in line for long: what it held is let go
        return withdrawn

    def outcome(self) -> T:
        """Return its result, or raise what became of it instead; for when it has been told of."""
        if self.error is not None:
            raise self.error
        return self.result  # type: ignore[return-value]  # set before it is told, unless there is an error

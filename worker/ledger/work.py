"""What the writer is given to do, and how the works of many waiting callers become one.

A work gets the connection with the open transaction. It may be undone and run again: what it changes is rows, never
anything it was made from. Works of one kind differ only in their part, and are done for all who wait at once: so many
rows in one statement cost a database across a network little more than one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from sqlalchemy import Connection

#: The savepoint that every writing transaction begins with, and that moves on from one work to the next.
SAVEPOINT: Final = "job"

P = TypeVar("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shared(Generic[P, T]):
    """A work that can be done together with others of its kind: `act` takes their parts and returns a result for each."""

    act: Callable[[Connection, Sequence[P]], Sequence[T]]
    part: P

    def __call__(self, connection: Connection) -> T:
        """Do this part alone."""
        return self.act(connection, [self.part])[0]

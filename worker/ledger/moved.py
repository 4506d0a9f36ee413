"""How a ledger says that it has moved, or is moving, to another database: nobody works on it any more.

The mark stands where every version of Leadwire looks first: in place of the schema's revision. So an older or newer program
refuses it too. A table that only such ledgers have says where it went; a ledger that arrived says in the same table where
it came from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy import BigInteger, Column, Connection, MetaData, Table, Text, select

from rules.vocabulary import LedgerError

#: In place of the schema's revision while a ledger is copied, and after that.
MOVING: Final = "moving"
MOVED: Final = "moved"

#: Told the name of a step, how many rows are done, and how many there are to do in all (each is copied and compared).
Progress = Callable[[str, int, int], None]

#: Not among the ledger's own tables: only ledgers that went or came have it. `token` is the same in both.
moves = Table(
    "moves",
    MetaData(),
    Column("token", Text, primary_key=True),
    Column("place", Text, nullable=False),
    Column("revision", Text, nullable=False),
    Column("begun_at", BigInteger, nullable=False),
)


@dataclass(frozen=True, slots=True)
class Moved:
    """What a move came to: rows by table; `resumed` when an earlier one had been interrupted after its copy stood."""

    source: str
    target: str
    rows: Mapping[str, int]
    resumed: bool


def refuse_moved(connection: Connection, revision: str | None, name: str) -> None:
    """Raise LedgerError with the way on when a ledger with this revision has gone elsewhere, or is about to."""
    if revision not in {MOVING, MOVED}:
        return
    place = connection.execute(select(moves.c.place)).scalar()
    if revision == MOVED:
        raise LedgerError(
            f"{name} has moved to {place}: set LEADWIRE_DATABASE_URL to it. "
            "As long as nothing has worked on it there, this undoes the move: leadwire migrate --from URL --undo"
        )
    raise LedgerError(
        f"{name} is being moved to {place}, or that was interrupted: end it with the same leadwire migrate --from URL, "
        "or give it up with: leadwire migrate --from URL --undo"
    )

"""Whether the ledger takes writes at this moment: the only proof is a write.

A row that needs pages of its own is put in and taken out again, and the commit is synced, so a full disk shows as well as
a lock does.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from sqlalchemy import Connection, delete, insert

from worker.ledger.schema import probes
from worker.ledger.statements import Statement, columns_of

#: Whoever asks for readiness gets an answer in this time.
WAIT: Final = timedelta(seconds=3)

#: More than one page, so that the storage has to find room.
_FILLER: Final = bytes(6000)

_PUT: Final = Statement(insert(probes), columns_of(probes))
_TAKE_OUT: Final = Statement(delete(probes))


def probe(connection: Connection) -> None:
    """Write something and take it away."""
    _PUT.run(connection, {"filler": _FILLER})
    _TAKE_OUT.run(connection)

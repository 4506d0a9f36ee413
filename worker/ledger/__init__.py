"""THE LEDGER: what is durable, and what cannot happen twice."""

from __future__ import annotations

from worker.ledger.ledger import Ledger
from worker.ledger.measuring import Due, Measures
from worker.ledger.opening import migrate, move_ledger, open_ledger, undo_move
from worker.ledger.rows import (
    AttemptRow,
    Claim,
    Counts,
    Delivery,
    IncomingEvent,
    NotClaimed,
    ProviderState,
    Recorded,
    Settlement,
    StoredEvent,
    StoredTask,
    TaskRef,
)

__all__ = [
    "AttemptRow",
    "Claim",
    "Counts",
    "Delivery",
    "Due",
    "IncomingEvent",
    "Ledger",
    "Measures",
    "NotClaimed",
    "ProviderState",
    "Recorded",
    "Settlement",
    "StoredEvent",
    "StoredTask",
    "TaskRef",
    "migrate",
    "move_ledger",
    "open_ledger",
    "undo_move",
]

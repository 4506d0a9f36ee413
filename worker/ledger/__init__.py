"""THE LEDGER: what is durable, and what cannot happen twice."""

from __future__ import annotations

from worker.ledger.ledger import Ledger
from worker.ledger.opening import migrate, open_ledger
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
    "IncomingEvent",
    "Ledger",
    "NotClaimed",
    "ProviderState",
    "Recorded",
    "Settlement",
    "StoredEvent",
    "StoredTask",
    "TaskRef",
    "migrate",
    "open_ledger",
]

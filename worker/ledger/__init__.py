"""THE LEDGER: what is durable, and what cannot happen twice."""

from __future__ import annotations

from worker.ledger.by_hand import CANCELLED_STATES, RETRIED_STATES, why_not_cancelled, why_not_retried
from worker.ledger.ledger import Ledger
from worker.ledger.measuring import Due, Measures
from worker.ledger.opening import migrate, move_ledger, open_ledger, undo_move
from worker.ledger.replaying import Replayed, never_left, renamed, why_not_replayed
from worker.ledger.selecting import EventSelection, TaskSelection
from worker.ledger.types import (
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
from worker.ledger.workload import UNTIL_RESUMED, Workload

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
    "never_left",
    "open_ledger",
    "renamed",
    "undo_move",
    "why_not_cancelled",
    "why_not_replayed",
    "why_not_retried",
]

"""When a webhook's event is new: the unique row of `seen` decides, in the transaction that keeps the delivery.

The first content under a key is the event. The same content again changes nothing. Another content under the same key is
kept once, as `ignored`, under a key of its own (the key and the content's hash, with a separator that no key can hold).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, bindparam, insert, select

from rules.vocabulary import EventState
from worker.ledger.encoding import dump, label, micros, micros_or_none, sentence_or_none
from worker.ledger.mapping import event_document
from worker.ledger.rows import Delivery, IncomingEvent, Recorded
from worker.ledger.statements import Statement, columns_of, upsert
from worker.ledger.tables import deliveries, events, seen

#: Stands between key and content hash; `label` lets it into no key.
_SEPARATOR: Final = "\x1f"

_NEW_SEEN: Final = upsert(seen)
_TAKE: Final = Statement(
    _NEW_SEEN.on_conflict_do_update(
        index_elements=(seen.c.source, seen.c.type, seen.c.key),
        set_={name: _NEW_SEEN.excluded[name] for name in ("event_id", "content_hash", "taken_at", "until_at")},
        where=seen.c.until_at <= _NEW_SEEN.excluded.taken_at,
    ).returning(seen.c.event_id),
    columns_of(seen),
)
_HOLDER: Final = Statement(
    select(seen.c.event_id, seen.c.content_hash).where(
        seen.c.source == bindparam("source"), seen.c.type == bindparam("type"), seen.c.key == bindparam("key")
    )
)
_ADD_DELIVERY: Final = Statement(upsert(deliveries).on_conflict_do_nothing(), columns_of(deliveries))
_ADD_EVENTS: Final = Statement(insert(events), columns_of(events, "rule_set"))


@dataclass(frozen=True, slots=True)
class _Candidate:
    """An event that may be new: its row in `seen` and its row in `events`."""

    seen: dict[str, Any]
    row: dict[str, Any]

    def against(self, first_id: str) -> _Candidate:
        """Return the same event as one that contradicts an earlier one."""
        key = f"{self.seen['key']}{_SEPARATOR}{self.seen['content_hash']}"
        reason = f"the same id came before with other content, as event {first_id}; kept, and not processed"
        return _Candidate(self.seen | {"key": key}, self.row | {"state": EventState.IGNORED, "reason": reason})


def record(delivery: Delivery, incoming: Sequence[IncomingEvent]) -> Callable[[Connection], Recorded]:
    """Return the work that keeps a delivery and its new events. What is costly is done here, before the transaction."""
    received_at = micros(delivery.received_at)
    delivery_row = {
        "id": delivery.id,
        "source": label(delivery.source),
        "received_at": received_at,
        "headers": dump(dict(delivery.headers)),
        "body": delivery.body,
        "content_hash": delivery.content_hash,
    }
    candidates = [_candidate(delivery.id, received_at, event) for event in incoming]

    def work(connection: Connection) -> Recorded:
        first, conflicting = _take(connection, candidates)
        contradictions, _ = _take(connection, conflicting)
        new = first + contradictions
        if new or not candidates:
            _ADD_DELIVERY.run(connection, delivery_row)
        if new:
            _ADD_EVENTS.run_many(connection, [candidate.row for candidate in new])
        return Recorded(
            event_ids=tuple(each.row["id"] for each in first if each.row["state"] == EventState.RECEIVED),
            duplicates=len(candidates) - len(new),
            conflicts=len(contradictions),
        )

    return work


def _candidate(delivery_id: str, received_at: int, incoming: IncomingEvent) -> _Candidate:
    event = incoming.event
    source, type_, key = label(event.source), label(event.type), label(incoming.dedupe_key)
    return _Candidate(
        seen={
            "source": source,
            "type": type_,
            "key": key,
            "event_id": event.id,
            "content_hash": incoming.content_hash,
            "taken_at": received_at,
            "until_at": micros_or_none(incoming.until_at),
        },
        row={
            "id": event.id,
            "delivery_id": delivery_id,
            "source": source,
            "type": type_,
            "occurred_at": micros(event.occurred_at),
            "received_at": micros(event.received_at),
            "document": event_document(event),
            "dedupe_key": key,
            "content_hash": incoming.content_hash,
            "state": incoming.state,
            "reason": sentence_or_none(incoming.reason),
            "tries": 0,
            "due_at": received_at,
            "dispatches": 1,
            "dispatched_at": received_at,
        },
    )


def _take(connection: Connection, candidates: Sequence[_Candidate]) -> tuple[list[_Candidate], list[_Candidate]]:
    """Return the candidates whose key was free and is now theirs, and those that contradict its holder.

    The rest are duplicates.
    """
    taken: list[_Candidate] = []
    conflicting: list[_Candidate] = []
    for each in candidates:
        if _TAKE.rows(connection, each.seen):
            taken.append(each)
            continue
        holder = _HOLDER.rows(connection, each.seen)[0]
        if holder.content_hash != each.seen["content_hash"]:
            conflicting.append(each.against(holder.event_id))
    return taken, conflicting

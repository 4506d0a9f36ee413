"""When a webhook's event is new: the unique row of `seen` decides, in the transaction that keeps the delivery.

The first content under a key is the event. The same content again changes nothing. Another content under the same key is
kept once, as `ignored`, under a key of its own (the key and the content's hash, with a separator that no key can hold).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, bindparam, insert, select

from rules.vocabulary import EventState
from worker.ledger import counters
from worker.ledger.counters import Tally
from worker.ledger.encoding import dump, event_document, label, micros, micros_or_none, sentence_or_none
from worker.ledger.schema import deliveries, events, seen
from worker.ledger.statements import Statement, columns_of, upsert
from worker.ledger.types import Delivery, IncomingEvent, Recorded
from worker.ledger.writer import Batchable

#: Stands between key and content hash; `label` lets it into no key.
_SEPARATOR: Final = "\x1f"

_NEW_SEEN: Final = upsert(seen)
_TAKE: Final = Statement(
    _NEW_SEEN.on_conflict_do_update(
        index_elements=(seen.c.source, seen.c.type, seen.c.key),
        set_={name: _NEW_SEEN.excluded[name] for name in ("event_id", "content_hash", "taken_at", "until_at")},
        where=seen.c.until_at <= _NEW_SEEN.excluded.taken_at,
    ),
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

    @property
    def key(self) -> tuple[str, str, str]:
        """The event's identity."""
        return self.seen["source"], self.seen["type"], self.seen["key"]

    def against(self, first_id: str) -> _Candidate:
        """Return the same event as one that contradicts an earlier one."""
        key = f"{self.seen['key']}{_SEPARATOR}{self.seen['content_hash']}"
        reason = f"the same id came before with other content, as event {first_id}; kept, and not processed"
        return _Candidate(self.seen | {"key": key}, self.row | {"state": EventState.IGNORED, "reason": reason})


@dataclass(frozen=True, slots=True)
class _Arrival:
    """A delivery's row and the events that it brought."""

    row: dict[str, Any]
    candidates: Sequence[_Candidate]


def record(delivery: Delivery, incoming: Sequence[IncomingEvent]) -> Batchable[_Arrival, Recorded]:
    """Return the work that keeps a delivery and its new events. What is costly is done here, before the transaction."""
    received_at = micros(delivery.received_at)
    row = {
        "id": delivery.id,
        "source": label(delivery.source),
        "received_at": received_at,
        "headers": dump(dict(delivery.headers)),
        "body": delivery.body,
        "content_hash": delivery.content_hash,
    }
    return Batchable(_record, _Arrival(row, [_candidate(delivery.id, received_at, event) for event in incoming]))


def _record(connection: Connection, arrivals: Sequence[_Arrival]) -> list[Recorded]:
    candidates = [each for arrival in arrivals for each in arrival.candidates]
    holders = _take(connection, candidates)
    against = {
        place: each.against(holder.event_id)
        for place, (each, holder) in enumerate(zip(candidates, holders, strict=True))
        if holder is not None and holder.content_hash != each.seen["content_hash"]
    }
    kept = {place: each for place, each in enumerate(candidates) if holders[place] is None}
    further = _take(connection, list(against.values()))
    kept |= {place: each for (place, each), holder in zip(against.items(), further, strict=True) if holder is None}
    recorded, arrived, start = [], [], 0
    for arrival in arrivals:
        places = range(start, start := start + len(arrival.candidates))
        recorded.append(_recorded(places, kept, against))
        if not places or any(place in kept for place in places):
            arrived.append(arrival.row)
    if arrived:
        _ADD_DELIVERY.run_many(connection, arrived)
    if kept:
        rows = [kept[place].row for place in sorted(kept)]
        _ADD_EVENTS.run_many(connection, rows)
        _count(connection, rows)
    return recorded


def _recorded(places: range, kept: Mapping[int, _Candidate], against: Mapping[int, _Candidate]) -> Recorded:
    """Return what became of the candidates of one delivery."""
    new = [place for place in places if place in kept]
    rows = [kept[place].row for place in new if place not in against]
    return Recorded(
        event_ids=tuple(row["id"] for row in rows if row["state"] == EventState.RECEIVED),
        duplicates=len(places) - len(new),
        conflicts=len(new) - len(rows),
    )


def _count(connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
    counted = counters.of(connection)
    for row in rows:
        counted.count(Tally.EVENTS_RECEIVED, row["source"], counters.type_label(row["type"]))
        if row["state"] != EventState.RECEIVED:
            counted.count(Tally.EVENTS_ENDED, row["state"])


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


def _take(connection: Connection, candidates: Sequence[_Candidate]) -> list[Any | None]:
    """Return for each candidate None when its key was free and is now its own, else the event that holds the key.

    Keys are taken in the same order by everybody, so that no two processes wait for each other.
    """
    order = sorted(range(len(candidates)), key=lambda place: candidates[place].key)
    taken = _TAKE.run_each(connection, [candidates[place].seen for place in order]) if order else []
    held = [place for place, is_taken in zip(order, taken, strict=True) if not is_taken]
    found = _HOLDER.rows_each(connection, [candidates[place].seen for place in held]) if held else []
    holders: list[Any | None] = [None] * len(candidates)
    for place, rows in zip(held, found, strict=True):
        holders[place] = rows[0]
    return holders

"""Deliveries and their events: recorded once, decided once.

Recording: the unique row of `seen` decides whether an event is new, in the transaction that keeps the delivery. The first
content under a key is the event. The same content again changes nothing. Another content under the same key is kept once, as
`ignored`, under a key of its own (the key and the content's hash, with a separator that no key can hold).

Deciding: `ledger.tasks.insert` records what follows of an event that it finds `received`. An event that was dispatched before may
have crashed the process that decided it, so its try is counted, on disk, before it is handed out again; until
`PLANNING_LEASE` is over it is then handed to nobody else, so that messages which come twice do not count twice.
`event_failed` counts only what was not counted so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, and_, bindparam, delete, insert, select, update

from rules.vocabulary import EventState
from worker.ledger.counters import CounterName, counters_of, type_label
from worker.ledger.encoding import dump, event_document, label, micros, micros_or_none, sentence, sentence_or_none
from worker.ledger.encoding import stored_event as stored
from worker.ledger.schema import EVENT_OPEN, deliveries, events, probes, seen
from worker.ledger.statements import ForIds, Statement, columns_of, upsert
from worker.ledger.types import Delivery, IncomingEvent, Recorded, StoredEvent
from worker.ledger.writer import Batchable, Job, LedgerGroup

#: After so many tries an event is `failed`.
TRIES_LIMIT: Final = 5
#: The wait after the first try that failed; it doubles with each.
BACK_OFF: Final = timedelta(seconds=5)
#: How long an event that was handed out again belongs to whoever got it; planning takes milliseconds.
PLANNING_LEASE: Final = timedelta(seconds=15)

# Record ----------------------------------------------------------------------------------------------------------------

#: Stands between key and content hash; `label` lets it into no key.
_SEPARATOR: Final = "\x1f"

_NEW_KEY: Final = upsert(seen)
_TAKE_KEY: Final = Statement(
    _NEW_KEY.on_conflict_do_update(
        index_elements=(seen.c.source, seen.c.type, seen.c.key),
        set_={name: _NEW_KEY.excluded[name] for name in ("event_id", "content_hash", "taken_at", "until_at")},
        where=seen.c.until_at <= _NEW_KEY.excluded.taken_at,
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


def _arrival(delivery: Delivery, incoming: Sequence[IncomingEvent]) -> Batchable[_Arrival, Recorded]:
    """Return the work that records a delivery. What is costly is done here, before the transaction."""
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


def _record(connection: Connection, arrivals: Sequence[_Arrival]) -> list[Recorded]:
    candidates = [each for arrival in arrivals for each in arrival.candidates]
    holders = _take_keys(connection, candidates)
    against = {
        place: each.against(holder.event_id)
        for place, (each, holder) in enumerate(zip(candidates, holders, strict=True))
        if holder is not None and holder.content_hash != each.seen["content_hash"]
    }
    kept = {place: each for place, each in enumerate(candidates) if holders[place] is None}
    further = _take_keys(connection, list(against.values()))
    kept |= {place: each for (place, each), holder in zip(against.items(), further, strict=True) if holder is None}
    recorded, arrived, start = [], [], 0
    for arrival in arrivals:
        places = range(start, start := start + len(arrival.candidates))
        new = [place for place in places if place in kept]
        rows = [kept[place].row for place in new if place not in against]
        recorded.append(
            Recorded(
                event_ids=tuple(row["id"] for row in rows if row["state"] == EventState.RECEIVED),
                duplicates=len(places) - len(new),
                conflicts=len(new) - len(rows),
            )
        )
        if new or not places:
            arrived.append(arrival.row)
    if arrived:
        _ADD_DELIVERY.run_many(connection, arrived)
    if kept:
        rows = [kept[place].row for place in sorted(kept)]
        _ADD_EVENTS.run_many(connection, rows)
        counters = counters_of(connection)
        for row in rows:
            counters.count(CounterName.EVENTS_RECEIVED, row["source"], type_label(row["type"]))
            if row["state"] != EventState.RECEIVED:
                counters.count(CounterName.EVENTS_ENDED, row["state"])
    return recorded


def _take_keys(connection: Connection, candidates: Sequence[_Candidate]) -> list[Any | None]:
    """Return for each candidate None when its key was free and is now its own, else the event that holds the key.

    Keys are taken in the same order by everybody, so that no two processes wait for each other.
    """
    order = sorted(range(len(candidates)), key=lambda place: candidates[place].key)
    taken = _TAKE_KEY.run_each(connection, [candidates[place].seen for place in order]) if order else []
    held = [place for place, is_taken in zip(order, taken, strict=True) if not is_taken]
    found = _HOLDER.rows_each(connection, [candidates[place].seen for place in held]) if held else []
    holders: list[Any | None] = [None] * len(candidates)
    for place, rows in zip(held, found, strict=True):
        holders[place] = rows[0]
    return holders


# Decide ----------------------------------------------------------------------------------------------------------------

_OPEN_EVENTS: Final = ForIds(lambda among: select(events).where(among(events.c.id), EVENT_OPEN))
LOCK_OPEN_EVENTS: Final = ForIds(
    lambda among: (
        select(events.c.id, events.c.tries, events.c.dispatches, events.c.rule_set)
        .where(among(events.c.id), EVENT_OPEN)
        .order_by(events.c.id)
        .with_for_update(key_share=True)
    )
)
_GIVEN_UP: Final = f"given up: processing it was begun {TRIES_LIMIT} times and never ended; it may crash the worker"
_GIVE_UP: Final = ForIds(
    lambda among: (
        update(events)
        .where(among(events.c.id), EVENT_OPEN, events.c.due_at <= bindparam("now"), events.c.tries >= TRIES_LIMIT)
        .values(state=EventState.FAILED, reason=_GIVEN_UP)
        .returning(events.c.id)
    )
)
_COUNT_TRY: Final = ForIds(
    lambda among: (
        update(events)
        .where(among(events.c.id), EVENT_OPEN, events.c.due_at <= bindparam("now"))
        .values(tries=events.c.tries + 1, dispatched_at=bindparam("now"), due_at=bindparam("lease_end"))
        .returning(events.c.id, events.c.tries)
    )
)
_SET_FAILED: Final = Statement(
    update(events)
    .where(events.c.id == bindparam("event_id"))
    .values({name: bindparam(f"new_{name}") for name in ("tries", "due_at", "state", "reason")})
)
_OVERDUE: Final = and_(EVENT_OPEN, events.c.due_at <= bindparam("now"), events.c.dispatched_at <= bindparam("cutoff"))
_ANY_OVERDUE: Final = Statement(select(events.c.id).where(_OVERDUE).limit(1))
_OLDEST_OVERDUE: Final = Statement(
    select(events.c.id)
    .where(_OVERDUE)
    .order_by(events.c.due_at)
    .limit(bindparam("most"))
    .with_for_update(key_share=True, skip_locked=True)
)
_DISPATCH: Final = ForIds(
    lambda among: (
        update(events)
        .where(among(events.c.id))
        .values(dispatched_at=bindparam("now"), dispatches=events.c.dispatches + 1)
        .returning(events.c.id)
    )
)

# Probe: the only proof that the ledger takes writes is a write.

#: Whoever asks for readiness gets an answer in this time.
PROBE_WAIT: Final = timedelta(seconds=3)
#: More than one page, so that the storage has to find room.
_FILLER: Final = bytes(6000)
_PUT_PROBE: Final = Statement(insert(probes), columns_of(probes))
_TAKE_PROBES_OUT: Final = Statement(delete(probes))


def probe(connection: Connection) -> None:
    """Write a row large enough to need pages of its own, then delete it: committing this reveals a full disk or a lock."""
    _PUT_PROBE.run(connection, {"filler": _FILLER})
    _TAKE_PROBES_OUT.run(connection)


class LedgerInbox(LedgerGroup):
    """`ledger.inbox`: webhook deliveries and their events, until the events are planned."""

    def record(self, delivery: Delivery, events: Sequence[IncomingEvent]) -> Recorded:
        """Store a delivery and its new events. A redelivery changes nothing. Returns what was new."""
        return self._writer.write(_arrival(delivery, events))

    def begin_record(
        self, delivery: Delivery, events: Sequence[IncomingEvent], tell: Callable[[Job[Recorded]], None]
    ) -> Job[Recorded]:
        """Start `record` without waiting. `tell` is called in the writer thread when the job is done.

        See `Writer.submit`. `Job.outcome()` then returns, or raises, what `record` would.
        """
        return self._writer.submit(_arrival(delivery, events), tell)

    def count_requests(self, requests: Mapping[tuple[str, str, str], int]) -> None:
        """Add these numbers of webhook requests, by source, outcome and reason, to the counters."""

        def work(connection: Connection) -> None:
            counters = counters_of(connection)
            for (source, outcome, reason), number in requests.items():
                counters.count(CounterName.REQUESTS, label(source), outcome, reason, by=number)

        self._writer.write(work)

    def fresh_events(self, ids: Sequence[str]) -> tuple[list[StoredEvent], list[str]]:
        """Return the undecided events that were dispatched once, and the ids of those dispatched more than once.

        The latter may have crashed a process. Fetch them one at a time with `events_to_process`, so that one that crashes the
        process does not affect the others.
        """
        found = self._open_events(ids)
        return [each for each in found if each.dispatches == 1], [each.id for each in found if each.dispatches > 1]

    def events_to_process(self, ids: Sequence[str], now: datetime) -> list[StoredEvent]:
        """Return those of the events that are still undecided, in the order of `ids`.

        An event that was dispatched more than once may have crashed its process. Its try is therefore committed before it is
        returned, and `now` counts as its last dispatch. After five tries it becomes `failed` and is not returned.
        """
        found = self._open_events(ids)
        suspects = [each.id for each in found if each.dispatches > 1]
        if not suspects:
            return found
        at = {"now": micros(now), "lease_end": micros(now + PLANNING_LEASE)}

        def work(connection: Connection) -> dict[str, int]:
            for _ in _GIVE_UP.rows(connection, suspects, at):
                counters_of(connection).count(CounterName.EVENTS_ENDED, EventState.FAILED)
            return {row.id: row.tries for row in _COUNT_TRY.rows(connection, suspects, at)}

        tries = self._writer.write(work)
        fine = (each for each in found if each.dispatches == 1 or each.id in tries)
        return [replace(each, tries=tries.get(each.id, each.tries)) for each in fine]

    def _open_events(self, ids: Sequence[str]) -> list[StoredEvent]:
        found = {row.id: stored(row) for row in self._read(lambda connection: _OPEN_EVENTS.rows(connection, ids))}
        return [found[event_id] for event_id in dict.fromkeys(ids) if event_id in found]

    def event_failed(self, event_id: str, error: str, now: datetime) -> None:
        """Record that planning an event raised `error`: it is due again later; after five tries it becomes `failed`."""

        def work(connection: Connection) -> None:
            found = LOCK_OPEN_EVENTS.rows(connection, [event_id])
            if not found:
                return
            row = found[0]
            tries = row.tries + 1 if row.dispatches == 1 or row.tries == 0 else row.tries
            over = tries >= TRIES_LIMIT
            changed = {
                "event_id": event_id,
                "new_tries": tries,
                "new_due_at": micros(now + BACK_OFF * 2 ** (tries - 1)),
                "new_state": EventState.FAILED if over else EventState.RECEIVED,
                "new_reason": sentence(error),
            }
            _SET_FAILED.run(connection, changed)
            if over:
                counters_of(connection).count(CounterName.EVENTS_ENDED, EventState.FAILED)

        self._writer.write(work)

    def dispatch_overdue(self, now: datetime, grace: timedelta, limit: int) -> list[str]:
        """Return ids of undecided events that are due and were last dispatched `grace` ago; marks them as dispatched now.

        The oldest due come first, at most `limit`. Nothing is written when none is found.
        """
        at = {"now": micros(now), "cutoff": micros(now - grace)}

        def work(connection: Connection) -> list[str]:
            ids = _OLDEST_OVERDUE.values(connection, at | {"most": limit})
            if ids:
                _DISPATCH.rows(connection, ids, at)
            return ids

        if not self._read(lambda connection: _ANY_OVERDUE.rows(connection, at)):
            return []
        return self._writer.write(work)

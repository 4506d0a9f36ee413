"""Durable counters for metrics and status pages, written in the same transaction as the fact they count.

Each process adds to rows of its own (`shard`), so that processes never wait for each other; readers add up all shards. The
counts of one transaction are written once, at its end. With its first write a process merges all other shards into its own, so
that shards of ended processes do not pile up. A running process that lost its rows this way starts new ones; the sum stays
right.

The set of labels is bounded: event types that Leadwire does not define count as `other`, and so do rules beyond `RULES_LIMIT`.
Durations are in milliseconds.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from datetime import timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import Connection, bindparam, delete, select

from rules.vocabulary import CANONICAL_EVENT_TYPES, Plan, Task, TaskState, TaskType
from worker.ledger.encoding import dump, label
from worker.ledger.schema import tallies
from worker.ledger.statements import Statement, columns_of, upsert

#: Where a connection keeps the counters of its transaction.
_KEY: Final = "leadwire.counters"
#: Stands between a key's parts; no label that the ledger takes from outside holds it.
_SEPARATOR: Final = "\x1f"
#: What stands for everything that has no label of its own.
OTHER: Final = "other"
#: So many rules have a label of their own in one process.
RULES_LIMIT: Final = 500
#: A longer span counts as this long, so that sums of nonsensical dates stay integers.
LONGEST: Final = timedelta(days=365)
#: The status class of an attempt whose process ended, or whose lease did, before an answer was recorded.
LOST: Final = "lost"

_KNOWN_TYPES: Final = frozenset(CANONICAL_EVENT_TYPES)
_MILLISECOND: Final = timedelta(milliseconds=1)


class CounterName(StrEnum):
    """The counters; `LABELS` names the labels of each."""

    REQUESTS = "requests"
    EVENTS_RECEIVED = "events_received"
    EVENTS_ENDED = "events_ended"
    DECISIONS = "decisions"
    TASKS_PLANNED = "tasks_planned"
    TASKS_ENDED = "tasks_ended"
    ATTEMPTS = "attempts"
    PAUSES = "pauses"
    #: Deliveries by how long after the event was received, and how long all of them took; then the same since it occurred.
    AFTER_RECEIVED = "after_received"
    AFTER_RECEIVED_SUM = "after_received_sum"
    AFTER_OCCURRED = "after_occurred"
    AFTER_OCCURRED_SUM = "after_occurred_sum"


#: The names of each counter's labels, in the order in which `TransactionCounters.count` takes them.
LABELS: Final[Mapping[CounterName, tuple[str, ...]]] = {
    CounterName.REQUESTS: ("source", "outcome", "reason"),
    CounterName.EVENTS_RECEIVED: ("source", "type"),
    CounterName.EVENTS_ENDED: ("state",),
    CounterName.DECISIONS: ("rule", "outcome"),
    CounterName.TASKS_PLANNED: ("type",),
    CounterName.TASKS_ENDED: ("type", "state"),
    CounterName.ATTEMPTS: ("provider", "verdict", "status"),
    CounterName.PAUSES: ("provider", "cause"),
    CounterName.AFTER_RECEIVED: ("type", "le"),
    CounterName.AFTER_RECEIVED_SUM: ("type",),
    CounterName.AFTER_OCCURRED: ("type", "le"),
    CounterName.AFTER_OCCURRED_SUM: ("type",),
}

#: Upper ends of the classes that spans are counted in, in seconds and as labels; what is longer counts as `+Inf`.
BUCKETS: Final = (
    "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10", "30", "60", "300", "900", "3600", "14400", "86400", "+Inf",
)  # fmt: skip
_ENDS_MILLISECONDS: Final = [round(float(end) * 1000) for end in BUCKETS[:-1]]

_NEW_COUNTER: Final = upsert(tallies)
_ADD: Final = Statement(
    _NEW_COUNTER.on_conflict_do_update(
        index_elements=(tallies.c.shard, tallies.c.name, tallies.c.labels),
        set_={"value": tallies.c.value + _NEW_COUNTER.excluded.value},
    ),
    columns_of(tallies),
)
#: Rows that somebody writes at this moment are left to the next process that starts.
_OF_OTHERS: Final = Statement(
    select(tallies).where(tallies.c.shard != bindparam("own")).with_for_update(skip_locked=True)
)
_TAKE_OVER: Final = Statement(
    delete(tallies).where(
        tallies.c.shard == bindparam("of_shard"),
        tallies.c.name == bindparam("of_name"),
        tallies.c.labels == bindparam("of_labels"),
    )
)


class TransactionCounters:
    """Counts made in the current transaction. Used by the writer thread alone."""

    def __init__(self, shard: str) -> None:
        """Take a name that no other process uses."""
        self._shard = shard
        self._counted: list[tuple[str, int]] = []
        self._rules: dict[str, str] = {}
        self._has_merged = False

    def begin(self, connection: Connection) -> None:
        """Start counting for a transaction on this connection, from zero."""
        self._counted.clear()
        connection.info[_KEY] = self

    def count(self, name: CounterName, *labels: str, by: int = 1) -> None:
        """Add to a counter. The labels are given in the order of `LABELS`."""
        # One plain text as key: much cheaper to look up than a tuple of words of closed sets.
        self._counted.append((_SEPARATOR.join((name, *labels)), by))

    def mark(self) -> int:
        """Return the current position, for `back_to`."""
        return len(self._counted)

    def back_to(self, mark: int) -> None:
        """Discard what was counted since `mark` returned this position: those changes were rolled back."""
        del self._counted[mark:]

    def write(self, connection: Connection) -> None:
        """Add the counts to this process's rows, in the open transaction."""
        if not self._counted:
            return
        added: dict[str, int] = {}
        for key, by in self._counted:
            added[key] = added.get(key, 0) + by
        self._counted.clear()
        sums = {_columns(key): by for key, by in added.items()}
        if not self._has_merged:
            self._has_merged = True
            for row in _take_over(connection, self._shard):
                columns = (row.name, row.labels)
                sums[columns] = sums.get(columns, 0) + row.value
        rows = [
            {"shard": self._shard, "name": name, "labels": labels, "value": value}
            for (name, labels), value in sums.items()
        ]
        _ADD.run_many(connection, rows)

    def planned(self, plans: Sequence[Plan], tasks: Sequence[Task]) -> None:
        """Count events by result, decisions by rule, and tasks made; tasks that planning ended count as ended too."""
        for plan in plans:
            self.count(CounterName.EVENTS_ENDED, plan.state)
            for decision in plan.decisions:
                self.count(CounterName.DECISIONS, self._rule(decision.rule), decision.outcome)
        for task in tasks:
            self.count(CounterName.TASKS_PLANNED, task.type)
            if task.state != TaskState.PLANNED:
                self.count(CounterName.TASKS_ENDED, task.type, task.state)

    def delivered(self, type_: TaskType, since_received_micros: int, since_occurred_micros: int) -> None:
        """Count the time from event to delivery; one that is negative (a delivery before its event's date) counts as 0."""
        for name, total, span_micros in (
            (CounterName.AFTER_RECEIVED, CounterName.AFTER_RECEIVED_SUM, since_received_micros),
            (CounterName.AFTER_OCCURRED, CounterName.AFTER_OCCURRED_SUM, since_occurred_micros),
        ):
            milliseconds = min(max(span_micros // 1000, 0), LONGEST // _MILLISECOND)
            self.count(name, type_, BUCKETS[bisect_left(_ENDS_MILLISECONDS, milliseconds)])
            self.count(total, type_, by=milliseconds)

    def _rule(self, name: str) -> str:
        known = self._rules.get(name)
        if known is not None:
            return known
        if len(self._rules) >= RULES_LIMIT:
            return OTHER
        return self._rules.setdefault(name, label(name))


def counters_of(connection: Connection) -> TransactionCounters:
    """Return the counters of the transaction that is open on this connection."""
    found: TransactionCounters = connection.info[_KEY]
    return found


def type_label(type_: str) -> str:
    """Return the label of an event type: the type itself, or `other` for one that Leadwire does not define."""
    return type_ if type_ in _KNOWN_TYPES else OTHER


def status_label(status: int | None) -> str:
    """Return the class of an HTTP status, such as `2xx`; `none` when there was no answer."""
    return "none" if status is None else f"{status // 100}xx"


def _take_over(connection: Connection, own: str) -> list[Any]:
    rows = _OF_OTHERS.rows(connection, {"own": own})
    if rows:
        taken = [{"of_shard": row.shard, "of_name": row.name, "of_labels": row.labels} for row in rows]
        _TAKE_OVER.run_many(connection, taken)
    return rows


@lru_cache(maxsize=8192)
def _columns(key: str) -> tuple[str, str]:
    """Return the name and the labels of a key as they are stored."""
    name, *labels = key.split(_SEPARATOR)
    return name, dump(dict(zip(LABELS[CounterName(name)], labels, strict=True)))

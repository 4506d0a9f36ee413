"""What is counted, and how a count never disagrees with what it counts.

A count is written in the very transaction that makes the counted fact: undone with it, as durable as it. Each process adds
to rows of its own (`shard`), so that no two ever wait for each other; whoever asks adds up all shards. What one transaction
counts is added up first and written once, at its end. With its first count a process takes over the rows of all others: a
dead one's rows so find an heir, and a live one that lost its rows this way begins new ones, without harm to the sum.

Labels are few for ever: types that Leadwire does not know itself count as `other`, and so do rules beyond `RULES_LIMIT`.
Spans are milliseconds.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import Connection, bindparam, delete, select

from rules.vocabulary import CANONICAL_EVENT_TYPES, Plan, Task, TaskState, TaskType
from worker.ledger.encoding import dump, label
from worker.ledger.schema import tallies
from worker.ledger.statements import Statement, columns_of, upsert

#: Where a connection keeps the tallies of its transaction.
_KEY: Final = "leadwire.tallies"
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


class Tally(StrEnum):
    """What is counted; `LABELS` says by what."""

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


#: The names of each count's labels, in the order in which `Tallies.count` takes them.
LABELS: Final[Mapping[Tally, tuple[str, ...]]] = {
    Tally.REQUESTS: ("source", "outcome", "reason"),
    Tally.EVENTS_RECEIVED: ("source", "type"),
    Tally.EVENTS_ENDED: ("state",),
    Tally.DECISIONS: ("rule", "outcome"),
    Tally.TASKS_PLANNED: ("type",),
    Tally.TASKS_ENDED: ("type", "state"),
    Tally.ATTEMPTS: ("provider", "verdict", "status"),
    Tally.PAUSES: ("provider", "cause"),
    Tally.AFTER_RECEIVED: ("type", "le"),
    Tally.AFTER_RECEIVED_SUM: ("type",),
    Tally.AFTER_OCCURRED: ("type", "le"),
    Tally.AFTER_OCCURRED_SUM: ("type",),
}

#: Upper ends of the classes that spans are counted in, in seconds and as labels; what is longer counts as `+Inf`.
BUCKETS: Final = (
    "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10", "30", "60", "300", "900", "3600", "14400", "86400", "+Inf",
)  # fmt: skip
_ENDS_MILLISECONDS: Final = [round(float(end) * 1000) for end in BUCKETS[:-1]]

_NEW: Final = upsert(tallies)
_ADD: Final = Statement(
    _NEW.on_conflict_do_update(
        index_elements=(tallies.c.shard, tallies.c.name, tallies.c.labels),
        set_={"value": tallies.c.value + _NEW.excluded.value},
    ),
    columns_of(tallies),
)
#: Rows that somebody writes at this moment are left to the next heir.
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


class Tallies:
    """What the transaction under way has counted; for the one thread that writes."""

    def __init__(self, shard: str) -> None:
        """Take a name that no other process uses."""
        self._shard = shard
        self._counted: list[tuple[str, int]] = []
        self._rules: dict[str, str] = {}
        self._is_heir = False

    def begin(self, connection: Connection) -> None:
        """Count what is done on this connection from now on, beginning with nothing."""
        self._counted.clear()
        connection.info[_KEY] = self

    def count(self, tally: Tally, *labels: str, by: int = 1) -> None:
        """Count something under labels, as many as `LABELS` names."""
        # One plain text as key: much cheaper to look up than a tuple of words of closed sets.
        self._counted.append((_SEPARATOR.join((tally, *labels)), by))

    def mark(self) -> int:
        """Return the place up to which `back_to` keeps what was counted."""
        return len(self._counted)

    def back_to(self, mark: int) -> None:
        """Forget what was counted since: it has been undone."""
        del self._counted[mark:]

    def write(self, connection: Connection) -> None:
        """Add what was counted to the rows of this process, in the transaction that is open."""
        if not self._counted:
            return
        added: dict[str, int] = {}
        for key, by in self._counted:
            added[key] = added.get(key, 0) + by
        self._counted.clear()
        sums = {_columns(key): by for key, by in added.items()}
        if not self._is_heir:
            self._is_heir = True
            for row in _inherit(connection, self._shard):
                columns = (row.name, row.labels)
                sums[columns] = sums.get(columns, 0) + row.value
        _ADD.run_many(
            connection,
            [
                {"shard": self._shard, "name": name, "labels": labels, "value": value}
                for (name, labels), value in sums.items()
            ],
        )

    # What several places count

    def planned(self, plans: Sequence[Plan], tasks: Sequence[Task]) -> None:
        """Count what events came to, what each rule decided, and the tasks that were made; planning ended some of them."""
        for plan in plans:
            self.count(Tally.EVENTS_ENDED, plan.state)
            for decision in plan.decisions:
                self.count(Tally.DECISIONS, self._rule(decision.rule), decision.outcome)
        for task in tasks:
            self.count(Tally.TASKS_PLANNED, task.type)
            if task.state != TaskState.PLANNED:
                self.count(Tally.TASKS_ENDED, task.type, task.state)

    def delivered(self, type_: TaskType, since_received_micros: int, since_occurred_micros: int) -> None:
        """Count how long it took from an event to a delivery."""
        self._took(Tally.AFTER_RECEIVED, Tally.AFTER_RECEIVED_SUM, type_, since_received_micros)
        self._took(Tally.AFTER_OCCURRED, Tally.AFTER_OCCURRED_SUM, type_, since_occurred_micros)

    def _took(self, tally: Tally, total: Tally, type_: TaskType, span_micros: int) -> None:
        """Count a span in its class and in the total; what was delivered before its event's date took no time."""
        milliseconds = min(max(span_micros // 1000, 0), LONGEST // _MILLISECOND)
        self.count(tally, type_, BUCKETS[bisect_left(_ENDS_MILLISECONDS, milliseconds)])
        self.count(total, type_, by=milliseconds)

    def _rule(self, name: str) -> str:
        known = self._rules.get(name)
        if known is not None:
            return known
        if len(self._rules) >= RULES_LIMIT:
            return OTHER
        return self._rules.setdefault(name, label(name))


def of(connection: Connection) -> Tallies:
    """Return what counts the transaction that is open on this connection."""
    found: Tallies = connection.info[_KEY]
    return found


def count_requests(requests: Mapping[tuple[str, str, str], int]) -> Callable[[Connection], None]:
    """Return the work that adds so many requests by source, outcome and reason."""

    def work(connection: Connection) -> None:
        counted = of(connection)
        for (source, outcome, reason), number in requests.items():
            counted.count(Tally.REQUESTS, label(source), outcome, reason, by=number)

    return work


def type_label(type_: str) -> str:
    """Return the label of an event type: one for all that Leadwire itself does not know."""
    return type_ if type_ in _KNOWN_TYPES else OTHER


def status_label(status: int | None) -> str:
    """Return the class of an HTTP status, such as `2xx`; `none` when there was no answer."""
    return "none" if status is None else f"{status // 100}xx"


def _inherit(connection: Connection, own: str) -> list[Any]:
    rows = _OF_OTHERS.rows(connection, {"own": own})
    if rows:
        taken = [{"of_shard": row.shard, "of_name": row.name, "of_labels": row.labels} for row in rows]
        _TAKE_OVER.run_many(connection, taken)
    return rows


@lru_cache(maxsize=8192)
def _columns(key: str) -> tuple[str, str]:
    """Return the name and the labels of a key as they are stored."""
    name, *labels = key.split(_SEPARATOR)
    return name, dump(dict(zip(LABELS[Tally(name)], labels, strict=True)))

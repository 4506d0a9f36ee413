"""What a worker does with ends and outcomes: the part of the ledger's door behind `Ledger.follow_ups`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Engine

from rules.vocabulary import PROVIDER_OF, ProviderName, Task
from worker.ledger import answering, outcomes
from worker.ledger.engine import reading
from worker.ledger.types import Poll, Reaction, TaskRef
from worker.ledger.writer import Writer

#: So many missed deliveries are taken up at once, of each type.
_MISSED_LIMIT: Final = 500


class FollowUps:
    """Ends that rules answer, and what became of tasks at their provider; raises as `Ledger` does."""

    def __init__(self, readers: Engine, writer: Writer) -> None:
        self._readers = readers
        self._writer = writer

    # -- ends and their answers ----------------------------------------------------------------------------------------

    def take_ends(self, now: datetime, limit: int) -> list[Reaction]:
        """Take ends to answer, oldest first; each belongs to the caller until its `due_at`, and its try is counted.

        One that was tried five times is put aside instead, and the task says so.
        """
        with reading(self._readers) as connection:
            found = answering.any_due(connection, now)
        return self._writer.write(answering.take(now, limit)) if found else []

    def answer(
        self, reaction: Reaction, planned: Sequence[Task], now: datetime, note: str | None = None
    ) -> tuple[TaskRef, ...]:
        """Record what answers an end and strike the end off, in one transaction; return the tasks due now, as queued.

        `note` becomes a remark on the task that ended. Nothing is recorded when the end belongs to somebody else by now, or
        when the failure was undone: the task is to be sent again, or was delivered after all.
        """
        return self._writer.write(answering.record(reaction, planned, note, now))

    def put_end_aside(self, reaction: Reaction, error: str, now: datetime) -> None:
        """Give up answering an end for now, with a remark on its task."""
        self._writer.write(answering.failed(reaction, error, now))

    def try_ends_again(self, now: datetime) -> int:
        """Make everything due that was put aside; return how many."""
        with reading(self._readers) as connection:
            found = answering.any_aside(connection)
        return self._writer.write(answering.try_again(now)) if found else 0

    # -- outcomes at the provider --------------------------------------------------------------------------------------

    def take_polls(
        self, provider: ProviderName, now: datetime, pause: Callable[[int], timedelta], limit: int
    ) -> list[Poll]:
        """Take tasks whose outcome is to be asked for; each is due again after `pause(times asked)`."""
        with reading(self._readers) as connection:
            found = outcomes.any_due(connection, provider, now)
        return self._writer.write(outcomes.take(provider, now, pause, limit)) if found else []

    def seen(self, poll: Poll, word: str, now: datetime, *, final: bool) -> bool:
        """Keep the provider's word for how a task stands; return whether it is news. A final one ends the asking."""
        return self._writer.write(outcomes.seen(poll, word, now, final=final))

    def follow_missed(self, provider: ProviderName, now: datetime, due_at: datetime) -> int:
        """Ask about tasks that were delivered without a worker's settling, from `due_at` on; return how many."""
        types = [type_ for type_, name in PROVIDER_OF.items() if name is provider]
        with reading(self._readers) as connection:
            rows = outcomes.missed(connection, types, now, _MISSED_LIMIT)
        if rows:
            self._writer.write(outcomes.follow_missed(rows, due_at))
        return len(rows)

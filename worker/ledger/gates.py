"""Where the limits of providers are kept for all workers: one row for each provider, locked by whoever claims under limits.

The locks are taken before any task's, in the order of the providers' names, and held to the commit: of several processes
each sees what the one before it took. Without limits no row is read or locked here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, bindparam, func, select, update

from rules.vocabulary import ProviderName
from worker.ledger import limits as decide
from worker.ledger.encoding import micros, micros_or_none, moment_or_none
from worker.ledger.limits import Refusal, Use
from worker.ledger.rows import Limits, StoredTask
from worker.ledger.statements import Statement, upsert
from worker.ledger.tables import TASK_SENDING, providers, tasks

_LOCK: Final = Statement(
    select(providers).where(providers.c.name == bindparam("provider")).with_for_update(key_share=True)
)
_MAKE: Final = Statement(upsert(providers).on_conflict_do_nothing(), ("name", "held", "updated_at"))
_ON_THEIR_WAY: Final = Statement(
    select(func.count()).select_from(tasks).where(tasks.c.provider == bindparam("provider"), TASK_SENDING)
)
_TAKEN: Final = Statement(
    update(providers)
    .where(providers.c.name == bindparam("provider"))
    .values(next_slot_at=bindparam("new_slot"), day=bindparam("new_day"), sent_today=bindparam("new_sum"))
)
_NONE: Final = Limits()


class Gates:
    """The limits of one transaction's providers; `store` writes what was taken."""

    def __init__(self, connection: Connection, limited: Iterable[Mapping[ProviderName, Limits]], now: datetime) -> None:
        """Lock the providers that are limited at all."""
        self._connection = connection
        self._found: dict[ProviderName, Use] = {}
        wanted: dict[ProviderName, bool] = {}
        for each in limited:
            for provider, limits in each.items():
                if limits.rate_per_second or limits.concurrency or limits.daily_cap:
                    wanted[provider] = wanted.get(provider, False) or bool(limits.concurrency)
        for provider in sorted(wanted):
            self._found[provider] = _locked(connection, provider, now, counted=wanted[provider])
        self._used = dict(self._found)

    def room(self, task: StoredTask, limits: Mapping[ProviderName, Limits], now: datetime) -> Refusal | None:
        """Say whether the provider's day and concurrency leave room for this task."""
        use = self._used.get(task.provider)
        if use is None:
            return None
        self._used[task.provider], refusal = decide.room(use, limits.get(task.provider, _NONE), now, task.slot_at)
        return refusal

    def begin(
        self, task: StoredTask, limits: Mapping[ProviderName, Limits], now: datetime, *, at_once: bool
    ) -> Refusal | None:
        """Let this task begin, or give it its place in line; `at_once` lets it begin whatever the rate."""
        use = self._used.get(task.provider)
        if use is None:
            return None
        of_provider = limits.get(task.provider, _NONE)
        use, refusal = decide.place(use, of_provider, now, task.slot_at)
        if at_once:
            refusal = None
        self._used[task.provider] = use if refusal else decide.begun(use, of_provider, now)
        return refusal

    def store(self) -> None:
        """Write what was taken."""
        for provider, use in self._used.items():
            found = self._found[provider]
            if (use.next_slot_at, use.day, use.sent_today) != (found.next_slot_at, found.day, found.sent_today):
                _store(self._connection, provider, use)


def charge(provider: ProviderName, limits: Limits, now: datetime) -> Callable[[Connection], None]:
    """Return the work that takes a place in a provider's line for a request that no task's claim stands for."""

    def work(connection: Connection) -> None:
        use = _locked(connection, provider, now, counted=False)
        _store(connection, provider, decide.charged(use, limits, now))

    return work


def lock(connection: Connection, provider: ProviderName, now: datetime) -> Any:
    """Return a provider's row, locked; it is made when it is not there."""
    row = _LOCK.first(connection, {"provider": provider})
    if row is None:
        _MAKE.run(connection, {"name": provider, "held": False, "updated_at": micros(now)})
        row = _LOCK.first(connection, {"provider": provider})
    return row


def _locked(connection: Connection, provider: ProviderName, now: datetime, *, counted: bool) -> Use:
    row = lock(connection, provider, now)
    sending = _ON_THEIR_WAY.value(connection, {"provider": provider}) if counted else 0
    return Use(
        next_slot_at=moment_or_none(row.next_slot_at), sending=sending or 0, day=row.day, sent_today=row.sent_today
    )


def _store(connection: Connection, provider: ProviderName, use: Use) -> None:
    slot = micros_or_none(use.next_slot_at)
    row = {"provider": provider, "new_slot": slot, "new_day": use.day, "new_sum": use.sent_today}
    _TAKEN.run(connection, row)

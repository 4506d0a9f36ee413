"""Where the limits of providers are kept for all workers: one row for each provider, locked by whoever claims under limits.

The locks are taken before any task's, in the order of the providers' names, and held to the commit: of several processes
each sees what the one before it took. Without limits no row is read or locked here. Where a line's end is far ahead the
tasks that wait in it are looked at, once in a transaction and before it gives a place itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, bindparam, func, select, update

from rules.vocabulary import ProviderName
from worker.ledger import limits as decide
from worker.ledger.encoding import micros, micros_or_none, moment, moment_or_none
from worker.ledger.limits import Refusal, Use
from worker.ledger.schema import TASK_SENDING, TASK_TIMED, attempts, providers, tasks
from worker.ledger.statements import Statement, upsert
from worker.ledger.types import Limits

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
_IN_LINE: Final = (
    select(tasks.c.slot_at)
    .where(
        tasks.c.provider == bindparam("provider"),
        TASK_TIMED,
        tasks.c.due_at > bindparam("now"),
        tasks.c.due_at <= bindparam("line_end"),
        tasks.c.slot_at > bindparam("now"),
    )
    .limit(bindparam("most"))
)
_NEXT_IN_LINE: Final = Statement(_IN_LINE.order_by(tasks.c.due_at))
_LAST_IN_LINE: Final = Statement(_IN_LINE.order_by(tasks.c.due_at.desc()))
#: For which day, if any, an attempt was counted that is given back.
_BEGUN: Final = Statement(
    select(attempts.c.started_at, tasks.c.provider)
    .select_from(attempts.join(tasks, tasks.c.id == attempts.c.task_id))
    .where(attempts.c.task_id == bindparam("this_id"), attempts.c.epoch == bindparam("held_epoch"))
)
_UNCOUNT: Final = Statement(
    update(providers)
    .where(
        providers.c.name == bindparam("provider"),
        providers.c.day == bindparam("of_day"),
        providers.c.sent_today >= bindparam("number"),
    )
    .values(sent_today=providers.c.sent_today - bindparam("number", type_=providers.c.sent_today.type))
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
        self._looked: set[ProviderName] = set()

    def room(
        self, provider: ProviderName, slot_at: datetime | None, limits: Mapping[ProviderName, Limits], now: datetime
    ) -> Refusal | None:
        """Say whether the provider's day and concurrency leave room for one more task, with the place it has in line."""
        use = self._used.get(provider)
        if use is None:
            return None
        self._used[provider], refusal = decide.room(use, limits.get(provider, _NONE), now, slot_at)
        return refusal

    def begin(
        self,
        provider: ProviderName,
        slot_at: datetime | None,
        limits: Mapping[ProviderName, Limits],
        now: datetime,
        *,
        at_once: bool,
    ) -> Refusal | None:
        """Let a task begin, or give it its place in line; `at_once` lets it begin whatever the rate."""
        use = self._used.get(provider)
        if use is None:
            return None
        of_provider = limits.get(provider, _NONE)
        before, (use, refusal) = use, decide.place(use, of_provider, now, slot_at)
        if at_once:
            refusal = None
        elif refusal is not None and provider not in self._looked:
            self._looked.add(provider)
            if decide.is_far(before, of_provider, now):
                seen = _believed(self._connection, provider, before, of_provider, now)
                use, refusal = decide.place(seen, of_provider, now, slot_at)
        self._used[provider] = use if refusal else decide.begun(use, of_provider, now)
        return refusal

    def store(self) -> None:
        """Write what was taken."""
        for provider, use in self._used.items():
            found = self._found[provider]
            if (use.next_slot_at, use.day, use.sent_today) != (found.next_slot_at, found.day, found.sent_today):
                _store(self._connection, provider, use)


def charge(provider: ProviderName, limits: Limits, now: datetime) -> Callable[[Connection], datetime]:
    """Return the work that takes a place in a provider's line for a request that no task's claim stands for.

    Its result is the moment of that place. A place between tasks leaves no trace here: whoever asks next may get it too.
    """

    def work(connection: Connection) -> datetime:
        use = _locked(connection, provider, now, counted=False)
        if decide.is_far(use, limits, now):
            use = _believed(connection, provider, use, limits, now)
        use, own_at = decide.taken(use, limits, now)
        _store(connection, provider, use)
        return own_at

    return work


def uncount(connection: Connection, provider: ProviderName, day: str, number: int) -> None:
    """Take attempts that cost the provider nothing out of its day's sum, unless another day has begun."""
    _UNCOUNT.run(connection, {"provider": provider, "of_day": day, "number": number})


def uncount_claim(connection: Connection, task_id: str, epoch: int) -> None:
    """Take a claim that was given back out of its day's sum."""
    row = _BEGUN.first(connection, {"this_id": task_id, "held_epoch": epoch})
    if row is not None:
        uncount(connection, ProviderName(row.provider), decide.day_of(moment(row.started_at)), 1)


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


def _believed(connection: Connection, provider: ProviderName, use: Use, limits: Limits, now: datetime) -> Use:
    """Look at the tasks that wait in a line which is far ahead."""
    asked = {
        "provider": provider,
        "now": micros(now),
        "line_end": micros_or_none(use.next_slot_at),
        "most": decide.PLACES,
    }
    slots = _NEXT_IN_LINE.values(connection, asked)
    last = max(slots, default=None)
    if len(slots) == decide.PLACES:
        last = _LAST_IN_LINE.value(connection, asked | {"most": 1})
    return decide.believed(use, limits, now, sorted(moment(slot) for slot in slots), moment_or_none(last))


def _store(connection: Connection, provider: ProviderName, use: Use) -> None:
    slot = micros_or_none(use.next_slot_at)
    row = {"provider": provider, "new_slot": slot, "new_day": use.day, "new_sum": use.sent_today}
    _TAKEN.run(connection, row)

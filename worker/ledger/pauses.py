"""When a provider is left alone, and what sets its tasks free again.

A pause that an attempt brought about ends when the provider answers a task to the point; at its moment one claim is let
through as a probe and the others wait for another while. One that a person ordered (`held`) ends at its moment or by
`resume`. Tasks that meet a pause wait for exactly its end, which is how they are found when it ends early.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, bindparam, or_, select, update

from rules.vocabulary import ProviderName
from worker.ledger import tallying
from worker.ledger.encoding import micros, moment, moment_or_none, sentence
from worker.ledger.rows import ProviderState
from worker.ledger.statements import Statement, columns_of, upsert
from worker.ledger.tables import TASK_TIMED, providers, tasks
from worker.ledger.tallying import Tally

#: How long the others wait while one task probes a provider after its pause.
PROBE_INTERVAL: Final = timedelta(seconds=60)

_STATES: Final = Statement(select(providers).order_by(providers.c.name))
_PAUSED: Final = Statement(select(providers).where(providers.c.paused_until_at.is_not(None)))
_PAUSE_OF: Final = Statement(
    select(providers)
    .where(providers.c.name == bindparam("provider"), providers.c.paused_until_at.is_not(None))
    .with_for_update(key_share=True)
)
_PROBED: Final = Statement(
    update(providers)
    .where(providers.c.name == bindparam("provider"), providers.c.paused_until_at == bindparam("seen"))
    .values(paused_until_at=bindparam("until"), updated_at=bindparam("now"))
)
_NEW_PAUSE: Final = upsert(providers)
#: What a pause says nothing of.
_OTHERS: Final = ("kind", "failures", "openings", "next_slot_at", "day", "sent_today", "found_at")
_PAUSE_COLUMNS: Final = ("paused_until_at", "reason", "held", "updated_at")
_HOLD: Final = Statement(
    _NEW_PAUSE.on_conflict_do_update(
        index_elements=(providers.c.name,), set_={name: _NEW_PAUSE.excluded[name] for name in _PAUSE_COLUMNS}
    ),
    columns_of(providers, *_OTHERS),
)
#: A person's order that still holds stands, also when it was given a moment ago.
_PAUSE: Final = Statement(
    _NEW_PAUSE.on_conflict_do_update(
        index_elements=(providers.c.name,),
        set_={name: _NEW_PAUSE.excluded[name] for name in _PAUSE_COLUMNS},
        where=or_(
            providers.c.held.is_(False),
            providers.c.paused_until_at.is_(None),
            providers.c.paused_until_at <= _NEW_PAUSE.excluded.updated_at,
        ),
    ),
    columns_of(providers, *_OTHERS),
)
_LIFT: Final = Statement(
    update(providers)
    .where(providers.c.name == bindparam("provider"))
    .values(paused_until_at=None, reason=None, held=False, updated_at=bindparam("now"))
)
_FREE: Final = Statement(
    update(tasks)
    .where(tasks.c.provider == bindparam("of"), TASK_TIMED, tasks.c.due_at == bindparam("until"))
    .values(due_at=bindparam("now"), updated_at=bindparam("now"))
)


def in_force(connection: Connection, now: datetime) -> dict[ProviderName, ProviderState]:
    """Return the pauses that stand: those that hold at this moment, and those whose end no probe has confirmed yet."""
    found = [_state(row) for row in _PAUSED.rows(connection)]
    return {state.name: state for state in found if not (state.held and is_over(state, now))}


def let_probe_through(connection: Connection, state: ProviderState, now: datetime) -> ProviderState | None:
    """Return the pause that the claims after this one meet, when this one is the probe of a pause whose moment has come.

    Of several processes at once one has the probe; the others' tasks are due again at once, and meet what it left.
    """
    if state.paused_until_at is None or not is_over(state, now):
        return None
    until_at = now + PROBE_INTERVAL
    seen = micros(state.paused_until_at)
    row = {"provider": state.name, "seen": seen, "until": micros(until_at), "now": micros(now)}
    return replace(state, paused_until_at=until_at) if _PROBED.run(connection, row) else None


def is_over(state: ProviderState, now: datetime) -> bool:
    """Whether a pause's moment has come."""
    return state.paused_until_at is None or state.paused_until_at <= now


def states(connection: Connection) -> list[ProviderState]:
    """Return every provider that was ever paused."""
    return [_state(row) for row in _STATES.rows(connection)]


def hold(provider: ProviderName, until_at: datetime, reason: str, now: datetime) -> Callable[[Connection], None]:
    """Return the work that pauses a provider on a person's order."""

    def work(connection: Connection) -> None:
        _pause(connection, provider, until_at, reason, now, held=True)

    return work


def resume(provider: ProviderName, now: datetime) -> Callable[[Connection], None]:
    """Return the work that lifts any pause of a provider."""

    def work(connection: Connection) -> None:
        _lift(connection, provider, now, even_held=True)

    return work


def lift_all_of_attempts(now: datetime) -> Callable[[Connection], None]:
    """Return the work that lifts every pause that an answer brought about."""

    def work(connection: Connection) -> None:
        for row in _PAUSED.rows(connection):
            _lift(connection, ProviderName(row.name), now, even_held=False)

    return work


def pause_after_attempt(
    connection: Connection, provider: ProviderName, until_at: datetime, reason: str, now: datetime
) -> None:
    """Pause a provider because of an answer; a person's order that still holds stands."""
    row = _PAUSE_OF.first(connection, {"provider": provider})
    if row is None or not row.held or moment(row.paused_until_at) <= now:
        _pause(connection, provider, until_at, reason, now, held=False)


def lift_after_delivery(connection: Connection, provider: ProviderName, now: datetime) -> None:
    """Lift a pause that an answer brought about: the provider works."""
    _lift(connection, provider, now, even_held=False)


def _pause(
    connection: Connection, provider: ProviderName, until_at: datetime, reason: str, now: datetime, *, held: bool
) -> None:
    standing = _PAUSE_OF.first(connection, {"provider": provider})
    if standing is None or (standing.held and moment(standing.paused_until_at) <= now):  # else it goes on
        tallying.of(connection).count(Tally.PAUSES, provider, "person" if held else "answer")
    row = {
        "name": provider,
        "paused_until_at": micros(until_at),
        "reason": sentence(reason),
        "held": held,
        "updated_at": micros(now),
    }
    (_HOLD if held else _PAUSE).run(connection, row)


def _lift(connection: Connection, provider: ProviderName, now: datetime, *, even_held: bool) -> None:
    row = _PAUSE_OF.first(connection, {"provider": provider})
    if row is None or (row.held and not even_held):
        return
    _LIFT.run(connection, {"provider": provider, "now": micros(now)})
    if moment(row.paused_until_at) > now:
        _FREE.run(connection, {"of": provider, "until": row.paused_until_at, "now": micros(now)})


def _state(row: Any) -> ProviderState:
    return ProviderState(
        name=ProviderName(row.name),
        paused_until_at=moment_or_none(row.paused_until_at),
        reason=row.reason,
        held=bool(row.held),
        updated_at=moment(row.updated_at),
    )

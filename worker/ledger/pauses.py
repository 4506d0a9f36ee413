"""When a provider is left alone, and what sets its tasks free again.

A pause that attempts brought about (`limits.py` says when) ends when the provider answers a task to the point; at its moment
one claim is let through as a probe and the others wait for another while. One that a person ordered (`held`) ends at its
moment or by `resume`. Tasks that meet a pause wait for exactly its end, which is how they are found when it ends early.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, bindparam, or_, select, update

from rules.vocabulary import ProviderName, Verdict
from worker.ledger import counters, gates
from worker.ledger import limits as decide
from worker.ledger.counters import Tally
from worker.ledger.encoding import micros, micros_or_none, moment, moment_or_none, sentence_or_none
from worker.ledger.limits import Outcome, Sign, Standing
from worker.ledger.schema import TASK_TIMED, providers, tasks
from worker.ledger.statements import Statement
from worker.ledger.types import Claim, PauseKind, ProviderState, Settlement

_OF: Final = providers.c.name == bindparam("provider")
_STATES: Final = Statement(select(providers).order_by(providers.c.name))
_PAUSED: Final = Statement(select(providers).where(providers.c.paused_until_at.is_not(None)))
#: One that an answer to the point changes something about.
_TROUBLED: Final = Statement(
    select(providers)
    .where(_OF, or_(providers.c.paused_until_at.is_not(None), providers.c.failures > 0))
    .with_for_update(key_share=True)
)
_PROBED: Final = Statement(
    update(providers)
    .where(_OF, providers.c.paused_until_at == bindparam("seen"))
    .values(paused_until_at=bindparam("until"))
)
_CUT: Final = Statement(
    update(providers)
    .where(_OF, providers.c.paused_until_at == bindparam("seen"))
    .values(paused_until_at=bindparam("until"), updated_at=bindparam("since"))
)
_STAND: Final = Statement(
    update(providers)
    .where(_OF)
    .values(
        paused_until_at=bindparam("until"),
        reason=bindparam("new_reason"),
        held=bindparam("is_held"),
        kind=bindparam("new_kind"),
        failures=bindparam("new_failures"),
        openings=bindparam("new_openings"),
        updated_at=bindparam("since"),
    )
)
_MOVE: Final = Statement(
    update(tasks)
    .where(tasks.c.provider == bindparam("of"), TASK_TIMED, tasks.c.due_at == bindparam("until"))
    .values(due_at=bindparam("new_due_at"), updated_at=bindparam("now"))
)


def believed(connection: Connection, now: datetime) -> dict[ProviderName, ProviderState]:
    """Return the pauses in force, for a claim; one whose end is further ahead than its kind can be is cut to that.

    It was written under a clock that was ahead of this one. The tasks that wait for its end wait for the new one.
    """
    found = in_force(connection, now)
    for name, state in sorted(found.items()):
        longest = decide.longest(state.kind, state.openings)
        if longest is None or state.paused_until_at is None or state.paused_until_at <= now + longest:
            continue
        seen, until_at, since_at = micros(state.paused_until_at), now + longest, min(state.updated_at, now)
        row = {"provider": name, "seen": seen, "until": micros(until_at), "since": micros(since_at)}
        if _CUT.run(connection, row):
            _MOVE.run(connection, {"of": name, "until": seen, "new_due_at": micros(until_at), "now": micros(now)})
        found[name] = replace(state, paused_until_at=until_at, updated_at=since_at)
    return found


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
    until_at = now + decide.probe_interval(state.kind, state.openings)
    row = {"provider": state.name, "seen": micros(state.paused_until_at), "until": micros(until_at)}
    return replace(state, paused_until_at=until_at) if _PROBED.run(connection, row) else None


def is_over(state: ProviderState, now: datetime) -> bool:
    """Whether a pause's moment has come."""
    return state.paused_until_at is None or state.paused_until_at <= now


def states(connection: Connection) -> list[ProviderState]:
    """Return what is kept of every provider."""
    return [_state(row) for row in _STATES.rows(connection)]


def hold(provider: ProviderName, until_at: datetime, reason: str, now: datetime) -> Callable[[Connection], None]:
    """Return the work that pauses a provider on a person's order."""

    def work(connection: Connection) -> None:
        row = gates.lock(connection, provider, now)
        found = _standing(row)
        ordered = replace(found, kind=PauseKind.PERSON, until_at=until_at, reason=reason, since_at=now)
        _stand(connection, provider, found, ordered, now)

    return work


def resume(provider: ProviderName, now: datetime) -> Callable[[Connection], None]:
    """Return the work that lifts any pause of a provider, and forgets its failures."""

    def work(connection: Connection) -> None:
        row = _TROUBLED.first(connection, {"provider": provider})
        if row is not None:
            _stand(connection, provider, _standing(row), Standing(), now)

    return work


def lift_all_of_answers(now: datetime) -> Callable[[Connection], None]:
    """Return the work that lifts every pause by a credential or an address that was not taken."""

    def work(connection: Connection) -> None:
        for paused in _PAUSED.rows(connection):
            row = _TROUBLED.first(connection, {"provider": paused.name})
            if row is not None and _standing(row).kind is PauseKind.ANSWER:
                _stand(connection, ProviderName(row.name), _standing(row), Standing(), now)

    return work


def mind(connection: Connection, settled: Sequence[tuple[Claim, Settlement, datetime]]) -> list[ProviderState]:
    """Let outcomes, each with its moment, say how their providers stand; return the pauses that begin with them."""
    of_provider: dict[ProviderName, list[tuple[Outcome, datetime]]] = {}
    free: dict[ProviderName, list[str]] = {}
    for claim, settlement, now in settled:
        if not settlement.counted or (settlement.verdict is Verdict.BUSY and settlement.status is None):
            free.setdefault(claim.task.provider, []).append(decide.day_of(claim.claimed_at))
        outcome = _outcome(claim, settlement)
        if outcome.sign is not Sign.NOTHING or outcome.until_at is not None:
            of_provider.setdefault(claim.task.provider, []).append((outcome, now))
    began = [_mind(connection, name, each, free.get(name, ())) for name, each in sorted(of_provider.items())]
    return [pause for pause in began if pause is not None]


def refused(
    provider: ProviderName, kind: PauseKind, until_at: datetime, reason: str, asked_at: datetime, now: datetime
) -> Callable[[Connection], ProviderState | None]:
    """Return the work that lets the answer to a question pause its provider; its result is the pause that begins so."""
    outcome = Outcome(sign=Sign.NOTHING, claimed_at=asked_at, reason=reason, kind=kind, until_at=until_at)
    return lambda connection: _mind(connection, provider, [(outcome, now)], ())


def _outcome(claim: Claim, settlement: Settlement) -> Outcome:
    asks = settlement.pause_until_at is not None
    reason = (settlement.pause_reason if asks else None) or settlement.reason
    return Outcome(
        sign=Sign.NOTHING if asks else decide.sign_of(settlement.verdict, settlement.status),
        claimed_at=claim.claimed_at,
        reason=reason or ("its answer asked for a pause" if asks else None),
        kind=settlement.pause_kind if asks else None,
        until_at=settlement.pause_until_at,
    )


def _mind(
    connection: Connection, provider: ProviderName, outcomes: Sequence[tuple[Outcome, datetime]], free: Sequence[str]
) -> ProviderState | None:
    """Let a provider's outcomes count; `free` are the days of attempts that do not count among their day's."""
    latest_at = outcomes[-1][1]
    if all(outcome.sign is Sign.LIFE for outcome, _ in outcomes):
        row = _TROUBLED.first(connection, {"provider": provider})
        if row is None:
            return None
    else:
        row = gates.lock(connection, provider, latest_at)
    if row.day in free:  # only where a cap counts days
        gates.uncount(connection, provider, row.day, free.count(row.day))
    found = standing = _standing(row)
    for outcome, now in outcomes:
        standing = decide.after(standing, outcome, now)
    if standing == found or not _stand(connection, provider, found, standing, latest_at):
        return None
    return ProviderState(
        name=provider,
        paused_until_at=standing.until_at,
        reason=standing.reason,
        held=False,
        updated_at=latest_at,
        kind=standing.kind,
        failures=standing.failures,
        openings=standing.openings,
    )


def _stand(connection: Connection, provider: ProviderName, found: Standing, new: Standing, now: datetime) -> bool:
    """Write how a provider stands now; return whether a pause began that was not there before."""
    ended = found.kind is PauseKind.PERSON and found.until_at is not None and found.until_at <= now
    began = found.kind is None or ended
    if new.kind is None:
        began = False
    elif began:
        counters.of(connection).count(Tally.PAUSES, provider, new.kind)
    paused = new.kind is not None
    # What began before this moment says nothing about a pause that begins with it; so one that goes on keeps its moment.
    since_at = new.since_at if paused and new.since_at else now
    row = {
        "provider": provider,
        "until": micros_or_none(new.until_at),
        "new_reason": sentence_or_none(new.reason),
        "is_held": new.kind is PauseKind.PERSON,
        "new_kind": new.kind,
        "new_failures": new.failures,
        "new_openings": new.openings,
        "since": micros(since_at),
    }
    _STAND.run(connection, row)
    if found.until_at is not None and found.until_at > now and (new.until_at is None or new.until_at < found.until_at):
        due_at = micros(new.until_at or now)
        _MOVE.run(
            connection, {"of": provider, "until": micros(found.until_at), "new_due_at": due_at, "now": micros(now)}
        )
    return began


def _standing(row: Any) -> Standing:
    state = _state(row)
    return Standing(
        kind=state.kind,
        until_at=state.paused_until_at,
        reason=state.reason,
        since_at=state.updated_at,
        failures=state.failures,
        openings=state.openings,
    )


def _state(row: Any) -> ProviderState:
    return ProviderState(
        name=ProviderName(row.name),
        paused_until_at=moment_or_none(row.paused_until_at),
        reason=row.reason,
        held=bool(row.held),
        updated_at=moment(row.updated_at),
        kind=_kind(row),
        failures=row.failures,
        openings=row.openings,
        day=row.day,
        sent_today=row.sent_today,
    )


def _kind(row: Any) -> PauseKind | None:
    if row.paused_until_at is None:
        return None
    if row.kind is None:  # written by a release that knew two kinds
        return PauseKind.PERSON if row.held else PauseKind.ANSWER
    return PauseKind(row.kind)

"""How much each provider may get and when it is left alone: rate limiter, concurrency, daily cap, circuit breaker, pauses.

First the decisions, pure functions of a state and a moment; then the rows of `providers` in which all workers share that
state; then `ledger.limits`, the methods.

Rate is the generic cell rate algorithm (ITU-T I.371): one moment, `next_slot_at`, holds all of it. A task that finds no slot
now is given the next one to come, for itself, so that nobody asks twice for the same slot. A slot that was missed by more
than `SLOT_HOLDS` is lost: slots that piled up while nothing moved would let a flood through.

`next_slot_at` is clamped to what waiting tasks explain: cancelled tasks and clocks that were wrong can leave it too far ahead.
The line then ends after the last reserved slot, and free slots between reserved ones are given first. In the same way no pause
lasts longer than its kind can.

The breaker counts tries in a row that met no provider at work. It opens for a span that doubles with each probe that fails,
and closes with any answer to the point. What began before a pause did says nothing about how the pause stands. A pause that
attempts brought about ends when the provider answers a task to the point; at its moment one claim is let through as a probe
while the others wait for another span. One that a person ordered (`held`) ends at its moment or by `resume`. Tasks that meet
a pause wait for exactly its end, which is how they are found when it ends early.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, bindparam, func, or_, select, update

from rules.vocabulary import ProviderName, Verdict, instant
from worker.ledger.counters import CounterName, counters_of
from worker.ledger.encoding import micros, micros_or_none, moment, moment_or_none, sentence_or_none
from worker.ledger.schema import TASK_SENDING, TASK_TIMED, attempts, providers, tasks
from worker.ledger.statements import Statement, upsert
from worker.ledger.types import Claim, Held, Limits, PauseKind, ProviderState, Settlement
from worker.ledger.writer import LedgerGroup

#: How long a task may come after the slot that it was given.
SLOT_HOLDS: Final = timedelta(seconds=5)
#: So many slots may be ahead without a task in them: those of look-ups and polls that are on their way.
UNSEEN: Final = 8
#: So many of the next reserved slots are looked at, for free ones between them.
LINE_LIMIT: Final = 1000
#: What finds all requests on their way comes again after this, and spread over as long again.
CONCURRENCY_REST: Final = timedelta(seconds=1)
#: So many failures in a row open the breaker.
FAILURES_TO_OPEN: Final = 5
#: How long the breaker opens first, and at the longest.
FIRST_SPAN: Final = timedelta(seconds=5)
LONGEST_SPAN: Final = timedelta(minutes=5)
#: How long the others wait while one task probes a provider that rejected our credential or does not know our address.
ANSWER_SPAN: Final = timedelta(seconds=60)
#: How long a provider that asks for a rest is left alone at the longest.
LONGEST_REST: Final = timedelta(hours=1)

_SECOND: Final = timedelta(seconds=1)
_TOO_MANY_REQUESTS: Final = 429
_SERVER_FAULTS: Final = range(500, 600)
_UNLIMITED: Final = Limits()


# Rate, concurrency, daily cap: decisions -------------------------------------------------------------------------------


class LimiterState(NamedTuple):
    """One provider's use of its limits: the end of its reserved slots, requests in flight, attempts on `day` (UTC).

    `free` lists known free slots before `next_slot_at`. `turned_away` counts claims refused a moment ago because of
    concurrency.
    """

    next_slot_at: datetime | None = None
    free: tuple[datetime, ...] = ()
    sending: int = 0
    turned_away: int = 0
    day: str | None = None
    sent_today: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Deferral:
    """Why a task may not start now, when to try again, and the slot reserved for it, if any."""

    held: Held
    due_at: datetime
    why: str
    slot_at: datetime | None = None


def check_room(
    state: LimiterState, limits: Limits, now: datetime, slot_at: datetime | None
) -> tuple[LimiterState, Deferral | None]:
    """Check daily cap and concurrency for one more request. Returns the new state and the Deferral, None when there is room.

    `slot_at`, a slot reserved for the task before, stays reserved.
    """
    if limits.daily_cap and state.day == day_of(now) and state.sent_today >= limits.daily_cap:
        tomorrow_at = datetime.combine(now.astimezone(UTC).date() + timedelta(days=1), datetime.min.time(), UTC)
        why = f"the day's {limits.daily_cap} attempts are made: again at {instant(tomorrow_at)}"
        return state, Deferral(held=Held.CAP, due_at=tomorrow_at, why=why)
    if limits.concurrency and state.sending >= limits.concurrency:
        spread = CONCURRENCY_REST * (state.turned_away % limits.concurrency) / limits.concurrency
        why = f"{state.sending} requests are on their way, as many as may be at once"
        deferral = Deferral(held=Held.CONCURRENCY, due_at=now + CONCURRENCY_REST + spread, why=why, slot_at=slot_at)
        return state._replace(turned_away=state.turned_away + 1), deferral
    return state, None


def reserve_slot(
    state: LimiterState, limits: Limits, now: datetime, slot_at: datetime | None
) -> tuple[LimiterState, Deferral | None]:
    """Check the rate for one more request. Returns the new state and a Deferral with a reserved slot, None when it may start.

    `slot_at` is the slot that was reserved for this task before; once that moment has come, the task starts without being
    charged again.
    """
    if not limits.rate_per_second or (slot_at is not None and slot_at <= now <= slot_at + SLOT_HOLDS):
        return state, None
    state, own_at = take_slot(state, limits, now)
    if own_at <= now:
        return state, None
    why = f"{limits.rate_per_second:g} requests a second: its own place is at {instant(own_at)}"
    return state, Deferral(held=Held.RATE, due_at=own_at, why=why, slot_at=own_at)


def take_slot(state: LimiterState, limits: Limits, now: datetime) -> tuple[LimiterState, datetime]:
    """Take the next slot. Returns the new state and the slot's moment: now, or later."""
    if state.free:
        return state._replace(free=state.free[1:]), max(now, state.free[0])
    own_at = max(now, (state.next_slot_at or now) - slot_interval(limits) * (limits.burst - 1))
    return state._replace(next_slot_at=max(now, state.next_slot_at or now) + slot_interval(limits)), own_at


def is_far_ahead(state: LimiterState, limits: Limits, now: datetime) -> bool:
    """Whether `next_slot_at` is so far ahead that only tasks with reserved slots can explain it."""
    if state.next_slot_at is None or not limits.rate_per_second:
        return False
    return state.next_slot_at - now > slot_interval(limits) * (limits.burst + UNSEEN)


def clamp_line(
    state: LimiterState, limits: Limits, now: datetime, slots: Sequence[datetime], last_at: datetime | None
) -> LimiterState:
    """Return the state with `next_slot_at` cut to what waiting tasks explain: their next `slots`, and the last one.

    After a cut it is unknown what started just now, so the burst counts as used.
    """
    step = slot_interval(limits)
    end_at = max(now, last_at or now) + step * limits.burst
    if state.next_slot_at is not None and state.next_slot_at <= end_at + step * UNSEEN:
        end_at = state.next_slot_at
    free: list[datetime] = []
    number, free_at = 0, now + step
    known = [*slots, end_at - step * (limits.burst - 1)] if not slots or slots[-1] == last_at else slots
    for slot_at in known:
        gaps = max((slot_at - free_at) // step, 0)
        free += [free_at + step * gap for gap in range(min(gaps, LINE_LIMIT - len(free)))]
        number += gaps
        free_at = max(free_at, slot_at + step)
    return state._replace(next_slot_at=end_at, free=tuple(free) if number > UNSEEN else ())


def count_begun(state: LimiterState, limits: Limits, now: datetime) -> LimiterState:
    """Return the state with one more request in flight."""
    if not limits.daily_cap:
        return state._replace(sending=state.sending + 1)
    today = day_of(now)
    sent_today = state.sent_today + 1 if state.day == today else 1
    return state._replace(sending=state.sending + 1, day=today, sent_today=sent_today)


def slot_interval(limits: Limits) -> timedelta:
    """Return the time between two slots."""
    return max(_SECOND / limits.rate_per_second, timedelta.resolution)


def day_of(now: datetime) -> str:
    """Return the UTC day of a moment, by which the daily cap counts."""
    return now.astimezone(UTC).date().isoformat()


# Circuit breaker and pauses: decisions ---------------------------------------------------------------------------------


class Health(StrEnum):
    """What an attempt's outcome says about the provider itself, apart from the task."""

    ALIVE = "alive"
    FAILING = "failing"
    UNCLEAR = "unclear"


def health_of(verdict: Verdict, status: int | None) -> Health:
    """Return ALIVE when the answer was about the task, FAILING when the provider could not serve the request."""
    match verdict:
        case Verdict.DELIVERED:
            return Health.ALIVE
        case Verdict.REFUSED:  # without a status nothing was sent
            return Health.UNCLEAR if status is None else Health.ALIVE
        case Verdict.BUSY:
            return Health.UNCLEAR if status == _TOO_MANY_REQUESTS else Health.FAILING
        case Verdict.UNKNOWN:
            return Health.FAILING if status is None or status in _SERVER_FAULTS else Health.UNCLEAR
        case Verdict.PAUSE:
            return Health.UNCLEAR


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSignal:
    """What an attempt claimed at `claimed_at` says about its provider; `kind` and `until_at` are set when it asks for a pause."""

    health: Health
    claimed_at: datetime
    reason: str | None = None
    kind: PauseKind | None = None
    until_at: datetime | None = None


def probe_interval(kind: PauseKind | None, openings: int) -> timedelta:
    """Return how long other tasks wait while one task probes a provider whose pause is over."""
    if kind is PauseKind.BREAKER:
        return breaker_span(openings)
    return FIRST_SPAN if kind is PauseKind.ASKED else ANSWER_SPAN


def breaker_span(openings: int) -> timedelta:
    """Return how long the breaker stays open when it opens for the `openings`-th time in a row."""
    doublings = min(max(openings - 1, 0), 16)
    return min(FIRST_SPAN * (1 << doublings), LONGEST_SPAN)


def longest_pause(kind: PauseKind | None, openings: int) -> timedelta | None:
    """Return the longest possible pause of this kind; None for an operator's pause, which has no bound."""
    longest = {
        PauseKind.BREAKER: breaker_span(openings),
        PauseKind.ASKED: LONGEST_REST,
        PauseKind.ANSWER: LONGEST_SPAN,
    }
    return longest.get(kind) if kind else None


def next_state(state: ProviderState, signal: HealthSignal, now: datetime) -> ProviderState:
    """Return the provider's state after an outcome. An operator's pause that still holds is never changed by an outcome."""
    if state.held:
        if not is_over(state, now):
            return state
        state = _resumed(state)
    if signal.kind is PauseKind.ASKED:
        return _rested(state, signal, now)
    if signal.until_at is not None:
        return _paused(state, PauseKind.ANSWER, signal.until_at, signal.reason, now)
    match signal.health:
        case Health.ALIVE:
            alive = replace(state, failures=0, openings=0)
            return alive if state.kind is PauseKind.ASKED and _began_before(signal, state) else _resumed(alive)
        case Health.FAILING:
            return _failed(state, signal, now)
        case Health.UNCLEAR:
            return state


def is_over(state: ProviderState, now: datetime) -> bool:
    """Whether there is no pause, or the end of the pause has passed."""
    return state.paused_until_at is None or state.paused_until_at <= now


def _paused(
    state: ProviderState, kind: PauseKind, until_at: datetime, reason: str | None, now: datetime
) -> ProviderState:
    return replace(state, kind=kind, paused_until_at=until_at, reason=reason, updated_at=now)


def _resumed(state: ProviderState) -> ProviderState:
    return replace(state, kind=None, paused_until_at=None, reason=None)


def _began_before(signal: HealthSignal, state: ProviderState) -> bool:
    """Whether an attempt began before the pause did, so that it says nothing about how the pause stands."""
    return signal.claimed_at < state.updated_at


def _rested(state: ProviderState, signal: HealthSignal, now: datetime) -> ProviderState:
    """Leave a provider alone as long as it asks to be; what is worse than that goes on."""
    if state.kind is PauseKind.ANSWER or (state.kind is PauseKind.BREAKER and _began_before(signal, state)):
        return state
    until_at = signal.until_at or now
    if state.kind is PauseKind.ASKED and state.paused_until_at is not None and state.paused_until_at >= until_at:
        return state
    return _paused(state, PauseKind.ASKED, until_at, signal.reason, now)


def _failed(state: ProviderState, signal: HealthSignal, now: datetime) -> ProviderState:
    """Count a failure; open the breaker with enough of them, or again when its probe failed."""
    state = replace(state, failures=state.failures + 1)
    until_at = now + breaker_span(state.openings + 1)
    match state.kind:
        case PauseKind.BREAKER:
            opens = not _began_before(signal, state)
        case PauseKind.ANSWER:
            opens = False
        case _:
            sooner = state.paused_until_at is None or state.paused_until_at < until_at
            opens = state.failures >= FAILURES_TO_OPEN and sooner
    if not opens:
        return state
    reason = f"{state.failures} tries in a row failed; the last one: {signal.reason or 'no reason given'}"
    return _paused(replace(state, openings=state.openings + 1), PauseKind.BREAKER, until_at, reason, now)


# The limiter over the rows of `providers`: locked by whoever claims under limits ---------------------------------------

_OF_PROVIDER: Final = providers.c.name == bindparam("provider")
_LOCK_PROVIDER: Final = Statement(select(providers).where(_OF_PROVIDER).with_for_update(key_share=True))
_MAKE_PROVIDER: Final = Statement(upsert(providers).on_conflict_do_nothing(), ("name", "held", "updated_at"))
_COUNT_SENDING: Final = Statement(
    select(func.count()).select_from(tasks).where(tasks.c.provider == bindparam("provider"), TASK_SENDING)
)
_STORE_LIMITER: Final = Statement(
    update(providers)
    .where(_OF_PROVIDER)
    .values(next_slot_at=bindparam("new_slot"), day=bindparam("new_day"), sent_today=bindparam("new_sum"))
)
_RESERVED_SLOTS: Final = (
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
_NEXT_SLOTS: Final = Statement(_RESERVED_SLOTS.order_by(tasks.c.due_at))
_LAST_SLOT: Final = Statement(_RESERVED_SLOTS.order_by(tasks.c.due_at.desc()))
_BEGUN_AT: Final = Statement(
    select(attempts.c.started_at, tasks.c.provider)
    .select_from(attempts.join(tasks, tasks.c.id == attempts.c.task_id))
    .where(attempts.c.task_id == bindparam("this_id"), attempts.c.epoch == bindparam("held_epoch"))
)
_UNCOUNT: Final = Statement(
    update(providers)
    .where(_OF_PROVIDER, providers.c.day == bindparam("of_day"), providers.c.sent_today >= bindparam("number"))
    .values(sent_today=providers.c.sent_today - bindparam("number", type_=providers.c.sent_today.type))
)


class RateLimiter:
    """Rate, concurrency and daily cap of the providers, within one transaction. `store` writes the changes.

    One row for each provider is locked before any task, in the order of the providers' names, until the commit. Providers
    without limits are neither read nor locked.
    """

    def __init__(self, connection: Connection, limited: Iterable[Mapping[ProviderName, Limits]], now: datetime) -> None:
        """Lock the providers that are limited at all; `limited` has the limits of every caller."""
        self._connection = connection
        wanted: dict[ProviderName, bool] = {}
        for each in limited:
            for provider, limits in each.items():
                if limits.rate_per_second or limits.concurrency or limits.daily_cap:
                    wanted[provider] = wanted.get(provider, False) or bool(limits.concurrency)
        self._found = {name: _locked_state(connection, name, now, counted=wanted[name]) for name in sorted(wanted)}
        self._states = dict(self._found)
        self._clamped: set[ProviderName] = set()

    def check_room(
        self, provider: ProviderName, slot_at: datetime | None, limits: Mapping[ProviderName, Limits], now: datetime
    ) -> Deferral | None:
        """Return why daily cap or concurrency leaves no room for one more task (it may have a slot); None when there is room."""
        state = self._states.get(provider)
        if state is None:
            return None
        self._states[provider], deferral = check_room(state, limits.get(provider, _UNLIMITED), now, slot_at)
        return deferral

    def begin(
        self,
        provider: ProviderName,
        slot_at: datetime | None,
        limits: Mapping[ProviderName, Limits],
        now: datetime,
        *,
        whatever_the_rate: bool,
    ) -> Deferral | None:
        """Count a task as started and return None, or reserve a slot and return it; `whatever_the_rate` ignores the rate."""
        before = self._states.get(provider)
        if before is None:
            return None
        own = limits.get(provider, _UNLIMITED)
        state, deferral = reserve_slot(before, own, now, slot_at)
        if whatever_the_rate:
            deferral = None
        elif deferral is not None and provider not in self._clamped:
            self._clamped.add(provider)
            if is_far_ahead(before, own, now):
                state, deferral = reserve_slot(
                    _clamped(self._connection, provider, before, own, now), own, now, slot_at
                )
        self._states[provider] = state if deferral else count_begun(state, own, now)
        return deferral

    def store(self) -> None:
        """Write the changed states."""
        for provider, state in self._states.items():
            found = self._found[provider]
            if (state.next_slot_at, state.day, state.sent_today) != (found.next_slot_at, found.day, found.sent_today):
                _store_state(self._connection, provider, state)


def uncount_claim(connection: Connection, task_id: str, epoch: int) -> None:
    """Subtract a claim that was given back from the attempts of its day."""
    row = _BEGUN_AT.first(connection, {"this_id": task_id, "held_epoch": epoch})
    if row is not None:
        _uncount(connection, ProviderName(row.provider), day_of(moment(row.started_at)), 1)


def _uncount(connection: Connection, provider: ProviderName, day: str, number: int) -> None:
    """Take attempts that cost the provider nothing out of its day's sum, unless another day has begun."""
    _UNCOUNT.run(connection, {"provider": provider, "of_day": day, "number": number})


def _lock(connection: Connection, provider: ProviderName, now: datetime) -> Any:
    """Return a provider's row, locked; it is made when it is not there."""
    row = _LOCK_PROVIDER.first(connection, {"provider": provider})
    if row is None:
        _MAKE_PROVIDER.run(connection, {"name": provider, "held": False, "updated_at": micros(now)})
        row = _LOCK_PROVIDER.first(connection, {"provider": provider})
    return row


def _locked_state(connection: Connection, provider: ProviderName, now: datetime, *, counted: bool) -> LimiterState:
    row = _lock(connection, provider, now)
    sending = _COUNT_SENDING.value(connection, {"provider": provider}) if counted else 0
    return LimiterState(
        next_slot_at=moment_or_none(row.next_slot_at), sending=sending or 0, day=row.day, sent_today=row.sent_today
    )


def _clamped(
    connection: Connection, provider: ProviderName, state: LimiterState, limits: Limits, now: datetime
) -> LimiterState:
    """Clamp a line that is far ahead to the slots of tasks that wait."""
    asked = {
        "provider": provider,
        "now": micros(now),
        "line_end": micros_or_none(state.next_slot_at),
        "most": LINE_LIMIT,
    }
    slots = _NEXT_SLOTS.values(connection, asked)
    last = max(slots, default=None)
    if len(slots) == LINE_LIMIT:
        last = _LAST_SLOT.value(connection, asked | {"most": 1})
    return clamp_line(state, limits, now, sorted(moment(slot) for slot in slots), moment_or_none(last))


def _store_state(connection: Connection, provider: ProviderName, state: LimiterState) -> None:
    slot = micros_or_none(state.next_slot_at)
    row = {"provider": provider, "new_slot": slot, "new_day": state.day, "new_sum": state.sent_today}
    _STORE_LIMITER.run(connection, row)


# Pauses over the rows of `providers` -----------------------------------------------------------------------------------

_STATES: Final = Statement(select(providers).order_by(providers.c.name))
_PAUSED: Final = Statement(select(providers).where(providers.c.paused_until_at.is_not(None)))
#: One that an answer to the point changes something about.
_LOCK_TROUBLED: Final = Statement(
    select(providers)
    .where(_OF_PROVIDER, or_(providers.c.paused_until_at.is_not(None), providers.c.failures > 0))
    .with_for_update(key_share=True)
)
_MOVE_PAUSE: Final = Statement(
    update(providers)
    .where(_OF_PROVIDER, providers.c.paused_until_at == bindparam("seen"))
    .values(paused_until_at=bindparam("until"), updated_at=bindparam("since"))
)
_STORE_BREAKER: Final = Statement(
    update(providers)
    .where(_OF_PROVIDER)
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
_MOVE_TASKS: Final = Statement(
    update(tasks)
    .where(tasks.c.provider == bindparam("of"), TASK_TIMED, tasks.c.due_at == bindparam("until"))
    .values(due_at=bindparam("new_due_at"), updated_at=bindparam("now"))
)


def pauses_in_force(connection: Connection, now: datetime) -> dict[ProviderName, ProviderState]:
    """Return the pauses that hold now, and those that are over but that no probe has confirmed as ended."""
    found = [_provider_state(row) for row in _PAUSED.rows(connection)]
    return {state.name: state for state in found if not (state.held and is_over(state, now))}


def pauses_for_claim(connection: Connection, now: datetime) -> dict[ProviderName, ProviderState]:
    """Return the pauses in force, after shortening any that is longer than its kind allows.

    Such a pause was written by a process whose clock was ahead. Tasks that wait for its end get the new end.
    """
    found = pauses_in_force(connection, now)
    for name, state in sorted(found.items()):
        longest = longest_pause(state.kind, state.openings)
        if longest is None or state.paused_until_at is None or state.paused_until_at <= now + longest:
            continue
        cut = replace(state, paused_until_at=now + longest, updated_at=min(state.updated_at, now))
        if _move_pause(connection, state, cut):
            _move_tasks(connection, name, state.paused_until_at, now + longest, now)
        found[name] = cut
    return found


def take_probe(connection: Connection, state: ProviderState, now: datetime) -> ProviderState | None:
    """Let one claim through as the probe of a pause that is over; return the extended pause that other claims meet.

    Returns None when another process has the probe or the pause is not over.
    """
    if state.paused_until_at is None or not is_over(state, now):
        return None
    probed = replace(state, paused_until_at=now + probe_interval(state.kind, state.openings))
    return probed if _move_pause(connection, state, probed) else None


def note_outcomes(connection: Connection, settled: Sequence[tuple[Claim, Settlement, datetime]]) -> list[ProviderState]:
    """Update the breakers of providers with attempts' outcomes, each at its own moment; return the pauses that start."""
    signals: dict[ProviderName, list[tuple[HealthSignal, datetime]]] = {}
    free: dict[ProviderName, list[str]] = {}
    for claim, settlement, now in settled:
        provider = claim.task.provider
        if not settlement.counted or (settlement.verdict is Verdict.BUSY and settlement.status is None):
            free.setdefault(provider, []).append(day_of(claim.claimed_at))
        signal = _signal_of(claim, settlement)
        if signal.health is not Health.UNCLEAR or signal.until_at is not None:
            signals.setdefault(provider, []).append((signal, now))
    began = [_note_signals(connection, name, each, free.get(name, ())) for name, each in sorted(signals.items())]
    return [pause for pause in began if pause is not None]


def _signal_of(claim: Claim, settlement: Settlement) -> HealthSignal:
    if settlement.pause_until_at is None:
        health = health_of(settlement.verdict, settlement.status)
        return HealthSignal(health=health, claimed_at=claim.claimed_at, reason=settlement.reason)
    return HealthSignal(
        health=Health.UNCLEAR,
        claimed_at=claim.claimed_at,
        reason=settlement.pause_reason or settlement.reason or "its answer asked for a pause",
        kind=settlement.pause_kind,
        until_at=settlement.pause_until_at,
    )


def _note_signals(
    connection: Connection,
    provider: ProviderName,
    signals: Sequence[tuple[HealthSignal, datetime]],
    free: Sequence[str],
) -> ProviderState | None:
    """Move a provider's breaker; `free` are the days of attempts that do not count among their day's."""
    latest_at = signals[-1][1]
    if all(signal.health is Health.ALIVE for signal, _ in signals):
        row = _LOCK_TROUBLED.first(connection, {"provider": provider})
        if row is None:
            return None
    else:
        row = _lock(connection, provider, latest_at)
    if row.day in free:  # only where a cap counts days
        _uncount(connection, provider, row.day, free.count(row.day))
    found = state = _provider_state(row)
    for signal, now in signals:
        state = next_state(state, signal, now)
    return state if state != found and _store(connection, found, state, latest_at) else None


def _store(connection: Connection, found: ProviderState, new: ProviderState, now: datetime) -> bool:
    """Write how a provider stands now; return whether a pause began that was not there before."""
    began = new.kind is not None and (found.kind is None or (found.held and is_over(found, now)))
    if began:
        counters_of(connection).count(CounterName.PAUSES, new.name, str(new.kind))
    row = {
        "provider": new.name,
        "until": micros_or_none(new.paused_until_at),
        "new_reason": sentence_or_none(new.reason),
        "is_held": new.held,
        "new_kind": new.kind,
        "new_failures": new.failures,
        "new_openings": new.openings,
        # What began before this moment says nothing about a pause that begins with it; one that goes on keeps its moment.
        "since": micros(now if new.kind is None else new.updated_at),
    }
    _STORE_BREAKER.run(connection, row)
    if found.paused_until_at is not None and found.paused_until_at > now:
        until_at = new.paused_until_at or now
        if until_at < found.paused_until_at:
            _move_tasks(connection, new.name, found.paused_until_at, until_at, now)
    return began


def _clear(connection: Connection, found: ProviderState, now: datetime) -> None:
    _store(connection, found, replace(_resumed(found), failures=0, openings=0), now)


def _move_pause(connection: Connection, seen: ProviderState, moved: ProviderState) -> bool:
    """Write a pause's new end; False when somebody else has moved it meanwhile."""
    row = {
        "provider": seen.name,
        "seen": micros_or_none(seen.paused_until_at),
        "until": micros_or_none(moved.paused_until_at),
        "since": micros(moved.updated_at),
    }
    return _MOVE_PAUSE.run(connection, row) == 1


def _move_tasks(
    connection: Connection, provider: ProviderName, until_at: datetime, due_at: datetime, now: datetime
) -> None:
    """Make the tasks that wait for a pause's end due at another moment."""
    row = {"of": provider, "until": micros(until_at), "new_due_at": micros(due_at), "now": micros(now)}
    _MOVE_TASKS.run(connection, row)


def _provider_state(row: Any) -> ProviderState:
    return ProviderState(
        name=ProviderName(row.name),
        paused_until_at=moment_or_none(row.paused_until_at),
        reason=row.reason,
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


# The methods -----------------------------------------------------------------------------------------------------------


class LedgerLimits(LedgerGroup):
    """`ledger.limits`: pauses of providers, and rate charges for requests that are no attempts."""

    def pause(self, provider: ProviderName, until_at: datetime, reason: str, now: datetime) -> None:
        """Pause a provider by an operator's order, until `until_at` or `resume`. A successful attempt does not end it."""

        def work(connection: Connection) -> None:
            found = _provider_state(_lock(connection, provider, now))
            _store(connection, found, _paused(found, PauseKind.PERSON, until_at, reason, now), now)

        self._writer.write(work)

    def resume(self, provider: ProviderName, now: datetime) -> None:
        """End any pause of a provider and reset its failures; tasks that waited for the end are due now."""

        def work(connection: Connection) -> None:
            row = _LOCK_TROUBLED.first(connection, {"provider": provider})
            if row is not None:
                _clear(connection, _provider_state(row), now)

        self._writer.write(work)

    def resume_rejected(self, now: datetime) -> None:
        """End pauses caused by a rejected credential or address. Called at start, when settings may have been corrected."""

        def work(connection: Connection) -> None:
            for paused in _PAUSED.rows(connection):
                row = _LOCK_TROUBLED.first(connection, {"provider": paused.name})
                if row is not None and _kind(row) is PauseKind.ANSWER:
                    _clear(connection, _provider_state(row), now)

        self._writer.write(work)

    def pause_on_answer(
        self,
        provider: ProviderName,
        kind: PauseKind,
        until_at: datetime,
        reason: str,
        asked_at: datetime,
        now: datetime,
    ) -> ProviderState | None:
        """Pause a provider because of its answer to a look-up or poll sent at `asked_at`, as an attempt's answer would.

        Returns the pause if it starts with this.
        """
        signal = HealthSignal(health=Health.UNCLEAR, claimed_at=asked_at, reason=reason, kind=kind, until_at=until_at)
        return self._writer.write(lambda connection: _note_signals(connection, provider, [(signal, now)], ()))

    def charge(self, provider: ProviderName, limits: Limits, now: datetime) -> datetime:
        """Charge a request that is no attempt (a look-up, a poll) to a provider's rate. It is never refused.

        Returns the moment of its slot; the request should not be sent before. A free slot between those of tasks is not marked
        as taken, so the next caller may get the same one.
        """
        if not limits.rate_per_second:
            return now

        def work(connection: Connection) -> datetime:
            state = _locked_state(connection, provider, now, counted=False)
            if is_far_ahead(state, limits, now):
                state = _clamped(connection, provider, state, limits, now)
            state, own_at = take_slot(state, limits, now)
            _store_state(connection, provider, state)
            return own_at

        return self._writer.write(work)

    def states(self) -> list[ProviderState]:
        """Return each provider's state: its pause and the pause's kind, failures in a row, attempts of the day."""
        return self._read(lambda connection: [_provider_state(row) for row in _STATES.rows(connection)])

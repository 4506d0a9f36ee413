"""How much a provider may get, and when it is left alone: the decisions, without a clock and without the ledger.

Rate is the generic cell rate algorithm (ITU-T I.371): one moment, that of the next place in line, holds all of it. What
finds no place now is given the next one to come, at once and for itself, so that nobody asks twice for the same place. A
place that was missed by more than `SLOT_HOLDS` is lost: places that piled up while nothing moved would let a flood through.

The moment is believed only as far as tasks that wait in the line explain it. What else is ahead of now are places whose
tasks wait no more (cancelled, paused), or the word of a clock that is wrong: the line ends after the last task in it, and
places between tasks that nobody has are given first. In the same way no pause lasts longer than its kind can.

The breaker counts tries in a row that met no provider at work. It opens for a span that doubles with each probe that fails,
and closes with any answer to the point. What began before a pause did says nothing about how the pause stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

from rules.vocabulary import Verdict, instant
from worker.ledger.types import Held, Limits, PauseKind

#: How long a task may come after the place in line that it was given.
SLOT_HOLDS: Final = timedelta(seconds=5)
#: So many places may be ahead without a task in them: those of look-ups and polls that are on their way.
UNSEEN: Final = 8
#: So many of the next places in line are looked at, for those that nobody has.
PLACES: Final = 1000
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What one provider has had: its line's end, requests on their way, those refused a place just now, and the day's sum.

    `free` are the places before the line's end that nobody has, as far as they were looked for.
    """

    next_slot_at: datetime | None = None
    free: tuple[datetime, ...] = ()
    sending: int = 0
    turned_away: int = 0
    day: str | None = None
    sent_today: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a task may not begin now, when it is worth asking again, and the place in line that is kept for it, if any."""

    held: Held
    due_at: datetime
    why: str
    slot_at: datetime | None = None


def room(use: Use, limits: Limits, now: datetime, slot_at: datetime | None) -> tuple[Use, Refusal | None]:
    """Say whether day and concurrency leave room for one more request; a place in line is kept meanwhile."""
    today = day_of(now)
    if limits.daily_cap and use.day == today and use.sent_today >= limits.daily_cap:
        tomorrow_at = datetime.combine(now.astimezone(UTC).date() + timedelta(days=1), datetime.min.time(), UTC)
        why = f"the day's {limits.daily_cap} attempts are made: again at {instant(tomorrow_at)}"
        return use, Refusal(held=Held.CAP, due_at=tomorrow_at, why=why)
    if limits.concurrency and use.sending >= limits.concurrency:
        spread = CONCURRENCY_REST * (use.turned_away % limits.concurrency) / limits.concurrency
        why = f"{use.sending} requests are on their way, as many as may be at once"
        refusal = Refusal(held=Held.CONCURRENCY, due_at=now + CONCURRENCY_REST + spread, why=why, slot_at=slot_at)
        return replace(use, turned_away=use.turned_away + 1), refusal
    return use, None


def place(use: Use, limits: Limits, now: datetime, slot_at: datetime | None) -> tuple[Use, Refusal | None]:
    """Say whether the rate lets one more request begin now; else it is given its own place in line.

    `slot_at` is the place it was given before: one that has come is its right, without another charge.
    """
    if not limits.rate_per_second or (slot_at is not None and slot_at <= now <= slot_at + SLOT_HOLDS):
        return use, None
    use, own_at = taken(use, limits, now)
    if own_at <= now:
        return use, None
    why = f"{limits.rate_per_second:g} requests a second: its own place is at {instant(own_at)}"
    return use, Refusal(held=Held.RATE, due_at=own_at, why=why, slot_at=own_at)


def taken(use: Use, limits: Limits, now: datetime) -> tuple[Use, datetime]:
    """Return the use with one more place taken, and the moment of that place: now, or one to come."""
    if use.free:
        return replace(use, free=use.free[1:]), max(now, use.free[0])
    own_at = max(now, (use.next_slot_at or now) - interval(limits) * (limits.burst - 1))
    return charged(use, limits, now), own_at


def is_far(use: Use, limits: Limits, now: datetime) -> bool:
    """Whether the line's end is so far ahead that only tasks in it explain that."""
    if use.next_slot_at is None or not limits.rate_per_second:
        return False
    return use.next_slot_at - now > interval(limits) * (limits.burst + UNSEEN)


def believed(use: Use, limits: Limits, now: datetime, slots: Sequence[datetime], last_at: datetime | None) -> Use:
    """Return the use with as much of its line as the places of waiting tasks explain: the next `slots`, the last of all.

    Whether something began just now is not known of a line that is not believed: the burst counts as used.
    """
    step = interval(limits)
    end_at = max(now, last_at or now) + step * limits.burst
    if use.next_slot_at is not None and use.next_slot_at <= end_at + step * UNSEEN:
        end_at = use.next_slot_at
    found: list[datetime] = []
    number, free_at = 0, now + step
    known = [*slots, end_at - step * (limits.burst - 1)] if not slots or slots[-1] == last_at else slots
    for slot_at in known:
        places = max((slot_at - free_at) // step, 0)
        found += [free_at + step * place for place in range(min(places, PLACES - len(found)))]
        number += places
        free_at = max(free_at, slot_at + step)
    return replace(use, next_slot_at=end_at, free=tuple(found) if number > UNSEEN else ())


def charged(use: Use, limits: Limits, now: datetime) -> Use:
    """Return the use with one more place in line taken."""
    return replace(use, next_slot_at=max(now, use.next_slot_at or now) + interval(limits))


def begun(use: Use, limits: Limits, now: datetime) -> Use:
    """Return the use with one more request on its way."""
    use = replace(use, sending=use.sending + 1)
    if not limits.daily_cap:
        return use
    today = day_of(now)
    return replace(use, day=today, sent_today=use.sent_today + 1 if use.day == today else 1)


def interval(limits: Limits) -> timedelta:
    """Return how far places in line are apart."""
    return max(_SECOND / limits.rate_per_second, timedelta.resolution)


def day_of(now: datetime) -> str:
    """Return the day that a moment is counted for."""
    return now.astimezone(UTC).date().isoformat()


class Sign(StrEnum):
    """What an outcome says about its provider, the task aside."""

    LIFE = "life"
    FAILURE = "failure"
    NOTHING = "nothing"


def sign_of(verdict: Verdict, status: int | None) -> Sign:
    """Say what an outcome shows: life when the provider spoke about the task itself, failure when it could not serve it."""
    match verdict:
        case Verdict.DELIVERED:
            return Sign.LIFE
        case Verdict.REFUSED:  # without a status nothing was sent
            return Sign.NOTHING if status is None else Sign.LIFE
        case Verdict.BUSY:
            return Sign.NOTHING if status == _TOO_MANY_REQUESTS else Sign.FAILURE
        case Verdict.UNKNOWN:
            return Sign.FAILURE if status is None or status in _SERVER_FAULTS else Sign.NOTHING
        case Verdict.PAUSE:
            return Sign.NOTHING


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What an attempt that began at `claimed_at` means for its provider; `kind` and `until_at` when it asks for a pause."""

    sign: Sign
    claimed_at: datetime
    reason: str | None = None
    kind: PauseKind | None = None
    until_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a provider stands: its pause, if any, which is in force `since_at`; failures in a row, openings of the breaker."""

    kind: PauseKind | None = None
    until_at: datetime | None = None
    reason: str | None = None
    since_at: datetime | None = None
    failures: int = 0
    openings: int = 0


def probe_interval(kind: PauseKind | None, openings: int) -> timedelta:
    """Return how long the others wait while one task probes a provider whose pause is over."""
    match kind:
        case PauseKind.BREAKER:
            return span(openings)
        case PauseKind.ASKED:
            return FIRST_SPAN
        case _:
            return ANSWER_SPAN


def span(openings: int) -> timedelta:
    """Return how long the breaker is open for the `openings`-th time in a row."""
    doublings = min(max(openings - 1, 0), 16)
    return min(FIRST_SPAN * (1 << doublings), LONGEST_SPAN)


def longest(kind: PauseKind | None, openings: int) -> timedelta | None:
    """Return how far ahead of now the end of such a pause can be; None for a person's, who may say any moment."""
    match kind:
        case PauseKind.BREAKER:
            return span(openings)
        case PauseKind.ASKED:
            return LONGEST_REST
        case PauseKind.ANSWER:
            return LONGEST_SPAN
        case _:
            return None


def after(standing: Standing, outcome: Outcome, now: datetime) -> Standing:
    """Return how a provider stands after an outcome; a person's order that still holds stands whatever comes."""
    if standing.kind is PauseKind.PERSON and standing.until_at is not None:
        if standing.until_at > now:
            return standing
        standing = _open(standing)
    if outcome.kind is PauseKind.ASKED:
        return _asked(standing, outcome, now)
    if outcome.until_at is not None:
        answer, until_at = PauseKind.ANSWER, outcome.until_at
        return replace(standing, kind=answer, until_at=until_at, reason=outcome.reason, since_at=now)
    match outcome.sign:
        case Sign.LIFE:
            alive = replace(standing, failures=0, openings=0)
            return alive if standing.kind is PauseKind.ASKED and _before(outcome, standing) else _open(alive)
        case Sign.FAILURE:
            return _failed(standing, outcome, now)
        case Sign.NOTHING:
            return standing


def _open(standing: Standing) -> Standing:
    return replace(standing, kind=None, until_at=None, reason=None)


def _before(outcome: Outcome, standing: Standing) -> bool:
    """Whether an attempt began before the pause did, so that it says nothing about how the pause stands."""
    return standing.since_at is not None and outcome.claimed_at < standing.since_at


def _asked(standing: Standing, outcome: Outcome, now: datetime) -> Standing:
    """Leave a provider alone as long as it asks to be; what is worse than that goes on."""
    if standing.kind is PauseKind.ANSWER or (standing.kind is PauseKind.BREAKER and _before(outcome, standing)):
        return standing
    until_at = outcome.until_at or now
    if standing.kind is PauseKind.ASKED and standing.until_at is not None and standing.until_at >= until_at:
        return standing
    return replace(standing, kind=PauseKind.ASKED, until_at=until_at, reason=outcome.reason, since_at=now)


def _failed(standing: Standing, outcome: Outcome, now: datetime) -> Standing:
    standing = replace(standing, failures=standing.failures + 1)
    until_at = now + span(standing.openings + 1)
    match standing.kind:
        case PauseKind.BREAKER:
            opens = not _before(outcome, standing)
        case PauseKind.ANSWER:
            opens = False
        case _:
            sooner = standing.until_at is None or standing.until_at < until_at
            opens = standing.failures >= FAILURES_TO_OPEN and sooner
    if not opens:
        return standing
    reason = f"{standing.failures} tries in a row failed; the last one: {outcome.reason or 'no reason given'}"
    return replace(
        standing,
        kind=PauseKind.BREAKER,
        until_at=until_at,
        reason=reason,
        since_at=now,
        openings=standing.openings + 1,
    )

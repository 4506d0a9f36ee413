"""The nine invariants of a run, as pure functions of its history: each returns what contradicts it, one line for each.

They judge what a sender and a provider can see; the ledger is asked only for what it promises itself. That nobody knows the
outcome of a request is a third outcome beside success and failure, never an excuse for a second effect.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from tests.faults.chaos.history import ENDED, UNSURE, Disturbed, History, Touch

#: Moments of two processes on one machine may differ by so much.
TOLERANCE_SECONDS = 0.5
#: So many events on either side, or I9 is not judged.
ENOUGH = 30
#: Faults reach so far: an event posted that near one is neither quiet nor disturbed by a storm alone.
BEFORE_SECONDS, AFTER_SECONDS = 4.0, 10.0
#: A provider is unaffected when its p95 stays below so many times the quiet one, or below so many seconds.
FACTOR, FLOOR_SECONDS = 2.0, 1.5


def accepted_are_recorded(history: History) -> list[str]:
    """I1: every event that was answered with 2xx is in the ledger."""
    return [
        f"{event} was accepted and is not in the ledger" for event in history.accepted if event not in history.events
    ]


def everything_settles(history: History) -> list[str]:
    """I2: every accepted event has its tasks; each has ended, is due or looked up in the future, or waits for a person."""
    faults = [f"{event} is still {state}" for event, state in history.events.items() if state == "received"]
    made = {(touch.provider, touch.title) for touch in history.touches}
    for event in history.accepted:
        faults += [f"{event} has no task {title!r}" for _, title in sorted(history.expected.get(event, set()) - made)]
    return faults + [
        f"{touch.id} ({touch.title}) is {touch.state} and nothing is going to happen"
        for touch in history.touches
        if not (touch.state in ENDED or waits_for_a_person(touch) or next_at(touch) > history.ended_at)
    ]


def next_at(touch: Touch) -> float:
    """Return when something is done about it: it is sent, or looked up."""
    return touch.due_at if touch.state != "unknown" else touch.sought_at or 0.0


def waits_for_a_person(touch: Touch) -> bool:
    """Whether it is undecided and not looked up any more, as `if_unsure: ask` has it."""
    return touch.state == "unknown" and touch.sought_at is None


def delivered_has_happened(history: History) -> list[str]:
    """I3: what the ledger calls delivered was done by the provider, under the id that the ledger holds."""
    there = {(effect.provider, effect.title): set() for effect in history.effects}
    for effect in history.effects:
        there[effect.provider, effect.title].add(effect.external_id)
    return [
        f"{touch.id} ({touch.title}) counts as delivered as {touch.external_id}, and the provider has no such task"
        for touch in history.touches
        if touch.state == "delivered" and touch.external_id not in there.get((touch.provider, touch.title), set())
    ]


def nothing_happens_twice(history: History) -> list[str]:
    """I4: one effect for each task, and with `if_unsure: repeat` one more for each attempt that nobody knows about."""
    allowed = {
        (touch.provider, touch.title): 1 + (unsure(touch) if touch.if_unsure == "repeat" else 0)
        for touch in history.touches
    }
    return [
        f"{provider} has {title!r} {times} times"
        for (provider, title), times in counted(history).items()
        if times > allowed.get((provider, title), 1)
    ]


def counted(history: History) -> Counter[tuple[str, str]]:
    """Return how often each thing happened at its provider."""
    return Counter((effect.provider, effect.title) for effect in history.effects)


def unsure(touch: Touch) -> int:
    """Return the number of attempts whose outcome nobody knew."""
    return sum(attempt.verdict in {UNSURE, None} and not attempt.deferred for attempt in touch.attempts)


def attempts_are_bounded(history: History) -> list[str]:
    """I5: no task was tried more often than its rule allows; what was deferred or looked up does not count."""
    return [
        f"{touch.id} ({touch.title}) was tried {tried} times, and its rule allows {touch.retries + 1}"
        for touch in history.touches
        if (tried := sum(a.verdict != UNSURE and not a.deferred for a in touch.attempts)) > touch.retries + 1
    ]


def nothing_is_early(history: History) -> list[str]:
    """I6: nothing happens before its moment, no two attempts overlap, and a retry waits as long as its rule says."""
    slack = TOLERANCE_SECONDS + history.clock_moved_seconds
    due = {(touch.provider, touch.title): touch.first_due_at for touch in history.touches}
    faults = [
        f"{effect.title!r} happened {early:.1f} s before its moment"
        for effect in history.effects
        if (early := due.get((effect.provider, effect.title), 0.0) - effect.at) > slack
    ]
    for touch in history.touches:
        for before, after in pairwise(sorted(touch.attempts, key=lambda attempt: attempt.started_at)):
            wait = touch.retry_seconds if before.verdict == "busy" and not before.deferred else 0.0
            if before.ended_at is None or after.started_at < before.ended_at + wait - slack:
                faults.append(f"{touch.id} ({touch.title}) was tried again before the try before it was over")
    return faults


def files_are_whole(history: History) -> list[str]:
    """I7: the database finds nothing wrong with itself."""
    return list(history.integrity)


def nothing_is_told(history: History) -> list[str]:
    """I8: no log holds a secret or anything of a person."""
    return list(history.leaks)


def leaks_in(texts: Mapping[str, str], forbidden: Iterable[str]) -> tuple[str, ...]:
    """Return in which of these texts, by name, something stands that must not."""
    words = sorted(forbidden)
    return tuple(f"{name} holds {word!r}" for name, text in sorted(texts.items()) for word in words if word in text)


def the_other_is_unaffected(history: History) -> list[str]:
    """I9: while one provider is in a storm, and nothing else is wrong, the other's p95 stays what it is in quiet times."""
    quiet, beside = beside_storms(history)
    return [
        f"{provider}: p95 {percentile(took, 95):.2f} s while the other was in a storm, {usual:.2f} s in quiet times"
        for provider, took in sorted(beside.items())
        if min(len(took), len(quiet.get(provider, ()))) >= ENOUGH
        and percentile(took, 95) > max(FACTOR * (usual := percentile(quiet[provider], 95)), FLOOR_SECONDS)
    ]


def beside_storms(history: History) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return by provider how long its tasks took: in quiet times, and while there was nothing but a storm at the other."""
    at = {(effect.provider, effect.title): effect.at for effect in reversed(history.effects)}
    later = {(touch.provider, touch.title) for touch in history.touches if touch.planned_later}
    quiet: dict[str, list[float]] = {}
    beside: dict[str, list[float]] = {}
    for event, accepted_at in history.accepted.items():
        near = [span for span in history.disturbed if _near(span, accepted_at)]
        for provider, title in history.expected.get(event, ()):
            if (provider, title) not in at or (provider, title) in later:
                continue
            took = at[provider, title] - accepted_at
            if not near:
                quiet.setdefault(provider, []).append(took)
            elif all(span.provider not in {None, provider} for span in near):
                beside.setdefault(provider, []).append(took)
    return quiet, beside


def _near(span: Disturbed, moment: float) -> bool:
    return span.began_at - BEFORE_SECONDS < moment < span.ended_at + AFTER_SECONDS


def percentile(values: Iterable[float], percent: float) -> float:
    """Return the value that so many percent of these do not exceed; 0 for none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else 0.0


@dataclass(frozen=True, slots=True)
class Invariant:
    """One invariant: what it says, and what finds its contradictions."""

    name: str
    check: Callable[[History], list[str]]

    @property
    def sentence(self) -> str:
        """What it says."""
        return (self.check.__doc__ or "").split(": ", 1)[1].rstrip(".")


INVARIANTS = tuple(
    Invariant(f"I{number}", check)
    for number, check in enumerate(
        (
            accepted_are_recorded,
            everything_settles,
            delivered_has_happened,
            nothing_happens_twice,
            attempts_are_bounded,
            nothing_is_early,
            files_are_whole,
            nothing_is_told,
            the_other_is_unaffected,
        ),
        start=1,
    )
)


def judge(history: History) -> dict[str, list[str]]:
    """Return the contradictions by invariant; an empty list where it holds."""
    return {invariant.name: invariant.check(history) for invariant in INVARIANTS}

"""The decisions about limits and the breaker, for any course of things."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.vocabulary import Verdict
from worker.ledger import Held, Limits, PauseKind, ProviderState
from worker.ledger.limits import (
    FIRST_SPAN,
    LONGEST_SPAN,
    SLOT_HOLDS,
    UNSEEN,
    Health,
    HealthSignal,
    LimiterState,
    breaker_span,
    check_room,
    clamp_line,
    count_begun,
    health_of,
    is_far_ahead,
    longest_pause,
    next_state,
    reserve_slot,
    slot_interval,
    take_slot,
)

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def at(seconds):
    """Return a moment counted from the beginning."""
    return NOW + seconds * SECOND


def standing_of(**parts):
    """Return how a provider stands, without a pause unless told otherwise."""
    return ProviderState(**({"name": "vambe", "updated_at": at(-1000)} | parts))


def failure(claimed_at, reason="503"):
    """Return an outcome that met no provider at work."""
    return HealthSignal(health=Health.FAILING, claimed_at=claimed_at, reason=reason)


LIFE = HealthSignal(health=Health.ALIVE, claimed_at=NOW)


@given(
    rate=st.floats(0.05, 200),
    burst=st.integers(1, 40),
    gaps=st.lists(st.floats(0, 3), min_size=1, max_size=80),
    span_seconds=st.floats(0.1, 20),
)
def test_what_begins_never_exceeds_burst_and_rate(rate, burst, gaps, span_seconds):
    """Whoever comes when, in any span begin at most the burst and what the rate gives: also those with a place in line."""
    limits = Limits(rate_per_second=rate, burst=burst)
    use, now, begins = LimiterState(), NOW, []
    for gap in gaps:
        now += gap * SECOND
        use, refusal = reserve_slot(use, limits, now, None)
        begins.append(refusal.slot_at if refusal else now)
        assert refusal is None or refusal.due_at == refusal.slot_at > now
    for begin_at in begins:
        inside = [each for each in begins if begin_at <= each < begin_at + span_seconds * SECOND]
        assert len(inside) <= burst + rate * span_seconds + 1e-3 * len(begins) + 1


def test_a_burst_goes_at_once_and_the_rest_in_line():
    """Of five that come together two begin; each other has its own place, one interval after the one before."""
    use, slots = LimiterState(), []
    for _ in range(5):
        use, refusal = reserve_slot(use, Limits(rate_per_second=2, burst=2), NOW, None)
        slots.append(refusal.slot_at if refusal else None)
    assert [None, None, at(0.5), at(1), at(1.5)] == slots


def test_a_place_that_has_come_is_not_charged_again():
    """It is good from its moment on for a while; too early or too late it is none."""
    limits = Limits(rate_per_second=1, burst=1)
    use = LimiterState(next_slot_at=at(100))
    assert (use, None) == reserve_slot(use, limits, at(10), at(10))
    assert (use, None) == reserve_slot(use, limits, at(10) + SLOT_HOLDS, at(10))
    for missed_at in (at(10) + SLOT_HOLDS + SECOND, at(9)):
        assert at(100) == reserve_slot(use, limits, missed_at, at(10))[1].slot_at


def test_a_charge_without_a_claim_moves_the_line():
    """What is never refused takes its place all the same."""
    limits = Limits(rate_per_second=4, burst=1)
    assert timedelta(seconds=0.25) == slot_interval(limits)
    assert at(0.5) == take_slot(take_slot(LimiterState(), limits, NOW)[0], limits, NOW)[0].next_slot_at


LINES = st.builds(
    lambda rate, burst, ahead, kept, number: (Limits(rate_per_second=rate, burst=burst), ahead, kept, number),
    st.floats(0.05, 200),
    st.integers(1, 40),
    st.floats(0, 1e5),
    st.lists(st.integers(0, 400), max_size=60, unique=True),
    st.integers(1, 60),
)


@given(LINES)
def test_a_line_is_believed_as_far_as_its_tasks_explain_it(line):
    """However far ahead a line's end was put, nobody waits longer than its tasks explain, and none gets another's place."""
    limits, ahead, kept, number = line
    step = slot_interval(limits)
    slots = sorted(NOW + step * (place + 1) for place in kept)
    last_at = slots[-1] if slots else NOW
    use = LimiterState(next_slot_at=last_at + step * limits.burst + ahead * SECOND)
    given_at = []
    for done in range(number):
        if is_far_ahead(use, limits, NOW):
            use = clamp_line(use, limits, NOW, slots, slots[-1] if slots else None)
        use, own_at = take_slot(use, limits, NOW)
        assert own_at - NOW <= step * (2 * (len(kept) + done + UNSEEN) + 2)
        slots = sorted([*slots, own_at])
        given_at.append(own_at)
    assert len(set(given_at)) == number
    begun_at = sorted({*given_at, *(NOW + step * (place + 1) for place in kept)})
    assert len(begun_at) == number + len(kept)
    assert all(later - sooner >= step for sooner, later in pairwise(begun_at))


def test_a_line_that_is_full_is_believed():
    """Places of tasks that wait, and a few of look-ups between them, are not given again."""
    limits = Limits(rate_per_second=10, burst=5)
    step = slot_interval(limits)
    slots = [NOW + step * place for place in range(1, 101) if place % 15]
    use = LimiterState(next_slot_at=NOW + step * 105)
    assert is_far_ahead(use, limits, NOW)
    assert use == clamp_line(use, limits, NOW, slots, slots[-1])
    assert use == clamp_line(use, limits, NOW, slots[:50], slots[-1])
    assert not is_far_ahead(LimiterState(next_slot_at=NOW + step * (5 + UNSEEN)), limits, NOW)


def test_no_pause_lasts_longer_than_its_kind_can():
    """The breaker's opening bounds its end, a rest an hour; what a person said has no bound."""
    assert FIRST_SPAN == longest_pause(PauseKind.BREAKER, 1)
    assert LONGEST_SPAN == longest_pause(PauseKind.BREAKER, 99)
    assert timedelta(hours=1) == longest_pause(PauseKind.ASKED, 0)
    assert LONGEST_SPAN == longest_pause(PauseKind.ANSWER, 0)
    assert longest_pause(PauseKind.PERSON, 0) is None


def test_concurrency_turns_away_what_is_too_much_and_spreads_it():
    """What finds no room comes again after a second, spread over another one, its place in line kept."""
    limits = Limits(concurrency=2)
    use, free = check_room(LimiterState(sending=1), limits, NOW, None)
    assert free is None
    use = count_begun(use, limits, NOW)
    moments = []
    for _ in range(3):
        use, refusal = check_room(use, limits, NOW, at(-1))
        moments.append((refusal.held, refusal.due_at, refusal.slot_at))
    assert [(Held.CONCURRENCY, at(n), at(-1)) for n in (1, 1.5, 1)] == moments


def test_the_days_sum_ends_with_the_day():
    """With the cap reached all wait for midnight UTC; a new day begins with nothing."""
    limits = Limits(daily_cap=2)
    use = count_begun(count_begun(LimiterState(), limits, NOW), limits, NOW)
    _, refusal = check_room(use, limits, NOW, None)
    midnight_at = datetime(2026, 3, 3, tzinfo=UTC)
    assert (Held.CAP, midnight_at, None) == (refusal.held, refusal.due_at, refusal.slot_at)
    assert check_room(use, limits, midnight_at, None)[1] is None
    assert ("2026-03-03", 1) == (
        count_begun(use, limits, midnight_at).day,
        count_begun(use, limits, midnight_at).sent_today,
    )


@pytest.mark.parametrize(
    ("verdict", "status", "sign"),
    [
        (Verdict.DELIVERED, 201, Health.ALIVE),
        (Verdict.REFUSED, 422, Health.ALIVE),
        (Verdict.REFUSED, None, Health.UNCLEAR),
        (Verdict.BUSY, None, Health.FAILING),
        (Verdict.BUSY, 408, Health.FAILING),
        (Verdict.BUSY, 425, Health.FAILING),
        (Verdict.BUSY, 503, Health.FAILING),
        (Verdict.BUSY, 429, Health.UNCLEAR),
        (Verdict.UNKNOWN, None, Health.FAILING),
        (Verdict.UNKNOWN, 502, Health.FAILING),
        (Verdict.UNKNOWN, 200, Health.UNCLEAR),
        (Verdict.PAUSE, 401, Health.UNCLEAR),
    ],
)
def test_what_an_outcome_says_of_its_provider(verdict, status, sign):
    """An answer about the task is life, no service is failure, all else says nothing."""
    assert sign is health_of(verdict, status)


def test_five_failures_in_a_row_open_the_breaker():
    """Four do not, and a success between begins the count anew."""
    standing = standing_of()
    for outcome in [failure(NOW)] * 4 + [LIFE] + [failure(NOW)] * 4:
        standing = next_state(standing, outcome, NOW)
        assert standing.kind is None
    standing = next_state(standing, failure(NOW, "504 gone"), NOW)
    assert (PauseKind.BREAKER, NOW + FIRST_SPAN, 1) == (standing.kind, standing.paused_until_at, standing.openings)
    assert "5 tries in a row failed; the last one: 504 gone" == standing.reason


def test_each_probe_that_fails_doubles_the_span():
    """What was on its way when it opened changes nothing; each probe's failure opens it for twice as long, to a bound."""
    standing = standing_of(failures=4)
    standing = next_state(standing, failure(at(-1)), NOW)
    assert standing.paused_until_at == next_state(standing, failure(at(-1)), at(3)).paused_until_at
    spans, now = [], NOW
    for _ in range(8):
        now = standing.paused_until_at
        standing = next_state(standing, failure(now), now)
        spans.append((standing.paused_until_at - now).total_seconds())
    assert [10, 20, 40, 80, 160, 300, 300, 300] == spans
    assert LONGEST_SPAN == breaker_span(10**9)
    closed = next_state(standing, LIFE, now)
    assert (None, 0, 0) == (closed.kind, closed.failures, closed.openings)


def asked(seconds, claimed_at=NOW):
    """Return a 429 that asks for a rest until this moment."""
    kind, reason = PauseKind.ASKED, "429"
    return HealthSignal(health=Health.UNCLEAR, claimed_at=claimed_at, kind=kind, until_at=at(seconds), reason=reason)


def test_a_rest_that_was_asked_for_outlives_what_was_on_its_way():
    """Successes of requests that began before say nothing; one that began after ends it; the longest wish counts."""
    standing = next_state(next_state(standing_of(), asked(30), at(1)), asked(20), at(1))
    assert (PauseKind.ASKED, at(30)) == (standing.kind, standing.paused_until_at)
    assert standing.kind is next_state(standing, LIFE, at(2)).kind
    assert next_state(standing, HealthSignal(health=Health.ALIVE, claimed_at=at(31)), at(32)).kind is None


def test_a_worse_pause_stays():
    """A rest does not take the place of a rejected credential; a person's order that holds stands whatever comes."""
    rejected = HealthSignal(health=Health.UNCLEAR, claimed_at=NOW, kind=PauseKind.ANSWER, until_at=at(60), reason="401")
    standing = next_state(standing_of(), rejected, NOW)
    assert standing == next_state(standing, asked(900), NOW)
    assert PauseKind.ANSWER is next_state(standing, failure(at(70)), at(70)).kind
    ordered = standing_of(kind=PauseKind.PERSON, paused_until_at=at(100), updated_at=NOW)
    for outcome in (LIFE, rejected, asked(900), failure(NOW)):
        assert ordered == next_state(ordered, outcome, at(99))
    assert PauseKind.ANSWER is next_state(ordered, rejected, at(100)).kind


steps = st.tuples(
    st.sampled_from(["life", "failure", "asked", "answer"]), st.floats(0, 400), st.floats(0, 60), st.floats(0, 7200)
)


@given(st.lists(steps, max_size=40))
def test_life_after_a_pause_always_ends_it(course):
    """After any course of outcomes, a success of a request that begins now leaves no pause, no failure, no opening."""
    standing, now = standing_of(), NOW
    for what, gap, age, wish in course:
        now += gap * SECOND
        kind = {"asked": PauseKind.ASKED, "answer": PauseKind.ANSWER}.get(what)
        sign = {"life": Health.ALIVE, "failure": Health.FAILING}.get(what, Health.UNCLEAR)
        until_at = now + wish * SECOND if kind else None
        outcome = HealthSignal(health=sign, claimed_at=now - age * SECOND, kind=kind, until_at=until_at, reason="r")
        standing = next_state(standing, outcome, now)
        assert (standing.kind is None) == (standing.paused_until_at is None)
    closed = next_state(standing, HealthSignal(health=Health.ALIVE, claimed_at=now), now)
    assert (None, None, 0, 0) == (closed.kind, closed.paused_until_at, closed.failures, closed.openings)

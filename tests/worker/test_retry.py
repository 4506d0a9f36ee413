"""What follows an attempt."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.vocabulary import RetryPolicy, TaskState, Verdict
from worker.retry import PROVIDER_PAUSE, History, delay_before, next_step
from worker.wire import Reading

NOW = datetime(2026, 3, 2, 13, 0, tzinfo=UTC)
BUSY = Reading(verdict=Verdict.BUSY, reason="503 overloaded")
MINUTES = timedelta(minutes=1)


def follow(reading, policy=None, *, attempt=1, first_attempt_at=NOW, chance=0.0):
    """Return what follows this reading now."""
    history = History(attempt=attempt, first_attempt_at=first_attempt_at)
    return next_step(reading, policy or RetryPolicy(), history, now=NOW, chance=chance)


@pytest.mark.parametrize(
    ("verdict", "state"),
    [
        (Verdict.DELIVERED, TaskState.DELIVERED),
        (Verdict.REFUSED, TaskState.DEAD),
        (Verdict.UNKNOWN, TaskState.UNKNOWN),
        (Verdict.BUSY, TaskState.WAITING),
        (Verdict.PAUSE, TaskState.WAITING),
    ],
)
def test_each_verdict_has_its_state(verdict, state):
    """Every verdict leads to exactly one state."""
    assert state is follow(Reading(verdict=verdict, reason="x")).state


def test_default_policy_is_three_retries_an_hour_apart():
    """The documented default: a first try and three retries sixty minutes apart, then dead with the last reason."""
    assert [timedelta(hours=1)] * 3 == [follow(BUSY, attempt=n).due_at - NOW for n in (1, 2, 3)]
    assert (TaskState.DEAD, "gave up after 4 tries: 503 overloaded") == (
        follow(BUSY, attempt=4).state,
        follow(BUSY, attempt=4).reason,
    )


def test_exponential_doubles_up_to_the_cap():
    """Exponential delays double and stop growing at the cap."""
    policy = RetryPolicy(strategy="exponential", delay=2 * MINUTES, cap=10 * MINUTES, max_attempts=5)
    assert [2, 4, 8, 10, 10] == [delay_before(n, policy, 0.0) / MINUTES for n in range(5)]


def test_custom_follows_its_schedule():
    """A custom schedule is followed entry by entry."""
    policy = RetryPolicy(strategy="custom", schedule=(MINUTES, 5 * MINUTES, 60 * MINUTES))
    assert [1, 5, 60] == [delay_before(n, policy, 0.0) / MINUTES for n in range(3)]


def test_retry_after_is_kept_in_full():
    """A provider that asks for more time than the own delay gets it."""
    asked = Reading(verdict=Verdict.BUSY, reason="429", retry_after_at=NOW + timedelta(hours=3))
    assert NOW + timedelta(hours=3) == follow(asked).due_at


def test_a_sooner_retry_after_is_kept_and_costs_no_attempt():
    """A provider that asks for less than the own delay is asked again at its moment, also when no retry is left."""
    asked = Reading(verdict=Verdict.BUSY, reason="429", retry_after_at=NOW + timedelta(seconds=8))
    for attempt in (1, 4):
        step = follow(asked, attempt=attempt)
        assert (NOW + timedelta(seconds=8), False) == (step.due_at, step.counted)


def test_a_provider_that_always_says_soon_is_asked_less_and_less_often():
    """Each wait is as long as all before it, up to the own delay, from which on each try counts."""
    soon = Reading(verdict=Verdict.BUSY, reason="503", retry_after_at=NOW)
    steps = [follow(soon, first_attempt_at=NOW - timedelta(seconds=n)) for n in (0, 5, 10, 3599, 3600, 90_000)]
    assert [5, 5, 10, 3599, 3600, 3600] == [(step.due_at - NOW).total_seconds() for step in steps]
    assert [False, False, False, False, True, True] == [step.counted for step in steps]


def test_retry_after_is_bounded_by_the_cap():
    """A Retry-After beyond the cap waits for the cap."""
    asked = Reading(verdict=Verdict.BUSY, reason="429", retry_after_at=NOW + timedelta(days=400))
    assert NOW + timedelta(hours=24) == follow(asked).due_at


def test_budget_ends_a_task_that_would_wait_past_it():
    """A retry that would start after the budget is not made."""
    policy = RetryPolicy(max_attempts=1000, budget=timedelta(hours=2))
    assert TaskState.DEAD is follow(BUSY, policy, attempt=2, first_attempt_at=NOW - timedelta(minutes=90)).state


def test_pause_costs_no_attempt():
    """A rejected credential pauses the provider, and the task that met it loses nothing."""
    step = follow(Reading(verdict=Verdict.PAUSE, reason="401"))
    assert (False, NOW + PROVIDER_PAUSE, NOW + PROVIDER_PAUSE) == (step.counted, step.due_at, step.pause_until_at)


policies = st.builds(
    RetryPolicy,
    strategy=st.sampled_from(["fixed", "exponential"]),
    max_attempts=st.integers(0, 2000),
    delay=st.timedeltas(timedelta(seconds=1), timedelta(days=30)),
    factor=st.floats(1, 100),
    cap=st.timedeltas(timedelta(seconds=1), timedelta(days=30)),
    jitter=st.floats(0, 1),
)


@given(policy=policies, retries=st.integers(0, 5000), chance=st.floats(0, 0.999))
def test_jitter_never_makes_a_retry_earlier(policy, retries, chance):
    """With any policy and any draw the delay lies between the plain one and that plus its jitter."""
    plain = delay_before(retries, policy, 0.0)
    drawn = delay_before(retries, policy, chance)
    assert plain <= drawn <= plain * (1 + policy.jitter) + timedelta(microseconds=2)
    assert plain <= policy.cap

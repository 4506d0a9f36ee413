"""What follows an attempt."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.vocabulary import RetryPolicy, TaskState, Verdict
from worker.providers import CannotTell, Interpretation, TaskAbsent, TaskFound
from worker.providers.answers import retry_not_before
from worker.retry import (
    PROVIDER_PAUSE,
    AttemptHistory,
    LookUpHistory,
    LookUpPolicy,
    after_look_up,
    delay_before,
    next_step,
)

NOW = datetime(2026, 3, 2, 13, 0, tzinfo=UTC)
BUSY = Interpretation(verdict=Verdict.BUSY, reason="503 overloaded")
MINUTES = timedelta(minutes=1)


def follow(reading, policy=None, *, attempt=1, first_attempt_at=NOW, chance=0.0):
    """Return what follows this reading now."""
    history = AttemptHistory(attempt=attempt, first_attempt_at=first_attempt_at)
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
    assert state is follow(Interpretation(verdict=verdict, reason="x")).state


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
    asked = Interpretation(verdict=Verdict.BUSY, reason="429", retry_after_at=NOW + timedelta(hours=3))
    assert NOW + timedelta(hours=3) == follow(asked).due_at


def test_a_sooner_retry_after_is_kept_and_costs_no_attempt():
    """A provider that asks for less than the own delay is asked again at its moment, also when no retry is left."""
    asked = Interpretation(verdict=Verdict.BUSY, reason="429", retry_after_at=NOW + timedelta(seconds=8))
    for attempt in (1, 4):
        step = follow(asked, attempt=attempt)
        assert (NOW + timedelta(seconds=8), False) == (step.due_at, step.counted)


def test_a_provider_that_always_says_soon_is_asked_less_and_less_often():
    """Each wait is as long as all before it, up to the own delay, from which on each try counts."""
    soon = Interpretation(verdict=Verdict.BUSY, reason="503", retry_after_at=NOW)
    steps = [follow(soon, first_attempt_at=NOW - timedelta(seconds=n)) for n in (0, 5, 10, 3599, 3600, 90_000)]
    assert [5, 5, 10, 3599, 3600, 3600] == [(step.due_at - NOW).total_seconds() for step in steps]
    assert [False, False, False, False, True, True] == [step.counted for step in steps]


def test_retry_after_is_bounded_by_the_cap():
    """A Retry-After beyond the cap waits for the cap."""
    asked = Interpretation(verdict=Verdict.BUSY, reason="429", retry_after_at=NOW + timedelta(days=400))
    assert NOW + timedelta(hours=24) == follow(asked).due_at


def test_budget_ends_a_task_that_would_wait_past_it():
    """A retry that would start after the budget is not made."""
    policy = RetryPolicy(max_attempts=1000, budget=timedelta(hours=2))
    assert TaskState.DEAD is follow(BUSY, policy, attempt=2, first_attempt_at=NOW - timedelta(minutes=90)).state


def test_pause_costs_no_attempt():
    """A rejected credential pauses the provider, and the task that met it loses nothing."""
    step = follow(Interpretation(verdict=Verdict.PAUSE, reason="401"))
    assert (False, NOW + PROVIDER_PAUSE, NOW + PROVIDER_PAUSE) == (step.counted, step.due_at, step.pause_until_at)


def rest(retry_after_at=None, *, first_attempt_at=NOW, **policy):
    """Return what follows a 429 with this wish, for a task that has no try left."""
    reading = Interpretation(verdict=Verdict.BUSY, reason="429", retry_after_at=retry_after_at)
    history = AttemptHistory(attempt=4, first_attempt_at=first_attempt_at)
    return next_step(reading, RetryPolicy(**policy), history, now=NOW, chance=0.5, status=429)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 5),
        ("8", 8),
        ("0", 1),
        ("Mon, 02 Mar 2026 13:02:00 GMT", 120),
        ("Mon, 02 Mar 2026 12:00:00 GMT", 5),
        ("3600", 3600),
        ("soon", 5),
        ("-3", 5),
    ],
)
def test_too_many_requests_rest_the_provider_and_cost_nothing(header, seconds):
    """A 429 leaves the provider alone as long as it asks; the task waits as long, also when it has no try left."""
    step = rest(retry_not_before(header, NOW))
    until_at = NOW + timedelta(seconds=seconds)
    assert (TaskState.WAITING, False, True) == (step.state, step.counted, step.pause_asked)
    assert (until_at, until_at) == (step.due_at, step.pause_until_at)


@pytest.mark.parametrize("header", ["1000000000", "Fri, 31 Dec 9999 23:59:59 GMT", "86400"])
def test_a_long_wish_is_the_tasks_own_and_the_others_wait_an_hour(header):
    """It is kept up to the policy's cap; the provider's pause ends after an hour at the latest."""
    asked_at = retry_not_before(header, NOW)
    step = rest(asked_at)
    assert (NOW + timedelta(hours=24), NOW + timedelta(hours=1)) == (step.due_at, step.pause_until_at)
    step = rest(asked_at, cap=timedelta(hours=2))
    assert (NOW + timedelta(hours=2), NOW + timedelta(hours=1)) == (step.due_at, step.pause_until_at)


def test_too_many_requests_end_a_task_that_would_wait_past_its_budget():
    """Given up with the reason; the provider is left alone all the same."""
    step = rest(NOW + timedelta(seconds=8), first_attempt_at=NOW - timedelta(days=7))
    assert (TaskState.DEAD, None, NOW + timedelta(seconds=8)) == (step.state, step.due_at, step.pause_until_at)
    assert "budget" in step.reason
    assert TaskState.WAITING is rest(NOW + timedelta(seconds=8), first_attempt_at=NOW - timedelta(days=6)).state


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


# -- after a look-up --------------------------------------------------------------------------------------------------


def looked_up(
    told, *, failed=0, absent_at=None, ended_at=NOW - MINUTES, attempt=1, policy=None, if_unsure="ask", **changes
):
    """Return what follows a look-up that began now."""
    before = LookUpHistory(ended_at=ended_at, failed=failed, absent_at=absent_at)
    history = AttemptHistory(attempt=attempt, first_attempt_at=changes.pop("first_attempt_at", NOW - MINUTES))
    return after_look_up(told, before, policy or RetryPolicy(), history, if_unsure, asked_at=NOW, now=NOW, **changes)


def test_found_is_delivered():
    """Whatever was looked up before."""
    assert TaskState.DELIVERED is looked_up(TaskFound(external_id="x"), failed=9, absent_at=NOW).state


def test_absent_once_is_listed_again():
    """At least twenty seconds after the attempt ended, and ten after the first listing."""
    soon = looked_up(TaskAbsent())
    assert (TaskState.UNKNOWN, NOW + timedelta(seconds=10)) == (soon.state, soon.due_at)
    assert NOW + timedelta(seconds=17) == looked_up(TaskAbsent(), ended_at=NOW - timedelta(seconds=3)).due_at


def test_absent_twice_is_sent_again_at_once():
    """The second listing decides, when it came late enough."""
    step = looked_up(TaskAbsent(), absent_at=NOW - timedelta(seconds=10))
    assert (TaskState.WAITING, NOW, True) == (step.state, step.due_at, step.counted)
    early = looked_up(TaskAbsent(), absent_at=NOW - timedelta(seconds=9))
    assert (TaskState.UNKNOWN, NOW + timedelta(seconds=1)) == (early.state, early.due_at)
    just_ended = looked_up(TaskAbsent(), absent_at=NOW - MINUTES, ended_at=NOW - timedelta(seconds=19))
    assert (TaskState.UNKNOWN, NOW + timedelta(seconds=1)) == (just_ended.state, just_ended.due_at)


def test_absent_after_the_last_try_is_dead():
    """Tries and budget count as they do after a busy answer."""
    absent_at = NOW - MINUTES
    assert TaskState.WAITING is looked_up(TaskAbsent(), absent_at=absent_at, attempt=3).state
    assert TaskState.DEAD is looked_up(TaskAbsent(), absent_at=absent_at, attempt=4).state
    long_ago = NOW - timedelta(days=8)
    assert TaskState.DEAD is looked_up(TaskAbsent(), absent_at=absent_at, first_attempt_at=long_ago).state


def test_a_look_up_that_cannot_tell_is_repeated_ever_later():
    """After 5 s, 20 s, 1 min and 5 min; then nobody can tell."""
    steps = [looked_up(CannotTell(reason="500"), failed=failed) for failed in range(5)]
    assert [5, 20, 60, 300] == [(step.due_at - NOW).total_seconds() for step in steps[:4]]
    assert (TaskState.UNKNOWN, None, "500") == (steps[4].state, steps[4].due_at, steps[4].reason)


def test_an_outage_is_waited_for_and_costs_no_look_up():
    """Ever longer, up to five minutes, and as long as it was asked to; after a day it counts like any other."""
    told = CannotTell(reason="503", passes=True)
    steps = [looked_up(told, failed=4, ended_at=NOW - timedelta(seconds=n)) for n in (0, 80, 86_399)]
    assert [(5, False), (10, False), (300, False)] == [
        ((step.due_at - NOW).total_seconds(), step.counted) for step in steps
    ]
    asked_at = NOW + timedelta(hours=3)
    assert asked_at == looked_up(CannotTell(reason="503", passes=True, retry_after_at=asked_at)).due_at
    assert looked_up(told, failed=4, ended_at=NOW - timedelta(days=1)).due_at is None


def test_an_absence_before_the_attempts_end_says_nothing():
    """The request may be executed until then: the first listing that counts comes at its end, the second twenty seconds later."""
    step = looked_up(TaskAbsent(), ended_at=NOW + timedelta(seconds=25))
    assert (TaskState.UNKNOWN, NOW + timedelta(seconds=25), False) == (step.state, step.due_at, step.counted)


def test_undecided_is_repeated_only_where_the_rule_says_so():
    """And only while tries are left."""
    told = CannotTell(reason="500")
    assert TaskState.WAITING is looked_up(told, failed=4, if_unsure="repeat").state
    assert TaskState.DEAD is looked_up(told, failed=4, attempt=4, if_unsure="repeat").state
    assert TaskState.UNKNOWN is looked_up(told, failed=3, if_unsure="repeat").state


def test_another_plan_of_looking_up():
    """The moments are the caller's to choose."""
    plan = LookUpPolicy(after_end=MINUTES, apart=2 * MINUTES, again=())
    assert looked_up(CannotTell(reason="500"), look_up_policy=plan).due_at is None
    assert NOW + 2 * MINUTES == looked_up(TaskAbsent(), look_up_policy=plan).due_at

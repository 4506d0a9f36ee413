"""A clock that leaps while a request is on its way: nothing is taken for absent that may be made yet, nothing overlooked."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from rules.vocabulary import ProviderName
from worker import providers
from worker.providers import LookupTarget
from worker.reconciler import ClockSteadiness

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


class Clocks:
    """A clock on the wall and one for spans, set by hand."""

    def __init__(self):
        self.wall = NOW
        self.awake_seconds = 5000.0

    def pass_(self, seconds):
        """Let both go on."""
        self.wall += timedelta(seconds=seconds)
        self.awake_seconds += seconds


@pytest.fixture
def clocks():
    """Give two clocks that agree."""
    return Clocks()


@pytest.mark.parametrize("leap_seconds", [7200, 2, -2, -7200])
def test_steadiness_counts_from_the_last_leap(clocks, leap_seconds):
    """A clock is steady from its start, and again from when it was last seen to be set."""
    steadiness = ClockSteadiness(lambda: clocks.wall, lambda: clocks.awake_seconds)
    clocks.pass_(70)
    assert 70 == steadiness.seconds()
    clocks.wall += timedelta(seconds=leap_seconds)
    clocks.pass_(5)
    assert 0 == steadiness.seconds()
    clocks.pass_(59)
    assert 59 == steadiness.seconds()


def test_a_clock_that_is_drawn_slowly_is_steady(clocks):
    """A time server that mends the clock by half a second a minute for an hour is no leap."""
    steadiness = ClockSteadiness(lambda: clocks.wall, lambda: clocks.awake_seconds)
    for _ in range(60):
        clocks.pass_(60)
        clocks.wall += timedelta(seconds=0.5)
        steadiness.seconds()
    assert 3600 == steadiness.seconds()


@pytest.mark.parametrize("name", list(ProviderName))
@pytest.mark.parametrize("back", [timedelta(0), timedelta(hours=2), timedelta(days=2)])
def test_an_attempt_that_ended_before_it_began_is_looked_for_in_all_that_time(name, back):
    """When the clock is put back meanwhile, the listing that is asked for still holds the moment of the request."""
    sought = LookupTarget(task=_Task(), tag="[lw:aaaaaaaaaaaa]", began_at=NOW, ended_at=NOW - back)
    request = providers.load(name).listing_request([sought], 1)
    first, last = ("scheduled_from", "scheduled_to") if name is ProviderName.MINDHUNTERS else ("fromDate", "toDate")
    query = dict(request.query)
    assert query[first] <= (NOW - back).isoformat()[: len(query[first])]
    assert query[last] >= NOW.isoformat()[: len(query[last])]


class _Task:
    """The task that is looked for."""

    id = "tk_1"
    key = "a" * 64
    type = "make_call"
    fields = {"title": "t", "description": "[lw:aaaaaaaaaaaa]", "agent": "a", "responsible_ids": []}  # noqa: RUF012
    due_at = NOW
    expires_at = None

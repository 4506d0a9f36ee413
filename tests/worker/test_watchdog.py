"""A worker's own judgement: what it tells probes, and that it ends only when it is deaf."""

import os
from datetime import timedelta

import pytest

from rules.vocabulary import LedgerBusyError, Problem
from worker.background import Watchdog
from worker.clock import utc_now
from worker.runtime import HealthReport


class Surroundings:
    """What a watch looks at, to be set as a test wants it; `ended` counts how often it ended the process."""

    def __init__(self, folder):
        self.sign = folder / "taken"
        self.report = folder / "health"
        self.waiting = {"leadwire.events": 0, "leadwire.vambe": 0}
        self.due_at = None
        self.fault = None
        self.ended = 0

    def oldest_due(self):
        """Answer as the ledger does."""
        if self.fault:
            raise self.fault
        return self.due_at

    def end(self):
        """Count."""
        self.ended += 1

    def watch(self, deaf_seconds=-1.0):
        """Return a watch that takes every standstill for deafness at the second look."""
        return Watchdog(
            lambda: self.waiting,
            self.oldest_due,
            sign=self.sign,
            report=self.report,
            end=self.end,
            deaf_seconds=deaf_seconds,
        )

    def take(self, at_seconds):
        """Take a message, at a moment of the file system's own."""
        self.sign.touch()
        os.utime(self.sign, (at_seconds, at_seconds))


@pytest.fixture
def around(tmp_path):
    """Give surroundings in which work is due since a minute, messages wait and the worker has begun."""
    around = Surroundings(tmp_path)
    around.due_at = utc_now() - timedelta(minutes=1)
    around.waiting = {"leadwire.events": 0, "leadwire.vambe": 3}
    around.take(1000)
    return around


def test_a_worker_that_has_not_begun_does_not_work_yet(around):
    """Before the first message can be taken the report says so, and nothing ends."""
    around.sign.unlink()
    watch = around.watch()
    assert [False, False, False] == [watch.once().works for _ in range(3)]
    assert "not begun" in HealthReport.read(around.report).reason
    assert 0 == around.ended


def test_a_deaf_worker_ends(around):
    """Work is due, messages wait and none is taken: the report says so and the process is ended."""
    watch = around.watch()
    assert watch.once().works
    report = watch.once()
    assert not report.works
    assert "none is taken" in report.reason
    assert report == HealthReport.read(around.report)
    assert 1 == around.ended


def test_deafness_takes_its_time(around):
    """Short of the time a lost message and a slow attempt explain, a standstill is none."""
    watch = around.watch(deaf_seconds=75)
    assert [True] * 5 == [watch.once().works for _ in range(5)]
    assert 0 == around.ended


def test_a_worker_that_takes_messages_works(around):
    """However old the oldest work is, who takes messages is not deaf."""
    watch = around.watch()
    for moment in range(1001, 1006):
        around.take(moment)
        assert watch.once().works
    assert 0 == around.ended


@pytest.mark.parametrize("due_in", [None, timedelta(minutes=5)])
def test_an_idle_worker_works(around, due_in):
    """Without due work, silence is right."""
    around.due_at = utc_now() + due_in if due_in else None
    watch = around.watch()
    assert [True] * 4 == [watch.once().works for _ in range(4)]
    assert 0 == around.ended


def test_work_that_cannot_be_put_on_the_broker_makes_nobody_deaf(around):
    """Due work without a message that waits (the broker takes none) ends no worker: a new one could not do better."""
    around.waiting = {"leadwire.events": 0, "leadwire.vambe": 0}
    watch = around.watch()
    assert [True] * 4 == [watch.once().works for _ in range(4)]
    assert 0 == around.ended


def test_a_broker_that_is_away_is_reported_and_ends_nobody(around):
    """While the broker cannot be reached the worker says so; when it is back, time counts anew."""
    watch = around.watch()
    watch.once()
    around.waiting = None
    assert [False] * 3 == [watch.once().works for _ in range(3)]
    assert "broker" in HealthReport.read(around.report).reason
    around.waiting = {"leadwire.events": 1}
    around.take(2000)
    assert watch.once().works
    assert 0 == around.ended


def test_a_ledger_that_is_away_is_reported_in_its_own_words(around):
    """A fault of the ledger is told as it is, and ends nobody."""
    around.fault = LedgerBusyError("the ledger cannot be used right now: connection refused")
    watch = around.watch()
    assert [False] * 3 == [watch.once().works for _ in range(3)]
    assert str(around.fault) == HealthReport.read(around.report).reason
    assert 0 == around.ended


def test_the_thread_starts_afresh_and_leaves_nothing(around):
    """Signs of an earlier process are taken away at the start, the report at the end."""
    around.report.write_text("left over")
    watch = around.watch()
    watch.start()
    assert not around.sign.exists()
    watch.stop()
    assert not around.report.exists()


def test_a_report_that_is_old_or_none_is_a_problem(tmp_path):
    """A report nobody keeps up, one that is not there, and one that is something else are refused, each in its own words."""
    file = tmp_path / "health"
    with pytest.raises(Problem, match="no worker reports there"):
        HealthReport.read(file)
    for text in ("", "[]", "{}", "nonsense", '{"works": 1}'):
        file.write_text(text)
        with pytest.raises(Problem, match="no worker's report"):
            HealthReport.read(file)
    HealthReport(works=True).write(file)
    assert HealthReport(works=True) == HealthReport.read(file)
    long_ago = utc_now().timestamp() - 120
    os.utime(file, (long_ago, long_ago))
    with pytest.raises(Problem, match="hangs or is gone"):
        HealthReport.read(file)

"""The thread that all background work uses: round after round, whatever a round raises, until it is stopped."""

import logging
import threading

import pytest

from rules.vocabulary import LedgerBusyError
from worker.runtime import PeriodicThread


def run(work, rounds):
    """Run a thread until so many rounds were begun, then stop it."""
    begun = threading.Semaphore(0)

    def round_():
        begun.release()
        return work()

    thread = PeriodicThread("the test", round_, period_seconds=0.001)
    thread.start()
    for _ in range(rounds):
        assert begun.acquire(timeout=10)
    thread.stop()
    assert not thread.is_alive


def test_rounds_follow_each_other_until_it_is_stopped():
    """Each round says when the next one is due."""
    run(lambda: 0.0, 20)


@pytest.mark.parametrize(("fault", "level"), [(LedgerBusyError("busy"), "WARNING"), (ValueError("a fault"), "ERROR")])
def test_a_round_that_raises_is_logged_and_repeated(caplog, fault, level):
    """A ledger that cannot be used is expected and one line, any other fault has its traceback; both are tried again."""
    caplog.set_level(logging.INFO)

    def work():
        raise fault

    run(work, 3)
    assert {level} == {record.levelname for record in caplog.records}
    assert (level == "ERROR") == any(record.exc_info for record in caplog.records)


def test_it_is_woken_from_a_long_pause():
    """What has just happened need not wait for the next round; a stop does not wait for it either."""
    begun = threading.Semaphore(0)

    def work():
        begun.release()
        return 3600.0

    thread = PeriodicThread("the test", work, period_seconds=3600.0)
    thread.start()
    for _ in range(2):
        thread.wake()
        assert begun.acquire(timeout=10)
    thread.stop()
    assert not thread.is_alive

"""Readings are shared, rest a while, and never keep anybody waiting for long."""

from __future__ import annotations

import threading
import time

import pytest

from console.operator import SharedReading, TimedValue
from rules.vocabulary import LedgerBusyError


def test_a_reading_is_good_for_a_while():
    """Who asks again at once gets the same result; nothing is read twice."""
    read = []
    readings = SharedReading("test", lambda: read.append(1) or len(read))
    assert [1, 1, 1] == [readings.get(5).value for _ in range(3)]
    assert [1] == read


def test_a_costly_reading_rests_longer():
    """A result is good for two seconds, or twenty times what it cost, and never for more than a minute."""
    now_seconds = time.monotonic()
    for took_seconds, age_seconds, is_fresh in (
        (0.01, 1.5, True),
        (0.01, 2.5, False),
        (1.0, 15.0, True),
        (1.0, 25.0, False),
        (30.0, 55.0, True),
        (30.0, 65.0, False),
    ):
        assert is_fresh == TimedValue(0, took_seconds, now_seconds - age_seconds).is_fresh()


def test_those_who_ask_at_the_same_time_share_one_reading():
    """One reading at a time, however many ask."""
    go, began, found = threading.Event(), [], []

    def read():
        began.append(1)
        assert go.wait(10)
        return 7

    readings = SharedReading("test", read)
    threads = [threading.Thread(target=lambda: found.append(readings.get(10).value)) for _ in range(5)]
    for thread in threads:
        thread.start()
    go.set()
    for thread in threads:
        thread.join(10)
    assert ([1], [7] * 5) == (began, found)


def test_nobody_waits_for_long():
    """A reading that hangs is told to each who asks in the time they gave, and is asked for only once."""
    go, began = threading.Event(), []

    def read():
        began.append(1)
        assert go.wait(10)
        return 7

    readings = SharedReading("test", read)
    for _ in range(2):
        with pytest.raises(TimeoutError):
            readings.get(0.01)
    go.set()
    assert 7 == readings.get(10).value
    assert [1] == began


def test_a_fault_is_told_and_tried_again():
    """What a reading raises reaches who asked; the next one to ask reads again."""
    faults = [LedgerBusyError("locked")]

    def read():
        if faults:
            raise faults.pop()
        return 7

    readings = SharedReading("test", read)
    with pytest.raises(LedgerBusyError, match="locked"):
        readings.get(5)
    assert 7 == readings.get(5).value

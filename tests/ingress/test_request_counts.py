"""Counts of requests reach the ledger in sums, once, also when it takes nothing for a while."""

from __future__ import annotations

import threading
from collections import Counter

import pytest

from ingress.request_counts import RequestCounts
from rules.vocabulary import LedgerBusyError

ACCEPTED = ("crm", "accepted", "")
REJECTED = ("crm", "rejected", "mismatch")


class Book:
    """A ledger that remembers what it was told, when it takes something."""

    def __init__(self) -> None:
        self.written: list[dict[tuple[str, str, str], int]] = []
        self.told = threading.Event()
        self.busy = False

    def count_requests(self, requests) -> None:
        """Take the requests."""
        if self.busy:
            raise LedgerBusyError("the disk is full")
        self.written.append(dict(requests))
        self.told.set()


@pytest.fixture
def inbox() -> Book:
    """Return a ledger's inbox."""
    return Book()


@pytest.fixture
def counts(inbox) -> RequestCounts:
    """Return what counts, and writes often."""
    return RequestCounts(inbox, period_seconds=0.01)


def test_only_what_is_new_is_written(inbox, counts) -> None:
    """Each time what was added; nothing when nothing was."""
    counts.add(*ACCEPTED)
    counts.add(*ACCEPTED)
    counts.write()
    counts.write()
    counts.add(*ACCEPTED)
    counts.add(*REJECTED)
    counts.write()

    assert [{ACCEPTED: 2}, {ACCEPTED: 1, REJECTED: 1}] == inbox.written


def test_a_ledger_that_takes_nothing_gets_it_later(inbox, counts) -> None:
    """What could not be written is shown meanwhile and written when it can be, once."""
    counts.add(*ACCEPTED)
    inbox.busy = True
    counts.write()
    counts.add(*ACCEPTED)
    with counts.paused() as unwritten:
        assert {ACCEPTED: 2} == unwritten
    inbox.busy = False
    counts.write()

    assert [{ACCEPTED: 2}] == inbox.written
    with counts.paused() as unwritten:
        assert {} == unwritten


def test_it_runs_by_itself_and_ends_with_everything_written(inbox, counts) -> None:
    """The thread writes now and then; closing writes the rest."""
    counts.start()
    counts.add(*ACCEPTED)
    assert inbox.told.wait(10)
    counts.add(*REJECTED)
    counts.close()
    counts.close()

    assert Counter({ACCEPTED: 1, REJECTED: 1}) == sum((Counter(each) for each in inbox.written), Counter())

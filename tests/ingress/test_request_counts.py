"""Counts of requests reach the ledger in sums, once, also when it takes nothing for a while."""

from __future__ import annotations

import threading
from collections import Counter

import pytest

from ingress.request_counts import UNKNOWN, RequestCounts
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
def rule_set() -> Book:
    """Return a ledger."""
    return Book()


@pytest.fixture
def counter() -> Counter[tuple[str, str, str]]:
    """Return what a process has counted."""
    return Counter()


@pytest.fixture
def counts(rule_set, counter) -> RequestCounts:
    """Return what carries the one into the other."""
    return RequestCounts(lambda: dict(counter), rule_set, ["crm"], period_seconds=0.01)


def test_only_what_is_new_is_written(rule_set, counter, counts) -> None:
    """Each time what was added; nothing when nothing was."""
    counter[ACCEPTED] += 2
    counts.once()
    counts.once()
    counter[ACCEPTED] += 1
    counter[REJECTED] += 5
    counts.once()

    assert [{ACCEPTED: 2}, {ACCEPTED: 1, REJECTED: 5}] == rule_set.written


def test_sources_that_nobody_configured_count_as_one(rule_set, counter, counts) -> None:
    """Whatever names strangers make up, the ledger sees one."""
    for number in range(100):
        counter[f"made-up-{number}", "unknown", ""] += 1
    counts.once()

    assert [{(UNKNOWN, "unknown", ""): 100}] == rule_set.written


def test_a_ledger_that_takes_nothing_gets_it_later(rule_set, counter, counts) -> None:
    """What could not be written is shown meanwhile and written when it can be, once."""
    counter[ACCEPTED] += 2
    rule_set.busy = True
    counts.once()
    counter[ACCEPTED] += 1
    with counts.standing_still() as pending:
        assert {ACCEPTED: 3} == pending
    rule_set.busy = False
    counts.once()

    assert [{ACCEPTED: 3}] == rule_set.written
    with counts.standing_still() as pending:
        assert {} == pending


def test_it_runs_by_itself_and_ends_with_everything_written(rule_set, counter, counts) -> None:
    """The thread writes now and then; closing writes the rest."""
    counts.start()
    counter[ACCEPTED] += 1
    assert rule_set.told.wait(10)
    counter[REJECTED] += 1
    counts.close()
    counts.close()

    assert Counter({ACCEPTED: 1, REJECTED: 1}) == sum((Counter(each) for each in rule_set.written), Counter())

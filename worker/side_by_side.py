"""Attempts at tasks that were claimed together, several on their way at the same time.

A few threads work them off, each taking the next one that is left, and whoever settles them is woken once for many answers:
with a thread woken for each task, and the settling one for each answer, that alone was a fifth of what a delivery cost.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Final

from rules.vocabulary import Verdict
from worker.attempt import Attempted, attempt
from worker.ledger import Claim
from worker.wire import Reading
from worker.wiring import SIDE_BY_SIDE, Hand, Services

log = logging.getLogger(__name__)

#: How long an answer waits for others of its company, so that they are settled in one commit.
COMPANY_SECONDS: Final = 0.05

#: What an attempt came to; None when it never began, for a reason of our own.
Made = tuple[Claim, Attempted | None]


class SideBySide:
    """The attempts at these claims, of one provider, begun by `claimed_seconds` as `attempt` has it."""

    def __init__(self, services: Services, hand: Hand, claims: Sequence[Claim], claimed_seconds: float) -> None:
        self._services = services
        self._hand = hand
        self._claimed_seconds = claimed_seconds
        self._left = deque(claims)
        self._begun: dict[str, Claim] = {}
        self._made: deque[Made] = deque()
        self._number = len(claims)
        self._some = threading.Event()
        self._all = threading.Event()
        self._threads: list[Future[None]] = []

    def answers(self) -> Iterator[list[Made]]:
        """Make the attempts and give what they came to, in groups, as it comes."""
        self._begin()
        given = 0
        while given < self._number:
            self._some.wait()
            self._all.wait(COMPANY_SECONDS)
            self._some.clear()  # before it is taken: what comes from here on counts as new
            group = [self._made.popleft() for _ in range(len(self._made))]
            given += len(group)
            if group:
                yield group

    def _begin(self) -> None:
        for _ in range(min(SIDE_BY_SIDE, self._number)):
            try:
                self._threads.append(self._hand.pool.submit(self._work_off))
            except RuntimeError as error:  # no thread is to be had, or the process ends
                log.error("no further thread sends to %s: %s", self._hand.provider.name, error)
                break
        lock = threading.Lock()
        running = len(self._threads)

        def ended(_thread: Future[None]) -> None:
            nonlocal running
            with lock:
                running -= 1
                is_last = running == 0
            if is_last:
                self._end()

        for thread in self._threads:
            thread.add_done_callback(ended)
        if not self._threads:
            self._end()

    def _work_off(self) -> None:
        while True:
            try:
                claim = self._left.popleft()
            except IndexError:
                return
            self._begun[claim.task.id] = claim
            made = self._attempted(claim)
            del self._begun[claim.task.id]
            self._made.append((claim, made))
            self._some.set()

    def _attempted(self, claim: Claim) -> Attempted | None:
        """Make one attempt; a fault of ours leaves it open what became of it, and concerns this task alone."""
        try:
            return attempt(self._services, self._hand, claim, self._claimed_seconds)
        except Exception as error:
            log.exception("task %s: a fault in its attempt; it may have been executed", claim.task.id)
            return _fault(error)

    def _end(self) -> None:
        """Account for what no thread took, or ended with."""
        for claim in self._begun.values():
            self._made.append((claim, _fault(RuntimeError())))
        self._made.extend((claim, None) for claim in self._left)
        self._all.set()
        self._some.set()


def _fault(error: Exception) -> Attempted:
    reason = f"a fault in the worker ({type(error).__name__}) while it was sent: it may have been executed."
    return Attempted(reading=Reading(verdict=Verdict.UNKNOWN, reason=reason))


__all__ = ["COMPANY_SECONDS", "Made", "SideBySide"]

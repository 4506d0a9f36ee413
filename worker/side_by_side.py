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
from worker.attempt import AttemptResult, attempt
from worker.context import SIDE_BY_SIDE, ProviderClient, WorkerContext
from worker.ledger import Claim
from worker.providers import Interpretation

log = logging.getLogger(__name__)

#: How long an answer waits for others of its company, so that they are settled in one commit.
COMPANY_SECONDS: Final = 0.05

#: What an attempt came to; None when it never began, for a reason of our own.
Made = tuple[Claim, AttemptResult | None]


class ConcurrentSender:
    """The attempts at these claims, of one provider, begun by `claimed_seconds` as `attempt` has it.

    Every claim is answered once: by whoever takes it off the list, and only that one may send it.
    """

    def __init__(
        self, context: WorkerContext, client: ProviderClient, claims: Sequence[Claim], claimed_seconds: float
    ) -> None:
        self._context = context
        self._client = client
        self._claimed_seconds = claimed_seconds
        self._left = deque(claims)
        self._made: deque[Made] = deque()
        self._open = len(claims)
        self._lock = threading.Lock()
        self._some = threading.Event()
        self._all = threading.Event()

    def answers(self) -> Iterator[list[Made]]:
        """Make the attempts and give what they came to, in groups, as it comes."""
        given, number = 0, self._open
        self._begin()
        while given < number:
            self._some.wait()
            self._all.wait(COMPANY_SECONDS)
            self._some.clear()  # before it is taken: what comes from here on counts as new
            group = [self._made.popleft() for _ in range(len(self._made))]
            given += len(group)
            if group:
                yield group

    def stop(self) -> None:
        """Begin no further attempt; what was not begun is answered with None."""
        while (claim := self._next()) is not None:
            self._answer(claim, None)

    def _begin(self) -> None:
        threads: list[Future[None]] = []
        for _ in range(min(SIDE_BY_SIDE, self._open)):
            try:
                threads.append(self._client.pool.submit(self._work_off))
            except RuntimeError as error:  # no thread is to be had, or the process ends
                log.error("no further thread sends to %s: %s", self._client.provider.name, error)
                break
        if not threads:
            self.stop()
            return
        running = len(threads)

        def ended(_thread: Future[None]) -> None:
            nonlocal running
            with self._lock:
                running -= 1
                is_last = running == 0
            if is_last:  # of cancelled ones nobody took anything
                self.stop()

        for thread in threads:
            thread.add_done_callback(ended)

    def _work_off(self) -> None:
        while (claim := self._next()) is not None:
            made: AttemptResult | None = _fault(SystemExit())
            try:
                made = attempt(self._context, self._client, claim, self._claimed_seconds)
            except Exception as error:  # a fault of ours leaves it open what became of it, and concerns this task alone
                log.exception("task %s: a fault in its attempt; it may have been executed", claim.task.id)
                made = _fault(error)
            finally:
                self._answer(claim, made)

    def _next(self) -> Claim | None:
        try:
            return self._left.popleft()
        except IndexError:
            return None

    def _answer(self, claim: Claim, made: AttemptResult | None) -> None:
        self._made.append((claim, made))
        with self._lock:
            self._open -= 1
            is_last = self._open == 0
        if is_last:
            self._all.set()
        self._some.set()


def _fault(error: BaseException) -> AttemptResult:
    reason = f"a fault in the worker ({type(error).__name__}) while it was sent: it may have been executed."
    return AttemptResult(reading=Interpretation(verdict=Verdict.UNKNOWN, reason=reason))


__all__ = ["COMPANY_SECONDS", "ConcurrentSender", "Made"]

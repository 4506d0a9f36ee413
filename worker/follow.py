"""What becomes of delivered tasks: providers that tell nobody are asked, at their rate and with growing pauses.

Off unless `LEADWIRE_MINDHUNTERS_POLL` says how long the first pause is. The word that ends a task is kept with it, and
answered where its rule says so; any other word is kept as it is. An answer that tells nothing changes nothing: the task is
asked about again, until a week after its last moment. One that says that questions are not welcome now ends the round.
"""

from __future__ import annotations

import logging
import threading
from datetime import datetime, timedelta
from typing import Final

from rules.rule_set import Action, RuleSet
from rules.vocabulary import LedgerError, ProviderName
from worker.asking import ThrottledClient
from worker.context import WorkerContext
from worker.ledger import Limits, Poll
from worker.providers import CannotTell, ReportsOutcomes

log = logging.getLogger(__name__)

PERIOD_SECONDS: Final = 0.5
#: Tasks asked about in one round; each costs one short request.
BATCH: Final = 10
#: One question in all.
QUESTION_SECONDS: Final = 10.0
#: The longest pause between two questions about one task, unless the setting says a longer one.
LONGEST_PAUSE: Final = timedelta(hours=1)
#: How often deliveries are looked for that no worker settled.
MISSED_SECONDS: Final = 60.0
#: How long a round waits for one of the provider's slots, and for a place in its line.
SLOT_PATIENCE_SECONDS: Final = 1.0
PLACE_PATIENCE_SECONDS: Final = 5.0
#: How long a provider is not asked that did not answer, or was out of service and did not say for how long.
REST_SECONDS: Final = 5.0


class OutcomePoller:
    """The thread of one worker process that asks Mindhunters."""

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self._name = ProviderName.MINDHUNTERS
        self._first = timedelta(seconds=context.settings.mindhunters_poll_seconds)
        self._missed_seconds: float | None = None
        self._rest_until_seconds = 0.0
        self._stopping = threading.Event()
        client = context.clients[self._name]
        self._asking = ThrottledClient(
            context.ledger,
            client.provider,
            client.transport,
            clock=context.clock,
            charge=self._charge,
            is_over=lambda: self._stopping.is_set() or context.closing.is_set(),
        )
        self._thread = threading.Thread(target=self._run, name="follow", daemon=True)

    def start(self) -> None:
        """Begin, if the settings ask for it; say so when a rule waits for what nobody will ask."""
        if self._first:
            self._thread.start()
        elif answers_outcomes(self._context.rule_set):
            log.warning("rules have on_outcome, and nobody asks for outcomes: set LEADWIRE_MINDHUNTERS_POLL, to 60 say")

    def stop(self) -> None:
        """End after the question under way."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=QUESTION_SECONDS + 1)

    def _run(self) -> None:
        while not self._stopping.wait(PERIOD_SECONDS):
            try:
                while not self._stopping.is_set() and self.once() == BATCH:
                    pass
            except LedgerError as error:
                log.warning("outcomes wait, the ledger cannot be used now: %s", error)
            except Exception:
                log.exception("a round of asking for outcomes failed; the next one tries again")

    def once(self) -> int:
        """Ask about what is due; return how many tasks were taken."""
        context = self._context
        now, seconds = context.clock.now(), context.clock.awake_seconds()
        if self._missed_seconds is None or seconds - self._missed_seconds >= MISSED_SECONDS:
            self._missed_seconds = seconds
            context.ledger.outcomes.poll_missed(self._name, now, now + self._first)
        bulkhead, taken = context.clients[self._name].bulkhead, 0
        while taken < BATCH and context.clock.awake_seconds() >= self._rest_until_seconds:
            if not self._asking.wait(PLACE_PATIENCE_SECONDS) or not bulkhead.take(SLOT_PATIENCE_SECONDS):
                break
            try:
                polls = context.ledger.outcomes.claim(self._name, context.clock.now(), self._pause, 1)
                if not polls or not self._ask(polls[0]):
                    return taken + len(polls)
            finally:
                bulkhead.give()
            taken += 1
        return taken

    def _charge(self, now: datetime) -> datetime:
        limits = self._context.limits.get(self._name, Limits())
        return self._context.ledger.limits.charge(self._name, limits, now)

    def _ask(self, poll: Poll) -> bool:
        """Ask about one task; return whether the provider takes questions."""
        client, clock = self._context.clients[self._name], self._context.clock
        provider = client.provider
        assert isinstance(provider, ReportsOutcomes)
        sent, hindrance = self._asking.ask(provider.outcome_request(poll.external_id), QUESTION_SECONDS)
        told = provider.read_outcome(sent, poll.external_id)
        if isinstance(told, CannotTell):
            log.info("task %s: what became of it is not known (%s); asked again later", poll.task_id, told.reason)
        elif self._context.ledger.outcomes.record(poll, told.word, clock.now(), final=told.final) and told.final:
            log.info("task %s: %s says it is %s", poll.task_id, self._name, told.word)
        if hindrance is None:
            return True
        wish = hindrance.retry_after_at - clock.now() if hindrance.retry_after_at else timedelta()
        self._rest_until_seconds = clock.awake_seconds() + max(REST_SECONDS, wish.total_seconds())
        return False

    def _pause(self, times: int) -> timedelta:
        """Return how long to wait after a task was asked about so often: twice as long each time."""
        return min(self._first * (1 << min(times, 20)), max(self._first, LONGEST_PAUSE))


def answers_outcomes(rule_set: RuleSet) -> bool:
    """Say whether a rule waits for an outcome."""
    open_: list[Action] = [action for rule in rule_set.rules for action in rule.actions]
    while open_:
        action = open_.pop()
        if action.on_outcome:
            return True
        open_ += action.on_failure
    return False

"""What becomes of delivered tasks: providers that tell nobody are asked, at their rate and with growing pauses.

Off unless `LEADWIRE_MINDHUNTERS_POLL` says how long the first pause is. The word that ends a task is kept with it, and
answered where its rule says so; any other word is kept as it is. An answer that tells nothing changes nothing: the task is
asked about again, until a week after its last moment.
"""

from __future__ import annotations

import logging
import threading
from datetime import timedelta
from typing import Final

from rules.rulebook import Action, RuleBook
from rules.vocabulary import LedgerError, ProviderName
from worker.ledger import Poll, ProviderState
from worker.providers import Followed
from worker.wire import CannotTell
from worker.wiring import Services

log = logging.getLogger(__name__)

PERIOD_SECONDS: Final = 0.5
#: Tasks taken at once; each costs one short request.
BATCH: Final = 10
#: One question in all.
QUESTION_SECONDS: Final = 10.0
#: The longest pause between two questions about one task, unless the setting says a longer one.
LONGEST_PAUSE: Final = timedelta(hours=1)
#: How often deliveries are looked for that no worker settled.
MISSED_SECONDS: Final = 60.0
#: How long a round waits for one of the provider's slots.
SLOT_PATIENCE_SECONDS: Final = 1.0


class Follow:
    """The thread of one worker process that asks Mindhunters."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._name = ProviderName.MINDHUNTERS
        self._first = timedelta(seconds=services.settings.mindhunters_poll_seconds)
        self._missed_seconds: float | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follow", daemon=True)

    def start(self) -> None:
        """Begin, if the settings ask for it; say so when a rule waits for what nobody will ask."""
        if self._first:
            self._thread.start()
        elif answers_outcomes(self._services.book):
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
        services = self._services
        now, seconds = services.clock.now(), services.clock.awake_seconds()
        if self._missed_seconds is None or seconds - self._missed_seconds >= MISSED_SECONDS:
            self._missed_seconds = seconds
            services.ledger.follow_ups.follow_missed(self._name, now, now + self._first)
        if any(state.name is self._name and (state.paused_until_at or now) > now for state in self._paused()):
            return 0
        slots = services.hands[self._name].slots
        if not slots.take(SLOT_PATIENCE_SECONDS):
            return 0
        try:
            taken = services.ledger.follow_ups.take_polls(self._name, now, self._pause, BATCH)
            for poll in taken:
                if self._stopping.is_set() or services.closing.is_set():
                    break  # it is due again by itself
                self._ask(poll)
        finally:
            slots.give()
        return len(taken)

    def _paused(self) -> list[ProviderState]:
        return self._services.ledger.provider_states()

    def _ask(self, poll: Poll) -> None:
        hand, clock = self._services.hands[self._name], self._services.clock
        provider = hand.provider
        assert isinstance(provider, Followed)
        if self._name in self._services.limits:
            self._services.ledger.charge(self._name, self._services.limits[self._name], clock.now())
        sent = hand.transport.send(provider.outcome_request(poll.external_id), deadline_seconds=QUESTION_SECONDS)
        told = provider.read_outcome(sent, poll.external_id)
        if isinstance(told, CannotTell):
            log.info("task %s: what became of it is not known (%s); asked again later", poll.task_id, told.reason)
        elif self._services.ledger.follow_ups.seen(poll, told.word, clock.now(), final=told.final) and told.final:
            log.info("task %s: %s says it is %s", poll.task_id, self._name, told.word)

    def _pause(self, times: int) -> timedelta:
        """Return how long to wait after a task was asked about so often: twice as long each time."""
        return min(self._first * (1 << min(times, 20)), max(self._first, LONGEST_PAUSE))


def answers_outcomes(book: RuleBook) -> bool:
    """Say whether a rule waits for an outcome."""
    open_: list[Action] = [action for rule in book.rules for action in rule.actions]
    while open_:
        action = open_.pop()
        if action.on_outcome:
            return True
        open_ += action.on_failure
    return False

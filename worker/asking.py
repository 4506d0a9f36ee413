"""How a provider is asked about tasks it may already have: in its place in line, and no further when it takes no questions.

A look-up or a poll waits for its place as a task does, but nobody else sees it wait: a place that is far off is kept until
it comes, so that a long line delays questions and does not grow by them. An answer that asks to be left alone pauses the
provider as an attempt's would.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final, Protocol

from worker.alerting import tell_of
from worker.context import Clock
from worker.ledger import Ledger, PauseKind
from worker.providers import Answered, Provider, ProviderRequest, Sent
from worker.providers.answers import asked_until
from worker.retry import Hindrance, hindrance_of

#: While a question waits for its place it looks so often whether the process ends.
SLICE_SECONDS: Final = 0.2
#: A place that is further away is not waited for to the end: no line is believed to be so long.
LONGEST_SECONDS: Final = 300.0

_FORBIDDEN: Final = 403


class Sender(Protocol):
    """What sends a request; `worker.http.HttpClient` is one."""

    def send(self, request: ProviderRequest, *, deadline_seconds: float) -> Sent:
        """Send it and say how it ended, within so many seconds."""


class ThrottledClient:
    """One thread's questions to one provider. `charge` takes a place in its line and returns the place's moment."""

    def __init__(
        self,
        ledger: Ledger,
        provider: Provider,
        sender: Sender,
        *,
        clock: Clock,
        charge: Callable[[datetime], datetime],
        is_over: Callable[[], bool],
    ) -> None:
        self._ledger = ledger
        self._provider = provider
        self._sender = sender
        self._clock = clock
        self._charge = charge
        self._is_over = is_over
        self._place_seconds: float | None = None

    def wait(self, patience_seconds: float) -> bool:
        """Wait for a place in line; False when it comes later than that, the process ends, or the provider is paused.

        The place is kept for the next question, whenever that is sent.
        """
        clock = self._clock
        if self._place_seconds is None:
            now = clock.now()
            away = (self._charge(now) - now).total_seconds()
            self._place_seconds = clock.awake_seconds() + min(max(away, 0.0), LONGEST_SECONDS)
        if self._place_seconds - clock.awake_seconds() > patience_seconds:
            return False
        while (left_seconds := self._place_seconds - clock.awake_seconds()) > 0 and not self._is_over():
            clock.sleep(min(left_seconds, SLICE_SECONDS))
        return not self._is_over() and not self._is_paused()

    @property
    def place_at(self) -> datetime:
        """When the place that is kept comes; now when there is none, or it has come."""
        now, seconds = self._clock.now(), self._clock.awake_seconds()
        return now + timedelta(seconds=max(0.0, (self._place_seconds or seconds) - seconds))

    def ask(self, request: ProviderRequest, deadline_seconds: float) -> tuple[Sent, Hindrance | None]:
        """Send a question and say what hindered it, if that passes by itself; without a place it goes at once, charged."""
        asked_at = self._clock.now()
        if self._place_seconds is None:
            self._charge(asked_at)
        self._place_seconds = None
        sent = self._sender.send(request, deadline_seconds=deadline_seconds)
        now = self._clock.now()
        if not isinstance(sent, Answered):
            return sent, hindrance_of(None, None, now)
        hindrance = hindrance_of(sent.status, asked_until(sent.headers.get("retry-after"), now), now)
        if sent.status == _FORBIDDEN and self._is_let_in(asked_at, deadline_seconds):
            return sent, None
        if hindrance is not None and hindrance.pause_until_at is not None:
            kind = PauseKind.ASKED if hindrance.pause_asked else PauseKind.ANSWER
            reason = f"{sent.status} was its answer to a question about earlier tasks"
            began = self._ledger.limits.pause_on_answer(
                self._provider.name, kind, hindrance.pause_until_at, reason, asked_at, now
            )
            if began is not None:
                tell_of(began)
        return sent, hindrance

    def _is_let_in(self, now: datetime, deadline_seconds: float) -> bool:
        """Whether the provider takes our credential: then a 403 is about this question alone."""
        self._charge(now)
        probed = self._sender.send(self._provider.probe_request(), deadline_seconds=deadline_seconds)
        return isinstance(probed, Answered) and probed.status < 300  # noqa: PLR2004 - any success

    def _is_paused(self) -> bool:
        now, name = self._clock.now(), self._provider.name
        return any(
            state.name is name and (state.paused_until_at or now) > now for state in self._ledger.limits.states()
        )

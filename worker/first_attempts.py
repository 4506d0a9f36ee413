"""First attempts that a message of events makes by itself, without another message: what under load most tasks get.

They are claimed in the transactions that record their plans, and begin when the whole message is recorded: no event waits to
be decided until a provider has answered for another one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Self

from rules.vocabulary import PROVIDER_OF, LedgerInDoubtError, Plan, TaskState, TaskType
from worker.deliver import LEASE, Delivered, claim_name, held_back, limits_for, most_at_once, send, undo_claim
from worker.ledger import Claim, ClaimTerms, NotClaimed
from worker.publisher import SINGLE_DELIVERY_LIMIT
from worker.wiring import ProviderClient, WorkerContext


@dataclass(frozen=True, slots=True)
class Batch:
    """Tasks of one type that were delivered with the message that planned them, and when that began."""

    type: TaskType
    outcomes: Sequence[Delivered]
    began_at: datetime


#: Shows outcomes at once, those of one type; see `Tell`.
TellOf = Callable[[TaskType, Sequence[Delivered]], None]


class InlineDelivery:
    """The first attempts of one message, at tasks of one type; a context, so that the slot is given back."""

    def __init__(self, services: WorkerContext) -> None:
        self._services = services
        self._hand: ProviderClient | None = None
        self._type: TaskType | None = None
        self._room = 0
        self._answers: list[Claim | NotClaimed] = []
        #: The moment of all its claims, by both clocks: their age counts from it, and so does the time of a request.
        self._claimed_at = services.clock.now()
        self._claimed_seconds = 0.0

    def __enter__(self) -> Self:
        """Begin without a slot."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give the slot back, if there is one."""
        if self._hand is not None:
            self._hand.slots.give()

    def record(self, plans: Sequence[Plan]) -> Collection[str]:
        """Record plans, dispatch their tasks that are due, and claim those that this message delivers; return their ids.

        Raises what the ledger raises; what of these plans may have been claimed is given back then.
        """
        clock, ledger = self._services.clock, self._services.ledger
        terms = self._terms(plans, clock.now())
        answers: Sequence[Claim | NotClaimed] = ()
        if terms is None:
            due = ledger.record_plans(plans, clock.now())
        else:
            try:
                due, answers = ledger.record_and_claim(plans, self._claimed_at, terms)
            except LedgerInDoubtError:
                undo_claim(self._services, terms.owner, [task.id for plan in plans for task in plan.tasks])
                raise
        self._services.publisher.tasks(due)
        self._answers += answers
        self._room -= len(answers)
        return {task.id for task in due} | {answer.task_id for answer in answers}

    def make(self, tell_of: TellOf) -> Batch | None:
        """Deliver what was claimed; None when nothing was asked for."""
        hand, type_ = self._hand, self._type
        if hand is None or type_ is None or not self._answers:
            return None
        began_at = self._services.clock.now()
        tell = partial(tell_of, type_)
        answers, self._answers = self._answers, []
        outcomes, held = send(self._services, hand, answers, self._claimed_seconds, tell)
        held_back(self._services, hand, held)
        tell([outcome for outcome in outcomes if not outcome.told])
        return Batch(type_, outcomes, began_at)

    def _terms(self, plans: Sequence[Plan], now: datetime) -> ClaimTerms | None:
        """Return what is claimed of these plans; None when it goes the usual way."""
        type_ = _in_company(plans, now)
        if type_ is None or not self._may_claim(type_):
            return None
        assert self._hand is not None
        limits = limits_for(self._services, self._hand)
        return ClaimTerms(type=type_, most=self._room, lease=LEASE, owner=claim_name(self._services), limits=limits)

    def _may_claim(self, type_: TaskType) -> bool:
        services = self._services
        if self._hand is None:
            hand = services.hands[PROVIDER_OF[type_]]
            if hand.pace.full_until_seconds > services.clock.awake_seconds() or not hand.take_slot(0):
                return False
            self._hand, self._type = hand, type_
            self._room = min(hand.pace.size, most_at_once(services, hand) or hand.pace.size)
            self._claimed_at = services.clock.now()
            self._claimed_seconds = services.clock.awake_seconds()
        return type_ is self._type and self._room > 0 and not services.closing.is_set()


def _in_company(plans: Sequence[Plan], now: datetime) -> TaskType | None:
    """Return the type of which more tasks are due than would have messages of their own, the most frequent one."""
    due = Counter(
        task.type for plan in plans for task in plan.tasks if task.state is TaskState.PLANNED and task.due_at <= now
    )
    for type_, number in due.most_common(1):
        return type_ if number > SINGLE_DELIVERY_LIMIT else None
    return None

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
from worker.context import ProviderClient, WorkerContext
from worker.deliver import LEASE, Delivered, claim_name, held_back, limits_for, most_at_once, send, undo_claim
from worker.ledger import Claim, ClaimTerms, NotClaimed
from worker.publisher import SINGLE_DELIVERY_LIMIT


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

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self._client: ProviderClient | None = None
        self._type: TaskType | None = None
        self._room = 0
        self._answers: list[Claim | NotClaimed] = []
        #: The moment of all its claims, by both clocks: their age counts from it, and so does the time of a request.
        self._claimed_at = context.clock.now()
        self._claimed_seconds = 0.0

    def __enter__(self) -> Self:
        """Begin without a slot."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give the slot back, if there is one."""
        if self._client is not None:
            self._client.bulkhead.give()

    def record(self, plans: Sequence[Plan]) -> Collection[str]:
        """Record plans, dispatch their tasks that are due, and claim those that this message delivers; return their ids.

        Raises what the ledger raises; what of these plans may have been claimed is given back then.
        """
        clock, ledger = self._context.clock, self._context.ledger
        terms = self._terms(plans, clock.now())
        answers: Sequence[Claim | NotClaimed] = ()
        if terms is None:
            due = ledger.tasks.insert(plans, clock.now())
        else:
            try:
                due, answers = ledger.tasks.insert_and_claim(plans, self._claimed_at, terms)
            except LedgerInDoubtError:
                undo_claim(self._context, terms.owner, [task.id for plan in plans for task in plan.tasks])
                raise
        self._context.publisher.tasks(due)
        self._answers += answers
        self._room -= len(answers)
        return {task.id for task in due} | {answer.task_id for answer in answers}

    def make(self, tell_of: TellOf) -> Batch | None:
        """Deliver what was claimed; None when nothing was asked for."""
        client, type_ = self._client, self._type
        if client is None or type_ is None or not self._answers:
            return None
        began_at = self._context.clock.now()
        tell = partial(tell_of, type_)
        answers, self._answers = self._answers, []
        outcomes, held = send(self._context, client, answers, self._claimed_seconds, tell)
        held_back(self._context, client, held)
        tell([outcome for outcome in outcomes if not outcome.told])
        return Batch(type_, outcomes, began_at)

    def _terms(self, plans: Sequence[Plan], now: datetime) -> ClaimTerms | None:
        """Return what is claimed of these plans; None when it goes the usual way."""
        type_ = _in_company(plans, now)
        if type_ is None or not self._may_claim(type_):
            return None
        assert self._client is not None
        limits = limits_for(self._context, self._client)
        return ClaimTerms(type=type_, most=self._room, lease=LEASE, owner=claim_name(self._context), limits=limits)

    def _may_claim(self, type_: TaskType) -> bool:
        context = self._context
        if self._client is None:
            client = context.clients[PROVIDER_OF[type_]]
            if client.batch_size.full_until_seconds > context.clock.awake_seconds() or not client.take_slot(0):
                return False
            self._client, self._type = client, type_
            self._room = min(client.batch_size.size, most_at_once(context, client) or client.batch_size.size)
            self._claimed_at = context.clock.now()
            self._claimed_seconds = context.clock.awake_seconds()
        return type_ is self._type and self._room > 0 and not context.closing.is_set()


def _in_company(plans: Sequence[Plan], now: datetime) -> TaskType | None:
    """Return the type of which more tasks are due than would have messages of their own, the most frequent one."""
    due = Counter(
        task.type for plan in plans for task in plan.tasks if task.state is TaskState.PLANNED and task.due_at <= now
    )
    for type_, number in due.most_common(1):
        return type_ if number > SINGLE_DELIVERY_LIMIT else None
    return None

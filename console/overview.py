"""What there is to see of all the work at one moment, as numbers by labels.

Whatever can be known beforehand (types, states, providers, configured sources) is there from the start, with 0.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import product
from typing import Final

from ingress.accept import Outcome
from ingress.sources import VerificationFailure
from rules.vocabulary import TERMINAL_TASK_STATES, EventState, ProviderName, TaskState, TaskType
from worker.ledger import Due, Measures, PauseKind
from worker.ledger.counters import Tally

#: Numbers by the values of a family's labels.
Values = Mapping[tuple[str, ...], float]

EVENTS: Final = "events"
TASKS: Final = "tasks"

PROVIDERS: Final = [str(name) for name in ProviderName]
CAUSES: Final = [str(kind) for kind in PauseKind]
TYPES: Final = [str(type_) for type_ in TaskType]
_TASK_STATES: Final = [str(state) for state in TaskState]
#: What a task comes to, for now or for good.
TASK_ENDS: Final = [str(state) for state in TaskState if state in TERMINAL_TASK_STATES | {TaskState.UNKNOWN}]
_EVENT_STATES: Final = [str(state) for state in EventState]
EVENT_ENDS: Final = [str(state) for state in EventState if state is not EventState.RECEIVED]

_BUSY_REASONS: Final = ("ledger_busy", "ledger_fault", "unexpected")
_REQUEST_ENDS: Final = (
    *((str(outcome), "") for outcome in (Outcome.ACCEPTED, Outcome.HANDSHAKE, Outcome.OVERSIZED, Outcome.NOT_ALLOWED)),
    *((str(Outcome.REJECTED), str(reason)) for reason in VerificationFailure),
    *((str(Outcome.BUSY), reason) for reason in _BUSY_REASONS),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a scrape shows.

    `requests` are those that this process could not count in the ledger yet. `sources` are the configured ones; `queues` is
    None while the broker cannot be reached; `refused` says whether this ingress runs on the last good rules because it could
    not accept the folder's.
    """

    measures: Measures
    requests: Mapping[tuple[str, str, str], int]
    read_seconds: float
    sources: Collection[str]
    queues: Mapping[str, int] | None
    refused: bool

    def due(self) -> Mapping[tuple[str, str], Due]:
        """Return the work that is due by kind and provider; events have none."""
        tasks = {(TASKS, str(name)): due for name, due in self.measures.due_tasks.items()}
        return {(EVENTS, ""): self.measures.due_events, **tasks}


#: Stands beside the ends of classes for the sum of all spans.
SUM: Final = "sum"


def _zeros(*axes: Collection[str]) -> dict[tuple[str, ...], float]:
    return dict.fromkeys(product(*axes), 0.0)


def counted(tally: Tally, *axes: Collection[str]) -> Callable[[View], Values]:
    """Return what reads a count from the ledger; combinations of the axes are there from the start."""
    return lambda view: {**_zeros(*axes), **view.measures.tallies[tally]}


def spans(tally: Tally, total: Tally) -> Callable[[View], Values]:
    """Return what reads the spans of a histogram: how many in each class, and their sum in seconds."""

    def values(view: View) -> Values:
        sums: Values = {(*labels, SUM): value / 1000 for labels, value in view.measures.tallies[total].items()}
        return {**_zeros(TYPES, [SUM]), **view.measures.tallies[tally], **sums}

    return values


def requests(view: View) -> Values:
    """Return webhook requests by source and what they came to."""
    zeros: Values = {(source, *end): 0.0 for source, end in product(sorted(view.sources), _REQUEST_ENDS)}
    found = dict(view.measures.tallies[Tally.REQUESTS])
    for labels, number in view.requests.items():
        found[labels] = found.get(labels, 0) + number
    return {**zeros, **found}


def events(view: View) -> Values:
    """Return events by source and state."""
    found: Values = {(source, str(state)): number for (state, source), number in view.measures.events.items()}
    return {**_zeros(sorted(view.sources), _EVENT_STATES), **found}


def tasks(view: View) -> Values:
    """Return tasks by type and state."""
    found: Values = {(str(type_), str(state)): number for (state, type_), number in view.measures.tasks.items()}
    return {**_zeros(TYPES, _TASK_STATES), **found}


def _age_seconds(due: Due, now: datetime) -> float:
    return max(0.0, (now - due.oldest_at).total_seconds()) if due.oldest_at else 0.0


def ages(view: View) -> Values:
    """Return for how many seconds the oldest due work has been due, by kind and provider."""
    return {labels: _age_seconds(due, view.measures.taken_at) for labels, due in view.due().items()}


def paused(view: View) -> Values:
    """Return 1 for each provider that is paused, under the cause of it."""
    kinds = {str(name): str(state.kind) for name, state in view.measures.paused.items()}
    return {(name, cause): float(kinds.get(name) == cause) for name in PROVIDERS for cause in CAUSES}


def paused_until(view: View) -> Values:
    """Return when each provider's pause ends, in seconds since 1970."""
    until = {name: state.paused_until_at for name, state in view.measures.paused.items()}
    return {(str(name),): at.timestamp() if (at := until.get(name)) else 0.0 for name in ProviderName}


def rule_set(view: View) -> Values:
    """Return 1 for the version of the rule set in force."""
    return {(view.measures.rule_set[0],): 1.0} if view.measures.rule_set else {}


def accepted_at(view: View) -> Values:
    """Return when that rule set was accepted, in seconds since 1970."""
    return {(): view.measures.rule_set[1].timestamp()} if view.measures.rule_set else {}


def queues(view: View) -> Values:
    """Return the depth of each queue."""
    return {(name,): number for name, number in (view.queues or {}).items()}

"""Which numbers operators get for Prometheus, under which names, and what each one tells to do.

Names follow https://prometheus.io/docs/practices/naming. Counters, histograms and all that is said about work come from the
ledger and are those of all processes together: every ingress answers with the same ones, so a query takes the largest of
several and never adds them up. Label values that are known beforehand (types, states, providers, configured sources) are there
from the start, with 0. `docs/metrics.md` lists `FAMILIES`; a test compares them.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from itertools import accumulate, product
from typing import Final

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from ingress.app import RequestOutcome
from ingress.sources import VerificationFailure
from rules.vocabulary import TERMINAL_TASK_STATES, EventState, ProviderName, TaskState, TaskType
from worker.ledger import Due, Measures, PauseKind
from worker.ledger.counters import BUCKETS, CounterName

VERSION: Final = metadata.version("leadwire")
#: The ends of classes as Prometheus writes numbers.
_ENDS: Final = tuple(end if end == "+Inf" else str(float(end)) for end in BUCKETS)


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
    *(
        (str(outcome), "")
        for outcome in (
            RequestOutcome.ACCEPTED,
            RequestOutcome.HANDSHAKE,
            RequestOutcome.OVERSIZED,
            RequestOutcome.NOT_ALLOWED,
        )
    ),
    *((str(RequestOutcome.REJECTED), str(reason)) for reason in VerificationFailure),
    *((str(RequestOutcome.BUSY), reason) for reason in _BUSY_REASONS),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSnapshot:
    """The data of one scrape.

    `requests` are counts that this process has not written to the ledger yet. `sources` are the configured ones; `queues` is
    None while the broker cannot be reached. `refused`: the rules folder was not accepted, so this ingress uses the last valid
    rules.
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


def counted(tally: CounterName, *axes: Collection[str]) -> Callable[[MetricsSnapshot], Values]:
    """Return a function that reads a counter from the ledger; known label combinations start at 0."""
    return lambda view: {**_zeros(*axes), **view.measures.tallies[tally]}


def spans(tally: CounterName, total: CounterName) -> Callable[[MetricsSnapshot], Values]:
    """Return a function that reads a histogram of durations: the count in each bucket and the sum in seconds."""

    def values(view: MetricsSnapshot) -> Values:
        sums: Values = {(*labels, SUM): value / 1000 for labels, value in view.measures.tallies[total].items()}
        return {**_zeros(TYPES, [SUM]), **view.measures.tallies[tally], **sums}

    return values


def requests(view: MetricsSnapshot) -> Values:
    """Return webhook requests by source and outcome."""
    zeros: Values = {(source, *end): 0.0 for source, end in product(sorted(view.sources), _REQUEST_ENDS)}
    found = dict(view.measures.tallies[CounterName.REQUESTS])
    for labels, number in view.requests.items():
        found[labels] = found.get(labels, 0) + number
    return {**zeros, **found}


def events(view: MetricsSnapshot) -> Values:
    """Return events by source and state."""
    found: Values = {(source, str(state)): number for (state, source), number in view.measures.events.items()}
    return {**_zeros(sorted(view.sources), _EVENT_STATES), **found}


def tasks(view: MetricsSnapshot) -> Values:
    """Return tasks by type and state."""
    found: Values = {(str(type_), str(state)): number for (state, type_), number in view.measures.tasks.items()}
    return {**_zeros(TYPES, _TASK_STATES), **found}


def _age_seconds(due: Due, now: datetime) -> float:
    return max(0.0, (now - due.oldest_at).total_seconds()) if due.oldest_at else 0.0


def ages(view: MetricsSnapshot) -> Values:
    """Return for how many seconds the oldest due work has been due, by kind and provider."""
    return {labels: _age_seconds(due, view.measures.taken_at) for labels, due in view.due().items()}


def paused(view: MetricsSnapshot) -> Values:
    """Return 1 for each paused provider, labelled with the cause."""
    kinds = {str(name): str(state.kind) for name, state in view.measures.paused.items()}
    return {(name, cause): float(kinds.get(name) == cause) for name in PROVIDERS for cause in CAUSES}


def paused_until(view: MetricsSnapshot) -> Values:
    """Return when each provider's pause ends, in seconds since 1970."""
    until = {name: state.paused_until_at for name, state in view.measures.paused.items()}
    return {(str(name),): at.timestamp() if (at := until.get(name)) else 0.0 for name in ProviderName}


def rule_set(view: MetricsSnapshot) -> Values:
    """Return 1 for the version of the rule set in force."""
    return {(view.measures.rule_set[0],): 1.0} if view.measures.rule_set else {}


def accepted_at(view: MetricsSnapshot) -> Values:
    """Return when that rule set was accepted, in seconds since 1970."""
    return {(): view.measures.rule_set[1].timestamp()} if view.measures.rule_set else {}


def queues(view: MetricsSnapshot) -> Values:
    """Return the depth of each queue."""
    return {(name,): number for name, number in (view.queues or {}).items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One metric: its name in queries, what it measures, and what to do about it."""

    name: str
    kind: str
    labels: tuple[str, ...] = ()
    help: str
    values: Callable[[MetricsSnapshot], Values]

    def metric(self, view: MetricsSnapshot) -> Metric:
        """Return the metric with its samples."""
        if self.kind == "histogram":
            return self._histogram(view)
        kind = CounterMetricFamily if self.kind == "counter" else GaugeMetricFamily
        family = kind(self.name.removesuffix("_total"), self.help, labels=self.labels)
        for labels, value in self.values(view).items():
            family.add_metric(labels, value)
        return family

    def _histogram(self, view: MetricsSnapshot) -> Metric:
        family = HistogramMetricFamily(self.name, self.help, labels=self.labels)
        values = self.values(view)
        for labels in sorted({each[:-1] for each in values}):
            sums = accumulate(values.get((*labels, end), 0) for end in BUCKETS)
            family.add_metric(labels, [*zip(_ENDS, sums, strict=True)], values.get((*labels, SUM), 0))
        return family


class Collector:
    """The metrics of one scrape, for a `CollectorRegistry`."""

    def __init__(self, view: MetricsSnapshot) -> None:
        self._view = view

    def collect(self) -> Iterator[Metric]:
        """Return every family with its samples."""
        return (family.metric(self._view) for family in FAMILIES)


#: Every metric, in the order in which it is shown.
FAMILIES: Final = (
    Family(
        name="leadwire_webhook_requests_total",
        kind="counter",
        labels=("source", "outcome", "reason"),
        help=(
            "Requests to /webhooks/SOURCE by what they came to. Rejected with mismatch: compare the secret with the sender's; "
            "with too_old or too_new: compare the clocks. Busy: see the ledger's disk and its locks; senders come again."
        ),
        values=requests,
    ),
    Family(
        name="leadwire_events_received_total",
        kind="counter",
        labels=("source", "type"),
        help=(
            "Events recorded, redeliveries not counted; types that are no canonical ones count as other. When it stays flat "
            "while the sender is busy, look at leadwire_webhook_requests_total."
        ),
        values=counted(CounterName.EVENTS_RECEIVED),
    ),
    Family(
        name="leadwire_events_ended_total",
        kind="counter",
        labels=("state",),
        help=(
            "Events by what they came to. Unreadable: the sender's format changed, see `leadwire events --state unreadable`. "
            "Failed: `leadwire events --state failed` has the error. Ignored: no rule listens."
        ),
        values=counted(CounterName.EVENTS_ENDED, EVENT_ENDS),
    ),
    Family(
        name="leadwire_decisions_total",
        kind="counter",
        labels=("rule", "outcome"),
        help=(
            "Decisions of each rule; beyond 500 rules the rest count as other. A rule that never matches, or suddenly always, "
            "is explained by `leadwire explain EVENT`."
        ),
        values=counted(CounterName.DECISIONS),
    ),
    Family(
        name="leadwire_tasks_planned_total",
        kind="counter",
        labels=("type",),
        help="Touches that rules asked for. A sudden rise: check which rule matches more than it should before they go out.",
        values=counted(CounterName.TASKS_PLANNED, TYPES),
    ),
    Family(
        name="leadwire_tasks_ended_total",
        kind="counter",
        labels=("type", "state"),
        help=(
            "Touches by what they came to. Dead: `leadwire tasks --state dead` has the reason, `leadwire retry` sends again. "
            "Unknown: it may have been executed; it is looked up at the provider, and `leadwire tasks --state unknown` says what "
            "is left to a person. Suppressed: it was too late, or the failure that it answers was undone."
        ),
        values=counted(CounterName.TASKS_ENDED, TYPES, TASK_ENDS),
    ),
    Family(
        name="leadwire_attempts_total",
        kind="counter",
        labels=("provider", "verdict", "status"),
        help=(
            "Attempts by verdict and class of the HTTP status: none is no answer, lost a worker that ended or fell silent (an "
            "answer that comes after all counts too). Busy: the provider limits or is down. Refused: its message is in "
            "`leadwire show TASK`. Pause: mend its credential or URL."
        ),
        values=counted(CounterName.ATTEMPTS),
    ),
    Family(
        name="leadwire_provider_pauses_total",
        kind="counter",
        labels=("provider", "cause"),
        help=(
            "Times that a provider began to be left alone, by cause. Answer: its credential or its URL is wrong. Breaker: tries "
            "in a row failed. Asked: it got too many requests; set LEADWIRE_*_RATE lower. The worker's log has the status."
        ),
        values=counted(CounterName.PAUSES, PROVIDERS, CAUSES),
    ),
    Family(
        name="leadwire_delivery_after_received_seconds",
        kind="histogram",
        labels=("type",),
        help=(
            "From the webhook's arrival to the provider's acceptance, waits that the rule asked for (`at`) included. When it "
            "rises, leadwire_due_oldest_age_seconds tells whether Leadwire is late or the provider busy."
        ),
        values=spans(CounterName.AFTER_RECEIVED, CounterName.AFTER_RECEIVED_SUM),
    ),
    Family(
        name="leadwire_delivery_after_occurred_seconds",
        kind="histogram",
        labels=("type",),
        help=(
            "The same from the moment that the event says it occurred at. When it rises and the one since the arrival does "
            "not, the sender posts late, or its clock is wrong."
        ),
        values=spans(CounterName.AFTER_OCCURRED, CounterName.AFTER_OCCURRED_SUM),
    ),
    Family(
        name="leadwire_events",
        kind="gauge",
        labels=("source", "state"),
        help="Events that the ledger holds. Received ones that do not go away: no worker runs, or it is stuck.",
        values=events,
    ),
    Family(
        name="leadwire_tasks",
        kind="gauge",
        labels=("type", "state"),
        help=(
            "Touches that the ledger holds. Unknown ones are being looked up, or wait for a person: `leadwire settle`. Waiting "
            "ones that pile up: the provider is busy or paused."
        ),
        values=tasks,
    ),
    Family(
        name="leadwire_due_work",
        kind="gauge",
        labels=("kind", "provider"),
        help=(
            "Work that is due and that no worker has begun: events to decide, touches to send. When it grows, add a worker "
            "(`leadwire worker`), or see why the provider takes so long."
        ),
        values=lambda view: {labels: due.number for labels, due in view.due().items()},
    ),
    Family(
        name="leadwire_due_oldest_age_seconds",
        kind="gauge",
        labels=("kind", "provider"),
        help=(
            "How long the oldest of that work has been due; 0 when nothing is. Over a minute: see whether a worker runs, the "
            "broker is up and the provider answers."
        ),
        values=ages,
    ),
    Family(
        name="leadwire_provider_paused",
        kind="gauge",
        labels=("provider", "cause"),
        help=(
            "1 while a provider is left alone for this cause and its touches wait. Answer: mend its credential or URL and "
            "restart the worker. Breaker, asked: one touch after another tries whether it is back. Person: `leadwire resume`."
        ),
        values=paused,
    ),
    Family(
        name="leadwire_provider_paused_until_timestamp_seconds",
        kind="gauge",
        labels=("provider",),
        help="When the pause ends or one touch probes the provider; 0 without a pause. Moving on by a minute: it still fails.",
        values=paused_until,
    ),
    Family(
        name="leadwire_rule_set_info",
        kind="gauge",
        labels=("version",),
        help="The rule set that was accepted last; always 1. A change that nobody made: see who wrote to the rules folder.",
        values=rule_set,
    ),
    Family(
        name="leadwire_rule_set_accepted_timestamp_seconds",
        kind="gauge",
        help="When a process last took that rule set into force. Older than your last change: restart the processes.",
        values=accepted_at,
    ),
    Family(
        name="leadwire_rules_refused",
        kind="gauge",
        help="1 when this ingress refused the rules folder at its start and works with the last good set: `leadwire check`.",
        values=lambda view: {(): float(view.refused)},
    ),
    Family(
        name="leadwire_broker_up",
        kind="gauge",
        help="1 while the broker answers this ingress. 0: nothing is lost, but nothing moves until it is back.",
        values=lambda view: {(): float(view.queues is not None)},
    ),
    Family(
        name="leadwire_queue_messages",
        kind="gauge",
        labels=("queue",),
        help="Messages that no worker has taken yet; absent while the broker is down. When it grows, add a worker.",
        values=queues,
    ),
    Family(
        name="leadwire_ledger_size_bytes",
        kind="gauge",
        help="How large the ledger is, free pages included. Watch it against the disk's room.",
        values=lambda view: {(): view.measures.size_bytes},
    ),
    Family(
        name="leadwire_ledger_info",
        kind="gauge",
        labels=("engine", "revision"),
        help="The ledger's engine and the revision of its tables; always 1. Two at once: two ledgers are in use.",
        values=lambda view: {(view.measures.engine, view.measures.revision): 1.0},
    ),
    Family(
        name="leadwire_ledger_read_seconds",
        kind="gauge",
        help="How long reading these numbers from the ledger took. When it nears the scrape's time-out, scrape less often.",
        values=lambda view: {(): view.read_seconds},
    ),
    Family(
        name="leadwire_build_info",
        kind="gauge",
        labels=("version", "python"),
        help="The version that answers; always 1. Several at once: an upgrade is not complete.",
        values=lambda _: {(VERSION, platform.python_version()): 1.0},
    ),
)

"""The demo's webhooks, the tasks they must lead to, and the check of the result.

`scenario.yaml` has the webhooks as real senders write them, not generated from the sources' own paths, so that the demo also
tests the presets. The ledger shows what was decided, the sandbox what was created; a task counts only when both have it.
"""

from __future__ import annotations

import base64
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from typing import Final

import yaml
from pydantic import TypeAdapter

from console.samples import Posted, Sample, filled_sample
from rules.vocabulary import (
    TERMINAL_TASK_STATES,
    DecisionOutcome,
    EventState,
    Json,
    ProviderName,
    TaskState,
    TaskType,
    instant,
)
from worker.ledger import StoredEvent, StoredTask

#: Every description that a provider is given ends in a correlation tag with so many characters of the task's key.
TAG_CHARACTERS: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedTask:
    """One task that must exist at its provider exactly once."""

    rule: str
    type: TaskType
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedEvent:
    """One event of a webhook: how to find it in the ledger, and the tasks it must lead to.

    `failing_test` is a rule that must not have matched, with the path of the test that failed.
    """

    label: str
    type: str
    subject_id: str
    tasks: tuple[ExpectedTask, ...] = ()
    failing_test: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoWebhook:
    """One webhook that the demo posts; with `redelivered` the same bytes are posted a second time."""

    source: str
    format: str
    content_type: str
    body: Json
    events: tuple[ExpectedEvent, ...]
    redelivered: bool = False

    def sample(self, now: datetime) -> Sample:
        """Return the payload, with the present moment in it."""
        moments = {"iso": instant(now), "ms": int(now.timestamp() * 1000)}
        return filled_sample(self.body, self.content_type, moments)


def rule_variables() -> Mapping[str, str]:
    """Return the variables that the example rules read, with fresh secrets."""
    return {
        "SALES_AGENT": "11111111-1111-4111-8111-111111111111",
        "WELCOME_TEMPLATE": "bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb",
        "DEMO_GENERIC_SECRET": secrets.token_hex(16),
        "DEMO_HUBSPOT_SECRET": secrets.token_hex(16),
        "DEMO_STANDARD_SECRET": "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode(),
    }


def webhooks() -> tuple[DemoWebhook, ...]:
    """Return what is posted, in order."""
    text = files(__package__).joinpath("scenario.yaml").read_text(encoding="utf-8")
    return TypeAdapter(tuple[DemoWebhook, ...]).validate_python(yaml.safe_load(text))


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """The state of ledger and sandbox at one moment.

    `answers` has the answers to each webhook, in order. `at_mindhunters` and `at_vambe` are the sandbox's tasks as JSON,
    `refused` says why it refused requests.
    """

    webhooks: tuple[DemoWebhook, ...]
    answers: tuple[tuple[Posted, ...], ...]
    events: tuple[StoredEvent, ...]
    tasks: tuple[StoredTask, ...]
    at_mindhunters: tuple[Mapping[str, Json], ...]
    at_vambe: tuple[Mapping[str, Json], ...]
    refused: tuple[str, ...]

    @property
    def expected_events(self) -> tuple[ExpectedEvent, ...]:
        """Every event that must be in the ledger."""
        return tuple(event for webhook in self.webhooks for event in webhook.events)

    @property
    def expected_tasks(self) -> tuple[ExpectedTask, ...]:
        """Every task that must be made."""
        return tuple(task for event in self.expected_events for task in event.tasks)

    @property
    def at_providers(self) -> tuple[Mapping[str, Json], ...]:
        """Every task that the providers hold."""
        return (*self.at_mindhunters, *self.at_vambe)

    @property
    def is_final(self) -> bool:
        """Whether nothing more will change: every event is decided and every task has ended."""
        return (
            len(self.events) >= len(self.expected_events)
            and all(event.state is not EventState.RECEIVED for event in self.events)
            and all(task.state in TERMINAL_TASK_STATES | {TaskState.UNKNOWN} for task in self.tasks)
        )

    def stored(self, webhook: DemoWebhook, expected: ExpectedEvent) -> StoredEvent | None:
        """Return an expected event as the ledger has it, if it is there exactly once."""
        found = [
            stored
            for stored in self.events
            if stored.event.source == webhook.source
            and stored.event.type == expected.type
            and stored.event.subject is not None
            and stored.event.subject.id == expected.subject_id
        ]
        return found[0] if len(found) == 1 else None

    def tasks_of(self, event: StoredEvent, rule: str) -> list[StoredTask]:
        """Return what a rule made of an event."""
        return [task for task in self.tasks if task.event_id == event.id and task.rule == rule]

    def at_provider(self, task: StoredTask) -> list[Mapping[str, Json]]:
        """Return the provider's tasks that match: by id, and by the correlation tag in the description."""
        is_call = task.provider is ProviderName.MINDHUNTERS
        held, id_field = (self.at_mindhunters, "uuid") if is_call else (self.at_vambe, "id")
        tag = f"[lw:{task.key[:TAG_CHARACTERS]}]"
        return [one for one in held if one[id_field] == task.external_id or tag in str(one["description"])]

    def shortcomings(self) -> Iterator[str]:
        """Yield a sentence for each difference from what is expected; nothing when there is none."""
        for webhook, answers in zip(self.webhooks, self.answers, strict=True):
            for posted in answers:
                if not posted.accepted:
                    yield f"a webhook of {webhook.source} was answered with {posted.status}: {posted.text[:200]}"
            for expected in webhook.events:
                yield from (f"{expected.label}: {wrong}" for wrong in self._event_shortcomings(webhook, expected))
        if len(self.events) != len(self.expected_events):
            yield f"{len(self.events)} events are in the ledger, not {len(self.expected_events)}"
        wanted = Counter(task.title for task in self.expected_tasks)
        held = Counter(str(one["title"]) for one in self.at_providers)
        for title in sorted((wanted | held).keys()):
            if wanted[title] != held[title]:
                yield f"the providers hold {held[title]} of {title!r}, not {wanted[title]}"
        for why in self.refused:
            yield f"a provider refused a request: {why}"

    def _event_shortcomings(self, webhook: DemoWebhook, expected: ExpectedEvent) -> Iterator[str]:
        event = self.stored(webhook, expected)
        if event is None:
            yield "not in the ledger exactly once"
            return
        for wanted in expected.tasks:
            made = [task for task in self.tasks_of(event, wanted.rule) if task.type is wanted.type]
            states = ", ".join(f"{task.state} ({task.reason})" if task.reason else str(task.state) for task in made)
            if [task.state for task in made] != [TaskState.DELIVERED]:
                yield f"{wanted.type} of {wanted.rule} is {states or 'not there'}, not delivered once"
            elif len(self.at_provider(made[0])) != 1:
                yield f"{made[0].provider} does not hold {wanted.title!r} exactly once"
        if expected.failing_test:
            rule, path = expected.failing_test
            found = [
                decision.failed.path
                for decision in event.decisions
                if decision.rule == rule and decision.outcome is DecisionOutcome.NOT_MATCHED and decision.failed
            ]
            if found != [path]:
                yield f"the ledger does not say that {rule} left it alone because of {path}"

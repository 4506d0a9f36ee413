"""What the demo posts, what must come of it, and whether it did.

The bodies are written as the senders write them and not made from the sources' own paths, so that the demo also shows that the
presets understand the real thing. What is expected follows from `rules/examples/`. The ledger says what was decided and the
sandbox what was created; a task counts only when both agree on it.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from urllib.parse import urlencode

from console.samples import FORM, JSON, Posted, Sample
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
    """One task that must be at its provider in the end, exactly once."""

    rule: str
    type: TaskType
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedEvent:
    """One event that a webhook carries: what it is found by in the ledger, and what it must lead to.

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
    sample: Sample
    events: tuple[ExpectedEvent, ...]
    redelivered: bool = False


def rule_variables() -> Mapping[str, str]:
    """Return the variables that the example rules read, with fresh secrets."""
    return {
        "SALES_AGENT": "11111111-1111-4111-8111-111111111111",
        "WELCOME_TEMPLATE": "bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb",
        "DEMO_GENERIC_SECRET": secrets.token_hex(16),
        "DEMO_HUBSPOT_SECRET": secrets.token_hex(16),
        "DEMO_STANDARD_SECRET": "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode(),
    }


def webhooks(now: datetime) -> tuple[DemoWebhook, ...]:
    """Return what is posted, in order."""
    return (_big_lead(now), _small_lead(now), _form(), _hubspot(now), _partner(now))


def _big_lead(now: datetime) -> DemoWebhook:
    contact = {"id": "1001", "name": "Ana Rojas", "phone": "+56911112222", "country": "CL"}
    data = {"value": 15000, "source": "web_form", "notes": "wants two licences"}
    return DemoWebhook(
        source="website",
        format="JSON with a shared secret",
        sample=_website_lead("web-1001", contact, data, now),
        events=(
            ExpectedEvent(
                label="Ana Rojas, worth 15,000",
                type="lead.created",
                subject_id="1001",
                tasks=_tasks_for_big_lead("Ana Rojas"),
            ),
        ),
        redelivered=True,
    )


def _small_lead(now: datetime) -> DemoWebhook:
    contact = {"id": "1002", "name": "Pablo Vera", "phone": "+56911113333", "country": "CL"}
    return DemoWebhook(
        source="website",
        format="JSON with a shared secret",
        sample=_website_lead("web-1002", contact, {"value": 900, "source": "web_form"}, now),
        events=(
            ExpectedEvent(
                label="Pablo Vera, worth 900",
                type="lead.created",
                subject_id="1002",
                failing_test=("high-value-lead", "data.value"),
            ),
        ),
    )


def _form() -> DemoWebhook:
    fields = {
        "event": "form.submitted",
        "event_id": "web-1003",
        "external_id": "1003",
        "name": "Pedro Soto",
        "phone": "+56 9 2222 3333",
        "country": "CL",
        "message": "Please send me prices.",
    }
    welcome = ExpectedTask(rule="whatsapp-welcome", type=TaskType.WHATSAPP_TEMPLATE, title="Welcome Pedro Soto")
    return DemoWebhook(
        source="website",
        format="form fields",
        sample=Sample(body=urlencode(fields).encode(), content_type=FORM),
        events=(
            ExpectedEvent(label="Pedro Soto, contact form", type="form.submitted", subject_id="1003", tasks=(welcome,)),
        ),
    )


def _hubspot(now: datetime) -> DemoWebhook:
    shared: Mapping[str, Json] = {
        "portalId": 62515,
        "appId": 54321,
        "subscriptionId": 12345,
        "occurredAt": int(now.timestamp() * 1000),
        "attemptNumber": 0,
        "changeSource": "CRM",
    }
    moved = {
        **shared,
        "eventId": 100,
        "subscriptionType": "deal.propertyChange",
        "objectId": 4711,
        "propertyName": "dealstage",
        "propertyValue": "contractsent",
    }
    created = {**shared, "eventId": 101, "subscriptionType": "contact.creation", "objectId": 4712, "changeFlag": "NEW"}
    offer = ExpectedTask(rule="proposal-stage", type=TaskType.TEAM_TASK, title="Prepare the offer for deal 4711")
    return DemoWebhook(
        source="hubspot",
        format="HubSpot v3, two events",
        sample=_json([moved, created]),
        events=(
            ExpectedEvent(
                label="deal 4711 to contractsent", type="deal.stage_changed", subject_id="4711", tasks=(offer,)
            ),
            ExpectedEvent(
                label="contact 4712, no phone",
                type="contact.created",
                subject_id="4712",
                failing_test=("whatsapp-welcome", "contact.phone"),
            ),
        ),
    )


def _partner(now: datetime) -> DemoWebhook:
    contact = {"id": "c-9", "name": "Grace Miller", "phone": "+12125550143", "country": "US"}
    data = {"id": "p-77", "value": 48000, "contact": contact}
    return DemoWebhook(
        source="partner",
        format="Standard Webhooks",
        sample=_json({"type": "lead.created", "timestamp": instant(now), "data": data}),
        events=(
            ExpectedEvent(
                label="Grace Miller, worth 48,000",
                type="lead.created",
                subject_id="p-77",
                tasks=_tasks_for_big_lead("Grace Miller"),
            ),
        ),
    )


def _tasks_for_big_lead(name: str) -> tuple[ExpectedTask, ...]:
    return (
        ExpectedTask(rule="high-value-lead", type=TaskType.TEAM_TASK, title=f"Follow up: High-value lead - {name}"),
        ExpectedTask(rule="call-high-value-lead", type=TaskType.MAKE_CALL, title=f"Call {name}"),
    )


def _website_lead(event_id: str, contact: Json, data: Json, now: datetime) -> Sample:
    event = {"event": "lead.created", "event_id": event_id, "occurred_at": instant(now)}
    return _json({**event, "contact": contact, "data": data})


def _json(value: Json) -> Sample:
    return Sample(body=json.dumps(value).encode(), content_type=JSON)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """Everything there is to see at one moment.

    `answers` has those to each webhook, in order. `at_mindhunters` and `at_vambe` are the tasks that the sandbox holds as JSON,
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
        """Whether nothing more will happen by itself: all is decided, and every task has come to its end."""
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
        """Return what the provider holds of a task: found by its id there and by the tag in its description."""
        is_call = task.provider is ProviderName.MINDHUNTERS
        held, id_field = (self.at_mindhunters, "uuid") if is_call else (self.at_vambe, "id")
        tag = f"[lw:{task.key[:TAG_CHARACTERS]}]"
        return [one for one in held if one[id_field] == task.external_id or tag in str(one["description"])]

    def shortcomings(self) -> Iterator[str]:
        """Yield in what this is not as expected, in sentences; nothing when all is well."""
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

"""What the demo posts and what it promises: samples in three formats, and the tasks that must come of them.

The bodies are written as the senders write them; nothing is made up from the source's own paths, so that the demo also shows
that the presets understand the real thing. The promises stand beside `rules/examples/`.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from urllib.parse import urlencode

from console.samples import Sample
from rules.vocabulary import Json, TaskType, instant

FORM: Final = "application/x-www-form-urlencoded"
JSON: Final = "application/json"
SALES_AGENT: Final = "11111111-1111-4111-8111-111111111111"
WELCOME_TEMPLATE: Final = "bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb"


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """One task that must be at its provider in the end, exactly once."""

    rule: str
    type: TaskType
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """One event a posting carries: how it is recognised in the ledger, and what it must lead to."""

    words: str
    type: str
    subject_id: str
    promises: tuple[Promise, ...] = ()
    #: A rule that must have left it alone, and the failing test's path.
    left_alone: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Posting:
    """One webhook of the demo; `again` posts the same bytes a second time."""

    source: str
    form: str
    sample: Sample
    happenings: tuple[Happening, ...]
    again: bool = False


def environment() -> Mapping[str, str]:
    """Return the variables that the example rules read, with fresh secrets."""
    return {
        "SALES_AGENT": SALES_AGENT,
        "WELCOME_TEMPLATE": WELCOME_TEMPLATE,
        "DEMO_GENERIC_SECRET": secrets.token_hex(16),
        "DEMO_HUBSPOT_SECRET": secrets.token_hex(16),
        "DEMO_STANDARD_SECRET": "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode(),
    }


def postings(now: datetime) -> tuple[Posting, ...]:
    """Return what is posted, in order."""
    return (_big_lead(now), _small_lead(now), _form(), _hubspot(now), _partner(now))


def _lead_tasks(name: str) -> tuple[Promise, ...]:
    return (
        Promise(rule="high-value-lead", type=TaskType.TEAM_TASK, title=f"Follow up: High-value lead - {name}"),
        Promise(rule="call-high-value-lead", type=TaskType.MAKE_CALL, title=f"Call {name}"),
    )


def _big_lead(now: datetime) -> Posting:
    return Posting(
        source="website",
        form="JSON with a shared secret",
        sample=_json(
            {
                "event": "lead.created",
                "event_id": "web-1001",
                "occurred_at": instant(now),
                "contact": {"id": "1001", "name": "Ana Rojas", "phone": "+56911112222", "country": "CL"},
                "data": {"value": 15000, "source": "web_form", "notes": "wants two licences"},
            }
        ),
        happenings=(
            Happening(
                words="Ana Rojas, worth 15,000",
                type="lead.created",
                subject_id="1001",
                promises=_lead_tasks("Ana Rojas"),
            ),
        ),
        again=True,
    )


def _small_lead(now: datetime) -> Posting:
    return Posting(
        source="website",
        form="JSON with a shared secret",
        sample=_json(
            {
                "event": "lead.created",
                "event_id": "web-1002",
                "occurred_at": instant(now),
                "contact": {"id": "1002", "name": "Pablo Vera", "phone": "+56911113333", "country": "CL"},
                "data": {"value": 900, "source": "web_form"},
            }
        ),
        happenings=(
            Happening(
                words="Pablo Vera, worth 900",
                type="lead.created",
                subject_id="1002",
                left_alone=("high-value-lead", "data.value"),
            ),
        ),
    )


def _form() -> Posting:
    fields = {
        "event": "form.submitted",
        "event_id": "web-1003",
        "external_id": "1003",
        "name": "Pedro Soto",
        "phone": "+56 9 2222 3333",
        "country": "CL",
        "message": "Please send me prices.",
    }
    return Posting(
        source="website",
        form="form fields",
        sample=Sample(body=urlencode(fields).encode(), content_type=FORM),
        happenings=(
            Happening(
                words="Pedro Soto, contact form",
                type="form.submitted",
                subject_id="1003",
                promises=(
                    Promise(rule="whatsapp-welcome", type=TaskType.WHATSAPP_TEMPLATE, title="Welcome Pedro Soto"),
                ),
            ),
        ),
    )


def _hubspot(now: datetime) -> Posting:
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
    return Posting(
        source="hubspot",
        form="HubSpot v3, two events",
        sample=_json([moved, created]),
        happenings=(
            Happening(
                words="deal 4711 to contractsent",
                type="deal.stage_changed",
                subject_id="4711",
                promises=(
                    Promise(rule="proposal-stage", type=TaskType.TEAM_TASK, title="Prepare the offer for deal 4711"),
                ),
            ),
            Happening(
                words="contact 4712, no phone",
                type="contact.created",
                subject_id="4712",
                left_alone=("whatsapp-welcome", "contact.phone"),
            ),
        ),
    )


def _partner(now: datetime) -> Posting:
    return Posting(
        source="partner",
        form="Standard Webhooks",
        sample=_json(
            {
                "type": "lead.created",
                "timestamp": instant(now),
                "data": {
                    "id": "p-77",
                    "value": 48000,
                    "contact": {"id": "c-9", "name": "Grace Miller", "phone": "+12125550143", "country": "US"},
                },
            }
        ),
        happenings=(
            Happening(
                words="Grace Miller, worth 48,000",
                type="lead.created",
                subject_id="p-77",
                promises=_lead_tasks("Grace Miller"),
            ),
        ),
    )


def _json(value: Json) -> Sample:
    return Sample(body=json.dumps(value).encode(), content_type=JSON)

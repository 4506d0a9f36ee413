"""Which bodies Mindhunters' `POST /tasks` takes, by its documents: one complaint for each thing that is wrong.

Source: developers.mindhunters.ai, "Create a new task", read 2026-11; what the page leaves open is a switch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from rules.vocabulary import Json
from worker.sandbox.switches import Switches

TYPES: Final = (
    "make_call",
    "send_message",
    "send_email",
    "follow_up",
    "appointment",
    "survey",
    "notification",
    "webhook",
    "custom",
)
EXPLAINED_TYPES: Final = frozenset({"make_call", "send_message"})
KEYS: Final = frozenset(
    {
        "title",
        "type",
        "agent_uuid",
        "scheduled_at",
        "description",
        "contact_uuid",
        "contact",
        "campaign_uuid",
        "timezone",
        "priority",
        "expires_at",
        "max_attempts",
        "task_data",
        "auto_queue",
    }
)
CONTACT_KEYS: Final = frozenset({"phone_number", "email"})
PRIORITIES: Final = range(1, 11)

_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
_PHONE: Final = re.compile(r"\+[1-9][0-9]{6,14}")
_MOMENT: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]+)?)?(?P<offset>Z|[+-][0-9]{2}:?[0-9]{2})?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Complaint:
    """One thing wrong: 422 with its field, or 404 with its code."""

    field: str
    message: str
    status: int = 422
    code: str = "VALIDATION_ERROR"


def complaints(body: Mapping[str, Json], switches: Switches, now: datetime) -> Iterator[Complaint]:
    """Yield what is wrong with a body, shapes before ids."""
    for key in ("title", "type", "agent_uuid", "scheduled_at"):
        value = body.get(key)
        if value is None or value == "":
            yield Complaint(field=key, message="is required")
        elif not isinstance(value, str):
            yield Complaint(field=key, message="must be a string")
    yield from _type(body, switches)
    yield from _ids(body, switches)
    yield from _times(body, switches, now)
    yield from _numbers(body, switches)
    yield from _contact(body, switches)
    yield from _message(body, switches)
    if switches.on("mindhunters.unknown_key", "refuse"):
        for key in sorted(body.keys() - KEYS):
            yield Complaint(field=key, message="is not a known key")


def moment(value: Json) -> datetime | None:
    """Return an ISO 8601 date-time, read as UTC where it has no offset; None for anything else."""
    if not isinstance(value, str) or not _MOMENT.fullmatch(value):
        return None
    try:
        read = datetime.fromisoformat(value)
        return (read if read.tzinfo else read.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def is_uuid(value: Json) -> bool:
    """Say whether a value is a UUID in its usual spelling."""
    return isinstance(value, str) and _UUID.fullmatch(value) is not None


def _type(body: Mapping[str, Json], switches: Switches) -> Iterator[Complaint]:
    value = body.get("type")
    if not isinstance(value, str) or not value:
        return
    if value not in TYPES:
        yield Complaint(field="type", message=f"must be one of {', '.join(TYPES)}")
    elif value not in EXPLAINED_TYPES and switches.on("mindhunters.unexplained_types", "refuse"):
        yield Complaint(field="type", message="is not available to this workspace")


def _ids(body: Mapping[str, Json], switches: Switches) -> Iterator[Complaint]:
    agent = body.get("agent_uuid")
    if isinstance(agent, str) and agent:
        if not is_uuid(agent) and switches.on("mindhunters.agent_format", "refuse"):
            yield Complaint(field="agent_uuid", message="must be a UUID")
        elif not switches.knows("mindhunters.agents", agent):
            yield Complaint(field="agent_uuid", message="no such agent", status=404, code="AGENT_NOT_FOUND")
    campaign = body.get("campaign_uuid")
    if campaign is not None and not is_uuid(campaign):
        yield Complaint(field="campaign_uuid", message="must be a UUID")
    for key in ("description", "timezone"):
        if body.get(key) is not None and not isinstance(body[key], str):
            yield Complaint(field=key, message="must be a string")
    if body.get("auto_queue") is not None and not isinstance(body["auto_queue"], bool):
        yield Complaint(field="auto_queue", message="must be a boolean")


def _times(body: Mapping[str, Json], switches: Switches, now: datetime) -> Iterator[Complaint]:
    written = body.get("scheduled_at")
    scheduled_at = moment(written)
    if isinstance(written, str) and written:
        if scheduled_at is None:
            yield Complaint(field="scheduled_at", message="must be an ISO 8601 date-time")
        elif _is_naive(written) and switches.on("mindhunters.naive_scheduled_at", "refuse"):
            yield Complaint(field="scheduled_at", message="must carry an offset")
        elif scheduled_at <= now:
            yield Complaint(field="scheduled_at", message="must be in the future")
    if body.get("expires_at") is None:
        return
    expires_at = moment(body["expires_at"])
    if expires_at is None:
        yield Complaint(field="expires_at", message="must be an ISO 8601 date-time")
    elif scheduled_at and expires_at <= scheduled_at and switches.on("mindhunters.expires_order", "refuse"):
        yield Complaint(field="expires_at", message="must be after scheduled_at")


def _is_naive(written: str) -> bool:
    found = _MOMENT.fullmatch(written)
    return found is not None and found["offset"] is None


def _numbers(body: Mapping[str, Json], switches: Switches) -> Iterator[Complaint]:
    priority = body.get("priority")
    if priority is not None and not (_is_whole(priority) and priority in PRIORITIES):
        yield Complaint(field="priority", message="must be a whole number from 1 to 10")
    tries = body.get("max_attempts")
    if tries is not None and not _is_whole(tries):
        yield Complaint(field="max_attempts", message="must be a whole number")
    elif tries is not None and tries < 1 and switches.on("mindhunters.max_attempts", "refuse"):
        yield Complaint(field="max_attempts", message="must be at least 1")


def _is_whole(value: Json) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _contact(body: Mapping[str, Json], switches: Switches) -> Iterator[Complaint]:
    contact, contact_uuid = body.get("contact"), body.get("contact_uuid")
    if contact is not None and contact_uuid is not None:
        yield Complaint(field="contact_uuid", message="cannot be given together with contact")
        return
    if contact_uuid is not None:
        if not is_uuid(contact_uuid):
            yield Complaint(field="contact_uuid", message="must be a UUID")
        return
    if contact is None:
        yield Complaint(field="contact", message="is required when contact_uuid is not given")
    elif not isinstance(contact, dict):
        yield Complaint(field="contact", message="must be an object")
    else:
        yield from _contact_object(contact, switches)


def _contact_object(contact: Mapping[str, Json], switches: Switches) -> Iterator[Complaint]:
    phone, email = contact.get("phone_number"), contact.get("email")
    if not phone and not email and switches.on("mindhunters.empty_contact", "refuse"):
        yield Complaint(field="contact", message="needs phone_number or email")
    if phone and not isinstance(phone, str):
        yield Complaint(field="contact.phone_number", message="must be a string")
    elif phone and not _PHONE.fullmatch(phone) and switches.on("mindhunters.phone_format", "refuse"):
        yield Complaint(field="contact.phone_number", message="must be in E.164 form")
    if email and not isinstance(email, str):
        yield Complaint(field="contact.email", message="must be a string")
    if switches.on("mindhunters.unknown_contact_key", "refuse"):
        for key in sorted(contact.keys() - CONTACT_KEYS):
            yield Complaint(field=f"contact.{key}", message="is not a registered field")


def _message(body: Mapping[str, Json], switches: Switches) -> Iterator[Complaint]:
    data = body.get("task_data")
    if data is not None and not isinstance(data, dict):
        yield Complaint(field="task_data", message="must be an object")
        return
    if body.get("type") != "send_message":
        return
    given = data or {}
    if given.get("message_type") != "whatsapp_template":
        yield Complaint(field="task_data.message_type", message="must be whatsapp_template")
    template = given.get("template_uuid")
    if not is_uuid(template):
        yield Complaint(field="task_data.template_uuid", message="is required and must be a UUID")
    elif not switches.knows("mindhunters.templates", str(template)):
        status = int(switches["mindhunters.unknown_template"])
        yield Complaint(
            field="task_data.template_uuid",
            message="no such approved template",
            status=status,
            code="TEMPLATE_NOT_FOUND" if status == 404 else "VALIDATION_ERROR",  # noqa: PLR2004 - not found
        )

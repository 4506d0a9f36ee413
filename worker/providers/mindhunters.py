"""Mindhunters (also Mihu): its words, its codes, its answers; it executes AI calls and WhatsApp templates.

Source: developers.mindhunters.ai and developers.mihu.ai, "Create a new task", "Get paginated list of tasks", "Errors",
read 2026-11. Only names printed there are sent. Where the pages leave something open:

- The host is the workspace's own, and two domains are documented: the whole base URL is a setting.
- `scheduled_at` must be in the future when the request arrives, so it is computed for every request anew: the task's due
  time, but at least LEAD from now. That covers the attempt's own 30 seconds and as much difference of clocks.
- `contact` and `contact_uuid`: exactly one is sent.
- `auto_queue` is always sent: its documented default, false, may mean that nothing ever happens.
- The pages of the task call print no success status and no answer body; the id is looked for where the API's other
  calls and the vendor's own integration have it.
- The names for the retry interval, the retry strategy, metadata and template variables are printed nowhere: not sent.
- The API is built on a framework whose own error form (`message`, `errors` by field) cannot be excluded: both are read.
- No filter of the listing knows a task of ours by a name we gave it: agent, type and the scheduled window narrow it down,
  the mark in the description decides.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final
from urllib.parse import quote

from rules.vocabulary import E164_PATTERN, Json, ProviderName, TaskType
from worker.providers import (
    LISTING_LIMIT_BYTES,
    CancelResult,
    CannotTell,
    ClaimedTask,
    Interpretation,
    ListingProgress,
    LookupTarget,
    NextPage,
    ProviderRequest,
    Sent,
    TaskStatus,
    Unsendable,
    WholeListing,
    answers,
)
from worker.providers.answers import RETRY, AnswerFormat, ErrorBody, Paging
from worker.providers.fields import FieldReader, shown

#: How far in the future the provider is asked to act at the soonest.
LEAD: Final = timedelta(seconds=60)
#: How much earlier and later than it should be a task is looked for: clocks differ.
MARGIN: Final = timedelta(minutes=10)
#: The longest page that the listing documents.
PER_PAGE: Final = 100

#: The documented statuses that end a task; which step leads to which is not documented.
ENDS: Final = frozenset({"completed", "failed", "cancelled", "expired"})
_WORD_CHARACTERS: Final = 60

#: The documented types beside `make_call` and `send_message`, which have tasks of their own.
OTHER_TYPES: Final = ("send_email", "follow_up", "appointment", "survey", "notification", "webhook", "custom")

#: Every documented wire name, and the key of the task that decides it.
WIRE_NAMES: Final[Mapping[str, str]] = {
    "title": "title",
    "type": "type",
    "agent_uuid": "agent",
    "scheduled_at": "at",
    "description": "description",
    "contact_uuid": "contact_uuid",
    "contact": "contact",
    "campaign_uuid": "campaign",
    "timezone": "timezone",
    "priority": "priority",
    "expires_at": "expires",
    "max_attempts": "redial.max",
    "task_data": "task_data",
    "auto_queue": "auto_queue",
}


#: What to do about a complaint, by the field or code it names.
REMEDIES: Final[Mapping[str, str]] = {
    "agent_uuid": f"Compare `agent` of the rule with the agents of the workspace, {RETRY}",
    "agent_not_found": f"Compare `agent` of the rule with the agents of the workspace, {RETRY}",
    "contact": f"Correct the contact in the CRM, {RETRY}",
    "contact.phone_number": f"Correct the contact's phone in the CRM, {RETRY}",
    "contact.email": f"Correct the contact's e-mail in the CRM, {RETRY}",
    "contact_uuid": f"Compare `contact_uuid` of the rule with the contacts of the workspace, {RETRY}",
    "contact_not_found": f"Compare `contact_uuid` of the rule with the contacts of the workspace, {RETRY}",
    "campaign_uuid": f"Compare `campaign` of the rule with the campaigns of the workspace, {RETRY}",
    "scheduled_at": f"Check this machine's clock, {RETRY}",
    "expires_at": f"Give `expires` of the rule more time, {RETRY}",
    "max_attempts": f"Correct `redial: {{max}}` of the rule, {RETRY}",
    "task_data.template_uuid": f"Compare `template` of the rule with the approved templates, {RETRY}",
    "type": "Leadwire sends the documented names of types and never others: ask Mindhunters which ones this workspace "
    f"takes, {RETRY}",
}

#: Words of a 404 that speaks of the address.
_ADDRESS_WORDS: Final = ("endpoint", "route", "url")


class Mindhunters:
    """The Mindhunters task service: AI calls and WhatsApp messages to contacts."""

    name = ProviderName.MINDHUNTERS

    def auth_headers(self, credential: str) -> Mapping[str, str]:
        """Return the header that carries the credential."""
        return {"Authorization": f"Bearer {credential}"}

    def build_request(self, task: ClaimedTask, now: datetime) -> ProviderRequest | Unsendable:
        """Return the request that creates the task, or why it would be refused."""
        reader = FieldReader(task.fields)
        scheduled_at = _whole_second_after(max(task.due_at, now + LEAD))
        wire_type, task_data = _kind(task.type, reader)
        body: dict[str, Json] = {
            "title": reader.text("title", needed=True),
            "type": wire_type,
            "agent_uuid": reader.uuid("agent", needed=True),
            "scheduled_at": _instant(scheduled_at),
            "description": reader.text("description"),
            **_contact(task.fields, reader),
            "campaign_uuid": reader.uuid("campaign"),
            "timezone": reader.zone("timezone"),
            "priority": reader.whole("priority", lowest=1, highest=10),
            "expires_at": _expiry(task.expires_at, scheduled_at, reader),
            "max_attempts": _redials(task.fields.get("redial"), reader),
            "task_data": task_data,
            "auto_queue": reader.flag("auto_queue") is not False,
        }
        extra = reader.extra_fields(WIRE_NAMES)
        if reader.faults:
            too_late = body["expires_at"] is None and task.expires_at is not None and len(reader.faults) == 1
            return answers.unsendable(reader.faults, too_late=too_late)
        known = {name: value for name, value in body.items() if value is not None}
        return ProviderRequest(method="POST", path="/tasks", json={**known, **extra})

    def read_response(self, sent: Sent, now: datetime, request: ProviderRequest | None = None) -> Interpretation:  # noqa: ARG002 - protocol
        """Interpret the result of a send."""
        return answers.read(_FORMAT, sent, now)

    def probe_request(self) -> ProviderRequest:
        """Return a GET that changes nothing and needs the credential."""
        return ProviderRequest(method="GET", path="/tasks", query=(("per_page", "1"),))

    def cancel_request(self, external_id: str) -> ProviderRequest | None:
        """Return the call that cancels a task; known from a third party's reference, not from the vendor's pages."""
        return ProviderRequest(method="POST", path=f"/tasks/{quote(external_id, safe='')}/cancel")

    def read_cancel(self, sent: Sent) -> CancelResult:
        """Interpret the answer to that call."""
        return answers.cancelled(_FORMAT, sent)

    def listing_key(self, sought: LookupTarget) -> Hashable | CannotTell:
        """Return the task's agent and type, by which listings are filtered."""
        if not answers.has_tag(sought):
            return answers.NOT_MARKED
        filters = _filters(sought.task)
        return filters if all(value for _, value in filters) else CannotTell(reason="the task names no agent or type")

    def listing_request(self, sought: Sequence[LookupTarget], page: int) -> ProviderRequest:
        """Return the request for one page of this agent's tasks of this type in the window that the attempts asked for."""
        moments = [at for each in sought for at in (each.began_at, each.ended_at)]
        first_at, last_at = min(moments), max(moments)  # a clock that was put back ends an attempt before it began
        query = (
            *_filters(sought[0].task),
            ("scheduled_from", _instant(_earlier(first_at, MARGIN))),
            ("scheduled_to", _instant(_later(last_at, LEAD + MARGIN))),
            ("per_page", str(PER_PAGE)),
            ("page", str(page)),
        )
        return ProviderRequest(method="GET", path="/tasks", query=query, body_limit_bytes=LISTING_LIMIT_BYTES)

    def read_listing(
        self,
        sent: Sent,
        sought: Sequence[LookupTarget],
        page: int,
        seen: ListingProgress | None,
        *,
        query_works: bool,  # noqa: ARG002 - protocol; its form is documented
    ) -> NextPage | WholeListing | CannotTell:
        """Interpret one page of the listing."""
        body = answers.open_listing(sent)
        if isinstance(body, CannotTell):
            return body
        data = body.get("data") if isinstance(body, dict) else None
        rows = data.get("data") if isinstance(data, dict) else None
        paging = _paging(data)
        now_seen = answers.gather(rows, sought, ("uuid", "id"), seen) if isinstance(rows, list) else None
        if now_seen is None or paging is None:
            return answers.MALFORMED
        return answers.continue_listing(now_seen, sought, paging, page)

    def outcome_request(self, external_id: str) -> ProviderRequest:
        """Return the request for a task's status; known from a third party's reference. The vendor sends no webhook for it."""
        return ProviderRequest(method="GET", path=f"/tasks/{quote(external_id, safe='')}")

    def read_outcome(self, sent: Sent, external_id: str) -> TaskStatus | CannotTell:
        """Return the task's status from `data.status`, be it a documented word or not."""
        body = answers.open_listing(sent)
        if isinstance(body, CannotTell):
            return body
        data = body.get("data") if isinstance(body, dict) else None
        status = data.get("status") if isinstance(data, dict) else None
        if not isinstance(status, str) or not status.strip():
            return answers.MALFORMED
        found = _identify(body)
        if found is not None and str(found) != external_id:
            return CannotTell(reason="the answer is about another task")
        word = answers.one_line(status, _WORD_CHARACTERS)
        final = word.lower() in ENDS
        return TaskStatus(word=word.lower() if final else word, final=final)


def _kind(type_: TaskType, reader: FieldReader) -> tuple[str | None, dict[str, Json] | None]:
    """Return the wire's type and its `task_data`."""
    given = reader.mapping("task_data")
    if type_ is TaskType.MAKE_CALL:
        return "make_call", given or None
    if type_ is TaskType.WHATSAPP_TEMPLATE:
        template = reader.uuid("template", needed=True)
        return "send_message", {
            **(given or {}),
            "message_type": "whatsapp_template",
            "template_uuid": template,
        }
    wire_type = reader.text("type", needed=True)
    if wire_type is not None and wire_type not in OTHER_TYPES:
        reader.faults.append(f"`type` must be one of {', '.join(OTHER_TYPES)}, not {shown(wire_type)}")
    return wire_type, given


def _contact(fields: Mapping[str, Json], reader: FieldReader) -> dict[str, Json]:
    """Return exactly one of `contact_uuid` and `contact`."""
    contact_uuid = reader.uuid("contact_uuid")
    contact = reader.mapping("contact")
    if fields.get("contact_uuid") is not None:
        if contact:
            reader.faults.append("give `contact` or `contact_uuid`, not both")
        return {"contact_uuid": contact_uuid}
    if not contact:
        reader.faults.append("no phone: the contact has none, and there is no `contact_uuid`")
        return {}
    phone, email = contact.get("phone_number"), contact.get("email")
    if phone is None and email is None:
        reader.faults.append("`contact` must hold `phone_number` or `email`")
    if phone is not None and not (isinstance(phone, str) and re.fullmatch(E164_PATTERN, phone)):
        reader.faults.append(f"`contact.phone_number` must be E.164 such as +56911112222, not {shown(phone)}")
    if email is not None and not (isinstance(email, str) and "@" in email):
        reader.faults.append(f"`contact.email` must be an e-mail address, not {shown(email)}")
    return {"contact": contact}


def _redials(redial: Json, reader: FieldReader) -> int | None:
    """Return the provider's own tries after no answer or busy."""
    if redial is None:
        return None
    if not isinstance(redial, Mapping):
        reader.faults.append(f"`redial` must be a mapping such as {{max: 3}}, not {shown(redial)}")
        return None
    inner = FieldReader({"redial.max": redial.get("max")})
    number = inner.whole("redial.max", lowest=1)
    reader.faults += inner.faults
    return number


def _expiry(expires_at: datetime | None, scheduled_at: datetime, reader: FieldReader) -> str | None:
    if expires_at is None:
        return None
    if expires_at.replace(microsecond=0) <= scheduled_at:
        reader.faults.append(
            f"it would expire at {_instant(expires_at)}, which is not after the earliest moment the provider can act, "
            f"{_instant(scheduled_at)}: give `expires` more time"
        )
        return None
    return _instant(expires_at)


def _whole_second_after(moment: datetime) -> datetime:
    return moment if moment.microsecond == 0 else moment.replace(microsecond=0) + timedelta(seconds=1)


def _instant(moment: datetime) -> str:
    """Return a moment as the pages print it: UTC, whole seconds, `Z`."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _filters(task: ClaimedTask) -> tuple[tuple[str, str], ...]:
    """Return by what a task is listed beside its time; an empty value where it names none."""
    reader = FieldReader(task.fields)
    wire_type, _ = _kind(task.type, reader)
    return (("agent_uuid", reader.uuid("agent") or ""), ("type", wire_type or ""))


def _earlier(moment: datetime, span: timedelta) -> datetime:
    """Return the moment that much before, or the first of the calendar."""
    return moment - min(span, moment - datetime.min.replace(tzinfo=UTC))


def _later(moment: datetime, span: timedelta) -> datetime:
    """Return the moment that much after, or the last of the calendar."""
    return moment + min(span, datetime.max.replace(tzinfo=UTC) - moment)


def _paging(data: Json) -> Paging | None:
    """Return what a page says of itself and the whole; None where it says nothing of use."""
    given: dict[str, Json] = data if isinstance(data, dict) else {}
    numbers: list[Json] = [given.get(name) for name in ("current_page", "last_page", "total")]
    if not all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in numbers):
        return None
    page, last_page, total = numbers
    return Paging(page=page, last_page=last_page, total=total)


def _identify(body: Json) -> Json:
    """Return the id of the task: `data.uuid`, `data.id`, `uuid`, `id`, the first that is there."""
    if not isinstance(body, dict):
        return None
    data = body.get("data")
    inner = data if isinstance(data, dict) else {}
    return inner.get("uuid") or inner.get("id") or body.get("uuid") or body.get("id")


def _read_error(body: Json) -> ErrorBody | None:
    """Read the documented error form, or the one of the framework behind it."""
    if not isinstance(body, dict):
        return None
    error, errors = body.get("error"), body.get("errors")
    message = answers.text_of(body.get("message"))
    if body.get("success") is False or isinstance(error, dict):
        inner = error if isinstance(error, dict) else {}
        code = answers.field_name(inner.get("code"))
        words = f"{code} {message}".lower()
        return ErrorBody(
            message=message,
            code=code,
            fields=_documented_fields(inner) + _fields_by_name(errors),
            about_task=not any(word in words for word in _ADDRESS_WORDS),
        )
    if message and isinstance(errors, dict):
        return ErrorBody(message=message, fields=_fields_by_name(errors))
    return None


def _documented_fields(error: Mapping[str, Json]) -> tuple[tuple[str, str], ...]:
    name, details = answers.field_name(error.get("field")), error.get("details")
    if isinstance(details, dict):
        return _fields_by_name(details)
    said = answers.text_of(details)
    return ((name, said or "not accepted"),) if name else ((("", said),) if said else ())


def _fields_by_name(errors: Json) -> tuple[tuple[str, str], ...]:
    if not isinstance(errors, dict):
        return ()
    return tuple((answers.field_name(name), answers.text_of(said) or "not accepted") for name, said in errors.items())


def _remedy(complaint: ErrorBody) -> str:
    for name in (*(field for field, _ in complaint.fields), complaint.code.lower()):
        if name in REMEDIES:
            return REMEDIES[name]
        if name in WIRE_NAMES:
            return f"Correct `{WIRE_NAMES[name]}` of the rule, {RETRY}"
    return f"Correct the rule or the contact, {RETRY}"


_FORMAT: Final = AnswerFormat(
    name="Mindhunters",
    url_setting="LEADWIRE_MINDHUNTERS_URL",
    url_example="https://x.mindhunters.ai/api/v1",
    key_setting="LEADWIRE_MINDHUNTERS_TOKEN",
    identify=_identify,
    read_error=_read_error,
    remedy=_remedy,
)

PROVIDER: Final = Mindhunters()

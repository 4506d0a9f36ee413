"""Vambe: its words, its codes, its answers; it holds tasks for people of the team.

Source: docs.vambe.me, "Create a new task", "Get tasks", "Get all team members", read 2026-11. Where the page contradicts
itself:

- Keys that may be null are optional in its table and required in its body section: all nine are sent every time.
- `/api/public/tasks` or `/api/tasks` (one sample): only the first, below the base URL.
- A `dueDate` with a time of its own, beside `dueTime` and `timezone`, names two moments: the date is sent plain, in the zone
  of the time. The sample's answer does not fit its request, so the moment in the answer is compared, and a
  difference is a warning.
- An all-day task has neither time nor zone, as in the sample.
- Priority goes out as "0" "1" "2" and comes back as a number.
- "404: invalid statusId or responsibleIds" could also be a wrong address: it is a refusal when it names what a task can
  name, else the probe decides.
- The listing takes a list of users, and no page says how a list is written in a query: the name is repeated for each. Only
  a listing that showed a task of a user it was asked about proves that this is understood; until then an empty one proves
  nothing. Which date its two dates bound is not said either: both are covered, the due date's and the day of making.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Final

from rules.times import is_zone, zone
from rules.vocabulary import Json, ProviderName, Verdict
from worker.providers import (
    LISTING_LIMIT_BYTES,
    Answered,
    CancelResult,
    CannotTell,
    ClaimedTask,
    Interpretation,
    ListingProgress,
    LookupTarget,
    NextPage,
    ProviderRequest,
    Sent,
    Unsendable,
    WholeListing,
    answers,
)
from worker.providers.answers import RETRY, AnswerFormat, ErrorBody
from worker.providers.fields import FieldReader, shown

PRIORITIES: Final[Mapping[str, str]] = {"low": "0", "medium": "1", "high": "2"}
DEFAULT_PRIORITY: Final = "medium"

#: Every documented wire name, and the key of the task that decides it.
WIRE_NAMES: Final[Mapping[str, str]] = {
    "title": "title",
    "description": "description",
    "dueDate": "due",
    "dueTime": "due",
    "timezone": "timezone",
    "responsibleIds": "assign",
    "aiContactId": "ai_contact_id",
    "aiCustomerId": "ai_customer_id",
    "priority": "priority",
}

#: A moment that differs by less is the same moment, rounded.
TOLERANCE: Final = timedelta(minutes=1)
_DAY: Final = timedelta(days=1)

_ASSIGN: Final = f"Compare `assign` of the rule with the users that GET /team-members/all lists, {RETRY}"

#: Words of a 404 about something a task names; the documented case is the first.
_TASK_WORDS: Final = ("responsib", "user", "member", "contact", "customer", "statusid", "status id")
#: Words of a 404 about the address.
_ADDRESS_WORDS: Final = ("cannot post", "route", "endpoint", "url")


class Vambe:
    """The Vambe task service: tasks for people of a team."""

    name = ProviderName.VAMBE

    def auth_headers(self, credential: str) -> Mapping[str, str]:
        """Return the header that carries the credential."""
        return {"x-api-key": credential}

    def build_request(self, task: ClaimedTask, now: datetime) -> ProviderRequest | Unsendable:  # noqa: ARG002 - protocol
        """Return the request that creates the task, or why it would be refused."""
        reader = FieldReader(task.fields)
        due_date, due_time, due_zone = _due(reader)
        body: dict[str, Json] = {
            "title": reader.text("title", needed=True),
            "description": reader.text("description"),
            "dueDate": due_date,
            "dueTime": due_time,
            "timezone": due_zone,
            "responsibleIds": reader.texts("responsible_ids"),
            "aiContactId": reader.text("ai_contact_id"),
            "aiCustomerId": reader.text("ai_customer_id"),
            "priority": _priority(reader),
        }
        extra = reader.extra_fields(WIRE_NAMES)
        if reader.faults:
            return answers.unsendable(reader.faults)
        return ProviderRequest(method="POST", path="/tasks", json={**body, **extra})

    def read_response(self, sent: Sent, now: datetime, request: ProviderRequest | None = None) -> Interpretation:
        """Interpret the result of a send."""
        reading = answers.read(_FORMAT, sent, now)
        if reading.verdict is Verdict.DELIVERED and request is not None and isinstance(sent, Answered):
            return replace(reading, warning=_other_moment(request.json, answers.decoded(sent.body)))
        return reading

    def probe_request(self) -> ProviderRequest:
        """Return a GET that changes nothing and needs the credential."""
        return ProviderRequest(method="GET", path="/team-members/all")

    def cancel_request(self, external_id: str) -> ProviderRequest | None:  # noqa: ARG002 - protocol
        """Return None: Vambe documents no call that cancels a task."""
        return None

    def read_cancel(self, sent: Sent) -> CancelResult:
        """Interpret the answer to that call."""
        return answers.cancelled(_FORMAT, sent)

    def listing_key(self, sought: LookupTarget) -> Hashable | CannotTell:
        """Return the task's users, by whom listings are filtered."""
        if not answers.has_tag(sought):
            return answers.NOT_MARKED
        return _users(sought) or CannotTell(reason="the task names no users to ask for")

    def listing_request(self, sought: Sequence[LookupTarget], page: int) -> ProviderRequest:  # noqa: ARG002 - protocol; there is one page
        """Return the request for the tasks of these users around the due dates and the days of making."""
        days = [day for each in sought for day in _days(each)]
        first, last = min(days), max(days)
        query = (
            *(("responsibleIds", user) for user in _users(sought[0])),
            ("fromDate", (first - min(_DAY, first - date.min)).isoformat()),  # zones differ: a day more at both ends
            ("toDate", (last + min(_DAY, date.max - last)).isoformat()),
            ("includeTasksWithoutDates", "true"),
        )
        return ProviderRequest(method="GET", path="/tasks", query=query, body_limit_bytes=LISTING_LIMIT_BYTES)

    def read_listing(
        self,
        sent: Sent,
        sought: Sequence[LookupTarget],
        page: int,  # noqa: ARG002 - protocol
        seen: ListingProgress | None,
        *,
        query_works: bool,
    ) -> NextPage | WholeListing | CannotTell:
        """Interpret the listing, which comes without pages."""
        body = answers.open_listing(sent)
        if isinstance(body, CannotTell):
            return body
        now_seen = answers.gather(body, sought, ("id",), seen) if isinstance(body, list) else None
        if now_seen is None:
            return answers.MALFORMED
        asked = frozenset(_users(sought[0]))
        understood = bool(now_seen.held) or any(asked & _responsible(row) for row in body)
        if understood or query_works:
            return answers.whole_listing(now_seen, query_works=understood)
        return CannotTell(
            reason="the listing shows no task, and none that was asked for in this form has shown any yet"
        )


def _due(reader: FieldReader) -> tuple[str | None, str | None, str | None]:
    """Return date, time and zone as they are sent; the zone only beside a time."""
    due_date, due_time, due_zone = reader.date("due_date"), reader.time("due_time"), reader.zone("timezone")
    if due_time is None:
        return due_date, None, None
    if due_date is None:
        reader.faults.append("a due time needs a due date")
    if due_zone is None:
        reader.faults.append("a due time needs a `timezone`, such as America/Santiago")
    return due_date, due_time, due_zone


def _priority(reader: FieldReader) -> str | None:
    word = (reader.text("priority") or DEFAULT_PRIORITY).strip().lower()
    if word not in PRIORITIES:
        reader.faults.append(f"`priority` must be low, medium or high, not {shown(word)}")
    return PRIORITIES.get(word)


def _other_moment(asked: Json, made: Json) -> str | None:
    """Return a warning when the task that was made is due at another moment than the one that was asked for."""
    if not isinstance(asked, dict) or not isinstance(made, dict) or "due_at" not in made:
        return None
    day, time, name = asked.get("dueDate"), asked.get("dueTime"), asked.get("timezone")
    if day is None or time is None or not is_zone(name):
        return None
    try:
        local = datetime.fromisoformat(f"{day}T{time}")
        # An hour that the end of summer time repeats may be taken either way.
        wanted = [local.replace(tzinfo=zone(name), fold=fold).astimezone(UTC) for fold in (0, 1)]
    except OverflowError:  # the last day of the calendar
        return None
    held = _moment(made["due_at"])
    if held is not None and any(abs(held - one) < TOLERANCE for one in wanted):
        return None
    shown_as = f"{held:%Y-%m-%dT%H:%MZ}" if held else "no moment"
    return (
        f"Vambe holds {shown_as} as the due time, the rule meant {day} {time} in {name} "
        f"({wanted[0]:%Y-%m-%dT%H:%MZ}): look how the task shows there"
    )


def _moment(value: Json) -> datetime | None:
    try:
        moment = datetime.fromisoformat(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        return None


def _users(sought: LookupTarget) -> tuple[str, ...]:
    return tuple(FieldReader(sought.task.fields).texts("responsible_ids") or ())


def _days(sought: LookupTarget) -> list[date]:
    """Return the days that a task may be listed under."""
    days = [sought.began_at.astimezone(UTC).date(), sought.ended_at.astimezone(UTC).date()]
    due_date = FieldReader(sought.task.fields).date("due_date")
    return days if due_date is None else [*days, date.fromisoformat(due_date)]


def _responsible(row: Json) -> frozenset[str]:
    """Return the users that a listed task names."""
    named = row.get("task_responsibles") if isinstance(row, dict) else None
    ids = [one.get("responsible_id") for one in named if isinstance(one, dict)] if isinstance(named, list) else []
    return frozenset(one for one in ids if isinstance(one, str))


def _identify(body: Json) -> Json:
    return body.get("id") if isinstance(body, dict) else None


def _read_error(body: Json) -> ErrorBody | None:
    """Read the documented error form: `statusCode`, `message`, `errors` of field and message."""
    if not isinstance(body, dict):
        return None
    errors, message = body.get("errors"), answers.text_of(body.get("message"))
    status_code = body.get("statusCode")
    if not isinstance(errors, list) and not (isinstance(status_code, int) and message):
        return None
    fields = tuple(
        (answers.field_name(one.get("field")), answers.text_of(one.get("message")) or "not accepted")
        for one in (errors if isinstance(errors, list) else [])
        if isinstance(one, dict)
    )
    words = " ".join((message, *(f"{name} {said}" for name, said in fields))).lower()
    return ErrorBody(
        message=message,
        fields=fields,
        about_task=any(word in words for word in _TASK_WORDS) and not any(word in words for word in _ADDRESS_WORDS),
    )


def _remedy(complaint: ErrorBody) -> str:
    for name, _ in complaint.fields:
        if name == "responsibleIds":
            return _ASSIGN
        if name in WIRE_NAMES:
            return f"Correct `{WIRE_NAMES[name]}` of the rule, {RETRY}"
    words = complaint.message.lower()
    if any(word in words for word in ("responsib", "user", "member")):
        return _ASSIGN
    return f"Correct the rule or the contact, {RETRY}"


_FORMAT: Final = AnswerFormat(
    name="Vambe",
    url_setting="LEADWIRE_VAMBE_URL",
    url_example="https://api.vambe.me/api/public",
    key_setting="LEADWIRE_VAMBE_API_KEY",
    identify=_identify,
    read_error=_read_error,
    remedy=_remedy,
)

PROVIDER: Final = Vambe()

"""A stand-in for Vambe's API: its routes, its bare task objects, which bodies it takes, its errors.

Source: docs.vambe.me, pages on tasks, team members and webhooks, read 2026-11. Bodies of errors other than 400 are assumed.
What the pages leave open is a switch.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, time
from functools import lru_cache, partial
from typing import Final
from zoneinfo import ZoneInfo

from rules.vocabulary import Json
from worker.sandbox.faults import SandboxRequest, SandboxResponse, stamp
from worker.sandbox.provider import FieldError, ProviderSandbox, is_uuid
from worker.sandbox.switches import Switches

NULLABLE: Final = ("description", "dueDate", "dueTime", "timezone", "aiContactId", "aiCustomerId")
PRIORITIES: Final = ("0", "1", "2")
STATUS_FIELDS: Final = ("statusId", "status", "newStatusName", "newStatusPosition", "task_status_config_id")

_TIME: Final = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9]")
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(T.+)?")

#: What an organisation's key looks like; the only one the sandbox takes.
API_KEY: Final = "sandbox-vambe-key"
#: Names of the two webhook revisions, both documented.
TOPICS: Final = (
    "message.received", "message.sent", "ticket.created", "ticket.updated", "ticket.closed", "contact.created",
    "contact.updated", "stage.changed",
)  # fmt: skip

_STATUSES: Final = (
    {"id": "5a7e0000-0000-4000-8000-000000000001", "name": "Pendiente", "color": "#60a5fa", "type": "initial", "order": 1},
    {"id": "5a7e0000-0000-4000-8000-000000000002", "name": "En curso", "color": "#f59e0b", "type": "middle", "order": 2},
    {"id": "5a7e0000-0000-4000-8000-000000000003", "name": "Lista", "color": "#22c55e", "type": "final", "order": 3},
)  # fmt: skip
_CREATOR: Final = "5a7e0000-0000-4000-8000-00000000000c"
_NAMES: Final = ("Ana", "Luis", "Sofía", "Diego", "Camila", "Mateo")


_wrong = partial(FieldError, status=400)


class VambeSandbox(ProviderSandbox):
    """Answers requests below `/api`."""

    name = "vambe"

    def answer(self, request: SandboxRequest, now: datetime) -> SandboxResponse:
        """Answer one request."""
        refused = self._refuse(request, now)
        if refused is not None:
            return refused
        response: SandboxResponse | None = None
        match request.method, request.path.strip("/").split("/"):
            case "POST", ["public", "tasks"]:
                response = self._create(request, now)
            case "POST", ["tasks"] if self._switches.on("vambe.other_path", "serve"):
                response = self._create(request, now)
            case "GET", ["public", "tasks"]:
                response = self._spoiled_listing() or self._list(request, now)
            case "PUT", ["public", "tasks", identifier]:
                response = self._update(identifier, request, now)
            case "GET", ["public", "team-members", "all"]:
                response = SandboxResponse(status=200, body=self._members())
            case "GET", ["webhooks", "topics"]:
                response = SandboxResponse(status=200, body=list(TOPICS))
        return response or self._error(404, f"Cannot {request.method} /api{request.path}")

    def tasks(self) -> list[dict[str, Json]]:
        """Return every task, oldest first."""
        return [dict(task) for task in self._tasks.values()]

    def _refuse(self, request: SandboxRequest, now: datetime) -> SandboxResponse | None:
        key = request.headers.get("x-api-key")
        if key is None and self._switches.on("vambe.key_in_query", "accept"):
            key = request.last("x-api-key")
        if key != API_KEY:
            return self._error(401, "the API key is missing or wrong")
        headers = self._over_limit(now)
        return self._error(429, "too many requests", headers) if headers is not None else None

    def _create(self, request: SandboxRequest, now: datetime) -> SandboxResponse:
        body = request.document
        if not isinstance(body, dict):
            return self._bad_request([_wrong("body", "must be a JSON object")])
        found = list(field_errors(body, self._switches, now))
        if found:
            return self._bad_request(found)
        status = int(self._switches["vambe.success_status"])
        if (before := self._made_before(body)) is not None:
            return SandboxResponse(status=status, body=before, task=before["id"])
        task: dict[str, Json] = {
            "id": str(uuid.uuid4()),
            "title": body["title"],
            "description": body.get("description"),
            **self._due(body),
            "created_at": stamp(now),
            "ai_contact_id": body.get("aiContactId"),
            "ai_customer_id": body.get("aiCustomerId"),
            "task_status_config_id": _STATUSES[0]["id"],
            "priority": int(body["priority"]),
            "creator_id": _CREATOR,
            "task_responsibles": [{"responsible_id": one} for one in body["responsibleIds"]],
            "status_config": _STATUSES[0],
        }
        self._hold(task["id"], task, body)
        return SandboxResponse(status=status, body=task, task=task["id"])

    def _due(self, body: Mapping[str, Json]) -> dict[str, Json]:
        at = due_at(body, self._switches)
        return {
            "due_timezone": body.get("timezone"),
            "due_at": stamp(at) if at else None,
            "is_all_day": body.get("dueTime") is None,
        }

    def _list(self, request: SandboxRequest, now: datetime) -> SandboxResponse:
        form, wanted = _array(request.query, "responsibleIds")
        missing = [key for key in ("fromDate", "toDate") if not request.query.get(key)]
        first, last = (day_of(request.last(key)) for key in ("fromDate", "toDate"))
        wrong = ([] if form else ["responsibleIds"]) + missing
        if wrong or first is None or last is None:
            names = wrong or ["fromDate" if first is None else "toDate"]
            return self._bad_request([_wrong(name, "is required") for name in names])
        without_dates = request.last("includeTasksWithoutDates", "true") != "false"
        understood = self._switches["vambe.array_form"] in {"any", form} or not wanted
        found = [
            task
            for task in (self._listed(now) if understood else ())
            if (not wanted or wanted & {one["responsible_id"] for one in task["task_responsibles"]})
            and (first <= datetime.fromisoformat(task["due_at"]).date() <= last if task["due_at"] else without_dates)
        ]
        return SandboxResponse(status=200, body=found, headers={"X-Sandbox-Array-Form": form})

    def _update(self, identifier: str, request: SandboxRequest, now: datetime) -> SandboxResponse:
        task, body = self._tasks.get(identifier), request.document
        if task is None:
            return self._error(404, "no such task")
        if not isinstance(body, dict):
            return self._bad_request([_wrong("body", "must be a JSON object")])
        found = self._update_complaints(body, now)
        if found:
            return self._bad_request(found)
        for key, wire in (("title", "title"), ("description", "description"), ("ai_contact_id", "aiContactId")):
            if wire in body:
                task[key] = body[wire]
        if "priority" in body:
            task["priority"] = int(body["priority"])
        if "responsibleIds" in body:
            task["task_responsibles"] = [{"responsible_id": one} for one in body["responsibleIds"]]
        if "dueDate" in body:
            task |= self._due(body)
        status = _status(body)
        if status is not None:
            task |= {"status_config": status, "task_status_config_id": status["id"]}
        return SandboxResponse(status=200, body=task, task=identifier)

    def _update_complaints(self, body: Mapping[str, Json], now: datetime) -> list[FieldError]:
        found = [*due(body, self._switches, now)]
        if "title" in body:
            found += title(body["title"], self._switches)
        if "priority" in body:
            found += priority(body["priority"], self._switches)
        if "responsibleIds" in body:
            found += responsibles(body["responsibleIds"], self._switches)
        selectors = [key for key in ("newStatusName", "newStatusPosition") if body.get(key) is not None]
        if len(selectors) > 1:
            found.append(_wrong("newStatusName", "give it or newStatusPosition, not both"))
        elif selectors and _status(body) is None:
            found.append(_wrong(selectors[0], "there is no such status"))
        return found

    def _members(self) -> list[dict[str, Json]]:
        """Return the users of the organisation: those of the switch, else whoever was given a task, else two examples."""
        seen = (one["responsible_id"] for task in self._tasks.values() for one in task["task_responsibles"])
        ids = self._switches.listed("vambe.users") or list(dict.fromkeys(seen))[:100]
        examples = [f"5a7e0000-0000-4000-8000-0000000000a{number}" for number in (1, 2)]
        return [
            {
                "id": one,
                "name": f"{_NAMES[number % len(_NAMES)]} Ejemplo",
                "first_name": _NAMES[number % len(_NAMES)],
                "last_name": "Ejemplo",
                "email": f"user{number}@example.com",
                "phone": None,
            }
            for number, one in enumerate(ids or examples)
        ]

    def _bad_request(self, found: list[FieldError]) -> SandboxResponse:
        first = found[0]
        why = f"{first.field}: {first.message}"
        if first.status != 400:  # noqa: PLR2004 - the one status whose body is documented
            return self._error(first.status, why)
        errors = [{"field": one.field, "message": one.message} for one in found if one.status == first.status]
        return SandboxResponse(
            status=400, body={"statusCode": 400, "message": "Validation failed", "errors": errors}, why=why
        )

    def _error(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> SandboxResponse:
        body = None if self._switches.on("vambe.error_body", "empty") else {"statusCode": status, "message": message}
        return SandboxResponse(status=status, body=body, headers=headers or {}, why=message)


def _array(query: Mapping[str, list[str]], name: str) -> tuple[str, set[str]]:
    """Return how an array is written in a query (empty: not at all), and its values."""
    if f"{name}[]" in query:
        return "bracketed", {one for one in query[f"{name}[]"] if one}
    if name not in query:
        return "", set()
    values = query[name]
    if len(values) == 1 and "," in values[0]:
        return "comma", {one for one in values[0].split(",") if one}
    return "repeated", {one for one in values if one}


def _status(body: Mapping[str, Json]) -> dict[str, Json] | None:
    name, position = body.get("newStatusName"), body.get("newStatusPosition")
    for status in _STATUSES:
        if status["name"] == name or (position is not None and status["order"] == position):
            return dict(status)
    return None


def field_errors(body: Mapping[str, Json], switches: Switches, now: datetime) -> Iterator[FieldError]:
    """Yield the errors in a body to create a task, types before ids."""
    if switches.on("vambe.absent_keys", "strict"):
        for key in NULLABLE:
            if key not in body:
                yield _wrong(key, "must be given, or null")
    yield from title(body.get("title"), switches)
    for key in ("description", "aiContactId", "aiCustomerId", "timezone"):
        if body.get(key) is not None and not isinstance(body[key], str):
            yield _wrong(key, "must be a string or null")
    yield from priority(body.get("priority"), switches)
    yield from due(body, switches, now)
    if switches.on("vambe.status_fields", "refuse"):
        for key in STATUS_FIELDS:
            if key in body:
                yield _wrong(key, "is not accepted when creating")
    yield from responsibles(body.get("responsibleIds"), switches)
    contact = body.get("aiContactId")
    if isinstance(contact, str) and not switches.knows("vambe.contacts", contact):
        yield _wrong("aiContactId", "no such contact", status=int(switches["vambe.unknown_contact"]))


def title(value: Json, switches: Switches) -> Iterator[FieldError]:
    """Yield the errors in a title."""
    if not isinstance(value, str) or not value:
        yield _wrong("title", "must be a string of at least 1 character")
    elif not value.strip() and switches.on("vambe.blank_title", "refuse"):
        yield _wrong("title", "must not be blank")


def priority(value: Json, switches: Switches) -> Iterator[FieldError]:
    """Yield the errors in a priority."""
    if isinstance(value, int) and not isinstance(value, bool) and switches.on("vambe.priority_number", "accept"):
        value = str(value)
    if value not in PRIORITIES:
        yield _wrong("priority", 'must be "0", "1" or "2"')


def due(body: Mapping[str, Json], switches: Switches, now: datetime) -> Iterator[FieldError]:
    """Yield the errors in dueDate, dueTime and timezone."""
    due_date, due_time, timezone = body.get("dueDate"), body.get("dueTime"), body.get("timezone")
    if due_date is not None:
        day = day_of(due_date)
        if day is None:
            yield _wrong("dueDate", "must be a date or an ISO 8601 date-time")
        elif day < now.date() and switches.on("vambe.past_due_date", "refuse"):
            yield _wrong("dueDate", "must not be in the past")
    if isinstance(timezone, str) and zone(timezone) is None and switches.on("vambe.timezone_name", "refuse"):
        yield _wrong("timezone", "must be an IANA time zone")
    if due_time is None:
        return
    if not (isinstance(due_time, str) and _TIME.fullmatch(due_time)) and switches.on("vambe.due_time_format", "refuse"):
        yield _wrong("dueTime", "must be HH:MM on a 24-hour clock")
    if timezone is None:
        yield _wrong("timezone", "is required when dueTime is given")
    if due_date is None and switches.on("vambe.due_time_alone", "refuse"):
        yield _wrong("dueDate", "is required when dueTime is given")


def responsibles(value: Json, switches: Switches) -> Iterator[FieldError]:
    """Yield the errors in responsibleIds."""
    if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
        yield _wrong("responsibleIds", "must be a list of at least one user id")
        return
    for one in value:
        if not is_uuid(one):
            status = int(switches["vambe.responsible_format"])
            yield _wrong("responsibleIds", f"{one[:60]!r} is not a user id", status=status)
        elif not switches.knows("vambe.users", one):
            yield _wrong("responsibleIds", f"{one} is not in the organisation", status=404)


def due_at(body: Mapping[str, Json], switches: Switches) -> datetime | None:
    """Return when the stored task is due: in its time zone, or as in the vendor's sample, depending on a switch."""
    day = day_of(body.get("dueDate"))
    if day is None:
        return None
    place = zone(str(body.get("timezone"))) or UTC
    due_time = body.get("dueTime")
    if not isinstance(due_time, str) or not _TIME.fullmatch(due_time):
        of_day = place if switches.on("vambe.all_day_instant", "zone") else UTC
        return datetime.combine(day, time(), tzinfo=of_day)
    where = UTC if switches.on("vambe.due_at", "sample") else place
    return datetime.combine(day, time.fromisoformat(due_time), tzinfo=where)


def day_of(value: Json) -> date | None:
    """Return the date of a date or date-time as written; None for anything else."""
    if not isinstance(value, str) or not _DATE.fullmatch(value):
        return None
    try:
        return datetime.fromisoformat(value).date()
    except ValueError:
        return None


@lru_cache(maxsize=256)
def zone(name: str) -> ZoneInfo | None:
    """Return the zone of an IANA name, or None."""
    try:
        return ZoneInfo(name)
    except (ValueError, KeyError, OSError):
        return None

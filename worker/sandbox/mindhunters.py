"""A stand-in for Mindhunters' API: its routes, its envelope, which bodies it takes, and the life its tasks lead.

Source: developers.mindhunters.ai, pages on tasks, authentication and errors, read 2026-11; routes beside create and list
are known from a third party's reference only. The names of the statuses are documented, their order is assumed. What the
pages leave open is a switch.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

from rules.vocabulary import Json
from worker.sandbox.faults import SandboxRequest, SandboxResponse, stamp
from worker.sandbox.provider import FieldError, ProviderSandbox, forget_oldest, is_uuid
from worker.sandbox.switches import Switches

TYPES: Final = (
    "make_call", "send_message", "send_email", "follow_up", "appointment", "survey", "notification", "webhook", "custom",
)  # fmt: skip
EXPLAINED_TYPES: Final = frozenset({"make_call", "send_message"})
KEYS: Final = frozenset({
    "title", "type", "agent_uuid", "scheduled_at", "description", "contact_uuid", "contact", "campaign_uuid", "timezone",
    "priority", "expires_at", "max_attempts", "task_data", "auto_queue",
})  # fmt: skip
CONTACT_KEYS: Final = frozenset({"phone_number", "email"})
PRIORITIES: Final = range(1, 11)

_PHONE: Final = re.compile(r"\+[1-9][0-9]{6,14}")
_MOMENT: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]+)?)?(?P<offset>Z|[+-][0-9]{2}:?[0-9]{2})?"
)

#: What a workspace's token looks like; the only one the sandbox takes.
TOKEN: Final = "sandbox-mindhunters-token"  # noqa: S105 - an obvious fake, printed for everybody

STATUSES: Final = (
    "pending", "scheduled", "queued", "in_progress", "completed", "failed", "cancelled", "expired", "on_hold",
)  # fmt: skip
_ENDED: Final = frozenset({"completed", "failed", "cancelled", "expired"})
_QUEUED_FOR: Final = timedelta(seconds=10)
_RUNS_FOR: Final = timedelta(seconds=60)
_PAGE: Final = 15
_LONGEST_PAGE: Final = 100
_EDITABLE: Final = ("title", "description", "priority", "scheduled_at", "status", "auto_queue")
_FILTERS: Final = ("type", "status", "contact_uuid", "campaign_uuid", "agent_uuid", "priority")


_wrong = partial(FieldError, status=422)


class MindhuntersSandbox(ProviderSandbox):
    """Answers requests below `/api/v1`."""

    name = "mindhunters"

    def __init__(self, switches: Switches) -> None:
        super().__init__(switches)
        self._contacts: dict[str, dict[str, Json]] = {}
        self._by_address: dict[str, str] = {}

    def answer(self, request: SandboxRequest, now: datetime, tasks_now: datetime) -> SandboxResponse:
        """Answer one call; `now` is the clock's moment, `tasks_now` the moment up to which task statuses have advanced."""
        refused = self._refuse(request, now)
        if refused is not None:
            return refused
        for task in self._tasks.values() if request.method == "GET" else ():
            self._live(task, tasks_now)
        match request.method, request.path.strip("/").split("/"):
            case "POST", ["tasks"]:
                return self._create(request, now)
            case "GET", ["tasks"]:
                return self._spoiled_listing() or self._list(request, now)
            case "GET", ["contacts"]:
                return self._page(list(self._contacts.values()), request)
            case method, ["tasks", identifier, *rest] if len(rest) <= 1:
                return self._one(method, identifier, "/".join(rest), request, tasks_now)
        return self._error(404, "NOT_FOUND", f"no endpoint {request.method} {request.path}")

    def tasks(self, tasks_now: datetime) -> list[dict[str, Json]]:
        """Return every task with its current status, oldest first."""
        for task in self._tasks.values():
            self._live(task, tasks_now)
        return [_public(task) | {"contact": self._contacts.get(task["contact_uuid"])} for task in self._tasks.values()]

    def contacts(self) -> list[dict[str, Json]]:
        """Return every contact that was made by a task."""
        return list(self._contacts.values())

    def move(self, identifier: str, status: str, tasks_now: datetime) -> bool:
        """Set a task's status; False when there is no such task or status."""
        task = self._tasks.get(identifier)
        if task is None or status not in STATUSES:
            return False
        task |= {"status": status, "_since": tasks_now, "updated_at": stamp(tasks_now)}
        return True

    def _refuse(self, request: SandboxRequest, now: datetime) -> SandboxResponse | None:
        header = request.headers.get("authorization")
        if not header:
            return self._error(401, "MISSING_AUTH_TOKEN", "no bearer token")
        scheme, _, token = header.partition(" ")
        if self._switches.on("mindhunters.bearer_case", "any"):
            scheme = scheme.title()
        if scheme != "Bearer" or token.strip() != TOKEN:
            return self._error(401, "INVALID_AUTH_TOKEN", "the token is wrong or was revoked")
        switch = "mindhunters.permission_to_read" if request.method == "GET" else "mindhunters.permission"
        if self._switches.on(switch, "no"):
            return self._error(403, "FORBIDDEN", "the token lacks the permission")
        headers = self._over_limit(now)
        if headers is not None:
            return self._error(429, "RATE_LIMIT_EXCEEDED", "too many requests", headers=headers)
        return None

    def _create(self, request: SandboxRequest, now: datetime) -> SandboxResponse:
        body = request.document
        if not isinstance(body, dict):
            return self._error(400, "INVALID_JSON", "the body is not a JSON object")
        found = list(field_errors(body, self._switches, now))
        contact_uuid = body.get("contact_uuid")
        if not found and contact_uuid is not None and not self._knows_contact(contact_uuid):
            found = [_wrong("contact_uuid", "no such contact", status=404, code="CONTACT_NOT_FOUND")]
        return self._bad_request(found) if found else self._made(body, now)

    def _knows_contact(self, contact_uuid: str) -> bool:
        return contact_uuid in self._contacts or self._switches.knows("mindhunters.contacts", contact_uuid)

    def _made(self, body: Mapping[str, Json], now: datetime) -> SandboxResponse:
        status = int(self._switches["mindhunters.success_status"])
        if (before := self._made_before(body)) is not None:
            return self._success(status, "task exists", _public(before))
        scheduled_at = moment(body["scheduled_at"])
        queued = body.get("auto_queue") is True or self._switches.on("mindhunters.unqueued", "runs")
        task: dict[str, Json] = {
            "uuid": str(uuid.uuid4()),
            "title": body["title"],
            "type": body["type"],
            "status": "scheduled" if queued else "pending",
            "priority": body.get("priority") or 5,
            "description": body.get("description"),
            "agent_uuid": body["agent_uuid"],
            "contact_uuid": body.get("contact_uuid") or self._contact(body["contact"]),
            "campaign_uuid": body.get("campaign_uuid"),
            "scheduled_at": stamp(scheduled_at) if scheduled_at else None,
            "expires_at": body.get("expires_at"),
            "timezone": body.get("timezone") or "UTC",
            "max_attempts": body["max_attempts"] if body.get("max_attempts") is not None else 3,
            "task_data": body.get("task_data") or {},
            "auto_queue": body.get("auto_queue") is True,
            "created_at": stamp(now),
            "updated_at": stamp(now),
            "_since": now,
        }
        self._hold(task["uuid"], task, body)
        forget_oldest(self._contacts)
        forget_oldest(self._by_address)
        return self._success(status, "task created", _public(task))

    def _contact(self, given: Mapping[str, Json]) -> str:
        """Return the contact with this phone or e-mail, made when there is none."""
        addresses = [str(given[key]).lower() for key in ("phone_number", "email") if given.get(key)]
        for address in addresses:
            if address in self._by_address:
                return self._by_address[address]
        made = str(uuid.uuid4())
        self._contacts[made] = {"uuid": made, "phone_number": given.get("phone_number"), "email": given.get("email")}
        self._by_address.update(dict.fromkeys(addresses, made))
        return made

    def _live(self, task: dict[str, Json], now: datetime) -> None:
        """Move a task as far as its time has come: scheduled, queued, in_progress, then the end the switch names."""
        expires_at = moment(task["expires_at"])
        if task["status"] in {"pending", "scheduled", "queued"} and expires_at and now >= expires_at:
            self._step(task, "expired", expires_at)
        scheduled_at = moment(task["scheduled_at"])
        if task["status"] == "scheduled" and scheduled_at and now >= scheduled_at:
            self._step(task, "queued", scheduled_at)
        if task["status"] == "queued" and now >= task["_since"] + _QUEUED_FOR:
            self._step(task, "in_progress", task["_since"] + _QUEUED_FOR)
        if task["status"] == "in_progress" and now >= task["_since"] + _RUNS_FOR:
            self._step(task, self._switches["mindhunters.outcome"], task["_since"] + _RUNS_FOR)

    def _step(self, task: dict[str, Json], status: str, at: datetime) -> None:
        task |= {"status": status, "_since": at, "updated_at": stamp(at)}

    def _one(
        self, method: str, identifier: str, step: str, request: SandboxRequest, tasks_now: datetime
    ) -> SandboxResponse:
        task = self._tasks.get(identifier)
        if task is None:
            return self._error(404, "TASK_NOT_FOUND", "no such task")
        self._live(task, tasks_now)
        steps: Mapping[tuple[str, str], Callable[[], SandboxResponse]] = {
            ("GET", ""): lambda: self._success(200, "task", _public(task)),
            ("PUT", ""): lambda: self._update(task, request, tasks_now),
            ("DELETE", ""): lambda: self._delete(task),
            ("POST", "cancel"): lambda: self._go(task, "cancelled", task["status"] not in _ENDED, tasks_now),
            ("POST", "queue"): lambda: self._go(task, "queued", task["status"] in {"pending", "on_hold"}, tasks_now),
            ("POST", "retry"): lambda: self._go(task, "queued", task["status"] == "failed", tasks_now),
        }
        step_taken = steps.get((method, step))
        if step_taken is None:
            return self._error(404, "NOT_FOUND", f"no endpoint {method} {request.path}")
        return step_taken()

    def _go(self, task: dict[str, Json], status: str, possible: bool, now: datetime) -> SandboxResponse:
        if not possible:
            refusal = int(self._switches["mindhunters.illegal_transition"])
            return self._error(refusal, "INVALID_TRANSITION", f"a {task['status']} task cannot become {status}")
        scheduled_at = moment(task["scheduled_at"])
        later = status == "queued" and scheduled_at is not None and scheduled_at > now
        self._step(task, "scheduled" if later else status, now)
        return self._success(200, f"task {status}", _public(task))

    def _update(self, task: dict[str, Json], request: SandboxRequest, now: datetime) -> SandboxResponse:
        body = request.document
        if not isinstance(body, dict):
            return self._error(400, "INVALID_JSON", "the body is not a JSON object")
        changes = {key: body[key] for key in _EDITABLE if key in body}
        checks: Iterable[tuple[str, bool]] = (
            ("priority", "priority" not in changes or changes["priority"] in PRIORITIES),
            ("status", "status" not in changes or changes["status"] in STATUSES),
            ("title", "title" not in changes or (isinstance(changes["title"], str) and changes["title"] != "")),
            ("scheduled_at", "scheduled_at" not in changes or (moment(changes["scheduled_at"]) or now) > now),
        )
        wrong = [_wrong(name, "is not accepted") for name, good in checks if not good]
        if wrong:
            return self._bad_request(wrong)
        task |= {**changes, "updated_at": stamp(now), "_since": now}
        return self._success(200, "task updated", _public(task))

    def _delete(self, task: Mapping[str, Json]) -> SandboxResponse:
        del self._tasks[task["uuid"]]
        return self._success(200, "task deleted", None)

    def _list(self, request: SandboxRequest, now: datetime) -> SandboxResponse:
        wanted = {name: request.query[name][-1] for name in _FILTERS if request.query.get(name)}
        checks = (
            ("type", wanted.get("type", TYPES[0]) in TYPES),
            ("status", wanted.get("status", STATUSES[0]) in STATUSES),
        )
        bounds = {name: moment(request.last(name)) for name in ("scheduled_from", "scheduled_to")}
        unread = [name for name, bound in bounds.items() if bound is None and request.query.get(name)]
        wrong = [name for name, good in checks if not good] + unread
        if wrong:
            return self._bad_request([_wrong(name, "is not accepted") for name in wrong])
        found = [
            task
            for task in self._listed(now)
            if all(str(task[name]) == value for name, value in wanted.items()) and _within(task, bounds)
        ]
        return self._page([_public(task) for task in reversed(found)], request)

    def _page(self, rows: list[dict[str, Json]], request: SandboxRequest) -> SandboxResponse:
        page, per_page = _number(request, "page", 1), _number(request, "per_page", _PAGE)
        if page is None or per_page is None:
            return self._bad_request([_wrong("page" if page is None else "per_page", "must be positive")])
        if per_page > _LONGEST_PAGE and self._switches.on("mindhunters.per_page_over_100", "refuse"):
            return self._bad_request([_wrong("per_page", "must not be over 100")])
        per_page = min(per_page, _LONGEST_PAGE)
        data = {
            "current_page": page,
            "data": rows[(page - 1) * per_page : page * per_page],
            "first_page_url": "/api/v1/tasks?page=1",
            "last_page": max(1, -(-len(rows) // per_page)),
            "per_page": per_page,
            "total": len(rows),
        }
        return self._success(200, "list", data)

    def _success(self, status: int, message: str, data: Json) -> SandboxResponse:
        made = data.get("uuid") if isinstance(data, dict) else None
        return SandboxResponse(status=status, body={"success": True, "message": message, "data": data}, task=made)

    def _bad_request(self, found: list[FieldError]) -> SandboxResponse:
        first = found[0]
        why = f"{first.field}: {first.message}"
        if first.status == 422 and self._switches.on("mindhunters.validation_form", "laravel"):  # noqa: PLR2004
            errors: dict[str, list[str]] = {}
            for one in found:
                errors.setdefault(one.field, []).append(one.message)
            return SandboxResponse(
                status=422, body={"message": "The given data was invalid.", "errors": errors}, why=why
            )
        field = first.field if first.status == 422 else None  # noqa: PLR2004 - documented for validation only
        return self._error(first.status, first.code, why, field=field, details=first.message)

    def _error(
        self,
        status: int,
        code: str,
        message: str,
        *,
        field: str | None = None,
        details: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> SandboxResponse:
        error: dict[str, Json] = {
            "code": code.lower() if self._switches.on("mindhunters.code_case", "lower") else code,
            "details": details,
        }
        if field is not None:
            error["field"] = field
        return SandboxResponse(
            status=status,
            body={"success": False, "message": message, "error": error},
            headers=headers or {},
            why=f"{code}: {message}",
        )


def _public(task: Mapping[str, Json]) -> dict[str, Json]:
    return {key: value for key, value in task.items() if not key.startswith("_")}


def _within(task: Mapping[str, Json], bounds: Mapping[str, datetime | None]) -> bool:
    at, first, last = moment(task["scheduled_at"]), bounds["scheduled_from"], bounds["scheduled_to"]
    if at is None:
        return first is None and last is None
    return (first is None or at >= first) and (last is None or at <= last)


def _number(request: SandboxRequest, name: str, default: int) -> int | None:
    written = request.last(name, str(default))
    return int(written) if written.isdecimal() and written.isascii() and 0 < len(written) < 7 and int(written) else None  # noqa: PLR2004


def field_errors(body: Mapping[str, Json], switches: Switches, now: datetime) -> Iterator[FieldError]:
    """Yield the errors in a body to create a task, types before ids."""
    for key in ("title", "type", "agent_uuid", "scheduled_at"):
        value = body.get(key)
        if value is None or value == "":
            yield _wrong(key, "is required")
        elif not isinstance(value, str):
            yield _wrong(key, "must be a string")
    yield from _type(body, switches)
    yield from _ids(body, switches)
    yield from _times(body, switches, now)
    yield from _numbers(body, switches)
    yield from _contact(body, switches)
    yield from _message(body, switches)
    if switches.on("mindhunters.unknown_key", "refuse"):
        for key in sorted(body.keys() - KEYS):
            yield _wrong(key, "is not a known key")


def moment(value: Json) -> datetime | None:
    """Return an ISO 8601 date-time, read as UTC where it has no offset; None for anything else."""
    if not isinstance(value, str) or not _MOMENT.fullmatch(value):
        return None
    try:
        read = datetime.fromisoformat(value)
        return (read if read.tzinfo else read.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _type(body: Mapping[str, Json], switches: Switches) -> Iterator[FieldError]:
    value = body.get("type")
    if not isinstance(value, str) or not value:
        return
    if value not in TYPES:
        yield _wrong("type", f"must be one of {', '.join(TYPES)}")
    elif value not in EXPLAINED_TYPES and switches.on("mindhunters.unexplained_types", "refuse"):
        yield _wrong("type", "is not available to this workspace")


def _ids(body: Mapping[str, Json], switches: Switches) -> Iterator[FieldError]:
    agent = body.get("agent_uuid")
    if isinstance(agent, str) and agent:
        if not is_uuid(agent) and switches.on("mindhunters.agent_format", "refuse"):
            yield _wrong("agent_uuid", "must be a UUID")
        elif not switches.knows("mindhunters.agents", agent):
            yield _wrong("agent_uuid", "no such agent", status=404, code="AGENT_NOT_FOUND")
    campaign = body.get("campaign_uuid")
    if campaign is not None and not is_uuid(campaign):
        yield _wrong("campaign_uuid", "must be a UUID")
    for key in ("description", "timezone"):
        if body.get(key) is not None and not isinstance(body[key], str):
            yield _wrong(key, "must be a string")
    if body.get("auto_queue") is not None and not isinstance(body["auto_queue"], bool):
        yield _wrong("auto_queue", "must be a boolean")


def _times(body: Mapping[str, Json], switches: Switches, now: datetime) -> Iterator[FieldError]:
    written = body.get("scheduled_at")
    scheduled_at = moment(written)
    if isinstance(written, str) and written:
        if scheduled_at is None:
            yield _wrong("scheduled_at", "must be an ISO 8601 date-time")
        elif _is_naive(written) and switches.on("mindhunters.naive_scheduled_at", "refuse"):
            yield _wrong("scheduled_at", "must carry an offset")
        elif scheduled_at <= now:
            yield _wrong("scheduled_at", "must be in the future")
    if body.get("expires_at") is None:
        return
    expires_at = moment(body["expires_at"])
    if expires_at is None:
        yield _wrong("expires_at", "must be an ISO 8601 date-time")
    elif scheduled_at and expires_at <= scheduled_at and switches.on("mindhunters.expires_order", "refuse"):
        yield _wrong("expires_at", "must be after scheduled_at")


def _is_naive(written: str) -> bool:
    found = _MOMENT.fullmatch(written)
    return found is not None and found["offset"] is None


def _numbers(body: Mapping[str, Json], switches: Switches) -> Iterator[FieldError]:
    priority = body.get("priority")
    if priority is not None and not (_is_whole(priority) and priority in PRIORITIES):
        yield _wrong("priority", "must be a whole number from 1 to 10")
    tries = body.get("max_attempts")
    if tries is not None and not _is_whole(tries):
        yield _wrong("max_attempts", "must be a whole number")
    elif tries is not None and tries < 1 and switches.on("mindhunters.max_attempts", "refuse"):
        yield _wrong("max_attempts", "must be at least 1")


def _is_whole(value: Json) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _contact(body: Mapping[str, Json], switches: Switches) -> Iterator[FieldError]:
    contact, contact_uuid = body.get("contact"), body.get("contact_uuid")
    if contact is not None and contact_uuid is not None:
        yield _wrong("contact_uuid", "cannot be given together with contact")
        return
    if contact_uuid is not None:
        if not is_uuid(contact_uuid):
            yield _wrong("contact_uuid", "must be a UUID")
        return
    if contact is None:
        yield _wrong("contact", "is required when contact_uuid is not given")
    elif not isinstance(contact, dict):
        yield _wrong("contact", "must be an object")
    else:
        yield from _contact_object(contact, switches)


def _contact_object(contact: Mapping[str, Json], switches: Switches) -> Iterator[FieldError]:
    phone, email = contact.get("phone_number"), contact.get("email")
    if not phone and not email and switches.on("mindhunters.empty_contact", "refuse"):
        yield _wrong("contact", "needs phone_number or email")
    if phone and not isinstance(phone, str):
        yield _wrong("contact.phone_number", "must be a string")
    elif phone and not _PHONE.fullmatch(phone) and switches.on("mindhunters.phone_format", "refuse"):
        yield _wrong("contact.phone_number", "must be in E.164 form")
    if email and not isinstance(email, str):
        yield _wrong("contact.email", "must be a string")
    if switches.on("mindhunters.unknown_contact_key", "refuse"):
        for key in sorted(contact.keys() - CONTACT_KEYS):
            yield _wrong(f"contact.{key}", "is not a registered field")


def _message(body: Mapping[str, Json], switches: Switches) -> Iterator[FieldError]:
    data = body.get("task_data")
    if data is not None and not isinstance(data, dict):
        yield _wrong("task_data", "must be an object")
        return
    if body.get("type") != "send_message":
        return
    given = data or {}
    if given.get("message_type") != "whatsapp_template":
        yield _wrong("task_data.message_type", "must be whatsapp_template")
    template = given.get("template_uuid")
    if not is_uuid(template):
        yield _wrong("task_data.template_uuid", "is required and must be a UUID")
    elif not switches.knows("mindhunters.templates", str(template)):
        status = int(switches["mindhunters.unknown_template"])
        yield _wrong(
            "task_data.template_uuid",
            message="no such approved template",
            status=status,
            code="TEMPLATE_NOT_FOUND" if status == 404 else "VALIDATION_ERROR",  # noqa: PLR2004 - not found
        )

"""A stand-in for Mindhunters' API: its routes, its envelope, and the life its tasks lead.

Source: developers.mindhunters.ai, pages on tasks, authentication and errors, read 2026-11; routes beside create and list
are known from a third party's reference only. The names of the statuses are documented, their order is assumed.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Final

from rules.vocabulary import Json
from worker.sandbox.calls import Call, Said, forget_oldest, stamp
from worker.sandbox.limits import RateLimit
from worker.sandbox.listings import Listing
from worker.sandbox.mindhunters_rules import PRIORITIES, TYPES, Complaint, complaints, moment
from worker.sandbox.switches import Switches

#: What a workspace's token looks like; the only one the sandbox takes.
TOKEN: Final = "sandbox-mindhunters-token"  # noqa: S105 - an obvious fake, printed for everybody
#: More tasks than these push out the oldest.
TASK_LIMIT: Final = 50_000

STATUSES: Final = (
    "pending",
    "scheduled",
    "queued",
    "in_progress",
    "completed",
    "failed",
    "cancelled",
    "expired",
    "on_hold",
)
_ENDED: Final = frozenset({"completed", "failed", "cancelled", "expired"})
_QUEUED_FOR: Final = timedelta(seconds=10)
_RUNS_FOR: Final = timedelta(seconds=60)
_PAGE: Final = 15
_LONGEST_PAGE: Final = 100
_EDITABLE: Final = ("title", "description", "priority", "scheduled_at", "status", "auto_queue")
_FILTERS: Final = ("type", "status", "contact_uuid", "campaign_uuid", "agent_uuid", "priority")


class Mindhunters:
    """Answers calls below `/api/v1`. Not for several threads at once: the sandbox holds its lock."""

    def __init__(self, switches: Switches) -> None:
        self._switches = switches
        self._limit = RateLimit("mindhunters", switches)
        self._listing = Listing("mindhunters", switches)
        self._tasks: dict[str, dict[str, Json]] = {}
        self._contacts: dict[str, dict[str, Json]] = {}
        self._by_address: dict[str, str] = {}
        self._by_body: dict[str, str] = {}

    def answer(self, call: Call, now: datetime, tasks_now: datetime) -> Said:
        """Answer one call; `now` is what the clock says, `tasks_now` how far the tasks' lives have moved."""
        refused = self._refuse(call, now)
        if refused is not None:
            return refused
        for task in self._tasks.values() if call.method == "GET" else ():
            self._live(task, tasks_now)
        match call.method, call.path.strip("/").split("/"):
            case "POST", ["tasks"]:
                return self._create(call, now)
            case "GET", ["tasks"]:
                return self._listing.spoiled() or self._list(call, now)
            case "GET", ["contacts"]:
                return self._page(list(self._contacts.values()), call)
            case method, ["tasks", identifier, *rest] if len(rest) <= 1:
                return self._one(method, identifier, "/".join(rest), call, tasks_now)
        return self._error(404, "NOT_FOUND", f"no endpoint {call.method} {call.path}")

    def tasks(self, tasks_now: datetime) -> list[dict[str, Json]]:
        """Return every task, oldest first, as it stands."""
        for task in self._tasks.values():
            self._live(task, tasks_now)
        return [_public(task) | {"contact": self._contacts.get(task["contact_uuid"])} for task in self._tasks.values()]

    def contacts(self) -> list[dict[str, Json]]:
        """Return every contact that was made by a task."""
        return list(self._contacts.values())

    def move(self, identifier: str, status: str, tasks_now: datetime) -> bool:
        """Put a task into a status; False when there is no such task or status."""
        task = self._tasks.get(identifier)
        if task is None or status not in STATUSES:
            return False
        task |= {"status": status, "_since": tasks_now, "updated_at": stamp(tasks_now)}
        return True

    def _refuse(self, call: Call, now: datetime) -> Said | None:
        header = call.headers.get("authorization")
        if not header:
            return self._error(401, "MISSING_AUTH_TOKEN", "no bearer token")
        scheme, _, token = header.partition(" ")
        if self._switches.on("mindhunters.bearer_case", "any"):
            scheme = scheme.title()
        if scheme != "Bearer" or token.strip() != TOKEN:
            return self._error(401, "INVALID_AUTH_TOKEN", "the token is wrong or was revoked")
        switch = "mindhunters.permission_to_read" if call.method == "GET" else "mindhunters.permission"
        if self._switches.on(switch, "no"):
            return self._error(403, "FORBIDDEN", "the token lacks the permission")
        headers = self._limit.refuse(now)
        if headers is not None:
            return self._error(429, "RATE_LIMIT_EXCEEDED", "too many requests", headers=headers)
        return None

    def _create(self, call: Call, now: datetime) -> Said:
        body = call.document
        if not isinstance(body, dict):
            return self._error(400, "INVALID_JSON", "the body is not a JSON object")
        found = list(complaints(body, self._switches, now))
        contact_uuid = body.get("contact_uuid")
        if not found and contact_uuid is not None and not self._knows_contact(contact_uuid):
            found = [Complaint(field="contact_uuid", message="no such contact", status=404, code="CONTACT_NOT_FOUND")]
        return self._complain(found) if found else self._made(body, now)

    def _knows_contact(self, contact_uuid: str) -> bool:
        return contact_uuid in self._contacts or self._switches.knows("mindhunters.contacts", contact_uuid)

    def _made(self, body: Mapping[str, Json], now: datetime) -> Said:
        status = int(self._switches["mindhunters.success_status"])
        text = json.dumps(body, sort_keys=True)
        before = self._by_body.get(text)
        if before in self._tasks and self._switches.on("mindhunters.same_body_twice", "same_task"):
            return self._success(status, "task exists", _public(self._tasks[before]))
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
        self._tasks[task["uuid"]] = task
        self._by_body[text] = task["uuid"]
        for held in (self._tasks, self._by_body, self._contacts, self._by_address):
            forget_oldest(held, TASK_LIMIT)
        return self._success(status, "task created", _public(task))

    def _contact(self, given: Mapping[str, Json]) -> str:
        """Return the contact with this phone or e-mail, made when there is none."""
        addresses = [str(given[key]).lower() for key in ("phone_number", "email") if given.get(key)]
        for address in addresses:
            if address in self._by_address:
                return self._by_address[address]
        made = str(uuid.uuid4())
        self._contacts[made] = {
            "uuid": made,
            "phone_number": given.get("phone_number"),
            "email": given.get("email"),
        }
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

    def _one(self, method: str, identifier: str, step: str, call: Call, tasks_now: datetime) -> Said:
        task = self._tasks.get(identifier)
        if task is None:
            return self._error(404, "TASK_NOT_FOUND", "no such task")
        self._live(task, tasks_now)
        steps: Mapping[tuple[str, str], Callable[[], Said]] = {
            ("GET", ""): lambda: self._success(200, "task", _public(task)),
            ("PUT", ""): lambda: self._update(task, call, tasks_now),
            ("DELETE", ""): lambda: self._delete(task),
            ("POST", "cancel"): lambda: self._go(task, "cancelled", task["status"] not in _ENDED, tasks_now),
            ("POST", "queue"): lambda: self._go(task, "queued", task["status"] in {"pending", "on_hold"}, tasks_now),
            ("POST", "retry"): lambda: self._go(task, "queued", task["status"] == "failed", tasks_now),
        }
        step_taken = steps.get((method, step))
        if step_taken is None:
            return self._error(404, "NOT_FOUND", f"no endpoint {method} {call.path}")
        return step_taken()

    def _go(self, task: dict[str, Json], status: str, possible: bool, now: datetime) -> Said:
        if not possible:
            refusal = int(self._switches["mindhunters.illegal_transition"])
            return self._error(refusal, "INVALID_TRANSITION", f"a {task['status']} task cannot become {status}")
        scheduled_at = moment(task["scheduled_at"])
        later = status == "queued" and scheduled_at is not None and scheduled_at > now
        self._step(task, "scheduled" if later else status, now)
        return self._success(200, f"task {status}", _public(task))

    def _update(self, task: dict[str, Json], call: Call, now: datetime) -> Said:
        body = call.document
        if not isinstance(body, dict):
            return self._error(400, "INVALID_JSON", "the body is not a JSON object")
        changes = {key: body[key] for key in _EDITABLE if key in body}
        checks: Iterable[tuple[str, bool]] = (
            ("priority", "priority" not in changes or changes["priority"] in PRIORITIES),
            ("status", "status" not in changes or changes["status"] in STATUSES),
            ("title", "title" not in changes or (isinstance(changes["title"], str) and changes["title"] != "")),
            ("scheduled_at", "scheduled_at" not in changes or (moment(changes["scheduled_at"]) or now) > now),
        )
        wrong = [Complaint(field=name, message="is not accepted") for name, good in checks if not good]
        if wrong:
            return self._complain(wrong)
        task |= {**changes, "updated_at": stamp(now), "_since": now}
        return self._success(200, "task updated", _public(task))

    def _delete(self, task: Mapping[str, Json]) -> Said:
        del self._tasks[task["uuid"]]
        return self._success(200, "task deleted", None)

    def _list(self, call: Call, now: datetime) -> Said:
        wanted = {name: call.query[name][-1] for name in _FILTERS if call.query.get(name)}
        checks = (
            ("type", wanted.get("type", TYPES[0]) in TYPES),
            ("status", wanted.get("status", STATUSES[0]) in STATUSES),
        )
        bounds = {name: moment(call.last(name)) for name in ("scheduled_from", "scheduled_to")}
        unread = [name for name, bound in bounds.items() if bound is None and call.query.get(name)]
        wrong = [name for name, good in checks if not good] + unread
        if wrong:
            return self._complain([Complaint(field=name, message="is not accepted") for name in wrong])
        found = [
            task
            for task in self._listing.shown(self._tasks.values(), now)
            if all(str(task[name]) == value for name, value in wanted.items()) and _within(task, bounds)
        ]
        return self._page([_public(task) for task in reversed(found)], call)

    def _page(self, rows: list[dict[str, Json]], call: Call) -> Said:
        page, per_page = _number(call, "page", 1), _number(call, "per_page", _PAGE)
        if page is None or per_page is None:
            return self._complain([Complaint(field="page" if page is None else "per_page", message="must be positive")])
        if per_page > _LONGEST_PAGE and self._switches.on("mindhunters.per_page_over_100", "refuse"):
            return self._complain([Complaint(field="per_page", message="must not be over 100")])
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

    def _success(self, status: int, message: str, data: Json) -> Said:
        made = data.get("uuid") if isinstance(data, dict) else None
        return Said(status=status, body={"success": True, "message": message, "data": data}, task=made)

    def _complain(self, found: list[Complaint]) -> Said:
        first = found[0]
        why = f"{first.field}: {first.message}"
        if first.status == 422 and self._switches.on("mindhunters.validation_form", "laravel"):  # noqa: PLR2004
            errors: dict[str, list[str]] = {}
            for one in found:
                errors.setdefault(one.field, []).append(one.message)
            return Said(status=422, body={"message": "The given data was invalid.", "errors": errors}, why=why)
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
    ) -> Said:
        error: dict[str, Json] = {
            "code": code.lower() if self._switches.on("mindhunters.code_case", "lower") else code,
            "details": details,
        }
        if field is not None:
            error["field"] = field
        return Said(
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


def _number(call: Call, name: str, default: int) -> int | None:
    written = call.last(name, str(default))
    return int(written) if written.isdecimal() and written.isascii() and 0 < len(written) < 7 and int(written) else None  # noqa: PLR2004

"""A stand-in for Vambe's API: its routes, its bare task objects, its errors.

Source: docs.vambe.me, pages on tasks, team members and webhooks, read 2026-11. Bodies of errors other than 400 are assumed.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from rules.vocabulary import Json
from worker.sandbox.calls import Call, Said, forget_oldest, stamp
from worker.sandbox.limits import RateLimit
from worker.sandbox.listings import Listing
from worker.sandbox.switches import Switches
from worker.sandbox.vambe_rules import Complaint, complaints, day_of, due, due_at, priority, responsibles, title

#: What an organisation's key looks like; the only one the sandbox takes.
API_KEY: Final = "sandbox-vambe-key"
#: More tasks than these push out the oldest.
TASK_LIMIT: Final = 50_000
#: Names of the two webhook revisions, both documented.
TOPICS: Final = (
    "message.received",
    "message.sent",
    "ticket.created",
    "ticket.updated",
    "ticket.closed",
    "contact.created",
    "contact.updated",
    "stage.changed",
)

_STATUSES: Final = (
    {"id": "5a7e0000-0000-4000-8000-000000000001", "name": "Pendiente", "color": "#60a5fa", "type": "initial", "order": 1},
    {"id": "5a7e0000-0000-4000-8000-000000000002", "name": "En curso", "color": "#f59e0b", "type": "middle", "order": 2},
    {"id": "5a7e0000-0000-4000-8000-000000000003", "name": "Lista", "color": "#22c55e", "type": "final", "order": 3},
)  # fmt: skip
_CREATOR: Final = "5a7e0000-0000-4000-8000-00000000000c"
_NAMES: Final = ("Ana", "Luis", "Sofía", "Diego", "Camila", "Mateo")


class Vambe:
    """Answers calls below `/api`. Not for several threads at once: the sandbox holds its lock."""

    def __init__(self, switches: Switches) -> None:
        self._switches = switches
        self._limit = RateLimit("vambe", switches)
        self._listing = Listing("vambe", switches)
        self._tasks: dict[str, dict[str, Json]] = {}
        self._by_body: dict[str, str] = {}

    def answer(self, call: Call, now: datetime) -> Said:
        """Answer one call."""
        refused = self._refuse(call, now)
        if refused is not None:
            return refused
        said: Said | None = None
        match call.method, call.path.strip("/").split("/"):
            case "POST", ["public", "tasks"]:
                said = self._create(call, now)
            case "POST", ["tasks"] if self._switches.on("vambe.other_path", "serve"):
                said = self._create(call, now)
            case "GET", ["public", "tasks"]:
                said = self._listing.spoiled() or self._list(call, now)
            case "PUT", ["public", "tasks", identifier]:
                said = self._update(identifier, call, now)
            case "GET", ["public", "team-members", "all"]:
                said = Said(status=200, body=self._members())
            case "GET", ["webhooks", "topics"]:
                said = Said(status=200, body=list(TOPICS))
        return said or self._error(404, f"Cannot {call.method} /api{call.path}")

    def tasks(self) -> list[dict[str, Json]]:
        """Return every task, oldest first."""
        return [dict(task) for task in self._tasks.values()]

    def _refuse(self, call: Call, now: datetime) -> Said | None:
        key = call.headers.get("x-api-key")
        if key is None and self._switches.on("vambe.key_in_query", "accept"):
            key = call.last("x-api-key")
        if key != API_KEY:
            return self._error(401, "the API key is missing or wrong")
        headers = self._limit.refuse(now)
        return self._error(429, "too many requests", headers) if headers is not None else None

    def _create(self, call: Call, now: datetime) -> Said:
        body = call.document
        if not isinstance(body, dict):
            return self._complain([Complaint(field="body", message="must be a JSON object")])
        found = list(complaints(body, self._switches, now))
        if found:
            return self._complain(found)
        status = int(self._switches["vambe.success_status"])
        text = json.dumps(body, sort_keys=True)
        before = self._by_body.get(text)
        if before in self._tasks and self._switches.on("vambe.same_body_twice", "same_task"):
            return Said(status=status, body=self._tasks[before], task=before)
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
        self._tasks[task["id"]] = task
        self._by_body[text] = task["id"]
        forget_oldest(self._tasks, TASK_LIMIT)
        forget_oldest(self._by_body, TASK_LIMIT)
        return Said(status=status, body=task, task=task["id"])

    def _due(self, body: Mapping[str, Json]) -> dict[str, Json]:
        at = due_at(body, self._switches)
        return {
            "due_timezone": body.get("timezone"),
            "due_at": stamp(at) if at else None,
            "is_all_day": body.get("dueTime") is None,
        }

    def _list(self, call: Call, now: datetime) -> Said:
        form, wanted = _array(call.query, "responsibleIds")
        missing = [key for key in ("fromDate", "toDate") if not call.query.get(key)]
        first, last = (day_of(call.last(key)) for key in ("fromDate", "toDate"))
        wrong = ([] if form else ["responsibleIds"]) + missing
        if wrong or first is None or last is None:
            names = wrong or ["fromDate" if first is None else "toDate"]
            return self._complain([Complaint(field=name, message="is required") for name in names])
        without_dates = call.last("includeTasksWithoutDates", "true") != "false"
        understood = self._switches["vambe.array_form"] in {"any", form} or not wanted
        found = [
            task
            for task in (self._listing.shown(self._tasks.values(), now) if understood else ())
            if (not wanted or wanted & {one["responsible_id"] for one in task["task_responsibles"]})
            and (first <= datetime.fromisoformat(task["due_at"]).date() <= last if task["due_at"] else without_dates)
        ]
        return Said(status=200, body=found, headers={"X-Sandbox-Array-Form": form})

    def _update(self, identifier: str, call: Call, now: datetime) -> Said:
        task, body = self._tasks.get(identifier), call.document
        if task is None:
            return self._error(404, "no such task")
        if not isinstance(body, dict):
            return self._complain([Complaint(field="body", message="must be a JSON object")])
        found = self._update_complaints(body, now)
        if found:
            return self._complain(found)
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
        return Said(status=200, body=task, task=identifier)

    def _update_complaints(self, body: Mapping[str, Json], now: datetime) -> list[Complaint]:
        found = [*due(body, self._switches, now)]
        if "title" in body:
            found += title(body["title"], self._switches)
        if "priority" in body:
            found += priority(body["priority"], self._switches)
        if "responsibleIds" in body:
            found += responsibles(body["responsibleIds"], self._switches)
        selectors = [key for key in ("newStatusName", "newStatusPosition") if body.get(key) is not None]
        if len(selectors) > 1:
            found.append(Complaint(field="newStatusName", message="give it or newStatusPosition, not both"))
        elif selectors and _status(body) is None:
            found.append(Complaint(field=selectors[0], message="there is no such status"))
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

    def _complain(self, found: list[Complaint]) -> Said:
        first = found[0]
        why = f"{first.field}: {first.message}"
        if first.status != 400:  # noqa: PLR2004 - the one status whose body is documented
            return self._error(first.status, why)
        errors = [{"field": one.field, "message": one.message} for one in found if one.status == first.status]
        return Said(status=400, body={"statusCode": 400, "message": "Validation failed", "errors": errors}, why=why)

    def _error(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> Said:
        body = None if self._switches.on("vambe.error_body", "empty") else {"statusCode": status, "message": message}
        return Said(status=status, body=body, headers=headers or {}, why=message)


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

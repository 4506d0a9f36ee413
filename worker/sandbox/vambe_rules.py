"""Which bodies Vambe's `POST /tasks` takes, by its documents: one complaint for each thing that is wrong.

Source: docs.vambe.me, "Create a new task", read 2026-11; what the page leaves open is a switch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

from rules.vocabulary import Json
from worker.sandbox.switches import Switches

NULLABLE: Final = ("description", "dueDate", "dueTime", "timezone", "aiContactId", "aiCustomerId")
PRIORITIES: Final = ("0", "1", "2")
STATUS_FIELDS: Final = ("statusId", "status", "newStatusName", "newStatusPosition", "task_status_config_id")

_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
_TIME: Final = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9]")
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(T.+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Complaint:
    """One thing wrong with a body: 400 with its field, or 404."""

    field: str
    message: str
    status: int = 400


def complaints(body: Mapping[str, Json], switches: Switches, now: datetime) -> Iterator[Complaint]:
    """Yield what is wrong with a body to create a task, shapes before ids."""
    if switches.on("vambe.absent_keys", "strict"):
        for key in NULLABLE:
            if key not in body:
                yield Complaint(field=key, message="must be given, or null")
    yield from title(body.get("title"), switches)
    for key in ("description", "aiContactId", "aiCustomerId", "timezone"):
        if body.get(key) is not None and not isinstance(body[key], str):
            yield Complaint(field=key, message="must be a string or null")
    yield from priority(body.get("priority"), switches)
    yield from due(body, switches, now)
    if switches.on("vambe.status_fields", "refuse"):
        for key in STATUS_FIELDS:
            if key in body:
                yield Complaint(field=key, message="is not accepted when creating")
    yield from responsibles(body.get("responsibleIds"), switches)
    contact = body.get("aiContactId")
    if isinstance(contact, str) and not switches.knows("vambe.contacts", contact):
        yield Complaint(field="aiContactId", message="no such contact", status=int(switches["vambe.unknown_contact"]))


def title(value: Json, switches: Switches) -> Iterator[Complaint]:
    """Yield what is wrong with a title."""
    if not isinstance(value, str) or not value:
        yield Complaint(field="title", message="must be a string of at least 1 character")
    elif not value.strip() and switches.on("vambe.blank_title", "refuse"):
        yield Complaint(field="title", message="must not be blank")


def priority(value: Json, switches: Switches) -> Iterator[Complaint]:
    """Yield what is wrong with a priority."""
    if isinstance(value, int) and not isinstance(value, bool) and switches.on("vambe.priority_number", "accept"):
        value = str(value)
    if value not in PRIORITIES:
        yield Complaint(field="priority", message='must be "0", "1" or "2"')


def due(body: Mapping[str, Json], switches: Switches, now: datetime) -> Iterator[Complaint]:
    """Yield what is wrong with dueDate, dueTime and timezone."""
    due_date, due_time, timezone = body.get("dueDate"), body.get("dueTime"), body.get("timezone")
    if due_date is not None:
        day = day_of(due_date)
        if day is None:
            yield Complaint(field="dueDate", message="must be a date or an ISO 8601 date-time")
        elif day < now.date() and switches.on("vambe.past_due_date", "refuse"):
            yield Complaint(field="dueDate", message="must not be in the past")
    if isinstance(timezone, str) and zone(timezone) is None and switches.on("vambe.timezone_name", "refuse"):
        yield Complaint(field="timezone", message="must be an IANA time zone")
    if due_time is None:
        return
    if not (isinstance(due_time, str) and _TIME.fullmatch(due_time)) and switches.on("vambe.due_time_format", "refuse"):
        yield Complaint(field="dueTime", message="must be HH:MM on a 24-hour clock")
    if timezone is None:
        yield Complaint(field="timezone", message="is required when dueTime is given")
    if due_date is None and switches.on("vambe.due_time_alone", "refuse"):
        yield Complaint(field="dueDate", message="is required when dueTime is given")


def responsibles(value: Json, switches: Switches) -> Iterator[Complaint]:
    """Yield what is wrong with responsibleIds."""
    if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
        yield Complaint(field="responsibleIds", message="must be a list of at least one user id")
        return
    for one in value:
        if not _UUID.fullmatch(one):
            status = int(switches["vambe.responsible_format"])
            yield Complaint(field="responsibleIds", message=f"{one[:60]!r} is not a user id", status=status)
        elif not switches.knows("vambe.users", one):
            yield Complaint(field="responsibleIds", message=f"{one} is not in the organisation", status=404)


def due_at(body: Mapping[str, Json], switches: Switches) -> datetime | None:
    """Return the instant the stored task is due at: as the zone says, or as the vendor's sample does."""
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

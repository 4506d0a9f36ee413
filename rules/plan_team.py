"""What a task for the team says: who does it, and until when.

The due time is in the task's own zone, else the team's, the rule's, the default's, else UTC with a note; never in the
contact's. Date and time come from one moment, rounded up to the whole minute. A team that takes turns is left to the
ledger, which knows whose turn it is.
"""

from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import Final

from rules.drafting import Draft
from rules.filters import in_words
from rules.moments import local_minute
from rules.rulebook import DueOn, Team
from rules.showing import as_json
from rules.templates import Template
from rules.times import is_date, is_span, parse_clock, parse_date, parse_span, read_moment, to_local, to_utc
from rules.vocabulary import Json, Rotation

DEFAULT_PRIORITY: Final = "medium"
_PRIORITIES: Final = ("low", "medium", "high")


def draft_team(draft: Draft) -> Rotation | None:
    """Fill in a task for the team; return the rotation when a team takes turns."""
    draft.title_and_description()
    draft.fields["priority"] = _priority(draft)
    draft.fields["ai_contact_id"] = draft.text("ai_contact_id")
    draft.fields["ai_customer_id"] = draft.text("ai_customer_id")
    extra = draft.action.body.get("extra_fields")
    if extra is not None:
        draft.fields["extra_fields"] = draft.render("extra_fields", extra)
    team = _assign(draft)
    _due(draft, team)
    if team is None or team.by != "round_robin":
        return None
    return Rotation(team=team.name, member_ids=_member_ids(team))


def _priority(draft: Draft) -> str:
    word = (draft.text("priority") or DEFAULT_PRIORITY).lower()
    if word not in _PRIORITIES:
        draft.faults.append(f"priority: it is low, medium or high, not {as_json(word, 40)}")
    return word


# Who -----------------------------------------------------------------------------------------------------------------


def _assign(draft: Draft) -> Team | None:
    """Fill in `responsible_ids` unless a team takes turns; return the team, if it is one."""
    before = len(draft.faults)
    found = _assigned(draft)
    ids = _member_ids(found) if isinstance(found, Team) else found
    if not ids and len(draft.faults) == before:
        draft.faults.append("nobody to do it: assign names no one; write a team, a list of user ids, or a default")
    if isinstance(found, Team) and found.by == "round_robin":
        return found
    draft.fields["responsible_ids"] = list(ids)
    return found if isinstance(found, Team) else None


def _assigned(draft: Draft) -> Team | tuple[str, ...]:
    assign = draft.action.assign
    if assign is None or isinstance(assign, Team):
        return assign or ()
    rendered = draft.render("assign", assign)
    if isinstance(rendered, str):
        team = draft.scene.book.teams.get(rendered.strip())
        if team is not None:
            return team
        if "," in rendered:
            draft.faults.append(f"assign: {as_json(rendered, 80)} holds several in one text; give a list of user ids")
            return ()
    return _ids(draft, rendered)


def _ids(draft: Draft, value: Json) -> tuple[str, ...]:
    """Return user ids, each once; a fault for what cannot be one."""
    ids: dict[str, None] = {}
    for item in value if isinstance(value, list) else [] if value is None else [value]:
        if isinstance(item, bool | dict | list | float) or item is None:
            draft.faults.append(f"assign: {as_json(item, 80)} is no user id")
        elif in_words(item).strip():
            ids[in_words(item).strip()] = None
    return tuple(ids)


def _member_ids(team: Team) -> tuple[str, ...]:
    return tuple(dict.fromkeys(member.id for member in team.members))


# Until when ----------------------------------------------------------------------------------------------------------


def _due(draft: Draft, team: Team | None) -> None:
    """Fill in `due_date`, `due_time` and `timezone`: all three, the date alone, or none."""
    draft.fields.update({"due_date": None, "due_time": None, "timezone": None})
    due = draft.action.due
    if due is None:
        return
    known = draft.own_zone() or (team.timezone if team else None) or draft.scene.fallback_zone
    zone = known or "UTC"
    try:
        asked = _due_on(draft, due, zone) if isinstance(due, DueOn) else _due_at(draft, due, zone)
        local = local_minute(asked, zone) if isinstance(asked, datetime) else None
    except ValueError as error:
        draft.faults.append(f"due: {error}")
        return
    if local is not None:
        draft.fields.update(due_date=local.date().isoformat(), due_time=f"{local:%H:%M}", timezone=zone)
        if known is None:
            draft.notes.append(
                "warning: no timezone is set for the task, its team, its rule or by default; UTC was used"
            )
    elif asked is not None:
        draft.fields["due_date"] = asked.isoformat()


def _due_on(draft: Draft, due: DueOn, zone: str) -> date | None:
    """Return the day of an all-day task, or the moment (a datetime); None where a template failed. Raises ValueError."""
    written = draft.render("due.date", due.date)
    clock = None if due.time is None else draft.render("due.time", due.time)
    if written is None or (clock is None and due.time is not None):
        return None
    if isinstance(written, str) and is_date(written.strip()):
        day = parse_date(written.strip())
    else:
        moment = _moment(written)
        day = to_local(moment, zone).date() if moment.tzinfo else moment.date()
    return day if clock is None else to_utc(datetime.combine(day, parse_clock(clock)), zone)


def _due_at(draft: Draft, due: timedelta | Template, zone: str) -> date | None:
    """Return the moment, or the day where a template gives one; None where it failed. Raises ValueError."""
    if isinstance(due, timedelta):
        return _later(draft.scene.now, due)
    text = draft.render("due", due)
    if text is None:
        return None
    words = text.strip() if isinstance(text, str) else ""
    if words.startswith("+") or is_span(words):
        return _later(draft.scene.now, parse_span(words))
    if is_date(words):
        return parse_date(words)
    moment = _moment(text)
    return moment if moment.tzinfo else to_utc(moment, zone)


def _later(now: datetime, span: timedelta) -> datetime:
    try:
        return now + span
    except OverflowError:
        raise ValueError(f"{span} from now is outside of the calendar") from None


def _moment(value: Json) -> datetime:
    return read_moment(value.strip() if isinstance(value, str) else value)

"""What an event leads to: every listening rule gets a decision, every action of a rule that matched a task.

A task's key is the SHA-256 over the event's id, the rule's id and the task's name, so the same rule makes each of its tasks
once for an event, for ever. Deciding never fails: an error in one rule or task is the reason of that rule's decision or that
task's end.

Task.fields, in Leadwire's words. Mindhunters: `agent title description priority campaign contact {phone_number email}
contact_uuid timezone auto_queue redial {max} template type task_data extra_fields`, without those that are not said. Team:
`title description due_date due_time timezone priority responsible_ids ai_contact_id ai_customer_id extra_fields`, null where
empty; `responsible_ids` is left out where a team takes turns.

Text from outside loses control characters (line breaks and tabs stay in descriptions) and is cut: titles at 200, descriptions
at 2,000 characters. A description always ends in the correlation tag, by which the task is found again at its provider.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from functools import cached_property, partial
from hashlib import sha256
from json.encoder import encode_basestring_ascii
from typing import Final

from rules.conditions import explain
from rules.filters import ZONE, TemplateError, e164, in_words
from rules.messages import as_json
from rules.operators import LOCAL
from rules.rule_set import Action, DueDate, Dynamic, Rule, RuleSet, Team
from rules.templates import Template
from rules.times import (
    At,
    ZoneChoice,
    is_date,
    is_span,
    is_zone,
    local_minute,
    parse_at,
    parse_clock,
    parse_date,
    parse_span,
    read_moment,
    to_local,
    to_utc,
    zone,
    zones_of,
)
from rules.vocabulary import (
    E164_PATTERN,
    PROVIDER_OF,
    Contact,
    Decision,
    DecisionOutcome,
    Event,
    EventState,
    Json,
    Plan,
    Rotation,
    Task,
    TaskState,
    TaskType,
    instant,
)

TITLE_LIMIT: Final = 200
DESCRIPTION_LIMIT: Final = 2_000
_ID_CHARACTERS: Final = 20
_TAG_CHARACTERS: Final = 12
_ERROR_LIMIT: Final = 300


# Deciding ------------------------------------------------------------------------------------------------------------


def decide(rule_set: RuleSet, event: Event, *, now: datetime) -> Plan:
    """Return the plan for an event under a rule set at a moment; never raises, whatever the event holds.

    A rule with `stop: true` skips the rules after it in its file when at least one of its tasks will be made; a rule whose
    tasks all ended in planning stops nothing.
    """
    rules = rule_set.listening(event.type)
    decisions: list[Decision] = []
    tasks: list[Task] = []
    stopped_by: dict[str, str] = {}
    view = _View(rule_set, event, now)
    for rule in rules:
        if rule.file in stopped_by:
            reason = f"stopped by rule {stopped_by[rule.file]}, which matched before it in the same file"
            decisions.append(Decision(rule=rule.id, outcome=DecisionOutcome.STOPPED, reason=reason, place=rule.place))
            continue
        decision, made = _decide_rule(view, rule)
        decisions.append(decision)
        tasks.extend(made)
        if rule.stop and any(task.state is TaskState.PLANNED for task in made):
            stopped_by[rule.file] = rule.id
    return Plan(
        event_id=event.id,
        rule_set=rule_set.version,
        state=EventState.PROCESSED if rules else EventState.IGNORED,
        decisions=tuple(decisions),
        tasks=tuple(tasks),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A task that has ended, as seen by the tasks that follow up on it.

    `reason` says why, `status` is the last HTTP status, if any; `outcome` is the provider's final status, if that is the end.
    """

    id: str
    rule: str
    name: str
    title: str
    reason: str
    status: int | None = None
    outcome: str | None = None

    def view(self) -> dict[str, Json]:
        """Return what templates can read besides the event."""
        failure = {"reason": self.reason, "status": self.status, "title": self.title, "task": self.name}
        return {"failure": failure} | ({} if self.outcome is None else {"outcome": self.outcome})


def react(
    rule_set: RuleSet, event: Event, ended: Ended, trigger: str, *, now: datetime
) -> tuple[tuple[Task, ...], str | None]:
    """Return the follow-up tasks of an ended task, under the rule set that planned it. Never raises for an event's content.

    `trigger` is one of `Task.reactions`. Conditions are not evaluated again. When there is no task, the second value says why.
    """
    rule = next((rule for rule in rule_set.rules if rule.id == ended.rule), None)
    action = rule.action(ended.name) if rule else None
    if rule is None or action is None or trigger not in action.answers:
        return (), f"rule set {rule_set.version} has nothing that answers {trigger} of {ended.rule}/{ended.name}"
    try:
        scene = _View(rule_set, event, now).scene(rule, **ended.view())
    except Exception as error:  # noqa: BLE001 - what an event holds must not stop the worker
        return (), f"what follows on {ended.name} could not be planned: {_said(error)}"
    return tuple(_plan_task(scene, each, parent=ended.id) for each in action.answers[trigger]), None


def task_key(event_id: str, rule_id: str, name: str) -> str:
    """Return a task's unique key: 64 hexadecimal characters, a hash of event, rule and name."""
    parts = ", ".join(map(encode_basestring_ascii, (event_id, rule_id, name)))
    return sha256(f"[{parts}]".encode()).hexdigest()


def correlation_tag(key: str) -> str:
    """Return `[lw:...]` with the first twelve characters of a task's key, which ends the task's description."""
    return f"[lw:{key[:_TAG_CHARACTERS]}]"


class _View:
    """What conditions and templates see of one event under one rule set at one moment."""

    def __init__(self, rule_set: RuleSet, event: Event, now: datetime) -> None:
        self.rule_set = rule_set
        self.event = event
        self.now = now

    @cached_property
    def _seen(self) -> Mapping[str, Json]:
        return {**self.event.view(), "now": instant(self.now), LOCAL: partial(self._in_utc, None)}

    @cached_property
    def zones(self) -> ZoneChoice:
        """The zones that the event's contact may be in."""
        return zones_of(self.event.contact, self.rule_set.defaults.country_zones)

    def conditions(self, rule: Rule) -> Mapping[str, Json]:
        """Return what the rule's conditions are asked of: the event, `now`, and how to read a local time."""
        return self._seen if rule.timezone is None else {**self._seen, LOCAL: partial(self._in_utc, rule.timezone)}

    def _in_utc(self, assumed: str | None, moment: datetime) -> datetime:
        """Return a moment without an offset as UTC, as for `at`: of several zones of the contact the latest counts."""
        zones = self.zones.zones or (assumed or self.rule_set.defaults.timezone or "UTC",)
        return max(to_utc(moment, name) for name in zones)

    def scene(self, rule: Rule, **beside: Json) -> _Scene:
        """Return what the rule's tasks are planned from; `date` and `local_time` speak in the contact's zone."""
        local = self.zones.only or rule.timezone or self.rule_set.defaults.timezone
        return _Scene(view=self, rule=rule, seen={**self._seen, **beside, ZONE: local})


def _decide_rule(view: _View, rule: Rule) -> tuple[Decision, Sequence[Task]]:
    try:
        failed = rule.condition(view.conditions(rule))
        if failed is not None:
            outcome, reason = DecisionOutcome.NOT_MATCHED, explain(failed)
            return Decision(rule=rule.id, outcome=outcome, reason=reason, failed=failed, place=rule.place), ()
        scene = view.scene(rule)
    except Exception as error:  # noqa: BLE001 - an error in one rule must not stop the others
        reason = f"this rule could not be decided: {_said(error)}"
        return Decision(rule=rule.id, outcome=DecisionOutcome.NOT_MATCHED, reason=reason, place=rule.place), ()
    tasks = [_plan_task(scene, action) for action in rule.actions]
    return (
        Decision(
            rule=rule.id,
            outcome=DecisionOutcome.MATCHED,
            reason=_told(rule, tasks),
            tasks=tuple(task.id for task in tasks),
            place=rule.place,
        ),
        tasks,
    )


def _told(rule: Rule, tasks: Sequence[Task]) -> str:
    """Say what a rule that matched came to."""
    if not rule.actions:
        return "every condition holds; the rule makes no task"
    told = [
        f"{task.name}{f' ({task.note})' if task.note else ''}"
        if task.state is TaskState.PLANNED
        else f"{task.name} ({task.state.value}: {task.reason})"
        for task in tasks
    ]
    return f"every condition holds: {', '.join(told)}"


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:_ERROR_LIMIT]


# Planning a task -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scene:
    """What a task is planned from: a rule that matched, and what templates see."""

    view: _View
    rule: Rule
    seen: Mapping[str, Json]

    @property
    def fallback_zone(self) -> str | None:
        """The zone of the rule, else of the defaults."""
        return self.rule.timezone or self.view.rule_set.defaults.timezone


@dataclass(slots=True, kw_only=True)
class _Draft:
    """A task in the making: what is to be told, why it cannot be made (`faults`), and what was assumed (`notes`).

    `too_late` says why it is not to be made any more.
    """

    scene: _Scene
    action: Action
    key: str
    contact: Contact
    due_at: datetime
    expires_at: datetime | None = None
    too_late: str | None = None
    rotation: Rotation | None = None
    fields: dict[str, Json] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def render(self, name: str, value: Dynamic) -> Json:
        """Return a value with its templates rendered and its texts cleaned; None with a fault where one fails."""
        try:
            return self._rendered(name, value)
        except TemplateError as error:
            self.faults.append(str(error))
            return None

    def _rendered(self, name: str, value: Dynamic) -> Json:
        if isinstance(value, Template):
            try:
                return _clean(value.render(self.scene.seen))
            except TemplateError as error:
                raise TemplateError(f"{name}: {error}") from None
        if isinstance(value, dict):
            return {key: self._rendered(f"{name}.{key}", item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._rendered(f"{name}[{place}]", item) for place, item in enumerate(value)]
        return _clean(value)

    def text(self, name: str) -> str | None:
        """Return a key of the body as a text without blanks around it; None when it is absent or empty."""
        value = self.action.body.get(name)
        rendered = None if value is None else self.render(name, value)
        return None if rendered is None else in_words(rendered).strip() or None

    def title_and_description(self) -> None:
        """Fill in the two texts that every task has."""
        rule = self.scene.rule
        self.fields["title"] = _titled(self.text("title") or "") or _titled(rule.description or "") or _titled(rule.id)
        self.fields["description"] = _described(self.text("description") or "", self.key)

    def own_zone(self) -> str | None:
        """Return the task's own `timezone`; a fault where it is none."""
        if self.action.timezone is None:
            return None
        name = self.render("timezone", self.action.timezone)
        if name is None or is_zone(name):
            return None if name is None else str(name)
        try:
            zone(name)
        except ValueError as error:
            self.faults.append(f"timezone: {error}")
        return None


def _plan_task(scene: _Scene, action: Action, parent: str | None = None) -> Task:
    event, rule = scene.view.event, scene.rule
    key = task_key(event.id, rule.id, action.name)
    draft = _Draft(scene=scene, action=action, key=key, contact=event.contact, due_at=scene.view.now)
    try:
        draft.title_and_description()
        if action.type is TaskType.TEAM_TASK:
            _draft_for_team(draft)
        else:
            _draft_for_mindhunters(draft)
    except Exception as error:  # noqa: BLE001 - an error in one task must not stop the others
        draft.faults.append(f"this task could not be planned: {_said(error)}")
    if "description" not in draft.fields:
        draft.fields = {**draft.fields, "title": _titled(rule.id), "description": _described("", key)}
    # An incomplete task is dead even if late, so that no later retry can send it.
    state = TaskState.DEAD if draft.faults else TaskState.SUPPRESSED if draft.too_late else TaskState.PLANNED
    return Task(
        id=f"tk_{key[:_ID_CHARACTERS]}",
        key=key,
        event_id=event.id,
        rule=rule.id,
        name=action.name,
        type=action.type,
        provider=PROVIDER_OF[action.type],
        due_at=draft.due_at,
        expires_at=draft.expires_at,
        fields=draft.fields,
        retry=action.retry,
        if_unsure=action.if_unsure,
        rotation=draft.rotation,
        contact=draft.contact,
        state=state,
        reason="; ".join(dict.fromkeys(draft.faults)) or draft.too_late,
        note="; ".join(draft.notes) or None,
        rule_set=scene.view.rule_set.version,
        parent=parent,
        reactions=tuple(action.answers),
    )


# Texts ---------------------------------------------------------------------------------------------------------------

_LINE_ENDS: Final = re.compile("\r\n?|[\u0085\u2028\u2029]")
#: Control characters, halves of surrogate pairs, and the marks that turn the direction of writing.
_CONTROL: Final = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)
#: A correlation tag, as one from outside would look.
_TAG: Final = re.compile(r"\[lw:[0-9a-f]{12}\]", re.IGNORECASE)
_TAG_BEGINNING: Final = re.compile(r"\[(lw:)", re.IGNORECASE)
_BREAKS: Final = re.compile(r"[\n\t]+")


def _clean(value: Json) -> Json:
    """Return a JSON value whose texts and keys hold no control characters but line breaks and tabs."""
    if isinstance(value, str):
        return value if value.isprintable() else _CONTROL.sub("", _LINE_ENDS.sub("\n", value))
    if isinstance(value, dict):
        return {_clean(str(key)): _clean(item) for key, item in value.items()}
    return [_clean(item) for item in value] if isinstance(value, list | tuple) else value


def _titled(text: str) -> str:
    """Return a text as a title: one line, at most 200 characters."""
    return _untagged(_BREAKS.sub(" ", str(_clean(text)))).strip()[:TITLE_LIMIT].rstrip()


def _described(text: str, key: str) -> str:
    """Return a text as a description: at most 2,000 characters, the correlation tag at its end, no other tag in it."""
    ending = f" {correlation_tag(key)}"
    kept = _untagged(str(_clean(text))).strip()[: DESCRIPTION_LIMIT - len(ending)].rstrip()
    return f"{kept}{ending}" if kept else correlation_tag(key)


def _untagged(text: str) -> str:
    """Return a text without correlation tags; where taking one out makes another, they lose their bracket."""
    if "[" not in text:
        return text
    kept = _TAG.sub("", text)
    return _TAG_BEGINNING.sub(r"\1", kept) if _TAG.search(kept) else kept


# Tasks of Mindhunters: whom they reach, when they are made, until when they are worth making -------------------------

_E164: Final = re.compile(E164_PATTERN)
_NOW: Final = At(after=timedelta())
#: Keys that are rendered here with a meaning of their own; all others go through as they are.
_OWN: Final = frozenset({"title", "description", "contact", "contact_uuid"})
_NEEDS_PHONE: Final = frozenset({TaskType.MAKE_CALL, TaskType.WHATSAPP_TEMPLATE})


def _draft_for_mindhunters(draft: _Draft) -> None:
    for name, value in draft.action.body.items():
        rendered = None if name in _OWN or value is None else draft.render(name, value)
        if rendered is not None:
            draft.fields[name] = rendered
    draft.fields.setdefault("auto_queue", True)
    _reach(draft)
    _time(draft)
    _expire(draft)


def _reach(draft: _Draft) -> None:
    """Fill in exactly one of `contact_uuid` and `contact`. The CRM's own contact id is never sent.

    Without a `contact_uuid` of the rule's own, a call or a WhatsApp template needs a phone number; other tasks do with an
    e-mail address.
    """
    contact, action = draft.contact, draft.action
    contact_uuid = draft.text("contact_uuid")
    if contact_uuid:
        draft.fields["contact_uuid"] = contact_uuid
        return
    before = len(draft.faults)
    asked: Dynamic = action.body.get("contact")
    if asked is None:
        by_mail = action.type not in _NEEDS_PHONE and not contact.phone
        told: Json = {"email": contact.email} if by_mail else {"phone_number": contact.phone}
        origin = "contact.phone"
    else:
        told = draft.render("contact", asked)
        origin = "contact.phone_number"
    told = told if isinstance(told, dict) else {}
    phone = _phone(draft, told.get("phone_number"), origin)
    email = in_words(_clean(told.get("email")) or "").strip() or None
    reached = {"phone_number": phone, "email": email}
    draft.fields["contact"] = {name: value for name, value in reached.items() if value}
    if len(draft.faults) == before and not phone:
        if action.type in _NEEDS_PHONE:
            draft.faults.append("no phone: the contact has no phone number, and the rule gives no contact_uuid")
        elif not email:
            nobody = "the contact has neither phone nor e-mail, and the rule gives no contact_uuid"
            draft.faults.append(f"nobody to reach: {nobody}")
    if asked is not None and not (phone and phone == contact.phone) and (phone or email != contact.email):
        draft.contact = Contact(phone=phone, email=email)


def _phone(draft: _Draft, value: Json, origin: str) -> str | None:
    """Return a phone number as E.164; a fault where it cannot be read as one."""
    text = in_words(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if not text or _E164.fullmatch(text):
        return text or None
    country = draft.scene.view.event.contact.country
    number = e164(text, country if isinstance(country, str) else None)
    if number is not None and _E164.fullmatch(number):
        return number
    draft.faults.append(
        f"no phone: {origin} is {as_json(text, 40)}, which is no phone number; give it with + and its country code, "
        "or set contact.country"
    )
    return None


def _time(draft: _Draft) -> None:
    """Find when the task is due, in the task's own zone, else in those of the contact it reaches.

    A time of day without any zone is read in the rule's zone, the default's, or UTC.
    """
    scene = draft.scene
    view = scene.view
    assumed_zones = view.rule_set.defaults.country_zones
    choice = view.zones if draft.contact is view.event.contact else zones_of(draft.contact, assumed_zones)
    own = draft.own_zone()
    if own or choice.only:
        draft.fields["timezone"] = own or choice.only
    at = draft.action.at or _NOW
    try:
        if isinstance(at, Template):
            written = draft.render("at", at)
            at = _NOW if written is None else parse_at(written)
        zones: tuple[str, ...] = ()
        if at.needs_zone:
            assumed = scene.fallback_zone or "UTC"
            zones = (own,) if own else choice.zones or (assumed,)
            source = f"zone {own} from the task's timezone" if own else choice.note
            draft.notes.append(source if own or choice.zones else f"{source}; {assumed} was assumed")
        draft.due_at = at.resolve(view.now, zones)
    except ValueError as error:
        draft.faults.append(f"at: {error}")


def _expire(draft: _Draft) -> None:
    """Find until when the task is worth making, and whether it is too late for it."""
    now, occurred_at = draft.scene.view.now, draft.scene.view.event.occurred_at
    if draft.action.expires is None:
        return
    try:
        expires_at = occurred_at + draft.action.expires
    except OverflowError:  # an event of the year 9999 does not expire within the calendar
        return
    draft.expires_at = expires_at
    if expires_at <= now:
        draft.too_late = f"too late: it expired at {instant(expires_at)}; the event occurred at {instant(occurred_at)}"
    elif draft.due_at >= expires_at:
        draft.too_late = f"too late: it would be made at {instant(draft.due_at)} and expires at {instant(expires_at)}"


# Tasks of the team: who does them, and until when --------------------------------------------------------------------


def _draft_for_team(draft: _Draft) -> None:
    """Fill in a task for the team. A team that takes turns is left to the ledger, which knows whose turn it is."""
    priority = (draft.text("priority") or "medium").lower()
    if priority not in {"low", "medium", "high"}:
        draft.faults.append(f"priority: it is low, medium or high, not {as_json(priority, 40)}")
    draft.fields["priority"] = priority
    draft.fields["ai_contact_id"] = draft.text("ai_contact_id")
    draft.fields["ai_customer_id"] = draft.text("ai_customer_id")
    extra = draft.action.body.get("extra_fields")
    if extra is not None:
        draft.fields["extra_fields"] = draft.render("extra_fields", extra)
    _due(draft, _assign(draft))


def _assign(draft: _Draft) -> Team | None:
    """Fill in `responsible_ids`, or the rotation of a team that takes turns; return the team, if it is one."""
    before = len(draft.faults)
    found = _assigned(draft)
    ids = tuple(dict.fromkeys(member.id for member in found.members)) if isinstance(found, Team) else found
    if not ids and len(draft.faults) == before:
        draft.faults.append("nobody to do it: assign names no one; write a team, a list of user ids, or a default")
    if isinstance(found, Team) and found.by == "round_robin":
        draft.rotation = Rotation(team=found.name, member_ids=ids)
        return found
    draft.fields["responsible_ids"] = list(ids)
    return found if isinstance(found, Team) else None


def _assigned(draft: _Draft) -> Team | tuple[str, ...]:
    """Return the team or the user ids, each once; a fault for what cannot be one."""
    assign = draft.action.assign
    if assign is None or isinstance(assign, Team):
        return assign or ()
    rendered = draft.render("assign", assign)
    if isinstance(rendered, str):
        team = draft.scene.view.rule_set.teams.get(rendered.strip())
        if team is not None:
            return team
        if "," in rendered:
            draft.faults.append(f"assign: {as_json(rendered, 80)} holds several in one text; give a list of user ids")
            return ()
    ids: dict[str, None] = {}
    for item in rendered if isinstance(rendered, list) else [] if rendered is None else [rendered]:
        if isinstance(item, bool | dict | list | float) or item is None:
            draft.faults.append(f"assign: {as_json(item, 80)} is no user id")
        elif in_words(item).strip():
            ids[in_words(item).strip()] = None
    return tuple(ids)


def _due(draft: _Draft, team: Team | None) -> None:
    """Fill in `due_date`, `due_time` and `timezone`: all three, the date alone, or none.

    The zone is the task's own, else the team's, the rule's, the default's, else UTC with a note; never the contact's. Date
    and time come from one moment, rounded up to the whole minute.
    """
    draft.fields.update({"due_date": None, "due_time": None, "timezone": None})
    due = draft.action.due
    if due is None:
        return
    known = draft.own_zone() or (team.timezone if team else None) or draft.scene.fallback_zone
    local_zone = known or "UTC"
    try:
        asked = _due_on(draft, due, local_zone) if isinstance(due, DueDate) else _due_at(draft, due, local_zone)
        local = local_minute(asked, local_zone) if isinstance(asked, datetime) else None
    except ValueError as error:
        draft.faults.append(f"due: {error}")
        return
    if local is None:
        draft.fields["due_date"] = asked.isoformat() if asked else None
        return
    draft.fields.update(due_date=local.date().isoformat(), due_time=f"{local:%H:%M}", timezone=local_zone)
    if known is None:
        draft.notes.append("warning: no timezone is set for the task, its team, its rule or by default; UTC was used")


def _due_on(draft: _Draft, due: DueDate, local_zone: str) -> date | None:
    """Return the day of an all-day task, or the moment (a datetime); None where a template failed. Raises ValueError."""
    written = draft.render("due.date", due.date)
    clock = None if due.time is None else draft.render("due.time", due.time)
    if written is None or (clock is None and due.time is not None):
        return None
    text = written.strip() if isinstance(written, str) else written
    if isinstance(text, str) and is_date(text):
        day = parse_date(text)
    else:
        moment = read_moment(text)
        day = to_local(moment, local_zone).date() if moment.tzinfo else moment.date()
    return day if clock is None else to_utc(datetime.combine(day, parse_clock(clock)), local_zone)


def _due_at(draft: _Draft, due: timedelta | Template, local_zone: str) -> date | None:
    """Return the moment, or the day where a template gives one; None where it failed. Raises ValueError."""
    if isinstance(due, timedelta):
        return _later(draft, due)
    rendered = draft.render("due", due)
    if rendered is None:
        return None
    text = rendered.strip() if isinstance(rendered, str) else rendered
    if isinstance(text, str):
        if text.startswith("+") or is_span(text):
            return _later(draft, parse_span(text))
        if is_date(text):
            return parse_date(text)
    moment = read_moment(text)
    return moment if moment.tzinfo else to_utc(moment, local_zone)


def _later(draft: _Draft, span: timedelta) -> datetime:
    try:
        return draft.scene.view.now + span
    except OverflowError:
        raise ValueError(f"{span} from now is outside of the calendar") from None

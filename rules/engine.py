"""What every planned task has in common: its place in an event and a rule, its rendered texts, and its faults.

Text from outside loses control characters (line breaks and tabs stay in descriptions) and is cut: titles at 200,
descriptions at 2,000 characters. A description always ends in ` [lw:...]` with the first twelve characters of the task's
key, by which the task is found again at its provider; the mark is never cut off, and no other mark stands in a text.

What a task for Mindhunters says: whom it reaches, when it is made, until when it is worth making.

The CRM's own contact id is never sent. Without a `contact_uuid` of the rule's own, a call or a WhatsApp template needs a
phone number; other tasks do with an e-mail address. The contact's zone is the task's own `timezone`, else what is known of
the contact whom the task reaches; a time of day without any zone is read in the rule's, the default's, or UTC.

What a task for the team says: who does it, and until when.

The due time is in the task's own zone, else the team's, the rule's, the default's, else UTC with a note; never in the
contact's. Date and time come from one moment, rounded up to the whole minute. A team that takes turns is left to the
ledger, which knows whose turn it is.

What an event leads to: every listening rule gets a decision, every action of a rule that matched a task.

When two tasks are the same task: a task's key is the SHA-256 over the event's id, the rule's id and the task's name, so the
same rule makes each of its tasks once for an event, for ever.

Task.fields, in Leadwire's words. Mindhunters: `agent title description priority campaign contact {phone_number email}
contact_uuid timezone auto_queue redial {max} template type task_data extra_fields`, without those that are not said. Team:
`title description due_date due_time timezone priority responsible_ids ai_contact_id ai_customer_id extra_fields`, null where
empty; `responsible_ids` is left out where a team takes turns. Deciding never fails: an error in one rule or task is the
reason of that rule's decision or that task's end.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from functools import cache
from typing import Final

from rules.conditions import explain
from rules.filters import ZONE, TemplateError, e164, in_words
from rules.messages import as_json
from rules.operators import LOCAL
from rules.rule_set import Action, DueDate, Dynamic, Rule, RuleSet, Team
from rules.templates import Template
from rules.times import (
    At,
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
_MARK_CHARACTERS: Final = 12

_LINE_ENDS: Final = re.compile("\r\n?|[\u0085\u2028\u2029]")
#: Control characters, halves of surrogate pairs, and the marks that turn the direction of writing.
_CONTROL: Final = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)
#: The mark of a task, as one from outside would look.
_MARK: Final = re.compile(r"\[lw:[0-9a-f]{12}\]", re.IGNORECASE)
_MARK_BEGINNING: Final = re.compile(r"\[(lw:)", re.IGNORECASE)
_BLANK: Final = re.compile(r"[\n\t]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What a task is planned from: one rule that matched one event at one moment; `view` is what templates see."""

    rule_set: RuleSet
    rule: Rule
    event: Event
    view: Mapping[str, Json]
    now: datetime

    @property
    def fallback_zone(self) -> str | None:
        """The zone of the rule, else of the defaults."""
        return self.rule.timezone or self.rule_set.defaults.timezone


@dataclass(slots=True, kw_only=True)
class Draft:
    """A task in the making: what is to be told, why it cannot be made (`faults`), and what was assumed (`notes`)."""

    scene: Scene
    action: Action
    key: str
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
                return clean(value.render(self.scene.view))
            except TemplateError as error:
                raise TemplateError(f"{name}: {error}") from None
        if isinstance(value, dict):
            return {key: self._rendered(f"{name}.{key}", item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._rendered(f"{name}[{place}]", item) for place, item in enumerate(value)]
        return clean(value)

    def text(self, name: str) -> str | None:
        """Return a key of the body as a text without blanks around it; None when it is absent or empty."""
        value = self.action.body.get(name)
        rendered = None if value is None else self.render(name, value)
        return None if rendered is None else in_words(rendered).strip() or None

    def title_and_description(self) -> None:
        """Fill in the two texts that every task has."""
        rule = self.scene.rule
        self.fields["title"] = titled(self.text("title") or "") or titled(rule.description or "") or titled(rule.id)
        self.fields["description"] = described(self.text("description") or "", self.key)

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


def clean(value: Json) -> Json:
    """Return a JSON value whose texts and keys hold no control characters but line breaks and tabs."""
    if isinstance(value, str):
        return value if value.isprintable() else _CONTROL.sub("", _LINE_ENDS.sub("\n", value))
    if isinstance(value, dict):
        return {clean(str(key)): clean(item) for key, item in value.items()}
    return [clean(item) for item in value] if isinstance(value, list | tuple) else value


def titled(text: str) -> str:
    """Return a text as a title: one line, at most 200 characters."""
    return _unmarked(_BLANK.sub(" ", str(clean(text)))).strip()[:TITLE_LIMIT].rstrip()


def correlation_tag(key: str) -> str:
    """Return the mark by which a task is found at its provider."""
    return f"[lw:{key[:_MARK_CHARACTERS]}]"


def _unmarked(text: str) -> str:
    """Return a text without marks of tasks; where taking one out makes another, they lose their bracket."""
    kept = _MARK.sub("", text)
    return _MARK_BEGINNING.sub(r"\1", kept) if _MARK.search(kept) else kept


def described(text: str, key: str) -> str:
    """Return a text as a description: at most 2,000 characters with the mark at its end."""
    ending = f" {correlation_tag(key)}"
    kept = _unmarked(str(clean(text))).strip()[: DESCRIPTION_LIMIT - len(ending)].rstrip()
    return f"{kept}{ending}" if kept else correlation_tag(key)


_E164: Final = re.compile(r"\+[1-9][0-9]{6,14}", re.ASCII)
#: Keys that are rendered here with a meaning of their own; all others go through as they are.
_OWN: Final = frozenset({"title", "description", "contact", "contact_uuid"})
_NEEDS_PHONE: Final = frozenset({TaskType.MAKE_CALL, TaskType.WHATSAPP_TEMPLATE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """When a task is to be made and until when; `too_late` says why it is not to be made any more."""

    due_at: datetime
    expires_at: datetime | None = None
    too_late: str | None = None


def draft_mindhunters(draft: Draft) -> tuple[Contact, Timing]:
    """Fill in a task for Mindhunters; return whom it reaches and when."""
    draft.title_and_description()
    for name, value in draft.action.body.items():
        rendered = None if name in _OWN or value is None else draft.render(name, value)
        if rendered is not None:
            draft.fields[name] = rendered
    draft.fields.setdefault("auto_queue", True)
    contact = _reach(draft)
    return contact, _timing(draft, contact)


def _reach(draft: Draft) -> Contact:
    """Fill in exactly one of `contact_uuid` and `contact`; return whom the task reaches."""
    contact = draft.scene.event.contact
    contact_uuid = draft.text("contact_uuid")
    if contact_uuid:
        draft.fields["contact_uuid"] = contact_uuid
        return contact
    before = len(draft.faults)
    asked: Dynamic = draft.action.body.get("contact")
    if asked is None:
        by_mail = draft.action.type not in _NEEDS_PHONE and not contact.phone
        told: Json = {"email": contact.email} if by_mail else {"phone_number": contact.phone}
        origin = "contact.phone"
    else:
        told = draft.render("contact", asked)
        origin = "contact.phone_number"
    told = told if isinstance(told, dict) else {}
    phone = _phone(draft, told.get("phone_number"), origin)
    email = in_words(told.get("email") or "").strip() or None
    reached = {"phone_number": phone, "email": email}
    draft.fields["contact"] = {name: value for name, value in reached.items() if value}
    if len(draft.faults) == before:
        _complain_of_nobody(draft, phone, email)
    if asked is None or (phone and phone == contact.phone) or (not phone and email == contact.email):
        return contact
    return Contact(phone=phone, email=email)


def _phone(draft: Draft, value: Json, origin: str) -> str | None:
    """Return a phone number as E.164; a fault where it cannot be read as one."""
    text = in_words(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if not text or _E164.fullmatch(text):
        return text or None
    country = draft.scene.event.contact.country
    number = e164(text, country if isinstance(country, str) else None)
    if number is None or not _E164.fullmatch(number):
        draft.faults.append(
            f"no phone: {origin} is {as_json(text, 40)}, which is no phone number; give it with + and its country code, "
            "or set contact.country"
        )
        return None
    return number


def _complain_of_nobody(draft: Draft, phone: str | None, email: str | None) -> None:
    if draft.action.type in _NEEDS_PHONE and not phone:
        draft.faults.append("no phone: the contact has no phone number, and the rule gives no contact_uuid")
    elif not phone and not email:
        draft.faults.append(
            "nobody to reach: the contact has neither phone nor e-mail, and the rule gives no contact_uuid"
        )


def _timing(draft: Draft, contact: Contact) -> Timing:
    scene, action = draft.scene, draft.action
    choice = zones_of(contact, scene.rule_set.defaults)
    own = draft.own_zone()
    told = own or choice.only
    if told:
        draft.fields["timezone"] = told
    due_at = scene.now
    at = _at(draft, action.at)
    if at.needs_zone:
        assumed = scene.fallback_zone or "UTC"
        zones = (own,) if own else choice.zones or (assumed,)
        source = f"zone {own} from the task's timezone" if own else choice.note
        draft.notes.append(source if own or choice.zones else f"{source}; {assumed} was assumed")
    else:
        zones = ()
    try:
        due_at = at.resolve(scene.now, zones)
    except ValueError as error:
        draft.faults.append(f"at: {error}")
    return _expiry(draft, due_at)


def _at(draft: Draft, at: At | Template | None) -> At:
    if isinstance(at, Template):
        written = draft.render("at", at)
        try:
            return _NOW if written is None else parse_at(written)
        except ValueError as error:
            draft.faults.append(f"at: {error}")
            return _NOW
    return at or _NOW


_NOW: Final = At(after=timedelta())


def _expiry(draft: Draft, due_at: datetime) -> Timing:
    span = draft.action.expires
    if span is None:
        return Timing(due_at=due_at)
    occurred_at = draft.scene.event.occurred_at
    try:
        expires_at = occurred_at + span
    except OverflowError:  # an event of the year 9999 does not expire within the calendar
        return Timing(due_at=due_at)
    too_late = None
    if expires_at <= draft.scene.now:
        too_late = f"too late: it expired at {instant(expires_at)}; the event occurred at {instant(occurred_at)}"
    elif due_at >= expires_at:
        too_late = f"too late: it would be made at {instant(due_at)} and expires at {instant(expires_at)}"
    return Timing(due_at=due_at, expires_at=expires_at, too_late=too_late)


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
        team = draft.scene.rule_set.teams.get(rendered.strip())
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
        asked = _due_on(draft, due, zone) if isinstance(due, DueDate) else _due_at(draft, due, zone)
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


def _due_on(draft: Draft, due: DueDate, zone: str) -> date | None:
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


_ID_CHARACTERS: Final = 20
_ERROR_LIMIT: Final = 300


def decide(rule_set: RuleSet, event: Event, *, now: datetime) -> Plan:
    """Return all that an event leads to under a rule set at a moment; never raises for what an event holds.

    A rule with `stop: true` ends the rules after it in its file when a task of it is going to be made; one whose tasks
    all ended in planning stops nothing.
    """
    rules = rule_set.listening(event.type)
    state = EventState.PROCESSED if rules else EventState.IGNORED
    decisions: list[Decision] = []
    tasks: list[Task] = []
    stopped_by: dict[str, str] = {}
    view: Mapping[str, Json] | Exception = _view(rule_set, event, now)
    for rule in rules:
        if rule.file in stopped_by:
            reason = f"stopped by rule {stopped_by[rule.file]}, which matched before it in the same file"
            decisions.append(Decision(rule=rule.id, outcome=DecisionOutcome.STOPPED, reason=reason, place=rule.place))
            continue
        decision, made = _decide_rule(rule_set, rule, event, view, now)
        decisions.append(decision)
        tasks.extend(made)
        if rule.stop and any(task.state is TaskState.PLANNED for task in made):
            stopped_by[rule.file] = rule.id
    return Plan(
        event_id=event.id, rule_set=rule_set.version, state=state, decisions=tuple(decisions), tasks=tuple(tasks)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A task that has come to an end: what those that answer it may say of it.

    `reason` is why, `status` the last answer's, if there was one; `outcome` is the provider's word when that is the end.
    """

    id: str
    rule: str
    name: str
    title: str
    reason: str
    status: int | None = None
    outcome: str | None = None

    def view(self) -> dict[str, Json]:
        """Return what templates see beside the event."""
        failure = {"reason": self.reason, "status": self.status, "title": self.title, "task": self.name}
        return {"failure": failure} | ({} if self.outcome is None else {"outcome": self.outcome})


def react(
    rule_set: RuleSet, event: Event, ended: Ended, trigger: str, *, now: datetime
) -> tuple[tuple[Task, ...], str | None]:
    """Return the tasks that answer a task's end under the rule set that planned it; never raises for what an event holds.

    `trigger` is one of `Task.reactions`. Conditions are not asked again. With no task there is a sentence that says why.
    """
    rule = next((rule for rule in rule_set.rules if rule.id == ended.rule), None)
    action = rule.action(ended.name) if rule else None
    if rule is None or action is None or trigger not in action.answers:
        return (), f"rule set {rule_set.version} has nothing that answers {trigger} of {ended.rule}/{ended.name}"
    view = _view(rule_set, event, now)
    if isinstance(view, Exception):
        return (), f"what follows on {ended.name} could not be planned: {_said(view)}"
    scene = _scene(rule_set, rule, event, {**view, **ended.view()}, now)
    return tuple(_plan_task(scene, each, parent=ended.id) for each in action.answers[trigger]), None


def task_key(event_id: str, rule_id: str, name: str) -> str:
    """Return the key under which a task can exist once: 64 hexadecimal characters."""
    return hashlib.sha256(json.dumps([event_id, rule_id, name]).encode()).hexdigest()


def _view(rule_set: RuleSet, event: Event, now: datetime) -> Mapping[str, Json] | Exception:
    """Return what conditions and templates see, or what kept it from being made."""
    try:
        return {**event.view(), "now": instant(now), LOCAL: _local_time(rule_set, event, None)}
    except Exception as error:  # noqa: BLE001 - what a sender nested without end must not stop the others
        return error


def _local_time(rule_set: RuleSet, event: Event, zone: str | None) -> Callable[[datetime], datetime]:
    """Return how conditions read a moment without an offset: in the contact's zone, found when the first one is met.

    As for `at`: of several zones the latest moment counts; with none, the zone of the rule, of the defaults, or UTC.
    """

    @cache
    def zones() -> tuple[str, ...]:
        return zones_of(event.contact, rule_set.defaults).zones or (zone or rule_set.defaults.timezone or "UTC",)

    def in_utc(moment: datetime) -> datetime:
        return max(to_utc(moment, name) for name in zones())

    return in_utc


def _decide_rule(
    rule_set: RuleSet, rule: Rule, event: Event, view: Mapping[str, Json] | Exception, now: datetime
) -> tuple[Decision, Sequence[Task]]:
    try:
        if isinstance(view, Exception):
            raise view
        if rule.timezone is not None:
            view = {**view, LOCAL: _local_time(rule_set, event, rule.timezone)}
        failed = rule.condition(view)
        if failed is not None:
            decision = Decision(
                rule=rule.id,
                outcome=DecisionOutcome.NOT_MATCHED,
                reason=explain(failed),
                failed=failed,
                place=rule.place,
            )
            return decision, ()
        scene = _scene(rule_set, rule, event, view, now)
    except Exception as error:  # noqa: BLE001 - an error in one rule must not stop the others
        reason = f"this rule could not be decided: {_said(error)}"
        return Decision(rule=rule.id, outcome=DecisionOutcome.NOT_MATCHED, reason=reason, place=rule.place), ()
    tasks = [_plan_task(scene, action) for action in rule.actions]
    decision = Decision(
        rule=rule.id,
        outcome=DecisionOutcome.MATCHED,
        reason=_told(rule, tasks),
        tasks=tuple(task.id for task in tasks),
        place=rule.place,
    )
    return decision, tasks


def _scene(rule_set: RuleSet, rule: Rule, event: Event, view: Mapping[str, Json], now: datetime) -> Scene:
    """Return what the rule's tasks are planned from; `date` and `local_time` speak in the contact's zone."""
    zone = zones_of(event.contact, rule_set.defaults).only or rule.timezone or rule_set.defaults.timezone
    return Scene(rule_set=rule_set, rule=rule, event=event, view={**view, ZONE: zone}, now=now)


def _plan_task(scene: Scene, action: Action, parent: str | None = None) -> Task:
    key = task_key(scene.event.id, scene.rule.id, action.name)
    draft = Draft(scene=scene, action=action, key=key)
    contact, timing, rotation = scene.event.contact, Timing(due_at=scene.now), None
    try:
        if action.type is TaskType.TEAM_TASK:
            rotation = draft_team(draft)
        else:
            contact, timing = draft_mindhunters(draft)
    except Exception as error:  # noqa: BLE001 - an error in one task must not stop the others
        draft.faults.append(f"this task could not be planned: {_said(error)}")
    if "description" not in draft.fields:
        draft.fields = {**draft.fields, "title": titled(scene.rule.id), "description": described("", key)}
    state, reason = _ending(draft.faults, timing)
    return Task(
        id=f"tk_{key[:_ID_CHARACTERS]}",
        key=key,
        event_id=scene.event.id,
        rule=scene.rule.id,
        name=action.name,
        type=action.type,
        provider=PROVIDER_OF[action.type],
        due_at=timing.due_at,
        expires_at=timing.expires_at,
        fields=draft.fields,
        retry=action.retry,
        if_unsure=action.if_unsure,
        rotation=rotation,
        contact=contact,
        state=state,
        reason=reason,
        note="; ".join(draft.notes) or None,
        rule_set=scene.rule_set.version,
        parent=parent,
        reactions=tuple(action.answers),
    )


def _ending(faults: Sequence[str], timing: Timing) -> tuple[TaskState, str | None]:
    """Return how planning leaves a task; an incomplete one is dead even if late, so that no later retry can send it."""
    if faults:
        return TaskState.DEAD, "; ".join(dict.fromkeys(faults))
    if timing.too_late:
        return TaskState.SUPPRESSED, timing.too_late
    return TaskState.PLANNED, None


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

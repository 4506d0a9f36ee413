"""What an event leads to: every listening rule gets a decision, every action of a rule that matched a task.

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Final

from rules.conditions import explain
from rules.drafting import Draft, Scene, described, titled
from rules.filters import ZONE
from rules.operators import LOCAL
from rules.plan_mindhunters import Timing, draft_mindhunters
from rules.plan_team import draft_team
from rules.rulebook import Action, Rule, RuleBook
from rules.times import to_utc
from rules.vocabulary import (
    PROVIDER_OF,
    Decision,
    DecisionOutcome,
    Event,
    EventState,
    Json,
    Plan,
    Task,
    TaskState,
    TaskType,
    instant,
)
from rules.zones import zones_of

_ID_CHARACTERS: Final = 20
_ERROR_LIMIT: Final = 300


def decide(book: RuleBook, event: Event, *, now: datetime) -> Plan:
    """Return all that an event leads to under a rule set at a moment; never raises for what an event holds.

    A rule with `stop: true` ends the rules after it in its file when a task of it is going to be made; one whose tasks
    all ended in planning stops nothing.
    """
    rules = book.listening(event.type)
    state = EventState.PROCESSED if rules else EventState.IGNORED
    decisions: list[Decision] = []
    tasks: list[Task] = []
    stopped_by: dict[str, str] = {}
    view: Mapping[str, Json] | Exception = _view(book, event, now)
    for rule in rules:
        if rule.file in stopped_by:
            reason = f"stopped by rule {stopped_by[rule.file]}, which matched before it in the same file"
            decisions.append(Decision(rule=rule.id, outcome=DecisionOutcome.STOPPED, reason=reason, place=rule.place))
            continue
        decision, made = _decide_rule(book, rule, event, view, now)
        decisions.append(decision)
        tasks.extend(made)
        if rule.stop and any(task.state is TaskState.PLANNED for task in made):
            stopped_by[rule.file] = rule.id
    return Plan(event_id=event.id, rule_set=book.version, state=state, decisions=tuple(decisions), tasks=tuple(tasks))


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
    book: RuleBook, event: Event, ended: Ended, trigger: str, *, now: datetime
) -> tuple[tuple[Task, ...], str | None]:
    """Return the tasks that answer a task's end under the rule set that planned it; never raises for what an event holds.

    `trigger` is one of `Task.reactions`. Conditions are not asked again. With no task there is a sentence that says why.
    """
    rule = next((rule for rule in book.rules if rule.id == ended.rule), None)
    action = rule.action(ended.name) if rule else None
    if rule is None or action is None or trigger not in action.answers:
        return (), f"rule set {book.version} has nothing that answers {trigger} of {ended.rule}/{ended.name}"
    view = _view(book, event, now)
    if isinstance(view, Exception):
        return (), f"what follows on {ended.name} could not be planned: {_said(view)}"
    scene = _scene(book, rule, event, {**view, **ended.view()}, now)
    return tuple(_plan_task(scene, each, parent=ended.id) for each in action.answers[trigger]), None


def task_key(event_id: str, rule_id: str, name: str) -> str:
    """Return the key under which a task can exist once: 64 hexadecimal characters."""
    return hashlib.sha256(json.dumps([event_id, rule_id, name]).encode()).hexdigest()


def _view(book: RuleBook, event: Event, now: datetime) -> Mapping[str, Json] | Exception:
    """Return what conditions and templates see, or what kept it from being made."""
    try:
        return {**event.view(), "now": instant(now), LOCAL: _local_time(book, event, None)}
    except Exception as error:  # noqa: BLE001 - what a sender nested without end must not stop the others
        return error


def _local_time(book: RuleBook, event: Event, zone: str | None) -> Callable[[datetime], datetime]:
    """Return how conditions read a moment without an offset: in the contact's zone, found when the first one is met.

    As for `at`: of several zones the latest moment counts; with none, the zone of the rule, of the defaults, or UTC.
    """

    @cache
    def zones() -> tuple[str, ...]:
        return zones_of(event.contact, book.defaults).zones or (zone or book.defaults.timezone or "UTC",)

    def in_utc(moment: datetime) -> datetime:
        return max(to_utc(moment, name) for name in zones())

    return in_utc


def _decide_rule(
    book: RuleBook, rule: Rule, event: Event, view: Mapping[str, Json] | Exception, now: datetime
) -> tuple[Decision, Sequence[Task]]:
    try:
        if isinstance(view, Exception):
            raise view
        if rule.timezone is not None:
            view = {**view, LOCAL: _local_time(book, event, rule.timezone)}
        failed = rule.test(view)
        if failed is not None:
            decision = Decision(
                rule=rule.id,
                outcome=DecisionOutcome.NOT_MATCHED,
                reason=explain(failed),
                failed=failed,
                place=rule.place,
            )
            return decision, ()
        scene = _scene(book, rule, event, view, now)
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


def _scene(book: RuleBook, rule: Rule, event: Event, view: Mapping[str, Json], now: datetime) -> Scene:
    """Return what the rule's tasks are planned from; `date` and `local_time` speak in the contact's zone."""
    zone = zones_of(event.contact, book.defaults).only or rule.timezone or book.defaults.timezone
    return Scene(book=book, rule=rule, event=event, view={**view, ZONE: zone}, now=now)


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
        rule_set=scene.book.version,
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

"""Running the tests that stand beside a rule: given this event at this moment, exactly these tasks come of this rule.

A test sees its own rule alone. The order of `expect` does not matter, the number does. A named field must have the value that
is written; a mapping may have more fields than are named. A task that would not be made (dead for want of a phone, say) counts
only for an entry that names its `state`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

from rules.conditions import explain
from rules.engine import decide
from rules.messages import did_you_mean, listed, shown
from rules.rule_set import Rule, RuleSet, RuleTest
from rules.times import parse_moment
from rules.vocabulary import (
    Contact,
    Decision,
    Event,
    Json,
    Plan,
    RuleFault,
    Subject,
    Task,
    TaskState,
    TaskType,
    covers,
    instant,
)

#: The correlation tag at the end of every description; nobody wants it in a test.
_TAG: Final = re.compile(r"\s*\[lw:[^\]]*\]\Z")

#: Wanted task: its type or name, and the fields it must have.
Wanted = tuple[str, Mapping[str, Json]]


def run_rule_tests(rule_set: RuleSet, *, now: datetime) -> list[RuleFault]:
    """Run every rule's tests; return a fault for each that fails, at its place. `now` is the moment of tests without `at`."""
    faults = []
    for rule in rule_set.rules:
        alone = replace(rule_set, rules=(rule,))
        zone = rule.timezone or rule_set.defaults.timezone or "UTC"
        for test in rule.tests:
            difference = _difference(alone, rule, test, now=now, zone=zone)
            if difference:
                place, message = test.place, f'test "{test.name}" fails: {difference}'
                faults.append(
                    RuleFault(file=place.file, line=place.line, column=place.column, path=test.path, message=message)
                )
    return faults


def _difference(alone: RuleSet, rule: Rule, test: RuleTest, *, now: datetime, zone: str) -> str | None:
    """Return in what the outcome differs from what the test expects, or None."""
    try:
        at = parse_moment(test.at, zone) if test.at else now
        event = event_of(test.given, at=at, zone=zone)
    except ValueError as error:
        return str(error)
    plan = decide(alone, event, now=at)
    views = [_view(task) for task in plan.tasks]
    pairs = _matched(test.expected, plan.tasks, views)
    if len(pairs) == len(test.expected) == len(plan.tasks):
        return None
    wanted = ", ".join(_named(entry) for entry in test.expected) or "no task"
    came = ", ".join(_called(task) for task in plan.tasks) or "no task"
    details = [*_reasons(rule, event, plan)]
    for index, entry in enumerate(test.expected):
        if index not in pairs:
            details.extend(_unknown(entry[0], rule))
            details.extend(_near_miss(entry, plan.tasks, views, taken=set(pairs.values())))
    return "; ".join([f"expected {wanted}; came {came}", *details])


def event_of(given: Mapping[str, Json], *, at: datetime, zone: str) -> Event:
    """Return the event that a test's `given` describes; what it leaves out is made up. Raises ValueError for a moment."""
    subject = given.get("subject")
    occurred_at, received_at = given.get("occurred_at"), given.get("received_at")
    return Event(
        id=given.get("id", "ev_test"),
        source=given.get("source", "test"),
        type=given.get("type", "test"),
        occurred_at=parse_moment(occurred_at, zone) if occurred_at else at,
        received_at=parse_moment(received_at, zone) if received_at else at,
        subject=Subject(kind=subject["kind"], id=subject["id"]) if subject else None,
        contact=Contact(**(given.get("contact") or {})),
        changed=given.get("changed") or {},
        attempt=given.get("attempt"),
        data=given.get("data", {}),
    )


def _view(task: Task) -> dict[str, Json]:
    """Return what a test can name of a task."""
    fields = dict(task.fields)
    if isinstance(fields.get("description"), str):
        fields["description"] = _TAG.sub("", fields["description"])
    return {
        **fields,
        "name": task.name,
        "due_at": instant(task.due_at),
        "expires_at": instant(task.expires_at) if task.expires_at else None,
        "state": task.state.value,
        "reason": task.reason,
        "if_unsure": task.if_unsure,
        "assign": task.rotation.team if task.rotation else fields.get("responsible_ids"),
    }


def _matched(expected: Sequence[Wanted], tasks: Sequence[Task], views: Sequence[Mapping[str, Json]]) -> dict[int, int]:
    """Return the largest pairing of entries with tasks, each task used once."""
    fits = [
        [index for index, task in enumerate(tasks) if _is_called(entry[0], task) and not _unlike(entry, views[index])]
        for entry in expected
    ]
    owner: dict[int, int] = {}

    def settle(entry: int, tried: set[int]) -> bool:
        for task in fits[entry]:
            if task not in tried:
                tried.add(task)
                if task not in owner or settle(owner[task], tried):
                    owner[task] = entry
                    return True
        return False

    for entry in range(len(expected)):
        settle(entry, set())
    return {entry: task for task, entry in owner.items()}


def _is_called(name: str, task: Task) -> bool:
    return name in {task.type.value, task.name}


def _unlike(entry: Wanted, view: Mapping[str, Json]) -> list[str]:
    """Return how a task differs from an entry, field by field."""
    name, fields = entry
    unlike = []
    if "state" not in fields and view["state"] != TaskState.PLANNED:
        unlike.append(f"{name} would not be made: {view['state']}, {view['reason']}")
    for field, wanted in fields.items():
        if field not in view:
            hint = did_you_mean(field, view)
            unlike.append(f"{name} has no field {field}{hint or f'; it has {listed(view)}'}")
        elif not _holds(wanted, view[field]):
            unlike.append(f"{name} has {field} {shown(view[field])}, not {shown(wanted)}")
    return unlike


def _holds(wanted: Json, seen: Json) -> bool:
    """Say whether a value is the wanted one; a mapping may hold more, a number is no truth value and no text."""
    if isinstance(wanted, dict):
        return isinstance(seen, Mapping) and all(
            key in seen and _holds(value, seen[key]) for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return (
            isinstance(seen, list | tuple)
            and len(seen) == len(wanted)
            and all(_holds(one, other) for one, other in zip(wanted, seen, strict=True))
        )
    return isinstance(wanted, bool) == isinstance(seen, bool) and bool(wanted == seen)


def _named(entry: Wanted) -> str:
    name, fields = entry
    return f"{name} {shown(dict(fields))}" if fields else name


def _called(task: Task) -> str:
    called = task.type.value if task.name == task.type.value else f"{task.type.value} `{task.name}`"
    return called if task.state is TaskState.PLANNED else f"{called} ({task.state.value}: {task.reason})"


def _reasons(rule: Rule, event: Event, plan: Plan) -> list[str]:
    """Say why nothing came, when nothing came."""
    if plan.tasks:
        return []
    if not any(covers(pattern, event.type) for pattern in rule.when):
        return [f"the rule listens to {', '.join(rule.when)}, and the event is {event.type}"]
    return [_why(decision) for decision in plan.decisions if decision.rule == rule.id]


def _why(decision: Decision) -> str:
    failed = decision.failed
    return f"{explain(failed)} ({failed.place})" if failed else decision.reason


def _unknown(name: str, rule: Rule) -> list[str]:
    """Say which word was meant by one that is neither a type of task nor the name of a task of this rule."""
    known = [*TaskType, *(action.name for action in rule.actions)]
    hint = did_you_mean(name, known) or f"; tasks are {listed(dict.fromkeys(known))}"
    return [] if name in known else [f"no task is called {shown(name)[1:-1]}{hint}"]


def _near_miss(
    entry: Wanted, tasks: Sequence[Task], views: Sequence[Mapping[str, Json]], *, taken: set[int]
) -> list[str]:
    """Say how the tasks of that name that are left over differ from an entry that none of them fits."""
    return [
        complaint
        for index, task in enumerate(tasks)
        if index not in taken and _is_called(entry[0], task)
        for complaint in _unlike(entry, views[index])
    ]

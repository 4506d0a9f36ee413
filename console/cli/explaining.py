"""An event's explanation: which rules listened, what each decided on which value, and what became of the tasks."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from console.cli.documents import (
    decision_document,
    event_document,
    planned_task_document,
    task_document,
)
from console.cli.words import as_json, counted, decision_lines, document, person, printable, shortened
from rules.engine import decide
from rules.loader import load
from rules.rule_set import RuleSet
from rules.rule_tests import event_of
from rules.schema import Given, messages_of
from rules.vocabulary import Event, EventState, Json, Plan, Problem, RuleError, Task, TaskState, instant
from rules.yaml_reader import written
from worker.ledger import StoredEvent, StoredTask

#: No webhook is larger, and a file without an end is never read on.
EVENT_LIMIT_BYTES: Final = 1024 * 1024
#: Longer numbers cannot be kept exactly by anybody who reads them.
DIGIT_LIMIT: Final = 300

#: What a state means for the person who reads it, and what can be done.
STATE_WORDS: Mapping[TaskState, str] = {
    TaskState.PLANNED: "planned, goes out when due",
    TaskState.QUEUED: "on its way to a worker",
    TaskState.SENDING: "being sent",
    TaskState.DELIVERED: "delivered",
    TaskState.WAITING: "waiting for its next try",
    TaskState.UNKNOWN: "unknown: the provider may have it; it is looked up there, and else yours to decide: `leadwire settle ID`",
    TaskState.DEAD: "dead; once the cause is mended: `leadwire retry ID`",
    TaskState.CANCELLED: "cancelled",
    TaskState.SUPPRESSED: "suppressed",
}

#: In these states a reason is a remark about the event, such as that it was replayed.
_DECIDED: Final = frozenset({EventState.PROCESSED, EventState.IGNORED, EventState.RECEIVED})


def explain_stored(
    stored: StoredEvent,
    made: Sequence[StoredTask],
    files: Mapping[str, str] | None,
    environment: Mapping[str, str],
    *,
    json_wanted: bool,
) -> str:
    """Explain an event of the ledger, with the tasks it led to, as text or as a JSON document."""
    listened = _listened_types(files, environment) if stored.state is EventState.IGNORED else ()
    if json_wanted:
        tasks = [task_document(task) for task in made]
        return document({**event_document(stored), "tasks": tasks, "listened_types": list(listened)})
    event = stored.event
    lines = [*_head(event), f"state    {_state_words(stored, listened)}"]
    if stored.reason and stored.rule_set and stored.state in _DECIDED:
        lines.append(f"note     {stored.reason}")
    for decision in stored.decisions:
        lines += ["", *decision_lines(decision)]
        for task in made:
            if task.rule == decision.rule:
                lines += _task_lines(task)
    return _text(lines)


def explain_file(path: Path, rule_set: RuleSet, *, now: datetime, json_wanted: bool) -> str:
    """Explain an event read from a JSON file under a rule set; nothing is recorded. Raises Problem for a bad file."""
    event = _event_in(path, rule_set, now)
    plan = decide(rule_set, event, now=now)
    listened = _types_of(rule_set)
    if json_wanted:
        return document(
            {
                "type": event.type,
                "state": str(plan.state),
                "rule_set": plan.rule_set,
                "decisions": [decision_document(decision) for decision in plan.decisions],
                "tasks": [planned_task_document(task) for task in plan.tasks],
                "listened_types": list(listened),
            }
        )
    lines = [f"{event.type} as given, under {rule_set.version}; nothing is recorded and nothing is made"]
    if plan.state is EventState.IGNORED:
        lines += [_ignored(event.type, listened)]
    lines += _plan_lines(plan)
    return _text(lines)


def _plan_lines(plan: Plan) -> Iterable[str]:
    for decision in plan.decisions:
        yield ""
        yield from decision_lines(decision)
        for task in plan.tasks:
            if task.rule == decision.rule:
                yield from _planned_lines(task)


def _event_in(path: Path, rule_set: RuleSet, now: datetime) -> Event:
    name = "standard input" if str(path) == "-" else shortened(str(path))
    given = _json_in(path, name)
    if not isinstance(given, dict) or not given.get("type"):
        raise Problem(f'{name}: must be an object such as {{"type": "lead.created", "contact": {{}}, "data": {{}}}}')
    try:
        Given.model_validate(given)
        return event_of(given, at=now, zone=rule_set.defaults.timezone or "UTC")
    except ValidationError as error:
        told = (f"{name}: {written(at)}: {message}" for at, message, _ in messages_of(error, Given))
        raise Problem("\n".join(told)) from error
    except ValueError as error:
        raise Problem(f"{name}: {error}") from error


def _json_in(path: Path, name: str) -> Json:
    """Return what a JSON file holds, `-` for standard input. Raises Problem with what is wrong and where."""
    try:
        if str(path) == "-":
            content = sys.stdin.buffer.read(EVENT_LIMIT_BYTES + 1)
        else:
            with path.open("rb") as file:
                content = file.read(EVENT_LIMIT_BYTES + 1)
    except OSError as error:
        raise Problem(f"{name}: cannot be read: {error.strerror}") from error
    if len(content) > EVENT_LIMIT_BYTES:
        raise Problem(f"{name}: is larger than 1 MiB, and no webhook may be")
    try:
        return json.loads(content.decode("utf-8-sig"), parse_int=_whole, parse_constant=_no_number)
    except UnicodeDecodeError as error:
        wrong = f"byte {error.start + 1} (0x{content[error.start]:02x}) is not UTF-8"
        raise Problem(f"{name}: {wrong}: save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        message = f"cannot be read as JSON from here on: {error.msg[0].lower()}{error.msg[1:]}"
        raise Problem(f"{name}:{error.lineno}:{error.colno}: {message}") from error
    except ValueError as error:
        raise Problem(f"{name}: {error}") from error
    except RecursionError as error:
        raise Problem(f"{name}: nested too deep") from error


def _whole(digits: str) -> int:
    if len(digits) > DIGIT_LIMIT:
        raise ValueError(f"holds a number of {len(digits)} digits, which nobody keeps exactly: quote it if it is text")
    return int(digits)


def _no_number(word: str) -> Json:
    raise ValueError(f"holds {word}, which is no number in JSON")


def _head(event: Event) -> list[str]:
    subject = f", {event.subject.kind} {event.subject.id}" if event.subject else ""
    return [
        f"event    {event.id}",
        f"what     {event.type} from {event.source} at {instant(event.occurred_at)}{subject}",
        f"contact  {person(event.contact)}",
    ]


def _state_words(stored: StoredEvent, listened: Sequence[str]) -> str:
    match stored.state:
        case EventState.PROCESSED:
            return f"processed: {counted(len(stored.decisions), 'rule')} listened, under {stored.rule_set}"
        case EventState.IGNORED if stored.reason is None or not stored.rule_set:
            return f"ignored: {stored.reason or _ignored(stored.event.type, listened)}"
        case EventState.IGNORED:
            return _ignored(stored.event.type, listened)
        case EventState.RECEIVED:
            return "received: not decided yet; a running worker (`leadwire up`) does it within seconds"
        case _:
            return f"{stored.state}: {stored.reason or 'no reason was recorded'}"


def _ignored(event_type: str, listened: Sequence[str]) -> str:
    listening = f"the rules listen to {', '.join(listened)}" if listened else "there are no rules"
    return f"ignored: no rule listens to {event_type}; {listening}"


def _listened_types(files: Mapping[str, str] | None, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return what the rules of the time listened to; () where their files can no longer be read."""
    if files is None:
        return ()
    try:
        return _types_of(load(files, environment, resolve=frozenset()))
    except RuleError:
        return ()


def _types_of(rule_set: RuleSet) -> tuple[str, ...]:
    return tuple(dict.fromkeys(pattern for rule in rule_set.rules for pattern in rule.when))


def _task_lines(task: StoredTask) -> Iterable[str]:
    yield f"    task {task.name}: {task.type} by {task.provider}, {STATE_WORDS[task.state]}"
    facts = [counted(task.attempts, "attempt"), f"due {instant(task.due_at)}"]
    if task.external_id:
        facts.append(f"at the provider {task.external_id}")
    if task.outcome:
        facts.append(f"there it is {task.outcome}")
    yield f"        {task.id}  {', '.join(facts)}"
    if task.reason:
        yield f"        reason  {task.reason}"
    if task.note:
        yield f"        note    {task.note}"


def _planned_lines(task: Task) -> Iterable[str]:
    yield f"    task {task.name}: {task.type} by {task.provider}, {task.state}, due {instant(task.due_at)}"
    facts = {name: as_json(value) for name, value in task.fields.items() if value is not None}
    answered = ", ".join(task.reactions)
    for name, words in {**facts, "reason": task.reason, "note": task.note, "answered": answered}.items():
        if words:
            yield f"        {name:<16} {words}"


def _text(lines: Iterable[str]) -> str:
    return "\n".join(printable(line) for line in lines)

"""Commands about rule files: `check` them, `explain` what they decide, print their `schema`.

`check` exits 0 when the files can be put in force, 1 with every fault at its `file:line:column`, 2 when there is nothing to
check. `explain` tells each rule's decision on an event of the ledger, or on an event in a file, for which it needs no ledger.
"""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import click
from pydantic import ValidationError

from console.cli.options import existing_ledger, json_option, settings_in_force
from console.cli.output import (
    STATE_WORDS,
    Document,
    as_json,
    as_plain,
    counted,
    decision_document,
    decision_lines,
    event_document,
    person,
    planned_task_document,
    print_json,
    printable_lines,
    shortened,
    task_document,
)
from ingress import sources
from ingress.sources.schema import definitions as source_definitions
from rules.engine import decide
from rules.loader import Files, in_order, inspect, load
from rules.rule_set import RuleSet
from rules.rule_tests import event_of, run_rule_tests
from rules.schema import Given, json_schema, messages_of
from rules.vocabulary import Event, EventState, Json, Plan, Problem, RuleError, RuleFault, Task, instant
from rules.yaml_reader import written
from worker.clock import utc_now
from worker.ledger import StoredEvent, StoredTask
from worker.rule_sets import WORKER_SECTIONS, read_files, together, unread_folders
from worker.settings import Settings

#: No webhook is larger, and a file without an end is never read on.
EVENT_LIMIT_BYTES: Final = 1024 * 1024
#: Longer numbers cannot be kept exactly by anybody who reads them.
DIGIT_LIMIT: Final = 300
#: In these states a reason is a remark about the event, such as that it was replayed.
DECIDED_STATES: Final = frozenset({EventState.PROCESSED, EventState.IGNORED, EventState.RECEIVED})


@click.command()
@click.argument("path", required=False)
@json_option
@click.option("--require-rules", is_flag=True, help="No rules or no sources is a fault too: for deployments.")
@click.pass_context
def check(ctx: click.Context, path: str | None, *, json_wanted: bool, require_rules: bool) -> None:
    """Read rule files, resolve their variables, build their sources and run the rules' own tests.

    PATH is a folder or one file; without it, what LEADWIRE_RULES names. In a folder every file named *.yaml or *.yml
    counts; hidden ones and sub-folders do not. Exit code: 0 good, 1 faults, 2 wrong use.
    """
    settings = settings_in_force()
    place, shown_as = rules_place(settings, path)
    files = read_files(place, shown_as=shown_as)
    rule_set, faults, warnings = _inspected(files, settings)
    warnings += unread_folders(place, shown_as=shown_as)
    if require_rules and rule_set is not None:
        faults += _nothing_to_do(rule_set, shown_as)
    if json_wanted:
        print_json(_check_document(files, rule_set, faults, warnings))
    else:
        shown = [f"warning: {warning}" for warning in warnings] + [str(fault) for fault in faults]
        click.echo(printable_lines([*shown, _closing(shown_as, files, rule_set, faults)]))
    ctx.exit(1 if faults else 0)


@click.command()
@click.argument("what", metavar="EVENT_ID|FILE", required=False)
@click.option("--last", is_flag=True, help="The event that came in last.")
@click.option("--rules", "rules_path", metavar="PATH", help="For FILE: the rules to explain with, not LEADWIRE_RULES.")
@json_option
def explain(what: str | None, rules_path: str | None, *, last: bool, json_wanted: bool) -> None:
    """Say for one event what every rule decided and why, and what became of its tasks.

    EVENT_ID (its beginning is enough) or --last explains an event of the ledger. FILE is a JSON file with an event as a
    rule's tests give it ({"type": "lead.created", "contact": {...}, "data": {...}}), or - for standard input: it is
    explained without a ledger, and nothing is made.
    """
    if bool(what) == last:
        raise click.UsageError("name one event: EVENT_ID, --last, or a FILE with an event as JSON")
    settings = settings_in_force()
    if what and (what == "-" or _is_there(Path(what)) or what.endswith(".json") or "/" in what):
        place, shown_as = rules_place(settings, rules_path)
        rule_set = _to_explain_with(read_files(place, shown_as=shown_as), settings)
        document, lines = _explain_file(what, rule_set)
    elif rules_path:
        raise click.UsageError("--rules goes with FILE: an event of the ledger keeps the decisions it was given")
    else:
        document, lines = _explain_stored(what, settings)
    if json_wanted:
        print_json(document)
    else:
        click.echo(printable_lines(lines))


@click.command()
def schema() -> None:
    """Print the JSON Schema of rule files, for editors that complete and check while you type."""
    made = json_schema()
    made["$defs"] |= source_definitions()
    made["properties"]["sources"]["additionalProperties"] = {"$ref": "#/$defs/SourceSection"}
    print_json(made)


def rules_place(settings: Settings, path: str | None) -> tuple[Path, str]:
    """Return where the rules are and how messages name that place; no such place is a wrong use."""
    if path is None and settings.rules is None:
        raise click.UsageError("say which rules: a PATH, or LEADWIRE_RULES in the environment")
    place = Path(path) if path is not None else settings.rules
    assert place is not None
    if path == "" or not _is_there(place):
        named = shortened(str(path or place)) if path != "" else "PATH is empty"
        raise click.UsageError(f"{named}: there is no such file or folder")
    if path is None and place.is_relative_to(Path.cwd()):
        return place, str(place.relative_to(Path.cwd()))
    return place, path or str(place)


def _is_there(place: Path) -> bool:
    """Say whether there is something at a place, readable or not; a name that no file can have is not there."""
    try:
        place.stat()
    except PermissionError:
        return True
    except (OSError, ValueError) as error:
        return getattr(error, "errno", None) == errno.ELOOP
    return True


# check


def _inspected(files: Files, settings: Settings) -> tuple[RuleSet | None, list[RuleFault], list[RuleFault]]:
    """Return the rule set, all that keeps it from being put in force, and what its author should know."""
    found = inspect(files, settings.environment)
    built, source_faults = sources.build(found.sources, settings.environment, public_url=settings.public_url)
    proved = run_rule_tests(found.rule_set, now=utc_now()) if found.rule_set else []
    faults = together(found.faults, [*source_faults, *proved], files)
    warned = [*found.warnings, *(warning for source in built.values() for warning in source.warnings)]
    return found.rule_set, list(faults), list(in_order(warned, files))


def _nothing_to_do(rule_set: RuleSet, shown_as: str) -> list[RuleFault]:
    """Return what a folder lacks that somebody wants to work with: an empty one is good, and never what was meant."""
    lacking = {
        "no rules: every event would be recorded and ignored: put your rule files here": rule_set.rules,
        "no sources: every webhook would be answered with 404: say under `sources` who may post": rule_set.sources,
    }
    return [
        RuleFault(file=shown_as, line=1, column=1, path="", message=message)
        for message, there in lacking.items()
        if not there
    ]


def _tests(rule_set: RuleSet) -> int:
    return sum(len(rule.tests) for rule in rule_set.rules)


def _check_document(
    files: Files, rule_set: RuleSet | None, faults: list[RuleFault], warnings: list[RuleFault]
) -> Document:
    return {
        "good": not faults,
        "files": list(files),
        "rules": [rule.id for rule in rule_set.rules] if rule_set else None,
        "sources": [source.name for source in rule_set.sources] if rule_set else None,
        "tests": _tests(rule_set) if rule_set else None,
        "rule_set": rule_set.version if rule_set else None,
        "faults": as_plain(faults),
        "warnings": as_plain(warnings),
    }


def _closing(shown_as: str, files: Files, rule_set: RuleSet | None, faults: list[RuleFault]) -> str:
    if faults or rule_set is None:
        of = counted(len({fault.file for fault in faults}), "file")
        return f"{counted(len(faults), 'fault')} in {of}: mend them and run `leadwire check {shown_as}` again."
    if not files:
        return f"{shown_as} holds no rule files: their names end in .yaml. Nothing listens to anything."
    rules, own = counted(len(rule_set.rules), "rule"), counted(len(rule_set.sources), "source")
    return (
        f"{counted(len(files), 'file')} good: {rules}, {own}, {counted(_tests(rule_set), 'test')} passed. "
        f"`LEADWIRE_RULES={shown_as} leadwire up` puts them to work."
    )


# explain: an event of the ledger


def _explain_stored(event_id: str | None, settings: Settings) -> tuple[Document, Iterable[str]]:
    """Explain an event of the ledger, the last when None: as a document and as lines. Raises Problem when there is none."""
    with existing_ledger(settings) as ledger:
        stored = ledger.queries.event(event_id) if event_id else ledger.queries.last_event()
        if stored is None and event_id:
            raise Problem(f"{shortened(event_id)}: no event has this id: see `leadwire events`")
        if stored is None:
            raise Problem("no event came in yet: `leadwire send SOURCE` posts a sample")
        kept = ledger.rule_sets.get(stored.rule_set) if stored.rule_set else None
        made = ledger.queries.tasks_of(stored.id)
    listened: Sequence[str] = ()
    if kept and stored.state is EventState.IGNORED:
        with suppress(RuleError):  # the files of the time can no longer be read
            listened = _listened_types(load(kept, settings.environment, resolve=frozenset()))
    tasks = [task_document(task) for task in made]
    document = {**event_document(stored), "tasks": tasks, "listened_types": list(listened)}
    return document, _event_lines(stored, made, listened)


def _listened_types(rule_set: RuleSet) -> Sequence[str]:
    return tuple(dict.fromkeys(pattern for rule in rule_set.rules for pattern in rule.when))


def _event_lines(stored: StoredEvent, made: Sequence[StoredTask], listened: Sequence[str]) -> Iterator[str]:
    event = stored.event
    subject = f", {event.subject.kind} {event.subject.id}" if event.subject else ""
    yield f"event    {event.id}"
    yield f"what     {event.type} from {event.source} at {instant(event.occurred_at)}{subject}"
    yield f"contact  {person(event.contact)}"
    yield f"state    {_state_words(stored, listened)}"
    if stored.reason and stored.rule_set and stored.state in DECIDED_STATES:
        yield f"note     {stored.reason}"
    for decision in stored.decisions:
        yield from ("", *decision_lines(decision))
        for task in made:
            if task.rule == decision.rule:
                yield from _task_lines(task)


def _state_words(stored: StoredEvent, listened: Sequence[str]) -> str:
    match stored.state:
        case EventState.PROCESSED:
            return f"processed: {counted(len(stored.decisions), 'rule')} listened, under {stored.rule_set}"
        case EventState.IGNORED if stored.reason and not stored.rule_set:
            return f"ignored: {stored.reason}"
        case EventState.IGNORED:
            return _ignored(stored.event.type, listened)
        case EventState.RECEIVED:
            return "received: not decided yet; a running worker (`leadwire up`) does it within seconds"
        case _:
            return f"{stored.state}: {stored.reason or 'no reason was recorded'}"


def _ignored(event_type: str, listened: Sequence[str]) -> str:
    listening = f"the rules listen to {', '.join(listened)}" if listened else "there are no rules"
    return f"ignored: no rule listens to {event_type}; {listening}"


def _task_lines(task: StoredTask) -> Iterator[str]:
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


# explain: an event in a file


def _to_explain_with(files: Files, settings: Settings) -> RuleSet:
    """Return the rule set; where all that is wrong is unset variables, with them as written, and a word about it."""
    try:
        return load(files, settings.environment, resolve=WORKER_SECTIONS)
    except RuleError as error:
        try:
            rule_set = load(files, {}, resolve=frozenset())
        except RuleError:
            raise error from None
    click.echo(
        "note: some variables are not set here: ${NAME} stands for them, also where values are compared", err=True
    )
    return rule_set


def _explain_file(path: str, rule_set: RuleSet) -> tuple[Document, Iterable[str]]:
    """Explain the event in a JSON file, `-` for standard input: as a document and as lines. Raises Problem for a bad file."""
    name = "standard input" if path == "-" else shortened(path)
    given = _json_in(path, name)
    if not isinstance(given, dict) or not given.get("type"):
        raise Problem(f'{name}: must be an object such as {{"type": "lead.created", "contact": {{}}, "data": {{}}}}')
    now = utc_now()
    try:
        Given.model_validate(given)
        event = event_of(given, at=now, zone=rule_set.defaults.timezone or "UTC")
    except ValidationError as error:
        told = (f"{name}: {written(at)}: {message}" for at, message, _ in messages_of(error, Given))
        raise Problem("\n".join(told)) from error
    except ValueError as error:
        raise Problem(f"{name}: {error}") from error
    plan = decide(rule_set, event, now=now)
    document = {
        "type": event.type,
        "state": str(plan.state),
        "rule_set": plan.rule_set,
        "decisions": [decision_document(decision) for decision in plan.decisions],
        "tasks": [planned_task_document(task) for task in plan.tasks],
        "listened_types": list(_listened_types(rule_set)),
    }
    return document, _plan_lines(plan, event, rule_set)


def _json_in(path: str, name: str) -> Json:
    """Return what a JSON file holds. Raises Problem with what is wrong and where."""
    try:
        if path == "-":
            content = sys.stdin.buffer.read(EVENT_LIMIT_BYTES + 1)
        else:
            with Path(path).open("rb") as file:
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


def _plan_lines(plan: Plan, event: Event, rule_set: RuleSet) -> Iterator[str]:
    yield f"{event.type} as given, under {rule_set.version}; nothing is recorded and nothing is made"
    if plan.state is EventState.IGNORED:
        yield _ignored(event.type, _listened_types(rule_set))
    for decision in plan.decisions:
        yield from ("", *decision_lines(decision))
        for task in plan.tasks:
            if task.rule == decision.rule:
                yield from _planned_lines(task)


def _planned_lines(task: Task) -> Iterator[str]:
    yield f"    task {task.name}: {task.type} by {task.provider}, {task.state}, due {instant(task.due_at)}"
    facts = {name: as_json(value) for name, value in task.fields.items() if value is not None}
    answered = ", ".join(task.reactions)
    for name, words in {**facts, "reason": task.reason, "note": task.note, "answered": answered}.items():
        if words:
            yield f"        {name:<16} {words}"

"""Checks rule files: the grammar first, then rules that involve several keys.

Such rules: names that must be unique, keys that exclude or need each other, whom tasks are assigned to. These checks read plain
values rather than models, and skip what the grammar has refused, so that one fault does not hide another. Warnings are for
valid rules that may not do what their author expects.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

from pydantic import ValidationError

from rules.messages import did_you_mean, kind, listed, nearest, shown
from rules.schema import SCHEDULES, Pending, RuleFile, allowed_keys, has_code, messages_of
from rules.times import parse_at, parse_span
from rules.vocabulary import (
    CANONICAL_EVENT_TYPES,
    OUTCOMES,
    PROVIDER_OF,
    UUID_PATTERN,
    Json,
    ProviderName,
    RuleFault,
    TaskType,
)
from rules.yaml_reader import Located, Path, SourceMap

#: So many times may a task follow on the end of another that followed itself: call, then message, then person.
ANSWER_LEVELS: Final = 3
#: More faults of one file than this help nobody.
FAULT_LIMIT: Final = 1_000

#: The fields Leadwire itself puts into a provider's request -> what a rule writes instead.
_OWN_FIELDS: Final[Mapping[ProviderName, Mapping[str, str]]] = {
    ProviderName.MINDHUNTERS: {
        "title": "`title`",
        "type": "the kind of task",
        "agent_uuid": "`agent`",
        "scheduled_at": "`at`",
        "description": "`description`",
        "contact_uuid": "`contact_uuid`",
        "contact": "`contact`",
        "campaign_uuid": "`campaign`",
        "timezone": "`timezone`",
        "priority": "`priority`",
        "expires_at": "`expires`",
        "max_attempts": "`redial: {max: ...}`",
        "task_data": "`template`, or the task `mindhunters_task` with `task_data`",
        "auto_queue": "`auto_queue`",
    },
    ProviderName.VAMBE: {
        "title": "`title`",
        "description": "`description`",
        "dueDate": "`due`",
        "dueTime": "`due`",
        "timezone": "`timezone`",
        "responsibleIds": "`assign`",
        "aiContactId": "`ai_contact_id`",
        "aiCustomerId": "`ai_customer_id`",
        "priority": "`priority`",
    },
}


@dataclass(frozen=True, slots=True)
class LocatedTask:
    """One task of a rule: `entry` is the task's entry in the list, `body` the mapping below its type."""

    type: TaskType
    entry: Located
    body: Located


@dataclass(slots=True, kw_only=True)
class ParsedFile:
    """One file as far as it could be read: its value with variables resolved, and its document if the grammar accepted it."""

    file: str
    value: Json
    places: SourceMap
    document: RuleFile | None = None
    #: How many faults there were before the grammar was asked: of the text itself and of its variables.
    early_faults: int = 0

    @property
    def root(self) -> Located:
        """The whole file as a located value."""
        return Located(self.value, (), self.places)

    def all_faults(self) -> Iterator[RuleFault]:
        """Yield the faults, leaving out later ones at the position of an early fault, which caused them."""
        early, late = self.places.faults[: self.early_faults], self.places.faults[self.early_faults :]
        taken = {(fault.line, fault.column) for fault in early}
        found = dict.fromkeys((*early, *(fault for fault in late if (fault.line, fault.column) not in taken)))
        yield from islice(found, FAULT_LIMIT)
        if len(found) > FAULT_LIMIT:
            last = max(found, key=lambda fault: (fault.line, fault.column))
            yield replace(last, path="", message=f"and {len(found) - FAULT_LIMIT:,} more faults in this file")

    def rules(self) -> Iterator[Located]:
        """Yield each rule that is a mapping."""
        return self.root["rules"].mappings()


def tasks_of(rule: Located) -> Iterator[LocatedTask]:
    """Yield each task of a rule, each followed by its follow-up tasks."""
    yield from _tasks_in(rule["then"])


def _tasks_in(entries: Located) -> Iterator[LocatedTask]:
    for entry in entries.mappings():
        for task_type in TaskType:
            if isinstance(entry[task_type].value, dict):
                yield LocatedTask(task_type, entry, entry[task_type.value])
        for answers in _answers_of(entry):
            yield from _tasks_in(answers)


def _answers_of(entry: Located) -> Iterator[Located]:
    """Yield the lists of tasks that answer an entry's ends."""
    if "on_failure" in entry:
        yield entry["on_failure"]
    for outcome in entry["on_outcome"].mapping:
        yield entry["on_outcome"][outcome]


def names_beside(path: Path) -> tuple[str, ...]:
    """Return the names, besides the event, that templates of the entry at this path may use."""
    if path[-2] == "on_failure":
        return ("failure",)
    return ("failure", "outcome") if path[-3] == "on_outcome" else ()


def validated(value: Json, places: SourceMap) -> RuleFile | None:
    """Return the file's document, or None after adding all grammar faults to `places`."""
    if value is None:
        return RuleFile()
    if not isinstance(value, dict):
        keys = listed(allowed_keys(RuleFile))
        places.add_fault((), f"a rule file must be a mapping with some of the keys {keys}; this is {kind(value)}")
        return None
    try:
        return RuleFile.model_validate(value)
    except ValidationError as error:
        for path, message, at_key in messages_of(error, RuleFile):
            places.add_fault(path, message, at_key=at_key)
        return None


def check_all(files: Sequence[ParsedFile], *, all_were_read: bool = True) -> None:
    """Check each file and all files together; faults are added to the files' `places`.

    `all_were_read`: every file could be read. If not, something missing may be in an unread file and is not reported.
    """
    _check_unique(files)
    roots = [file.root for file in files]
    teams = {name: team for root in roots for name, team in root["teams"].mapping.items()}
    defaults = next((root["defaults"].mapping for root in roots if root["defaults"].mapping), {})
    inherited = next((root["defaults"]["retry"].mapping for root in roots if root["defaults"].mapping), {})
    for file in files:
        _check_teams(file.root["teams"])
        _check_retry(file.root["defaults"]["retry"], {})
        for rule in file.rules():
            _check_entries(rule["then"], (), {})
            _check_event_types(rule["when"])
            for task in tasks_of(rule):
                _check_retry(task.entry["retry"], inherited)
                _check_extra_fields(task)
                if task.type is TaskType.TEAM_TASK:
                    _check_assign(task.body["assign"], teams)
                    _warn_of_zone(task.body, rule, defaults, teams)
                else:
                    _check_contact(task)
                    _warn_of_lateness(task.body)
    if all_were_read and roots and not any(root["rules"].value for root in roots):
        roots[0].warn("there are no rules: every event will be recorded and ignored")


def _check_unique(files: Iterable[ParsedFile]) -> None:
    """Find `defaults`, teams, sources and rule ids that stand twice."""
    first: dict[tuple[str, str], str] = {}
    for file in files:
        root = file.root
        if root["defaults"].mapping:
            place = str(root.places.of_key(("defaults",)))
            earlier = first.setdefault(("defaults", ""), place)
            if earlier != place:
                root["defaults"].key_fault(f"`defaults` stand in one file only: they already stand at {earlier}")
        for section in ("teams", "sources"):
            for name in root[section].mapping:
                place = str(root.places.of_key((section, name)))
                earlier = first.setdefault((section, name), place)
                if earlier != place:
                    root[section][name].key_fault(f"duplicate {section[:-1]} `{name}`: it already stands at {earlier}")
        for rule in file.rules():
            name = rule["id"].value
            if isinstance(name, str) and not isinstance(name, Pending):
                place = str(root.places.of_value(rule["id"].path))
                earlier = first.setdefault(("rule", name), place)
                if earlier != place:
                    rule["id"].fault(f"duplicate rule id {shown(name)}: it already stands at {earlier}")


def _check_entries(entries: Located, after: tuple[str, ...], first: dict[str, str]) -> None:
    """Find entries that make no task or several, two tasks of one name, and answers that go too deep.

    `after` are the names of the tasks whose end this list answers, `first` where each name of the rule stands first.
    """
    for entry in entries.mappings():
        found = [task_type.value for task_type in TaskType if task_type in entry]
        if len(found) > 1:
            entry[found[1]].key_fault(f"one entry makes one task: begin a new entry with `-` before `{found[1]}`")
        elif not found and set(entry.mapping) <= {"id", "retry", "if_unsure", "on_failure", "on_outcome"}:
            entry.fault(f"names no task: write one of {', '.join(TaskType)}")
        name = str(entry.mapping.get("id", found[0] if found else ""))
        if len(found) == 1:
            _check_task_name(entry, "/".join((*after, name)), first)
        on_outcome = entry["on_outcome"]
        if on_outcome.value == {}:
            on_outcome.key_fault(f"must hold at least one of {', '.join(OUTCOMES)}")
        elif "on_outcome" in entry and TaskType.TEAM_TASK in entry:
            on_outcome.key_fault("is for tasks of Mindhunters: Vambe's documents have no word for how a task ended")
        for answers in _answers_of(entry):
            if len(after) < ANSWER_LEVELS:
                outcome = (str(answers.path[-1]),) if answers.path[-2] == "on_outcome" else ()
                _check_entries(answers, (*after, "/".join((name, *outcome))), first)
            else:
                too_deep = f"tasks may follow on one another {ANSWER_LEVELS} deep, and this is one more: remove it"
                entry[str(answers.path[len(entry.path)])].key_fault(too_deep)


def _check_task_name(entry: Located, name: str, first: dict[str, str]) -> None:
    place = str(entry.places.of_value(entry.path))
    earlier = first.setdefault(name, place)
    if earlier == place:
        return
    before, _, own = name.rpartition("/")
    where = f"after `{before}`" if before else "in this rule"
    if "id" in entry:
        entry["id"].fault(f"a second task id {shown(own)} {where} (first at {earlier}): give it another one")
    else:
        entry.fault(f"a second task `{own}` without an `id` {where} (first at {earlier}): give each its own `id`")


def _check_event_types(when: Located) -> None:
    """Warn about event types that look like a misspelt canonical one, and about one that stands twice."""
    seen: set[str] = set()
    for located in when.items() if isinstance(when.value, list) else [when]:
        word = located.value
        if not isinstance(word, str):
            continue
        if word in seen:
            located.warn(f"{word} stands twice in this list")
        seen.add(word)
        if "*" in word or word in CANONICAL_EVENT_TYPES:
            continue
        lowered = word.strip().lower()
        meant = nearest(word, CANONICAL_EVENT_TYPES)
        if meant and abs(len(meant) - len(word)) <= 2 and meant.partition(".")[0][:2] == lowered[:2]:  # noqa: PLR2004 - a slip
            located.warn(f"{word} is no event type Leadwire knows; did you mean `{meant}`?")


def _warn_of_lateness(body: Located) -> None:
    """Warn about a task that is only to be made when it is too late for it."""
    at, expires = body["at"].value, body["expires"]
    try:
        after, life = parse_at(at).after, parse_span(expires.value)
    except ValueError:  # absent, a template, a variable, or refused already
        return
    if after is not None and after > life:
        expires.warn(f"expires {expires.value} after the event, before its `at` {at}: it can never be made")


def _check_retry(retry: Located, inherited: Mapping[str, Json]) -> None:
    """Find keys of a retry that its strategy has no use for."""
    base = {} if "strategy" in retry else inherited
    strategy = retry.mapping.get("strategy", base.get("strategy", "fixed"))
    if not retry.mapping or isinstance(strategy, Pending):
        return
    schedule = retry.mapping.get("schedule", base.get("schedule"))
    if strategy != "custom":
        if strategy in ("fixed", "exponential") and "schedule" in retry:
            retry["schedule"].key_fault(f"`schedule` is for strategy custom, and this one is {strategy}")
        if strategy == "fixed" and "factor" in retry:
            retry["factor"].key_fault("`factor` is for strategy exponential, and this one is fixed")
        return
    if schedule is None:
        retry.key_fault("missing key `schedule`: strategy custom needs its delays, as in [1m, 5m, 1h]")
    for key in ("delay", "factor"):
        if key in retry:
            retry[key].key_fault(f"strategy custom takes its delays from `schedule`: remove `{key}`")
    named = isinstance(schedule, str) and schedule in SCHEDULES
    delays = len(SCHEDULES[schedule]) if named else len(schedule) if isinstance(schedule, list) else None
    wanted = retry["max_attempts"]
    if delays and isinstance(wanted.value, int) and wanted.value > delays:
        wanted.fault(f"{wanted.value} retries need as many delays, and the schedule has {delays}")


def _check_extra_fields(task: LocatedTask) -> None:
    own, extra = _OWN_FIELDS[PROVIDER_OF[task.type]], task.body["extra_fields"]
    for key in extra.mapping:
        if key in own:
            extra[key].key_fault(f"Leadwire sends `{key}` itself and takes it from {own[key]}: remove it here")


def _check_contact(task: LocatedTask) -> None:
    contact = task.body["contact"]
    if "contact" in task.body and "contact_uuid" in task.body:
        task.body["contact_uuid"].key_fault("use `contact` or `contact_uuid`, not both: Mindhunters takes exactly one")
    if contact.value == {}:
        contact.fault("must hold `phone_number` or `email`")
    elif contact.mapping and task.type is not TaskType.MINDHUNTERS_TASK and "phone_number" not in contact:
        contact.warn("has no `phone_number`: without one this task ends `dead: no phone`")


def _check_assign(assign: Located, teams: Mapping[str, Json]) -> None:
    named = _final(assign)
    if named is not None and named not in teams and not _is_uuid(named):
        known = f"; the teams are {', '.join(sorted(teams))}" if teams else "; no team is defined"
        message = f"there is no team {shown(named)}{did_you_mean(named, teams) or known}"
        assign.fault(f"{message} (a user id that is no UUID stands in a list: [{named[:40]}])")
    for item in assign.items():
        user = _final(item)
        if user in teams:
            item.fault(f"{shown(user)} is a team: write assign: {user}, without the list")
        else:
            _warn_of_no_uuid(item)


def _check_teams(teams: Located) -> None:
    for name in teams.mapping:
        seen: set[str] = set()
        for member in teams[name]["members"].mappings():
            user = _final(member["id"])
            if user in seen:
                member["id"].fault(f"{shown(user)} stands twice in this team")
            seen |= {user} if user else set()
            _warn_of_no_uuid(member["id"])


def _warn_of_no_uuid(located: Located) -> None:
    user = _final(located)
    if user is not None and not _is_uuid(user):
        located.warn(f"{shown(user)} is no UUID, and Vambe's newer documents ask for one")


def _warn_of_zone(body: Located, rule: Located, defaults: Mapping[str, Json], teams: Mapping[str, Json]) -> None:
    """Warn about a team task whose due time nobody gives a zone."""
    due, assign = body["due"].value, body["assign"].value
    timed = due is not None and (not isinstance(due, dict) or "time" in due)
    team = teams.get(assign) if isinstance(assign, str) else None
    zoned = any("timezone" in mapping for mapping in (body, rule, defaults, team or {}))
    if timed and not zoned:
        body["due"].warn(
            "no time zone is set here, for the team, the rule or in `defaults`: UTC will be used", at_key=True
        )


def _final(located: Located) -> str | None:
    """Return a text that is not blank and final: no template, no variable that is not resolved here; None for all else."""
    value = located.value
    if not isinstance(value, str) or isinstance(value, Pending) or has_code(value):
        return None
    return str(value) if value.strip() else None


def _is_uuid(text: str) -> bool:
    return re.fullmatch(UUID_PATTERN, text) is not None

"""Whether a rule file is acceptable: the grammar, then what its keys mean together.

What must not repeat, what excludes or needs what, who is assigned: the checks after the grammar read the plain values, not the
models, and pass over what the grammar has refused already, because a fault in one place must not hide another. Warnings are
for rules that are sound and perhaps not what their author thinks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
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
from rules.yaml_reader import Path, SourceMap

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


@dataclass(slots=True, kw_only=True)
class ParsedFile:
    """One file as far as it has been read: its value with variables resolved, and its document if the grammar holds."""

    file: str
    value: Json
    places: SourceMap
    document: RuleFile | None = None
    #: How many faults there were before the grammar was asked: of the text itself and of its variables.
    early_faults: int = 0

    def telling(self) -> Iterator[RuleFault]:
        """Yield the faults, without those that only follow from an early one at the very same place."""
        early = self.places.faults[: self.early_faults]
        taken = {(fault.line, fault.column) for fault in early}
        late = self.places.faults[self.early_faults :]
        found = dict.fromkeys((*early, *(fault for fault in late if (fault.line, fault.column) not in taken)))
        yield from islice(found, FAULT_LIMIT)
        if len(found) > FAULT_LIMIT:
            last = max(found, key=lambda fault: (fault.line, fault.column))
            yield replace(last, path="", message=f"and {len(found) - FAULT_LIMIT:,} more faults in this file")

    def section(self, name: str) -> Mapping[str, Json]:
        """Return a section that is a mapping; empty when it is not there or something else."""
        return _mapping(_mapping(self.value).get(name))

    def rules(self) -> Iterator[tuple[Path, Mapping[str, Json]]]:
        """Yield each rule that is a mapping, with its path."""
        yield from _mappings(_mapping(self.value).get("rules"), ("rules",))

    def entries(self) -> Iterator[tuple[Path, TaskType, Mapping[str, Json], Mapping[str, Json]]]:
        """Yield each task of each rule: the path of its entry, its type, what is beside it, and what is inside it.

        What answers the end of a task comes right after it.
        """
        for path, rule in self.rules():
            yield from _entries(rule.get("then"), (*path, "then"))


def _entries(value: Json, path: Path) -> Iterator[tuple[Path, TaskType, Mapping[str, Json], Mapping[str, Json]]]:
    for at, entry in _mappings(value, path):
        for task_type in TaskType:
            if isinstance(entry.get(task_type), dict):
                yield at, task_type, entry, entry[task_type]
        for answers, tasks in answers_of(entry):
            yield from _entries(tasks, (*at, *answers))


def answers_of(entry: Mapping[str, Json]) -> Iterator[tuple[tuple[str, ...], Json]]:
    """Yield the lists of tasks that answer an entry's ends, each with the keys that lead to it."""
    if "on_failure" in entry:
        yield ("on_failure",), entry["on_failure"]
    for outcome, tasks in _mapping(entry.get("on_outcome")).items():
        yield ("on_outcome", outcome), tasks


def names_beside(path: Path) -> tuple[str, ...]:
    """Return what the templates of the entry at a path may name beside the event."""
    if path[-2] == "on_failure":
        return ("failure",)
    return ("failure", "outcome") if path[-3] == "on_outcome" else ()


def _mapping(value: Json) -> Mapping[str, Json]:
    return value if isinstance(value, dict) else {}


def _mappings(value: Json, path: Path) -> Iterator[tuple[Path, Mapping[str, Json]]]:
    for index, item in enumerate(value if isinstance(value, list) else ()):
        if isinstance(item, dict):
            yield (*path, index), item


def validated(value: Json, places: SourceMap) -> RuleFile | None:
    """Return a file's value as the grammar reads it, or None with all that the grammar refuses in `places`."""
    if value is None:
        return RuleFile()
    if not isinstance(value, dict):
        keys = listed(allowed_keys(RuleFile))
        places.complain((), f"a rule file must be a mapping with some of the keys {keys}; this is {kind(value)}")
        return None
    try:
        return RuleFile.model_validate(value)
    except ValidationError as error:
        for path, message, at_key in messages_of(error, RuleFile):
            places.complain(path, message, at_key=at_key)
        return None


def check_all(parseds: Iterable[ParsedFile], *, whole: bool = True) -> None:
    """Complain about what is wrong with all files together and with each by itself.

    `whole` says whether every file could be read: what is missing may stand in one that could not.
    """
    files = list(parseds)
    _unique_sections(files)
    _unique_rules(files)
    teams = {name for parsed in files for name in parsed.section("teams")}
    defaults = next((parsed.section("defaults") for parsed in files if parsed.section("defaults")), {})
    for parsed in files:
        _check_teams(parsed)
        inherited = _mapping(defaults.get("retry"))
        own = parsed.section("defaults").get("retry")
        _check_retry(_mapping(own), {}, parsed.places, ("defaults", "retry"))
        for path, rule in parsed.rules():
            _check_names(rule, parsed.places, path)
            _check_types(rule, parsed.places, path)
        for path, task_type, entry, body in parsed.entries():
            _check_retry(_mapping(entry.get("retry")), inherited, parsed.places, (*path, "retry"))
            _check_extra_fields(task_type, body, parsed.places, (*path, task_type.value))
            if task_type is TaskType.TEAM_TASK:
                _check_assign(body.get("assign"), teams, parsed.places, (*path, task_type.value, "assign"))
            else:
                _check_contact(task_type, body, parsed.places, (*path, task_type.value))
                _warn_of_lateness(body, parsed.places, (*path, task_type.value))
        _warn_of_zones(parsed, defaults, files)
    if whole and files and not any(_mapping(parsed.value).get("rules") for parsed in files):
        files[0].places.warn((), "there are no rules: every event will be recorded and ignored")


def _unique_sections(files: Iterable[ParsedFile]) -> None:
    first: dict[tuple[str, str], str] = {}
    for parsed in files:
        if parsed.section("defaults"):
            place = str(parsed.places.of_key(("defaults",)))
            earlier = first.setdefault(("defaults", ""), place)
            if earlier != place:
                parsed.places.complain(
                    ("defaults",), f"`defaults` stand in one file only: they already stand at {earlier}", at_key=True
                )
        for section in ("teams", "sources"):
            for name in parsed.section(section):
                place = str(parsed.places.of_key((section, name)))
                earlier = first.setdefault((section, name), place)
                if earlier != place:
                    message = f"duplicate {section[:-1]} `{name}`: it already stands at {earlier}"
                    parsed.places.complain((section, name), message, at_key=True)


def _unique_rules(files: Iterable[ParsedFile]) -> None:
    first: dict[str, str] = {}
    for parsed in files:
        for path, rule in parsed.rules():
            name = rule.get("id")
            if isinstance(name, str) and not isinstance(name, Pending):
                place = str(parsed.places.of_value((*path, "id")))
                earlier = first.setdefault(name, place)
                if earlier != place:
                    message = f"duplicate rule id {shown(name)}: it already stands at {earlier}"
                    parsed.places.complain((*path, "id"), message)


def _check_names(rule: Mapping[str, Json], places: SourceMap, path: Path) -> None:
    """Complain about entries that make no task or several, and about two tasks of one name."""
    _check_entries(rule.get("then"), places, (*path, "then"), (), {})


def _check_entries(value: Json, places: SourceMap, path: Path, after: tuple[str, ...], first: dict[str, str]) -> None:
    """Check the tasks of one list; `after` are the names of those whose end it answers, `first` where names stand."""
    kinds = ", ".join(TaskType)
    for at, entry in _mappings(value, path):
        found = [task_type.value for task_type in TaskType if task_type in entry]
        if len(found) > 1:
            message = f"one entry makes one task: begin a new entry with `-` before `{found[1]}`"
            places.complain((*at, found[1]), message, at_key=True)
        elif not found and set(entry) <= {"id", "retry", "if_unsure", "on_failure", "on_outcome"}:
            places.complain(at, f"names no task: write one of {kinds}")
        name = str(entry.get("id", found[0] if found else ""))
        if len(found) == 1:
            _check_name(entry, "/".join((*after, name)), places, at, first)
        _check_outcomes(entry, places, at)
        for keys, tasks in answers_of(entry):
            if len(after) >= ANSWER_LEVELS:
                message = f"tasks may follow on one another {ANSWER_LEVELS} deep, and this is one more: remove it"
                places.complain((*at, keys[0]), message, at_key=True)
            else:
                _check_entries(tasks, places, (*at, *keys), (*after, "/".join((name, *keys[1:]))), first)


def _check_name(entry: Mapping[str, Json], name: str, places: SourceMap, path: Path, first: dict[str, str]) -> None:
    place = str(places.of_value(path))
    earlier = first.setdefault(name, place)
    if earlier != place:
        own = name.rpartition("/")[2]
        what = f"task id {shown(own)}" if "id" in entry else f"task `{own}` without an `id`"
        where = "in this rule" if own == name else f"after `{name.rpartition('/')[0]}`"
        remedy = "give it another one" if "id" in entry else "give each its own `id`"
        at = (*path, "id") if "id" in entry else path
        places.complain(at, f"a second {what} {where} (first at {earlier}): {remedy}")


def _check_outcomes(entry: Mapping[str, Json], places: SourceMap, path: Path) -> None:
    if entry.get("on_outcome") == {}:
        places.complain((*path, "on_outcome"), f"must hold at least one of {', '.join(OUTCOMES)}", at_key=True)
    elif "on_outcome" in entry and TaskType.TEAM_TASK in entry:
        message = "is for tasks of Mindhunters: Vambe's documents have no word for how a task ended"
        places.complain((*path, "on_outcome"), message, at_key=True)


def _check_types(rule: Mapping[str, Json], places: SourceMap, path: Path) -> None:
    """Warn about event types that look like a misspelt canonical one, and about one that stands twice."""
    when = rule.get("when")
    seen: set[str] = set()
    for index, word in enumerate(when if isinstance(when, list) else [when]):
        if not isinstance(word, str):
            continue
        place = (*path, "when", index) if isinstance(when, list) else (*path, "when")
        if word in seen:
            places.warn(place, f"{word} stands twice in this list")
        seen.add(word)
        if "*" in word or word in CANONICAL_EVENT_TYPES:
            continue
        lowered = word.strip().lower()
        meant = nearest(word, CANONICAL_EVENT_TYPES)
        if meant and abs(len(meant) - len(word)) <= 2 and meant.partition(".")[0][:2] == lowered[:2]:  # noqa: PLR2004 - a slip
            places.warn(place, f"{word} is no event type Leadwire knows; did you mean `{meant}`?")


def _warn_of_lateness(body: Mapping[str, Json], places: SourceMap, path: Path) -> None:
    """Warn about a task that is only to be made when it is too late for it."""
    try:
        after, life = parse_at(body.get("at")).after, parse_span(body.get("expires"))
    except ValueError:  # absent, a template, a variable, or refused already
        return
    if after is not None and after > life:
        message = f"expires {body['expires']} after the event, before its `at` {body['at']}: it can never be made"
        places.warn((*path, "expires"), message)


def _check_retry(retry: Mapping[str, Json], inherited: Mapping[str, Json], places: SourceMap, path: Path) -> None:
    """Complain about keys of a retry that its strategy has no use for."""
    base = {} if "strategy" in retry else inherited
    strategy = retry.get("strategy", base.get("strategy", "fixed"))
    if not retry or isinstance(strategy, Pending):
        return
    schedule = retry.get("schedule", base.get("schedule"))
    if strategy == "custom" and schedule is None:
        places.complain(
            path, "missing key `schedule`: strategy custom needs its delays, as in [1m, 5m, 1h]", at_key=True
        )
    if strategy in {"fixed", "exponential"} and "schedule" in retry:
        remedy = f"`schedule` is for strategy custom, and this one is {strategy}"
        places.complain((*path, "schedule"), remedy, at_key=True)
    if strategy == "fixed" and "factor" in retry:
        places.complain((*path, "factor"), "`factor` is for strategy exponential, and this one is fixed", at_key=True)
    if strategy == "custom":
        for key in ("delay", "factor"):
            if key in retry:
                message = f"strategy custom takes its delays from `schedule`: remove `{key}`"
                places.complain((*path, key), message, at_key=True)
        named = isinstance(schedule, str) and schedule in SCHEDULES
        delays = len(SCHEDULES[schedule]) if named else len(schedule) if isinstance(schedule, list) else None
        wanted = retry.get("max_attempts")
        if delays and isinstance(wanted, int) and wanted > delays:
            message = f"{wanted} retries need as many delays, and the schedule has {delays}"
            places.complain((*path, "max_attempts"), message)


def _check_extra_fields(task_type: TaskType, body: Mapping[str, Json], places: SourceMap, path: Path) -> None:
    own = _OWN_FIELDS[PROVIDER_OF[task_type]]
    for key in _mapping(body.get("extra_fields")):
        if key in own:
            message = f"Leadwire sends `{key}` itself and takes it from {own[key]}: remove it here"
            places.complain((*path, "extra_fields", key), message, at_key=True)


def _check_contact(task_type: TaskType, body: Mapping[str, Json], places: SourceMap, path: Path) -> None:
    contact = body.get("contact")
    if "contact" in body and "contact_uuid" in body:
        message = "use `contact` or `contact_uuid`, not both: Mindhunters takes exactly one"
        places.complain((*path, "contact_uuid"), message, at_key=True)
    if contact == {}:
        places.complain((*path, "contact"), "must hold `phone_number` or `email`")
    elif isinstance(contact, dict) and task_type is not TaskType.MINDHUNTERS_TASK and "phone_number" not in contact:
        places.warn((*path, "contact"), "has no `phone_number`: without one this task ends `dead: no phone`")


def _check_assign(assign: Json, teams: set[str], places: SourceMap, path: Path) -> None:
    if isinstance(assign, str):
        if _settled(assign) and assign not in teams and not _is_uuid(assign) and assign.strip():
            known = f"; the teams are {', '.join(sorted(teams))}" if teams else "; no team is defined"
            message = f"there is no team {shown(assign)}{did_you_mean(assign, teams) or known}"
            places.complain(path, f"{message} (a user id that is no UUID stands in a list: [{assign[:40]}])")
        return
    for index, user in enumerate(assign if isinstance(assign, list) else ()):
        if not isinstance(user, str) or not _settled(user) or not user.strip():
            continue
        if user in teams:
            places.complain((*path, index), f"{shown(user)} is a team: write assign: {user}, without the list")
        elif not _is_uuid(user):
            places.warn((*path, index), _no_uuid(user))


def _check_teams(parsed: ParsedFile) -> None:
    for name, team in parsed.section("teams").items():
        seen: set[str] = set()
        for path, member in _mappings(_mapping(team).get("members"), ("teams", name, "members")):
            user = member.get("id")
            if not isinstance(user, str) or not _settled(user) or not user.strip():
                continue
            if user in seen:
                parsed.places.complain((*path, "id"), f"{shown(user)} stands twice in this team")
            seen.add(user)
            if not _is_uuid(user):
                parsed.places.warn((*path, "id"), _no_uuid(user))


def _warn_of_zones(parsed: ParsedFile, defaults: Mapping[str, Json], files: Iterable[ParsedFile]) -> None:
    """Warn about team tasks whose due time nobody gives a zone."""
    if "timezone" in defaults:
        return
    zoned = {name for other in files for name, team in other.section("teams").items() if "timezone" in _mapping(team)}
    for path, task_type, _, body in parsed.entries():
        due, rule = body.get("due"), parsed.value["rules"][path[1]]
        timed = due is not None and (not isinstance(due, dict) or "time" in due)
        if task_type is not TaskType.TEAM_TASK or not timed or "timezone" in body or "timezone" in rule:
            continue
        if body.get("assign") not in zoned if isinstance(body.get("assign"), str) else True:
            message = "no time zone is set here, for the team, the rule or in `defaults`: UTC will be used"
            parsed.places.warn((*path, task_type.value, "due"), message, at_key=True)


def _settled(text: str) -> bool:
    """Say whether a text is what it will be: neither a template nor a variable that is not resolved here."""
    return not isinstance(text, Pending) and not has_code(text)


def _is_uuid(text: str) -> bool:
    return re.fullmatch(UUID_PATTERN, text) is not None


def _no_uuid(user: str) -> str:
    return f"{shown(user)} is no UUID, and Vambe's newer documents ask for one"

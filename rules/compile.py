"""How the text of a rule becomes something to decide with: conditions as closures, templates compiled, spans as spans.

Two steps. `prepare` compiles what can be faulty in itself (conditions, templates), in every file and also beside other
faults. `rules_of` and the rest only put together what has passed every check.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import reduce
from operator import getitem
from typing import Final

from rules.conditions import compile_conditions, present_paths
from rules.consistency import Reading, names_beside
from rules.document import DefaultsText, DueOn, Entry, RuleTest, RuleText, Section, TeamTask, TeamText
from rules.document import Retry as RetryText
from rules.rule_set import Action, Defaults, Dynamic, Member, Proof, Rule, Team, Test
from rules.rule_set import DueOn as DueDate
from rules.templates import Template, compile_template, is_template
from rules.times import At
from rules.variables import Constant, Numeral, Pending
from rules.vocabulary import OUTCOMES, Json, RetryPolicy, TaskType
from rules.yaml_reader import Path, SourceMap

#: Keys of a task that `Action` has fields for; the others make up its body.
_FIELDS: Final = frozenset({"at", "expires", "due", "assign", "timezone"})
#: Keys of a task whose value is needed before there is an event: the grammar refuses templates there.
_FIXED: Final = frozenset({"expires", "type"})


@dataclass(slots=True, kw_only=True)
class Prepared:
    """What is compiled of one file, by the path where it stands."""

    tests: dict[Path, Test] = field(default_factory=dict)
    templates: dict[Path, Template] = field(default_factory=dict)


def prepare(reading: Reading) -> Prepared:
    """Compile every condition and template of a file, complaining into its places."""
    prepared = Prepared()
    for path, rule in reading.rules():
        at = (*path, "if")
        if rule.get("if") is not None:
            prepared.tests[at] = _conditions(rule["if"], reading.places, at)
    for path, kind, _, body in reading.entries():
        certain = present_paths(reading.value["rules"][path[1]].get("if"))
        for key, value in body.items():
            for at, text in _texts(value, (*path, kind.value, key)) if key not in _FIXED else ():
                template = compile_template(text, reading.places, at, names_beside(path))
                if template is not None:
                    prepared.templates[at] = template
                    _warn_of_missing(template, certain, reading.places, at)
    return prepared


def _warn_of_missing(template: Template, certain: frozenset[str], places: SourceMap, path: Path) -> None:
    """Warn about fields that an event may lack, so that this task alone would end dead."""
    missing = [name for name in template.optional_fields if name not in certain]
    if missing:
        names = " and ".join(missing)
        places.warn(path, f"without {names} this task ends dead: add `| default(...)`, or test for it under `if`")


def _conditions(value: Json, places: SourceMap, path: Path) -> Test:
    """Compile conditions; what is wrong only because a variable is not resolved in this process is no fault."""
    scratch = SourceMap(places.file, places.values, places.keys)
    test = compile_conditions(value, scratch, path)
    pending = {str(places.of_value(at)) for at in _pending(value, path)}
    places.warnings.extend(scratch.warnings)
    places.faults.extend(
        fault for fault in scratch.faults if f"{fault.file}:{fault.line}:{fault.column}" not in pending
    )
    return test


def _pending(value: Json, path: Path) -> Iterator[Path]:
    if isinstance(value, Pending):
        yield path
    elif isinstance(value, dict | list):
        for step, child in value.items() if isinstance(value, dict) else enumerate(value):
            before = len(path)
            for inner in _pending(child, (*path, step)):
                yield inner
                yield inner[: max(before, len(inner) - 1)]  # an operator complains of the list around it, too


def _texts(value: Json, path: Path) -> Iterator[tuple[Path, str]]:
    """Yield every template below a value, with its path."""
    if isinstance(value, dict | list):
        for step, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts(child, (*path, step))
    elif isinstance(value, str) and not isinstance(value, Constant | Pending) and is_template(value):
        yield path, value


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiler:
    """Puts the rules of one file together; every check has been passed."""

    reading: Reading
    prepared: Prepared
    teams: Mapping[str, Team]
    retry: RetryText | None

    def rules(self) -> Iterator[Rule]:
        """Yield the rules of the file, in order."""
        document = self.reading.document
        for index, rule in enumerate((document.rules if document else None) or ()):
            yield self._rule(rule, ("rules", index))

    def _rule(self, rule: RuleText, path: Path) -> Rule:
        return Rule(
            id=str(rule.id),
            description=None if rule.description is None else str(rule.description),
            when=rule.when if isinstance(rule.when, tuple) else (str(rule.when),),
            test=self.prepared.tests.get((*path, "if"), _always),
            actions=self._actions(rule.then, (*path, "then"), ()),
            stop=rule.stop is True,
            timezone=_text(rule.timezone),
            file=self.reading.file,
            place=self._place(path),
            tests=tuple(
                self._proof(test, rule, (*path, "tests", index)) for index, test in enumerate(rule.tests or ())
            ),
        )

    def _actions(self, entries: Sequence[Entry] | None, path: Path, after: tuple[str, ...]) -> tuple[Action, ...]:
        """Return what a list of tasks makes; `after` are the names of those whose end it answers."""
        return tuple(
            self._action(entry, kind, (*path, index), after)
            for index, entry in enumerate(entries or ())
            for kind in TaskType
            if getattr(entry, kind) is not None
        )

    def _action(self, entry: Entry, kind: TaskType, path: Path, after: tuple[str, ...]) -> Action:
        task = getattr(entry, kind)
        inside = (*path, kind.value)
        raw = reduce(getitem, inside, self.reading.value)
        name = (*after, str(entry.id or kind.value))
        body = {
            key: self._dynamic(_counted(value, getattr(task, key)), (*inside, key))
            for key, value in raw.items()
            if key not in _FIELDS
        }
        if isinstance(task, TeamTask):
            body.setdefault("priority", "medium")
        at, expires = getattr(task, "at", None), getattr(task, "expires", None)
        return Action(
            name="/".join(name),
            type=kind,
            place=self._place(path),
            at=at if isinstance(at, At) else self.prepared.templates.get((*inside, "at")),
            expires=expires if isinstance(expires, timedelta) else None,
            due=self._due(getattr(task, "due", None), (*inside, "due")),
            assign=self._assign(getattr(task, "assign", None), (*inside, "assign")),
            timezone=self._dynamic(task.timezone, (*inside, "timezone")),
            body=body,
            retry=policy(entry.retry, self.retry),
            if_unsure=entry.if_unsure,
            on_failure=self._actions(entry.on_failure, (*path, "on_failure"), name),
            on_outcome={
                outcome: self._actions(answers, (*path, "on_outcome", outcome), (*name, outcome))
                for outcome in OUTCOMES
                if entry.on_outcome is not None and (answers := getattr(entry.on_outcome, outcome))
            },
        )

    def _due(self, due: Json, path: Path) -> timedelta | DueDate | Template | None:
        if isinstance(due, DueOn):
            return DueDate(date=self._dynamic(due.date, (*path, "date")), time=self._dynamic(due.time, (*path, "time")))
        return due if isinstance(due, timedelta) else self.prepared.templates.get(path)

    def _assign(self, assign: Json, path: Path) -> Team | tuple[str | Template, ...] | Template | None:
        if isinstance(assign, list):
            return tuple(self._dynamic(user, (*path, index)) for index, user in enumerate(assign))
        if path in self.prepared.templates:
            return self.prepared.templates[path]
        return None if assign is None else self.teams.get(assign, (str(assign),))

    def _dynamic(self, value: Json, path: Path) -> Dynamic:
        """Return a value with its templates compiled."""
        if isinstance(value, dict):
            return {key: self._dynamic(child, (*path, key)) for key, child in value.items()}
        if isinstance(value, list):
            return [self._dynamic(child, (*path, index)) for index, child in enumerate(value)]
        if isinstance(value, str):
            return self.prepared.templates.get(path) or str(value)
        return value

    def _proof(self, test: RuleTest, rule: RuleText, path: Path) -> Proof:
        raw = self.reading.value["rules"][path[1]]["tests"][path[3]]
        given = dict(raw["given"])
        if "type" not in given and isinstance(rule.when, tuple) and "*" not in rule.when[0]:
            given["type"] = rule.when[0]
        return Proof(name=str(test.name), at=_text(test.at), given=given, expected=test.expect, place=self._place(path))

    def _place(self, path: Path) -> str:
        return str(self.reading.places.of_value(path))


def _counted(raw: Json, checked: Json) -> Json:
    """Return a value as written, but the number that the grammar read where a variable gave one."""
    if isinstance(raw, dict) and isinstance(checked, Section):
        return {key: _counted(value, getattr(checked, key)) for key, value in raw.items()}
    return checked if isinstance(raw, Numeral) and isinstance(checked, int | float) else raw


def _always(_: Mapping[str, Json]) -> None:
    """Hold: a rule without `if` acts on every event it listens to."""


def _text(value: Json) -> str | None:
    return str(value) if isinstance(value, str) else None


def team(name: str, text: TeamText) -> Team:
    """Return a team as decisions use it."""
    return Team(
        name=name,
        by="round_robin" if text.by == "round_robin" else "everyone",
        timezone=_text(text.timezone),
        members=tuple(Member(name=_text(member.name), id=str(member.id)) for member in text.members),
    )


def defaults(text: DefaultsText) -> Defaults:
    """Return the defaults as decisions use them."""
    zones = {country: str(zone) for country, zone in (text.country_zones or {}).items()}
    return Defaults(timezone=_text(text.timezone), country_zones=zones)


def policy(text: RetryText | None, inherited: RetryText | None) -> RetryPolicy:
    """Return the retry of a task: what it says, then what `defaults` say, then the documented defaults.

    A task that names a `strategy` starts afresh and takes nothing from `defaults`.
    """
    said: dict[str, Json] = {}
    for source in (inherited, text):
        if source is not None:
            if "strategy" in source.model_fields_set:
                said.clear()
            said |= {key: getattr(source, key) for key in source.model_fields_set}
    if said.get("strategy") == "custom" and "max_attempts" not in said and isinstance(said.get("schedule"), tuple):
        said["max_attempts"] = len(said["schedule"])
    return RetryPolicy(**{key: value for key, value in said.items() if not isinstance(value, Pending)})

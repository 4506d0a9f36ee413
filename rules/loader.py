"""From the texts of rule files to a rule set: read, put variables in, check, compile.

All files are read, checked and compiled as far as they go, and every fault of every file comes out at once; only without any
fault there is a rule set. Nothing is ever accepted and ignored. A file that could not be read at all is a fault like any
other, and what has no fault in itself (the sources) is handed on, so that others can look for more.

The value of a variable, `${NAME}`, becomes part of a text and nothing else: it is not read as YAML again, and template marks in
it are not marks. Only where one `${NAME}` is the whole value and a number is wanted, a plain number is read from it. `$${` stands
for a literal `${`. Names beginning with `LEADWIRE_` are the worker's own settings, some of them secret, and out of reach. A
fault may show what a variable of a rule holds (an agent that is no UUID, say), cut short; the secrets of sources are read
elsewhere and never shown.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from hashlib import sha256
from typing import Final

from rules.conditions import Condition, compile_conditions, present_paths
from rules.messages import did_you_mean, shown
from rules.rule_set import Action, Defaults, DueDate, Dynamic, Member, Rule, RuleSet, RuleTest, SourceText, Team
from rules.schema import (
    Constant,
    DefaultsSpec,
    DueSpec,
    Numeral,
    Pending,
    RetrySpec,
    RuleSpec,
    RuleTestSpec,
    TaskEntry,
    TeamSpec,
    TeamTask,
    has_code,
)
from rules.templates import TEMPLATE_LIMIT_CHARACTERS, Template, compile_template, is_template
from rules.times import At
from rules.validation import ParsedFile, check_all, names_beside, tasks_of, validated
from rules.vocabulary import OUTCOMES, Json, RetryPolicy, RuleError, RuleFault, TaskType
from rules.yaml_reader import Path, SourceMap, read, written

# Loading -------------------------------------------------------------------------------------------------------------

#: The sections in which `${NAME}` can be resolved: "rules" stands for everything that is no source.
SECTIONS: Final = frozenset({"rules", "sources"})

#: What each file holds, by its name as messages print it; a Fault for one that could not be read.
Files = Mapping[str, str | RuleFault]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """The result of reading a set of files: the rule set, when there is no fault, and everything found besides.

    `sources` are those that could be read, even when there are faults. `faults` and `warnings` are in the order of the files.
    """

    rule_set: RuleSet | None
    sources: tuple[SourceText, ...]
    faults: tuple[RuleFault, ...]
    warnings: tuple[RuleFault, ...]


def load(files: Files, environment: Mapping[str, str], *, resolve: frozenset[str] = SECTIONS) -> RuleSet:
    """Return the rule set of these files, or raise RuleError with all faults of all of them.

    `files` maps each file's name, as messages shall print it, to its text (or the fault that kept it from being read), in
    the order that counts. `${NAME}` is taken from `environment` in the sections named by `resolve`; elsewhere it stays as
    it is written, and what depends on its value is not checked.
    """
    found = inspect(files, environment, resolve=resolve)
    if found.rule_set is None:
        raise RuleError(found.faults)
    return found.rule_set


def inspect(files: Files, environment: Mapping[str, str], *, resolve: frozenset[str] = SECTIONS) -> Inspection:
    """Read and check these files; the arguments are those of `load`. Never raises: faults are in the result."""
    resolver = _Resolver(environment, resolve)
    texts = {file: text for file, text in files.items() if isinstance(text, str)}
    unread = [fault for fault in files.values() if isinstance(fault, RuleFault)]
    parsed = [_parse(file, text, resolver) for file, text in texts.items()]
    all_were_read = not unread and all(one.value is not None or not one.places.faults for one in parsed)
    check_all(parsed, all_were_read=all_were_read)
    compiled = [_compile(one) for one in parsed]
    faults = in_order([*unread, *(fault for one in parsed for fault in one.all_faults())], files)
    warnings = in_order((fault for one in parsed for fault in one.places.warnings), files)
    if not files:
        message = "there are no rule files: every event will be recorded and ignored"
        warnings = (RuleFault(file="rules", line=1, column=1, path="", message=message),)
    sources = tuple(
        SourceText(name=name, value=value, places=one.places, path=("sources", name))
        for one in parsed
        for name, value in one.root["sources"].mapping.items()
    )
    rule_set = None if faults else _rule_set(texts, parsed, compiled, sources, warnings)
    return Inspection(rule_set=rule_set, sources=sources, faults=faults, warnings=warnings)


def _parse(file: str, text: str, resolver: _Resolver) -> ParsedFile:
    value, places = read(text, file, salvage=True)
    parsed = ParsedFile(file=file, value=resolver.resolve(value, places), places=places)
    parsed.early_faults = len(places.faults)
    if value is not None or not places.faults:
        parsed.document = validated(parsed.value, places)
    return parsed


def _rule_set(
    texts: Mapping[str, str],
    parsed: Sequence[ParsedFile],
    compiled: Sequence[_Compiled],
    sources: tuple[SourceText, ...],
    warnings: tuple[RuleFault, ...],
) -> RuleSet:
    documents = [one.document for one in parsed if one.document]
    defaults = next((document.defaults for document in documents if document.defaults), DefaultsSpec())
    teams = {name: _team(name, team) for document in documents for name, team in (document.teams or {}).items()}
    return RuleSet(
        version=version_of(texts),
        rules=tuple(
            rule
            for one, ready in zip(parsed, compiled, strict=True)
            for rule in _RuleBuilder(parsed=one, compiled=ready, teams=teams, retry=defaults.retry).rules()
        ),
        defaults=Defaults(timezone=defaults.timezone, country_zones=defaults.country_zones or {}),
        teams=teams,
        sources=sources,
        warnings=warnings,
        files=dict(texts),
    )


def version_of(files: Mapping[str, str]) -> str:
    """Return the content hash that identifies a rule set; equal names and texts in equal order give the same hash."""
    digest = sha256()
    for name, text in files.items():
        for part in (name, text):
            data = part.encode("utf-8", errors="surrogatepass")
            digest.update(b"%d:" % len(data))
            digest.update(data)
    return f"rs_{digest.hexdigest()[:16]}"


def in_order(faults: Iterable[RuleFault], files: Iterable[str]) -> tuple[RuleFault, ...]:
    """Return faults in the order of `files`, and within a file by line."""
    order = {file: number for number, file in enumerate(files)}
    return tuple(sorted(faults, key=lambda fault: (order.get(fault.file, len(order)), fault.line, fault.column)))


# Variables -----------------------------------------------------------------------------------------------------------

_REFERENCE: Final = re.compile(r"\$\$\{|\$\{(?P<inside>[^}\n]*)(?P<end>\}?)")
_ALONE: Final = re.compile(r"\$\{[^}\n]*\}")
#: A number as rule files write it; more digits than these are no number anybody means.
_PLAIN_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,18})?", re.ASCII)
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: Where template code begins -> where it ends.
_MARKS: Final = {"{{": "}}", "{%": "%}", "{#": "#}"}
_OPENING: Final = re.compile(r"\{[{%#]")
#: The quoted texts inside template code.
_QUOTED: Final = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Resolver:
    """Puts the values of variables into texts, section by section; `sections` names those that are resolved."""

    environment: Mapping[str, str]
    sections: frozenset[str]

    def resolve(self, document: Json, places: SourceMap) -> Json:
        """Return the document with its variables resolved; complain about those that cannot be."""
        if not isinstance(document, dict):
            return document
        resolved = {}
        for section, value in document.items():
            wanted = ("sources" if section == "sources" else "rules") in self.sections
            resolved[section] = self._walk(value, places, (section,)) if wanted else _marked(value)
        return resolved

    def _walk(self, value: Json, places: SourceMap, path: Path) -> Json:
        if isinstance(value, dict):
            for key in value:
                if "${" in key:
                    places.add_fault((*path, key), "a variable cannot stand in a key", at_key=True)
            return {key: self._walk(child, places, (*path, key)) for key, child in value.items()}
        if isinstance(value, list):
            return [self._walk(child, places, (*path, index)) for index, child in enumerate(value)]
        if isinstance(value, str) and "${" in value:
            return self._text(value, places, path)
        return value

    def _text(self, text: str, places: SourceMap, path: Path) -> str:
        lookup = _Lookup(self.environment, lambda message: places.add_fault(path, message))
        takes_templates = path[0] == "rules" and path[2:3] == ("then",)
        if takes_templates and is_template(_REFERENCE.sub("", text)):
            if len(text) > TEMPLATE_LIMIT_CHARACTERS:
                return text  # refused as a template for its length; nothing is spent on it here
            spliced = "".join(_spliced(text, lookup))
            return Pending(text) if lookup.failed else spliced
        result = _REFERENCE.sub(lookup.plain, text)
        if lookup.failed:
            return Pending(text)
        if (takes_templates or path[0] == "defaults") and _ALONE.fullmatch(text) and _PLAIN_NUMBER.fullmatch(result):
            return Numeral(result)
        return Constant(result) if takes_templates and is_template(result) else result


class _Lookup:
    """The variables of one text: three ways to write a value, and one complaint for each that has none."""

    def __init__(self, environment: Mapping[str, str], add_fault: Callable[[str], None]) -> None:
        self._environment = environment
        self._add_fault = add_fault
        self.failed = False

    def plain(self, found: re.Match[str]) -> str:
        """Return the value as it is."""
        if found.group() == "$${":
            return "${"
        value = self._value(found)
        return found.group() if value is None else value

    def outside(self, found: re.Match[str]) -> str:
        """Return the value so that a template prints it as it is."""
        value = self.plain(found)
        return "{{ '" + _escaped(value) + "' }}" if re.search(r"[{}%#\n]", value) and not self.failed else value

    def quoted(self, found: re.Match[str]) -> str:
        """Return the value as it is written inside a quoted text of a template."""
        return _escaped(self.plain(found))

    def bare(self, found: re.Match[str]) -> str:
        """Complain: inside `{{ }}` a value without quotes would be read as code."""
        if found.group() != "$${":
            self._add_fault(f"inside {{{{ }}}} a variable must stand in quotes: '{found.group()}'")
            self.failed = True
        return "none"

    def _value(self, found: re.Match[str]) -> str | None:
        name = found["inside"]
        value = self._environment.get(name)
        if not found["end"]:
            complaint = f"`{shown(found.group())[1:-1]}` is never closed: write ${{NAME}}, or $${{ for the text ${{"
        elif not _NAME.fullmatch(name):
            complaint = (
                f"{shown(found.group())} names no variable: write ${{NAME}} with letters, digits and _ only, "
                "or $${ for the text ${"
            )
        elif name.upper().startswith("LEADWIRE_"):
            complaint = (
                f"${{{name}}} is a setting of Leadwire itself and out of reach for rules: use a name of your own"
            )
        elif value is None:
            hint = did_you_mean(name, (known for known in self._environment if not known.startswith("LEADWIRE_")))
            complaint = f"the environment variable {name} is not set{hint}"
        elif not _is_text(value):
            complaint = f"the environment variable {name} is not UTF-8 text"
        else:
            return value
        self._add_fault(complaint)
        self.failed = True
        return None


def _spliced(text: str, lookup: _Lookup) -> Iterator[str]:
    """Yield the parts of a template with the variables in place, each written as its surroundings need."""
    end = 0
    for begin, stop in _code(text):
        yield _REFERENCE.sub(lookup.outside, text[end:begin])
        end, inner = stop, 0
        block = text[begin:stop]
        for quoted in _QUOTED.finditer(block):
            yield _REFERENCE.sub(lookup.bare, block[inner : quoted.start()])
            yield _REFERENCE.sub(lookup.quoted, quoted.group())
            inner = quoted.end()
        yield _REFERENCE.sub(lookup.bare, block[inner:])
    yield _REFERENCE.sub(lookup.outside, text[end:])


def _code(text: str) -> Iterator[tuple[int, int]]:
    """Yield begin and end of each stretch of template code."""
    position = 0
    unclosed: set[str] = set()
    while opening := _OPENING.search(text, position):
        closing = _MARKS[opening.group()]
        end = -1 if closing in unclosed else text.find(closing, opening.end())
        if end < 0:
            unclosed.add(closing)
            position = opening.end()
        else:
            position = end + len(closing)
            yield opening.start(), position


def _escaped(value: str) -> str:
    """Return a value as the inside of a quoted text in template code, every mark in it disarmed."""
    escaped = value.encode("unicode_escape").decode("ascii")
    return re.sub(r"""['"{}%#]""", lambda found: f"\\x{ord(found.group()):02x}", escaped)


def _is_text(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _marked(value: Json) -> Json:
    """Return a value of an unresolved section, its texts with variables marked as pending."""
    if isinstance(value, dict):
        return {key: _marked(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_marked(child) for child in value]
    return Pending(value) if isinstance(value, str) and "${" in value else value


# Compiling -----------------------------------------------------------------------------------------------------------

#: Keys of a task that `Action` has fields for; the others make up its body.
_FIELDS: Final = frozenset({"at", "expires", "due", "assign", "timezone"})
#: Keys of a task whose value is needed before there is an event: the grammar refuses templates there.
_FIXED: Final = frozenset({"expires", "type"})


@dataclass(slots=True, kw_only=True)
class _Compiled:
    """What is compiled of one file, by the path where it stands."""

    conditions: dict[Path, Condition] = field(default_factory=dict)
    templates: dict[Path, Template] = field(default_factory=dict)


def _compile(parsed: ParsedFile) -> _Compiled:
    """Compile every condition and template of a file, also beside other faults; new ones go to its places."""
    compiled = _Compiled()
    for rule in parsed.rules():
        conditions = rule["if"]
        if conditions.value is not None:
            compiled.conditions[conditions.path] = _compile_conditions(conditions.value, parsed.places, conditions.path)
        certain = present_paths(conditions.value)
        for task in tasks_of(rule):
            beside = names_beside(task.entry.path)
            for key, value in task.body.mapping.items():
                for at, text in _templates_in(value, (*task.body.path, key)) if key not in _FIXED else ():
                    template = compile_template(text, parsed.places, at, beside)
                    if template is not None:
                        compiled.templates[at] = template
                        _warn_of_missing(template, certain, parsed.places, at)
    return compiled


def _warn_of_missing(template: Template, certain: frozenset[str], places: SourceMap, path: Path) -> None:
    """Warn about fields that an event may lack, so that this task alone would end dead."""
    missing = [name for name in template.optional_fields if name not in certain]
    if missing:
        names = " and ".join(missing)
        places.warn(path, f"without {names} this task ends dead: add `| default(...)`, or test for it under `if`")


def _compile_conditions(value: Json, places: SourceMap, path: Path) -> Condition:
    """Compile conditions; what is wrong only because a variable is not resolved in this process is no fault."""
    scratch = SourceMap(places.file, places.values, places.keys)
    condition = compile_conditions(value, scratch, path)
    pending = {str(places.of_value(at)) for at in _pending(value, path)}
    places.warnings.extend(scratch.warnings)
    places.faults.extend(
        fault for fault in scratch.faults if f"{fault.file}:{fault.line}:{fault.column}" not in pending
    )
    return condition


def _pending(value: Json, path: Path) -> Iterator[Path]:
    """Yield the paths of unresolved values and of the lists around them, of which an operator complains, too."""
    if isinstance(value, Pending):
        yield path
    for step, child in _children(value):
        for inner in _pending(child, (*path, step)):
            yield inner
            yield inner[: max(len(path), len(inner) - 1)]


def _templates_in(value: Json, path: Path) -> Iterator[tuple[Path, str]]:
    """Yield every template below a value, with its path."""
    for step, child in _children(value):
        yield from _templates_in(child, (*path, step))
    if has_code(value) and not isinstance(value, Pending):
        yield path, value


def _children(value: Json) -> Iterable[tuple[str | int, Json]]:
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, list) else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _RuleBuilder:
    """Puts the rules of one file together; every check has been passed."""

    parsed: ParsedFile
    compiled: _Compiled
    teams: Mapping[str, Team]
    retry: RetrySpec | None

    def rules(self) -> Iterator[Rule]:
        """Yield the rules of the file, in order."""
        document = self.parsed.document
        for index, rule in enumerate((document.rules if document else None) or ()):
            yield self._rule(rule, ("rules", index))

    def _rule(self, rule: RuleSpec, path: Path) -> Rule:
        return Rule(
            id=rule.id,
            description=rule.description,
            when=rule.when,
            condition=self.compiled.conditions.get((*path, "if"), _always),
            actions=self._actions(rule.then, (*path, "then"), ()),
            stop=rule.stop,
            timezone=rule.timezone,
            file=self.parsed.file,
            place=self._place(path),
            tests=tuple(self._test(test, rule, (*path, "tests", index)) for index, test in enumerate(rule.tests or ())),
        )

    def _actions(self, entries: Sequence[TaskEntry] | None, path: Path, after: tuple[str, ...]) -> tuple[Action, ...]:
        """Return what a list of tasks makes; `after` are the names of those whose end it answers."""
        return tuple(
            self._action(entry, task_type, (*path, index), after)
            for index, entry in enumerate(entries or ())
            for task_type in TaskType
            if getattr(entry, task_type) is not None
        )

    def _action(self, entry: TaskEntry, task_type: TaskType, path: Path, after: tuple[str, ...]) -> Action:
        task = getattr(entry, task_type)
        inside = (*path, task_type.value)
        name = (*after, entry.id or task_type.value)
        body = task.model_dump(exclude_unset=True, exclude=_FIELDS, warnings=False)
        if isinstance(task, TeamTask):
            body.setdefault("priority", "medium")
        at = getattr(task, "at", None)
        return Action(
            name="/".join(name),
            type=task_type,
            place=self._place(path),
            at=at if isinstance(at, At) else self.compiled.templates.get((*inside, "at")),
            expires=getattr(task, "expires", None),
            due=self._due(getattr(task, "due", None), (*inside, "due")),
            assign=self._assign(getattr(task, "assign", None), (*inside, "assign")),
            timezone=self._dynamic(task.timezone, (*inside, "timezone")),
            body={key: self._dynamic(value, (*inside, key)) for key, value in body.items()},
            retry=_policy(entry.retry, self.retry),
            if_unsure=entry.if_unsure,
            on_failure=self._actions(entry.on_failure, (*path, "on_failure"), name),
            on_outcome={
                outcome: self._actions(answers, (*path, "on_outcome", outcome), (*name, outcome))
                for outcome in OUTCOMES
                if entry.on_outcome is not None and (answers := getattr(entry.on_outcome, outcome))
            },
        )

    def _due(self, due: DueSpec | timedelta | str | None, path: Path) -> timedelta | DueDate | Template | None:
        if isinstance(due, DueSpec):
            return DueDate(date=self._dynamic(due.date, (*path, "date")), time=self._dynamic(due.time, (*path, "time")))
        return due if isinstance(due, timedelta) else self.compiled.templates.get(path)

    def _assign(
        self, assign: str | list[str] | None, path: Path
    ) -> Team | tuple[str | Template, ...] | Template | None:
        if isinstance(assign, list):
            return tuple(self._dynamic(user, (*path, index)) for index, user in enumerate(assign))
        if path in self.compiled.templates:
            return self.compiled.templates[path]
        return None if assign is None else self.teams.get(assign, (assign,))

    def _dynamic(self, value: Json, path: Path) -> Dynamic:
        """Return a value with its templates compiled."""
        if isinstance(value, dict):
            return {key: self._dynamic(child, (*path, key)) for key, child in value.items()}
        if isinstance(value, list):
            return [self._dynamic(child, (*path, index)) for index, child in enumerate(value)]
        if isinstance(value, str):
            return self.compiled.templates.get(path) or str(value)
        return value

    def _test(self, test: RuleTestSpec, rule: RuleSpec, path: Path) -> RuleTest:
        given = dict(self.parsed.value["rules"][path[1]]["tests"][path[3]]["given"])
        if "type" not in given and "*" not in rule.when[0]:
            given["type"] = rule.when[0]
        return RuleTest(
            name=test.name,
            at=test.at,
            given=given,
            expected=tuple(test.expect),
            path=written(path),
            place=self.parsed.places.of_value(path),
        )

    def _place(self, path: Path) -> str:
        return str(self.parsed.places.of_value(path))


def _always(_: Mapping[str, Json]) -> None:
    """Hold: a rule without `if` acts on every event it listens to."""


def _team(name: str, spec: TeamSpec) -> Team:
    members = tuple(Member(name=member.name, id=member.id) for member in spec.members)
    return Team(name=name, by=spec.by, timezone=spec.timezone, members=members)


def _policy(spec: RetrySpec | None, inherited: RetrySpec | None) -> RetryPolicy:
    """Return the retry of a task: what it says, then what `defaults` say, then the documented defaults.

    A task that names a `strategy` starts afresh and takes nothing from `defaults`.
    """
    said: dict[str, Json] = {}
    for source in (inherited, spec):
        if source is not None:
            if "strategy" in source.model_fields_set:
                said.clear()
            said |= {key: getattr(source, key) for key in source.model_fields_set}
    if said.get("strategy") == "custom" and "max_attempts" not in said:
        said["max_attempts"] = len(said["schedule"])
    return RetryPolicy(**said)

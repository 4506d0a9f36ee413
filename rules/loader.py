"""Which rule files are acceptable, and what is said about those that are not.

All files are read, checked and compiled as far as they go, and every fault of every file comes out at once; only without any
fault there is a rule set. Nothing is ever accepted and ignored. A file that could not be read at all is a fault like any
other, and what has no fault in itself (the sources) is handed on, so that others can look for more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from rules import compile as compiling
from rules.complaints import validated
from rules.consistency import Reading, check_all
from rules.document import DefaultsText
from rules.rule_set import RuleSet, SourceText
from rules.variables import Resolver
from rules.vocabulary import RuleError, RuleFault
from rules.yaml_reader import read

#: The sections in which `${NAME}` can be resolved: "rules" stands for everything that is no source.
SECTIONS: Final = frozenset({"rules", "sources"})

#: What each file holds, by its name as messages print it; a Fault for one that could not be read.
Files = Mapping[str, str | RuleFault]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What was found in a set of files: the rule set if there is no fault, and all that can be said in any case.

    `sources` are those that could be read, also beside faults; `faults` and `warnings` are in the order of the files.
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
    """Return what these files hold and all that is wrong with them; arguments as those of `load`. Never raises."""
    resolver = Resolver(environment, resolve)
    texts = {file: text for file, text in files.items() if isinstance(text, str)}
    unread = [fault for fault in files.values() if isinstance(fault, RuleFault)]
    readings = [_reading(file, text, resolver) for file, text in texts.items()]
    whole = not unread and all(reading.value is not None or not reading.places.faults for reading in readings)
    check_all(readings, whole=whole)
    prepared = [compiling.prepare(reading) for reading in readings]
    faults = in_order([*unread, *(fault for reading in readings for fault in reading.telling())], files)
    warnings = in_order((fault for reading in readings for fault in reading.places.warnings), files)
    sources = tuple(
        SourceText(name=name, value=value, places=reading.places, path=("sources", name))
        for reading in readings
        for name, value in reading.section("sources").items()
    )
    warnings = warnings or tuple(_no_files(files))
    rule_set = None if faults else _book(texts, readings, prepared, sources, warnings)
    return Inspection(rule_set=rule_set, sources=sources, faults=faults, warnings=warnings)


def _reading(file: str, text: str, resolver: Resolver) -> Reading:
    value, places = read(text, file, salvage=True)
    reading = Reading(file=file, value=resolver.resolve(value, places), places=places)
    reading.early_faults = len(places.faults)
    if value is not None or not places.faults:
        reading.document = validated(reading.value, places)
    return reading


def _book(
    texts: Mapping[str, str],
    readings: list[Reading],
    prepared: list[compiling.Prepared],
    sources: tuple[SourceText, ...],
    warnings: tuple[RuleFault, ...],
) -> RuleSet:
    documents = [reading.document for reading in readings if reading.document]
    defaults = next((document.defaults for document in documents if document.defaults), DefaultsText())
    teams = {
        name: compiling.team(name, text) for document in documents for name, text in (document.teams or {}).items()
    }
    return RuleSet(
        version=version_of(texts),
        rules=tuple(
            rule
            for reading, ready in zip(readings, prepared, strict=True)
            for rule in compiling.Compiler(reading=reading, prepared=ready, teams=teams, retry=defaults.retry).rules()
        ),
        defaults=compiling.defaults(defaults),
        teams=teams,
        sources=sources,
        warnings=warnings,
        files=dict(texts),
    )


def version_of(files: Mapping[str, str]) -> str:
    """Return the content hash that names a rule set: the same names and texts in the same order, the same version."""
    digest = sha256()
    for name, text in files.items():
        for part in (name, text):
            data = part.encode("utf-8", errors="surrogatepass")
            digest.update(b"%d:" % len(data))
            digest.update(data)
    return f"rs_{digest.hexdigest()[:16]}"


def _no_files(files: Files) -> Iterable[RuleFault]:
    if not files:
        message = "there are no rule files: every event will be recorded and ignored"
        yield RuleFault(file="rules", line=1, column=1, path="", message=message)


def in_order(faults: Iterable[RuleFault], files: Iterable[str]) -> tuple[RuleFault, ...]:
    """Return faults file by file in the order of `files`, and in each from top to bottom."""
    order = {file: number for number, file in enumerate(files)}
    return tuple(sorted(faults, key=lambda fault: (order.get(fault.file, len(order)), fault.line, fault.column)))

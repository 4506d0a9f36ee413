"""Which rule files are acceptable, and what is said about those that are not.

All files are read, checked and compiled as far as they go, and every fault of every file comes out at once; only without any
fault there is a rule book. Nothing is ever accepted and ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Final

from rules import compile as compiling
from rules.complaints import validated
from rules.consistency import Reading, check_all
from rules.document import DefaultsText
from rules.rulebook import RuleBook, SourceText
from rules.variables import Resolver
from rules.vocabulary import Fault, RuleError
from rules.yaml_text import read

#: The sections in which `${NAME}` can be resolved: "rules" stands for everything that is no source.
SECTIONS: Final = frozenset({"rules", "sources"})


def load(files: Mapping[str, str], environment: Mapping[str, str], *, resolve: frozenset[str] = SECTIONS) -> RuleBook:
    """Return the rule book of these files, or raise RuleError with all faults of all of them.

    `files` maps each file's name, as messages shall print it, to its text, in the order that counts. `${NAME}` is taken from
    `environment` in the sections named by `resolve`; elsewhere it stays as it is written, and what depends on its value
    is not checked.
    """
    resolver = Resolver(environment, resolve)
    readings: list[Reading] = []
    for file, text in files.items():
        value, places = read(text, file, salvage=True)
        reading = Reading(file=file, value=resolver.resolve(value, places), places=places)
        reading.early_faults = len(places.faults)
        if value is not None or not places.faults:
            reading.document = validated(reading.value, places)
        readings.append(reading)
    check_all(readings)
    prepared = [compiling.prepare(reading) for reading in readings]
    faults = _sorted(fault for reading in readings for fault in reading.telling())
    if faults:
        raise RuleError(faults)
    return _book(files, readings, prepared)


def _book(files: Mapping[str, str], readings: list[Reading], prepared: list[compiling.Prepared]) -> RuleBook:
    documents = [reading.document for reading in readings if reading.document]
    defaults = next((document.defaults for document in documents if document.defaults), DefaultsText())
    teams = {
        name: compiling.team(name, text) for document in documents for name, text in (document.teams or {}).items()
    }
    warnings = _sorted(fault for reading in readings for fault in reading.places.warnings)
    return RuleBook(
        version=version_of(files),
        rules=tuple(
            rule
            for reading, ready in zip(readings, prepared, strict=True)
            for rule in compiling.Compiler(reading=reading, prepared=ready, teams=teams, retry=defaults.retry).rules()
        ),
        defaults=compiling.defaults(defaults),
        teams=teams,
        sources=tuple(
            SourceText(name=name, value=value, places=reading.places, path=("sources", name))
            for reading in readings
            for name, value in reading.section("sources").items()
        ),
        warnings=tuple(warnings or _no_files(files)),
        files=dict(files),
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


def _no_files(files: Mapping[str, str]) -> Iterable[Fault]:
    if not files:
        message = "there are no rule files: every event will be recorded and ignored"
        yield Fault(file="rules", line=1, column=1, path="", message=message)


def _sorted(faults: Iterable[Fault]) -> list[Fault]:
    """Return faults file by file in the order of reading, and in each from top to bottom."""
    found = list(faults)
    order: dict[str, int] = {}
    for fault in found:
        order.setdefault(fault.file, len(order))
    return sorted(found, key=lambda fault: (order[fault.file], fault.line, fault.column))

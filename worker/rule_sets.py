"""Which rule set is in force: the folder's if it is valid, otherwise the last valid one in the ledger.

An accepted set is stored in the ledger under its content hash, which every decision and task carries. Only regular files are
opened: reading a pipe could block, a device might never end. An unreadable file is a fault of that file and does not hide
faults of the others.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Final

from rules.loader import Files, in_order, inspect, load
from rules.rule_set import RuleSet, SourceText
from rules.vocabulary import RuleError, RuleFault, SettingsError
from worker.ledger import Ledger

#: Sections whose variables a worker needs; the ingress needs those of `sources`.
WORKER_SECTIONS: Final = frozenset({"rules"})
INGRESS_SECTIONS: Final = frozenset({"sources"})
log = logging.getLogger(__name__)

#: A little over the limit of one rule file, so that reading stops early and the loader still sees it is too large.
READ_LIMIT_BYTES: Final = 1_048_576 + 1
SUFFIXES: Final = frozenset({".yaml", ".yml"})
#: So many entries of a sub-folder are looked at for rule files that would not be read.
SUBFOLDER_ENTRIES: Final = 1_000

#: Earlier rule sets that a process keeps compiled.
REMEMBERED_SETS: Final = 8

_KINDS: Final[tuple[tuple[Callable[[int], bool], str], ...]] = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def read_files(place: Path, *, shown_as: str | None = None) -> dict[str, str | RuleFault]:
    """Return the text of every `.yaml` and `.yml` file of a folder, or of the one file `place` is, by name.

    Files come in the order of their names; hidden ones are left out. Names are as messages print them: relative to the
    folder, or below `shown_as` when the caller wants its own spelling of the folder. Bytes that are not UTF-8 come as
    surrogates, for the loader to complain about. What cannot be read comes as the fault that says why. Raises
    SettingsError when there is nothing at `place`.
    """
    whole = shown_as or str(place)
    try:
        mode = place.stat().st_mode
        if not stat.S_ISDIR(mode):
            name = place.name if shown_as is None and stat.S_ISREG(mode) else whole
            return {name: _text_of(place, name)}
        names = sorted(path.name for path in place.iterdir() if _counts(path.name))
    except (FileNotFoundError, NotADirectoryError):
        raise SettingsError(
            f"{shown_as or place}: there is no such file or folder: set LEADWIRE_RULES to your rules folder"
        ) from None
    except OSError as error:
        return {whole: _unread(whole, f"cannot be read: {error.strerror}")}
    prefix = _prefix(shown_as)
    return {prefix + one: _text_of(place / one, prefix + one) for one in names}


def unread_folders(place: Path, *, shown_as: str | None = None) -> list[RuleFault]:
    """Return a warning for each sub-folder that holds rule files: only the folder itself is read."""
    prefix = _prefix(shown_as)
    try:
        below = sorted(path for path in place.iterdir() if not path.name.startswith(".") and path.is_dir())
    except OSError:
        return []
    message = "sub-folders are not read, and this one holds rule files: move them one level up"
    return [
        _unread(prefix + folder.name, message) for folder in below if not _counts(folder.name) and _holds_rules(folder)
    ]


def _holds_rules(folder: Path) -> bool:
    try:
        return any(_counts(path.name) for path in islice(folder.rglob("*"), SUBFOLDER_ENTRIES))
    except OSError:
        return False


def _counts(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")


def _prefix(shown_as: str | None) -> str:
    return f"{shown_as.rstrip('/')}/" if shown_as else ""


def _text_of(path: Path, name: str) -> str | RuleFault:
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            what = next((words for holds, words in _KINDS if holds(mode)), "no file")
            return _unread(name, f"is {what}: rules stand in files; move it or give it another name")
        with path.open("rb") as file:
            return file.read(READ_LIMIT_BYTES).decode("utf-8", "surrogateescape")
    except OSError as error:
        linked = os.path.islink(path)  # noqa: PTH114 - never raises, also where the folder may not be searched
        target = f" (it is a link to {path.readlink()})" if linked else ""
        return _unread(name, f"cannot be read: {error.strerror}{target}")


def _unread(name: str, message: str) -> RuleFault:
    return RuleFault(file=name, line=1, column=1, path="", message=message)


def _nothing_more(_: Sequence[SourceText]) -> Sequence[RuleFault]:
    return ()


def rules_in_force(
    place: Path | None,
    ledger: Ledger,
    environment: Mapping[str, str],
    *,
    resolve: frozenset[str],
    now: datetime,
    faults_of: Callable[[Sequence[SourceText]], Sequence[RuleFault]] = _nothing_more,
) -> RuleSet:
    """Return the rule set to decide with, and store it in the ledger.

    `resolve` names the sections whose variables this process needs; `faults_of` checks the sources. Raises RuleError (all
    faults) or SettingsError when the folder cannot be accepted and the ledger has no earlier set.
    """
    try:
        if place is None:
            raise SettingsError("LEADWIRE_RULES is not set: it names the folder with your rule files")
        rule_set = accepted(read_files(place), environment, resolve=resolve, faults_of=faults_of)
    except (RuleError, SettingsError) as fault:
        kept = ledger.rule_sets.latest()
        if kept is None:
            raise
        version, files = kept
        log.error("the rules in %s cannot be accepted; the last good set %s stays in force:\n%s", place, version, fault)
        return load(files, environment, resolve=resolve)
    ledger.rule_sets.store(rule_set.version, rule_set.files, now)
    return rule_set


def accepted(
    files: Files,
    environment: Mapping[str, str],
    *,
    resolve: frozenset[str],
    faults_of: Callable[[Sequence[SourceText]], Sequence[RuleFault]],
) -> RuleSet:
    """Return the rule set of these files. Raises RuleError with the faults of rules and sources together."""
    found = inspect(files, environment, resolve=resolve)
    faults = together(found.faults, faults_of(found.sources), files)
    if faults or found.rule_set is None:
        raise RuleError(faults)
    return found.rule_set


def together(first: Sequence[RuleFault], then: Sequence[RuleFault], files: Files) -> tuple[RuleFault, ...]:
    """Merge two lists of faults in the order of the files; of two at one position the first is kept."""
    taken = {(fault.file, fault.line, fault.column) for fault in first}
    more = (fault for fault in then if (fault.file, fault.line, fault.column) not in taken)
    return in_order([*first, *more], files)


class KeptRuleSets:
    """The stored rule sets that planned tasks still in progress, compiled by this process; the latest are cached."""

    def __init__(
        self, ledger: Ledger, current: RuleSet, environment: Mapping[str, str], resolve: frozenset[str]
    ) -> None:
        self._ledger = ledger
        self._environment = environment
        self._resolve = resolve
        self._books = {current.version: current}

    def rule_set(self, version: str) -> RuleSet:
        """Return a rule set by version. SettingsError when it does not exist, RuleError when it is no longer valid.

        The latter usually means that a variable is not set any more.
        """
        known = self._books.get(version)
        if known is not None:
            return known
        files = self._ledger.rule_sets.get(version)
        if files is None:
            raise SettingsError(f"rule set {version} is not in the ledger any more")
        rule_set = load(files, self._environment, resolve=self._resolve)
        if len(self._books) > REMEMBERED_SETS:
            del self._books[list(self._books)[1]]  # the oldest but the one in force
        self._books[version] = rule_set
        return rule_set

"""Which rule set is in force: the folder's, if it can be accepted; else the last good one that the ledger keeps.

An accepted set is stored in the ledger under its content hash, which every decision and task carries.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Final

from rules.load import load
from rules.rulebook import RuleBook
from rules.vocabulary import RuleError, SettingsError
from worker.ledger import Ledger

log = logging.getLogger(__name__)

#: A little over the limit of one rule file, so that reading stops early and the loader still sees it is too large.
READ_LIMIT_BYTES: Final = 1_048_576 + 1

Files = Mapping[str, str]


def read_files(place: Path, *, shown_as: str | None = None) -> dict[str, str]:
    """Return the text of every `.yaml` and `.yml` file of a folder, or of the one file `place` is, by name.

    Files come in the order of their names; hidden ones are left out. Names are as messages print them: relative to the
    folder, or below `shown_as` when the caller wants its own spelling of the folder. Bytes that are not UTF-8 come as
    surrogates, for the loader to complain about. Raises SettingsError when `place` cannot be read.
    """
    if not place.exists():
        raise SettingsError(
            f"{shown_as or place}: there is no such file or folder: set LEADWIRE_RULES to your rules folder"
        )
    if place.is_file():
        return {shown_as or place.name: _text_of(place)}
    names = sorted(
        path.name
        for path in place.iterdir()
        if path.suffix in {".yaml", ".yml"} and not path.name.startswith(".") and not path.is_dir()
    )
    prefix = f"{shown_as.rstrip('/')}/" if shown_as else ""
    return {prefix + name: _text_of(place / name) for name in names}


def _text_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(READ_LIMIT_BYTES).decode("utf-8", "surrogateescape")
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error


def rules_in_force(
    place: Path | None,
    ledger: Ledger,
    environment: Mapping[str, str],
    *,
    resolve: frozenset[str],
    now: datetime,
) -> RuleBook:
    """Return the rule set to decide with, and keep it in the ledger.

    `resolve` names the sections whose variables this process needs. Raises RuleError (all faults) or SettingsError when the
    folder cannot be accepted and the ledger knows no earlier set.
    """
    try:
        if place is None:
            raise SettingsError("LEADWIRE_RULES is not set: it names the folder with your rule files")
        book = load(read_files(place), environment, resolve=resolve)
    except (RuleError, SettingsError) as fault:
        kept = ledger.latest_rule_set()
        if kept is None:
            raise
        version, files = kept
        log.error("the rules in %s cannot be accepted; the last good set %s stays in force:\n%s", place, version, fault)
        return load(files, environment, resolve=resolve)
    ledger.store_rule_set(book.version, book.files, now)
    return book

"""Accepted rule sets, stored under their content hash, to which every decision and task refers."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from sqlalchemy import bindparam, select

from worker.ledger.encoding import dump, load, micros
from worker.ledger.schema import rule_sets
from worker.ledger.statements import Statement, columns_of, upsert
from worker.ledger.writer import LedgerGroup

_NEW: Final = upsert(rule_sets)
_STORE: Final = Statement(
    _NEW.on_conflict_do_update(index_elements=(rule_sets.c.version,), set_={"accepted_at": _NEW.excluded.accepted_at}),
    columns_of(rule_sets),
)
_LATEST: Final = Statement(
    select(rule_sets.c.version, rule_sets.c.files)
    .order_by(rule_sets.c.accepted_at.desc(), rule_sets.c.seq.desc())
    .limit(1)
)
_FIND: Final = Statement(select(rule_sets.c.files).where(rule_sets.c.version == bindparam("wanted")))


class LedgerRuleSets(LedgerGroup):
    """`ledger.rule_sets`: the accepted rule sets."""

    def store(self, version: str, files: Mapping[str, str], now: datetime) -> None:
        """Store an accepted rule set (`files`: name to text). Storing one again makes it the latest."""
        row = {"version": version, "files": dump(dict(files)), "accepted_at": micros(now)}
        self._writer.write(lambda connection: _STORE.run(connection, row))

    def latest(self) -> tuple[str, Mapping[str, str]] | None:
        """Return version and files of the rule set accepted last; None when there is none."""
        row = self._read(_LATEST.first)
        return (row.version, load(row.files)) if row else None

    def get(self, version: str) -> Mapping[str, str] | None:
        """Return the files of a rule set, name to text; None for an unknown version."""
        text = self._read(lambda connection: _FIND.value(connection, {"wanted": version}))
        return None if text is None else dict(load(text))

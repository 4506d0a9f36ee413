"""The rule sets that were ever in force, under their content hash: what every decision and task refers to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, bindparam, select

from worker.ledger.encoding import dump, load, micros
from worker.ledger.schema import rule_sets
from worker.ledger.statements import Statement, columns_of, upsert

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


def store(version: str, files: Mapping[str, str], now: datetime) -> Callable[[Connection], None]:
    """Return the work that keeps a rule set, or notes that it was accepted again."""
    row = {"version": version, "files": dump(dict(files)), "accepted_at": micros(now)}

    def work(connection: Connection) -> None:
        _STORE.run(connection, row)

    return work


def latest(connection: Connection) -> tuple[str, Mapping[str, str]] | None:
    """Return version and files of the rule set accepted last."""
    row = _LATEST.first(connection)
    return (row.version, load(row.files)) if row else None


def find(connection: Connection, version: str) -> Mapping[str, str] | None:
    """Return the files of one rule set."""
    text = _FIND.value(connection, {"wanted": version})
    return None if text is None else dict(load(text))

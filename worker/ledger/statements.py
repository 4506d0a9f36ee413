"""How statements reach the database: written once in SQLAlchemy Core, compiled once, run by the driver itself.

Core's own execution costs several times what SQLite needs for these statements. So a statement is compiled for a dialect
when it first runs, and from then on only its parameters move; rows come back as named tuples. Values must be what the
driver takes as it is: text, integers, bytes, booleans, None. `upsert` is PostgreSQL's insert because SQLite's dialect
compiles its conflict clauses too, and not the other way round.

Every call waits for its answer once, however many rows it is about: over a network the waits are what costs. psycopg sends
the rows of `run_each` and `run_many` one behind the other without waiting between them (its pipeline mode). In a transaction
that is itself a pipeline (see `writer.py`), `run_many` does not wait at all: its faults come up at the next wait.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from enum import Enum
from operator import itemgetter
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    BindParameter,
    ClauseElement,
    Column,
    ColumnElement,
    Connection,
    Delete,
    Dialect,
    Insert,
    Select,
    Table,
    Text,
    Update,
    any_,
    bindparam,
)
from sqlalchemy.dialects.postgresql import insert as upsert

__all__ = ["Among", "ForIds", "Parameters", "Statement", "columns_of", "upsert"]

#: A row of parameters, by name.
Parameters = Mapping[str, Any]

_NO_PARAMETERS: Final[Parameters] = {}

#: Lists of ids are padded to one of these lengths (a repeated id changes nothing), so that few texts are compiled.
_LENGTHS: Final = (1, 10, 100, 1000)


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A statement's text for one dialect, and how its parameters and rows are shaped."""

    text: str
    shape: Callable[[Parameters], Any]
    row: Callable[[Any], Any]


class Statement:
    """One SQL statement, compiled once per dialect. Every run fetches all rows, so that no cursor stays open."""

    def __init__(self, statement: Select[Any] | Insert | Update | Delete, columns: Sequence[str] | None = None) -> None:
        """Take a statement; `columns` names the columns that an insert fills."""
        self.statement = statement
        self.columns = columns
        self._compiled: dict[str, _Compiled] = {}

    def rows(self, connection: Connection, parameters: Parameters = _NO_PARAMETERS) -> list[Any]:
        """Run it and return its rows as named tuples."""
        compiled = self._for(connection.dialect)
        with closing(_driver(connection).cursor()) as cursor:
            cursor.execute(compiled.text, compiled.shape(parameters))
            return [compiled.row(row) for row in cursor.fetchall()]

    def rows_each(self, connection: Connection, many: Sequence[Parameters]) -> list[list[Any]]:
        """Run it once for each set of parameters, in order; return the rows of each run."""
        compiled = self._for(connection.dialect)
        if connection.dialect.name != "postgresql" or len(many) == 1:
            return [self.rows(connection, parameters) for parameters in many]
        with closing(_driver(connection).cursor()) as cursor:
            cursor.executemany(compiled.text, [compiled.shape(row) for row in many], returning=True)
            return [[compiled.row(row) for row in each.fetchall()] for each in cursor.results()]

    def first(self, connection: Connection, parameters: Parameters = _NO_PARAMETERS) -> Any | None:
        """Run it and return its first row, or None."""
        rows = self.rows(connection, parameters)
        return rows[0] if rows else None

    def values(self, connection: Connection, parameters: Parameters = _NO_PARAMETERS) -> list[Any]:
        """Run it and return the first column of all rows."""
        return [row[0] for row in self.rows(connection, parameters)]

    def value(self, connection: Connection, parameters: Parameters = _NO_PARAMETERS) -> Any | None:
        """Run it and return the first column of the first row, or None."""
        row = self.first(connection, parameters)
        return None if row is None else row[0]

    def run(self, connection: Connection, parameters: Parameters = _NO_PARAMETERS) -> int:
        """Run it and return how many rows it changed."""
        return self.run_each(connection, [parameters])[0]

    def run_each(self, connection: Connection, rows: Sequence[Parameters]) -> list[int]:
        """Run it once for each set of parameters, in order; return how many rows each run changed."""
        compiled = self._for(connection.dialect)
        with closing(_driver(connection).cursor()) as cursor:
            if connection.dialect.name == "postgresql":
                cursor.executemany(compiled.text, [compiled.shape(row) for row in rows], returning=True)
                return [each.rowcount for each in cursor.results()]
            changed = []
            for row in rows:
                cursor.execute(compiled.text, compiled.shape(row))
                changed.append(cursor.rowcount)
            return changed

    def run_many(self, connection: Connection, rows: Sequence[Parameters]) -> None:
        """Run it once for each set of parameters."""
        compiled = self._for(connection.dialect)
        with closing(_driver(connection).cursor()) as cursor:
            cursor.executemany(compiled.text, [compiled.shape(row) for row in rows])

    def _for(self, dialect: Dialect) -> _Compiled:
        compiled = self._compiled.get(dialect.name)
        if compiled is None:
            compiled = self._compiled[dialect.name] = _compile(self.statement, self.columns, dialect)
        return compiled


#: Makes the condition that a column is one of the ids.
Among = Callable[[Column[Any]], ColumnElement[bool]]


class ForIds:
    """A statement with a list of ids. `build` is called with a function that makes the condition "column is one of the ids".

    PostgreSQL takes the list as one array parameter, so that one text and one plan serve any length.
    """

    def __init__(self, build: Callable[[Among], Select[Any] | Update]) -> None:
        self.build = build
        self._of_length: dict[int, Statement] = {}
        self._of_any_length: Statement | None = None

    def rows(self, connection: Connection, ids: Sequence[str], parameters: Parameters = _NO_PARAMETERS) -> list[Any]:
        """Run it for these ids, in several runs when they are very many, and return all rows."""
        if connection.dialect.name == "postgresql":
            return self.of_any_length().rows(connection, {**parameters, "ids": list(ids)})
        found: list[Any] = []
        for start in range(0, len(ids), _LENGTHS[-1]):
            part = ids[start : start + _LENGTHS[-1]]
            length = next(each for each in _LENGTHS if each >= len(part))
            padded = [*part, *[part[-1]] * (length - len(part))]
            named = {f"id_{place}": value for place, value in enumerate(padded)}
            found += self.of_length(length).rows(connection, {**parameters, **named})
        return found

    def of_length(self, length: int) -> Statement:
        """Return the statement for a list of this length."""
        statement = self._of_length.get(length)
        if statement is None:
            names: list[BindParameter[str]] = [bindparam(f"id_{place}") for place in range(length)]
            statement = self._of_length[length] = Statement(self.build(lambda column: column.in_(names)))
        return statement

    def of_any_length(self) -> Statement:
        """Return the statement that takes the list as its parameter `ids`; for PostgreSQL."""
        if self._of_any_length is None:
            ids = bindparam("ids", type_=ARRAY(Text))
            self._of_any_length = Statement(self.build(lambda column: column == any_(ids)))
        return self._of_any_length


def columns_of(table: Table, *without: str) -> tuple[str, ...]:
    """Return the names of a table's columns, without the given ones and without `seq`, which the database assigns."""
    return tuple(column.name for column in table.c if column.name not in {"seq", *without})


def _driver(connection: Connection) -> Any:
    return connection.connection.driver_connection


def _compile(statement: Any, columns: Sequence[str] | None, dialect: Dialect) -> _Compiled:
    compiled: Any = ClauseElement.compile(statement, dialect=dialect, column_keys=columns)
    constants = {
        name: value.value if isinstance(value, Enum) else value
        for name, value in compiled.params.items()
        if not compiled.binds[name].required
    }
    names = [column.key for column in statement.exported_columns]
    row: Any = namedtuple("Row", names, rename=True)  # type: ignore[misc]  # noqa: PYI024  # its names are the columns
    order = compiled.positiontup if compiled.positional else None
    return _Compiled(str(compiled), _shaper(order, constants), row._make)


def _shaper(order: Sequence[str] | None, constants: Parameters) -> Callable[[Parameters], Any]:
    """Return how parameters by name, and the statement's own constants, become what the driver takes."""
    if order is None:
        return lambda row: {**constants, **row}
    if not order:
        return lambda _row: ()
    pick = itemgetter(*order) if len(order) > 1 else lambda row: (row[order[0]],)
    if not constants:
        return pick
    return lambda row: pick({**constants, **row})

"""Where in which file a value of a rule file stands, and the collecting of what is wrong there.

Reading never stops at the first fault: everything that reads a rule file complains here, and all faults of all files come
out in one run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rules.vocabulary import Fault

#: The way from the top of a file to a value: keys and list indexes.
Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a file; line and column count from 1.

    `literal` says that a text in the form of a literal block (`|`) stands here, whose lines are those of the file.
    """

    file: str
    line: int
    column: int
    literal: bool = False

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(slots=True)
class SourceMap:
    """The position of every key and value of one file, and the faults and warnings found there."""

    file: str
    values: Mapping[Path, Position] = field(default_factory=dict)
    keys: Mapping[Path, Position] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    warnings: list[Fault] = field(default_factory=list)

    def of_value(self, path: Path) -> Position:
        """Return where the value at `path` begins; for a path that is not there, where its nearest parent does."""
        while path and path not in self.values:
            path = path[:-1]
        return self.values.get(path, Position(self.file, 1, 1))

    def of_key(self, path: Path) -> Position:
        """Return where the key that leads to `path` begins; list items and unknown paths: the value's place."""
        return self.keys.get(path) or self.of_value(path)

    def complain(self, path: Path, message: str, *, at_key: bool = False) -> None:
        """Record a fault at `path`: the file cannot be accepted."""
        self.faults.append(self._fault(path, message, at_key=at_key))

    def warn(self, path: Path, message: str, *, at_key: bool = False) -> None:
        """Record a warning at `path`: the file is accepted, the author should know."""
        self.warnings.append(self._fault(path, message, at_key=at_key))

    def _fault(self, path: Path, message: str, *, at_key: bool) -> Fault:
        place = self.of_key(path) if at_key else self.of_value(path)
        return Fault(file=place.file, line=place.line, column=place.column, path=written(path), message=message)


def written(path: Path) -> str:
    """Return a path as it is printed in messages: `rules.0.then.1.make_call.agent`."""
    return ".".join(str(step) for step in path)

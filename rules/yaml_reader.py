"""What a YAML text says, where each value stands, and what is wrong with it, in plain English.

Values follow the YAML 1.2 core schema and nothing more: `true false null`, decimal numbers, text. What YAML 1.1 makes of
`no`, `12:30` or `+569...` surprises everybody, so it stays text here. The tree is built from the parser's events, never
by a composer: PyYAML's C composer dies with a segmentation fault on deep nesting (observed with PyYAML 6.0.3; pyyaml
issue 895), while its events come one at a time and the limits below are applied as they come.

Reading never stops at the first fault: everything that reads a rule file records its faults in the file's SourceMap, and all
faults of all files come out in one run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

import yaml

from rules.vocabulary import Json, RuleFault

#: The way from the top of a file to a value: keys and list indexes.
Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Position:
    """A position in a file; line and column count from 1.

    `literal`: the value is a YAML literal block (`|`), whose lines are lines of the file.
    """

    file: str
    line: int
    column: int
    literal: bool = False

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


class Positions(Protocol):
    """The positions of a file's values, by path; a plain dict is one."""

    def get(self, path: Path, /) -> Position | None:
        """Return the position of what stands at a path, or None."""


@dataclass(slots=True)
class SourceMap:
    """The positions of all keys and values of one file, and the faults and warnings found in it."""

    file: str
    values: Positions = field(default_factory=dict[Path, Position])
    keys: Positions = field(default_factory=dict[Path, Position])
    faults: list[RuleFault] = field(default_factory=list)
    warnings: list[RuleFault] = field(default_factory=list)

    def of_value(self, path: Path) -> Position:
        """Return the position of the value at `path`, or of its nearest existing parent."""
        while (found := self.values.get(path)) is None and path:
            path = path[:-1]
        return found or Position(self.file, 1, 1)

    def of_key(self, path: Path) -> Position:
        """Return the position of the key at `path`; for list items and unknown paths that of the value."""
        return self.keys.get(path) or self.of_value(path)

    def add_fault(self, path: Path, message: str, *, at_key: bool = False) -> None:
        """Add a fault at `path`: the file cannot be accepted."""
        self.faults.append(self._fault(path, message, at_key=at_key))

    def warn(self, path: Path, message: str, *, at_key: bool = False) -> None:
        """Add a warning at `path`: the file is accepted."""
        self.warnings.append(self._fault(path, message, at_key=at_key))

    def _fault(self, path: Path, message: str, *, at_key: bool) -> RuleFault:
        place = self.of_key(path) if at_key else self.of_value(path)
        return RuleFault(file=place.file, line=place.line, column=place.column, path=written(path), message=message)


@dataclass(frozen=True, slots=True)
class Located:
    """A value of a file with its path, and the SourceMap that collects its faults."""

    value: Json
    path: Path
    places: SourceMap

    @property
    def mapping(self) -> Mapping[str, Json]:
        """The value if it is a mapping, else an empty one."""
        return self.value if isinstance(self.value, dict) else {}

    @property
    def key_place(self) -> str:
        """The position of the value's key, as `file:line:column`."""
        return str(self.places.of_key(self.path))

    def __getitem__(self, key: str) -> Located:
        """Return what stands under a key; None is its value where nothing does."""
        return Located(self.mapping.get(key), (*self.path, key), self.places)

    def __contains__(self, key: str) -> bool:
        """Say whether it is a mapping with that key."""
        return key in self.mapping

    def items(self) -> Iterator[Located]:
        """Yield the entries of a list; nothing for any other value."""
        for index, item in enumerate(self.value if isinstance(self.value, list) else ()):
            yield Located(item, (*self.path, index), self.places)

    def mappings(self) -> Iterator[Located]:
        """Yield the entries of a list that are mappings."""
        return (item for item in self.items() if isinstance(item.value, dict))

    def fault(self, message: str) -> None:
        """Add a fault at the value: the file cannot be accepted."""
        self.places.add_fault(self.path, message)

    def key_fault(self, message: str) -> None:
        """Add a fault at the value's key."""
        self.places.add_fault(self.path, message, at_key=True)

    def warn(self, message: str, *, at_key: bool = False) -> None:
        """Add a warning at the value: the file is accepted."""
        self.places.warn(self.path, message, at_key=at_key)


def written(path: Path) -> str:
    """Return a path as it is printed in messages: `rules.0.then.1.make_call.agent`."""
    return ".".join(str(step) for step in path)


#: libyaml's problem -> what to say, for those that need nothing from the text.
_PLAIN: Final[Mapping[str, str]] = {
    "mapping values are not allowed in this context": (
        "a `:` does not belong here: put the value that holds it in quotes, or check the indentation"
    ),
    "block sequence entries are not allowed in this context": (
        "a list item cannot begin here: put `-` on a line of its own below the key"
    ),
    "did not find expected '-' indicator": ("a list item beginning with `-` is expected here: check the indentation"),
    "did not find expected node content": "a value is expected here: if this is text, quote it",
    "found unknown escape character": (
        "unknown escape after `\\`: in double quotes write `\\\\` for a backslash, or use single quotes"
    ),
    "did not find expected hexdecimal number": "an escape in double quotes lacks its hexadecimal digits",
    "found a tab character where an indentation space is expected": "a tab cannot indent: use spaces",
    "found a tab character that violates indentation": "a tab cannot indent: use spaces",
    "did not find expected comment or line break": "nothing may follow `|` or `>` on its line: begin on the next one",
    "found incompatible YAML document": "this YAML version is not supported: remove the `%YAML` line",
    "found unknown directive name": "a line beginning with `%` is a YAML directive: remove it, or quote it if it is text",
    "could not find expected ':'": "a `:` is missing after this key",
    "found undefined tag handle": "tags are not supported: quote it if it is text",
}

#: Something follows a value inside `[ ]` or `{ }` that cannot.
_UNSEPARATED: Final = frozenset({"did not find expected ',' or ']'", "did not find expected ',' or '}'"})
_WORD_LIMIT: Final = 100
_WORD_BEFORE: Final = re.compile(r"[^\s{}\[\],]{1,200}\Z")


def syntax_fault(error: yaml.MarkedYAMLError, text: str) -> tuple[str, int, int]:
    """Return a message for a YAML syntax error, and its line and column (from 0)."""
    problem = error.problem or "unreadable"
    place = error.problem_mark or error.context_mark
    line, column, index = (place.line, place.column, place.index) if place else (0, 0, 0)
    begun = error.context_mark or place
    context = error.context or ""
    if problem == "found unexpected end of stream" or (problem == "found unexpected document indicator" and begun):
        return ("this quote is never closed", begun.line, begun.column) if begun else ("unexpected end", line, column)
    if text[index : index + 1] == "{" and problem.startswith("did not find expected ','"):
        return _brace_inside(text[max(index - 1, 0) : index + 2]), line, column
    if problem in _UNSEPARATED and text[index : index + 1] == "[" and (found := _WORD_BEFORE.search(text[:index])):
        return _brackets_inside(text[found.start() :]), line, column - len(found.group())
    if problem in _UNSEPARATED and begun:
        bracket = "[" if problem.endswith("']'") else "{"
        what = f"this `{bracket}` is not closed, or a `,` is missing before line {line + 1}, column {column + 1}"
        return what, begun.line, begun.column
    if problem == "did not find expected alphabetic or numeric character" and begun:
        return _sign(context), begun.line, begun.column
    if problem == "did not find expected node content" and not text[index:].strip():
        message = "the file ends inside a `[` or `{` that is never closed"
    elif problem == "found character that cannot start any token":
        message = _bad_start(text[index : index + 1], text[max(index - 1, 0) : index])
    elif problem == "did not find expected key":
        since = f" of the mapping that begins in line {begun.line + 1}" if begun else ""
        message = f"this is no key{since}: check the indentation, and the quotes just before it"
    else:
        message = _PLAIN.get(problem, f"cannot be read as YAML: {problem}")
    return message, line, column


def _sign(context: str) -> str:
    sign = "*" if "alias" in context else "&" if "anchor" in context else "!"
    return f'YAML gives `{sign}` a meaning of its own: quote it if it is text, as in "{sign}"'


def _brace_inside(around: str) -> str:
    if around.startswith("$"):
        return 'inside [ ] or { } a text with a variable needs quotes, as in "${NAME}": quote it'
    if around.endswith("{{"):
        return "YAML reads `{{` as a mapping: quote it, the whole text"
    return "a `,` is missing before this `{`, or the text it stands in needs quotes"


def _brackets_inside(text: str) -> str:
    """Say that a text such as `data.list[1].x` needs quotes; `text` begins with it."""
    found = re.match(r"[^\s{},:]+", text)
    word = found.group() if found else ""
    return f'inside {{ }} or [ ] a path with brackets must be quoted, as in "{word[:_WORD_LIMIT]}"'


def _bad_start(character: str, before: str) -> str:
    if character == "\t":
        return "a tab cannot stand here: indent with spaces"
    if before == "{" and character in {"%", "#"}:
        return f"YAML reads `{{{character}` as a mapping: quote it, the whole text"
    return f"a value cannot begin with `{character}`: quote it if it is text"


#: Collections inside collections, counted from the top of the file.
LEVEL_LIMIT: Final = 40
#: Uses of `*alias` in one file.
ALIAS_LIMIT: Final = 20
#: Nodes that all aliases of a file may stand for together.
ALIAS_NODE_LIMIT: Final = 1_000
#: The size of one file, in bytes of UTF-8.
FILE_LIMIT_BYTES: Final = 1024 * 1024
#: The length of a key; longer ones are a mistake and would flood every message.
KEY_LIMIT_CHARACTERS: Final = 200
#: Longer numbers cannot be kept exactly by anybody who reads them.
DIGIT_LIMIT: Final = 300

_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?")
_CONSTANTS: Final[Mapping[str, Json]] = {"true": True, "false": False, "null": None, "~": None, "": None}
#: What YAML 1.2 (section 5.1) does not count as a printable character.
_UNPRINTABLE: Final = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def read(text: str | bytes, file: str, *, salvage: bool = False) -> tuple[Json, SourceMap]:
    """Return the single document of a YAML text and the positions of its values; never raises.

    Faults are in `places.faults`, and the value is then None. With `salvage`, a text whose faults leave its structure clear (a
    repeated key, a tag) still gives the value, so that one run finds more faults. An empty text gives None without faults.
    Bytes of `text` that are not UTF-8 may be lone surrogates (`errors="surrogateescape"`).
    """
    places = SourceMap(file)
    builder = _Builder(places)
    try:
        root = builder.build(_checked(text))
    except _Refused as refused:
        places.faults.append(
            RuleFault(
                file=file,
                line=refused.line + 1,
                column=refused.column + 1,
                path=refused.path,
                message=str(refused),
            )
        )
        places.faults.sort(key=lambda fault: (fault.line, fault.column))
        return None, places
    places.values = _Marks(file, root, keys=False)
    places.keys = _Marks(file, root, keys=True)
    return (_plain(root) if salvage or not places.faults else None), places


class _Refused(Exception):  # noqa: N818 - never leaves this module: it ends the reading of one text
    """The rest of the text cannot be read; line and column count from 0."""

    def __init__(self, message: str, line: int, column: int, path: str = "") -> None:
        super().__init__(message)
        self.line = line
        self.column = column
        self.path = path


@dataclass(slots=True)
class _Node:
    """A value and where it begins (counted from 0); `size` and `height` count what its aliases stand for, too."""

    line: int
    column: int
    value: Json  # a scalar, a list of nodes, or a mapping of keys to nodes
    keys: dict[str, tuple[int, int]] = field(default_factory=dict)
    size: int = 1
    height: int = 0
    literal: bool = False

    def add(self, child: _Node) -> None:
        self.size += child.size
        self.height = max(self.height, child.height + 1)


@dataclass(slots=True)
class _Frame:
    """A collection that is still open. `key` is the mapping key whose value comes next."""

    node: _Node
    anchor: str | None
    flow: bool
    is_key: bool = False
    key: str | None = None
    #: The key at hand is faulty: its value is read and thrown away.
    dropping: bool = False

    @property
    def awaits_key(self) -> bool:
        return isinstance(self.node.value, dict) and self.key is None and not self.dropping


class _Builder:
    """Turns the parser's events into one tree of nodes."""

    def __init__(self, places: SourceMap) -> None:
        self._places = places
        self._open: list[_Frame] = []
        self._anchors: dict[str, _Node] = {}
        self._aliases = 0
        self._alias_nodes = 0
        self._documents = 0
        self._root: _Node | None = None

    def build(self, text: str) -> _Node:
        """Return the tree; complain about what can be passed over, raise `_Refused` about what cannot."""
        try:
            for event in yaml.parse(text, Loader=yaml.CSafeLoader):
                self._take(event)
        except yaml.MarkedYAMLError as error:
            message, line, column = syntax_fault(error, text)
            if any(fault.line == line + 1 and "quote it" in fault.message for fault in self._places.faults):
                raise _Refused(
                    "the rest of the file was not read: mend this line, then check again", line, column
                ) from error
            raise _Refused(message, line, column) from error
        return self._root or _Node(0, 0, None)

    def _take(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                raise _at(event, "a file holds one document: remove this `---`, or make it a file of its own")
        elif isinstance(event, yaml.AliasEvent):
            self._alias(event)
        elif isinstance(event, yaml.ScalarEvent):
            self._scalar(event)
        elif isinstance(event, yaml.CollectionStartEvent):
            self._start(event)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._end()

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        if self._open and self._open[-1].awaits_key:
            self._key(event)
            return
        self._refuse_tag(event)
        node = _Node(*_begin(event), event.value, literal=event.style == "|")
        if event.implicit[0]:
            self._resolve(node)
        self._place(node, event.anchor)

    def _resolve(self, node: _Node) -> None:
        text = node.value
        if text in _CONSTANTS:
            node.value = _CONSTANTS[text]
        elif _NUMBER.fullmatch(text):
            if len(text) > DIGIT_LIMIT:
                message = f"a number of {len(text)} digits cannot be kept exactly: quote it if it is text"
                self._fault((node.line, node.column), message, self._path())
            else:
                node.value = float(text) if "." in text else int(text)

    def _key(self, event: yaml.ScalarEvent) -> None:
        frame, text = self._open[-1], event.value
        complaint, path = self._key_complaint(event), self._path()
        if text in frame.node.keys and not complaint:
            line, column = frame.node.keys[text]
            first = Position(self._places.file, line + 1, column + 1)
            complaint, path = f"duplicate key `{text}`: it already stands at {first}", (*path, text)
        if complaint:
            self._fault(_begin(event), complaint, path)
            frame.dropping = True
            return
        frame.key = text
        frame.node.keys[text] = _begin(event)
        frame.node.size += 1

    def _key_complaint(self, event: yaml.ScalarEvent) -> str | None:
        text, plain = event.value, event.implicit[0]
        complaint = None
        if event.tag is not None:
            complaint = "tags are not supported on keys: remove it"
        elif event.anchor is not None:
            complaint = "a key cannot carry an anchor: put it before the value"
        elif plain and text == "<<":
            complaint = "merge keys (`<<`) are not supported: write the keys out, or use an alias for a whole value"
        elif plain and not text:
            complaint = "a key is missing before this `:`"
        elif plain and (text in _CONSTANTS or _NUMBER.fullmatch(text)):
            complaint = f'a key must be text: write "{text[:KEY_LIMIT_CHARACTERS]}" in quotes'
        elif len(text) > KEY_LIMIT_CHARACTERS:
            complaint = f"a key has {len(text)} characters; at most {KEY_LIMIT_CHARACTERS} are allowed"
        elif _CONTROL.search(text):
            complaint = "a key holds a line break or another control character"
        return complaint

    def _start(self, event: yaml.CollectionStartEvent) -> None:
        if len(self._open) >= LEVEL_LIMIT:
            raise _at(event, f"nested too deep: more than {LEVEL_LIMIT} levels", written(self._path()[:4]))
        self._refuse_tag(event)
        is_key = bool(self._open) and self._open[-1].awaits_key
        if is_key:
            self._refuse_collection_as_key(event)
        node = _Node(*_begin(event), {} if isinstance(event, yaml.MappingStartEvent) else [])
        self._open.append(_Frame(node, event.anchor, bool(event.flow_style), is_key=is_key))
        if event.anchor is not None:
            self._anchors.pop(event.anchor, None)

    def _refuse_collection_as_key(self, event: yaml.CollectionStartEvent) -> None:
        outer, place, path = self._open[-1], (self._open[-1].node.line, self._open[-1].node.column), self._path()
        doubled = _begin(event) == (place[0], place[1] + 1)
        if doubled and outer.flow and isinstance(event, yaml.MappingStartEvent):
            self._fault(place, 'YAML reads `{{` as a mapping: quote it, as in "{{ contact.name }}"', path)
        else:
            self._fault(_begin(event), "a key must be text, not a list or a mapping", path)

    def _end(self) -> None:
        frame = self._open.pop()
        if frame.is_key:
            self._open[-1].dropping = True
        else:
            self._place(frame.node, frame.anchor)

    def _alias(self, event: yaml.AliasEvent) -> None:
        name = str(event.anchor)
        shown = name[:KEY_LIMIT_CHARACTERS]
        self._aliases += 1
        if self._aliases > ALIAS_LIMIT:
            raise _at(event, f"too many aliases: more than {ALIAS_LIMIT} in one file")
        if any(frame.anchor == name for frame in self._open):
            raise _at(event, f"the alias `*{shown}` stands inside its own anchor: it would never end")
        if self._open and self._open[-1].awaits_key:
            raise _at(event, f"a key must be text, not the alias `*{shown}`", written(self._path()))
        target = self._anchors.get(name)
        if target is None:
            remedy = f'quote it if it is text: "*{shown}"'
            raise _at(event, f"no anchor `&{shown}` stands above the alias `*{shown}`; {remedy}", written(self._path()))
        self._alias_nodes += target.size
        if self._alias_nodes > ALIAS_NODE_LIMIT:
            raise _at(event, f"too many aliases: together they stand for more than {ALIAS_NODE_LIMIT:,} nodes")
        if len(self._open) + target.height > LEVEL_LIMIT:
            raise _at(event, f"nested too deep: more than {LEVEL_LIMIT} levels when this alias is written out")
        self._place(_Node(*_begin(event), target.value, target.keys, target.size, target.height), None)

    def _place(self, node: _Node, anchor: str | None) -> None:
        """Put a finished node where it belongs."""
        if anchor is not None:
            self._anchors[anchor] = node
        if not self._open:
            self._root = node
            return
        frame = self._open[-1]
        if isinstance(frame.node.value, list):
            frame.node.value.append(node)
            frame.node.add(node)
        elif frame.key is not None:
            frame.node.value[frame.key] = node
            frame.node.add(node)
        frame.key, frame.dropping = None, False

    def _refuse_tag(self, event: yaml.NodeEvent) -> None:
        if getattr(event, "tag", None) is not None:
            remedy = "quote the value if it is text" if isinstance(event, yaml.ScalarEvent) else "remove it"
            self._fault(_begin(event), f"tags (words that begin with `!`) are not supported: {remedy}", self._path())

    def _path(self) -> Path:
        steps: list[str | int] = []
        for frame in self._open:
            if isinstance(frame.node.value, list):
                steps.append(len(frame.node.value))
            elif frame.key is not None:
                steps.append(frame.key)
        return tuple(steps)

    def _fault(self, place: tuple[int, int], message: str, path: Path) -> None:
        line, column = place[0] + 1, place[1] + 1
        self._places.faults.append(
            RuleFault(file=self._places.file, line=line, column=column, path=written(path), message=message)
        )


def _begin(event: yaml.Event) -> tuple[int, int]:
    """Return line and column, counted from 0; every event of a text has a mark, whatever its type says."""
    mark = event.start_mark
    return (mark.line, mark.column) if mark else (0, 0)


def _at(event: yaml.Event, message: str, path: str = "") -> _Refused:
    return _Refused(message, *_begin(event), path)


def _checked(text: str | bytes) -> str:
    """Return the text, decoded, without a byte order mark; raise `_Refused` when the parser must not see it."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", errors="surrogateescape")
    if len(text) > FILE_LIMIT_BYTES or len(text.encode("utf-8", errors="surrogatepass")) > FILE_LIMIT_BYTES:
        raise _Refused("the file is larger than 1 MiB: divide it into several", 0, 0)
    text = text.removeprefix("\ufeff")
    if text.startswith(("\udcff\udcfe", "\udcfe\udcff")):
        raise _Refused("the file is UTF-16: save it as UTF-8", 0, 0)
    found = _UNPRINTABLE.search(text)
    if found is None:
        return text
    before = text[: found.start()]
    line, column = before.count("\n"), len(before) - (before.rfind("\n") + 1)
    code = ord(found.group())
    if 0xDC80 <= code <= 0xDCFF:  # noqa: PLR2004 - the range that surrogateescape uses for undecodable bytes
        raise _Refused(f"the byte 0x{code - 0xDC00:02x} is not UTF-8: save the file as UTF-8", line, column)
    raise _Refused(f"the character U+{code:04X} is not allowed: remove it", line, column)


def _plain(node: _Node) -> Json:
    """Return the value of a node as JSON."""
    if isinstance(node.value, dict):
        return {key: _plain(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [_plain(child) for child in node.value]
    return node.value


class _Marks:
    """The positions of all values, or of all keys, looked up in the tree: a table of them would outweigh the rules."""

    def __init__(self, file: str, root: _Node, *, keys: bool) -> None:
        self._file = file
        self._root = root
        self._keys = keys

    def get(self, path: Path, /) -> Position | None:
        node, mark = self._root, None
        for step in path:
            inside, child = node.value, None
            mark = node.keys.get(step) if isinstance(step, str) else None
            if isinstance(inside, dict):
                child = inside.get(step)
            elif isinstance(inside, list) and isinstance(step, int) and 0 <= step < len(inside):
                child = inside[step]
            if child is None:
                return None
            node = child
        if not self._keys:
            return Position(self._file, node.line + 1, node.column + 1, node.literal)
        return Position(self._file, mark[0] + 1, mark[1] + 1) if mark else None

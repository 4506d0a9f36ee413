"""Which variable a `${NAME}` in a rule file stands for, and that its value is never read as anything but text.

A value from the environment becomes part of a text and nothing else: it is not read as YAML again, and template marks in it
are not marks. Only where one `${NAME}` is the whole value and a number is wanted, a plain number is read from it. `$${` stands
for a literal `${`. Names beginning with `LEADWIRE_` are the worker's own settings, some of them secret, and out of reach. A
fault may show what a variable of a rule holds (an agent that is no UUID, say), cut short; the secrets of sources are read
elsewhere and never shown.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from rules.messages import did_you_mean, shown
from rules.templates import TEMPLATE_LIMIT_CHARACTERS, is_template
from rules.vocabulary import Json
from rules.yaml_reader import Path, SourceMap

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


class Constant(str):
    """Text that is finished although it may look like a template: it came from a variable."""

    __slots__ = ()


class Numeral(str):
    """Text that one variable alone gave and that is a plain number: it counts as one where a number is wanted."""

    __slots__ = ()

    def number(self) -> int | float:
        """Return the number."""
        return float(self) if "." in self else int(self)


class Pending(str):
    """Text with a variable that this process does not resolve: nothing can be said about its value."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Resolver:
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
                    places.complain((*path, key), "a variable cannot stand in a key", at_key=True)
            return {key: self._walk(child, places, (*path, key)) for key, child in value.items()}
        if isinstance(value, list):
            return [self._walk(child, places, (*path, index)) for index, child in enumerate(value)]
        if isinstance(value, str) and "${" in value:
            return self._text(value, places, path)
        return value

    def _text(self, text: str, places: SourceMap, path: Path) -> str:
        lookup = _Lookup(self.environment, lambda message: places.complain(path, message))
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

    def __init__(self, environment: Mapping[str, str], complain: Callable[[str], None]) -> None:
        self._environment = environment
        self._complain = complain
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
            self._complain(f"inside {{{{ }}}} a variable must stand in quotes: '{found.group()}'")
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
        self._complain(complaint)
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

"""How an XML body becomes a value, for senders that speak SOAP.

Namespaces are dropped, attributes get an `@`, an element with nothing but text is that text, one that is repeated is a list.
A document type is refused whole: no entity is ever expanded and nothing outside is ever read.
"""

from __future__ import annotations

from typing import Any, Final
from xml.parsers import expat  # nosec - no entity is expanded: a document type is refused

from ingress.sources.errors import UnreadableBodyError
from rules.vocabulary import Json

#: Elements one body may have.
ELEMENTS_LIMIT: Final = 50_000


class _Element:
    """An element under construction."""

    __slots__ = ("fields", "text")

    def __init__(self, fields: dict[str, Json]) -> None:
        self.fields = fields
        self.text: list[str] = []

    def value(self) -> Json:
        text = "".join(self.text).strip()
        if not self.fields:
            return text or None
        if text:
            self.fields["#text"] = text
        return self.fields


class _Reader:
    """Builds the value while expat reads."""

    def __init__(self, depth_limit: int) -> None:
        self.top = _Element({})
        self.open = [self.top]
        self.depth_limit = depth_limit
        self.elements = 0

    def start(self, _name: str, attributes: dict[str, str]) -> None:
        self.elements += 1
        if len(self.open) > self.depth_limit:
            raise UnreadableBodyError(f"the body is nested deeper than {self.depth_limit} levels")
        if self.elements > ELEMENTS_LIMIT:
            raise UnreadableBodyError(f"the body has more than {ELEMENTS_LIMIT} elements")
        kept = {f"@{_local(key)}": value for key, value in attributes.items() if not key.startswith("xmlns")}
        self.open.append(_Element(kept))

    def end(self, name: str) -> None:
        value = self.open.pop().value()
        fields, key = self.open[-1].fields, _local(name)
        if key not in fields:
            fields[key] = value
        elif isinstance(fields[key], list):
            fields[key].append(value)
        else:
            fields[key] = [fields[key], value]

    def data(self, text: str) -> None:
        self.open[-1].text.append(text)


def _local(name: str) -> str:
    return name.rpartition(":")[2]


def _refuse(*_: Any) -> None:
    raise UnreadableBodyError("the body has a document type; XML with one is not read")


def read_xml(body: bytes, *, depth_limit: int) -> Json:
    """Return the document as a map with its root element's name. Raises UnreadableBodyError."""
    reader = _Reader(depth_limit)
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.data
    parser.StartDoctypeDeclHandler = _refuse
    parser.EntityDeclHandler = _refuse
    try:
        parser.Parse(body, True)
    except expat.ExpatError as fault:
        raise UnreadableBodyError(
            f"the body is not XML: {expat.ErrorString(fault.code)} at line {fault.lineno}, column {fault.offset + 1}"
        ) from None
    except (LookupError, ValueError):
        raise UnreadableBodyError("the body is XML in an encoding that is not known") from None
    return reader.top.fields

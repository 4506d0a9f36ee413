"""Decode the bytes of a webhook's body: JSON, form, form with brackets, XML, or `auto` by content type and first bytes.

The result is JSON that can be stored: finite numbers, no lone surrogates, no NUL, at most 64 levels. A body that cannot be
decoded raises UnreadableBodyError with one sentence; no other exception is raised.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import parse_qsl
from xml.parsers import expat  # nosec - no entity is expanded: a document type is refused

from ingress.sources.schema import BodyFormat, BodySection
from rules.vocabulary import Json, Problem

#: Deeper than any CRM nests, and far from what exhausts the stack of those who come after.
DEPTH_LIMIT: Final = 64
#: Character sets a sender may declare; any other name is read as UTF-8.
CHARSETS: Final = {
    "utf-8": "utf-8",
    "utf8": "utf-8",
    "us-ascii": "utf-8",
    "iso-8859-1": "cp1252",
    "windows-1252": "cp1252",
}

#: Brackets the name of one form field may have; Kommo's custom fields have six.
BRACKETS_LIMIT: Final = 32
#: Elements one XML body may have.
ELEMENTS_LIMIT: Final = 50_000

_CHARSET: Final = re.compile(r"charset\s*=\s*\"?([A-Za-z0-9_.:-]{1,40})", re.IGNORECASE)
_UNSTORABLE: Final = re.compile("[\ud800-\udfff\0]")
#: Digits of an index in brackets that counts; longer ones are names.
_INDEX_DIGITS: Final = 6


class UnreadableBodyError(Problem):
    """A body cannot be decoded. The message is one sentence for the operator and quotes nothing of the body."""


def decode(body: bytes, content_type: str, spec: BodySection) -> Json:
    """Decode a body. Raises UnreadableBodyError."""
    if not body.strip():
        raise UnreadableBodyError("the body is empty")
    try:
        if spec.format is BodyFormat.AUTO:
            return _auto(body, content_type, spec)
        return _READERS[spec.format](body, content_type, spec)
    except UnreadableBodyError:
        raise
    except RecursionError:
        raise UnreadableBodyError(f"the body is nested deeper than {DEPTH_LIMIT} levels") from None
    except ValueError as fault:
        raise UnreadableBodyError(f"the body cannot be read as {spec.format}: {type(fault).__name__}") from None


def _auto(body: bytes, content_type: str, spec: BodySection) -> Json:
    """Read a body whose sender may have declared it wrongly or not at all."""
    media_type = content_type.partition(";")[0].strip().lower()
    start = body.lstrip(b" \t\r\n\xef\xbb\xbf")[:1]
    if media_type.startswith("multipart/"):
        raise UnreadableBodyError("multipart bodies are not read; send JSON or application/x-www-form-urlencoded")
    is_form = "form-urlencoded" in media_type
    if "xml" in media_type and start == b"<":
        return _xml(body, content_type, spec)
    if "json" in media_type or start in {b"{", b"["}:
        try:
            return _json(body, content_type, spec)
        except (UnreadableBodyError, ValueError, RecursionError):
            if not is_form:
                raise
    elif start == b"<" and not is_form:
        return _xml(body, content_type, spec)
    return _form(body, content_type, spec)


def _json(body: bytes, content_type: str, spec: BodySection) -> Json:
    text = _text(body, content_type, spec).lstrip("\ufeff")
    deep = body.count(b"[") + body.count(b"{") > DEPTH_LIMIT
    try:
        value = _JSON.decode(text)
    except json.JSONDecodeError as fault:
        raise UnreadableBodyError(
            f"the body is not JSON: {fault.msg} at line {fault.lineno}, column {fault.colno}"
        ) from None
    except ValueError:  # Python refuses to read integers over 4,300 digits
        raise UnreadableBodyError("the body holds a number with thousands of digits") from None
    if deep:
        _check_depth(value)
    return clean(value) if b"\\ud" in body or b"\\uD" in body or b"\\u0000" in body else value


def _form(body: bytes, content_type: str, spec: BodySection) -> Json:
    arrange = _flat if spec.format is BodyFormat.FORM else _unfold
    text = _text(body, content_type, spec, fallback="cp1252")
    if text.count("&") >= spec.fields_limit:
        raise UnreadableBodyError(f"the form has more than {spec.fields_limit} fields")
    pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=spec.fields_limit, errors="replace")
    if not pairs:
        raise UnreadableBodyError("the form has no fields")
    fields = arrange([(_storable(name), _storable(value)) for name, value in pairs])
    inner = fields.get(spec.json_field) if spec.json_field else None
    return _json(inner.encode(), "", _PLAIN_JSON) if isinstance(inner, str) else fields


def _flat(pairs: list[tuple[str, str]]) -> dict[str, Json]:
    """Return a form's fields under their own names; one that is given several times is a list."""
    found: dict[str, Json] = {}
    for name, value in pairs:
        _add(found, name, value)
    return found


def _add(fields: dict[str, Json], name: str, value: Json) -> None:
    """Add a value under a name; several values of one name are a list."""
    if name not in fields:
        fields[name] = value
    elif isinstance(fields[name], list):
        fields[name].append(value)
    else:
        fields[name] = [fields[name], value]


def _text(body: bytes, content_type: str, spec: BodySection, *, fallback: str | None = None) -> str:
    declared = _CHARSET.search(content_type)
    charset = spec.charset or CHARSETS.get(declared[1].lower() if declared else "utf-8", "utf-8")
    try:
        return body.decode(charset)
    except UnicodeDecodeError as fault:
        if fallback:
            return body.decode(fallback, "replace")
        raise UnreadableBodyError(f"the body is not {charset}: byte {fault.start} is no part of a character") from None


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise UnreadableBodyError("the body holds a number that is too large")
    return number


def _no_constant(name: str) -> Json:
    raise UnreadableBodyError(f"the body is not JSON: {name} is no number")


_JSON: Final = json.JSONDecoder(parse_float=_finite, parse_constant=_no_constant)


def _check_depth(value: Json) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEPTH_LIMIT:
            raise UnreadableBodyError(f"the body is nested deeper than {DEPTH_LIMIT} levels")
        level = [
            child
            for one in level
            if isinstance(one, dict | list)
            for child in (one.values() if isinstance(one, dict) else one)
            if isinstance(child, dict | list)
        ]


def _storable(text: str) -> str:
    """Return text without what UTF-8 or a database cannot hold: lone surrogates are replaced, NUL is left out."""
    return _UNSTORABLE.sub(lambda found: "" if found[0] == "\0" else "\ufffd", text)


def clean(value: Json) -> Json:
    """Return a value whose texts and keys can all be stored. Nesting is limited to DEPTH_LIMIT levels."""
    if isinstance(value, str):
        return _storable(value)
    if isinstance(value, list):
        return [clean(one) for one in value]
    if isinstance(value, dict):
        return {_storable(name): clean(one) for name, one in value.items()}
    return value


# -- forms with bracket keys, as PHP and amoCRM write them ----------------------------------------------------------------


class _Node(dict[str, Json]):
    """A map under construction that knows the next free index."""

    __slots__ = ("next_index",)

    def __init__(self) -> None:
        super().__init__()
        self.next_index = 0

    def name(self, step: str, *, at_top: bool) -> str:
        """Return the key for a step: `[]` is the next free index, the name in front of the brackets is itself."""
        if step == "" and not at_top:
            step = str(self.next_index)
        if _is_index(step):
            self.next_index = max(self.next_index, int(step) + 1)
        return step


def _unfold(pairs: list[tuple[str, str]]) -> dict[str, Json]:
    """Return the fields as nested maps and lists: `leads[add][0][id]=301` is a list in a map in a map.

    A map keyed 0..n is a list, any other stays a map; `tags[]=a&tags[]=b` counts up. Source of the format:
    https://developers.kommo.com/docs/webhooks-general. Raises UnreadableBodyError for a key with too many brackets.
    """
    root = _Node()
    for name, value in pairs:
        steps = _steps(name)
        node = root
        for step in steps[:-1]:
            key = node.name(step, at_top=node is root)
            child = node.get(key)
            if not isinstance(child, _Node):  # a plain value under the same name gives way, as in PHP
                child = node[key] = _Node()
            node = child
        _put(node, node.name(steps[-1], at_top=node is root), value, plain=len(steps) == 1)
    return {name: _settled(value) for name, value in root.items()}


def _put(node: _Node, key: str, value: str, *, plain: bool) -> None:
    before = node.get(key)
    if plain and isinstance(before, str):
        node[key] = [before, value]  # a plain name given several times is a list
    elif plain and isinstance(before, list):
        before.append(value)
    elif not isinstance(before, _Node):
        node[key] = value


def _steps(name: str) -> list[str]:
    """Return `a[b][0]` as a, b, 0; a key whose brackets do not match is one plain name."""
    head, bracket, tail = name.partition("[")
    if not bracket or not head or not tail.endswith("]"):
        return [name]
    steps = tail[:-1].split("][", BRACKETS_LIMIT)
    if len(steps) > BRACKETS_LIMIT:
        raise UnreadableBodyError(f"a form field's name has more than {BRACKETS_LIMIT} brackets")
    if any("[" in step or "]" in step for step in steps):
        return [name]
    return [head, *steps]


def _is_index(step: str) -> bool:
    return step.isascii() and step.isdigit() and len(step) <= _INDEX_DIGITS and (step == "0" or step[0] != "0")


def _settled(value: Json) -> Json:
    """Return a finished node as a list when it is keyed 0..n, else as a map; depth is bounded by BRACKETS_LIMIT."""
    if not isinstance(value, _Node):
        return value
    if value.next_index == len(value) and all(map(_is_index, value)):
        return [_settled(value[str(index)]) for index in range(len(value))]
    return {name: _settled(one) for name, one in value.items()}


# -- XML ---------------------------------------------------------------------------------------------------------------


def _xml(body: bytes, _content_type: str, _spec: BodySection) -> Json:
    """Read an XML document as a map with its root element's name.

    Namespaces are dropped, attributes get an `@`, an element with nothing but text is that text, one that is repeated is a
    list. A document type is refused whole: no entity is ever expanded and nothing outside is ever read.
    """
    reader = _XmlReader()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.data
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = _refuse_document_type
    try:
        parser.Parse(body, True)
    except expat.ExpatError as fault:
        raise UnreadableBodyError(
            f"the body is not XML: {expat.ErrorString(fault.code)} at line {fault.lineno}, column {fault.offset + 1}"
        ) from None
    except (LookupError, ValueError):
        raise UnreadableBodyError("the body is XML in an encoding that is not known") from None
    return clean(reader.open[0][0])


class _XmlReader:
    """Builds the value while expat reads; `open` are the elements around the present place, fields and text of each."""

    def __init__(self) -> None:
        self.open: list[tuple[dict[str, Json], list[str]]] = [({}, [])]
        self.elements = 0

    def start(self, _name: str, attributes: dict[str, str]) -> None:
        self.elements += 1
        if len(self.open) > DEPTH_LIMIT:
            raise UnreadableBodyError(f"the body is nested deeper than {DEPTH_LIMIT} levels")
        if self.elements > ELEMENTS_LIMIT:
            raise UnreadableBodyError(f"the body has more than {ELEMENTS_LIMIT} elements")
        kept = {f"@{_local(key)}": value for key, value in attributes.items() if not key.startswith("xmlns")}
        self.open.append((kept, []))

    def end(self, name: str) -> None:
        fields, texts = self.open.pop()
        text = "".join(texts).strip()
        if fields and text:
            fields["#text"] = text
        _add(self.open[-1][0], _local(name), fields or text or None)

    def data(self, text: str) -> None:
        self.open[-1][1].append(text)


def _local(name: str) -> str:
    return name.rpartition(":")[2]


def _refuse_document_type(*_: Any) -> None:
    raise UnreadableBodyError("the body has a document type; XML with one is not read")


#: How the JSON inside a form field is read.
_PLAIN_JSON: Final = BodySection()
_READERS: Final[Mapping[BodyFormat, Callable[[bytes, str, BodySection], Json]]] = {
    BodyFormat.JSON: _json,
    BodyFormat.FORM: _form,
    BodyFormat.FORM_BRACKETS: _form,
    BodyFormat.XML: _xml,
}

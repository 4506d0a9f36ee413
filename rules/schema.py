"""What an editor needs to help with rule files: their grammar as a JSON Schema (draft 2020-12).

It is made from the models that check the files, so it cannot fall behind them. Keys of a later version are not in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from rules.document import Document
from rules.operators import OPERATORS
from rules.paths import ROOTS
from rules.vocabulary import CANONICAL_EVENT_TYPES, Json, TaskType

_SCALAR: Final = {"type": ["string", "number", "boolean", "null"]}
_CONDITIONS: Final = {"$ref": "#/$defs/Conditions"}
#: What an operator compares with, where it is not any value.
_WANTED: Final[Mapping[str, Json]] = {
    "between": {"type": "array", "minItems": 2, "maxItems": 2},
    "in": {"type": "array", "minItems": 1},
    "not_in": {"type": "array", "minItems": 1},
    "exists": {"type": "boolean"},
    "matches": {"type": "string"},
    "starts_with": {"type": "string"},
    "ends_with": {"type": "string"},
    "older_than": {"type": "string"},
    "newer_than": {"type": "string"},
}
#: Operators whose words are known and that come with a later version.
_NOT_YET: Final = frozenset({"changed"})

#: Sections that may stand there with nothing in them, while a file is being written.
_MAY_BE_EMPTY: Final = ("teams", "sources", "rules")
#: Mappings that may be null: `defaults` for the same reason, the others where an event knows nothing.
_MAY_BE_NULL: Final = ("DefaultsText", "GivenSubject", "GivenContact")


def schema() -> dict[str, Json]:
    """Return the JSON Schema of a rule file, every key with its description."""
    made = _without_null(Document.model_json_schema(by_alias=True))
    definitions = made["$defs"]
    for definition in (made, *definitions.values()):
        definition.pop("title", None)
    for described in (
        *(made["properties"][name] for name in _MAY_BE_EMPTY),
        *(definitions[name] for name in _MAY_BE_NULL),
    ):
        described["type"] = [described["type"], "null"]
    rule = definitions["RuleText"]["properties"]
    rule["if"] = {**_CONDITIONS, "description": rule["if"]["description"]}
    rule["when"]["examples"] = [*CANONICAL_EVENT_TYPES, "deal.*"]
    definitions["Entry"]["oneOf"] = [{"required": [kind.value]} for kind in TaskType]
    definitions |= _conditions()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Leadwire rule file",
        **made,
    }


def _conditions() -> dict[str, Json]:
    """Return what may stand under `if:`."""
    several = {"type": "array", "items": _CONDITIONS, "minItems": 1}
    operators = {
        name: {**_WANTED.get(name, {}), "description": operator.doc}
        for name, operator in OPERATORS.items()
        if name not in _NOT_YET
    }
    test = {
        "anyOf": [
            {**_SCALAR, "description": "A plain value means equals; null means missing."},
            {"type": "object", "properties": operators, "additionalProperties": False, "minProperties": 1},
        ]
    }
    groups = {
        "any": {**several, "description": "At least one of these must hold."},
        "all": {**several, "description": "All of these must hold."},
        "not": {**_CONDITIONS, "maxProperties": 1, "description": "This must not hold."},
    }
    return {
        "Conditions": {
            "type": "object",
            "description": "Every line must hold: a field's path and what it must be, or any, all, not.",
            "properties": groups,
            "additionalProperties": {"$ref": "#/$defs/Test"},
            "minProperties": 1,
            "propertyNames": {"pattern": rf"^(any|all|not|({'|'.join(ROOTS)})([.\[].*)?)$"},
        },
        "Test": test,
    }


def _without_null(value: Json) -> Json:
    """Return a schema in which no key may be empty: pydantic's optional fields take null, rule files do not."""
    if isinstance(value, list):
        return [_without_null(item) for item in value if item != {"type": "null"}]
    if not isinstance(value, dict):
        return value
    made = {
        key: _without_null(item)
        for key, item in value.items()
        if not (key == "default" and item is None) and not (key == "title" and isinstance(item, str))
    }
    options = made.get("anyOf", made.get("oneOf"))
    if isinstance(options, list) and len(options) == 1:
        made.pop("anyOf", None)
        made.pop("oneOf", None)
        made = {**options[0], **made}
    return made

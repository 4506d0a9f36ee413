"""How a fault in a source is worded and where it points: plain English, the place, the nearest right word.

Values are never quoted, for next to a misspelt key there may stand a secret; but one that should have been a word of a
closed list is.
"""

from __future__ import annotations

from typing import Any, Final, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from rules.messages import did_you_mean, kind, listed
from rules.yaml_reader import Path, SourceMap

#: What a key holds, for the message when it is missing.
_NEEDED: Final = {
    "auth": "how requests prove where they are from, such as {static_header: {header: X-Webhook-Secret}}",
    "event": "where an item says what happened, such as {type: event}",
    "type": "the path of the event's type, such as event",
    "header": "the name of the header that is looked at",
    "path": "the path that is looked at",
    "id": "the path of the record's id",
    "match": "paths with the values wanted there, such as {type: ping}",
    "answer": "the path of the value that is sent back",
}


def complain_all(error: ValidationError, model: type[BaseModel], places: SourceMap, at: Path) -> None:
    """Record every fault that reading a source found; `at` is where the source stands in its file."""
    for fault in error.errors(include_url=False):
        _complain(fault, model, places, at)


def _complain(fault: ErrorDetails, model: type[BaseModel], places: SourceMap, at: Path) -> None:
    loc = tuple(fault["loc"])
    path = (*at, *loc)
    context = fault.get("ctx", {})
    match fault["type"]:
        case "extra_forbidden":
            places.complain(path, _unknown_key(loc, model), at_key=True)
        case "missing":
            key = str(loc[-1])
            needed = f": {_NEEDED[key]}" if key in _NEEDED else ""
            places.complain(path[:-1], f"missing key `{key}`{needed}", at_key=True)
        case "value_error":
            places.complain(path, str(context["error"]))
        case "literal_error" | "enum":
            words = [word.strip("' ") for word in str(context["expected"]).replace(" or ", ", ").split(",")]
            meant = did_you_mean(fault["input"], words) if isinstance(fault["input"], str) else ""
            given = kind(fault["input"])
            places.complain(path, f"{given} is not one of the words known here{meant or ';'} allowed: {listed(words)}")
        case other:
            places.complain(path, _WORDS.get(other, "cannot stand here").format(**context))


_WORDS: Final = {
    "string_type": "must be text",
    "string_too_short": "is empty",
    "string_too_long": "is longer than {max_length} characters",
    "string_pattern_mismatch": "must be two capital letters, such as CL",
    "int_type": "must be a whole number",
    "bool_type": "must be true or false",
    "list_type": "must be a list; begin each entry with `-`",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "greater_than_equal": "must be {ge} or more",
    "less_than_equal": "must be {le} or less",
}


def _unknown_key(loc: Path, model: type[BaseModel]) -> str:
    key = str(loc[-1])
    found = _model_at(loc[:-1], model)
    if found is None:
        return "unknown key"
    keys = list(found.model_fields)
    return f"unknown key{did_you_mean(key, keys) or ';'} allowed here: {listed(keys)}"


def _model_at(loc: Path, model: type[BaseModel]) -> type[BaseModel] | None:
    """Return the model that describes what stands at a place."""
    found: type[BaseModel] | None = model
    for step in loc:
        if isinstance(step, int):
            continue
        field = found.model_fields.get(step) if found else None
        found = _model_in(field.annotation) if field else None
    return found


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)

"""How a fault that the grammar found is worded and where it points: plain English, the place, the nearest right word.

Pydantic reports what it expected in terms of Python; none of that reaches a user. A fault points at the key when the key is
wrong or something is missing under it, and at the value when the value is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from rules.document import TAGS, Document, Entry, OtherTask, RuleText, Section, TeamTask, WhatsappTemplate
from rules.messages import did_you_mean, kind, listed
from rules.shapes import EMPTY
from rules.vocabulary import Json
from rules.yaml_reader import Path, SourceMap

#: A type as it stands at a field of a model: a class, or something of `typing`.
Annotation = Any


def validated(document: Json, places: SourceMap) -> Document | None:
    """Return the document as the grammar reads it, or None with all of its faults in `places`."""
    if document is None:
        return Document()
    if not isinstance(document, dict):
        keys = listed(allowed_keys(Document))
        places.complain((), f"a rule file must be a mapping with some of the keys {keys}; this is {kind(document)}")
        return None
    try:
        return Document.model_validate(document)
    except ValidationError as error:
        for path, message, at_key in complaints(error, Document):
            places.complain(path, message, at_key=at_key)
        return None


def complaints(error: ValidationError, root: type[Section]) -> Iterator[tuple[Path, str, bool]]:
    """Yield what the grammar refused of a `root`: where, what is said about it, and whether the key is meant."""
    for fault in error.errors(include_url=False):
        yield from _complaints(fault, root)


def allowed_keys(model: type[Section]) -> list[str]:
    """Return the keys a section may have, as they are written."""
    return [field.alias or name for name, field in model.model_fields.items() if name != "calendars"]


def _complaints(fault: ErrorDetails, root: type[Section]) -> Iterator[tuple[Path, str, bool]]:
    path: Path = tuple(step for step in fault["loc"] if step not in TAGS)
    value = fault["input"]
    match fault["type"]:
        case "extra_forbidden":
            yield path, _unknown_key(path, root), True
        case "missing":
            yield path[:-1], _missing_key(path, root), True
        case "value_error":
            error = fault["ctx"]["error"]
            for one in (error, *getattr(error, "more", ())):
                yield (*path, *getattr(one, "inside", ())), str(one), getattr(one, "at_key", False)
        case "list_type":
            remedy = EMPTY if value is None else f"must be a list, not {kind(value)}"
            yield path, remedy + ("; begin each entry with `-`" if isinstance(value, dict) else ""), False
        case _:
            yield path, EMPTY if value is None else f"must be a mapping, not {kind(value)}", False


def _unknown_key(path: Path, root: type[Section]) -> str:
    key, model = str(path[-1]), _model_at(path[:-1], root)
    if model is None:
        return "unknown key"
    if key in model.NOT_YET:
        return f"`{key}` is not yet supported: {model.NOT_YET[key]}"
    keys = allowed_keys(model)
    return f"unknown key `{key}`{_elsewhere(path, model, root) or did_you_mean(key, keys) or ';'} allowed here: {listed(keys)}"


def _elsewhere(path: Path, model: type[Section], root: type[Section]) -> str:
    """Say where a key belongs that is right in itself and stands one level too far in or out."""
    key = str(path[-1])
    if len(path) > 1 and isinstance(path[-2], str):
        around = _model_at(path[:-2], root)
        if around is not None and key in allowed_keys(around):
            return f": it stands beside `{path[-2]}`, not inside it;"
    if model is RuleText and key in {"on_failure", "on_outcome"}:
        return ": it stands beside a task, in its entry under `then`;"
    if model is Entry and key in allowed_keys(OtherTask) + allowed_keys(WhatsappTemplate) + allowed_keys(TeamTask):
        return ": it stands inside the task, not beside it;"
    return ""


def _missing_key(path: Path, root: type[Section]) -> str:
    key, model = str(path[-1]), _model_at(path[:-1], root)
    for name, field in model.model_fields.items() if model else ():
        if (field.alias or name) == key and field.description:
            return f"missing key `{key}`: {field.description[0].lower()}{field.description[1:].rstrip('.')}"
    return f"missing key `{key}`"


def _model_at(path: Path, root: type[Section]) -> type[Section] | None:
    """Return the model of the section at a path below `root`."""
    found: list[Annotation] = [root]
    for step in path:
        found = [child for annotation in found for child in _children(annotation, step)]
    return next((one for annotation in found for one in _options(annotation) if _is_section(one)), None)


def _children(annotation: Annotation, step: str | int) -> Iterator[Annotation]:
    for option in _options(annotation):
        if _is_section(option):
            yield from (
                field.annotation for name, field in option.model_fields.items() if (field.alias or name) == step
            )
        elif _origin(option) is list and isinstance(step, int):
            yield get_args(option)[0]
        elif _origin(option) is dict and isinstance(step, str):
            yield get_args(option)[1]


def _options(annotation: Annotation) -> Iterator[Annotation]:
    """Yield what an annotation may be, its unions and remarks taken apart."""
    arguments, origin = get_args(annotation), _origin(annotation)
    if origin is Annotated:
        yield from _options(arguments[0])
    elif arguments and origin not in {list, dict}:
        for argument in arguments:
            yield from _options(argument)
    else:
        yield annotation


def _origin(annotation: Annotation) -> Annotation:
    return get_origin(annotation)  # typed too narrowly: it knows nothing of Annotated


def _is_section(annotation: Annotation) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)

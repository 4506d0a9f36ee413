"""What an editor needs to help with `sources:`: the grammar of one source as a JSON Schema.

It is made from the models that check a source, so a misspelt key is marked while it is typed. Nothing is required: what a
source leaves out, the preset that it extends may give.
"""

from __future__ import annotations

from typing import Final

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from ingress.sources.document import SourceDoc
from ingress.sources.presets import PRESETS
from rules.vocabulary import Json

_REF: Final = "#/$defs/{model}"
_VARIABLE: Final = {"type": "string", "pattern": r"\$\{"}
#: Keys of a later version: they would be refused.
_NOT_YET: Final = frozenset({"enrich"})
_LEFT_OUT: Final = frozenset({"required", "title"})


class _Loose(GenerateJsonSchema):
    """Takes any value where code of ours reads it (paths, spans, secrets), and leaves defaults out."""

    def function_plain_schema(self, schema: core_schema.PlainValidatorFunctionSchema) -> JsonSchemaValue:  # noqa: ARG002 - all alike
        return {}

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])


def definitions() -> dict[str, Json]:
    """Return the schemas of a source and of all it consists of, by the name of their model; a source is `SourceDoc`."""
    made = SourceDoc.model_json_schema(ref_template=_REF, schema_generator=_Loose)
    found = made.pop("$defs")
    properties = {key: value for key, value in made["properties"].items() if key not in _NOT_YET}
    properties["extend"] = {"enum": [*PRESETS]}
    return {name: _cleaned(value) for name, value in {**found, "SourceDoc": {**made, "properties": properties}}.items()}


def _cleaned(value: Json) -> Json:
    """Return a schema without required keys and titles; where a word of a list may stand, a variable may, too."""
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    if not isinstance(value, dict):
        return value
    made = {
        key: {name: _cleaned(one) for name, one in item.items()} if key == "properties" else _cleaned(item)
        for key, item in value.items()
        if key not in _LEFT_OUT
    }
    if "properties" in made:
        made["type"] = ["object", "null"]  # null takes away what the preset says
    if made.get("anyOf", [])[1:] == [{"type": "null"}] and "$ref" in made["anyOf"][0]:
        made |= made.pop("anyOf")[0]
    if "enum" in made or "const" in made:
        return {"anyOf": [made, _VARIABLE]}
    return made

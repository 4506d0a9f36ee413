"""Which kinds of values the keys of rule files take: how each is checked, and what an editor is told of it.

A checked value is what `rules/shapes.py` and `rules/provider_shapes.py` make of a written one; the schema beside it is a
little wider, because an editor knows neither the event nor the variables.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import PlainValidator, WithJsonSchema

from rules import provider_shapes, shapes
from rules.shapes import dynamic, fixed, unless_missing
from rules.vocabulary import Json

#: Template code or a variable: where one of these may stand, an editor cannot check more.
CODE: Final[Mapping[str, Json]] = {"type": "string", "pattern": r"\{\{|\{%|\$\{"}
VARIABLE: Final[Mapping[str, Json]] = {"type": "string", "pattern": r"\$\{"}
TEXT: Final[Mapping[str, Json]] = {"type": "string", "minLength": 1}
SPAN: Final[Mapping[str, Json]] = {"type": "string", "pattern": r"^\+?[0-9]{1,9}[smhdw]$"}
_UUID: Final[Mapping[str, Json]] = {"type": "string", "pattern": f"^{provider_shapes.UUID_PATTERN}$"}
_COUNTRY_ZONES: Final[Mapping[str, Json]] = {
    "type": "object",
    "propertyNames": {"pattern": "^[A-Z]{2}$"},
    "additionalProperties": {"type": "string"},
}
CLOCK: Final[Mapping[str, Json]] = {"type": "string", "pattern": f"^{shapes.TIME_PATTERN}$"}


def either(*schemas: Mapping[str, Json]) -> WithJsonSchema:
    """Return the schema of a value that fits one of these."""
    return WithJsonSchema({"anyOf": [dict(schema) for schema in schemas]})


def _or_null(kind: str) -> WithJsonSchema:
    return WithJsonSchema({"type": [kind, "null"]})


Text = Annotated[Json, PlainValidator(fixed(shapes.text)), WithJsonSchema({**TEXT})]
FreeText = Annotated[Json, PlainValidator(shapes.text), WithJsonSchema({**TEXT})]
DynamicText = Annotated[Json, PlainValidator(dynamic(shapes.text)), WithJsonSchema({**TEXT})]
Name = Annotated[Json, PlainValidator(fixed(shapes.name)), WithJsonSchema({**TEXT, "maxLength": 100})]
TaskName = Annotated[
    Json, PlainValidator(fixed(shapes.task_name)), WithJsonSchema({**TEXT, "maxLength": 100, "pattern": "^[^/]*$"})
]
Flag = Annotated[Json, PlainValidator(fixed(shapes.flag)), WithJsonSchema({"type": "boolean"})]
DynamicFlag = Annotated[Json, PlainValidator(dynamic(shapes.flag)), either({"type": "boolean"}, CODE)]
Zone = Annotated[
    Json,
    PlainValidator(fixed(shapes.zone)),
    WithJsonSchema({"type": "string", "examples": ["America/Santiago", "UTC"]}),
]
DynamicZone = Annotated[
    Json, PlainValidator(dynamic(shapes.zone)), WithJsonSchema({"type": "string", "examples": ["America/Santiago"]})
]
Span = Annotated[Json, PlainValidator(fixed(shapes.span)), either(SPAN, VARIABLE)]
Moment = Annotated[
    Json,
    PlainValidator(fixed(shapes.moment)),
    WithJsonSchema({"type": "string", "examples": ["2026-03-02T10:00:00-03:00"]}),
]
AgentId = Annotated[Json, PlainValidator(dynamic(provider_shapes.uuid("an agent", "agent_uuid"))), either(_UUID, CODE)]
TemplateId = Annotated[
    Json,
    PlainValidator(dynamic(provider_shapes.uuid("an approved template", "task_data.template_uuid"))),
    either(_UUID, CODE),
]
CampaignId = Annotated[
    Json, PlainValidator(dynamic(provider_shapes.uuid("a campaign", "campaign_uuid"))), either(_UUID, CODE)
]
ContactId = Annotated[
    Json, PlainValidator(dynamic(provider_shapes.uuid("a contact of Mindhunters", "contact_uuid"))), either(_UUID, CODE)
]
Phone = Annotated[
    Json,
    PlainValidator(dynamic(provider_shapes.phone)),
    either({"type": "string", "pattern": f"^{provider_shapes.PHONE_PATTERN}$"}, CODE),
]
At = Annotated[
    Json,
    PlainValidator(dynamic(shapes.at)),
    WithJsonSchema({"type": "string", "examples": ["now", "+10m", "next 09:00", "{{ data.callback_at }}"]}),
]
CallPriority = Annotated[
    Json,
    PlainValidator(dynamic(provider_shapes.call_priority)),
    either({"type": "integer", "minimum": 1, "maximum": 10}, CODE),
]
TeamPriority = Annotated[
    Json,
    PlainValidator(dynamic(provider_shapes.team_priority)),
    either({"enum": [*provider_shapes.PRIORITY_WORDS]}, CODE),
]
CountryZones = Annotated[Json, PlainValidator(shapes.country_zones), WithJsonSchema({**_COUNTRY_ZONES})]
GivenText = Annotated[Json, PlainValidator(unless_missing(shapes.text)), _or_null("string")]
GivenZone = Annotated[Json, PlainValidator(unless_missing(fixed(shapes.zone))), _or_null("string")]
GivenOpen = Annotated[Json, PlainValidator(unless_missing(shapes.mapping)), _or_null("object")]
GivenCount = Annotated[Json, PlainValidator(unless_missing(shapes.whole(0))), _or_null("integer")]
Open = Annotated[Json, PlainValidator(shapes.mapping), WithJsonSchema({"type": "object"})]
Assign = Annotated[
    Json,
    PlainValidator(dynamic(provider_shapes.assignees)),
    either(TEXT, {"type": "array", "items": {**TEXT}, "minItems": 1}),
]
EventTypes = Annotated[
    Json,
    PlainValidator(fixed(shapes.event_types)),
    either(TEXT, {"type": "array", "items": {**TEXT}, "minItems": 1}),
]

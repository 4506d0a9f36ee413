"""The grammar of rule files: every key there is, and what may stand under it.

The same models check a file and give the JSON Schema that editors use. A key that is meant for a later version stands in
`NOT_YET` of its model: it is refused by that name and never ignored. What only makes sense of several keys together is
checked in `rules/consistency.py`; where a fault stands and how it is worded is decided in `rules/complaints.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, PlainValidator, Tag, WithJsonSchema
from pydantic.json_schema import SkipJsonSchema

from rules import provider_shapes, shapes
from rules.shapes import dynamic, fixed, present
from rules.value_types import (
    CLOCK,
    CODE,
    SPAN,
    AgentId,
    Assign,
    At,
    CallPriority,
    CampaignId,
    ContactId,
    CountryZones,
    DynamicFlag,
    DynamicText,
    DynamicZone,
    EventTypes,
    Flag,
    FreeText,
    GivenCount,
    GivenOpen,
    GivenText,
    GivenZone,
    Moment,
    Name,
    Open,
    Phone,
    Span,
    TaskName,
    TeamPriority,
    TemplateId,
    Text,
    Zone,
    either,
)
from rules.vocabulary import Json

_WINDOW: Final = "calling windows come with a later version"
_LATER: Final = "it comes with a later version; remove it"
_UNNAMED: Final = (
    "Mindhunters documents it without its wire name, and Leadwire sends no guesses; once you know the name, "
    "`extra_fields` can carry it"
)


class Section(BaseModel):
    """A mapping of a rule file: only the keys that are named here, every value of exactly its type."""

    model_config = ConfigDict(extra="forbid", strict=True)
    NOT_YET: ClassVar[Mapping[str, str]] = {}


class Retry(Section):
    """When a task that certainly was not executed is sent again, until its provider has accepted it."""

    strategy: Annotated[
        Json,
        PlainValidator(fixed(shapes.one_of("fixed", "exponential", "custom"))),
        WithJsonSchema({"enum": ["fixed", "exponential", "custom"]}),
    ] = Field("fixed", description="fixed: the same delay each time; exponential: growing; custom: as `schedule` says.")
    max_attempts: Annotated[
        Json,
        PlainValidator(fixed(shapes.whole(0, 100))),
        WithJsonSchema({"type": "integer", "minimum": 0, "maximum": 100}),
    ] = Field(3, description="Retries after the first try. Default 3; with custom, as many as the schedule has delays.")
    delay: Span = Field(None, description="The delay before the first retry. Default 60m.")
    factor: Annotated[
        Json,
        PlainValidator(fixed(shapes.number(1, 100))),
        WithJsonSchema({"type": "number", "minimum": 1, "maximum": 100}),
    ] = Field(2, description="Exponential only: each delay is this many times the last. Default 2.")
    cap: Span = Field(None, description="The longest delay; a provider's Retry-After is kept up to it. Default 24h.")
    jitter: Annotated[
        Json,
        PlainValidator(fixed(shapes.jitter)),
        either({"type": "number", "minimum": 0, "maximum": 1}, {"const": "full"}),
    ] = Field(0.1, description="The largest part of the delay added by chance (0.1: up to a tenth later), or full.")
    schedule: Annotated[
        Json,
        PlainValidator(fixed(shapes.schedule)),
        either({"type": "array", "items": {**SPAN}, "minItems": 1}, {"enum": [*shapes.SCHEDULES]}),
    ] = Field(None, description="Custom only: the delays, as in [1m, 5m, 1h], or standard-webhooks.")
    budget: Span = Field(None, description="The longest time from the first try to the last. Default 7d.")


class Redial(Section):
    """What Mindhunters itself does after no answer or busy."""

    NOT_YET: ClassVar[Mapping[str, str]] = {"every": _UNNAMED, "strategy": _UNNAMED}
    max: Annotated[Json, PlainValidator(dynamic(shapes.whole(1))), either({"type": "integer", "minimum": 1}, CODE)] = (
        Field(description="How often Mindhunters tries to reach the contact.")
    )


class TaskContact(Section):
    """Whom Mindhunters is to reach."""

    phone_number: Phone = Field(None, description="The phone number with its country code.")
    email: DynamicText = Field(None, description="The e-mail address.")


class MindhuntersTask(Section):
    """What every task for Mindhunters may say."""

    NOT_YET: ClassVar[Mapping[str, str]] = {"window": _WINDOW, "metadata": _UNNAMED}
    agent: AgentId = Field(description="The UUID of the Mindhunters agent that acts.")
    title: DynamicText = Field(None, description="The task's title; default: the rule's description, else its id.")
    description: DynamicText = Field(None, description="What the agent should know.")
    at: At = Field(None, description="When: now (default), +10m, next 09:00, a moment, or a template.")
    expires: Span = Field(None, description="How long after the event the task is still worth making, as in +24h.")
    priority: CallPriority = Field(None, description="1 (lowest) to 10.")
    redial: Annotated[Redial | None, BeforeValidator(present)] = Field(
        None, description="The provider's own tries after no answer or busy."
    )
    campaign: CampaignId = Field(None, description="The UUID of a Mindhunters campaign.")
    contact: Annotated[TaskContact | None, BeforeValidator(present)] = Field(
        None, description="Whom to reach; default: the event's contact, by phone."
    )
    contact_uuid: ContactId = Field(None, description="The contact's UUID at Mindhunters, instead of `contact`.")
    timezone: DynamicZone = Field(None, description="The time zone told to Mindhunters.")
    auto_queue: DynamicFlag = Field(None, description="Whether Mindhunters queues the task at once. Default true.")
    extra_fields: Open = Field(None, description="Raw fields for Mindhunters' request, at your own risk.")


class MakeCall(MindhuntersTask):
    """An AI phone call, executed by Mindhunters."""


class WhatsappTemplate(MindhuntersTask):
    """A WhatsApp template message, sent by Mindhunters."""

    template: TemplateId = Field(description="The UUID of an approved WhatsApp template.")


class OtherTask(MindhuntersTask):
    """Any other documented task of Mindhunters."""

    type: Annotated[
        Json,
        PlainValidator(fixed(provider_shapes.mindhunters_type)),
        WithJsonSchema({"enum": [*provider_shapes.MINDHUNTERS_TYPES]}),
    ] = Field(description="Which one.")
    task_data: Open = Field(None, description="What this type of task needs, as it goes to Mindhunters.")


class DueOn(Section):
    """A due date."""

    date: Annotated[
        Json, PlainValidator(dynamic(shapes.day)), WithJsonSchema({"type": "string", "examples": ["2026-12-01"]})
    ] = Field(description="The day, as in 2026-12-01; Vambe knows no time without a date.")
    time: Annotated[Json, PlainValidator(dynamic(shapes.clock)), either(CLOCK, CODE)] = Field(
        None, description="The time of day in the task's time zone, as in 14:00; without it the task is all-day."
    )


def _due_form(value: Json) -> str:
    return TAGS[0] if isinstance(value, dict) else TAGS[1]


#: Pydantic puts these into the place of a fault; no key of a file can look like them.
TAGS: Final = ("\0mapping", "\0text")


class TeamTask(Section):
    """A task for a person, held by Vambe."""

    NOT_YET: ClassVar[Mapping[str, str]] = {"window": _WINDOW}
    title: DynamicText = Field(None, description="The task's title; default: the rule's description, else its id.")
    description: DynamicText = Field(None, description="What the person should know.")
    due: Annotated[
        Annotated[DueOn, Tag("\0mapping")]
        | Annotated[Json, PlainValidator(dynamic(shapes.due_text)), either(SPAN, CODE), Tag("\0text")],
        Discriminator(_due_form),
    ] = Field(None, description="When it is due: +2h, or a date with or without a time; absent: no due date.")
    timezone: DynamicZone = Field(None, description="The zone of the due time; default: the team's, the rule's, ...")
    priority: TeamPriority = Field("medium", description="low, medium (default) or high.")
    assign: Assign = Field(description="Who it is for: a team, a list of user ids, or a template.")
    ai_contact_id: DynamicText = Field(None, description="The contact at Vambe.")
    ai_customer_id: DynamicText = Field(None, description="The customer at Vambe.")
    extra_fields: Open = Field(None, description="Raw fields for Vambe's request, at your own risk.")


class Entry(Section):
    """One task of a rule: its type with what is sent, and beside it what is done when sending fails."""

    NOT_YET: ClassVar[Mapping[str, str]] = {
        "window": _WINDOW,
    }
    id: TaskName = Field(None, description="The task's name in its rule; default: its type.")
    retry: Annotated[Retry | None, BeforeValidator(present)] = Field(None, description="When it is sent again.")
    if_unsure: Annotated[
        Json, PlainValidator(fixed(shapes.one_of("ask", "repeat"))), WithJsonSchema({"enum": ["ask", "repeat"]})
    ] = Field(
        "ask",
        description="What to do when no look-up at the provider can tell whether it was executed: ask a person, or repeat "
        "it, which may touch somebody twice.",
    )
    make_call: Annotated[MakeCall | None, BeforeValidator(present)] = Field(None, description="An AI phone call.")
    whatsapp_template: Annotated[WhatsappTemplate | None, BeforeValidator(present)] = Field(
        None, description="A WhatsApp template message."
    )
    team_task: Annotated[TeamTask | None, BeforeValidator(present)] = Field(None, description="A task for a person.")
    mindhunters_task: Annotated[OtherTask | None, BeforeValidator(present)] = Field(
        None, description="Any other documented task of Mindhunters."
    )
    on_failure: Annotated[list[Entry] | None, BeforeValidator(shapes.items("task"))] = Field(
        None, description="Tasks to make when this one ends dead or too late; their templates may use `failure`."
    )
    on_outcome: Annotated[OnOutcome | None, BeforeValidator(present)] = Field(
        None,
        description="Tasks to make when Mindhunters has ended this one; needs LEADWIRE_MINDHUNTERS_POLL.",
    )


class OnOutcome(Section):
    """What follows when Mindhunters has ended a task, by how; templates may use `outcome` and `failure`."""

    completed: Annotated[list[Entry] | None, BeforeValidator(shapes.items("task"))] = Field(
        None, description="Tasks to make when it was carried out."
    )
    failed: Annotated[list[Entry] | None, BeforeValidator(shapes.items("task"))] = Field(
        None, description="Tasks to make when Mindhunters gave up on it."
    )
    expired: Annotated[list[Entry] | None, BeforeValidator(shapes.items("task"))] = Field(
        None, description="Tasks to make when its time passed before it was carried out."
    )


Entry.model_rebuild()


class GivenContact(Section):
    """The contact of a test's event."""

    id: GivenText = Field(None, description="The contact's id at its source.")
    name: GivenText = Field(None, description="The contact's name.")
    phone: GivenText = Field(None, description="The phone number with its country code, as events carry it.")
    email: GivenText = Field(None, description="The e-mail address.")
    country: GivenText = Field(None, description="The country, two letters.")
    timezone: GivenZone = Field(None, description="The contact's time zone.")
    language: GivenText = Field(None, description="The language.")
    consent: GivenOpen = Field(None, description="What the contact agreed to.")


class GivenSubject(Section):
    """The record a test's event is about."""

    kind: FreeText = Field(description="lead, deal, contact ...")
    id: FreeText = Field(description="Its id at the source.")


class Given(Section):
    """The event of a test; what is left out is made up."""

    type: Name = Field(None, description="The event's type; default: what the rule listens to.")
    id: FreeText = Field(None, description="The event's id.")
    source: FreeText = Field(None, description="The source's name.")
    occurred_at: Moment = Field(None, description="When it happened; default: the test's `at`.")
    received_at: Moment = Field(None, description="When it came in; default: the test's `at`.")
    subject: GivenSubject | None = Field(None, description="Its record.")
    contact: GivenContact | None = Field(None, description="Its person.")
    changed: GivenOpen = Field(None, description="What changed, as in {data.stage: {from: mql, to: sql}}.")
    attempt: GivenCount = Field(None, description="Which try of the sender this is.")
    data: Any = Field(None, description="What the source sent.")


class RuleTest(Section):
    """A case that shows what the rule is for: `leadwire check` runs it."""

    name: Name = Field(description="What the case is.")
    at: Moment = Field(None, description="The moment of the test; default: now.")
    given: Annotated[Given | None, BeforeValidator(present)] = Field(description="The event.")
    expect: Annotated[
        Json,
        PlainValidator(shapes.expected),
        WithJsonSchema({"type": "array", "items": {"type": ["string", "object"], "maxProperties": 1}}),
    ] = Field(description="The tasks that must come of it, in any order: by type or id, alone or with some fields.")


class RuleText(Section):
    """When this event comes, if this holds, then these tasks."""

    NOT_YET: ClassVar[Mapping[str, str]] = dict.fromkeys(
        (
            *("once_per", "cancel_on", "caps", "rank", "require", "mode", "sla", "on_breach", "changed", "expr"),
            "absent",
        ),
        _LATER,
    ) | {"window": _WINDOW}
    id: Name = Field(description="The rule's name, one of its kind in all files; it is part of every task's key.")
    description: FreeText = Field(None, description="What the rule is for; the default title of its tasks.")
    when: EventTypes = Field(description="The event type, a list of them, or a pattern such as deal.*")
    conditions: Annotated[Any, BeforeValidator(present)] = Field(
        None, alias="if", description="Conditions: every line must hold."
    )
    then: Annotated[list[Entry], BeforeValidator(shapes.items("task"))] = Field(description="The tasks, in order.")
    stop: Flag = Field(
        default=False, description="Whether later rules of this file are left out when this one made a task."
    )
    timezone: Zone = Field(None, description="The time zone of this rule's team tasks.")
    tests: Annotated[list[RuleTest] | None, BeforeValidator(present)] = Field(None, description="Its test cases.")


class MemberText(Section):
    """A person of a team."""

    name: FreeText = Field(None, description="The name, for people.")
    id: Text = Field(description="The user's id at Vambe.")


class TeamText(Section):
    """Who can be assigned under one name."""

    by: Annotated[
        Json,
        PlainValidator(fixed(shapes.one_of("everyone", "round_robin"))),
        WithJsonSchema({"enum": ["everyone", "round_robin"]}),
    ] = Field("everyone", description="everyone (default): all of them; round_robin: one after the other.")
    timezone: Zone = Field(None, description="The time zone of the team's tasks.")
    members: Annotated[list[MemberText], BeforeValidator(shapes.items("member"))] = Field(description="The people.")


class DefaultsText(Section):
    """What holds where a rule says nothing; in one file only."""

    NOT_YET: ClassVar[Mapping[str, str]] = dict.fromkeys(("caps", "require", "mode"), _LATER) | {"window": _WINDOW}
    timezone: Zone = Field(None, description="The time zone of team tasks.")
    country_zones: CountryZones = Field(
        None, description="The zone to assume in a country that has several, as in {US: America/New_York}."
    )
    retry: Annotated[Retry | None, BeforeValidator(present)] = Field(None, description="The retry of every task.")


class Document(Section):
    """A rule file of Leadwire."""

    NOT_YET: ClassVar[Mapping[str, str]] = dict.fromkeys(("caps", "mode", "sla", "require"), _LATER)
    version: Annotated[Json, PlainValidator(shapes.version), WithJsonSchema({"const": 1})] = Field(
        None, description="The version of the grammar: 1."
    )
    defaults: DefaultsText | None = Field(None, description="What holds where a rule says nothing.")
    calendars: SkipJsonSchema[Annotated[Json, PlainValidator(shapes.no_calendars)]] = None
    teams: dict[str, TeamText] | None = Field(None, description="Teams by name.")
    sources: dict[str, Open] | None = Field(None, description="Who may post, by name; see the page on sources.")
    rules: list[RuleText] | None = Field(None, description="The rules, in order.")

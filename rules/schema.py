"""The grammar of rule files: every key there is, what may stand under it, and what is said about what may not.

The models check a file, come out typed, and give the JSON Schema that editors use. A key that is meant for a later version
stands in `NOT_YET` of its model: it is refused by that name and never ignored. What only makes sense of several keys together
is checked in `rules/validation.py`. What the providers ask of values: Mindhunters create-task reference and Vambe create-task
page, read 2026-11.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, ClassVar, Final, Literal, TypeVar, get_args, get_origin

from annotated_types import Ge, Le, MaxLen, MinLen
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainValidator,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    field_validator,
)
from pydantic.json_schema import JsonSchemaValue, SkipJsonSchema
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError, PydanticUseDefault, core_schema

from rules.messages import did_you_mean, kind, listed, nearest, shown
from rules.operators import OPERATORS
from rules.paths import ROOTS
from rules.templates import is_template
from rules.times import At, is_zone, parse_at, parse_date, parse_span, read_moment, zone_names
from rules.vocabulary import CANONICAL_EVENT_TYPES, CLOCK_PATTERN, E164_PATTERN, UUID_PATTERN, Json, TaskType
from rules.yaml_reader import Path

NAME_LIMIT_CHARACTERS: Final = 100
EMPTY: Final = "is empty: give it a value, or remove it"

#: Retry schedules with a name. Source: Standard Webhooks specification, example schedule, read 2026-11.
SCHEDULES: Final = {
    "standard-webhooks": tuple(
        timedelta(seconds=seconds) for seconds in (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
    )
}

_WINDOW: Final = "calling windows come with a later version"
_LATER: Final = "it comes with a later version; remove it"
_UNNAMED: Final = (
    "Mindhunters documents it without its wire name, and Leadwire sends no guesses; once you know the name, "
    "`extra_fields` can carry it"
)


# Texts that came from variables --------------------------------------------------------------------------------------


class Constant(str):
    """Text to be used as it is, even if it looks like a template: it came from a variable."""

    __slots__ = ()


class Numeral(str):
    """A plain number that one variable gave as text; it counts as a number where one is expected."""

    __slots__ = ()

    def number(self) -> int | float:
        """Return the number."""
        return float(self) if "." in self else int(self)


class Pending(str):
    """Text with a variable that this process does not resolve, so its value cannot be checked."""

    __slots__ = ()


def has_code(value: Json) -> bool:
    """Return whether a value is a template to be rendered."""
    return isinstance(value, str) and not isinstance(value, Constant) and is_template(value)


# What a single value may be ------------------------------------------------------------------------------------------

T = TypeVar("T")

#: Template code or a variable: where one of these may stand, an editor cannot check more.
_CODE: Final = {"type": "string", "pattern": r"\{\{|\{%|\$\{"}


@dataclass(frozen=True, slots=True)
class Must:
    """The start of the message for a value of the wrong kind, before "..., not the number 5"."""

    sentence: str


@dataclass(frozen=True, slots=True)
class AtLeastOne:
    """The message for an empty list; with `or_null` also for a missing value."""

    sentence: str
    or_null: bool = True


@dataclass(frozen=True, slots=True)
class Because:
    """The reason for a number's bounds, for messages."""

    reason: str


@dataclass(frozen=True, slots=True)
class _TemplateAllowed:
    """Lets template code and variables of other processes pass as text; what a template gives is checked when it is there."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return how the first of the types in a union is read, or a template."""
        wanted = handler.generate_schema((get_args(source) or (source,))[0])
        return core_schema.no_info_wrap_validator_function(
            lambda value, read: value if isinstance(value, Pending) or has_code(value) else read(value), wanted
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Return the schema of that type, or of a template."""
        return {"anyOf": [handler(schema), {**_CODE}]}


def _no_template(value: Json) -> Json:
    if has_code(value) and not isinstance(value, Pending):
        raise ValueError("cannot be a template: this value is needed before there is an event")
    return value


def _read_fixed(value: Json, read: ValidatorFunctionWrapHandler) -> Json:
    if isinstance(value, Pending):
        raise PydanticUseDefault
    return read(_no_template(value))


def _read_number(value: Json) -> Json:
    return value.number() if isinstance(value, Numeral) else value


_NUMERAL: Final = BeforeValidator(_read_number)
#: A value or the text of a template that gives it.
OrTemplate = Annotated[T | str, _TemplateAllowed()]
#: A value that no template may give; a variable that is not resolved in this process gives the key's default.
Fixed = Annotated[T, WrapValidator(_read_fixed)]


def _kept(check: Callable[[str], object]) -> AfterValidator:
    """Return a validator that keeps a text as it is, if the check does not raise ValueError."""

    def checked(value: str) -> str:
        check(value)
        return value

    return AfterValidator(checked)


def _check_name(value: str) -> None:
    odd = next((letter for letter in value if not letter.isprintable()), None)
    if odd is not None and odd not in "\r\n\x85\u2028\u2029":
        raise ValueError(f"must not hold the unprintable character U+{ord(odd):04X}: remove it")
    if odd is not None or value != value.strip():
        raise ValueError("must be one line without spaces around it")


def _check_task_name(value: str) -> None:
    if "/" in value:
        raise ValueError("must not hold a `/`: it separates the names of tasks that follow on one another")


def _check_event_type(value: str) -> None:
    if value.count("*") > 1:
        raise ValueError(f"must hold at most one `*`, as in deal.*; {shown(value)} holds {value.count('*')}")


_A_ZONE: Final = "must be the name of a time zone such as America/Santiago"


def _check_zone(value: str) -> None:
    if not is_zone(value):
        last = {known.rpartition("/")[2]: known for known in sorted(zone_names(), reverse=True)}
        meant = last.get(value.strip().title().replace(" ", "_")) or nearest(value, zone_names())
        raise ValueError(f"{_A_ZONE}, not {kind(value)}{f'; did you mean {meant}?' if meant else ''}")


def _check_country(value: str) -> None:
    if not re.fullmatch(r"[A-Z]{2}", value):
        meant = f"; did you mean {value.upper()}?" if re.fullmatch(r"[A-Za-z]{2}", value) else ""
        raise ValueError(f"must be a country code of two capital letters, such as CL, not {shown(value)}{meant}")


def _read_span(value: Json) -> timedelta:
    if isinstance(value, bool) or not isinstance(value, str):
        remedy = ": say the unit" if isinstance(value, int | float) and not isinstance(value, bool) else ""
        raise ValueError(f"must be a span such as 90s, 15m, 2h, 3d or 2w, not {kind(value)}{remedy}")
    found = parse_span(value.removeprefix("+"))
    if found <= timedelta(0):
        raise ValueError(f"must be longer than nothing, not {shown(value)}")
    return found


def _read_at(value: Json) -> At:
    written = _TEXT.validate_python(value)
    try:
        return parse_at(written)
    except ValueError as error:
        if re.match(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", written):
            read_moment(written)  # says better what is wrong with a moment
        raise ValueError(f'must be now, +10m, "next 09:00" or a moment such as 2026-12-01T14:00; {error}') from error


def _read_event_types(value: Json) -> tuple[str, ...]:
    if isinstance(value, dict):
        if "absent" in value:
            raise ValueError("`absent` is not yet supported: for now a rule listens to an event that came")
        raise ValueError("must be an event type, a list of them, or a pattern such as deal.*, not a mapping")
    if isinstance(value, list):
        return tuple(_EVENT_TYPES.validate_python(value))
    return (_EVENT_TYPE.validate_python(_no_template(value)),)


def _read_assignees(value: Json) -> str | list[str]:
    return _USERS.validate_python(value) if isinstance(value, list) else _TEXT.validate_python(value)


def _read_schedule(value: Json) -> tuple[timedelta, ...]:
    if isinstance(value, list) and value:
        return tuple(_SPANS.validate_python(value))
    wanted = "must be a list of spans such as [1m, 5m, 1h]"
    if not isinstance(value, str):
        raise ValueError(f"{wanted}, not {kind(value) if value else 'empty'}")
    if value not in SCHEDULES:
        hint = did_you_mean(value, SCHEDULES)
        raise ValueError(f"{wanted}, or {' or '.join(SCHEDULES)}, not {kind(value)}{hint}")
    return SCHEDULES[value]


def _read_jitter(value: Json) -> float | Literal["full"]:
    if value == "full":
        return "full"
    value = _read_number(value)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError(f"must be a number from 0 to 1, or full, not {kind(value)}")
    return float(value)


def _refuse_priority_word(value: Json) -> Json:
    if isinstance(value, str) and value in get_args(_LEVELS):
        raise ValueError(f"must be a whole number from 1 to 10, not {shown(value)}: words are for team tasks")
    return _read_number(value)


def _refuse_priority_number(value: Json) -> Json:
    wire = {"0": "low", "1": "medium", "2": "high"}.get(str(value))
    if wire and not isinstance(value, bool):
        raise ValueError(f'must be low, medium or high; write {wire} for what Vambe calls "{value}"')
    if isinstance(value, int):
        not_this = f"not {kind(value)}: numbers from 1 to 10 are for Mindhunters' tasks"
        raise ValueError(f"must be low, medium or high, {not_this}")
    return value


def _refuse_own_types(value: Json) -> Json:
    if value == "make_call":
        raise ValueError("is not for calls: use the task `make_call` instead of `mindhunters_task`")
    if value == "send_message":
        raise ValueError("is not for messages: use the task `whatsapp_template` instead of `mindhunters_task`")
    return value


def _refuse_calendars(value: Json) -> None:
    if value is not None:
        raise ValueError("`calendars` are not yet supported: they come with calling windows; remove the section")


def _read_expected(value: Json) -> tuple[str, dict[str, Json]]:
    if isinstance(value, str):
        return value, {}
    if isinstance(value, dict) and len(value) == 1:
        ((task, fields),) = value.items()
        if fields is None or isinstance(fields, dict):
            return task, fields or {}
    seen = shown(value) if isinstance(value, dict) else kind(value)
    raise ValueError(f"must be one task such as make_call or {{make_call: {{title: Call Ana}}}}, not {seen}")


def _uuid_of(what: str, field: str) -> Any:
    """Return the constraints of a UUID of something at Mindhunters."""
    wanted = f"must be the UUID of {what}, such as 11111111-1111-4111-8111-111111111111"
    return Field(pattern=f"^{UUID_PATTERN}$"), Must(f"{wanted} (Mindhunters answers 422 on {field} otherwise)")


Text = Annotated[str, Field(pattern=r"\S")]
Name = Annotated[Text, MaxLen(NAME_LIMIT_CHARACTERS), _kept(_check_name), BeforeValidator(_no_template)]
TaskName = Annotated[Name, _kept(_check_task_name)]
EventType = Annotated[Name, _kept(_check_event_type)]
Zone = Annotated[str, Field(examples=["America/Santiago", "UTC"]), Must(_A_ZONE), _kept(_check_zone)]
_WRITTEN_SPAN = Annotated[str, Field(pattern=r"^\+?[0-9]{1,9}[smhdw]$|\$\{")]
Span = Annotated[timedelta, PlainValidator(_read_span, json_schema_input_type=_WRITTEN_SPAN)]
_A_MOMENT: Final = "2026-03-02T10:00:00-03:00"
Moment = Annotated[
    str, Field(examples=[_A_MOMENT]), Must(f'must be a moment such as "{_A_MOMENT}"'), _kept(read_moment)
]
_A_PHONE: Final = Must('must be a phone number with its country code, such as "+56911112222"')
Phone = Annotated[str, Field(pattern=f"^{E164_PATTERN}$"), _A_PHONE]
_A_CLOCK: Final = Must('must be a time of day such as "09:00" or "14:30" (HH:MM, 24 hours)')
Clock = Annotated[str, Field(pattern=f"^{CLOCK_PATTERN}$"), _A_CLOCK]
Day = Annotated[str, Field(examples=["2026-12-01"]), Must("must be a date such as 2026-12-01"), _kept(parse_date)]
When = Annotated[At, PlainValidator(_read_at, json_schema_input_type=Text)]
_WRITTEN_JITTER = Annotated[float, Ge(0), Le(1)] | Literal["full"]
Jitter = Annotated[float | Literal["full"], PlainValidator(_read_jitter, json_schema_input_type=_WRITTEN_JITTER)]
_WRITTEN_SCHEDULE = Annotated[list[Span], MinLen(1)] | Literal["standard-webhooks"]
Schedule = Annotated[tuple[timedelta, ...], PlainValidator(_read_schedule, json_schema_input_type=_WRITTEN_SCHEDULE)]
CallPriority = Annotated[
    int, Ge(1), Le(10), Because(" (Mindhunters answers 422 otherwise)"), BeforeValidator(_refuse_priority_word)
]
_LEVELS = Literal["low", "medium", "high"]
TeamPriority = Annotated[_LEVELS, BeforeValidator(_refuse_priority_number), Must("must be low, medium or high")]
_TEXT_OR_TEXTS = Text | Annotated[list[Text], MinLen(1)]
Assignees = Annotated[
    str | list[str],
    PlainValidator(_read_assignees, json_schema_input_type=_TEXT_OR_TEXTS),
    AtLeastOne("must name at least one user (Vambe answers 400 on responsibleIds otherwise)", or_null=False),
]
EventTypes = Annotated[
    tuple[str, ...],
    PlainValidator(_read_event_types, json_schema_input_type=_TEXT_OR_TEXTS),
    AtLeastOne("must name at least one event type", or_null=False),
]
_OTHER_TYPE = Literal["send_email", "follow_up", "appointment", "survey", "notification", "webhook", "custom"]
_AN_OTHER_TYPE: Final = Must(f"must be one of {listed(get_args(_OTHER_TYPE))}")
OtherType = Annotated[
    OrTemplate[_OTHER_TYPE], BeforeValidator(_refuse_own_types), BeforeValidator(_no_template), _AN_OTHER_TYPE
]
Mapped = dict[str, Any]
ExpectedTasks = Annotated[
    list[Annotated[tuple[str, Mapped], PlainValidator(_read_expected, json_schema_input_type=str | Mapped)]],
    Must("must be a list of tasks such as [make_call, team_task], or [] for none"),
]
Country = Annotated[str, _kept(_check_country), WithJsonSchema({"type": "string", "pattern": "^[A-Z]{2}$"})]
#: A value of a test's event: null, and an empty text, say that nothing is known.
Known = Annotated[T | None, BeforeValidator(lambda value: None if value == "" else value)]

_STRICT: Final = ConfigDict(strict=True)
_TEXT: Final[TypeAdapter[str]] = TypeAdapter(Text, config=_STRICT)
_EVENT_TYPE: Final[TypeAdapter[str]] = TypeAdapter(EventType, config=_STRICT)
_EVENT_TYPES: Final[TypeAdapter[list[str]]] = TypeAdapter(Annotated[list[EventType], MinLen(1)], config=_STRICT)
_USERS: Final[TypeAdapter[list[str]]] = TypeAdapter(Annotated[list[OrTemplate[Text]], MinLen(1)], config=_STRICT)
_SPANS: Final[TypeAdapter[list[timedelta]]] = TypeAdapter(list[Span], config=_STRICT)


# The models ----------------------------------------------------------------------------------------------------------


class Section(BaseModel):
    """A mapping of a rule file: only the keys that are named here, every value of exactly its type."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)
    #: Keys of a later version -> what is said about them.
    NOT_YET: ClassVar[Mapping[str, str]] = {}
    #: Keys under which nothing may stand.
    MAY_BE_NULL: ClassVar[frozenset[str]] = frozenset()

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_null(cls, value: Json, info: Any) -> Json:
        if value is None and info.field_name not in cls.MAY_BE_NULL:
            raise PydanticCustomError("empty", EMPTY)
        return value

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Return the schema without defaults, without titles, and with null only where it may stand."""
        made = handler.resolve_ref_schema(handler(schema))
        for key, described in made.get("properties", {}).items():
            for left_out in ("default", "title"):
                described.pop(left_out, None)
            options = [option for option in described.get("anyOf", ()) if option != {"type": "null"}]
            if key not in cls.MAY_BE_NULL and len(options) == 1:
                del described["anyOf"]
                described.update(options[0])
            elif key not in cls.MAY_BE_NULL and options:
                described["anyOf"] = options
        made.pop("title", None)
        return made


class RetrySpec(Section):
    """When a task that certainly was not executed is sent again, until its provider has accepted it."""

    strategy: Fixed[Literal["fixed", "exponential", "custom"]] = "fixed"
    """fixed: the same delay each time; exponential: growing; custom: as `schedule` says."""
    max_attempts: Fixed[Annotated[int, Ge(0), Le(100), _NUMERAL]] = 3
    """Retries after the first try. Default 3; with custom, as many as the schedule has delays."""
    delay: Fixed[Span] = timedelta(minutes=60)
    """The delay before the first retry. Default 60m."""
    factor: Fixed[Annotated[float, Ge(1), Le(100), _NUMERAL]] = 2
    """Exponential only: each delay is this many times the last. Default 2."""
    cap: Fixed[Span] = timedelta(hours=24)
    """The longest delay; a provider's Retry-After is kept up to it. Default 24h."""
    jitter: Fixed[Jitter] = 0.1
    """The largest part of the delay added by chance (0.1: up to a tenth later), or full."""
    schedule: Fixed[Schedule] = ()
    """Custom only: the delays, as in [1m, 5m, 1h], or standard-webhooks."""
    budget: Fixed[Span] = timedelta(days=7)
    """The longest time from the first try to the last. Default 7d."""


class Redial(Section):
    """What Mindhunters itself does after no answer or busy."""

    NOT_YET: ClassVar = {"every": _UNNAMED, "strategy": _UNNAMED}
    max: OrTemplate[Annotated[int, Ge(1), _NUMERAL]]
    """How often Mindhunters tries to reach the contact."""


class TaskContact(Section):
    """Whom Mindhunters is to reach."""

    phone_number: OrTemplate[Phone] | None = None
    """The phone number with its country code."""
    email: OrTemplate[Text] | None = None
    """The e-mail address."""


class MindhuntersTask(Section):
    """What every task for Mindhunters may say."""

    NOT_YET: ClassVar = {"window": _WINDOW, "metadata": _UNNAMED}
    agent: OrTemplate[Annotated[str, *_uuid_of("an agent", "agent_uuid")]]
    """The UUID of the Mindhunters agent that acts."""
    title: OrTemplate[Text] | None = None
    """The task's title; default: the rule's description, else its id."""
    description: OrTemplate[Text] | None = None
    """What the agent should know."""
    at: OrTemplate[When] | None = None
    """When: now (default), +10m, next 09:00, a moment, or a template."""
    expires: Fixed[Span | None] = None
    """How long after the event the task is still worth making, as in +24h."""
    priority: OrTemplate[CallPriority] | None = None
    """1 (lowest) to 10."""
    redial: Redial | None = None
    """The provider's own tries after no answer or busy."""
    campaign: OrTemplate[Annotated[str, *_uuid_of("a campaign", "campaign_uuid")]] | None = None
    """The UUID of a Mindhunters campaign."""
    contact: TaskContact | None = None
    """Whom to reach; default: the event's contact, by phone."""
    contact_uuid: OrTemplate[Annotated[str, *_uuid_of("a contact of Mindhunters", "contact_uuid")]] | None = None
    """The contact's UUID at Mindhunters, instead of `contact`."""
    timezone: OrTemplate[Zone] | None = None
    """The time zone told to Mindhunters."""
    auto_queue: OrTemplate[bool] | None = None
    """Whether Mindhunters queues the task at once. Default true."""
    extra_fields: Mapped | None = None
    """Raw fields for Mindhunters' request, at your own risk."""


class MakeCall(MindhuntersTask):
    """An AI phone call, executed by Mindhunters."""


class WhatsappTemplate(MindhuntersTask):
    """A WhatsApp template message, sent by Mindhunters."""

    template: OrTemplate[Annotated[str, *_uuid_of("an approved template", "task_data.template_uuid")]]
    """The UUID of an approved WhatsApp template."""


class OtherTask(MindhuntersTask):
    """Any other documented task of Mindhunters."""

    type: OtherType
    """Which one."""
    task_data: Mapped | None = None
    """What this type of task needs, as it goes to Mindhunters."""


class DueSpec(Section):
    """A due date."""

    date: OrTemplate[Day]
    """The day, as in 2026-12-01; Vambe knows no time without a date."""
    time: OrTemplate[Clock] | None = None
    """The time of day in the task's time zone, as in 14:00; without it the task is all-day."""


@dataclass(frozen=True, slots=True)
class _SpanOrDate:
    """Reads a mapping as a DueSpec, and any other value as a span."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return how both are read."""
        return core_schema.no_info_wrap_validator_function(
            lambda value, read: read(value) if isinstance(value, dict) else self._span(value),
            handler.generate_schema(DueSpec),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Return the schema of either."""
        return {"anyOf": [handler(schema), {"type": "string", "pattern": r"^\+?[0-9]{1,9}[smhdw]$"}]}

    @staticmethod
    def _span(value: Json) -> timedelta:
        try:
            return _read_span(value)
        except ValueError as error:
            wanted = 'must be a span such as +2h, or {date: 2026-12-01, time: "14:00"}'
            raise ValueError(f"{wanted}, not {kind(value)}") from error


class TeamTask(Section):
    """A task for a person, held by Vambe."""

    NOT_YET: ClassVar = {"window": _WINDOW}
    title: OrTemplate[Text] | None = None
    """The task's title; default: the rule's description, else its id."""
    description: OrTemplate[Text] | None = None
    """What the person should know."""
    due: OrTemplate[Annotated[DueSpec | timedelta, _SpanOrDate()]] | None = None
    """When it is due: +2h, or a date with or without a time; absent: no due date."""
    timezone: OrTemplate[Zone] | None = None
    """The zone of the due time; default: the team's, the rule's, ..."""
    priority: OrTemplate[TeamPriority] = "medium"
    """low, medium (default) or high."""
    assign: OrTemplate[Assignees]
    """Who it is for: a team, a list of user ids, or a template."""
    ai_contact_id: OrTemplate[Text] | None = None
    """The contact at Vambe."""
    ai_customer_id: OrTemplate[Text] | None = None
    """The customer at Vambe."""
    extra_fields: Mapped | None = None
    """Raw fields for Vambe's request, at your own risk."""


class TaskEntry(Section):
    """One task of a rule: its type with what is sent, and beside it what is done when sending fails."""

    NOT_YET: ClassVar = {"window": _WINDOW}
    id: TaskName | None = None
    """The task's name in its rule; default: its type."""
    retry: RetrySpec | None = None
    """When it is sent again."""
    if_unsure: Fixed[Literal["ask", "repeat"]] = "ask"
    """What to do when no look-up at the provider can tell whether it was executed: ask a person, or repeat it, which may touch \
somebody twice."""
    make_call: MakeCall | None = None
    """An AI phone call."""
    whatsapp_template: WhatsappTemplate | None = None
    """A WhatsApp template message."""
    team_task: TeamTask | None = None
    """A task for a person."""
    mindhunters_task: OtherTask | None = None
    """Any other documented task of Mindhunters."""
    on_failure: Tasks | None = None
    """Tasks to make when this one ends dead or too late; their templates may use `failure`."""
    on_outcome: OnOutcome | None = None
    """Tasks to make when Mindhunters has ended this one; needs LEADWIRE_MINDHUNTERS_POLL."""


Tasks = Annotated[list[TaskEntry], MinLen(1), AtLeastOne("must hold at least one task")]


class OnOutcome(Section):
    """What follows when Mindhunters has ended a task, by how; templates may use `outcome` and `failure`."""

    completed: Tasks | None = None
    """Tasks to make when it was carried out."""
    failed: Tasks | None = None
    """Tasks to make when Mindhunters gave up on it."""
    expired: Tasks | None = None
    """Tasks to make when its time passed before it was carried out."""


TaskEntry.model_rebuild()


class GivenContact(Section):
    """The contact of a test's event."""

    MAY_BE_NULL: ClassVar = frozenset({"id", "name", "phone", "email", "country", "timezone", "language", "consent"})
    id: str | None = None
    """The contact's id at its source."""
    name: str | None = None
    """The contact's name."""
    phone: str | None = None
    """The phone number with its country code, as events carry it."""
    email: str | None = None
    """The e-mail address."""
    country: str | None = None
    """The country, two letters."""
    timezone: Known[Fixed[Zone]] = None
    """The contact's time zone."""
    language: str | None = None
    """The language."""
    consent: Known[Mapped] = None
    """What the contact agreed to."""


class GivenSubject(Section):
    """The record a test's event is about."""

    kind: Text
    """lead, deal, contact ..."""
    id: Text
    """Its id at the source."""


class Given(Section):
    """The event of a test; what is left out is made up."""

    MAY_BE_NULL: ClassVar = frozenset({"subject", "contact", "changed", "attempt", "data"})
    type: Name | None = None
    """The event's type; default: what the rule listens to."""
    id: Text | None = None
    """The event's id."""
    source: Text | None = None
    """The source's name."""
    occurred_at: Fixed[Moment | None] = None
    """When it happened; default: the test's `at`."""
    received_at: Fixed[Moment | None] = None
    """When it came in; default: the test's `at`."""
    subject: GivenSubject | None = None
    """Its record."""
    contact: GivenContact | None = None
    """Its person."""
    changed: Known[Mapped] = None
    """What changed, as in {data.stage: {from: mql, to: sql}}."""
    attempt: Known[Annotated[int, Ge(0)]] = None
    """Which try of the sender this is."""
    data: Any = None
    """What the source sent."""


class RuleTestSpec(Section):
    """A case that shows what the rule is for: `leadwire check` runs it."""

    name: Name
    """What the case is."""
    at: Fixed[Moment | None] = None
    """The moment of the test; default: now."""
    given: Given
    """The event."""
    expect: ExpectedTasks
    """The tasks that must come of it, in any order: by type or id, alone or with some fields."""


class RuleSpec(Section):
    """When this event comes, if this holds, then these tasks."""

    NOT_YET: ClassVar = {
        **dict.fromkeys("once_per cancel_on caps rank require mode sla on_breach changed expr absent".split(), _LATER),  # noqa: SIM905 - names
        "window": _WINDOW,
    }
    id: Name
    """The rule's name, one of its kind in all files; it is part of every task's key."""
    description: Text | None = None
    """What the rule is for; the default title of its tasks."""
    when: EventTypes
    """The event type, a list of them, or a pattern such as deal.*"""
    conditions: Any = Field(None, alias="if")
    """Conditions: every line must hold."""
    then: Tasks
    """The tasks, in order."""
    stop: Fixed[bool] = False
    """Whether later rules of this file are left out when this one made a task."""
    timezone: Fixed[Zone | None] = None
    """The time zone of this rule's team tasks."""
    tests: list[RuleTestSpec] | None = None
    """Its test cases."""


class MemberSpec(Section):
    """A person of a team."""

    name: Text | None = None
    """The name, for people."""
    id: Annotated[Text, BeforeValidator(_no_template)]
    """The user's id at Vambe."""


class TeamSpec(Section):
    """Who can be assigned under one name."""

    by: Fixed[Literal["everyone", "round_robin"]] = "everyone"
    """everyone (default): all of them; round_robin: one after the other."""
    timezone: Fixed[Zone | None] = None
    """The time zone of the team's tasks."""
    members: Annotated[list[MemberSpec], MinLen(1), AtLeastOne("must hold at least one member")]
    """The people."""


class DefaultsSpec(Section):
    """What holds where a rule says nothing; in one file only."""

    NOT_YET: ClassVar = {**dict.fromkeys(("caps", "require", "mode"), _LATER), "window": _WINDOW}
    timezone: Fixed[Zone | None] = None
    """The time zone of team tasks."""
    country_zones: dict[Country, Fixed[Zone]] | None = None
    """The zone to assume in a country that has several, as in {US: America/New_York}."""
    retry: RetrySpec | None = None
    """The retry of every task."""


class RuleFile(Section):
    """A rule file of Leadwire."""

    NOT_YET: ClassVar = dict.fromkeys(("caps", "mode", "sla", "require"), _LATER)
    MAY_BE_NULL: ClassVar = frozenset({"defaults", "calendars", "teams", "sources", "rules"})
    version: Annotated[int, Ge(1), Le(1), Must("must be 1, the one version of rule files there is")] = 1
    """The version of the grammar: 1."""
    defaults: DefaultsSpec | None = None
    """What holds where a rule says nothing."""
    calendars: SkipJsonSchema[Annotated[None, PlainValidator(_refuse_calendars)]] = None
    teams: dict[str, TeamSpec] | None = None
    """Teams by name."""
    sources: dict[str, Mapped] | None = None
    """Who may post, by name; see the page on sources."""
    rules: list[RuleSpec] | None = None
    """The rules, in order."""


# What is said about what may not stand there -------------------------------------------------------------------------


def allowed_keys(model: type[BaseModel]) -> list[str]:
    """Return the keys that a section may have, as written in files."""
    return [field.alias or name for name, field in model.model_fields.items() if name != "calendars"]


def messages_of(error: ValidationError, root: type[Section]) -> Iterator[tuple[Path, str, bool]]:
    """Yield (path, message, at_key) for each error that pydantic found in a `root`.

    Pydantic's own messages are in terms of Python and are replaced. `at_key` is true when the key is wrong or something is
    missing under it, false when its value is wrong.
    """
    for fault in error.errors(include_url=False):
        path, at_key = fault["loc"], fault["loc"][-1:] == ("[key]",)
        match fault["type"]:
            case "extra_forbidden":
                yield path, _unknown_key(path, root), True
            case "missing":
                yield path[:-1], _missing_key(path, root), True
            case "value_error":
                yield path[:-1] if at_key else path, str(fault["ctx"]["error"]), at_key
            case _:
                yield path, _wrong_value(fault, [*_parts_at(path, root)]), False


def _wrong_value(fault: ErrorDetails, parts: list[Any]) -> str:  # noqa: PLR0911 - one for each kind
    """Return the message for a value of the wrong kind; `parts` are the types and constraints that its key has."""
    value, wrong = fault["input"], fault["type"]
    if value is None or wrong == "too_short":
        lists = (part for part in parts if isinstance(part, AtLeastOne) and (part.or_null or value is not None))
        return next((part.sentence for part in lists), EMPTY)
    not_this = f"not {kind(value)}"
    must = next((part.sentence for part in parts if isinstance(part, Must)), None)
    match wrong:
        case "literal_error":
            words = fault["ctx"]["expected"].replace("' or '", "', '").strip("'").split("', '")
            hint = did_you_mean(value, words) if isinstance(value, str) else ""
            return f"{must or 'must be ' + ' or '.join(words)}, {not_this}{hint}"
        case _ if must:
            return f"{must}, {not_this}"
        case "bool_type":
            return f"must be true or false, {not_this}"
        case "list_type":
            return f"must be a list, {not_this}" + ("; begin each entry with `-`" if isinstance(value, dict) else "")
        case "string_type":
            return f"must be text, {not_this}" + (": put it in quotes" if isinstance(value, int | float) else "")
        case "string_pattern_mismatch":
            return "must not be empty text"
        case "string_too_long":
            return f"must have at most {NAME_LIMIT_CHARACTERS} characters, not {len(value)}"
    return _wrong_number(value, parts) if int in parts or float in parts else f"must be a mapping, {not_this}"


def _wrong_number(value: Json, parts: list[Any]) -> str:
    least = next(part.ge for part in parts if isinstance(part, Ge))
    most = next((part.le for part in parts if isinstance(part, Le)), None)
    bounds = f"of {least} or more" if most is None else f"from {least} to {most}"
    because = next((part.reason for part in parts if isinstance(part, Because)), "")
    if float in parts:
        return f"must be a number {bounds}{because}, not {kind(value)}"
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]+", value):
        return f"must be a whole number {bounds} without quotes{because}, not the text {shown(value)}"
    return f"must be a whole number {bounds}{because}, not {kind(value)}"


def _unknown_key(path: Path, root: type[Section]) -> str:
    key, model = str(path[-1]), model_at(path[:-1], root)
    if model is None:
        return "unknown key"
    later: Mapping[str, str] = getattr(model, "NOT_YET", {})
    if key in later:
        return f"`{key}` is not yet supported: {later[key]}"
    keys = allowed_keys(model)
    return f"unknown key `{key}`{_elsewhere(path, model, root) or did_you_mean(key, keys) or ';'} allowed here: {listed(keys)}"


def _elsewhere(path: Path, model: type[BaseModel], root: type[Section]) -> str:
    """Say where a key belongs that is right in itself and stands one level too far in or out."""
    key = str(path[-1])
    if len(path) > 1 and isinstance(path[-2], str):
        around = model_at(path[:-2], root)
        if around is not None and key in allowed_keys(around):
            return f": it stands beside `{path[-2]}`, not inside it;"
    if model is RuleSpec and key in {"on_failure", "on_outcome"}:
        return ": it stands beside a task, in its entry under `then`;"
    if model is TaskEntry and any(key in allowed_keys(task) for task in (OtherTask, WhatsappTemplate, TeamTask)):
        return ": it stands inside the task, not beside it;"
    return ""


def _missing_key(path: Path, root: type[Section]) -> str:
    key, model = str(path[-1]), model_at(path[:-1], root)
    for name, field in model.model_fields.items() if model else ():
        if (field.alias or name) == key and field.description:
            return f"missing key `{key}`: {field.description[0].lower()}{field.description[1:].rstrip('.')}"
    return f"missing key `{key}`"


_COLLECTIONS: Final = frozenset({list, dict, tuple})


def model_at(path: Path, root: type[BaseModel]) -> type[BaseModel] | None:
    """Return the model of the section at a path below `root`; None when that is no mapping with fixed keys."""
    return next(
        (part for part in _parts_at(path, root) if isinstance(part, type) and issubclass(part, BaseModel)), None
    )


def _parts_at(path: Path, root: type[BaseModel]) -> Iterator[Any]:
    """Yield the types and constraints of what stands at a path: unions and annotations taken apart."""
    found: list[Any] = [root]
    for step in path:
        found = [inside for part in found for inside in _inside(part, step)]
    yield from found


def _inside(part: Any, step: str | int) -> Iterator[Any]:
    if isinstance(part, type) and issubclass(part, BaseModel):
        for name, field in part.model_fields.items():
            if (field.alias or name) == step:
                yield from (*_parts(field.annotation), *field.metadata)
    elif get_origin(part) in _COLLECTIONS:
        yield from _parts(get_args(part)[0 if get_origin(part) is tuple else -1])


def _parts(annotation: Any) -> Iterator[Any]:
    arguments = get_args(annotation)
    if isinstance(annotation, type) or not arguments or get_origin(annotation) in _COLLECTIONS:
        yield annotation
        return
    for argument in arguments if get_origin(annotation) is not Annotated else arguments[:1]:
        yield from _parts(argument)
    yield from getattr(annotation, "__metadata__", ())


# For editors ---------------------------------------------------------------------------------------------------------

#: What an operator compares with, where it is not any value.
_WANTED: Final[Mapping[str, Json]] = {
    "between": {"type": "array", "minItems": 2, "maxItems": 2},
    "in": {"type": "array", "minItems": 1},
    "not_in": {"type": "array", "minItems": 1},
    "exists": {"type": "boolean"},
    **{name: {"type": "string"} for name in ("matches", "starts_with", "ends_with", "older_than", "newer_than")},
}


def json_schema() -> dict[str, Json]:
    """Return the JSON Schema (draft 2020-12) of a rule file, with a description for every key.

    Keys reserved for a later version are left out.
    """
    made = RuleFile.model_json_schema(by_alias=True)
    rule = made["$defs"]["RuleSpec"]["properties"]
    rule["if"]["$ref"] = "#/$defs/Conditions"
    rule["when"]["examples"] = [*CANONICAL_EVENT_TYPES, "deal.*"]
    made["$defs"]["TaskEntry"]["oneOf"] = [{"required": [task.value]} for task in TaskType]
    made["$defs"] |= _conditions()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Leadwire rule file",
        **made,
    }


def _conditions() -> dict[str, Json]:
    """Return what may stand under `if:`."""
    conditions = {"$ref": "#/$defs/Conditions"}
    several = {"type": "array", "items": conditions, "minItems": 1}
    operators = {
        name: {**_WANTED.get(name, {}), "description": operator.doc}
        for name, operator in OPERATORS.items()
        if name != "changed"  # it comes with a later version
    }
    test = {
        "anyOf": [
            {
                "type": ["string", "number", "boolean", "null"],
                "description": "A plain value means equals; null means missing.",
            },
            {"type": "object", "properties": operators, "additionalProperties": False, "minProperties": 1},
        ]
    }
    groups = {
        "any": {**several, "description": "At least one of these must hold."},
        "all": {**several, "description": "All of these must hold."},
        "not": {**conditions, "maxProperties": 1, "description": "This must not hold."},
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

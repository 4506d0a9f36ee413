"""Everything the vendors' documents leave open, one switch each: what the sandbox assumes unless told otherwise.

A behaviour without a switch is documented. `basis` is "assumed" when no page says so, "documented" where the pages allow
two readings. A switch that says who exists takes `any` or a list with commas.

How the listings misbehave, for trying out the look-up of tasks that may have been executed:

- `mindhunters.listing` and `vambe.listing`: `whole`, or `status_500`, `garbage` (200 with what is no JSON), `empty` (200, and
  a listing without any task), `silent` (no answer: the connection is closed);
- `mindhunters.listing_delay_seconds` and `vambe.listing_delay_seconds`: a task is listed so many seconds after it was made;
- `vambe.array_form`: the one way of writing `responsibleIds` that is understood; asked otherwise, nothing is found.

A fault with `"method": "GET", "path": "/tasks"` (see `faults.py`) meets single requests of a listing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from rules.vocabulary import Problem


class SandboxError(Problem):
    """Invalid input to the sandbox, or its port is not available."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """One behaviour the vendor leaves open. `choices` is empty for a number or a list; the first choice is the default."""

    name: str
    about: str
    choices: tuple[str, ...] = ()
    free: str = ""
    basis: Literal["assumed", "documented"] = "assumed"

    @property
    def default(self) -> str:
        """The default value."""
        return self.choices[0] if self.choices else self.free


def _switch(name: str, about: str, *choices: str, basis: Literal["assumed", "documented"] = "assumed") -> Switch:
    return Switch(name=name, about=about, choices=choices, basis=basis)


def _open(name: str, about: str, free: str) -> Switch:
    return Switch(name=name, about=about, free=free)


def _for_both(provider: str) -> tuple[Switch, ...]:
    return (
        _switch(f"{provider}.success_status", "status of a task that was made", "201", "200"),
        _switch(f"{provider}.same_body_twice", "the same body again makes a second task, or none", "second_task", "same_task"),
        _open(f"{provider}.rate_limit", "requests a window takes before it answers 429; 0: no limit", "0"),
        _open(f"{provider}.rate_window_seconds", "length of the rate limit's window", "1"),
        _switch(f"{provider}.retry_after", "whether a 429 carries Retry-After", "seconds", "none"),
        _switch(f"{provider}.listing", "how a listing of tasks is answered", "whole", "status_500", "garbage", "empty", "silent"),
        _open(f"{provider}.listing_delay_seconds", "how long after it was made a task is listed", "0"),
    )  # fmt: skip


SWITCHES: Final[Mapping[str, Switch]] = {
    switch.name: switch
    for switch in (
        *_for_both("mindhunters"),
        _switch("mindhunters.bearer_case", "whether `bearer` in lower case is taken", "any", "exact"),
        _switch("mindhunters.permission", "whether the token may create tasks; no: 403", "yes", "no"),
        _switch("mindhunters.permission_to_read", "whether the token may list tasks; no: 403", "yes", "no"),
        _switch("mindhunters.code_case", "how error codes are written", "upper", "lower"),
        _switch("mindhunters.unexplained_types", "the seven task types no page explains", "accept", "refuse"),
        _switch("mindhunters.agent_format", "an agent_uuid that is no UUID", "refuse", "accept"),
        _open("mindhunters.agents", "agents that exist, others: 404", "any"),
        _open("mindhunters.contacts", "contact_uuids that exist beside those made here, others: 404", "any"),
        _open("mindhunters.templates", "templates that exist and are approved", "any"),
        _switch("mindhunters.unknown_template", "status for another template", "404", "422"),
        _switch("mindhunters.naive_scheduled_at", "a scheduled_at without offset: UTC, or refused", "accept", "refuse"),
        _switch("mindhunters.empty_contact", "a contact with neither phone_number nor email", "refuse", "accept"),
        _switch("mindhunters.phone_format", "a phone_number that is not E.164", "refuse", "accept"),
        _switch(
            "mindhunters.unknown_contact_key",
            "a key inside contact that no page shows (422 is documented for POST /contacts)",
            "ignore", "refuse", basis="documented",
        ),
        _switch("mindhunters.unknown_key", "a key beside the documented ones", "ignore", "refuse"),
        _switch("mindhunters.max_attempts", "max_attempts below 1", "refuse", "accept"),
        _switch("mindhunters.expires_order", "expires_at not after scheduled_at", "refuse", "accept"),
        _switch("mindhunters.unqueued", "a task without auto_queue", "never_runs", "runs"),
        _switch("mindhunters.outcome", "how a task that runs ends", "completed", "failed", "expired"),
        _switch("mindhunters.illegal_transition", "status for a step that is not possible", "409", "422"),
        _switch("mindhunters.per_page_over_100", "a per_page over 100: 422, or 100", "refuse", "clamp"),
        _switch("mindhunters.validation_form", "the documented 422, or that of the framework behind", "documented", "laravel"),
        *_for_both("vambe"),
        _switch("vambe.key_in_query", "an API key in the query instead of the header", "refuse", "accept"),
        _switch("vambe.blank_title", "a title of spaces only", "accept", "refuse"),
        _switch(
            "vambe.absent_keys",
            "a key that may be null but is not there: strict: 400, lenient: null",
            "strict", "lenient", basis="documented",
        ),
        _open("vambe.users", "users of the organisation, others: 404", "any"),
        _switch("vambe.responsible_format", "a responsible id that is no UUID: as unknown, or 400", "404", "400"),
        _switch("vambe.priority_number", "a priority sent as a number", "refuse", "accept"),
        _switch("vambe.due_time_format", "a dueTime that is not HH:MM", "refuse", "accept"),
        _switch("vambe.timezone_name", "a timezone that is no IANA name", "refuse", "accept"),
        _switch("vambe.due_time_alone", "a dueTime without dueDate", "refuse", "accept"),
        _switch("vambe.past_due_date", "a dueDate in the past", "accept", "refuse"),
        _switch("vambe.all_day_instant", "due_at of an all-day task: start of the day in UTC, or in its zone", "utc", "zone"),
        _switch("vambe.due_at", "due_at as the zone says, or local time stamped Z as in the vendor's sample", "zone", "sample"),
        _open("vambe.contacts", "aiContactIds that exist", "any"),
        _switch("vambe.unknown_contact", "status for another aiContactId", "404", "400"),
        _switch("vambe.status_fields", "a status sent on create", "ignore", "refuse"),
        _switch("vambe.other_path", "POST /api/tasks, the path of one sample: 404, or served", "404", "serve"),
        _switch("vambe.error_body", "the body of errors other than 400", "json", "empty"),
        _switch(
            "vambe.array_form",
            "how responsibleIds is written in a query; other forms find nothing",
            "any", "repeated", "bracketed", "comma",
        ),
    )
}  # fmt: skip


class Switches:
    """The current values of all switches."""

    def __init__(self, values: Mapping[str, str] | None = None) -> None:
        self._values: dict[str, str] = {}
        self.turn(values or {})

    def __getitem__(self, name: str) -> str:
        return self._values.get(name, SWITCHES[name].default)

    def turn(self, values: Mapping[str, str]) -> None:
        """Set these switches, all or none. Raises SandboxError that names the allowed values."""
        for name, value in values.items():
            switch = SWITCHES.get(name)
            if switch is None:
                raise SandboxError(f"there is no switch {name!r}; there are: {', '.join(SWITCHES)}")
            if switch.choices and value not in switch.choices:
                raise SandboxError(f"the switch {name} takes {' or '.join(switch.choices)}, not {value!r}")
            if switch.free.isdigit() and not _is_number(value):
                raise SandboxError(f"the switch {name} takes a number, not {value!r}")
        self._values.update(values)

    def on(self, name: str, value: str) -> bool:
        """Return whether the switch has this value."""
        return self[name] == value

    def knows(self, name: str, identifier: str) -> bool:
        """Return whether a list switch includes this identifier (`any` includes all)."""
        value = self[name]
        return value == "any" or identifier.lower() in {one.strip().lower() for one in value.split(",")}

    def listed(self, name: str) -> list[str]:
        """Return the identifiers of a list switch; empty for `any`."""
        value = self[name]
        return [] if value == "any" else [one.strip() for one in value.split(",") if one.strip()]

    def number(self, name: str) -> float:
        """Return a switch's value as a number."""
        return float(self[name])

    def as_json(self) -> list[dict[str, str]]:
        """Return every switch with its value, default, choices, basis and meaning."""
        return [
            {
                "name": switch.name,
                "value": self[switch.name],
                "default": switch.default,
                "choices": " | ".join(switch.choices)
                or ("a number" if switch.free.isdigit() else "any, or a list with commas"),
                "basis": switch.basis,
                "about": switch.about,
            }
            for switch in SWITCHES.values()
        ]


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdecimal() and text.isascii() and len(text) <= len("1000000")

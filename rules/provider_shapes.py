"""Which single values the providers take, checked when a rule is read, with the complaint the provider would make.

Each function works as those of `rules/shapes.py` do. Sources: Mindhunters create-task reference and Vambe create-task page,
read 2026-11.
"""

from __future__ import annotations

import re
from typing import Final

from rules.messages import did_you_mean, kind, listed, shown
from rules.shapes import EMPTY, Check, UnfitError, dynamic, each, text, whole
from rules.vocabulary import Json

UUID_PATTERN: Final = r"[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}"
PHONE_PATTERN: Final = r"\+[1-9][0-9]{6,14}"
#: The task types Mindhunters documents, beside the two that have a task of their own here.
MINDHUNTERS_TYPES: Final = ("send_email", "follow_up", "appointment", "survey", "notification", "webhook", "custom")
PRIORITY_WORDS: Final = ("low", "medium", "high")


def uuid(what: str, field: str) -> Check:
    """Return a check for the UUID of something at Mindhunters."""

    def checked(value: Json) -> Json:
        if isinstance(value, str) and re.fullmatch(UUID_PATTERN, value):
            return value
        example = "11111111-1111-4111-8111-111111111111"
        wanted = f"must be the UUID of {what}, such as {example} (Mindhunters answers 422 on {field} otherwise)"
        raise UnfitError(EMPTY if value is None else f"{wanted}, not {kind(value)}")

    return checked


def phone(value: Json) -> str:
    """Return a phone number in E.164."""
    if isinstance(value, str) and re.fullmatch(PHONE_PATTERN, value):
        return value
    raise UnfitError(f'must be a phone number with its country code, such as "+56911112222", not {kind(value)}')


def team_priority(value: Json) -> str:
    """Return the priority of a team task: a word."""
    if value in PRIORITY_WORDS:
        return str(value)
    wire = {"0": "low", "1": "medium", "2": "high"}.get(str(value))
    if wire and not isinstance(value, bool):
        raise UnfitError(f'must be low, medium or high; write {wire} for what Vambe calls "{value}"')
    if isinstance(value, int):
        raise UnfitError(
            f"must be low, medium or high, not {kind(value)}: numbers from 1 to 10 are for Mindhunters' tasks"
        )
    hint = did_you_mean(value, PRIORITY_WORDS) if isinstance(value, str) else ""
    raise UnfitError(f"must be low, medium or high, not {kind(value)}{hint}")


def call_priority(value: Json) -> int:
    """Return the priority of a Mindhunters task: 1 to 10."""
    if isinstance(value, str) and value in PRIORITY_WORDS:
        raise UnfitError(f"must be a whole number from 1 to 10, not {shown(value)}: words are for team tasks")
    found: int = whole(1, 10, " (Mindhunters answers 422 otherwise)")(value)
    return found


def mindhunters_type(value: Json) -> str:
    """Return a documented task type of Mindhunters that has no task of its own here."""
    if value == "make_call":
        raise UnfitError("is not for calls: use the task `make_call` instead of `mindhunters_task`")
    if value == "send_message":
        raise UnfitError("is not for messages: use the task `whatsapp_template` instead of `mindhunters_task`")
    if value not in MINDHUNTERS_TYPES:
        hint = did_you_mean(value, MINDHUNTERS_TYPES) if isinstance(value, str) else ""
        raise UnfitError(f"must be one of {listed(MINDHUNTERS_TYPES)}, not {kind(value)}{hint}")
    return str(value)


def assignees(value: Json) -> Json:
    """Return who a team task is for: a team's name or one user id, or a list of user ids."""
    if isinstance(value, list):
        if not value:
            raise UnfitError("must name at least one user (Vambe answers 400 on responsibleIds otherwise)")
        return each(dynamic(text), value)
    return text(value)

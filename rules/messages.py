"""How messages about rule files name a value, and which allowed word a wrong one was meant to be.

How values that came from outside are shown in explanations: as JSON in the strict sense, and short.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from itertools import islice
from typing import Final

from rules.vocabulary import Json

#: Longer values are cut in messages.
SHOWN_LIMIT_CHARACTERS: Final = 60

#: What people write who know the providers' documents or other rule languages -> our word.
_OTHER_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "action": ("then",),
    "actions": ("then",),
    "agent_id": ("agent",),
    "agent_uuid": ("agent",),
    "aicontactid": ("ai_contact_id",),
    "aicustomerid": ("ai_customer_id",),
    "assignee": ("assign",),
    "campaign_uuid": ("campaign",),
    "condition": ("if",),
    "conditions": ("if",),
    "due_at": ("due",),
    "due_date": ("due",),
    "duedate": ("due",),
    "event": ("when", "type"),
    "expires_at": ("expires",),
    "mail": ("email",),
    "max_attempts": ("redial",),
    "name": ("id", "title"),
    "on": ("when",),
    "phone": ("phone_number",),
    "responsible_ids": ("assign",),
    "responsibleids": ("assign",),
    "scheduled_at": ("at",),
    "tasks": ("then",),
    "template_id": ("template",),
    "template_uuid": ("template",),
    "trigger": ("when",),
    "tz": ("timezone",),
    "==": ("eq",),
    "=": ("eq",),
    "equal": ("eq",),
    "equals": ("eq",),
    "is": ("eq",),
    "!=": ("ne",),
    "not_equal": ("ne",),
    "not_equals": ("ne",),
    ">": ("gt",),
    ">=": ("gte",),
    "<": ("lt",),
    "<=": ("lte",),
    "greater": ("gt",),
    "greater_than": ("gt",),
    "more_than": ("gt",),
    "less": ("lt",),
    "less_than": ("lt",),
    "at_least": ("gte",),
    "at_most": ("lte",),
    "min": ("gte",),
    "max": ("lte",),
    "regex": ("matches",),
    "match": ("matches",),
    "like": ("matches",),
    "includes": ("contains",),
    "has": ("contains",),
    "one_of": ("in",),
    "any_of": ("in",),
    "none_of": ("not_in",),
    "nin": ("not_in",),
    "begins_with": ("starts_with",),
    "present": ("exists",),
    "call": ("make_call",),
    "phone_call": ("make_call",),
    "whatsapp": ("whatsapp_template",),
    "whatsapp_message": ("whatsapp_template",),
    "send_message": ("whatsapp_template",),
    "task": ("team_task",),
}


def nearest(word: str, allowed: Iterable[str]) -> str | None:
    """Return the allowed word that was probably meant, or None."""
    words = list(allowed)
    plain = word.strip().lower().replace("-", "_")
    for candidate in (plain, *_OTHER_NAMES.get(plain, ())):
        if candidate in words:
            return candidate
    lowered = {allowed_word.lower().replace("-", "_"): allowed_word for allowed_word in words}
    if plain in lowered:
        return lowered[plain]
    close = get_close_matches(plain, lowered, n=1, cutoff=0.6)
    return lowered[close[0]] if close else None


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """Return "; did you mean `word`?" or nothing."""
    meant = nearest(word, allowed)
    return f"; did you mean `{meant}`?" if meant else ""


def listed(words: Iterable[str]) -> str:
    """Return words as a message lists them: `a`, `b`, `c`, in alphabetical order."""
    return ", ".join(sorted(words))


def shown(value: Json) -> str:
    """Return a value as JSON, cut to what fits a message; never with a line break."""
    text = json.dumps(value, ensure_ascii=False, default=str).replace("\x7f", "\\u007f")
    text = "".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in text)
    return text if len(text) <= SHOWN_LIMIT_CHARACTERS else f"{text[: SHOWN_LIMIT_CHARACTERS - 3]}..."


def kind(value: Json) -> str:
    """Return what a value is, as in "must be text, not the number 12"."""
    if value is None:
        return "empty"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, bool):
        return shown(value)
    if isinstance(value, int | float):
        return f"the number {shown(value)}"
    return shown(value)


_TEXT_LIMIT: Final = 200
_ITEM_LIMIT: Final = 20
_LEVEL_LIMIT: Final = 6
#: Lists and mappings that are shown of one value.
_VALUE_LIMIT: Final = 50
_CUT: Final = "…"
#: `json.dumps` would make an encoder for every call.
_AS_JSON: Final = json.JSONEncoder(ensure_ascii=False).encode


def cut(value: Json) -> Json:
    """Return a value short enough to be kept in an explanation, and JSON that every reader takes.

    Long texts and lists end in `…`, deep ones become `…`, and so does every list after the first fifty;
    numbers JSON has no form for become text.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return _number(value)
    return _cut(value, _LEVEL_LIMIT, iter(range(_VALUE_LIMIT)))


def _cut(value: Json, levels: int, left: Iterator[int]) -> Json:
    """Cut a value; every list or mapping takes one from `left`."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return _number(value)
    if not isinstance(value, dict | list | tuple):
        return _text(str(value))
    if not levels or next(left, None) is None:
        return _CUT
    kept: Json
    if isinstance(value, dict):
        kept = {_text(str(key)): _cut(value[key], levels - 1, left) for key in islice(value, _ITEM_LIMIT)}
        return {**kept, _CUT: _CUT} if len(value) > _ITEM_LIMIT else kept
    kept = [_cut(item, levels - 1, left) for item in value[:_ITEM_LIMIT]]
    return [*kept, _CUT] if len(value) > _ITEM_LIMIT else kept


def _number(value: Json) -> Json:
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if value.bit_length() <= 4 * _TEXT_LIMIT else "a number of more than 200 digits"


def _text(text: str) -> str:
    """Cut a text; halves of surrogate pairs, which no file or database takes, become question marks."""
    kept = text if len(text) <= _TEXT_LIMIT else text[:_TEXT_LIMIT] + _CUT
    return kept.encode("utf-8", "replace").decode()


def as_json(value: Json, limit: int = 500) -> str:
    """Return a value as JSON on one line, cut to about `limit` characters; never raises."""
    text = _AS_JSON(cut(value))
    return text if len(text) <= limit else text[:limit] + _CUT

"""How messages show values, and the suggestion of an allowed word for a misspelt one."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from itertools import islice
from typing import Final

from rules.vocabulary import Json

#: Longer values are cut in messages.
SHOWN_LIMIT_CHARACTERS: Final = 60

#: Our word -> what people write for it who know the providers' documents or other rule languages.
_SYNONYMS: Final = {
    "then": "action actions tasks",
    "agent": "agent_id agent_uuid",
    "ai_contact_id": "aicontactid",
    "ai_customer_id": "aicustomerid",
    "assign": "assignee responsible_ids responsibleids",
    "campaign": "campaign_uuid",
    "if": "condition conditions",
    "due": "due_at due_date duedate",
    "when": "event on trigger",
    "type": "event",
    "expires": "expires_at",
    "email": "mail",
    "redial": "max_attempts",
    "id": "name",
    "title": "name",
    "phone_number": "phone",
    "at": "scheduled_at",
    "template": "template_id template_uuid",
    "timezone": "tz",
    "eq": "== = equal equals is",
    "ne": "!= not_equal not_equals",
    "gt": "> greater greater_than more_than",
    "gte": ">= at_least min",
    "lt": "< less less_than",
    "lte": "<= at_most max",
    "matches": "regex match like",
    "contains": "includes has",
    "in": "one_of any_of",
    "not_in": "none_of nin",
    "starts_with": "begins_with",
    "exists": "present",
    "make_call": "call phone_call",
    "whatsapp_template": "whatsapp whatsapp_message send_message",
    "team_task": "task",
}
_MEANT_BY: Final[dict[str, list[str]]] = {
    word: [ours for ours, words in _SYNONYMS.items() if word in words.split()]
    for words in _SYNONYMS.values()
    for word in words.split()
}


def nearest(word: str, allowed: Iterable[str]) -> str | None:
    """Return the allowed word most similar to a wrong one; None when none is similar."""
    words = list(allowed)
    plain = word.strip().lower().replace("-", "_")
    for candidate in [plain, *_MEANT_BY.get(plain, [])]:
        if candidate in words:
            return candidate
    lowered = {allowed_word.lower().replace("-", "_"): allowed_word for allowed_word in words}
    if plain in lowered:
        return lowered[plain]
    close = get_close_matches(plain, lowered, n=1, cutoff=0.6)
    return lowered[close[0]] if close else None


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """Return "; did you mean `word`?", or an empty text."""
    meant = nearest(word, allowed)
    return f"; did you mean `{meant}`?" if meant else ""


def listed(words: Iterable[str]) -> str:
    """Return words as `a`, `b`, `c`, in alphabetical order."""
    return ", ".join(sorted(words))


def shown(value: Json) -> str:
    """Return a value as one line of JSON, cut to fit a message."""
    text = json.dumps(value, ensure_ascii=False, default=str).replace("\x7f", "\\u007f")
    text = "".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in text)
    return text if len(text) <= SHOWN_LIMIT_CHARACTERS else f"{text[: SHOWN_LIMIT_CHARACTERS - 3]}..."


def kind(value: Json) -> str:
    """Return the kind of a value in words, as in "must be text, not the number 12"."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"the number {shown(value)}"
    words = {type(None): "empty", dict: "a mapping", list: "a list"}
    return words.get(type(value)) or shown(value)


_TEXT_LIMIT: Final = 200
_ITEM_LIMIT: Final = 20
_LEVEL_LIMIT: Final = 6
#: Lists and mappings that are shown of one value.
_VALUE_LIMIT: Final = 50
_CUT: Final = "…"
#: `json.dumps` would make an encoder for every call.
_AS_JSON: Final = json.JSONEncoder(ensure_ascii=False).encode


def cut(value: Json) -> Json:
    """Return a value cut short enough to be stored in an explanation, as valid JSON.

    Long texts and lists end in `…`; values nested deeply, and every list after the first fifty, become `…`. Numbers that JSON
    cannot hold become text.
    """
    if type(value) is str:  # most of what is ever shown
        return _text(value)
    return _cut(value, _LEVEL_LIMIT, iter(range(_VALUE_LIMIT)))


def _cut(value: Json, levels: int, left: Iterator[int]) -> Json:  # noqa: PLR0911 - one for each kind
    """Cut a value; every list or mapping takes one from `left`."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, int):
        return value if value.bit_length() <= 4 * _TEXT_LIMIT else "a number of more than 200 digits"
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


def _text(text: str) -> str:
    """Cut a text; halves of surrogate pairs, which no file or database takes, become question marks."""
    kept = text if len(text) <= _TEXT_LIMIT else text[:_TEXT_LIMIT] + _CUT
    return kept if kept.isascii() else kept.encode("utf-8", "replace").decode()


def as_json(value: Json, limit: int = 500) -> str:
    """Return a value as JSON on one line, cut to about `limit` characters; never raises."""
    text = _AS_JSON(cut(value))
    return text if len(text) <= limit else text[:limit] + _CUT

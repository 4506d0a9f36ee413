"""How values that came from outside are shown in explanations: as JSON in the strict sense, and short."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import islice
from typing import Final

from rules.vocabulary import Json

_TEXT_LIMIT: Final = 200
_ITEM_LIMIT: Final = 20
_LEVEL_LIMIT: Final = 6
#: Lists and mappings that are shown of one value.
_VALUE_LIMIT: Final = 50
_CUT: Final = "…"


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
    text = json.dumps(cut(value), ensure_ascii=False)
    return text if len(text) <= limit else text[:limit] + _CUT

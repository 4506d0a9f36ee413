"""What values from outside become in a column: whatever a CRM's JSON carried can be stored and read back.

JSON is ASCII text, so lone surrogates and NUL characters pass every engine as escapes. What no JSON text can hold (NaN,
infinities) becomes null, and what is nested deeper than `DEPTH_LIMIT` is cut off there; the raw body keeps the original.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import Final

from rules.vocabulary import Json

#: Deeper values are cut off: reading them back could exhaust the stack of whoever reads.
DEPTH_LIMIT: Final = 100

#: Identities from outside are cut to this many characters, a hash of the whole included.
LABEL_LIMIT: Final = 255

#: Sentences (reasons, errors) are cut to this many characters.
SENTENCE_LIMIT: Final = 4000

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST: Final = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
_LAST: Final = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
_UNFIT: Final = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_UNFIT_IN_SENTENCES: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
_encode = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode


def micros(moment: datetime) -> int:
    """Return an aware moment as microseconds since 1970 UTC; one outside the UTC calendar becomes its first or last."""
    since = moment - _EPOCH
    value = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    return min(max(value, _FIRST), _LAST)


def micros_or_none(moment: datetime | None) -> int | None:
    """Return `micros` of a moment that may be absent."""
    return None if moment is None else micros(moment)


def moment(value: int) -> datetime:
    """Return the aware moment that `micros` made an integer of."""
    return _EPOCH + timedelta(microseconds=value)


def moment_or_none(value: int | None) -> datetime | None:
    """Return `moment` of a value that may be absent."""
    return None if value is None else moment(value)


def dump(value: Json) -> str:
    """Return any value as JSON text; never raises, see the module's docstring for what cannot be kept."""
    try:
        text = _encode(value)
    except (ValueError, TypeError, RecursionError):
        return _encode(_tamed(value, DEPTH_LIMIT))
    if text.count("[") + text.count("{") > DEPTH_LIMIT:
        return _encode(_tamed(value, DEPTH_LIMIT))
    return text


def load(text: str) -> Json:
    """Return the value that `dump` made a text of."""
    return json.loads(text)


def label(value: str) -> str:
    """Return an identity from outside as it is stored: itself, or when long or odd, its readable part and its hash."""
    if len(value) <= LABEL_LIMIT and not _UNFIT.search(value):
        return value
    digest = hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    readable = _UNFIT.sub("\ufffd", value[: LABEL_LIMIT - 33])
    return f"{readable}~{digest}"


def sentence(value: str) -> str:
    """Return a text for people as it is stored, without characters that no column can hold, and cut."""
    fit = _UNFIT_IN_SENTENCES.sub("\ufffd", value)
    return fit if len(fit) <= SENTENCE_LIMIT else f"{fit[: SENTENCE_LIMIT - 1]}…"


def sentence_or_none(value: str | None) -> str | None:
    """Return `sentence` of a text that may be absent."""
    return None if value is None else sentence(value)


def _tamed(value: Json, levels: int) -> Json:
    if isinstance(value, Mapping):
        return {str(key): _tamed(item, levels - 1) for key, item in value.items()} if levels else None
    if isinstance(value, list | tuple | set | frozenset):
        return [_tamed(item, levels - 1) for item in value] if levels else None
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, int):
        return _writable(value)
    return value if value is None else str(value)


def _writable(value: int) -> int | None:
    try:
        str(value)
    except ValueError:  # more digits than Python turns into text; no number anybody sent
        return None
    return value

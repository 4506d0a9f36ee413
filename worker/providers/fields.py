"""Checks that a task's rendered values have the right types before a request is made.

Rules are checked when they are loaded, but what a template renders is known only now. A value of the wrong type is refused
here, with the same fault that the provider would report, because asking the provider would cost an attempt and its answer would
say less. Whether an id exists is left to the provider.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Final

from rules.times import is_zone, parse_date
from rules.vocabulary import CLOCK_PATTERN, UUID_PATTERN, Json

_WHOLE: Final = re.compile(r"[+-]?[0-9]{1,9}")
_SHOWN_CHARACTERS: Final = 60


class FieldReader:
    """Reads typed values from a task's fields; `faults` gets a line for each value of the wrong type.

    A method returns None for a value that is absent, null or wrong. With `needed`, absence is a fault too.
    """

    def __init__(self, fields: Mapping[str, Json]) -> None:
        self._fields = fields
        self.faults: list[str] = []

    def text(self, key: str, *, needed: bool = False) -> str | None:
        """Return a text that is not blank; a number is converted to text."""
        value = self._fields.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        if value is None or (isinstance(value, str) and not value.strip()):
            if needed:
                self._miss(key)
            return None
        if not isinstance(value, str):
            self._add_fault(key, "text", value)
            return None
        return value

    def uuid(self, key: str, *, needed: bool = False) -> str | None:
        """Return a UUID as it is written."""
        value = self.text(key, needed=needed)
        if value is None or re.fullmatch(UUID_PATTERN, value.strip()):
            return value.strip() if value else None
        self._add_fault(key, "a UUID such as 228d7a0d-9072-4ca8-939b-959b75cc606a", value)
        return None

    def whole(self, key: str, *, lowest: int, highest: int | None = None) -> int | None:
        """Return a whole number within the bounds; a text that spells one is accepted."""
        value = self._fields.get(key)
        if value is None:
            return None
        is_text = isinstance(value, str) and _WHOLE.fullmatch(value.strip()) is not None
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
        number = int(value) if is_text or is_number else None
        if number is None or number < lowest or (highest is not None and number > highest):
            bounds = f"from {lowest} to {highest}" if highest is not None else f"of {lowest} or more"
            self._add_fault(key, f"a whole number {bounds}", value)
            return None
        return number

    def flag(self, key: str) -> bool | None:
        """Return true or false; the texts `true` and `false` are accepted."""
        value = self._fields.get(key)
        if isinstance(value, str) and value.strip().lower() in {"true", "false"}:
            return value.strip().lower() == "true"
        if value is None or isinstance(value, bool):
            return value
        self._add_fault(key, "true or false", value)
        return None

    def mapping(self, key: str) -> dict[str, Json] | None:
        """Return a JSON mapping, without nulls at its first level."""
        value = self._fields.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            self._add_fault(key, "a mapping", value)
            return None
        kept = {name: inner for name, inner in value.items() if inner is not None}
        if not _is_json(kept):
            self.faults.append(f"`{key}` holds something JSON cannot: NaN, infinity, or nesting without end")
            return None
        return kept

    def texts(self, key: str) -> list[str] | None:
        """Return a list of at least one text, without repetitions, in order."""
        value = self._fields.get(key)
        found = [value] if isinstance(value, str) else value
        if not isinstance(found, list | tuple) or not all(isinstance(one, str) for one in found):
            self._add_fault(key, "a list of ids", value)
            return None
        kept = list(dict.fromkeys(one.strip() for one in found if one.strip()))
        if not kept:
            self._miss(key)
        return kept or None

    def date(self, key: str) -> str | None:
        """Return a plain date, `YYYY-MM-DD`."""
        value = self.text(key)
        try:
            return value if value is None else parse_date(value).isoformat()
        except ValueError:
            self._add_fault(key, "a date such as 2026-12-01", value)
            return None

    def time(self, key: str) -> str | None:
        """Return a time of day, `HH:MM` on a 24-hour clock."""
        value = self.text(key)
        if value is None or re.fullmatch(CLOCK_PATTERN, value):
            return value
        self._add_fault(key, "a time such as 09:30 on a 24-hour clock", value)
        return None

    def zone(self, key: str) -> str | None:
        """Return the IANA name of a time zone this machine's zone database knows."""
        value = self.text(key)
        if value is None or is_zone(value):
            return value
        self._add_fault(key, "an IANA time zone such as America/Santiago", value)
        return None

    def extra_fields(self, wire_names: Mapping[str, str]) -> dict[str, Json]:
        """Return `extra_fields`: raw request fields, except those that another key of the task sets (a fault).

        `wire_names` maps each excluded request field to the key that sets it.
        """
        extra = self.mapping("extra_fields") or {}
        for name in extra.keys() & wire_names.keys():
            self.faults.append(f"`extra_fields` may not hold `{name}`: write `{wire_names[name]}` instead")
        return extra

    def _miss(self, key: str) -> None:
        self.faults.append(f"`{key}` is missing or empty")

    def _add_fault(self, key: str, wanted: str, value: Json) -> None:
        self.faults.append(f"`{key}` must be {wanted}, not {shown(value)}")


def shown(value: Json) -> str:
    """Return a value for a message: short, on one line."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def _is_json(value: Json) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        return False
    return True

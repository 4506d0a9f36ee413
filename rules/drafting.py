"""What every planned task has in common: its place in an event and a rule, its rendered texts, and its faults.

Text from outside loses control characters (line breaks and tabs stay in descriptions) and is cut: titles at 200,
descriptions at 2,000 characters. A description always ends in ` [lw:...]` with the first twelve characters of the task's
key, by which the task is found again at its provider; the mark is never cut off, and no other mark stands in a text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from rules.filters import in_words
from rules.rulebook import Action, Dynamic, Rule, RuleBook
from rules.templates import Template, TemplateError
from rules.times import is_zone, zone
from rules.vocabulary import Event, Json

TITLE_LIMIT: Final = 200
DESCRIPTION_LIMIT: Final = 2_000
_MARK_CHARACTERS: Final = 12

_LINE_ENDS: Final = re.compile("\r\n?|[\u0085\u2028\u2029]")
#: Control characters, halves of surrogate pairs, and the marks that turn the direction of writing.
_CONTROL: Final = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)
#: The mark of a task, as one from outside would look.
_MARK: Final = re.compile(r"\[lw:[0-9a-f]{12}\]", re.IGNORECASE)
_MARK_BEGINNING: Final = re.compile(r"\[(lw:)", re.IGNORECASE)
_BLANK: Final = re.compile(r"[\n\t]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What a task is planned from: one rule that matched one event at one moment; `view` is what templates see."""

    book: RuleBook
    rule: Rule
    event: Event
    view: Mapping[str, Json]
    now: datetime

    @property
    def fallback_zone(self) -> str | None:
        """The zone of the rule, else of the defaults."""
        return self.rule.timezone or self.book.defaults.timezone


@dataclass(slots=True, kw_only=True)
class Draft:
    """A task in the making: what is to be told, why it cannot be made (`faults`), and what was assumed (`notes`)."""

    scene: Scene
    action: Action
    key: str
    fields: dict[str, Json] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def render(self, name: str, value: Dynamic) -> Json:
        """Return a value with its templates rendered and its texts cleaned; None with a fault where one fails."""
        try:
            return self._rendered(name, value)
        except TemplateError as error:
            self.faults.append(str(error))
            return None

    def _rendered(self, name: str, value: Dynamic) -> Json:
        if isinstance(value, Template):
            try:
                return clean(value.render(self.scene.view))
            except TemplateError as error:
                raise TemplateError(f"{name}: {error}") from None
        if isinstance(value, dict):
            return {key: self._rendered(f"{name}.{key}", item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._rendered(f"{name}[{place}]", item) for place, item in enumerate(value)]
        return clean(value)

    def text(self, name: str) -> str | None:
        """Return a key of the body as a text without blanks around it; None when it is absent or empty."""
        value = self.action.body.get(name)
        rendered = None if value is None else self.render(name, value)
        return None if rendered is None else in_words(rendered).strip() or None

    def title_and_description(self) -> None:
        """Fill in the two texts that every task has."""
        rule = self.scene.rule
        self.fields["title"] = titled(self.text("title") or "") or titled(rule.description or "") or titled(rule.id)
        self.fields["description"] = described(self.text("description") or "", self.key)

    def own_zone(self) -> str | None:
        """Return the task's own `timezone`; a fault where it is none."""
        if self.action.timezone is None:
            return None
        name = self.render("timezone", self.action.timezone)
        if name is None or is_zone(name):
            return None if name is None else str(name)
        try:
            zone(name)
        except ValueError as error:
            self.faults.append(f"timezone: {error}")
        return None


def clean(value: Json) -> Json:
    """Return a JSON value whose texts and keys hold no control characters but line breaks and tabs."""
    if isinstance(value, str):
        return value if value.isprintable() else _CONTROL.sub("", _LINE_ENDS.sub("\n", value))
    if isinstance(value, dict):
        return {clean(str(key)): clean(item) for key, item in value.items()}
    return [clean(item) for item in value] if isinstance(value, list | tuple) else value


def titled(text: str) -> str:
    """Return a text as a title: one line, at most 200 characters."""
    return _unmarked(_BLANK.sub(" ", str(clean(text)))).strip()[:TITLE_LIMIT].rstrip()


def mark(key: str) -> str:
    """Return the mark by which a task is found at its provider."""
    return f"[lw:{key[:_MARK_CHARACTERS]}]"


def _unmarked(text: str) -> str:
    """Return a text without marks of tasks; where taking one out makes another, they lose their bracket."""
    kept = _MARK.sub("", text)
    return _MARK_BEGINNING.sub(r"\1", kept) if _MARK.search(kept) else kept


def described(text: str, key: str) -> str:
    """Return a text as a description: at most 2,000 characters with the mark at its end."""
    ending = f" {mark(key)}"
    kept = _unmarked(str(clean(text))).strip()[: DESCRIPTION_LIMIT - len(ending)].rstrip()
    return f"{kept}{ending}" if kept else mark(key)

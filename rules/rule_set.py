"""A compiled rule set, from which decisions are made.

`rules/loader.py` builds it from rule files; `rules/engine.py` decides with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from typing import Final, Literal

from rules.conditions import Condition
from rules.templates import Template
from rules.times import At
from rules.vocabulary import FAILURE, Json, RetryPolicy, RuleFault, TaskType, covers, outcome_trigger
from rules.yaml_reader import Position, SourceMap

#: Types come from outside: the rules of only so many are remembered.
REMEMBERED_TYPES: Final = 10_000

#: A JSON value in which any leaf may be a Template.
Dynamic = Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A person of a team; `id` is the provider's user id."""

    name: str | None
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """A group that tasks can be assigned to; `by` says whether everyone gets a task or the members take turns."""

    name: str
    by: Literal["everyone", "round_robin"] = "everyone"
    timezone: str | None = None
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DueDate:
    """A due date with an optional time (`HH:MM`); without a time the task is all-day."""

    date: str | Template
    time: str | Template | None = None


@dataclass(frozen=True, kw_only=True)
class Action:
    """One entry of a rule's `then`, compiled.

    The name of a follow-up begins with the name of the task it follows: `call/team_task` is made when `call` failed,
    `call/expired/team_task` when it expired at its provider. `body` holds the task's other keys, as constants or Templates.
    `at` is for tasks of Mindhunters, `due` and `assign` for team tasks. `assign` is a Team, user ids, or a Template that gives
    a team's name, an id or a list of ids.
    """

    name: str
    type: TaskType
    place: str
    at: At | Template | None = None
    expires: timedelta | None = None
    due: timedelta | DueDate | Template | None = None
    assign: Team | tuple[str | Template, ...] | Template | None = None
    timezone: str | Template | None = None
    body: Mapping[str, Dynamic]
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    if_unsure: Literal["ask", "repeat"] = "ask"
    on_failure: tuple[Action, ...] = ()
    #: By the provider's word for how it ended the task.
    on_outcome: Mapping[str, tuple[Action, ...]] = field(default_factory=dict)

    @cached_property
    def answers(self) -> Mapping[str, tuple[Action, ...]]:
        """The follow-up actions by trigger, the word listed in `Task.reactions`."""
        failure = {FAILURE: self.on_failure} if self.on_failure else {}
        return failure | {outcome_trigger(word): actions for word, actions in self.on_outcome.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleTest:
    """One entry of a rule's `tests`: an event, a moment, and exactly the tasks expected for them.

    `expected` has a pair for each task: its type or name, and required field values. `path` and `place` locate the test in its
    file.
    """

    name: str
    at: str | None
    given: Mapping[str, Json]
    expected: tuple[tuple[str, Mapping[str, Json]], ...]
    path: str
    place: Position


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule: the event types it listens to, its conditions, and its actions."""

    id: str
    description: str | None
    when: tuple[str, ...]
    condition: Condition
    actions: tuple[Action, ...]
    stop: bool = False
    timezone: str | None = None
    file: str
    place: str
    tests: tuple[RuleTest, ...] = ()

    def action(self, name: str) -> Action | None:
        """Return the action with this name, follow-ups included; None when there is none."""
        open_ = [*self.actions]
        while open_:
            action = open_.pop()
            if action.name == name:
                return action
            open_ += (each for actions in action.answers.values() for each in actions)
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """Defaults for all rules. `country_zones` maps a country code to the time zone to assume there."""

    timezone: str | None = None
    country_zones: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceText:
    """One entry of `sources:` as written, with variables resolved; the ingress builds a Source from it.

    `path` is its path in the file, so that `places.add_fault((*path, "auth"), "...")` reports the right line.
    """

    name: str
    value: Mapping[str, Json]
    places: SourceMap
    path: tuple[str | int, ...]


@dataclass(frozen=True, kw_only=True)
class RuleSet:
    """A whole rule set. `version` is its content hash; `files` holds the original texts, variables unresolved."""

    version: str
    rules: tuple[Rule, ...]
    defaults: Defaults
    teams: Mapping[str, Team]
    sources: tuple[SourceText, ...]
    warnings: tuple[RuleFault, ...]
    files: Mapping[str, str]

    def listening(self, event_type: str) -> Sequence[Rule]:
        """Return the rules whose `when` matches this event type, in order; `*` in a pattern matches any text."""
        found = self._by_type.get(event_type)
        if found is None:
            places = {*self._places[0].get(event_type, ())}
            places.update(place for pattern, place in self._places[1] if covers(pattern, event_type))
            found = tuple(self.rules[place] for place in sorted(places))
            if len(self._by_type) < REMEMBERED_TYPES:
                self._by_type[event_type] = found
        return found

    @cached_property
    def _by_type(self) -> dict[str, tuple[Rule, ...]]:
        return {}

    @cached_property
    def _places(self) -> tuple[Mapping[str, Sequence[int]], Sequence[tuple[str, int]]]:
        """Where rules stand that listen to a type by its name, and those that listen to a pattern."""
        named: dict[str, list[int]] = {}
        patterned: list[tuple[str, int]] = []
        for place, rule in enumerate(self.rules):
            for pattern in rule.when:
                if "*" in pattern:
                    patterned.append((pattern, place))
                else:
                    named.setdefault(pattern, []).append(place)
        return named, patterned

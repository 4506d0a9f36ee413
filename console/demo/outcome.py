"""What the demo came to, and in what it falls short of its promises.

The ledger says what was decided and the sandbox what was created; a task counts only when both agree on it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from console.demo.story import Happening, Posting, Promise
from console.samples import Posted
from rules.vocabulary import (
    TERMINAL_TASK_STATES,
    DecisionOutcome,
    EventState,
    Json,
    ProviderName,
    TaskState,
)
from worker.ledger import StoredEvent, StoredTask

#: Every description a provider is given ends in a mark with so many characters of the task's key.
MARK_CHARACTERS: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Everything there is to see at one moment; `answers` has those to each posting, in order."""

    postings: tuple[Posting, ...]
    answers: tuple[tuple[Posted, ...], ...]
    events: tuple[StoredEvent, ...]
    tasks: tuple[StoredTask, ...]
    at_mindhunters: tuple[Mapping[str, Json], ...]
    at_vambe: tuple[Mapping[str, Json], ...]
    refused: tuple[str, ...]

    @property
    def promised(self) -> tuple[Promise, ...]:
        """Every task that must be made."""
        return tuple(
            promise for posting in self.postings for happening in posting.happenings for promise in happening.promises
        )

    @property
    def held(self) -> tuple[Mapping[str, Json], ...]:
        """Every task that the providers hold."""
        return (*self.at_mindhunters, *self.at_vambe)

    @property
    def is_quiet(self) -> bool:
        """Whether nothing more will happen by itself: all is decided, and every task has come to its end."""
        happenings = sum(len(posting.happenings) for posting in self.postings)
        return (
            len(self.events) >= happenings
            and all(event.state is not EventState.RECEIVED for event in self.events)
            and all(task.state in TERMINAL_TASK_STATES | {TaskState.UNKNOWN} for task in self.tasks)
        )

    def event_of(self, posting: Posting, happening: Happening) -> StoredEvent | None:
        """Return the event of a happening, if it is in the ledger exactly once."""
        found = [
            stored
            for stored in self.events
            if stored.event.source == posting.source
            and stored.event.type == happening.type
            and stored.event.subject is not None
            and stored.event.subject.id == happening.subject_id
        ]
        return found[0] if len(found) == 1 else None

    def tasks_of(self, event: StoredEvent, rule: str) -> list[StoredTask]:
        """Return what a rule made of an event."""
        return [task for task in self.tasks if task.event_id == event.id and task.rule == rule]

    def at_provider(self, task: StoredTask) -> list[Mapping[str, Json]]:
        """Return what the provider holds of a task: found by its id there and by the mark in its description."""
        held, name = (
            (self.at_mindhunters, "uuid") if task.provider is ProviderName.MINDHUNTERS else (self.at_vambe, "id")
        )
        mark = f"[lw:{task.key[:MARK_CHARACTERS]}]"
        return [one for one in held if one[name] == task.external_id or mark in str(one["description"])]


def shortcomings(outcome: Outcome) -> list[str]:
    """Return in what the outcome is not as promised, in sentences; empty when all is well."""
    return list(_shortcomings(outcome))


def _shortcomings(outcome: Outcome) -> Iterator[str]:
    for posting, answers in zip(outcome.postings, outcome.answers, strict=True):
        for posted in answers:
            if not posted.accepted:
                yield f"a webhook of {posting.source} was answered with {posted.status}: {posted.text[:200]}"
        for happening in posting.happenings:
            yield from _unlike(outcome, posting, happening)
    happenings = sum(len(posting.happenings) for posting in outcome.postings)
    if len(outcome.events) != happenings:
        yield f"{len(outcome.events)} events are in the ledger, not {happenings}"
    wanted = Counter(promise.title for promise in outcome.promised)
    held = Counter(str(one["title"]) for one in outcome.held)
    for title in sorted((wanted | held).keys()):
        if wanted[title] != held[title]:
            yield f"the providers hold {held[title]} of {title!r}, not {wanted[title]}"
    for why in outcome.refused:
        yield f"a provider refused a request: {why}"


def _unlike(outcome: Outcome, posting: Posting, happening: Happening) -> Iterator[str]:
    event = outcome.event_of(posting, happening)
    if event is None:
        yield f"{happening.words}: not in the ledger exactly once"
        return
    for promise in happening.promises:
        made = [task for task in outcome.tasks_of(event, promise.rule) if task.type is promise.type]
        states = ", ".join(f"{task.state} ({task.reason})" if task.reason else str(task.state) for task in made)
        if [task.state for task in made] != [TaskState.DELIVERED]:
            yield f"{happening.words}: {promise.type} of {promise.rule} is {states or 'not there'}, not delivered once"
        elif len(outcome.at_provider(made[0])) != 1:
            yield f"{happening.words}: {made[0].provider} does not hold {promise.title!r} exactly once"
    if happening.left_alone:
        rule, path = happening.left_alone
        found = [
            decision.failed.path
            for decision in event.decisions
            if decision.rule == rule and decision.outcome is DecisionOutcome.NOT_MATCHED and decision.failed
        ]
        if found != [path]:
            yield f"{happening.words}: the ledger does not say that {rule} left it alone because of {path}"

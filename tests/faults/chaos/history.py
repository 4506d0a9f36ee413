"""What a run leaves behind, as values: what was posted, what the provider did, what the ledger says, what was disturbed.

Moments are seconds since 1970, all by the clock of the machine that runs the harness, except those that a worker wrote into
the ledger: its own clock may have been moved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: States in which nothing will happen any more.
ENDED = frozenset({"delivered", "dead", "cancelled", "suppressed"})
#: Verdict of an attempt after which nobody knows whether the provider executed it.
UNSURE = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """One request of the sender; `status` is None when no answer came."""

    event: str
    at: float
    ended_at: float
    status: int | None

    @property
    def accepted(self) -> bool:
        """Whether the sender was told that the event is safe."""
        return self.status is not None and 200 <= self.status < 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """One thing that a provider did, noted before it answered."""

    provider: str
    title: str
    at: float
    external_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt of the ledger; `deferred` ones cost the task nothing."""

    started_at: float
    ended_at: float | None
    verdict: str | None
    deferred: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Touch:
    """One task of the ledger.

    `first_due_at` is when it was to be sent at the soonest, `planned_later` whether its rule says "later"; `sought_at` when
    it is looked up next, None when nobody looks any more.
    """

    id: str
    event: str
    provider: str
    title: str
    state: str
    first_due_at: float
    due_at: float
    external_id: str | None = None
    if_unsure: str = "ask"
    retries: int = 3
    retry_seconds: float = 0.0
    attempts: tuple[Attempt, ...] = ()
    sought_at: float | None = None
    planned_later: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Disturbed:
    """A span in which something was wrong; `provider` is the one that a storm was at."""

    kind: str
    began_at: float
    ended_at: float
    provider: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Everything the checker looks at; `expected` names what each event is to become, as (provider, title)."""

    posts: tuple[Post, ...] = ()
    effects: tuple[Effect, ...] = ()
    #: State of each event in the ledger.
    events: Mapping[str, str] = field(default_factory=dict)
    touches: tuple[Touch, ...] = ()
    expected: Mapping[str, frozenset[tuple[str, str]]] = field(default_factory=dict)
    disturbed: tuple[Disturbed, ...] = ()
    #: What the database says of its own files; empty when all is well.
    integrity: tuple[str, ...] = ()
    #: Where something personal or secret was found.
    leaks: tuple[str, ...] = ()
    ended_at: float = 0.0
    #: How far a clock of the house was moved.
    clock_moved_seconds: float = 0.0

    @property
    def accepted(self) -> dict[str, float]:
        """The events that were answered with 2xx, and when first."""
        first: dict[str, float] = {}
        for post in self.posts:
            if post.accepted:
                first[post.event] = min(post.ended_at, first.get(post.event, post.ended_at))
        return first

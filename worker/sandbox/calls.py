"""What a stand-in is asked and what it says, as values between the HTTP server and the two providers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from rules.vocabulary import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request. `path` is below the provider's root, header names are lower case, `document` is the decoded body.

    `document` is None for a body that is no JSON (or the JSON null).
    """

    method: str
    path: str
    query: Mapping[str, list[str]] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    document: Json = None

    def last(self, name: str, default: str = "") -> str:
        """Return a query value; of several the last."""
        return (self.query.get(name) or [default])[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One answer: JSON, or text as it stands with its own content type. `why` says what was refused; `task` what was made.

    `silent`: the request was executed, and the connection is closed without an answer.
    """

    status: int
    body: Json = None
    headers: Mapping[str, str] = field(default_factory=dict)
    why: str | None = None
    task: str | None = None
    silent: bool = False


def stamp(moment: datetime) -> str:
    """Return a moment as ISO 8601 UTC with milliseconds and `Z`."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def forget_oldest(held: dict[str, Any], limit: int) -> None:
    """Keep memory bounded: what came first goes first."""
    while len(held) > limit:
        del held[next(iter(held))]

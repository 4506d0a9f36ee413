"""How the sandbox misbehaves: a script of faults, each for the requests it matches, a number of times.

A fault is `{"provider": "vambe", "match": {"title": "Call Ana"}, "times": 2, "answer": {"status": 503}}`. Every key but `answer`
may be left out: then it is any provider, any POST, and once (`times: null`: for ever). `match` compares fields of the JSON
body by dotted path with a value or with `{"contains": "text"}`; `path` is below the provider's base URL, as in `/tasks`. The
first fault that matches and is not used up acts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from rules.vocabulary import Json
from worker.sandbox.calls import Call
from worker.sandbox.switches import SandboxError

_DRIP_SECONDS: Final = 0.2
_LONGEST_SECONDS: Final = 3600.0

#: Answers with a name of their own.
NAMED: Final[Mapping[str, Mapping[str, Json]]] = {
    "hang_up_before": {"hang_up": "before"},
    "hang_up_after": {"hang_up": "after"},
    "reset_before": {"hang_up": "before", "reset": True},
    "reset_after": {"hang_up": "after", "reset": True},
    "drip": {"drip_seconds": _DRIP_SECONDS},
    "html_502": {
        "status": 502,
        "headers": {"Content-Type": "text/html"},
        "body": "<html><head><title>502</title></head><body><h1>Bad gateway</h1></body></html>",
    },
}

_FAULT_KEYS: Final = frozenset({"provider", "method", "path", "match", "times", "every", "answer"})
_ANSWER_KEYS: Final = frozenset(
    {"status", "headers", "body", "store", "delay_seconds", "hang_up", "reset", "drip_seconds"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Misdeed:
    """What happens instead of, or on top of, the proper answer.

    `status` replaces the answer; with `store` the request is executed all the same. `hang_up` closes the connection without
    an answer, before or after executing; `reset` does so with a TCP reset. `delay_seconds` passes after executing and before
    answering; `drip_seconds` passes before each byte of the answer.
    """

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Json = None
    store: bool = False
    delay_seconds: float = 0.0
    hang_up: Literal["before", "after"] | None = None
    reset: bool = False
    drip_seconds: float = 0.0

    @property
    def executes(self) -> bool:
        """Whether the request is executed at all."""
        return self.hang_up != "before" and (self.status is None or self.store)


@dataclass(slots=True, kw_only=True)
class Fault:
    """One line of the script and how often it has acted. `every` lets it act on each nth request it matches."""

    written: Mapping[str, Json]
    provider: str | None
    method: str
    path: str | None
    match: Mapping[str, Json]
    times: int | None
    every: int
    misdeed: Misdeed
    matched: int = 0
    acted: int = 0

    def takes(self, provider: str, call: Call) -> bool:
        """Say whether it acts on this request, and count it."""
        if self.times is not None and self.acted >= self.times:
            return False
        if self.provider not in {None, provider} or self.method not in {"*", call.method}:
            return False
        if self.path not in {None, call.path.removeprefix("/public")} or not all(
            _agrees(_at(call.document, name), wanted) for name, wanted in self.match.items()
        ):
            return False
        self.matched += 1
        if self.matched % self.every:
            return False
        self.acted += 1
        return True


class Script:
    """The faults in force. Not for several threads at once: the sandbox holds its lock."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def add(self, script: Json) -> None:
        """Add a list of faults (or one); raises SandboxError, naming the place, without adding any."""
        entries = [script] if isinstance(script, dict) else script
        if not isinstance(entries, Sequence) or isinstance(entries, str | bytes):
            raise SandboxError("a fault script is a JSON list of faults")
        self._faults += [_fault(entry, f"fault {number}") for number, entry in enumerate(entries, start=1)]

    def clear(self) -> None:
        """Misbehave no more."""
        self._faults.clear()

    def take(self, provider: str, call: Call) -> Misdeed | None:
        """Return what shall happen to this request, if anything."""
        for fault in self._faults:
            if fault.takes(provider, call):
                return fault.misdeed
        return None

    def as_json(self) -> list[dict[str, Json]]:
        """Return the faults as written, with how often each has acted."""
        return [{**fault.written, "matched": fault.matched, "acted": fault.acted} for fault in self._faults]


def _fault(entry: Json, place: str) -> Fault:
    if not isinstance(entry, dict):
        raise SandboxError(f"{place}: must be a mapping, not {entry!r}")
    _only(entry, _FAULT_KEYS, place)
    provider = entry.get("provider")
    if provider not in {None, "mindhunters", "vambe"}:
        raise SandboxError(f"{place}: provider must be mindhunters or vambe, not {provider!r}")
    match = entry.get("match", {})
    if not isinstance(match, dict):
        raise SandboxError(f"{place}: match must be a mapping of field to value, not {match!r}")
    times = entry.get("times", 1)
    if times is not None and not _is_count(times):
        raise SandboxError(f"{place}: times must be a whole number, or null for always, not {times!r}")
    every = entry.get("every", 1)
    if not _is_count(every):
        raise SandboxError(f"{place}: every must be a whole number of 1 or more, not {every!r}")
    if "answer" not in entry:
        raise SandboxError(f"{place}: answer is missing; it is {', '.join(NAMED)} or a mapping of {_listed()}")
    return Fault(
        written=entry,
        provider=provider,
        method=str(entry.get("method", "POST")).upper(),
        path=entry.get("path"),
        match=match,
        times=times,
        every=every,
        misdeed=_misdeed(entry["answer"], f"{place}: answer"),
    )


def _misdeed(answer: Json, place: str) -> Misdeed:
    if isinstance(answer, str):
        if answer not in NAMED:
            raise SandboxError(f"{place}: must be {', '.join(NAMED)} or a mapping of {_listed()}, not {answer!r}")
        answer = NAMED[answer]
    if not isinstance(answer, Mapping):
        raise SandboxError(f"{place}: must be a name or a mapping, not {answer!r}")
    _only(answer, _ANSWER_KEYS, place)
    status = answer.get("status")
    if status is not None and not (_is_count(status) and 200 <= status <= 599):  # noqa: PLR2004 - final HTTP statuses
        raise SandboxError(f"{place}: status must be from 200 to 599, not {status!r}")
    headers = answer.get("headers", {})
    if not isinstance(headers, dict) or not all(
        isinstance(value, str) and (name + value).isprintable() and (name + value).isascii()
        for name, value in headers.items()
    ):
        raise SandboxError(f"{place}: headers must be a mapping of name to plain text, not {headers!r}")
    hang_up = answer.get("hang_up")
    if hang_up not in {None, "before", "after"}:
        raise SandboxError(f"{place}: hang_up must be before or after, not {hang_up!r}")
    return Misdeed(
        status=status,
        headers=headers,
        body=answer.get("body"),
        store=bool(answer.get("store", False)),
        delay_seconds=_seconds(answer, "delay_seconds", place),
        hang_up=hang_up,
        reset=bool(answer.get("reset", False)),
        drip_seconds=_seconds(answer, "drip_seconds", place),
    )


def _seconds(answer: Mapping[str, Json], key: str, place: str) -> float:
    value = answer.get(key, 0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise SandboxError(f"{place}: {key} must be a number of seconds, not {value!r}")
    return min(max(float(value), 0.0), _LONGEST_SECONDS)


def _only(entry: Mapping[str, Json], allowed: frozenset[str], place: str) -> None:
    for key in entry:
        if key not in allowed:
            raise SandboxError(f"{place}: there is no {key!r}; there are: {', '.join(sorted(allowed))}")


def _listed() -> str:
    return ", ".join(sorted(_ANSWER_KEYS))


def _is_count(value: Json) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _at(document: Json, path: str) -> Json:
    """Return the value at a dotted path, None where there is none."""
    for step in path.split("."):
        document = document.get(step) if isinstance(document, dict) else None
    return document


def _agrees(seen: Json, wanted: Json) -> bool:
    if isinstance(wanted, dict) and wanted.keys() == {"contains"}:
        return isinstance(seen, str) and str(wanted["contains"]) in seen
    return bool(seen == wanted)

"""What a stand-in is asked and answers, and how the sandbox misbehaves: a script of faults, each a number of times.

A fault is `{"provider": "vambe", "match": {"title": "Call Ana"}, "times": 2, "answer": {"status": 503}}`. Every key but `answer`
may be left out: then it is any provider, any POST, and once (`times: null`: for ever). `match` compares fields of the JSON
body by dotted path with a value or with `{"contains": "text"}`; `path` is below the provider's base URL, as in `/tasks`. The
first fault that matches and is not used up acts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError
from pydantic_core import PydanticCustomError

from rules.vocabulary import Json
from worker.sandbox.switches import SandboxError

_LONGEST_SECONDS: Final = 3600.0

#: Answers with a name of their own.
NAMED: Final[Mapping[str, Mapping[str, Json]]] = {
    "hang_up_before": {"hang_up": "before"},
    "hang_up_after": {"hang_up": "after"},
    "reset_before": {"hang_up": "before", "reset": True},
    "reset_after": {"hang_up": "after", "reset": True},
    "drip": {"drip_seconds": 0.2},
    "html_502": {
        "status": 502,
        "headers": {"Content-Type": "text/html"},
        "body": "<html><head><title>502</title></head><body><h1>Bad gateway</h1></body></html>",
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxRequest:
    """A request to a stand-in. `path` is below the provider's root, header names are lower case, `document` is the decoded body.

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
class SandboxResponse:
    """Its answer: JSON, or text as it stands with its own content type. `why` says what was refused; `task` what was made.

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


def _named(answer: Json) -> Json:
    """Return what a name of `NAMED` stands for, and a mapping as it is."""
    if isinstance(answer, Mapping):
        return answer
    if not isinstance(answer, str):
        raise PydanticCustomError("answer", "must be a name or a mapping")
    if answer not in NAMED:
        raise PydanticCustomError("answer", _answers())
    return NAMED[answer]


def _plain(text: str) -> str:
    if not (text.isprintable() and text.isascii()):
        raise ValueError("not plain text")
    return text


def _bounded(seconds: float) -> float:
    return min(max(seconds, 0.0), _LONGEST_SECONDS)


_Plain = Annotated[str, AfterValidator(_plain)]
_Count = Annotated[int, Field(ge=1)]
_Seconds = Annotated[float, Field(allow_inf_nan=False, description="a number of seconds"), AfterValidator(_bounded)]


class Misbehaviour(BaseModel):
    """A fault: what happens instead of, or in addition to, the normal answer.

    `status` replaces the answer; with `store` the request is executed all the same. `hang_up` closes the connection without an
    answer, before or after executing; `reset` does so with a TCP reset. `delay_seconds` passes after executing and before
    answering, `drip_seconds` before each byte of the answer.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    status: int | None = Field(default=None, ge=200, le=599, description="from 200 to 599")
    headers: dict[_Plain, _Plain] = Field(default_factory=dict, description="a mapping of name to plain text")
    body: Json = None
    store: bool = Field(default=False, description="true or false")
    delay_seconds: _Seconds = 0.0
    hang_up: Literal["before", "after"] | None = Field(default=None, description="before or after")
    reset: bool = Field(default=False, description="true or false")
    drip_seconds: _Seconds = 0.0

    @property
    def executes(self) -> bool:
        """Whether the request is executed at all."""
        return self.hang_up != "before" and (self.status is None or self.store)

    def words(self) -> str:
        """Return what happens, for the page and the log."""
        words = [f"hang up {self.hang_up}"] if self.hang_up else []
        words += [f"status {self.status}{' after storing' if self.store else ''}"] if self.status else []
        words += [f"delay {self.delay_seconds:g} s"] if self.delay_seconds else []
        words += ["drip"] if self.drip_seconds else []
        return ", ".join(words)


class ScriptedFault(BaseModel):
    """One line of the script, and how often it has matched and acted. With `every` it acts on each nth match."""

    model_config = ConfigDict(extra="forbid", strict=True)

    provider: Literal["mindhunters", "vambe"] | None = Field(default=None, description="mindhunters or vambe")
    method: str = Field(default="POST", description="an HTTP method, or *")
    path: str | None = Field(default=None, description="a path such as /tasks")
    match: dict[str, Json] = Field(default_factory=dict, description="a mapping of field to value")
    times: _Count | None = Field(default=1, description="a whole number, or null for always")
    every: _Count = Field(default=1, description="a whole number of 1 or more")
    answer: Annotated[Misbehaviour, BeforeValidator(_named)]
    _matched: int = PrivateAttr(default=0)
    _acted: int = PrivateAttr(default=0)

    def takes(self, provider: str, request: SandboxRequest) -> bool:
        """Return whether this fault applies to the request, and count it."""
        if self.times is not None and self._acted >= self.times:
            return False
        if self.provider not in {None, provider} or self.method.upper() not in {"*", request.method}:
            return False
        if self.path not in {None, request.path.removeprefix("/public")} or not all(
            _agrees(_at(request.document, name), wanted) for name, wanted in self.match.items()
        ):
            return False
        self._matched += 1
        if self._matched % self.every:
            return False
        self._acted += 1
        return True

    def counts(self) -> dict[str, Json]:
        """Return how often it matched and was applied."""
        return {"matched": self._matched, "acted": self._acted}


class Script:
    """The active faults. Not thread-safe: the sandbox holds its lock."""

    def __init__(self) -> None:
        self._faults: list[tuple[Json, ScriptedFault]] = []

    def add(self, script: Json) -> None:
        """Add a list of faults (or one), all or none. Raises SandboxError that names the place."""
        entries = [script] if isinstance(script, dict) else script
        if not isinstance(entries, Sequence) or isinstance(entries, str | bytes):
            raise SandboxError("a fault script is a JSON list of faults")
        self._faults += [(entry, _fault(entry, f"fault {number}")) for number, entry in enumerate(entries, start=1)]

    def clear(self) -> None:
        """Remove all faults."""
        self._faults.clear()

    def take(self, provider: str, request: SandboxRequest) -> Misbehaviour | None:
        """Return the fault to apply to this request, or None."""
        return next((fault.answer for _, fault in self._faults if fault.takes(provider, request)), None)

    def as_json(self) -> list[dict[str, Json]]:
        """Return the faults as written, each with how often it matched and was applied."""
        return [{**written, **fault.counts()} for written, fault in self._faults]


def _fault(entry: Json, place: str) -> ScriptedFault:
    if not isinstance(entry, dict):
        raise SandboxError(f"{place}: must be a mapping, not {entry!r}")
    try:
        return ScriptedFault.model_validate(entry)
    except ValidationError as error:
        raise SandboxError(_complaint(error, place)) from error


def _complaint(error: ValidationError, place: str) -> str:
    """Return the first thing that is wrong, with its place."""
    first = error.errors(include_url=False)[0]
    key, *inside = map(str, first["loc"])
    model: type[BaseModel] = ScriptedFault
    if key == "answer" and (inside or first["type"] == "answer"):
        model, place = Misbehaviour, f"{place}: answer"
        key = inside[0] if inside else key
    match first["type"]:
        case "extra_forbidden":
            return f"{place}: there is no {key!r}; there are: {', '.join(sorted(model.model_fields))}"
        case "missing":
            return f"{place}: {key} is missing; it {_answers().replace('must be', 'is', 1)}"
        case "answer":
            return f"{place}: {first['msg']}, not {first['input']!r}"
    return f"{place}: {key} must be {model.model_fields[key].description}, not {first['input']!r}"


def _answers() -> str:
    return f"must be {', '.join(NAMED)} or a mapping of {', '.join(sorted(Misbehaviour.model_fields))}"


def _at(document: Json, path: str) -> Json:
    """Return the value at a dotted path, None where there is none."""
    for step in path.split("."):
        document = document.get(step) if isinstance(document, dict) else None
    return document


def _agrees(seen: Json, wanted: Json) -> bool:
    if isinstance(wanted, dict) and wanted.keys() == {"contains"}:
        return isinstance(seen, str) and str(wanted["contains"]) in seen
    return bool(seen == wanted)

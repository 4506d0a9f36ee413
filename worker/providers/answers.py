"""What an answer means when the provider offers no idempotency key: was the task made, will it ever be, who must act.

Both providers document bearer-style keys, JSON errors and no way to repeat a request safely, so one table serves both; a
provider's own file says how it spells ids and errors (`Dialect`). Whatever is not in the table is UNKNOWN: a second
phone call is worse than a late one. Sources: the verdict table of the two vendors' error pages, read 2026-11, and
RFC 9110 sections 9.2.2 and 15.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from rules.vocabulary import Json, Verdict
from worker.providers import Answered, CancelResult, Interpretation, NeverSent, NoAnswer, Sent
from worker.providers.retry_after import asked_until

#: Longer reasons help nobody, and they are kept for every attempt.
REASON_CHARACTERS: Final = 500
#: More complaints than this are counted, not quoted.
QUOTED_FIELDS: Final = 5
_ID_CHARACTERS: Final = 200
_NAME: Final = re.compile(r"[A-Za-z0-9_.\-\[\]]{1,80}")

_SUCCESS: Final = range(200, 300)
_REDIRECTION: Final = range(300, 400)
_BUSY: Final = frozenset({408, 425, 429, 503})
_REFUSING: Final = frozenset({400, 404, 409, 422})
_NOT_FOUND: Final = 404
_NOT_ALLOWED: Final = 405
_UNAUTHORISED: Final = 401
_FORBIDDEN: Final = 403

#: How a task is made with other fields once it was tried: its event is recognised when it only comes again.
ANEW: Final = "then have a new event sent, or all tasks of this one made anew: leadwire replay EVENT_ID --new-keys"

_LOOK: Final = (
    "It may have been executed: it is looked up at the provider before anything is sent again; "
    "where that cannot tell, a person decides with leadwire settle"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Complaint:
    """A provider's own error form, read: its message, its code, and what it says of single fields.

    `about_task` is false when a "not found" may mean the address instead of something the task names.
    """

    message: str
    code: str = ""
    fields: tuple[tuple[str, str], ...] = ()
    about_task: bool = True

    def words(self) -> str:
        """Return message and field complaints in one line, for a person."""
        message = (self.message or self.code).rstrip(". ")
        quoted = [f"{name}: {said}" if name else said for name, said in self.fields[:QUOTED_FIELDS]]
        quoted = [part for part in quoted if part not in message]  # some say it twice
        more = len(self.fields) - QUOTED_FIELDS
        if more > 0:
            quoted.append(f"and {more} more")
        return "; ".join(part for part in (message, *quoted) if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How one provider spells its answers.

    `identify` finds the id of the task it made in a decoded body; `complain` reads its own error form and returns None for
    any other body; `remedy` says what to do about a refusal. `url_setting` and `key_setting` are the settings to check.
    """

    name: str
    url_setting: str
    url_example: str
    key_setting: str
    identify: Callable[[Json], Json]
    complain: Callable[[Json], Complaint | None]
    remedy: Callable[[Complaint], str]


def read(dialect: Dialect, sent: Sent, now: datetime) -> Interpretation:
    """Return what a send came to, for any status, headers and bytes."""
    match sent:
        case NeverSent():
            remedy = f"Check {dialect.url_setting} and the network; it is tried again"
            return Interpretation(verdict=Verdict.BUSY, reason=reason("Not sent:", sent.error, remedy))
        case NoAnswer():
            return Interpretation(verdict=Verdict.UNKNOWN, reason=reason("No answer:", sent.error, _LOOK))
        case Answered():
            return _of_answer(dialect, sent, now)


def cancelled(dialect: Dialect, sent: Sent) -> CancelResult:
    """Return what came of asking for a task to be cancelled, for any status and bytes."""
    match sent:
        case NeverSent():
            return CancelResult(taken=False, words=f"not sent: {one_line(sent.error, REASON_CHARACTERS)}")
        case NoAnswer():
            words = f"no answer ({one_line(sent.error, REASON_CHARACTERS)}): it may be cancelled all the same"
            return CancelResult(taken=False, words=words)
        case Answered(status=status):
            complaint = dialect.complain(decoded(sent.body))
            # A message about a credential may quote it.
            said = complaint.words() if complaint and status not in {_UNAUTHORISED, _FORBIDDEN} else ""
            taken = status in _SUCCESS and complaint is None
            return CancelResult(taken=taken, words=one_line(f"{status} {said}".strip(), REASON_CHARACTERS))


def _of_answer(dialect: Dialect, answer: Answered, now: datetime) -> Interpretation:
    status = answer.status
    body = decoded(answer.body)
    if status in _SUCCESS:
        return _of_success(dialect, status, body)
    complaint = dialect.complain(body)
    said = complaint.words() if complaint else ""
    if status in _BUSY:
        return Interpretation(
            verdict=Verdict.BUSY,
            reason=reason(status, said, "The provider is busy; it is tried again"),
            retry_after_at=asked_until(answer.headers.get("retry-after"), now),
        )
    if status in _REFUSING and complaint is not None and (status != _NOT_FOUND or complaint.about_task):
        return Interpretation(verdict=Verdict.REFUSED, reason=reason(status, said, dialect.remedy(complaint)))
    if status in {_UNAUTHORISED, _FORBIDDEN, _NOT_FOUND, _NOT_ALLOWED} or status in _REDIRECTION:
        return _of_misdirection(dialect, status, complaint)
    return Interpretation(verdict=Verdict.UNKNOWN, reason=reason(status, said, _LOOK))


def _of_misdirection(dialect: Dialect, status: int, complaint: Complaint | None) -> Interpretation:
    """Read a status that would meet every other task too: a wrong key or a wrong address."""
    said = complaint.words() if complaint else ""
    # A 403, and a 404 in the provider's own form, may still concern this one task: then the probe succeeds.
    probe_first = status == _FORBIDDEN or (status == _NOT_FOUND and complaint is not None)
    if status == _UNAUTHORISED:
        said = complaint.code if complaint else ""  # a message about a credential may quote it
        remedy = f"{dialect.name} does not accept the key: check {dialect.key_setting}; its tasks wait meanwhile"
    elif status == _FORBIDDEN:
        remedy = f"Check what the key of {dialect.key_setting} may do at {dialect.name}"
    elif probe_first:
        remedy = (
            f"Either the rule names an id {dialect.name} does not have, or {dialect.url_setting} is not its API's root"
        )
    else:
        remedy = (
            f"This is not the task address of {dialect.name}: check {dialect.url_setting}, which is the root of the API, "
            f"such as {dialect.url_example}; its tasks wait meanwhile"
        )
    return Interpretation(verdict=Verdict.PAUSE, reason=reason(status, said, remedy), probe_first=probe_first)


def _of_success(dialect: Dialect, status: int, body: Json) -> Interpretation:
    found = dialect.identify(body)
    external_id = str(found) if isinstance(found, str | int) and not isinstance(found, bool) else ""
    external_id = one_line(external_id, _ID_CHARACTERS)
    if not external_id:
        return Interpretation(verdict=Verdict.UNKNOWN, reason=reason(status, "an answer without an id", _LOOK))
    return Interpretation(verdict=Verdict.DELIVERED, external_id=external_id)


def decoded(body: bytes) -> Json:
    """Return the JSON of a body, or None for bytes that are none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):  # ValueError: not JSON, not text, or a number beyond all use
        return None


def one_line(text: str, limit: int) -> str:
    """Return foreign text on one line, without control, formatting and broken characters, cut to `limit` characters."""
    readable = text[: limit * 4]
    if not readable.isprintable():
        readable = "".join(
            " " if unicodedata.category(char) in {"Cc", "Zl", "Zp"} else char
            for char in readable
            if unicodedata.category(char) not in {"Cf", "Cs", "Co", "Cn"}
        )
    line = " ".join(readable.split())
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def reason(start: int | str, said: str, remedy: str) -> str:
    """Return `start said. remedy`: what the provider says is cut so that the remedy is always there."""
    room = REASON_CHARACTERS - len(str(start)) - len(remedy) - 4
    words = one_line(said, room).rstrip(".")
    return f"{start} {words}. {remedy}." if words else f"{start}. {remedy}."


def field_name(value: Json) -> str:
    """Return the name of a field as an error form gives it; anything that is no name becomes an empty one."""
    return value if isinstance(value, str) and _NAME.fullmatch(value) else ""


def text_of(value: Json) -> str:
    """Return what a provider says, whether as text or as a list of texts; anything else is nothing said."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return ", ".join(item for item in value[:QUOTED_FIELDS] if isinstance(item, str))
    return ""

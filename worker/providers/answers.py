"""What a provider's answers mean: was the task made, will it ever be, does a listing hold it, when is it asked again.

Neither provider has an idempotency key, so one table serves both; a provider's own file says how it spells ids and errors
(`AnswerFormat`). Whatever is not in the table is UNKNOWN: a second phone call is worse than a late one. Sources: the two
vendors' error pages, read 2026-11, and RFC 9110, sections 9.2.2, 10.2.3 and 15.

A task is found in a listing by the correlation tag at the end of its description. It is absent only from a listing that was
read whole: each page answered with 200 and well-formed, and as many tasks read as the pages say there are. One page shows
one moment. Several shift while tasks are made and deleted: what moves up to a page that was read already would be missed.
It moves up only when a task on a page that was read goes away. So the pages are read again, and the listing is whole when
all that was read before is still there. A task of the same title whose description shows no tag might be ours, cut
short: such a listing does not tell either.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Final

from rules.vocabulary import Json, Verdict
from worker.providers import (
    Answered,
    CancelResult,
    CannotTell,
    Interpretation,
    ListingProgress,
    LookupTarget,
    NeverSent,
    NextPage,
    NoAnswer,
    Sent,
    TaskAbsent,
    TaskFound,
    Unsendable,
    WholeListing,
)

#: Longer reasons help nobody, and they are kept for every attempt.
REASON_CHARACTERS: Final = 500
#: More faults than this are counted, not quoted.
QUOTED_FIELDS: Final = 5
_ID_CHARACTERS: Final = 200
_NAME: Final = re.compile(r"[A-Za-z0-9_.\-\[\]]{1,80}")

#: Longer listings are not read.
PAGES_LIMIT: Final = 300
#: How often the pages of a listing are read in all.
PASSES_LIMIT: Final = 5
_TAG_BEGINNING: Final = "[lw:"

#: Longer waits that a provider asks for are mistakes more often than wishes (milliseconds, year 9999).
LONGEST_RETRY_AFTER: Final = timedelta(hours=24)
_SECONDS: Final = re.compile(r"[0-9]+(\.[0-9]+)?")
#: More digits than this are far beyond a day, and thousands of them are more than int() takes.
_DIGITS: Final = 12

_OK: Final = 200
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
RETRY: Final = f"{ANEW}; what was mended at the provider needs leadwire retry only"

_LOOK: Final = (
    "It may have been executed: it is looked up at the provider before anything is sent again; "
    "where that cannot tell, a person decides with leadwire settle"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorBody:
    """A provider's error body, decoded: message, code, and errors of single fields.

    `about_task` is false when a "not found" may mean the URL instead of something the task refers to.
    """

    message: str
    code: str = ""
    fields: tuple[tuple[str, str], ...] = ()
    about_task: bool = True

    def words(self) -> str:
        """Return message and field errors in one line, for a person."""
        message = (self.message or self.code).rstrip(". ")
        quoted = [f"{name}: {said}" if name else said for name, said in self.fields[:QUOTED_FIELDS]]
        quoted = [part for part in quoted if part not in message]  # some say it twice
        more = len(self.fields) - QUOTED_FIELDS
        if more > 0:
            quoted.append(f"and {more} more")
        return "; ".join(part for part in (message, *quoted) if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerFormat:
    """The provider-specific parts of reading answers.

    `identify` finds the created task's id in a decoded body. `read_error` decodes the provider's error body and returns None
    for any other body. `remedy` says what to do about a refusal. `url_setting` and `key_setting` are the settings to check.
    """

    name: str
    url_setting: str
    url_example: str
    key_setting: str
    identify: Callable[[Json], Json]
    read_error: Callable[[Json], ErrorBody | None]
    remedy: Callable[[ErrorBody], str]


def read(form: AnswerFormat, sent: Sent, now: datetime) -> Interpretation:
    """Interpret the result of a send, for any status, headers and bytes."""
    match sent:
        case NeverSent():
            remedy = f"Check {form.url_setting} and the network; it is tried again"
            return Interpretation(verdict=Verdict.BUSY, reason=reason("Not sent:", sent.error, remedy))
        case NoAnswer():
            return Interpretation(verdict=Verdict.UNKNOWN, reason=reason("No answer:", sent.error, _LOOK))
        case Answered():
            return _of_answer(form, sent, now)


def cancelled(form: AnswerFormat, sent: Sent) -> CancelResult:
    """Interpret the answer to a cancellation, for any status and bytes."""
    match sent:
        case NeverSent():
            return CancelResult(taken=False, words=f"not sent: {one_line(sent.error, REASON_CHARACTERS)}")
        case NoAnswer():
            words = f"no answer ({one_line(sent.error, REASON_CHARACTERS)}): it may be cancelled all the same"
            return CancelResult(taken=False, words=words)
        case Answered(status=status):
            complaint = form.read_error(decoded(sent.body))
            # A message about a credential may quote it.
            said = complaint.words() if complaint and status not in {_UNAUTHORISED, _FORBIDDEN} else ""
            taken = status in _SUCCESS and complaint is None
            return CancelResult(taken=taken, words=one_line(f"{status} {said}".strip(), REASON_CHARACTERS))


def _of_answer(form: AnswerFormat, answer: Answered, now: datetime) -> Interpretation:
    status = answer.status
    body = decoded(answer.body)
    if status in _SUCCESS:
        return _of_success(form, status, body)
    complaint = form.read_error(body)
    said = complaint.words() if complaint else ""
    if status in _BUSY:
        return Interpretation(
            verdict=Verdict.BUSY,
            reason=reason(status, said, "The provider is busy; it is tried again"),
            retry_after_at=retry_not_before(answer.headers.get("retry-after"), now),
        )
    if status in _REFUSING and complaint is not None and (status != _NOT_FOUND or complaint.about_task):
        return Interpretation(verdict=Verdict.REFUSED, reason=reason(status, said, form.remedy(complaint)))
    if status in {_UNAUTHORISED, _FORBIDDEN, _NOT_FOUND, _NOT_ALLOWED} or status in _REDIRECTION:
        return _of_misdirection(form, status, complaint)
    return Interpretation(verdict=Verdict.UNKNOWN, reason=reason(status, said, _LOOK))


def _of_misdirection(form: AnswerFormat, status: int, complaint: ErrorBody | None) -> Interpretation:
    """Read a status that would meet every other task too: a wrong key or a wrong address."""
    said = complaint.words() if complaint else ""
    # A 403, and a 404 in the provider's own form, may still concern this one task: then the probe succeeds.
    probe_first = status == _FORBIDDEN or (status == _NOT_FOUND and complaint is not None)
    if status == _UNAUTHORISED:
        said = complaint.code if complaint else ""  # a message about a credential may quote it
        remedy = f"{form.name} does not accept the key: check {form.key_setting}; its tasks wait meanwhile"
    elif status == _FORBIDDEN:
        remedy = f"Check what the key of {form.key_setting} may do at {form.name}"
    elif probe_first:
        remedy = f"Either the rule names an id {form.name} does not have, or {form.url_setting} is not its API's root"
    else:
        remedy = (
            f"This is not the task address of {form.name}: check {form.url_setting}, which is the root of the API, "
            f"such as {form.url_example}; its tasks wait meanwhile"
        )
    return Interpretation(verdict=Verdict.PAUSE, reason=reason(status, said, remedy), probe_first=probe_first)


def _of_success(form: AnswerFormat, status: int, body: Json) -> Interpretation:
    found = form.identify(body)
    external_id = str(found) if isinstance(found, str | int) and not isinstance(found, bool) else ""
    external_id = one_line(external_id, _ID_CHARACTERS)
    if not external_id:
        return Interpretation(verdict=Verdict.UNKNOWN, reason=reason(status, "an answer without an id", _LOOK))
    return Interpretation(verdict=Verdict.DELIVERED, external_id=external_id)


def decoded(body: bytes) -> Json:
    """Return the JSON of a body; None for bytes that are not JSON."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):  # ValueError: not JSON, not text, or a number beyond all use
        return None


def one_line(text: str, limit: int) -> str:
    """Return text on one line, without control, formatting and invalid characters, cut to `limit` characters."""
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
    """Return `start said. remedy`, cutting `said` (the provider's text) so that the remedy always fits."""
    room = REASON_CHARACTERS - len(str(start)) - len(remedy) - 4
    words = one_line(said, room).rstrip(".")
    return f"{start} {words}. {remedy}." if words else f"{start}. {remedy}."


def unsendable(faults: Sequence[str], *, too_late: bool = False) -> Unsendable:
    """Return an Unsendable with these faults and the remedy."""
    remedy = f"Correct the rule or the data, {ANEW}"
    return Unsendable(reason=reason("Not sent:", "; ".join(faults), remedy), too_late=too_late)


def field_name(value: Json) -> str:
    """Return the field name in an error body; an empty text for anything that is not a name."""
    return value if isinstance(value, str) and _NAME.fullmatch(value) else ""


def text_of(value: Json) -> str:
    """Return a provider's message, given as text or as a list of texts; an empty text for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return ", ".join(item for item in value[:QUOTED_FIELDS] if isinstance(item, str))
    return ""


def retry_not_before(header: str | None, now: datetime) -> datetime | None:
    """Return the moment that a Retry-After header (seconds or an HTTP date) means, at most a day ahead; None without one.

    An unreadable value, a negative number and a past date count as none.
    """
    if header is None:
        return None
    text = header.strip()
    if _SECONDS.fullmatch(text):
        whole = text.partition(".")[0]
        longest_seconds = LONGEST_RETRY_AFTER.total_seconds()
        return now + timedelta(seconds=min(float(text), longest_seconds) if len(whole) <= _DIGITS else longest_seconds)
    try:
        moment = parsedate_to_datetime(text)
        if moment.tzinfo is None:  # "-0000": a time in UTC whose place is not told
            moment = moment.replace(tzinfo=UTC)
        return min(moment, now + LONGEST_RETRY_AFTER).astimezone(UTC) if moment > now else None
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


NOT_MARKED: Final = CannotTell(reason="it was sent without its mark, by which it could be found")
MALFORMED: Final = CannotTell(reason="the answer to the look-up is not a list of tasks as it is documented")
_TWIN: Final = CannotTell(reason="the provider holds a task of the same title that shows no mark")


@dataclass(frozen=True, slots=True, kw_only=True)
class Paging:
    """A page's own number, the number of the last page, and the total number of tasks."""

    page: int
    last_page: int
    total: int


def open_listing(sent: Sent) -> Json | CannotTell:
    """Return the body of a complete 200 answer, or CannotTell with the reason."""
    match sent:
        case NeverSent():
            return CannotTell(reason="the look-up could not be sent", answered=False)
        case NoAnswer():
            return CannotTell(reason="the look-up got no answer", answered=False)
        case Answered() if sent.status != _OK:
            return CannotTell(reason=f"the look-up was answered with {sent.status}")
        case Answered() if sent.truncated:
            return CannotTell(reason="the listing is too long to be read whole")
    body = decoded(sent.body)
    return CannotTell(reason="the answer to the look-up is no JSON") if body is None else body


def has_tag(sought: LookupTarget) -> bool:
    """Whether the task was sent with its correlation tag."""
    description = sought.task.fields.get("description")
    return isinstance(description, str) and sought.tag in description


def gather(
    rows: Sequence[Json], sought: Sequence[LookupTarget], id_names: Sequence[str], seen: ListingProgress | None
) -> ListingProgress | None:
    """Return the progress with one more page's tasks added; None when these are not in the documented form.

    `id_names` are the keys that may hold a task's id; the first present one counts.
    """
    before = seen or ListingProgress()
    held, ids, titles = dict(before.held), set(before.ids), set(before.unmarked)
    for row in rows:
        if not isinstance(row, dict) or "description" not in row:
            return None
        given = next((row[name] for name in id_names if row.get(name)), None)
        description = row["description"]
        if not isinstance(given, str | int) or isinstance(given, bool) or not isinstance(description, str | None):
            return None
        ids.add(str(given))
        found = [each.tag for each in sought if description is not None and each.tag in description]
        held.update({tag: one_line(str(given), _ID_CHARACTERS) for tag in found})
        if _TAG_BEGINNING not in (description or ""):
            titles.add(str(row.get("title")))
    wanted = {str(each.task.fields.get("title")) for each in sought}
    return replace(before, ids=frozenset(ids), held=held, unmarked=frozenset(titles & wanted))


def continue_listing(
    seen: ListingProgress, sought: Sequence[LookupTarget], paging: Paging, asked: int
) -> NextPage | WholeListing | CannotTell:
    """Return what follows a page: the next page, a whole listing, or CannotTell."""
    least = paging.total if seen.least_total is None else min(seen.least_total, paging.total)
    fits = paging.page == asked
    if all(each.tag in seen.held for each in sought):  # the rest of the listing does not matter then
        return whole_listing(seen, query_works=True)
    if fits and asked < paging.last_page:
        if asked >= PAGES_LIMIT:
            return CannotTell(reason=f"the listing has more than {PAGES_LIMIT} pages")
        return NextPage(page=asked + 1, seen=replace(seen, least_total=least))
    whole = fits and asked == max(paging.last_page, 1) and len(seen.ids) >= least
    at_once = asked == 1 and len(seen.ids) == paging.total
    unchanged = seen.earlier is not None and seen.earlier <= seen.ids
    if whole and (at_once or unchanged):
        return whole_listing(seen, query_works=bool(seen.ids))
    if seen.passes >= PASSES_LIMIT:
        return CannotTell(reason=f"the listing changed while it was read, {PASSES_LIMIT} times")
    earlier = seen.ids if whole else None
    again = ListingProgress(held=seen.held, unmarked=seen.unmarked, earlier=earlier, passes=seen.passes + 1)
    return NextPage(page=1, seen=again)


def whole_listing(seen: ListingProgress, *, query_works: bool) -> WholeListing:
    """Return the result of a completely read listing."""
    return WholeListing(held=seen.held, unmarked=seen.unmarked, query_works=query_works)


def result_for(
    listing: WholeListing | CannotTell, held: Mapping[str, str], sought: LookupTarget
) -> TaskFound | TaskAbsent | CannotTell:
    """Return what a listing says about one task; `held` has what its pages contained, also when it was not read completely."""
    if sought.tag in held:
        return TaskFound(external_id=held[sought.tag])
    if isinstance(listing, CannotTell):
        return listing
    return _TWIN if str(sought.task.fields.get("title")) in listing.unmarked else TaskAbsent()

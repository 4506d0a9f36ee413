"""When a provider's listing proves that a task was made, or that it was not; everything else proves nothing.

A task is found by the mark at the end of its description. It is absent only from a listing that was read whole: each page
answered with 200 and well-formed, and as many tasks read as the pages say there are. One page shows one moment. Several
shift while tasks are made and deleted, and what moves up to a page that was read already would be missed. It moves up
only when a task on a page that was read goes away; so the pages are read again, and the listing is whole when all that was
read before is still there. A task of the same title whose description shows no mark might be ours, cut short: such a
listing does not tell either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rules.vocabulary import Json
from worker.providers import (
    Answered,
    CannotTell,
    ListingProgress,
    LookupTarget,
    NeverSent,
    NextPage,
    NoAnswer,
    Sent,
    TaskAbsent,
    TaskFound,
    WholeListing,
)
from worker.providers.answers import decoded, one_line

#: Longer listings are not read.
PAGES_LIMIT: Final = 300
#: How often the pages of a listing are read in all.
PASSES_LIMIT: Final = 5

_OK: Final = 200
_ID_CHARACTERS: Final = 200
_MARK_BEGINNING: Final = "[lw:"

NOT_MARKED: Final = CannotTell(reason="it was sent without its mark, by which it could be found")
MALFORMED: Final = CannotTell(reason="the answer to the look-up is not a list of tasks as it is documented")
_TWIN: Final = CannotTell(reason="the provider holds a task of the same title that shows no mark")


@dataclass(frozen=True, slots=True, kw_only=True)
class Paging:
    """What one page says of itself and of the whole: its number, the last one's, and how many tasks there are."""

    page: int
    last_page: int
    total: int


def opened(sent: Sent) -> Json | CannotTell:
    """Return the body of a whole answer of 200, or why there is none."""
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


def is_marked(sought: LookupTarget) -> bool:
    """Whether the task was sent with its mark at all."""
    description = sought.task.fields.get("description")
    return isinstance(description, str) and sought.mark in description


def gathered(
    rows: Sequence[Json], sought: Sequence[LookupTarget], id_names: Sequence[str], seen: ListingProgress | None
) -> ListingProgress | None:
    """Return what was seen with the tasks of one more page; None when they are not as documented.

    `id_names` are the keys that may hold a task's id, the first one wins.
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
        found = [each.mark for each in sought if description is not None and each.mark in description]
        held.update({mark: one_line(str(given), _ID_CHARACTERS) for mark in found})
        if _MARK_BEGINNING not in (description or ""):
            titles.add(str(row.get("title")))
    wanted = {str(each.task.fields.get("title")) for each in sought}
    return ListingProgress(
        ids=frozenset(ids),
        held=held,
        unmarked=frozenset(titles & wanted),
        least_total=before.least_total,
        earlier=before.earlier,
        passes=before.passes,
    )


def has_all(seen: ListingProgress, sought: Sequence[LookupTarget]) -> bool:
    """Whether every task that is sought was found: the rest of the listing does not matter then."""
    return all(each.mark in seen.held for each in sought)


def go_on(
    seen: ListingProgress, sought: Sequence[LookupTarget], paging: Paging, asked: int
) -> NextPage | WholeListing | CannotTell:
    """Say what follows a page with which all this was seen."""
    least = paging.total if seen.least_total is None else min(seen.least_total, paging.total)
    fits = paging.page == asked
    if has_all(seen, sought):
        return listed(seen, form_works=True)
    if fits and asked < paging.last_page:
        if asked >= PAGES_LIMIT:
            return CannotTell(reason=f"the listing has more than {PAGES_LIMIT} pages")
        return NextPage(page=asked + 1, seen=_with(seen, least_total=least))
    whole = fits and asked == max(paging.last_page, 1) and len(seen.ids) >= least
    at_once = asked == 1 and len(seen.ids) == paging.total
    unchanged = seen.earlier is not None and seen.earlier <= seen.ids
    if whole and (at_once or unchanged):
        return listed(seen, form_works=bool(seen.ids))
    if seen.passes >= PASSES_LIMIT:
        return CannotTell(reason=f"the listing changed while it was read, {PASSES_LIMIT} times")
    earlier = seen.ids if whole else None
    again = ListingProgress(held=seen.held, unmarked=seen.unmarked, earlier=earlier, passes=seen.passes + 1)
    return NextPage(page=1, seen=again)


def listed(seen: ListingProgress, *, form_works: bool) -> WholeListing:
    """Return what a listing came to that was read whole."""
    return WholeListing(held=seen.held, unmarked=seen.unmarked, form_works=form_works)


def told(
    listing: WholeListing | CannotTell, held: Mapping[str, str], sought: LookupTarget
) -> TaskFound | TaskAbsent | CannotTell:
    """Say what a listing tells of one task; `held` was found on its pages, also when it was not read whole."""
    if sought.mark in held:
        return TaskFound(external_id=held[sought.mark])
    if isinstance(listing, CannotTell):
        return listing
    return _TWIN if str(sought.task.fields.get("title")) in listing.unmarked else TaskAbsent()


def _with(seen: ListingProgress, *, least_total: int) -> ListingProgress:
    return ListingProgress(
        ids=seen.ids,
        held=seen.held,
        unmarked=seen.unmarked,
        least_total=least_total,
        earlier=seen.earlier,
        passes=seen.passes,
    )

"""One suite over every provider: how a task that may have been executed is found again, and when it certainly is not there."""

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.vocabulary import PROVIDER_OF, ProviderName, TaskType, Verdict
from worker.http import HttpClient
from worker.providers import (
    Answered,
    CannotTell,
    LookupTarget,
    NeverSent,
    NextPage,
    NoAnswer,
    ProviderRequest,
    TaskAbsent,
    TaskFound,
    WholeListing,
    load,
)
from worker.providers.answers import PAGES_LIMIT, PASSES_LIMIT, result_for
from worker.sandbox import MINDHUNTERS_TOKEN, VAMBE_API_KEY, Sandbox

AGENT = "228d7a0d-9072-4ca8-939b-959b75cc606a"
OTHER = "bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb"
CREDENTIALS = {ProviderName.MINDHUNTERS: MINDHUNTERS_TOKEN, ProviderName.VAMBE: VAMBE_API_KEY}
MARK = "[lw:abcdef012345]"


@dataclass(frozen=True)
class Claimed:
    """A claimed task, as far as a provider looks at it."""

    type: TaskType
    fields: dict[str, Any]
    due_at: datetime
    expires_at: datetime | None = None
    id: str = "tk_0"
    key: str = "abcdef012345" + "0" * 52


SHARED = {"title": "Llamar a Zoë 🦊", "description": f"gran lead\n{MARK}"}
CALL = {**SHARED, "agent": AGENT, "auto_queue": True, "contact": {"phone_number": "+56911112222"}}
FIELDS: dict[TaskType, dict[str, Any]] = {
    TaskType.MAKE_CALL: CALL,
    TaskType.WHATSAPP_TEMPLATE: {**CALL, "template": OTHER},
    TaskType.MINDHUNTERS_TASK: {**CALL, "type": "follow_up", "task_data": {"note": "x"}},
    TaskType.TEAM_TASK: {**SHARED, "responsible_ids": [AGENT, OTHER], "priority": "high"},
}


def now() -> datetime:
    """Return the real moment: the stand-in checks against it."""
    return datetime.now(UTC)


def sought(type_: TaskType, *, mark: str = MARK, **fields: Any) -> LookupTarget:
    """Return a task that is sought, its attempt a moment ago."""
    task = Claimed(type=type_, fields={**FIELDS[type_], "description": f"gran lead\n{mark}", **fields}, due_at=now())
    return LookupTarget(task=task, tag=mark, began_at=now() - timedelta(seconds=5), ended_at=now())


class Line:
    """A provider, the way to its stand-in, and the stand-in."""

    def __init__(self, sandbox: Sandbox, type_: TaskType) -> None:
        name = PROVIDER_OF[type_]
        url = sandbox.mindhunters_url if name is ProviderName.MINDHUNTERS else sandbox.vambe_url
        self.sandbox, self.type = sandbox, type_
        self.provider = load(name)
        self.transport = HttpClient(url, self.provider.auth_headers(CREDENTIALS[name]))

    def make(self, one: LookupTarget) -> str:
        """Have the provider make a task; return its id there."""
        request = self.provider.build_request(one.task, now())
        assert isinstance(request, ProviderRequest), request
        reading = self.provider.read_response(self.transport.send(request, deadline_seconds=5), now(), request)
        assert Verdict.DELIVERED is reading.verdict, reading
        return str(reading.external_id)

    def list(self, *many: LookupTarget, query_works: bool = False) -> WholeListing | CannotTell:
        """Read the listing that holds these, page by page."""
        page, seen = 1, None
        while True:
            sent = self.transport.send(self.provider.listing_request(many, page), deadline_seconds=5)
            said = self.provider.read_listing(sent, many, page, seen, query_works=query_works)
            if not isinstance(said, NextPage):
                return said
            page, seen = said.page, said.seen

    def look(self, one: LookupTarget, *, query_works: bool = False) -> TaskFound | TaskAbsent | CannotTell:
        """Look up one task."""
        listing = self.list(one, query_works=query_works)
        return result_for(listing, listing.held if isinstance(listing, WholeListing) else {}, one)


@pytest.fixture(scope="module")
def sandbox():
    """Give the stand-in."""
    with Sandbox() as one:
        yield one


@pytest.fixture(params=list(TaskType))
def line(request, sandbox):
    """Give each type's provider in turn, with an empty stand-in that behaves."""
    sandbox.reset()
    for name in ProviderName:
        sandbox.turn({f"{name}.listing": "whole", f"{name}.listing_delay_seconds": "0"})
    sandbox.turn({"vambe.array_form": "any"})
    found = Line(sandbox, request.param)
    yield found
    found.transport.close()


def test_a_task_that_was_made_is_found(line) -> None:
    """By its mark, under the id by which the provider knows it, among others of the same title."""
    one = sought(line.type)
    line.make(sought(line.type, mark="[lw:000000000001]"))
    made = line.make(one)
    line.make(sought(line.type, mark="[lw:000000000002]"))
    assert TaskFound(external_id=made) == line.look(one)


def test_a_task_that_was_not_made_is_absent(line) -> None:
    """A listing that shows its neighbours and not the task proves that it is not there."""
    line.make(sought(line.type, mark="[lw:000000000001]"))
    assert TaskAbsent() == line.look(sought(line.type))


def test_an_empty_listing_proves_something_only_where_its_form_is_known(line) -> None:
    """Mindhunters documents every filter; how Vambe reads a list of users is known once it has shown something."""
    one = sought(line.type)
    first = line.look(one)
    assert isinstance(first, CannotTell if line.type is TaskType.TEAM_TASK else TaskAbsent)
    assert TaskAbsent() == line.look(one, query_works=True)


def test_a_listing_shows_that_its_form_works(line) -> None:
    """A listing with a task that was asked for says so; an empty one does not."""
    one = sought(line.type)
    assert not getattr(line.list(one, query_works=True), "form_works", None)
    line.make(sought(line.type, mark="[lw:000000000001]"))
    assert line.list(one).query_works


def test_a_form_that_is_not_understood_proves_nothing(line) -> None:
    """A provider that reads a list of users otherwise shows nothing: that is no absence."""
    if line.type is not TaskType.TEAM_TASK:
        return
    line.make(sought(line.type))
    line.sandbox.turn({"vambe.array_form": "bracketed"})
    assert isinstance(line.look(sought(line.type)), CannotTell)


def test_many_are_looked_up_in_one_listing(line) -> None:
    """One listing tells of each of them."""
    many = [sought(line.type, mark=f"[lw:{number:012x}]") for number in range(7)]
    made = {one.tag: line.make(one) for one in many[::2]}
    before = len(line.sandbox.state()["requests"])
    listing = line.list(*many)
    assert 1 == len(line.sandbox.state()["requests"]) - before
    wanted = [TaskFound(external_id=made[one.tag]) if one.tag in made else TaskAbsent() for one in many]
    assert wanted == [result_for(listing, listing.held, one) for one in many]


def test_a_task_without_a_mark_makes_its_namesakes_doubtful(line) -> None:
    """It might be ours, cut short by the provider; a task of another title is no matter."""
    line.make(sought(line.type, mark="cut short"))
    assert isinstance(line.look(sought(line.type)), CannotTell)
    assert TaskAbsent() == line.look(sought(line.type, title="Another"))


def test_what_was_sent_without_a_mark_cannot_be_looked_up(line) -> None:
    """There is nothing to find it by."""
    one = replace(sought(line.type), tag="[lw:999999999999]")
    assert isinstance(line.provider.listing_key(one), CannotTell)


def test_tasks_of_one_listing_have_the_same_name_for_it(line) -> None:
    """Alike for tasks of the same agent and type, or the same users; another for others."""
    one, same = sought(line.type), sought(line.type, mark="[lw:000000000001]", title="Another")
    other = sought(line.type, agent=OTHER, responsible_ids=[OTHER])
    assert line.provider.listing_key(one) == line.provider.listing_key(same)
    assert line.provider.listing_key(one) != line.provider.listing_key(other)


@pytest.mark.parametrize("listing", ["status_500", "garbage", "silent"])
def test_a_broken_listing_cannot_tell(line, listing) -> None:
    """Neither that the task is there nor that it is not."""
    one = sought(line.type)
    line.make(one)
    line.sandbox.turn({f"{line.provider.name}.listing": listing})
    said = line.look(one, query_works=True)
    assert isinstance(said, CannotTell)
    assert (listing != "silent") == said.answered


@pytest.mark.parametrize("status", [201, 204, 301, 400, 401, 403, 404, 429, 500, 503])
def test_any_answer_but_200_cannot_tell(line, status) -> None:
    """Whatever its body says."""
    one = sought(line.type)
    line.make(one)
    line.sandbox.script([{"method": "GET", "answer": {"status": status, "store": True, "body": []}}])
    assert CannotTell(reason=f"the look-up was answered with {status}") == line.look(one, query_works=True)


def test_a_task_that_is_shown_late_is_not_found_at_first(line) -> None:
    """That is why one listing does not make it absent."""
    one = sought(line.type)
    line.make(one)
    line.sandbox.turn({f"{line.provider.name}.listing_delay_seconds": "3600"})
    assert TaskAbsent() == line.look(one, query_works=True)


@pytest.mark.parametrize("sent", [NeverSent(error="x"), NoAnswer(error="x")])
def test_no_answer_is_told_apart(line, sent) -> None:
    """A provider that does not answer need not be asked for each task in turn."""
    one = sought(line.type)
    said = line.provider.read_listing(sent, [one], 1, None, query_works=True)
    assert isinstance(said, CannotTell)
    assert not said.answered


ODD = [None, 0, "x", [], {}, [None], ["x"], [{}], [{"id": 1}], [{"id": None, "description": None}], {"data": None}]
ODD += [
    [{"id": True, "description": ""}],
    [{"id": "1", "description": 5}],
    {"data": {"data": "x"}},
    {"data": {"data": [1]}},
]
ODD += [{"data": {"data": [], "current_page": "1", "last_page": 1, "total": 0}}]
ODD += [{"data": {"data": [], "current_page": 1, "last_page": 1, "total": -1}}, {"data": {"data": [], "total": 0}}]


@pytest.mark.parametrize("body", ODD)
def test_an_odd_listing_is_never_an_absence(line, body) -> None:
    """What is not as documented cannot tell; only Vambe's bare array of well-formed tasks may be empty."""
    one = sought(line.type)
    answer = Answered(status=200, body=json.dumps(body).encode())
    said = line.provider.read_listing(answer, [one], 1, None, query_works=True)
    if line.type is TaskType.TEAM_TASK and body == []:
        assert isinstance(said, WholeListing)
    else:
        assert isinstance(said, CannotTell), said


def test_a_cut_listing_cannot_tell(line) -> None:
    """A body that was longer than what is read proves nothing."""
    said = line.provider.read_listing(
        Answered(status=200, body=b"[]", truncated=True), [sought(line.type)], 1, None, query_works=True
    )
    assert isinstance(said, CannotTell)


# -- pages ------------------------------------------------------------------------------------------------------------

MINDHUNTERS = load(ProviderName.MINDHUNTERS)


def row(number: int, mark: str = "") -> dict[str, Any]:
    """Return a task as a listing shows it."""
    return {"uuid": f"u-{number}", "title": f"t{number}", "description": f"x {mark or f'[lw:{number:012x}]'}"}


def page_of(rows: list[dict[str, Any]], page: int, per_page: int) -> Answered:
    """Return one page of a listing that stands like this now."""
    data = {
        "current_page": page,
        "data": rows[(page - 1) * per_page : page * per_page],
        "last_page": max(1, -(-len(rows) // per_page)),
        "total": len(rows),
    }
    return Answered(status=200, body=json.dumps({"success": True, "data": data}).encode())


def test_the_question_covers_the_attempts() -> None:
    """Agent and type as they were sent, and from before the first to after the last scheduled moment they can have had."""
    one = sought(TaskType.WHATSAPP_TEMPLATE)
    early = replace(
        one, began_at=datetime(2026, 3, 2, 12, tzinfo=UTC), ended_at=datetime(2026, 3, 2, 12, 1, tzinfo=UTC)
    )
    late = replace(
        one, began_at=datetime(2026, 3, 2, 12, 5, tzinfo=UTC), ended_at=datetime(2026, 3, 2, 12, 6, tzinfo=UTC)
    )
    request = MINDHUNTERS.listing_request([late, early], 3)
    assert ("GET", "/tasks", None) == (request.method, request.path, request.json)
    assert {
        "agent_uuid": AGENT,
        "type": "send_message",
        "scheduled_from": "2026-03-02T11:50:00Z",
        "scheduled_to": "2026-03-02T12:17:00Z",
        "per_page": "100",
        "page": "3",
    } == dict(request.query)


def test_vambes_question_covers_due_date_and_day_of_making() -> None:
    """Each user by a parameter of its own, the days around, and tasks without dates."""
    one = replace(
        sought(TaskType.TEAM_TASK, due_date="2026-05-01"),
        began_at=datetime(2026, 3, 2, 23, 59, tzinfo=UTC),
        ended_at=datetime(2026, 3, 3, 0, 1, tzinfo=UTC),
    )
    request = load(ProviderName.VAMBE).listing_request([one], 1)
    assert (
        ("responsibleIds", AGENT),
        ("responsibleIds", OTHER),
        ("fromDate", "2026-03-01"),
        ("toDate", "2026-05-02"),
        ("includeTasksWithoutDates", "true"),
    ) == request.query


@pytest.mark.parametrize("moment", [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)])
@pytest.mark.parametrize("type_", list(TaskType))
def test_a_question_at_the_ends_of_the_calendar(type_, moment) -> None:
    """Nothing is asked for outside of it, and nothing raises."""
    one = replace(sought(type_), began_at=moment, ended_at=moment)
    assert load(PROVIDER_OF[type_]).listing_request([one], 1).query


def read(states: Any, one: LookupTarget, per_page: int) -> WholeListing | CannotTell:
    """Read a listing whose state changes from request to request."""
    page, seen = 1, None
    for requests in range(PAGES_LIMIT * PASSES_LIMIT + 1):
        said = MINDHUNTERS.read_listing(page_of(states(requests), page, per_page), [one], page, seen, query_works=False)
        if not isinstance(said, NextPage):
            return said
        page, seen = said.page, said.seen
    raise AssertionError("a listing is read for ever")


@given(count=st.integers(0, 40), place=st.integers(0, 40), per_page=st.integers(1, 7), there=st.booleans())
def test_a_listing_at_rest_is_read_whole(count, place, per_page, there) -> None:
    """Whatever the number of tasks and their place, the one that is sought is found, or absent."""
    one = sought(TaskType.MAKE_CALL)
    rows = [row(number) for number in range(count)]
    if there:
        rows.insert(min(place, count), row(99, MARK))
    listing = read(lambda _: rows, one, per_page)
    assert (TaskFound(external_id="u-99") if there else TaskAbsent()) == result_for(listing, listing.held, one)


changes = st.lists(
    st.tuples(st.sampled_from(["make", "delete", "nothing"]), st.integers(0, 30)), min_size=1, max_size=8
)


@given(
    count=st.integers(1, 14),
    place=st.integers(0, 14),
    per_page=st.integers(1, 4),
    rounds=st.lists(changes, max_size=40),
    newest=st.sampled_from(["first", "last", "anywhere"]),
)
def test_shifting_pages_never_hide_a_task(count, place, per_page, rounds, newest) -> None:
    """While others are made and deleted between any two requests, a task that is there all the time is never absent."""
    one = sought(TaskType.MAKE_CALL)
    rows = [row(number) for number in range(count)]
    rows.insert(min(place, count), row(999, MARK))
    fresh = iter(range(1000, 9999))

    def states(requests: int) -> list[dict[str, Any]]:
        for change, where in rounds[requests] if requests < len(rounds) else ():
            if change == "make":
                at = {"first": 0, "last": len(rows), "anywhere": where % (len(rows) + 1)}[newest]
                rows.insert(at, row(next(fresh)))
            elif change == "delete" and rows[where % len(rows)]["uuid"] != "u-999":
                del rows[where % len(rows)]
        return list(rows)

    listing = read(states, one, per_page)
    held = listing.held if isinstance(listing, WholeListing) else {}
    assert not isinstance(result_for(listing, held, one), TaskAbsent)


def test_a_listing_that_only_grows_is_read_whole() -> None:
    """Tasks that are made all the time do not keep a listing from being read."""
    one = sought(TaskType.MAKE_CALL)
    rows = [row(number) for number in range(10)]

    def states(requests: int) -> list[dict[str, Any]]:
        rows.insert(0, row(1000 + requests))
        return list(rows)

    listing = read(states, one, 4)
    assert TaskAbsent() == result_for(listing, listing.held, one)


def test_a_provider_that_knows_no_pages_cannot_tell() -> None:
    """One that answers every page with the first is not read for ever, and proves nothing."""
    one = sought(TaskType.MAKE_CALL)
    rows = [row(number) for number in range(10)]
    page, seen, said = 1, None, None
    for _ in range(99):
        said = MINDHUNTERS.read_listing(page_of(rows, 1, 4), [one], page, seen, query_works=False)
        if not isinstance(said, NextPage):
            break
        page, seen = said.page, said.seen
    assert isinstance(said, CannotTell)


def test_a_listing_without_end_cannot_tell() -> None:
    """More pages than are read prove nothing."""
    one = sought(TaskType.MAKE_CALL)
    assert isinstance(read(lambda _: [row(number) for number in range(PAGES_LIMIT + 1)], one, 1), CannotTell)

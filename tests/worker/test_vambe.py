"""Vambe's file: what is sent, and what each answer means."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.vocabulary import TaskType, Verdict
from worker.providers import Answered, NeverSent, NoAnswer, ProviderRequest, Unsendable
from worker.providers.answers import REASON_CHARACTERS
from worker.providers.vambe import PROVIDER

ANEW = "then have a new event sent, or all tasks of this one made anew: leadwire replay EVENT_ID --new-keys"
AFTERWARDS = f"{ANEW}; what was mended at the provider needs leadwire retry only."
NOW = datetime(2026, 3, 2, 13, 0, tzinfo=UTC)
ANA = "228d7a0d-9072-4ca8-939b-959b75cc606a"
LUIS = "bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb"


@dataclass(frozen=True)
class Claimed:
    """A claimed task, as far as a provider looks at it."""

    fields: dict[str, Any]
    type: TaskType = TaskType.TEAM_TASK
    due_at: datetime = NOW
    expires_at: datetime | None = None
    id: str = "tk_0"
    key: str = "0" * 64


TASK = {
    "title": "Follow up: high-value lead - Ana",
    "description": "New lead worth 12000. [lw:abcdef012345]",
    "due_date": "2026-03-02",
    "due_time": "12:00",
    "timezone": "America/Santiago",
    "priority": "high",
    "responsible_ids": [ANA],
    "ai_contact_id": "c-1",
    "ai_customer_id": None,
}
SENT = {
    "title": "Follow up: high-value lead - Ana",
    "description": "New lead worth 12000. [lw:abcdef012345]",
    "dueDate": "2026-03-02",
    "dueTime": "12:00",
    "timezone": "America/Santiago",
    "responsibleIds": [ANA],
    "aiContactId": "c-1",
    "aiCustomerId": None,
    "priority": "2",
}


def prepared(fields: dict[str, Any]) -> Any:
    """Return the JSON that is sent for these fields, or the reason why nothing is."""
    request = PROVIDER.build_request(Claimed(fields=fields), NOW)
    if isinstance(request, Unsendable):
        return request.reason
    assert (request.method, request.path, request.query) == ("POST", "/tasks", ())
    return request.json


@pytest.mark.parametrize(
    ("expected", "fields"),
    [
        pytest.param(SENT, TASK, id="every key"),
        pytest.param(
            {
                **dict.fromkeys(SENT),
                "title": "Review",
                "responsibleIds": [ANA],
                "priority": "1",
            },
            {"title": "Review", "responsible_ids": [ANA]},
            id="nothing but what is needed: nulls are sent, priority is medium",
        ),
        pytest.param(
            {**SENT, "dueTime": None, "timezone": None}, {**TASK, "due_time": None}, id="all day: neither time nor zone"
        ),
        pytest.param(
            {**SENT, "dueDate": None, "dueTime": None, "timezone": None},
            {**TASK, "due_date": None, "due_time": None},
            id="no due date",
        ),
        pytest.param({**SENT, "priority": "0"}, {**TASK, "priority": "low"}, id="low"),
        pytest.param({**SENT, "priority": "1"}, {**TASK, "priority": "medium"}, id="medium"),
        pytest.param({**SENT, "priority": "2"}, {**TASK, "priority": "High "}, id="as a person writes it"),
        pytest.param(
            {**SENT, "responsibleIds": [LUIS, ANA]},
            {**TASK, "responsible_ids": [LUIS, ANA, LUIS, " "]},
            id="each person once, in order",
        ),
        pytest.param({**SENT, "responsibleIds": ["u-17"]}, {**TASK, "responsible_ids": ["u-17"]}, id="ids as in the samples"),
        pytest.param({**SENT, "responsibleIds": [ANA]}, {**TASK, "responsible_ids": ANA}, id="one id"),
        pytest.param({**SENT, "aiContactId": "17"}, {**TASK, "ai_contact_id": 17}, id="a number as id"),
        pytest.param({**SENT, "stage": 4}, {**TASK, "extra_fields": {"stage": 4}}, id="raw fields"),
        pytest.param({**SENT, "timezone": "UTC"}, {**TASK, "timezone": "UTC"}, id="UTC is a zone"),
    ],
)  # fmt: skip
def test_what_is_sent(expected, fields) -> None:
    """All nine keys every time, the date plain, the priority as text."""
    made = prepared(fields)
    assert expected == made
    assert set(SENT) <= set(made)


@pytest.mark.parametrize(
    ("expected", "fields"),
    [
        ("`title` is missing", {**TASK, "title": ""}),
        ("`title` is missing", {**TASK, "title": None}),
        ("`responsible_ids` is missing", {**TASK, "responsible_ids": []}),
        ("`responsible_ids` must be a list of ids", {**TASK, "responsible_ids": None}),
        ("`responsible_ids` must be a list of ids", {**TASK, "responsible_ids": [17]}),
        ("`priority` must be low, medium or high", {**TASK, "priority": "urgent"}),
        ("`priority` must be low, medium or high", {**TASK, "priority": 2}),
        ("a due time needs a due date", {**TASK, "due_date": None}),
        ("a due time needs a `timezone`", {**TASK, "timezone": None}),
        ("`timezone` must be an IANA", {**TASK, "timezone": "Santiago"}),
        ("`timezone` must be an IANA", {**TASK, "timezone": "../etc/passwd"}),
        ("`timezone` must be an IANA", {**TASK, "timezone": "America"}),
        ("`due_date` must be a date", {**TASK, "due_date": "2026-02-30"}),
        ("`due_date` must be a date", {**TASK, "due_date": "2026-03-02T14:00:00.000Z"}),
        ("`due_date` must be a date", {**TASK, "due_date": "02/03/2026"}),
        ("`due_time` must be a time", {**TASK, "due_time": "24:00"}),
        ("`due_time` must be a time", {**TASK, "due_time": "9:30"}),
        ("`due_time` must be a time", {**TASK, "due_time": "09:30:00"}),
        ("write `assign` instead", {**TASK, "extra_fields": {"responsibleIds": []}}),
    ],
)
def test_what_cannot_be_sent(expected, fields) -> None:
    """A value of the wrong shape ends before a request, with the complaint and what to do."""
    reason = prepared(fields)
    assert isinstance(reason, str)
    assert expected in reason
    assert reason.endswith(f"Correct the rule or the data, {ANEW}.")


def refusal(status: int, message: str, *errors: tuple[str, str]) -> Answered:
    """Return an answer in the vendor's error form."""
    body: dict[str, Any] = {"statusCode": status, "message": message}
    if errors:
        body["errors"] = [{"field": name, "message": said} for name, said in errors]
    return Answered(status=status, body=json.dumps(body).encode())


HTML = b"<html>gone</html>"


@pytest.mark.parametrize(
    ("expected", "answer"),
    [
        (Verdict.DELIVERED, Answered(status=201, body=b'{"id": "t-1"}')),
        (Verdict.DELIVERED, Answered(status=200, body=b'{"id": "t-1"}')),
        (Verdict.UNKNOWN, Answered(status=201, body=b"{}")),
        (Verdict.UNKNOWN, Answered(status=201, body=b'{"data": {"id": "t-1"}}')),
        (Verdict.UNKNOWN, Answered(status=201, body=b'[{"id": "t-1"}]')),
        (Verdict.UNKNOWN, refusal(500, "Internal Server Error")),
        (Verdict.UNKNOWN, Answered(status=502, body=HTML)),
        (Verdict.UNKNOWN, Answered(status=504)),
        (Verdict.UNKNOWN, Answered(status=400, body=HTML)),
        (Verdict.UNKNOWN, Answered(status=400, body=b'{"message": "from a gateway"}')),
        (Verdict.UNKNOWN, refusal(413, "too long")),
        (Verdict.BUSY, refusal(408, "slow")),
        (Verdict.BUSY, Answered(status=425)),
        (Verdict.BUSY, refusal(429, "slow down")),
        (Verdict.BUSY, Answered(status=503, body=HTML)),
        (Verdict.REFUSED, refusal(400, "Validation failed", ("title", "Title must be at least 1 character"))),
        (Verdict.REFUSED, Answered(status=400, body=b'{"statusCode": 400, "message": ["title should not be empty"]}')),
        (Verdict.REFUSED, refusal(409, "exists")),
        (Verdict.REFUSED, refusal(422, "no")),
        (Verdict.REFUSED, refusal(404, "Invalid responsibleIds")),
        (Verdict.REFUSED, refusal(404, "User not found")),
        (Verdict.REFUSED, refusal(404, "Not Found", ("responsibleIds", "not in the organisation"))),
        (Verdict.REFUSED, refusal(404, "Contact not found")),
        (Verdict.PAUSE, refusal(404, "Cannot POST /api/v2/users/tasks")),
        (Verdict.PAUSE, refusal(404, "Not Found")),
        (Verdict.PAUSE, Answered(status=404, body=HTML)),
        (Verdict.PAUSE, Answered(status=404)),
        (Verdict.PAUSE, refusal(405, "Method Not Allowed")),
        (Verdict.PAUSE, Answered(status=307)),
        (Verdict.PAUSE, refusal(401, "Unauthorized")),
        (Verdict.PAUSE, refusal(403, "Forbidden")),
        (Verdict.BUSY, NeverSent(error="ConnectionRefusedError")),
        (Verdict.UNKNOWN, NoAnswer(error="ReadError")),
    ],
)
def test_what_an_answer_means(expected, answer) -> None:
    """The verdict table, row by row; a 404 is a refusal when it names what a task can name."""
    assert expected is PROVIDER.read_response(answer, NOW).verdict


@pytest.mark.parametrize(
    ("expected", "answer"),
    [
        (True, refusal(404, "Not Found")),
        (True, refusal(404, "Cannot POST /tasks")),
        (True, refusal(403, "Forbidden")),
        (False, Answered(status=404, body=HTML)),
        (False, refusal(401, "Unauthorized")),
    ],
)
def test_when_the_probe_has_to_tell(expected, answer) -> None:
    """A 404 in the vendor's form that names nothing may be one task's: the probe decides."""
    assert expected is PROVIDER.read_response(answer, NOW).probe_first


@pytest.mark.parametrize(
    ("expected", "answer"),
    [
        (
            (
                "400 Validation failed; title: Title must be at least 1 character; "
                "priority: Priority must be one of: low, medium, high. "
                "Correct `title` of the rule, " + AFTERWARDS
            ),
            refusal(
                400,
                "Validation failed",
                ("title", "Title must be at least 1 character"),
                ("priority", "Priority must be one of: low, medium, high"),
            ),
        ),
        (
            (
                "404 Invalid responsibleIds. Compare `assign` of the rule with the users that GET /team-members/all lists, "
                + AFTERWARDS
            ),
            refusal(404, "Invalid responsibleIds"),
        ),
        (
            "404 Not Found. Either the rule names an id Vambe does not have, or LEADWIRE_VAMBE_URL is not its API's root.",
            refusal(404, "Not Found"),
        ),
        (
            "401. Vambe does not accept the key: check LEADWIRE_VAMBE_API_KEY; its tasks wait meanwhile.",
            refusal(401, "Unauthorized fake-key"),
        ),
    ],
)
def test_reasons_lead_to_the_remedy(expected, answer) -> None:
    """A reason begins with the status and the provider's own words and ends with what to do."""
    assert expected == PROVIDER.read_response(answer, NOW).reason


REQUEST = ProviderRequest(method="POST", path="/tasks", json=SENT)


def warning_for(due_at: Any, request: ProviderRequest = REQUEST) -> str | None:
    """Return the warning when Vambe says it holds this moment."""
    body = json.dumps({"id": "t-1", "due_at": due_at}).encode()
    reading = PROVIDER.read_response(Answered(status=201, body=body), NOW, request)
    assert reading.verdict is Verdict.DELIVERED
    return reading.warning


@pytest.mark.parametrize("due_at", ["2026-03-02T15:00:00.000Z", "2026-03-02T12:00:00-03:00", "2026-03-02T15:00:30Z"])
def test_the_expected_moment_is_no_warning(due_at) -> None:
    """12:00 in Santiago in March is 15:00 UTC, however it is written."""
    assert warning_for(due_at) is None


def test_another_moment_is_a_warning() -> None:
    """Local time stamped as UTC, as in the vendor's sample, is delivered with a warning that shows both."""
    expected = (
        "Vambe holds 2026-03-02T12:00Z as the due time, the rule meant 2026-03-02 12:00 in America/Santiago "
        "(2026-03-02T15:00Z): look how the task shows there"
    )
    assert expected == warning_for("2026-03-02T12:00:00.000Z")


@pytest.mark.parametrize("due_at", [None, "soon", 17, "9999-12-31T23:59:59-12:00"])
def test_no_readable_moment_is_a_warning(due_at) -> None:
    """A due time that got lost is worth a look."""
    assert "Vambe holds no moment" in (warning_for(due_at) or "")


@pytest.mark.parametrize("fields", [{**TASK, "due_time": None}, {**TASK, "due_time": None, "due_date": None}])
def test_all_day_tasks_are_not_compared(fields) -> None:
    """Nobody knows which instant stands for a whole day."""
    request = ProviderRequest(method="POST", path="/tasks", json=prepared(fields))
    assert warning_for("2026-03-02T00:00:00Z", request) is None


@pytest.mark.parametrize("due_at", ["2026-04-05T02:30:00Z", "2026-04-05T03:30:00Z"])
def test_an_hour_that_comes_twice_may_be_either(due_at) -> None:
    """23:30 on the night Chile leaves summer time happens twice; both instants are right."""
    request = ProviderRequest(method="POST", path="/tasks", json={**SENT, "dueDate": "2026-04-04", "dueTime": "23:30"})
    assert warning_for(due_at, request) is None


def test_without_the_request_there_is_nothing_to_compare() -> None:
    """A caller that has no request gets the verdict alone."""
    answer = Answered(status=201, body=b'{"id": "t-1", "due_at": "2026-03-02T12:00:00Z"}')
    assert PROVIDER.read_response(answer, NOW).warning is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["statusCode", "message", "errors", "field", "id", "due_at"]) | st.text(max_size=5),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(
    status=st.integers(100, 999) | st.sampled_from([200, 201, 400, 401, 403, 404, 405, 409, 422, 429, 500, 503]),
    body=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()),
    retry_after=st.none() | st.text(max_size=40),
)
def test_reading_never_raises(status, body, retry_after) -> None:
    """Any status, any bytes, any header: a verdict, and a reason that is safe to print."""
    headers = {} if retry_after is None else {"retry-after": retry_after}
    reading = PROVIDER.read_response(Answered(status=status, headers=headers, body=body), NOW, REQUEST)
    assert isinstance(reading.verdict, Verdict)
    assert len(reading.reason or "") <= REASON_CHARACTERS
    assert (reading.reason or "").isprintable()
    assert reading.verdict is not Verdict.DELIVERED or reading.external_id
    assert (reading.verdict is Verdict.DELIVERED) <= (200 <= status <= 299)


def test_the_credential_and_the_probe() -> None:
    """The key travels in its header, never in the address; the probe is a GET of the team."""
    assert {"x-api-key": "fake-key"} == PROVIDER.auth_headers("fake-key")
    probe = PROVIDER.probe_request()
    assert ("GET", "/team-members/all", (), None) == (probe.method, probe.path, probe.query, probe.json)

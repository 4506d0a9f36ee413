"""The stand-in for both providers: every row of what it answers, its faults, its life, its page."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest

from rules.vocabulary import Problem
from worker.sandbox import MINDHUNTERS_TOKEN, VAMBE_API_KEY, Sandbox, serve
from worker.sandbox.switches import SWITCHES, SandboxError, Switches

NOW = datetime(2026, 3, 2, 13, 0, tzinfo=UTC)
AGENT = "228d7a0d-9072-4ca8-939b-959b75cc606a"
OTHER = "bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb"
UNKNOWN = "00000000-0000-4000-8000-000000000000"
BEARER = {"Authorization": f"Bearer {MINDHUNTERS_TOKEN}"}
KEY = {"x-api-key": VAMBE_API_KEY}

CALL = {
    "title": "Call Ana",
    "type": "make_call",
    "agent_uuid": AGENT,
    "scheduled_at": "2026-03-02T14:00:00Z",
    "contact": {"phone_number": "+56911112222"},
}
MESSAGE = {**CALL, "type": "send_message", "task_data": {"message_type": "whatsapp_template", "template_uuid": OTHER}}
TEAM = {
    "title": "Follow up",
    "description": None,
    "dueDate": None,
    "dueTime": None,
    "timezone": None,
    "responsibleIds": [AGENT],
    "aiContactId": None,
    "aiCustomerId": None,
    "priority": "2",
}
TIMED = {**TEAM, "dueDate": "2026-03-02", "dueTime": "14:00", "timezone": "America/Santiago"}
ABSENT = object()


def but(body: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return the body with these changes; ABSENT takes a key out."""
    return {key: value for key, value in {**body, **changes}.items() if value is not ABSENT}


@pytest.fixture(scope="module")
def running() -> Iterator[Sandbox]:
    """One sandbox at a fixed moment."""
    with Sandbox(clock=lambda: NOW) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(running) -> Iterator[Sandbox]:
    """The sandbox, empty, with every switch at its default."""
    running.reset()
    yield running
    running.turn({name: switch.default for name, switch in SWITCHES.items()})


def ask(
    base_url: str, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, timeout: float = 5
) -> tuple[int, Any, dict[str, str]]:
    """Send one request and return status, decoded body and lower-case headers."""
    parts = urlsplit(base_url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
    try:
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection.request(method, f"{parts.path}{path}", content, headers or {})
        answer = connection.getresponse()
        text = answer.read()
        kind = answer.headers.get("Content-Type", "")
        decoded = json.loads(text) if text and "json" in kind else text.decode()
        return answer.status, decoded, {name.lower(): value for name, value in answer.headers.items()}
    finally:
        connection.close()


def mindhunters(sandbox: Sandbox, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Ask the Mindhunters side with its token."""
    return ask(sandbox.mindhunters_url, method, path, body, BEARER)[:2]


def vambe(sandbox: Sandbox, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Ask the Vambe side with its key."""
    return ask(sandbox.vambe_url, method, path, body, KEY)[:2]


def test_the_addresses_are_the_roots_of_both_apis(sandbox) -> None:
    """Both URLs are what the settings want: the root that `/tasks` is below."""
    assert f"http://127.0.0.1:{sandbox.port}/api/v1" == sandbox.mindhunters_url
    assert f"http://127.0.0.1:{sandbox.port}/api/public" == sandbox.vambe_url


# ------------------------------------------------------------------------------------------------ Mindhunters: create


@pytest.mark.parametrize(
    ("expected", "body", "switches"),
    [
        pytest.param(201, CALL, {}, id="a call"),
        pytest.param(200, CALL, {"mindhunters.success_status": "200"}, id="answered with 200"),
        pytest.param(201, but(CALL, contact=ABSENT, contact_uuid=OTHER), {}, id="with a known contact"),
        pytest.param(201, MESSAGE, {}, id="a template"),
        pytest.param(201, but(CALL, contact={"email": "a@example.com"}), {}, id="by e-mail"),
        pytest.param(201, but(CALL, type="survey"), {}, id="an unexplained type"),
        pytest.param(422, but(CALL, type="survey"), {"mindhunters.unexplained_types": "refuse"}, id="refused by switch"),
        pytest.param(201, but(CALL, scheduled_at="2026-03-02T14:00:00"), {}, id="no offset"),
        pytest.param(
            422, but(CALL, scheduled_at="2026-03-02T14:00:00"), {"mindhunters.naive_scheduled_at": "refuse"}, id="it is refused"
        ),
        pytest.param(201, but(CALL, scheduled_at="2026-03-02T11:00:00.5-03:00"), {}, id="an offset"),
        pytest.param(422, but(CALL, scheduled_at="2026-03-02T13:00:00Z"), {}, id="now is not after now"),
        pytest.param(201, but(CALL, agent_uuid="sales"), {"mindhunters.agent_format": "accept"}, id="an agent that is no UUID"),
        pytest.param(404, CALL, {"mindhunters.agents": OTHER}, id="an unknown agent"),
        pytest.param(201, CALL, {"mindhunters.agents": f"{OTHER}, {AGENT.upper()}"}, id="a listed agent"),
        pytest.param(404, but(CALL, contact=ABSENT, contact_uuid=OTHER), {"mindhunters.contacts": UNKNOWN}, id="unknown contact"),
        pytest.param(201, but(CALL, contact={"name": "Ana"}), {"mindhunters.empty_contact": "accept"}, id="an empty contact"),
        pytest.param(201, but(CALL, contact={"phone_number": "911"}), {"mindhunters.phone_format": "accept"}, id="any phone"),
        pytest.param(201, but(CALL, contact={"phone_number": "+56911112222", "x": 1}), {}, id="unknown contact key"),
        pytest.param(
            422,
            but(CALL, contact={"phone_number": "+56911112222", "x": 1}),
            {"mindhunters.unknown_contact_key": "refuse"},
            id="unknown contact key refused",
        ),
        pytest.param(201, but(CALL, max_attempts=0), {"mindhunters.max_attempts": "accept"}, id="no attempts accepted"),
        pytest.param(
            201, but(CALL, expires_at="2026-03-02T14:00:00Z"), {"mindhunters.expires_order": "accept"}, id="expiry in any order"
        ),
        pytest.param(201, but(CALL, expires_at="2026-03-02T14:00:01Z"), {}, id="an expiry"),
        pytest.param(404, MESSAGE, {"mindhunters.templates": UNKNOWN}, id="an unknown template"),
        pytest.param(
            422, MESSAGE, {"mindhunters.templates": UNKNOWN, "mindhunters.unknown_template": "422"}, id="an unapproved template"
        ),
        pytest.param(201, but(CALL, retry_strategy="fixed"), {}, id="an unknown key"),
        pytest.param(422, but(CALL, retry_strategy="fixed"), {"mindhunters.unknown_key": "refuse"}, id="unknown key refused"),
        pytest.param(400, b"", {}, id="no body"),
        pytest.param(400, b"{", {}, id="no JSON"),
        pytest.param(400, [CALL], {}, id="not an object"),
        pytest.param(400, b"[" * 100_000, {}, id="nested without end"),
    ],
)  # fmt: skip
def test_mindhunters_create_statuses(sandbox, expected, body, switches) -> None:
    """What the documents say, and for every open question each reading."""
    sandbox.turn(switches)
    assert expected == mindhunters(sandbox, "POST", "/tasks", body)[0]


@pytest.mark.parametrize(
    ("expected_field", "body"),
    [
        ("title", but(CALL, title=ABSENT)),
        ("title", but(CALL, title="")),
        ("title", but(CALL, title=5)),
        ("type", but(CALL, type=ABSENT)),
        ("type", but(CALL, type="call")),
        ("type", but(CALL, type="message")),
        ("agent_uuid", but(CALL, agent_uuid=None)),
        ("agent_uuid", but(CALL, agent_uuid="sales")),
        ("scheduled_at", but(CALL, scheduled_at=ABSENT)),
        ("scheduled_at", but(CALL, scheduled_at="tomorrow")),
        ("scheduled_at", but(CALL, scheduled_at="2026-03-02")),
        ("scheduled_at", but(CALL, scheduled_at="2026-13-02T14:00:00Z")),
        ("scheduled_at", but(CALL, scheduled_at="2025-12-01T10:00:00Z")),
        ("contact_uuid", but(CALL, contact_uuid=OTHER)),
        ("contact_uuid", but(CALL, contact=ABSENT, contact_uuid="17")),
        ("contact", but(CALL, contact=ABSENT)),
        ("contact", but(CALL, contact="Ana")),
        ("contact", but(CALL, contact={"name": "Ana"})),
        ("contact.phone_number", but(CALL, contact={"phone_number": "911112222"})),
        ("contact.phone_number", but(CALL, contact={"phone_number": 56911112222})),
        ("priority", but(CALL, priority=0)),
        ("priority", but(CALL, priority=11)),
        ("priority", but(CALL, priority="5")),
        ("priority", but(CALL, priority=True)),
        ("max_attempts", but(CALL, max_attempts=0)),
        ("max_attempts", but(CALL, max_attempts=1.5)),
        ("expires_at", but(CALL, expires_at="2026-03-02T14:00:00Z")),
        ("expires_at", but(CALL, expires_at="later")),
        ("campaign_uuid", but(CALL, campaign_uuid="Q4")),
        ("auto_queue", but(CALL, auto_queue="yes")),
        ("task_data", but(CALL, task_data="x")),
        ("task_data.message_type", but(MESSAGE, task_data=ABSENT)),
        ("task_data.message_type", but(MESSAGE, task_data={"template_uuid": OTHER})),
        ("task_data.message_type", but(MESSAGE, task_data={"message_type": "text", "template_uuid": OTHER})),
        ("task_data.template_uuid", but(MESSAGE, task_data={"message_type": "whatsapp_template"})),
    ],
)
def test_mindhunters_names_the_field(sandbox, expected_field, body) -> None:
    """Validation errors are 422 in the documented envelope, with the field; nothing is stored."""
    status, answer = mindhunters(sandbox, "POST", "/tasks", body)
    assert (422, False, "VALIDATION_ERROR") == (status, answer["success"], answer["error"]["code"])
    assert expected_field == answer["error"]["field"]
    assert [] == sandbox.tasks("mindhunters")
    assert expected_field in sandbox.state()["refused"][0]["why"]


@pytest.mark.parametrize(
    ("expected", "headers", "switches"),
    [
        ((401, "MISSING_AUTH_TOKEN"), {}, {}),
        ((401, "INVALID_AUTH_TOKEN"), {"Authorization": "Bearer revoked"}, {}),
        ((401, "INVALID_AUTH_TOKEN"), {"Authorization": f"Basic {MINDHUNTERS_TOKEN}"}, {}),
        ((401, "INVALID_AUTH_TOKEN"), {"Authorization": MINDHUNTERS_TOKEN}, {}),
        (
            (401, "INVALID_AUTH_TOKEN"),
            {"Authorization": f"bearer {MINDHUNTERS_TOKEN}"},
            {"mindhunters.bearer_case": "exact"},
        ),
        ((401, "invalid_auth_token"), {"Authorization": "Bearer x"}, {"mindhunters.code_case": "lower"}),
        ((403, "FORBIDDEN"), BEARER, {"mindhunters.permission": "no"}),
    ],
)
def test_mindhunters_credentials(sandbox, expected, headers, switches) -> None:
    """Missing, wrong and weak tokens have their documented status and code."""
    sandbox.turn(switches)
    status, answer, _ = ask(sandbox.mindhunters_url, "POST", "/tasks", CALL, headers)
    assert expected == (status, answer["error"]["code"])


def test_mindhunters_takes_the_scheme_in_any_case_by_default(sandbox) -> None:
    """`bearer` in lower case is taken until the switch says otherwise."""
    headers = {"Authorization": f"bearer {MINDHUNTERS_TOKEN}"}
    assert 201 == ask(sandbox.mindhunters_url, "POST", "/tasks", CALL, headers)[0]


def test_mindhunters_answers_with_the_task(sandbox) -> None:
    """The envelope holds the task with the documented defaults: priority 5, three attempts, not queued."""
    _, answer = mindhunters(sandbox, "POST", "/tasks", CALL)
    task = answer["data"]
    assert (True, 5, 3, False, "pending", "UTC") == (
        answer["success"],
        task["priority"],
        task["max_attempts"],
        task["auto_queue"],
        task["status"],
        task["timezone"],
    )
    assert "scheduled" == mindhunters(sandbox, "POST", "/tasks", but(CALL, auto_queue=True))[1]["data"]["status"]


def test_mindhunters_finds_contacts_again(sandbox) -> None:
    """The same phone or e-mail is the same contact; another one is new; both are listed."""

    def contact_of(**contact: str) -> str:
        return mindhunters(sandbox, "POST", "/tasks", but(CALL, contact=contact))[1]["data"]["contact_uuid"]

    ana = contact_of(phone_number="+56911112222", email="Ana@example.com")
    assert [ana, ana] == [contact_of(phone_number="+56911112222"), contact_of(email="ana@example.com")]
    assert ana != contact_of(phone_number="+56933334444")
    assert 2 == mindhunters(sandbox, "GET", "/contacts")[1]["data"]["total"]
    sandbox.turn({"mindhunters.contacts": UNKNOWN})
    assert 201 == mindhunters(sandbox, "POST", "/tasks", but(CALL, contact=ABSENT, contact_uuid=ana))[0]


@pytest.mark.parametrize("provider", ["mindhunters", "vambe"])
def test_the_same_body_twice(sandbox, provider) -> None:
    """No idempotency is documented: two tasks, unless the switch says one."""
    send, body = (mindhunters, CALL) if provider == "mindhunters" else (vambe, TEAM)
    send(sandbox, "POST", "/tasks", body)
    send(sandbox, "POST", "/tasks", body)
    assert 2 == len(sandbox.tasks(provider))
    sandbox.turn({f"{provider}.same_body_twice": "same_task"})
    send(sandbox, "POST", "/tasks", body)
    assert 2 == len(sandbox.tasks(provider))


@pytest.mark.parametrize("provider", ["mindhunters", "vambe"])
@pytest.mark.parametrize(("expected", "form"), [("60", "seconds"), (None, "none")])
def test_a_rate_limit(sandbox, provider, expected, form) -> None:
    """The third request of a window of two is 429, with Retry-After or without."""
    sandbox.turn(
        {f"{provider}.rate_limit": "2", f"{provider}.rate_window_seconds": "60", f"{provider}.retry_after": form}
    )
    url, headers, body = (
        (sandbox.mindhunters_url, BEARER, CALL) if provider == "mindhunters" else (sandbox.vambe_url, KEY, TEAM)
    )
    answers = [ask(url, "POST", "/tasks", body, headers) for _ in range(3)]
    assert [201, 201, 429] == [status for status, _, _ in answers]
    assert expected == answers[2][2].get("retry-after")


def test_mindhunters_in_the_form_of_its_framework(sandbox) -> None:
    """The other validation form lists every complaint by field."""
    sandbox.turn({"mindhunters.validation_form": "laravel"})
    status, answer = mindhunters(sandbox, "POST", "/tasks", but(CALL, title="", priority=11))
    assert (422, {"title", "priority"}) == (status, set(answer["errors"]))
    assert isinstance(answer["message"], str)


# ------------------------------------------------------------------------------------------------- Mindhunters: life


@pytest.fixture
def task(sandbox) -> str:
    """A call that is scheduled in an hour and expires in two."""
    body = but(CALL, auto_queue=True, expires_at="2026-03-02T15:00:00Z")
    return mindhunters(sandbox, "POST", "/tasks", body)[1]["data"]["uuid"]


def status_of(sandbox: Sandbox, task: str) -> str:
    """Return the status of a task as the API tells it."""
    return mindhunters(sandbox, "GET", f"/tasks/{task}")[1]["data"]["status"]


def test_a_task_lives(sandbox, task) -> None:
    """As its time comes it is scheduled, queued, in progress, completed."""
    seen = [status_of(sandbox, task)]
    for minutes in (60, 0.2, 1):
        sandbox.advance(timedelta(minutes=minutes))
        seen.append(status_of(sandbox, task))
    assert ["scheduled", "queued", "in_progress", "completed"] == seen


def test_a_task_may_fail_and_be_tried_again(sandbox, task) -> None:
    """With the outcome turned to failed it fails; a retry queues it again."""
    sandbox.turn({"mindhunters.outcome": "failed"})
    sandbox.advance(timedelta(hours=1, minutes=2))
    assert "failed" == status_of(sandbox, task)
    assert (200, "queued") == (mindhunters(sandbox, "POST", f"/tasks/{task}/retry")[0], status_of(sandbox, task))


def test_a_task_that_is_not_queued_never_runs(sandbox) -> None:
    """Without auto_queue it stays pending until it is queued; with the switch it runs all the same."""
    made = mindhunters(sandbox, "POST", "/tasks", CALL)[1]["data"]["uuid"]
    sandbox.advance(timedelta(days=9))
    assert "pending" == status_of(sandbox, made)
    assert 200 == mindhunters(sandbox, "POST", f"/tasks/{made}/queue")[0]
    assert "queued" == status_of(sandbox, made)
    sandbox.turn({"mindhunters.unqueued": "runs"})
    assert "scheduled" == mindhunters(sandbox, "POST", "/tasks", CALL)[1]["data"]["status"]


def test_a_task_that_waits_too_long_expires(sandbox) -> None:
    """Past its expiry a pending task is expired."""
    body = but(CALL, expires_at="2026-03-02T15:00:00Z")
    made = mindhunters(sandbox, "POST", "/tasks", body)[1]["data"]["uuid"]
    sandbox.advance(timedelta(hours=2))
    assert "expired" == status_of(sandbox, made)


def test_a_task_can_be_moved(sandbox, task) -> None:
    """A test can put a task into any documented status, and into no other."""
    sandbox.move(task, "on_hold")
    assert "on_hold" == status_of(sandbox, task)
    with pytest.raises(SandboxError):
        sandbox.move(task, "lost")
    with pytest.raises(SandboxError):
        sandbox.move(UNKNOWN, "failed")


@pytest.mark.parametrize("refusal", ["409", "422"])
def test_impossible_steps_are_refused(sandbox, task, refusal) -> None:
    """A scheduled task cannot be queued or retried, a cancelled one not cancelled."""
    sandbox.turn({"mindhunters.illegal_transition": refusal})
    steps = ["queue", "retry", "cancel", "cancel"]
    assert [int(refusal), int(refusal), 200, int(refusal)] == [
        mindhunters(sandbox, "POST", f"/tasks/{task}/{step}")[0] for step in steps
    ]


def test_a_task_can_be_changed_and_deleted(sandbox, task) -> None:
    """PUT changes the documented fields and checks them, DELETE forgets, then it is 404."""
    assert 200 == mindhunters(sandbox, "PUT", f"/tasks/{task}", {"title": "Other", "priority": 9})[0]
    held = mindhunters(sandbox, "GET", f"/tasks/{task}")[1]["data"]
    assert ("Other", 9) == (held["title"], held["priority"])
    assert 422 == mindhunters(sandbox, "PUT", f"/tasks/{task}", {"priority": 99})[0]
    assert 422 == mindhunters(sandbox, "PUT", f"/tasks/{task}", {"scheduled_at": "2020-01-01T00:00:00Z"})[0]
    assert 400 == mindhunters(sandbox, "PUT", f"/tasks/{task}", [])[0]
    assert [200, 404] == [mindhunters(sandbox, "DELETE", f"/tasks/{task}")[0] for _ in range(2)]


@pytest.mark.parametrize(
    ("expected", "query"),
    [
        (3, {}),
        (2, {"type": "make_call"}),
        (1, {"type": "send_message", "agent_uuid": AGENT}),
        (0, {"agent_uuid": OTHER}),
        (1, {"priority": 9}),
        (2, {"status": "pending", "type": "make_call"}),
        (1, {"scheduled_from": "2026-03-02T15:00:00Z"}),
        (2, {"scheduled_to": "2026-03-02T11:30:00-03:00"}),
    ],
)
def test_mindhunters_list_filters(sandbox, expected, query) -> None:
    """Type, status, agent, priority and the scheduled window narrow the list."""
    for body in (CALL, MESSAGE, but(CALL, priority=9, scheduled_at="2026-03-02T16:00:00Z")):
        mindhunters(sandbox, "POST", "/tasks", body)
    assert expected == mindhunters(sandbox, "GET", f"/tasks?{urlencode(query)}")[1]["data"]["total"]


def test_mindhunters_list_pages(sandbox) -> None:
    """Fifteen a page unless asked, newest first, with the documented paging keys."""
    for number in range(17):
        mindhunters(sandbox, "POST", "/tasks", but(CALL, title=f"n{number}"))
    first, second = (mindhunters(sandbox, "GET", f"/tasks?page={page}")[1]["data"] for page in (1, 2))
    assert (15, 2, 2, 17) == (len(first["data"]), len(second["data"]), first["last_page"], first["total"])
    assert ("n16", "n0") == (first["data"][0]["title"], second["data"][-1]["title"])
    assert 1 == len(mindhunters(sandbox, "GET", "/tasks?per_page=1")[1]["data"]["data"])


@pytest.mark.parametrize(
    ("expected", "query", "switches"),
    [
        (422, "per_page=101", {}),
        (200, "per_page=101", {"mindhunters.per_page_over_100": "clamp"}),
        (422, "per_page=0", {}),
        (422, "page=-1", {}),
        (422, "page=%D9%A1", {}),
        (422, "status=lost", {}),
        (422, "type=call", {}),
        (422, "scheduled_from=yesterday", {}),
        (403, "", {"mindhunters.permission_to_read": "no"}),
    ],
)
def test_mindhunters_list_refusals(sandbox, expected, query, switches) -> None:
    """Impossible filters and pages are refused, whole lists never by accident."""
    sandbox.turn(switches)
    assert expected == mindhunters(sandbox, "GET", f"/tasks?{query}")[0]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"/tasks/{UNKNOWN}"),
        ("POST", f"/tasks/{UNKNOWN}/cancel"),
        ("GET", "/calls"),
        ("PATCH", "/tasks"),
        ("GET", ""),
    ],
)
def test_mindhunters_what_is_not_there(sandbox, method, path) -> None:
    """Unknown tasks and endpoints are 404 in the documented form."""
    status, answer = mindhunters(sandbox, method, path)
    assert (404, False) == (status, answer["success"])


# ------------------------------------------------------------------------------------------------------------- Vambe


@pytest.mark.parametrize(
    ("expected", "body", "switches"),
    [
        pytest.param(201, TEAM, {}, id="all nine keys"),
        pytest.param(200, TEAM, {"vambe.success_status": "200"}, id="answered with 200"),
        pytest.param(201, TIMED, {}, id="with a due time"),
        pytest.param(201, but(TEAM, title="   "), {}, id="a title of spaces"),
        pytest.param(400, but(TEAM, title="   "), {"vambe.blank_title": "refuse"}, id="a title of spaces refused"),
        pytest.param(201, but(TEAM, aiContactId=ABSENT, dueDate=ABSENT), {"vambe.absent_keys": "lenient"}, id="absent keys"),
        pytest.param(404, but(TEAM, responsibleIds=[OTHER]), {"vambe.users": AGENT}, id="an unknown user"),
        pytest.param(404, but(TEAM, responsibleIds=[AGENT, "u-17"]), {}, id="an id that is no UUID"),
        pytest.param(400, but(TEAM, responsibleIds=["u-17"]), {"vambe.responsible_format": "400"}, id="the same as 400"),
        pytest.param(201, but(TEAM, priority=2), {"vambe.priority_number": "accept"}, id="a number as priority"),
        pytest.param(201, but(TIMED, dueTime="2 pm"), {"vambe.due_time_format": "accept"}, id="any time"),
        pytest.param(201, but(TIMED, timezone="Santiago"), {"vambe.timezone_name": "accept"}, id="any zone"),
        pytest.param(201, but(TIMED, dueDate=None), {"vambe.due_time_alone": "accept"}, id="a time alone"),
        pytest.param(201, but(TEAM, dueDate="2020-01-01"), {}, id="in the past"),
        pytest.param(400, but(TEAM, dueDate="2020-01-01"), {"vambe.past_due_date": "refuse"}, id="in the past refused"),
        pytest.param(201, but(TEAM, dueDate="2026-10-25T14:00:00.000Z"), {}, id="a date-time"),
        pytest.param(404, but(TEAM, aiContactId="c-1"), {"vambe.contacts": "c-2"}, id="an unknown contact"),
        pytest.param(
            400, but(TEAM, aiContactId="c-1"), {"vambe.contacts": "c-2", "vambe.unknown_contact": "400"}, id="as 400"
        ),
        pytest.param(201, but(TEAM, statusId="x"), {}, id="a status"),
        pytest.param(400, but(TEAM, statusId="x"), {"vambe.status_fields": "refuse"}, id="a status refused"),
        pytest.param(400, b"", {}, id="no body"),
        pytest.param(400, b"{", {}, id="no JSON"),
        pytest.param(400, [TEAM], {}, id="not an object"),
    ],
)  # fmt: skip
def test_vambe_create_statuses(sandbox, expected, body, switches) -> None:
    """What the documents say, and for every open question each reading."""
    sandbox.turn(switches)
    assert expected == vambe(sandbox, "POST", "/tasks", body)[0]


@pytest.mark.parametrize(
    ("expected_field", "body"),
    [
        ("title", but(TEAM, title=ABSENT)),
        ("title", but(TEAM, title="")),
        ("title", but(TEAM, title=None)),
        ("description", but(TEAM, description=ABSENT)),
        ("dueDate", but(TEAM, dueDate=ABSENT)),
        ("dueTime", but(TEAM, dueTime=ABSENT)),
        ("timezone", but(TEAM, timezone=ABSENT)),
        ("aiContactId", but(TEAM, aiContactId=ABSENT)),
        ("aiCustomerId", but(TEAM, aiCustomerId=ABSENT)),
        ("description", but(TEAM, description=5)),
        ("responsibleIds", but(TEAM, responsibleIds=ABSENT)),
        ("responsibleIds", but(TEAM, responsibleIds=[])),
        ("responsibleIds", but(TEAM, responsibleIds=AGENT)),
        ("responsibleIds", but(TEAM, responsibleIds=[None])),
        ("priority", but(TEAM, priority=ABSENT)),
        ("priority", but(TEAM, priority=2)),
        ("priority", but(TEAM, priority="3")),
        ("priority", but(TEAM, priority="high")),
        ("dueTime", but(TIMED, dueTime="24:00")),
        ("dueTime", but(TIMED, dueTime=14)),
        ("timezone", but(TIMED, timezone=None)),
        ("timezone", but(TIMED, timezone="Santiago")),
        ("dueDate", but(TIMED, dueDate=None)),
        ("dueDate", but(TIMED, dueDate="tomorrow")),
        ("dueDate", but(TIMED, dueDate="2026-02-30")),
    ],
)
def test_vambe_names_the_field(sandbox, expected_field, body) -> None:
    """Validation errors are 400 in the documented form, with the field; nothing is stored."""
    status, answer = vambe(sandbox, "POST", "/tasks", body)
    assert (400, 400) == (status, answer["statusCode"])
    assert [expected_field] == [error["field"] for error in answer["errors"]]
    assert [] == sandbox.tasks("vambe")


@pytest.mark.parametrize(
    ("expected", "path", "headers", "switches"),
    [
        (401, "/tasks", {}, {}),
        (401, "/tasks", {"x-api-key": "wrong"}, {}),
        (401, f"/tasks?x-api-key={VAMBE_API_KEY}", {}, {}),
        (201, f"/tasks?x-api-key={VAMBE_API_KEY}", {}, {"vambe.key_in_query": "accept"}),
        (401, "/tasks", {"Authorization": f"Bearer {VAMBE_API_KEY}"}, {}),
    ],
)
def test_vambe_credentials(sandbox, expected, path, headers, switches) -> None:
    """The key counts in its header only, unless the switch allows the query."""
    sandbox.turn(switches)
    assert expected == ask(sandbox.vambe_url, "POST", path, TEAM, headers)[0]


@pytest.mark.parametrize(
    ("expected", "body", "switches"),
    [
        (("2026-03-02T17:00:00.000Z", False), TIMED, {}),
        (("2026-03-02T14:00:00.000Z", False), TIMED, {"vambe.due_at": "sample"}),
        (("2026-03-02T00:00:00.000Z", True), but(TIMED, dueTime=None), {}),
        (("2026-03-02T03:00:00.000Z", True), but(TIMED, dueTime=None), {"vambe.all_day_instant": "zone"}),
        ((None, True), TEAM, {}),
    ],
)
def test_vambe_due_moments(sandbox, expected, body, switches) -> None:
    """due_at follows the zone or the vendor's own sample, as the switch says."""
    sandbox.turn(switches)
    _, task = vambe(sandbox, "POST", "/tasks", body)
    assert expected == (task["due_at"], task["is_all_day"])


def test_vambe_answers_with_the_task(sandbox) -> None:
    """A bare object with the documented fields, the priority as a number."""
    _, task = vambe(sandbox, "POST", "/tasks", but(TIMED, responsibleIds=[AGENT, OTHER]))
    assert {
        "id",
        "title",
        "description",
        "due_at",
        "due_timezone",
        "is_all_day",
        "created_at",
        "ai_contact_id",
        "ai_customer_id",
        "task_status_config_id",
        "priority",
        "creator_id",
        "task_responsibles",
        "status_config",
    } == set(task)
    assert (2, [AGENT, OTHER]) == (task["priority"], [one["responsible_id"] for one in task["task_responsibles"]])


def test_vambe_has_no_other_path(sandbox) -> None:
    """The path of one sample is 404, unless the switch serves it."""
    base = sandbox.vambe_url.removesuffix("/public")
    assert 404 == ask(base, "POST", "/tasks", TEAM, KEY)[0]
    sandbox.turn({"vambe.other_path": "serve"})
    assert 201 == ask(base, "POST", "/tasks", TEAM, KEY)[0]


def test_vambe_errors_without_a_body(sandbox) -> None:
    """Bodies of errors other than 400 are not documented: the switch leaves them empty."""
    sandbox.turn({"vambe.error_body": "empty"})
    assert (404, "") == vambe(sandbox, "GET", "/nothing")
    assert {"statusCode", "message", "errors"} == set(vambe(sandbox, "POST", "/tasks", {})[1])


LIST = "fromDate=2026-03-01&toDate=2026-03-31"


@pytest.mark.parametrize(
    ("expected", "query"),
    [
        (["timed", "free"], f"responsibleIds=&{LIST}"),
        (["timed"], f"responsibleIds=&{LIST}&includeTasksWithoutDates=false"),
        (["free"], "responsibleIds=&fromDate=2026-04-01&toDate=2026-04-30"),
        (["timed"], f"responsibleIds={AGENT}&{LIST}"),
        (["timed"], f"responsibleIds[]={AGENT}&{LIST}"),
        (["timed", "free"], f"responsibleIds={AGENT},{OTHER}&{LIST}"),
        (["timed", "free"], f"responsibleIds={AGENT}&responsibleIds={OTHER}&{LIST}"),
        ([], f"responsibleIds={UNKNOWN}&{LIST}"),
    ],
)
def test_vambe_lists(sandbox, expected, query) -> None:
    """By people and dates, a bare array; nobody named means everybody."""
    vambe(sandbox, "POST", "/tasks", but(TIMED, title="timed"))
    vambe(sandbox, "POST", "/tasks", but(TEAM, title="free", responsibleIds=[OTHER]))
    assert expected == [task["title"] for task in vambe(sandbox, "GET", f"/tasks?{query}")[1]]


@pytest.mark.parametrize(
    ("expected", "form", "query"),
    [
        ("repeated", "any", f"responsibleIds={AGENT}"),
        ("bracketed", "any", f"responsibleIds[]={AGENT}"),
        ("comma", "any", f"responsibleIds={AGENT},{OTHER}"),
    ],
)
def test_vambe_says_how_it_read_the_list(sandbox, expected, form, query) -> None:
    """The encoding of arrays is not documented: the form that was used is reported, and another may find nothing."""
    vambe(sandbox, "POST", "/tasks", TEAM)
    sandbox.turn({"vambe.array_form": form})
    _, found, headers = ask(sandbox.vambe_url, "GET", f"/tasks?{query}&{LIST}", None, KEY)
    assert (expected, 1) == (headers["x-sandbox-array-form"], len(found))
    sandbox.turn({"vambe.array_form": "comma" if expected != "comma" else "bracketed"})
    assert [] == vambe(sandbox, "GET", f"/tasks?{query}&{LIST}")[1]


@pytest.mark.parametrize(
    ("expected_field", "query"),
    [
        ("responsibleIds", LIST),
        ("fromDate", "responsibleIds=&toDate=2026-03-31"),
        ("toDate", "responsibleIds=&fromDate=2026-03-01"),
        ("toDate", "responsibleIds=&fromDate=2026-03-01&toDate=later"),
    ],
)
def test_vambe_lists_need_everything(sandbox, expected_field, query) -> None:
    """People and both dates are required."""
    status, answer = vambe(sandbox, "GET", f"/tasks?{query}")
    assert (400, expected_field) == (status, answer["errors"][0]["field"])


def test_vambe_updates(sandbox) -> None:
    """PUT changes what it names, replaces the people, clears the date, moves the status; unknown ids are 404."""
    made = vambe(sandbox, "POST", "/tasks", TIMED)[1]["id"]
    changes = {"title": "Other", "responsibleIds": [OTHER], "dueDate": None, "priority": "0", "newStatusName": "Lista"}
    status, task = vambe(sandbox, "PUT", f"/tasks/{made}", changes)
    assert 200 == status
    assert ("Other", [OTHER], None, 0, "Lista") == (
        task["title"],
        [one["responsible_id"] for one in task["task_responsibles"]],
        task["due_at"],
        task["priority"],
        task["status_config"]["name"],
    )
    refused = [
        {"newStatusName": "Lista", "newStatusPosition": 1},
        {"newStatusPosition": 9},
        {"title": ""},
        {"priority": 9},
        [],
    ]
    assert [400] * 5 == [vambe(sandbox, "PUT", f"/tasks/{made}", one)[0] for one in refused]
    assert 404 == vambe(sandbox, "PUT", f"/tasks/{UNKNOWN}", {"title": "x"})[0]


def test_vambe_team_and_topics(sandbox) -> None:
    """The team is whom the switch names, with the documented fields; topics are listed beside the public API."""
    sandbox.turn({"vambe.users": f"{AGENT},{OTHER}"})
    team = vambe(sandbox, "GET", "/team-members/all")[1]
    assert [AGENT, OTHER] == [one["id"] for one in team]
    assert {"id", "name", "first_name", "last_name", "email", "phone"} == set(team[0])
    topics = ask(sandbox.vambe_url.removesuffix("/public"), "GET", "/webhooks/topics", None, KEY)[1]
    assert "message.received" in topics


# ------------------------------------------------------------------------------------------------------------ faults


def send(sandbox: Sandbox, title: str = "Call Ana") -> Any:
    """Send a call and return its status, or the name of what broke."""
    try:
        return mindhunters(sandbox, "POST", "/tasks", but(CALL, title=title))[0]
    except (OSError, http.client.HTTPException) as exc:
        return type(exc).__name__


def test_faults_act_as_often_as_they_say(sandbox) -> None:
    """Two times 503, then all is well; the state shows how often it acted."""
    sandbox.script(
        [{"provider": "mindhunters", "times": 2, "answer": {"status": 503, "headers": {"Retry-After": "2"}}}]
    )
    assert [503, 503, 201] == [send(sandbox) for _ in range(3)]
    assert [2] == [fault["acted"] for fault in sandbox.state()["faults"]]


def test_faults_match_what_they_say(sandbox) -> None:
    """By value, by part of a text, by provider, by method, each nth, and for ever."""
    sandbox.script(
        [
            {"match": {"title": "bad"}, "times": None, "answer": {"status": 500}},
            {
                "match": {"contact.phone_number": {"contains": "+569"}, "title": {"contains": "odd"}},
                "answer": {"status": 502},
            },
            {"provider": "vambe", "answer": {"status": 504}},
            {"match": {"title": "third"}, "times": None, "every": 3, "answer": {"status": 429}},
        ]
    )
    assert [500, 500, 502, 201] == [send(sandbox, title) for title in ("bad", "bad", "how odd", "fine")]
    assert [201, 201, 429, 201] == [send(sandbox, "third") for _ in range(4)]
    assert [504, 201] == [vambe(sandbox, "POST", "/tasks", TEAM)[0] for _ in range(2)]
    sandbox.script({"method": "GET", "path": "/tasks", "answer": {"status": 503}})
    assert [201, 503, 200] == [
        send(sandbox),
        mindhunters(sandbox, "GET", "/tasks")[0],
        mindhunters(sandbox, "GET", "/tasks")[0],
    ]


@pytest.mark.parametrize(
    ("expected", "stored", "answer"),
    [
        ("RemoteDisconnected", 0, "hang_up_before"),
        ("RemoteDisconnected", 1, "hang_up_after"),
        ("ConnectionResetError", 0, "reset_before"),
        ("ConnectionResetError", 1, "reset_after"),
        (502, 0, "html_502"),
        (500, 0, {"status": 500}),
        (500, 1, {"status": 500, "store": True}),
        (204, 1, {"status": 204, "store": True}),
        (201, 1, {"delay_seconds": 0.01}),
        (201, 1, {"drip_seconds": 0.0001}),
    ],
)
def test_faults_hang_up_before_and_after_storing(sandbox, expected, stored, answer) -> None:
    """Whether the task was made is decided by the script, whatever the client gets to see."""
    sandbox.script([{"answer": answer}])
    assert (expected, stored) == (send(sandbox), len(sandbox.tasks("mindhunters")))
    assert 201 == send(sandbox)


def test_a_bad_gateway_speaks_html(sandbox) -> None:
    """The 502 of a proxy is a page, not JSON."""
    sandbox.script([{"answer": "html_502"}])
    status, body, headers = ask(sandbox.mindhunters_url, "POST", "/tasks", CALL, BEARER)
    assert (502, "text/html") == (status, headers["content-type"])
    assert body.startswith("<html>")


def test_a_slow_answer_outlasts_the_client_but_the_task_is_made(sandbox) -> None:
    """A delay past the client's patience: it sees nothing, and the task exists."""
    sandbox.script([{"answer": {"delay_seconds": 30}}])
    with pytest.raises(TimeoutError):
        ask(sandbox.mindhunters_url, "POST", "/tasks", CALL, BEARER, timeout=0.1)
    assert 1 == len(sandbox.tasks("mindhunters"))


@pytest.mark.parametrize(
    ("expected", "script"),
    [
        ("a JSON list", "hang_up"),
        ("fault 1: must be a mapping", ["hang_up_before"]),
        ("fault 1: there is no 'tiems'", [{"tiems": 2, "answer": "drip"}]),
        ("fault 2: answer is missing", [{"answer": "drip"}, {}]),
        ("fault 1: answer: must be hang_up_before", [{"answer": "explode"}]),
        ("fault 1: answer: there is no 'stauts'", [{"answer": {"stauts": 500}}]),
        ("status must be from 200 to 599", [{"answer": {"status": 99}}]),
        ("provider must be", [{"provider": "acme", "answer": "drip"}]),
        ("times must be", [{"times": 0, "answer": "drip"}]),
        ("every must be", [{"every": None, "answer": "drip"}]),
        ("match must be", [{"match": [], "answer": "drip"}]),
        ("headers must be", [{"answer": {"status": 200, "headers": {"A": "b\r\nC: d"}}}]),
        ("hang_up must be", [{"answer": {"hang_up": "during"}}]),
        ("delay_seconds must be", [{"answer": {"delay_seconds": "long"}}]),
        ("must be a name or a mapping", [{"answer": 5}]),
    ],
)
def test_a_script_that_is_not_understood(sandbox, expected, script) -> None:
    """A fault in the script of faults is named with its place, and none of it comes into force."""
    with pytest.raises(SandboxError) as raised:
        sandbox.script(script)
    assert expected in str(raised.value)
    assert [] == sandbox.state()["faults"]


# ----------------------------------------------------------------------------------------------- control and the page


def control(sandbox: Sandbox, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Ask the control address."""
    return ask(f"{sandbox.url}/_sandbox", method, path, body)[:2]


def test_the_control_address(sandbox) -> None:
    """Faults, switches, clock and reset can be told over HTTP, and the state read."""
    assert 200 == control(sandbox, "POST", "/faults", [{"answer": {"status": 503}}])[0]
    assert 503 == send(sandbox)
    assert 200 == control(sandbox, "POST", "/faults", {"answer": "drip"})[0]
    assert (200, {"faults": []}) == control(sandbox, "DELETE", "/faults")
    assert 200 == control(sandbox, "POST", "/switches", {"mindhunters.success_status": "200"})[0]
    assert 200 == send(sandbox)
    made = sandbox.tasks("mindhunters")[0]["uuid"]
    assert 200 == control(sandbox, "POST", "/clock", {"advance_seconds": 10, "task": made, "status": "failed"})[0]
    state = control(sandbox, "GET", "/state")[1]
    assert ("failed", 2, 0) == (
        state["mindhunters"]["tasks"][0]["status"],
        len(state["requests"]),
        state["counts"]["refused"],
    )
    assert "2026-03-02T13:00:00.000Z" == state["requests"][0]["arrived_at"]
    assert 1 == len(control(sandbox, "GET", "/state?limit=1")[1]["requests"])
    assert 200 == control(sandbox, "POST", "/reset")[0]
    assert [] == sandbox.tasks("mindhunters")


@pytest.mark.parametrize(
    ("expected", "method", "path", "body"),
    [
        (400, "POST", "/faults", [{"answer": "explode"}]),
        (400, "POST", "/faults", b"{"),
        (400, "POST", "/switches", {"mindhunters.colour": "red"}),
        (400, "POST", "/switches", {"vambe.due_at": "never"}),
        (400, "POST", "/clock", {"advance_seconds": -1}),
        (400, "POST", "/clock", {"advance_seconds": 1e300}),
        (400, "POST", "/clock", {"task": UNKNOWN, "status": "failed"}),
        (404, "POST", "/clock", []),
        (404, "GET", "/nothing", None),
    ],
)
def test_control_refusals(sandbox, expected, method, path, body) -> None:
    """What is not understood is refused with a message and changes nothing."""
    status, answer = control(sandbox, method, path, body)
    assert expected == status
    assert answer["error"]


def test_the_page_shows_what_it_holds_and_escapes_it(sandbox) -> None:
    """Tasks of both providers, refusals and faults stand on one page; foreign text cannot become markup."""
    mindhunters(sandbox, "POST", "/tasks", but(CALL, title="<script>alert(1)</script>"))
    vambe(sandbox, "POST", "/tasks", but(TIMED, title="Ring & ask"))
    vambe(sandbox, "POST", "/tasks", but(TEAM, priority="urgent"))
    sandbox.script([{"provider": "vambe", "match": {"title": "<b>"}, "answer": "drip"}])
    sandbox.turn({"vambe.due_at": "sample"})
    status, page, headers = ask(sandbox.url, "GET", "/")
    assert (200, "text/html; charset=utf-8") == (status, headers["content-type"])
    for shown in (
        "&lt;script&gt;alert(1)",
        "Ring &amp; ask",
        "+56911112222",
        "priority: must be",
        "1 turned",
        "assumed",
    ):
        assert shown in page
    assert "<script" not in page
    assert "<b>&" not in page
    assert "//" not in page.replace(f"http://127.0.0.1:{sandbox.port}", "")


@pytest.mark.parametrize(
    ("expected", "raw"),
    [
        (b"HTTP/1.1 411 ", b"POST /api/v1/tasks HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (b"HTTP/1.1 411 ", b"POST /api/v1/tasks HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n"),
        (b"HTTP/1.1 413 ", b"POST /api/v1/tasks HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n"),
        (b"HTTP/1.1 404 ", b"BREW /pot HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
        (b"<!DOCTYPE", b"\xff\xff\xff \r\n\r\n"),
        (b"", b""),
    ],
)
def test_hostile_requests_leave_it_alive_and_quiet(sandbox, capfd, expected, raw) -> None:
    """Broken HTTP gets an answer or a closed connection, never a traceback; the next request is served."""
    with socket.create_connection(("127.0.0.1", sandbox.port)) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := connection.recv(4096):
            answer += chunk
    assert answer.startswith(expected)
    assert 201 == send(sandbox)
    assert ("", "") == capfd.readouterr()


def test_a_connection_is_kept(sandbox) -> None:
    """Several requests go over one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", sandbox.port)
    try:
        for _ in range(3):
            connection.request("POST", "/api/v1/tasks", json.dumps(CALL), BEARER)
            answer = connection.getresponse()
            answer.read()
            assert 201 == answer.status
            assert not answer.will_close
    finally:
        connection.close()


# -------------------------------------------------------------------------------------------------------------- life


def test_switches_are_explained() -> None:
    """Every switch has a meaning, a basis, and a default that it takes itself."""
    Switches({name: switch.default for name, switch in SWITCHES.items()})
    for row in Switches().as_json():
        assert row["about"]
        assert row["basis"] in {"assumed", "documented"}
        assert row["choices"]


def test_every_choice_of_every_switch_is_taken() -> None:
    """A switch takes what it says it takes, and nothing else."""
    for name, switch in SWITCHES.items():
        for choice in switch.choices:
            Switches({name: choice})
        if switch.choices:
            with pytest.raises(SandboxError):
                Switches({name: "perhaps"})


def test_a_taken_port_is_a_problem_with_a_remedy(sandbox) -> None:
    """Two cannot have one port; the message says so."""
    with pytest.raises(Problem, match="choose another"):
        Sandbox(sandbox.port).start()


def ask_again(connection: http.client.HTTPConnection) -> None:
    """Send a call over a connection that is already open."""
    connection.request("POST", "/api/v1/tasks", json.dumps(CALL), BEARER)
    connection.getresponse().read()


def test_it_stops_and_starts_again_with_what_it_held() -> None:
    """While stopped, connections are dropped and refused; started again it has its port and its tasks."""
    sandbox = Sandbox(clock=lambda: NOW).start()
    kept = http.client.HTTPConnection("127.0.0.1", sandbox.port, timeout=2)
    try:
        ask_again(kept)
        sandbox.stop()
        assert send(sandbox) == "ConnectionRefusedError"
        kept.auto_open = 0
        with pytest.raises((OSError, http.client.HTTPException)):
            ask_again(kept)
        sandbox.start()
        assert (201, 2) == (send(sandbox), len(sandbox.tasks("mindhunters")))
    finally:
        kept.close()
        sandbox.stop()


def test_serving_from_a_script_file(tmp_path) -> None:
    """`serve` announces itself once it is open, obeys the file and the switches, and ends when told."""
    script = tmp_path / "faults.json"
    script.write_text('[{"answer": {"status": 503}}]', encoding="utf-8")
    announced: list[Sandbox] = []
    opened, ended = threading.Event(), threading.Event()

    def announce(sandbox: Sandbox) -> None:
        announced.append(sandbox)
        opened.set()

    thread = threading.Thread(
        target=serve,
        args=("127.0.0.1", 0, script, {"mindhunters.success_status": "200"}),
        kwargs={"announce": announce, "until": ended},
    )
    thread.start()
    assert opened.wait(5)
    late = but(CALL, scheduled_at=f"{datetime.now(UTC).year + 1}-01-01T00:00:00Z")
    statuses = [mindhunters(announced[0], "POST", "/tasks", late)[0] for _ in range(2)]
    ended.set()
    thread.join(5)
    assert [503, 200] == statuses
    assert not thread.is_alive()


@pytest.mark.parametrize("content", ["", "{", '[{"answer": "explode"}]', None])
def test_a_bad_script_file_is_a_problem(tmp_path, content) -> None:
    """A file that is missing, no JSON or no script ends with a message, before the port opens."""
    script = tmp_path / "faults.json"
    if content is not None:
        script.write_text(content, encoding="utf-8")
    with pytest.raises(Problem):
        serve(script_file=script)


def test_memory_is_bounded(monkeypatch) -> None:
    """The oldest tasks and requests are forgotten."""
    monkeypatch.setattr("worker.sandbox.provider.TASK_LIMIT", 3)
    monkeypatch.setattr("worker.sandbox.server.REQUEST_LIMIT", 4)
    with Sandbox(clock=lambda: NOW) as sandbox:
        for number in range(6):
            mindhunters(sandbox, "POST", "/tasks", but(CALL, title=f"n{number}", contact={"email": f"{number}@x.y"}))
            vambe(sandbox, "POST", "/tasks", but(TEAM, title=f"n{number}"))
        state = sandbox.state()
    assert ["n3", "n4", "n5"] == [task["title"] for task in state["mindhunters"]["tasks"]]
    assert ["n3", "n4", "n5"] == [task["title"] for task in state["vambe"]["tasks"]]
    assert (4, 12) == (len(state["requests"]), state["counts"]["requests"])


def test_answers_leave_at_once(sandbox) -> None:
    """Ten answers over one connection do not wait for the network's own delays (45 ms each otherwise)."""
    started = time.monotonic()
    test_a_connection_is_kept(sandbox)
    assert time.monotonic() - started < 2

"""Mindhunters' file: what is sent, and what each answer means."""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.vocabulary import TaskType, Verdict
from worker.providers import Answered, NeverSent, NoAnswer, ProviderRequest, Unsendable
from worker.providers.answers import REASON_CHARACTERS, one_line
from worker.providers.mindhunters import PROVIDER

ANEW = "then have a new event sent, or all tasks of this one made anew: leadwire replay EVENT_ID --new-keys"
AFTERWARDS = f"{ANEW}; what was mended at the provider needs leadwire retry only."
NOW = datetime(2026, 3, 2, 13, 0, 0, 250_000, tzinfo=UTC)
AGENT = "228d7a0d-9072-4ca8-939b-959b75cc606a"
OTHER = "bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb"


@dataclass(frozen=True)
class Claimed:
    """A claimed task, as far as a provider looks at it."""

    fields: dict[str, Any]
    type: TaskType = TaskType.MAKE_CALL
    due_at: datetime = NOW
    expires_at: datetime | None = None
    id: str = "tk_0"
    key: str = field(default="0" * 64)


CALL = {
    "agent": AGENT,
    "title": "Call Ana",
    "description": "big lead [lw:abcdef012345]",
    "contact": {"phone_number": "+56911112222"},
    "auto_queue": True,
}
SENT_CALL = {
    "title": "Call Ana",
    "type": "make_call",
    "agent_uuid": AGENT,
    "scheduled_at": "2026-03-02T13:01:01Z",
    "description": "big lead [lw:abcdef012345]",
    "contact": {"phone_number": "+56911112222"},
    "auto_queue": True,
}


def prepared(fields: dict[str, Any], **more: Any) -> Any:
    """Return the JSON that is sent for these fields, or the reason why nothing is."""
    request = PROVIDER.build_request(Claimed(fields=fields, **more), NOW)
    if isinstance(request, Unsendable):
        return request.reason
    assert (request.method, request.path, request.query) == ("POST", "/tasks", ())
    return request.json


def without(fields: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Return the fields without these."""
    return {key: value for key, value in fields.items() if key not in keys}


@pytest.mark.parametrize(
    ("expected", "fields", "more"),
    [
        pytest.param(SENT_CALL, CALL, {}, id="a call"),
        pytest.param(SENT_CALL, {**CALL, "task_data": {}}, {}, id="no empty task_data for a call"),
        pytest.param({**SENT_CALL, "task_data": {"a": 1}}, {**CALL, "task_data": {"a": 1}}, {}, id="task_data that is given"),
        pytest.param(
            {
                **SENT_CALL,
                "campaign_uuid": OTHER,
                "timezone": "America/Santiago",
                "priority": 8,
                "max_attempts": 3,
                "expires_at": "2026-03-03T13:00:00Z",
                "auto_queue": False,
            },
            {
                **CALL,
                "campaign": OTHER,
                "timezone": "America/Santiago",
                "priority": 8,
                "redial": {"max": 3},
                "auto_queue": False,
            },
            {"expires_at": NOW + timedelta(days=1)},
            id="every key",
        ),
        pytest.param(
            {**without(SENT_CALL, "contact"), "contact_uuid": OTHER},
            {**without(CALL, "contact"), "contact_uuid": OTHER},
            {},
            id="a known contact",
        ),
        pytest.param(
            {**SENT_CALL, "type": "send_message", "task_data": {"message_type": "whatsapp_template", "template_uuid": OTHER}},
            {**CALL, "template": OTHER},
            {"type": TaskType.WHATSAPP_TEMPLATE},
            id="a template",
        ),
        pytest.param(
            {**SENT_CALL, "type": "survey", "task_data": {"form": "nps"}},
            {**CALL, "type": "survey", "task_data": {"form": "nps"}},
            {"type": TaskType.MINDHUNTERS_TASK},
            id="another documented type",
        ),
        pytest.param({**SENT_CALL, "x_raw": [1]}, {**CALL, "extra_fields": {"x_raw": [1], "none": None}}, {}, id="raw fields"),
        pytest.param(SENT_CALL, {**CALL, "priority": None, "campaign": None, "redial": None}, {}, id="nulls are left out"),
        pytest.param(SENT_CALL, without(CALL, "auto_queue"), {}, id="auto_queue is always said"),
        pytest.param({**SENT_CALL, "priority": 7}, {**CALL, "priority": "7"}, {}, id="a number as text"),
        pytest.param({**SENT_CALL, "priority": 7}, {**CALL, "priority": 7.0}, {}, id="a whole float"),
        pytest.param({**SENT_CALL, "title": "5"}, {**CALL, "title": 5}, {}, id="a number as title"),
    ],
)  # fmt: skip
def test_what_is_sent(expected, fields, more) -> None:
    """Only documented names, nothing null, exactly one way to name the contact."""
    assert expected == prepared(fields, **more)


@pytest.mark.parametrize(
    ("expected", "due_at"),
    [
        ("2026-03-02T13:01:01Z", NOW - timedelta(days=3)),
        ("2026-03-02T13:01:01Z", NOW),
        ("2026-03-02T13:01:01Z", NOW + timedelta(seconds=59)),
        ("2026-03-02T13:10:01Z", NOW + timedelta(minutes=10)),
        ("2026-03-02T15:00:00Z", datetime.fromisoformat("2026-03-02T12:00:00-03:00")),
    ],
)
def test_the_scheduled_moment_is_in_the_future_when_sent(expected, due_at) -> None:
    """A due time that has passed, in the queue or in a retry, becomes a minute from now; a later one stays."""
    assert expected == prepared(CALL, due_at=due_at)["scheduled_at"]


def test_the_scheduled_moment_moves_with_each_try() -> None:
    """The same task prepared an hour later is scheduled an hour later."""
    request = PROVIDER.build_request(Claimed(fields=CALL), NOW + timedelta(hours=1))
    assert isinstance(request, ProviderRequest)
    assert "2026-03-02T14:01:01Z" == request.json["scheduled_at"]


@pytest.mark.parametrize(
    ("expected", "fields", "more"),
    [
        ("`agent` must be a UUID", {**CALL, "agent": "sales"}, {}),
        ("`agent` is missing", without(CALL, "agent"), {}),
        ("`title` is missing", {**CALL, "title": "  "}, {}),
        ("`title` must be text", {**CALL, "title": ["a"]}, {}),
        ("no phone", without(CALL, "contact"), {}),
        ("no phone", {**CALL, "contact": {"phone_number": None}}, {}),
        ("must hold `phone_number` or `email`", {**CALL, "contact": {"name": "Ana"}}, {}),
        ("must be E.164", {**CALL, "contact": {"phone_number": "911112222"}}, {}),
        ("must be E.164", {**CALL, "contact": {"phone_number": "+56 9 1111 2222"}}, {}),
        ("must be E.164", {**CALL, "contact": {"phone_number": 56911112222}}, {}),
        ("must be E.164", {**CALL, "contact": {"phone_number": "+٥٦٩١١١١٢٢٢٢"}}, {}),
        ("must be an e-mail", {**CALL, "contact": {"email": "ana"}}, {}),
        ("not both", {**CALL, "contact_uuid": OTHER}, {}),
        ("`contact_uuid` must be a UUID", {**without(CALL, "contact"), "contact_uuid": "17"}, {}),
        ("`priority` must be a whole number from 1 to 10", {**CALL, "priority": 0}, {}),
        ("`priority` must be a whole number from 1 to 10", {**CALL, "priority": 11}, {}),
        ("`priority` must be a whole number from 1 to 10", {**CALL, "priority": 7.5}, {}),
        ("`priority` must be a whole number from 1 to 10", {**CALL, "priority": True}, {}),
        ("`priority` must be a whole number from 1 to 10", {**CALL, "priority": "high"}, {}),
        ("`redial.max` must be a whole number of 1 or more", {**CALL, "redial": {"max": 0}}, {}),
        ("`redial` must be a mapping", {**CALL, "redial": 3}, {}),
        ("`campaign` must be a UUID", {**CALL, "campaign": "Q4"}, {}),
        ("`timezone` must be an IANA time zone", {**CALL, "timezone": "Chile"[:3]}, {}),
        ("`auto_queue` must be true or false", {**CALL, "auto_queue": 1}, {}),
        ("`template` is missing", CALL, {"type": TaskType.WHATSAPP_TEMPLATE}),
        ("`template` must be a UUID", {**CALL, "template": "welcome"}, {"type": TaskType.WHATSAPP_TEMPLATE}),
        ("`type` must be one of send_email", {**CALL, "type": "make_call"}, {"type": TaskType.MINDHUNTERS_TASK}),
        ("`type` is missing", CALL, {"type": TaskType.MINDHUNTERS_TASK}),
        ("write `agent` instead", {**CALL, "extra_fields": {"agent_uuid": OTHER}}, {}),
        ("write `contact_uuid` instead", {**CALL, "extra_fields": {"contact_uuid": OTHER}}, {}),
        ("something JSON cannot", {**CALL, "extra_fields": {"x": float("nan")}}, {}),
        ("`task_data` must be a mapping", {**CALL, "task_data": "x"}, {}),
        ("it would expire at 2026-03-02T13:00:30Z", CALL, {"expires_at": NOW + timedelta(seconds=30)}),
        ("it would expire at 2026-03-02T13:01:01Z", CALL, {"expires_at": NOW + timedelta(seconds=61)}),
    ],
)
def test_what_cannot_be_sent(expected, fields, more) -> None:
    """A value of the wrong shape ends before a request, with the complaint and what to do."""
    reason = prepared(fields, **more)
    assert isinstance(reason, str)
    assert expected in reason
    assert reason.endswith(f"Correct the rule or the data, {ANEW}.")


def test_all_complaints_come_at_once() -> None:
    """Several wrong values are all named."""
    reason = prepared({"title": "", "agent": "x", "contact": {"phone_number": "1"}})
    assert ["`title`", "`agent`", "`contact.phone_number`"] == [
        word for word in ("`title`", "`agent`", "`contact.phone_number`") if word in reason
    ]


@given(st.dictionaries(st.sampled_from([*CALL, "priority", "redial", "extra_fields"]), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=6,
)))  # fmt: skip
def test_prepare_never_raises(fields) -> None:
    """Whatever a template rendered, the end is a request that JSON can hold, or a reason."""
    made = prepared({**CALL, **fields})
    assert isinstance(made, str) or json.dumps(made, allow_nan=False)


ENVELOPE = {"success": True, "message": "ok"}


def refusal(message: str = "nope", **error: Any) -> bytes:
    """Return an error body as the vendor documents it."""
    return json.dumps({"success": False, "message": message, "error": {"code": "VALIDATION_ERROR", **error}}).encode()


LARAVEL = json.dumps(
    {
        "message": "The given data was invalid.",
        "errors": {"scheduled_at": ["must be in the future"], "title": ["too long"]},
    }
).encode()


@pytest.mark.parametrize(
    ("expected_id", "status", "body"),
    [
        ("u-1", 201, {**ENVELOPE, "data": {"uuid": "u-1", "id": 5}}),
        ("5", 200, {**ENVELOPE, "data": {"id": 5}}),
        ("u-2", 202, {"uuid": "u-2"}),
        ("9", 201, {"id": 9, "data": []}),
        ("u-3", 299, {"data": {"uuid": "", "id": None}, "uuid": "u-3"}),
    ],
)
def test_a_success_with_an_id_is_delivered(expected_id, status, body) -> None:
    """Any 2xx counts; the id is taken from the first place that has one."""
    reading = PROVIDER.read_response(Answered(status=status, body=json.dumps(body).encode()), NOW)
    assert (Verdict.DELIVERED, expected_id) == (reading.verdict, reading.external_id)


HTML = b"<html><body>Not here</body></html>"


@pytest.mark.parametrize(
    ("expected", "status", "body"),
    [
        # a success nobody can identify
        (Verdict.UNKNOWN, 201, b""),
        (Verdict.UNKNOWN, 200, b'{"success": true, "data": {}}'),
        (Verdict.UNKNOWN, 200, b'{"success": true, "data": {"uuid": true}}'),
        (Verdict.UNKNOWN, 200, b"[1]"),
        (Verdict.UNKNOWN, 200, HTML),
        (Verdict.UNKNOWN, 204, b""),
        (Verdict.UNKNOWN, 200, b"\xff\xfe\x00"),
        (Verdict.UNKNOWN, 200, b"[" * 100_000),
        (Verdict.UNKNOWN, 200, b'{"id": ' + b"9" * 10_000 + b"}"),
        # the server's side
        (Verdict.UNKNOWN, 500, refusal()),
        (Verdict.UNKNOWN, 502, HTML),
        (Verdict.UNKNOWN, 504, b""),
        (Verdict.UNKNOWN, 501, b""),
        (Verdict.UNKNOWN, 507, b""),
        # not listed, or not in the vendor's form
        (Verdict.UNKNOWN, 400, HTML),
        (Verdict.UNKNOWN, 409, b'{"message": "conflict"}'),
        (Verdict.UNKNOWN, 422, b"null"),
        (Verdict.UNKNOWN, 402, refusal()),
        (Verdict.UNKNOWN, 413, refusal()),
        (Verdict.UNKNOWN, 418, b""),
        (Verdict.UNKNOWN, 101, b""),
        (Verdict.UNKNOWN, 999, b""),
        # busy
        (Verdict.BUSY, 408, b""),
        (Verdict.BUSY, 425, b""),
        (Verdict.BUSY, 429, refusal(code="RATE_LIMIT_EXCEEDED")),
        (Verdict.BUSY, 503, HTML),
        # refused
        (Verdict.REFUSED, 400, refusal(code="INVALID_JSON")),
        (Verdict.REFUSED, 404, refusal(code="AGENT_NOT_FOUND")),
        (Verdict.REFUSED, 409, refusal(code="webhook_limit_reached")),
        (Verdict.REFUSED, 422, refusal(field="title", details="is required")),
        (Verdict.REFUSED, 422, LARAVEL),
        (Verdict.REFUSED, 422, b'{"success": false}'),
        # the wrong address or the wrong key
        (Verdict.PAUSE, 301, b""),
        (Verdict.PAUSE, 308, HTML),
        (Verdict.PAUSE, 304, b""),
        (Verdict.PAUSE, 404, HTML),
        (Verdict.PAUSE, 404, b'{"message": "The route api/tasks could not be found."}'),
        (Verdict.PAUSE, 404, refusal(code="ENDPOINT_NOT_FOUND")),
        (Verdict.PAUSE, 405, b""),
        (Verdict.PAUSE, 405, refusal()),
        (Verdict.PAUSE, 401, refusal(code="INVALID_AUTH_TOKEN")),
        (Verdict.PAUSE, 403, refusal(code="FORBIDDEN")),
    ],
)
def test_what_an_answer_means(expected, status, body) -> None:
    """The verdict table, row by row."""
    assert expected is PROVIDER.read_response(Answered(status=status, body=body), NOW).verdict


@pytest.mark.parametrize(
    ("expected", "status", "body"),
    [
        (True, 403, refusal()),
        (True, 403, HTML),
        (True, 404, refusal("no such endpoint")),
        (False, 404, HTML),
        (False, 401, refusal()),
        (False, 308, b""),
    ],
)
def test_when_the_probe_has_to_tell(expected, status, body) -> None:
    """What may concern one task only is believed after the probe; what certainly concerns all is not."""
    assert expected is PROVIDER.read_response(Answered(status=status, body=body), NOW).probe_first


@pytest.mark.parametrize(
    ("expected", "sent"),
    [
        (Verdict.BUSY, NeverSent(error="ConnectionRefusedError")),
        (Verdict.UNKNOWN, NoAnswer(error="TimeoutError")),
    ],
)
def test_what_silence_means(expected, sent) -> None:
    """Never sent is busy; sent without an answer is unknown; the reason has the error."""
    reading = PROVIDER.read_response(sent, NOW)
    assert expected is reading.verdict
    assert sent.error in (reading.reason or "")


@pytest.mark.parametrize(
    ("expected", "status", "body"),
    [
        (
            ("422 The data is invalid; scheduled_at: must be in the future. Check this machine's clock, " + AFTERWARDS),
            422,
            refusal("The data is invalid.", field="scheduled_at", details="must be in the future"),
        ),
        (
            (
                "422 The given data was invalid; scheduled_at: must be in the future; title: too long. "
                "Check this machine's clock, " + AFTERWARDS
            ),
            422,
            LARAVEL,
        ),
        (
            ("404 No such agent. Compare `agent` of the rule with the agents of the workspace, " + AFTERWARDS),
            404,
            refusal("No such agent", code="AGENT_NOT_FOUND"),
        ),
        (
            (
                "422 type: must be one of call, message. Leadwire sends the documented names of types and never others: "
                "ask Mindhunters which ones this workspace takes, " + AFTERWARDS
            ),
            422,
            refusal("", field="type", details="must be one of call, message", code=""),
        ),
        (
            "409 webhook_limit_reached. Correct the rule or the contact, " + AFTERWARDS,
            409,
            refusal("", code="webhook_limit_reached"),
        ),
        (
            (
                "401 INVALID_AUTH_TOKEN. Mindhunters does not accept the key: check LEADWIRE_MINDHUNTERS_TOKEN; "
                "its tasks wait meanwhile."
            ),
            401,
            refusal("the token fake-token is wrong", code="INVALID_AUTH_TOKEN"),
        ),
        (
            (
                "404. This is not the task address of Mindhunters: check LEADWIRE_MINDHUNTERS_URL, which is the root of the API, "
                "such as https://x.mindhunters.ai/api/v1; its tasks wait meanwhile."
            ),
            404,
            HTML,
        ),
    ],
)
def test_reasons_lead_to_the_remedy(expected, status, body) -> None:
    """A reason begins with the status and the provider's own words and ends with what to do."""
    assert expected == PROVIDER.read_response(Answered(status=status, body=body), NOW).reason


def test_reasons_are_bounded_and_readable() -> None:
    """A long or dirty message is cut, cleaned and put on one line; the remedy stays."""
    dirty = "\x1b[31mred\r\nline\u202e\u2028two\ud800 " + "long " * 1000
    reason = PROVIDER.read_response(
        Answered(status=422, body=refusal(dirty, field="title", details="x" * 900)), NOW
    ).reason
    assert reason is not None
    assert len(reason) <= REASON_CHARACTERS
    assert reason.isprintable()
    assert reason.startswith("422 [31mred line two long ")
    assert reason.endswith("Correct `title` of the rule, " + AFTERWARDS)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["success", "message", "error", "errors", "code", "field", "details", "data", "uuid", "id"])
            | st.text(max_size=5),
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
    reading = PROVIDER.read_response(Answered(status=status, headers=headers, body=body), NOW)
    assert isinstance(reading.verdict, Verdict)
    assert len(reading.reason or "") <= REASON_CHARACTERS
    assert (reading.reason or "").isprintable()
    assert reading.verdict is not Verdict.DELIVERED or reading.external_id
    assert (reading.verdict is Verdict.DELIVERED) <= (200 <= status <= 299)


def test_a_busy_answer_carries_the_wish() -> None:
    """Retry-After of a 429 reaches the caller; that of another status does not."""
    expected = NOW + timedelta(seconds=90)
    headers = {"retry-after": "90"}
    assert expected == PROVIDER.read_response(Answered(status=429, headers=headers), NOW).retry_after_at
    assert PROVIDER.read_response(Answered(status=500, headers=headers), NOW).retry_after_at is None


@given(st.text(), st.integers(10, 60))
def test_foreign_text_becomes_one_printable_line(text, limit) -> None:
    """No text survives with control, formatting or broken characters, or longer than asked."""
    line = one_line(text, limit)
    assert len(line) <= limit
    assert line.isprintable()


def test_the_credential_and_the_probe() -> None:
    """The token travels as a bearer token; the probe is a GET that lists one task."""
    assert {"Authorization": "Bearer fake-token"} == PROVIDER.auth_headers("fake-token")
    probe = PROVIDER.probe_request()
    assert ("GET", "/tasks", (("per_page", "1"),), None) == (probe.method, probe.path, probe.query, probe.json)

"""The order of one request, what its sender is told, and that nothing a stranger sends is ever a 5xx."""

from __future__ import annotations

import hashlib
import hmac
import io
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ingress.app import RequestOutcome, create_app
from ingress.request_counts import RequestCounts
from ingress.sources import Source, WebhookRequest
from rules.vocabulary import EventState, LedgerBusyError, LedgerError
from worker.ledger.types import Delivery, IncomingEvent, Recorded

SECRET = "fake-secret-of-the-tests"
ENV = {"KEY": SECRET}
GENERIC = "{extend: generic, secrets: [{env: KEY}], region: CL}"
SIGNED = """
auth: {hmac: {header: X-Sig}}
secrets: [{env: KEY}]
body: {format: FORMAT}
split: "items[*]"
event: {type: event, id: id}
handshake: [{ignore: {match: {event: ping}}}, {json_challenge: {match: {event: ask}, answer: value}}]
ack: {status: 202, busy_status: 429}
"""
NOW = datetime(2026, 3, 2, 13, 0, tzinfo=UTC)
GOOD = json.dumps({"items": [{"event": "lead.created", "id": "e1"}, {"event": "lead.created", "id": "e2"}]}).encode()


@dataclass
class Book:
    """A ledger that remembers what it was given; `fault` is raised instead, where there is one."""

    fault: Exception | None = None
    deliveries: list[Delivery] = field(default_factory=list)
    events: list[IncomingEvent] = field(default_factory=list)

    @property
    def inbox(self):
        """Its inbox."""
        return self

    def record(self, delivery: Delivery, events: Sequence[IncomingEvent]) -> Recorded:
        """Keep what is new, as the real one does."""
        if self.fault:
            raise self.fault
        known = {(one.event.source, one.event.type, one.dedupe_key) for one in self.events}
        new = [one for one in events if (one.event.source, one.event.type, one.dedupe_key) not in known]
        self.deliveries.append(delivery)
        self.events += new
        ids = tuple(one.event.id for one in new if one.state is EventState.RECEIVED)
        return Recorded(event_ids=ids, duplicates=len(events) - len(new), conflicts=0)


@dataclass
class Post:
    """A dispatcher that remembers; or one that cannot."""

    fault: Exception | None = None
    ids: list[str] = field(default_factory=list)

    def events(self, ids: Sequence[str]) -> None:
        """Take the ids."""
        if self.fault:
            raise self.fault
        self.ids += ids


def _signed(body: bytes, method: str = "POST", **headers: str) -> WebhookRequest:
    signature = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return WebhookRequest(method=method, path="/webhooks/crm", headers={"x-sig": signature, **named}, body=body)


@dataclass
class Told:
    """What a sender was told, and what was counted."""

    status: int
    headers: dict[str, str]
    body: bytes
    outcome: RequestOutcome
    reason: str


def _accept(received: WebhookRequest, source: Source, ledger: Book | None = None, post: Post | None = None) -> Told:
    numbers, counts = count(1), RequestCounts(None)
    ids = {"now": lambda: NOW, "new_id": lambda: f"ev_{next(numbers)}"}
    app = create_app({"crm": source}, ledger or Book(), post or Post(), counts, **ids)
    environ = {
        "REQUEST_METHOD": received.method,
        "PATH_INFO": "/webhooks/crm",
        "QUERY_STRING": received.query_string.decode("latin-1"),
        "SERVER_NAME": "x",
        "SERVER_PORT": "80",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(received.body),
        **{f"HTTP_{name.upper().replace('-', '_')}": text for name, text in received.headers.items()},
        "CONTENT_TYPE": received.headers.get("content-type", ""),
        "CONTENT_LENGTH": str(len(received.body)),
    }
    started: list[object] = []
    body = b"".join(app(environ, lambda *given: started.extend(given)))
    with counts.paused() as counted:
        ((_, outcome, reason),) = counted
    headers = {name.lower(): value for name, value in started[1]}
    return Told(int(started[0][:3]), headers, body, RequestOutcome(outcome), reason)


@pytest.fixture
def source(make_source) -> Source:
    """Return a source that signs, splits and asks."""
    return make_source(SIGNED.replace("FORMAT", "json"), ENV)


def test_a_good_request_is_recorded_then_dispatched(source) -> None:
    """The answer says how many events are new; their ids go to the broker; the raw body is kept, its signature not."""
    ledger, post = Book(), Post()
    reply = _accept(
        _signed(GOOD, user_agent="crm/1", authorization="x", cookie="y", content_type="application/json"),
        source,
        ledger,
        post,
    )

    assert (202, {"status": "accepted", "events": 2, "duplicates": 0}) == (reply.status, json.loads(reply.body))
    assert RequestOutcome.ACCEPTED is reply.outcome
    assert ["ev_1", "ev_2"] == post.ids
    (delivery,) = ledger.deliveries
    assert ("crm", NOW, GOOD, hashlib.sha256(GOOD).hexdigest()) == (
        delivery.source,
        delivery.received_at,
        delivery.body,
        delivery.content_hash,
    )
    assert {"content-type", "user-agent"} == set(delivery.headers)
    assert delivery.id not in post.ids


def test_a_redelivery_is_told_apart(source) -> None:
    """The same request again is a success without events, and nothing is dispatched."""
    ledger, post = Book(), Post()
    _accept(_signed(GOOD), source, ledger)
    reply = _accept(_signed(GOOD), source, ledger, post)

    assert {"status": "accepted", "events": 0, "duplicates": 2} == json.loads(reply.body)
    assert [] == post.ids


@pytest.mark.parametrize("signature", [None, "", "N/A", "0" * 64, "ñ", "\ud800", "not hex"])
def test_what_is_not_verified_is_never_stored(signature, source, caplog) -> None:
    """401 with the reason's name, nothing recorded, a line in the log without anything of the request."""
    ledger = Book()
    headers = {} if signature is None else {"x-sig": signature}
    received = WebhookRequest(method="POST", path="/", headers=headers, body=b'{"phone": "+56911112222"}')
    with caplog.at_level(logging.WARNING):
        reply = _accept(received, source, ledger)

    assert (401, RequestOutcome.REJECTED) == (reply.status, reply.outcome)
    assert reply.reason in {"missing", "malformed", "mismatch"}
    assert [] == ledger.deliveries
    assert "+569" not in caplog.text
    assert "crm: rejected" in caplog.text


def test_size_comes_before_everything(source, make_source) -> None:
    """A body over the limit is 413 whatever its signature; a source may have a limit of its own."""
    ledger = Book()
    small = make_source(GENERIC.replace("region: CL", "body: {limit_bytes: 1024}"), ENV)

    assert 413 == _accept(_signed(b"x" * (1024 * 1024 + 1)), source, ledger).status
    assert 202 == _accept(_signed(b"x" * (1024 * 1024)), source, ledger).status
    assert 413 == _accept(WebhookRequest(method="POST", path="/", body=b"x" * 1025), small).status
    assert 401 == _accept(WebhookRequest(method="POST", path="/", body=b"x" * 1024), small).status


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_other_methods_are_405(method, source) -> None:
    """A configured address is never 404; what it takes is said."""
    reply = _accept(_signed(GOOD, method), source)

    assert (405, "GET, OPTIONS, POST") == (reply.status, reply.headers["allow"])


def test_questions_inside_a_body_are_answered_after_the_signature(source) -> None:
    """A ping makes no event; a challenge is echoed; neither is answered without its signature."""
    ledger = Book()

    assert 200 == _accept(_signed(b'{"event": "ping"}'), source, ledger).status
    assert b'{"challenge": "abc"}' == _accept(_signed(b'{"event": "ask", "value": "abc"}'), source, ledger).body
    assert 400 == _accept(_signed(b'{"event": "ask", "value": "<b>"}'), source, ledger).status
    assert (
        401 == _accept(WebhookRequest(method="POST", path="/", body=b'{"event": "ask", "value": "abc"}'), source).status
    )
    assert [] == ledger.deliveries


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b"[]", b"{}", b'{"items": 1e999}', b"[" * 100_000, b"null", b'"x"']
)
def test_verified_and_unreadable_is_kept(body, source) -> None:
    """Success, because the sender would only repeat it; one event that says why; redelivered, it is a duplicate."""
    ledger, post = Book(), Post()
    reply = _accept(_signed(body), source, ledger, post)
    again = _accept(_signed(body), source, ledger, post)

    assert (202, {"status": "accepted", "events": 0, "duplicates": 0, "unreadable": 1}) == (
        reply.status,
        json.loads(reply.body),
    )
    assert 1 == json.loads(again.body)["duplicates"]
    (event,) = ledger.events
    assert (EventState.UNREADABLE, "unreadable") == (event.state, event.event.type)
    assert event.reason
    assert [] == post.ids


def test_a_storage_that_is_busy_is_the_sources_busy_status(source, make_source) -> None:
    """The sender is asked to come again, with the status that makes this sender do so."""
    for fault in (LedgerBusyError("disk full"), LedgerError("broken"), RuntimeError("+56911112222"), RecursionError()):
        reply = _accept(_signed(GOOD), source, Book(fault=fault))
        assert (429, "10", RequestOutcome.BUSY) == (reply.status, reply.headers["retry-after"], reply.outcome)
    received = WebhookRequest(method="POST", path="/", headers={"x-webhook-secret": SECRET}, body=b'{"event": "a"}')
    assert 503 == _accept(received, make_source(GENERIC, ENV), Book(fault=LedgerBusyError("x"))).status


def test_a_fault_of_ours_is_logged_without_the_payload(source, caplog) -> None:
    """The log names the kind and the place of an unexpected fault, not its message."""
    _accept(_signed(GOOD), source, Book(fault=RuntimeError("+56911112222")))

    assert "RuntimeError at " in caplog.text
    assert "+569" not in caplog.text


def test_a_broker_that_is_away_changes_nothing(source) -> None:
    """What is on disk is found by the sweep."""
    ledger = Book()

    assert 202 == _accept(_signed(GOOD), source, ledger, Post(fault=OSError("no broker"))).status
    assert 2 == len(ledger.events)


def test_a_source_may_answer_in_its_own_words(make_source) -> None:
    """Salesforce takes nothing but its acknowledgement for success."""
    own = make_source(
        "{extend: generic, secrets: [{env: KEY}], ack: {status: 201, body: '<Ack>true</Ack>', content_type: text/xml}}",
        ENV,
    )
    received = WebhookRequest(method="POST", path="/", headers={"x-webhook-secret": SECRET}, body=b'{"event": "a"}')
    reply = _accept(received, own)

    assert (201, b"<Ack>true</Ack>", "text/xml") == (reply.status, reply.body, reply.headers["content-type"])


HOSTILE = [
    b'{"items":' * 100_000,
    b'{"items": [' + b'{"event":' * 5_000 + b"1" + b"}" * 5_000 + b"]}",
    b'{"items": [{"event": "\\ud800\\udc00\\udfff", "id": "\\u0000"}]}',
    b'{"items": [{"event": "a", "id": ' + b"9" * 4299 + b"}]}",
    b'{"items": [{"event": "a", "id": ' + b"9" * 5000 + b"}]}",
    b'{"items": [{"event": 1e308, "id": -0.0}, {"event": NaN}]}',
    b'{"items": [{"event": "a", "event": "b", "id": 1, "id": 2}]}',
    b'{"items": {"0": {"event": "a"}, "7": {"event": "b"}}}',
    b'{"items": [{"event": "' + b"a" * 900_000 + b'", "id": "' + b"b" * 100_000 + b'"}]}',
    b'{"items": [' + b"1," * 400_000 + b"1]}",
    b"items[0][event]=a&items[0][id]=1",
    b"items" + b"[0]" * 300_000 + b"=1",
    b"items[99999999][event]=a",
    "&".join(f"items[{number}][event]=a" for number in range(20_000)).encode(),
    "&".join(f"items[{number}][event]=a" for number in range(20_001)).encode(),
    b"&" * 1_000_000,
    b"=" * 1_000_000,
    b"%" * 1_000_000,
    b"%00%ff%fe=%ud800",
    b"<!DOCTYPE x ["
    + b"".join(b'<!ENTITY e%d "%s">' % (n, b"&e%d;" % (n - 1) * 10) for n in range(1, 12))
    + b"]><items>&e11;</items>",
    b"<items>" * 140_000,
    b"<items " + b" ".join(b'a%d="1"' % n for n in range(50_000)) + b"/>",
    b"\x00" * 1_000_000,
    b"\xff\xfe" + "<items/>".encode("utf-16-le"),
    '{"items": []}'.encode("utf-16"),
]


@pytest.mark.parametrize("format_", ["json", "form", "form-brackets", "xml", "auto"])
@pytest.mark.parametrize("body", HOSTILE, ids=lambda body: f"{body[:14]!r}..{len(body)}")
def test_signed_garbage_is_never_a_5xx(body, format_, make_source) -> None:
    """Whatever a holder of the secret sends, the answer is a success and what was stored can be stored."""
    ledger = Book()
    content_type = "application/x-www-form-urlencoded" if b"=" in body[:40] else "application/json;charset=\xff"
    reply = _accept(
        _signed(body, content_type=content_type), make_source(SIGNED.replace("FORMAT", format_), ENV), ledger
    )

    assert 202 == reply.status
    assert RequestOutcome.ACCEPTED is reply.outcome
    for one in ledger.events:
        json.dumps(one.event.view(), allow_nan=False, ensure_ascii=False).encode()


_TEXT = st.text(st.characters(codec=None), max_size=60)


@given(
    body=st.binary(max_size=500) | _TEXT.map(lambda text: json.dumps({"items": [text], "event": text}).encode()),
    content_type=_TEXT
    | st.sampled_from(["application/json", "text/xml", "application/x-www-form-urlencoded", "multipart/form-data"]),
    key=_TEXT,
    method=st.sampled_from(["POST", "POST", "POST", "GET", "OPTIONS", "PUT"]),
    query=st.binary(max_size=60),
    good=st.booleans(),
)
@example(body=b"\x1f\x8b", content_type="application/json", key="", method="POST", query=b"", good=True)
def test_no_request_whatever_is_a_5xx(body, content_type, key, method, query, good, make_source) -> None:
    """Known and unknown senders, any bytes, any headers: an answer below 500, and stored only when verified."""
    for format_ in ("json", "auto"):
        ledger = Book()
        source = make_source(SIGNED.replace("FORMAT", format_), ENV)
        headers = dict(_signed(body).headers) if good else {"x-sig": key}
        headers |= {"content-type": content_type, "idempotency-key": key, "webhook-request-origin": key}
        received = WebhookRequest(method=method, path="/webhooks/crm", query_string=query, headers=headers, body=body)
        reply = _accept(received, source, ledger)
        assert reply.status < 500
        assert reply.status != 429
        assert good or not ledger.deliveries

"""What an item becomes: its identity, its contact, its moments, and what happens to an item that cannot be read."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingress.sources import Unreadable, WebhookRequest
from ingress.sources.mapping import bounded, country_of, email_of, moment_of, phone_of
from ingress.sources.schema import TimeUnit
from rules.vocabulary import EventState

ENV = {"KEY": "ZmFrZS1zZWNyZXQtb2YtdGhlLXRlc3Rz"}
GENERIC = "{extend: generic, secrets: [{env: KEY}], region: CL}"
HUBSPOT = "{extend: hubspot, secrets: [{env: KEY}]}"
STANDARD = "{extend: standard-webhooks, secrets: [{env: KEY}]}"


@pytest.fixture
def read(make_source, now):
    """Return a function that reads a document with a source."""

    def do(document, text: str = GENERIC, *, raw: bytes | None = None, **headers: str):
        received = WebhookRequest(
            method="POST",
            path="/",
            headers={name.replace("_", "-"): value for name, value in headers.items()},
            body=json.dumps(document).encode() if raw is None else raw,
        )
        return make_source(text, ENV).read(received, now, lambda: "ev_1")

    return do


@pytest.mark.parametrize(
    ("document", "key"),
    [
        ({"event": "lead.created", "event_id": "e1"}, "id:e1"),
        ({"event": "lead.created", "event_id": 12}, "id:12"),
        ({"event": "lead.created", "event_id": "e1", "id": "r1"}, "id:e1"),
        ({"event": "lead.created", "id": "e1", "data": {"id": "r1"}}, "id:e1"),
        ({"event": "lead.created", "id": "e1", "contact": {"name": "Ana"}}, "id:e1"),
        ({"event": "lead.created", "event_id": "e" * 255}, "id:" + "e" * 255),
    ],
)
def test_an_event_with_an_id_is_recognised_for_ever(document, key, read) -> None:
    """The id is the key, whatever else changes."""
    (found,) = read(document)

    assert (key, None) == (found.dedupe_key, found.until_at)


def test_what_identifies_an_event_without_an_id(read, now) -> None:
    """The hash of its content, for ten minutes; a record's id in flat fields makes that for ever."""
    (anonymous,) = read({"event": "lead.created", "phone": "1"})
    (same,) = read(None, raw=b'{ "phone":"1", "event":"lead.created" }')
    (other,) = read({"event": "lead.created", "phone": "2"})
    (flat,) = read({"event": "lead.updated", "id": "r1", "stage": "a"})
    (changed,) = read({"event": "lead.updated", "id": "r1", "stage": "b"})
    (again,) = read({"event": "lead.updated", "id": "r1", "stage": "a"})
    (long,) = read({"event": "lead.created", "event_id": "e" * 1000})

    assert now + timedelta(minutes=10) == anonymous.until_at
    assert anonymous.dedupe_key == same.dedupe_key != other.dedupe_key
    assert flat.dedupe_key == again.dedupe_key != changed.dedupe_key
    assert flat.until_at is None
    assert (None, True) == (long.until_at, len(long.dedupe_key) < 100)


def test_an_id_outside_the_items_is_told_apart(read) -> None:
    """One Idempotency-Key over a list is a key for each of its items."""
    found = read([{"event": "a", "n": 1}, {"event": "a", "n": 2}], idempotency_key="k")
    (single,) = read({"event": "a", "n": 1}, idempotency_key="k")

    assert ["id:k#0", "id:k#1"] == [one.dedupe_key for one in found]
    assert "id:k" == single.dedupe_key


def test_an_id_that_the_signature_does_not_cover_proves_nothing(make_source, now) -> None:
    """A captured body sent again under a new unsigned id is recognised; an id in the body is believed before it."""
    text = """
auth: {hmac: {header: X-Sig}}
secrets: [{env: KEY}]
event: {type: event, id: ["header:X-Id", event_id]}
"""
    signed = text.replace("header: X-Sig}", "header: X-Sig, signed: [body, 'header:X-Id']}").replace(", event_id]", "]")

    def key(source_text: str, body: bytes, header: str) -> str:
        received = WebhookRequest(method="POST", path="/", headers={"x-id": header} if header else {}, body=body)
        (found,) = make_source(source_text, ENV).read(received, now, lambda: "ev_1")
        return found.dedupe_key

    assert key(text, b'{"event":"a"}', "1") == key(text, b'{"event":"a"}', "2") == key(text, b'{"event":"a"}', "")
    assert "id:e1" == key(text, b'{"event":"a","event_id":"e1"}', "2")
    assert ("id:1", "id:2") == (key(signed, b'{"event":"a"}', "1"), key(signed, b'{"event":"a"}', "2"))


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"contact": {"name": "Ana", "phone": "+56911112222"}}, ("Ana", "+56911112222", None)),
        ({"lead": {"name": "Ana", "phone": "9 1111 2222", "country": "cl"}}, ("Ana", "+56911112222", "CL")),
        ({"data": {"name": "Ana", "phone": "911112222"}}, ("Ana", "+56911112222", None)),
        ({"name": "Ana", "phone_number": "911112222", "country": "Chile"}, ("Ana", "+56911112222", None)),
        ({"first_name": "Ana", "last_name": "Rojas", "mobile": "+1 415 555 0132"}, ("Ana Rojas", "+14155550132", None)),
        ({"first_name": "Ana"}, ("Ana", None, None)),
        ({"phone": "415 555 0132", "country": "US"}, (None, "+14155550132", "US")),
        ({"contact": "Ana", "phone": ["x"]}, (None, None, None)),
        ({"contact": {"name": {"first": "Ana"}, "phone": True}}, (None, None, None)),
    ],
)
def test_the_quick_start_finds_the_contact(document, expected, read) -> None:
    """Under `contact`, `lead`, `data` or flat; in the region's own notation or with a country code."""
    (found,) = read({"event": "lead.created", **document})

    assert expected == (found.event.contact.name, found.event.contact.phone, found.event.contact.country)
    assert EventState.RECEIVED is found.state


def test_a_phone_that_is_none_is_left_out_and_noted(read) -> None:
    """The raw value stays in data, the reason says what to do and does not repeat it."""
    (found,) = read({"event": "lead.created", "phone": "call me"})

    assert found.event.contact.phone is None
    assert "call me" == found.event.data["phone"]
    assert EventState.RECEIVED is found.state
    assert "region" in (found.reason or "")
    assert "call me" not in (found.reason or "")


@pytest.mark.parametrize(
    ("document", "data"),
    [
        ({"event": "a", "data": {"x": 1}, "lead": {"y": 2}}, {"x": 1}),
        ({"type": "a", "lead": {"y": 2}}, {"y": 2}),
        ({"event_type": "a", "z": 3}, {"event_type": "a", "z": 3}),
    ],
)
def test_what_rules_see_as_data(document, data, read) -> None:
    """`data`, else `lead`, else the whole item."""
    (found,) = read(document)

    assert ("a", data) == (found.event.type, found.event.data)


def test_one_bad_item_leaves_its_neighbours_alone(read) -> None:
    """Each item is an event of its own; one without a type is kept as unreadable."""
    found = read(
        [{"event": "lead.created"}, 7, None, {"x": 1}, [], {"event": {"a": 1}}, {"event": "lead.created", "n": 2}]
    )

    assert ["received", *["unreadable"] * 5, "received"] == [one.state for one in found]
    assert all(one.reason for one in found if one.state is EventState.UNREADABLE)
    assert [] == read([])


def test_too_many_events_are_one_unreadable_delivery(read) -> None:
    """A body of a hundred thousand tiny items does not become a hundred thousand rows."""
    assert 1000 == len(read([{"event": "a"}] * 1000))
    assert isinstance(read([1] * 100_000), Unreadable)


@pytest.mark.parametrize(
    ("raw", "event_type"),
    [
        ({"subscriptionType": "contact.creation"}, "contact.created"),
        ({"subscriptionType": "contact.propertyChange", "propertyName": "x"}, "contact.updated"),
        ({"subscriptionType": "deal.creation"}, "deal.created"),
        ({"subscriptionType": "deal.propertyChange", "propertyName": "dealstage"}, "deal.stage_changed"),
        ({"subscriptionType": "deal.propertyChange", "propertyName": "amount"}, "deal.updated"),
        ({"subscriptionType": "object.creation", "objectTypeId": "0-1"}, "contact.created"),
        ({"subscriptionType": "object.creation", "objectTypeId": "0-3"}, "deal.created"),
        ({"subscriptionType": "object.creation", "objectTypeId": "2-9"}, "object.creation"),
        (
            {"subscriptionType": "object.propertyChange", "objectTypeId": "0-3", "propertyName": "dealstage"},
            "deal.stage_changed",
        ),
        ({"subscriptionType": "object.propertyChange", "objectTypeId": "0-3", "propertyName": "x"}, "deal.updated"),
        ({"subscriptionType": "contact.merge"}, "contact.merge"),
    ],
)
def test_hubspots_words(raw, event_type, read) -> None:
    """Classic and generic subscriptions get the same names; unknown ones pass under their own."""
    (found,) = read([{"objectId": 9001, "eventId": 1, "occurredAt": 1772456400000, **raw}], HUBSPOT)

    assert event_type == found.event.type
    assert event_type.partition(".")[0] == found.event.subject.kind


def test_hubspots_changes_and_retries(read, now) -> None:
    """A changed property is told with its new value; another attempt is the same event; the contact's id is a contact's."""
    item = {
        "eventId": 1,
        "portalId": 5,
        "objectId": 9001,
        "occurredAt": 1772456400000,
        "subscriptionType": "contact.propertyChange",
        "propertyName": "phone",
        "propertyValue": "+56911112222",
        "attemptNumber": 0,
    }
    first, retried, deal = read(
        [item, {**item, "attemptNumber": 3}, {**item, "subscriptionType": "deal.propertyChange"}], HUBSPOT
    )

    assert {"phone": {"from": None, "to": "+56911112222"}} == first.event.changed
    assert (first.dedupe_key, first.content_hash) == (retried.dedupe_key, retried.content_hash)
    assert (0, 3) == (first.event.attempt, retried.event.attempt)
    assert now == first.event.occurred_at
    assert ("9001", "+56911112222", None, None) == (
        first.event.contact.id,
        first.event.contact.phone,
        deal.event.contact.id,
        deal.event.contact.phone,
    )
    (alone,) = read(item, HUBSPOT)
    assert first.dedupe_key == alone.dedupe_key


def test_standard_webhooks(read) -> None:
    """The id is the header's, the contact stands in data."""
    document = {
        "type": "lead.created",
        "timestamp": "2026-03-02T12:00:00Z",
        "data": {"id": "L1", "contact": {"phone": "+56911112222"}},
    }
    (found,) = read(document, STANDARD, webhook_id="msg_1")

    assert ("id:msg_1", "+56911112222", "L1") == (found.dedupe_key, found.event.contact.phone, found.event.subject.id)
    assert document["data"] == found.event.data


NOW = datetime(2026, 3, 2, 13, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("document", "kept"),
    [
        ({"event": "a", "pin": "12345", "x": "12345"}, b'{"event": "a", "pin": "[redacted]", "x": "[redacted]"}'),
        ({"event": "a", "pin": 'a"\u00f1&<'}, b'{"event": "a", "pin": "[redacted]"}'),
        ({"event": "a", "pin": None}, b'{"event": "a", "pin": null}'),
        ({"event": "a", "pin": "a"}, b""),
        ({"event": "a", "pin": [f"{number:05d}" for number in range(101)]}, b""),
    ],
)
def test_what_is_redacted_is_never_stored(document, kept, make_source, now) -> None:
    """It is taken out of the data and of the raw body, which is not kept where that cannot be done well."""
    source = make_source("{extend: generic, secrets: [{env: KEY}], redact: 'pin[*]'}", ENV)
    received = WebhookRequest(method="POST", path="/", body=json.dumps(document).encode())
    found = source.read(received, now, lambda: "ev_1")

    assert kept == source.kept(received)[1]
    assert not isinstance(found, Unreadable)
    assert found[0].event.data["pin"] in (None, "[redacted]", ["[redacted]"] * 101)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "event",
                    "type",
                    "id",
                    "event_id",
                    "data",
                    "lead",
                    "contact",
                    "phone",
                    "name",
                    "occurred_at",
                    "country",
                    "subscriptionType",
                    "objectId",
                    "propertyName",
                    "attemptNumber",
                    "occurredAt",
                    "consent",
                ]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=25,
)


@given(document=_JSON, header=st.text(max_size=20))
def test_any_document_is_read_or_kept_as_unreadable(document, header, make_source) -> None:
    """Reading never raises, and what comes out can be stored and has a key."""
    headers = {"idempotency-key": header, "webhook-id": header}
    received = WebhookRequest(method="POST", path="/", headers=headers, body=json.dumps(document).encode())
    for text in (GENERIC, HUBSPOT, STANDARD):
        found = make_source(text, ENV).read(received, NOW, lambda: "ev_1")
        again = make_source(text, ENV).read(received, NOW, lambda: "ev_1")
        assert found == again
        for one in [] if isinstance(found, Unreadable) else found:
            assert 0 < len(one.dedupe_key) < 300
            assert 0 < len(one.event.type) <= 200
            json.dumps(one.event.view(), allow_nan=False, ensure_ascii=False).encode()


AT = datetime(2026, 3, 2, 13, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("raw", "region", "expected"),
    [
        ("+56 9 1111 2222", None, "+56911112222"),
        ("+56911112222", "US", "+56911112222"),
        ("9 1111 2222", "CL", "+56911112222"),
        ("911112222", "CL", "+56911112222"),
        ("56911112222", "CL", "+56911112222"),
        (56911112222, "CL", "+56911112222"),
        ("(415) 555-0132", "US", "+14155550132"),
        ("0056911112222", None, "+56911112222"),
        (" 56911112222", None, "+56911112222"),
        ("tel:+56-9-1111-2222", None, "+56911112222"),
        ("911112222", None, None),
        ("56911112222", None, None),
        ("not a phone", "CL", None),
        ("12", "CL", None),
        ("+", None, None),
        ("", "CL", None),
        (None, "CL", None),
        (True, "CL", None),
        ([], "CL", None),
        ({"a": 1}, "CL", None),
        ("9" * 100, "CL", None),
        ("+999999999999", None, None),
        ("\u0669\u0661\u0661", "CL", None),
        ("\x00", "CL", None),
    ],
    ids=repr,
)
def test_phones(raw, region, expected) -> None:
    """A phone is E.164 or none: what cannot be read is never guessed."""
    assert expected == phone_of(raw, region)


@given(
    raw=st.text(max_size=70) | st.integers() | st.floats() | st.none(),
    region=st.sampled_from([None, "CL", "US", "ZZ", "xx"]),
)
def test_no_phone_raises(raw, region) -> None:
    """Whatever stands where a phone is expected, the result is E.164 or nothing."""
    found = phone_of(raw, region)

    assert found is None or (found[0] == "+" and found[1:].isascii() and found[1:].isdigit())


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("cl", "CL"),
        (" CL ", "CL"),
        ("Chile", None),
        ("CHL", None),
        ("", None),
        (None, None),
        (56, None),
        ("ñl", None),
        (["CL"], None),
    ],
)
def test_countries(raw, expected) -> None:
    """Two letters are a country; names are not guessed at."""
    assert expected == country_of(raw)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (" Ana@Example.com ", "Ana@Example.com"),
        ("ana", None),
        ("@x", None),
        ("a@", None),
        ("a\n@b", None),
        ("a" * 400 + "@b.c", None),
        (7, None),
    ],
)
def test_email_addresses(raw, expected) -> None:
    """An address is kept as it came, trimmed; what cannot be one is none."""
    assert expected == email_of(raw)


@pytest.mark.parametrize(
    ("raw", "unit", "expected"),
    [
        ("2026-03-02T13:00:00Z", "iso", AT),
        ("2026-03-02T10:00:00-03:00", "iso", AT),
        ("2026-03-02 13:00:00", "iso", AT),
        ("2026-03-02T13:00:00.000Z", "iso", AT),
        ("2026-03-02", "iso", AT - timedelta(hours=13)),
        (1772456400, "s", AT),
        ("1772456400", "s", AT),
        (1772456400000, "ms", AT),
        (1772456400, "auto", AT),
        ("1772456400000", "auto", AT),
        ("2026-03-02T13:00:00Z", "auto", AT),
        ("yesterday", "iso", None),
        ("", "iso", None),
        (None, "iso", None),
        ("NaN", "s", None),
        (1e300, "s", None),
        ("9" * 17, "ms", None),
        ("9" * 5000, "s", None),
        ("0001-01-01T00:00:00+23:00", "iso", None),
        (True, "s", None),
        ({}, "auto", None),
    ],
    ids=repr,
)
def test_moments(raw, unit, expected) -> None:
    """A moment is aware UTC, one without offset is UTC, and nonsense is none."""
    assert expected == moment_of(raw, TimeUnit(unit))


@given(raw=st.text(max_size=40) | st.integers() | st.floats() | st.booleans(), unit=st.sampled_from(list(TimeUnit)))
def test_no_moment_raises(raw, unit) -> None:
    """Whatever stands where a moment is expected, the result is aware or nothing."""
    found = moment_of(raw, unit)

    assert found is None or found.utcoffset() == timedelta(0)


def test_text_is_bounded_and_of_one_line() -> None:
    """Ids and names are trimmed, cut, and lose control characters."""
    assert "a b" == bounded(" a\r\nb ", 10)
    assert "x" * 255 == bounded("x" * 300, 255)
    assert "12" == bounded(12, 255)
    assert "12" == bounded(12.0, 255)
    assert bounded("\x00\x01", 255) is None
    assert bounded(True, 255) is None

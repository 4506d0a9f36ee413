"""Every vendor's way of signing, splitting and naming can be said as data: ten sources that need no line of code."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime
from urllib.parse import urlencode

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ingress.sources import Rejected, Source, Unreadable, Verified, WebhookRequest

SECRET = "whsec_fake_secret_of_the_tests"
ENV = {"KEY": SECRET}


def _digest(message: bytes, key: bytes = SECRET.encode(), algorithm: str = "sha256") -> bytes:
    return hmac.new(key, message, getattr(hashlib, algorithm)).digest()


def _post(body: bytes, *, query: bytes = b"", **headers: str) -> WebhookRequest:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return WebhookRequest(method="POST", path="/webhooks/crm", query_string=query, headers=named, body=body)


def _only(source: Source, received: WebhookRequest, now: datetime):
    """Return the one event of a request that must pass, and pass again with the same key."""
    assert isinstance(source.verify(received, now), Verified)
    flipped = bytes([received.body[0] ^ 1]) + received.body[1:]
    tampered = WebhookRequest(method="POST", path=received.path, headers=received.headers, body=flipped)
    if not received.query_string and "authorization" not in received.headers:
        assert isinstance(source.verify(tampered, now), Rejected)
    found = source.read(received, now, lambda: "ev_1")
    again = source.read(received, now, lambda: "ev_2")
    assert not isinstance(found, Unreadable)
    assert not isinstance(again, Unreadable)
    assert [one.dedupe_key for one in found] == [one.dedupe_key for one in again]
    assert 1 == len(found)
    return found[0]


def test_stripe(make_source, now) -> None:
    """The secret is used as text, time and signature share a header, several v1 may stand in it."""
    source = make_source(
        """
auth:
  hmac: {header: Stripe-Signature, separator: ",", scheme: v1, signed: [timestamp, ".", body]}
  timestamp: {item: t}
secrets: [{env: KEY}]
event: {type: type, id: id, occurred_at: {path: created, unit: s}, subject: {id: data.object.id}}
contact: {name: data.object.name, phone: data.object.phone, email: data.object.email}
data: data.object
""",
        ENV,
    )
    customer = {"id": "cus_1", "phone": "+56911112222"}
    event = {"id": "evt_1", "type": "customer.created", "created": 1772456400, "data": {"object": customer}}
    body = json.dumps(event).encode()
    stamp = str(int(now.timestamp()))
    good = _digest(stamp.encode() + b"." + body).hex()
    found = _only(source, _post(body, stripe_signature=f"t={stamp},v1={'0' * 64},v1={good},v0=x"), now)

    assert ("customer.created", "id:evt_1", "+56911112222") == (
        found.event.type,
        found.dedupe_key,
        found.event.contact.phone,
    )
    assert "cus_1" == found.event.subject.id


def test_slack(make_source, now) -> None:
    """A signed challenge is answered, after the signature was checked; an event is read."""
    source = make_source(
        """
auth:
  hmac: {header: X-Slack-Signature, prefix: v0=, signed: ["v0:", timestamp, ":", body]}
  timestamp: {header: X-Slack-Request-Timestamp}
secrets: [{env: KEY}]
handshake: [{json_challenge: {match: {type: url_verification}, answer: challenge}}]
event: {type: event.type, id: event_id, attempt: "header:X-Slack-Retry-Num"}
""",
        ENV,
    )
    stamp = str(int(now.timestamp()))

    def signed(body: bytes) -> WebhookRequest:
        signature = "v0=" + _digest(b"v0:" + stamp.encode() + b":" + body).hex()
        return _post(body, x_slack_signature=signature, x_slack_request_timestamp=stamp, x_slack_retry_num="2")

    question = signed(b'{"type":"url_verification","challenge":"3eZbrw1aBm2rZgRNFdxV2595E9CY3gmdALWMmHkvFXO7tYXAYM8P"}')
    answer = source.challenge(question)

    assert isinstance(source.verify(question, now), Verified)
    assert answer is not None
    assert "3eZbrw1aBm2rZgRNFdxV2595E9CY3gmdALWMmHkvFXO7tYXAYM8P" == json.loads(answer.body)["challenge"]
    event = signed(b'{"event_id":"Ev1","event":{"type":"message"}}')
    assert source.challenge(event) is None
    assert ("message", 2) == ((found := _only(source, event, now)).event.type, found.event.attempt)


def test_github(make_source, now) -> None:
    """JSON, or JSON in a form field; the type is in a header and the id, which is not signed, proves nothing."""
    source = make_source(
        """
auth: {hmac: {header: X-Hub-Signature-256, prefix: sha256=}}
secrets: [{env: KEY}]
body: {format: auto, json_field: payload}
handshake: [{ignore: {match: {"header:X-GitHub-Event": ping}}}]
event: {type: ["{header:X-GitHub-Event}.{action}", "header:X-GitHub-Event"], id: "header:X-GitHub-Delivery"}
""",
        ENV,
    )
    for body in (b'{"action":"opened"}', urlencode({"payload": '{"action":"opened"}'}).encode()):
        signature = "sha256=" + _digest(body).hex()
        headers = {"x_hub_signature_256": signature, "x_github_event": "issues"}
        found = _only(source, _post(body, **headers, x_github_delivery="d-1"), now)
        replayed = _only(source, _post(body, **headers, x_github_delivery="d-2"), now)
        assert "issues.opened" == found.event.type
        assert (found.dedupe_key, None) == (replayed.dedupe_key, found.until_at)
    ping = _post(b'{"zen":"x"}', x_hub_signature_256="sha256=" + _digest(b'{"zen":"x"}').hex(), x_github_event="ping")
    assert source.challenge(ping) is not None
    assert ["this header is not covered by the signature"] == [w.message.partition(":")[0] for w in source.warnings]


def test_shopify(make_source, now) -> None:
    """Type and id are headers that the signature does not cover; the resource is the whole body."""
    source = make_source(
        """
auth: {hmac: {header: X-Shopify-Hmac-Sha256, encoding: base64}}
secrets: [{env: KEY}]
event:
  type: header:X-Shopify-Topic
  map: {customers/create: contact.created}
  id: header:X-Shopify-Event-Id
  occurred_at: header:X-Shopify-Triggered-At
  subject: {id: id}
contact: {id: id, name: "{first_name} {last_name}", phone: phone, email: email, country: default_address.country_code}
""",
        ENV,
    )
    body = json.dumps(
        {
            "id": 7,
            "first_name": "Ana",
            "last_name": "Muñoz",
            "phone": "9 1111 2222",
            "default_address": {"country_code": "cl"},
        }
    ).encode()
    headers = {
        "x_shopify_hmac_sha256": base64.b64encode(_digest(body)).decode(),
        "x_shopify_topic": "customers/create",
        "x_shopify_event_id": "one",
        "x_shopify_triggered_at": "2026-03-02T12:59:00Z",
    }
    found = _only(source, _post(body, **headers), now)

    assert ("contact.created", "Ana Muñoz", "+56911112222", "CL") == (
        found.event.type,
        found.event.contact.name,
        found.event.contact.phone,
        found.event.contact.country,
    )
    assert datetime(2026, 3, 2, 12, 59, tzinfo=UTC) == found.event.occurred_at
    kept, _ = source.kept(_post(body, **headers, authorization="x", cookie="y"))
    assert {"x-shopify-topic", "x-shopify-event-id", "x-shopify-triggered-at"} == set(kept)


def test_close(make_source, now) -> None:
    """The key is decoded from hex; time and body are glued together; changed fields come with their old values."""
    key = hashlib.sha256(b"fake").hexdigest()
    source = make_source(
        """
auth:
  hmac: {key_encoding: hex, header: close-sig-hash, signed: [timestamp, body]}
  timestamp: {header: close-sig-timestamp}
secrets: [{env: KEY}]
event:
  type: "{event.object_type}.{event.action}"
  map: {opportunity.updated: deal.updated}
  id: event.id
  occurred_at: event.date_created
  changed: {fields: event.changed_fields, before: event.previous_data, after: event.data}
data: event.data
""",
        {"KEY": key},
    )
    body = json.dumps(
        {
            "event": {
                "id": "ev_1",
                "object_type": "opportunity",
                "action": "updated",
                "date_created": "2026-03-02T12:59:59.5",
                "changed_fields": ["status_id"],
                "previous_data": {"status_id": "a"},
                "data": {"status_id": "b", "id": "o"},
            }
        }
    ).encode()
    stamp = str(int(now.timestamp()))
    signature = _digest(stamp.encode() + body, bytes.fromhex(key)).hex()
    found = _only(source, _post(body, close_sig_hash=signature, close_sig_timestamp=stamp), now)

    assert ("deal.updated", {"status_id": {"from": "a", "to": "b"}}) == (found.event.type, found.event.changed)
    assert datetime(2026, 3, 2, 12, 59, 59, 500_000, tzinfo=UTC) == found.event.occurred_at


def test_kommo(make_source, now) -> None:
    """A form with bracket keys, a token in the address, a batch under several names, no id."""
    source = make_source(
        """
auth: {url_token: {}}
secrets: [{env: KEY}]
body: {format: form-brackets}
split:
  - {path: "leads.add[*]", set: {raw_type: leads.add}}
  - {path: "leads.status[*]", set: {raw_type: leads.status}}
  - {path: "contacts.add[*]", set: {raw_type: contacts.add}}
event:
  type: raw_type
  map: {leads.add: deal.created, leads.status: deal.stage_changed, contacts.add: contact.created}
  dedupe: [$root.account.id, raw_type, id, updated_at, created_at, status_id]
  occurred_at: {path: [updated_at, created_at], unit: s}
  subject: {id: id}
region: CL
contact: {name: name, phone: "custom_fields[*].values[0].value"}
""",
        ENV,
    )
    body = urlencode(
        [
            ("leads[add][0][id]", "301"),
            ("leads[add][0][name]", "Ana"),
            ("leads[add][0][created_at]", "1772456000"),
            ("leads[add][0][custom_fields][0][values][0][value]", "+56911112222"),
            ("leads[add][1][id]", "302"),
            ("leads[status][0][id]", "301"),
            ("leads[status][0][status_id]", "142"),
            ("account[id]", "77"),
        ]
    ).encode()
    received = _post(body, query=b"token=" + SECRET.encode())
    found = source.read(received, now, lambda: "ev_1")

    assert isinstance(source.verify(received, now), Verified)
    assert not isinstance(found, Unreadable)
    assert ["deal.created", "deal.created", "deal.stage_changed"] == [one.event.type for one in found]
    assert ["+56911112222", None, None] == [one.event.contact.phone for one in found]
    assert 3 == len({one.dedupe_key for one in found})
    assert all(one.dedupe_key.startswith("values:") and one.until_at is None for one in found)
    assert ["deal", "301"] == [found[0].event.subject.kind, found[0].event.subject.id]
    unknown = source.read(_post(b"talk[add][0][id]=1"), now, lambda: "ev_1")
    assert Unreadable(reason="the body has nothing at leads.add[*], leads.status[*], contacts.add[*]") == unknown


def test_meta_and_whatsapp(make_source, now) -> None:
    """A handshake by GET, two levels of batch, a contact beside the message."""
    source = make_source(
        """
auth: {hmac: {header: X-Hub-Signature-256, prefix: sha256=}}
secrets: [{env: KEY}]
verify_token: {env: KEY}
handshake: [{get_echo: {param: hub.challenge, token_param: hub.verify_token, expect: {hub.mode: subscribe}}}]
split:
  - {path: "entry[*].changes[*].value.messages[*]", set: {raw: message}}
  - {path: "entry[*].changes[*].value.statuses[*]", set: {raw: status}}
event:
  type: raw
  map: {message: message.received}
  id: ["{id}.{status}", id]
  occurred_at: {path: timestamp, unit: s}
contact: {phone: "+{from}", name: "$parent.value.contacts[0].profile.name"}
""",
        ENV,
    )

    def ask(query: dict[str, str]) -> tuple[int, bytes] | None:
        received = WebhookRequest(method="GET", path="/", query_string=urlencode(query).encode())
        answer = source.handshake(received)
        return (answer.status, answer.body) if answer else None

    good = {"hub.mode": "subscribe", "hub.verify_token": SECRET, "hub.challenge": "1158201444"}
    assert (200, b"1158201444") == ask(good)
    assert (403, b"refused") == ask({**good, "hub.verify_token": "other"})
    assert (403, b"refused") == ask({**good, "hub.verify_token": ""})
    assert (403, b"refused") == ask({**good, "hub.mode": "x"})
    assert (403, b"refused") == ask({**good, "hub.challenge": "<script>alert(1)</script>"})
    assert ask({}) is None
    message = {"from": "56911112222", "id": "wamid.1", "timestamp": "1772456399", "type": "text"}
    value = {
        "contacts": [{"profile": {"name": "Ana"}}],
        "messages": [message],
        "statuses": [{"id": "wamid.0", "status": "read"}],
    }
    body = json.dumps({"entry": [{"id": "1", "changes": [{"field": "messages", "value": value}]}]}).encode()
    received = _post(body, x_hub_signature_256="sha256=" + _digest(body).hex())
    found = source.read(received, now, lambda: "ev_1")

    assert isinstance(source.verify(received, now), Verified)
    assert not isinstance(found, Unreadable)
    assert ["message.received", "status"] == [one.event.type for one in found]
    assert ["id:wamid.1", "id:wamid.0.read"] == [one.dedupe_key for one in found]
    assert ("+56911112222", "Ana") == (found[0].event.contact.phone, found[0].event.contact.name)


def test_typeform(make_source, now) -> None:
    """Base64 behind a prefix."""
    source = make_source(
        """
auth: {hmac: {header: Typeform-Signature, prefix: sha256=, encoding: base64}}
secrets: [{env: KEY}]
event: {type: event_type, map: {form_response: form.submitted}, id: event_id, occurred_at: form_response.submitted_at}
contact: {phone: "form_response.answers[*].phone_number", email: "form_response.answers[*].email"}
data: form_response
""",
        ENV,
    )
    body = json.dumps(
        {
            "event_id": "01H",
            "event_type": "form_response",
            "form_response": {"answers": [{"type": "text"}, {"type": "phone_number", "phone_number": "+56911112222"}]},
        }
    ).encode()
    signature = "sha256=" + base64.b64encode(_digest(body)).decode()
    found = _only(source, _post(body, typeform_signature=signature), now)

    assert ("form.submitted", "+56911112222") == (found.event.type, found.event.contact.phone)


def test_calendly(make_source, now) -> None:
    """Three minutes, and no id: what happened to which invitee identifies it."""
    source = make_source(
        """
auth:
  hmac: {header: Calendly-Webhook-Signature, separator: ",", scheme: v1, signed: [timestamp, ".", body]}
  timestamp: {item: t, max_age: 3m}
secrets: [{env: KEY}]
event:
  type: event
  map: {invitee.created: meeting.booked, invitee.canceled: meeting.cancelled}
  dedupe: [event, payload.uri]
  occurred_at: created_at
contact: {name: payload.name, email: payload.email, phone: payload.text_reminder_number, timezone: payload.timezone}
data: payload
""",
        ENV,
    )
    invitee = {"uri": "u/1", "name": "Ana", "email": "a@example.com"}
    event = {"event": "invitee.created", "created_at": "2026-03-02T13:00:00.000000Z", "payload": invitee}
    body = json.dumps(event).encode()

    def signed(age_seconds: int) -> WebhookRequest:
        stamp = str(int(now.timestamp()) - age_seconds)
        return _post(body, calendly_webhook_signature=f"t={stamp},v1={_digest(stamp.encode() + b'.' + body).hex()}")

    assert "meeting.booked" == _only(source, signed(0), now).event.type
    assert isinstance(source.verify(signed(181), now), Rejected)


def test_gohighlevel(make_source, now) -> None:
    """Ed25519 with a published key, RSA under the older header, 429 when busy."""
    ed, rsa = Ed25519PrivateKey.generate(), generate_private_key(65537, 2048)
    environment = {
        "ED": base64.b64encode(ed.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).decode(),
        "RSA": rsa.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(),
    }
    source = make_source(
        """
auth:
  any_of:
    - ed25519: {key: {env: ED}, header: X-GHL-Signature}
      timestamp: {path: timestamp, unit: iso}
    - rsa_sha256: {key: {env: RSA}, header: X-WH-Signature}
      timestamp: {path: timestamp, unit: iso}
event: {type: type, map: {ContactCreate: contact.created}, id: webhookId}
contact: {id: id, phone: phone}
ack: {busy_status: 429}
""",
        environment,
    )
    body = b'{"type":"ContactCreate","webhookId":"w1","timestamp":"2026-03-02T12:58:00.000Z","phone":"+56911112222"}'
    old = body.replace(b"12:58", b"12:40")
    none = body.replace(b"timestamp", b"timestomp")

    def signed(content: bytes, *, with_rsa: bool = False) -> WebhookRequest:
        if with_rsa:
            return _post(content, x_wh_signature=base64.b64encode(rsa.sign(content, PKCS1v15(), SHA256())).decode())
        return _post(content, x_ghl_signature=base64.b64encode(ed.sign(content)).decode())

    assert "contact.created" == _only(source, signed(body), now).event.type
    assert "contact.created" == _only(source, signed(body, with_rsa=True), now).event.type
    assert "too_old" == source.verify(signed(old), now).reason
    assert "no_timestamp" == source.verify(signed(none), now).reason
    assert "missing" == source.verify(_post(body), now).reason
    assert isinstance(source.verify(_post(body, x_ghl_signature="N/A"), now), Rejected)
    assert isinstance(source.verify(_post(body, x_ghl_signature="AAAA"), now), Rejected)
    assert 429 == source.ack.busy_status


def test_pipedrive(make_source, now) -> None:
    """Basic credentials, a type made of two fields, the fields that changed as a map of old values."""
    source = make_source(
        """
auth: {basic: {}}
secrets: [{env: PAIR}]
event:
  type: "{meta.action}.{meta.entity}"
  map: {create.deal: deal.created, change.deal: deal.updated}
  id: meta.id
  attempt: meta.attempt
  occurred_at: meta.timestamp
  subject: {kind: deal, id: data.id}
  changed: {before: previous, after: data}
data: data
""",
        {"PAIR": "crm:fake-password-12"},
    )
    document = {
        "meta": {
            "action": "change",
            "entity": "deal",
            "id": "5d2f",
            "attempt": 1,
            "timestamp": "2026-03-02T12:00:00.123Z",
        },
        "data": {"id": 321, "stage_id": 5},
        "previous": {"stage_id": 4},
    }
    authorization = "Basic " + base64.b64encode(b"crm:fake-password-12").decode()
    found = _only(source, _post(json.dumps(document).encode(), authorization=authorization), now)
    document["meta"]["attempt"] = 2
    retried = _only(source, _post(json.dumps(document).encode(), authorization=authorization), now)

    assert ("deal.updated", {"stage_id": {"from": 4, "to": 5}}) == (found.event.type, found.event.changed)
    assert (1, 2) == (found.event.attempt, retried.event.attempt)
    assert (found.dedupe_key, found.content_hash) == (retried.dedupe_key, retried.content_hash)


def test_zoho(make_source, now) -> None:
    """A token inside the body that is never stored, several record ids in one call."""
    source = make_source(
        """
auth: {body_token: {path: token}}
secrets: [{env: KEY}]
split: "ids[*]"
event:
  type: "{$root.module}.{$root.operation}"
  map: {Leads.insert: lead.created}
  dedupe: [$root.channel_id, $root.module, $root.operation, $item, $root.server_time]
  occurred_at: {path: $root.server_time, unit: ms}
  subject: {kind: lead, id: $item}
data: $root
""",
        ENV,
    )
    document = {
        "server_time": 1772456000000,
        "module": "Leads",
        "operation": "insert",
        "ids": ["701", "702"],
        "channel_id": "1000",
        "token": SECRET,
    }
    received = _post(json.dumps(document).encode())
    found = source.read(received, now, lambda: "ev_1")
    _, body = source.kept(received)

    assert isinstance(source.verify(received, now), Verified)
    assert not isinstance(found, Unreadable)
    assert [("lead.created", "701"), ("lead.created", "702")] == [
        (one.event.type, one.event.subject.id) for one in found
    ]
    assert 2 == len({one.dedupe_key for one in found})
    assert "[redacted]" == found[0].event.data["token"]
    assert SECRET.encode() not in body
    assert {**document, "token": "[redacted]"} == json.loads(body)


def test_salesforce_outbound_message(make_source, now) -> None:
    """SOAP in, the acknowledgement Salesforce wants out, the session id never stored."""
    source = make_source(
        """
auth: {url_token: {}}
secrets: [{env: KEY}]
body: {format: xml}
redact: Envelope.Body.notifications.SessionId
split: "Envelope.Body.notifications.Notification[*]"
event:
  type: "sObject.@type"
  map: {"sf:Lead": lead.created}
  id: Id
  subject: {id: sObject.Id}
contact: {name: "{sObject.FirstName} {sObject.LastName}", phone: sObject.Phone}
data: sObject
ack:
  content_type: text/xml
  body: "<Envelope><Body><notificationsResponse><Ack>true</Ack></notificationsResponse></Body></Envelope>"
""",
        ENV,
    )
    one = """<Notification><Id>04l{n}</Id><sObject xsi:type="sf:Lead"><sf:Id>00Q{n}</sf:Id><sf:FirstName>Ana</sf:FirstName>
<sf:LastName>Mu&#241;oz</sf:LastName><sf:Phone>+56911112222</sf:Phone></sObject></Notification>"""
    text = """<?xml version="1.0" encoding="UTF-8"?>
<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
<soapenv:Body><notifications xmlns="http://soap.sforce.com/2005/09/outbound" xmlns:sf="urn:sobject.enterprise.soap.sforce.com">
<OrganizationId>00D</OrganizationId><SessionId>fake!session.id</SessionId>{}</notifications></soapenv:Body></soapenv:Envelope>"""
    for numbers in ((1,), (1, 2)):
        received = _post(
            text.format("".join(one.format(n=n) for n in numbers)).encode(), query=b"token=" + SECRET.encode()
        )
        found = source.read(received, now, lambda: "ev_1")
        assert isinstance(source.verify(received, now), Verified)
        assert not isinstance(found, Unreadable)
        assert [f"id:04l{n}" for n in numbers] == [one.dedupe_key for one in found]
        assert ("lead.created", "Ana Muñoz", "+56911112222") == (
            found[0].event.type,
            found[0].event.contact.name,
            found[0].event.contact.phone,
        )
        assert b"fake!session.id" not in source.kept(received)[1]


@pytest.mark.parametrize("mode", ["binary", "structured", "batch"])
def test_cloudevents(mode, make_source, now) -> None:
    """Attributes in headers, in the body, or in a list of bodies; the OPTIONS handshake is answered."""
    source = make_source(
        """
auth: {static_header: {header: Authorization, prefix: "Bearer "}}
secrets: [{env: KEY}]
body: {format: json}
split: "[*]"
handshake: [{options: {}}]
event:
  type: ["header:ce-type", type]
  id: ["{header:ce-source} {header:ce-id}", "{source} {id}"]
  occurred_at: ["header:ce-time", time]
  subject: {kind: lead, id: ["header:ce-subject", subject]}
contact: {phone: [data.phone, phone]}
data: [data, $item]
""",
        ENV,
    )
    attributes = {"id": "1", "source": "/crm", "type": "lead.created", "time": "2026-03-02T12:59:00Z", "subject": "L1"}
    data = {"phone": "+56911112222"}
    document = data if mode == "binary" else {**attributes, "data": data}
    headers = {f"ce_{name}": value for name, value in attributes.items()} if mode == "binary" else {}
    body = json.dumps([document] if mode == "batch" else document).encode()
    found = _only(source, _post(body, authorization=f"Bearer {SECRET}", **headers), now)

    assert ("lead.created", "id:/crm 1", "+56911112222", "L1") == (
        found.event.type,
        found.dedupe_key,
        found.event.contact.phone,
        found.event.subject.id,
    )
    assert data == found.event.data
    options = WebhookRequest(method="OPTIONS", path="/", headers={"webhook-request-origin": "eventemitter.example.com"})
    answer = source.handshake(options)
    assert answer is not None
    assert "eventemitter.example.com" == answer.headers["webhook-allowed-origin"]
    assert source.handshake(WebhookRequest(method="OPTIONS", path="/")) is None

"""Samples: fresh each time, as asked for, and made up from the paths of a source nobody has heard of."""

from __future__ import annotations

import json
from itertools import count

import pytest

from console.samples import Lead, sample
from ingress.sources import Unreadable, Verified, WebhookRequest
from rules.vocabulary import Problem

ENV = {"KEY": "fake-secret-of-the-tests"}


@pytest.fixture
def new_id():
    """Return a function that makes another id at every call."""
    numbers = count(1)
    return lambda prefix: f"{prefix}_{next(numbers):020d}"


def test_a_sample_says_what_was_asked_for(make_source, now, new_id) -> None:
    """Name, phone and value are the caller's; the id is new each time."""
    source = make_source("{extend: generic, secrets: [{env: KEY}]}", ENV)
    lead = Lead(name="Luis Soto", phone="+56922223333", value=9000)
    keys = set()
    for variant in ("lead", "form"):
        made = sample(source, now=now, new_id=new_id, variant=variant, lead=lead)
        received = WebhookRequest(method="POST", path="/", headers={"content-type": made.content_type}, body=made.body)
        (found,) = source.read(received, now, lambda: "ev_1")
        assert ("lead.created", "Luis Soto", "+56922223333") == (
            found.event.type,
            found.event.contact.name,
            found.event.contact.phone,
        )
        assert "9000" == str(found.event.data["value"])
        keys.add(found.dedupe_key)
    assert 2 == len(keys)
    assert 2 == len(json.loads(sample(source, now=now, new_id=new_id, variant="batch").body))


@pytest.mark.parametrize(
    "text",
    [
        """
auth: {hmac: {header: X-Signature}}
secrets: [{env: KEY}]
split: "items[*]"
event: {type: event, map: {lead_new: lead.created}, id: id, occurred_at: {path: at, unit: ms}, subject: {kind: lead, id: lead.id}}
contact: {name: lead.name, phone: lead.phone}
data: lead
""",
        """
auth: {url_token: {}}
secrets: [{env: KEY}]
body: {format: form-brackets}
split: [{path: "leads.add[*]", set: {raw_type: leads.add}}]
event: {type: raw_type, map: {leads.add: lead.created}, dedupe: [$root.account.id, id, updated_at]}
contact: {name: name, phone: "fields[0].values[0].value"}
""",
        """
auth: {body_token: {path: token}}
secrets: [{env: KEY}]
event: {type: "{module}.{operation}", map: {Leads.insert: lead.created}, id: "header:X-Id"}
contact: {name: [missing, name], phone: phone}
""",
    ],
    ids=["split", "form", "joined"],
)
def test_a_source_without_a_sample_gets_one_from_its_paths(text, make_source, now, new_id) -> None:
    """The payload is signed, believed, and read as a new lead with name, phone and value."""
    source = make_source(text, ENV)
    made = sample(source, now=now, new_id=new_id, lead=Lead(name="Luis", phone="+56922223333"))
    signed = source.sign(made.body, made.content_type, "http://127.0.0.1/webhooks/crm", now)
    query = "&".join(f"{name}={value}" for name, value in signed.query.items()).encode()
    received = WebhookRequest(
        method="POST",
        path="/webhooks/crm",
        query_string=query,
        headers={**made.headers, **signed.headers},
        body=signed.body,
    )

    assert isinstance(source.verify(received, now), Verified)
    found = source.read(received, now, lambda: "ev_1")
    assert not isinstance(found, Unreadable)
    assert [("lead.created", "+56922223333")] == [(one.event.type, one.event.contact.phone) for one in found]
    assert "12000" == str(found[0].event.data["value"])


def test_no_xml_is_made_up(make_source, now, new_id) -> None:
    """The message says what to do instead."""
    source = make_source(
        "auth: {url_token: {}}\nsecrets: [{env: KEY}]\nbody: {format: xml}\nevent: {type: a, id: b}", ENV
    )

    with pytest.raises(Problem, match="send a file"):
        sample(source, now=now, new_id=new_id)

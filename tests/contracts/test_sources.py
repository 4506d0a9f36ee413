"""What holds for every preset, the ones to come included: a new YAML file is tested by being there."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest
from standardwebhooks import Webhook

from console.samples import sample, variants
from ingress.sources import PRESETS, Rejected, Source, Unreadable, Verified, WebhookRequest, build, preset
from rules.rule_set import SourceText
from rules.vocabulary import EventState, Problem
from rules.yaml_reader import SourceMap

NOW = datetime(2026, 3, 2, 13, 0, tzinfo=UTC)
URL = "http://127.0.0.1:8080/webhooks/crm"
#: Both are base64, so that they serve every preset.
OLD, NEW = (base64.b64encode(text).decode() for text in (b"fake-secret-number-one!!", b"fake-secret-number-two!!"))


def _source(name: str, *secrets: str) -> Source:
    value = {"extend": name, "secrets": list(secrets), "verify_token": "fake-verify-token-of-tests"}
    text = SourceText(name="crm", value=value, places=SourceMap(file="sources.yaml"), path=())
    sources, faults = build([text], {}, public_url="https://hooks.example.com")
    assert [] == faults
    return sources["crm"]


def _fresh(source: Source, variant: str | None = None):
    numbers = count(1)
    return sample(source, now=NOW, new_id=lambda prefix: f"{prefix}_{next(numbers):020d}", variant=variant)


def _signed(source: Source, now: datetime = NOW, variant: str | None = None) -> WebhookRequest:
    made = _fresh(source, variant)
    signed = source.sign(made.body, made.content_type, URL, now)
    query = "&".join(f"{name}={value}" for name, value in signed.query.items()).encode()
    return WebhookRequest(
        method=signed.method,
        path="/webhooks/crm",
        query_string=query,
        headers={"content-type": made.content_type, **made.headers, **signed.headers},
        body=signed.body,
    )


def _proof_headers(source: Source, received: WebhookRequest) -> list[str]:
    first = source.verifiers[0]
    return sorted(first.secret_headers & set(received.headers))


def _with(received: WebhookRequest, **changed: object) -> WebhookRequest:
    kept = {name: getattr(received, name) for name in ("method", "path", "query_string", "headers", "body")}
    return WebhookRequest(**{**kept, **changed})


def _is_signature(source: Source) -> bool:
    return source.verifiers[0].covers is not None


@pytest.fixture(params=PRESETS)
def name(request) -> str:
    """Return the name of each preset in turn."""
    return request.param


def test_a_sample_of_each_kind_passes_and_is_read(name) -> None:
    """What is signed as the sender signs is believed, and every item of it is an event."""
    source = _source(name, NEW)
    for variant in variants(source):
        received = _signed(source, variant=variant)
        assert isinstance(source.verify(received, NOW), Verified)
        found = source.read(received, NOW, lambda: "ev_1")
        assert not isinstance(found, Unreadable)
        assert found
        assert {EventState.RECEIVED} == {one.state for one in found}
        assert all("." in one.event.type and one.until_at is None for one in found)
    assert preset(name)["description"]


def test_the_same_request_has_the_same_keys(name) -> None:
    """A redelivery is recognised: reading twice, at another time and with other event ids, gives the same identity."""
    source = _source(name, NEW)
    received = _signed(source)
    first = source.read(received, NOW, lambda: "ev_1")
    later = source.read(received, NOW + timedelta(minutes=3), lambda: "ev_2")

    assert not isinstance(first, Unreadable)
    assert not isinstance(later, Unreadable)
    assert [(one.event.type, one.dedupe_key, one.content_hash) for one in first] == [
        (one.event.type, one.dedupe_key, one.content_hash) for one in later
    ]


def test_any_secret_of_a_rotation_passes_and_no_other(name) -> None:
    """The second secret is as good as the first; a third is refused."""
    received = _signed(_source(name, NEW))

    assert isinstance(_source(name, OLD, NEW).verify(received, NOW), Verified)
    assert isinstance(_source(name, NEW, OLD).verify(received, NOW), Verified)
    assert isinstance(_source(name, OLD).verify(received, NOW), Rejected)


def test_a_proof_that_is_missing_or_garbage_is_refused(name) -> None:
    """Whatever stands in the header instead of the proof: refused, and never an exception."""
    source = _source(name, NEW)
    received = _signed(source)
    for header in _proof_headers(source, received):
        others = {key: value for key, value in received.headers.items() if key != header}
        assert isinstance(source.verify(_with(received, headers=others), NOW), Rejected)
        for garbage in (
            "",
            "N/A",
            "null",
            "v1,",
            "v1,=",
            "t=,v1=",
            "sha256=",
            "ñ",
            "\ud800",
            "\x00",
            "9" * 10**6,
            "=" * 99,
        ):
            changed = {**received.headers, header: garbage}
            assert isinstance(source.verify(_with(received, headers=changed), NOW), Rejected)


def test_a_signature_is_for_its_bytes(name) -> None:
    """One flipped bit, one more byte, no byte, bytes that are no text: refused where the body is signed, never raised."""
    source = _source(name, NEW)
    received = _signed(source)
    changes = [received.body[:-1] + bytes([received.body[-1] ^ 1]), received.body + b"\n", b"", b"\xff\xfe\x00"]
    for body in changes:
        found = source.verify(_with(received, body=body), NOW)
        assert isinstance(found, Rejected if _is_signature(source) else Verified)


def test_an_old_or_future_request_is_refused(name) -> None:
    """Where requests carry their time, five minutes to either side are the limit."""
    source = _source(name, NEW)
    received = _signed(source)
    for away in (timedelta(seconds=301), timedelta(seconds=-301), timedelta(days=4000)):
        found = source.verify(received, NOW + away)
        assert isinstance(found, Rejected if source.verifiers[0].freshness else Verified)


def test_nothing_that_lets_others_post_is_stored(name) -> None:
    """Neither the secret nor a signature is among what is kept of a delivery."""
    source = _source(name, NEW)
    received = _with(_signed(source), headers={**_signed(source).headers, "authorization": "x", "cookie": "y"})
    headers, body = source.kept(received)

    assert NEW.encode() not in body
    assert not set(_proof_headers(source, received)) & set(headers)
    assert not {"authorization", "cookie"} & set(headers)


def test_an_unknown_sample_is_refused_with_the_known_ones(name) -> None:
    """The message lists what there is."""
    with pytest.raises(Problem, match="samples: "):
        _fresh(_source(name, NEW), "nonsense")
    assert _fresh(_source(name, NEW)).body


def test_standard_webhooks_agrees_with_the_reference_library() -> None:
    """What we sign their library accepts, and what their library signs we accept."""
    source = _source("standard-webhooks", "whsec_" + NEW)
    theirs = Webhook("whsec_" + NEW)
    at = datetime.now(UTC)
    body = sample(source, now=at, new_id=lambda prefix: f"{prefix}_{1:020d}").body
    ours = source.sign(body, "application/json", URL, at)

    assert json.loads(body) == theirs.verify(body, dict(ours.headers))
    signature = theirs.sign("msg_1", at, body.decode())
    headers = {"webhook-id": "msg_1", "webhook-timestamp": str(int(at.timestamp())), "webhook-signature": signature}
    received = WebhookRequest(method="POST", path="/webhooks/crm", headers=headers, body=body)
    assert isinstance(source.verify(received, at), Verified)

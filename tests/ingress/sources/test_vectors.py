"""The public signature vectors of vendors and libraries; each names its source in tests/samples/signature_vectors.json."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ingress.sources import Rejected, Verified, WebhookRequest

VECTORS = json.loads((Path(__file__).parents[2] / "samples" / "signature_vectors.json").read_text(encoding="utf-8"))
BY_ID = {vector["id"]: vector for vector in VECTORS}
KINDS = {
    "hmac-sha256": ("hmac", "algorithm: sha256,"),
    "hmac-sha512": ("hmac", "algorithm: sha512,"),
    "hmac-sha1": ("hmac", "algorithm: sha1,"),
    "sha256-concat": ("hash_concat", ""),
    "ed25519": ("ed25519", ""),
}


def _source_text(vector) -> str:
    kind, algorithm = KINDS[vector["alg"]]
    encoding = vector["key_encoding"].partition(" ")[0]
    return f"""
auth: {{{kind}: {{{algorithm} key: {{env: KEY}}, key_encoding: {encoding}, header: X-Sig, encoding: {vector["out"]}}}}}
event: {{type: event, id: id}}
"""


def test_all_vectors_are_here() -> None:
    """None of the 23 public vectors was lost in copying."""
    assert 23 == len(BY_ID)


@pytest.mark.parametrize("vector", VECTORS, ids=list(BY_ID))
def test_a_public_vector_verifies(vector, make_source, now) -> None:
    """The signature that a vendor or library publishes for a key and a message is right here too."""
    source = make_source(_source_text(vector), {"KEY": vector["key"]})
    body = vector["signed"].encode()
    good = WebhookRequest(method="POST", path="/", headers={"x-sig": vector["expected"]}, body=body)
    changed = WebhookRequest(method="POST", path="/", headers={"x-sig": vector["expected"]}, body=body + b"\n")

    assert isinstance(source.verify(good, now), Verified)
    assert isinstance(source.verify(changed, now), Rejected)


@pytest.mark.parametrize("stamp", ["1693657560000", "1700000300000", "15000000"])
def test_hubspot_v3_is_put_together_as_hubspot_does(stamp, make_source) -> None:
    """Method, address, body and timestamp are joined without separators; the address is the configured one."""
    vector = BY_ID[f"hubspot-v3-{stamp}"]
    # The libraries' address has another path than ours: it is split between the public base and the path.
    source = make_source(
        "{extend: hubspot, secrets: [{env: KEY}], url: {public_base: 'https://www.example.com'}}",
        {"KEY": vector["key"]},
    )
    received = WebhookRequest(
        method="POST",
        path="/webhook_uri",
        headers={"x-hubspot-signature-v3": vector["expected"], "x-hubspot-request-timestamp": stamp},
        body=b"{'example_field':'example_value'}",
    )

    assert Verified(by="v3") == source.verify(received, datetime.fromtimestamp(int(stamp) / 1000, UTC))


def test_standard_webhooks_v1_and_v1a(make_source) -> None:
    """Both versions of the standard verify through the preset, under either name of the headers."""
    environment = {
        "SHARED": "whsec_" + BY_ID["standard-webhooks-v1"]["key"],
        "PUBLIC": "whpk_" + BY_ID["standard-webhooks-v1a"]["key"],
    }
    source = make_source("{extend: standard-webhooks, secrets: [{env: SHARED}, {env: PUBLIC}]}", environment)
    at = datetime.fromtimestamp(1614265330, UTC)

    for version, by in (("v1", "v1"), ("v1a", "v1a")):
        signature = f"v1,bm9uZQ== {version},{BY_ID[f'standard-webhooks-{by}']['expected']}"
        for prefix in ("webhook", "svix"):
            headers = {
                f"{prefix}-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
                f"{prefix}-timestamp": "1614265330",
                f"{prefix}-signature": signature,
            }
            received = WebhookRequest(method="POST", path="/", headers=headers, body=b'{"test": 2432232314}')
            assert Verified(by=by) == source.verify(received, at)


def test_slack_is_put_together_as_slack_does(make_source) -> None:
    """Version, timestamp and body are joined with colons."""
    vector = BY_ID["slack-docs"]
    source = make_source(
        """
auth:
  hmac: {key: {env: KEY}, header: X-Slack-Signature, prefix: v0=, signed: ["v0:", timestamp, ":", body]}
  timestamp: {header: X-Slack-Request-Timestamp}
event: {type: event, id: event_id}
""",
        {"KEY": vector["key"]},
    )
    headers = {"x-slack-signature": f"v0={vector['expected']}", "x-slack-request-timestamp": "1531420618"}
    body = vector["signed"].split(":", 2)[2].encode()
    received = WebhookRequest(method="POST", path="/", headers=headers, body=body)

    assert isinstance(source.verify(received, datetime.fromtimestamp(1531420618, UTC)), Verified)


@pytest.mark.parametrize(("algorithm", "vector"), [("sha256", "outpost-sha256"), ("sha1", "outpost-sha1")])
def test_a_list_header_is_put_together_as_stripe_does(algorithm, vector, make_source) -> None:
    """Timestamp and signature share one header; time and body are joined with a full stop."""
    source = make_source(
        f"""
auth:
  hmac: {{algorithm: {algorithm}, key: {{env: KEY}}, header: X-Sig, separator: ",", scheme: v1, signed: [timestamp, ".", body]}}
  timestamp: {{item: t}}
event: {{type: event, id: id}}
""",
        {"KEY": BY_ID[vector]["key"]},
    )
    headers = {"x-sig": f"t=1234567890,v0=00,v1={BY_ID[vector]['expected']}"}
    received = WebhookRequest(method="POST", path="/", headers=headers, body=b'{"hello":"world"}')

    assert isinstance(source.verify(received, datetime.fromtimestamp(1234567890, UTC)), Verified)

"""Verifiers against everything a header or a body can hold: refused with a reason, never an exception."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingress.sources import Rejected, VerificationFailure, Verified, WebhookRequest

SECRET = "fake-secret-of-the-tests"
ENV = {"KEY": SECRET, "OLD": "fake-secret-from-before"}
BODY = b'{"event": "lead.created", "id": "e1"}'
EVENT = "event: {type: event, id: id}\n"
PLAIN = "auth: {hmac: {header: X-Sig}}\nsecrets: [{env: KEY}, {env: OLD}]\n" + EVENT
PREFIXED = "auth: {hmac: {header: X-Sig, prefix: sha256=}}\nsecrets: [{env: KEY}]\n" + EVENT
TIMED = (
    """
auth:
  hmac: {header: X-Sig, signed: [timestamp, ".", body]}
  timestamp: {header: X-Time, unit: UNIT}
secrets: [{env: KEY}]
"""
    + EVENT
)
LISTED = (
    """
auth:
  hmac: {header: X-Sig, separator: ",", scheme: v1, signed: [timestamp, ".", body]}
  timestamp: {item: t}
secrets: [{env: KEY}]
"""
    + EVENT
)


def _sig(message: bytes = BODY, key: str = SECRET) -> str:
    return hmac.new(key.encode(), message, hashlib.sha256).hexdigest()


def _post(body: bytes = BODY, **headers: str) -> WebhookRequest:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return WebhookRequest(method="POST", path="/webhooks/crm", headers=named, body=body)


def _reason(found: Verified | Rejected) -> str:
    return found.reason if isinstance(found, Rejected) else "verified"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (_sig(), "verified"),
        (_sig().upper(), "verified"),
        (f" {_sig()} ", "verified"),
        (_sig(key=ENV["OLD"]), "verified"),
        (None, VerificationFailure.MISSING),
        ("", VerificationFailure.MALFORMED),
        ("N/A", VerificationFailure.MALFORMED),
        ("null", VerificationFailure.MALFORMED),
        (_sig()[:-1], VerificationFailure.MALFORMED),
        (_sig()[:-2], VerificationFailure.MISMATCH),
        (_sig() + "00", VerificationFailure.MISMATCH),
        (" ".join(_sig()), VerificationFailure.MALFORMED),
        ("sha256=" + _sig(), VerificationFailure.MALFORMED),
        (_sig() + ", " + _sig(), VerificationFailure.MALFORMED),
        ("ñ" * 64, VerificationFailure.MALFORMED),
        ("\u0661" * 64, VerificationFailure.MALFORMED),
        ("\ud800" * 64, VerificationFailure.MALFORMED),
        ("\x00" * 64, VerificationFailure.MALFORMED),
        ("a" * 1_000_000, VerificationFailure.MISMATCH),
        (base64.b64encode(bytes.fromhex(_sig())).decode(), VerificationFailure.MALFORMED),
    ],
)
def test_a_plain_signature(value, reason, make_source, now) -> None:
    """Only the right signature, in either case and under either secret, passes."""
    headers = {} if value is None else {"X_Sig".lower(): value}

    assert reason == _reason(make_source(PLAIN, ENV).verify(_post(**headers), now))


@pytest.mark.parametrize(
    "body",
    [b"", BODY + b"\n", json.dumps(json.loads(BODY), separators=(",", ":")).encode(), b"\xff\xfe", b"\x00" * 100],
    ids=["empty", "newline", "written again", "not UTF-8", "NULs"],
)
def test_another_body_is_refused(body, make_source, now) -> None:
    """A signature is for its bytes: the same JSON written differently is another body."""
    source = make_source(PLAIN, ENV)

    assert VerificationFailure.MISMATCH == _reason(source.verify(_post(body, x_sig=_sig()), now))
    assert "verified" == _reason(source.verify(_post(body, x_sig=_sig(body)), now))


def test_a_prefix_is_required_where_the_source_has_one(make_source, now) -> None:
    """A signature without its prefix is malformed; the prefix's case does not matter."""
    source = make_source(PREFIXED, ENV)

    assert "verified" == _reason(source.verify(_post(x_sig="sha256=" + _sig()), now))
    assert "verified" == _reason(source.verify(_post(x_sig="SHA256=" + _sig().upper()), now))
    assert VerificationFailure.MALFORMED == _reason(source.verify(_post(x_sig=_sig()), now))
    assert VerificationFailure.MALFORMED == _reason(source.verify(_post(x_sig="sha1=" + _sig()), now))


@pytest.mark.parametrize("unit", ["s", "ms"])
@pytest.mark.parametrize(
    ("age_seconds", "reason"),
    [
        (0, "verified"),
        (300, "verified"),
        (301, VerificationFailure.TOO_OLD),
        (-300, "verified"),
        (-301, VerificationFailure.TOO_NEW),
        (10**9, VerificationFailure.TOO_OLD),
    ],
)
def test_a_timestamp_is_checked_both_ways(unit, age_seconds, reason, make_source, now) -> None:
    """Five minutes to either side pass, a second more does not."""
    stamp = str(int((now - timedelta(seconds=age_seconds)).timestamp() * (1000 if unit == "ms" else 1)))
    received = _post(x_sig=_sig(stamp.encode() + b"." + BODY), x_time=stamp)

    assert reason == _reason(make_source(TIMED.replace("UNIT", unit), ENV).verify(received, now))


def test_the_wrong_unit_is_refused(make_source, now) -> None:
    """Seconds where milliseconds are expected are too old, and the other way round too new."""
    seconds, milliseconds = str(int(now.timestamp())), str(int(now.timestamp() * 1000))

    assert VerificationFailure.TOO_OLD == _reason(
        make_source(TIMED.replace("UNIT", "ms"), ENV).verify(
            _post(x_sig=_sig(seconds.encode() + b"." + BODY), x_time=seconds), now
        )
    )
    assert VerificationFailure.TOO_NEW == _reason(
        make_source(TIMED.replace("UNIT", "s"), ENV).verify(
            _post(x_sig=_sig(milliseconds.encode() + b"." + BODY), x_time=milliseconds), now
        )
    )


@pytest.mark.parametrize(
    "stamp", ["NaN", "nan", "inf", "-1", "+1", "1e9", "", " ", "0x10", "1_000", "N/A", "9" * 400, "ñ", "\ud800", "١٢٣"]
)
def test_a_timestamp_that_is_none_is_refused(stamp, make_source, now) -> None:
    """What is not plain digits is no timestamp, be its signature right."""
    raw = stamp.encode("latin-1") if stamp.isascii() or stamp == "ñ" else stamp.encode("utf-8", "surrogatepass")
    received = _post(x_sig=_sig(raw + b"." + BODY), x_time=stamp)

    assert VerificationFailure.NO_TIMESTAMP == _reason(
        make_source(TIMED.replace("UNIT", "s"), ENV).verify(received, now)
    )


def test_a_signed_timestamp_that_is_missing_is_refused(make_source, now) -> None:
    """Nothing stands in for it."""
    source = make_source(TIMED.replace("UNIT", "s"), ENV)

    assert VerificationFailure.NO_TIMESTAMP == _reason(source.verify(_post(x_sig=_sig(b"." + BODY)), now))


def test_any_signature_of_a_list_may_be_the_right_one(make_source, now) -> None:
    """Two signatures, the second right: rotation. None of the wanted scheme: malformed."""
    source = make_source(LISTED, ENV)
    stamp = str(int(now.timestamp()))
    good = _sig(stamp.encode() + b"." + BODY)

    assert "verified" == _reason(source.verify(_post(x_sig=f"t={stamp},v1={'0' * 64},v1={good}"), now))
    assert "verified" == _reason(source.verify(_post(x_sig=f"v1={good}, t={stamp}"), now))
    assert VerificationFailure.MALFORMED == _reason(source.verify(_post(x_sig=f"t={stamp},v0={good}"), now))
    assert VerificationFailure.MALFORMED == _reason(source.verify(_post(x_sig=f"t={stamp},v1="), now))
    assert VerificationFailure.MALFORMED == _reason(source.verify(_post(x_sig=f"t={stamp}"), now))
    assert VerificationFailure.NO_TIMESTAMP == _reason(source.verify(_post(x_sig=f"v1={good}"), now))
    assert VerificationFailure.MISMATCH == _reason(source.verify(_post(x_sig=f"t={int(stamp) + 1},v1={good}"), now))


@pytest.mark.parametrize("kind", ["hmac", "hash_concat"])
def test_an_empty_key_verifies_nothing(kind, make_source, now) -> None:
    """Even what was signed with an empty key does not pass where nothing is left of a secret without its prefix."""
    source = make_source(f"auth: {{{kind}: {{header: X-Sig, key_prefix: {SECRET}, key: {{env: KEY}}}}}}\n" + EVENT, ENV)
    made = hmac.digest(b"", BODY, "sha256") if kind == "hmac" else hashlib.sha256(BODY).digest()

    assert VerificationFailure.MISMATCH == _reason(source.verify(_post(x_sig=made.hex()), now))


@pytest.mark.parametrize(
    ("headers", "query", "reason"),
    [
        ({"x-webhook-secret": SECRET}, b"", "verified"),
        ({"x-webhook-secret": SECRET + " "}, b"", "verified"),
        ({"authorization": f"Bearer {SECRET}"}, b"", "verified"),
        ({"authorization": f"bearer {SECRET}"}, b"", "verified"),
        ({"authorization": "Basic " + base64.b64encode(f"any:{SECRET}".encode()).decode()}, b"", "verified"),
        ({}, b"token=" + SECRET.encode(), "verified"),
        ({}, b"a=1&token=" + SECRET.encode() + b"&token=x", "verified"),
        ({}, b"token=x&token=" + SECRET.encode(), VerificationFailure.MISMATCH),
        ({}, b"", VerificationFailure.MISSING),
        ({}, b"token=", VerificationFailure.MISMATCH),
        ({}, b"token=%ff%fe", VerificationFailure.MISMATCH),
        ({}, b"&" * 5000, VerificationFailure.MISSING),
        ({}, b"token", VerificationFailure.MISMATCH),
        ({"x-webhook-secret": ""}, b"", VerificationFailure.MISMATCH),
        ({"x-webhook-secret": "ñandú"}, b"", VerificationFailure.MISMATCH),
        ({"x-webhook-secret": "\ud800"}, b"", VerificationFailure.MISMATCH),
        ({"x-webhook-secret": SECRET[:-1]}, b"", VerificationFailure.MISMATCH),
        ({"authorization": SECRET}, b"", VerificationFailure.MISSING),
        ({"authorization": "Basic !!!"}, b"", VerificationFailure.MISSING),
        ({"authorization": "Basic " + base64.b64encode(b"any:").decode()}, b"", VerificationFailure.MISMATCH),
        ({"authorization": "Basic " + base64.b64encode(b"\xff\xfe").decode()}, b"", VerificationFailure.MISMATCH),
        ({"authorization": "Bearer"}, b"", VerificationFailure.MISSING),
    ],
)
def test_the_quick_start_takes_its_secret_in_four_places(headers, query, reason, make_source, now) -> None:
    """A header, a bearer token, a password or a token in the address; nothing else, and nothing raises."""
    source = make_source("{extend: generic, secrets: [{env: KEY}]}", ENV)
    received = WebhookRequest(method="POST", path="/webhooks/crm", query_string=query, headers=headers, body=BODY)

    assert reason == _reason(source.verify(received, now))


def test_basic_credentials(make_source, now) -> None:
    """A secret `user:password` is both; with a `user` of its own the secret is the password."""
    whole = make_source("auth: {basic: {key: {env: PAIR}}}\n" + EVENT, {"PAIR": "crm:fake-password-12"})
    split = make_source("auth: {basic: {user: crm, key: {env: WORD}}}\n" + EVENT, {"WORD": "fake-password-12"})
    good = "Basic " + base64.b64encode(b"crm:fake-password-12").decode()
    bad = "Basic " + base64.b64encode(b"other:fake-password-12").decode()

    for source in (whole, split):
        assert "verified" == _reason(source.verify(_post(authorization=good), now))
        assert VerificationFailure.MISMATCH == _reason(source.verify(_post(authorization=bad), now))


def test_a_token_in_the_body(make_source, now) -> None:
    """The token at its path passes; another, none, and a body that cannot be read do not."""
    source = make_source("auth: {body_token: {path: auth.token}}\nsecrets: [{env: KEY}]\n" + EVENT, ENV)

    def verify(document: object) -> str:
        return _reason(source.verify(_post(json.dumps(document).encode()), now))

    assert "verified" == verify({"auth": {"token": SECRET}})
    assert VerificationFailure.MISMATCH == verify({"auth": {"token": "other"}})
    assert VerificationFailure.MISMATCH == verify({"auth": {"token": "\ud800"}})
    assert VerificationFailure.MISSING == verify({"auth": {"token": ""}})
    assert VerificationFailure.MISSING == verify({"auth": {"token": None}})
    assert VerificationFailure.MISSING == verify({"auth": [SECRET]})
    assert VerificationFailure.MISSING == verify([])
    assert VerificationFailure.MISSING == _reason(source.verify(_post(b"\xff" + SECRET.encode()), now))


def test_a_public_key_is_never_taken_for_a_shared_one(make_source, now) -> None:
    """Whoever knows the public key of a rotation pair cannot sign with it as if it were the secret."""
    public = base64.b64encode(b"k" * 32).decode()
    source = make_source("{extend: standard-webhooks, secrets: [{env: PUBLIC}]}", {"PUBLIC": "whpk_" + public})
    stamp = str(int(now.timestamp()))
    for key in (b"k" * 32, public.encode(), b"whpk_" + public.encode()):
        forged = base64.b64encode(hmac.digest(key, b"id." + stamp.encode() + b"." + BODY, "sha256")).decode()
        received = _post(webhook_id="id", webhook_timestamp=stamp, webhook_signature=f"v1,{forged}")
        assert isinstance(source.verify(received, now), Rejected)


def test_what_is_logged_of_a_refusal_holds_nothing_of_it(make_source, now) -> None:
    """The detail names what was looked at, never what was found."""
    found = make_source(PLAIN, ENV).verify(_post(x_sig="personal-data"), now)

    assert isinstance(found, Rejected)
    assert "personal-data" not in repr(found)


NOW = datetime(2026, 3, 2, 13, 0, tzinfo=UTC)
_ANY_TEXT = st.text(st.characters(codec=None), max_size=200)


@given(value=_ANY_TEXT, other=_ANY_TEXT, query=st.binary(max_size=200), body=st.binary(max_size=300))
def test_no_request_whatever_raises_or_passes(value, other, query, body, make_source) -> None:
    """Arbitrary headers, addresses and bodies are refused by every kind of verifier."""
    headers = dict.fromkeys(("x-sig", "authorization", "x-webhook-secret", "webhook-signature"), value)
    headers |= dict.fromkeys(("x-time", "webhook-id", "webhook-timestamp", "content-type"), other)
    received = WebhookRequest(method="POST", path="/webhooks/crm", query_string=query, headers=headers, body=body)
    texts = (
        PLAIN,
        PREFIXED,
        TIMED.replace("UNIT", "iso"),
        LISTED,
        "{extend: generic, secrets: [{env: KEY}]}",
        "{extend: hubspot, secrets: [{env: KEY}], auth: {enable: [v1]}}",
        "auth: {body_token: {path: token}}\nbody: {format: auto}\nsecrets: [{env: KEY}]\n" + EVENT,
    )
    for text in texts:
        assert isinstance(make_source(text, ENV).verify(received, NOW), Rejected)

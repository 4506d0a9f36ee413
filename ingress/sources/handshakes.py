"""What a sender asks before or between events, and the answer: get_echo, options, json_challenge, ignore.

The first two are asked without a signature, by GET and OPTIONS; the last two come as signed POSTs and are answered after the
signature was checked. What is echoed comes from outside: only a short plain token goes back, as plain text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from ingress.sources.request import WebhookRequest, WebhookResponse
from ingress.sources.shared_secrets import same_bytes
from rules.paths import CompiledPath, Match, Scope, header_text

#: What may be echoed: Meta sends digits, Slack letters and digits.
_ECHO: Final = re.compile(r"[A-Za-z0-9._~=+/-]{1,500}")
_PLAIN: Final = {"content-type": "text/plain; charset=utf-8"}
_JSON: Final = {"content-type": "application/json"}


@dataclass(frozen=True, slots=True, kw_only=True)
class GetEcho:
    """`GET ?hub.challenge=...`: echoed when the token is ours. Source: Meta, "Webhooks: getting started"."""

    param: str
    token_param: str
    expect: Mapping[str, str]
    tokens: tuple[bytes, ...] = field(repr=False)

    def answer(self, received: WebhookRequest) -> WebhookResponse | None:
        """Return the challenge, a 403, or None when this request asks nothing."""
        query = received.query()
        if received.method != "GET" or self.param not in query:
            return None
        given = query.get(self.token_param, "").encode("utf-8", "surrogatepass")
        known = False
        for token in self.tokens:
            known |= bool(token) and same_bytes(given, token)
        expected = all(query.get(name) == value for name, value in self.expect.items())
        challenge = query[self.param]
        if not known or not expected or not _ECHO.fullmatch(challenge):
            return WebhookResponse(status=403, body=b"refused", headers=_PLAIN)
        return WebhookResponse(status=200, body=challenge.encode("ascii"), headers=_PLAIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The OPTIONS handshake of CloudEvents. Source: cloudevents/spec, http-webhook.md, section 4."""

    rate: int | None

    def answer(self, received: WebhookRequest) -> WebhookResponse | None:
        """Return leave for the origin that asks, or None when this request asks nothing."""
        origin = received.headers.get("webhook-request-origin")
        if received.method != "OPTIONS" or origin is None:
            return None
        name = header_text(origin)
        if not _ECHO.fullmatch(name):
            return WebhookResponse(status=403, body=b"refused", headers=_PLAIN)
        headers = {"webhook-allowed-origin": name, "allow": "POST, GET, OPTIONS"}
        if "webhook-request-rate" in received.headers or self.rate:
            headers["webhook-allowed-rate"] = str(self.rate or "*")
        return WebhookResponse(status=200, headers=headers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """A verified POST that wants a value of its own back, such as Slack's url_verification."""

    match: Match
    value: CompiledPath
    as_json: bool

    def answer(self, scope: Scope) -> WebhookResponse | None:
        """Return the value asked for, or None when this request asks nothing."""
        if not self.match(scope):
            return None
        value = self.value.find(scope)
        if not isinstance(value, str) or not _ECHO.fullmatch(value):
            return WebhookResponse(status=400, body=b"no challenge", headers=_PLAIN)
        if self.as_json:
            return WebhookResponse(status=200, body=json.dumps({"challenge": value}).encode(), headers=_JSON)
        return WebhookResponse(status=200, body=value.encode("ascii"), headers=_PLAIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ignore:
    """A verified POST that means nothing, such as a ping: success, no event."""

    match: Match

    def answer(self, scope: Scope) -> WebhookResponse | None:
        """Return success, or None when this is something else."""
        return WebhookResponse(status=200, body=b'{"status":"ignored"}', headers=_JSON) if self.match(scope) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Handshakes:
    """All questions a source may ask."""

    unsigned: Sequence[GetEcho | Options] = ()
    signed: Sequence[Challenge | Ignore] = ()

    def before(self, received: WebhookRequest) -> WebhookResponse | None:
        """Answer a question that carries no signature."""
        return next((answer for one in self.unsigned if (answer := one.answer(received))), None)

    def after(self, scope: Scope) -> WebhookResponse | None:
        """Answer a question inside a verified body."""
        return next((answer for one in self.signed if (answer := one.answer(scope))), None)

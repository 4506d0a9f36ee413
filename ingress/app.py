"""The Flask application that receives webhooks: verify, parse, record, publish, answer. It also serves health checks.

A 2xx is sent only after the record is committed. Unverified requests are never stored. A verified request that cannot be parsed
is stored and answered with success, because its sender would only repeat it. While the ledger cannot be written the sender gets
its source's busy status; nothing a sender posts causes any other 5xx. The body is read once, raw, with a hard size limit.
Answers are JSON unless the source says otherwise, and never contain a traceback, a version or the name of another source. What is
no HTTP request never gets here: the server refuses it in its own words.

The view never waits: it returns a `DeferredResponse`, which waits for the commit in the thread of an ordinary WSGI server, or
is completed by a server that does not block (`ingress/server.py`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from threading import Lock
from typing import Any, Final

from flask import Flask, Request, Response, request
from flask.sessions import NullSession, SessionInterface
from werkzeug.exceptions import ClientDisconnected, HTTPException, MethodNotAllowed
from werkzeug.routing import MapAdapter

from ingress.request_counts import UNKNOWN, RequestCounts
from ingress.sources import Rejected, Source, Unreadable, WebhookRequest, WebhookResponse
from rules.vocabulary import EventState, LedgerBusyError, LedgerError, Problem
from worker.ledger import Ledger
from worker.ledger.types import Delivery, IncomingEvent, Recorded
from worker.publisher import Publisher

log = logging.getLogger(__name__)

#: When a sender that was told "busy" may come again.
RETRY_AFTER_SECONDS: Final = 10
#: The largest body where a source says nothing else.
BODY_LIMIT_BYTES: Final = 1024 * 1024
#: How long an answer about readiness is good for: a public probe must not cost a sync each.
READINESS_SECONDS: Final = 1.0
METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
#: With every answer.
GUARD_HEADERS: Final = (("X-Content-Type-Options", "nosniff"), ("Cache-Control", "no-store"))
#: Where in a WSGI environ a server that must not wait puts the list in which it wants the responses that would.
DEFERRED: Final = "leadwire.deferred_responses"

_JSON: Final = {"content-type": "application/json"}
#: Statuses that have no body (RFC 9110 15.3.5 and 15.3.6).
_WITHOUT_BODY: Final = frozenset({204, 205})

#: The sources in force by name, or None while there are none: webhooks are then asked to come again.
Sources = Mapping[str, Source] | None


class RequestOutcome(StrEnum):
    """How a webhook request ended; counted in the metrics together with the reason."""

    #: Verified and recorded, be it as unreadable.
    ACCEPTED = "accepted"
    #: A question of the sender's, answered.
    HANDSHAKE = "handshake"
    #: Not believed.
    REJECTED = "rejected"
    #: Larger than the source allows.
    OVERSIZED = "oversized"
    #: A method that means nothing here.
    NOT_ALLOWED = "not_allowed"
    #: Posted to a source that nobody configured.
    UNKNOWN_SOURCE = "unknown_source"
    #: Cannot be recorded now.
    BUSY = "busy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply(WebhookResponse):
    """The response to the sender, with the outcome and reason to count."""

    outcome: RequestOutcome
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """What must be committed before a verified request is answered."""

    source: Source
    delivery: Delivery
    events: Sequence[IncomingEvent]


class DeferredResponse(Response):
    """The response to a verified, parsed webhook whose record is not committed yet.

    Called by an ordinary WSGI server, it waits in that thread for the commit. A server that must not block puts a list into the
    environ under `DEFERRED`: the response then only appends itself to the list. The server records `recording.delivery` with
    `recording.events`, calls `finish` or `fail`, and calls the response again.
    """

    def __init__(self, recording: Recording, ledger: Ledger, publisher: Publisher, counts: RequestCounts) -> None:
        super().__init__(status=recording.source.ack.status)
        self.recording = recording
        self._ledger = ledger
        self._publisher = publisher
        self._counts = counts
        self._is_finished = False

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Send the response, as WSGI has it."""
        if not self._is_finished:
            if DEFERRED in environ:
                environ[DEFERRED].append(self)
                return ()
            try:
                self.finish(self._ledger.inbox.record(self.recording.delivery, self.recording.events))
            except Exception as fault:  # noqa: BLE001 - nothing may get past
                self.fail(fault)
        return super().__call__(environ, start_response)

    def finish(self, recorded: Recorded) -> None:
        """Publish the recorded events and turn this response into the success answer."""
        source = self.recording.source
        try:
            if recorded.event_ids:
                self._publisher.events(recorded.event_ids)
        except Exception as fault:  # noqa: BLE001 - it is on disk: the sweeper finds it
            log.warning("%s: cannot publish: %s; the sweeper will", source.name, type(fault).__name__)
        self._become(_accepted(source, self.recording.events, recorded))

    def fail(self, fault: Exception) -> None:
        """Turn this response into the answer for a record that failed with `fault`."""
        self._become(_failed(self.recording.source, fault))
        fault.__traceback__ = None  # its frames hold the request, and it is held by what they hold: a circle

    def _become(self, reply: Reply) -> None:
        self._is_finished = True
        self._counts.add(self.recording.source.name, reply.outcome, reply.reason)
        _fill(self, reply)


class _Flask(Flask):
    """Flask without what every request would pay for and none needs: host names, sessions, the search for coroutine functions."""

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        """Return what finds the view of a request, by its path and method alone."""
        if request is None:
            return super().create_url_adapter(request)
        return MapAdapter(self.url_map, "", "", None, "http", request.path, request.method)

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Return a view or a handler as it is: all of them are plain functions."""
        return func


class _NoSessions(SessionInterface):
    def open_session(self, _app: Flask, _request: Any) -> NullSession:
        return NullSession()

    def save_session(self, *_: Any) -> None:
        """Keep nothing."""


def create_app(
    sources: Sources | Callable[[], Sources],
    ledger: Ledger,
    publisher: Publisher,
    counts: RequestCounts,
    *,
    now: Callable[[], datetime],
    new_id: Callable[[], str],
    body_limit_bytes: int = BODY_LIMIT_BYTES,
) -> Flask:
    """Return the WSGI application of the public port.

    `sources` is a mapping, or a function that returns one and is called for every request. `body_limit_bytes` applies where a
    source sets no limit. `new_id` returns a new event id. Every webhook request is counted in `counts`.
    """
    app = _Flask("leadwire", static_folder=None)
    app.session_interface = _NoSessions()
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False  # it would answer with a redirect, which a sender of webhooks does not follow
    in_force = sources if callable(sources) else lambda: sources
    readiness = Readiness(ledger)

    def counted(name: str, reply: Reply) -> Response:
        counts.add(name, reply.outcome, reply.reason)
        return _fill(Response(), reply)

    def webhook(name: str) -> Response:
        known = in_force()
        if known is None:
            return counted(UNKNOWN, busy(None, "no_sources"))
        source = known.get(name)
        if source is None:
            return counted(UNKNOWN, _no_such_source())  # never the posted name: anybody can post any number
        limit_bytes = source.body_limit_bytes or body_limit_bytes
        body = _body(limit_bytes)
        decided = _oversized(limit_bytes) if body is None else decide(_webhook_request(body), source, now(), new_id)
        if isinstance(decided, Reply):
            return counted(name, decided)
        return DeferredResponse(decided, ledger, publisher, counts)

    def healthz() -> Response:
        return _say(200, status="ok")

    def readyz() -> Response:
        reasons = [] if in_force() is not None else ["no valid sources are loaded: run `leadwire check`"]
        reasons += readiness.reasons()
        return _say(503 if reasons else 200, status="not ready" if reasons else "ready", reasons=reasons)

    for rule in ("/webhooks/<name>", "//webhooks/<name>", "/webhooks//<name>", "//webhooks//<name>"):
        app.add_url_rule(rule, "webhook", webhook, methods=METHODS, provide_automatic_options=False)
    app.add_url_rule("/healthz", "healthz", healthz, methods=("GET", "HEAD"))
    app.add_url_rule("/readyz", "readyz", readyz, methods=("GET", "HEAD"))
    app.register_error_handler(Exception, _answer_fault)
    app.after_request(_guard)
    return app


def largest_body_bytes(sources: Mapping[str, Source], body_limit_bytes: int = BODY_LIMIT_BYTES) -> int:
    """Return the size of the largest body that any of these sources takes."""
    return max([body_limit_bytes, *(source.body_limit_bytes or 0 for source in sources.values())])


def decide(received: WebhookRequest, source: Source, now: datetime, new_id: Callable[[], str]) -> Reply | Recording:
    """Return the response to send, or what must be recorded first. Never raises and never waits."""
    try:
        return _decide(received, source, now, new_id)
    except Exception as fault:  # noqa: BLE001 - nothing may get past
        return _failed(source, fault)


def busy(source: Source | None, reason: str) -> Reply:
    """Return the response that makes a sender retry: the source's busy status, or 503 without a source."""
    return Reply(
        status=source.ack.busy_status if source else 503,
        body=_json(status="busy", reason="cannot record right now; send it again"),
        headers={**_JSON, "retry-after": str(RETRY_AFTER_SECONDS)},
        outcome=RequestOutcome.BUSY,
        reason=reason,
    )


def refusal(status: int, reason: str) -> WebhookResponse:
    """Return the response to an incomplete request, for which no source is known."""
    return WebhookResponse(status=status, body=_json(status="refused", reason=reason), headers=_JSON)


def _oversized(limit_bytes: int) -> Reply:
    reason = f"the body is larger than {limit_bytes} bytes"
    return _reply(413, RequestOutcome.OVERSIZED, _json(status="refused", reason=reason))


def _no_such_source() -> Reply:
    reason = "there is no such source; check the address against the sources of your rules"
    return _reply(404, RequestOutcome.UNKNOWN_SOURCE, _json(status="unknown", reason=reason))


def _reply(status: int, outcome: RequestOutcome, body: bytes, reason: str = "") -> Reply:
    return Reply(status=status, body=body, headers=_JSON, outcome=outcome, reason=reason)


def _failed(source: Source, fault: Exception) -> Reply:
    if isinstance(fault, LedgerBusyError):
        log.warning("%s: cannot record now: %s", source.name, fault)
        return busy(source, "ledger_busy")
    if isinstance(fault, LedgerError):
        log.error("%s: cannot record: %s", source.name, fault)
        return busy(source, "ledger_fault")
    log.error("%s: unexpected %s at %s", source.name, type(fault).__name__, _where(fault))
    return busy(source, "unexpected")


def _decide(received: WebhookRequest, source: Source, now: datetime, new_id: Callable[[], str]) -> Reply | Recording:
    if received.method != "POST":
        asked = source.handshake(received) if received.method in ("GET", "OPTIONS") else None
        return _handshake(asked) if asked else _not_allowed()
    proof = source.verify(received, now)
    if isinstance(proof, Rejected):
        log.warning("%s: rejected: %s (%s)", source.name, proof.reason, proof.detail)
        return _reply(401, RequestOutcome.REJECTED, _json(status="rejected", reason=proof.reason), proof.reason)
    asked = source.challenge(received)
    if asked:
        return _handshake(asked)
    events = _events(received, source, now, new_id)
    return Recording(source=source, delivery=_delivery(received, source, now, new_id), events=events)


def _events(received: WebhookRequest, source: Source, now: datetime, new_id: Callable[[], str]) -> list[IncomingEvent]:
    try:
        read = source.read(received, now, new_id)
    except Exception as fault:  # noqa: BLE001 - a verified body must be kept whatever reading it does
        log.error("%s: reading failed: %s at %s", source.name, type(fault).__name__, _where(fault))
        read = Unreadable(reason=f"reading it failed: {type(fault).__name__}; please report this")
    if isinstance(read, Unreadable):
        log.warning("%s: verified and unreadable: %s", source.name, read.reason)
        return [source.unreadable(received, read.reason, now, new_id())]
    return read


def _delivery(received: WebhookRequest, source: Source, now: datetime, new_id: Callable[[], str]) -> Delivery:
    headers, body = source.kept(received)
    return Delivery(
        id=f"dl_{new_id().rpartition('_')[2]}",
        source=source.name,
        received_at=now,
        headers=headers,
        body=body,
        content_hash=hashlib.sha256(received.body).hexdigest(),
    )


def _accepted(source: Source, events: Sequence[IncomingEvent], recorded: Recorded) -> Reply:
    body = source.ack.body
    if body is None:
        unreadable = sum(event.state is EventState.UNREADABLE for event in events)
        content = _accepted_body(len(recorded.event_ids), recorded.duplicates, recorded.conflicts, unreadable)
    else:
        content = body.encode()
    content_type = source.ack.content_type or (_JSON["content-type"] if body is None else "text/plain; charset=utf-8")
    return Reply(
        status=source.ack.status,
        body=content,
        headers={"content-type": content_type},
        outcome=RequestOutcome.ACCEPTED,
    )


@lru_cache(maxsize=256)
def _accepted_body(events: int, duplicates: int, conflicts: int, unreadable: int) -> bytes:
    extra = {"conflicts": conflicts, "unreadable": unreadable}
    given = {name: count for name, count in extra.items() if count}
    return _json(status="accepted", events=events, duplicates=duplicates, **given)


def _handshake(answer: WebhookResponse) -> Reply:
    return Reply(status=answer.status, body=answer.body, headers=answer.headers, outcome=RequestOutcome.HANDSHAKE)


def _not_allowed() -> Reply:
    return Reply(
        status=405,
        body=_json(status="refused", reason="this address takes webhooks: POST"),
        headers={**_JSON, "allow": "GET, OPTIONS, POST"},
        outcome=RequestOutcome.NOT_ALLOWED,
    )


def _body(limit_bytes: int) -> bytes | None:
    """Return the raw body, or None when it is larger than the limit; at most that much is read."""
    length = request.content_length
    if length is None:
        body: bytes = request.stream.read(limit_bytes + 1)
        return body if len(body) <= limit_bytes else None
    if length > limit_bytes:
        return None
    # Of a known length: the limited stream that Flask puts around it costs more than the reading.
    body = request.environ["wsgi.input"].read(length)
    if len(body) < length:
        raise ClientDisconnected
    return body


def _webhook_request(body: bytes) -> WebhookRequest:
    environ = request.environ
    # Straight from the environ: going through `request.headers` costs a tenth of the whole request.
    headers = {name[5:].replace("_", "-").lower(): text for name, text in environ.items() if name.startswith("HTTP_")}
    for name in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        if environ.get(name):
            headers[name.replace("_", "-").lower()] = environ[name]
    return WebhookRequest(
        method=request.method,
        path=environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", ""),
        query_string=environ.get("QUERY_STRING", "").encode("latin-1"),
        headers=headers,
        body=body,
        remote=environ.get("REMOTE_ADDR"),
    )


class Readiness:
    """Whether the ledger accepts writes; checked at most once in `READINESS_SECONDS`."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._asking = Lock()
        self._reasons: list[str] = ["the ledger is being asked for the first time"]
        self._asked_seconds = -READINESS_SECONDS

    def reasons(self) -> list[str]:
        """Return why the ledger cannot be written; empty when it can. While one caller checks, others get the last result."""
        if self._asking.acquire(blocking=False):
            try:
                if time.monotonic() - self._asked_seconds >= READINESS_SECONDS:
                    self._reasons = self._ask()
                    self._asked_seconds = time.monotonic()
            finally:
                self._asking.release()
        return self._reasons

    def _ask(self) -> list[str]:
        try:
            self._ledger.check_writable()
        except Problem as fault:
            return [str(fault)]
        except Exception as fault:  # noqa: BLE001 - a probe reports, whatever it meets
            return [f"the ledger cannot be written: {type(fault).__name__}"]
        return []


def _answer_fault(fault: Exception) -> Response:
    """Answer what Flask refuses itself; a fault of ours is a request to come again, never a page about the fault."""
    if isinstance(fault, HTTPException) and fault.code and 400 <= fault.code < 500:  # noqa: PLR2004 - client errors
        response = _say(fault.code, status="refused", reason=fault.name.lower())
        if isinstance(fault, MethodNotAllowed):
            response.headers["Allow"] = ", ".join(sorted(fault.valid_methods or ()))
        return response
    log.error("unexpected %s while answering", type(fault).__name__)
    return _fill(Response(), busy(None, "unexpected"))


def _guard(response: Response) -> Response:
    for name, value in GUARD_HEADERS:
        response.headers[name] = value
    return response


def _fill(response: Response, reply: Reply) -> Response:
    """Make a response say what a reply says."""
    response.status_code = reply.status
    response.data = b"" if reply.status in _WITHOUT_BODY else reply.body
    if reply.status in _WITHOUT_BODY or "content-type" not in reply.headers:
        del response.headers["Content-Type"]
    if reply.status not in _WITHOUT_BODY:
        for name, value in reply.headers.items():
            response.headers[name.title()] = value
    return response


def _say(code: int, **members: object) -> Response:
    body = json.dumps({key: value for key, value in members.items() if value != []}, separators=(",", ":"))
    return Response(body, status=code, content_type=_JSON["content-type"])


def _json(**members: object) -> bytes:
    return json.dumps(members, separators=(",", ":")).encode()


def _where(fault: BaseException) -> str:
    """Return where an exception was raised; its message may quote a payload and is left out."""
    trace = fault.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "an unknown place"
    code = trace.tb_frame.f_code
    return f"{code.co_filename}:{trace.tb_lineno} ({code.co_name})"

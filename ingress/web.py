"""The public port: webhooks in, health out, over Flask.

The body is read once, raw, with a hard cap, and nothing of the framework ever parses it. Every answer is JSON unless the
source says otherwise; none holds a traceback, a version or a name of a source that was not asked for.

A server that cannot wait in its thread puts a function at `environ[HAND_OVER]`: it is given what has to be recorded, and
answers by itself when that stands (`ingress/serving.py` does). Under any other WSGI server the application waits.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime
from threading import Lock
from typing import Final, Protocol

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from ingress.accept import (
    BODY_LIMIT_BYTES,
    JSON_TYPE,
    EventDispatch,
    Outcome,
    Recorder,
    Reply,
    accept,
    begin,
    busy,
    no_such_source,
    oversized,
)
from ingress.request_counts import UNKNOWN
from ingress.sources import Received, Source
from rules.vocabulary import Problem

log = logging.getLogger(__name__)

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
#: How long an answer about readiness is good for.
READINESS_SECONDS: Final = 1.0
#: Where the counts of a process are found: `app.extensions[COUNTS]`.
COUNTS: Final = "leadwire.counts"

#: Where a server finds what returns the largest body any source takes: `app.extensions[READ_LIMIT]`.
READ_LIMIT: Final = "leadwire.read_limit"
#: Where it finds what counts a reply to a source's sender and returns it as status, headers and body.
ANSWER: Final = "leadwire.answer"
#: Where in its environment a server puts what takes a source's name and a `Recording`.
HAND_OVER: Final = "leadwire.hand_over"
#: Statuses that have no body (RFC 9110 15.3.5 and 15.3.6).
_RESET: Final = 205
_WITHOUT_BODY: Final = frozenset({204, _RESET})
#: With every answer.
GUARDS: Final = (("X-Content-Type-Options", "nosniff"), ("Cache-Control", "no-store"))

#: The sources in force, or None while there are none: webhooks then are asked to come again.
Sources = Mapping[str, Source] | None


class Storage(Recorder, Protocol):
    """What the public port needs of the ledger."""

    def writable(self) -> None:
        """Commit a write that leaves nothing behind; raises LedgerError when that cannot be done now."""


class Counts:
    """How often each source came to each outcome, and why; one per process."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._counter: Counter[tuple[str, str, str]] = Counter()

    def add(self, source: str, reply: Reply) -> None:
        """Count one request."""
        with self._lock:
            self._counter[source, str(reply.outcome), reply.reason] += 1

    def all(self) -> dict[tuple[str, str, str], int]:
        """Return the counts by (source, outcome, reason)."""
        with self._lock:
            return dict(self._counter)


def create_app(
    *,
    sources: Sources | Callable[[], Sources],
    ledger: Storage,
    dispatcher: EventDispatch,
    now: Callable[[], datetime],
    new_id: Callable[[], str],
    body_limit_bytes: int = BODY_LIMIT_BYTES,
) -> Flask:
    """Return the WSGI application of the public port.

    `sources` may be a function, asked at every request, so that a changed rules folder is picked up; None means that there is
    no valid set yet. `new_id` makes a fresh id of an event; `body_limit_bytes` holds where a source has no limit of its own.
    Counts are at `app.extensions[COUNTS]`.
    """
    app = Flask("leadwire", static_folder=None)
    app.url_map.strict_slashes = False
    counts = app.extensions[COUNTS] = Counts()
    readiness = Readiness(ledger)
    app.extensions[READ_LIMIT] = lambda: _largest(in_force(), body_limit_bytes)
    app.extensions[ANSWER] = lambda name, reply: _answer(counts, name, reply)
    in_force: Callable[[], Sources] = sources if callable(sources) else lambda: sources

    def webhook(name: str) -> Response:
        known = in_force()
        if known is None:
            return _counted(counts, UNKNOWN, busy(None, "no_sources"))
        source = known.get(name)
        if source is None:
            return _counted(counts, UNKNOWN, no_such_source())  # never the posted name: anybody can post any number
        limit_bytes = source.body_limit_bytes or body_limit_bytes
        body = _body(limit_bytes)
        if body is None:
            return _counted(counts, name, oversized(limit_bytes))
        received, hand_over = _received(body), request.environ.get(HAND_OVER)
        if hand_over is None:
            reply = accept(received, source, ledger, dispatcher, now(), new_id, body_limit_bytes=limit_bytes)
            return _counted(counts, name, reply)
        begun = begin(received, source, now(), new_id, body_limit_bytes=limit_bytes)
        if isinstance(begun, Reply):
            return _counted(counts, name, begun)
        hand_over(name, begun)
        return Response(status=202)  # nobody sees it: the server answers when the record stands

    def healthz() -> Response:
        return _say(200, status="ok")

    def readyz() -> Response:
        reasons = [] if in_force() is not None else ["no valid sources are loaded: run `leadwire check`"]
        reasons += readiness.reasons()
        return _say(503 if reasons else 200, status="not ready" if reasons else "ready", reasons=reasons)

    app.add_url_rule("/webhooks/<name>", "webhook", webhook, methods=METHODS, provide_automatic_options=False)
    app.add_url_rule("/healthz", "healthz", healthz, methods=("GET", "HEAD"))
    app.add_url_rule("/readyz", "readyz", readyz, methods=("GET", "HEAD"))
    app.register_error_handler(Exception, _failed)
    app.after_request(_guarded)
    return app


def _largest(sources: Sources, body_limit_bytes: int) -> int:
    return max([body_limit_bytes, *(source.body_limit_bytes or 0 for source in (sources or {}).values())])


def _body(limit_bytes: int) -> bytes | None:
    """Return the raw body, or None when it is larger than the limit; at most that much is read."""
    length = request.content_length
    if length is not None and length > limit_bytes:
        return None
    # A stream makes room for all it is asked for: asking for no more than was announced saves a megabyte each time.
    body = request.stream.read(limit_bytes + 1 if length is None else length)
    return body if len(body) <= limit_bytes else None


def _received(body: bytes) -> Received:
    return Received(
        method=request.method,
        path=request.environ.get("SCRIPT_NAME", "") + request.environ.get("PATH_INFO", ""),
        query_string=request.query_string,
        headers={name.lower(): value for name, value in request.headers.items()},
        body=body,
        remote=request.remote_addr,
    )


class Readiness:
    """Whether the ledger takes writes, asked of it once a second at the most: a public probe must not cost a sync each."""

    def __init__(self, ledger: Storage) -> None:
        self._ledger = ledger
        self._asking = Lock()
        self._reasons: list[str] = ["the ledger is being asked for the first time"]
        self._asked_seconds = -READINESS_SECONDS

    def reasons(self) -> list[str]:
        """Return why the ledger cannot be written; none: it can. While one caller asks, others get what was known before."""
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
            self._ledger.writable()
        except Problem as fault:
            return [str(fault)]
        except Exception as fault:  # noqa: BLE001 - a probe reports, whatever it meets
            return [f"the ledger cannot be written: {type(fault).__name__}"]
        return []


def _failed(fault: Exception) -> Response:
    """Answer what Flask refuses itself; a fault of ours is a request to come again, never a page about the fault."""
    if isinstance(fault, HTTPException) and fault.code and 400 <= fault.code < 500:  # noqa: PLR2004 - client errors
        response = _say(fault.code, status="refused", reason=fault.name.lower())
        if isinstance(fault, MethodNotAllowed):
            response.headers["Allow"] = ", ".join(sorted(fault.valid_methods or ()))
        return response
    log.error("unexpected %s while answering", type(fault).__name__)
    return _response(busy(None, "unexpected"))


def guarded_headers(headers: Mapping[str, str], body: bytes) -> list[tuple[str, str]]:
    """Return the headers of an answer that does not go through Flask, with those that every answer has."""
    given = [(name.title(), value) for name, value in headers.items()]
    return [*given, *GUARDS, ("Content-Length", str(len(body)))]


def _guarded(response: Response) -> Response:
    for name, value in GUARDS:
        response.headers[name] = value
    return response


def _answer(counts: Counts, source: str, reply: Reply) -> tuple[int, list[tuple[str, str]], bytes]:
    counts.add(source or UNKNOWN, reply)
    if reply.status in _WITHOUT_BODY:
        return reply.status, [*GUARDS, *([("Content-Length", "0")] if reply.status == _RESET else [])], b""
    return reply.status, guarded_headers(reply.headers, reply.body), reply.body


def _counted(counts: Counts, source: str, reply: Reply) -> Response:
    counts.add(source, reply)
    return _response(reply)


def _response(reply: Reply) -> Response:
    response = Response(reply.body, status=reply.status)
    del response.headers["Content-Type"]
    for name, value in reply.headers.items():
        response.headers[name.title()] = value
    return response


def _say(code: int, **members: object) -> Response:
    body = json.dumps({key: value for key, value in members.items() if value != []}, separators=(",", ":"))
    return Response(body, status=code, content_type=JSON_TYPE)


__all__ = [
    "ANSWER",
    "COUNTS",
    "HAND_OVER",
    "READ_LIMIT",
    "Counts",
    "Outcome",
    "Sources",
    "Storage",
    "create_app",
    "guarded_headers",
]

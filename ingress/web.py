"""The public port: webhooks in, health out, over Flask.

The body is read once, raw, with a hard cap, and nothing of the framework ever parses it. Every answer is JSON unless the
source says otherwise; none holds a traceback, a version or a name of a source that was not asked for.

Under any WSGI server a webhook waits here for its record. Ours (`ingress/serving.py`) takes what is posted to the reception
itself, where nobody waits, and leaves all else to this application.
"""

from __future__ import annotations

import json
import logging
import time
from threading import Lock
from typing import Final, Protocol

from flask import Flask, Response, request
from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from ingress.accept import JSON_TYPE, EventDispatch, Recorder, Reply, busy, keep
from ingress.reception import GUARDS, Reception
from ingress.sources import WebhookRequest
from rules.vocabulary import Problem

log = logging.getLogger(__name__)

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
#: How long an answer about readiness is good for.
READINESS_SECONDS: Final = 1.0


class Storage(Protocol):
    """What the public port needs of the ledger."""

    @property
    def inbox(self) -> Recorder:
        """What keeps deliveries."""

    def check_writable(self) -> None:
        """Commit a write that leaves nothing behind; raises LedgerError when that cannot be done now."""


def create_app(reception: Reception, ledger: Storage, publisher: EventDispatch) -> Flask:
    """Return the WSGI application of the public port."""
    app = Flask("leadwire", static_folder=None)
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False  # it would answer with a redirect, which a sender of webhooks does not follow
    readiness = Readiness(ledger)

    def webhook(name: str) -> Response:
        label, begun = reception.begin(name, _read)
        status, headers, body = reception.answer(
            label, begun if isinstance(begun, Reply) else keep(begun, ledger.inbox, publisher)
        )
        return Response(body, status, Headers(headers))

    def healthz() -> Response:
        return _say(200, status="ok")

    def readyz() -> Response:
        reasons = [] if reception.in_force() is not None else ["no valid sources are loaded: run `leadwire check`"]
        reasons += readiness.reasons()
        return _say(503 if reasons else 200, status="not ready" if reasons else "ready", reasons=reasons)

    app.add_url_rule("/webhooks/<name>", "webhook", webhook, methods=METHODS, provide_automatic_options=False)
    app.add_url_rule("/healthz", "healthz", healthz, methods=("GET", "HEAD"))
    app.add_url_rule("/readyz", "readyz", readyz, methods=("GET", "HEAD"))
    app.register_error_handler(Exception, _failed)
    app.after_request(_guarded)
    return app


def _read(limit_bytes: int) -> WebhookRequest | None:
    body = _body(limit_bytes)
    return None if body is None else _received(body)


def _body(limit_bytes: int) -> bytes | None:
    """Return the raw body, or None when it is larger than the limit; at most that much is read."""
    length = request.content_length
    if length is not None and length > limit_bytes:
        return None
    # A stream makes room for all it is asked for: asking for no more than was announced saves a megabyte each time.
    body = request.stream.read(limit_bytes + 1 if length is None else length)
    return body if len(body) <= limit_bytes else None


def _received(body: bytes) -> WebhookRequest:
    return WebhookRequest(
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
            self._ledger.check_writable()
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


def _guarded(response: Response) -> Response:
    for name, value in GUARDS:
        response.headers[name] = value
    return response


def _response(reply: Reply) -> Response:
    response = Response(reply.body, status=reply.status)
    del response.headers["Content-Type"]
    for name, value in reply.headers.items():
        response.headers[name.title()] = value
    return response


def _say(code: int, **members: object) -> Response:
    body = json.dumps({key: value for key, value in members.items() if value != []}, separators=(",", ":"))
    return Response(body, status=code, content_type=JSON_TYPE)

"""The public port: webhooks in, health out, over Flask and waitress.

The body is read once, raw, with a hard cap, and nothing of the framework ever parses it. Every answer is JSON unless the
source says otherwise; none holds a traceback, a version or a name of a source that was not asked for.
"""

from __future__ import annotations

import json
import logging
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from threading import Lock
from typing import Any, Final, Protocol

from flask import Flask, Response, request
from waitress.server import create_server  # type: ignore[import-untyped]  # it has no annotations
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from ingress.accept import (
    BODY_LIMIT_BYTES,
    JSON_TYPE,
    EventDispatch,
    Outcome,
    Recorder,
    Reply,
    accept,
    busy,
    no_such_source,
    oversized,
)
from ingress.request_counts import UNKNOWN
from ingress.sources import Received, Source
from rules.vocabulary import Problem

log = logging.getLogger(__name__)

#: What waitress reads on top of the largest body, so that "too large" is said by us, with our reason.
HEADROOM_BYTES: Final = 64 * 1024
#: More than senders at once: who waits for the commit holds a thread, and the more wait, the more share one commit.
THREADS: Final = 32
CONNECTIONS: Final = 1_000
CHANNEL_TIMEOUT_SECONDS: Final = 20
METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
#: How long an answer about readiness is good for.
READINESS_SECONDS: Final = 1.0
#: Where the counts of a process are found: `app.extensions[COUNTS]`.
COUNTS: Final = "leadwire.counts"

#: Where `listen` finds the largest body any source takes.
_READ_LIMIT: Final = "leadwire.read_limit"

#: The sources in force, or None while there are none: webhooks then are asked to come again.
Sources = Mapping[str, Source] | None


class Storage(Recorder, Protocol):
    """What the public port needs of the ledger."""

    def writable(self) -> None:
        """Commit a write that leaves nothing behind; raises LedgerError when that cannot be done now."""


class Server:
    """A server that listens already; `host` and `port` are what was taken when port 0 was asked for."""

    def __init__(self, listening: Any) -> None:
        self._listening = listening
        several = getattr(listening, "effective_listen", None)  # a name with several addresses
        host, port = several[0] if several else (listening.effective_host, listening.effective_port)
        self.host, self.port = str(host), int(port)

    def run(self) -> None:
        """Serve until `close`, or until SystemExit or KeyboardInterrupt in this thread; then requests are finished."""
        self._listening.run()

    def close(self) -> None:
        """Stop listening and let `run` return; may be called from any thread."""
        for server in self._servers():
            server.trigger.pull_trigger(partial(_stop, server))

    def _servers(self) -> list[Any]:
        several = getattr(self._listening, "map", None)
        return [one for one in several.values() if hasattr(one, "active_channels")] if several else [self._listening]


def _stop(server: Any) -> None:
    """Close a waitress server from within its own loop; connections in the middle of a request are let finish."""
    for channel in list(server.active_channels.values()):
        if not channel.requests:
            channel.handle_close()
    server.close()


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
    Counts are at `app.extensions["leadwire.counts"]`.
    """
    app = Flask("leadwire", static_folder=None)
    app.url_map.strict_slashes = False
    counts = app.extensions[COUNTS] = Counts()
    readiness = Readiness(ledger)
    app.extensions[_READ_LIMIT] = lambda: _largest(in_force(), body_limit_bytes)
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
            reply = oversized(limit_bytes)
        else:
            reply = accept(_received(body), source, ledger, dispatcher, now(), new_id, body_limit_bytes=limit_bytes)
        return _counted(counts, name, reply)

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


def listen(app: Flask, sockets: Sequence[socket.socket]) -> Server:
    """Return a server on these bound sockets, which other processes may share; call its `run`."""
    return Server(
        create_server(
            app,
            sockets=list(sockets),
            threads=THREADS,
            connection_limit=CONNECTIONS,
            channel_timeout=CHANNEL_TIMEOUT_SECONDS,
            asyncore_use_poll=True,  # select(2) ends at 1,024 descriptors, and costs more
            max_request_body_size=app.extensions[_READ_LIMIT]() + HEADROOM_BYTES,
            clear_untrusted_proxy_headers=True,
            ident="leadwire",
        )
    )


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


def _guarded(response: Response) -> Response:
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Cache-Control"] = "no-store"
    return response


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


__all__ = ["COUNTS", "Counts", "Outcome", "Server", "Sources", "Storage", "create_app", "listen"]

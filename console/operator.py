"""The operator port: Prometheus metrics and a status page, behind the operator token.

It is a second port of the ingress process, apart from the public one. No answer contains personal data, a secret or a
provider's text. Every request is answered in bounded time: while the ledger cannot be read the answer is a 503 that says so.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Final, Generic, TypeVar

from flask import Flask, Response, request
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from pydantic import SecretStr
from waitress.server import create_server  # type: ignore[import-untyped]  # it has no annotations
from werkzeug.exceptions import HTTPException

from console.metrics import VERSION, Collector, MetricsSnapshot
from ingress.request_counts import RequestCounts, Requests
from rules.vocabulary import LedgerError, ProviderName, instant
from worker.ledger import Ledger, Measures
from worker.ledger.types import ProviderState

log = logging.getLogger(__name__)

THREADS: Final = 3
CONNECTIONS: Final = 50
CHANNEL_TIMEOUT_SECONDS: Final = 20
CLOSING_SECONDS: Final = 1.0
#: No request here has a body worth reading.
BODY_LIMIT_BYTES: Final = 16 * 1024
#: Less than the ten seconds after which Prometheus hangs up.
LEDGER_PATIENCE_SECONDS: Final = 8.0
BROKER_PATIENCE_SECONDS: Final = 1.0

_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


T = TypeVar("T")

#: A value is shown again for at least this long,
FRESH_SECONDS: Final = 2.0
#: and for this many times what reading it took, so that scrapes never take more than a twentieth of a processor,
FRESH_FACTOR: Final = 20.0
#: but never for longer than this.
FRESH_LIMIT_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class TimedValue(Generic[T]):
    """A value that was read, how long that took, and when it was complete (monotonic clock)."""

    value: T
    took_seconds: float
    done_seconds: float

    def is_fresh(self) -> bool:
        """Return whether it is recent enough to be shown."""
        fresh_seconds = min(max(FRESH_SECONDS, FRESH_FACTOR * self.took_seconds), FRESH_LIMIT_SECONDS)
        return time.monotonic() - self.done_seconds < fresh_seconds


class SharedReading(Generic[T]):
    """Runs a costly read at most once at a time, on its own thread, and shares the result with all callers.

    `name` names the thread; `read` returns the value or raises.
    """

    def __init__(self, name: str, read: Callable[[], T]) -> None:
        self._name = name
        self._read = read
        self._lock = threading.Lock()
        self._last: TimedValue[T] | None = None
        self._under_way: Future[TimedValue[T]] | None = None

    def get(self, patience_seconds: float) -> TimedValue[T]:
        """Return a fresh value. Raises TimeoutError when there is none in time, or what `read` raised."""
        with self._lock:
            if self._last is not None and self._last.is_fresh():
                return self._last
            future = self._under_way
            if future is None:
                future = self._under_way = Future()
                threading.Thread(target=self._run, args=(future,), name=f"read-{self._name}", daemon=True).start()
        return future.result(patience_seconds)

    def _run(self, future: Future[TimedValue[T]]) -> None:
        began_seconds = time.monotonic()
        read: TimedValue[T] | None = None
        failure: BaseException | None = None
        try:
            value = self._read()
            done_seconds = time.monotonic()
            read = TimedValue(value, done_seconds - began_seconds, done_seconds)
        except BaseException as error:  # noqa: BLE001 - whoever waits is told, and the next one to ask tries again
            failure = error
        with self._lock:
            self._last = read or self._last
            self._under_way = None
        if read is not None:
            future.set_result(read)
        else:
            future.set_exception(failure)


class UnreadableLedgerError(LedgerError):
    """The ledger cannot be read, or not in time."""


class SnapshotReader:
    """Reads the data for the operator port, each part once for all concurrent callers."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        requests: RequestCounts,
        now: Callable[[], datetime],
        queues: Callable[[], Mapping[str, int] | None],
        sources: Collection[str],
        refused: bool,
        patience_seconds: float = LEDGER_PATIENCE_SECONDS,
    ) -> None:
        """Take `queues`, which reads the depth of each queue, None without a broker; `refused` as in `MetricsSnapshot`."""

        def measure() -> tuple[Measures, Requests]:
            with requests.paused() as pending:
                return ledger.queries.measure(now()), pending

        self._measures: SharedReading[tuple[Measures, Requests]] = SharedReading("ledger", measure)
        self._queues: SharedReading[Mapping[str, int] | None] = SharedReading("broker", queues)
        self._sources = sources
        self._refused = refused
        self._patience_seconds = patience_seconds

    def view(self) -> MetricsSnapshot:
        """Return the snapshot. Raises UnreadableLedgerError."""
        try:
            read = self._measures.get(self._patience_seconds)
        except TimeoutError:
            raise UnreadableLedgerError(
                f"the ledger has not answered for {self._patience_seconds:.0f} s: see its disk, its locks or its server"
            ) from None
        except LedgerError as error:
            raise UnreadableLedgerError(str(error)) from error
        measures, pending = read.value
        return MetricsSnapshot(
            measures=measures,
            requests=pending,
            read_seconds=read.took_seconds,
            sources=self._sources,
            queues=self._depths(),
            refused=self._refused,
        )

    def _depths(self) -> Mapping[str, int] | None:
        try:
            return self._queues.get(BROKER_PATIENCE_SECONDS).value
        except TimeoutError:
            return None


def create_operator_app(*, watch: SnapshotReader, token: SecretStr, reasons: Callable[[], list[str]]) -> Flask:
    """Return the WSGI application of the operator port; `reasons` returns why webhooks cannot be recorded now."""
    app = Flask("leadwire-operator", static_folder=None)
    app.url_map.strict_slashes = False

    def metrics() -> Response:
        return _exposition(watch.view(), request.headers.get("Accept", ""))

    def status() -> Response:
        return _say(200, **_status(watch.view(), reasons()))

    def healthz() -> Response:
        return _say(200, status="ok")

    for name, answer in (("metrics", metrics), ("status", status)):
        app.add_url_rule(f"/{name}", name, _guarded(answer, token), methods=("GET", "HEAD"))
    app.add_url_rule("/healthz", "healthz", healthz, methods=("GET", "HEAD"))
    app.register_error_handler(Exception, _failed)
    app.after_request(_dressed)
    return app


class OperatorServer:
    """The operator port's server, listening from construction; `host` and `port` are the actual ones when port 0 was given."""

    def __init__(self, app: Flask, host: str, port: int) -> None:
        """Listen on `host` and `port`. Raises OSError when the address is taken."""
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(address[:2], family=family)
        self.host, self.port = listener.getsockname()[:2]
        self._listening: Any = create_server(
            app,
            sockets=[listener],
            threads=THREADS,
            connection_limit=CONNECTIONS,
            channel_timeout=CHANNEL_TIMEOUT_SECONDS,
            max_request_body_size=BODY_LIMIT_BYTES,
            clear_untrusted_proxy_headers=True,
            ident="leadwire",
        )
        self._thread = threading.Thread(target=self._listening.run, name="operator-port", daemon=True)

    def start(self) -> None:
        """Serve on a background thread until `close`."""
        self._thread.start()

    def close(self) -> None:
        """Stop listening; a running scrape may take one more second."""
        if not self._thread.is_alive():
            self._listening.close()
            return
        # First the threads: one that ends a request later would call a loop that is gone.
        self._listening.task_dispatcher.shutdown(timeout=CLOSING_SECONDS)
        self._listening.trigger.pull_trigger(partial(_stop, self._listening))
        self._thread.join(timeout=CLOSING_SECONDS)


def _stop(server: Any) -> None:
    for channel in list(server.active_channels.values()):
        if channel.total_outbufs_len:
            channel.close_when_flushed = True
        else:
            channel.handle_close()
    server.close()


def _guarded(answer: Callable[[], Response], token: SecretStr) -> Callable[[], Response]:
    """Return what answers only those who know the token."""

    def guarded() -> Response:
        given = _given_token(request.headers.get("Authorization", ""))
        if given is not None and hmac.compare_digest(given, token.get_secret_value().encode()):
            return answer()
        response = _say(
            401, status="refused", reason="the operator token is wanted, as Bearer, or as password of Basic"
        )
        response.headers.add("WWW-Authenticate", 'Bearer realm="leadwire"')
        response.headers.add("WWW-Authenticate", 'Basic realm="leadwire", charset="UTF-8"')
        return response

    return guarded


def _given_token(header: str) -> bytes | None:
    scheme, _, rest = header.partition(" ")
    credentials = rest.strip().encode("latin-1", "replace")
    if scheme.lower() == "bearer":
        return credentials
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(credentials, validate=True).partition(b":")[2]
    except binascii.Error:
        return None


def _exposition(view: MetricsSnapshot, accepted: str) -> Response:
    """Return the numbers in the form of those that Prometheus knows which is asked for."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector(view))
    try:
        encode, content_type = choose_encoder(accepted)
        body = encode(registry)
    except (TypeError, ValueError):  # a version that is none
        encode, content_type = choose_encoder("")
        body = encode(registry)
    return Response(body, content_type=content_type)


def _status(view: MetricsSnapshot, reasons: list[str]) -> dict[str, Any]:
    measures = view.measures
    events: dict[str, int] = {}
    for (state, _), number in measures.events.items():
        events[state] = events.get(state, 0) + number
    tasks: dict[str, int] = {}
    for (task_state, _), number in measures.tasks.items():
        tasks[task_state] = tasks.get(task_state, 0) + number
    due = [
        {
            "kind": kind,
            "provider": provider or None,
            "number": found.number,
            "oldest_at": instant(found.oldest_at) if found.oldest_at else None,
            "oldest_seconds": round((measures.taken_at - found.oldest_at).total_seconds(), 3) if found.oldest_at else 0,
        }
        for (kind, provider), found in view.due().items()
    ]
    return {
        "version": VERSION,
        "at": instant(measures.taken_at),
        "ready": not reasons,
        "reasons": reasons,
        "due": due,
        "providers": [_provider(name, measures.paused.get(name)) for name in ProviderName],
        "rules": {
            "version": measures.rule_set[0] if measures.rule_set else None,
            "accepted_at": instant(measures.rule_set[1]) if measures.rule_set else None,
            "folder_refused": view.refused,
        },
        "broker": {"reachable": view.queues is not None, "queues": view.queues or {}},
        "ledger": {"engine": measures.engine, "revision": measures.revision, "size_bytes": measures.size_bytes},
        "events": events,
        "tasks": tasks,
    }


def _provider(name: ProviderName, pause: ProviderState | None) -> dict[str, Any]:
    if pause is None:
        return {"name": name, "paused": False}
    until_at = pause.paused_until_at
    # The reason quotes the provider, which may name a person: only the HTTP status that it begins with is told.
    status = re.match(r"[1-5][0-9]{2}\b", pause.reason or "")
    return {
        "name": name,
        "paused": True,
        "until": instant(until_at) if until_at else None,
        "by": pause.kind,
        "http_status": int(status[0]) if status and not pause.held else None,
    }


def _failed(fault: Exception) -> Response:
    """Answer what goes wrong, without a word about how the inside looks."""
    if isinstance(fault, UnreadableLedgerError):
        return _say(503, status="not readable", reason=str(fault))
    if isinstance(fault, HTTPException) and fault.code:
        response = _say(fault.code, status="refused", reason=fault.name.lower())
        if fault.code == 405:  # noqa: PLR2004 - method not allowed
            response.headers["Allow"] = "GET, HEAD"
        return response
    log.error("unexpected %s while answering on the operator port", type(fault).__name__)
    return _say(503, status="not readable", reason=f"unexpected {type(fault).__name__}")


def _dressed(response: Response) -> Response:
    response.headers.update(_HEADERS)
    return response


def _say(code: int, **members: object) -> Response:
    return Response(json.dumps(members, separators=(",", ":")), status=code, content_type="application/json")

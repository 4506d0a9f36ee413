"""How requests reach the application: one event loop in each process, and no thread that waits for the disk.

A thread for each request costs hand-overs that come to more than all the rest (1.2 ms of CPU a webhook with 32 threads,
0.6 without, measured side by side). So uvicorn's loop reads each request whole and takes a webhook to the reception itself,
which leaves out a third of what the way through Flask costs; while its record is under way the loop goes on with others, and
the ledger's writer wakes it once for each commit. What may take long is done in a thread: the reading of large bodies, and
all that Flask answers: pages, handshakes, what is posted elsewhere. None of it waits for a record.

uvicorn bounds neither the time nor the size of what is half sent; `ingress/connection.py` does.
"""

from __future__ import annotations

import asyncio
import io
import logging
import re
import socket
import sys
from asyncio import AbstractEventLoop, Future
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from functools import lru_cache, partial
from typing import Any, Final, Protocol
from urllib.parse import unquote_to_bytes

import uvicorn
from flask import Flask

from ingress.accept import EventDispatch, Recording, Reply, busy
from ingress.connection import Connection
from ingress.reception import Reception
from ingress.request_counts import UNKNOWN
from ingress.sources import WebhookRequest
from rules.vocabulary import LedgerBusyError
from worker.ledger.types import Delivery, IncomingEvent, Recorded
from worker.ledger.writer import IN_DOUBT, WITHDRAWN, Job

log = logging.getLogger(__name__)

#: How long a request may take to arrive, from its first byte to its last, and a new connection to send anything.
ARRIVES_WITHIN: Final = timedelta(seconds=30)
#: How long a connection may rest between two requests.
RESTS_SECONDS: Final = 20
#: What all bodies that are being read may hold at once; small ones are always taken.
BODIES_LIMIT_BYTES: Final = 128 * 1024 * 1024
#: A body up to this is read and answered in the loop: it costs less than to hand it over.
SMALL_BYTES: Final = 32 * 1024
THREADS: Final = 8
#: How long what was begun may take when the process ends; less than those who stop us give.
ENDS_WITHIN_SECONDS: Final = 8
#: How long a thread may hold the interpreter while others want it. The writer, which holds the ledger, gives it up with every
#: statement, and Python's 5 ms each time would be most of a transaction.
SWITCH_SECONDS: Final = 0.0005

#: The address of a webhook, also as what is made of a base URL with a slash and a path with another.
_HOOK: Final = re.compile("/+webhooks/+([^/]+)/*")
#: Digits of a length that matter.
_LONGEST: Final = 20
#: Names of headers that are longer are not remembered: anybody can send any.
_LONG_NAME: Final = 64
_UNTRUSTED: Final = frozenset({b"forwarded", b"transfer-encoding"})
_UNTRUSTED_BEGIN: Final = b"x-forwarded-"

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]
Answered = tuple[int, Iterable[tuple[str, str]], bytes]


class Keeper(Protocol):
    """What the loop needs of the ledger."""

    def begin_record(
        self, delivery: Delivery, events: Sequence[IncomingEvent], tell: Callable[[Job[Recorded]], None]
    ) -> Job[Recorded]:
        """Begin to keep a delivery and its new events; `tell` is called from another thread."""


class Server:
    """A server on bound sockets, which other processes may share; `host` and `port` are the first one's."""

    def __init__(self, doorway: Doorway, sockets: Sequence[socket.socket]) -> None:
        self._sockets = list(sockets)
        for sock in self._sockets:
            sock.listen(socket.SOMAXCONN)
        self.host, self.port = self._sockets[0].getsockname()[:2]
        self._doorway = doorway
        self._uvicorn = uvicorn.Server(
            uvicorn.Config(
                doorway,
                http=Connection,
                ws="none",
                interface="asgi3",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                headers=[("server", "leadwire")],
                timeout_keep_alive=RESTS_SECONDS,
                timeout_graceful_shutdown=ENDS_WITHIN_SECONDS,
            )
        )

    def run(self) -> None:
        """Serve until `close`, SIGTERM or SIGINT; requests are then finished, and the signal goes to whom it belonged."""
        sys.setswitchinterval(SWITCH_SECONDS)
        try:
            self._uvicorn.run(self._sockets)
        finally:
            self._doorway.close()

    def close(self) -> None:
        """Stop listening and let `run` return; may be called from any thread."""
        self._uvicorn.should_exit = True


def listen(
    app: Flask,
    reception: Reception,
    sockets: Sequence[socket.socket],
    keeper: Keeper,
    dispatch: EventDispatch,
    *,
    busy_after: timedelta,
    arrives_within: timedelta = ARRIVES_WITHIN,
) -> Server:
    """Return a server of the application, and of webhooks, on these bound sockets; call its `run`.

    A record that has not begun after `busy_after`, or not ended after as long again, is answered with the busy status; a
    request that is not whole after `arrives_within` is refused.
    """
    return Server(Doorway(app, reception, keeper, dispatch, busy_after, arrives_within), sockets)


class Doorway:
    """The application as uvicorn calls it (ASGI); see the module's docstring."""

    def __init__(
        self,
        app: Flask,
        reception: Reception,
        keeper: Keeper,
        dispatch: EventDispatch,
        busy_after: timedelta,
        arrives_within: timedelta,
    ) -> None:
        self.arrives_within_seconds = arrives_within.total_seconds()
        self._app = app
        self._reception = reception
        self._keeper = keeper
        self._dispatch = dispatch
        self._busy_after_seconds = busy_after.total_seconds()
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="request")
        self._held_bytes = 0
        self._told: deque[Future[None]] = deque()
        self._is_waking = False

    def close(self) -> None:
        """Let the threads go."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; whatever happens, a sender is asked to come again and never shown a fault."""
        try:
            answered = await self._answered(scope, receive)
        except Exception as fault:
            log.exception("unexpected %s while answering", type(fault).__name__)
            answered = _closing(self._reception.answer(UNKNOWN, busy(None, "unexpected")))
        if answered is not None:
            await _send(send, *answered)

    async def _answered(self, scope: Scope, receive: Receive) -> Answered | None:
        """Read the body and return the answer; None when the sender has gone."""
        first = await receive()
        body = first["body"] if first["type"] == "http.request" else None
        if body is not None and first["more_body"]:
            return await self._large(scope, receive, bytearray(body))
        if body is None:
            return None
        name = _hook(scope)
        if name is not None and len(body) <= SMALL_BYTES:
            return await self._finished(*self._reception.begin(name, lambda _limit_bytes: _received(scope, body)))
        return await self._elsewhere(scope, body)

    async def _large(self, scope: Scope, receive: Receive, body: bytearray) -> Answered | None:
        """Read the rest of a body and answer; of one that is larger than anybody takes no more than that is read."""
        limit_bytes = self._reception.read_limit_bytes()
        announced = _announced(scope)
        counted = 0
        try:
            while announced is None or announced <= limit_bytes:
                self._held_bytes += len(body) - counted
                counted = len(body)
                if self._held_bytes > BODIES_LIMIT_BYTES and counted > SMALL_BYTES:
                    return _closing(self._reception.answer(UNKNOWN, busy(None, "crowded")))
                if counted > limit_bytes:
                    break
                message = await receive()
                if message["type"] != "http.request":
                    return None
                body += message["body"]
                if not message["more_body"]:
                    return await self._elsewhere(scope, bytes(body))
            return _closing(await self._elsewhere(scope, bytes(body), unread=True))
        finally:
            self._held_bytes -= counted

    async def _elsewhere(self, scope: Scope, body: bytes, *, unread: bool = False) -> Answered:
        """Answer what may take long without keeping others waiting."""
        loop = asyncio.get_running_loop()
        name = None if unread else _hook(scope)
        if name is None:
            return await loop.run_in_executor(self._pool, partial(self._ask, scope, body, unread=unread))
        begin = partial(self._reception.begin, name, lambda _limit_bytes: _received(scope, body))
        return await self._finished(*await loop.run_in_executor(self._pool, begin))

    def _ask(self, scope: Scope, body: bytes, *, unread: bool) -> Answered:
        """Call the application as WSGI has it."""
        started: list[tuple[int, Iterable[tuple[str, str]]]] = []

        def start_response(
            status: str, headers: list[tuple[str, str]], _fault: Any = None
        ) -> Callable[[bytes], object]:
            started.append((int(status[:3]), headers))
            return lambda _: None

        content = b"".join(self._app(_environ(scope, body, unread=unread), start_response))
        return *started[-1], content

    async def _finished(self, name: str, begun: Reply | Recording) -> Answered:
        reply = begun if isinstance(begun, Reply) else await self._recorded(begun)
        return self._reception.answer(name, reply)

    async def _recorded(self, recording: Recording) -> Reply:
        """Return what the sender is told when the record stands, or cannot be had in time."""
        loop = asyncio.get_running_loop()
        known: Future[None] = loop.create_future()
        try:
            job = self._keeper.begin_record(recording.delivery, recording.events, partial(self._tell, loop, known))
            withdrawal = loop.call_later(self._busy_after_seconds, self._withdraw, loop, job, known)
            try:
                await known
            finally:
                withdrawal.cancel()
            recorded = job.outcome()
        except Exception as fault:  # noqa: BLE001 - nothing may get past
            return recording.failed(fault)
        return recording.stands(recorded, self._dispatch)

    def _tell(self, loop: AbstractEventLoop, known: Future[None], _job: Job[Recorded]) -> None:
        """Take note of an end, in the writer's thread; the loop is woken for the first of a group."""
        self._told.append(known)
        if not self._is_waking:
            self._is_waking = True
            with suppress(RuntimeError):  # the loop has ended: nobody waits any more
                loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._is_waking = False  # first: what is told from here on wakes again
        while self._told:
            known = self._told.popleft()
            if not known.done():
                known.set_result(None)

    def _withdraw(self, loop: AbstractEventLoop, job: Job[Recorded], known: Future[None]) -> None:
        if known.done():
            return
        if job.withdraw():
            known.set_exception(LedgerBusyError(WITHDRAWN))
        else:
            loop.call_later(self._busy_after_seconds, _give_up, known)


def _give_up(known: Future[None]) -> None:
    if not known.done():
        known.set_exception(LedgerBusyError(IN_DOUBT))


def _announced(scope: Scope) -> int | None:
    for name, value in scope["headers"]:
        if name == b"content-length":
            digits = value.lstrip(b"0")[:_LONGEST] or b"0"  # Python refuses to read thousands of them
            return int(digits) if digits.isdigit() else None
    return None


def _hook(scope: Scope) -> str | None:
    """Return the name that a webhook is for; all of them are taken here, since Flask would have to wait for the ledger."""
    found = _HOOK.fullmatch(_path(scope)) if scope["method"] == "POST" else None
    return found[1] if found else None


def _path(scope: Scope) -> str:
    """Return the path as WSGI has it: decoded, each character one byte."""
    return unquote_to_bytes(scope["raw_path"]).decode("latin-1")


def _believed(name: bytes) -> str | None:
    """Return a header's name; None for one that nobody may believe, or that could be taken for another."""
    return _known(name) if len(name) <= _LONG_NAME else _known.__wrapped__(name)


@lru_cache(maxsize=512)
def _known(name: bytes) -> str | None:
    if b"_" in name or name in _UNTRUSTED or name.startswith(_UNTRUSTED_BEGIN):
        return None
    return name.decode("latin-1").lower()


def _headers(scope: Scope) -> dict[str, str]:
    """Return the headers that may be believed; one that came several times has all its values."""
    headers: dict[str, str] = {}
    for given, value in scope["headers"]:
        name = _believed(given)
        if name is not None and (value or name != "content-type"):  # an empty one is none, as WSGI has it
            text = value.decode("latin-1")
            headers[name] = f"{headers[name]},{text}" if name in headers else text
    return headers


def _received(scope: Scope, body: bytes) -> WebhookRequest:
    """Return a webhook as Flask would hand it on."""
    return WebhookRequest(
        method=scope["method"],
        path=_path(scope),
        query_string=scope["query_string"],
        headers=_headers(scope) | {"content-length": str(len(body))},
        body=body,
        remote=scope["client"][0] if scope["client"] else None,
    )


def _environ(scope: Scope, body: bytes, *, unread: bool) -> dict[str, Any]:
    """Return the WSGI environment (PEP 3333) of a request; of an `unread` body its announced length is what counts."""
    server, client = scope["server"] or ("", 0), scope["client"] or ("", 0)
    environ: dict[str, Any] = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": "",
        "PATH_INFO": _path(scope),
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "SERVER_NAME": server[0],
        "SERVER_PORT": str(server[1]),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "REMOTE_ADDR": client[0],
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    for name, text in _headers(scope).items():
        key = name.upper().replace("-", "_")
        environ[key if key in {"CONTENT_TYPE", "CONTENT_LENGTH"} else f"HTTP_{key}"] = text
    if "CONTENT_LENGTH" not in environ or not unread:
        environ["CONTENT_LENGTH"] = str(len(body))
    return environ


def _closing(answered: Answered) -> Answered:
    """Return an answer after which the connection ends: the rest of the body is never read."""
    status, headers, body = answered
    return status, [*headers, ("Connection", "close")], body


async def _send(send: Send, status: int, headers: Iterable[tuple[str, str]], body: bytes) -> None:
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})


__all__ = ["Doorway", "Keeper", "Server", "listen"]

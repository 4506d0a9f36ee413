"""The HTTP server beneath the Flask application: aiohttp's low-level server, in one event loop and with no thread that waits.

Every request is read whole and handed to Flask as WSGI has it (PEP 3333): a small POST in the loop, since a webhook's view
never waits, everything else in a thread. The loop then awaits the commit of the webhook's record and sends the response, so
that hundreds of requests wait for one commit at the cost of a future each.

Measured alone, aiohttp costs 50 to 70 microseconds of CPU a request; uvicorn with httptools 36, granian 40, tornado 130,
uvicorn with h11 180. But uvicorn bounds neither the time nor the size of a head and loses the body of a request that offers
an upgrade, and granian takes no bound sockets and keeps for ever whoever does not read its answers. aiohttp bounds idle time,
heads and pipelining by its settings; what it has no setting for is below.
"""

from __future__ import annotations

import asyncio
import io
import logging
import signal
import socket
import sys
import threading
from asyncio import AbstractEventLoop, Future
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import lru_cache, partial
from types import FrameType
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import unquote_to_bytes

from aiohttp import StreamReader, web
from flask import Flask

from ingress.app import DEFERRED, GUARD_HEADERS, DeferredResponse, Reply, busy, refusal
from ingress.request_counts import UNKNOWN, RequestCounter
from ingress.sources import WebhookResponse
from rules.vocabulary import LedgerBusyError
from worker.ledger.types import Delivery, IncomingEvent, Recorded
from worker.ledger.writer import IN_DOUBT, WITHDRAWN, Job

if sys.platform != "win32":
    import resource

    from uvloop import new_event_loop
else:
    from asyncio import new_event_loop

log = logging.getLogger(__name__)

#: How long a request may take to arrive, from its first byte to its last, and an answer to be taken.
ARRIVES_WITHIN: Final = timedelta(seconds=30)
#: How long a connection may go without a request: before the first, between two, or with a head that does not end.
KEEP_ALIVE: Final = timedelta(seconds=20)
#: How long what is left of a body that nobody wants is read and thrown away, so that its sender reads the answer.
LINGERS: Final = timedelta(seconds=2)
#: How long what was begun may take when the process ends; less than those who stop it give.
ENDS_WITHIN: Final = timedelta(seconds=8)
#: What all bodies that are being read may hold at once.
BODIES_LIMIT_BYTES: Final = 128 * 1024 * 1024
#: A webhook up to this is read and answered in the loop: it costs less than to hand it over.
IN_LOOP_BYTES: Final = 32 * 1024
#: What may stand before a body, in how many headers, each of which size.
HEAD_LIMIT_BYTES: Final = 64 * 1024
HEADERS_LIMIT: Final = 200
HEADER_LIMIT_BYTES: Final = 16 * 1024
#: Connections of one process, and the files that it needs beside them.
CONNECTIONS_LIMIT: Final = 4_096
OTHER_FILES: Final = 256
THREADS: Final = 8
#: How long a thread may hold the interpreter while others want it. The ledger's writer gives it up with every statement, and
#: Python's 5 ms each time would be most of a transaction.
SWITCH_SECONDS: Final = 0.0005

#: Iterations of the loop that aiohttp takes at the most from the last byte of a head to its handler.
_TURNS: Final = 4
#: Names of headers that are longer are not remembered: anybody can send any.
_LONG_NAME: Final = 64
#: What a proxy says and anybody can; and what is between the sender and this server only.
_UNTRUSTED: Final = (b"forwarded", b"x-forwarded-", b"transfer-encoding", b"upgrade")
_ENVIRON: Final = {
    "SCRIPT_NAME": "",
    "wsgi.version": (1, 0),
    "wsgi.url_scheme": "http",
    "wsgi.errors": sys.stderr,
    "wsgi.multithread": True,
    "wsgi.multiprocess": True,
    "wsgi.run_once": False,
}


class CommittingInbox(Protocol):
    """What the server needs of the ledger's inbox."""

    def begin_record(
        self, delivery: Delivery, events: Sequence[IncomingEvent], tell: Callable[[Job[Recorded]], None]
    ) -> Job[Recorded]:
        """Begin to record a delivery and its new events; `tell` is called from another thread at the end."""


class WebhookServer:
    """Serves a Flask application on bound sockets, which other processes may share; `host` and `port` are the first one's."""

    def __init__(
        self,
        app: Flask,
        sockets: Sequence[socket.socket],
        inbox: CommittingInbox,
        counter: RequestCounter,
        *,
        body_limit_bytes: int,
        busy_after: timedelta,
        arrives_within: timedelta = ARRIVES_WITHIN,
    ) -> None:
        """Listen; `run` serves.

        `body_limit_bytes` is the largest body that any view takes. A record that has not begun after `busy_after`, or not
        ended after as long again, is answered as busy; a request that is not whole after `arrives_within` is refused.
        """
        self._sockets = list(sockets)
        for sock in self._sockets:
            sock.listen(socket.SOMAXCONN)
            if hasattr(
                socket, "TCP_USER_TIMEOUT"
            ):  # connections inherit it: who takes no answer loses its own (tcp(7))
                milliseconds = round(arrives_within.total_seconds() * 1000)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        self.host, self.port = self._sockets[0].getsockname()[:2]
        self._app = app
        self._inbox = inbox
        self._counter = counter
        self._body_limit_bytes = body_limit_bytes
        self._busy_seconds = busy_after.total_seconds()
        self._arrival_seconds = arrives_within.total_seconds()
        self._commits = _Commits()
        self._bodies = _Bodies()
        self._connections = _Connections()
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="flask")
        self._is_stopping = threading.Event()
        self._stop: Callable[[], object] = lambda: None

    def run(self) -> None:
        """Serve until `close`, SIGTERM or SIGINT; what was begun is finished, and the signal then goes to its former handler."""
        sys.setswitchinterval(SWITCH_SECONDS)
        with _signals(self.close), asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(self._serve())
        self._pool.shutdown()

    def close(self) -> None:
        """Stop listening and let `run` return; may be called from any thread, and from a signal's handler."""
        self._is_stopping.set()
        self._stop()

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        stopped = asyncio.Event()
        self._stop = partial(_call_in, loop, stopped.set)
        if self._is_stopping.is_set():
            stopped.set()
        quiet = logging.getLogger(f"{__name__}.http")
        quiet.setLevel(logging.CRITICAL)  # a line for everything that is no HTTP would be its sender's to write
        http = web.Server(
            self._handle,
            access_log=None,
            logger=quiet,
            keepalive_timeout=min(KEEP_ALIVE.total_seconds(), self._arrival_seconds),
            lingering_time=LINGERS.total_seconds(),
            max_line_size=HEADER_LIMIT_BYTES,
            max_field_size=HEADER_LIMIT_BYTES,
            max_headers=HEADERS_LIMIT,
            auto_decompress=False,  # a signature is over what was sent
        )
        self._connections.limit = _connections_limit()
        listening = [
            await loop.create_server(lambda: _Connection(http(), self._connections), sock=sock)
            for sock in self._sockets
        ]
        await stopped.wait()
        for one in listening:
            one.close()
        http.pre_shutdown()
        self._bodies.end()
        await http.shutdown(ENDS_WITHIN.total_seconds())

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        """Answer one request whose head was read; aiohttp sends what is returned."""
        connection = self._connections.of(request)
        connection.begin()
        hangs_up = True
        try:
            answer = await self._answer(request, connection.began_at + self._arrival_seconds)
            hangs_up = isinstance(answer, WebhookResponse)
        except (ConnectionError, web.RequestPayloadError):
            answer = refusal(400, "the body cannot be read")
        except Exception as fault:
            log.exception("unexpected %s while answering", type(fault).__name__)
            answer = busy(None, "unexpected")
        finally:
            connection.end(hangs_up=hangs_up)
        if isinstance(answer, Reply):
            self._counter.add(UNKNOWN, answer.outcome, answer.reason)
        if isinstance(answer, WebhookResponse):
            headers = [(name.title(), value) for name, value in answer.headers.items()]
            answer = _Answer(answer.status, [*headers, *GUARD_HEADERS], answer.body)
        response = web.Response(
            status=answer.status, headers=[("Server", "leadwire"), *answer.headers], body=answer.content
        )
        if hangs_up or not request.content.is_eof():
            response.force_close()
        return response

    async def _answer(self, request: web.BaseRequest, deadline_seconds: float) -> _Answer | WebhookResponse:
        """Return what Flask answers, or why it was not asked; of a body that is too large it is only told the length."""
        announced = _announced(request)
        if announced is not None and announced > self._body_limit_bytes:
            return await self._ask(_environ(request, b"", announced))
        content = request.content
        if content.is_eof():
            return await self._ask(_environ(request, content.read_nowait()))
        if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await self._bodies.read(content, self._body_limit_bytes, deadline_seconds)
        return body if isinstance(body, WebhookResponse) else await self._ask(_environ(request, body))

    async def _ask(self, environ: dict[str, Any]) -> _Answer:
        """Have Flask answer, and where its response waits for a record, finish it when that is committed or cannot be in time."""
        deferred: list[DeferredResponse] = []
        environ[DEFERRED] = deferred
        if environ["REQUEST_METHOD"] == "POST" and int(environ["CONTENT_LENGTH"]) <= IN_LOOP_BYTES:
            answer = _call(self._app, environ)
        else:
            answer = await asyncio.get_running_loop().run_in_executor(self._pool, _call, self._app, environ)
        if not deferred:
            return answer
        (response,) = deferred
        try:
            begin = partial(self._inbox.begin_record, response.delivery, response.events)
            response.finish(await self._commits.wait(begin, self._busy_seconds))
        except Exception as fault:  # noqa: BLE001 - nothing may get past
            response.fail(fault)
        return _call(response, environ)


class _Answer(NamedTuple):
    status: int
    headers: Sequence[tuple[str, str]]
    content: bytes


class _Commits:
    """The requests that wait for a commit; the writer's thread wakes the loop once for all that one commit ends."""

    def __init__(self) -> None:
        self._ended: deque[Future[None]] = deque()
        self._is_waking = False

    async def wait(
        self, begin: Callable[[Callable[[Job[Recorded]], None]], Job[Recorded]], busy_seconds: float
    ) -> Recorded:
        """Begin a record and return what it came to once it is on disk. Raises LedgerError when it is not, or nobody knows."""
        loop = asyncio.get_running_loop()
        ended: Future[None] = loop.create_future()
        job = begin(partial(self._tell, loop, ended))
        withdrawal = loop.call_later(busy_seconds, _withdraw, loop, job, ended, busy_seconds)
        try:
            await ended
        finally:
            withdrawal.cancel()
        return job.outcome()

    def _tell(self, loop: AbstractEventLoop, ended: Future[None], _job: Job[Recorded]) -> None:
        """Take note of an end, in the writer's thread."""
        self._ended.append(ended)
        if not self._is_waking:
            self._is_waking = True
            _call_in(loop, self._wake)

    def _wake(self) -> None:
        self._is_waking = False  # first: what is told from here on wakes again
        while self._ended:
            ended = self._ended.popleft()
            if not ended.done():
                ended.set_result(None)


def _withdraw(loop: AbstractEventLoop, job: Job[Recorded], ended: Future[None], busy_seconds: float) -> None:
    if ended.done():
        return
    if job.withdraw():
        ended.set_exception(LedgerBusyError(WITHDRAWN))
    else:
        loop.call_later(busy_seconds, _give_up, ended)


def _give_up(ended: Future[None]) -> None:
    if not ended.done():
        ended.set_exception(LedgerBusyError(IN_DOUBT))


class _Bodies:
    """The bodies that are being read, whichever grew last at the end; when they hold too much, the first gives way."""

    def __init__(self) -> None:
        self._held_bytes = 0
        self._sizes: dict[asyncio.Timeout, int] = {}
        self._has_ended = False

    async def read(self, content: StreamReader, limit_bytes: int, deadline_seconds: float) -> bytes | WebhookResponse:
        """Return a body, of one above the limit no more than tells so; or why it is not read."""
        parts: list[bytes] = []
        size = 0
        timeout = asyncio.timeout_at(0 if self._has_ended else deadline_seconds)
        self._sizes[timeout] = 0
        try:
            async with timeout:
                while size <= limit_bytes and (part := await content.readany()):
                    parts.append(part)
                    size += len(part)
                    self._hold(timeout, len(part))
            return b"".join(parts)
        except TimeoutError:
            if self._has_ended:
                return busy(None, "ending")
            if timeout not in self._sizes:
                return busy(None, "crowded")
            return refusal(408, "the request took too long to arrive")
        finally:
            self._held_bytes -= self._sizes.pop(timeout, 0)

    def end(self) -> None:
        """Read no further: whoever has sent half a body is told to come again."""
        self._has_ended = True
        for timeout in self._sizes:
            timeout.reschedule(0)

    def _hold(self, timeout: asyncio.Timeout, more_bytes: int) -> None:
        if timeout not in self._sizes:
            return
        self._sizes[timeout] = self._sizes.pop(timeout) + more_bytes
        self._held_bytes += more_bytes
        while self._held_bytes > BODIES_LIMIT_BYTES:
            slowest = next(iter(self._sizes))
            self._held_bytes -= self._sizes.pop(slowest)
            slowest.reschedule(0)


class _Connections:
    """The connections of a process; those without a request in hand by how long they have been so."""

    def __init__(self) -> None:
        self.limit = CONNECTIONS_LIMIT
        self.open: dict[asyncio.BaseTransport, _Connection] = {}
        self.idle: dict[_Connection, None] = {}

    def of(self, request: web.BaseRequest) -> _Connection:
        """Return the connection that a request came on. Raises ConnectionError when it is gone."""
        if request.transport is None or request.transport not in self.open:
            raise ConnectionResetError
        return self.open[request.transport]

    def add(self, connection: _Connection) -> None:
        """Take a new one; above the limit, the one that has been idle for longest is dropped."""
        self.open[connection.transport] = connection
        self.idle[connection] = None
        if len(self.open) > self.limit:
            next(iter(self.idle)).transport.abort()

    def remove(self, connection: _Connection) -> None:
        """Forget one that has ended."""
        self.open.pop(connection.transport, None)
        self.idle.pop(connection, None)


class _Connection(asyncio.Protocol):
    """aiohttp's connection, with a bound on a head as a whole, and an answer for a sender that has closed its own side.

    Whether what has arrived is a request is known when its handler runs, some iterations of the loop later.
    """

    def __init__(self, http: asyncio.Protocol, connections: _Connections) -> None:
        self._http = http
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._is_busy = self._has_ended = self._hangs_up = False
        self._head_bytes = 0
        self.transport: Any = None
        #: When the request in hand began to arrive (the loop's time).
        self.began_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = transport
        self._connections.add(self)
        self._http.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._connections.remove(self)
        self._http.connection_lost(exc)

    def pause_writing(self) -> None:
        """Tell aiohttp that the sender does not read."""
        self._http.pause_writing()

    def resume_writing(self) -> None:
        """Tell aiohttp that the sender reads again."""
        self._http.resume_writing()

    def data_received(self, data: bytes) -> None:
        """Give aiohttp what arrived."""
        if not self._is_busy:
            if not self._head_bytes:
                self.began_at = self._loop.time()
            self._head_bytes += len(data)
        self._http.data_received(data)
        if self._head_bytes > HEAD_LIMIT_BYTES:
            self._judge()

    def eof_received(self) -> bool:
        """Keep the connection: a sender that has said all may wait for its answer."""
        self._has_ended = True
        self._judge()
        return True

    def begin(self) -> None:
        """Take note that a request is in hand."""
        self._is_busy = True
        self._connections.idle.pop(self, None)

    def end(self, *, hangs_up: bool) -> None:
        """Take note that it is answered; when that was the last one, hang up."""
        self._is_busy = False
        self._head_bytes = 0
        self._hangs_up = hangs_up
        self.began_at = self._loop.time()
        if self.transport in self._connections.open:
            self._connections.idle[self] = None
        if hangs_up or self._has_ended:
            self._judge()

    def _judge(self, turns: int = _TURNS) -> None:
        """Hang up, unless what has arrived turns out to be a request."""
        if self._is_busy or self.transport.is_closing():
            return
        if turns:
            self._loop.call_soon(self._judge, turns - 1)
        elif self._hangs_up or self._has_ended or self._head_bytes > HEAD_LIMIT_BYTES:
            self.transport.close()


@contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    """Have SIGTERM and SIGINT call `stop` for a while; whoever had the signal before gets it afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        caught.append(number)
        stop()

    former = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    if caught:
        signal.raise_signal(caught[0])


def _call_in(loop: AbstractEventLoop, call: Callable[[], object]) -> None:
    with suppress(RuntimeError):  # it has ended: nobody waits any more
        loop.call_soon_threadsafe(call)


def _connections_limit() -> int:
    """Return how many connections this process can have; its limit of open files is raised as far as it may be."""
    if sys.platform == "win32":
        return CONNECTIONS_LIMIT
    wanted = CONNECTIONS_LIMIT + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return CONNECTIONS_LIMIT
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(min(wanted, soft) - OTHER_FILES, 1)


def _announced(request: web.BaseRequest) -> int | None:
    """Return the length that a request says its body has; zeros before it mean nothing."""
    digits = request.headers.get("Content-Length")
    return None if digits is None else int(digits.lstrip("0") or "0")


def _environ(request: web.BaseRequest, body: bytes, announced: int | None = None) -> dict[str, Any]:
    """Return the WSGI environment of a request; `announced` is the length of a body that was not read."""
    url, transport = request.rel_url, request.transport
    peer = transport.get_extra_info("peername") if transport is not None else None
    here = transport.get_extra_info("sockname") if transport is not None else None
    environ: dict[str, Any] = {
        **_ENVIRON,
        "REQUEST_METHOD": request.method,
        "PATH_INFO": unquote_to_bytes(url.raw_path.encode("utf-8", "surrogateescape")).decode("latin-1"),
        "QUERY_STRING": url.raw_query_string.encode("utf-8", "surrogateescape").decode("latin-1"),
        "SERVER_NAME": here[0] if here else "",
        "SERVER_PORT": str(here[1]) if here else "0",
        "SERVER_PROTOCOL": f"HTTP/{request.version.major}.{request.version.minor}",
        "REMOTE_ADDR": peer[0] if peer else "",
        "wsgi.input": io.BytesIO(body),
    }
    for raw, value in request.raw_headers:
        name = _environ_name(raw) if len(raw) <= _LONG_NAME else _environ_name.__wrapped__(raw)
        if name is not None and (value or name != "CONTENT_TYPE"):  # an empty one is none, as WSGI has it
            text = value.decode("latin-1")
            environ[name] = f"{environ[name]},{text}" if name in environ else text
    environ["CONTENT_LENGTH"] = str(len(body) if announced is None else announced)
    return environ


@lru_cache(maxsize=512)
def _environ_name(raw: bytes) -> str | None:
    """Return a header's name as WSGI has it; None for one that nobody may believe, or that could be taken for another."""
    if b"_" in raw or raw.lower().startswith(_UNTRUSTED):
        return None
    name = raw.decode("latin-1").upper().replace("-", "_")
    return name if name in {"CONTENT_TYPE", "CONTENT_LENGTH"} else f"HTTP_{name}"


def _call(application: Callable[..., Iterable[bytes]], environ: dict[str, Any]) -> _Answer:
    """Call a WSGI application and return what it answers; what it defers is no answer yet."""
    started: list[_Answer] = []

    def start_response(status: str, headers: list[tuple[str, str]], _fault: Any = None) -> Callable[[bytes], object]:
        started.append(_Answer(int(status[:3]), headers, b""))
        return lambda _: None

    parts = application(environ, start_response)
    try:
        content = b"".join(parts)
    finally:
        if hasattr(parts, "close"):
            parts.close()
    return started[-1]._replace(content=content) if started else _Answer(500, (), content)

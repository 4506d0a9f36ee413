"""The HTTP server beneath the Flask application: aiohttp's, in one event loop, with no thread that waits for the disk.

Every request is read whole and handed to Flask as WSGI has it (PEP 3333): a small POST in the loop, since a webhook's view
never waits, everything else in a thread. The loop then awaits the commit of the webhook's record and sends the response, so
that hundreds of requests wait for one commit at the cost of a future each.

Measured alone, aiohttp takes 50 to 70 microseconds of CPU a request; uvicorn with httptools 36, granian 40, tornado 130,
uvicorn with h11 180. But uvicorn bounds neither the time nor the size of a head and loses the body of a request that offers
an upgrade, and granian takes no bound sockets and never lets go of a sender that does not read. aiohttp by itself bounds
heads (8 KiB a header, 128 headers), requests in line (32), and how long a connection goes without a whole head.
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
from typing import Any, Final, NamedTuple
from urllib.parse import unquote_to_bytes

from aiohttp import StreamReader, web
from flask import Flask

from ingress.app import DEFERRED, GUARD_HEADERS, DeferredResponse, Reply, busy, refusal
from ingress.request_counts import UNKNOWN, RequestCounts
from ingress.sources import WebhookResponse
from rules.vocabulary import LedgerBusyError
from worker.ledger.inbox import LedgerInbox
from worker.ledger.types import Recorded
from worker.ledger.writer import IN_DOUBT, WITHDRAWN, Job

if sys.platform != "win32":
    import resource

    from uvloop import new_event_loop
else:
    from asyncio import new_event_loop

log = logging.getLogger(__name__)

#: How long a body may take to arrive, and an answer to be taken.
ARRIVES_WITHIN: Final = timedelta(seconds=30)
#: How long a connection may go without a whole head: before the first request, and between two.
KEEP_ALIVE: Final = timedelta(seconds=20)
#: How long the rest of a body that nobody wants is read and thrown away, so that its sender reads the answer.
LINGERS: Final = timedelta(seconds=2)
#: How long what was begun may take when the process ends; less than those who stop it give.
ENDS_WITHIN: Final = timedelta(seconds=8)
#: What all bodies that are being read may hold at once.
BODIES_LIMIT_BYTES: Final = 128 * 1024 * 1024
#: A POST with a body up to this is answered in the loop: it costs less than to hand it over.
IN_LOOP_BYTES: Final = 32 * 1024
#: Connections of one process, and the files that it needs beside them.
CONNECTIONS_LIMIT: Final = 4_096
OTHER_FILES: Final = 256
THREADS: Final = 8
#: How long a thread may hold the interpreter while others want it. The ledger's writer gives it up with every statement, and
#: Python's 5 ms each time would be most of a transaction.
SWITCH_SECONDS: Final = 0.0005
_POLL_SECONDS: Final = 0.1

#: Headers that anybody can send though only a proxy should, and those that are between the sender and this server.
_DROPPED: Final = (b"forwarded", b"x-forwarded-", b"transfer-encoding", b"upgrade")
_ENVIRON: Final = {
    "SCRIPT_NAME": "",
    "wsgi.version": (1, 0),
    "wsgi.url_scheme": "http",
    "wsgi.errors": sys.stderr,
    "wsgi.multithread": True,
    "wsgi.multiprocess": True,
    "wsgi.run_once": False,
}


class _Answer(NamedTuple):
    status: int
    headers: Sequence[tuple[str, str]]
    content: bytes


class WebhookServer:
    """Serves a Flask application on bound sockets, which other processes may share; `host` and `port` are the first one's."""

    def __init__(
        self,
        app: Flask,
        sockets: Sequence[socket.socket],
        inbox: LedgerInbox,
        counts: RequestCounts,
        *,
        body_limit_bytes: int,
        busy_after: timedelta,
        arrives_within: timedelta = ARRIVES_WITHIN,
    ) -> None:
        """Listen; `run` serves.

        `body_limit_bytes` is the largest body that any view takes. A record that has not begun after `busy_after`, or not
        ended after as long again, is answered as busy; a body that is not whole after `arrives_within` is refused.
        """
        self._sockets = list(sockets)
        for sock in self._sockets:
            sock.listen(socket.SOMAXCONN)
            if hasattr(socket, "TCP_USER_TIMEOUT"):  # connections inherit it: who takes no answer is let go (tcp(7))
                milliseconds = round(arrives_within.total_seconds() * 1000)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        self.host, self.port = self._sockets[0].getsockname()[:2]
        self._app = app
        self._counts = counts
        self._body_limit_bytes = body_limit_bytes
        self._keep_alive_seconds = min(KEEP_ALIVE, arrives_within).total_seconds()
        self._commits = _Commits(inbox, busy_after.total_seconds())
        self._bodies = _Bodies(arrives_within.total_seconds())
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="flask")
        self._connections_limit = CONNECTIONS_LIMIT
        #: Connections without a request in hand, the one that has been so for longest first; and some that have ended.
        self._idle: dict[web.RequestHandler, None] = {}
        self._busy = 0
        self._is_ending = False

    def run(self) -> None:
        """Serve until `close`, SIGTERM or SIGINT; what was begun is finished, and the signal then goes to its former handler."""
        sys.setswitchinterval(SWITCH_SECONDS)
        self._connections_limit = _connections_limit()
        with _stopping_on_signals(self.close), asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(self._serve())
        self._pool.shutdown()

    def close(self) -> None:
        """Stop listening and let `run` return; may be called from any thread."""
        self._is_ending = True

    async def _serve(self) -> None:
        quiet = logging.getLogger(f"{__name__}.http")
        quiet.setLevel(logging.CRITICAL)  # a line for everything that is no HTTP would be its sender's to write
        server = web.Server(
            self._handle,
            access_log=None,
            logger=quiet,
            keepalive_timeout=self._keep_alive_seconds,
            lingering_time=LINGERS.total_seconds(),
            auto_decompress=False,  # a signature is over what was sent
        )
        loop = asyncio.get_running_loop()
        accept = partial(self._accept, server)
        listeners = [await loop.create_server(accept, sock=sock) for sock in self._sockets]
        while not self._is_ending:  # noqa: ASYNC110 - an event could not be set from any thread
            await asyncio.sleep(_POLL_SECONDS)
        for listener in listeners:
            listener.close()
        server.pre_shutdown()
        self._bodies.end()
        await server.shutdown(ENDS_WITHIN.total_seconds())

    def _accept(self, server: web.Server) -> web.RequestHandler:
        """Return aiohttp's side of a new connection; where there are too many, whoever has done nothing for longest gives way."""
        if len(self._idle) + self._busy >= self._connections_limit:
            self._idle = {connection: None for connection in self._idle if connection.connected}
        if len(self._idle) + self._busy >= self._connections_limit:
            if self._idle:
                next(iter(self._idle)).force_close()
            else:
                self._bodies.drop_slowest()
        connection = server()
        self._idle[connection] = None
        return connection

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        """Answer one request, of which aiohttp has read the head; aiohttp sends what is returned."""
        self._idle.pop(request.protocol, None)
        self._busy += 1
        try:
            answer = await self._answer(request)
        except (ConnectionError, web.RequestPayloadError):
            answer = refusal(400, "the body cannot be read")
        except Exception as fault:
            log.exception("unexpected %s while answering", type(fault).__name__)
            answer = busy(None, "unexpected")
        finally:
            self._busy -= 1
            self._idle[request.protocol] = None
        if isinstance(answer, Reply):
            self._counts.add(UNKNOWN, answer.outcome, answer.reason)
        if isinstance(answer, WebhookResponse):
            headers = [(name.title(), value) for name, value in answer.headers.items()]
            answer = _Answer(answer.status, [*headers, *GUARD_HEADERS], answer.body)
        response = web.Response(
            status=answer.status, headers=[("Server", "leadwire"), *answer.headers], body=answer.content
        )
        if not request.content.is_eof():
            response.force_close()
        return response

    async def _answer(self, request: web.BaseRequest) -> _Answer | WebhookResponse:
        """Return what Flask answers, or why it was not asked; of a body that is too large it is told the length alone."""
        content = request.content
        announced = int(request.headers.get("Content-Length", "0").lstrip("0") or "0")
        if announced > self._body_limit_bytes:
            return await self._ask(_environ(request, b"", announced))
        if content.is_eof():
            return await self._ask(_environ(request, content.read_nowait()))
        if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await self._bodies.read(content, self._body_limit_bytes)
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
            response.finish(await self._commits.wait(response))
        except Exception as fault:  # noqa: BLE001 - nothing may get past
            response.fail(fault)
        return _Answer(response.status_code, list(response.headers), response.get_data())


class _Commits:
    """The responses that wait for a commit; the writer's thread wakes the loop once for all that one commit ends."""

    def __init__(self, inbox: LedgerInbox, busy_seconds: float) -> None:
        self._inbox = inbox
        self._busy_seconds = busy_seconds
        self._ended: deque[Future[None]] = deque()

    async def wait(self, response: DeferredResponse) -> Recorded:
        """Record a delivery and return what came of it once it is on disk. Raises LedgerError when it is not, or nobody knows."""
        loop = asyncio.get_running_loop()
        ended: Future[None] = loop.create_future()
        job = self._inbox.begin_record(
            response.recording.delivery, response.recording.events, partial(self._tell, loop, ended)
        )
        withdrawal = loop.call_later(self._busy_seconds, self._withdraw, loop, job, ended)
        try:
            await ended
        finally:
            withdrawal.cancel()
        return job.outcome()

    def _tell(self, loop: AbstractEventLoop, ended: Future[None], _job: Job[Recorded]) -> None:
        self._ended.append(ended)
        if len(self._ended) == 1:  # the first since the loop looked; it is woken for that one
            with suppress(RuntimeError):  # it has ended: nobody waits any more
                loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        while self._ended:
            ended = self._ended.popleft()
            if not ended.done():
                ended.set_result(None)

    def _withdraw(self, loop: AbstractEventLoop, job: Job[Recorded], ended: Future[None]) -> None:
        if job.withdraw():
            _give_up(ended, WITHDRAWN)
        else:
            loop.call_later(self._busy_seconds, _give_up, ended, IN_DOUBT)


def _give_up(ended: Future[None], reason: str) -> None:
    if not ended.done():
        ended.set_exception(LedgerBusyError(reason))


class _Bodies:
    """The bodies that are being read, whichever grew last at the end; when they hold too much, the first gives way."""

    def __init__(self, arrival_seconds: float) -> None:
        self._arrival_seconds = arrival_seconds
        self._held_bytes = 0
        self._sizes: dict[asyncio.Timeout, int] = {}
        self._is_ending = False

    async def read(self, content: StreamReader, limit_bytes: int) -> bytes | WebhookResponse:
        """Return a body, of one above the limit no more than shows that; or why it is not read."""
        parts: list[bytes] = []
        size = 0
        timeout = asyncio.timeout(0 if self._is_ending else self._arrival_seconds)
        self._sizes[timeout] = 0
        try:
            async with timeout:
                while size <= limit_bytes and (part := await content.readany()):
                    parts.append(part)
                    size += len(part)
                    self._grew(timeout, len(part))
            return b"".join(parts)
        except TimeoutError:
            if self._is_ending:
                return busy(None, "ending")
            if timeout not in self._sizes:
                return busy(None, "crowded")
            return refusal(408, "the request took too long to arrive")
        finally:
            self._held_bytes -= self._sizes.pop(timeout, 0)

    def end(self) -> None:
        """Read no further: whoever has sent half a body is told to come again."""
        self._is_ending = True
        for timeout in self._sizes:
            timeout.reschedule(0)

    def drop_slowest(self) -> None:
        """Tell the sender whose body has not grown for longest to come again."""
        slowest = next(iter(self._sizes), None)
        if slowest is not None:
            self._held_bytes -= self._sizes.pop(slowest)
            slowest.reschedule(0)

    def _grew(self, timeout: asyncio.Timeout, more_bytes: int) -> None:
        if timeout in self._sizes:
            self._sizes[timeout] = self._sizes.pop(timeout) + more_bytes
            self._held_bytes += more_bytes
            while self._held_bytes > BODIES_LIMIT_BYTES:
                self.drop_slowest()


@contextmanager
def _stopping_on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Have SIGTERM and SIGINT call `stop`; once what was begun is finished, the signal goes to its former handler."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []

    def note(number: int, _frame: object) -> None:
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


def _connections_limit() -> int:
    """Return how many connections this process can have; its limit of open files is raised as far as it may be."""
    if sys.platform == "win32":
        return CONNECTIONS_LIMIT
    wanted = CONNECTIONS_LIMIT + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return CONNECTIONS_LIMIT if soft == resource.RLIM_INFINITY else max(min(wanted, soft) - OTHER_FILES, 16)


def _environ(request: web.BaseRequest, body: bytes, announced: int | None = None) -> dict[str, Any]:
    """Return the WSGI environment of a request; `announced` is the length of a body that was not read."""
    url, transport = request.rel_url, request.transport
    if transport is None:
        raise ConnectionResetError
    host, port = transport.get_extra_info("sockname")[:2]
    environ: dict[str, Any] = {
        **_ENVIRON,
        "REQUEST_METHOD": request.method,
        "PATH_INFO": unquote_to_bytes(url.raw_path.encode("utf-8", "surrogateescape")).decode("latin-1"),
        "QUERY_STRING": url.raw_query_string.encode("utf-8", "surrogateescape").decode("latin-1"),
        "SERVER_NAME": host,
        "SERVER_PORT": str(port),
        "SERVER_PROTOCOL": f"HTTP/{request.version.major}.{request.version.minor}",
        "REMOTE_ADDR": transport.get_extra_info("peername")[0],
        "wsgi.input": io.BytesIO(body),
    }
    for raw_name, value in request.raw_headers:
        name = _environ_name(raw_name)
        if name is not None and (value or name != "CONTENT_TYPE"):  # an empty one is none, as WSGI has it
            text = value.decode("latin-1")
            environ[name] = f"{environ[name]},{text}" if name in environ else text
    environ["CONTENT_LENGTH"] = str(len(body) if announced is None else announced)
    return environ


@lru_cache(maxsize=512)
def _environ_name(raw: bytes) -> str | None:
    """Return a header's name as WSGI has it; None for one that nobody may believe, or that could be taken for another."""
    if b"_" in raw or raw.lower().startswith(_DROPPED):
        return None
    name = raw.decode("latin-1").upper().replace("-", "_")
    return name if name in {"CONTENT_TYPE", "CONTENT_LENGTH"} else f"HTTP_{name}"


def _call(application: Callable[..., Iterable[bytes]], environ: dict[str, Any]) -> _Answer:
    """Call a WSGI application and return what it answers; what it defers is no answer yet."""
    answer = _Answer(500, (), b"")

    def start_response(status: str, headers: list[tuple[str, str]], _fault: Any = None) -> Callable[[bytes], object]:
        nonlocal answer
        answer = _Answer(int(status[:3]), headers, b"")
        return lambda _: None

    parts = application(environ, start_response)
    try:
        content = b"".join(parts)
    finally:
        if hasattr(parts, "close"):
            parts.close()
    return answer._replace(content=content)

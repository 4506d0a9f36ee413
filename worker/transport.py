"""How a request leaves this machine: the only file that opens outbound connections, and what it knows when one fails.

Two facts are decided here for every attempt: whether the whole of it may still take time (one total deadline, which also a
dripping answer cannot stretch), and whether anything was written before it failed. The second is read off the socket, not
guessed from the exception: an attempt has begun once the first byte of its request is handed to the kernel. Before
that a failure is `NeverSent`, after it `NoAnswer`; the lists of httpx's exceptions below are the second witness, and only
where both say so is a failure `NeverSent`.

A kept connection that the provider closed meanwhile would turn into a `NoAnswer` although nobody read the request. So a
connection is kept for 3 seconds only, and one that is readable just before the write (closed, or talking out of turn)
is dropped for a fresh one. What remains is a provider that closes in the very moment of the write; nothing
on this side can tell that from one that read the request and died, so it stays `NoAnswer`.

Proxies and certificate folders of the environment are ignored (`trust_env=False`): what a request passes through is part of
Leadwire's own settings or nothing. Redirects are never followed: a credential goes to the configured host only.
"""

from __future__ import annotations

import json
import socket
import ssl
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from functools import cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from importlib.metadata import version
from typing import Any, Final, overload
from urllib.parse import urlencode

import httpcore
import httpx

from worker.wire import Answered, NeverSent, NoAnswer, NotBegun, Request, Sent

#: One attempt in all: connecting, writing, waiting, reading.
DEADLINE_SECONDS: Final = 30.0
#: One address that does not answer must not eat the time of the next.
CONNECT_SECONDS: Final = 10.0
#: Below the shortest keep-alive of common servers (Node: 5 s), so that they rarely close first.
KEEPALIVE_SECONDS: Final = 3.0
#: Answers are a task or an error; what is longer is cut off and marked.
BODY_LIMIT_BYTES: Final = 1024 * 1024
#: Above any worker's number of threads: limits on concurrency are the ledger's.
CONNECTIONS: Final = 128
#: How many kept connections may turn out closed before an attempt gives up: then the provider is going away.
STALE_LIMIT: Final = 8

USER_AGENT: Final = f"leadwire/{version('leadwire')}"

#: httpx's ways to fail before anything was written.
NEVER_SENT: Final[tuple[type[Exception], ...]] = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
    httpx.LocalProtocolError,
    httpx.InvalidURL,
    RuntimeError,  # the client was closed: the process is ending
)

#: httpx's ways to fail after something may have been written. Redirects are off, so the last one cannot occur.
NO_ANSWER: Final[tuple[type[Exception], ...]] = (
    httpx.ReadError,
    httpx.ReadTimeout,
    httpx.WriteError,
    httpx.WriteTimeout,
    httpx.CloseError,
    httpx.RemoteProtocolError,
    httpx.DecodingError,
    httpx.TooManyRedirects,
)


@cache
def _tls() -> ssl.SSLContext:
    """One context per process: making it costs 50 ms, and it is what connections resume their sessions from."""
    return httpx.create_ssl_context(trust_env=False)


def _left(late: type[Exception]) -> float:
    """Return what is left of the current attempt's deadline; raise `late` when it has passed."""
    seconds = _current.get().left_seconds()
    if seconds <= 0:
        raise late("the attempt's deadline has passed")
    return seconds


def _named(exc: BaseException) -> str:
    """Return the class names of an error and of what caused it: no text of theirs, which may quote a header."""
    root: BaseException = exc
    for _ in range(10):  # causes can form a ring
        root = root.__cause__ or root.__context__ or root
    name, cause = type(exc).__name__, type(root).__name__
    if isinstance(root, ssl.SSLCertVerificationError):
        cause = f"{cause}: {root.verify_message}"
    return name if name == cause else f"{name} ({cause})"


def _failed(exc: Exception, attempt: _Attempt) -> NeverSent | NoAnswer:
    if not attempt.began and isinstance(exc, NEVER_SENT):
        return NeverSent(error=_named(exc))
    return NoAnswer(error=_named(exc))


def _decoded(body: bytes, encoding: str) -> bytes:
    """Undo a compression nobody asked for, within the body limit; what cannot be undone stays as it came."""
    if encoding.strip().lower() not in {"gzip", "x-gzip", "deflate"}:
        return body
    try:
        return zlib.decompressobj(wbits=zlib.MAX_WBITS | 32).decompress(body, BODY_LIMIT_BYTES)
    except zlib.error:
        return body


class _TooLateError(Exception):
    """The caller's check said no, just before the write."""


class _StaleError(Exception):
    """A kept connection was closed by the other side before anything was written to it."""


class _Attempt:
    """What one attempt knows of itself while the layers below work for it."""

    __slots__ = ("_ends_at_seconds", "began", "may_begin")

    def __init__(self, deadline_seconds: float, may_begin: Callable[[], bool] | None) -> None:
        self._ends_at_seconds = time.monotonic() + deadline_seconds
        self.may_begin = may_begin
        self.began = False

    def left_seconds(self) -> float:
        """Return what is left of the deadline; zero or less when it has passed."""
        return self._ends_at_seconds - time.monotonic()

    def begin(self) -> None:
        """Ask the caller for the last time, then count as sent."""
        if self.may_begin is not None and not self.may_begin():
            raise _TooLateError
        self.began = True


#: httpx has no place to pass an attempt down to the socket; a send runs in one thread from end to end, so this is exact.
_current: ContextVar[_Attempt] = ContextVar("attempt")


class _Stream(httpcore.NetworkStream):
    """A connection that gives every read and write only what is left of the attempt's deadline."""

    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner
        self._answered = False

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002 - the deadline decides
        self._answered = True
        return self._inner.read(max_bytes, timeout=_left(httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002 - the deadline decides
        attempt = _current.get()
        if not attempt.began:
            # Only after an answer: a fresh TLS 1.3 connection may be readable because of session tickets.
            if self._answered and self._inner.get_extra_info("is_readable"):
                raise _StaleError
            attempt.begin()
        sock: socket.socket = self._inner.get_extra_info("socket")
        rest = memoryview(buffer)
        try:
            while rest:
                sock.settimeout(_left(httpcore.WriteTimeout))
                rest = rest[sock.send(rest) :]
        except TimeoutError as exc:
            raise httpcore.WriteTimeout(str(exc)) from exc
        except OSError as exc:
            raise httpcore.WriteError(str(exc)) from exc

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002 - the deadline decides
    ) -> httpcore.NetworkStream:
        seconds = min(CONNECT_SECONDS, _left(httpcore.ConnectTimeout))
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, seconds))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _Network(httpcore.SyncBackend):
    """Opens connections under the attempt's deadline, whatever number of addresses a name has."""

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002 - the deadline decides
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as exc:  # UnicodeError: a name that is no host name
            raise httpcore.ConnectError(str(exc)) from exc
        failure: Exception = httpcore.ConnectError("the name has no address")
        for address in dict.fromkeys(str(entry[4][0]) for entry in found):
            seconds = min(CONNECT_SECONDS, _left(httpcore.ConnectTimeout))
            try:
                return _Stream(super().connect_tcp(address, port, seconds, local_address, socket_options))
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as exc:
                failure = exc
        raise failure


class _HTTP(httpx.HTTPTransport):
    """httpx's own transport over connections of ours; httpx offers no public way to hand it a network backend."""

    def __init__(self, *, secure: bool) -> None:
        super().__init__(verify=_tls() if secure else False, trust_env=False)
        self._pool = httpcore.ConnectionPool(
            ssl_context=_tls() if secure else None,
            max_connections=CONNECTIONS,
            max_keepalive_connections=CONNECTIONS,
            keepalive_expiry=KEEPALIVE_SECONDS,
            network_backend=_Network(),
        )


class Transport:
    """The way to one provider: one client, its kept connections and its credential, for as long as the process lives.

    `base_url` is the API's root; a request's path is appended to it. `headers` carry the credential and appear in no
    error and no repr. Safe to use from many threads.
    """

    def __init__(self, base_url: str, headers: Mapping[str, str] | None = None) -> None:
        self._base_url = base_url.rstrip("/")
        self._client = httpx.Client(
            transport=_HTTP(secure=base_url.lower().startswith("https")),
            headers={
                "Accept": "application/json",
                "Accept-Encoding": "identity",
                "User-Agent": USER_AGENT,
                **(headers or {}),
            },
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # an API client has no session to keep
            timeout=None,  # noqa: S113 - every read and write below gets what is left of the attempt's deadline
            follow_redirects=False,
            trust_env=False,
        )

    @overload
    def send(self, request: Request, *, deadline_seconds: float = ..., may_begin: None = ...) -> Sent: ...
    @overload
    def send(
        self, request: Request, *, deadline_seconds: float = ..., may_begin: Callable[[], bool] | None
    ) -> Sent | NotBegun: ...

    def send(
        self,
        request: Request,
        *,
        deadline_seconds: float = DEADLINE_SECONDS,
        may_begin: Callable[[], bool] | None = None,
    ) -> Sent | NotBegun:
        """Send one request and say how it ended; never raises for anything the network or the provider does.

        `deadline_seconds` bounds the whole attempt (only the resolving of a name, which is before the write, is out of
        its reach). `may_begin` is asked once, with the connection open, just before the first byte is written.
        """
        try:
            prepared = self._prepare(request)
        except (ValueError, TypeError, httpx.InvalidURL) as exc:
            return NeverSent(error=f"{type(exc).__name__}: the request cannot be put into HTTP")
        attempt = _Attempt(deadline_seconds, may_begin)
        for _ in range(STALE_LIMIT):
            token = _current.set(attempt)
            try:
                return self._exchange(prepared)
            except _StaleError:
                continue
            except _TooLateError:
                return NotBegun(reason="too late to begin: the check just before the write said no")
            except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, RuntimeError) as exc:
                return _failed(exc, attempt)
            finally:
                _current.reset(token)
        return NeverSent(error="the provider closed one kept connection after the other")

    def close(self) -> None:
        """Close the kept connections."""
        self._client.close()

    def _prepare(self, request: Request) -> httpx.Request:
        query = f"?{urlencode(request.query)}" if request.query else ""
        headers = dict(request.headers)
        content = None
        if request.json is not None:
            content = json.dumps(request.json, allow_nan=False, separators=(",", ":")).encode()
            headers["Content-Type"] = "application/json"
        return self._client.build_request(
            request.method, f"{self._base_url}{request.path}{query}", headers=headers, content=content
        )

    def _exchange(self, prepared: httpx.Request) -> Answered | NoAnswer:
        response = self._client.send(prepared, stream=True)
        headers = {name.lower(): value for name, value in response.headers.items()}
        body = bytearray()
        truncated = False
        try:
            for chunk in response.iter_raw():
                body += chunk
                if len(body) > BODY_LIMIT_BYTES:
                    truncated = True
                    break
        except (httpx.HTTPError, httpx.StreamError, OSError) as exc:
            # The status alone settles a failure; a success needs its body, for the id.
            if response.status_code < httpx.codes.MULTIPLE_CHOICES:
                return NoAnswer(error=f"{response.status_code} and then {_named(exc)}")
            truncated = True
        finally:
            response.close()
        return Answered(
            status=response.status_code,
            headers=headers,
            body=_decoded(bytes(body[:BODY_LIMIT_BYTES]), headers.get("content-encoding", "")),
            truncated=truncated,
        )

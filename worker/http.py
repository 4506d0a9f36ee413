"""The way out to a provider: httpx in front, libcurl beneath, and what is known of a request that failed.

`HttpClient` sends a `ProviderRequest` through an `httpx.Client` and says how it ended. Two facts are decided here for every
attempt: how long all of it may take (one total deadline, which an answer that drips in cannot stretch), and whether the
request had begun to leave when it failed. Before that a failure is `NeverSent`, after it `NoAnswer`: the provider may
have acted.

`CurlTransport` is httpx's public extension point, an `httpx.BaseTransport`. libcurl does the HTTP and calls its
PREREQFUNCTION when a connection is open and the request is about to be written: the place of the caller's last check. A
second call within one transfer means that libcurl wants to repeat the request, because a kept connection closed without
an answer. It is stopped there, for the provider may have read the first: nothing of one attempt leaves twice.

A kept connection that the provider closes while it is idle could cost an attempt. So it is used again within 3 seconds
only, and not when it is readable just before (closed, or with bytes that nobody asked for). Nothing comes from the
environment: no proxy, no certificates but those of certifi. Redirects are not followed, since a credential goes to the
configured host only, and cookies are not kept.

CPU of a request over a kept connection: 0.13 ms, of which libcurl is 0.02 and httpx most of the rest. Traces:
`opentelemetry.instrumentation.httpx.HTTPXClientInstrumentor.instrument_client(client.httpx)`.
"""

from __future__ import annotations

import json
import re
import select
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.metadata import version
from typing import Final, overload
from urllib.parse import quote, urlencode, urlsplit

import certifi
import httpx
import pycurl

from worker.clock import awake_seconds
from worker.providers import Answered, NeverSent, NoAnswer, NotBegun, ProviderRequest, Sent

#: One attempt in all: resolving the name, connecting, writing, waiting, reading.
DEADLINE_SECONDS: Final = 30.0
CONNECT_SECONDS: Final = 10.0
#: Below the shortest keep-alive of common servers (Node: 5 s), so that they rarely close first.
KEEPALIVE_SECONDS: Final = 3.0

USER_AGENT: Final = f"leadwire/{version('leadwire')}"

#: What may stand in a method or a header's name, and in a header's value (RFC 9110, sections 5.1 and 5.5).
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
#: What a path keeps as it is (RFC 3986, section 3.3); a percent sign stands for what was encoded before.
_PATH_CHARACTERS: Final = "/%:@!$&'()*+,;=~-._"
#: One encoder for all: json.dumps with options would make one at each call.
_JSON: Final = json.JSONEncoder(allow_nan=False, separators=(",", ":"))
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[0-9] ([1-9][0-9]{2})(?:[ \r\n]|$)")
#: Answers that only announce the real one (RFC 9110, section 15.2); 101 would end HTTP on the connection.
_INTERIM: Final = frozenset(range(100, 200)) - {101}
#: The first status that is no success.
_NO_SUCCESS: Final = 300
#: libcurl's names of its errors; its messages may quote what was sent or received.
_CURL_ERRORS: Final = {
    getattr(pycurl, name): name[2:].lower().replace("_", " ") for name in dir(pycurl) if name.startswith("E_")
}


@dataclass(slots=True)
class Attempt:
    """The state of one request, passed as the extension `attempt` of its `httpx.Request`.

    `may_begin` is called once, with the connection open, just before the first byte is written. `refused`: it returned False.
    `began`: the request has started to be sent.
    """

    ends_at_seconds: float
    body_limit_bytes: int
    may_begin: Callable[[], bool] | None = None
    began: bool = False
    refused: bool = False


class HttpClient:
    """An HTTP client for one provider, with kept connections and a credential, for the life of the process.

    `base_url` is the API's root, to which a request's path is appended. `headers` carry the credential; they appear in no error
    and no repr. Thread-safe. `httpx` is the underlying client, for instrumentation.
    """

    def __init__(self, base_url: str, headers: Mapping[str, str] | None = None) -> None:
        self._base_url = base_url.rstrip("/")
        self._headers = {"Accept": "application/json", "User-Agent": USER_AGENT, **(headers or {})}
        # The plain Auth keeps httpx from taking a credential out of a URL.
        self.httpx = _CookielessClient(transport=CurlTransport(), auth=httpx.Auth(), trust_env=False)

    @overload
    def send(self, request: ProviderRequest, *, deadline_seconds: float = ..., may_begin: None = ...) -> Sent: ...
    @overload
    def send(
        self, request: ProviderRequest, *, deadline_seconds: float = ..., may_begin: Callable[[], bool] | None
    ) -> Sent | NotBegun: ...

    def send(
        self,
        request: ProviderRequest,
        *,
        deadline_seconds: float = DEADLINE_SECONDS,
        may_begin: Callable[[], bool] | None = None,
    ) -> Sent | NotBegun:
        """Send one request and say how it ended; never raises for anything the network or the provider does.

        `deadline_seconds` bounds the whole attempt. `may_begin` is asked once, with the connection open, just before the
        request leaves; when it returns False nothing leaves, and the end is `NotBegun`.
        """
        try:
            prepared = self._prepare(request)
        except (httpx.InvalidURL, ValueError, TypeError, RecursionError) as error:
            return NeverSent(error=f"{type(error).__name__}: the request cannot be put into HTTP")
        attempt = Attempt(awake_seconds() + deadline_seconds, request.body_limit_bytes, may_begin)
        prepared.extensions["attempt"] = attempt
        try:
            response = self.httpx.send(prepared, stream=True)
            body = b"".join(response.iter_raw())  # libcurl has undone any compression
        except (httpx.HTTPError, RuntimeError) as error:  # RuntimeError: the client is closed
            if attempt.refused:
                return NotBegun(reason="too late to begin: the check just before the write said no")
            named = f"{type(error).__name__}: {error}"
            return NoAnswer(error=named) if attempt.began else NeverSent(error=named)
        headers, is_cut = dict(response.headers.items()), response.extensions["truncated"]
        return Answered(status=response.status_code, headers=headers, body=body, truncated=is_cut)

    def close(self) -> None:
        """Close the connections; a later `send` returns NeverSent."""
        self.httpx.close()

    def _prepare(self, request: ProviderRequest) -> httpx.Request:
        """Raises InvalidURL, ValueError or TypeError for what HTTP or JSON cannot hold, RecursionError for deep JSON."""
        base, common = self._common
        content, own = b"", dict(request.headers)
        if request.json is not None:
            content = _JSON.encode(request.json).encode()
            own["Content-Type"] = "application/json"
        if not _TOKEN.fullmatch(request.method.encode()):
            raise ValueError("a method is not one")
        query = f"?{urlencode(request.query)}" if request.query else ""
        added = _lines(own)
        return httpx.Request(
            request.method,
            _url(base + quote(request.path, safe=_PATH_CHARACTERS) + query),
            headers=[*(line for name, line in common.items() if name not in added), *added.values()],
            stream=httpx.ByteStream(content),  # with `content` httpx would prepare headers that libcurl writes
        )

    @cached_property
    def _common(self) -> tuple[str, Mapping[bytes, tuple[bytes, bytes]]]:
        """The root and the headers of every request. Raises ValueError for what HTTP cannot hold, at each use."""
        url = urlsplit(self._base_url)
        if url.scheme.lower() not in {"http", "https"} or not url.hostname:
            raise ValueError("the provider's URL is not an http or https one")
        host = url.netloc.rpartition("@")[2]
        return f"{url.scheme}://{host}{quote(url.path, safe=_PATH_CHARACTERS)}", _lines(self._headers)


class CurlTransport(httpx.BaseTransport):
    """Sends httpx's requests with libcurl, over connections that are kept, and returns responses with their whole body.

    The `attempt` extension of a request bounds it. A response has the extension `truncated`: its body is not whole, as it
    was over the limit, or a failure's broke off. Raises httpx's exceptions, without anything of what was sent or received.
    """

    def __init__(self) -> None:
        self._idle: list[_Connection] = []
        self._lock = threading.Lock()
        self._closed = False

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and return the answer."""
        connection, keep = self._take(), False
        try:
            response, keep = connection.exchange(request)
            return response
        finally:
            if not keep or not self._keep(connection):
                connection.close()

    def close(self) -> None:
        """Close all connections that are idle, and those on their way when they come back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _take(self) -> _Connection:
        """Return the connection that was used last; if that has been idle for too long, the others are closed."""
        with self._lock:
            if not self._idle:
                return _Connection()
            connection = self._idle.pop()
            if not connection.is_expired:
                return connection
            expired, self._idle = self._idle, []
        for each in expired:
            each.close()
        return connection

    def _keep(self, connection: _Connection) -> bool:
        with self._lock:
            if not self._closed:
                self._idle.append(connection)
            return not self._closed


class _Connection:
    """A handle of libcurl, which keeps one connection and, for TLS, its authorities; used by one thread at a time."""

    def __init__(self) -> None:
        self._used_seconds = awake_seconds()  # counts suspended time: after a suspension a connection is old
        self._attempt = Attempt(0.0, 0)
        self._lines: list[bytes] = []
        self._body = bytearray()
        self._curl = pycurl.Curl()
        for option, value in (
            (pycurl.NOSIGNAL, 1),  # libcurl's signals are not for programs with threads
            (pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS),
            (pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1),
            (pycurl.PROXY, ""),  # also none of the environment
            (pycurl.CAINFO, certifi.where()),
            (pycurl.CONNECTTIMEOUT_MS, int(CONNECT_SECONDS * 1000)),
            (pycurl.MAXCONNECTS, 1),
            (pycurl.ACCEPT_ENCODING, "identity"),  # and a compression that nobody asked for is undone
            (pycurl.PREREQFUNCTION, self._begin),
            (pycurl.HEADERFUNCTION, self._lines.append),
            (pycurl.WRITEFUNCTION, self._receive),
        ):
            self._curl.setopt(option, value)

    @property
    def is_expired(self) -> bool:
        """Whether it has been idle for too long."""
        return awake_seconds() - self._used_seconds >= KEEPALIVE_SECONDS

    def exchange(self, request: httpx.Request) -> tuple[httpx.Response, bool]:
        """Send a request; return its answer, and whether the connection can be kept.

        Raises httpx.TransportError when there is no answer that could be used.
        """
        self._attempt = request.extensions["attempt"]
        self._lines.clear()
        self._body.clear()
        timeout_ms = int((self._attempt.ends_at_seconds - awake_seconds()) * 1000)
        if timeout_ms <= 0:  # to libcurl 0 means no limit
            raise httpx.ConnectTimeout("the deadline has passed")
        curl, content = self._curl, request.read()
        if content or request.method not in {"GET", "HEAD"}:
            curl.setopt(pycurl.POSTFIELDS, content)
        else:
            curl.setopt(pycurl.HTTPGET, 1)
        # A header without a value ends with a semicolon here. The last two take away what libcurl would add to a body.
        headers = [name + b": " + value if value else name + b";" for name, value in request.headers.raw]
        curl.setopt(pycurl.HTTPHEADER, [*headers, b"Content-Type:", b"Expect:"])
        curl.setopt(pycurl.CUSTOMREQUEST, request.method)
        curl.setopt(pycurl.NOBODY, request.method == "HEAD")
        curl.setopt(pycurl.URL, str(request.url))
        curl.setopt(pycurl.TIMEOUT_MS, timeout_ms)
        curl.setopt(pycurl.FRESH_CONNECT, self.is_expired or self._is_readable())
        failure = None
        try:
            curl.perform()
        except pycurl.error as error:
            failure = self._failure(*error.args)
        self._used_seconds = awake_seconds()
        return self._response(failure)

    def close(self) -> None:
        """Close it."""
        self._curl.close()

    def _is_readable(self) -> bool:
        """Say whether the other side closed the kept connection, or spoke out of turn."""
        number = self._curl.getinfo(pycurl.ACTIVESOCKET)
        if number < 0:  # there is none
            return False
        poll = select.poll()
        poll.register(number, select.POLLIN)
        return bool(poll.poll(0))

    def _begin(self, *_: object) -> int:
        """PREREQFUNCTION: let the request leave, once, and if it may."""
        attempt = self._attempt
        if not attempt.began:
            attempt.refused = attempt.may_begin is not None and not attempt.may_begin()
            attempt.began = not attempt.refused
            return int(pycurl.PREREQFUNC_OK if attempt.began else pycurl.PREREQFUNC_ABORT)
        return int(pycurl.PREREQFUNC_ABORT)

    def _receive(self, part: bytes) -> int:
        """WRITEFUNCTION: keep a part of the body; anything but its length ends the transfer."""
        self._body += part
        return len(part) if len(self._body) <= self._attempt.body_limit_bytes else 0

    def _failure(self, code: int, message: str) -> httpx.TransportError:
        words = message if code == pycurl.E_PEER_FAILED_VERIFICATION else _CURL_ERRORS.get(code, f"error {code}")
        if not self._attempt.began:
            return httpx.ConnectTimeout(words) if code == pycurl.E_OPERATION_TIMEDOUT else httpx.ConnectError(words)
        if code == pycurl.E_OPERATION_TIMEDOUT:
            return httpx.ReadTimeout("no whole answer in time")
        if code in {pycurl.E_SEND_ERROR, pycurl.E_RECV_ERROR, pycurl.E_GOT_NOTHING, pycurl.E_ABORTED_BY_CALLBACK}:
            return httpx.ReadError("the connection ended without an answer")
        return httpx.RemoteProtocolError(words)

    def _response(self, failure: httpx.TransportError | None) -> tuple[httpx.Response, bool]:
        head: list[bytes] = []
        for line in self._lines:
            if line.strip(b"\r\n"):
                head.append(line)
            elif not head or not (found := _STATUS_LINE.match(head[0])):
                break
            elif int(found[1]) in _INTERIM:
                head = []
            else:  # what follows are trailers
                return self._answer(int(found[1]), head[1:], failure)
        raise failure or httpx.RemoteProtocolError("the answer is no whole HTTP/1 answer")

    def _answer(
        self, status: int, lines: list[bytes], failure: httpx.TransportError | None
    ) -> tuple[httpx.Response, bool]:
        limit_bytes = self._attempt.body_limit_bytes
        # The status alone settles a failure; a success needs its body, for the id.
        if failure is not None and status < _NO_SUCCESS and len(self._body) <= limit_bytes:
            raise type(failure)(f"{status} and then {failure}")
        pairs = [(name.lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
        response = httpx.Response(
            status,
            headers=[pair for pair in pairs if pair[0] != b"content-encoding"],
            stream=httpx.ByteStream(bytes(self._body[:limit_bytes])),
            extensions={"truncated": failure is not None},
        )
        # Of two who disagree about an answer's end, one takes its rest for the next answer.
        is_clear = not {b"content-length", b"transfer-encoding"} <= {name for name, _ in pairs}
        return response, is_clear and failure is None


class _NoCookies(httpx.Cookies):
    def extract_cookies(self, response: httpx.Response) -> None:
        """Keep none."""


class _CookielessClient(httpx.Client):
    _none = _NoCookies()
    cookies = property(lambda self: self._none)


def _lines(headers: Mapping[str, str]) -> dict[bytes, tuple[bytes, bytes]]:
    """Return headers by their names in lower case. Raises ValueError for what could end a line or a name before its time."""
    pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    if not all(_TOKEN.fullmatch(name) and _VALUE.fullmatch(value) for name, value in pairs):
        raise ValueError("a header has characters that HTTP forbids")
    return {name.lower(): (name, value) for name, value in pairs}


@lru_cache(maxsize=64)
def _url(text: str) -> httpx.URL:
    """Return a parsed URL; most requests of a provider go to the same one."""
    return httpx.URL(text)

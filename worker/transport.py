"""How a request leaves this machine: the only way out, and what it knows when one fails.

Two facts are decided here for every attempt: whether the whole of it may still take time (one total deadline, which also a
dripping answer cannot stretch), and whether anything was written before it failed. The second is not guessed from an
exception: an attempt has begun once the first byte of its request is handed to the kernel. Before that a failure is
`NeverSent`, after it `NoAnswer`.

A kept connection that the provider closed meanwhile would turn into a `NoAnswer` although nobody read the request. So a
connection is kept for 3 seconds only, and one that is readable just before the write (closed, or talking out of turn)
is dropped for a fresh one. What remains is a provider that closes in the very moment of the write; nothing
on this side can tell that from one that read the request and died, so it stays `NoAnswer`.

Proxies and certificate folders of the environment are ignored: what a request passes through is part of Leadwire's own
settings or nothing. Redirects are never followed: a credential goes to the configured host only. Cookies are not kept.

A socket and a parser in C instead of an HTTP client: no layer lies between the decision "has it begun" and the socket, and a
request costs a fraction of the CPU (one thread, a kept connection: 0.08 ms, where http.client as the parser took 0.15).
"""

from __future__ import annotations

import json
import re
import ssl
import threading
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Final, overload
from urllib.parse import quote, urlencode, urlsplit

from worker.awake import awake_seconds
from worker.connection import Address, Answer, Attempt, BrokenAnswerError, Connection, StaleError, TooLateError, connect
from worker.wire import Answered, NeverSent, NoAnswer, NotBegun, Request, Sent

#: One attempt in all: connecting, writing, waiting, reading.
DEADLINE_SECONDS: Final = 30.0
#: Below the shortest keep-alive of common servers (Node: 5 s), so that they rarely close first.
KEEPALIVE_SECONDS: Final = 3.0
#: Answers are a task or an error; what is longer is cut off and marked.
BODY_LIMIT_BYTES: Final = 1024 * 1024
#: How many kept connections may turn out closed before an attempt gives up: then the provider is going away.
STALE_LIMIT: Final = 8

USER_AGENT: Final = f"leadwire/{version('leadwire')}"

#: What may stand in a request's first line and in a header's name and value (RFC 9110, sections 5.1 and 5.5).
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
#: What a path keeps as it is (RFC 3986, section 3.3); a percent sign stands for what was encoded before.
_PATH_CHARACTERS: Final = "/%:@!$&'()*+,;=~-._"
#: One encoder for all: json.dumps with options would make one at each call.
_JSON: Final = json.JSONEncoder(allow_nan=False, separators=(",", ":"))
#: The first status that is no success.
_NO_SUCCESS: Final = 300


@dataclass(frozen=True, slots=True, repr=False)  # the lines hold the credential
class _Root:
    """What all requests to one provider have in common: where they go, how their path begins, and header lines by name."""

    address: Address
    path: str
    lines: Mapping[str, bytes]
    head: bytes

    def besides(self, own: Mapping[str, str]) -> bytes:
        """Return the lines that a request's own headers do not replace."""
        if self.lines.keys().isdisjoint(own):
            return self.head
        return b"".join(line for name, line in self.lines.items() if name not in own)


class Transport:
    """The way to one provider: its kept connections and its credential, for as long as the process lives.

    `base_url` is the API's root; a request's path is appended to it. `headers` carry the credential and appear in no
    error and no repr. Safe to use from many threads.
    """

    def __init__(self, base_url: str, headers: Mapping[str, str] | None = None) -> None:
        self._base_url = base_url.rstrip("/")
        self._headers = {
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": USER_AGENT,
            **(headers or {}),
        }
        self._kept: list[Connection] = []
        self._lock = threading.Lock()
        self._closed = False

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
            address, data = self._prepare(request)
        except (ValueError, TypeError, RecursionError) as error:
            return NeverSent(error=f"{type(error).__name__}: the request cannot be put into HTTP")
        attempt = Attempt(deadline_seconds, may_begin)
        for _ in range(STALE_LIMIT):
            try:
                return self._exchange(address, request.method, data, attempt)
            except StaleError:
                continue
            except TooLateError:
                return NotBegun(reason="too late to begin: the check just before the write said no")
            except (OSError, BrokenAnswerError, ValueError) as error:
                return NoAnswer(error=_named(error)) if attempt.began else NeverSent(error=_named(error))
        return NeverSent(error="the provider closed one kept connection after the other")

    def close(self) -> None:
        """Close the kept connections; what is sent later is never sent."""
        with self._lock:
            self._closed = True
            kept, self._kept = self._kept, []
        for connection in kept:
            connection.close()

    def _prepare(self, request: Request) -> tuple[Address, bytes]:
        """Return where the request goes and its bytes.

        Raises ValueError or TypeError for what HTTP or JSON cannot hold, RecursionError for JSON that is nested too deep.
        """
        root, content, own = self._root, b"", dict(request.headers)
        if request.json is not None:
            content = _JSON.encode(request.json).encode()
            own["Content-Type"] = "application/json"
        if request.json is not None or request.method not in {"GET", "HEAD"}:
            own["Content-Length"] = str(len(content))
        if not _TOKEN.fullmatch(request.method):
            raise ValueError("a method is not one")
        query = f"?{urlencode(request.query)}" if request.query else ""
        target = root.path + quote(request.path, safe=_PATH_CHARACTERS) + query
        first = f"{request.method} {target} HTTP/1.1\r\n".encode("latin-1")
        return root.address, b"".join((first, root.besides(own), *_lines(own).values(), b"\r\n", content))

    @cached_property
    def _root(self) -> _Root:
        """Raises ValueError for a URL or headers that HTTP cannot hold, at each use."""
        url = urlsplit(self._base_url)
        if url.scheme.lower() not in {"http", "https"} or not url.hostname:
            raise ValueError("the provider's URL is not an http or https one")
        secure = url.scheme.lower() == "https"
        lines = _lines({"Host": url.netloc.rpartition("@")[2], **self._headers})
        return _Root(
            address=Address(url.hostname, url.port or (443 if secure else 80), secure),
            path=quote(url.path, safe=_PATH_CHARACTERS),
            lines=lines,
            head=b"".join(lines.values()),
        )

    def _exchange(self, address: Address, method: str, data: bytes, attempt: Attempt) -> Answered | NoAnswer:
        connection = self._take() or connect(address, attempt)
        keep = False
        try:
            connection.write(data, attempt)
            answer = connection.answer(attempt)
            answered = _read(answer, method)
            keep = isinstance(answered, Answered) and not answered.truncated and answer.can_be_kept
            return answered
        finally:
            if not keep or not self._keep(connection):
                connection.close()

    def _take(self) -> Connection | None:
        """Return the connection that was used last, when it is young enough; older ones are closed with it."""
        with self._lock:
            if self._closed:
                raise ConnectionAbortedError("the process is ending")
            if not self._kept:
                return None
            oldest_seconds = awake_seconds() - KEEPALIVE_SECONDS
            if self._kept[-1].idle_since_seconds > oldest_seconds:
                return self._kept.pop()
            expired, self._kept = self._kept, []
        for connection in expired:
            connection.close()
        return None

    def _keep(self, connection: Connection) -> bool:
        connection.idle_since_seconds = awake_seconds()
        with self._lock:
            if not self._closed:
                self._kept.append(connection)
            return not self._closed


def _lines(headers: Mapping[str, str]) -> dict[str, bytes]:
    """Return each header as its line. Raises ValueError for what could end a line or a name before its time."""
    if not all(_TOKEN.fullmatch(name) for name in headers):
        raise ValueError("a header's name is not one")
    if not all(_VALUE.fullmatch(value) for value in headers.values()):
        raise ValueError("a header's value has characters that HTTP forbids")
    return {name: f"{name}: {value}\r\n".encode("latin-1") for name, value in headers.items()}


def _read(answer: Answer, method: str) -> Answered | NoAnswer:
    """Read the body, up to the limit."""
    body = bytearray()
    truncated = False
    try:
        for part in answer.parts(method):
            body += part
            if len(body) > BODY_LIMIT_BYTES:
                break
    except (OSError, BrokenAnswerError, ValueError) as error:
        # The status alone settles a failure; a success needs its body, for the id.
        if answer.status < _NO_SUCCESS:
            return NoAnswer(error=f"{answer.status} and then {_named(error)}")
        truncated = True
    return Answered(
        status=answer.status,
        headers=answer.headers,
        body=_decoded(bytes(body[:BODY_LIMIT_BYTES]), answer.headers.get("content-encoding", "")),
        truncated=truncated or len(body) > BODY_LIMIT_BYTES,
    )


def _decoded(body: bytes, encoding: str) -> bytes:
    """Undo a compression nobody asked for, within the body limit; what cannot be undone stays as it came."""
    if encoding.strip().lower() not in {"gzip", "x-gzip", "deflate"}:
        return body
    try:
        return zlib.decompressobj(wbits=zlib.MAX_WBITS | 32).decompress(body, BODY_LIMIT_BYTES)
    except zlib.error:
        return body


def _named(error: BaseException) -> str:
    """Return an error's class name, and the certificate's complaint: no other text of it, which may quote a header."""
    name = type(error).__name__.removesuffix("Error") if isinstance(error, BrokenAnswerError) else type(error).__name__
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"{name}: {error.verify_message}"
    return f"{name}: {error}" if isinstance(error, BrokenAnswerError) else name

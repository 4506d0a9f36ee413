"""One connection to a provider: opened, written to and read from under the deadline of whatever attempt uses it.

http.client parses the answers; the socket below it is ours, because two things must be exact: no read or write outlasts
what is left of the attempt, and it is known whether a byte of the request was handed to the kernel. http.client alone
takes an end of the connection for the end of a line, of the headers or of a body; here each of these is a fault.
"""

from __future__ import annotations

import http.client
import select
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Final

import certifi

from worker.awake import awake_seconds

#: One address that does not answer must not eat the time of the next.
CONNECT_SECONDS: Final = 10.0
#: How much is asked of the socket at once.
CHUNK_BYTES: Final = 64 * 1024
#: Answers that only announce the real one (RFC 9110, section 15.2); 101 would end HTTP on this connection.
INTERIM: Final = frozenset(range(100, 200)) - {101}


class TooLateError(Exception):
    """The caller's check said no, just before the write."""


class StaleError(Exception):
    """A kept connection was closed by the other side, or spoke out of turn, before anything was written to it."""


class BrokenAnswerError(Exception):
    """What came back is no complete HTTP answer."""


class Attempt:
    """What one attempt knows of itself: until when it may go on, and whether its request has begun to leave."""

    __slots__ = ("_ends_at_seconds", "_may_begin", "began")

    def __init__(self, deadline_seconds: float, may_begin: Callable[[], bool] | None = None) -> None:
        self._ends_at_seconds = awake_seconds() + deadline_seconds
        self._may_begin = may_begin
        self.began = False

    def left_seconds(self) -> float:
        """Return what is left of the deadline; raises TimeoutError when nothing is."""
        seconds = self._ends_at_seconds - awake_seconds()
        if seconds <= 0:
            raise TimeoutError("the attempt's deadline has passed")
        return seconds

    def begin(self) -> None:
        """Ask the caller for the last time, then count as sent."""
        if self._may_begin is not None and not self._may_begin():
            raise TooLateError
        self.began = True


@dataclass(frozen=True, slots=True)
class Address:
    """Where a provider is: a name or an IP address, a port, and whether to speak TLS."""

    host: str
    port: int
    secure: bool


@cache
def tls() -> ssl.SSLContext:
    """One context per process: making it costs 50 ms, and it is what connections resume their sessions from.

    It trusts the authorities of the certifi package and nothing that the environment names.
    """
    context = ssl.create_default_context(cafile=certifi.where())
    context.set_alpn_protocols(["http/1.1"])
    return context


class _Incoming:
    """What http.client reads an answer from: a socket under a deadline, with a buffer that outlives one answer."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._buffer = b""
        self.attempt: Attempt | None = None
        self.closed = False

    @property
    def is_empty(self) -> bool:
        """Whether nothing came that no answer took."""
        return not self._buffer

    def makefile(self, _mode: str) -> _Incoming:
        """Return itself: http.client asks a socket for its file."""
        return self

    def readline(self, limit: int = -1) -> bytes:
        """Return one line with its end, or `limit` bytes of a longer one; an end of the connection within it is a fault."""
        seen = 0
        while (end := self._buffer.find(b"\n", seen)) < 0 and (limit < 0 or len(self._buffer) < limit):
            seen = len(self._buffer)
            if not self._fill():
                raise BrokenAnswerError("the connection ended within the answer")
        size = end + 1 if end >= 0 else limit
        return self._take(size if limit < 0 else min(size, limit))

    def read(self, size: int = -1) -> bytes:
        """Return so many bytes, or fewer at the end of the connection; all until then when negative."""
        parts, count = [], 0
        while (size < 0 or count < size) and (self._buffer or self._fill()):
            parts.append(self._take(len(self._buffer) if size < 0 else size - count))
            count += len(parts[-1])
        return b"".join(parts)

    def flush(self) -> None:
        """Do nothing: there is nothing to flush."""

    def close(self) -> None:
        """Do nothing: the connection outlives the answer."""

    def _fill(self) -> bool:
        assert self.attempt is not None
        self._socket.settimeout(self.attempt.left_seconds())
        chunk = self._socket.recv(CHUNK_BYTES)
        self._buffer = self._buffer + chunk if self._buffer else chunk
        return bool(chunk)

    def _take(self, size: int) -> bytes:
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken


class Connection:
    """One open connection; used by one thread at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._incoming = _Incoming(sock)
        self._answered = False
        #: Since when nobody uses it, by `awake_seconds`: after a suspension it is old.
        self.idle_since_seconds = 0.0

    def write(self, data: bytes, attempt: Attempt) -> None:
        """Hand a whole request to the kernel. Raises StaleError or TooLateError before the first byte, OSError after."""
        # Only after an answer: a fresh TLS 1.3 connection may be readable because of session tickets.
        if self._answered and self._is_readable():
            raise StaleError
        attempt.begin()
        rest = memoryview(data)
        while rest:
            self._socket.settimeout(attempt.left_seconds())
            rest = rest[self._socket.send(rest) :]

    def answer(self, method: str, attempt: Attempt) -> http.client.HTTPResponse:
        """Return the head of the answer, its body still to be read; interim answers are skipped."""
        self._incoming.attempt = attempt
        while True:
            response = http.client.HTTPResponse(self._incoming, method=method)  # type: ignore[arg-type]  # all it uses of a socket
            response.begin()
            if response.status not in INTERIM:
                _check_length(response)
                self._answered = True
                return response

    def can_be_kept(self, response: http.client.HTTPResponse) -> bool:
        """Whether another request may follow after this answer: it was read to its end, and nothing came behind it."""
        return response.isclosed() and not response.will_close and self._incoming.is_empty

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    def _is_readable(self) -> bool:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))


def connect(address: Address, attempt: Attempt) -> Connection:
    """Open a connection under the attempt's deadline, whatever number of addresses the name has. Raises OSError."""
    attempt.left_seconds()
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # a name that is no host name
        raise OSError(str(error)) from error
    failure: OSError = OSError("the name has no address")
    for family, kind, protocol, _, target in found:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(min(CONNECT_SECONDS, attempt.left_seconds()))
            sock.connect(target)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return Connection(_secured(sock, address, attempt))
        except OSError as error:  # also what TLS says: its errors are OSErrors
            sock.close()
            failure = error
            if isinstance(error, ssl.SSLError):
                break  # another address of the same name will not prove more
    raise failure


def _secured(sock: socket.socket, address: Address, attempt: Attempt) -> socket.socket:
    if not address.secure:
        return sock
    sock.settimeout(min(CONNECT_SECONDS, attempt.left_seconds()))
    return tls().wrap_socket(sock, server_hostname=address.host)


def _check_length(response: http.client.HTTPResponse) -> None:
    """Refuse a length that is none, or several that differ: where the answer ends is not known then."""
    lengths = {text.strip() for value in response.headers.get_all("Content-Length", []) for text in value.split(",")}
    if len(lengths) > 1 or not all(length.isascii() and length.isdigit() for length in lengths):
        raise BrokenAnswerError("the answer's Content-Length cannot be read")

"""One connection to a provider: opened, written to and read from under the deadline of whatever attempt uses it.

llhttp, through httptools, reads heads and chunks. The socket is ours, and so is the decision where an answer ends, because
these must be exact: no read or write outlasts what is left of the attempt; it is known whether a byte of the request was
handed to the kernel; an end of the connection within a head, a body of known length or chunks is a fault; and what comes
behind an answer is noticed, to the byte.

An answer that can be understood in one way only is understood, for a broken one costs a question to the provider or to a
person: folded header lines are unfolded (RFC 9112, section 5.2), a Content-Length that is repeated with the same digits is one
(section 6.3), chunks win over a length beside them but end the connection, and a chunk's length may be padded. Lines that end
without a carriage return, and lengths that differ, make a broken answer.
"""

from __future__ import annotations

import re
import select
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Final

import certifi
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from worker.awake import awake_seconds

#: One address that does not answer must not eat the time of the next.
CONNECT_SECONDS: Final = 10.0
#: How much is asked of the socket at once.
CHUNK_BYTES: Final = 64 * 1024
#: The status that ends HTTP on a connection.
SWITCHING: Final = 101
#: Answers that only announce the real one (RFC 9110, section 15.2).
INTERIM: Final = frozenset(range(100, 200)) - {SWITCHING}
#: Answers that end with their head, whatever it says (RFC 9112, section 6.3).
BODILESS: Final = frozenset({SWITCHING, 204, 304})
#: The status line and the headers of one answer.
HEAD_LIMIT_BYTES: Final = 64 * 1024
HEADER_LIMIT: Final = 100
#: What may come between two parts of a chunked body: lengths, extensions, trailers.
CHUNK_HEAD_LIMIT_BYTES: Final = 64 * 1024

#: How an answer begins, and how its head ends.
_START: Final = b"HTTP/1."
_HEAD_END: Final = b"\r\n\r\n"
#: Where a header goes on in the next line, and a line that tells the length of the body, perhaps more than once.
_FOLD: Final = re.compile(rb"\r?\n[ \t]+")
_LENGTH: Final = re.compile(rb"(?i)\r\nContent-Length:[ \t]*([0-9]+(?:[ \t]*,[ \t]*[0-9]+)*)[ \t]*(?=\r\n)")
_NOT_HTTP: Final = "the answer is no HTTP/1 answer"
_LEAST_STATUS: Final = 100


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


class _Heard:
    """What the parser tells of one answer. Nothing here raises: the parser would show an error of its own instead."""

    __slots__ = ("body", "count", "head_is_over", "headers", "is_over")

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.count = 0
        self.body: list[bytes] = []
        self.head_is_over = False
        self.is_over = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep one header of the head; those behind a chunked body are dropped."""
        if not self.head_is_over:
            self.count += 1
            key, text = name.decode("latin-1").lower(), value.strip().decode("latin-1")
            known = self.headers.get(key)
            self.headers[key] = text if known is None else f"{known}, {text}"

    def on_headers_complete(self) -> None:
        """Note that the head is over."""
        self.head_is_over = True

    def on_body(self, part: bytes) -> None:
        """Keep a part of the body, and nothing of what came behind the answer."""
        if not self.is_over:
            self.body.append(part)

    def on_message_complete(self) -> None:
        """Note that the answer is over."""
        self.is_over = True


class Answer:
    """One answer whose head was read; `parts` reads the rest.

    Header names are lower case, and the values of a repeated one are joined with a comma. `can_be_kept` says whether
    another request may follow: the answer was read to its end, and nothing came behind it.
    """

    __slots__ = ("_heard", "_may_stay", "_parser", "_receive", "can_be_kept", "headers", "rest", "status")

    def __init__(self, receive: Callable[[], bytes], data: bytes = b"") -> None:
        """Read a head from `data` and what `receive` returns after it. Raises BrokenAnswerError, and what `receive` raises."""
        self._receive = receive
        self._heard = _Heard()
        self._parser = HttpResponseParser(self._heard)
        self._parser.set_dangerous_leniencies(lenient_chunked_length=True, lenient_spaces_after_chunk_size=True)
        head, self.rest = self._split(data)
        is_understood = self._parse(_plain(head)) and self._heard.head_is_over and head.startswith(_START)
        self.status = self._parser.get_status_code()
        if not is_understood or self.status < _LEAST_STATUS:
            raise BrokenAnswerError(_NOT_HTTP)
        if self._heard.count > HEADER_LIMIT:
            raise BrokenAnswerError("the answer has too many headers")
        self.headers = self._heard.headers
        self.can_be_kept = False
        connection = self.headers.get("connection", "").lower()
        asks_to_stay = head.startswith(b"HTTP/1.1") or "keep-alive" in connection
        # Of two who disagree about an answer's end, one takes its rest for the next answer.
        is_clear = not {"content-length", "transfer-encoding"} <= self.headers.keys()
        self._may_stay = asks_to_stay and is_clear and "close" not in connection and self.status != SWITCHING

    def parts(self, method: str) -> Iterator[bytes]:
        """Yield the body, as the answer to this method, in parts. Raises like the constructor when it breaks off."""
        codings = {coding.strip() for coding in self.headers.get("transfer-encoding", "").lower().split(",")}
        if method == "HEAD" or self.status in BODILESS:
            # A body that was announced may still come, although none belongs here.
            is_over = method == "HEAD" or not self.headers.get("content-length", "").strip("0")
            self.can_be_kept = self._may_stay and is_over and codings == {""} and not self.rest
        elif codings == {"chunked"}:
            yield from self._chunks()
        elif "chunked" in codings:
            raise BrokenAnswerError("the answer's Transfer-Encoding cannot be undone")
        elif "content-length" in self.headers:
            yield from self._counted(self._length_bytes())
        else:
            data = self.rest or self._receive()
            while data:
                yield data
                data = self._receive()

    def _split(self, data: bytes) -> tuple[bytes, bytes]:
        """Return the head and what came behind it. What does not begin like an answer is not waited for."""
        searched_bytes = 0
        data = data or self._more()
        while (found := data.find(_HEAD_END, max(searched_bytes - len(_HEAD_END) + 1, 0))) < 0:
            line_end = data.find(b"\n")
            if not data.startswith(_START[: len(data)]) or (line_end >= 0 and data[line_end - 1 : line_end] != b"\r"):
                raise BrokenAnswerError(_NOT_HTTP)
            searched_bytes = len(data)
            if searched_bytes > HEAD_LIMIT_BYTES:
                break
            data += self._more()
        end = found + len(_HEAD_END)
        if found < 0 or end > HEAD_LIMIT_BYTES:
            raise BrokenAnswerError("the answer's head is too long")
        return data[:end], data[end:]

    def _length_bytes(self) -> int:
        try:
            return int(self.headers["content-length"])
        except ValueError:  # more digits than Python converts; the parser lets leading zeros pass
            raise BrokenAnswerError("the answer's Content-Length is too long") from None

    def _counted(self, left_bytes: int) -> Iterator[bytes]:
        data = self.rest
        while len(data) < left_bytes:
            left_bytes -= len(data)
            yield data
            data = self._more()
        self.can_be_kept = self._may_stay and len(data) == left_bytes
        yield data[:left_bytes]

    def _chunks(self) -> Iterator[bytes]:
        data, between_bytes = self.rest or self._more(), 0
        while True:
            # The last byte by itself: an answer that is over before it has something behind it.
            is_understood = self._parse(data[:-1])
            has_surplus = self._heard.is_over
            is_understood = is_understood and self._parse(data[-1:])
            parts, self._heard.body = self._heard.body, []
            self.can_be_kept = self._may_stay and self._heard.is_over and not has_surplus
            yield from parts  # also those before a fault: wherever a read ends, the same is told
            if self._heard.is_over:
                return
            if not is_understood:
                raise BrokenAnswerError(_NOT_HTTP)
            between_bytes = 0 if parts else between_bytes + len(data)
            if between_bytes > CHUNK_HEAD_LIMIT_BYTES:
                raise BrokenAnswerError("the answer has too much between its chunks")
            data = self._more()

    def _parse(self, data: bytes) -> bool:
        """Say whether the parser understood. What it says of bytes behind the answer, or of a change of protocol, is no fault."""
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            return self._heard.is_over
        return True

    def _more(self) -> bytes:
        data = self._receive()
        if not data:
            raise BrokenAnswerError("the connection ended within the answer")
        return data


def _plain(head: bytes) -> bytes:
    """Return a head with each header in one line, and with one Content-Length where it tells the same one several times."""
    if b"\n " in head or b"\n\t" in head:
        first, line_end, rest = head.partition(b"\r\n")
        head = first + line_end + _FOLD.sub(b" ", rest)
    found = _LENGTH.findall(head)
    lengths = [length.strip() for line in found for length in line.split(b",")]
    if len(lengths) > 1 and len(set(lengths)) == 1:
        head = _LENGTH.sub(b"", head)
        head = head.removesuffix(_HEAD_END) + b"\r\nContent-Length: " + lengths[0] + _HEAD_END
    return head


class Connection:
    """One open connection; used by one thread at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
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

    def answer(self, attempt: Attempt) -> Answer:
        """Return the answer, its body still to be read; interim answers are skipped. Raises OSError or BrokenAnswerError."""
        receive = partial(self._receive, attempt)
        answer = Answer(receive)
        while answer.status in INTERIM:
            answer = Answer(receive, answer.rest)
        self._answered = True
        return answer

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    def _receive(self, attempt: Attempt) -> bytes:
        self._socket.settimeout(attempt.left_seconds())
        return self._socket.recv(CHUNK_BYTES)

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

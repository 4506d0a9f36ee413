"""What a connection may do: how long a request may take to arrive, what stands around its body, how many stand in line.

uvicorn reads HTTP and bounds none of it, so that a sender that never finishes, never reads or never ends a header would hold
memory and its connection for ever; and its own refusals are plain text. The doorway that a connection serves says how long a
request may take (`arrives_within_seconds`), and who does not read its answer is given as long.

An offer to upgrade is not taken up. The parser beneath would take the body for the other protocol's, so the offer is renamed
before it sees it: clients of Java's make one with every plain request.
"""

from __future__ import annotations

import re
from asyncio import TimerHandle
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from ingress.accept import refusal
from ingress.reception import guarded_headers

#: What stands before a body, at the most, and in how many headers.
HEAD_LIMIT_BYTES: Final = 64 * 1024
HEADERS: Final = 200
#: What may stand around a body in chunks, for each of its bytes: a chunk of one byte takes six.
FRAME_BYTES: Final = 8
#: Requests of one connection that wait for the one before.
IN_LINE: Final = 8
#: Connections of one process.
CONNECTIONS: Final = 1_000

_UPGRADE: Final = re.compile(rb"(?im)^upgrade(?=[ \t]*:)")
_HEAD_ENDS: Final = b"\r\n\r\n"


class _Refused(Exception):  # noqa: N818 - it never leaves this file: the parser takes any exception as its own
    """What the parser has met is not read any further."""


class Connection(HttpToolsProtocol):
    """uvicorn's connection, with those bounds."""

    _late: TimerHandle | None = None
    _unread: TimerHandle | None = None
    _in_head = True
    _head_bytes = 0
    _headers = 0
    _frame_bytes = 0
    _why: tuple[int, str] | None = None
    _has_ended = False
    #: The request before the newest one.
    _previous: Any = None

    def connection_made(self, transport: Any) -> None:
        """Begin, or turn the sender away when there are too many."""
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            transport.abort()
            return
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._arrived()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what arrived; a head or a frame without end is refused."""
        if self._has_ended:
            return
        if self._in_head:
            self._head_bytes += len(data)
            if b"pgrade" in data or b"PGRADE" in data:
                head, ends, rest = data.partition(_HEAD_ENDS)
                data = b"".join((_UPGRADE.sub(b"X-Upgrade", head), ends, rest))
        else:
            self._frame_bytes += len(data)
        if self._is_idle():
            self._expect()
        super().data_received(data)
        if self._in_head and self._head_bytes > HEAD_LIMIT_BYTES:
            self._refuse(431, "the headers are too large")
        elif self._frame_bytes > HEAD_LIMIT_BYTES:
            self._refuse(400, "what stands around the body is too large")

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio takes True for "keep it open"
        """Let a sender that says nothing more have its answer."""
        if self._is_idle() or self._newest().more_body:
            return False
        self._newest().keep_alive = False
        return True

    def pause_writing(self) -> None:
        """Let go, after a while, of who does not read what it is told."""
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(self._patience_seconds(), self.transport.abort)

    def resume_writing(self) -> None:
        """Take note that the sender reads."""
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
        super().resume_writing()

    def shutdown(self) -> None:
        """End in order: what was begun is finished, and whoever has sent half a request is told to come again."""
        if not self._is_idle() and self._newest().more_body and not self.pipeline:
            self._refuse(503, "this server ends; send it again")
        else:
            super().shutdown()

    def on_message_begin(self) -> None:
        """Begin to count the time of a request."""
        self._expect()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; what comes after the body is none that anybody signed."""
        if not self._in_head:
            return
        self._headers += 1
        if self._headers > HEADERS:
            self._why = 431, "there are too many headers"
            raise _Refused
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Have the request answered."""
        self._in_head, self._head_bytes, self._headers, self._frame_bytes = False, 0, 0, 0
        if self.parser.should_upgrade() or len(self.pipeline) >= IN_LINE:
            self._why = 400, "a connection is not upgraded here, and no more than a few requests may wait on one"
            raise _Refused
        self._previous = self._newest()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of a body; it makes room for what stands around it."""
        self._frame_bytes -= FRAME_BYTES * len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Take note that the request is whole; what comes next is another one's head."""
        self._in_head, self._frame_bytes = True, 0
        self._arrived()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what the parser did not take; uvicorn calls it by this name."""
        self._refuse(*(self._why or (400, msg.rstrip(".").lower())))

    def _newest(self) -> Any:
        return self.cycle

    def _is_idle(self) -> bool:
        """Whether nobody waits for an answer."""
        newest = self._newest()  # None before the first request
        return newest is None or newest.response_complete

    def _patience_seconds(self) -> float:
        doorway: Any = self.app
        return float(doorway.arrives_within_seconds)

    def _expect(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(self._patience_seconds(), self._too_late)

    def _arrived(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _too_late(self) -> None:
        self._late = None
        self._refuse(408, "the request took too long to arrive")

    def _refuse(self, status: int, reason: str) -> None:
        """Read no further, answer without the application, and hang up.

        While an earlier request waits for its own answer, that is the last one that is given.
        """
        if self._has_ended or self.transport.is_closing():
            return
        self._has_ended = True
        self._arrived()
        newest = self._newest()
        if not self._is_idle():
            if not newest.more_body:
                newest.keep_alive = False
                return
            if self._previous is not None and not self._previous.response_complete:
                self.pipeline.popleft()
                self._previous.keep_alive = False
                return
            if newest.response_started:
                self.transport.close()
                return
        body = refusal(reason)
        head = [*guarded_headers({"content-type": "application/json"}, body), ("Connection", "close")]
        lines = [f"{name}: {value}\r\n".encode("latin-1") for name, value in head]
        self.transport.write(b"".join([STATUS_LINE[status], *lines, b"\r\n", body]))
        self.transport.close()

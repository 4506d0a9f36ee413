"""What a connection may do: how long a request may take to arrive, and what stands before its body.

uvicorn reads HTTP and bounds neither, so that a sender that never finishes would hold its connection for ever; and its own
refusals are plain text. The doorway that a connection serves says how long a request may take (`arrives_within_seconds`).
"""

from __future__ import annotations

from asyncio import TimerHandle
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from ingress.accept import refusal
from ingress.web import guarded_headers

#: What stands before a body, at the most.
HEAD_LIMIT_BYTES: Final = 64 * 1024
#: Connections of one process.
CONNECTIONS: Final = 1_000


class Connection(HttpToolsProtocol):
    """uvicorn's connection, with those bounds."""

    _late: TimerHandle | None = None
    _in_head = True
    _head_bytes = 0

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
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what arrived; a head without end is refused."""
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > HEAD_LIMIT_BYTES and not self.transport.is_closing():
            self._refuse(431, "the headers are too large")

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio takes True for "keep it open"
        """Let a sender that says nothing more have its answer."""
        cycle: Any = self.cycle  # None before the first request
        if cycle is None or cycle.response_complete or cycle.more_body:
            return False
        cycle.keep_alive = False
        return True

    def on_message_begin(self) -> None:
        """Begin to count the time of a request."""
        self._expect()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; what comes after the body is none that anybody signed."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Have the request answered."""
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Take note that the request is whole; what comes next is another one's head."""
        self._in_head, self._head_bytes = True, 0
        self._arrived()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP; uvicorn calls it by this name."""
        self._refuse(400, msg.rstrip(".").lower())

    def _expect(self) -> None:
        if self._late is None:
            doorway: Any = self.app
            self._late = self.loop.call_later(doorway.arrives_within_seconds, self._too_late)

    def _arrived(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _too_late(self) -> None:
        self._late = None
        cycle: Any = self.cycle  # None before the first request
        if cycle is not None and cycle.response_started and not cycle.response_complete:
            self.transport.close()
        else:
            self._refuse(408, "the request took too long to arrive")

    def _refuse(self, status: int, reason: str) -> None:
        """Answer without the application, and hang up."""
        body = refusal(reason)
        head = [*guarded_headers({"content-type": "application/json"}, body), ("Connection", "close")]
        lines = [f"{name}: {value}\r\n".encode("latin-1") for name, value in head]
        self.transport.write(b"".join([STATUS_LINE[status], *lines, b"\r\n", body]))
        self.transport.close()

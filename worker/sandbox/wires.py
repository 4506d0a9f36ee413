"""How the sandbox speaks HTTP, and how it breaks off: the sockets below `worker/sandbox/server.py`.

Built on the standard library's threading server, because a stand-in must be able to hang up in mid-answer, which proper
web servers prevent. Answers leave in one write and without Nagle's delay (45 ms an answer otherwise).
"""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Protocol
from urllib.parse import parse_qs, urlsplit

from rules.vocabulary import Json
from worker.sandbox.calls import Call, Said
from worker.sandbox.faults import Misdeed
from worker.sandbox.switches import SandboxError

BODY_LIMIT_BYTES: Final = 1024 * 1024
#: A kept connection nobody uses.
IDLE_SECONDS: Final = 30.0

MINDHUNTERS_ROOT: Final = "/api/v1"
VAMBE_ROOT: Final = "/api"
CONTROL_ROOT: Final = "/_sandbox"

_NO_LINGERING: Final = struct.pack("ii", 1, 0)


class Behind(Protocol):
    """What answers: the sandbox."""

    def answer(self, provider: str, call: Call) -> tuple[Said | None, Misdeed | None]:
        """Take one provider call."""

    def control(self, call: Call) -> tuple[int, Json]:
        """Take one call to the control address."""

    def page(self) -> str:
        """Return the page."""

    def wait(self, seconds: float) -> None:
        """Let time pass."""


class Server(ThreadingHTTPServer):
    """One port, a thread for each connection; refuses to die over a client that vanished."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, address: tuple[str, int], behind: Behind) -> None:
        self.behind = behind
        self._open: set[socket.socket] = set()
        self._open_lock = threading.Lock()
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind without the name look-up of the standard library, which may take seconds."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Remember the connection, then serve it in a thread."""
        with self._open_lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection, or break it off when it was told not to linger."""
        with self._open_lock:
            self._open.discard(request)
        if request.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == _NO_LINGERING:
            self.close_request(request)  # the usual shutdown before it would say goodbye properly
        else:
            super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that vanish are the sandbox's daily bread."""

    def drop_connections(self) -> None:
        """Close every connection that is open; the threads that serve them end by themselves."""
        with self._open_lock:
            dropped = list(self._open)
        for connection in dropped:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "leadwire-sandbox"
    sys_version = ""
    disable_nagle_algorithm = True
    timeout = IDLE_SECONDS
    server: Server

    def log_message(self, *_: object) -> None:
        """Say nothing: the page is the log."""

    def __getattr__(self, name: str) -> Any:
        # The standard library looks up do_GET, do_POST...: every method is one and the same here.
        if name.startswith("do_"):
            return self._serve
        raise AttributeError(name)

    def _serve(self) -> None:
        body = self._body()
        if body is None:
            return
        parts = urlsplit(self.path)
        call = Call(
            method=self.command,
            path=parts.path,
            query=parse_qs(parts.query, keep_blank_values=True),
            headers={name.lower(): value for name, value in self.headers.items()},
            document=_decoded(body),
        )
        if parts.path in {"/", CONTROL_ROOT}:
            self._write(200, self.server.behind.page().encode(), {"Content-Type": "text/html; charset=utf-8"})
        elif parts.path.startswith(f"{CONTROL_ROOT}/"):
            self._control(replace(call, path=parts.path.removeprefix(CONTROL_ROOT)))
        elif _below(parts.path, MINDHUNTERS_ROOT):
            self._provide("mindhunters", replace(call, path=parts.path.removeprefix(MINDHUNTERS_ROOT)))
        elif _below(parts.path, VAMBE_ROOT):
            self._provide("vambe", replace(call, path=parts.path.removeprefix(VAMBE_ROOT)))
        else:
            self._write(404, b"nothing here\n", {"Content-Type": "text/plain"})

    def _body(self) -> bytes | None:
        """Read the body; None when it was answered instead."""
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not (length.isdecimal() and length.isascii()):
            self.close_connection = True
            self._write(411, b"send a Content-Length\n", {"Content-Type": "text/plain"})
            return None
        if len(length) > len("10000000") or int(length) > BODY_LIMIT_BYTES:
            self.close_connection = True
            self._write(413, b"too long\n", {"Content-Type": "text/plain"})
            return None
        return self.rfile.read(int(length))

    def _control(self, call: Call) -> None:
        try:
            status, document = self.server.behind.control(call)
        except SandboxError as exc:
            status, document = 400, {"error": str(exc)}
        self._write(status, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _provide(self, provider: str, call: Call) -> None:
        said, misdeed = self.server.behind.answer(provider, call)
        if misdeed is not None:
            self.server.behind.wait(misdeed.delay_seconds)
            if misdeed.hang_up is not None:
                self._hang_up(reset=misdeed.reset)
                return
        if said is None or said.silent:
            self._hang_up(reset=False)
            return
        content, kind = _encoded(said.body)
        headers = {"Content-Type": kind, **said.headers}
        self._write(said.status, content, headers, drip_seconds=misdeed.drip_seconds if misdeed else 0.0)

    def _hang_up(self, *, reset: bool) -> None:
        if reset:  # closing with no time to linger sends RST instead of FIN
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGERING)
        self.close_connection = True
        if not reset:
            self.connection.shutdown(socket.SHUT_RDWR)

    def _write(self, status: int, content: bytes, headers: Mapping[str, str], *, drip_seconds: float = 0.0) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status not in {204, 304}:
            self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        head = self._take_head()
        whole = head if self.command == "HEAD" or status in {204, 304} else head + content
        if not drip_seconds:
            self.wfile.write(whole)
            return
        for byte in whole:
            self.wfile.write(bytes((byte,)))
            self.server.behind.wait(drip_seconds)

    def _take_head(self) -> bytes:
        """Return the status line and headers that were collected, so that head and body leave in one write."""
        collected: list[bytes] = getattr(self, "_headers_buffer", [])
        head = b"".join(collected) + b"\r\n"
        collected.clear()
        return head


def _below(path: str, root: str) -> bool:
    return path == root or path.startswith(f"{root}/")


def _decoded(body: bytes) -> Json:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _encoded(body: Json) -> tuple[bytes, str]:
    """Return the bytes and content type of an answer; text goes out as it is."""
    if isinstance(body, str):
        return body.encode(), "text/plain; charset=utf-8"
    if body is None:
        return b"", "application/json"
    return json.dumps(body).encode(), "application/json"

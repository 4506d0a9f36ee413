"""The sandbox as a server: one port for both providers, for the faults, and for the page.

Everything it holds is behind one lock. It is built on the standard library's threading server, because a stand-in must be
able to hang up in mid-answer, which proper web servers prevent. Answers leave in one write and without Nagle's delay
(45 ms an answer otherwise).
"""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import parse_qs, urlsplit

from rules.vocabulary import Json
from worker.sandbox.faults import Misbehaviour, SandboxRequest, SandboxResponse, Script, stamp
from worker.sandbox.mindhunters import TOKEN, MindhuntersSandbox
from worker.sandbox.page import SHOWN, page
from worker.sandbox.switches import SandboxError, Switches
from worker.sandbox.vambe import API_KEY, VambeSandbox

BODY_LIMIT_BYTES: Final = 1024 * 1024
#: A kept connection nobody uses.
IDLE_SECONDS: Final = 30.0

MINDHUNTERS_ROOT: Final = "/api/v1"
VAMBE_ROOT: Final = "/api"
CONTROL_ROOT: Final = "/_sandbox"

_NO_LINGERING: Final = struct.pack("ii", 1, 0)
REQUEST_LIMIT: Final = 50_000
REFUSED_LIMIT: Final = 5_000

MINDHUNTERS_TOKEN: Final = TOKEN
VAMBE_API_KEY: Final = API_KEY


def _machine_clock() -> datetime:
    return datetime.now(UTC)  # noqa: TID251 - a stand-in for somebody else's machine has a clock of its own


class Sandbox:
    """Both sandbox providers on one port of this machine; a context manager, or `start()` and `stop()`.

    `port` 0 takes a free one. `switches` are values for `worker.sandbox.switches.SWITCHES`, `faults` a script as in
    `worker.sandbox.faults`. Raises SandboxError for invalid ones and when the port is in use.
    """

    def __init__(
        self,
        port: int = 0,
        *,
        host: str = "127.0.0.1",
        switches: Mapping[str, str] | None = None,
        faults: Json = (),
        clock: Callable[[], datetime] = _machine_clock,
    ) -> None:
        self._host, self._port, self._clock = host, port, clock
        self._lock = threading.Lock()
        self._switches = Switches(switches)
        self._script = Script()
        self._script.add(faults)
        self._server: _Server | None = None
        self._closing = threading.Event()
        self._empty()

    def _empty(self) -> None:
        self._mindhunters, self._vambe = MindhuntersSandbox(self._switches), VambeSandbox(self._switches)
        self._records, self._ahead = _RequestLog(), timedelta()

    # -- life ------------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Start serving, in background threads."""
        try:
            self._server = _Server((self._host, self._port), self)
        except (OSError, OverflowError) as exc:
            raise SandboxError(
                f"the sandbox cannot have port {self._port} of {self._host}: {exc}; choose another"
            ) from exc
        self._port = self._server.server_address[1]
        self._closing.clear()
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name="sandbox", daemon=True).start()
        return self

    def stop(self) -> None:
        """Refuse and close all connections. A later `start()` uses the same port and keeps the stored tasks."""
        self._closing.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server.drop_connections()
            self._server = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """The port it serves on."""
        return self._port

    @property
    def url(self) -> str:
        """The URL of its page."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    @property
    def mindhunters_url(self) -> str:
        """The value for LEADWIRE_MINDHUNTERS_URL."""
        return f"{self.url}{MINDHUNTERS_ROOT}"

    @property
    def vambe_url(self) -> str:
        """The value for LEADWIRE_VAMBE_URL."""
        return f"{self.url}{VAMBE_ROOT}/public"

    # -- what tests and the control address ask and tell ----------------------------------------------------------

    def tasks(self, provider: str) -> list[dict[str, Json]]:
        """Return the tasks a provider holds, oldest first, as the page shows them."""
        with self._lock:
            return self._mindhunters.tasks(self._tasks_now()) if provider == "mindhunters" else self._vambe.tasks()

    def state(self, limit: int = REQUEST_LIMIT) -> dict[str, Json]:
        """Return everything: tasks of both, contacts, requests, refusals, counts, faults, switches; the newest of each."""
        with self._lock:
            calls, team = self._mindhunters.tasks(self._tasks_now()), self._vambe.tasks()
            state: dict[str, Json] = {
                "mindhunters": {"tasks": calls[-limit:], "contacts": self._mindhunters.contacts()[-limit:]},
                "vambe": {"tasks": team[-limit:]},
                **self._records.as_json(limit),
                "faults": self._script.as_json(),
                "switches": self._switches.as_json(),
            }
            state["counts"] |= {"mindhunters_tasks": len(calls), "vambe_tasks": len(team)}
            return state

    def script(self, faults: Json) -> None:
        """Add faults. Raises SandboxError for an invalid script."""
        with self._lock:
            self._script.add(faults)

    def behave(self) -> None:
        """Remove all faults."""
        with self._lock:
            self._script.clear()

    def turn(self, switches: Mapping[str, str]) -> None:
        """Set switches. Raises SandboxError for an unknown one."""
        with self._lock:
            self._switches.turn(switches)

    def advance(self, span: timedelta) -> None:
        """Advance the statuses of Mindhunters' tasks by this span; the clock for requests does not change."""
        with self._lock:
            self._ahead += span

    def move(self, task: str, status: str) -> None:
        """Set the status of a Mindhunters task. Raises SandboxError for an unknown task or status."""
        with self._lock:
            if not self._mindhunters.move(task, status, self._tasks_now()):
                raise SandboxError(f"there is no task {task!r} or no status {status!r}")

    def reset(self) -> None:
        """Delete tasks, requests, faults and advanced time; switches are kept."""
        with self._lock:
            self._script.clear()
            self._empty()

    def answer(self, provider: str, request: SandboxRequest) -> tuple[SandboxResponse | None, Misbehaviour | None]:
        """Handle one provider call: execute it unless a fault forbids that; return the response and the fault to apply."""
        with self._lock:
            now = self._clock()
            misbehaviour = self._script.take(provider, request)
            response: SandboxResponse | None = None
            if misbehaviour is None or misbehaviour.executes:
                if provider == "mindhunters":
                    response = self._mindhunters.answer(request, now, now + self._ahead)
                else:
                    response = self._vambe.answer(request, now)
            if misbehaviour is not None and misbehaviour.status is not None:
                response = SandboxResponse(
                    status=misbehaviour.status,
                    body=misbehaviour.body,
                    headers=misbehaviour.headers,
                    task=response.task if response else None,
                )
            self._records.note(provider, request, response, misbehaviour.words() if misbehaviour else None, now)
        return response, misbehaviour

    def page(self) -> str:
        """Return the HTML page."""
        return page(self.state(SHOWN), self.mindhunters_url, self.vambe_url)

    def wait(self, seconds: float) -> None:
        """Sleep, but end early at `stop()`."""
        self._closing.wait(seconds)

    def control(self, request: SandboxRequest) -> tuple[int, Json]:
        """Handle one call to `/_sandbox/...`; return status and JSON."""
        limit = request.last("limit")
        document = request.document
        match request.method, request.path:
            case "GET", "/state":
                return 200, self.state(int(limit) if limit.isdecimal() and 0 < len(limit) < 7 else REQUEST_LIMIT)  # noqa: PLR2004
            case "POST", "/faults":
                self.script(document)
            case "DELETE", "/faults":
                self.behave()
            case "POST", "/reset":
                self.reset()
            case "POST", "/switches" if isinstance(document, dict):
                self.turn({str(name): str(value) for name, value in document.items()})
            case "POST", "/clock" if isinstance(document, dict):
                self._clock_control(document)
            case _:
                return 404, {"error": f"no {request.method} /_sandbox{request.path} with such a body"}
        return 200, {"faults": self._script.as_json()}

    def _clock_control(self, document: Mapping[str, Json]) -> None:
        seconds = document.get("advance_seconds", 0)
        if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 <= seconds <= 366 * 86_400:
            raise SandboxError(f"advance_seconds must be a number from 0 to a year, not {seconds!r}")
        self.advance(timedelta(seconds=seconds))
        if "task" in document:
            self.move(str(document["task"]), str(document.get("status")))

    def _tasks_now(self) -> datetime:
        return self._clock() + self._ahead


def serve(
    host: str = "127.0.0.1",
    port: int = 0,
    script_file: Path | None = None,
    switches: Mapping[str, str] | None = None,
    *,
    announce: Callable[[Sandbox], None] = lambda _: None,
    until: threading.Event | None = None,
) -> None:
    """Serve until `until` is set or the process is interrupted; `announce` is called once the port is open.

    `script_file` holds faults as a JSON list. Raises SandboxError that names file, switch or port.
    """
    faults: Json = ()
    if script_file is not None:
        try:
            faults = json.loads(script_file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as exc:
            raise SandboxError(f"{script_file}: cannot be read as JSON: {exc}") from exc
    with Sandbox(port, host=host, switches=switches, faults=faults) as sandbox:
        announce(sandbox)
        with suppress(KeyboardInterrupt):
            (until or threading.Event()).wait()


class _RequestLog:
    """The log of requests. Bodies are not kept: what was accepted is in the tasks."""

    def __init__(self) -> None:
        self._requests: deque[dict[str, Json]] = deque(maxlen=REQUEST_LIMIT)
        self._refused: deque[dict[str, Json]] = deque(maxlen=REFUSED_LIMIT)
        self._count = 0
        self._refused_count = 0

    def note(
        self,
        provider: str,
        request: SandboxRequest,
        response: SandboxResponse | None,
        fault: str | None,
        arrived_at: datetime,
    ) -> None:
        """Remember a request; `response` is None for one that was not executed and got no answer."""
        self._count += 1
        title = request.document.get("title") if isinstance(request.document, dict) else None
        entry: dict[str, Json] = {
            "number": self._count,
            "arrived_at": stamp(arrived_at),
            "provider": provider,
            "method": request.method,
            "path": request.path,
            "title": title if isinstance(title, str) else None,
            "status": response.status if response else None,
            "task": response.task if response else None,
            "why": response.why if response else None,
            "fault": fault,
        }
        self._requests.append(entry)
        if response is not None and response.why is not None:
            self._refused_count += 1
            self._refused.append(entry)

    def as_json(self, limit: int) -> dict[str, Json]:
        """Return the newest requests and refusals, oldest first, and how many there were in all."""
        return {
            "requests": list(self._requests)[-limit:],
            "refused": list(self._refused)[-limit:],
            "counts": {"requests": self._count, "refused": self._refused_count},
        }


class _Server(ThreadingHTTPServer):
    """One port, a thread for each connection; refuses to die over a client that vanished."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, address: tuple[str, int], sandbox: Sandbox) -> None:
        self.sandbox = sandbox
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
    server: _Server

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
        request = SandboxRequest(
            method=self.command,
            path=parts.path,
            query=parse_qs(parts.query, keep_blank_values=True),
            headers={name.lower(): value for name, value in self.headers.items()},
            document=_decoded(body),
        )
        if parts.path in {"/", CONTROL_ROOT}:
            self._write(200, self.server.sandbox.page().encode(), {"Content-Type": "text/html; charset=utf-8"})
        elif parts.path.startswith(f"{CONTROL_ROOT}/"):
            self._control(replace(request, path=parts.path.removeprefix(CONTROL_ROOT)))
        elif _below(parts.path, MINDHUNTERS_ROOT):
            self._provide("mindhunters", replace(request, path=parts.path.removeprefix(MINDHUNTERS_ROOT)))
        elif _below(parts.path, VAMBE_ROOT):
            self._provide("vambe", replace(request, path=parts.path.removeprefix(VAMBE_ROOT)))
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

    def _control(self, request: SandboxRequest) -> None:
        try:
            status, document = self.server.sandbox.control(request)
        except SandboxError as exc:
            status, document = 400, {"error": str(exc)}
        self._write(status, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _provide(self, provider: str, request: SandboxRequest) -> None:
        response, misbehaviour = self.server.sandbox.answer(provider, request)
        if misbehaviour is not None:
            self.server.sandbox.wait(misbehaviour.delay_seconds)
            if misbehaviour.hang_up is not None:
                self._hang_up(reset=misbehaviour.reset)
                return
        if response is None or response.silent:
            self._hang_up(reset=False)
            return
        content, kind = _encoded(response.body)
        headers = {"Content-Type": kind, **response.headers}
        self._write(response.status, content, headers, drip_seconds=misbehaviour.drip_seconds if misbehaviour else 0.0)

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
            self.server.sandbox.wait(drip_seconds)

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

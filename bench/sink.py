"""The provider's stand-in: it answers like both providers, at once, and notes when which event arrived.

One process, one thread, raw sockets, kept alive, standard library only. Each request becomes one line of the arrivals file:
the moment on the monotonic clock, and the event's id as found in the body (`-` when there is none).
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.events import ID

_READ_BYTES: Final = 65_536
#: An arrival is in the file at most this much later.
FLUSH_SECONDS: Final = 0.05

_UUID: Final = b"aaaaaaaa-0000-4000-8000-000000000001"
_MINDHUNTERS: Final = b'{"success":true,"message":"created","data":{"uuid":"' + _UUID + b'","status":"queued"}}'
_VAMBE: Final = b'{"id":"' + _UUID + b'","priority":2}'


def _answer(status: bytes, body: bytes) -> bytes:
    head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % (status, len(body)) + body


CREATED: Final = _answer(b"201 Created", _MINDHUNTERS)
VAMBE_CREATED: Final = _answer(b"201 Created", _VAMBE)
#: To anything but a POST: a provider that is asked whether the credential still works.
FINE: Final = _answer(b"200 OK", b'{"success":true,"data":[]}')


@dataclass(slots=True)
class Client:
    """A connection and what came over it without being a whole request yet."""

    socket: socket.socket
    received: bytes = b""


def split_request(received: bytes) -> tuple[bytes, bytes, bytes] | None:
    """Return the request line, the body and what follows the first whole request; None while more has to come."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = received[:end].lower()
    place = head.find(b"\r\ncontent-length:")
    length = int(head[place + 17 :].split(b"\r\n", 1)[0]) if place >= 0 else 0
    whole = end + 4 + length
    if len(received) < whole:
        return None
    return head.split(b"\r\n", 1)[0], received[end + 4 : whole], received[whole:]


class Sink:
    """Serves until it is told to stop; `port` is the one it listens on."""

    def __init__(self, arrivals: Path, port: int = 0) -> None:
        self._listening = socket.create_server(("127.0.0.1", port), backlog=1024)
        self._listening.setblocking(False)
        self.port: int = self._listening.getsockname()[1]
        self._file = os.open(arrivals, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._lines: list[bytes] = []
        self._flushed = 0.0
        self._clients: dict[int, Client] = {}
        self._poll = select.epoll()
        self._poll.register(self._listening.fileno(), select.EPOLLIN)

    def serve(self) -> None:
        """Answer, for ever."""
        listening = self._listening.fileno()
        while True:
            for descriptor, _ in self._poll.poll(FLUSH_SECONDS):
                if descriptor == listening:
                    self._accept()
                else:
                    self._serve(self._clients[descriptor])
            if self._lines and time.monotonic() - self._flushed > FLUSH_SECONDS:
                self.flush()

    def flush(self) -> None:
        """Write the arrivals noted since the last time."""
        data, self._lines = b"".join(self._lines), []
        while data:
            data = data[os.write(self._file, data) :]
        self._flushed = time.monotonic()

    def _accept(self) -> None:
        try:
            accepted, _ = self._listening.accept()
        except OSError:
            return
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._clients[accepted.fileno()] = Client(accepted)
        self._poll.register(accepted.fileno(), select.EPOLLIN)

    def _serve(self, client: Client) -> None:
        try:
            data = client.socket.recv(_READ_BYTES)
            if not data:
                self._drop(client)
                return
            client.received += data
            while (request := split_request(client.received)) is not None:
                line, body, client.received = request
                client.socket.sendall(self._take(line, body))
        except OSError:
            self._drop(client)

    def _take(self, line: bytes, body: bytes) -> bytes:
        if not line.startswith(b"post"):
            return FINE
        found = ID.search(body)
        self._lines.append(b"%.6f %b\n" % (time.monotonic(), found[0] if found else b"-"))
        return VAMBE_CREATED if b"/api/public" in line else CREATED

    def _drop(self, client: Client) -> None:
        self._poll.unregister(client.socket.fileno())
        del self._clients[client.socket.fileno()]
        client.socket.close()


def main() -> None:
    """Serve until SIGTERM; the port is printed as the first line."""
    parser = argparse.ArgumentParser(prog="python -m bench.sink", description=main.__doc__)
    parser.add_argument("--arrivals", type=Path, required=True)
    asked = parser.parse_args()
    sink = Sink(asked.arrivals)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    sys.stdout.write(f"{sink.port}\n")
    sys.stdout.flush()
    try:
        sink.serve()
    finally:
        sink.flush()


if __name__ == "__main__":
    main()

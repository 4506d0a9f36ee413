"""The load: one process, one thread, raw sockets, requests made and signed before the clock starts.

Closed loop: every connection sends its next request when it has its answer, for so many seconds. Open loop: request n goes
out at n / rate whatever became of those before it. Only the standard library, so that it starts at once and costs little.
Moments are seconds of the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.events import PATH, requests

#: More than any system here answers in a second: with these the closed loop does not run dry.
REQUESTS_A_SECOND: Final = 8_000
#: How long answers that are outstanding at the end are waited for.
PATIENCE_SECONDS: Final = 15.0
#: Where nothing listens any more, the next try comes after this.
REFUSED_PAUSE_SECONDS: Final = 0.05
_READ_BYTES: Final = 65_536
_LONGEST_WAIT_SECONDS: Final = 0.1

#: (number of the event, HTTP status or 0 for no answer, moment of sending, moment of the answer)
Answer = tuple[int, int, float, float]


@dataclass(slots=True)
class Connection:
    """One kept-alive connection; `number` is the request it waits for, or None."""

    socket: socket.socket
    number: int | None = None
    sent: float = 0.0
    received: bytes = b""


@dataclass(slots=True)
class Load:
    """Posts prepared requests to a port of this machine and notes every answer."""

    port: int
    prepared: Sequence[bytes]
    answers: list[Answer] = field(default_factory=list)
    #: Seconds from the first request to the end of the load, without the wait for the last answers.
    seconds: float = 0.0
    _poll: select.epoll = field(default_factory=select.epoll)
    _open: dict[int, Connection] = field(default_factory=dict)
    _waiting: int = 0
    _next: int = 0

    def closed(self, connections: int, seconds: float) -> None:
        """Keep so many connections busy for so long, or until the requests run out."""
        begin = time.monotonic()
        end = begin + seconds

        def send_next(connection: Connection | None) -> None:
            if self._next < len(self.prepared) and time.monotonic() < end:
                self._send(connection)

        for _ in range(connections):
            send_next(None)
        while self._waiting and time.monotonic() < end + PATIENCE_SECONDS:
            self._take(_LONGEST_WAIT_SECONDS, send_next)
        ran_dry = self._next == len(self.prepared)
        last = max((answer[3] for answer in self.answers), default=end)
        self.seconds = (min(last, end) if ran_dry else end) - begin
        self._close()

    def opened(self, rate: float) -> None:
        """Send all requests at a fixed rate a second."""
        idle: list[Connection] = []
        begin = time.monotonic()

        def keep(connection: Connection | None) -> None:
            if connection is not None:
                idle.append(connection)

        while self._next < len(self.prepared):
            wait_seconds = begin + self._next / rate - time.monotonic()
            if wait_seconds > 0:
                self._take(wait_seconds, keep)
                continue
            while idle and idle[-1].socket.fileno() < 0:
                idle.pop()
            self._send(idle.pop() if idle else None)
        self.seconds = time.monotonic() - begin
        give_up_at = time.monotonic() + PATIENCE_SECONDS
        while self._waiting and time.monotonic() < give_up_at:
            self._take(_LONGEST_WAIT_SECONDS, keep)
        self._close()

    def _send(self, connection: Connection | None) -> None:
        number = self._next
        self._next += 1
        sent = time.monotonic()
        try:
            if connection is None:
                connection = self._connect()
            connection.number, connection.sent = number, sent
            self._waiting += 1
            connection.socket.sendall(self.prepared[number])
        except OSError:
            if connection is None:
                self.answers.append((number, 0, sent, time.monotonic()))
                time.sleep(REFUSED_PAUSE_SECONDS)
            else:
                self._drop(connection)

    def _connect(self) -> Connection:
        opened = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_SECONDS)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = self._open[opened.fileno()] = Connection(opened)
        self._poll.register(opened.fileno(), select.EPOLLIN)
        return connection

    def _take(self, wait_seconds: float, then: Callable[[Connection | None], None]) -> None:
        """Read what has come; `then` is told each connection that is free again, or None for one that was lost."""
        for descriptor, _ in self._poll.poll(wait_seconds):
            connection = self._open[descriptor]
            try:
                data = connection.socket.recv(_READ_BYTES)
            except OSError:
                data = b""
            if not data:
                was_waiting = connection.number is not None
                self._drop(connection)
                if was_waiting:
                    then(None)
                continue
            connection.received = received = connection.received + data if connection.received else data
            complete = read_answer(received)
            if complete is None or connection.number is None:
                continue
            status, stays_open = complete
            self.answers.append((connection.number, status, connection.sent, time.monotonic()))
            connection.number, connection.received = None, b""
            self._waiting -= 1
            if not stays_open:
                self._drop(connection)
            then(connection if stays_open else None)

    def _drop(self, connection: Connection) -> None:
        if connection.number is not None:
            self.answers.append((connection.number, 0, connection.sent, time.monotonic()))
            self._waiting -= 1
        self._poll.unregister(connection.socket.fileno())
        del self._open[connection.socket.fileno()]
        connection.socket.close()

    def _close(self) -> None:
        for connection in list(self._open.values()):
            self._drop(connection)
        self._poll.close()


def read_answer(received: bytes) -> tuple[int, bool] | None:
    """Return the status of a complete answer and whether its connection stays open; None while more has to come."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = received[:end].lower()
    place = head.find(b"\r\ncontent-length:")
    if place >= 0:
        length = int(head[place + 17 :].split(b"\r\n", 1)[0])
        if len(received) < end + 4 + length:
            return None
    elif b"\r\ntransfer-encoding: chunked" in head and not received.endswith(b"\r\n0\r\n\r\n"):
        return None
    return int(head[9:12]), b"\r\nconnection: close" not in head


def post(port: int, content: bytes) -> int:
    """Send one prepared request on a connection of its own and return the status, 0 when there was no answer."""
    received = b""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(content)
            while read_answer(received) is None:
                data = connection.recv(_READ_BYTES)
                if not data:
                    return 0
                received += data
    except OSError:
        return 0
    answer = read_answer(received)
    return answer[0] if answer else 0


def main() -> None:
    """Run one load and write what came of it as a JSON file."""
    parser = argparse.ArgumentParser(prog="python -m bench.generator", description=main.__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", default=PATH)
    parser.add_argument("--run", required=True, help="six hexadecimal characters")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--connections", type=int, help="closed loop over so many connections")
    parser.add_argument("--rate", type=float, help="open loop, requests a second")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    count = round(asked.seconds * (asked.rate or REQUESTS_A_SECOND))
    load = Load(asked.port, requests(asked.run, count, asked.port, asked.path))
    cpu_seconds = time.process_time()
    if asked.rate:
        load.opened(asked.rate)
    else:
        load.closed(asked.connections, asked.seconds)
    found = {"answers": load.answers, "seconds": load.seconds, "cpu_seconds": time.process_time() - cpu_seconds}
    asked.out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()

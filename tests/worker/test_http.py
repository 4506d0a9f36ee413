"""The way out to a provider, against a real local socket that behaves as badly as a test says."""

import gzip
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker import http
from worker.http import KEEPALIVE_SECONDS, USER_AGENT
from worker.providers import (
    BODY_LIMIT_BYTES,
    LISTING_LIMIT_BYTES,
    Answered,
    NeverSent,
    NoAnswer,
    NotBegun,
    ProviderRequest,
)

POST = ProviderRequest(method="POST", path="/tasks", json={"title": "Llamar a Zoë"})
GET = ProviderRequest(method="GET", path="/tasks", query=(("per_page", "1"), ("q", "a b&c")))
POST_BODY = b'{"title":"Llamar a Zo\\u00eb"}'
CREATED = b'HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{"id": 17}'

#: Each example opens connections.
SOCKETS = settings(max_examples=40)

opened: list[http.HttpClient] = []


class HttpClient(http.HttpClient):
    """A client that is closed when its test ends."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        opened.append(self)


@pytest.fixture(autouse=True)
def closing_clients() -> Iterator[None]:
    """Close what a test opened."""
    yield
    while opened:
        opened.pop().close()


Behaviour = Callable[[socket.socket, int], None]


def read_request(connection: socket.socket) -> bytes:
    """Read one request: the head, and as much body as it announces."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = connection.recv(65536)
        if not chunk:
            return data
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


@contextmanager
def serving(behaviour: Behaviour, wrap: Callable[[socket.socket], socket.socket] = lambda one: one) -> Iterator[str]:
    """Serve on a free port: `behaviour` gets each connection and its number, from 0; yields the base URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    connections: list[socket.socket] = []

    def serve_one(raw: socket.socket, number: int) -> None:
        try:
            connection = wrap(raw)
            connections.append(connection)
            with connection:
                behaviour(connection, number)
        except OSError:
            pass

    def accept() -> None:
        number = 0
        while True:
            try:
                raw, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve_one, args=(raw, number), daemon=True).start()
            number += 1

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()
        for connection in connections:
            connection.close()


def answering(answer: bytes) -> Behaviour:
    """Return the behaviour that reads every request and gives this answer."""

    def behave(connection: socket.socket, _: int) -> None:
        while read_request(connection):
            connection.sendall(answer)

    return behave


def closing(answer: bytes) -> Behaviour:
    """Return the behaviour that reads one request, gives this answer and hangs up."""

    def behave(connection: socket.socket, _: int) -> None:
        read_request(connection)
        connection.sendall(answer)

    return behave


def dripping(start: bytes, drop: bytes = b"x") -> Behaviour:
    """Return the behaviour that begins an answer and then adds a byte every 20 ms, for ever."""

    def behave(connection: socket.socket, _: int) -> None:
        read_request(connection)
        connection.sendall(start)
        while True:
            time.sleep(0.02)
            connection.sendall(drop)

    return behave


def in_pieces(pieces: Iterable[bytes], pause_seconds: float = 0.0) -> Behaviour:
    """Return the behaviour that reads one request, gives the answer piece by piece and hangs up."""

    def behave(connection: socket.socket, _: int) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        read_request(connection)
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(pause_seconds)

    return behave


def one_by_one(answer: bytes) -> list[bytes]:
    """Return the bytes of an answer, each by itself."""
    return [answer[at : at + 1] for at in range(len(answer))]


def chunked(*parts: bytes, trailers: bytes = b"") -> bytes:
    """Return an answer of these chunks."""
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n" + trailers + b"\r\n"


def resetting(connection: socket.socket, _: int) -> None:
    """Read the request, then reset the connection."""
    read_request(connection)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def silent(connection: socket.socket, _: int) -> None:
    """Read the request and never answer."""
    read_request(connection)
    connection.recv(1)


def send_once(behaviour: Behaviour, request: ProviderRequest = POST, deadline_seconds: float = 5.0) -> object:
    """Send one request to a server of this behaviour and return how it ended."""
    with serving(behaviour) as url:
        return HttpClient(url).send(request, deadline_seconds=deadline_seconds)


def free_port() -> int:
    """Return a port nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def test_an_answer_comes_back_whole() -> None:
    """Status, lower-case header names and body arrive as the provider sent them."""
    expected = Answered(
        status=201, headers={"content-type": "application/json", "content-length": "10"}, body=b'{"id": 17}'
    )
    assert expected == send_once(answering(CREATED))


def test_the_request_is_what_was_asked_for() -> None:
    """Path below the base URL, credential, our name, JSON as UTF-8 with its length; nothing else of note."""
    seen: list[bytes] = []

    def behave(connection: socket.socket, _: int) -> None:
        seen.append(read_request(connection))
        connection.sendall(CREATED)

    with serving(behave) as url:
        HttpClient(f"{url}/api/v1/", {"Authorization": "Bearer fake"}).send(POST)
    head, _, body = seen[0].partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /api/v1/tasks HTTP/1.1"
    assert {"Authorization: Bearer fake", f"User-Agent: {USER_AGENT}", "Content-Type: application/json"} <= set(lines)
    assert f"Content-Length: {len(body)}" in lines
    assert body == POST_BODY


def test_a_request_without_a_body_has_no_type() -> None:
    """Neither a form nor a wait for permission is announced where nobody asked for it; a POST has its length."""
    seen: list[bytes] = []

    def behave(connection: socket.socket, _: int) -> None:
        while request := read_request(connection):
            seen.append(request.lower())
            connection.sendall(CREATED)

    with serving(behave) as url:
        client = HttpClient(url.replace("//", "//someone:fake-password@"), {"X-Api-Key": "fake-key"})
        client.send(ProviderRequest(method="POST", path="/tasks/1/cancel"))
        client.send(ProviderRequest(method="DELETE", path="/tasks/1"))
        client.send(GET)
        client.send(ProviderRequest(method="POST", path="/tasks", json={"title": "x" * 2_000_000}))
    starts = [b"post /tasks/1/cancel", b"delete /tasks/1", b"get /tasks?", b"post /tasks http"]
    assert [True] * 4 == [one.startswith(start) for one, start in zip(seen, starts, strict=True)]
    assert [False, False, False, True] == [b"content-type:" in one for one in seen]
    assert [True, True, False, True] == [b"content-length:" in one for one in seen]
    assert not any(b"expect:" in one or b"authorization:" in one for one in seen)


def test_httpx_carries_every_request() -> None:
    """Whoever instruments the httpx client underneath sees each request and each response."""
    seen: list[object] = []
    with serving(answering(CREATED)) as url:
        client = HttpClient(f"{url}/api/v1", {"Authorization": "Bearer fake"})
        client.httpx.event_hooks = {
            "request": [lambda request: seen.append((request.method, request.url.path))],
            "response": [lambda response: seen.append(response.status_code)],
        }
        assert isinstance(client.send(POST), Answered)
    assert [("POST", "/api/v1/tasks"), 201] == seen


def test_a_query_is_encoded() -> None:
    """Query values cannot break out of their place."""
    seen: list[bytes] = []

    def behave(connection: socket.socket, _: int) -> None:
        seen.append(read_request(connection))
        connection.sendall(CREATED)

    with serving(behave) as url:
        HttpClient(url).send(GET)
    assert seen[0].startswith(b"GET /tasks?per_page=1&q=a+b%26c HTTP/1.1\r\n")
    assert b"content-type" not in seen[0].lower()


@pytest.mark.parametrize(
    "base_url",
    ["http://127.0.0.1:{port}", "http://nowhere.invalid", "ftp://127.0.0.1", "http://", "http://[::1", "nonsense", ""],
)
def test_what_cannot_be_reached_was_never_sent(base_url) -> None:
    """A refused connection, an unknown name and an impossible URL are all NeverSent."""
    sent = HttpClient(base_url.format(port=free_port())).send(POST, deadline_seconds=2)
    assert isinstance(sent, NeverSent), sent


@pytest.mark.parametrize("json", [{"a": float("nan")}, {"a": object()}, {1j: 2}])
def test_what_is_not_json_was_never_sent(json) -> None:
    """A body that JSON cannot hold ends before a connection is opened."""
    sent = HttpClient("http://127.0.0.1:1").send(ProviderRequest(method="POST", path="/tasks", json=json))
    assert isinstance(sent, NeverSent), sent


def test_json_that_is_nested_too_deep_was_never_sent() -> None:
    """A body that cannot be encoded for its depth ends like any other that cannot."""
    nested: list = []
    for _ in range(200_000):
        nested = [nested]
    sent = HttpClient("http://127.0.0.1:1").send(ProviderRequest(method="POST", path="/tasks", json=nested))
    assert NeverSent(error="RecursionError: the request cannot be put into HTTP") == sent


def test_a_header_that_http_forbids_was_never_sent() -> None:
    """A credential with a line end in it ends every send, not the making of the client."""
    client = HttpClient("http://127.0.0.1:1", {"Authorization": "fake\r\nX: y"})
    expected = NeverSent(error="ValueError: the request cannot be put into HTTP")
    assert [expected] * 2 == [client.send(POST), client.send(GET)]


def test_a_request_may_replace_a_header_of_its_transport() -> None:
    """A request's own header stands once, with its own value."""
    seen: list[bytes] = []

    def behave(connection: socket.socket, _: int) -> None:
        seen.append(read_request(connection))
        connection.sendall(CREATED)

    with serving(behave) as url:
        HttpClient(url, {"X-One": "ours"}).send(ProviderRequest(method="GET", path="/", headers={"X-One": "its own"}))
    assert [b"X-One: its own"] == [line for line in seen[0].split(b"\r\n") if line.startswith(b"X-One")]


def test_a_closed_transport_never_sends() -> None:
    """A send after close is NeverSent, not an exception."""
    client = HttpClient("http://127.0.0.1:1")
    client.close()
    assert isinstance(client.send(POST), NeverSent)


@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param(resetting, id="reset after the request was read"),
        pytest.param(closing(b""), id="closed after the request was read"),
        pytest.param(closing(b"HTTP/1.1 201 Crea"), id="closed within the status line"),
        pytest.param(closing(b"HTTP/1.1 201 Created\r\nContent-Le"), id="closed within the headers"),
        pytest.param(closing(CREATED[:-4]), id="closed within the body"),
        pytest.param(
            closing(b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"), id="broken chunk length"
        ),
        pytest.param(closing(b"HTTP/1.1 201 Created\r\nContent-Length: many\r\n\r\n"), id="broken length"),
        pytest.param(closing(b"\x00\xff\x16\x03\x01 garbage \r\n\r\n" * 20), id="garbage"),
        pytest.param(closing(b"SSH-2.0-OpenSSH_9.9\r\n"), id="another protocol"),
        pytest.param(closing(b"HTTP/1.1 999999 Hm\r\n\r\n"), id="no such status"),
        pytest.param(closing(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 300_000 + b"\r\n\r\n"), id="endless header"),
        pytest.param(closing(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000 + b"\r\n"), id="endless headers"),
        pytest.param(closing(b"HTTP/1.1 099 Low\r\nContent-Length: 0\r\n\r\n"), id="a status below all"),
        pytest.param(closing(b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n"), id="another HTTP"),
        pytest.param(closing(b"\r\n" + CREATED), id="an empty line before the answer"),
        pytest.param(closing(chunked(b"some", b"more")[:-3]), id="closed before the last chunk's end"),
        pytest.param(closing(chunked(b"some", b"more")[:-9]), id="closed within a chunk"),
        pytest.param(
            closing(chunked(b"a").replace(b"chunked", b"gzip, chunked", 1)), id="a coding that nobody asked for"
        ),
        pytest.param(closing(chunked(b"a", trailers=b"X: y\r\n" * 50_000)), id="endless trailers"),
        pytest.param(lambda connection, _: connection.close(), id="closed at once"),
    ],
)
def test_what_breaks_after_the_request_has_no_answer(behaviour) -> None:
    """Whatever happens once a byte of the request may be there is NoAnswer."""
    sent = send_once(behaviour)
    assert isinstance(sent, NoAnswer), sent


@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param(silent, id="no answer"),
        pytest.param(dripping(b""), id="dripping status line"),
        pytest.param(dripping(b"HTTP/1.1 201 Created\r\n", b"X-A: b\r\n"), id="dripping headers"),
        pytest.param(dripping(b"HTTP/1.1 201 Created\r\nContent-Length: 99999\r\n\r\n"), id="dripping body"),
        pytest.param(
            dripping(b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"), id="dripping chunks"
        ),
        pytest.param(dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), id="dripping interim answers"),
        pytest.param(lambda connection, _: time.sleep(5), id="nobody reads"),
    ],
)
def test_one_deadline_bounds_the_whole_attempt(behaviour) -> None:
    """A deadline of 0.2 s holds against every way of being slow; no single read outlasts it."""
    large = ProviderRequest(method="POST", path="/tasks", json={"title": "x" * 8_000_000})
    started = time.monotonic()
    sent = send_once(behaviour, POST if behaviour is silent else large, deadline_seconds=0.2)
    assert isinstance(sent, NoAnswer), sent
    assert time.monotonic() - started < 3  # far from the default of 30, with room for a busy machine


def test_a_passed_deadline_before_connecting_is_never_sent() -> None:
    """Without any time left nothing is opened."""
    assert isinstance(HttpClient("http://127.0.0.1:1").send(POST, deadline_seconds=0), NeverSent)


def test_an_address_that_does_not_answer_is_never_sent() -> None:
    """A connection that is not accepted in time was never sent."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(address)
        sent = HttpClient(f"http://127.0.0.1:{address[1]}").send(POST, deadline_seconds=0.2)
        for filler in fillers:
            filler.close()
    assert isinstance(sent, NeverSent), sent


def test_a_huge_body_is_cut() -> None:
    """No more than the limit is kept, and the answer says so."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n"
    sent = send_once(closing(head + b"y" * (BODY_LIMIT_BYTES + 100_000)))
    assert isinstance(sent, Answered)
    assert (BODY_LIMIT_BYTES, True) == (len(sent.body), sent.truncated)


def test_a_request_may_ask_for_a_longer_answer() -> None:
    """A listing is read up to its own limit."""
    body = b"[" + b"1," * 1_500_000 + b"1]"
    listing = ProviderRequest(method="GET", path="/tasks", body_limit_bytes=LISTING_LIMIT_BYTES)
    sent = send_once(closing(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)), listing)
    assert isinstance(sent, Answered)
    assert (body, False) == (sent.body, sent.truncated)


def test_a_failure_status_needs_no_whole_body() -> None:
    """A 503 whose body breaks off is still a 503: the status alone settles it."""
    head = b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nContent-Length: 100\r\n\r\nso"
    expected = Answered(status=503, headers={"retry-after": "7", "content-length": "100"}, body=b"so", truncated=True)
    assert expected == send_once(closing(head))


def test_a_redirect_is_an_answer() -> None:
    """Redirects are shown, never followed: the credential goes nowhere else."""
    asked: list[int] = []

    def behave(connection: socket.socket, number: int) -> None:
        asked.append(number)
        read_request(connection)
        connection.sendall(b"HTTP/1.1 308 Moved\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n")

    sent = send_once(behave)
    assert isinstance(sent, Answered)
    assert (308, "/elsewhere", [0]) == (sent.status, sent.headers["location"], asked)


def test_interim_answers_are_skipped() -> None:
    """100 Continue and 103 Early Hints come before the answer, not instead of it."""
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    sent = send_once(answering(interim + CREATED))
    assert isinstance(sent, Answered)
    assert (201, b'{"id": 17}') == (sent.status, sent.body)


def test_compression_nobody_asked_for_is_undone_within_the_limit() -> None:
    """A compressed answer is read; one that would unpack without end is cut; a broken one is like a body that breaks off."""

    def compressed(body: bytes, status: int = 200) -> bytes:
        head = b"HTTP/1.1 %d Word\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"
        return head % (status, len(body)) + body

    small = send_once(answering(compressed(gzip.compress(b'{"id": 1}'))))
    bomb = send_once(answering(compressed(gzip.compress(b"0" * 50_000_000))))
    broken = [send_once(answering(compressed(b"not gzip", status))) for status in (200, 422)]
    assert isinstance(small, Answered)
    assert isinstance(bomb, Answered)
    assert (b'{"id": 1}', BODY_LIMIT_BYTES, True) == (small.body, len(bomb.body), bomb.truncated)
    assert isinstance(broken[0], NoAnswer)
    assert isinstance(broken[1], Answered)
    assert broken[1].truncated


def test_cookies_are_not_kept() -> None:
    """What a provider wants remembered is not sent back."""
    seen: list[bytes] = []

    def behave(connection: socket.socket, _: int) -> None:
        while request := read_request(connection):
            seen.append(request)
            connection.sendall(CREATED.replace(b"\r\n\r\n", b"\r\nSet-Cookie: a=b\r\n\r\n", 1))

    with serving(behave) as url:
        client = HttpClient(url)
        client.send(POST)
        client.send(POST)
    assert [False, False] == [b"cookie" in one.lower() for one in seen]


def test_a_connection_is_kept_for_the_next_request() -> None:
    """Two requests in a row share one connection."""
    numbers: list[int] = []

    def behave(connection: socket.socket, number: int) -> None:
        while read_request(connection):
            numbers.append(number)
            connection.sendall(CREATED)

    with serving(behave) as url:
        client = HttpClient(url)
        client.send(POST)
        client.send(POST)
    assert [0, 0] == numbers


def test_a_connection_that_was_closed_meanwhile_is_replaced() -> None:
    """A kept connection that the provider closed while idle does not cost an attempt: a fresh one is used."""
    closed = threading.Event()

    def behave(connection: socket.socket, _: int) -> None:
        read_request(connection)
        connection.sendall(CREATED)
        connection.close()
        closed.set()

    with serving(behave) as url:
        client = HttpClient(url)
        outcomes = []
        for _ in range(5):
            closed.clear()
            outcomes.append(client.send(POST))
            closed.wait(2)
            time.sleep(0.01)  # the loopback's own delay
    assert [Answered] * 5 == [type(one) for one in outcomes]


def test_a_connection_closed_between_the_check_and_the_write_is_replaced() -> None:
    """The check just before the first byte finds it, however young it is, and nothing is lost."""
    bodies: list[bytes] = []
    may_close, closed = threading.Event(), threading.Event()

    def behave(connection: socket.socket, number: int) -> None:
        bodies.append(read_request(connection))
        connection.sendall(CREATED)
        if number == 0:
            may_close.wait(2)
            connection.close()
            closed.set()
        else:
            connection.recv(1)

    with serving(behave) as url:
        client = HttpClient(url)
        client.send(POST)
        may_close.set()
        assert closed.wait(2)
        time.sleep(0.01)  # the loopback's own delay
        second = client.send(POST)
    assert isinstance(second, Answered), second
    assert 2 == len(bodies)


def test_a_connection_is_not_kept_for_long(monkeypatch) -> None:
    """An idle connection is dropped before common servers drop it: the next request opens a fresh one."""
    numbers: list[int] = []
    ahead_seconds = 0.0
    monkeypatch.setattr(http, "awake_seconds", lambda: time.monotonic() + ahead_seconds)

    def behave(connection: socket.socket, number: int) -> None:
        while read_request(connection):
            numbers.append(number)
            connection.sendall(CREATED)

    with serving(behave) as url:
        client = HttpClient(url)
        client.send(POST)
        ahead_seconds = KEEPALIVE_SECONDS - 0.5
        client.send(POST)
        ahead_seconds += KEEPALIVE_SECONDS
        client.send(POST)
        client.send(POST)
    assert 3.0 == KEEPALIVE_SECONDS
    assert [0, 0, 1, 1] == numbers


def test_a_request_is_not_repeated_when_its_kept_connection_closes() -> None:
    """A provider that reads a request and hangs up may have acted: the request leaves once, and has no answer."""
    seen: list[bytes] = []

    def behave(connection: socket.socket, number: int) -> None:
        seen.append(read_request(connection))
        connection.sendall(CREATED)
        if number == 0:
            seen.append(read_request(connection))

    asked: list[int] = []
    with serving(behave) as url:
        client = HttpClient(url)
        first = client.send(POST)
        second = client.send(POST, may_begin=lambda: asked.append(1) is None)
        time.sleep(0.05)
    assert (Answered, NoAnswer) == (type(first), type(second))
    assert ([POST_BODY] * 2, [1]) == ([one.partition(b"\r\n\r\n")[2] for one in seen if one], asked)


@pytest.mark.parametrize(
    "surplus",
    [b'HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{"id": 99}', b"\r\n", b"x"],
    ids=["a whole answer", "an empty line", "a byte"],
)
def test_an_answer_that_nobody_asked_for_is_never_taken_for_the_next_one(surplus) -> None:
    """What comes behind an answer ends the connection: the next request gets its own answer over a fresh one."""

    def behave(connection: socket.socket, _: int) -> None:
        while request := read_request(connection):
            body = request.partition(b"\r\n\r\n")[2]
            answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
            connection.sendall(answer + surplus)

    with serving(behave) as url:
        client = HttpClient(url)
        bodies = [client.send(ProviderRequest(method="POST", path="/", json=[number])).body for number in range(3)]
    assert [b"[0]", b"[1]", b"[2]"] == bodies


def test_a_late_begin_sends_nothing() -> None:
    """When the caller's check says no just before the write, the provider sees no byte."""
    seen: list[bytes] = []
    done = threading.Event()

    def behave(connection: socket.socket, _: int) -> None:
        seen.append(connection.recv(100))
        done.set()

    with serving(behave) as url:
        sent = HttpClient(url).send(POST, may_begin=lambda: False)
        done.wait(2)
    assert isinstance(sent, NotBegun)
    assert [b""] == seen


def test_the_check_is_asked_once_with_the_connection_open() -> None:
    """`may_begin` is asked exactly once, after connecting and before the first byte."""
    asked: list[int] = []
    connected = threading.Event()

    def behave(connection: socket.socket, _: int) -> None:
        connected.set()
        read_request(connection)
        connection.sendall(CREATED)

    def may_begin() -> bool:
        asked.append(connected.wait(2))
        return True

    with serving(behave) as url:
        sent = HttpClient(url).send(POST, may_begin=may_begin)
    assert isinstance(sent, Answered)
    assert [True] == asked


def test_a_failure_before_the_write_does_not_ask() -> None:
    """A refused connection never asks whether it may begin."""
    asked: list[bool] = []
    sent = HttpClient(f"http://127.0.0.1:{free_port()}").send(POST, may_begin=lambda: not asked.append(True))
    assert isinstance(sent, NeverSent)
    assert [] == asked


def test_errors_name_no_header() -> None:
    """Neither credentials nor any other text of the request appear in an error or a repr."""
    secret = "fake-secret-token"
    headers = {"Authorization": f"Bearer {secret}", "Bad\nName": secret}
    outcomes = [
        HttpClient(f"http://127.0.0.1:{free_port()}", {"Authorization": f"Bearer {secret}"}).send(POST),
        HttpClient("http://127.0.0.1:1").send(ProviderRequest(method="GET", path="/", headers=headers)),
    ]
    assert [NeverSent, NeverSent] == [type(one) for one in outcomes]
    assert secret not in repr(outcomes)
    assert secret not in repr(ProviderRequest(method="GET", path="/", headers=headers))


def test_the_environment_does_not_redirect_requests(monkeypatch) -> None:
    """Proxy variables of the environment are ignored."""
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{free_port()}")
    assert isinstance(send_once(answering(CREATED)), Answered)


def test_many_threads_share_one_transport() -> None:
    """Side by side every thread gets its own answer."""

    def behave(connection: socket.socket, _: int) -> None:
        while request := read_request(connection):
            body = request.partition(b"\r\n\r\n")[2]
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    wrong: list[object] = []
    with serving(behave) as url:
        client = HttpClient(url)

        def work(thread: int) -> None:
            for number in range(20):
                sent = client.send(ProviderRequest(method="POST", path="/", json=[thread, number]))
                if not isinstance(sent, Answered) or sent.body != b"[%d,%d]" % (thread, number):
                    wrong.append(sent)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [] == wrong


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"HTTP/1.1 201 Created\r\nContent-Length: 10\r\nContent-Length: 11\r\n\r\n", id="two lengths"),
        pytest.param(b"HTTP/1.1 201 Created\r\nContent-Length: -1\r\n\r\n", id="a negative length"),
        pytest.param(b"HTTP/1.1 201 Created\r\nContent-Length: +10\r\n\r\n", id="a signed length"),
        pytest.param(b"HTTP/1.1 201 Created\r\nContent-Length: 10, 11\r\n\r\n", id="a list of lengths"),
        pytest.param(
            b"HTTP/1.1 201 Created\r\nContent-Length: 10\r\nTransfer-Encoding: chunked\r\n\r\n",
            id="a length, and chunks",
        ),
        pytest.param(
            b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\nContent-Length: 10\r\n\r\n",
            id="chunks, and a length",
        ),
        pytest.param(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", id="another protocol"),
        pytest.param(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
            id="another protocol, by the book",
        ),
    ],
)
def test_an_answer_whose_end_is_unclear_settles_nothing(head) -> None:
    """Where an answer ends must be beyond doubt before its body is believed."""
    sent = send_once(closing(head + b'{"id": 17}'))
    assert isinstance(sent, NoAnswer) or sent.status == 101, sent


STATUSES = pytest.mark.parametrize("status", [200, 422, 503])
Exchanged = tuple[list[http.Sent], list[int]]


def ask_twice(answer: bytes, pieces: Iterable[bytes] | None = None) -> Exchanged:
    """Return how two requests in a row end that are answered so, and over which connections they came."""
    numbers: list[int] = []

    def behave(connection: socket.socket, number: int) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while read_request(connection):
            numbers.append(number)
            for piece in pieces or [answer]:
                connection.sendall(piece)

    with serving(behave) as url:
        client = HttpClient(url)
        return [client.send(POST, deadline_seconds=5) for _ in range(2)], numbers


@STATUSES
@pytest.mark.parametrize(
    "lines",
    [
        b"Content-Length: 10\r\ncontent-length:10\r\n",
        b"Content-Length: 10, 10\r\n",
        b"Content-Length: 10, 010\r\n",
        b"Content-Length: 10 ,10\r\nX: y\r\nContent-Length: 10\r\n",
        b"Content-Length:\r\n 10\r\n",
        b"Content-Length: %s10\r\n" % (b"0" * 5000),
    ],
)
def test_a_length_that_is_repeated_is_one(status, lines) -> None:
    """The same number several times, in other digits or in the next line, tells one length, whatever the status."""
    sent, numbers = ask_twice(b'HTTP/1.1 %d Word\r\n%s\r\n{"id": 17}' % (status, lines))
    assert [(status, b'{"id": 17}', False)] * 2 == [(one.status, one.body, one.truncated) for one in sent]
    assert [0, 0] == numbers


@STATUSES
@pytest.mark.parametrize("length", [b"3", b"10", b"10, 10"])
def test_chunks_win_over_a_length_beside_them(status, length) -> None:
    """The body is the chunks whatever the length and the status, and the connection is not kept."""
    answer = chunked(b'{"id"', b": 17}").replace(b"200 OK\r\n", b"%d Word\r\nContent-Length: %s\r\n" % (status, length))
    sent, numbers = ask_twice(answer)
    assert [(status, b'{"id": 17}', False)] * 2 == [(one.status, one.body, one.truncated) for one in sent]
    assert [0, 1] == numbers


@STATUSES
def test_a_folded_header_is_unfolded(status) -> None:
    """A value that goes on in the next lines is one value, with one space for each fold, however the lines end."""
    lines = b"X-One: a\r\n b\r\n\t c\r\nX-Two: a;\n    b\r\nContent-Length: 10\r\n"
    answer = b'HTTP/1.1 %d Word\r\n%s\r\n{"id": 17}' % (status, lines)
    expected = Answered(
        status=status, headers={"x-one": "a b c", "x-two": "a; b", "content-length": "10"}, body=b'{"id": 17}'
    )
    assert ([expected] * 2, [0, 0]) == ask_twice(answer) == ask_twice(answer, one_by_one(answer))


@pytest.mark.parametrize(
    "answer",
    [
        CREATED.replace(b"\r\n", b"\n"),
        CREATED.replace(b"\r\n", b"\r\n X: a\r\n", 1),
        CREATED.replace(b"Length: 10", b"Length: 1" + b"0" * 5000),
    ],
    ids=["lines without a carriage return", "a folded first line", "a length beyond all numbers"],
)
def test_what_can_be_understood_in_one_way_only_is_understood(answer) -> None:
    """A broken answer costs a question to the provider or to a person, so that one which is clear is taken."""
    sent = send_once(closing(answer))
    assert isinstance(sent, Answered)
    assert (201, b'{"id": 17}', False) == (sent.status, sent.body, sent.truncated)


@pytest.mark.parametrize("start", [b"SSH-2.0-OpenSSH_9.9\r\n", b"\r\n"])
def test_what_begins_like_no_answer_is_not_waited_for(start) -> None:
    """A provider that speaks something else is found out by what it says, not by the deadline."""

    def behave(connection: socket.socket, _: int) -> None:
        read_request(connection)
        for piece in one_by_one(start):
            connection.sendall(piece)
        connection.recv(1)

    started = time.monotonic()
    assert isinstance(send_once(behave, deadline_seconds=20), NoAnswer)
    assert time.monotonic() - started < 10


def test_chunks_may_be_padded_and_followed_by_a_length() -> None:
    """Spaces behind a chunk's length and a Content-Length behind the chunks change nothing."""
    answer = chunked(b'{"id"', b": 17}", trailers=b"Content-Length: 10\r\n").replace(b"5\r\n", b"5  \r\n")
    expected = Answered(status=200, headers={"transfer-encoding": "chunked"}, body=b'{"id": 17}')
    assert ([expected] * 2, [0, 0]) == ask_twice(answer) == ask_twice(answer, one_by_one(answer))


@SOCKETS
@given(st.data())
def test_however_broken_chunks_are_cut_their_body_is_the_same(data) -> None:
    """What a failing answer told before its chunks broke is shown, also when it came in the same read as the fault."""
    answer = chunked(b'{"error"', b': "x"}').replace(b"200 OK", b"422 Word").replace(b"\r\n0\r\n", b"\r\nno chunk\r\n")
    end = data.draw(st.integers(answer.index(b"\r\n\r\n") + 4, len(answer)))
    expected = Answered(status=422, headers={"transfer-encoding": "chunked"}, body=b'{"error": "x"}', truncated=True)
    assert expected == send_once(closing(answer)) == send_once(in_pieces([answer[:end], answer[end:]]))


def test_headers_have_a_bound() -> None:
    """A long head is read, and so are a thousand headers; lines that never end are not."""
    long_one = b"HTTP/1.1 204 Done\r\nX: " + b"a" * 60_000 + b"\r\n\r\n"
    many = b"HTTP/1.1 204 Done\r\n" + b"".join(b"X-%d: y\r\n" % number for number in range(1000)) + b"\r\n"
    endless = b"HTTP/1.1 204 Done\r\nX: " + b"a" * 400_000
    sent = [send_once(closing(answer)) for answer in (long_one, many, endless)]
    assert [Answered, Answered, NoAnswer] == [type(one) for one in sent]
    assert (60_000, 1000) == (len(sent[0].headers["x"]), len(sent[1].headers))


def test_headers_are_told_as_they_were_meant() -> None:
    """Names in lower case, values without the space around them, repeated ones joined; an empty one is one."""
    head = b"HTTP/1.1 204 Done\r\nX-One: \t a b \t\r\nVia: a\r\nX-Empty:\r\nvia: b\r\nX-Old: \xe9\xa0\r\n\r\n"
    expected = {"x-one": "a b", "via": "a, b", "x-empty": "", "x-old": "é\xa0"}
    sent = send_once(closing(head))
    assert isinstance(sent, Answered)
    assert expected == sent.headers


def test_chunks_are_put_together() -> None:
    """A chunked body is its chunks; what stands behind them is no header of the answer."""
    expected = Answered(status=200, headers={"transfer-encoding": "chunked"}, body=b'{"id": 17}')
    assert expected == send_once(closing(chunked(b'{"id"', b": 17}", trailers=b"X-Late: 1\r\n")))


def test_a_failure_needs_no_whole_chunks() -> None:
    """A 503 whose chunks break off, or are none, is still a 503."""
    head = b"HTTP/1.1 503 Busy\r\nTransfer-Encoding: chunked\r\n\r\n"
    sent = [send_once(in_pieces((head + b"2\r\nso\r\n", rest), 0.02)) for rest in (b"9\r\nx", b"no chunk")]
    assert [(503, True)] * 2 == [(one.status, one.truncated) for one in sent]


@pytest.mark.parametrize("answer", [CREATED, chunked(b'{"id"', b": 17}", trailers=b"X-Late: 1\r\n")])
def test_an_answer_that_drips_is_read_whole(answer) -> None:
    """One byte at a time or all at once: the answer is the same."""
    assert send_once(closing(answer)) == send_once(in_pieces(one_by_one(answer), 0.001))


@pytest.mark.parametrize(
    ("kept", "answer"),
    [
        (True, CREATED),
        (True, chunked(b"a")),
        (True, b"HTTP/1.1 204 Done\r\n\r\n"),
        (True, b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 1\r\n\r\na"),
        (False, b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\na"),
        (False, b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\na"),
        (False, b"HTTP/1.1 200 OK\r\nConnection: x, Close\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        (True, b"HTTP/1.1 204 Done\r\nContent-Length: 0\r\n\r\n"),
        (False, b"HTTP/1.1 204 Done\r\nContent-Length: 10\r\n\r\n0123456789"),
        (False, b"HTTP/1.1 304 Same\r\nContent-Length: 10\r\n\r\n0123456789"),
    ],
)
def test_what_an_answer_says_of_its_connection_is_heeded(kept, answer) -> None:
    """A connection is kept where both sides know the end of the answer and want another."""
    sent, numbers = ask_twice(answer)
    assert [Answered, Answered] == [type(one) for one in sent]
    assert ([0, 0] if kept else [0, 1]) == numbers


NAMES = st.sampled_from(["X-One", "X-Two", "Retry-After", "Via"])
VALUES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=12)


@st.composite
def answers(draw) -> tuple[str, bytes, bytes]:
    """Draw an answer: how its end is told, all of its bytes, and its body."""
    status = draw(st.sampled_from([200, 201, 302, 404, 503]))
    body = b"".join(parts := draw(st.lists(st.binary(min_size=1, max_size=40), max_size=5)))
    lines = [f"{name}: {value}\r\n" for name, value in draw(st.lists(st.tuples(NAMES, VALUES), max_size=5))]
    framing = draw(st.sampled_from(["length", "chunks", "close"]))
    content = body
    if framing == "length":
        lines.append(f"Content-Length: {len(body)}\r\n")
    elif framing == "chunks":
        lines.append("Transfer-Encoding: chunked\r\n")
        content = chunked(*parts, trailers=draw(st.sampled_from([b"", b"X-Late: 1\r\n"]))).partition(b"\r\n\r\n")[2]
    head = f"HTTP/1.1 {status} Word\r\n{''.join(draw(st.permutations(lines)))}\r\n".encode("latin-1")
    return framing, head + content, body


@SOCKETS
@given(answers(), st.data())
def test_however_an_answer_is_cut_it_is_the_same(drawn, data) -> None:
    """The places where reads end change nothing."""
    _, answer, body = drawn
    cuts = sorted(data.draw(st.sets(st.integers(0, len(answer)))))
    pieces = [answer[start:end] for start, end in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    sent = send_once(closing(answer))
    assert isinstance(sent, Answered)
    assert (body, False) == (sent.body, sent.truncated)
    assert sent == send_once(in_pieces(pieces)) == send_once(in_pieces(one_by_one(answer)))


@SOCKETS
@given(answers(), st.data())
def test_no_part_of_an_answer_is_taken_for_the_whole(drawn, data) -> None:
    """Where the head tells the end, an earlier end of the connection is found, wherever it comes."""
    framing, answer, _ = drawn
    end = data.draw(st.integers(0, len(answer) - 1))
    sent = send_once(closing(answer[:end]))
    assert framing == "close" or isinstance(sent, NoAnswer) or sent.truncated
    assert end >= answer.index(b"\r\n\r\n") + 4 or isinstance(sent, NoAnswer)


@SOCKETS
@given(answers(), st.binary(min_size=1, max_size=20) | st.sampled_from([b"\r\n", b"\r\n\r\n", CREATED]), st.data())
def test_what_comes_behind_an_answer_is_no_part_of_it(drawn, surplus, data) -> None:
    """What came behind an answer in the same read changes neither it nor the next one."""
    framing, answer, body = drawn
    cut = data.draw(st.integers(0, len(answer)))
    if framing != "close":
        sent, _ = ask_twice(answer, [piece for piece in (answer[:cut], answer[cut:] + surplus) if piece])
        assert [(body, False)] * 2 == [(one.body, one.truncated) for one in sent]


@pytest.mark.parametrize("path", ["/tasks/a b", "/tasks/ñandú", "/tasks/a\r\nX: y", "/tasks/a?b#c"])
def test_a_path_stays_one_path(path) -> None:
    """Whatever a path holds, it cannot end the first line or begin a query."""
    seen: list[bytes] = []

    def behave(connection: socket.socket, _: int) -> None:
        seen.append(read_request(connection))
        connection.sendall(CREATED)

    with serving(behave) as url:
        HttpClient(url).send(ProviderRequest(method="GET", path=path))
    target = seen[0].split(b"\r\n")[0].split(b" ")
    assert 3 == len(target)
    assert quote(path, safe="/:").encode() == target[1]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A self-signed certificate for 127.0.0.1, as one file."""
    folder = tmp_path_factory.mktemp("tls")
    key, chain = folder / "key.pem", folder / "chain.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    try:
        subprocess.run(
            [*command, "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(chain)],
            check=True,
            capture_output=True,
        )
    except FileNotFoundError:
        pytest.skip("there is no openssl program")
    return chain, key


def tls_server(certificate) -> Callable[[socket.socket], socket.socket]:
    """Return what turns an accepted connection into a TLS one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return lambda raw: context.wrap_socket(raw, server_side=True)


def test_an_unknown_certificate_is_never_sent(certificate) -> None:
    """A provider that cannot prove who it is gets nothing, and the error says why."""
    with serving(answering(CREATED), tls_server(certificate)) as url:
        sent = HttpClient(url.replace("http:", "https:")).send(POST)
    assert isinstance(sent, NeverSent)
    assert sent.error.startswith("ConnectError: ")
    assert "self-signed certificate" in sent.error


def test_tls_carries_requests_under_the_same_deadline(certificate, monkeypatch) -> None:
    """Over TLS answers come back, connections are kept, and a dripping answer ends at the deadline."""
    monkeypatch.setattr(http.certifi, "where", lambda: str(certificate[0]))
    numbers: list[int] = []

    def behave(connection: socket.socket, number: int) -> None:
        for _ in range(2):
            read_request(connection)
            numbers.append(number)
            connection.sendall(CREATED)
        dripping(b"HTTP/1.1 201 Created\r\n")(connection, number)

    with serving(behave, tls_server(certificate)) as url:
        client = HttpClient(url.replace("http:", "https:"))
        outcomes = [type(client.send(POST)) for _ in range(2)]
        late = client.send(POST, deadline_seconds=0.2)
    assert ([Answered, Answered], [0, 0]) == (outcomes, numbers)
    assert isinstance(late, NoAnswer), late


def test_a_server_that_does_not_speak_tls_is_never_sent() -> None:
    """A broken handshake is before the request."""
    with serving(lambda connection, _: connection.sendall(b"HTTP/1.1 400 Bad\r\n\r\n")) as url:
        sent = HttpClient(url.replace("http:", "https:")).send(POST, deadline_seconds=2)
    assert isinstance(sent, NeverSent), sent

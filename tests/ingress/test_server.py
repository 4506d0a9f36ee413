"""The public port over the real server: what arrives slowly, oddly, without end, or while the ledger cannot be written."""

from __future__ import annotations

import gc
import http.client
import itertools
import json
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from functools import partial
from itertools import count
from pathlib import Path

import pytest

from ingress.app import BODY_LIMIT_BYTES, Recording, create_app
from ingress.processes import bind
from ingress.request_counts import RequestCounts
from ingress.server import WebhookServer
from worker.ledger import Ledger, migrate, open_ledger
from worker.ledger.database import sqlite_module

SECRET = "fake-secret-of-the-tests"
GENERIC = "{extend: generic, secrets: [{env: KEY}]}"
BODY = b'{"event": "lead.created", "event_id": "e1", "contact": {"phone": "+56911112222"}}'
HEADERS = {"X-Webhook-Secret": SECRET, "Content-Type": "application/json"}
POST = b"POST /webhooks/crm HTTP/1.1\r\nHost: x\r\nX-Webhook-Secret: " + SECRET.encode() + b"\r\n"


class Post:
    """A dispatcher that remembers."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    def events(self, ids) -> None:
        """Take the ids."""
        self.ids += ids


def _counted(counts: RequestCounts):
    with counts.paused() as counted:
        return counted


@pytest.fixture
def file(tmp_path) -> Path:
    """Return the file of an empty ledger."""
    migrate(f"sqlite:///{tmp_path / 'ledger.sqlite3'}")
    return tmp_path / "ledger.sqlite3"


@pytest.fixture
def ledger(file) -> Iterator[Ledger]:
    """Return a real, empty ledger."""
    opened = open_ledger(f"sqlite:///{file}")
    yield opened
    opened.close()


@pytest.fixture
def post() -> Post:
    """Return the dispatcher."""
    return Post()


@pytest.fixture
def serve(ledger, post, make_source, now) -> Iterator[Callable[..., WebhookServer]]:
    """Return a function that starts the real server on a free port."""
    numbers = count(1)
    running: list[tuple[WebhookServer, threading.Thread]] = []

    def start(source: str = GENERIC, **bounds: timedelta) -> WebhookServer:
        sources, counts = {"crm": make_source(source, {"KEY": SECRET})}, RequestCounts(ledger.inbox)
        app = create_app(sources, ledger, post, counts, now=lambda: now, new_id=lambda: f"ev_{next(numbers)}")
        bounds = {"busy_after": timedelta(seconds=5), "body_limit_bytes": BODY_LIMIT_BYTES, **bounds}
        server = WebhookServer(app, bind("127.0.0.1", 0), ledger.inbox, counts, **bounds)
        server.counts = partial(_counted, counts)
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((server, thread))
        return server

    yield start
    for server, thread in running:
        server.close()
        thread.join(5)
        assert not thread.is_alive()


@pytest.fixture
def server(serve) -> WebhookServer:
    """Return a running server."""
    return serve()


def _ask(server: WebhookServer, method: str, path: str, body: object = None, headers: dict[str, str] | None = None):
    connection = http.client.HTTPConnection(server.host, server.port, timeout=5)
    try:
        connection.request(
            method, path, body=body, headers=headers or {}, encode_chunked=not isinstance(body, bytes | None)
        )
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


def _lasting(answer: http.client.HTTPResponse):
    return answer.status, sorted((name, value) for name, value in answer.getheaders() if name != "Date")


def _raw(server: WebhookServer, text: bytes) -> bytes:
    """Send bytes and return what comes until the connection ends, or nothing has come for a while after the first answer."""
    said = b""
    with socket.create_connection((server.host, server.port), timeout=5) as connection:
        connection.sendall(text)
        with suppress(TimeoutError):
            while part := connection.recv(65536):
                said += part
                connection.settimeout(0.5)
    return said


def test_over_a_real_server(server) -> None:
    """A chosen port, no version in the answers, a webhook with a length and one in chunks."""
    assert 0 < server.port
    answer, content = _ask(server, "POST", "/webhooks/crm", BODY, HEADERS)
    assert (200, 1) == (answer.status, json.loads(content)["events"])
    assert "leadwire" == answer.getheader("Server")
    answer, content = _ask(
        server, "POST", "/webhooks/crm", iter([BODY[:10], BODY[10:]]), {**HEADERS, "Transfer-Encoding": "chunked"}
    )
    assert (200, 1) == (answer.status, json.loads(content)["duplicates"])
    answer, content = _ask(server, "HEAD", "/webhooks/crm")
    assert (405, b"") == (answer.status, content)
    assert 200 == _ask(server, "GET", "/healthz")[0].status


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_413_in_our_words(chunked, server) -> None:
    """Both with a length and in chunks, a byte over the limit is refused and says why; at the limit it is read."""
    limit = 1024 * 1024
    for size, status in ((limit, 200), (limit + 1, 413)):
        body = BODY + b" " * (size - len(BODY))
        headers = {**HEADERS, "Transfer-Encoding": "chunked"} if chunked else HEADERS
        answer, content = _ask(server, "POST", "/webhooks/crm", iter([body]) if chunked else body, headers)
        assert status == answer.status
    assert f"the body is larger than {limit} bytes" == json.loads(content)["reason"]


@pytest.mark.parametrize(
    "text",
    [
        b"POST /webhooks/crm HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /webhooks/crm HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n",
        b"POST /webhooks/crm HTTP/1.1\r\nHost: x\r\nX-Webhook-Secret: \xff\xfe\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /webhooks/crm HTTP/1.1\r\nHost: x\r\nContent-Type: \xff\r\nX-Webhook-Secret: a\r\nContent-Length: 1\r\n\r\n{",
        b"POST /webhooks/crm?token=%ff&a=\xff HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /webhooks/\xff\xfe HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /webhooks/crm HTTP/1.1\r\nHost: \xff\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /webhooks/crm HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"BREW /webhooks/crm HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
    ids=range(10),
)
def test_garbage_on_the_wire_is_never_a_5xx(text, server) -> None:
    """What is no request, or an unverified one, is refused, and the server goes on."""
    answer = _raw(server, text)

    assert not answer or answer.split(b" ")[1][:1] == b"4", answer[:200]
    assert 200 == _ask(server, "GET", "/healthz")[0].status


def _event(number: int) -> bytes:
    return json.dumps(
        {"event": "lead.created", "event_id": f"e{number}", "contact": {"phone": "+56911112222"}}
    ).encode()


def _request(body: bytes) -> bytes:
    return POST + b"Content-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body


def test_many_at_once_are_all_recorded_and_dispatched(server, ledger, post) -> None:
    """Side by side on several connections, each answer stands for its own record, and each is counted."""
    with ThreadPoolExecutor(16) as pool:
        answers = list(
            pool.map(lambda number: _ask(server, "POST", "/webhooks/crm", _event(number), HEADERS), range(200))
        )

    assert {(200, 1)} == {(answer.status, json.loads(content)["events"]) for answer, content in answers}
    stored = {event.id for event in ledger.queries.list_events()}
    assert 200 == len(stored)
    assert stored == set(post.ids)
    assert {("crm", "accepted", ""): 200} == server.counts()


def test_one_connection_carries_many_requests_in_order(server) -> None:
    """Requests that come in one piece are answered in the order of their coming."""
    text = b"".join(_request(_event(number)) for number in (1, 2, 1)) + b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    with socket.create_connection((server.host, server.port), timeout=5) as connection:
        connection.sendall(text)
        answer = b""
        while b'"ok"' not in answer:
            answer += connection.recv(65536)

    counts = [
        json.loads(part.split(b"\r\n\r\n")[1][:80].split(b"}")[0] + b"}") for part in answer.split(b"HTTP/1.1 ")[1:]
    ]
    assert [1, 1, 0, None] == [content.get("events") for content in counts]


def test_who_asks_whether_to_go_on_is_told_so(server) -> None:
    """`Expect: 100-continue` is answered before the body."""
    head = POST + b"Expect: 100-continue\r\nContent-Length: " + str(len(BODY)).encode() + b"\r\n\r\n"
    with socket.create_connection((server.host, server.port), timeout=5) as connection:
        connection.sendall(head)
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
        connection.sendall(BODY)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_a_header_that_looks_like_another_is_not_believed(server) -> None:
    """An underscore is no hyphen: whoever stands before us filters the names with hyphens only."""
    text = _request(BODY).replace(b"X-Webhook-Secret", b"X_Webhook_Secret")
    assert _raw(server, text).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize(
    "half", [b"POST /webhooks/crm HTT", POST, _request(BODY)[:-5], POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab"]
)
def test_half_sent_requests_keep_nobody_waiting_and_end(half, serve) -> None:
    """While 200 senders never finish, others are answered in their usual time; then the 200 are let go, with 408 for a body."""
    server = serve(arrives_within=timedelta(seconds=1.5))
    stuck = []
    for _ in range(200):
        stuck.append(socket.create_connection((server.host, server.port), timeout=5))
        stuck[-1].sendall(half)

    begun_at = time.monotonic()
    assert 200 == _ask(server, "POST", "/webhooks/crm", BODY, HEADERS)[0].status
    assert 0.5 > time.monotonic() - begun_at
    for connection in stuck:
        said = b"".join(iter(partial(connection.recv, 1000), b""))
        assert said.startswith(b"HTTP/1.1 408 " if b"Content-Length" in half or b"chunked" in half else b"")
        connection.close()
    assert 200 == _ask(server, "GET", "/healthz")[0].status


def _trickle(connection: socket.socket, part: bytes) -> None:
    for byte in itertools.cycle(part):
        connection.sendall(bytes([byte]))
        time.sleep(0.05)


def _is_closed(connection: socket.socket) -> bool:
    connection.settimeout(0.2)
    try:
        return not connection.recv(1)
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def test_a_head_that_trickles_in_is_cut_off(serve) -> None:
    """A sender that adds a byte now and then gains no time by it."""
    server = serve(arrives_within=timedelta(seconds=0.5))
    begun_at = time.monotonic()
    with socket.create_connection((server.host, server.port), timeout=5) as connection:
        connection.sendall(POST)
        with pytest.raises(ConnectionError):
            _trickle(connection, b"X-A: b\r\n")
    assert 5 > time.monotonic() - begun_at


def test_idle_connections_lock_nobody_out(server) -> None:
    """With 2,000 open that have sent nothing, every genuine request is answered in its usual time."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 6_000:
        pytest.skip("both ends of 2,000 connections need more files than a process may open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 6_000), hard))
    idle = [socket.create_connection((server.host, server.port), timeout=5) for _ in range(2_000)]
    begun_at = time.monotonic()
    for number in range(20):
        assert 200 == _ask(server, "POST", "/webhooks/crm", _event(number), HEADERS)[0].status
    assert 4 > time.monotonic() - begun_at
    for connection in idle:
        connection.close()


def test_above_the_limit_whoever_has_been_idle_longest_gives_way(serve, monkeypatch) -> None:
    """A new sender is answered, one that sends now and then keeps its connection, and the first that were idle lose theirs."""
    monkeypatch.setattr("ingress.server.CONNECTIONS_LIMIT", 50)
    server = serve()
    kept = http.client.HTTPConnection(server.host, server.port, timeout=5)
    idle = []
    for number in range(120):
        idle.append(socket.create_connection((server.host, server.port), timeout=5))
        if number % 10 == 0:
            kept.request("POST", "/webhooks/crm", _event(number), HEADERS)
            assert b'"events":1' in kept.getresponse().read()
            assert 200 == _ask(server, "POST", "/webhooks/crm", _event(1_000 + number), HEADERS)[0].status
    assert (True, False) == (_is_closed(idle[0]), _is_closed(idle[-1]))
    for connection in (kept, *idle):
        connection.close()


def test_bodies_that_make_no_progress_go_first(serve, monkeypatch) -> None:
    """Where unfinished bodies hold all the memory there is for them, genuine ones are read, and those are told to come again."""
    monkeypatch.setattr("ingress.server.BODIES_LIMIT_BYTES", 16 * 1024 * 1024)
    server = serve()
    head = POST + b"Content-Length: 1000000\r\n\r\n"
    unfinished = []
    for _ in range(150):
        unfinished.append(socket.create_connection((server.host, server.port), timeout=5))
        unfinished[-1].sendall(head + b" " * 200_000)
    body = BODY + b" " * 900_000
    for _ in range(32):
        assert 200 == _ask(server, "POST", "/webhooks/crm", body, HEADERS)[0].status

    assert unfinished[0].recv(1_000).startswith(b"HTTP/1.1 503 ")
    assert 32 == server.counts()["crm", "accepted", ""]
    assert 60 < server.counts()["(unknown)", "busy", "crowded"] < 150
    for connection in unfinished:
        connection.close()


def test_a_body_without_end_is_413(server) -> None:
    """It is read no further than the limit, and its sender loses the connection."""
    with socket.create_connection((server.host, server.port), timeout=10) as connection:
        connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        with pytest.raises(ConnectionError):
            _send_without_end(connection, b"10000\r\n" + b" " * 65_536 + b"\r\n")
    assert {("crm", "oversized", ""): 1} == server.counts()


def test_who_says_nothing_is_let_go(serve) -> None:
    """A connection without a request ends."""
    server = serve(arrives_within=timedelta(seconds=0.3))
    with socket.create_connection((server.host, server.port), timeout=5) as connection:
        assert b"" == connection.recv(1000)


@pytest.mark.parametrize("line", [b"X-Long: " + b"a" * 65_536, b"X-A: b\r\n" * 8_192], ids=["one", "many"])
def test_headers_without_end_are_refused(line, server) -> None:
    """A long header, or many, are refused before they are all there."""
    with socket.create_connection((server.host, server.port), timeout=5) as connection:
        connection.sendall(POST + line)
        assert connection.recv(1000).split(b" ")[1] == b"400"


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
def test_an_offer_to_upgrade_changes_nothing(chunked, apart, server, ledger) -> None:
    """Java's client offers HTTP/2 with every plain request: the webhook is read as it is, and its body is never a request."""
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n"
    head = POST + offer + (b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"Content-Length: 81\r\n\r\n")
    body = b"51\r\n" + BODY + b"\r\n0\r\n\r\n" if chunked else BODY
    with socket.create_connection((server.host, server.port), timeout=5) as connection:
        connection.sendall(head if apart else head + body)
        if apart:
            time.sleep(0.1)
            connection.sendall(body)
        answer = b""
        while b"}" not in answer:
            answer += connection.recv(1000)

    assert b'"events":1' in answer
    assert "+56911112222" == next(iter(ledger.queries.list_events())).event.contact.phone


def test_an_offer_to_upgrade_behind_another_request_changes_nothing(server, ledger) -> None:
    """Its body is a webhook like any other."""
    hidden = POST + b"Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 81\r\n\r\n" + _event(2)
    answer = _raw(server, _request(_event(1)) + hidden + _request(_event(3)))

    assert 3 == answer.count(b'"events":1')
    assert 3 == len(list(ledger.queries.list_events()))


def test_requests_piled_up_on_a_connection_keep_nobody_waiting(server) -> None:
    """Senders that pile thousands of requests up and read nothing leave a genuine one answered, and little memory taken."""
    piled = [socket.create_connection((server.host, server.port), timeout=5) for _ in range(20)]
    for connection in piled:
        connection.setblocking(False)
        with suppress(BlockingIOError):
            for _ in range(100):
                connection.send(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n" * 1_000)

    assert 200 == _ask(server, "POST", "/webhooks/crm", BODY, HEADERS)[0].status
    for connection in piled:
        connection.close()


def test_a_line_that_is_no_request_holds_no_connection(serve) -> None:
    """After an answer, an empty line is the beginning of a request that has to come."""
    server = serve(arrives_within=timedelta(seconds=0.3))
    with socket.create_connection((server.host, server.port), timeout=5) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
        connection.sendall(b"\r\n")
        assert b"" == connection.recv(1000)


def _send_without_end(connection: socket.socket, part: bytes) -> None:
    while True:
        connection.sendall(part)


def test_who_does_not_read_is_let_go(serve) -> None:
    """A sender that never takes its answers loses its connection."""
    server = serve(arrives_within=timedelta(seconds=0.5))
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(10)
        connection.connect((server.host, server.port))
        with pytest.raises(ConnectionError):
            _send_without_end(connection, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")


def test_a_trailer_without_end_is_refused(serve) -> None:
    """What stands behind a body in chunks is bounded in size and time."""
    server = serve(arrives_within=timedelta(seconds=1))
    with socket.create_connection((server.host, server.port), timeout=5) as connection:
        connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX-T: ")
        with pytest.raises(ConnectionError):
            _send_without_end(connection, b"a" * 1_000)


def test_small_chunks_are_no_offence(server) -> None:
    """A body in chunks of one byte is read."""
    parts = b"".join(b"1\r\n" + bytes([byte]) + b"\r\n" for byte in BODY + b" " * 30_000) + b"0\r\n\r\n"
    assert b'"events":1' in _raw(server, POST + b"Transfer-Encoding: chunked\r\n\r\n" + parts)


def test_too_many_headers_are_refused(server) -> None:
    """Even in a head that comes whole."""
    assert _raw(server, POST + b"a: b\r\n" * 300 + b"Content-Length: 0\r\n\r\n").split(b" ")[1] == b"400"


def test_a_length_of_thousands_of_digits_is_a_number(server) -> None:
    """Zeros before a length mean nothing, and no length is a fault of ours."""
    head = POST + b"Content-Length: " + b"0" * 5_000 + b"81\r\n\r\n"
    with socket.create_connection((server.host, server.port), timeout=5) as connection:
        connection.sendall(head)
        time.sleep(0.05)
        connection.sendall(BODY[:40])
        time.sleep(0.05)
        connection.sendall(BODY[40:])
        assert connection.recv(1000).startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 400 "))


def test_garbage_behind_a_webhook_makes_no_answer_untrue(server, ledger) -> None:
    """What came with it in one piece is refused as a whole, or recorded and its sender told so; then the connection ends."""
    answer = _raw(server, _request(BODY) + b"\x00\x01garbage\r\n\r\n")

    recorded = len(list(ledger.queries.list_events()))
    assert recorded == answer.count(b'"events":1')
    assert answer.split(b" ")[1] == (b"200" if recorded else b"400")


def test_an_answer_without_a_body_has_none(serve) -> None:
    """A source that answers 204 leaves the connection fit for the next request."""
    server = serve("{extend: generic, secrets: [{env: KEY}], ack: {status: 204}}")
    answer = _raw(server, _request(_event(1)) + _request(_event(2)))

    assert 2 == answer.count(b"HTTP/1.1 204 No Content")
    assert b"{" not in answer


@pytest.mark.parametrize("path", ["/webhooks/cr%6D", "/webhooks/crm/", "//webhooks/crm", "/webhooks//crm"])
def test_a_webhook_is_the_same_by_any_spelling_of_its_address(path, server) -> None:
    """There is one answer, and one record."""
    plain, first = _ask(server, "POST", "/webhooks/crm", BODY, HEADERS)
    odd, second = _ask(server, "POST", path, BODY, HEADERS)
    assert {"status": "accepted", "events": 1, "duplicates": 0} == json.loads(first)
    assert {"status": "accepted", "events": 0, "duplicates": 1} == json.loads(second)
    assert _lasting(plain) == _lasting(odd)
    assert {("crm", "accepted", ""): 2} == server.counts()


def test_half_a_body_does_not_delay_a_stop(serve) -> None:
    """Its sender is told to come again."""
    server = serve()
    with socket.create_connection((server.host, server.port), timeout=5) as connection:
        connection.sendall(_request(BODY)[:-5])
        time.sleep(0.2)
        server.close()
        assert connection.recv(1000).startswith(b"HTTP/1.1 503 ")


def test_a_ledger_that_cannot_be_written_is_busy_and_keeps_nobody_waiting(file, serve, ledger) -> None:
    """While another process holds the ledger, senders are told to come again and health is answered; nothing was written."""
    server = serve(busy_after=timedelta(seconds=0.4))
    other = sqlite_module().connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(20) as pool:
        first = pool.submit(_ask, server, "POST", "/webhooks/crm", _event(0), HEADERS)
        time.sleep(0.1)  # its commit is under way now: the others stand behind it
        asked = [pool.submit(_ask, server, "POST", "/webhooks/crm", _event(number), HEADERS) for number in range(1, 15)]
        assert 200 == _ask(server, "GET", "/healthz")[0].status
        answers = [future.result() for future in (first, *asked)]
    other.execute("ROLLBACK")
    other.close()

    assert {(503, "10")} == {(answer.status, answer.getheader("Retry-After")) for answer, _ in answers}
    assert (200, 1) == (
        (again := _ask(server, "POST", "/webhooks/crm", _event(99), HEADERS))[0].status,
        json.loads(again[1])["events"],
    )
    assert {"id:e99"} >= {event.dedupe_key for event in ledger.queries.list_events()} - {"id:e0"}


def test_a_request_that_was_told_to_come_again_is_let_go(file, serve) -> None:
    """Nothing of it stays in memory until somebody looks for circles."""
    server = serve(busy_after=timedelta(seconds=0.2))
    other = sqlite_module().connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    gc.collect()
    gc.disable()
    try:
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(_ask, server, "POST", "/webhooks/crm", _event(number), HEADERS) for number in range(4)]
            assert {503} == {future.result()[0].status for future in asked}
        other.execute("ROLLBACK")
        assert 200 == _ask(server, "POST", "/webhooks/crm", _event(9), HEADERS)[0].status  # those before have ended
        assert [] == [each for each in gc.get_objects() if isinstance(each, Recording)]
    finally:
        gc.enable()
        other.close()


def test_a_stop_finishes_what_was_begun(file, serve) -> None:
    """Who waits for the commit when the server stops is answered; who comes later finds nobody."""
    server = serve()
    other = sqlite_module().connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(_ask, server, "POST", "/webhooks/crm", BODY, HEADERS)
        time.sleep(0.2)
        server.close()
        time.sleep(0.2)
        other.execute("ROLLBACK")
        assert 200 == asked.result()[0].status
    other.close()

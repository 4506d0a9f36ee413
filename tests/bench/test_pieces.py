"""The load generator and the sink, as the processes they are, and how both read HTTP."""

import sys
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import processes
from bench.events import body, event_id, requests
from bench.generator import post, read_answer
from bench.measure import Arrivals, drive, gauge, start_sink
from bench.sink import CREATED, VAMBE_CREATED, split_request
from bench.systems import free_port

RUN = "0a1b2c"
REQUESTS = requests(RUN, 3, 8080)


@pytest.fixture
def sink(tmp_path):
    """Give the port of a running sink and what arrives there."""
    started, port = start_sink(tmp_path)
    yield port, Arrivals(tmp_path / "arrivals.txt", 2)
    processes.end([started])


@pytest.mark.parametrize("how", ["--connections=4", "--rate=200"])
def test_what_is_sent_arrives_once(tmp_path, sink, how):
    """In both loops every request is answered, every answer is noted, and each event arrives exactly once."""
    port, arrivals = sink
    driven = drive(port, RUN, 0.2, [how], tmp_path / "load.json")
    sent = {event_id(RUN, number) for number, _, _, _ in driven.answers}
    assert {201} == {status for _, status, _, _ in driven.answers}
    assert sent == driven.accepted() == arrivals.wait_for(sent, 5)
    assert Counter(dict.fromkeys(sent, 1)) == arrivals.times
    assert all(sent_at <= answered_at for _, _, sent_at, answered_at in driven.answers)


def test_a_request_without_an_answer_is_no_success(tmp_path, sink):
    """Where nothing listens every request is noted with status 0."""
    port, _ = sink
    assert 201 == post(port, REQUESTS[0])
    nobody = free_port()
    assert 0 == post(nobody, REQUESTS[0])
    driven = drive(nobody, RUN, 0.1, ["--rate=50"], tmp_path / "load.json")
    assert [0] * 5 == [status for _, status, _, _ in driven.answers]
    assert set() == driven.accepted()


def test_the_gauge_says_what_both_can_do(tmp_path):
    """Driven against each other, generator and sink give figures for each."""
    found = gauge(tmp_path / "gauge", 0.1, 4)
    assert {"requests_per_s", "generator_us", "sink_us"} == set(found)
    assert found["requests_per_s"] > 0


@given(st.data())
def test_a_request_is_read_however_it_is_cut(data):
    """Any number of requests, cut anywhere, gives the same bodies, and nothing before a request is whole."""
    whole = b"".join(REQUESTS)
    cut = data.draw(st.integers(0, len(whole)))
    bodies, rest = [], b""
    for part in (whole[:cut], whole[cut:]):
        rest += part
        while (found := split_request(rest)) is not None:
            line, content, rest = found
            assert b"post /webhooks/crm http/1.1" == line
            bodies.append(content)
    assert REQUESTS[0].endswith(bodies[0])
    assert [request.split(b"\r\n\r\n", 1)[1] for request in REQUESTS] == bodies
    assert b"" == rest


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (CREATED, (201, True)),
        (VAMBE_CREATED, (201, True)),
        (b"HTTP/1.1 503 Busy\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}", (503, False)),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", (200, True)),
    ],
)
def test_an_answer_counts_when_it_is_whole(answer, expected):
    """The status and whether the connection stays are known at the last byte, not before."""
    assert [None] * len(answer) == [read_answer(answer[:length]) for length in range(len(answer))]
    assert expected == read_answer(answer)


def test_bodies_are_distinct_json_of_the_same_size():
    """Two events of a run differ, and one is as long as the other, so that all cost the same."""
    first, second = body(RUN, 100_001), body(RUN, 200_002)
    assert first != second
    assert len(first) == len(second)


def test_only_what_was_started_is_ended(tmp_path):
    """A process that ends by itself and one that must be killed are both gone, with their children."""
    script = "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    script += (
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); print(1, flush=True); time.sleep(60)"
    )
    log = tmp_path / "log.txt"
    stubborn = processes.start("x", [sys.executable, "-c", script], folder=tmp_path, environment={}, log=log)
    brief = processes.start("y", [sys.executable, "-c", "pass"], folder=tmp_path, environment={}, log=log)
    give_up_at = time.monotonic() + 10
    while not log.read_text() and time.monotonic() < give_up_at:
        time.sleep(0.01)
    assert {"x"} == set(processes.cpu_seconds([stubborn], lambda _: None))
    assert {"x"} == set(processes.memory_mb([stubborn], lambda _: None))
    processes.end([stubborn, brief], patience_seconds=0.2)
    assert {} == processes.cpu_seconds([stubborn, brief], lambda _: None)

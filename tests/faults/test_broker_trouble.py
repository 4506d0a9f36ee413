"""What a broker does short of dying: it hangs, is full, holds junk, and forgets what a dying worker had taken."""

import contextlib
import os
import signal
import time
import uuid

import pytest
import redis

from console.local_broker import socket_path
from tests.flow.processes import command_of, processes_of
from worker.broker import QUEUES


def process(line, *words):
    """Return the process of a line whose command line holds one of these words."""
    return next(pid for pid in processes_of(line.home) if any(word in b" ".join(command_of(pid)) for word in words))


@pytest.fixture
def broker(line):
    """Give a client of the line's own broker."""
    with redis.Redis(unix_socket_path=str(socket_path(line.home)), socket_timeout=5) as client:
        yield client


def post(line, number):
    """Post so many events and return the titles of their tasks; every one is accepted soon."""
    names = [uuid.uuid4().hex for _ in range(number)]
    for name in names:
        assert line.post(line.event("deal.created", name=name), patience_seconds=3).is_success
    return {f"Person {name}" for name in names}


def arrived(line, titles, seconds=40):
    """Wait until these have arrived, and see that none has twice."""
    assert line.until(lambda: titles <= {task["title"] for task in line.sandbox.tasks("vambe")}, seconds)
    made = [task["title"] for task in line.sandbox.tasks("vambe")]
    return len(made) == len(set(made))


def test_a_broker_that_hangs_delays_no_sender(line):
    """While the broker is frozen every webhook is accepted soon; when it wakes up all work is done (experiment 7)."""
    frozen = process(line, b"unixsocket")
    os.kill(frozen, signal.SIGSTOP)
    try:
        titles = post(line, 20)
        time.sleep(2)  # the broker's silence itself
        titles |= post(line, 5)
    finally:
        os.kill(frozen, signal.SIGCONT)
    assert arrived(line, titles)


def test_a_broker_that_is_full_delays_no_sender(line, broker):
    """While the broker takes nothing every webhook is accepted; with room again all work is done (experiment 8)."""
    before = broker.config_get("maxmemory")["maxmemory"]
    broker.config_set("maxmemory", "1")
    try:
        titles = post(line, 20)
    finally:
        broker.config_set("maxmemory", before)
    assert arrived(line, titles)


def test_junk_in_the_queues_stops_nobody(line, broker):
    """What is no message, put into every queue by somebody else, is thrown away; the work after it is done (experiment 19)."""
    for queue in QUEUES:
        for junk in (b"junk", b"{}", b'{"body": 7}', b"\xff\xfe", b"[1, 2"):
            broker.lpush(queue, junk)
    assert arrived(line, post(line, 5), 60)


def test_a_message_that_a_dying_worker_had_taken_is_sent_again(line):
    """Frozen, given a message and killed: what the broker had handed to the worker is done by the next one (experiment 10)."""
    for _ in range(2):
        worker = process(line, b"console.cli worker")
        os.kill(worker, signal.SIGSTOP)
        titles = post(line, 3)
        time.sleep(0.2)  # the broker hands the message to the connection of the frozen worker
        os.kill(worker, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGCONT)
        assert arrived(line, titles)

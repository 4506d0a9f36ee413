"""The processes that share the public port, as `leadwire up` starts them."""

import fcntl
import os
import signal
import threading
import time
from pathlib import Path

import httpx
import pytest


def _ingress_processes(line):
    """Return the process ids of a line's ingress, the first one first."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
            environment = (folder / "environ").read_bytes()
        except OSError:
            continue
        if b"ingress" in command and f"LEADWIRE_HOME={line.home}".encode() in environment:
            found.append(int(folder.name))
    return sorted(found)


@pytest.fixture(autouse=True)
def _two_processes(own_line):
    own_line.settings["LEADWIRE_INGRESS_PROCESSES"] = "2"


def _answers(line):
    try:
        return httpx.get(f"{line.url}/healthz", timeout=2, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def test_both_processes_take_webhooks_and_end_together(own_line):
    """Each connection is served by one of the two; one that dies takes the other along, and both are started afresh."""
    own_line.start()
    first, second = before = _ingress_processes(own_line)
    for _ in range(20):
        assert own_line.post(own_line.event()).status_code == 200
    os.kill(second, signal.SIGKILL)
    assert own_line.until(lambda: len(_ingress_processes(own_line)) == 2 and first not in _ingress_processes(own_line))
    assert own_line.until(lambda: _answers(own_line))
    assert not set(before) & set(_ingress_processes(own_line))
    assert (
        20 == len(list(own_line.until(lambda: (tasks := list(own_line.tasks())) and len(tasks) >= 60 and tasks))) // 3
    )


def test_the_second_ends_with_the_first(own_line):
    """The first process killed with SIGKILL leaves no other behind that would go on answering."""
    own_line.start()
    first, second = _ingress_processes(own_line)
    os.kill(first, signal.SIGKILL)
    assert own_line.until(lambda: second not in _ingress_processes(own_line))
    assert own_line.until(lambda: _answers(own_line) and len(_ingress_processes(own_line)) == 2)


def test_one_process_is_what_nobody_asked_more_than(own_line):
    """Without LEADWIRE_INGRESS_PROCESSES there is one process."""
    del own_line.settings["LEADWIRE_INGRESS_PROCESSES"]
    own_line.start()
    assert 1 == len(_ingress_processes(own_line))


def test_requests_under_way_are_answered_at_a_stop(own_line):
    """SIGTERM lets both processes finish what they have begun, here eight requests that wait for their turn to write."""
    own_line.start()
    outcomes: list[object] = []

    def post():
        try:
            outcomes.append(own_line.post(own_line.event()).status_code)
        except httpx.HTTPError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=post) for _ in range(8)]
    with (own_line.home / "ledger.sqlite3-turn").open("rb") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        for thread in threads:
            thread.start()
        time.sleep(0.6)  # until all are taken; the ingress waits for two seconds
        own_line.process.terminate()
        time.sleep(0.4)
        fcntl.flock(turn, fcntl.LOCK_UN)
    for thread in threads:
        thread.join(20)
    assert [200] * 8 == outcomes
    assert 0 == own_line.process.wait(40)

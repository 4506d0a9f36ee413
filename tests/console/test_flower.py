"""What Flower remembers: for how long, of whom, and across which accidents."""

import pickle
import time
from pathlib import Path

import pytest
from celery import Celery
from tornado.ioloop import IOLoop

from console.flower import FlowerState, PersistentEvents


def told(board, type_, uuid, hostname="w@x", pid=1, **fields):
    """Have a board hear an event."""
    now = time.time()
    event = {"type": type_, "uuid": uuid, "hostname": hostname, "pid": pid, "timestamp": now, "local_received": now}
    board.event(event | {"clock": 1} | fields)


def ended(board, uuid, type_="task-succeeded", **fields):
    """Have a board hear of a touch from its reception to its end."""
    told(board, "task-received", uuid, name="leadwire.make_call", **fields)
    told(board, type_, uuid, result="delivered 201", **fields)


def heartbeat(board, hostname="w@x", pid=1, **fields):
    """Have a board hear that a worker lives."""
    now = time.time()
    event = {"type": "worker-heartbeat", "hostname": hostname, "pid": pid, "timestamp": now, "local_received": now}
    board.event(event | {"freq": 2.0, "clock": 1, "active": 0, "processed": 0} | fields)


def test_failures_outlive_successes():
    """However many touches succeed afterwards, what failed stays, and is found."""
    board = FlowerState(max_tasks_in_memory=10)
    failed = {f"tk_failed_{number}" for number in range(5)}
    for uuid in failed:
        ended(board, uuid, "task-failed")
    for number in range(100):
        ended(board, f"tk_{number}")
    assert failed == board.search_engine.matching_ids("state:FAILURE")
    assert 10 == len(board.tasks)


def test_a_flood_of_failures_leaves_room():
    """When more than half of it has failed, the oldest goes, whatever it is."""
    board = FlowerState(max_tasks_in_memory=10)
    for number in range(100):
        ended(board, f"tk_{number}", "task-failed")
    ended(board, "tk_fine")
    assert 10 == len(board.tasks)
    assert {"tk_fine", "tk_99"} <= set(board.tasks.data)


def test_what_is_forgotten_is_not_found():
    """The search knows as many rows as the memory."""
    board = FlowerState(max_tasks_in_memory=10)
    for number in range(50):
        ended(board, f"tk_{number}", "task-failed" if number % 3 else "task-succeeded")
    assert set(board.tasks.data) == set(board.search_engine.documents)
    assert 10 == len(board.tasks)


def test_rows_of_dead_workers_are_ended():
    """A message that went down with its worker is REVOKED; touches, and messages of workers that live, are left alone."""
    board = FlowerState()
    heartbeat(board)
    for uuid, pid in (("of-the-living", 1), ("of-the-dead", 99), ("tk_of-the-dead", 99)):
        told(board, "task-received", uuid, name="leadwire.process_event", pid=pid)
        told(board, "task-started", uuid, pid=pid)
    board.end_orphans()
    states = {uuid: row.state for uuid, row in board.tasks.data.items()}
    assert {"of-the-living": "STARTED", "of-the-dead": "REVOKED", "tk_of-the-dead": "STARTED"} == states
    assert "its worker ended" in board.tasks.data["of-the-dead"].result
    assert {"of-the-dead"} == board.search_engine.matching_ids("state:REVOKED")


@pytest.fixture
def memory(tmp_path):
    """Return a function that makes a memory of the same file again and again."""
    app = Celery("nothing", broker="memory://", set_as_current=False)
    loop = IOLoop(make_current=False)
    yield lambda: PersistentEvents(app, loop, tmp_path / "memory")
    loop.close(all_fds=True)


def test_what_was_saved_is_there_again(memory):
    """Rows, their search, and the counters of workers."""
    first = memory()
    ended(first.state, "tk_1", "task-failed")
    first.save_state()
    second = memory()
    assert "FAILURE" == second.state.tasks.data["tk_1"].state
    assert {"tk_1"} == second.state.search_engine.matching_ids("tk_1")
    assert 1 == second.state.counter["w@x"]["task-failed"]
    ended(second.state, "tk_1")
    assert "SUCCESS" == second.state.tasks.data["tk_1"].state


def test_nothing_new_is_not_saved(memory, tmp_path):
    """An idle Flower leaves the disk alone."""
    kept = memory()
    ended(kept.state, "tk_1")
    kept.save_state()
    saved = (tmp_path / "memory").stat().st_mtime_ns
    kept.save_state()
    assert saved == (tmp_path / "memory").stat().st_mtime_ns


@pytest.mark.parametrize("damage", ["empty", "cut", "garbage", "another thing", "a class that is gone"])
def test_a_damaged_file_is_put_aside(memory, tmp_path, damage):
    """Whatever stands in the file, Flower starts, with an empty memory, and saves again."""
    kept = memory()
    ended(kept.state, "tk_1")
    kept.save_state()
    file = tmp_path / "memory"
    whole = file.read_bytes()
    file.write_bytes(
        {
            "empty": b"",
            "cut": whole[: len(whole) // 2],
            "garbage": b"\x80\x05garbage" * 100,
            "another thing": pickle.dumps(["no", "memory", "at all"]),
            "a class that is gone": whole.replace(b"console.flower", b"console.flowre"),
        }[damage]
    )
    again = memory()
    assert 0 == len(again.state.tasks)
    assert (tmp_path / "memory.corrupt").exists()
    ended(again.state, "tk_2")
    again.save_state()
    assert ["tk_2"] == list(memory().state.tasks.data)


def test_a_full_disk_stops_nothing(memory, tmp_path):
    """What cannot be saved is said, and Flower goes on."""
    kept = memory()
    ended(kept.state, "tk_1")
    Path(tmp_path / "memory.new").mkdir()
    kept.save_state()
    assert not (tmp_path / "memory").exists()

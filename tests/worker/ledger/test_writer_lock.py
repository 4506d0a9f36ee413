"""The order in which processes write."""

import subprocess
import sys
import threading
import time

from worker.ledger.writer import WriterFileLock

HOLDER = """
import sys, time
from pathlib import Path
from worker.ledger.writer import WriterFileLock
with WriterFileLock(Path(sys.argv[1])).held():
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_turn_is_free_when_its_holder_dies(tmp_path):
    """A process that is killed while it holds the turn leaves it to the next one at once."""
    file = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(file)], stdout=subprocess.PIPE)
    assert b"held" in holder.stdout.readline()
    holder.kill()
    lock = WriterFileLock(file)
    with lock.held():
        assert holder.wait(5)
    lock.close()
    holder.stdout.close()


def test_one_holds_the_turn_at_a_time(tmp_path):
    """Four processes that count in turns never overlap: the last count is the number of turns."""
    script = """
import sys
from pathlib import Path
from worker.ledger.writer import WriterFileLock
file = Path(sys.argv[1])
lock = WriterFileLock(file)
for _ in range(100):
    with lock.held():
        file.write_text(str(int(file.read_text()) + 1))
"""
    file = tmp_path / "count"
    file.write_text("0")
    writers = [subprocess.Popen([sys.executable, "-c", script, str(file)]) for _ in range(4)]
    assert [0] * 4 == [writer.wait(30) for writer in writers]
    assert "400" == file.read_text()


def test_threads_give_way_while_their_process_has_the_turn(tmp_path):
    """Who gives way waits for the end of the turn, for a bounded while, and not at all when there is no turn."""
    lock = WriterFileLock(tmp_path / "lock")
    lock.yield_to_writer()
    order = []

    def compute():
        lock.yield_to_writer()
        order.append("computed")

    with lock.held():
        thread = threading.Thread(target=compute)
        thread.start()
        time.sleep(WriterFileLock.YIELD_SECONDS / 5)
        order.append("written")
    thread.join()
    assert ["written", "computed"] == order

    with lock.held():
        begun_seconds = time.monotonic()
        lock.yield_to_writer()
        assert time.monotonic() - begun_seconds >= WriterFileLock.YIELD_SECONDS * 0.9
    lock.close()

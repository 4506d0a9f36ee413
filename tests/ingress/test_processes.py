"""A child that cannot outlive its parent."""

import os
import signal
import subprocess
import sys
import time

import pytest

from ingress.processes import dies_with_me

PARENT = """
import subprocess, sys, time
from ingress.processes import dies_with_me
child = subprocess.Popen(dies_with_me([sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]),
                         stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


def is_alive(pid):
    """Say whether a process runs; a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help exists on Linux only")
def test_killing_the_parent_ends_the_child():
    """SIGKILL to the parent leaves no child behind."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.getcwd()}
    )
    child_pid = int(parent.stdout.readline())
    assert is_alive(child_pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    give_up_at = time.monotonic() + 5
    while is_alive(child_pid) and time.monotonic() < give_up_at:
        time.sleep(0.02)
    assert not is_alive(child_pid)


def test_the_command_runs_as_it_is():
    """Arguments, exit code and output of the command come through unchanged."""
    done = subprocess.run(
        dies_with_me([sys.executable, "-c", "import sys; print(sys.argv[1]); sys.exit(7)", "a b"]),
        capture_output=True,
        check=False,
        text=True,
    )
    assert (7, "a b\n") == (done.returncode, done.stdout)

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import crash_points

ROOT = Path(__file__).parents[2]


def crashes(stride, *more):
    """Crash in a process of its own, which forks and so must have no threads; returns what it says."""
    command = [sys.executable, "-m", "tests.faults.crash_points", "--stride", str(stride), *more]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert 0 == done.returncode, done.stderr[-3000:]
    return done.stdout


@pytest.mark.skipif(crash_points.STRACE is None, reason="strace is not installed: statements are the crash points then")
def test_a_crash_at_a_write_leaves_whole_steps():
    """Killed at every twelfth of its writes the ledger holds whole steps, every acknowledged one, and goes on from there."""
    assert int(crashes(12).split()[0]) > 25


def test_a_crash_at_a_statement_leaves_whole_steps():
    """Likewise at every seventh statement, which needs nothing installed."""
    assert int(crashes(7, "--statements").split()[0]) > 20

"""Kill a process at its n-th write to the ledger, for every n, and see that nothing else happened than whole steps.

`python -m tests.faults.crash_points` does so for every n until the process ends by itself; `--stride 10` for every tenth.
Where strace is installed a write is a system call (a page or a frame written, a file synced or cut); elsewhere it is a
statement of SQLite. A killed process leaves in its files what it had written, so every such moment is a crash.

The oracle is the line itself (ledger_line.py): an undisturbed run says what the ledger holds after each step. After a crash
it must hold exactly what it held after the last acknowledged step, or after the one behind that, in every row; then the line
goes on from there and must end where the undisturbed one did.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import closing, suppress
from itertools import pairwise
from pathlib import Path

from sqlalchemy import Engine, event

from tests.faults import ledger_line, old_ledgers
from worker.ledger.database import sqlite_module

#: The calls by which SQLite changes what a file holds, or makes sure that it stays.
CALLS = "pwrite64,fdatasync,fsync,ftruncate,unlink"
STRACE = shutil.which("strace")
#: In a process that is traced no step takes longer.
PATIENCE_SECONDS = 30


class Points:
    """The crash points of the line, one ledger for each; `traced` chooses how a process is killed."""

    def __init__(self, folder, *, traced=STRACE is not None):
        self.folder = Path(folder)
        self.traced = traced
        made = self._copy("made", None)
        old_ledgers.make(self._url(made), "0001")
        #: Ledgers to begin with: before the migration, and behind it.
        self._homes = [made, self.folder / "migrated"]
        self.after = self._undisturbed()

    def _copy(self, name, source):
        home = self.folder / name
        if source is None:
            home.mkdir()
        else:
            shutil.copytree(source, home)
        return home

    def _url(self, home):
        return f"sqlite:///{home / 'ledger.sqlite3'}"

    def _held(self, home):
        """Return what a ledger holds, after a look at its health."""
        with closing(sqlite_module().connect(str(home / "ledger.sqlite3"), isolation_level=None)) as connection:
            assert [("ok",)] == connection.execute("PRAGMA integrity_check").fetchall()
            assert [] == connection.execute("PRAGMA foreign_key_check").fetchall()
            return old_ledgers.dump(connection)

    def _undisturbed(self):
        """Return what the ledger holds before the first step and after each."""
        home = self._copy("undisturbed", self._homes[0])
        held = [self._held(home)]

        def done(step):
            held.append(self._held(home))
            if step == 0:
                self._copy("migrated", home)

        ledger_line.run(self._url(home), done=done)
        for number, (before, after) in enumerate(pairwise(held)):
            # The last step, `writable`, leaves nothing behind on purpose.
            assert before != after or number == len(held) - 2, f"step {number} of the line changes nothing"
        return held

    def crash(self, number, *, migrated=True):
        """Kill the line at its n-th write and judge what is left; returns whether it was killed where it should be.

        The migration writes in another thread than all behind it, and strace counts the writes of each thread: there are
        points before the ledger is migrated and points behind, and a line killed in the other part says False too.
        """
        home = self._copy(f"crash-{number}", self._homes[migrated])
        acknowledged, killed = self._run(home, number, first=int(migrated))
        held = self._held(home)
        # The step after the last acknowledged one may stand too, wholly.
        fitting = [
            step for step in (acknowledged + 1, acknowledged) if step < len(self.after) and held == self.after[step]
        ]
        assert fitting, (
            f"killed at write {number} after step {acknowledged}: {_difference(held, self.after[acknowledged])}"
        )
        ledger_line.run(self._url(home), first=fitting[0])
        assert self.after[-1] == self._held(home), f"killed at write {number}: the line does not end as it should"
        shutil.rmtree(home)
        return killed and (migrated or acknowledged == 0)

    def _run(self, home, number, first):
        """Run the line from a step on in a process of its own; returns how many steps are done and whether it was killed."""
        told, tell = os.pipe()
        go, let_go = os.pipe()
        child = os.fork()
        if child == 0:
            self._be_killed(home, number, first, tell, go)
        os.close(tell)
        os.close(go)
        tracer = self._trace(child, home, number) if self.traced else None
        os.write(let_go, b".")
        with open(told, "rb") as lines:
            acknowledged = len(lines.read())
        _, status = os.waitpid(child, 0)
        os.close(let_go)
        if tracer is not None:
            tracer.communicate()
        killed = os.WIFSIGNALED(status)
        assert killed or os.WEXITSTATUS(status) == 0, f"the line failed by itself at write {number}"
        assert not killed or os.WTERMSIG(status) == signal.SIGKILL
        return first + acknowledged, killed

    def _be_killed(self, home, number, first, tell, go):
        """Be the process: never returns."""
        code = 1
        try:
            if not self.traced:
                _die_at_statement(number)
            os.read(go, 1)
            ledger_line.run(self._url(home), first, done=lambda _: os.write(tell, b"."))
            code = 0
        except BaseException as error:  # noqa: BLE001 - a copy of the tests must not go on as such
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
        finally:
            os._exit(code)

    def _trace(self, child, home, number):
        """Have strace kill the process at its n-th write to the ledger's files; returns strace once it watches."""
        files = [f"-P{home / 'ledger.sqlite3'}{end}" for end in ("", "-wal", "-journal")]
        command = [STRACE, "-f", "-qq", "-o", "/dev/null", *files, "-e", f"trace={CALLS}", "-p", str(child)]
        tracer = subprocess.Popen([*command, "-e", f"inject={CALLS}:signal=KILL:when={number}"])
        give_up_at = time.monotonic() + PATIENCE_SECONDS
        while b"TracerPid:\t0\n" in Path(f"/proc/{child}/status").read_bytes():
            assert tracer.poll() is None, "strace cannot watch a process here"
            assert time.monotonic() < give_up_at, "strace does not watch the process"
            time.sleep(0.002)
        return tracer


def _die_at_statement(number):
    """Have this process kill itself when SQLite begins its n-th statement that may write."""
    left = [number]

    def begins(statement):
        if not statement.startswith(("SELECT", "PRAGMA", "--")):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    event.listen(Engine, "connect", lambda connection, _: connection.set_trace_callback(begins))


def _difference(held, expected):
    """Say in which tables two dumps differ."""
    names = held.keys() | expected.keys()
    return ", ".join(sorted(name for name in names if held.get(name) != expected.get(name)))


def every(folder, *, first=1, stride=1, traced=STRACE is not None):
    """Crash at every `stride`-th write until the line ends by itself; returns how many crashes that was."""
    points = Points(folder, traced=traced)
    crashes = 0
    for migrated in (False, True):
        number = first
        while points.crash(number, migrated=migrated):
            number += stride
            crashes += 1
    return crashes


def main(arguments=None):
    """Run it and say what was done."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.crash_points", description=__doc__)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--statements", action="store_true", help="at statements, also where strace is installed")
    asked = parser.parse_args(arguments)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        traced = STRACE is not None and not asked.statements
        crashes = every(folder, first=asked.first, stride=asked.stride, traced=traced)
    kind = "writes" if traced else "statements"
    sys.stdout.write(
        f"{crashes} crashes at {kind}, {len(ledger_line.STEPS)} steps: every acknowledged step was there, every other one "
        f"wholly or not at all, and the line went on to its end; {time.monotonic() - began:.1f} s\n"
    )


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()

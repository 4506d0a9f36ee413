"""Processes that a run starts, disturbs and ends; never any other. Each has a process group of its own, children included.

To be used from the main thread: the kernel ends a child with the thread that started it.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ingress.processes import dies_with_me

#: A limit on file sizes comes as a signal; ignored, as it is from here on, it comes as a failing write: a disk that is full.
_IGNORING = ["/bin/sh", "-c", 'trap "" XFSZ; exec "$@"', "sh"]
#: Any file is larger than this already, or is to become so.
FULL_BYTES = 1


class Process:
    """One process of a house, by name; `held` while it is meant to be down."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        self.name, self.held = name, False
        self._command = dies_with_me([*_IGNORING, *command])
        self._environment, self._folder = dict(environment), folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; what it says goes to its log."""
        with (self._folder / f"{self.name}.log").open("ab") as output:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.held = False

    @property
    def pid(self) -> int:
        """Its process id, that of the one that ended too."""
        assert self._process is not None
        return self._process.pid

    def is_alive(self) -> bool:
        """Whether it runs, be it frozen."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """Kill it and its children with SIGKILL."""
        self.signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def signal(self, number: signal.Signals, *, children: bool = True) -> None:
        """Send a signal to it, and to its children unless they are its own affair."""
        if self._process is not None and (self.is_alive() or number == signal.SIGKILL):
            with suppress(ProcessLookupError):
                (os.killpg if children else os.kill)(self._process.pid, number)

    def fill_disk(self, *, full: bool) -> None:
        """Let no file of its own grow any more, or again."""
        for pid in self.group():
            with suppress(OSError, ProcessLookupError):
                _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (FULL_BYTES if full else hard, hard))

    def group(self) -> list[int]:
        """Return the process ids of it and its children."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    words = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                    if self._process is not None and int(words[2]) == self._process.pid:
                        found.append(int(entry.name))
        return found

"""The processes of a line, found by what the system knows of them."""

import contextlib
import os
from pathlib import Path


def processes_of(home: Path) -> list[int]:
    """Return the processes of this data folder: it is in their environment, or (the broker) in their title."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                environment = (entry / "environ").read_bytes().split(b"\0")
                if f"LEADWIRE_HOME={home}".encode() in environment or bytes(home) in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


def command_of(pid: int) -> list[bytes]:
    """Return a process's command line."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")

"""Starting, reading and ending processes: only those started here, and what they started, are ever touched.

CPU and memory are read from /proc, so this needs Linux. The CPU time of a child that has ended is in its parent's figures.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ingress.processes import dies_with_me

_TICKS_A_SECOND: Final = os.sysconf("SC_CLK_TCK")
_PROC: Final = Path("/proc")
_PSS: Final = re.compile(rb"^Pss:\s+(\d+) kB", re.MULTILINE)
#: How long processes that were asked to end may take; `leadwire up` gives running calls 20 seconds.
END_SECONDS: Final = 30.0

#: Says which role a command line plays, or None for that of its parent.
RoleOf = Callable[[Sequence[str]], str | None]


@dataclass(frozen=True, slots=True)
class Started:
    """A process that was started here, and the role that it and its children play."""

    role: str
    process: subprocess.Popen[bytes]


@dataclass(frozen=True, slots=True)
class _Seen:
    """A process as /proc shows it; `born` tells it from a later one with the same number."""

    pid: int
    parent: int
    born: int
    cpu_seconds: float


def start(role: str, command: Sequence[str], *, folder: Path, environment: Mapping[str, str], log: Path) -> Started:
    """Start a command that dies when this process does; what it says goes to `log`."""
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603 - our own commands
            dies_with_me(command),
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the bench alone, which ends them in order
        )
    return Started(role, process)


def end(started: Sequence[Started], patience_seconds: float = END_SECONDS) -> None:
    """Ask the newest first to end, each before the one it depends on, and kill what is left of them or their children."""
    family = _family(started)
    give_up_at = time.monotonic() + patience_seconds
    for one in reversed(started):
        one.process.terminate()
        try:
            one.process.wait(max(0.1, give_up_at - time.monotonic()))
        except subprocess.TimeoutExpired:
            one.process.kill()
            one.process.wait()
    for seen in family:
        now = _look(seen.pid)
        if now is not None and now.born == seen.born:
            with suppress(OSError):
                os.kill(seen.pid, signal.SIGKILL)


def cpu_seconds(started: Sequence[Started], role_of: RoleOf) -> dict[str, float]:
    """Return the CPU seconds, user and system, that each role has used so far."""
    used: dict[str, float] = defaultdict(float)
    for seen, role in _roles(started, role_of):
        used[role] += seen.cpu_seconds
    return dict(used)


def memory_mb(started: Sequence[Started], role_of: RoleOf) -> dict[str, float]:
    """Return the memory of each role in MiB: proportional, so that pages shared by several processes count once."""
    used: dict[str, float] = defaultdict(float)
    for seen, role in _roles(started, role_of):
        with suppress(OSError):
            found = _PSS.search((_PROC / str(seen.pid) / "smaps_rollup").read_bytes())
            used[role] += int(found[1]) / 1024 if found else 0
    return dict(used)


def machine_seconds() -> float:
    """Return the CPU seconds that this machine has been busy."""
    first = (_PROC / "stat").read_text().split("\n", 1)[0]
    user, nice, system, _idle, _waiting, *others = (int(word) for word in first.split()[1:9])
    return (user + nice + system + sum(others)) / _TICKS_A_SECOND


def own_seconds() -> float:
    """Return the CPU seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])


def _roles(started: Sequence[Started], role_of: RoleOf) -> list[tuple[_Seen, str]]:
    roles = {one.process.pid: one.role for one in started}
    found = []
    for seen in _family(started):
        role = role_of(_command(seen.pid)) or roles.get(seen.pid) or roles[seen.parent]
        roles[seen.pid] = role
        found.append((seen, role))
    return found


def _family(started: Sequence[Started]) -> list[_Seen]:
    """Return these processes and all below them, parents before their children."""
    children: dict[int, list[_Seen]] = defaultdict(list)
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (seen := _look(int(entry.name))) is not None:
            children[seen.parent].append(seen)
    family = [seen for one in started if (seen := _look(one.process.pid)) is not None]
    for seen in family:  # grows while it is walked
        family.extend(children[seen.pid])
    return family


def _look(pid: int) -> _Seen | None:
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    words = text.rsplit(")", 1)[1].split()
    ticks = sum(int(word) for word in words[11:15])
    return _Seen(pid, parent=int(words[1]), born=int(words[19]), cpu_seconds=ticks / _TICKS_A_SECOND)


def _command(pid: int) -> list[str]:
    try:
        return (_PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []

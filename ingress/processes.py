"""Several ingress processes behind one public port, and child processes that end with their parent.

One Python process uses at most one core. So the first process binds the port and forks the others before it has threads or
connections; the kernel gives each connection to whichever process accepts it. All of them end together: the others when the
first ends for any reason, and the first when one of the others ends, so that a supervisor of the first restarts them all.

On Linux the kernel sends SIGKILL to a child when its parent dies (prctl(2), PR_SET_PDEATHSIG, which survives execve); the child
requests this itself. Elsewhere the children of a killed parent keep running.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

log = logging.getLogger(__name__)

#: How long the others may take to finish their requests; less than those who stop us give.
ENDING_SECONDS: Final = 15.0
PR_SET_PDEATHSIG: Final = 1

#: Run by the child before it becomes the command: nothing runs between fork and exec in a process that has threads.
_LAUNCH: Final = f"""
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl({PR_SET_PDEATHSIG}, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(slots=True)
class ProcessGroup:
    """The processes that share a port, as seen by one of them; `others` are the process ids that it forked."""

    is_first: bool
    others: tuple[int, ...] = ()
    _ending: bool = field(default=False)
    _waiting: list[threading.Thread] = field(default_factory=list)

    def watch(self) -> None:
        """Send this process SIGTERM when one of the others ends by itself."""
        for pid in self.others:
            thread = threading.Thread(target=self._wait_for, args=(pid,), name=f"wait-for-{pid}", daemon=True)
            self._waiting.append(thread)
            thread.start()

    def join(self) -> None:
        """Wait for the others to end, for a limited time; those still running are killed when this process ends."""
        give_up_at = time.monotonic() + ENDING_SECONDS
        for thread in self._waiting:
            thread.join(max(0.0, give_up_at - time.monotonic()))

    def end(self) -> None:
        """Tell the others to end; they finish the requests they have begun."""
        if self._ending:
            return
        self._ending = True
        for pid in self.others:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def _wait_for(self, pid: int) -> None:
        with suppress(ChildProcessError):
            _, status = os.waitpid(pid, 0)
            if not self._ending:
                code = os.waitstatus_to_exitcode(status)
                if code:
                    log.error("a process of the ingress ended with %s; all of them end, to be started afresh", code)
                os.kill(os.getpid(), signal.SIGTERM)


def fork(processes: int) -> ProcessGroup:
    """Fork into this many processes; returns in each. Call it before there are threads, connections or signal handlers."""
    gc.collect()
    gc.freeze()  # what is there now stays shared between the processes: no collection writes to it
    others = []
    for _ in range(processes - 1):
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _die_with_parent(parent)
            return ProcessGroup(is_first=False)
        others.append(pid)
    return ProcessGroup(is_first=True, others=tuple(others))


def bind(host: str, port: int) -> Sequence[socket.socket]:
    """Return one listening socket for each address of a host, all on one port; 0 takes a free one. OSError when it is in use."""
    bound: list[socket.socket] = []
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, kind, protocol, _, address in dict.fromkeys(found):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            taken = bound[0].getsockname()[1] if bound else port
            sock.bind((address[0], taken, *address[2:]))
        except OSError:
            sock.close()
            for one in bound:
                one.close()
            raise
        bound.append(sock)
    return bound


def dies_with_me(command: Sequence[str]) -> list[str]:
    """Return a command line that runs `command` (absolute program and arguments) and ends when this process ends.

    Start it from the main thread: the kernel's parent is the thread that forked.
    """
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), *command]


def _die_with_parent(parent: int) -> None:
    """Bind this forked process to its parent, given by its process id; end at once when that is gone already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)

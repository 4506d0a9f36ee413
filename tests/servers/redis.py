"""A private Redis, or a server that speaks as it does, on a free port of 127.0.0.1, with a password and nothing on disk."""

import subprocess
import time
from pathlib import Path

import redis

from ingress.processes import dies_with_me
from tests.servers import certificates
from tests.servers.needs import free_ports, program

PASSWORD = "fake/pass:word"
#: How the password stands in a URL.
QUOTED = "fake%2Fpass%3Aword"
#: So many lines, tests and modules can have a database of their own.
DATABASES = 512


class Redis:
    """One server; `start` comes back when it answers, and it dies with this process."""

    package = "redis-server"
    scheme = "redis"
    speaks_tls = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.tls_port = free_ports(2)
        self.certificate = certificates.make(folder)
        self.process: subprocess.Popen[bytes] | None = None
        self._given = 0

    def program(self) -> Path:
        """Return the program, or skip the test."""
        return program(self.package, "redis-server")

    def start(self) -> None:
        """Start, empty."""
        flags = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "requirepass": PASSWORD,
            "databases": str(DATABASES),
            "save": "",
            "appendonly": "no",
            "dir": str(self.folder),
            "loglevel": "warning",
        }
        if self.speaks_tls:
            flags |= {
                "tls-port": str(self.tls_port),
                "tls-cert-file": str(self.certificate.certificate),
                "tls-key-file": str(self.certificate.key),
                "tls-ca-cert-file": str(self.certificate.authority),
                "tls-auth-clients": "no",
            }
        command = [str(self.program()), *(word for name, value in flags.items() for word in (f"--{name}", value))]
        with (self.folder / f"{self.scheme}.log").open("ab") as output:
            self.process = subprocess.Popen(
                dies_with_me(command), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        give_up_at = time.monotonic() + 10
        while not self._answers():
            if time.monotonic() > give_up_at or self.process.poll() is not None:
                self.kill()
                raise RuntimeError((self.folder / f"{self.scheme}.log").read_text())
            time.sleep(0.02)

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False

    def kill(self) -> None:
        """Kill with SIGKILL: what it held is gone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    stop = kill  # there is nothing to save

    start_empty = start  # nothing is on disk

    def forget(self) -> None:
        """Forget everything, as after FLUSHALL."""
        with self.client() as client:
            client.flushall()

    def new_url(self) -> str:
        """Return the URL of a database that nobody was given before."""
        self._given += 1
        assert self._given < DATABASES
        return self.url(self._given)

    def url(self, database: int) -> str:
        """Return the URL of a database."""
        return f"{self.scheme}://:{QUOTED}@127.0.0.1:{self.port}/{database}"

    def tls_url(self) -> str:
        """Return the URL of one more database over TLS; its certificate is one that only the test's authority signed."""
        self._given += 1
        return f"{self.scheme}s://:{QUOTED}@127.0.0.1:{self.tls_port}/{self._given}"

    def client(self, database: int = 0) -> redis.Redis:
        """Return a client of the test's own."""
        return redis.Redis(port=self.port, password=PASSWORD, db=database, socket_timeout=5)

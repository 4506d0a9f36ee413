"""`leadwire up`: broker, migrations, worker, ingress and Flower under one supervisor.

Starts in that order, restarts what ends with a growing pause (a worker also when due work does not move), stops in reverse
order on SIGTERM or SIGINT, and when it is killed its children die with it. Every child inherits the lock on the data
folder, so that the lock is free only when the last of them is gone: two supervisors never share a folder.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

import httpx

from ingress import broker
from ingress.lifeline import dies_with_me
from rules.vocabulary import LedgerError, Problem, SettingsError
from worker.dispatch import wait_until_reachable
from worker.ledger import Ledger, migrate, open_ledger
from worker.settings import PREFIX, Settings
from worker.wiring import utc_now

log = logging.getLogger(__name__)

#: How long a start waits for the processes of an earlier one to go.
LEFTOVERS_SECONDS: Final = 5.0
#: How long a child may take to be ready.
READY_SECONDS: Final = 30.0
#: Running calls get this long after SIGTERM; then they are settled as unknown.
STOP_SECONDS: Final[Mapping[str, float]] = {"worker": 20.0, "ingress": 5.0, "flower": 3.0, "broker": 3.0}
FIRST_PAUSE_SECONDS: Final = 0.5
LONGEST_PAUSE_SECONDS: Final = 30.0
#: A child that ran this long starts with the first pause again.
STEADY_SECONDS: Final = 60.0
LOOK_SECONDS: Final = 0.2
#: How often the ledger is asked whether due work moves, and how long it may stand still before the worker is restarted.
PROGRESS_SECONDS: Final = 5.0
STALLED_SECONDS: Final = 45.0


def free_port() -> int:
    """Return a port of 127.0.0.1 that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def check_port(name: str, host: str, port: int) -> None:
    """Raise SettingsError when nothing can listen there."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise SettingsError(
            f"{PREFIX}{name}: cannot listen on port {port} of {host}: {error.strerror}; choose another, or 0 for a free one"
        ) from error


@dataclass(slots=True)
class Child:
    """One process under supervision."""

    name: str
    command: list[str]
    environment: Mapping[str, str]
    log_path: Path
    is_ready: Callable[[], bool]
    process: subprocess.Popen[bytes] | None = None
    started_seconds: float = 0.0
    pause_seconds: float = FIRST_PAUSE_SECONDS
    restart_at_seconds: float | None = None


@dataclass(slots=True)
class Supervisor:
    """The supervisor of one data folder; `run` returns when it was told to stop."""

    settings: Settings
    environment: Mapping[str, str]
    announce: Callable[[str], None] = print
    _lock: int = -1
    _children: list[Child] = field(default_factory=list)
    _stop: bool = False
    _ledger: Ledger | None = None
    _instance: str = ""
    _asked_seconds: float = 0.0
    _still_since_seconds: float = 0.0
    _oldest_at: datetime | None = None

    def run(self) -> None:
        """Start everything, watch it, and stop everything. Raises Problem when a start is not possible."""
        home = self.settings.home
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        (home / "logs").mkdir(mode=0o700, exist_ok=True)
        self._lock = lock_folder(home)
        (home / "up.json").unlink(missing_ok=True)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        try:
            self._start_all()
            while not self._stop:
                time.sleep(LOOK_SECONDS)
                self._look()
        finally:
            self._stop_all()
            (home / "up.json").unlink(missing_ok=True)
            os.close(self._lock)

    def _on_signal(self, number: int, _frame: object) -> None:
        log.info("%s: stopping", signal.Signals(number).name)
        self._stop = True

    # Starting

    def _start_all(self) -> None:
        settings = self.settings
        check_port("PORT", settings.host, settings.port)
        check_port("FLOWER_PORT", "127.0.0.1", settings.flower_port)
        broker_url = settings.broker_url or self._start_broker()
        migrate(settings.database_url)
        self._ledger = open_ledger(settings.database_url)
        self._instance = instance_id(settings.home)
        self._release_leases()
        port = settings.port or free_port()
        flower_port = settings.flower_port or free_port()
        token = operator_token(settings)
        shared = {
            **self.environment,
            f"{PREFIX}BROKER_URL": broker_url,
            f"{PREFIX}HOME": str(settings.home),
            f"{PREFIX}PORT": str(port),
            f"{PREFIX}FLOWER_PORT": str(flower_port),
            f"{PREFIX}OPERATOR_TOKEN": token,
        }
        without_credentials = {
            name: value
            for name, value in shared.items()
            if name not in {f"{PREFIX}MINDHUNTERS_TOKEN", f"{PREFIX}VAMBE_API_KEY"}
        }
        front = f"http://{_reachable(settings.host)}:{port}"
        flower = f"http://127.0.0.1:{flower_port}"
        self._start(self._child("worker", ["worker", "--owner", self._instance], shared, lambda: True))
        self._start(self._child("ingress", ["ingress"], without_credentials, lambda: _answers(f"{front}/healthz")))
        self._start(self._child("flower", ["flower"], without_credentials, lambda: _answers(f"{flower}/healthcheck")))
        for child in self._children:
            self._wait_until_ready(child)
        self._tell(front, flower, token)

    def _start_broker(self) -> str:
        folder = self.settings.home / "broker"
        folder.mkdir(mode=0o700, exist_ok=True)
        path = broker.socket_path(self.settings.home)
        path.unlink(missing_ok=True)
        url = broker.broker_url(path)
        command = broker.command(broker.find_server(), folder, path)
        child = Child("broker", command, dict(self.environment), self._log_path("broker"), path.is_socket)
        self._start(child)
        self._wait_until_ready(child)
        if not wait_until_reachable(url, READY_SECONDS):
            raise Problem(f"the broker does not answer; its log: {child.log_path}")
        return url

    def _child(
        self, name: str, arguments: list[str], environment: Mapping[str, str], is_ready: Callable[[], bool]
    ) -> Child:
        # -P: a folder named `rules` where `up` was started must not be taken for the package.
        command = [sys.executable, "-P", "-m", "ingress.cli", *arguments]
        return Child(name, command, environment, self._log_path(name), is_ready)

    def _log_path(self, name: str) -> Path:
        return self.settings.home / "logs" / f"{name}.log"

    def _start(self, child: Child) -> None:
        if child not in self._children:
            self._children.append(child)
        with child.log_path.open("ab") as output:
            child.process = subprocess.Popen(  # noqa: S603 - our own commands
                dies_with_me(child.command),
                env=dict(child.environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[self._lock],
                start_new_session=True,  # Ctrl-C reaches the supervisor alone, which stops children in order
            )
        child.started_seconds = time.monotonic()
        child.restart_at_seconds = None

    def _wait_until_ready(self, child: Child) -> None:
        give_up_at = time.monotonic() + READY_SECONDS
        while not child.is_ready():
            ended = child.process is not None and child.process.poll() is not None
            if self._stop:
                return
            if ended or time.monotonic() > give_up_at:
                how = f"ended with {child.process.returncode}" if ended and child.process else "is not ready"
                raise Problem(f"{child.name} {how}:\n{_tail(child.log_path)}")
            time.sleep(0.05)

    def _tell(self, front: str, flower: str, token: str) -> None:
        state = {"pid": os.getpid(), "url": front, "flower_url": flower}
        path = self.settings.home / "up.json"
        path.with_suffix(".new").write_text(json.dumps(state))
        path.with_suffix(".new").replace(path)
        self.announce(f"webhooks  {front}/webhooks/SOURCE")
        self.announce(f"flower    {flower}  (user operator, password {token})")
        self.announce(f"logs      {self.settings.home / 'logs'}")
        self.announce("Stop with Ctrl-C.")

    # Watching

    def _look(self) -> None:
        now_seconds = time.monotonic()
        for child in self._children:
            process = child.process
            if process is not None and process.poll() is not None:
                self._ended(child, process.returncode, now_seconds)
            elif child.restart_at_seconds is not None and now_seconds >= child.restart_at_seconds:
                self._start(child)
        if now_seconds - self._asked_seconds >= PROGRESS_SECONDS:
            self._asked_seconds = now_seconds
            self._check_progress(now_seconds)

    def _ended(self, child: Child, code: int, now_seconds: float) -> None:
        if now_seconds - child.started_seconds > STEADY_SECONDS:
            child.pause_seconds = FIRST_PAUSE_SECONDS
        log.error("%s ended with %s; it starts again in %.1f s", child.name, code, child.pause_seconds)
        child.process = None
        child.restart_at_seconds = now_seconds + child.pause_seconds
        child.pause_seconds = min(child.pause_seconds * 2, LONGEST_PAUSE_SECONDS)
        if child.name == "worker":
            self._release_leases()

    def _check_progress(self, now_seconds: float) -> None:
        """Restart a worker that is alive but deaf: after a broker's crash Celery was seen to consume nothing for good."""
        assert self._ledger is not None
        try:
            oldest_at = self._ledger.oldest_due()
        except LedgerError:
            return
        if oldest_at is None or oldest_at > utc_now() or oldest_at != self._oldest_at:
            self._oldest_at = oldest_at
            self._still_since_seconds = now_seconds
        elif now_seconds - self._still_since_seconds > STALLED_SECONDS:
            self._still_since_seconds = now_seconds
            worker = next(child for child in self._children if child.name == "worker")
            if worker.process is not None:
                log.error("work due since %s does not move: the worker is restarted", oldest_at)
                worker.process.kill()

    def _release_leases(self) -> None:
        """What a dead worker of ours held is unknown at once: no need to wait for its lease to end."""
        assert self._ledger is not None
        try:
            for task_id in self._ledger.release(self._instance, utc_now()):
                log.warning("task %s: its worker died; it is unknown whether it was executed", task_id)
        except LedgerError as error:
            log.warning("the leases of the dead worker stand until they end: %s", error)

    # Stopping

    def _stop_all(self) -> None:
        for name in ("flower", "ingress", "worker", "broker"):
            for child in self._children:
                if child.name == name and child.process is not None:
                    _end(child.process, STOP_SECONDS[name])
        broker.remove_socket(self.settings.home)
        if self._ledger is not None:
            self._release_leases()
            self._ledger.close()


def lock_folder(home: Path) -> int:
    """Take the folder's lock and return its descriptor, waiting for the processes of an earlier start to go."""
    descriptor = os.open(home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    give_up_at = time.monotonic() + LEFTOVERS_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() > give_up_at:
                os.close(descriptor)
                raise Problem(
                    f"{home}: another `leadwire up` works here: stop it first, or choose another LEADWIRE_HOME"
                ) from None
            time.sleep(0.1)
        else:
            return descriptor


def instance_id(home: Path) -> str:
    """Return the name that leases taken under this folder begin with, the same at every start."""
    return _kept(home / "instance", lambda: f"up-{secrets.token_hex(6)}")


def operator_token(settings: Settings) -> str:
    """Return Flower's password: the one that was set, else the one the first start made."""
    if settings.operator_token:
        return settings.operator_token.reveal()
    return _kept(settings.home / "operator-token", lambda: secrets.token_urlsafe(18))


def _kept(path: Path, make: Callable[[], str]) -> str:
    with suppress(FileNotFoundError):
        text = path.read_text().strip()
        if text:
            return text
    text = make()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    return text


def _end(process: subprocess.Popen[bytes], patience_seconds: float) -> None:
    process.terminate()
    try:
        process.wait(patience_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def _reachable(host: str) -> str:
    if host in {"0.0.0.0", "::", ""}:  # noqa: S104 - a comparison: every address includes the loopback one
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _tail(path: Path, lines: int = 15) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError as error:
        return f"(no log: {error.strerror})"

"""`leadwire up`: broker, migrations, worker, ingress and Flower under one supervisor.

Starts in that order, restarts what ends with a growing pause (a worker also when due work does not move), stops in reverse
order on SIGTERM or SIGINT, and when it is killed its children die with it. Every child inherits the lock on the data
folder, so that the lock is free only when the last of them is gone: two supervisors never share a folder.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx

from console import local_broker
from console.data_folder import instance_id, lock_folder, operator_token
from ingress.processes import dies_with_me
from rules.vocabulary import LedgerError, Problem, SettingsError
from worker.broker import wait_until_reachable
from worker.clock import utc_now
from worker.ledger import Ledger, migrate, open_ledger
from worker.settings import PREFIX, Settings

log = logging.getLogger(__name__)

#: How long a child may take to be ready.
READY_SECONDS: Final = 30.0
#: Running calls get this long after SIGTERM; then they are settled as unknown. The others end beside them.
STOP_SECONDS: Final = 20.0
#: The broker has nothing to save.
STOP_BROKER_SECONDS: Final = 3.0
FIRST_PAUSE_SECONDS: Final = 0.5
LONGEST_PAUSE_SECONDS: Final = 30.0
#: A child that ran this long starts with the first pause again.
STEADY_SECONDS: Final = 60.0
LOOK_SECONDS: Final = 0.2
#: How often is looked whether the worker reports.
REPORT_SECONDS: Final = 5.0
#: A worker reports every few seconds; one that has not for so long hangs.
SILENT_SECONDS: Final = 75.0
#: A log that has grown over this is put aside as `NAME.log.1`, in place of the one put aside before.
LOG_LIMIT_BYTES: Final = 20 * 1024 * 1024
#: What provider credentials are called: only the worker gets them.
CREDENTIALS: Final = (f"{PREFIX}MINDHUNTERS_TOKEN", f"{PREFIX}VAMBE_API_KEY")


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
    """The supervisor of one data folder; `run` returns after SIGTERM or SIGINT."""

    settings: Settings
    environment: Mapping[str, str]
    announce: Callable[[str], None] = print
    _lock: int = -1
    _children: list[Child] = field(default_factory=list)
    _stop: bool = False
    _ledger: Ledger | None = None
    _instance: str = ""
    _asked_seconds: float = 0.0
    _reported_seconds: float = 0.0
    _reported: float = 0.0

    def run(self) -> None:
        """Start everything, supervise it, and stop everything. Raises Problem when it cannot start."""
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
        check_port("OPERATOR_PORT", settings.operator_host, settings.operator_port)
        check_port("FLOWER_PORT", settings.operator_host, settings.flower_port)
        broker_url = settings.broker_url or self._start_broker()
        migrate(settings.database_url)
        self._ledger = open_ledger(settings.database_url)
        self._instance = instance_id(settings.home)
        self._release_leases()
        port = settings.port or free_port()
        operator_port = settings.operator_port or free_port()
        flower_port = settings.flower_port or free_port()
        token = operator_token(settings)
        shared = {
            **self.environment,
            f"{PREFIX}BROKER_URL": broker_url,
            f"{PREFIX}HOME": str(settings.home),
            f"{PREFIX}PORT": str(port),
            f"{PREFIX}OPERATOR_PORT": str(operator_port),
            f"{PREFIX}FLOWER_PORT": str(flower_port),
            f"{PREFIX}OPERATOR_TOKEN": token,
        }
        # Set to nothing and not left out: else a child would find them in the `.env` file it reads itself.
        without_credentials = shared | dict.fromkeys(CREDENTIALS, "")
        front = f"http://{_reachable(settings.host)}:{port}"
        private = f"http://{_reachable(settings.operator_host)}"
        flower, operator = f"{private}:{flower_port}", f"{private}:{operator_port}"
        ready_file = self.settings.home / "worker-ready"
        worker = ["worker", "--owner", self._instance, "--ready-file", str(ready_file)]
        worker += ["--health-file", str(self._worker_report)]
        ready_file.unlink(missing_ok=True)
        self._start(self._child("worker", worker, shared, ready_file.exists))
        self._start(self._child("ingress", ["ingress"], without_credentials, lambda: _answers(f"{front}/healthz")))
        for child in self._children:
            self._wait_until_ready(child)
        # Flower comes last: it costs as much to start as a worker, and no touch waits for it.
        child = self._child("flower", ["flower"], without_credentials, lambda: _answers(f"{flower}/healthcheck"))
        self._start(child)
        self._wait_until_ready(child)
        if not self._stop:
            self._tell(front, operator, flower, token)

    def _start_broker(self) -> str:
        folder = self.settings.home / "broker"
        folder.mkdir(mode=0o700, exist_ok=True)
        path = local_broker.socket_path(self.settings.home)
        path.unlink(missing_ok=True)
        url = local_broker.broker_url(path)
        command = local_broker.command(local_broker.find_server(), folder, path)
        environment = {"PATH": os.defpath, "HOME": str(folder)}
        child = Child("broker", command, environment, self._log_path("broker"), path.is_socket)
        self._start(child)
        self._wait_until_ready(child)
        if not self._stop and not wait_until_reachable(url, READY_SECONDS):
            raise Problem(f"the broker does not answer; its log: {child.log_path}")
        return url

    def _child(
        self, name: str, arguments: list[str], environment: Mapping[str, str], is_ready: Callable[[], bool]
    ) -> Child:
        # -P: a folder named `rules` where `up` was started must not be taken for the package.
        command = [sys.executable, "-P", "-m", "console.cli", *arguments]
        return Child(name, command, environment, self._log_path(name), is_ready)

    @property
    def _worker_report(self) -> Path:
        """The file in which the worker reports that it works."""
        return self.settings.home / "worker-health"

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
        child.started_seconds = self._reported_seconds = time.monotonic()
        child.restart_at_seconds = None

    def _wait_until_ready(self, child: Child) -> None:
        give_up_at = time.monotonic() + READY_SECONDS
        while not self._stop:
            # Looked at before anything answers: on its port somebody else might.
            if child.process is not None and child.process.poll() is not None:
                raise Problem(f"{child.name} ended with {child.process.returncode}:\n{_tail(child.log_path)}")
            if child.is_ready():
                return
            if time.monotonic() > give_up_at:
                raise Problem(f"{child.name} is not ready after {READY_SECONDS:.0f} s:\n{_tail(child.log_path)}")
            time.sleep(0.05)

    def _tell(self, front: str, operator: str, flower: str, token: str) -> None:
        state = {"pid": os.getpid(), "url": front, "operator_url": operator, "flower_url": flower}
        path = self.settings.home / "up.json"
        path.with_suffix(".new").write_text(json.dumps(state))
        path.with_suffix(".new").replace(path)
        self.announce(f"webhooks  {front}/webhooks/SOURCE")
        self.announce(f"flower    {flower}  (user operator, password {token})")
        self.announce(f"metrics   {operator}/metrics and /status  (likewise, or the password as bearer token)")
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
                self._restart(child, now_seconds)
        if now_seconds - self._asked_seconds >= REPORT_SECONDS:
            self._asked_seconds = now_seconds
            self._check_worker(now_seconds)
            self._put_logs_aside()

    def _restart(self, child: Child, now_seconds: float) -> None:
        try:
            self._start(child)
        except OSError as error:
            log.error("%s cannot be started: %s; again in %.0f s", child.name, error, child.pause_seconds)
            child.restart_at_seconds = now_seconds + child.pause_seconds

    def _put_logs_aside(self) -> None:
        """Keep the logs from filling the disk; children append to the same file, so it is copied and emptied."""
        for child in self._children:
            with suppress(OSError):
                if child.log_path.stat().st_size > LOG_LIMIT_BYTES:
                    shutil.copyfile(child.log_path, child.log_path.with_suffix(".log.1"))
                    os.truncate(child.log_path, 0)

    def _ended(self, child: Child, code: int, now_seconds: float) -> None:
        if now_seconds - child.started_seconds > STEADY_SECONDS:
            child.pause_seconds = FIRST_PAUSE_SECONDS
        log.error("%s ended with %s; it starts again in %.1f s", child.name, code, child.pause_seconds)
        child.process = None
        child.restart_at_seconds = now_seconds + child.pause_seconds
        child.pause_seconds = min(child.pause_seconds * 2, LONGEST_PAUSE_SECONDS)
        if child.name == "worker":
            self._release_leases()

    def _check_worker(self, now_seconds: float) -> None:
        """Restart a worker that reports no more: it hangs. One that takes no messages ends by itself (`Watchdog`)."""
        worker = next(child for child in self._children if child.name == "worker")
        reported = self._worker_report.stat().st_mtime if self._worker_report.exists() else 0.0
        if worker.process is None or reported != self._reported:
            self._reported, self._reported_seconds = reported, now_seconds
        elif now_seconds - self._reported_seconds > SILENT_SECONDS:
            self._reported_seconds = now_seconds
            log.error("the worker has reported nothing for %.0f s: it is restarted", SILENT_SECONDS)
            _end([worker.process], STOP_SECONDS)

    def _release_leases(self) -> None:
        """What a dead worker of ours held is unknown at once: no need to wait for its lease to end."""
        assert self._ledger is not None
        try:
            for task_id in self._ledger.tasks.release(self._instance, utc_now()):
                log.warning("task %s: its worker ended; it is unknown whether it was executed", task_id)
        except LedgerError as error:
            log.warning("the leases of the dead worker stand until they end: %s", error)

    # Stopping

    def _stop_all(self) -> None:
        """End everything within 30 s: the broker last, and what a worker left open is settled as unknown at once."""
        running = {child.name: child.process for child in self._children if child.process is not None}
        own_broker = running.pop("broker", None)
        _end(list(running.values()), STOP_SECONDS)
        if self._ledger is not None:
            self._release_leases()
            self._ledger.close()
        if own_broker is not None:
            _end([own_broker], STOP_BROKER_SECONDS)
            with suppress(OSError, Problem):
                local_broker.remove_socket(self.settings.home)


def _end(processes: Sequence[subprocess.Popen[bytes]], patience_seconds: float) -> None:
    """Ask these processes to end, all at once, and kill those that have not ended in time."""
    give_up_at = time.monotonic() + patience_seconds
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(max(0.0, give_up_at - time.monotonic()))
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

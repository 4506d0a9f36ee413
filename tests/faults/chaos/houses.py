"""The two systems that meet the same faults: Leadwire as its processes are run on a machine, and the plain Celery script.

Each has an ingress, two workers, a broker on a port of its own and both providers; the harness starts again what has ended,
as systemd or Kubernetes do. When a worker of Leadwire is seen to die, what it held is released, as `leadwire up` does.
"""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import redis
from sqlalchemy import select, text

from console.local_broker import find_server
from rules.vocabulary import LedgerError
from tests.faults.chaos import events
from tests.faults.chaos.history import ENDED, Attempt, Touch
from tests.faults.chaos.processes import Process
from tests.faults.chaos.provider import Providers
from tests.servers.needs import free_ports
from worker.clock import utc_now
from worker.ledger import Ledger, StoredTask, open_ledger
from worker.ledger.database import reading
from worker.ledger.schema import attempts, doubts
from worker.sandbox import MINDHUNTERS_TOKEN, VAMBE_API_KEY

ROOT = Path(__file__).resolve().parents[3]
WORKERS = ("worker-0", "worker-1")
#: Whose clock is moved.
SKEWED = WORKERS[1]
READY_SECONDS = 40.0
#: What the providers of a run know us by.
CREDENTIALS = {"LEADWIRE_MINDHUNTERS_TOKEN": MINDHUNTERS_TOKEN, "LEADWIRE_VAMBE_API_KEY": VAMBE_API_KEY}


class House:
    """One system: its processes by name, and what can be done to it."""

    name = ""
    #: Whether its broker is to keep what it holds, because nothing else does.
    broker_keeps = False
    #: Whether a run waits until a person is asked about what cannot be looked up.
    patient = True

    def __init__(self, folder: Path, providers: Providers) -> None:
        self.folder, self.providers = folder, providers
        self.port, self.broker_port = free_ports(2)
        self.processes: dict[str, Process] = {}
        self._clock_file = folder / "clock"

    def environment(self) -> dict[str, str]:
        """Return what every process of it gets."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("LEADWIRE_", "CELERY_", "FLOWER_", "FAKETIME"))
        }
        return {**kept, "CRM_SECRET": events.SECRET, "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}

    def start(self) -> None:
        """Start everything and wait until it is ready."""
        self._clock_file.write_text("0\n")
        # fmt: off
        keeping = ("--appendonly", "yes", "--appendfsync", "everysec") if self.broker_keeps else ("--appendonly", "no")
        self._add("broker", [
            str(find_server()), "--port", str(self.broker_port), "--bind", "127.0.0.1", "--dir", str(self.folder),
            "--save", "", *keeping,
        ], {"PATH": os.defpath})
        # fmt: on
        self._until(self._broker_answers, "the broker")
        self._start_house()
        self._until(self._ingress_answers, "the ingress")

    def _start_house(self) -> None:
        raise NotImplementedError

    def _add(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        process = self.processes[name] = Process(name, command, environment, self.folder)
        process.start()

    def _until(self, condition, what: str) -> None:
        give_up_at = time.monotonic() + READY_SECONDS
        while not condition():
            if time.monotonic() > give_up_at or not all(one.is_alive() for one in self.processes.values()):
                logs = "\n".join(path.read_text()[-1500:] for path in sorted(self.folder.glob("*.log")))
                raise RuntimeError(f"{what} of {self.name} does not get ready\n{logs}")
            time.sleep(0.05)

    def _broker_answers(self) -> bool:
        try:
            with self.broker() as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def broker(self) -> redis.Redis:
        """Return a client of the broker."""
        return redis.Redis(port=self.broker_port, socket_timeout=1, socket_connect_timeout=1)

    def _ingress_answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def restart(self, name: str) -> None:
        """Start what was killed."""
        self.processes[name].start()

    def look(self) -> list[str]:
        """Start again what has ended by itself, and return the names."""
        ended = [name for name, process in self.processes.items() if not process.held and not process.is_alive()]
        for name in ended:
            self.mourn(name)
            self.restart(name)
        return ended

    def mourn(self, name: str) -> None:
        """Do what a supervisor does when a process has died."""

    def empty_broker(self) -> bool:
        """Have the broker forget everything; False when it cannot be reached."""
        try:
            with self.broker() as client:
                return bool(client.flushall())
        except redis.RedisError:
            return False

    def fill_disk(self, *, full: bool) -> None:
        """Let no file of the house grow, or again."""
        for process in self.processes.values():
            process.fill_disk(full=full)

    def move_clock(self, seconds: int) -> bool:
        """Put one worker's clock off by so many seconds; False where that cannot be done."""
        return False

    def unsettled(self, accepted: set[str]) -> int:
        """Return the number of things that are still going to happen to accepted events, as far as can be known."""
        raise NotImplementedError

    def stop(self) -> None:
        """End everything that was started here, the broker last."""
        for process in reversed(self.processes.values()):
            process.kill()  # nothing of it is needed any more


class Leadwire(House):
    """`leadwire ingress` in two processes and two of `leadwire worker`, with the ledger in SQLite unless a URL is given."""

    name = "leadwire"
    rules = events.RULES

    def __init__(self, folder: Path, providers: Providers, *, database_url: str | None = None) -> None:
        super().__init__(folder, providers)
        self.url = database_url or f"sqlite:///{folder / 'ledger.sqlite3'}"
        self.ledger: Ledger | None = None

    def _start_house(self) -> None:
        rules = self.folder / "rules"
        rules.mkdir()
        (rules / "chaos.yaml").write_text(self.rules)
        shared = self.environment() | {
            "LEADWIRE_RULES": str(rules),
            "LEADWIRE_DATABASE_URL": self.url,
            "LEADWIRE_BROKER_URL": f"redis://127.0.0.1:{self.broker_port}/0",
            "LEADWIRE_PORT": str(self.port),
            "LEADWIRE_OPERATOR_PORT": "0",
            "LEADWIRE_INGRESS_PROCESSES": "2",
            "LEADWIRE_MINDHUNTERS_URL": self.providers.mindhunters_url,
            "LEADWIRE_VAMBE_URL": self.providers.vambe_url,
            # A run is to see its faults, not the rates that protect real providers.
            "LEADWIRE_MINDHUNTERS_RATE": "0",
            "LEADWIRE_VAMBE_RATE": "0",
        }
        command = [sys.executable, "-P", "-m", "console.cli"]
        home = {"LEADWIRE_HOME": str(self.folder / "migrate")}
        subprocess.run([*command, "migrate"], env=shared | home, cwd=self.folder, check=True, capture_output=True)
        self.ledger = open_ledger(self.url)
        for name in ("ingress", *WORKERS):
            home = {"LEADWIRE_HOME": str(self.folder / name)}
            if name == "ingress":
                self._add(name, [*command, "ingress"], shared | home)
            else:
                if name == SKEWED:
                    command = [sys.executable, "-P", "-m", "tests.faults.chaos.moved_clock", str(self._clock_file)]
                files = ["--ready-file", str(self._sign(name)), "--health-file", str(self.folder / f"{name}.health")]
                self._add(name, [*command, "worker", *files], shared | home | CREDENTIALS)
        self._until(lambda: all(self._sign(name).exists() for name in WORKERS), "a worker")

    def move_clock(self, seconds: int) -> bool:
        """Put one worker's clock off by so many seconds."""
        self._clock_file.with_suffix(".new").write_text(f"{seconds}\n")
        self._clock_file.with_suffix(".new").replace(self._clock_file)
        return True

    def _sign(self, name: str) -> Path:
        return self.folder / f"{name}.ready"

    def mourn(self, name: str) -> None:
        """Release what a dead worker held."""
        if name in WORKERS and self.ledger is not None:
            with suppress(LedgerError):
                self.ledger.tasks.release(f"worker-{self.processes[name].pid}-", utc_now())

    def unsettled(self, accepted: set[str]) -> int:
        """Return how many accepted events are not decided, and how many tasks still go on by themselves."""
        decided = {name for name, state in self.recorded().items() if state != "received"}
        touches = self.touches()
        open_ = [one for one in touches if one.state not in ENDED and (one.state != "unknown" or self._awaited(one))]
        return len(accepted - decided) + len(open_)

    def _awaited(self, touch: Touch) -> bool:
        """Whether a run waits for the end of a doubt: with look-ups that fail that takes six minutes."""
        return touch.sought_at is not None and (self.providers.look_up or self.patient)

    def recorded(self) -> dict[str, str]:
        """Return the state of every event, by the sender's id."""
        assert self.ledger is not None
        return {
            stored.event.subject.id: str(stored.state)
            for stored in self.ledger.queries.list_events()
            if stored.event.subject is not None
        }

    def touches(self) -> tuple[Touch, ...]:
        """Return every task with its attempts."""
        assert self.ledger is not None
        with reading(self.ledger._readers) as connection:
            sought = {row.task_id: row.due_at / 1e6 for row in connection.execute(select(doubts))}
            tried: dict[str, list[Attempt]] = {}
            for row in connection.execute(select(attempts).order_by(attempts.c.task_id, attempts.c.epoch)):
                tried.setdefault(row.task_id, []).append(
                    Attempt(
                        started_at=row.started_at / 1e6,
                        ended_at=None if row.ended_at is None else row.ended_at / 1e6,
                        verdict=row.verdict,
                        deferred=row.deferred,
                    )
                )
        return tuple(
            _touch(task, tried.get(task.id, []), sought.get(task.id)) for task in self.ledger.queries.list_tasks()
        )

    def integrity(self) -> tuple[str, ...]:
        """Return what SQLite finds wrong with the file."""
        assert self.ledger is not None
        if not self.url.startswith("sqlite"):
            return ()
        with reading(self.ledger._readers) as connection:
            found = [row[0] for row in connection.execute(text("PRAGMA integrity_check")) if row[0] != "ok"]
            return (*found, *(str(tuple(row)) for row in connection.execute(text("PRAGMA foreign_key_check"))))

    def stop(self) -> None:
        """End everything, the ledger's connections too."""
        super().stop()
        if self.ledger is not None:
            self.ledger.close()


def _touch(task: StoredTask, tried: list[Attempt], sought_at: float | None) -> Touch:
    title = str(task.fields["title"])
    event = title.split(" ", 1)[1]
    later = events.LATE_SECONDS if title.startswith("Late ") else 0
    return Touch(
        id=task.id,
        event=event,
        provider=str(task.provider),
        title=title,
        state=str(task.state),
        # Not its `due_at`, which moves with every retry: the moment of recording, and what the rule adds.
        first_due_at=task.created_at.timestamp() + later,
        due_at=task.due_at.timestamp(),
        external_id=task.external_id,
        if_unsure=task.if_unsure,
        retries=task.retry.max_attempts,
        retry_seconds=task.retry.delay.total_seconds(),
        attempts=tuple(tried),
        sought_at=sought_at,
        planned_later=bool(later),
    )


class PlainCelery(House):
    """Flask on waitress, two prefork workers, and a broker that writes everything to disk."""

    name = "plain Celery"
    broker_keeps = True
    _module = "tests.faults.chaos.plain_celery"

    #: So long nothing may have happened for the run to count as over: more than the visibility time-out.
    STILL_SECONDS = 60.0

    def _start_house(self) -> None:
        shared = self.environment() | {
            "PLAIN_BROKER_URL": f"redis://127.0.0.1:{self.broker_port}/0",
            "PLAIN_MINDHUNTERS_URL": self.providers.mindhunters_url,
            "PLAIN_VAMBE_URL": self.providers.vambe_url,
        }
        server = ["waitress", f"--listen=127.0.0.1:{self.port}", "--threads=16", f"{self._module}:app"]
        self._add("ingress", [sys.executable, "-m", *server], shared)
        for name in WORKERS:
            words = ["worker", "-P", "prefork", "-c", "4", "-n", f"{name}@%h", "-l", "WARNING"]
            self._add(name, [sys.executable, "-m", "celery", "-A", f"{self._module}:queue", *words], shared)

    def unsettled(self, accepted: set[str]) -> int:
        """Return how many effects of accepted events are missing, as long as anything may still come."""
        happened = {(effect.provider, effect.title) for effect in list(self.providers.effects)}
        missing = sum(len(events.expected(event) - happened) for event in accepted)
        newest = max((effect.at for effect in list(self.providers.effects)), default=0.0)
        # Nothing is known of what the broker lost: for as long as something comes, more may come.
        return missing if time.time() - newest < self.STILL_SECONDS else 0

"""What is compared, and how each is started: the afternoon's script, and `leadwire up` as it comes.

Both get the same broker program, the same sink and the same signed events, and stay at their defaults wherever they have
one. Leadwire's broker may forget everything (its ledger does not), so it writes nothing; the script has nothing but its
broker, which therefore syncs every second, as its documentation advises.
"""

from __future__ import annotations

import importlib.metadata
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from bench.events import SECRET, SIGNATURE_HEADER, SIGNATURE_PREFIX
from bench.processes import Started, start
from console.local_broker import find_server
from rules.vocabulary import TaskState
from worker.ledger import open_ledger

ROOT: Final = Path(__file__).resolve().parent.parent
#: Processes and threads that serve the script: what gunicorn's documentation has for two cores.
GUNICORN: Final = ("--workers=2", "--threads=8", "--keep-alive=60")
WAITRESS_THREADS: Final = 16

RULES: Final = f"""
version: 1
sources:
  crm:
    auth:
      any_of:
        - hmac:
            algorithm: sha256
            key: {{env: BENCH_SECRET}}
            header: {SIGNATURE_HEADER}
            prefix: "{SIGNATURE_PREFIX}"
            encoding: hex
            signed: [body]
    body: {{format: json}}
    event: {{type: event, id: id, occurred_at: {{path: occurred_at, unit: iso}}, subject: {{kind: lead, id: lead.id}}}}
    contact: {{id: lead.id, name: lead.name, phone: lead.phone, email: lead.email, country: lead.country}}
    data: lead
    region: CL
rules:
  - id: call-good-leads
    when: lead.created
    if:
      data.score: {{gte: 50}}
      contact.country: {{in: [CL, PE, CO]}}
    then:
      - make_call: {{agent: aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa, title: "Call {{{{ subject.id }}}}"}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one measurement of a system happens: a folder of its own, its port, and the sink it has to call."""

    folder: Path
    port: int
    sink_url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """The ids of the events that a system has on disk, and of those whose task it has there as delivered."""

    events: frozenset[str]
    delivered: frozenset[str]


class System(Protocol):
    """One of the things compared."""

    name: str

    def start(self, place: Place) -> list[Started]:
        """Start all its processes, those that others depend on first."""

    def role_of(self, command: Sequence[str]) -> str | None:
        """Return the role that a command line plays in it, or None for the parent's."""

    def recorded(self, place: Place) -> Recorded | None:
        """Return what it has on disk, or None when it keeps nothing."""

    def described(self) -> str:
        """Say in one line what it consists of."""


class Naive:
    """The afternoon's script (naive.py)."""

    name = "naive"

    def start(self, place: Place) -> list[Started]:
        broker_port = free_port()
        environment = {
            **_environment(),
            "PYTHONPATH": str(ROOT),
            "BENCH_BROKER_URL": f"redis://127.0.0.1:{broker_port}/0",
            "BENCH_PROVIDER_URL": f"{place.sink_url}/api/v1",
        }
        # fmt: off
        broker = [
            str(find_server()), "--port", str(broker_port), "--bind", "127.0.0.1", "--dir", str(place.folder),
            "--appendonly", "yes", "--appendfsync", "everysec", "--save", "",
        ]
        # fmt: on
        commands = {
            "broker": broker,
            "ingress": [sys.executable, "-m", *_server(place.port), "bench.naive:app"],
            "worker": [sys.executable, "-m", "celery", "-A", "bench.naive:queue", "worker", "-P", "prefork", "-c", "2"],
        }
        log = place.folder / "log.txt"
        return [
            start(role, command, folder=place.folder, environment=environment, log=log)
            for role, command in commands.items()
        ]

    def role_of(self, command: Sequence[str]) -> str | None:  # noqa: ARG002 - children play their parent's role
        return None

    def recorded(self, place: Place) -> Recorded | None:  # noqa: ARG002 - it keeps nothing
        return None

    def described(self) -> str:
        if _gunicorn_version():
            server = f"gunicorn {_gunicorn_version()} (2 processes of 8 threads)"
        else:
            server = f"waitress ({WAITRESS_THREADS} threads; gunicorn is not installed)"
        return f"Flask served by {server}, Celery prefork -c 2, broker with AOF everysec; no rules, no ledger"


class Leadwire:
    """`leadwire up`, with a signed source and one rule; every setting that has a default keeps it, but for the ports."""

    name = "leadwire"

    def __init__(self, database_url: str | None = None) -> None:
        self._database_url = database_url

    def start(self, place: Place) -> list[Started]:
        rules = place.folder / "rules"
        rules.mkdir()
        (rules / "bench.yaml").write_text(RULES)
        environment = {
            **_environment(),
            "LEADWIRE_HOME": str(place.folder / "home"),
            "LEADWIRE_RULES": str(rules),
            "LEADWIRE_DATABASE_URL": self._database_url or "",
            "LEADWIRE_PORT": str(place.port),
            "LEADWIRE_OPERATOR_PORT": "0",
            "LEADWIRE_FLOWER_PORT": "0",
            "LEADWIRE_MINDHUNTERS_URL": f"{place.sink_url}/api/v1",
            "LEADWIRE_MINDHUNTERS_TOKEN": "not-a-real-token",
            "LEADWIRE_VAMBE_URL": f"{place.sink_url}/api/public",
            "LEADWIRE_VAMBE_API_KEY": "not-a-real-key",
            # What is measured is the machinery: the limits that protect a real provider would be the measure of all.
            "LEADWIRE_MINDHUNTERS_RATE": "0",
            "LEADWIRE_MINDHUNTERS_CONCURRENCY": "0",
            "LEADWIRE_VAMBE_RATE": "0",
            "LEADWIRE_VAMBE_CONCURRENCY": "0",
        }
        command = [sys.executable, "-P", "-m", "console.cli", "up"]
        log = place.folder / "log.txt"
        return [start("supervisor", command, folder=place.folder, environment=environment, log=log)]

    def role_of(self, command: Sequence[str]) -> str | None:
        if "console.cli" in command:
            word = command[command.index("console.cli") + 1]
            return "supervisor" if word == "up" else word
        return "broker" if any(name in command[0] for name in ("valkey-server", "redis-server")) else None

    def recorded(self, place: Place) -> Recorded | None:
        ledger = open_ledger(self._database_url or f"sqlite:///{place.folder / 'home' / 'ledger.sqlite3'}")
        try:
            return Recorded(
                events=frozenset(
                    event.event.subject.id for event in ledger.queries.list_events() if event.event.subject
                ),
                # The source has one id for the lead as subject and as contact.
                delivered=frozenset(
                    task.contact.id or "" for task in ledger.queries.list_tasks(state=TaskState.DELIVERED)
                ),
            )
        finally:
            ledger.close()

    def described(self) -> str:
        engine = "PostgreSQL" if self._database_url else "SQLite"
        return f"`leadwire up` as it comes, with Flower; ledger in {engine}, on disk before every 2xx; one rule"


def free_port() -> int:
    """Return a port of 127.0.0.1 that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def _environment() -> dict[str, str]:
    """Return this process's environment without what would change either system, and with the secret they share."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("LEADWIRE_", "CELERY_", "FLOWER_"))
    }
    return {**kept, "BENCH_SECRET": SECRET.decode(), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


def _gunicorn_version() -> str | None:
    try:
        return importlib.metadata.version("gunicorn")
    except importlib.metadata.PackageNotFoundError:
        return None


def _server(port: int) -> list[str]:
    if _gunicorn_version():
        return ["gunicorn", *GUNICORN, f"--bind=127.0.0.1:{port}"]
    return ["waitress", f"--listen=127.0.0.1:{port}", f"--threads={WAITRESS_THREADS}"]

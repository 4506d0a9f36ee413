"""Two ingresses and three workers as they run on several machines: one database, one broker, nothing else in common.

The short form runs with the others. The long form, with as many events as are asked for, and its figures printed:

    EVENTS=20000 .venv/bin/pytest -q -s tests/flow/test_several_machines.py
"""

import hashlib
import hmac
import http.client
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import Counter

import httpx
import pytest

from ingress.processes import dies_with_me
from tests.flow.conftest import RULES, SECRET
from tests.flow.houses import on_postgresql
from tests.servers.needs import free_ports
from tests.servers.sink import Sink
from worker.broker import celery_app

EVENTS = int(os.environ.get("EVENTS", "600"))
SENDERS = 8
#: Of so many events one is posted to both front doors at once, and once more to the first.
EVERY = 5
WORKERS = ("worker-1", "worker-2", "worker-3")
#: What one of three workers has to do of the whole at the least; an even share is a third.
LEAST_SHARE = 0.1


class Machines:
    """Processes that share a database, a broker and the rules, each with a data folder of its own."""

    def __init__(self, folder, settings):
        self.folder = folder
        (folder / "rules.yaml").write_text(RULES)
        self.shared = {
            **{name: value for name, value in os.environ.items() if not name.startswith("LEADWIRE_")},
            "CRM_SECRET": SECRET,
            "LEADWIRE_RULES": str(folder),
            "LEADWIRE_MINDHUNTERS_RATE": "0",
            "LEADWIRE_MINDHUNTERS_CONCURRENCY": "0",
            "LEADWIRE_VAMBE_RATE": "0",
            "LEADWIRE_VAMBE_CONCURRENCY": "0",
            **settings,
        }
        self.processes = []

    def run(self, command):
        """Run a command to its end."""
        done = subprocess.run(
            [sys.executable, "-m", "console.cli", command],
            env=self.shared | {"LEADWIRE_HOME": str(self.folder / command)},
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert 0 == done.returncode, done.stderr

    def start(self, command, name, **settings):
        """Start a process that stays."""
        home = self.folder / name
        home.mkdir()
        with (home / "log").open("ab") as output:
            process = subprocess.Popen(
                dies_with_me([sys.executable, "-m", "console.cli", command]),
                env=self.shared | {"LEADWIRE_HOME": str(home)} | settings,
                cwd=home,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.processes.append((name, process))

    def stop(self):
        """Stop every process as a system does; returns the exit codes by name."""
        for _, process in self.processes:
            process.terminate()
        codes = {}
        for name, process in self.processes:
            try:
                codes[name] = process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                codes[name] = process.wait()
        self.processes = []
        return codes


@pytest.fixture
def sink():
    """Give a provider that counts."""
    sink = Sink()
    sink.start()
    yield sink
    sink.stop()


@pytest.fixture
def machines(house, tmp_path):
    """Give the machines, nothing started on them yet."""
    machines = Machines(tmp_path, house.settings())
    yield machines
    machines.stop()


def until(condition, seconds):
    """Wait until the condition gives something true, and return it."""
    give_up_at = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < give_up_at:
        time.sleep(0.1)
    return found


def jobs(ports):
    """Return what is posted where: every event once, every fifth of them three times, to both front doors."""
    for number in range(EVENTS):
        lead = {"id": str(number), "name": f"n{number}", "phone": "+56911112222"}
        body = json.dumps({"event": "deal.created", "id": f"e{number}", "lead": lead}).encode()
        yield ports[number % 2], body
        if number % EVERY == 0:
            yield ports[(number + 1) % 2], body
            yield ports[number % 2], body


def send(waiting, busy):
    """Post what waits as its source does: signed, and again when the answer is `busy`."""
    connections = {}
    while (job := waiting.get()) is not None:
        port, body = job
        signature = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
        headers = {"X-Signature": signature, "Content-Type": "application/json"}
        connection = connections.setdefault(port, http.client.HTTPConnection("127.0.0.1", port, timeout=30))
        while True:
            connection.request("POST", "/webhooks/crm", body, headers)
            answer = connection.getresponse()
            answer.read()
            if answer.status < 300:
                break
            busy.append(answer.status)
            time.sleep(0.1)
    for connection in connections.values():
        connection.close()


def post(ports):
    """Post everything from several senders at once; returns what was answered beside 2xx."""
    waiting, busy = queue.Queue(), []
    senders = [threading.Thread(target=send, args=(waiting, busy), daemon=True) for _ in range(SENDERS)]
    for job in jobs(ports):
        waiting.put(job)
    for sender in senders:
        waiting.put(None)
        sender.start()
    for sender in senders:
        sender.join()
    return Counter(busy)


def states(house, machines):
    """Return how many tasks of the ledger are in which state."""
    database = machines.shared["LEADWIRE_DATABASE_URL"].rpartition("/")[2]
    with house.postgres.connect(database) as connection:
        return dict(connection.execute("SELECT state, count(*) FROM tasks GROUP BY state").fetchall())


@on_postgresql
def test_none_lost_none_twice_and_the_work_is_spread(house, machines, sink):
    """Of what two front doors accept, twice and thrice too, three workers make every task once, each a fair share."""
    machines.run("migrate")
    ports = free_ports(2)
    for number, port in enumerate(ports, 1):
        machines.start("ingress", f"ingress-{number}", LEADWIRE_PORT=str(port), LEADWIRE_OPERATOR_PORT="0")
    for name in WORKERS:
        machines.start(
            "worker",
            name,
            LEADWIRE_MINDHUNTERS_URL=sink.url,
            LEADWIRE_MINDHUNTERS_TOKEN="fake",
            LEADWIRE_VAMBE_URL=sink.url,
            LEADWIRE_VAMBE_API_KEY=name,
        )
    app = celery_app(machines.shared["LEADWIRE_BROKER_URL"])
    assert until(lambda: len(app.control.ping(timeout=1)) == len(WORKERS), 60)
    app.pool.force_close_all()
    for port in ports:
        assert until(lambda port=port: answers(f"http://127.0.0.1:{port}/readyz"), 30)

    began = time.monotonic()
    busy = post(ports)
    posted = time.monotonic() - began
    assert until(lambda: {"delivered": EVENTS} == states(house, machines), 60 + EVENTS / 50), states(house, machines)
    done = time.monotonic() - began

    titles = Counter(title for _, title in sink.arrived)
    shares = {name: count / EVENTS for name, count in Counter(name for name, _ in sink.arrived).items()}
    sys.stdout.write(
        f"\n{house.name}: {EVENTS} events in {done:.1f} s ({EVENTS / done:.0f}/s; posted in {posted:.1f} s, busy {dict(busy)});"
        f" lost {EVENTS - len(titles)}, twice {sum(titles.values()) - len(titles)};"
        f" shares {', '.join(f'{name} {share:.0%}' for name, share in sorted(shares.items()))}\n"
    )
    assert {f"Person n{number}": 1 for number in range(EVENTS)} == titles
    assert all(shares.get(name, 0) > LEAST_SHARE for name in WORKERS), shares
    assert dict.fromkeys(("ingress-1", "ingress-2", *WORKERS), 0) == machines.stop()


def answers(url):
    """Say whether a process answers there with success."""
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.HTTPError:
        return False

"""The whole line as real processes: `leadwire up` with its broker, worker and ingress, and the sandbox as both providers."""

import hashlib
import hmac
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import httpx
import pytest

from ingress.processes import dies_with_me
from tests.flow.houses import HOUSES
from worker.ledger import open_ledger
from worker.sandbox import MINDHUNTERS_TOKEN, VAMBE_API_KEY, Sandbox

SECRET = "flow-test-secret-not-a-real-one"
AGENT = "aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa"
TEMPLATE = "bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb"
PERSON = "cccccccc-cccc-4ccc-8ccc-cccccccccccc"

RULES = f"""
version: 1
defaults: {{timezone: America/Santiago}}
sources:
  crm:
    auth:
      any_of:
        - hmac: {{algorithm: sha256, key: {{env: CRM_SECRET}}, header: X-Signature, encoding: hex, signed: [body]}}
    body: {{format: json}}
    event: {{type: event, id: id, occurred_at: {{path: occurred_at, unit: iso}}, subject: {{kind: lead, id: lead.id}}}}
    contact: {{id: lead.id, name: lead.name, phone: lead.phone, email: lead.email, country: lead.country}}
    data: lead
    region: CL
rules:
  - id: big-lead
    description: A big lead is called, greeted and followed up
    when: lead.created
    if: {{data.value: {{gt: 10000}}}}
    then:
      - make_call:
          agent: {AGENT}
          title: "Call {{{{ contact.name }}}}"
          priority: 8
        retry: {{strategy: exponential, delay: 1h, jitter: 0}}
      - whatsapp_template: {{agent: {AGENT}, template: {TEMPLATE}, title: "Welcome {{{{ contact.name }}}}"}}
      - team_task:
          title: "Follow up {{{{ contact.name }}}}"
          priority: high
          assign: [{PERSON}]
          due: +2h
  - id: quick
    when: lead.updated
    then:
      - make_call: {{agent: {AGENT}, title: "Quick {{{{ contact.name }}}}"}}
        retry: {{delay: 1s, jitter: 0}}
  - id: person
    when: deal.created
    then:
      - team_task: {{title: "Person {{{{ contact.name }}}}", priority: low, assign: [{PERSON}]}}
"""


class Line:
    """One `leadwire up` with a folder, rules and a sandbox of its own."""

    def __init__(self, folder: Path, rules: str = RULES, **settings: str) -> None:
        self.home = folder / "home"
        self.rules = folder / "rules"
        self.rules.mkdir(parents=True)
        (self.rules / "rules.yaml").write_text(rules)
        self.sandbox = Sandbox()
        self.sandbox.start()
        self.settings = settings
        self.process = None
        self.url = ""

    @property
    def environment(self) -> dict[str, str]:
        """The environment of every command of this line."""
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("LEADWIRE_")},
            "CRM_SECRET": SECRET,
            "LEADWIRE_HOME": str(self.home),
            "LEADWIRE_RULES": str(self.rules),
            "LEADWIRE_PORT": "0",
            "LEADWIRE_OPERATOR_PORT": "0",
            "LEADWIRE_FLOWER_PORT": "0",
            "LEADWIRE_MINDHUNTERS_URL": self.sandbox.mindhunters_url,
            "LEADWIRE_MINDHUNTERS_TOKEN": MINDHUNTERS_TOKEN,
            "LEADWIRE_VAMBE_URL": self.sandbox.vambe_url,
            "LEADWIRE_VAMBE_API_KEY": VAMBE_API_KEY,
            # Many tasks at once are to be as quick as they can be; tests of the limits set their own.
            "LEADWIRE_MINDHUNTERS_RATE": "0",
            "LEADWIRE_MINDHUNTERS_CONCURRENCY": "0",
            "LEADWIRE_VAMBE_RATE": "0",
            "LEADWIRE_VAMBE_CONCURRENCY": "0",
            **self.settings,
        }

    def start(self) -> None:
        """Start and wait until everything is ready."""
        (self.home / "up.json").unlink(missing_ok=True)  # one that was killed leaves it, with ports that are gone
        output = (self.home.parent / "up.log").open("ab")
        self.process = subprocess.Popen(
            dies_with_me([sys.executable, "-m", "console.cli", "up"]),
            env=self.environment,
            cwd=self.home.parent,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        output.close()
        state = self.home / "up.json"
        self.until(lambda: state.exists() or self.process.poll() is not None, 40)
        assert self.process.poll() is None, (self.home.parent / "up.log").read_text()
        self.state = json.loads(state.read_text())
        self.url = self.state["url"]

    def stop(self) -> int:
        """Stop with SIGTERM and return the exit code."""
        self.process.terminate()
        return self.process.wait(40)

    def kill(self) -> None:
        """Kill the supervisor with SIGKILL."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        """End whatever still runs."""
        if self.process is not None and self.process.poll() is None:
            self.stop()
        self.sandbox.stop()

    def event(self, type_="lead.created", **lead):
        """Return an event of the source `crm`."""
        return {
            "event": type_,
            "id": uuid.uuid4().hex,
            "lead": {"id": "7", "name": "Ana", "phone": "+56911112222", "value": 12000, **lead},
        }

    def post(self, event, *, signature=None, client=httpx, patience_seconds=20):
        """Post an event, signed as its source signs unless a signature is given."""
        body = event if isinstance(event, bytes) else json.dumps(event).encode()
        signed = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
        headers = {"X-Signature": signed if signature is None else signature, "Content-Type": "application/json"}
        return client.post(f"{self.url}/webhooks/crm", content=body, headers=headers, timeout=patience_seconds)

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a `leadwire` command in this line's environment."""
        return subprocess.run(
            [sys.executable, "-m", "console.cli", *arguments],
            env=self.environment,
            cwd=self.home.parent,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def tasks(self):
        """Return every task of the ledger."""
        ledger = open_ledger(self.settings.get("LEADWIRE_DATABASE_URL") or f"sqlite:///{self.home / 'ledger.sqlite3'}")
        try:
            return list(ledger.queries.list_tasks())
        finally:
            ledger.close()

    def until(self, condition, seconds=40.0):
        """Wait until the condition gives something true, and return it; who cannot be reached yet has not answered yet."""
        give_up_at = time.monotonic() + seconds
        while True:
            found = None
            try:
                found = condition()
            except httpx.TransportError:
                if time.monotonic() > give_up_at:
                    raise
            if found or time.monotonic() > give_up_at:
                return found
            time.sleep(0.05)


def pytest_generate_tests(metafunc):
    """Run a test on the houses it is marked for, and on the first one without a mark."""
    if "house" in metafunc.fixturenames:
        mark = metafunc.definition.get_closest_marker("houses")
        names = mark.args if mark else list(HOUSES)[:1]
        metafunc.parametrize("house", names, indirect=True, scope="module")


@pytest.fixture(scope="module")
def house(request):
    """Give the house a test runs on, its servers started."""
    house = HOUSES[request.param]
    return house(**{name: request.getfixturevalue(name) for name in house.needs})


@pytest.fixture(scope="module")
def line(house, tmp_path_factory):
    """Give a running line, shared by the tests of one module on one house."""
    line = Line(tmp_path_factory.mktemp("line"), **house.settings())
    line.start()
    yield line
    line.close()


@pytest.fixture
def own_line(house, tmp_path):
    """Give a line of one test's own, not started yet."""
    line = Line(tmp_path, **house.settings())
    yield line
    line.close()

"""Leadwire as a Celery application: `celery -A worker.app ...` against a real broker, as docs/celery.md has it."""

import json
import os
import re
import signal
import subprocess
import sys
import uuid
from contextlib import contextmanager
from pathlib import Path

import pytest

from ingress.processes import dies_with_me
from rules.vocabulary import Contact, Event
from tests.flow.conftest import Line
from worker.broker import celery_app
from worker.clock import utc_now
from worker.ledger import Delivery, IncomingEvent, open_ledger
from worker.settings import Settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "celery.md").read_text()
PRINTED = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]

MODULE = """
from pathlib import Path
from celery import shared_task, signals

@signals.celeryd_init.connect
def starting(**_):
    Path("heard").write_text("celeryd_init")

@shared_task
def note(text):
    Path("noted").write_text(text)
"""


class CeleryLine(Line):
    """A line without `up`: its ledger, its rules, the sandbox, and a worker that Celery's own command starts."""

    def python(self, *arguments, **changes):
        """Return what `subprocess` needs to run a module of Leadwire's installation in this line's folder."""
        environment = {**self.environment, **changes}
        return {"args": [sys.executable, "-m", *arguments], "env": environment, "cwd": self.home.parent}

    def celery(self, *arguments, **changes):
        """Run a command of Celery's, with changed settings when there are any."""
        parts = self.python("celery", "-A", "worker.app", *arguments, **changes)
        return subprocess.run(**parts, capture_output=True, text=True, check=False, timeout=60)

    @contextmanager
    def running(self, *arguments):
        """Have a process run for a while; gives it and its log."""
        log = self.home.parent / f"{uuid.uuid4().hex}.log"
        parts = self.python(*arguments)
        with log.open("wb") as output:
            parts["args"] = dies_with_me(parts["args"])
            process = subprocess.Popen(**parts, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield process, log
        finally:
            process.kill()
            process.wait()

    def record(self, name):
        """Record an event as the ingress does, for the sweeper to find."""
        now, id_ = utc_now(), uuid.uuid4().hex
        contact = Contact(name=name, phone="+56911112222")
        event = Event(
            id=f"ev_{id_}", source="crm", type="deal.created", occurred_at=now, received_at=now, contact=contact
        )
        delivery = Delivery(id=f"dl_{id_}", source="crm", received_at=now, body=b"{}", content_hash=id_)
        ledger = open_ledger(f"sqlite:///{self.home / 'ledger.sqlite3'}")
        ledger.inbox.record(delivery, [IncomingEvent(event=event, dedupe_key=id_, content_hash=id_)])
        ledger.close()

    @property
    def app(self):
        """A Celery application of the test's own, on this line's broker."""
        return celery_app(Settings.from_environment(self.environment).broker_url)

    def control(self, command, **arguments):
        """Return what the worker answers to a control command."""
        ((answer,),) = (
            reply.values() for reply in self.app.control.broadcast(command, arguments=arguments, reply=True)
        )
        return answer


@pytest.fixture(scope="module")
def line(valkey_server, tmp_path_factory):
    """Give a line whose worker was started by `celery -A worker.app worker`, with a module of its user's."""
    line = CeleryLine(
        tmp_path_factory.mktemp("celery"), LEADWIRE_BROKER_URL=valkey_server.new_url(), LEADWIRE_IMPORTS="my_module"
    )
    (line.home.parent / "my_module.py").write_text(MODULE)
    assert 0 == line.cli("migrate").returncode
    try:
        with line.running(
            "celery", "-A", "worker.app", "worker", "-n", "one@here", "--health-file", "health"
        ) as worker:
            line.worker, line.log = worker
            assert line.until(lambda: "one@here ready" in line.log.read_text(), 40), line.log.read_text()
            yield line
    finally:
        line.close()


def test_celerys_worker_delivers(line):
    """What was recorded is planned and delivered, though nobody published anything."""
    name = uuid.uuid4().hex
    line.record(name)
    assert line.until(lambda: [f"Person {name}"] == [task["title"] for task in line.sandbox.tasks("vambe")], 30)


def test_its_health_is_told(line):
    """`--health-file` serves `leadwire healthcheck worker`, as with `leadwire worker`."""
    assert line.until(lambda: 0 == line.cli("healthcheck", "worker", "--file", "health").returncode, 20)


def test_report_needs_the_brokers_url_alone(tmp_path):
    """It connects to nothing, reads no rules, makes no folder, and shows no password."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LEADWIRE_", "CELERY_"))}
    environment |= {"LEADWIRE_BROKER_URL": "redis://:hidden-word@127.0.0.1:1/0"}
    command = [sys.executable, "-m", "celery", "-A", "worker.app", "report"]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    assert "worker_pool: 'threads'" in done.stdout
    assert "hidden-word" not in done.stdout
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "arguments", "says"),
    [
        ("rate_limit", {"task_name": "leadwire.make_call", "rate_limit": "1/m"}, "LEADWIRE_MINDHUNTERS_RATE"),
        ("revoke", {"task_id": ["tk_1"]}, "leadwire cancel"),
        ("revoke", {"task_id": ["0b2ecd8c"], "terminate": True}, "leadwire cancel"),
        ("terminate", {"signal": "KILL", "task_id": ["tk_1"]}, "leadwire cancel"),
        ("time_limit", {"task_name": "leadwire.make_call", "soft": 1.0, "hard": 2.0}, "30 s"),
        ("pool_grow", {"n": 1}, "LEADWIRE_WORKER_THREADS"),
        ("pool_shrink", {"n": 1}, "LEADWIRE_WORKER_THREADS"),
        ("pool_restart", {}, "LEADWIRE_WORKER_THREADS"),
        ("autoscale", {"max": 4, "min": 2}, "LEADWIRE_WORKER_THREADS"),
    ],
)
def test_orders_without_effect_are_refused(line, command, arguments, says):
    """The answer says so, with what to use instead."""
    answer = line.control(command, **arguments)
    assert answer["error"].startswith("refused: ")
    assert says in answer["error"]


def test_a_refusal_is_seen_on_the_command_line(line):
    """`celery control rate_limit` shows the error."""
    done = line.celery("control", "rate_limit", "leadwire.make_call", "1/m")
    assert "refused: a provider's rate holds for all workers together" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["worker", "--pool", "prefork"], "works in threads only"),
        (["worker", "--pool=solo"], "works in threads only"),
        (["worker", "--beat"], "has no beat"),
        (["worker", "--autoscale=4,2"], "LEADWIRE_WORKER_THREADS"),
        (["beat"], "has no beat"),
        (["--broker=redis://127.0.0.1:1/0", "status"], "LEADWIRE_BROKER_URL"),
        (["--result-backend=redis://127.0.0.1:1/0", "report"], "leadwire tasks"),
    ],
)
def test_options_without_effect_are_refused(line, arguments, says):
    """The command ends with the reason, on its own line and without a traceback."""
    done = line.celery(*arguments)
    assert 1 == done.returncode, done.stdout
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_missing_is_named(line):
    """A worker without credentials, with a module that is not there, or without a broker says which setting it is."""
    done = line.celery("worker", LEADWIRE_VAMBE_API_KEY="")
    assert (1, True) == (done.returncode, "not set: LEADWIRE_VAMBE_API_KEY" in done.stderr)
    done = line.celery("worker", LEADWIRE_IMPORTS="not_there_at_all")
    assert (1, True) == (done.returncode, "LEADWIRE_IMPORTS: not_there_at_all cannot be imported" in done.stderr)
    done = line.celery("report", LEADWIRE_BROKER_URL="")
    assert (1, True) == (done.returncode, "LEADWIRE_BROKER_URL is not set" in done.stderr)


def test_the_users_own_module_works_in_the_worker(line):
    """It hears Celery's signals, its tasks run from the default queue, and they may be rate limited and revoked."""
    folder = line.home.parent
    assert "celeryd_init" == (folder / "heard").read_text()
    assert 0 == line.cli("celery", "call", "my_module.note", "--args", json.dumps(["by hand"])).returncode
    assert line.until(lambda: (folder / "noted").exists() and "by hand" == (folder / "noted").read_text())
    assert "ok" in line.control("rate_limit", task_name="my_module.note", rate_limit="100/s")
    assert "ok" in line.control("revoke", task_id=["0b2ecd8c"])


def test_a_worker_that_is_told_to_stop_stops(line):
    """SIGTERM ends it with code 0 and without a fault; the running one is left alone."""
    with line.running("celery", "-A", "worker.app", "worker", "-n", "two@here") as (process, log):
        assert line.until(lambda: "two@here ready" in log.read_text(), 40), log.read_text()
        process.send_signal(signal.SIGTERM)
        assert 0 == process.wait(30)
        assert "Traceback" not in log.read_text()


def test_the_pages_commands_work(line):
    """Every command that docs/celery.md prints does what it says, `inspect ping` above all."""
    assert len(PRINTED) > 5
    for text in PRINTED:
        program, *words = text.split()
        if "worker" in words[2:]:
            continue  # it runs since the first test
        if "events" in words:
            with line.running("celery", *words) as (_, log):
                assert line.until(lambda log=log: "heartbeat" in log.read_text(), 20), log.read_text()
            continue
        done = line.cli(*words) if program == "leadwire" else line.celery(*words[2:])
        assert 0 == done.returncode, (text, done.stderr)
        assert "report" in words or "one@here: OK" in done.stdout, text

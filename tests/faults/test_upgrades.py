"""A new version beside an old one, a new schema beneath running work, and rules that change while events wait."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from rules.vocabulary import Contact, Event, EventState, LedgerError, ProviderName, TaskState, Verdict
from tests.faults import old_ledgers
from worker.context import build_worker
from worker.ledger import Claim, Delivery, IncomingEvent, Settlement, migrate, open_ledger
from worker.ledger.database import BUSY_TIMEOUT, database_of
from worker.planning import process_events
from worker.settings import Settings

LEASE = timedelta(seconds=60)
DELIVERED = Settlement(verdict=Verdict.DELIVERED, state=TaskState.DELIVERED, external_id="x-1", status=201)

RULES = """
version: 1
rules:
  - id: greet
    when: lead.created
    then:
      - team_task: {title: "VERSION {{ contact.name }}", assign: [cccccccc-cccc-4ccc-8ccc-cccccccccccc]}
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """Give the URL of a ledger that nobody has made yet, of each engine."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    return request.getfixturevalue("postgres").fresh()


@contextmanager
def connected(url):
    """Give a connection of somebody who knows the schema."""
    engine = database_of(url).writers(BUSY_TIMEOUT)
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def rows(url, table):
    """Return every row of a table, each a mapping, in an order of its own."""
    with connected(url) as connection:
        return sorted((dict(row) for row in connection.execute(text(f"SELECT * FROM {table}")).mappings()), key=repr)


@pytest.mark.parametrize("revision", ["0001", "0002"])
def test_a_migration_keeps_every_row_and_the_work_goes_on(url, revision):
    """What an earlier version left is there in every column after the migration; each task goes on from its state."""
    old_ledgers.make(url, revision)
    tables = ("deliveries", "seen", "events", "decisions", "tasks", "attempts", "providers", "rule_sets")
    before = {table: rows(url, table) for table in tables}
    migrate(url)
    for table in tables:
        kept = [{name: row[name] for name in before[table][0]} for row in rows(url, table)]
        assert sorted(before[table], key=repr) == sorted(kept, key=repr), table

    ledger, now = open_ledger(url), old_ledgers.NOW + timedelta(seconds=30)
    assert ["tk_sending"] == ledger.tasks.release("old-", now)
    due = {ref.id for ref in ledger.tasks.dispatch_due(now, timedelta(seconds=5), {ProviderName.VAMBE: 10})}
    assert {"tk_planned", "tk_queued", "tk_waiting"} == due
    for claim in ledger.tasks.claim(sorted(due), now, LEASE, "new"):
        assert ledger.tasks.settle(claim, DELIVERED, now)
    assert ["ev_open"] == ledger.inbox.dispatch_overdue(now, timedelta(seconds=5), 10)
    states = {task.id.removeprefix("tk_"): task.state for task in ledger.queries.list_tasks()}
    ledger.close()
    after = {"planned": "delivered", "queued": "delivered", "waiting": "delivered", "sending": "unknown"}
    assert {state: after.get(state, state) for state in old_ledgers.STATES} == states


def event(name):
    """Return a new event and its delivery."""
    now = datetime.now(UTC)
    contact = Contact(id=name, name=name, phone="+56911112222")
    made = Event(
        id=f"ev_{name}",
        source="crm",
        type="lead.created",
        occurred_at=now,
        received_at=now,
        contact=contact,
        data={},
    )
    delivery = Delivery(id=f"dl_{name}", source="crm", received_at=now, body=b"{}", content_hash=name)
    return delivery, [IncomingEvent(event=made, dedupe_key=name, content_hash=name)]


@pytest.fixture
def worker_with(tmp_path):
    """Give `worker_with(words)`: one more worker on the same ledger, whose rule says these words; None: the rules as they are."""
    folder = tmp_path / "rules"
    folder.mkdir()
    settings = Settings.from_environment(
        {
            "LEADWIRE_HOME": str(tmp_path),
            "LEADWIRE_RULES": str(folder),
            "LEADWIRE_BROKER_URL": "redis://127.0.0.1:1/0",  # nobody listens there
            "LEADWIRE_MINDHUNTERS_URL": "http://127.0.0.1:1",
            "LEADWIRE_MINDHUNTERS_TOKEN": "fake",
            "LEADWIRE_VAMBE_URL": "http://127.0.0.1:1",
            "LEADWIRE_VAMBE_API_KEY": "fake",
        }
    )
    migrate(settings.database_url)
    made = []

    def build(words):
        (folder / "rules.yaml").write_text(RULES.replace("VERSION", words))
        made.append(build_worker(settings, owner=f"worker-{words}"))
        return made[-1]

    yield build
    for context in made:
        context.close()


def process(context, *event_ids):
    """Decide events as a message does."""
    process_events(context, event_ids, lambda *_: None, lambda _: None)


def test_rules_that_change_leave_what_was_planned(worker_with):
    """Tasks keep texts and version of the rules that planned them; what waited undecided is decided by the new ones, once."""
    old = worker_with("old")
    for name in ("first", "second", "third"):
        old.ledger.inbox.record(*event(name))
    process(old, "ev_first")
    new = worker_with("new")
    assert old.rule_set.version != new.rule_set.version
    process(new, "ev_first", "ev_second")
    process(old, "ev_first", "ev_second", "ev_third")  # a worker of the old rules that still runs
    process(new, "ev_third")

    tasks = {task.event_id: task for task in new.ledger.queries.list_tasks()}
    events = {found.id: found for found in new.ledger.queries.list_events()}
    assert {"ev_first": "old first", "ev_second": "new second", "ev_third": "old third"} == {
        event_id: task.fields["title"] for event_id, task in tasks.items()
    }
    versions = {"ev_first": old.rule_set.version, "ev_second": new.rule_set.version, "ev_third": old.rule_set.version}
    assert versions == {event_id: task.rule_set for event_id, task in tasks.items()}
    assert versions == {event_id: found.rule_set for event_id, found in events.items()}
    assert {EventState.PROCESSED} == {found.state for found in events.values()}
    assert {True} == {new.ledger.rule_sets.get(version) is not None for version in versions.values()}


def test_a_worker_that_runs_while_the_schema_grows_goes_on(url):
    """A newer version adds columns and tables beneath a worker: it claims, settles and records to its end, and loses nothing."""
    migrate(url)
    ledger, now = open_ledger(url), datetime.now(UTC)
    ledger.inbox.record(*event("before"))
    with connected(url) as connection:
        for table in ("events", "tasks", "attempts", "providers"):
            connection.execute(text(f"ALTER TABLE {table} ADD COLUMN of_the_future TEXT"))
        connection.execute(text("CREATE TABLE futures (id TEXT PRIMARY KEY, task_id TEXT REFERENCES tasks (id))"))
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        _old_tasks(connection)
    ledger.inbox.record(*event("after"))
    assert ["ev_before", "ev_after"] == [
        found.id for found in ledger.inbox.events_to_process(["ev_before", "ev_after"], now)
    ]
    due = ledger.tasks.dispatch_due(now, timedelta(seconds=5), {ProviderName.VAMBE: 10})
    claims = ledger.tasks.claim([ref.id for ref in due], now, LEASE, "old")
    assert [True] == [isinstance(claim, Claim) and ledger.tasks.settle(claim, DELIVERED, now) for claim in claims]
    assert {TaskState.DELIVERED: 1} == ledger.queries.counts().tasks
    ledger.close()
    with pytest.raises(LedgerError, match=r"newer Leadwire .*install that newer version"):
        open_ledger(url)  # only a start finds out


def _old_tasks(connection):
    """Put a task into the ledger that is due."""
    names = ", ".join(old_ledgers.task("planned"))
    marks = ", ".join(f":{name}" for name in old_ledgers.task("planned"))
    row = old_ledgers.task("planned") | {"event_id": "ev_before"}
    connection.execute(text(f"INSERT INTO tasks ({names}) VALUES ({marks})"), row)


@pytest.mark.parametrize("command", ["worker", "ingress", "up"])
def test_an_old_version_says_that_the_ledger_is_newer(tmp_path, command):
    """Started on a ledger of a newer version it ends at once, says what to do, and leaves every row as it is."""
    url = f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    migrate(url)
    ledger = open_ledger(url)
    ledger.inbox.record(*event("waiting"))
    ledger.close()
    with connected(url) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    (tmp_path / "rules.yaml").write_text(RULES)
    done = subprocess.run(
        [sys.executable, "-m", "console.cli", command],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if not name.startswith("LEADWIRE_")}
        | {
            "LEADWIRE_HOME": str(tmp_path),
            "LEADWIRE_RULES": str(tmp_path / "rules.yaml"),
            "LEADWIRE_BROKER_URL": "redis://127.0.0.1:1/0",
            "LEADWIRE_PORT": "0",
            "LEADWIRE_OPERATOR_PORT": "0",
            "LEADWIRE_FLOWER_PORT": "0",
            "LEADWIRE_MINDHUNTERS_URL": "http://127.0.0.1:1",
            "LEADWIRE_MINDHUNTERS_TOKEN": "fake",
            "LEADWIRE_VAMBE_API_KEY": "fake",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert 1 == done.returncode, done.stderr
    assert "of a newer Leadwire" in done.stderr
    assert "install that newer version" in done.stderr
    assert "Traceback" not in done.stderr
    assert ["received"] == [row["state"] for row in rows(url, "events")]
    assert [{"version_num": "9999"}] == rows(url, "alembic_version")

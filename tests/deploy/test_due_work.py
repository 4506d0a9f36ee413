"""What the KEDA trigger asks, on a real ledger: it counts due work, under a user that may see nothing else."""

import json

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import NullPool, create_engine, insert

from rules.vocabulary import EventState, TaskState
from tests.deploy import manifests
from tests.servers.postgres import PostgresServer
from worker.clock import utc_now
from worker.ledger.encoding import micros
from worker.ledger.schema import events, tasks

HOUR = 3_600_000_000
SCALER_FILE = manifests.ROOT / "components" / "keda" / "scaling.yaml"


@pytest.fixture(scope="module")
def server():
    """Give a PostgreSQL server."""
    server = PostgresServer()
    server.start()
    yield server
    server.close()


@pytest.fixture
def url(server):
    """Give the URL of an empty ledger."""
    url = server.migrated()
    yield url
    server.drop(url)


def query():
    """Return the trigger's query."""
    (scaler,) = [it for it in manifests.of_file(SCALER_FILE) if it["kind"] == "ScaledObject"]
    return scaler["spec"]["triggers"][0]["metadata"]["query"]


def fill(url, event_states, task_states):
    """Put events and tasks into the ledger: pairs of a state and how many microseconds ago each was due."""
    now = micros(utc_now())
    with create_engine(url.replace("postgresql:", "postgresql+psycopg:"), poolclass=NullPool).begin() as connection:
        for number, (state, ago) in enumerate([*event_states, ("processed", HOUR)]):
            connection.execute(insert(events).values(_row(events, f"ev_{number}", state, now - ago)))
        for number, (state, ago) in enumerate(task_states):
            connection.execute(
                insert(tasks).values(_row(tasks, f"tk_{number}", state, now - ago) | {"event_id": "ev_0"})
            )


def _row(table, name, state, due_at):
    """Return a row with something in every column that must have it."""
    made = {"state": state, "due_at": due_at, "id": name}
    for column in table.columns:
        if column.nullable or column.name in {*made, "seq"}:
            continue
        made[column.name] = name if column.type.python_type is str else 0
    return made


def test_it_counts_what_is_due_and_not_finished(url):
    """Undecided events, due and queued tasks and those that are being sent count; the future and the finished do not."""
    fill(
        url,
        [("received", HOUR), ("received", 0), ("received", -HOUR), ("ignored", HOUR), ("failed", HOUR)],
        [
            *[("planned", HOUR), ("waiting", HOUR), ("queued", HOUR), ("sending", HOUR)],
            *[("planned", -HOUR), ("waiting", -HOUR)],
            *[(state, HOUR) for state in ("delivered", "dead", "cancelled", "suppressed", "unknown")],
        ],
    )
    with psycopg.connect(url) as connection:
        assert 6 == connection.execute(query()).fetchone()[0]


def test_an_empty_ledger_gives_nothing_to_do(url):
    """Without work the answer is the number 0, not nothing."""
    with psycopg.connect(url) as connection:
        assert [(0,)] == connection.execute(query()).fetchall()


def test_every_state_it_names_exists():
    """The query's words are states of events and tasks."""
    words = set(query().split("'")[1::2])
    assert words == {EventState.RECEIVED, *(TaskState(word) for word in words - {"received"})}


def test_its_own_user_needs_two_columns(server, url):
    """With the rights the manifest names and no others the query runs, and nothing personal can be read."""
    granted = next(line for line in SCALER_FILE.read_text().splitlines() if "GRANT" in line).lstrip("# ")
    database = url.rpartition("/")[2]
    with server.connect(database) as connection:
        connection.execute("CREATE ROLE leadwire_scaler LOGIN PASSWORD 'fake-scaler-password'")
        connection.execute(granted)
    try:
        theirs = f"postgresql://leadwire_scaler:fake-scaler-password@127.0.0.1:{server.port}/{database}"
        with psycopg.connect(theirs, autocommit=True) as connection:
            assert 0 == connection.execute(query()).fetchone()[0]
            for column in ("contact", "fields", "reason"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(sql.SQL("SELECT {} FROM tasks").format(sql.Identifier(column)))
    finally:
        with server.connect(database) as connection:
            connection.execute("DROP OWNED BY leadwire_scaler")
            connection.execute("DROP ROLE leadwire_scaler")


def test_it_looks_at_indexes_only(url):
    """However much is finished, each of the four counts goes through an index of the ledger."""
    with psycopg.connect(url) as connection:
        connection.execute("SET enable_seqscan = off")
        plan = connection.execute(f"EXPLAIN (FORMAT JSON) {query()}").fetchone()[0]
    used = json.dumps(plan)
    assert "Seq Scan" not in used
    assert 4 == used.count('"Index Name"')

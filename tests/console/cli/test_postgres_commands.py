"""The commands on a ledger in PostgreSQL, and moving one there."""

from __future__ import annotations

import json

import pytest

from tests.servers.postgres import PASSWORD, QUOTED_PASSWORD
from worker.ledger import migrate


@pytest.fixture
def database(postgres, folder, monkeypatch):
    """The URL of a database without anything in it, as LEADWIRE_DATABASE_URL names it."""
    url = postgres.fresh()
    monkeypatch.setenv("LEADWIRE_DATABASE_URL", url)
    yield url
    postgres.drop(url)


@pytest.fixture
def moved(history, run, postgres, folder, monkeypatch):
    """The history of the other tests, moved into PostgreSQL; returns what the command said and the file's URL."""
    history.close()
    url = postgres.fresh()
    monkeypatch.setenv("LEADWIRE_DATABASE_URL", url)
    source = f"sqlite:///{folder / 'home' / 'ledger.sqlite3'}"
    yield run("migrate", "--from", source), source
    postgres.drop(url)


def test_migrate_makes_the_tables(run, database):
    """`migrate` makes the schema, and again does nothing; nothing is made in the data folder."""
    assert [(0, "the ledger is up to date\n")] * 2 == [
        (said.code, said.out) for said in (run("migrate"), run("migrate"))
    ]
    assert [] == json.loads(run("events", "--json").out)


@pytest.mark.parametrize(
    "command", [("events",), ("tasks", "--json"), ("show", "ev_1"), ("retry", "tk_1"), ("explain", "--last")]
)
def test_a_database_without_tables_says_what_makes_them(run, database, command):
    """Every command that opens the ledger names the remedy, and never the password."""
    said = run(*command)
    assert 1 == said.code
    assert "leadwire migrate" in said.err
    assert PASSWORD not in said.out + said.err
    assert QUOTED_PASSWORD not in said.out + said.err


def test_a_server_that_is_away_is_told_in_a_line(run, database, monkeypatch):
    """No traceback, no password: the place and the setting."""
    monkeypatch.setenv("LEADWIRE_DATABASE_URL", f"postgresql://leadwire:{QUOTED_PASSWORD}@127.0.0.1:1/leadwire")
    said = run("tasks")
    assert 1 == said.code
    assert "the database leadwire on 127.0.0.1:1 cannot be reached" in said.err
    assert 1 == said.err.count("\n")
    assert "fake-p" not in said.out + said.err


def test_a_ledger_is_moved(run, moved):
    """`migrate --from` counts what has moved, says where it is now and what comes next."""
    said, source = moved
    assert 0 == said.code, said.err
    assert "         4  events" in said.out
    assert "it is now in the database fresh_" in said.out
    assert "next: start every process with this LEADWIRE_DATABASE_URL" in said.out
    assert PASSWORD not in said.out + said.err
    assert "had arrived before" in run("migrate", "--from", source).out


def test_commands_work_on_what_has_moved(run, moved):
    """Listings, explanations, settling and retrying are the same as before."""
    assert ["ev_4", "ev_3", "ev_2", "ev_1"] == [event["id"] for event in json.loads(run("events", "--json").out)]
    tasks = {task["state"]: task["id"] for task in json.loads(run("tasks", "--json").out)}
    assert {"delivered", "unknown"} == set(tasks)
    assert "rule high-value-lead: matched" in run("show", "ev_1").out
    assert 0 == run("explain", "ev_2").code
    assert 1 == run("retry", tasks["delivered"]).code
    assert 0 == run("settle", tasks["unknown"], "--delivered", "vb-9").code
    assert "vb-9" in run("show", tasks["unknown"]).out


def test_the_file_is_not_used_any_more(run, moved, monkeypatch):
    """Every command that is pointed at the file again says where the ledger is, `migrate` too."""
    monkeypatch.delenv("LEADWIRE_DATABASE_URL")
    for command in (("events",), ("migrate",), ("retry", "tk_1")):
        said = run(*command)
        assert 1 == said.code
        assert "has moved to the database fresh_" in said.err


def test_a_move_can_be_undone(run, moved, monkeypatch):
    """`migrate --from URL --undo` brings the file back."""
    said = run("migrate", "--from", moved[1], "--undo")
    assert (0, "the move is undone: the file can be used again, and the database is empty\n") == (said.code, said.out)
    assert [] == json.loads(run("events", "--json").out)
    monkeypatch.delenv("LEADWIRE_DATABASE_URL")
    assert 4 == len(json.loads(run("events", "--json").out))


def test_undoing_needs_a_file(run, database):
    """`--undo` by itself is a wrong use."""
    assert 2 == run("migrate", "--undo").code


def test_moving_needs_a_database(run, ledger, folder):
    """Where LEADWIRE_DATABASE_URL names no server, the message says so and nothing changes."""
    ledger.close()
    said = run("migrate", "--from", f"sqlite:///{folder / 'home' / 'ledger.sqlite3'}")
    assert 1 == said.code
    assert "set LEADWIRE_DATABASE_URL to the PostgreSQL database" in said.err
    migrate(f"sqlite:///{folder / 'home' / 'ledger.sqlite3'}")

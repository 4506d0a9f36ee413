"""Moving a ledger from a SQLite file into PostgreSQL."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from rules.vocabulary import (
    Contact,
    Event,
    EventState,
    Plan,
    ProviderName,
    Rotation,
    Task,
    TaskState,
    TaskType,
    Verdict,
)
from rules.vocabulary import LedgerError as Refused
from worker.ledger import (
    Claim,
    Delivery,
    IncomingEvent,
    Settlement,
    migrate,
    move_ledger,
    open_ledger,
    undo_move,
)

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
LEASE = timedelta(seconds=60)
GRACE = timedelta(seconds=10)


def nothing(_step, _done, _total):
    """Nobody watches."""


def task(event_id, number):
    """A task that is due now, of a team that takes turns."""
    return Task(
        id=f"tk_{event_id}_{number}",
        key=f"{event_id}/{number}",
        event_id=event_id,
        rule="r",
        name=f"n{number}",
        type=TaskType.TEAM_TASK,
        provider=ProviderName.VAMBE,
        due_at=NOW,
        fields={"title": "Añá \ud800 \x00"},
        rotation=Rotation(team="closers", member_ids=("ana", "luis")),
        rule_set="rs_1",
    )


def record(ledger, *ids, delivery="dl_1", body=b"\x00\xff{}"):
    """Record one delivery with these events."""
    incoming = [
        IncomingEvent(
            event=Event(
                id=id_,
                source="crm",
                type="lead.created",
                occurred_at=NOW,
                received_at=NOW,
                contact=Contact(name="Ana \ud83d", phone="+56911112222"),
                data={"notes": "\x00 and \ud800"},
            ),
            dedupe_key=id_,
            content_hash="c",
        )
        for id_ in ids
    ]
    sent = Delivery(id=delivery, source="crm", received_at=NOW, body=body, content_hash=delivery, headers={"a": "b"})
    return ledger.inbox.record(sent, incoming)


@pytest.fixture
def full(url):
    """The URL of a ledger in a file, with something of everything in it, closed."""
    with closing(open_ledger(url)) as ledger:
        record(ledger, *(f"ev_{number}" for number in range(6)))
        ledger.rule_sets.store("rs_1", {"a.yaml": "rules: []\n"}, NOW)
        plans = [
            Plan(
                event_id=f"ev_{number}",
                rule_set="rs_1",
                state=EventState.PROCESSED,
                decisions=(),
                tasks=tuple(task(f"ev_{number}", each) for each in range(3)),
            )
            for number in range(4)
        ]
        ledger.tasks.insert(plans, NOW)
        sending, delivered, waiting = (
            ledger.tasks.claim([f"tk_ev_0_{number}"], NOW, LEASE, "up-1")[0] for number in range(3)
        )
        assert isinstance(sending, Claim)
        done = Settlement(verdict=Verdict.DELIVERED, state=TaskState.DELIVERED, external_id="x-1", status=201)
        ledger.tasks.settle(delivered, done, NOW)
        later = Settlement(verdict=Verdict.BUSY, state=TaskState.WAITING, due_at=NOW + LEASE, status=503, reason="no")
        ledger.tasks.settle(waiting, later, NOW)
        ledger.limits.pause(ProviderName.MINDHUNTERS, NOW + LEASE, "audit", NOW)
    return url


@pytest.fixture
def target(postgres):
    """The URL of a database without anything in it."""
    url = postgres.fresh()
    yield url
    postgres.drop(url)


def content(url):
    """Everything that can be read of a ledger."""
    with closing(open_ledger(url)) as ledger:
        events, tasks = list(ledger.queries.list_events()), list(ledger.queries.list_tasks())
        return {
            "events": events,
            "tasks": tasks,
            "bodies": [ledger.queries.delivery_body(event.id) for event in events],
            "attempts": {each.id: ledger.queries.attempts(each.id) for each in tasks},
            "rule sets": ledger.rule_sets.latest(),
            "providers": ledger.limits.states(),
            "counts": ledger.queries.measure(NOW).tallies,
        }


def is_usable(url):
    """Whether commands and processes may work on a ledger."""
    try:
        migrate(url)
        with closing(open_ledger(url)) as ledger:
            return bool(list(ledger.queries.list_events(1)))
    except Refused:
        return False


def test_everything_arrives(full, target):
    """Events, bodies, tasks, attempts, pauses, rule sets and counts are the same there, and the file is not used any more."""
    before = content(full)
    moved = move_ledger(full, target, NOW, nothing)
    assert (6, 12, 3, False) == (moved.rows["events"], moved.rows["tasks"], moved.rows["attempts"], moved.resumed)
    assert before == content(target)
    for act in (open_ledger, migrate):
        with pytest.raises(Refused, match=r"has moved to the database \w+ on 127.0.0.1.*LEADWIRE_DATABASE_URL.*--undo"):
            act(full)


def test_work_goes_on_there(full, target):
    """Nothing is lost or repeated: duplicates are known, turns go on, what was being sent becomes unknown by its lease."""
    move_ledger(full, target, NOW, nothing)
    with closing(open_ledger(target)) as ledger:
        assert 1 == record(ledger, "ev_3", delivery="dl_again").duplicates
        assert ("ev_new",) == record(ledger, "ev_new", delivery="dl_new").event_ids
        assert "ev_new" == ledger.queries.last_event().id
        assert {"ev_4", "ev_5", "ev_new"} == set(ledger.inbox.dispatch_overdue(NOW + LEASE, GRACE, 100))
        due = ledger.tasks.dispatch_due(NOW + GRACE, GRACE, {ProviderName.VAMBE: 100})
        assert 9 == len(due)
        assert [] == ledger.tasks.expire_leases(NOW + LEASE - GRACE)
        assert ["tk_ev_0_0"] == ledger.tasks.expire_leases(NOW + LEASE)
        (refused,) = ledger.tasks.claim(["tk_ev_0_1"], NOW, LEASE, "w")
        assert TaskState.DELIVERED == refused.state
        plan = Plan(
            event_id="ev_new", rule_set="rs_1", state=EventState.PROCESSED, decisions=(), tasks=(task("ev_new", 0),)
        )
        ledger.tasks.insert([plan], NOW)
        assert ["ana"] == ledger.queries.task("tk_ev_new_0").fields["responsible_ids"]


def test_a_ledger_in_use_stays_where_it_is(full, target):
    """While any process has the file open, however idle, nothing is moved; the message says what to stop."""
    with closing(open_ledger(full)) as ledger:
        with pytest.raises(Refused, match="is in use: stop every Leadwire process"):
            move_ledger(full, target, NOW, nothing)
        assert "ev_5" == ledger.queries.last_event().id
    assert is_usable(full)


def test_a_supervisor_in_the_data_folder_is_met(full, file, target):
    """The lock of `leadwire up` is enough, also in the moment before its processes have opened the ledger."""
    with (file.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Refused, match="`leadwire up` works here"):
            move_ledger(full, target, NOW, nothing)
    move_ledger(full, target, NOW, nothing)


def test_nobody_starts_on_the_file_while_it_is_copied(full, target):
    """A process that starts in the middle cannot open the ledger, neither the old one nor the new one."""
    met = []

    def progress(step, _done, _total):
        if step == "copy tasks":
            for url in (full, target):
                with pytest.raises(Refused) as caught:
                    open_ledger(url, busy_timeout=timedelta(milliseconds=50)).inbox.record(
                        Delivery(id="dl_x", source="crm", received_at=NOW, body=b"", content_hash="x"), []
                    )
                met.append(str(caught.value))

    move_ledger(full, target, NOW, progress)
    assert len(met) == 2


def test_two_ledgers_never_become_one(full, target):
    """A database that holds anything is refused, and the file stays usable."""
    migrate(target)
    with closing(open_ledger(target)) as ledger:
        ledger.rule_sets.store("rs_9", {}, NOW)
    with pytest.raises(Refused, match=r"is not empty .its table rule_sets"):
        move_ledger(full, target, NOW, nothing)
    assert is_usable(full)


def test_a_second_ledger_is_not_moved_on_top(full, target, tmp_path):
    """Where one ledger has arrived, another one is refused, also an empty one."""
    move_ledger(full, target, NOW, nothing)
    other = f"sqlite:///{tmp_path}/other.sqlite3"
    migrate(other)
    with pytest.raises(Refused, match="is not empty"):
        move_ledger(other, target, NOW, nothing)
    open_ledger(other).close()


def test_an_older_schema_is_brought_up_first(tmp_path, target):
    """A ledger of an earlier version is moved in the schema of this one."""
    from alembic import command  # noqa: PLC0415 - only here
    from alembic.config import Config  # noqa: PLC0415 - likewise

    from worker.ledger.database import BUSY_TIMEOUT, database_of  # noqa: PLC0415 - likewise
    from worker.ledger.migrations import FOLDER  # noqa: PLC0415 - likewise

    old = f"sqlite:///{tmp_path}/old.sqlite3"
    storage = database_of(old)
    storage.make()
    engine = storage.writers(BUSY_TIMEOUT)
    with engine.begin() as connection:
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", str(FOLDER))
        command.upgrade(config, "0001")
    engine.dispose()
    move_ledger(old, target, NOW, nothing)
    open_ledger(target).close()


@pytest.mark.parametrize(
    ("source", "words"),
    [("postgresql://u@h/d", "only a ledger in a SQLite file"), ("sqlite:////nowhere/at/all.sqlite3", "no ledger at")],
)
def test_what_cannot_be_moved_is_refused(target, source, words):
    """Only a file that is there can be moved."""
    with pytest.raises(Refused, match=words):
        move_ledger(source, target, NOW, nothing)


def test_a_ledger_moves_into_postgresql_only(full):
    """Without a server's URL the message says which setting names it."""
    with pytest.raises(Refused, match="set LEADWIRE_DATABASE_URL to the PostgreSQL database"):
        move_ledger(full, full, NOW, nothing)


MOVER = """
import os, signal, sys
from datetime import UTC, datetime
from worker.ledger import move_ledger, undo_move

source, target, act, fatal = sys.argv[1:]

def progress(step, done, total):
    if step == fatal:
        os.kill(os.getpid(), signal.SIGKILL)

if act == "move":
    move_ledger(source, target, datetime(2026, 3, 2, 12, tzinfo=UTC), progress)
else:
    undo_move(source, target, progress)
"""
STEPS = ("mark the file", "copy events", "copy tasks", "compare attempts", "commit", "committed", "moved")


def killed(source, target, act, step):
    """Run a move or an undo that is killed at this step."""
    done = subprocess.run([sys.executable, "-c", MOVER, source, target, act, step], capture_output=True, check=False)
    assert -signal.SIGKILL == done.returncode, done.stderr.decode()


@pytest.mark.parametrize("step", STEPS)
def test_a_move_that_was_killed_is_ended_by_the_same_command(full, target, step):
    """Killed at any step: the file is not used, and moving again ends in one usable ledger with everything, once."""
    before = content(full)
    killed(full, target, "move", step)
    assert not is_usable(full)
    again = move_ledger(full, target, NOW, nothing)
    assert again.resumed == (step in {"committed", "moved"})
    assert (False, True) == (is_usable(full), is_usable(target))
    assert before == content(target)


@pytest.mark.parametrize("step", STEPS)
def test_a_move_that_was_killed_can_be_given_up(full, target, step):
    """Killed at any step and undone: the file is the one usable ledger again, and can be moved another time."""
    before = content(full)
    killed(full, target, "move", step)
    undo_move(full, target, nothing)
    assert before == content(full)
    assert not is_usable(target)
    move_ledger(full, target, NOW, nothing)
    assert before == content(target)


@pytest.mark.parametrize("step", ["compare tasks", "empty the database"])
def test_an_undo_that_was_killed_is_ended_by_the_same_command(full, target, step):
    """Killed while it is undone: never two usable ledgers, and the same command brings the file back."""
    before = content(full)
    move_ledger(full, target, NOW, nothing)
    killed(full, target, "undo", step)
    assert (False, step == "compare tasks") == (is_usable(full), is_usable(target))
    undo_move(full, target, nothing)
    assert before == content(full)
    assert not is_usable(target)


def test_a_ledger_that_has_worked_there_does_not_come_back(full, target):
    """Once anything has changed there, undoing would lose or repeat it."""
    move_ledger(full, target, NOW, nothing)
    with closing(open_ledger(target)) as ledger:
        ledger.tasks.expire_leases(NOW + LEASE)
    with pytest.raises(Refused, match="has been worked on since"):
        undo_move(full, target, nothing)
    assert (False, True) == (is_usable(full), is_usable(target))


def test_only_what_was_moved_is_undone(full, target):
    """A ledger that never moved has nothing to undo."""
    with pytest.raises(Refused, match="has not been moved"):
        undo_move(full, target, nothing)
    assert is_usable(full)


def test_a_move_goes_on_only_where_it_began(full, target, postgres):
    """A move that was interrupted is not ended in another database: the copy might stand in the first one already."""
    killed(full, target, "move", "commit")
    elsewhere = postgres.fresh()
    for act in (lambda: move_ledger(full, elsewhere, NOW, nothing), lambda: undo_move(full, elsewhere, nothing)):
        with pytest.raises(Refused, match=r"went to the database"):
            act()
    postgres.drop(elsewhere)
    assert not is_usable(full)
    move_ledger(full, target, NOW, nothing)


def test_a_move_that_fails_leaves_the_file_usable(full, elsewhere, target):
    """A row that PostgreSQL cannot hold stops the move with its table's name; everything is as before."""
    elsewhere.execute("UPDATE tasks SET note = 'a' || char(0) || 'b' WHERE id = 'tk_ev_3_1'")
    elsewhere.close()
    with pytest.raises(Refused):
        move_ledger(full, target, NOW, nothing)
    assert (True, False) == (is_usable(full), is_usable(target))


def test_interrupting_a_copy_leaves_the_file_usable(full, target):
    """Ctrl-C in the middle of the copy: nothing has happened."""

    def progress(step, _done, _total):
        if step == "copy tasks":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        move_ledger(full, target, NOW, progress)
    assert (True, False) == (is_usable(full), is_usable(target))


def test_progress_counts_every_row_twice(full, target):
    """What is told goes up to the whole: each row copied and compared."""
    told = []
    move_ledger(full, target, NOW, lambda *step: told.append(step))
    counted = [(done, total) for step, done, total in told if step.startswith(("copy", "compare"))]
    assert counted == sorted(counted)
    assert counted[-1][0] == counted[-1][1]
    assert os.path.exists(full.removeprefix("sqlite:///"))

"""Writers of several processes in one PostgreSQL: who is in whose way, and what a caller is told when a server fails."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta

import pytest
from sqlalchemy import bindparam, insert, select, text, update

from rules.vocabulary import LedgerBusyError
from worker.ledger.database import database_of
from worker.ledger.schema import turns
from worker.ledger.statements import Statement, columns_of
from worker.ledger.writer import Batchable, Writer

SHORT = timedelta(milliseconds=200)
_ADD = Statement(insert(turns), columns_of(turns))
_COUNT = Statement(update(turns).where(turns.c.team == bindparam("of")).values(taken=turns.c.taken + 1))


class House:
    """Several writers on one database, each as a process of its own has it."""

    def __init__(self, url):
        self.url = url
        self.engine = database_of(url).writers(SHORT)
        self.writers = []
        self.pool = ThreadPoolExecutor(max_workers=32)

    def writer(self, url=None, lock=SHORT):
        made = Writer(database_of(url or self.url).writers(lock), wait=timedelta(seconds=10))
        self.writers.append(made)
        return made

    def taken(self):
        """Return what stands in the table."""
        with self.engine.connect() as connection:
            return dict(map(tuple, connection.execute(select(turns.c.team, turns.c.taken))))

    def close(self):
        for writer in self.writers:
            writer.close()
        self.engine.dispose()
        self.pool.shutdown()


@pytest.fixture
def house(postgres):
    """A database with three teams in it, and no writer yet."""
    house = House(postgres.emptied())
    with house.engine.begin() as connection:
        connection.execute(insert(turns), [{"team": team, "taken": 0} for team in "abc"])
    yield house
    house.close()


def count_all(connection, teams):
    """Count each of these teams; the whole of a kind of work."""
    _COUNT.run_many(connection, [{"of": team} for team in teams])
    return [f"counted {team}" for team in teams]


def add_all(connection, teams):
    """Add these teams; one that is there already spoils it for all."""
    _ADD.run_many(connection, [{"team": team, "taken": 0} for team in teams])
    return [f"added {team}" for team in teams]


def crossing(first, second, met):
    """A work that takes one row, waits until the other work has taken its own, and then wants that."""

    def act(connection, parts):
        _COUNT.run(connection, {"of": first})
        with suppress(threading.BrokenBarrierError):
            met.wait(2)
        _COUNT.run(connection, {"of": second})
        return ["done" for _ in parts]

    return act


def together(act):
    """A work that can be done together with others: sent in a row."""
    return Batchable(act, None)


def by_itself(act):
    """The same as a work of no kind: done step by step."""
    return lambda connection: act(connection, [None])[0]


@pytest.mark.parametrize("kind", [together, by_itself])
def test_a_deadlock_is_tried_again(house, kind):
    """Two works that wait for each other both succeed: the one that the server gives up is done again."""
    met = threading.Barrier(2)
    one, two = house.writer(lock=timedelta(seconds=9)), house.writer(lock=timedelta(seconds=9))
    futures = [
        house.pool.submit(one.write, kind(crossing("a", "b", met))),
        house.pool.submit(two.write, kind(crossing("b", "a", met))),
    ]
    assert ["done", "done"] == [future.result(20) for future in futures]
    assert {"a": 2, "b": 2, "c": 0} == house.taken()


def test_a_row_that_somebody_holds_delays_only_who_needs_it(house, postgres):
    """A lock time-out spoils a whole group; alone, each of its works succeeds but the one that needs the row."""
    writer = house.writer()
    held = threading.Event()

    def hold(connection):
        held.set()
        go_on.wait(5)

    go_on = threading.Event()
    with postgres.connect(house.url.rpartition("/")[2]) as elsewhere, elsewhere.transaction():
        elsewhere.execute("UPDATE turns SET taken = 9 WHERE team = 'b'")
        first = house.pool.submit(writer.write, hold)
        assert held.wait(5)
        futures = {team: house.pool.submit(writer.write, Batchable(count_all, team)) for team in "abc"}
        while writer._queue.qsize() < 3:
            pass
        go_on.set()
        assert ["counted a", "counted c"] == [futures[team].result(10) for team in "ac"]
        with pytest.raises(LedgerBusyError, match="nothing was written"):
            futures["b"].result(10)
    assert first.result(5) is None
    assert {"a": 1, "b": 9, "c": 1} == house.taken()
    assert "counted b" == writer.write(Batchable(count_all, "b"))


def test_a_work_that_fails_together_is_done_alone(house):
    """Of works that are done together one breaks a constraint: it alone fails, and the others stand."""
    writer = house.writer()
    held, go_on = threading.Event(), threading.Event()
    first = house.pool.submit(writer.write, lambda _connection: held.set() or go_on.wait(5))
    assert held.wait(5)
    futures = {team: house.pool.submit(writer.write, Batchable(add_all, team)) for team in ("x", "a", "y")}
    while writer._queue.qsize() < 3:
        pass
    go_on.set()
    assert ["added x", "added y"] == [futures[team].result(10) for team in "xy"]
    with pytest.raises(Exception, match="unique"):
        futures["a"].result(10)
    assert first.result(5)
    assert {"a": 0, "b": 0, "c": 0, "x": 0, "y": 0} == house.taken()


def swallowing(connection, parts):
    """A work that meets a fault of the database and says nothing of it."""
    _COUNT.run(connection, {"of": "a"})
    with suppress(Exception):
        connection.connection.driver_connection.execute("SELECT nonsense").fetchall()
    return ["fine" for _ in parts]


@pytest.mark.parametrize("kind", [together, by_itself])
def test_a_spoilt_transaction_is_no_success(house, kind):
    """PostgreSQL ends a spoilt transaction with a rollback that looks like a commit; no caller takes it for one."""
    with pytest.raises(LedgerBusyError):
        house.writer().write(kind(swallowing))
    assert {"a": 0, "b": 0, "c": 0} == house.taken()


@pytest.mark.parametrize("kind", [together, by_itself])
def test_a_connection_that_the_server_ends_costs_one_group(house, kind):
    """When the server ends the connection in the middle, the caller is told and nothing stands; the next write goes well."""
    writer = house.writer()

    def ended(connection, parts):
        _COUNT.run(connection, {"of": "a"})
        connection.connection.driver_connection.execute("SELECT pg_terminate_backend(pg_backend_pid())").fetchall()
        return parts

    with pytest.raises(LedgerBusyError):
        writer.write(kind(ended))
    assert {"a": 0, "b": 0, "c": 0} == house.taken()
    assert "counted a" == writer.write(Batchable(count_all, "a"))


class Cutter:
    """Stands between a writer and the server, and breaks off when a commit has gone through."""

    def __init__(self, port):
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.armed = False
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._port))
            cut = threading.Event()
            threading.Thread(target=self._there, args=(client, server, cut), daemon=True).start()
            threading.Thread(target=self._back, args=(client, server, cut), daemon=True).start()

    def _there(self, client, server, cut):
        with suppress(OSError):
            while data := client.recv(65536):
                if self.armed and b"COMMIT\0" in data:
                    cut.set()
                server.sendall(data)
        with suppress(OSError):
            server.shutdown(socket.SHUT_WR)

    @staticmethod
    def _back(client, server, cut):
        with suppress(OSError):
            while data := server.recv(65536):
                if cut.is_set():
                    break  # the answer to the commit never arrives
                client.sendall(data)
        for end in (client, server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self):
        self._listener.close()


@pytest.mark.parametrize("kind", [together, by_itself])
def test_a_commit_without_an_answer_is_neither_success_nor_failure(house, postgres, kind):
    """The connection breaks after the commit was sent: the caller is told that nobody knows, and it may well stand."""
    cutter = Cutter(postgres.port)
    writer = house.writer(house.url.replace(f":{postgres.port}/", f":{cutter.port}/"))
    assert "counted a" == writer.write(Batchable(count_all, "a"))
    cutter.armed = True
    with pytest.raises(LedgerBusyError, match="not known whether it was written"):
        writer.write(kind(lambda connection, _parts: count_all(connection, "b")))
    cutter.armed = False
    assert "counted c" == writer.write(Batchable(count_all, "c"))
    assert {"a": 1, "b": 1, "c": 1} == house.taken()
    writer.close()
    cutter.close()


def test_a_server_that_is_away_is_busy(house, postgres):
    """Nobody listens: every caller is told at once, with the place and without the password."""
    engine = database_of(house.url.replace(f":{postgres.port}/", ":1/")).writers(SHORT)
    writer = Writer(engine, wait=timedelta(seconds=10))
    with pytest.raises(LedgerBusyError, match=r"127.0.0.1:1 cannot be reached") as caught:
        writer.write(Batchable(count_all, "a"))
    assert "fake-p" not in str(caught.value)
    writer.close()


def test_a_transaction_left_open_is_ended_by_the_server(house):
    """A process that hangs in the middle of a transaction holds its rows no longer than its session allows."""
    with house.engine.connect() as connection:
        assert "1min" == connection.execute(text("SHOW idle_in_transaction_session_timeout")).scalar()
        connection.rollback()
        driver = connection.connection.driver_connection
        driver.execute("SET idle_in_transaction_session_timeout = 100")
        connection.execute(update(turns).values(taken=5))
        assert "counted a" == house.writer(lock=timedelta(seconds=5)).write(Batchable(count_all, "a"))
        connection.invalidate()
    assert {"a": 1, "b": 0, "c": 0} == house.taken()

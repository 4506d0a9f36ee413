from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from queue import SimpleQueue

import pytest
from sqlalchemy import event, insert, select, text

from rules.vocabulary import LedgerBusyError, LedgerError
from worker.ledger.database import database_of
from worker.ledger.schema import turns
from worker.ledger.writer import GATHERING, GROUP_LIMIT, YIELDING_GROUP_SIZE, Batchable, Writer, WriterFileLock

SHORT = timedelta(milliseconds=100)


class Bench:
    """A writer whose first job can be held, so that others gather behind it."""

    def __init__(self, url, wait=timedelta(seconds=5), **others):
        self.engine = database_of(url).writers(SHORT)
        self.commits = 0
        event.listen(self.engine, "commit", self._committed)
        self.writer = Writer(self.engine, wait=wait, **others)
        self.pool = ThreadPoolExecutor(max_workers=400)
        self._go_on = threading.Event()

    def _committed(self, _connection):
        self.commits += 1

    def hold(self):
        """Let the writer begin a job that ends with `let_go`."""
        begun = threading.Event()

        def work(_connection):
            begun.set()
            self._go_on.wait(5)

        held = self.pool.submit(self.writer.write, work)
        assert begun.wait(5)
        return held

    def let_go(self):
        self._go_on.set()

    def queue(self, *works):
        """Hand in works one after the other, without waiting for them."""
        futures = []
        for work in works:
            before = self.writer._queue.qsize()
            futures.append(self.pool.submit(self.writer.write, work))
            while self.writer._queue.qsize() == before:
                pass
        return futures

    def teams(self):
        """Return which rows are in the file."""
        with self.engine.connect() as connection:
            return set(connection.execute(select(turns.c.team)).scalars())

    def close(self):
        self.let_go()
        self.writer.close()
        self.pool.shutdown()


@pytest.fixture
def file_bench(url):
    """A writer on an empty ledger in a file."""
    bench = Bench(url)
    yield bench
    bench.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def bench(request):
    """A writer on an empty ledger of each engine."""
    if request.param == "sqlite":
        yield request.getfixturevalue("file_bench")
        return
    bench = Bench(request.getfixturevalue("postgres").emptied())
    yield bench
    bench.close()


def adding(team):
    """Work that adds a row and returns its name."""

    def work(connection):
        connection.execute(insert(turns).values(team=team, taken=1))
        return team

    return work


def failing(team, error):
    """Work that adds a row and then raises."""

    def work(connection):
        adding(team)(connection)
        raise error

    return work


def driver_of(connection):
    """Return the driver's own connection."""
    return connection.connection.driver_connection


def test_waiting_jobs_share_one_commit(bench):
    """What gathers while a commit is under way is written with the next one, and everyone gets their own result."""
    held = bench.hold()
    futures = bench.queue(*(adding(f"t{number}") for number in range(20)))
    bench.let_go()
    assert [f"t{number}" for number in range(20)] == [future.result(5) for future in futures]
    assert held.result(5) is None
    assert 2 == bench.commits
    assert 20 == len(bench.teams())


def test_groups_are_bounded(bench):
    """More jobs than a group may hold take several commits."""
    bench.hold()
    futures = bench.queue(*(adding(f"t{number}") for number in range(GROUP_LIMIT + 1)))
    bench.let_go()
    assert GROUP_LIMIT + 1 == len({future.result(5) for future in futures})
    assert 3 == bench.commits


def test_a_failing_job_harms_no_neighbour(bench):
    """A job that raises is undone alone and its caller gets the exception; those before and behind it stand."""
    bench.hold()
    before, fault, behind = bench.queue(adding("a"), failing("b", ValueError("mine")), adding("c"))
    bench.let_go()
    assert ["a", "c"] == [before.result(5), behind.result(5)]
    with pytest.raises(ValueError, match="mine"):
        fault.result(5)
    assert {"a", "c"} == bench.teams()
    assert 2 == bench.commits


def test_a_broken_constraint_is_a_ledger_fault(bench):
    """The driver's exceptions come out as ours."""
    bench.writer.write(adding("a"))
    with pytest.raises(LedgerError, match=r"(?i)unique") as caught:
        bench.writer.write(adding("a"))
    assert not isinstance(caught.value, LedgerBusyError)


@pytest.mark.parametrize("error", [SystemExit("out"), KeyboardInterrupt(), MemoryError(), RecursionError()])
def test_the_thread_survives_what_a_job_raises(bench, error):
    """Even what ends a program ends only the job."""
    with pytest.raises(type(error)):
        bench.writer.write(failing("a", error))
    assert "b" == bench.writer.write(adding("b"))
    assert {"b"} == bench.teams()


def test_a_locked_ledger_is_busy(file_bench, elsewhere):
    """While somebody else holds the write lock every caller is told, and nothing is written; afterwards all is well."""
    elsewhere.execute("BEGIN IMMEDIATE")
    futures = [file_bench.pool.submit(file_bench.writer.write, adding(f"t{number}")) for number in range(5)]
    for future in futures:
        with pytest.raises(LedgerBusyError, match="locked"):
            future.result(5)
    elsewhere.execute("ROLLBACK")
    assert set() == file_bench.teams()
    assert "after" == file_bench.writer.write(adding("after"))


def test_a_failing_commit_reaches_every_caller(bench):
    """When the storage gives the transaction up, no caller of the group believes in its job, however well it went."""
    bench.hold()
    well, ill, behind = bench.queue(adding("a"), lambda c: driver_of(c).execute("ROLLBACK"), adding("c"))
    bench.let_go()
    for future in (well, ill, behind):
        with pytest.raises(LedgerBusyError):
            future.result(5)
    assert set() == bench.teams()
    assert "after" == bench.writer.write(adding("after"))


def test_a_transaction_that_ended_unseen_is_no_success(bench):
    """A job after which no transaction is open any more is reported as failed, not as written."""

    def work(connection):
        adding("a")(connection)
        driver_of(connection).execute("ROLLBACK")
        driver_of(connection).execute("SAVEPOINT job")

    with pytest.raises(LedgerBusyError):
        bench.writer.write(work)
    assert set() == bench.teams()


def test_a_lost_connection_is_replaced(bench):
    """A connection that breaks costs one group; the next has a new one."""
    with pytest.raises(LedgerError):
        bench.writer.write(lambda connection: driver_of(connection).close())
    assert "after" == bench.writer.write(adding("after"))


def test_a_caller_that_waited_too_long_withdraws(url):
    """A job that has not begun in time is certainly not written, also later."""
    bench = Bench(url, wait=SHORT)
    bench.hold()
    (waiting,) = bench.queue(adding("a"))
    with pytest.raises(LedgerBusyError, match="nothing was written"):
        waiting.result(5)
    bench.close()
    assert set() == bench.teams()


def test_a_caller_whose_job_has_begun_is_told_that_the_outcome_is_open(url):
    """Too late to withdraw: the caller neither believes in a success nor in a failure."""
    bench = Bench(url, wait=SHORT / 2)
    with pytest.raises(LedgerBusyError, match="not known"):
        bench.hold().result(5)
    bench.close()


def test_closing_writes_what_waits(bench):
    """Jobs handed in before the end are committed, later ones are refused."""
    bench.hold()
    futures = bench.queue(*(adding(f"t{number}") for number in range(5)))
    closing = bench.pool.submit(bench.writer.close)
    while not bench.writer._closed:
        pass
    with pytest.raises(LedgerError, match="closed"):
        bench.writer.write(adding("late"))
    bench.let_go()
    closing.result(5)
    assert {f"t{number}" for number in range(5)} == {future.result(5) for future in futures} == bench.teams()


def test_many_threads_at_once(bench):
    """Under load from many threads every job is written once, in far fewer commits than jobs."""
    futures = [bench.pool.submit(bench.writer.write, adding(f"t{number}")) for number in range(400)]
    assert {f"t{number}" for number in range(400)} == {future.result(5) for future in futures} == bench.teams()
    assert bench.commits < 400


def test_a_full_disk_is_busy_and_loses_nothing(ledger, elsewhere, post):
    """When the file may not grow, recording says busy, readiness too, what stood before stands, and room heals it."""
    post(ledger, "ev_1")

    def limit(pages):
        ledger._writer.write(lambda connection: driver_of(connection).execute(f"PRAGMA max_page_count={pages}"))

    (pages,) = elsewhere.execute("PRAGMA page_count").fetchone()
    limit(pages)
    with pytest.raises(LedgerBusyError, match="full"):
        post(ledger, "ev_2", size=100_000)
    limit(pages)  # the connection that met the fault was replaced
    with pytest.raises(LedgerBusyError, match="full"):
        ledger.check_writable()
    limit(10**6)
    assert ledger.check_writable() is None
    assert ("ev_2",) == post(ledger, "ev_2", size=100_000).event_ids
    assert ["ev_2", "ev_1"] == [event.id for event in ledger.queries.list_events()]
    assert [("ok",)] == elsewhere.execute("PRAGMA integrity_check").fetchall()


def test_readiness_sees_a_lock(ledger, elsewhere):
    """A ledger that another process holds locked is not ready."""
    elsewhere.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerBusyError):
        ledger.check_writable()
    elsewhere.execute("ROLLBACK")
    assert ledger.check_writable() is None


def test_every_commit_is_synced(file_bench):
    """The connection that writes is in WAL mode, syncs fully, and keeps foreign keys."""

    def pragmas(connection):
        names = ("journal_mode", "synchronous", "foreign_keys")
        return [connection.execute(text(f"PRAGMA {name}")).scalar() for name in names]

    assert ["wal", 2, 1] == file_bench.writer.write(pragmas)


def test_a_job_that_was_submitted_is_told_of_when_its_commit_stands(bench):
    """Who does not wait in its thread is told, after the commit, what the work returned or raised."""
    told = SimpleQueue()

    def wrong(_connection):
        raise ValueError("wrong")

    good, bad = (bench.writer.submit(work, told.put) for work in (adding("a"), wrong))

    assert {good, bad} == {told.get(timeout=5), told.get(timeout=5)}
    assert "a" == good.outcome()
    with pytest.raises(ValueError, match="wrong"):
        bad.outcome()
    assert {"a"} == bench.teams()


def test_a_job_that_was_submitted_can_be_withdrawn_before_it_begins(bench):
    """What is withdrawn is certainly not written; what has begun cannot be."""
    held = bench.hold()
    told = SimpleQueue()
    job = bench.writer.submit(adding("a"), told.put)

    assert job.withdraw()
    bench.let_go()
    held.result(5)
    assert job is told.get(timeout=5)
    with pytest.raises(LedgerBusyError, match="nothing was written"):
        job.outcome()
    assert not job.withdraw()
    assert set() == bench.teams()


def test_who_can_wait_takes_fewer_turns_while_others_write(url, tmp_path):
    """While another process writes all the time, jobs that come one after the other go into one commit; alone, into many."""
    file = tmp_path / "lock"
    ours = Bench(url, lock=WriterFileLock(file), yielding=timedelta(milliseconds=300))
    theirs, over = WriterFileLock(file), threading.Event()

    def write_all_the_time():
        while not over.is_set():
            with theirs.held():
                over.wait(0.01)

    def commits_of_ten(names):
        before = ours.commits
        futures = []
        for name in names:
            futures.append(ours.pool.submit(ours.writer.write, adding(name)))
            time.sleep(0.02)
        for future in futures:
            future.result(5)
        return ours.commits - before

    assert commits_of_ten("abcdefghij") > 5
    other = threading.Thread(target=write_all_the_time)
    other.start()
    for name in ("before", "and after"):
        ours.writer.write(adding(name))
    assert commits_of_ten("klmnopqrst") <= 3
    over.set()
    other.join(5)
    theirs.close()
    ours.close()


def sized(size, turns):
    """Work about so many events, which adds its size to its transaction's in `turns`."""

    def act(connection, parts):
        turns.append((connection.get_transaction(), sum(parts)))
        return parts

    return Batchable(act, size, size)


def sizes_of(turns):
    """Return how much each transaction was about."""
    found = {}
    for transaction, size in turns:
        found[transaction] = found.get(transaction, 0) + size
    return list(found.values())


@pytest.fixture
def bench_that_yields(url, tmp_path):
    """Give a writer on an empty ledger that takes turns with others and lets them go first."""
    bench = Bench(url, lock=WriterFileLock(tmp_path / "lock"), yielding=timedelta(milliseconds=15))
    yield bench
    bench.close()


def test_who_yields_takes_no_more_than_a_turns_worth(bench_that_yields):
    """Of more than `YIELDING_GROUP_SIZE` that waits, that much goes into one commit and the rest into the next ones, in order."""
    bench, turns_ = bench_that_yields, []
    bench.hold()
    futures = bench.queue(*(sized(YIELDING_GROUP_SIZE // 4, turns_) for _ in range(10)))
    bench.let_go()
    assert [YIELDING_GROUP_SIZE // 4] * 10 == [future.result(5) for future in futures]
    assert [YIELDING_GROUP_SIZE, YIELDING_GROUP_SIZE, YIELDING_GROUP_SIZE // 2] == sizes_of(turns_)
    assert 4 == bench.commits


def test_works_of_no_size_count_as_one(bench_that_yields):
    """As many single works go into one commit as a turn is worth."""
    bench_that_yields.hold()
    futures = bench_that_yields.queue(*(adding(f"t{number}") for number in range(YIELDING_GROUP_SIZE + 1)))
    bench_that_yields.let_go()
    assert YIELDING_GROUP_SIZE + 1 == len({future.result(5) for future in futures})
    assert 3 == bench_that_yields.commits


def test_what_is_larger_than_a_turn_goes_alone(bench_that_yields):
    """A work is never divided: one that is worth more than a turn is done by itself, and nothing waits for ever."""
    turns_ = []
    bench_that_yields.hold()
    futures = bench_that_yields.queue(
        *(sized(size, turns_) for size in (YIELDING_GROUP_SIZE + 60, 1, YIELDING_GROUP_SIZE))
    )
    bench_that_yields.let_go()
    assert [YIELDING_GROUP_SIZE + 60, 1, YIELDING_GROUP_SIZE] == [future.result(5) for future in futures]
    assert YIELDING_GROUP_SIZE + 60 == sizes_of(turns_)[0]


@pytest.mark.parametrize("yielding", [timedelta(0), GATHERING])
@pytest.mark.parametrize("shares", [True, False])
def test_who_does_not_yield_takes_all(url, tmp_path, yielding, shares):
    """However much waits goes into one commit: of a front door, whose senders wait, and where there are no turns."""
    lock = WriterFileLock(tmp_path / "lock") if shares else None
    bench, turns_ = Bench(url, lock=lock, yielding=yielding), []
    bench.hold()
    futures = bench.queue(*(sized(YIELDING_GROUP_SIZE, turns_) for _ in range(5)))
    bench.let_go()
    assert [YIELDING_GROUP_SIZE] * 5 == [future.result(5) for future in futures]
    assert [5 * YIELDING_GROUP_SIZE] == sizes_of(turns_)
    bench.close()
